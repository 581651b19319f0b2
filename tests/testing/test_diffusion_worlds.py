"""testing/diffusion_worlds.py: conditioning, Bayes' rule, known numbers, and each other."""

from math import log, pi

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scratchgen.maths.densities import Mixture
from scratchgen.maths.forward_process import log_snr
from scratchgen.maths.gaussian import Gaussian
from scratchgen.testing.diffusion_worlds import (
    GaussianDiffusion,
    HintedDiffusion,
    MixtureDiffusion,
)
from scratchgen.testing.strategies import noise_levels, seeds, sizes, transitions
from scratchgen.testing.worlds import (
    LinearNetwork,
    rate_at_distortion,
)

from support import NUMPY, normals


@pytest.mark.equation("DDPM-4")
@pytest.mark.equation("DDPM-13")
@pytest.mark.equation("DDPM-17")
@pytest.mark.equation("VDM-5")
@pytest.mark.equation("SCORE-1")
@pytest.mark.equation("SCORE-3")
@pytest.mark.equation("SCORE-4")
@given(seeds(), sizes(3), st.floats(-6.0, -0.01))
def test_the_gaussian_world_by_conditioning(seed, d, level):
    """Everything that is known about x_0 and ε given x_t, from the joint of (x_0, ε, x_t)."""
    mean, variances = normals(seed, d), np.exp(normals(seed + 1, d))
    world, x = GaussianDiffusion(mean, variances), normals(seed + 2, 1, d)
    signal, noise = np.exp(0.5 * level), np.sqrt(-np.expm1(level))
    at, log_prob = np.asarray([level]), 0.0
    for j in range(d):
        law = Gaussian(np.asarray([mean[j], 0.0]), np.diag([variances[j], 1.0]))
        mix = np.asarray([[1.0, 0.0], [0.0, 1.0], [signal, noise]])
        joint = law.affine(mix, np.zeros(3), 1e-13 * np.eye(3))
        known = joint.conditional([2], x[0, j : j + 1])
        np.testing.assert_allclose(
            [world.clean(x, at)[0, j], world.epsilon(x, at)[0, j]], known.mean, atol=1e-6
        )
        errors = [world.clean_error(at)[0, j], world.epsilon_error(at)[0, j]]
        np.testing.assert_allclose(errors, np.diag(known.covariance), rtol=1e-4, atol=1e-7)
        marginal = joint.marginal([2])
        log_prob += marginal.log_prob(x[0, j : j + 1])
        np.testing.assert_allclose(world.score(x, at)[0, j], marginal.score(x[0, j : j + 1])[0])
    for density in (world.log_prob(x, at)[0], world.log_prob(x[0], level)):
        np.testing.assert_allclose(density, log_prob, rtol=1e-9)
    step, spread = world.reverse(at, np.zeros(1))  # x_0 given x_t is the step to level 0
    for got, want in zip(world.posterior(x, at), (step(x), spread), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def moments(mean, variance):
    """A normal law of independent coordinates."""
    return Gaussian(mean, np.diag(variance))


@pytest.mark.equation("DDPM-8")
@pytest.mark.equation("DDPM-9")
@pytest.mark.equation("VDM-9")
@given(seeds(), sizes(4), transitions(), st.floats(0.3, 3.0))
def test_terms_of_the_gaussian_world_are_mean_divergences(seed, d, pair, factor):
    """E KL and E[-log N], exactly: each is quadratic in (x_0, x_t), so eight corners average it."""
    mean, variances = normals(seed, d), np.exp(normals(seed + 1, d))
    world = GaussianDiffusion(mean, variances)
    now, before = (float(level[0]) for level in pair)
    sigma2 = factor * np.exp(normals(seed + 2, d))
    signal, noise_t = np.exp(0.5 * now), -np.expm1(now)
    beta, noise_s = -np.expm1(now - before), -np.expm1(before)
    prior, transition, first = [], [], []
    for a in (-1.0, 1.0):
        for b in (-1.0, 1.0):
            x0 = mean + a * np.sqrt(variances)
            x_t = signal * x0 + b * np.sqrt(noise_t)
            # q(x_s | x_t, x_0) by conditioning, and the model's step: the same mean at E[x_0 | x_t]
            slope = np.exp(0.5 * (now - before))
            gain = slope * noise_s / noise_t
            true = np.exp(0.5 * before) * x0 + gain * (x_t - signal * x0)
            shrink = signal * variances / (signal**2 * variances + noise_t)
            clean = mean + shrink * (x_t - signal * mean)
            guess = np.exp(0.5 * before) * clean + gain * (x_t - signal * clean)
            small = np.full(d, beta * noise_s / noise_t)
            prior.append(
                moments(signal * x0, np.full(d, noise_t)).kl(moments(0.0 * x0, 0.0 * x0 + 1))
            )
            transition.append(moments(true, small).kl(moments(guess, sigma2)))
            first.append(-moments(clean, sigma2).log_prob(x0))
    at = np.asarray([now]), np.asarray([before])
    np.testing.assert_allclose(world.prior_kl(at[0])[0], np.mean(prior), rtol=1e-7, atol=1e-10)
    got = world.transition_kl(sigma2, *at)[0]
    np.testing.assert_allclose(got, np.mean(transition), rtol=1e-6, atol=1e-9)
    got = world.reconstruction(sigma2, at[0])[0]
    np.testing.assert_allclose(got, np.mean(first), rtol=1e-8, atol=1e-10)


@pytest.mark.equation("DDPM-17")
@pytest.mark.equation("DDPM-7")
@given(seeds(), noise_levels(5), st.floats(0.2, 4.0))
def test_exact_reverse_kernels_lead_back_from_the_marginal(seed, levels, variance):
    """From q(x_T) through the reverse kernels to the data: means and variances, exactly."""
    world = GaussianDiffusion(normals(seed, 2), np.asarray([variance, 1.0]))
    mean, spread = (a[0] for a in world.marginal(levels[-1:]))
    for t in range(len(levels) - 1, 0, -1):
        step, added = world.reverse(levels[t], levels[t - 1])
        gain = step(np.ones(2)) - step(np.zeros(2))
        mean, spread = step(mean), gain**2 * spread + added
    np.testing.assert_allclose(mean, world.mean, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(spread, world.variances, rtol=1e-8)


@pytest.mark.equation("DDPM-7")
@pytest.mark.equation("DDPM-17")
@given(seeds(), transitions(), st.floats(0.2, 4.0))
def test_the_exact_reverse_step_is_bayes_rule(seed, pair, variance):
    """q(x_s | x_t) from the joint of the two latents."""
    now, before = (float(level[0]) for level in pair)
    world, x = GaussianDiffusion(normals(seed, 1), np.asarray([variance])), normals(seed + 1, 3, 1)
    means, spreads = zip(*(world.marginal(level) for level in (before, now)), strict=True)
    cross = np.exp(0.5 * (now - before)) * spreads[0][0]
    covariance = np.asarray([[spreads[0][0], cross], [cross, spreads[1][0]]])
    law = Gaussian(np.concatenate(means), covariance)
    step, added = world.reverse(now, before)
    for value in x:
        exact = law.conditional([1], value)
        np.testing.assert_allclose(step(value), exact.mean, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(added, exact.covariance[0], rtol=1e-6, atol=1e-9)


@pytest.mark.equation("DDPM-7")
@pytest.mark.equation("VDM-4")
def test_samples_of_the_gaussian_world_have_the_measured_variances():
    """T = 1000, linear schedule, no noise at the last step; three choices of the variance."""
    levels = np.concatenate([[0.0], np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))])
    beta = -np.expm1(np.diff(levels))
    small = beta * np.expm1(levels[:-1]) / np.expm1(levels[1:])
    want = {(4.0, "large"): 3.99057, (4.0, "small"): 3.97478, (1.0, "small"): 0.99107}
    for (variance, choice), expected in want.items():
        world = GaussianDiffusion(np.zeros(1), np.asarray([variance]))
        noise = (beta if choice == "large" else small)[:, None].copy()
        noise[0] = 0.0
        assert world.sampled(levels, noise)[1][0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.equation("DDPM-8")
@pytest.mark.equation("TRAP-10")
def test_bounds_of_the_gaussian_world_at_a_thousand_steps():
    """s² = 4: σ² = β costs 2.11294 nats, β̃ (with β̃_2 at t = 1) 2.69596, the optimum 2.11209."""
    levels = np.concatenate([[0.0], np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))])
    world = GaussianDiffusion(np.zeros(1), np.asarray([4.0]))
    beta = -np.expm1(np.diff(levels))[:, None]
    small = beta * (np.expm1(levels[:-1]) / np.expm1(levels[1:]))[:, None]
    small[0] = small[1]
    _, variance = world.marginal(levels)
    exact = beta * variance[:-1] / variance[1:]
    found = [world.bound(levels, choice) for choice in (beta, small, exact)]
    np.testing.assert_allclose(found, [2.11294, 2.69596, 2.11209], atol=2e-5)
    assert found[2] >= Gaussian(np.zeros(1), 4.0 * np.eye(1)).entropy()


