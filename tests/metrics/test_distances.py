"""metrics/distances.py."""

from itertools import product
from math import exp, gamma, lgamma, pi, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance

from scratchgen.core.arrays import Backend
from scratchgen.core.streams import Stream
from scratchgen.metrics import distances
from scratchgen.metrics.distances import (
    frechet_distance,
    frechet_from_moments,
    kernel_distance,
    normal_moments,
    sample_moments,
    sliced_wasserstein,
)
from scratchgen.testing.monte_carlo import assert_mean
from scratchgen.testing.strategies import seeds

from support import NUMPY, PILOT, noise, normals, share_of_the_examples

trap = pytest.mark.equation("TRAP-4")
frechet = pytest.mark.equation("MET-1")
sizes = st.integers(2, 12)


def rotation(seed, dims):
    return np.linalg.qr(normals(seed, dims, dims))[0]


def with_moments(seed, n, mean, root):
    """A sample of exactly this mean and of covariance root² (root symmetric, n > F)."""
    x = normals(seed, n, len(mean))
    white = np.linalg.qr(x - x.mean(axis=0))[0] * sqrt(n - 1.0)
    return white @ root + mean


def symmetric(eigenvalues, axes):
    return axes @ np.diag(eigenvalues) @ axes.T


# Fréchet distance


@frechet
@given(seeds(), st.integers(1, 6))
def test_commuting_covariances(seed, dims):
    """‖Δm‖² + Σ (√s_1 - √s_2)², of samples that have exactly these moments."""
    axes, means = rotation(seed, dims), normals(seed + 1, 2, dims)
    deviations = np.exp(normals(seed + 2, 2, dims))
    roots = [symmetric(d, axes) for d in deviations]
    a = with_moments(seed + 3, dims + 5, means[0], roots[0])
    b = with_moments(seed + 4, dims + 9, means[1], roots[1])
    want = np.sum((means[0] - means[1]) ** 2) + np.sum((deviations[0] - deviations[1]) ** 2)
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-10)
    p, q = (normal_moments(m, r @ r) for m, r in zip(means, roots, strict=True))
    assert frechet_from_moments(p, q) == pytest.approx(want, rel=1e-10)
    assert frechet_from_moments(sample_moments(a), q) == pytest.approx(want, rel=1e-10)


@frechet
@given(seeds(), sizes, st.integers(1, 6))
def test_a_shift_and_a_doubling(seed, n, dims):
    """Shifted by c: ‖c‖². Twice as wide around the same mean, S_2 = 4 S_1: tr S_1."""
    a, c = normals(seed, n, dims), normals(seed + 1, dims)
    assert frechet_distance(a, a + c) == pytest.approx(np.sum(c * c), rel=1e-10)
    mean = a.mean(axis=0)
    trace = np.sum(np.var(a, axis=0, ddof=1))
    assert frechet_distance(a, 2.0 * a - mean) == pytest.approx(trace, rel=1e-10)


@frechet
@given(seeds(), st.integers(1, 5))
def test_it_is_the_definition_with_a_matrix_square_root(seed, dims):
    a = normals(seed, 12 * dims + 5, dims) @ (np.eye(dims) + 0.3 * normals(seed + 1, dims, dims))
    b = normals(seed + 2, 10 * dims + 9, dims) + 0.3
    s1, s2 = (np.cov(x, rowvar=False).reshape(dims, dims) for x in (a, b))
    gap = a.mean(axis=0) - b.mean(axis=0)
    want = gap @ gap + np.trace(s1 + s2 - 2.0 * np.real(sqrtm(s1 @ s2)))
    assert frechet_distance(a, b) == pytest.approx(want, rel=1e-7)
    assert frechet_distance(b, a) == pytest.approx(want, rel=1e-7)


