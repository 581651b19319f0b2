"""What several test files share: the backends, and small networks with trained-looking weights."""

from decimal import Decimal
from functools import cache, partial

import array_api_strict
import numpy as np
import pytest
from hypothesis import settings

from scratchgen.core.arrays import Backend, BackendUnavailable, backend, to_host
from scratchgen.core.module import FlatParameters, Module
from scratchgen.core.streams import Stream
from scratchgen.testing.monte_carlo import (
    MonteCarloFailure,
    assert_mean,
    default_resolution,
    enough_samples,
)

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


def relative(got, want: Decimal) -> float:
    """|got - want| / |want|, exactly."""
    return abs(float((Decimal(float(got)) - want) / want))


def bound(module: Module, seed: int = 1, born: Backend = NUMPY) -> FlatParameters:
    """The module's parameters, no longer at their special first values (such as zero biases)."""
    params = FlatParameters(module, Stream(seed, born).at("initial"))
    nudge = Stream(seed, born).at("nudge").normal(params.theta.shape)
    params.theta = params.theta + 0.1 * nudge
    return params


def normals(seed: int, *shape: int) -> np.ndarray:
    """Standard normal host numbers."""
    return Stream(seed, NUMPY).at("test").normal(shape)


def some_codes(seed: int, *shape: int) -> np.ndarray:
    """Host codes 0..255."""
    uniform = Stream(seed, NUMPY).at("codes").uniform((1, *shape))[0]
    return np.floor(256 * uniform).astype(np.uint8)


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


class Halves:
    """Workers that evaluate one half of the batch after the other, as threads would."""

    def run(self, params, shard, batch_size):
        parts = [shard(slice(0, batch_size // 2)), shard(slice(batch_size // 2, batch_size))]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def elementwise(self, update, *vectors):
        update(*vectors)


def share_of_the_examples(divisor):
    """Fewer examples than the profile's, because each takes up to a few million samples."""
    return settings(max_examples=max(settings().max_examples // divisor, 1))


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


def quadratics(eps) -> np.ndarray:
    """ε_i and ε_i ε_j - δ_ij: controls that leave no variance in a quadratic of the noise.

    Args:
        eps: (n, D) ~ N(0, I).

    Returns:
        (n, D + D(D+1)/2), of mean 0.
    """
    i, j = np.triu_indices(eps.shape[1])
    return np.concatenate([eps, eps[:, i] * eps[:, j] - (i == j)], axis=-1)


PILOT = 1000  # a look that no check reaches: its samples give the spreads and nothing else


def one_of(draws, i: int):
    """Of draws (n, look) -> (S, n) or ((S, n), controls), the i-th statistic alone."""

    def draw(n, look):
        drawn = draws(n, look)
        return (drawn[0][i], drawn[1]) if isinstance(drawn, tuple) else drawn[i]

    return draw


def assert_posterior(plain, controlled, sharp: float):
    """Every statistic has mean 0: plainly to 3 % of its spread, with controls to `sharp` of it.

    The statistics of a posterior with mean m(x) and variance C(x) are (z - m(x)) g(x) and
    ((z - m(x))² - C(x)) g(x) over simulated pairs (z, x), for some functions g.

    Args:
        plain: (n, look) -> (S, n).
        controlled: (n, look) -> (S, n), controls (n, c).
        sharp: the second resolution, reached with as many samples as decide about the first.
    """
    spreads = np.std(plain(4096, PILOT), axis=1)
    first, most = enough_samples(1.0, 0.03), 16 * enough_samples(1.0, 0.03)
    plain, controlled = cache(plain), cache(controlled)
    for i, spread in enumerate(spreads):
        assert_mean(one_of(plain, i), 0.0, 0.03 * spread, first=first, most=most)
        resolution = sharp * spread + 1e-12
        assert_mean(one_of(controlled, i), 0.0, resolution, first=first, most=first)


def assert_refuted(plain, controlled, wrong):
    """A wrong posterior fails in either mode where the right one passes.

    Judged by the statistic that shows the fault best, at a resolution just below its effect: so the
    wrong one cannot pass, and it is not left open, for at the last look the interval is a quarter
    of the resolution, or what the controls leave of it.

    Args:
        plain, controlled: as for assert_posterior, and both take (n, look, *wrong) as well.
        wrong: what makes the posterior wrong.
    """
    right = plain(4096, PILOT)
    effects = np.abs(np.mean(plain(4096, PILOT, *wrong) - right, axis=1))
    spreads = np.std(right, axis=1)
    i = int(np.argmax(effects / spreads))
    resolution = 0.95 * effects[i]
    first = max(4096, enough_samples(spreads[i], resolution))
    assert first <= 2**20  # else the fault is beyond what simulation can show
    for draws, fewest, most in ((plain, first, 16 * first), (controlled, 4096, 16 * first)):
        check = partial(assert_mean, expected=0.0, resolution=resolution, growth=2, most=most)
        check(one_of(draws, i), first=fewest)
        with pytest.raises(MonteCarloFailure):
            check(one_of(lambda n, look, draws=draws: draws(n, look, *wrong), i), first=fewest)
