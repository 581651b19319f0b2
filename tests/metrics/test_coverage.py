"""metrics/coverage.py."""

from itertools import combinations
from math import comb, exp, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from scratchgen.core.streams import Stream
from scratchgen.maths.planar import eight_gaussians, grid
from scratchgen.metrics.coverage import (
    Modes,
    class_opinions,
    class_score,
    coverage,
    coverages,
    mode_coverage,
)
from scratchgen.testing.monte_carlo import assert_mean, default_resolution
from scratchgen.testing.strategies import seeds

from support import NUMPY, normals, share_of_the_examples

score = pytest.mark.equation("MET-2")
counts, ks = st.integers(5, 12), st.integers(1, 4)


def brute_force(real, generated, k):
    """The four definitions, ball by ball."""

    def balls(points):
        for i, x in enumerate(points):
            others = sorted(np.linalg.norm(x - y) for j, y in enumerate(points) if j != i)
            yield x, others[k - 1]

    def inside(y, ball):
        return np.linalg.norm(y - ball[0]) <= ball[1]

    of_real, of_generated = list(balls(real)), list(balls(generated))
    hits = [[inside(y, ball) for y in generated] for ball in of_real]
    return (
        np.mean(np.any(hits, axis=0)),
        np.mean([any(inside(x, ball) for ball in of_generated) for x in real]),
        np.sum(hits) / (k * len(generated)),
        np.mean(np.any(hits, axis=1)),
    )


@given(seeds(), counts, counts, st.integers(1, 4), ks)
def test_it_is_its_definition(seed, n, m, dims, k):
    real, generated = normals(seed, n, dims), normals(seed + 1, m, dims) + 0.5
    found = coverage(real, generated, k)
    assert found == pytest.approx(brute_force(real, generated, k), rel=1e-12)
    mirrored = coverage(generated, real, k)
    assert (mirrored.recall, mirrored.precision) == (found.precision, found.recall)


@given(seeds(), counts, st.integers(1, 4), ks)
def test_the_same_set_is_covered_and_a_far_one_is_not(seed, n, dims, k):
    real = normals(seed, n, dims)
    same = coverage(real, real[::-1], k)
    assert (same.precision, same.recall, same.coverage) == (1.0, 1.0, 1.0)
    assert coverage(real, real + 1e3, k) == (0.0, 0.0, 0.0, 0.0)


@given(seeds(), counts, counts, st.integers(1, 4), st.floats(0.1, 10.0))
def test_rotation_shift_and_scale_change_nothing(seed, n, m, dims, scale):
    real, generated = normals(seed, n, dims), normals(seed + 1, m, dims) + 0.5
    axes, c = np.linalg.qr(normals(seed + 2, dims, dims))[0], normals(seed + 3, dims)
    moved = coverage(scale * (real @ axes + c), scale * (generated @ axes + c))
    assert moved == coverage(real, generated)


def test_near_points_far_from_the_origin_are_told_apart():
    """At 1e8 squares are 1e16, whose last digit is 2: only differences have any digits."""
    real = np.asarray([[0.0], [1.0], [3.0], [7.0]])
    generated = np.asarray([[-0.5], [4.5], [6.0], [20.0]])
    assert coverage(real + 1e8, generated + 1e8, 1) == coverage(real, generated, 1)


def test_repeated_points_have_balls_of_radius_zero():
    real = np.asarray([[0.0], [0.0], [1.0], [1.0]])
    found = coverage(real, np.asarray([[0.0], [0.5], [2.0], [3.0]]), 1)
    assert (found.precision, found.density, found.coverage) == (0.25, 0.5, 0.5)
    assert coverage(np.asarray([[0.0], [0.5], [2.0], [3.0]]), real, 1).recall == 0.25


def test_a_point_left_out_has_no_ball_not_even_for_its_twin():
    points = np.asarray([[0.0], [10.0], [11.0], [12.0]])
    rows = np.arange(4)[None] > 0
    found = coverages(points, points, rows, rows >= 0, 1)[0]
    assert (found.precision, found.density) == (0.75, 7.0 / 4.0)
    assert coverages(points, points, rows >= 0, rows, 1)[0].recall == 0.75


def test_the_third_neighbour_unless_told_otherwise():
    real, generated = normals(0, 12, 2), normals(1, 12, 2)
    assert coverage(real, generated) == coverage(real, generated, 3)
    assert len({coverage(real, generated, k) for k in (2, 3, 4)}) == 3


