"""maths/densities.py against integrals, derivatives, convolutions and simulation."""

from math import exp, expm1, log

import autograd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.streams import Stream
from scratchgen.maths.densities import Mixture
from scratchgen.testing import oracle
from scratchgen.testing.strategies import seeds, sizes

from support import NUMPY, host, normals, on_every_backend, tolerance

LEVELS = st.floats(-6.0, -1e-3)


def mixture_of(seed, k, dims, born=NUMPY):
    """A random mixture: no component is special, no covariance is diagonal."""
    weights = np.exp(0.7 * normals(seed, k))
    a = normals(seed + 1, k, dims, dims + 2) / (dims + 2.0) ** 0.5
    covariances = 0.5 * a @ a.transpose(0, 2, 1) + 0.02 * np.eye(dims)
    return Mixture(born, weights / weights.sum(), 1.5 * normals(seed + 2, k, dims), covariances)


def mixtures(most_dims=3):
    return st.builds(mixture_of, st.integers(0, 2**60), sizes(4), sizes(most_dims))


def line(density, n=4001, span=14.0):
    """Equally spaced x (n, 1) and the weight of each: the trapezoid rule on a wide line."""
    x = np.linspace(-span, span, n)[:, None]
    return x, 2.0 * span / (n - 1)


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
    total = np.log(np.exp(joint - joint.max(axis=-1, keepdims=True)).sum(axis=-1))
    total += joint.max(axis=-1)
    np.testing.assert_allclose(mixture.log_prob(x), total, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(mixture.log_joint(x), joint, rtol=1e-11, atol=1e-11)
    shares = np.exp(joint - total[:, None])
    np.testing.assert_allclose(mixture.responsibilities(x), shares, rtol=1e-9, atol=1e-12)


@pytest.mark.equation("SCORE-1")
@given(mixtures(), seeds())
def test_the_score_is_the_gradient_of_the_log_density(mixture, seed):
    x = 2.0 * normals(seed, 5, mixture.dims)
    want = autograd.grad(lambda v: mixture.log_prob(v).sum())(x)
    oracle.assert_close(mixture.score(x), want, 1e-10, "score")


@pytest.mark.equation("SCORE-3")
@given(mixtures(), LEVELS, seeds())
def test_the_posterior_mean_obeys_tweedie(mixture, level, seed):
    x = 1.5 * normals(seed, 5, mixture.dims)
    score = mixture.noised(level).score(x)
    want = (x - expm1(level) * score) / exp(0.5 * level)
    oracle.assert_close(mixture.posterior_mean(x, level), want, 1e-10, "E[x0 | x]")


@pytest.mark.equation("DDPM-4")
@given(mixtures(most_dims=1), LEVELS)
def test_the_noised_marginal_is_a_convolution(mixture, level):
    """∫ p(x₀) N(x; √ᾱ x₀, 1-ᾱ) dx₀ by the trapezoid rule."""
    x0, weight = line(mixture, n=8001)
    x = np.linspace(-4.0, 4.0, 7)
    signal, variance = exp(0.5 * level), -expm1(level)
    kernel = np.exp(-0.5 * (x[:, None] - signal * x0[:, 0]) ** 2 / variance)
    kernel /= (2.0 * np.pi * variance) ** 0.5
    want = weight * kernel @ np.exp(mixture.log_prob(x0))
    got = np.exp(mixture.noised(level).log_prob(x[:, None]))
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@on_every_backend
def test_every_backend_agrees(born):
    made, true = mixture_of(3, 3, 2, born), mixture_of(3, 3, 2)
    x = normals(8, 2, 3, 2)
    here, tol = born.asarray(x), 20.0 * tolerance(born)

    def everything(density, at, backend):
        yield density.log_prob(at)
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
