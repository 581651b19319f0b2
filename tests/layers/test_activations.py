"""layers/activations.py: value, slope and curvature of each against autograd."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.layers import activations
from scratchgen.layers.activations import Activation
from scratchgen.testing.oracle import check_pullback, check_pullback_is_linear, check_pushforward
from scratchgen.testing.strategies import seeds, shapes

from support import NUMPY, host, normals, on_every_backend, tolerance

ALL = {name: f for name, f in vars(activations).items() if isinstance(f, Activation)}
every_activation = pytest.mark.parametrize("f", ALL.values(), ids=ALL)


def away_from_kinks(x):
    return np.where(np.abs(x) < 1e-3, 1e-3, x)


@every_activation
@given(seeds(), shapes())
def test_pullback_and_pushforward(f, seed, shape):
    x = away_from_kinks(normals(seed, *shape))  # further out tanh' = 1 - tanh² is mere rounding
    check_pullback(f, x)
    check_pullback_is_linear(f, x)
    check_pushforward(f, x, normals(seed + 1, *shape))


@every_activation
@given(x=st.floats(-30.0, 30.0))
def test_slope_and_curvature_are_the_derivatives(f, x):
    """Central differences: an oracle that does not read our forward pass."""
    x, h = away_from_kinks(np.asarray([x])), 1e-4
    slope = (f(x + h)[0] - f(x - h)[0]) / (2.0 * h)
    np.testing.assert_allclose(f.slope(x, f.core(x)), slope, atol=1e-7)
    bend = (f.slope(x + h, f.core(x + h)) - f.slope(x - h, f.core(x - h))) / (2.0 * h)
    np.testing.assert_allclose(f.curvature(x, f.core(x)), bend, atol=1e-7)


@every_activation
@on_every_backend
def test_every_backend_agrees(f, born):
    x = 3.0 * normals(2, 4, 3)
    y, pullback = f(born.asarray(x))
    want, pull = f(NUMPY.asarray(x))
    close = {"rtol": tolerance(born), "atol": tolerance(born)}
    np.testing.assert_allclose(host(y), want, **close)
    np.testing.assert_allclose(host(pullback(y)), pull(want), **close)
    assert y.dtype == born.asarray(x).dtype


def test_known_values():
    x = np.asarray([-1.0, 0.0, 2.0])
    np.testing.assert_array_equal(activations.relu(x)[0], [0.0, 0.0, 2.0])
    np.testing.assert_allclose(activations.leaky_relu(x)[0], [-0.2, 0.0, 2.0])
    np.testing.assert_allclose(activations.silu(x)[0], x / (1.0 + np.exp(-x)))