@share_of_the_examples(5)
@given(seeds(), st.integers(1, 3), st.integers(1, 3))
def test_equal_laws_have_density_one_and_a_known_coverage(seed, dims, k):
    """Whatever the law: exactly so on average over the ways to split one pool of points in two.

    A generated point is as likely as any of the n points around a real one to be among the k
    nearest: k/n. And a ball holds none if the k nearest of all n - 1 + m others are real.
    """
    n, m = 5, 4
    pool, chosen = normals(seed, n + m, dims), list(combinations(range(n + m), n))
    kept = np.asarray([[i in real for i in range(n + m)] for real in chosen])
    splits = [coverage(pool[real], pool[~real], k) for real in kept]
    assert np.mean([found.density for found in splits]) == pytest.approx(1.0, rel=1e-12)
    covered = 1.0 - comb(n - 1, k) / comb(n - 1 + m, k)
    assert np.mean([found.coverage for found in splits]) == pytest.approx(covered, rel=1e-12)


@given(seeds(), counts, counts, ks)
def test_selections_are_as_if_alone(seed, n, m, k):
    real, generated = normals(seed, n + 2, 2), normals(seed + 1, m + 2, 2)
    kept_real = np.arange(n + 2) != np.asarray([[0], [n], [1], [n + 1]])
    kept_generated = np.arange(m + 2) % (m + 1) != np.asarray([[0], [1], [m], [m + 1]])
    found = coverages(real, generated, kept_real, kept_generated, k)
    for each, a, b in zip(found, kept_real, kept_generated, strict=True):
        assert each == coverage(real[a], generated[b], k)
        assert all(type(value) is float for value in each)


def test_k_lies_below_the_number_of_points():
    few, many = normals(0, 3, 2), normals(1, 9, 2)
    coverage(few, many, 2)
    for a, b in ((few, many), (many, few)):
        with pytest.raises(ValueError, match="got k = 3 for 3 points"):
            coverage(a, b, 3)
    with pytest.raises(ValueError, match="got k = 0"):
        coverage(many, many, 0)
    with pytest.raises(ValueError, match="same features"):
        coverage(many, many[:, :1])
    with pytest.raises(ValueError, match="N ≥ 2"):
        coverage(many, many[:1])


# modes

CORNERS = np.asarray([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0], [8.0, 8.0]])


def at_modes(*counts) -> np.ndarray:
    """So many points at each of the corners, and as many as are missing from 80 far away."""
    known = np.repeat(CORNERS, counts, axis=0)
    return np.concatenate([known, np.full((80 - len(known), 2), 100.0)])


@pytest.mark.parametrize(
    ("counts", "covered"),
    [
        ((20, 20, 20, 20), 4),
        ((74, 2, 2, 2), 4),  # a fair share is 20 of 80, whether they are good or not
        ((75, 2, 2, 1), 3),
        ((76, 2, 1, 1), 2),
        ((2, 2, 2, 2), 4),
        ((1, 1, 1, 1), 0),
        ((80, 0, 0, 0), 1),
        ((0, 0, 0, 0), 0),
    ],
)
def test_a_mode_is_covered_from_a_tenth_of_its_fair_share_on(counts, covered):
    found = mode_coverage(at_modes(*counts), CORNERS, deviation=0.5)
    assert found[:3] == (covered, 4, sum(counts) / 80)


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_tenth_of_any_number_is_met_exactly(tenth, modes):
    """In floating point 0.1 · 30 is more than 3."""
    means = 10.0 * np.arange(modes)[:, None]
    for count, covered in ((tenth, modes), (tenth - 1, 0)):
        rest = np.full((modes * (10 * tenth - count), 1), -100.0)
        points = np.concatenate([np.repeat(means, count, axis=0), rest])
        assert mode_coverage(points, means, 1.0).covered == covered


@given(seeds(), st.floats(0.1, 2.0), st.floats(0.5, 4.0), st.integers(1, 4))
def test_a_point_is_good_up_to_the_radius_in_any_direction(seed, spread, radius, dims):
    step = normals(seed, 50, dims)
    step *= spread * radius / np.linalg.norm(step, axis=1, keepdims=True)
    mean = normals(seed + 1, 1, dims)
    for size, good in ((1.0 - 1e-9, 1.0), (1.0 + 1e-9, 0.0)):
        found = mode_coverage(mean + size * step, mean, spread, radius)
        assert found[:3] == (int(good), 1, good)


def column(*values) -> np.ndarray:
    """(N, 1): places on a line."""
    return np.asarray(values)[:, None]


def test_the_radius_is_three_standard_deviations_unless_told():
    points, mode = column(3.0, 3.0 + 1e-12), column(0.0)
    assert mode_coverage(points, mode, 1.0)[:3] == (1, 1, 0.5)
    assert mode_coverage(points, mode, 1.0, radius=4.0).high_quality == 1.0
    assert mode_coverage(2.0 * points, mode, 2.0).high_quality == 0.5


