"""Densities that stay known under diffusion: log p(x), its score and every noised marginal.

The forward process at noise level log ᾱ turns x₀ into √ᾱ x₀ + √(1-ᾱ) ε. `noised(level)` is the law
of that variable, again a density with the same doors, so p_t and its score at any time are one call
away. Log-densities are in nats.
"""

from abc import ABC, abstractmethod
from math import exp, expm1

from scratchgen.core.arrays import Backend, namespace
from scratchgen.core.numerics import LOG_2PI, logsumexp

BLOCK = 1 << 21  # numbers worked on at a time, so that memory does not grow with rows × components


class Density(ABC):
    """A law of x ∈ R^D with a density; `dims` is D.

    Arrays belong to the backend the density was built with, and so must the stream's.
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
        weights: (K,), non-negative, of sum 1.
        means: (K, D).
        covariances: (K, D, D), symmetric and positive definite.

    Raises:
        ValueError: shapes that do not fit, weights that are no probabilities, or a covariance that
            is not symmetric and positive definite.
    """

    def __init__(self, backend: Backend, weights, means, covariances):
        w, m, s = (backend.asarray(a) for a in (weights, means, covariances))
        if w.ndim != 1 or m.ndim != 2 or m.shape[0] != w.shape[0] or 0 in m.shape:
            raise ValueError(f"weights (K,) and means (K, D) must fit, got {w.shape}, {m.shape}")
        if s.shape != (*m.shape, m.shape[1]):
            raise ValueError(f"covariances must be {(*m.shape, m.shape[1])}, got {s.shape}")
        self.backend, self.dims = backend, m.shape[1]
        self.weights, self.means, self.covariances = w, m, s
        xp = backend.xp
        if not (bool(xp.all(w >= 0.0)) and abs(float(xp.sum(w)) - 1.0) < 1e-5):
            raise ValueError(f"weights must be non-negative and sum to 1, got {w}")
        self._scale = _cholesky(s)
        self._whitening = xp.linalg.inv(self._scale)
        log_volume = xp.sum(xp.log(xp.linalg.diagonal(self._whitening)), axis=-1)
        log_weights = xp.where(w > 0.0, xp.log(xp.where(w > 0.0, w, 1.0)), -xp.inf)
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
        return self._by_rows(lambda rows: self._parts(rows)[0].T, x)

    def log_prob(self, x):
        """log p(x) = log Σ_k w_k N(x; m_k, S_k) in nats: (..., D) -> (...)."""
        return self._by_rows(lambda rows: logsumexp(self._parts(rows)[0], axis=0), x)

    def responsibilities(self, x):
        """P(k | x), the share of component k in p(x): (..., D) -> (..., K)."""
        return self._by_rows(lambda rows: softmax(self._parts(rows)[0], axis=0).T, x)

    def score(self, x):
        """∇ log p(x) = Σ_k P(k | x) S_k⁻¹ (m_k - x).

        Args:
            x: (..., D).

        Returns:
            (..., D).

        Source: SCORE-1
        """

        def rows_score(rows):
            xp = namespace(rows)
            log_joint, z = self._parts(rows)
            pulls = xp.matmul(xp.matrix_transpose(self._whitening), z)
            return -xp.sum(softmax(log_joint, axis=0)[:, None, :] * pulls, axis=0).T

        return self._by_rows(rows_score, x)

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
        covariances = signal**2 * self.covariances + variance * self._identity()
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
            ValueError: the level is not negative.

        Source: DDPM-7
        """
        shares, means, covariances = self._conditioned(x_t[None, :], level)
        return Mixture(self.backend, shares[:, 0], means[:, :, 0], covariances)

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

        def rows_mean(rows):
            shares, means, _ = self._conditioned(rows, level)
            return namespace(rows).sum(shares[:, None, :] * means, axis=0).T

        return self._by_rows(rows_mean, x_t)

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

        def rows_covariance(rows):
            xp = namespace(rows)
            shares, means, covariances = self._conditioned(rows, level)
            apart = means - xp.sum(shares[:, None, :] * means, axis=0)
            spread = covariances[..., None] + apart[:, :, None, :] * apart[:, None, :, :]
            return xp.permute_dims(xp.sum(shares[:, None, None, :] * spread, axis=0), (2, 0, 1))

        return self._by_rows(rows_covariance, x_t)

    def sample(self, n: int, stream):
        """n independent draws (n, D): a component, then a normal."""
        xp = self.backend.xp
        below = xp.cumulative_sum(self.weights)[:-1]
        u = stream.at("component").uniform((n,))
        k = xp.sum(xp.astype(u[:, None] >= below, xp.int64), axis=1)
        noise = stream.at("noise").normal((n, self.dims))
        means, scales = xp.take(self.means, k, axis=0), xp.take(self._scale, k, axis=0)
        return means + xp.matmul(scales, noise[..., None])[..., 0]

    def _identity(self):
        like = self.covariances
        return self.backend.xp.eye(self.dims, dtype=like.dtype, device=like.device)

    def _parts(self, rows):
        """(M, D) -> log w_k N(x; m_k, S_k) (K, M), whitened distances to the means (K, D, M)."""
        xp = namespace(rows)
        z = xp.matmul(self._whitening, rows.T - self.means[:, :, None])
        return self._log_heights[:, None] - 0.5 * xp.sum(z * z, axis=1), z

    def _conditioned(self, rows, level):
        """P(k | x_t) (K, M), and the means (K, D, M) and covariances (K, D, D) given k and x_t."""
        xp = namespace(rows)
        signal, variance = signal_and_variance(level)
        marginal = self.noised(level)
        gains = xp.linalg.solve(marginal.covariances, self.covariances)  # the factors commute
        gains = 0.5 * (gains + xp.matrix_transpose(gains))
        gaps = rows.T - marginal.means[:, :, None]
        means = self.means[:, :, None] + signal * xp.matmul(gains, gaps)
        return softmax(marginal._parts(rows)[0], axis=0), means, variance * gains

    def _by_rows(self, f, x):
        """f: (M, D) -> (M, ...) applied to all rows of x (..., D), a block of them at a time."""
        xp = namespace(x)
        rows = xp.reshape(x, (-1, self.dims))
        n, size = rows.shape[0], max(1, BLOCK // (self.means.shape[0] * self.dims))
        parts = [f(rows[i : min(i + size, n), :]) for i in range(0, max(n, 1), size)]
        y = parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)
        return xp.reshape(y, x.shape[:-1] + y.shape[1:])


def signal_and_variance(level: float) -> tuple[float, float]:
    """√ᾱ and 1-ᾱ at level = log ᾱ.

    Raises:
        ValueError: the level is positive or not a number.
    """
    if not level <= 0.0:
        raise ValueError(f"a noise level is log ᾱ and at most 0, got {level}")
    return exp(0.5 * level), -expm1(level)


def _cholesky(s):
    """The lower factors of covariances (K, D, D)."""
    xp = namespace(s)
    asymmetry, size = xp.max(xp.abs(s - xp.matrix_transpose(s))), xp.max(xp.abs(s))
    try:
        factor = xp.linalg.cholesky(s)
    except ValueError:  # NumPy's LinAlgError is one; CuPy gives NaN
        factor = xp.nan * s
    if not (bool(xp.all(xp.isfinite(factor))) and float(asymmetry) <= 1e-5 * float(size)):
        raise ValueError(f"covariances must be symmetric and positive definite, got {s}")
    return factor


def softmax(a, axis: int):
    """e^a / Σ e^a along one axis; of sum 1 even where a is so large that its rounding is felt."""
    xp = namespace(a)
    e = xp.exp(a - xp.max(a, axis=axis, keepdims=True))
    return e / xp.sum(e, axis=axis, keepdims=True)
