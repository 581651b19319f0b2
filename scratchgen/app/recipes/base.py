"""What every recipe has in common: data, nets, optimiser and the doors a command knocks at."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen.app.recipes.config import Config, option, require_not_negative
from scratchgen.app.recipes.data import fingerprint, load
from scratchgen.core.arrays import backend, to_host
from scratchgen.core.module import FlatParameters, Module
from scratchgen.core.streams import Stream
from scratchgen.metrics.likelihood import at_once
from scratchgen.training import checkpoint
from scratchgen.training.checkpoint import CheckpointError
from scratchgen.training.fit import Fit, batch_indices, restore_parameters
from scratchgen.training.optim import Adam, Ema, Optimiser, warmup_cosine


@dataclass(frozen=True)
class Sampling:
    """The options of `sample` that every model which generates has."""

    temperature: float = option(1.0, "scale of the noise that sampling starts from")

    def __post_init__(self):
        require_not_negative(self, "temperature")


@dataclass(frozen=True)
class Sampled:
    """What `Recipe.sample` drew.

    Attributes:
        x: (n, ...) host array, images (n, H, W, C) or points (n, D).
        path: the same at some moments on the way, first to last; empty unless asked for.
        forward: training examples on their way into noise at the same moments, first to last.
        columns: of a picture of them, where its rows have a meaning.
    """

    x: np.ndarray
    path: tuple[np.ndarray, ...] = ()
    forward: tuple[np.ndarray, ...] = ()
    columns: int | None = None


class Recipe(ABC):
    """A configured model with everything a run needs; nothing is trained yet.

    Subclasses say how the model is built, what its loss is, and how it is measured and shown.

    Args:
        config: every option.

    Raises:
        BackendUnavailable: the backend cannot be used here.
        ValueError: a batch is larger than the data.
    """

    name: str
    config_type: type[Config]
    sampling_type: type[Sampling] = Sampling
    shares_samples = False  # whether several processes can draw them
    draws: int  # of noise for each example in an evaluation, unless told; 0 where there is none
    per_example = True  # whether draws are that; else they are of samples, in all
    shows = "decoder means"  # what the images of `sample` are
    judge: Any = None  # a classifier that says what samples show; where one is needed it is trained

    def __init__(self, config: Config):
        self.config = config
        self.born = backend(config.backend, config.dtype)
        self.stream = Stream(config.seed, self.born)
        self.fitted = self.part("fit" if config.hold_out else "train")
        if config.batch_size > len(self.fitted):
            raise ValueError(
                f"--batch-size must be at most the {len(self.fitted)} training examples, "
                f"got {config.batch_size}"
            )
        self.shape = self.fitted.shape
        self.dims = int(np.prod(self.shape))
        self.at_once = at_once(self.shape)  # examples to evaluate together
        self.model = self.build()
        self.params = FlatParameters(self.model, self.stream.at("initial"))
        self.ema = Ema(self.params, config.ema)
        self.fit = Fit(
            self.model,
            self.params,
            self.optimiser(self.params, config.steps),
            self.loss,
            config.batch_size,
            every=max(1, config.steps // 100),
            ema=self.ema,
        )
        self._x = self.examples(self.fitted)

    @property
    def whole(self) -> Module:
        """All that a step of training evaluates: the model, where there is no other beside it."""
        return self.model

    @property
    def sides(self) -> dict[str, FlatParameters]:
        """The vectors that training changes, by name where there are several."""
        return {"": self.params}

    @abstractmethod
    def build(self) -> Module:
        """The model of the configuration."""

    def optimiser(self, params: FlatParameters, steps: int) -> Optimiser:
        """Who updates parameters: Adam at a rate that rises a little, then falls to 0.

        Args:
            params: what it trains.
            steps: that it takes in the whole run.
        """
        return Adam(params, warmup_cosine(self.config.learning_rate, steps, min(100, steps // 10)))

    @abstractmethod
    def loss(self, step: int, rows: slice) -> dict:
        """Evaluate those rows of a step's batch and run the pullback of their share of its mean."""

    @abstractmethod
    def columns(self, row: dict[str, float]) -> dict[str, float]:
        """A logged row of mean terms, as named numbers with their units in the name."""

    @abstractmethod
    def describe(self, row: dict[str, float]) -> str:
        """The few words of progress for a logged row."""

    def remarks(self) -> list[str]:
        """What a user should know of the training so far, in sentences; mostly nothing."""
        return []

    @abstractmethod
    def training_figures(self, folder: Path) -> None:
        """Pictures of the training run; nothing here may look at the test part."""

    @abstractmethod
    def evaluate(self, part, draws: int, seed: int = 0) -> dict:
        """Measures on examples (Images or Points), ready for JSON.

        Args:
            part: the examples.
            draws: of noise for each of them, or of samples in all.
            seed: of what is drawn.
        """

    @staticmethod
    @abstractmethod
    def report(result: dict) -> list[str]:
        """What `evaluate` returned, as lines for people."""

    @abstractmethod
    def evaluation_files(self, folder: Path, name: str, part, result: dict) -> None:
        """Figures and tables of an evaluation.

        Args:
            folder: of the run.
            name: of the part; then of the data, with a hash, where they are not the run's own.
            part: the examples.
            result: what `evaluate` returned for them.
        """

    @abstractmethod
    def sample(self, n: int, seed: int, options: Any, processes: int = 1) -> Sampled:
        """n generated examples; example i depends on the seed, the options and on i only.

        Args:
            n: how many.
            seed: random seed.
            options: of the sampler.
            processes: that draw them side by side, where the recipe shares samples.

        Raises:
            ValueError: the model cannot generate, or an option does not fit it.
        """

    def use_average(self, path: Path) -> None:
        """Load a checkpoint and compute with its averaged weights from now on.

        Raises:
            CheckpointError: it cannot be read, or belongs to another model.
        """
        arrays, meta = checkpoint.load(path)
        self.check_configuration(meta, path)
        restore_parameters(self.params, arrays, meta, path)
        if "ema/average" not in arrays:
            raise CheckpointError(f"{path} holds no averaged weights")
        self.params.theta = self.born.asarray(arrays["ema/average"])

    def resume(self, path: Path) -> None:
        """Load a checkpoint to train on from.

        Raises:
            CheckpointError: it cannot be read, or belongs to another run.
        """
        self.check_configuration(self.fit.restore(path), path)

    def check_configuration(self, meta: dict, path: Path) -> None:
        """Refuse a checkpoint that was trained with other options than config.json now names.

        Raises:
            CheckpointError: they differ.
        """
        mine, saved = config_to_json(self), meta.get("config")
        if saved != mine:
            odd = [k for k in mine if not isinstance(saved, dict) or saved.get(k) != mine[k]]
            raise CheckpointError(
                f"{path} was trained with other options than config.json says: {', '.join(odd)}"
            )

    def part(self, name: str) -> Any:
        """One part of the run's data set: Images, or Points."""
        config = self.config
        return load(config.data, name, config.size, config.colour, config.crop)

    def data_facts(self) -> dict:
        """What the run is trained on: how many examples, of what shape and levels, and a hash."""
        data = self.fitted
        return {
            "examples": len(data),
            "shape": list(data.shape),
            "levels": data.levels,
            "sha256": fingerprint(data),
        }

    def examples(self, data):
        """The examples as the model reads them, on the run's backend.

        They are (N, H, W, C) for convolutional nets and (N, H·W·C) for fully connected ones.
        """
        x = data.x
        return self.born.asarray(x if self.config.spatial else x.reshape(len(x), -1))

    def images(self, x) -> np.ndarray:
        """What the model gives for examples, on the host and in their own shape (N, ...)."""
        return to_host(x).reshape(-1, *self.shape)

    def batch(self, step: int, rows: slice):
        """The chosen rows of a step's batch (n, ...), and the step's noise for those rows."""
        indices = self.born.indices(self.chosen(step, rows))
        x = self.born.xp.take(self._x, indices, axis=0)
        return x, self.stream.at("train", step).from_row(rows.start)

    def chosen(self, step: int, rows: slice) -> np.ndarray:
        """Which examples those rows of a step's batch are."""
        config, order = self.config, self.stream.at("batches")
        return batch_indices(order, len(self.fitted), config.batch_size, step)[rows]


def config_to_json(recipe: Recipe) -> dict:
    """The configuration as `config.json` holds it."""
    return {"model": recipe.name, **asdict(recipe.config)}
