"""app/reproduce.py: recording, comparing, and what is recorded now."""

import json
from functools import partial
from importlib.resources import files
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import scipy.stats

from scratchgen.app import reproduce
from scratchgen.app.cli import main
from scratchgen.app.recipes.autoencoder import AutoencoderConfig
from scratchgen.app.recipes.vae import VaeConfig
from scratchgen.core.arrays import backend
from scratchgen.core.streams import Stream
from scratchgen.data.digits import load_digits
from scratchgen.training.fit import NotFinite

README = Path(__file__).parents[2] / "README.md"
NAMES = list(reproduce.EXPERIMENTS)


@pytest.fixture
def invented(monkeypatch, tmp_path):
    """An experiment whose value is its seed, recorded for five seeds."""

    def experiment(seed):
        """Its seed."""
        return {"v": float(seed)}

    monkeypatch.setattr(reproduce, "EXPERIMENTS", {"invented": experiment})
    monkeypatch.setattr(reproduce, "_commit", lambda: "0123abc")
    made = reproduce.record("invented", tmp_path)
    monkeypatch.setattr(reproduce, "recorded", lambda name: made)
    return made


def test_a_record_holds_mean_error_tolerance_and_where_it_came_from(invented, tmp_path):
    assert json.loads((tmp_path / "invented.json").read_text("utf-8")) == invented
    summary = invented["values"]["v"]
    assert summary["mean"] == 2.0
    assert summary["standard_error"] == pytest.approx(sqrt(2.5 / 5.0))
    assert summary["tolerance"] == pytest.approx(3.0 * sqrt(0.5) + 0.005)
    assert invented["seeds"]["3"] == {"v": 3.0}
    assert invented["commit"] == "0123abc"
    assert invented["command"] == "scratchgen reproduce invented"
    assert invented["environment"]["packages"]["numpy"]


def test_a_recorded_seed_is_compared_with_itself_and_another_with_the_mean(invented):
    own, other = reproduce.reproduce("invented", 4), reproduce.reproduce("invented", 6)
    assert own["values"]["v"]["recorded"] == 4.0
    assert other["values"]["v"]["recorded"] == 2.0
    ratio = (other["values"]["v"]["tolerance"] - 0.005) / (own["values"]["v"]["tolerance"] - 0.005)
    assert ratio == pytest.approx(scipy.stats.t.isf(0.005, 4) / 3.0 * sqrt(6.0), rel=1e-3)
    assert own["holds"]
    assert other["holds"]


