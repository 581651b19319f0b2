"""The other side of an adversarial game: it takes k steps of its own before each of the model's.

    for step in range(steps):
        for j in range(k):
            terms, pullback = gan.discriminator_loss(x, fake)  # each a function of step and j
            pullback(...)
            opponent.optimiser.step()
        terms, pullback = gan.generator_loss(z)
        pullback(...)
        optimiser.step()

`Fit` does the last three lines, and asks its opponent for those before.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from scratchgen.core.module import FlatParameters, Module
from scratchgen.core.parallel import SOLO, Workers
from scratchgen.training.batch import batch_means, broken
from scratchgen.training.optim import Optimiser, global_norm


class Opponent:
    """A net that learns before each step of the run, such as the discriminator of a GAN.

    Its state is all that `advance` changes: if a step fails, `Fit` puts the opponent back too.

    Args:
        module: the net, or all that loss evaluates; used to name the layer where a value stops
            being finite.
        params: the net's parameters and buffers, none of which are the model's.
        optimiser: updates them.
        loss: (step, j, rows) -> {term: (n,)}; evaluates those rows of the j-th of that step's k
            batches and runs the pullback of their share of the batch mean. It must leave the
            model's gradient alone (`FlatParameters.frozen`), as the model's loss must this one's.
        batch_size: the number of rows in a batch.
        count: k, its steps for each of the model's.
        after: runs after each update, for example to clip the weights; it may change nothing but
            params, and says so to `params.changed`.
        within: makes a context in which each batch is evaluated, such as
            `layers.normalisation.tracking`, by which the model's running statistics move too if
            its batch norms run in training.

    Raises:
        ValueError: a number is not positive.
    """

    def __init__(
        self,
        module: Module,
        params: FlatParameters,
        optimiser: Optimiser,
        loss: Callable[[int, int, slice], dict],
        batch_size: int,
        count: int = 1,
        after: Callable[[], None] | None = None,
        within: Callable[[], AbstractContextManager] = nullcontext,
    ):
        if batch_size < 1 or count < 1:
            raise ValueError(f"need batch_size ≥ 1 and count ≥ 1, got {batch_size} and {count}")
        self.module, self.params, self.optimiser, self.loss = module, params, optimiser, loss
        self.batch_size, self.count, self.after, self.within = batch_size, count, after, within

    def advance(self, step: int, workers: Workers = SOLO) -> dict[str, float]:
        """Take k steps against the model as it stands.

        Args:
            step: of the run, 0, 1, 2, ...
            workers: who evaluates the rows.

        Returns:
            Term -> mean over the k batches, and "opponent_gradient_norm" of the last, which
            may not be finite even if the terms are.

        Raises:
            NotFinite: a term was not finite. The updates before it stand, unless `Fit` asked.
        """
        sums: dict[str, float] = {}
        norm = 0.0
        for j in range(self.count):
            means = batch_means(
                self.module,
                self.params,
                partial(self.loss, step, j),
                self.batch_size,
                workers,
                self.within,
                f"step {step + 1}, the opponent's {j + 1} of {self.count}",
            )
            if j == self.count - 1:
                norm = global_norm(self.params)  # before the optimiser uses the gradient up
            self.optimiser.step(workers)
            if self.after is not None:
                self.after()
            for name, mean in means.items():
                sums[name] = sums.get(name, 0.0) + mean
        means = {name: total / self.count for name, total in sums.items()}
        return means | {"opponent_gradient_norm": norm}

    def broken(self) -> str | None:
        """What is not finite of parameters, buffers and what the optimiser remembers, or None."""
        return broken(self.params, self.optimiser.memory)

    def state(self) -> dict:
        """What a checkpoint must hold: parameters, buffers and the optimiser's state."""
        buffers = {f"buffers/{name}": b.value for name, b in self.params.buffers.items()}
        optimiser = {f"optimiser/{name}": value for name, value in self.optimiser.state().items()}
        return {"theta": self.params.theta, **buffers, **optimiser}

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned; a gradient that was begun is dropped."""
        asarray = self.params.backend.asarray
        self.params.theta[...], self.params.grad[...] = asarray(state["theta"]), 0.0
        self.params.changed()
        for name, buffer in self.params.buffers.items():
            buffer.value = asarray(state[f"buffers/{name}"])
        self.optimiser.restore({k: state[f"optimiser/{k}"] for k in self.optimiser.state()})
