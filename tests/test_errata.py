"""Every misprint with a number: a law that our formula holds and the printed one breaks."""

import numpy as np
import pytest

from scratchgen.maths import likelihoods as lk
from scratchgen.maths.diffusion_bound import joint_log_density
from scratchgen.maths.forward_process import Shifted, kernel, posterior, q_chain
from scratchgen.maths.gaussian import Gaussian
from scratchgen.models.vae import Vae
from scratchgen.testing.diffusion_worlds import GaussianDiffusion, HintedDiffusion
from scratchgen.testing.worlds import LinearGaussian, LinearNetwork, distortion_at_rate

from errata import CHAIN, DATA, PRINTED, STEPS, only_ours_obeys
from support import normals

LINEAR = np.concatenate([[0.0], np.cumsum(np.log1p(-np.linspace(0.05, 0.5, 10)))])
HO = np.concatenate([[0.0], np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))])
FLAT = LinearGaussian(normals(1, 2, 3), normals(2, 3), 0.3)
POINT = normals(3, 3)
ENCODERS = [Gaussian(normals(i, 2), np.diag(np.exp(normals(i + 1, 2)))) for i in range(4, 10, 2)]


def close(got, want, rel=1e-8):
    np.testing.assert_allclose(got, want, rtol=rel, atol=rel)


def conditioned(t, x0=1.3):
    """q(x_{t-1} | x_t, x_0) of the linear schedule by conditioning: offset/x_0, slope, variance."""
    a, b = np.exp(LINEAR[t - 1]), np.exp(LINEAR[t])
    covariance = np.asarray([[1.0 - a, np.sqrt(b / a) * (1.0 - a)], [0.0, 1.0 - b]])
    covariance[1, 0] = covariance[0, 1]
    law = Gaussian(np.sqrt([a, b]) * x0, covariance)
    at = [law.conditional([1], np.asarray([v])) for v in (0.0, 1.0)]
    return at[0].mean[0] / x0, at[1].mean[0] - at[0].mean[0], at[0].covariance[0, 0]


def posterior_is_conditioning(f):
    for t in (2, 5, 10):
        close(np.concatenate(f(LINEAR[[t]], LINEAR[[t - 1]])), conditioned(t))


@pytest.mark.equation("ERR-01")
def test_the_posterior_mean_of_duan():
    only_ours_obeys("ERR-01", posterior_is_conditioning)
    c0, c, variance = PRINTED["ERR-01"].form(LINEAR[[5]], LINEAR[[4]])
    close([c[0], c0[0], variance[0]], [0.993550, 0.762496, 0.185566], rel=1e-5)


@pytest.mark.equation("ERR-22")
def test_the_posterior_of_yao():
    only_ours_obeys("ERR-22", posterior_is_conditioning)
    _, c, variance = PRINTED["ERR-22"].form(LINEAR[[5]], LINEAR[[4]])
    close([c[0], variance[0]], [0.6699, 0.25], rel=1e-3)


@pytest.mark.equation("ERR-02")
def test_a_chain_is_not_one_of_its_steps():
    path = q_chain(normals(0, 3, 1), normals(1, 4, 3, 1), np.tile(STEPS[:, None], (1, 3)))

    def joint_of_all_latents(f):
        alpha_bar = np.exp(STEPS[1:])
        low, high = np.minimum.outer(alpha_bar, alpha_bar), np.maximum.outer(alpha_bar, alpha_bar)
        covariance = np.sqrt(low / high) * (1.0 - high)
        got = f(path, np.tile(STEPS[:, None], (1, 3)))
        for n in range(3):
            law = Gaussian(np.sqrt(alpha_bar) * path[0, n, 0], covariance)
            close(got[n], law.log_prob(path[1:, n, 0]))

    only_ours_obeys("ERR-02", joint_of_all_latents)
    beta = 0.3  # one letter, two meanings: the coefficient and the variance of either line
    close([np.sqrt(1.0 - beta**2), beta**2], [0.9539, 0.09], rel=1e-4)
    close([np.sqrt(1.0 - beta), beta], [0.8367, 0.3], rel=1e-4)


def gap_is_the_divergence(f):
    for q in ENCODERS:
        evidence = float(FLAT.evidence.log_prob(POINT))
        close(evidence - f(FLAT, POINT, q), q.kl(FLAT.posterior(POINT)))