def test_a_value_outside_its_tolerance_is_exit_code_one(invented, monkeypatch, capsys):
    assert main(["reproduce", "invented", "--seed", "1"]) == 0
    monkeypatch.setitem(reproduce.EXPERIMENTS, "invented", lambda seed: {"v": seed + 3.0})
    capsys.readouterr()
    assert main(["reproduce", "invented", "--seed", "1", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["values"]["v"]["holds"] is False
    assert main(["reproduce", "invented", "--seed", "1"]) == 1
    assert "outside its tolerance" in capsys.readouterr().out
    monkeypatch.setitem(reproduce.EXPERIMENTS, "invented", lambda seed: {"v": float("nan")})
    assert main(["reproduce", "invented"]) == 3


def test_refusals(capsys):
    assert main(["reproduce", "nothing"]) == 2
    assert "vae-digits" in capsys.readouterr().err
    assert main(["reproduce", "linear-vae", "--seed", "-1"]) == 2
    assert main(["reproduce", "--seed", "3"]) == 2
    assert "name a result" in capsys.readouterr().err.splitlines()[-1]
    assert main(["reproduce", "--readme", "nowhere.md"]) == 2
    assert "nowhere.md: No such file" in capsys.readouterr().err
    with pytest.raises(ValueError, match="at least 5 seeds"):
        reproduce.record("linear-vae", Path("nowhere"), seeds=4)


def test_the_names_are_listed(capsys):
    assert main(["reproduce"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_recorded_files_are_consistent(name):
    found = reproduce.recorded(name)
    assert len(found["seeds"]) >= reproduce.SEEDS
    for value, summary in found["values"].items():
        each = [seed[value] for seed in found["seeds"].values()]
        error = stdev(each) / sqrt(len(each))
        assert summary["mean"] == pytest.approx(mean(each))
        assert summary["standard_error"] == pytest.approx(error)
        assert summary["tolerance"] == pytest.approx(3.0 * error + 0.005)
    assert found["commit"] != "unknown"


def test_there_is_a_file_for_every_experiment_and_no_other():
    folder = files("scratchgen.app").joinpath("results")
    assert {p.name for p in folder.iterdir()} == {f"{name}.json" for name in NAMES}


def test_the_readme_shows_what_is_recorded(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text(README.read_text("utf-8"), "utf-8")
    assert main(["reproduce", "--readme", str(copy)]) == 0
    assert copy.read_text("utf-8") == README.read_text("utf-8"), "run: reproduce --readme README.md"
    (tmp_path / "other.md").write_text("no marks", "utf-8")
    assert main(["reproduce", "--readme", str(tmp_path / "other.md")]) == 2


@pytest.mark.equation("VAE-8")
def test_the_linear_vae_reaches_the_exact_likelihood_and_the_leading_axes():
    result = reproduce.reproduce("linear-vae", seed=0)
    assert result["holds"]
    assert abs(result["values"]["gap_to_log_likelihood_nats"]["found"]) < 1e-3
    assert result["values"]["smallest_cosine_to_leading_eigenvectors"]["found"] > 0.999


def test_the_recorded_digits_reach_the_promised_bits():
    assert reproduce.recorded("vae-digits")["values"]["bits_per_dim"]["mean"] <= 2.0


@pytest.fixture
def tiny(monkeypatch):
    """The experiments' own code with small nets and few steps; what is built is kept to look at."""
    small = {"width": 12, "latent": 3, "steps": 12, "ema": 0.5}
    kept = {"recipes": [], "classifiers": [], "scored": []}
    trained = reproduce._trained

    def keep(recipe):
        kept["recipes"].append(trained(recipe))
        return recipe

    class Kept(reproduce.Classifier):
        def __init__(self, trunk, head, frozen_trunk=False):
            super().__init__(trunk, head, frozen_trunk)
            kept["classifiers"].append(self)

        def predict(self, x):
            kept["scored"].append(x)
            return super().predict(x)

    monkeypatch.setattr(reproduce, "VaeConfig", partial(VaeConfig, **small))
    monkeypatch.setattr(reproduce, "AutoencoderConfig", partial(AutoencoderConfig, **small))
    monkeypatch.setattr(reproduce, "_trained", keep)
    monkeypatch.setattr(reproduce, "Classifier", Kept)
    monkeypatch.setattr(reproduce, "HEAD_STEPS", 2)
    return kept


def test_the_digits_result_is_the_average_on_the_test_part(tiny):
    found = reproduce.vae_digits(3)
    (recipe,) = tiny["recipes"]
    assert recipe.config.seed == 3
    assert recipe.fit.steps_done == 12
    np.testing.assert_array_equal(recipe.params.theta, recipe.ema.average)
    want = recipe.evaluate(load_digits("test"), samples=256)
    assert found == {name: want[name] for name in found}
    assert "bits_per_dim" in found


@pytest.mark.equation("NET-3")
def test_transfer_starts_from_the_encoders_and_scores_the_test_part(tiny):
    found = reproduce.transfer_digits(2)
    assert len(found) == 18 + 12
    for value, gain in found.items():
        if value.startswith("gain"):
            _, labels, name, how = value.split(", ")
            accuracy = found[f"accuracy, {labels}, {name}, {how}"]
            assert gain == accuracy - found[f"accuracy, {labels}, random, {how}"]
    autoencoder, vae = tiny["recipes"]
    assert (autoencoder.name, vae.name) == ("autoencoder", "vae")
    test = load_digits("test").x.reshape(-1, 64).astype(np.float32)
    assert all(np.array_equal(x, test) for x in tiny["scored"])
    # three starts each, frozen before fine-tuned, for 10, 50 and 200 labels
    frozen = [model.frozen_trunk for model in tiny["classifiers"]]
    assert frozen == ([True] * 3 + [False] * 3) * 3
    for i, source in ((1, autoencoder), (2, vae)):
        trunk = tiny["classifiers"][i].trunk.layers[0].weight.read().value
        encoder = source.model.encoder.layers[0].weight.read().value
        np.testing.assert_array_equal(trunk, encoder)
    fine_tuned = tiny["classifiers"][4].trunk.layers[0].weight.read().value
    assert np.any(fine_tuned != autoencoder.model.encoder.layers[0].weight.read().value)


def test_labelled_digits_are_balanced():
    labels = load_digits("train").labels
    chosen = reproduce._per_class(labels, 5, Stream(0, backend("numpy")))
    assert len(set(chosen.tolist())) == 50
    np.testing.assert_array_equal(np.bincount(labels[chosen]), [5] * 10)


@pytest.mark.parametrize("freedom", [1, 2, 4, 9])
@pytest.mark.parametrize("alpha", [0.05, 0.01 / 18])
def test_students_quantile(freedom, alpha):
    want = scipy.stats.t.isf(0.5 * alpha, freedom)
    assert reproduce.t_quantile(alpha, freedom) == pytest.approx(want, rel=2e-2)


def test_a_record_needs_finite_values_and_a_clean_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(reproduce, "_commit", lambda: "0123abc")
    monkeypatch.setattr(reproduce, "EXPERIMENTS", {"odd": lambda seed: {"v": float("nan")}})
    with pytest.raises(NotFinite, match="odd, seed 0"):
        reproduce.record("odd", tmp_path)
    assert list(tmp_path.iterdir()) == []
