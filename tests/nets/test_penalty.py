"""The gradient penalty of a critic, differentiated by its pushforward: against grad of grad."""

import autograd
import autograd.numpy as traced
import numpy as np
import pytest

from scratchgen.layers.activations import leaky_relu, silu, softplus, tanh
from scratchgen.layers.affine import Linear, Scale
from scratchgen.layers.combinators import Residual, Sequential
from scratchgen.layers.conv import Conv2d, ConvTranspose2d
from scratchgen.layers.normalisation import group_standardise, layer_norm
from scratchgen.layers.resampling import nearest, reshaped, strided
from scratchgen.nets.convnet import dcgan_discriminator
from scratchgen.nets.mlp import mlp
from scratchgen.testing.oracle import assert_close, theta_of

from support import bound, normals


def everything() -> Sequential:
    """A critic with one of each layer that has a pushforward."""
    return Sequential(
        Conv2d(2, 4),
        layer_norm(4),
        silu,
        Residual(Sequential(Conv2d(4, 4), layer_norm(4), tanh)),
        nearest(),
        Conv2d(4, 3, kernel=4, stride=2),
        group_standardise(3),
        Scale(3),
        softplus,
        strided(),
        ConvTranspose2d(3, 2),
        leaky_relu,
        reshaped(-1),
        Linear(128, 1),
        reshaped(),
    )


CRITICS = {
    "DCGAN with layer norm": (lambda: dcgan_discriminator((16, 16, 2), 4, layer_norm), (16, 16, 2)),
    "DCGAN without a norm": (lambda: dcgan_discriminator((8, 8, 2), 4, None), (8, 8, 2)),
    "MLP": (lambda: Sequential(*mlp([6, 8, 1], tanh).layers, reshaped()), (6,)),
    "everything": (everything, (8, 8, 2)),
}


@pytest.mark.parametrize(("make", "shape"), CRITICS.values(), ids=CRITICS)
def test_the_penalty_s_gradient(make, shape):
    """Of P = mean (‖s‖ - 1)², s = ∂D/∂x: the pullback of D's tangent in the direction ∂P/∂s."""
    net, x = make(), normals(0, 3, *shape)
    params, axes = bound(net), tuple(range(1, len(shape) + 1))
    score, pullback = net(x)
    with params.frozen():
        slope = pullback(np.ones_like(score))
    norm = np.sqrt(np.sum(slope**2, axis=axes, keepdims=True))
    direction = 2.0 / len(x) * (norm - 1.0) / norm * slope
    (_, tangent), tangent_pullback = net.pushforward(x, direction)
    with params.gradient_into(np.zeros_like(params.theta)) as gradient:
        dx, _ = tangent_pullback(np.zeros_like(tangent), np.ones_like(tangent))

    def penalty(theta, x):
        params.theta = theta
        slope = autograd.elementwise_grad(lambda x: net(x)[0])(x)
        return traced.mean((traced.sqrt(traced.sum(slope**2, axis=axes)) - 1.0) ** 2)

    with theta_of(params, params.theta) as theta:
        want, want_dx = autograd.grad(penalty, (0, 1))(theta, x)
    assert_close(gradient, want, 1e-12, "of the parameters")
    assert_close(dx, want_dx, 1e-12, "of the images")
