"""Four families of models on the same digits, within the same two minutes, measured by one judge.

Each has as many steps as make about two minutes of one core, and the other options of its own
experiment. That costs a VAE 0.006 bits per dimension of the validation part of `digits`, against
its usual 3,000 steps. On `digits-1000`, where 14,000 steps are 1,800 epochs, it would cost 0.12,
and a hierarchical one 0.04; there both take 3,000.
"""

from math import prod
from time import process_time
from typing import NamedTuple

from scratchgen.app.experiments.training import trained
from scratchgen.app.quality import quality_of
from scratchgen.app.recipes import DdpmRecipe, GanRecipe, HvaeRecipe, Recipe, VaeRecipe
from scratchgen.app.recipes.base import Sampled
from scratchgen.app.recipes.classifier import ClassifierRecipe, judge_for
from scratchgen.app.recipes.ddpm import DdpmConfig, DdpmSampling
from scratchgen.app.recipes.gan import GanConfig
from scratchgen.app.recipes.hvae import HvaeConfig
from scratchgen.app.recipes.vae import VaeConfig
from scratchgen.core.module import Parameter
from scratchgen.metrics.samples import sharpness

DDIM = DdpmSampling(sampler="ddim", steps=50)
REAL = "real data"
SECONDS = "seconds a sample"
STEPS = {
    "digits": {"VAE": 14000, "HVAE": 13000, "GAN": 4400, "DDPM": 1400},
    "digits-1000": {"VAE": 3000, "HVAE": 3000, "GAN": 4400, "DDPM": 1400},
}
FORMATS = {
    "parameters": ",.0f",
    "bits per dim": ".3f",
    "nats per image": ".2f",
    "Fréchet distance": ".3f",
    "kernel distance": ".4f",
    "class score": ".2f",
    "precision": ".3f",
    "recall": ".3f",
    "sharpness": ".3f",
    SECONDS: ".5f",
}


class Measured(NamedTuple):
    """What one model does on held-out data.

    Attributes:
        values: measure -> value, with names of FORMATS; a model without a likelihood has no bits.
        real: the same of training examples, where it means anything; the class score is that of the
            held-out ones.
        drawn: the samples.
    """

    values: dict[str, float]
    real: dict[str, float]
    drawn: Sampled


def families(seed: int, data: str) -> dict[str, Recipe]:
    """A VAE, a Markov chain of two latents, a DCGAN and a DDPM, untrained.

    The DDPM gives each level of a pixel a logit and trains on the bound, its variance with it.
    """
    steps = STEPS[data]
    vae = VaeConfig(data, seed=seed, steps=steps["VAE"])
    chain = HvaeConfig(
        data, seed=seed, steps=steps["HVAE"], kind="markov", width=180, latents="16,16"
    )
    gan = GanConfig(data, seed=seed, steps=steps["GAN"])
    bound = DdpmConfig(
        data, seed=seed, steps=steps["DDPM"], objective="bound", times="noise", variance="learned"
    )
    return {
        "VAE": VaeRecipe(vae),
        "HVAE": HvaeRecipe(chain),
        "GAN": GanRecipe(gan),
        "DDPM": DdpmRecipe(bound),
    }


def measure(recipe: Recipe, judge: ClassifierRecipe | None, part) -> Measured:
    """Bounds, and as many samples as there are held-out examples: how good, and how fast drawn.

    Samples of a VAE, hierarchical or not, are its decoder means, and of a DDPM 50 steps of DDIM.

    Args:
        recipe: a trained one.
        judge: a classifier of its data, which have classes.
        part: the held-out examples.

    Raises:
        ValueError: there are too few.
    """
    values: dict[str, float] = {
        "parameters": sum(prod(p.shape) for _, p in recipe.whole.named(Parameter))
    }
    if not isinstance(recipe, GanRecipe):
        found = recipe.evaluate(part, recipe.draws)
        values |= {"bits per dim": found["bits_per_dim"], "nats per image": -found["elbo_nats"]}
    options = DDIM if isinstance(recipe, DdpmRecipe) else recipe.sampling_type()
    began = process_time()
    drawn = recipe.sample(len(part), recipe.config.seed, options)
    seconds = (process_time() - began) / len(part)
    found = quality_of(drawn.x, recipe, part, recipe.config.seed, judge)
    real: dict[str, float] = {}
    for name in ("Fréchet distance", "kernel distance", "precision", "recall"):
        row = found["measures"][f"{name} on classifier features"]
        values[name], real[name] = row["value"], row["floor"]
    scores = found["class_score"]
    values["class score"], real["class score"] = scores["samples"]["mean"], scores["data"]["mean"]
    values["sharpness"] = sharpness(part.x, drawn.x)
    real["sharpness"] = sharpness(part.x, recipe.fitted.x)
    return Measured(values | {SECONDS: seconds}, real, drawn)


def table(columns: dict[str, dict[str, float]]) -> list[str]:
    """Measures as lines for people, a column for each model; – where one has no such measure."""
    lines = [f"{'':20}" + "".join(f"{name:>11}" for name in columns)]
    for name, form in FORMATS.items():
        cells = (f"{values[name]:{form}}" if name in values else "–" for values in columns.values())
        lines.append(f"{name:20}" + "".join(f"{cell:>11}" for cell in cells))
    return lines


def families_digits(seed: int) -> dict[str, float]:
    """A VAE, a hierarchical one, a DCGAN and a DDPM, two minutes each, on the digits' test part."""
    return _side_by_side(seed, "digits")


def families_digits_1000(seed: int) -> dict[str, float]:
    """The same families on the digits in the order of their file, of which 1,000 are to train on.

    Source: [Tomczak 2022]
    """
    return _side_by_side(seed, "digits-1000")


def _side_by_side(seed: int, data: str) -> dict[str, float]:
    """Values by "measure, family"; without times, which are another machine's affair."""
    recipes = families(seed, data)
    judge, found = judge_for(recipes["VAE"]), dict[str, float]()
    for family, recipe in recipes.items():
        values, real, _ = measure(trained(recipe), judge, recipe.part("test"))
        found |= {f"{name}, {family}": values[name] for name in values if name != SECONDS}
    return found | {f"{name}, {REAL}": value for name, value in real.items()}
