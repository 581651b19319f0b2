"""models/autoencoder.py: gradients, and the linear case against principal components."""

from math import log, pi
from re import escape

import numpy as np
import pytest
from hypothesis import given

from scratchgen.core.streams import Stream
from scratchgen.layers.activations import sigmoid
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.maths.likelihoods import FixedNormal
from scratchgen.models.autoencoder import Autoencoder, principal_components
from scratchgen.nets.mlp import mlp
from scratchgen.testing import oracle
from scratchgen.testing.strategies import seeds, sizes
from scratchgen.training.optim import Adam, warmup_cosine

from support import NUMPY, Spy, bound, host, normals, on_every_backend, tolerance


def correlated(n=200, d=5, seed=0):
    return normals(seed, n, d) @ normals(seed + 1, d, d) + normals(seed + 2, d)


def trained_linear(x, k, steps=8000):
    d = x.shape[1]
    model = Autoencoder(Linear(d, k), Linear(k, d))
    params = bound(model)
    adam = Adam(params, warmup_cosine(0.05, steps))
    for _ in range(steps):
        (loss,), pullback = model.loss(x)
        pullback(np.full(len(x), 1.0 / len(x)))
        adam.step()
    return model, float(loss.mean())


@pytest.mark.equation("NET-1")
@given(seeds(), sizes(), sizes(3))
def test_gradients(seed, n, k):
    net = Autoencoder(
        Sequential(Linear(4, k, reads_data=True), sigmoid), mlp([k, 5, 4], dropout=0.3)
    )
    params, x = bound(net, seed), normals(seed, n, 4)
    oracle.check_gradient(params, net.loss, x)
    oracle.check_gradient(params, lambda v: net.loss(v, Stream(seed, NUMPY)), x)
    oracle.check_accumulation(params, net.loss, x)
    gap = net.reconstruct(x) - x
    np.testing.assert_allclose(net.loss(x)[0][0], (gap**2).sum(axis=-1), rtol=1e-12)


def test_a_reconstruction_has_the_shape_of_the_data():
    net = Autoencoder(mlp([4, 2]), mlp([2, 1]))
    bound(net)
    with pytest.raises(ValueError, match=escape("decoder(h) must have shape (5, 4), got (5, 1)")):
        net.loss(normals(0, 5, 4))


@pytest.mark.equation("VAE-7")
@given(seeds(), sizes())
def test_the_loss_is_a_normal_cost_of_variance_one_half(seed, n):
    """‖x - x̂‖² = -log N(x; x̂, ½ I) - (D/2) log π, and so are their gradients."""
    net = Autoencoder(mlp([4, 5]), mlp([5, 4]))
    params, x = bound(net, seed), normals(seed, n, 4)

    def normal_cost(v):
        h, encoder_pullback = net.encoder(v)
        x_hat, decoder_pullback = net.decoder(h)
        nll, pullback = FixedNormal(0.5).nll(v, x_hat)
        return nll.sum(axis=-1), lambda d: encoder_pullback(decoder_pullback(pullback(d[:, None])))

    found = []
    for loss in (lambda v: (net.loss(v)[0][0], net.loss(v)[1]), normal_cost):
        value, pullback = loss(x)
        with params.gradient_into(np.zeros_like(params.theta)) as gradient:
            pullback(np.arange(n) + 1.0)
        found.append((value, gradient))
    np.testing.assert_allclose(found[0][0], found[1][0] - 2.0 * log(pi), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-10, atol=1e-12)


def test_encoder_and_decoder_have_noise_of_their_own():
    encoder, decoder = Spy(2), Spy(4)
    Autoencoder(encoder, decoder).loss(np.zeros((5, 4)), Stream(0, NUMPY))
    assert len(set(encoder.paths + decoder.paths)) == 2


@pytest.mark.equation("NET-2")
@pytest.mark.equation("NET-1")
def test_a_linear_autoencoder_finds_the_principal_subspace():
    x = correlated()
    _, eigenvalues, vectors = principal_components(x)
    for k in (1, 2, 5):
        model, loss = trained_linear(x, k)
        assert loss == pytest.approx(eigenvalues[k:].sum(), abs=1e-4 * eigenvalues.sum())
        span, _ = np.linalg.qr(model.decoder.weight.read().value)
        cosines = np.linalg.svd(span.T @ vectors[:, :k], compute_uv=False)
        np.testing.assert_allclose(cosines, 1.0, atol=1e-3)


@pytest.mark.equation("NET-2")
@given(seeds())
def test_principal_components_diagonalise_the_covariance(seed):
    x = correlated(30, 4, seed)
    mean, values, vectors = principal_components(x)
    scores = (x - mean) @ vectors
    np.testing.assert_allclose(scores.T @ scores / 30, np.diag(values), atol=1e-10 * values[0])
    assert np.all(np.diff(values) <= 0.0)


@on_every_backend
def test_every_backend_agrees(born):
    x, found = normals(0, 6, 4), []
    for made in (born, NUMPY):
        model = Autoencoder(mlp([4, 5, 2], reads_data=True), mlp([2, 5, 4]))
        params = bound(model, born=made)
        (loss,), pullback = model.loss(made.asarray(x))
        pullback(loss)
        _, values, vectors = principal_components(made.asarray(x))
        found.append([loss, params.grad, model.reconstruct(made.asarray(x)), values, vectors**2])
    for got, want in zip(*found, strict=True):
        oracle.assert_close(host(got), want, 50 * tolerance(born), "value")
