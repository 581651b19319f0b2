"""fast/winograd.py: the same correlation, with fewer products and nearly all of the digits."""

from contextlib import nullcontext
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twinned import BORN, LAYOUTS, agree, answers, as_slice, kernel, the_twin

from scratchgen.core import twins
from scratchgen.core.module import StalePullback
from scratchgen.fast import winograd
from scratchgen.layers.conv import Conv2d, ConvTranspose2d, convolution, gather
from scratchgen.testing.strategies import seeds, sizes

from support import bound, normals, share_of_the_examples

USUAL = (0.0, 1.0, -1.0, 2.0, -2.0)
SPARE = 1.0  # of the tolerance, absolute: outputs are of unit variance, and few of them may cancel

dtypes = st.sampled_from(sorted(BORN))
layouts = st.sampled_from(LAYOUTS)
sides = st.tuples(sizes(13), sizes(13))


def images(seed: int, dtype: str, *shape: int):
    return normals(seed, *shape).astype(dtype)


@st.composite
def framed(draw, channels):
    """(n, (H, W), before, after, C, K): images that with their frame hold a 3×3 kernel."""
    height, width = draw(sides)
    before, after = (draw(st.tuples(*2 * [st.integers(0, 2)])) for _ in range(2))
    height, width = (
        max(n, 3 - b - a) for n, b, a in zip((height, width), before, after, strict=True)
    )
    return draw(sizes(4)), (height, width), before, after, draw(channels), draw(channels)


@st.composite
def padded(draw, channels):
    """(n, (H, W), padding, C, K)."""
    n, (height, width), padding, _, c, k = draw(framed(channels))
    height, width = (max(m, 3 - 2 * p) for m, p in zip((height, width), padding, strict=True))
    return n, (height, width), padding, c, k


class TestMatrices:
    @pytest.mark.parametrize("points", [winograd.POINTS, USUAL, (0.0, 0.5, -0.25, 3.0, 4.0)])
    def test_they_correlate(self, points, monkeypatch):
        """y_i = Σ_j w_j x_{i+j}, for every pair of unit vectors w and x."""
        monkeypatch.setattr(winograd, "POINTS", points)
        tiles, kernels, outputs = winograd.toom_cook()
        found = np.einsum("im,mj,ml->ijl", outputs, kernels, tiles)
        i, j, l = np.indices(found.shape)
        np.testing.assert_allclose(found, 1.0 * (l == i + j), rtol=0.0, atol=1e-13)

    def test_the_points_keep_more_digits_than_the_usual_ones(self, monkeypatch):
        """The largest error in float32 over 128 channels, relative to the largest output."""
        ours = self._error()
        monkeypatch.setattr(winograd, "POINTS", USUAL)
        usual = self._error()
        assert ours < 4e-6
        assert 3.0 * ours < usual

    def _error(self) -> float:
        b, g, a = (np.kron(m, m).astype(np.float32) for m in winograd.toom_cook())
        x = images(0, "float32", 36, 64, 128)
        w = images(1, "float32", 9, 128, 32) / np.float32(9 * 128) ** 0.5
        seen = (b @ x.reshape(36, -1)).reshape(x.shape)
        found = (a @ (seen @ (g @ w.reshape(9, -1)).reshape(36, 128, 32)).reshape(36, -1)).ravel()
        x, w = x.astype(float).reshape(6, 6, 64, 128), w.astype(float).reshape(3, 3, 128, 32)
        want = sum(x[u : u + 4, v : v + 4] @ w[u, v] for u, v in product(range(3), repeat=2))
        return np.abs(found - want.ravel()).max() / np.abs(want).max()