@pytest.mark.equation("ERR-03")
def test_rate_plus_distortion_is_minus_the_elbo_and_depends_on_q():
    only_ours_obeys("ERR-03", gap_is_the_divergence)
    losses = [PRINTED["ERR-03"].form(FLAT, POINT, q) for q in ENCODERS]
    close(losses, losses[0])  # as printed, every encoder is as good as every other


@pytest.mark.equation("ERR-30")
def test_a_bound_without_logarithms_bounds_nothing():
    only_ours_obeys("ERR-30", gap_is_the_divergence)


@pytest.mark.equation("ERR-33")
def test_a_bound_on_the_pair_is_not_the_bound_on_the_data():
    def tight_at_the_posterior(f):
        close(f(FLAT, POINT, FLAT.posterior(POINT)), FLAT.evidence.log_prob(POINT))

    only_ours_obeys("ERR-33", tight_at_the_posterior)


@pytest.mark.equation("ERR-05")
def test_the_rate_constraint_binds():
    def a_gaussian_coder_is_optimal(f):
        """z = a x + e has R = ½ log(1 + a² s²) and D = s²/(1 + a² s²): on the curve for every a."""
        for a in (0.3, 1.0, 2.0):
            gain = 1.0 + 2.0 * a * a
            close(f([2.0], 0.5 * np.log(gain)), 2.0 / gain)

    only_ours_obeys("ERR-05", a_gaussian_coder_is_optimal)
    close(distortion_at_rate([2.0], 0.5), 0.735759, rel=1e-6)


@pytest.mark.equation("ERR-06")
def test_the_second_stage_pulls_the_decoder_towards_the_data():
    q, x = Gaussian(np.asarray([1.2]), np.asarray([[0.3]])), np.asarray([1.0])

    def least_at_the_regression(f):
        grid = np.linspace(-2.0, 2.0, 4001)
        costs = [f(LinearGaussian(np.asarray([[w]]), np.zeros(1), 1.0), x, q) for w in grid]
        assert abs(grid[np.argmin(costs)] - 1.2 / (1.2**2 + 0.3)) < 1e-3

    only_ours_obeys("ERR-06", least_at_the_regression)


@pytest.mark.equation("ERR-07")
def test_a_shared_denoiser_needs_the_present_latent():
    world = GaussianDiffusion(np.zeros(1), np.asarray([2.0]))

    def variance_of_samples(f, steps):
        levels = np.concatenate(
            [[0.0], np.cumsum(np.log1p(-np.linspace(0.1, 20.0, steps) / steps))]
        )
        variance = 1.0
        for t in range(steps, 0, -1):
            one = np.ones((1, 1))
            gain, noise = f(world.clean(one, levels[[t]]), one, levels[[t]], levels[[t - 1]])
            variance = float(gain[0, 0]) ** 2 * variance + float(noise[0])
        return variance

    def samples_are_like_the_data(f):
        found = [variance_of_samples(f, steps) for steps in (50, 200)]
        close(found, [1.745, 1.930], rel=2e-3)

    only_ours_obeys("ERR-07", samples_are_like_the_data)
    wrong = [variance_of_samples(PRINTED["ERR-07"].form, steps) for steps in (50, 200)]
    close(wrong, [0.9196, 0.9696], rel=2e-3)


@pytest.mark.equation("ERR-08")
def test_independent_latents_would_be_unused():
    def factors_multiply_to_the_joint(f):
        v = normals(5, 6, 4)
        close(f(CHAIN, v), CHAIN.joint.log_prob(v))

    only_ours_obeys("ERR-08", factors_multiply_to_the_joint)


FULL = LinearNetwork(np.tril(normals(6, 4, 4), k=-1), np.zeros(4), np.asarray([1.0, 0.5, 0.7, 0.4]))


@pytest.mark.equation("ERR-09")
def test_an_encoder_that_sees_one_latent_back_leaves_a_gap():
    """For three latents it is I(z_3; z_1 | x, z_2), the least any chain can do."""
    law = FULL.joint.conditional([3], np.asarray([0.8]))  # of (z_1, z_2, z_3) given x

    def exact(f):
        assert abs(f(law, [[], [0], [0, 1]]).joint.kl(law)) < 1e-9

    only_ours_obeys("ERR-09", exact)
    chain = PRINTED["ERR-09"].form(law, [[], [0], [0, 1]]).joint
    near = law.conditional([1], np.zeros(1)).covariance
    information = -0.5 * np.log(1.0 - near[0, 1] ** 2 / (near[0, 0] * near[1, 1]))
    close(law.kl(chain), information, rel=1e-6)


