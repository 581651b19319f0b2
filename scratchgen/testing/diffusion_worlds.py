"""Diffusions where everything is known: normal data, normal data with a hint, mixtures of normals.

Density, score, posterior, the perfect denoiser and every term of the bound, written from formulas
of their own and without the kernels that they judge; `Mixture` is taken from maths/, where it has
tests of its own. Host numbers, float64, nats.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import log, pi

import numpy as np

from scratchgen.maths.densities import Mixture
from scratchgen.maths.gaussian import Gaussian
from scratchgen.testing.quadrature import agree


class Diffusion(ABC):
    """What the bound of a diffusion is made of when x̂₀ = E[x_0 | x_t], the perfect prediction.

    Every term depends on the data through E x_0² and E(x_0 - E[x_0 | x_t])² alone. Levels are
    log ᾱ, as in maths/forward_process.py, and negative but for clean data.
    """

    @property
    @abstractmethod
    def second_moment(self):
        """E x_0² per coordinate: (D,)."""

    @abstractmethod
    def clean_error(self, level):
        """E(x_0 - E[x_0 | x_t])² per coordinate: (N,) -> (N, D)."""

    def prior_kl(self, level):
        """E[L_T] = ½ Σ [ᾱ E x_0² - ᾱ - log(1-ᾱ)]: (N,) -> (N,) nats.

        Source: DDPM-8
        """
        alpha_bar, noise = _signal_and_noise(level)
        return 0.5 * (alpha_bar * self.second_moment - alpha_bar - np.log(noise)).sum(axis=-1)

    def transition_kl(self, variance, now, before):
        """E[L_{t-1}] with reverse variance σ²: (N,) nats.

        Args:
            variance: (N, D) or broadcast to it.
            now, before: (N,), before < 0.

        Source: DDPM-8, DDPM-9
        """
        alpha_s, noise_s = _signal_and_noise(before)
        _, beta = _signal_and_noise(np.asarray(now) - np.asarray(before))
        _, noise_t = _signal_and_noise(now)
        ratio = beta * noise_s / noise_t / variance
        c0 = np.sqrt(alpha_s) * beta / noise_t
        spread = c0**2 * self.clean_error(now) / variance
        return 0.5 * (ratio - 1.0 - np.log(ratio) + spread).sum(axis=-1)

    def reconstruction(self, variance, level):
        """E[-log N(x_0; E[x_0 | x_1], σ²)] with reverse variance σ² (N, D): (N,) nats.

        Source: DDPM-8
        """
        spread = self.clean_error(level) / variance
        return 0.5 * (spread + np.log(2.0 * pi * variance)).sum(axis=-1)

    def bound(self, levels, variances) -> float:
        """E[-ELBO] = E[L_T] + Σ_{t=2..T} E[L_{t-1}] + E[L_0] with reverse variances σ_t²: nats.

        Args:
            levels: (T+1,), the first 0.
            variances: (T, D), row t - 1 belongs to step t; or (T,), for every coordinate alike.

        Source: DDPM-8, VDM-9
        """
        rows = np.reshape(variances, (len(variances), -1))
        steps = self.transition_kl(rows[1:], levels[2:], levels[1:-1]).sum()
        first = self.reconstruction(rows[0], levels[1])
        return float(self.prior_kl(levels[-1]) + steps + first)


def _signal_and_noise(level):
    """ᾱ and 1-ᾱ: level (N,) -> (N, 1) each.

    Raises:
        ValueError: a level is positive.
    """
    level = np.asarray(level)[..., None]
    if np.any(level > 0.0):
        raise ValueError(f"a noise level is log ᾱ and at most 0, got {level.max()}")
    return np.exp(level), -np.expm1(level)


class GaussianDiffusion(Diffusion):
    """Normal data with independent coordinates, diffused: N(m, diag v) at level 0.

    A level (N,) goes with points (N, D).

    Args:
        mean: (D,).
        variances: (D,), positive.

    Raises:
        ValueError: the shapes differ, or a variance is not positive.
    """

    def __init__(self, mean, variances):
        if np.shape(mean) != np.shape(variances) or not np.all(np.asarray(variances) > 0.0):
            raise ValueError(
                f"need mean (D,) and variances (D,), all positive, got {mean} and {variances}"
            )
        self.mean, self.variances = mean, variances

    @property
    def second_moment(self):
        """E x_0² per coordinate: (D,)."""
        return self.variances + self.mean**2

    def marginal(self, level):
        """Mean √ᾱ m and variance V = ᾱ v + 1-ᾱ of q(x_t): levels (N,) -> (N, D), (N, D).

        Source: DDPM-4, VDM-5
        """
        alpha_bar, noise = _signal_and_noise(level)
        return np.sqrt(alpha_bar) * self.mean, alpha_bar * self.variances + noise

    def log_prob(self, x, level):
        """log q(x_t): x (N, D), level (N,) -> (N,) nats.

        Source: DDPM-4, VDM-5
        """
        mean, variance = self.marginal(level)
        return -0.5 * ((x - mean) ** 2 / variance + np.log(2.0 * pi * variance)).sum(axis=-1)

    def score(self, x, level):
        """∇ log q(x_t): x (N, D), level (N,) -> (N, D).

        Source: SCORE-1
        """
        mean, variance = self.marginal(level)
        return -(x - mean) / variance

    def epsilon(self, x, level):
        """E[ε | x_t], what a perfect net predicts: (N, D).

        Source: SCORE-4
        """
        mean, variance = self.marginal(level)
        return np.sqrt(_signal_and_noise(level)[1]) * (x - mean) / variance

    def clean(self, x, level):
        """E[x_0 | x_t]: (N, D).

        Source: SCORE-3
        """
        mean, variance = self.marginal(level)
        gain = np.sqrt(_signal_and_noise(level)[0]) * self.variances / variance
        return self.mean + gain * (x - mean)

    def posterior(self, x, level):
        """The law of x_0 given x_t, mean and variance: x (N, D), level (N,) -> (N, D), (N, D).

        Source: SCORE-3
        """
        return self.clean(x, level), self.clean_error(level)

    def clean_error(self, level):
        """E(x_0 - E[x_0 | x_t])² per coordinate: (N,) -> (N, D).

        Source: DDPM-17
        """
        return self.variances * _signal_and_noise(level)[1] / self.marginal(level)[1]

    def epsilon_error(self, level):
        """E(ε - E[ε | x_t])² per coordinate: (N,) -> (N, D).

        Source: DDPM-13
        """
        return _signal_and_noise(level)[0] * self.variances / self.marginal(level)[1]

    def reverse(self, now, before):
        """q(x_s | x_t) of the marginals: a callable x_t -> mean (N, D), and its variance (N, D).

        Source: DDPM-7, DDPM-17
        """
        alpha, beta = _signal_and_noise(np.asarray(now) - np.asarray(before))
        mean_t, variance_t = self.marginal(now)
        mean_s, variance_s = self.marginal(before)
        gain = np.sqrt(alpha) * variance_s / variance_t
        return lambda x: mean_s + gain * (x - mean_t), beta * variance_s / variance_t

    def sampled(self, levels, variances):
        """Mean and variance of x_0 that ancestral sampling from N(0, I) really produces.

        Args:
            levels: (T+1,).
            variances: (T, D), σ_t² added at step t; the last step t = 1 is used as given.

        Returns:
            mean (D,), variance (D,).

        Source: VDM-4, DDPM-7
        """
        mean, variance = np.zeros_like(self.mean), np.ones_like(self.variances)
        for t in range(len(levels) - 1, 0, -1):
            step, _ = self.reverse(levels[t], levels[t - 1])
            shift = step(np.zeros_like(mean))
            gain = step(np.ones_like(mean)) - shift
            mean, variance = shift + gain * mean, gain**2 * variance + variances[t - 1]
        return mean, variance


class HintedDiffusion:
    """One number x_0 ~ N(ρ x̂, s²) given a hint x̂ ~ N(0, v): what a refiner's net should say.

    Given the hint it is the Gaussian world with mean ρ x̂, so a net that sees x_t and x̂ can reach an
    error that x_t alone, or together with x_{t+1}, cannot.

    Args:
        slope: ρ.
        variance: s².
        hint_variance: v.
    """

    def __init__(self, slope: float, variance: float, hint_variance: float):
        self.slope, self.variance, self.hint_variance = slope, variance, hint_variance

    @property
    def joint(self) -> Gaussian:
        """The law of (x_0, x̂)."""
        cross = self.slope * self.hint_variance
        total = self.variance + self.slope * cross
        return Gaussian(np.zeros(2), np.asarray([[total, cross], [cross, self.hint_variance]]))

    def given(self, hint) -> GaussianDiffusion:
        """The diffusion of x_0 for hints (D,), one coordinate each."""
        return GaussianDiffusion(self.slope * hint, np.full(len(hint), self.variance))

    def clean_error(self, level: float) -> float:
        """E(x_0 - E[x_0 | x_t, x̂])² = 1/(1/s² + SNR).

        Source: DVAE-5
        """
        return 1.0 / (1.0 / self.variance + 1.0 / np.expm1(-level))


class MixtureDiffusion(Diffusion):
    """A one-dimensional mixture of normals, diffused: expectations by quadrature.

    log q(x_t), its score and the posterior are those of `Mixture`; the expectations, the errors and
    the bound are formed here. The panels of the quadrature are one standard deviation wide or less,
    of every component that is felt there, so the widths may differ by many orders of magnitude.

    Args:
        mixture: `Mixture` of one dimension, float64 on the host.

    Raises:
        ValueError: the mixture is not of one dimension.
    """

    def __init__(self, mixture: Mixture):
        if mixture.dims != 1:
            raise ValueError(
                f"the quadrature needs a mixture of one dimension, got {mixture.dims}; take its "
                "marginal along one axis"
            )
        self.mixture = mixture

    def expect(self, f: Callable, level: float) -> float:
        """E f(x_t) over q(x_t): f takes (M, 1) and returns (M,), smooth at the components' scale.

        Raises:
            ValueError: the mass is not 1 within TOLERANCE, or two resolutions differ by more than
                that share of E |f(x_t)|.
        """
        law = self.mixture.noised(level)
        widths = np.linspace(-12.0, 12.0, 25) * np.sqrt(law.covariances[:, :, 0])
        edges = np.unique(law.means + widths)
        centres, halves = 0.5 * (edges[1:] + edges[:-1]), 0.5 * np.diff(edges)
        found = []
        for nodes in (16, 20):
            at, weights = np.polynomial.legendre.leggauss(nodes)
            x = (centres[:, None] + halves[:, None] * at).reshape(-1, 1)
            mass = (halves[:, None] * weights).ravel() * np.exp(law.log_prob(x))
            agree("E[1], here and exactly,", mass.sum(), 1.0)
            found.append((mass @ f(x), mass @ np.abs(f(x))))
        (rough, _), (fine, size) = found
        agree("E f(x_t) at two resolutions", rough, fine, size)
        return float(fine)

    def log_prob(self, x, level: float):
        """log q(x_t), as `Mixture` has it: (N, 1) -> (N,) nats."""
        return self.mixture.noised(level).log_prob(x)

    def score(self, x, level: float):
        """∇ log q(x_t), as `Mixture` has it: (N, 1) -> (N, 1).

        Source: SCORE-1
        """
        return self.mixture.noised(level).score(x)

    def posterior(self, x, level: float) -> Mixture:
        """The law of x_0 given one x_t (1,), as `Mixture` has it."""
        return self.mixture.posterior(x, level)

    def clean(self, x, level: float):
        """E[x_0 | x_t], as `Mixture` has it: (N, 1) -> (N, 1).

        Source: SCORE-3
        """
        return self.mixture.posterior_mean(x, level)

    def epsilon(self, x, level: float):
        """E[ε | x_t]: (N, 1) -> (N, 1).

        Source: SCORE-4
        """
        alpha_bar, noise = _signal_and_noise(level)
        return (x - np.sqrt(alpha_bar) * self.clean(x, level)) / np.sqrt(noise)

    def clean_error(self, level):
        """E(x_0 - E[x_0 | x_t])² = E Var[x_0 | x_t]: (N,), 0 or clearly below -> (N, 1).

        Source: DDPM-17
        """
        levels = np.asarray(level, dtype=np.float64)
        each = [
            self.expect(lambda x, at=at: np.ravel(self.mixture.posterior_covariance(x, at)), at)
            if at < 0.0
            else 0.0
            for at in levels.ravel().tolist()
        ]
        return np.reshape(each, (*levels.shape, 1))

    @property
    def second_moment(self):
        """E x_0²: (1,)."""
        return self.mixture.weights @ (self.mixture.means**2 + self.mixture.covariances[:, :, 0])

    def entropy(self, level: float) -> float:
        """-E log q(x_t), nats.

        Source: DDPM-8
        """
        return -self.expect(lambda x: self.log_prob(x, level), level)

    def information(self, level: float) -> float:
        """I(x_0; x_t) = H(x_t) - H(x_t | x_0), nats.

        Source: RD-12
        """
        return self.entropy(level) - 0.5 * log(-2.0 * pi * np.e * np.expm1(level))
