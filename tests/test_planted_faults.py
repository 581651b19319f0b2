"""Coverage that cannot be faked: a fault in a key's code is noticed by a test marked with the key.

The faults come from the syntax trees of the functions whose `Source:` lines name the key (see
tests/mutation); the fault of an erratum or a trap is the wrong form itself.
"""

import os
import subprocess
import sys

import pytest

from mutation.swap import ROOT


def unnoticed(*options: str) -> str:
    """What `python -m tests.mutation --keys` reports; "" if every fault is noticed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutation", "--keys", *options],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_a_fault_of_each_kind_is_noticed_for_every_key():
    assert unnoticed("--fast") == ""


@pytest.mark.slow
def test_every_fault_is_noticed_for_every_key():
    assert unnoticed() == ""
