"""training/kl_control.py: factors are derivatives of what is meant, and averages are remembered."""

from fractions import Fraction

import autograd
import autograd.numpy.numpy_wrapper as traced
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scratchgen.layers.affine import Linear
from scratchgen.maths.distributions import standard_normal_kl
from scratchgen.testing.oracle import assert_close
from scratchgen.testing.strategies import seeds
from scratchgen.training.kl_control import KlControl, SpikeGuard, balance, free_bits, warm_up

from support import NUMPY, bound, normals, on_every_backend

steps = st.integers(0, 200)
levels = st.lists(st.tuples(st.floats(-1.0, 50.0), st.integers(1, 4096)), min_size=1, max_size=5)


def named(rates) -> dict[str, float]:
    return {f"kl_{l}": rate for l, rate in enumerate(rates, start=1)}


@given(steps, st.integers(1, 100), st.floats(0.0, 1.0))
def test_warm_up_is_a_line_between_its_ends(step, length, floor):
    line = np.interp(step, [0.0, length], [0.0, 1.0])
    assert warm_up(step, length, floor) == pytest.approx(max(floor, line), rel=1e-12)


@given(steps, st.integers(2, 100))
def test_warm_up_begins_low_and_without_a_length_is_over(step, length):
    assert warm_up(0, length) == 1e-4
    assert warm_up(1, length) == 1.0 / length
    assert warm_up(step, 0) == 1.0


@given(levels)
def test_balancing_has_mean_one_and_the_ratios_of_the_rates_per_dimension(drawn):
    rates, sizes = zip(*drawn, strict=True)
    factors = balance(rates, sizes)
    assert np.mean(factors) == pytest.approx(1.0, rel=1e-12)
    density = [(abs(Fraction(r)) + Fraction(1, 100)) / size for r, size in drawn]
    for factor, d in zip(factors, density, strict=True):
        assert factor / factors[0] == pytest.approx(float(d / density[0]), rel=1e-12)


@given(levels)
def test_balancing_is_what_the_released_code_computes(drawn):
    """Line by line, with its factor of the total, which the last line takes out again."""
    rates, sizes = map(np.asarray, zip(*drawn, strict=True))
    alpha = sizes / np.min(sizes)
    coefficients = np.abs(rates) + 0.01
    coefficients = coefficients / alpha * np.sum(coefficients)
    coefficients = coefficients / np.mean(coefficients)
    np.testing.assert_allclose(balance(rates, sizes), coefficients, rtol=1e-12)


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=5), st.floats(0.0, 5.0))
def test_free_bits_are_the_slope_of_what_is_paid(rates, least):
    h = 1e-3
    assume(all(abs(rate - least) > 2 * h for rate in rates))

    def paid(rates):
        return np.sum(np.maximum(least, rates))

    slopes = [(paid(rates + e) - paid(rates - e)) / (2 * h) for e in h * np.eye(len(rates))]
    np.testing.assert_allclose(free_bits(rates, least), slopes, atol=1e-9)


def test_at_the_least_rate_nothing_is_paid():
    assert free_bits([0.5, 0.5 + 1e-12, 0.0], 0.5) == [0.0, 1.0, 0.0]


@given(seeds(), st.floats(0.0, 4.0))
def test_the_factors_give_the_gradient_of_the_objective_with_free_bits(seed, least):
    """Σ_l max(least, mean KL_l) of two levels, where control knows their present rates."""
    n = 6
    mean, logvar = normals(seed, 2, 2, n, 3)

    def rates(mean, logvar):
        kl, _ = standard_normal_kl(mean, logvar)
        return [traced.sum(kl[l]) / n for l in (0, 1)]

    def objective(mean, logvar):
        return sum(traced.maximum(least, rate) for rate in rates(mean, logvar))

    present = rates(mean, logvar)
    assume(all(abs(rate - least) > 1e-9 for rate in present))
    control = KlControl(("kl_1", "kl_2"), (3, 3), least=least, decay=0.0)
    control.observe(named(present))
    d_kl = np.ones((2, n, 3)) * np.reshape(control.weights(0), (2, 1, 1)) / n
    got = standard_normal_kl(mean, logvar)[1](d_kl)
    want = autograd.grad(objective, (0, 1))(mean, logvar)
    for name, d, w in zip(("mean", "logvar"), got, want, strict=True):
        assert_close(d, w, 1e-10, name)


@given(levels, st.integers(0, 99), st.booleans(), st.floats(0.0, 5.0))
def test_a_weight_is_the_product_of_its_three_factors(drawn, step, balanced, least):
    rates, sizes = zip(*drawn, strict=True)
    control = KlControl(tuple(named(rates)), sizes, 100, least, balanced)
    control.observe({"reconstruction": 7.0, **named(rates)})
    shares = balance(rates, sizes) if balanced else np.ones(len(rates))
    free = np.asarray(rates) > least if least else np.ones(len(rates))
    want = max(step / 100, 1e-4) * np.asarray(shares) * free
    np.testing.assert_allclose(control.weights(step), want, rtol=1e-12)


