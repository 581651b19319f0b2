"""models/ddpm.py: the whole bound in closed form, its terms by definition, its gradients."""

from math import inf, nan
from re import escape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.arrays import example_sum, namespace, per_example
from scratchgen.core.module import Module, Parameter
from scratchgen.layers.affine import Linear
from scratchgen.maths import parameterisations as p
from scratchgen.maths.diffusion_bound import (
    epsilon_weight,
    posterior_split,
    prior_kl,
    variance_constant,
)
from scratchgen.maths.forward_process import q_posterior, q_sample
from scratchgen.maths.likelihoods import (
    Bernoulli,
    BernoulliLevels,
    Categorical,
    DiscretisedLogistic,
    DiscretisedNormal,
    FixedNormal,
    Normal,
)
from scratchgen.maths.reverse_variance import (
    LearnedVariance,
    OptimalVariance,
    PosteriorVariance,
    StepVariance,
)
from scratchgen.maths.schedules import Schedule
from scratchgen.models.ddpm import Ddpm, draw_steps, noise_shares
from scratchgen.models.samplers import ancestral, ddim, flow_heun, generate, spaced
from scratchgen.nets.mlp import TimedMlp
from scratchgen.nets.time import Sinusoidal
from scratchgen.testing import oracle
from scratchgen.testing.diffusion_worlds import GaussianDiffusion
from scratchgen.testing.strategies import seeds, sizes

from support import NUMPY, bound, host, normals, on_every_backend, tolerance

K, STEPS = 5, 10
SHORT = Schedule(np.linspace(0.02, 0.5, STEPS))
FIRST = float(SHORT.posterior_variance[2])
WAYS = [p.Epsilon(), p.Clean(), p.Velocity(), p.Score(), p.Mean(), p.KWay(K)]
VARIANCES = [
    StepVariance(),
    PosteriorVariance(FIRST),
    OptimalVariance(SHORT.log_alpha_bar, np.linspace(0.0, 0.5, STEPS + 1)),
    LearnedVariance(FIRST),
]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: type(way).__name__)
every_variance = pytest.mark.parametrize("variance", VARIANCES, ids=lambda v: type(v).__name__)
T = np.asarray([1, 2, 5, 10])


def codes(seed: int, *shape: int) -> np.ndarray:
    """Data on the centres of K bins."""
    return (2.0 * (np.abs(100.0 * normals(seed, *shape)).astype(int) % K) + 1.0) / K - 1.0


def small(way, variance, likelihood=None, seed=1, born=NUMPY):
    """A model of 3 numbers with weights from anywhere, and its parameters."""
    width = 3 * (getattr(way, "levels", 1) + variance.outputs)
    likelihood = likelihood or (None if isinstance(way, p.KWay) else Normal())
    model = Ddpm(TimedMlp([3, 6, width], 4, Sinusoidal(4)), SHORT, way, variance, likelihood)
    return model, bound(model, seed, born)


class Perfect:
    """E[ε | x_t] in a normal world of a schedule."""

    def __init__(self, world: GaussianDiffusion, schedule: Schedule):
        self.world, self.schedule = world, schedule

    def __call__(self, x_t, t, stream=None):
        level = self.schedule.log_alpha_bar[t.astype(int)]
        return self.world.epsilon(x_t, level), lambda d: (d, 0.0 * t)


def sigma_points(mean: float, variance: float, n: int):
    """Four (x_0, ε) for each of n, whose mean is that of any quadratic in them."""
    reach = 2.0**0.5
    x = mean + variance**0.5 * np.asarray([reach, -reach, 0.0, 0.0])
    return np.tile(x, n)[:, None], np.tile([0.0, 0.0, reach, -reach], n)[:, None]


def expected(model: Ddpm, mean: float, variance: float) -> tuple[np.ndarray, np.ndarray, float]:
    """The mean of both terms at t = 1..T, and of L_T, without sampling."""
    last = model.schedule.steps
    x, eps = sigma_points(mean, variance, last)
    terms, _ = model.loss(x, np.repeat(np.arange(1, last + 1), 4), eps)
    simple, term = (each.reshape(-1, 4).mean(axis=1) for each in terms)
    return simple, term, float(model.prior(x[:4]).mean())


