"""The README's Python runs as it stands there."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scratchgen.app.cli import parser
from scratchgen.testing.monte_carlo import MonteCarloFailure

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^\| `scratchgen (.*?)` \|", README.read_text("utf-8"), re.MULTILINE)
PROGRAMS = [block for block in BLOCKS if "def test_" not in block]
TESTS = [block for block in BLOCKS if "def test_" in block]


def run(*command, folder):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",
        },  # two on a busy machine wait for each other
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("which", "low", "high", "unit"),
    [(0, 80.0, 160.0, "nats per digit"), (1, 0.05, 0.35, "of the noise's variance is left")],
    ids=["VAE", "U-Net"],
)
def test_a_program_prints_its_loss(which, low, high, unit, tmp_path):
    code, said = run("-c", PROGRAMS[which], folder=tmp_path)
    assert code == 0, said
    number, rest = said.strip().split(maxsplit=1)
    assert low < float(number) < high
    assert rest == unit


def test_a_formula_of_ones_own_passes(tmp_path):
    (text,) = TESTS
    (tmp_path / "test_mine.py").write_text(text, "utf-8")
    code, said = run("-m", "pytest", "-q", "-p", "no:cacheprovider", folder=tmp_path)
    assert code == 0, said
    assert "1 passed" in said


def test_a_wrong_formula_of_ones_own_fails():
    (text,) = TESTS
    wrong = text.replace("kl = b - 1.0 - np.log(b)", "kl = b - 1.0 + np.log(b)")
    assert wrong != text
    written = {}
    exec(wrong, written)
    law = written["test_kl_of_two_exponentials"].hypothesis.inner_test
    with pytest.raises(MonteCarloFailure):
        law(seed=0, b=2.0)


def test_the_formula_takes_fifteen_lines():
    (text,) = TESTS
    assert sum(bool(line.strip()) for line in text.splitlines()) <= 15


def doors():
    """Command -> every option that it, or a command below it, takes."""

    def below(door):
        found = set(door._option_string_actions)
        for action in door._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= set().union(*map(below, action.choices.values()))
        return found

    (top,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {name: below(door) for name, door in top.choices.items()}


def test_the_table_of_commands_has_every_door_and_no_option_that_is_not_there():
    known = doors()
    assert {command.split()[0] for command in COMMANDS} == set(known)
    for command in COMMANDS:
        name = command.split()[0]
        assert set(re.findall(r"--[a-z-]+", command)) <= known[name], command
