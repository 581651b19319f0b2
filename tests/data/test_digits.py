"""data/digits.py."""

from importlib.resources import files

import numpy as np
import pytest

from scratchgen.core.numerics import level_codes
from scratchgen.data.digits import LEVELS, load_digits, load_digits_1000


def test_parts_are_the_fixed_split():
    train, fit, validation, test = map(load_digits, ("train", "fit", "validation", "test"))
    assert [len(p) for p in (train, fit, validation, test)] == [1437, 1300, 137, 360]
    np.testing.assert_array_equal(train.codes, np.concatenate([fit.codes, validation.codes]))
    order = np.random.default_rng(0).permutation(1797)
    everything = np.empty((1797, 8, 8, 1), dtype=np.uint8)
    everything[order] = np.concatenate([train.codes, test.codes])
    # the first image of the set is a 0; its top rows as the repository prints them
    assert everything[0, :2, :, 0].tolist() == [
        [0, 0, 5, 13, 9, 1, 0, 0],
        [0, 0, 13, 15, 10, 15, 5, 0],
    ]
    labels = np.empty(1797, dtype=np.uint8)
    labels[order] = np.concatenate([train.labels, test.labels])
    assert labels[:10].tolist() == list(range(10))  # as the set begins


def test_the_other_split_is_the_order_of_the_file_in_three_pieces():
    parts = list(map(load_digits_1000, ("fit", "validation", "test")))
    assert [len(part) for part in parts] == [1000, 350, 447]
    with (
        files("scratchgen.data").joinpath("digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as shipped,
    ):
        for name in ("codes", "labels"):  # each row once and in order: disjoint and complete
            pieces = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(pieces, shipped[name])
    np.testing.assert_array_equal(load_digits_1000("train").codes, parts[0].codes)
    assert {part.levels for part in parts} == {LEVELS}


def test_both_splits_hold_the_same_digits():
    def rows(load):
        parts = map(load, ("fit", "validation", "test"))
        return sorted(row.tobytes() for part in parts for row in part.codes)

    assert rows(load_digits) == rows(load_digits_1000)


def test_values_are_seventeen_levels_scaled_to_the_open_interval():
    digits = load_digits("train")
    assert digits.levels == LEVELS == 17
    assert sorted(np.unique(digits.codes)) == list(range(17))
    assert np.abs(digits.x).max() == 16.0 / 17.0
    np.testing.assert_array_equal(level_codes(digits.x, 17), digits.codes)


def test_the_notice_travels_with_the_data():
    notice = files("scratchgen.data").joinpath("NOTICE").read_text("utf-8")
    assert all(word in notice for word in ("Alpaydin", "Kaynak", "UCI", "CC BY 4.0"))


@pytest.mark.parametrize("load", [load_digits, load_digits_1000])
def test_unknown_parts_are_refused(load):
    with pytest.raises(ValueError, match="one of train, fit, validation, test, got 'all'"):
        load("all")