def test_a_point_between_modes_counts_once_for_the_first():
    between = column(*30 * [1.0])
    for means in (column(0.0, 2.0, 50.0), column(2.0, 0.0, 50.0), column(50.0, 0.0, 2.0)):
        assert mode_coverage(between, means, 1.0) == Modes(1, 3, 1.0, 0.0)
    for nearer, covered in ((1, 1), (3, 2)):  # of 30 points, where a tenth of a share is 1.5
        between[-nearer:] = 1.0 + 1e-9
        assert mode_coverage(between, column(0.0, 2.0), 1.0)[:3] == (covered, 2, 1.0)


@given(seeds(), st.integers(1, 3), st.integers(1, 6), st.floats(0.1, 10.0))
def test_order_rotation_shift_and_scale_leave_modes_as_they_are(seed, dims, modes, scale):
    means, points = 2.0 * normals(seed, modes, dims), 2.0 * normals(seed + 1, 60, dims)
    found = mode_coverage(points, means, 0.4)
    stream = Stream(seed, NUMPY)
    rows, places = stream.at("rows").permutation(60), stream.at("places").permutation(modes)
    axes, c = np.linalg.qr(normals(seed + 2, dims, dims))[0], normals(seed + 3, dims)
    moved = (scale * (x @ axes + c) for x in (points, means))
    for same in (
        mode_coverage(points[rows], means[places], 0.4),
        mode_coverage(*moved, 0.4 * scale),
    ):
        assert same[:3] == found[:3]
        assert same.relative_spread == pytest.approx(found.relative_spread, rel=1e-9, abs=1e-12)
    assert mode_coverage(points.astype(np.float32), means, 0.4).modes == modes


@share_of_the_examples(5)
@given(seeds())
@pytest.mark.parametrize(
    ("world", "modes", "spread"), [(eight_gaussians, 8, 0.02**0.5), (grid, 25, 0.1)]
)
def test_a_real_sample_covers_every_mode_and_all_but_one_in_ninety_is_good(
    world, modes, spread, seed
):
    """P(‖ε‖ > 3) = e^(-9/2) in the plane; wrong at most once in 10⁹ samples of a mixture.

    Points that lie beyond 3 standard deviations of their own mode and near another are rarer than
    that: the modes are 10 apart.
    """
    law, n = world(NUMPY), 4000
    found = mode_coverage(law.sample(n, Stream(seed, NUMPY).at("x")), law.means, spread)
    assert (found.covered, found.modes) == (modes, modes)
    good, p = round(found.high_quality * n), 1.0 - exp(-4.5)
    assert p == pytest.approx(0.989, abs=5e-4)
    assert binom.ppf(5e-10, n, p) <= good <= binom.isf(5e-10, n, p)


@given(seeds(), st.integers(1, 3), st.floats(0.1, 2.0), st.floats(0.0, 1.0), st.floats(0.0, 0.3))
def test_the_spread_is_the_scale_of_steps_from_a_common_centre(seed, dims, spread, scale, off):
    """Centres may lie off the modes; steps have mean 0 and unit mean square along an axis."""
    means = 100.0 * np.arange(3 * dims, dtype=np.float64).reshape(3, dims)
    step = normals(seed, 20, dims)
    step *= np.sqrt(dims) / np.linalg.norm(step, axis=1, keepdims=True)  # of length below 3
    step = np.tile(np.concatenate([step, -step]), (3, 1))
    points = np.repeat(means + off * spread, 40, axis=0) + spread * scale * step
    near = pytest.approx(scale, rel=1e-9, abs=1e-9)
    assert mode_coverage(points, means, spread).relative_spread == near
    far = np.full((7, dims), -50.0)
    with_far = np.concatenate([points, far])
    assert mode_coverage(with_far, means, spread).relative_spread == near
    assert mode_coverage(far, means, spread).relative_spread == 0.0


@share_of_the_examples(5)
@given(seeds(), st.floats(0.5, 4.0))
def test_the_spread_of_normals_in_the_plane_lacks_their_tail(seed, radius):
    tail = exp(-0.5 * radius**2)
    want = 1.0 - 0.5 * radius**2 * tail / (1.0 - tail)

    def excess(n, look):  # of the points within the radius; the others count 0
        x = Stream(seed, NUMPY).at("x", look).normal((n, 2))
        squares = (x * x).sum(axis=1)
        return np.where(squares <= radius**2, 0.5 * squares - want, 0.0)

    assert_mean(excess, 0.0, default_resolution(0.0, spread=want * (1.0 - tail)))
    x = Stream(seed, NUMPY).at("x", 0).normal((1000, 2))
    inside = x[np.hypot(*x.T) <= radius]
    squared = want + excess(1000, 0).sum() / len(inside) - 0.5 * np.square(inside.mean(0)).sum()
    found = mode_coverage(x, np.zeros((1, 2)), 1.0, radius)
    assert found.relative_spread == pytest.approx(sqrt(squared))


