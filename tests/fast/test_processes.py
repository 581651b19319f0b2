"""fast/processes.py: pieces of work in copies of the process."""

import os
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchgen.app.cli import main
from scratchgen.app.recipes import DdpmRecipe
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

    with pytest.raises(ChildProcessError, match="1 of 2 processes ended before they were done"):
        side_by_side(work, 4, 2)
    assert "piece 1 went wrong" in capfd.readouterr().err


def test_an_interrupted_copy_says_nothing(capfd):
    def work(k: int) -> None:
        if k == 1:
            raise KeyboardInterrupt

    with pytest.raises(ChildProcessError):
        side_by_side(work, 2, 2)
    assert capfd.readouterr().err == ""


@pytest.fixture
def never():
    """A pipe from which a copy would read for ever; after the test, no copy may be left."""
    here, there = os.pipe()
    yield here
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    os.close(there)
    os.close(here)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_where_this_process_fails_its_copies_end_too(error, never):
    def work(k: int) -> None:
        if k == 0:
            raise error("here")
        os.read(never, 1)

    with pytest.raises(error, match="here"):
        side_by_side(work, 2, 2)


def test_where_a_copy_cannot_be_made_those_before_it_end(never, monkeypatch):
    fork, made = os.fork, []

    def once() -> int:
        if made:
            raise BlockingIOError("too many processes")
        made.append(True)
        return fork()

    monkeypatch.setattr(os, "fork", once)
    with pytest.raises(BlockingIOError):
        side_by_side(lambda k: os.read(never, 1), 3, 3)


def test_pythons_warning_of_threads_is_passed_over(monkeypatch):
    fork = os.fork

    def warning() -> int:
        warnings.warn("this process is multi-threaded", DeprecationWarning, stacklevel=2)
        return fork()

    monkeypatch.setattr(os, "fork", warning)
    side_by_side(lambda k: None, 2, 2)


ENDED = """
import os, signal
from scratchgen.app.cli import main
from scratchgen.app.recipes import DdpmRecipe
from scratchgen.fast.processes import side_by_side

def work(k):
    if k == 0:
        os.read(ready, 1)
        os.kill(os.getpid(), signal.SIGTERM)
    os.write(told, b"x")
    os.read(never, 1)

(ready, told), (never, _) = os.pipe(), os.pipe()
side_by_side(work, 2, 2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a copy ends with its own work")
def test_copies_do_not_outlive_a_process_that_is_killed():
    """Standard output ends when nobody is left who could write there."""
    done = subprocess.run([sys.executable, "-c", ENDED], stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == -signal.SIGTERM


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a small diffusion."""
    folder = tmp_path_factory.mktemp("runs") / "ddpm"
    small = ["--width", "8", "--batch-size", "4", "--steps", "4", "--timesteps", "9"]
    options = ["--dtype", "float64", "--quiet", "--out", str(folder)]
    assert main(["train", "ddpm", *small, *options]) == 0
    return folder


def test_samples_are_the_same_whoever_draws_them(run, capsys):
    """Pieces of 8 images, in one process or in several; and up to rounding without the twins."""

    def drawn(workers: str, *flags: str) -> dict:
        capsys.readouterr()
        (run / "samples.npz").unlink(missing_ok=True)
        options = ["-n", "17", "--steps", "3", "--trajectory", "--workers", workers]
        assert main([*flags, "sample", str(run), *options]) == 0
        with np.load(run / "samples.npz") as file:
            return {name: file[name] for name in ("x", "path")}

    alone = drawn("1")
    assert "shared by" not in capsys.readouterr().err
    for workers in ("2", "7", "auto"):
        shared = drawn(workers)
        for name, array in alone.items():
            np.testing.assert_array_equal(shared[name], array)
    readable = drawn("1", "--no-fast")
    for name, array in alone.items():
        np.testing.assert_allclose(readable[name], array, atol=1e-8)
    drawn("7")
    assert "shared by 3 processes" in capsys.readouterr().err


def test_a_failed_process_is_one_sentence_and_exit_code_2(run, capfd, monkeypatch):
    here = os.getpid()

    def decode(recipe, x):
        return x if os.getpid() == here else os._exit(9)

    monkeypatch.setattr(DdpmRecipe, "decode", decode)
    assert main(["sample", str(run), "-n", "9", "--workers", "2"]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("scratchgen: 1 of 2 processes ended before they were done")
