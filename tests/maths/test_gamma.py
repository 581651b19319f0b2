"""maths/gamma.py against exact arithmetic, autograd, complex steps and a world in closed form."""

from decimal import Decimal, localcontext
from functools import cache
from math import exp, inf, log, nan
from re import escape

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scratchgen.core.module import FlatParameters
from scratchgen.core.numerics import sigmoid, softplus
from scratchgen.core.streams import Stream
from scratchgen.maths.gamma import LearnedGamma, LinearGamma, level_from_gamma
from scratchgen.maths.schedules import Schedule
from scratchgen.testing import oracle
from scratchgen.testing.strategies import seeds, sizes

from support import NUMPY, bound, host, normals, on_every_backend, relative, tolerance


def anything(seed: int, units: int):
    """A γ network with parameters from anywhere, and their vector."""
    gamma = LearnedGamma(units=units)
    params = bound(gamma, seed)
    params.theta = params.theta + normals(seed, *params.theta.shape)
    return gamma, params


@given(seeds(), sizes(8))
def test_learned_gamma_rises_between_its_free_ends(seed, units):
    gamma, _ = anything(seed, units)
    (value, slope), _ = gamma(np.linspace(0.0, 1.0, 101))
    first, rise = gamma.start.read().value[0], np.exp(gamma.log_rise.read().value[0])
    assert value[0] == first
    assert value[-1] == first + rise
    assert np.all(np.diff(value) > 0.0)
    assert np.all(slope > 0.0)


@given(seeds(), sizes(8))
def test_learned_slope_is_the_derivative(seed, units):
    gamma, _ = anything(seed, units)
    t, step = np.linspace(0.0, 1.0, 23), 1e-30
    (value, _), _ = gamma(t + 1j * step)
    (_, slope), _ = gamma(t)
    np.testing.assert_allclose(value.imag / step, slope, rtol=1e-12)


@given(seeds(), sizes(8), sizes())
def test_learned_gamma_gradients(seed, units, n):
    gamma, params = anything(seed, units)
    t = sigmoid(normals(seed + 1, n))
    oracle.check_gradient(params, gamma, t)
    oracle.check_accumulation(params, gamma, t)
    with params.frozen():
        oracle.check_pullback(gamma, t)
        oracle.check_pullback_is_linear(gamma, t)


