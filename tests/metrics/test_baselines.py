"""metrics/baselines.py."""

import zlib
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.streams import Stream
from scratchgen.data.digits import load_digits
from scratchgen.metrics import baselines as module
from scratchgen.metrics.baselines import baselines, mixture_bits
from scratchgen.testing.strategies import seeds

from support import NUMPY


def codes(seed, n, dims, levels):
    return np.floor(levels * Stream(seed, NUMPY).uniform((n, dims))).astype(np.uint8)


@pytest.fixture(params=[2, 256])
def at_once(request):
    """Dimensions looked at together: fewer than there are, or all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DIMENSIONS", request.param)
        yield


@pytest.mark.usefixtures("at_once")
@given(seeds(), st.integers(2, 6), st.integers(1, 3), st.integers(1, 3))
def test_one_component_is_the_smoothed_histogram(seed, levels, dims, n):
    train, test = codes(seed, 20, dims, levels), codes(seed + 1, n, dims, levels)
    nats = 0.0
    for row in test:
        for d, value in enumerate(row):
            nats -= log((np.sum(train[:, d] == value) + 1.0) / (len(train) + levels))
    want = nats / (test.size * log(2.0))
    assert mixture_bits(train, test, levels, components=1) == pytest.approx(want, rel=1e-10)


@pytest.mark.usefixtures("at_once")
@given(seeds(), st.integers(1, 4))
def test_a_mixture_is_a_distribution(seed, components):
    train = codes(seed, 30, 2, 3)
    every = np.asarray([[a, b] for a in range(3) for b in range(3)], dtype=np.uint8)
    bits = [2.0 * mixture_bits(train, row[None], 3, components) for row in every]
    assert sum(2.0**-b for b in bits) == pytest.approx(1.0, rel=1e-10)


def test_on_the_digits_every_model_beats_the_one_before():
    found = baselines(load_digits("fit").codes, load_digits("validation").codes, 17)
    assert list(found) == ["uniform", "zlib", "lzma", "independent pixels", "mixture of 10"]
    values = list(found.values())
    assert values[0] == pytest.approx(np.log2(17))
    assert values == sorted(values, reverse=True)
    raw = load_digits("validation").codes.tobytes()
    assert found["zlib"] == 8.0 * len(zlib.compress(raw, 9)) / len(raw)


@pytest.mark.parametrize("wrong", [4, -1, 255])
def test_codes_are_below_the_number_of_levels(wrong):
    right = codes(0, 20, 3, 4).astype(np.int64)
    other = right.copy()
    other[7, 1] = wrong
    for train, test, name in ((right, other, "test"), (other, right, "train")):
        for measure in (baselines, lambda *args: mixture_bits(*args, components=2)):
            with pytest.raises(
                ValueError, match=rf"{name} must be integers in 0\.\.3, got -?\d+ to \d+"
            ):
                measure(train, test, 4)


def test_both_sets_have_the_same_dimensions():
    train, test = codes(0, 20, 3, 4), codes(1, 5, 1, 4)
    with pytest.raises(ValueError, match=r"test must have shape \(5, 3\), got \(5, 1\)"):
        mixture_bits(train, test, 4, components=1)


def test_compressors_are_given_all_digits_of_a_code():
    """With 1,000 levels a code has two bytes; of 256 random ones zlib cannot spare a bit."""
    few, many = (
        np.floor(levels * Stream(0, NUMPY).uniform((400, 6))).astype(np.int64)
        for levels in (256, 1000)
    )
    found = baselines(many, many, 1000)
    assert found["zlib"] > found["uniform"] == pytest.approx(np.log2(1000))
    raw = many.astype("<u2").tobytes()
    assert found["zlib"] == pytest.approx(8.0 * len(zlib.compress(raw, 9)) / many.size, rel=0.01)
    raw = few.astype(np.uint8).tobytes()
    assert baselines(few, few, 256)["zlib"] == 8.0 * len(zlib.compress(raw, 9)) / few.size


@pytest.mark.usefixtures("at_once")
def test_two_clusters_need_two_components():
    train = np.repeat(np.asarray([[0, 0, 0], [1, 1, 1]], dtype=np.uint8), 200, axis=0)
    assert mixture_bits(train, train, 2, components=1) == pytest.approx(1.0, abs=1e-3)
    assert mixture_bits(train, train, 2, components=2) == pytest.approx(1.0 / 3.0, abs=0.03)
