"""What every recipe has in common: data, nets, optimiser and the doors a command knocks at."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from scratchgen.app import plots
from scratchgen.app.recipes.config import CONV, Config
from scratchgen.core.arrays import backend, to_host
from scratchgen.core.module import FlatParameters, Module
from scratchgen.core.streams import Stream
from scratchgen.data.digits import load_digits
from scratchgen.data.images import Images
from scratchgen.data.shapes import load_shapes
from scratchgen.layers.combinators import Sequential
from scratchgen.metrics.likelihood import at_once, in_batches
from scratchgen.nets.convnet import conv_decoder, conv_encoder
from scratchgen.nets.mlp import mlp
from scratchgen.training.checkpoint import CheckpointError, load
from scratchgen.training.fit import Fit, batch_indices, restore_parameters
from scratchgen.training.optim import Adam, Ema, warmup_cosine

LOADERS: dict[str, Callable[[str, Config], Images]] = {
    "digits": lambda part, config: load_digits(part),
    "shapes": lambda part, config: load_shapes(part, config.size, config.colour),
}


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
        self.at_once = at_once(self.shape)  # examples to evaluate together
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
        self._x = self.examples(self.fitted)

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
        """x (N, ...), as `examples` gives it, through the model and back."""

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

    def nets(self, encoded: int, numbers: int = 1) -> tuple[Sequential, Sequential]:
        """The encoder and the decoder, convolutional or fully connected.

        Args:
            encoded: how many numbers the encoder gives for an example.
            numbers: how many the decoder gives for each pixel and channel.
        """
        config, (height, width, channels) = self.config, self.shape
        if config.net == CONV:
            seen = (height, width, channels * numbers)
            return (
                conv_encoder(self.shape, encoded, config.width, config.dropout, reads_data=True),
                conv_decoder(seen, config.latent, config.width, config.dropout),
            )
        hidden = [config.width] * config.depth
        return (
            mlp([self.dims, *hidden, encoded], dropout=config.dropout, reads_data=True),
            mlp([config.latent, *hidden, self.dims * numbers], dropout=config.dropout),
        )

    def part(self, name: str) -> Images:
        """One part of the run's data set."""
        return LOADERS[self.config.data](name, self.config)

    def examples(self, data: Images):
        """The examples as the model reads them, on the run's backend.

        They are (N, H, W, C) for convolutional nets and (N, H·W·C) for fully connected ones.
        """
        x = data.x
        return self.born.asarray(x if self.config.net == CONV else x.reshape(len(x), -1))

    def images(self, x) -> np.ndarray:
        """What the model gives for examples, as host images (N, H, W, C)."""
        return to_host(x).reshape(-1, *self.shape)

    def batch(self, step: int, rows: slice):
        """The chosen rows of a step's batch (n, ...), and the step's noise for those rows."""
        indices = batch_indices(
            self.stream.at("batches"), len(self.fitted), self.config.batch_size, step
        )[rows]
        x = self.born.xp.take(self._x, self.born.indices(indices), axis=0)
        return x, self.stream.at("train", step).from_row(rows.start)

    def reconstruction_figure(self, folder: Path, part: str) -> None:
        """figures/reconstructions_PART.png: sixteen images and what comes back."""
        some = self.part(part).take(slice(16))
        back = in_batches(self.reconstruct, self.examples(some), self.at_once)
        path = folder / "figures" / f"reconstructions_{part}.png"
        title = f"{part} {self.config.data} and their reconstructions"
        plots.reconstructions(path, some.x, self.images(back), title)


def config_to_json(recipe: Recipe) -> dict:
    """The configuration as `config.json` holds it."""
    return {"model": recipe.name, **asdict(recipe.config)}
