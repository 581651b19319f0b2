"""maths/densities.py against integrals, derivatives, convolutions, Bayes' rule and simulation."""

from math import exp, expm1, inf, log, nan, sqrt
from re import escape

import autograd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from scratchgen.core.streams import Stream
from scratchgen.maths import densities
from scratchgen.maths.densities import Mixture
from scratchgen.maths.gaussian import Gaussian
from scratchgen.testing import oracle
from scratchgen.testing.monte_carlo import assert_law, assert_mean
from scratchgen.testing.strategies import seeds, sizes

from support import NUMPY, host, normals, on_every_backend, tolerance

LEVELS = st.floats(-6.0, -1e-3)


def mixture_of(seed, k, dims, born=NUMPY):
    """A random mixture: no component is special, no covariance is diagonal."""
    weights = np.exp(0.7 * normals(seed, k))
    a = normals(seed + 1, k, dims, dims + 2) / (dims + 2.0) ** 0.5
    covariances = 0.5 * a @ a.transpose(0, 2, 1) + 0.05 * np.eye(dims)
    return Mixture(born, weights / weights.sum(), 1.5 * normals(seed + 2, k, dims), covariances)


def mixtures(most_dims=3):
    return st.builds(mixture_of, st.integers(0, 2**60), sizes(4), sizes(most_dims))


def line(n=4001, span=14.0):
    """Equally spaced x (n, 1) and the weight of each: the trapezoid rule on a wide interval."""
    return np.linspace(-span, span, n)[:, None], 2.0 * span / (n - 1)


def normal_log_prob(x, mean, covariance):
    """Written without our code."""
    gap = x - mean
    distance = (gap * np.linalg.solve(covariance, gap.T).T).sum(axis=-1)
    return -0.5 * (distance + np.linalg.slogdet(2.0 * np.pi * covariance)[1])


