"""Shards of a batch on threads of one process.

NumPy lets go of Python's lock while it computes, so threads that each evaluate a part of the batch
run side by side. Every matrix product must then use one thread of its own: whoever makes `Threads`
limits BLAS to one (the command line does), or the two kinds of threads get in each other's way.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import numpy as np

from scratchgen.core.module import FlatParameters
from scratchgen.core.parallel import Shard, Terms

LEAST = 2**16  # numbers for a thread, below which handing them over takes longer than the work


class Threads:
    """A group of workers that are threads of this process.

    The first runs in the calling thread and adds to params.grad; each other has a gradient of its
    own, which is added in the end. Examples must not mix: batch norm in training needs `Solo`.

    Args:
        count: of threads, at least 1.

    Raises:
        ValueError: fewer than 1 thread.
    """

    rank, size = 0, 1

    def __init__(self, count: int):
        if count < 1:
            raise ValueError(f"the number of threads must be at least 1, got {count}")
        self.count = count
        self._others = ThreadPoolExecutor(max(1, count - 1), "scratchgen")
        self._gradients: list[np.ndarray] = []

    def run(self, params: FlatParameters, shard: Shard, batch_size: int) -> Terms:
        """Evaluate equal shards side by side, and sum their gradients; see `Workers.run`."""
        parts = _parts(batch_size, min(self.count, batch_size))
        target = params.gradient
        gradients = [target, *self._zeros(target, len(parts) - 1)]

        def evaluate(k: int) -> Terms:
            with params.gradient_into(gradients[k]):
                return shard(parts[k])

        terms = self._together(evaluate, len(parts))
        if target is not None and len(parts) > 1:
            self.elementwise(_add_and_clear, *gradients)
        return {name: np.concatenate([some[name] for some in terms]) for name in terms[0]}

    def elementwise(self, update: Callable[..., None], *vectors) -> None:
        """Update equal parts of the vectors side by side; see `Workers.elementwise`."""
        parts = _parts(vectors[0].size, max(1, min(self.count, vectors[0].size // LEAST)))
        self._together(lambda k: update(*(v[parts[k]] for v in vectors)), len(parts))

    def broadcast(self, array) -> None:
        """Nothing to do: threads share their memory."""

    def _together(self, work: Callable[[int], Any], count: int) -> list:
        """[work(0), ..., work(count - 1)], the first in this thread and each other in its own."""
        others = [self._others.submit(copy_context().run, work, k) for k in range(1, count)]
        try:
            first = work(0)
        finally:
            rest = [other.exception() or other.result() for other in others]  # waits for them all
        for result in rest:
            if isinstance(result, BaseException):
                raise result
        return [first, *rest]

    def _zeros(self, target, count: int) -> list:
        """Gradients for the other threads, zero; None where nothing is to be added anywhere."""
        if target is None:
            return [None] * count
        fits = len(self._gradients) >= count and all(
            known.shape == target.shape and known.dtype == target.dtype for known in self._gradients
        )
        if not fits:
            self._gradients = [np.zeros_like(target) for _ in range(count)]
        return self._gradients[:count]


def _add_and_clear(total, *others) -> None:
    for other in others:
        total += other
        other[...] = 0.0


def _parts(size: int, count: int) -> list[slice]:
    """0..size-1 cut into so many slices of lengths that differ by one at most."""
    edges = [size * k // count for k in range(count + 1)]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
