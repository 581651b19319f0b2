"""fast/few_channels.py: products first and patches later, for results of few channels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinned import BORN, LAYOUTS, agree, answers, as_slice, kernel, the_twin

from scratchgen.core import twins
from scratchgen.layers.conv import Conv2d, ConvTranspose2d, add_kernel_gradient, gather
from scratchgen.testing.strategies import seeds, sizes

from support import bound, normals, share_of_the_examples

FEW = "few_channels"
SPARE = 1.0  # of the tolerance, absolute: what is computed is of order 1, and may cancel as a whole

dtypes = st.sampled_from(sorted(BORN))
layouts = st.sampled_from(LAYOUTS)


def images(seed: int, dtype: str, *shape: int):
    return normals(seed, *shape).astype(dtype)


@st.composite
def geometries(draw):
    """((H, W), kernel, before, after), each a pair: frames narrower than the kernel, which fits."""
    axes = []
    for k in (draw(sizes(5)), draw(sizes(5))):
        before, after = (draw(st.integers(0, min(2, k - 1))) for _ in range(2))
        axes.append((max(draw(sizes(13)), k - before - after), k, before, after))
    return tuple(zip(*axes, strict=True))


channels = st.tuples(st.integers(1, 24), st.integers(1, 4))  # before and after, on both sides of 4


def gathering(way, given):
    """x -> (y, pullback), as `agree` wants it."""
    return lambda x: (way(x, *given), lambda dy: None)


def adding(way, weight, padding):
    """(x, dy) -> (nothing, pullback), which adds the gradient."""

    def layer(x, dy):
        return np.zeros(1, x.dtype), lambda d: way(weight.read(), x, dy, (1, 1), padding)

    return layer


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("direct", [False, True])
@given(seed=seeds(), dtype=dtypes, layout=layouts, geometry=geometries(), n=sizes(4), ck=channels)
def test_gathering_agrees(flipped, direct, seed, dtype, layout, geometry, n, ck):
    """Through the door, where the condition decides, and the twin itself on any channels."""
    size, side, before, after = geometry
    _, weight = kernel(seed, dtype, *side, *(ck[::-1] if flipped else ck))
    given = (weight.read(), (1, 1), before, after, flipped)
    way = the_twin(gather, FEW) if direct else gather
    x = layout(images(seed, dtype, n, *size, ck[0]))
    agree(gathering(way, given), gathering(gather, given), x, floor=SPARE)


@pytest.mark.parametrize("direct", [False, True])
@given(seed=seeds(), dtype=dtypes, layout=layouts, geometry=geometries(), n=sizes(4), ck=channels)
def test_the_gradients_agree(direct, seed, dtype, layout, geometry, n, ck):
    size, side, padding, _ = geometry
    size = tuple(max(m, k - 2 * p) for m, k, p in zip(size, side, padding, strict=True))
    places = (m + 2 * p - k + 1 for m, k, p in zip(size, side, padding, strict=True))
    params, weight = kernel(seed, dtype, *side, *ck)
    x = layout(images(seed, dtype, n, *size, ck[0]))
    dy = layout(images(seed + 1, dtype, n, *places, ck[1]))
    way = the_twin(add_kernel_gradient, FEW) if direct else add_kernel_gradient
    agree(
        adding(way, weight, padding),
        adding(add_kernel_gradient, weight, padding),
        x,
        dy,
        params=params,
        floor=SPARE,
    )


@share_of_the_examples(2)
@given(seeds(), dtypes, sizes(4), sizes(13), sizes(13), sizes(5), st.booleans(), channels)
def test_the_last_layer_of_a_net_agrees(seed, dtype, n, height, width, side, reads_data, ck):
    layer = Conv2d(*ck, kernel=side, reads_data=reads_data)
    params = bound(layer, seed, BORN[dtype])
    x = images(seed, dtype, n, height + side, width + side, ck[0])
    agree(layer, layer, x, params=params, floor=SPARE)


def last_layer(n=2, c=8, k=2, side=3, stride=1, padding=None, size=(5, 6), dtypes=None):
    """One call with its pullback; who answered, and of what kind are y and dx."""
    of_x, of_w = dtypes or ("float64", "float64")
    layer = Conv2d(c, k, side, stride, padding)
    bound(layer, born=BORN[of_w])
    with answers() as by:
        y, pullback = layer(images(0, of_x, n, *size, c))
        dx = pullback(y)
    return {name for name, room in by if room == FEW}, y.dtype, dx.dtype


@pytest.mark.parametrize(
    "of",
    [
        {},
        {"n": 1},
        {"c": 128, "k": 3, "size": (32, 32)},
        {"c": 4, "k": 1, "size": (1, 1)},
        {"side": 5},
        {"side": (1, 2), "padding": 0},
        {"side": (2, 1), "padding": 0},
        {"padding": 0},
        {"padding": (2, 0)},
        {"dtypes": ("float32", "float32")},
    ],
)
def test_it_answers_for_few_channels_out(of):
    assert last_layer(**of)[0] == {"gather", "add_kernel_gradient"}


@pytest.mark.parametrize(
    "of",
    [
        {"c": 7},
        {"c": 2, "k": 2},
        {"c": 64, "k": 64, "size": (3, 3)},
        {"n": 0},
        {"side": 1},
        {"side": (1, 3), "padding": 1},
        {"padding": 3},
        {"padding": (3, 0)},
        {"padding": (0, 3)},
        {"stride": 2},
        {"stride": (1, 2)},
    ],
)
def test_it_leaves_the_rest_alone(of):
    assert last_layer(**of)[0] == set()


@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("float64", "float32")])
def test_mixed_kinds_give_what_they_give_without_it(dtypes):
    with twins.disabled():
        _, *want = last_layer(dtypes=dtypes)
    assert last_layer(dtypes=dtypes)[1:] == tuple(want)


def test_the_cotangent_of_a_first_layer_has_few_channels():
    layer = Conv2d(3, 32)
    bound(layer)
    with answers() as by:
        y, pullback = layer(images(0, "float64", 2, 3, 5, 3))
        pullback(y)
    assert by == [("gather", FEW)]


def test_a_transpose_to_few_channels_dilates_and_gathers():
    layer = ConvTranspose2d(32, 3)
    params, x = bound(layer), as_slice(images(0, "float64", 2, 3, 5, 32))
    with answers() as by:
        layer(x)
    assert by == [("gather", FEW)]
    agree(layer, layer, x, params=params)


def test_a_cut_image_is_left_to_the_readable_way():
    _, weight = kernel(0, "float64", 3, 3, 16, 2)
    with answers() as by:
        gather(images(0, "float64", 2, 5, 5, 16), weight.read(), (1, 1), (-1, 0), (1, 1))
    assert by == []