def whole_bound(variance_of, steps: int, mean: float, spread: float) -> tuple[float, float]:
    """-ELBO with the perfect net by our loss and by the world's own formulas."""
    schedule = Schedule.linear(steps)
    world = GaussianDiffusion(np.asarray([mean]), np.asarray([spread]))
    variance = variance_of(schedule, world)
    model = Ddpm(Perfect(world, schedule), schedule, p.Epsilon(), variance, Normal())
    _, term, prior = expected(model, mean, spread)
    levels = schedule.log_alpha_bar
    zero = np.zeros((steps, 1))
    logvar, _ = variance.logvar(None, zero, levels[1:], levels[:-1])
    return prior + float(term.sum()), world.bound(levels, np.exp(logvar))


def by_beta(schedule, world):
    return StepVariance()


def by_posterior(schedule, world):
    return PosteriorVariance(float(schedule.posterior_variance[2]))


def by_error(schedule, world):
    levels = schedule.log_alpha_bar
    return OptimalVariance(levels, world.clean_error(levels)[:, 0])


@pytest.mark.equation("DDPM-8")
@pytest.mark.equation("DDPM-17")
@pytest.mark.equation("TRAP-10")
@pytest.mark.parametrize(
    ("variance", "nats"), [(by_beta, 2.11294), (by_posterior, 2.69596), (by_error, 2.11209)]
)
def test_the_whole_bound_has_the_known_values(variance, nats):
    """Data N(0, 4), T = 1000, the perfect net: tight with the best variance, far off with β̃."""
    ours, theirs = whole_bound(variance, 1000, 0.0, 4.0)
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert ours == pytest.approx(nats, abs=5e-6)


@pytest.mark.equation("DDPM-8")
@pytest.mark.parametrize("variance", [by_beta, by_posterior, by_error])
@given(st.integers(2, 12), st.floats(-2.0, 2.0), st.floats(0.1, 4.0))
def test_the_whole_bound_is_the_world_s(variance, steps, mean, spread):
    ours, theirs = whole_bound(variance, steps, mean, spread)
    assert ours == pytest.approx(theirs, rel=1e-8)


@pytest.mark.equation("DDPM-13")
@given(st.floats(-2.0, 2.0), st.floats(0.1, 4.0))
def test_the_simple_loss_of_the_perfect_net_is_known(mean, spread):
    """E‖ε - E[ε | x_t]‖² = ᾱ s²/V_t at every t."""
    world = GaussianDiffusion(np.asarray([mean]), np.asarray([spread]))
    model = Ddpm(Perfect(world, SHORT), SHORT, p.Epsilon(), StepVariance(), Normal())
    simple, _, _ = expected(model, mean, spread)
    want = world.epsilon_error(SHORT.log_alpha_bar[1:])[:, 0]
    np.testing.assert_allclose(simple, want, rtol=1e-9)


@pytest.mark.equation("DDPM-8")
@pytest.mark.equation("DDPM-9")
@pytest.mark.equation("DDPM-12")
@every_way
@pytest.mark.parametrize("variance", VARIANCES[:3], ids=lambda v: type(v).__name__)
@given(seeds())
def test_a_term_is_the_weighted_squared_error_and_a_constant(way, variance, seed):
    """For t ≥ 2: L_{t-1} = λ_t ‖ε - ε̂‖² + C_t, whatever the net says and in whatever words."""
    model, _ = small(way, variance, seed=seed)
    t, n = T[1:], len(T) - 1
    x, eps = codes(seed, n, 3), normals(seed + 1, n, 3)
    (simple, term), _ = model.loss(x, t, eps)
    now, before = SHORT.log_alpha_bar[t], SHORT.log_alpha_bar[t - 1]
    sigma2 = np.exp(variance.logvar(None, np.zeros((n, 1)), now, before)[0][:, 0])
    want = epsilon_weight(sigma2, now, before) * simple
    want += variance_constant(sigma2, now, before, dims=3)
    np.testing.assert_allclose(term, want, rtol=1e-7)


