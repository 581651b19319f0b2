"""Convolution and its transpose, as patches and one matrix product.

Both are the same bilinear map of an image and a kernel W (k, l, n_small, n_large), read in the two
directions: `correlate` gathers, and `correlate_adjoint` is its transpose with respect to the image.
The transpose gathers too. Its patches are taken from the cotangent, spread to the stride, and meet
the kernel flipped in both directions; that is faster than scattering, and shorter.
"""

from collections.abc import Callable
from math import prod
from operator import index

from scratchgen.core.arrays import namespace, rows
from scratchgen.core.module import Parameter, Reading
from scratchgen.core.twins import readable
from scratchgen.layers.affine import Affine, fan_in_normal, zero_values
from scratchgen.layers.resampling import Pair, dilate, pad

BLOCK = 2**19  # entries of patches at a time; they are k² times the image, and memory is slow


def patches(x, kernel: Pair, stride: Pair = (1, 1), before: Pair = (0, 0), after: Pair = (0, 0)):
    """What a kernel sees at each of its places, end to end in the last axis.

        y[n, i, j, (u, v, c)] = x̄[n, s i + u, t j + v, c],   x̄ = x between bands of zeros

    Args:
        x: (N, H, W, C).
        kernel, stride: (k, l) and (s, t).
        before, after: rows and columns of zeros on each side; where negative, x is cut.

    Returns:
        (N, H', W', k l C).
    """
    x = pad(x, before, after)
    (k, l), (s, t) = kernel, stride
    last_row, last_column = x.shape[1] - k, x.shape[2] - l  # where the last kernel may begin
    windows = [
        x[:, u : u + last_row + 1 : s, v : v + last_column + 1 : t, :]
        for u in range(k)
        for v in range(l)
    ]
    return namespace(x).concat(windows, axis=-1) if len(windows) > 1 else windows[0]


