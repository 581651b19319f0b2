"""The experiments behind the published results: a seed in, named numbers out.

Each trains from nothing and measures on the test part; reproduce.py records and compares them.
"""

from collections.abc import Callable
from math import pi, sqrt

import numpy as np

from scratchgen.app.recipes import AutoencoderRecipe, Recipe, VaeRecipe
from scratchgen.app.recipes.autoencoder import AutoencoderConfig
from scratchgen.app.recipes.vae import VaeConfig
from scratchgen.core.arrays import backend, full_like, to_host
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.maths.likelihoods import FixedNormal
from scratchgen.metrics.classifier import Classifier
from scratchgen.models.autoencoder import principal_components
from scratchgen.models.vae import Vae
from scratchgen.nets.mlp import mlp
from scratchgen.training.optim import Adam, warmup_cosine

SAMPLES = 256  # of z for each example, for every term of a bound
HEAD_STEPS = 3000  # long enough for a head on frozen random features to converge


def vae_digits(seed: int) -> dict[str, float]:
    """The demo's VAE, measured on the test part."""
    return _measured(VaeConfig(seed=seed))


def conv_vae_digits(seed: int) -> dict[str, float]:
    """A convolutional VAE on the digits, measured on the test part.

    Width, dropout, steps, batch and rate were chosen on the validation part.
    """
    config = VaeConfig(
        seed=seed,
        net="conv",
        width=48,
        dropout=0.2,
        steps=2500,
        batch_size=64,
        learning_rate=0.012,
    )
    return _measured(config)


def linear_vae(seed: int) -> dict[str, float]:
    """A linear VAE on Gaussian data: how far its ELBO and its axes are from probabilistic PCA.

    Source: VAE-8
    """
    dims, latent, n, steps = 8, 3, 400, 8000
    stream = Stream(seed, backend("numpy", "float64"))
    scales = np.sqrt([5.0, 2.5, 1.0, *[0.2] * (dims - latent)])
    rotation, _ = np.linalg.qr(stream.at("rotation").normal((dims, dims)))
    x = (stream.at("data").normal((n, dims)) * scales) @ rotation.T
    _, eigenvalues, axes = principal_components(x)
    tau = float(eigenvalues[latent:].mean())
    vae = Vae(Linear(dims, 2 * latent), Linear(latent, dims), FixedNormal(tau))
    adam = Adam(FlatParameters(vae, stream.at("initial")), warmup_cosine(0.05, steps))
    # the loss is quadratic in ε, so these 2K points average it exactly
    points = sqrt(latent) * np.concatenate([np.eye(latent), -np.eye(latent)])
    eps, share = np.repeat(points[:, None, :], n, axis=1), np.full(n, 1.0 / n)
    for _ in range(steps):
        (reconstruction, kl), pullback = vae.loss(x, eps)
        pullback(share, share)
        adam.step()
    variances = np.concatenate([eigenvalues[:latent], np.full(dims - latent, tau)])
    exact = -0.5 * float(np.sum(eigenvalues / variances + np.log(2.0 * pi * variances)))
    span, _ = np.linalg.qr(vae.decoder.weight.read().value)
    cosines = np.linalg.svd(span.T @ axes[:, :latent], compute_uv=False)
    return {
        "gap_to_log_likelihood_nats": exact + float(np.mean(reconstruction + kl)),
        "smallest_cosine_to_leading_eigenvectors": float(cosines.min()),
    }


def transfer_digits(seed: int) -> dict[str, float]:
    """Test accuracy with few labels, from encoders trained without any, and the gain over random.

    The three starts see the same labelled digits, so a gain is a paired difference.

    Source: NET-3
    """
    deep = AutoencoderConfig(seed=seed, dropout=0.15)
    sources = {
        "random": None,
        "autoencoder": _trained(AutoencoderRecipe(deep)),
        "vae": _trained(VaeRecipe(VaeConfig(seed=seed))),
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


def _measured(config: VaeConfig) -> dict[str, float]:
    """The bounds of a VAE on the test part, after training on all of the training part."""
    recipe = _trained(VaeRecipe(config))
    found = recipe.evaluate(recipe.part("test"), SAMPLES)
    names = ("bits_per_dim", "importance_weighted_bits_per_dim", "reconstruction_nats", "kl_nats")
    return {name: found[name] for name in names}


def _trained(recipe: Recipe) -> Recipe:
    """The recipe after all its steps, with its averaged weights in place."""
    recipe.fit.until(recipe.config.steps, quiet=True)
    recipe.params.theta = recipe.ema.average
    return recipe


EXPERIMENTS: dict[str, Callable[[int], dict[str, float]]] = {
    "vae-digits": vae_digits,
    "conv-vae-digits": conv_vae_digits,
    "linear-vae": linear_vae,
    "transfer-digits": transfer_digits,
}
