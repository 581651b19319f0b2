"""layers/affine.py: the layers that own parameters and know no grid."""

import numpy as np
import pytest
from hypothesis import given

from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.layers.affine import Embedding, Linear, Scale, lecun_normal
from scratchgen.testing import oracle
from scratchgen.testing.strategies import seeds, shapes, sizes

from support import NUMPY, bound, host, normals, on_every_backend, tolerance


@given(seeds(), shapes(), sizes(), sizes())
def test_gradients_and_tangents(seed, leading, n_in, n_out):
    layer = Linear(n_in, n_out)
    params, x = bound(layer, seed), normals(seed, *leading, n_in)
    oracle.check_gradient(params, layer, x)
    oracle.check_accumulation(params, layer, x)
    with params.frozen():
        oracle.check_pullback(layer, x)
        oracle.check_pullback_is_linear(layer, x)
        oracle.check_pushforward(layer, x, normals(seed + 1, *leading, n_in))
    x_dot = normals(seed + 2, *leading, n_in)
    oracle.check_gradient(params, layer.pushforward, x, x_dot)


@on_every_backend
def test_every_backend_computes_x_w_plus_b(born):
    layer = Linear(3, 2)
    params, x = bound(layer, born=born), normals(0, 4, 3)
    y, pullback = layer(born.asarray(x))
    w, b = host(layer.weight.read().value), host(layer.bias.read().value)
    np.testing.assert_allclose(host(y), x @ w.T + b, rtol=tolerance(born))
    assert pullback(y).dtype == y.dtype
    want = np.concatenate([(host(y).T @ x).ravel(), host(y).sum(axis=0)])
    np.testing.assert_allclose(host(params.grad), want, rtol=10 * tolerance(born))


def test_a_layer_that_reads_data_has_no_cotangent_but_the_same_gradient():
    reader, layer = Linear(3, 2, reads_data=True), Linear(3, 2)
    first, second, x = bound(reader), bound(layer), normals(0, 4, 3)
    y, pullback = reader(x)
    assert pullback(y) is None
    layer(x)[1](y)
    np.testing.assert_array_equal(first.grad, second.grad)


def test_no_input_is_changed():
    layer = Linear(3, 2)
    bound(layer)
    x, dy = normals(0, 4, 3), normals(1, 4, 2)
    x.flags.writeable = dy.flags.writeable = False
    layer(x)[1](dy)


def test_initial_weights_keep_the_variance():
    layer = Linear(400, 400)
    FlatParameters(layer, Stream(0, NUMPY))
    assert layer.weight.read().value.std() * 20.0 == pytest.approx(1.0, rel=0.01)
    assert not np.any(layer.bias.read().value)


def test_empty_batches_pass():
    layer = Linear(3, 2)
    bound(layer)
    y, pullback = layer(normals(0, 0, 3))
    assert y.shape == (0, 2)
    assert pullback(y).shape == (0, 3)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="at least 1, got 0 -> 2"):
        Linear(0, 2)
    with pytest.raises(ValueError, match="at least 1, got 2 -> 0"):
        Embedding(2, 0)
    with pytest.raises(ValueError, match="at least 1 channel, got 0"):
        Scale(0)


@given(seeds(), shapes(), sizes())
def test_scale_multiplies_and_shifts_each_channel(seed, leading, channels):
    layer = Scale(channels)
    params, x = bound(layer, seed), normals(seed, *leading, channels)
    gain, bias = layer.gain.read().value, layer.bias.read().value
    np.testing.assert_array_equal(layer(x)[0], gain * x + bias)
    oracle.check_gradient(params, layer, x)
    oracle.check_gradient(params, layer.pushforward, x, normals(seed + 1, *leading, channels))


def test_scale_starts_as_the_identity():
    layer = Scale(3)
    FlatParameters(layer, Stream(0, NUMPY))
    x = normals(0, 4, 3)
    np.testing.assert_array_equal(layer(x)[0], x)


@given(seeds(), sizes(), sizes(), sizes(6))
def test_embedding_is_a_table_and_a_linear_layer_on_one_hot_codes(seed, codes, n_out, n):
    layer = Embedding(codes, n_out)
    params = bound(layer, seed)
    code = np.arange(n) * (seed % 7 + 1) % codes
    table = layer.weight.read().value
    y, pullback = layer(code)
    np.testing.assert_array_equal(y, table[code])
    assert pullback(y) is None
    want = np.zeros_like(table)
    np.add.at(want, code, y)
    np.testing.assert_allclose(params.grad.reshape(want.shape), want, rtol=1e-13)


def test_inputs_of_other_channels_are_refused():
    linear, scale = Linear(3, 2), Scale(1)
    bound(linear), bound(scale)
    for layer in (linear, linear.pushforward, scale):
        with pytest.raises(ValueError, match=r"reads \(..., .\), got shape \(2, 4\)"):
            layer(np.zeros((2, 4)), *([np.zeros((2, 4))] if layer == linear.pushforward else []))


@pytest.mark.parametrize("code", [-1, 3])
def test_codes_are_checked(code):
    layer = Embedding(3, 2)
    bound(layer)
    with pytest.raises(ValueError, match=r"codes must lie in 0\.\.2"):
        layer(np.asarray([0, code]))


def test_an_embedding_has_an_initialiser():
    layer = Embedding(2000, 4, init=lecun_normal)
    FlatParameters(layer, Stream(0, NUMPY))
    assert layer.weight.read().value.var() == pytest.approx(0.25, rel=0.05)
    layer = Embedding(2000, 4)
    FlatParameters(layer, Stream(0, NUMPY))
    assert layer.weight.read().value.var() == pytest.approx(1.0, rel=0.05)
