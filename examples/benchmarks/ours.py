"""Our side: a step of `scratchgen train`, of sampling, or of a convolution.

    python ours.py WORKLOAD FOLDER THREADS SHARE

SHARE is i/n: of the chains of a sampler, this process has part i of n.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from harness import KERNELS
from threadpoolctl import threadpool_limits
from worker import serve
from workloads import GIVEN, WORKLOADS, Workload, rows_of

from scratchgen.app.recipes import RECIPES
from scratchgen.app.recipes.diffusion_sampling import step_noise
from scratchgen.app.workers import Crew, Sharing, crew
from scratchgen.core.arrays import backend
from scratchgen.core.module import FlatParameters
from scratchgen.core.optional import is_there
from scratchgen.core.streams import Stream
from scratchgen.core.twins import active
from scratchgen.layers.conv import Conv2d
from scratchgen.models.samplers import trajectory

IMAGES = "images.npz"
STEPS = 3
NUDGE = 0.02
# Adam divides a gradient by its own size, so its first steps are as long where the gradient is
# nothing but rounding noise as anywhere else. With a larger tiny such entries stay where they are.
TINY = 1e-3
MIDDLE = 500  # of a thousand reverse steps; there both x̂₀ and the noise count


def build(work: Workload, folder: Path):
    """The recipe that `scratchgen train` would make, with its θ moved a little.

    Some layers start at 0, where most of the gradient vanishes and would prove nothing.
    """
    kind = RECIPES[work.model]
    data = {"data": str(folder / IMAGES)} if work.side else {}
    recipe = kind(kind.config_type(**work.options, **data))
    params, fit = recipe.params, recipe.fit
    params.theta += NUDGE * recipe.stream.at("nudge").normal(params.theta.shape)
    params.changed()
    fit.ema, fit.optimiser.tiny = None, TINY
    return recipe


class Ours:
    """What our contenders have in common: who evaluates the rows, and what BLAS may use."""

    def __init__(self, crew: Crew):
        self.workers = crew.group()
        threadpool_limits(crew.blas_threads, user_api="blas")
        self.options = {
            "dtype": "float32",
            "workers": crew.number,
            "blas_threads": crew.blas_threads,
            "blas_kernels": os.environ.get(KERNELS, "its own choice"),
            "twins": active(),
            "numpy": np.__version__,
        }


class Training(Ours):
    """The step of `scratchgen train`, with the workers that it would take."""

    def __init__(self, work: Workload, folder: Path, threads: int, share: str):
        self.recipe = build(work, folder)
        chosen = crew(self.recipe, Sharing())
        super().__init__(replace(chosen, number=min(threads, chosen.number)))
        self.fit, self.params = self.recipe.fit, self.recipe.params
        self.fit.workers = self.workers
        for average in (self.fit.optimiser.m, self.fit.optimiser.v):
            average.fill(0.0)  # NumPy's zeros take no memory until they are written
        self.step = self.fit.advance

    def result(self) -> dict:
        """The gradient of the first step, and θ after three."""
        update, gradients = self.fit.optimiser.step, []

        def keep_gradient(*arguments) -> None:
            gradients.append(self.params.grad.copy())
            update(*arguments)

        self.fit.optimiser.step = keep_gradient
        for _ in range(STEPS):
            self.fit.advance()
        self.fit.optimiser.step = update
        found = {
            f"the gradient of {name}": gradients[0][p.window].reshape(p.shape)
            for name, p in self.params.table.items()
        }
        return found | {f"θ after {STEPS} steps": self.params.theta.copy()}


class Reverse(Ours):
    """A step of sampling: the net at x_t, then x_{t-1} with fresh noise."""

    def __init__(self, work: Workload, folder: Path, threads: int, share: str):
        super().__init__(Crew(1, threads))
        recipe = build(work, folder)
        self.params, self.sampling = recipe.params, recipe.sampling_type()
        self.denoise, self.stops = recipe.denoiser(self.sampling), recipe.stops(0)
        self.given, self.rows = folder / GIVEN, rows_of(share, recipe.config.batch_size)
        count = self.rows.stop - self.rows.start
        self.shape = (count, *recipe.shape)
        self.stream = Stream(0, recipe.born).at("sample").from_row(self.rows.start)
        self.walk = iter(())

    def step(self) -> None:
        """One step of a chain, or the start of the next one."""
        with self.params.frozen():  # as `Recipe.sample` does
            if next(self.walk, None) is None:
                x = self.stream.at("start").normal(self.shape)
                noise = step_noise(self.stream, self.shape, same=False)
                self.walk = trajectory(self.denoise, self.sampling.step, x, self.stops, noise)
                next(self.walk)
                next(self.walk)

    def result(self) -> dict:
        """ε̂ and x in three steps, from a given start with given noise."""
        with np.load(self.given) as given:
            start, noise = given["start"][self.rows], given["noise"][:, self.rows]
        said = []

        def listening(*arguments):
            said.append(self.denoise(*arguments))
            return said[-1]

        stops = self.stops[MIDDLE : MIDDLE + STEPS + 1]
        walk = trajectory(listening, self.sampling.step, start, stops, lambda i: noise[i])
        seen = {f"x after step {i - 1}": x for i, x in enumerate(walk) if i > 0}
        return seen | {f"ε̂ of step {i}": told.epsilon for i, told in enumerate(said)}


class Convolution(Ours):
    """y = conv(x), and dx and dw from dy: 3×3, as many channels after as before, no bias."""

    def __init__(self, work: Workload, folder: Path, threads: int, share: str):
        super().__init__(Crew(threads, 1) if is_there("scratchgen.fast") else Crew(1, threads))
        self.layer, self.params, self.x, self.dy = convolution(work)
        self.parts: dict[int, tuple] = {}

    def step(self) -> None:
        """Forward and backward."""
        self.params.grad[...] = 0.0
        self.params.changed()  # nothing derived from the kernel may be left from the last step
        self.workers.run(self.params, self.shard, len(self.x))

    def shard(self, rows: slice) -> dict:
        """The same for some examples."""
        y, pullback = self.layer(self.x[rows])
        self.parts[rows.start] = y, pullback(self.dy[rows])
        return {}

    def result(self) -> dict:
        """y, dx and dw."""
        self.step()
        y, dx = (np.concatenate(parts) for parts in zip(*self._ordered(), strict=True))
        return {"y": y, "dx": dx, "dw": self.params.grad.reshape(self.layer.weight.shape).copy()}

    def _ordered(self) -> list[tuple]:
        return [self.parts[first] for first in sorted(self.parts)]


KINDS = {"training": Training, "reverse": Reverse, "convolution": Convolution}


def convolution(work: Workload):
    """The layer, its parameters, x and dy."""
    shape = work.options["shape"]
    stream = Stream(0, backend("numpy"))
    layer = Conv2d(shape[-1], shape[-1], bias=False)
    params = FlatParameters(layer, stream)
    return layer, params, stream.at("x").normal(shape), stream.at("dy").normal(shape)


if __name__ == "__main__":
    name, folder, threads, share = sys.argv[1:]
    work = WORKLOADS[name]
    serve(KINDS[work.kind](work, Path(folder), int(threads), share))
