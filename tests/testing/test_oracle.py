"""testing/oracle.py: a pullback that is wrong by a tenth of a percent must be reported."""

import numpy as np
import pytest

from scratchgen.core.arrays import Backend
from scratchgen.layers.activations import tanh
from scratchgen.layers.affine import Linear
from scratchgen.testing import oracle

from support import bound, normals

X = normals(0, 3, 4)


def spoiled(factor):
    def f(x):
        y, pullback = tanh(x)
        return y, lambda dy: factor * pullback(dy)

    return f


def test_a_right_pullback_passes():
    oracle.check_pullback(spoiled(1.0), X)


@pytest.mark.parametrize("factor", [1.001, -1.0, 0.0, np.nan])
def test_a_wrong_pullback_is_reported(factor):
    with pytest.raises(AssertionError, match="cotangent of argument 0"):
        oracle.check_pullback(spoiled(factor), X)


def test_an_error_of_one_part_in_a_hundred_million_is_reported():
    with pytest.raises(AssertionError, match="cotangent of argument 0"):
        oracle.check_pullback(spoiled(1.0 + 1e-8), X)


def test_every_argument_is_checked():
    with pytest.raises(AssertionError, match="cotangent of argument 1"):
        oracle.check_pullback(lambda a, b: (a * b, lambda dy: (dy * b, 1.001 * dy * a)), X, X)


def test_a_wrong_shape_is_reported():
    with pytest.raises(AssertionError, match="shape"):
        oracle.check_pullback(lambda x: (x, lambda dy: dy[:1]), X)


def test_a_missing_cotangent_is_reported():
    with pytest.raises(ValueError, match="zip"):
        oracle.check_pullback(lambda a, b: (a * b, lambda dy: (dy * b,)), X, X)


class Spoiled(Linear):
    def __call__(self, x):
        y, pullback = super().__call__(x)
        return y, lambda dy: pullback(1.001 * dy)


def test_a_wrong_gradient_is_reported():
    layer = Spoiled(4, 2)
    params = bound(layer)
    with pytest.raises(AssertionError, match="gradient: off by"):
        oracle.check_gradient(params, layer, X)
    assert params.theta is not None
    assert isinstance(params.theta, np.ndarray), "θ must be restored after tracing"


class Constant(Linear):
    def pushforward(self, x, x_dot):
        (y, y_dot), pullback = super().pushforward(x, x_dot)
        return (y, 1.001 * y_dot), pullback


def test_a_wrong_tangent_is_reported():
    layer = Constant(4, 2)
    bound(layer)
    with pytest.raises(AssertionError, match="adjoint identity"):
        oracle.check_pushforward(layer, X, normals(1, 3, 4))


def test_a_pullback_that_is_not_linear_is_reported():
    with pytest.raises(AssertionError, match="linearity"):
        oracle.check_pullback_is_linear(lambda x: (x, lambda dy: dy * dy), X)
    with pytest.raises(AssertionError, match="zero"):
        oracle.check_pullback_is_linear(lambda x: (x, lambda dy: dy * 1.0 + 1e-14), X)


def test_a_gradient_that_is_set_instead_of_added_is_reported():
    class Setter(Linear):
        def __call__(self, x):
            y, pullback = super().__call__(x)
            reading = self.weight.read()

            def overwrite(dy):
                if reading._owner.gradient is not None:
                    reading._owner.gradient[...] = 0.0
                return pullback(dy)

            return y, overwrite

    layer = Setter(4, 2)
    params = bound(layer)
    with pytest.raises(AssertionError, match="accumulation"):
        oracle.check_accumulation(params, layer, X)


def test_float32_and_missing_cotangents_are_refused():
    layer = Linear(2, 1)
    params = bound(layer, born=Backend(np, "float32"))
    with pytest.raises(ValueError, match="compares in float64, got float32"):
        oracle.check_gradient(params, layer, np.zeros((1, 2), dtype=np.float32))
    with pytest.raises(ValueError, match="compares in float64, got float32"):
        oracle.check_pullback(layer, np.zeros((1, 2), dtype=np.float32))
    reader = Linear(2, 1, reads_data=True)
    bound(reader)
    with pytest.raises(ValueError, match="build what reads data with reads_data=False"):
        oracle.check_pullback(reader, np.zeros((1, 2)))
