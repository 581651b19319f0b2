"""Winograd's minimal filtering F(4×4, 3×3): a 3×3 correlation with a quarter of the products.

An output tile of 4×4 reads 6×6 pixels of the image. With matrices that evaluate polynomials at six
points, and interpolate between them,

    y = Aᵀ [ (G w Gᵀ) ⊙ (Bᵀ x B) ] A       one tile, one channel in, one channel out

needs 36 products where the sum itself needs 144. Over channels, ⊙ becomes 36 matrix products of
tiles by kernels. Each transform of a tile, Bᵀ x B for one, is linear in its entries, so all tiles
are transformed by one product with the Kronecker matrix Bᵀ ⊗ Bᵀ (36×36).

The interpolation costs digits. As the transforms are dense products anyway, the points need not be
small integers: 0, ±2/3, ±3/2 and ∞ keep four times as many of them as the usual 0, ±1, ±2 and ∞ do,
and leave about 2e-6 of the largest entry in float32, 1e-14 in float64.
"""

from functools import cache

import numpy as np
from numpy.lib.stride_tricks import as_strided

from scratchgen.core.module import Reading
from scratchgen.core.twins import register
from scratchgen.layers import conv
from scratchgen.layers.resampling import Pair

POINTS = (0.0, 2 / 3, -2 / 3, 3 / 2, -3 / 2)  # and ∞
CACHE = 2**12  # numbers of each of the 36 kinds at a time, which a processor's own cache holds
BLOCK = 2**15  # the same where the kernels alone exceed it, so that they are read fewer times
WORTH = 0.8  # of the direct sum's products: what a twin may need to be taken


def convolution(x, weight: Reading, stride: Pair, padding: Pair, reads_data: bool = False):
    """The twin of `layers.conv.convolution` for 3×3 kernels.

    The transformed tiles are kept for the pullback, which takes 36/16 of the image's memory. The
    pullback is the transpose of the forward pass: dx = B [(A dy Aᵀ) ⊙ (G w Gᵀ)] Bᵀ, tiles overlaid.

    Source: [Lavin 2016]
    """
    kernel = weight.derived("winograd", _kernel)
    y, blocks = _correlate(x, kernel, padding, padding)

    def pullback(dy):
        total, dx = None, None if reads_data else np.empty(x.shape, x.dtype)
        for examples, seen in blocks:
            d = _spread(dy[examples])
            total = _added(total, seen.transpose(0, 2, 1) @ d)
            if dx is not None:
                _lay_over(d @ kernel.transpose(0, 2, 1), dx[examples], padding, dy.shape[1:3])
        weight.accumulate_product(_matrices(x.dtype)[1], total)
        return dx

    return y, pullback


def gather(x, weight: Reading, stride: Pair, before: Pair, after: Pair, flipped: bool = False):
    """The twin of `layers.conv.gather` for 3×3 kernels."""
    kernel = weight.derived(("winograd", flipped), _turned if flipped else _kernel)
    return _correlate(x, kernel, before, after)[0]


def _correlate(x, kernel, before: Pair, after: Pair):
    """y (N, H', W', K) for a transformed kernel (36, C, K), and [(examples, their tiles)]."""
    places, (c, k) = _places(x.shape, before, after), kernel.shape[1:]
    y, blocks = np.empty((x.shape[0], *places, k), x.dtype), []
    size = CACHE if c * k <= CACHE else BLOCK
    for examples in _pieces(x.shape[0], _tile_count(places) * max(c, k), size):
        seen = _tiles(x[examples], before, places)
        _gather_up(seen @ kernel, y[examples])
        blocks.append((examples, seen))
    return y, blocks


def _kernel(w):
    """(3, 3, C, K) -> its transform G w Gᵀ, (36, C, K)."""
    return (_matrices(w.dtype)[1] @ w.reshape(9, -1)).reshape(36, *w.shape[2:])


def _turned(w):
    return _kernel(conv.turned(w))