@cache
def nodes():
    """Gauss–Legendre on 60 equal parts of [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(10)
    parts = np.arange(60)[:, None]
    return ((parts + 0.5 * (x + 1.0)) / 60).ravel(), np.tile(w / 120, 60)


@given(seeds(), sizes(8), sizes())
def test_the_interior_alone_hears_of_its_factors(seed, units, n):
    """With factors f_i its gradient is that of Σ f_i ℓ_i, and with 2 ℓ_i that of Σ ℓ_i²."""
    gamma, params = anything(seed, units)
    t, d_gamma, d_dot = sigmoid(normals(seed + 1, n)), *normals(seed + 2, 2, n)
    (value, slope), pullback = gamma(t)
    losses = d_gamma * value + d_dot * slope
    with params.gradient_into(np.zeros_like(params.theta)) as got:
        dt = pullback(d_gamma, d_dot, 2.0 * losses)
    with params.gradient_into(np.zeros_like(params.theta)) as plain:
        np.testing.assert_array_equal(pullback(d_gamma, d_dot), dt)
    with params.gradient_into(np.zeros_like(params.theta)) as squared:
        pullback(2.0 * losses * d_gamma, 2.0 * losses * d_dot)
    np.testing.assert_array_equal(got[:2], plain[:2])
    oracle.assert_close(got[2:], squared[2:], 1e-12, "the interior's gradient")


@given(seeds(), sizes(), st.floats(-15.0, 0.0), st.floats(0.1, 15.0))
def test_linear_gamma_is_a_line(seed, n, first, rise):
    gamma, t = LinearGamma(first, first + rise), sigmoid(normals(seed, n))
    (value, slope), pullback = gamma(t)
    np.testing.assert_allclose(value, first + (first + rise - first) * t, rtol=1e-15)
    np.testing.assert_array_equal(slope, np.full(n, gamma.rise))
    d_gamma = normals(seed + 1, n)
    np.testing.assert_array_equal(pullback(d_gamma, normals(seed, n)), gamma.rise * d_gamma)
    np.testing.assert_array_equal(pullback(d_gamma, np.ones(n), 3.0), gamma.rise * d_gamma)


def test_linear_gamma_goes_from_the_ends_of_the_paper():
    gamma = LinearGamma()
    assert (gamma.first, gamma.rise) == (-13.3, 5.0 + 13.3)


@given(seeds(), sizes(8))
def test_the_continuous_loss_sees_the_ends_of_gamma_only(seed, units):
    """½ ∫ γ' E‖ε - ε*‖² dt for data N(m, 2), where E‖ε - ε*‖² = 2/(2 + e^γ), is an integral over γ.

    At the ends -13.3 and 5 it is 6.989881 nats, whatever the shape between.
    """
    gamma, params = anything(seed, units)
    params.theta[:2] = -13.3, log(18.3)
    params.changed()
    t, weight = nodes()
    (value, slope), _ = gamma(t)
    loss = 0.5 * np.sum(weight * slope * 2.0 / (2.0 + np.exp(value)))
    want = 0.5 * log((1.0 + 2.0 * exp(13.3)) / (1.0 + 2.0 * exp(-5.0)))
    assert want == pytest.approx(6.989881, abs=5e-7)
    assert loss == pytest.approx(want, rel=1e-6)


@given(seeds(), sizes())
def test_one_time_that_is_no_number_spoils_no_other(seed, n):
    gamma, params = anything(seed, units=3)
    t = sigmoid(normals(seed + 1, n))
    (value, slope), pullback = gamma(t)
    (spoilt_value, spoilt_slope), spoilt_pullback = gamma(np.append(t, np.nan))
    np.testing.assert_array_equal(spoilt_value, np.append(value, np.nan))
    np.testing.assert_array_equal(spoilt_slope, np.append(slope, np.nan))
    with params.frozen():
        got = spoilt_pullback(*np.ones((2, n + 1)))
        np.testing.assert_array_equal(got, np.append(pullback(*np.ones((2, n))), np.nan))


@given(st.lists(st.floats(1e-9, 0.999), min_size=1, max_size=12))
def test_levels_and_gammas_are_one_scale(betas):
    schedule = Schedule(betas)
    level, _ = level_from_gamma(schedule.gamma)
    np.testing.assert_allclose(level, schedule.log_alpha_bar, rtol=1e-12)


@given(st.floats(-700.0, 700.0))
@example(-40.0)
@example(40.0)
def test_levels_of_gammas_keep_their_digits_at_both_ends(gamma):
    """log ᾱ = -log(1 + e^γ), and both 1 - ᾱ = -expm1(level) and the slope are e^γ/(1 + e^γ)."""
    level, pullback = level_from_gamma(np.asarray([gamma]))
    with localcontext(prec=650):
        odds = Decimal(gamma).exp()
        noise = odds / (1 + odds)
        assert relative(level[0], -(1 + odds).ln()) < 1e-15
        assert relative(-np.expm1(level[0]), noise) < 1e-15
        assert relative(pullback(np.ones(1))[0], -noise) < 1e-15


@given(seeds(), sizes())
def test_levels_of_gammas_have_the_right_pullback(seed, n):
    gamma = 5.0 * normals(seed, n)
    oracle.check_pullback(level_from_gamma, gamma)
    oracle.check_pullback_is_linear(level_from_gamma, gamma)


@on_every_backend
def test_levels_of_gammas_are_float64_and_their_cotangents_are_not(born):
    gamma = born.asarray([-13.3, -0.7, 0.0, 5.0])
    level, pullback = level_from_gamma(gamma)
    d_gamma = pullback(-born.xp.ones_like(level))
    assert level.dtype == born.xp.float64
    assert d_gamma.dtype == gamma.dtype
    np.testing.assert_allclose(host(level), -softplus(host(gamma)), rtol=1e-14)
    noise = 1.0 / (1.0 + np.exp(-host(gamma)))
    np.testing.assert_allclose(host(d_gamma), noise, rtol=tolerance(born))


def test_learned_gamma_begins_nearly_linear():
    gamma = LearnedGamma()
    FlatParameters(gamma, Stream(0, NUMPY))
    t = np.linspace(0.0, 1.0, 51)
    (value, slope), _ = gamma(t)
    assert value[[0, -1]] == pytest.approx([-13.3, 5.0], rel=1e-14)
    np.testing.assert_allclose(value, -13.3 + 18.3 * t, atol=0.1)
    np.testing.assert_allclose(slope, 18.3, rtol=0.05)
    values = {
        name: getattr(gamma, name).read().value for name in ("log_weight", "log_slope", "centre")
    }
    np.testing.assert_allclose(np.exp(values["log_weight"]), 0.1 / 32.0, rtol=1e-14)
    np.testing.assert_allclose(np.exp(values["log_slope"]), 10.0, rtol=1e-14)
    np.testing.assert_allclose(values["centre"], (np.arange(32) + 0.5) / 32.0, rtol=1e-15)


@on_every_backend
def test_every_backend_agrees(born):
    gamma, truth = LearnedGamma(units=4), LearnedGamma(units=4)
    params, exact = bound(gamma, born=born), bound(truth)
    t, dy = np.asarray([0.0, 0.2, 0.9]), normals(0, 2, 3)
    (value, pullback), (want, pull) = gamma(born.asarray(t)), truth(t)
    assert all(v.dtype == params.theta.dtype for v in value)
    tol = 20 * tolerance(born)
    for got, expected in zip(value, want, strict=True):
        oracle.assert_close(host(got), expected, tol, "value")
    got = pullback(*(born.asarray(d) for d in dy))
    oracle.assert_close(host(got), pull(*dy), tol, "cotangent")
    oracle.assert_close(host(params.grad), exact.grad, tol, "gradient")


def test_empty_batches_pass():
    gamma = LearnedGamma(units=2)
    bound(gamma)
    (value, slope), pullback = gamma(np.zeros(0))
    assert value.shape == slope.shape == pullback(value, slope).shape == (0,)


@pytest.mark.parametrize(
    ("t", "kind"),
    [
        (0.5, "float"),
        ([0.5], "list"),
        (np.asarray(0.5), "float64 ()"),
        (np.zeros((2, 2)), "float64 (2, 2)"),
    ],
)
def test_times_are_one_row(t, kind):
    with pytest.raises(ValueError, match=escape(f"t must be an array (N,), got {kind}")):
        LearnedGamma()(t)
    with pytest.raises(ValueError, match=escape(kind)):
        LinearGamma()(t)


@pytest.mark.parametrize("kind", [LearnedGamma, LinearGamma])
def test_a_gamma_that_cannot_rise_is_refused(kind):
    for settings in ({"first": 1.0, "last": 1.0}, {"last": nan}, {"first": -inf}, {"last": inf}):
        with pytest.raises(ValueError, match="gamma must rise, got"):
            kind(**settings)
    with pytest.raises(ValueError, match="at least one unit, got 0"):
        LearnedGamma(units=0)
