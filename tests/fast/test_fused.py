"""fast/fused.py: norms, softmax, SiLU, sums over places and Adam in fewer passes over memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twinned import BORN, LAYOUTS, TOLERANCE, agree, answers, the_twin

from scratchgen.fast import fused
from scratchgen.layers.activations import activate, identity, relu, silu
from scratchgen.layers.attention import SelfAttention, softmax
from scratchgen.layers.normalisation import (
    AdaptiveGroupNorm,
    AdditiveGroupNorm,
    GroupNorm,
    group_norm,
    place_sum,
)
from scratchgen.testing.oracle import assert_close
from scratchgen.testing.strategies import seeds, sizes
from scratchgen.training.optim import adam

from support import bound, normals, share_of_the_examples

dtypes = st.sampled_from(sorted(BORN))
layouts = st.sampled_from(LAYOUTS)
places = st.lists(sizes(7), max_size=3)
activations = st.sampled_from([identity, silu, relu])


def who(function, *args):
    """The twin's file, or None where the readable way answers; and what it says."""
    with answers() as by:
        y = function(*args)
    return next((room for name, room in by if name == function.__name__), None), y


class TestGroupNorm:
    @given(
        seeds(), dtypes, layouts, sizes(4), places, sizes(4), sizes(4), activations,
        st.booleans(), st.floats(-8.0, 8.0), st.floats(-2.0, 2.0),
    )  # fmt: skip
    def test_it_agrees(
        self, seed, dtype, layout, n, shape, groups, each, activation, shared, offset, log_scale
    ):
        """On both sides of where the readable way answers, for a mean that outweighs the rest."""
        c = groups * each
        x = 10.0**log_scale * (normals(seed, n, *shape, c) + offset)
        gain, bias = 1.0 + 0.3 * normals(seed, 2, 1 if shared else n, c)
        x, gain, bias = (layout(a.astype(dtype)) for a in (x, gain, bias))

        def norm(x, gain, bias):
            return group_norm(x, groups, gain, bias, activation)

        agree(norm, norm, x, gain, bias, floor=min(1.0, 10.0**-log_scale))

    @share_of_the_examples(5)
    @given(seeds(), dtypes, sizes(3), sizes(5), activations)
    def test_layers_agree(self, seed, dtype, n, side, activation):
        x = normals(seed, n, side, side + 1, 8).astype(dtype)
        e = normals(seed + 1, n, 3).astype(dtype)
        for layer, inputs in (
            (GroupNorm(8, 4, activation), (x,)),
            (AdaptiveGroupNorm(8, 3, 4, activation), (x, e)),
            (AdditiveGroupNorm(8, 3, 4, activation), (x, e)),
        ):
            agree(layer, layer, *inputs, params=bound(layer, seed, BORN[dtype]), floor=1.0)

    @pytest.mark.parametrize("activation", [identity, silu])
    def test_it_answers_up_to_a_mean_that_outweighs_the_variance(self, activation):
        """And no further: E[x²] - m² would lose the digits of the variance."""
        x = normals(0, 2, 5, 7, 4)
        x = (x - x.mean(axis=(1, 2, 3), keepdims=True)) / x.std(axis=(1, 2, 3), keepdims=True)
        edge, gain = fused.OUTWEIGHED**0.5, np.ones((1, 4))
        for offset in (0.0, 0.99 * edge, -0.99 * edge):
            given = (x + offset, 1, gain, gain, activation)
            assert not np.array_equal(group_norm(*given)[0], group_norm.readable(*given)[0])
        for offset in (1.01 * edge, -1.01 * edge, 1e6):
            both = x + offset
            both[1] = x[1]  # one example is enough
            room, (y, pullback) = who(group_norm, both, 1, gain, gain, activation)
            want, pull = group_norm.readable(both, 1, gain, gain, activation)
            assert room == "fused"
            np.testing.assert_array_equal(y, want)
            for got, read in zip(pullback(y), pull(y), strict=True):
                np.testing.assert_array_equal(got, read)

    @pytest.mark.parametrize("side", [128, 256])
    def test_large_images_with_an_offset_keep_their_digits_in_float32(self, side):
        """Just below the limit, where the readable way errs about as much."""
        x = (normals(0, 1, side, side, 8) + 0.97 * fused.OUTWEIGHED**0.5).astype("float32")
        gain, dy = np.ones((1, 8), "float32"), normals(1, *x.shape).astype("float32")
        room, (y, pullback) = who(group_norm, x, 2, gain, gain, silu)
        assert room == "fused"
        wide = (each.astype("float64") for each in (x, gain, gain))
        exact, exact_pullback = group_norm.readable(next(wide), 2, *wide, silu)
        results = zip([y, *pullback(dy)], [exact, *exact_pullback(dy)], strict=True)
        for i, (got, want) in enumerate(results):
            assert_close(got, want, TOLERANCE["float32"], f"result {i}")

    @pytest.mark.filterwarnings("ignore::RuntimeWarning")
    @pytest.mark.parametrize("bad", [1e20, np.inf, np.nan])
    def test_what_overflows_or_is_not_finite_is_left_to_the_readable_one(self, bad):
        """So that it spoils as little: one group, where the sums of all groups are one product."""
        x, gain = normals(0, 2, 3, 4, 8).astype("float32"), np.ones((1, 8), "float32")
        x[1, 0, 0, 5] = bad
        y, _ = group_norm(x, 4, gain, gain, silu)
        want, _ = group_norm.readable(x, 4, gain, gain, silu)
        np.testing.assert_array_equal(y, want)

    @pytest.mark.parametrize("dtype", sorted(BORN))
    @pytest.mark.parametrize("value", [0.0, 3.0, -1e-3, 1e4])
    @pytest.mark.parametrize("shape", [(2, 4, 4, 8), (1, 8), (3, 1, 1, 8)])
    def test_a_constant_input_stays_finite(self, dtype, value, shape):
        """Its x̂ is 0, and its slope 1/√tiny, which enlarges what rounding leaves."""
        x, gain = np.full(shape, value, dtype), np.full((1, 8), 1.5, dtype)
        y, pullback = group_norm(x, 2, gain, 0.5 * gain, silu)
        want, pull = group_norm.readable(x, 2, gain, 0.5 * gain, silu)
        dy = normals(1, *shape).astype(dtype)
        assert_close(y, want, TOLERANCE[dtype], "value")
        for got, read in zip(pullback(dy), pull(dy), strict=True):
            assert_close(got, read, TOLERANCE[dtype], "cotangent", floor=1e3 * TOLERANCE[dtype])

    @pytest.mark.parametrize(
        ("kinds", "shape", "activation"),
        [
            (("float32", "float64", "float64"), (2, 3, 4), identity),
            (("float64", "float32", "float64"), (2, 3, 4), identity),
            (("float64", "float64", "float32"), (2, 3, 4), silu),
            (("float64", "float64", "float64"), (2, 3, 4), relu),
            (("float64", "float64", "float64"), (0, 3, 4), silu),
        ],
    )
    def test_it_leaves_the_rest_alone(self, kinds, shape, activation):
        x = normals(0, *shape).astype(kinds[0])
        gain, bias = (normals(i, 1, 4).astype(kind) for i, kind in enumerate(kinds[1:]))
        room, (y, pullback) = who(group_norm, x, 2, gain, bias, activation)
        want, pull = group_norm.readable(x, 2, gain, bias, activation)
        assert room is None
        assert y.dtype == want.dtype
        for got, read in zip(pullback(y), pull(y), strict=True):
            assert (got.dtype, got.shape) == (read.dtype, read.shape)


