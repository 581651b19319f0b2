"""Monte Carlo checks with stated power and stated false-alarm rate.

`assert_mean` compares a simulated mean with a number, `assert_law` a sampler with a distribution.
Both have three outcomes. They pass only when the data *prove* that the two are closer than a
resolution; they fail as soon as the data prove that the two differ; and they fail as underpowered
when the samples run out before either is proved. So a weak test cannot pass, and a correct
formula fails with probability at most alpha.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import ceil, inf, log, sqrt
from statistics import NormalDist

import numpy as np

Draw = Callable[[int, int], np.ndarray | tuple[np.ndarray, np.ndarray]]


class MonteCarloFailure(AssertionError):
    """The simulation provably differs from what was expected."""


class Underpowered(AssertionError):
    """The samples ran out before anything was proved: the check is too weak as it stands."""


@dataclass(frozen=True)
class Check:
    """What one passed check cost and found.

    Attributes:
        samples: drawn at the last look.
        looks: how many looks were taken.
        z: the difference at the last look, in standard errors: of the mean, widened by rounding;
            or of a distribution function at its median, 1/√(4n).
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


def enough_samples(spread: float, resolution: float, alpha: float = 1e-9) -> int:
    """How many samples decide at the first look, but for one time in 300: ((z + 3)·spread/res.)².

    Args:
        spread: the standard deviation of the samples, after the controls.
        resolution, alpha: as for `assert_mean`, whose `first` this is.
    """
    return ceil(((normal_quantile(0.5 * alpha) + 3.0) * spread / resolution) ** 2)


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
    |X - expected|, by P(unseen) = (1 - p)^n.

    Samples whose variance the controls remove entirely are taken as exact: each is a constant plus
    a combination of controls of mean 0, and the constant is compared with `expected`. Such a check
    is an identity on the samples drawn, and no probability bounds what they do not show: a rare
    value that none of them takes stays unseen. It is recorded with alpha all the same, for the
    budget is set before the samples are seen.

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
        MonteCarloFailure: the means provably differ, or a sample is not finite.
        Underpowered: nothing was proved within `most` samples.
        ValueError: resolution, alpha or growth is out of its range, `first` exceeds `most`, or a
            draw has not the shape above.

    Source: [Berger 1996]
    """
    for n, look, share in _looks(resolution, alpha, first, growth, most):
        sample = _estimate(_counted(draw(n, look), n))
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
                return _registered(Check(n, look + 1, errors, resolution, alpha))
    raise Underpowered(
        f"{n} samples give {sample.mean:.8g} ± {sample.error:.2g} (skewness "
        f"{sample.skewness:.2g}, kurtosis {sample.kurtosis:.2g}); proving it within "
        f"{resolution:.2g} of {expected:.8g} needs more samples or control variates"
    )


def assert_law(
    draw: Callable[[int, int], np.ndarray],
    resolution: float,
    alpha: float = 1e-9,
    first: int = 4096,
    growth: int = 4,
    most: int = 2**22,
) -> Check:
    """Prove sup_u |F(u) - u| < resolution by simulation, or raise: F is the law of the samples.

    A sample put through its own distribution function (the probability integral transform) is
    uniform on [0, 1]. So this holds a sampler against a distribution function, to within a
    probability of `resolution` for every event {X ≤ x}. The interval is that of Dvoretzky, Kiefer
    and Wolfowitz, with Massart's constant; it holds for every law and every n:

        P(sup |F_n - F| > h) ≤ 2 e^(-2nh²)

    Looks and outcomes are those of `assert_mean`, with d = sup_u |F_n(u) - u|.

    Args:
        draw: (n, look) -> (n,) independent values in [0, 1], fresh at each look.
        resolution: a distance of this size or more passes with probability at most alpha.
        alpha: the probability of a false alarm, and of a false pass.
        first, growth, most: sample sizes.

    Returns:
        Check, which is also appended to `checks`.

    Raises:
        MonteCarloFailure: the values are provably not uniform, or one is not finite.
        Underpowered: nothing was proved within `most` samples.
        ValueError: resolution, alpha or growth is out of its range, `first` exceeds `most`, or a
            draw has not the shape above.

    Source: [Massart 1990]
    """
    for n, look, share in _looks(resolution, alpha, first, growth, most):
        values = np.sort(_counted(draw(n, look), n))
        steps = np.arange(n + 1) / n
        distance = float(max(np.max(steps[1:] - values), np.max(values - steps[:-1])))
        half_width = sqrt(log(2.0 / share) / (2.0 * n))
        if distance > half_width:
            raise MonteCarloFailure(
                f"the empirical distribution of {n} samples is {distance:.3g} from the uniform, "
                f"where chance allows {half_width:.3g}"
            )
        if distance + half_width <= resolution:
            return _registered(Check(n, look + 1, distance * sqrt(4.0 * n), resolution, alpha))
    raise Underpowered(
        f"{n} samples are {distance:.2g} ± {half_width:.2g} from the uniform; proving less than "
        f"{resolution:.2g} needs more samples"
    )


def _looks(
    resolution: float, alpha: float, first: int, growth: int, most: int
) -> Iterator[tuple[int, int, float]]:
    """(n, look, the look's share of alpha), as long as n ≤ most; the shares sum to alpha."""
    if not (resolution > 0.0 and 0.0 < alpha < 1.0 and growth >= 2):
        raise ValueError(
            "need a positive resolution, alpha between 0 and 1 and growth ≥ 2, got "
            f"{resolution}, {alpha} and {growth}"
        )
    if first > most:
        raise ValueError(f"the first look takes {first} samples, more than the {most} allowed")
    n, look = first, 0
    while n <= most:
        yield n, look, alpha * 0.5 ** (look + 1)
        n, look = n * growth, look + 1


def _counted(drawn, n: int):
    """What was drawn, if it is n samples: one number each, and one row of controls where there are.

    Raises:
        ValueError: it is not.
        MonteCarloFailure: a number is not finite.
    """
    parts = drawn if isinstance(drawn, tuple) else (drawn,)
    values, *controls = map(np.shape, parts)
    if values != (n,) or any(len(shape) != 2 or shape[0] != n for shape in controls):
        raise ValueError(
            f"a draw of {n} samples must have shape ({n},), and its controls ({n}, c), got "
            + " and ".join(map(str, (values, *controls)))
        )
    if not all(np.isfinite(part).all() for part in parts):
        raise MonteCarloFailure(f"of {n} samples some are not finite, so they have no mean")
    return drawn


def _registered(check: Check) -> Check:
    checks.append(check)
    return check


@dataclass(frozen=True)
class _Sample:
    """Moments of a sample, after the controls; kurtosis is 0 for a normal distribution."""

    mean: float
    error: float
    skewness: float
    kurtosis: float
    constant: bool


def _estimate(drawn) -> _Sample:
    """The moments, with controls regressed out where there are any: least squares at controls 0."""
    controlled = isinstance(drawn, tuple)
    values = np.asarray(drawn[0] if controlled else drawn, dtype=np.float64)
    n = len(values)
    controls = np.asarray(drawn[1], dtype=np.float64) if controlled else np.empty((n, 0))
    average, middle = np.mean(values), np.mean(controls, axis=0)
    centred, apart = values - average, controls - middle
    solved = partial(np.linalg.solve, apart.T @ apart)
    slopes = solved(apart.T @ centred)
    mean = float(average - np.sum(middle * slopes))
    rest = centred - apart @ slopes
    # sums and not BLAS, whose threads cost more than they save here
    squares = rest * rest
    variance = float(np.sum(squares)) / (n - 1 - controls.shape[1])
    error = sqrt(variance * float(1.0 / n + np.sum(middle * solved(middle))))
    scale = max(1.0, float(np.max(np.abs(values))))
    if variance < (1e-12 * scale) ** 2:  # nothing but rounding is left, and it has no shape
        return _Sample(mean, error, 0.0, 0.0, constant=not controlled)
    skewness = float(np.sum(squares * rest)) / (n * variance**1.5)
    kurtosis = float(np.sum(squares * squares)) / (n * variance**2) - 3.0
    return _Sample(mean, error, skewness, kurtosis, constant=False)


def normal_quantile(alpha: float) -> float:
    """z with P(|N(0, 1)| > z) = alpha, for alpha in (0, 1)."""
    return -NormalDist().inv_cdf(0.5 * alpha)