@pytest.mark.equation("DDPM-8")
@every_variance
@given(seeds(), sizes(3))
def test_the_terms_are_those_of_the_posterior_split_on_the_same_noise(variance, seed, n):
    """All T + 1 of them, from the means and variances that a sampler is told."""
    model, _ = small(p.Epsilon(), variance, seed=seed)
    x, noise = normals(seed, n, 3), normals(seed + 1, STEPS, n, 3)
    stops = model.stops(STEPS)[::-1]

    def reverse(x_t, t):
        told = model.denoise(x_t, stops[t], stops[t - 1])
        levels = (np.full(n, stop.level) for stop in (stops[t], stops[t - 1]))
        return q_posterior(told.clean, x_t, *levels)[0], told.logvar

    levels = np.repeat(SHORT.log_alpha_bar[:, None], n, axis=1)
    want = posterior_split(x, noise, reverse, levels)
    got = [model.prior(x)]
    for t in range(STEPS, 0, -1):
        got.append(model.loss(x, np.full(n, t), noise[t - 1])[0][1])
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.equation("DDPM-8")
@given(seeds(), st.sampled_from([p.Epsilon(), p.KWay(K)]))
def test_the_last_step_is_a_distribution_on_the_levels(seed, way):
    """For one x_1, the K probabilities of a pixel sum to one: of a cut normal, or of K logits."""
    likelihood = None if isinstance(way, p.KWay) else DiscretisedNormal(K)
    model, _ = small(way, PosteriorVariance(FIRST), likelihood, seed)
    x_1 = np.repeat(normals(seed, 1, 3), K, axis=0)
    centres = (2.0 * np.arange(K) + 1.0) / K - 1.0
    x = np.concatenate([centres[:, None], np.full((K, 2), centres[1])], axis=1)
    ones = np.ones(K, dtype=int)
    output, _ = model.net(x_1, 1.0 * ones)
    joint, _ = model.bound_term(x, x_1, ones, output)
    # the other two pixels are the same in all: their joint probability is the sum over the first
    others, _ = model.bound_term(np.repeat(x[1:2], K, axis=0), x_1, ones, output)
    shares = np.exp(-(joint - others))
    assert np.exp(-joint).sum() <= 1.0 + 1e-12
    more = x.copy()
    more[:, 1] = centres[3]
    shifted, _ = model.bound_term(more, x_1, ones, output)
    np.testing.assert_allclose(np.exp(joint - joint[0]), np.exp(shifted - shifted[0]), rtol=1e-8)
    alone = pixel_probabilities(model, x_1, output, centres)
    assert alone.sum() == pytest.approx(1.0, abs=1e-10)
    np.testing.assert_allclose(shares / shares[0], alone / alone[0], rtol=1e-7)


def pixel_probabilities(model, x_1, output, centres) -> np.ndarray:
    """P(first pixel = each level), summing the joint over all levels of the other two."""
    found = np.zeros(K)
    for a in centres:
        for b in centres:
            x = np.stack([centres, np.full(K, a), np.full(K, b)], axis=1)
            found += np.exp(-model.bound_term(x, x_1, np.ones(K, dtype=int), output)[0])
    return found


class OnImages(Module):
    """Every pixel through one linear layer, with the time beside it."""

    def __init__(self, channels: int, width: int):
        self.linear = Linear(channels + 1, width)

    def __call__(self, x, t, stream=None):
        """x (N, H, W, C), t (N,) -> y (N, H, W, width), pullback: dy -> (dx, dt)."""
        xp = namespace(x)
        told = per_example(t, x) + xp.zeros_like(x[..., :1])
        y, pullback = self.linear(xp.concat([x, told], axis=-1))

        def back(dy):
            d = pullback(dy)
            return d[..., :-1], example_sum(d[..., -1:])

        return y, back


def loss_of(model, t):
    """The loss at given times as a function of x and ε, the bound with one cotangent."""

    def loss(x, eps):
        terms, pullback = model.loss(x, t, eps)
        return terms, lambda d, e: pullback(d, e, 0.0 * e)

    return loss


