"""models/gan.py: the games in worlds where the best move is known, gradients against autograd."""

from math import log
from re import escape

import autograd
import autograd.numpy as traced
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.arrays import example_sum, per_example
from scratchgen.core.module import FlatParameters, StalePullback
from scratchgen.core.streams import Stream
from scratchgen.layers.activations import leaky_relu, silu, tanh
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.layers.dropout import Dropout
from scratchgen.layers.normalisation import BatchNorm, tracking
from scratchgen.layers.resampling import reshaped
from scratchgen.models import gan
from scratchgen.models.gan import Gan, LeastSquares, Minimax, NonSaturating, Wasserstein
from scratchgen.nets.convnet import dcgan_discriminator, dcgan_generator
from scratchgen.nets.mlp import mlp
from scratchgen.testing import oracle
from scratchgen.testing.strategies import seeds, sizes
from scratchgen.training.optim import Adam

from support import NUMPY, bound, host, normals, on_every_backend, tolerance

LOGISTIC = [Minimax(), NonSaturating(), gan.KlDivergence()]
LOSSES = [*LOGISTIC, LeastSquares(), LeastSquares(-0.5, 2.0, 0.7), Wasserstein()]


def named(losses) -> str:
    return type(losses).__name__


def test_the_lines_of_the_docstring_play_a_round():
    shown = Gan.__doc__.partition("Args:")[0].splitlines()
    build, *play = [line.strip() for line in shown if line.startswith(" " * 8)]
    names = dict(vars(gan))
    names |= {"Sequential": Sequential, "mlp": mlp, "leaky_relu": leaky_relu, "reshaped": reshaped}
    exec(build, names)
    generator, stream = mlp([3, 8, 2], tanh), Stream(0, NUMPY)
    params = FlatParameters(generator, stream.at("g"))
    names["discriminator_params"] = FlatParameters(names["discriminator"], stream.at("d"))
    sides = {"generator": params, "discriminator": names["discriminator_params"]}
    before = {side: each.theta.copy() for side, each in sides.items()}
    names |= {f"{side}_optimiser": Adam(each, 0.01) for side, each in sides.items()}
    names["gan"] = Gan(generator, names["discriminator"], sides["discriminator"], Wasserstein())
    names |= {"x": normals(1, 5, 2), "z": normals(2, 5, 3), "fresh_z": normals(3, 5, 3)}
    names |= {"u": np.linspace(0.0, 1.0, 5), "share": np.full(5, 0.2)}
    exec("\n".join(play), names)
    assert all(np.any(sides[side].theta != theta) for side, theta in before.items())
    assert np.any(sides["discriminator"].gradient)


every_loss = pytest.mark.parametrize("losses", LOSSES, ids=named)
every_logistic = pytest.mark.parametrize("losses", LOGISTIC, ids=named)


def softmax(theta):
    e = traced.exp(theta - traced.max(theta))
    return e / traced.sum(e)


def kl(p, q):
    return traced.sum(p * traced.log(p / q))


def jsd(p, q):
    return 0.5 * kl(p, 0.5 * (p + q)) + 0.5 * kl(q, 0.5 * (p + q))


def finite_world(seed: int, k: int = 5):
    """p_data, and the parameters of a softmax generator p_g = softmax(θ), on k points."""
    return softmax(np.tanh(normals(seed, k))), np.tanh(normals(seed + 1, k))


def expected(losses, p, q, scores):
    """The discriminator's expected cost at these scores (K,) of K points, and its gradient."""
    (real, fake), pullback = losses.discriminator(scores, scores)
    d_real, d_fake = pullback(p, q)
    return p @ real + q @ fake, d_real + d_fake


def assert_least(losses, p, q, best, seed):
    """No scores cost the discriminator less than the best, and the slope there is 0."""
    least, slope = expected(losses, p, q, best)
    np.testing.assert_allclose(slope, 0.0, atol=1e-14)
    for size in (1e-3, 0.1, 1.0):
        assert expected(losses, p, q, best + size * normals(seed + 2, len(p)))[0] > least
    return least


# The games on a finite world, where every discriminator is a table.


@pytest.mark.equation("GAN-2")
@every_logistic
@given(seeds(), sizes(6))
def test_the_best_discriminator_is_the_share_of_the_data(losses, seed, k):
    """D* = p/(p + q), whose logit is log p/q; there the value is -log 4 + 2 JSD."""
    p, theta = finite_world(seed, k)
    q = softmax(theta)
    least = assert_least(losses, p, q, np.log(p / q), seed)
    assert -least == pytest.approx(-log(4.0) + 2.0 * jsd(p, q), abs=1e-13)


@pytest.mark.equation("GAN-2")
@pytest.mark.equation("GAN-3")
@given(seeds())
def test_ascent_on_a_table_of_logits_reaches_the_best(seed):
    p, theta = finite_world(seed)
    q = softmax(theta)
    logits, costs = normals(seed + 3, 5), []
    for _ in range(400):
        cost, slope = expected(Minimax(), p, q, logits)
        costs.append(cost)
        logits = logits - 4.0 * slope / (p + q)  # the cost's curvature is (p + q) D (1 - D)
    assert np.all(np.diff(costs) <= 1e-14)  # no step lowers the value
    assert costs[-1] < costs[0]
    np.testing.assert_allclose(logits, np.log(p / q), atol=1e-6)