ONE = Mixture(NUMPY, [1.0], [[0.4]], [[[0.7]]])


TWO = Mixture(NUMPY, [0.3, 0.7], [[-1.0], [0.8]], [[[0.04]], [[0.09]]])


@pytest.mark.equation("DDPM-8")
@pytest.mark.equation("DDPM-9")
@pytest.mark.equation("DDPM-17")
@pytest.mark.equation("VDM-9")
@pytest.mark.equation("SCORE-1")
@pytest.mark.equation("SCORE-3")
@pytest.mark.equation("SCORE-4")
@given(st.floats(-6.0, -0.05))
def test_a_mixture_of_one_is_the_gaussian_world(level):
    mixture, normal = MixtureDiffusion(ONE), GaussianDiffusion(np.asarray([0.4]), np.asarray([0.7]))
    x, at = np.linspace(-2.0, 2.0, 5)[:, None], np.full(5, level)
    np.testing.assert_allclose(mixture.clean(x, level), normal.clean(x, at), atol=1e-10)
    np.testing.assert_allclose(mixture.epsilon(x, level), normal.epsilon(x, at), atol=1e-9)
    np.testing.assert_allclose(mixture.score(x, level), normal.score(x, at), atol=1e-10)
    np.testing.assert_allclose(mixture.log_prob(x, level), normal.log_prob(x, at), atol=1e-10)
    given_x = mixture.posterior(x[1], level)
    mean, variance = (a[1] for a in normal.posterior(x, at))
    np.testing.assert_allclose(given_x.mean, mean, atol=1e-10)
    np.testing.assert_allclose(given_x.covariance[0], variance, rtol=1e-9)
    np.testing.assert_allclose(mixture.clean_error(at), normal.clean_error(at), rtol=1e-9)
    entropy = Gaussian(np.zeros(1), normal.marginal(level)[1][:, None]).entropy()
    assert mixture.entropy(level) == pytest.approx(entropy, rel=1e-9)
    levels = np.asarray([0.0, 0.3 * level, level])
    variances = np.asarray([0.2, 0.3])
    want = normal.bound(levels, variances[:, None])
    assert mixture.bound(levels, variances) == pytest.approx(want, rel=1e-8, abs=1e-10)
    terms = (
        mixture.prior_kl(levels[2:])[0]
        + mixture.transition_kl(variances[1], levels[2:], levels[1:2])[0]
        + mixture.reconstruction(variances[0], levels[1:2])[0]
    )
    assert terms == pytest.approx(want, rel=1e-8, abs=1e-10)


