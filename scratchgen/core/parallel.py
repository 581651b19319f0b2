"""Run a loss on shards of the batch and sum the gradients.

A worker group has two doors: `run`, which evaluates a loss on the rows of a batch and leaves the
whole batch's gradient in `params.grad`, and `elementwise`, by which an optimiser updates its
vectors. `Solo` is the group of one.

Noise is keyed by row (core/streams.py), so N workers draw what one would, and their gradients sum
to the same gradient up to the order of summation.
"""

from collections.abc import Callable
from typing import Any, Protocol

from scratchgen.core.module import FlatParameters

Terms = dict[str, Any]
Shard = Callable[[slice], Terms]


class Workers(Protocol):
    """What a training loop asks of a group of workers."""

    def run(self, params: FlatParameters, shard: Shard, batch_size: int) -> Terms:
        """Evaluate shard(rows) over rows 0..batch_size-1 and sum the gradients into params.grad.

        Args:
            params: whose gradient the shards' pullbacks add to.
            shard: rows -> terms, each (n,) nats for those rows; runs its own pullback, and changes
                nothing that the pullback was given.
            batch_size: the number of rows of the whole batch.

        Returns:
            The terms of all rows, in order.
        """

    def elementwise(self, update: Callable[..., None], *vectors) -> None:
        """update(*vectors), perhaps on parts of them side by side.

        Args:
            update: changes the vectors in place, each entry by what stands at its own place only.
            vectors: of one length.
        """


class Solo:
    """One worker: the whole batch is its shard."""

    def run(self, params: FlatParameters, shard: Shard, batch_size: int) -> Terms:
        """Evaluate the whole batch; its pullback adds to params.grad directly."""
        return shard(slice(0, batch_size))

    def elementwise(self, update: Callable[..., None], *vectors) -> None:
        """All at once."""
        update(*vectors)


SOLO = Solo()