def _tiles(x, before: Pair, places: Pair):
    """The transformed tiles Bᵀ x B of x, (36, T, C): each 6×6, and 4 apart."""
    rows, columns = (-(-n // 4) for n in places)
    n, c, each = x.shape[0], x.shape[3], rows * columns * x.shape[3]
    tiles = np.empty((36, n * each), x.dtype)
    for few in _pieces(n, each):
        framed = _framed(x[few], before, (4 * rows + 2, 4 * columns + 2))
        s = framed.strides
        windows = as_strided(
            framed,
            (6, 6, len(framed), rows, columns, c),
            (s[1], s[2], s[0], 4 * s[1], 4 * s[2], s[3]),
        )
        np.matmul(_matrices(x.dtype)[0], windows.reshape(36, -1), out=_columns(tiles, few, each))
    return tiles.reshape(36, -1, c)


def _lay_over(tiles, dx, before: Pair, places: Pair) -> None:
    """The transpose of `_tiles`, into dx: where tiles overlap, they add up."""
    rows, columns = (-(-m // 4) for m in places)
    (n, height, width, c), (p, q) = dx.shape, before
    tiles, each = tiles.reshape(36, -1), rows * columns * c
    for few in _pieces(n, each):
        t = _matrices(dx.dtype)[0].T @ _columns(tiles, few, each)
        t = t.reshape(6, 6, -1, rows, columns, c).transpose(2, 3, 0, 4, 1, 5)
        framed = np.zeros((len(t), rows + 1, 4, columns + 1, 4, c), dx.dtype)
        framed[:, :-1, :, :-1, :] = t[:, :, :4, :, :4]
        framed[:, 1:, :2, :-1, :] += t[:, :, 4:, :, :4]
        framed[:, :-1, :, 1:, :2] += t[:, :, :4, :, 4:]
        framed[:, 1:, :2, 1:, :2] += t[:, :, 4:, :, 4:]
        whole = framed.reshape(-1, 4 * rows + 4, 4 * columns + 4, c)
        dx[few] = whole[:, p : p + height, q : q + width]


def _gather_up(tiles, y) -> None:
    """Aᵀ m A of products m (36, T, K), side by side into y (N, H, W, K)."""
    n, h, w, k = y.shape
    rows, columns = -(-h // 4), -(-w // 4)
    tiles, each = tiles.reshape(36, -1), rows * columns * k
    for few in _pieces(n, each):
        t = _matrices(y.dtype)[2] @ _columns(tiles, few, each)
        t = t.reshape(4, 4, -1, rows, columns, k).transpose(2, 3, 0, 4, 1, 5)
        if (h, w) == (4 * rows, 4 * columns):
            y[few].reshape(-1, rows, 4, columns, 4, k)[...] = t
        else:
            y[few] = t.reshape(-1, 4 * rows, 4 * columns, k)[:, :h, :w]


def _spread(y):
    """The transpose of `_gather_up`: A y Aᵀ of each 4×4 of y (N, H, W, K), as (36, T, K)."""
    n, h, w, k = y.shape
    rows, columns = -(-h // 4), -(-w // 4)
    each = rows * columns * k
    tiles = np.empty((36, n * each), y.dtype)
    for few in _pieces(n, each):
        some = y[few]
        if (h, w) != (4 * rows, 4 * columns):
            some = _framed(some, (0, 0), (4 * rows, 4 * columns))
        some = some.reshape(-1, rows, 4, columns, 4, k).transpose(2, 4, 0, 1, 3, 5)
        transform = _matrices(y.dtype)[2].T
        np.matmul(transform, some.reshape(16, -1), out=_columns(tiles, few, each))
    return tiles.reshape(36, -1, k)


def _framed(x, before: Pair, size: Pair):
    """x at (before) in zeros of that many rows and columns, cut where it does not fit."""
    framed = np.zeros((x.shape[0], *size, x.shape[3]), x.dtype)
    (p, q), (h, w) = before, size
    framed[:, p : p + x.shape[1], q : q + x.shape[2]] = x[:, : h - p, : w - q]
    return framed


def _pieces(n: int, each: int, size: int = CACHE) -> list[slice]:
    """0..n-1 in slices of about `size` numbers, where each has so many."""
    several = max(1, size // each)
    return [slice(first, min(first + several, n)) for first in range(0, n, several)]


def _added(total, part):
    """total + part as (36, C K), in place of total; the part alone where there is no total yet."""
    part = part.reshape(36, -1)
    return part if total is None else np.add(total, part, out=total)


def _columns(a, few: slice, each: int):
    """Those columns of a matrix that belong to a few of the examples."""
    return a[:, few.start * each : few.stop * each]


def _tile_count(places: Pair) -> int:
    return -(-places[0] // 4) * -(-places[1] // 4)


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
    return 36 * _tile_count(places) * (c * k + 36 * c + 16 * k) < WORTH * direct


def _gathers(x, weight: Reading, stride: Pair, before: Pair, after: Pair, flipped=False) -> bool:
    if stride != (1, 1) or min(*before, *after) < 0:
        return False
    return _serves(x, weight, _places(x.shape, before, after))


def _convolves(x, weight: Reading, stride: Pair, padding: Pair, reads_data=False) -> bool:
    return _gathers(x, weight, stride, padding, padding)


register(conv.convolution, convolution, applies=_convolves)
register(conv.gather, gather, applies=_gathers)