IDENTITIES = [
    ("GAN-2", Minimax(), lambda p, q: 2.0 * jsd(p, q)),
    ("GAN-5", NonSaturating(), lambda p, q: kl(q, p) - 2.0 * jsd(p, q)),
    ("GAN-14", gan.KlDivergence(), lambda p, q: kl(q, p)),
]


@pytest.mark.parametrize(
    ("losses", "divergence"),
    [pytest.param(a, d, marks=pytest.mark.equation(key), id=key) for key, a, d in IDENTITIES],
)
@given(seeds())
def test_what_the_generator_descends_against_the_best_discriminator(losses, divergence, seed):
    """∇_θ E_{p_g}[cost at the fixed D*] is the gradient of a divergence of p_g and p_data."""
    p, theta = finite_world(seed)
    cost, _ = losses.generator(np.log(p / softmax(theta)))
    got = autograd.grad(lambda theta: traced.sum(softmax(theta) * cost))(theta)
    want = autograd.grad(lambda theta: divergence(p, softmax(theta)))(theta)
    np.testing.assert_allclose(got, want, atol=1e-13)


@pytest.mark.equation("GAN-3")
@pytest.mark.equation("GAN-6")
@pytest.mark.equation("GAN-4")
@pytest.mark.equation("GAN-5")
def test_an_obvious_fake_teaches_the_saturating_generator_nothing():
    """At D = 0.01 the two costs have slopes of -0.01 and -0.99, at D = 0.99 of -0.99 and -0.01."""
    d = np.asarray([0.01, 0.99])
    logits, one = np.log(d / (1.0 - d)), np.ones(2)
    saturating, pull_saturating = Minimax().generator(logits)
    cured, pull_cured = NonSaturating().generator(logits)
    np.testing.assert_allclose(saturating, np.log(1.0 - d), rtol=1e-13)
    np.testing.assert_allclose(cured, -np.log(d), rtol=1e-13)
    np.testing.assert_allclose(pull_saturating(one), [-0.01, -0.99], rtol=1e-13)
    np.testing.assert_allclose(pull_cured(one), [-0.99, -0.01], rtol=1e-13)


@pytest.mark.equation("GAN-4")
@pytest.mark.equation("GAN-5")
@pytest.mark.equation("GAN-14")
@given(st.floats(0.0, 25.0), st.floats(0.0, 4.0))
def test_the_more_obvious_a_fake_the_flatter_is_the_saturating_cost_and_no_other(nats, more):
    """In the logit: slopes of -D -> 0, -(1 - D) -> -1 and -1, at D = ½ e^(-nats)."""
    d = 0.5 * np.exp([-nats, -nats - more])
    logits, one = np.log(d) - np.log1p(-d), np.ones(2)
    saturating, cured, kl_slope = (loss.generator(logits)[1](one) for loss in LOGISTIC)
    np.testing.assert_allclose(saturating, -d, rtol=0.0, atol=1e-15)
    np.testing.assert_allclose(cured, d - 1.0, rtol=0.0, atol=1e-15)
    np.testing.assert_array_equal(kl_slope, -1.0)
    assert abs(saturating[1]) <= abs(saturating[0]) <= abs(cured[0]) <= abs(cured[1])


@pytest.mark.equation("GAN-2")
@pytest.mark.equation("GAN-4")
@pytest.mark.equation("GAN-5")
@every_logistic
@given(st.floats(-80.0, 80.0, width=32))
def test_in_float32_the_slopes_keep_their_digits_in_both_tails(losses, logit):
    """For Adam divides a gradient by its size: that of an obvious fake counts, however small.

    Two exps that are off by up to 2 units of 2⁻²³ and three roundings by ½: 7e-7 in all. And no
    slope from -80 to 80 is below e^-80 = 2e-35, a normal number.
    """
    slopes = []
    for kind in (np.float32, np.float64):
        at, one = np.asarray([logit], kind), np.ones(1, kind)
        (_, pull), (_, pull_generator) = losses.discriminator(at, at), losses.generator(at)
        slopes.append([*pull(one, one), pull_generator(one)])
    for got, want in zip(*slopes, strict=True):
        assert got.dtype == np.float32
        assert got[0] == pytest.approx(want[0], rel=1e-6, abs=0.0)


@pytest.mark.equation("GAN-14")
@given(seeds(), sizes(4))
def test_the_kl_cost_is_the_saturating_and_the_log_d_cost_in_one(seed, n):
    logits, d = 3.0 * normals(seed, n), normals(seed + 1, n)
    parts = [losses.generator(logits) for losses in LOGISTIC]
    for first, second, both in (
        [value for value, _ in parts],
        [pullback(d) for _, pullback in parts],
    ):
        np.testing.assert_allclose(both, first + second, rtol=1e-12, atol=1e-13)


@pytest.mark.equation("GAN-10")
@given(seeds(), st.floats(-1.0, 1.0), st.floats(0.5, 2.0))
def test_least_squares_draw_the_scores_to_a_mean_of_the_labels(seed, fake, gap):
    """D* = (b p + a q)/(p + q)."""
    p, theta = finite_world(seed)
    q, real = softmax(theta), fake + gap
    assert_least(LeastSquares(fake, real, 0.0), p, q, (real * p + fake * q) / (p + q), seed)


