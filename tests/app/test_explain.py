"""app/explain.py: the catalogue on the command line."""

import json
import subprocess
import sys
from collections import Counter

import pytest

from scratchgen.app.cli import main
from scratchgen.testing.equations import STATES, catalogue, families


def said(capsys, *arguments) -> str:
    assert main(["explain", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments) -> str:
    assert main(["explain", *arguments]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    (complaint,) = out.err.splitlines()
    return complaint


def flat(text: str) -> str:
    """Without the line breaks and indents of wrapping."""
    return " ".join(text.split())


@pytest.mark.parametrize("key", catalogue())
def test_every_entry_is_said_whole(capsys, key):
    equation, text = catalogue()[key], flat(said(capsys, key))
    for part in (equation.statement, equation.wrong, equation.why, equation.state, equation.kind):
        assert flat(part) in text
    for place in (*equation.code, *equation.tests):
        assert place in text
    for source in equation.printed.split("; "):
        assert source in text
    for concerned in equation.concerns:
        assert f"{concerned}: {catalogue()[concerned].statement}" in text
    for erratum in equation.errata:
        assert f"{erratum} printed: {catalogue()[erratum].wrong}" in text
        assert catalogue()[erratum].why in text


def test_a_trap_stands_with_what_it_concerns(capsys):
    assert flat(f"TRAP-1 {catalogue()['TRAP-1'].statement}") in flat(said(capsys, "VDM-8"))


def test_keys_may_be_spelled_otherwise(capsys):
    assert said(capsys, "ddpm-06") == said(capsys, "DDPM6") == said(capsys, "DDPM-6")


def test_the_list_has_every_key_and_counts_them_by_state(capsys):
    *lines, last = said(capsys).splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    assert heads == [f"{family}: {about}" for family, about in families().items()]
    states = {}
    for line in lines:
        if line.startswith("  ") and line[2] != " ":
            key, rest = line.split(maxsplit=1)
            states[key] = next(state for state in STATES if rest.startswith(state))
    assert states == {key: equation.state for key, equation in catalogue().items()}
    counts = Counter(states.values())
    assert last == f"{len(states)} keys: " + ", ".join(f"{s} {counts[s]}" for s in STATES)


@pytest.mark.parametrize(("columns", "widest"), [("20", 80), ("90", 90), ("300", 100)])
def test_lines_fit_the_terminal(capsys, monkeypatch, columns, widest):
    monkeypatch.setenv("COLUMNS", columns)
    shown = said(capsys) + "".join(said(capsys, key) for key in ("DDPM-8", "ERR-17", "TRAP-8"))
    breakable = [line for line in shown.splitlines() if " " in line.strip()]
    assert max(len(line) for line in breakable) <= widest


def test_search_finds_all_words_in_any_case(capsys):
    found = json.loads(said(capsys, "--search", "POSTERIOR", "--json"))
    assert {"DDPM-6", "VAE-10", "ERR-25"} <= {entry["key"] for entry in found}
    fields = ("key", "statement", "printed", "wrong", "why")
    for entry in found:
        texts = [*(entry[field] for field in fields), *entry["code"]]
        assert "posterior" in "\n".join(texts).casefold()
    (penalty,) = json.loads(said(capsys, "--search", "gradient_penalty", "--json"))
    assert penalty["key"] == "GAN-12", "the names of code are searched too"
    both = json.loads(said(capsys, "--search", "posterior", "prior", "--json"))
    assert {entry["key"] for entry in both} < {entry["key"] for entry in found}
    assert said(capsys, "--search", "posterior prior") == said(
        capsys, "--search", "prior", "posterior"
    )
    assert said(capsys, "--search", "ddpm-18").splitlines()[-1].startswith("1 key: ")


def test_programs_get_objects(capsys):
    entries = json.loads(said(capsys, "--json"))
    assert [entry["key"] for entry in entries] == list(catalogue())
    for entry in entries:
        equation = catalogue()[entry["key"]]
        assert (entry["kind"], entry["state"]) == (equation.kind, equation.state)
        assert (entry["statement"], entry["printed"]) == (equation.statement, equation.printed)
        for name in ("errata", "concerns", "code", "tests"):
            assert entry[name] == list(getattr(equation, name))
        assert json.loads(said(capsys, entry["key"], "--json")) == entry


def test_what_is_not_there_is_one_sentence(capsys):
    assert "'DDPM-19'; the nearest are DDPM-" in refused(capsys, "DDPM-19")
    assert "its families are ELBO, VAE" in refused(capsys, "what?")
    assert "no entry of the catalogue holds xyzzy" in refused(capsys, "--search", "xyzzy", "the")
    assert "not both" in refused(capsys, "VAE-1", "--search", "prior")


def test_no_test_tools_are_needed():
    code = """
import sys
from scratchgen.app.cli import main
assert main(["explain", "DDPM-6"]) == 0
assert not {"pytest", "hypothesis", "autograd", "scipy", "matplotlib"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m scratchgen explain | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ELBO")
    assert done.stderr == ""
