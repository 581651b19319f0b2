"""core/module.py: the flat vector, readings, buffers, observers."""

import re
import threading

import numpy as np
import pytest

from scratchgen.core.module import (
    Buffer,
    FlatParameters,
    Module,
    Parameter,
    StalePullback,
    observed,
)
from scratchgen.core.streams import Stream
from scratchgen.layers.activations import silu
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.testing.oracle import check_gradient
from scratchgen.training.optim import Adam, Ema

from support import NUMPY, bound, host, normals, on_every_backend


class Running(Module):
    def __init__(self):
        self.mean, self.linear = (
            Buffer((2,), lambda stream, shape: stream.backend.zeros(shape) + 0.5),
            Linear(2, 2),
        )


def test_parameters_lie_end_to_end_under_their_paths():
    params = FlatParameters(Sequential(Linear(3, 2), silu, Linear(2, 1)), Stream(0, NUMPY))
    assert params.layout() == {
        "layers.0.weight": [2, 3],
        "layers.0.bias": [2],
        "layers.2.weight": [1, 2],
        "layers.2.bias": [1],
    }
    assert params.theta.shape == (2 * 3 + 2 + 2 + 1,)


def test_first_values_depend_on_name_and_shape_only():
    short = FlatParameters(Sequential(Linear(3, 2)), Stream(0, NUMPY))
    long = FlatParameters(Sequential(Linear(3, 2), Linear(2, 5)), Stream(0, NUMPY))
    np.testing.assert_array_equal(short.theta, long.theta[: short.theta.shape[0]])


def test_a_tied_layer_is_stored_once_and_its_gradients_add():
    tied = Linear(4, 4)
    net = Sequential(tied, silu, tied)
    params = bound(net)
    assert params.theta.shape == (20,)
    check_gradient(params, net, normals(0, 3, 4))


def test_a_pullback_refuses_another_theta():
    net = Linear(2, 2)
    params = bound(net)
    y, pullback = net(normals(0, 3, 2))
    params.theta *= 0.5
    params.changed()
    with pytest.raises(StalePullback, match="run it again"):
        pullback(y)
    assert not np.any(params.grad)


def test_a_frozen_pullback_refuses_another_theta_too():
    net = Linear(2, 2)
    params = bound(net)
    y, pullback = net(normals(0, 3, 2))
    params.theta = 2.0 * params.theta
    with params.frozen(), pytest.raises(StalePullback):
        pullback(y)


@on_every_backend
@pytest.mark.parametrize("shape", [(5,), (7,), (6, 1), ()])
def test_theta_keeps_its_length(born, shape):
    """A window on a longer vector would show the wrong numbers, and nobody would notice."""
    params = bound(Linear(2, 2), born=born)
    theta, version = params.theta, params.version
    with pytest.raises(ValueError, match=f"the shape .6,., got {re.escape(str(shape))}"):
        params.theta = born.zeros(shape)
    assert params.theta is theta
    assert params.version == version


def test_a_reading_refuses_to_be_read_at_another_theta():
    layer = Linear(2, 2)
    params = bound(layer)
    reading = layer.weight.read()
    params.changed()
    with pytest.raises(StalePullback):
        _ = reading.value


def test_a_module_belongs_to_one_vector():
    layer = Linear(2, 2)
    bound(layer)
    with pytest.raises(ValueError, match="weight already belongs to another vector"):
        bound(layer)


def test_layers_in_dictionaries_are_found():
    class Named(Module):
        def __init__(self):
            self.heads = {"mean": Linear(2, 1), "scale": Linear(2, 1)}

    assert list(bound(Named()).table)[::2] == ["heads.mean.weight", "heads.scale.weight"]


def test_an_unbound_layer_says_what_to_do():
    with pytest.raises(RuntimeError, match="FlatParameters"):
        Linear(2, 2)(normals(0, 1, 2))


