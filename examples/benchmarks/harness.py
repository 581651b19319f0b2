"""Times contenders that do the same work: each in processes of its own (worker.py), in turn."""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

TRIAL_SECONDS = 0.1
TOLERANCE = 1e-4
OURS = "scratchgen"
KERNELS = "OPENBLAS_CORETYPE"  # a contender's own choice, not that of who starts the benchmark


class Disagreement(Exception):
    """Two contenders do not compute the same thing, so their times say nothing."""


class Spread(NamedTuple):
    """The median of some numbers, the lowest and the highest."""

    median: float
    low: float
    high: float


class Contender(NamedTuple):
    """One way to do the work.

    Args:
        side: whose it is, such as "PyTorch"; OURS is compared with the fastest of each other side.
        commands: of its processes, each a script and its arguments; several split the batch and
            work at the same time.
        threads: of BLAS and OpenMP, in each process.
        environment: variables of its processes beside those for threads.
    """

    side: str
    commands: list[list[str]]
    threads: int
    environment: dict[str, str] = {}


class Process(subprocess.Popen):
    """One process of a contender, to be used as a context."""

    def __init__(self, command: list[str], threads: int, environment: dict[str, str]):
        # NPROC is what XLA asks for the size of its pool
        pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")
        pipe, chosen = subprocess.PIPE, {**dict.fromkeys(pools, str(threads)), **environment}
        own = {name: value for name, value in os.environ.items() if name != KERNELS}
        super().__init__(
            [sys.executable, *command], stdin=pipe, stdout=pipe, text=True, env=own | chosen
        )

    def __exit__(self, *exception) -> None:
        with suppress(BrokenPipeError):
            super().__exit__(*exception)

    def send(self, order: str) -> None:
        """Give an order."""
        with suppress(BrokenPipeError):  # then there is no answer either
            print(order, file=self.stdin, flush=True)

    def answer(self):
        """The answer to the last order.

        Raises:
            RuntimeError: the process has ended; its own message is on standard error.
        """
        line = self.stdout.readline()
        if not line:
            raise RuntimeError(f"the process {' '.join(self.args[1:])} ended before its answer")
        return json.loads(line)


class Worker(ExitStack):
    """The running processes of a contender, to be used as a context."""

    def __init__(self, contender: Contender):
        super().__init__()
        self.environment = contender.environment
        self.processes = [
            self.enter_context(Process(command, contender.threads, contender.environment))
            for command in contender.commands
        ]

    def ask(self, order: str) -> list:
        """Give all processes an order at once, and wait for all answers."""
        for process in self.processes:
            process.send(order)
        return [process.answer() for process in self.processes]

    def seconds(self, steps: int) -> float:
        """The mean time of so many steps; of several processes, that of the slowest."""
        return max(self.ask(f"steps {steps}"))

    def peak_bytes(self) -> int:
        """The memory that steps took, summed over the processes."""
        return sum(self.ask("memory"))

    def options(self) -> dict:
        """What the time depends on."""
        first, *_ = self.ask("options")
        return first | {"processes": len(self.processes), "environment": self.environment}

    def result(self) -> dict:
        """The arrays by name; those of several processes one behind the other."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, f"{i}.npz") for i in range(len(self.processes))]
            for process, path in zip(self.processes, paths, strict=True):
                process.send(f"save {path}")
            for process in self.processes:
                process.answer()
            parts = [_read(path) for path in paths]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _read(path: Path) -> dict:
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


def take_turns(workers: dict[str, Worker], rounds: int, turn: float) -> dict[str, list[float]]:
    """Seconds a step of each contender, one number a round: about `turn` seconds a turn."""
    steps = {}
    for name, worker in workers.items():
        worker.seconds(1)  # what is compiled, allocated or cached the first time
        trial = math.ceil(TRIAL_SECONDS / worker.seconds(1))
        steps[name] = max(1, math.ceil(turn / worker.seconds(trial)))
    order, taken = list(workers), []
    for _ in range(rounds):  # each begins with another, so that nobody always follows the same
        taken.append({name: workers[name].seconds(steps[name]) for name in order})
        order = order[1:] + order[:1]
    return {name: [times[name] for times in taken] for name in workers}


def spread(values: list[float]) -> Spread:
    """Median, lowest and highest."""
    return Spread(statistics.median(values), min(values), max(values))


def paired_ratio(times: list[float], rival: list[float]) -> Spread:
    """How many times as long as the rival's, round by round."""
    return spread([a / b for a, b in zip(times, rival, strict=True)])


def compare(
    workload: str, contenders: dict[str, Contender], rounds: int, turn: float
) -> dict[str, list[dict]]:
    """Let contenders agree, then take turns.

    Args:
        workload: its name.
        contenders: by name; all are held to the first.
        rounds: turns of each; with 0 they only have to agree.
        turn: seconds of a turn.

    Returns:
        results: what each took, and what its time depends on.
        ratios: those of our times to each rival's; `fastest` marks the best of its side.
        agreement: how far they differ at most.

    Raises:
        Disagreement: they do not compute the same.
    """
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(c)) for name, c in contenders.items()}
        difference = require_agreement({name: w.result() for name, w in workers.items()})
        found = {"agreement": [{"workload": workload, "largest_difference": difference}]}
        if not rounds:
            return found
        times = take_turns(workers, rounds, turn)
        results = [
            {"workload": workload, "implementation": name, "side": contenders[name].side}
            | dict(zip(("median_seconds", "low", "high"), spread(times[name]), strict=True))
            | {"peak_bytes": worker.peak_bytes(), "options": worker.options()}
            for name, worker in workers.items()
        ]
    return found | {"results": results, "ratios": _ratios(results, times)}


def _ratios(results: list[dict], times: dict[str, list[float]]) -> list[dict]:
    sides: dict[str, list[str]] = {}
    for result in sorted(results, key=lambda result: result["median_seconds"]):
        sides.setdefault(result["side"], []).append(result["implementation"])
    ours = [name for name in times if name in sides.get(OURS, ())]
    return [
        {"workload": results[0]["workload"], "implementation": name, "side": side, "over": rival}
        | paired_ratio(times[name], times[rival])._asdict()
        | {"fastest": i == 0}
        for name in ours
        for side, rivals in sides.items()
        if side != OURS
        for i, rival in enumerate(rivals)
    ]
