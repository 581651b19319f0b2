"""metrics/classifier.py: gradients, what a frozen trunk means, and features for measures."""

import hashlib
import re

import numpy as np
import pytest
from hypothesis import given

from scratchgen.core.arrays import Backend
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.data.digits import load_digits
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.metrics.classifier import Classifier, weight_hash
from scratchgen.metrics.coverage import class_score
from scratchgen.metrics.distances import kernel_distance
from scratchgen.metrics.likelihood import in_batches
from scratchgen.models.autoencoder import Autoencoder
from scratchgen.nets.convnet import conv_classifier
from scratchgen.nets.mlp import mlp
from scratchgen.testing import oracle
from scratchgen.testing.strategies import seeds, sizes
from scratchgen.training.fit import batch_indices
from scratchgen.training.optim import Adam, warmup_cosine

from support import NUMPY, Spy, bound, host, normals, on_every_backend, tolerance

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


@pytest.mark.equation("NET-3")
@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([0, 1, 2, 0, 3], "labels must be integers in 0..2, got 0 to 3"),
        ([0, 1, -1, 0, 2], "labels must be integers in 0..2, got -1 to 2"),
        ([1], "labels must have shape (5,), got (1,)"),
        ([[0], [1], [2], [0], [1]], "labels must have shape (5,), got (5, 1)"),
    ],
)
def test_every_example_has_a_label_that_is_a_class(labels, says):
    model = Classifier(mlp([4, 6]), Linear(6, 3))
    bound(model)
    with pytest.raises(ValueError, match=re.escape(says)):
        model.loss(normals(0, 5, 4), np.asarray(labels))


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


@pytest.mark.equation("NET-3")
@given(seeds(), sizes())
def test_features_and_log_probabilities(seed, n):
    """The trunk's output, and a softmax that the loss and the predictions are of."""
    model = Classifier(mlp([4, 6]), Linear(6, 3))
    bound(model, seed)
    x, labels = normals(seed, n, 4), np.arange(n) % 3
    features = model.features(x)
    np.testing.assert_array_equal(features, model.trunk(x)[0])
    logits = model.head(features)[0]
    log_p = model.log_probabilities(x)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1.0, rtol=1e-12)
    want = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(log_p), want, rtol=1e-10)
    np.testing.assert_allclose(-log_p[np.arange(n), labels], model.loss(x, labels)[0][0], rtol=1e-9)
    np.testing.assert_array_equal(log_p.argmax(axis=1), model.predict(x))


def test_sure_of_itself_beyond_the_range_of_exp():
    model = Classifier(lambda x: (x, None), lambda x: (1e4 * x, None))
    found = model.log_probabilities(np.eye(3))
    np.testing.assert_allclose(found, 1e4 * (np.eye(3) - 1.0), atol=1e-9)


@on_every_backend
def test_every_backend_agrees(born):
    found = []
    for backend in (born, NUMPY):
        model = Classifier(mlp([4, 6]), Linear(6, 3))
        bound(model, 0, backend)
        x = backend.asarray(normals(0, 5, 4))
        found.append([host(model.features(x)), host(model.log_probabilities(x))])
    for got, want in zip(*found, strict=True):
        np.testing.assert_allclose(got, want, rtol=tolerance(born), atol=tolerance(born))


def test_a_hash_names_the_weights():
    params, other = (bound(mlp([4, 5, 2]), seed) for seed in (1, 2))
    name = weight_hash(params)
    assert re.fullmatch("[0-9a-f]{12}", name)
    assert name == weight_hash(bound(mlp([4, 5, 2]), 1))
    assert name == hashlib.sha256(params.theta.tobytes()).hexdigest()[:12]
    assert name != weight_hash(other)
    params.theta[0] = np.nextafter(params.theta[0], np.inf)
    assert name != weight_hash(params)


@pytest.mark.equation("NET-3")
def test_a_small_convnet_learns_the_digits_and_its_features_tell_them_from_noise():
    """Two hundred steps in float32; accuracy on held-out images; noisy images lie further off."""
    fit, held_out = load_digits("fit"), load_digits("validation")
    born = Backend(np, "float32")
    stream = Stream(0, born)
    model = Classifier(*conv_classifier((8, 8, 1), 10, width=8))
    params = FlatParameters(model, stream.at("initial"))
    adam, x = Adam(params, warmup_cosine(0.005, 200)), born.asarray(fit.x)
    labels = fit.labels.astype(np.int64)
    for step in range(200):
        rows = batch_indices(stream.at("batches"), len(fit), 64, step)
        _, pullback = model.loss(x[rows], labels[rows])
        pullback(np.full(64, 1.0 / 64.0, dtype=np.float32))
        adam.step()
    seen = born.asarray(held_out.x)
    assert np.mean(model.predict(seen) == held_out.labels) > 0.9
    noisy = seen + stream.at("noise").normal(seen.shape)
    features = [in_batches(model.features, images, 64) for images in (x, seen, noisy)]
    assert features[0].shape == (1300, 16 * 16)
    same, apart = (kernel_distance(features[0], other) for other in features[1:])
    assert abs(same[0]) < 3.0 * same[1]
    assert apart[0] > 5.0 * apart[1]
    score, _ = class_score(in_batches(model.log_probabilities, seen, 64), splits=1)
    assert 8.0 < score < 10.0
