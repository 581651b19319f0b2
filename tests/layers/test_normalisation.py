"""layers/normalisation.py: what is standardised, over what, and what an embedding does to it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.layers import normalisation
from scratchgen.layers.activations import identity, silu
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.layers.normalisation import (
    TINY,
    AdaptiveGroupNorm,
    AdditiveGroupNorm,
    BatchNorm,
    GroupNorm,
    group_standardise,
    layer_norm,
    tracking,
)
from scratchgen.testing import oracle
from scratchgen.testing.strategies import seeds, sizes

from support import NUMPY, bound, normals

TRAINING = Stream(0, NUMPY)


def grouped(x, groups: int):
    """(N, ..., C) -> (N, groups, everything else of the group)."""
    n, c = x.shape[0], x.shape[-1]
    return np.moveaxis(x.reshape(n, -1, groups, c // groups), 2, 1).reshape(n, groups, -1)


@pytest.mark.equation("NET-11")
@given(seeds(), sizes(3), sizes(3), sizes(3))
def test_each_group_has_mean_0_and_nearly_unit_variance(seed, groups, each, side):
    x = 3.0 * normals(seed, 2, side, side + 1, groups * each) + 5.0
    y = grouped(group_standardise(groups)(x)[0], groups)
    variance = grouped(x, groups).var(axis=-1)
    np.testing.assert_allclose(y.mean(axis=-1), 0.0, atol=1e-12)
    np.testing.assert_allclose(y.var(axis=-1), variance / (variance + TINY), rtol=1e-9, atol=1e-12)


@given(seeds(), st.floats(0.5, 2.0), st.floats(-3.0, 3.0))
def test_scale_and_offset_of_a_group_do_not_matter(seed, scale, offset):
    x = 100.0 * normals(seed, 2, 3, 3, 4)
    y, again = group_standardise(2)(x)[0], group_standardise(2)(scale * x + offset)[0]
    np.testing.assert_allclose(again, y, atol=1e-7)  # up to tiny over the variance


@given(seeds(), st.sampled_from([1, 2, 4]), st.sampled_from([identity, silu]))
def test_group_norm_is_gain_bias_and_activation_of_the_standardised(seed, groups, activation):
    layer = GroupNorm(4, groups, activation)
    params, x = bound(layer, seed), normals(seed, 2, 3, 2, 4)
    gain, bias = layer.gain.read().value, layer.bias.read().value
    want = activation(group_standardise(groups)(x)[0] * gain + bias)[0]
    np.testing.assert_allclose(layer(x)[0], want, rtol=1e-13, atol=1e-14)
    oracle.check_gradient(params, layer, x)


def test_a_constant_image_stays_finite():
    x = np.full((2, 4, 4, 8), 3.0)
    y, pullback = group_standardise(2)(x)
    assert not np.any(y)
    assert np.all(np.isfinite(pullback(x)))


@pytest.mark.equation("NET-11")
@given(seeds())
def test_adaptive_group_norm_starts_as_a_plain_one(seed):
    x, e = normals(seed, 2, 3, 3, 8), normals(seed + 1, 2, 5)
    layer = AdaptiveGroupNorm(8, 5)
    FlatParameters(layer, Stream(seed, NUMPY))
    np.testing.assert_allclose(layer(x, e)[0], group_standardise(8)(x)[0], rtol=1e-12)


@pytest.mark.equation("NET-11")
@given(seeds(), st.sampled_from([1, 2, 4]), st.sampled_from([identity, silu]))
def test_adaptive_group_norm_scales_and_shifts_by_the_embedding(seed, groups, activation):
    """(1 + y_s) GN(h) + y_b with [y_s, y_b] = W e + c, one pair an example and channel."""
    layer = AdaptiveGroupNorm(4, 5, groups, activation)
    params = bound(layer, seed)
    x, e = normals(seed, 2, 3, 2, 4), normals(seed + 1, 2, 5)
    modulation = e @ layer.modulation.weight.read().value.T + layer.modulation.bias.read().value
    scale, shift = modulation[:, None, None, :4], modulation[:, None, None, 4:]
    want = activation((1.0 + scale) * group_standardise(groups)(x)[0] + shift)[0]
    np.testing.assert_allclose(layer(x, e)[0], want, rtol=1e-12, atol=1e-13)
    oracle.check_gradient(params, layer, x, e)
    with params.frozen():
        oracle.check_pullback(layer, x, e)


@pytest.mark.equation("NET-10")
@given(seeds(), st.sampled_from([1, 2]), st.sampled_from([identity, silu]))
def test_additive_injection_is_the_same_at_every_place(seed, groups, activation):
    """GN(h + W e + c), the sum before the norm."""
    layer = AdditiveGroupNorm(4, 5, groups, activation)
    params = bound(layer, seed)
    x, e = normals(seed, 2, 3, 2, 4), normals(seed + 1, 2, 5)
    dense = e @ layer.shift.weight.read().value.T + layer.shift.bias.read().value
    np.testing.assert_allclose(
        layer(x, e)[0], layer.norm(x + dense[:, None, None, :])[0], rtol=1e-13, atol=1e-14
    )
    assert (layer.norm.groups, layer.norm.activation) == (groups, activation)
    oracle.check_gradient(params, layer, x, e)
    with params.frozen():
        oracle.check_pullback(layer, x, e)


@pytest.mark.equation("NET-10")
@pytest.mark.equation("TRAP-7")
@given(seeds())
def test_the_norm_erases_what_is_constant_in_its_groups_and_nothing_else(seed):
    layer = AdditiveGroupNorm(8, 8, groups=2)
    FlatParameters(layer, Stream(seed, NUMPY))
    layer.shift.weight.owner.theta[layer.shift.weight.window] = np.eye(8).ravel()
    x, e = normals(seed, 2, 3, 3, 8), normals(seed + 1, 2, 2)
    without = layer(x, np.zeros((2, 8)))[0]
    constant = np.repeat(e, 4, axis=1)  # one number for each group of four channels
    varying = np.concatenate([e] * 4, axis=1)
    assert np.abs(layer(x, constant)[0] - without).max() < 1e-13
    assert np.abs(layer(x, varying)[0] - without).max() > 0.01


@given(seeds(), sizes(4))
def test_layer_norm_standardises_the_channels_of_each_place(seed, channels):
    x = normals(seed, 2, 3, channels + 1)
    layer = layer_norm(channels + 1)
    bound(layer, seed)
    _, scale = layer.layers
    gap = x - x.mean(axis=-1, keepdims=True)
    x_hat = gap / np.sqrt((gap**2).mean(axis=-1, keepdims=True) + TINY)
    want = scale.gain.read().value * x_hat + scale.bias.read().value
    np.testing.assert_allclose(layer(x)[0], want, rtol=1e-12, atol=1e-13)


class TestBatchNorm:
    """Two ways of running, and who changes the running statistics."""

    @given(seeds(), sizes(4))
    def test_training_standardises_each_channel_over_batch_and_places(self, seed, n):
        layer, x = BatchNorm(3), 2.0 * normals(seed, n + 1, 2, 3, 3) + 1.0
        params = bound(layer, seed)
        gain, bias = layer.scale.gain.read().value, layer.scale.bias.read().value
        mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
        want = gain * (x - mean) / np.sqrt(variance + TINY) + bias
        np.testing.assert_allclose(layer(x, TRAINING)[0], want, rtol=1e-12, atol=1e-12)
        oracle.check_gradient(params, lambda x: layer(x, TRAINING), x)

    @given(seeds())
    def test_evaluation_uses_the_running_statistics(self, seed):
        layer, x = BatchNorm(3), normals(seed, 2, 2, 2, 3)
        params = bound(layer, seed)
        layer.mean.value, layer.variance.value = normals(seed, 3), normals(seed + 1, 3) ** 2
        gain, bias = layer.scale.gain.read().value, layer.scale.bias.read().value
        gap = x - layer.mean.value
        want = gain * gap / np.sqrt(layer.variance.value + TINY) + bias
        np.testing.assert_allclose(layer(x)[0], want, rtol=1e-12, atol=1e-12)
        oracle.check_gradient(params, layer, x)
        with params.frozen():
            oracle.check_pullback(layer, x)

    def test_two_values_have_their_unbiased_variance(self):
        layer = BatchNorm(1)
        bound(layer)
        with tracking():
            layer(np.asarray([[1.0], [4.0]]), TRAINING)
        np.testing.assert_allclose(layer.variance.value, [0.9 + 0.1 * 4.5], rtol=1e-13)

    def test_only_tracking_moves_the_running_statistics_once(self):
        layer = BatchNorm(2)
        bound(layer)
        x, y = normals(0, 5, 3, 2), 4.0 * normals(1, 5, 3, 2)
        layer(x, TRAINING)
        np.testing.assert_array_equal(layer.mean.value, [0.0, 0.0])
        with tracking(momentum=0.25):
            layer(x, TRAINING)
            layer(y, TRAINING)
            layer(100.0 * x)  # evaluation is not watched
            np.testing.assert_array_equal(layer.variance.value, [1.0, 1.0])
        seen = [d.reshape(-1, 2) for d in (x, y)]
        mean = np.mean([d.mean(axis=0) for d in seen], axis=0)
        variance = np.mean([d.var(axis=0, ddof=1) for d in seen], axis=0)
        np.testing.assert_allclose(layer.mean.value, 0.25 * mean, rtol=1e-13)
        np.testing.assert_allclose(layer.variance.value, 0.75 + 0.25 * variance, rtol=1e-13)

    def test_the_running_statistics_become_the_batch_s(self):
        """Then both ways agree, up to the n/(n-1) of the variance."""
        layer, x = BatchNorm(3), normals(0, 400, 3) + 2.0
        bound(layer)
        with tracking(momentum=1.0):
            trained = layer(x, TRAINING)[0]
        np.testing.assert_allclose(layer(x)[0], trained, atol=0.02)
        assert np.abs(layer(x)[0] - trained).max() > 1e-4

    def test_a_single_value_has_a_variance_of_0(self):
        layer = BatchNorm(2)
        bound(layer)
        with tracking(momentum=1.0):
            y = layer(normals(0, 1, 2), TRAINING)[0]
        assert np.all(np.isfinite(y))
        np.testing.assert_array_equal(layer.variance.value, [0.0, 0.0])

    def test_tracking_may_be_nested_and_leaves_nothing_behind(self):
        layer, x = BatchNorm(1), np.asarray([[1.0], [4.0]])
        bound(layer)
        with tracking(0.5):
            layer(x, TRAINING)
            with tracking(1.0):
                layer(x + 1.0, TRAINING)
            np.testing.assert_allclose(layer.mean.value, [3.5])
        np.testing.assert_allclose(layer.mean.value, [0.5 * 3.5 + 0.5 * 3.0])
        assert normalisation._tracked == []

    def test_what_raises_within_moves_nothing(self):
        layer = BatchNorm(2)
        bound(layer)
        with pytest.raises(ZeroDivisionError), tracking():
            layer(normals(0, 5, 2), TRAINING)[0][1 // 0]
        np.testing.assert_array_equal(layer.mean.value, [0.0, 0.0])
        with tracking():
            pass
        np.testing.assert_array_equal(layer.mean.value, [0.0, 0.0])

    @pytest.mark.parametrize("momentum", [0.0, -0.1, 1.1])
    def test_the_momentum_is_checked(self, momentum):
        with pytest.raises(ValueError, match=r"must lie in \(0, 1\], got"), tracking(momentum):
            pass

    def test_within_a_sequence_the_stream_tells_training_from_evaluation(self):
        net = Sequential(Linear(3, 4), BatchNorm(4), silu)
        bound(net)
        x = normals(0, 6, 3)
        assert net.draws
        assert np.abs(net(x)[0] - net(x, stream=TRAINING)[0]).max() > 0.01


@pytest.mark.parametrize(
    "make",
    [
        GroupNorm,
        lambda c, g: AdaptiveGroupNorm(c, 3, g),
        lambda c, g: AdditiveGroupNorm(c, 3, g),
    ],
)
@pytest.mark.parametrize("groups", [0, 3])
def test_groups_must_divide_the_channels(make, groups):
    with pytest.raises(ValueError, match=f"multiple of the groups, got 4, {groups}"):
        make(4, groups)


def test_there_must_be_channels():
    with pytest.raises(ValueError, match="got 0, 8"):
        GroupNorm(0)
    with pytest.raises(ValueError, match="at least 1 channel, got 0"):
        BatchNorm(0)


@pytest.mark.parametrize(
    ("make", "more"),
    [
        (lambda: GroupNorm(8), ()),
        (lambda: BatchNorm(8), ()),
        (lambda: layer_norm(8), ()),
        (lambda: AdaptiveGroupNorm(8, 3), ((2, 3),)),
        (lambda: AdditiveGroupNorm(8, 3), ((2, 3),)),
    ],
)
def test_other_channels_are_refused(make, more):
    layer = make()
    bound(layer)
    with pytest.raises(ValueError, match=r"reads \(..., 8\), got shape \(2, 3, 16\)"):
        layer(np.zeros((2, 3, 16)), *(np.zeros(shape) for shape in more))


@pytest.mark.parametrize("make", [AdaptiveGroupNorm, AdditiveGroupNorm])
@pytest.mark.parametrize("shape", [(1, 3), (3, 3), (2, 1, 3)])
def test_each_example_needs_its_embedding(make, shape):
    layer = make(8, 3)
    bound(layer)
    with pytest.raises(ValueError, match="each of 2 examples needs one embedding"):
        layer(np.zeros((2, 3, 8)), np.zeros(shape))