class TestConvolution:
    """Its twin itself, on any channels; then where the condition decides."""

    @given(seeds(), dtypes, layouts, padded(sizes(5)), st.booleans(), st.integers(1, 500))
    @example(0, "float64", np.ascontiguousarray, (1, (1, 1), (1, 1), 1, 1), False, 1)
    def test_it_is_the_readable_one(self, seed, dtype, layout, drawn, reads_data, block):
        n, size, padding, c, k = drawn
        params, weight = kernel(seed, dtype, 3, 3, c, k)
        x = layout(images(seed, dtype, n, *size, c))
        given = {"stride": (1, 1), "padding": padding, "reads_data": reads_data}
        way, read = (
            lambda x, f=f: f(x, weight.read(), **given)
            for f in (the_twin(convolution, "winograd"), convolution)
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(winograd, "BLOCK", block)
            agree(way, read, x, params=params, floor=SPARE)

    @share_of_the_examples(2)
    @given(seeds(), dtypes, padded(st.integers(1, 96)), st.booleans())
    def test_whoever_answers_agrees(self, seed, dtype, drawn, reads_data):
        n, size, padding, c, k = drawn
        params, weight = kernel(seed, dtype, 3, 3, c, k)

        def layer(x):
            return convolution(x, weight.read(), (1, 1), padding, reads_data)

        agree(layer, layer, images(seed, dtype, n, *size, c), params=params, floor=SPARE)

    @pytest.mark.parametrize("block", [1, 300, 2**30])
    @pytest.mark.parametrize(("n", "c", "k"), [(1, 6, 5), (7, 6, 5), (40, 64, 48)])
    def test_the_size_of_the_blocks_does_not_matter(self, block, n, c, k, monkeypatch):
        monkeypatch.setattr(winograd, "BLOCK", block)
        params, weight = kernel(n, "float64", 3, 3, c, k)
        twin, x = the_twin(convolution, "winograd"), images(n, "float64", n, 5, 6, c)
        way, read = (
            lambda x, f=f: f(x, weight.read(), (1, 1), (1, 0)) for f in (twin, convolution)
        )
        agree(way, read, x, params=params)

    @pytest.mark.parametrize("frozen_before", [False, True])
    @pytest.mark.parametrize("frozen_behind", [False, True])
    def test_frozen_parameters_keep_no_tiles(self, frozen_before, frozen_behind, monkeypatch):
        """Where they were not kept and are needed after all, they are transformed again."""
        params, weight = kernel(0, "float64", 3, 3, 32, 32)
        x = images(0, "float64", 2, 8, 8, 32)
        y, pullback = convolution(x, weight.read(), (1, 1), (1, 1))
        dx, grad = pullback(y), params.grad.copy()
        params.grad[...] = 0.0
        transformed = []
        transform = winograd._tiles
        monkeypatch.setattr(winograd, "_tiles", lambda *a: transformed.append(a) or transform(*a))
        with params.frozen() if frozen_before else nullcontext():
            y, pullback = convolution(x, weight.read(), (1, 1), (1, 1))
        with params.frozen() if frozen_behind else nullcontext():
            np.testing.assert_array_equal(pullback(y), dx)
        assert len(transformed) == (2 if frozen_before and not frozen_behind else 1)
        np.testing.assert_array_equal(params.grad, 0.0 * grad if frozen_behind else grad)

    def test_a_new_theta_is_seen_and_an_old_pullback_refuses_it(self):
        params, weight = kernel(0, "float64", 3, 3, 32, 32)
        x = images(0, "float64", 2, 8, 8, 32)
        with answers() as by:
            y, pullback = convolution(x, weight.read(), (1, 1), (1, 1))
            params.theta *= 2.0
            params.changed()
            again, _ = convolution(x, weight.read(), (1, 1), (1, 1))
        assert by == 2 * [("convolution", "winograd")]
        np.testing.assert_array_equal(again, 2.0 * y)
        with pytest.raises(StalePullback):
            pullback(y)
        with params.frozen(), pytest.raises(StalePullback):
            pullback(y)


class TestGather:
    @given(seeds(), dtypes, layouts, framed(sizes(5)), st.booleans())
    def test_it_is_the_readable_one(self, seed, dtype, layout, drawn, flipped):
        n, size, before, after, c, k = drawn
        _, weight = kernel(seed, dtype, 3, 3, *((k, c) if flipped else (c, k)))
        given = (weight.read(), (1, 1), before, after, flipped)
        agree_on_values(the_twin(gather, "winograd"), images(seed, dtype, n, *size, c), given)

    @share_of_the_examples(2)
    @given(seeds(), dtypes, layouts, framed(st.integers(1, 96)), st.booleans())
    def test_whoever_answers_agrees(self, seed, dtype, layout, drawn, flipped):
        n, size, before, after, c, k = drawn
        _, weight = kernel(seed, dtype, 3, 3, *((k, c) if flipped else (c, k)))
        given = (weight.read(), (1, 1), before, after, flipped)
        agree_on_values(gather, layout(images(seed, dtype, n, *size, c)), given)


def agree_on_values(way, x, given):
    """`agree` for a function without a pullback."""
    wrapped = (lambda x, f=f: (f(x, *given), lambda dy: None) for f in (way, gather))
    agree(*wrapped, x, floor=SPARE)


@pytest.mark.parametrize("make", [Conv2d, ConvTranspose2d])
@share_of_the_examples(2)
@given(
    seed=seeds(),
    dtype=dtypes,
    size=sides,
    stride=st.tuples(sizes(3), sizes(3)),
    padding=st.integers(1, 2),
    channels=st.tuples(st.integers(24, 64), st.integers(24, 64)),
)
def test_layers_of_any_stride_agree(make, seed, dtype, size, stride, padding, channels):
    """Also where they reach a twin by dilating: for dx, or for y where they are transposed."""
    size = tuple(max(n, 5 - 2 * padding) + padding for n in size)
    layer = make(*channels, 3, stride, padding)
    params = bound(layer, seed, BORN[dtype])
    x = images(seed, dtype, 2, *size, channels[0])
    agree(layer, layer, x, params=params, floor=SPARE)


def convolve(c=32, k=32, size=(8, 8), n=2, stride=(1, 1), padding=(1, 1), side=3, dtypes=None):
    """One call with its pullback; who answered."""
    of_x, of_w = dtypes or ("float64", "float64")
    params, weight = kernel(0, of_w, side, side, c, k)
    with answers() as by:
        y, pullback = convolution(images(0, of_x, n, *size, c), weight.read(), stride, padding)
        dx = pullback(y)
    return by, y, dx


CONVOLVED = ("convolution", "winograd")


@pytest.mark.parametrize(
    "of",
    [
        {},
        {"n": 1},
        {"c": 128, "k": 128},
        {"c": 128, "k": 32, "size": (16, 12)},
        {"size": (7, 13), "c": 96, "k": 96},
        {"padding": (0, 0), "size": (10, 10)},
        {"padding": (2, 0), "size": (10, 10)},
        {"dtypes": ("float32", "float32")},
    ],
)
def test_it_answers_for_many_channels(of):
    by, _, _ = convolve(**of)
    assert by == [CONVOLVED]


@pytest.mark.parametrize(
    "of",
    [
        {"c": 1},
        {"c": 3},
        {"k": 1},
        {"c": 8, "k": 8},
        {"size": (1, 1), "c": 64, "k": 64},
        {"size": (2, 5), "c": 64, "k": 64},
        {"stride": (2, 2)},
        {"stride": (1, 2)},
        {"side": 5, "padding": (2, 2)},
        {"side": 1, "padding": (0, 0)},
        {"n": 0},
        {"dtypes": ("float32", "float64")},
        {"dtypes": ("float64", "float32")},
    ],
)
def test_it_leaves_the_rest_alone(of):
    by, y, dx = convolve(**of)
    assert CONVOLVED not in by
    with twins.disabled():
        _, y_read, dx_read = convolve(**of)
    assert (y.dtype, dx.dtype) == (y_read.dtype, dx_read.dtype)


def test_a_strided_layer_s_cotangent_is_gathered_from_what_it_dilates():
    layer = Conv2d(64, 64, stride=2)
    bound(layer)
    with answers() as by:
        y, pullback = layer(images(0, "float64", 2, 16, 16, 64))
        assert by == []
        pullback(y)
    assert by == [("gather", "winograd")]


def test_a_transpose_s_output_is_gathered_too():
    layer = ConvTranspose2d(64, 64, kernel=3, stride=1)
    bound(layer)
    with answers() as by:
        y, pullback = layer(as_slice(images(0, "float64", 2, 16, 16, 64)))
        pullback(y)
    assert by == 2 * [("gather", "winograd")]


@pytest.mark.parametrize(("before", "after"), [((-1, 0), (2, 2)), ((2, 2), (2, -1))])
def test_a_cut_image_is_left_to_the_readable_way(before, after):
    _, weight = kernel(0, "float64", 3, 3, 64, 64)
    with answers() as by:
        agree_on_values(
            gather, images(0, "float64", 2, 9, 9, 64), (weight.read(), (1, 1), before, after)
        )
    assert by == []