@frechet
@given(seeds(), sizes, sizes, st.integers(1, 20))
def test_it_is_the_nuclear_norm_also_of_singular_covariances(seed, n, m, dims):
    a, b = normals(seed, n, dims), normals(seed + 1, m, dims)
    p, q = sample_moments(a), sample_moments(b)
    traces = np.sum(p.factor**2) + np.sum(q.factor**2)
    nuclear = np.sum(np.linalg.svd(p.factor @ q.factor.T, compute_uv=False))
    want = np.sum((p.mean - q.mean) ** 2) + traces - 2.0 * nuclear
    got = frechet_distance(a, b)
    assert got >= 0.0
    assert got == pytest.approx(want, rel=1e-9, abs=1e-12)
    assert got == pytest.approx(frechet_distance(b, a), rel=1e-9)


@frechet
@pytest.mark.parametrize(("n", "dims"), [(50, 128), (200, 64), (2, 3), (40, 1)])
def test_a_permuted_copy_is_at_distance_nothing(n, dims):
    a = 10.0 * normals(n, n, dims) + 100.0
    got = frechet_distance(a, a[Stream(0, NUMPY).permutation(n)])
    assert 0.0 <= got < 1e-20 * n * dims


@frechet
@given(seeds(), sizes, st.integers(1, 6), st.floats(0.1, 10.0))
def test_rotation_and_shift_change_nothing_and_scale_does(seed, n, dims, scale):
    a, b = normals(seed, n, dims), 2.0 * normals(seed + 1, n + 1, dims) + 0.5
    before, axes, c = frechet_distance(a, b), rotation(seed, dims), normals(seed + 2, dims)
    moved = frechet_distance(scale * (a @ axes + c), scale * (b @ axes + c))
    assert moved == pytest.approx(scale**2 * before, rel=1e-9)


@frechet
def test_moments_of_a_sample():
    a = normals(0, 30, 4) + 2.0
    moments = sample_moments(a.astype(np.float32))
    np.testing.assert_allclose(moments.mean, a.mean(axis=0), rtol=1e-6)
    got = moments.factor.T @ moments.factor
    np.testing.assert_allclose(got, np.cov(a, rowvar=False), rtol=1e-5, atol=1e-6)


@frechet
@trap
@pytest.mark.parametrize("n", [3, 4, 10, 100])
def test_the_bias_in_one_dimension_is_exact(n):
    """1/n + 2 - 2 E s, with E s the mean of a standard deviation of n draws of N(0, 1).

    The distance depends on a sample's mean, N(0, 1/n), and on its deviation s, χ_{n-1}/√(n-1), so
    its mean is a quadrature over both, of samples that have them.
    """
    law, freedom = normal_moments([0.0], [[1.0]]), n - 1
    standard = normals(n, n, 1)
    standard = (standard - standard.mean()) / standard.std(ddof=1)
    means, mean_weights = np.polynomial.hermite_e.hermegauss(4)
    nodes, widths = np.polynomial.legendre.leggauss(60)
    deviations = 0.5 * (nodes + 1.0) * (sqrt(freedom) + 8.0) / sqrt(freedom)
    log_density = freedom * np.log(deviations) - 0.5 * freedom * deviations**2
    weights = widths * np.exp(log_density - log_density.max()) / deviations
    joint = np.outer(mean_weights / mean_weights.sum(), weights / weights.sum())
    found = [
        [frechet_from_moments(sample_moments(m / sqrt(n) + s * standard), law) for s in deviations]
        for m in means
    ]
    mean_deviation = sqrt(2.0 / freedom) * exp(lgamma(n / 2.0) - lgamma(freedom / 2.0))
    exact = 1.0 / n + 2.0 - 2.0 * mean_deviation
    assert np.sum(joint * found) == pytest.approx(exact, rel=1e-8)
    assert n < 100 or exact * n == pytest.approx(1.5, rel=0.01)


