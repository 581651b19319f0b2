"""maths/diffusion_bound.py in the Gaussian world, where every term has a closed form."""

from functools import partial
from math import log, pi

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scratchgen.core.streams import Stream
from scratchgen.maths import diffusion_bound as b
from scratchgen.maths.densities import Mixture
from scratchgen.maths.forward_process import (
    kernel,
    log_snr,
    posterior,
    q_chain,
    q_posterior,
    q_sample,
    step_log_density,
)
from scratchgen.maths.gaussian import Gaussian
from scratchgen.testing import oracle
from scratchgen.testing.diffusion_worlds import GaussianDiffusion, MixtureDiffusion
from scratchgen.testing.monte_carlo import assert_mean
from scratchgen.testing.strategies import noise_levels, reals, seeds, sizes, transitions
from scratchgen.testing.worlds import LinearNetwork

from support import NUMPY, host, noise, normals, on_every_backend, tolerance

LEVELS = np.concatenate([[0.0], np.cumsum(np.log1p(-np.asarray([0.1, 0.3, 0.6])))])


def perturbed(world, levels, gain=0.9, shift=0.1, widen=1.2):
    """A reverse model near the perfect one: (x_t, t) -> (mean, logvar)."""

    def reverse(x, t):
        step, variance = world.reverse(levels[t], levels[t - 1])
        return gain * step(x) + shift, np.log(widen * variance) + np.zeros_like(x)

    return reverse


def perfect(world, levels):
    """The exact reverse kernels of the world."""
    return perturbed(world, levels, 1.0, 0.0, 1.0)


def controls_of(noise):
    """All noise of a path (V, n) -> (n, V + V²/2 ...): ε_i, ε_i² - 1 and ε_i ε_j."""
    v = len(noise)
    pairs = [noise[i] * noise[j] for i in range(v) for j in range(i)]
    return np.stack([*noise, *(noise**2 - 1.0), *pairs], axis=-1)


def paths(world, levels, seed):
    """(n, look) -> x_0, step noise, path and controls of n simulated chains, one-dimensional."""

    def draw(n, look):
        eps = Stream(seed, NUMPY).at(look).normal((len(levels), n, 1))
        x0 = world.mean + np.sqrt(world.variances) * eps[0]
        rows = np.tile(levels[:, None], (1, n))
        return x0, eps[1:], q_chain(x0, eps[1:], rows), rows, controls_of(eps[:, :, 0])

    return draw


def bound_of(world, levels, reverse):
    """E[-ELBO] of a linear reverse model, by Gaussian algebra: E_q log q - log p over all paths."""
    steps = len(levels) - 1
    arrows, offset = np.zeros((steps + 1, steps + 1)), np.zeros(steps + 1)
    variances = np.ones(steps + 1)  # nodes x_T, ..., x_0; the base is N(0, 1)
    for i, t in enumerate(range(steps, 0, -1)):
        offset[i + 1] = reverse(np.zeros((1, 1)), t)[0][0, 0]
        arrows[i + 1, i] = reverse(np.ones((1, 1)), t)[0][0, 0] - offset[i + 1]
        variances[i + 1] = np.exp(reverse(np.zeros((1, 1)), t)[1][0, 0])
    model = LinearNetwork(arrows, offset, variances)
    alpha_bar = np.exp(levels[::-1])
    mean = np.sqrt(alpha_bar) * world.mean[0]
    low, high = np.minimum.outer(alpha_bar, alpha_bar), np.maximum.outer(alpha_bar, alpha_bar)
    covariance = np.sqrt(low / high) * (1.0 - high + high * world.variances[0])
    truth = Gaussian(mean, covariance)  # of q(x_T, ..., x_0)
    conditional = Gaussian(truth.mean[-1:], truth.covariance[-1:, -1:]).entropy()
    return truth.kl(model.joint) + conditional, model


