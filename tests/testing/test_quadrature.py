"""testing/quadrature.py against closed forms, other nodes and a model of our own."""

from math import log, pi

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scratchgen.maths import likelihoods as lk
from scratchgen.maths.bounds import elbo, importance_weighted_bound
from scratchgen.maths.gaussian import Gaussian
from scratchgen.models.vae import Vae
from scratchgen.nets.mlp import mlp
from scratchgen.testing import quadrature
from scratchgen.testing.monte_carlo import assert_mean
from scratchgen.testing.quadrature import LatentQuadrature
from scratchgen.testing.strategies import seeds, sizes
from scratchgen.testing.worlds import (
    LinearGaussian,
)

from support import bound, noise, normals


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
    monkeypatch.setattr(quadrature, "MOST_NODES", 100)
    with pytest.raises(ValueError, match="must settle within 100 nodes"):
        _ = LatentQuadrature(lambda z: z[:, 0]).log_evidence


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