@frechet
@trap
@pytest.mark.parametrize(("n", "dims"), [(50, 4), (100, 4), (100, 8)])
def test_the_bias_falls_with_n(n, dims):
    """n E = D + D(D+1)/4 + O(1/n).

    The next term, from tr(S + I - 2 S^{1/2}) = tr(E²/4 - E³/8 + 5E⁴/64 - ...) with S = I + E and
    Wishart's moments, is a hundredth of it here; with it the simulation agrees to more digits.
    """
    law, first, f = normal_moments(np.zeros(dims), np.eye(dims)), dims * (dims + 1) / 4.0, n - 1.0
    third, fourth = (
        dims * (dims**2 + 3 * dims + 4) / 8.0,
        5 * (2 * dims**3 + 5 * dims**2 + 5 * dims),
    )
    theory = dims / n + first / f + (fourth / 64.0 - third) / f**2
    assert n * theory == pytest.approx(dims + first, rel=0.02)

    def draw(count, look):
        found, controls = np.empty(count), np.empty((count, 2))
        for i, x in enumerate(noise(dims, look, count, n, dims)):
            moments = sample_moments(x)
            excess = moments.factor.T @ moments.factor - np.eye(dims)
            found[i] = frechet_from_moments(moments, law)
            controls[i] = (
                moments.mean @ moments.mean - dims / n,
                np.sum(excess**2) - 4.0 * first / f,
            )
        return found, controls

    assert_mean(draw, theory, 0.015 * theory, first=4096)


@trap
def test_samples_of_one_law_do_not_compare_across_sizes():
    """A set of 100 looks four times as far from the law as a set of 400."""
    pool = normals(0, 40_000, 8)
    law = normal_moments(np.zeros(8), np.eye(8))
    few, many = (
        np.mean([frechet_from_moments(sample_moments(x), law) for x in pool.reshape(-1, n, 8)])
        for n in (100, 400)
    )
    assert few / many == pytest.approx(4.0, rel=0.1)


def test_a_covariance_has_no_negative_eigenvalue_beyond_rounding():
    with pytest.raises(ValueError, match="no negative eigenvalue, got -1"):
        normal_moments([0.0, 0.0], [[1.0, 0.0], [0.0, -1.0]])
    for scale in (1e-6, 1e8):
        normal_moments([0.0, 0.0], np.diag([scale, -1e-12 * scale]))
        with pytest.raises(ValueError, match="no negative eigenvalue"):
            normal_moments([0.0, 0.0], np.diag([scale, -1e-9 * scale]))
    singular = np.ones((2, 2), dtype=np.float32)
    found = normal_moments(np.zeros(2, dtype=np.float32), singular)
    assert (found.mean.dtype, found.factor.dtype) == (np.float64, np.float64)
    np.testing.assert_allclose(found.factor.T @ found.factor, singular, atol=1e-12)


@pytest.mark.parametrize(
    "covariance",
    [
        [[1.0, 5.0], [0.0, 1.0]],
        [[1.0, 0.0], [5.0, 1.0]],
        [[100.0, 50.0], [50.001005, 100.0]],
        [[np.nan, 0.0], [0.0, 1.0]],
        [[np.inf, 0.0], [0.0, 1.0]],
    ],
)
def test_a_covariance_is_symmetric_and_finite(covariance):
    with pytest.raises(ValueError, match="must be finite, and the covariance symmetric"):
        normal_moments([0.0, 0.0], covariance)
    normal_moments([0.0, 0.0], [[100.0, 50.0], [50.000995, 100.0]])


@pytest.mark.parametrize(
    ("mean", "covariance"),
    [
        ([0.0], np.eye(3)),
        ([[0.0, 0.0, 0.0]], np.eye(3)),
        (0.0, np.eye(1)),
        ([0.0], [1.0]),
        ([0.0, 0.0], np.ones((2, 3))),
    ],
)
def test_a_law_has_a_mean_and_a_covariance_on_the_same_features(mean, covariance):
    with pytest.raises(ValueError, match=r"mean \(F,\) and a covariance \(F, F\), got"):
        normal_moments(mean, covariance)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_mean_is_finite(wrong):
    with pytest.raises(ValueError, match="must be finite, and the covariance symmetric"):
        normal_moments([0.0, wrong], np.eye(2))


# kernel distance


def cubic(a, b):
    return (a @ b.T / a.shape[1] + 1.0) ** 3


