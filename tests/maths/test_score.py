"""maths/score.py in worlds where the score is known: normals, two points, mixtures of normals."""

from functools import cache, partial
from math import exp, expm1, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.streams import Stream
from scratchgen.maths import score as s
from scratchgen.maths.densities import Mixture
from scratchgen.maths.forward_process import q_sample
from scratchgen.maths.parameterisations import Score, reverse_mean
from scratchgen.maths.schedules import Schedule
from scratchgen.testing import oracle
from scratchgen.testing.monte_carlo import assert_mean, default_resolution
from scratchgen.testing.strategies import seeds, sizes

from support import NUMPY, host, normals, on_every_backend, tolerance

LEVELS = st.floats(-6.0, -0.05)
TWO = Mixture(NUMPY, [0.3, 0.7], [[-1.5], [1.0]], [[[0.2]], [[0.1]]])


@st.composite
def mixtures(draw):
    """Mixtures of one to three normals on the line."""
    k = draw(sizes(3))
    weights = np.asarray(draw(st.lists(st.floats(0.1, 1.0), min_size=k, max_size=k)))
    means = draw(st.lists(st.floats(-2.0, 2.0), min_size=k, max_size=k))
    variances = draw(st.lists(st.floats(0.2, 2.0), min_size=k, max_size=k))
    shape = (k, 1, 1)
    return Mixture(
        NUMPY, weights / weights.sum(), np.reshape(means, (k, 1)), np.reshape(variances, shape)
    )


def line(n=2401, end=12.0):
    """x (n, 1) on [-end, end] and trapezoid weights (n,), exact where densities are smooth."""
    x = np.linspace(-end, end, n)[:, None]
    return x, np.full(n, 2.0 * end / (n - 1))


