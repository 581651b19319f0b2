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
        assert (equation.kind == "erratum") == key.startswith("ERR-")
        for erratum in filter(
            None, equation.erratum.split(", ") if equation.kind != "erratum" else []
        ):
            assert catalogue()[erratum].kind == "erratum"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.stem)
def test_every_source_line_names_a_key_or_a_reference(path):
    known = set(catalogue()) | set(references())
    assert named(path.read_text("utf-8")) <= known


def test_every_key_is_held_by_a_test_and_every_mark_is_a_key():
    marked = {
        key for path in TESTS.rglob("test_*.py") for key in MARK.findall(path.read_text("utf-8"))
    }
    assert marked == set(catalogue())


def test_every_reference_is_used():
    used = set().union(*(named(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")))
    assert set(references()) <= used
