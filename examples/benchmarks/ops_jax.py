"""What `rivals.Mlp` and `rivals.UNet` ask of JAX; images are (N, H, W, C)."""

from math import log, sqrt

import jax.numpy as jnp
from jax import lax, nn


class Ops:
    """The operations by name."""

    silu = staticmethod(nn.silu)

    @staticmethod
    def linear(x, weight, bias):
        return x @ weight.T + bias

    @staticmethod
    def conv(x, weight, bias, stride: int):
        return convolve(x, weight, stride) + bias

    @staticmethod
    def norm(x, groups: int, gain, bias):
        grouped = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
        mean = grouped.mean(axis=(1, 3), keepdims=True)
        variance = grouped.var(axis=(1, 3), keepdims=True)
        return ((grouped - mean) * lax.rsqrt(variance + 1e-5)).reshape(x.shape) * gain + bias

    @staticmethod
    def join(a, b):
        return jnp.concatenate([a, b], axis=-1)

    @staticmethod
    def double(x):
        return x.repeat(2, axis=1).repeat(2, axis=2)

    @staticmethod
    def per_place(v):
        return v[:, None, None, :]

    @staticmethod
    def tokens(x):
        return x.reshape(x.shape[0], -1, x.shape[-1])

    @staticmethod
    def image(tokens, like):
        return tokens.reshape(like.shape)

    @staticmethod
    def attend(qkv):
        q, k, v = jnp.split(qkv, 3, axis=-1)
        return nn.softmax(q @ k.swapaxes(1, 2) / sqrt(q.shape[-1])) @ v

    @staticmethod
    def waves(t, dims: int):
        half = dims // 2
        angle = t[:, None] * jnp.exp((-log(1e4) / (half - 1)) * jnp.arange(half))
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


def convolve(x, weight, stride: int = 1):
    """A convolution without bias that keeps the size, up to its stride."""
    pad = weight.shape[0] // 2
    return lax.conv_general_dilated(
        x, weight, (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
