"""maths/planar.py against closed forms, independent quadrature, derivatives and simulation."""

from functools import partial
from math import exp, expm1, inf, log, nan, pi
from re import escape

import autograd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ive, ndtr

from scratchgen.core.arrays import Backend
from scratchgen.core.streams import Stream
from scratchgen.maths import planar
from scratchgen.maths.planar import Checker, Curve
from scratchgen.testing import oracle
from scratchgen.testing.monte_carlo import assert_law, assert_mean
from scratchgen.testing.strategies import seeds, sizes

from support import NUMPY, host, normals, on_every_backend, tolerance

LEVELS = st.floats(-5.0, -1e-2)
CURVES = {
    "rings": partial(planar.rings, variance=0.04),
    "moons": partial(planar.moons, variance=0.04),
    "spiral": partial(planar.spiral, variance=0.04),
}
SMOOTH = {
    **CURVES,
    "grid": partial(planar.grid, side=3, variance=0.04),
    "eight": partial(planar.eight_gaussians, variance=0.04),
    "checker": lambda born: Checker(born).noised(-0.1),
}
every_curve = pytest.mark.parametrize("make", CURVES.values(), ids=CURVES)
every_density = pytest.mark.parametrize("make", SMOOTH.values(), ids=SMOOTH)
SPACING = 0.1


def plane(span=4.2):
    """A square lattice of points (n, 2): the trapezoid rule, to be multiplied by SPACING²."""
    axis = np.arange(-span, span, SPACING)
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)


def blurred(points, weights, variance, x):
    """log Σ w N(x; point, v I), written without our code."""
    square = ((x[:, None] - points) ** 2).sum(axis=-1)
    terms = np.log(weights) - 0.5 * square / variance - log(2.0 * pi * variance)
    return np.logaddexp.reduce(terms, axis=-1)


@every_density
def test_densities_integrate_to_one(make):
    mass = SPACING**2 * np.exp(make(NUMPY).log_prob(plane())).sum()
    assert mass == pytest.approx(1.0, abs=1e-9)


@pytest.mark.equation("SCORE-1")
@every_density
@given(seeds(), LEVELS)
def test_the_score_is_the_gradient_of_the_log_density(make, seed, level):
    x, density = 1.5 * normals(seed, 3, 2), make(NUMPY).noised(level)
    want = autograd.grad(lambda v: density.log_prob(v).sum())(x)
    oracle.assert_close(density.score(x), want, 1e-10, "score")


@pytest.mark.equation("DDPM-4")
@every_density
def test_the_noised_marginal_is_a_convolution(make):
    density, x0, x = make(NUMPY), plane(), normals(3, 6, 2)
    mass = SPACING**2 * np.exp(density.log_prob(x0))
    for level in (-0.1, -1.0):
        want = blurred(exp(0.5 * level) * x0, mass + 1e-300, -expm1(level), x)
        got = density.noised(level).log_prob(x)
        np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-8)


@pytest.mark.equation("DDPM-4")
@every_density
@given(seeds(), LEVELS, LEVELS)
def test_levels_add(make, seed, first, second):
    density, x = make(NUMPY), normals(seed, 4, 2)
    twice, once = density.noised(first).noised(second), density.noised(first + second)
    np.testing.assert_allclose(twice.log_prob(x), once.log_prob(x), rtol=1e-10, atol=1e-10)
    noise = -0.5 * (x**2).sum(axis=-1) - log(2.0 * pi)
    lowest = -80.0 if isinstance(density, Checker) else -inf
    last = density.noised(lowest + 0.1 if isinstance(density, Checker) else lowest)
    np.testing.assert_allclose(last.log_prob(x), noise, rtol=1e-12)


@every_density
def test_samples_follow_the_density(make):
    """E cos(a·x + b), exact by the trapezoid rule, of a wave that no symmetry removes."""
    density, lattice = make(NUMPY), plane()
    wave = lambda x: np.cos(x @ np.asarray([1.1, -0.7]) + 0.7)
    mass = SPACING**2 * np.exp(density.log_prob(lattice))
    drawn = lambda n, look: wave(density.sample(n, Stream(5, NUMPY).at(look)))
    assert_mean(drawn, float(mass @ wave(lattice)), resolution=0.014)


