"""The options that every model has: config.json, and the flags of `train`."""

from collections.abc import Collection
from dataclasses import Field, dataclass, field, fields
from typing import Any

from scratchgen.app.recipes.data import (
    CROPS,
    KNOWN,
    NAMES,
    PLANAR,
    SET_APART,
    require_known,
    settled,
)

CONV = "conv"


def option(default, help: str, choices=None, pictures: bool = False) -> Any:
    """A dataclass field that becomes a flag of `train`, or of `sample` and `evaluate`.

    Args:
        default: its value where it is not given.
        help: of the flag.
        choices: the values it may have.
        pictures: whether it is for pictures alone: `sample` has it and `evaluate` does not, because
            the samples depend on each other, or more is kept of them.
    """
    about = {"help": help, "choices": choices, "pictures": pictures}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Config:
    """The options every model has: the contents of config.json, the flags of `train MODEL`.

    Raises:
        ValueError: a value is outside its range.
    """

    data: str = option("digits", f"data set: {KNOWN}, or the path of your own images")
    size: int = option(
        0,
        "pixels a side; 0 takes 8 for digits and shapes, and for arrays their own; pictures need "
        "one; 64 make conv nets 100 times slower than 8",
    )
    colour: bool = option(False, "three channels, red, green and blue, instead of grey")
    crop: str = option(
        "centre", "what is kept of a picture in a file, before it shrinks to --size", CROPS
    )
    net: str = option("mlp", "fully connected (mlp) or convolutional (conv)", ("mlp", CONV))
    steps: int = option(3000, "training steps in all")
    batch_size: int = option(128, "examples per step")
    seed: int = option(0, "random seed of initial weights, batches and noise")
    backend: str = option("numpy", "array library", ("numpy", "cupy"))
    dtype: str = option("float32", "floating type", ("float32", "float64"))
    width: int = option(
        0,
        "units per hidden layer, or channels at full resolution for conv; 0 takes 256, or 32",
    )
    depth: int = option(2, "hidden layers in the encoder and in the decoder; not for conv")
    learning_rate: float = option(4e-3, "Adam's peak rate, after warm-up and before cosine decay")
    ema: float = option(0.999, "decay of the weight average that is evaluated")
    hold_out: bool = option(
        False,
        "leave the validation part out of the training, to choose on; of "
        f"{', '.join(SET_APART)} it always is",
    )

    @property
    def left_open(self) -> dict[str, Any]:
        """What options stand for that are not given, where that depends on others."""
        return {"width": 32 if self.net == CONV else 256}

    @property
    def without_effect(self) -> dict[str, str]:
        """Options that say nothing here, and what they are for."""
        conv = {"depth": "fully connected nets; that of --net conv follows from --size"}
        built_in = {"crop": "pictures in files"}
        return (conv if self.net == CONV else {}) | (built_in if self.data in NAMES else {})

    def refuse_without_effect(self, given: Collection[str]) -> None:
        """Refuse options that say nothing here.

        Args:
            given: the names of those that were chosen.

        Raises:
            ValueError: there is one of them.
        """
        for name, what in self.without_effect.items():
            if name in given:
                raise ValueError(f"{flag_of(name)} is for {what}, so leave it out")

    def __post_init__(self):
        usual = {each.name: each.default for each in fields(self)} | self.left_open
        for each in fields(self):
            if getattr(self, each.name) == each.default:
                object.__setattr__(self, each.name, usual[each.name])
            value, choices = getattr(self, each.name), each.metadata["choices"]
            flag = flag_of(each.name)
            if not _is_a(value, each.type):
                raise ValueError(f"{flag} must be of type {_type_name(each)}, got {value!r}")
            if choices and value not in choices:
                known = ", ".join(map(str, choices))
                raise ValueError(f"{flag} must be one of {known}, got {value!r}")
        self.refuse_without_effect([name for name in usual if getattr(self, name) != usual[name]])
        if self.width < 0:
            raise ValueError(f"--width must be at least 1, or 0 for the default, got {self.width}")
        require_at_least(self, 1, "steps", "batch_size")
        require_at_least(self, 0, "seed", "depth", "size")
        require_below_one(self, "ema")
        require_positive(self, "learning_rate")
        require_known(self.data, self.size, self.colour)
        object.__setattr__(self, "data", settled(self.data))
        object.__setattr__(self, "hold_out", self.hold_out or self.data in SET_APART)

    @property
    def spatial(self) -> bool:
        """Whether the nets see images as images, and not as rows of numbers."""
        return self.net == CONV