@pytest.mark.equation("GAN-10")
@given(seeds())
def test_some_labels_make_least_squares_measure_chi_square(seed):
    """b - c = 1 and b - a = 2 do, wherever c lies; those of practice give ½ even where p = q."""
    p, theta = finite_world(seed)

    def measured(q, fake, real, wanted):
        best = (real * p + fake * q) / (p + q)
        return 2.0 * (p + q) @ LeastSquares(fake, real, wanted).generator(best)[0]

    for q in (softmax(theta), p):
        chi_square = np.sum((p - q) ** 2 / (p + q))
        for c in (0.0, 0.3):
            assert measured(q, c - 1.0, c + 1.0, c) == pytest.approx(
                chi_square, rel=1e-9, abs=1e-14
            )
    assert measured(p, 0.0, 1.0, 1.0) == pytest.approx(0.5)


@pytest.mark.equation("GAN-10")
@pytest.mark.parametrize(
    ("p", "q", "game", "measure"),
    [
        ([0.75, 0.25], [0.25, 0.75], 0.0, -1.0),
        ([0.5, 0.5], [0.25, 0.75], 8.0 / 225.0, -128.0 / 225.0),
    ],
    ids=["stays", "climbs"],
)
def test_at_fixed_scores_least_squares_do_not_descend_what_they_measure(p, q, game, measure):
    """∂ of ½ E_{p_g}[D*²], and of ½ Σ (p - q)²/(p + q), where mass goes to the first of two points.

    In both worlds q has too little there. With D* = (p - q)/(p + q) = ±½ the generator has no slope
    at all; with D* = 1/3 and -1/5 it moves mass away, (1/9 - 1/25)/2 > 0, though the sum falls.
    """
    p, q, towards = np.asarray(p), np.asarray(q), np.asarray([1.0, -1.0])
    cost, _ = LeastSquares(-1.0, 1.0, 0.0).generator((p - q) / (p + q))
    slope = autograd.grad(lambda q: 0.5 * traced.sum((p - q) ** 2 / (p + q)))(q)
    assert towards @ cost == pytest.approx(game, abs=1e-15)
    assert towards @ slope == pytest.approx(measure, abs=1e-14)


@pytest.mark.equation("GAN-10")
def test_labels_are_those_of_practice_unless_told_and_differ():
    a = normals(0, 4)
    (real, fake), _ = LeastSquares().discriminator(a, a)
    np.testing.assert_allclose(real, 0.5 * (a - 1.0) ** 2)
    np.testing.assert_allclose(fake, 0.5 * a**2)
    np.testing.assert_allclose(LeastSquares().generator(a)[0], 0.5 * (a - 1.0) ** 2)
    with pytest.raises(ValueError, match="differ, got 1.0 for both"):
        LeastSquares(1.0, 1.0)


@pytest.mark.equation("GAN-3")
@pytest.mark.equation("GAN-6")
@pytest.mark.equation("GAN-2")
@pytest.mark.equation("GAN-4")
@pytest.mark.equation("GAN-5")
@pytest.mark.equation("GAN-10")
@pytest.mark.equation("GAN-11")
@pytest.mark.equation("GAN-14")
@every_loss
@given(seeds(), sizes(4), sizes(4))
def test_pullbacks_of_the_costs(losses, seed, n, m):
    real, fake = 6.0 * np.tanh(normals(seed, n)), 6.0 * np.tanh(normals(seed + 1, m))
    for cost, scores in ((losses.discriminator, (real, fake)), (losses.generator, (fake,))):
        oracle.check_pullback(cost, *scores)
        oracle.check_pullback_is_linear(cost, *scores)


@every_logistic
def test_no_logit_is_too_large(losses):
    """softplus(±1000) = 1000 and 0, with slopes of 1 and 0."""
    far, one = np.asarray([-1000.0, 1000.0]), np.ones(2)
    (real, fake), pullback = losses.discriminator(far, far)
    np.testing.assert_array_equal([real, fake], [[1000.0, 0.0], [0.0, 1000.0]])
    np.testing.assert_array_equal(pullback(one, one), [[-1.0, 0.0], [0.0, 1.0]])
    cost, pullback = losses.generator(far)
    assert np.all(np.isfinite(cost))
    assert np.all(np.isfinite(pullback(one)))


# Critics: a shift of the data by W, where W_1 = |W|.


def linear_critic(shape, slope=None):
    """a(x) = <w, x> + b on examples of that shape; w if given."""
    net = Sequential(reshaped(-1), Linear(int(np.prod(shape)), 1), reshaped())
    params = bound(net)
    if slope is not None:
        weight = net.layers[1].weight
        params.theta[weight.window] = slope
        params.changed()
    return net, params