LAST = 1.5
LATENTS = normals(7, 5, 3)
TRUE_POSTERIOR = CHAIN.joint.conditional([3], np.asarray([LAST]))


def posterior_of_the_chain(f):
    close(f(CHAIN.joint, LATENTS, LAST), TRUE_POSTERIOR.log_prob(LATENTS))


@pytest.mark.equation("ERR-11")
def test_the_posterior_runs_from_the_data_upwards():
    only_ours_obeys("ERR-11", posterior_of_the_chain)


@pytest.mark.equation("ERR-13")
def test_the_first_factor_stands_once():
    only_ours_obeys("ERR-13", posterior_of_the_chain)


@pytest.mark.equation("ERR-12")
def test_the_ratio_of_joint_and_posterior_is_the_evidence():
    evidence = CHAIN.joint.marginal([3]).log_prob(np.asarray([LAST]))
    joint = CHAIN.log_prob(np.concatenate([LATENTS, np.full((5, 1), LAST)], axis=1))

    def every_weight_is_the_evidence(f):
        close(joint - f(CHAIN.joint, LATENTS, LAST), evidence)

    only_ours_obeys("ERR-12", every_weight_is_the_evidence)


@pytest.mark.equation("ERR-14")
def test_the_joint_of_a_diffusion_model_depends_on_the_model():
    def perturbed(x, t):
        step, variance = DATA.reverse(STEPS[t], STEPS[t - 1])
        return 0.9 * step(x) + 0.1, np.log(1.2 * variance) + np.zeros_like(x)

    arrows, offset, variances = np.zeros((5, 5)), np.zeros(5), np.ones(5)
    for i, t in enumerate(range(4, 0, -1)):
        offset[i + 1] = perturbed(np.zeros((1, 1)), t)[0][0, 0]
        arrows[i + 1, i] = perturbed(np.ones((1, 1)), t)[0][0, 0] - offset[i + 1]
        variances[i + 1] = np.exp(perturbed(np.zeros((1, 1)), t)[1][0, 0])
    model = LinearNetwork(arrows, offset, variances)
    path = normals(8, 5, 6, 1)

    def density_of_the_model(f):
        close(f(path, perturbed), model.log_prob(path[::-1, :, 0].T))

    only_ours_obeys("ERR-14", density_of_the_model)
    assert joint_log_density(path, perturbed).shape == (6,)


@pytest.mark.equation("ERR-15")
def test_the_joint_of_a_hierarchy_depends_on_its_arrows():
    def density_of_the_model(f):
        v = normals(9, 6, 4)
        close(f(FULL, v), FULL.joint.log_prob(v))

    only_ours_obeys("ERR-15", density_of_the_model)


@pytest.mark.equation("ERR-16")
def test_the_last_latent_remembers_the_one_before():
    def a_step_keeps_most_of_the_latent(f):
        root_alpha, beta = f(HO[[1000]], HO[[999]])
        close([root_alpha[0], beta[0]], [0.98995, 0.02], rel=1e-5)

    only_ours_obeys("ERR-16", a_step_keeps_most_of_the_latent)
    signal, variance = kernel(HO[[1000]])  # the marginal is what is nearly N(0, I)
    assert 0.5 * float(signal[0] ** 2 - signal[0] ** 2 - np.log(variance[0])) < 1e-4


@pytest.mark.equation("ERR-17")
def test_the_ratio_keeps_its_middle():
    world = GaussianDiffusion(np.zeros(1), np.ones(1))  # stays N(0, 1), so the ratio is log q(x_0)
    rows = np.tile(STEPS[:, None], (1, 20))
    path = q_chain(normals(10, 20, 1), normals(11, 4, 20, 1), rows)

    def reverse(x, t):
        step, variance = world.reverse(STEPS[t], STEPS[t - 1])
        return step(x), np.log(variance) + np.zeros_like(x)

    def constant_on_every_path(f):
        want = Gaussian(np.zeros(1), np.eye(1)).log_prob(path[0])
        close(f(path, reverse, rows), want)

    only_ours_obeys("ERR-17", constant_on_every_path)


