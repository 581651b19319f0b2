"""Coverage that cannot be faked: a fault in a key's code is noticed by a test marked with the key.

The faults come from the syntax trees of the functions whose `Source:` lines name the key (see
tests/mutation); the fault of an erratum or a trap is the wrong form itself.
"""

import os
import subprocess
import sys

import pytest

from mutation.swap import ROOT


@pytest.mark.slow
def test_every_fault_is_noticed_for_every_key():
    """`python -m tests.mutation --keys --fast` plants one of each kind, in a minute or two."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutation", "--keys"],
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
