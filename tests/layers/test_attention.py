"""layers/attention.py: softmax, attention and self-attention by their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.layers.attention import SelfAttention, attention, softmax
from scratchgen.testing import oracle
from scratchgen.testing.strategies import seeds, sizes

from support import NUMPY, bound, normals


@given(seeds(), sizes(), sizes(), st.floats(-1e3, 1e3))
def test_softmax_is_a_distribution_that_no_shift_changes(seed, n, k, shift):
    x = 10.0 * normals(seed, n, k)
    p, _ = softmax(x)
    np.testing.assert_allclose(p.sum(axis=-1), 1.0, rtol=1e-14)
    np.testing.assert_allclose(p, np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(softmax(x + shift)[0], p, rtol=1e-9, atol=1e-300)


def test_softmax_of_large_numbers_is_finite():
    p, pullback = softmax(np.asarray([[1e4, 0.0, -1e4]]))
    np.testing.assert_array_equal(p, [[1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(pullback(np.ones((1, 3))), [[0.0, 0.0, 0.0]])


@pytest.mark.equation("NET-7")
@given(seeds(), sizes(4), sizes(4))
def test_attention_averages_values_by_the_softmax_of_scores(seed, t, d):
    q, k, v = (normals(seed + i, 2, t, d) for i in range(3))
    y, _ = attention(q, k, v)
    for n in range(2):
        for i in range(t):
            weights = np.exp([q[n, i] @ k[n, j] / np.sqrt(d) for j in range(t)])
            np.testing.assert_allclose(y[n, i], weights @ v[n] / weights.sum(), rtol=1e-11)
    oracle.check_pullback(attention, q, k, v, floor=1e-13)  # of one place, q and k are of no weight


@pytest.mark.equation("NET-7")
def test_equal_values_are_returned_as_they_are():
    """The weights of a place sum to 1."""
    q, k, v = normals(0, 2, 5, 3), normals(1, 2, 5, 3), np.ones((2, 5, 3))
    np.testing.assert_allclose(attention(q, k, v)[0], v, rtol=1e-14)


@pytest.mark.equation("NET-7")
@given(seeds(), st.sampled_from([1, 2, 4]))
def test_heads_attend_each_for_itself(seed, heads):
    layer = SelfAttention(4, heads)
    params, x = bound(layer, seed), normals(seed, 2, 2, 3, 4)
    tokens = x.reshape(2, 6, 4)
    qkv = tokens @ layer.qkv.weight.read().value.T + layer.qkv.bias.read().value
    q, k, v = np.split(qkv, 3, axis=-1)
    own = [slice(h * 4 // heads, (h + 1) * 4 // heads) for h in range(heads)]
    h = np.concatenate([attention(*(a[..., s] for a in (q, k, v)))[0] for s in own], axis=-1)
    want = h @ layer.out.weight.read().value.T + layer.out.bias.read().value
    np.testing.assert_allclose(layer(x)[0], want.reshape(x.shape), rtol=1e-11, atol=1e-13)
    oracle.check_gradient(params, layer, x)
    with params.frozen():
        oracle.check_pullback(layer, x)


@pytest.mark.equation("NET-7")
@given(seeds(), st.sampled_from([1, 2]), st.permutations(range(6)))
def test_places_may_be_permuted(seed, heads, order):
    """Self-attention knows no order: permuted places in, the same permutation out."""
    layer, x = SelfAttention(4, heads), normals(seed, 2, 6, 4)
    bound(layer, seed)
    y, permuted = layer(x)[0], layer(x[:, order])[0]
    np.testing.assert_allclose(permuted, y[:, order], rtol=1e-12, atol=1e-14)


@pytest.mark.equation("NET-7")
def test_the_last_projection_starts_at_0():
    layer = SelfAttention(8, 2)
    FlatParameters(layer, Stream(0, NUMPY))
    assert np.any(layer.qkv(normals(0, 2, 3, 8))[0])
    assert not np.any(layer(normals(0, 2, 3, 8))[0])


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_must_divide_the_channels(heads):
    with pytest.raises(ValueError, match=f"multiple of heads, got 4 and {heads}"):
        SelfAttention(4, heads)
