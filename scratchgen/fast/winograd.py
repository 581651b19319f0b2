"""Winograd's minimal filtering F(4×4, 3×3): a 3×3 correlation with a quarter of the products.

An output tile of 4×4 reads 6×6 pixels of the image. With matrices that evaluate polynomials at six
points, and interpolate between them,

    y = Aᵀ [ (G w Gᵀ) ⊙ (Bᵀ x B) ] A       one tile, one channel in, one channel out

needs 36 products where the sum itself needs 144. Over channels, ⊙ becomes 36 matrix products of
tiles by kernels. Each transform of a tile, Bᵀ x B for one, is linear in its entries, so all tiles
are transformed by one product with the Kronecker matrix Bᵀ ⊗ Bᵀ (36×36).

The interpolation costs digits. As the transforms are dense products anyway, the points need not be
small integers. Those at 0, ±2/3, ±3/2 and ∞ err less than a third as much as the usual 0, ±1, ±2
and ∞ do: with 128 channels by at most 4e-6 of the largest entry in float32.
"""

from collections.abc import Iterator
from functools import cache
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided

from scratchgen.core.module import Reading
from scratchgen.core.twins import register
from scratchgen.layers import conv
from scratchgen.layers.resampling import Pair

POINTS = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)  # and ∞
# transformed numbers of each of the 36 kinds at a time: enough for long products, and so few that
# memory is not handed back to the system and asked for again
BLOCK = 2**15
WORTH = 0.8  # of the direct sum's products: what a twin may need to be taken


def convolution(x, weight: Reading, stride: Pair, padding: Pair, reads_data: bool = False):
    """The twin of `layers.conv.convolution` for 3×3 kernels.

    The transformed tiles are kept for the pullback, which takes 36/16 of the image's memory, unless
    the parameters are frozen. The pullback is the transpose of the forward pass: dx = B [(A dy Aᵀ)
    ⊙ (G w Gᵀ)] Bᵀ, tiles overlaid.

    Source: [Lavin 2016]
    """
    kernel = weight.derived("winograd", _kernel)
    places = _places(x.shape, padding, padding)
    kept: dict | None = {} if weight.trained else None

    def pullback(dy):
        kernel = weight.derived("winograd", _kernel)  # which refuses an old θ
        total, dx = None, None if reads_data else np.empty(x.shape, x.dtype)
        for first, examples in _blocks(x, kernel, places):
            d = _spread(dy[examples])
            if weight.trained:
                tiles = _tiles(x[examples], padding, places) if kept is None else kept[first]
                total = _added(total, tiles.transpose(0, 2, 1) @ d)
            if dx is not None:
                _lay_over(d @ kernel.transpose(0, 2, 1), dx[examples], padding, places)
        if total is not None:
            weight.accumulate_product(_matrices(x.dtype)[1], total)
        return dx

    return _correlate(x, kernel, padding, places, kept), pullback


def gather(x, weight: Reading, stride: Pair, before: Pair, after: Pair, flipped: bool = False):
    """The twin of `layers.conv.gather` for 3×3 kernels."""
    kernel = weight.derived(("winograd", flipped), _turned if flipped else _kernel)
    return _correlate(x, kernel, before, _places(x.shape, before, after))


def _correlate(x, kernel, before: Pair, places: Pair, kept: dict | None = None):
    """y (N, H', W', K) for a transformed kernel (36, C, K); `kept` gets the tiles of each block."""
    y = np.empty((x.shape[0], *places, kernel.shape[2]), x.dtype)
    for first, examples in _blocks(x, kernel, places):
        tiles = _tiles(x[examples], before, places)
        _gather_up(tiles @ kernel, y[examples])
        if kept is not None:
            kept[first] = tiles
    return y


