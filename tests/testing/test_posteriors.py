"""Every posterior is told from one that is 2 % off, by simulation alone.

The mean of z given x is the function m of x with E[(z - m(x)) g(x)] = 0 for every g, and the
variance is the C with E[((z - m(x))² - C(x)) g(x)] = 0. So pairs (z, x) are simulated from the
model as it is written, forwards, and some functions g are tried. A law here is

    plain(n, look, slope=1, width=1)       -> (S, n), such products, of mean 0
    controlled(n, look, slope=1, width=1)  -> (S, n), controls (n, c)

where the posterior on trial has its mean times `slope` and its variance times `width`.
"""

from functools import cache, partial
from math import exp, expm1, factorial, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial.hermite_e import hermevander

from scratchgen.core.streams import Stream
from scratchgen.maths.densities import Mixture
from scratchgen.maths.forward_process import Shifted, q_posterior
from scratchgen.maths.gaussian import Gaussian
from scratchgen.maths.parameterisations import KWay
from scratchgen.testing.diffusion_worlds import GaussianDiffusion
from scratchgen.testing.strategies import reals, seeds, sizes
from scratchgen.testing.worlds import LinearGaussian, regress

from support import (
    NUMPY,
    PILOT,
    assert_posterior,
    assert_refuted,
    noise,
    normals,
    quadratics,
    share_of_the_examples,
)

FAULT = 1.02


def alpha_bars(least=0.05):
    return st.floats(least, 0.95)


# Linear worlds: z and x are linear in the noise, so that quadratic controls leave no variance.


def linear_law(seed, dims, simulate, posterior):
    """The law of a linear world.

    Args:
        dims: of the noise.
        simulate: noise (n, dims) -> z (n,), x (n, B), and functions of x (n, G) of mean 0 and
            variance 1.
        posterior: x (n, B) -> mean (n,), variance; this is on trial.
    """

    def products(eps, slope=1.0, width=1.0):
        z, x, functions = simulate(eps)
        mean, variance = posterior(x)
        rest = z - slope * mean
        return np.stack([rest, *(rest * g for g in functions.T), rest**2 - width * variance])

    def plain(n, look, *wrong):
        return products(noise(seed, look, n, dims), *wrong)

    def controlled(n, look, *wrong):
        eps = noise(seed, look, n, dims)
        return products(eps, *wrong), quadratics(eps)

    return plain, controlled


def standardised(x, mean, covariance, direction):
    """Each coordinate of x, and their sum along `direction`, with mean 0 and variance 1."""
    along = np.concatenate([np.eye(len(mean)), direction[:, None]], axis=1)
    return (x - mean) @ along / np.sqrt(np.einsum("ig,ij,jg->g", along, covariance, along))


def affine(f, dims):
    """f(x) (A,) of one x, as a function of many (n, B), given that it is affine."""
    offset = f(np.zeros(dims))
    matrix = np.stack([f(row) - offset for row in np.eye(dims)])
    probe = np.arange(1.0, dims + 1.0)
    np.testing.assert_allclose(f(probe), offset + probe @ matrix, rtol=1e-9, atol=1e-9)
    return lambda x: offset + x @ matrix


def joint_normal(draw, distinct, unknown):
    """A joint normal by z = b_z + (x - b_x) M + e, its coordinates shuffled.

    Returns:
        law: of both.
        rest, known: the places of z and of x.
        simulate: as for linear_law, with the sum of z's coordinates for z.
    """
    dims, correlation = draw(sizes(2)), draw(st.floats(0.8 if distinct else 0.1, 0.98))
    stream = Stream(draw(seeds()), NUMPY)
    entries = lambda purpose, *shape: stream.at(purpose).normal(shape)
    gain, mean = entries("gain", dims, unknown), entries("mean", dims + unknown)
    spread_x, spread_e = (
        f @ f.T + np.eye(len(f)) for f in (entries("x", dims, dims), entries("e", unknown, unknown))
    )
    signal = gain.sum(axis=1) @ spread_x @ gain.sum(axis=1)  # of the sum of z's coordinates
    spread_e *= signal / spread_e.sum() * (1.0 - correlation**2) / correlation**2
    cross = spread_x @ gain
    covariance = np.block([[gain.T @ cross + spread_e, cross.T], [cross, spread_x]])
    order = np.asarray(draw(st.permutations(range(dims + unknown))))
    law = Gaussian(mean[order], covariance[np.ix_(order, order)])
    places = np.argsort(order)
    rest, known = np.sort(places[:unknown]), places[unknown:]

    def simulate(eps):
        v = law.mean + eps @ np.linalg.cholesky(law.covariance).T
        x = v[:, known]
        functions = standardised(x, mean[unknown:], spread_x, gain.sum(axis=1))
        return v[:, rest].sum(axis=1), x, functions

    return law, rest, known, simulate


