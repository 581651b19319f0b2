"""models/vae.py in worlds where everything is known, and against autograd."""

from math import log, pi
from re import escape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.streams import Stream
from scratchgen.layers.activations import silu
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.maths import likelihoods as lk
from scratchgen.maths.bounds import elbo, importance_weighted_bound
from scratchgen.models.vae import Vae, active_units
from scratchgen.nets.mlp import mlp
from scratchgen.testing import oracle
from scratchgen.testing.monte_carlo import assert_mean
from scratchgen.testing.strategies import seeds, sizes

from support import NUMPY, Spy, bound, host, normals, on_every_backend, tolerance

LIKELIHOODS = [lk.Bernoulli(), lk.FixedNormal(0.5), lk.Normal(), lk.DiscretisedLogistic(17)]
LIKELIHOODS += [lk.DiscretisedNormal(17), lk.Categorical(5), lk.BernoulliLevels()]


class Affine:
    """A net without parameters: z -> z A + b, set by hand."""

    def __init__(self, a, b):
        self.a, self.b = a, b

    def __call__(self, z):
        return z @ self.a + self.b, lambda dh: dh @ self.a.T


class World:
    """z ~ N(0, I_k), x | z ~ N(Wz + b, s² I_d): evidence and posterior in closed form."""

    def __init__(self, seed, w=None, variance=0.3):
        self.w = normals(seed, 2, 3) if w is None else w
        k, d = self.w.shape
        self.b, self.variance = normals(seed + 1, d), variance
        self.x = 1.5 * normals(seed + 2, 1, d)
        covariance = self.w.T @ self.w + variance * np.eye(d)
        gap = self.x[0] - self.b
        self.log_evidence = -0.5 * (
            gap @ np.linalg.solve(covariance, gap)
            + np.linalg.slogdet(covariance)[1]
            + d * log(2.0 * pi)
        )
        self.precision = np.eye(k) + self.w @ self.w.T / variance
        self.mean = np.linalg.solve(self.precision, self.w @ gap / variance)

    def vae(self, mean, logvar):
        """The model with the constant encoder N(mean, e^logvar)."""
        zero = np.zeros((self.x.shape[1], 2 * len(mean)))
        encoder = Affine(zero, np.concatenate([mean, logvar]))
        return Vae(encoder, Affine(self.w, self.b), lk.FixedNormal(self.variance))

    def gap(self, mean, logvar):
        """KL(q ‖ exact posterior) for a diagonal q."""
        delta, p = mean - self.mean, self.precision
        trace = float(np.diag(p) @ np.exp(logvar))
        logdet = float(logvar.sum()) + np.linalg.slogdet(p)[1]
        return 0.5 * (trace + delta @ p @ delta - len(mean) - logdet)


def repeated(world, vae, seed):
    """(n, look) -> n independent single-sample ELBO estimates, with the controls ε, ε²-1, εε'."""

    def draw(n, look):
        k = len(world.mean)
        eps = Stream(seed, NUMPY).at(look).normal((n, k))
        (reconstruction, kl), _ = vae.loss(np.repeat(world.x, n, axis=0), eps[None])
        pairs = [eps[:, i] * eps[:, j] for i in range(k) for j in range(i)]
        controls = np.stack([*eps.T, *(eps.T**2 - 1.0), *pairs], axis=-1)
        return elbo(reconstruction, kl), controls

    return draw


@pytest.mark.equation("VAE-6")
@pytest.mark.equation("VAE-8")
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda p: type(p).__name__)
@given(seeds(), sizes(3), sizes(3), sizes(3))
def test_gradients_of_both_nets(likelihood, seed, n, samples, k):
    dims = 4
    vae = Vae(
        Sequential(Linear(dims, 5, reads_data=True), silu, Linear(5, 2 * k)),
        Sequential(Linear(k, 5), silu, Linear(5, dims * likelihood.width)),
        likelihood,
    )
    params = bound(vae, seed)
    x = (normals(seed, n, dims) > 0.0) * 1.0
    if isinstance(likelihood, lk.Levels):
        x = lk.level_centres(
            (normals(seed, n, dims) > 0.0) + likelihood.levels // 2 - 1.0, likelihood.levels
        )
    oracle.check_gradient(params, vae.loss, x, normals(seed + 1, samples, n, k))


