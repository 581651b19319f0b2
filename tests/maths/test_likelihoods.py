"""maths/likelihoods.py: each sums to one, samples what it says, and has a right pullback."""

from math import log, pi
from re import escape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.streams import Stream
from scratchgen.maths import likelihoods as lk
from scratchgen.testing import oracle
from scratchgen.testing.monte_carlo import assert_mean
from scratchgen.testing.strategies import seeds, sizes

from support import NUMPY, host, normals, on_every_backend, tolerance

# made anew in every test, because to make them is under test too
LEVELLED = {
    "logistic": lambda: lk.DiscretisedLogistic(17),
    "normal": lambda: lk.DiscretisedNormal(17),
    "categorical": lambda: lk.Categorical(5),
    "two": lk.BernoulliLevels,
}
NORMALS = {"fixed": lambda: lk.FixedNormal(0.3), "free": lk.Normal}
ALL = {**LEVELLED, **NORMALS, "bernoulli": lk.Bernoulli}

of_each = pytest.mark.parametrize("make", ALL.values(), ids=ALL)
of_each_levelled = pytest.mark.parametrize("make", LEVELLED.values(), ids=LEVELLED)


def data_for(likelihood, seed, *shape):
    x = normals(seed, *shape)
    if isinstance(likelihood, lk.Levels):
        codes = np.clip(np.floor((x + 1.0) * 0.5 * likelihood.levels), 0, likelihood.levels - 1)
        return (2.0 * codes + 1.0) / likelihood.levels - 1.0
    return (x > 0.0) * 1.0 if isinstance(likelihood, lk.Bernoulli) else x


class Given:
    """A stream whose numbers are given."""

    def __init__(self, numbers):
        self.numbers = numbers

    def uniform(self, shape):
        return np.reshape(self.numbers, shape)

    normal = uniform


@pytest.mark.equation("DDPM-8")
@pytest.mark.equation("VAE-7")
@of_each
@given(seeds(), sizes(3), sizes(3), sizes(3))
def test_pullbacks(make, seed, n, m, c):
    likelihood = make()
    x, h = data_for(likelihood, seed, n, m, c), normals(seed + 1, n, m, c * likelihood.width)
    assert likelihood.nll(x, h)[0].shape == (n, m, c)
    oracle.check_pullback(lambda v: likelihood.nll(x, v), h)
    oracle.check_pullback_is_linear(lambda v: likelihood.nll(x, v), h)


@of_each
def test_an_output_of_another_width_is_refused(make):
    """However well it would broadcast."""
    likelihood = make()
    name, width = type(likelihood).__name__, likelihood.width
    x = data_for(likelihood, 0, 2, 3)
    for shape in ((2, 3 * width + 1), (2, width), (2, 6 * width), (1, 3 * width), (3 * width,)):
        says = f"h of {name} must have shape {(2, 3 * width)}, got {shape}"
        with pytest.raises(ValueError, match=escape(says)):
            likelihood.nll(x, normals(0, *shape))