def patches_in_blocks(x, kernel: Pair, stride: Pair, before: Pair, after: Pair):
    """The patches of a few examples at a time, so that they stay in the processor's cache.

    Yields:
        (examples, patches): a slice of the batch, and what `patches` returns for it.
    """
    geometry = zip(x.shape[1:3], kernel, stride, before, after, strict=True)
    places = prod((n + b + a - k) // s + 1 for n, k, s, b, a in geometry)
    several = max(1, BLOCK // (places * prod(kernel) * x.shape[-1]))
    for first in range(0, max(1, x.shape[0]), several):
        examples = slice(first, min(first + several, x.shape[0]))
        yield examples, patches(x[examples, ...], kernel, stride, before, after)


def correlate(x, weight: Reading, stride: Pair, padding: Pair):
    """Σ_uv x[n, s i + u - p, t j + v - q] W[u, v]:  (N, H, W, C) -> (N, H', W', K)."""
    return gather(x, weight, stride, padding, padding)


def correlate_adjoint(y, weight: Reading, stride: Pair, padding: Pair, size: Pair):
    """The transpose of x -> correlate(x, W):  (N, H', W', K) -> (N, *size, C)."""
    kernel, spread = weight.value.shape[:2], dilate(y, stride)
    before = (kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1])
    after = tuple(size[i] + kernel[i] - 1 - before[i] - spread.shape[i + 1] for i in (0, 1))
    return gather(spread, weight, (1, 1), before, after, flipped=True)


@readable
def gather(x, weight: Reading, stride: Pair, before: Pair, after: Pair, flipped: bool = False):
    """Every patch of x between its bands of zeros, times the kernel as a matrix.

    Args:
        x: (N, H, W, C).
        weight: of the kernel (k, l, C, K); with `flipped`, of (k, l, K, C).
        stride, before, after: as for `patches`.
        flipped: turn the kernel about and exchange its channels, as transposes need it.

    Returns:
        (N, H', W', K).
    """
    w = turned(weight.value) if flipped else weight.value
    columns, blocks = _columns(w), patches_in_blocks(x, w.shape[:2], stride, before, after)
    return _concat([_product(seen, columns) for _, seen in blocks])


@readable
def add_kernel_gradient(weight: Reading, x, dy, stride: Pair, padding: Pair) -> None:
    """Add Σ_nij x[n, s i + u - p, t j + v - q] dy[n, i, j] to the gradient of W[u, v].

    The patches are taken again: keeping them from the forward pass would cost k² times the memory.

    Args:
        weight: of W (k, l, C, K).
        x: (N, H, W, C), what the kernel was laid over.
        dy: (N, H', W', K).
        stride, padding: as for `correlate`.
    """
    kernel = weight.value.shape[:2]
    for part, seen in patches_in_blocks(x, kernel, stride, padding, padding):
        weight.accumulate_product(rows(seen), rows(dy[part, ...]))


def turned(w):
    """(k, l, C, K) -> (k, l, K, C), turned about by half a circle."""
    return namespace(w).permute_dims(w[::-1, ::-1, :, :], (0, 1, 3, 2))


def _columns(w):
    """A kernel (k, l, C, K) as the matrix (k l C, K) that patches are multiplied with."""
    return namespace(w).reshape(w, (-1, w.shape[-1]))


def _product(seen, columns):
    """(N, H', W', k l C) times (k l C, K), as one product of two matrices."""
    y = rows(seen) @ columns
    return namespace(y).reshape(y, (*seen.shape[:-1], columns.shape[-1]))


def _concat(parts: list):
    return namespace(parts[0]).concat(parts) if len(parts) > 1 else parts[0]


@readable
def convolution(x, weight: Reading, stride: Pair, padding: Pair, reads_data: bool = False):
    """y = correlate(x, W), as a layer.

    Args:
        x: (N, H, W, C).
        weight: of W (k, l, C, K).
        stride, padding: of the rows and of the columns.
        reads_data: leave the cotangent of x out.

    Returns:
        y: (N, H', W', K).
        pullback: dy -> dx, or None where x is data; adds the gradient of W.
    """

    def pullback(dy):
        if weight.trained:
            add_kernel_gradient(weight, x, dy, stride, padding)
        if reads_data:
            return None
        return correlate_adjoint(dy, weight, stride, padding, x.shape[1:3])

    return correlate(x, weight, stride, padding), pullback


def transposed_convolution(x, weight: Reading, stride: Pair, padding: Pair, size: Pair):
    """y = correlate_adjoint(x, W), as a layer.

    Args:
        x: (N, H', W', K).
        weight: of W (k, l, C, K), the kernel of the convolution it is the transpose of.
        stride, padding: of that convolution.
        size: (H, W), the rows and columns of y.

    Returns:
        y: (N, H, W, C).
        pullback: dy -> dx = correlate(dy, W); adds the gradient of W.
    """

    def pullback(dy):
        if weight.trained:
            add_kernel_gradient(weight, dy, x, stride, padding)
        return correlate(dy, weight, stride, padding)

    return correlate_adjoint(x, weight, stride, padding, size), pullback


class Conv2d(Affine):
    """y[n, i, j] = Σ_uv x[n, s i + u - p, t j + v - q] W[u, v] + b.

    x (N, H, W, n_in) -> y (N, H', W', n_out), H' = ⌊(H + 2p - k)/s⌋ + 1.

    Args:
        n_in, n_out: channels before and after.
        kernel, stride, padding: one number, or one for the rows and one for the columns; padding
            (k - 1)//2 unless told otherwise, which keeps an odd kernel's output as large as x.
        init: initialiser of W (k, l, n_in, n_out); of variance 1/fan-in unless told otherwise.
        bias: whether there is a b (n_out,); it starts at 0.
        reads_data: as for `Linear`.

    Raises:
        ValueError: a size is outside its range; calling it, no images of n_in channels, or images
            smaller than the kernel.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: int | Pair = 3,
        stride: int | Pair = 1,
        padding: int | Pair | None = None,
        init: Callable | None = None,
        bias: bool = True,
        reads_data: bool = False,
    ):
        k, self.stride, self.padding = _geometry(n_in, n_out, kernel, stride, padding)
        init = init or fan_in_normal(k[0] * k[1] * n_in)
        self.weight = Parameter((*k, n_in, n_out), init)
        self.bias = Parameter((n_out,), zero_values) if bias else None
        self.reads_data = reads_data

    def linear(self, x):
        """x -> W ⋆ x, pullback: dy -> its transpose."""
        _require_images(x, self.weight.shape[2])
        _require_fit(x.shape[1:3], self.weight.shape[:2], self.padding)
        return convolution(x, self.weight.read(), self.stride, self.padding, self.reads_data)


class ConvTranspose2d(Affine):
    """The transpose of a convolution n_out -> n_in with kernel W, plus b.

    x (N, H', W', n_in) -> y (N, H, W, n_out), H = s(H' - 1) + k - 2p + extra.

    Args:
        n_in, n_out: channels before and after.
        kernel, stride, padding: of the convolution, as for `Conv2d`.
        extra: rows and columns at the end that the convolution's stride leaves out, fewer than s.
        init: initialiser of W (k, l, n_out, n_in); of variance 1/fan-in unless told otherwise.
        bias: whether there is a b (n_out,); it starts at 0.

    Raises:
        ValueError: a size is outside its range; calling it, no images of n_in channels, or y would
            be empty.

    Source: GAN-7
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: int | Pair = 4,
        stride: int | Pair = 2,
        padding: int | Pair | None = None,
        extra: int | Pair = 0,
        init: Callable | None = None,
        bias: bool = True,
    ):
        k, self.stride, self.padding = _geometry(n_in, n_out, kernel, stride, padding)
        self.extra = _pair("extra", extra, least=0)
        if self.extra[0] >= self.stride[0] or self.extra[1] >= self.stride[1]:
            raise ValueError(f"the extra must be below the stride {self.stride}, got {self.extra}")
        share = k[0] * k[1] / (self.stride[0] * self.stride[1])  # of the kernel, in each output
        self.weight = Parameter((*k, n_out, n_in), init or fan_in_normal(share * n_in))
        self.bias = Parameter((n_out,), zero_values) if bias else None

    def linear(self, x):
        """x -> Wᵀ x, pullback: dy -> W ⋆ dy."""
        _require_images(x, self.weight.shape[3])
        size = self._enlarged(x.shape[1:3])
        return transposed_convolution(x, self.weight.read(), self.stride, self.padding, size)

    def _enlarged(self, size: Pair) -> Pair:
        """(H', W') -> (H, W)."""
        geometry = (size, self.weight.shape[:2], self.stride, self.padding, self.extra)
        height, width = (
            s * (n - 1) + k - 2 * p + e for n, k, s, p, e in zip(*geometry, strict=True)
        )
        if height < 1 or width < 1:
            raise ValueError(f"images of {size} would become {(height, width)}; lower the padding")
        return height, width


def _require_images(x, channels: int) -> None:
    if x.ndim != 4 or x.shape[3] != channels:
        raise ValueError(f"this layer reads images (N, H, W, {channels}), got shape {x.shape}")


def _require_fit(size, kernel, padding) -> None:
    if any(n + 2 * p < k for n, k, p in zip(size, kernel, padding, strict=True)):
        raise ValueError(
            f"a kernel of {kernel} with padding {padding} does not fit into images of {size}; "
            "enlarge the images or the padding"
        )


def _geometry(n_in, n_out, kernel, stride, padding) -> tuple[Pair, Pair, Pair]:
    if n_in < 1 or n_out < 1:
        raise ValueError(f"a convolution needs at least 1 channel, got {n_in} -> {n_out}")
    kernel = _pair("kernel", kernel)
    if padding is None:
        padding = tuple((k - 1) // 2 for k in kernel)
    return kernel, _pair("stride", stride), _pair("padding", padding, least=0)


def _pair(name: str, value: int | Pair, least: int = 1) -> Pair:
    first, second = map(index, value if isinstance(value, tuple) else (value, value))
    if min(first, second) < least:
        raise ValueError(f"the {name} must be at least {least}, got {value}")
    return first, second
