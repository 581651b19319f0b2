"""metrics/likelihood.py."""

from re import escape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.streams import Stream
from scratchgen.maths.likelihoods import Bernoulli
from scratchgen.metrics import likelihood
from scratchgen.models.vae import Vae
from scratchgen.nets.mlp import mlp

from support import NUMPY, bound, normals


def bounds(x, batch, monkeypatch, samples=8):
    monkeypatch.setattr(likelihood, "NUMBERS", 4 * batch)
    vae = Vae(mlp([4, 6, 6]), mlp([3, 6, 4]), Bernoulli())
    bound(vae)
    return likelihood.vae_bounds(vae, x, Stream(5, NUMPY), latent=3, samples=samples)


@pytest.mark.equation("VAE-6")
@pytest.mark.equation("ELBO-2")
def test_an_example_is_measured_alike_in_every_batch(monkeypatch):
    x = (normals(0, 150, 4) > 0.0) * 1.0
    whole, pieces = bounds(x, 1000, monkeypatch), bounds(x, 64, monkeypatch)
    for name in whole:
        np.testing.assert_allclose(whole[name], pieces[name], rtol=1e-12)
    some = bounds(x[:70], 64, monkeypatch)
    np.testing.assert_allclose(some["kl"], whole["kl"][:70], rtol=1e-12)


@pytest.mark.equation("VAE-6")
@pytest.mark.equation("ELBO-2")
def test_samples_in_chunks_are_the_samples_together(monkeypatch):
    """Seven samples, at most three at a time, against the loss and the weights of all at once."""
    x = (normals(0, 20, 4) > 0.0) * 1.0
    vae, stream = Vae(mlp([4, 6, 6]), mlp([3, 6, 4]), Bernoulli()), Stream(5, NUMPY)
    bound(vae)
    monkeypatch.setattr(likelihood, "CHUNK", 3)
    found = likelihood.vae_bounds(vae, x, stream, latent=3, samples=7)
    eps = np.stack([stream.from_row(0).at(s).normal((20, 3)) for s in range(7)])
    (reconstruction, kl), _ = vae.loss(x, eps)
    np.testing.assert_allclose(found["reconstruction"], reconstruction, rtol=1e-12)
    np.testing.assert_allclose(found["kl"], kl, rtol=1e-12)
    tight = np.log(np.exp(vae.log_weights(x, eps)).mean(axis=0))
    np.testing.assert_allclose(found["importance_weighted"], -tight, rtol=1e-10)


@pytest.mark.equation("ELBO-2")
def test_the_tight_bound_costs_less(monkeypatch):
    found = bounds((normals(0, 50, 4) > 0.0) * 1.0, 64, monkeypatch, samples=64)
    assert np.all(found["importance_weighted"] < found["reconstruction"] + found["kl"])
    np.testing.assert_allclose(found["kl_per_dimension"].sum(axis=-1), found["kl"], rtol=1e-12)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=3))
def test_as_many_examples_at_once_as_memory_allows(shape):
    """As many as have no more numbers together than 64 images of 8×8 pixels, and at least one."""
    count, dims = likelihood.at_once(tuple(shape)), int(np.prod(shape))
    assert count * dims <= 64 * 64 or count == 1
    assert (count + 1) * dims > 64 * 64


@given(st.integers(1, 7), st.integers(1, 8))
def test_batches_leave_nothing_out(n, count):
    x, seen = normals(n, n, 2, 3), []
    found = likelihood.in_batches(lambda rows: seen.append(len(rows)) or rows.sum(axis=1), x, count)
    np.testing.assert_array_equal(found, x.sum(axis=1))
    assert max(seen) <= count


def test_large_images_are_measured_a_few_at_a_time():
    """The same noise, and so the same numbers, as for all of them together."""
    rows = []

    class Watched(Vae):
        def weigh(self, x, eps):
            rows.append(x.shape[0] * eps.shape[0])
            return super().weigh(x, eps)

    vae = Watched(mlp([2000, 6]), mlp([3, 2000]), Bernoulli())
    bound(vae)
    x, stream = (normals(0, 5, 2000) > 0.0) * 1.0, Stream(5, NUMPY)
    found = likelihood.vae_bounds(vae, x, stream, latent=3, samples=40)
    assert max(rows) == 2 * likelihood.CHUNK
    eps = np.stack([stream.at(s).normal((5, 3)) for s in range(40)])
    (reconstruction, kl), _ = vae.loss(x, eps)
    np.testing.assert_allclose(found["reconstruction"], reconstruction, rtol=1e-12)
    np.testing.assert_allclose(found["kl"], kl, rtol=1e-12)


def test_mean_and_error():
    mean, error = likelihood.mean_and_error(np.asarray([1.0, 2.0, 3.0, 6.0]))
    assert mean == 3.0
    assert error == pytest.approx(np.std([1.0, 2.0, 3.0, 6.0], ddof=1) / 2.0)


@pytest.mark.parametrize("shape", [(1,), (0,), (), (3, 2)])
def test_an_error_needs_two_numbers(shape):
    with pytest.raises(ValueError, match=escape(f"(N,) with N ≥ 2, got shape {shape}")):
        likelihood.mean_and_error(np.zeros(shape))