@pytest.mark.equation("VDM-9")
@pytest.mark.equation("VDM-6")
@pytest.mark.equation("DDPM-8")
@given(seeds(), sizes(3), st.floats(-9.0, -1e-3))
def test_the_prior_term_is_the_divergence_of_two_normals(seed, d, level):
    x0, at = normals(seed, 1, d), np.asarray([level])
    law = Gaussian(np.exp(0.5 * level) * x0[0], -np.expm1(level) * np.eye(d))
    want = law.kl(Gaussian(np.zeros(d), np.eye(d)))
    got, _ = b.prior_kl(x0, at)
    assert float(got[0]) == pytest.approx(want, rel=1e-8, abs=1e-9)
    oracle.check_pullback(b.prior_kl, normals(seed, 3, d), np.full(3, level))
    assert np.allclose(b.base_log_density(x0), Gaussian(np.zeros(d), np.eye(d)).log_prob(x0))


@pytest.mark.equation("DDPM-8")
@pytest.mark.equation("DDPM-9")
@pytest.mark.equation("VDM-9")
@given(seeds(), sizes(3), transitions(), st.floats(-3.0, 1.0))
def test_a_transition_term_is_the_divergence_of_two_normals(seed, d, pair, logvar):
    """At any x_t, which cancels."""
    x0, guess, x_t = (normals(seed + i, 1, d) for i in range(3))
    now, before = pair
    mean, variance = q_posterior(x0, x_t, now, before)
    model, _ = q_posterior(guess, x_t, now, before)
    truth = Gaussian(mean[0], variance[0] * np.eye(d))
    want = truth.kl(Gaussian(model[0], np.exp(logvar) * np.eye(d)))
    got, _ = b.transition_kl(x0, guess, np.full((1, d), logvar), now, before)
    assert float(got[0]) == pytest.approx(want, rel=1e-7, abs=1e-8)
    wide = [normals(seed + i, 2, d) for i in range(3)]
    levels = [np.broadcast_to(v, (2,)) for v in pair]
    oracle.check_pullback(
        lambda hat, lv: b.transition_kl(wide[0], hat, lv, *levels), wide[1], wide[2]
    )


@pytest.mark.equation("DDPM-9")
@pytest.mark.equation("DDPM-12")
@pytest.mark.equation("DDPM-14")
@given(seeds(), sizes(3), transitions(), st.floats(0.3, 3.0))
def test_three_forms_of_the_same_term(seed, d, pair, ratio):
    """KL = (weight of ‖x_0 - x̂₀‖²) + C_t = λ_t ‖ε - ε̂‖² + C_t, pointwise for every prediction."""
    x0, eps, guess = (normals(seed + i, 1, d) for i in range(3))
    now, before = pair
    variance = ratio * posterior(now, before)[2]
    x_t, _ = q_sample(x0, eps, now)
    signal, noise = np.exp(0.5 * now[0]), np.sqrt(-np.expm1(now[0]))
    eps_hat = (x_t - signal * guess) / noise
    kl, _ = b.transition_kl(x0, guess, np.log(variance[0]) + np.zeros((1, d)), now, before)
    constant = b.variance_constant(variance, now, before, d)
    through_clean = b.clean_weight(variance, now, before) * b.squared_error(x0, guess)[0]
    through_eps = b.epsilon_weight(variance, now, before) * b.squared_error(eps, eps_hat)[0]
    np.testing.assert_allclose(through_clean + constant, kl, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(through_eps + constant, kl, rtol=1e-6, atol=1e-9)
    assert constant[0] >= 0.0
    textbook = 0.5 * d * (1.0 / ratio - 1.0 + np.log(ratio))
    np.testing.assert_allclose(constant, textbook, rtol=1e-6, atol=1e-11)


@pytest.mark.equation("DDPM-12")
@pytest.mark.equation("DDPM-14")
@given(transitions())
def test_weights_at_the_true_variance_are_differences_of_the_noise_level(pair):
    """λ = ½ (e^(γ_t - γ_s) - 1) = β/(2α(1-ᾱ_s)), and in x_0 ½ (SNR_s - SNR_t)."""
    now, before = pair
    variance = posterior(now, before)[2]
    gap = log_snr(before) - log_snr(now)
    got = b.epsilon_weight(variance, now, before)
    np.testing.assert_allclose(got, 0.5 * np.expm1(gap), rtol=1e-8)
    alpha = np.exp(now - before)
    np.testing.assert_allclose(got, (1 - alpha) / (-2 * alpha * np.expm1(before)), rtol=1e-8)
    snr = np.exp(log_snr(before)) - np.exp(log_snr(now))
    np.testing.assert_allclose(b.clean_weight(variance, now, before), 0.5 * snr, rtol=1e-8)


@pytest.mark.equation("DDPM-12")
@pytest.mark.equation("ERR-27")
def test_weights_of_the_linear_schedule():
    """σ² = β: 0.5000 at t = 1, least 0.00497 at 349, up again to 0.0102; σ² = β̃: ∞ at t = 1."""
    levels = np.concatenate([[0.0], np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))])
    now, before = levels[1:], levels[:-1]
    large = b.epsilon_weight(kernel(now, before)[1], now, before)
    want = [0.50005, 0.27269, 0.07372, 0.01008, 0.00550, 0.01020]
    np.testing.assert_allclose(large[[0, 1, 9, 99, 499, 999]], want, atol=6e-6)
    assert int(np.argmin(large)) + 1 == 349
    assert large.min() == pytest.approx(0.00497, abs=5e-6)
    small = b.epsilon_weight(posterior(now, before)[2][1:], now[1:], before[1:])
    want = [0.59967, 0.08644, 0.01027, 0.00551, 0.01020]
    np.testing.assert_allclose(small[[0, 8, 98, 498, 998]], want, atol=6e-6)
    with np.errstate(divide="ignore"):
        first = b.epsilon_weight(posterior(now[:1], before[:1])[2], now[:1], before[:1])
    assert first[0] == np.inf


