"""The 1,797 handwritten digits that ship with the package: 8×8 pixels, 17 grey levels, 10 classes.

See NOTICE in this folder for authors, source and licence.
"""

from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from scratchgen.core.numerics import level_centres

LEVELS = 17
TRAINING = 1437  # of a fixed random order; the rest is the test part
HELD_OUT = 137  # the end of the training part, on which every choice is made


@dataclass(frozen=True)
class Digits:
    """One part of the data set.

    Attributes:
        codes: (N, 8, 8, 1) uint8, the grey level k = 0..16 of each pixel.
        labels: (N,) uint8, the digit 0..9.
        levels: 17.
    """

    codes: np.ndarray
    labels: np.ndarray
    levels: int = LEVELS

    @property
    def x(self) -> np.ndarray:
        """(N, 8, 8, 1) float64 in (-1, 1): the centre (2k + 1)/17 - 1 of each pixel's bin."""
        return level_centres(self.codes.astype(np.float64), self.levels)

    def __len__(self) -> int:
        return len(self.codes)


def load_digits(part: str) -> Digits:
    """One part of the digits.

    The order is fixed: `default_rng(0).permutation(1797)`. The first 1,437 are for training, the
    last 360 are the test part. Where something is to be chosen (sizes, steps, stopping), train on
    "fit", the first 1,300 of the training part, and compare on "validation", its last 137.

    Args:
        part: "train", "fit", "validation" or "test".

    Returns:
        Digits.

    Raises:
        ValueError: an unknown part.
    """
    parts = {
        "train": slice(0, TRAINING),
        "fit": slice(0, TRAINING - HELD_OUT),
        "validation": slice(TRAINING - HELD_OUT, TRAINING),
        "test": slice(TRAINING, None),
    }
    if part not in parts:
        raise ValueError(f"part must be one of {', '.join(parts)}, got {part!r}")
    resource = files("scratchgen.data").joinpath("digits.npz")
    with resource.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        codes, labels = archive["codes"], archive["labels"]
    chosen = np.random.default_rng(0).permutation(len(codes))[parts[part]]
    return Digits(codes[chosen], labels[chosen])
