"""Densities that stay known under diffusion: log p(x), its score and every noised marginal.

The forward process at noise level log ᾱ turns x₀ into √ᾱ x₀ + √(1-ᾱ) ε. `noised(level)` is the law
of that variable, again a density with the same doors, so p_t and its score at any time are one call
away. Log-densities are in nats.
"""

from abc import ABC, abstractmethod
from itertools import pairwise
from math import exp, expm1, inf

from scratchgen.core.arrays import Backend, namespace, rows, with_dims
from scratchgen.core.numerics import LOG_2PI, logsumexp
from scratchgen.maths.gaussian import cholesky, require_finite_mean

BLOCK = 1 << 21  # numbers worked on at a time, so that memory does not grow with rows × components


class Density(ABC):
    """A law of x ∈ R^D with a density; `dims` is D.

    Arrays belong to the backend the density was built with, and so must the stream's. Points whose
    last axis is not D are refused with a ValueError.
    """

    dims: int

    @abstractmethod
    def log_prob(self, x):
        """log p(x) in nats: (..., D) -> (...)."""

    @abstractmethod
    def score(self, x):
        """∇ log p(x): (..., D) -> (..., D)."""

    @abstractmethod
    def noised(self, level: float) -> "Density":
        """The law of √ᾱ x₀ + √(1-ᾱ) ε, ε ~ N(0, I), at level = log ᾱ ≤ 0; levels add."""

    @abstractmethod
    def sample(self, n: int, stream):
        """n independent draws (n, D)."""


