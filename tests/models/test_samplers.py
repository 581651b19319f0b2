"""models/samplers.py: single steps by their formulas, whole chains by their law in normal worlds.

There every sampler is affine, so the law of what it makes is known without drawing anything.
"""

from dataclasses import replace
from decimal import Decimal, localcontext
from functools import partial
from math import exp, expm1, inf, nan, sqrt
from re import escape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.arrays import namespace
from scratchgen.maths.forward_process import posterior, q_posterior
from scratchgen.maths.gamma import level_from_gamma
from scratchgen.maths.parameterisations import Epsilon, reverse_mean
from scratchgen.maths.schedules import Schedule
from scratchgen.maths.score import probability_flow_drift, reverse_step, score_from_eps
from scratchgen.models import flow
from scratchgen.models import samplers as s
from scratchgen.models.samplers import CLEAN, Prediction, Stop
from scratchgen.testing.diffusion_worlds import GaussianDiffusion
from scratchgen.testing.strategies import noise_levels, seeds, sizes, transitions

from denoisers import even, every_stop, generated, perfect, stops_of
from errata import only_ours_obeys
from support import NUMPY, host, normals, on_every_backend, relative, tolerance

HO = Schedule.linear(1000)
STEPS = {
    "ancestral": lambda: s.ancestral,
    "ddim 0": lambda: s.ddim(0.0),
    "ddim 0.6": lambda: s.ddim(0.6),
    "flow_euler": lambda: s.flow_euler,
    "flow_heun": lambda: s.flow_heun,
    "reverse_sde": lambda: s.reverse_sde,
}
every_step = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10)


def normal(variance, mean=0.0):
    """N(mean, variance) on the line."""
    return GaussianDiffusion(np.asarray([mean]), np.asarray([variance]))


def noise_of(now, before):
    """β of the pair of levels."""
    return -np.expm1(now - before)


def best_of(world):
    """(now, before) -> the variance of the true reverse step."""
    return lambda now, before: world.reverse(now, before)[1]


class Say:
    """A denoiser that always says the same ε̂, and keeps what it was asked."""

    def __init__(self, eps, logvar=None):
        self.eps, self.logvar, self.asked = eps, logvar, []

    def __call__(self, x, now, before):
        self.asked.append((x, now, before))
        signal, noise = exp(0.5 * now.level), sqrt(-expm1(now.level))
        return Prediction((x - noise * self.eps) / signal, self.eps, self.logvar)


@st.composite
def situations(draw):
    """x, ε̂ and z (N, 2), and a pair of stops that are not clean, with their levels as arrays."""
    seed, n, (now, before) = draw(seeds()), draw(sizes()), draw(transitions())
    return normals(seed, 3, n, 2), Stop(2.0, now[0]), Stop(1.0, before[0]), (now, before)


@pytest.mark.equation("DVAE-17")
@given(st.data(), st.integers(1, 2000))
def test_any_number_of_steps_is_possible_and_evenly_spaced(data, last):
    count = data.draw(st.integers(1, last))
    times = s.spaced(last, count)
    assert (times[0], times[-1], len(times)) == (last, 0, count + 1)
    assert np.all(np.diff(times) < 0)
    assert np.abs(times - np.linspace(last, 0, count + 1)).max() <= 0.5 + 1e-9


@pytest.mark.equation("DVAE-17")
def test_all_steps_and_one_step():
    assert s.spaced(5, 5) == [5, 4, 3, 2, 1, 0]
    assert s.spaced(5, 1) == [5, 0]
    assert s.spaced(1000, 3) == [1000, 667, 333, 0]


@pytest.mark.parametrize("count", [0, 6])
def test_more_steps_than_there_are_or_none_are_refused(count):
    with pytest.raises(ValueError, match=f"of 5 steps one can take 1 to 5, got {count}"):
        s.spaced(5, count)


