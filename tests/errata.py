"""What the sources misprint, and traps beside it: each next to our function that has it right.

A wrong form has the signature of the function whose place it takes, so one law can be put to
both: ours must hold it, the printed one must not. The planted faults use the same table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import pytest

from scratchgen.core.arrays import example_sum
from scratchgen.core.numerics import expm1_minus
from scratchgen.maths.distributions import normal_kl
from scratchgen.maths.forward_process import kernel, log_snr, posterior, step_log_density
from scratchgen.models.vae import Vae
from scratchgen.testing import worlds
from scratchgen.testing.diffusion_worlds import GaussianDiffusion
from scratchgen.testing.worlds import LinearGaussian, LinearNetwork

# the originals, so that a printed form may use them even where it stands in their place
_transition_kl = import_module("scratchgen.maths.diffusion_bound").transition_kl
_base_log_density = import_module("scratchgen.maths.diffusion_bound").base_log_density
_reverse_log_density = import_module("scratchgen.maths.diffusion_bound").reverse_log_density
_consistency_split = import_module("scratchgen.maths.diffusion_bound").consistency_split
_optimal_variance = import_module("scratchgen.maths.diffusion_bound").optimal_variance
_ddim_step = import_module("scratchgen.maths.forward_process").ddim_step
_trajectory = import_module("scratchgen.models.samplers").trajectory
_bound = GaussianDiffusion.bound
_vae_loss, _elbo, _factorised = Vae.loss, LinearGaussian.elbo, worlds.factorised
_posterior, _kernel = posterior, kernel


@dataclass(frozen=True)
class Printed:
    """Where the right form lives ("module:name"), and the form as printed."""

    target: str
    form: Callable

    @property
    def ours(self) -> Callable:
        """The function of the package, as it is now."""
        module, _, path = self.target.partition(":")
        found = import_module("scratchgen." + module)
        for name in path.split("."):
            found = getattr(found, name)
        return found


PRINTED: dict[str, Printed] = {}


def printed(key: str, target: str):
    """Register the decorated function as the printed form of `target`."""

    def register(form):
        PRINTED[key] = Printed(target, form)
        return form

    return register


def only_ours_obeys(key: str, law: Callable) -> None:
    """law(f) holds for our function and fails for the printed one."""
    entry = PRINTED[key]
    law(entry.ours)
    with pytest.raises(AssertionError):
        law(entry.form)


@printed("ERR-01", "maths.forward_process:posterior")
def square_and_bar_misplaced(now, before):
    """A missing square in the first coefficient, a bar too many in the second."""
    root_alpha, _ = _kernel(now, before)
    signal_before, noise_before = _kernel(before)
    _, noise_now = _kernel(now)
    c = root_alpha * np.sqrt(noise_before) / noise_now
    return signal_before * noise_now / noise_now, c, _posterior(now, before)[2]


@printed("ERR-02", "maths.forward_process:chain_log_density")
def one_step_for_the_chain(path, levels):
    """q(x_{1:T} | x_0) := N(x_t; ...): the density of one step under the name of the chain."""
    return step_log_density(path[-1], path[-2], levels[-1], levels[-2])


@printed("ERR-03", "testing.worlds:LinearGaussian.elbo")
def loss_without_q(self, x, q):
    """R + D = KL(q ‖ p(z | x)) + L, which is log p(x) whatever q is."""
    return -(q.kl(self.posterior(x)) + _elbo(self, x, q))


@printed("ERR-05", "testing.worlds:distortion_at_rate")
def constraint_always_met(eigenvalues, rate):
    """ "min D subject to (min R) ≤ γ": the constraint's own minimum is 0, so nothing binds."""
    return 0.0


@printed("ERR-06", "testing.worlds:LinearGaussian.reconstruction")
def sign_of_the_likelihood(self, x, q):
    """+E_q log p(x | z), to be minimised."""
    return -_reconstruction(self, x, q)


_reconstruction = LinearGaussian.reconstruction


