"""Runs whose batches are shared among threads: the same up to rounding, resumed exactly."""

import json

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from scratchgen.app import workers
from scratchgen.app.cli import main
from scratchgen.app.recipes import RECIPES
from scratchgen.core.parallel import Solo
from scratchgen.fast.threads import Threads

TINY = 1e-3  # in Adam: else gradients of nothing but rounding noise make steps of full length
SMALL = {
    "vae": {"width": 32, "batch_size": 12},
    "conv vae": {"net": "conv", "width": 8, "batch_size": 6},
    "autoencoder": {"width": 32, "batch_size": 12},
    "ddpm": {"width": 8, "batch_size": 6},
    "hybrid ddpm": {"width": 8, "batch_size": 6, "objective": "hybrid", "variance": "learned"},
    "vdm": {"width": 8, "batch_size": 6, "gamma": "learned"},
    "points": {"data": "moons", "width": 16, "batch_size": 12},
    "classifier": {"width": 8, "batch_size": 6},
}
MODELS = {"conv vae": "vae", "hybrid ddpm": "ddpm", "points": "ddpm"}


@pytest.fixture(autouse=True, scope="module")
def _one_thread_of_blas():
    """Each worker's products take one, as they do in our own commands."""
    with threadpool_limits(1, "blas"):
        yield


def trained(name, group, steps=5):
    """A small float64 run of so many steps, from a θ without special values."""
    kind = RECIPES[MODELS.get(name, name)]
    recipe = kind(kind.config_type(**SMALL[name], dtype="float64", steps=steps))
    recipe.params.theta += 0.02 * recipe.stream.at("nudge").normal(recipe.params.theta.shape)
    recipe.params.changed()
    recipe.fit.optimiser.tiny, recipe.fit.workers = TINY, group
    recipe.fit.until(steps, quiet=True)
    return recipe


@pytest.mark.parametrize("name", SMALL)
def test_threads_train_what_one_trains(name):
    alone, shared = trained(name, Solo()), trained(name, Threads(2))
    want = alone.params.theta
    error = np.abs(shared.params.theta - want).max() / np.abs(want).max()
    assert error < 1e-10
    for term, values in alone.fit.history.items():
        np.testing.assert_allclose(shared.fit.history[term], values, rtol=1e-10)


RUNS = {
    "vae": ["vae", "--width", "64", "--batch-size", "32", "--workers", "2"],
    "conv": ["vae", "--net", "conv", "--width", "8", "--batch-size", "12"],
    "ddpm": ["ddpm", "--width", "8", "--batch-size", "12"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_continues_bit_for_bit_on_any_number_of_cores(
    name, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(workers, "cores", lambda: 2)
    monkeypatch.setattr(workers, "NUMBERS", 1)  # for the nets here are small
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = ["train", *RUNS[name], "--steps", "8"]
    assert main([*options, "--out", str(whole)]) == 0
    assert main([*options, "--out", str(broken), "--stop-at", "3"]) == 0
    monkeypatch.setattr(workers, "cores", lambda: 5)
    assert main(["train", "--resume", str(broken)]) == 0
    said = capsys.readouterr().err
    assert said.count("2 threads, BLAS with 1 each") == 3
    with np.load(whole / "checkpoint.npz") as a, np.load(broken / "checkpoint.npz") as b:
        assert set(a.files) == set(b.files)
        for array in a.files:
            assert a[array].tobytes() == b[array].tobytes(), array
    assert (whole / "metrics.csv").read_bytes() == (broken / "metrics.csv").read_bytes()


def test_a_resumed_run_may_be_told_another_number_and_keeps_that(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(workers, "cores", lambda: 3)
    monkeypatch.setattr(workers, "NUMBERS", 1)  # for the net here is small
    out = tmp_path / "run"
    first = ["train", *RUNS["ddpm"], "--steps", "5", "--stop-at", "1", "--out", str(out)]
    legs = (
        (first, 3),
        (["--workers", "2", "--stop-at", "2"], 2),
        (["--stop-at", "3"], 2),
        (["--workers", "auto", "--stop-at", "4"], 3),
        (["--workers", "1"], 1),
    )
    for leg, number in legs:
        assert main(leg if leg is first else ["train", "--resume", str(out), *leg]) == 0
        assert f", {number} thread" in capsys.readouterr().err
        environment = json.loads((out / "environment.json").read_text("utf-8"))
        assert environment["workers"] == number
    assert "workers" not in json.loads((out / "config.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--no-fast"], "--no-fast leaves out"),
        (["--blas-threads", "2"], "use --blas-threads 1, or --workers 1"),
    ],
)
def test_threads_that_must_not_be_are_refused_and_leave_nothing(
    flags, why, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main([*flags, "train", *RUNS["vae"]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line
    assert not any(tmp_path.iterdir())
    run = tmp_path / "run"
    assert main(["train", *RUNS["vae"], "--steps", "2", "--stop-at", "1", "--out", str(run)]) == 0
    kept = {path.name: path.read_bytes() for path in run.glob("*.*")}
    capsys.readouterr()
    assert main([*flags, "train", "--resume", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"scratchgen: {run} was trained by 2 workers, but 2 workers cannot")
    assert why in line
    assert {path.name: path.read_bytes() for path in run.glob("*.*")} == kept
    assert main([*flags, "train", "--resume", str(run), "--workers", "1", "--quiet"]) == 0
