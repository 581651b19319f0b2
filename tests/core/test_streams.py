"""core/streams.py: numbers that are functions of their key."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.streams import BLOCK, Stream
from scratchgen.testing.monte_carlo import assert_mean
from scratchgen.testing.strategies import seeds

from support import NUMPY, host, on_every_backend

counts = st.integers(1, 3 * BLOCK)


@given(seeds(), counts, counts)
def test_row_i_is_the_same_however_many_are_drawn(seed, few, many):
    stream = Stream(seed, NUMPY).at("x")
    few, many = sorted((few, many))
    np.testing.assert_array_equal(stream.normal((few, 3)), stream.normal((many, 3))[:few])


@given(seeds(), st.integers(0, 3 * BLOCK), st.integers(0, 5), counts)
def test_a_shard_draws_the_rows_of_the_whole(seed, first, second, rows):
    stream = Stream(seed, NUMPY).at("x")
    whole = stream.uniform((first + second + rows, 2))
    shard = stream.from_row(first).from_row(second).uniform((rows, 2))
    np.testing.assert_array_equal(shard, whole[first + second :])


@given(seeds())
def test_paths_are_independent_and_asking_twice_is_asking_once(seed):
    stream = Stream(seed, NUMPY)
    one = stream.at("a", 1).normal((4,))
    np.testing.assert_array_equal(one, stream.at("a").at(1).normal((4,)))
    others = [stream.at("a", 2), stream.at("a", "1"), stream.at("b", 1), stream]
    others += [Stream(seed + 1, NUMPY).at("a", 1)]
    for other in others:
        assert not np.any(one == other.normal((4,)))


@given(seeds(), st.integers(0, 200))
def test_permutations_permute(seed, n):
    assert sorted(Stream(seed, NUMPY).permutation(n)) == list(range(n))


@given(seeds(), st.integers(2, 200))
def test_a_permutation_is_the_caller_s_own(seed, n):
    """However often one is asked for, and whatever has been done to it."""
    stream = Stream(seed, NUMPY).at("epoch")
    first, other = stream.permutation(n), stream.permutation(n + 1)
    kept = first.copy()
    first[...] = 0
    assert sorted(other) == list(range(n + 1))
    np.testing.assert_array_equal(stream.permutation(n), kept)
    np.testing.assert_array_equal(Stream(seed, NUMPY).at("epoch").permutation(n), kept)
    many = [Stream(seed, NUMPY).at("epoch", i).permutation(100) for i in range(6)]
    for i, order in enumerate(many):
        np.testing.assert_array_equal(stream.at(i).permutation(100), order)
        assert not any(np.array_equal(order, another) for another in many[:i])


@on_every_backend
def test_every_backend_sees_the_same_noise(born):
    shape = (BLOCK + 3, 2)
    want = Stream(7, NUMPY).at("eps").normal(shape).astype(born.dtype)
    np.testing.assert_array_equal(host(Stream(7, born).at("eps").normal(shape)), want)


@pytest.mark.parametrize("seed", [1.0, 1.7, "7", None, np.float64(3.0), float("nan")])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(TypeError, match="seed must be a whole number, got"):
        Stream(seed, NUMPY)


@given(seeds())
def test_a_whole_number_is_a_seed_whatever_its_type(seed):
    want = Stream(seed, NUMPY).normal((2,))
    np.testing.assert_array_equal(Stream(np.uint64(seed), NUMPY).normal((2,)), want)


def test_keys_say_exactly_what_they_are():
    stream = Stream(0, NUMPY)
    np.testing.assert_array_equal(stream.at(np.int64(3)).normal((2,)), stream.at(3).normal((2,)))
    assert np.all(stream.at("a/b").normal((2,)) != stream.at("a", "b").normal((2,)))
    with pytest.raises(TypeError, match="strings and whole numbers, got 0.5"):
        stream.at(0.5)


@on_every_backend
def test_uniform_numbers_stay_below_one(born):
    class Highest:
        @staticmethod
        def random(size):
            return np.full(size, np.nextafter(1.0, 0.0))

    drawn = Stream(0, born)
    drawn._rows = lambda shape, draw: Highest.random(shape)
    assert host(drawn.uniform((3,))).max() < 1.0


def test_no_rows_is_an_empty_draw():
    for first in (0, 1, BLOCK, BLOCK + 6):
        assert Stream(0, NUMPY).from_row(first).normal((0, 3)).shape == (0, 3)
    assert Stream(0, NUMPY).normal((BLOCK + 1, 0)).shape == (BLOCK + 1, 0)


def test_moments_across_blocks_and_keys():
    stream = Stream(3, NUMPY)

    def squares(n, look):
        return stream.at("moments", look).normal((n,)) ** 2

    def products_of_neighbouring_keys(n, look):
        return stream.at("p", look).normal((n,)) * stream.at("p", look + 1000).normal((n,))

    assert_mean(squares, 1.0, resolution=0.02)
    assert_mean(products_of_neighbouring_keys, 0.0, resolution=0.02)
    assert_mean(lambda n, look: stream.at("u", look).uniform((n,)), 0.5, resolution=0.01)


def test_the_numbers_never_change():
    """A golden value: resumed runs and published results depend on it."""
    stream = Stream(1234, NUMPY).at("train", 17).at("eps")
    drawn, normal = stream.uniform((BLOCK + 1,)), stream.normal((BLOCK + 1,))
    found = [float(v).hex() for v in (drawn[0], drawn[BLOCK], normal[0], normal[BLOCK])]
    assert found == GOLDEN
    assert stream.permutation(8).tolist() == ORDER


def digest(numbers, dtype: str) -> str:
    return hashlib.sha256(numbers.astype(dtype).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("seed", "first", "shape", "normal", "uniform"),
    [
        (0, 0, (64, 3), "d321cd8723faf140", "4d4d2616ea8cf96a"),
        (1234, 63, (67, 2), "94762c311b70bc9a", "999b08ed6ade6aee"),
        (2**64 - 1, 130, (200, 2, 3), "7d3aa8da2f7b6d4a", "28301afea9a73e35"),
        (7, 64, (1,), "19d86d9ebb380370", "b3b5430902087a7b"),
    ],
)
def test_whole_draws_never_change(seed, first, shape, normal, uniform):
    """Golden values: of draws that begin within a block, end within one, and span several."""
    stream = Stream(seed, NUMPY).at("train", 17).from_row(first)
    assert digest(stream.normal(shape), "<f8") == normal
    assert digest(stream.uniform(shape), "<f8") == uniform


@pytest.mark.parametrize(
    ("n", "order"),
    [(1, "af5570f5a1810b7a"), (64, "83bd9e0cb23db496"), (1797, "269c548313f3ebad")],
)
def test_permutations_never_change(n, order):
    assert digest(Stream(5, NUMPY).at("epoch", n).permutation(n), "<i8") == order


GOLDEN = [
    "0x1.752ed20000000p-1",
    "0x1.012ed00000000p-3",
    "0x1.e8cc62894f7b3p+0",
    "0x1.18bcd1b7db0afp-7",
]
ORDER = [0, 5, 3, 4, 6, 2, 7, 1]