@st.composite
def conditional_normal(draw, distinct):
    """The sum of some coordinates of a joint normal, in any places, given the others."""
    law, _, known, simulate = joint_normal(draw, distinct, draw(sizes(2)))
    mean = affine(lambda x: law.conditional(known, x).mean, len(known))
    variance = law.conditional(known, law.mean[known]).covariance.sum()
    posterior = lambda x: (mean(x).sum(axis=1), variance)
    return linear_law(draw(seeds()), law.dims, simulate, posterior)


@st.composite
def regression(draw, distinct):
    """One coordinate of a joint normal given others."""
    law, (target,), known, simulate = joint_normal(draw, distinct, 1)
    coefficients, offset, variance = regress(law, target, known)
    posterior = lambda x: (offset + x @ coefficients, variance)
    return linear_law(draw(seeds()), law.dims, simulate, posterior)


@st.composite
def principal_components(draw, distinct):
    """z given x in x = z W + b + s e."""
    latent, seen, seed = draw(sizes(2)), draw(sizes(3)), draw(seeds())
    w, b = normals(seed, latent, seen), normals(seed + 1, seen)
    a = w @ normals(seed + 2, seen)  # a direction of z that is seen in x
    s = draw(st.floats(0.05, 0.3) if distinct else st.floats(0.3, 3.0)) * np.linalg.norm(w, 2)
    world = LinearGaussian(w, b, s * s)
    spread_x = w.T @ w + s * s * np.eye(seen)
    best = np.linalg.solve(spread_x, w.T @ a)

    def simulate(eps):
        z = eps[:, :latent]
        x = z @ w + b + s * eps[:, latent:]
        return z @ a, x, standardised(x, b, spread_x, best)

    mean = affine(lambda x: world.posterior(x).mean, seen)
    variance = a @ world.posterior(b).covariance @ a
    return linear_law(seed, latent + seen, simulate, lambda x: (mean(x) @ a, variance))


@st.composite
def shifted_posterior(draw, distinct):
    """x_s given x_t, x_0 and x̂ in x_t = √α x_s + (1-√α) x̂ + √β ε, from the marginal at s."""
    alpha_bar, correlation = draw(alpha_bars()), draw(st.floats(0.8 if distinct else 0.1, 0.98))
    x0, hint = draw(reals(3.0)), draw(reals(3.0))
    alpha = correlation**2 / (1.0 - alpha_bar * (1.0 - correlation**2))
    before, now = np.asarray([log(alpha_bar)]), np.asarray([log(alpha * alpha_bar)])
    shift = Shifted(np.asarray([[hint]]))

    def simulate(eps):
        x_s = sqrt(alpha_bar) * x0 + hint + sqrt(1.0 - alpha_bar) * eps[:, 0]
        x_t = sqrt(alpha) * x_s + (1.0 - sqrt(alpha)) * hint + sqrt(1.0 - alpha) * eps[:, 1]
        centred = x_t - sqrt(alpha * alpha_bar) * x0 - hint
        return x_s, x_t[:, None], (centred / sqrt(1.0 - alpha * alpha_bar))[:, None]

    def posterior(x_t):
        u_t = shift.plain(x_t, now)
        mean, variance = q_posterior(np.asarray([[x0]]), u_t, now, before)
        return shift.shifted(mean, before)[:, 0], float(variance[0])

    return linear_law(draw(seeds()), 2, simulate, posterior)


@st.composite
def clean_data(draw, distinct):
    """x_0 given x_t for normal data."""
    alpha_bar, correlation = draw(alpha_bars()), draw(st.floats(0.8 if distinct else 0.1, 0.98))
    mean, level = draw(reals(3.0)), np.asarray([log(alpha_bar)])
    variance = correlation**2 / (1.0 - correlation**2) * (1.0 - alpha_bar) / alpha_bar
    world = GaussianDiffusion(np.asarray([mean]), np.asarray([variance]))

    def simulate(eps):
        x0 = mean + sqrt(variance) * eps[:, 0]
        x_t = sqrt(alpha_bar) * x0 + sqrt(1.0 - alpha_bar) * eps[:, 1]
        spread = sqrt(alpha_bar * variance + 1.0 - alpha_bar)
        return x0, x_t[:, None], ((x_t - sqrt(alpha_bar) * mean) / spread)[:, None]

    def posterior(x_t):
        return world.clean(x_t, level)[:, 0], float(world.clean_error(level)[0, 0])

    return linear_law(draw(seeds()), 2, simulate, posterior)


