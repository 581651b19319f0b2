"""maths/forward_process.py against Gaussian conditioning, composition and simulated chains."""

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.streams import Stream
from scratchgen.maths import forward_process as f
from scratchgen.maths.diffusion_bound import prior_kl
from scratchgen.maths.gaussian import Gaussian
from scratchgen.maths.schedules import Schedule
from scratchgen.testing import oracle
from scratchgen.testing.diffusion_worlds import GaussianDiffusion
from scratchgen.testing.monte_carlo import assert_mean
from scratchgen.testing.strategies import noise_levels, reals, seeds, sizes, transitions

from support import NUMPY, host, normals, on_every_backend, tolerance


def chain_law(x0, levels):
    """The joint of (x_1, ..., x_T) given one number x_0, from its covariance function alone.

    Cov(x_s, x_t) = √(ᾱ_t/ᾱ_s) (1-ᾱ_s) for s ≤ t.
    """
    alpha_bar = np.exp(levels[1:])
    s, t = np.minimum.outer(alpha_bar, alpha_bar), np.maximum.outer(alpha_bar, alpha_bar)
    return Gaussian(np.sqrt(alpha_bar) * x0, np.sqrt(s / t) * (1.0 - t))


def steps_of(levels):
    """(now, before), each (T,): all steps of a schedule at once."""
    return levels[1:], levels[:-1]


@pytest.mark.equation("DDPM-1")
@pytest.mark.equation("DDPM-3")
@pytest.mark.equation("VDM-2")
def test_no_step_changes_nothing():
    """Its β is a positive zero, so that what divides by it is +∞."""
    for kernel in (f.kernel(np.zeros(1)), f.kernel(np.full(1, -0.7), np.full(1, -0.7))):
        np.testing.assert_array_equal(kernel, [[1.0], [0.0]])
        assert not np.signbit(kernel[1][0])


@pytest.mark.equation("DDPM-1")
@pytest.mark.equation("VDM-2")
@given(st.floats(1e-6, 0.999), st.floats(-20.0, 0.0))
def test_a_step_shrinks_by_the_root_of_alpha_and_adds_beta(beta, before):
    """In terms of DDPM's β alone, and with all digits of a small β."""
    now = np.asarray([before + np.log1p(-beta)])
    root_alpha, variance = f.kernel(now, np.asarray([before]))
    exact_beta = -np.expm1(now - before)  # what the rounding of the level left of it
    np.testing.assert_allclose(root_alpha, np.sqrt(1.0 - exact_beta), rtol=1e-12)
    np.testing.assert_allclose(variance, exact_beta, rtol=1e-12)
    np.testing.assert_allclose(variance, beta, rtol=1e-8)


@pytest.mark.equation("DDPM-1")
@pytest.mark.equation("VDM-2")
@given(seeds(), reals(3.0), transitions())
def test_a_step_has_the_stated_mean_and_variance_and_density(seed, x, pair):
    """Simulated: the mean is √α x_{t-1}, not x_{t-1}; and the density is that of these moments."""
    now, before = pair
    root_alpha, beta = np.exp(0.5 * (now - before)), 1.0 - np.exp(now - before)
    point = np.asarray([[x]])

    def steps(n, look):
        noise = Stream(seed, NUMPY).at(look).normal((1, n, 1))
        levels = np.concatenate([before, now])[:, None] - before
        return f.q_chain(np.full((n, 1), x), noise, levels)[1, :, 0]

    spread = float(np.sqrt(beta[0]))
    mean = float(root_alpha[0] * x)
    assert_mean(steps, mean, resolution=0.03 * spread)
    squares = lambda n, look: (steps(n, look) - mean) ** 2
    assert_mean(squares, float(beta[0]), resolution=0.03 * float(beta[0]))
    y = mean + spread * normals(seed, 4, 1)
    got = f.step_log_density(y, np.broadcast_to(point, (4, 1)), now, before)
    want = Gaussian(np.asarray([mean]), beta[:, None]).log_prob(y)
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-7)


@pytest.mark.equation("DDPM-3")
@given(noise_levels(), st.integers(0, 7))
def test_kernels_compose(levels, start):
    """The kernel to s, followed by the steps s+1..t, is the kernel to t: means and variances."""
    start = min(start, len(levels) - 1)
    scale, variance = f.kernel(levels[[start]])
    for t in range(start + 1, len(levels)):
        root_alpha, beta = f.kernel(levels[[t]], levels[[t - 1]])
        scale, variance = root_alpha * scale, root_alpha**2 * variance + beta
    want_scale, want_variance = f.kernel(levels[[-1]])
    np.testing.assert_allclose(scale, want_scale, rtol=1e-12)
    np.testing.assert_allclose(variance, want_variance, rtol=1e-10, atol=1e-15)


