"""Worlds where everything is known: evidence, posterior, score and every term of every bound.

They are small enough for exact sums, Gaussian throughout, or of one or two dimensions and done by
quadrature. Their formulas are their own, without the diffusion's kernels, the bounds or the models
that they judge; `Gaussian` and `Mixture` they take from maths/, where those have tests of their
own. Each can stand in the place of a trained network. Host numbers, float64, nats.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from math import log, pi

import numpy as np

from scratchgen.maths.densities import Mixture
from scratchgen.maths.gaussian import Gaussian

TOLERANCE = 1e-7  # two resolutions of an integral may differ by this share of its absolute values
RADIUS = 64.0  # of the box of latents
MOST_NODES = 1 << 23


class Discrete:
    """Finite z and x: p(z, x) is a table, and so is every q(z | x).

    Args:
        joint: (Z, X), positive, summing to one.
    """

    def __init__(self, joint):
        self.joint = joint

    @property
    def evidence(self):
        """p(x) = Σ_z p(z, x): (X,).

        Source: ELBO-1
        """
        return self.joint.sum(axis=0)

    @property
    def posterior(self):
        """p(z | x) = p(z, x)/p(x): (Z, X).

        Source: ELBO-1
        """
        return self.joint / self.evidence

    def elbo(self, q):
        """Σ_z q(z | x) log [p(z, x)/q(z | x)]: q (Z, X) -> (X,) nats.

        Source: ELBO-2
        """
        return (q * (np.log(self.joint) - np.log(q))).sum(axis=0)

    def gap(self, q):
        """KL(q(z | x) ‖ p(z | x)) = log p(x) - ELBO: q (Z, X) -> (X,) nats.

        Source: ELBO-3
        """
        return (q * (np.log(q) - np.log(self.posterior))).sum(axis=0)


class LinearGaussian:
    """z ~ N(0, I_K), x | z ~ N(z W + b, s² I_D): probabilistic principal components.

    Args:
        w: (K, D).
        b: (D,).
        variance: s².
    """

    def __init__(self, w, b, variance: float):
        self.w, self.b, self.variance = w, b, variance

    @property
    def evidence(self) -> Gaussian:
        """p(x) = N(b, WᵀW + s² I).

        Source: ELBO-1, VAE-1
        """
        return Gaussian(self.b, self.w.T @ self.w + self.variance * np.eye(len(self.b)))

    def posterior(self, x) -> Gaussian:
        """p(z | x) = N(P⁻¹ W (x - b)/s², P⁻¹) with P = I + W Wᵀ/s², for one x (D,).

        Source: ELBO-1
        """
        precision = np.eye(len(self.w)) + self.w @ self.w.T / self.variance
        mean = np.linalg.solve(precision, self.w @ (x - self.b) / self.variance)
        return Gaussian(mean, np.linalg.inv(precision))

    def reconstruction(self, x, q: Gaussian) -> float:
        """E_q[-log p(x | z)] for one x (D,), nats.

        Source: ELBO-5, VAE-7
        """
        gap = x - self.b - q.mean @ self.w
        squares = gap @ gap + np.trace(self.w.T @ q.covariance @ self.w)
        return 0.5 * (squares / self.variance + len(x) * log(2.0 * pi * self.variance))

    def rate(self, q: Gaussian) -> float:
        """KL(q ‖ p(z)), nats.

        Source: ELBO-5, VAE-3
        """
        dims = len(self.w)
        return q.kl(Gaussian(np.zeros(dims), np.eye(dims)))

    def elbo(self, x, q: Gaussian) -> float:
        """-(reconstruction + rate): one x (D,), any normal q over z, nats.

        Source: ELBO-5, RD-4
        """
        return -(self.reconstruction(x, q) + self.rate(q))


class LinearNetwork:
    """A linear-Gaussian network: v = A v + b + e, e ~ N(0, diag variances), A strictly lower.

    Each node is one number and may depend on all nodes before it, so chains, hierarchies and
    encoders are all of this kind: a zero in A is an arrow that is not there.

    Args:
        arrows: (V, V), A.
        offset: (V,), b.
        variances: (V,), positive.

    Raises:
        ValueError: an arrow points backwards.
    """

    def __init__(self, arrows, offset, variances):
        if np.any(np.triu(arrows)):
            raise ValueError("A must be strictly lower triangular: parents come before children")
        self.arrows, self.offset, self.variances = arrows, offset, variances

    @property
    def joint(self) -> Gaussian:
        """N((I-A)⁻¹ b, (I-A)⁻¹ Q (I-A)⁻ᵀ).

        Source: HVAE-1, HVAE-4
        """
        spread = np.linalg.inv(np.eye(len(self.offset)) - self.arrows)
        return Gaussian(spread @ self.offset, (spread * self.variances) @ spread.T)

    def log_prob(self, v):
        """Σ_i log p(v_i | v_before i): v (..., V) -> (...) nats.

        Source: HVAE-1, HVAE-4, ELBO-7
        """
        gap = v - v @ self.arrows.T - self.offset
        each = gap * gap / self.variances + np.log(2.0 * pi * self.variances)
        return -0.5 * each.sum(axis=-1)


def regress(law: Gaussian, target: int, given: Sequence[int]) -> tuple[np.ndarray, float, float]:
    """p(target | given) of a joint normal: the coefficients of `given`, the offset, the variance.

    Source: HVAE-2, HVAE-5
    """
    known = list(given)
    block = law.covariance[np.ix_(known, known)]
    coefficients = np.linalg.solve(block, law.covariance[known, target])
    offset = law.mean[target] - coefficients @ law.mean[known]
    variance = law.covariance[target, target] - coefficients @ law.covariance[known, target]
    return coefficients, float(offset), float(variance)


def factorised(law: Gaussian, parents: Sequence[Sequence[int]]) -> LinearNetwork:
    """Π_i p(v_i | v_parents(i)) with the factors of `law`: the best network with those arrows.

    It is `law` itself when every v_i is independent of the others before it given its parents.

    Source: HVAE-5
    """
    arrows, offset, variances = np.zeros_like(law.covariance), law.mean.copy(), law.mean.copy()
    for i, known in enumerate(parents):
        arrows[i, list(known)], offset[i], variances[i] = regress(law, i, known)
    return LinearNetwork(arrows, offset, variances)


def markov_log_posterior(law: Gaussian, z, x: float):
    """log p(z_1 | x) + Σ_{t=2..T} log p(z_t | z_{t-1}) of a Markov chain z_T → ... → z_1 → x.

    The exact posterior: seen from the data, the chain runs backwards and is a chain again.

    Args:
        law: the joint of (z_T, ..., z_1, x).
        z: (N, T), in the same order.
        x: the observed number.

    Returns:
        (N,), nats.

    Source: HVAE-2
    """
    total = np.zeros(len(z))
    last = z.shape[1]
    known = np.full(len(z), x)
    for i in range(last - 1, -1, -1):
        (slope,), offset, variance = regress(law, i, [i + 1])
        gap = z[:, i] - slope * known - offset
        total -= 0.5 * (gap * gap / variance + log(2.0 * pi * variance))
        known = z[:, i]
    return total


def hierarchical_elbo(model: LinearNetwork, x, q: Gaussian) -> float:
    """E_q[log p(z, x)] + H(q) for a network whose last nodes are x and whose first are z.

    Args:
        model: V nodes, Z latents first.
        x: (V - Z,).
        q: over the Z latents.

    Source: ELBO-6, HVAE-3, HVAE-6
    """
    law, size = model.joint, len(x)
    precision = np.linalg.inv(law.covariance)
    gap = np.concatenate([q.mean, x]) - law.mean
    square = gap @ precision @ gap + np.trace(precision[:-size, :-size] @ q.covariance)
    return -0.5 * (square + law.log_det + law.dims * log(2.0 * pi)) + q.entropy()


class RotationWorld:
    """x = W z + s e with W = diag(√λ) O(θ): one evidence, many (rate, distortion) pairs.

    Rotating two latents changes no likelihood and no bound, but it does change what the first of
    them carries.

    Args:
        eigenvalues: (λ₁, λ₂).
        angle: θ.
        variance: s².
    """

    def __init__(self, eigenvalues, angle: float, variance: float):
        c, s = np.cos(angle), np.sin(angle)
        self.w = np.sqrt(np.asarray(eigenvalues))[:, None] * np.asarray([[c, -s], [s, c]])
        self.variance = variance

    @property
    def evidence(self) -> Gaussian:
        """p(x) = N(0, W Wᵀ + s² I), whatever the angle.

        Source: RD-17
        """
        return Gaussian(np.zeros(2), self.w @ self.w.T + self.variance * np.eye(2))

    def rate(self, k: int) -> float:
        """R_k = -½ log det(I - wᵀ S⁻¹ w), the information of the first k latents about x.

        Source: RD-16, RD-17
        """
        w = self.w[:, :k]
        inner = np.eye(k) - w.T @ np.linalg.solve(self.evidence.covariance, w)
        return -0.5 * float(np.linalg.slogdet(inner)[1])

    def distortion(self, k: int) -> float:
        """D_k = tr(S - w wᵀ), the mean squared error that the first k latents leave.

        Source: RD-16, RD-17
        """
        w = self.w[:, :k]
        return float(np.trace(self.evidence.covariance - w @ w.T))


def distortion_at_rate(eigenvalues, rate: float) -> float:
    """Shannon's D(R) of a normal source, by reverse water-filling.

        R = Σ ½ log max(1, e_i/θ),   D = Σ min(e_i, θ)

    Args:
        eigenvalues: of the source's covariance.
        rate: R ≥ 0, nats.

    Source: RD-5
    """
    e = np.sort(np.asarray(eigenvalues, dtype=np.float64))[::-1]
    for n in range(len(e), 0, -1):  # the n largest components get bits
        water = np.exp((np.log(e[:n]).sum() - 2.0 * rate) / n)
        if water <= e[n - 1]:
            break
    return float(np.minimum(e, water).sum())


def rate_at_distortion(variance: float, distortion: float) -> float:
    """Shannon's R(D) = max(0, ½ log(s²/D)) of a scalar normal source, nats.

    Source: RD-6
    """
    return max(0.0, 0.5 * log(variance / distortion))


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
            _agree("E[1], here and exactly,", mass.sum(), 1.0)
            found.append((mass @ f(x), mass @ np.abs(f(x))))
        (rough, _), (fine, size) = found
        _agree("E f(x_t) at two resolutions", rough, fine, size)
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


class LatentQuadrature:
    """Any model with a standard normal latent of one or two dimensions, by quadrature.

    The box |z_i| ≤ 64 is halved wherever log p(z, x) still varies much, so a posterior may be
    narrow and have several modes, if log p(x | z) is finite and smooth there and the mass lies
    within |z_i| ≤ 60. A ridge of two dimensions, hundreds of times as long as wide, takes too many
    boxes. Every result is formed twice, from different nodes.

    Args:
        log_likelihood: z (M, K) -> log p(x | z) (M,), for one x.
        dims: K, 1 or 2.
        nodes: per axis of a box, at the coarser resolution.

    Raises:
        ValueError: dims is neither 1 nor 2; and from the results: the mass is elsewhere, the boxes
            do not settle, or the two resolutions differ by more than TOLERANCE, in nats or as a
            share of what is averaged.
    """

    def __init__(self, log_likelihood: Callable, dims: int = 1, nodes: int = 8):
        if dims not in (1, 2):
            raise ValueError(f"dims must be 1 or 2, got {dims}; take fewer latents, or simulate")
        self.log_likelihood, self.dims, self.nodes = log_likelihood, dims, nodes

    @property
    def log_evidence(self) -> float:
        """log p(x) = log E_{z ~ N(0, I)} p(x | z).

        Source: ELBO-1
        """
        rough, fine = (_log_sum(log_mass) for _, log_mass in self._rules)
        _agree("log p(x) at two resolutions", rough, fine)
        return float(fine)

    def posterior_mean(self, f: Callable):
        """E[f(z) | x]: f takes (M, K) and returns (M, ...).

        Source: ELBO-1
        """
        found = []
        for z, log_mass in self._rules:
            shares, values = np.exp(log_mass - _log_sum(log_mass)), f(z)
            found.append([np.tensordot(shares, v, axes=1) for v in (values, np.abs(values))])
        (rough, _), (fine, size) = found
        _agree("E[f(z) | x] at two resolutions", rough, fine, size)
        return fine

    def reconstruction(self, mean, logvar) -> float:
        """E_q[-log p(x | z)] under q = N(mean, e^logvar), each (K,), by Gauss–Hermite.

        Source: ELBO-5
        """
        found = []
        for nodes in (96, 128):
            at, weights = _tensor(*np.polynomial.hermite_e.hermegauss(nodes), self.dims)
            values = self.log_likelihood(np.exp(0.5 * logvar) * at + mean)
            shares = weights / weights.sum()
            found.append((-shares @ values, shares @ np.abs(values)))
        (rough, _), (fine, size) = found
        _agree("E_q[-log p(x | z)] at two resolutions", rough, fine, size)
        return float(fine)

    @cached_property
    def _rules(self):
        """Nodes z (M, K) and the log of their shares of p(x) (M,), at two resolutions."""
        rules = [self._settled(self.nodes, 2), self._settled(self.nodes + 2, 3)]
        for z, log_mass in rules:
            outside = np.abs(z).max(axis=1) > 60.0
            beyond = np.exp(log_mass[outside] - _log_sum(log_mass)).sum()
            if beyond > TOLERANCE:
                raise ValueError(
                    f"the posterior must lie within |z_i| ≤ 60, but {beyond:.2g} of it is beyond; "
                    "take an x that the decoder reaches from there"
                )
        return rules

    def _settled(self, nodes: int, panels: int):
        """Halve the boxes of [-64, 64]^K until their masses stand still.

        A box is left out when it cannot matter even if log p(z, x) rises in it, above its largest
        value at a node, by as much as it varies among the nodes. It is done when halving it changes
        nothing and the log-density varies little in it.
        """
        at, weights = _tensor(*np.polynomial.legendre.leggauss(nodes), self.dims)
        half = RADIUS / panels
        edges = (2.0 * np.arange(panels) + 1.0) * half - RADIUS
        centres, _ = _tensor(edges, edges, self.dims)
        corners, _ = _tensor(np.asarray([-1.0, 1.0]), np.ones(2), self.dims)

        def masses(centres, half):
            z = centres[:, None, :] + half * at
            heights = self._log_joint(z.reshape(-1, self.dims)).reshape(z.shape[:2])
            return z, heights, heights + np.log(weights) + self.dims * log(half)

        _, _, coarse = masses(centres, half)
        kept_z: list[np.ndarray] = []
        kept_mass: list[np.ndarray] = []
        spent = 0
        while len(centres):
            half *= 0.5
            centres = (centres[:, None, :] + half * corners).reshape(-1, self.dims)
            z, heights, fine = masses(centres, half)
            spent += heights.size
            if spent > MOST_NODES:
                raise ValueError(
                    f"the boxes must settle within {MOST_NODES} nodes, but {len(centres)} of width "
                    f"{2.0 * half:.2g} have not; take a smoother or wider log p(x | z)"
                )
            family = (len(coarse), -1)
            total = _log_sum(np.concatenate([*kept_mass, fine.ravel()]))
            before = np.exp(np.minimum(coarse - total, 99.0)).sum(axis=1)
            after = np.exp(fine - total).reshape(family).sum(axis=1)
            top = heights.reshape(family).max(axis=1)
            varies = top - heights.reshape(family).min(axis=1)
            ceiling = top + varies + self.dims * log(4.0 * half) - total
            done = (np.abs(after - before) <= 1e-10 + 1e-7 * after) & (varies <= 100.0)
            kept, split = (np.repeat(a, len(corners)) for a in (done, ~done & (ceiling > -30.0)))
            kept_z.append(z[kept].reshape(-1, self.dims))
            kept_mass.append(fine[kept].ravel())
            centres, coarse = centres[split], fine[split]
        return np.concatenate(kept_z), np.concatenate(kept_mass)

    def _log_joint(self, z):
        square = (z * z).sum(axis=1) + self.dims * log(2.0 * pi)
        values = self.log_likelihood(z) - 0.5 * square
        if not np.all(np.isfinite(values)):
            raise ValueError("log p(x | z) must be finite on |z_i| ≤ 64, but is not; clip it there")
        return values


def _tensor(x, w, dims: int):
    """A rule on the line -> the product rule: x, w (M,) -> (Mᴷ, K), (Mᴷ,)."""
    axes, weights = (np.meshgrid(*[a] * dims, indexing="ij") for a in (x, w))
    return np.stack([a.ravel() for a in axes], axis=-1), np.prod(weights, axis=0).ravel()


def _log_sum(a) -> float:
    return a.max() + np.log(np.exp(a - a.max()).sum())


def _agree(what: str, one, other, size=1.0):
    """Raise unless two numbers that should be equal differ by at most TOLERANCE·size."""
    if not np.all(np.abs(other - one) <= TOLERANCE * size):
        raise ValueError(
            f"{what} must agree within {TOLERANCE:g} of the size, got {one} and {other}; take a "
            "smoother integrand, or one whose scales lie closer together"
        )
