"""The U-Net: an image and a time in, an image of the same size out.

    e = time(t)
    h = conv(x)
    down:  h = stage(h, e), and keep h        each stage but the first level's starts by halving
    middle
    up:    h = stage([h, kept], e)            each level but the last ends by doubling
    y = conv(SiLU(norm(h)))

A stage is a ResNet block, which hears of the time, and self-attention where that is wanted.
"""

from collections.abc import Callable, Sequence
from math import pi

from scratchgen.core.arrays import namespace
from scratchgen.core.module import Module
from scratchgen.layers.activations import silu
from scratchgen.layers.affine import zero_values
from scratchgen.layers.attention import SelfAttention
from scratchgen.layers.combinators import Residual, Sequential
from scratchgen.layers.conv import Conv2d
from scratchgen.layers.dropout import Dropout
from scratchgen.layers.normalisation import AdditiveGroupNorm, GroupNorm
from scratchgen.layers.resampling import nearest
from scratchgen.nets.time import Sinusoidal, time_embedding


class ResBlock(Module):
    """y = skip(x) + Conv₀(Drop(SiLU(norm(Conv(SiLU(norm(x))), e)))).

    Conv₀ starts at 0, so the block starts as its skip: the identity, or a 1×1 convolution where the
    channels change.

    Args:
        n_in, n_out: channels before and after.
        dims: the size of the embedding e.
        groups: of the norms.
        dropout: the rate before Conv₀.
        inject: (channels, dims, groups, activation) -> the second norm, a layer of (h, e).

    Source: NET-6
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        dims: int,
        groups: int = 8,
        dropout: float = 0.0,
        inject: Callable = AdditiveGroupNorm,
    ):
        self.draws = dropout > 0.0
        self.first = Sequential(GroupNorm(n_in, groups, silu), Conv2d(n_in, n_out))
        self.inject = inject(n_out, dims, groups, silu)
        self.last = Sequential(Dropout(dropout), Conv2d(n_out, n_out, init=zero_values))
        self.skip = Conv2d(n_in, n_out, kernel=1, padding=0) if n_in != n_out else Sequential()

    def __call__(self, x, e, stream=None):
        """x (N, H, W, n_in), e (N, dims) -> y (N, H, W, n_out), pullback: dy -> (dx, de)."""
        h, first_pullback = self.run("first", self.first, x)
        h, inject_pullback = self.run("inject", self.inject, h, e)
        h, last_pullback = self.run("last", self.last, h, stream=stream)
        kept, skip_pullback = self.run("skip", self.skip, x)

        def pullback(dy):
            dh, de = inject_pullback(last_pullback(dy))
            return skip_pullback(dy) + first_pullback(dh), de

        return kept + h, pullback


class Stage(Module):
    """y = after(block(before(x), e)): a ResNet block between layers that hear of no time."""

    def __init__(self, before: Sequence, block: ResBlock, after: Sequence):
        self.before, self.block, self.after = Sequential(*before), block, Sequential(*after)
        self.draws = block.draws

    def __call__(self, x, e, stream=None):
        """x (N, H, W, C), e (N, dims) -> y (N, H', W', C'), pullback: dy -> (dx, de)."""
        h, before_pullback = self.run("before", self.before, x)
        h, block_pullback = self.run("block", self.block, h, e, stream=stream)
        y, after_pullback = self.run("after", self.after, h)

        def pullback(dy):
            dh, de = block_pullback(after_pullback(dy))
            return before_pullback(dh), de

        return y, pullback


class UNet(Module):
    """A noised image, its time, and perhaps an image to be told, to an image of the same size.

    Args:
        size: H = W, divisible by 2^(levels - 1).
        n_in, n_out: channels of x and of y.
        width: channels at the full resolution.
        multipliers: channels of each level, from the full resolution down, in widths.
        blocks: stages at each level, down and up.
        attention: the resolutions (such as 16, 8) whose stages attend.
        heads: of the attention.
        groups, dropout, inject: as for `ResBlock`.
        time: features of time (nets/time.py); sinusoidal ones unless given.
        fourier: exponents n for which sin(2ⁿπx) and cos(2ⁿπx) are further inputs.
        condition: channels of the image to be told; none unless given.
        reads_data: no cotangent of x or of the condition is computed.

    Raises:
        ValueError: the size does not halve often enough, or a number is outside its range.

    Source: NET-5
    """

    def __init__(
        self,
        size: int,
        n_in: int,
        n_out: int,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: Sequence[int] = (),
        heads: int = 1,
        groups: int = 8,
        dropout: float = 0.0,
        inject: Callable = AdditiveGroupNorm,
        time=None,
        fourier: Sequence[int] = (),
        condition: int = 0,
        reads_data: bool = False,
    ):
        levels, dims = len(multipliers), 4 * width
        _require_size(size, levels)
        self.shape, self.condition, self.draws = (size, size, n_in), condition, dropout > 0.0
        self.frequencies = [2.0**n * pi for n in fourier]
        self.time = Sequential(time_embedding(time or Sinusoidal(width), dims), silu)
        read = (1 + 2 * len(self.frequencies)) * n_in + condition
        self.first = Conv2d(read, width, reads_data=reads_data)

        def stage(c_in, c_out, before=(), after=(), attend=False):
            block = ResBlock(c_in, c_out, dims, groups, dropout, inject)
            attending = [_attention(c_out, heads, groups)] if attend else []
            return Stage(before, block, [*attending, *after])

        channels = [width * m for m in multipliers]
        self.down, self.up, kept, c = [], [], [], width
        for level, c_out in enumerate(channels):
            attend = (size >> level) in attention
            for i in range(blocks):
                halve = [Conv2d(c, c, stride=2)] if level > 0 and i == 0 else []
                self.down.append(stage(c, c_out, before=halve, attend=attend))
                c = c_out
                kept.append(c)
        self.middle = [stage(c, c, attend=True), stage(c, c)]
        for level, c_out in reversed(list(enumerate(channels))):
            attend = (size >> level) in attention
            for i in range(blocks):
                double = [nearest(2), Conv2d(c_out, c_out)] if level > 0 and i == blocks - 1 else []
                self.up.append(stage(c + kept.pop(), c_out, after=double, attend=attend))
                c = c_out
        self.last = Sequential(GroupNorm(c, groups, silu), Conv2d(c, n_out, init=zero_values))

    def __call__(self, x, t, condition=None, stream=None):
        """x (N, H, W, n_in), t (N,), condition (N, H, W, c) or None -> y (N, H, W, n_out).

        Its pullback: dy -> (dx, dt), and d_condition where there is a condition; dx and d_condition
        are None where the net reads data.
        """
        self._require(x, condition)
        inputs, inputs_pullback = self._inputs(x, condition)
        e, time_pullback = self.run("time", self.time, t)
        h, first_pullback = self.run("first", self.first, inputs)
        pullbacks, kept = [], []
        for i, stage in enumerate(self.down):
            h, pull = self.run(f"down.{i}", stage, h, e, stream=stream)
            pullbacks.append(pull)
            kept.append(h)
        for i, stage in enumerate(self.middle):
            h, pull = self.run(f"middle.{i}", stage, h, e, stream=stream)
            pullbacks.append(pull)
        widths = []
        for i, stage in enumerate(self.up):
            widths.append(h.shape[-1])
            h = namespace(h).concat([h, kept.pop()], axis=-1)
            h, pull = self.run(f"up.{i}", stage, h, e, stream=stream)
            pullbacks.append(pull)
        y, last_pullback = self.run("last", self.last, h)

        def pullback(dy):  # the same from the bottom up
            dh, de, d_kept, back = last_pullback(dy), 0.0, [], list(pullbacks)
            for width in reversed(widths):
                d_both, d = back.pop()(dh)
                dh, de = d_both[..., :width], de + d
                d_kept.append(d_both[..., width:])
            for _ in self.middle:
                dh, d = back.pop()(dh)
                de = de + d
            while back:
                dh, d = back.pop()(dh + d_kept.pop())
                de = de + d
            dx, d_condition = inputs_pullback(first_pullback(dh))
            dt = time_pullback(de)
            return (dx, dt) if condition is None else (dx, dt, d_condition)

        return y, pullback

    def _inputs(self, x, condition):
        """[x, sin(2ⁿπx), cos(2ⁿπx), ..., condition], and d -> (dx, d_condition)."""
        xp, c = namespace(x), x.shape[-1]
        waves = [(omega, xp.sin(omega * x), xp.cos(omega * x)) for omega in self.frequencies]
        parts = [x, *(wave for _, sin, cos in waves for wave in (sin, cos))]

        def pullback(d):
            if d is None:
                return None, None
            dx, end = d[..., :c], c
            for omega, sin, cos in waves:
                d_sin, d_cos = d[..., end : end + c], d[..., end + c : end + 2 * c]
                dx, end = dx + omega * (d_sin * cos - d_cos * sin), end + 2 * c
            return dx, d[..., end:]

        return xp.concat(parts if condition is None else [*parts, condition], axis=-1), pullback

    def _require(self, x, condition) -> None:
        told = 0 if condition is None else condition.shape[-1]
        if x.shape[1:] != self.shape or told != self.condition:
            raise ValueError(
                f"this net takes images {self.shape} and {self.condition} channels of condition, "
                f"got {x.shape[1:]} and {told}"
            )


def _attention(channels: int, heads: int, groups: int) -> Residual:
    return Residual(Sequential(GroupNorm(channels, groups), SelfAttention(channels, heads)))


def _require_size(size: int, levels: int) -> None:
    step = 2 ** (levels - 1)
    if levels < 1 or size < step or size % step:
        good = max(1, round(size / step)) * step
        raise ValueError(
            f"with {levels} levels the size must be a multiple of {step}, got {size}; "
            f"the nearest that fits is {good}"
        )
