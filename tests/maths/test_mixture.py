"""maths/mixture.py: EM never lowers its objective, and finds what is there to be found."""

from itertools import permutations
from math import exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.streams import Stream
from scratchgen.maths.densities import Mixture
from scratchgen.maths.mixture import bic, expectation_maximisation, first_mixture, fit_mixture
from scratchgen.testing import oracle
from scratchgen.testing.strategies import seeds, sizes

from support import NUMPY, host, normals, on_every_backend, tolerance


def clumps(seed, n, dims, apart=3.0):
    """Rows around three places, of different width."""
    which = np.arange(n) % 3
    places = apart * normals(seed, 3, dims)
    widths = np.asarray([0.3, 1.0, 0.6])[which, None]
    return places[which] + widths * normals(seed + 1, n, dims)


def log_joint(mixture, x, ridge):
    """log w_k N(x; m_k, S_k) - ½ρ tr S_k⁻¹ (K, N), written without our code."""
    parts = []
    for w, m, s in zip(mixture.weights, mixture.means, mixture.covariances, strict=True):
        inverse, gap = np.linalg.inv(s), x - m
        square = (gap @ inverse * gap).sum(axis=-1) + ridge * np.trace(inverse)
        parts.append(log(w) - 0.5 * (square + np.linalg.slogdet(2.0 * np.pi * s)[1]))
    return np.stack(parts)


@given(seeds(), sizes(40), sizes(3), sizes(5), st.sampled_from([1e-6, 1e-3, 0.1]))
def test_no_iteration_lowers_the_objective(seed, n, dims, components, ridge):
    x = clumps(seed, n + 4, dims)
    stream = Stream(seed, NUMPY)
    _, history = fit_mixture(x, components, stream, 15, ridge)
    assert 2 <= len(history) <= 16
    scatter = float((x**2).sum(axis=-1).max())
    rounding = 8.0 * dims * 2.0**-52 * (scatter / ridge + 100.0)
    assert np.diff(history).min() >= -rounding


@given(seeds(), sizes(4), st.sampled_from([1e-3, 0.1]))
def test_the_objective_is_the_stated_one_and_bounds_the_likelihood(seed, components, ridge):
    x = clumps(seed, 30, 2)
    mixture, history = fit_mixture(x, components, Stream(seed, NUMPY), 4, ridge)
    total = np.logaddexp.reduce(log_joint(mixture, x, ridge), axis=0)
    assert history[-1] == pytest.approx(float(total.mean()), rel=1e-9)
    assert history[-1] <= float(mixture.log_prob(x).mean())


@given(seeds(), st.sampled_from([0.0, 1e-3, 0.1]))
def test_an_iteration_gives_the_best_answer_to_the_shares(seed, ridge):
    """Any small change of a weight, a mean or a covariance lowers Σ r_nk log w_k f_k(x_n)."""
    x = clumps(seed, 40, 2)
    start = first_mixture(x, 2, Stream(seed, NUMPY), ridge)
    joint = log_joint(start, x, ridge)
    shares = np.exp(joint - np.logaddexp.reduce(joint, axis=0))
    mixture, _ = expectation_maximisation(x, start, 1, ridge)

    def value(weights, means, covariances):
        changed = Mixture(NUMPY, weights, means, covariances)
        return float((shares * log_joint(changed, x, ridge)).sum())

    weights, means, covariances = mixture.weights, mixture.means, mixture.covariances
    best = value(weights, means, covariances)
    for step in (-1e-2, 1e-2):
        for k in (0, 1):
            only = np.arange(2) == k
            shift = step * only[:, None] * normals(seed + k, 2)
            up = exp(step) * only + 1.0 * ~only
            assert value(weights * up / (weights @ up), means, covariances) < best
            assert value(weights, means + shift, covariances) < best
            assert value(weights, means, covariances * up[:, None, None]) < best


@given(seeds(), sizes(20), sizes(3), st.sampled_from([0.0, 1e-6, 0.5]))
def test_one_component_has_the_mean_and_covariance_of_the_rows(seed, more, dims, ridge):
    x = clumps(seed, dims + 2 + more, dims)
    mixture, history = fit_mixture(x, 1, Stream(seed, NUMPY), ridge=ridge)
    covariance = np.cov(x.T, bias=True).reshape(1, dims, dims) + ridge * np.eye(dims)
    oracle.assert_close(mixture.means, x.mean(axis=0)[None], 1e-12, "mean")
    oracle.assert_close(mixture.covariances, covariance, 1e-11, "covariance")
    if ridge == 0.0:
        assert history[-1] == pytest.approx(float(mixture.log_prob(x).mean()), rel=1e-12)
    assert len(history) <= 3  # found at once