@pytest.mark.equation("DDPM-12")
@pytest.mark.equation("DDPM-13")
@given(seeds(), st.floats(0.2, 4.0), st.floats(-6.0, -0.05))
def test_the_simple_loss_of_the_perfect_net_is_its_known_error(seed, variance, level):
    """E‖ε - ε*‖² = m = ᾱ s²/V_t, and E‖ε - ε*‖⁴ = 3m²: the square of a normal number."""
    world = GaussianDiffusion(np.asarray([0.5]), np.asarray([variance]))

    def losses(n, look):
        draws = noise(seed, look, 2, n, 1)
        x0 = world.mean + np.sqrt(world.variances) * draws[0]
        x_t, _ = q_sample(x0, draws[1], np.full(n, level))
        prediction = world.epsilon(x_t, np.full(n, level))
        return b.squared_error(draws[1], prediction)[0], controls_of(draws[:, :, 0])

    want = float(world.epsilon_error(level)[0])
    assert_mean(lambda n, look: losses(n, look)[0], want, resolution=0.05 * want)
    assert_mean(losses, want, resolution=1e-9)
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)  # exact for the square of the loss
    x0, eps = np.meshgrid(world.mean[0] + np.sqrt(world.variances[0]) * nodes, nodes)
    at = np.full(25, level)
    x_t, _ = q_sample(x0.reshape(-1, 1), eps.reshape(-1, 1), at)
    loss, _ = b.squared_error(eps.reshape(-1, 1), world.epsilon(x_t, at))
    both = np.outer(weights, weights).ravel() / weights.sum() ** 2
    assert both @ loss == pytest.approx(want, rel=1e-9)
    assert both @ loss**2 == pytest.approx(3.0 * want**2, rel=1e-9)
    oracle.check_pullback(partial(b.squared_error, normals(seed, 3, 2)), normals(seed + 1, 3, 2))


