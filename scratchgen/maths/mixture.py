"""A mixture of normals fitted to data by expectation maximisation.

Every covariance gets a ridge ρI, so that no component can collapse onto a point. That is as if each
row were blurred by a normal of variance ρ, which gives component k the unnormalised density

    f_k(x) = exp E log N(x + √ρ ε; m_k, S_k) = N(x; m_k, S_k) e^(-½ρ tr S_k⁻¹)

and the objective J = (1/N) Σ_n log Σ_k w_k f_k(x_n). Its E-step has the shares r_nk ∝ w_k f_k(x_n),
and its M-step is exactly "weighted covariance + ρI". So J never falls, and it is bounded above. At
ρ = 0 it is the mean log-likelihood, otherwise less. Rounding reaches J at about D 2⁻⁵² tr S / ρ:
beside variances as large as tr S, one of size ρ is known no better.
"""

from math import log

from scratchgen.core.arrays import namespace
from scratchgen.core.numerics import logsumexp
from scratchgen.maths.densities import Mixture

FEWEST_ROWS = 1e-30  # a component that holds less than this share of a row is empty


def fit_mixture(
    x, components: int, stream, iterations: int = 100, ridge: float = 1e-6, tolerance: float = 1e-6
) -> tuple[Mixture, list[float]]:
    """A full-covariance mixture of normals: k-means++ centres, then expectation maximisation.

    Args:
        x: (N, D), N ≥ components.
        components: K ≥ 1.
        stream: draws the centres; of x's backend.
        iterations: at most so many.
        ridge: ρ ≥ 0, added to every variance, in squared data units.
        tolerance: stop when J gains less, in nats.

    Returns:
        the Mixture, and J before the first and after every iteration.

    Raises:
        ValueError: fewer rows than components, or a number out of its range; or, at ridge 0, a
            component collapsed.

    Source: [Dempster 1977]
    """
    if x.ndim != 2 or not 1 <= components <= x.shape[0]:
        raise ValueError(f"need x (N, D) and 1 ≤ components ≤ N, got {x.shape} and {components}")
    if not bool(namespace(x).all(namespace(x).isfinite(x))):
        raise ValueError("every number of x must be finite, got some that are not")
    if not (iterations >= 0 and ridge >= 0.0):
        raise ValueError(f"need iterations ≥ 0 and ridge ≥ 0, got {iterations} and {ridge}")
    start = first_mixture(x, components, stream, ridge)
    return expectation_maximisation(x, start, iterations, ridge, tolerance)


def expectation_maximisation(
    x, mixture: Mixture, iterations: int, ridge: float, tolerance: float = 0.0
) -> tuple[Mixture, list[float]]:
    """EM from a given mixture, as in `fit_mixture`.

    A component that no row takes any part of keeps its place and gets the weight 0.

    Args:
        x: (N, D).
        mixture: where to start.
        iterations, ridge, tolerance: as in `fit_mixture`.

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
        if history[-1] - history[-2] < tolerance:
            break
    return mixture, history


def first_mixture(x, components: int, stream, ridge: float = 1e-6) -> Mixture:
    """Equal weights at centres chosen by k-means++, with the scatter around the nearest centre.

    The first centre is any row; each next one is row n with probability ∝ its squared distance to
    the nearest centre so far.

    Args:
        x: (N, D).
        components: K.
        stream: draws the centres.
        ridge: ρ, added to the variances.

    Returns:
        a Mixture of equal covariances.

    Source: [Arthur 2007]
    """
    xp = namespace(x)
    centres = [_drawn_row(x, xp.ones_like(x[:, 0]), stream.at("centre", 0))]
    nearest = xp.broadcast_to(centres[0], x.shape)
    for k in range(1, components):
        far = xp.sum((x - nearest) ** 2, axis=1)
        centres.append(_drawn_row(x, far, stream.at("centre", k)))
        closer = xp.sum((x - centres[k]) ** 2, axis=1) < far
        nearest = xp.where(closer[:, None], centres[k], nearest)
    apart = x - nearest
    scatter = apart.T @ apart / x.shape[0] + ridge * _identity(x)
    covariances = xp.stack([scatter] * components, axis=0)
    weights = [1.0 / components] * components
    return Mixture(stream.backend, weights, xp.stack(centres, axis=0), covariances)


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


def _drawn_row(x, chances, stream):
    """A row of x, drawn with probability ∝ chances (N,); the last one where all are 0."""
    xp = namespace(x)
    below = xp.cumulative_sum(chances)
    passed = xp.sum(xp.astype(below <= stream.uniform((1,)) * below[-1], xp.int64))
    return x[min(int(passed), x.shape[0] - 1), :]


def _expect(x, mixture: Mixture, ridge: float):
    """J, and the shares r (N, K) of the components in every row."""
    xp = namespace(x)
    precisions = xp.linalg.inv(mixture.covariances)
    penalty = 0.5 * ridge * xp.sum(xp.linalg.diagonal(precisions), axis=-1)
    log_joint = mixture.log_joint(x) - penalty
    log_total = logsumexp(log_joint, axis=-1)
    return float(xp.mean(log_total)), xp.exp(log_joint - log_total[:, None])


def _maximise(x, shares, before: Mixture, ridge: float) -> Mixture:
    """The mixture that fits the rows best, given the shares (N, K)."""
    xp = namespace(x)
    taken = xp.sum(shares, axis=0)
    filled = taken > FEWEST_ROWS
    shares = shares / xp.where(filled, taken, 1.0)
    means = xp.where(filled[:, None], shares.T @ x, before.means)
    covariances = []
    for k in range(taken.shape[0]):
        apart = x - means[k, :]
        scatter = (shares[:, k : k + 1] * apart).T @ apart
        covariances.append(0.5 * (scatter + scatter.T) + ridge * _identity(x))
    stacked = xp.where(filled[:, None, None], xp.stack(covariances, axis=0), before.covariances)
    weights = xp.where(filled, taken, 0.0)
    return Mixture(before.backend, weights / xp.sum(weights), means, stacked)


def _identity(x):
    return namespace(x).eye(x.shape[1], dtype=x.dtype, device=x.device)
