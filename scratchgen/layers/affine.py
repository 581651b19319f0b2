"""The layers that own parameters. All of them are affine in their input.

An affine map is its own derivative but for the bias, so its pushforward is itself without b and
every gradient is a product aᵀ b.
"""

from math import sqrt

from scratchgen.core.arrays import ones, rows
from scratchgen.core.module import Module, Parameter
from scratchgen.core.streams import Stream


def zero_values(stream: Stream, shape):
    """The initialiser that sets every entry to 0."""
    return stream.backend.zeros(shape)


def lecun_normal(stream: Stream, shape):
    """Normal entries of variance 1/fan-in, which keep the variance of a unit-variance input."""
    return stream.normal(shape) / sqrt(shape[-1])


class Linear(Module):
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

    def __call__(self, x):
        """x (..., n_in) -> y (..., n_out), pullback: dy -> dx = dy W."""
        weight, bias = self.weight.read(), self.bias.read()

        def pullback(dy):
            d = rows(dy)
            weight.accumulate_product(d, rows(x))
            bias.accumulate_product(ones((d.shape[0], 1), like=d), d)
            return None if self.reads_data else dy @ weight.value

        y = x @ weight.value.T
        y += bias.value
        return y, pullback

    def pushforward(self, x, x_dot):
        """(x, ẋ) -> (x Wᵀ + b, ẋ Wᵀ), pullback: (dy, dẏ) -> (dy W, dẏ W)."""
        weight, bias = self.weight.read(), self.bias.read()

        def pullback(dy, dy_dot):
            d = rows(dy)
            weight.accumulate_product(d, rows(x))
            weight.accumulate_product(rows(dy_dot), rows(x_dot))
            bias.accumulate_product(ones((d.shape[0], 1), like=d), d)
            return dy @ weight.value, dy_dot @ weight.value

        return (x @ weight.value.T + bias.value, x_dot @ weight.value.T), pullback
