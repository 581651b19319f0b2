"""layers/dropout.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.streams import Stream
from scratchgen.layers.dropout import Dropout
from scratchgen.testing import oracle
from scratchgen.testing.monte_carlo import assert_mean
from scratchgen.testing.strategies import seeds, shapes

from support import NUMPY, host, normals, on_every_backend


@given(seeds(), shapes(), st.floats(0.0, 0.9))
def test_pullback_uses_the_same_mask(seed, shape, rate):
    stream = Stream(seed, NUMPY)
    oracle.check_pullback(lambda x: Dropout(rate)(x, stream), normals(seed, *shape))


def test_the_mean_is_kept_and_the_rate_is_right():
    stream, layer = Stream(1, NUMPY), Dropout(0.2)

    def outputs(n, look):
        return layer(np.ones((n,)), stream.at(look))[0]

    assert_mean(outputs, 1.0, resolution=0.01)
    assert_mean(lambda n, look: outputs(n, look) == 0.0, 0.2, resolution=0.01)


@on_every_backend
def test_every_backend_drops_the_same_entries(born):
    ones = born.zeros((70, 3)) + 1.0
    y, pullback = Dropout(0.5)(ones, Stream(3, born))
    want, _ = Dropout(0.5)(np.ones((70, 3)), Stream(3, NUMPY))
    np.testing.assert_array_equal(host(y), want)
    np.testing.assert_array_equal(host(pullback(ones)), want)


def test_without_a_stream_nothing_is_dropped():
    x = normals(0, 4, 3)
    y, pullback = Dropout(0.9)(x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(pullback(x), x)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rates_are_checked(rate):
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        Dropout(rate)