@every_curve
@pytest.mark.parametrize("variance", [1.0, 0.1, 0.01, 1e-3])
def test_twice_the_nodes_change_nothing(make, variance):
    coarse = make(NUMPY, variance=variance)
    longer = [(curve, 2.0 * length) for curve, length in coarse.pieces]
    fine = Curve(NUMPY, longer, variance, coarse.closed)
    assert fine.means.shape[0] > 1.3 * coarse.means.shape[0]
    x = coarse.sample(200, Stream(1, NUMPY))
    for level in (0.0, -0.01, -1.0, -4.0):
        change = coarse.noised(level).log_prob(x) - fine.noised(level).log_prob(x)
        np.testing.assert_allclose(change, 0.0, atol=1e-9)


def test_nodes_are_as_many_as_the_curve_is_long():
    """16, and two (on open curves π) for every standard deviation of the blur."""
    assert planar.rings(NUMPY, radii=(1.0,), variance=1e-4).means.shape[0] == 16 + 1257
    assert planar.rings(NUMPY, radii=(0.1,), variance=1e-4).means.shape[0] == 16 + 126
    assert planar.rings(NUMPY, radii=(0.5, 1.0), variance=1e-4).means.shape[0] == 32 + 629 + 1257
    assert planar.moons(NUMPY, variance=1e-2).means.shape[0] == 2 * (16 + 99)
    one_arm = planar.spiral(NUMPY, arms=1, turns=1.0, radii=(0.5, 2.5), variance=1e-2)
    assert one_arm.means.shape[0] == 16 + 498  # |dc/du| = √(2² + (5π)²) at the outer end
    for radii in ((-2.5, -0.5), (-2.5, -4.5), (0.5, -2.5 + 1.0)):
        fastest = np.hypot(radii[1] - radii[0], 2.0 * pi * max(np.abs(radii)))
        arm = planar.spiral(NUMPY, arms=1, turns=1.0, radii=radii, variance=1e-2)
        assert arm.means.shape[0] == 16 + np.ceil(10.0 * pi * fastest)


def test_an_open_piece_has_at_most_8192_nodes(monkeypatch):
    """A closed one has as many as it needs."""
    monkeypatch.setattr(planar, "_fejer", planar._trapezoid)

    def straight(nodes, closed=False):
        line = lambda u: np.stack([u, u], axis=-1)
        return Curve(NUMPY, [(line, (nodes - 16.5) / pi)], 1.0, closed)

    assert straight(8192).means.shape[0] == 8192
    with pytest.raises(ValueError, match="needs 8193 nodes .* at most 8192"):
        straight(8193)
    assert straight(20000, closed=True).means.shape[0] > 8193


@given(seeds(), st.floats(-5.0, 1.0))
def test_rings_have_the_density_of_a_rice_distribution(seed, log_variance):
    """p(x) = mean over R of I₀(rR/v) e^(-(r² + R²)/2v) / (2πv)."""
    v, radii = exp(log_variance), np.asarray([1.0, 2.0])
    x = 1.5 * normals(seed, 6, 2)
    r = np.sqrt((x**2).sum(axis=-1))[:, None]
    terms = np.log(ive(0, r * radii / v)) - 0.5 * (r - radii) ** 2 / v - log(2.0 * pi * v)
    want = np.logaddexp.reduce(terms, axis=-1) - log(2.0)
    got = planar.rings(NUMPY, variance=v).log_prob(x)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("radii", [(-2.0, 0.2), (0.3, -1.5), (-1.0, -2.0)])
def test_spirals_with_negative_radii_equal_gauss_legendre(radii):
    nodes, weights = np.polynomial.legendre.leggauss(400)
    u, x = 0.5 + 0.5 * nodes, 1.5 * normals(6, 20, 2)
    r, angle = radii[0] + (radii[1] - radii[0]) * u, 3.0 * pi * u
    arm = np.stack([r * np.cos(angle), r * np.sin(angle)], axis=-1)
    want = blurred(np.concatenate([arm, -arm]), np.tile(weights / 4.0, 2), 0.01, x)
    got = planar.spiral(NUMPY, radii=radii, variance=0.01).log_prob(x)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-8)


@given(seeds(), st.floats(-3.0, 1.0))
def test_moons_and_spirals_equal_gauss_legendre(seed, log_variance):
    v, x = exp(log_variance), 1.5 * normals(seed, 6, 2)
    nodes, weights = np.polynomial.legendre.leggauss(120)
    u = 0.5 + 0.5 * nodes
    moon = np.stack([np.cos(pi * u) - 0.5, np.sin(pi * u) - 0.25], axis=-1)
    r, angle = 0.2 + 1.8 * u, 3.0 * pi * u
    arm = np.stack([r * np.cos(angle), r * np.sin(angle)], axis=-1)
    for make, half in ((planar.moons, moon), (planar.spiral, arm)):
        want = blurred(np.concatenate([half, -half]), np.tile(weights / 4.0, 2), v, x)
        np.testing.assert_allclose(make(NUMPY, variance=v).log_prob(x), want, rtol=1e-8, atol=1e-8)


