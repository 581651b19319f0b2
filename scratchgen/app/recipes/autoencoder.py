"""`train autoencoder`: deterministic autoencoders, from one linear layer to deep nets."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from scratchgen.app import plots
from scratchgen.app.recipes.base import Sampled, Sampling
from scratchgen.app.recipes.config import CONV, CodedConfig, option
from scratchgen.app.recipes.image import ImageRecipe
from scratchgen.core.arrays import full_like
from scratchgen.data.images import Images
from scratchgen.layers.activations import sigmoid
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.metrics.likelihood import in_batches, mean_and_error
from scratchgen.models.autoencoder import Autoencoder, principal_components


@dataclass(frozen=True)
class AutoencoderConfig(CodedConfig):
    """The options of an autoencoder run.

    Raises:
        ValueError: a value is outside its range.
    """

    net: str = option(
        "deep",
        "linear (principal components), sigmoid (one squashed layer), deep (width and depth) or "
        "conv (convolutional, of that width)",
        ("linear", "sigmoid", "deep", CONV),
    )
    dropout: float = option(0.0, "dropout rate behind every hidden layer of a deep or conv net")
    learning_rate: float = option(0.02, "Adam's peak rate, after warm-up and before cosine decay")

    @property
    def without_effect(self) -> dict[str, str]:
        """Options that say nothing here, and what they are for."""
        deep: dict[str, str] = {}
        if self.net in ("linear", "sigmoid"):
            what = f"deep nets; --net {self.net} has no hidden layer"
            deep = dict.fromkeys(("width", "depth", "dropout"), what)
        return super().without_effect | deep


class AutoencoderRecipe(ImageRecipe):
    """A configured autoencoder."""

    name, config_type = "autoencoder", AutoencoderConfig
    config: AutoencoderConfig
    model: Autoencoder
    draws = 0

    def build(self) -> Autoencoder:
        """The nets in the order of their history: linear, linear + sigmoid, deep, convolutional."""
        config, dims = self.config, self.dims
        if config.net in ("deep", CONV):
            return Autoencoder(*self.nets(config.latent, config.latent))
        encoder: list = [Linear(dims, config.latent, reads_data=True)]
        if config.net == "sigmoid":
            encoder.append(sigmoid)
        return Autoencoder(Sequential(*encoder), Linear(config.latent, dims))

    def loss(self, step: int, rows: slice) -> dict:
        """The summed squared error of each example."""
        x, noise = self.batch(step, rows)
        (squared_error,), pullback = self.model.loss(x, noise)
        pullback(full_like(squared_error, 1.0 / self.config.batch_size))
        return {"squared_error": squared_error}

    def columns(self, row: dict[str, float]) -> dict[str, float]:
        """The squared error per example and per pixel, pixels scaled to [-1, 1]."""
        total = row["squared_error"]
        return {"squared_error_per_example": total, "squared_error_per_dim": total / self.dims}

    def describe(self, row: dict[str, float]) -> str:
        """The squared error per pixel."""
        return f"squared error per pixel {row['squared_error'] / self.dims:.5g}"

    def training_figures(self, folder: Path) -> None:
        """The loss curve beside the principal components' error on the training part."""
        if self.fit.history:
            per_pixel = np.asarray(self.fit.history["squared_error"]) / self.dims
            lines = {
                name: error
                for name, error in self._baselines(self.fitted).items()
                if name != "mean image"
            }
            plots.loss_curves(
                folder / "figures" / "loss.png",
                self.fit.history["step"],
                {"training batches": per_pixel},
                "squared error per pixel, pixels in [-1, 1]",
                lines,
            )

    def evaluate(self, part: Images, draws: int, seed: int = 0) -> dict:
        """The squared error per pixel, beside that of as many principal components."""
        squared_error = in_batches(
            lambda x: self.model.loss(x)[0][0], self.examples(part), self.at_once
        )
        per_pixel = squared_error.astype(np.float64) / self.dims
        mean, error = mean_and_error(per_pixel)
        return {
            "squared_error_per_dim": mean,
            "squared_error_per_dim_standard_error": error,
            "latent_dimensions": self.config.latent,
            "baselines": self._baselines(part),
        }

    @staticmethod
    def report(result: dict) -> list[str]:
        """One table; pixels are scaled to [-1, 1]."""
        lines = [f"{'':28}squared error per pixel, pixels in [-1, 1]"]
        error = result["squared_error_per_dim_standard_error"]
        lines.append(f"{'autoencoder':28}{result['squared_error_per_dim']:.5g} ± {error:.2g}")
        for name, value in result["baselines"].items():
            lines.append(f"{name:28}{value:.5f}")
        if result["squared_error_per_dim"] > result["baselines"]["mean image"]:
            lines.append("warning: worse than the mean image; this run did not go well")
        return lines

    def reconstruct(self, x):
        """x̂."""
        return self.model.reconstruct(x)

    def sample(self, n: int, seed: int, options: Sampling, processes: int = 1) -> Sampled:
        """There is nothing to draw a code from.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "an autoencoder has no distribution on its codes, so there is nothing to sample from; "
            "train a vae"
        )

    def _baselines(self, part: Images) -> dict[str, float]:
        """Errors of the mean image and of K principal components, both of the training images."""
        mean, axes = self._principal
        gap = part.x.reshape(len(part), -1) - mean
        along = gap @ axes
        total, explained = np.vdot(gap, gap), np.vdot(along, along)
        return {
            f"{axes.shape[1]} principal components": float(total - explained) / gap.size,
            "mean image": float(total) / gap.size,
        }

    @cached_property
    def _principal(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean of the training images (D,), and as many of their axes as a code has (D, K)."""
        x = self.fitted.x.reshape(len(self.fitted), -1)
        if self.dims <= len(x):
            mean, _, axes = principal_components(x)
            return mean, axes[:, : self.config.latent]
        # XᵀX v = λ v for v = Xᵀu and XXᵀ u = λ u, which is the smaller matrix here
        mean = x.mean(axis=0)
        x -= mean
        _, rising = np.linalg.eigh(x @ x.T)
        return mean, np.linalg.qr(x.T @ rising[:, ::-1][:, : self.config.latent])[0]