class Mixture(Density):
    """Σ_k w_k N(m_k, S_k): a mixture of normals, whose noised marginals are mixtures too.

    Args:
        backend: where its arrays are born.
        weights: (K,), finite and non-negative; only their ratios matter.
        means: (K, D).
        covariances: (K, D, D), symmetric and positive definite.

    Raises:
        ValueError: shapes that do not fit, a weight that is negative or infinite, no weight that
            is positive, a mean that is not finite, or a covariance that is not symmetric and
            positive definite.
    """

    def __init__(self, backend: Backend, weights, means, covariances):
        given = (backend.asarray(a) for a in (weights, means, covariances))
        w, m, s = (backend.xp.asarray(a, copy=True) for a in given)
        if m.ndim != 2 or w.shape != m.shape[:1] or s.shape != (*m.shape, *m.shape[1:]):
            raise ValueError(
                "a mixture needs weights (K,), means (K, D) and covariances (K, D, D), got "
                f"{w.shape}, {m.shape} and {s.shape}"
            )
        xp, total = backend.xp, backend.xp.sum(w)
        if not (bool(xp.all(w >= 0.0)) and 0.0 < float(total) < inf):
            raise ValueError(f"weights must not be negative, infinite, nor all of them 0, got {w}")
        require_finite_mean(m)
        self.backend, self.dims = backend, m.shape[1]
        self.weights, self.means, self.covariances = w / total, m, s
        self._scale = cholesky(s)
        self._whitening = xp.linalg.inv(self._scale)
        present = w > 0.0
        log_weights = xp.where(present, xp.log(xp.where(present, self.weights, xp.max(w))), -inf)
        log_volume = xp.sum(xp.log(xp.linalg.diagonal(self._whitening)), axis=1)
        self._log_heights = log_weights + log_volume - 0.5 * self.dims * LOG_2PI

    @property
    def mean(self):
        """E[x], (D,)."""
        return self.weights @ self.means

    @property
    def covariance(self):
        """Cov[x] = Σ_k w_k (S_k + (m_k - E[x]) (m_k - E[x])ᵀ), (D, D)."""
        apart = self.means - self.mean
        spread = self.covariances + apart[:, :, None] * apart[:, None, :]
        return self.backend.xp.sum(self.weights[:, None, None] * spread, axis=0)

    def log_joint(self, x):
        """log w_k N(x; m_k, S_k) in nats: (..., D) -> (..., K)."""
        return self._by_rows(lambda block: self._parts(block)[0].T, x)

    def log_prob(self, x):
        """log p(x) = log Σ_k w_k N(x; m_k, S_k) in nats: (..., D) -> (...)."""
        return self._by_rows(lambda block: logsumexp(self._parts(block)[0], axis=0), x)

    def responsibilities(self, x):
        """P(k | x), the share of component k in p(x): (..., D) -> (..., K)."""
        return self._by_rows(lambda block: softmax(self._parts(block)[0]).T, x)

    def score(self, x):
        """∇ log p(x) = Σ_k P(k | x) S_k⁻¹ (m_k - x).

        Args:
            x: (..., D).

        Returns:
            (..., D); nan where x is so far away that the squares overflow and log p(x) is -inf.

        Source: SCORE-1
        """

        def block_score(block):
            xp = namespace(block)
            log_joint, z = self._parts(block)
            pulls = xp.matmul(xp.matrix_transpose(self._whitening), z)
            return -xp.sum(softmax(log_joint)[:, None, :] * pulls, axis=0).T

        return self._by_rows(block_score, x)

    def noised(self, level: float) -> "Mixture":
        """Σ_k w_k N(√ᾱ m_k, ᾱ S_k + (1-ᾱ) I), the law of √ᾱ x₀ + √(1-ᾱ) ε.

        Args:
            level: log ᾱ ≤ 0.

        Returns:
            A Mixture.

        Raises:
            ValueError: the level is positive.

        Source: DDPM-4
        """
        signal, variance = signal_and_variance(level)
        covariances = signal**2 * self.covariances + variance * identity(self.backend, self.dims)
        return Mixture(self.backend, self.weights, signal * self.means, covariances)

    def posterior(self, x_t, level: float) -> "Mixture":
        """The law of x₀ given one x_t: each component conditioned, weighted by P(k | x_t).

            N(m_k + √ᾱ G_k (x_t - √ᾱ m_k), (1-ᾱ) G_k),   G_k = S_k (ᾱ S_k + (1-ᾱ) I)⁻¹

        `self.noised(s).posterior(x_t, t - s)` is the true reverse kernel from level t to s > t.

        Args:
            x_t: (D,).
            level: log ᾱ < 0; at 0 the posterior is a point mass.

        Returns:
            A Mixture.

        Raises:
            ValueError: the level is not negative, or x_t is not (D,).

        Source: DDPM-7
        """
        xp = self.backend.xp
        if x_t.shape != (self.dims,):
            raise ValueError(f"x_t must be ({self.dims},), got {x_t.shape}")
        shares, means, covariances = self._conditioned(x_t[None, :], level)
        shares, means = xp.squeeze(shares, axis=1), xp.squeeze(means, axis=2)
        return Mixture(self.backend, shares, means, covariances)

    def posterior_mean(self, x_t, level: float):
        """E[x₀ | x_t], from the conditioned components and not from the score.

        Args:
            x_t: (..., D).
            level: log ᾱ ≤ 0.

        Returns:
            (..., D).

        Raises:
            ValueError: the level is positive.

        Source: SCORE-3
        """

        def block_mean(block):
            shares, means, _ = self._conditioned(block, level)
            return namespace(block).sum(shares[:, None, :] * means, axis=0).T

        return self._by_rows(block_mean, x_t)

    def posterior_covariance(self, x_t, level: float):
        """Cov[x₀ | x_t]; its trace is the least mean squared error of a denoiser at x_t.

        Args:
            x_t: (..., D).
            level: log ᾱ ≤ 0.

        Returns:
            (..., D, D).

        Raises:
            ValueError: the level is positive.

        Source: SCORE-3
        """

        def block_covariance(block):
            xp = namespace(block)
            shares, means, covariances = self._conditioned(block, level)
            apart = means - xp.sum(shares[:, None, :] * means, axis=0)
            spread = covariances[..., None] + apart[:, :, None, :] * apart[:, None, :, :]
            return xp.permute_dims(xp.sum(shares[:, None, None, :] * spread, axis=0), (2, 0, 1))

        return self._by_rows(block_covariance, x_t)

    def sample(self, n: int, stream):
        """n independent draws (n, D): a component, then a normal."""
        xp = self.backend.xp
        below = xp.cumulative_sum(self.weights)[:-1]
        u = stream.at("component").uniform((n,))
        k = xp.sum(xp.astype(u[:, None] >= below, xp.int64), axis=1)
        noise = stream.at("noise").normal((n, self.dims))
        means, scales = xp.take(self.means, k, axis=0), xp.take(self._scale, k, axis=0)
        return means + xp.sum(scales * noise[:, None, :], axis=2)

    def _parts(self, block):
        """(M, D) -> log w_k N(x; m_k, S_k) (K, M), whitened distances to the means (K, D, M)."""
        xp = namespace(block)
        z = xp.matmul(self._whitening, block.T - self.means[:, :, None])
        return self._log_heights[:, None] - 0.5 * xp.sum(z * z, axis=1), z

    def _conditioned(self, block, level):
        """P(k | x_t) (K, M), and the means (K, D, M) and covariances (K, D, D) given k and x_t."""
        xp = namespace(block)
        signal, variance = signal_and_variance(level)
        marginal = self.noised(level)
        gains = xp.linalg.solve(marginal.covariances, self.covariances)  # the factors commute
        gains = 0.5 * (gains + xp.matrix_transpose(gains))
        gaps = block.T - marginal.means[:, :, None]
        means = self.means[:, :, None] + signal * xp.matmul(gains, gaps)
        return softmax(marginal._parts(block)[0]), means, variance * gains

    def _by_rows(self, f, x):
        """f: (M, D) -> (M, ...) applied to all rows of x (..., D), a block of them at a time."""
        xp, flat = namespace(x), rows(with_dims(x, self.dims))
        n, size = flat.shape[0], BLOCK // (self.means.shape[0] * self.dims) + 1
        edges = [0, *range(size, n, size), n]
        y = xp.concat([f(flat[first:last, :]) for first, last in pairwise(edges)])
        return xp.reshape(y, x.shape[:-1] + y.shape[1:])


def identity(backend: Backend, dims: int):
    """The unit matrix (dims, dims)."""
    return backend.asarray([[float(i == j) for j in range(dims)] for i in range(dims)])


def signal_and_variance(level: float) -> tuple[float, float]:
    """√ᾱ and 1-ᾱ at level = log ᾱ.

    Raises:
        ValueError: the level is positive or not a number.
    """
    if not level <= 0.0:
        raise ValueError(f"a noise level is log ᾱ and at most 0, got {level}")
    return exp(0.5 * level), -expm1(level)


def softmax(a):
    """e^a / Σ e^a along the first axis; of sum 1 even where rounding is felt in so large an a."""
    xp = namespace(a)
    e = xp.exp(a - xp.max(a, axis=0))
    return e / xp.sum(e, axis=0)