@pytest.mark.equation("DDPM-13")
@given(seeds(), st.floats(0.2, 4.0), noise_levels(5))
def test_the_simple_loss_weighs_every_step_alike(seed, variance, levels):
    """With t uniform on 1..T, t = 1 among them, its mean is the average of the T errors."""
    world, steps = GaussianDiffusion(np.zeros(1), np.asarray([variance])), len(levels) - 1

    def losses(n, look):
        draws = noise(seed, look, 2, n, 1)
        t = 1 + (np.arange(n) * steps) // n  # each step equally often
        x_t, _ = q_sample(np.sqrt(world.variances) * draws[0], draws[1], levels[t])
        return b.squared_error(draws[1], world.epsilon(x_t, levels[t]))[0]

    want = float(world.epsilon_error(levels[1:]).mean())
    assert_mean(losses, want, resolution=0.05 * want)


@pytest.mark.equation("DDPM-17")
@given(st.floats(0.1, 5.0), transitions(), st.floats(0.8, 1.25))
def test_the_optimal_variance_is_the_true_reverse_variance_and_a_minimum(variance, pair, factor):
    now, before = pair
    world = GaussianDiffusion(np.asarray([0.0]), np.asarray([variance]))
    best = b.optimal_variance(world.clean_error(now).sum(axis=-1), now, before, 1)
    exact = world.reverse(now, before)[1]
    np.testing.assert_allclose(best, exact[:, 0], rtol=1e-7)
    assume(abs(factor - 1.0) > 1e-3)
    least = world.transition_kl(best[:, None], now, before)
    assert np.all(world.transition_kl(factor * best[:, None], now, before) > least)


@pytest.mark.equation("DDPM-17")
@pytest.mark.equation("TRAP-9")
def test_the_optimal_variance_lies_between_the_two_usual_ones_only_for_narrow_data():
    now, before = np.asarray([-0.5]), np.asarray([-0.2])
    small, large = posterior(now, before)[2][0], kernel(now, before)[1][0]
    for variance, inside in ((0.3, True), (1.0, True), (4.0, False)):
        world = GaussianDiffusion(np.zeros(3), np.full(3, variance))
        error = world.clean_error(now).sum(axis=-1)
        best = b.optimal_variance(error, now, before, 3)[0]
        assert (small <= best <= large * (1.0 + 1e-12)) == inside
        if variance == 1.0:
            assert best == pytest.approx(large, rel=1e-12)


@pytest.mark.equation("VDM-4")
@pytest.mark.equation("DDPM-7")
@given(seeds(), noise_levels(4), reals(1.0), st.floats(0.2, 3.0))
def test_the_joint_is_that_of_the_linear_network(seed, levels, mean, variance):
    """Base N(0, 1), then the reverse steps: the density of a whole path, in reversed order."""
    world = GaussianDiffusion(np.asarray([mean]), np.asarray([variance]))
    reverse = perturbed(world, levels)
    _, model = bound_of(world, levels, reverse)
    path = normals(seed, len(levels), 3, 1)
    got = b.joint_log_density(path, reverse)
    want = model.log_prob(path[::-1, :, 0].T)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-8)
    steps = zip(levels[1:], levels[:-1], strict=True)
    got = world.sampled(levels, [world.reverse(*step)[1] for step in steps])
    _, exact = bound_of(world, levels, perfect(world, levels))
    last = exact.joint.marginal([len(levels) - 1])
    np.testing.assert_allclose(np.concatenate(got), [last.mean[0], last.covariance[0, 0]])


