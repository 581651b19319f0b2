"""models/samplers.py: what comes out is the data's law, and the flow knows its own density."""

from functools import cache
from math import exp

import numpy as np
import pytest
from hypothesis import given
from scipy.special import ndtr, ndtri

from scratchgen.core.streams import Stream
from scratchgen.maths.densities import Mixture
from scratchgen.maths.planar import eight_gaussians
from scratchgen.models import flow
from scratchgen.models import samplers as s
from scratchgen.models.samplers import Stop
from scratchgen.testing.diffusion_worlds import GaussianDiffusion
from scratchgen.testing.monte_carlo import MonteCarloFailure, assert_law, assert_mean
from scratchgen.testing.strategies import seeds

from denoisers import arc, even, flow_of_mixture, flow_of_normal, perfect_score
from support import NUMPY, noise, normals, quadratics

TWO = Mixture(NUMPY, [0.3, 0.7], [[-1.5], [1.0]], [[[0.2]], [[0.1]]])
TILTED = Mixture(
    NUMPY,
    [0.4, 0.6],
    [[-1.0, 0.5], [1.0, 0.0]],
    [[[0.3, 0.2], [0.2, 0.4]], [[0.2, -0.1], [-0.1, 0.3]]],
)
FLOWS = {"ddim": (lambda: s.ddim(), 1), "euler": (lambda: s.flow_euler, 1)}
FLOWS["heun"] = lambda: s.flow_heun, 2
NOISY = {
    "ancestral": lambda: s.ancestral,
    "ddim 0.6": lambda: s.ddim(0.6),
    "reverse_sde": lambda: s.reverse_sde,
}
every_flow = pytest.mark.parametrize(("step", "order"), FLOWS.values(), ids=FLOWS)


def below(law: Mixture, x, direction=(1.0,)):
    """P(a·X ≤ a·x) for each x (N, D), a the direction: a sum of normal distribution functions."""
    a = np.asarray(direction)
    spread = np.sqrt(np.einsum("kij,i,j->k", law.covariances, a, a))
    return ndtr(((x @ a)[:, None] - law.means @ a) / spread) @ law.weights


def draws(law: Mixture, step, count):
    """(n, look) -> n samples (n, D), drawn in the manner of a checked simulation."""
    denoise = perfect_score(law)

    def samples(n, look):
        z = lambda i: noise(i, look, n, law.dims)
        return s.generate(denoise, step, z(count), arc(count), z)

    return cache(samples)


def flow_distance(step, count):
    """sup |F(x) - u| over all events {X ≤ x}: a monotone flow keeps quantiles."""
    u = (np.arange(1001) + 0.5) / 1001
    x = s.generate(perfect_score(TWO), step, ndtri(u)[:, None], arc(count))
    assert np.all(np.diff(x[:, 0]) > 0.0)
    return np.abs(below(TWO, x) - u).max()


@pytest.mark.equation("SCORE-7")
@pytest.mark.equation("SCORE-8")
@every_flow
def test_the_flow_makes_the_mixture_in_many_steps_and_not_in_four(step, order):
    distances = [flow_distance(step(), count) for count in (4, 50, 200)]
    assert distances[0] > 0.1
    assert distances[1] < (0.011, 0.002)[order - 1]
    assert distances[2] < (0.003, 0.0008)[order - 1]


@pytest.mark.equation("SCORE-7")
@pytest.mark.equation("SCORE-8")
@pytest.mark.equation("VDM-10")
@pytest.mark.equation("DDPM-16")
@pytest.mark.parametrize("step", NOISY.values(), ids=NOISY)
def test_stochastic_samples_have_the_law_of_the_mixture(step):
    """No event {X ≤ x} is off by 0.025 with 100 steps; with four, some provably are by 0.1."""
    samples, few = draws(TWO, step(), 100), draws(TWO, step(), 4)
    assert_law(lambda n, look: below(TWO, samples(n, look)), resolution=0.025, first=2**16)
    with pytest.raises(MonteCarloFailure, match=r"is 0\.1\d* from the uniform"):
        assert_law(lambda n, look: below(TWO, few(n, look)), resolution=0.025, first=2**14)


