"""Whether samples look real, and whether they show all there is: measures of support.

Each point of a sample has a ball around it that reaches to its k-th nearest neighbour in the same
sample; the union of the balls stands for the support of the law. Computed on the host in float64.
"""

from typing import NamedTuple

import numpy as np

from scratchgen.core.arrays import to_host
from scratchgen.metrics.distances import pair

NEIGHBOUR = 3


class Coverage(NamedTuple):
    """How two samples cover each other; all but the density lie in [0, 1].

    Attributes:
        precision: the share of the generated points in some ball of a real point.
        recall: the share of the real points in some ball of a generated point.
        density: in how many balls of real points a generated point lies, over k: like the
            precision, but one real point that lies far out counts little. Mean 1 for equal laws.
        coverage: the share of the balls of real points that hold a generated point.
    """

    precision: float
    recall: float
    density: float
    coverage: float


class Modes(NamedTuple):
    """How a sample covers the modes of a mixture of round normals.

    Attributes:
        covered: modes that have at least N/(10 K) good points: a tenth of their fair share.
        modes: K, how many there are.
        high_quality: the share of the N points that are good, within the radius of some mode.
        relative_spread: the root mean square of ‖x - x̄‖/(σ √D) over good points x, where x̄ is the
            mean of those of the same mode; 0 where no point is good. It is near 0 for a sample that
            shows one point of each mode only, which the other measures do not notice. Of many
            normals in the plane and R = 3 it is √(1 - ½ R² e^(-R²/2)/(1 - e^(-R²/2))) = 0.974, for
            lack of the points beyond the radius.
    """

    covered: int
    modes: int
    high_quality: float
    relative_spread: float


def mode_coverage(points, means, deviation: float, radius: float = 3.0) -> Modes:
    """Which modes a sample shows, how much of it lies near one, and how widely.

    A point is good if its nearest mode is at most R standard deviations away, and it counts for
    that mode; the first of several that are as near. A mode with a single good point, which
    [Srivastava 2017] count, may have it by chance: here it takes a tenth of N/K of them.

    Args:
        points: (N, D).
        means: (K, D), the modes, which have equal weights.
        deviation: σ, their standard deviation along every axis, in units of the points.
        radius: R; of a normal in the plane 98.9 % lie within 3.

    Returns:
        Modes.

    Raises:
        ValueError: the shapes do not fit, or a number is not positive.

    Source: [Srivastava 2017]
    """
    x, m = np.asarray(to_host(points), np.float64), np.asarray(to_host(means), np.float64)
    if x.ndim != 2 or m.ndim != 2 or x.shape[1] != m.shape[1] or not (len(x) and len(m)):
        raise ValueError(f"need points (N, D) and means (K, D), got {x.shape} and {m.shape}")
    if not (deviation > 0.0 and radius > 0.0):
        raise ValueError(f"deviation and radius must be positive, got {deviation} and {radius}")
    distance = np.sqrt(((x[:, None] - m) ** 2).sum(axis=-1))
    good, nearest = distance.min(axis=1) <= radius * deviation, distance.argmin(axis=1)
    counts = np.bincount(nearest[good], minlength=len(m))
    groups = (x[good & (nearest == k)] for k in np.flatnonzero(counts))
    squares = sum(float(((group - group.mean(axis=0)) ** 2).sum()) for group in groups)
    return Modes(
        int((10 * len(m) * counts >= len(x)).sum()),
        len(m),
        float(good.mean()),
        float(np.sqrt(squares / (max(1, good.sum()) * m.shape[1]))) / deviation,
    )


def coverage(real, generated, k: int = NEIGHBOUR) -> Coverage:
    """Precision, recall, density and coverage of generated points.

    With balls B(x) = {y: ‖y - x‖ ≤ distance of x to its k-th nearest neighbour}:

        precision = mean_j [y_j in some B(x_i)]        recall   = mean_i [x_i in some B(y_j)]
        density   = mean_j #{i: y_j in B(x_i)} / k     coverage = mean_i [some y_j in B(x_i)]

    All depend on the sizes of the samples. For equal laws and N points each, the coverage is about
    1 - 2⁻ᵏ, and neither precision nor recall is 1.

    Args:
        real: x (N, F), features.
        generated: y (M, F), the same features.
        k: which neighbour; below N and M.

    Returns:
        Coverage.

    Raises:
        ValueError: features are no such matrices, or k is not between 1 and the sizes.

    Source: [Kynkaanniemi 2019], [Naeem 2020]
    """
    rows = np.ones((1, len(real)), bool), np.ones((1, len(generated)), bool)
    return coverages(real, generated, *rows, k)[0]


