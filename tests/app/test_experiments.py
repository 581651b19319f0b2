"""app/experiments: what is trained, what is copied, what is scored."""

from dataclasses import replace
from functools import partial
from itertools import count
from math import log

import numpy as np
import pytest

from scratchgen.app.experiments import bounds, diffusion, families, gans, training, transfer
from scratchgen.app.quality import quality_of
from scratchgen.app.recipes import (
    ClassifierRecipe,
    DdpmRecipe,
    GanRecipe,
    HvaeRecipe,
    VaeRecipe,
    base,
    ddpm,
    gan,
)
from scratchgen.app.recipes.autoencoder import AutoencoderConfig
from scratchgen.app.recipes.classifier import ClassifierConfig
from scratchgen.app.recipes.data import load
from scratchgen.app.recipes.ddpm import DdpmConfig, DdpmSampling
from scratchgen.app.recipes.gan import GanConfig
from scratchgen.app.recipes.hvae import HvaeConfig
from scratchgen.app.recipes.vae import VaeConfig
from scratchgen.core.arrays import backend
from scratchgen.core.streams import Stream
from scratchgen.data.digits import load_digits
from scratchgen.metrics.samples import sharpness


@pytest.fixture
def tiny(monkeypatch):
    """The experiments' own code with small nets and few steps; what is built is kept to look at."""
    small = {"width": 16, "latent": 3, "steps": 12, "ema": 0.5}
    kept = {"recipes": [], "classifiers": [], "scored": []}
    whole = training.trained

    def keep(recipe):
        kept["recipes"].append(whole(recipe))
        return recipe

    class Kept(transfer.Classifier):
        def __init__(self, trunk, head, frozen_trunk=False):
            super().__init__(trunk, head, frozen_trunk)
            kept["classifiers"].append(self)

        def predict(self, x):
            kept["scored"].append(x)
            return super().predict(x)

    for module in (bounds, transfer):
        monkeypatch.setattr(module, "VaeConfig", lambda **given: VaeConfig(**given | small))
        monkeypatch.setattr(module, "trained", keep)
    monkeypatch.setattr(transfer, "AutoencoderConfig", partial(AutoencoderConfig, **small))
    monkeypatch.setattr(transfer, "Classifier", Kept)
    monkeypatch.setattr(transfer, "HEAD_STEPS", 2)
    monkeypatch.setattr(bounds, "SAMPLES", 4)
    return kept


@pytest.mark.parametrize(
    ("experiment", "net"),
    [(bounds.vae_digits, "mlp"), (bounds.conv_vae_digits, "conv")],
)
def test_the_digits_result_is_the_average_on_the_test_part(tiny, experiment, net):
    found = experiment(3)
    (recipe,) = tiny["recipes"]
    assert (recipe.config.seed, recipe.config.net, recipe.config.hold_out) == (3, net, False)
    assert recipe.fit.steps_done == 12
    np.testing.assert_array_equal(recipe.params.theta, recipe.ema.average)
    want = recipe.evaluate(load_digits("test"), bounds.SAMPLES)
    assert found == {name: want[name] for name in found}
    assert "bits_per_dim" in found


@pytest.mark.equation("NET-3")
def test_transfer_starts_from_the_encoders_and_scores_the_test_part(tiny):
    found = transfer.transfer_digits(2)
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


@pytest.fixture
def tiny_games(monkeypatch):
    """The experiments on games with small nets and few steps; then G gives a dozen real examples.

    So that each of their measures has a value of its own. The published configurations are kept.
    """
    kept = {"published": [], "recipes": []}
    small = {"width": 16, "batch_size": 8, "steps": 2, "ema": 0.5}
    judge = ClassifierRecipe(ClassifierConfig(width=8, batch_size=16))
    judge.fit.until(20, quiet=True)

    def configured(**given):
        kept["published"].append(GanConfig(**given))
        return GanConfig(**given | small)

    def keep(recipe):
        kept["recipes"].append(training.trained(recipe))
        seen = recipe.examples(recipe.fitted)[:12]
        recipe.model = lambda z: (seen[np.arange(len(z)) % 12], None)
        return recipe

    monkeypatch.setattr(gans, "GanConfig", configured)
    monkeypatch.setattr(gans, "trained", keep)
    monkeypatch.setattr(gan, "judge_for", lambda recipe: judge)
    return kept


