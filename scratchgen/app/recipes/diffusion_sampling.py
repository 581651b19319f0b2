"""The options of `sample` for a diffusion, and the step and the noise they choose."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scratchgen.app.recipes.base import Sampling
from scratchgen.app.recipes.config import option, require_not_negative
from scratchgen.core.streams import Stream
from scratchgen.models.samplers import Step, ancestral, ddim, flow_heun, reverse_sde, shared


@dataclass(frozen=True)
class DiffusionSampling(Sampling):
    """The options of `sample` for a diffusion.

    Raises:
        ValueError: a value is outside its range.
    """

    sampler: str = option(
        "ancestral",
        "ancestral, ddim, ode (Heun's rule on the probability flow) or sde",
        ("ancestral", "ddim", "ode", "sde"),
    )
    steps: int = option(0, "steps from noise to data; 0 takes T, or 250 in continuous time")
    eta: float = option(0.0, "noise of ddim, from 0 (none) to 1 (that of ancestral)")
    step_temperature: float = option(1.0, "scale of the noise of every step")
    clip: bool = option(False, "keep every prediction of the data in [-1, 1], where kway always is")
    shared_noise: bool = option(
        False, "give all samples the same noise, but not the same start", pictures=True
    )
    trajectory: bool = option(
        False, "keep the way too: a strip and a moving picture", pictures=True
    )

    def __post_init__(self):
        super().__post_init__()
        require_not_negative(self, "eta", "step_temperature")
        if self.steps < 0:
            raise ValueError(f"--steps must be at least 0, got {self.steps}")
        if self.eta and self.sampler != "ddim":
            raise ValueError("--eta is for --sampler ddim; leave it out")
        still = self.sampler == "ode" or (self.sampler == "ddim" and self.eta == 0.0)
        if still and (self.shared_noise or self.step_temperature != 1.0):
            raise ValueError(
                f"--sampler {self.sampler} adds no noise"
                + (" without --eta" if self.sampler == "ddim" else "")
                + "; leave out --shared-noise and --step-temperature"
            )

    @property
    def step(self) -> Step:
        """The step of that name."""
        known: dict[str, Callable[[], Step]] = {
            "ancestral": lambda: ancestral,
            "ddim": lambda: ddim(self.eta),
            "ode": lambda: flow_heun,
            "sde": lambda: reverse_sde,
        }
        return known[self.sampler]()


def in_pieces(draw: Callable[[int], np.ndarray], count: int, shape, dtype, processes: int):
    """draw(0), ..., draw(count - 1), arrays of one shape, as one array (count, *shape).

    Args:
        draw: needs nothing that another piece does.
        count, shape, dtype: of the pieces.
        processes: that share them; more than 1 takes scratchgen/fast.
    """
    if processes == 1:
        return np.stack([draw(k) for k in range(count)])
    from scratchgen.fast.processes import shared_array, side_by_side

    found = shared_array((count, *shape), dtype)
    side_by_side(lambda k: np.copyto(found[k], draw(k)), count, processes)
    return found


def step_noise(stream: Stream, shape: tuple[int, ...], same: bool) -> Callable:
    """The noise of step i for a batch; if the same for all, that of the very first example."""
    if not same:
        return lambda i: stream.at("step", i).normal(shape)
    first = stream.from_row(-stream.first_row)
    return shared(lambda i: first.at("step", i).normal((1, *shape[1:])), shape[0])