@given(seeds(), sizes(3))
def test_well_separated_components_are_recovered(seed, dims):
    """Each found component has the moments of the rows that were drawn for it."""
    which = np.arange(90) % 3
    places = 1e4 * np.stack([np.zeros(dims), np.ones(dims), -2.0 * np.ones(dims)])
    x = places[which] + normals(seed, 90, dims) * np.asarray([1.0, 2.0, 0.5])[which, None]
    mixture, _ = fit_mixture(x, 3, Stream(seed, NUMPY), 50, ridge=1e-9)
    order = np.argsort(mixture.means[:, 0])
    for k, group in zip(order, (2, 0, 1), strict=True):
        rows = x[which == group]
        assert mixture.weights[k] == pytest.approx(1.0 / 3.0, rel=1e-9)
        oracle.assert_close(mixture.means[k], rows.mean(axis=0), 1e-9, "mean")
        covariance = np.cov(rows.T, bias=True).reshape(dims, dims) + 1e-9 * np.eye(dims)
        oracle.assert_close(mixture.covariances[k], covariance, 1e-7, "covariance")


@given(seeds(), st.permutations(range(24)), st.permutations(range(3)))
def test_neither_the_order_of_rows_nor_of_components_matters(seed, rows, labels):
    x = clumps(seed, 24, 2)
    start = first_mixture(x, 3, Stream(seed, NUMPY), ridge=1e-3)
    relabelled = Mixture(
        NUMPY, start.weights[labels], start.means[labels], start.covariances[labels]
    )
    one, history = expectation_maximisation(x, start, 5, ridge=1e-3)
    other, again = expectation_maximisation(x[rows], relabelled, 5, ridge=1e-3)
    assert again[-1] == pytest.approx(history[-1], rel=1e-9)
    np.testing.assert_allclose(other.weights, one.weights[labels], rtol=1e-6, atol=1e-9)
    oracle.assert_close(other.means, one.means[labels], 1e-6, "means")
    oracle.assert_close(other.covariances, one.covariances[labels], 1e-6, "covariances")


@given(seeds(), st.floats(-3.0, 3.0))
def test_a_shift_of_the_data_shifts_the_means(seed, shift):
    x = clumps(seed, 20, 2)
    fits = [fit_mixture(y, 2, Stream(seed, NUMPY), 4, ridge=1e-2) for y in (x, x + shift)]
    oracle.assert_close(fits[1][0].means, fits[0][0].means + shift, 1e-6, "means")
    assert fits[1][1][-1] == pytest.approx(fits[0][1][-1], rel=1e-8)


@given(seeds(), sizes(5))
def test_first_centres_are_different_rows(seed, components):
    """A row that is a centre already has distance 0, and is not drawn while others are left."""
    x = np.concatenate([normals(seed, components, 2), np.zeros((3, 2))])
    start = first_mixture(x, components, Stream(seed, NUMPY), ridge=0.5)
    assert len(np.unique(start.means, axis=0)) == components
    assert all(np.any(np.all(x == m, axis=-1)) for m in start.means)
    far = ((x[:, None] - start.means) ** 2).sum(axis=-1).min(axis=1).mean()
    want = np.stack([(far / 2.0 + 0.5) * np.eye(2)] * components)
    np.testing.assert_allclose(start.covariances, want, rtol=1e-12)
    np.testing.assert_allclose(start.weights, 1.0 / components)


class Lowest:
    """A stream whose every uniform number is the lowest one."""

    backend = NUMPY

    def at(self, *names):
        return self

    def uniform(self, shape):
        return np.zeros(shape)


def test_the_lowest_number_draws_the_first_row_that_has_a_chance():
    x = np.asarray([[1.0], [1.0], [3.0], [3.0], [4.0]])
    assert first_mixture(x, 4, Lowest(), ridge=1.0).means[:, 0].tolist() == [1.0, 3.0, 4.0, 1.0]


def test_further_centres_are_drawn_by_squared_distance():
    """Rows at distance 1 and 2 from a crowd: the second centre is one of them, at odds 1 to 4."""
    x = np.asarray([[0.0]] * 997 + [[1.0], [2.0], [2.0]])
    seconds = []
    for seed in range(600):
        first, second = first_mixture(x, 2, Stream(seed, NUMPY), ridge=1.0).means[:, 0]
        if first == 0.0:
            seconds.append(second)
    far, expected = sum(s == 2.0 for s in seconds), 8.0 / 9.0 * len(seconds)
    assert all(seconds)
    assert abs(far - expected) < 5.0 * (len(seconds) * 8.0 / 81.0) ** 0.5


def test_every_centre_is_drawn_anew():
    """Rows that are all equally far apart: each ordered triple of them is drawn, 1 time in 24.

    With one number for all centres the first one would tell what the others are.
    """
    x, drawn = np.eye(4), set()
    for seed in range(400):
        means = first_mixture(x, 3, Stream(seed, NUMPY), ridge=1.0).means
        drawn.add(tuple(int(k) for k in means.argmax(axis=-1)))
    assert drawn == set(permutations(range(4), 3))


