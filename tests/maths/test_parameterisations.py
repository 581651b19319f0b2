"""maths/parameterisations.py: round trips, loss identities, and the exact posterior mean."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.numerics import level_centres
from scratchgen.maths import parameterisations as p
from scratchgen.maths.forward_process import (
    Shifted,
    ddim_step,
    log_snr,
    posterior,
    q_posterior,
    q_sample,
)
from scratchgen.testing import oracle
from scratchgen.testing.strategies import seeds, sizes, transitions

from support import NUMPY, host, normals, on_every_backend, tolerance

AFFINE = [p.Epsilon(), p.Clean(), p.Velocity(), p.Score(), p.Mean()]
every_affine = pytest.mark.parametrize("kind", AFFINE, ids=lambda kind: type(kind).__name__)


def point(seed, n, d, pair):
    """x_0, ε, x_t (n, d) and the levels (n,) of one transition."""
    x0, eps = normals(seed, n, d), normals(seed + 1, n, d)
    now, before = (np.broadcast_to(v, (n,)) for v in pair)
    return x0, eps, q_sample(x0, eps, now)[0], now, before


@pytest.mark.equation("DDPM-11")
@pytest.mark.equation("DDPM-14")
@every_affine
@given(seeds(), sizes(3), transitions())
def test_the_target_gives_back_data_and_noise(kind, seed, n, pair):
    x0, eps, x_t, now, before = point(seed, n, 3, pair)
    target = kind.target(x0, eps, now, before)
    odds = float(np.exp(0.5 * np.abs(log_snr(now[0]))))  # rounding grows with these
    clean, _ = kind.clean(target, x_t, now, before)
    epsilon, _ = kind.epsilon(target, x_t, now, before)
    np.testing.assert_allclose(clean, x0, atol=1e-12 * odds)
    np.testing.assert_allclose(epsilon, eps, atol=1e-12 * odds)


@pytest.mark.equation("DDPM-14")
@every_affine
@given(seeds(), transitions())
def test_any_output_means_one_decomposition_of_x_t(kind, seed, pair):
    """√ᾱ x̂₀ + √(1-ᾱ) ε̂ = x_t whatever the net says, so ε̂ and x̂₀ tell the same story."""
    _, _, x_t, now, before = point(seed, 2, 3, pair)
    output = normals(seed + 2, 2, 3)
    clean, _ = kind.clean(output, x_t, now, before)
    epsilon, _ = kind.epsilon(output, x_t, now, before)
    signal, noise = np.exp(0.5 * now)[:, None], np.sqrt(-np.expm1(now))[:, None]
    scale = 1e-12 * (np.abs(signal * clean).max() + np.abs(noise * epsilon).max())
    np.testing.assert_allclose(signal * clean + noise * epsilon, x_t, atol=scale)
    generic, _ = p.Parameterisation.epsilon(kind, output, x_t, now, before)
    np.testing.assert_allclose(generic, epsilon, atol=scale / float(noise.min()))


@pytest.mark.equation("DDPM-14")
@given(seeds(), transitions())
def test_losses_differ_by_known_factors(seed, pair):
    """‖ε - ε̂‖² = SNR ‖x_0 - x̂₀‖² and the like: each row of the table, for one prediction."""
    x0, eps, x_t, now, before = point(seed, 1, 3, pair)
    guess = normals(seed + 2, 1, 3)  # ε̂
    clean, _ = p.Epsilon().clean(guess, x_t, now, before)
    loss = float(((eps - guess) ** 2).sum())
    alpha_bar, c0 = float(np.exp(now[0])), float(posterior(now, before)[0][0])
    snr = alpha_bar / -np.expm1(now[0])
    factors = {
        p.Epsilon: 1.0,
        p.Clean: snr,
        p.Velocity: alpha_bar,
        p.Score: 1.0 - alpha_bar,
        p.Mean: snr / c0**2,
    }
    for kind in AFFINE:
        output = kind.target(clean, guess, now, before)
        error = float(((kind.target(x0, eps, now, before) - output) ** 2).sum())
        assert factors[type(kind)] * error == pytest.approx(loss, rel=1e-6)
        own = float(np.asarray(kind.coefficients(now, before)[1][0])[0] ** 2)
        assert own == pytest.approx(factors[type(kind)], rel=1e-9)


@pytest.mark.equation("DDPM-14")
@every_affine
@given(seeds(), transitions())
def test_pullbacks(kind, seed, pair):
    _, _, x_t, now, before = point(seed, 2, 3, pair)
    output = normals(seed + 2, 2, 3)
    for way in (kind.clean, kind.epsilon):
        oracle.check_pullback(lambda a, b, way=way: way(a, b, now, before), output, x_t)


@pytest.mark.equation("DDPM-8")
@pytest.mark.equation("DDPM-14")
@given(seeds(), sizes(3), transitions(), st.integers(2, 5))
def test_k_way_costs_are_those_of_a_distribution(seed, n, pair, k):
    """Σ_k e^(-cost of level k) = 1 in every pixel of x_t; the pullback is autograd's."""
    kind, now = p.KWay(k), np.repeat(pair[0], n)
    x_t, logits = normals(seed, n, 2, 3), normals(seed + 1, n, 2, 3 * k)
    levels = [np.full((n, 2, 3), level_centres(float(i), k)) for i in range(k)]
    costs = np.stack([kind.nll(x, logits, x_t, now)[0] for x in levels], axis=-1)
    want = -kind.log_probabilities(logits, x_t, now)
    np.testing.assert_allclose(costs, want, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(np.exp(-costs).sum(axis=-1), 1.0, rtol=1e-12)
    oracle.check_pullback(lambda h: kind.nll(levels[0], h, x_t, now), logits)


@pytest.mark.parametrize("kind", [*AFFINE, p.KWay(3)], ids=lambda kind: type(kind).__name__)
@given(seeds(), sizes(3), transitions())
def test_slopes_are_those_of_the_level(kind, seed, n, pair):
    """∂x̂₀/∂now and ∂ε̂/∂now at a given output and x_t, against autograd through the level."""
    _, _, x_t, now, before = point(seed, n, 2, pair)
    output = normals(seed + 2, n, 2 * getattr(kind, "levels", 1))
    for way in ("clean", "epsilon"):
        slope = getattr(kind, way + "_slope")(output, x_t, now, before)

        def value(level, way=way, slope=slope):
            y, _ = getattr(kind, way)(output, x_t, level, before)
            # the level is added, since autograd warns where there is no slope at all
            return y + level[:, None], lambda d: ((slope + 1.0) * d).sum(axis=1)

        oracle.check_pullback(value, now + 0.0, tolerance=1e-9)


@pytest.mark.equation("DDPM-10")
@pytest.mark.equation("DDPM-11")
@given(seeds(), transitions())
def test_the_mean_through_epsilon_is_the_posterior_mean(seed, pair):
    """With the true ε it is the posterior's mean; with ε̂, the posterior's at x̂₀."""
    x0, eps, x_t, now, before = point(seed, 2, 3, pair)
    scale = 1e-10 * (1.0 + np.abs(x_t).max()) * float(np.exp(-0.5 * now[0]))
    want, _ = q_posterior(x0, x_t, now, before)
    np.testing.assert_allclose(p.reverse_mean(x_t, eps, now, before), want, atol=scale)
    guess = normals(seed + 2, 2, 3)
    clean, _ = p.Epsilon().clean(guess, x_t, now, before)
    at_clean, _ = q_posterior(clean, x_t, now, before)
    np.testing.assert_allclose(p.reverse_mean(x_t, guess, now, before), at_clean, atol=scale)
    mean, _ = p.Mean().clean(at_clean, x_t, now, before)
    np.testing.assert_allclose(mean, clean, atol=1e3 * scale * float(np.exp(-0.5 * now[0])))


@pytest.mark.equation("DDPM-11")
def test_clipping_the_prediction_makes_the_two_forms_differ():
    x_t, guess = np.asarray([[2.0]]), np.asarray([[-1.0]])
    now, before = np.asarray([-0.5]), np.asarray([-0.3])
    clean = np.clip(p.Epsilon().clean(guess, x_t, now, before)[0], -1.0, 1.0)
    clipped, _ = q_posterior(clean, x_t, now, before)
    assert abs(float(p.reverse_mean(x_t, guess, now, before)[0, 0] - clipped[0, 0])) > 0.1


@pytest.mark.equation("DVAE-10")
@given(seeds(), transitions())
def test_the_shifted_reverse_mean_is_the_printed_one(seed, pair):
    """μ = x̂ + (x_t - x̂ - β/√(1-ᾱ_t) ε̂)/√α, and x̂₀ = (x_t - x̂ - √(1-ᾱ_t) ε̂)/√ᾱ_t."""
    _, guess, x_t, now, before = point(seed, 2, 3, pair)
    hint = normals(seed + 3, 2, 3)
    shift = Shifted(hint)
    u = shift.plain(x_t, now)
    alpha, alpha_bar = np.exp(now - before)[:, None], np.exp(now)[:, None]
    noise = (1.0 - alpha) / np.sqrt(1.0 - alpha_bar) * guess
    want = hint + (x_t - hint - noise) / np.sqrt(alpha)
    got = shift.shifted(p.reverse_mean(u, guess, now, before), before)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-10)
    clean, _ = p.Epsilon().clean(guess, u, now, before)
    want = (x_t - hint - np.sqrt(1.0 - alpha_bar) * guess) / np.sqrt(alpha_bar)
    np.testing.assert_allclose(clean, want, rtol=1e-8, atol=1e-9)
    last = shift.shifted(p.reverse_mean(u, guess, now, 0.0 * now), 0.0 * now)
    np.testing.assert_allclose(last, clean, rtol=1e-8, atol=1e-9)  # t = 1: no x̂ is added
    z, variance = normals(seed + 4, 2, 3), -0.3 * np.expm1(before)  # DDIM, to s ≥ 1 and to s = 0
    kept, signal = np.sqrt(-0.7 * np.expm1(before))[:, None], np.exp(0.5 * before)[:, None]
    want = hint + signal * clean + kept * guess + np.sqrt(variance)[:, None] * z
    got = shift.shifted(ddim_step(clean, guess, z, variance, before), before)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-9)
    got = shift.shifted(ddim_step(clean, guess, z, 0.0 * now, 0.0 * now), 0.0 * now)
    np.testing.assert_allclose(got, clean, rtol=1e-8, atol=1e-9)


