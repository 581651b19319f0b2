"""Affine layers, and what the layers that own parameters are made of.

An affine map is its own derivative but for the bias, so its pushforward is itself without b and
every gradient is a product aᵀ b.
"""

from collections.abc import Callable
from math import sqrt

from scratchgen.core.arrays import namespace, ones, rows
from scratchgen.core.module import Module, Parameter
from scratchgen.core.streams import Stream


def zero_values(stream: Stream, shape):
    """The initialiser that sets every entry to 0."""
    return stream.backend.zeros(shape)


def one_values(stream: Stream, shape):
    """The initialiser that sets every entry to 1."""
    return stream.backend.zeros(shape) + 1.0


def fan_in_normal(fan_in: float) -> Callable:
    """The initialiser that draws N(0, 1/fan-in).

    An output that is the sum of so many independent inputs of unit variance has unit variance too.

    Args:
        fan_in: how many inputs make up one output.
    """
    return lambda stream, shape: stream.normal(shape) / sqrt(fan_in)


def lecun_normal(stream: Stream, shape):
    """`fan_in_normal` where the last axis holds the inputs."""
    return fan_in_normal(shape[-1])(stream, shape)


def require_channels(layer: Module, x, channels: int) -> None:
    """Refuse an input whose last axis is not what the layer was built for.

    Raises:
        ValueError: it is not.
    """
    if x.shape[-1] != channels:
        name = type(layer).__name__
        raise ValueError(f"this {name} reads (..., {channels}), got shape {x.shape}")


class Affine(Module):
    """y = A x + b, with A linear in a weight and b (C,) on the last axis.

    Subclasses own both and give `linear`, x -> (A x, pullback); b may be None, for no bias.
    """

    bias: Parameter | None

    def linear(self, x):
        """x -> A x, pullback: dy -> Aᵀ dy; adds the weight's gradient."""
        raise NotImplementedError

    def __call__(self, x):
        """x -> y, pullback: dy -> dx = Aᵀ dy."""
        y, linear_pullback = self.linear(x)
        if self.bias is None:
            return y, linear_pullback
        bias = self.bias.read()
        y += bias.value

        def pullback(dy):
            d = rows(dy)
            bias.accumulate_product(ones((d.shape[0], 1), like=d), d)
            return linear_pullback(dy)

        return y, pullback

    def pushforward(self, x, x_dot):
        """(x, ẋ) -> (A x + b, A ẋ), pullback: (dy, dẏ) -> (Aᵀ dy, Aᵀ dẏ)."""
        y, pull = self(x)
        y_dot, pull_dot = self.linear(x_dot)
        return (y, y_dot), lambda dy, dy_dot: (pull(dy), pull_dot(dy_dot))


