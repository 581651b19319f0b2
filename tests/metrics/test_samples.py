"""metrics/samples.py."""

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.data.digits import load_digits
from scratchgen.layers.affine import Linear
from scratchgen.maths.likelihoods import FixedNormal
from scratchgen.metrics.coverage import Coverage, coverage
from scratchgen.metrics.distances import (
    Moments,
    frechet_distance,
    frechet_from_moments,
    kernel_distance,
    normal_moments,
    sliced_wasserstein,
)
from scratchgen.metrics.samples import compare, jackknife_errors, sharpness
from scratchgen.models.autoencoder import Autoencoder, principal_components
from scratchgen.models.vae import Vae
from scratchgen.nets.mlp import mlp
from scratchgen.testing.strategies import seeds
from scratchgen.training.fit import batch_indices
from scratchgen.training.optim import Adam, warmup_cosine

from support import NUMPY, bound, noise, normals

STREAM = Stream(3, NUMPY)
NAMES = [
    "kernel distance on pixels",
    "Fréchet distance on pixels",
    "sliced Wasserstein distance on pixels",
    *(f"{name} on pixels" for name in Coverage._fields),
]
COLUMNS = ["value", "error", "floor", "floor_error", "n_real", "n_reference", "n_generated"]


def every_measure(real, other):
    return [
        kernel_distance(real, other)[0],
        frechet_distance(real, other),
        sliced_wasserstein(real, other, STREAM),
        *coverage(real, other),
    ]


@pytest.mark.parametrize(("n_reference", "n_generated"), [(40, 25), (25, 40), (30, 30)])
def test_each_measure_stands_beside_its_floor_at_the_same_size(n_reference, n_generated):
    real, reference = normals(0, 50, 3), normals(1, n_reference, 3)
    generated = normals(2, n_generated, 3) + 0.5
    n = min(n_reference, n_generated)
    found = compare(real, reference, generated, STREAM, "pixels")
    assert list(found) == NAMES
    assert json.loads(json.dumps(found)) == found
    values, floors = every_measure(real, generated[:n]), every_measure(real, reference[:n])
    for row, value, floor in zip(found.values(), values, floors, strict=True):
        assert list(row) == COLUMNS
        assert (row["value"], row["floor"]) == pytest.approx((value, floor), rel=1e-9)
        assert (row["n_real"], row["n_reference"], row["n_generated"]) == (50, n, n)
    row = found["kernel distance on pixels"]
    errors = kernel_distance(real, generated[:n])[1], kernel_distance(real, reference[:n])[1]
    assert (row["error"], row["floor_error"]) == pytest.approx(errors, rel=1e-12)


def test_errors_come_from_leaving_out_every_tenth_row():
    real, reference, generated = normals(0, 43, 2), normals(1, 37, 2), normals(2, 30, 2) + 0.5
    found = compare(real, reference, generated, STREAM, "pixels", k=2)
    for column, other in (("error", generated), ("floor_error", reference[:30])):
        without = []
        for group in range(10):
            a, b = (np.delete(x, np.s_[group::10], axis=0) for x in (real, other))
            distances = frechet_distance(a, b), sliced_wasserstein(a, b, STREAM)
            without.append([*distances, *coverage(a, b, 2)])
        want = np.sqrt(0.9 * np.sum((without - np.mean(without, axis=0)) ** 2, axis=0))
        got = [found[name][column] for name in NAMES[1:]]
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@given(seeds(), st.integers(2, 30))
def test_the_jackknife_of_a_mean_is_its_standard_error(seed, n):
    """One row to a group: s/√n exactly."""
    x = normals(seed, n, 2)
    without = [np.delete(x, i, axis=0).mean(axis=0) for i in range(n)]
    want = x.std(axis=0, ddof=1) / np.sqrt(n)
    np.testing.assert_allclose(jackknife_errors(np.asarray(without)), want, rtol=1e-9)


@cache
def repeats(count: int) -> list:
    """Comparisons of fresh samples: N(0, I) with a wider and shifted law."""
    drawn = noise(5, 0, count, 3, 50, 3)
    return [compare(*each[:2], 1.3 * each[2] + 1.0, STREAM, "pixels") for each in drawn]


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_those_of_repeated_samples(name):
    """Right for distances of laws apart; else too large: by √2, and for shares by up to twice."""
    rows, distance = [found[name] for found in repeats(80)], "distance" in name
    for value, error, most in (
        ("value", "error", 1.25 if distance else 2.25),
        ("floor", "floor_error", 1.25 if "kernel" in name else 1.7 if distance else 2.25),
    ):
        spread = np.std([row[value] for row in rows], ddof=1)
        claimed = np.sqrt(np.mean([row[error] ** 2 for row in rows]))
        assert 0.8 < claimed / spread < most


