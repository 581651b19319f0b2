"""tests/conftest.py: what a session says at its end, and when it fails for it."""

import os
import subprocess
import sys
from pathlib import Path

from scratchgen.testing.equations import catalogue

HERE = Path(__file__).parent
COLUMNS = "family keys tests examples discarded checks largest |z| false-alarm budget"

SESSION = """
import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from scratchgen.testing import monte_carlo
from scratchgen.testing.monte_carlo import MonteCarloFailure, assert_mean

holds = pytest.mark.equation

def confirmed(n, look):
    return np.resize([-1.0, 1.0], n)

@holds("VAE-5")
@settings(max_examples=10)
@given(st.booleans())
def test_examples(x):
    assert_mean(confirmed, 0.0, 0.2, alpha=ALPHA)

@holds("VAE-4")
@holds("DDPM-6")
@pytest.mark.parametrize("i", range(3))
def test_two_families(i):
    assert_mean(confirmed, 0.01, 0.2, alpha=ALPHA)

def test_without_a_key():
    with pytest.raises(MonteCarloFailure):
        assert_mean(confirmed, 1.0, 0.2)

@holds("GAN-1")
def test_skipped():
    pytest.skip("not now")

def test_errs_on_purpose(monkeypatch):
    monkeypatch.setattr(monte_carlo, "checks", [])
    assert_mean(confirmed, 0.0, 0.2, alpha=0.5)

@settings(max_examples=100)
@given(st.integers(0, 999))
def test_discards(k):
    assume(k >= DISCARDED)

def test_last():
    assert not FAILS
"""


def session(folder, *options, alpha=1e-9, discarded=0, fails=False):
    """(exit code, lines) of pytest on that file, under this folder's conftest."""
    head = f"ALPHA, DISCARDED, FAILS = {alpha}, {discarded}, {fails}\n"
    (folder / "test_session.py").write_text(head + SESSION, "utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider"]
    command += ["-c", str(HERE.parent / "setup.cfg"), str(folder / "test_session.py"), *options]
    environment = {**os.environ, "PYTHONPATH": str(HERE), "HYPOTHESIS_PROFILE": "quick"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    assert not done.stderr
    return done.returncode, [" ".join(line.split()) for line in done.stdout.splitlines()]


def known(family):
    return sum(key.startswith(f"{family}-") for key in catalogue())


def test_the_table_counts_by_family(tmp_path):
    code, lines = session(tmp_path, "-q")
    assert code == 0
    table = lines[lines.index(COLUMNS) :]
    z = 0.01 * 4096**0.5  # 4096 samples of ±1 are 0.01 from the claim
    assert table[1] == f"VAE 2/{known('VAE')} 4 2 0.0% 5 {z:.1f} 5e-09"
    assert table[2] == f"DDPM 1/{known('DDPM')} 3 0 0.0% 3 {z:.1f} 3e-09"
    assert table[3] == "no key 4 100 0.0% 0 0.0 0"
    assert table[4] == f"total 3/{len(catalogue())} 8 102 0.0% 5 {z:.1f} 5e-09"
    assert "once in the total" in table[5]


def test_a_session_that_proves_too_little_fails(tmp_path):
    """Every test passes, and yet the exit code is 1."""
    code, lines = session(tmp_path, alpha=3e-5, discarded=200)
    assert code == 1
    assert "FAILED: the false-alarm budget is 0.00015, the limit is 0.0001" in lines
    assert any("of the examples were discarded, the limit is 5%" in line for line in lines)
    assert any("8 passed, 1 skipped" in line for line in lines)


def test_parts_of_a_session_and_broken_ones_have_a_table_too(tmp_path):
    code, lines = session(tmp_path, "-x", "-q", fails=True)
    assert code == 1
    assert any(line.startswith("total 3/") for line in lines)
    code, lines = session(tmp_path, "-q", "-k", "two_families")
    assert code == 0
    assert [line.split()[0] for line in lines[lines.index(COLUMNS) + 1 :]][:4] == [
        "VAE",
        "DDPM",
        "no",
        "total",
    ]