@pytest.mark.equation("VAE-1")
@pytest.mark.equation("VAE-4")
def test_gradients_through_dropout_use_the_masks_of_the_forward_pass():
    vae = Vae(mlp([4, 6, 4], dropout=0.5), mlp([2, 6, 4], dropout=0.5), lk.Bernoulli())
    params, stream = bound(vae), Stream(3, NUMPY)
    x, eps = (normals(0, 5, 4) > 0.0) * 1.0, normals(1, 2, 5, 2)
    oracle.check_gradient(params, lambda a, b: vae.loss(a, b, stream), x, eps)
    assert np.any(vae.loss(x, eps, stream)[0][0] != vae.loss(x, eps)[0][0])


@pytest.mark.equation("ELBO-3")
@pytest.mark.equation("ELBO-5")
@given(seeds(), st.floats(-2.0, 1.0))
def test_elbo_plus_gap_is_the_evidence(seed, logvar):
    """For every q: E[loss terms], simulated with exact controls, + KL(q ‖ posterior) = log p(x)."""
    world = World(seed)
    mean, logvar = normals(seed + 3, 2), np.asarray([logvar, -0.5])
    vae = world.vae(mean, logvar)
    lower = world.log_evidence - world.gap(mean, logvar)
    size = abs(lower) + float(np.abs(world.w).max()) ** 2 / world.variance
    assert_mean(repeated(world, vae, seed), lower, resolution=1e-8 * size)


@pytest.mark.equation("VAE-3")
@pytest.mark.equation("ELBO-2")
@pytest.mark.equation("ELBO-4")
@given(seeds())
def test_at_the_exact_posterior_every_weight_is_the_evidence(seed):
    """Where W Wᵀ is diagonal so is the posterior, and log-weights have no variance at all."""
    world = World(seed, w=np.diag(np.exp(normals(seed, 2))) @ np.eye(2, 3))
    vae = world.vae(world.mean, -np.log(np.diag(world.precision)))
    weights = vae.log_weights(world.x, normals(seed, 50, 1, 2))
    np.testing.assert_allclose(weights, world.log_evidence, rtol=1e-10, atol=1e-9)


@pytest.mark.equation("ELBO-2")
def test_more_importance_samples_tighten_the_bound_towards_the_evidence():
    world = World(11)
    vae = world.vae(world.mean + 0.3, np.log([0.2, 0.1]))

    def means(samples, n=5_000):
        eps = Stream(12, NUMPY).at(samples).normal((samples, n, 2))
        bounds = importance_weighted_bound(vae.log_weights(np.repeat(world.x, n, axis=0), eps))
        return bounds.mean(), bounds.std() / n**0.5

    found = [means(s) for s in (1, 8, 64, 512)]
    for (lower, e1), (higher, e2) in zip(found, found[1:], strict=False):
        assert higher - lower > 6.2 * (e1**2 + e2**2) ** 0.5
    assert found[-1][0] < world.log_evidence + 6.2 * found[-1][1]
    assert world.log_evidence - found[-1][0] < 0.02 * (world.log_evidence - found[0][0])


@pytest.mark.equation("VAE-8")
@pytest.mark.equation("VAE-1")
@pytest.mark.equation("VAE-6")
@given(seeds(), st.integers(2, 4), sizes(3))
def test_several_samples_are_averaged(seed, samples, n):
    vae = Vae(mlp([4, 6]), mlp([3, 4]), lk.Bernoulli())
    bound(vae, seed)
    x, eps = (normals(seed, n, 4) > 0.0) * 1.0, normals(seed + 1, samples, n, 3)
    (together, kl), _ = vae.loss(x, eps)
    alone = [vae.loss(x, eps[s : s + 1])[0] for s in range(samples)]
    np.testing.assert_allclose(together, np.mean([r for r, _ in alone], axis=0), rtol=1e-12)
    np.testing.assert_allclose(kl, alone[0][1], rtol=1e-12)


@pytest.mark.equation("VAE-6")
@pytest.mark.equation("ERR-18")
def test_the_average_over_samples_is_an_estimate_with_the_known_variance():
    """Unit decoder, z ~ N(m, v): the spread of ½(x-z)² is v(x-m)² + v²/2, over L for L samples."""
    x, m, v, samples = 1.5, 0.5, 0.25, 10
    vae = Vae(
        Affine(np.zeros((1, 2)), np.asarray([m, log(v)])),
        Affine(np.eye(1), 0.0),
        lk.FixedNormal(1.0),
    )
    mean = 0.5 * ((x - m) ** 2 + v + log(2.0 * pi))
    spread = (v * (x - m) ** 2 + 0.5 * v * v) / samples

    def squares(n, look):
        eps = Stream(18, NUMPY).at(look).normal((samples, n, 1))
        return (vae.loss(np.full((n, 1), x), eps)[0][0] - mean) ** 2

    assert_mean(squares, spread, resolution=0.03 * spread)
    with pytest.raises(AssertionError, match="standard errors"):  # printed: equality, no spread
        assert_mean(squares, 0.0, resolution=0.03 * spread)


