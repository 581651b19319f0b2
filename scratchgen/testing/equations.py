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
        statement: what holds, in one line.
        printed: where the sources print it.
        errata: keys of what they print wrong about it.
        wrong: of an erratum, the form as printed.
        why: of an erratum, why that is wrong.
        concerns: of an erratum or a trap, the keys it belongs to.
        testable: whether a test can hold it.
    """

    key: str
    kind: str
    statement: str
    printed: str
    errata: tuple[str, ...] = ()
    wrong: str = ""
    why: str = ""
    concerns: tuple[str, ...] = ()
    testable: bool = True


@cache
def catalogue() -> dict[str, Equation]:
    """Key -> Equation, in the order of the file."""
    return {key: Equation(key=key, **entry) for key, entry in _read()["equations"].items()}


@cache
def references() -> dict[str, str]:
    """Name, such as "Burda 2016" -> author, year, title and equation of what no source prints."""
    return dict(_read()["references"])


def _read() -> dict:
    return tomllib.loads(files("scratchgen.testing").joinpath("equations.toml").read_text("utf-8"))
