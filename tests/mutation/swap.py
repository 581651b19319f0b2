"""Put a mutant into the running process, so that everyone who imported the function gets it.

The mutated module is executed aside. Of the one function or class that differs, every code object
(with what is nested in it: our pullbacks) and every default is then given to the live one, which
keeps its identity. A changed constant is rebound in each module that holds it under its name. What
was computed before the swap (an object built while tests were collected, a constant derived from
another) stays as it was; caches are emptied.
"""

import inspect
import sys
from functools import cached_property
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from types import FunctionType
from typing import Any

from .operators import Mutant

ROOT = Path(__file__).parents[2]


class DoesNotImport(Exception):
    """The mutated module fails when it is executed."""


def module_of(path: Path):
    """The live module of a file: of this repository, or one that is on sys.path."""
    inside = path.resolve().is_relative_to(ROOT)
    parts = path.resolve().relative_to(ROOT).with_suffix("").parts if inside else (path.stem,)
    return import_module(".".join(parts))


def executed(mutant: Mutant) -> dict[str, Any]:
    """The names of the mutated module, executed aside.

    Raises:
        DoesNotImport: it fails.
    """
    live = module_of(mutant.path)
    names = {"__name__": live.__name__, "__file__": live.__file__, "__package__": live.__package__}
    try:
        exec(mutant.code(), names)
    except Exception as error:
        raise DoesNotImport(str(error)) from error
    return names


def install(mutant: Mutant) -> None:
    """Make the running process behave as if the mutant had been imported.

    Raises:
        DoesNotImport: it cannot be.
    """
    live, fresh = module_of(mutant.path), executed(mutant)
    outer = mutant.scope.partition(".")[0]
    if outer:
        _transplant(getattr(live, outer), fresh[outer])
    for name in mutant.assigned:
        if outer:
            setattr(getattr(live, outer), name, getattr(fresh[outer], name))
        else:
            _rebind(name, getattr(live, name), fresh[name])
    _forget(live)


def install_printed(where: str, printed) -> None:
    """Let `printed` answer for the function at "module:qualified.name", for all who hold it.

    Where `printed` calls the function that it replaces, it gets the right one.
    """
    module, _, name = where.partition(":")
    live = _function(attrgetter(name)(import_module(module)))
    original = FunctionType(live.__code__, live.__globals__, live.__name__, live.__defaults__)
    original.__kwdefaults__ = live.__kwdefaults__
    busy = []

    def answer(*args, **kwargs):
        if busy:
            return original(*args, **kwargs)
        busy.append(True)
        try:
            return printed(*args, **kwargs)
        finally:
            busy.pop()

    live.__globals__["__printed__"] = answer
    live.__code__ = (lambda *args, **kwargs: __printed__(*args, **kwargs)).__code__  # noqa: F821
    live.__defaults__ = live.__kwdefaults__ = None
    _forget(import_module(module))


def _transplant(live, fresh) -> None:
    if isinstance(fresh, type):
        for name, value in vars(fresh).items():
            if _function(value) and name in vars(live):
                try:
                    _transplant(vars(live)[name], value)
                except ValueError:  # without its super() it closes over less
                    setattr(live, name, value)
        return
    for mine, theirs in zip(_parts(live), _parts(fresh), strict=True):
        mine.__code__ = theirs.__code__
        mine.__defaults__, mine.__kwdefaults__ = theirs.__defaults__, theirs.__kwdefaults__


def _parts(value) -> list[FunctionType]:
    """The plain functions behind a function, method or property."""
    if isinstance(value, property):
        return [_function(part) for part in (value.fget, value.fset, value.fdel) if part]
    return [_function(value)]


def _function(value) -> FunctionType | None:
    """The plain function behind a decorated one; None where there is none."""
    if isinstance(value, property):
        value = value.fget
    value = value.func if isinstance(value, cached_property) else value
    value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    value = inspect.unwrap(value) if callable(value) else value
    return value if isinstance(value, FunctionType) else None


def _rebind(name: str, old, new) -> None:
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is old:
            setattr(module, name, new)


def _forget(live) -> None:
    """Empty every cache of the package and of the module that changed."""
    ours = [m for name, m in list(sys.modules.items()) if name.startswith("scratchgen.")]
    for module in [live, *ours]:
        for value in list(vars(module).values()):
            if hasattr(value, "cache_clear"):
                value.cache_clear()
