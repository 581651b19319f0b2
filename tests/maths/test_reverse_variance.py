"""maths/reverse_variance.py: each variance where it is exact, its ends, and its gradient."""

import numpy as np
import pytest
from hypothesis import given

from scratchgen.maths import reverse_variance as rv
from scratchgen.maths.forward_process import kernel, posterior
from scratchgen.maths.schedules import Schedule
from scratchgen.testing import oracle
from scratchgen.testing.diffusion_worlds import GaussianDiffusion
from scratchgen.testing.strategies import noise_levels, seeds, sizes, transitions

from support import host, normals, on_every_backend, tolerance

HO = Schedule.linear(1000)
FIRST = float(HO.posterior_variance[2])


def value(variance, now, before, output=None, dims=2):
    """σ² (N, dims) at levels (N,)."""
    x_t = np.zeros((len(now), dims))
    return np.exp(variance.logvar(output, x_t, now, before)[0])


@pytest.mark.equation("DDPM-17")
@given(transitions())
def test_beta_is_exact_for_standard_normal_data_and_beta_tilde_for_a_point(pair):
    now, before = pair
    unit = GaussianDiffusion(np.zeros(2), np.ones(2))
    point = GaussianDiffusion(np.ones(2), np.full(2, 1e-12))
    np.testing.assert_allclose(
        value(rv.StepVariance(), now, before)[0], unit.reverse(now, before)[1][0], rtol=1e-12
    )
    np.testing.assert_allclose(
        value(rv.PosteriorVariance(9.0), now, before)[0],
        point.reverse(now, before)[1][0],
        rtol=1e-8,
    )


@pytest.mark.equation("DDPM-17")
@pytest.mark.equation("TRAP-8")
@given(noise_levels())
def test_a_step_to_clean_data_has_the_variance_that_was_named(levels):
    """β̃_1 = 0 has no logarithm; everywhere else β̃ is what the schedule's table says."""
    schedule = Schedule(-np.expm1(np.diff(levels)))
    now, before = levels[1:], levels[:-1]
    got = value(rv.PosteriorVariance(0.25), now, before, dims=1)[:, 0]
    np.testing.assert_allclose(got[0], 0.25, rtol=1e-15)
    np.testing.assert_allclose(got[1:], schedule.posterior_variance[2:], rtol=1e-12)


@pytest.mark.equation("DDPM-17")
@given(noise_levels(), seeds())
def test_the_optimal_variance_is_that_of_the_true_reverse_kernel(levels, seed):
    """With the perfect denoiser of normal data: β V_s/V_t, for neighbours and for longer steps."""
    world = GaussianDiffusion(np.zeros(1), np.exp(normals(seed, 1)))
    variance = rv.OptimalVariance(levels, world.clean_error(levels)[:, 0])
    for stride in range(1, len(levels)):
        now, before = levels[stride:], levels[:-stride]
        want = [float(world.reverse(t, s)[1][0]) for t, s in zip(now, before, strict=True)]
        got = value(variance, now, before, dims=1)[:, 0]
        np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.equation("DDPM-17")
def test_between_the_table_s_levels_the_noisier_answers():
    levels, errors = np.asarray([0.0, -1.0, -2.0]), np.asarray([9.0, 0.1, 0.4])
    now, before = np.asarray([-0.5, -1.0, -1.5, -2.0, -7.0]), np.full(5, -0.25)
    c0, _, floor = posterior(now, before)
    want = floor + c0**2 * np.asarray([0.1, 0.1, 0.4, 0.4, 0.4])
    got = value(rv.OptimalVariance(levels, errors), now, before)
    np.testing.assert_allclose(got, np.stack([want, want], axis=1), rtol=1e-14)


@pytest.mark.equation("DDPM-17")
@given(seeds(), sizes(3), transitions())
def test_a_learned_variance_lies_where_the_output_says_between_its_ends(seed, n, pair):
    now, before = (np.repeat(level, n) for level in pair)
    variance, x_t = rv.LearnedVariance(9.0), np.zeros((n, 2))
    ends = rv.PosteriorVariance(9.0), rv.StepVariance()
    for output, end in zip((-1.0, 1.0), ends, strict=True):
        got, _ = variance.logvar(np.full((n, 2), output), x_t, now, before)
        np.testing.assert_allclose(got, end.logvar(None, x_t, now, before)[0], rtol=1e-12)
    middle, _ = variance.logvar(np.zeros((n, 2)), x_t, now, before)
    low, high = (np.log(f) for f in (posterior(now, before)[2], kernel(now, before)[1]))
    np.testing.assert_allclose(middle[:, 0], 0.5 * (low + high), rtol=1e-12)
    output = normals(seed, n, 2)
    oracle.check_pullback(lambda o: variance.logvar(o, x_t, now, before), output)


def test_what_the_net_does_not_say_has_no_cotangent():
    now, before = np.asarray([-2.0]), np.asarray([-1.0])
    known = rv.StepVariance(), rv.PosteriorVariance(1.0), rv.OptimalVariance([0.0, -2.0], [0, 1.0])
    for variance in known:
        logvar, pullback = variance.logvar(None, np.zeros((1, 2)), now, before)
        assert variance.outputs == 0
        assert pullback(np.ones_like(logvar)) is None
    assert rv.LearnedVariance(1.0).outputs == 1


@on_every_backend
def test_every_backend_agrees(born):
    t = np.asarray([1, 2, 500, 1000])
    now, before = HO.log_alpha_bar[t], HO.log_alpha_bar[t - 1]
    errors, output, x_t = np.linspace(0.0, 0.5, 1001), normals(0, 4, 3), normals(1, 4, 3)
    xp = born.xp
    levels = [xp.asarray(level, dtype=xp.float64, device=born.device) for level in (now, before)]
    for variance in (
        rv.StepVariance(),
        rv.PosteriorVariance(FIRST),
        rv.OptimalVariance(HO.log_alpha_bar, errors),
        rv.LearnedVariance(FIRST),
    ):
        want, _ = variance.logvar(output, x_t, now, before)
        got, _ = variance.logvar(born.asarray(output), born.asarray(x_t), *levels)
        assert got.dtype == born.asarray(x_t).dtype
        oracle.assert_close(host(got), want, tolerance(born), type(variance).__name__)