@pytest.mark.equation("DDPM-8")
@of_each_levelled
@given(seeds(), sizes(3), sizes(3), sizes(3))
def test_levels_sum_to_one_and_match_the_cost(make, seed, n, m, c):
    likelihood = make()
    x, h = data_for(likelihood, seed, n, m, c), normals(seed + 1, n, m, c * likelihood.width)
    log_p = likelihood.log_probabilities(h)
    assert log_p.shape == (n, m, c, likelihood.levels)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=-1), 1.0, rtol=1e-10)
    codes = np.rint((x + 1.0) * 0.5 * likelihood.levels - 0.5).astype(int)
    chosen = np.take_along_axis(log_p, codes[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(likelihood.nll(x, h)[0], -chosen, rtol=1e-12, atol=1e-12)


@pytest.mark.equation("DDPM-8")
@pytest.mark.parametrize("kind", [lk.DiscretisedLogistic, lk.DiscretisedNormal, lk.Categorical])
def test_two_levels_are_enough(kind):
    p = np.exp(kind(2).log_probabilities(normals(0, 3, 2)))
    np.testing.assert_allclose(p.sum(axis=-1), 1.0, rtol=1e-12)


@pytest.mark.equation("VAE-7")
@given(seeds(), sizes(), sizes())
def test_a_bernoulli_on_two_levels_is_the_cross_entropy_of_their_codes(seed, n, c):
    """x = ∓½ are the levels 0 and 1, and σ(h) is the probability of the upper one."""
    likelihood, codes, h = lk.BernoulliLevels(2), normals(seed, n, c) > 0.0, normals(seed + 1, n, c)
    assert likelihood.centres == [-0.5, 0.5]
    p = 1.0 / (1.0 + np.exp(-h))
    want = -np.where(codes, np.log(p), np.log1p(-p))
    np.testing.assert_allclose(likelihood.nll(codes - 0.5, h)[0], want, rtol=1e-12)
    np.testing.assert_allclose(likelihood.mean(h), p - 0.5, rtol=1e-12, atol=1e-15)


@pytest.mark.equation("VAE-1")
@of_each
@given(seeds())
def test_the_mean_is_the_integral_of_x(make, seed):
    """Σ x P(x) over the support, or the trapezoid rule, which is spectrally accurate here."""
    likelihood = make()
    h = normals(seed, 1, likelihood.width)
    support, width = np.linspace(-60.0, 60.0, 4001), 0.03
    if isinstance(likelihood, lk.Levels | lk.Bernoulli):
        support, width = np.asarray(getattr(likelihood, "centres", [0.0, 1.0])), 1.0
    p = np.exp(-likelihood.nll(support[:, None], np.repeat(h, len(support), axis=0))[0][:, 0])
    assert width * p.sum() == pytest.approx(1.0, rel=1e-10)
    mean = float(likelihood.mean(h)[0, 0])
    assert mean == pytest.approx(width * float(p @ support), rel=1e-9, abs=1e-12)


@pytest.mark.equation("VAE-1")
def test_a_level_that_is_certain_is_its_own_mean():
    likelihood = lk.Categorical(5)
    h = np.where(np.eye(5) > 0.0, 0.0, -1e4)
    np.testing.assert_array_equal(likelihood.mean(h)[:, 0], likelihood.centres)


@pytest.mark.equation("VAE-1")
@of_each
def test_samples_have_the_stated_mean(make):
    likelihood = make()
    h = normals(3, 1, likelihood.width) * 0.5

    def draws(n, look):
        stream = Stream(5, NUMPY).at(look)
        return likelihood.sample(np.repeat(h, n, axis=0), stream)[:, 0]

    assert_mean(draws, float(likelihood.mean(h)[0, 0]), resolution=0.03)


@pytest.mark.equation("VAE-1")
@of_each_levelled
@given(seeds())
def test_samples_invert_the_distribution_function(make, seed):
    """Uniform numbers on a grid give each level its probability, but for one point, in order."""
    likelihood, points = make(), 500
    h = normals(seed, 1, likelihood.width)
    uniform = (np.arange(points) + 0.5) / points
    x = likelihood.sample(np.repeat(h, points, axis=0), Given(uniform))[:, 0]
    assert np.all(np.diff(x) >= 0.0)
    shares = [np.mean(x == centre) for centre in likelihood.centres]
    p = np.exp(likelihood.log_probabilities(h)[0, 0])
    np.testing.assert_allclose(shares, p, rtol=0.0, atol=1.001 / points)


@pytest.mark.equation("VAE-1")
@given(st.floats(-5.0, 5.0))
def test_a_bernoulli_sample_is_one_below_its_probability(logit):
    points = 2000
    uniform = (np.arange(points) + 0.5) / points
    x = lk.Bernoulli().sample(np.full((points, 1), logit), Given(uniform))[:, 0]
    assert set(np.unique(x)) <= {0.0, 1.0}
    assert np.mean(x) == pytest.approx(1.0 / (1.0 + np.exp(-logit)), abs=1.001 / points)


@pytest.mark.equation("VAE-1")
def test_what_has_no_probability_is_never_drawn():
    """Not even at the uniform number 0, which a stream may give."""
    zero = Given(np.zeros((1, 1)))
    assert lk.Bernoulli().sample(np.asarray([[-2000.0]]), zero) == 0.0
    impossible = np.asarray([[-2000.0, 0.0, 0.0]])
    assert lk.Categorical(3).sample(impossible, zero) == 0.0


@pytest.mark.equation("VAE-1")
@pytest.mark.parametrize("make", NORMALS.values(), ids=NORMALS)
@given(seeds(), sizes(3), sizes(3))
def test_normal_samples_move_with_their_noise(make, seed, n, c):
    """x = mean + σε: the cost of x exceeds that of the mean by ½ε², and x rises with ε."""
    likelihood = make()
    h, eps = normals(seed, n, c * likelihood.width), normals(seed + 1, n, c)
    x, mean = likelihood.sample(h, Given(eps)), likelihood.mean(h)
    costs = likelihood.nll(x, h)[0] - likelihood.nll(mean, h)[0]
    np.testing.assert_allclose(costs, 0.5 * eps * eps, rtol=1e-9, atol=1e-12)
    assert np.all((x > mean) == (eps > 0.0))


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
@of_each
def test_every_backend_agrees(make, born):
    likelihood = make()
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
    for levels in (1, 3, 17):
        with pytest.raises(ValueError, match=f"data of 2 levels, got {levels}"):
            lk.BernoulliLevels(levels)
    with pytest.raises(TypeError, match="abstract"):
        lk.Levels(3)
