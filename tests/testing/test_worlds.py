"""testing/worlds.py: the truths that models are compared with, held against each other."""

from math import log, pi

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scratchgen.core.streams import Stream
from scratchgen.maths import likelihoods as lk
from scratchgen.maths.bounds import elbo, importance_weighted_bound
from scratchgen.maths.densities import Mixture
from scratchgen.maths.forward_process import log_snr
from scratchgen.maths.gaussian import Gaussian
from scratchgen.models.vae import Vae
from scratchgen.nets.mlp import mlp
from scratchgen.testing import worlds
from scratchgen.testing.monte_carlo import assert_mean
from scratchgen.testing.strategies import noise_levels, seeds, sizes, transitions
from scratchgen.testing.worlds import (
    Discrete,
    GaussianDiffusion,
    HintedDiffusion,
    LatentQuadrature,
    LinearGaussian,
    LinearNetwork,
    MixtureDiffusion,
    RotationWorld,
    distortion_at_rate,
    rate_at_distortion,
)

from support import NUMPY, bound, normals


def table(seed, *shape):
    weights = np.exp(normals(seed, *shape))
    return weights / weights.sum()


def linear(seed, k, d):
    return LinearGaussian(normals(seed, k, d), normals(seed + 1, d), 0.3)


def normal_law(seed, dims):
    root = normals(seed, dims, dims + 1)
    return Gaussian(normals(seed + 1, dims), root @ root.T + 0.1 * np.eye(dims))


def network(seed, nodes):
    arrows = np.tril(normals(seed, nodes, nodes), k=-1)
    return LinearNetwork(arrows, normals(seed + 1, nodes), np.exp(normals(seed + 2, nodes)))


