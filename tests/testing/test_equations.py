"""testing/equations.py: the catalogue is well-formed, and its keys are what code and tests name."""

import ast
import json
import re
from pathlib import Path

import pytest

import scratchgen
from scratchgen.core.optional import is_there
from scratchgen.testing.equations import (
    KINDS,
    STATES,
    catalogue,
    families,
    find,
    marks,
    nearest,
    references,
    scan,
    sources,
)

PACKAGE = Path(scratchgen.__file__).parent
TESTS = Path(__file__).parent.parent
SOURCE = re.compile(r"^ *Source: (.+)$", re.MULTILINE)

MARKED = """
both = [pytest.mark.equation("VAE-1"), pytest.mark.equation("VAE-2")]
CASES = [pytest.param(1, marks=pytest.mark.equation("VAE-3")), 2]

@pytest.mark.equation("VAE-4")
@pytest.mark.equation("VAE-5")
def test_decorated(): ...

@pytest.mark.parametrize("x", CASES)
def test_parameters(x): ...

@pytest.mark.equation("VAE-6")
class TestClass:
    pytestmark = both
    def test_method(self): ...
    def helper(self): ...

def test_unmarked(): ...

@pytest.mark.equation("VAE-7")
def helper(): ...
"""

SOURCED = """
class A:
    'Source: VAE-1, [Ho 2020]'
    def b(self):
        if True:
            def c():
                'Source: VAE-2'
"""


def named(text: str) -> set[str]:
    return {name.strip(" []") for line in SOURCE.findall(text) for name in line.split(",")}


def test_entries_are_complete():
    for key, equation in catalogue().items():
        assert equation.kind in KINDS
        assert equation.state in STATES
        assert equation.statement, key
        assert equation.printed, key
        assert equation.family in families()
        erratum = equation.kind == "erratum"
        assert erratum == key.startswith("ERR-") == bool(equation.wrong) == bool(equation.why)
        assert bool(equation.concerns) == (equation.kind in ("erratum", "trap")), key
        assert "\n" not in equation.statement + equation.printed + equation.wrong + equation.why


def test_what_is_printed_is_said_of_known_sources():
    known = re.compile(r"Duan|Raina|Yao|003|004|not printed")
    assert all(known.search(equation.printed) for equation in catalogue().values())


def test_numbers_of_a_family_stand_in_order():
    order = [
        (list(families()).index(e.family), int(k.split("-")[1])) for k, e in catalogue().items()
    ]
    assert order == sorted(set(order))


def test_errata_and_what_they_concern_name_each_other():
    concerned = {(key, k) for key, e in catalogue().items() for k in e.concerns}
    errata = {(k, key) for key, e in catalogue().items() for k in e.errata}
    assert errata == {pair for pair in concerned if catalogue()[pair[0]].kind == "erratum"}
    assert {key for pair in concerned for key in pair} <= set(catalogue())


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_every_source_line_names_a_key_or_a_reference(path):
    text = path.read_text("utf-8")
    assert named(text) <= set(catalogue()) | set(references())
    assert named(text) == {name for name, _, _ in sources(ast.parse(text))}, "in docstrings only"


def test_every_mark_is_a_key():
    for path in sorted(TESTS.rglob("test_*.py")):
        marked = {key for key, _, _ in marks(ast.parse(path.read_text("utf-8")))}
        assert marked <= set(catalogue()), path


@pytest.mark.skipif(not is_there("scratchgen.fast"), reason="some are for the twins only")
def test_every_reference_is_used():
    used = set().union(*(named(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")))
    assert set(references()) <= used


def test_the_positions_are_fresh():
    stored = json.loads((PACKAGE / "testing" / "positions.json").read_text("utf-8"))
    stale = stored != scan(PACKAGE, TESTS)
    assert not stale, "run: python -m scratchgen.testing.equations"


def test_positions_reach_the_entries():
    entry = catalogue()["VAE-5"]
    place = next(p for p in entry.code if p.startswith("scratchgen/maths/distributions.py:"))
    line, name = place.partition(":")[2].split()
    text = (PACKAGE / "maths" / "distributions.py").read_text("utf-8").splitlines()
    assert text[int(line) - 1].startswith(f"def {name}(")
    assert any(p.startswith("tests/maths/test_distributions.py:") for p in entry.tests)
    erratum = catalogue()["ERR-19"]
    assert set(erratum.code) >= set(catalogue()["VAE-2"].code)


def test_states_follow_from_tests_and_testability():
    for equation in catalogue().values():
        assert (equation.state == "tested") == bool(equation.tests)
        if not equation.tests:
            assert (equation.state == "claim") == (not equation.testable)


def test_marks_are_found_wherever_pytest_finds_them():
    found: dict[str, set[str]] = {}
    for key, _, name in marks(ast.parse(MARKED)):
        found.setdefault(name, set()).add(key)
    assert found == {
        "test_decorated": {"VAE-4", "VAE-5"},
        "test_parameters": {"VAE-3"},
        "TestClass.test_method": {"VAE-1", "VAE-2", "VAE-6"},
    }
    whole = ast.parse('pytestmark = pytest.mark.equation("VAE-8")\n' + MARKED)
    assert ("VAE-8", "test_unmarked") in {(key, name) for key, _, name in marks(whole)}


def test_sources_are_found_on_methods_and_inner_functions():
    found = list(sources(ast.parse(SOURCED)))
    assert found == [("VAE-1", 2, "A"), ("Ho 2020", 2, "A"), ("VAE-2", 6, "A.b.c")]


def test_keys_are_found_in_other_spellings():
    for key in catalogue():
        family, number = key.split("-")
        for spelling in (key, key.lower(), family + number, f" {family}_0{number} "):
            assert find(spelling).key == key
        assert nearest(key)[0] == key


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"no 'DDPM-99'; the nearest are DDPM-\d+, DDPM-\d+, DDPM-"
    ):
        find("DDPM-99")
    with pytest.raises(ValueError, match="no 'something else'; its families are ELBO, VAE"):
        find("something else")
    assert len(nearest("VEA-5")) == 3
    assert "VAE-5" in nearest("VEA-5")
