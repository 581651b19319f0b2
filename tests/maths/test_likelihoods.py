"""maths/likelihoods.py: each sums to one, samples what it says, and has a right pullback."""

from math import log, pi

import numpy as np
import pytest
from hypothesis import given

from scratchgen.core.streams import Stream
from scratchgen.maths import likelihoods as lk
from scratchgen.testing import oracle
from scratchgen.testing.monte_carlo import assert_mean
from scratchgen.testing.strategies import seeds, sizes

from support import NUMPY, host, normals, on_every_backend, tolerance

LEVELLED = [lk.DiscretisedLogistic(17), lk.DiscretisedNormal(17), lk.Categorical(5)]
CONTINUOUS = [lk.FixedNormal(0.5), lk.Normal()]
ALL = [*LEVELLED, *CONTINUOUS, lk.Bernoulli()]


def name(likelihood) -> str:
    return type(likelihood).__name__


def data_for(likelihood, seed, n, c):
    x = normals(seed, n, c)
    if isinstance(likelihood, lk.Levels):
        codes = np.clip(np.floor((x + 1.0) * 0.5 * likelihood.levels), 0, likelihood.levels - 1)
        return (2.0 * codes + 1.0) / likelihood.levels - 1.0
    return (x > 0.0) * 1.0 if isinstance(likelihood, lk.Bernoulli) else x


@pytest.mark.equation("VAE-7")
@pytest.mark.parametrize("likelihood", ALL, ids=name)
@given(seeds(), sizes(), sizes())
def test_pullbacks(likelihood, seed, n, c):
    x, h = data_for(likelihood, seed, n, c), normals(seed + 1, n, c * likelihood.width)
    oracle.check_pullback(lambda v: likelihood.nll(x, v), h)
    oracle.check_pullback_is_linear(lambda v: likelihood.nll(x, v), h)


@pytest.mark.parametrize("likelihood", LEVELLED, ids=name)
@given(seeds(), sizes(), sizes())
def test_levels_sum_to_one_and_match_the_cost(likelihood, seed, n, c):
    x, h = data_for(likelihood, seed, n, c), normals(seed + 1, n, c * likelihood.width)
    log_p = likelihood.log_probabilities(h)
    assert log_p.shape == (n, c, likelihood.levels)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=-1), 1.0, rtol=1e-10)
    codes = np.rint((x + 1.0) * 0.5 * likelihood.levels - 0.5).astype(int)
    chosen = np.take_along_axis(log_p, codes[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(likelihood.nll(x, h)[0], -chosen, rtol=1e-12, atol=1e-12)


@pytest.mark.equation("VAE-1")
@pytest.mark.parametrize("likelihood", ALL, ids=name)
def test_samples_have_the_stated_mean(likelihood):
    h = normals(3, 1, likelihood.width) * 0.5

    def draws(n, look):
        stream = Stream(5, NUMPY).at(look)
        return likelihood.sample(np.repeat(h, n, axis=0), stream)[:, 0]

    assert_mean(draws, float(likelihood.mean(h)[0, 0]), resolution=0.03)


@pytest.mark.parametrize("likelihood", LEVELLED, ids=name)
def test_sampled_levels_have_the_stated_probabilities(likelihood):
    h = normals(4, 1, likelihood.width)
    log_p = likelihood.log_probabilities(h)[0, 0]
    for k in (0, int(np.argmax(log_p)), likelihood.levels - 1):

        def hits(n, look, k=k):
            x = likelihood.sample(np.repeat(h, n, axis=0), Stream(6, NUMPY).at(k, look))[:, 0]
            return np.abs(x - likelihood.centres[k]) < 1e-9

        assert_mean(hits, float(np.exp(log_p[k])), resolution=0.01)


@pytest.mark.equation("VAE-7")
@given(seeds(), sizes(), sizes())
def test_a_fixed_variance_is_squared_error_with_its_constant(seed, n, c):
    x, h, variance = normals(seed, n, c), normals(seed + 1, n, c), 0.37
    nll = lk.FixedNormal(variance).nll(x, h)[0].sum()
    want = ((x - h) ** 2).sum() / (2.0 * variance) + 0.5 * x.size * log(2.0 * pi * variance)
    assert float(nll) == pytest.approx(float(want), rel=1e-12)


@pytest.mark.equation("VAE-7")
@given(seeds(), sizes(), sizes())
def test_a_sum_of_squares_is_the_variance_one_half(seed, n, c):
    """∇(SSE) = ∇(-log N(x; h, ½ I)): the loss many VAEs use is this one, up to a constant."""
    x, h = normals(seed, n, c), normals(seed + 1, n, c)
    _, pullback = lk.FixedNormal(0.5).nll(x, h)
    np.testing.assert_allclose(pullback(np.ones_like(x)), 2.0 * (h - x), rtol=1e-12)


@pytest.mark.equation("VAE-1")
def test_normal_samples_have_the_stated_variance():
    h = np.asarray([[0.3, log(0.25)]])
    for likelihood, at in ((lk.Normal(), h), (lk.FixedNormal(0.25), h[:, :1])):

        def squares(n, look, likelihood=likelihood, at=at):
            x = likelihood.sample(np.repeat(at, n, axis=0), Stream(7, NUMPY).at(look))
            return (x[:, 0] - 0.3) ** 2

        assert_mean(squares, 0.25, resolution=0.005)


@on_every_backend
@pytest.mark.parametrize("likelihood", ALL, ids=name)
def test_every_backend_agrees(likelihood, born):
    x, h = data_for(likelihood, 1, 3, 2), normals(2, 3, 2 * likelihood.width)
    got, want = ((m.asarray(x), m.asarray(h), Stream(8, m)) for m in (born, NUMPY))
    (y, pullback), (true, pull) = (likelihood.nll(*pair[:2]) for pair in (got, want))
    tol = 20 * tolerance(born)
    oracle.assert_close(host(y), true, tol, "nll")
    oracle.assert_close(host(pullback(y)), pull(true), tol, "cotangent")
    oracle.assert_close(host(likelihood.mean(got[1])), likelihood.mean(want[1]), tol, "mean")
    drawn = host(likelihood.sample(got[1], got[2]))
    oracle.assert_close(drawn, likelihood.sample(want[1], want[2]), tol, "sample")


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="positive, got 0"):
        lk.FixedNormal(0.0)
    with pytest.raises(ValueError, match="at least 2 levels, got 1"):
        lk.DiscretisedLogistic(1)
    with pytest.raises(TypeError, match="abstract"):
        lk.Levels(3)
