"""A DDPM on digits: its bound term by term, and samples in 50 of its 1000 steps.

    python examples/ddpm_digits.py --out ddpm-digits

The net gives each pixel a logit for each of its 17 levels. It is trained on the bound itself, at
steps drawn evenly over noise levels; then the bound is measured with σ² = β and with β̃ (DDPM-17).
"""

import argparse
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from scratchgen.app.diffusion_plots import strip
from scratchgen.app.plots import image_grid
from scratchgen.core.arrays import backend
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.data.digits import load_digits
from scratchgen.layers.normalisation import AdaptiveGroupNorm
from scratchgen.maths.bounds import bits_per_dim
from scratchgen.maths.forward_process import q_chain
from scratchgen.maths.parameterisations import KWay
from scratchgen.maths.reverse_variance import PosteriorVariance, StepVariance
from scratchgen.maths.schedules import Schedule
from scratchgen.metrics.likelihood import ddpm_bounds, mean_and_error
from scratchgen.models.ddpm import Ddpm, draw_steps, noise_shares
from scratchgen.models.samplers import ddim, trajectory
from scratchgen.models.vdm import low_discrepancy
from scratchgen.nets.unet import UNet
from scratchgen.training.fit import batch_indices
from scratchgen.training.optim import Adam, Ema, warmup_cosine

T, BATCH, DRAWS, SAMPLES, SHOWN = 1000, 64, 32, 64, 4


def train(x: np.ndarray, steps: int, stream: Stream) -> tuple[Ddpm, Ema]:
    """The trained model and the average of its weights."""
    schedule = Schedule.linear(T)
    variance = PosteriorVariance(float(schedule.posterior_variance[2]))
    net = UNet(8, 1, 17, 32, (1, 1), dropout=0.2, inject=AdaptiveGroupNorm, reads_data=True)
    model, shares = Ddpm(net, schedule, KWay(17), variance), noise_shares(schedule)
    params = FlatParameters(model, stream.at("initial"))
    rate = warmup_cosine(2e-3, steps, warmup=min(100, steps // 10))
    adam, ema = Adam(params, rate), Ema(params)
    for step in range(steps):
        chosen = batch_indices(stream.at("batches"), len(x), BATCH, step)
        noise = stream.at("train", step)
        t, weight = draw_steps(low_discrepancy(noise.at("t").uniform((1,)), BATCH), shares)
        _, pullback = model.loss(x[chosen], t, noise.at("eps").normal((BATCH, 8, 8, 1)), noise)
        pullback(0.0 * weight, weight / BATCH, 0.0 * weight)
        adam.step()
        ema.step()
    return model, ema


def print_bound(model: Ddpm, x: np.ndarray, stream: Stream) -> None:
    """-ELBO on the test part in its three terms, for two reverse variances."""
    variances = {"β": StepVariance(), "β̃": model.variance}
    found = ddpm_bounds(model, x, stream, DRAWS, variances)
    print(f"bits/dim, test{'L_T':>10}{'Σ L_t-1':>10}{'L_0':>10}{'-ELBO':>10}")
    for name in variances:
        terms = [found["prior"], found[f"transitions/{name}"], found[f"reconstruction/{name}"]]
        bits = [mean_and_error(bits_per_dim(nats, 64)) for nats in (*terms, sum(terms))]
        print(f"σ² = {name:8} {''.join(f'{b:10.5f}' for b, _ in bits)} ± {bits[-1][1]:.5f}")


def draw(model: Ddpm, x: np.ndarray, out: Path, stream: Stream) -> None:
    """Samples, and the way of a few of them beside the way of data into noise."""
    start = stream.at("start").normal((SAMPLES, 8, 8, 1))
    back = list(trajectory(model.denoise, ddim(), start, model.stops(50)))[::-5]
    image_grid(out / "samples.png", back[0], f"{SAMPLES} samples, DDIM in 50 steps")
    noise = stream.at("noise").normal((T, *x.shape))
    forth = q_chain(x, noise, model.schedule.log_alpha_bar[:, None])[:: T // 10]
    frames = [np.vstack((a, np.nan * a[:1], b[:SHOWN])) for a, b in zip(forth, back, strict=True)]
    title = "above: digits become noise, to the right; below: noise becomes digits, to the left"
    strip(out / "ways.png", frames, [f"t = {t}" for t in range(0, T + 1, T // 10)], title)
    print(f"wrote samples.png and ways.png to {out}")


@threadpool_limits.wrap(limits=1, user_api="blas")  # small products gain nothing from more
def main() -> None:
    """Train, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-ddpm-digits"))
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    given = parser.parse_args()
    stream = Stream(given.seed, backend("numpy"))
    train_x, test_x = (stream.backend.asarray(load_digits(part).x) for part in ("train", "test"))
    model, ema = train(train_x, 3 if given.smoke else given.steps, stream)
    with ema.applied():
        print_bound(model, test_x[:64] if given.smoke else test_x, stream.at("evaluate"))
        draw(model, test_x[:SHOWN], given.out, stream.at("draw"))


if __name__ == "__main__":
    main()
