"""data/images.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.numerics import level_centres, level_codes
from scratchgen.core.streams import Stream
from scratchgen.data.images import Images, part_rows
from scratchgen.testing.strategies import seeds

from support import NUMPY


def some_images(seed, n, levels):
    uniform = Stream(seed, NUMPY).at("codes").uniform((n, 2, 3, 1))
    codes = np.floor(levels * uniform).astype(np.uint8)
    return Images(
        codes, np.arange(n, dtype=np.uint8), levels, {"first": codes[:, 0, 0, 0] / levels}
    )


@given(seeds(), st.integers(1, 6), st.integers(2, 256))
def test_values_are_the_centres_of_the_levels(seed, n, levels):
    images = some_images(seed, n, levels)
    assert len(images) == n
    np.testing.assert_array_equal(images.x, level_centres(images.codes.astype(np.float64), levels))
    np.testing.assert_array_equal(level_codes(images.x, levels), images.codes)


@given(seeds(), st.permutations(range(5)))
def test_what_is_taken_stays_together(seed, order):
    images = some_images(seed, 5, 7)
    taken = images.take(np.asarray(order))
    assert taken.levels == 7
    np.testing.assert_array_equal(taken.codes, images.codes[order])
    np.testing.assert_array_equal(taken.labels, order)
    np.testing.assert_array_equal(taken.factors["first"], images.factors["first"][order])
    assert Images(images.codes, images.labels, 7).take(slice(2)).factors is None


@given(st.integers(2, 30), st.data())
def test_fit_and_validation_are_the_training_part_and_test_is_the_rest(train, data):
    held_out, rest = data.draw(st.integers(1, train - 1)), data.draw(st.integers(1, 10))
    everything = list(range(train + rest))
    rows = {
        part: everything[part_rows(part, train, held_out)]
        for part in ("train", "fit", "validation", "test")
    }
    assert rows["fit"] + rows["validation"] == rows["train"]
    assert rows["train"] + rows["test"] == everything
    assert len(rows["validation"]) == held_out
    assert len(rows["train"]) == train


def test_unknown_parts_are_refused():
    with pytest.raises(ValueError, match="one of train, fit, validation, test, got 'all'"):
        part_rows("all", 5, 1)
