"""A readable function may be given a faster twin.

The readable one is marked; whoever owns the faster one registers it together with the condition
under which it applies. Nothing that reads the marked function has to know.

    @readable
    def softplus(x): ...

    register(softplus, fast_softplus, applies=lambda x: type(x) is np.ndarray)

A twin must give the same result up to rounding; that is a property test's business. Traced and
strict arrays satisfy no twin's condition and always take the readable route.
"""

from collections.abc import Callable
from contextlib import contextmanager
from functools import wraps
from typing import Any

_twins: dict[Callable, tuple[Callable, Callable[..., bool]]] = {}
_off = 0


def readable(function: Callable) -> Callable:
    """Mark a function as one that may be given a faster twin."""

    @wraps(function)
    def door(*args: Any, **kwargs: Any):
        twin = None if _off else _twins.get(door)
        if twin and twin[1](*args, **kwargs):
            return twin[0](*args, **kwargs)
        return function(*args, **kwargs)

    door.readable = function  # type: ignore[attr-defined]
    return door


def register(marked: Callable, twin: Callable, applies: Callable[..., bool]) -> None:
    """Let `twin` answer for `marked` wherever applies(*args, **kwargs) holds.

    Raises:
        ValueError: the function is not marked as readable, or already has a twin.
    """
    if not hasattr(marked, "readable"):
        raise ValueError(f"{marked.__name__} must be marked with @readable to have a twin")
    if marked in _twins:
        raise ValueError(f"{marked.__name__} already has a twin")
    _twins[marked] = (twin, applies)


def active() -> list[str]:
    """The names of the functions that a twin may answer for now."""
    return [] if _off else sorted(f"{f.__module__}.{f.__qualname__}" for f in _twins)


@contextmanager
def disabled():
    """Within, every function takes its readable route."""
    global _off
    _off += 1
    try:
        yield
    finally:
        _off -= 1
