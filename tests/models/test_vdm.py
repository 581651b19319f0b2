"""models/vdm.py: its bound in closed form, its gradients, and what makes it a hierarchical VAE."""

from functools import cache
from math import exp, log
from re import escape

import autograd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.arrays import namespace
from scratchgen.core.module import Module
from scratchgen.maths import parameterisations as p
from scratchgen.maths.diffusion_bound import prior_kl, transition_kl
from scratchgen.maths.distributions import normal_nll
from scratchgen.maths.forward_process import posterior, q_chain, q_sample
from scratchgen.maths.gamma import LearnedGamma, LinearGamma, level_from_gamma
from scratchgen.models.samplers import Stop
from scratchgen.models.vdm import LevelDecoder, NormalDecoder, Vdm, low_discrepancy, on_grid
from scratchgen.nets.mlp import TimedMlp
from scratchgen.nets.time import Sinusoidal
from scratchgen.testing import oracle
from scratchgen.testing.strategies import seeds, sizes
from scratchgen.training.optim import Adam

from support import NUMPY, bound, host, normals, on_every_backend, tolerance

K = 5
WAYS = [p.Epsilon(), p.Clean(), p.Velocity(), p.Score(), p.KWay(K)]
INTERIOR = ("gamma.log_weight", "gamma.log_slope", "gamma.centre")
ENDS = -13.3, 5.0
VARIANCE = 2.0  # of the data of the world in closed form
EXACT = 0.5 * log((1.0 + VARIANCE * exp(-ENDS[0])) / (1.0 + VARIANCE * exp(-ENDS[1])))


def codes(seed: int, *shape: int) -> np.ndarray:
    """Data on the centres of K bins."""
    return (2.0 * (np.abs(100.0 * normals(seed, *shape)).astype(int) % K) + 1.0) / K - 1.0


def small(way, gamma=None, decoder=None, seed=1, born=NUMPY):
    """A model of 3 numbers with weights from anywhere, and its parameters."""
    width = 3 * getattr(way, "levels", 1)
    net = TimedMlp([3, 6, width], 4, Sinusoidal(4, scale=10.0))
    model = Vdm(net, gamma or LearnedGamma(-4.0, 3.0, units=3), way, decoder or LevelDecoder(K))
    return model, bound(model, seed, born)


class Perfect:
    """E[ε | z_t] for data N(0, VARIANCE), from the relative time between the ends."""

    def __call__(self, z, time, stream=None):
        xp = namespace(z)
        gamma = ENDS[0] + (ENDS[1] - ENDS[0]) * time[:, None]
        noise = 1.0 / (1.0 + xp.exp(-gamma))
        slope = xp.sqrt(noise) / (VARIANCE * (1.0 - noise) + noise)
        return slope * z, lambda d: (slope * d, 0.0 * time)