@pytest.mark.equation("ELBO-1")
@pytest.mark.equation("ELBO-2")
@pytest.mark.equation("ELBO-3")
@given(seeds(), st.integers(1, 5), st.integers(1, 5))
def test_discrete_world(seed, states, values):
    """Bayes' rule, Jensen's bound and the exact gap, all by summation."""
    world = Discrete(table(seed, states, values))
    q = np.exp(normals(seed + 1, states, values))
    q /= q.sum(axis=0)
    np.testing.assert_allclose(world.evidence.sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(world.posterior.sum(axis=0), 1.0, rtol=1e-12)
    np.testing.assert_allclose(world.posterior * world.evidence, world.joint, rtol=1e-12)
    lower = world.elbo(q)
    assert np.all(lower <= np.log(world.evidence) + 1e-12)
    total = lower + world.gap(q)
    np.testing.assert_allclose(total, np.log(world.evidence), rtol=1e-9, atol=1e-12)
    terms = (q * elbo(-np.log(world.joint), np.log(q))).sum(axis=0)
    np.testing.assert_allclose(terms, lower, rtol=1e-10, atol=1e-12)


@pytest.mark.equation("ELBO-4")
@given(seeds(), st.integers(1, 5), st.integers(1, 5))
def test_the_bound_is_tight_at_the_posterior_and_nowhere_else(seed, states, values):
    world = Discrete(table(seed, states, values))
    evidence = np.log(world.evidence)
    np.testing.assert_allclose(world.elbo(world.posterior), evidence, rtol=1e-10, atol=1e-12)
    if states > 1:
        flat = np.full_like(world.posterior, 1.0 / states)
        other = 0.5 * (world.posterior + flat)
        away = np.abs(world.posterior - flat).max(axis=0) > 1e-3
        assert np.all(world.elbo(other)[away] < evidence[away] - 1e-9)


@pytest.mark.equation("VAE-1")
@pytest.mark.equation("ELBO-1")
@given(seeds(), sizes(3), sizes(3))
def test_evidence_and_posterior_of_the_linear_world_by_conditioning(seed, k, d):
    """The joint of (z, x) from its blocks alone."""
    world, x = linear(seed, k, d), normals(seed + 2, d)
    blocks = [[np.eye(k), world.w], [world.w.T, world.w.T @ world.w + 0.3 * np.eye(d)]]
    joint = Gaussian(np.concatenate([np.zeros(k), world.b]), np.block(blocks))
    exact = joint.conditional(range(k, k + d), x)
    np.testing.assert_allclose(world.posterior(x).mean, exact.mean, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(world.posterior(x).covariance, exact.covariance, atol=1e-9)
    marginal = joint.marginal(range(k, k + d))
    np.testing.assert_allclose(world.evidence.log_prob(x), marginal.log_prob(x), rtol=1e-9)


@pytest.mark.equation("VAE-7")
@pytest.mark.equation("ELBO-1")
@pytest.mark.equation("ELBO-5")
@given(seeds(), st.integers(1, 2), sizes(3))
def test_linear_world_by_quadrature(seed, k, d):
    """log p(x), the posterior's mean and the reconstruction term, over the nodes of z."""
    w = 0.5 * normals(seed, k, d)
    world, x = LinearGaussian(w, normals(seed + 1, d), 0.8), normals(seed + 2, d)

    def log_likelihood(z):
        gap = x - world.b - z @ world.w
        return -0.5 * ((gap**2).sum(axis=-1) / 0.8 + d * log(2.0 * pi * 0.8))

    quadrature = LatentQuadrature(log_likelihood, dims=k, nodes=64)
    evidence = float(world.evidence.log_prob(x))
    assert quadrature.log_evidence == pytest.approx(evidence, abs=1e-6)
    mean = quadrature.posterior_mean(lambda z: z)
    np.testing.assert_allclose(mean, world.posterior(x).mean, atol=1e-5)
    at = normals(seed + 3, k), 0.5 * normals(seed + 4, k)
    q = Gaussian(at[0], np.diag(np.exp(at[1])))
    assert quadrature.reconstruction(*at) == pytest.approx(world.reconstruction(x, q), rel=1e-8)


@pytest.mark.equation("VAE-3")
@pytest.mark.equation("ELBO-3")
@pytest.mark.equation("ELBO-5")
@given(seeds(), sizes(3), sizes(3))
def test_elbo_plus_gap_is_the_evidence_for_any_normal_q(seed, k, d):
    world, x, q = linear(seed, k, d), normals(seed + 2, d), normal_law(seed + 3, k)
    total = world.elbo(x, q) + q.kl(world.posterior(x))
    assert total == pytest.approx(float(world.evidence.log_prob(x)), rel=1e-7, abs=1e-7)
    # the other form: E_q[log p(x, z)] + H(q), over the joint network (z, x)
    blocks = [[np.eye(k), world.w], [world.w.T, world.w.T @ world.w + 0.3 * np.eye(d)]]
    joint = Gaussian(np.concatenate([np.zeros(k), world.b]), np.block(blocks))
    precision, gap = np.linalg.inv(joint.covariance), np.concatenate([q.mean, x]) - joint.mean
    square = gap @ precision @ gap + np.trace(precision[:k, :k] @ q.covariance)
    cross = -0.5 * (square + joint.log_det + (k + d) * log(2.0 * pi))
    assert world.elbo(x, q) == pytest.approx(cross + q.entropy(), rel=1e-7, abs=1e-7)


@pytest.mark.equation("ELBO-1")
@pytest.mark.equation("ELBO-2")
@pytest.mark.equation("ELBO-3")
@pytest.mark.parametrize(("dims", "nodes"), [(1, 160), (2, 80)])
def test_a_nonlinear_vae_with_a_small_latent_is_known_by_quadrature(dims, nodes):
    """ELBO ≤ importance-weighted ≤ log p(x), and KL(q ‖ posterior) is the gap, by quadrature."""
    vae = Vae(mlp([3, 8, 2 * dims]), mlp([dims, 8, 3]), lk.FixedNormal(0.2))
    bound(vae, 5)
    x = normals(6, 1, 3)

    def log_likelihood(z):
        h, _ = vae.decoder(z)
        gap = x - h
        return -0.5 * ((gap**2).sum(axis=-1) / 0.2 + 3.0 * log(2.0 * pi * 0.2))

    world = LatentQuadrature(log_likelihood, dims, nodes)
    finer = LatentQuadrature(log_likelihood, dims, nodes + 40)
    assert world.log_evidence == pytest.approx(finer.log_evidence, abs=1e-6)
    mean, logvar = (a[0] for a in vae.encode(x))
    kl = float(vae.kl_per_dimension(x).sum())
    lower = -world.reconstruction(mean, logvar) - kl

    def estimates(n, look):
        eps = Stream(7, NUMPY).at(look).normal((1, n, dims))
        return elbo(*vae.loss(np.repeat(x, n, axis=0), eps)[0])

    assert_mean(estimates, lower, resolution=0.02 * abs(lower))
    assert lower < world.log_evidence
    eps = Stream(8, NUMPY).normal((200, 4000, dims))
    tight = importance_weighted_bound(vae.log_weights(np.repeat(x, 4000, axis=0), eps))
    error = tight.std() / 4000**0.5
    assert lower + 6.2 * error < tight.mean() < world.log_evidence + 6.2 * error


@pytest.mark.equation("ELBO-7")
@given(seeds(), sizes(5))
def test_chain_rule(seed, nodes):
    """Π p(v_i | v_<i) = p(v): of a network, and of any normal law cut into its conditionals."""
    model, v = network(seed, nodes), normals(seed + 3, 4, nodes)
    want = model.joint.log_prob(v)
    np.testing.assert_allclose(model.log_prob(v), want, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(model.log_prob(v[:, None])[:, 0], want, rtol=1e-7, atol=1e-7)
    law = normal_law(seed, nodes)
    cut = worlds.factorised(law, [range(i) for i in range(nodes)])
    np.testing.assert_allclose(cut.log_prob(v), law.log_prob(v), rtol=1e-6, atol=1e-6)
    by_hand = sum(
        law.marginal(range(i + 1)).conditional(range(i), row[:i]).log_prob(row[i : i + 1])
        if i
        else law.marginal([0]).log_prob(row[:1])
        for row in v[:1]
        for i in range(nodes)
    )
    np.testing.assert_allclose(by_hand, law.log_prob(v[0]), rtol=1e-6, atol=1e-6)


def test_arrows_point_forward():
    with pytest.raises(ValueError, match="strictly lower triangular"):
        LinearNetwork(np.eye(2), np.zeros(2), np.ones(2))


@given(seeds(), st.integers(2, 5))
def test_regression_is_conditioning(seed, dims):
    law, value = normal_law(seed, dims), normals(seed + 2, dims - 1)
    coefficients, offset, variance = worlds.regress(law, 0, range(1, dims))
    exact = law.conditional(range(1, dims), value)
    assert coefficients @ value + offset == pytest.approx(exact.mean[0], rel=1e-7, abs=1e-8)
    assert variance == pytest.approx(exact.covariance[0, 0], rel=1e-7)


@given(seeds(), st.integers(1, 4))
def test_a_chain_seen_from_the_data_is_a_chain(seed, latents):
    nodes = latents + 1
    arrows = np.diag(np.diag(network(seed, nodes).arrows, k=-1), k=-1)
    model = LinearNetwork(arrows, normals(seed + 1, nodes), np.exp(normals(seed + 2, nodes)))
    z = normals(seed + 3, 4, latents)
    exact = model.joint.conditional([latents], np.asarray([0.7]))
    got = worlds.markov_log_posterior(model.joint, z, 0.7)
    np.testing.assert_allclose(got, exact.log_prob(z), rtol=1e-6, atol=1e-6)


@pytest.mark.equation("ELBO-6")
@given(seeds(), st.integers(1, 4), sizes(2))
def test_hierarchical_elbo_plus_gap_is_the_evidence(seed, latents, observed):
    model, x = network(seed, latents + observed), normals(seed + 3, observed)
    q = normal_law(seed + 4, latents)
    seen = range(latents, latents + observed)
    evidence = float(model.joint.marginal(seen).log_prob(x))
    total = worlds.hierarchical_elbo(model, x, q) + q.kl(model.joint.conditional(seen, x))
    assert total == pytest.approx(evidence, rel=1e-6, abs=1e-6)


def test_rotating_the_latents_moves_rate_and_distortion_but_no_likelihood():
    """λ = (1, 0.05), s² = 0.01: E log p(x) = -1.4361468735 at every angle, (R_1, D_1) not."""
    want = {0.0: (2.308, 0.0700), 0.8: (1.201, 0.5589), 0.5 * pi: (0.896, 1.0200)}
    shannon = []
    for angle, (rate, distortion) in want.items():
        world = RotationWorld((1.0, 0.05), angle, 0.01)
        assert -world.evidence.entropy() == pytest.approx(-1.4361468735, abs=1e-9)
        assert world.rate(1) == pytest.approx(rate, abs=1e-3)
        assert world.distortion(1) == pytest.approx(distortion, abs=1e-4)
        eigenvalues = np.linalg.eigvalsh(world.evidence.covariance)
        shannon.append(distortion_at_rate(eigenvalues, world.rate(1)))
        assert shannon[-1] < world.distortion(1)
        # the same two by conditioning in the joint of (z_1, x)
        w = world.w[:, :1]
        joint = Gaussian(np.zeros(3), np.block([[np.eye(1), w.T], [w, world.evidence.covariance]]))
        given_z = joint.conditional([0], np.zeros(1))
        assert np.trace(given_z.covariance) == pytest.approx(world.distortion(1), rel=1e-10)
        information = joint.marginal([1, 2]).entropy() - given_z.entropy()
        assert information == pytest.approx(world.rate(1), rel=1e-8)
        assert world.rate(2) > world.rate(1)
    np.testing.assert_allclose(shannon, [0.0490, 0.1515, 0.2283], atol=1e-4)


@given(st.floats(0.1, 5.0), st.floats(0.0, 4.0))
@example(2.0, 0.5)
def test_rate_and_distortion_of_one_number_are_inverse_functions(variance, rate):
    distortion = distortion_at_rate([variance], rate)
    assert distortion == pytest.approx(variance * np.exp(-2.0 * rate), rel=1e-12)
    assert rate_at_distortion(variance, distortion) == pytest.approx(rate, abs=1e-12)
    assert rate_at_distortion(variance, 2.0 * variance) == 0.0


@given(st.lists(st.floats(0.05, 5.0), min_size=2, max_size=4), st.floats(0.0, 3.0))
def test_water_filling_beats_every_split_of_the_rate(eigenvalues, rate):
    """No way of sharing the rate among independent components is better, and one is as good."""
    best = distortion_at_rate(eigenvalues, rate)
    e = np.asarray(eigenvalues)
    for seed in range(20):
        shares = rate * np.diff(
            np.sort([0.0, *(0.5 + 0.5 * np.sin(normals(seed, len(e) - 1))), 1.0])
        )
        assert best <= (e * np.exp(-2.0 * shares)).sum() + 1e-12
    bits = np.maximum(0.0, 0.5 * np.log(e / _water(e, rate)))
    assert bits.sum() == pytest.approx(rate, abs=1e-6)
    assert best == pytest.approx((e * np.exp(-2.0 * bits)).sum(), rel=1e-6)


def _water(e, rate):
    """The level θ of the text-book definition, by bisection."""
    low, high = 1e-12, float(e.max())
    for _ in range(200):
        middle = 0.5 * (low + high)
        used = np.maximum(0.0, 0.5 * np.log(e / middle)).sum()
        low, high = (middle, high) if used > rate else (low, middle)
    return high


@pytest.mark.equation("DDPM-4")
@pytest.mark.equation("VDM-5")
@pytest.mark.equation("SCORE-1")
@pytest.mark.equation("SCORE-3")
@pytest.mark.equation("SCORE-4")
@given(seeds(), sizes(3), st.floats(-6.0, -0.01))
def test_the_gaussian_world_by_conditioning(seed, d, level):
    """Score, E[x_0 | x_t], E[ε | x_t] and both errors, from the joint of (x_0, ε, x_t)."""
    mean, variances = normals(seed, d), np.exp(normals(seed + 1, d))
    world, x = GaussianDiffusion(mean, variances), normals(seed + 2, 1, d)
    signal, noise = np.exp(0.5 * level), np.sqrt(-np.expm1(level))
    at = np.asarray([level])
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
        np.testing.assert_allclose(world.score(x, at)[0, j], marginal.score(x[0, j : j + 1])[0])


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


@pytest.mark.equation("DDPM-17")
@pytest.mark.equation("DDPM-8")
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
    error = float(normal.clean_error(level)[0])
    assert mixture.clean_error(level) == pytest.approx(error, rel=1e-8, abs=1e-11)
    entropy = Gaussian(np.zeros(1), normal.marginal(level)[1][:, None]).entropy()
    assert mixture.entropy(level) == pytest.approx(entropy, rel=1e-9)
    levels = np.asarray([0.0, 0.3 * level, level])
    variances = np.asarray([0.2, 0.3])
    want = normal.bound(levels, variances[:, None])
    assert mixture.bound(levels, variances) == pytest.approx(want, rel=1e-8, abs=1e-10)


def test_information_is_the_integral_of_the_error():
    """I-MMSE: ½ ∫ E(x_0 - E[x_0 | x_t])² dSNR between two levels is the information gained."""
    world = MixtureDiffusion(TWO)
    levels = np.log(np.asarray([0.3, 0.5]))
    snr = np.exp([float(log_snr(np.asarray(level))) for level in levels])
    nodes, weights = np.polynomial.legendre.leggauss(20)
    at = 0.5 * (snr[1] - snr[0]) * nodes + 0.5 * (snr[0] + snr[1])
    errors = [world.clean_error(-np.log1p(1.0 / s)) for s in at]
    integral = 0.25 * (snr[1] - snr[0]) * float(weights @ errors)
    gained = world.information(levels[1]) - world.information(levels[0])
    assert gained == pytest.approx(integral, rel=1e-8)


@given(st.floats(-1.5, 1.5), st.floats(0.1, 3.0), st.floats(-6.0, -0.05))
def test_a_hint_gives_the_gaussian_world_around_it(slope, variance, level):
    world, hint = HintedDiffusion(slope, variance, 0.9), np.asarray([0.3, -1.2])
    error = float(world.given(hint).clean_error(level)[0])
    assert world.clean_error(level) == pytest.approx(error, rel=1e-9)
    exact = world.joint.conditional([1], hint[:1])
    assert exact.mean[0] == pytest.approx(float(world.given(hint).mean[0]), abs=1e-12)
    assert exact.covariance[0, 0] == pytest.approx(variance, rel=1e-9)