@pytest.mark.equation("DDPM-14")
@given(seeds(), st.integers(2, 17), st.floats(-12.0, -1e-3))
def test_k_way_is_bayes_rule_over_the_levels(seed, k, level):
    """Against the table of prior times likelihood, in plain numbers."""
    logits, x_t, now = normals(seed, 2, 3 * k), normals(seed + 1, 2, 3), np.full(2, level)
    signal, variance = np.exp(0.5 * level), -np.expm1(level)
    x = level_centres(np.arange(k), k)
    exponent = logits.reshape(2, 3, k) - 0.5 * (x_t[..., None] - signal * x) ** 2 / variance
    table = np.exp(exponent - exponent.max(axis=-1, keepdims=True))
    table /= table.sum(axis=-1, keepdims=True)
    kind = p.KWay(k)
    got = np.exp(kind.log_probabilities(logits, x_t, now))
    np.testing.assert_allclose(got, table, rtol=1e-7, atol=1e-12)
    clean, _ = kind.clean(logits, x_t, now, now)
    np.testing.assert_allclose(clean, (table * x).sum(axis=-1), rtol=1e-7, atol=1e-10)


@pytest.mark.equation("DDPM-14")
@pytest.mark.equation("ELBO-1")
@given(seeds(), st.integers(2, 5), st.floats(0.05, 0.95))
def test_k_way_with_the_true_prior_is_the_best_denoiser(seed, k, alpha_bar):
    """E[x_0 | x_t] minimises the mean squared error: its error is orthogonal to any g(x_t)."""
    logits = normals(seed, k)
    prior, x = np.exp(logits) / np.exp(logits).sum(), level_centres(np.arange(k), k)
    signal, variance = np.sqrt(alpha_bar), 1.0 - alpha_bar
    grid = np.linspace(-1.0 - 12.0 * variance**0.5, 1.0 + 12.0 * variance**0.5, 3001)[:, None]
    densities = prior * np.exp(-0.5 * (grid - signal * x) ** 2 / variance)
    now = np.full(len(grid), np.log(alpha_bar))
    clean, _ = p.KWay(k).clean(np.tile(logits, (len(grid), 1)), grid, now, now)
    for g in (np.ones_like(grid), grid, np.cos(3.0 * grid)):
        inner = (densities * (x - clean) * g).sum(axis=-1)
        size = (densities * np.abs(x * g)).sum(axis=-1)
        assert abs(np.trapezoid(inner)) <= 1e-9 * np.trapezoid(size)


