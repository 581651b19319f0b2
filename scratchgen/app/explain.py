"""The catalogue of equations on the command line: one entry, all of them, or a search."""

import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from scratchgen.testing.equations import STATES, Equation, catalogue, families, find

SEARCHED = ["key", "statement", "printed", "wrong", "why"]
LABEL, KEY, STATE = 10, 10, 15  # widths of columns


def explain(key: str | None, words: Sequence[str] = ()) -> dict | list[dict]:
    """The entry of a key, or, without one, all entries that hold every word.

    Raises:
        ValueError: there is no such key, no entry holds the words, or both are given.
    """
    if key is not None and words:
        raise ValueError("give a KEY or --search WORDS, not both")
    if key is not None:
        return _entry(find(key))
    wanted = " ".join(words).casefold().split()
    found = [_entry(e) for e in catalogue().values() if all(word in _text(e) for word in wanted)]
    if not found:
        raise ValueError(f"no entry of the catalogue holds {' and '.join(wanted)}")
    return found


def _entry(equation: Equation) -> dict:
    first = {"key": equation.key, "kind": equation.kind, "state": equation.state}
    return first | asdict(equation)


def _text(equation: Equation) -> str:
    texts = [getattr(equation, name) for name in SEARCHED]
    return "\n".join([*texts, *equation.code]).casefold()


def print_explanation(found: dict | list[dict]) -> None:
    """The same for people."""
    if isinstance(found, dict):
        _print_entry(find(found["key"]))
    else:
        _print_list([find(entry["key"]) for entry in found])


def _print_entry(equation: Equation) -> None:
    print(f"{equation.key}  {families()[equation.family]}  ({equation.kind}, {equation.state})\n")
    if equation.kind == "erratum":
        _print_wrapped("correct", equation.statement)
        _print_wrapped("wrong", equation.wrong)
        _print_wrapped("why", equation.why)
    else:
        _print_wrapped("", equation.statement, indent=2)
        print()
    _print_wrapped("concerns", *(f"{k}: {find(k).statement}" for k in equation.concerns))
    _print_wrapped("printed", *re.split(r"(?<=\)); ", equation.printed))
    _print_wrapped("code", *(equation.code or ["none"]))
    _print_wrapped("tests", *(equation.tests or ["none"]))
    for key in equation.errata:
        erratum = find(key)
        _print_wrapped(key, f"printed: {erratum.wrong}", erratum.why)
    for trap in catalogue().values():
        if trap.kind == "trap" and equation.key in trap.concerns:
            _print_wrapped(trap.key, trap.statement)


def _print_list(equations: list[Equation]) -> None:
    family = None
    for equation in equations:
        if equation.family != family:
            family = equation.family
            print(f"{family}: {families()[family]}")
        label = f"  {equation.key:<{KEY}}{equation.state:<{STATE}}"
        _print_wrapped(label, equation.statement, indent=len(label))
    states = Counter(equation.state for equation in equations)
    counts = ", ".join(f"{state} {states[state]}" for state in STATES)
    print(f"{len(equations)} {'key' if len(equations) == 1 else 'keys'}: {counts}")


def _print_wrapped(label: str, *texts: str, indent: int = LABEL) -> None:
    """Each text from column `indent` on, what runs over two columns further in."""
    width = min(max(shutil.get_terminal_size().columns, 80), 100)
    wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    wrapper.subsequent_indent = " " * (indent + 2)
    for text in texts:
        wrapper.initial_indent = f"{label:<{indent}}"
        print(wrapper.fill(text))
        label = ""