@pytest.mark.equation("SCORE-1")
@pytest.mark.equation("SCORE-3")
@pytest.mark.equation("SCORE-4")
@pytest.mark.equation("DDPM-17")
@given(st.floats(-4.0, -0.05), st.floats(-2.0, 2.0))
def test_the_world_of_a_mixture_by_bayes_rule_on_a_grid(level, at):
    """Everything that is known about x_0 and ε given x_t, from p(x_0) q(x_t | x_0)."""
    world, x_t = MixtureDiffusion(TWO), np.asarray([[at]])
    x0 = np.linspace(-5.0, 5.0, 4001)
    prior = sum(
        weight * np.exp(-0.5 * (x0 - m) ** 2 / v) / np.sqrt(2.0 * pi * v)
        for weight, m, v in ((0.3, -1.0, 0.04), (0.7, 0.8, 0.09))
    )
    signal, variance = np.exp(0.5 * level), -np.expm1(level)
    eps = (at - signal * x0) / np.sqrt(variance)
    joint = prior * np.exp(-0.5 * eps**2) / np.sqrt(2.0 * pi * variance)
    total = 0.0025 * joint.sum()
    shares = 0.0025 * joint / total
    assert world.log_prob(x_t, level)[0] == pytest.approx(log(total), abs=1e-9)
    assert world.clean(x_t, level)[0, 0] == pytest.approx(shares @ x0, abs=1e-9)
    assert world.epsilon(x_t, level)[0, 0] == pytest.approx(shares @ eps, abs=1e-8)
    score = -(shares @ eps) / np.sqrt(variance)
    assert world.score(x_t, level)[0, 0] == pytest.approx(score, rel=1e-8, abs=1e-8)
    exact = world.posterior(x_t[0], level)
    np.testing.assert_allclose(
        np.exp(exact.log_prob(x0[::50, None])), joint[::50] / total, rtol=1e-8, atol=1e-12
    )
    known = world.expect(lambda x: world.clean(x, level)[:, 0] ** 2, level)
    error = world.second_moment[0] - known
    assert world.clean_error(level)[0] == pytest.approx(error, rel=1e-8)


