"""Worlds where everything is known: finite, linear-Gaussian, hierarchical, and two coding laws.

They are small enough for exact sums, or Gaussian throughout. Their formulas are their own, without
the bounds and the models that they judge; `Gaussian` they take from maths/, where it has tests of
its own. Each can stand in the place of a trained network. Host numbers, float64, nats.
"""

from collections.abc import Sequence
from math import log, pi

import numpy as np

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