def test_a_model_that_draws_from_the_law_reaches_the_floor_and_a_worse_one_does_not():
    real, reference, same = noise(6, 0, 3, 200, 4)
    good = compare(real, reference, same, STREAM, "pixels")
    bad = compare(real, reference, 1.5 * same, STREAM, "pixels")
    for name in NAMES[:3]:
        allowed = 3.0 * np.hypot(good[name]["error"], good[name]["floor_error"])
        assert abs(good[name]["value"] - good[name]["floor"]) < allowed
        assert bad[name]["value"] - bad[name]["floor"] > allowed


def test_twenty_rows_are_needed():
    enough, few = normals(0, 20, 2), normals(1, 19, 2)
    compare(enough, enough, enough, STREAM)
    for sets in ((few, enough, enough), (enough, few, enough), (enough, enough, few)):
        with pytest.raises(ValueError, match="N ≥ 20, got shape .19, 2."):
            compare(*sets, STREAM)


# what a plain autoencoder lacks: a distribution of its codes to draw from


def put(params, **values) -> None:
    """Set parameters by name, with __ for the dots."""
    for name, value in values.items():
        params.theta[params.table[name.replace("__", ".")].window] = np.ravel(value)
    params.changed()


def best_linear_pair(x, latent, variance):
    """An autoencoder and a VAE, linear, of one size, both at the least loss they have on x.

    With U the first axes of the covariance and L its eigenvalues (Tipping & Bishop, 1999), and s²
    the VAE's decoder variance:

        autoencoder   h = Uᵀ(x - m),  x̂ = U h + m
        VAE           q(z | x) = N(L⁻¹ Wᵀ(x - m), s² L⁻¹),  x̂ = W z + m,  W = U (L - s²)^{1/2}
    """
    dims = x.shape[1]
    mean, values, axes = principal_components(x)
    u, l = axes[:, :latent], values[:latent]
    w = u * np.sqrt(l - variance)
    plain = Autoencoder(Linear(dims, latent), Linear(latent, dims))
    vae = Vae(Linear(dims, 2 * latent), Linear(latent, dims), FixedNormal(variance))
    of_plain, of_vae = bound(plain), bound(vae)
    put(of_plain, encoder__weight=u.T, encoder__bias=-mean @ u)
    put(of_plain, decoder__weight=u, decoder__bias=mean)
    to_mean = (w / l).T
    put(of_vae, encoder__weight=np.concatenate([to_mean, np.zeros_like(to_mean)]))
    put(of_vae, encoder__bias=np.concatenate([-to_mean @ mean, np.log(variance / l)]))
    put(of_vae, decoder__weight=w, decoder__bias=mean)
    return (plain, of_plain), (vae, of_vae)


def decoded(model) -> Moments:
    """The moments of what a linear decoder makes of N(0, I), exactly."""
    return Moments(model.decoder.bias.read().value, model.decoder.weight.read().value.T)


@pytest.mark.equation("NET-4")
@given(seeds(), st.integers(1, 3))
def test_in_a_linear_world_decoding_noise_is_better_by_a_vae_exactly(seed, latent):
    """Σ (√l_i - 1)² against Σ (√l_i - √(l_i - s²))², beside the same Σ l_i of what both leave out.

    For data wider than the noise, as standard deviations from 2 to 5 along the axes that both find.
    """
    dims, variance = 4, 0.5
    values = np.sort(4.0 + 21.0 * Stream(seed, NUMPY).uniform((dims,)))[::-1]
    values[latent:] = 0.1 + 0.4 * Stream(seed, NUMPY).at("rest").uniform((dims - latent,))
    axes, white = (np.linalg.qr(normals(seed, n, dims))[0] for n in (dims, 40))
    centred = white - white.mean(axis=0)
    x = np.linalg.qr(centred)[0] * np.sqrt(40.0 * values) @ axes.T + normals(seed + 1, dims)
    data = normal_moments(x.mean(axis=0), np.cov(x, rowvar=False, bias=True))
    (plain, of_plain), (vae, of_vae) = best_linear_pair(x, latent, variance)

    each = np.full(40, 1.0 / 40.0)
    plain.loss(x)[1](each)
    eps = np.sqrt(latent) * np.concatenate([np.eye(latent), -np.eye(latent)])
    eps = np.repeat(eps[:, None], 40, axis=1)  # with the moments of N(0, I), which is all it takes
    vae.loss(x, eps)[1](each, each)
    for params in (of_plain, of_vae):  # neither has anything to learn from the data any more
        np.testing.assert_allclose(params.grad, 0.0, atol=1e-9)

    deviations, left_out = np.sqrt(values[:latent]), np.sum(values[latent:])
    worse = left_out + np.sum((deviations - 1.0) ** 2)
    better = left_out + np.sum((deviations - np.sqrt(values[:latent] - variance)) ** 2)
    found = [frechet_from_moments(decoded(model), data) for model in (plain, vae)]
    assert found == pytest.approx([worse, better], rel=1e-9)
    assert worse > better + 0.9 * latent


