"""Densities in the plane that are easy to see and hard to learn: rings, moons, spirals, boards.

Each keeps its log-density, its score and its noised marginals, exactly or by a quadrature that
leaves nothing but rounding, so a model trained on draws from it can be held against the truth.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import ceil, cos, inf, log, pi, sin, sqrt

from scratchgen.core.arrays import Backend, full_like, namespace, ones, rows, with_dims
from scratchgen.core.numerics import level_centres, logsumexp
from scratchgen.maths.densities import Density, Mixture, signal_and_variance, softmax
from scratchgen.maths.distributions import discretised_normal_nll

MOST_NODES = 1 << 13  # of an open piece: their weights take a matrix of half the square of that


class Curve(Mixture):
    """A point drawn uniformly on one of several plane curves, blurred by N(0, v I).

    The integral over a curve c(u), 0 ≤ u ≤ 1, is a quadrature whose nodes are the components of a
    mixture: the trapezoid rule on closed curves, Fejér's first rule on open ones. Both converge
    geometrically; 16 nodes and two more for every √v of a curve's length leave little but rounding
    (π more with Fejér, whose nodes are π/2 times as far apart in the middle). Noise only makes the
    integrand smoother, so the noised marginals keep those nodes.

    Args:
        backend: where its arrays are born.
        pieces: of equal mass; each a curve u (n,) -> c (n, 2) and the largest |dc/du|, which is its
            length when u runs along it evenly.
        variance: v > 0, of the blur.
        closed: whether every piece returns to its start, smoothly.

    Raises:
        ValueError: there is no piece, or a length or the variance is not positive, or an open piece
            needs more than 8192 nodes.

    Source: [Waldvogel 2006]
    """

    def __init__(
        self,
        backend: Backend,
        pieces: Sequence[tuple[Callable, float]],
        variance: float,
        closed: bool,
    ):
        lengths = [length for _, length in pieces]
        if not (pieces and min(lengths) > 0.0 and variance > 0.0):
            raise ValueError(
                "a curve needs a piece, positive lengths and a positive variance, got "
                f"lengths {lengths} and variance {variance}"
            )
        exact, points, weights = replace(backend, dtype="float64"), [], []
        rule, density = (_trapezoid, 2.0) if closed else (_fejer, pi)
        for curve, length in pieces:
            nodes = 16 + ceil(density * length / sqrt(variance))
            if nodes > MOST_NODES and not closed:
                raise ValueError(
                    f"an open curve of length {length} needs {nodes} nodes at variance {variance}, "
                    f"and at most {MOST_NODES} are possible; take a larger variance"
                )
            u, masses = rule(nodes, exact)
            points.append(curve(u))
            weights.append(masses / exact.xp.sum(masses))
        points, weights = exact.xp.concat(points), exact.xp.concat(weights)
        super().__init__(backend, weights, points, _discs(points.shape[0], variance))
        self.pieces, self.variance, self.closed = pieces, variance, closed

    def sample(self, n: int, stream):
        """n independent draws (n, 2): a piece, a place anywhere on it, then the blur."""
        xp = self.backend.xp
        u = stream.at("place").uniform((n,))
        chosen = xp.floor(len(self.pieces) * stream.at("piece").uniform((n,)))[:, None]
        points = [xp.where(chosen == i, curve(u), 0.0) for i, (curve, _) in enumerate(self.pieces)]
        return sum(points) + sqrt(self.variance) * stream.at("noise").normal((n, 2))


def rings(backend: Backend, radii: Sequence[float] = (1.0, 2.0), variance: float = 0.01) -> Curve:
    """Concentric circles of equal mass, blurred."""

    def ring(u, radius):
        return _polar(radius, 2.0 * pi * u)

    pieces = [(partial(ring, radius=r), 2.0 * pi * r) for r in radii]
    return Curve(backend, pieces, variance, closed=True)


def moons(backend: Backend, variance: float = 0.01) -> Curve:
    """Two interleaving half circles of radius 1, blurred, with their mean at the origin."""

    def moon(u, sign):
        centre = namespace(u).stack([full_like(u, 0.5), full_like(u, 0.25)], axis=1)
        return sign * (_polar(1.0, pi * u) - centre)

    pieces = [(partial(moon, sign=1.0), pi), (partial(moon, sign=-1.0), pi)]
    return Curve(backend, pieces, variance, closed=False)


def spiral(
    backend: Backend,
    arms: int = 2,
    turns: float = 1.5,
    radii: tuple[float, float] = (0.2, 2.0),
    variance: float = 0.01,
) -> Curve:
    """Arms of an Archimedean spiral from the first radius to the second, uniform in the angle."""
    inner, outer = radii

    def arm(u, start):
        radius = inner + (outer - inner) * u
        return _polar(radius[:, None], 2.0 * pi * (turns * u + start))

    fastest = sqrt((outer - inner) ** 2 + (2.0 * pi * turns * max(map(abs, radii))) ** 2)
    pieces = [(partial(arm, start=i / arms), fastest) for i in range(arms)]
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
        level: log ᾱ from -80 to 0, of the noise already put on; below, nothing is left of a board.

    Raises:
        ValueError: a number out of its range.
    """

    dims = 2

    def __init__(
        self, backend: Backend, squares: int = 4, half_width: float = 2.0, level: float = 0.0
    ):
        if not (squares >= 2 and half_width > 0.0):
            raise ValueError(f"need squares ≥ 2 and half_width > 0, got {squares}, {half_width}")
        if not -80.0 <= level <= 0.0:
            raise ValueError(f"a board's noise level is log ᾱ from -80 to 0, got {level}")
        self.backend, self.squares, self.level = backend, squares, level
        self.half_width, self.width = half_width, 2.0 * half_width / squares
        self._dark = [(i, j) for i in range(squares) for j in range(i % 2, squares, 2)]

    def log_prob(self, x):
        """log p(x) in nats: (..., 2) -> (...); -inf off the dark squares of a clean board."""
        xp = namespace(with_dims(x, self.dims))
        signal, _ = signal_and_variance(self.level)
        height = -log(len(self._dark)) - 2.0 * log(signal * self.width)
        if self.level == 0.0:
            cell = xp.floor((x + self.half_width) / self.width)
            parity = xp.sum(cell, axis=-1) % 2.0
            dark = xp.all((cell >= 0.0) & (cell < self.squares), axis=-1) & (parity == 0.0)
            return xp.where(dark, full_like(parity, height), -inf)
        products, _ = self._products(x)
        return xp.reshape(logsumexp(products, axis=0) + height, x.shape[:-1])

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
        xp = namespace(with_dims(x, self.dims))
        products, slopes = self._products(x)
        return xp.reshape(xp.sum(softmax(products)[:, None, :] * slopes, axis=0).T, x.shape)

    def noised(self, level: float) -> "Checker":
        """The board after more noise; levels add."""
        return Checker(self.backend, self.squares, self.half_width, self.level + level)

    def sample(self, n: int, stream):
        """n independent draws (n, 2): a dark square, a place in it, then the noise."""
        xp = self.backend.xp
        k = xp.floor(len(self._dark) * stream.at("square").uniform((n,)))
        corners = xp.take(self.backend.asarray(self._dark), xp.astype(k, xp.int64), axis=0)
        x0 = self.width * (corners + stream.at("place").uniform((n, 2))) - self.half_width
        signal, variance = signal_and_variance(self.level)
        return signal * x0 + sqrt(variance) * stream.at("noise").normal((n, 2))

    def _products(self, x):
        """log of the even and of the odd product (2, M), and their gradients (2, 2, M).

        The k intervals are the inner ones of k + 2 bins of [-1, 1], whose probabilities under a
        normal are known to keep their digits in the far tails and for narrow bins. There x is the
        mean of the normal.
        """
        xp, bins = namespace(x), self.squares + 2
        signal, variance = signal_and_variance(self.level)
        unit = self.squares / bins / (signal * self.half_width)  # from x to that scale
        inner = self.backend.asarray([float(i + 1) for i in range(self.squares)])
        centres = level_centres(inner, bins)[:, None, None]
        logvar = self.backend.asarray(log(variance * unit**2))
        costs, pullback = discretised_normal_nll(centres, unit * rows(x).T, logvar, bins)
        slopes = unit * pullback(-xp.ones_like(costs))[0]

        products, gradients = [], []
        for log_p, slope in ((-costs[i::2, :, :], slopes[i::2, :, :]) for i in (0, 1)):
            products.append(xp.sum(logsumexp(log_p, axis=0), axis=0))
            gradients.append(xp.sum(softmax(log_p) * slope, axis=0))
        return xp.stack(products), xp.stack(gradients)


