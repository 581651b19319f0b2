"""Crops, smaller sizes and channels of images of 256 levels, in whole numbers.

mean of f × f codes   ⌊(Σ k + f²/2) / f²⌋
grey of red, green, blue   ⌊(299 R + 587 G + 114 B + 500) / 1000⌋   (luma of ITU-R BT.601)
"""

from pathlib import Path

import numpy as np

from scratchgen.data.formats import LEVELS, DataError

CROPS = ("none", "centre", "celeba")
CELEBA = (218, 178)  # rows and columns of the aligned images
CELEBA_SIDE = 148
LUMA = (299, 587, 114)
AT_ONCE = 1000  # images whose sums are held together


def cropped(path: Path, crop: str, height: int, width: int) -> tuple[int, int, int]:
    """The square that a crop keeps of an image.

    "none" keeps all of a square image, "centre" the largest square in the middle, and "celeba" the
    148×148 pixels in the middle of CelebA's aligned 178×218. Where the middle lies between two
    pixels, the square lies half a pixel further up and left.

    Args:
        path: named in errors.
        crop: one of CROPS.
        height, width: of the image.

    Returns:
        (first row, first column, rows and columns).

    Raises:
        DataError: the image is not of the shape that the crop is for.
    """
    if crop == "celeba" and (height, width) != CELEBA:
        raise DataError(
            f"{path} must have 178×218 pixels for the crop celeba, got {width}×{height}; "
            "choose another crop"
        )
    if crop == "none" and height != width:
        raise DataError(
            f"{path} must be square without a crop, got {width}×{height}; choose the crop centre"
        )
    side = CELEBA_SIDE if crop == "celeba" else min(height, width)
    return (height - side) // 2, (width - side) // 2, side


def shrink(path: Path, codes: np.ndarray, levels: int, size: int) -> np.ndarray:
    """Square images of a smaller size, each pixel the mean of a block of pixels.

    Args:
        path: named in errors.
        codes: (N, S, S, C) uint8.
        levels: K.
        size: pixels a side; a divisor of S.

    Raises:
        DataError: the size does not divide S, or means of codes would not be codes of the levels.
    """
    side = codes.shape[1]
    if side == size:
        return codes
    if side % size:
        raise DataError(
            f"{path} has square images of {side} pixels a side, which shrink to a divisor of "
            f"{side} only, got the size {size}"
        )
    if levels != LEVELS:
        raise DataError(f"{path} must have {LEVELS} levels to be resized, got {levels}")
    step = side // size

    def means(some):
        blocks = some.reshape(-1, size, step, size, step, some.shape[-1])
        return (blocks.sum(axis=(2, 4), dtype=np.uint32) + step**2 // 2) // step**2

    return _in_parts(means, codes, (size, size, codes.shape[-1]))


def in_colour(codes: np.ndarray, colour: bool | None) -> np.ndarray:
    """Codes (..., C) with three channels (True), with one (False), or as they are (None)."""
    if colour and codes.shape[-1] == 1:
        return np.repeat(codes, 3, axis=-1)
    if colour is False and codes.shape[-1] == 3:

        def grey(some):
            weighted = some @ np.asarray(LUMA, dtype=np.uint32)
            return ((weighted + 500) // 1000)[..., None]

        return _in_parts(grey, codes, (*codes.shape[1:-1], 1))
    return codes


def _in_parts(change, codes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    made = np.empty((len(codes), *shape), dtype=np.uint8)
    for start in range(0, len(codes), AT_ONCE):
        made[start : start + AT_ONCE] = change(codes[start : start + AT_ONCE])
    return made
