"""maths/gaussian.py against scipy, conditioning identities and simulation."""

from re import escape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from scratchgen.maths.distributions import normal_kl, normal_nll
from scratchgen.maths.gaussian import Gaussian, cholesky
from scratchgen.testing.strategies import seeds, sizes

from support import host, normals, on_every_backend, tolerance


def random_gaussian(seed, dims):
    root = normals(seed, dims, dims + 1)
    return Gaussian(normals(seed + 1, dims), root @ root.T + 0.1 * np.eye(dims))


@pytest.mark.equation("VAE-7")
@given(seeds(), sizes(4))
def test_log_density_and_entropy_are_those_of_scipy(seed, dims):
    law = random_gaussian(seed, dims)
    want = multivariate_normal(law.mean, law.covariance)
    x = normals(seed + 2, 2, 3, dims)
    np.testing.assert_allclose(law.log_prob(x), want.logpdf(x).reshape(2, 3), rtol=1e-9)
    assert law.entropy() == pytest.approx(want.entropy(), rel=1e-10)
    assert law.log_det == pytest.approx(np.linalg.slogdet(law.covariance)[1], abs=1e-10)


@pytest.mark.equation("SCORE-1")
@given(seeds(), sizes(4))
def test_score_is_the_gradient_of_the_log_density(seed, dims):
    law, x = random_gaussian(seed, dims), normals(seed + 2, 5, dims)
    step = 1e-5
    numeric = [
        (law.log_prob(x + step * e) - law.log_prob(x - step * e)) / (2.0 * step)
        for e in np.eye(dims)
    ]
    np.testing.assert_allclose(law.score(x), np.stack(numeric, axis=-1), rtol=1e-4, atol=1e-4)


@pytest.mark.equation("VAE-5")
@given(seeds(), sizes(4))
def test_kl_of_diagonal_laws_is_the_sum_of_the_scalar_ones(seed, dims):
    means = normals(seed, 2, dims)
    logvars = normals(seed + 1, 2, dims)
    p, q = (Gaussian(m, np.diag(np.exp(v))) for m, v in zip(means, logvars, strict=True))
    want = normal_kl(means[0], logvars[0], means[1], logvars[1])[0].sum()
    assert p.kl(q) == pytest.approx(want, rel=1e-9, abs=1e-12)
    x = normals(seed + 2, 3, dims)
    each = normal_nll(x, means[0] + 0.0 * x, logvars[0] + 0.0 * x)[0].sum(axis=-1)
    np.testing.assert_allclose(p.log_prob(x), -each, rtol=1e-10)


@pytest.mark.equation("VAE-5")
@given(seeds(), sizes(3))
def test_kl_does_not_depend_on_the_coordinates(seed, dims):
    """An invertible affine map of both laws changes nothing."""
    p, q = random_gaussian(seed, dims), random_gaussian(seed + 9, dims)
    matrix, offset = normals(seed + 5, dims, dims) + 3.0 * np.eye(dims), normals(seed + 6, dims)
    nothing = np.zeros((dims, dims))
    mapped = [law.affine(matrix, offset, nothing) for law in (p, q)]
    assert mapped[0].kl(mapped[1]) == pytest.approx(p.kl(q), rel=1e-6, abs=1e-9)
    assert p.kl(p) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.equation("ELBO-1")
