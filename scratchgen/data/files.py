"""One's own image data: what lies at a path is recognised, checked and read as Images.

MNIST and its kin   train-images-idx3-ubyte and three more, each perhaps with .gz
CIFAR-10, CIFAR-100 the folder of the binary version: data_batch_1.bin ..., or train.bin ...
SVHN                train_32x32.mat and test_32x32.mat
pictures            a folder of .png, .jpg, .jpeg, .bmp or .webp files, nested as one likes
arrays              a .npy or .npz file of uint8 codes (N, H, W) or (N, H, W, 1 or 3)
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scratchgen.data.folders import (
    SUFFIXES,
    find_attributes,
    folder_labels,
    list_pictures,
    read_attributes,
    read_pictures,
)
from scratchgen.data.formats import (
    CIFAR_10,
    CIFAR_100,
    LEVELS,
    DataError,
    read_bytes,
    read_cifar,
    read_idx,
    read_npy,
    read_npz,
)
from scratchgen.data.images import Images, part_rows
from scratchgen.data.pixels import CROPS, cropped, in_colour, shrink
from scratchgen.data.svhn import read_svhn

IDX_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)
CIFAR_10_FILES = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
CIFAR_100_FILES = ("train.bin", "test.bin")
SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")
PICKLES = ({"data_batch_1"}, {"train", "test", "meta"})  # of CIFAR's archives for Python
IDX_SIDE, PADDED_SIDE = 28, 32
TENTH = 10


class Wish(NamedTuple):
    """The options of `load_files` that change the pixels."""

    size: int | None
    colour: bool | None
    crop: str


Whole = tuple[Images, int]  # all images, and how many of them, from the first, are for training
Reader = Callable[[Path, Sequence[Path], Wish], Whole]


def load_files(
    path: str | Path,
    part: str,
    size: int | None = None,
    colour: bool | None = None,
    crop: str = "centre",
) -> Images:
    """One part of the images at a path.

    MNIST, CIFAR and SVHN come with a test part. Of others, the test part is the last tenth of the
    fixed order `default_rng(0).permutation(N)`. The last tenth of the training part, in the order
    of the files, is for validation. A tenth is rounded down, but is one image at least.

    With a size, images are cropped to a square, which changes nothing in sets of square images, and
    shrunk: pictures in files by Pillow's box filter, other sets by the mean of blocks of pixels, so
    the size must divide theirs. The 28×28 pixels of MNIST also become 32×32, by two rows or columns
    of zeros on every side, as nets that halve the size need.

    Args:
        path: a folder or file, as this module's first lines list them.
        part: "train", "fit", "validation" or "test", as for `part_rows`.
        size: pixels a side; None for those of the files, but pictures need one.
        colour: three channels, grey ones repeated (True); one, the luma of ITU-R BT.601, rounded
            (False); as in the files (None).
        crop: "centre", "celeba" or "none", as for `cropped`; without a size nothing is cropped.

    Returns:
        Images. Labels are those of the set, the sub-folder's place for pictures sorted into 2 to
        255 sub-folders, and else 0. Factors are CelebA's attributes, where list_attr_celeba.txt
        lies in the folder or beside it. The arrays are shared between calls, and cannot be written
        to.

    Raises:
        ValueError: an unknown part or crop, or a size below 1.
        DataError: there is nothing of the kind, or a file is damaged, mislabelled or too small.
        MissingPackage: SVHN's files need SciPy.
    """
    path = Path(path)
    part_rows(part, 2, 1)  # an unknown part is refused before anything is read
    if crop not in CROPS:
        raise ValueError(f"crop must be one of {', '.join(CROPS)}, got {crop!r}")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    read, files = _recognised(path)
    stamp = tuple(map(_stamp, files))
    images, training = _whole(read, path, files, stamp, Wish(size, colour, crop))
    return images.take(part_rows(part, training, max(1, training // TENTH)))


def fingerprint(images: Images) -> str:
    """The SHA-256 of shape, levels, codes and labels, as 64 hexadecimal digits."""
    total = hashlib.sha256(f"{images.codes.shape}|{images.levels}|".encode())
    for array in (images.codes, images.labels):
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        known = file.stat()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    return known.st_dev, known.st_ino, known.st_mtime_ns, known.st_size


@lru_cache(maxsize=1)
def _whole(read: Reader, path: Path, files: Sequence[Path], stamp: tuple, wish: Wish) -> Whole:
    """Everything at the path; read once for all parts, and again when a file's stamp changes."""
    images, training = read(path, files, wish)
    if training < 2 or len(images) == training:
        raise DataError(f"{path} must hold 2 images to train on and 1 to test, got {len(images)}")
    for array in (images.codes, images.labels, *(images.factors or {}).values()):
        array.flags.writeable = False
    return images, training


def _recognised(path: Path) -> tuple[Reader, tuple[Path, ...]]:
    """What reads the data at a path, and the files it reads."""
    if path.is_file() and path.suffix in (".npy", ".npz"):
        return _read_arrays, (path,)
    if not path.exists():
        raise DataError(f"{path} does not exist; name the folder or file of the images")
    names = {file.name for file in path.iterdir() if file.is_file()} if path.is_dir() else set()
    if any(names >= pickled for pickled in PICKLES):
        raise DataError(
            f"{path} holds CIFAR's archive for Python, whose pickles are never read; "
            "get the binary version (files ending in .bin)"
        )
    for read, wanted in SETS.items():
        there = {name: name if name in names else f"{name}.gz" for name in wanted}
        missing = [name for name in wanted if there[name] not in names]
        if not missing:
            return read, tuple(path / there[name] for name in wanted)
        if len(missing) < len(wanted):
            raise DataError(f"{path} lacks {', '.join(missing)}; put all files of the set there")
    pictures = list_pictures(path)
    if not pictures:
        raise DataError(f"{path} holds no images of a kind known here; looked for {LOOKED_FOR}")
    attributes = find_attributes(path)
    return _read_folder, (*pictures, *([attributes] if attributes else []))


