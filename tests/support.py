"""What several test files share: the backends, and small networks with trained-looking weights."""

from functools import partial

import array_api_strict
import numpy as np
import pytest

from scratchgen.core.arrays import Backend, BackendUnavailable, backend, to_host
from scratchgen.core.module import FlatParameters, Module
from scratchgen.core.streams import Stream
from scratchgen.testing.monte_carlo import assert_mean, default_resolution, enough_samples

NUMPY = Backend(np, "float64")
# array_api_strict refuses everything outside the standard, and its second device refuses to mix
# with the first or with NumPy: a GPU's manners without a GPU
STRICT_DEVICE = array_api_strict.Device("device1")


def _cupy() -> list[Backend]:
    try:
        return [backend("cupy", "float64"), backend("cupy", "float32")]
    except BackendUnavailable:
        return []


BACKENDS = [
    NUMPY,
    Backend(np, "float32"),
    Backend(array_api_strict, "float64", STRICT_DEVICE),
    Backend(array_api_strict, "float32", STRICT_DEVICE),
    *_cupy(),
]
NAMES = [f"{born.name}-{born.dtype}" for born in BACKENDS]

on_every_backend = pytest.mark.parametrize("born", BACKENDS, ids=NAMES)


def tolerance(born: Backend) -> float:
    """What rounding may do to a few dozen operations, relative to the largest entry."""
    return 1e-12 if born.dtype == "float64" else 1e-5


def host(x) -> np.ndarray:
    """A float64 NumPy copy of x."""
    return to_host(x).astype(np.float64)


def bound(module: Module, seed: int = 1, born: Backend = NUMPY) -> FlatParameters:
    """The module's parameters, no longer at their special first values (such as zero biases)."""
    params = FlatParameters(module, Stream(seed, born).at("initial"))
    nudge = Stream(seed, born).at("nudge").normal(params.theta.shape)
    params.theta = params.theta + 0.1 * nudge
    return params


def normals(seed: int, *shape: int) -> np.ndarray:
    """Standard normal host numbers."""
    return Stream(seed, NUMPY).at("test").normal(shape)


class Spy:
    """A net that draws: it records which noise it was given."""

    draws = True

    def __init__(self, width: int):
        self.width, self.paths, self.rows = width, [], []

    def __call__(self, x, stream=None):
        """x (N, D) -> zeros (N, width), pullback: dy -> zeros (N, D)."""
        self.paths.append(stream.path)
        self.rows.append(stream.first_row)
        return np.zeros((x.shape[0], self.width)), lambda d: np.zeros(x.shape)


def noise(seed: int, look: int, *shape: int) -> np.ndarray:
    """Standard normal host numbers for one look of a Monte Carlo check, fresh in every look.

    Drawn as one row of a stream, so in one call: rows cost a generator for every 64.
    """
    return Stream(seed, NUMPY).at("noise", look).normal((1, *shape))[0]


def log_ratios(q, p, seed: int):
    """Simulations of KL(q ‖ p) = E log q(z)/p(z), z ~ q, for two normals; without our code.

    Args:
        q, p: (mean (D,), covariance (D, D)) each.
        seed: of the noise ε, with z = mean_q + L ε.

    Returns:
        plain: (n, look) -> (n,), the log-ratios.
        controlled: (n, look) -> the same, and the controls ε_i and ε_i ε_j - δ_ij, which leave no
            variance because the log-ratio is a quadratic in ε.
        spread: the standard deviation of the log-ratio.
    """
    (mean_q, covariance_q), (mean_p, covariance_p) = q, p
    factor, precision = np.linalg.cholesky(covariance_q), np.linalg.inv(covariance_p)
    dims, shift = len(mean_q), mean_q - mean_p
    log_dets = np.linalg.slogdet(covariance_q)[1] - np.linalg.slogdet(covariance_p)[1]

    dot = partial(np.einsum, "nd,nd->n")

    def plain(n, look, eps=None):
        eps = noise(seed, look, n, dims) if eps is None else eps
        gap = shift + eps @ factor.T
        return 0.5 * (dot(gap @ precision, gap) - dot(eps, eps) - log_dets)

    def controlled(n, look):
        eps = noise(seed, look, n, dims)
        rows, columns = np.triu_indices(dims)
        squares = eps[:, rows] * eps[:, columns] - (rows == columns)
        return plain(n, look, eps), np.concatenate([eps, squares], axis=-1)

    excess = precision @ covariance_q - np.eye(dims)
    tilt = factor.T @ precision @ shift
    spread = np.sqrt(max(0.5 * np.trace(excess @ excess) + tilt @ tilt, 0.0))
    return plain, controlled, float(spread)


def assert_kl(kl: float, q, p, seed: int):
    """kl = KL(q ‖ p) by plain simulation to 2 %, and again with controls to nine digits."""
    plain, controlled, spread = log_ratios(q, p, seed)
    constant = 0.0 if spread < 1e-12 else None  # a quadratic that is constant: q = p
    resolution = default_resolution(kl, spread) + 1e-12
    first = max(4096, enough_samples(spread, resolution))
    assert_mean(plain, kl, resolution, spread=constant, first=first)
    assert_mean(controlled, kl, 1e-9 * max(kl, spread, 1.0), spread=constant)
