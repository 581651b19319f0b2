"""The 1,797 handwritten digits that ship with the package: 8×8 pixels, 17 grey levels, 10 classes.

See NOTICE in this folder for authors, source and licence.
"""

from importlib.resources import files

import numpy as np

from scratchgen.data.images import Images, part_rows

LEVELS = 17
TRAINING = 1437  # of a fixed random order; the rest is the test part
HELD_OUT = 137  # the end of the training part, on which every choice is made


def load_digits(part: str) -> Images:
    """One part of the digits: 8×8 pixels, grey, 17 levels; the label is the digit.

    The order is fixed: `default_rng(0).permutation(1797)`. The first 1,437 are for training, the
    last 137 of them for validation; the last 360 are the test part.

    Args:
        part: "train", "fit", "validation" or "test", as for `part_rows`.

    Returns:
        Images, with codes (N, 8, 8, 1).

    Raises:
        ValueError: an unknown part.
    """
    rows = part_rows(part, TRAINING, HELD_OUT)
    resource = files("scratchgen.data").joinpath("digits.npz")
    with resource.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        digits = Images(archive["codes"], archive["labels"], LEVELS)
    return digits.take(np.random.default_rng(0).permutation(len(digits))[rows])