def test_what_modes_cannot_be_counted_of_is_refused():
    x = normals(0, 4, 2)
    for points, means in ((x, x[0]), (x[0], x), (x, x[:, :1]), (x[:0], x), (x, x[:0])):
        with pytest.raises(ValueError, match="need points .N, D. and means .K, D., got"):
            mode_coverage(points, means, 1.0)
    for deviation, radius in ((0.0, 3.0), (-1.0, 3.0), (1.0, 0.0), (float("nan"), 3.0)):
        with pytest.raises(ValueError, match="deviation and radius must be positive"):
            mode_coverage(x, x, deviation, radius)


# what a classifier says


@given(seeds(), st.integers(1, 20), st.integers(1, 6), st.floats(0.0, 20.0))
def test_opinions_are_counted_image_by_image(seed, n, classes, sharpness):
    log_p = log_softmax(sharpness * normals(seed, n, classes))
    found = class_opinions(log_p)
    largest = [max(row) for row in np.exp(log_p).tolist()]
    assert found.confidence == pytest.approx(sum(largest) / n, rel=1e-12)
    likeliest = [row.index(max(row)) for row in log_p.tolist()]
    np.testing.assert_array_equal(found.shares, [likeliest.count(k) / n for k in range(classes)])
    assert 1.0 / classes - 1e-12 <= found.confidence <= 1.0 + 1e-12


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@score
@given(seeds(), st.integers(2, 20), st.integers(1, 6), st.floats(0.0, 20.0))
def test_the_class_score_is_its_definition_within_its_bounds(seed, n, classes, sharpness):
    log_p = log_softmax(sharpness * normals(seed, n, classes))
    marginal = np.exp(log_p).mean(axis=0)
    divergences = np.sum(np.exp(log_p) * (log_p - np.log(marginal)), axis=1)
    found, deviation = class_score(log_p, splits=1)
    assert found == pytest.approx(np.exp(divergences.mean()), rel=1e-10)
    assert 1.0 - 1e-12 <= found <= classes + 1e-12
    assert deviation == 0.0


@score
@pytest.mark.parametrize("classes", [1, 2, 10])
def test_sure_of_every_class_scores_the_number_of_classes(classes):
    with np.errstate(divide="ignore"):
        log_p = np.log(np.tile(np.eye(classes), (20, 1)))
    assert class_score(log_p) == pytest.approx((classes, 0.0), rel=1e-12)


@score
@given(seeds(), st.integers(10, 40))
def test_the_same_answer_for_all_scores_one(seed, n):
    log_p = np.tile(log_softmax(normals(seed, 5)), (n, 1))
    assert class_score(log_p) == pytest.approx((1.0, 0.0), rel=1e-12, abs=1e-12)


@score
def test_two_answers_by_hand():
    """(0.9, 0.1) and (0.2, 0.8): their mean is (0.55, 0.45)."""
    log_p = np.log(np.asarray([[0.9, 0.1], [0.2, 0.8]]))
    entropies = [-(p * np.log(p) + (1 - p) * np.log(1 - p)) for p in (0.55, 0.9, 0.8)]
    want = np.exp(entropies[0] - 0.5 * (entropies[1] + entropies[2]))
    assert class_score(log_p, splits=1)[0] == pytest.approx(want, rel=1e-12)


@score
@given(seeds(), st.integers(2, 30), st.data())
def test_each_part_has_a_marginal_of_its_own(seed, n, data):
    splits = data.draw(st.integers(1, n))
    log_p = log_softmax(3.0 * normals(seed, n, 4))
    parts = [class_score(part, splits=1)[0] for part in np.array_split(log_p, splits)]
    want = (np.mean(parts), np.std(parts))
    assert class_score(log_p, splits) == pytest.approx(want, rel=1e-10, abs=1e-12)
    single = class_score(log_p.astype(np.float32), splits)
    assert single == pytest.approx(want, rel=1e-4, abs=1e-5)


def test_ten_parts_unless_told_otherwise():
    log_p = log_softmax(normals(0, 40, 3))
    assert class_score(log_p) == class_score(log_p, splits=10)


def test_the_class_score_takes_log_probabilities():
    log_p = log_softmax(normals(0, 12, 3))
    for splits in (0, 13):
        with pytest.raises(ValueError, match=f"N ≥ splits ≥ 1, got 12 samples and {splits}"):
            class_score(log_p, splits)
    with pytest.raises(ValueError, match="must be .N, K."):
        class_score(log_p[0], 1)
    with pytest.raises(ValueError, match="take log_softmax"):
        class_score(log_p + 0.01)
    class_score(log_p + 1e-5)
