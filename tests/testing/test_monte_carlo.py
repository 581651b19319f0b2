"""testing/monte_carlo.py: the tester is tested for false alarms, false passes and weakness."""

from fractions import Fraction
from functools import partial
from math import comb, erfc, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.streams import Stream
from scratchgen.testing import monte_carlo
from scratchgen.testing.monte_carlo import (
    Check,
    MonteCarloFailure,
    Underpowered,
    assert_law,
    assert_mean,
    normal_quantile,
)
from scratchgen.testing.strategies import seeds

from support import NUMPY, noise

TRIALS, ALPHA, RESOLUTION = 2000, 0.02, 0.2
MOST_ERRORS = 73


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    """These checks err on purpose and must not count against the session's budget."""
    monkeypatch.setattr(monte_carlo, "checks", [])


def test_more_errors_than_allowed_happen_once_in_a_million():
    """P(Binomial(2000, 0.02) > 73) = 7.2e-7, in exact arithmetic."""
    p = Fraction(ALPHA).limit_denominator(100)
    few = sum(comb(TRIALS, k) * p**k * (1 - p) ** (TRIALS - k) for k in range(MOST_ERRORS + 1))
    assert float(1 - few) == pytest.approx(7.184e-7, rel=1e-3)


def normal(trial, look, n):
    return noise(trial, look, n)


def exponential(trial, look, n):
    """Skewness 2, excess kurtosis 6."""
    return -np.log1p(-noise_uniform(trial, look, n)) - 1.0


def noise_uniform(trial, look, n):
    return Stream(trial, NUMPY).at("uniform", look).uniform((1, n))[0]


def plain(law, shift, trial, n, look):
    return law(trial, look, n) + shift


def controlled(law, shift, trial, n, look):
    """Mostly noise that the control explains; what is left follows the law."""
    control = noise(trial, 1000 + look, n)
    return law(trial, look, n) + shift + 5.0 * control, control[:, None]


def outcomes(check) -> list[str]:
    """What `check(trial)` says in each of the trials."""
    found = []
    for trial in range(TRIALS):
        try:
            check(trial)
        except MonteCarloFailure:
            found.append("fail")
        except Underpowered:
            found.append("weak")
        else:
            found.append("pass")
    return found


@pytest.mark.parametrize("shift", [0.0, RESOLUTION, -RESOLUTION])
@pytest.mark.parametrize("draw", [plain, controlled], ids=["plain", "controlled"])
@pytest.mark.parametrize("law", [normal, exponential])
def test_false_alarms_and_false_passes_are_as_rare_as_alpha(law, draw, shift):
    """A right formula, and one that is off by exactly the resolution, 2,000 times each."""
    check = lambda trial: assert_mean(
        partial(draw, law, shift, trial), 0.0, RESOLUTION, alpha=ALPHA, first=64
    )
    found = outcomes(check)
    right, wrong = ("pass", "fail") if shift == 0.0 else ("fail", "pass")
    assert found.count(wrong) <= MOST_ERRORS
    assert found.count(right) == TRIALS - found.count(wrong)  # the guards decide nothing here


@pytest.mark.parametrize("shift", [0.0, RESOLUTION])
def test_laws_are_told_apart_as_reliably(shift):
    """The law of max(U - r, 0) is F(u) = u + r, so exactly r away."""

    def check(trial):
        draw = lambda n, look: np.maximum(noise_uniform(trial, look, n) - shift, 0.0)
        assert_law(draw, RESOLUTION, alpha=ALPHA, first=64)

    found = outcomes(check)
    right, wrong = ("pass", "fail") if shift == 0.0 else ("fail", "pass")
    assert found.count(wrong) <= MOST_ERRORS
    assert found.count(right) == TRIALS - found.count(wrong)


@given(seeds(), st.floats(0.1, 10.0))
def test_a_sampler_follows_its_distribution_function(seed, rate):
    def values(n, look):
        x = -np.log1p(-noise_uniform(seed, look, n)) / rate
        return 1.0 - np.exp(-rate * x)

    check = assert_law(values, resolution=0.05)
    assert check.alpha == 1e-9
    assert check.z < 7.0
    with pytest.raises(MonteCarloFailure, match="from the uniform"):  # a rate 1.5 times too large
        assert_law(lambda n, look: 1.0 - (1.0 - values(n, look)) ** 1.5, resolution=0.05)


