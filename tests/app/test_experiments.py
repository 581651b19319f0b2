"""app/experiments: what is trained, what is copied, what is scored."""

from functools import partial

import numpy as np
import pytest

from scratchgen.app.experiments import bounds, training, transfer
from scratchgen.app.recipes.autoencoder import AutoencoderConfig
from scratchgen.app.recipes.vae import VaeConfig
from scratchgen.core.arrays import backend
from scratchgen.core.streams import Stream
from scratchgen.data.digits import load_digits


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


def test_labelled_digits_are_balanced():
    labels = load_digits("train").labels
    chosen = transfer._per_class(labels, 5, Stream(0, backend("numpy")))
    assert len(set(chosen.tolist())) == 50
    np.testing.assert_array_equal(np.bincount(labels[chosen]), [5] * 10)