@pytest.mark.equation("DDPM-7")
@pytest.mark.equation("DDPM-8")
@pytest.mark.equation("DDPM-9")
@pytest.mark.equation("DDPM-12")
@pytest.mark.equation("DDPM-13")
@pytest.mark.equation("DDPM-15")
class TestGradients:
    """What reaches the parameters from either term, through the mean and through the variance."""

    @every_variance
    @every_way
    @given(seeds())
    def test_they_are_autograd_s(self, way, variance, seed):
        model, params = small(way, variance, seed=seed)
        x, eps = codes(seed, 4, 3), normals(seed + 1, 4, 3)
        oracle.check_gradient(params, loss_of(model, T), x, eps, tolerance=1e-9)

    @pytest.mark.parametrize("way", [p.Epsilon(), p.KWay(K)], ids=["epsilon", "k-way"])
    @given(seeds())
    def test_on_images_too(self, way, seed):
        """Height, width and channels differ, so no axis stands in for another."""
        channels, levels = 2, getattr(way, "levels", 1)
        likelihood = None if levels > 1 else DiscretisedNormal(K)
        net = OnImages(channels, channels * (levels + 1))
        model = Ddpm(net, SHORT, way, LearnedVariance(FIRST), likelihood)
        params = bound(model, seed)
        x, eps = codes(seed, 4, 3, 5, channels), normals(seed + 1, 4, 3, 5, channels)
        oracle.check_gradient(params, loss_of(model, T), x, eps, tolerance=1e-9)
        prior, _ = prior_kl(x, np.full(4, SHORT.log_alpha_bar[-1]))
        np.testing.assert_allclose(model.prior(x), prior, rtol=1e-12)

    @pytest.mark.parametrize("likelihood", [Normal(), DiscretisedNormal(K)])
    @given(seeds())
    def test_through_a_likelihood_too(self, likelihood, seed):
        model, params = small(p.Velocity(), LearnedVariance(FIRST), likelihood, seed)
        x, eps = codes(seed, 3, 3), normals(seed + 1, 3, 3)
        oracle.check_gradient(params, loss_of(model, T[:1].repeat(3)), x, eps, tolerance=1e-9)

    @given(seeds())
    def test_the_hybrid_teaches_the_variance_and_stops_at_the_mean(self, seed):
        """The bound's cotangent on the variance alone moves what says it, as the whole would."""
        model, params = small(p.Epsilon(), LearnedVariance(FIRST), seed=seed)
        x, eps, zero = normals(seed, 4, 3), normals(seed + 1, 4, 3), np.zeros(4)
        _, pullback = model.loss(x, T, eps)

        def gradient(*d):
            with params.gradient_into(np.zeros_like(params.theta)) as found:
                pullback(*d)
            return found

        weight = params.table["net.body.layers.2.weight"]
        of_hybrid = gradient(zero, zero, np.ones(4))[weight.window].reshape(weight.shape)
        of_bound = gradient(zero, np.ones(4), zero)[weight.window].reshape(weight.shape)
        mean, rest = np.s_[:3], np.s_[3:]
        assert not np.any(of_hybrid[mean])
        np.testing.assert_allclose(of_hybrid[rest], of_bound[rest], rtol=1e-12)
        assert np.any(of_bound[mean])


class Slope(Module):
    """ε̂ = a x_t, one number to learn."""

    def __init__(self):
        self.a = Parameter((1,), lambda stream, shape: stream.backend.zeros(shape))

    def __call__(self, x_t, t, stream=None):
        reading = self.a.read()

        def pullback(d):
            reading.accumulate_product(x_t, d)
            return reading.value * d, 0.0 * t

        return reading.value * x_t, pullback


@pytest.mark.equation("DDPM-15")
@pytest.mark.equation("ERR-23")
@given(st.integers(1, STEPS), st.floats(0.1, 4.0), st.floats(-2.0, 2.0))
def test_algorithm_1_finds_the_best_linear_net(t, spread, start):
    """One Newton step on the mean of ‖ε - a x_t‖² from anywhere: a = √(1-ᾱ)/V_t."""
    net = Slope()
    model = Ddpm(net, SHORT, p.Epsilon(), StepVariance(), Normal())
    params = bound(model)
    x, eps = sigma_points(0.0, spread, 1)
    share = np.full(4, 0.25)

    def slope_at(a):
        params.theta = np.asarray([a])
        _, pullback = model.loss(x, np.full(4, t), eps)
        with params.gradient_into(np.zeros(1)) as found:
            pullback(share, 0.0 * share, 0.0 * share)
        return float(found[0])

    curvature = slope_at(start + 1.0) - slope_at(start)
    found = start - slope_at(start) / curvature
    world = GaussianDiffusion(np.zeros(1), np.asarray([spread]))
    want = float(world.epsilon(np.ones((1, 1)), SHORT.log_alpha_bar[[t]])[0, 0])
    assert found == pytest.approx(want, rel=1e-7, abs=1e-12)


