"""A VAE on digits, and the manifold of a two-dimensional latent.

    python examples/vae_digits.py --out vae-digits

First the demo's model with 16 latent dimensions, measured in bits; then one with two, whose whole
latent space fits on a page: z = (Φ⁻¹(u), Φ⁻¹(v)) over a grid of u and v in (0, 1), decoded (VAE-9).
"""

import argparse
from pathlib import Path
from statistics import NormalDist

import numpy as np
from threadpoolctl import threadpool_limits

from scratchgen.app.plots import latent_grid
from scratchgen.core.arrays import backend
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.data.digits import load_digits
from scratchgen.maths.bounds import bits_per_dim
from scratchgen.maths.likelihoods import DiscretisedLogistic
from scratchgen.metrics.likelihood import mean_and_error, vae_bounds
from scratchgen.models.vae import Vae
from scratchgen.nets.mlp import mlp
from scratchgen.training.fit import batch_indices
from scratchgen.training.optim import Adam, Ema, warmup_cosine

BATCH, WIDTH, GRID = 128, 256, 15


def train(x: np.ndarray, latent: int, steps: int, stream: Stream) -> tuple[Vae, Ema]:
    """The trained model and the average of its weights."""
    vae = Vae(
        mlp([64, WIDTH, WIDTH, 2 * latent], dropout=0.15, reads_data=True),
        mlp([latent, WIDTH, WIDTH, 128], dropout=0.15),
        DiscretisedLogistic(17),
    )
    params = FlatParameters(vae, stream.at("initial"))
    adam = Adam(params, warmup_cosine(4e-3, steps, warmup=min(100, steps // 10)))
    ema = Ema(params)
    share = np.full(BATCH, 1.0 / BATCH, dtype=x.dtype)
    for step in range(steps):
        chosen = batch_indices(stream.at("batches"), len(x), BATCH, step)
        noise = stream.at("train", step)
        eps = noise.at("eps").normal((BATCH, latent))
        _, pullback = vae.loss(x[chosen], eps[None], noise)
        pullback(share, share)
        adam.step()
        ema.step()
    return vae, ema


@threadpool_limits.wrap(limits=1, user_api="blas")  # small products gain nothing from more
def main() -> None:
    """Train both, print the bits, draw the manifold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-vae-digits"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    given = parser.parse_args()
    steps = 10 if given.smoke else 3000

    stream = Stream(given.seed, backend("numpy"))
    train_x, test_x = (
        stream.backend.asarray(load_digits(part).x.reshape(-1, 64)) for part in ("train", "test")
    )
    for latent in (16, 2):
        vae, ema = train(train_x, latent, steps, stream)
        with ema.applied():
            found = vae_bounds(vae, test_x, stream.at("evaluate"), latent, samples=16)
            mean, error = mean_and_error(found["reconstruction"] + found["kl"])
            bits, spread = bits_per_dim(mean, 64), bits_per_dim(error, 64)
            print(f"{latent:2} latent dimensions: -ELBO {bits:.3f} ± {spread:.3f} bits/dim, test")
            if latent == 2:
                u = [(i + 0.5) / GRID for i in range(GRID)]
                quantiles = [NormalDist().inv_cdf(p) for p in u]
                z = np.stack([np.tile(quantiles, GRID), np.repeat(quantiles, GRID)], axis=-1)
                images = vae.decode(stream.backend.asarray(z)).reshape(-1, 8, 8, 1)
                figure = given.out / "manifold.png"
                latent_grid(figure, images, u, ["z0", "z1"], "decoder mean over the latent space")
                print(f"wrote {figure}")


if __name__ == "__main__":
    main()
