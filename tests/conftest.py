"""Hypothesis profiles, forbidden global randomness, and the summary at the end of a session."""

import os
from collections import Counter
from decimal import getcontext

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.statistics import collector

from scratchgen.testing import monte_carlo

from support import NAMES

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

_examples: Counter = Counter()


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
    """Count valid and discarded hypothesis examples, beside hypothesis' own statistics."""
    before = collector.value

    def count(stats):
        for phase in stats.values():
            if isinstance(phase, dict):
                for case in phase.get("test-cases", ()):
                    _examples[case["status"]] += 1
        if before is not None:
            before(stats)

    with collector.with_value(count):
        yield


def _problems() -> list[str]:
    found = []
    if _discarded() > DISCARD_LIMIT:
        found.append(f"more than {DISCARD_LIMIT:.0%} of the hypothesis examples were discarded")
    if _alarms() > ALARM_BUDGET:
        found.append(f"the false-alarm budget exceeds {ALARM_BUDGET:g}")
    return found


def _discarded() -> float:
    return _examples["invalid"] / max(sum(_examples.values()), 1)


def _alarms() -> float:
    return sum(check.alpha for check in monte_carlo.checks)


def pytest_sessionfinish(session, exitstatus):
    """A session that proves too little fails."""
    if exitstatus == 0 and _problems():
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    """Backends that ran, hypothesis examples, Monte Carlo checks."""
    say = terminalreporter.write_line
    missing = "" if any(name.startswith("cupy") for name in NAMES) else " (no CuPy device here)"
    say(f"backends: {', '.join(NAMES)}{missing}")
    say(f"hypothesis: {sum(_examples.values())} examples, {_discarded():.1%} discarded")
    checks = monte_carlo.checks
    worst = max((check.z for check in checks), default=0.0)
    say(
        f"monte carlo: {len(checks)} checks passed, largest |z| {worst:.1f}, "
        f"false-alarm budget {_alarms():.2g}"
    )
    for problem in _problems():
        say(f"FAILED: {problem}", red=True)
