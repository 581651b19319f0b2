"""What several test files share: the backends, and small networks with trained-looking weights."""

import array_api_strict
import numpy as np
import pytest

from scratchgen.core.arrays import Backend, BackendUnavailable, backend, to_host
from scratchgen.core.module import FlatParameters, Module
from scratchgen.core.streams import Stream

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
