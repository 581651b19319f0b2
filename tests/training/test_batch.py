"""training/batch.py: mean terms and a gradient, or an error that says where it went wrong."""

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.module import Buffer
from scratchgen.core.parallel import Solo
from scratchgen.layers.activations import tanh
from scratchgen.layers.affine import Linear, zero_values
from scratchgen.layers.combinators import Sequential
from scratchgen.testing.strategies import seeds
from scratchgen.training.batch import NotFinite, batch_means, broken
from scratchgen.training.optim import Adam

from support import NUMPY, Halves, bound, host, normals, on_every_backend, tolerance


class Regression:
    """Squares of what a small net makes of a batch of an even number of rows."""

    def __init__(self, x, born=NUMPY):
        self.net = Sequential(Linear(3, 4), tanh, Linear(4, 1))
        self.net.seen = Buffer((2,), zero_values)
        self.params, self.x, self.inside, self.entered = bound(self.net, born=born), x, False, []

    def shard(self, rows):
        self.entered.append(self.inside)
        y, pullback = self.net(self.x[rows, ...])
        pullback(2.0 * y / self.x.shape[0])
        return {"square": y[:, 0] ** 2, "nothing": 0.0 * y[:, 0]}

    @contextmanager
    def within(self):
        self.inside = True
        yield
        self.inside = False

    def means(self, workers=None, shard=None):
        return batch_means(
            self.net,
            self.params,
            shard or self.shard,
            self.x.shape[0],
            workers or Solo(),
            self.within,
            "step 6",
        )


@on_every_backend
def test_the_terms_are_averaged_and_the_gradient_is_left(born):
    r, plain = (Regression(born.asarray(normals(1, 8, 3)), born) for _ in range(2))
    terms = plain.shard(slice(0, 8))
    means = r.means()
    assert list(means) == ["square", "nothing"]
    assert means["square"] == pytest.approx(np.mean(host(terms["square"])), rel=tolerance(born))
    assert means["nothing"] == 0.0
    assert np.any(host(r.params.grad))
    np.testing.assert_array_equal(host(r.params.grad), host(plain.params.grad))
    assert r.entered == [True]
    assert not r.inside


@given(seeds(), st.integers(1, 5))
def test_workers_share_the_rows(seed, pairs):
    alone, halves = (Regression(normals(seed, 2 * pairs, 3)) for _ in range(2))
    assert halves.means(Halves()) == pytest.approx(alone.means(), rel=1e-12)
    np.testing.assert_allclose(halves.params.grad, alone.params.grad, rtol=1e-10, atol=1e-13)
    assert halves.entered == [True, True]


def test_the_first_layer_that_is_not_finite_is_named():
    r = Regression(np.full((4, 3), np.inf))
    want = (
        r"^step 6: the loss term 'square' is nan; the value stops being finite first in the output "
        r"of layer layers\.0\. Try a smaller learning rate$"
    )
    with np.errstate(invalid="ignore"), pytest.raises(NotFinite, match=want):
        r.means()
    assert not np.any(r.params.grad)
    assert r.entered == [True, False]  # looking for the layer is no part of the step


def test_so_is_a_parameter_that_an_earlier_update_broke():
    r = Regression(normals(1, 4, 3))
    r.params.theta[r.params.table["layers.2.bias"].window] = np.nan
    with pytest.raises(NotFinite, match=r"parameter layers\.2\.bias is not finite, so an earlier"):
        r.means()
    assert not np.any(r.params.grad)


def test_and_a_loss_that_no_layer_is_to_blame_for():
    r = Regression(normals(1, 4, 3))
    with pytest.raises(NotFinite, match="step 6: the loss term 'log' is -inf; .* the last layer"):
        r.means(shard=lambda rows: {**r.shard(rows), "log": np.array([0.0, -np.inf])})
    assert not np.any(r.params.grad)


def test_what_failed_leaves_no_gradient():
    r = Regression(normals(1, 4, 3))

    def fail(rows):
        r.shard(rows)
        raise KeyError("half way")

    with pytest.raises(KeyError, match="half way"):
        r.means(shard=fail)
    assert not np.any(r.params.grad)


@on_every_backend
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_broken_is_named(born, value):
    """What an optimiser remembers last, as a parameter that is broken breaks that too."""
    r = Regression(born.asarray(normals(1, 4, 3)), born)
    adam = Adam(r.params)
    assert broken(r.params, adam.memory) is None
    adam.v[r.params.table["layers.2.bias"].window] = value
    assert broken(r.params, adam.memory) == "optimiser's v of layers.2.bias"
    adam.m[r.params.table["layers.2.weight"].window] = value
    assert broken(r.params, adam.memory) == "optimiser's m of layers.2.weight"
    r.params.theta[r.params.table["layers.2.weight"].window] = value
    assert broken(r.params, adam.memory) == "parameter layers.2.weight"
    r.net.seen.value = born.asarray(np.array([0.0, value]))
    assert broken(r.params, adam.memory) == "buffer seen"
