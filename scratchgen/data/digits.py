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
    digits = _shipped()
    return digits.take(np.random.default_rng(0).permutation(len(digits))[rows])


def load_digits_1000(part: str) -> Images:
    """One part of the same digits in the order of the file, as a textbook splits them.

    The first 1,000 are for training, the next 350 for validation, and the last 447 are the test
    part. Its test part is another one, so numbers of the two splits are not to be compared.

    Args:
        part: "validation" or "test"; "train" and "fit" are the same, so that nothing is ever
            trained on the validation part.

    Returns:
        Images, with codes (N, 8, 8, 1).

    Raises:
        ValueError: an unknown part.

    Source: [Tomczak 2022]
    """
    rows = part_rows("fit" if part == "train" else part, 1350, 350)
    return _shipped().take(rows)


def _shipped() -> Images:
    """All of them, in the order of the file."""
    resource = files("scratchgen.data").joinpath("digits.npz")
    with resource.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return Images(archive["codes"], archive["labels"], LEVELS)