@pytest.mark.equation("DDPM-3")
@given(seeds(), sizes(3), sizes(3), noise_levels(3))
def test_a_sample_of_the_kernel_is_signal_plus_noise(seed, n, d, levels):
    x0, eps, level = normals(seed, n, d), normals(seed + 1, n, d), np.full(n, levels[-1])
    x_t, _ = f.q_sample(x0, eps, level)
    alpha_bar = np.exp(levels[-1])
    np.testing.assert_allclose(x_t, np.sqrt(alpha_bar) * x0 + np.sqrt(1.0 - alpha_bar) * eps)
    oracle.check_pullback(f.q_sample, x0, eps, level)
    oracle.check_pullback_is_linear(f.q_sample, x0, eps, level)
    signal, noise = f.signal_and_noise(level, x0)
    np.testing.assert_allclose(signal**2 + noise**2, 1.0, rtol=1e-14)
    np.testing.assert_allclose(f.log_snr(level), 2.0 * np.log(signal / noise)[:, 0], rtol=1e-10)


@pytest.mark.equation("DDPM-3")
@pytest.mark.equation("DDPM-2")
@pytest.mark.equation("VDM-3")
@given(seeds(), reals(3.0), noise_levels(5))
def test_a_chain_arrives_where_the_kernel_says(seed, x, levels):
    """Simulated step by step from a fixed x_0, and the covariance of the first and last latent."""
    alpha_bar = np.exp(levels)

    def chains(n, look):
        noise = Stream(seed, NUMPY).at(look).normal((len(levels) - 1, n, 1))
        return f.q_chain(np.full((n, 1), x), noise, np.tile(levels[:, None], (1, n)))[:, :, 0]

    mean, variance = np.sqrt(alpha_bar) * x, 1.0 - alpha_bar
    assert_mean(lambda n, k: chains(n, k)[-1], mean[-1], resolution=0.03 * variance[-1] ** 0.5)
    together = np.sqrt(alpha_bar[-1] / alpha_bar[1]) * variance[1]
    products = lambda n, k: (chains(n, k)[1] - mean[1]) * (chains(n, k)[-1] - mean[-1])
    assert_mean(products, together, resolution=0.03 * (variance[1] * variance[-1]) ** 0.5)


@pytest.mark.equation("DDPM-2")
@pytest.mark.equation("VDM-3")
@given(seeds(), sizes(3), noise_levels(6))
def test_steps_multiply_to_the_joint_of_all_latents(seed, d, levels):
    x0, noise = normals(seed, 1, d), normals(seed + 1, len(levels) - 1, 1, d)
    path = f.q_chain(x0, noise, levels[:, None])
    got = f.chain_log_density(path, levels[:, None])
    want = sum(chain_law(x0[0, j], levels).log_prob(path[1:, 0, j]) for j in range(d))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.equation("VDM-1")
@pytest.mark.equation("DDPM-1")
@pytest.mark.equation("DDPM-2")
@pytest.mark.equation("VDM-3")
@given(seeds(), noise_levels(6))
def test_every_latent_is_one_step_from_the_one_before(seed, levels):
    """x_t = √(1-β_t) x_{t-1} + √β_t ε_t, with the noise of that step and no other."""
    noise = normals(seed, len(levels) - 1, 2, 3)
    path = f.q_chain(normals(seed + 1, 2, 3), noise, np.tile(levels[:, None], (1, 2)))
    for t in range(1, len(levels)):
        beta = 1.0 - np.exp(levels[t] - levels[t - 1])
        want = np.sqrt(1.0 - beta) * path[t - 1] + np.sqrt(beta) * noise[t - 1]
        np.testing.assert_allclose(path[t], want, rtol=1e-9, atol=1e-9)


