"""Packages that one feature needs and the rest does not."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any


class MissingPackage(ImportError):
    """A feature was asked for whose package is not installed."""


def optional(module: str, feature: str) -> Any:
    """Import a module of a package that need not be there.

    Args:
        module: its full name, such as "scipy.io"; the package to install is its first part.
        feature: what needs it, as the subject of a sentence in the plural.

    Returns:
        The module.

    Raises:
        MissingPackage: it cannot be imported; the message says how to install the package.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingPackage(
            f"{feature} need the package {package}; install it with: pip install {package}"
        ) from error


def is_there(package: str) -> bool:
    """Whether a package can be imported and has a file of its own.

    Python takes any folder for a package, also one where only a __pycache__ has been left behind.
    """
    spec = find_spec(package)
    return spec is not None and spec.origin is not None