@pytest.mark.parametrize("level", [1e-9, nan, inf])
def test_a_stop_has_a_level_of_at_most_0(level):
    with pytest.raises(ValueError, match=escape(f"is log ᾱ and at most 0, got {level}")):
        Stop(1.0, level)


@given(st.floats(-30.0, 0.0))
def test_a_stop_knows_its_noise(level):
    stop = Stop(np.float32(1.0), np.float64(level))
    assert (type(stop.time), type(stop.level)) == (float, float)
    assert Stop(0.0, 0.0) == CLEAN
    assert stop.noise**2 == pytest.approx(1.0 - exp(level), abs=1e-15, rel=1e-12)


@pytest.mark.equation("DDPM-16")
@pytest.mark.equation("DDPM-11")
@pytest.mark.equation("VDM-10")
@pytest.mark.equation("SCORE-6")
@given(situations(), st.booleans())
def test_the_ancestral_step_is_the_reverse_mean_and_noise(situation, own_variance):
    (x, eps, z), now, before, levels = situation
    logvar = np.sin(x) if own_variance else None
    spread = np.exp(0.5 * logvar) if own_variance else np.sqrt(posterior(*levels)[2])
    got = s.ancestral(Say(eps, logvar), x, now, before, z)
    close(got, reverse_mean(x, eps, *levels) + spread * z)
    if not own_variance:
        score, _ = score_from_eps(eps, levels[0])
        close(got, reverse_step(x, score, z, posterior(*levels)[2], *levels))


@given(situations(), st.floats(0.0, 1.0))
def test_ddim_is_between_the_flow_and_ancestral_sampling(situation, eta):
    """σ = η √((1-ᾱ_s)/(1-ᾱ_t)) √(1-ᾱ_t/ᾱ_s), and what is left of √(1-ᾱ_s) goes to ε̂."""
    (x, eps, z), now, before, (t, s_) = situation
    at = (Say(eps), x, now, before, z)
    close(s.ddim(1.0)(*at), s.ancestral(*at))
    close(s.ddim(0.0)(*at), s.flow_euler(*at))
    close(s.ddim()(*at), s.flow_euler(*at))
    noise_t, noise_s = -np.expm1(t), -np.expm1(s_)
    sigma = eta * np.sqrt(noise_s / noise_t) * np.sqrt(1.0 - np.exp(t - s_))
    clean = (x - np.sqrt(noise_t) * eps) / np.exp(0.5 * t)
    want = np.exp(0.5 * s_) * clean + np.sqrt(noise_s - sigma**2) * eps + sigma * z
    close(s.ddim(eta)(*at), want, rtol=1e-7)


@pytest.mark.parametrize("eta", [-0.01, 1.01, nan])
def test_ddim_has_at_most_the_noise_of_the_ddpm(eta):
    with pytest.raises(ValueError, match=escape("eta must lie in [0, 1], from no noise")):
        s.ddim(eta)


@pytest.mark.equation("SCORE-7")
@pytest.mark.equation("SCORE-8")
@given(situations())
def test_the_reverse_sde_step_is_euler_maruyama(situation):
    (x, eps, z), now, before, (t, s_) = situation
    score = -eps / np.sqrt(-np.expm1(t))
    want = x + (s_ - t) * (0.5 * x + score) + np.sqrt(s_ - t) * z
    close(s.reverse_sde(Say(eps), x, now, before, z), want)


@pytest.mark.equation("SCORE-7")
@pytest.mark.equation("SCORE-8")
@given(situations())
def test_a_short_step_of_the_flow_goes_along_its_drift(situation):
    """dx/dt = -½ β x - ½ β s, and ∫β dt is the difference of the levels."""
    (x, eps, z), now, _, (t, _) = situation
    short = 1e-6
    score, _ = score_from_eps(eps, t)
    drift = probability_flow_drift(x, score, np.ones(1))
    for step in (s.flow_euler, s.flow_heun):
        moved = step(Say(eps), x, now, Stop(1.0, now.level + short), z) - x
        close(moved / short, -drift, rtol=1e-4, atol=1e-3)


