"""What every recipe has in common: options, data, optimiser and the doors a command knocks at."""

from abc import ABC, abstractmethod
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen.app import plots
from scratchgen.core.arrays import backend, to_host
from scratchgen.core.module import FlatParameters, Module
from scratchgen.core.streams import Stream
from scratchgen.data.digits import load_digits
from scratchgen.data.images import Images
from scratchgen.training.checkpoint import CheckpointError, load
from scratchgen.training.fit import Fit, batch_indices, restore_parameters
from scratchgen.training.optim import Adam, Ema, warmup_cosine

DATA = {"digits": load_digits}


def option(default, help: str, choices=None) -> Any:
    """A dataclass field that becomes a flag of `train`."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Config:
    """The options every model has: the contents of config.json, the flags of `train MODEL`.

    Raises:
        ValueError: a value is outside its range.
    """

    data: str = option("digits", "data set", tuple(DATA))
    steps: int = option(3000, "training steps in all")
    batch_size: int = option(128, "examples per step")
    seed: int = option(0, "random seed of initial weights, batches and noise")
    backend: str = option("numpy", "array library", ("numpy", "cupy"))
    dtype: str = option("float32", "floating type", ("float32", "float64"))
    latent: int = option(16, "size of the code z")
    width: int = option(256, "units per hidden layer")
    depth: int = option(2, "hidden layers in the encoder and in the decoder")
    dropout: float = option(0.15, "dropout rate behind every hidden layer")
    learning_rate: float = option(4e-3, "Adam's peak rate, after warm-up and before cosine decay")
    ema: float = option(0.999, "decay of the weight average that is evaluated")
    hold_out: bool = option(False, "leave the last 137 training examples out, to choose on")

    def __post_init__(self):
        for each in fields(self):
            value, choices = getattr(self, each.name), each.metadata["choices"]
            flag = _flag(each.name)
            if not _is_a(value, each.type):
                raise ValueError(f"{flag} must be of type {_type_name(each)}, got {value!r}")
            if choices and value not in choices:
                known = ", ".join(choices)
                raise ValueError(f"{flag} must be one of {known}, got {value!r}")
        for name in ("steps", "batch_size", "latent", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{_flag(name)} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "depth"):
            if getattr(self, name) < 0:
                raise ValueError(f"{_flag(name)} must be at least 0, got {getattr(self, name)}")
        for name in ("dropout", "ema"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{_flag(name)} must lie in [0, 1), got {getattr(self, name)}")
        require_positive(self, "learning_rate")


def require_positive(config: Config, *names: str) -> None:
    """Refuse values that are not positive and finite.

    Raises:
        ValueError: one of them is not.
    """
    for name in names:
        value = getattr(config, name)
        if not 0.0 < value < float("inf"):
            raise ValueError(f"{_flag(name)} must be positive and finite, got {value}")


def _flag(name: str) -> str:
    """An option as it is typed on the command line."""
    return "--" + name.replace("_", "-")


def _is_a(value, kind) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def _type_name(each: Field) -> str:
    return getattr(each.type, "__name__", str(each.type))


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
        self.shape = self.fitted.codes.shape[1:]
        self.dims = int(np.prod(self.shape))
        self.model = self.build()
        self.params = FlatParameters(self.model, self.stream.at("initial"))
        warmup = min(100, config.steps // 10)
        optimiser = Adam(self.params, warmup_cosine(config.learning_rate, config.steps, warmup))
        self.ema = Ema(self.params, config.ema)
        self.fit = Fit(
            self.model,
            self.params,
            optimiser,
            self.loss,
            config.batch_size,
            every=max(1, config.steps // 100),
            ema=self.ema,
        )
        self._x = self.flat(self.fitted)

    @abstractmethod
    def build(self) -> Module:
        """The model of the configuration."""

    @abstractmethod
    def loss(self, step: int, rows: slice) -> dict:
        """Evaluate those rows of a step's batch and run the pullback of their share of its mean."""

    @abstractmethod
    def columns(self, row: dict[str, float]) -> dict[str, float]:
        """A logged row of mean terms, as named numbers with their units in the name."""

    @abstractmethod
    def describe(self, row: dict[str, float]) -> str:
        """The few words of progress for a logged row."""

    @abstractmethod
    def training_figures(self, folder: Path) -> None:
        """Pictures of the training run; nothing here may look at the test part."""

    @abstractmethod
    def evaluate(self, part: Images, samples: int) -> dict:
        """Measures on one part of the data, ready for JSON."""

    @staticmethod
    @abstractmethod
    def report(result: dict) -> list[str]:
        """What `evaluate` returned, as lines for people."""

    @abstractmethod
    def reconstruct(self, x):
        """x (N, D) through the model and back."""

    @abstractmethod
    def sample(self, n: int, seed: int, temperature: float) -> np.ndarray:
        """n generated images (n, H, W, C); image i depends on the seed and on i only.

        Raises:
            ValueError: the model cannot generate.
        """

    def use_average(self, path: Path) -> None:
        """Load a checkpoint and compute with its averaged weights from now on.

        Raises:
            CheckpointError: it cannot be read, or belongs to another model.
        """
        arrays, meta = load(path)
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

    def part(self, name: str) -> Images:
        """One part of the run's data set."""
        return DATA[self.config.data](name)

    def flat(self, data: Images):
        """The examples as the model reads them, (N, D), on the run's backend."""
        return self.born.asarray(data.x.reshape(len(data), -1))

    def images(self, x) -> np.ndarray:
        """(N, D) from the model as host images (N, H, W, C)."""
        return to_host(x).reshape(-1, *self.shape)

    def batch(self, step: int, rows: slice):
        """The chosen rows of a step's batch (n, D), and the step's noise for those rows."""
        indices = batch_indices(
            self.stream.at("batches"), len(self.fitted), self.config.batch_size, step
        )[rows]
        x = self.born.xp.take(self._x, self.born.indices(indices), axis=0)
        return x, self.stream.at("train", step).from_row(rows.start)

    def reconstruction_figure(self, folder: Path, part: str, title: str) -> None:
        """figures/reconstructions_PART.png: sixteen images and what comes back."""
        x = self.flat(self.part(part))[:16, ...]
        path = folder / "figures" / f"reconstructions_{part}.png"
        plots.reconstructions(path, self.images(x), self.images(self.reconstruct(x)), title)


def config_to_json(recipe: Recipe) -> dict:
    """The configuration as `config.json` holds it."""
    return {"model": recipe.name, **asdict(recipe.config)}
