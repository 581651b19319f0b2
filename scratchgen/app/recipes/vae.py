"""`train vae`: a VAE over the levels of small images."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from pathlib import Path
from statistics import NormalDist

import numpy as np

from scratchgen.app import plots
from scratchgen.app.recipes.base import Sampled, Sampling
from scratchgen.app.recipes.coded import CodedRecipe
from scratchgen.app.recipes.config import CodedConfig, option, require_positive
from scratchgen.core.arrays import full_like
from scratchgen.core.streams import Stream
from scratchgen.data.images import Images
from scratchgen.maths.bounds import bits_per_dim, elbo
from scratchgen.maths.likelihoods import (
    BernoulliLevels,
    Categorical,
    DiscretisedLogistic,
    DiscretisedNormal,
    Levels,
)
from scratchgen.metrics.baselines import COMPONENTS, baselines, mixture_bits
from scratchgen.metrics.likelihood import in_batches, mean_and_error, vae_bounds
from scratchgen.models.vae import Vae, active_units

BERNOULLI = "bernoulli"
LIKELIHOODS: dict[str, Callable[[int], Levels]] = {
    "logistic": DiscretisedLogistic,
    "normal": DiscretisedNormal,
    "categorical": Categorical,
    BERNOULLI: BernoulliLevels,
}


@dataclass(frozen=True)
class VaeConfig(CodedConfig):
    """The options of a VAE run.

    Raises:
        ValueError: a value is outside its range.
    """

    likelihood: str = option(
        "logistic",
        "p(x | z) on the levels of a pixel; bernoulli is for data of two levels",
        tuple(LIKELIHOODS),
    )
    beta: float = option(1.0, "weight of the KL in training; what is reported is always -ELBO")

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "beta")


class VaeRecipe(CodedRecipe):
    """A configured VAE."""

    name, config_type = "vae", VaeConfig
    config: VaeConfig
    model: Vae
    draws = 256

    def build(self) -> Vae:
        """An encoder to mean and log-variance, a decoder and a likelihood.

        Raises:
            ValueError: a Bernoulli likelihood is asked for, and the data have not two levels.
        """
        levels = self.fitted.levels
        if self.config.likelihood == BERNOULLI and levels != 2:
            raise ValueError(
                f"--likelihood bernoulli is for data of two levels, and these have {levels}; take "
                "another one, such as logistic"
            )
        likelihood = LIKELIHOODS[self.config.likelihood](levels)
        return Vae(*self.nets(2 * self.config.latent, likelihood.width), likelihood)

    def loss(self, step: int, rows: slice) -> dict:
        """One sample of z per example; the KL weighted by beta in the gradient only."""
        x, noise = self.batch(step, rows)
        eps = noise.at("eps").normal((x.shape[0], self.config.latent))
        (reconstruction, kl), pullback = self.model.loss(x, eps[None, ...], noise)
        share = full_like(kl, 1.0 / self.config.batch_size)
        pullback(share, self.config.beta * share)
        return {"reconstruction": reconstruction, "kl": kl}

    def columns(self, row: dict[str, float]) -> dict[str, float]:
        """Each term and -ELBO in nats per example, and -ELBO in bits per dimension."""
        total = row["reconstruction"] + row["kl"]
        terms = {f"{name}_nats": value for name, value in row.items() if name != "step"}
        return {
            **terms,
            "negative_elbo_nats": total,
            "bits_per_dim": bits_per_dim(total, self.dims),
        }

    def describe(self, row: dict[str, float]) -> str:
        """-ELBO in both units, and the rate."""
        found = self.columns(row)
        nats, bits = found["negative_elbo_nats"], found["bits_per_dim"]
        return f"-ELBO {nats:.2f} nats {bits:.3f} bits/dim, KL {row['kl']:.2f}"

    def training_figures(self, folder: Path) -> None:
        """The loss curve with model-free levels beside it, and the latent grid."""
        if self.fit.history:
            fit, held = (self.part(name).codes for name in ("fit", "validation"))
            known = {"independent pixels": 1, f"mixture of {COMPONENTS}": COMPONENTS}
            lines = {
                f"{name}, held out": mixture_bits(fit, held, self.fitted.levels, components)
                for name, components in known.items()
            }
            history = self.fit.history
            curves = {
                label: bits_per_dim(np.asarray(nats), self.dims)
                for label, nats in (
                    ("-ELBO on training batches", np.add(history["reconstruction"], history["kl"])),
                    ("reconstruction", history["reconstruction"]),
                    ("KL", history["kl"]),
                )
            }
            path = folder / "figures" / "loss.png"
            plots.loss_curves(path, history["step"], curves, "bits per dimension", lines)
        with self.ema.applied():
            self._latent_grid(folder / "figures" / "latent_grid.png")

    def evaluate(self, part: Images, draws: int) -> dict:
        """The bounds with their standard errors, active units, and model-free baselines."""
        stream = Stream(0, self.born).at("evaluate")
        found = vae_bounds(self.model, self.examples(part), stream, self.config.latent, draws)
        mean, error = mean_and_error(-elbo(found["reconstruction"], found["kl"]))
        tight = mean_and_error(found["importance_weighted"])
        return {
            "bits_per_dim": bits_per_dim(mean, self.dims),
            "bits_per_dim_standard_error": bits_per_dim(error, self.dims),
            "elbo_nats": -mean,
            "reconstruction_nats": float(found["reconstruction"].mean()),
            "kl_nats": float(found["kl"].mean()),
            "importance_samples": draws,
            "importance_weighted_bits_per_dim": bits_per_dim(tight[0], self.dims),
            "importance_weighted_bits_per_dim_standard_error": bits_per_dim(tight[1], self.dims),
            "latent_dimensions": self.config.latent,
            "active_units": active_units(found["kl_per_dimension"]),
            "kl_per_dimension_nats": found["kl_per_dimension"].mean(axis=0).tolist(),
            "baselines": baselines(self.fitted.codes, part.codes, self.fitted.levels),
        }

    @staticmethod
    def report(result: dict) -> list[str]:
        """One table, every unit named."""
        tight = result["importance_weighted_bits_per_dim"]
        rows = [
            ("reconstruction", result["reconstruction_nats"], ""),
            ("KL(q(z|x) ‖ p(z))", result["kl_nats"], ""),
            ("-ELBO", -result["elbo_nats"], result["bits_per_dim_standard_error"]),
            (
                f"importance-weighted, {result['importance_samples']}",
                tight * result["dims"] * log(2.0),
                result["importance_weighted_bits_per_dim_standard_error"],
            ),
        ]
        lines = [f"{'':24}{'nats/example':>13}{'bits/dim':>10}"]
        for name, nats, error in rows:
            note = f" ± {error:.3f}" if error else ""
            lines.append(f"{name:24}{nats:13.2f}{bits_per_dim(nats, result['dims']):10.3f}{note}")
        lines.append("without a model:")
        for name, bits in sorted(result["baselines"].items(), key=lambda pair: pair[1]):
            lines.append(f"  {name:35}{bits:10.3f}")
        active, latent = result["active_units"], result["latent_dimensions"]
        lines.append(f"active latent dimensions: {active} of {latent} (KL above 0.01 nats)")
        rates = sorted(result["kl_per_dimension_nats"], reverse=True)
        lines.append("KL per dimension, nats: " + " ".join(f"{rate:.2f}" for rate in rates))
        if result["bits_per_dim"] > result["baselines"]["uniform"]:
            lines.append("warning: worse than a uniform code; this run did not go well")
        if active == 0:
            lines.append(
                "warning: the posterior has collapsed: q(z|x) = p(z), so x does not depend on z"
            )
        return lines

    def reconstruct(self, x):
        """The decoder's mean at the mean of q(z | x)."""
        return self.model.reconstruct(x)

    def sample(self, n: int, seed: int, options: Sampling, processes: int = 1) -> Sampled:
        """The decoder's mean at n draws of z, whose spread is the temperature."""
        stream, count = Stream(seed, self.born).at("sample"), self.at_once
        parts = []
        for start in range(0, n, count):  # always whole batches: a product's last bit may depend
            eps = stream.from_row(start).normal((count, self.config.latent))  # on its row count
            parts.append(self.images(self.model.sample(eps, options.temperature)))
        return Sampled(np.concatenate(parts)[:n])

    def _latent_grid(self, path: Path) -> None:
        """Decode (Φ⁻¹(u_j), Φ⁻¹(u_i)) in the two dimensions of largest KL; the rest of z is 0."""
        latent, n = self.config.latent, min(15, 480 // self.shape[0])
        x = self.examples(self.fitted)
        rates = in_batches(self.model.kl_per_dimension, x, self.at_once).mean(axis=0)
        order = np.argsort(-rates)
        u = [(i + 0.5) / n for i in range(n)]
        quantiles = [NormalDist().inv_cdf(p) for p in u]
        rows = n if latent > 1 else 1
        z = np.zeros((rows * n, latent))
        if latent > 1:
            z[:, order[1]] = np.repeat(quantiles, n)
        z[:, order[0]] = np.tile(quantiles, rows)
        images = self.images(in_batches(self.model.decode, self.born.asarray(z), self.at_once))
        title = "decoder mean over the latent dimensions of largest KL, the others 0"
        plots.latent_grid(path, images, u, [f"z{k}" for k in order[:2]], title)
