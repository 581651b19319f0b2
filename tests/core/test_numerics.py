"""core/numerics.py against 50-digit arithmetic, SciPy and math.erfc."""

from decimal import Decimal
from math import erfc, exp, log, pi, sqrt

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import example, given, target
from hypothesis import strategies as st

from scratchgen.core import numerics
from scratchgen.testing.strategies import reals, seeds

from support import NUMPY, host, normals, on_every_backend, tolerance


def one(f, *x) -> float:
    return float(f(*(np.asarray([v]) for v in x))[0])


def relative(got: float, want: Decimal) -> float:
    """Relative error, which hypothesis is asked to maximise."""
    error = abs(float((Decimal(got) - want) / want)) if want else abs(got)
    target(log(error + 1e-18), label="relative error")
    return error


@given(reals(100.0) | reals(1.0) | reals(0.05))
@example(1e-8)
def test_expm1_minus_keeps_its_digits(r):
    want = Decimal(r).exp() - 1 - Decimal(r)
    assert relative(one(numerics.expm1_minus, r), want) < 2e-14


@given(st.sampled_from([0.03, -0.03, 1e-4]))
def test_where_the_series_stands_for_expm1_minus_r_it_is_the_better_form(r):
    want = Decimal(r).exp() - 1 - Decimal(r)
    assert relative(one(numerics.expm1_minus, r), want) < 1e-15


@given(reals(600.0))
def test_softplus_and_sigmoid_keep_their_digits(x):
    assert relative(one(numerics.softplus, x), (1 + Decimal(x).exp()).ln()) < 1e-14
    want = 1 / (1 + (-Decimal(x)).exp())
    assert abs(one(numerics.sigmoid, x) - float(want)) < 1e-15


@given(reals(600.0))
def test_an_accurate_sigmoid_keeps_its_digits_in_both_tails(x):
    want = 1 / (1 + (-Decimal(x)).exp())
    assert relative(one(numerics.accurate_sigmoid, x), want) < 1e-15


def test_an_accurate_sigmoid_has_ends():
    ends = np.asarray([-np.inf, np.inf])
    np.testing.assert_array_equal(numerics.accurate_sigmoid(ends), [0.0, 1.0])


@given(st.floats(1e-12, 500.0))
def test_log1mexp_keeps_its_digits(d):
    assert relative(one(numerics.log1mexp, d), (1 - (-Decimal(d)).exp()).ln()) < 1e-14


@given(st.floats(-200.0, 30.0))
def test_log_ndtr_matches_scipy_in_both_tails(x):
    want = float(scipy.special.log_ndtr(x))
    conditioning = 1.0 + x * x  # rounding x alone changes log Φ(x) by that many ulps for x > 0
    assert one(numerics.log_ndtr, x) == pytest.approx(want, rel=2e-15 * conditioning, abs=1e-300)


@given(reals(1e3))
def test_normal_log_pdf_matches_scipy(x):
    assert one(numerics.normal_log_pdf, x) == pytest.approx(scipy.stats.norm.logpdf(x), rel=1e-14)


@given(st.floats(-8.0, 8.0))
def test_log_ndtr_matches_erfc(x):
    assert one(numerics.log_ndtr, x) == pytest.approx(log(0.5 * erfc(-x / sqrt(2.0))), rel=1e-13)


def test_half_the_mass_lies_below_zero_to_the_last_bit():
    """In float32 only one of the two forms that meet at 0 is exact there."""
    half, zero = np.float32(log(0.5)), np.zeros(1, dtype=np.float32)
    assert numerics.log_ndtr(zero) == half
    assert numerics.log_tail_ratio(zero) == half