@pytest.mark.equation("SCORE-7")
@pytest.mark.equation("SCORE-8")
@given(situations())
def test_heun_averages_the_slopes_at_both_ends(situation):
    (x, eps, z), now, before, (t, s_) = situation
    world = normal(1.7, 0.4)
    denoise, asked = perfect(world), []

    def asks(*question):
        asked.append(question)
        return denoise(*question)

    got = s.flow_heun(asks, x, now, before, z)
    u, (first, second) = x / np.exp(0.5 * t), np.sqrt(np.expm1([-t, -s_]))
    there = np.exp(0.5 * s_) * (u + (second - first) * world.epsilon(x, t))
    slope = 0.5 * (world.epsilon(x, t) + world.epsilon(there, s_))
    close(got, np.exp(0.5 * s_) * (u + (second - first) * slope))
    assert [question[1:] for question in asked] == [(now, before), (before, CLEAN)]


@pytest.mark.equation("DDPM-16")
@pytest.mark.equation("VDM-10")
@pytest.mark.equation("SCORE-7")
@pytest.mark.equation("SCORE-8")
@given(situations())
def test_the_last_step_returns_the_prediction_of_clean_data(situation):
    """Whatever noise and log-variance are: those here are poison."""
    (x, eps, z), now, _, (t, _) = situation
    clean, poison = (x - np.sqrt(-np.expm1(t)) * eps) / np.exp(0.5 * t), np.full_like(z, nan)
    close(s.ancestral(Say(eps, poison), x, now, CLEAN, poison), clean)
    for step in (s.flow_euler, s.flow_heun):
        denoise = Say(eps)
        close(step(denoise, x, now, CLEAN, poison), clean, rtol=1e-8)
        assert len(denoise.asked) == 1
    close(s.ddim(0.7)(Say(eps), x, now, CLEAN, z), clean)
    want = x - t * (0.5 * x - eps / np.sqrt(-np.expm1(t)))
    close(s.reverse_sde(Say(eps), x, now, CLEAN, poison), want)


@pytest.mark.equation("VDM-4")
@pytest.mark.equation("VDM-10")
@pytest.mark.equation("DDPM-16")
@pytest.mark.equation("DDPM-11")
@pytest.mark.equation("DVAE-12")
@given(st.data(), noise_levels(), st.floats(0.1, 2.0), st.sampled_from(["β", "β̃", "best"]))
def test_ancestral_sampling_has_the_law_of_the_reverse_recursion(data, levels, temperature, choice):
    """For two coordinates, any choice of stops and of σ², and noise scaled by τ."""
    world = GaussianDiffusion(np.asarray([0.7, -1.0]), np.asarray([0.3, 2.5]))
    kept = data.draw(st.sets(st.integers(1, len(levels) - 1), min_size=1))
    levels = levels[[0, *sorted(kept)]]
    variance = {"β": noise_of, "β̃": None, "best": best_of(world)}[choice]
    tilde = lambda now, before: posterior(np.asarray(now), np.asarray(before))[2]
    pairs = list(zip(levels[2:], levels[1:], strict=False))
    sigma2 = [np.zeros(2), *((variance or tilde)(*pair) + np.zeros(2) for pair in pairs)]
    stops = [Stop(i, level) for i, level in enumerate(levels)][::-1]
    at = (perfect(world, variance), s.ancestral, stops, 2, 1.0, temperature)
    np.testing.assert_allclose(
        generated(*at), world.sampled(levels, temperature**2 * np.asarray(sigma2)), rtol=1e-8
    )


@pytest.mark.equation("DDPM-16")
@pytest.mark.equation("DDPM-17")
@pytest.mark.equation("VDM-10")
def test_the_variance_of_samples_from_a_thousand_steps():
    """Data N(0, 4) and N(0, 1), for σ² = β, β̃ and that of the true reverse step."""
    for data, wanted in ((4.0, (3.99057, 3.97478, 3.9999)), (1.0, (0.9999, 0.99107, 0.9999))):
        world = normal(data)
        for variance, want in zip((noise_of, None, best_of(world)), wanted, strict=True):
            got = generated(perfect(world, variance), s.ancestral, every_stop(HO))[1]
            assert got == pytest.approx(want, abs=6e-6)


