"""Independent pieces of work in copies of this process, side by side.

Small arrays leave threads no time to run side by side: each of their many operations asks for
Python's lock. A copy of the process has a lock of its own. It shares nothing but the memory that
`shared_array` gives out, and its pieces must not need each other.
"""

import ctypes
import mmap
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable

import numpy as np

PR_SET_PDEATHSIG = 1  # of Linux' prctl: the signal that a process gets when its parent ends


def shared_array(shape: tuple[int, ...], dtype) -> np.ndarray:
    """Zeros in memory that this process and its later copies all see."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, max(1, size)), dtype, count=int(np.prod(shape))).reshape(
        shape
    )


def side_by_side(work: Callable[[int], None], count: int, processes: int) -> None:
    """work(0), ..., work(count - 1), every so-manieth in a process of its own.

    Args:
        work: leaves what it finds in a `shared_array`.
        count: of pieces.
        processes: this one and its copies; at least 1.

    Raises:
        ChildProcessError: a copy ended early; what it met stands on standard error.
    """
    children: list[int] = []
    failed = 0
    try:
        for i in range(1, min(processes, count)):
            children.append(_copy(work, range(i, count, processes)))
        for k in range(0, count, processes):
            work(k)
        while children:
            failed += os.waitpid(children[0], 0)[1] != 0
            del children[0]
    finally:
        for child in children:  # there are some left only if something went wrong
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if failed:
        raise ChildProcessError(
            f"{failed} of {processes} processes ended before they were done; if memory was short, "
            "fewer need less"
        )


def _copy(work: Callable[[int], None], pieces: range) -> int:
    """The number of a copy of this process that does these pieces and ends."""
    sys.stdout.flush()
    sys.stderr.flush()
    original = os.getpid()
    child = _fork()
    if child:
        return child
    code = 1
    try:
        _end_with(original)
        for k in pieces:
            work(k)
        code = 0
    except KeyboardInterrupt:
        pass  # the original is interrupted too, and says so
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)  # past everything that the original will do when it ends


def _fork() -> int:
    with warnings.catch_warnings():
        # Python warns of threads, which a copy lacks though they may hold a lock. Those here are
        # BLAS's, which computes in one thread and has handlers of its own for being copied.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _end_with(original: int) -> None:
    """Let this copy be killed when the original ends, however it does; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != original:  # it ended before this was known
        os._exit(1)
