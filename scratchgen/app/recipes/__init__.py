"""From a configuration to nets, model, data and loss: the only place where names become objects."""

from dataclasses import fields
from typing import Any

from scratchgen.app.recipes.autoencoder import AutoencoderRecipe
from scratchgen.app.recipes.base import Recipe
from scratchgen.app.recipes.classifier import ClassifierRecipe
from scratchgen.app.recipes.ddpm import DdpmRecipe
from scratchgen.app.recipes.gan import GanRecipe
from scratchgen.app.recipes.hvae import HvaeRecipe
from scratchgen.app.recipes.vae import VaeRecipe
from scratchgen.app.recipes.vdm import VdmRecipe

RECIPES: dict[str, type[Recipe]] = {
    kind.name: kind
    for kind in (
        VaeRecipe,
        HvaeRecipe,
        GanRecipe,
        AutoencoderRecipe,
        DdpmRecipe,
        VdmRecipe,
        ClassifierRecipe,
    )
}


def recipe_from_json(values: Any) -> Recipe:
    """The recipe whose configuration `config_to_json` wrote.

    Raises:
        ValueError: a name is unknown or missing, or a value is outside its range.
    """
    if not isinstance(values, dict) or str(values.get("model")) not in RECIPES:
        raise ValueError(f"it must name a model ({', '.join(RECIPES)})")
    recipe = RECIPES[values["model"]]
    names = {option.name for option in fields(recipe.config_type)} | {"model"}
    if set(values) != names:
        odd = ", ".join(sorted(set(values) ^ names))
        raise ValueError(f"it must hold exactly the options of this version; see: {odd}")
    return recipe(recipe.config_type(**{k: v for k, v in values.items() if k != "model"}))
