"""Two hierarchical VAEs on digits, a chain and a ladder, and what each level of one controls.

    python examples/hvae_digits.py --out hvae-digits

Both have two levels and are trained alike: -ELBO in bits, the rate of each level, and a picture
for each level of the ladder, along whose rows its noise alone is drawn anew (HVAE-1 to HVAE-6).
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
from scratchgen.models.ladder_hvae import LadderHvae
from scratchgen.models.markov_hvae import MarkovHvae
from scratchgen.nets.ladder import chain_between, mlp_ladder
from scratchgen.nets.mlp import mlp
from scratchgen.training.fit import batch_indices
from scratchgen.training.kl_control import warm_up
from scratchgen.training.optim import Adam, Ema, warmup_cosine

BATCH, SIZES, ROW, LIKELIHOOD = 128, (16, 16), 8, DiscretisedLogistic(17)


def ladder() -> LadderHvae:
    """Two levels between a learned start and the digits."""
    nets = mlp_ladder(64, SIZES, 128, width=192, dropout=0.18)
    return LadderHvae(*nets, LIKELIHOOD)


def chain() -> MarkovHvae:
    """z_1 → z_2 → digits."""
    up = mlp([64, 192, 192, 2 * SIZES[1]], dropout=0.18, reads_data=True)
    down = mlp([SIZES[1], 192, 192, 128], dropout=0.18)
    return MarkovHvae(*chain_between(up, SIZES, down, [192, 192]), LIKELIHOOD)


def noise(stream: Stream, n: int) -> list:
    """N(0, I) for every level."""
    return [stream.at("eps", i).normal((n, size)) for i, size in enumerate(SIZES)]


def train(model: LadderHvae | MarkovHvae, x: np.ndarray, steps: int, stream: Stream) -> Ema:
    """Train the model; returns the average of its weights."""
    params = FlatParameters(model, stream.at("initial"))
    adam = Adam(params, warmup_cosine(4e-3, steps, warmup=min(100, steps // 10)))
    ema = Ema(params)
    share = np.full(BATCH, 1.0 / BATCH, dtype=x.dtype)
    for step in range(steps):
        chosen = batch_indices(stream.at("batches"), len(x), BATCH, step)
        drawn = stream.at("train", step)
        terms, pullback = model.loss(x[chosen], noise(drawn, BATCH), drawn)
        beta = warm_up(step, 3 * steps // 10)  # lest levels collapse at once
        pullback(share, *[beta * share] * len(SIZES))
        adam.step(), ema.step()
    return ema


@threadpool_limits.wrap(limits=1, user_api="blas")  # small products gain nothing from more
def main() -> None:
    """Train both, print the bits and the rates, draw what each level of the ladder controls."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-hvae-digits"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    given = parser.parse_args()
    stream, steps = Stream(given.seed, backend("numpy")), 10 if given.smoke else 6000
    parts = (load_digits(part).x.reshape(-1, 64) for part in ("train", "test"))
    train_x, test_x = map(stream.backend.asarray, parts)
    for model in (chain(), ladder()):
        ema = train(model, train_x, steps, stream)
        with ema.applied():
            found = hierarchy_bounds(model, test_x, stream.at("evaluate"), samples=16)
        top, low = found["kl"].T
        mean, error = mean_and_error(found["reconstruction"] + top + low)
        bits, spread = bits_per_dim(mean, 64), bits_per_dim(error, 64)
        print(f"{type(model).__name__:10}: -ELBO {bits:.3f} ± {spread:.3f} bits/dim on test, of it")
        print(f"{'':12}the top level {top.mean():.2f} nats, the lower {low.mean():.2f} nats")
    for level in range(len(SIZES)):
        eps = noise(stream.at("figure"), ROW * ROW)
        eps[1 - level] = np.repeat(eps[1 - level][:ROW], ROW, axis=0)  # one for each row
        with ema.applied():
            images = model.sample(eps).reshape(-1, 8, 8, 1)
        path, z = given.out / f"level_{level + 1}.png", f"z{level + 1}"
        image_grid(path, images, f"along a row the noise of {z} alone is drawn anew", ROW)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