@pytest.mark.equation("GAN-11")
@given(seeds(), st.floats(-3.0, 3.0), st.integers(1, 6))
def test_of_a_shift_no_critic_without_steep_slopes_sees_more_than_its_size(seed, shift, n):
    """±x sees |shift| in every set of paired samples; sin(kx + c)/k, of slope at most 1, less."""
    fake = normals(seed, n)
    real = fake + shift

    def difference(critic):
        (d_real, d_fake), _ = Wasserstein().discriminator(critic(real), critic(fake))
        return -np.mean(d_real) - np.mean(d_fake)

    assert difference(lambda x: np.copysign(1.0, shift) * x) == pytest.approx(abs(shift), abs=1e-12)
    for k, c in np.abs(normals(seed + 1, 5, 2)) + 0.01:
        assert difference(lambda x, k=k, c=c: np.sin(k * x + c) / k) <= abs(shift) + 1e-12


@pytest.mark.equation("GAN-11")
def test_the_generator_of_a_wasserstein_game_follows_the_critic_s_slope():
    """G(z) = z + b: the gradient of E[-a(G(z))] in b is -w."""
    critic, params = linear_critic((2,), slope=[0.3, -0.7])
    generator = Linear(2, 2)
    g_params = bound(generator)
    game = Gan(generator, critic, params, Wasserstein())
    term, pullback = game.generator_loss(normals(0, 4, 2))
    pullback(np.full(4, 0.25))
    np.testing.assert_allclose(g_params.grad[generator.bias.window], [-0.3, 0.7], rtol=1e-12)
    np.testing.assert_allclose(term, -critic(generator(normals(0, 4, 2))[0])[0], rtol=1e-12)


@pytest.mark.equation("GAN-11")
@given(seeds(), st.floats(0.01, 2.0))
def test_clipping_moves_what_is_outside_to_the_limit_and_nothing_else(seed, limit):
    net = mlp([2, 3, 1])
    params = bound(net, seed)
    before, theta = params.theta.copy(), params.theta
    _, pullback = net(normals(0, 1, 2))
    gan.clip(params, limit)
    assert params.theta is theta
    inside = np.abs(before) <= limit
    np.testing.assert_array_equal(theta[inside], before[inside])
    np.testing.assert_array_equal(theta[~inside], limit * np.sign(before[~inside]))
    with pytest.raises(StalePullback):
        pullback(np.ones((1, 1)))


@pytest.mark.parametrize("limit", [0.0, -0.01, float("nan")])
def test_a_limit_is_positive(limit):
    with pytest.raises(ValueError, match=f"positive; got {limit}"):
        gan.clip(bound(Linear(1, 1)), limit)


# The gradient penalty; against autograd's grad of grad in test_gradient_penalty.py.


@pytest.mark.equation("GAN-12")
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 2), (4, 4, 2)])
@given(seed=seeds(), n=sizes(4), scale=st.sampled_from([1.0, 1e-3, 1e-6]))
def test_of_a_linear_critic_the_penalty_is_known(shape, seed, n, scale):
    """(‖w‖ - 1)² for each example, wherever it lies; its gradient is 2 (‖w‖ - 1) w/‖w‖."""
    w = scale * normals(seed, int(np.prod(shape)))
    critic, params = linear_critic(shape, w)
    x, fake = normals(seed + 1, n, *shape), normals(seed + 2, n, *shape)
    u = Stream(seed, NUMPY).uniform((n,))
    penalty, pullback = gan.gradient_penalty(critic, params, x, fake, u)
    norm = np.linalg.norm(w)
    np.testing.assert_allclose(penalty, (norm - 1.0) ** 2, rtol=1e-12, atol=1e-13)
    assert penalty.shape == (n,)
    pullback(np.full(n, 1.0 / n))
    want = np.zeros_like(params.theta)
    want[critic.layers[1].weight.window] = 2.0 * (norm - 1.0) / norm * w
    np.testing.assert_allclose(params.grad, want, rtol=1e-10, atol=1e-12)


class HalfSquare:
    """a(x) = ½ ‖x‖², without parameters."""

    def __call__(self, x):
        return 0.5 * example_sum(x * x), lambda d: per_example(d, x) * x

    def pushforward(self, x, v):
        def pullback(d, d_tangent):
            d_v = per_example(d_tangent, x) * x
            return per_example(d, x) * x + per_example(d_tangent, v) * v, d_v

        return (0.5 * example_sum(x * x), example_sum(x * v)), pullback


@pytest.mark.equation("GAN-12")
@pytest.mark.parametrize("shape", [(3,), (2, 2, 1)])
@given(seed=seeds(), n=sizes(4))
def test_the_slope_is_taken_between_each_datum_and_its_fake(shape, seed, n):
    """Of a(x) = ½ ‖x‖² the slope is x itself."""
    x, fake = normals(seed, n, *shape), normals(seed + 1, n, *shape)
    u = Stream(seed, NUMPY).uniform((n,))
    penalty, _ = gan.gradient_penalty(HalfSquare(), bound(Linear(1, 1)), x, fake, u)
    lengths = [np.linalg.norm(u[i] * x[i] + (1.0 - u[i]) * fake[i]) for i in range(n)]
    np.testing.assert_allclose(penalty, (np.asarray(lengths) - 1.0) ** 2, rtol=1e-12, atol=1e-15)


