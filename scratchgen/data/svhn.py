"""SVHN's cropped digits, `train_32x32.mat` and `test_32x32.mat`: two matrices in a MAT 5 file.

    header   128 bytes, of which 116 are text, and the last four 0x0100 and "IM"
    element  its type and length, four bytes each; then its bytes, filled up to a multiple of 8
             (one of up to four bytes may instead be packed into eight with its tag)
    matrix   an element of type 14, of four elements: flags, sizes, name, numbers; or
             an element of type 15, not filled up: the same compressed by zlib

SciPy reads them. It trusts their types and lengths, so that one altered byte can end the process.
Therefore every tag is checked before, and SciPy sees only what was.
"""

import struct
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np

from scratchgen.core.optional import optional
from scratchgen.data.formats import ZLIB, DataError, inflate, read_bytes

HEADER = 128
MAGIC, ORDER = b"MATLAB 5.0 MAT-file", b"\x00\x01IM"
INT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 5, 6, 14, 15
NUMBERS = (1, 2, 3, 4, 5, 6, 7, 9, 12, 13)  # the types of stored numbers
CLASSES = range(6, 16)  # double, single and the integers; neither text, nor cells, nor sparse
COMPLEX_OR_LOGICAL = 0x0A00
SHAPE = (32, 32, 3)


def read_svhn(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one file; the label 10, which stands for the digit 0, becomes 0.

    Returns:
        (N, 32, 32, 3) and (N,) uint8.

    Raises:
        DataError: it is damaged, or holds something else.
        MissingPackage: SciPy is not installed.
    """
    loadmat = optional("scipy.io", "SVHN's .mat files").loadmat
    raw = read_bytes(path)
    if not raw.startswith(MAGIC) or raw[HEADER - 4 : HEADER] != ORDER:
        raise DataError(f"{path} must begin with the header of a little-endian MAT 5 file")
    matrices = [_checked(path, *element) for element in _elements(path, memoryview(raw)[HEADER:])]
    try:
        held = loadmat(BytesIO(raw[:HEADER] + b"".join(matrices)))
    except Exception as error:  # whatever SciPy raises on sizes that contradict each other
        raise DataError(f"{path} cannot be read as MAT 5 ({type(error).__name__})") from error
    names = sorted(name for name in held if not name.startswith("__"))
    if names != ["X", "y"] or len(matrices) != len(names):
        raise DataError(f"{path} must hold X and y, got {', '.join(names) or 'nothing'}")
    return _images_and_labels(path, held["X"], held["y"])


def _images_and_labels(path: Path, x, y) -> tuple[np.ndarray, np.ndarray]:
    if x.ndim != 4 or x.shape[:3] != SHAPE or not x.size or x.dtype != np.uint8:
        raise DataError(f"{path} must hold X (32, 32, 3, N) uint8, got {x.shape} {x.dtype}")
    if y.shape != (x.shape[3], 1):
        raise DataError(f"{path} must hold y ({x.shape[3]}, 1) beside X, got {y.shape}")
    if not np.isin(y, np.arange(1, 11)).all():
        raise DataError(f"{path} must hold labels 1 to 10, got others; it is damaged")
    return x.transpose(3, 0, 1, 2), (y[:, 0] % 10).astype(np.uint8)


def _elements(path: Path, raw: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The type and the bytes of each element."""
    while len(raw):
        if len(raw) < 8:
            raise DataError(f"{path} is cut off within the tag of an element; get it again")
        kind, length = struct.unpack("<II", raw[:8])
        start, end = 8, 8 + length if kind == COMPRESSED else 8 + -8 * (-length // 8)
        if kind >> 16:
            kind, length, start, end = kind & 0xFFFF, kind >> 16, 4, 8
        if end > len(raw) or start + length > end:
            raise DataError(f"{path} must hold elements as long as their tags say; get it again")
        yield kind, raw[start : start + length]
        raw = raw[end:]


def _checked(path: Path, kind: int, body: memoryview) -> bytes:
    """A matrix as an element that is not compressed, once its parts are known to be sound."""
    if kind == COMPRESSED:
        tag, rest = inflate(path, body, ZLIB, 8, lambda tag: int.from_bytes(tag[4:], "little"))
        kind, body = int.from_bytes(tag[:4], "little"), memoryview(rest)
    parts = list(islice(_elements(path, body), 5)) if kind == MATRIX else []
    kinds = [part for part, _ in parts]
    if kinds[:3] != [UINT32, INT32, INT8] or len(kinds) != 4 or kinds[3] not in NUMBERS:
        raise DataError(
            f"{path} must hold matrices of numbers only; it is damaged or another set's"
        )
    (_, flags), (_, sizes), _, _ = parts
    word = int.from_bytes(flags[:4], "little")
    plain = word & 0xFF in CLASSES and not word & COMPLEX_OR_LOGICAL
    if len(flags) != 8 or not plain or len(sizes) % 4:
        raise DataError(f"{path} must hold real matrices of numbers; it is damaged")
    return b"".join([struct.pack("<II", MATRIX, len(body)), body])
