"""Random numbers as pure functions of a key: (seed, purpose, step, ...).

A stream has no state to advance, save or restore. Its key is a path of names and numbers; asking
the same stream twice gives the same numbers twice, and another path gives independent ones. So a
resumed run draws what the unbroken run would have drawn, and no one has to remember where it was.

Rows (the first axis of a shape) are generated in blocks of 64, each addressed by its own counter.
Row i is therefore the same whether 4 or 64 rows are asked for, and a worker that holds rows 64 to
127 of a batch draws exactly the rows one worker would have drawn for the whole.
"""

import hashlib
import json
from functools import lru_cache
from numbers import Integral

import numpy as np

from scratchgen.core.arrays import Backend

BLOCK = 64


class Stream:
    """A key, the place its numbers are born, and the index of its first row.

    Numbers are drawn on the host in float64 by NumPy's Philox generator and then cast, so every
    backend and every dtype sees the same noise.

    Args:
        seed: any integer; the root of the path.
        backend: where the numbers are born.

    Raises:
        TypeError: the seed is no integer.
    """

    def __init__(self, seed: int, backend: Backend):
        self.path: tuple = (_seed(seed),)
        self.backend, self.first_row = backend, 0

    def at(self, *names: str | int) -> "Stream":
        """The stream further down the path: `stream.at("train", 17).at("eps")`.

        Raises:
            TypeError: a name is neither a string nor a whole number.
        """
        return self._with(self.path + tuple(_name(name) for name in names), self.first_row)

    def from_row(self, first: int) -> "Stream":
        """The same stream, whose row 0 is now row `first` of before."""
        return self._with(self.path, self.first_row + first)

    def normal(self, shape):
        """Standard normal numbers of that shape, as an array of the stream's backend."""
        return self.backend.asarray(self._rows(shape, np.random.Generator.standard_normal))

    def uniform(self, shape):
        """Uniform numbers in [0, 1) of that shape, as an array of the stream's backend.

        They are multiples of 2^-24, which float32 holds exactly and never rounds up to 1.
        """
        drawn = self._rows(shape, np.random.Generator.random)
        return self.backend.asarray(np.floor(drawn * 2.0**24) * 2.0**-24)

    def permutation(self, n: int) -> np.ndarray:
        """A random order of 0..n-1, as host integers."""
        return _permutation(self.path, n).copy()

    def _with(self, path, first_row):
        child = object.__new__(Stream)
        child.path, child.backend, child.first_row = path, self.backend, first_row
        return child

    def _rows(self, shape, draw) -> np.ndarray:
        first, last = self.first_row // BLOCK, self.first_row + shape[0]
        key, drawn = _key(self.path), np.empty((last - first * BLOCK, *shape[1:]))
        # the last block is cut by asking for fewer rows: a shorter draw is a prefix of a longer one
        for i in range(0, len(drawn) if shape[0] else 0, BLOCK):
            draw(_generator(key, first + i // BLOCK), out=drawn[i : i + BLOCK])
        return drawn[self.first_row % BLOCK :]


def _seed(seed) -> int:
    if isinstance(seed, Integral):
        return int(seed)
    raise TypeError(f"a stream's seed must be a whole number, got {seed!r}")


def _name(name) -> str | int:
    if isinstance(name, str):
        return name
    if isinstance(name, Integral):
        return int(name)  # NumPy's integers too: 3 is 3
    raise TypeError(f"a stream's key is made of strings and whole numbers, got {name!r}")


@lru_cache(maxsize=4)
def _permutation(path: tuple, n: int) -> np.ndarray:
    """Remembered, because training asks for an epoch's order once a step."""
    return _generator(_key(path), block=0).permutation(n)


def _key(path: tuple) -> np.ndarray:
    digest = hashlib.blake2b(json.dumps(path).encode(), digest_size=16).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def _generator(key: np.ndarray, block: int) -> "np.random.Generator":
    # in quotes above, since NumPy imports that part of it only when it is asked for
    # the block index fills the counter's highest word, which no draw within a block can reach
    counter = np.array([0, 0, 0, block], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