@st.composite
def reverse_kernel(draw, distinct):
    """x_s given x_t alone, for normal data."""
    alpha_bar, correlation = draw(alpha_bars()), draw(st.floats(0.8 if distinct else 0.1, 0.98))
    mean, variance = draw(reals(3.0)), draw(st.floats(0.1, 3.0))
    spread_s = alpha_bar * variance + 1.0 - alpha_bar
    alpha = correlation**2 / (correlation**2 + spread_s * (1.0 - correlation**2))
    spread_t = alpha * spread_s + 1.0 - alpha
    before, now = np.asarray([log(alpha_bar)]), np.asarray([log(alpha * alpha_bar)])
    world = GaussianDiffusion(np.asarray([mean]), np.asarray([variance]))

    def simulate(eps):
        x0 = mean + sqrt(variance) * eps[:, 0]
        x_s = sqrt(alpha_bar) * x0 + sqrt(1.0 - alpha_bar) * eps[:, 1]
        x_t = sqrt(alpha) * x_s + sqrt(1.0 - alpha) * eps[:, 2]
        centred = x_t - sqrt(alpha * alpha_bar) * mean
        return x_s, x_t[:, None], (centred / sqrt(spread_t))[:, None]

    def posterior(x_t):
        step, left = world.reverse(now, before)
        return step(x_t)[:, 0], float(left[0, 0])

    return linear_law(draw(seeds()), 3, simulate, posterior)


linear_worlds = pytest.mark.parametrize(
    "laws",
    [
        pytest.param(conditional_normal, marks=pytest.mark.equation("ELBO-1")),
        pytest.param(regression, marks=pytest.mark.equation("ELBO-1")),
        pytest.param(principal_components, marks=pytest.mark.equation("ELBO-1")),
        pytest.param(shifted_posterior, marks=pytest.mark.equation("DVAE-9")),
        pytest.param(clean_data, marks=pytest.mark.equation("SCORE-3")),
        pytest.param(reverse_kernel, marks=pytest.mark.equation("DDPM-17")),
    ],
)


@linear_worlds
@share_of_the_examples(5)
@given(st.data())
def test_posteriors_of_linear_worlds_equal_simulation(laws, data):
    assert_posterior(*data.draw(laws(distinct=False)), sharp=1e-9)


@linear_worlds
@pytest.mark.parametrize("wrong", [(FAULT, 1.0), (1.0, FAULT)], ids=["mean", "variance"])
@share_of_the_examples(15)
@given(st.data())
def test_two_percent_off_a_linear_worlds_posterior_is_refuted(laws, wrong, data):
    assert_refuted(*data.draw(laws(distinct=True)), wrong)


# Worlds that are not linear: a component k is drawn, and given k the noise (ξ, η) is one of x_t and
# one of the rest. Averaged over k exactly, with the same noise for all, a product is smooth in the
# noise, and so are the controls, which are Hermite polynomials: He_i(ξ) He_j(η) has mean 0.
# What they leave lives on rare, large noise, which no finite sample shows as it is; so a normal
# number of 5 % of the plain spread is added, beside which it is small.

DEGREE, DITHER = 4, 0.05


def hermite(xi, eta):
    """He_i(ξ) He_j(η)/√(i! j!) for i ≤ DEGREE, j ≤ 2, but not both 0: (n,), (n,) -> (n, c)."""
    columns = [
        hermevander(noise, most) / np.sqrt([factorial(i) for i in range(most + 1)])
        for noise, most in ((xi, DEGREE), (eta, 2))
    ]
    return np.einsum("ni,nj->nij", *columns).reshape(len(xi), -1)[:, 1:]


def component_law(seed, weights, simulate, products):
    """The law of a world of several components.

    Args:
        weights: (K,), summing to one.
        simulate: the component k (n,), ξ (n,), η (n,) -> what was drawn.
        products: what was drawn, and slope and width -> (S, n).
    """

    @cache
    def spreads():
        return np.std(plain(4096, PILOT), axis=1)[:, None]

    def plain(n, look, *wrong):
        u = Stream(seed, NUMPY).at("component", look).uniform((1, n))[0]
        k = np.searchsorted(np.cumsum(weights)[:-1], u, side="right")
        return products(simulate(k, *noise(seed, look, 2, n)), *wrong)

    def controlled(n, look, *wrong):
        xi, eta, dither = noise(seed, look, 3, n)
        strata = [
            w * products(simulate(np.full(n, k), xi, eta), *wrong) for k, w in enumerate(weights)
        ]
        return sum(strata) + DITHER * spreads() * dither, hermite(xi, eta)

    return plain, controlled