def sigma_points(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Four (x, ε) for each of n, with the mean of any quadratic in x ~ N(0, VARIANCE) and ε."""
    reach = 2.0**0.5
    x, eps = np.asarray([reach, -reach, 0.0, 0.0]), np.asarray([0.0, 0.0, reach, -reach])
    return np.tile(VARIANCE**0.5 * x, n)[:, None], np.tile(eps, n)[:, None]


@cache
def nodes() -> tuple[np.ndarray, np.ndarray]:
    """Gauss–Legendre on 60 equal parts of [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(10)
    return ((np.arange(60)[:, None] + 0.5 * (x + 1.0)) / 60).ravel(), np.tile(w / 120, 60)


def diffusion_term(gamma, t, steps=None) -> np.ndarray:
    """The expected diffusion term at each t, without any sampling."""
    model, (x, eps) = Vdm(Perfect(), gamma, p.Epsilon(), NormalDecoder()), sigma_points(len(t))
    terms, _ = model.loss(x, np.repeat(t, 4), eps, eps, steps)
    return terms[1].reshape(-1, 4).mean(axis=1)


def a_gamma(seed: int, first: float = ENDS[0], last: float = ENDS[1]) -> LearnedGamma:
    """A learned γ between these ends with an interior from anywhere."""
    gamma = LearnedGamma(first, last, units=6)
    params = bound(gamma, seed)
    params.theta = params.theta + normals(seed, *params.theta.shape)
    params.theta[:2] = first, log(last - first)
    params.changed()
    return gamma


@pytest.mark.equation("VDM-9")
@given(seeds())
def test_the_continuous_loss_is_the_closed_form_whatever_the_schedule_s_shape(seed):
    """½ ∫ γ' E‖ε - ε̂‖² dt = ½ log (1 + s² SNR(0))/(1 + s² SNR(1)), 6.989881 nats here."""
    t, weight = nodes()
    assert pytest.approx(6.989881, abs=5e-7) == EXACT
    for gamma in (LinearGamma(*ENDS), a_gamma(seed)):
        assert weight @ diffusion_term(gamma, t) == pytest.approx(EXACT, rel=1e-6)


@pytest.mark.equation("VDM-9")
@pytest.mark.parametrize(("steps", "nats"), [(10, 18.695), (100, 7.621), (1000, 7.050)])
def test_the_discrete_loss_falls_to_the_continuous_one(steps, nats):
    t = np.arange(1, steps + 1) / steps
    found = diffusion_term(LinearGamma(*ENDS), t, steps).mean()
    assert found == pytest.approx(nats, abs=5e-4)
    assert found > EXACT


@pytest.mark.equation("VDM-1")
@pytest.mark.equation("VDM-9")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: type(way).__name__)
@given(seeds(), st.integers(1, 6))
def test_it_is_a_markovian_hierarchy_number_for_number(way, seed, steps):
    """T latents of the data's shape under fixed linear-Gaussian steps: the same terms, same noise.

    The KL of every step is formed from its means and variances, and the reconstruction is the
    likelihood of a pixel given z₀.
    """
    model, _ = small(way, LinearGamma(-6.0, 9.0), seed=seed)
    x, eps, eps0 = codes(seed, steps, 3), normals(seed + 1, steps, 3), normals(seed + 2, steps, 3)
    t = np.arange(1, steps + 1) / steps
    (prior, diffusion, reconstruction), _ = model.loss(x, t, eps, eps0, steps)
    now, before = (level_from_gamma(-6.0 + 15.0 * at)[0] for at in (t, t - 1.0 / steps))
    z_t, _ = q_sample(x, eps, now)
    output, _ = model.net(z_t, t)
    clean, _ = way.clean(output, z_t, now, None)
    logvar = np.log(posterior(now, before)[2])[:, None] + 0.0 * x
    kl, _ = transition_kl(x, clean, logvar, now, before)
    np.testing.assert_allclose(diffusion / steps, kl, rtol=1e-8, atol=1e-9 * abs(kl).max())
    last, first = (level_from_gamma(np.full(steps, at))[0] for at in (9.0, -6.0))
    np.testing.assert_allclose(prior, prior_kl(x, last)[0], rtol=1e-12)
    np.testing.assert_allclose(reconstruction, LevelDecoder(K).nll(x, eps0, first)[0], rtol=1e-12)
    assert np.all(prior < 3 * 1e-4), "the last latent is noise"


@pytest.mark.equation("VDM-1")
@given(seeds(), st.integers(1, 6))
def test_its_latents_are_a_chain_of_linear_gaussian_steps(seed, count):
    """Along the model's own stops, each of the data's shape; their marginals are those of the loss.

    A chain is linear in x and in the noise of its steps, so its law is read off exactly.
    """
    model, params = small(p.Epsilon(), LinearGamma(-6.0, 9.0), seed=seed)
    levels = np.asarray([0.0, *(stop.level for stop in model.stops(count, np.zeros(1))[::-1])])
    steps, rows = len(levels) - 1, np.repeat(levels[:, None], 3, axis=1)
    x, none = normals(seed, 3, 2), np.zeros((steps, 3, 2))
    means = q_chain(x, none, rows)
    assert means.shape == (steps + 1, 3, 2)
    variance = np.zeros(steps + 1)
    for i in range(steps):
        unit = none.copy()
        unit[i] = 1.0
        variance += q_chain(0.0 * x, unit, rows)[:, 0, 0] ** 2
    np.testing.assert_allclose(variance, -np.expm1(levels), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(means, np.exp(0.5 * levels)[:, None, None] * x, rtol=1e-12)
    owned = [name for name in params.table if not name.startswith("net.")]
    assert owned == [], "a fixed schedule leaves the encoder nothing to train"


@pytest.mark.equation("VDM-9")
@pytest.mark.parametrize("steps", [None, 4])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: type(way).__name__)
@given(seeds())
def test_gradients_are_autograd_s_and_the_interior_s_those_of_the_squares(way, steps, seed):
    """θ and the ends of γ get the gradient of the bound, in continuous time its interior that of
    Σ diffusion²."""
    model, params = small(way, decoder=NormalDecoder() if seed % 2 else None, seed=seed)
    t = np.asarray([0.25, 0.5, 0.75, 1.0]) if steps else np.asarray([0.1, 0.4, 0.6, 0.95])
    x, eps, eps0 = codes(seed, 4, 3), normals(seed, 4, 3), normals(seed + 1, 4, 3)
    d = normals(seed + 2, 3, 4)
    terms, pullback = model.loss(x, t, eps, eps0, steps)
    with params.gradient_into(np.zeros_like(params.theta)) as got:
        pullback(*d)

    def plain(theta):
        params.theta = theta
        found, _ = model.loss(x, t, eps, eps0, steps)
        return sum(autograd.numpy.sum(a * term) for a, term in zip(d, found, strict=True))

    def squared(theta):
        params.theta = theta
        return autograd.numpy.sum(d[1] * model.loss(x, t, eps, eps0, steps)[0][1] ** 2)

    with oracle.theta_of(params, params.theta) as theta:
        want, of_squares = autograd.grad(plain)(theta), autograd.grad(squared)(theta)
    for name, parameter in params.table.items():
        truth = of_squares if steps is None and name in INTERIOR else want
        window = parameter.window
        scale = np.abs(want).max() * np.abs(terms[1]).max()
        oracle.assert_close(got[window], truth[window], 1e-8, name, floor=1e-11 * scale)


def test_the_interior_learns_to_lower_the_variance_and_leaves_the_mean():
    gamma = LearnedGamma(*ENDS, units=8)
    model = Vdm(Perfect(), gamma, p.Epsilon(), NormalDecoder())
    params = bound(model)
    params.theta[:2] = ENDS[0], log(ENDS[1] - ENDS[0])
    params.changed()
    t, weight = nodes()
    x, eps = sigma_points(len(t))
    adam = Adam(params, 0.05)

    def moments():
        term = diffusion_term(gamma, t)
        return weight @ term, weight @ term**2

    mean, square = moments()
    share = np.repeat(weight, 4) / 4.0
    for _ in range(60):
        _, pullback = model.loss(x, np.repeat(t, 4), eps, eps)
        pullback(0.0 * share, share, 0.0 * share)
        params.grad[:2] = 0.0  # the ends stay
        adam.step()
    later_mean, later_square = moments()
    assert later_mean == pytest.approx(mean, rel=1e-4)
    assert later_square - mean**2 < 0.5 * (square - mean**2)


@pytest.mark.equation("VDM-9")
@given(seeds(), st.floats(-2.0, 4.0), st.integers(2, 9))
def test_level_probabilities_sum_to_one_and_give_the_mean(seed, gamma, levels):
    """For one z₀, Σ_k p(x_k | z₀) = 1; each is proportional to N(z₀; √ᾱ x_k, 1-ᾱ)."""
    decoder, z0 = LevelDecoder(levels), normals(seed, 1, 1)
    level, _ = level_from_gamma(np.asarray([gamma]))
    signal, noise = np.exp(0.5 * level), np.sqrt(-np.expm1(level))
    centres = (2.0 * np.arange(levels) + 1.0) / levels - 1.0
    eps = (z0 - signal * centres[:, None]) / noise
    nll, _ = decoder.nll(centres[:, None], eps, np.repeat(level, levels))
    density = np.exp(-0.5 * eps[:, 0] ** 2)
    np.testing.assert_allclose(np.exp(-nll), density / density.sum(), rtol=1e-9)
    mean = float(np.exp(-nll) @ centres)
    np.testing.assert_allclose(decoder.mean(z0, level), mean, rtol=1e-9, atol=1e-12)


@pytest.mark.equation("VDM-9")
@given(seeds(), sizes(), st.floats(-9.0, 2.0))
def test_the_normal_decoder_is_a_normal(seed, n, gamma):
    x, eps = normals(seed, n, 2), normals(seed + 1, n, 2)
    level, _ = level_from_gamma(np.full(n, gamma))
    z0, _ = q_sample(x, eps, level)
    mean = NormalDecoder().mean(z0, level)
    want, _ = normal_nll(x, mean, np.full((n, 2), gamma))  # log (1-ᾱ)/ᾱ = γ
    got, _ = NormalDecoder().nll(x, eps, level)
    np.testing.assert_allclose(got, want.sum(axis=1), rtol=1e-8, atol=1e-8)


@pytest.mark.equation("VDM-9")
@pytest.mark.parametrize("decoder", [LevelDecoder(K), NormalDecoder()], ids=["levels", "normal"])
@given(seeds(), sizes())
def test_decoders_have_the_right_pullback(decoder, seed, n):
    x, eps = codes(seed, n, 2, 2), normals(seed, n, 2, 2)
    level = -np.exp(normals(seed + 1, n))
    oracle.check_pullback(lambda at: decoder.nll(x, eps, at), level)


@given(st.integers(1, 70), st.floats(0.0, 0.999))
def test_low_discrepancy_times_are_spread_evenly(n, u):
    whole = low_discrepancy(np.asarray([u]), n)
    gaps = np.diff(np.sort(whole))
    assert np.all((whole >= 0.0) & (whole < 1.0))
    np.testing.assert_allclose(gaps, 1.0 / n, rtol=1e-9)
    assert whole[0] == u
    cut = n // 2
    parts = [low_discrepancy(np.asarray([u]), n, rows) for rows in (slice(0, cut), slice(cut, n))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@given(st.integers(1, 9), st.integers(1, 5))
def test_times_on_the_grid_are_the_steps_of_the_bound(steps, each):
    t = (np.arange(steps * each) + 0.5) / (steps * each)
    want = np.repeat(np.arange(1, steps + 1) / steps, each)
    np.testing.assert_allclose(on_grid(t, steps), want, rtol=1e-15)
    ends = on_grid(np.asarray([0.0, 1.0 - 2.0**-24], dtype=np.float32), steps)
    np.testing.assert_allclose(ends, [1.0 / steps, 1.0], rtol=1e-6)


@pytest.mark.equation("VDM-10")
@given(seeds(), st.integers(1, 5))
def test_stops_go_from_noise_to_the_first_latent(seed, count):
    """Equal steps in t on the schedule; times are what the net is told, from 1 to 0."""
    gamma = a_gamma(seed, -6.0, 4.0)
    model = Vdm(Perfect(), gamma, p.Epsilon(), NormalDecoder())
    stops = model.stops(count, np.zeros(1))
    t = np.linspace(1.0, 0.0, count + 1)
    (value, _), _ = gamma(t)
    np.testing.assert_allclose([s.level for s in stops], level_from_gamma(value)[0], rtol=1e-12)
    want = (value - value[-1]) / (value[0] - value[-1])
    np.testing.assert_allclose([s.time for s in stops], want, rtol=1e-12, atol=1e-15)
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        model.stops(0, np.zeros(1))


@pytest.mark.equation("VDM-10")
@pytest.mark.equation("DDPM-14")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: type(way).__name__)
def test_a_sampler_is_told_what_training_reads(way):
    model, _ = small(way)
    z, now = normals(3, 4, 3), Stop(0.3, -0.7)
    told = model.denoise(z, now, Stop(0.0, -0.1))
    output, _ = model.net(z, np.full(4, 0.3))
    level = np.full(4, -0.7)
    np.testing.assert_allclose(told.clean, way.clean(output, z, level, None)[0], rtol=1e-12)
    np.testing.assert_allclose(told.epsilon, way.epsilon(output, z, level, None)[0], rtol=1e-12)
    assert told.logvar is None, "the reverse step then has the variance of q(z_s | z_t, x)"


def test_a_net_without_a_cotangent_is_enough_where_nothing_is_learned_of_the_schedule():
    class Blind(Module):
        def __call__(self, z, time, stream=None):
            return 0.0 * z, lambda d: (None, None)

    model = Vdm(Blind(), LinearGamma(), p.Epsilon(), NormalDecoder())
    _, pullback = model.loss(np.ones((2, 3)), np.asarray([0.1, 0.6]), *normals(0, 2, 2, 3))
    assert pullback(*np.ones((3, 2))) is None


def test_the_mean_of_a_step_is_refused():
    with pytest.raises(ValueError, match="in continuous time a step has no mean"):
        Vdm(Perfect(), LinearGamma(), p.Mean(), NormalDecoder())


def test_one_level_leaves_nothing_to_decode():
    with pytest.raises(ValueError, match="at least 2 levels, got 1"):
        LevelDecoder(1)


@pytest.mark.parametrize(("name", "shape"), [("t", (3,)), ("eps", (1, 3)), ("eps0", (2, 1))])
def test_times_and_noise_that_would_broadcast_are_refused(name, shape):
    """More times than examples were read as the ends of γ."""
    model, x = Vdm(Perfect(), LinearGamma(), p.Epsilon(), NormalDecoder()), np.ones((2, 3))
    given = {"t": np.full(2, 0.5), "eps": 0.0 * x, "eps0": 0.0 * x, name: np.full(shape, 0.5)}
    want = (2,) if name == "t" else (2, 3)
    with pytest.raises(ValueError, match=escape(f"{name} must have shape {want}, got {shape}")):
        model.loss(x, **given)


@pytest.mark.parametrize("steps", [0, -2, 1.5])
def test_a_bound_of_no_step_is_refused(steps):
    model, x = Vdm(Perfect(), LinearGamma(), p.Epsilon(), NormalDecoder()), np.ones((2, 3))
    with pytest.raises(ValueError, match=f"steps must be a whole number and at least 1.*{steps}"):
        model.loss(x, np.ones(2), 0.0 * x, 0.0 * x, steps)


def test_more_steps_than_float32_can_tell_apart_are_refused():
    """Up to there the mean of the term has four digits; with 10⁶ steps it would be 1 % too high."""
    model, most = Vdm(Perfect(), LinearGamma(*ENDS), p.Epsilon(), NormalDecoder()), 10_000
    x, eps = (np.repeat(a, most, axis=0) for a in sigma_points(1))
    t = np.tile(np.arange(1, most + 1) / most, 4)
    single, double = ([a.astype(f) for a in (x, t, eps, eps)] for f in ("float32", "float64"))
    rough, exact = (model.loss(*at, most)[0][1].mean() for at in (single, double))
    assert rough == pytest.approx(exact, rel=1e-4)
    model.loss(*double, most + 1)
    with pytest.raises(ValueError, match="at most 10000 in float32, .*got 10001; take float64"):
        model.loss(*single, most + 1)


@on_every_backend
@pytest.mark.parametrize("steps", [None, 2])
def test_every_backend_agrees(born, steps):
    t, d = np.asarray([0.5, 1.0]), normals(4, 3, 2)
    x, eps, eps0 = codes(1, 2, 3), normals(2, 2, 3), normals(3, 2, 3)
    truth, exact = small(p.KWay(K))
    model, params = small(p.KWay(K), born=born)
    want, pull = truth.loss(x, t, eps, eps0, steps)
    got, pullback = model.loss(*(born.asarray(a) for a in (x, t, eps, eps0)), steps)
    pull(*d)
    pullback(*(born.asarray(a) for a in d))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == params.theta.dtype
        oracle.assert_close(host(a), b, 20 * tolerance(born), "term")
    oracle.assert_close(host(params.grad), exact.grad, 100 * tolerance(born), "gradient")
    z = born.asarray(x)
    told = model.denoise(z, Stop(0.4, -0.6), Stop(0.1, -0.2))
    assert told.clean.dtype == told.epsilon.dtype == z.dtype
    assert len(model.stops(3, params.theta)) == 4
    decoded = model.decoder.mean(z, born.xp.asarray([-0.1, -0.2], device=born.device))
    assert decoded.dtype == z.dtype
