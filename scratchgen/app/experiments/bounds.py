"""VAEs and hierarchies of them: bounds on the test part, and a linear one beside exact PCA."""

from math import pi, sqrt

import numpy as np

from scratchgen.app.experiments.training import trained
from scratchgen.app.recipes.base import Recipe
from scratchgen.app.recipes.hvae import HvaeConfig, HvaeRecipe
from scratchgen.app.recipes.vae import VaeConfig, VaeRecipe
from scratchgen.core.arrays import backend
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.layers.affine import Linear
from scratchgen.maths.likelihoods import FixedNormal
from scratchgen.models.autoencoder import principal_components
from scratchgen.models.vae import Vae
from scratchgen.training.optim import Adam, warmup_cosine

SAMPLES = 256  # of z for each example, for every term of a bound


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


def hvae_digits(seed: int) -> dict[str, float]:
    """A ladder of two levels on the digits, test part, beside a VAE of no fewer parameters.

    Both have the options that were best on the validation part; the VAE is the demo's.

    Source: HVAE-6
    """
    config = HvaeConfig(seed=seed, width=204, latents="16,8")
    vae = trained(VaeRecipe(VaeConfig(seed=seed)))
    return _beside_a_vae(trained(HvaeRecipe(config)), vae)


def mhvae_digits(seed: int) -> dict[str, float]:
    """A Markov chain of two latents on the digits, test part, beside a VAE of no fewer parameters.

    Both have the options that were best on the validation part; the VAE is the demo's.

    Source: HVAE-3
    """
    config = HvaeConfig(seed=seed, kind="markov", width=180, latents="16,16")
    vae = trained(VaeRecipe(VaeConfig(seed=seed)))
    return _beside_a_vae(trained(HvaeRecipe(config)), vae)


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


def _measured(config: VaeConfig) -> dict[str, float]:
    """The bounds of a VAE on the test part, after training on all of the training part."""
    recipe = trained(VaeRecipe(config))
    found = recipe.evaluate(recipe.part("test"), SAMPLES)
    names = ("bits_per_dim", "importance_weighted_bits_per_dim", "reconstruction_nats", "kl_nats")
    return {name: found[name] for name in names}


def _beside_a_vae(recipe: Recipe, vae: Recipe) -> dict[str, float]:
    """The bounds of a hierarchy and of a VAE on the test part, and what each level is worth."""
    found, flat = (each.evaluate(each.part("test"), SAMPLES) for each in (recipe, vae))
    values = {name: found[name] for name in ("bits_per_dim", "importance_weighted_bits_per_dim")}
    values["bits_per_dim_of_the_vae"] = flat["bits_per_dim"]
    values["gain_over_the_vae_bits_per_dim"] = flat["bits_per_dim"] - found["bits_per_dim"]
    for level in found["hierarchy"]:
        values[f"KL_of_level_{level['level']}_nats"] = level["rate_nats"]
        if "removal_bits_per_dim" in level:
            removal = level["removal_bits_per_dim"]
            values[f"removal_of_level_{level['level']}_bits_per_dim"] = removal
    values["parameters"] = recipe.params.theta.size
    values["parameters_of_the_vae"] = vae.params.theta.size
    return values