@pytest.mark.equation("DDPM-17")
@pytest.mark.parametrize("variance", [1e-9, 0.3, 1.0, 4.0])
def test_the_right_variance_keeps_every_marginal_and_the_usual_two_are_its_ends(variance):
    """At each stop with noise: σ² = β is right for unit data, β̃ for a single point."""
    world, stops = normal(variance), stops_of(HO, s.spaced(1000, 7))[:-1]
    totals = [world.marginal(np.asarray([stop.level]))[1][0, 0] for stop in stops]

    def errors(sigma2):
        at = (perfect(world, sigma2), s.ancestral)
        found = [generated(*at, stops[:k], start=sqrt(totals[0]))[1][0] for k in range(1, 8)]
        return np.abs(np.asarray(found) / totals - 1.0)

    assert errors(best_of(world)).max() < 1e-12
    for sigma2, right in ((noise_of, 1.0), (None, 1e-9)):
        wrong = errors(sigma2)[1:]
        assert np.all(wrong < 1e-6) if variance == right else np.all(wrong > 1e-4)


@pytest.mark.equation("VDM-10")
@pytest.mark.equation("VDM-4")
def test_a_chain_of_a_vdm_ends_before_clean_data():
    """γ from 5 down to -13.3, where the likelihood takes over: no step is without noise."""
    world, times = normal(2.0, 0.5), np.linspace(1.0, 0.0, 65)
    levels = level_from_gamma(-13.3 + 18.3 * times)[0]
    stops = [Stop(*pair) for pair in zip(times, levels, strict=True)]
    mean, variance = np.zeros(1), np.ones(1)
    for now, before in zip(levels[:-1], levels[1:], strict=True):
        step, _ = world.reverse(now, before)
        tilde = posterior(np.asarray([now]), np.asarray([before]))[2]
        variance = (step(np.ones(1)) - step(np.zeros(1))) ** 2 * variance + tilde
        mean = step(mean)
    got = generated(perfect(world), s.ancestral, stops)
    np.testing.assert_allclose(got, (mean, variance), rtol=1e-10)
    assert got[1] == pytest.approx(1.73935, abs=1e-5)


@pytest.mark.equation("DVAE-17")
@pytest.mark.parametrize(("count", "want"), [(1000, 1.9935), (10, 1.448), (4, 0.872)])
def test_the_variance_of_deterministic_samples_from_few_steps(count, want):
    """Data N(0, 2), from the true law at the first stop, a multiple of 1000/count after t = 1."""
    world, stride = normal(2.0), 1000 // count
    stops = stops_of(HO, [*range(1001 - stride, 0, -stride), 0])
    start = sqrt(world.marginal(np.asarray([stops[0].level]))[1][0, 0])
    for step in (s.ddim(0.0), s.flow_euler):
        got = generated(perfect(world), step, stops, start=start)[1]
        assert got == pytest.approx(want, abs=5e-4)


@pytest.mark.equation("DVAE-17")
def test_spaced_steps_start_from_the_last_time_and_lose_less():
    """Data N(0, 2): 0.861, 1.444 and 1.9934 of the variance 2 with 4, 10 and all 1000 steps."""
    for count, want in ((4, 0.86119), (10, 1.44405), (1000, 1.99341)):
        stops = stops_of(HO, s.spaced(1000, count))
        assert generated(perfect(normal(2.0)), s.ddim(), stops)[1] == pytest.approx(want, abs=6e-6)


