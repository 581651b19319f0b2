"""nets/mlp.py."""

import numpy as np
import pytest

from scratchgen.core.module import Parameter
from scratchgen.core.streams import Stream
from scratchgen.layers.activations import tanh
from scratchgen.layers.dropout import Dropout
from scratchgen.nets.mlp import mlp
from scratchgen.testing import oracle

from support import NUMPY, bound, normals


def test_layers_alternate_and_gradients_are_right():
    net = mlp([3, 5, 4, 2], activation=tanh)
    params, x = bound(net), normals(0, 6, 3)
    assert [p.shape for _, p in net.named(Parameter)] == [
        (5, 3),
        (5,),
        (4, 5),
        (4,),
        (2, 4),
        (2,),
    ]
    oracle.check_gradient(params, net, x)


def test_dropout_stands_behind_hidden_layers_only():
    net = mlp([3, 50, 2], dropout=0.5, reads_data=True)
    bound(net)
    assert [type(layer) is Dropout for layer in net.layers] == [False, False, True, False]
    y, pullback = net(np.ones((4, 3)), stream=Stream(0, NUMPY))
    assert len(np.unique(y[:, 0])) == 4
    assert pullback(y) is None


def test_one_size_is_refused():
    with pytest.raises(ValueError, match=r"got \[3\]"):
        mlp([3])
