"""A mixture of normals fitted to data by expectation maximisation.

Every covariance gets a ridge ρI, so that no component can collapse onto a point. That is as if each
row were blurred by a normal of variance ρ, which gives component k the unnormalised density

    f_k(x) = exp E log N(x + √ρ ε; m_k, S_k) = N(x; m_k, S_k) e^(-½ρ tr S_k⁻¹)

and the objective J = (1/N) Σ_n log Σ_k w_k f_k(x_n). Its E-step has the shares r_nk ∝ w_k f_k(x_n),
and its M-step is exactly "weighted covariance + ρI". So J never falls, and for ρ > 0 it is bounded
above. At ρ = 0 it is the mean log-likelihood, which a component that collapses onto a row raises
without bound; for ρ > 0 it is less. Rounding reaches J at about D 2⁻⁵² tr S / ρ: beside variances
as large as tr S, one of size ρ is known no better.
"""

from math import inf, log

from scratchgen.core.arrays import full_like, namespace, ones
from scratchgen.core.numerics import logsumexp
from scratchgen.maths.densities import Mixture, identity

KEPT = 1e-30  # the share of a row that holds every component where it was, if nothing else does


def fit_mixture(
    x, components: int, stream, iterations: int = 100, ridge: float = 1e-6
) -> tuple[Mixture, list[float]]:
    """A full-covariance mixture of normals: k-means++ centres, then expectation maximisation.

    EM ends in a local optimum, and which one depends on the centres: restarts are other streams,
    and the fit with the largest J is the one to keep. It has converged if the history is shorter
    than iterations + 1; else the iterations ran out first.

    Args:
        x: (N, D), floating, N ≥ components.
        components: K ≥ 1.
        stream: draws the centres; of x's backend.
        iterations: at most so many.
        ridge: ρ ≥ 0, added to every variance, in squared data units.

    Returns:
        the Mixture, and J before the first and after every iteration.

    Raises:
        ValueError: x is not floating, fewer rows than components, or a number out of its range; or,
            at ridge 0, a component collapsed.

    Source: [Dempster 1977]
    """
    if x.ndim != 2 or not 1 <= components <= x.shape[0]:
        raise ValueError(f"need x (N, D) and 1 ≤ components ≤ N, got {x.shape} and {components}")
    xp = namespace(x)
    if not xp.isdtype(x.dtype, "real floating"):
        raise ValueError(f"x must be floating, got {x.dtype}")
    if not bool(xp.all(xp.isfinite(x))):
        raise ValueError("every number of x must be finite, got some that are not")
    if not (iterations >= 0 and ridge >= 0.0):
        raise ValueError(f"need iterations ≥ 0 and ridge ≥ 0, got {iterations} and {ridge}")
    start = first_mixture(x, components, stream, ridge)
    return expectation_maximisation(x, start, iterations, ridge)


def expectation_maximisation(
    x, mixture: Mixture, iterations: int, ridge: float
) -> tuple[Mixture, list[float]]:
    """EM from a given mixture; it ends early when an iteration gains nothing.

    A component that no row takes any part of keeps its place and gets the weight 0.

    Args:
        x: (N, D).
        mixture: where to start.
        iterations, ridge: as in `fit_mixture`.

    Returns:
        the Mixture, and J before the first and after every iteration.

    Source: [Dempster 1977]
    """
    objective, shares = _expect(x, mixture, ridge)
    history = [objective]
    for _ in range(iterations):
        mixture = _maximise(x, shares, mixture, ridge)
        objective, shares = _expect(x, mixture, ridge)
        history.append(objective)
        if history[-1] <= history[-2]:
            break
    return mixture, history


def first_mixture(x, components: int, stream, ridge: float) -> Mixture:
    """Equal round normals at centres chosen by k-means++.

    The first centre is any row; each next one is a row drawn with probability ∝ its squared
    distance d² to the nearest centre so far. The variance is (1/N) Σ_n d_n²/D + ρ.

    Args:
        x: (N, D).
        components: K.
        stream: draws the centres.
        ridge: ρ ≥ 0.

    Returns:
        a Mixture.

    Source: [Arthur 2007]
    """
    xp = namespace(x)
    chances = ones(x.shape[:1], x)
    far, centres = full_like(chances, inf), []
    for k in range(components):
        below = xp.cumulative_sum(chances)
        passed = below <= stream.at("centre").at(k).uniform((1,)) * below[-1]
        # where all rows are centres already, no chance is left, and any row will do
        row = int(xp.sum(xp.astype(passed, xp.int64))) % x.shape[0]
        centres.append(x[row, :])
        far = xp.minimum(far, xp.sum((x - centres[-1]) ** 2, axis=1))
        chances = far
    variance = float(xp.mean(far)) / x.shape[1] + ridge
    rounds = xp.stack([variance * identity(stream.backend, x.shape[1])] * components)
    return Mixture(stream.backend, ones((components,), x), xp.stack(centres), rounds)


def bic(log_likelihood: float, n: int, k: int, d: int) -> float:
    """The Bayesian information criterion -2 log L + p log n of a mixture; the lowest is best.

    p = k - 1 + k d + k d (d + 1)/2 numbers are free: weights, means, covariances.

    Args:
        log_likelihood: log L, summed over the rows, in nats.
        n, k, d: rows, components, dimensions.

    Returns:
        in nats.

    Source: [Schwarz 1978]
    """
    free = k - 1 + k * d + k * d * (d + 1) // 2
    return free * log(n) - 2.0 * log_likelihood


def _expect(x, mixture: Mixture, ridge: float):
    """J, and the shares r (N, K) of the components in every row."""
    xp = namespace(x)
    precisions = xp.linalg.inv(mixture.covariances)
    penalty = 0.5 * ridge * xp.linalg.trace(precisions)
    log_joint = mixture.log_joint(x) - penalty
    log_total = logsumexp(log_joint)
    return float(xp.mean(log_total)), xp.exp(log_joint - log_total[:, None])


def _maximise(x, shares, before: Mixture, ridge: float) -> Mixture:
    """The mixture that fits the rows best, given the shares (N, K)."""
    xp = namespace(x)
    taken = xp.sum(shares, axis=0)
    held = taken + KEPT
    means = (shares.T @ x + KEPT * before.means) / held[:, None]
    scatters = []
    for k in range(means.shape[0]):
        apart = x - means[k, :]
        scatter = (shares[:, k : k + 1] * apart).T @ apart
        scatters.append(0.5 * (scatter + scatter.T))
    blur = taken[:, None, None] * ridge * identity(before.backend, x.shape[1])
    covariances = (xp.stack(scatters) + blur + KEPT * before.covariances) / held[:, None, None]
    return Mixture(before.backend, taken, means, covariances)