@pytest.mark.equation("DVAE-12")
@every_step
@given(noise_levels(), st.floats(0.0, 3.0))
def test_the_temperature_of_all_noise_is_that_of_the_samples(step, levels, temperature):
    """B: data N(0, s²), start and steps scaled by τ, and the samples' variance by τ²."""
    stops = [Stop(i, level) for i, level in enumerate(levels)][::-1]
    at = (perfect(normal(1.3)), step(), stops)
    warm, plain = generated(*at, 1, temperature, temperature), generated(*at)
    np.testing.assert_allclose(warm[1], temperature**2 * plain[1], rtol=1e-9)


@pytest.mark.equation("DVAE-12")
@pytest.mark.equation("TRAP-5")
def test_the_temperature_of_the_start_is_forgotten_by_a_long_stochastic_chain():
    """A: for data N(0, 1) the variance has slope ᾱ_T in τ²; a deterministic chain keeps all."""
    for schedule in (HO, Schedule.linear(10, reference=100)):
        at = (perfect(normal(1.0), noise_of), s.ancestral, every_stop(schedule))
        slope = (generated(*at, start=2.0)[1] - generated(*at, start=1.0)[1]) / 3.0
        assert slope == pytest.approx(schedule.alpha_bar[-1], rel=1e-9)
    assert HO.alpha_bar[-1] == pytest.approx(4.036e-5, rel=1e-3)
    at = (perfect(normal(1.0)), s.ddim(), every_stop(HO))
    assert generated(*at, start=2.0)[1] == pytest.approx(4.0 * generated(*at)[1], rel=1e-9)


@pytest.mark.equation("DVAE-12")
@pytest.mark.equation("TRAP-5")
def test_a_temperature_on_every_step_is_not_one_on_the_start():
    def halving_the_temperature_halves_the_samples(trajectory):
        last = lambda *at: list(trajectory(*at))[-1]
        at = (perfect(normal(1.0)), s.ancestral, every_stop(HO))
        warm, plain = (generated(*at, 1, t, t, sampler=last)[1] for t in (0.5, 1.0))
        np.testing.assert_allclose(warm, 0.25 * plain, rtol=1e-8)

    only_ours_obeys("TRAP-5", halving_the_temperature_halves_the_samples)


@pytest.mark.equation("DDPM-11")
@given(situations())
def test_clipping_is_felt_where_it_acts_and_nowhere_else(situation):
    """c₀ x̂₀ + c x_t with x̂₀ clipped, and the two forms of the mean agree on the new ε̂ alone."""
    (x, eps, z), now, before, levels = situation
    plain = Say(eps, np.sin(x))
    low, high = -0.4, 0.9
    told = s.clipped(plain, low, high)(x, now, before)
    free = plain(x, now, before)
    np.testing.assert_array_equal(told.clean, np.clip(free.clean, low, high))
    np.testing.assert_array_equal(told.logvar, free.logvar)
    assert plain.asked[0][1:] == (now, before)
    signal, noise = exp(0.5 * now.level), sqrt(-expm1(now.level))
    close(signal * told.clean + noise * told.epsilon, x)

    mean = s.ancestral(s.clipped(Say(eps), low, high), x, now, before, 0.0 * z)
    close(mean, q_posterior(told.clean, x, *levels)[0])
    close(mean, reverse_mean(x, told.epsilon, *levels), rtol=1e-8, atol=1e-8)
    acts = (free.clean < low) | (free.clean > high)
    apart = np.abs(mean - reverse_mean(x, eps, *levels))
    moved = posterior(*levels)[0] * np.abs(told.clean - free.clean)
    close(apart, moved, rtol=1e-7, atol=1e-8)
    assert np.all(moved[acts] > 0.0)
    assert np.all(moved[~acts] == 0.0)


@pytest.mark.equation("DDPM-11")
def test_data_lie_between_minus_one_and_one_unless_told_otherwise():
    told = s.clipped(Say(np.asarray([[-9.0, 9.0, 0.0]])))(np.zeros((1, 3)), Stop(1, -2.0), CLEAN)
    np.testing.assert_array_equal(told.clean, [[1.0, -1.0, 0.0]])