def test_the_distance_of_a_law_is_the_largest_gap_on_either_side():
    """By hand: 1,000 values at (k - ½)/1000, then the same moved by 0.05 down and up."""
    grid = (np.arange(1000) + 0.5) / 1000.0
    for move, distance in ((0.0, 0.0005), (-0.05, 0.0505), (0.05, 0.0505)):
        values = np.clip(grid + move, 0.0, 1.0)[::-1]  # the order does not matter
        check = assert_law(lambda n, look, v=values: v, 0.3, alpha=1e-6, first=1000)
        assert check.z == pytest.approx(distance * 2.0 * sqrt(1000.0), rel=1e-9)
        assert (check.samples, check.looks, check.alpha) == (1000, 1, 1e-6)


def test_a_law_is_judged_by_massarts_bound():
    """d passes at a resolution of d + h and fails beyond h, where h² = log(2/share)/2n."""
    grid = (np.arange(1000) + 0.5) / 1000.0
    h = sqrt(log(2.0 / 0.5e-6) / 2000.0)
    once = partial(assert_law, alpha=1e-6, first=1000, most=1000)
    assert once(lambda n, look: grid, (h + 0.0005) * 1.000001).looks == 1
    with pytest.raises(Underpowered, match="1000 samples are 0.0005 ± 0.087"):
        once(lambda n, look: grid, (h + 0.0005) * 0.999999)
    for gap, error in ((h * 0.999999, Underpowered), (h * 1.000001, MonteCarloFailure)):
        with pytest.raises(error):
            once(lambda n, look, g=gap: np.maximum(grid - (g - 0.0005), 0.0), 1e-3)


@pytest.mark.parametrize("check", [assert_law, partial(assert_mean, expected=0.5)])
def test_looks_are_fresh_and_share_alpha(check):
    """Every look asks for more samples under a number of its own, until `most`."""
    asked = []

    def draw(n, look):
        asked.append((n, look))
        return noise_uniform(5, look, n)

    with pytest.raises(Underpowered):
        check(draw, resolution=1e-6, first=10, growth=3, most=270)
    assert asked == [(10, 0), (30, 1), (90, 2), (270, 3)]
    shares = monte_carlo._looks(0.1, 0.02, 1, 2, 64)
    assert [share for *_, share in shares] == [0.02 / 2 ** (k + 1) for k in range(7)]
    with pytest.raises(ValueError, match="first look takes 8 samples, more than the 7 allowed"):
        check(draw, resolution=0.1, first=8, most=7)
    for resolution in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="positive"):
            check(draw, resolution=resolution)


@pytest.mark.parametrize("check", [assert_law, partial(assert_mean, expected=0.5)])
def test_the_first_look_takes_4096_and_the_last_at_most_four_million(check):
    assert check(lambda n, look: noise_uniform(6, look, n), resolution=0.2).samples == 4096
    asked = []

    def undecided(n, look):
        asked.append(n)
        return np.full(n, 0.5) if check is not assert_law else (np.arange(n) + 0.5) / n

    with pytest.raises(Underpowered):
        check(undecided, resolution=1e-9)
    assert asked == [2 ** (12 + 2 * k) for k in range(6)]
    asked.clear()
    with pytest.raises(Underpowered):
        check(undecided, resolution=1e-9, first=2**21, growth=2)
    assert asked == [2**21, 2**22]


@pytest.mark.parametrize("check", [assert_law, partial(assert_mean, expected=0.5)])
def test_a_check_says_how_many_looks_it_took(check):
    found = check(lambda n, look: noise_uniform(7, look, n), resolution=0.1, first=16)
    assert found.samples == 16 * 4 ** (found.looks - 1)
    assert found.looks > 2
    assert found.alpha == 1e-9


def test_too_few_samples_are_a_failure():
    with pytest.raises(Underpowered, match="needs more samples"):
        assert_mean(partial(plain, normal, 0.0, 0), 0.0, 1e-3, most=10_000)


def exactly(*values):
    """A sample given by hand."""
    return lambda n, look: np.resize(np.asarray(values), n)


def test_the_mean_is_judged_by_its_standard_error():
    """Half of ±1: mean 0, s² = n/(n-1), no skewness; h = z s/√n decides to the sixth digit."""
    n = 1000
    h = normal_quantile(0.5e-6) * sqrt(n / (n - 1)) / sqrt(n)
    once = partial(assert_mean, exactly(-1.0, 1.0), alpha=1e-6, first=n, most=n)
    check = once(0.5 * h, 1.500001 * h)
    assert check.z == pytest.approx(0.5 * normal_quantile(0.5e-6), rel=1e-9)
    with pytest.raises(Underpowered, match="1000 samples give"):
        once(0.5 * h, 1.499999 * h)
    with pytest.raises(Underpowered):
        once(0.999999 * h, 0.1 * h)
    with pytest.raises(MonteCarloFailure, match=r"5\.0 standard errors, n = 1000"):
        once(1.000001 * h, 10.0 * h)


