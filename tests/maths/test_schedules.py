"""maths/schedules.py against exact arithmetic, the sources' numbers, autograd and complex steps."""

import warnings
from decimal import Decimal
from fractions import Fraction
from math import exp, log
from re import escape

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scratchgen.maths import schedules
from scratchgen.maths.distributions import normal_kl
from scratchgen.maths.schedules import Schedule, SignalLeft
from scratchgen.testing.strategies import seeds, sizes

from support import host, normals, on_every_backend, relative

HO = Schedule.linear(1000)
SHORT = [(1e-6, 0.8, 10), (1e-6, 0.7, 10), (1e-6, 0.6, 25), (1e-6, 0.3, 50)]


def beta_lists():
    return st.lists(st.floats(1e-9, 0.999), min_size=1, max_size=12)


@given(beta_lists())
@example([1e-9, 1e-9])
@example([0.999] * 12)
def test_tables_keep_their_digits(betas):
    """Every entry against the product of 1 - β in exact arithmetic."""
    schedule, bars = Schedule(betas), [Decimal(1)]
    for t, beta in enumerate(map(Decimal, betas), start=1):
        bars.append(bars[-1] * (1 - beta))
        before, now = bars[-2:]
        assert relative(schedule.alpha[t], 1 - beta) < 2e-16
        assert relative(schedule.log_alpha_bar[t], now.ln()) < 1e-14
        assert relative(schedule.alpha_bar[t], now) < 1e-13
        assert relative(schedule.one_minus_alpha_bar[t], 1 - now) < 1e-14
        assert relative(schedule.snr[t], now / (1 - now)) < 1e-13
        assert abs(float(((1 - now) / now).ln()) - schedule.gamma[t]) < 1e-13
        if t > 1:
            variance = beta * (1 - before) / (1 - now)
            assert relative(schedule.posterior_variance[t], variance) < 1e-14
    assert schedule.steps == len(betas)


def test_slot_zero_is_clean_data():
    tables = HO.beta, HO.alpha, HO.alpha_bar, HO.one_minus_alpha_bar, HO.posterior_variance, HO.snr
    assert [table[0] for table in tables] == [0.0, 1.0, 1.0, 0.0, 0.0, np.inf]
    assert HO.gamma[0] == -np.inf
    assert HO.posterior_variance[1] == 0.0
    assert all(table.shape == (1001,) and table.dtype == np.float64 for table in tables)


@pytest.mark.equation("DDPM-5")
@pytest.mark.equation("VDM-6")
def test_the_sources_numbers():
    assert HO.beta[[1, 1000]] == pytest.approx([1e-4, 0.02], rel=1e-15)
    assert HO.alpha_bar[-1] == pytest.approx(4.036e-5, rel=1e-4)
    assert HO.report().prior_kl == pytest.approx(2.02e-5, rel=2e-3)
    cosine = Schedule.cosine(1000)
    assert cosine.beta[1] == pytest.approx(4.13e-5, rel=1e-3)
    assert cosine.alpha_bar[-1] == pytest.approx(2.4e-9, rel=0.02)
    assert int(np.sum(cosine.beta == 0.999)) == 1
    terminal = [Schedule.linear(k, a, b, reference=k).alpha_bar[-1] for a, b, k in SHORT]
    assert terminal == pytest.approx([2.00e-3, 6.92e-3, 5.54e-5, 2.25e-4], rel=2e-3)


@pytest.mark.equation("DDPM-5")
@given(st.integers(1, 300))
@example(19)
@example(20)
def test_linear_betas_rise_evenly_and_keep_the_noise_of_the_chain(steps):
    schedule = Schedule.linear(steps)
    beta = schedule.beta[1:]
    assert np.all((beta > 0.0) & (beta <= 0.999))
    assert beta[0] == pytest.approx(0.1 / steps, rel=1e-15)
    if steps > 20:
        assert beta.sum() == pytest.approx(500.0 * (1e-4 + 0.02), rel=1e-12)
        np.testing.assert_allclose(np.diff(beta, 2), 0.0, atol=1e-15)
    elif steps > 1:
        assert beta[-1] == 0.999
    with warnings.catch_warnings() if steps > 2 else pytest.warns(SignalLeft):
        schedule.report()


@pytest.mark.equation("DDPM-5")
@given(st.integers(4, 300))
def test_cosine_follows_its_function_up_to_the_last_step(steps):
    schedule = Schedule.cosine(steps)
    angle = 0.5 * np.pi * (np.arange(steps) / steps + 0.008) / 1.008
    want = np.cos(angle) ** 2 / np.cos(angle[0]) ** 2
    np.testing.assert_allclose(schedule.alpha_bar[:-1], want, rtol=1e-11)
    assert schedule.beta[-1] == 0.999
    schedule.report()


