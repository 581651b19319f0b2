"""layers/conv.py: convolution by its definition, and its transpose by the adjoint law."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.layers import conv
from scratchgen.layers.conv import Conv2d, ConvTranspose2d, patches, patches_in_blocks
from scratchgen.testing import oracle
from scratchgen.testing.strategies import seeds, sizes

from support import NUMPY, bound, normals


def pairs(least: int, most: int):
    return st.tuples(st.integers(least, most), st.integers(least, most))


@st.composite
def geometries(draw):
    """(image, kernel, stride, padding, extra, output), each a pair: any convolution that fits.

    image = stride (output - 1) + kernel - 2 padding + extra, with 0 <= extra < stride.
    """
    axes = []
    for _ in range(2):
        kernel, stride, output = (draw(st.integers(1, most)) for most in (4, 3, 4))
        reached, extra = stride * (output - 1) + kernel, draw(st.integers(0, stride - 1))
        padding = draw(st.integers(0, min(4, (reached - 1) // 2)))
        axes.append((reached - 2 * padding + extra, kernel, stride, padding, extra, output))
    return tuple(zip(*axes, strict=True))


def tied(layer: Conv2d, transpose: ConvTranspose2d) -> None:
    """Give both layers one kernel and no bias."""
    bound(layer), bound(transpose)
    weight = normals(7, *layer.weight.shape)
    for each in (layer, transpose):
        owner = each.weight.owner
        owner.theta = np.zeros_like(owner.theta)
        owner.theta[each.weight.window] = weight.ravel()


def by_definition(x, w, stride, padding):
    """y[n, i, j, k] = Σ_uvc x[n, s i + u - p, t j + v - q, c] W[u, v, c, k], term by term."""
    n, height, width, _ = x.shape
    geometry = zip(x.shape[1:3], padding, w.shape[:2], stride, strict=True)
    out = [(h + 2 * p - k) // s + 1 for h, p, k, s in geometry]
    y = np.zeros((n, *out, w.shape[-1]))
    for i, j, u, v in product(*map(range, (*out, *w.shape[:2]))):
        row, column = stride[0] * i + u - padding[0], stride[1] * j + v - padding[1]
        if 0 <= row < height and 0 <= column < width:
            y[:, i, j] += x[:, row, column] @ w[u, v]
    return y


@given(seeds(), geometries(), sizes(3), sizes(3))
def test_any_kernel_stride_and_padding(seed, geometry, n_in, n_out):
    size, kernel, stride, padding, _, _ = geometry
    layer = Conv2d(n_in, n_out, kernel, stride, padding)
    params, x = bound(layer, seed), normals(seed, 2, *size, n_in)
    want = by_definition(x, layer.weight.read().value, stride, padding) + layer.bias.read().value
    oracle.assert_close(layer(x)[0], want, 1e-12, "the definition")
    oracle.check_gradient(params, layer, x)
    with params.frozen():
        oracle.check_pullback(layer, x)


@pytest.mark.equation("GAN-7")
@given(seeds(), geometries(), sizes(3), sizes(3))
def test_the_transpose_is_the_adjoint(seed, geometry, n_in, n_out):
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩, for every size of x that A takes to that of y."""
    size, kernel, stride, padding, extra, output = geometry
    layer = Conv2d(n_in, n_out, kernel, stride, padding)
    transpose = ConvTranspose2d(n_out, n_in, kernel, stride, padding, extra)
    tied(layer, transpose)
    x, y = normals(seed, 2, *size, n_in), normals(seed + 1, 2, *output, n_out)
    there, back = layer(x)[0], transpose(y)[0]
    assert (there.shape, back.shape) == (y.shape, x.shape)
    left, right = np.sum(there * y), np.sum(x * back)
    assert abs(left - right) <= 1e-12 * np.sum(np.abs(there * y))
    params = transpose.weight.owner
    oracle.check_gradient(params, transpose, y)
    with params.frozen():
        oracle.check_pullback(transpose, y)


@pytest.mark.equation("GAN-7")
def test_the_transpose_doubles_by_default_and_adds_a_bias():
    layer = ConvTranspose2d(3, 2)
    bound(layer)
    assert layer.weight.shape == (4, 4, 2, 3)
    y = layer(np.zeros((1, 3, 5, 3)))[0]
    np.testing.assert_array_equal(y, np.broadcast_to(layer.bias.read().value, (1, 6, 10, 2)))
    assert ConvTranspose2d(3, 2, bias=False).bias is None


@pytest.mark.equation("GAN-7")
@given(pairs(1, 4), pairs(1, 4))
def test_initial_weights_of_the_transpose_keep_the_variance(kernel, stride):
    """Of n_in k l / (s t) weights that meet in an output, on average."""
    layer = ConvTranspose2d(50, 40, kernel, stride)
    FlatParameters(layer, Stream(0, NUMPY))
    share = 50 * kernel[0] * kernel[1] / (stride[0] * stride[1])
    # 2,000 k l weights: four standard errors of a variance are at most 13 %
    assert share * layer.weight.read().value.var() == pytest.approx(1.0, rel=0.13)
    assert not np.any(layer.bias.read().value)


