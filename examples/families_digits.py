"""A VAE, a hierarchical VAE, a GAN and a diffusion side by side: the same digits, the same minutes.

    python examples/families_digits.py --data digits --out families

Each trains for two minutes of one core at most; then one table and one picture. Loops are written
out in `vae_digits.py`, `hvae_digits.py` (the chain), `dcgan_digits.py` and `ddpm_digits.py`.
"""

import argparse
from pathlib import Path
from time import process_time

from threadpoolctl import threadpool_limits

from scratchgen.app.experiments.families import REAL, families, measure, table
from scratchgen.app.plots import image_rows
from scratchgen.app.recipes import ClassifierRecipe
from scratchgen.app.recipes.classifier import ClassifierConfig, judge_for

SHOWN = 16


@threadpool_limits.wrap(limits=1, user_api="blas")  # small products gain nothing from more
def main() -> None:
    """Train one after the other, print the table, draw the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("digits", "digits-1000"), default="digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-families-digits"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    given = parser.parse_args()

    recipes = families(given.seed, given.data)
    some = recipes["VAE"]
    part = some.part("test")
    if given.smoke:
        part = part.take(slice(20))
        judge = ClassifierRecipe(ClassifierConfig(data=given.data))  # untrained
    else:
        judge = judge_for(some)
    columns, rows = {}, {"data": part.x[:SHOWN]}
    for name, recipe in recipes.items():
        began = process_time()
        steps = 3 if given.smoke else recipe.config.steps
        recipe.fit.until(steps, describe=recipe.describe)
        recipe.params.theta = recipe.ema.average
        print(f"{name}: {steps} steps in {process_time() - began:.0f} s of one core")
        columns[name], real, drawn = measure(recipe, judge, part)
        rows[name] = drawn.x[:SHOWN]
    print("\n".join(table(columns | {REAL: real})))
    path = given.out / f"{given.data}.png"
    image_rows(path, rows, f"{given.data}: images of the test part, and samples of each model")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
