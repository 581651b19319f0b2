"""Linear maps that change the grid of an image and own no parameters.

Images are (N, H, W, C). Nothing here assigns to a part of an array, so all of it can be traced.
"""

from math import prod
from operator import index

from scratchgen.core.arrays import namespace, zeros
from scratchgen.layers.affine import LinearMap

Pair = tuple[int, int]  # one number for the rows, one for the columns


def pad(x, before: Pair, after: Pair):
    """x with so many rows and columns of zeros around it; where negative, so many are cut."""
    xp = namespace(x)
    for axis, (b, a) in enumerate(zip(before, after, strict=True), start=1):
        bands = [zeros((*x.shape[:axis], max(n, 0), *x.shape[axis + 1 :]), like=x) for n in (b, a)]
        if b > 0 or a > 0:
            x = xp.concat([bands[0], x, bands[1]], axis=axis)
        if b < 0 or a < 0:
            kept = slice(max(-b, 0), x.shape[axis] - max(-a, 0))
            x = x[(*(slice(None),) * axis, kept, ...)]
    return x


def dilate(x, stride: Pair):
    """x with s - 1 zeros between neighbours:  (N, H, W, C) -> (N, s(H-1)+1, s'(W-1)+1, C)."""
    if stride == (1, 1):
        return x
    xp, (n, h, w, c), (s, t) = namespace(x), x.shape, stride
    x = xp.concat([x[:, :, None, :, None, :], zeros((n, h, s - 1, w, 1, c), like=x)], axis=2)
    x = xp.concat([x, zeros((n, h, s, w, t - 1, c), like=x)], axis=4)
    return xp.reshape(x, (n, h * s, w * t, c))[:, : s * (h - 1) + 1, : t * (w - 1) + 1, :]


def reshaped(*shape: int) -> LinearMap:
    """The layer x (N, ...) -> (N, *shape); one entry may be -1, for what is left.

    Raises:
        ValueError: an entry is neither positive nor -1, or more than one is -1.
    """
    if min(shape, default=1) < -1 or 0 in shape or shape.count(-1) > 1:
        raise ValueError(f"a shape has positive entries, and -1 at most once; got {shape}")

    def apply(x):
        xp, known = namespace(x), prod(n for n in shape if n != -1)
        left = prod(x.shape[1:]) // known  # reshape itself would not know it of an empty batch
        whole = (left if n == -1 else n for n in shape)
        return xp.reshape(x, (x.shape[0], *whole)), lambda dy: xp.reshape(dy, x.shape)

    return LinearMap("reshaped", apply)


def nearest(factor: int = 2) -> LinearMap:
    """The layer y[i, j] = x[⌊i/f⌋, ⌊j/f⌋]:  (N, H, W, C) -> (N, fH, fW, C).

    Raises:
        ValueError: a factor below 1.
    """
    _require_factor(factor)

    def apply(x):
        xp, (n, h, w, c) = namespace(x), x.shape
        spread = xp.concat([x[:, :, None, :, None, :]] * factor, axis=2)
        spread = xp.concat([spread] * factor, axis=4)

        def pullback(dy):
            return namespace(dy).sum(_blocks(dy, factor), axis=(2, 4))

        return xp.reshape(spread, (n, h * factor, w * factor, c)), pullback

    return LinearMap("nearest", apply)


def strided(factor: int = 2) -> LinearMap:
    """The layer y[i, j] = x[fi, fj]:  (N, H, W, C) -> (N, ⌈H/f⌉, ⌈W/f⌉, C).

    Raises:
        ValueError: a factor below 1.
    """
    _require_factor(factor)

    def apply(x):
        def pullback(dy):
            spread = dilate(dy, (factor, factor))
            rest = (x.shape[1] - spread.shape[1], x.shape[2] - spread.shape[2])
            return pad(spread, (0, 0), rest)

        return x[:, ::factor, ::factor, :], pullback

    return LinearMap("strided", apply)


def _blocks(x, factor: int):
    n, h, w, c = x.shape
    return namespace(x).reshape(x, (n, h // factor, factor, w // factor, factor, c))


def _require_factor(factor: int) -> None:
    if index(factor) < 1:
        raise ValueError(f"a resampling factor must be at least 1, got {factor}")
