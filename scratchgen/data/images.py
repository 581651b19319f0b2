"""A part of a data set of images, as every data set here gives it."""

from dataclasses import dataclass

import numpy as np

from scratchgen.core.numerics import level_centres


@dataclass(frozen=True)
class Images:
    """N images as integer codes, with what is known about them.

    Attributes:
        codes: (N, H, W, C) uint8, the level k = 0..levels-1 of each pixel and channel.
        labels: (N,) uint8, the class.
        levels: K.
        factors: what each image was drawn from, name -> (N,) float64; None where nobody knows.
    """

    codes: np.ndarray
    labels: np.ndarray
    levels: int
    factors: dict[str, np.ndarray] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C), of one image."""
        return self.codes.shape[1:]

    @property
    def x(self) -> np.ndarray:
        """(N, H, W, C) float64 in (-1, 1): the centre (2k + 1)/K - 1 of each pixel's bin."""
        centres = level_centres(np.arange(self.levels, dtype=np.float64), self.levels)
        return centres[self.codes]

    def take(self, rows) -> "Images":
        """The images of a slice or of an array of indices."""
        known = self.factors
        factors = None if known is None else {name: known[name][rows] for name in known}
        return Images(self.codes[rows], self.labels[rows], self.levels, factors)

    def __len__(self) -> int:
        return len(self.codes)


def part_rows(part: str, train: int, held_out: int) -> slice:
    """Where a part lies in a data set that holds the training part, then the test part.

    Where something is to be chosen (sizes, steps, stopping), train on "fit", the training part
    without its end, and compare on "validation", that end.

    Args:
        part: "train", "fit", "validation" or "test".
        train: the number of training images.
        held_out: how many of them, at their end, are for validation.

    Raises:
        ValueError: an unknown part.
    """
    parts = {
        "train": slice(0, train),
        "fit": slice(0, train - held_out),
        "validation": slice(train - held_out, train),
        "test": slice(train, None),
    }
    if part not in parts:
        raise ValueError(f"part must be one of {', '.join(parts)}, got {part!r}")
    return parts[part]