@given(situations())
def test_with_clipping_ddim_and_the_flow_are_still_the_same(situation):
    (x, eps, z), now, before, _ = situation
    at = (s.clipped(Say(eps)), x, now, before, z)
    close(s.ddim(0.0)(*at), s.flow_euler(*at), rtol=1e-7, atol=1e-8)


@pytest.mark.equation("DVAE-15")
@given(seeds(), sizes())
def test_with_shared_noise_samples_differ_by_what_the_denoiser_is_told_alone(seed, n):
    stops, rows = stops_of(HO, s.spaced(1000, 4)), normals(seed, 5, 3, 2)
    noise = s.shared(lambda i: rows[i], n)
    hints = normals(seed + 1, n, 1)
    denoise = lambda hint: lambda x, now, before: perfect(normal(1.0))(x - hint, now, before)
    got = s.generate(denoise(hints), s.ancestral, noise(4), stops, noise)
    for i in range(n):
        alone = (denoise(hints[i]), s.ancestral, rows[4, :1], stops, lambda j: rows[j, :1])
        np.testing.assert_array_equal(got[i : i + 1], s.generate(*alone))


@pytest.mark.equation("VDM-10")
@pytest.mark.equation("VDM-4")
def test_a_trajectory_shows_x_at_every_stop():
    stops, (*z, x_last) = stops_of(HO, [1000, 400, 30, 0]), normals(1, 4, 2, 3)
    denoise, seen = Say(0.3), []

    def step(given, x, now, before, noise):
        assert given is denoise
        seen.append((now, before))
        return 2.0 * x + noise

    walk = s.trajectory(denoise, step, x_last, stops, lambda i: z[i], 0.5)
    assert next(walk) is x_last
    assert seen == []
    path = [x_last]
    for i, x in enumerate(walk):
        path.append(2.0 * path[-1] + 0.5 * z[i])
        np.testing.assert_allclose(x, path[-1], rtol=1e-14)
        assert seen == list(zip(stops[:-1], stops[1:], strict=True))[: i + 1]
    assert len(path) == 4
    at = (denoise, step, x_last, stops)
    np.testing.assert_array_equal(s.generate(*at, lambda i: z[i], 0.5), path[-1])
    np.testing.assert_array_equal(s.generate(*at), 8.0 * x_last)
    want = s.generate(*at, lambda i: z[i], 1.0)
    np.testing.assert_array_equal(s.generate(*at, lambda i: z[i]), want)
    np.testing.assert_array_equal(list(s.trajectory(*at, lambda i: z[i]))[-1], want)
    assert s.generate(denoise, step, x_last, stops[:1]) is x_last


@pytest.mark.parametrize("levels", [[], [-1.0, -1.0], [-1.0, -2.0], [-3.0, -1.0, -2.0]])
def test_stops_must_go_from_noise_to_data(levels):
    """Refused at the call, not when the first x is asked for."""
    stops, x = [Stop(i, level) for i, level in enumerate(levels)], np.ones((1, 1))
    said = escape(f"their levels must rise, got {levels}")
    with pytest.raises(ValueError, match=said):
        s.trajectory(Say(0.0), s.ancestral, x, stops)
    with pytest.raises(ValueError, match=said):
        flow.flow_log_density(lambda x, stop: (x, lambda d: d), x, stops, flow.exact_divergence)


@pytest.mark.parametrize("temperature", [-0.5, nan, inf])
def test_the_scale_of_noise_is_a_number(temperature):
    """Refused at the call too."""
    at = (Say(0.0), s.ancestral, np.ones((2, 3)), stops_of(HO, [9, 0]))
    said = f"temperature must be finite and at least 0, got {temperature}"
    with pytest.raises(ValueError, match=said):
        s.trajectory(*at, temperature=temperature)