@pytest.mark.equation("ERR-35")
def test_without_one_over_l_the_optimum_is_not_the_posterior():
    """x = 1.5, unit model: (m, v) = (0.75, 0.5) is exact; the printed sum wants (1.25, 1/6)."""
    x, samples = np.asarray([[1.5]]), 5
    nodes, weights = np.polynomial.hermite_e.hermegauss(samples)
    weights = weights / weights.sum()

    def gradient(m, v, factor):
        """Of the expected loss w.r.t. (m, log v), by quadrature over five samples."""
        encoder = Linear(1, 2)
        params = bound(encoder)
        params.theta = np.asarray([0.0, 0.0, m, log(v)])
        vae = Vae(encoder, Affine(np.eye(1), 0.0), lk.FixedNormal(1.0))
        for node, weight in zip(nodes, weights, strict=True):
            _, pullback = vae.loss(x, np.full((1, 1, 1), node))
            pullback(np.full(1, factor * weight), np.full(1, weight))
        return params.grad[2:]

    np.testing.assert_allclose(gradient(0.75, 0.5, factor=1.0), 0.0, atol=1e-12)
    np.testing.assert_allclose(gradient(1.25, 1.0 / 6.0, factor=samples), 0.0, atol=1e-12)
    assert np.abs(gradient(0.75, 0.5, factor=samples)).max() > 1.0


@pytest.mark.equation("VAE-9")
@pytest.mark.equation("VAE-1")
def test_generated_data_have_the_covariance_of_the_model():
    world = World(21)
    vae = world.vae(world.mean, np.zeros(2))
    want = world.w.T @ world.w + world.variance * np.eye(3)
    for i, direction in enumerate(normals(22, 3, 3)):

        def squares(n, look, a=direction, i=i):
            stream = Stream(23, NUMPY).at(i, look)
            h, _ = vae.decoder(stream.at("z").normal((n, 2)))
            return ((vae.likelihood.sample(h, stream.at("x")) - world.b) @ a) ** 2

        value = float(direction @ want @ direction)
        assert_mean(squares, value, resolution=0.03 * value)


@pytest.mark.equation("VAE-1")
@pytest.mark.equation("VAE-2")
@given(seeds())
def test_reconstruction_decodes_the_posterior_mean(seed):
    world = World(seed)
    mean, logvar = normals(seed + 3, 2), normals(seed + 4, 2)
    got = world.vae(mean, logvar).reconstruct(world.x)
    np.testing.assert_allclose(got[0], mean @ world.w + world.b, rtol=1e-12)


def test_encoder_decoder_and_every_sample_have_noise_of_their_own():
    encoder, decoder = Spy(4), Spy(3)
    vae = Vae(encoder, decoder, lk.Bernoulli())
    vae.loss(np.zeros((5, 3)), np.zeros((2, 5, 2)), Stream(0, NUMPY).from_row(64))
    assert len(set(encoder.paths + decoder.paths)) == 3
    assert encoder.rows + decoder.rows == [64] * 3


def test_shards_drop_out_as_the_whole_does():
    vae = Vae(mlp([4, 6, 4], dropout=0.5), mlp([2, 6, 4], dropout=0.5), lk.Bernoulli())
    bound(vae)
    x, eps, stream = (normals(0, 100, 4) > 0.0) * 1.0, normals(1, 3, 100, 2), Stream(3, NUMPY)
    whole, _ = vae.loss(x, eps, stream)
    shards = [
        vae.loss(x[s], eps[:, s], stream.from_row(s.start))[0]
        for s in (slice(0, 70), slice(70, 100))
    ]
    for i in range(2):
        np.testing.assert_allclose(whole[i], np.concatenate([t[i] for t in shards]), rtol=1e-12)


@pytest.mark.parametrize(
    "shape",
    [(5, 2), (1, 1, 2), (1, 5, 1), (3, 1, 1), (3, 5, 3), (3, 4, 2), (1, 3, 5, 2), (2,), (0, 5, 2)],
)
def test_noise_is_one_number_for_each_latent_of_each_example_of_each_sample(shape):
    """And never one for several of them."""
    vae = Vae(mlp([4, 4]), mlp([2, 4]), lk.Bernoulli())
    bound(vae)
    for door in (vae.loss, vae.weigh, vae.log_weights):
        with pytest.raises(
            ValueError, match=escape(f"eps must be (L, 5, 2) with L ≥ 1, got {shape}")
        ):
            door(normals(0, 5, 4), normals(1, *shape))