def widths(*variances):
    """Two components of these variances, the second off-centre."""
    return Mixture(NUMPY, [0.4, 0.6], [[0.0], [0.3]], [[[v]] for v in variances])


@given(st.floats(-14.0, 2.0), st.floats(-14.0, 2.0), st.floats(-6.0, -1e-9))
@example(-14.0, 0.0, 0.0)
@example(0.0, -14.0, -1e-6)
def test_expectations_over_a_mixture_of_unequal_widths(first, second, level):
    """E 1, E x and E x² at any ratio of widths; and E x_0² from the two parts given x_t."""
    mixture = widths(np.exp(first), np.exp(second))
    world, law = MixtureDiffusion(mixture), mixture.noised(level)
    mean, square = law.mean[0], law.covariance[0, 0] + law.mean[0] ** 2
    assert world.expect(lambda x: np.ones(len(x)), level) == pytest.approx(1.0, abs=1e-10)
    assert world.expect(lambda x: x[:, 0], level) == pytest.approx(mean, rel=1e-9)
    assert world.expect(lambda x: x[:, 0] ** 2, level) == pytest.approx(square, rel=1e-9)
    known = world.expect(lambda x: world.clean(x, level)[:, 0] ** 2, level)
    total = world.clean_error(level)[0] + known
    assert total == pytest.approx(world.second_moment[0], rel=1e-8)


def test_entropy_of_a_mixture_of_far_apart_widths():
    """A needle of width 1e-3 in a wide normal, far from it: the entropies and the choice add up."""
    mixture = Mixture(NUMPY, [0.25, 0.75], [[-50.0], [0.0]], [[[1e-6]], [[1.0]]])
    alone = [0.5 * log(2.0 * pi * np.e * v) for v in (1e-6, 1.0)]
    exact = 0.25 * (alone[0] - log(0.25)) + 0.75 * (alone[1] - log(0.75))
    assert MixtureDiffusion(mixture).entropy(0.0) == pytest.approx(exact, rel=1e-10)


def test_the_mixture_world_refuses_what_it_cannot_integrate():
    flat = Mixture(NUMPY, [1.0], [[0.0, 0.0]], [np.eye(2)])
    with pytest.raises(ValueError, match="one dimension, got 2"):
        MixtureDiffusion(flat)
    with pytest.raises(ValueError, match="at two resolutions must agree"):
        MixtureDiffusion(TWO).expect(lambda x: np.sin(1e4 * x[:, 0]), -0.1)
    needle = Mixture(NUMPY, [0.5, 0.5], [[0.0], [1e10]], [[[1.0]], [[1e-12]]])
    with pytest.raises(ValueError, match="here and exactly, must agree"):
        MixtureDiffusion(needle).entropy(0.0)  # the needle is narrower than the spacing of floats