@given(levels, st.integers(0, 50), steps)
def test_after_the_warm_up_levels_are_balanced_no_more(drawn, length, later):
    rates, sizes = zip(*drawn, strict=True)
    control = KlControl(tuple(named(rates)), sizes, length, balanced=True)
    control.observe(named(rates))
    assert control.weights(length + later) == [1.0] * len(rates)


def test_without_free_bits_a_level_pays_even_at_no_rate():
    control = KlControl(("kl_1",), (3,))
    control.observe({"kl_1": 0.0})
    assert control.weights(0) == [1.0]


@given(steps, st.integers(0, 100), st.floats(0.0, 5.0))
def test_before_the_first_observation_every_level_counts(step, length, least):
    control = KlControl(("kl_1", "kl_2"), (1, 100), length, least, balanced=True)
    assert control.weights(step) == [warm_up(step, length)] * 2


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=30), st.floats(0.0, 0.99))
def test_the_rates_are_weighted_means_of_the_past(means, decay):
    """Each weight is what its own observation took, times what each later one left."""
    control = KlControl(("kl_1",), (1,), decay=decay)
    for mean in means:
        control.observe({"kl_1": mean})
    left = [Fraction(min(Fraction(decay), Fraction(n, n + 1))) for n in range(len(means))]
    want = weight = Fraction(0)
    for n, mean in enumerate(means):
        took = (1 - left[n]) * Fraction(np.prod(left[n + 1 :], initial=Fraction(1)))
        weight += took
        want += took * Fraction(mean)
    assert weight == 1
    assert control.rates["kl_1"] == pytest.approx(float(want), rel=1e-10, abs=1e-300)


@given(seeds())
def test_the_default_average_is_the_plain_mean_of_ten_then_a_tenth_is_new(seed):
    means = np.abs(normals(seed, 11))
    control = KlControl(("kl_1",), (1,))
    for mean in means[:10]:
        control.observe({"kl_1": mean})
    assert control.rates["kl_1"] == pytest.approx(np.mean(means[:10]), rel=1e-12)
    control.observe({"kl_1": means[10]})
    want = 0.9 * np.mean(means[:10]) + 0.1 * means[10]
    assert control.rates["kl_1"] == pytest.approx(want, rel=1e-12)


@given(seeds(), st.integers(0, 20))
def test_a_restored_control_decides_as_the_old_one(seed, before):
    made = [KlControl(("kl_1", "kl_2"), (4, 16), 50, 0.5, balanced=True) for _ in range(2)]
    means = [named(map(float, pair)) for pair in np.abs(normals(seed, before + 10, 2))]
    for pair in means[:before]:
        made[0].observe(pair)
    made[1].restore(made[0].state())
    for step, pair in enumerate(means[before:], start=before):
        assert made[0].weights(step) == made[1].weights(step)
        for control in made:
            control.observe(pair)
    assert made[0].state() == made[1].state()


@given(seeds(), st.floats(0.1, 10.0))
def test_a_guard_admits_gradients_up_to_its_limit_and_counts_the_others(seed, limit):
    params, guard, refused = bound(Linear(3, 2), seed), SpikeGuard(limit), 0
    for g in normals(seed, 5, 8):
        params.grad[...] = g
        norm = np.linalg.norm(g)
        assume(abs(norm - limit) > 1e-9)
        assert guard.admits(params) == (norm <= limit)
        refused += norm > limit
        np.testing.assert_array_equal(params.grad, g)
    assert guard.skipped == refused
    again = SpikeGuard(limit)
    again.restore(guard.state())
    assert again.skipped == refused


@on_every_backend
def test_a_guard_refuses_what_is_not_finite_and_nothing_else_at_an_infinite_limit(born):
    params, guard = bound(Linear(3, 2), born=born), SpikeGuard(float("inf"))
    params.grad[...] = 1e30
    assert guard.admits(params)
    for k, bad in enumerate((float("nan"), float("inf"), -float("inf")), start=1):
        params.grad[3] = bad
        assert not guard.admits(params)
        assert guard.skipped == k


def test_a_gradient_as_long_as_the_limit_is_admitted():
    params = bound(Linear(1, 1), born=NUMPY)
    params.grad[...] = [3.0, 4.0]
    assert SpikeGuard(5.0).admits(params)
    assert not SpikeGuard(np.nextafter(5.0, 0.0)).admits(params)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: KlControl((), ()),
        lambda: KlControl(("kl_1", "kl_1"), (1, 1)),
        lambda: KlControl(("kl_1", "kl_2"), (1,)),
        lambda: KlControl(("kl_1", "kl_2"), (1, 0)),
        lambda: KlControl(("kl_1",), (1,), length=-1),
        lambda: KlControl(("kl_1",), (1,), least=-0.1),
        lambda: KlControl(("kl_1",), (1,), least=float("inf")),
        lambda: KlControl(("kl_1",), (1,), decay=1.0),
        lambda: KlControl(("kl_1",), (1,), decay=-0.1),
        lambda: SpikeGuard(0.0),
        lambda: SpikeGuard(-1.0),
        lambda: SpikeGuard(float("nan")),
    ],
)
def test_arguments_are_checked(wrong):
    with pytest.raises(ValueError, match="got"):
        wrong()
