"""What the tests of scratchgen/fast/ share: which twin answers, and how well it must agree."""

from contextlib import contextmanager
from math import prod

import numpy as np

from scratchgen.core import twins
from scratchgen.core.arrays import Backend
from scratchgen.core.module import FlatParameters, Module, Parameter
from scratchgen.core.streams import Stream
from scratchgen.layers.affine import fan_in_normal
from scratchgen.testing.oracle import assert_close

from support import NUMPY, normals

BORN = {"float64": NUMPY, "float32": Backend(np, "float32")}
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


@contextmanager
def answers():
    """Within, a list of who answered: pairs such as ("gather", "winograd"), in order."""
    known, found = dict(twins._twins), []

    def noting(function, twin):
        def answer(*args, **kwargs):
            found.append((function.__name__, twin.__module__.rpartition(".")[2]))
            return twin(*args, **kwargs)

        return answer

    for function, several in known.items():
        twins._twins[function] = [(noting(function, twin), where) for twin, where in several]
    try:
        yield found
    finally:
        twins._twins.update(known)


def the_twin(function, room: str):
    """The twin that a file of scratchgen/fast/ registered for a function."""
    (twin,) = (t for t, _ in twins._twins[function] if t.__module__ == f"scratchgen.fast.{room}")
    return twin


def agree(way, function, *inputs, params: FlatParameters | None = None, floor: float = 0.0) -> None:
    """way(*inputs) is what function(*inputs) is without any twin, and may be pulled back twice.

    Compared are the value, every cotangent and the gradient, relative to the largest entry of each.

    Args:
        way: the function itself, or one of its twins.
        function: (*inputs) -> (y, pullback).
        inputs: arrays, which must stay as they are.
        params: whose gradient the pullback adds to, if any.
        floor: absolute, in units of the tolerance; for sums that may cancel as a whole.
    """
    kind, before = inputs[0].dtype, [np.array(x) for x in inputs]
    y, pullback = way(*inputs)
    dy = as_slice(normals(9, *y.shape).astype(kind))
    value, cotangent = np.array(y), np.array(dy)
    returned = _pulled(pullback, dy, params)
    got = [value, *_copies(returned)]
    again = [y, *_pulled(pullback, dy, params)]
    with twins.disabled():
        y_read, pullback_read = function(*inputs)
        want = [y_read, *_pulled(pullback_read, dy, params)]
    for i, (g, a, w) in enumerate(zip(got, again, want, strict=True)):
        assert (g is None) == (w is None)
        if g is not None:
            tolerance = TOLERANCE[str(kind)]
            assert g.dtype == w.dtype == kind
            assert_close(g, w, tolerance, f"result {i}", max(floor * tolerance, 1e-300))
            np.testing.assert_array_equal(a, g)
    for x, was in zip([*inputs, dy], [*before, cotangent], strict=True):
        np.testing.assert_array_equal(x, was)
    for d, was in zip(returned, got[1:], strict=True):  # no memory is used twice
        np.testing.assert_array_equal(d, was)


def _pulled(pullback, dy, params: FlatParameters | None) -> list:
    """The cotangents, and the gradient where there is one."""
    gradient = None if params is None else np.zeros_like(params.theta)
    if params is None:
        d = pullback(dy)
    else:
        with params.gradient_into(gradient):
            d = pullback(dy)
    found = [*d] if isinstance(d, tuple) else [d]
    return [*found, gradient]


def _copies(arrays: list) -> list:
    return [None if each is None else np.array(each) for each in arrays]


class Kernel(Module):
    """One parameter, drawn so that an output is of unit variance."""

    def __init__(self, *shape: int):
        self.weight = Parameter(shape, fan_in_normal(prod(shape[:-1])))


def kernel(seed: int, dtype: str, *shape: int) -> tuple[FlatParameters, Parameter]:
    """A parameter of that shape, and the vector it lies in."""
    owner = Kernel(*shape)
    return FlatParameters(owner, Stream(seed, BORN[dtype])), owner.weight


def as_slice(x):
    """x as every other entry of a larger array."""
    return np.repeat(x, 2, axis=-1)[..., ::2]


def as_turned(x):
    """x as a view whose axes lie the other way round in memory."""
    return np.asfortranarray(x)


LAYOUTS = [np.ascontiguousarray, as_slice, as_turned]