@printed("ERR-07", "maths.forward_process:q_posterior")
def step_without_the_present_latent(x0, x_t, now, before):
    """q(z_k | x = d(z_{k-1})), where z_{k-1} itself belongs among the conditions."""
    signal, variance = _kernel(before)
    return signal[:, None] * x0, variance


@printed("ERR-08", "testing.worlds:LinearNetwork.log_prob")
def independent_latents(self, v):
    """z_l ~ p(z_l) each on its own, and x ~ p(x | z_L)."""
    law, last = self.joint, len(self.offset) - 1
    alone = sum(law.marginal([i]).log_prob(v[..., i : i + 1]) for i in range(last))
    gap = v[..., last] - self.arrows[last, last - 1] * v[..., last - 1] - self.offset[last]
    variance = self.variances[last]
    return alone - 0.5 * (gap * gap / variance + np.log(2.0 * np.pi * variance))


@printed("ERR-09", "testing.worlds:factorised")
def only_the_previous_latent(law, parents):
    """q(z_l | x, z_{l-1}) in the place of q(z_l | x, z_{<l})."""
    return _factorised(law, [known[-1:] for known in parents])


def next_index(law, z, x):
    """p(z_1 | x) Π_t p(z_t | z_{t+1}), with p(z_T | z_{T+1}) read as p(z_T)."""
    last = z.shape[1] - 1
    slope, offset, variance = worlds.regress(law, last, [last + 1])
    gap = z[:, last] - slope[0] * x - offset
    first = -0.5 * (gap * gap / variance + np.log(2.0 * np.pi * variance))
    return first + law.marginal(range(last)).log_prob(z[:, :last])


printed("ERR-11", "testing.worlds:markov_log_posterior")(next_index)
printed("ERR-12", "testing.worlds:markov_log_posterior")(next_index)


@printed("ERR-13", "testing.worlds:markov_log_posterior")
def first_factor_twice(law, z, x):
    """p(z_1 | x) Π_{t=0..T}: the factor t = 1 once more (and t = 0, which does not exist)."""
    last = z.shape[1] - 1
    slope, offset, variance = worlds.regress(law, last, [last + 1])
    gap = z[:, last] - slope[0] * x - offset
    again = -0.5 * (gap * gap / variance + np.log(2.0 * np.pi * variance))
    return _markov_log_posterior(law, z, x) + again


_markov_log_posterior = worlds.markov_log_posterior

STEPS = np.concatenate([[0.0], np.cumsum(np.log1p(-np.asarray([0.1, 0.2, 0.3, 0.4])))])
DATA = GaussianDiffusion(np.asarray([0.7]), np.asarray([2.0]))


@printed("ERR-14", "maths.diffusion_bound:joint_log_density")
def joint_of_the_forward_process(path, reverse):
    """p(x_T) Π q(x_{t-1} | x_t): θ does not occur, so there is nothing to learn."""

    def true(x, t):
        step, variance = DATA.reverse(STEPS[t], STEPS[t - 1])
        return step(x), np.log(variance) + np.zeros_like(x)

    steps = range(1, len(path))
    return _base_log_density(path[-1]) + sum(
        _reverse_log_density(path[t - 1], path[t], t, true) for t in steps
    )


CHAIN = LinearNetwork(
    np.diag([0.5, -0.8, 1.1], k=-1), np.zeros(4), np.asarray([1.0, 0.5, 0.7, 0.4])
)


@printed("ERR-15", "testing.worlds:LinearNetwork.log_prob")
def joint_of_a_fixed_chain(self, v):
    """p(x_T) and q in the place of p(z_T) and p_θ: the arrows of the model do not occur."""
    gap = v - v @ CHAIN.arrows.T - CHAIN.offset
    each = gap * gap / CHAIN.variances + np.log(2.0 * np.pi * CHAIN.variances)
    return -0.5 * each.sum(axis=-1)