@every_step
def test_noise_that_would_broadcast_is_refused(step):
    at = (Say(np.zeros((2, 3))), step(), np.ones((2, 3)), stops_of(HO, [9, 4, 0]))
    for shape in ((1, 3), (2, 1)):
        said = escape(f"the noise of a step must have shape (2, 3), got {shape}")
        with pytest.raises(ValueError, match=said):
            s.generate(*at, lambda i, shape=shape: np.ones(shape))


def flow_map(world, stops, x):
    """Where the flow of a normal world takes x: √V keeps its share, exactly."""
    (mean_t, v_t), (mean_s, v_s) = (
        world.marginal(np.asarray([stop.level])) for stop in (stops[0], stops[-1])
    )
    return mean_s + np.sqrt(v_s / v_t) * (x - mean_t)


ORDERS = {"ddim": (lambda: s.ddim(), 1), "euler": (lambda: s.flow_euler, 1)}
ORDERS["heun"] = lambda: s.flow_heun, 2


@pytest.mark.equation("SCORE-7")
@given(st.floats(-2000.0, -1e-3), st.floats(1e-3, 1400.0))
def test_a_straight_line_keeps_its_digits_however_much_noise_there_is(level, step):
    """√ᾱ_s (x/√ᾱ_t + (ς_s - ς_t) slope), where ς = √(1/ᾱ - 1) itself may be beyond all numbers."""
    now, before = Stop(1.0, level), Stop(0.0, min(level + step, 0.0))
    with localcontext(prec=60):
        (signal, sigma), (signal_s, sigma_s) = (
            ((Decimal(at) / 2).exp(), ((-Decimal(at)).exp() - 1).sqrt())
            for at in (now.level, before.level)
        )
        growth, turn = signal_s / signal, signal_s * (sigma_s - sigma)
        one, none = np.ones(1), np.zeros(1)
        assert relative(s.along(one, none, now, before)[0], growth) < 1e-12
        got, largest = s.along(none, one, now, before)[0], max(growth, signal_s * sigma_s)
        assert abs((Decimal(got) - turn) / largest) < 1e-12


@pytest.mark.equation("SCORE-7")
@pytest.mark.equation("SCORE-8")
@pytest.mark.parametrize(("step", "error"), [(s.flow_euler, 0.11), (s.flow_heun, 0.05)])
def test_the_flow_starts_as_far_in_the_noise_as_a_schedule_goes(step, error):
    """From ᾱ_T = e^-916, where nothing moves for 900 steps, to where the data are felt."""
    schedule, world, x = Schedule(np.full(1000, 0.6)), normal(2.0, 0.5), normals(4, 5, 1)
    assert schedule.log_alpha_bar[-1] < -900.0
    stops = stops_of(schedule, range(1000, 0, -1))
    walk = list(s.trajectory(perfect(world), step, x, stops))
    close(walk[900], x)
    np.testing.assert_allclose(walk[-1], flow_map(world, stops, x), atol=error)
    if step is s.flow_euler:
        close(walk[-1], s.generate(perfect(world), s.ddim(), x, stops))


@pytest.mark.equation("SCORE-7")
@pytest.mark.equation("SCORE-8")
@pytest.mark.parametrize("last", [0.0, 0.3], ids=["to clean data", "to some noise"])
@pytest.mark.parametrize(("step", "order"), ORDERS.values(), ids=ORDERS)
def test_the_order_of_the_flow(step, order, last):
    """Against the closed map x_0 = m + √(v/V_t) (x_t - √ᾱ_t m): twice the steps, 2^-order."""
    world = GaussianDiffusion(np.asarray([0.5, -1.0]), np.asarray([2.0, 0.3]))
    x = normals(4, 5, 2)
    errors = []
    for count in (80, 160, 320):
        stops = even(count, least=last)
        got = s.generate(perfect(world), step(), x, stops)
        errors.append(np.abs(got - flow_map(world, stops, x)).max())
    orders = np.log2(np.asarray(errors[:-1]) / errors[1:])
    assert orders[-1] == pytest.approx(order, abs=0.1), orders
    assert errors[-1] < (0.02, 0.0005)[order - 1]