@pytest.mark.equation("GAN-12")
@given(seeds(), st.floats(0.1, 3.0), st.floats(0.5, 20.0))
def test_the_penalty_s_optimum_is_a_little_too_steep(seed, shift, weight):
    """c = 1 + W/2λ: the difference overestimates W by W²/2λ, with the penalty off by W²/4λ."""
    fake = normals(seed, 4, 1)
    real, share = fake + shift, np.full(4, 0.25)

    def cost(c):
        critic, params = linear_critic((1,), c)
        game = Gan(Linear(1, 1), critic, params, Wasserstein())
        (d_real, d_fake), pullback = game.discriminator_loss(real, fake)
        u = Stream(seed, NUMPY).uniform((4,))
        penalty, penalty_pullback = gan.gradient_penalty(critic, params, real, fake, u)
        pullback(share, share)
        penalty_pullback(weight * share)
        difference = -share @ (d_real + d_fake)
        return difference, weight * (share @ penalty) - difference, params.grad

    best = 1.0 + shift / (2.0 * weight)
    difference, least, gradient = cost(best)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-12 * (1.0 + shift + weight))
    assert difference - shift == pytest.approx(shift**2 / (2.0 * weight), abs=1e-11)
    assert -least - shift == pytest.approx(shift**2 / (4.0 * weight), abs=1e-11)
    assert min(cost(best + off)[1] for off in (-0.1, 0.1)) > least


@pytest.mark.equation("GAN-12")
def test_where_a_critic_is_flat_the_penalty_is_1_and_pulls_nowhere():
    for activation in (leaky_relu, tanh, silu):
        critic = Sequential(*mlp([3, 4, 1], activation).layers, reshaped())
        params = bound(critic)
        params.theta[critic.layers[-2].weight.window] = 0.0
        params.changed()
        x = normals(0, 2, 3)
        penalty, pullback = gan.gradient_penalty(critic, params, x, x, np.ones(2))
        np.testing.assert_array_equal(penalty, [1.0, 1.0])
        pullback(np.ones(2))
        np.testing.assert_array_equal(params.grad, 0.0)


@pytest.mark.equation("GAN-12")
def test_the_penalty_adds_to_the_critic_s_gradient_and_to_no_other():
    game, g_params, params = small_game(Wasserstein())
    x, z, u = normals(0, 4, 3), normals(1, 4, 2), Stream(0, NUMPY).uniform((4,))
    fake, share = game.generate(z), np.full(4, 0.25)

    def gradient(*parts):
        params.grad[...] = 0.0
        loss = game.discriminator_loss(x, fake)[1]
        penalty = gan.gradient_penalty(game.discriminator, params, x, fake, u)[1]
        assert not np.any(params.grad)
        if "loss" in parts:
            loss(share, share)
        if "penalty" in parts:
            penalty(10.0 * share)
        return params.grad.copy()

    both = gradient("loss", "penalty")
    np.testing.assert_allclose(both, gradient("loss") + gradient("penalty"), atol=1e-14)
    assert np.any(gradient("penalty"))
    assert not np.any(g_params.grad)


@pytest.mark.equation("GAN-12")
def test_the_penalty_s_pullback_belongs_to_the_parameters_it_was_taken_at():
    game, _, params = small_game(Wasserstein())
    x = normals(0, 2, 3)
    _, pullback = gan.gradient_penalty(game.discriminator, params, x, -x, np.full(2, 0.3))
    params.theta = 1.1 * params.theta
    with pytest.raises(StalePullback):
        pullback(np.ones(2))


@pytest.mark.parametrize(
    ("fake", "u", "says"),
    [
        ((1, 2), (4,), "fake must have shape (4, 2), got (1, 2)"),
        ((4, 1), (4,), "fake must have shape (4, 2), got (4, 1)"),
        ((4, 2), (1,), "u must have shape (4,), got (1,)"),
        ((4, 2), (4, 1), "u must have shape (4,), got (4, 1)"),
    ],
)
def test_a_penalty_pairs_each_datum_with_a_fake_and_a_place_between(fake, u, says):
    critic, params = linear_critic((2,))
    with pytest.raises(ValueError, match=escape(says)):
        gan.gradient_penalty(critic, params, normals(0, 4, 2), normals(1, *fake), np.ones(u))


@pytest.mark.parametrize("layer", [BatchNorm(3), Dropout(0.1)], ids=["batch norm", "dropout"])
def test_a_critic_under_a_penalty_treats_each_example_by_itself(layer):
    critic = Sequential(layer, Linear(3, 1), reshaped())
    params, x = bound(critic), normals(0, 2, 3)
    with pytest.raises(ValueError, match="without batch norm"):
        gan.gradient_penalty(critic, params, x, x, np.ones(2))


# Both nets.


def small_game(losses, seed=1, born=NUMPY, activation=tanh):
    """z (N, 2) -> x (N, 3) -> (N,): the game, G's vector, D's vector."""
    generator = mlp([2, 4, 3], activation)
    discriminator = Sequential(*mlp([3, 4, 1], activation).layers, reshaped())
    g_params, d_params = bound(generator, seed, born), bound(discriminator, seed + 1, born)
    return Gan(generator, discriminator, d_params, losses), g_params, d_params


