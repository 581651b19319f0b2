"""maths/bounds.py: formulas on arrays of nats."""

from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.maths.bounds import bits_per_dim, elbo, importance_weighted_bound
from scratchgen.testing.strategies import seeds

from support import NUMPY, host, normals, on_every_backend, tolerance


@pytest.mark.equation("ELBO-5")
@given(seeds())
def test_the_terms_sum_to_minus_elbo(seed):
    terms = [normals(seed + i, 4) for i in range(3)]
    np.testing.assert_allclose(elbo(*terms), -np.sum(terms, axis=0), rtol=1e-12, atol=1e-12)


@pytest.mark.equation("ELBO-2")
@given(seeds(), st.integers(1, 6))
def test_the_importance_weighted_bound_lies_between_mean_and_maximum(seed, samples):
    w = 5.0 * normals(seed, samples, 3)
    tight = importance_weighted_bound(w)
    assert np.all(tight >= w.mean(axis=0) - 1e-12)
    assert np.all(tight <= w.max(axis=0) + 1e-12)
    np.testing.assert_allclose(tight, np.log(np.exp(w).mean(axis=0)), rtol=1e-10, atol=1e-10)


@pytest.mark.equation("ELBO-2")
def test_data_that_no_sample_explains_have_no_evidence():
    """Weights of 0: the bound is log 0, unless one of them is not."""
    weights = np.asarray([[-np.inf, -np.inf], [-np.inf, 1.0]])
    np.testing.assert_allclose(importance_weighted_bound(weights), [-np.inf, 1.0 - log(2.0)])


@pytest.mark.equation("ELBO-2")
@given(seeds(), st.integers(2, 5), st.integers(2, 5))
def test_jensen_on_finite_worlds(seed, states, values):
    """E_q[p/q] = p(x) exactly, and the ELBO never exceeds log p(x), for arbitrary p and q."""
    tables = [np.exp(normals(seed + i, states, values)) for i in range(2)]
    joint = tables[0] / tables[0].sum()
    q = tables[1] / tables[1].sum(axis=0)
    evidence, ratio = joint.sum(axis=0), joint / q
    np.testing.assert_allclose((q * ratio).sum(axis=0), evidence, rtol=1e-12)
    lower = (q * elbo(-np.log(joint), np.log(q))).sum(axis=0)
    assert np.all(lower <= np.log(evidence) + 1e-12)
    posterior = joint / evidence
    gap = (q * np.log(q / posterior)).sum(axis=0)
    np.testing.assert_allclose(lower + gap, np.log(evidence), rtol=1e-10, atol=1e-12)


@pytest.mark.equation("MET-3")
def test_bits_per_dim():
    """A uniform pmf over 256 levels costs 8 bits; -1.31 nats/dim is 1.89 bits/dim."""
    assert bits_per_dim(48 * log(256.0), 48) == pytest.approx(8.0, rel=1e-14)
    assert bits_per_dim(1.31, 1) == pytest.approx(1.89, abs=5e-3)
    lower, upper = -1.0 - 1.0 / 255.0, 1.0 + 1.0 / 255.0
    density = bits_per_dim(48 * log(upper - lower), 48)  # uniform on the 256 bins, as a density
    assert density + log(127.5) / log(2.0) == pytest.approx(8.0, rel=1e-14)
    width = 2.0 / 255.0  # a density on 8-bit data in [-1, 1] must be multiplied by this
    uniform_density = -log(1.0 / (256.0 * width))
    assert bits_per_dim(uniform_density - log(width), 1) == pytest.approx(8.0, rel=1e-14)
    with pytest.raises(ValueError, match="at least 1"):
        bits_per_dim(1.0, 0)


@pytest.mark.equation("MET-3")
@given(st.integers(1, 1000), st.integers(1, 100))
def test_a_uniform_law_on_levels_costs_the_bits_that_number_them(levels, dims):
    """log₂ K; and as a density on K bins of width 2/K in [-1, 1] log₂(K/2) less."""
    assert bits_per_dim(dims * log(levels), dims) == pytest.approx(np.log2(levels), rel=1e-12)
    as_density = bits_per_dim(dims * log(2.0), dims)
    assert as_density + np.log2(levels / 2.0) == pytest.approx(np.log2(levels), abs=1e-12)


@on_every_backend
def test_every_backend_agrees(born):
    w = normals(0, 4, 3)
    got, want = (
        importance_weighted_bound(born.asarray(w)),
        importance_weighted_bound(NUMPY.asarray(w)),
    )
    np.testing.assert_allclose(host(got), want, rtol=tolerance(born))
