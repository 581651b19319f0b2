"""maths/distributions.py against integrals, quadrature, exact arithmetic and simulation."""

from decimal import Decimal
from functools import partial
from math import exp, log, pi

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scratchgen.core.streams import Stream
from scratchgen.maths import distributions as d
from scratchgen.testing import oracle
from scratchgen.testing.monte_carlo import assert_mean
from scratchgen.testing.strategies import log_variances, means, normal_pairs, reals, seeds, sizes

from support import NUMPY, host, normals, on_every_backend, tolerance


def quadrature(f, mean, logvar, nodes=3):
    """E f(z), z ~ N(mean, e^logvar): exact for polynomials of degree < 2·nodes."""
    z, w = np.polynomial.hermite_e.hermegauss(nodes)
    spread = np.exp(0.5 * logvar)[..., None]
    return (f(mean[..., None] + spread * z) * w).sum(axis=-1) / w.sum()


def log_ratio(z, mean_q, logvar_q, mean_p, logvar_p):
    """log q(z) - log p(z) of two normals, written without our code."""
    q = -0.5 * ((z - mean_q) ** 2 / np.exp(logvar_q) + logvar_q)
    p = -0.5 * ((z - mean_p) ** 2 / np.exp(logvar_p) + logvar_p)
    return q - p


@pytest.mark.equation("VAE-5")
@given(normal_pairs())
def test_normal_kl_equals_quadrature(pair):
    mean_q, logvar_q, mean_p, logvar_p = pair
    kl, _ = d.normal_kl(*pair)
    columns = [a[:, None] for a in pair]
    want = quadrature(lambda z: log_ratio(z, *columns), mean_q, logvar_q)
    np.testing.assert_allclose(kl, want, rtol=1e-9, atol=1e-9)
    assert np.all(kl >= 0.0)


@pytest.mark.equation("VAE-5")
@given(means(), log_variances(), st.floats(-1e-3, 1e-3), st.floats(-1e-3, 1e-3))
@example(0.0, 0.0, 0.0, 1e-8)
@example(5.0, 3.0, 1e-9, 0.0)
def test_normal_kl_keeps_its_digits_near_equality(mean, logvar, gap, r):
    args = (mean + gap, logvar + r, mean, logvar)
    got = float(d.normal_kl(*(np.asarray([a]) for a in args))[0][0])
    mean_q, logvar_q, mean_p, logvar_p = (Decimal(a) for a in args)
    difference = Decimal(float(logvar_q) - float(logvar_p))  # what float64 can know of r
    distance = Decimal(float(mean_q) - float(mean_p))
    want = (difference.exp() - 1 - difference + distance**2 * (-logvar_p).exp()) / 2
    assert got == pytest.approx(float(want), rel=1e-12, abs=1e-300)


@pytest.mark.equation("VAE-5")
@pytest.mark.equation("VAE-3")
@given(normal_pairs())
def test_standard_normal_kl_is_the_special_case(pair):
    mean, logvar, *_ = pair
    zero = np.zeros_like(mean)
    got, want = d.standard_normal_kl(mean, logvar)[0], d.normal_kl(mean, logvar, zero, zero)[0]
    np.testing.assert_allclose(got, want, rtol=1e-13)
    printed = -0.5 * (1.0 + logvar - mean**2 - np.exp(logvar))  # as the sources print it
    np.testing.assert_allclose(got, printed, rtol=1e-9, atol=1e-9)