def coverages(real, generated, kept_real, kept_generated, k: int = NEIGHBOUR) -> list[Coverage]:
    """`coverage` of S selections of the rows, for little more than the time of one.

    Args:
        real: (N, F), features.
        generated: (M, F), the same features.
        kept_real: (S, N) bool, the rows of each selection.
        kept_generated: (S, M) bool.
        k: which neighbour; below the number of rows in each selection.

    Returns:
        S of Coverage.

    Raises:
        ValueError: features are no such matrices, or k is not between 1 and the sizes.

    Source: [Kynkaanniemi 2019], [Naeem 2020]
    """
    real, generated = pair(real, generated, least=2)
    n, m = np.sum(kept_real, axis=1), np.sum(kept_generated, axis=1)
    least = min(*n, *m)
    if not 1 <= k < least:
        raise ValueError(
            f"k must be at least 1 and below the number of points, got k = {k} for {least} points"
        )
    around_real, around_generated = _radii(real, kept_real, k), _radii(generated, kept_generated, k)
    balls = np.zeros(kept_generated.shape)  # of real points, around each generated one
    recalled, covered = np.empty(kept_real.shape, bool), np.empty(kept_real.shape, bool)
    for i, x in enumerate(real):
        distances = _squared_distances(x, generated)
        inside = kept_generated & (distances <= around_real[:, i, None])
        balls += inside
        covered[:, i] = inside.any(axis=1)
        recalled[:, i] = kept_real[:, i] & (distances <= around_generated).any(axis=1)
    shares = (
        np.sum(balls > 0, axis=1) / m,
        np.sum(recalled, axis=1) / n,
        np.sum(balls, axis=1) / (k * m),
        np.sum(covered, axis=1) / n,
    )
    return [Coverage(*map(float, each)) for each in zip(*shares, strict=True)]


def _radii(points, kept, k: int) -> np.ndarray:
    """(S, N): the squared distance of each kept point to its k-th kept neighbour, -1 of others."""
    radii = np.empty(kept.shape)
    for i, x in enumerate(points):
        distances = np.where(kept, _squared_distances(x, points), np.inf)
        radii[:, i] = np.partition(distances, k, axis=1)[:, k]  # the 0-th neighbour is x itself
    return np.where(kept, radii, -1.0)


def _squared_distances(x, points) -> np.ndarray:
    """‖x - y‖² for each y; from differences, as ‖x‖² + ‖y‖² - 2 x·y has no digits for near ones."""
    gap = points - x
    return np.einsum("nf,nf->n", gap, gap)


class ClassOpinions(NamedTuple):
    """What a classifier makes of a sample.

    Attributes:
        confidence: the mean over the sample of the largest p(y|x).
        shares: (K,), the share of the sample that each class is the likeliest of.
    """

    confidence: float
    shares: np.ndarray


def class_opinions(log_probabilities) -> ClassOpinions:
    """How sure a classifier is of a sample, and which classes it sees.

    Args:
        log_probabilities: (N, K), log p(y|x) of each.

    Raises:
        ValueError: rows that are no log-probabilities.
    """
    p = _probabilities(log_probabilities)
    counts = np.bincount(p.argmax(axis=1), minlength=p.shape[1])
    return ClassOpinions(float(p.max(axis=1).mean()), counts / len(p))


def class_score(log_probabilities, splits: int = 10) -> tuple[float, float]:
    """exp E_x KL(p(y|x) ‖ p(y)), where p(y) is the mean of p(y|x): the mean over parts of a sample.

    High where a classifier is sure of each sample and the samples show all classes: it equals
    exp(H(p(y)) - E_x H(p(y|x))), between 1 and the number of classes. It never looks at real data.

    Args:
        log_probabilities: (N, K), log p(y|x) of each sample under some classifier.
        splits: the number of parts, of consecutive samples; each has its own p(y).

    Returns:
        mean over the parts.
        standard deviation over the parts (with 1/splits), by custom; no standard error.

    Raises:
        ValueError: fewer samples than parts, or rows that are no log-probabilities.

    Source: MET-2, [Salimans 2016]
    """
    p = _probabilities(log_probabilities)
    if not 1 <= splits <= len(p):
        raise ValueError(f"need N ≥ splits ≥ 1, got {len(p)} samples and {splits} splits")
    scores = [
        np.exp(_entropy(part.mean(axis=0)) - np.mean(_entropy(part)))
        for part in np.array_split(p, splits)
    ]
    return float(np.mean(scores)), float(np.std(scores))


def _probabilities(log_probabilities) -> np.ndarray:
    """p(y|x): (N, K) float64 on the host."""
    p = np.exp(to_host(log_probabilities).astype(np.float64))
    if p.ndim != 2 or not len(p):
        raise ValueError(f"log-probabilities must be (N, K) with N ≥ 1, got shape {p.shape}")
    if not np.all(np.abs(p.sum(axis=1) - 1.0) < 1e-3):
        raise ValueError("each row must hold the logarithms of probabilities; take log_softmax")
    return p


def _entropy(p):
    """H(p) = -Σ_k p_k log p_k in nats, with 0 log 0 = 0: (..., K) -> (...).

    Source: MET-2
    """
    return -np.sum(p * np.log(p + (p == 0.0)), axis=-1)
