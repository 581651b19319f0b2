"""What a denoiser is told about time: features of one number an example, then a small MLP.

The number may be a time step, a time in [0, 1], a log signal-to-noise ratio or a noise level; the
features only ask that it varies over the range their frequencies are made for.
"""

from math import log, pi

from scratchgen.core.arrays import halves, namespace
from scratchgen.core.module import Buffer, Module
from scratchgen.layers.activations import silu
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential


class Sinusoidal:
    """[sin(t ω_i), cos(t ω_i)], ω_i = longest^(-i/(D/2 - 1)):  t (N,) -> (N, D).

    The frequencies fall from 1 to 1/longest, in equal ratios. For steps t = 1..T take t as it is,
    as floating numbers; for a time in [0, 1] take scale = 1000 or so.

    Args:
        dims: D, even and at least 4.
        longest: 1 over the lowest frequency.
        scale: multiplies t.

    Raises:
        ValueError: D is odd or below 4.

    Source: NET-8
    """

    def __init__(self, dims: int, longest: float = 10_000.0, scale: float = 1.0):
        if dims < 4 or dims % 2:
            raise ValueError(f"sinusoidal features must be even in number, from 4; got {dims}")
        self.dims, self.half = dims, dims // 2
        self.longest, self.scale = longest, scale

    def __call__(self, t):
        """t (N,) -> y (N, D), pullback: dy -> dt."""
        xp = namespace(t)
        i = xp.arange(self.half, dtype=t.dtype, device=t.device)
        return _waves(t, self.scale * xp.exp((-log(self.longest) / (self.half - 1)) * i))


class RandomFourier(Module):
    """[sin(2π w_i t), cos(2π w_i t)], w_i ~ N(0, spread²) drawn once:  t (N,) -> (N, D).

    Their inner product tends to D/2 e^(-2π² spread² (t - t')²): a bell-shaped kernel in time.

    Args:
        dims: D, even.
        spread: the standard deviation of the frequencies.

    Raises:
        ValueError: D is odd or below 2.

    Source: NET-9
    """

    def __init__(self, dims: int, spread: float = 1.0):
        if dims < 2 or dims % 2:
            raise ValueError(f"Fourier features must be even in number, from 2; got {dims}")
        self.dims = dims
        self.frequencies = Buffer((dims // 2,), lambda s, shape: spread * s.normal(shape))

    def __call__(self, t):
        """t (N,) -> y (N, D), pullback: dy -> dt."""
        return _waves(t, 2.0 * pi * self.frequencies.value)


class Raw:
    """The number itself as the only feature, for an MLP to learn from:  t (N,) -> (N, 1)."""

    dims = 1

    def __call__(self, t):
        """t (N,) -> y (N, 1), pullback: dy -> dt."""
        return t[:, None], lambda dy: dy[:, 0]


def time_embedding(features, dims: int) -> Sequential:
    """Features of time, then Linear, SiLU, Linear:  t (N,) -> (N, dims).

    Args:
        features: one of the above, or any layer (N,) -> (N, features.dims).
        dims: the size of the embedding.

    Returns:
        A net.
    """
    return Sequential(features, Linear(features.dims, dims), silu, Linear(dims, dims))


def _waves(t, omega):
    xp = namespace(t)
    angle = t[:, None] * omega
    sin, cos = xp.sin(angle), xp.cos(angle)

    def pullback(dy):
        d_sin, d_cos = halves(dy)
        return xp.sum((d_sin * cos - d_cos * sin) * omega, axis=-1)

    return xp.concat([sin, cos], axis=-1), pullback
