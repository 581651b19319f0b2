"""The mutation engine: it plants what it says, everyone sees it, and it reports weak tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mutation.operators import mutants
from mutation.swap import ROOT, install

TOY = '''
"""A module to plant faults in: 1 + 1."""

from functools import cache

RATE = 0.5


def line(x, slope: float = 2.0, *, offset: float = 0.0):
    """slope * x + offset, with 3 * 3 in its docstring."""
    if slope < 0.0:
        raise ValueError(f"need {1 + 1} but got -1")
    return slope * x + offset


def squared(x):
    y = x * x

    def pullback(dy):
        return 2.0 * x * dy

    return y, pullback


@cache
def half():
    return RATE


class Table:
    """Entries."""

    first = 1

    def __init__(self, entries):
        self.entries = entries

    @property
    def head(self):
        return self.entries[0]

    def before(self, t):
        return self.entries[t - 1]
'''

STRONG = """
import toy
from toy import RATE, Table, half, line, squared

def test_line():
    assert line(3.0) == 6.0 and line(3.0, 0.0) == 0.0
    assert line(3.0, 2.5, offset=1.0) == 8.5
    try:
        line(1.0, -0.01)
    except ValueError:
        return
    raise AssertionError

def test_squared():
    y, pullback = squared(3.0)
    assert (y, pullback(5.0)) == (9.0, 30.0)

def test_half():
    assert half() == RATE == toy.RATE == 0.5

def test_table():
    table = Table([1, 2, 3, 5])
    assert (table.head, table.before(3), Table.first) == (1, 3, 1)
"""

WEAK = STRONG.replace("(y, pullback(5.0)) == (9.0, 30.0)", "y == 9.0")


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy module's file; the module itself is imported."""
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop("toy", None)


def pairs(path: Path, scope: str) -> set[tuple[str, str]]:
    return {(m.before, m.after) for m in mutants(path) if m.scope == scope}


def test_every_change_of_a_small_function(toy):
    returned = "return slope * x + offset"
    head = "def line(x, slope: float=2.0, *, offset: float=0.0):"
    guard = "if slope < 0.0:"
    assert pairs(toy, "line") == {
        (head, "def line(x, slope: float=3.0, *, offset: float=0.0):"),
        (head, "def line(x, slope: float=2.04, *, offset: float=0.0):"),
        (head, "def line(x, slope: float=2.0, *, offset: float=1.0):"),
        (guard, "if slope <= 0.0:"),
        (guard, "if slope >= 0.0:"),
        (guard, "if slope < 1.0:"),
        (returned, "return -(slope * x + offset)"),
        (returned, "return 1.02 * (slope * x + offset)"),
        (returned, "return slope * x - offset"),
        (returned, "return slope * x"),
        (returned, "return offset"),
        (returned, "return slope / x + offset"),
        (returned, "return slope + offset"),
        (returned, "return x + offset"),
    }


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        ("y = x ** n", "y = x ** (n + 1)"),
        ("y = a @ b", "y = b @ a"),
        ("y = -x", "y = x"),
        ("y = a == b", "y = a != b"),
        ("y = not a", "y = a"),
        ("y = a and b", "y = a or b"),
        ("y = True", "y = False"),
        ("y = 1 if a else 2", "y = 1 if not a else 2"),
        ("y = f(a, b)", "y = f(b, a)"),
        ("y = f(a, axis=b)", "y = f(a)"),
        ("y = xp.exp(x)", "y = xp.expm1(x)"),
        ("y = xp.mean(x)", "y = xp.sum(x)"),
        ("y = min(a, b)", "y = max(a, b)"),
        ("y = x[t]", "y = x[t - 1]"),
        ("y = x[1:, :t]", "y = x[2:, :t]"),
        ("y = x[1:, :t]", "y = x[1:, :t + 1]"),
        ("y = x[..., -1]", "y = x[..., -2]"),
        ("y -= x", "y += x"),
        ("y *= x", "y /= x"),
        ("y += x", "pass"),
        ("f(x)", "pass"),
        ("y[...] = x", "pass"),
    ],
)
def test_one_change_of_each_kind(tmp_path, code, changed):
    path = tmp_path / "one.py"
    path.write_text(f"def f():\n    {code}\n")
    assert (code, changed) in pairs(path, "f")


def test_every_mutant_compiles_and_says_where_it_is(toy):
    lines = TOY.splitlines()
    for mutant in mutants(toy):
        mutant.code()
        assert mutant.before.split()[0] in lines[mutant.line - 1]


def test_everyone_who_imported_a_function_sees_the_mutant(toy):
    import toy as module

    keep, half, table = module.squared, module.half, module.Table([1, 2, 3])
    assert (keep(3.0)[1](1.0), half(), table.head) == (6.0, 0.5, 1)

    def plant(scope, after):
        install(next(m for m in mutants(toy) if (m.scope, m.after) == (scope, after)))

    plant("squared.pullback", "return 2.04 * x * dy")
    assert keep(3.0)[1](1.0) == 2.04 * 3.0
    plant("Table.head", "return self.entries[1]")
    assert table.head == 2
    plant("", "RATE = 0.51")
    assert (module.RATE, half()) == (0.51, 0.51)
    plant("Table", "first = 2")
    assert table.first == 2
    plant("line", "def line(x, slope: float=3.0, *, offset: float=0.0):")
    assert module.line(1.0) == 3.0


def run(toy, tests: str) -> subprocess.CompletedProcess:
    path = toy.with_name("test_toy.py")
    path.write_text(tests)
    return subprocess.run(
        [sys.executable, "-m", "tests.mutation", str(toy), "--patience", "2", "--tests", str(path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(toy.parent)},
        capture_output=True,
        text=True,
    )


def test_strong_tests_leave_no_survivor(toy):
    done = run(toy, STRONG)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"toy.py: {len(mutants(toy))} killed" in done.stdout


def test_weak_tests_leave_the_survivors_that_they_cannot_see(toy):
    """Without a look at the pullback its mutants survive, and nothing else does."""
    done = run(toy, WEAK)
    assert done.returncode == 1
    reported = [line for line in done.stdout.splitlines() if "survived:" in line]
    blind = [m for m in mutants(toy) if m.scope == "squared.pullback"]
    assert sorted(reported) == sorted(f"  survived: {m}" for m in blind)


def test_tests_that_fail_on_the_right_code_judge_nothing(toy):
    done = run(toy, STRONG.replace("8.5", "8.6"))
    assert done.returncode == 1
    assert "fails on the right code" in done.stderr


def test_a_mutant_that_hangs_is_stopped(toy):
    """Its tests get a limited time; then it counts as noticed, but is named."""
    toy.write_text("def count():\n    n = 0\n    while n < 3:\n        n += 1\n    return n\n")
    done = run(toy, "import toy\n\ndef test_count():\n    assert toy.count() == 3\n")
    assert "timeout: toy.py:4 count: n += 1  ->  pass" in done.stdout