@pytest.mark.equation("DDPM-8")
@pytest.mark.equation("VDM-6")
@given(seeds(), sizes())
def test_the_prior_term_is_that_of_the_last_level(seed, n):
    model, _ = small(p.Epsilon(), StepVariance())
    x = normals(seed, n, 2, 2)
    want, _ = prior_kl(x, np.full(n, SHORT.log_alpha_bar[-1]))
    np.testing.assert_allclose(model.prior(x), want, rtol=1e-12)


@pytest.mark.equation("DDPM-13")
@pytest.mark.equation("DDPM-14")
@every_way
@given(seeds())
def test_a_look_without_gradient_sees_what_the_loss_sees(way, seed):
    model, _ = small(way, LearnedVariance(FIRST), seed=seed)
    x, eps = codes(seed, 4, 3), normals(seed + 1, 4, 3)
    x_t, output, simple, error = model.look(x, T, eps)
    (want, term), _ = model.loss(x, T, eps)
    now, before = SHORT.level(T), SHORT.level(T - 1)
    np.testing.assert_allclose(x_t, q_sample(x, eps, now)[0], rtol=1e-12)
    np.testing.assert_allclose(simple, want, rtol=1e-12)
    np.testing.assert_allclose(model.bound_term(x, x_t, T, output)[0], term, rtol=1e-12)
    clean, _ = way.clean(output[:, : output.shape[1] - 3], x_t, now, before)
    np.testing.assert_allclose(error, ((x - clean) ** 2).sum(axis=1), rtol=1e-12)


@pytest.mark.equation("DDPM-7")
@pytest.mark.equation("DDPM-11")
@pytest.mark.equation("DDPM-14")
@pytest.mark.equation("DDPM-17")
@every_variance
@every_way
def test_a_sampler_is_told_what_training_reads(way, variance):
    model, _ = small(way, variance)
    stops = model.stops(STEPS)[::-1]
    x_t = normals(5, 4, 3)
    for t in (1, 4):
        told = model.denoise(x_t, stops[t], stops[t - 1])
        now, before = (np.full(4, SHORT.log_alpha_bar[i]) for i in (t, t - 1))
        output, _ = model.net(x_t, np.full(4, float(t)))
        said, rest = output[:, : -3 * variance.outputs or None], output[:, -3:]
        np.testing.assert_allclose(told.clean, way.clean(said, x_t, now, before)[0], rtol=1e-12)
        want, _ = way.epsilon(said, x_t, now, before)
        np.testing.assert_allclose(told.epsilon, want, rtol=1e-12)
        logvar, _ = variance.logvar(rest, x_t, now, before)
        np.testing.assert_allclose(told.logvar, logvar, rtol=1e-12)


@pytest.mark.equation("DDPM-14")
@every_way
@given(seeds())
def test_the_flow_is_that_of_the_sampler_s_noise_and_has_its_slope(way, seed):
    model, params = small(way, LearnedVariance(FIRST), seed=seed)
    stops, x_t = model.stops(STEPS)[::-1], normals(seed, 3, 3)
    told = model.denoise(x_t, stops[4], stops[3])
    np.testing.assert_allclose(model.flow(x_t, stops[4])[0], told.epsilon, rtol=1e-12)
    with params.frozen():
        oracle.check_pullback(lambda x: model.flow(x, stops[4]), x_t)


@pytest.mark.equation("DDPM-16")
@given(st.integers(1, STEPS))
def test_stops_are_the_schedule_s_at_spaced_times(count):
    model, _ = small(p.Epsilon(), StepVariance())
    stops = model.stops(count)
    assert [stop.time for stop in stops] == spaced(STEPS, count)
    assert [s.level for s in stops] == [SHORT.log_alpha_bar[int(s.time)] for s in stops]
    assert stops[-1].level == 0.0
    with pytest.raises(ValueError, match="one can take 1 to 10, got 11"):
        model.stops(STEPS + 1)


@pytest.mark.equation("DDPM-15")
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), seeds())
def test_weighted_steps_add_up_to_the_sum_over_all(shares, seed):
    """With u on a grid that every share divides, the mean of f(t)/p_t is Σ f(t), exactly."""
    n, f = sum(shares), normals(seed, len(shares))
    t, weight = draw_steps((np.arange(n) + 0.5) / n, np.asarray(shares, dtype=np.float64))
    assert np.bincount(t, minlength=len(shares) + 1)[1:].tolist() == shares
    assert float(np.mean(f[t - 1] * weight)) == pytest.approx(float(f.sum()), rel=1e-12, abs=1e-12)
    last, _ = draw_steps(np.ones(1), np.asarray(shares, dtype=np.float64))
    assert last[0] == len(shares), "should rounding leave the shares a little short of 1"