@pytest.mark.equation("SCORE-7")
@pytest.mark.equation("SCORE-8")
@pytest.mark.parametrize(
    ("step", "errors"),
    [
        (lambda: s.flow_euler, (-6.38e-2, -6.6e-3)),
        (lambda: s.flow_heun, (-5.1e-4, -1.81e-4)),
        (lambda: s.reverse_sde, (-1.96e-3, -1.36e-4)),
    ],
)
def test_the_variance_of_the_continuous_process_run_backwards(step, errors):
    """Data N(0, 2), β(t) from 0.1 to 20, with 100 and 1000 steps of equal length in t."""
    for count, want in zip((100, 1000), errors, strict=True):
        times = np.linspace(1.0, 0.0, count + 1)
        stops = [Stop(t, -(0.1 * t + 9.95 * t * t)) for t in times]
        got = generated(perfect(normal(2.0)), step(), stops)[1] - 2.0
        assert got == pytest.approx(want, rel=5e-3, abs=1e-6)


def linear_net(x, now, before):
    """A denoiser in the array API: ε̂ = 0.3 x."""
    at = (now.level_beside(x), before.level_beside(x))
    eps = 0.3 * x
    return Prediction(Epsilon().clean(eps, x, *at)[0], eps)


@on_every_backend
@every_step
def test_every_backend_samples_the_same(born, step):
    """In its own dtype; and no example knows of the others."""
    z = normals(7, 5, 4, 2, 3)
    stops = stops_of(HO, s.spaced(1000, 4))
    denoise = lambda x, now, before: replace(linear_net(x, now, before), logvar=-1.0 + 0.1 * x)
    at = (s.clipped(denoise), step())
    want = s.generate(*at, z[4], stops, lambda i: z[i], 0.9)
    got = s.generate(*at, born.asarray(z[4]), stops, lambda i: born.asarray(z[i]), 0.9)
    assert got.dtype == born.asarray(z).dtype
    np.testing.assert_allclose(host(got), want, atol=100.0 * tolerance(born))
    alone = s.generate(*at, born.asarray(z[4, :2]), stops, lambda i: born.asarray(z[i, :2]), 0.9)
    np.testing.assert_array_equal(host(got)[:2], host(alone))


@on_every_backend
def test_a_level_is_born_beside_its_data(born):
    level = Stop(1.0, -0.3).level_beside(born.asarray(np.ones((2, 3))))
    assert (level.shape, level.dtype) == ((1,), born.xp.float64)
    assert host(level)[0] == -0.3


@on_every_backend
def test_every_backend_shares_noise(born):
    rows = born.asarray(normals(1, 2, 1, 3))
    got = s.shared(lambda i: rows[i, ...], 4)(1)
    np.testing.assert_array_equal(host(got), np.tile(host(rows)[1], (4, 1)))


@on_every_backend
@pytest.mark.parametrize("estimated", [False, True])
def test_every_backend_has_the_same_flow_density(born, estimated):
    x, probe = normals(8, 2, 4, 2, 3)
    stops = [*stops_of(HO, s.spaced(1000, 4)[:-1]), CLEAN]

    def found(make):
        mix = make(normals(9, 6, 6))
        through = lambda a, matrix: namespace(a).reshape(rows_of(a) @ matrix, a.shape)
        rows_of = lambda a: namespace(a).reshape(a, (-1, 6))
        epsilon = lambda x, stop: (0.2 * through(x, mix), lambda d: 0.2 * through(d, mix.T))

        by = flow.hutchinson(make(probe)) if estimated else flow.exact_divergence
        return flow.flow_log_density(epsilon, make(x), stops, by)

    for got, want in zip(found(born.asarray), found(NUMPY.asarray), strict=True):
        assert got.dtype == born.asarray(x).dtype
        scale = np.abs(host(want)).max()
        np.testing.assert_allclose(host(got), host(want), atol=scale * tolerance(born))