def moments_distance(p, q):
    """E k(x, x') + E k(y, y') - 2 E k(x, y) of two laws with raw moments E x, E x⊗x, E x⊗x⊗x.

    (x·y/F + 1)³ = Σ_r binom(3, r) (x·y/F)^r, and E (x·y)^r = ⟨E x^⊗r, E y^⊗r⟩.
    """
    dims = len(p[0])
    squares = [np.sum((a - b) ** 2) for a, b in zip(p, q, strict=True)]
    return 3.0 * squares[0] / dims + 3.0 * squares[1] / dims**2 + squares[2] / dims**3


def discrete_moments(p, x):
    """Of a law on finitely many points x (N, F) with probabilities p (N,)."""
    forms = ("n,ni->i", "n,ni,nj->ij", "n,ni,nj,nk->ijk")
    return [np.einsum(form, p, *[x] * r) for r, form in enumerate(forms, start=1)]


def normal_moments_of(dims, scale, shift):
    """Of N(shift·1, scale² I)."""
    mean, variance = np.full(dims, shift), scale**2 * np.eye(dims)
    mixed = np.einsum("i,jk->ijk", mean, variance)
    third = np.einsum("i,j,k->ijk", mean, mean, mean)
    third += mixed + np.einsum("jik->ijk", mixed) + np.einsum("kij->ijk", mixed)
    return mean, np.multiply.outer(mean, mean) + variance, third


@given(seeds(), st.integers(4, 9), st.integers(4, 9), st.integers(1, 4))
def test_the_kernel_distance_is_its_definition(seed, n, m, dims):
    a, b = normals(seed, n, dims), normals(seed + 1, m, dims) + 0.3
    within = [
        np.mean([cubic(x[[i]], x[[j]]) for i in range(len(x)) for j in range(len(x)) if i != j])
        for x in (a, b)
    ]
    want = sum(within) - 2.0 * cubic(a, b).mean()
    value, error = kernel_distance(a, b)
    assert value == pytest.approx(want, rel=1e-9, abs=1e-10)
    swapped = kernel_distance(b[::-1], a)
    assert swapped == pytest.approx((value, error), rel=1e-9, abs=1e-10)
    axes = rotation(seed, dims)
    assert kernel_distance(a @ axes, b @ axes) == pytest.approx((value, error), rel=1e-7, abs=1e-9)


def centred(kernel):
    """Without the means of rows and columns; of a matrix with no diagonal, as Székely and Rizzo."""
    own = kernel.shape[0] == kernel.shape[1] and not np.diag(kernel).any()
    n, m = (size - 2 * own for size in kernel.shape)
    rows, columns = kernel.sum(axis=1, keepdims=True) / m, kernel.sum(axis=0, keepdims=True) / n
    whole = kernel.sum() / ((n + own) * m)
    return (kernel - rows - columns + whole) * (1.0 - own * np.eye(*kernel.shape))


@given(seeds(), st.integers(4, 9), st.integers(4, 9), st.floats(0.0, 1.0))
def test_the_standard_error_is_the_jackknife_less_what_that_counts_twice(seed, n, m, shift):
    a, b = 0.2 * normals(seed, n, 3), 0.2 * normals(seed + 1, m, 3) + shift
    aa, bb = (cubic(x, x) * (1.0 - np.eye(len(x))) for x in (a, b))
    ab = cubic(a, b)
    first = sum(
        4.0 * np.var(within.sum(axis=1) / (len(within) - 1) - between, ddof=1) / len(within)
        for within, between in ((aa, ab.mean(axis=1)), (bb, ab.mean(axis=0)))
    )
    parts = [np.sum(centred(kernel) ** 2) for kernel in (aa, bb, ab)]
    second = 2.0 * parts[0] / (n * (n - 3)) / (n * (n - 1))
    second += 2.0 * parts[1] / (m * (m - 3)) / (m * (m - 1))
    second += 4.0 * parts[2] / ((n - 1) * (m - 1)) / (n * m)
    want = np.sqrt(max(first - second, 0.5 * second))
    assert kernel_distance(a, b)[1] == pytest.approx(want, rel=1e-6, abs=1e-12)


