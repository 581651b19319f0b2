"""testing/worlds.py: the truths that models are compared with, held against each other."""

from math import log, pi

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scratchgen.maths.bounds import elbo
from scratchgen.maths.gaussian import Gaussian
from scratchgen.testing import worlds
from scratchgen.testing.strategies import seeds, sizes
from scratchgen.testing.worlds import (
    Discrete,
    LinearGaussian,
    LinearNetwork,
    RotationWorld,
    distortion_at_rate,
    rate_at_distortion,
)

from support import normals


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