@pytest.mark.equation("ERR-21")
def test_the_mean_of_a_step_is_shrunk():
    def unit_variance_is_kept(f):
        variance = 1.0
        for now, before in zip(HO[1:], HO[:-1], strict=True):
            root_alpha, beta = f(np.asarray([now]), np.asarray([before]))
            variance = root_alpha[0] ** 2 * variance + beta[0]
        close(variance, 1.0)

    only_ours_obeys("ERR-21", unit_variance_is_kept)


def constant_encoder(mean, variance):
    """Unit decoder, and q(z | x) = N(mean, variance) whatever x is."""

    def encoder(x):
        return np.tile([mean, np.log(variance)], (len(x), 1)), lambda d: 0.0 * x

    return Vae(encoder, lambda z: (z, lambda d: d), lk.FixedNormal(1.0))


@pytest.mark.equation("ERR-18")
def test_an_average_is_not_its_expectation():
    """Over ten given samples it is their average, and not the expectation it estimates."""
    m, v, x = 0.5, 0.25, 1.5
    eps = normals(18, 10, 1, 1)
    costs = 0.5 * (x - m - np.sqrt(v) * eps) ** 2 + 0.5 * np.log(2.0 * np.pi)

    def average_of_the_samples(f):
        (reconstruction, _), _ = f(constant_encoder(m, v), np.asarray([[x]]), eps)
        close(reconstruction[0], costs.mean())

    only_ours_obeys("ERR-18", average_of_the_samples)
    world = LinearGaussian(np.eye(1), np.zeros(1), 1.0)
    q = Gaussian(np.asarray([m]), np.asarray([[v]]))
    assert abs(costs.mean() - world.reconstruction(np.asarray([x]), q)) > 1e-3


@pytest.mark.equation("ERR-19")
def test_the_variance_of_the_encoder_is_sigma_squared():
    """μ = 0.3, σ = 0.5: KL 0.36315; with σ for a variance it would be 0.14157."""

    def integral(f):
        z = np.linspace(-8.0, 8.0, 4001)
        log_q = -0.5 * ((z - 0.3) / 0.5) ** 2 - np.log(0.5)
        ratio = np.exp(log_q) / np.sqrt(2.0 * np.pi) * (log_q + 0.5 * z * z)
        kl, _ = f(np.asarray([0.3]), np.asarray([2.0 * np.log(0.5)]))
        close(kl[0], np.trapezoid(ratio, z))

    only_ours_obeys("ERR-19", integral)


@pytest.mark.equation("ERR-23")
def test_the_loss_is_the_squared_norm():
    """Two-point data, x_t = 0.1, ᾱ = 0.3: the minimum is E[ε | x_t] = -0.3045, not a median."""
    alpha_bar, x_t, data, prior = 0.3, 0.1, np.asarray([-1.0, 1.0]), np.asarray([0.3, 0.7])
    eps = (x_t - np.sqrt(alpha_bar) * data) / np.sqrt(1.0 - alpha_bar)
    weights = prior * np.exp(-0.5 * eps**2)
    weights /= weights.sum()

    def least_at_the_mean(f):
        grid = np.linspace(-1.5, 1.5, 3001)
        costs = [weights @ f(eps[:, None], np.full((2, 1), g))[0] for g in grid]
        assert abs(grid[np.argmin(costs)] - weights @ eps) < 2e-3

    only_ours_obeys("ERR-23", least_at_the_mean)


@pytest.mark.equation("ERR-24")
def test_a_divergence_at_one_point_is_not_its_mean():
    x0, guess, logvar = normals(12, 6, 2), normals(13, 6, 2), np.full((6, 2), -0.4)
    now, before = np.full(6, STEPS[3]), np.full(6, STEPS[2])

    def pointwise(f):
        got, _ = f(x0, guess, logvar, now, before)
        c0, _, variance = posterior(now, before)
        for n in range(6):
            truth = Gaussian(c0[n] * x0[n], variance[n] * np.eye(2))
            close(got[n], truth.kl(Gaussian(c0[n] * guess[n], np.exp(-0.4) * np.eye(2))))

    only_ours_obeys("ERR-24", pointwise)