@pytest.mark.equation("DDPM-12")
@given(st.integers(2, 40))
def test_steps_by_noise_weigh_the_squared_error_evenly(steps):
    """λ_t/p_t with σ² = β̃ is ½ (e^Δγ - 1)/Δγ times the whole rise, for small steps one number."""
    schedule = Schedule(np.full(steps, 0.01))
    shares = noise_shares(schedule)
    assert shares.sum() == pytest.approx(
        schedule.gamma[-1] - schedule.gamma[1] + shares[1], rel=1e-12
    )
    t = np.arange(2, steps + 1)
    levels = schedule.log_alpha_bar
    weights = epsilon_weight(schedule.posterior_variance[t], levels[t], levels[t - 1])
    rise = schedule.gamma[t] - schedule.gamma[t - 1]
    np.testing.assert_allclose(shares[t - 1], rise, rtol=1e-12)
    want = 0.5 * np.expm1(rise) / rise * shares.sum()
    np.testing.assert_allclose(weights * shares.sum() / shares[t - 1], want, rtol=1e-9)


class Told:
    """The perfect net of a normal world, in the words of a parameterisation."""

    def __init__(self, way, world: GaussianDiffusion, schedule: Schedule):
        self.way, self.world, self.schedule = way, world, schedule

    def __call__(self, x_t, t, stream=None):
        steps = t.astype(int)
        now, before = (self.schedule.log_alpha_bar[i] for i in (steps, steps - 1))
        clean, eps = self.world.clean(x_t, now), self.world.epsilon(x_t, now)
        return self.way.target(clean, eps, now, before), lambda d: (0.0 * d, 0.0 * t)


@pytest.mark.equation("DDPM-14")
def test_the_flow_of_images_has_its_slope():
    """⟨v, J w⟩ of the pullback against a difference along w, for a net that is linear in x_t."""
    net = OnImages(2, 4)
    model = Ddpm(net, SHORT, p.Epsilon(), LearnedVariance(FIRST), Normal())
    params, stop = bound(model), model.stops(STEPS)[3]
    x, v, w = normals(3, 3, 4, 3, 5, 2)
    with params.frozen():
        _, pullback = model.flow(x, stop)
        moved = model.flow(x + w, stop)[0] - model.flow(x, stop)[0]
        assert float(np.sum(v * moved)) == pytest.approx(float(np.sum(pullback(v) * w)), rel=1e-9)


STEPPERS = {"ancestral": ancestral, "ddim": ddim(0.0), "heun": flow_heun}


@pytest.mark.equation("DDPM-7")
@pytest.mark.equation("DDPM-11")
@pytest.mark.equation("DDPM-14")
@pytest.mark.parametrize("step", STEPPERS.values(), ids=STEPPERS)
@pytest.mark.parametrize("count", [4, 25, 50])
def test_one_sampler_walks_alike_whatever_the_net_says(step, count):
    """Also where it goes further than from t to t - 1, which is what the net was trained for."""
    schedule = Schedule(np.linspace(0.01, 0.2, 50))
    world = GaussianDiffusion(np.asarray([0.5]), np.asarray([2.0]))
    x, noise = normals(1, 6, 1), normals(2, count, 6, 1)
    variance = PosteriorVariance(float(schedule.posterior_variance[2]))
    found = []
    for way in WAYS[:5]:
        model = Ddpm(Told(way, world, schedule), schedule, way, variance, Normal())
        found.append(generate(model.denoise, step, x, model.stops(count), lambda i: noise[i]))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-6, atol=1e-8)


@given(seeds())
def test_another_variance_leaves_the_model_as_it_was(seed):
    model, _ = small(p.KWay(K), LearnedVariance(FIRST), seed=seed)
    stops, x_t = model.stops(STEPS)[::-1], normals(seed, 3, 3)
    own = model.denoise(x_t, stops[5], stops[2])
    other = model.denoise(x_t, stops[5], stops[2], StepVariance())
    np.testing.assert_array_equal(other.clean, own.clean)
    gap = SHORT.log_alpha_bar[5] - SHORT.log_alpha_bar[2]
    np.testing.assert_allclose(other.logvar, np.log(-np.expm1(gap)), rtol=1e-12)
    np.testing.assert_array_equal(model.denoise(x_t, stops[5], stops[2]).logvar, own.logvar)


