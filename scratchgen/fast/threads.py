"""Shards of a batch on threads of one process.

NumPy lets go of Python's lock while it computes, so threads that each evaluate a part of the batch
run side by side. Every matrix product must then use one thread of its own: whoever makes `Threads`
limits BLAS to one (the command line does), or the two kinds of threads get in each other's way.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import partial
from math import lcm
from operator import index
from typing import Any

import numpy as np

from scratchgen.core.arrays import share_one_heap
from scratchgen.core.module import FlatParameters
from scratchgen.core.parallel import Shard, Terms

PART = 2**17  # entries of a gradient that one task adds to
LEAST = 2**16  # numbers for a thread, below which handing them over takes longer than the work


class Threads:
    """A group of workers that are threads of this process.

        with threadpool_limits(1, "blas"):
            Fit(..., workers=Threads(2)).until(1000)

    Each has a ledger of what its shard adds to the gradient, and they settle them together.
    Examples must not mix: batch norm in training needs `Solo`. Where the C library is glibc, making
    a group lets the process keep the memory it frees (`core.arrays.share_one_heap`).

    Args:
        count: of threads, at least 1.

    Raises:
        ValueError: fewer than 1 thread.
    """

    def __init__(self, count: int):
        self.count = index(count)
        if count < 1:
            raise ValueError(f"the number of threads must be at least 1, got {count}")
        share_one_heap()
        self._others = ThreadPoolExecutor(max(1, count - 1), "scratchgen")

    def run(self, params: FlatParameters, shard: Shard, batch_size: int) -> Terms:
        """Evaluate equal shards side by side, and sum their gradients; see `Workers.run`."""
        parts = _parts(batch_size, max(1, min(self.count, batch_size)))
        target = params.gradient
        ledgers = [Ledger() for _ in parts]

        def evaluate(k: int) -> Terms:
            with params.gradient_into(None if target is None else ledgers[k]):
                return shard(parts[k])

        terms = self._together(evaluate, len(parts))
        self._settle(target, [ledger.entries for ledger in ledgers])
        return {name: np.concatenate([some[name] for some in terms]) for name in terms[0]}

    def _settle(self, gradient, ledgers: list["Entries"]) -> None:
        """Add what all ledgers hold to the gradient, one part of it after the other."""
        places = dict.fromkeys(place for entries in ledgers for place in entries)
        tasks = [
            task
            for place in places
            for task in _tasks(*place, [entries[place] for entries in ledgers if place in entries])
        ]
        left = iter(tasks)  # of which each thread takes the next

        def work(k: int) -> None:
            for task in left:
                task(gradient)

        self._together(work, self.count)

    def elementwise(self, update: Callable[..., None], *vectors) -> None:
        """Update equal parts of the vectors side by side; see `Workers.elementwise`."""
        parts = _parts(vectors[0].size, max(1, min(self.count, vectors[0].size // LEAST)))
        self._together(lambda k: update(*(v[parts[k]] for v in vectors)), len(parts))

    def _together(self, work: Callable[[int], Any], count: int) -> list:
        """[work(0), ..., work(count - 1)], the first in this thread and each other in its own."""
        others = [self._others.submit(copy_context().run, work, k) for k in range(1, count)]
        try:
            first = work(0)
        finally:
            wait(others)
        return [first, *(other.result() for other in others)]


class Ledger:
    """What one shard adds to the gradient of each parameter.

    A product aᵀ b of a few rows is larger than a and b together, as it is for the weights of a
    fully connected net. Then it is not computed at once but noted down, and goes into the gradient
    directly in the end: so no shard needs a vector as long as θ, to be filled and added up. Until
    then a and b must stay as they are.
    """

    def __init__(self):
        self.entries: Entries = {}

    def add_product(self, window: slice, a, b) -> None:
        """Note aᵀ b down, or compute and keep it; see `Reading.accumulate_product`."""
        entry = self.entries.setdefault((window.start, window.stop), Entry())
        (n, p), q = a.shape, b.shape[1]
        if p * q > n * (p + q):
            entry.later.append((a, b))
        else:
            product = (a.T @ b).reshape(-1)
            entry.now = product if entry.now is None else np.add(entry.now, product, out=entry.now)


class Entry:
    """One parameter in a ledger: what was computed, and what is still to be."""

    def __init__(self):
        self.now: np.ndarray | None = None
        self.later: list[tuple] = []


Entries = dict[tuple[int, int], Entry]  # (start, stop) of a parameter's window -> its entry


def _tasks(start: int, stop: int, entries: list[Entry]) -> Iterator[Callable]:
    """What is left to do for one parameter: each a part of it, as a function of the gradient."""
    known = [entry.now for entry in entries if entry.now is not None]
    noted = [pair for entry in entries for pair in entry.later]
    whole = lcm(*(b.shape[1] for _, b in noted))  # so that no part cuts a row of an aᵀ b in two
    for some in _parts((stop - start) // whole, max(1, -(-(stop - start) // PART))):
        yield partial(_add, start, slice(some.start * whole, some.stop * whole), known, noted)


def _add(start: int, part: slice, known: list, noted: list, gradient) -> None:
    """Add a part of one parameter's gradient to where it belongs."""
    target = gradient[start + part.start : start + part.stop]
    for product in known:
        target += product[part]
    for a, b in noted:
        row = b.shape[1]
        target += (a[:, part.start // row : part.stop // row].T @ b).reshape(-1)


def _parts(size: int, count: int) -> list[slice]:
    """0..size-1 cut into so many slices of lengths that differ by one at most."""
    edges = [size * k // count for k in range(count + 1)]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
