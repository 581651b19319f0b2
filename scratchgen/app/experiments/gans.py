"""Adversarial games: the modes and classes that their samples show."""

from scratchgen.app.experiments.training import trained
from scratchgen.app.recipes.gan import GanConfig, GanRecipe
from scratchgen.app.recipes.gan_report import MIXED, shown


def wgan_gp_ring8(seed: int) -> dict[str, float]:
    """A WGAN with gradient penalty on eight normals in a ring: what 2,500 samples show.

    Source: GAN-12
    """
    return _modes(GanConfig(seed=seed, data="ring8", loss="wgan-gp"))


def wgan_gp_grid25(seed: int) -> dict[str, float]:
    """A WGAN with gradient penalty on five by five normals: what 2,500 samples show.

    Source: GAN-12
    """
    return _modes(GanConfig(seed=seed, data="grid25", loss="wgan-gp"))


def dcgan_digits(seed: int) -> dict[str, float]:
    """A DCGAN on the digits with the log D loss: what a small classifier makes of 2,500 samples.

    Source: GAN-5, GAN-8
    """
    recipe = trained(GanRecipe(GanConfig(seed=seed, steps=1500)))
    found = recipe.evaluate(recipe.part("test"), recipe.draws)
    shares = found["class_shares_of_samples"]
    return {
        "mean_confidence_on_samples": found["confidence_on_samples"],
        "mean_confidence_on_data": found["confidence_on_data"],
        "the_same_with_shuffled_pixels": found[f"confidence_on_{MIXED}"],
        "classes_present_of_10": sum(map(shown, shares, found["class_shares_of_data"])),
        "smallest_share_of_a_class": min(shares),
    }


def _modes(config: GanConfig) -> dict[str, float]:
    """What 2,500 samples show of the modes of the data."""
    recipe = trained(GanRecipe(config))
    found = recipe.evaluate(recipe.part("test"), recipe.draws)
    return {
        f"modes_covered_of_{found['modes']}": found["covered"],
        "share_of_high_quality_samples": found["high_quality"],
        "spread_around_a_mode_over_its_own": found["relative_spread"],
    }