@pytest.mark.equation("GAN-3")
@pytest.mark.equation("GAN-6")
@every_loss
@given(seeds(), sizes(4), sizes(4))
def test_each_loss_has_the_gradient_of_its_own_net_and_leaves_the_other_alone(losses, seed, n, m):
    game, g_params, d_params = small_game(losses, seed % 1000)
    z, x = normals(seed, m, 2), normals(seed + 1, n, 3)
    fake = game.generate(z)
    oracle.check_gradient(d_params, game.discriminator_loss, x, fake)
    oracle.check_gradient(g_params, game.generator_loss, z)
    assert game.discriminator_loss(x, fake)[1](np.ones(n), np.ones(m)) is None
    assert np.any(d_params.grad)
    assert not np.any(g_params.grad)
    kept = d_params.grad.copy()
    assert game.generator_loss(z)[1](np.ones(m)) is None
    assert np.any(g_params.grad)
    np.testing.assert_array_equal(d_params.grad, kept)


@pytest.mark.equation("GAN-3")
@pytest.mark.equation("GAN-6")
@every_loss
def test_the_losses_are_the_costs_of_the_two_nets(losses):
    game, _, _ = small_game(losses)
    z, x = normals(0, 4, 2), normals(1, 5, 3)
    fake = game.generator(z)[0]
    np.testing.assert_array_equal(game.generate(z), fake)
    scores = game.discriminator(x)[0], game.discriminator(fake)[0]
    for got, want in zip(
        game.discriminator_loss(x, fake)[0], losses.discriminator(*scores)[0], strict=True
    ):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(game.generator_loss(z)[0], losses.generator(scores[1])[0])


@pytest.mark.equation("GAN-6")
def test_minibatches_have_the_whole_batch_s_gradient_on_average():
    game, g_params, d_params = small_game(NonSaturating())
    z, x = normals(0, 6, 2), normals(1, 6, 3)

    def gradients(rows):
        share = np.full(len(z[rows]), 1.0 / len(z[rows]))
        g_params.grad[...] = d_params.grad[...] = 0.0
        game.discriminator_loss(x[rows], game.generate(z[rows]))[1](share, share)
        game.generator_loss(z[rows])[1](share)
        return np.concatenate([g_params.grad, d_params.grad])

    parts = [gradients(slice(i, i + 2)) for i in (0, 2, 4)]
    np.testing.assert_allclose(np.mean(parts, axis=0), gradients(slice(None)), atol=1e-14)


class Normals:
    """Data N(3, 1) against G(z) = a z + b, with logits c_0 + c_1 x + c_2 x²; by quadrature."""

    def __init__(self, losses, a: float, b: float):
        self.z, weights = np.polynomial.hermite_e.hermegauss(60)
        self.z, self.weights = self.z[:, None], weights / weights.sum()
        self.x = 3.0 + self.z
        generator, discriminator = Linear(1, 1), Sequential(squares, Linear(2, 1), reshaped())
        self.g, self.d = bound(generator), bound(discriminator)
        self.game = Gan(generator, discriminator, self.d, losses)
        self.g.theta, self.d.theta = np.asarray([a, b]), np.zeros(3)

    def play_discriminator(self):
        """V at the present discriminator, and -V's gradient in d.grad."""
        self.d.grad[...] = 0.0
        terms, pullback = self.game.discriminator_loss(self.x, self.game.generate(self.z))
        pullback(self.weights, self.weights)
        return -sum(self.weights @ term for term in terms)

    def solve_discriminator(self, steps: int):
        """So many of Newton's steps towards the best discriminator."""
        for _ in range(steps):
            self.play_discriminator()
            curvature = 0.0
            for x in (self.x, self.game.generate(self.z)):
                features = np.concatenate([x, x * x, 1.0 + 0.0 * x], axis=1)
                d = 0.5 + 0.5 * np.tanh(0.5 * features @ self.d.theta)
                curvature = curvature + (features.T * (self.weights * d * (1.0 - d))) @ features
            self.d.theta = self.d.theta - np.linalg.solve(curvature, self.d.grad)

    def step_generator(self, rate: float):
        self.g.grad[...] = 0.0
        _, pullback = self.game.generator_loss(self.z)
        pullback(self.weights)
        self.g.theta = self.g.theta - rate * self.g.grad

    def best_discriminator(self):
        """log p/q, from the two normal densities."""
        a, b = self.g.theta
        return np.asarray([3.0 - b / a**2, 0.5 / a**2 - 0.5, 0.5 * (b / a) ** 2 - 4.5 + log(a)])


def squares(x):
    return np.concatenate([x, x * x], axis=1), lambda d: d[:, :1] + 2.0 * x * d[:, 1:]


@pytest.mark.equation("GAN-3")
@pytest.mark.equation("GAN-6")
@given(st.floats(0.8, 1.25), st.floats(2.0, 4.0), seeds())
def test_a_small_step_of_the_discriminator_raises_the_value(a, b, seed):
    world = Normals(Minimax(), a, b)
    world.d.theta = 0.3 * normals(seed, 3)
    before = world.play_discriminator()
    world.d.theta = world.d.theta - 1e-5 * world.d.grad
    assert world.play_discriminator() > before