@given(seeds(), st.integers(2, 5))
def test_joint_is_marginal_times_conditional(seed, dims):
    """log p(a, b) = log p(b) + log p(a | b), for any split and order of the coordinates."""
    law, v = random_gaussian(seed, dims), normals(seed + 2, dims)
    order = [int(i) for i in np.argsort(normals(seed + 3, dims))]
    known = order[: max(1, dims // 2)]
    rest = sorted(set(range(dims)) - set(known))
    conditional = law.conditional(known, v[known])
    total = law.marginal(known).log_prob(v[known]) + conditional.log_prob(v[rest])
    assert float(total) == pytest.approx(float(law.log_prob(v)), rel=1e-8, abs=1e-8)


@pytest.mark.equation("ELBO-1")
@given(seeds(), sizes(4))
def test_given_nothing_a_law_is_itself(seed, dims):
    law = random_gaussian(seed, dims)
    same = law.conditional([], np.zeros(0))
    np.testing.assert_array_equal(same.mean, law.mean)
    np.testing.assert_array_equal(same.covariance, law.covariance)


@pytest.mark.parametrize("chosen", [[-1], [3], [0, 0], [0, 3]])
def test_coordinates_are_there_and_named_once(chosen):
    law = random_gaussian(1, 3)
    for use in (law.marginal, lambda known: law.conditional(known, np.zeros(len(known)))):
        with pytest.raises(ValueError, match=r"each once and in 0\.\.2, got \[" + str(chosen[0])):
            use(chosen)


def test_a_law_keeps_a_coordinate():
    law = random_gaussian(1, 2)
    with pytest.raises(ValueError, match="at least one coordinate"):
        law.marginal([])
    with pytest.raises(ValueError, match=r"that is not known, got \[1, 0\]"):
        law.conditional([1, 0], np.zeros(2))
    assert law.marginal([1, 0]).mean.tolist() == law.mean[::-1].tolist()


@pytest.mark.parametrize(
    "covariance",
    [
        [[1.0, 2.0], [2.0, 1.0]],
        [[1.0, 0.5], [0.0, 1.0]],
        [[1.0, 0.9], [-0.9, 1.0]],
        [[100.0, 50.0], [50.001005, 100.0]],
        [[np.nan, 0.0], [0.0, 1.0]],
        [[1.0, 0.0], [0.0, 0.0]],
    ],
)
@on_every_backend
def test_covariances_are_symmetric_and_positive_definite(born, covariance):
    """Each of a stack on its own: a large one beside it excuses nothing."""
    with pytest.raises(ValueError, match="symmetric and positive definite"):
        Gaussian(born.zeros((2,)), born.asarray(covariance))
    large = (1e6 * np.eye(2)).tolist()
    for stack in ([covariance, large], [large, covariance]):
        with pytest.raises(ValueError, match="symmetric and positive definite"):
            cholesky(born.asarray(stack))


def test_what_rounding_leaves_unsymmetric_is_accepted():
    for almost in ([[100.0, 50.0], [50.000995, 100.0]], [[1.0, 1e-5], [0.0, 1.0]]):
        Gaussian(np.zeros(2), np.asarray(almost))
        cholesky(np.stack([1e6 * np.asarray(almost), np.eye(2)]))


@given(seeds(), sizes(3), sizes(3))
def test_factors_are_lower_and_give_the_covariances_back(seed, n, dims):
    root = normals(seed, n, dims, dims + 1)
    covariances = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(dims)
    factors = cholesky(covariances)
    np.testing.assert_array_equal(factors, np.tril(factors))
    np.testing.assert_allclose(factors @ factors.transpose(0, 2, 1), covariances, atol=1e-12)


@given(seeds(), sizes(3))
def test_an_affine_image_adds_its_noise(seed, dims):
    law = random_gaussian(seed, dims)
    matrix, offset = normals(seed + 5, 2, dims), normals(seed + 6, 2)
    got = law.affine(matrix, offset, np.diag([0.3, 0.7]))
    np.testing.assert_allclose(got.mean, matrix @ law.mean + offset)
    want = matrix @ law.covariance @ matrix.T + np.diag([0.3, 0.7])
    np.testing.assert_allclose(got.covariance, want)


@given(seeds(), sizes(4))
def test_samples_are_the_factor_times_the_noise(seed, dims):
    """Whitening undoes sampling: (x - m)ᵀ S⁻¹ (x - m) = ‖ε‖²."""
    law, eps = random_gaussian(seed, dims), normals(seed + 2, 6, dims)
    gap = law.sample(eps) - law.mean
    squares = (gap * np.linalg.solve(law.covariance, gap.T).T).sum(axis=-1)
    np.testing.assert_allclose(squares, (eps**2).sum(axis=-1), rtol=1e-8)
    assert np.all(gap[:, 0] * eps[:, 0] >= 0.0)  # L has a positive diagonal


@pytest.mark.parametrize("shape", [(5, 1), (5, 2), (1,), ()])
def test_points_have_the_dimension_of_the_law(shape):
    law = random_gaussian(1, 3)
    for ask in (law.log_prob, law.score):
        with pytest.raises(ValueError, match=escape(f"x must be (..., 3), got {shape}")):
            ask(np.zeros(shape))


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1), ()])
def test_every_known_coordinate_has_a_value(shape):
    with pytest.raises(ValueError, match=escape(f"value must have shape (2,), got {shape}")):
        random_gaussian(1, 3).conditional([0, 1], np.zeros(shape))


