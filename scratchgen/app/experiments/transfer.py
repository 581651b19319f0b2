"""What an encoder that was trained without labels is worth where labels are few."""

import numpy as np

from scratchgen.app.experiments.training import trained
from scratchgen.app.recipes.autoencoder import AutoencoderConfig, AutoencoderRecipe
from scratchgen.app.recipes.base import Recipe
from scratchgen.app.recipes.vae import VaeConfig, VaeRecipe
from scratchgen.core.arrays import full_like, to_host
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.metrics.classifier import Classifier
from scratchgen.nets.mlp import mlp
from scratchgen.training.optim import Adam, warmup_cosine

HEAD_STEPS = 3000  # long enough for a head on frozen random features to converge


def transfer_digits(seed: int) -> dict[str, float]:
    """Test accuracy with few labels, from encoders trained without any, and the gain over random.

    The three starts see the same labelled digits, so a gain is a paired difference.

    Source: NET-3
    """
    deep = AutoencoderConfig(seed=seed, dropout=0.15)
    sources = {
        "random": None,
        "autoencoder": trained(AutoencoderRecipe(deep)),
        "vae": trained(VaeRecipe(VaeConfig(seed=seed))),
    }
    accuracy, gain = {}, {}
    for labelled in (10, 50, 200):
        for how, frozen in (("frozen", True), ("fine-tuned", False)):
            of = {name: _few_labels(deep, s, labelled, frozen) for name, s in sources.items()}
            for name, found in of.items():
                accuracy[f"accuracy, {labelled} labels, {name}, {how}"] = found
                if name != "random":
                    gain[f"gain over random, {labelled} labels, {name}, {how}"] = (
                        found - of["random"]
                    )
    return accuracy | gain


def _few_labels(
    config: AutoencoderConfig, source: Recipe | None, labelled: int, frozen: bool
) -> float:
    """Test accuracy of a classifier that starts as the source's encoder without its last layer."""
    recipe = AutoencoderRecipe(config)
    stream = recipe.stream.at("few labels", labelled)
    hidden = [config.width] * config.depth
    # built with dropout, though it never draws here, so that its layers have the source's names
    encoder = mlp([recipe.dims, *hidden, 1], dropout=config.dropout, reads_data=True)
    trunk = Sequential(*encoder.layers[:-1])
    model = Classifier(trunk, Linear(config.width, 10), frozen)
    params = FlatParameters(model, stream.at("initial"))
    if source is not None:
        params.copy_from(source.params, "trunk.", "encoder.")
    train, test = recipe.part("train"), recipe.part("test")
    chosen = _per_class(train.labels, labelled // 10, stream.at("chosen"))
    x = recipe.examples(train)[chosen]
    labels = recipe.born.indices(train.labels[chosen])
    adam = Adam(params, warmup_cosine(1e-3, HEAD_STEPS))
    for _ in range(HEAD_STEPS):
        (nll,), pullback = model.loss(x, labels)
        pullback(full_like(nll, 1.0 / labelled))
        adam.step()
    return float(np.mean(to_host(model.predict(recipe.examples(test))) == test.labels))


def _per_class(labels: np.ndarray, each: int, stream: Stream) -> np.ndarray:
    order = stream.permutation(len(labels))
    return np.concatenate([order[labels[order] == digit][:each] for digit in range(10)])