class TestSoftmax:
    @given(seeds(), dtypes, layouts, places, sizes(9), st.floats(-3.0, 2.0), st.floats(-1e4, 1e4))
    def test_it_agrees(self, seed, dtype, layout, shape, last, log_scale, offset):
        """From scores that are nearly equal to a range that is too wide for one factor."""
        x = 10.0**log_scale * normals(seed, *shape, last) + offset
        agree(softmax, softmax, layout(x.astype(dtype)), floor=1.0)

    @pytest.mark.parametrize("dtype", sorted(BORN))
    @pytest.mark.parametrize("gap", [0.0, 30.0, 58.0, 70.0, 120.0, 1e4])
    @pytest.mark.parametrize("offset", [0.0, 1e3, -1e3])
    def test_a_row_far_below_the_largest_keeps_its_digits(self, dtype, gap, offset):
        x = (normals(0, 3, 5).clip(-0.9, 0.9) + offset).astype(dtype)
        x[1] -= np.asarray(gap, dtype)
        room, (p, _) = who(softmax, x)
        assert room == "fused"
        for row, p_row in zip(x.astype(np.float64), p, strict=True):
            want = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
            np.testing.assert_allclose(p_row, want, rtol={"float64": 1e-13, "float32": 2e-5}[dtype])
        agree(softmax, softmax, x)

    def test_beyond_its_range_the_readable_way_answers(self):
        x = normals(0, 4, 5)
        for low, same in ((-0.9 * fused.RANGE, False), (-1.1 * fused.RANGE, True)):
            x[2] = x.max() + low
            x[2, :3] += [0.5, 0.25, 0.125]
            assert np.array_equal(softmax(x)[0], softmax.readable(x)[0]) == same

    def test_masked_scores_get_nothing(self):
        x = normals(0, 3, 5)
        x[:, 3] = -np.inf
        agree(softmax, softmax, x)
        assert not np.any(softmax(x)[0][:, 3])

    def test_what_is_not_a_number_stays_so(self):
        x = normals(0, 3, 5)
        x[1, 2] = np.nan
        np.testing.assert_array_equal(softmax(x)[0], softmax.readable(x)[0])

    @pytest.mark.parametrize("shape", [(0, 5), (2, 0, 3, 5)])
    def test_an_empty_batch_passes(self, shape):
        room, (p, pullback) = who(softmax, np.zeros(shape))
        assert room is None
        assert p.shape == pullback(p).shape == shape

    @share_of_the_examples(5)
    @given(seeds(), dtypes, sizes(3), sizes(9), st.sampled_from([1, 2, 4]))
    def test_attention_agrees(self, seed, dtype, n, tokens, heads):
        layer = SelfAttention(8, heads)
        params = bound(layer, seed, BORN[dtype])
        agree(layer, layer, normals(seed, n, tokens, 8).astype(dtype), params=params)


