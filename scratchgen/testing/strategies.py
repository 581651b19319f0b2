"""Hypothesis strategies: domains of the laws, stated once.

They draw structure (shapes, seeds, bounded parameters); arrays of noise are filled from a drawn
seed, so that every example is a function of drawn data and shrinks.
"""

import numpy as np
from hypothesis import strategies as st

from scratchgen.core.arrays import Backend
from scratchgen.core.streams import Stream

MEAN_RANGE = 30.0
LOGVAR_RANGE = float(np.log(1e3))


def seeds():
    """Random seeds; the smallest is the simplest."""
    return st.integers(0, 2**64 - 1)


def streams(backend: Backend | None = None):
    """Root streams of a drawn seed, on float64 NumPy unless told otherwise."""
    born = backend or Backend(np, "float64")
    return seeds().map(lambda seed: Stream(seed, born))


def sizes(most: int = 5):
    """Sizes of an axis, from 1."""
    return st.integers(1, most)


def shapes(most_axes: int = 3, most: int = 4):
    """Shapes with at least one axis."""
    return st.lists(sizes(most), min_size=1, max_size=most_axes).map(tuple)


def reals(bound: float):
    """Finite numbers in [-bound, bound] that are 0 or not tiny."""
    return st.floats(-bound, bound, allow_subnormal=False).map(
        lambda x: 0.0 if abs(x) < 1e-100 else x
    )


def means():
    """Means of normal distributions."""
    return reals(MEAN_RANGE)


def log_variances():
    """Log-variances: variances from 1e-3 to 1e3."""
    return reals(LOGVAR_RANGE)


def diagonal_normals(most_dims: int = 4):
    """(mean, logvar) of a diagonal normal, each (D,) float64."""
    return sizes(most_dims).flatmap(normals_of)


def normals_of(dims: int):
    """(mean, logvar) of a diagonal normal of `dims` dimensions."""

    def vector(entries):
        return st.lists(entries, min_size=dims, max_size=dims).map(np.asarray)

    return st.tuples(vector(means()), vector(log_variances()))


def normal_pairs(most_dims: int = 4):
    """Two diagonal normals of the same dimension: (mean_q, logvar_q, mean_p, logvar_p)."""
    return sizes(most_dims).flatmap(
        lambda d: st.tuples(normals_of(d), normals_of(d)).map(lambda pair: (*pair[0], *pair[1]))
    )


def noise_levels(most_steps: int = 8, least: float = 1e-3):
    """(T+1,) float64 levels log ᾱ_0 = 0 > log ᾱ_1 > ..., with any β_t in [least, 0.7]."""
    betas = st.lists(st.floats(least, 0.7), min_size=1, max_size=most_steps)
    return betas.map(lambda beta: np.concatenate([[0.0], np.cumsum(np.log1p(-np.asarray(beta)))]))


def transitions():
    """(now, before), each (1,), of any step t ≥ 2: before < 0."""
    level = st.floats(-8.0, -1e-3)
    step = st.floats(1e-3, 2.0)
    return st.tuples(level, step).map(lambda d: (np.asarray([d[0] - d[1]]), np.asarray([d[0]])))
