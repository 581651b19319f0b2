"""Two faults that published code has had, planted here: the laws catch them in milliseconds."""

import numpy as np
import pytest
from hypothesis import given

from scratchgen.core.arrays import namespace
from scratchgen.maths import diffusion_bound, forward_process
from scratchgen.maths.forward_process import kernel, posterior, shaped, step_log_density
from scratchgen.maths.gaussian import Gaussian
from scratchgen.testing.diffusion_worlds import GaussianDiffusion
from scratchgen.testing.strategies import noise_levels, seeds, transitions

from support import normals


def bound_with_the_latent_given_itself(path, reverse, levels):
    """Evaluates q(z_t | z_t) where q(z_t | z_{t-1}) belongs."""
    forward = sum(
        step_log_density(path[t], path[t], levels[t], levels[t - 1]) for t in range(1, len(path))
    )
    return diffusion_bound.joint_log_density(path, reverse) - forward


def ddim_with_the_noise_subtracted(x0, eps, noise, variance, before):
    """Takes c ε away where it has to be added."""
    sqrt = namespace(before).sqrt
    signal, spread = kernel(before)
    kept = shaped(sqrt(spread - variance), eps) * eps
    return shaped(signal, x0) * x0 - kept + shaped(sqrt(variance), noise) * noise


def the_ratio_is_the_evidence(bound, seed, levels):
    """Unit data and exact reverse kernels: log q(x_0) on every path."""
    world = GaussianDiffusion(np.zeros(1), np.ones(1))

    def reverse(x, t):
        step, variance = world.reverse(levels[t], levels[t - 1])
        return step(x), np.log(variance) + np.zeros_like(x)

    rows = np.tile(levels[:, None], (1, 3))
    noise = normals(seed + 1, len(levels) - 1, 3, 1)
    path = forward_process.q_chain(normals(seed, 3, 1), noise, rows)
    want = Gaussian(np.zeros(1), np.eye(1)).log_prob(path[0])
    np.testing.assert_allclose(bound(path, reverse, rows), want, rtol=1e-7, atol=1e-7)


def the_step_is_the_posterior(step, seed, pair):
    """At σ² = β̃ a DDIM step is a sample of q(x_s | x_t, x_0)."""
    now, before = pair
    x0, eps, z = normals(seed, 3, 1, 4)
    x_t, _ = forward_process.q_sample(x0, eps, now)
    variance = posterior(now, before)[2]
    want = forward_process.q_posterior(x0, x_t, now, before)[0] + np.sqrt(variance) * z
    np.testing.assert_allclose(step(x0, eps, z, variance, before), want, rtol=1e-8, atol=1e-10)


@pytest.mark.equation("VDM-7")
@given(seeds(), noise_levels(4))
def test_a_latent_is_not_conditioned_on_itself(seed, levels):
    the_ratio_is_the_evidence(diffusion_bound.path_bound, seed, levels)
    with pytest.raises(AssertionError):
        the_ratio_is_the_evidence(bound_with_the_latent_given_itself, seed, levels)


@given(seeds(), transitions())
def test_the_noise_of_a_ddim_step_is_added(seed, pair):
    the_step_is_the_posterior(forward_process.ddim_step, seed, pair)
    with pytest.raises(AssertionError):
        the_step_is_the_posterior(ddim_with_the_noise_subtracted, seed, pair)