def test_initial_weights_keep_the_variance():
    layer = Conv2d(64, 32, kernel=(2, 5))
    FlatParameters(layer, Stream(0, NUMPY))
    assert 10 * 64 * layer.weight.read().value.var() == pytest.approx(1.0, rel=0.03)


@given(seeds(), sizes(9), pairs(1, 3), pairs(1, 3), pairs(0, 2), sizes(3), st.integers(1, 3000))
def test_a_block_holds_as_many_examples_as_fit(seed, n, kernel, stride, padding, n_in, block):
    x, geometry = normals(seed, n, 4, 5, n_in), (kernel, stride, padding, padding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "BLOCK", block)
        blocks = list(patches_in_blocks(x, *geometry))
    whole = patches(x, *geometry)
    np.testing.assert_array_equal(np.concatenate([seen for _, seen in blocks]), whole)
    assert [part.start for part, _ in blocks[1:]] == [part.stop for part, _ in blocks[:-1]]
    most = max(1, block // whole[0].size)
    assert [len(seen) for _, seen in blocks[:-1]] == [most] * (len(blocks) - 1)
    assert 1 <= len(blocks[-1][1]) <= most


@pytest.mark.parametrize("block", [1, 100, 2**30])
def test_the_size_of_the_blocks_does_not_matter(block, monkeypatch):
    layer = Conv2d(3, 4, stride=2)
    params, x = bound(layer), normals(0, 7, 5, 6, 3)
    y, pullback = layer(x)
    dx, grad = pullback(y), params.grad.copy()
    params.grad[...] = 0.0
    monkeypatch.setattr(conv, "BLOCK", block)
    again, pullback = layer(x)
    np.testing.assert_allclose(again, y, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(pullback(y), dx, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(params.grad, grad, rtol=1e-11, atol=1e-12)


def test_a_layer_that_reads_data_has_no_cotangent_but_the_same_gradient():
    reader, layer = Conv2d(2, 3, reads_data=True), Conv2d(2, 3)
    first, second, x = bound(reader), bound(layer), normals(0, 2, 4, 4, 2)
    y, pullback = reader(x)
    assert pullback(y) is None
    layer(x)[1](y)
    np.testing.assert_array_equal(first.grad, second.grad)


def test_empty_batches_pass():
    layer = Conv2d(3, 2)
    bound(layer)
    y, pullback = layer(np.zeros((0, 4, 4, 3)))
    assert (y.shape, pullback(y).shape) == ((0, 4, 4, 2), (0, 4, 4, 3))


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_odd_kernels_keep_the_size_unless_told_otherwise(kernel):
    layer = Conv2d(1, 1, kernel)
    bound(layer)
    assert layer(np.zeros((1, 6, 9, 1)))[0].shape == (1, 6, 9, 1)
    assert Conv2d(1, 1, kernel=4, stride=2).padding == (1, 1)


def test_sizes_may_be_any_whole_numbers_and_nothing_else():
    assert Conv2d(1, 1, np.int64(5), padding=(np.int64(2), 0)).padding == (2, 0)
    with pytest.raises(TypeError):
        Conv2d(1, 1, kernel=(2.5, 3))


def test_one_by_one_is_a_linear_layer():
    layer, x = Conv2d(3, 2, kernel=1, bias=False), normals(1, 2, 4, 5, 3)
    bound(layer)
    w = layer.weight.read().value
    np.testing.assert_allclose(layer(x)[0], x @ w[0, 0], rtol=1e-13)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv2d(0, 2), "at least 1 channel, got 0 -> 2"),
        (lambda: ConvTranspose2d(2, 0), "at least 1 channel, got 2 -> 0"),
        (lambda: Conv2d(1, 1, kernel=0), "kernel must be at least 1, got 0"),
        (lambda: Conv2d(1, 1, stride=(1, 0)), r"stride must be at least 1, got \(1, 0\)"),
        (lambda: Conv2d(1, 1, padding=-1), "padding must be at least 0, got -1"),
        (lambda: ConvTranspose2d(1, 1, extra=-1), "extra must be at least 0, got -1"),
        (lambda: ConvTranspose2d(1, 1, extra=2), r"below the stride \(2, 2\), got \(2, 2\)"),
        (lambda: ConvTranspose2d(1, 1, 4, (1, 2), extra=1), r"the stride \(1, 2\), got \(1, 1\)"),
    ],
)
def test_sizes_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_images_that_are_too_small_are_refused():
    layer, transpose = Conv2d(1, 1, kernel=5, padding=1), ConvTranspose2d(1, 1, kernel=2, padding=1)
    bound(layer), bound(transpose)
    with pytest.raises(ValueError, match=r"does not fit into images of \(2, 3\)"):
        layer(np.zeros((1, 2, 3, 1)))
    with pytest.raises(ValueError, match=r"of \(1, 2\) would become \(0, 2\)"):
        transpose(np.zeros((1, 1, 2, 1)))


@pytest.mark.parametrize("make", [Conv2d, ConvTranspose2d])
@pytest.mark.parametrize("shape", [(2, 12), (2, 4, 4, 1), (2, 3, 4, 4)])
def test_what_is_no_image_of_its_channels_is_refused(make, shape):
    layer = make(3, 2)
    bound(layer)
    with pytest.raises(ValueError, match=r"reads images \(N, H, W, 3\), got shape \(2, "):
        layer(np.zeros(shape))
