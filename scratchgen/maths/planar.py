"""Densities in the plane that are easy to see and hard to learn: rings, moons, spirals, boards.

Each keeps its log-density, its score and its noised marginals, exactly or by a quadrature that
leaves nothing but rounding, so a model trained on draws from it can be held against the truth.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import ceil, cos, log, pi, sin, sqrt

from scratchgen.core.arrays import Backend, namespace
from scratchgen.core.numerics import level_centres, logsumexp
from scratchgen.maths.densities import Density, Mixture, signal_and_variance, softmax
from scratchgen.maths.distributions import discretised_normal_nll


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
        sparsest = 1.0 if closed else 0.5 * pi  # Fejér's nodes are that much rarer in the middle
        n = 16 + ceil(fineness * sparsest * max(lengths) / sqrt(variance))
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


def rings(
    backend: Backend, radii=(1.0, 2.0), variance: float = 0.01, fineness: float = 2.0
) -> Curve:
    """Concentric circles of equal mass, blurred."""
    pieces = [lambda u, r=r: r * _circle(2.0 * pi * u) for r in radii]
    return Curve(backend, pieces, variance, closed=True, fineness=fineness)


def moons(backend: Backend, variance: float = 0.01, fineness: float = 2.0) -> Curve:
    """Two interleaving half circles of radius 1, blurred, with their mean at the origin."""

    def moon(u, sign):
        xp = namespace(u)
        return sign * (_circle(pi * u) - xp.stack([0.5 + 0.0 * u, 0.25 + 0.0 * u], axis=-1))

    pieces = [partial(moon, sign=1.0), partial(moon, sign=-1.0)]
    return Curve(backend, pieces, variance, closed=False, fineness=fineness)


def spiral(
    backend: Backend,
    arms: int = 2,
    turns: float = 1.5,
    radii=(0.2, 2.0),
    variance: float = 0.01,
    fineness: float = 2.0,
) -> Curve:
    """Arms of an Archimedean spiral from the first radius to the second, uniform in the angle."""

    def arm(u, start):
        r = radii[0] + (radii[1] - radii[0]) * u
        return r[:, None] * _circle(2.0 * pi * (turns * u + start))

    pieces = [partial(arm, start=i / arms) for i in range(arms)]
    return Curve(backend, pieces, variance, closed=False, fineness=fineness)


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
        self.backend, self.level = backend, level
        self.squares, self.half_width = squares, half_width
        # beyond this level √ᾱ x₀ is lost in the rounding of x, but its logarithm must stay finite
        self._signal, self._variance = signal_and_variance(max(level, -80.0))
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
        return xp.sum(softmax(products, axis=-1)[..., None, :] * slopes, axis=-1)

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
            products.append(xp.sum(logsumexp(log_p, axis=-1), axis=-1))
            shares = softmax(log_p, axis=-1)
            gradients.append(xp.sum(shares * slopes[..., first::2], axis=-1))
        return xp.stack(products, axis=-1), xp.stack(gradients, axis=-1)


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
