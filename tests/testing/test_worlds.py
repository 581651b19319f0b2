"""testing/worlds.py: the truths that models are compared with, held against each other."""

from math import log, pi

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

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

from support import NUMPY, bound, noise, normals


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
@given(seeds(), sizes(4), sizes(7))
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


def likelihood(world, x):
    """z (M, K) -> log p(x | z) (M,) of a linear world, entry by entry."""

    def log_likelihood(z):
        square = sum(
            (x[j] - world.b[j] - sum(z[:, i] * world.w[i, j] for i in range(len(world.w)))) ** 2
            for j in range(len(x))
        )
        return -0.5 * (square / world.variance + len(x) * log(2.0 * pi * world.variance))

    return log_likelihood


def held_by_quadrature(seed, k, d, std):
    """log p(x), the posterior's moments and the reconstruction term, for an x of the model's."""
    w, b = normals(seed, k, d), normals(seed + 1, d)
    world = LinearGaussian(w, b, std**2)
    x = b + normals(seed + 2, k) @ w + std * normals(seed + 3, d)
    quadrature = LatentQuadrature(likelihood(world, x), k)
    evidence, posterior = float(world.evidence.log_prob(x)), world.posterior(x)
    assert quadrature.log_evidence == pytest.approx(evidence, abs=1e-7)
    np.testing.assert_allclose(
        quadrature.posterior_mean(lambda z: z), posterior.mean, rtol=1e-6, atol=1e-8
    )
    spread = quadrature.posterior_mean(
        lambda z: (z - posterior.mean)[:, :, None] * (z - posterior.mean)[:, None, :]
    )
    np.testing.assert_allclose(spread, posterior.covariance, rtol=1e-5, atol=1e-5 * std**2)
    at = normals(seed + 4, k), 0.5 * normals(seed + 5, k)
    q = Gaussian(at[0], np.diag(np.exp(at[1])))
    assert quadrature.reconstruction(*at) == pytest.approx(world.reconstruction(x, q), rel=1e-9)


@pytest.mark.equation("VAE-7")
@pytest.mark.equation("ELBO-1")
@pytest.mark.equation("ELBO-5")
@given(seeds(), sizes(6), st.floats(log(0.01), log(3.0)))
def test_linear_world_by_quadrature_of_one_latent(seed, d, log_std):
    """However narrow the decoder is."""
    held_by_quadrature(seed, 1, d, np.exp(log_std))


@pytest.mark.equation("ELBO-1")
@pytest.mark.equation("ELBO-5")
@given(seeds(), st.integers(2, 6), st.floats(log(0.1), log(3.0)))
@example(0, 4, log(0.01))
@settings(max_examples=5)
def test_linear_world_by_quadrature_of_two_latents(seed, d, log_std):
    held_by_quadrature(seed, 2, d, np.exp(log_std))


@pytest.mark.equation("ELBO-1")
@pytest.mark.parametrize(("x", "std"), [(1.3, 0.1), (1.3, 0.01), (0.5, 0.001), (-0.4, 0.2)])
def test_a_posterior_of_two_modes(x, std):
    """x | z ~ N(z² + z/4, s²): against a plain sum over a million points."""

    def log_likelihood(z):
        return -0.5 * ((x - z[:, 0] ** 2 - 0.25 * z[:, 0]) / std) ** 2 - log(std)

    z = np.linspace(-10.0, 10.0, 1_000_001)[:, None]
    heights = log_likelihood(z) - 0.5 * z[:, 0] ** 2
    shares = np.exp(heights - heights.max())
    evidence = heights.max() + log(shares.sum() * 2e-5 / (2.0 * pi) ** 0.5)
    world = LatentQuadrature(log_likelihood)
    assert world.log_evidence == pytest.approx(evidence, abs=1e-8)
    moments = world.posterior_mean(lambda z: np.concatenate([z, z**2], axis=1))
    exact = [shares @ z[:, 0] ** n / shares.sum() for n in (1, 2)]
    np.testing.assert_allclose(moments, exact, rtol=1e-7)


def test_the_quadrature_refuses_what_it_cannot_hold(monkeypatch):
    with pytest.raises(ValueError, match="dims must be 1 or 2, got 3"):
        LatentQuadrature(lambda z: z[:, 0], dims=3)
    far = LatentQuadrature(lambda z: -0.5 * (100.0 - z[:, 0]) ** 2 / 1e-4)
    with pytest.raises(ValueError, match=r"within \|z_i\| ≤ 60, but 1 of it is beyond"):
        _ = far.log_evidence
    half = LatentQuadrature(lambda z: np.where(z[:, 0] > 0.0, 0.0, -np.inf))
    with pytest.raises(ValueError, match="must be finite"):
        _ = half.log_evidence
    fast = LatentQuadrature(lambda z: np.abs(z[:, 0] - 0.3))
    with pytest.raises(ValueError, match="at two resolutions must agree"):
        fast.reconstruction(np.zeros(1), np.zeros(1))
    with pytest.raises(ValueError, match="at two resolutions must agree"):
        LatentQuadrature(lambda z: 0.0 * z[:, 0]).posterior_mean(lambda z: z[:, 0] > 0.1)
    monkeypatch.setattr(worlds, "MOST_NODES", 100)
    with pytest.raises(ValueError, match="must settle within 100 nodes"):
        _ = LatentQuadrature(lambda z: z[:, 0]).log_evidence


