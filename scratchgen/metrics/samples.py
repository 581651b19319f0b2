"""Samples beside real data: every distance with its standard error and its floor.

A distance between finite samples is not 0 even where the laws are equal. So the same distance is
taken between two samples of real data of the same sizes: the floor, which no model need get below.
"""

import numpy as np

from scratchgen.core.arrays import to_host
from scratchgen.core.streams import Stream
from scratchgen.metrics.coverage import NEIGHBOUR, Coverage, coverages
from scratchgen.metrics.distances import (
    features,
    frechet_distance,
    kernel_distance,
    sliced_wasserstein,
)

GROUPS = 10
LEAST = 2 * GROUPS  # rows, so that every group holds two at least

Row = dict[str, float | int]


def compare(
    real, reference, generated, stream: Stream, named: str = "features", k: int = NEIGHBOUR
) -> dict[str, Row]:
    """Every distance of generated samples from real data, and of other real data from the same.

    All depend on the number of samples but the kernel distance, so as many of the reference as of
    the generated are used, the first of each: the smaller number of the two. The rows must stand in
    random order.

    The standard errors are over all the samples: the kernel distance has its own, the others
    `jackknife_errors`.

    Args:
        real: (N, F), features of real data that no model was trained on.
        reference: (N', F), of other real data, such as the training set.
        generated: (M, F), of samples.
        stream: draws the directions of the sliced Wasserstein distance.
        named: what the features are, for the names of the distances.
        k: the neighbour that coverage is judged by.

    Returns:
        name -> {"value", "error", "floor", "floor_error", "n_real", "n_reference", "n_generated"},
        where the last two are equal.

    Raises:
        ValueError: features are no matrices of at least LEAST rows, or differ in F.
    """
    real, reference, generated = (features(a, LEAST) for a in (real, reference, generated))
    n = min(len(reference), len(generated))
    found = _measure(real, generated[:n], stream, k)
    floor = _measure(real, reference[:n], stream, k)
    sizes = {"n_real": len(real), "n_reference": n, "n_generated": n}
    return {
        f"{name} on {named}": {
            "value": value,
            "error": error,
            "floor": floor[name][0],
            "floor_error": floor[name][1],
            **sizes,
        }
        for name, (value, error) in found.items()
    }


def _measure(real, other, stream: Stream, k: int) -> dict[str, tuple[float, float]]:
    """Name -> (value, standard error)."""
    kept = _selections(len(real)), _selections(len(other))
    distances = [
        (frechet_distance(a, b), sliced_wasserstein(a, b, stream))
        for a, b in ((real[rows], other[others]) for rows, others in zip(*kept, strict=True))
    ]
    statistics = np.hstack([distances, coverages(real, other, *kept, k)])
    names = ["Fréchet distance", "sliced Wasserstein distance", *Coverage._fields]
    pairs = zip(statistics[0].tolist(), jackknife_errors(statistics[1:]).tolist(), strict=True)
    found = dict(zip(names, pairs, strict=True))
    return {"kernel distance": kernel_distance(real, other), **found}


def _selections(n: int) -> np.ndarray:
    """(1 + GROUPS, n) bool: all rows, then all but the g-th, (g + GROUPS)-th, ... for each g."""
    rows = np.arange(n) % GROUPS
    return np.stack([rows >= 0, *(rows != group for group in range(GROUPS))])


def sharpness(real, generated) -> float:
    """How much neighbouring pixels differ, in units of real images: 1 for those, less if blurred.

        mean |y_i - y_j| over generated images / mean |x_i - x_j| over real ones,

    over all pixels i, j that lie side by side or one above the other. A mean of images never has
    more of it than they have on average. Noise adds to it, so above 1 it is no praise.

    Args:
        real: x (N, H, W, C).
        generated: y (M, H, W, C), in the same units.

    Returns:
        ≥ 0, without a unit.

    Raises:
        ValueError: there are no images of one shape, or no real pixel differs from its neighbour.
    """
    real, generated = (np.asarray(to_host(a), np.float64) for a in (real, generated))
    if real.ndim != 4 or real.shape[1:] != generated.shape[1:] or not (real.size * generated.size):
        raise ValueError(
            f"need images (N, H, W, C) of one shape, got {real.shape} and {generated.shape}"
        )
    of_real, of_generated = map(_mean_step, (real, generated))
    if of_real == 0.0:
        raise ValueError("real images must not be flat: in these no pixel differs from the next")
    return of_generated / of_real


def _mean_step(x) -> float:
    """mean |x_i - x_j| over neighbouring pixels of images (N, H, W, C); 0 where none has one."""
    steps = [np.abs(np.diff(x, axis=axis)) for axis in (1, 2)]
    count = sum(step.size for step in steps)
    return float(sum(step.sum() for step in steps) / count) if count else 0.0


def jackknife_errors(without) -> np.ndarray:
    """Standard errors of statistics of independent samples: the delete-a-group jackknife.

    With θ_g a statistic without the g-th of G equal groups of every sample:

        error² = (G - 1)/G Σ_g (θ_g - θ̄)²

    A bias that depends on the sample sizes is the same in every θ_g and drops out. For statistics
    that are smooth, error² is right on average, and the error uncertain by 1/√(2G - 2) of itself.
    It errs on the high side where a statistic is of second order, as distances between samples of
    one law are, by √2; and where it counts neighbours, by half typically and up to twice.

    Args:
        without: θ (G, S), of S statistics.

    Returns:
        (S,).

    Source: [Kott 2001], [Efron 1981]
    """
    return np.sqrt((len(without) - 1.0) * np.var(without, axis=0))
