"""A Monte Carlo check with stated power and stated false-alarm rate.

`assert_mean` compares a simulated mean with a number and has three outcomes. It passes only when
the data *prove* that the two are closer than a resolution; it fails as soon as they prove that the
two differ; and it fails as underpowered when the samples run out before either is proved. So a
weak test cannot pass, and a correct formula fails with probability at most alpha.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import erfc, exp, inf, log, pi, sqrt

import numpy as np

Draw = Callable[[int, int], np.ndarray | tuple[np.ndarray, np.ndarray]]


class MonteCarloFailure(AssertionError):
    """The simulated mean provably differs from the expected number."""


class Underpowered(AssertionError):
    """The samples ran out before anything was proved: the check is too weak as it stands."""


@dataclass(frozen=True)
class Check:
    """What one passed check cost and found.

    Attributes:
        samples: drawn at the last look.
        looks: how many looks were taken.
        z: the difference at the last look, in standard errors (widened by rounding).
        resolution: the largest error the check could have let pass.
        alpha: its share of the false-alarm budget.
    """

    samples: int
    looks: int
    z: float
    resolution: float
    alpha: float


checks: list[Check] = []
"""Every check passed in this process; a test session sums their alphas into its budget."""


def default_resolution(expected: float, spread: float) -> float:
    """The default resolution: 2 % of the value, or of the spread of what is averaged, if larger."""
    return 0.02 * max(abs(expected), spread)


def assert_mean(
    draw: Draw,
    expected: float,
    resolution: float,
    alpha: float = 1e-9,
    spread: float | None = None,
    first: int = 4096,
    growth: int = 4,
    most: int = 2**22,
) -> Check:
    """Prove |E X - expected| < resolution by simulation, or raise.

    Look k = 0, 1, 2, ... takes n_k = first·growthᵏ fresh samples and may err with probability
    alpha/2^(k+1), so looking again costs nothing: the total stays below alpha. With h the
    half-width of the interval at that level and d = |mean - expected|:

        d > h              →  MonteCarloFailure
        d + h ≤ resolution →  pass
        otherwise          →  look again, Underpowered when n would exceed `most`

    Nothing is decided before n is large enough for the sample's skewness and kurtosis (the next
    terms of Cramér's expansion of the tail). Samples that are all equal, but for rounding, prove
    nothing by themselves, since a rare value may be unseen; they pass only under a known bound on
    |X - expected|, by P(unseen) = (1 - p)^n. Samples whose variance the controls remove entirely
    are taken as exact.

    The guarantees hold up to these corrections of the normal approximation, that is, not for
    values so rare that a sample holds none or only a handful of them.

    Args:
        draw: (n, look) -> (n,) independent samples, or -> (samples, controls) where controls
            (n, c) have mean 0 and are regressed out. Each look must use fresh randomness.
        expected: the number to be confirmed.
        resolution: an error of this size or more passes with probability at most alpha.
        alpha: the probability of a false alarm, and of a false pass.
        spread: a bound on |X - expected|, needed where X may be constant.
        first, growth, most: sample sizes.

    Returns:
        Check, which is also appended to `checks`.

    Raises:
        MonteCarloFailure: the means provably differ.
        Underpowered: nothing was proved within `most` samples.
        ValueError: the resolution is not positive.

    Source: [Berger 1996]
    """
    if not resolution > 0.0:
        raise ValueError(f"the resolution must be positive, got {resolution}")
    n, look = first, 0
    while n <= most:
        sample = _estimate(draw(n, look))
        share = alpha * 0.5 ** (look + 1)
        z = normal_quantile(share)
        rounding = 1e-13 * max(1.0, abs(expected), abs(sample.mean))
        half_width, distance = z * sample.error + rounding, abs(sample.mean - expected)
        if sample.constant:
            # of a value seen in none of n samples, the mass is below log(1/share)/n
            unseen = log(1.0 / share) * 2.0 * spread / n if spread is not None else inf
            half_width = max(half_width, unseen)
        skewed = (z**3 * abs(sample.skewness) / 3.0) ** 2
        peaked = z**4 * abs(sample.kurtosis) / 12.0
        if n >= max(skewed, peaked):
            errors = distance / (half_width / z)
            if distance > half_width:
                raise MonteCarloFailure(
                    f"simulated {sample.mean:.8g} ± {sample.error:.2g} but expected "
                    f"{expected:.8g}: {errors:.1f} standard errors, n = {n}"
                )
            if distance + half_width <= resolution:
                passed = Check(n, look + 1, errors, resolution, alpha)
                checks.append(passed)
                return passed
        n, look = n * growth, look + 1
    raise Underpowered(
        f"{n // growth} samples give {sample.mean:.8g} ± {sample.error:.2g} (skewness "
        f"{sample.skewness:.2g}, kurtosis {sample.kurtosis:.2g}); proving it within "
        f"{resolution:.2g} of {expected:.8g} needs more samples or control variates"
    )


@dataclass(frozen=True)
class _Sample:
    """Moments of a sample, after the controls; kurtosis is 0 for a normal distribution."""

    mean: float
    error: float
    skewness: float
    kurtosis: float
    constant: bool


def _estimate(drawn) -> _Sample:
    """The moments, with controls regressed out where there are any."""
    controlled = isinstance(drawn, tuple)
    values = np.asarray(drawn[0] if controlled else drawn, dtype=np.float64)
    columns = [np.ones((len(values), 1))]
    if controlled:
        columns.append(np.asarray(drawn[1], dtype=np.float64))
    design = np.concatenate(columns, axis=1)
    gram = np.linalg.inv(design.T @ design)
    coefficients = gram @ (design.T @ values)
    rest = values - design @ coefficients
    variance = float(rest @ rest) / (len(values) - design.shape[1])
    error = sqrt(variance * float(gram[0, 0]))
    scale = max(1.0, float(np.abs(values).max()))
    if variance < (1e-12 * scale) ** 2:  # nothing but rounding is left, and it has no shape
        return _Sample(float(coefficients[0]), error, 0.0, 0.0, constant=not controlled)
    scaled = rest / sqrt(variance)
    skewness, kurtosis = float(np.mean(scaled**3)), float(np.mean(scaled**4)) - 3.0
    return _Sample(float(coefficients[0]), error, skewness, kurtosis, constant=False)


def normal_quantile(alpha: float) -> float:
    """z with P(|N(0, 1)| > z) = alpha, by Newton's method on log erfc.

    Args:
        alpha: in (0, 1).
    """
    z = sqrt(max(2.0 * log(1.0 / alpha), 1e-3))
    for _ in range(60):
        tail = erfc(z / sqrt(2.0))
        slope = -sqrt(2.0 / pi) * exp(-0.5 * z * z) / tail
        z -= (log(tail) - log(alpha)) / slope
    return z