@pytest.mark.equation("DDPM-7")
def test_the_true_reverse_step_becomes_normal_as_the_step_shrinks():
    """q(x_s | x_t) ∝ q(x_t | x_s) q(x_s) of a mixture: kurtosis → 0 and variance/β → 1."""
    mixture = Mixture(NUMPY, [0.4, 0.6], [[-1.0], [0.8]], [[[0.05]], [[0.1]]])
    grid, before = np.linspace(-8.0, 8.0, 40001)[:, None], -0.4
    marginal = mixture.noised(before).log_prob(grid)
    found = []
    for beta in (0.5, 0.2, 0.05, 0.01):
        now = before + log(1.0 - beta)
        at = (np.full(len(grid), now), np.full(len(grid), before))
        density = np.exp(marginal + step_log_density(np.zeros_like(grid), grid, *at))
        weights = density / density.sum()
        centred = grid[:, 0] - weights @ grid[:, 0]
        variance = weights @ centred**2
        found.append((abs(weights @ centred**4 / variance**2 - 3.0), variance / beta))
    kurtosis, ratio = np.asarray(found).T
    assert np.all(np.diff(kurtosis) < 0.0)
    assert 50.0 * kurtosis[-1] < kurtosis[0]
    assert abs(ratio[-1] - 1.0) < 0.02 < abs(ratio[0] - 1.0)


@pytest.mark.equation("VDM-7")
@pytest.mark.equation("ELBO-6")
def test_with_exact_kernels_the_ratio_is_the_evidence_on_every_path():
    """Data N(0, 1) stay N(0, 1), so the base is exact too: the ratio has no variance at all."""
    world = GaussianDiffusion(np.zeros(1), np.ones(1))
    x0, _, path, rows, _ = paths(world, LEVELS, 3)(50, 0)
    got = b.path_bound(path, perfect(world, LEVELS), rows)
    np.testing.assert_allclose(got, -0.5 * (x0[:, 0] ** 2 + log(2.0 * pi)), rtol=1e-9, atol=1e-10)


@pytest.mark.equation("VDM-7")
@pytest.mark.equation("VDM-8")
@pytest.mark.equation("VDM-9")
@pytest.mark.equation("ELBO-6")
@pytest.mark.equation("TRAP-1")
@given(seeds(), st.floats(0.3, 3.0), noise_levels(4, least=0.05))
def test_three_splits_have_the_same_mean_which_is_the_bound(seed, variance, levels):
    """By simulation, plainly and with controls that leave no variance, for an imperfect model."""
    world = GaussianDiffusion(np.asarray([0.7]), np.asarray([variance]))
    reverse = perturbed(world, levels)
    want, model = bound_of(world, levels, reverse)
    draw = paths(world, levels, seed)

    def whole(n, look):
        _, _, path, rows, controls = draw(n, look)
        return -b.path_bound(path, reverse, rows), controls

    def consistent(n, look):
        _, _, path, rows, controls = draw(n, look)
        return sum(b.consistency_split(path, reverse, rows)), controls

    def through_posterior(n, look):
        x0, noise, _, rows, controls = draw(n, look)
        return sum(b.posterior_split(x0, noise, reverse, rows)), controls

    scale = 1.0 + abs(want) + 1.0 / float(np.exp(reverse(np.ones((1, 1)), 1)[1])[0, 0])
    for split in (whole, consistent, through_posterior):
        assert_mean(split, want, resolution=1e-8 * scale)
    values = whole(4096, 0)[0]
    spread = float(values.std())
    plain = lambda n, look: whole(n, look)[0]
    assert_mean(plain, want, resolution=0.05 * max(abs(want), spread))
    evidence = model.joint.marginal([len(levels) - 1])
    truth = Gaussian(world.mean, np.diag(world.variances))
    cross = truth.entropy() + truth.kl(evidence)
    assert want >= cross - 1e-9 >= truth.entropy() - 2e-9


