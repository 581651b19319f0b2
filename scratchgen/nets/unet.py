"""The U-Net: an image and a time in, an image of the same size out.

    e = time(t)
    h = conv(x)
    down:  h = stage(h, e), and keep h        behind each level but the last the image halves
    middle
    up:    h = stage([h, kept], e)            and doubles again
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
        self.skip = Conv2d(n_in, n_out, kernel=1) if n_in != n_out else Sequential()

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
        width: channels at the full resolution; a multiple of the groups.
        multipliers: channels of each level, from the full resolution down, in widths.
        blocks: stages at each level, down and up.
        attention: the resolutions (such as 16, 8) whose stages attend.
        attend_middle: whether the middle attends, at the lowest resolution.
        heads: of the attention.
        groups, dropout, inject: as for `ResBlock`.
        time: features of time (nets/time.py); unless given, sinusoidal ones for steps t = 1..T. For
            times in [0, 1] give Sinusoidal(width, scale=1000.0) or RandomFourier(width).
        fourier: exponents n for which sin(2ⁿπx) and cos(2ⁿπx) are further inputs.
        condition: channels of the image to be told; none unless given.
        reads_data: no cotangent of x or of the condition is computed.

    Raises:
        ValueError: the size does not halve often enough, or a number is outside its range; calling
            it, an input has another shape, or the times another dtype than the images.

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
        attend_middle: bool = True,
        heads: int = 1,
        groups: int = 8,
        dropout: float = 0.0,
        inject: Callable = AdditiveGroupNorm,
        time=None,
        fourier: Sequence[int] = (),
        condition: int = 0,
        reads_data: bool = False,
    ):
        sides = _sides(size, len(multipliers))
        _require_stages(blocks, attention, sides)
        _require_widths(width, groups, condition)
        dims, widths = 4 * width, [width * m for m in multipliers]
        self.shape, self.condition, self.draws = (size, size, n_in), condition, dropout > 0.0
        self.frequencies = [2.0**n * pi for n in fourier]
        self.time = Sequential(time_embedding(time or Sinusoidal(width), dims), silu)
        read = (1 + 2 * len(self.frequencies)) * n_in + condition
        self.first = Conv2d(read, width, reads_data=reads_data)

        def stage(c_in, c_out, attend, before=(), after=()):
            block = ResBlock(c_in, c_out, dims, groups, dropout, inject)
            attending = [_attention(c_out, heads, groups)] if attend else []
            return Stage(before, block, [*attending, *after])

        self.down, self.up, kept, c = [], [], [], width
        for level, (side, c_out) in enumerate(zip(sides, widths, strict=True)):
            for i in range(blocks):
                halve = [Conv2d(c, c, stride=2)] if level > 0 and i == 0 else []
                self.down.append(stage(c, c_out, side in attention, before=halve))
                c = c_out
                kept.append(c)
        self.middle = [stage(c, c, attend_middle), stage(c, c, False)]
        for level, (side, c_out) in reversed(list(enumerate(zip(sides, widths, strict=True)))):
            for i in range(blocks):
                last = level > 0 and i == blocks - 1
                double = [nearest(2), Conv2d(c_out, c_out)] if last else []
                self.up.append(stage(c + kept.pop(), c_out, side in attention, after=double))
                c = c_out
        self.last = Sequential(GroupNorm(c, groups, silu), Conv2d(c, n_out, init=zero_values))

    def __call__(self, x, t, condition=None, stream=None):
        """x (N, H, W, n_in), t (N,), condition (N, H, W, c) or None -> y (N, H, W, n_out).

        Its pullback: dy -> (dx, dt), and d_condition where there is a condition; dx and d_condition
        are None where the net reads data.
        """
        self._require(x, t, condition)
        inputs, inputs_pullback = self._inputs(x, condition)
        e, time_pullback = self.run("time", self.time, t)
        h, first_pullback = self.run("first", self.first, inputs)
        down, middle, up, kept = [], [], [], []
        for i, stage in enumerate(self.down):
            h, pull = self.run(f"down.{i}", stage, h, e, stream=stream)
            down.append(pull)
            kept.append(h)
        for i, stage in enumerate(self.middle):
            h, pull = self.run(f"middle.{i}", stage, h, e, stream=stream)
            middle.append(pull)
        for i, stage in enumerate(self.up):
            both, split = _joined(h, kept.pop())
            h, pull = self.run(f"up.{i}", stage, both, e, stream=stream)
            up.append((pull, split))
        y, last_pullback = self.run("last", self.last, h)

        def pullback(dy):  # the same from the bottom up
            dh, de, d_kept = last_pullback(dy), 0.0, []
            for pull, split in reversed(up):
                d_both, d = pull(dh)
                de = de + d
                dh, d_skip = split(d_both)
                d_kept.append(d_skip)
            for pull in reversed(middle):
                dh, d = pull(dh)
                de = de + d
            for pull in reversed(down):
                dh, d = pull(dh + d_kept.pop())
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

    def _require(self, x, t, condition) -> None:
        if x.shape[1:] != self.shape:
            raise ValueError(f"this net takes images {self.shape}, got {x.shape[1:]}")
        if t.shape != x.shape[:1] or t.dtype != x.dtype:
            raise ValueError(
                f"this net takes one time for each image, {x.shape[:1]} of {x.dtype}; "
                f"got {t.shape} of {t.dtype}"
            )
        told = None if condition is None else condition.shape
        wanted = (*x.shape[:3], self.condition) if self.condition else None
        if told != wanted:
            expected = f"a condition of shape {wanted}" if wanted else "no condition"
            raise ValueError(f"this net takes {expected}, got {told}")


def _joined(h, kept):
    """[h, kept] in the channels; its pullback takes them apart."""
    c = h.shape[-1]
    both = namespace(h).concat([h, kept], axis=-1)
    return both, lambda d: (d[..., :c], d[..., c:])


def _attention(channels: int, heads: int, groups: int) -> Residual:
    return Residual(Sequential(GroupNorm(channels, groups), SelfAttention(channels, heads)))


def _sides(size: int, levels: int) -> list[int]:
    """The resolution of each level."""
    if levels < 1:
        raise ValueError("a U-Net needs the multiplier of at least one level, got none")
    step = 2 ** (levels - 1)
    if size < 1 or size % step:
        good = max(1, round(size / step)) * step
        raise ValueError(
            f"with {levels} resolutions the size must be a multiple of {step}, got {size}; "
            f"the nearest that fits is {good}"
        )
    return [size >> level for level in range(levels)]


def _require_stages(blocks: int, attention: Sequence[int], sides: list[int]) -> None:
    if blocks < 1:
        raise ValueError(f"a level needs at least 1 block, got {blocks}")
    for side in attention:
        if side not in sides:
            known = ", ".join(map(str, sides))
            raise ValueError(f"attention must name resolutions among {known}, got {side}")


def _require_widths(width: int, groups: int, condition: int) -> None:
    if width < 4 or groups < 1 or width % groups:
        raise ValueError(
            f"the width must be at least 4 and a multiple of the groups, got {width} and {groups}"
        )
    if condition < 0:
        raise ValueError(f"the condition's channels must be at least 0, got {condition}")
