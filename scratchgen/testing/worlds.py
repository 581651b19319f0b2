"""Worlds where everything is known: evidence, posterior, score and every term of every bound.

They are small enough for exact sums, Gaussian throughout, or of one or two dimensions and done by
quadrature, and are written from their own formulas, without the code they judge. Each can stand in
the place of a trained network. Host numbers, float64, nats.
"""

from collections.abc import Callable, Sequence
from math import log, pi

import numpy as np

from scratchgen.maths.densities import Mixture
from scratchgen.maths.gaussian import Gaussian


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

    Source: HVAE-2, HVAE-5
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

    Source: RD-5, RD-6
    """
    e = np.sort(np.asarray(eigenvalues, dtype=np.float64))[::-1]
    for n in range(len(e), 0, -1):  # the n largest components get bits
        water = np.exp((np.log(e[:n]).sum() - 2.0 * rate) / n)
        if water <= e[n - 1]:
            break
    return float(np.minimum(e, water).sum())


def rate_at_distortion(variance: float, distortion: float) -> float:
    """Shannon's R(D) = max(0, ½ log(s²/D)) of a scalar normal source, nats.

    Source: RD-5, RD-6
    """
    return max(0.0, 0.5 * log(variance / distortion))


class GaussianDiffusion:
    """Normal data with independent coordinates, diffused: N(m, diag v) at level 0.

    Levels are log ᾱ, as in maths/forward_process.py; a level (N,) goes with points (N, D).

    Args:
        mean: (D,).
        variances: (D,).
    """

    def __init__(self, mean, variances):
        self.mean, self.variances = mean, variances

    def marginal(self, level):
        """Mean √ᾱ m and variance V = ᾱ v + 1-ᾱ of q(x_t): levels (N,) -> (N, D), (N, D).

        Source: DDPM-4, VDM-5
        """
        alpha_bar = np.exp(np.asarray(level))[..., None]
        return np.sqrt(alpha_bar) * self.mean, alpha_bar * self.variances + 1.0 - alpha_bar

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
        return np.sqrt(1.0 - np.exp(np.asarray(level)))[..., None] * (x - mean) / variance

    def clean(self, x, level):
        """E[x_0 | x_t]: (N, D).

        Source: SCORE-3
        """
        mean, variance = self.marginal(level)
        gain = np.exp(0.5 * np.asarray(level))[..., None] * self.variances / variance
        return self.mean + gain * (x - mean)

    def clean_error(self, level):
        """E(x_0 - E[x_0 | x_t])² per coordinate: (N,) -> (N, D).

        Source: DDPM-17
        """
        noise = 1.0 - np.exp(np.asarray(level))[..., None]
        return self.variances * noise / self.marginal(level)[1]

    def epsilon_error(self, level):
        """E(ε - E[ε | x_t])² per coordinate: (N,) -> (N, D).

        Source: DDPM-13
        """
        return np.exp(np.asarray(level))[..., None] * self.variances / self.marginal(level)[1]

    def reverse(self, now, before):
        """q(x_s | x_t) of the marginals: a callable x_t -> mean (N, D), and its variance (N, D).

        Source: DDPM-7, DDPM-17
        """
        alpha = np.exp(np.asarray(now) - np.asarray(before))[..., None]
        mean_t, variance_t = self.marginal(now)
        mean_s, variance_s = self.marginal(before)
        gain = np.sqrt(alpha) * variance_s / variance_t
        return lambda x: mean_s + gain * (x - mean_t), (1.0 - alpha) * variance_s / variance_t

    def transition_kl(self, variance, now, before):
        """E[L_{t-1}] with the perfect prediction and reverse variance σ²: (N,) nats.

        Args:
            variance: (N, D) or broadcast to it.
            now, before: (N,).

        Source: DDPM-8, DDPM-9
        """
        alpha_t, alpha_s = (np.exp(np.asarray(a))[..., None] for a in (now, before))
        beta = 1.0 - alpha_t / alpha_s
        true = beta * (1.0 - alpha_s) / (1.0 - alpha_t)
        c0 = np.sqrt(alpha_s) * beta / (1.0 - alpha_t)
        spread = c0**2 * self.clean_error(now) / variance
        return 0.5 * (true / variance - 1.0 - np.log(true / variance) + spread).sum(axis=-1)

    def prior_kl(self, level):
        """E[L_T]: (N,) -> (N,) nats.

        Source: DDPM-8
        """
        alpha_bar = np.exp(np.asarray(level))[..., None]
        second = self.variances + self.mean**2
        return 0.5 * (alpha_bar * second - alpha_bar - np.log(1.0 - alpha_bar)).sum(axis=-1)

    def reconstruction(self, variance, level):
        """E[-log N(x_0; E[x_0 | x_1], σ²)] with reverse variance σ² (N, D): (N,) nats.

        Source: DDPM-8
        """
        spread = self.clean_error(level) / variance
        return 0.5 * (spread + np.log(2.0 * pi * variance)).sum(axis=-1)

    def bound(self, levels, variances) -> float:
        """E[-ELBO] of the perfect prediction with reverse variances σ_t²: nats.

        Args:
            levels: (T+1,), the first 0.
            variances: (T, D), row t - 1 belongs to step t.

        Source: DDPM-8, VDM-9
        """
        steps = self.transition_kl(variances[1:], levels[2:], levels[1:-1]).sum()
        first = self.reconstruction(variances[0], levels[1])
        return float(self.prior_kl(levels[-1]) + steps + first)

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
        return 1.0 / (1.0 / self.variance + np.exp(level) / (1.0 - np.exp(level)))


class MixtureDiffusion:
    """A one-dimensional mixture of normals, diffused: expectations by the trapezoid rule.

    On a wide grid the rule converges faster than any power of the spacing, as the integrands are
    smooth and vanish at both ends.

    Args:
        mixture: `Mixture` of one dimension, float64 on the host.
        reach: the grid covers this many standard deviations beyond the outermost means.
        points: of the grid.
    """

    def __init__(self, mixture: Mixture, reach: float = 12.0, points: int = 4001):
        self.mixture, self.reach, self.points = mixture, reach, points

    def expect(self, f: Callable, level: float) -> float:
        """E f(x_t) over q(x_t): f takes (M, 1) and returns (M,)."""
        law = self.mixture.noised(level)
        spread = self.reach * float(np.sqrt(law.covariances.max()))
        low, high = float(law.means.min()) - spread, float(law.means.max()) + spread
        x = np.linspace(low, high, self.points)[:, None]
        return float(np.trapezoid(np.exp(law.log_prob(x)) * f(x), x[:, 0]))

    def score(self, x, level: float):
        """∇ log q(x_t): (N, 1).

        Source: SCORE-1
        """
        return self.mixture.noised(level).score(x)

    def clean(self, x, level: float):
        """E[x_0 | x_t]: (N, 1).

        Source: SCORE-3
        """
        return self.mixture.posterior_mean(x, level)

    def epsilon(self, x, level: float):
        """E[ε | x_t]: (N, 1).

        Source: SCORE-4
        """
        alpha_bar = np.exp(level)
        return (x - np.sqrt(alpha_bar) * self.clean(x, level)) / np.sqrt(1.0 - alpha_bar)

    def clean_error(self, level: float) -> float:
        """E(x_0 - E[x_0 | x_t])² = E x_0² - E (E[x_0 | x_t])².

        Source: DDPM-17
        """
        known = self.expect(lambda x: self.clean(x, level)[:, 0] ** 2, level)
        return self.second_moment - known

    @property
    def second_moment(self) -> float:
        """E x_0²."""
        means, variances = self.mixture.means[:, 0], self.mixture.covariances[:, 0, 0]
        return float(self.mixture.weights @ (means**2 + variances))

    def entropy(self, level: float) -> float:
        """-E log q(x_t), nats.

        Source: DDPM-8
        """
        return -self.expect(lambda x: self.mixture.noised(level).log_prob(x), level)

    def information(self, level: float) -> float:
        """I(x_0; x_t) = H(x_t) - H(x_t | x_0), nats.

        Source: RD-12
        """
        return self.entropy(level) - 0.5 * log(2.0 * pi * np.e * (1.0 - np.exp(level)))

    def bound(self, levels, variances) -> float:
        """E[-ELBO] of the perfect prediction with reverse variances σ_t²: nats.

        Args:
            levels: (T+1,), the first 0.
            variances: (T,), element t - 1 belongs to step t.

        Source: DDPM-8
        """
        last = np.exp(levels[-1])
        total = 0.5 * (last * self.second_moment - last - log(1.0 - last))
        for t in range(2, len(levels)):
            alpha_t, alpha_s = np.exp(levels[t]), np.exp(levels[t - 1])
            beta = 1.0 - alpha_t / alpha_s
            true = beta * (1.0 - alpha_s) / (1.0 - alpha_t)
            c0 = np.sqrt(alpha_s) * beta / (1.0 - alpha_t)
            ratio = true / variances[t - 1]
            error = c0**2 * self.clean_error(levels[t]) / variances[t - 1]
            total += 0.5 * (ratio - 1.0 - log(ratio) + error)
        error = self.clean_error(levels[1]) / variances[0]
        return float(total + 0.5 * (error + log(2.0 * pi * variances[0])))


class LatentQuadrature:
    """Any model with a standard normal latent of one or two dimensions, by Gauss–Hermite.

    Args:
        log_likelihood: z (M, K) -> log p(x | z) (M,), for one x.
        dims: K, 1 or 2.
        nodes: per axis.
    """

    def __init__(self, log_likelihood: Callable, dims: int = 1, nodes: int = 128):
        self.log_likelihood, self.dims = log_likelihood, dims
        x, w = np.polynomial.hermite_e.hermegauss(nodes)
        axes = np.meshgrid(*[x] * dims, indexing="ij")
        weights = np.meshgrid(*[w / w.sum()] * dims, indexing="ij")
        self.nodes = np.stack([a.ravel() for a in axes], axis=-1)
        self.weights = np.prod([a.ravel() for a in weights], axis=0)

    @property
    def log_evidence(self) -> float:
        """log p(x) = log E_{z ~ N(0, I)} p(x | z).

        Source: ELBO-1
        """
        values = self.log_likelihood(self.nodes)
        return float(values.max() + np.log(self.weights @ np.exp(values - values.max())))

    def posterior_mean(self, f: Callable):
        """E[f(z) | x]: f takes (M, K) and returns (M, ...).

        Source: ELBO-1
        """
        shares = self.weights * np.exp(self.log_likelihood(self.nodes) - self.log_evidence)
        return np.tensordot(shares, f(self.nodes), axes=1)

    def reconstruction(self, mean, logvar) -> float:
        """E_q[-log p(x | z)] under q = N(mean, e^logvar), each (K,).

        Source: ELBO-5
        """
        z = np.exp(0.5 * logvar) * self.nodes + mean
        return -float(self.weights @ self.log_likelihood(z))
