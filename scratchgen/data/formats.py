"""Files that hold many images: IDX, the binary records of CIFAR, NumPy's arrays and archives.

Whatever a file says of itself (magic numbers, counts, lengths, checksums) is checked, so a file is
read as its format says or refused with a DataError that names it. Nothing is ever unpickled.
"""

import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from math import prod
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

LEVELS = 256
GZIP, ZLIB = 31, 15  # what zlib calls the window bits of the two kinds of stream
CIFAR_10, CIFAR_100 = (10,), (20, 100)  # classes of each label of a record
CIFAR_PIXELS = (3, 32, 32)
CODE_KEYS, LABEL_KEYS = ("x", "images", "codes"), ("labels", "y")
NPY_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class DataError(ValueError):
    """A data file or folder is missing, damaged, or not what its name says."""


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def inflate(
    path: Path, packed: bytes | memoryview, kind: int, head: int, promised: Callable[[bytes], int]
) -> tuple[bytes, bytes]:
    """Unpack one compressed stream: its head, then exactly as much as the head promises.

    No more than that is ever unpacked, so a small file cannot fill the memory unless it says so.

    Args:
        path: named in errors.
        packed: the stream, from its first byte to its last.
        kind: GZIP or ZLIB.
        head: the number of bytes of the head.
        promised: head -> the number of bytes that follow it; it may raise a DataError.

    Returns:
        (head, what follows it).

    Raises:
        DataError: the stream is damaged, cut off, of another length, or something follows it.
    """
    stream = zlib.decompressobj(kind)
    try:
        start = stream.decompress(packed, head)
        length = promised(start)
        rest = stream.decompress(stream.unconsumed_tail, min(length + 1, sys.maxsize))
    except zlib.error as error:
        raise DataError(f"{path} is damaged ({error}); get it again") from error
    check_length(path, rest, length)
    if not stream.eof or stream.unused_data:
        raise DataError(f"{path} must end where its compressed data end; get it again")
    return start, rest


def check_length(path: Path, body: bytes, length: int) -> None:
    """Hold that a header's promise is kept.

    Raises:
        DataError: more or fewer bytes follow.
    """
    if len(body) != length:
        came = "more" if len(body) > length else f"{len(body)}"
        raise DataError(
            f"{path} must hold {length} bytes after its header, got {came}; get it again"
        )


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The unsigned bytes of an IDX file, as MNIST has them; unpacked first if it ends in .gz.

        magic number 2048 + axes, the count of each axis, then the bytes, last axis fastest

    The magic number and the counts have four bytes each, the most significant first.

    Args:
        path: the file.
        axes: 3 for images (N, H, W), 1 for labels (N,).

    Raises:
        DataError: another magic number, a count of 0, or bytes that do not match the counts.
    """
    raw, head = read_bytes(path), 4 + 4 * axes

    def shape(start: bytes) -> tuple[int, ...]:
        magic = int.from_bytes(start[:4], "big")
        if magic != 2048 + axes:
            raise DataError(
                f"{path} must begin with the IDX magic number {2048 + axes}, got {magic}"
            )
        if len(start) < head:
            raise DataError(f"{path} must begin with {head} bytes of IDX header, got {len(start)}")
        counts = struct.unpack(f">{axes}I", start[4:])
        if 0 in counts:
            raise DataError(f"{path} holds nothing: its IDX counts are {list(counts)}")
        return counts

    if path.suffix == ".gz":
        start, body = inflate(path, raw, GZIP, head, lambda start: prod(shape(start)))
    else:
        start, body = raw[:head], raw[head:]
        check_length(path, body, prod(shape(start)))
    return np.frombuffer(body, np.uint8).reshape(shape(start))


def read_cifar(path: Path, classes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a CIFAR file of the binary version.

    A record is one byte for each label, then 3,072 for the red, the green and the blue plane.

    Args:
        path: the file.
        classes: CIFAR_10 or CIFAR_100; of several labels the last, finest one is kept.

    Returns:
        (N, 32, 32, 3) and (N,) uint8.

    Raises:
        DataError: a length that is not of whole records, or a label out of range.
    """
    raw, record = read_bytes(path), len(classes) + prod(CIFAR_PIXELS)
    if not raw or len(raw) % record:
        raise DataError(
            f"{path} must hold one or more records of {record} bytes, got {len(raw)} bytes; "
            "get it again"
        )
    records = np.frombuffer(raw, np.uint8).reshape(-1, record)
    labels, planes = records[:, : len(classes)], records[:, len(classes) :]
    if np.any(labels >= np.asarray(classes)):
        raise DataError(
            f"{path} must hold labels below {classes[-1]}, got others; "
            "it is damaged or another set's"
        )
    return planes.reshape(-1, *CIFAR_PIXELS).transpose(0, 2, 3, 1), labels[:, -1]


def read_npy(path: Path, raw: bytes) -> np.ndarray:
    """The integers of a .npy file.

    Args:
        path: named in errors.
        raw: the file's content.

    Raises:
        DataError: it is damaged, or holds anything but integers.
    """
    file = BytesIO(raw)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy repairs some headers, and says so
            shape, by_column, dtype = NPY_HEADERS[npy.read_magic(file)](file)
    except Exception as error:  # whatever NumPy raises on foreign or altered bytes
        raise DataError(f"{path} has no readable .npy header ({type(error).__name__})") from error
    if dtype.hasobject:
        raise DataError(f"{path} holds pickled Python objects, which are never read; save numbers")
    if dtype.kind not in "iu":
        raise DataError(f"{path} must hold integers, got {dtype}; convert them to uint8")
    if any(count < 0 for count in shape):
        raise DataError(f"{path} must have an array shape, got {shape}")
    body = raw[file.tell() :]
    check_length(path, body, prod(shape) * dtype.itemsize)
    return np.frombuffer(body, dtype).reshape(shape, order="F" if by_column else "C")


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Codes, labels (None if there are none) and levels of an .npz archive.

    The codes are called x, images or codes, the labels labels or y, the levels levels.

    Raises:
        DataError: it is damaged, codes are missing, or it holds something of another name.
    """
    raw = BytesIO(read_bytes(path))
    try:
        with zipfile.ZipFile(raw) as archive:
            entries = archive.infolist()
            members = {
                entry.filename.removesuffix(".npy"): archive.read(entry) for entry in entries
            }
    except Exception as error:  # whatever zipfile raises on foreign or altered bytes
        raise DataError(f"{path} cannot be read as .npz ({type(error).__name__})") from error
    codes = [key for key in members if key in CODE_KEYS]
    labels = [key for key in members if key in LABEL_KEYS]
    known = len(codes) + len(labels) + ("levels" in members)
    if len(codes) != 1 or len(labels) > 1 or known != len(entries):
        raise DataError(
            f"{path} must hold one of {', '.join(CODE_KEYS)}, at most one of "
            f"{', '.join(LABEL_KEYS)}, perhaps levels, and nothing else; "
            f"got {', '.join(members) or 'nothing'}"
        )
    arrays = {key: read_npy(path / key, members[key]) for key in members}
    levels = arrays.get("levels", np.asarray(LEVELS))
    if levels.shape != () or not 2 <= levels <= LEVELS:
        raise DataError(f"{path} must have one number of levels, 2 to {LEVELS}, got {levels}")
    return arrays[codes[0]], arrays[labels[0]] if labels else None, int(levels)
