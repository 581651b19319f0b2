"""Self-attention: every place of an image reads from every other."""

from math import prod, sqrt

from scratchgen.core.arrays import namespace
from scratchgen.core.module import Module
from scratchgen.core.twins import readable
from scratchgen.layers.affine import Linear, zero_values


@readable
def softmax(x):
    """p = e^x / Σ e^x over the last axis, as a layer; the largest entry is taken out first."""
    xp = namespace(x)
    e = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    p = e / xp.sum(e, axis=-1, keepdims=True)

    def pullback(dp):
        return p * (dp - xp.sum(dp * p, axis=-1, keepdims=True))

    return p, pullback


def attention(q, k, v):
    """y = softmax(q kᵀ/√d) v, as a layer of three inputs.

    Args:
        q, k, v: (..., T, d), queries, keys and values of T places.

    Returns:
        y: (..., T, d).
        pullback: dy -> (dq, dk, dv).

    Source: NET-7
    """
    scale = 1.0 / sqrt(q.shape[-1])
    weights, softmax_pullback = softmax(scale * (q @ _swapped(k)))

    def pullback(dy):
        d_scores = scale * softmax_pullback(dy @ _swapped(v))
        return d_scores @ k, _swapped(d_scores) @ q, _swapped(weights) @ dy

    return weights @ v, pullback


class SelfAttention(Module):
    """Multi-head attention of the places of x among themselves:  (N, ..., C) -> (N, ..., C).

    Each head has its own C/heads channels of queries, keys and values. The last projection starts
    at 0, so within a residual the layer starts as the identity.

    Args:
        channels: C, a multiple of the heads.
        heads: their number.

    Raises:
        ValueError: the channels do not divide into heads.

    Source: NET-7
    """

    def __init__(self, channels: int, heads: int = 1):
        if heads < 1 or channels % heads:
            raise ValueError(f"channels must be a multiple of heads, got {channels} and {heads}")
        self.heads = heads
        self.qkv = Linear(channels, 3 * channels)
        self.out = Linear(channels, channels, init=zero_values)

    def __call__(self, x):
        """x (N, ..., C) -> y (N, ..., C), pullback: dy -> dx."""
        xp, c = namespace(x), x.shape[-1]
        tokens = xp.reshape(x, (x.shape[0], prod(x.shape[1:-1]), c))
        qkv, qkv_pullback = self.qkv(tokens)
        q, k, v = (self._split(qkv[..., i * c : (i + 1) * c]) for i in range(3))
        h, attention_pullback = attention(q, k, v)
        y, out_pullback = self.out(self._join(h))

        def pullback(dy):
            dh = self._split(out_pullback(xp.reshape(dy, tokens.shape)))
            d_qkv = xp.concat([self._join(d) for d in attention_pullback(dh)], axis=-1)
            return xp.reshape(qkv_pullback(d_qkv), x.shape)

        return xp.reshape(y, x.shape), pullback

    def _split(self, x):
        """(N, T, C) -> (N, heads, T, C/heads)."""
        xp, (n, t, c) = namespace(x), x.shape
        return xp.permute_dims(xp.reshape(x, (n, t, self.heads, c // self.heads)), (0, 2, 1, 3))

    def _join(self, x):
        """The inverse of `_split`."""
        xp, (n, heads, t, d) = namespace(x), x.shape
        return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (n, t, heads * d))


def _swapped(x):
    """The last two axes exchanged."""
    return namespace(x).permute_dims(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))