@pytest.mark.equation("VDM-8")
@pytest.mark.equation("VDM-9")
@pytest.mark.equation("DDPM-8")
@given(seeds(), noise_levels(4))
def test_every_term_of_two_splits_pointwise(seed, levels):
    """Densities and divergences of normals in one dimension, from the moments alone."""
    world = GaussianDiffusion(np.asarray([0.7]), np.asarray([1.3]))
    reverse, last = perturbed(world, levels), len(levels) - 1
    x0, noise, path, rows, _ = paths(world, levels, seed)(1, 0)

    def law(mean, variance):
        return Gaussian(np.ravel(mean), np.reshape(variance, (1, 1)))

    def model(x, t):
        mean, logvar = reverse(x, t)
        return law(mean, np.exp(logvar))

    def step(t):
        root = np.exp(0.5 * (levels[t] - levels[t - 1]))
        return float(law(root * path[t - 1], 1.0 - root**2).log_prob(path[t, 0]))

    def back(t):
        return float(model(path[t], t).log_prob(path[t - 1, 0]))

    got = [float(term[0]) for term in b.consistency_split(path, reverse, rows)]
    middle = sum(step(t) - back(t + 1) for t in range(1, last))
    end = step(last) - float(law(0.0, 1.0).log_prob(path[last, 0]))
    np.testing.assert_allclose(got, [-back(1), end, middle], rtol=1e-6, atol=1e-6)

    signal, noises = np.exp(0.5 * levels), np.sqrt(-np.expm1(levels))
    want = [law(signal[last] * x0, noises[last] ** 2).kl(law(0.0, 1.0))]
    for t in range(last, 1, -1):
        x_t = signal[t] * x0 + noises[t] * noise[t - 1]
        c0, c, variance = posterior(levels[[t]], levels[[t - 1]])
        want.append(law(c0 * x0 + c * x_t, variance).kl(model(x_t, t)))
    x_1 = signal[1] * x0 + noises[1] * noise[0]
    want.append(-float(model(x_1, 1).log_prob(x0[0])))
    got = [float(term[0]) for term in b.posterior_split(x0, noise, reverse, rows)]
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.equation("DDPM-9")
@pytest.mark.equation("VDM-9")
@pytest.mark.equation("DDPM-8")
@given(seeds(), noise_levels(4, least=0.05))
def test_every_term_of_the_posterior_split_has_its_closed_form(seed, levels):
    """L_T, each L_{t-1} and L_0 alone, for the perfect prediction with two variances."""
    world = GaussianDiffusion(np.asarray([0.3]), np.asarray([1.7]))
    draw = paths(world, levels, seed)
    steps = list(zip(levels[1:], levels[:-1], strict=True))
    for widen in (1.0, 1.4):
        reverse = perturbed(world, levels, 1.0, 0.0, widen)
        variances = np.stack([widen * world.reverse(*step)[1] for step in steps])
        closed = [world.prior_kl(levels[-1])]
        closed += [
            world.transition_kl(variances[t - 1], *steps[t - 1]) for t in range(len(steps), 1, -1)
        ]
        closed.append(world.reconstruction(variances[0], levels[1]))
        for i, want in enumerate(closed):

            def term(n, look, i=i, reverse=reverse):
                x0, noise, _, rows, controls = draw(n, look)
                return b.posterior_split(x0, noise, reverse, rows)[i], controls

            scale = 1.0 + abs(float(want)) + 1.0 / float(variances.min())
            assert_mean(term, float(want), resolution=1e-8 * scale)
        assert world.bound(levels, variances) == pytest.approx(float(sum(closed)), rel=1e-10)


@pytest.mark.equation("DDPM-8")
@pytest.mark.equation("VDM-9")
@given(st.lists(st.floats(0.1, 4.0), min_size=1, max_size=3), noise_levels(6))
def test_with_the_true_reverse_variance_the_bound_is_entropy_plus_the_prior_gap(variances, levels):
    """Σ terms = h(x_0) + KL(q(x_T) ‖ N(0, I)); any other variance costs more."""
    world = GaussianDiffusion(np.zeros(len(variances)), np.asarray(variances))
    steps = list(zip(levels[1:], levels[:-1], strict=True))
    exact = np.stack([world.reverse(*step)[1] for step in steps])
    _, last = world.marginal(levels[-1])
    gap = Gaussian(np.zeros(len(last)), np.diag(last)).kl(
        Gaussian(np.zeros(len(last)), np.eye(len(last)))
    )
    entropy = Gaussian(world.mean, np.diag(world.variances)).entropy()
    best = world.bound(levels, exact)
    assert best == pytest.approx(entropy + gap, rel=1e-8, abs=1e-8)
    assert world.bound(levels, 1.3 * exact) > best