class Linear(Affine):
    """y = x Wᵀ + b on the last axis:  x (..., n_in) -> y (..., n_out).

    Args:
        n_in, n_out: sizes of the last axis before and after; each at least 1.
        init: initialiser of W (n_out, n_in); b starts at 0.
        reads_data: the input is data, so no one needs its cotangent: the pullback returns None in
            its place and saves a product. Never set it on a critic.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, n_in: int, n_out: int, init=lecun_normal, reads_data: bool = False):
        if n_in < 1 or n_out < 1:
            raise ValueError(f"Linear needs sizes of at least 1, got {n_in} -> {n_out}")
        self.weight = Parameter((n_out, n_in), init)
        self.bias = Parameter((n_out,), zero_values)
        self.reads_data = reads_data

    def linear(self, x):
        """x (..., n_in) -> x Wᵀ (..., n_out), pullback: dy -> dy W."""
        require_channels(self, x, self.weight.shape[1])
        weight = self.weight.read()

        def pullback(dy):
            d = rows(dy)
            weight.accumulate_product(d, rows(x))
            return None if self.reads_data else _as_rows_of(d @ weight.value, dy)

        return _as_rows_of(rows(x) @ weight.value.T, x), pullback


class Scale(Module):
    """y = g ⊙ x + b, per channel:  x (..., C) -> y (..., C); g starts at 1, b at 0.

    Raises:
        ValueError: fewer than 1 channel.
    """

    def __init__(self, channels: int):
        if channels < 1:
            raise ValueError(f"Scale needs at least 1 channel, got {channels}")
        self.gain = Parameter((channels,), one_values)
        self.bias = Parameter((channels,), zero_values)

    def __call__(self, x):
        """x (..., C) -> y (..., C), pullback: dy -> g ⊙ dy."""
        require_channels(self, x, self.gain.shape[0])
        gain, bias = self.gain.read(), self.bias.read()

        def pullback(dy):
            d = rows(dy)
            one = ones((d.shape[0], 1), like=d)
            gain.accumulate_product(one, d * rows(x))
            bias.accumulate_product(one, d)
            return dy * gain.value

        return x * gain.value + bias.value, pullback

    def pushforward(self, x, x_dot):
        """(x, ẋ) -> (g ⊙ x + b, g ⊙ ẋ), pullback: (dy, dẏ) -> (g ⊙ dy, g ⊙ dẏ)."""
        y, pull = self(x)
        gain = self.gain.read()

        def pullback(dy, dy_dot):
            d = rows(dy_dot * x_dot)
            gain.accumulate_product(ones((d.shape[0], 1), like=d), d)
            return pull(dy), dy_dot * gain.value

        return (y, x_dot * gain.value), pullback


class Embedding(Module):
    """y = W[code]: a linear layer on one-hot codes, (N,) integers -> (N, n_out).

    Args:
        codes: the number of codes, 0..codes-1.
        n_out: the size of a vector.
        init: initialiser of W (codes, n_out); standard normal entries unless told otherwise.

    Raises:
        ValueError: a size below 1; calling it, a code that is not among them.
    """

    def __init__(self, codes: int, n_out: int, init=Stream.normal):
        if codes < 1 or n_out < 1:
            raise ValueError(f"Embedding needs sizes of at least 1, got {codes} -> {n_out}")
        self.weight = Parameter((codes, n_out), init)

    def __call__(self, code):
        """code (N,) int64 -> y (N, n_out), pullback: dy -> None, for codes have no cotangent."""
        weight = self.weight.read()
        xp = namespace(code)
        self._require(code)
        known = xp.arange(self.weight.shape[0], dtype=code.dtype, device=code.device)
        one_hot = xp.astype(code[:, None] == known, weight.value.dtype)

        def pullback(dy):
            weight.accumulate_product(one_hot, dy)

        return one_hot @ weight.value, pullback

    def _require(self, code) -> None:
        xp, codes = namespace(code), self.weight.shape[0]
        if not bool(xp.all((code >= 0) & (code < codes))):
            raise ValueError(f"codes must lie in 0..{codes - 1}, got some that do not")


def _as_rows_of(y, x):
    """(n, c) with the leading axes of x (..., c'): many rows in one product are the fastest."""
    return y if x.ndim == 2 else namespace(y).reshape(y, (*x.shape[:-1], y.shape[-1]))


class LinearMap:
    """y = A x without parameters, as a layer: its tangent is itself.

    Args:
        name: what a list of layers calls it.
        apply: x -> (A x, pullback).
    """

    def __init__(self, name: str, apply: Callable):
        self.name, self.apply = name, apply

    def __call__(self, x):
        """x -> A x, pullback: dy -> Aᵀ dy."""
        return self.apply(x)

    def pushforward(self, x, x_dot):
        """(x, ẋ) -> (A x, A ẋ), pullback: (dy, dẏ) -> (Aᵀ dy, Aᵀ dẏ)."""
        (y, pull), (y_dot, pull_dot) = self.apply(x), self.apply(x_dot)
        return (y, y_dot), lambda dy, dy_dot: (pull(dy), pull_dot(dy_dot))
