"""Independent pieces of work in copies of this process, side by side.

Small arrays leave threads no time to run side by side: each of their many operations asks for
Python's lock. A copy of the process has a lock of its own. It shares nothing but the memory that
`shared_array` gives out, and its pieces must not need each other.
"""

import mmap
import os
import sys
import traceback
from collections.abc import Callable

import numpy as np


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
        RuntimeError: a copy ended early; what it met stands on standard error.
    """
    children = [_copy(work, range(i, count, processes)) for i in range(1, min(processes, count))]
    try:
        for k in range(0, count, processes):
            work(k)
    except BaseException:
        for child in children:
            os.kill(child, 9)
        raise
    finally:
        failed = [child for child in children if os.waitpid(child, 0)[1] != 0]
    if failed:
        raise RuntimeError(f"{len(failed)} of {processes} processes ended before they were done")


def _copy(work: Callable[[int], None], pieces: range) -> int:
    """The number of a copy of this process that does these pieces and ends."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for k in pieces:
            work(k)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)  # past everything that the original will do when it ends
