"""Is there a fault that the tests would let pass?

    python -m tests.mutation                          every mutant of the maths, some 15 minutes
    python -m tests.mutation scratchgen/maths/bounds.py      of one file
    python -m tests.mutation --fast                   one in five of them, a few minutes
    python -m tests.mutation --keys [--fast]          faults planted for the keys of the catalogue
    python -m tests.mutation --list [FILES]           show the mutants, run nothing

A mutant is judged by the tests of its own file (and those in ALSO). A survivor is a change that no
test notices; unless allowed.toml says why it changes nothing, it makes the exit code 1. There is no
mutmut here, because the faults planted for the keys need this engine anyway, because our pullbacks
are closures, which must be mutated too, and because a fault has to reach everyone who imported the
function (swap.py).
"""

import argparse
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from time import monotonic
from zlib import crc32

import pytest

from scratchgen.testing.equations import catalogue

from . import keys
from .operators import Mutant, mutants
from .runner import PATIENCE, Baseline, baselines, judge, with_tests
from .swap import ROOT

PACKAGE, TESTS = ROOT / "scratchgen", ROOT / "tests"
TARGETS = [
    *sorted((PACKAGE / "maths").glob("[!_]*.py")),
    PACKAGE / "core" / "numerics.py",
    PACKAGE / "training" / "optim.py",
    PACKAGE / "testing" / "monte_carlo.py",
]
ALSO: dict[str, list[str]] = {}
ALLOWED = Path(__file__).with_name("allowed.toml")
ONE_IN = 5


def tests_of(path: Path) -> list[Path]:
    """The test files that a module answers to."""
    inside = path.relative_to(PACKAGE)
    mirror = TESTS / inside.with_name(f"test_{inside.name}")
    return [mirror, *(TESTS / also for also in ALSO.get(inside.as_posix(), []))]


def allowed() -> set[tuple[str, str, str, str]]:
    """(file, function, before, after) of the mutants that are proved to change nothing."""
    entries = tomllib.loads(ALLOWED.read_text("utf-8")).get("mutant", [])
    return {(e["file"], e["function"], e["before"], e["after"]) for e in entries}


def name(mutant: Mutant) -> tuple[str, str, str, str]:
    """What identifies a mutant in the list of the allowed ones."""
    path = mutant.path
    file = path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else path.name
    return file, mutant.scope, mutant.before, mutant.after


def chosen(path: Path, fast: bool) -> list[Mutant]:
    """The mutants of a file, or one in five, always the same ones."""
    found = [mutant for mutant in mutants(path) if name(mutant) not in allowed()]
    return [m for m in found if not fast or crc32(repr(name(m)).encode()) % ONE_IN == 0]


def survivors(paths: dict[Path, list[Path]], fast: bool, patience: float = PATIENCE) -> list[str]:
    """Run the mutants of every file against its tests; print and return what survives."""
    found = []
    planned = {path: chosen(path, fast) for path in paths}  # read when the modules are imported

    def work(items):
        known = baselines(items, paths)
        for path, tests in paths.items():
            found.extend(_of_one_file(path, {i: b for i, b in known.items() if i.path in tests}))

    def _of_one_file(path: Path, known: dict[pytest.Item, Baseline]) -> Iterable[str]:
        start, verdicts, alive = monotonic(), Counter(), []
        for mutant, killer in judge(planned[path], known, patience):
            verdict = killer if killer in ("timeout", "crash") else "killed"
            if killer is None:
                verdict = "survived"
                alive.append(mutant)
            verdicts[verdict] += 1
            if verdict != "killed":
                print(f"  {verdict}: {mutant}", flush=True)
        counts = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items())
        print(f"{path.name}: {counts}; {monotonic() - start:.0f} s", flush=True)
        return map(str, alive)

    with_tests({test for tests in paths.values() for test in tests}, work)
    return found


def gaps(fast: bool) -> list[str]:
    """Faults of the catalogue's keys that no test marked with the key notices."""
    found = []
    possible = keys.faults(fast)  # read when the modules are imported

    def work(items):
        tests = keys.marked(items)
        items = [item for item in items if any(item in of_key for of_key in tests.values())]
        known = baselines(items, PACKAGE.rglob("*.py"), 0.4 if fast else 600.0)
        print(f"{len(items)} tests; {monotonic() - start:.0f} s", flush=True)
        planted = {fault: named & set(tests) for fault, named in possible.items()}
        found.extend(f"{key}: {fault}" for key, fault in keys.unnoticed(planted, tests, known))
        found.extend(f"{key}: {fault}" for key, fault in keys.unrefuted(tests, known))
        held = set().union(*planted.values())
        equations = {key for key in tests if catalogue()[key].kind == "equation"}
        found.extend(f"{key}: no function names it as its source" for key in equations - held)
        print(
            f"{sum(map(bool, planted.values()))} faults planted for {len(held)} keys, "
            f"{len(found)} unnoticed; {monotonic() - start:.0f} s"
        )

    start = monotonic()
    with_tests([TESTS], work, examples=5 if fast else 20)
    print(*sorted(found), sep="\n")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--fast", action="store_true", help="a part that is always the same")
    parser.add_argument("--keys", action="store_true", help="faults planted for the keys")
    parser.add_argument("--list", action="store_true", help="show the mutants only")
    parser.add_argument("--tests", nargs="+", type=Path, help="judge by these test files instead")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds for a mutant")
    args = parser.parse_args()
    files = [path.resolve() for path in args.files] or TARGETS
    for path in files:
        if not path.is_file():
            parser.error(f"there is no file {path}")
    if args.list:
        print(*(mutant for path in files for mutant in chosen(path, args.fast)), sep="\n")
        return 0
    if args.keys:
        return int(bool(gaps(args.fast)))
    given = [path.resolve() for path in args.tests or ()]
    judges = {path: given or tests_of(path) for path in files}
    return int(bool(survivors(judges, args.fast, args.patience)))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing is proved")
