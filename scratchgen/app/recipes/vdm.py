"""`train vdm`: variational diffusion, in continuous time or T steps, on images or points."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scratchgen.app import diffusion_plots, tables
from scratchgen.app.recipes.config import option, require_at_least
from scratchgen.app.recipes.diffusion import (
    DiffusionConfig,
    DiffusionRecipe,
    without_a_model,
)
from scratchgen.app.recipes.diffusion_sampling import DiffusionSampling
from scratchgen.core.arrays import full_like, namespace, to_host
from scratchgen.core.streams import Stream
from scratchgen.maths.bounds import bits_per_dim, elbo
from scratchgen.maths.gamma import LearnedGamma, LinearGamma, level_from_gamma
from scratchgen.metrics.likelihood import mean_and_error, vdm_bounds
from scratchgen.models.samplers import Denoiser, Stop, clipped
from scratchgen.models.vdm import (
    MOST_STEPS,
    LevelDecoder,
    NormalDecoder,
    Vdm,
    low_discrepancy,
    on_grid,
)
from scratchgen.training.progress import say

GAMMAS = {"linear": LinearGamma, "learned": LearnedGamma}
SAMPLING_STEPS = 250
TERMS = ("prior", "diffusion", "reconstruction")


@dataclass(frozen=True)
class VdmConfig(DiffusionConfig):
    """The options of a VDM run.

    Raises:
        ValueError: a value is outside its range.
    """

    gamma: str = option(
        "linear", "-log SNR over time: linear, or learned with its two ends", tuple(GAMMAS)
    )
    timesteps: int = option(0, "T of the discrete bound; 0 takes continuous time")
    gamma_first: float = option(-9.0, "γ(0), of the least noise; the start where it is learned")
    gamma_last: float = option(5.0, "γ(1), of the most noise; the start where it is learned")

    def __post_init__(self):
        super().__post_init__()
        require_at_least(self, 0, "timesteps")
        if self.timesteps > MOST_STEPS and self.dtype == "float32":
            raise ValueError(
                f"--timesteps must be at most {MOST_STEPS} in float32, where γ(t) - γ(t - 1/T) "
                f"loses its digits, got {self.timesteps}; take --dtype float64 or continuous time"
            )
        if not -20.0 <= self.gamma_first < self.gamma_last <= 20.0:
            raise ValueError(
                "need -20 ≤ --gamma-first < --gamma-last ≤ 20, got "
                f"{self.gamma_first} and {self.gamma_last}"
            )
        if self.predict == "mean":
            raise ValueError("in continuous time a step has no mean; take --predict epsilon")


class VdmRecipe(DiffusionRecipe):
    """A configured VDM."""

    name, config_type = "vdm", VdmConfig
    config: VdmConfig
    model: Vdm
    draws = 128

    def build(self) -> Vdm:
        """A net, γ, what the net's output means, and the decoder of z₀."""
        config, levels = self.config, self.fitted.levels
        gamma = GAMMAS[config.gamma](config.gamma_first, config.gamma_last)
        decoder = NormalDecoder() if levels is None else LevelDecoder(levels)
        net = self.net(scale=1000.0, reads_data=config.gamma != "learned")
        return Vdm(net, gamma, self.parameterisation, decoder)

    def loss(self, step: int, rows: slice) -> dict:
        """-ELBO at times that are spread evenly over a batch."""
        x, noise = self.batch(step, rows)
        u = self.stream.at("train", step, "time").uniform((1,))
        t, steps = low_discrepancy(u, self.config.batch_size, rows), self.config.timesteps or None
        if steps is not None:
            t = on_grid(t, steps)
        eps, eps0 = (noise.at(name).normal(x.shape) for name in ("eps", "eps0"))
        terms, pullback = self.model.loss(x, t, eps, eps0, steps, noise)
        share = full_like(terms[1], 1.0 / self.config.batch_size)
        pullback(share, share, share)
        return dict(zip(TERMS, terms, strict=True))

    def columns(self, row: dict[str, float]) -> dict[str, float]:
        """Each term and -ELBO in nats per example, and -ELBO in bits per dimension."""
        total = sum(row[name] for name in TERMS)
        return {
            **{f"{name}_nats": row[name] for name in TERMS},
            "negative_elbo_nats": total,
            "bits_per_dim": bits_per_dim(total, self.dims),
        }

    def describe(self, row: dict[str, float]) -> str:
        """-ELBO in both units."""
        found = self.columns(row)
        return f"-ELBO {found['negative_elbo_nats']:.2f} nats {found['bits_per_dim']:.3f} bits/dim"

    def evaluate(self, part, draws: int, seed: int = 0) -> dict:
        """The bound in its three terms, and its yardsticks."""
        say(f"looking at {len(part)} examples, each at {draws} times")
        stream = Stream(seed, self.born).at("evaluate")
        steps = self.config.timesteps or None
        found = vdm_bounds(self.model, self.examples(part), stream, draws, steps)
        mean, error = mean_and_error(-elbo(*(found[name] for name in TERMS)))
        gamma, weight = self._weight(found["time"], steps)
        return {
            "bits_per_dim": bits_per_dim(mean, self.dims),
            "bits_per_dim_standard_error": bits_per_dim(error, self.dims),
            "elbo_nats": -mean,
            **{f"{name}_nats": float(found[name].mean()) for name in TERMS},
            "times_per_example": draws,
            "timesteps": steps,
            "gamma_ends": [float(v) for v in self.gamma_on_host(np.asarray([0.0, 1.0]))[0]],
            "course": {
                "t": found["time"].tolist(),
                "gamma": gamma.tolist(),
                "diffusion_nats": found["over_time"].tolist(),
                "squared_error": (found["over_time"] / weight).tolist(),
            },
            "baselines": self.baselines(part),
        }

    @staticmethod
    def report(result: dict) -> list[str]:
        """One table, every unit named."""
        lines = [f"{'':24}{'nats/example':>13}{'bits/dim':>10}"]
        for name in (*TERMS, "-ELBO"):
            nats = -result["elbo_nats"] if name == "-ELBO" else result[f"{name}_nats"]
            note = f" ± {result['bits_per_dim_standard_error']:.4f}" if name == "-ELBO" else ""
            bits = bits_per_dim(nats, result["dims"])
            lines.append(f"{name:24}{nats:13.3f}{bits:10.4f}{note}")
        first, last = result["gamma_ends"]
        when = f"{result['timesteps']} steps" if result["timesteps"] else "continuous time"
        lines.append(f"γ from {first:.2f} to {last:.2f}, {when}")
        return [*lines, *without_a_model(result)]

    def evaluation_files(self, folder: Path, name: str, part, result: dict) -> None:
        """terms_PART.csv and figures/terms_PART.png: the diffusion loss over time."""
        course = result["course"]
        rows = zip(*course.values(), strict=True)
        tables.write_table(folder / f"terms_{name}.csv", list(course), rows)
        diffusion_plots.over_time(
            folder / "figures" / f"terms_{name}.png",
            np.asarray(course["gamma"]),
            {"½ ‖ε - ε̂‖²": 0.5 * np.asarray(course["squared_error"])},
            "γ = -log SNR",
            "nats per unit of γ",
            f"diffusion loss over the noise level, {name} part; its integral is the term",
        )

    def stops(self, count: int) -> list[Stop]:
        """Places from z₁ to z₀ at equal distances in t."""
        own = self.config.timesteps or SAMPLING_STEPS
        return self.model.stops(count or own, self.params.theta)

    def denoiser(self, options: DiffusionSampling) -> Denoiser:
        """The net, clipped where that was asked for."""
        return clipped(self.model.denoise) if options.clip else self.model.denoise

    def decode(self, x):
        """E[x | z₀], the decoder's mean."""
        xp = namespace(x)
        zero = xp.zeros(x.shape[:1], dtype=x.dtype, device=x.device)
        (gamma, _), _ = self.model.gamma(zero)
        return self.model.decoder.mean(x, level_from_gamma(gamma)[0])

    def _weight(self, t: np.ndarray, steps: int | None) -> tuple[np.ndarray, np.ndarray]:
        """γ at host times, and the weight of ‖ε - ε̂‖² there."""
        gamma, slope = self.gamma_on_host(t)
        if steps is None:
            return gamma, 0.5 * slope
        before, _ = self.gamma_on_host(t - 1.0 / steps)
        return gamma, 0.5 * steps * np.expm1(gamma - before)

    def gamma_on_host(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """γ and γ' at host times (n,), on the host: (n,), (n,)."""
        (gamma, slope), _ = self.model.gamma(self.born.asarray(t))
        return to_host(gamma).astype(np.float64), to_host(slope).astype(np.float64)