@pytest.mark.parametrize("iterations", [1, 2])
def test_an_empty_component_keeps_its_place_and_loses_its_weight(iterations):
    x = normals(5, 20, 2)
    start = Mixture(NUMPY, [0.5, 0.5], [[0.0, 0.0], [1e3, 1e3]], [np.eye(2), 0.01 * np.eye(2)])
    mixture, history = expectation_maximisation(x, start, iterations, ridge=1e-6)
    assert mixture.weights.tolist() == [1.0, 0.0]
    assert mixture.means[1].tolist() == [1e3, 1e3]
    np.testing.assert_array_equal(mixture.covariances[1], 0.01 * np.eye(2))
    oracle.assert_close(mixture.means[0], x.mean(axis=0), 1e-12, "mean")
    assert np.diff(history).min() >= -1e-12


def test_repeated_rows_and_as_many_components_as_rows_do_no_harm():
    for x in (np.ones((4, 2)), normals(2, 4, 2)):
        mixture, history = fit_mixture(x, 4, Stream(0, NUMPY), ridge=1e-4)
        assert np.all(np.isfinite(history))
        assert np.all(np.isfinite(mixture.log_prob(x)))


def test_iterations_stop_when_nothing_is_gained():
    x = clumps(3, 60, 2, apart=9.0)
    _, history = fit_mixture(x, 3, Stream(3, NUMPY), 500)
    gains = np.diff(history)
    assert len(history) < 500
    assert gains[-1] <= 0.0
    assert np.all(gains[:-1] > 0.0)
    rows = np.asarray([[0.0], [1.0]])  # one step is exact here, so the next gains exactly nothing
    assert len(fit_mixture(rows, 1, Stream(0, NUMPY))[1]) == 3
    assert len(fit_mixture(rows, 1, Stream(0, NUMPY), 0)[1]) == 1


def test_the_stated_defaults_are_the_ones_used():
    x = normals(3, 60, 2)
    given, history = fit_mixture(x, 4, Stream(3, NUMPY), iterations=100, ridge=1e-6)
    default, same = fit_mixture(x, 4, Stream(3, NUMPY))
    assert same == history
    assert len(history) == 101  # four components where there is one: it takes its time
    np.testing.assert_array_equal(default.covariances, given.covariances)


def test_bic_counts_the_free_numbers_and_finds_the_number_of_components():
    # two components in the plane: 1 weight, 4 means, 6 covariance entries
    assert bic(-10.0, n=100, k=2, d=2) == pytest.approx(20.0 + 11.0 * log(100.0))
    assert bic(0.0, n=50, k=1, d=3) == pytest.approx(9.0 * log(50.0))
    x, scores = clumps(11, 150, 2, apart=8.0), {}
    for k in (1, 2, 3, 4, 5):
        mixture, _ = fit_mixture(x, k, Stream(0, NUMPY), ridge=1e-3)
        scores[k] = bic(float(mixture.log_prob(x).sum()), 150, k, 2)
    assert min(scores, key=scores.__getitem__) == 3


@pytest.mark.parametrize(
    ("x", "settings", "says"),
    [
        (np.zeros((2, 2)), {"components": 3}, "components ≤ N"),
        (np.zeros((2, 2)), {"components": 0}, "1 ≤ components"),
        (np.zeros(3), {"components": 1}, r"x \(N, D\)"),
        (np.zeros((2, 2), np.int64), {"components": 1}, "x must be floating, got int64"),
        (np.asarray([[0.0], [np.nan]]), {"components": 1}, "finite"),
        (np.zeros((2, 2)), {"components": 1, "ridge": -1.0}, "ridge ≥ 0"),
        (np.zeros((2, 2)), {"components": 1, "iterations": -1}, "iterations ≥ 0"),
        (np.zeros((2, 2)), {"components": 1, "ridge": 0.0}, "positive definite"),
    ],
)
def test_a_fit_says_what_must_hold(x, settings, says):
    with pytest.raises(ValueError, match=says):
        fit_mixture(x, stream=Stream(0, NUMPY), **settings)


@on_every_backend
def test_every_backend_agrees(born):
    x = clumps(4, 30, 2, apart=5.0)

    def fit(backend):
        return fit_mixture(backend.asarray(x), 3, Stream(4, backend), 6, 1e-2)

    (mixture, history), (want, true) = fit(born), fit(NUMPY)
    tol = 1e3 * tolerance(born)  # six iterations, each with its inverses
    np.testing.assert_allclose(history, true, rtol=tol)
    assert mixture.means.dtype == born.zeros((1,)).dtype
    oracle.assert_close(host(mixture.means), want.means, tol, "means")
    oracle.assert_close(host(mixture.covariances), want.covariances, tol, "covariances")
