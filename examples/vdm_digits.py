"""Variational diffusion on digits: a noise schedule that is learned beside one that is fixed.

    python examples/vdm_digits.py --out vdm-digits

In continuous time the bound sees of γ(t) = -log SNR the two ends only (VDM-9). So a learned γ takes
its ends from the bound, and its interior from the variance of the diffusion term: the flatter that
term is over t, the less it matters which t a training step draws. Both models start from the same
weights and see the same digits, times and noise.
"""

import argparse
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from scratchgen.app.diffusion_plots import panels_over_time
from scratchgen.core.arrays import backend
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.data.digits import load_digits
from scratchgen.layers.normalisation import AdaptiveGroupNorm
from scratchgen.maths.bounds import bits_per_dim
from scratchgen.maths.gamma import LearnedGamma, LinearGamma
from scratchgen.maths.parameterisations import KWay
from scratchgen.metrics.likelihood import mean_and_error, vdm_bounds
from scratchgen.models.vdm import LevelDecoder, Vdm, low_discrepancy
from scratchgen.nets.time import Sinusoidal
from scratchgen.nets.unet import UNet
from scratchgen.training.fit import batch_indices
from scratchgen.training.optim import Adam, Ema, warmup_cosine

BATCH, WIDTH, DRAWS, ENDS = 64, 16, 64, (-9.0, 5.0)
GAMMAS = {"fixed": LinearGamma, "learned": LearnedGamma}
TERMS = ("prior", "diffusion", "reconstruction")


def train(gamma, x: np.ndarray, steps: int, stream: Stream) -> tuple[Vdm, Ema]:
    """The trained model and the average of its weights."""
    time = Sinusoidal(WIDTH, scale=1000.0)
    net = UNet(8, 1, 17, WIDTH, (1, 1), dropout=0.1, inject=AdaptiveGroupNorm, time=time)
    model = Vdm(net, gamma, KWay(17), LevelDecoder(17))
    params = FlatParameters(model, stream.at("initial"))
    rate = warmup_cosine(4e-3, steps, warmup=min(100, steps // 10))
    adam, ema = Adam(params, rate), Ema(params)
    share = np.full(BATCH, 1.0 / BATCH, dtype=np.float32)
    for step in range(steps):
        chosen = x[batch_indices(stream.at("batches"), len(x), BATCH, step)]
        noise = stream.at("train", step)
        t = low_discrepancy(noise.at("t").uniform((1,)), BATCH)
        eps, eps0 = (noise.at(name).normal(chosen.shape) for name in ("eps", "eps0"))
        _, pullback = model.loss(chosen, t, eps, eps0, stream=noise)
        pullback(share, share, share)
        adam.step()
        ema.step()
    return model, ema


def measure(model: Vdm, x: np.ndarray, stream: Stream) -> dict:
    """Print -ELBO in its terms and how much the diffusion term varies; its course over time."""
    found = vdm_bounds(model, x, stream, DRAWS)
    (gamma, _), _ = model.gamma(stream.backend.asarray([0.0, 1.0, *found["time"]]))
    print(f"γ from {gamma[0]:.2f} to {gamma[1]:.2f}\n  bits/dim, test part:", end=" ")
    print(*(f"{name} {bits_per_dim(found[name].mean(), 64):.4f}," for name in TERMS), end=" ")
    mean, error = mean_and_error(sum(bits_per_dim(found[name], 64) for name in TERMS))
    print(f"-ELBO {mean:.4f} ± {error:.4f}")
    x, noise = np.concatenate([x] * 4), stream.at("spread")
    t, eps = low_discrepancy(stream.at("t").uniform((1,)), len(x)), noise.normal((2, *x.shape))
    one, at_t = model.loss(x, t, *eps)[0][1].std(), found["over_time"].std()
    print(f"  standard deviation of the diffusion term: {at_t:.1f} nats over t, of its means at t;")
    print(f"  {one:.1f} nats over single draws of digit, t and noise")
    return {"gamma": gamma[2:], **found}


@threadpool_limits.wrap(limits=1, user_api="blas")  # small products gain nothing from more
def main() -> None:
    """Train both, measure both, draw both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-vdm-digits"))
    parser.add_argument("--steps", type=int, default=1200, help="of training, for each of the two")
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    given = parser.parse_args()
    stream = Stream(given.seed, backend("numpy"))
    train_x, test_x = (stream.backend.asarray(load_digits(part).x) for part in ("train", "test"))
    steps, seen, found = (3, 64, {}) if given.smoke else (given.steps, len(test_x), {})
    for name, kind in GAMMAS.items():
        print(name, end=": ", flush=True)
        model, ema = train(kind(*ENDS), train_x, steps, stream)
        with ema.applied():
            found[name] = measure(model, test_x[:seen], stream.at("evaluate"))
    shown = {"γ(t) = -log SNR": "gamma", "diffusion term at t, nats per digit": "over_time"}
    panels = {unit: {k: one[key] for k, one in found.items()} for unit, key in shown.items()}
    figure, t = given.out / "schedules.png", found["fixed"]["time"]
    panels_over_time(figure, t, panels, "t", "fixed and learned noise schedules, test part")
    print(f"wrote {figure}")


if __name__ == "__main__":
    main()