@pytest.mark.parametrize(
    ("experiment", "published"),
    [
        (gans.wgan_gp_ring8, {"data": "ring8", "loss": "wgan-gp"}),
        (gans.wgan_gp_grid25, {"data": "grid25", "loss": "wgan-gp"}),
        (gans.dcgan_digits, {"data": "digits", "loss": "non-saturating", "steps": 1500}),
    ],
    ids=["ring8", "grid25", "digits"],
)
def test_a_game_is_measured_on_2500_samples(tiny_games, experiment, published):
    found = experiment(3)
    assert tiny_games["published"] == [GanConfig(seed=3, **published)]
    (recipe,) = tiny_games["recipes"]
    assert recipe.fit.steps_done == 2
    np.testing.assert_array_equal(recipe.params.theta, recipe.ema.average)
    seen = recipe.evaluate(recipe.part("test"), 2500)
    if published["data"] == "digits":
        shares = np.asarray([seen[f"class_shares_of_{name}"] for name in ("samples", "data")])
        want = {
            "mean_confidence_on_samples": seen["confidence_on_samples"],
            "mean_confidence_on_data": seen["confidence_on_data"],
            "the_same_with_shuffled_pixels": seen["confidence_on_data_with_shuffled_pixels"],
            "classes_present_of_10": np.sum(shares[0] >= 0.1 * shares[1]),
            "smallest_share_of_a_class": np.min(shares[0]),
        }
    else:
        want = {
            f"modes_covered_of_{seen['modes']}": seen["covered"],
            "share_of_high_quality_samples": seen["high_quality"],
            "spread_around_a_mode_over_its_own": seen["relative_spread"],
        }
    assert found == want
    assert len(set(want.values())) == len(want), "measures that agree cannot be told apart"


def test_labelled_digits_are_balanced():
    labels = load_digits("train").labels
    chosen = transfer._per_class(labels, 5, Stream(0, backend("numpy")))
    assert len(set(chosen.tolist())) == 50
    np.testing.assert_array_equal(np.bincount(labels[chosen]), [5] * 10)


@pytest.fixture
def small_families(monkeypatch):
    """Small nets, two steps, an untrained judge, and of a part its first forty examples.

    The clock is 8 s later whenever it is read.
    """

    def made(seed, data):
        small = {"seed": seed, "data": data, "steps": 2, "ema": 0.5, "width": 8, "batch_size": 4}
        return {
            "VAE": VaeRecipe(VaeConfig(**small)),
            "HVAE": HvaeRecipe(HvaeConfig(**small, kind="markov", latents="2,2")),
            "GAN": GanRecipe(GanConfig(**small)),
            "DDPM": DdpmRecipe(DdpmConfig(**small, timesteps=20)),
        }

    for recipe in (VaeRecipe, HvaeRecipe, DdpmRecipe):
        monkeypatch.setattr(recipe, "draws", 2)
    monkeypatch.setattr(base, "load", lambda *of: load(*of).take(slice(40)))
    monkeypatch.setattr(ddpm, "PILOT", 8)
    monkeypatch.setattr(families, "DDIM", DdpmSampling(sampler="ddim", steps=2))
    monkeypatch.setattr(families, "families", made)
    monkeypatch.setattr(families, "process_time", count(0.0, 8.0).__next__)
    monkeypatch.setattr(
        families,
        "judge_for",
        lambda recipe: ClassifierRecipe(
            ClassifierConfig(data=recipe.config.data, width=8, batch_size=4)
        ),
    )
    return made


