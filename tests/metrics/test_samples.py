"""metrics/samples.py."""

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.streams import Stream
from scratchgen.metrics.coverage import Coverage, coverage
from scratchgen.metrics.distances import frechet_distance, kernel_distance, sliced_wasserstein
from scratchgen.metrics.samples import compare, jackknife_errors
from scratchgen.testing.strategies import seeds

from support import NUMPY, noise, normals

STREAM = Stream(3, NUMPY)
NAMES = [
    "kernel distance on pixels",
    "Fréchet distance on pixels",
    "sliced Wasserstein distance on pixels",
    *(f"{name} on pixels" for name in Coverage._fields),
]
COLUMNS = ["value", "error", "floor", "floor_error", "n_real", "n_reference", "n_generated"]


def every_measure(real, other):
    return [
        kernel_distance(real, other)[0],
        frechet_distance(real, other),
        sliced_wasserstein(real, other, STREAM),
        *coverage(real, other),
    ]


@pytest.mark.parametrize(("n_reference", "n_generated"), [(40, 25), (25, 40), (30, 30)])
def test_each_measure_stands_beside_its_floor_at_the_same_size(n_reference, n_generated):
    real, reference = normals(0, 50, 3), normals(1, n_reference, 3)
    generated = normals(2, n_generated, 3) + 0.5
    n = min(n_reference, n_generated)
    found = compare(real, reference, generated, STREAM, "pixels")
    assert list(found) == NAMES
    assert json.loads(json.dumps(found)) == found
    values, floors = every_measure(real, generated[:n]), every_measure(real, reference[:n])
    for row, value, floor in zip(found.values(), values, floors, strict=True):
        assert list(row) == COLUMNS
        assert (row["value"], row["floor"]) == pytest.approx((value, floor), rel=1e-9)
        assert (row["n_real"], row["n_reference"], row["n_generated"]) == (50, n, n)
    row = found["kernel distance on pixels"]
    errors = kernel_distance(real, generated[:n])[1], kernel_distance(real, reference[:n])[1]
    assert (row["error"], row["floor_error"]) == pytest.approx(errors, rel=1e-12)


def test_errors_come_from_leaving_out_every_tenth_row():
    real, reference, generated = normals(0, 43, 2), normals(1, 37, 2), normals(2, 30, 2) + 0.5
    found = compare(real, reference, generated, STREAM, "pixels", k=2)
    for column, other in (("error", generated), ("floor_error", reference[:30])):
        without = []
        for group in range(10):
            a, b = (np.delete(x, np.s_[group::10], axis=0) for x in (real, other))
            distances = frechet_distance(a, b), sliced_wasserstein(a, b, STREAM)
            without.append([*distances, *coverage(a, b, 2)])
        want = np.sqrt(0.9 * np.sum((without - np.mean(without, axis=0)) ** 2, axis=0))
        got = [found[name][column] for name in NAMES[1:]]
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@given(seeds(), st.integers(2, 30))
def test_the_jackknife_of_a_mean_is_its_standard_error(seed, n):
    """One row to a group: s/√n exactly."""
    x = normals(seed, n, 2)
    without = [np.delete(x, i, axis=0).mean(axis=0) for i in range(n)]
    want = x.std(axis=0, ddof=1) / np.sqrt(n)
    np.testing.assert_allclose(jackknife_errors(np.asarray(without)), want, rtol=1e-9)


@cache
def repeats(count: int) -> list:
    """Comparisons of fresh samples: N(0, I) with a wider and shifted law."""
    drawn = noise(5, 0, count, 3, 50, 3)
    return [compare(*each[:2], 1.3 * each[2] + 1.0, STREAM, "pixels") for each in drawn]


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_those_of_repeated_samples(name):
    """Right where a statistic is smooth; elsewhere and at the floor, rather too large."""
    rows = [found[name] for found in repeats(60)]
    for value, error, least, most in (
        ("value", "error", 0.75, 1.25 if "distance" in name else 1.8),
        ("floor", "floor_error", 0.75, 1.3 if "kernel" in name else 2.0),
    ):
        spread = np.std([row[value] for row in rows], ddof=1)
        claimed = np.sqrt(np.mean([row[error] ** 2 for row in rows]))
        assert least < claimed / spread < most


def test_a_model_that_draws_from_the_law_reaches_the_floor_and_a_worse_one_does_not():
    real, reference, same = noise(6, 0, 3, 200, 4)
    good = compare(real, reference, same, STREAM, "pixels")
    bad = compare(real, reference, 1.5 * same, STREAM, "pixels")
    for name in NAMES[:3]:
        allowed = 3.0 * np.hypot(good[name]["error"], good[name]["floor_error"])
        assert abs(good[name]["value"] - good[name]["floor"]) < allowed
        assert bad[name]["value"] - bad[name]["floor"] > allowed


def test_twenty_rows_are_needed():
    enough, few = normals(0, 20, 2), normals(1, 19, 2)
    compare(enough, enough, enough, STREAM)
    for sets in ((few, enough, enough), (enough, few, enough), (enough, enough, few)):
        with pytest.raises(ValueError, match="N ≥ 20, got shape .19, 2."):
            compare(*sets, STREAM)