@every_curve
def test_the_mean_is_the_origin(make):
    np.testing.assert_allclose(make(NUMPY).mean, 0.0, atol=1e-12)


@every_curve
def test_a_sample_is_a_place_on_the_curve_and_its_blur(make):
    density, stream = make(NUMPY, variance=0.09), Stream(4, NUMPY)
    places = density.sample(50, stream) - 0.3 * stream.at("noise").normal((50, 2))
    u = stream.at("place").uniform((50,))
    piece = (2.0 * stream.at("piece").uniform((50,))).astype(int)
    on_pieces = np.stack([curve(u) for curve, _ in density.pieces])
    np.testing.assert_allclose(places, on_pieces[piece, np.arange(50)], atol=1e-12)


def test_curves_start_where_one_expects_and_run_against_the_clock():
    def first(density):
        return np.stack([curve(np.asarray([0.0, 1e-6])) for curve, _ in density.pieces])

    rings, moons = first(planar.rings(NUMPY)), first(planar.moons(NUMPY))
    arms = first(planar.spiral(NUMPY, arms=4, radii=(0.5, 2.0)))
    np.testing.assert_allclose(rings[:, 0], [[1.0, 0.0], [2.0, 0.0]], atol=1e-12)
    np.testing.assert_allclose(moons[:, 0], [[0.5, -0.25], [-0.5, 0.25]], atol=1e-12)
    quarters = [[0.5, 0.0], [0.0, 0.5], [-0.5, 0.0], [0.0, -0.5]]
    np.testing.assert_allclose(arms[:, 0], quarters, atol=1e-12)
    assert rings[0, 1, 1] > 0.0
    assert moons[0, 1, 1] > -0.25
    assert arms[0, 1, 1] > 0.0
    for density in (planar.rings(NUMPY), planar.moons(NUMPY)):  # and so do their nodes
        np.testing.assert_allclose(density.means[0], first(density)[0, 0], atol=1e-3)


def test_nodes_are_found_in_float64():
    for make in CURVES.values():
        rounded = make(NUMPY).means.astype(np.float32)
        np.testing.assert_array_equal(make(Backend(np, "float32")).means, rounded)


def test_the_defaults_are_the_stated_ones():
    for default, stated in (
        (planar.rings(NUMPY), planar.rings(NUMPY, radii=(1.0, 2.0), variance=0.01)),
        (planar.moons(NUMPY), planar.moons(NUMPY, variance=0.01)),
        (planar.spiral(NUMPY), planar.spiral(NUMPY, 2, 1.5, (0.2, 2.0), variance=0.01)),
        (planar.grid(NUMPY), planar.grid(NUMPY, side=5, spacing=1.0, variance=0.01)),
        (planar.eight_gaussians(NUMPY), planar.eight_gaussians(NUMPY, 2.0, variance=0.02)),
    ):
        np.testing.assert_array_equal(default.means, stated.means)
        np.testing.assert_array_equal(default.covariances, stated.covariances)
    board = Checker(NUMPY)
    assert board.dims == 2
    assert (board.squares, board.half_width, board.width, board.level) == (4, 2.0, 1.0, 0.0)


def test_the_angle_on_a_ring_is_uniform():
    density = planar.rings(NUMPY)

    def turns(n, look):
        x = density.sample(n, Stream(9, NUMPY).at(look))
        return np.arctan2(x[:, 1], x[:, 0]) / (2.0 * pi) + 0.5

    assert_law(turns, resolution=0.02)


@given(sizes(7))
def test_grids_of_normals_stand_evenly_around_the_origin(side):
    density = planar.grid(NUMPY, side=side, spacing=0.5)
    axis = np.linspace(-0.25, 0.25, side) * (side - 1) if side > 1 else [0.0]
    np.testing.assert_allclose(density.means, [(a, b) for a in axis for b in axis], atol=1e-15)
    np.testing.assert_allclose(density.mean, 0.0, atol=1e-15)


def test_circles_of_normals_stand_where_they_should():
    eight = planar.eight_gaussians(NUMPY, radius=3.0)
    steps = np.diff(np.unwrap(np.arctan2(eight.means[:, 1], eight.means[:, 0])))
    np.testing.assert_allclose(np.hypot(*eight.means.T), 3.0)
    np.testing.assert_allclose(steps, 0.25 * pi)
    np.testing.assert_allclose(eight.covariances, np.stack([0.02 * np.eye(2)] * 8))


