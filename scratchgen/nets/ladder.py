"""The nets of a hierarchical VAE: fully connected ladders, convolutional ladders, and chains.

Each level of a ladder is three nets: its prior s -> [μ, λ], its posterior (s, h) -> [Δμ, Δλ] and
its merge (s, z) -> the state below. Every prior begins as N(0, I).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from scratchgen.core.arrays import namespace
from scratchgen.core.module import Module
from scratchgen.layers.activations import identity, silu
from scratchgen.layers.affine import Linear, zero_values
from scratchgen.layers.combinators import Residual, Sequential
from scratchgen.layers.conv import Conv2d, ConvTranspose2d
from scratchgen.layers.dropout import Dropout
from scratchgen.nets.convnet import SMALLEST, Shape, active, conv_channels, halvings
from scratchgen.nets.mlp import mlp


class LadderNets(NamedTuple):
    """The nets of a ladder, and the shapes that go with them.

    Attributes:
        encoders: from the data up: x -> h_L, then each feature -> the one above it.
        levels: (prior, posterior, merge) of each level, from the top, whose prior is None.
        start: the shape of s_0.
        latents: the shape of each z_l, from the top.
        decoder: s_L -> h.
    """

    encoders: list
    levels: list[tuple]
    start: tuple[int, ...]
    latents: Sequence[tuple[int, ...]]
    decoder: Any


class ChainNets(NamedTuple):
    """The nets of a Markov chain of latents.

    Attributes:
        encoders: from the data up: x -> [mean, logvar] of z_L, then each z -> those of the one
            above it.
        priors: from the top down: each z -> [mean, logvar] of the one below it.
        latents: the shape of each z_l, from the top.
        decoder: z_L -> h.
    """

    encoders: list
    priors: list
    latents: Sequence[tuple[int, ...]]
    decoder: Any


class Joined(Module):
    """A net that reads two arrays side by side: y = f([a, b]), joined along the last axis."""

    def __init__(self, f):
        self.f, self.draws = f, getattr(f, "draws", False)

    def __call__(self, a, b, stream=None):
        """a (..., A), b (..., B) -> y, pullback: dy -> (da, db)."""
        split = a.shape[-1]
        xp = namespace(a[..., :1] + b[..., :1])  # which carries a trace, be it a or b's
        y, pull = self.run("f", self.f, xp.concat([a, b], axis=-1), stream=stream)

        def pullback(dy):
            d = pull(dy)
            return d[..., :split], d[..., split:]

        return y, pullback


class Injected(Module):
    """y = f(a + g(b)): what b adds to a, then a net.

    Args:
        g: net b -> an array of the shape of a.
        f: net of what comes out.
    """

    def __init__(self, g, f):
        self.g, self.f = g, f
        self.draws = any(getattr(net, "draws", False) for net in (g, f))

    def __call__(self, a, b, stream=None):
        """a, b -> y, pullback: dy -> (da, db)."""
        added, add_pullback = self.run("g", self.g, b, stream=stream)
        y, pull = self.run("f", self.f, a + added, stream=stream)

        def pullback(dy):
            da = pull(dy)
            return da, add_pullback(da)

        return y, pullback


def mlp_ladder(
    dims: int,
    latents: Sequence[int],
    n_out: int,
    width: int = 128,
    dropout: float = 0.0,
    depth: int = 2,
) -> LadderNets:
    """A ladder of fully connected nets, as `LadderHvae(*nets, likelihood)` takes it.

    Args:
        dims: the size of x (N, dims), which is data: no cotangent is computed for it.
        latents: the size of each z_l, from the top.
        n_out: the size of the decoder's output: likelihood.width · dims.
        width: of the state, the features and every hidden layer.
        dropout: the rate behind every hidden activation of the encoders and the decoder.
        depth: hidden layers from x to the posterior of z_L, whose own is the last of them, and from
            s_L to the decoder's output; at least 1.

    Raises:
        ValueError: there would be no hidden layer.

    Source: HVAE-4, HVAE-5
    """
    if depth < 1:
        raise ValueError(f"a ladder's depth must be at least 1 hidden layer, got {depth}")

    def hidden(n: int) -> list:
        return [silu, *([Dropout(dropout)] if dropout else []), Linear(width, n)]

    def more() -> list:
        return [layer for _ in range(depth - 1) for layer in hidden(width)]

    encoders: list = [Sequential(Linear(dims, width, reads_data=True), *more())]
    encoders += [Residual(Sequential(*hidden(width))) for _ in latents[1:]]
    levels = []
    for i, k in enumerate(latents):
        prior = Sequential(silu, Linear(width, 2 * k, zero_values)) if i else None
        posterior = Joined(Sequential(silu, Linear(2 * width, 2 * k)))
        levels.append((prior, posterior, Injected(Linear(k, width), identity)))
    decoder = Sequential(*more(), *hidden(n_out))
    return LadderNets(encoders, levels, (width,), [(k,) for k in latents], decoder)


def conv_ladder(
    shape: Shape, latents: Sequence[int], numbers: int, width: int = 32, dropout: float = 0.0
) -> LadderNets:
    """A ladder of convolutional nets, whose latents are maps, as `LadderHvae(*nets, likelihood)`
    takes it.

    Levels are spread evenly over the resolutions from 4×4 up: the top's map is 4×4, and the last
    one of full size where there are at least as many levels as resolutions. Several may share one.

    Args:
        shape: (H, W, C) of the images, which are data.
        latents: the channels of each z_l, from the top.
        numbers: how many the decoder gives for each pixel and channel.
        width: channels at the full resolution, a multiple of 8; they double with each halving, up
            to 4 widths.
        dropout: the rate behind every activation of the encoders and the decoder.

    Raises:
        ValueError: the images do not halve to 4×4, or the width is no multiple of 8.

    Source: HVAE-4, HVAE-5
    """
    channels, times = conv_channels(shape, width), halvings(shape)
    # by how many halvings each level is smaller than the image, from the top
    scales = [times - i * (times + 1) // len(latents) for i in range(len(latents))]
    sides = [SMALLEST << (times - scale) for scale in scales]

    def block(c: int, rate: float = 0.0) -> Residual:
        return Residual(Sequential(*active(c, rate), Conv2d(c, c)))

    def resized(scale: int, target: int, rate: float = 0.0) -> list:
        """From one resolution to another, each halving or doubling with its own convolution."""
        layers: list = []
        for i in range(scale, target):
            down = Conv2d(channels[i], channels[i + 1], kernel=4, stride=2)
            layers += [*active(channels[i], rate), down]
        for i in range(scale, target, -1):
            layers += [*active(channels[i], rate), ConvTranspose2d(channels[i], channels[i - 1])]
        return layers

    lowest = scales[-1]
    first = [Conv2d(shape[2], width, reads_data=True), *resized(0, lowest, dropout)]
    encoders: list = [Sequential(*first, block(channels[lowest], dropout))]
    for above, below in zip(scales[-2::-1], scales[:0:-1], strict=True):
        down = resized(below, above, dropout)
        encoders.append(Sequential(*down, block(channels[above], dropout)))
    levels = []
    for i, (k, scale) in enumerate(zip(latents, scales, strict=True)):
        c = channels[scale]
        prior = Sequential(*active(c, 0.0), Conv2d(c, 2 * k, init=zero_values)) if i else None
        posterior = Joined(Sequential(*active(2 * c, 0.0), Conv2d(2 * c, 2 * k)))
        body = Sequential(block(c), *resized(scale, scales[i + 1] if i + 1 < len(scales) else 0))
        levels.append((prior, posterior, Injected(Conv2d(k, c, kernel=1), body)))
    last = [*active(width, dropout), Conv2d(width, numbers * shape[2])]
    decoder = Sequential(block(width, dropout), *last)
    maps = [(side, side, k) for side, k in zip(sides, latents, strict=True)]
    start = (SMALLEST, SMALLEST, channels[times])  # the top's
    return LadderNets(encoders, levels, start, maps, decoder)


def chain_between(encoder, latents: Sequence[int], decoder, hidden: Sequence[int]) -> ChainNets:
    """A Markov chain of latents and the MLPs between them, for `MarkovHvae(*nets, likelihood)`.

    Args:
        encoder: x -> [mean, logvar] of z_L (N, 2 latents[-1]).
        latents: the size of each z_l, from the top.
        decoder: z_L -> h.
        hidden: the hidden sizes of every net between two latents.

    Source: HVAE-1, HVAE-2
    """
    steps = list(zip(latents[:-1], latents[1:], strict=True))
    up = [mlp([low, *hidden, 2 * high]) for high, low in reversed(steps)]
    down = [mlp([high, *hidden, 2 * low]) for high, low in steps]
    return ChainNets([encoder, *up], down, [(k,) for k in latents], decoder)