@given(mixtures(), seeds())
def test_a_mixture_is_the_sum_of_its_normals(mixture, seed):
    x = 2.0 * normals(seed, 6, mixture.dims)
    parts = zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
    joint = np.stack([log(w) + normal_log_prob(x, m, s) for w, m, s in parts], axis=-1)
    total = np.logaddexp.reduce(joint, axis=-1)
    np.testing.assert_allclose(mixture.log_prob(x), total, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(mixture.log_joint(x), joint, rtol=1e-11, atol=1e-11)
    shares = np.exp(joint - total[:, None])
    np.testing.assert_allclose(mixture.responsibilities(x), shares, rtol=1e-9, atol=1e-12)


@given(mixtures(most_dims=2))
def test_densities_integrate_to_one(mixture):
    x, weight = line(201, 10.0)
    if mixture.dims == 2:
        x, weight = np.stack(np.meshgrid(x, x), axis=-1).reshape(-1, 2), weight**2
    assert weight * np.exp(mixture.log_prob(x)).sum() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.equation("SCORE-1")
@given(mixtures(most_dims=4), seeds())
def test_one_component_is_a_normal(mixture, seed):
    mean, covariance = mixture.means[0], mixture.covariances[0]
    one, normal = Mixture(NUMPY, [1.0], [mean], [covariance]), Gaussian(mean, covariance)
    x = normals(seed, 2, 3, mixture.dims)
    np.testing.assert_allclose(one.log_prob(x), normal.log_prob(x), rtol=1e-12, atol=1e-12)
    oracle.assert_close(one.score(x), normal.score(x), 1e-12, "score")
    np.testing.assert_allclose(one.mean, mean)
    np.testing.assert_allclose(one.covariance, covariance)


@given(mixtures(), seeds())
def test_a_component_of_weight_zero_is_absent(mixture, seed):
    x = normals(seed, 4, mixture.dims)
    means, covariances = mixture.means[[0, *range(len(mixture.means))]], mixture.covariances
    more = Mixture(
        NUMPY, [0.0, *mixture.weights], means, np.concatenate([covariances[:1], covariances])
    )
    np.testing.assert_allclose(more.log_prob(x), mixture.log_prob(x), rtol=1e-13)
    assert not np.any(more.responsibilities(x)[:, 0])
    assert np.all(np.isfinite(more.score(x)))


@pytest.mark.equation("SCORE-1")
@given(mixtures(), seeds())
def test_the_score_is_the_gradient_of_the_log_density(mixture, seed):
    x = 2.0 * normals(seed, 5, mixture.dims)
    want = autograd.grad(lambda v: mixture.log_prob(v).sum())(x)
    oracle.assert_close(mixture.score(x), want, 1e-10, "score")


@pytest.mark.equation("SCORE-1")
@given(mixtures(most_dims=1))
def test_the_score_has_mean_zero_and_stein_s_identity(mixture):
    """∫ p s = 0 and ∫ p s x = -1."""
    x, weight = line()
    mass = weight * np.exp(mixture.log_prob(x))
    score = mixture.score(x)[:, 0]
    assert mass @ score == pytest.approx(0.0, abs=1e-9)
    assert mass @ (score * x[:, 0]) == pytest.approx(-1.0, abs=1e-9)


@pytest.mark.equation("SCORE-1")
@given(mixtures(), st.floats(2.0, 7.0))
def test_far_away_the_score_stays_that_of_a_normal(mixture, log_distance):
    x = np.full((1, mixture.dims), 10.0**log_distance)
    parts = zip(mixture.means, mixture.covariances, strict=True)
    pulls = np.stack([-np.linalg.solve(s, (x - m).T).T[0] for m, s in parts])
    shares = mixture.responsibilities(x)
    assert shares.sum() == pytest.approx(1.0, rel=1e-14)
    oracle.assert_close(mixture.score(x), shares @ pulls, 1e-10, "score")


def test_beyond_the_range_of_squares_the_density_is_zero():
    """No number says how the components share such a point, so the score is none."""
    mixture, far = mixture_of(1, 2, 2), np.full((1, 2), 1e200)
    with np.errstate(over="ignore", invalid="ignore"):
        assert mixture.log_prob(far) == -inf
        assert np.all(np.isnan(mixture.score(far)))


@pytest.mark.equation("DDPM-4")
@given(mixtures(most_dims=1), LEVELS)
def test_the_noised_marginal_is_a_convolution(mixture, level):
    """∫ p(x₀) N(x; √ᾱ x₀, 1-ᾱ) dx₀ by the trapezoid rule."""
    x0, weight = line(8001)
    x = np.linspace(-4.0, 4.0, 7)
    signal, variance = exp(0.5 * level), -expm1(level)
    kernel = np.exp(-0.5 * (x[:, None] - signal * x0[:, 0]) ** 2 / variance)
    kernel /= (2.0 * np.pi * variance) ** 0.5
    want = weight * kernel @ np.exp(mixture.log_prob(x0))
    got = np.exp(mixture.noised(level).log_prob(x[:, None]))
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.equation("DDPM-4")
@given(mixtures(), LEVELS, LEVELS, seeds())
def test_levels_add(mixture, first, second, seed):
    x = normals(seed, 4, mixture.dims)
    twice, once = mixture.noised(first).noised(second), mixture.noised(first + second)
    np.testing.assert_allclose(twice.log_prob(x), once.log_prob(x), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(mixture.noised(0.0).log_prob(x), mixture.log_prob(x), rtol=1e-12)
    noise = mixture.noised(-inf).log_prob(x)
    np.testing.assert_allclose(noise, normal_log_prob(x, 0.0, np.eye(mixture.dims)), rtol=1e-12)


@pytest.mark.equation("SCORE-3")
@given(mixtures(), LEVELS, seeds())
def test_the_posterior_mean_obeys_tweedie(mixture, level, seed):
    """E[x₀ | x] = (x + (1-ᾱ) s) / √ᾱ: the right-hand side knows the marginal only."""
    x = 1.5 * normals(seed, 5, mixture.dims)
    score = mixture.noised(level).score(x)
    want = (x - expm1(level) * score) / exp(0.5 * level)
    oracle.assert_close(mixture.posterior_mean(x, level), want, 1e-10, "E[x0 | x]")


@pytest.mark.equation("SCORE-3")
@given(mixtures(), LEVELS, seeds())
def test_the_posterior_covariance_is_the_slope_of_the_posterior_mean(mixture, level, seed):
    """Tweedie's formula once more derived: Cov[x₀ | x] = (1-ᾱ)/√ᾱ ∂E[x₀ | x]/∂x."""
    x = 1.5 * normals(seed, mixture.dims)
    slope = autograd.jacobian(lambda v: mixture.posterior_mean(v, level))(x)
    want = -expm1(level) * exp(-0.5 * level) * slope
    oracle.assert_close(mixture.posterior_covariance(x, level), want, 1e-10, "covariance")


@pytest.mark.equation("DDPM-7")
@given(mixtures(), LEVELS, LEVELS, seeds())
def test_the_reverse_kernel_obeys_bayes(mixture, first, step, seed):
    """q(x_s | x_t) q(x_t) = q(x_s) q(x_t | x_s) at every pair."""
    x_s, x_t = normals(seed, 5, mixture.dims), normals(seed + 1, mixture.dims)
    now, later = mixture.noised(first), mixture.noised(first + step)
    kernel = now.posterior(x_t, step)
    forward = normal_log_prob(x_t, exp(0.5 * step) * x_s, -expm1(step) * np.eye(mixture.dims))
    got = kernel.log_prob(x_s) + later.log_prob(x_t)
    np.testing.assert_allclose(got, now.log_prob(x_s) + forward, rtol=1e-9, atol=1e-9)
    oracle.assert_close(now.posterior_mean(x_t, step), kernel.mean, 1e-12, "mean")
    oracle.assert_close(now.posterior_covariance(x_t, step), kernel.covariance, 1e-11, "cov")


@pytest.mark.equation("DDPM-7")
def test_the_reverse_kernel_tends_to_a_normal_of_variance_beta():
    now = Mixture(NUMPY, [0.3, 0.7], [[-2.0], [1.0]], [[[0.3]], [[0.5]]]).noised(-0.5)
    previous = inf
    for beta in (0.1, 0.03, 0.01, 0.003, 0.001):
        kernel = now.posterior(np.zeros(1), log(1.0 - beta))
        apart, inner = (kernel.means - kernel.mean)[:, 0], kernel.covariances[:, 0, 0]
        fourth = kernel.weights @ (apart**4 + 6.0 * apart**2 * inner + 3.0 * inner**2)
        variance = float(kernel.covariance[0, 0])
        excess, ratio = abs(fourth / variance**2 - 3.0), variance / beta
        assert excess < previous / 5.0  # it vanishes with a power of β
        assert abs(ratio - 1.0) < 3.0 * beta
        previous = excess
    assert previous < 1e-5


@given(mixtures(), seeds())
def test_without_noise_the_posterior_is_the_point_itself(mixture, seed):
    x = normals(seed, 3, mixture.dims)
    oracle.assert_close(mixture.posterior_mean(x, 0.0), x, 1e-9, "mean")
    np.testing.assert_allclose(mixture.posterior_covariance(x, 0.0), 0.0, atol=1e-25)
    with pytest.raises(ValueError, match="positive definite"):
        mixture.posterior(x[0], 0.0)
    prior = np.broadcast_to(mixture.mean, x.shape)
    oracle.assert_close(mixture.posterior_mean(x, -inf), prior, 1e-12, "mean of pure noise")


@pytest.mark.equation("DDPM-4")
def test_ancestral_samples_have_the_law_of_the_noised_marginal():
    """x₀, then √ᾱ x₀ + √(1-ᾱ) ε: the variance, a histogram bar, and the whole distribution."""
    mixture, level = mixture_of(1, 3, 1), -0.8
    marginal = mixture.noised(level)
    spreads = np.sqrt(marginal.covariances[:, 0, 0])
    middle, variance = float(marginal.mean[0]), float(marginal.covariance[0, 0])

    def below(x):
        return ndtr((x[:, None] - marginal.means[:, 0]) / spreads) @ marginal.weights

    def drawn(n, look):
        stream = Stream(1, NUMPY).at(look)
        eps = stream.at("eps").normal((n, 1))
        return (exp(0.5 * level) * mixture.sample(n, stream) + sqrt(-expm1(level)) * eps)[:, 0]

    def in_bar(n, look):
        return 1.0 * (np.abs(drawn(n, look) - middle) < 0.5)

    ends = below(np.asarray([middle - 0.5, middle + 0.5]))
    fourth = (marginal.means[:, 0] - middle) ** 4 + 6.0 * spreads**2 * (
        marginal.means[:, 0] - middle
    ) ** 2
    spread = sqrt(float(marginal.weights @ (fourth + 3.0 * spreads**4)) - variance**2)
    assert_mean(lambda n, look: (drawn(n, look) - middle) ** 2, variance, 0.02 * spread)
    assert_mean(in_bar, float(ends[1] - ends[0]), resolution=0.01)
    assert_law(lambda n, look: below(drawn(n, look)), resolution=0.02)


def test_samples_have_the_covariance_between_dimensions():
    mixture = mixture_of(7, 3, 2)
    apart = lambda n, look: mixture.sample(n, Stream(7, NUMPY).at(look)) - mixture.mean
    cross = float(mixture.covariance[0, 1])
    assert abs(cross) > 0.1
    assert_mean(lambda n, look: apart(n, look).prod(axis=-1), cross, resolution=0.02)


class Lowest:
    """A stream whose every uniform number is the lowest one, and every normal one is 1."""

    def at(self, name):
        return self

    def uniform(self, shape):
        return np.zeros(shape)

    def normal(self, shape):
        return np.ones(shape)


def test_a_sample_is_a_component_and_its_noise():
    covariance = np.asarray([[4.0, 2.0], [2.0, 10.0]])
    mixture = Mixture(NUMPY, [0.0, 1.0], [[9.0, 9.0], [1.0, 2.0]], [np.eye(2), covariance])
    want = np.asarray([1.0, 2.0]) + np.asarray([[2.0, 0.0], [1.0, 3.0]]) @ np.ones(2)
    np.testing.assert_allclose(mixture.sample(3, Lowest()), np.stack([want] * 3), rtol=1e-14)


def test_work_is_done_on_two_million_numbers_at_a_time(monkeypatch):
    mixture, sizes_seen = mixture_of(1, 2, 3), []
    parts = mixture._parts
    monkeypatch.setattr(mixture, "_parts", lambda b: (sizes_seen.append(len(b)), parts(b))[1])
    whole = 2**21 // 6 + 1  # rows × 2 components × 3 dimensions
    mixture.log_prob(np.zeros((whole, 3)))
    mixture.log_prob(np.zeros((whole + 1, 3)))
    monkeypatch.setattr(densities, "BLOCK", 1)
    mixture.log_prob(np.zeros((3, 3)))
    assert sizes_seen == [whole, whole, 1, 1, 1, 1]


@given(mixtures(), seeds(), sizes(40))
def test_blocks_change_nothing(mixture, seed, block):
    x = normals(seed, 3, 5, mixture.dims)
    calls = (
        lambda: mixture.log_prob(x),
        lambda: mixture.score(x),
        lambda: mixture.posterior_covariance(x, -0.5),
    )
    want, whole = [call() for call in calls], densities.BLOCK
    try:
        densities.BLOCK = block
        got = [call() for call in calls]
    finally:
        densities.BLOCK = whole
    for part, true in zip(got, want, strict=True):
        np.testing.assert_allclose(part, true, rtol=1e-13, atol=1e-13)
    assert mixture.score(x[:0]).shape == (0, 5, mixture.dims)
    assert mixture.log_prob(x[0, 0]).shape == ()


UNIT = [[[1.0, 0.0], [0.0, 1.0]]]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (([1.5, -0.5], [[0.0], [1.0]], [[[1.0]], [[1.0]]]), "not be negative"),
        (([0.0, 0.0], [[0.0], [1.0]], [[[1.0]], [[1.0]]]), "nor all of them 0"),
        (([nan], [[0.0]], [[[1.0]]]), "not be negative"),
        (([inf, 1.0], [[0.0], [1.0]], [[[1.0]], [[1.0]]]), "infinite"),
        (([1.0], [[0.0, 0.0], [1.0, 1.0]], UNIT), "needs weights"),
        (([1.0], [0.0], UNIT), "needs weights"),
        (([1.0], [[0.0, 0.0]], [[1.0, 1.0]]), r"\(K, D, D\), got \(1,\), \(1, 2\) and \(1, 2\)"),
        (([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]]), "positive definite"),
        (([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]]), "symmetric"),
        (([1.0], [[0.0]], [[[nan]]]), "positive definite"),
        (([1.0], [[nan]], [[[1.0]]]), "every number of a mean must be finite"),
        (([0.5, 0.5], [[0.0], [inf]], [[[1.0]]] * 2), "every number of a mean must be finite"),
        (
            ([1.0, 1.0], [[0.0, 0.0]] * 2, [[[1.0, 0.9], [-0.9, 1.0]], [[1e6, 0.0], [0.0, 1e6]]]),
            "symmetric",
        ),
    ],
)
def test_a_mixture_says_what_must_hold(args, says):
    with pytest.raises(ValueError, match=says):
        Mixture(NUMPY, *args)


