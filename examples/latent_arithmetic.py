"""Arithmetic with the latents of a DCGAN on digits: bold 3 - thin 3 + thin 8 = bold 8?

    python examples/latent_arithmetic.py --out latent-arithmetic

The source shows G(mean z(a) - mean z(b) + mean z(c)), for three samples of each concept (GAN-9).
Here a are bold digits, b thin ones of their class, c thin ones of another class. How often, over
all pairs of classes, does a classifier see c's class in the result, as bold as its boldest quarter?
To compare: c alone, and d - e + c, with d and e of a's class, bold or thin.
"""

import argparse
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from scratchgen.app.diffusion_plots import strip
from scratchgen.app.recipes.classifier import ClassifierConfig, ClassifierRecipe
from scratchgen.app.recipes.gan import GanConfig, GanRecipe
from scratchgen.core.streams import Stream
from scratchgen.metrics.likelihood import in_batches
from scratchgen.models.gan import arithmetic

SAMPLES, SUREST, QUARTER, REPEATS, SPREAD = 20000, 200, 50, 4, 0.25
FEW, MANY = 3, 30  # samples of a concept, as in the source and so many that chance averages out
SHOWN = ((3, 8), (7, 9), (0, 6))  # chosen before any was seen


def ink(x: np.ndarray) -> np.ndarray:
    """How dark images are: (N, H, W, 1) in [-1, 1] -> (N,) in [0, 1]."""
    return 0.5 + 0.5 * x.mean(axis=(1, 2, 3))


def chosen(rows: np.ndarray, n: int, stream: Stream) -> np.ndarray:
    """n entries of each row, none twice: (P, Q) -> (n, P)."""
    order = np.argsort(stream.uniform(rows.shape), axis=1)[:, :n]
    return np.take_along_axis(rows, order, axis=1).T


def usual(z: np.ndarray) -> np.ndarray:
    """z at the length √K that nearly all of N(0, I) has, and so all that G has met: (..., K).

    A mean of n is √n times shorter, a - b + c is √(n/3) times: on average not at all for n = 3.
    """
    return z * (z.shape[-1] ** 0.5 / np.linalg.norm(z, axis=-1, keepdims=True))


def draw(path: Path, generate, columns: list, places: dict) -> None:
    """Four columns a sum: members or, last, z near it; below, what their mean or the sum gives."""
    frames, labels = [], []
    for (p, q), i in places.items():
        for above, mean in columns:
            images = generate(np.concatenate([above[:FEW, i], usual(mean[None, i])]))
            frames.append(np.insert(images, FEW, np.nan, axis=0))
        frames.append(np.full_like(frames[0], np.nan))
        labels += [f"bold {p}", f"− thin {p}", f"+ thin {q}", f"= bold {q}?", ""]
    title = "above: 3 members, and 3 z near the sum; below: {}, and the sum"
    strip(path, frames[:-1], labels[:-1], title.format(path.stem.replace("_", " ")))


@threadpool_limits.wrap(limits=1, user_api="blas")  # small products gain nothing from more
def main() -> None:
    """Train, find samples of each concept, add and subtract, count and draw what comes out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-latent-arithmetic"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    given = parser.parse_args()
    recipe = GanRecipe(GanConfig(steps=1500, seed=given.seed))  # the game of dcgan_digits.py
    judge = ClassifierRecipe(ClassifierConfig())
    for each in (recipe, judge):
        each.fit.until(5 if given.smoke else each.config.steps, quiet=True)
        each.params.theta = each.ema.average
    generate, stream = recipe.gan.generate, recipe.stream.at("arithmetic")
    z = stream.at("z").normal((SAMPLES, recipe.config.latent))
    x = in_batches(generate, z, 500)
    surest = np.argsort(-judge.opinions(x), axis=0)[:SUREST].T  # (classes, SUREST)
    ranked = np.take_along_axis(surest, np.argsort(ink(x)[surest], axis=1), axis=1)
    thin, bold = ranked[:, :QUARTER], ranked[:, -QUARTER:]
    one, other = np.repeat(np.nonzero(1.0 - np.eye(len(ranked))), REPEATS, axis=1)
    concepts = (bold[one], thin[one], thin[other], ranked[one], ranked[one])
    places = {(p, q): np.flatnonzero((one == p) & (other == q))[0] for p, q in SHOWN}
    noise = SPREAD * stream.at("near").normal((FEW, len(one), z.shape[1]))
    for n in (FEW, MANY):
        a, b, c, d, e = (z[chosen(rows, n, stream.at(n, i))] for i, rows in enumerate(concepts))
        print(f"means of {n:2}  of class c       bold       both")
        sums = (c.mean(axis=0), arithmetic(d, e, c), arithmetic(a, b, c))
        for name, total in zip(("c", "d - e + c", "a - b + c"), sums, strict=True):
            near = usual(usual(total) + noise)
            images = generate(near.reshape(-1, z.shape[1]))
            right = judge.opinions(images).argmax(axis=1).reshape(FEW, -1) == other
            dark = ink(images).reshape(FEW, -1) >= ink(x)[bold[other, 0]]
            print(f"  {name:9}{right.mean():11.3f}{dark.mean():11.3f}{(right & dark).mean():11.3f}")
        columns = [*((group, group.mean(axis=0)) for group in (a, b, c)), (near, total)]
        draw(given.out / f"means_of_{n}.png", generate, columns, places)
    print(f"wrote {given.out}/means_of_{FEW}.png and means_of_{MANY}.png")


if __name__ == "__main__":
    main()