@pytest.mark.equation("VDM-1")
@given(seeds(), st.lists(sizes(3), min_size=1, max_size=3), noise_levels(4))
def test_the_encoder_has_latents_like_the_data_and_nothing_to_train(seed, shape, levels):
    """Every latent has the shape of x_0; every step is linear in what goes in; the last is noise.

    The third restriction is on the schedule: `Schedule.report` holds it.
    """
    x0, noise = normals(seed, 2, *shape), normals(seed + 1, len(levels) - 1, 2, *shape)
    rows = np.tile(levels[:, None], (1, 2))
    path = f.q_chain(x0, noise, rows)
    assert path.shape == (len(levels), *x0.shape)
    np.testing.assert_array_equal(path[0], x0)
    double = f.q_chain(2.0 * x0, 2.0 * noise, rows)
    np.testing.assert_allclose(double, 2.0 * path, rtol=1e-12, atol=1e-12)
    silent = f.q_chain(x0, 0.0 * noise, rows)
    scale = np.exp(0.5 * levels).reshape(-1, *(1,) * x0.ndim)
    np.testing.assert_allclose(silent, scale * x0[None], rtol=1e-12)


@pytest.mark.equation("DDPM-6")
@given(noise_levels(), reals(3.0), reals(3.0))
def test_the_posterior_is_gaussian_conditioning(levels, x0, x_t):
    """For every t ≥ 2: condition the joint of (x_{t-1}, x_t) given x_0 on x_t."""
    law = chain_law(x0, levels)
    for t in range(2, len(levels)):
        pair = law.marginal([t - 2, t - 1]).conditional([1], np.asarray([x_t]))
        at = (levels[[t]], levels[[t - 1]])
        c0, c, variance = f.posterior(*at)
        mean, also = f.q_posterior(np.asarray([[x0]]), np.asarray([[x_t]]), *at)
        np.testing.assert_allclose(mean[0], pair.mean, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(mean[0], c0 * x0 + c * x_t, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(variance, pair.covariance[0], rtol=1e-8)
        np.testing.assert_array_equal(also, variance)


@pytest.mark.equation("DDPM-6")
@given(transitions(), reals(3.0), reals(3.0), reals(3.0))
def test_bayes_rule_holds_pointwise(pair, x0, x_s, x_t):
    """q(x_t | x_s) q(x_s | x_0) = q(x_s | x_t, x_0) q(x_t | x_0)."""
    now, before = pair
    a, b, c = (np.asarray([[v]]) for v in (x0, x_s, x_t))
    mean, variance = f.q_posterior(a, c, now, before)
    left = f.step_log_density(c, b, now, before) + f.step_log_density(b, a, before, 0.0 * before)
    right = Gaussian(mean[0], variance[:, None]).log_prob(b)
    right = right + f.step_log_density(c, a, now, 0.0 * now)
    size = 1.0 + abs(float(left[0])) + 9.0 / float(variance[0])
    np.testing.assert_allclose(left, right, rtol=0.0, atol=1e-9 * size)


@pytest.mark.equation("DDPM-3")
@pytest.mark.equation("DDPM-6")
@given(st.floats(-12.0, -0.3), st.floats(0.01, 1.0))
def test_small_noise_keeps_its_digits(exponent, share):
    """Levels down to -1e-12, against exact arithmetic: 1-ᾱ, the posterior and log SNR."""
    now = -(10.0**exponent)
    before = now * share
    exact_now, exact_before = Decimal(now), Decimal(before)
    noise, earlier = 1 - exact_now.exp(), 1 - exact_before.exp()
    beta = 1 - Decimal(float(now - before)).exp()  # of the difference that float64 knows
    at = (np.asarray([now]), np.asarray([before]))
    c0, c, variance = (float(v[0]) for v in f.posterior(*at))
    assert f.kernel(at[0])[1][0] == pytest.approx(float(noise), rel=1e-14)
    assert f.log_snr(at[0])[0] == pytest.approx(float(exact_now - noise.ln()), rel=1e-14)
    assert c0 == pytest.approx(float((exact_before / 2).exp() * beta / noise), rel=1e-13)
    root = (Decimal(float(now - before)) / 2).exp()
    assert c == pytest.approx(float(root * earlier / noise), rel=1e-13)
    assert variance == pytest.approx(float(beta * earlier / noise), rel=1e-13)


@pytest.mark.equation("DDPM-6")
@pytest.mark.equation("TRAP-8")
@given(noise_levels(1), reals(3.0), reals(3.0))
def test_the_first_step_back_is_a_point_at_the_data(levels, x0, x_t):
    c0, c, variance = f.posterior(levels[[1]], levels[[0]])
    assert (c0[0], c[0], variance[0]) == (1.0, 0.0, 0.0)
    assert not np.signbit([c[0], variance[0]]).any()  # or the weight 1/β̃ would be -∞
    mean, _ = f.q_posterior(np.asarray([[x0]]), np.asarray([[x_t]]), levels[[1]], levels[[0]])
    assert mean[0, 0] == x0


@pytest.mark.equation("DDPM-6")
@given(seeds(), st.floats(0.3, 3.0), transitions())
def test_the_posterior_is_the_regression_of_simulated_chains(seed, x0, pair):
    """Slope, intercept and residual variance of x_s on x_t, each by simulation: plainly, and with
    the controls ε, ε² - 1 and εε', which leave no variance."""
    now, before = pair
    c0, c, variance = (float(v[0]) for v in f.posterior(now, before))
    marginal = 1.0 - float(np.exp(now[0]))  # Var(x_t | x_0)

    def draw(n, look):
        noise = Stream(seed, NUMPY).at(look).normal((2, n, 1))
        rows = np.tile(np.asarray([0.0, before[0], now[0]])[:, None], (1, n))
        path = f.q_chain(np.full((n, 1), x0), noise, rows)[:, :, 0]
        rest = path[1] - c * path[2]  # its mean is c₀ x_0, its variance β̃, and it ignores x_t
        a, b = noise[0, :, 0], noise[1, :, 0]
        controls = np.stack([a, b, a * a - 1.0, b * b - 1.0, a * b], axis=-1)
        return path, rest, controls

    def intercept(n, look):
        _, rest, controls = draw(n, look)
        return rest, controls

    def squares(n, look):
        _, rest, controls = draw(n, look)
        return (rest - c0 * x0) ** 2, controls

    def slope(n, look):
        path, rest, controls = draw(n, look)
        return (rest - c0 * x0) * (path[2] - np.exp(0.5 * now[0]) * x0), controls

    plainly = lambda both: lambda n, look: both(n, look)[0]
    assert_mean(plainly(intercept), c0 * x0, resolution=0.03 * max(variance**0.5, c0 * x0))
    assert_mean(plainly(squares), variance, resolution=0.03 * variance)
    assert_mean(plainly(slope), 0.0, resolution=0.03 * (variance * marginal) ** 0.5)
    assert_mean(intercept, c0 * x0, resolution=1e-9)
    assert_mean(squares, variance, resolution=1e-9)
    assert_mean(slope, 0.0, resolution=1e-9)


@pytest.mark.equation("TRAP-2")
def test_the_variance_of_a_chain_is_not_the_product_of_its_steps():
    beta = np.linspace(0.05, 0.5, 10)
    _, variance = f.kernel(np.asarray([np.log1p(-beta).sum()]))
    assert variance[0] == pytest.approx(0.967, abs=1e-3)
    assert Schedule(beta).one_minus_alpha_bar[-1] == pytest.approx(variance[0], rel=1e-14)
    assert np.prod(beta) < 1e-6


@pytest.mark.equation("TRAP-3")
@given(seeds(), transitions(), st.floats(0.0, 1.0))
def test_a_ddim_step_keeps_the_marginal_and_holds_the_posterior(seed, pair, share):
    """The coefficients of ε and z have squares of sum 1-ᾱ_s; at σ² = β̃ it is q(x_s | x_t, x_0)."""
    now, before = pair
    x0, eps, z, nothing = *normals(seed, 3, 1, 4), np.zeros((1, 4))
    _, spread = f.kernel(before)
    noise = f.ddim_step(nothing, np.ones((1, 4)), nothing, share * spread, before)
    added = f.ddim_step(nothing, nothing, np.ones((1, 4)), share * spread, before)
    np.testing.assert_allclose(noise**2 + added**2, spread[0], rtol=1e-12)
    np.testing.assert_allclose(added**2, share * spread[0], rtol=1e-12)
    np.testing.assert_allclose(noise + added > 0.0, True)
    variance = f.posterior(now, before)[2]
    x_t, _ = f.q_sample(x0, eps, now)
    want = f.q_posterior(x0, x_t, now, before)[0] + np.sqrt(variance) * z
    got = f.ddim_step(x0, eps, z, variance, before)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)


@given(st.floats(-6.0, -1e-3))
def test_a_ddim_step_takes_no_more_variance_than_there_is(level):
    """All of it leaves the mean and no ε; more is not a number."""
    before, one = np.asarray([level]), np.ones((1, 1))
    _, full = f.kernel(before)
    assert f.ddim_step(0.0 * one, one, 0.0 * one, full, before)[0, 0] == 0.0
    with np.errstate(invalid="ignore"):
        assert np.isnan(f.ddim_step(one, one, one, 1.01 * full, before)).all()


def test_whole_numbers_are_no_data():
    pixels = np.arange(4, dtype=np.uint8).reshape(1, 4)
    with pytest.raises(TypeError, match="must be floating numbers, got uint8"):
        f.q_sample(pixels, np.ones((1, 4)), np.asarray([-0.5]))


@pytest.mark.equation("VDM-5")
@given(st.floats(0.1, 5.0), noise_levels())
def test_unit_variance_is_kept_and_any_other_forgotten(variance, levels):
    """By the recursion v ← α v + β along the chain."""
    exact = variance
    for now, before in zip(*steps_of(levels), strict=True):
        root_alpha, beta = f.kernel(np.asarray([now]), np.asarray([before]))
        exact = root_alpha[0] ** 2 * exact + beta[0]
    got = f.marginal_variance(levels, variance)
    np.testing.assert_allclose(got[-1], exact, rtol=1e-12)
    np.testing.assert_allclose(f.marginal_variance(levels, 1.0), 1.0, rtol=1e-14)
    assert got[0] == variance


@pytest.mark.equation("VDM-5")
def test_simulated_data_keep_their_variance():
    level = np.asarray([-0.7])

    def squares(n, look):
        noise = Stream(5, NUMPY).at(look).normal((2, n, 1))
        x_t, _ = f.q_sample(2.0 * noise[0], noise[1], np.full(n, level[0]))
        return x_t[:, 0] ** 2

    want = float(f.marginal_variance(level, 4.0)[0])
    assert_mean(squares, want, resolution=0.02 * want)


@pytest.mark.equation("DVAE-7")
@given(seeds(), noise_levels(6))
def test_the_shifted_marginal_keeps_the_condition_at_full_strength(seed, levels):
    """x_t = √ᾱ x_0 + x̂ + √(1-ᾱ) ε for every t ≥ 1, and x_0 alone at t = 0."""
    x0, eps, hint = (normals(seed + i, len(levels), 3) for i in range(3))
    x_t = f.Shifted(hint).shifted(f.q_sample(x0, eps, levels)[0], levels)
    alpha_bar = np.exp(levels)[1:, None]
    want = np.sqrt(alpha_bar) * x0[1:] + hint[1:] + np.sqrt(1.0 - alpha_bar) * eps[1:]
    np.testing.assert_allclose(x_t[1:], want, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(x_t[0], x0[0])


@pytest.mark.equation("DVAE-6")
@pytest.mark.equation("DVAE-7")
@given(seeds(), noise_levels(6))
def test_shifted_steps_are_the_printed_ones_and_lead_to_the_marginal(seed, levels):
    """First √α_1 x_0 + x̂, then √α_t x_{t-1} + (1-√α_t) x̂: iterated without noise."""
    x0, hint = normals(seed, 1, 3), normals(seed + 1, 1, 3)
    shift, x = f.Shifted(hint), x0
    for t in range(1, len(levels)):
        now, before = levels[[t]], levels[[t - 1]]
        root = np.exp(0.5 * (now - before))[:, None]
        printed = root * x + (hint if t == 1 else (1.0 - root) * hint)
        kernel = f.shaped(f.kernel(now, before)[0], x)
        x = shift.shifted(kernel * shift.plain(x, before), now)
        np.testing.assert_allclose(x, printed, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(x, np.exp(0.5 * now) * x0 + hint, rtol=1e-10, atol=1e-12)


@pytest.mark.equation("DVAE-6")
@given(seeds(), noise_levels(6))
def test_shifted_steps_add_the_variance_of_the_plain_ones(seed, levels):
    """With noise: x_t = (mean of the step) + √β_t ε, for t = 1 and for t ≥ 2."""
    hint, noise = normals(seed, 1, 3), normals(seed + 1, len(levels) - 1, 1, 3)
    shift = f.Shifted(hint)
    path = f.q_chain(normals(seed + 2, 1, 3), noise, levels[:, None])
    x = [shift.shifted(path[t], levels[[t]]) for t in range(len(levels))]
    for t in range(1, len(levels)):
        alpha = np.exp(levels[t] - levels[t - 1])
        mean = np.sqrt(alpha) * x[t - 1] + (1.0 if t == 1 else 1.0 - np.sqrt(alpha)) * hint
        np.testing.assert_allclose(x[t] - mean, np.sqrt(1.0 - alpha) * noise[t - 1], atol=1e-9)


@pytest.mark.equation("DVAE-8")
@given(seeds(), noise_levels(4))
def test_the_shifted_base_is_centred_at_the_condition(seed, levels):
    """q(x_T | x_0, x̂) is as far from N(x̂, I) as the plain q(x_T | x_0) from N(0, I): L_T."""
    x0, eps, hint = normals(seed, 3, 1, 3)
    last, shift = levels[[-1]], f.Shifted(hint)
    np.testing.assert_allclose(shift.shifted(eps, last), hint + eps)
    mean = shift.shifted(f.q_sample(x0, 0.0 * eps, last)[0], last)
    law = Gaussian(mean[0], -np.expm1(last) * np.eye(3))
    want = prior_kl(x0, last)[0][0]
    got = law.kl(Gaussian(shift.shifted(0.0 * eps, last)[0], np.eye(3)))
    assert got == pytest.approx(float(want), rel=1e-7, abs=1e-9)


@pytest.mark.equation("TRAP-6")
def test_a_base_without_the_condition_shows_in_short_chains_only():
    """Unit data: starting from N(0, I) moves the samples by √ᾱ_T x̂ and by nothing else."""
    hint = np.asarray([[2.5]])
    found = []
    for beta in (np.linspace(1e-4, 0.02, 1000), np.linspace(1e-6, 0.7, 10)):
        levels = np.concatenate([[0.0], np.cumsum(np.log1p(-beta))])
        world, shift = GaussianDiffusion(np.asarray([0.4]), np.ones(1)), f.Shifted(hint)
        ends = []
        for x in (shift.shifted(0.0 * hint, levels[[-1]]), 0.0 * hint):
            for t in range(len(beta), 0, -1):
                u = shift.plain(x, levels[[t]])
                x = shift.shifted(world.reverse(levels[t], levels[t - 1])[0](u), levels[[t - 1]])
            ends.append(float(x[0, 0]))
        assert ends[0] - ends[1] == pytest.approx(2.5 * np.exp(0.5 * levels[-1]), rel=1e-9)
        found.append(ends[0] - ends[1])
    assert found[0] < 0.02 < 0.2 < found[1]


@pytest.mark.equation("DVAE-9")
@given(noise_levels(), reals(3.0), reals(3.0), reals(3.0))
def test_the_shifted_posterior_is_gaussian_conditioning(levels, x0, x_t, hint):
    """Condition the joint of (x_{t-1}, x_t) given x_0 and x̂; its x̂-coefficient is 1 - c_t."""
    shift = f.Shifted(np.asarray([[hint]]))
    law = chain_law(x0, levels)
    law = Gaussian(law.mean + hint, law.covariance)
    for t in range(1, len(levels)):
        at = (levels[[t]], levels[[t - 1]])
        u = shift.plain(np.asarray([[x_t]]), at[0])
        mean = shift.shifted(f.q_posterior(np.asarray([[x0]]), u, *at)[0], at[1])
        if t == 1:
            assert mean[0, 0] == x0  # a point: no condition left
            continue
        pair = law.marginal([t - 2, t - 1]).conditional([1], np.asarray([x_t]))
        np.testing.assert_allclose(mean[0], pair.mean, rtol=1e-8, atol=1e-8)
        c0, c, _ = f.posterior(*at)
        np.testing.assert_allclose(mean[0], c0 * x0 + c * x_t + (1.0 - c) * hint, atol=1e-10)


@on_every_backend
def test_every_backend_agrees(born):
    levels = np.asarray([0.0, -0.1, -0.5, -3.0])
    x0, noise = normals(0, 4, 2), normals(1, 3, 4, 2)

    def everything(made):
        table = made.xp.asarray(levels, dtype=made.xp.float64, device=made.device)
        rows = made.xp.stack([table] * 4, axis=-1)
        data, eps = made.asarray(x0), made.asarray(noise)
        path = f.q_chain(data, eps, rows)
        yield path
        yield f.chain_log_density(path, rows)
        x_t, pullback = f.q_sample(data, eps[0, ...], rows[2, ...])
        yield x_t
        yield from pullback(data)
        yield f.q_posterior(data, x_t, rows[2, ...], rows[1, ...])[0]
        yield f.ddim_step(data, x_t, data, 0.1 * (rows[1, ...] + 1.0), rows[2, ...])
        shift = f.Shifted(eps[1, ...])
        yield shift.shifted(shift.plain(x_t, rows[0, ...]), rows[2, ...])
        yield made.asarray(host(f.marginal_variance(rows[1, ...], 2.0)))

    for got, want in zip(everything(born), everything(NUMPY), strict=True):
        oracle.assert_close(host(got), want, 20 * tolerance(born), "value")
        assert got.dtype == born.zeros((1,)).dtype
