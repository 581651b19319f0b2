"""fast/processes.py: pieces of work in copies of the process."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchgen.fast.processes import shared_array, side_by_side

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot copy a process")


@settings(max_examples=10)
@given(st.integers(1, 7), st.integers(1, 4))
def test_every_piece_is_done_once_whoever_does_it(count, processes):
    done = shared_array((count, 2), "int64")

    def work(k: int) -> None:
        done[k] += (k + 1, os.getpid())

    side_by_side(work, count, processes)
    np.testing.assert_array_equal(done[:, 0], np.arange(1, count + 1))
    assert len(set(done[:, 1])) == min(count, processes)
    assert done[0, 1] == os.getpid()


def test_shared_arrays_start_at_0_and_may_be_empty():
    assert (shared_array((2, 3), "float32") == np.zeros((2, 3), "float32")).all()
    assert shared_array((2, 3), "float32").dtype == np.float32
    assert shared_array((0, 3), "float64").shape == (0, 3)


def test_a_copy_that_fails_is_reported(capfd):
    def work(k: int) -> None:
        if k == 1:
            raise ArithmeticError("piece 1 went wrong")

    with pytest.raises(RuntimeError, match="1 of 2 processes ended before they were done"):
        side_by_side(work, 4, 2)
    assert "piece 1 went wrong" in capfd.readouterr().err


def test_where_this_process_fails_its_copies_end_too(tmp_path):
    def work(k: int) -> None:
        if k == 0:
            raise ValueError("here")
        os.read(never, 1)

    never, end = os.pipe()  # a copy would wait for ever
    with pytest.raises(ValueError, match="here"):
        side_by_side(work, 2, 2)
    os.close(end)
    os.close(never)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
