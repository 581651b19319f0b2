"""The experiments behind the published results: a seed in, named numbers out.

Each trains from nothing and measures on the test part; reproduce.py records and compares them.
"""

import subprocess
import sys
from collections.abc import Callable
from math import pi, sqrt
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from scratchgen.app.quality import judge_for, sample_quality
from scratchgen.app.recipes import (
    AutoencoderRecipe,
    DdpmRecipe,
    GanRecipe,
    HvaeRecipe,
    Recipe,
    VaeRecipe,
    VdmRecipe,
)
from scratchgen.app.recipes.autoencoder import AutoencoderConfig
from scratchgen.app.recipes.base import Sampling, config_to_json
from scratchgen.app.recipes.ddpm import DdpmConfig, DdpmSampling
from scratchgen.app.recipes.gan import GanConfig, shown
from scratchgen.app.recipes.hvae import HvaeConfig
from scratchgen.app.recipes.vae import VaeConfig
from scratchgen.app.recipes.vdm import VdmConfig
from scratchgen.app.runs import write_json
from scratchgen.core import twins
from scratchgen.core.arrays import backend, full_like, to_host
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.maths.bounds import bits_per_dim
from scratchgen.maths.likelihoods import FixedNormal
from scratchgen.metrics.classifier import Classifier
from scratchgen.models.autoencoder import principal_components
from scratchgen.models.vae import Vae
from scratchgen.nets.mlp import mlp
from scratchgen.training.fit import NotFinite
from scratchgen.training.optim import Adam, warmup_cosine

SAMPLES = 256  # of z for each example, for every term of a bound
TIMES = 128  # of a diffusion for each example
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


def hvae_digits(seed: int) -> dict[str, float]:
    """A ladder of two levels on the digits, test part, beside a VAE of no fewer parameters.

    Both have the options that were best on the validation part; the VAE is the demo's.

    Source: HVAE-6
    """
    config = HvaeConfig(seed=seed, width=204, latents="16,8")
    vae = _trained(VaeRecipe(VaeConfig(seed=seed)))
    return _beside_a_vae(_trained(HvaeRecipe(config)), vae)


def mhvae_digits(seed: int) -> dict[str, float]:
    """A Markov chain of two latents on the digits, test part, beside a VAE of no fewer parameters.

    Both have the options that were best on the validation part; the VAE is the demo's.

    Source: HVAE-3
    """
    config = HvaeConfig(seed=seed, kind="markov", width=180, latents="16,16")
    vae = _trained(VaeRecipe(VaeConfig(seed=seed)))
    return _beside_a_vae(_trained(HvaeRecipe(config)), vae)


def vdm_digits(seed: int) -> dict[str, float]:
    """Variational diffusion on the digits, in continuous time, measured on the test part.

    Every option was chosen on the validation part.
    """
    recipe = _trained(VdmRecipe(VdmConfig(seed=seed, steps=3500)))
    found = recipe.evaluate(recipe.part("test"), TIMES)
    names = ("bits_per_dim", "prior_nats", "diffusion_nats", "reconstruction_nats")
    return {name: found[name] for name in names}


def ddpm_digits(seed: int) -> dict[str, float]:
    """DDPM on the digits, T = 1000, test part: bits per dimension by head and reverse variance.

    One net gives a logit to every level of a pixel and learns its variance with the bound; the
    other is Algorithm 1's, which predicts the noise. Both are measured with every variance they
    can have. Samples of the first, by 50 steps of DDIM, are compared with a VAE's.

    Source: DDPM-9, DDPM-17
    """
    k_way = DdpmConfig(seed=seed, steps=2500, objective="bound", times="noise", variance="learned")
    epsilon = DdpmConfig(seed=seed, steps=2500, predict="epsilon", variance="beta")
    recipes: dict[str, Recipe] = {"K-way": DdpmRecipe(k_way), "epsilon": DdpmRecipe(epsilon)}
    _train_side_by_side(recipes)
    bits, constants = {}, {}
    for name, recipe in recipes.items():
        found = recipe.evaluate(recipe.part("test"), TIMES)
        for variance, row in found["by_variance"].items():
            bits[f"bits per dim, {name}, {variance}"] = row["bits_per_dim"]
            if "variance_constants_nats" in row:
                paid = bits_per_dim(row["variance_constants_nats"], recipe.dims)
                constants[f"of it Σ C_t, {name}, {variance}"] = paid
    recipes["VAE"] = _trained(VaeRecipe(VaeConfig(seed=seed)))
    judge = judge_for(recipes["K-way"])
    distances = {}
    for name, options in (
        ("K-way", DdpmSampling(sampler="ddim", steps=50)),
        ("epsilon", DdpmSampling(sampler="ddim", steps=50)),
        ("VAE", Sampling()),
    ):
        part = recipes[name].part("test")
        rows = sample_quality(recipes[name], part, len(part), seed, options, judge)["measures"]
        for measure in ("kernel distance", "Fréchet distance"):
            row = rows[f"{measure} on classifier features"]
            distances[f"{measure}, {name}, samples"] = row["value"]
            distances[f"{measure}, {name}, training data"] = row["floor"]
    return bits | constants | distances


