"""nets/time.py: features of time by their inner products."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.module import Buffer, FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.layers.activations import silu
from scratchgen.nets.time import RandomFourier, Raw, Sinusoidal, time_embedding
from scratchgen.testing import oracle
from scratchgen.testing.monte_carlo import assert_mean
from scratchgen.testing.strategies import seeds

from support import NUMPY, bound, normals

dims = st.integers(2, 20).map(lambda half: 2 * half)
times = st.floats(0.0, 1000.0)


def frequencies(d: int, longest: float = 10_000.0) -> np.ndarray:
    """From 1 to 1/longest in equal ratios, the textbook power."""
    return longest ** (-np.arange(d // 2) / (d // 2 - 1))


@pytest.mark.equation("NET-8")
@given(dims, times, st.floats(2.0, 1e4), st.floats(0.1, 1000.0))
def test_sinusoidal_features_by_definition(d, t, longest, scale):
    angle = scale * t * frequencies(d, longest)
    y, _ = Sinusoidal(d, longest, scale)(np.asarray([t]))
    np.testing.assert_allclose(y[0], np.concatenate([np.sin(angle), np.cos(angle)]), atol=1e-9)


@pytest.mark.equation("NET-8")
@given(dims, times, times)
def test_sinusoidal_inner_products_depend_on_the_difference(d, t, other):
    (a, b), _ = Sinusoidal(d)(np.asarray([t, other]))
    assert a @ a == pytest.approx(d / 2, rel=1e-12)
    want = np.sum(np.cos(frequencies(d) * (t - other)))
    assert a @ b == pytest.approx(want, rel=1e-9, abs=1e-9)


@pytest.mark.equation("NET-8")
def test_a_known_inner_product():
    features = Sinusoidal(64)
    for pair in ([3.0, 10.0], [503.0, 510.0]):
        (a, b), _ = features(np.asarray(pair))
        assert a @ b == pytest.approx(23.526232, abs=5e-7)


@pytest.mark.equation("NET-8")
@pytest.mark.equation("NET-9")
@given(seeds(), dims)
def test_the_pullback_reaches_the_time(seed, d):
    t = normals(seed, 3)
    features = RandomFourier(d)
    bound(features, seed)
    oracle.check_pullback(features, t)
    oracle.check_pullback(Sinusoidal(d), t)
    oracle.check_pullback(Raw(), t)


@pytest.mark.equation("NET-9")
@given(seeds(), st.floats(0.2, 2.0), times)
def test_random_features_by_definition(seed, spread, t):
    features = RandomFourier(8, spread)
    FlatParameters(features, Stream(seed, NUMPY))
    angle = 2.0 * np.pi * features.frequencies.value * t
    y, _ = features(np.asarray([t]))
    np.testing.assert_allclose(y[0], np.concatenate([np.sin(angle), np.cos(angle)]), atol=1e-9)


@pytest.mark.equation("NET-9")
@pytest.mark.parametrize(("spread", "gap"), [(1.0, 0.13), (0.5, 0.4), (3.0, 0.05)])
def test_random_features_have_a_bell_shaped_kernel(spread, gap):
    """(1/m) ⟨φ(t), φ(t')⟩ -> e^(-2π² s² (t - t')²), m the number of frequencies."""

    def products(n, look):
        features = RandomFourier(2 * n, spread)
        FlatParameters(features, Stream(look, NUMPY))
        (a, b), _ = features(np.asarray([0.7, 0.7 + gap]))
        return a[:n] * b[:n] + a[n:] * b[n:]

    want = np.exp(-2.0 * np.pi**2 * spread**2 * gap**2)
    assert_mean(products, want, resolution=0.02 * want)


@pytest.mark.equation("NET-9")
def test_the_random_frequencies_are_kept_with_the_model_and_never_trained():
    features = RandomFourier(6)
    params = FlatParameters(features, Stream(0, NUMPY))
    assert [name for name, _ in features.named(Buffer)] == ["frequencies"]
    assert params.theta.size == 0
    assert features.dims == 6


def test_the_embedding_is_a_small_mlp_on_the_features():
    net = time_embedding(Raw(), 5)
    bound(net)
    t = normals(0, 4)
    (_, first, _, last) = net.layers
    want = last(silu(first(t[:, None])[0])[0])[0]
    np.testing.assert_array_equal(net(t)[0], want)


@pytest.mark.parametrize(
    ("make", "number"),
    [(Sinusoidal, 2), (Sinusoidal, 7), (RandomFourier, 0), (RandomFourier, 3)],
)
def test_numbers_of_features_are_checked(make, number):
    with pytest.raises(ValueError, match=f"even in number, from .; got {number}"):
        make(number)
