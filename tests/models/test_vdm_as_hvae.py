"""models/vdm_as_hvae.py: a diffusion and two hierarchical VAEs give the same numbers."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.arrays import namespace
from scratchgen.core.module import Module, Parameter
from scratchgen.core.streams import Stream
from scratchgen.maths import parameterisations as p
from scratchgen.maths.distributions import normal_nll
from scratchgen.maths.forward_process import chain_log_density, kernel, posterior, q_chain
from scratchgen.maths.gamma import LearnedGamma, LinearGamma
from scratchgen.models.samplers import CLEAN, ancestral, generate
from scratchgen.models.vdm import LevelDecoder, NormalDecoder, Vdm
from scratchgen.models.vdm_as_hvae import (
    Denoise,
    IgnoringState,
    LastStep,
    as_ladder_hvae,
    as_markov_hvae,
    forward_step,
    residual,
    reverse_step,
)
from scratchgen.nets.mlp import TimedMlp
from scratchgen.nets.time import Sinusoidal
from scratchgen.testing import oracle
from scratchgen.testing.strategies import seeds

from support import NUMPY, bound, host, normals, on_every_backend, tolerance

K, DIMS = 5, 3
WAYS = [p.Epsilon(), p.Clean(), p.Velocity(), p.Score(), p.KWay(K)]
DECODERS = [LevelDecoder(K), NormalDecoder()]
BOTH = [as_markov_hvae, as_ladder_hvae]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: type(way).__name__)
either = pytest.mark.parametrize("build", BOTH, ids=["markov", "ladder"])


def codes(seed: int, *shape: int) -> np.ndarray:
    """Data on the centres of K bins."""
    return (2.0 * (np.abs(100.0 * normals(seed, *shape)).astype(int) % K) + 1.0) / K - 1.0


def small(way, seed=1, born=NUMPY, dropout=0.0):
    """A model of 3 numbers with a fixed γ and weights from anywhere, and its parameters."""
    width = DIMS * getattr(way, "levels", 1)
    net = TimedMlp([DIMS, 6, width], 4, Sinusoidal(4, scale=10.0), dropout=dropout)
    model = Vdm(net, LinearGamma(-3.0, 2.0), way, DECODERS[seed % 2])
    return model, bound(model, seed, born)


class Wave(Module):
    """A net without parameters, for data of any shape."""

    def __call__(self, z, time):
        xp = namespace(z)
        phase = z + xp.reshape(time, (-1,) + (1,) * (z.ndim - 1))
        return xp.sin(phase), lambda d: (xp.cos(phase) * d, None)


def downwards(model, x, eta) -> list[np.ndarray]:
    """z at 1, ..., at 0 from q(z_1 | x) and then q(z_s | z_t, x), by their standardised noise."""
    levels = [np.asarray([stop.level]) for stop in model.stops(len(eta) - 1, x)]
    signal, variance = kernel(levels[0])
    z = [signal * x + np.sqrt(variance) * eta[0]]
    for now, before, e in zip(levels[:-1], levels[1:], eta[1:], strict=True):
        c0, c, variance = posterior(now, before)
        z.append(c0 * x + c * z[-1] + np.sqrt(variance) * e)
    return z


def upwards(model, x, z) -> list[np.ndarray]:
    """The noise with which the forward process goes through these latents, from the top too."""
    stops = [*model.stops(len(z) - 1, x), CLEAN]
    found = []
    for i, below in enumerate([*z[1:], x]):
        root_alpha, beta = kernel(*(np.asarray([stop.level]) for stop in stops[i : i + 2]))
        found.append((z[i] - root_alpha * below) / np.sqrt(beta))
    return found


def of_the_diffusion(model, x, z):
    """Vdm.loss at these latents: (reconstruction, prior, diffusion/T from t = 1 to 1/T).

    Its pullback takes cotangents in the same order.
    """
    steps, n = len(z) - 1, len(x)
    levels = np.asarray([stop.level for stop in model.stops(steps, x)])
    signal, variance = kernel(levels)
    eps = [(z[i] - signal[i] * x) / np.sqrt(variance[i]) for i in range(steps + 1)]
    many, noise, noise0 = (np.concatenate(a) for a in ([x] * steps, eps[:-1], eps[-1:] * steps))
    t = np.repeat(1.0 - np.arange(steps) / steps, n)
    (prior, diffusion, nll), pull = model.loss(many, t, noise, noise0, steps)

    def pullback(d_nll, d_prior, *d):
        one = np.repeat(np.arange(steps) == 0, n)
        every = np.concatenate(d) / steps
        pull(one * np.tile(d_prior, steps), every, one * np.tile(d_nll, steps))

    return (nll[:n], prior[:n], *(diffusion / steps).reshape(steps, n)), pullback


def log_ratio(model, x, z) -> np.ndarray:
    """log p(z_1) Π p(z_s | z_t) p(x | z_0) - log Π q(z_t | z_s), from the maths alone."""
    stops = model.stops(len(z) - 1, x)
    nll = normal_nll(z[0], 0.0 * x, 0.0 * x)[0]
    for i, (now, before) in enumerate(zip(stops[:-1], stops[1:], strict=True)):
        c0, c, variance = posterior(np.asarray([now.level]), np.asarray([before.level]))
        mean = c0 * model.denoise(z[i], now, before).clean + c * z[i]
        nll = nll + normal_nll(z[i + 1], mean, np.log(variance) + 0.0 * x)[0]
    signal, variance = kernel(np.full(len(x), stops[-1].level))
    eps0 = (z[-1] - signal[:, None] * x) / np.sqrt(variance)[:, None]
    of_x, _ = model.decoder.nll(x, eps0, np.full(len(x), stops[-1].level))
    levels = np.repeat([[0.0], *([stop.level] for stop in stops[::-1])], len(x), axis=1)
    return -nll.sum(axis=1) - of_x - chain_log_density(np.stack([x, *z[::-1]]), levels)


def gradient(params, pullback, d) -> np.ndarray:
    with params.gradient_into(np.zeros_like(params.theta)) as got:
        pullback(*d)
    return got


@pytest.mark.equation("VDM-1")
@pytest.mark.equation("VDM-2")
@pytest.mark.equation("VDM-9")
@every_way
@given(seeds(), st.integers(1, 5))
def test_the_ladder_s_terms_are_the_diffusion_s(way, seed, steps):
    """At every z, not in the mean: the prior, each step's share of the diffusion, the likelihood.

    And so is the gradient of every term.
    """
    model, params = small(way, seed)
    x, eps, d = codes(seed, 4, DIMS), normals(seed, steps + 1, 4, DIMS), normals(seed, steps + 2, 4)
    got, pullback = as_ladder_hvae(model, steps, x).loss(x, eps)
    want, pull = of_the_diffusion(model, x, downwards(model, x, eps))
    for name, a, b in zip(["nll", *range(steps + 1)], got, want, strict=True):
        oracle.assert_close(a, b, 1e-10, f"term {name}")
    a, b = gradient(params, pullback, d), gradient(params, pull, d)
    oracle.assert_close(a, b, 1e-10, "gradient")


@pytest.mark.equation("VDM-1")
@pytest.mark.equation("VDM-2")
@pytest.mark.equation("VDM-7")
@pytest.mark.equation("HVAE-2")
@pytest.mark.equation("HVAE-3")
@every_way
@given(seeds(), st.integers(1, 5))
def test_a_path_weighs_the_same_upwards_and_downwards(way, seed, steps):
    """Both encoders are one: either importance weight is the ratio of the chains at that path."""
    model, _ = small(way, seed)
    x, eps = codes(seed, 4, DIMS), normals(seed, steps + 1, 4, DIMS)
    levels = np.repeat([[0.0], *([s.level] for s in model.stops(steps, x)[::-1])], 4, axis=1)
    climbed = [*q_chain(x, eps[::-1], levels)[:0:-1]]
    got = as_markov_hvae(model, steps, x).log_weights(x, eps)
    oracle.assert_close(got, log_ratio(model, x, climbed), 1e-10, "upwards")
    z = downwards(model, x, eps)
    want = log_ratio(model, x, z)
    got = as_ladder_hvae(model, steps, x).log_weights(x, eps)
    oracle.assert_close(got, want, 1e-10, "downwards")
    got = as_markov_hvae(model, steps, x).log_weights(x, upwards(model, x, z))
    oracle.assert_close(got, want, 1e-9, "upwards through the same latents")


@pytest.mark.equation("VDM-1")
@pytest.mark.equation("VDM-2")
@pytest.mark.equation("VDM-7")
@pytest.mark.equation("VDM-9")
@pytest.mark.equation("HVAE-2")
@pytest.mark.equation("HVAE-3")
@pytest.mark.parametrize("steps", [1, 2, 3])
@every_way
@given(seeds())
def test_the_chain_s_loss_is_the_diffusion_s_on_the_same_noise(way, steps, seed):
    """Over both signs of the noise η of every latent given the one above and x.

    p(z_s | z_t) and q(z_s | z_t, x) have one variance, so with δ = c₀ (x - x̂)/√β̃ their log-ratio
    is ½ |η + δ|² - ½ |η|² = KL + η·δ: odd but for the KL. What the closed form of the top adds is
    quadratic in the two upper η, of mean 0, and two points average that if |η| = 1.
    """
    model, params = small(way, seed)
    signs = np.asarray(list(product([-1.0, 1.0], repeat=steps + 1))).T[..., None]
    size = np.abs(normals(seed, steps + 1, 1, DIMS))
    size[:2] = 1.0
    eta = signs * size * np.sign(normals(seed + 1, steps + 1, 1, DIMS))
    x = np.repeat(codes(seed, 1, DIMS), signs.shape[1], axis=0)
    z = downwards(model, x, eta)
    got, pullback = as_markov_hvae(model, steps, x).loss(x, upwards(model, x, z))
    want, pull = of_the_diffusion(model, x, z)
    assert not np.allclose(sum(got), sum(want), rtol=1e-3), "the path decides, but for its sign"
    assert np.mean(sum(got)) == pytest.approx(np.mean(sum(want)), rel=1e-10)
    share = np.full((steps + 2, len(x)), 1.0 / len(x))
    a, b = gradient(params, pullback, share), gradient(params, pull, share)
    oracle.assert_close(a, b, 1e-10, "gradient")


@pytest.mark.equation("VDM-1")
@either
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 4))
def test_latents_have_the_data_s_shape_and_the_encoder_nothing_to_learn(build, shape, steps):
    model, x = (
        Vdm(Wave(), LinearGamma(-6.0, 9.0), p.Epsilon(), NormalDecoder()),
        codes(1, 2, *shape),
    )
    hierarchy, eps = build(model, steps, x), normals(2, steps + 1, *x.shape)
    assert hierarchy.latents == (tuple(shape),) * (steps + 1)
    terms, _ = hierarchy.loss(x, eps)
    assert all(term.shape == (2,) for term in terms)
    assert hierarchy.reconstruct(x, eps, keep=1).shape == x.shape
    assert np.all(as_ladder_hvae(model, steps, x).loss(x, eps)[0][1] < 3e-4 * x.size), "noise"
    learning, _ = small(p.Epsilon())
    found = {id(one) for _, one in build(learning, steps, x).named(Parameter)}
    assert found == {id(one) for _, one in learning.named(Parameter)}
    assert as_ladder_hvae(model, steps, x).start is None
    encoders = build(learning, steps, x).encoders
    assert not any(isinstance(one, Module) and any(one.named(Parameter)) for one in encoders)


@pytest.mark.equation("VDM-9")
@pytest.mark.equation("VDM-10")
@either
@given(seeds(), st.integers(1, 4))
def test_to_generate_is_to_sample_the_diffusion(build, seed, steps):
    model, _ = small(p.Velocity(), seed)
    eps = normals(seed, steps + 1, 4, DIMS)
    stops = model.stops(steps, eps[0])
    z = generate(model.denoise, ancestral, eps[0], stops, lambda i: eps[i + 1])
    want = model.decoder.mean(z, np.asarray([stops[-1].level]))
    oracle.assert_close(build(model, steps, eps[0]).sample(eps), want, 1e-11, "mean of x")


@pytest.mark.equation("VDM-1")
@pytest.mark.equation("VDM-2")
@pytest.mark.equation("VDM-7")
@pytest.mark.equation("VDM-9")
@every_way
@given(seeds())
def test_every_part_has_the_right_pullback(way, seed):
    model, _ = small(way, seed)
    now, before = model.stops(3, np.zeros(1))[1:3]
    x, z, both = codes(seed, 2, DIMS), normals(seed, 2, DIMS), normals(seed + 1, 2, 2 * DIMS)
    image, two = normals(seed, 2, 3, 2), normals(seed + 1, 2, 3, 4)
    likelihood = LastStep(model.decoder, before)
    for layer, inputs in (
        (forward_step(now, before), [image]),
        (reverse_step(now, before), [two]),
        (residual(now, before), [two, image]),
        (Denoise(model, now), [z]),
        (IgnoringState(Denoise(model, now)), [both, z]),
        (lambda h: likelihood.nll(x, h), [z]),
    ):
        oracle.check_pullback(layer, *inputs)


@either
@given(seeds())
def test_a_net_that_gives_no_cotangent_is_trained_the_same(build, seed):
    class Silent(Module):
        def __init__(self, net):
            self.net = net

        def __call__(self, z, time):
            y, pullback = self.net(z, time)
            return y, lambda d: (None, pullback(d)[1])

    model, params = small(p.Clean(), seed)
    silent = Vdm(Silent(model.net), model.gamma, model.parameterisation, model.decoder)
    x, eps, d = codes(seed, 4, DIMS), normals(seed, 3, 4, DIMS), normals(seed, 4, 4)
    (want, pull), (got, pullback) = (
        build(one, 2, x).loss(x, eps, Stream(seed, NUMPY)) for one in (model, silent)
    )
    np.testing.assert_array_equal(got, want)
    a, b = gradient(params, pullback, d), gradient(params, pull, d)
    oracle.assert_close(a, b, 1e-11, "gradient")
    _, pullback = Denoise(silent, model.stops(2, x)[0])(x)
    np.testing.assert_array_equal(pullback(np.ones((4, 2 * DIMS))), np.ones_like(x))


@either
@given(seeds())
def test_a_net_that_drops_out_does_so_with_the_stream_alone(build, seed):
    model, params = small(p.Epsilon(), seed, dropout=0.5)
    x, eps, stream = codes(seed, 4, DIMS), normals(seed, 3, 4, DIMS), Stream(seed, NUMPY)
    hierarchy = build(model, 2, x)
    still, dropped = (sum(hierarchy.loss(x, eps, which)[0]) for which in (None, stream))
    assert np.any(np.abs(dropped - still) > 1e-9 * np.abs(still))
    oracle.check_gradient(params, lambda: hierarchy.loss(x, eps, stream))


@either
def test_a_schedule_that_is_learned_is_no_fixed_encoder(build):
    model = Vdm(Wave(), LearnedGamma(), p.Epsilon(), NormalDecoder())
    with pytest.raises(ValueError, match="must be fixed, but its γ has parameters to learn"):
        build(model, 2, np.zeros((1, 3)))
    fixed = Vdm(Wave(), LinearGamma(), p.Epsilon(), NormalDecoder())
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        build(fixed, 0, np.zeros((1, 3)))


@either
@on_every_backend
def test_every_backend_agrees(born, build):
    steps, d = 2, normals(4, 4, 2)
    x, eps = codes(1, 2, DIMS), normals(2, steps + 1, 2, DIMS)
    truth, exact = small(p.KWay(K), 2)
    model, params = small(p.KWay(K), 2, born)
    there, noise = born.asarray(x), [born.asarray(e) for e in eps]
    ours, theirs = build(truth, steps, x), build(model, steps, there)
    want, pull = ours.loss(x, eps)
    got, pullback = theirs.loss(there, noise)
    pull(*d)
    pullback(*(born.asarray(a) for a in d))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == params.theta.dtype
        oracle.assert_close(host(a), b, 20 * tolerance(born), "term")
    oracle.assert_close(host(params.grad), exact.grad, 100 * tolerance(born), "gradient")
    for a, b in (
        (theirs.log_weights(there, noise), ours.log_weights(x, eps)),
        (theirs.sample(noise), ours.sample(eps)),
        (theirs.reconstruct(there, noise, keep=2), ours.reconstruct(x, eps, keep=2)),
    ):
        assert a.dtype == params.theta.dtype
        oracle.assert_close(host(a), b, 20 * tolerance(born), "result")
