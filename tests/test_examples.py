"""Every example runs, is short, and calls tested losses instead of restating them."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
# make_digits.py needs scikit-learn and rewrites the data set, so it is not run here
SCRIPTS = sorted(p for p in EXAMPLES.glob("*.py") if p.stem != "make_digits")
UNITS = {"autoencoder_pca": "squared error", "linear_vae": "nats", "vae_digits": "bits/dim"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_smoke(script, tmp_path):
    command = [sys.executable, str(script), "--smoke"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert UNITS.get(script.stem, "ms a step") in done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_examples_are_short_and_listed(script):
    lines = script.read_text("utf-8").splitlines()
    assert len(lines) <= 100
    assert f"`{script.name}`" in (EXAMPLES / "README.md").read_text("utf-8")