def board(squares, x, level=None):
    """The density of a board of half-width 2, square by square."""
    width, total = 4.0 / squares, 0.0
    edges = -2.0 + width * np.arange(squares + 1)
    dark = [(i, j) for i in range(squares) for j in range(squares) if (i + j) % 2 == 0]
    for cell in dark:
        part = 1.0 / (len(dark) * width**2)
        for axis, i in enumerate(cell):
            if level is None:
                part = part * ((x[:, axis] >= edges[i]) & (x[:, axis] < edges[i + 1]))
            else:
                signal, sigma = exp(0.5 * level), (-expm1(level)) ** 0.5
                a, b = ((x[:, axis] - signal * e) / sigma for e in edges[[i, i + 1]])
                part = part * (ndtr(a) - ndtr(b)) / signal
        total = total + part
    return total


@given(seeds(), st.sampled_from([2, 3, 4, 7]))
def test_a_clean_board_is_even_on_its_dark_squares(seed, squares):
    x, clean = 1.3 * normals(seed, 40, 2), Checker(NUMPY, squares)
    np.testing.assert_allclose(np.exp(clean.log_prob(x)), board(squares, x), rtol=1e-13)
    drawn = clean.sample(40, Stream(seed, NUMPY))
    assert np.all(np.isfinite(clean.log_prob(drawn)))
    noise = Stream(seed, NUMPY).at("noise").normal((40, 2))
    noised = clean.noised(-1.0).sample(40, Stream(seed, NUMPY))
    np.testing.assert_allclose(noised, exp(-0.5) * drawn + (-expm1(-1.0)) ** 0.5 * noise)
    with pytest.raises(ValueError, match="no score"):
        clean.score(x)


@given(seeds(), st.sampled_from([0.5, 1.0, 3.0]), st.one_of(st.just(0.0), LEVELS))
def test_draws_from_a_board_of_another_size_are_stretched_ones(seed, half_width, level):
    """The places on it; the noise is what it is."""
    draws = [
        Checker(NUMPY, half_width=w, level=level).sample(20, Stream(seed, NUMPY))
        for w in (half_width, 2.0)
    ]
    noise = (-expm1(level)) ** 0.5 * Stream(seed, NUMPY).at("noise").normal((20, 2))
    oracle.assert_close(draws[0] - noise, 0.5 * half_width * (draws[1] - noise), 1e-12, "places")


@pytest.mark.equation("DDPM-4")
@given(seeds(), st.sampled_from([0.5, 1.0, 3.0]), LEVELS)
def test_a_board_of_another_size_is_a_stretched_one(seed, half_width, level):
    """With x₀ stretched by a and the noise with it, the density falls by a² everywhere."""
    x, stretch = normals(seed, 5, 2), half_width / 2.0
    board, small = Checker(NUMPY), Checker(NUMPY, half_width=half_width)
    got, want = small.log_prob(stretch * x), board.log_prob(x) - 2.0 * log(stretch)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    squared = (-expm1(level)) / (-expm1(level) + stretch**2 * exp(level))  # of the other noise
    other = log(1.0 - squared)
    shrink = exp(0.5 * (level - other)) * stretch
    got = small.noised(level).log_prob(shrink * x)
    want = board.noised(other).log_prob(x) - 2.0 * log(shrink)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.equation("DDPM-4")
@given(seeds(), st.sampled_from([2, 3, 4, 7]), LEVELS)
def test_a_noised_board_is_a_sum_of_boxes(seed, squares, level):
    x = normals(seed, 20, 2)
    got = np.exp(Checker(NUMPY, squares).noised(level).log_prob(x))
    np.testing.assert_allclose(got, board(squares, x, level), rtol=1e-8)


@pytest.mark.parametrize("level", [-1e-9, -1e-3, -1.0, -30.0, -80.0])
@pytest.mark.parametrize("distance", [1.0, 1e2, 1e4, 1e6])
def test_far_from_the_board_the_log_density_stays_finite(level, distance):
    """There the nearest corner pulls: s ≈ -(x - √ᾱ corner)/(1-ᾱ)."""
    far = Checker(NUMPY).noised(level)
    x = 2.0 + distance * np.asarray([[1.0, 1.0], [1.0, 0.3]])
    signal, variance = exp(0.5 * level), -expm1(level)
    gap = ((x - 2.0 * signal) ** 2).sum(axis=-1) / variance
    log_p, score = far.log_prob(x), far.score(x)
    assert np.all(np.isfinite(log_p))
    pull = -variance * score
    assert np.all(pull >= x - 2.0 * signal - 1e-9 * x)  # never weaker than the nearest corner's
    assert np.all(pull <= x + 2.0 * signal + variance / (0.3 * distance) + 1e-9 * x)
    assert np.all(log_p <= -0.5 * gap - log(2.0 * pi * variance) + 1e-9 * gap)