@share_of_the_examples(10)
@given(seeds())
def test_the_second_order_of_the_variance_is_unbiased_exactly(seed):
    """Σ Ã²/(n(n-3)) over all samples of 4 from a law on three points, against its definition."""
    p, points = np.asarray([0.2, 0.3, 0.5]), normals(seed, 3, 2)
    kernel = cubic(points, points)
    towards = kernel @ p
    rest = kernel - towards - towards[:, None] + p @ towards
    mean = 0.0
    for drawn in map(np.asarray, product([0, 1, 2], repeat=4)):
        sampled = kernel[drawn][:, drawn] * (1.0 - np.eye(4))
        mean += np.prod(p[drawn]) * np.sum(centred(sampled) ** 2) / 4.0
    assert mean == pytest.approx(p @ rest**2 @ p, rel=1e-9)


@pytest.mark.parametrize("block", [1, 3, 4])
def test_blocks_of_the_kernel_matrix_leave_nothing_out(block, monkeypatch):
    a, b = normals(0, 7, 2), normals(1, 5, 2)
    whole = kernel_distance(a, b)
    monkeypatch.setattr(distances, "BLOCK", block)
    assert kernel_distance(a, b) == pytest.approx(whole, rel=1e-12)


@share_of_the_examples(10)
@given(seeds(), st.booleans())
def test_the_kernel_distance_is_unbiased_exactly(seed, equal):
    """Its mean over every pair of samples of 4 from laws on two points, each with its weight."""
    points = normals(seed, 2, 2, 2)
    p = np.asarray([0.3, 0.7])
    x, y = points[0], points[0] if equal else points[1]
    q = p if equal else np.asarray([0.6, 0.4])
    want = moments_distance(discrete_moments(p, x), discrete_moments(q, y))
    mean = 0.0
    for drawn in product([0, 1], repeat=8):
        first, second = np.asarray(drawn[:4]), np.asarray(drawn[4:])
        weight = np.prod(p[first]) * np.prod(q[second])
        mean += weight * kernel_distance(x[first], y[second])[0]
    assert mean == pytest.approx(want, rel=1e-9, abs=1e-9)


def kernel_draws(n, m, dims, scale, shift):
    """(count, look) -> values and standard errors of samples of N(0, I) and N(shift, scale²)."""

    def draw(count, look):
        a = noise(2, look, count, n, dims)
        b = scale * noise(3, look, count, m, dims) + shift
        return np.asarray([kernel_distance(*pair) for pair in zip(a, b, strict=True)])

    return draw


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.2, 0.2)])
def test_the_kernel_distance_is_right_on_average(scale, shift):
    draws = kernel_draws(16, 20, 16, scale, shift)
    spread = np.std(draws(500, PILOT)[:, 0])
    want = moments_distance(normal_moments_of(16, 1.0, 0.0), normal_moments_of(16, scale, shift))
    assert_mean(lambda n, look: draws(n, look)[:, 0], want, 0.15 * spread, first=4096, growth=2)


@pytest.mark.parametrize(
    ("n", "m", "dims", "scale", "shift"),
    [
        (50, 50, 2, 1.0, 0.0),
        (60, 60, 16, 1.0, 0.0),
        (30, 120, 16, 1.0, 0.0),
        (60, 60, 16, 1.0, 0.2),
        (60, 40, 16, 1.3, 0.0),
        (60, 40, 16, 1.0, 0.5),
    ],
)
def test_the_standard_error_of_the_kernel_distance_is_calibrated(n, m, dims, scale, shift):
    """From equal laws, where its second order is all there is, to laws far apart."""
    values, errors = kernel_draws(n, m, dims, scale, shift)(600, 0).T
    assert errors.mean() == pytest.approx(values.std(), rel=0.15)


# sliced Wasserstein distance


def directions(seed, count, dims):
    u = Stream(seed, NUMPY).normal((count, dims))
    return u / np.sqrt(np.sum(u * u, axis=1, keepdims=True))