def test_an_encoder_gives_as_many_variances_as_means():
    vae = Vae(mlp([4, 3]), mlp([2, 4]), lk.Bernoulli())
    bound(vae)
    with pytest.raises(ValueError, match=escape("even length, got (5, 3)")):
        vae.loss(normals(0, 5, 4), normals(1, 1, 5, 1))


@pytest.mark.equation("VAE-1")
@pytest.mark.equation("VAE-9")
@given(seeds(), st.floats(0.0, 2.0))
def test_temperature_scales_the_latent_only(seed, temperature):
    world = World(seed)
    vae, eps = world.vae(world.mean, np.zeros(2)), normals(seed, 4, 2)
    np.testing.assert_allclose(vae.sample(eps, temperature), temperature * eps @ world.w + world.b)


@pytest.mark.equation("VAE-10")
@pytest.mark.equation("VAE-5")
@given(seeds(), sizes())
def test_the_rate_is_the_sum_over_latent_dimensions(seed, n):
    vae = Vae(mlp([4, 6]), mlp([3, 4]), lk.Bernoulli())
    bound(vae, seed)
    x = (normals(seed, n, 4) > 0.0) * 1.0
    rates = vae.kl_per_dimension(x)
    assert rates.shape == (n, 3)
    (_, kl), _ = vae.loss(x, normals(seed + 1, 1, n, 3))
    np.testing.assert_allclose(rates.sum(axis=-1), kl, rtol=1e-12)


@pytest.mark.equation("VAE-10")
def test_collapse_is_seen_per_dimension():
    """Fixed decoder variance τ ≥ s²: the optimum is w = 0 and the rate is 0; below, w² = s² - τ."""
    kl = np.asarray([[0.0, 0.5, 0.015, 0.018], [0.001, 0.1, 0.013, 0.0]])
    assert active_units(kl) == 2  # the last exceeds 0.01 once, but not in the mean
    assert active_units(0.0 * kl) == 0

    def best_loss(w, tau, s2):
        """E over x ~ N(0, s²) of -ELBO with the optimal q for that decoder."""
        marginal = w * w + tau
        return 0.5 * (s2 / marginal + log(2.0 * pi * marginal))

    grid = np.linspace(0.0, 2.0, 2001)
    for tau, s2 in ((1.5, 1.0), (0.3, 1.0)):
        best = grid[np.argmin([best_loss(w, tau, s2) for w in grid])]
        assert best == pytest.approx(max(s2 - tau, 0.0) ** 0.5, abs=1e-3)
        # at that w our loss with the exact posterior has this value, and rate 0 iff w = 0
        variance = tau / (best**2 + tau)
        encoder = Affine(
            np.asarray([[variance * best / tau, 0.0]]), np.asarray([0.0, log(variance)])
        )
        vae = Vae(encoder, Affine(np.asarray([[best]]), 0.0), lk.FixedNormal(tau))

        def losses(n, look, vae=vae, tau=tau, s2=s2):
            noise = Stream(10, NUMPY).at(look)
            x = s2**0.5 * noise.at("x").normal((n, 1))
            (reconstruction, kl), _ = vae.loss(x, noise.at("eps").normal((1, n, 1)))
            return reconstruction + kl

        value = best_loss(best, tau, s2)
        assert_mean(losses, value, resolution=0.02 * value)
        rate = vae.kl_per_dimension(normals(0, 50, 1))
        assert (active_units(rate) == 0) == (best == 0.0)


@on_every_backend
def test_every_backend_agrees(born):
    likelihood = lk.DiscretisedLogistic(17)
    x = lk.level_centres(np.floor(17 * Stream(0, NUMPY).uniform((5, 4))), 17)
    found = []
    for made in (born, NUMPY):
        vae = Vae(mlp([4, 6, 4], reads_data=True), mlp([2, 6, 8], dropout=0.3), likelihood)
        params, stream = bound(vae, born=made), Stream(1, made)
        data, eps = made.asarray(x), stream.at("eps").normal((3, 5, 2))
        terms, pullback = vae.loss(data, eps, stream)
        pullback(*terms)
        found.append(
            [
                *terms,
                params.grad,
                vae.log_weights(data, eps),
                vae.reconstruct(data),
                vae.sample(eps[0, ...], 0.7),
                vae.kl_per_dimension(data),
            ]
        )
    for got, want in zip(*found, strict=True):
        oracle.assert_close(host(got), want, 50 * tolerance(born), "value")
        assert got.dtype == born.zeros((1,)).dtype