def functions_of(x):
    """The g(x) that are tried."""
    return 1.0, x, np.cos(0.5 * x)


def one_dimensional(draw):
    """Weights, means and standard deviations of a mixture on the line."""
    k = draw(st.integers(1, 3))
    weights, means = draw(vectors(k, 0.2, 1.0)), draw(vectors(k, -1.0, 1.0))
    return weights / weights.sum(), means, draw(vectors(k, 0.8, 1.2))


def vectors(size, least, most):
    return st.lists(st.floats(least, most), min_size=size, max_size=size).map(np.asarray)


def by_components(mixture, x_t, level):
    return mixture.posterior_mean(x_t, level)


def by_tweedie(mixture, x_t, level):
    """E[x_0 | x_t] = (x_t + (1-ᾱ) s(x_t))/√ᾱ."""
    return (x_t - expm1(level) * mixture.noised(level).score(x_t)) / exp(0.5 * level)


@st.composite
def clean_mixture(draw, distinct, posterior_mean=by_components):
    """x_0 given x_t = √ᾱ x_0 + √(1-ᾱ) ε for mixtures of normals."""
    weights, means, scales = one_dimensional(draw)
    alpha_bar = draw(st.floats(0.5 if distinct else 0.1, 0.6))
    level = log(alpha_bar)
    mixture = Mixture(NUMPY, weights, means[:, None], scales[:, None, None] ** 2)

    def simulate(k, xi, eta):
        signal, rest = sqrt(alpha_bar) * scales[k], sqrt(1.0 - alpha_bar)
        size = np.hypot(signal, rest)
        x0 = means[k] + scales[k] * (signal * xi + rest * eta) / size
        eps = (rest * xi - signal * eta) / size
        return x0, sqrt(alpha_bar) * x0 + rest * eps

    def products(drawn, slope=1.0, width=1.0):
        x0, x_t = drawn
        gap = x0 - slope * posterior_mean(mixture, x_t[:, None], level)[:, 0]
        excess = gap**2 - width * mixture.posterior_covariance(x_t[:, None], level)[:, 0, 0]
        return np.stack([part * g for part in (gap, excess) for g in functions_of(x_t)])

    return component_law(draw(seeds()), weights, simulate, products)


@st.composite
def clean_level(draw, distinct):
    """Which of K levels x_0 is, given x_t = s x_0 + n ε, and its mean; the width is of p_k."""
    weights = draw(st.integers(2, 4).flatmap(lambda k: vectors(k, 0.2, 1.0)))
    weights, k_way = weights / weights.sum(), KWay(len(weights))
    alpha_bar = draw(st.floats(0.6, 0.7) if distinct else st.floats(0.1, 0.6))
    now, levels = np.asarray([log(alpha_bar)]), np.arange(len(weights))
    centres = (2.0 * levels + 1.0) / len(weights) - 1.0

    def simulate(k, xi, eta):
        return k, (sqrt(alpha_bar) * centres[k] + sqrt(1.0 - alpha_bar) * xi)

    def products(drawn, slope=1.0, width=1.0):
        k, x_t = drawn
        logits = np.tile(np.log(weights) + 3.0, (len(k), 1))
        clean, _ = k_way.clean(logits, x_t[:, None], now, None)
        p = np.exp(k_way.log_probabilities(logits, x_t[:, None], now))[:, 0, :]
        gaps = [centres[k] - slope * clean[:, 0], *((k[:, None] == levels) - width * p).T]
        return np.stack([gap * g for gap in gaps for g in functions_of(x_t)])

    return component_law(draw(seeds()), weights, simulate, products)


component_worlds = pytest.mark.parametrize(
    "laws",
    [
        pytest.param(clean_mixture, marks=pytest.mark.equation("ELBO-1")),
        pytest.param(
            partial(clean_mixture, posterior_mean=by_tweedie),
            id="tweedie",
            marks=pytest.mark.equation("SCORE-3"),
        ),
        pytest.param(clean_level, marks=pytest.mark.equation("ELBO-1")),
    ],
)


@component_worlds
@share_of_the_examples(8)
@given(st.data())
def test_posteriors_over_components_equal_simulation(laws, data):
    assert_posterior(*data.draw(laws(distinct=False)), sharp=0.003)


@component_worlds
@pytest.mark.parametrize("wrong", [(FAULT, 1.0), (1.0, FAULT)], ids=["mean", "variance"])
@share_of_the_examples(16)
@given(st.data())
def test_two_percent_off_a_posterior_over_components_is_refuted(laws, wrong, data):
    assert_refuted(*data.draw(laws(distinct=True)), wrong)