class TestSilu:
    @given(seeds(), dtypes, layouts, st.lists(sizes(5), min_size=1, max_size=4), st.floats(-3.0, 2))
    def test_it_agrees(self, seed, dtype, layout, shape, log_scale):
        x = layout((10.0**log_scale * normals(seed, *shape)).astype(dtype))
        room, _ = who(activate, silu, x)
        assert room == "fused"
        agree(silu, silu, x, floor=1.0)

    @pytest.mark.parametrize("dtype", sorted(BORN))
    def test_it_does_not_overflow_and_errs_by_roundings_of_x(self, dtype):
        x = np.asarray([-1e4, -90.0, -30.0, -17.0, 0.0, 30.0, 90.0, 1e4], dtype)
        agree(silu, silu, x)
        wide = x.astype(np.longdouble)
        with np.errstate(over="ignore"):
            exact = wide / (1.0 + np.exp(-wide))
        assert np.all(abs(silu(x)[0] - exact) <= 2.0 * np.finfo(dtype).eps * abs(x))

    @pytest.mark.parametrize(
        ("activation", "x"), [(relu, np.ones(3)), (silu, np.ones(0)), (silu, np.ones((2, 0, 3)))]
    )
    def test_it_leaves_the_rest_alone(self, activation, x):
        room, (y, pullback) = who(activate, activation, x)
        assert room is None
        assert y.shape == pullback(y).shape == x.shape


class TestPlaceSum:
    @given(seeds(), dtypes, layouts, sizes(4), places, sizes(9))
    def test_it_agrees(self, seed, dtype, layout, n, shape, c):
        x = layout(normals(seed, n, *shape, c).astype(dtype))
        room, _ = who(place_sum, x)
        assert room == "fused"
        agree(*2 * [lambda x: (place_sum(x), lambda dy: None)], x, floor=1.0)

    @pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
    def test_nothing_sums_to_nothing(self, shape):
        room, y = who(place_sum, np.ones(shape))
        assert room is None
        np.testing.assert_array_equal(y, np.zeros((shape[0], shape[-1])))


class TestAdam:
    @given(
        seeds(), dtypes, sizes(40), st.integers(1, 50), st.floats(0.0, 0.99), st.floats(0.0, 0.999)
    )
    def test_it_agrees(self, seed, dtype, size, part, beta1, beta2):
        """Several steps, in parts of any size; the gradient is used up."""
        ends = []
        for way in (adam, adam.readable, the_twin(adam, "fused")):
            theta, m, v = normals(seed, 3, size).astype(dtype)
            v *= v
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(fused, "PART", part)
                for g in normals(seed + 1, 4, size).astype(dtype):
                    way(theta, g, m, v, beta1, beta2, rate=0.1, tiny=1e-3)
                    assert not np.any(g)
            ends.append((theta, m, v))
        for got in ends[::2]:
            for a, b in zip(got, ends[1], strict=True):
                assert a.dtype == dtype
                np.testing.assert_allclose(a, b, rtol={"float64": 1e-12, "float32": 1e-5}[dtype])

    def test_it_changes_parts_of_longer_vectors_only(self):
        vectors = [np.abs(normals(i, 20)) for i in range(4)]
        before = [1.0 * a for a in vectors]
        with answers() as by:
            adam(*(a[5:15] for a in vectors), 0.9, 0.999, 0.1, 1e-8)
        assert by == [("adam", "fused")]
        for a, was in zip(vectors, before, strict=True):
            np.testing.assert_array_equal(np.delete(a, np.s_[5:15]), np.delete(was, np.s_[5:15]))
            assert np.all(a[5:15] != was[5:15])

    def test_its_numbers_may_be_given_by_name(self):
        vectors = [np.abs(normals(i, 3)) for i in range(4)]
        adam(*vectors, beta1=0.9, beta2=0.999, rate=0.1, tiny=1e-8)
        assert not np.any(vectors[1])
