"""Faults planted for the keys of the catalogue: some test marked with the key must catch each.

A key's code is the function whose `Source:` line names it, with what is nested in it; a class
lends its line to the methods that have none of their own. The fault of an erratum or a trap is the
wrong form itself. The app is left out: its experiments name what they show, and its tests train for
seconds.
"""

import ast
from collections.abc import Iterator
from functools import cache

import pytest

from scratchgen.testing.equations import catalogue, sources

from .operators import Mutant, mutants
from .runner import Baseline, in_children, limit, passes, reaching
from .swap import ROOT, DoesNotImport, install, install_printed

PLANTED = ("sign", "index", "factor", "term")
PACKAGE = ROOT / "scratchgen"


def marked(items: list[pytest.Item]) -> dict[str, set[pytest.Item]]:
    """Key -> the tests that are marked with it."""
    found: dict[str, set] = {}
    for item in items:
        if item.path.parent.name == "app" or item.path.name == "test_examples.py":
            continue
        for mark in item.iter_markers("equation"):
            found.setdefault(mark.args[0], set()).add(item)
    return found


def faults(fast: bool) -> dict[Mutant, set[str]]:
    """What is planted, with the keys that must notice; if fast, one of a kind for each key."""
    planted: dict[Mutant, set[str]] = {}
    seen = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        named = {} if path.is_relative_to(PACKAGE / "app") else _named(path)
        for mutant in mutants(path) if named else ():
            wanted = _keys(mutant.scope, named)
            if mutant.operator not in PLANTED or mutant.guard:
                continue
            if fast:
                wanted = {key for key in wanted if (key, mutant.operator) not in seen}
                seen |= {(key, mutant.operator) for key in wanted}
            if wanted:
                planted[mutant] = wanted
    return planted


def unnoticed(
    planted: dict[Mutant, set[str]],
    tests: dict[str, set[pytest.Item]],
    known: dict[pytest.Item, Baseline],
) -> Iterator[tuple[str, str]]:
    """(key, fault) of every fault that no test marked with its key catches."""

    def misses(job):
        mutant, wanted = job
        try:
            install(mutant)
        except DoesNotImport:
            return []
        fails = cache(lambda item: not passes(item))
        return [key for key, items in wanted.items() if not any(map(fails, items))]

    jobs = []
    for mutant, keys in planted.items():
        items = reaching(mutant, known)
        wanted = {key: [item for item in items if item in tests[key]] for key in sorted(keys)}
        jobs.append((mutant, misses, (mutant, wanted), limit(items, known)))
    for mutant, missed in in_children(jobs):
        if isinstance(missed, list):  # else the tests hang or crash, which is noticed
            yield from ((key, str(mutant)) for key in missed)


def unrefuted(tests: dict[str, set[pytest.Item]], known) -> Iterator[tuple[str, str]]:
    """(key, function) of every erratum whose printed form passes for the right one."""
    from errata import PRINTED

    def miss(job):
        key, items = job
        install_printed(f"scratchgen.{PRINTED[key].target}", PRINTED[key].form)
        return all(map(passes, items))

    jobs = []
    for key in PRINTED:
        items = [item for item in known if item in tests.get(key, ())]
        jobs.append((key, miss, (key, items), limit(items, known)))
    for key, missed in in_children(jobs):
        if missed is True:
            yield key, f"the printed form in the place of {PRINTED[key].target}"


def _named(path) -> dict[str, set[str]]:
    """Function or class -> the keys its `Source:` line names."""
    found: dict[str, set[str]] = {}
    for key, _, name in sources(ast.parse(path.read_text("utf-8"))):
        found.setdefault(name, set())
        if key in catalogue():
            found[name].add(key)
    return found


def _keys(scope: str, named: dict[str, set[str]]) -> set[str]:
    """The keys of the innermost function or class around a scope that names any source."""
    while scope and scope not in named:
        scope = scope.rpartition(".")[0]
    return named.get(scope, set())