def test_an_affine_net_needs_a_likelihood():
    with pytest.raises(ValueError, match="name the likelihood"):
        Ddpm(Slope(), SHORT, p.Epsilon(), StepVariance())


@pytest.mark.parametrize("way", [p.Epsilon(), p.KWay(2)], ids=["epsilon", "k-way"])
@pytest.mark.parametrize(
    "likelihood",
    [Bernoulli(), FixedNormal(1.0), BernoulliLevels(), DiscretisedLogistic(2), Categorical(2)],
    ids=lambda likelihood: type(likelihood).__name__,
)
def test_a_likelihood_that_reads_no_mean_and_logvar_is_refused(way, likelihood):
    """Some are narrower, so that one channel was read as two; some are as wide by chance."""
    said = f"must read a mean and a log-variance, as .* do, got {type(likelihood).__name__}"
    with pytest.raises(ValueError, match=said):
        Ddpm(Slope(), SHORT, way, StepVariance(), likelihood)


def test_a_likelihood_of_one_s_own_is_taken_that_reads_them():
    class Mine:
        width, reads_logvar = 2, True
        nll = staticmethod(Normal().nll)

    x, t, eps = normals(1, 4, 3), T, normals(2, 4, 3)
    mine, known = (
        small(p.Epsilon(), StepVariance(), likelihood)[0].loss(x, t, eps)[0]
        for likelihood in (Mine(), Normal())
    )
    np.testing.assert_array_equal(mine, known)


@pytest.mark.parametrize(("name", "shape"), [("t", (1,)), ("eps", (1, 3)), ("eps", (4, 1))])
def test_times_and_noise_that_would_broadcast_are_refused(name, shape):
    model, _ = small(p.Epsilon(), StepVariance())
    given = {"x": normals(1, 4, 3), "t": T, "eps": normals(2, 4, 3)}
    given[name] = np.ones(shape, dtype=given[name].dtype)
    want = (4,) if name == "t" else (4, 3)
    for door in (model.loss, model.look):
        with pytest.raises(ValueError, match=escape(f"{name} must have shape {want}, got {shape}")):
            door(**given)


@pytest.mark.parametrize("shares", [[0.0, 0.0], [0.0, 1.0], [-1.0, 2.0], [nan, 1.0], [inf, 1.0]])
def test_every_step_has_a_share(shares):
    with pytest.raises(ValueError, match="shares must be positive and finite"):
        draw_steps(np.asarray([0.0, 0.5]), np.asarray(shares))


def test_the_noise_of_one_step_has_no_shares():
    with pytest.raises(ValueError, match="at least 2 steps, got 1"):
        noise_shares(Schedule([0.5]))


@on_every_backend
@every_variance
def test_every_backend_agrees(born, variance):
    d = normals(4, 3, 4)
    x, eps = codes(1, 4, 3), normals(2, 4, 3)
    truth, exact = small(p.KWay(K), variance)
    model, params = small(p.KWay(K), variance, born=born)
    want, pull = truth.loss(x, T, eps)
    got, pullback = model.loss(born.asarray(x), born.indices(T), born.asarray(eps))
    pull(*d)
    pullback(*(born.asarray(a) for a in d))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == params.theta.dtype
        oracle.assert_close(host(a), b, 20 * tolerance(born), "term")
    oracle.assert_close(host(params.grad), exact.grad, 100 * tolerance(born), "gradient")
    stops, z = model.stops(STEPS), born.asarray(x)
    told = model.denoise(z, stops[-2], stops[-1])
    assert told.clean.dtype == told.epsilon.dtype == told.logvar.dtype == z.dtype
    assert model.prior(z).dtype == z.dtype
    t, weight = draw_steps(born.asarray(np.asarray([0.0, 0.5, 0.999])), noise_shares(SHORT))
    assert (t.dtype, weight.dtype) == (born.xp.int64, z.dtype)
    assert namespace(z).all(namespace(z).isfinite(told.logvar))
