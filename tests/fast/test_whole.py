"""fast/ as a whole: what is registered, what never takes it, nets with and without it."""

import threading

import array_api_strict
import autograd.numpy.numpy_wrapper as traced
import numpy as np
import pytest
from autograd import grad
from twinned import BORN, TOLERANCE, answers

from scratchgen.core import twins
from scratchgen.layers.activations import activate, silu
from scratchgen.layers.attention import SelfAttention, softmax
from scratchgen.layers.conv import (
    Conv2d,
    ConvTranspose2d,
    add_kernel_gradient,
    convolution,
    gather,
)
from scratchgen.layers.normalisation import (
    AdaptiveGroupNorm,
    AdditiveGroupNorm,
    GroupNorm,
    group_norm,
    place_sum,
)
from scratchgen.maths.likelihoods import Bernoulli
from scratchgen.models.vae import Vae
from scratchgen.nets.convnet import conv_decoder, conv_encoder
from scratchgen.nets.unet import UNet
from scratchgen.testing import oracle
from scratchgen.testing.oracle import assert_close
from scratchgen.training.optim import Adam, adam

from support import BACKENDS, NAMES, bound, host, normals

TWINNED = [activate, adam, add_kernel_gradient, convolution, gather, group_norm, place_sum, softmax]
# layers, and inputs so large that a twin answers for NumPy arrays
LAYERS = {
    "Conv2d": (lambda: Conv2d(32, 32), [(1, 4, 4, 32)]),
    "Conv2d, strided": (lambda: Conv2d(32, 32, stride=2), [(1, 8, 8, 32)]),
    "Conv2d, few": (lambda: Conv2d(8, 2), [(2, 3, 4, 8)]),
    "ConvTranspose2d": (lambda: ConvTranspose2d(32, 32, 3, 1), [(1, 4, 4, 32)]),
    "ConvTranspose2d, few": (lambda: ConvTranspose2d(8, 2), [(2, 3, 4, 8)]),
    "GroupNorm": (lambda: GroupNorm(8, 4, silu), [(2, 3, 4, 8)]),
    "AdaptiveGroupNorm": (lambda: AdaptiveGroupNorm(8, 3, 4, silu), [(2, 3, 4, 8), (2, 3)]),
    "AdditiveGroupNorm": (lambda: AdditiveGroupNorm(8, 3, 4), [(2, 3, 4, 8), (2, 3)]),
    "SelfAttention": (lambda: SelfAttention(8, 2), [(2, 5, 8)]),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def made(name: str, born):
    """(params, layer, inputs) of that backend."""
    make, shapes = LAYERS[name]
    layer = make()
    params = bound(layer, born=born)
    return params, layer, [born.asarray(normals(i, *shape)) for i, shape in enumerate(shapes)]


def run(params, layer, inputs) -> list:
    """The value, the cotangents and the gradient."""
    y, pullback = layer(*inputs)
    with params.gradient_into(0.0 * params.theta) as gradient:
        d = pullback(y)
    return [y, *(d if isinstance(d, tuple) else (d,)), gradient]


def test_importing_the_package_registers_them():
    names = {f"{f.__module__}.{f.__qualname__}" for f in TWINNED}
    assert names <= set(twins.active())
    with twins.disabled():
        assert twins.active() == []


@every_layer
def test_they_answer_for_plain_arrays(name):
    params, layer, inputs = made(name, BORN["float64"])
    with answers() as by:
        run(params, layer, inputs)
    assert by


@every_layer
def test_traced_arrays_take_the_readable_way(name):
    """The oracle's check would fail, or report an error, where a twin took a traced array."""
    params, layer, inputs = made(name, BORN["float64"])
    oracle.check_gradient(params, layer, *inputs)
    with params.frozen():
        oracle.check_pullback(layer, *inputs)


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_one_traced_argument_is_enough(argument):
    x, gain, bias = normals(0, 2, 3, 4), 1.0 + normals(1, 1, 4), normals(2, 1, 4)

    def total(*given):
        return traced.sum(group_norm(given[0], 2, *given[1:], silu)[0])

    with answers() as by:
        slope = grad(total, argument)(x, gain, bias)
    assert ("group_norm", "fused") not in by
    y, pullback = group_norm(x, 2, gain, bias, silu)
    want = pullback(np.ones_like(y))[argument]
    assert_close(slope, want if argument == 0 else want.sum(axis=0, keepdims=True), 1e-10, "slope")


@every_layer
@pytest.mark.parametrize("born", BACKENDS[2:], ids=NAMES[2:])
def test_arrays_of_other_libraries_take_the_readable_way(name, born):
    params, layer, inputs = made(name, born)
    with answers() as by:
        found = run(params, layer, inputs)
    assert by == []
    for got, want in zip(found, run(*made(name, BORN[born.dtype])), strict=True):
        assert isinstance(got, type(params.theta))
        assert_close(host(got), want, TOLERANCE[born.dtype], name)


def test_other_libraries_take_the_readable_steps_of_adam():
    theta, g, m, v = (array_api_strict.asarray(np.abs(normals(i, 5))) for i in range(4))
    with answers() as by:
        adam(theta, g, m, v, 0.9, 0.999, 0.1, 1e-8)
    assert by == []
    assert not np.any(host(g))


def in_threads(count: int, work):
    """[work(0), ..., work(count - 1)], each in its own thread; raises what one of them raised."""
    found, together = {}, threading.Barrier(count)

    def note(k):
        together.wait()
        try:
            found[k] = work(k)
        except BaseException as error:
            found[k] = error

    threads = [threading.Thread(target=note, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in found.values():
        if isinstance(result, BaseException):
            raise result
    return [found[k] for k in range(count)]


def test_they_can_be_switched_off_inside_threads():
    x = normals(0, 2, 3, 4)

    def off(_):
        with twins.disabled():
            return silu(x)[0]

    with answers() as by:
        first, *others = in_threads(4, off)
        assert by == []
        with twins.disabled():
            in_threads(2, lambda _: silu(x))
        assert by == []
        in_threads(2, lambda _: silu(x))
        assert len(by) == 2
    for other in others:
        np.testing.assert_array_equal(other, first)


def unet(width: int = 32):
    """(params, loss): a U-Net with attention, and half the squared error of its output."""
    net = UNet(8, 3, 3, width=width, attention=(4,), reads_data=True)
    params = bound(net)
    x, target = normals(1, 2, 8, 8, 3), normals(2, 2, 8, 8, 3)
    t = np.asarray([3.0, 700.0])

    def loss():
        y, pullback = net(x, t)
        return 0.5 * np.sum((y - target) ** 2), lambda: pullback(y - target)

    return params, loss


def vae():
    """(params, loss): a convolutional VAE of binary images."""
    shape = (8, 8, 1)
    model = Vae(conv_encoder(shape, 8, reads_data=True), conv_decoder(shape, 4), Bernoulli())
    params = bound(model)
    x, eps = 1.0 * (normals(1, 3, *shape) > 0.0), normals(2, 2, 3, 4)

    def loss():
        (reconstruction, kl), pullback = model.loss(x, eps)
        one = np.ones_like(kl)
        return float(np.sum(reconstruction + kl)), lambda: pullback(one, one)

    return params, loss


@pytest.mark.parametrize(
    ("make", "rooms"),
    [(unet, {"winograd", "few_channels", "fused"}), (vae, {"few_channels", "fused"})],
)
def test_a_whole_net_trains_the_same_with_and_without_them(make, rooms):
    """Loss and gradient, and the way θ went in five steps of Adam.

    Its `tiny` is large, or it would enlarge the rounding of gradients that are as good as 0.
    """

    def trained():
        params, loss = make()
        value, pullback = loss()
        pullback()
        gradient, first = 1.0 * params.grad, 1.0 * params.theta
        steps = Adam(params, lr=1e-3, tiny=1e-3)
        steps.step()
        for _ in range(4):
            loss()[1]()
            steps.step()
        return value, gradient, params.theta - first, loss()[0]

    with answers() as by:
        found = trained()
    assert {room for _, room in by} == rooms
    with twins.disabled():
        wanted = trained()
    for what, got, want in zip(("loss", "gradient", "way", "end"), found, wanted, strict=True):
        assert_close(got, want, 1e-9, what)
    assert found[3] < found[0]