@pytest.mark.parametrize(
    ("values", "skewness", "kurtosis"),
    [([0.0, 0.0, 0.0, 0.0, 3.0], 1.5, 0.25), ([-3.0, *8 * [0.0], 3.0], 0.0, 2.0)],
)
def test_the_guards_wait_for_the_next_terms_of_the_expansion(values, skewness, kurtosis):
    """Skewness g asks for n ≥ (z³ g/3)², excess kurtosis k for n ≥ z⁴ k/12, g and k by s²."""
    z = normal_quantile(0.5e-6)

    def allowed(n):
        shrink = (n - 1) / n  # s² divides by n - 1
        peak = shrink**2 * (kurtosis + 3.0) - 3.0
        return n >= max((z**3 * shrink**1.5 * skewness / 3.0) ** 2, z**4 * peak / 12.0)

    once = partial(assert_mean, exactly(*values), np.mean(values), 2.0, alpha=1e-6)
    enough = next(n for n in range(10, 10_000, 10) if allowed(n))
    assert enough > 50
    once(first=enough, most=enough)
    with pytest.raises(Underpowered, match="skewness"):
        once(first=enough - 10, most=enough - 10)


@pytest.mark.parametrize("rate", [1e-5, 1e-3])  # not seen at all, and seen a few times
def test_rare_events_are_not_judged_before_the_sample_is_symmetric(rate):
    def draw(n, look):
        return noise_uniform(0, look, n) < rate

    with pytest.raises(Underpowered, match="skewness"):
        assert_mean(draw, 1.1 * rate, rate, most=20_000)


def test_equal_samples_pass_only_under_a_bound():
    """Truth Bernoulli(5e-4), expected 0: mostly no event in 4096 samples, and yet it is wrong."""

    def draw(trial, n, look):
        return noise_uniform(trial, look, n) < 5e-4

    for trial in range(50):
        with pytest.raises((Underpowered, MonteCarloFailure)):
            assert_mean(partial(draw, trial), 0.0, resolution=5e-4, most=20_000)
    zeros = lambda n, look: np.zeros(n)
    assert assert_mean(zeros, 0.0, resolution=0.1, spread=1.0).samples == 4096
    with pytest.raises(Underpowered):
        assert_mean(zeros, 0.0, resolution=1e-5, spread=1.0, most=20_000)


def test_what_was_not_seen_may_still_move_the_mean():
    """(1 - p)^n ≥ share bounds an unseen mass p, which moves the mean by at most 2·spread·p."""
    unseen = log(1.0 / 0.5e-6) * 2.0 * 3.0 / 1000
    once = partial(assert_mean, exactly(1.0), alpha=1e-6, spread=3.0, first=1000, most=1000)
    once(1.0, 1.000001 * unseen)
    with pytest.raises(Underpowered):
        once(1.0, 0.999999 * unseen)
    with pytest.raises(MonteCarloFailure):
        once(1.0 + 1.000001 * unseen, 1.0)


def test_rare_values_on_both_sides_are_no_normal_sample():
    """Symmetric, so not skewed; but so peaked that the tails are not normal yet."""

    def draw(n, look):
        u = noise_uniform(2, look, n)
        return (u < 1e-3) * 1.0 - (u > 0.999)

    with pytest.raises(Underpowered, match="kurtosis"):
        assert_mean(draw, 0.0, resolution=2e-2, most=20_000)


def test_equal_but_for_rounding_is_equal():
    def draw(n, look):
        return 0.3 + 1e-15 * noise(3, look, n)

    with pytest.raises(Underpowered):
        assert_mean(draw, 0.3, resolution=1e-6, most=20_000)
    assert assert_mean(draw, 0.3, resolution=2e-2, spread=1.0).samples == 4096