def images(seed, n=6, shape=(5, 4, 2)):
    return normals(seed, n, *shape)


@given(seeds(), st.floats(-3.0, 3.0))
def test_sharpness_is_one_for_the_data_and_scales_with_contrast(seed, contrast):
    x = images(seed)
    for same in (x, x[::-1], x[:, ::-1], x[:, :, ::-1], x[..., ::-1]):
        assert sharpness(x, same) == pytest.approx(1.0)
    assert sharpness(x, 0.3 + contrast * x) == pytest.approx(abs(contrast), abs=1e-12)
    turned = x.swapaxes(1, 2)
    y = images(seed + 1)
    assert sharpness(turned, y.swapaxes(1, 2)) == pytest.approx(sharpness(x, y))


@given(seeds(), st.floats(0.0, 1.0))
def test_a_mean_of_images_is_no_sharper_than_they_are(seed, weight):
    x, y = images(seed), images(seed + 1)
    mixed = sharpness(x, weight * x + (1.0 - weight) * y)
    assert mixed <= weight + (1.0 - weight) * sharpness(x, y) + 1e-12


def test_sharpness_of_ramps_and_of_a_chessboard_is_counted_by_hand():
    down, across = (a.astype(np.float64)[None, ..., None] for a in np.indices((3, 4)))
    # of 17 pairs 8 lie one above the other
    assert sharpness(down + across, down) == pytest.approx(8.0 / 17.0)
    assert sharpness(down + across, (down + across) % 2.0) == pytest.approx(1.0)
    assert sharpness(down + across, 0.0 * down) == 0.0


@pytest.mark.parametrize(
    ("real", "generated", "what"),
    [
        (np.ones((2, 3, 3)), np.ones((2, 3, 3)), "images"),
        (np.ones((2, 3, 3, 1)), np.ones((2, 3, 4, 1)), "of one shape"),
        (np.ones((2, 3, 3, 1)), np.ones((0, 3, 3, 1)), "of one shape"),
        (np.ones((2, 3, 3, 1)), np.ones((2, 3, 3, 1)), "must not be flat"),
        (np.ones((2, 1, 1, 1)), np.ones((2, 1, 1, 1)), "must not be flat"),
    ],
)
def test_sharpness_needs_images_that_differ(real, generated, what):
    with pytest.raises(ValueError, match=what):
        sharpness(real, generated)


@pytest.mark.equation("NET-4")
def test_no_loss_of_a_plain_autoencoder_says_how_wide_its_codes_are():
    """Codes half as large, decoded twice as much: the same loss, another law of decoded noise."""
    x = normals(0, 40, 4) * [5.0, 3.0, 0.5, 0.1]
    data = normal_moments(x.mean(axis=0), np.cov(x, rowvar=False, bias=True))
    (plain, params), _ = best_linear_pair(x, 2, 0.1)
    before, law = plain.loss(x)[0][0], frechet_from_moments(decoded(plain), data)
    encoder, decoder = plain.encoder, plain.decoder
    put(params, encoder__weight=0.5 * encoder.weight.read().value)
    put(params, encoder__bias=0.5 * encoder.bias.read().value)
    put(params, decoder__weight=2.0 * decoder.weight.read().value)
    np.testing.assert_allclose(plain.loss(x)[0][0], before, rtol=1e-9)
    assert frechet_from_moments(decoded(plain), data) < 0.6 * law


@pytest.mark.equation("NET-4")
def test_on_the_digits_decoded_noise_is_nearer_by_a_vae():
    """Three hundred steps each, with the same nets but for the log-variances of the VAE."""
    x, held_out = (load_digits(part).x.reshape(-1, 64) for part in ("fit", "validation"))
    stream, latent = Stream(0, NUMPY), 8
    models = {
        "plain": Autoencoder(mlp([64, 64, latent]), mlp([latent, 64, 64])),
        "vae": Vae(mlp([64, 64, 2 * latent]), mlp([latent, 64, 64]), FixedNormal(0.1)),
    }
    found = {}
    for name, model in models.items():
        params = FlatParameters(model, stream.at("initial"))
        adam = Adam(params, warmup_cosine(0.01, 300))
        for step in range(300):
            rows = batch_indices(stream.at("batches"), len(x), 100, step)
            eps = (stream.at("eps", step).normal((1, 100, latent)),) if name == "vae" else ()
            terms, pullback = model.loss(x[rows], *eps)
            pullback(*[np.full(100, 0.01)] * len(terms))
            adam.step()
        decoder = model.decode if name == "vae" else lambda z, net=model.decoder: net(z)[0]
        found[name] = frechet_distance(held_out, decoder(stream.at("codes").normal((500, latent))))
    assert found["plain"] > 4.0 * found["vae"]