@printed("ERR-16", "maths.forward_process:kernel")
def last_step_forgets(now, before=0.0):
    """q(x_T | x_{T-1}) = N(0, I)."""
    return 0.0 * now, 0.0 * now + 1.0


@printed("ERR-17", "maths.diffusion_bound:path_bound")
def products_that_cancel(path, reverse, levels):
    """Both products printed as Π p(x_t | x_{t-1}), so that only the ends are left."""
    ends = _base_log_density(path[-1]) + _reverse_log_density(path[0], path[1], 1, reverse)
    return ends - step_log_density(path[-1], path[-2], levels[-1], levels[-2])


@printed("ERR-18", "models.vae:Vae.loss")
def estimate_equal_to_its_mean(self, x, eps, stream=None):
    """E = (1/L) Σ: the average has no spread, as if every expectation were exact."""
    nodes, _ = np.polynomial.hermite_e.hermegauss(2)  # equal weights, exact for squares
    exact = np.ones_like(eps[:1]) * nodes[:, None, None]
    return _vae_loss(self, x, exact, stream)


@printed("ERR-19", "maths.distributions:standard_normal_kl")
def standard_deviation_as_variance(mean, logvar):
    """N(z; μ, σ) with covariance diag(σ)."""
    half = 0.5 * logvar
    return 0.5 * (expm1_minus(half) + mean * mean), None


@printed("ERR-21", "maths.forward_process:kernel")
def centred_at_the_previous_latent(now, before=0.0):
    """ "A Gaussian centred at the previous latent", of variance β."""
    gap = now - before
    return 0.0 * gap + 1.0, -np.expm1(gap)


@printed("ERR-22", "maths.forward_process:posterior")
def lost_tilde(now, before):
    """Variance β_t for β̃_t, and √(1 - β̄_t) for √(1 - β_t)."""
    c0, c, variance = _posterior(now, before)
    root_alpha, beta = _kernel(now, before)
    return c0, c * np.sqrt(1.0 - variance) / root_alpha, beta


@printed("ERR-23", "maths.diffusion_bound:squared_error")
def norm_without_square(target, prediction):
    """∇‖ε - ε_θ‖, whose minimum is the geometric median."""
    return np.sqrt(example_sum((prediction - target) ** 2)), None


@printed("ERR-24", "maths.diffusion_bound:transition_kl")
def divergence_equal_to_its_mean(x0, x0_hat, logvar, now, before):
    """KL(...) = E_q[...] + C at every x_0 and x_t, not only on average."""
    each, pullback = _transition_kl(x0, x0_hat, logvar, now, before)
    return 0.0 * each + each.mean(), pullback


@printed("ERR-25", "maths.score:tweedie")
def posterior_mean_without_a_prior(x, score, variance):
    """ "The posterior mean does not depend on the prior": N(0, 1)'s answer for everyone."""
    return x / (1.0 + variance)


@printed("ERR-27", "maths.diffusion_bound:epsilon_weight")
def large_whatever_the_variance(variance, now, before):
    """ "Very large for small t", which is so for σ² = β̃ only."""
    return 0.5 * np.expm1(log_snr(before) - log_snr(now))


@printed("ERR-30", "testing.worlds:LinearGaussian.elbo")
def bound_without_logs(self, x, q):
    """E_q[p(y | z)] - KL + E_q[p(x_0 | z)]: both logarithms missing."""
    mean = q.mean @ self.w + self.b
    spread = np.diag(self.w.T @ q.covariance @ self.w) + self.variance
    expected = np.exp(-0.5 * (x - mean) ** 2 / spread) / np.sqrt(2.0 * np.pi * spread)
    return expected.sum() - self.rate(q)


@printed("ERR-31", "maths.forward_process:Shifted.shifted")
def condition_at_every_time(self, u, level):
    """The condition added for every t, also at t = 0."""
    return u + self.condition