@on_every_backend
def test_a_mixture_stays_what_it_was_made_as(born):
    parts = [born.asarray(a) for a in ([1.0], [[2.0]], [[[3.0]]])]
    mixture = Mixture(born, *parts)
    for part in parts:
        part[0, ...] = 7.0
    kept = [host(a) for a in (mixture.weights, mixture.means, mixture.covariances)]
    np.testing.assert_array_equal(np.concatenate([a.reshape(-1) for a in kept]), [1.0, 2.0, 3.0])


@given(mixtures(), st.floats(0.01, 100.0), seeds())
def test_only_the_ratios_of_the_weights_matter(mixture, factor, seed):
    x = normals(seed, 3, mixture.dims)
    scaled = Mixture(NUMPY, factor * mixture.weights, mixture.means, mixture.covariances)
    np.testing.assert_allclose(scaled.weights, mixture.weights, rtol=1e-14)
    np.testing.assert_allclose(scaled.log_prob(x), mixture.log_prob(x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("shape", [(4, 1), (4, 3), (2, 0), ()])
def test_points_have_the_dimension_of_the_mixture(shape):
    mixture, x = mixture_of(1, 3, 2), np.zeros(shape)
    for ask in (
        mixture.log_prob,
        mixture.log_joint,
        mixture.responsibilities,
        mixture.score,
        lambda x: mixture.posterior_mean(x, -1.0),
        lambda x: mixture.posterior_covariance(x, -1.0),
    ):
        with pytest.raises(ValueError, match=escape(f"x must be (..., 2), got {shape}")):
            ask(x)


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 2), ()])
def test_a_posterior_is_given_one_point(shape):
    with pytest.raises(ValueError, match=escape(f"x_t must be (2,), got {shape}")):
        mixture_of(1, 3, 2).posterior(np.zeros(shape), -1.0)


@pytest.mark.parametrize("level", [0.1, nan])
def test_a_level_is_not_positive(level):
    with pytest.raises(ValueError, match="at most 0"):
        mixture_of(1, 2, 1).noised(level)


@on_every_backend
def test_every_backend_agrees(born):
    made, true = mixture_of(3, 3, 2, born), mixture_of(3, 3, 2)
    x = normals(8, 2, 3, 2)
    here, tol = born.asarray(x), 20.0 * tolerance(born)

    def everything(density, at, backend):
        yield density.log_prob(at)
        yield density.log_joint(at)
        yield density.responsibilities(at)
        yield density.noised(-0.7).score(at)
        yield density.posterior_mean(at, -0.7)
        yield density.posterior_covariance(at, -0.7)
        yield density.posterior(at[0, 0, :], -0.7).covariance
        yield density.sample(5, Stream(1, backend))

    got = everything(made, here, born)
    for part, want in zip(got, everything(true, x, NUMPY), strict=True):
        assert part.dtype == here.dtype
        oracle.assert_close(host(part), want, tol, "value")
    with pytest.raises(ValueError, match="positive definite"):
        Mixture(born, [1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]])