def _equal_discs(backend: Backend, means, variance: float) -> Mixture:
    covariances, means = _discs(len(means), variance), backend.asarray(means)
    return Mixture(backend, ones(means.shape[:1], means), means, covariances)


def _discs(k: int, variance: float):
    """k covariances variance · I."""
    return [[[variance, 0.0], [0.0, variance]]] * k


def _polar(radius, angle):
    """Points (n, 2) at that radius, a number or (n, 1), and angle (n,)."""
    xp = namespace(angle)
    return radius * xp.stack([xp.cos(angle), xp.sin(angle)], axis=1)


def _trapezoid(n: int, born: Backend):
    """Nodes and relative weights on [0, 1] for periodic integrands."""
    u = born.asarray([i / n for i in range(n)])
    return u, ones(u.shape, u)


def _fejer(n: int, born: Backend):
    """Nodes and relative weights on [0, 1] of Fejér's first rule, at the cosines of n equal angles.

    w ∝ 1 - 2 Σ_{j ≤ n/2} cos(2jθ) / (4j² - 1), all positive.
    """
    xp = born.xp
    angle = born.asarray([pi * (i + 0.5) / n for i in range(n)])
    j = born.asarray([float(i + 1) for i in range(n // 2)])
    terms = xp.cos(2.0 * j * angle[:, None]) / (4.0 * j * j - 1.0)
    return 0.5 - 0.5 * xp.cos(angle), 1.0 - 2.0 * xp.sum(terms, axis=1)