@pytest.mark.equation("ERR-25")
def test_the_posterior_mean_depends_on_the_prior():
    """Two points {-2, 1} and a normal prior, x = 0.3, σ² = 0.5: 0.9895, 0.7931 and 0.2000."""
    x, variance = 0.3, 0.5

    def two_points(weight):
        means = np.asarray([-2.0, 1.0])
        shares = np.asarray([weight, 1.0 - weight]) * np.exp(-0.5 * (x - means) ** 2 / variance)
        shares /= shares.sum()
        return shares @ (means - x) / variance, shares @ means

    def bayes(f):
        priors = [two_points(0.3), two_points(0.9), (-x / (1.0 + variance), x / (1.0 + variance))]
        for score, mean in priors:
            at = (np.asarray([[x]]), np.asarray([[score]]), np.asarray([variance]))
            close(np.ravel(f(*at))[0], mean)
        close([mean for _, mean in priors], [0.989456, 0.793136, 0.2], rel=1e-4)

    only_ours_obeys("ERR-25", bayes)


@pytest.mark.equation("ERR-27")
def test_the_weight_at_small_t_is_large_for_one_variance_only():
    """σ² = β: 0.500 at t = 1, least at t = 349, and up again by t = 1000."""

    def moderate(f):
        weights = f(kernel(HO[1:], HO[:-1])[1], HO[1:], HO[:-1])
        close(weights[0], 0.50005, rel=1e-4)
        assert int(np.argmin(weights)) + 1 == 349

    with np.errstate(divide="ignore"):  # the printed form divides by 1 - ᾱ_0 = 0 at t = 1
        only_ours_obeys("ERR-27", moderate)


@pytest.mark.equation("ERR-31")
def test_the_condition_is_absent_at_time_zero():
    shift = Shifted(np.asarray([[-0.7]]))

    def the_first_step_back_ends_at_the_data(f):
        close(f(shift, np.asarray([[1.3]]), np.zeros(1)), [[1.3]])

    only_ours_obeys("ERR-31", the_first_step_back_ends_at_the_data)
    # the limit N(x̂, I) belongs to t = T: half-way the data still count
    close(np.exp(0.5 * HO[[500, 1000]]), [0.280, 0.00635], rel=2e-3)


@pytest.mark.equation("ERR-32")
def test_the_hint_is_what_a_second_latent_is_not():
    """MMSE of x_0: 0.699 from x_t, no less from (x_t, x_{t+1}), 0.238 from (x_t, x̂)."""
    world, level, step = HintedDiffusion(0.8, 0.4, 1.0), -0.9, -0.3

    def error_of(extra):
        """Var(x_0 | x_t, extra) by conditioning, with extra the hint or the next latent."""
        signal, noise = np.exp(0.5 * level), -np.expm1(level)
        ahead, added = np.exp(0.5 * step), -np.expm1(step)
        arrows = np.asarray(
            [[0.0, 0.0, 0.0, 0.0], [0.8, 0.0, 0.0, 0.0], [0.0, signal, 0, 0], [0, 0, ahead, 0]]
        )  # x̂ → x_0 → x_t → x_{t+1}
        law = LinearNetwork(arrows, np.zeros(4), np.asarray([1.0, 0.4, noise, added])).joint
        known = [2, extra]
        rest = [i for i in range(4) if i not in known]
        return law.conditional(known, np.zeros(2)).covariance[rest.index(1), rest.index(1)]

    def from_noisy_and_hint(f):
        close(f(world, level), error_of(extra=0))

    only_ours_obeys("ERR-32", from_noisy_and_hint)
    close(PRINTED["ERR-32"].form(world, level), error_of(extra=3))


@pytest.mark.equation("ERR-35")
def test_more_samples_are_averaged_and_not_summed():
    vae, x, eps = constant_encoder(0.75, 0.5), np.asarray([[1.5]]), normals(14, 1, 1, 1)

    def the_same_sample_five_times(f):
        once, _ = f(vae, x, eps)
        five, _ = f(vae, x, np.tile(eps, (5, 1, 1)))
        close(np.concatenate(five), np.concatenate(once))

    only_ours_obeys("ERR-35", the_same_sample_five_times)


@pytest.mark.equation("ERR-37")
def test_a_sample_is_shifted_too():
    def mean_of_samples(f):
        eps = np.asarray([[[-1.0]], [[1.0]]])
        z = f(np.asarray([[0.3]]), np.asarray([[0.2]]), eps)[0]
        close(z.mean(), 0.3)

    only_ours_obeys("ERR-37", mean_of_samples)
