"""A contender's own side: it obeys the harness, and knows how much memory its steps take.

A contender's process ends in `serve(work)`, where the work has

    step()       what is timed
    result()     named arrays on which all contenders must agree
    options      whatever its time depends on, ready for JSON
    finish()     waits until all steps are done; only where steps return before that

It obeys orders that come on its standard input and answers each with one line of JSON.
"""

import json
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def serve(work) -> None:
    """Obey the orders on standard input until it is closed."""
    memory = Memory()
    for line in sys.stdin:
        order, _, argument = line.strip().partition(" ")
        answer: object = argument
        if order == "steps":
            memory.watch()
            answer = _seconds(work, int(argument))
        elif order == "save":
            np.savez(argument, **work.result())
        elif order == "memory":
            answer = memory.peak()
        elif order == "options":
            answer = {**work.options, "pools": _pools()}
        print(json.dumps(answer), flush=True)


def _seconds(work, steps: int) -> float:
    """Seconds a step, after a tenth as many steps that are not timed.

    In these the threads of the contender before fall asleep, and the caches become ours again.
    """
    finish = getattr(work, "finish", lambda: None)
    for _ in range(1 + steps // 10):
        work.step()
    finish()
    began = time.perf_counter()
    for _ in range(steps):
        work.step()
    finish()
    return (time.perf_counter() - began) / steps


def _pools() -> list[str]:
    """The thread pools of this process: what they belong to, and how many threads they have."""
    return sorted(
        " ".join(
            str(pool[key])
            for key in ("internal_api", "version", "architecture", "num_threads")
            if pool.get(key)
        )
        for pool in threadpool_info()
    )


class Memory:
    """What this process holds beyond what it holds now, when everything is imported and built."""

    def __init__(self):
        self.before, self.watching = _resident(), False

    def watch(self) -> None:
        """From the first call on, memory counts; where the system allows, not what came before."""
        if not self.watching:
            self.watching = True
            with suppress(OSError):
                CLEAR.write_text("5")

    def peak(self) -> int:
        """Bytes, at least 0."""
        return max(0, _largest() - self.before)


def _resident() -> int:
    return _status("VmRSS") or _largest()


def _largest() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM") or (most if sys.platform == "darwin" else 1024 * most)


def _status(key: str) -> int | None:
    """An entry of the process's status in bytes; None on systems that do not keep one."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{key}:"):
                return 1024 * int(line.split()[1])
    return None