@pytest.mark.equation("GAN-2")
@pytest.mark.equation("GAN-3")
@given(st.floats(0.8, 1.25), st.floats(2.5, 3.5))
def test_a_small_step_of_the_generator_against_the_best_lowers_the_divergence(a, b):
    """The value at the best discriminator, which is -log 4 + 2 JSD."""
    world = Normals(Minimax(), a, b)
    world.d.theta = world.best_discriminator()
    before = world.play_discriminator()
    np.testing.assert_allclose(world.d.grad, 0.0, atol=1e-7)
    world.step_generator(0.01)
    world.d.theta = world.best_discriminator()
    assert world.play_discriminator() < before or before < -log(4.0) + 1e-9


@pytest.mark.equation("GAN-6")
@pytest.mark.parametrize("start", [(0.5, 2.0), (1.6, 4.0)])
def test_the_two_in_turn_bring_the_generator_to_the_data(start):
    """b → 3 and a → 1, with a discriminator that is near its best all along."""
    world = Normals(NonSaturating(), *start)
    for _ in range(120):
        world.solve_discriminator(steps=4)
        world.step_generator(0.3)
    np.testing.assert_allclose(world.g.theta, [1.0, 3.0], atol=1e-3)


@pytest.mark.equation("GAN-1")
@given(seeds(), sizes(3), sizes(4))
def test_samples_of_a_linear_generator_have_the_covariance_of_its_weights(seed, k, d):
    """z = ±√K e_i has mean 0 and covariance I, so W z + b has mean b and covariance W Wᵀ."""
    generator, (critic, params) = Linear(k, d), linear_critic((d,))
    bound(generator, seed % 1000)
    z = np.sqrt(k) * np.concatenate([np.eye(k), -np.eye(k)])
    x = Gan(generator, critic, params, Minimax()).generate(z)
    weight, bias = generator.weight.read().value, generator.bias.read().value
    np.testing.assert_allclose(x.mean(axis=0), bias, atol=1e-13)
    np.testing.assert_allclose((x - bias).T @ (x - bias) / len(x), weight @ weight.T, atol=1e-12)


@pytest.mark.equation("GAN-6")
def test_batch_norm_sees_data_and_fakes_as_two_batches():
    """And moves its running statistics by what runs within `tracking`, here not G's step."""
    generator, discriminator = (
        dcgan_generator((16, 16, 1), 2, 4),
        dcgan_discriminator((16, 16, 1), 4),
    )
    g_params, params = bound(generator), bound(discriminator)
    game, stream = Gan(generator, discriminator, params, Minimax()), Stream(0, NUMPY)
    z, x = normals(0, 4, 2), normals(1, 3, 16, 16, 1)
    with tracking():
        fake = game.generate(z, stream)
        terms, _ = game.discriminator_loss(x, fake, stream)
    np.testing.assert_array_equal(fake, generator(z, stream=stream)[0])
    for term, images, cost in zip(terms, (x, fake), (lambda a: -a, lambda a: a), strict=True):
        logits = cost(discriminator(images, stream=stream)[0])
        np.testing.assert_allclose(term, np.logaddexp(0.0, logits), rtol=1e-12)
    buffers = {**g_params.buffers, **{f"d.{n}": b for n, b in params.buffers.items()}}
    kept = {name: buffer.value.copy() for name, buffer in buffers.items()}
    assert all(np.any((value != 0.0) & (value != 1.0)) for value in kept.values())
    term, _ = game.generator_loss(z, stream)
    np.testing.assert_allclose(term, -terms[1], rtol=1e-12)  # softplus(a) and -softplus(a)
    assert np.any(term != game.generator_loss(z)[0])
    for name, buffer in buffers.items():
        np.testing.assert_array_equal(buffer.value, kept[name])


class Noted:
    """A layer that does nothing, and notes which noise it is given."""

    draws = True

    def __init__(self):
        self.paths = []

    def __call__(self, x, stream=None):
        self.paths.append(stream.path)
        return x, lambda dy: dy


def test_each_pass_has_noise_of_its_own():
    at_g, at_d = Noted(), Noted()
    discriminator = Sequential(Linear(3, 1), reshaped(), at_d)
    game = Gan(Sequential(Linear(2, 3), at_g), discriminator, bound(discriminator), Minimax())
    bound(game.generator)
    stream = Stream(5, NUMPY)
    fake = game.generate(normals(0, 2, 2), stream)
    game.discriminator_loss(normals(1, 2, 3), fake, stream)
    game.generator_loss(normals(0, 2, 2), stream)
    assert at_g.paths == [(5, "generator", 1)] * 2
    assert at_d.paths == [(5, "real", 2), (5, "fake", 2), (5, "fake", 2)]


def test_a_discriminator_returns_one_number_per_example():
    net = mlp([3, 1])
    game = Gan(mlp([2, 3]), net, bound(net), Minimax())
    bound(game.generator)
    for loss in (
        lambda: game.discriminator_loss(normals(0, 4, 3), normals(1, 4, 3)),
        lambda: game.generator_loss(normals(0, 4, 2)),
    ):
        with pytest.raises(ValueError, match=r"one number per example, \(N,\), got \(4, 1\)"):
            loss()