def _shuffled(n: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(n)


def _training(n: int) -> int:
    return n - max(1, n // TENTH)


def _read_folder(path: Path, files: Sequence[Path], wish: Wish) -> Whole:
    if wish.size is None:
        raise DataError(f"{path} holds pictures, which need a size; choose one, such as 32")
    *pictures, last = files
    listed = last.suffix.lower() not in SUFFIXES
    if not listed:
        pictures.append(last)
    pictures = [pictures[i] for i in _shuffled(len(pictures))]
    factors = read_attributes(last, pictures) if listed else None
    codes = read_pictures(pictures, wish.size, wish.colour, wish.crop)
    return Images(codes, folder_labels(path, pictures), LEVELS, factors), _training(len(codes))


def _read_arrays(path: Path, files: Sequence[Path], wish: Wish) -> Whole:
    labels, levels = None, LEVELS
    if path.suffix == ".npz":
        codes, labels, levels = read_npz(path)
    else:
        codes = read_npy(path, read_bytes(path))
    if codes.ndim == 3:
        codes = codes[..., None]
    if codes.ndim != 4 or codes.shape[-1] not in (1, 3) or not codes.size:
        raise DataError(
            f"{path} must hold images (N, H, W) or (N, H, W, 1 or 3), got shape {codes.shape}"
        )
    if codes.dtype != np.uint8:
        raise DataError(f"{path} must hold uint8 codes, got {codes.dtype}; convert them")
    if codes.max() >= levels:
        raise DataError(f"{path} must hold codes below its {levels} levels, got {codes.max()}")
    labels = np.zeros(len(codes), dtype=np.uint8) if labels is None else labels
    if labels.shape != (len(codes),) or labels.min() < 0 or labels.max() > 255:
        raise DataError(
            f"{path} must hold one label of 0 to 255 for each of {len(codes)} images, "
            f"got shape {labels.shape}"
        )
    order = _shuffled(len(codes))
    images = Images(codes[order], labels[order].astype(np.uint8), levels)
    return _fitted(path, images, wish), _training(len(codes))


def _read_idx(path: Path, files: Sequence[Path], wish: Wish) -> Whole:
    codes, labels = ([read_idx(file, axes) for file in files[i::2]] for i, axes in ((0, 3), (1, 1)))
    pairs = [(images[..., None], of) for images, of in zip(codes, labels, strict=True)]
    images, training = _joined(path, pairs)
    if wish.size == PADDED_SIDE and images.codes.shape[1:3] == (IDX_SIDE, IDX_SIDE):
        margin = (PADDED_SIDE - IDX_SIDE) // 2
        padded = np.pad(images.codes, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        images = Images(padded, images.labels, LEVELS)
    return _fitted(path, images, wish), training


def _read_records(path: Path, files: Sequence[Path], wish: Wish, read) -> Whole:
    images, training = _joined(path, [read(file) for file in files])
    return _fitted(path, images, wish), training


def _joined(path: Path, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Whole:
    """Codes and labels file by file, of which the last is the test part."""
    for codes, labels in pairs:
        if len(codes) != len(labels):
            raise DataError(
                f"{path} must hold a label for each image, got {len(labels)} labels and "
                f"{len(codes)} images"
            )
    shapes = {codes.shape[1:] for codes, _ in pairs}
    if len(shapes) > 1:
        raise DataError(f"{path} must hold images of one shape, got {sorted(shapes)}")
    codes, labels = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    return Images(codes, labels, LEVELS), len(codes) - len(pairs[-1][0])


def _fitted(path: Path, images: Images, wish: Wish) -> Images:
    """Cropped, then shrunk, then with the channels wished for."""
    codes = images.codes
    if wish.size is not None:
        top, left, side = cropped(path, wish.crop, *codes.shape[1:3])
        if side < wish.size:
            raise DataError(f"{path} has {side} pixels a side, fewer than the size {wish.size}")
        codes = codes[:, top : top + side, left : left + side]
        codes = shrink(path, codes, images.levels, wish.size)
    codes = np.ascontiguousarray(in_colour(codes, wish.colour))
    return Images(codes, images.labels, images.levels)


SETS: dict[Reader, tuple[str, ...]] = {
    _read_idx: IDX_FILES,
    partial(_read_records, read=partial(read_cifar, classes=CIFAR_10)): CIFAR_10_FILES,
    partial(_read_records, read=partial(read_cifar, classes=CIFAR_100)): CIFAR_100_FILES,
    partial(_read_records, read=read_svhn): SVHN_FILES,
}
LOOKED_FOR = (
    f"a folder with {', '.join(IDX_FILES)} (each perhaps with .gz), "
    f"with {CIFAR_10_FILES[0]} to {CIFAR_10_FILES[-1]}, with {', '.join(CIFAR_100_FILES)}, "
    f"with {', '.join(SVHN_FILES)}, or with pictures ({', '.join(SUFFIXES)}), "
    "and for a .npy or .npz file"
)
