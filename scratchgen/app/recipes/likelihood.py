"""What `train vae` and `train hvae` have in common: a likelihood on levels, and bounds."""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np

from scratchgen.app import plots
from scratchgen.app.recipes.config import ImageConfig, option
from scratchgen.app.recipes.image import ImageRecipe
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
from scratchgen.metrics.likelihood import mean_and_error

BERNOULLI = "bernoulli"
LIKELIHOODS: dict[str, Callable[[int], Levels]] = {
    "logistic": DiscretisedLogistic,
    "normal": DiscretisedNormal,
    "categorical": Categorical,
    BERNOULLI: BernoulliLevels,
}


@dataclass(frozen=True)
class LikelihoodConfig(ImageConfig):
    """The options of a model whose loss is a bound on the likelihood of levels.

    Raises:
        ValueError: a value is outside its range.
    """

    likelihood: str = option(
        "logistic",
        "p(x | z) on the levels of a pixel; bernoulli is for data of two levels",
        tuple(LIKELIHOODS),
    )


class LikelihoodRecipe(ImageRecipe):
    """A model whose loss is a reconstruction term and one or more KL terms."""

    config: LikelihoodConfig

    def likelihood(self) -> Levels:
        """p(x | h) of the configuration.

        Raises:
            ValueError: a Bernoulli likelihood is asked for, and the data have not two levels.
        """
        levels = self.fitted.levels
        if self.config.likelihood == BERNOULLI and levels != 2:
            raise ValueError(
                f"--likelihood bernoulli is for data of two levels, and these have {levels}; take "
                "another one, such as logistic"
            )
        return LIKELIHOODS[self.config.likelihood](levels)

    def columns(self, row: dict[str, float]) -> dict[str, float]:
        """Each term and -ELBO in nats per example, and -ELBO in bits per dimension."""
        terms = {name: value for name, value in row.items() if name != "step"}
        total = sum(terms.values())
        return {
            **{f"{name}_nats": value for name, value in terms.items()},
            "negative_elbo_nats": total,
            "bits_per_dim": bits_per_dim(total, self.dims),
        }

    def describe(self, row: dict[str, float]) -> str:
        """-ELBO in both units, and the rate of each KL term."""
        found = self.columns(row)
        nats, bits = found["negative_elbo_nats"], found["bits_per_dim"]
        rates = " + ".join(f"{value:.2f}" for name, value in row.items() if name.startswith("kl"))
        return f"-ELBO {nats:.2f} nats {bits:.3f} bits/dim, KL {rates}"

    def training_figures(self, folder: Path) -> None:
        """The loss curve with model-free levels beside it."""
        history = {name: np.asarray(values) for name, values in self.fit.history.items()}
        if not history:
            return
        steps = history.pop("step")
        fit, held = (self.part(name).codes for name in ("fit", "validation"))
        known = {"independent pixels": 1, f"mixture of {COMPONENTS}": COMPONENTS}
        lines = {
            f"{name}, held out": mixture_bits(fit, held, self.fitted.levels, components)
            for name, components in known.items()
        }
        labels = {name: name.replace("kl", "KL").replace("_", ", level ") for name in history}
        curves = {"-ELBO on training batches": sum(history.values())}
        curves |= {labels[name]: nats for name, nats in history.items()}
        in_bits = {name: bits_per_dim(nats, self.dims) for name, nats in curves.items()}
        path = folder / "figures" / "loss.png"
        plots.loss_curves(path, steps.tolist(), in_bits, "bits per dimension", lines)

    def measures(self, found: dict[str, np.ndarray], draws: int) -> dict:
        """The bounds with their standard errors.

        Args:
            found: "reconstruction", "kl" and "importance_weighted" (N,), nats.
            draws: of z for each example.
        """
        mean, error = mean_and_error(-elbo(found["reconstruction"], found["kl"]))
        tight, tight_error = mean_and_error(found["importance_weighted"])
        return {
            "bits_per_dim": bits_per_dim(mean, self.dims),
            "bits_per_dim_standard_error": bits_per_dim(error, self.dims),
            "elbo_nats": -mean,
            "reconstruction_nats": float(found["reconstruction"].mean()),
            "kl_nats": float(found["kl"].mean()),
            "importance_samples": draws,
            "importance_weighted_bits_per_dim": bits_per_dim(tight, self.dims),
            "importance_weighted_bits_per_dim_standard_error": bits_per_dim(tight_error, self.dims),
        }

    def baselines(self, part: Images) -> dict[str, float]:
        """Bits per dimension without a model."""
        return baselines(self.fitted.codes, part.codes, self.fitted.levels)

    @staticmethod
    def bounds_table(result: dict, kls: dict[str, float]) -> list[str]:
        """The bounds, and what a model has to beat.

        Args:
            result: what `evaluate` returned.
            kls: label -> nats, in the place of the KL.
        """
        tight = result["importance_weighted_bits_per_dim"]
        rows = [
            ("reconstruction", result["reconstruction_nats"], 0.0),
            *((label, nats, 0.0) for label, nats in kls.items()),
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
        return lines

    @staticmethod
    def warnings(result: dict) -> list[str]:
        """What a reader of the table should not overlook."""
        if result["bits_per_dim"] > result["baselines"]["uniform"]:
            return ["warning: worse than a uniform code; this run did not go well"]
        return []
