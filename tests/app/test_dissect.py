"""app/dissect.py: what `info --net` says of a run's networks."""

import json
import tracemalloc
from math import prod

import numpy as np
import pytest

from scratchgen.app.cli import main
from scratchgen.app.commands import train
from scratchgen.app.dissect import dissect
from scratchgen.app.recipes import VaeRecipe
from scratchgen.app.recipes.vae import VaeConfig
from scratchgen.core.module import Module
from scratchgen.layers.combinators import Sequential

SMALL = {"steps": 1, "batch_size": 16, "latent": 3, "width": 8}


@pytest.fixture(scope="module")
def recipe():
    return VaeRecipe(VaeConfig(net="conv", **SMALL))


def test_every_parameter_is_counted_once(recipe):
    found = dissect(recipe)
    assert sum(row["parameters"] for row in found["layers"]) == found["parameters"]
    assert found["parameters"] == recipe.params.theta.size
    assert found["batch_size"] == 16


def test_names_are_the_tree_s_and_shapes_the_outputs(recipe):
    rows = {row["name"]: row for row in dissect(recipe)["layers"]}
    for name, parameter in recipe.params.table.items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight":
            assert rows[layer]["parameters"] >= prod(parameter.shape)
    assert rows["encoder.layers.0"]["output"] == [16, 8, 8, 8]
    assert rows["encoder.layers.0"]["kind"] == "Conv2d"


def test_the_shares_are_what_the_forward_pass_holds(recipe):
    """A convolution keeps its input for the pullback, and its output is kept by who follows."""
    found = dissect(recipe)
    held = sum(row["bytes"] for row in found["layers"])
    assert 0 < held < found["peak_bytes"]
    assert {row["kind"] for row in found["layers"]} >= {"Conv2d", "GroupNorm, silu", "reshaped"}
    first = next(row for row in found["layers"] if row["name"] == "encoder.layers.0")
    batch, output = 4 * 16 * 64, 4 * 16 * 64 * 8
    assert first["bytes"] == pytest.approx(batch + output, rel=0.2)
    assert not tracemalloc.is_tracing()


def test_nothing_of_the_run_is_changed(recipe):
    theta = recipe.params.theta.copy()
    dissect(recipe)
    np.testing.assert_array_equal(recipe.params.theta, theta)
    assert not np.any(recipe.params.grad)


def test_the_command_prints_a_table_or_json(tmp_path, capsys):
    run = train(VaeRecipe(VaeConfig(**SMALL)), tmp_path / "run", quiet=True)
    assert main(["info", "--net", str(run)]) == 0
    table = capsys.readouterr().out
    assert "decoder.layers.0" in table
    assert "a step of batch 16 takes" in table
    assert main(["info", "--net", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["batch_size"] == 16


def test_a_run_must_be_named(capsys):
    assert main(["info", "--net"]) == 2
    assert "--net needs a run folder" in capsys.readouterr().err


class Grows(Module):
    """A layer that keeps so many bytes for its pullback, and there needs three times as many."""

    def __init__(self, kept: int):
        self.kept = kept

    def __call__(self, x):
        """x -> x + 0, pullback: dy -> dy."""
        held = np.zeros(self.kept, dtype=np.uint8)

        def pullback(dy):
            return dy + 0.0 * np.zeros(3 * held.size // 8, dtype=np.float64)[0]

        return x + 0.0, pullback


def test_known_layers_have_known_shares(recipe, monkeypatch):
    """Beside outputs of 2 kB: what each keeps, and the peak in the first pullback to run."""
    net = Sequential(Grows(10**6), Grows(2 * 10**6))
    ready = []

    def loss(step, rows):
        _, pullback = net(np.zeros((16, 16)))
        if not ready:
            ready.append(np.zeros(10**7))  # made once: no step's
        pullback(np.zeros((16, 16)))
        return {}

    monkeypatch.setattr(recipe, "model", net)
    monkeypatch.setattr(recipe, "loss", loss)
    found = dissect(recipe)
    assert [row["bytes"] for row in found["layers"]] == pytest.approx([1e6, 2e6], rel=0.02)
    assert [row["name"] for row in found["layers"]] == ["layers.0", "layers.1"]
    assert found["peak_bytes"] == pytest.approx(3e6 + 6e6, rel=0.02)