@pytest.mark.equation("DDPM-8")
def test_the_bound_of_a_mixture_tightens_with_more_steps():
    """With the best single variance per step, towards the entropy of the data."""
    mixture = Mixture(NUMPY, [0.3, 0.7], [[-1.0], [0.8]], [[[0.04]], [[0.09]]])
    world, gaps = MixtureDiffusion(mixture), []
    for steps in (5, 20, 80):
        levels = -9.0 * np.linspace(0.0, 1.0, steps + 1) ** 2
        pairs = zip(levels[1:], levels[:-1], strict=True)
        best = [
            b.optimal_variance(world.clean_error(t), np.asarray([t]), np.asarray([s]), 1)[0]
            for t, s in pairs
        ]
        gaps.append(world.bound(levels, np.asarray(best)) - world.entropy(0.0))
    assert gaps[0] > 2.0 * gaps[1] > 4.0 * gaps[2] > 0.0


@pytest.mark.equation("VDM-9")
def test_one_random_term_of_the_posterior_split_varies_least():
    """At T = 50 the consistency split's random term varies tens of times as much."""
    levels = np.concatenate([[0.0], np.cumsum(np.log1p(-np.linspace(0.002, 0.2, 50)))])
    world = GaussianDiffusion(np.asarray([0.7]), np.asarray([2.0]))
    reverse = perfect(world, levels)
    x0, noise, path, rows, _ = paths(world, levels, 4)(2000, 0)
    middle = np.stack(b.posterior_split(x0, noise, reverse, rows)[1:-1])
    each = [
        b.consistency_split(path[t - 1 : t + 2], partial(_later, reverse, t), rows[t - 1 : t + 2])[
            2
        ]
        for t in range(1, 50)
    ]
    assert np.var(np.stack(each)) > 20.0 * np.var(middle)


def _later(reverse, t, x, i):
    return reverse(x, t + i - 1)


@on_every_backend
def test_every_backend_agrees(born):
    x0, guess, logvar = normals(0, 4, 2), normals(1, 4, 2), 0.3 * normals(2, 4, 2)
    noise = normals(3, 3, 4, 2)

    def everything(made):
        xp = made.xp
        table = xp.asarray(LEVELS, dtype=xp.float64, device=made.device)
        rows = xp.stack([table] * 4, axis=-1)
        data, hat, lv, eps = (made.asarray(v) for v in (x0, guess, logvar, noise))
        now, before = rows[3, ...], rows[2, ...]
        value, pullback = b.prior_kl(data, now)
        yield value
        yield from pullback(value)
        value, pullback = b.transition_kl(data, hat, lv, now, before)
        yield value
        yield from pullback(value)
        value, pullback = b.squared_error(data, hat)
        yield value
        yield pullback(value)
        path = q_chain(data, eps, rows)
        reverse = lambda x, t: (0.9 * x + 0.01 * t, -0.5 + 0.0 * x)
        yield b.path_bound(path, reverse, rows)
        yield from b.consistency_split(path, reverse, rows)
        yield from b.posterior_split(data, eps, reverse, rows)

    for got, want in zip(everything(born), everything(NUMPY), strict=True):
        oracle.assert_close(host(got), want, 50 * tolerance(born), "value")
        assert got.dtype == born.zeros((1,)).dtype
    weights = [b.epsilon_weight, b.clean_weight]
    at = [np.asarray([v]) for v in (0.1, -1.0, -0.5)]
    there = [born.xp.asarray(v, dtype=born.xp.float64, device=born.device) for v in at]
    for weight in [*weights, partial(b.variance_constant, dims=3)]:
        np.testing.assert_allclose(host(weight(*there)), weight(*at), rtol=1e-12)
    got = b.optimal_variance(*there, dims=3)
    np.testing.assert_allclose(host(got), b.optimal_variance(*at, dims=3), rtol=1e-12)
