"""testing/monte_carlo.py: the tester is tested for false alarms, false passes and weakness."""

from functools import partial
from math import erfc, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.streams import Stream
from scratchgen.testing import monte_carlo
from scratchgen.testing.monte_carlo import (
    MonteCarloFailure,
    Underpowered,
    assert_mean,
    normal_quantile,
)

from support import NUMPY

TRIALS, ALPHA = 300, 0.02
# P(Binomial(300, 0.02) > 20) < 1e-5
TOO_MANY = 20


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    """These checks err on purpose and must not count against the session's budget."""
    monkeypatch.setattr(monte_carlo, "checks", [])


def outcome(trial, offset, resolution=0.1):
    def draw(n, look):
        return offset + Stream(trial, NUMPY).at("calibration", str(offset), look).normal((n,))

    try:
        assert_mean(draw, 0.0, resolution, alpha=ALPHA, first=64)
    except MonteCarloFailure:
        return "fail"
    except Underpowered:
        return "weak"
    return "pass"


def test_a_right_formula_fails_at_most_alpha_of_the_time():
    outcomes = [outcome(trial, 0.0) for trial in range(TRIALS)]
    assert outcomes.count("fail") <= TOO_MANY
    assert outcomes.count("pass") == TRIALS - outcomes.count("fail")


def test_an_error_of_one_resolution_passes_at_most_alpha_of_the_time():
    assert [outcome(trial, 0.1) for trial in range(TRIALS)].count("pass") <= TOO_MANY


def test_too_few_samples_are_a_failure():
    with pytest.raises(Underpowered, match="needs more samples"):
        assert_mean(lambda n, look: Stream(0, NUMPY).at(look).normal((n,)), 0.0, 1e-3, most=10_000)


@pytest.mark.parametrize("rate", [1e-5, 1e-3])  # not seen at all, and seen a few times
def test_rare_events_are_not_judged_before_the_sample_is_symmetric(rate):
    def draw(n, look):
        return Stream(0, NUMPY).at(look).uniform((n,)) < rate

    with pytest.raises(Underpowered, match="skewness"):
        assert_mean(draw, 1.1 * rate, rate, most=20_000)


def test_equal_samples_pass_only_under_a_bound():
    """Truth Bernoulli(5e-4), expected 0: mostly no event in 4096 samples, and yet it is wrong."""

    def draw(trial, n, look):
        return Stream(trial, NUMPY).at("rare", look).uniform((n,)) < 5e-4

    for trial in range(50):
        with pytest.raises((Underpowered, MonteCarloFailure)):
            assert_mean(partial(draw, trial), 0.0, resolution=5e-4, most=20_000)
    zeros = lambda n, look: np.zeros(n)
    assert assert_mean(zeros, 0.0, resolution=0.1, spread=1.0).samples == 4096
    with pytest.raises(Underpowered):
        assert_mean(zeros, 0.0, resolution=1e-5, spread=1.0, most=20_000)


def test_the_skewness_guard_waits_for_the_normal_approximation():
    def draw(n, look):
        return Stream(1, NUMPY).at(look).uniform((n,)) < 1e-3

    with pytest.raises(Underpowered, match="skewness"):  # narrow enough, but not yet normal
        assert_mean(draw, 1e-3, resolution=1e-2, most=20_000)


def test_rare_values_on_both_sides_are_no_normal_sample():
    """Symmetric, so not skewed; but so peaked that the tails are not normal yet."""

    def draw(n, look):
        u = Stream(2, NUMPY).at(look).uniform((n,))
        return (u < 1e-3) * 1.0 - (u > 0.999)

    with pytest.raises(Underpowered, match="kurtosis"):
        assert_mean(draw, 0.0, resolution=2e-2, most=20_000)


def test_equal_but_for_rounding_is_equal():
    def draw(n, look):
        return 0.3 + 1e-15 * Stream(3, NUMPY).at(look).normal((n,))

    with pytest.raises(Underpowered):
        assert_mean(draw, 0.3, resolution=1e-6, most=20_000)
    assert assert_mean(draw, 0.3, resolution=2e-2, spread=1.0).samples == 4096


def test_the_error_allows_for_what_the_controls_cost():
    """A control known up to noise: the intercept's error is that of least squares."""

    def draw(n, look):
        stream = Stream(4, NUMPY).at(look)
        eps, rest = stream.at("eps").normal((n,)), stream.at("rest").normal((n,))
        return 2.0 * eps + 0.5 * rest, eps[:, None] + 1.0 - 1.0

    found = [monte_carlo._estimate(draw(64, look)) for look in range(400)]
    spread = np.std([sample.mean for sample in found])
    assert np.mean([sample.error for sample in found]) == pytest.approx(spread, rel=0.15)
    assert spread == pytest.approx(0.5 / 8.0, rel=0.15)


def test_the_default_resolution_is_two_percent_of_the_larger():
    assert monte_carlo.default_resolution(-10.0, 1.0) == pytest.approx(0.2)
    assert monte_carlo.default_resolution(0.0, 5.0) == pytest.approx(0.1)


def test_controls_leave_no_variance_in_a_quadratic():
    def draw(n, look):
        eps = Stream(0, NUMPY).at(look).normal((n,))
        return 3.0 + eps + 2.0 * eps**2, np.stack([eps, eps**2 - 1.0], axis=-1)

    check = assert_mean(draw, 5.0, resolution=1e-10)
    assert check.samples == 4096
    with pytest.raises(MonteCarloFailure):
        assert_mean(draw, 5.0 * (1.0 + 1e-9), resolution=1e-10)


def test_passed_checks_are_registered():
    assert_mean(lambda n, look: np.ones(n), 1.0, resolution=0.1, alpha=1e-7, spread=1.0)
    (check,) = monte_carlo.checks
    assert (check.alpha, check.looks, check.resolution) == (1e-7, 1, 0.1)


def test_a_resolution_is_needed():
    with pytest.raises(ValueError, match="positive"):
        assert_mean(lambda n, look: np.ones(n), 1.0, resolution=0.0)


@given(st.floats(1e-15, 0.9))
def test_normal_quantile_inverts_the_tail(alpha):
    tail = erfc(normal_quantile(alpha) / sqrt(2.0))
    assert abs(log(tail) - log(alpha)) < 1e-9
