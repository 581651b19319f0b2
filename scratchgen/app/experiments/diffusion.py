"""Diffusions: bounds on the test part, and how good samples are."""

from scratchgen.app.experiments.training import train_side_by_side, trained
from scratchgen.app.quality import judge_for, sample_quality
from scratchgen.app.recipes.base import Recipe, Sampling
from scratchgen.app.recipes.ddpm import DdpmConfig, DdpmRecipe, DdpmSampling
from scratchgen.app.recipes.vae import VaeConfig, VaeRecipe
from scratchgen.app.recipes.vdm import VdmConfig, VdmRecipe
from scratchgen.maths.bounds import bits_per_dim

TIMES = 128  # of a diffusion for each example


def vdm_digits(seed: int) -> dict[str, float]:
    """Variational diffusion on the digits, in continuous time, measured on the test part.

    Every option was chosen on the validation part.
    """
    recipe = trained(VdmRecipe(VdmConfig(seed=seed, steps=3500)))
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
    train_side_by_side(recipes)
    bits, constants = {}, {}
    for name, recipe in recipes.items():
        found = recipe.evaluate(recipe.part("test"), TIMES)
        for variance, row in found["by_variance"].items():
            bits[f"bits per dim, {name}, {variance}"] = row["bits_per_dim"]
            if "variance_constants_nats" in row:
                paid = bits_per_dim(row["variance_constants_nats"], recipe.dims)
                constants[f"of it Σ C_t, {name}, {variance}"] = paid
    recipes["VAE"] = trained(VaeRecipe(VaeConfig(seed=seed)))
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
    recipe = trained(DdpmRecipe(config))
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