def test_gradient_goes_where_each_thread_chose():
    net = Linear(2, 2)
    params = bound(net)
    y, pullback = net(normals(0, 3, 2))
    chosen = {}

    def shard(name):
        with params.gradient_into(np.zeros_like(params.theta)) as mine:
            together.wait()  # both have chosen before either adds
            pullback(y)
            together.wait()
            chosen[name] = mine

    together = threading.Barrier(2)
    threads = [threading.Thread(target=shard, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not np.any(params.grad)
    with params.frozen(), params.gradient_into(params.grad):
        assert params.gradient is params.grad
    assert params.gradient is params.grad
    pullback(y)
    np.testing.assert_array_equal(chosen["a"], params.grad)
    np.testing.assert_array_equal(chosen["b"], params.grad)


@on_every_backend
def test_buffers_are_born_named_and_not_trained(born):
    module = Running()
    params = FlatParameters(module, Stream(0, born))
    assert list(params.buffers) == ["mean"]
    np.testing.assert_array_equal(host(module.mean.value), [0.5, 0.5])
    assert "mean" not in params.layout()


@on_every_backend
def test_first_nonfinite_names_the_parameter(born):
    params = bound(Sequential(Linear(2, 2), Linear(2, 2)), born=born)
    assert params.first_nonfinite() is None
    params.theta[params.table["layers.1.bias"].window] += float("nan")
    assert params.first_nonfinite() == "layers.1.bias"


def test_each_buffer_draws_its_own_first_value():
    class Two(Module):
        def __init__(self):
            self.a, self.b = (Buffer((3,), Stream.normal) for _ in range(2))

    two = Two()
    FlatParameters(two, Stream(0, NUMPY))
    assert np.all(two.a.value != two.b.value)


def test_observers_see_every_part_and_only_within():
    net = Sequential(Linear(2, 2), silu)
    bound(net)
    seen = []
    with observed(lambda module, name, layer, y: seen.append((module, name, layer, y.shape))):
        net(normals(0, 3, 2))
    net(normals(0, 3, 2))
    assert seen == [
        (net, "layers.0", net.layers[0], (3, 2)),
        (net, "layers.1", silu, (3, 2)),
    ]


def test_a_parameter_of_any_shape_accumulates_products():
    class Cube(Module):
        def __init__(self):
            self.value = Parameter((2, 3, 4), lambda stream, shape: stream.normal(shape))

    cube = Cube()
    params = FlatParameters(cube, Stream(0, NUMPY))
    a, b = normals(1, 5, 6), normals(2, 5, 4)
    cube.value.read().accumulate_product(a, b)
    np.testing.assert_allclose(params.grad, (a.T @ b).ravel())


def test_a_target_may_see_to_products_itself():
    class Noting(list):
        def add_product(self, window, a, b):
            self.append((window, a.T @ b))

    net = Linear(2, 3)
    params, x = bound(net), normals(0, 4, 2)
    y, pullback = net(x)
    with params.gradient_into(Noting()) as noted:
        pullback(y)
    assert not np.any(params.grad)
    pullback(y)
    for window, product in noted:
        np.testing.assert_array_equal(params.grad[window], product.ravel())
    assert {window.start for window, _ in noted} == {0, 6}


class TestDerived:
    """What is computed from a parameter, and remembered as long as θ stays."""

    def doubled(self, parameter, name="double"):
        def compute(value):
            self.computed.append(name)
            return 2.0 * value

        return parameter.read().derived(name, compute)

    def setup_method(self):
        self.computed: list[str] = []
        self.net = Sequential(Linear(3, 3), Linear(3, 3))
        self.params = bound(self.net)
        self.weight = self.net.layers[0].weight

    def test_it_is_computed_once_and_is_what_was_computed(self):
        first, again = self.doubled(self.weight), self.doubled(self.weight)
        assert self.computed == ["double"]
        assert again is first
        np.testing.assert_array_equal(first, 2.0 * self.weight.read().value)

    def test_a_new_theta_is_computed_from_anew(self):
        def change():
            self.params.theta *= 3.0
            self.params.changed()

        def step():
            self.params.grad += 1.0
            Adam(self.params).step()

        def assign():
            self.params.theta = self.params.theta + 1.0

        for n, move in enumerate((change, step, assign), start=1):
            self.doubled(self.weight)
            move()
            np.testing.assert_array_equal(self.doubled(self.weight), 2.0 * self.weight.read().value)
            assert len(self.computed) == n + 1

    def test_an_average_that_is_applied_and_taken_back_has_its_own(self):
        ema = Ema(self.params)
        ema.average += 1.0
        before = self.doubled(self.weight)
        with ema.applied():
            np.testing.assert_allclose(self.doubled(self.weight), before + 2.0)
        np.testing.assert_array_equal(self.doubled(self.weight), before)

    def test_parameters_and_names_are_told_apart(self):
        other, bias = self.net.layers[1].weight, self.net.layers[0].bias
        for name in ("double", ("double", False), ("double", True)):
            for parameter in (self.weight, other, bias):
                found = self.doubled(parameter, name)
                np.testing.assert_array_equal(found, 2.0 * parameter.read().value)
                assert self.doubled(parameter, name) is found
        assert len(self.computed) == 9
        halved = self.weight.read().derived("half", lambda value: 0.5 * value)
        np.testing.assert_array_equal(halved, 0.5 * self.weight.read().value)

    def test_a_parameter_without_numbers_does_not_share_its_neighbour_s(self):
        """Nor that of another shape without numbers: all of them begin at one place."""
        shapes = [(0, 3), (2, 0), (3,), (1, 3)]
        net = Module()
        net.parts = [Parameter(shape, Stream.normal) for shape in shapes]
        FlatParameters(net, Stream(0, NUMPY))
        for part in net.parts:
            assert self.doubled(part).shape == part.shape
        assert len(self.computed) == 4

    def test_another_vector_has_its_own(self):
        first = self.doubled(self.weight)
        twin = Sequential(Linear(3, 3), Linear(3, 3))
        bound(twin, seed=2)
        found = self.doubled(twin.layers[0].weight)
        np.testing.assert_array_equal(found, 2.0 * twin.layers[0].weight.read().value)
        assert not np.any(found == first)
        assert len(self.computed) == 2

    def test_a_tied_parameter_shares_it(self):
        tied = Linear(3, 3)
        bound(Sequential(tied, tied))
        assert self.doubled(tied.weight) is self.doubled(tied.weight)

    def test_a_stale_reading_computes_nothing(self):
        reading = self.weight.read()
        self.params.changed()
        with pytest.raises(StalePullback):
            reading.derived("double", lambda value: 2.0 * value)
        found = self.doubled(self.weight)
        with pytest.raises(StalePullback):
            reading.derived("double", lambda value: 3.0 * value)
        assert self.doubled(self.weight) is found

    def test_a_stale_reading_has_nothing_remembered(self):
        """Not even what was remembered while it was fresh."""
        reading = self.weight.read()
        reading.derived("double", lambda value: 2.0 * value)
        self.params.changed()
        with pytest.raises(StalePullback):
            reading.derived("double", lambda value: 2.0 * value)