@pytest.mark.parametrize(
    ("offset", "noise"),
    [
        (0.0, 0.1 * np.eye(2)),
        (np.zeros(2), 0.1),
        (np.zeros(2), np.asarray(0.1)),
        (np.zeros(2), np.full(2, 0.1)),
        (np.zeros(1), 0.1 * np.eye(2)),
        (np.zeros(2), np.full((1, 1), 0.1)),
        (np.zeros((2, 1)), 0.1 * np.eye(2)),
    ],
)
def test_an_affine_image_has_an_offset_and_a_covariance(offset, noise):
    """A number would be added to every entry of the covariance, and not to the variances alone."""
    with pytest.raises(ValueError, match=r"offset \(2,\) and noise \(2, 2\), got shapes"):
        random_gaussian(1, 3).affine(normals(0, 2, 3), offset, noise)


@on_every_backend
def test_a_mean_is_finite(born):
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="every number of a mean must be finite"):
            Gaussian(born.asarray([0.0, wrong]), born.asarray(np.eye(2)))


@on_every_backend
def test_a_law_stays_what_it_was_made_as(born):
    mean, covariance = born.asarray([1.0, 2.0]), born.asarray([[2.0, 0.5], [0.5, 1.0]])
    law = Gaussian(mean, covariance)
    mean[0], covariance[0, 0] = 7.0, 7.0
    np.testing.assert_array_equal(host(law.mean), [1.0, 2.0])
    np.testing.assert_array_equal(host(law.covariance), [[2.0, 0.5], [0.5, 1.0]])


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"mean \(D,\) and covariance \(D, D\)"):
        Gaussian(np.zeros(2), np.eye(3))
    with pytest.raises(ValueError, match=r"mean \(D,\)"):
        Gaussian(np.zeros((2, 1)), np.eye(2))


@on_every_backend
def test_every_backend_agrees(born):
    law, x = random_gaussian(3, 3), normals(4, 5, 3)
    there = Gaussian(born.asarray(law.mean), born.asarray(law.covariance))
    pairs = [
        (there.log_prob(born.asarray(x)), law.log_prob(x)),
        (there.score(born.asarray(x)), law.score(x)),
        (there.sample(born.asarray(x)), law.sample(x)),
        (there.conditional([1], born.asarray(x[0, :1])).mean, law.conditional([1], x[0, :1]).mean),
        (there.marginal([2, 0]).covariance, law.marginal([2, 0]).covariance),
    ]
    for got, want in pairs:
        np.testing.assert_allclose(host(got), want, rtol=500 * tolerance(born), atol=1e-4)
        assert got.dtype == born.zeros((1,)).dtype
    other = random_gaussian(7, 3)
    there_too = Gaussian(born.asarray(other.mean), born.asarray(other.covariance))
    assert there.kl(there_too) == pytest.approx(law.kl(other), rel=1e3 * tolerance(born))