@printed("ERR-32", "testing.diffusion_worlds:HintedDiffusion.clean_error")
def two_latents_and_no_hint(self, level):
    """A net that sees x_t and x_{t+1}: the second tells it nothing that the first does not."""
    prior = self.joint.covariance[0, 0]
    return 1.0 / (1.0 / prior + np.exp(level) / (1.0 - np.exp(level)))


@printed("ERR-33", "testing.worlds:LinearGaussian.elbo")
def data_counted_twice(self, x, q):
    """With y ≡ x_0 the bound on the pair (x_0, y), taken for the bound on x_0."""
    return _elbo(self, x, q) - self.reconstruction(x, q)


@printed("ERR-35", "models.vae:Vae.loss")
def sum_for_average(self, x, eps, stream=None):
    """Σ_l log p(x | z_l) without 1/L."""
    samples = eps.shape[0]
    (reconstruction, kl), pullback = _vae_loss(self, x, eps, stream)
    return (samples * reconstruction, kl), lambda d, e: pullback(samples * d, e)


@printed("ERR-37", "maths.distributions:reparameterise")
def scaled_but_not_shifted(mean, logvar, eps):
    """ "Scaling" alone: z = σ ε."""
    return np.exp(0.5 * logvar) * eps + 0.0 * mean, None


@printed("TRAP-1", "maths.diffusion_bound:consistency_split")
def divergences_in_the_middle(path, reverse, levels):
    """-Σ E KL(q(x_t | x_{t-1}) ‖ p_θ(x_t | x_{t+1})), as if x_t forgot x_{t+1}."""
    first, last, _ = _consistency_split(path, reverse, levels)
    middle = 0.0 * first
    for t in range(1, len(path) - 1):
        root_alpha, beta = _kernel(levels[t], levels[t - 1])
        mean = root_alpha[:, None] * path[t - 1]
        logvar = np.log(beta)[:, None]
        middle = middle + example_sum(normal_kl(mean, logvar, *reverse(path[t + 1], t + 1))[0])
    return first, last, middle


@printed("TRAP-2", "maths.schedules:Schedule.one_minus_alpha_bar")
def product_of_the_steps(self):
    """1-ᾱ_t as Π β_s."""
    return np.cumprod(np.concatenate([[1.0], self.beta[1:]]))


@printed("TRAP-3", "maths.forward_process:ddim_step")
def alpha_of_one_step(x0, eps, noise, variance, before):
    """The paper's α read as 1-β of a step, which is no function of the level alone: here √ᾱ."""
    return _ddim_step(x0, eps, noise, variance, 0.5 * before)


@printed("TRAP-5", "models.samplers:trajectory")
def temperature_of_the_start_alone(denoise, step, x, stops, noise=None, temperature=1.0):
    """τ on x_T, of which a long stochastic chain forgets everything."""
    return _trajectory(denoise, step, temperature * x, stops, noise)


@printed("TRAP-6", "maths.forward_process:Shifted.shifted")
def base_at_the_origin(self, u, level):
    """The base N(0, I), and every step after it, without the condition."""
    return u


@printed("TRAP-8", "maths.forward_process:posterior")
def variance_that_has_a_logarithm(now, before):
    """Something in the place of β̃_1 = 0."""
    c0, c, variance = _posterior(now, before)
    return c0, c, np.where(variance > 0.0, variance, 0.5 * _kernel(now, before)[1])


@printed("TRAP-9", "maths.diffusion_bound:optimal_variance")
def between_the_usual_two(error, now, before, dims):
    """Clipped to [β̃, β], where only data of variance at most 1 surely have it."""
    least, most = _posterior(now, before)[2], _kernel(now, before)[1]
    return np.clip(_optimal_variance(error, now, before, dims), least, most)


@printed("TRAP-10", "testing.diffusion_worlds:GaussianDiffusion.bound")
def as_tight_as_its_samples_are_good(self, levels, variances):
    """The bound of the best variance, whatever the variance is."""
    pairs = zip(levels[1:], levels[:-1], strict=True)
    return _bound(self, levels, np.stack([self.reverse(*pair)[1] for pair in pairs]))
