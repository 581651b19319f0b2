"""testing/equations.py: the catalogue is well-formed, and its keys are what code and tests name."""

import re
from pathlib import Path

import pytest

import scratchgen
from scratchgen.testing.equations import KINDS, catalogue, references

PACKAGE = Path(scratchgen.__file__).parent
TESTS = Path(__file__).parent.parent
MARK = re.compile(r'mark\.equation\("([^"]+)"\)')
SOURCE = re.compile(r"^ *Source: (.+)$", re.MULTILINE)


def named(text: str) -> set[str]:
    return {name.strip(" []") for line in SOURCE.findall(text) for name in line.split(",")}


def test_entries_are_complete():
    for key, equation in catalogue().items():
        assert equation.kind in KINDS
        assert equation.statement, key
        assert equation.printed, key
        erratum = equation.kind == "erratum"
        assert erratum == key.startswith("ERR-") == bool(equation.wrong) == bool(equation.why)
        assert bool(equation.concerns) == (equation.kind in ("erratum", "trap")), key


def test_errata_and_what_they_concern_name_each_other():
    concerned = {(key, k) for key, e in catalogue().items() for k in e.concerns}
    errata = {(k, key) for key, e in catalogue().items() for k in e.errata}
    assert errata == {pair for pair in concerned if catalogue()[pair[0]].kind == "erratum"}
    assert {key for pair in concerned for key in pair} <= set(catalogue())


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_every_source_line_names_a_key_or_a_reference(path):
    known = set(catalogue()) | set(references())
    assert named(path.read_text("utf-8")) <= known


def test_every_mark_is_a_key():
    marked = {
        key for path in TESTS.rglob("test_*.py") for key in MARK.findall(path.read_text("utf-8"))
    }
    assert marked <= set(catalogue())


def test_every_reference_is_used():
    used = set().union(*(named(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")))
    assert set(references()) <= used