def hermite(nodes: int):
    """Standard normal nodes and probabilities."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    return z, w / w.sum()


def every(value: float, n: int):
    return np.full(n, value)


def variance_at(level, data_variance):
    """Var x_t = ᾱ s² + 1 - ᾱ."""
    return np.exp(level) * data_variance - np.expm1(level)


@pytest.mark.equation("SCORE-1")
@given(mixtures(), LEVELS)
def test_the_score_is_the_slope_of_the_log_density(world, level):
    """By central differences; E[s] = 0 and E[x s] = -1 by parts, whatever the law."""
    noised, (x, weight) = world.noised(level), line()
    step = 1e-5
    slope = (noised.log_prob(x + step) - noised.log_prob(x - step)) / (2.0 * step)
    score = noised.score(x)
    np.testing.assert_allclose(score[:, 0], slope, rtol=1e-6, atol=1e-6)
    mass = weight * np.exp(noised.log_prob(x))
    assert mass.sum() == pytest.approx(1.0, abs=1e-12)
    assert mass @ score[:, 0] == pytest.approx(0.0, abs=1e-11)
    assert mass @ (x * score)[:, 0] == pytest.approx(-1.0, abs=1e-11)


def normal_world(mean, variance, level):
    """Data N(m, s²): the law of x_t, its mean and its variance V_t."""
    world = Mixture(NUMPY, [1.0], [[mean]], [[[variance]]]).noised(level)
    return world, exp(0.5 * level) * mean, variance_at(level, variance)


@pytest.mark.equation("SCORE-1")
@given(seeds(), sizes(), st.floats(-2.0, 2.0), st.floats(0.2, 4.0), LEVELS)
def test_the_score_of_normal_data_is_linear(seed, n, mean, variance, level):
    """s = -(x - √ᾱ m)/V_t, so E s = 0 and E s² = 1/V_t, the Fisher information, by quadrature."""
    world, centre, total = normal_world(mean, variance, level)
    x = normals(seed, n, 1)
    np.testing.assert_allclose(world.score(x), (centre - x) / total, rtol=1e-11, atol=1e-12)
    z, w = hermite(3)
    score = world.score((centre + sqrt(total) * z)[:, None])[:, 0]
    assert w @ score == pytest.approx(0.0, abs=1e-13)
    assert w @ score**2 == pytest.approx(1.0 / total, rel=1e-12)


@pytest.mark.equation("SCORE-1")
def test_the_second_moment_of_the_score_is_the_fisher_information():
    world, centre, total = normal_world(0.7, 2.0, -1.0)

    def squares(n, look):
        eps = Stream(1, NUMPY).at(look).normal((n, 1))
        return world.score(centre + sqrt(total) * eps)[:, 0] ** 2

    assert_mean(squares, 1.0 / total, default_resolution(1.0 / total, sqrt(2.0) / total))


def two_points(weight: float, x: float, variance: float):
    """E[θ | x] for θ = -2 with that weight, else 1: by Bayes' rule and by Tweedie's formula."""
    joint = [
        w * exp(-0.5 * (x - p) ** 2 / variance) for w, p in ((weight, -2.0), (1 - weight, 1.0))
    ]
    bayes = (-2.0 * joint[0] + joint[1]) / sum(joint)
    law = Mixture(NUMPY, [weight, 1 - weight], [[-2.0], [1.0]], every(variance, 2)[:, None, None])
    at = np.asarray([[x]])
    return bayes, float(s.tweedie(at, law.score(at), every(variance, 1))[0, 0])


@pytest.mark.equation("SCORE-2")
@given(st.floats(0.01, 0.99), st.floats(-4.0, 4.0), st.floats(0.1, 3.0))
def test_tweedie_with_a_prior_on_two_points(weight, x, variance):
    bayes, tweedie = two_points(weight, x, variance)
    assert tweedie == pytest.approx(bayes, rel=1e-11, abs=1e-11)


@pytest.mark.equation("SCORE-2")
@given(seeds(), sizes(), st.floats(-3.0, 3.0), st.floats(0.1, 3.0), st.floats(0.1, 3.0))
def test_tweedie_with_a_normal_prior(seed, n, mean, prior, variance):
    x = normals(seed, n, 3)
    got = s.tweedie(x, -(x - mean) / (prior + variance), every(variance, n))
    want = (prior * x + variance * mean) / (prior + variance)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.equation("ERR-25")
@pytest.mark.equation("SCORE-2")
def test_the_posterior_mean_depends_on_the_prior_but_only_through_the_marginal():
    """At x = 0.3, σ² = 0.5: three priors, three means; the source says the prior has no part."""
    means = [two_points(weight, 0.3, 0.5)[1] for weight in (0.3, 0.9)]
    x = np.asarray([[0.3]])
    means.append(float(s.tweedie(x, -x / 1.5, every(0.5, 1))[0, 0]))
    assert means == pytest.approx([0.9895, 0.7931, 0.2000], abs=5e-5)


@pytest.mark.equation("SCORE-3")
@pytest.mark.equation("SCORE-4")
@given(mixtures(), LEVELS, st.lists(st.floats(-4.0, 4.0), min_size=1, max_size=4))
def test_the_score_gives_the_posterior_means_of_data_and_noise(world, level, places):
    """Against the mixture's own conditioning, which uses no score."""
    x, n = np.asarray(places)[:, None], len(places)
    score, at = world.noised(level).score(x), every(level, n)
    mean = world.posterior_mean(x, level)
    np.testing.assert_allclose(s.denoised(x, score, at), mean, rtol=1e-9, atol=1e-9)
    eps = (x - exp(0.5 * level) * mean) / sqrt(-expm1(level))
    np.testing.assert_allclose(s.eps_from_score(score, at)[0], eps, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(s.score_from_eps(eps, at)[0], score, rtol=1e-8, atol=1e-8)


@pytest.mark.equation("SCORE-3")
@given(seeds(), st.floats(0.2, 4.0), LEVELS)
def test_denoising_leaves_the_least_mean_squared_error(seed, variance, level):
    """Data N(0, s²): E(x₀ - x̂₀)² = s² (1-ᾱ)/V_t, and the error does not depend on x_t."""
    total = float(variance_at(level, variance))

    def residual(n, look):
        z = Stream(seed, NUMPY).at(look).normal((n, 2))
        x0, eps = sqrt(variance) * z[:, :1], z[:, 1:]
        x_t, _ = q_sample(x0, eps, every(level, n))
        products = np.stack([z[:, 0] ** 2 - 1.0, z[:, 1] ** 2 - 1.0, z[:, 0] * z[:, 1]], axis=1)
        error = x0 - s.denoised(x_t, -x_t / total, every(level, n))
        return error[:, 0], x_t[:, 0], products

    def squares(n, look):
        error, _, products = residual(n, look)
        return error**2, products

    def against_x_t(n, look):
        error, x_t, products = residual(n, look)
        return error * x_t, products

    least = variance * -expm1(level) / total
    assert_mean(squares, least, resolution=1e-9 * variance)
    assert_mean(against_x_t, 0.0, resolution=1e-9 * max(variance, 1.0))


@pytest.mark.equation("SCORE-3")
def test_posterior_mean_of_a_mixture_in_plain_simulation():
    """The error of denoising is uncorrelated with any function of x_t."""
    level = -1.0
    noised, (x, weight) = TWO.noised(level), line()
    mass = weight * np.exp(noised.log_prob(x))
    variance = TWO.posterior_covariance(x, level)[:, 0, 0]

    @cache
    def errors(n, look):
        stream = Stream(3, NUMPY).at(look)
        x0, eps, at = TWO.sample(n, stream), stream.at("eps").normal((n, 1)), every(level, n)
        x_t, _ = q_sample(x0, eps, at)
        return (x0 - s.denoised(x_t, noised.score(x_t), at))[:, 0], x_t

    def product(n, look, f):
        error, x_t = errors(n, look)
        return error * f(x_t)[:, 0]

    for f in (lambda x: x, lambda x: np.cos(2.0 * x)):
        spread = sqrt(mass @ (variance * f(x)[:, 0] ** 2))
        assert_mean(partial(product, f=f), 0.0, default_resolution(0.0, spread))


@pytest.mark.equation("SCORE-4")
@given(seeds(), sizes(), st.floats(-2.0, 2.0), st.floats(0.1, 4.0), LEVELS)
def test_the_best_noise_prediction_for_normal_data(seed, n, mean, variance, level):
    """ε*(x, t) = √(1-ᾱ) (x - √ᾱ m)/V_t."""
    x, total = normals(seed, n, 2), variance_at(level, variance)
    gap = x - exp(0.5 * level) * mean
    eps, _ = s.eps_from_score(-gap / total, every(level, n))
    np.testing.assert_allclose(eps, sqrt(-expm1(level)) * gap / total, rtol=1e-12)


@pytest.mark.equation("SCORE-3")
@pytest.mark.equation("SCORE-4")
@given(seeds(), sizes(), LEVELS, st.floats(0.01, 3.0))
def test_a_net_that_predicts_the_score_is_read_by_the_same_formulas(seed, n, before, gap):
    net, (x_t, output, eps) = Score(), (normals(seed + i, n, 2) for i in range(3))
    at = now, _ = every(before - gap, n), every(before, n)
    clean, noise = net.clean(output, x_t, *at)[0], net.epsilon(output, x_t, *at)[0]
    np.testing.assert_allclose(clean, s.denoised(x_t, output, now), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(noise, s.eps_from_score(output, now)[0], rtol=1e-13)
    target = net.target(x_t, eps, *at)
    np.testing.assert_allclose(target, s.score_from_eps(eps, now)[0], rtol=1e-13)


CANDIDATES = (lambda x: 0.0 * x, lambda x: -0.7 * x + 0.2, lambda x: np.sin(2.0 * x) - x)


@pytest.mark.equation("SCORE-5")
@pytest.mark.parametrize("level", [-0.5, -1.5, -4.0])
def test_denoising_score_matching_differs_from_score_matching_by_a_constant(level):
    """Exactly, by quadrature over x₀ and ε: 1/(1-ᾱ) - E s², the same for three candidates."""
    noised, (z, w) = TWO.noised(level), hermite(120)
    x0, p0, spread = [], [], np.sqrt([0.2, 0.1])
    for weight, mean, sd in zip((0.3, 0.7), (-1.5, 1.0), spread, strict=True):
        x0.append(mean + sd * z)
        p0.append(weight * w)
    x0, eps = (a.reshape(-1, 1) for a in np.meshgrid(np.concatenate(x0), z, indexing="ij"))
    p = np.outer(np.concatenate(p0), w).ravel()
    at = every(level, len(p))
    x_t, _ = q_sample(x0, eps, at)
    true = noised.score(x_t)
    constant = 1.0 / -expm1(level) - p @ true[:, 0] ** 2
    for f in (*CANDIDATES, noised.score):
        matching, _ = s.denoising_score_matching(f(x_t), eps, at)
        assert p @ matching - p @ (f(x_t) - true)[:, 0] ** 2 == pytest.approx(constant, abs=1e-12)


@pytest.mark.equation("SCORE-5")
def test_denoising_score_matching_in_plain_simulation():
    level = -1.5
    noised, (x, weight) = TWO.noised(level), line()
    mass = weight * np.exp(noised.log_prob(x))
    constant = 1.0 / -expm1(level) - mass @ noised.score(x)[:, 0] ** 2

    @cache
    def draws(n, look):
        stream = Stream(5, NUMPY).at(look)
        x0, eps, at = TWO.sample(n, stream), stream.at("eps").normal((n, 1)), every(level, n)
        x_t, _ = q_sample(x0, eps, at)
        return x_t, eps, at, noised.score(x_t)

    def differences(n, look, f):
        x_t, eps, at, true = draws(n, look)
        matching, _ = s.denoising_score_matching(f(x_t), eps, at)
        return matching - (f(x_t) - true)[:, 0] ** 2

    for f in CANDIDATES:
        assert_mean(partial(differences, f=f), constant, default_resolution(constant, 1.2))


@pytest.mark.equation("SCORE-3")
@pytest.mark.equation("SCORE-4")
@pytest.mark.equation("SCORE-5")
@given(seeds(), sizes(), sizes(), LEVELS)
def test_pullbacks(seed, n, d, level):
    a, b, at = normals(seed, n, d), normals(seed + 1, n, d), every(level, n)
    oracle.check_pullback(lambda score: s.eps_from_score(score, at), a)
    oracle.check_pullback(lambda eps: s.score_from_eps(eps, at), a)
    oracle.check_pullback(lambda score: s.denoising_score_matching(score, b, at), a)


@pytest.mark.equation("SCORE-6")
@given(seeds(), sizes(), LEVELS, st.floats(0.01, 3.0), st.floats(0.0, 2.0))
def test_the_reverse_step_in_terms_of_noise_is_ancestral_sampling(seed, n, before, gap, variance):
    x, eps, z = (normals(seed + i, n, 2) for i in range(3))
    now, earlier = every(before - gap, n), every(before, n)
    score, _ = s.score_from_eps(eps, now)
    got = s.reverse_step(x, score, z, every(variance, n), now, earlier)
    want = reverse_mean(x, eps, now, earlier) + sqrt(variance) * z
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.equation("SCORE-6")
@given(mixtures(), LEVELS, st.floats(0.01, 2.0))
def test_one_reverse_step_keeps_mean_and_variance_exactly(world, before, gap):
    """With the exact score the step's mean is E[x_s | x_t]; with σ² = E Var[x_s | x_t], Var too."""
    x, weight = line()
    n = len(x)
    now, earlier = world.noised(before - gap), world.noised(before)
    at = every(before - gap, n), every(before, n)
    mean = s.reverse_step(x, now.score(x), 0.0 * x, every(0.0, n), *at)
    np.testing.assert_allclose(mean, earlier.posterior_mean(x, -gap), rtol=1e-9, atol=1e-8)

    mass = weight * np.exp(now.log_prob(x))
    sigma2 = float(mass @ earlier.posterior_covariance(x, -gap)[:, 0, 0])
    moved = s.reverse_step(x, now.score(x), np.ones_like(x), every(sigma2, n), *at) - mean
    np.testing.assert_allclose(moved, sqrt(sigma2), rtol=1e-9)
    first = mass @ mean[:, 0]
    second = mass @ (mean[:, 0] - first) ** 2 + sigma2
    assert first == pytest.approx(earlier.mean[0], abs=1e-9)
    assert second == pytest.approx(earlier.covariance[0, 0], rel=1e-9)


def chain_variances(schedule, variances, slopes):
    """Var Y_t, t = 0..T, of a reverse chain with score slopes[t]·x from N(0, 1), without sampling.

    The chain is then linear in x_T and in every z_t: it is fed unit inputs, and the variance is
    the sum of the squared outputs.
    """
    steps = schedule.steps
    inputs = np.eye(steps + 1)
    levels = schedule.log_alpha_bar[:, None]
    slope = dict(zip(schedule.log_alpha_bar.tolist(), slopes.tolist(), strict=True))
    path = s.reverse_chain(
        lambda x, level: slope[float(level[0])] * x,
        inputs[0],
        inputs[1:],
        variances[:, None],
        levels,
    )
    return (path**2).sum(axis=1)


@pytest.mark.equation("SCORE-6")
@pytest.mark.equation("SCORE-8")
def test_the_exact_score_of_normal_data_generates_them():
    """Data N(0, 4) and N(0, 1), T = 1000: the variance of samples for three choices of σ²."""
    schedule = Schedule.linear(1000)
    for data, choices in ((4.0, (3.99057, 3.97478, 3.9999)), (1.0, (0.9999, 0.99107, 0.9999))):
        total = variance_at(schedule.log_alpha_bar, data)
        best = schedule.beta * np.concatenate([[1.0], total[:-1]]) / total
        for sigma2, want in zip(
            (schedule.beta, schedule.posterior_variance, best), choices, strict=True
        ):
            got = chain_variances(schedule, sigma2, -1.0 / total)
            assert got[0] == pytest.approx(want, abs=6e-5)
            assert np.abs(got / total - 1.0).max() < 0.011


def quadrature_moments(steps):
    """Mean and variance of Y_t for the mixture's exact score and σ² = β, t = 0..T, on a grid."""
    schedule, (x, _) = Schedule.linear(steps), line(481, 6.0)
    level, n = schedule.log_alpha_bar, len(x)
    mass, moments = np.exp(-0.5 * x[:, 0] ** 2), []
    for t in range(steps, 0, -1):
        score, at = TWO.noised(level[t]).score(x), (every(level[t], n), every(level[t - 1], n))
        mean = s.reverse_step(x, score, 0.0 * x, every(0.0, n), *at)[:, 0]
        kernels = np.exp(-0.5 * (x - mean) ** 2 / schedule.beta[t])
        last = mass / mass.sum()
        mass = kernels @ (mass / kernels.sum(axis=0))
        at, mass_at = (x[:, 0], mass / mass.sum()) if t > 1 else (mean, last)
        first = mass_at @ at
        moments.append((first, mass_at @ (at - first) ** 2))
    return np.asarray(moments[::-1])


@pytest.mark.equation("SCORE-6")
def test_reverse_marginals_of_a_mixture_approach_the_forward_ones():
    """Doubling the steps halves what is wrong with the variance, at every third of the way."""
    errors = []
    for steps in (20, 40, 80):
        moments, level = quadrature_moments(steps), Schedule.linear(steps).log_alpha_bar
        times = [0, steps // 4, steps // 2]
        worlds = [TWO.noised(level[t]) for t in times]
        means = [world.mean[0] for world in worlds]
        np.testing.assert_allclose(moments[times, 0], means, atol=2e-3)
        errors.append([world.covariance[0, 0] for world in worlds] - moments[times, 1])
    ratios = np.asarray(errors[:-1]) / np.asarray(errors[1:])
    assert np.all((ratios > 1.8) & (ratios < 2.2)), ratios
    assert errors[-1][0] < 0.013


@pytest.mark.equation("SCORE-6")
@pytest.mark.equation("SCORE-8")
def test_the_reverse_chain_in_plain_simulation():
    """Samples by the mixture's exact score, 20 steps, have the mean and variance of quadrature."""
    steps = 20
    schedule, (mean, variance) = Schedule.linear(steps), quadrature_moments(steps)[0]
    levels = schedule.log_alpha_bar[:, None]

    @cache
    def samples(n, look):
        noise = np.moveaxis(Stream(8, NUMPY).at(look).normal((n, steps + 1)), 0, -1)[..., None]
        score = lambda x, level: TWO.noised(float(level[0])).score(x)
        path = s.reverse_chain(score, noise[0], noise[1:], schedule.beta[:, None], levels)
        return path[0, :, 0]

    assert_mean(samples, mean, resolution=0.02 * sqrt(variance), first=2**18)
    squares = lambda n, look: (samples(n, look) - mean) ** 2
    assert_mean(squares, variance, resolution=0.02 * variance, first=2**18)


@pytest.mark.equation("SCORE-6")
@pytest.mark.equation("SCORE-8")
def test_the_reverse_chain_takes_its_rows_by_t_and_ends_without_noise():
    """Step by step; the noise and the variance of the last step are poison."""
    levels = np.asarray([[0.0, 0.0], [-0.3, -0.1], [-1.0, -0.7], [-3.0, -2.0]])
    x_last, noise = normals(0, 2, 4), normals(1, 3, 2, 4)
    variances = np.asarray([[np.nan] * 2, [np.nan] * 2, [0.2, 0.3], [0.5, 0.4]])
    score = lambda x, level: level[:, None] * x
    path = s.reverse_chain(score, x_last, noise, variances, levels)
    step = lambda x, z, v, t: s.reverse_step(x, score(x, levels[t]), z, v, levels[t], levels[t - 1])
    x2 = step(x_last, noise[2], variances[3], 3)
    x1 = step(x2, noise[1], variances[2], 2)
    x0 = step(x1, 0.0 * noise[0], np.zeros(2), 1)
    np.testing.assert_array_equal(path, np.stack([x0, x1, x2, x_last]))


@pytest.mark.equation("SCORE-8")
@pytest.mark.equation("SCORE-5")
def test_a_fitted_score_generates_better_the_more_data_it_saw():
    """A linear score fitted to N(0, 2) by denoising score matching: errors fall like 1/√n."""
    schedule = Schedule.linear(20)
    level = schedule.log_alpha_bar[1:]
    true = -1.0 / variance_at(schedule.log_alpha_bar, 2.0)
    sigma2 = schedule.beta
    exact = chain_variances(schedule, sigma2, true)[0]

    def fitted(n, seed):
        stream = Stream(seed, NUMPY).at(n)
        x0 = sqrt(2.0) * stream.at("data").normal((n,))
        slopes = [0.0]
        for t, now in enumerate(level, start=1):
            eps = stream.at(t).normal((n, 1))
            x_t, _ = q_sample(x0[:, None], eps, every(now, n))
            slope = float((x_t * -eps).sum() / (x_t**2).sum()) / sqrt(-expm1(now))
            _, pullback = s.denoising_score_matching(slope * x_t, eps, every(now, n))
            gradient = pullback(np.ones(n)) * x_t
            assert abs(gradient.sum()) < 1e-9 * np.abs(gradient).sum()  # the loss is at its least
            slopes.append(slope)
        slopes = np.asarray(slopes)
        off = slopes[1:] / true[1:] - 1.0
        return np.mean(off**2), (chain_variances(schedule, sigma2, slopes)[0] - exact) ** 2

    errors = [np.sqrt(np.mean([fitted(n, k) for k in range(8)], axis=0)) for n in (50, 5000)]
    slope, generated = errors[0] / errors[1]
    assert 5.0 < slope < 20.0
    assert 3.0 < generated < 30.0


def rate(t):
    """β(t) from 0.1 to 20 on [0, 1], and the level -∫β."""
    return 0.1 + 19.9 * t, -(0.1 * t + 9.95 * t * t)


@pytest.mark.equation("SCORE-7")
@pytest.mark.parametrize(("steps", "flow", "sde"), [(100, 1.9948, 2.0244), (1000, 1.9994, 2.0024)])
def test_euler_recursions_of_flow_and_reverse_diffusion(steps, flow, sde):
    """Data N(0, 2) from N(0, 1): every step multiplies x by a number, read off at x = 1."""
    by_flow = by_sde = 1.0
    h, one = 1.0 / steps, np.ones((1, 1))
    for i in range(steps, 0, -1):
        beta, level = rate(i * h)
        at = (one, -one / variance_at(level, 2.0), every(beta, 1))
        by_flow *= (1.0 - h * s.probability_flow_drift(*at)[0, 0]) ** 2
        by_sde = by_sde * (1.0 - h * s.reverse_sde_drift(*at)[0, 0]) ** 2 + h * beta
    assert by_flow == pytest.approx(flow, abs=5e-5)
    assert by_sde == pytest.approx(sde, abs=5e-5)


@pytest.mark.equation("SCORE-7")
@given(mixtures(), st.floats(0.1, 0.9))
def test_flow_and_reverse_diffusion_carry_the_forward_marginals(world, t):
    """∂p/∂t = -∂(f p) for the flow's drift f, and -∂(f p) - ½ β ∂²p backwards, by quadrature.

    Tested through moments: d/dt E[h(x_t)] = E[f h'] = E[f h' - ½ β h''] for h = x, x², sin x.
    """
    x, weight = line()
    beta, level = rate(t)
    expect = lambda now, y: float(weight @ (np.exp(world.noised(now).log_prob(x)) * y[:, 0]))
    score, rates = world.noised(level).score(x), every(beta, len(x))
    flow, back = (f(x, score, rates) for f in (s.probability_flow_drift, s.reverse_sde_drift))
    for h, first, second in (
        (x, np.ones_like(x), 0.0 * x),
        (x * x, 2.0 * x, 2.0 + 0.0 * x),
        (np.sin(x), np.cos(x), -np.sin(x)),
    ):
        step = 1e-4
        change = (expect(rate(t + step)[1], h) - expect(rate(t - step)[1], h)) / (2.0 * step)
        scale = {"rel": 1e-4, "abs": 1e-4}
        assert expect(level, flow * first) == pytest.approx(change, **scale)
        assert expect(level, back * first - 0.5 * beta * second) == pytest.approx(change, **scale)


@on_every_backend
def test_every_backend_agrees(born):
    x, score, z = (normals(i, 3, 2) for i in range(3))
    now, before = np.asarray([-0.4, -1.0, -3.0]), np.asarray([0.0, -0.5, -2.5])
    levels = np.stack([0.0 * now, before - 0.1, now - 0.2])

    def everything(made):
        a, b, c = (made.asarray(v) for v in (x, score, z))
        as64 = lambda v: made.xp.asarray(v, dtype=made.xp.float64, device=made.device)
        at, earlier, variance = as64(now), as64(before), as64(np.asarray([0.0, 0.3, 2.0]))
        d_loss = made.asarray(np.asarray([1.0, -2.0, 0.5]))
        yield s.tweedie(a, b, variance)
        yield s.denoised(a, b, at)
        for y, pullback in (s.eps_from_score(b, at), s.score_from_eps(c, at)):
            yield from (y, pullback(a))
        loss, pullback = s.denoising_score_matching(b, c, at)
        yield from (loss, pullback(d_loss))
        yield s.reverse_step(a, b, c, variance, at, earlier)
        noise, sigma2 = made.asarray(np.stack([x, z])), as64(0.1 + 0.0 * levels)
        yield s.reverse_chain(lambda y, level: -0.5 * y, a, noise, sigma2, as64(levels))
        yield s.reverse_sde_drift(a, b, variance)
        yield s.probability_flow_drift(a, b, variance)

    for got, want in zip(everything(born), everything(NUMPY), strict=True):
        assert got.dtype == born.zeros((1,)).dtype
        oracle.assert_close(host(got), want, 20 * tolerance(born), "value")
