"""A DDPM of two moons, whose score is known: what it learned beside the truth.

    python examples/ddpm_densities.py --out ddpm-densities

Noised moons keep an exact density, so the net's ε̂ can be held against the best that can be said of
the noise, E[ε | x_t] = -√(1-ᾱ) ∇ log q(x_t) (SCORE-4).
"""

import argparse
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from scratchgen.app.diffusion_plots import score_fields, strip
from scratchgen.core.arrays import backend
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.layers.activations import relu
from scratchgen.maths.likelihoods import Normal
from scratchgen.maths.parameterisations import Velocity
from scratchgen.maths.planar import moons
from scratchgen.maths.reverse_variance import PosteriorVariance
from scratchgen.maths.schedules import Schedule
from scratchgen.maths.score import eps_from_score, score_from_eps
from scratchgen.metrics.distances import sliced_wasserstein
from scratchgen.models.ddpm import Ddpm
from scratchgen.models.samplers import ancestral, ddim, generate
from scratchgen.nets.mlp import TimedMlp
from scratchgen.training.optim import Adam, warmup_cosine

STEPS, BATCH, WIDTH, N, SHOWN = 100, 256, 128, 2000, (5, 20, 50)


def train(data, steps: int, stream: Stream) -> Ddpm:
    """Algorithm 1: the squared error of the noise, at uniform t."""
    schedule, net = Schedule.cosine(STEPS), TimedMlp([2, *[WIDTH] * 3, 2], 32, activation=relu)
    variance = PosteriorVariance(float(schedule.posterior_variance[2]))
    model = Ddpm(net, schedule, Velocity(), variance, Normal())
    adam = Adam(FlatParameters(model, stream.at("initial")), warmup_cosine(4e-3, steps))
    share = np.full(BATCH, 1.0 / BATCH, dtype=np.float32)
    for step in range(steps):
        noise = stream.at("train", step)
        x, eps = data.sample(BATCH, noise.at("data")), noise.at("eps").normal((BATCH, 2))
        t = 1 + (STEPS * noise.at("t").uniform((BATCH,))).astype(np.int64)
        _, pullback = model.loss(x, t, eps)
        pullback(share, 0.0 * share, 0.0 * share)
        adam.step()
    return model


def compare(model: Ddpm, data, figure: Path, stream: Stream) -> None:
    """Print how far ε̂ and ε are from E[ε | x_t] at draws of x_t; draw ε̂ and it as scores."""
    print(f"squares summed over D = 2, in variances of the noise, means of {N} draws of x_t")
    print(f"{'t':>5}{'ᾱ':>9}{'(ε̂ - E[ε|x_t])²':>21}{'(ε - E[ε|x_t])²':>19}")
    stops, line = model.stops(STEPS)[::-1], np.linspace(-2.3, 2.3, 80)
    grid = stream.backend.asarray(np.stack(np.meshgrid(line, line), axis=-1))
    shown = []
    for t in (1, 2, *SHOWN, 80):
        now, before, noised = stops[t], stops[t - 1], data.noised(stops[t].level)
        x_t, level = noised.sample(N, stream.at("x_t", t)), now.level_beside(grid)
        best, _ = eps_from_score(noised.score(x_t), level)
        off = 2.0 * np.mean((model.denoise(x_t, now, before).epsilon - best) ** 2)
        least = 2.0 - 2.0 * np.mean(best**2)  # as ε - E[ε | x_t] and E[ε | x_t] are uncorrelated
        print(f"{t:5}{np.exp(now.level):9.5f}{off:20.4f}{least:19.4f}")
        if t in SHOWN:
            said = model.denoise(grid.reshape(-1, 2), now, before).epsilon.reshape(grid.shape)
            learned, _ = score_from_eps(said, level)
            shown.append((noised.score(grid), learned, np.exp(noised.log_prob(grid))))
    exact, learned, q = zip(*shown, strict=True)
    fields, labels = {"exact": exact, "learned": learned}, [f"t = {t}" for t in SHOWN]
    score_fields(figure, grid, fields, q, labels, "score ∇ log q(x_t), its length |s| as √|s|")


@threadpool_limits.wrap(limits=1, user_api="blas")  # small products gain nothing from more
def main() -> None:
    """Train, and compare with the truth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-ddpm-densities"))
    parser.add_argument("--smoke", action="store_true", help="a few steps only")
    given = parser.parse_args()
    stream, data = Stream(given.seed, backend("numpy")), moons(backend("numpy"))
    model = train(data, 20 if given.smoke else 4000, stream)
    compare(model, data, given.out / "scores.png", stream.at("compare"))
    clouds, fresh = {"data": data.sample(N, stream.at("seen"))}, data.sample(N, stream.at("fresh"))
    noise = lambda i: stream.at("sample", i).normal((N, 2))
    for name, step, count in (("DDIM", ddim(), 20), ("ancestral", ancestral, STEPS)):
        stops = model.stops(count)
        clouds[f"{name}, {count} steps"] = generate(model.denoise, step, noise(-1), stops, noise)
    for name, x in clouds.items():
        apart = sliced_wasserstein(x, fresh, stream.at("slices"))
        print(f"{name:20} log q {data.log_prob(x).mean():.3f} nats, distance to data {apart:.4f}")
    strip(given.out / "samples.png", list(clouds.values()), list(clouds), f"{N} points each")
    print(f"wrote scores.png and samples.png to {given.out}")


if __name__ == "__main__":
    main()
