"""A WGAN with gradient penalty on eight normals in a ring: does it find all of them?

    python examples/wgan_gp_ring.py --out wgan-gp-ring

Two steps of the critic for each of the generator. The critic's slope is kept near 1 by a penalty
whose gradient is the pullback of a pushforward (GAN-12): no network is differentiated twice.
`train gan --data ring8 --loss wgan-gp --steps 5000` takes the same steps on 8,000 fixed points.
"""

import argparse
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from scratchgen.app.plots import point_cloud
from scratchgen.core.arrays import backend
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.layers.activations import leaky_relu, relu
from scratchgen.layers.combinators import Sequential
from scratchgen.layers.resampling import reshaped
from scratchgen.maths.planar import eight_gaussians
from scratchgen.metrics.coverage import mode_coverage
from scratchgen.models.gan import Gan, Wasserstein, gradient_penalty
from scratchgen.nets.mlp import mlp
from scratchgen.training.optim import Adam, Ema, warmup_cosine

BATCH, LATENT, WIDTH, CRITIC_STEPS, RATE, PENALTY = 128, 2, 128, 2, 2e-3, 0.1


def train(draw, steps: int, stream: Stream) -> tuple[Gan, Ema]:
    """Play so many rounds against data that `draw` gives: stream -> (BATCH, 2).

    Returns:
        Both sides, and the average of the generator's weights.
    """
    generator = mlp([LATENT, WIDTH, WIDTH, WIDTH, 2], relu)
    critic = Sequential(*mlp([2, WIDTH, WIDTH, WIDTH, 1], leaky_relu).layers, reshaped())
    params = FlatParameters(generator, stream.at("initial"))
    critic_params = FlatParameters(critic, stream.at("discriminator"))
    gan = Gan(generator, critic, critic_params, Wasserstein())
    rate, critic_rate = (warmup_cosine(RATE, n) for n in (steps, CRITIC_STEPS * steps))
    adam = Adam(params, rate, beta1=0.5, beta2=0.9)
    critic_adam = Adam(critic_params, critic_rate, beta1=0.5, beta2=0.9)
    ema, share = Ema(params), np.full(BATCH, 1.0 / BATCH, dtype=params.theta.dtype)
    for step in range(steps):
        for j in range(CRITIC_STEPS):
            noise = stream.at("opponent", CRITIC_STEPS * step + j)
            x, fake = draw(noise.at("x")), gan.generate(noise.at("z").normal((BATCH, LATENT)))
            _, pullback = gan.discriminator_loss(x, fake)
            pullback(share, share)
            u = noise.at("u").uniform((BATCH,))
            _, pullback = gradient_penalty(critic, critic_params, x, fake, u)
            pullback(PENALTY * share)
            critic_adam.step()
        z = stream.at("train", step).at("z").normal((BATCH, LATENT))
        _, pullback = gan.generator_loss(z)
        pullback(share)
        adam.step()
        ema.step()
    return gan, ema


@threadpool_limits.wrap(limits=1, user_api="blas")  # small products gain nothing from more
def main() -> None:
    """Train, count the modes that the samples show, draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-wgan-gp-ring"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    given = parser.parse_args()

    stream = Stream(given.seed, backend("numpy"))
    ring = eight_gaussians(backend("numpy", "float64"))
    steps = 10 if given.smoke else 5000
    gan, ema = train(lambda noise: ring.sample(BATCH, noise).astype(np.float32), steps, stream)
    with ema.applied():
        x = gan.generate(stream.at("sample").normal((2500, LATENT)))
    found = mode_coverage(x, ring.means, deviation=0.02**0.5)
    print(f"modes covered: {found.covered} of {found.modes}")
    print(f"high-quality samples, within 3 standard deviations: {found.high_quality:.3f}")
    spread = found.relative_spread
    print(f"spread of those of a mode, over its own: {spread:.2f} (of data 0.97)")
    path = given.out / "samples.png"
    point_cloud(path, x, "WGAN with gradient penalty", ring.sample(2500, stream.at("data")))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
