"""maths/gaussian.py against scipy, conditioning identities and simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from scratchgen.maths.distributions import normal_kl, normal_nll
from scratchgen.maths.gaussian import Gaussian
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
@pytest.mark.equation("DDPM-6")
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
