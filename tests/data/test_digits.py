"""data/digits.py."""

from importlib.resources import files

import numpy as np
import pytest

from scratchgen.core.numerics import level_codes
from scratchgen.data.digits import LEVELS, load_digits


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


def test_values_are_seventeen_levels_scaled_to_the_open_interval():
    digits = load_digits("train")
    assert digits.levels == LEVELS == 17
    assert sorted(np.unique(digits.codes)) == list(range(17))
    assert np.abs(digits.x).max() == 16.0 / 17.0
    np.testing.assert_array_equal(level_codes(digits.x, 17), digits.codes)


def test_the_notice_travels_with_the_data():
    notice = files("scratchgen.data").joinpath("NOTICE").read_text("utf-8")
    assert all(word in notice for word in ("Alpaydin", "Kaynak", "UCI", "CC BY 4.0"))


def test_unknown_parts_are_refused():
    with pytest.raises(ValueError, match="one of train, fit, validation, test, got 'all'"):
        load_digits("all")