@pytest.mark.parametrize("size", [0.0, 1.0, 1e6])
@pytest.mark.parametrize(("part", "rounding"), [(0.99, True), (1.01, False)])
def test_a_spread_of_a_millionth_millionth_is_rounding(size, part, rounding):
    """Of the largest value, or of 1; what the controls leave is held to the same."""
    spread = part * 1e-12 * max(size, 1.0)
    rest, control = (
        spread * np.resize([1.0, -1.0], 10_000),
        np.resize([1.0, 1.0, -1.0, -1.0], 10_000),
    )
    for drawn in (size + rest, (size * control + rest, control[:, None])):
        sample = monte_carlo._estimate(drawn)
        assert sample.error == pytest.approx(spread / 100.0, rel=1e-3)
        assert sample.constant == (rounding and not isinstance(drawn, tuple))
        shape = (0.0, 0.0) if rounding else pytest.approx((0.0, -2.0), abs=1e-3)
        assert (sample.skewness, sample.kurtosis) == shape


def test_the_largest_value_says_what_is_rounding():
    """Not the smallest, which is 0 here."""
    control = np.resize([0.0, 0.0, 1e6, 1e6], 10_000)
    rest = 0.5e-6 * np.resize([1.0, -1.0], 10_000)
    assert monte_carlo._estimate((control + rest, control[:, None])).kurtosis == 0.0


def test_a_spread_of_just_a_millionth_millionth_is_not_rounding():
    half = 7.071067811865475e-13  # so that s² is (1e-12)² to the last bit
    assert not monte_carlo._estimate(np.asarray([half, -half])).constant


@pytest.mark.parametrize("size", [1.0, 1e6])
def test_rounding_is_allowed_for_in_units_of_the_largest_number(size):
    """A constant known to be one: 1e-13 of it is rounding, more is an error."""
    once = partial(assert_mean, exactly(size), spread=0.0)
    once(size * (1.0 + 0.99e-13), resolution=2e-13 * size)
    with pytest.raises(MonteCarloFailure):
        once(size * (1.0 + 1.01e-13), resolution=1.0)
    with pytest.raises(Underpowered):
        once(size, resolution=0.99e-13 * size, most=4096)


def test_ties_are_decided_for_the_claim(monkeypatch):
    """Intervals are closed, and a sample as large as the guards ask for is large enough."""
    moments = monte_carlo._Sample(0.0, error=0.125, skewness=0.0, kurtosis=12.0, constant=False)
    monkeypatch.setattr(monte_carlo, "_estimate", lambda drawn: moments)
    monkeypatch.setattr(monte_carlo, "normal_quantile", lambda share: 2.0)  # asks for 2⁴·12/12
    h = 2.0 * 0.125 + 1e-13
    assert assert_mean(exactly(0.0), h, resolution=2.0 * h, first=16, most=16).looks == 1
    alpha = 4.0 * np.exp(-2.0)
    assert sqrt(log(4.0 / alpha) / 2.0) == 1.0  # h of one sample
    assert assert_law(lambda n, look: np.zeros(n), 2.0, alpha, first=1, most=1).looks == 1


def test_float32_samples_are_averaged_in_float64():
    """A sum of 1,000 of them, in float32, would lose their last digits."""
    pairs = lambda *values: np.resize(np.asarray(values, dtype=np.float32), 1000)
    values = pairs(0.1, 0.7)
    assert monte_carlo._estimate(values).mean == pytest.approx(
        0.5 * (float(values[0]) + float(values[1])), rel=1e-14
    )
    control = pairs(1e7 + 1.0, -1e7)
    sample = monte_carlo._estimate((2.0 * control.astype(np.float64), control[:, None]))
    assert sample.mean == pytest.approx(0.0, abs=1e-6)


def test_the_error_allows_for_what_the_controls_cost():
    """A control of mean 0 in the law but 2 in the sample: the intercept's error grows with it."""
    control = np.resize([1.0, 3.0], 64)
    rest = np.resize([1.0, 1.0, -1.0, -1.0], 64)
    sample = monte_carlo._estimate((5.0 + 2.0 * control + rest, control[:, None]))
    assert sample.mean == pytest.approx(5.0)
    # variance 64/62, times (XᵀX)⁻¹₀₀ = Σc²/(nΣc² - (Σc)²) = 5/64
    assert sample.error == pytest.approx(sqrt(5.0 / 62.0))
    assert not sample.constant


def test_the_default_resolution_is_two_percent_of_the_larger():
    assert monte_carlo.default_resolution(-10.0, 1.0) == pytest.approx(0.2)
    assert monte_carlo.default_resolution(0.0, 5.0) == pytest.approx(0.1)


def test_controls_leave_no_variance_in_a_quadratic():
    def draw(n, look):
        eps = noise(0, look, n)
        return 3.0 + eps + 2.0 * eps**2, np.stack([eps, eps**2 - 1.0], axis=-1)

    check = assert_mean(draw, 5.0, resolution=1e-10)
    assert check.samples == 4096
    with pytest.raises(MonteCarloFailure):
        assert_mean(draw, 5.0 * (1.0 + 1e-9), resolution=1e-10)


