"""A DCGAN on digits: what a small classifier makes of its samples, and ways from one to another.

    python examples/dcgan_digits.py --out dcgan-digits

Both nets are built by the guidelines of GAN-8: strides instead of pooling and of upsampling, no
fully connected layer, batch norm within (8×8 pixels leave D no layer for it), ReLU in G and tanh at
its end, leaky ReLU in D. G maximises log D (GAN-5). `train gan --steps 1500` takes the same steps.
"""

import argparse
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from scratchgen.app.plots import image_grid
from scratchgen.app.recipes.classifier import ClassifierConfig, ClassifierRecipe
from scratchgen.app.recipes.gan_report import shown
from scratchgen.core.arrays import backend
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.data.digits import load_digits
from scratchgen.layers.normalisation import tracking
from scratchgen.metrics.coverage import class_opinions
from scratchgen.models.gan import Gan, NonSaturating, interpolate_normal
from scratchgen.nets.convnet import dcgan_discriminator, dcgan_generator
from scratchgen.training.fit import batch_indices
from scratchgen.training.optim import Adam, Ema, warmup_cosine

SHAPE, BATCH, LATENT, RATE, WAYS = (8, 8, 1), 128, 64, 2e-4, 4


def train(x: np.ndarray, steps: int, stream: Stream) -> tuple[Gan, Ema]:
    """Both sides of the game, and the average of the generator's weights."""
    generator, discriminator = dcgan_generator(SHAPE, LATENT), dcgan_discriminator(SHAPE)
    params = FlatParameters(generator, stream.at("initial"))
    d_params = FlatParameters(discriminator, stream.at("discriminator"))
    gan = Gan(generator, discriminator, d_params, NonSaturating())
    rate = warmup_cosine(RATE, steps)
    adam, d_adam = (Adam(p, rate, beta1=0.5, beta2=0.9) for p in (params, d_params))
    ema, share = Ema(params), np.full(BATCH, 1.0 / BATCH, dtype=x.dtype)
    for step in range(steps):
        noise = stream.at("opponent", step)
        chosen = batch_indices(stream.at("batches"), len(x), BATCH, step)
        with tracking():  # batch norm's running statistics move here, once a round
            fake = gan.generate(noise.at("z").normal((BATCH, LATENT)), noise)
            _, pullback = gan.discriminator_loss(x[chosen], fake, noise)
        pullback(share, share)
        d_adam.step()
        noise = stream.at("train", step)
        _, pullback = gan.generator_loss(noise.at("z").normal((BATCH, LATENT)), noise)
        pullback(share)
        adam.step()
        ema.step()
    return gan, ema


@threadpool_limits.wrap(limits=1, user_api="blas")  # small products gain nothing from more
def main() -> None:
    """Train, let a classifier judge the samples, draw some of them and the ways between others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-dcgan-digits"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    given = parser.parse_args()

    stream = Stream(given.seed, backend("numpy"))
    x = stream.backend.asarray(load_digits("train").x)
    gan, ema = train(x, 5 if given.smoke else 1500, stream)
    judge = ClassifierRecipe(ClassifierConfig())
    judge.fit.until(5 if given.smoke else judge.config.steps, quiet=True)
    judge.params.theta = judge.ema.average

    ends = (stream.at("way", end).normal((WAYS, LATENT)) for end in ("first", "last"))
    way = np.swapaxes(interpolate_normal(*ends, 10), 0, 1).reshape(-1, LATENT)
    with ema.applied():
        samples = gan.generate(stream.at("sample").normal((2500, LATENT)))
        between = gan.generate(way)
    images = (samples, load_digits("test").x)
    (sure, shares), (usual, real) = (class_opinions(judge.opinions(each)) for each in images)
    present = sum(map(shown, shares, real))
    print(f"a classifier's mean confidence: {sure:.3f} on 2500 samples, {usual:.3f} on test digits")
    print(f"classes present: {present} of {len(real)}, the rarest in {min(shares):.3f} of samples")
    image_grid(given.out / "samples.png", samples[:100], "100 samples of a DCGAN")
    title = "one sample turns into another, on the arc between their z"
    image_grid(given.out / "ways.png", between, title, columns=10)
    print(f"wrote samples.png and ways.png to {given.out}")


if __name__ == "__main__":
    main()