@given(seeds(), st.sampled_from([0, 1, 2]), st.floats(1.0, 1e4))
def test_logsumexp_is_the_logarithm_of_the_sum(seed, axis, scale):
    """Over any axis, which alone disappears, and however far apart the terms are."""
    x = scale * normals(seed, 3, 1, 4)
    want = scipy.special.logsumexp(x, axis=axis)
    np.testing.assert_allclose(numerics.logsumexp(x, axis=axis), want, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(numerics.logsumexp(x), numerics.logsumexp(x, axis=2))


@given(seeds(), st.floats(-1e3, 1e3))
def test_logsumexp_shifts_with_its_argument(seed, shift):
    x = normals(seed, 3, 5)
    want = np.log(np.exp(x).sum(axis=-1)) + shift
    np.testing.assert_allclose(numerics.logsumexp(x + shift), want, rtol=1e-12, atol=1e-12)


@given(seeds(), st.sampled_from(["float32", "float64"]))
def test_logsumexp_of_infinite_terms(seed, kind):
    """Of nothing but e^-inf it is -inf, of anything and e^inf inf, and neither warns.

    An e^-inf among others adds nothing; nan stays.
    """
    inf, some = np.inf, 1e3 * normals(seed, 2)
    rows = [[-inf, -inf, -inf], [inf, *some], [inf, -inf, inf], [-inf, *some], [np.nan, *some]]
    got = numerics.logsumexp(np.asarray(rows, kind))
    want = [-inf, inf, inf, numerics.logsumexp(some.astype(kind)), np.nan]
    np.testing.assert_array_equal(got, np.asarray(want, kind))


@given(st.integers(2, 300), st.data())
def test_codes_survive_scaling_and_back(levels, data):
    codes = np.asarray(data.draw(st.lists(st.integers(0, levels - 1), min_size=1, max_size=5)))
    x = numerics.level_centres(codes, levels)
    assert np.all(np.abs(x) < 1.0)
    np.testing.assert_array_equal(numerics.level_codes(x, levels), codes)
    np.testing.assert_array_equal(numerics.level_codes(x.astype(np.float32), levels), codes)


@given(st.integers(2, 300))
def test_centres_divide_the_interval_equally(levels):
    x = numerics.level_centres(np.arange(levels), levels)
    np.testing.assert_allclose(np.diff(x), 2.0 / levels, rtol=1e-12)
    np.testing.assert_allclose(x + x[::-1], 0.0, atol=1e-15)


def test_end_bins_are_open():
    x = np.asarray([-5.0, -1.0, 1.0, 5.0])
    np.testing.assert_array_equal(numerics.level_codes(x, 17), [0, 0, 16, 16])


@given(st.floats(0.0, 1e8))
def test_log_tail_ratio_and_hazard_far_out(x):
    """φ(x)/Φ(-x) lies in [x, x + 1/x], and both are their quotients where these can be formed."""
    hazard = one(numerics.normal_hazard, x)
    assert x * (1.0 - 1e-14) <= hazard <= x + 1.0 / max(x, 1.0) + 1e-14 * x
    near = min(x, 30.0)
    want = exp(-0.5 * near * near) / sqrt(2.0 * pi) / (0.5 * erfc(near / sqrt(2.0)))
    assert one(numerics.normal_hazard, near) == pytest.approx(want, rel=1e-12)
    for side in (near, -near):
        assert one(numerics.log_tail_ratio, side) == pytest.approx(
            log(0.5 * erfc(side / sqrt(2.0))) + 0.5 * near * near, abs=1e-12 * (1.0 + near * near)
        )
    left = exp(-0.5 * near * near) / sqrt(2.0 * pi) / (0.5 * erfc(-near / sqrt(2.0)))
    assert one(numerics.normal_hazard, -near) == pytest.approx(left, rel=1e-12)


@on_every_backend
def test_every_backend_and_dtype_agrees(born):
    x = 3.0 * normals(5, 40)
    for f in (
        numerics.sigmoid,
        numerics.accurate_sigmoid,
        numerics.softplus,
        numerics.expm1_minus,
        numerics.log_ndtr,
        numerics.log_tail_ratio,
        numerics.normal_hazard,
        numerics.normal_log_pdf,
        numerics.logsumexp,
        lambda v: numerics.level_centres(v, 17),
        lambda v: numerics.log1mexp(v * v + 0.1),
    ):
        got, want = f(born.asarray(x)), f(NUMPY.asarray(x))
        assert got.dtype == born.asarray(x).dtype
        np.testing.assert_allclose(host(got), want, rtol=tolerance(born), atol=tolerance(born))
    codes = numerics.level_codes(born.asarray(x), 17)
    np.testing.assert_array_equal(host(codes), numerics.level_codes(x, 17))
