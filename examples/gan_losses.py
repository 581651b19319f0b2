"""Why a generator raises log D instead of lowering log(1 - D): three losses, drawn and played.

    python examples/gan_losses.py --out gan-losses

Their costs and slopes over D(G(z)) (GAN-4, GAN-5, GAN-14); then games from 8 standard deviations
away, where gradient descent shows the stall and Adam, which scales small gradients up, hides it.
"""

import argparse
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from scratchgen.app.gan_plots import approach, over_discriminator
from scratchgen.core.arrays import backend
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.layers.activations import leaky_relu, sigmoid
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.layers.resampling import reshaped
from scratchgen.models.gan import Gan, KlDivergence, Minimax, NonSaturating
from scratchgen.training.optim import Adam

BATCH, K, RATE, START, NEAR = 64, 5, 0.05, 8.0, 0.5
LOSSES = {
    "minimax, log(1 − D)": Minimax(),
    "non-saturating, −log D": NonSaturating(),
    "KL, −a": KlDivergence(),
}


def curves(loss, a: np.ndarray) -> list[np.ndarray]:
    """The generator's cost of logits a, its slope in D = sigmoid(a), and its slope in a."""
    one, (cost, pullback), (_, d_pullback) = np.ones_like(a), loss.generator(a), sigmoid(a)
    return [cost, pullback(one) / d_pullback(one), pullback(one)]


def descend(params: FlatParameters) -> None:
    """θ ← θ - lr g: a small gradient is a small step."""
    params.theta = params.theta - RATE * params.grad
    params.grad[...] = 0.0


OPTIMISERS = {
    "gradient descent": lambda params: lambda: descend(params),
    "Adam": lambda params: Adam(params, RATE, beta1=0.5).step,
}


def play(loss, optimiser, steps: int, stream: Stream):
    """G(z) = spread · z + mean in training: (steps, 3), of |mean|, |spread| and E[D(G(z))]."""
    generator = Linear(1, 1)
    discriminator = Sequential(Linear(1, 32), leaky_relu, Linear(32, 1), reshaped())
    params = FlatParameters(generator, stream.at("g"))
    params.theta = np.asarray([1.0, START])
    gan = Gan(generator, discriminator, FlatParameters(discriminator, stream.at("d")), loss)
    step_generator, adam = optimiser(params), Adam(gan.discriminator_params, 1e-2, beta1=0.5)
    share, course = np.full(BATCH, 1.0 / BATCH), np.empty((steps, 3))
    for step, noise in enumerate(stream.at("noise").normal((steps, 2 * K + 1, BATCH, 1))):
        for x, z in zip(noise[:K], noise[K:-1], strict=True):
            _, pullback = gan.discriminator_loss(x, gan.generate(z))
            pullback(share, share)
            adam.step()
        d, _ = sigmoid(discriminator(gan.generate(noise[-1]))[0])
        course[step] = abs(params.theta[1]), abs(params.theta[0]), np.mean(d)
        _, pullback = gan.generator_loss(noise[-1])
        pullback(share)
        step_generator()
    return course


@threadpool_limits.wrap(limits=1, user_api="blas")  # small products gain nothing from more
def main() -> None:
    """Draw the losses; play every game on the same noise, and print when the fakes arrive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-gan-losses"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    given = parser.parse_args()

    a = np.linspace(-7.0, 7.0, 561)
    d, drawn = sigmoid(a)[0], {name: curves(loss, a) for name, loss in LOSSES.items()}
    over_discriminator(given.out / "costs.png", d, drawn, "Where D ≈ 0, minimax is flat in a")
    runs, steps = (1, 5) if given.smoke else (5, 400)
    streams = [Stream(given.seed, backend("numpy", "float64")).at(run) for run in range(runs)]
    games = {column: {} for column in OPTIMISERS}
    print(f"steps of {steps} until the means are within {NEAR:g} standard deviations: median")
    for column, made in OPTIMISERS.items():
        for name, loss in LOSSES.items():
            found = games[column][name] = np.stack([play(loss, made, steps, s) for s in streams])
            near = [np.argmax(m < NEAR) if min(m) < NEAR else np.inf for m in found[..., 0]]
            print(f"{column:17}{name:24}{np.median(near):5.0f}".replace("  inf", f"not in {steps}"))
    approach(given.out / "stall.png", games, f"Data N(0, 1), fakes from {START:g} away")
    print(f"wrote {given.out}/costs.png and stall.png")


if __name__ == "__main__":
    main()