def test_a_discriminator_that_reads_data_is_refused():
    net, alone = mlp([3, 4, 1], reads_data=True), Linear(3, 1, reads_data=True)
    for critic in (net, alone):
        params, x = bound(critic), normals(0, 2, 3)
        with pytest.raises(ValueError, match="must not be built with reads_data"):
            Gan(mlp([2, 3]), critic, params, Minimax())
        with pytest.raises(ValueError, match="must not be built with reads_data"):
            gan.gradient_penalty(critic, params, x, x, np.ones(2))


# Latent vectors.


@pytest.mark.equation("GAN-9")
@given(seeds(), sizes(4), sizes(4), sizes(4))
def test_what_is_added_to_latents_is_added_to_the_outputs_of_a_linear_generator(seed, n, m, k):
    generator = Linear(2, 3)
    bound(generator, seed % 1000)
    groups = [normals(seed + i, size, 2) for i, size in enumerate((n, m, k))]
    a, b, c = (generator(z)[0].mean(axis=0) for z in groups)
    got = generator(gan.arithmetic(*groups)[None])[0][0]
    np.testing.assert_allclose(got, a - b + c, atol=1e-13)


@pytest.mark.equation("DVAE-13")
@given(seeds(), st.integers(2, 6), sizes(3))
def test_a_straight_way_has_equal_steps(seed, steps, n):
    z0, z1 = normals(seed, n, 2), normals(seed + 1, n, 2)
    way = gan.interpolate(z0, z1, steps)
    assert way.shape == (steps, n, 2)
    np.testing.assert_array_equal(way[[0, -1]], [z0, z1])
    step = np.broadcast_to((z1 - z0) / (steps - 1), (steps - 1, n, 2))
    np.testing.assert_allclose(np.diff(way, axis=0), step, atol=1e-13)


@pytest.mark.equation("DVAE-13")
@given(seeds(), st.integers(3, 6))
def test_a_straight_way_between_normals_is_too_short(seed, steps):
    """With z0 and z1 uncorrelated and white, the covariance is (w² + (1 - w)²) I."""
    white = np.sqrt(4.0) * np.linalg.qr(normals(seed, 4, 4))[0]
    way = gan.interpolate(white[:, :2], white[:, 2:], steps)
    for z, w in zip(way, np.linspace(0.0, 1.0, steps), strict=True):
        np.testing.assert_allclose(z.T @ z / 4.0, (w**2 + (1.0 - w) ** 2) * np.eye(2), atol=1e-12)


@pytest.mark.equation("DVAE-13")
@given(seeds(), st.integers(2, 6))
def test_the_arc_between_normals_keeps_their_covariance(seed, steps):
    """With z0 and z1 uncorrelated and white, so is what lies between; and its steps are equal."""
    white = np.sqrt(4.0) * np.linalg.qr(normals(seed, 4, 4))[0]
    way = gan.interpolate_normal(white[:, :2], white[:, 2:], steps)
    np.testing.assert_allclose(way[[0, -1]], [white[:, :2], white[:, 2:]], atol=1e-12)
    for z in way:
        np.testing.assert_allclose(z.T @ z / 4.0, np.eye(2), atol=1e-12)
    turn = np.cos(0.5 * np.pi / (steps - 1))
    for z, z_next in zip(way[:-1], way[1:], strict=True):
        np.testing.assert_allclose(z.T @ z_next / 4.0, turn * np.eye(2), atol=1e-12)


@pytest.mark.parametrize("way", [gan.interpolate, gan.interpolate_normal])
def test_a_way_has_two_ends(way):
    assert way(np.zeros((1, 2)), np.ones((1, 2)), 2).shape == (2, 1, 2)
    with pytest.raises(ValueError, match="at least 2 steps, its ends; got 1"):
        way(np.zeros((1, 2)), np.ones((1, 2)), 1)
    for shape in ((1, 2), (3, 1), (2,)):
        with pytest.raises(ValueError, match=escape(f"z1 must have shape (3, 2), got {shape}")):
            way(np.zeros((3, 2)), np.ones(shape), 2)


@on_every_backend
@every_loss
def test_every_backend_agrees(losses, born):
    def everything(born):
        game, g_params, d_params = small_game(losses, born=born)
        gan.clip(d_params, 0.5)
        draw = Stream(3, born)
        z, x, u = draw.at("z").normal((4, 2)), draw.at("x").normal((4, 3)), draw.uniform((4,))
        share, fake = 0.25 + 0.0 * u, game.generate(z)
        terms, pullback = game.discriminator_loss(x, fake)
        pullback(share, share)
        penalty, pullback = gan.gradient_penalty(game.discriminator, d_params, x, fake, u)
        pullback(share)
        term, pullback = game.generator_loss(z)
        pullback(share)
        latents = gan.arithmetic(z, z[:2, ...], z[2:, ...])
        ways = [gan.interpolate(z, -z, 3), gan.interpolate_normal(z, z + 1.0, 3)]
        found = [*terms, penalty, term, g_params.grad, d_params.grad, latents, *ways]
        assert {array.dtype for array in found} == {z.dtype}
        return [host(array) for array in found]

    for got, want in zip(everything(born), everything(NUMPY), strict=True):
        oracle.assert_close(got, want, tolerance(born), "backend")
