"""data/files.py: what lies at a path is recognised; parts and options do what they say."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.data.files import CIFAR_10_FILES, IDX_FILES, SVHN_FILES, fingerprint, load_files
from scratchgen.data.formats import DataError, read_bytes
from scratchgen.data.images import Images
from scratchgen.testing.strategies import seeds

import by_hand
from by_hand import placed
from support import some_codes

PARTS = ("train", "fit", "validation", "test")


def npz_file(folder, codes, **others):
    """The path of an archive of these codes; others are labels and levels."""
    members = {"x.npy": by_hand.npy(codes.tobytes(), codes.shape)}
    for name, value in others.items():
        members[f"{name}.npy"] = by_hand.npy(np.uint8(value).tobytes(), np.shape(value))
    return placed(folder, {"a.npz": by_hand.npz(members)}) / "a.npz"


def in_order(path, **options):
    """All codes, in the order of the file."""
    codes = np.concatenate([load_files(path, part, **options).codes for part in ("train", "test")])
    return codes[np.argsort(np.random.default_rng(0).permutation(len(codes)))]


def mnist(codes, train: int, packed=False) -> dict[str, bytes]:
    """The four files of MNIST; the labels count the images."""
    labels = np.arange(len(codes), dtype=np.uint8)
    parts = [a for rows in (slice(train), slice(train, None)) for a in (codes[rows], labels[rows])]
    if packed:
        return {
            f"{name}.gz": by_hand.gz(by_hand.idx(a))
            for name, a in zip(IDX_FILES, parts, strict=True)
        }
    return {name: by_hand.idx(a) for name, a in zip(IDX_FILES, parts, strict=True)}


@given(st.integers(3, 45))
def test_a_tenth_of_a_fixed_order_is_the_test_part(tmp_path_factory, n):
    codes = some_codes(0, n, 2, 3, 1)
    path = npz_file(tmp_path_factory.mktemp("a"), codes, y=np.arange(n))
    train, fit, validation, test = (load_files(path, part) for part in PARTS)
    assert len(test) == max(1, n // 10)
    assert len(validation) == max(1, len(train) // 10)
    order = np.random.default_rng(0).permutation(n)
    for images in (train, fit, validation, test):
        np.testing.assert_array_equal(images.codes, codes[images.labels])
    assert [*train.labels, *test.labels] == [*fit.labels, *validation.labels, *test.labels]
    assert [*train.labels, *test.labels] == order.tolist()


@pytest.mark.parametrize("packed", [False, True])
def test_sets_with_a_test_part_keep_it_and_their_order(tmp_path, packed):
    folder = placed(tmp_path, mnist(some_codes(0, 30, 4, 4), 21, packed))
    rows = [load_files(folder, part).labels.tolist() for part in PARTS]
    assert rows == [[*range(21)], [*range(19)], [19, 20], [*range(21, 30)]]


def test_the_unpacked_file_goes_before_the_packed_one(tmp_path):
    codes = some_codes(0, 5, 4, 4)
    placed(tmp_path, mnist(codes[::-1], 4, packed=True))
    placed(tmp_path, mnist(codes, 4))
    np.testing.assert_array_equal(load_files(tmp_path, "train").codes[..., 0], codes[:4])


def test_cifar_is_read_batch_after_batch(tmp_path):
    codes = some_codes(0, 7, 32, 32, 3)
    rows = np.split(np.arange(7), range(1, 6))
    files = {
        name: by_hand.cifar(some[:, None] % 10, codes[some])
        for name, some in zip(CIFAR_10_FILES, rows, strict=True)
    }
    folder = placed(tmp_path, files | {"readme.html": b"", "batches.meta.txt": b"airplane"})
    train, test = load_files(folder, "train"), load_files(folder, "test")
    np.testing.assert_array_equal(train.codes, codes[:5])
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 2, 3, 4], [5, 6])
    assert (train.levels, train.factors) == (256, None)


@given(seeds(), st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 3]))
def test_sizes_shrink_by_rounded_means(tmp_path_factory, seed, size, step, channels):
    codes = some_codes(seed, 3, size * step, size * step, channels)
    found = in_order(npz_file(tmp_path_factory.mktemp("a"), codes), size=size)
    assert found.shape == (3, size, size, channels)
    for (n, i, j, c), code in np.ndenumerate(found):
        block = codes[n, step * i : step * (i + 1), step * j : step * (j + 1), c]
        mean = Fraction(int(block.astype(int).sum()), step**2)
        assert code == (mean + Fraction(1, 2)).__floor__()


def test_more_images_than_are_shrunk_at_once(tmp_path):
    codes = some_codes(0, 2001, 2, 2, 3)
    found = in_order(npz_file(tmp_path, codes), size=1, colour=False)
    means = (codes.astype(int).sum(axis=(1, 2)) + 2) // 4
    np.testing.assert_array_equal(
        found[:, 0, 0, 0], (means @ np.asarray([299, 587, 114]) + 500) // 1000
    )


@given(seeds())
def test_grey_is_the_rounded_luma(tmp_path_factory, seed):
    codes = some_codes(seed, 3, 2, 5, 3)
    path = npz_file(tmp_path_factory.mktemp("a"), codes)
    found = in_order(path, colour=False)
    assert found.shape == (3, 2, 5, 1)
    for place in np.ndindex(3, 2, 5):
        red, green, blue = (int(k) for k in codes[place])
        luma = Fraction(299, 1000) * red + Fraction(587, 1000) * green + Fraction(114, 1000) * blue
        assert found[place][0] == (luma + Fraction(1, 2)).__floor__()
    np.testing.assert_array_equal(in_order(path), codes)
    np.testing.assert_array_equal(in_order(path, colour=True), codes)


def test_grey_becomes_three_equal_channels(tmp_path):
    codes = some_codes(0, 3, 2, 5)
    path = npz_file(tmp_path, codes)
    np.testing.assert_array_equal(in_order(path, colour=True), np.stack([codes] * 3, axis=-1))
    for colour in (False, None):
        np.testing.assert_array_equal(in_order(path, colour=colour), codes[..., None])


def test_mnist_is_padded_to_32_by_zeros(tmp_path):
    codes = some_codes(0, 3, 28, 28)
    folder = placed(tmp_path, mnist(codes, 2))
    padded = load_files(folder, "train", 32).codes
    assert padded.shape == (2, 32, 32, 1)
    np.testing.assert_array_equal(padded[:, 2:30, 2:30, 0], codes[:2])
    assert padded.sum() == codes[:2].sum()
    assert load_files(folder, "train", 14).codes.shape == (2, 14, 14, 1)
    assert load_files(folder, "train", 28).codes.shape == (2, 28, 28, 1)
    with pytest.raises(DataError, match="28 pixels a side, fewer than the size 33"):
        load_files(folder, "train", 33)


def test_only_mnist_is_padded(tmp_path):
    with pytest.raises(DataError, match="28 pixels a side, fewer than the size 32"):
        load_files(npz_file(tmp_path, some_codes(0, 3, 28, 28)), "train", 32)
    folder = placed(tmp_path, mnist(some_codes(0, 3, 28, 27), 2))
    with pytest.raises(DataError, match="27 pixels a side, fewer than the size 32"):
        load_files(folder, "train", 32)


def test_arrays_are_cut_only_for_a_size(tmp_path):
    codes = some_codes(0, 3, 4, 7, 3)
    path = npz_file(tmp_path, codes)
    np.testing.assert_array_equal(in_order(path), codes)
    np.testing.assert_array_equal(in_order(path, size=4), codes[:, :, 1:5])
    for options, sentence in (
        ({"size": 3}, "shrink to a divisor of 4 only, got the size 3"),
        ({"size": 4, "crop": "none"}, "must be square without a crop, got 7×4"),
        ({"size": 4, "crop": "celeba"}, "178×218"),
    ):
        with pytest.raises(DataError, match=sentence):
            load_files(path, "train", **options)


def test_codes_of_few_levels_keep_their_size(tmp_path):
    codes = some_codes(0, 3, 4, 4) % 17
    path = npz_file(tmp_path, codes, levels=17)
    assert load_files(path, "train", 4).levels == 17
    with pytest.raises(DataError, match="must have 256 levels to be resized, got 17"):
        load_files(path, "train", 2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"part": "all"}, "part must be one of train, fit, validation, test, got 'all'"),
        ({"crop": "center"}, "crop must be one of none, centre, celeba, got 'center'"),
        ({"size": 0}, "size must be at least 1 pixel, got 0"),
    ],
)
def test_unknown_options_are_refused_before_the_path_is_looked_at(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_files("nowhere", **({"part": "train"} | options))


@pytest.mark.parametrize(
    ("files", "opened", "sentence"),
    [
        ({}, "nowhere", "does not exist; name the folder or file of the images"),
        ({}, "", "no images of a kind known here; looked for a folder with train-images-idx3"),
        ({"a.tar.gz": b"x"}, "a.tar.gz", r"known here; .* and for a \.npy or \.npz file"),
        ({"a.npy": b"x"}, "", "no images of a kind known here"),
        ({"data_batch_1": b"", "test_batch": b""}, "", r"pickles are never read; .*binary version"),
        ({"train": b"", "test": b"", "meta": b""}, "", r"pickles are never read; .*binary version"),
        ({IDX_FILES[0]: b"", f"{IDX_FILES[1]}.gz": b""}, "", f"lacks {', '.join(IDX_FILES[2:])};"),
        ({"test_batch.bin": b""}, "", "lacks data_batch_1.bin, .*data_batch_5.bin; put all"),
        ({"train.bin": b""}, "", "lacks test.bin"),
        ({SVHN_FILES[1]: b""}, "", f"lacks {SVHN_FILES[0]}"),
        ({"train/a.txt": b"", "test/b.txt": b""}, "", "no images of a kind known here"),
    ],
)
def test_what_is_not_recognised_is_named(tmp_path, files, opened, sentence):
    with pytest.raises(DataError, match=sentence) as found:
        load_files(placed(tmp_path, files) / opened, "train")
    assert str(tmp_path / opened) in str(found.value)


def test_files_that_cannot_be_opened_are_named(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"a\.png cannot be read: No such file"):
        load_files(tmp_path, "train", 8)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_bytes(tmp_path)


def test_folders_named_like_the_pickles_may_hold_pictures(tmp_path):
    picture = by_hand.png(np.zeros((2, 2), np.uint8))
    folder = placed(tmp_path, {f"{name}/a.png": picture for name in ("train", "test", "meta")})
    assert len(load_files(folder, "train", 2)) == 2


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="2 images to train on and 1 to test, got 2"):
        load_files(npz_file(tmp_path, some_codes(0, 2, 4, 4)), "train")
    with pytest.raises(DataError, match="2 images to train on and 1 to test, got 9"):
        load_files(placed(tmp_path, mnist(some_codes(0, 9, 4, 4), 1)), "train")


def test_files_are_read_once_for_all_parts_and_again_once_changed(tmp_path):
    path = npz_file(tmp_path, some_codes(0, 10, 4, 4))
    train, fit = load_files(path, "train"), load_files(str(path), "fit")
    assert np.shares_memory(train.codes, fit.codes)
    for array in (train.codes, train.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    npz_file(tmp_path, some_codes(1, 11, 4, 4))
    assert len(load_files(path, "train")) == 10


def test_fingerprints_differ_where_images_do():
    codes, labels = some_codes(0, 4, 2, 3, 1) % 17, np.arange(4, dtype=np.uint8)
    same = [
        Images(codes, labels, 17),
        Images(np.asfortranarray(codes), labels.copy(), 17, {"known": np.ones(4)}),
    ]
    others = [
        Images(codes[::-1], labels, 17),
        Images(codes, labels[::-1], 17),
        Images(codes, labels, 18),
        Images(codes.reshape(4, 3, 2, 1), labels, 17),
    ]
    marks = [fingerprint(images) for images in same + others]
    assert marks[0] == marks[1]
    assert len(set(marks)) == 5
    assert all(len(mark) == 64 for mark in marks)
