"""layers/resampling.py: the grid of an image and its changes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.layers.resampling import dilate, nearest, pad, reshaped, strided
from scratchgen.testing import oracle
from scratchgen.testing.strategies import seeds, sizes

from support import normals


@given(seeds(), sizes(4), sizes(4), sizes(4))
def test_nearest_repeats_and_strided_undoes_it(seed, height, width, factor):
    x = normals(seed, 2, height, width, 3)
    y, _ = nearest(factor)(x)
    np.testing.assert_array_equal(y, x.repeat(factor, axis=1).repeat(factor, axis=2))
    np.testing.assert_array_equal(strided(factor)(y)[0], x)
    oracle.check_pullback(nearest(factor), x)


@given(seeds(), sizes(7), sizes(7), sizes(4))
def test_strided_keeps_every_so_manieth(seed, height, width, factor):
    x = normals(seed, 2, height, width, 3)
    np.testing.assert_array_equal(strided(factor)(x)[0], x[:, ::factor, ::factor])
    oracle.check_pullback(strided(factor), x)


@given(seeds(), sizes(4), sizes(4), sizes(3), sizes(3))
def test_dilate_puts_zeros_between(seed, height, width, s, t):
    x = normals(seed, 2, height, width, 3)
    y = dilate(x, (s, t))
    assert y.shape == (2, s * (height - 1) + 1, t * (width - 1) + 1, 3)
    np.testing.assert_array_equal(y[:, ::s, ::t], x)
    assert np.count_nonzero(y) == x.size


@given(seeds(), *(st.integers(-2, 3) for _ in range(4)))
def test_pad_adds_zeros_and_cuts(seed, top, left, bottom, right):
    x = normals(seed, 2, 5, 6, 3)
    y = pad(x, (top, left), (bottom, right))
    wide = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    rows, columns = slice(3 - top, 3 + 5 + bottom), slice(3 - left, 3 + 6 + right)
    np.testing.assert_array_equal(y, wide[:, rows, columns])


def test_reshaped_keeps_the_batch():
    x = normals(0, 2, 3, 4)
    y, pullback = reshaped(2, -1)(x)
    assert y.shape == (2, 2, 6)
    np.testing.assert_array_equal(pullback(y), x)
    assert reshaped()(x[:, :1, 0])[0].shape == (2,)


@pytest.mark.parametrize("make", [nearest, strided])
def test_factors_are_checked(make):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make(0)


@pytest.mark.parametrize("shape", [(0,), (-2, 3), (-1, -1)])
def test_shapes_are_checked(shape):
    with pytest.raises(ValueError, match="positive entries, and -1 at most once"):
        reshaped(*shape)


def test_factors_are_whole_numbers():
    with pytest.raises(TypeError):
        nearest(1.5)
