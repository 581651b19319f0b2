"""The command line's training loop: the examples' five lines, plus what a long run needs.

    for step in range(steps):
        terms, pullback = model.loss(x, eps)      # x and eps are functions of the step
        pullback(...)
        optimiser.step()

On top of that: averages over intervals, a progress bar, a stop at the first value that is not
finite, checkpoints, and a state from which the run continues bit for bit.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Protocol

import numpy as np

from scratchgen.core.arrays import to_host
from scratchgen.core.module import FlatParameters, Module
from scratchgen.core.parallel import SOLO, Workers
from scratchgen.core.streams import Stream
from scratchgen.training import checkpoint
from scratchgen.training.batch import NotFinite, batch_means, broken
from scratchgen.training.opponent import Opponent
from scratchgen.training.optim import Ema, Optimiser, global_norm
from scratchgen.training.progress import interrupts, progress

SAVE_EVERY_SECONDS = 60.0


def batch_indices(stream: Stream, n: int, batch_size: int, step: int) -> np.ndarray:
    """Which examples make up the batch of a step: a pure function of stream and step.

    The examples are visited in one random order after another; batches are cut from that endless
    sequence, so all have the same size and none is left out at an epoch's end.

    Args:
        stream: its path names the run.
        n: the number of examples.
        batch_size: the number per batch; may exceed n.
        step: 0, 1, 2, ...

    Returns:
        (batch_size,) indices in 0..n-1.
    """
    first = step * batch_size
    epochs = range(first // n, (first + batch_size - 1) // n + 1)
    order = np.concatenate([stream.at("epoch", epoch).permutation(n) for epoch in epochs])
    return order[first % n : first % n + batch_size]


class Kept(Protocol):
    """What a run needs to continue: a state that goes into the checkpoint and comes back."""

    def state(self) -> dict:
        """Name -> number or vector; always the same names."""

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned."""


class Control(Kept, Protocol):
    """Who decides, from the terms so far, what they weigh in the next step's loss."""

    def observe(self, means: dict[str, float]) -> None:
        """Take in the batch means of a step that is done."""


class Guard(Kept, Protocol):
    """Who decides which gradients to learn from."""

    def admits(self, params: FlatParameters) -> bool:
        """Whether to learn from params.grad."""


