"""Times contenders that do the same work: each in a process of its own, in turn.

A contender has `step()`, the work to be timed, and `result()`, named arrays that every contender
must agree on. A script that ends in `serve(contender)` is a worker, which obeys orders that come on
its standard input and answers each with one line.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_info

TURN_SECONDS = 1.5
TOLERANCE = 1e-4


class Disagreement(Exception):
    """Two contenders do not compute the same thing, so their times say nothing."""


class Spread(NamedTuple):
    """The median of some numbers, the lowest and the highest."""

    median: float
    low: float
    high: float


def serve(contender) -> None:
    """Obey the orders on standard input until it is closed."""
    for line in sys.stdin:
        order, _, argument = line.strip().partition(" ")
        if order == "steps":
            answer = repr(_seconds(contender, int(argument)))
        elif order == "save":
            np.savez(argument, **contender.result())
            answer = argument
        else:
            answer = json.dumps(_pools())
        print(answer, flush=True)


def _seconds(contender, steps: int) -> float:
    contender.step()  # untimed: the others' threads fall asleep, and the caches are ours again
    began = time.perf_counter()
    for _ in range(steps):
        contender.step()
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


class Worker(subprocess.Popen):
    """A contender's process, to be used as a context.

    Args:
        command: its script and the script's arguments.
        threads: of BLAS and OpenMP.
    """

    def __init__(self, command: list[str], threads: int):
        pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(pools, str(threads))}
        pipe = subprocess.PIPE
        super().__init__(
            [sys.executable, *command], stdin=pipe, stdout=pipe, text=True, env=environment
        )

    def __exit__(self, *exception) -> None:
        with suppress(BrokenPipeError):
            super().__exit__(*exception)

    def ask(self, order: str) -> str:
        """The worker's answer to one order.

        Raises:
            RuntimeError: the worker has ended; its own message is on standard error.
        """
        with suppress(BrokenPipeError):  # then there is no answer either
            print(order, file=self.stdin, flush=True)
        answer = self.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker {' '.join(self.args[1:])} ended before its answer")
        return answer.strip()

    def seconds(self, steps: int) -> float:
        """The mean time of so many steps."""
        return float(self.ask(f"steps {steps}"))

    def result(self) -> dict:
        """The contender's arrays by name."""
        with tempfile.TemporaryDirectory() as folder:
            path = self.ask(f"save {Path(folder, 'result.npz')}")
            with np.load(path) as arrays:
                return dict(arrays)


def require_agreement(results: dict[str, dict]) -> float:
    """The largest difference between two contenders, over the largest entry of its array.

    Each array is compared on its own, so that a small one cannot hide behind a large one.

    Args:
        results: contender -> name -> array; all are held to the first contender.

    Raises:
        Disagreement: a difference of more than TOLERANCE, or arrays of other names or shapes.
    """
    (first, expected), *others = results.items()
    worst = 0.0
    for contender, found in others:
        if {k: v.shape for k, v in found.items()} != {k: v.shape for k, v in expected.items()}:
            raise Disagreement(f"{contender} and {first} return arrays of other names or shapes")
        for name, array in expected.items():
            scale = np.max(np.abs(array)) or 1.0
            difference = np.max(np.abs(found[name] - array)) / scale
            if not difference <= TOLERANCE:  # nor may it be nan
                raise Disagreement(f"{contender} and {first} differ in {name} by {difference:.1e}")
            worst = max(worst, float(difference))
    return worst


def take_turns(workers: dict[str, Worker], rounds: int) -> dict[str, list[float]]:
    """Seconds a step of each contender, one number a round: about TURN_SECONDS a turn."""
    steps = {}
    for name, worker in workers.items():
        worker.seconds(1)  # what is compiled, allocated or cached the first time
        steps[name] = max(1, math.ceil(TURN_SECONDS / worker.seconds(1)))
    taken = [{name: w.seconds(steps[name]) for name, w in workers.items()} for _ in range(rounds)]
    return {name: [times[name] for times in taken] for name in workers}


def spread(values: list[float]) -> Spread:
    """Median, lowest and highest."""
    return Spread(statistics.median(values), min(values), max(values))


def paired_ratio(times: list[float], rival: list[float]) -> Spread:
    """How many times as long as the rival's, round by round."""
    return spread([a / b for a, b in zip(times, rival, strict=True)])


def compare(workload: str, commands: dict[str, list[str]], rounds: int, threads: int) -> dict:
    """Let contenders agree, then take turns.

    Args:
        workload: its name.
        commands: contender -> command of its worker; the first is compared with the others.
        rounds: turns of each.
        threads: of each contender.

    Returns:
        The results, the first's ratios to the others, and how far they disagree at most.

    Raises:
        Disagreement: they do not compute the same.
    """
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(command, threads))
            for name, command in commands.items()
        }
        difference = require_agreement({name: w.result() for name, w in workers.items()})
        times = take_turns(workers, rounds)
        pools = {name: json.loads(worker.ask("pools")) for name, worker in workers.items()}
    first, *rivals = times
    return {
        "largest_difference": difference,
        "results": [
            {"workload": workload, "implementation": name}
            | dict(zip(("median_seconds", "low", "high"), spread(times[name]), strict=True))
            | {"pools": pools[name]}
            for name in times
        ],
        "ratios": [
            {"workload": workload, "implementation": first, "over": rival}
            | paired_ratio(times[first], times[rival])._asdict()
            for rival in rivals
        ],
    }
