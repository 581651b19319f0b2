"""Norm with its activation, softmax, sums over places: in as few passes over memory as can be.

An elementwise operation on arrays that exceed the cache costs what its reads and writes cost. So
products with vectors of ones take the place of sums along an axis, whole formulas are folded into
one factor and one summand per channel, and results go where an operand of no further use lies.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from scratchgen.core.twins import register
from scratchgen.layers.activations import activate, identity, silu
from scratchgen.layers.attention import softmax
from scratchgen.layers.normalisation import TINY, group_norm, place_sum
from scratchgen.training.optim import adam

OUTWEIGHED = 4.0  # mean² over variance, beyond which E[x²] - E[x]² loses too many digits
PART = 2**17  # entries of a vector, of which four parts fit into a processor's own cache
RANGE = 60.0  # of scores that one common factor keeps from overflow and from vanishing


def fused_group_norm(x, groups: int, gain, bias, activation: Callable = identity):
    """The twin of `layers.normalisation.group_norm`, without activation or with SiLU.

    With mean m and 1/deviation r of its group, a channel's h = gain (x - m) r + bias is a x + b.
    For SiLU(h) = ½h (1 + tanh ½h) the halves are taken into a and b. The variance is E[x²] - m²;
    where that cancels, the readable way answers.
    """
    n, c = x.shape[0], x.shape[-1]
    seen, half = x.reshape(n, -1, c), 0.5 if activation is silu else 1.0
    mean = _group_means(c, groups, seen.shape[1], x.dtype)
    h = np.square(seen)
    m = place_sum(x) @ mean
    variance = place_sum(h) @ mean - m * m
    if not np.all((m * m <= OUTWEIGHED * variance) & (variance < np.inf)):  # nor nan
        return group_norm.readable(x, groups, gain, bias, activation)
    r = 1.0 / np.sqrt(variance + TINY)
    a = half * gain * r
    np.multiply(seen, a[:, None, :], out=h)
    h += (half * bias - a * m)[:, None, :]
    activation_pullback = _silu_of_twice(h) if activation is silu else np.array  # a copy

    def pullback(dy):  # with x̂ = r (x - m), and d the cotangent of a x + b
        d = activation_pullback(dy.reshape(seen.shape))
        dx = d * seen
        d_bias = place_sum(d)
        d_gain = r * (place_sum(dx) - m * d_bias)  # Σ d x̂
        # r (d gain - mean(d gain) - x̂ mean(d gain x̂)), as a d + bend x + shift
        bend = -r * r * ((half * gain * d_gain) @ mean)
        shift = -r * ((half * gain * d_bias) @ mean) - bend * m
        np.multiply(seen, bend[:, None, :], out=dx)
        dx += shift[:, None, :]
        d *= a[:, None, :]
        dx += d
        return dx.reshape(x.shape), half * d_gain, half * d_bias

    return h.reshape(x.shape), pullback


def _silu_of_twice(h) -> Callable:
    """y = SiLU(2h) = h (1 + tanh h) takes the place of h; returns dy -> dh, of fresh memory."""
    s = np.tanh(h)
    s += 1.0
    h *= s

    def pullback(dy):  # dy/dh = s + y (2 - s)
        dh = 2.0 - s
        dh *= h
        dh += s
        dh *= dy
        return dh

    return pullback


@lru_cache(maxsize=32)
def _group_means(channels: int, groups: int, places: int, dtype):
    """(C, C): takes sums over so many places to the mean of each channel's group."""
    each = channels // groups
    block = np.full((each, each), 1.0 / (each * places))
    return np.kron(np.eye(groups), block).astype(dtype)


def place_sum_by_product(x):
    """The twin of `layers.normalisation.place_sum`: a row of ones times each example's matrix."""
    seen = x.reshape(x.shape[0], -1, x.shape[-1])
    return (np.ones((1, seen.shape[1]), x.dtype) @ seen)[:, 0, :]


def softmax_by_product(x):
    """The twin of `layers.attention.softmax`: one maximum for all rows, and sums as products.

    Any number may be taken out of a row. The largest of all serves every row whose own largest
    entry is not so far below it that e^x would vanish; where one may be, the readable way answers.
    """
    top = x.max()
    if not top - x.min() < RANGE:
        return softmax.readable(x)
    ones = np.ones((x.shape[-1], 1), x.dtype)
    p = x - top
    np.exp(p, out=p)
    p *= 1.0 / (p @ ones)

    def pullback(dp):
        dx = dp * p
        dx -= p * (dx @ ones)
        return dx

    return p, pullback


def silu_by_tanh(activation, x):
    """The twin of `layers.activations.activate` for SiLU: y = h (1 + tanh h) with h = x/2.

    The lower tail, where 1 + tanh h cancels, is off by one rounding of |x|.
    """
    y = 0.5 * x
    half_pullback = _silu_of_twice(y)

    def pullback(dy):
        dx = half_pullback(dy)
        dx *= 0.5
        return dx

    return y, pullback


def adam_in_place(theta, g, m, v, beta1: float, beta2: float, rate: float, tiny: float) -> None:
    """The twin of `training.optim.adam`: part by part, in the gradient's own memory."""
    for first in range(0, theta.size, PART):
        part = slice(first, first + PART)
        _adam(theta[part], g[part], m[part], v[part], beta1, beta2, rate, tiny)


def _adam(theta, g, m, v, beta1: float, beta2: float, rate: float, tiny: float) -> None:
    m *= beta1
    m += g
    g *= g
    v *= beta2
    v += g
    np.sqrt(v, out=g)
    g += tiny
    np.divide(m, g, out=g)
    g *= rate
    theta -= g
    g[...] = 0.0


def _plain(x) -> bool:
    return type(x) is np.ndarray and x.dtype in (np.float32, np.float64) and x.size > 0


def _norms(x, groups, gain, bias, activation=identity) -> bool:
    same = type(x) is type(gain) is type(bias) and x.dtype == gain.dtype == bias.dtype
    return _plain(x) and same and activation in (identity, silu)


register(activate, silu_by_tanh, applies=lambda activation, x: activation is silu and _plain(x))
register(adam, adam_in_place, applies=lambda theta, *_, **__: type(theta) is np.ndarray)
register(group_norm, fused_group_norm, applies=_norms)
register(place_sum, place_sum_by_product, applies=_plain)
register(softmax, softmax_by_product, applies=_plain)