@given(sizes(60), st.floats(0.1, 5.0), st.floats(0.5, 3.0), st.floats(0.1, 10.0))
def test_any_falling_function_is_a_schedule(steps, rate, power, size):
    schedule = Schedule.from_alpha_bar(lambda u: size * np.exp(-rate * u**power), steps)
    u = np.arange(steps + 1) / steps
    np.testing.assert_allclose(schedule.alpha_bar, np.exp(-rate * u**power), rtol=1e-11)
    assert np.all(np.diff(schedule.alpha_bar) < 0.0)
    assert np.all(np.diff(schedule.gamma[1:]) > 0.0)


def test_tables_are_float64_whatever_came():
    betas = np.asarray([0.1, 0.7], dtype=np.float32)
    np.testing.assert_array_equal(Schedule(betas).beta[1:], betas.astype(np.float64))
    assert Schedule([Fraction(1, 3)]).beta.tolist() == [0.0, 1.0 / 3.0]
    values = np.exp(np.asarray([0.0, -1.0, -2.0], dtype=np.float32))
    table = Schedule.from_alpha_bar(lambda u: values, 2).alpha_bar
    np.testing.assert_allclose(table, values.astype(np.float64), rtol=1e-14)


def test_a_function_that_reaches_zero_ends_at_the_largest_beta():
    schedule = Schedule.from_alpha_bar(lambda u: 1.0 - u, 4)
    np.testing.assert_allclose(schedule.beta, [0.0, 1 / 4, 1 / 3, 1 / 2, 0.999], rtol=1e-15)


