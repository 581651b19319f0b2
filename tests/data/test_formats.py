"""data/formats.py and data/svhn.py: a file is read as its format says, or refused by name."""

import pickle
import re
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scratchgen.core.optional import MissingPackage
from scratchgen.data.files import CIFAR_10_FILES, IDX_FILES, load_files
from scratchgen.data.formats import GZIP, DataError, inflate
from scratchgen.testing.strategies import seeds

import by_hand
from by_hand import placed
from support import some_codes

Arrays = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A well-formed set of files, one of which will be altered.

    Attributes:
        files: name -> content.
        altered: the name of that one.
        reading: files -> codes and labels as the format has them, the test part last; None where
            it has none. Without the package.
        complete: whether every content with a reading must be read; else it may be refused.
        opened: the file to open, or "" for the folder.
        size: asked for.
    """

    files: dict[str, bytes]
    altered: str
    reading: Callable[[dict[str, bytes]], Arrays | None]
    complete: bool = False
    opened: str = ""
    size: int | None = None

    def read(self, files: dict[str, bytes]) -> Arrays | DataError:
        """What the package makes of the files."""
        with tempfile.TemporaryDirectory() as folder:
            path = placed(folder, files) / self.opened
            try:
                parts = [load_files(path, part, self.size) for part in ("train", "test")]
            except DataError as error:
                return error if folder in str(error) else DataError(f"unnamed: {error}")
        assert all(p.codes.dtype == p.labels.dtype == np.uint8 for p in parts)
        codes, labels = (
            np.concatenate([getattr(p, a) for p in parts]) for a in ("codes", "labels")
        )
        return codes, labels

    def hold(self, content: bytes) -> None:
        """Hold that the altered content is read as the format says, or refused."""
        files = self.files | {self.altered: content}
        found = self.read(files)
        if isinstance(found, DataError):
            assert str(found).startswith(tempfile.gettempdir())
            assert not (self.complete and self.reading(files)), f"refused a good file: {found}"
            return
        expected = self.reading(files)
        assert expected is not None, "read what is no file of this format"
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def mnist_reading(files: dict[str, bytes]) -> Arrays | None:
    arrays = [
        by_hand.idx_read(files[name], axes)
        for name, axes in zip(IDX_FILES, (3, 1, 3, 1), strict=True)
    ]
    if any(a is None for a in arrays) or len(arrays[0]) < 2:
        return None
    if len(arrays[0]) != len(arrays[1]) or len(arrays[2]) != len(arrays[3]):
        return None
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        return None
    codes, labels = (np.concatenate(arrays[i::2]) for i in (0, 1))
    return codes[..., None], labels


def cifar_reading(classes):
    def reading(files: dict[str, bytes]) -> Arrays | None:
        pairs = [by_hand.cifar_read(content, classes) for content in files.values()]
        if any(pair is None for pair in pairs) or sum(len(c) for c, _ in pairs[:-1]) < 2:
            return None
        codes, labels = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
        return codes, labels

    return reading


def shuffled(codes, labels) -> Arrays:
    order = np.random.default_rng(0).permutation(len(codes))
    return codes.reshape(*codes.shape[:3], -1)[order], labels[order]


def npy_reading(files: dict[str, bytes]) -> Arrays | None:
    codes = by_hand.npy_read(files["a.npy"])
    if codes is None or codes.ndim not in (3, 4):
        return None
    return shuffled(codes, np.zeros(len(codes), np.uint8))


def svhn_reading(files: dict[str, bytes]) -> Arrays | None:
    pairs = [by_hand.svhn_read(content) for content in files.values()]
    if any(pair is None for pair in pairs):
        return None
    codes, labels = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    return codes, labels


def as_before(*arrays) -> Callable:
    """Of a format with checksums over all that is read: the only reading is that before."""
    return lambda files: arrays


CODES, LABELS = some_codes(1, 5, 4, 3), np.asarray([9, 0, 255, 3, 4], np.uint8)
MNIST = {
    IDX_FILES[0]: by_hand.idx(CODES[:3]),
    IDX_FILES[1]: by_hand.idx(LABELS[:3]),
    IDX_FILES[2]: by_hand.idx(CODES[3:]),
    IDX_FILES[3]: by_hand.idx(LABELS[3:]),
}
MNIST_GZ = {f"{name}.gz": by_hand.gz(content) for name, content in MNIST.items()}
OF_32 = some_codes(2, 7, 32, 32, 3)
OF_10 = np.asarray([0, 9, 1, 8, 2, 7, 3], np.uint8)
OF_100 = np.stack([OF_10, 11 * OF_10], axis=1)
CIFAR_10 = {
    name: by_hand.cifar(OF_10[rows, None], OF_32[rows])
    for name, rows in zip(CIFAR_10_FILES, np.split(np.arange(7), range(1, 6)), strict=True)
}
CIFAR_100 = {
    "train.bin": by_hand.cifar(OF_100[:3], OF_32[:3]),
    "test.bin": by_hand.cifar(OF_100[3:], OF_32[3:]),
}
FLAT = np.repeat(some_codes(3, 3, 1, 1, 1), 3072).reshape(3, 32, 32, 3)  # compresses well


def svhn_files(codes, packed: bool) -> dict[str, bytes]:
    return {
        "train_32x32.mat": by_hand.svhn(codes[:2], OF_10[:2], packed),
        "test_32x32.mat": by_hand.svhn(codes[2:], OF_10[2 : len(codes)], packed),
    }


NPY = by_hand.npy(some_codes(4, 10, 2, 3).tobytes(), (10, 2, 3))
GREYS = some_codes(4, 10, 2, 3) % 17
MEMBERS = {
    "x.npy": by_hand.npy(GREYS.tobytes(), GREYS.shape),
    "y.npy": by_hand.npy(np.arange(10, dtype="<i8").tobytes(), (10,), "'<i8'"),
    "levels.npy": by_hand.npy(b"\x11", ()),
}
GREYS_READ = as_before(*shuffled(GREYS, np.arange(10)))
SQUARES = some_codes(5, 3, 4, 4, 3)
PNGS = {f"{i}.png": by_hand.png(pixels) for i, pixels in enumerate(SQUARES)}

CASES = {
    "images": Case(MNIST, IDX_FILES[0], mnist_reading, complete=True),
    "labels": Case(MNIST, IDX_FILES[3], mnist_reading, complete=True),
    "images.gz": Case(MNIST_GZ, f"{IDX_FILES[0]}.gz", as_before(CODES[..., None], LABELS)),
    "labels.gz": Case(MNIST_GZ, f"{IDX_FILES[1]}.gz", as_before(CODES[..., None], LABELS)),
    "cifar-10": Case(CIFAR_10, "data_batch_3.bin", cifar_reading((10,)), complete=True),
    "cifar-100": Case(CIFAR_100, "train.bin", cifar_reading((20, 100)), complete=True),
    "svhn": Case(svhn_files(OF_32[:3], False), "train_32x32.mat", svhn_reading),
    "svhn compressed": Case(svhn_files(FLAT, True), "train_32x32.mat", as_before(FLAT, OF_10[:3])),
    "npy": Case({"a.npy": NPY}, "a.npy", npy_reading, opened="a.npy"),
    "npz": Case({"a.npz": by_hand.npz(MEMBERS)}, "a.npz", GREYS_READ, opened="a.npz"),
    "npz stored": Case(
        {"a.npz": by_hand.npz(MEMBERS, zipfile.ZIP_STORED)}, "a.npz", GREYS_READ, opened="a.npz"
    ),
    "png": Case(PNGS, "1.png", as_before(*shuffled(SQUARES, np.zeros(3))), size=4),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@st.composite
def edits(draw, raw: bytes) -> bytes:
    """The bytes with a few changed, put in, taken out or cut off; mostly near either end."""
    last = len(raw) - 1
    ends = st.integers(0, min(last, 300)) | st.integers(max(0, last - 100), last)
    at = draw(ends | st.integers(0, last))
    there = draw(st.sampled_from(["change", "insert", "delete", "cut", "append"]))
    some = st.binary(min_size=1, max_size=8)
    if there == "change":
        return raw[:at] + bytes([raw[at] ^ draw(st.integers(1, 255))]) + raw[at + 1 :]
    if there == "insert":
        return raw[:at] + draw(some) + raw[at:]
    if there == "delete":
        return raw[:at] + raw[at + draw(st.integers(1, 8)) :]
    return raw[:at] if there == "cut" else raw + draw(some)


@every_case
def test_well_formed_files_are_read(case):
    found, expected = case.read(case.files), case.reading(case.files)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@every_case
@settings(max_examples=3 * settings().max_examples)
@given(data=st.data())
def test_edited_files_are_read_as_the_format_says_or_refused(case, data):
    case.hold(data.draw(edits(case.files[case.altered])))


@every_case
@given(data=st.data())
def test_files_edited_twice_are_read_as_the_format_says_or_refused(case, data):
    once = data.draw(edits(case.files[case.altered]))
    case.hold(data.draw(edits(once or b"?")))


@every_case
def test_every_byte_near_the_ends_counts(case):
    raw = case.files[case.altered]
    for at in {*range(min(len(raw), 260)), *range(max(0, len(raw) - 120), len(raw))}:
        for flip in (1 << at % 8, 0xFF):
            case.hold(raw[:at] + bytes([raw[at] ^ flip]) + raw[at + 1 :])


@every_case
@given(raw=st.binary(max_size=200))
def test_foreign_bytes_are_refused(case, raw):
    assert isinstance(case.read(case.files | {case.altered: raw}), DataError)


def complaint(case: Case, content: bytes) -> str:
    """The error of a content."""
    found = case.read(case.files | {case.altered: content})
    assert isinstance(found, DataError)
    return str(found)


def test_idx_errors_say_what_must_hold():
    case, raw = CASES["images"], MNIST[IDX_FILES[0]]
    assert "magic number 2051, got 2049" in complaint(case, by_hand.idx(LABELS))
    assert "must begin with 16 bytes of IDX header, got 7" in complaint(case, raw[:7])
    assert "must hold 36 bytes after its header, got 35; get it again" in complaint(case, raw[:-1])
    assert "must hold 36 bytes after its header, got more" in complaint(case, raw + b"\0")
    assert "holds nothing: its IDX counts are [0, 4, 3]" in complaint(case, by_hand.idx(CODES[:0]))
    two = by_hand.idx(CODES[:2])
    assert "a label for each image, got 3 labels and 2 images" in complaint(case, two)
    assert "images of one shape" in complaint(case, by_hand.idx(some_codes(0, 3, 4, 4)))


def test_gzip_errors_say_what_must_hold():
    case, raw = CASES["images.gz"], MNIST_GZ[f"{IDX_FILES[0]}.gz"]
    assert "incorrect data check" in complaint(case, raw[:-8] + b"\0" + raw[-7:])
    assert "must end where its compressed data end" in complaint(case, raw[:-3])
    assert "must end where its compressed data end" in complaint(case, raw + b"\0")
    assert "must end where its compressed data end" in complaint(case, raw + raw)
    assert "is damaged" in complaint(case, MNIST[IDX_FILES[0]])
    assert "IDX magic number 2051, got 2049" in complaint(case, by_hand.gz(by_hand.idx(LABELS)))


def test_no_more_is_unpacked_than_the_head_promises():
    bomb = by_hand.gz(b"head" + bytes(50_000_000))
    with pytest.raises(DataError, match="bomb must hold 10 bytes after its header, got more"):
        inflate(Path("bomb"), bomb, GZIP, 4, lambda head: 10)
    many = by_hand.gz(struct.pack(">4I", 2051, *3 * (2**32 - 1,)) + b"few")
    assert "must hold 7922816" in complaint(CASES["images.gz"], many)


@given(seeds(), st.integers(0, 60), st.integers(0, 3000), st.booleans())
def test_streams_are_unpacked_whole_wherever_the_head_ends(seed, head, rest, flat):
    raw = bytes(head + rest) if flat else some_codes(seed, head + rest + 1)[1:].tobytes()
    head = head or len(raw)  # zlib takes 0 for no limit
    if head:
        found = inflate(Path("x"), by_hand.gz(raw), GZIP, head, lambda start: len(raw) - head)
        assert found == (raw[:head], raw[head:])


def test_cifar_errors_say_what_must_hold():
    case, raw = CASES["cifar-10"], CIFAR_10["data_batch_3.bin"]
    assert "records of 3073 bytes, got 3072 bytes" in complaint(case, raw[:-1])
    assert "records of 3073 bytes, got 0 bytes" in complaint(case, b"")
    assert "must hold labels below 10" in complaint(case, b"\x0a" + raw[1:])
    coarse = CIFAR_100["train.bin"]
    assert "must hold labels below 100" in complaint(CASES["cifar-100"], b"\x14" + coarse[1:])


X = by_hand.mat_matrix(b"X", (32, 32, 3, 2), bytes(6144))
Y = by_hand.mat_matrix(b"y", (2, 1), b"\x01\x0a")
NEXT = by_hand.mat_matrix(b"z", (2, 1), b"\x01\x0a")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"MATLAB 7.3 MAT-file".ljust(200), "the header of a little-endian MAT 5 file"),
        (by_hand.MAT_HEADER[:-2] + b"MI" + X + Y, "the header of a little-endian MAT 5 file"),
        (by_hand.mat(), "must hold X and y, got nothing"),
        (by_hand.mat(X), "must hold X and y, got X"),
        (by_hand.mat(X, Y, NEXT), "must hold X and y, got X, y, z"),
        (by_hand.mat(X, Y)[:-9], "elements as long as their tags say"),
        (by_hand.mat(X, Y) + b"1234", "cut off within the tag"),
        (by_hand.mat(X, by_hand.mat_element(14, b"")), "matrices of numbers only"),
        (by_hand.mat(X, by_hand.mat_element(7, b"")), "matrices of numbers only"),
        (by_hand.mat(X, by_hand.mat_matrix(b"y", (2, 1), b"ab", kind=16)), "numbers only"),
        (by_hand.mat(X, by_hand.mat_matrix(b"y", (2, 1), b"ab", kind=2**15)), "numbers only"),
        (by_hand.mat(X, by_hand.mat_matrix(b"y", (2, 1), b"ab", flags=4)), "real matrices"),
        (by_hand.mat(X, by_hand.mat_matrix(b"y", (2, 1), b"ab", flags=0x809)), "real matrices"),
        (by_hand.mat(X, by_hand.mat_matrix(b"y", (3, 1), b"\1\2")), "cannot be read as MAT 5"),
        (by_hand.mat(X, by_hand.mat_matrix(b"y", (1, 2), b"\1\2")), r"y \(2, 1\) beside X"),
        (by_hand.mat(X, by_hand.mat_matrix(b"y", (2, 1), b"\0\1")), "labels 1 to 10"),
        (by_hand.mat(X, by_hand.mat_matrix(b"y", (2, 1), b"\x0b\1")), "labels 1 to 10"),
        (by_hand.mat(by_hand.mat_matrix(b"X", (2, 3), bytes(6)), Y), r"\(32, 32, 3, N\) uint8"),
        (
            by_hand.mat(by_hand.mat_matrix(b"X", (32, 32, 3, 2), bytes(12288), kind=4), Y),
            r"\(32, 32, 3, N\) uint8, got .* uint16",
        ),
    ],
)
def test_svhn_errors_say_what_must_hold(content, sentence):
    assert re.search(sentence, complaint(CASES["svhn"], content))


def test_a_zero_of_svhn_is_stored_as_ten_and_labels_may_be_doubles():
    doubles = by_hand.mat_matrix(b"y", (2, 1), struct.pack("<2d", 10.0, 3.0), kind=9, flags=6)
    case = CASES["svhn"]
    _, labels = case.read(case.files | {"train_32x32.mat": by_hand.mat(X, doubles)})
    assert labels.tolist() == [0, 3, 1]
    halves = by_hand.mat_matrix(b"y", (2, 1), struct.pack("<2d", 10.0, 2.5), kind=9, flags=6)
    assert "labels 1 to 10" in complaint(case, by_hand.mat(X, halves))


def test_svhn_needs_scipy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    placed(tmp_path, CASES["svhn"].files)
    with pytest.raises(MissingPackage, match=r"SVHN's .mat files need .* pip install scipy"):
        load_files(tmp_path, "train")


@pytest.mark.parametrize("descr", ["'|u1'", "'<u1'", "'>u1'", "'u1'", "'B'"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("by_column", [False, True])
def test_npy_of_every_spelling_is_read(descr, version, by_column):
    codes = some_codes(6, 4, 3, 2, 3)
    body = codes.tobytes(order="F" if by_column else "C")
    raw = by_hand.npy(body, codes.shape, descr, by_column, version)
    found, _ = CASES["npy"].read({"a.npy": raw})
    np.testing.assert_array_equal(found, shuffled(codes, np.zeros(4))[0])


class Evil:
    """Its pickle would run something."""

    def __reduce__(self):
        return (sys.exit, ("a pickle was read",))


PICKLE = by_hand.npy(pickle.dumps([Evil()]), (1,), "'|O'")


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (PICKLE, "pickled Python objects, which are never read"),
        (by_hand.npy(pickle.dumps([Evil()]), (1,), "[('a', 'O')]"), "pickled Python objects"),
        (by_hand.npy(bytes(64), (4, 2, 2), "'<f4'"), "must hold integers, got float32"),
        (by_hand.npy(bytes(32), (4, 2, 2), "'<i2'"), "must hold uint8 codes, got int16"),
        (by_hand.npy(bytes(15), (4, 2, 2)), "must hold 16 bytes after its header, got 15"),
        (by_hand.npy(bytes(17), (4, 2, 2)), "must hold 16 bytes after its header, got more"),
        (by_hand.npy(bytes(16), (-4, 2, -2)), "must have an array shape"),
        (by_hand.npy(bytes(16), (16,)), r"\(N, H, W\) or \(N, H, W, 1 or 3\), got shape \(16,\)"),
        (by_hand.npy(bytes(32), (4, 2, 2, 2)), "got shape"),
        (by_hand.npy(b"", (0, 2, 2)), "got shape"),
        (by_hand.npy(bytes(8), (2, 2, 2)), "2 images to train on and 1 to test, got 2"),
        (by_hand.npy(bytes(16), (4, 2, 2), "'\\d'"), "no readable .npy header"),
        (b"\x93NUMPY\x03\x00", "no readable .npy header"),
    ],
)
def test_npy_errors_say_what_must_hold(raw, sentence):
    assert re.search(sentence, complaint(CASES["npy"], raw))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"images.npy": MEMBERS["x.npy"]}, "one of x, images, codes, .* got x, y, levels, images"),
        ({"labels.npy": MEMBERS["y.npy"]}, "at most one of labels, y"),
        ({"other.npy": MEMBERS["y.npy"]}, "and nothing else"),
        ({"x": MEMBERS["x.npy"]}, "and nothing else"),
        ({"x.npy": PICKLE}, "pickled Python objects"),
        ({"y.npy": by_hand.npy(bytes(9), (9,))}, r"one label of 0 to 255 for each of 10"),
        ({"y.npy": by_hand.npy(bytes(9) + b"\xff", (10,), "'|i1'")}, "one label of 0 to 255"),
        ({"y.npy": by_hand.npy(bytes(19) + b"\x01", (10,), "'<i2'")}, "one label of 0 to 255"),
        ({"y.npy": by_hand.npy(bytes(10), (10, 1))}, "one label of 0 to 255"),
        ({"levels.npy": by_hand.npy(b"\x10", ())}, "codes below its 16 levels, got 16"),
        ({"levels.npy": by_hand.npy(b"\x01", ())}, "2 to 256, got 1"),
        ({"levels.npy": by_hand.npy(b"\x01\x01", (), "'<i2'")}, "2 to 256, got 257"),
        ({"levels.npy": by_hand.npy(b"\x11", (1,))}, "one number of levels"),
    ],
)
def test_npz_errors_say_what_must_hold(change, sentence):
    assert re.search(sentence, complaint(CASES["npz"], by_hand.npz(MEMBERS | change)))


def test_npz_without_codes_is_refused():
    only = {"y.npy": MEMBERS["y.npy"]}
    assert "got y" in complaint(CASES["npz"], by_hand.npz(only))
    assert "got nothing" in complaint(CASES["npz"], by_hand.npz({}))


@pytest.mark.parametrize("key", ["x", "images", "codes"])
def test_npz_has_labels_and_levels_only_if_it_says_so(tmp_path, key):
    placed(tmp_path, {"a.npz": by_hand.npz({f"{key}.npy": MEMBERS["x.npy"]})})
    images = load_files(tmp_path / "a.npz", "train")
    assert images.levels == 256
    assert images.factors is None
    assert not images.labels.any()
    placed(tmp_path, {"b.npz": by_hand.npz(MEMBERS)})
    assert load_files(tmp_path / "b.npz", "train").levels == 17


def test_the_matrix_by_hand_is_what_scipy_reads(tmp_path):
    from scipy.io import loadmat

    held = loadmat(placed(tmp_path, svhn_files(OF_32[:3], True)) / "test_32x32.mat")
    np.testing.assert_array_equal(held["X"][..., 0], OF_32[2])
    assert held["y"].tolist() == [[1]]
