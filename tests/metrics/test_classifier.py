"""metrics/classifier.py: gradients, and what a frozen trunk means."""

import numpy as np
import pytest
from hypothesis import given

from scratchgen.core.streams import Stream
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.metrics.classifier import Classifier
from scratchgen.models.autoencoder import Autoencoder
from scratchgen.nets.mlp import mlp
from scratchgen.testing import oracle
from scratchgen.testing.strategies import seeds, sizes
from scratchgen.training.optim import Adam

from support import NUMPY, Spy, bound, normals

LABELS = np.asarray([0, 2, 1, 0, 2])


def pretrained():
    model = Autoencoder(mlp([4, 6, 3]), mlp([3, 6, 4]))
    return bound(model, seed=7)


def classifier(frozen, source):
    trunk = Sequential(*mlp([4, 6, 3]).layers[:-1])
    model = Classifier(trunk, Linear(6, 3), frozen)
    params = bound(model)
    params.copy_from(source, "trunk.", "encoder.")
    return model, params


@pytest.mark.equation("NET-3")
@given(seeds(), sizes())
def test_gradients(seed, n):
    model = Classifier(mlp([4, 6]), Linear(6, 3))
    params, labels = bound(model, seed), np.arange(n) % 3
    oracle.check_gradient(params, lambda x: model.loss(x, labels), normals(seed, n, 4))


@pytest.mark.equation("NET-3")
@pytest.mark.parametrize("frozen", [True, False])
def test_the_trunk_starts_as_the_encoder_and_stays_if_frozen(frozen):
    source = pretrained()
    model, params = classifier(frozen, source)
    before = 1.0 * params.theta
    trunk = [p.window for name, p in params.table.items() if name.startswith("trunk.")]
    wanted = np.concatenate(
        [source.theta[p.window] for name, p in source.table.items() if "encoder.layers.0" in name]
    )
    np.testing.assert_array_equal(np.concatenate([before[w] for w in trunk]), wanted)
    adam, x = Adam(params, 0.05), normals(0, 5, 4)
    first = None
    for _ in range(50):
        (nll,), pullback = model.loss(x, LABELS)
        first = nll.mean() if first is None else first
        pullback(np.full(5, 0.2))
        adam.step()
    moved = any(np.any(params.theta[w] != before[w]) for w in trunk)
    assert moved != frozen
    assert nll.mean() < first


def test_trunk_and_head_have_noise_of_their_own():
    trunk, head = Spy(6), Spy(3)
    Classifier(trunk, head).loss(np.zeros((5, 4)), LABELS, Stream(0, NUMPY))
    assert len(set(trunk.paths + head.paths)) == 2


@pytest.mark.equation("NET-3")
def test_predictions_are_the_largest_logits():
    model = Classifier(lambda x: (x, lambda d: d), lambda x: (x, lambda d: d))
    np.testing.assert_array_equal(model.predict(np.eye(3)[LABELS]), LABELS)


def test_copying_needs_names_and_shapes_to_match():
    params = bound(mlp([4, 5, 2]))
    with pytest.raises(ValueError, match="begins with 'trunk.'"):
        params.copy_from(pretrained(), "trunk.", "encoder.")
    with pytest.raises(ValueError, match=r"copy layers.0.weight from"):
        params.copy_from(pretrained(), "layers.", "encoder.layers.")