@dataclass(frozen=True)
class ImageConfig(Config):
    """The options of a model that turns an image into a code and back.

    Raises:
        ValueError: a value is outside its range, or the data are no images.
    """

    dropout: float = option(0.15, "dropout rate behind every hidden layer")

    def __post_init__(self):
        super().__post_init__()
        require_below_one(self, "dropout")
        if self.data in PLANAR:
            raise ValueError(
                f"{self.data} are points in the plane, and this model is for images; "
                "train gan, ddpm or vdm on them"
            )
        if self.net == CONV and self.width % 8:
            raise ValueError(f"--width must be a multiple of 8 for --net conv, got {self.width}")


@dataclass(frozen=True)
class CodedConfig(ImageConfig):
    """The options of a model whose code is one vector.

    Raises:
        ValueError: a value is outside its range, or the data are no images.
    """

    latent: int = option(16, "size of the code z")

    def __post_init__(self):
        super().__post_init__()
        require_at_least(self, 1, "latent")


def whole_numbers(options, name: str) -> tuple[int, ...]:
    """What stands between the commas of a list of positive whole numbers; () for an empty one.

    Raises:
        ValueError: something else stands there.
    """
    text = getattr(options, name)
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(
            f"{flag_of(name)} must be whole numbers of at least 1 with commas between them, "
            f"got {text!r}"
        )
    return tuple(map(int, parts))


def numbers(options, name: str) -> tuple[float, ...]:
    """What stands between the commas of a list of numbers ≥ 0; () for an empty one.

    Raises:
        ValueError: something else stands there.
    """
    text = getattr(options, name)
    try:
        found = tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        found = (-1.0,)
    if not all(0.0 <= value < float("inf") for value in found):
        raise ValueError(
            f"{flag_of(name)} must be numbers ≥ 0 with commas between them, got {text!r}"
        )
    return found


def require_positive(options, *names: str) -> None:
    """Refuse values that are not positive and finite.

    Raises:
        ValueError: one of them is not.
    """
    for name in names:
        value = getattr(options, name)
        if not 0.0 < value < float("inf"):
            raise ValueError(f"{flag_of(name)} must be positive and finite, got {value}")


def require_not_negative(options, *names: str) -> None:
    """Refuse numbers that are negative or not finite.

    Raises:
        ValueError: one of them is.
    """
    for name in names:
        if not 0.0 <= getattr(options, name) < float("inf"):
            raise ValueError(
                f"{flag_of(name)} must be finite and not negative, got {getattr(options, name)}"
            )


def require_below_one(options, *names: str) -> None:
    """Refuse numbers outside [0, 1).

    Raises:
        ValueError: one of them is.
    """
    for name in names:
        if not 0.0 <= getattr(options, name) < 1.0:
            raise ValueError(f"{flag_of(name)} must lie in [0, 1), got {getattr(options, name)}")


def require_at_least(options, least: int, *names: str) -> None:
    """Refuse values that are smaller.

    Raises:
        ValueError: one of them is.
    """
    for name in names:
        value = getattr(options, name)
        if value < least:
            raise ValueError(f"{flag_of(name)} must be at least {least}, got {value}")


def flag_of(name: str) -> str:
    """An option as it is typed on the command line."""
    return "--" + name.replace("_", "-")


def _is_a(value, kind) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def _type_name(each: Field) -> str:
    return getattr(each.type, "__name__", str(each.type))