@pytest.mark.equation("SCORE-8")
@pytest.mark.parametrize("step", [*NOISY.values(), FLOWS["heun"][0]], ids=[*NOISY, "heun"])
def test_samples_in_the_plane_have_the_law_of_eight_discs(step):
    law = eight_gaussians(NUMPY, radius=1.5, variance=0.05)
    samples = draws(law, step(), 50)
    for direction in ((1.0, 0.0), (0.6, 0.8)):
        drawn = lambda n, look, a=direction: below(law, samples(n, look), a)
        assert_law(drawn, resolution=0.05, first=2**14)


@pytest.mark.equation("SCORE-7")
@every_flow
def test_the_order_of_the_flow_in_the_plane(step, order):
    """Three step sizes tell the order without knowing the limit."""
    x = normals(3, 20, 2)
    rough, middle, fine = (
        s.generate(perfect_score(TILTED), step(), x, even(count)) for count in (160, 320, 640)
    )
    ratio = np.linalg.norm(rough - middle) / np.linalg.norm(middle - fine)
    assert np.log2(ratio) == pytest.approx(order, abs=0.15)


def density_errors(epsilon, x, truth, counts, last=0.0):
    """|log p(x) - truth| with the exact divergence, for every number of steps."""
    logs = [
        flow.flow_log_density(epsilon, x, even(count, least=last), flow.exact_divergence)[0]
        for count in counts
    ]
    return np.asarray([np.abs(log - truth).max() for log in logs])


@pytest.mark.parametrize("last", [0.0, 0.3], ids=["clean data", "some noise"])
def test_the_density_of_the_flow_of_normal_data(last):
    """The law that N(0, I) becomes under x = √ᾱ m + √(V/V_T) (x_T - √ᾱ_T m), and x_T itself."""
    world = GaussianDiffusion(np.asarray([0.5, -1.0]), np.asarray([2.0, 0.3]))
    stops, x = even(1, least=last), world.mean + normals(5, 6, 2)
    (mean_t, v_t), (mean_s, v_s) = (world.marginal(np.asarray([e.level])) for e in stops)
    model = GaussianDiffusion((mean_s - np.sqrt(v_s / v_t) * mean_t)[0], (v_s / v_t)[0])
    truth = model.log_prob(x, np.zeros(1))
    errors = density_errors(flow_of_normal(world), x, truth, (40, 80, 160), last)
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), 2.0, atol=0.1)
    assert errors[-1] < 0.004
    at = (flow_of_normal(world), x, even(160, least=last), flow.exact_divergence)
    encoded = flow.flow_log_density(*at)[1]
    np.testing.assert_allclose(encoded, (x - model.mean) / np.sqrt(model.variances), atol=0.002)


@pytest.mark.parametrize("law", [TWO, TILTED], ids=["on the line", "in the plane"])
def test_the_density_of_the_flow_of_a_mixture_is_that_of_the_mixture(law):
    """But for what is left of the data in x_T; three step sizes tell that the order is 2 at least.

    It looks higher until the steps are much smaller than the narrower component.
    """
    x = law.sample(8, Stream(1, NUMPY))
    rough, middle, fine = (
        flow.flow_log_density(flow_of_mixture(law), x, even(count, 9.0), flow.exact_divergence)[0]
        for count in (160, 320, 640)
    )
    ratio = np.linalg.norm(rough - middle) / np.linalg.norm(middle - fine)
    assert 1.9 < np.log2(ratio) < 2.5
    np.testing.assert_allclose(fine, law.log_prob(x), atol=0.001)


