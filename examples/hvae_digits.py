"""Hierarchical VAEs on digits beside a flat one, and what each level controls.

    python examples/hvae_digits.py --out hvae-digits

A ladder of two levels and a Markov chain of two, trained alike: -ELBO in bits, the rate of each
level, and a picture for each level of the ladder, in whose rows that level alone is drawn anew
(HVAE-4 to HVAE-6).
"""

import argparse
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from scratchgen.app.plots import image_grid
from scratchgen.core.arrays import backend
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.data.digits import load_digits
from scratchgen.maths.bounds import bits_per_dim
from scratchgen.maths.likelihoods import DiscretisedLogistic
from scratchgen.metrics.likelihood import hierarchy_bounds, mean_and_error
from scratchgen.models.hierarchy import Hierarchy
from scratchgen.models.ladder_hvae import LadderHvae, Level
from scratchgen.models.markov_hvae import MarkovHvae
from scratchgen.nets.ladder import chain_between, mlp_ladder
from scratchgen.nets.mlp import mlp
from scratchgen.training.fit import batch_indices
from scratchgen.training.optim import Adam, Ema, warmup_cosine

BATCH, SIZES, ROW = 128, (16, 16), 8


def ladder() -> LadderHvae:
    """Two levels between a learned start and the digits."""
    nets = mlp_ladder(64, SIZES, 128, width=192, dropout=0.15)
    levels = [Level(*parts) for parts in nets.levels]
    likelihood = DiscretisedLogistic(17)
    return LadderHvae(nets.encoders, levels, nets.start, nets.latents, nets.decoder, likelihood)


def chain() -> MarkovHvae:
    """z_1 → z_2 → digits."""
    encoder = mlp([64, 192, 192, 2 * SIZES[1]], dropout=0.15, reads_data=True)
    decoder = mlp([SIZES[1], 192, 192, 128], dropout=0.15)
    return MarkovHvae(*chain_between(encoder, SIZES, decoder, [128]), DiscretisedLogistic(17))


def noise(model: Hierarchy, stream: Stream, n: int) -> list:
    """N(0, I) for every level."""
    return [stream.at("eps", i).normal((n, *shape)) for i, shape in enumerate(model.latents)]


def train(model: Hierarchy, x: np.ndarray, steps: int, stream: Stream) -> Ema:
    """Train the model; returns the average of its weights."""
    params = FlatParameters(model, stream.at("initial"))
    adam = Adam(params, warmup_cosine(4e-3, steps, warmup=min(100, steps // 10)))
    ema = Ema(params)
    share = np.full(BATCH, 1.0 / BATCH, dtype=x.dtype)
    for step in range(steps):
        chosen = batch_indices(stream.at("batches"), len(x), BATCH, step)
        drawn = stream.at("train", step)
        terms, pullback = model.loss(x[chosen], noise(model, drawn, BATCH), drawn)
        pullback(*(share for _ in terms))
        adam.step()
        ema.step()
    return ema


@threadpool_limits.wrap(limits=1, user_api="blas")  # small products gain nothing from more
def main() -> None:
    """Train both, print the bits and the rates, draw what each level of the ladder controls."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-hvae-digits"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    given = parser.parse_args()
    steps = 10 if given.smoke else 3000

    stream = Stream(given.seed, backend("numpy"))
    train_x, test_x = (
        stream.backend.asarray(load_digits(part).x.reshape(-1, 64)) for part in ("train", "test")
    )
    for model in (chain(), ladder()):
        ema = train(model, train_x, steps, stream)
        with ema.applied():
            found = hierarchy_bounds(model, test_x, stream.at("evaluate"), samples=16)
            rates = [found[f"kl/{i}"] for i in (1, 2)]
            mean, error = mean_and_error(found["reconstruction"] + sum(rates))
            bits, spread = bits_per_dim(mean, 64), bits_per_dim(error, 64)
            said = " and ".join(f"{rate.mean():.2f}" for rate in rates)
            print(f"{type(model).__name__:10}: -ELBO {bits:.3f} ± {spread:.3f} bits/dim, test; ")
            print(f"            rates from the top {said} nats")
    for level in range(len(SIZES)):
        eps = noise(model, stream.at("figure"), ROW * ROW)
        for other, drawn in enumerate(eps):
            if other != level:  # one for each row
                eps[other] = np.repeat(drawn[:ROW], ROW, axis=0)
        with ema.applied():
            images = model.sample(eps).reshape(-1, 8, 8, 1)
        path = given.out / f"level_{level + 1}.png"
        image_grid(path, images, f"along a row z{level + 1} alone is drawn anew", ROW)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