@pytest.mark.equation("RD-12")
@given(seeds(), noise_levels(4, least=0.05), st.floats(0.1, 4.0))
def test_information_of_all_latents_is_that_of_the_last_one(seed, levels, variance):
    """I(x_0; x_t, ..., x_T) of the chain is I(x_0; x_t), and with its error a point on R(D)."""
    law = Mixture(NUMPY, [1.0], [[0.4]], [[[variance]]])
    world = MixtureDiffusion(law)
    beta = -np.expm1(np.diff(levels))
    arrows = np.diag(np.sqrt(1.0 - beta), k=-1)
    model = LinearNetwork(arrows, np.zeros(len(levels)), np.concatenate([[variance], beta])).joint
    for t in range(1, len(levels)):
        latents = range(t, len(levels))
        apart = model.marginal([0]).entropy() + model.marginal(latents).entropy()
        exact = apart - model.marginal([0, *latents]).entropy()
        assert world.information(levels[t]) == pytest.approx(exact, abs=1e-8)
        error = world.clean_error(levels[t])[0]
        assert world.information(levels[t]) == pytest.approx(rate_at_distortion(variance, error))


@pytest.mark.equation("RD-12")
def test_information_is_the_integral_of_the_error():
    """I-MMSE: ½ ∫ E(x_0 - E[x_0 | x_t])² dSNR between two levels is the information gained."""
    world = MixtureDiffusion(TWO)
    levels = np.log(np.asarray([0.3, 0.5]))
    snr = np.exp([float(log_snr(np.asarray(level))) for level in levels])
    nodes, weights = np.polynomial.legendre.leggauss(20)
    at = 0.5 * (snr[1] - snr[0]) * nodes + 0.5 * (snr[0] + snr[1])
    errors = world.clean_error(-np.log1p(1.0 / at))[:, 0]
    integral = 0.25 * (snr[1] - snr[0]) * float(weights @ errors)
    gained = world.information(levels[1]) - world.information(levels[0])
    assert gained == pytest.approx(integral, rel=1e-8)


@pytest.mark.equation("DVAE-5")
@given(
    st.floats(-1.5, 1.5),
    st.floats(0.1, 3.0),
    st.floats(0.1, 3.0),
    st.floats(-6.0, -0.05),
)
def test_a_hint_gives_the_gaussian_world_around_it(slope, variance, hint_variance, level):
    """By conditioning in the network x̂ → x_0 → x_t."""
    world, hint = HintedDiffusion(slope, variance, hint_variance), np.asarray([0.3, -1.2])
    signal, added = np.exp(0.5 * level), -np.expm1(level)
    arrows = np.asarray([[0.0, 0.0, 0.0], [slope, 0.0, 0.0], [0.0, signal, 0.0]])
    law = LinearNetwork(arrows, np.zeros(3), np.asarray([hint_variance, variance, added])).joint
    pair = law.marginal([1, 0])
    np.testing.assert_allclose(world.joint.covariance, pair.covariance, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(world.joint.mean, pair.mean)
    exact = law.conditional([0, 2], np.asarray([hint[0], 0.7]))
    assert world.clean_error(level) == pytest.approx(exact.covariance[0, 0], rel=1e-7)
    at = np.full(2, level)
    mean, spread = world.given(hint).posterior(np.full((2, 2), 0.7), at)
    assert mean[0, 0] == pytest.approx(exact.mean[0], rel=1e-7, abs=1e-9)
    assert spread[0, 0] == pytest.approx(exact.covariance[0, 0], rel=1e-7)
    alone = law.conditional([0], hint[1:])
    assert world.given(hint).mean[1] == pytest.approx(alone.mean[0], abs=1e-12)


def test_a_gaussian_world_refuses_what_no_diffusion_has():
    with pytest.raises(ValueError, match="all positive"):
        GaussianDiffusion(np.zeros(2), np.asarray([1.0, -1.0]))
    with pytest.raises(ValueError, match=r"need mean \(D,\) and variances \(D,\)"):
        GaussianDiffusion(np.zeros(2), np.ones(3))
    with pytest.raises(ValueError, match="at most 0, got 0.5"):
        GaussianDiffusion(np.zeros(1), np.ones(1)).score(np.zeros((1, 1)), np.asarray([0.5]))