def test_the_density_of_the_flow_of_normal_data_from_far_in_the_noise():
    """From ᾱ_T = e^-916, where x_T is the noise and nothing else, it is that of the data."""
    world = GaussianDiffusion(np.asarray([0.5, -1.0]), np.asarray([2.0, 0.3]))
    stops, x = [Stop(9.0, -916.0), *even(1280, 20.0)], world.mean + normals(5, 6, 2)
    got, x_last = flow.flow_log_density(flow_of_normal(world), x, stops, flow.exact_divergence)
    np.testing.assert_allclose(got, world.log_prob(x, np.zeros(1)), atol=0.001)
    np.testing.assert_allclose(x_last, (x - world.mean) / np.sqrt(world.variances), atol=0.001)


def test_a_flow_that_does_nothing_has_the_density_of_the_noise():
    """ε̂ = 0 keeps u = x/√ᾱ, so x is N(0, ᾱ/ᾱ_T) whatever the stops."""
    x, levels = normals(2, 3, 2, 2), (-3.0, -1.0, -0.5)
    still = lambda x, stop: (0.0 * x, lambda d: 0.0 * d)
    got, x_last = flow.flow_log_density(
        still, x, [Stop(i, level) for i, level in enumerate(levels)], flow.exact_divergence
    )
    variance = exp(2.5)
    want = -0.5 * (x**2 / variance + np.log(2.0 * np.pi * variance)).sum(axis=(1, 2))
    np.testing.assert_allclose(got, want, rtol=1e-12)
    np.testing.assert_allclose(x_last, x * exp(-1.25), rtol=1e-12)


@given(seeds())
def test_the_exact_divergence_is_the_trace(seed):
    matrix, x = normals(seed, 6, 6), normals(seed + 1, 4, 3, 2)
    pullback = lambda d: (d.reshape(4, 6) @ matrix).reshape(d.shape)
    np.testing.assert_allclose(flow.exact_divergence(pullback, x), np.trace(matrix), atol=1e-12)


@given(seeds())
def test_one_sign_tells_the_whole_divergence_on_the_line(seed):
    x = normals(seed, 5, 1)
    at = (flow_of_mixture(TWO), x, even(10))
    exact, sign = (
        flow.flow_log_density(*at, flow.exact_divergence),
        np.sign(normals(seed + 1, 5, 1)),
    )
    estimated = flow.flow_log_density(*at, flow.hutchinson(sign))
    np.testing.assert_allclose(estimated[0], exact[0], rtol=1e-12)
    np.testing.assert_array_equal(estimated[1], exact[1])


def test_hutchinsons_estimate_is_unbiased():
    """With signs, plainly; with normal probes exactly, for it is a quadratic in them."""
    at = (flow_of_mixture(TILTED), np.asarray([[0.4, -0.3]]), even(8))
    exact = flow.flow_log_density(*at, flow.exact_divergence)[0][0]
    estimate = lambda probe: flow.flow_log_density(*at, flow.hutchinson(probe))[0]

    def controlled(n, look):
        probe = noise(2, look, n, 2)
        return estimate(probe), quadratics(probe)

    signs = lambda n, look: np.sign(noise(2, look, n, 2))
    assert_mean(lambda n, look: estimate(signs(n, look)), exact, resolution=0.03, first=2**15)
    assert_mean(controlled, exact, resolution=1e-9)


@pytest.mark.equation("SCORE-7")
def test_sampling_undoes_encoding():
    """Down the flow again by Heun's rule, up to an error of order 2."""
    x, errors = TILTED.sample(8, Stream(2, NUMPY)), []
    for count in (80, 160, 320):
        stops = even(count)
        drift = flow_of_mixture(TILTED)
        _, x_last = flow.flow_log_density(drift, x, stops, flow.exact_divergence)
        back = s.generate(perfect_score(TILTED), s.flow_heun, x_last, stops)
        errors.append(np.abs(back - x).max())
    assert np.all(np.log2(np.divide(errors[:-1], errors[1:])) > 1.8)
    assert errors[-1] < 1e-3
