"""How far apart two samples are, judged by their features: one row of F numbers for each example.

A number belongs to the features it was computed on and to the sizes of both samples, so say both:
"Fréchet distance on <features>, N = ...". Computed on the host in float64.
"""

from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import numpy as np

from scratchgen.core.arrays import to_host
from scratchgen.core.streams import Stream
from scratchgen.maths.gaussian import symmetric

BLOCK = 1024  # rows of a kernel matrix at once
LINES = 32  # directions at once


@dataclass(frozen=True)
class Moments:
    """The mean m of a law on features, and a factor of its covariance S = Aᵀ A.

    Attributes:
        mean: (F,).
        factor: A (R, F), of any number of rows.
    """

    mean: np.ndarray
    factor: np.ndarray


def sample_moments(a) -> Moments:
    """Mean and covariance (with 1/(N-1)) of a sample; the factor is R of the QR decomposition.

    Args:
        a: (N, F), N ≥ 2; N may be smaller than F.

    Raises:
        ValueError: a is no such matrix, or a number is not finite.
    """
    a = features(a, least=2)
    mean = a.mean(axis=0)
    return Moments(mean, np.linalg.qr((a - mean) / np.sqrt(len(a) - 1.0)).R)


def normal_moments(mean, covariance) -> Moments:
    """Moments of a law that is known, such as a normal distribution.

    Args:
        mean: (F,).
        covariance: (F, F), symmetric and positive semi-definite.

    Raises:
        ValueError: the shapes do not fit, a number is not finite, or the covariance is not
            symmetric or has a negative eigenvalue.
    """
    mean, covariance = (np.asarray(a, dtype=np.float64) for a in (mean, covariance))
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise ValueError(
            f"need a mean (F,) and a covariance (F, F), got {mean.shape} and {covariance.shape}"
        )
    finite = np.isfinite(mean).all() and np.isfinite(covariance).all()
    if not (finite and symmetric(covariance)):
        raise ValueError(
            "mean and covariance must be finite, and the covariance symmetric, got "
            f"{mean} and {covariance}"
        )
    values, vectors = np.linalg.eigh(covariance)
    if values[0] < -1e-10 * values[-1]:
        raise ValueError(f"a covariance has no negative eigenvalue, got {values[0]:.3g}")
    factor = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    return Moments(mean, factor)


def frechet_distance(a, b) -> float:
    """‖m_a - m_b‖² + tr(S_a + S_b - 2 (S_a S_b)^{1/2}): `frechet_from_moments` of two samples.

    It is biased: N draws from N(m, I) are about (F + F(F+1)/4)/N away from the law itself, in other
    units and for other shapes proportionally to 1/N too, so values at different N do not compare.

    Args:
        a, b: (N, F) and (M, F).

    Returns:
        Squared feature units, ≥ 0.

    Raises:
        ValueError: a or b is no matrix of finite numbers, or they have not the same F.

    Source: MET-1
    """
    a, b = pair(a, b, least=2)
    return frechet_from_moments(sample_moments(a), sample_moments(b))


def frechet_from_moments(p: Moments, q: Moments) -> float:
    """‖m_p - m_q‖² + tr(S_p + S_q - 2 (S_p S_q)^{1/2}), the squared distance of two normal laws.

    With S_p = Aᵀ A, S_q = Bᵀ B and A Bᵀ = U Σ Vᵀ, the trace of the root is the nuclear norm
    ‖A Bᵀ‖_* = tr Σ, and

        tr S_p + tr S_q - 2 tr Σ = ‖A - U Vᵀ B‖_F²

    A sum of squares: nothing cancels, it cannot be negative, singular covariances need no care, and
    equal laws are 0 to the last digits, where a matrix square root leaves 1e-3 or a complex number.

    Args:
        p, q: moments on the same features.

    Returns:
        Squared feature units, ≥ 0.

    Source: MET-1, [Dowson 1982], [Heusel 2017]
    """
    few, many = sorted((p.factor, q.factor), key=len)
    u, _, v = np.linalg.svd(many @ few.T, full_matrices=False)
    gap = many - u @ (v @ few)
    return float(np.sum((p.mean - q.mean) ** 2) + np.sum(gap * gap))


class _Sums(NamedTuple):
    """Sums of a kernel matrix: of each row, of each column, and of the squares of all entries."""

    rows: np.ndarray
    columns: np.ndarray
    squares: float

    @property
    def total(self) -> float:
        return float(self.rows.sum())


