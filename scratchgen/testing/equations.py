"""The catalogue of equations: which keys exist, what they say and where the sources print them."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

KINDS = ("equation", "erratum", "trap", "claim", "table")


@dataclass(frozen=True)
class Equation:
    """One entry of the catalogue.

    Attributes:
        key: such as "VAE-5".
        kind: one of KINDS.
        statement: the equation in one line.
        printed: where the sources print it.
        erratum: what is wrong there, or "".
    """

    key: str
    kind: str
    statement: str
    printed: str
    erratum: str = ""


@cache
def catalogue() -> dict[str, Equation]:
    """Key -> Equation, in the order of the file."""
    entries = _read()["equations"]
    return {key: Equation(key=key, **entry) for key, entry in entries.items()}


@cache
def references() -> dict[str, str]:
    """Name, such as "Burda 2016" -> author, year, title and equation of what no source prints."""
    return dict(_read()["references"])


def _read() -> dict:
    return tomllib.loads(files("scratchgen.testing").joinpath("equations.toml").read_text("utf-8"))