class Fit:
    """One training run: model, vector, optimiser and what has been logged so far.

    Args:
        module: the model; used to name the layer where a value stops being finite.
        params: its parameters.
        optimiser: updates them.
        loss: (step, rows) -> {term: (n,)} in the model's units; evaluates those rows of that step's
            batch and runs the pullback of their share of the batch mean.
        batch_size: the number of rows in a batch.
        every: steps averaged into one logged row; one that a stop cut may hold more or fewer steps
            if the run goes on with another number.
        ema: an average of the weights to keep, or None.
        workers: who evaluates the rows.
        within: makes a context in which each step's loss is evaluated, such as
            `layers.normalisation.tracking`, without which batch norm keeps no statistics.
        control: sees every step's means, such as `kl_control.KlControl`; its weights go into loss.
        guard: sees every gradient, such as `kl_control.SpikeGuard`. A step that it refuses is done
            and logged like any other, but parameters, optimiser and average stay as they were.
        opponent: learns before each step, such as the discriminator of a GAN; its terms are logged
            beside the run's own, which have other names, and control sees both; so are the norms of
            both sides' gradients, for one that vanishes is how such a game goes wrong.

    Raises:
        ValueError: a number is not positive.
    """

    def __init__(
        self,
        module: Module,
        params: FlatParameters,
        optimiser: Optimiser,
        loss: Callable[[int, slice], dict],
        batch_size: int,
        every: int = 50,
        ema: Ema | None = None,
        workers: Workers | None = None,
        within: Callable[[], AbstractContextManager] = nullcontext,
        control: Control | None = None,
        guard: Guard | None = None,
        opponent: Opponent | None = None,
    ):
        if batch_size < 1 or every < 1:
            raise ValueError(f"need batch_size ≥ 1 and every ≥ 1, got {batch_size} and {every}")
        self.module, self.params, self.optimiser, self.loss = module, params, optimiser, loss
        self.batch_size, self.every, self.ema = batch_size, every, ema
        self.workers: Workers = workers or SOLO
        self.within, self.control, self.guard = within, control, guard
        self.opponent = opponent
        self.steps_done = 0
        self.history: dict[str, list[float]] = {}
        self._sums: dict[str, float] = {}

    def advance(self) -> None:
        """One step of training.

        Raises:
            NotFinite: a term was not finite. Then, as after any other error in evaluating the
                step, parameters, buffers and the opponent are as before it.
            ValueError: a term of the opponent has the name of one of the run's own.
        """
        step = self.steps_done
        with self._undone_on_error():
            theirs = self.opponent.advance(step, self.workers) if self.opponent else {}
            for name, mean in theirs.items():
                if not isfinite(mean):
                    what = f"step {step + 1}: the opponent's term {name!r} is {mean}"
                    raise NotFinite(f"{what}. Try a smaller learning rate for it")
            means = batch_means(
                self.module,
                self.params,
                partial(self.loss, step),
                self.batch_size,
                self.workers,
                self.within,
                f"step {step + 1}",
            )
            if not theirs.keys().isdisjoint(means):
                names = f"{list(means)} and {list(theirs)}"
                raise ValueError(f"the run's terms and its opponent's share a name, got {names}")
        if self.opponent:
            means["gradient_norm"] = global_norm(self.params)
        means |= theirs
        if self.guard is None or self.guard.admits(self.params):
            self.optimiser.step(self.workers)
            if self.ema is not None:
                self.ema.step(self.workers)
        else:
            self.params.grad[...] = 0.0
        if self.control is not None:
            self.control.observe(means)
        self.steps_done += 1
        for name, mean in means.items():
            self._sums[name] = self._sums.get(name, 0.0) + mean
        if self.steps_done % self.every == 0:
            for name, value in self._pending_row().items():
                self.history.setdefault(name, []).append(value)
            self._sums = {}

    @contextmanager
    def _undone_on_error(self):
        """Within, an error puts buffers and opponent back; parameters have not changed yet."""
        buffers = {name: 1.0 * buffer.value for name, buffer in self.params.buffers.items()}
        theirs = self.opponent.state() if self.opponent else {}
        theirs = {name: 1 * value for name, value in theirs.items()}  # a copy
        try:
            yield
        except BaseException:
            self.params.grad[...] = 0.0
            for name, value in buffers.items():
                self.params.buffers[name].value = value
            if self.opponent:
                self.opponent.restore(theirs)
            raise

    def until(
        self,
        last_step: int,
        path: Path | None = None,
        meta: dict | None = None,
        quiet: bool = False,
        describe: Callable[[dict[str, float]], str] = str,
    ) -> None:
        """Train up to `last_step` steps in all, saving to `path` now and then and at the end.

        An interrupt (Ctrl-C, or a request to terminate) waits for the step under way, saves, and
        then raises KeyboardInterrupt; a second one does not wait.

        Args:
            last_step: the number of steps to have taken when this returns.
            path: the checkpoint file, or None to keep nothing.
            meta: facts that go into the checkpoint.
            quiet: print nothing.
            describe: last logged row -> the few words shown beside the progress.

        Raises:
            NotFinite: as `advance`, or since an update broke a parameter or the optimiser; a broken
                state is never saved.
        """
        if path and not path.exists():
            self._require_sound()
            self.save(path, meta or {})  # so that a run that is killed at once can be resumed too
        saved = time.monotonic()
        try:
            with progress(self.steps_done, last_step, quiet) as shown, interrupts() as received:
                while self.steps_done < last_step and not received:
                    self.advance()
                    shown(self.steps_done, describe(self.last_row))
                    if time.monotonic() - saved > SAVE_EVERY_SECONDS:
                        self._require_sound()
                        if path:
                            self.save(path, meta or {})
                        saved = time.monotonic()
        except NotFinite:
            if path and self.broken() is None:
                self.save(path, meta or {})
            raise
        self._require_sound()
        if path:
            self.save(path, meta or {})
        if received and self.steps_done < last_step:
            raise KeyboardInterrupt

    def broken(self) -> str | None:
        """What is not finite of parameters, buffers and what the optimiser remembers, or None.

        The opponent's come after the run's own.
        """
        theirs = self.opponent.broken() if self.opponent else None
        ours = broken(self.params, self.optimiser.memory)
        return ours or (f"the opponent's {theirs}" if theirs else None)

    def _require_sound(self) -> None:
        what = self.broken()
        if what:
            advice = "Try a smaller learning rate"
            raise NotFinite(f"after step {self.steps_done}: {what} is not finite. {advice}")

    @property
    def rows(self) -> list[dict[str, float]]:
        """The logged rows: term -> mean over an interval, and the step it ended at."""
        columns = self.history.values()
        return [dict(zip(self.history, row, strict=True)) for row in zip(*columns, strict=True)]

    @property
    def last_row(self) -> dict[str, float]:
        """The last logged row: term -> mean over its interval, and the step it ended at.

        Before the first is logged, the same of the steps so far.
        """
        if self.history:
            return {name: values[-1] for name, values in self.history.items()}
        return self._pending_row()

    def _pending_row(self) -> dict[str, float]:
        """The row of the steps since the last logged one."""
        steps = self.steps_done - (self.history["step"][-1] if self.history else 0)
        means = {name: total / steps for name, total in self._sums.items()}
        return {"step": self.steps_done, **means}

    def save(self, path: Path, meta: dict) -> None:
        """Write everything the run needs to continue bit for bit."""
        arrays = {"theta": to_host(self.params.theta), "step": np.asarray(self.steps_done)}
        states = {group: kept.state() if kept else {} for group, kept in self._kept().items()}
        states["buffers"] = {name: b.value for name, b in self.params.buffers.items()}
        for group, state in states.items():
            for name, value in state.items():
                is_number = isinstance(value, int | float)
                arrays[f"{group}/{name}"] = np.asarray(value) if is_number else to_host(value)
        for name, values in self.history.items():
            arrays[f"history/{name}"] = np.asarray(values, dtype=np.float64)
        for name, total in self._sums.items():
            arrays[f"pending/{name}"] = np.asarray(total, dtype=np.float64)
        checkpoint.save(path, arrays, {**meta, "layout": self.params.layout()})

    def restore(self, path: Path) -> dict:
        """Continue from a file that `save` wrote; returns its meta.

        Raises:
            CheckpointError: the file cannot be read, or belongs to another model.
        """
        arrays, meta = checkpoint.load(path)
        restore_parameters(self.params, arrays, meta, path)
        asarray = self.params.backend.asarray
        for group, target in self._kept().items():
            state = _group(arrays, group)
            if _shapes(state) != _shapes(target.state() if target else {}):
                raise checkpoint.CheckpointError(f"{path} was saved with another {group} setting")
            if target is not None:
                target.restore({k: asarray(v) if v.ndim else v.item() for k, v in state.items()})
        self.steps_done = int(arrays["step"])
        self.history = {k: v.tolist() for k, v in _group(arrays, "history").items()}
        self._sums = {k: float(v) for k, v in _group(arrays, "pending").items()}
        return meta

    def _kept(self) -> dict[str, Kept | None]:
        """Group of a checkpoint's arrays -> whose state they are, if the run has one."""
        return {
            "optimiser": self.optimiser,
            "ema": self.ema,
            "control": self.control,
            "guard": self.guard,
            "opponent": self.opponent,
        }


def restore_parameters(
    params: FlatParameters, arrays: dict[str, np.ndarray], meta: dict, path: Path
) -> None:
    """Put a checkpoint's parameters and buffers into a model of the same layout.

    Raises:
        CheckpointError: names or shapes differ, or an array is missing.
    """
    if meta.get("layout") != params.layout():
        raise checkpoint.CheckpointError(
            f"{path} holds the parameters of another model: names or shapes differ"
        )
    if not {"theta", "step"} <= set(arrays):
        raise checkpoint.CheckpointError(f"{path} lacks the arrays theta and step")
    buffers = _group(arrays, "buffers")
    if arrays["theta"].shape != params.theta.shape or set(buffers) != set(params.buffers):
        raise checkpoint.CheckpointError(f"{path} lacks parameters or buffers of this model")
    params.theta[...] = params.backend.asarray(arrays["theta"])
    params.changed()
    for name, buffer in params.buffers.items():
        buffer.value = params.backend.asarray(buffers[name])


def _shapes(state: dict) -> dict[str, tuple]:
    return {name: getattr(value, "shape", ()) for name, value in state.items()}


def _group(arrays: dict[str, np.ndarray], group: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(f"{group}/"): v for k, v in arrays.items() if k.startswith(f"{group}/")}
