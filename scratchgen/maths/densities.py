"""Densities that stay known under diffusion: log p(x), its score and every noised marginal.

The forward process at noise level log ᾱ turns x₀ into √ᾱ x₀ + √(1-ᾱ) ε. `noised(level)` is the law
of that variable, again a density with the same doors, so p_t and its score at any time are one call
away. Log-densities are in nats.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil, cos, exp, expm1, log, pi, sin, sqrt

from scratchgen.core.arrays import Backend, namespace
from scratchgen.core.numerics import LOG_2PI, level_centres, logsumexp
from scratchgen.maths.distributions import discretised_normal_nll

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
        return self._by_rows(lambda rows: _softmax(self._parts(rows)[0]).T, x)

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
            return -xp.sum(_softmax(log_joint)[:, None, :] * pulls, axis=0).T

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
        signal, variance = _signal_and_variance(level)
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
        signal, variance = _signal_and_variance(level)
        marginal = self.noised(level)
        gains = xp.linalg.solve(marginal.covariances, self.covariances)  # the factors commute
        gains = 0.5 * (gains + xp.matrix_transpose(gains))
        gaps = rows.T - marginal.means[:, :, None]
        means = self.means[:, :, None] + signal * xp.matmul(gains, gaps)
        return _softmax(marginal._parts(rows)[0]), means, variance * gains

    def _by_rows(self, f, x):
        """f: (M, D) -> (M, ...) applied to all rows of x (..., D), a block of them at a time."""
        xp = namespace(x)
        rows = xp.reshape(x, (-1, self.dims))
        n, size = rows.shape[0], max(1, BLOCK // (self.means.shape[0] * self.dims))
        parts = [f(rows[i : min(i + size, n), :]) for i in range(0, max(n, 1), size)]
        y = parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)
        return xp.reshape(y, x.shape[:-1] + y.shape[1:])


class Curve(Mixture):
    """A point drawn uniformly on one of several plane curves, blurred by N(0, v I).

    The integral over a curve c(u), 0 ≤ u ≤ 1, is a quadrature whose nodes are the components of a
    mixture: the trapezoid rule on closed curves, Fejér's first rule on open ones. Both converge
    geometrically, and two nodes a standard deviation of the blur leave nothing but rounding. Noise
    only makes the integrand smoother, so the noised marginals are mixtures at the same nodes.

    Args:
        backend: where its arrays are born.
        pieces: the curves, functions u (n,) -> (n, 2), of equal mass.
        variance: v > 0, of the blur.
        closed: whether every piece returns to its start, smoothly.
        fineness: nodes a standard deviation, where a piece is fastest.

    Raises:
        ValueError: there is no piece, or the variance or fineness is not positive.

    Source: [Waldvogel 2006]
    """

    def __init__(
        self,
        backend: Backend,
        pieces: Sequence[Callable],
        variance: float,
        closed: bool,
        fineness: float = 2.0,
    ):
        if not (pieces and variance > 0.0 and fineness > 0.0):
            raise ValueError(
                "a curve needs a piece and a positive variance and fineness, got "
                f"{len(pieces)}, {variance} and {fineness}"
            )
        exact = replace(backend, dtype="float64")
        lengths = [_length(piece, exact) for piece in pieces]
        n = 16 + ceil(fineness * max(lengths) / sqrt(variance))
        u, weights = (_trapezoid if closed else _fejer)(n, exact)
        points = exact.xp.concat([piece(u) for piece in pieces], axis=0)
        weights = exact.xp.concat([weights / len(pieces) for _ in pieces], axis=0)
        super().__init__(backend, weights, points, _discs(points.shape[0], variance))
        self._pieces, self._variance = pieces, variance

    def sample(self, n: int, stream):
        """n independent draws (n, 2): a piece, a place anywhere on it, then the blur."""
        xp = self.backend.xp
        u = stream.at("place").uniform((n,))
        chosen = xp.floor(len(self._pieces) * stream.at("piece").uniform((n,)))[:, None]
        points = [xp.where(chosen == i, f(u), 0.0) for i, f in enumerate(self._pieces)]
        return sum(points) + sqrt(self._variance) * stream.at("noise").normal((n, 2))


def rings(backend: Backend, radii=(1.0, 2.0), variance: float = 0.01) -> Curve:
    """Concentric circles of equal mass, blurred."""
    pieces = [lambda u, r=r: r * _circle(2.0 * pi * u) for r in radii]
    return Curve(backend, pieces, variance, closed=True)


def moons(backend: Backend, variance: float = 0.01) -> Curve:
    """Two interleaving half circles of radius 1, blurred, with their mean at the origin."""

    def moon(u, sign):
        xp = namespace(u)
        return sign * (_circle(pi * u) - xp.stack([0.5 + 0.0 * u, 0.25 + 0.0 * u], axis=-1))

    return Curve(backend, [lambda u: moon(u, 1.0), lambda u: moon(u, -1.0)], variance, closed=False)


def spiral(
    backend: Backend, arms: int = 2, turns: float = 1.5, radii=(0.2, 2.0), variance: float = 0.01
) -> Curve:
    """Arms of an Archimedean spiral from the first radius to the second, uniform in the angle."""

    def arm(u, start):
        r = radii[0] + (radii[1] - radii[0]) * u
        return r[:, None] * _circle(2.0 * pi * (turns * u + start))

    pieces = [lambda u, i=i: arm(u, i / arms) for i in range(arms)]
    return Curve(backend, pieces, variance, closed=False)


def grid(backend: Backend, side: int = 5, spacing: float = 1.0, variance: float = 0.01) -> Mixture:
    """side × side equal round normals on a square grid around the origin."""
    places = [spacing * (i - 0.5 * (side - 1)) for i in range(side)]
    return _equal_discs(backend, [(a, b) for a in places for b in places], variance)


def eight_gaussians(backend: Backend, radius: float = 2.0, variance: float = 0.02) -> Mixture:
    """Eight equal round normals on a circle."""
    angles = [0.25 * pi * k for k in range(8)]
    return _equal_discs(backend, [(radius * cos(a), radius * sin(a)) for a in angles], variance)


class Checker(Density):
    """Uniform on the dark squares of a board, those of even row + column, after noise.

    At level 0 the board is clean: log p is -inf off the dark squares, and no score exists. Noised,
    its density is a sum over dark squares of products of two interval probabilities of a normal,

        p(x) = Σ_dark P(column | x₁) P(row | x₂) / (n ᾱ w²),  P(c | x) = P(x + √(1-ᾱ) ε ∈ √ᾱ · c)

    with n squares of width w, and that sum is two products, of the even and of the odd intervals.

    Args:
        backend: where its arrays are born.
        squares: k ≥ 2, the number of squares along a side.
        half_width: the board is [-half_width, half_width]².
        level: log ᾱ ≤ 0, of the noise already put on.

    Raises:
        ValueError: a number out of its range.
    """

    dims = 2

    def __init__(
        self, backend: Backend, squares: int = 4, half_width: float = 2.0, level: float = 0.0
    ):
        if not (squares >= 2 and half_width > 0.0):
            raise ValueError(f"need squares ≥ 2 and half_width > 0, got {squares}, {half_width}")
        self.backend, self.squares, self.half_width, self.level = (
            backend,
            squares,
            half_width,
            level,
        )
        # beyond this level √ᾱ x₀ is lost in the rounding of x, but its logarithm must stay finite
        self._signal, self._variance = _signal_and_variance(max(level, -80.0))
        self._dark = [(i, j) for i in range(squares) for j in range(squares) if (i + j) % 2 == 0]

    @property
    def width(self) -> float:
        """The width of a square."""
        return 2.0 * self.half_width / self.squares

    def log_prob(self, x):
        """log p(x) in nats: (..., 2) -> (...); -inf off the dark squares of a clean board."""
        if self.level == 0.0:
            return self._clean_log_prob(x)
        log_area = log(len(self._dark)) + 2.0 * log(self._signal * self.width)
        return logsumexp(self._products(x)[0], axis=-1) - log_area

    def score(self, x):
        """∇ log p(x).

        Args:
            x: (..., 2).

        Returns:
            (..., 2).

        Raises:
            ValueError: the board is clean, where log p is a step function.

        Source: SCORE-1
        """
        if self.level == 0.0:
            raise ValueError("a clean board has no score; ask checker.noised(level), level < 0")
        xp = namespace(x)
        products, slopes = self._products(x)
        shares = xp.exp(products - logsumexp(products, axis=-1)[..., None])
        return xp.sum(shares[..., None, :] * slopes, axis=-1)

    def noised(self, level: float) -> "Checker":
        """The board after more noise; levels add."""
        return Checker(self.backend, self.squares, self.half_width, self.level + level)

    def sample(self, n: int, stream):
        """n independent draws (n, 2): a dark square, a place in it, then the noise."""
        xp = self.backend.xp
        k = xp.floor(len(self._dark) * stream.at("square").uniform((n,)))
        corners = xp.take(self.backend.asarray(self._dark), xp.astype(k, xp.int64), axis=0)
        x0 = self.width * (corners + stream.at("place").uniform((n, 2))) - self.half_width
        return self._signal * x0 + sqrt(self._variance) * stream.at("noise").normal((n, 2))

    def _clean_log_prob(self, x):
        xp = namespace(x)
        cell = xp.floor((x + self.half_width) / self.width)
        on_board = xp.all((cell >= 0.0) & (cell < self.squares), axis=-1)
        dark = xp.sum(cell, axis=-1) % 2.0 == 0.0
        height = -log(len(self._dark)) - 2.0 * log(self.width)
        return xp.where(on_board & dark, height + 0.0 * x[..., 0], -xp.inf)

    def _products(self, x):
        """log of the even and the odd product (..., 2), and their gradients (..., 2, 2).

        The k intervals are the inner ones of k + 2 bins of [-1, 1], whose probabilities under a
        normal are known to keep their digits in the far tails and for narrow bins. There x is the
        mean of the normal.
        """
        xp, bins = namespace(x), self.squares + 2
        unit = self.squares / bins / (self._signal * self.half_width)  # from x to that scale
        centres = level_centres(self.backend.asarray(list(range(1, bins - 1))), bins)
        logvar = self.backend.asarray(log(self._variance) + 2.0 * log(unit))
        costs, pullback = discretised_normal_nll(centres, unit * x[..., None], logvar, bins)
        slopes = unit * pullback(-xp.ones_like(costs))[0]

        products, gradients = [], []
        for first in (0, 1):
            log_p = -costs[..., first::2]
            total = logsumexp(log_p, axis=-1)
            shares = xp.exp(log_p - total[..., None])
            products.append(xp.sum(total, axis=-1))
            gradients.append(xp.sum(shares * slopes[..., first::2], axis=-1))
        return xp.stack(products, axis=-1), xp.stack(gradients, axis=-1)


def _signal_and_variance(level: float) -> tuple[float, float]:
    """√ᾱ and 1-ᾱ at level = log ᾱ."""
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


def _softmax(log_joint):
    """e^(a_k) / Σ_j e^(a_j) along the first axis."""
    return namespace(log_joint).exp(log_joint - logsumexp(log_joint, axis=0))


def _equal_discs(backend: Backend, means, variance: float) -> Mixture:
    k = len(means)
    return Mixture(backend, [1.0 / k] * k, means, _discs(k, variance))


def _discs(k: int, variance: float):
    """k covariances variance · I."""
    return [[[variance, 0.0], [0.0, variance]]] * k


def _circle(angle):
    """(n,) -> (cos, sin) (n, 2)."""
    xp = namespace(angle)
    return xp.stack([xp.cos(angle), xp.sin(angle)], axis=-1)


def _length(piece, born: Backend, steps: int = 256) -> float:
    """The largest |dc/du| of a curve: its length if u ran at constant speed."""
    points = piece(born.asarray([i / steps for i in range(steps + 1)]))
    moved = points[1:, :] - points[:-1, :]
    return steps * sqrt(float(born.xp.max(born.xp.sum(moved * moved, axis=1))))


def _trapezoid(n: int, born: Backend):
    """Nodes and weights on [0, 1] for periodic integrands."""
    u = born.asarray([i / n for i in range(n)])
    return u, 0.0 * u + 1.0 / n


def _fejer(n: int, born: Backend):
    """Nodes and weights on [0, 1] of Fejér's first rule: at the cosines of n equal angles.

    w = (1/n) (1 - 2 Σ_{j ≤ n/2} cos(2jθ) / (4j² - 1)), all positive.
    """
    xp = born.xp
    angle = born.asarray([pi * (i + 0.5) / n for i in range(n)])
    j = born.asarray(list(range(1, n // 2 + 1)))
    terms = xp.cos(2.0 * j * angle[:, None]) / (4.0 * j * j - 1.0)
    return 0.5 - 0.5 * xp.cos(angle), (1.0 - 2.0 * xp.sum(terms, axis=1)) / n
