"""Whether the machine is busy with anything but the contenders: on Linux, where the kernel says so.

Two threads that wait for each other lose much more than their share when a third one runs, and one
contender loses more than another. So a time taken beside other programs says little, and nothing
that a median over rounds could repair if it goes on for long.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

PROC = Path("/proc")
QUIET = 0.1  # of one core, in other hands


def others_seconds(pids: Sequence[int]) -> float:
    """Processor seconds since the start of the machine that were not these processes'.

    Time that a hypervisor gave to other machines counts too. Always 0 where there is no /proc.
    """
    try:
        total = (PROC / "stat").read_text("utf-8").splitlines()[0].split()[1:9]
        own = [(PROC / str(pid) / "stat").read_text("utf-8").rpartition(")")[2] for pid in pids]
    except OSError:
        return 0.0
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, total)
    ours = sum(int(ticks) for fields in own for ticks in fields.split()[11:13])
    busy = user + nice + system + irq + softirq + steal
    return (busy - ours) / os.sysconf("SC_CLK_TCK")


class Watch:
    """How much of one core other programs have had since the watch was started."""

    def __init__(self, pids: Sequence[int]):
        self.pids = (*pids, os.getpid())
        self.began, self.before = time.monotonic(), others_seconds(self.pids)

    def share(self) -> float:
        """In cores: 0 for none, 2 for two cores all the time."""
        used = others_seconds(self.pids) - self.before
        return used / max(time.monotonic() - self.began, 1e-3)


def wait(pids: Sequence[int], deadline: float) -> None:
    """Until other programs leave the machine alone for a second, or time.monotonic() is there."""
    while time.monotonic() < deadline:
        watch = Watch(pids)
        time.sleep(1.0)
        if watch.share() <= QUIET:
            return
