"""Hypothesis profiles, forbidden global randomness, and the summary at the end of a session."""

import os
from collections import Counter
from dataclasses import dataclass
from decimal import getcontext

import matrix
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.statistics import collector

from scratchgen.core.optional import is_there
from scratchgen.testing import monte_carlo
from scratchgen.testing.equations import catalogue

from support import NAMES

# the twins' own tests go with them; all others must pass without
collect_ignore = [] if is_there("scratchgen.fast") else ["fast"]
DISCARD_LIMIT = 0.05
ALARM_BUDGET = 1e-4

slow_data = [HealthCheck.too_slow]
settings.register_profile(
    "quick",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    max_examples=50,
    suppress_health_check=slow_data,
)
settings.register_profile(
    "deep", deadline=None, print_blob=True, max_examples=2000, suppress_health_check=slow_data
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@dataclass(frozen=True)
class Ran:
    """What one test that ran did: the keys it holds, hypothesis' examples, its passed checks."""

    keys: frozenset[str]
    examples: Counter
    checks: list[monte_carlo.Check]


_ran: list[Ran] = []
# tests whose checks err on purpose replace monte_carlo.checks, and so stay out of the budget
_registry = monte_carlo.checks


def pytest_configure(config):
    """Global random state makes a test depend on its neighbours: it is switched off."""
    getcontext().prec = 400  # exact oracles must tell 1 - e^-500 from 1

    def forbidden(*args, **kwargs):
        raise RuntimeError("numpy's global random state is off in tests; draw from a Stream")

    needed = {"seed", "get_state", "set_state"}  # by hypothesis, which guards that state
    for name in dir(np.random.RandomState):
        if not name.startswith("_") and name not in needed and hasattr(np.random, name):
            setattr(np.random, name, forbidden)


@pytest.hookimpl(hookwrapper=True, trylast=True)
def pytest_runtest_call(item):
    """Note the test's keys, checks and examples, the last beside hypothesis' own statistics."""
    examples, first, before = Counter(), len(_registry), collector.value

    def count(stats):
        for phase in stats.values():
            if isinstance(phase, dict):
                for case in phase.get("test-cases", ()):
                    examples[case["status"]] += 1
        if before is not None:
            before(stats)

    with collector.with_value(count):
        outcome = yield
    if outcome.excinfo is None or not issubclass(outcome.excinfo[0], pytest.skip.Exception):
        keys = frozenset(mark.args[0] for mark in item.iter_markers("equation"))
        _ran.append(Ran(keys, examples, _registry[first:]))


def _discarded(tests: list[Ran]) -> float:
    examples = sum((test.examples for test in tests), Counter())
    return examples["invalid"] / max(examples.total(), 1)


def _alarms(checks: list[monte_carlo.Check]) -> float:
    return sum(check.alpha for check in checks)


def _problems() -> list[str]:
    found, share, budget = [], _discarded(_ran), _alarms(_registry)
    if share > DISCARD_LIMIT:
        found.append(
            f"{share:.1%} of the examples were discarded, the limit is {DISCARD_LIMIT:.0%}"
        )
    if budget > ALARM_BUDGET:
        found.append(f"the false-alarm budget is {budget:.2g}, the limit is {ALARM_BUDGET:g}")
    return found


def pytest_sessionfinish(session, exitstatus):
    """A session that proves too little fails."""
    if exitstatus == 0 and _problems():
        session.exitstatus = 1


def _family(key: str) -> str:
    return key.rpartition("-")[0]


def _row(name: str, tests: list[Ran], keys: str) -> str:
    examples = sum(test.examples.total() for test in tests)
    checks = [check for test in tests for check in test.checks]
    worst = max((check.z for check in checks), default=0.0)
    return (
        f"{name:<12}{keys:>8}{len(tests):>7}{examples:>10}{_discarded(tests):>11.1%}"
        f"{len(checks):>8}{worst:>13.1f}{_alarms(checks):>21.2g}"
    )


def _table() -> list[str]:
    """One row for each family of keys that has a test that ran, in the catalogue's order."""
    known = Counter(map(_family, catalogue()))
    held = Counter(_family(key) for key in frozenset().union(*(test.keys for test in _ran)))
    rows = [
        _row(name, [t for t in _ran if name in map(_family, t.keys)], f"{held[name]}/{known[name]}")
        for name in known
        if held[name]
    ]
    return [
        f"{'family':<12}{'keys':>8}{'tests':>7}{'examples':>10}{'discarded':>11}{'checks':>8}"
        f"{'largest |z|':>13}{'false-alarm budget':>21}",
        *rows,
        _row("no key", [test for test in _ran if not test.keys], ""),
        _row("total", _ran, f"{held.total()}/{known.total()}"),
        "a test with keys of several families counts in each of them, and once in the total",
    ]


def pytest_terminal_summary(terminalreporter):
    """Backends that ran; per family keys, tests, hypothesis examples and Monte Carlo checks."""
    say = terminalreporter.write_line
    missing = "" if any(name.startswith("cupy") for name in NAMES) else " (no CuPy device here)"
    say(f"backends: {', '.join(NAMES)}{missing}")
    for line in [*matrix.table(), *_table()]:
        say(line)
    for problem in _problems():
        say(f"FAILED: {problem}", red=True)
