"""layers/combinators.py: composition and residuals."""

import numpy as np
import pytest
from hypothesis import given

from scratchgen.core.streams import Stream
from scratchgen.layers.activations import leaky_relu, silu, tanh
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Residual, Sequential
from scratchgen.layers.dropout import Dropout
from scratchgen.testing import oracle
from scratchgen.testing.strategies import seeds, sizes

from support import NUMPY, bound, normals


@given(seeds(), sizes(), sizes())
def test_composition_and_residual(seed, n, width):
    net = Sequential(
        Linear(width, 4), silu, Residual(Sequential(Linear(4, 4), tanh, Linear(4, 4))), Linear(4, 2)
    )
    params, x = bound(net, seed), normals(seed, n, width)
    oracle.check_gradient(params, net, x)
    with params.frozen():
        oracle.check_pullback(net, x)
        oracle.check_pushforward(net, x, normals(seed + 1, n, width))
    oracle.check_gradient(params, net.pushforward, x, normals(seed + 2, n, width))


def test_one_net_called_twice_has_two_pullbacks():
    net = Sequential(Linear(3, 5), leaky_relu, Linear(5, 1))
    params = bound(net)

    def score_difference(x, y):
        (a, pull_a), (b, pull_b) = net(x), net(y)
        return a - b, lambda d: (pull_a(d), pull_b(-d))

    oracle.check_gradient(params, score_difference, normals(0, 4, 3), normals(1, 4, 3))
    with params.frozen():
        oracle.check_pullback(score_difference, normals(0, 4, 3), normals(1, 4, 3))


def test_batches_do_not_mix():
    net = Sequential(Linear(3, 5), silu, Linear(5, 2))
    bound(net)
    x = normals(0, 6, 3)
    np.testing.assert_allclose(net(x[::-1])[0], net(x)[0][::-1], rtol=1e-13)


def test_a_data_reader_ends_the_way_back():
    net = Sequential(Dropout(0.5), Linear(3, 5, reads_data=True), silu, Linear(5, 2))
    params = bound(net)
    y, pullback = net(normals(0, 4, 3), stream=Stream(0, NUMPY))
    assert pullback(y) is None
    assert np.all(params.grad[:5] != 0.0)


def test_a_data_reader_behind_parameters_is_refused():
    with pytest.raises(ValueError, match="layer 1 has reads_data=True"):
        Sequential(Linear(3, 5), Linear(5, 2, reads_data=True))


def test_each_layer_that_draws_has_its_own_noise():
    net = Sequential(Dropout(0.5), Residual(Dropout(0.5)), Sequential(Dropout(0.5)))
    assert net.draws
    kept = net(np.ones((1000, 1)), stream=Stream(0, NUMPY))[0]
    # survivors of the first mask, times (1 + 2·second), times 2·third: all eight cases occur
    assert set(np.unique(kept)) == {0.0, 4.0, 12.0}
    np.testing.assert_array_equal(net(np.ones((3, 1)))[0], [[2.0]] * 3)
