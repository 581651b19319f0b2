"""How a density becomes noise: q(x_t) over t, exact and from simulated paths.

    python examples/forward_densities.py --out forward-densities

The data are three normals on the line. Noised, they stay a mixture of normals, so q(x_t) is known
at every t (DDPM-4). Beside it stand histograms of paths x_0, x_1, ..., x_T, each drawn by adding
noise step after step (DDPM-2).
"""

import argparse
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from scratchgen.app.diffusion_plots import heat_maps
from scratchgen.core.arrays import backend
from scratchgen.core.streams import Stream
from scratchgen.maths.densities import Mixture
from scratchgen.maths.forward_process import q_chain
from scratchgen.maths.schedules import Schedule

STEPS, SHARES = 100, [0.35, 0.35, 0.3]
MEANS, VARIANCES = [[-2.0], [0.0], [1.7]], [[[0.06]], [[0.04]], [[0.1]]]
EDGES = np.linspace(-3.5, 3.5, 141)


@threadpool_limits.wrap(limits=1, user_api="blas")  # small products gain nothing from more
def main() -> None:
    """Draw both pictures and print how far they are apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/example-forward-densities"))
    parser.add_argument("--smoke", action="store_true", help="a few paths only")
    given = parser.parse_args()
    n = 500 if given.smoke else 50_000

    born = backend("numpy", "float64")
    stream, levels = Stream(given.seed, born), Schedule.linear(STEPS).log_alpha_bar
    data = Mixture(born, SHARES, MEANS, VARIANCES)
    x, width = 0.5 * (EDGES[1:] + EDGES[:-1]), EDGES[1] - EDGES[0]
    exact = np.exp([data.noised(level).log_prob(x[:, None]) for level in levels])
    noise = np.stack([stream.at("noise", t).normal((n, 1)) for t in range(STEPS)])
    paths = q_chain(data.sample(n, stream.at("data")), noise, levels[:, None])
    counted = np.stack([np.histogram(x_t, EDGES)[0] / (n * width) for x_t in paths])

    apart = 0.5 * width * np.abs(counted - exact).sum(axis=1)
    chance = width * np.sqrt(exact / (2.0 * np.pi * n * width)).sum(axis=1)
    print(f"{n} paths of {STEPS} steps; total variation lies between 0 and 1")
    print(f"{'t':>5}{'ᾱ':>9}{'total variation':>18}{'expected by chance':>21}")
    for t in (0, 5, 20, 50, STEPS):
        print(f"{t:5}{np.exp(levels[t]):9.5f}{apart[t]:18.4f}{chance[t]:21.4f}")

    figure, panels = given.out / "densities.png", {"exact": exact.T, f"{n} paths": counted.T}
    labels = ("t, steps", "x_t", "density, per unit of x_t")
    heat_maps(figure, np.arange(STEPS + 1), x, panels, labels, "q(x_t): one column, one step")
    print(f"wrote {figure}")


if __name__ == "__main__":
    main()
