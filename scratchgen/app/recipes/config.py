"""The options that every model has: config.json, and the flags of `train`."""

from dataclasses import Field, dataclass, field, fields
from typing import Any

from scratchgen.data.shapes import SIZES

DATA = ("digits", "shapes")
CONV = "conv"


def option(default, help: str, choices=None) -> Any:
    """A dataclass field that becomes a flag of `train`."""
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Config:
    """The options every model has: the contents of config.json, the flags of `train MODEL`.

    Raises:
        ValueError: a value is outside its range.
    """

    data: str = option("digits", "data set: handwritten digits or drawn shapes", DATA)
    size: int = option(8, "pixels a side; digits have 8; 64 make conv nets 100 times slower", SIZES)
    colour: bool = option(False, "shapes in red, green and blue instead of grey")
    net: str = option("mlp", "fully connected (mlp) or convolutional (conv)", ("mlp", CONV))
    steps: int = option(3000, "training steps in all")
    batch_size: int = option(128, "examples per step")
    seed: int = option(0, "random seed of initial weights, batches and noise")
    backend: str = option("numpy", "array library", ("numpy", "cupy"))
    dtype: str = option("float32", "floating type", ("float32", "float64"))
    latent: int = option(16, "size of the code z")
    width: int = option(
        0,
        "units per hidden layer, or channels at full resolution for conv; 0 takes 256, or 32",
    )
    depth: int = option(2, "hidden layers in the encoder and in the decoder; not for conv")
    dropout: float = option(0.15, "dropout rate behind every hidden layer")
    learning_rate: float = option(4e-3, "Adam's peak rate, after warm-up and before cosine decay")
    ema: float = option(0.999, "decay of the weight average that is evaluated")
    hold_out: bool = option(False, "leave the validation part out of the training, to choose on")

    def __post_init__(self):
        for each in fields(self):
            value, choices = getattr(self, each.name), each.metadata["choices"]
            flag = _flag(each.name)
            if not _is_a(value, each.type):
                raise ValueError(f"{flag} must be of type {_type_name(each)}, got {value!r}")
            if choices and value not in choices:
                known = ", ".join(map(str, choices))
                raise ValueError(f"{flag} must be one of {known}, got {value!r}")
        if self.width == 0:
            object.__setattr__(self, "width", 32 if self.net == CONV else 256)
        if self.width < 0:
            raise ValueError(f"--width must be at least 1, or 0 for the default, got {self.width}")
        for name in ("steps", "batch_size", "latent"):
            if getattr(self, name) < 1:
                raise ValueError(f"{_flag(name)} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "depth"):
            if getattr(self, name) < 0:
                raise ValueError(f"{_flag(name)} must be at least 0, got {getattr(self, name)}")
        for name in ("dropout", "ema"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{_flag(name)} must lie in [0, 1), got {getattr(self, name)}")
        require_positive(self, "learning_rate")
        if self.data == "digits" and (self.size != 8 or self.colour):
            asked = f"{self.size}×{self.size} pixels{' in colour' if self.colour else ''}"
            raise ValueError(f"the digits are 8×8 pixels and grey; for {asked} add --data shapes")
        if self.net == CONV:
            self._check_conv()

    def _check_conv(self):
        """Refuse what a convolutional net cannot be built with.

        Raises:
            ValueError: a depth was chosen, or the width is no multiple of 8.
        """
        if self.depth != Config.depth:
            raise ValueError(
                "--depth is for fully connected nets; that of --net conv follows from --size, so "
                "leave it out"
            )
        if self.width % 8:
            raise ValueError(f"--width must be a multiple of 8 for --net conv, got {self.width}")


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
