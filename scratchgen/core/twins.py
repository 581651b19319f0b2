"""A readable function may be given faster twins.

The readable one is marked; whoever owns a faster one registers it together with the condition under
which it applies. Nothing that reads the marked function has to know.

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

Twin = tuple[Callable, Callable[..., bool]]
_twins: dict[Callable, list[Twin]] = {}
_off = 0


def readable(function: Callable) -> Any:
    """Mark a function as one that may be given faster twins."""

    @wraps(function)
    def door(*args: Any, **kwargs: Any):
        if not _off:
            for twin, applies in _twins.get(door, ()):
                if applies(*args, **kwargs):
                    return twin(*args, **kwargs)
        return function(*args, **kwargs)

    door.readable = function  # type: ignore[attr-defined]
    return door


def register(marked: Callable, twin: Callable, applies: Callable[..., bool]) -> None:
    """Let `twin` answer for `marked` wherever applies(*args, **kwargs) holds.

    A function may have several, for different inputs; the first that applies answers.

    Raises:
        ValueError: the function is not marked as readable, or already has this twin.
    """
    if not hasattr(marked, "readable"):
        raise ValueError(f"{marked.__name__} must be marked with @readable to have a twin")
    known = _twins.setdefault(marked, [])
    if any(twin is other for other, _ in known):
        raise ValueError(f"{marked.__name__} already has the twin {twin.__name__}")
    known.append((twin, applies))


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