@pytest.fixture
def alone(monkeypatch):
    """What the experiments on one family alone would train, for seed 4."""

    class Begun(Exception):
        pass

    def stop(*given):
        raise Begun(*given)

    def begun(experiment):
        with pytest.raises(Begun) as stopped:
            experiment(4)
        return stopped.value.args

    monkeypatch.setattr(bounds, "trained", lambda recipe: recipe)
    monkeypatch.setattr(bounds, "_beside_a_vae", stop)
    monkeypatch.setattr(gans, "trained", stop)
    monkeypatch.setattr(diffusion, "train_side_by_side", stop)
    chain, vae = begun(bounds.mhvae_digits)
    (game,), (diffusions,) = begun(gans.dcgan_digits), begun(diffusion.ddpm_digits)
    return {"VAE": vae, "HVAE": chain, "GAN": game, "DDPM": diffusions["K-way"]}


@pytest.mark.parametrize("data", ["digits", "digits-1000"])
def test_families_are_those_of_their_own_experiments_but_for_steps_and_data(alone, data):
    steps = {"VAE": 14000, "HVAE": 13000, "GAN": 4400, "DDPM": 1400}
    if data == "digits-1000":
        steps |= {"VAE": 3000, "HVAE": 3000}
    made = families.families(4, data)
    assert list(made) == list(steps)
    for family, recipe in made.items():
        assert recipe.config == replace(alone[family].config, steps=steps[family], data=data)
        assert recipe.config.hold_out == (data == "digits-1000")
    assert DdpmSampling(sampler="ddim", steps=50) == families.DDIM


def test_families_are_measured_alike_on_the_test_part(small_families):
    found = families.families_digits(3)
    recipes = small_families(3, "digits")
    judge = families.judge_for(recipes["VAE"])
    for family, recipe in recipes.items():
        part = training.trained(recipe).part("test")
        assert part.codes.tolist() == load_digits("test").codes[:40].tolist()
        values, real, drawn = families.measure(recipe, judge, part)
        options = families.DDIM if family == "DDPM" else recipe.sampling_type()
        np.testing.assert_array_equal(drawn.x, recipe.sample(40, 3, options).x)
        quality = quality_of(drawn.x, recipe, part, 3, judge)
        for name in ("Fréchet distance", "kernel distance", "precision", "recall"):
            row = quality["measures"][f"{name} on classifier features"]
            assert (values[name], real[name]) == (row["value"], row["floor"])
        scores = quality["class_score"]
        assert values["class score"] == scores["samples"]["mean"]
        assert real["class score"] == scores["data"]["mean"]
        assert values["sharpness"] == sharpness(part.x, drawn.x)
        assert real["sharpness"] == sharpness(part.x, recipe.fitted.x)
        assert values.pop("seconds a sample") == 8.0 / 40.0
        if family == "GAN":
            assert "bits per dim" not in values
        else:
            assert values["bits per dim"] == recipe.evaluate(part, 2)["bits_per_dim"]
            assert values["nats per image"] == pytest.approx(values["bits per dim"] * 64 * log(2))
        for name, value in values.items():
            assert found.pop(f"{name}, {family}") == value
    assert found == {f"{name}, real data": value for name, value in real.items()}


def test_the_second_result_of_the_families_is_on_the_other_split(monkeypatch):
    monkeypatch.setattr(families, "_side_by_side", lambda seed, data: (seed, data))
    assert families.families_digits_1000(3) == (3, "digits-1000")


def test_both_sides_of_a_gan_are_counted(small_families):
    gan = small_families(0, "digits")["GAN"]
    values = families.measure(gan, families.judge_for(gan), gan.part("test")).values
    sides = gan.params.theta.size + gan.gan.discriminator_params.theta.size
    assert values["parameters"] == sides


def test_the_table_of_families_has_a_dash_where_there_is_no_measure():
    lines = families.table({"VAE": {"parameters": 1234, "bits per dim": 1.23456}, "GAN": {}})
    assert lines[0].split() == ["VAE", "GAN"]
    assert lines[1].split() == ["parameters", "1,234", "–"]
    assert lines[2].split() == ["bits", "per", "dim", "1.235", "–"]
    assert len(lines) == 1 + len(families.FORMATS)