def test_places_within_the_squares_are_uniform():
    clean = Checker(NUMPY)

    def place(n, look, axis):
        return np.mod(clean.sample(n, Stream(2, NUMPY).at(look, axis))[:, axis], 1.0)

    for axis in (0, 1):
        assert_law(partial(place, axis=axis), resolution=0.02)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: planar.rings(NUMPY, radii=()), "a piece"),
        (lambda: planar.moons(NUMPY, variance=0.0), "positive variance"),
        (lambda: planar.spiral(NUMPY, variance=-1.0), "positive variance"),
        (lambda: planar.rings(NUMPY, radii=(1.0, 0.0)), "positive lengths"),
        (lambda: planar.grid(NUMPY, variance=-1.0), "positive definite"),
        (lambda: Checker(NUMPY, squares=1), "squares ≥ 2"),
        (lambda: Checker(NUMPY, half_width=0.0), "half_width > 0"),
        (lambda: Checker(NUMPY, level=0.5), "from -80 to 0"),
        (lambda: Checker(NUMPY).noised(1e-3), "from -80 to 0"),
        (lambda: Checker(NUMPY).noised(-80.5), "from -80 to 0"),
        (lambda: Checker(NUMPY).noised(nan), "from -80 to 0"),
    ],
)
def test_constructors_say_what_must_hold(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_curve_of_one_s_own():
    """An ellipse: any function of u will do, with its largest speed."""

    def ellipse(u):
        return np.stack([3.0 * np.cos(2.0 * pi * u), np.sin(2.0 * pi * u)], axis=-1)

    curve = Curve(NUMPY, [(ellipse, 6.0 * pi)], 0.01, closed=True)
    u = (np.arange(4000) + 0.5) / 4000
    x = np.asarray([[2.9, 0.1], [0.0, 1.1], [0.0, 0.0]])
    want = blurred(ellipse(u), np.full(4000, 1.0 / 4000), 0.01, x)
    np.testing.assert_allclose(curve.log_prob(x), want, rtol=1e-10)


@pytest.mark.parametrize("shape", [(4, 1), (4, 3), ()])
def test_points_lie_in_the_plane(shape):
    board = Checker(NUMPY)
    noised, ring = board.noised(-1.0), planar.rings(NUMPY, variance=1.0)
    for ask in (board.log_prob, noised.log_prob, noised.score, ring.log_prob, ring.score):
        with pytest.raises(ValueError, match=escape(f"x must be (..., 2), got {shape}")):
            ask(np.zeros(shape))


@every_density
def test_shapes_are_kept(make):
    x = normals(8, 2, 3, 2)
    for density in (make(NUMPY), Checker(NUMPY)):
        log_p = density.log_prob(x)
        assert log_p.shape == (2, 3)
        np.testing.assert_allclose(density.log_prob(x[1, 2]), log_p[1, 2], rtol=1e-12)
        np.testing.assert_allclose(density.noised(-1.0).score(x[1]).shape, (3, 2))
    score = make(NUMPY).score(x)
    np.testing.assert_allclose(make(NUMPY).score(x[1, 2]), score[1, 2], rtol=1e-9)


@every_density
@on_every_backend
def test_every_backend_agrees(born, make):
    made, true, x = make(born), make(NUMPY), normals(8, 3, 2)
    here, tol = born.asarray(x), 100.0 * tolerance(born)

    def everything(density, at, backend):
        yield density.log_prob(at)
        yield density.noised(-0.7).score(at)
        yield density.sample(5, Stream(1, backend))

    got = everything(made, here, born)
    for part, want in zip(got, everything(true, x, NUMPY), strict=True):
        assert part.dtype == here.dtype
        oracle.assert_close(host(part), want, tol, "value")


@on_every_backend
def test_clean_boards_agree_on_every_backend(born):
    x = normals(8, 12, 2)
    got, want = (Checker(b).log_prob(b.asarray(x)) for b in (born, NUMPY))
    np.testing.assert_allclose(host(got), want, rtol=1e-6)