@pytest.mark.equation("DDPM-14")
@given(seeds(), st.integers(2, 6), transitions())
def test_k_way_pullbacks(seed, k, pair):
    _, _, x_t, now, before = point(seed, 2, 3, pair)
    kind, logits = p.KWay(k), normals(seed + 2, 2, 3 * k)
    for way in (kind.clean, kind.epsilon):
        oracle.check_pullback(lambda a, b, way=way: way(a, b, now, before), logits, x_t)


def test_k_way_needs_two_levels():
    with pytest.raises(ValueError, match="at least 2 levels, got 1"):
        p.KWay(1)
    assert p.KWay(2).levels == 2


@on_every_backend
def test_every_backend_agrees(born):
    x_t, output, logits = normals(0, 4, 3), normals(1, 4, 3), normals(2, 4, 15)

    def everything(made):
        levels = made.xp.asarray([-0.2, -1.0], dtype=made.xp.float64, device=made.device)
        now, before = (made.xp.stack([levels[i]] * 4) for i in (1, 0))
        x, y = made.asarray(x_t), made.asarray(output)
        for kind in [*AFFINE, p.KWay(5)]:
            given = made.asarray(logits) if isinstance(kind, p.KWay) else y
            for way in (kind.clean, kind.epsilon):
                value, pullback = way(given, x, now, before)
                yield value
                yield from pullback(x)
        for kind in AFFINE:
            yield kind.target(x, y, now, before)
        yield p.reverse_mean(x, y, now, before)

    for got, want in zip(everything(born), everything(NUMPY), strict=True):
        oracle.assert_close(host(got), want, 50 * tolerance(born), "value")
        assert got.dtype == born.zeros((1,)).dtype
