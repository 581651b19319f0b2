"""`train vae`: a VAE over the levels of small images."""

from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from scratchgen.app import plots
from scratchgen.app.recipes.base import Sampled, Sampling
from scratchgen.app.recipes.config import CodedConfig, option, require_positive
from scratchgen.app.recipes.likelihood import LikelihoodConfig, LikelihoodRecipe
from scratchgen.core.arrays import full_like
from scratchgen.core.streams import Stream
from scratchgen.data.images import Images
from scratchgen.metrics.likelihood import in_batches, vae_bounds
from scratchgen.models.vae import Vae, active_units


@dataclass(frozen=True)
class VaeConfig(LikelihoodConfig, CodedConfig):
    """The options of a VAE run.

    Raises:
        ValueError: a value is outside its range.
    """

    beta: float = option(1.0, "weight of the KL in training; what is reported is always -ELBO")

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "beta")


class VaeRecipe(LikelihoodRecipe):
    """A configured VAE."""

    name, config_type = "vae", VaeConfig
    config: VaeConfig
    model: Vae
    draws = 256

    def build(self) -> Vae:
        """An encoder to mean and log-variance, a decoder and a likelihood."""
        latent, likelihood = self.config.latent, self.likelihood()
        return Vae(*self.nets(2 * latent, latent, likelihood.width), likelihood)

    def loss(self, step: int, rows: slice) -> dict:
        """One sample of z per example; the KL weighted by beta in the gradient only."""
        x, noise = self.batch(step, rows)
        eps = noise.at("eps").normal((x.shape[0], self.config.latent))
        (reconstruction, kl), pullback = self.model.loss(x, eps[None, ...], noise)
        share = full_like(kl, 1.0 / self.config.batch_size)
        pullback(share, self.config.beta * share)
        return {"reconstruction": reconstruction, "kl": kl}

    def training_figures(self, folder: Path) -> None:
        """The loss curve with model-free levels beside it, and the latent grid."""
        super().training_figures(folder)
        with self.ema.applied():
            self._latent_grid(folder / "figures" / "latent_grid.png")

    def evaluate(self, part: Images, draws: int, seed: int = 0) -> dict:
        """The bounds with their standard errors, active units, and model-free baselines."""
        stream = Stream(seed, self.born).at("evaluate")
        found = vae_bounds(self.model, self.examples(part), stream, self.config.latent, draws)
        return {
            **self.measures(found, draws),
            "latent_dimensions": self.config.latent,
            "active_units": active_units(found["kl_per_dimension"]),
            "kl_per_dimension_nats": found["kl_per_dimension"].mean(axis=0).tolist(),
            "baselines": self.baselines(part),
        }

    @classmethod
    def report(cls, result: dict) -> list[str]:
        """One table, every unit named."""
        lines = cls.bounds_table(result, {"KL(q(z|x) ‖ p(z))": result["kl_nats"]})
        active, latent = result["active_units"], result["latent_dimensions"]
        lines.append(f"active latent dimensions: {active} of {latent} (KL above 0.01 nats)")
        rates = sorted(result["kl_per_dimension_nats"], reverse=True)
        lines.append("KL per dimension, nats: " + " ".join(f"{rate:.2f}" for rate in rates))
        lines += cls.warnings(result)
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
