"""`train ddpm`: denoising diffusion in T steps, on images or on points of the plane."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from scratchgen.app import diffusion_plots, plots, tables
from scratchgen.app.recipes.config import option, require_at_least
from scratchgen.app.recipes.diffusion import (
    DiffusionConfig,
    DiffusionRecipe,
    without_a_model,
)
from scratchgen.app.recipes.diffusion_sampling import DiffusionSampling
from scratchgen.core.streams import Stream
from scratchgen.maths.bounds import bits_per_dim, elbo
from scratchgen.maths.diffusion_bound import variance_constant
from scratchgen.maths.likelihoods import DiscretisedNormal, Normal
from scratchgen.maths.parameterisations import KWay
from scratchgen.maths.reverse_variance import (
    LearnedVariance,
    OptimalVariance,
    PosteriorVariance,
    ReverseVariance,
    StepVariance,
)
from scratchgen.maths.schedules import Schedule
from scratchgen.metrics.likelihood import ddpm_bounds, in_batches, mean_and_error
from scratchgen.models.ddpm import Ddpm, draw_steps, noise_shares
from scratchgen.models.flow import exact_divergence, flow_log_density
from scratchgen.models.samplers import Denoiser, Stop, clipped
from scratchgen.models.vdm import low_discrepancy
from scratchgen.training.progress import say

SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "linear": Schedule.linear,
    "cosine": Schedule.cosine,
}
FIXED, LEARNED, OPTIMAL, OWN = ("beta", "posterior"), "learned", "optimal", "own"
TIMES: dict[str, Callable[[Schedule], np.ndarray]] = {
    "uniform": lambda schedule: np.ones(schedule.steps),
    "noise": noise_shares,
}
OBJECTIVES = ("simple", "bound", "hybrid")
BOUND_IN_HYBRID = 1e-3  # the weight of the whole bound, T terms, beside one squared error
FLOW_STEPS = 250
PILOT, PILOT_DRAWS = 256, 64  # training examples, and steps of each, that set the optimal variance


@dataclass(frozen=True)
class DdpmConfig(DiffusionConfig):
    """The options of a DDPM run.

    Raises:
        ValueError: a value is outside its range.
    """

    timesteps: int = option(1000, "T, the steps from data to noise")
    schedule: str = option("linear", "of the noise", tuple(SCHEDULES))
    objective: str = option(
        "simple",
        "simple (squared error of the noise), bound (the terms of -ELBO) or hybrid (simple for the "
        "mean, bound for a learned variance)",
        OBJECTIVES,
    )
    times: str = option(
        "uniform",
        "how training draws t: uniform (as Algorithm 1 does), or noise (evenly over log SNR, with "
        "the weight that makes up for it; best for the objective bound)",
        tuple(TIMES),
    )
    variance: str = option(
        "posterior", "of the reverse step; learned takes outputs of the net", (*FIXED, LEARNED)
    )

    def __post_init__(self):
        super().__post_init__()
        require_at_least(self, 2, "timesteps")
        if self.objective == "simple" and self.variance == LEARNED:
            raise ValueError("--objective simple teaches no variance; take hybrid or bound")
        if self.objective == "hybrid" and self.variance != LEARNED:
            raise ValueError("--objective hybrid is for --variance learned; take simple or bound")


@dataclass(frozen=True)
class DdpmSampling(DiffusionSampling):
    """The options of `sample` for a DDPM.

    Raises:
        ValueError: a value is outside its range.
    """

    variance: str = option(
        OWN, "of ancestral steps; own is what was trained", (OWN, *FIXED, OPTIMAL, LEARNED)
    )

    def __post_init__(self):
        super().__post_init__()
        if self.variance != OWN and self.sampler != "ancestral":
            raise ValueError("--variance is for --sampler ancestral; leave it out")


def fixed_variances(schedule: Schedule) -> dict[str, ReverseVariance]:
    """The variances that need nothing but a schedule; β̃_2 stands for β̃_1."""
    first = float(schedule.posterior_variance[2])
    return {
        "beta": StepVariance(),
        "posterior": PosteriorVariance(first),
        LEARNED: LearnedVariance(first),
    }


class DdpmRecipe(DiffusionRecipe):
    """A configured DDPM."""

    name, config_type, sampling_type = "ddpm", DdpmConfig, DdpmSampling
    config: DdpmConfig
    model: Ddpm
    draws = 100

    def build(self) -> Ddpm:
        """A net, a schedule, what the net's output means, and the reverse variance."""
        config, way = self.config, self.parameterisation
        schedule = SCHEDULES[config.schedule](config.timesteps)
        levels, likelihood = self.fitted.levels, None
        if not isinstance(way, KWay):
            likelihood = Normal() if levels is None else DiscretisedNormal(levels)
        variance = fixed_variances(schedule)[config.variance]
        return Ddpm(self.net(variance.outputs), schedule, way, variance, likelihood)

    def loss(self, step: int, rows: slice) -> dict:
        """Algorithm 1, with times that are spread evenly over a batch."""
        config = self.config
        x, noise = self.batch(step, rows)
        u = self.stream.at("train", step, "time").uniform((1,))
        place = low_discrepancy(u, config.batch_size, rows)
        t, weight = draw_steps(place, self._shares)
        (simple, bound), pullback = self.model.loss(x, t, noise.at("eps").normal(x.shape), noise)
        none, each = 0.0 * simple, weight / config.batch_size
        if config.objective == "simple":
            pullback(each / config.timesteps, none, none)
        elif config.objective == "bound":
            pullback(none, each, none)
        else:
            pullback(each / config.timesteps, none, BOUND_IN_HYBRID * each)
        mean_error = weight * simple / config.timesteps
        return {"simple": mean_error, "bound": self.model.prior(x) + weight * bound}

    @cached_property
    def _shares(self) -> np.ndarray:
        """How training draws steps: p_t of t = 1..T, up to a factor."""
        return TIMES[self.config.times](self.model.schedule)

    def columns(self, row: dict[str, float]) -> dict[str, float]:
        """The squared error per dimension, and -ELBO, of a random term, in nats and bits."""
        return {
            "simple_per_dim": row["simple"] / self.dims,
            "negative_elbo_nats": row["bound"],
            "bits_per_dim": bits_per_dim(row["bound"], self.dims),
        }

    def training_figures(self, folder: Path) -> None:
        """The loss curve of what is trained: the squared error, or else the bound."""
        history = self.fit.history
        if self.config.objective == "bound" or not history:
            super().training_figures(folder)
            return
        curve = {"‖ε - ε̂‖²/D on training batches": np.asarray(history["simple"]) / self.dims}
        path = folder / "figures" / "loss.png"
        plots.loss_curves(path, history["step"], curve, "variances of the noise", {})

    def describe(self, row: dict[str, float]) -> str:
        """Both losses; the bound's, by random terms, is a rough one."""
        found = self.columns(row)
        error, bits = found["simple_per_dim"], found["bits_per_dim"]
        return f"‖ε-ε̂‖²/D {error:.3f}, -ELBO by random terms {bits:.3f} bits/dim"

    def evaluate(self, part, draws: int, seed: int = 0) -> dict:
        """The bound term by term with every variance this net can have, and its yardsticks."""
        times = min(draws + 1, self.config.timesteps)
        say(f"looking at {len(part)} examples, each at {times} steps")
        stream, schedule = Stream(seed, self.born).at("evaluate"), self.model.schedule
        choices = self.variances()
        found = ddpm_bounds(self.model, self.examples(part), stream, draws, choices)
        by_variance = {name: self._terms(name, found, choices[name]) for name in choices}
        own = by_variance[self.config.variance]
        seen = found["count"] > 0.0
        names = {"simple": "simple", "error": "error"}
        names |= {f"term_{name}_nats": f"term/{name}" for name in choices}
        course: dict[str, list] = {"count": found["count"][1:].astype(int).tolist()}
        for column, name in names.items():  # None where no example was looked at
            pairs = zip(found[name][1:].tolist(), seen[1:], strict=True)
            course[column] = [value if looked else None for value, looked in pairs]
        return {
            "bits_per_dim": own["bits_per_dim"],
            "bits_per_dim_standard_error": own["bits_per_dim_standard_error"],
            "elbo_nats": -own["negative_elbo_nats"],
            "steps_per_example": min(draws, schedule.steps - 1) + 1,
            "by_variance": by_variance,
            **(self._flow_density(part) if self.fitted.levels is None else {}),
            "course": {"t": list(range(1, schedule.steps + 1)), **course},
            "baselines": self.baselines(part),
        }

    def _flow_density(self, part) -> dict[str, float]:
        """-log p of the probability flow from N(0, I), in bits per dimension."""
        stops = self.model.stops(min(FLOW_STEPS, self.config.timesteps))
        with self.params.frozen():
            nats = in_batches(
                lambda x: flow_log_density(self.model.flow, x, stops, exact_divergence)[0],
                self.examples(part),
                self.at_once,
            )
        mean, error = mean_and_error(-nats.astype(np.float64))
        return {
            "flow_bits_per_dim": bits_per_dim(mean, self.dims),
            "flow_bits_per_dim_standard_error": bits_per_dim(error, self.dims),
            "flow_steps": len(stops) - 1,
        }

    def _terms(self, name: str, found: dict, variance: ReverseVariance) -> dict[str, float]:
        """One row of the table: -ELBO, its three terms, and what of it is Σ C_t."""
        terms = (found["prior"], found[f"transitions/{name}"], found[f"reconstruction/{name}"])
        mean, error = mean_and_error(-elbo(*terms))
        prior, transitions, reconstruction = (float(term.mean()) for term in terms)
        row = {
            "bits_per_dim": bits_per_dim(mean, self.dims),
            "bits_per_dim_standard_error": bits_per_dim(error, self.dims),
            "negative_elbo_nats": mean,
            "prior_nats": prior,
            "transitions_nats": transitions,
            "reconstruction_nats": reconstruction,
        }
        if variance.outputs == 0:
            row["variance_constants_nats"] = self._constants(variance)
        return row

    def _constants(self, variance: ReverseVariance) -> float:
        """Σ_{t ≥ 2} C_t in nats: what a variance other than β̃ costs whatever the net says."""
        table = self.model.schedule.log_alpha_bar
        now, before = table[2:], table[1:-1]
        logvar, _ = variance.logvar(None, np.zeros((len(now), 1)), now, before)
        return float(variance_constant(np.exp(logvar[:, 0]), now, before, self.dims).sum())

    def variances(self) -> dict[str, ReverseVariance]:
        """Every variance this net can be used with; the optimal one is set by training examples."""
        schedule = self.model.schedule
        x = self.examples(self.fitted.take(slice(PILOT)))
        pilot = ddpm_bounds(self.model, x, Stream(0, self.born).at("pilot"), PILOT_DRAWS, {})
        seen = pilot["count"] > 0.0
        t = np.arange(schedule.steps + 1)
        error = np.interp(t, t[seen], pilot["error"][seen]) / self.dims
        known = fixed_variances(schedule)
        names = [LEARNED, *FIXED] if self.config.variance == LEARNED else FIXED
        return {
            **{name: known[name] for name in names},
            OPTIMAL: OptimalVariance(schedule.log_alpha_bar, error),
        }

    @staticmethod
    def report(result: dict) -> list[str]:
        """One row for each variance, every unit named."""
        heads = ("-ELBO bits/dim", "L_T", "Σ L_{t-1}", "L_0", "of it Σ C_t")
        lines = [f"{'reverse variance':20}" + "".join(f"{head:>16}" for head in heads)]
        for name, row in result["by_variance"].items():
            nats = [row[f"{term}_nats"] for term in ("prior", "transitions", "reconstruction")]
            constants = row.get("variance_constants_nats")
            cells = [*nats, *([] if constants is None else [constants])]
            bits = f"{row['bits_per_dim']:.4f} ± {row['bits_per_dim_standard_error']:.4f}"
            lines.append(f"{name:20}{bits:>16}" + "".join(f"{value:16.4f}" for value in cells))
        lines.append("terms in nats per example; Σ C_t is paid whatever the net says")
        if "flow_bits_per_dim" in result:
            error = result["flow_bits_per_dim_standard_error"]
            bits = f"{result['flow_bits_per_dim']:.4f} ± {error:.4f}"
            lines.append(f"{'probability flow':20}{bits:>16}, {result['flow_steps']} Heun steps")
        return [*lines, *without_a_model(result)]

    def evaluation_files(self, folder: Path, name: str, part, result: dict) -> None:
        """terms_PART.csv and figures/terms_PART.png: every L_t, and the squared error, over t."""
        course = result["course"]
        rows = zip(*course.values(), strict=True)
        tables.write_table(folder / f"terms_{name}.csv", list(course), rows)
        seen = np.asarray(course["count"]) > 0
        labels = {
            k.removeprefix("term_").removesuffix("_nats"): np.asarray(v)[seen].astype(np.float64)
            for k, v in course.items()
            if k.startswith("term_")
        }
        diffusion_plots.over_time(
            folder / "figures" / f"terms_{name}.png",
            np.asarray(course["t"])[seen],
            labels,
            "t",
            "term of step t, nats (of t = 1: L₀)",
            f"terms of the bound, {name} part, by reverse variance",
        )

    def stops(self, count: int) -> list[Stop]:
        """Times from T to 0."""
        return self.model.stops(count or self.config.timesteps)

    def denoiser(self, options: DdpmSampling) -> Denoiser:
        """The net with the variance that was asked for, clipped where that was asked for.

        Raises:
            ValueError: a learned variance is asked for, and none was learned.
        """
        denoise: Denoiser = self.model.denoise
        if options.variance not in (OWN, self.config.variance):
            if options.variance == LEARNED:
                raise ValueError("this run has learned no variance; train with --variance learned")
            chosen = self.variances()[options.variance]
            denoise = partial(self.model.denoise, variance=chosen)
        return clipped(denoise) if options.clip else denoise