def test_what_the_controls_explain_entirely_is_an_identity_on_the_samples_drawn():
    """A value of 1e6 once in a million moves the mean by 1, and no sample of 4,096 shows it."""

    def draw(rate, n, look):
        eps = noise(0, look, n)
        return eps + 1e6 * (noise_uniform(0, look, n) < rate), eps[:, None]

    unseen = assert_mean(partial(draw, 1e-6), 0.0, resolution=1e-9)
    assert (unseen.samples, unseen.alpha) == (4096, 1e-9)  # the budget knows no exact samples
    with pytest.raises(MonteCarloFailure):
        assert_mean(partial(draw, 1e-6), 1.0, resolution=1e-9)
    with pytest.raises(Underpowered):  # once one sample shows it, it is variance like any other
        assert_mean(partial(draw, 1e-3), 1e3, resolution=1e-9, most=20_000)


@pytest.mark.parametrize("check", [assert_law, partial(assert_mean, expected=0.0, spread=1.0)])
@pytest.mark.parametrize("shape", [(2,), (4095,), (4097,), (4096, 1), (1, 4096), ()])
def test_the_samples_asked_for_are_the_samples_that_count(check, shape):
    with pytest.raises(ValueError, match="must have shape .4096,., and its controls") as refusal:
        check(lambda n, look: np.zeros(shape), resolution=0.05)
    assert str(refusal.value).endswith(f"got {shape}")


@pytest.mark.parametrize("shape", [(4095, 1), (4096,), (4096, 1, 1), (1, 4096), ()])
def test_every_sample_has_its_own_row_of_controls(shape):
    with pytest.raises(ValueError, match=r"4096, c") as refusal:
        assert_mean(lambda n, look: (noise(8, look, n), np.ones(shape)), 0.0, resolution=0.05)
    assert str(refusal.value).endswith(f"got (4096,) and {shape}")


def test_only_passed_checks_are_registered():
    ones = exactly(1.0)
    passed = assert_mean(ones, 1.0, resolution=0.1, alpha=1e-7, spread=1.0)
    law = assert_law(lambda n, look: (np.arange(n) + 0.5) / n, 0.1)
    with pytest.raises(MonteCarloFailure):
        assert_mean(ones, 3.0, resolution=0.1, spread=0.0)
    with pytest.raises(Underpowered):
        assert_mean(ones, 1.0, resolution=0.1, most=4096)
    assert monte_carlo.checks == [passed, law]
    assert passed == Check(samples=4096, looks=1, z=0.0, resolution=0.1, alpha=1e-7)


@given(st.floats(1e-15, 0.9))
def test_normal_quantile_inverts_the_tail(alpha):
    tail = erfc(normal_quantile(alpha) / sqrt(2.0))
    assert abs(log(tail) - log(alpha)) < 1e-9


def test_enough_samples_decide_at_the_first_look():
    """Three standard errors of luck are allowed for: P(|Z| > 3) = 0.0027, here of 300 trials."""
    first = monte_carlo.enough_samples(spread=2.0, resolution=0.5)
    assert first == np.ceil((normal_quantile(0.5e-9) + 3.0) ** 2 * 16.0)
    looks = [
        assert_mean(
            lambda n, look, trial=trial: 2.0 * noise(trial, look, n), 0.0, 0.5, first=first
        ).looks
        for trial in range(300)
    ]
    assert looks.count(1) >= 297


def test_what_is_not_finite_has_no_mean():
    for odd in (np.nan, np.inf):
        values = lambda n, look, odd=odd: np.where(np.arange(n) == n - 1, odd, 0.5)
        with pytest.raises(MonteCarloFailure, match="not finite"):
            assert_mean(values, 0.5, resolution=0.1)
        with pytest.raises(MonteCarloFailure, match="not finite"):
            assert_law(values, resolution=0.1)
        controlled = lambda n, look, odd=odd: (np.ones(n), np.full((n, 1), odd))
        with pytest.raises(MonteCarloFailure, match="not finite"):
            assert_mean(controlled, 1.0, resolution=0.1)


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"alpha": 1.0}, {"growth": 1}])
def test_probabilities_and_growth_have_their_range(wrong):
    with pytest.raises(ValueError, match="alpha between 0 and 1 and growth ≥ 2"):
        assert_mean(lambda n, look: np.ones(n), 1.0, resolution=0.1, spread=1.0, **wrong)