@given(seeds(), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 70))
def test_each_direction_is_scipys_distance(seed, n, m, dims, count):
    a, b = np.round(normals(seed, n, dims), 1), 2.0 * normals(seed + 1, m, dims)
    want = [wasserstein_distance(a @ u, b @ u) for u in directions(seed, count, dims)]
    got = sliced_wasserstein(a, b, Stream(seed, NUMPY), count)
    assert got == pytest.approx(np.mean(want), rel=1e-10)


@given(seeds(), st.integers(1, 9), st.integers(1, 4), st.floats(0.1, 10.0))
def test_a_shift_is_seen_along_each_direction(seed, n, dims, scale):
    a, c = normals(seed, n, dims), normals(seed + 1, dims)
    stream, along = Stream(seed, NUMPY), np.abs(directions(seed, 128, dims) @ c)
    got = sliced_wasserstein(scale * a, scale * (a[::-1] + c), stream)
    assert got == pytest.approx(scale * along.mean(), rel=1e-10)


@given(seeds(), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_it_is_a_distance(seed, n, m, dims):
    a, b, c = normals(seed, n, dims), normals(seed + 1, m, dims), normals(seed + 2, n, dims)

    def distance(x, y):
        return sliced_wasserstein(x, y, Stream(seed, NUMPY), 8)

    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-12)
    assert distance(a, b) <= distance(a, c) + distance(c, b) + 1e-12
    assert distance(a, a[::-1]) == 0.0
    assert distance(a, np.concatenate([a, a])) < 1e-15  # projected by another product


def test_directions_are_uniform():
    """E |<u, c>| = ‖c‖ Γ(F/2)/(√π Γ((F+1)/2)) over the sphere."""
    c = np.asarray([[3.0, 0.0, 4.0]])
    want = 5.0 * gamma(1.5) / (sqrt(pi) * gamma(2.0))

    def draw(n, look):
        stream = Stream(7, NUMPY).at(look)
        return np.asarray(
            [sliced_wasserstein(0.0 * c, c, stream.at(i), directions=1) for i in range(n)]
        )

    assert_mean(draw, want, 0.1 * want, first=4096)


def test_directions_come_from_the_stream_and_stay_in_float64():
    a, b = normals(0, 20, 3), normals(1, 20, 3)
    stream = Stream(0, NUMPY)
    assert sliced_wasserstein(a, b, stream) == sliced_wasserstein(a, b, stream)
    assert sliced_wasserstein(a, b, stream) != sliced_wasserstein(a, b, stream.at("other"))
    single = sliced_wasserstein(a, b, Stream(0, Backend(np, "float32")))
    assert single == pytest.approx(sliced_wasserstein(a, b, stream), rel=1e-6)


# what all need


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance])
def test_features_are_matrices_of_finite_numbers(measure):
    good = normals(0, 8, 3)
    with pytest.raises(ValueError, match=r"N ≥ \d, got shape \(8, 3, 1\); flatten"):
        measure(good[:, :, None], good)
    with pytest.raises(ValueError, match=r"got shape \(1, 3\)"):
        measure(good, good[:1])
    with pytest.raises(ValueError, match=r"got shape \(8, 0\)"):
        measure(good, good[:, :0])
    with pytest.raises(ValueError, match="same features, got 3 and 2 a row"):
        measure(good, good[:, :2])
    with pytest.raises(ValueError, match="not finite"):
        measure(good, good * np.inf)


def test_the_smallest_samples_there_may_be():
    a = normals(0, 4, 2)
    kernel_distance(a, a + 1.0)
    with pytest.raises(ValueError, match="N ≥ 4"):
        kernel_distance(a[:3], a)
    frechet_distance(a[:2], a[2:])
    with pytest.raises(ValueError, match="N ≥ 2"):
        sample_moments(a[:1])
    stream = Stream(0, NUMPY)
    assert sliced_wasserstein(a[:1], a[:1] + 1.0, stream) > 0.0
    with pytest.raises(ValueError, match="N ≥ 1"):
        sliced_wasserstein(a[:0], a, stream)
    with pytest.raises(ValueError, match="at least one direction, got 0"):
        sliced_wasserstein(a, a, stream, directions=0)