def kernel_distance(a, b) -> tuple[float, float]:
    """The squared maximum mean discrepancy under k(a, b) = (a·b/F + 1)³, unbiased.

        E k(a, a') + E k(b, b') - 2 E k(a, b),   each mean over distinct pairs

    Without bias at every N, so values at different N compare, and equal laws give 0 on average: a
    value may be negative.

    The value is a U-statistic. Its variance has a part of first order in 1/N, which is 0 for equal
    laws, and one of second order, D. The jackknife's J counts D twice, and doubly centred kernel
    matrices give D without bias, so J - D is right on average. But J is noisy where the laws are
    nearly equal, so the variance is taken as max(J - D, D/2). (It cannot be less than D; but D as
    the bound would make standard errors of nearly equal laws too large by up to a quarter.)

    Args:
        a, b: (N, F) and (M, F), N, M ≥ 4.

    Returns:
        value: no unit.
        standard_error: of the value, over both samples.

    Raises:
        ValueError: a or b is no such matrix, or they have not the same F.

    Source: [Binkowski 2018], [Gretton 2012], [Efron 1981], [Szekely 2014]
    """
    a, b = pair(a, b, least=4)
    n, m = len(a), len(b)
    aa, bb, ab = (
        _kernel_sums(a, a, itself=True),
        _kernel_sums(b, b, itself=True),
        _kernel_sums(a, b),
    )
    value = aa.total / (n * (n - 1)) + bb.total / (m * (m - 1)) - 2.0 * ab.total / (n * m)
    of_a = float(np.var(aa.rows / (n - 1) - ab.rows / m, ddof=1))
    of_b = float(np.var(bb.rows / (m - 1) - ab.columns / n, ddof=1))
    jackknife = 4.0 * of_a / n + 4.0 * of_b / m
    second = (
        2.0 * _interaction_within(aa) / (n * (n - 1))
        + 2.0 * _interaction_within(bb) / (m * (m - 1))
        + 4.0 * _interaction_between(ab) / (n * m)
    )
    return value, sqrt(max(jackknife - second, 0.5 * second))


def _kernel_sums(a, b, itself: bool = False) -> _Sums:
    """Sums of k(a_i, b_j), and without i = j where b is a itself."""
    rows, columns, squares = np.empty(len(a)), np.zeros(len(b)), 0.0
    for start in range(0, len(a), BLOCK):
        some = a[start : start + BLOCK]
        base = some @ b.T / a.shape[1] + 1.0
        kernel = base * base * base
        if itself:
            own = np.arange(len(some))
            kernel[own, start + own] = 0.0
        rows[start : start + BLOCK] = kernel.sum(axis=1)
        columns += kernel.sum(axis=0)
        squares += float(np.sum(kernel * kernel))
    return _Sums(rows, columns, squares)


def _interaction_within(sums: _Sums) -> float:
    """E [k(x, x') - μ(x) - μ(x') + E k]² with μ(x) = E k(x, x'), without bias, from off-diagonals.

    Source: [Szekely 2014]
    """
    n = len(sums.rows)
    means = 2.0 * np.sum(sums.rows**2) / (n - 2) - sums.total**2 / ((n - 1) * (n - 2))
    return max(float(sums.squares - means) / (n * (n - 3)), 0.0)  # below 0 by rounding only


def _interaction_between(sums: _Sums) -> float:
    """E [k(x, y) - E_y k - E_x k + E k]² for two independent samples, without bias."""
    n, m = len(sums.rows), len(sums.columns)
    means = np.sum(sums.rows**2) / m + np.sum(sums.columns**2) / n - sums.total**2 / (n * m)
    return max(float(sums.squares - means) / ((n - 1) * (m - 1)), 0.0)


def sliced_wasserstein(a, b, stream: Stream, directions: int = 128) -> float:
    """The mean over random unit vectors u of the Wasserstein distance of a·u and b·u.

        W(p, q) = ∫ |F_p(x) - F_q(x)| dx,   exact for samples of any two sizes

    The same stream gives the same directions, so values of different samples compare.

    Args:
        a, b: (N, F) and (M, F).
        stream: draws the directions.
        directions: how many.

    Returns:
        Feature units, ≥ 0.

    Raises:
        ValueError: a or b is no matrix of finite numbers, they have not the same F, or there are no
            directions.

    Source: [Bonneel 2015]
    """
    a, b = pair(a, b, least=1)
    if directions < 1:
        raise ValueError(f"there must be at least one direction, got {directions}")
    u = to_host(stream.normal((directions, a.shape[1]))).astype(np.float64)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    cuts = [u[first : first + LINES].T for first in range(0, directions, LINES)]
    return float(np.mean(np.concatenate([_wasserstein(a @ some, b @ some) for some in cuts])))


def _wasserstein(a, b) -> np.ndarray:
    """(N, L) and (M, L) -> (L,), column by column."""
    n, m = len(a), len(b)
    both = np.concatenate([a, b])
    order = np.argsort(both, axis=0)
    widths = np.diff(np.take_along_axis(both, order, axis=0), axis=0)
    # N·M·(F_a - F_b) between neighbours, counted in whole numbers
    steps = np.concatenate([np.full(n, m), np.full(m, -n)])
    gaps = np.cumsum(steps[order], axis=0)[:-1]
    return np.sum(np.abs(gaps) * widths, axis=0) / (n * m)


def pair(a, b, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Two samples on the same features, as `features` makes them.

    Raises:
        ValueError: a or b is no such sample, or they have not the same F.
    """
    a, b = features(a, least), features(b, least)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"both samples need the same features, got {a.shape[1]} and {b.shape[1]} a row"
        )
    return a, b


def features(a, least: int) -> np.ndarray:
    """A sample's features as host float64 (N, F).

    Raises:
        ValueError: it is no matrix of at least `least` rows, or a number is not finite.
    """
    a = to_host(a).astype(np.float64)
    if a.ndim != 2 or len(a) < least or a.shape[1] < 1:
        raise ValueError(
            f"features must be (N, F) with N ≥ {least}, got shape {a.shape}; "
            "flatten images, or draw more samples"
        )
    if not np.isfinite(a).all():
        raise ValueError("a feature is not finite; look for the sample that made it so")
    return a
