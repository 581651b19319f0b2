"""Folders of pictures, such as CelebA, an exported LSUN, LFW, or one's own."""

import os
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from scratchgen.data.formats import DataError, read_bytes
from scratchgen.data.pixels import cropped, in_colour

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
DECODERS = ("PNG", "JPEG", "BMP", "WEBP")
# of the file -> as it is read; a channel of opacity may be there if it hides nothing
MODES = {"1": "L", "L": "L", "LA": "L", "P": "RGB", "RGB": "RGB", "RGBA": "RGB"}
ATTRIBUTES = "list_attr_celeba.txt"
SIGNS = {b"-1": -1.0, b"1": 1.0}
MOST_CLASSES = 255


def list_pictures(path: Path) -> list[Path]:
    """The picture files in a folder and below it, sorted; whatever is hidden by a dot stays so."""
    found = []
    for folder, below, names in os.walk(path):
        below[:] = [name for name in below if not name.startswith(".")]
        seen = (name for name in names if not name.startswith("."))
        found += [Path(folder, name) for name in seen if name.lower().endswith(SUFFIXES)]
    return sorted(found)


def read_pictures(
    pictures: Sequence[Path], size: int, colour: bool | None, crop: str
) -> np.ndarray:
    """Pictures cropped to a square and shrunk by Pillow's box filter.

    Args:
        pictures: their files: grey, black and white, RGB, or RGB by a palette, all opaque.
        size: pixels a side.
        colour: three channels (True), one (False), or as in the files (None).
        crop: one of CROPS.

    Returns:
        (N, size, size, 1 or 3) uint8.

    Raises:
        DataError: a file is damaged or of another kind, transparent somewhere, smaller than the
            size, or in colour beside grey ones.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of oddities beside the pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        first = _read_picture(pictures[0], size, colour, crop)
        codes = np.empty((len(pictures), *first.shape), dtype=np.uint8)
        for row, picture in enumerate(pictures):
            one = _read_picture(picture, size, colour, crop) if row else first
            if one.shape != first.shape:
                raise DataError(
                    f"{picture} has {one.shape[-1]} channels and {pictures[0]} has "
                    f"{first.shape[-1]}; choose colour, or grey, for all"
                )
            codes[row] = one
    return codes


def _read_picture(picture: Path, size: int, colour: bool | None, crop: str) -> np.ndarray:
    image = _decoded(picture)
    top, left, side = cropped(picture, crop, image.height, image.width)
    if side < size:
        raise DataError(
            f"{picture} must have at least {size} pixels a side after the crop, got {side}; "
            "choose a smaller size"
        )
    square = image.crop((left, top, left + side, top + side))
    pixels = np.asarray(square.resize((size, size), Image.Resampling.BOX))
    return in_colour(pixels.reshape(1, size, size, -1), colour)[0]


def _decoded(picture: Path) -> Image.Image:
    raw = read_bytes(picture)
    try:
        with Image.open(BytesIO(raw), formats=DECODERS) as image:
            image.verify()  # PNG's checksums, which decoding passes over
        with Image.open(BytesIO(raw), formats=DECODERS) as image:
            mode, opacity = image.mode, 255
            pixels = image.convert(MODES[mode]) if mode in MODES else None
            if pixels is not None and ("A" in mode or "transparency" in image.info):
                opacity = np.asarray(image.convert("RGBA"))[..., 3].min()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"{picture} unpacks to more pixels than is safe (Pillow's limit is "
            f"{Image.MAX_IMAGE_PIXELS}); shrink it first"
        ) from error
    except Exception as error:  # whatever Pillow raises on foreign or altered bytes
        raise DataError(
            f"{picture} cannot be read as PNG, JPEG, BMP or WebP ({type(error).__name__}); "
            "it is damaged or another kind of file"
        ) from error
    if pixels is None:
        raise DataError(f"{picture} must be grey or RGB, got Pillow's mode {mode}; convert it")
    if opacity < 255:
        raise DataError(
            f"{picture} must be opaque, and some of it is transparent; lay it on a background first"
        )
    return pixels


def folder_labels(path: Path, pictures: Sequence[Path]) -> np.ndarray:
    """The place of each picture's sub-folder, one level down, among their sorted names.

    Where a picture lies in none, or they are fewer than 2 or more than 255, all labels are 0.

    Returns:
        (N,) uint8.
    """
    places = [picture.relative_to(path).parts for picture in pictures]
    names = sorted({place[0] for place in places})
    if min(map(len, places)) < 2 or not 2 <= len(names) <= MOST_CLASSES:
        return np.zeros(len(pictures), dtype=np.uint8)
    labels = {name: label for label, name in enumerate(names)}
    return np.asarray([labels[place[0]] for place in places], dtype=np.uint8)


def find_attributes(path: Path) -> Path | None:
    """CelebA's list of attributes, in the folder or beside it."""
    beside = (path / ATTRIBUTES, path.absolute().parent / ATTRIBUTES)
    return next((file for file in beside if file.is_file()), None)


def read_attributes(path: Path, pictures: Sequence[Path]) -> dict[str, np.ndarray] | None:
    """The attributes of pictures by the name of their file.

    The list's first line is the number of pictures and its second names the attributes. Each
    further line is the name of a picture's file, and -1 or 1 for each attribute.

    Returns:
        name -> (N,) float64, -1 or 1; None if the list has none of the pictures.

    Raises:
        DataError: the list does not keep to this, or has some of the pictures only.
    """
    rows = [line.split() for line in read_bytes(path).split(b"\n") if line.strip()]
    listed, header = len(rows) - 2, rows[1] if len(rows) > 1 else []
    if rows[:1] != [[b"%d" % listed]] or not all(name.isascii() for name in header):
        raise DataError(
            f"{path} must begin with the number of pictures in it, {max(listed, 0)}, and names of "
            "attributes in ASCII; it is damaged or cut off"
        )
    table = {name: signs for name, *signs in rows[2:]}
    proper = all(len(s) == len(header) and SIGNS.keys() >= set(s) for s in table.values())
    names = [name.decode("ascii") for name in header]
    if not proper or len(table) != listed or len(set(names)) != len(names):
        raise DataError(
            f"{path} must list every picture once, with -1 or 1 for each of its {len(names)} "
            "attributes; it is damaged"
        )
    files = [os.fsencode(picture.name) for picture in pictures]
    missing = [file for file in files if file not in table]
    if len(missing) == len(files):
        return None
    if missing or len(set(files)) != len(files):
        raise DataError(
            f"{path} must have one line for each picture beside it, got {len(missing)} without; "
            "move it away to do without attributes"
        )
    signs = np.asarray([[SIGNS[sign] for sign in table[file]] for file in files])
    return {name: np.ascontiguousarray(column) for name, column in zip(names, signs.T, strict=True)}
