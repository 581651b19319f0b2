"""Normalisation: x̂ = (x - mean) / √(variance + tiny), then a gain and a bias per channel.

The kinds differ in what mean and variance are taken over: a group of channels of one example (group
norm), the channels at one place (layer norm), one channel over the whole batch (batch norm).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod

from scratchgen.core.arrays import halves, namespace, ones
from scratchgen.core.module import Buffer, Module, Parameter
from scratchgen.core.twins import readable
from scratchgen.layers.activations import identity
from scratchgen.layers.affine import Linear, Scale, one_values, require_channels, zero_values
from scratchgen.layers.combinators import Sequential

TINY = 1e-5


class Standardise:
    """x̂ = (x - m) r, r = 1/√(v + tiny), with m and v the mean and variance over some axes.

    Args:
        axes: what is averaged over.
        view: x.shape -> the shape in which these axes exist.
        tiny: keeps constant inputs finite: the variance of x̂ is v/(v + tiny).
    """

    def __init__(self, axes: tuple[int, ...], view=lambda shape: shape, tiny: float = TINY):
        self.axes, self.view, self.tiny = axes, view, tiny

    def __call__(self, x):
        """x -> x̂, pullback: dy -> r (dy - mean(dy) - x̂ mean(x̂ ⊙ dy))."""
        x_hat, _, jacobian = self._parts(x)
        return _shaped(x_hat, x), lambda dy: _shaped(jacobian(_shaped(dy, x_hat)), x)

    def pushforward(self, x, x_dot):
        """(x, ẋ) -> (x̂, J ẋ), pullback: (dy, dẏ) -> (dx, dẋ).

        J is symmetric, and ⟨dẏ, J ẋ⟩ = Σ r (dẏ ẋ - mean(dẏ) mean(ẋ) - mean(x̂ dẏ) mean(x̂ ẋ)) over
        each set, which gives its derivative in x through r and x̂.
        """
        x_hat, r, jacobian = self._parts(x)
        v = _shaped(x_dot, x_hat)

        def pullback(dy, dy_dot):
            d, u = _shaped(dy, x_hat), _shaped(dy_dot, x_hat)
            a, b = self._mean(x_hat * u), self._mean(x_hat * v)
            bend = self._mean(u * v) - self._mean(u) * self._mean(v) - a * b
            dx = jacobian(d - r * (b * u + a * v)) - r * r * bend * x_hat
            return _shaped(dx, x), _shaped(jacobian(u), x)

        return (_shaped(x_hat, x), _shaped(jacobian(v), x)), pullback

    def _parts(self, x):
        xp = namespace(x)
        viewed = xp.reshape(x, self.view(x.shape))
        centred = viewed - self._mean(viewed)
        r = 1.0 / xp.sqrt(self._mean(centred * centred) + self.tiny)
        x_hat = centred * r

        def jacobian(dy):
            return r * (dy - self._mean(dy) - x_hat * self._mean(x_hat * dy))

        return x_hat, r, jacobian

    def _mean(self, x):
        return namespace(x).mean(x, axis=self.axes, keepdims=True)


def _shaped(x, like):
    return namespace(x).reshape(x, like.shape)


def group_standardise(groups: int) -> Standardise:
    """Standardise each group of neighbouring channels of each example (N, ..., C)."""
    return Standardise(
        (1, 3), lambda shape: (shape[0], prod(shape[1:-1]), groups, shape[-1] // groups)
    )


layer_standardise = Standardise((-1,))
batch_standardise = Standardise((0,), lambda shape: (prod(shape[:-1]), shape[-1]))


@readable
def place_sum(x):
    """The sum over the places of each example and channel:  (N, ..., C) -> (N, C)."""
    return namespace(x).sum(x, axis=tuple(range(1, x.ndim - 1)))


@readable
def group_norm(x, groups: int, gain, bias, activation: Callable = identity):
    """y = φ(gain ⊙ x̂ + bias), x̂ standardised per example and group of channels.

    Args:
        x: (N, ..., C).
        groups: their number.
        gain, bias: (N, C), or (1, C) for all examples.
        activation: φ, an elementwise layer.

    Returns:
        y: (N, ..., C).
        pullback: dy -> (dx, d_gain, d_bias), the last two (N, C).
    """
    xp = namespace(x)
    per_channel = (-1, *(1,) * (x.ndim - 2), x.shape[-1])
    scale, shift = xp.reshape(gain, per_channel), xp.reshape(bias, per_channel)
    x_hat, standardise_pullback = group_standardise(groups)(x)
    y, activation_pullback = activation(x_hat * scale + shift)

    def pullback(dy):
        dh = activation_pullback(dy)
        return standardise_pullback(dh * scale), place_sum(dh * x_hat), place_sum(dh)

    return y, pullback


class GroupNorm(Module):
    """y = φ(g ⊙ x̂ + b), x̂ standardised per example and group:  (N, ..., C) -> (N, ..., C).

    Args:
        channels: C, a multiple of the groups.
        groups: their number.
        activation: φ, an elementwise layer; none unless given.

    Raises:
        ValueError: the channels do not divide into groups.

    Source: [Wu 2018]
    """

    def __init__(self, channels: int, groups: int = 8, activation: Callable = identity):
        _require_groups(channels, groups)
        self.groups, self.activation = groups, activation
        named = "" if activation is identity else f", {getattr(activation, 'name', activation)}"
        self.name = f"GroupNorm{named}"  # what a list of layers calls it
        self.gain = Parameter((channels,), one_values)
        self.bias = Parameter((channels,), zero_values)

    def __call__(self, x):
        """x (N, ..., C) -> y (N, ..., C), pullback: dy -> dx."""
        require_channels(self, x, self.gain.shape[0])
        gain, bias = self.gain.read(), self.bias.read()
        y, norm_pullback = group_norm(
            x, self.groups, gain.value[None, :], bias.value[None, :], self.activation
        )

        def pullback(dy):
            dx, d_gain, d_bias = norm_pullback(dy)
            one = ones((d_gain.shape[0], 1), like=d_gain)
            gain.accumulate_product(one, d_gain)
            bias.accumulate_product(one, d_bias)
            return dx

        return y, pullback


class AdaptiveGroupNorm(Module):
    """y = φ((1 + s) ⊙ x̂ + b), with [s, b] linear in an embedding e.

    Args:
        channels: C, a multiple of the groups.
        dims: the size of e.
        groups, activation: as for `GroupNorm`.

    Raises:
        ValueError: the channels do not divide into groups.

    Source: NET-11
    """

    def __init__(self, channels: int, dims: int, groups: int = 8, activation: Callable = identity):
        _require_groups(channels, groups)
        self.groups, self.activation = groups, activation
        self.modulation = Linear(dims, 2 * channels, init=zero_values)

    def __call__(self, x, e):
        """x (N, ..., C), e (N, dims) -> y (N, ..., C), pullback: dy -> (dx, de)."""
        require_channels(self, x, self.modulation.weight.shape[0] // 2)
        _require_embedding(x, e)
        modulation, modulation_pullback = self.modulation(e)
        scale, bias = halves(modulation)
        y, norm_pullback = group_norm(x, self.groups, 1.0 + scale, bias, self.activation)

        def pullback(dy):
            dx, d_scale, d_bias = norm_pullback(dy)
            return dx, modulation_pullback(namespace(dy).concat([d_scale, d_bias], axis=1))

        return y, pullback


class AdditiveGroupNorm(Module):
    """y = φ(g ⊙ x̂ + b), x̂ standardised from x + W e + c: an embedding added before a group norm.

    What is constant over the channels of a group is taken out again by the norm.

    Args:
        channels, dims, groups, activation: as for `AdaptiveGroupNorm`.

    Raises:
        ValueError: the channels do not divide into groups.

    Source: NET-10
    """

    def __init__(self, channels: int, dims: int, groups: int = 8, activation: Callable = identity):
        self.shift = Linear(dims, channels)
        self.norm = GroupNorm(channels, groups, activation)

    def __call__(self, x, e):
        """x (N, ..., C), e (N, dims) -> y (N, ..., C), pullback: dy -> (dx, de)."""
        require_channels(self, x, self.shift.weight.shape[0])
        _require_embedding(x, e)
        shift, shift_pullback = self.shift(e)
        xp = namespace(x)
        per_place = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
        y, norm_pullback = self.norm(x + xp.reshape(shift, per_place))

        def pullback(dy):
            dx = norm_pullback(dy)
            return dx, shift_pullback(place_sum(dx))

        return y, pullback


def layer_norm(channels: int) -> Sequential:
    """y = g ⊙ x̂ + b, x̂ standardised over the last axis:  (..., C) -> (..., C).

    Source: [Ba 2016]
    """
    return Sequential(layer_standardise, Scale(channels))


class BatchNorm(Module):
    """y = g ⊙ x̂ + b, x̂ standardised per channel over the batch and all places.

    With a stream, that is in training, mean and variance are the batch's, so a batch must be run
    whole and not in shards. Without one they are the running ones, so that examples do not mix in
    evaluation. Those are two buffers, and only `tracking` moves them: whoever trains a net with
    batch norm runs each step's forward passes within it (training/fit.py does so if told).

    Args:
        channels: C.

    Raises:
        ValueError: fewer than 1 channel.

    Source: [Ioffe 2015]
    """

    draws = True  # it draws nothing, but a stream is what tells training from evaluation

    def __init__(self, channels: int):
        self.scale = Scale(channels)
        self.mean = Buffer((channels,), zero_values)
        self.variance = Buffer((channels,), one_values)

    def __call__(self, x, stream=None):
        """x (..., C) -> y (..., C), pullback: dy -> dx."""
        require_channels(self, x, self.mean.shape[0])
        standardise = self._by_the_running if stream is None else self._by_the_batch
        x_hat, standardise_pullback = standardise(x)
        y, scale_pullback = self.scale(x_hat)
        return y, lambda dy: standardise_pullback(scale_pullback(dy))

    def _by_the_batch(self, x):
        for seen in _tracked:
            seen.setdefault(self, []).append(_statistics(x))
        return batch_standardise(x)

    def _by_the_running(self, x):
        r = 1.0 / namespace(x).sqrt(self.variance.value + TINY)
        return (x - self.mean.value) * r, lambda dy: dy * r


_tracked: list[dict[BatchNorm, list]] = []


@contextmanager
def tracking(momentum: float = 0.1) -> Iterator[None]:
    """On leaving, every batch norm that ran in training moves its running statistics, once.

        running ← running + momentum (mean of what its calls saw - running)

    Args:
        momentum: in (0, 1]; 1 forgets all but the last.

    Raises:
        ValueError: the momentum is outside (0, 1].
    """
    if not 0.0 < momentum <= 1.0:
        raise ValueError(f"the momentum must lie in (0, 1], got {momentum}")
    seen: dict[BatchNorm, list] = {}
    _tracked.append(seen)
    try:
        yield
    finally:
        _tracked.pop()
    for norm, calls in seen.items():
        means, variances = zip(*calls, strict=True)
        for buffer, values in ((norm.mean, means), (norm.variance, variances)):
            mean = sum(values[1:], values[0]) / len(values)
            buffer.value = buffer.value + momentum * (mean - buffer.value)


def _statistics(x):
    """Mean and variance (C,) of each channel, the latter of the population: over n - 1."""
    xp = namespace(x)
    seen = xp.reshape(x, (prod(x.shape[:-1]), x.shape[-1]))
    correction = 1.0 if seen.shape[0] > 1 else 0.0
    return xp.mean(seen, axis=0), xp.var(seen, axis=0, correction=correction)


def _require_embedding(x, e) -> None:
    if e.ndim != 2 or e.shape[0] != x.shape[0]:
        raise ValueError(f"each of {x.shape[0]} examples needs one embedding, got shape {e.shape}")


def _require_groups(channels: int, groups: int) -> None:
    if groups < 1 or channels < 1 or channels % groups:
        raise ValueError(f"the channels must be a multiple of the groups, got {channels}, {groups}")
