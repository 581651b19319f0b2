"""Collect the tests once; then run those that matter against each mutant, in forked children."""

import gc
import json
import os
import resource
import select
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import monotonic

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import HealthCheck, Phase, settings
from hypothesis.configuration import set_hypothesis_home_dir

from scratchgen.core import twins

from .operators import Mutant
from .swap import ROOT, DoesNotImport, install

WORKERS = 2
MEMORY = 8 << 30
PATIENCE = 20.0


def with_tests(
    paths: Iterable[Path], work: Callable[[list[pytest.Item]], None], examples: int = 20
) -> None:
    """Collect the tests of some files in this process and hand them to `work`.

    Each of hypothesis' laws is tried on a few examples, always the same.

    Raises:
        RuntimeError: they cannot be collected.
        KeyboardInterrupt: it came while they were collected or run.
    """
    settings.register_profile(
        "faults",
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=examples,
        phases=[Phase.explicit, Phase.generate],  # to find one is enough, nothing need shrink
        suppress_health_check=[HealthCheck.too_slow],
    )
    os.environ["HYPOTHESIS_PROFILE"] = "faults"  # which tests/conftest.py loads
    sys.dont_write_bytecode = True
    done, failed = [], []

    class Plugin:
        def pytest_runtestloop(self, session):
            session.config.pluginmanager.unregister(name="terminalreporter")
            done.append(session)
            gc.freeze()  # so that collecting garbage in a child copies no memory
            try:
                with twins.disabled():  # the faults are planted in the readable functions
                    work(session.items)
            except BaseException as error:  # an interrupt too: pytest would swallow it
                failed.append(error)
            return True

    with tempfile.TemporaryDirectory() as place:
        set_hypothesis_home_dir(place)
        quiet = ["-p", "no:cacheprovider", "-s", "-qq", "--no-header", "--no-summary", "-m", ""]
        quiet += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        where = ["-c", str(ROOT / "setup.cfg"), "--rootdir", str(ROOT), *map(str, paths)]
        code = pytest.main([*quiet, *where], plugins=[Plugin()])
    if failed:
        raise failed[0]
    if code == pytest.ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if not done:
        raise RuntimeError(f"the tests of {', '.join(map(str, paths))} cannot be collected")


@dataclass(frozen=True)
class Baseline:
    """What one test does on the right code.

    Attributes:
        seconds: how long it takes.
        calls: (file, function) of everything in the files under test that it runs; None if that
            would take too long to find out.
    """

    seconds: float
    calls: frozenset[tuple[str, str]] | None

    def reaches(self, mutant: Mutant) -> bool:
        """Whether it may run what the mutant changes."""
        if self.calls is None:
            return True
        here = {name for path, name in self.calls if path == str(mutant.path)}
        return mutant.scope in here if mutant.in_function else bool(here)


def baselines(
    items: list[pytest.Item], files: Iterable[Path], most: float = 600.0
) -> dict[pytest.Item, Baseline]:
    """Every test on the right code, cheapest first, with what it reaches in some files.

    A test that takes more than `most` seconds comes last and is not waited for.

    Raises:
        RuntimeError: one fails.
    """
    watched = set(map(str, files))

    def measure(item):
        calls: set = set()

        def note(frame, event, _):  # no trace of its lines: a call is all that is asked
            calls.add(frame.f_code)

        sys.settrace(note)
        start = monotonic()
        passed = passes(item)
        seconds = monotonic() - start
        sys.settrace(None)
        names = {(code.co_filename, code.co_qualname.replace(".<locals>", "")) for code in calls}
        return passed, seconds, [name for name in names if name[0] in watched]

    found = {}
    for item, result in in_children((item, measure, item, most) for item in items):
        if result == "timeout":
            found[item] = Baseline(most, None)
        elif result == "crash" or not result[0]:
            raise RuntimeError(f"{item.nodeid} fails on the right code")
        else:
            found[item] = Baseline(result[1], frozenset(map(tuple, result[2])))
    return {item: found[item] for item in sorted(items, key=lambda item: found[item].seconds)}


def reaching(mutant: Mutant, known: dict[pytest.Item, Baseline]) -> list[pytest.Item]:
    """The tests that run what the mutant changes, cheapest first."""
    return [item for item, base in known.items() if base.reaches(mutant)]


def judge(
    mutants: list[Mutant], known: dict[pytest.Item, Baseline], patience: float = PATIENCE
) -> Iterator[tuple]:
    """(mutant, what killed it or None), as the verdicts come in."""

    def verdict(job):
        mutant, items = job
        try:
            install(mutant)
        except DoesNotImport as error:
            return f"does not import: {error}"
        return next((item.nodeid for item in items if not passes(item)), None)

    jobs = []
    for mutant in mutants:
        items = reaching(mutant, known)
        jobs.append((mutant, verdict, (mutant, items), limit(items, known, patience)))
    yield from in_children(jobs)


def limit(items, known: dict[pytest.Item, Baseline], patience: float = PATIENCE) -> float:
    """Seconds after which the tests of a mutant are taken to hang."""
    return patience + 5.0 * sum(known[item].seconds for item in items)


def passes(item: pytest.Item) -> bool:
    """Run one test, with its fixtures, from start to end."""
    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=None))


def in_children(tasks: Iterable[tuple]) -> Iterator[tuple]:
    """Run (tag, function, argument, limit) each in a fork of this process, a few at a time.

    Yields:
        (tag, what the function returned), or (tag, "timeout") after `limit` seconds, or
        (tag, "crash").

    Raises:
        RuntimeError: the function raised.
    """
    waiting, running = iter(tasks), {}
    try:
        while True:
            for tag, function, argument, seconds in islice(waiting, WORKERS - len(running)):
                pid, pipe = _fork(function, argument)
                running[pipe] = (tag, pid, monotonic() + seconds)
            if not running:
                return
            patience = min(end for *_, end in running.values()) - monotonic()
            ready, _, _ = select.select(list(running), [], [], max(patience, 0.0))
            late = [pipe for pipe, (*_, end) in running.items() if end < monotonic()]
            for pipe in dict.fromkeys([*ready, *late]):
                tag, pid, _ = running.pop(pipe)
                yield tag, _harvest(pid, pipe, pipe in ready)
    finally:
        for _, pid, _ in running.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _fork(function, argument) -> tuple[int, int]:
    """Start a child that computes function(argument); its process and the pipe to read from."""
    source, sink = os.pipe()
    pid = os.fork()
    if pid:
        os.close(sink)
        return pid, source
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        answer = {"value": function(argument)}
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    with os.fdopen(sink, "w") as stream:
        json.dump(answer, stream)
    os._exit(0)


def _harvest(pid: int, pipe: int, ready: bool):
    """The answer of a child that is ready or late; it is gone afterwards."""
    if not ready:
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(pipe) as stream:
        text = stream.read() if ready else ""
    os.waitpid(pid, 0)
    if not text:
        return "crash" if ready else "timeout"
    answer = json.loads(text)
    if "error" in answer:
        raise RuntimeError(f"a child failed: {answer['error']}")
    return answer["value"]