def ddpm_moons(seed: int) -> dict[str, float]:
    """A DDPM of 100 steps on two moons: its samples beside a second real sample.

    Source: DDPM-16
    """
    config = DdpmConfig(
        seed=seed,
        data="moons",
        timesteps=100,
        schedule="cosine",
        predict="velocity",
        steps=6000,
        batch_size=256,
        learning_rate=4e-3,
    )
    recipe = _trained(DdpmRecipe(config))
    found = sample_quality(recipe, recipe.part("test"), 2000, seed, DdpmSampling(), None)
    row = found["measures"]["sliced Wasserstein distance on coordinates"]
    bound = recipe.evaluate(recipe.part("test"), TIMES)
    return {
        "sliced_wasserstein_distance": row["value"],
        "that_of_a_second_real_sample": row["floor"],
        "ratio": row["value"] / row["floor"],
        "bits_per_dim_with_the_optimal_variance": bound["by_variance"]["optimal"]["bits_per_dim"],
        "bits_per_dim_of_the_density": bound["baselines"]["the density itself"],
    }


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


def wgan_gp_ring8(seed: int) -> dict[str, float]:
    """A WGAN with gradient penalty on eight normals in a ring: the modes that 2,500 samples show.

    Source: GAN-12
    """
    recipe = _trained(GanRecipe(GanConfig(seed=seed, data="ring8", loss="wgan-gp")))
    found = recipe.evaluate(recipe.part("test"), recipe.draws)
    return {
        "modes_covered_of_8": found["covered"],
        "share_of_high_quality_samples": found["high_quality"],
    }


def dcgan_digits(seed: int) -> dict[str, float]:
    """A DCGAN on the digits with the log D loss: what a small classifier makes of 2,500 samples.

    Source: GAN-5, GAN-8
    """
    recipe = _trained(GanRecipe(GanConfig(seed=seed, steps=1500)))
    found = recipe.evaluate(recipe.part("test"), recipe.draws)
    shares = found["class_shares_of_samples"]
    return {
        "mean_confidence_on_samples": found["confidence_on_samples"],
        "mean_confidence_on_data": found["confidence_on_data"],
        "classes_present_of_10": sum(map(shown, shares, found["class_shares_of_data"])),
        "smallest_share_of_a_class": min(shares),
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


def _train_side_by_side(recipes: dict[str, Recipe]) -> None:
    """Train each recipe in a process of its own, all at once, as `train --resume` would.

    Each process is one worker, as there are several of them; and like this one, it takes the faster
    twins or leaves them.
    """
    route = () if twins.active() else ("--no-fast",)
    with TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in recipes}
        started = []
        for name, recipe in recipes.items():
            config = config_to_json(recipe)
            write_json(folders[name] / "config.json", config)
            recipe.fit.save(folders[name] / "checkpoint.npz", {"config": config})
            train = ("train", "--resume", folders[name], "--workers", "1", "--quiet")
            command = (sys.executable, "-m", "scratchgen", *route, *train)
            started.append(subprocess.Popen(command))
        try:
            codes = [process.wait() for process in started]
        except BaseException:
            for process in started:
                process.terminate()
            raise
        if any(codes):
            raise NotFinite(f"training ended with the exit codes {codes}")
        for name, recipe in recipes.items():
            recipe.use_average(folders[name] / "checkpoint.npz")


def _trained(recipe: Recipe) -> Recipe:
    """The recipe after all its steps, with its averaged weights in place."""
    recipe.fit.until(recipe.config.steps, quiet=True)
    recipe.params.theta = recipe.ema.average
    return recipe


EXPERIMENTS: dict[str, Callable[[int], dict[str, float]]] = {
    "vae-digits": vae_digits,
    "conv-vae-digits": conv_vae_digits,
    "hvae-digits": hvae_digits,
    "mhvae-digits": mhvae_digits,
    "linear-vae": linear_vae,
    "vdm-digits": vdm_digits,
    "ddpm-digits": ddpm_digits,
    "ddpm-moons": ddpm_moons,
    "wgan-gp-ring8": wgan_gp_ring8,
    "dcgan-digits": dcgan_digits,
    "transfer-digits": transfer_digits,
}
SLOW = ("vdm-digits", "ddpm-digits")  # recorded for as few seeds as may be
