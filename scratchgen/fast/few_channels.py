"""Correlation from many channels to a few: first the products, then the sum over the kernel.

The readable way copies every patch, k² times the image, and multiplies it with the kernel. Where
the image has many channels and the result has few, as behind the last layer of a U-Net, each pixel
is better multiplied with all entries of the kernel where it lies, and what comes out is shifted
into place and added up: k² times the few instead of k² times the many.
"""

import numpy as np

from scratchgen.core.arrays import rows
from scratchgen.core.module import Reading
from scratchgen.core.twins import register
from scratchgen.layers.conv import add_kernel_gradient, gather, patches, turned
from scratchgen.layers.resampling import Pair

FEWER = 4  # times as many channels before as after, from which on it pays


def correlate(x, weight: Reading, stride: Pair, before: Pair, after: Pair, flipped: bool = False):
    """The twin of `layers.conv.gather` for few channels out.

    y[n, i, j] = Σ_uv z[n, i + u - p, j + v - q, u, v],   z[n, i, j, u, v] = x[n, i, j] W[u, v]
    """
    w = turned(weight.value) if flipped else weight.value
    k, l, _, channels = w.shape
    n, height, width, _ = x.shape
    z = (rows(x) @ _side_by_side(w)).reshape(n, height, width, k, l, channels)
    y = np.zeros((n, height + k - 1, width + l - 1, channels), x.dtype)
    for u in range(k):
        for v in range(l):
            top, left = k - 1 - u, l - 1 - v
            y[:, top : top + height, left : left + width] += z[:, :, :, u, v]
    places = slice(k - 1 - before[0], height + after[0]), slice(l - 1 - before[1], width + after[1])
    return np.ascontiguousarray(y[:, *places])


def add_gradient(weight: Reading, x, dy, stride: Pair, padding: Pair) -> None:
    """The twin of `layers.conv.add_kernel_gradient`: it takes the patches of dy, not those of x."""
    k, l, c, channels = weight.value.shape
    around = (k - 1 - padding[0], l - 1 - padding[1])
    product = rows(x).T @ rows(patches(dy, (k, l), (1, 1), around, around))
    gradient = product.reshape(c, k, l, channels)[:, ::-1, ::-1].transpose(1, 2, 0, 3)
    weight.accumulate_product(np.ones((1, 1), x.dtype), gradient.reshape(1, -1))


def _side_by_side(w):
    """(k, l, C, K) -> (C, k l K)."""
    return w.transpose(2, 0, 1, 3).reshape(w.shape[2], -1)


def _serves(x, kernel, pads: tuple[int, ...]) -> bool:
    """Whether arrays and shapes fit, and the channels out are so few; kernel (k, l, C, K)."""
    if type(x) is not np.ndarray or x.shape[0] == 0 or x.dtype not in (np.float32, np.float64):
        return False
    k, l, c, channels = kernel
    fits = min(pads) >= 0 and max(pads) < min(k, l)
    return fits and k * l > 1 and FEWER * channels <= c


def _gathers(x, weight: Reading, stride: Pair, before: Pair, after: Pair, flipped=False) -> bool:
    w = weight.value
    k, l, *channels = w.shape
    kernel = (k, l, *(channels[::-1] if flipped else channels))
    same = type(w) is np.ndarray and x.dtype == w.dtype
    return same and stride == (1, 1) and _serves(x, kernel, (*before, *after))


def _adds(weight: Reading, x, dy, stride: Pair, padding: Pair) -> bool:
    kernel = weight.value.shape
    return stride == (1, 1) and type(dy) is np.ndarray and _serves(x, kernel, padding)


register(gather, correlate, applies=_gathers)
register(add_kernel_gradient, add_gradient, applies=_adds)
