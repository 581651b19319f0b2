"""Evaluate one batch: its mean terms, its gradient, and where a number stops being finite."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from math import isfinite
from typing import Any

from scratchgen.core.arrays import namespace
from scratchgen.core.module import FlatParameters, Module, observed
from scratchgen.core.parallel import SOLO, Shard, Workers


class NotFinite(ArithmeticError):
    """A number was not finite; for a loss the message names step, term and layer."""


def batch_means(
    module: Module,
    params: FlatParameters,
    shard: Shard,
    batch_size: int,
    workers: Workers,
    within: Callable[[], AbstractContextManager],
    when: str,
) -> dict[str, float]:
    """The means of a batch's terms; its gradient is left in params.grad.

    Args:
        module: the model; names the layer where a value stops being finite.
        params: its parameters.
        shard: rows -> {term: (n,)}; runs the pullback of their share of the batch mean.
        batch_size: the number of rows.
        workers: who evaluates them.
        within: makes the context in which they do.
        when: what a message begins with, such as "step 6".

    Returns:
        Term -> mean, in the terms' unit.

    Raises:
        NotFinite: a mean is not finite. The gradient is zero then, as after any other error.
    """
    try:
        with within():
            terms = workers.run(params, shard, batch_size)
        means = {name: _mean(term) for name, term in terms.items()}
        for name, mean in means.items():
            if not isfinite(mean):
                where = _where(module, params, shard, batch_size)
                raise NotFinite(f"{when}: the loss term {name!r} is {mean}; {where}")
    except BaseException:
        params.grad[...] = 0.0
        raise
    return means


def broken(params: FlatParameters, memory: dict[str, Any]) -> str | None:
    """What of a run's state is not finite, by name, or None.

    A gradient may be finite and its square not. Then a parameter stands still from there on, while
    θ and every loss look sound: only the optimiser's memory shows it.

    Args:
        params: parameters and buffers.
        memory: name -> vector like θ that their optimiser remembers.
    """
    for name, buffer in params.buffers.items():
        xp = namespace(buffer.value)
        if not bool(xp.all(xp.isfinite(buffer.value))):
            return f"buffer {name}"
    parameter = params.first_nonfinite()
    if parameter:
        return f"parameter {parameter}"
    for name, vector in memory.items():
        parameter = params.first_nonfinite(vector)
        if parameter:
            return f"optimiser's {name} of {parameter}"
    return None


def _mean(term) -> float:
    """The same as the library's mean, whose many cases are felt where steps are short."""
    return float(namespace(term).sum(term)) / term.shape[0]


def _where(module: Module, params: FlatParameters, shard: Shard, batch_size: int) -> str:
    parameter = params.first_nonfinite()
    if parameter:
        return f"parameter {parameter} is not finite, so an earlier update broke it"
    layer = _first_nonfinite_layer(module, params, shard, batch_size)
    where = f"first in the output of layer {layer}" if layer else "behind the last layer"
    return f"the value stops being finite {where}. Try a smaller learning rate"


def _first_nonfinite_layer(module, params, shard, batch_size) -> str | None:
    names = {id(module): name for name, module in module.named(Module)}
    found: list[str] = []

    def look(parent: Module, name: str, layer, y) -> None:
        xp = namespace(y)
        if not found and not bool(xp.all(xp.isfinite(y))):
            found.append(f"{names.get(id(parent), '')}.{name}".lstrip("."))

    with observed(look), params.frozen():  # alone, so that "first" has a meaning
        SOLO.run(params, shard, batch_size)
    return found[0] if found else None