def _blocks(x, kernel, places: Pair) -> Iterator[tuple[int, slice]]:
    """The examples that are transformed together: the first of them, and all."""
    several = max(1, BLOCK // (prod(_grid(places)) * max(kernel.shape[1:])))
    for first in range(0, x.shape[0], several):
        yield first, slice(first, first + several)


def _kernel(w):
    """(3, 3, C, K) -> its transform G w Gᵀ, (36, C, K)."""
    return (_matrices(w.dtype)[1] @ w.reshape(9, -1)).reshape(36, *w.shape[2:])


def _turned(w):
    return _kernel(conv.turned(w))


def _tiles(x, before: Pair, places: Pair):
    """The transformed tiles Bᵀ x B of x, (36, T, C): each 6×6, and 4 apart."""
    rows, columns = _grid(places)
    windows = _windows(_framed(x, before, (4 * rows + 2, 4 * columns + 2)))
    seen = windows.transpose(2, 4, 0, 1, 3, 5).reshape(36, -1, x.shape[3])
    return _product(_matrices(x.dtype)[0], seen)


def _lay_over(tiles, dx, before: Pair, places: Pair) -> None:
    """The transpose of `_tiles`, into dx: where tiles overlap, they add up."""
    rows, columns = _grid(places)
    (n, height, width, c), (p, q) = dx.shape, before
    t = _product(_matrices(dx.dtype)[0].T, tiles).reshape(6, 6, n, rows, columns, c)
    t[:2, :, :, 1:] += t[4:, :, :, :-1]
    t[:, :2, :, :, 1:] += t[:, 4:, :, :, :-1]
    framed = np.empty((n, 4 * rows + 2, 4 * columns + 2, c), dx.dtype)
    windows, t = _windows(framed), t.transpose(2, 3, 0, 4, 1, 5)
    for own_rows in np.s_[:, :4], np.s_[-1:, 4:]:  # all tiles' first four, the last one's last two
        for own_columns in np.s_[:, :4], np.s_[-1:, 4:]:
            windows[:, *own_rows, *own_columns] = t[:, *own_rows, *own_columns]
    dx[...] = framed[:, p : p + height, q : q + width]


def _windows(framed):
    """The 6×6 windows of (N, 4h + 2, 4w + 2, C), 4 apart, as a view (N, h, 6, w, 6, C)."""
    n, height, width, c = framed.shape
    s = framed.strides
    return as_strided(
        framed, (n, height // 4, 6, width // 4, 6, c), (s[0], 4 * s[1], s[1], 4 * s[2], s[2], s[3])
    )


def _gather_up(tiles, y) -> None:
    """Aᵀ m A of products m (36, T, K), side by side into y (N, H, W, K)."""
    n, h, w, k = y.shape
    rows, columns = _grid((h, w))
    t = _product(_matrices(y.dtype)[2], tiles).reshape(4, 4, n, rows, columns, k)
    t = t.transpose(2, 3, 0, 4, 1, 5)
    if (h, w) == (4 * rows, 4 * columns):
        y.reshape(t.shape)[...] = t
    else:
        y[...] = t.reshape(n, 4 * rows, 4 * columns, k)[:, :h, :w]


def _spread(y):
    """The transpose of `_gather_up`: A y Aᵀ of each 4×4 of y (N, H, W, K), as (36, T, K)."""
    n, h, w, k = y.shape
    rows, columns = _grid((h, w))
    if (h, w) != (4 * rows, 4 * columns):
        y = _framed(y, (0, 0), (4 * rows, 4 * columns))
    t = y.reshape(n, rows, 4, columns, 4, k).transpose(2, 4, 0, 1, 3, 5)
    return _product(_matrices(y.dtype)[2].T, t.reshape(16, -1, k))


def _framed(x, before: Pair, size: Pair):
    """x at (before) in zeros of that many rows and columns, cut where it does not fit.

    Not by np.zeros, which would fill all of it, and keep Python's lock meanwhile.
    """
    n, height, width, c = x.shape
    (p, q), (h, w) = before, size
    framed = np.empty((n, h, w, c), x.dtype)
    framed[:, :p] = framed[:, p + height :] = 0.0
    framed[:, :, :q] = framed[:, :, q + width :] = 0.0
    framed[:, p : p + height, q : q + width] = x[:, : h - p, : w - q]
    return framed


def _added(total, part):
    """total + part as (36, C K), in place of total; the part alone where there is no total yet."""
    part = part.reshape(36, -1)
    return part if total is None else np.add(total, part, out=total)


def _product(matrix, a):
    """A matrix (p, q) times the first axis of a (q, T, C)."""
    return (matrix @ a.reshape(len(a), -1)).reshape(-1, *a.shape[1:])


def _grid(places: Pair) -> Pair:
    """How many tiles of 4×4 cover so many places, along rows and columns."""
    return -(-places[0] // 4), -(-places[1] // 4)


@cache
def _matrices(dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The transforms of tiles (36, 36), of kernels (36, 9) and of products (16, 36)."""
    b, g, a = (np.kron(m, m).astype(dtype) for m in toom_cook())
    return b, g, a


def toom_cook() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bᵀ (6, 6), G (6, 3) and Aᵀ (4, 6) of F(4, 3) in one dimension.

        y_i = Σ_j w_j x_{i+j}  =  (Aᵀ [(G w) ⊙ (Bᵀ x)])_i,   i = 0..3, j = 0..2

    Multiplying polynomials is to evaluate both at six points, to multiply, and to interpolate;
    correlation is its transpose. A and G evaluate polynomials of degree 3 and 2, B interpolates:
    its column i holds the coefficients of Π_{j≠i} (t - p_j), whose value at p_i G divides by.
    """
    points = np.array(POINTS)
    evaluate, tiles = np.zeros((6, 4)), np.zeros((6, 6))
    evaluate[:5], evaluate[5, 3] = points[:, None] ** np.arange(4), 1.0
    kernels = evaluate[:, :3].copy()
    for i, p in enumerate(points):
        others = np.delete(points, i)
        tiles[i, :5] = np.poly(others)[::-1]
        kernels[i] /= np.prod(p - others)
    tiles[5], kernels[5, 2] = np.poly(points)[::-1], 1.0
    return tiles, kernels, evaluate.T


def _places(shape, before: Pair, after: Pair) -> Pair:
    """How many places a 3×3 kernel has, along rows and columns."""
    height, width = (n + b + a - 2 for n, b, a in zip(shape[1:3], before, after, strict=True))
    return height, width


def _serves(x, weight: Reading, places: Pair) -> bool:
    """Whether arrays and shapes fit, and the products saved outweigh the transforms."""
    w = weight.value
    if type(x) is not np.ndarray or type(w) is not np.ndarray or x.dtype != w.dtype:
        return False
    if w.shape[:2] != (3, 3) or x.shape[0] == 0 or x.dtype not in (np.float32, np.float64):
        return False
    c, k = w.shape[2:]
    direct = 9 * places[0] * places[1] * c * k
    return 36 * prod(_grid(places)) * (c * k + 36 * c + 16 * k) < WORTH * direct


def _gathers(x, weight: Reading, stride: Pair, before: Pair, after: Pair, flipped=False) -> bool:
    if stride != (1, 1) or min(*before, *after) < 0:
        return False
    return _serves(x, weight, _places(x.shape, before, after))


def _convolves(x, weight: Reading, stride: Pair, padding: Pair, reads_data=False) -> bool:
    return _gathers(x, weight, stride, padding, padding)


register(conv.convolution, convolution, applies=_convolves)
register(conv.gather, gather, applies=_gathers)