@pytest.mark.equation("VAE-5")
@given(normal_pairs(), reals(1.0))
def test_residual_kl_is_the_general_one_whatever_the_mean(pair, mean):
    """N(m + Δ, e^(λ+r)) against N(m, e^λ), by quadrature; nothing is left at Δ = r = 0."""
    d_mean, d_logvar, _, logvar = pair
    kl, _ = d.residual_normal_kl(d_mean, d_logvar, logvar)
    args = (mean + d_mean, logvar + d_logvar, mean + 0.0 * logvar, logvar)
    columns = [a[:, None] for a in args]
    want = quadrature(lambda z: log_ratio(z, *columns), *args[:2])
    np.testing.assert_allclose(kl, want, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(kl, d.normal_kl(*args)[0], rtol=1e-9, atol=1e-9)
    zero = 0.0 * logvar
    none, pullback = d.residual_normal_kl(zero, zero, logvar)
    assert not np.any(none)
    assert not np.any(pullback(1.0 + zero))


@pytest.mark.equation("VAE-5")
def test_kl_grows_without_bound_as_the_posterior_narrows():
    """Collapse to a point costs infinitely many nats: 1.81, 6.41, 13.3 at σ = 1e-1, 1e-3, 1e-6."""
    logvar = 2.0 * np.log([1e-1, 1e-3, 1e-6])
    np.testing.assert_allclose(
        d.standard_normal_kl(0.0 * logvar, logvar)[0], [1.8076, 6.4078, 13.3155], atol=5e-5
    )


@pytest.mark.equation("ERR-19")
def test_a_standard_deviation_in_the_place_of_a_variance_is_another_number():
    """The sampler draws μ + σε; the KL printed with covariance diag(σ) does not fit it."""
    mean, sigma = 0.3, 0.5

    def log_ratios(n, look):
        z = mean + sigma * Stream(19, NUMPY).at(look).normal((n,))
        return log_ratio(z, mean, 2.0 * log(sigma), 0.0, 0.0)

    def kl(variance):
        return float(d.standard_normal_kl(np.asarray([mean]), np.log([variance]))[0][0])

    assert_mean(log_ratios, kl(sigma**2), resolution=0.01)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean(log_ratios, kl(sigma), resolution=0.01)


@pytest.mark.equation("VAE-7")
@pytest.mark.equation("VAE-3")
@given(means(), log_variances())
def test_normal_density_integrates_to_one(mean, logvar):
    spread = exp(0.5 * logvar)
    x = mean + spread * np.linspace(-12.0, 12.0, 2001)
    nll, _ = d.normal_nll(x, np.full_like(x, mean), np.full_like(x, logvar))
    assert np.trapezoid(np.exp(-nll), x) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.equation("VAE-3")
@given(seeds(), sizes())
def test_standard_normal_density_is_the_printed_one(seed, k):
    z = normals(seed, k)
    got = float(d.normal_nll(z, 0.0 * z, 0.0 * z)[0].sum())
    assert got == pytest.approx(0.5 * float(z @ z) + 0.5 * k * log(2.0 * pi), rel=1e-13)


def bins(levels):
    return (2.0 * np.arange(levels) + 1.0) / levels - 1.0


LOG_SCALES = st.floats(-7.0, 3.0)


@pytest.mark.equation("DDPM-8")
@given(st.floats(-1.5, 1.5), LOG_SCALES, st.sampled_from([2, 17, 256]))
def test_discretised_probabilities_sum_to_one(mean, log_scale, levels):
    x = bins(levels)
    for nll in (d.discretised_logistic_nll, d.discretised_normal_nll):
        costs, _ = nll(x, np.full(levels, mean), np.full(levels, log_scale), levels)
        assert np.exp(-costs).sum() == pytest.approx(1.0, abs=1e-10)


@pytest.mark.equation("DDPM-8")
@given(st.floats(-1.0, 1.0), st.floats(-2.0, 1.0), st.integers(0, 16))
def test_a_bin_holds_the_integral_of_its_density(mean, log_scale, k):
    """Gauss–Legendre over one inner bin of the continuous density."""
    levels, scale = 17, exp(log_scale)
    x = bins(levels)[k : k + 1]
    if not 0 < k < levels - 1:
        k = 8
        x = bins(levels)[8:9]
    nodes, weights = np.polynomial.legendre.leggauss(40)
    u = (x + nodes / levels - mean) / scale
    logistic = 1.0 / (4.0 * np.cosh(0.5 * u) ** 2) / scale
    normal = np.exp(-0.5 * u**2) / (2.0 * pi) ** 0.5 / scale
    at = (x, np.asarray([mean]))
    got = d.discretised_logistic_nll(*at, np.asarray([log_scale]), levels)[0]
    np.testing.assert_allclose(np.exp(-got), (logistic @ weights) / levels, rtol=1e-9)
    got = d.discretised_normal_nll(*at, np.asarray([2.0 * log_scale]), levels)[0]
    np.testing.assert_allclose(np.exp(-got), (normal @ weights) / levels, rtol=1e-9)


@pytest.mark.equation("DDPM-8")
@given(st.floats(0.0, 12.0), st.floats(-8.0, 0.0) | st.floats(-1.6, 0.0), st.booleans())
@example(0.01, -1.302, True)
@example(1.0, -1.302, True)
@example(12.0, -0.52, True)
@example(12.0, -0.2, True)
def test_the_mass_of_a_narrow_bin_is_its_width_times_its_average_density(c, log_width, left):
    """Gauss–Legendre, whose error is below rounding here, for the value and both derivatives.

    With u the distance from the mean in standard deviations, averaged over the bin by its density:
    ∂log P/∂mean = E u / σ and ∂log P/∂log σ = E u² - 1.
    """
    width = 10.0**log_width / (1.0 + c)  # around 0.05 the series takes over
    sigma = 2.0 / 17.0 / width
    nodes, weights = np.polynomial.legendre.leggauss(30)
    u = c + 0.5 * width * nodes
    density = 0.5 * weights * np.exp(0.5 * (c - u) * (c + u))
    want = 0.5 * c * c + 0.5 * log(2.0 * pi) - log(width * density.sum())
    mean = np.asarray([c * sigma if left else -c * sigma])
    got, pullback = d.discretised_normal_nll(np.zeros(1), mean, np.asarray([2.0 * log(sigma)]), 17)
    assert got[0] == pytest.approx(want, rel=1e-15, abs=1.5e-12)
    d_mean, d_logvar = pullback(np.ones(1))
    first, second = density @ u / density.sum(), density @ (u * u) / density.sum()
    sign = 1.0 if left else -1.0
    assert sigma * d_mean[0] == pytest.approx(sign * first, rel=2e-11, abs=1e-13)
    assert d_logvar[0] == pytest.approx(0.5 * (1.0 - second), rel=2e-11, abs=2e-11)


@pytest.mark.equation("DDPM-8")
@pytest.mark.parametrize("log_scale", [-3.0, 3.0])
def test_a_bin_around_the_mean_does_not_pull_it(log_scale):
    for nll in (d.discretised_logistic_nll, d.discretised_normal_nll):
        _, pullback = nll(np.zeros(1), np.zeros(1), np.asarray([log_scale]), 17)
        assert abs(pullback(np.ones(1))[0][0]) < 1e-14


@pytest.mark.equation("DDPM-8")
def test_far_tails_keep_their_digits():
    """A thousand scales away, probabilities underflow but their logarithms do not."""
    x, mean = bins(17)[[2]], np.asarray([1.0])
    steep = np.asarray([log(1e-3)])
    got = float(d.discretised_logistic_nll(x, mean, steep, 17)[0][0])
    a, b = (Decimal(float(x[0])) + s / Decimal(17) - 1 for s in (1, -1))
    cdf = lambda v: 1 / (1 + (-v * 1000).exp())
    assert got == pytest.approx(-float((cdf(a) - cdf(b)).ln()), rel=1e-12)


@pytest.mark.equation("VAE-7")
@given(seeds(), sizes(), st.integers(2, 6))
def test_categorical_probabilities_sum_to_one(seed, n, levels):
    logits = 3.0 * normals(seed, n, levels)
    costs = [d.categorical_nll(np.full((n,), k), logits)[0] for k in range(levels)]
    np.testing.assert_allclose(np.exp(-np.stack(costs)).sum(axis=0), 1.0, rtol=1e-13)


@pytest.mark.equation("VAE-7")
@given(seeds(), sizes(), st.integers(2, 6))
def test_a_class_that_is_masked_is_as_if_it_were_not_there(seed, n, levels):
    logits, dy = 3.0 * normals(seed, n, levels), normals(seed + 1, n)
    codes = np.arange(n) % levels
    want, pull = d.categorical_nll(codes, logits)
    got, pullback = d.categorical_nll(codes, np.insert(logits, levels, -np.inf, axis=1))
    np.testing.assert_allclose(got, want, rtol=1e-13)
    np.testing.assert_allclose(pullback(dy)[:, :-1], pull(dy), rtol=1e-12, atol=1e-14)
    assert not np.any(pullback(dy)[:, -1])
    logits[0, codes[0]] = -np.inf
    assert d.categorical_nll(codes, logits)[0][0] == np.inf


@pytest.mark.equation("VAE-7")
@given(reals(30.0))
def test_bernoulli_is_binary_cross_entropy(logit):
    p = 1.0 / (1.0 + exp(-logit))
    at = np.asarray([logit])
    assert float(d.bernoulli_nll(np.ones(1), at)[0][0]) == pytest.approx(-log(p), rel=1e-12)
    both = [float(np.exp(-d.bernoulli_nll(np.full(1, x), at)[0][0])) for x in (0.0, 1.0)]
    assert sum(both) == pytest.approx(1.0, rel=1e-14)


@pytest.mark.equation("VAE-2")
@pytest.mark.equation("VAE-4")
@given(seeds(), sizes(), sizes(), sizes())
def test_reparameterisation_shifts_and_scales(seed, samples, n, k):
    mean, logvar, eps = normals(seed, n, k), normals(seed + 1, n, k), normals(seed, samples, n, k)
    z, _ = d.reparameterise(mean, logvar, eps)
    np.testing.assert_allclose((z - mean) / np.exp(0.5 * logvar), eps, rtol=1e-9, atol=1e-9)
    for noise in (eps, eps[0]):
        oracle.check_pullback(partial(d.reparameterise, eps=noise), mean, logvar)


@pytest.mark.equation("VAE-2")
@pytest.mark.equation("VAE-4")
@pytest.mark.equation("ERR-37")
def test_encoder_samples_have_the_stated_mean_and_variance():
    mean, logvar = np.asarray([[0.3]]), np.asarray([[2.0 * log(0.5)]])

    def samples(n, look):
        eps = Stream(2, NUMPY).at(look).normal((n, 1, 1))
        return d.reparameterise(mean, logvar, eps)[0][:, 0, 0]

    assert_mean(samples, 0.3, resolution=0.01)
    assert_mean(lambda n, look: (samples(n, look) - 0.3) ** 2, 0.25, resolution=0.01)
    with pytest.raises(AssertionError, match="standard errors"):  # scaling alone, as printed
        assert_mean(lambda n, look: samples(n, look) - 0.3, 0.3, resolution=0.01)


@pytest.mark.equation("VAE-7")
@given(seeds(), sizes(), sizes())
def test_pullbacks_of_costs(seed, n, k):
    a, b, c = (normals(seed + i, n, k) for i in range(3))
    oracle.check_pullback(d.normal_nll, a, b, c)
    bits = (normals(seed + 3, n, k) > 0.0) * 1.0
    oracle.check_pullback(lambda logits: d.bernoulli_nll(bits, logits), a)
    codes = (bits + (c > 0.0)).astype(np.int64)
    oracle.check_pullback(lambda logits: d.categorical_nll(codes, logits), normals(seed, n, k, 3))


@pytest.mark.equation("VAE-5")
@pytest.mark.equation("VAE-3")
@given(seeds(), sizes(), sizes())
def test_pullbacks_of_divergences(seed, n, k):
    a, b, c, e = (normals(seed + i, n, k) for i in range(4))
    oracle.check_pullback(d.normal_kl, a, b, c, e)
    oracle.check_pullback(d.residual_normal_kl, a, b, c)
    oracle.check_pullback(d.standard_normal_kl, a, b)


@pytest.mark.equation("DDPM-8")
@given(seeds(), sizes(), sizes())
def test_pullbacks_of_discretised_costs(seed, n, k):
    a, b, c = (normals(seed + i, n, k) for i in range(3))
    x = bins(17)[np.clip(np.floor(8.5 * (a + 1.0)), 0, 16).astype(int)]
    oracle.check_pullback(lambda m, s: d.discretised_logistic_nll(x, m, s, 17), b, c)
    oracle.check_pullback(lambda m, s: d.discretised_normal_nll(x, m, s, 17), b, c)


@pytest.mark.equation("DDPM-8")
@given(seeds(), st.floats(-4.0, 2.0))
def test_discretised_pullbacks_at_every_level_and_scale(seed, log_scale):
    x, mean = bins(17), np.clip(normals(seed, 17), -1.5, 1.5)
    at = (mean, np.full(17, log_scale))
    oracle.check_pullback(lambda m, s: d.discretised_logistic_nll(x, m, s, 17), *at)
    oracle.check_pullback(lambda m, s: d.discretised_normal_nll(x, m, s, 17), *at)


@given(
    st.sampled_from([2, 17, 256]), st.floats(-1.5, 1.5), st.floats(-24.0, 40.0), st.integers(0, 255)
)
def test_discretised_costs_in_float32_keep_their_digits_at_extremes(levels, mean, logvar, k):
    """Against float64 at the same float32 inputs: far tails, narrow bins, wide scales."""
    x = bins(levels)[[k % levels]].astype(np.float32)
    at = [np.asarray([v], dtype=np.float32) for v in (mean, logvar)]
    for f, args in (
        (d.discretised_normal_nll, at),
        (d.discretised_logistic_nll, [at[0], np.float32(0.5) * np.minimum(at[1], 12.0)]),
    ):
        results = []
        for kind in (np.float32, np.float64):
            y, pullback = f(x.astype(kind), *(a.astype(kind) for a in args), levels)
            results.append([y, *pullback(np.ones(1, dtype=kind))])
        for got, want in zip(*results, strict=True):
            assert got.dtype == np.float32
            # c and w themselves are known to a few float32 ulps, and enter as c·w and c²
            assert got[0] == pytest.approx(want[0], rel=1e-4, abs=1e-5)


@on_every_backend
def test_every_backend_agrees(born):
    a, b, c, e = (normals(i, 3, 4) for i in range(4))
    x = bins(17)[np.arange(12).reshape(3, 4)]

    def everything(made):
        p, q, r, s, pixels = (made.asarray(v) for v in (a, b, c, e, x))
        codes = made.indices(np.arange(12).reshape(3, 4) % 4)
        logits = made.asarray(normals(9, 3, 4, 4))
        yield d.reparameterise(p, q, made.asarray(normals(5, 2, 3, 4))), normals(6, 2, 3, 4)
        yield d.normal_nll(p, q, r), a
        yield d.normal_kl(p, q, r, s), a
        yield d.residual_normal_kl(p, q, r), a
        yield d.standard_normal_kl(p, q), a
        yield d.bernoulli_nll(pixels, p), a
        yield d.discretised_logistic_nll(pixels, p, q, 17), a
        yield d.discretised_normal_nll(pixels, p, q, 17), a
        yield d.categorical_nll(codes, logits), a

    for ((y, pullback), dy), ((want, pull), _) in zip(
        everything(born), everything(NUMPY), strict=True
    ):
        assert y.dtype == born.zeros((1,)).dtype
        tol = 20 * tolerance(born)
        oracle.assert_close(host(y), want, tol, "value")
        got, true = pullback(born.asarray(dy)), pull(dy)
        for g, t in zip(oracle._as_tuple(got), oracle._as_tuple(true), strict=True):
            oracle.assert_close(host(g), t, tol, "cotangent")
