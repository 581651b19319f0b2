"""Elementwise maps with their first and second derivative.

Most of them share one expensive core between value, slope and curvature (tanh for tanh, the
sigmoid for SiLU), so an activation is four small functions; the core is computed once a call.
The slope is evaluated in the pullback, so sampling never pays for it.
"""

from scratchgen.core.arrays import namespace
from scratchgen.core.numerics import sigmoid as sigmoid_value
from scratchgen.core.numerics import softplus as softplus_value
from scratchgen.core.twins import readable
from scratchgen.layers.affine import LinearMap


class Activation:
    """y = φ(x), elementwise, as a layer.

    Args:
        name: what a list of layers calls it.
        core: x -> c, what value and derivatives have in common.
        value, slope, curvature: (x, c) -> φ(x), φ'(x), φ''(x).
    """

    def __init__(self, name, core, value, slope, curvature):
        self.name = name
        self.core, self.value, self.slope, self.curvature = core, value, slope, curvature

    def __call__(self, x):
        """x (...) -> y (...), pullback: dy -> dy ⊙ φ'(x)."""
        return activate(self, x)

    def pushforward(self, x, x_dot):
        """(x, ẋ) -> (φ(x), φ'(x) ⊙ ẋ), pullback: (dy, dẏ) -> (dx, dẋ)."""
        c = self.core(x)
        slope = self.slope(x, c)

        def pullback(dy, dy_dot):
            return dy * slope + dy_dot * self.curvature(x, c) * x_dot, dy_dot * slope

        return (self.value(x, c), slope * x_dot), pullback


@readable
def activate(activation: Activation, x):
    """x (...) -> φ(x) (...), pullback: dy -> dy ⊙ φ'(x)."""
    c = activation.core(x)

    def pullback(dy):
        return dy * activation.slope(x, c)

    return activation.value(x, c), pullback


def _step(x):
    return namespace(x).astype(x > 0.0, x.dtype)


def _leaky_step(x):
    return 0.2 + 0.8 * _step(x)


tanh = Activation(
    name="tanh",
    core=lambda x: namespace(x).tanh(x),
    value=lambda x, c: c,
    slope=lambda x, c: 1.0 - c * c,
    curvature=lambda x, c: -2.0 * c * (1.0 - c * c),
)

sigmoid = Activation(
    name="sigmoid",
    core=sigmoid_value,
    value=lambda x, c: c,
    slope=lambda x, c: c * (1.0 - c),
    curvature=lambda x, c: c * (1.0 - c) * (1.0 - 2.0 * c),
)

softplus = Activation(
    name="softplus",
    core=sigmoid_value,
    value=lambda x, c: softplus_value(x),
    slope=lambda x, c: c,
    curvature=lambda x, c: c * (1.0 - c),
)

silu = Activation(
    name="silu",
    core=sigmoid_value,
    value=lambda x, c: x * c,
    slope=lambda x, c: c * (1.0 + x * (1.0 - c)),
    curvature=lambda x, c: c * (1.0 - c) * (2.0 + x * (1.0 - 2.0 * c)),
)

relu = Activation(
    name="relu",
    core=_step,
    value=lambda x, c: x * c,
    slope=lambda x, c: c,
    curvature=lambda x, c: 0.0 * c,
)

leaky_relu = Activation(
    name="leaky_relu",
    core=_leaky_step,
    value=lambda x, c: x * c,
    slope=lambda x, c: c,
    curvature=lambda x, c: 0.0 * c,
)

identity = LinearMap("identity", lambda x: (x, lambda dy: dy))
