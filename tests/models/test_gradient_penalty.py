"""The gradient penalty of models/gan.py, differentiated by pushforward: against grad of grad."""

from functools import partial

import autograd
import autograd.numpy as traced
import numpy as np
import pytest

from scratchgen.core.streams import Stream
from scratchgen.layers.activations import leaky_relu, silu, softplus, tanh
from scratchgen.layers.affine import Linear, Scale
from scratchgen.layers.combinators import Residual, Sequential
from scratchgen.layers.conv import Conv2d, ConvTranspose2d
from scratchgen.layers.normalisation import group_standardise, layer_norm
from scratchgen.layers.resampling import nearest, reshaped, strided
from scratchgen.models.gan import gradient_penalty
from scratchgen.nets.convnet import dcgan_discriminator
from scratchgen.nets.mlp import mlp
from scratchgen.testing.oracle import assert_close, theta_of

from support import NUMPY, bound, normals


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


def mlp_critic(activation) -> Sequential:
    return Sequential(*mlp([6, 8, 7, 1], activation).layers, reshaped())


def strided_critic(activation) -> Sequential:
    return Sequential(
        Conv2d(2, 3, kernel=4, stride=2),
        activation,
        Conv2d(3, 4, kernel=4, stride=2),
        activation,
        Conv2d(4, 1, kernel=2, padding=0),
        reshaped(),
    )


CRITICS = {
    "DCGAN with layer norm": (lambda: dcgan_discriminator((16, 16, 2), 4, layer_norm), (16, 16, 2)),
    "DCGAN without a norm": (lambda: dcgan_discriminator((8, 8, 2), 4, None), (8, 8, 2)),
    "everything": (everything, (8, 8, 2)),
}
for activation in (leaky_relu, tanh, silu):
    CRITICS[f"MLP, {activation.name}"] = (partial(mlp_critic, activation), (6,))
    CRITICS[f"strided, {activation.name}"] = (partial(strided_critic, activation), (8, 8, 2))


@pytest.mark.equation("GAN-12")
@pytest.mark.parametrize(("make", "shape"), CRITICS.values(), ids=CRITICS)
def test_the_penalty_and_its_gradient(make, shape):
    """(‖∇a(x̂)‖ - 1)², with the norm of each example over all its axes."""
    critic, x, fake = make(), normals(0, 3, *shape), normals(1, 3, *shape)
    params, axes = bound(critic), tuple(range(1, len(shape) + 1))
    u, d = Stream(2, NUMPY).uniform((3,)), normals(3, 3)
    penalty, pullback = gradient_penalty(critic, params, x, fake, u)
    assert not np.any(params.grad)
    pullback(d)
    between = np.stack([u[i] * x[i] + (1.0 - u[i]) * fake[i] for i in range(3)])

    def by_autograd(theta):
        params.theta = theta
        slope = autograd.elementwise_grad(lambda x: critic(x)[0])(between)
        return (traced.sqrt(traced.sum(slope**2, axis=axes)) - 1.0) ** 2

    with theta_of(params, params.theta) as theta:
        want = by_autograd(theta)
        gradient = autograd.grad(lambda theta: traced.sum(d * by_autograd(theta)))(theta)
    assert_close(penalty, want, 1e-12, "the penalty")
    assert_close(params.grad, gradient, 1e-12, "its gradient")