def test_bad_schedules_are_refused():
    for betas, message in (
        ([], r"at least one number, got \(0,\)"),
        ([[0.1]], r"one row .* got \(1, 1\)"),
        ([0.1, 0.0], r"betas\[1\] = 0.0"),
        ([1.0, 0.0], r"betas\[0\] = 1.0"),
        ([0.5, 0.5, np.nan], r"betas\[2\] = nan"),
    ):
        with pytest.raises(ValueError, match=message):
            Schedule(betas)
    for build in (Schedule.linear, Schedule.cosine):
        for steps in (0, 10.0):
            with pytest.raises(ValueError, match=rf"a whole number and at least 1, got {steps}$"):
                build(steps)
    for function, message in (
        (lambda u: 1.0 + u, "got 1.5 at u = 0.5 after 1.0"),
        (lambda u: np.minimum(1.0, 1.5 - u), "got 1.0 at u = 0.5 after 1.0"),
        (lambda u: 0.9 - u, "got -0.09999999999999998 at u = 1.0 after 0.4"),
        (lambda u: 0.0 * u, "got 0.0 at u = 0.5 after 0.0"),
        (lambda u: np.nan * u, "got nan at u = 0.5"),
        (lambda u: 1.0 - 0.5 * u[:2], r"for each u \(3,\), got shape \(2,\)"),
        (lambda u: 0.5, r"for each u \(3,\), got shape \(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Schedule.from_alpha_bar(function, 2)


@on_every_backend
def test_levels_are_float64_wherever_t_lives(born):
    t = born.indices(np.asarray([0, 1, 7, 1000, 1]))
    level = HO.level(t)
    assert level.dtype == born.xp.float64
    assert level.device == t.device
    np.testing.assert_array_equal(host(level), HO.log_alpha_bar[[0, 1, 7, 1000, 1]])


@pytest.mark.parametrize(
    ("t", "kind"),
    [
        (5, "int"),
        (np.int64(5), "int64 ()"),
        ([1, 2], "list"),
        (np.ones(1), "float64 (1,)"),
        (np.ones(1, bool), "bool (1,)"),
        (np.ones((2, 2), np.int64), "int64 (2, 2)"),
    ],
)
def test_steps_are_a_row_of_integers(t, kind):
    with pytest.raises(ValueError, match=escape(f"t must be an integer array (N,), got {kind}")):
        HO.level(t)


def test_host_steps_out_of_range_are_refused():
    assert HO.level(np.zeros(0, dtype=np.int64)).shape == (0,)
    for wrong in (-1, 1001):
        with pytest.raises(ValueError, match=rf"0\.\.1000, got {wrong}"):
            HO.level(np.asarray([3, wrong]))


@pytest.mark.equation("DDPM-5")
@pytest.mark.equation("VDM-6")
@pytest.mark.equation("VDM-1")
@given(seeds(), sizes(), beta_lists())
@example(0, 3, HO.beta[1:])
def test_the_terminal_report_is_the_divergence_of_the_last_latent(seed, n, betas):
    """Averaged over data x₀, and with the second moment of these data."""
    schedule = Schedule(betas)
    x0, level = np.tanh(normals(seed, n)), schedule.log_alpha_bar[-1]
    logvar = np.full(n, log(-np.expm1(level)))
    kl, _ = normal_kl(exp(0.5 * level) * x0, logvar, 0.0 * x0, 0.0 * x0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SignalLeft)
        report = schedule.report(second_moment=float(np.mean(x0**2)))
    assert report.prior_kl == pytest.approx(kl.mean(), rel=1e-10)
    assert report.alpha_bar == pytest.approx(exp(level), rel=1e-14)
    assert report.snr == pytest.approx(-exp(level) / np.expm1(level), rel=1e-13)


@pytest.mark.equation("VDM-6")
@given(st.floats(-30.0, -10.0))
def test_the_terminal_report_keeps_its_digits(level):
    """Data that are all 0 leave only the variance's own divergence, about ¼ ᾱ²."""
    schedule = Schedule.from_alpha_bar(lambda u: np.exp(level * u), 64)
    alpha_bar = Decimal(float(schedule.log_alpha_bar[-1])).exp()
    want = (-alpha_bar - (1 - alpha_bar).ln()) / 2
    assert relative(schedule.report(second_moment=0.0).prior_kl, want) < 1e-12


@pytest.mark.equation("DDPM-5")
@pytest.mark.equation("VDM-1")
def test_signal_that_is_left_is_reported():
    kls = []
    for first, last, steps in (SHORT[0], SHORT[1], SHORT[3]):
        with pytest.warns(SignalLeft, match=r"limit 0\.0001"):
            kls.append(Schedule.linear(steps, first, last, reference=steps).report().prior_kl)
    assert kls == pytest.approx([1.0e-3, 3.5e-3, 1.1e-4], rel=0.03)
    with pytest.warns(SignalLeft, match=r"alpha_bar = 0\.36 .* 0\.23 nats") as caught:
        Schedule.linear(100, reference=100).report(second_moment=1.0)
    assert caught[0].filename == __file__


def test_a_schedule_that_is_too_short_needs_more_steps():
    with pytest.warns(SignalLeft, match="Take more steps or larger betas$"):
        Schedule.cosine(3).report()


@pytest.mark.parametrize("moment", [-1.0, np.nan, np.inf])
def test_a_second_moment_is_refused_where_no_data_have_it(moment):
    with pytest.raises(ValueError, match=f"finite and at least 0, got {moment}"):
        HO.report(moment)


@pytest.mark.equation("DDPM-5")
@pytest.mark.equation("VDM-1")
def test_the_limit_of_what_may_be_left_is_1e_4_nats(monkeypatch):
    ends = lambda alpha_bar: Schedule.from_alpha_bar(lambda u: alpha_bar**u, 20).report()
    assert ends(1.99e-4).prior_kl == pytest.approx(0.995e-4, rel=1e-3)
    with pytest.warns(SignalLeft):
        ends(2.01e-4)
    kl = HO.report().prior_kl
    monkeypatch.setattr(schedules, "SIGNAL_LIMIT", kl)
    with pytest.warns(SignalLeft):
        HO.report()
    monkeypatch.setattr(schedules, "SIGNAL_LIMIT", np.nextafter(kl, 1.0))
    HO.report()


@pytest.mark.equation("ERR-16")
def test_it_is_the_marginal_and_not_the_last_step_that_forgets_the_data():
    """KL to N(0, 1) at x = 1 of q(x_T | x₀), and of q(x_T | x_{T-1}), which the source names."""
    one, zero = np.ones(1), np.zeros(1)
    marginal = [HO.alpha_bar[-1] ** 0.5 * one, np.log(HO.one_minus_alpha_bar[-1] * one)]
    last_step = [HO.alpha[-1] ** 0.5 * one, np.log(HO.beta[-1] * one)]
    assert last_step[0][0] == pytest.approx(0.98995, abs=5e-6)
    assert normal_kl(*marginal, zero, zero)[0][0] == pytest.approx(2.0e-5, rel=0.01)
    assert normal_kl(*last_step, zero, zero)[0][0] == pytest.approx(1.956, abs=5e-4)