@pytest.mark.equation("VAE-3")
@pytest.mark.equation("ELBO-3")
@pytest.mark.equation("ELBO-5")
@given(seeds(), sizes(4), sizes(7))
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
@pytest.mark.parametrize("dims", [1, 2])
def test_a_nonlinear_vae_with_a_small_latent_is_known_by_quadrature(dims):
    """ELBO ≤ importance-weighted bound ≤ log p(x): E w = p(x) by quadrature, the rest by Jensen."""
    vae = Vae(mlp([3, 8, 2 * dims]), mlp([dims, 8, 3]), lk.FixedNormal(0.2))
    bound(vae, 5)
    x = normals(6, 1, 3)

    def log_likelihood(z):
        h, _ = vae.decoder(z)
        gap = x - h
        return -0.5 * ((gap**2).sum(axis=-1) / 0.2 + 3.0 * log(2.0 * pi * 0.2))

    world = LatentQuadrature(log_likelihood, dims)
    mean, logvar = (a[0] for a in vae.encode(x))
    lower = -world.reconstruction(mean, logvar) - float(vae.kl_per_dimension(x).sum())
    assert lower < world.log_evidence

    def estimates(n, look):
        return elbo(*vae.loss(np.repeat(x, n, axis=0), noise(7, look, 1, n, dims))[0])

    assert_mean(estimates, lower, resolution=0.02 * abs(lower))

    eps = LatentQuadrature(lambda eps: vae.log_weights(x, eps[:, None, :])[:, 0], dims)
    assert eps.log_evidence == pytest.approx(world.log_evidence, abs=1e-7)
    log_weights = vae.log_weights(np.repeat(x, 50, axis=0), noise(8, 0, 16, 50, dims))
    assert np.all(importance_weighted_bound(log_weights) >= log_weights.mean(axis=0))


@pytest.mark.equation("ELBO-7")
@pytest.mark.equation("HVAE-4")
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


@pytest.mark.equation("HVAE-2")
@pytest.mark.equation("HVAE-5")
@given(seeds(), st.integers(2, 5))
def test_regression_is_conditioning(seed, dims):
    law, value = normal_law(seed, dims), normals(seed + 2, dims - 1)
    coefficients, offset, variance = worlds.regress(law, 0, range(1, dims))
    exact = law.conditional(range(1, dims), value)
    assert coefficients @ value + offset == pytest.approx(exact.mean[0], rel=1e-7, abs=1e-8)
    assert variance == pytest.approx(exact.covariance[0, 0], rel=1e-7)


def chain(seed, nodes):
    """z_T → ... → z_1 → x, each one number."""
    full = network(seed, nodes)
    arrows = np.diag(np.diag(full.arrows, k=-1), k=-1)
    return LinearNetwork(arrows, full.offset, full.variances)


