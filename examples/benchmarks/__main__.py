"""How long the same work takes in scratchgen, in PyTorch and in JAX, on the CPU.

    python examples/benchmarks

A training step is batch, noise, forward, loss, backward and Adam, in float32. All contenders start
from one θ; before anything is timed, they must agree on the gradient and on θ after three steps.
"""

import argparse
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from harness import Disagreement, compare
from report import agreement, machine, table, write_json
from workloads import WORKLOADS, contenders

HERE = Path(__file__).parent
HINT = "this benchmark needs {}; install what it needs with: pip install -e '.[bench]'"
LIBRARIES = ("scratchgen", "numpy", "torch", "jax")


def main(arguments: list[str] | None = None) -> None:
    """Compare on every workload, and print what each takes.

    Args:
        arguments: of the command line; those of this process unless given.
    """
    given = _parser().parse_args(arguments)
    missing = [name for name in LIBRARIES[2:] if find_spec(name) is None]
    if missing:
        print(HINT.format(" and ".join(missing)), file=sys.stderr)
        raise SystemExit(4)
    rounds = 0 if given.check else given.rounds
    found: dict[str, list[dict]] = {"results": [], "ratios": [], "agreement": []}
    for workload in given.only or WORKLOADS:
        try:
            with tempfile.TemporaryDirectory() as folder:
                prepare(workload, Path(folder))
                compared = compare(
                    workload,
                    contenders(workload, Path(folder), given.threads),
                    rounds,
                    given.seconds,
                )
        except Disagreement as problem:
            raise SystemExit(f"{workload}: {problem}") from problem
        print(agreement(compared["agreement"]), file=sys.stderr, flush=True)
        for name, rows in compared.items():
            found[name] += rows
    about = machine(given.threads, LIBRARIES)
    about |= {"rounds": rounds, "seconds_a_turn": given.seconds}
    if rounds:
        print(table(found["results"], found["ratios"]))
    if given.json:
        write_json(given.json, about, found)


def prepare(workload: str, folder: Path) -> None:
    """Write what contenders start from, in a process of its own."""
    subprocess.run([sys.executable, str(HERE / "prepare.py"), workload, str(folder)], check=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python examples/benchmarks", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("--only", action="append", choices=WORKLOADS, metavar="WORKLOAD", help=", ".join(WORKLOADS))
    add("--rounds", type=_positive, default=9, help="turns of each contender (default: 9)")
    add("--seconds", type=_positive_time, default=1.5, help="length of a turn (default: 1.5)")
    add("--threads", type=_positive, default=2, help="of each contender in all (default: 2)")
    add("--check", action="store_true", help="let contenders agree, and time nothing")
    add("--json", type=Path, metavar="FILE", help="write the results there")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _positive_time(text: str) -> float:
    number = float(text)
    if not 0.0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return number


if __name__ == "__main__":
    main()
