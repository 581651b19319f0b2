"""`train classifier`: a small convolutional net whose features and opinions judge samples."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen.app import plots
from scratchgen.app.recipes.base import Recipe, Sampled, Sampling
from scratchgen.app.recipes.config import CONV, Config, option, require_below_one
from scratchgen.app.recipes.data import PLANAR
from scratchgen.core.arrays import full_like
from scratchgen.data.images import Images
from scratchgen.metrics.classifier import Classifier, weight_hash
from scratchgen.metrics.likelihood import in_batches, mean_and_error
from scratchgen.nets.convnet import SMALLEST, conv_classifier

MEASURED = ("data", "size", "colour", "crop", "hold_out")  # what a judge shares with the run


@dataclass(frozen=True)
class ClassifierConfig(Config):
    """The options of a classifier run.

    Raises:
        ValueError: a value is outside its range, or the data are no images.
    """

    net: str = option(CONV, "convolutional", (CONV,))
    width: int = option(0, "channels at full resolution; they double with each halving; 0 takes 16")
    steps: int = option(800, "training steps in all")
    batch_size: int = option(64, "examples per step")
    dropout: float = option(0.2, "dropout rate behind every activation")
    learning_rate: float = option(1e-2, "Adam's peak rate, after warm-up and before cosine decay")

    @property
    def left_open(self) -> dict[str, Any]:
        """What options stand for that are not given."""
        return {"width": 16}

    def __post_init__(self):
        super().__post_init__()
        require_below_one(self, "dropout")
        if self.data in PLANAR:
            raise ValueError(f"{self.data} are points in the plane; a classifier is for images")
        if self.width % 8:
            raise ValueError(f"--width must be a multiple of 8, got {self.width}")


class ClassifierRecipe(Recipe):
    """A configured classifier."""

    name, config_type = "classifier", ClassifierConfig
    config: ClassifierConfig
    model: Classifier
    draws = 0

    def build(self) -> Classifier:
        """A convolutional trunk and a linear head.

        Raises:
            ValueError: the data have one class only.
        """
        known = np.unique(self.fitted.labels)
        if len(known) < 2:
            raise ValueError(f"{self.config.data} has labels of one class only; nothing to learn")
        classes, width, dropout = int(known[-1]) + 1, self.config.width, self.config.dropout
        return Classifier(*conv_classifier(self.shape, classes, width, dropout))

    def loss(self, step: int, rows: slice) -> dict:
        """-log p(label | x) of each example."""
        x, noise = self.batch(step, rows)
        labels = self.born.indices(self.fitted.labels[self.chosen(step, rows)])
        (nll,), pullback = self.model.loss(x, labels, noise)
        pullback(full_like(nll, 1.0 / self.config.batch_size))
        return {"nll": nll}

    def columns(self, row: dict[str, float]) -> dict[str, float]:
        """The loss in nats."""
        return {"nll_nats": row["nll"]}

    def describe(self, row: dict[str, float]) -> str:
        """The loss."""
        return f"-log p(label) {row['nll']:.3f} nats"

    def training_figures(self, folder: Path) -> None:
        """The loss curve."""
        if self.fit.history:
            curve = {"training batches, with dropout": np.asarray(self.fit.history["nll"])}
            path = folder / "figures" / "loss.png"
            plots.loss_curves(path, self.fit.history["step"], curve, "-log p(label), nats", {})

    def evaluate(self, part: Images, draws: int, seed: int = 0) -> dict:
        """Accuracy and loss on a part, and which weights they belong to.

        Raises:
            ValueError: the part has a label that training had none above of.
        """
        classes, most = self.model.head.weight.shape[0], int(part.labels.max())
        if most >= classes:
            raise ValueError(
                f"label {most} occurs, and the classifier was trained on labels below {classes}; "
                "measure on examples of the classes it knows"
            )
        log_p = in_batches(self.model.log_probabilities, self.examples(part), self.at_once)
        right = (log_p.argmax(axis=1) == part.labels).astype(np.float64)
        nll = -log_p[np.arange(len(part)), part.labels].astype(np.float64)
        accuracy, error = mean_and_error(right)
        return {
            "accuracy": accuracy,
            "accuracy_standard_error": error,
            "nll_nats": float(nll.mean()),
            "classes": log_p.shape[1],
            "weights": weight_hash(self.params),
        }

    @staticmethod
    def report(result: dict) -> list[str]:
        """Accuracy, loss, and the hash of the weights."""
        error = result["accuracy_standard_error"]
        return [
            f"accuracy {result['accuracy']:.4f} ± {error:.4f}, {result['classes']} classes",
            f"-log p(label) {result['nll_nats']:.4f} nats",
            f"weights {result['weights']}",
        ]

    def evaluation_files(self, folder: Path, name: str, part: Images, result: dict) -> None:
        """There is nothing to draw."""

    def features(self, images: np.ndarray) -> np.ndarray:
        """What the trunk sees in host images (N, H, W, C), averaged over places: (N, F) float64.

        The average leaves one number a channel, few enough for some hundred images to tell laws
        apart by.
        """
        x = self.born.asarray(images)
        found = in_batches(self.model.features, x, self.at_once).astype(np.float64)
        return found.reshape(len(found), SMALLEST**2, -1).mean(axis=1)

    def opinions(self, images: np.ndarray) -> np.ndarray:
        """log p(label | x) of host images (N, H, W, C): (N, classes) float64."""
        x = self.born.asarray(images)
        return in_batches(self.model.log_probabilities, x, self.at_once).astype(np.float64)

    def sample(self, n: int, seed: int, options: Sampling, processes: int = 1) -> Sampled:
        """A classifier draws nothing.

        Raises:
            ValueError: always.
        """
        raise ValueError("a classifier generates nothing; sample from a generative model")


def can_be_judged(recipe: Recipe) -> bool:
    """Whether a run's data have classes to tell apart."""
    return recipe.config.data not in PLANAR and len(np.unique(recipe.fitted.labels)) > 1


def judge_for(recipe: Recipe) -> ClassifierRecipe | None:
    """The small classifier of a run's own data, trained with seed 0 when it is first asked for.

    Returns:
        The judge, or None where the data have no classes to tell apart.
    """
    if not can_be_judged(recipe):
        return None
    shared = {name: getattr(recipe.config, name) for name in MEASURED}
    most = min(ClassifierConfig.batch_size, len(recipe.fitted))
    return _trained(ClassifierConfig(**shared, batch_size=most))


@cache
def _trained(config: ClassifierConfig) -> ClassifierRecipe:
    judge = ClassifierRecipe(config)
    judge.fit.until(config.steps, quiet=True)
    judge.params.theta = judge.ema.average
    return judge