@pytest.mark.equation("HVAE-1")
@given(seeds(), st.integers(2, 5))
def test_the_joint_of_a_chain_by_its_steps(seed, nodes):
    """p(z_T) Π p(z_{t-1} | z_t) p(x | z_1), the factors by hand, is the density of the joint."""
    model, v = chain(seed, nodes), normals(seed + 3, 4, nodes)
    by_hand = np.zeros(4)
    for i in range(nodes):
        mean = model.offset[i] + (model.arrows[i, i - 1] * v[:, i - 1] if i else 0.0)
        step = [Gaussian(m[None], model.variances[i] * np.eye(1)) for m in mean + np.zeros(4)]
        by_hand += [law.log_prob(row[i : i + 1]) for law, row in zip(step, v, strict=True)]
    for got in (model.log_prob(v), model.log_prob(v[:, None])[:, 0]):
        np.testing.assert_allclose(got, by_hand, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(model.joint.log_prob(v), by_hand, rtol=1e-7, atol=1e-7)


@pytest.mark.equation("HVAE-1")
@pytest.mark.equation("HVAE-2")
@given(seeds(), st.integers(1, 4))
def test_a_chain_seen_from_the_data_is_a_chain(seed, latents):
    model = chain(seed, latents + 1)
    z = normals(seed + 3, 4, latents)
    exact = model.joint.conditional([latents], np.asarray([0.7]))
    got = worlds.markov_log_posterior(model.joint, z, 0.7)
    np.testing.assert_allclose(got, exact.log_prob(z), rtol=1e-6, atol=1e-6)


@pytest.mark.equation("HVAE-5")
@given(seeds(), st.integers(2, 4))
def test_an_encoder_that_goes_down_beside_the_generator_can_be_exact(seed, latents):
    """Π q(z_l | x, z_<l) is any network's posterior; that of a chain needs only x and z_{l-1}."""
    order = [latents, *range(latents)]  # x first

    def gap(model, parents):
        law = model.joint.marginal(order)
        q = worlds.factorised(law, [[], *([0, *known] for known in parents)])
        return law.kl(q.joint)

    every = [range(1, i) for i in range(1, latents + 1)]
    assert abs(gap(network(seed, latents + 1), every)) < 1e-7
    assert abs(gap(chain(seed, latents + 1), [known[-1:] for known in every])) < 1e-7


@pytest.mark.equation("HVAE-3")
@given(seeds(), st.integers(1, 4))
def test_elbo_of_a_chain_with_its_posterior_is_the_evidence(seed, latents):
    model, x = chain(seed, latents + 1), normals(seed + 3, 1)
    posterior = model.joint.conditional([latents], x)
    bound = worlds.hierarchical_elbo(model, x, posterior)
    evidence = float(model.joint.marginal([latents]).log_prob(x))
    assert bound == pytest.approx(evidence, rel=1e-7, abs=1e-7)
    shifted = Gaussian(posterior.mean + 0.3, 1.5 * posterior.covariance)
    bound = worlds.hierarchical_elbo(model, x, shifted)
    assert bound + shifted.kl(posterior) == pytest.approx(evidence, rel=1e-7, abs=1e-7)


@pytest.mark.equation("ELBO-6")
@pytest.mark.equation("HVAE-6")
@given(seeds(), st.integers(1, 4), sizes(2))
def test_hierarchical_elbo_plus_gap_is_the_evidence(seed, latents, observed):
    model, x = network(seed, latents + observed), normals(seed + 3, observed)
    q = normal_law(seed + 4, latents)
    seen = range(latents, latents + observed)
    evidence = float(model.joint.marginal(seen).log_prob(x))
    total = worlds.hierarchical_elbo(model, x, q) + q.kl(model.joint.conditional(seen, x))
    assert total == pytest.approx(evidence, rel=1e-6, abs=1e-6)


@pytest.mark.equation("RD-16")
@pytest.mark.equation("RD-17")
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
    np.testing.assert_allclose(shannon, [0.0490, 0.1515, 0.2283], atol=1e-4)


@pytest.mark.equation("RD-16")
@pytest.mark.equation("RD-17")
@given(st.floats(0.0, 7.0), st.floats(0.05, 2.0), st.floats(0.05, 2.0), st.floats(0.01, 1.0))
def test_rate_and_distortion_of_the_first_latents_by_conditioning(angle, first, second, variance):
    """In the joint of (z_1, z_2, x); both latents together carry the same at every angle."""
    world, flat = (RotationWorld((first, second), a, variance) for a in (angle, 0.0))
    w = world.w
    covariance = np.block([[np.eye(2), w.T], [w, w @ w.T + variance * np.eye(2)]])
    joint, x = Gaussian(np.zeros(4), covariance), [2, 3]
    for k in (1, 2):
        kept = [*range(k), *x]
        given_z = joint.marginal(kept).conditional(range(k), np.zeros(k))
        assert np.trace(given_z.covariance) == pytest.approx(world.distortion(k), rel=1e-8)
        information = joint.marginal(x).entropy() - given_z.entropy()
        assert information == pytest.approx(world.rate(k), rel=1e-7, abs=1e-9)
        eigenvalues = np.linalg.eigvalsh(world.evidence.covariance)
        assert distortion_at_rate(eigenvalues, world.rate(k)) <= world.distortion(k) + 1e-9
    assert world.rate(2) == pytest.approx(flat.rate(2), rel=1e-7)
    assert world.distortion(2) == pytest.approx(flat.distortion(2), rel=1e-7)
    # the eigenvalues, and not the angle, are the evidence
    assert world.evidence.entropy() == pytest.approx(flat.evidence.entropy(), rel=1e-9)
    np.testing.assert_allclose(world.evidence.covariance, flat.evidence.covariance, atol=1e-12)
    spectrum = np.sort([first + variance, second + variance])
    np.testing.assert_allclose(np.linalg.eigvalsh(world.evidence.covariance), spectrum)


@pytest.mark.equation("RD-5")
@pytest.mark.equation("RD-6")
@given(st.floats(0.1, 5.0), st.floats(0.0, 4.0))
@example(2.0, 0.5)
def test_rate_and_distortion_of_one_number_are_inverse_functions(variance, rate):
    distortion = distortion_at_rate([variance], rate)
    assert distortion == pytest.approx(variance * np.exp(-2.0 * rate), rel=1e-12)
    assert rate_at_distortion(variance, distortion) == pytest.approx(rate, abs=1e-12)
    assert rate_at_distortion(variance, 2.0 * variance) == 0.0


@pytest.mark.equation("RD-5")
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
