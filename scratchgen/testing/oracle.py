"""Ground truth for hand-written pullbacks: the autograd package, traced through our own forward.

Every check runs in float64 and compares relative to the largest entry of the truth. A function
under test is anything that returns (y, pullback) or (tuple of terms, pullback).
"""

from contextlib import contextmanager

import autograd
import autograd.numpy.numpy_wrapper as traced
import numpy as np
from autograd.numpy.numpy_boxes import ArrayBox

from scratchgen.core.module import FlatParameters

# autograd 1.9 does not trace numpy's newer names: its `concat` makes object arrays in silence
traced.concat = traced.concatenate
# and its boxes do not say where they live, which one must know to make zeros beside them
ArrayBox.device = "cpu"

TOLERANCE = 1e-10


def check_pullback(
    f, *args, seed: int = 0, tolerance: float = TOLERANCE, floor: float = 1e-300
) -> None:
    """pullback(dy) == ∇⟨dy, f(args)⟩ for every argument, at a random cotangent dy.

    Args:
        f: (*args) -> (y, pullback).
        args: float64 arrays.
        seed: of the cotangent.
        tolerance: relative to the largest entry of the true gradient.
        floor: absolute, for a gradient that may be 0 and is so up to rounding.

    Raises:
        AssertionError: they differ, or a cotangent has another shape than its argument.
        ValueError: an argument is not float64, or has no cotangent.
    """
    _require_float64(*args)
    y, pullback = f(*args)
    dy = _cotangents(y, seed)
    got = _as_tuple(pullback(*dy))
    if any(g is None for g in got):
        raise ValueError("an input has no cotangent; build what reads data with reads_data=False")
    positions = tuple(range(len(args)))
    want = autograd.grad(lambda *a: _inner(dy, f(*a)[0]), positions)(*args)
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        assert_close(g, w, tolerance, f"cotangent of argument {i}", floor)


def check_gradient(params: FlatParameters, f, *args, seed: int = 0, tolerance=TOLERANCE) -> None:
    """params.grad after one pullback == ∇_θ ⟨dy, f(args)⟩, at a random cotangent dy.

    Args:
        params: float64 parameters of what f calls.
        f: (*args) -> (y, pullback), which may return None for data.
        args: arguments of f.
        seed, tolerance: as for `check_pullback`.

    Raises:
        AssertionError: they differ.
        ValueError: the parameters are not float64.
    """
    _require_float64(params.theta)
    y, pullback = f(*args)
    dy = _cotangents(y, seed)
    with params.gradient_into(np.zeros_like(params.theta)) as got:
        pullback(*dy)
    with theta_of(params, params.theta) as theta:

        def objective(vector):
            params.theta = vector
            return _inner(dy, f(*args)[0])

        want = autograd.grad(objective)(theta)
    assert_close(got, want, tolerance, "gradient")


def check_pushforward(layer, x, x_dot, tolerance: float = TOLERANCE) -> None:
    """A layer's pushforward is its directional derivative, and has a right pullback of its own.

    Three laws: the first output equals layer(x); ⟨dy, ẏ⟩ = ⟨pullback(dy), ẋ⟩ for a random dy; and
    the pushforward's pullback equals autograd's, which covers second derivatives.

    Args:
        layer: has __call__ and pushforward.
        x, x_dot: float64 arrays of one shape.
        tolerance: relative to the largest entry of the truth.

    Raises:
        AssertionError: a law is broken.
    """
    (y, y_dot), _ = layer.pushforward(x, x_dot)
    plain, pullback = layer(x)
    assert_close(y, plain, tolerance, "value")
    (dy,) = _cotangents(plain, seed=1)
    left, right = float(np.sum(dy * y_dot)), float(np.sum(pullback(dy) * x_dot))
    size = float(np.sum(np.abs(dy * y_dot))) or 1.0
    assert abs(left - right) <= tolerance * size, f"adjoint identity: {left} against {right}"
    check_pullback(layer.pushforward, x, x_dot, tolerance=tolerance)


def check_pullback_is_linear(f, *args, seed: int = 0, tolerance: float = 1e-12) -> None:
    """pullback(a u + b v) == a pullback(u) + b pullback(v), and pullback(0) is exactly 0."""
    y, pullback = f(*args)
    u, v = _cotangents(y, seed), _cotangents(y, seed + 1)
    both = _as_tuple(pullback(*(2.0 * p - 3.0 * q for p, q in zip(u, v, strict=True))))
    first, second = _as_tuple(pullback(*u)), _as_tuple(pullback(*v))
    nothing = _as_tuple(pullback(*(0.0 * p for p in u)))
    for b, p, q, zero in zip(both, first, second, nothing, strict=True):
        assert_close(b, 2.0 * p - 3.0 * q, tolerance, "linearity", floor=1e-13)
        assert not np.any(zero), "the pullback of zero is not zero"


def check_accumulation(params: FlatParameters, f, *args, tolerance: float = 1e-12) -> None:
    """Calling a pullback twice doubles the gradient; calling it frozen leaves it alone."""
    y, pullback = f(*args)
    dy = _cotangents(y, seed=0)
    with params.gradient_into(np.zeros_like(params.theta)) as once:
        pullback(*dy)
    with params.gradient_into(np.zeros_like(params.theta)) as twice:
        pullback(*dy)
        pullback(*dy)
        with params.frozen():
            pullback(*dy)
    assert_close(twice, 2.0 * once, tolerance, "accumulation")


def assert_close(got, want, tolerance: float, what: str, floor: float = 1e-300) -> None:
    """max |got - want| ≤ tolerance · max |want|, with equal shapes.

    Raises:
        AssertionError: it does not hold; names `what` and by how much.
    """
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{what}: shape {got.shape} instead of {want.shape}"
    if want.size:
        error, scale = float(np.abs(got - want).max()), float(np.abs(want).max())
        assert error <= max(tolerance * scale, floor), (
            f"{what}: off by {error:.3g}, {error / scale if scale else float('inf'):.3g} of the "
            f"largest entry"
        )


@contextmanager
def theta_of(params: FlatParameters, theta):
    """Within, params.theta may be replaced (by a tracer, say); afterwards it is `theta` again."""
    try:
        yield theta
    finally:
        params.theta = theta


def _require_float64(*arrays) -> None:
    for array in arrays:
        if np.asarray(array).dtype != np.float64:
            raise ValueError(
                f"the oracle compares in float64, got {np.asarray(array).dtype}; build parameters "
                "and inputs with backend('numpy', 'float64')"
            )


def _cotangents(y, seed: int) -> tuple:
    rng = np.random.Generator(np.random.Philox(key=seed))
    return tuple(rng.standard_normal(np.shape(part)) for part in _as_tuple(y))


def _inner(dy: tuple, y):
    return sum(traced.sum(d * part) for d, part in zip(dy, _as_tuple(y), strict=True))


def _as_tuple(y) -> tuple:
    return tuple(y) if isinstance(y, tuple | list) else (y,)
