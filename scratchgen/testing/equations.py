"""The catalogue of equations: which keys exist, what they say, and where they stand.

Statements, sources and errata are written by hand, in equations.toml. Where the code and the tests
name a key is read off their syntax trees into positions.json, which an installed package brings
along. In a checkout, write it anew with

    python -m scratchgen.testing.equations
"""

import ast
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

KINDS = ("equation", "erratum", "trap", "claim", "table")
STATES = ("tested", "claim", "not built yet")

SOURCE = re.compile(r"^ *Source: (.+)$", re.MULTILINE)

Definition = ast.FunctionDef | ast.ClassDef
Positions = dict[str, dict[str, list[str]]]


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
        code: "file:line name" of the functions and classes whose `Source:` line names it, or names
            what it concerns.
        tests: "file:line name" of the tests marked with it.
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
    code: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """The key without its number."""
        return self.key.partition("-")[0]

    @property
    def state(self) -> str:
        """One of STATES."""
        if self.tests:
            return "tested"
        return "not built yet" if self.testable else "claim"


@cache
def catalogue() -> dict[str, Equation]:
    """Key -> Equation, in the order of the file."""
    positions: Positions = json.loads(_text("positions.json"))
    found = {}
    for key, entry in _read()["equations"].items():
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()
        }
        code = [_at(positions, named, "code") for named in (key, *entry.get("concerns", ()))]
        found[key] = Equation(
            key=key,
            **values,
            code=tuple(dict.fromkeys(chain(*code))),
            tests=tuple(_at(positions, key, "tests")),
        )
    return found


def _at(positions: Positions, key: str, where: str) -> list[str]:
    return positions.get(key, {}).get(where, [])


def families() -> dict[str, str]:
    """Family, such as "VAE" -> what it is about, in the order of the catalogue."""
    return dict(_read()["families"])


def references() -> dict[str, str]:
    """Name, such as "Burda 2016" -> author, year, title and equation of what no source prints."""
    return dict(_read()["references"])


def find(key: str) -> Equation:
    """The entry of a key, whatever its case, hyphen and leading zeros.

    Raises:
        ValueError: there is none.
    """
    known = catalogue().get(_spelled(key))
    if known is None:
        close = ", ".join(nearest(key))
        hint = f"the nearest are {close}" if close else f"its families are {', '.join(families())}"
        raise ValueError(f"the catalogue has no {key!r}; {hint}")
    return known


def nearest(key: str) -> list[str]:
    """Up to three keys that look like this one, the most alike first."""
    return get_close_matches(_spelled(key), catalogue(), n=3, cutoff=0.5)


def _spelled(key: str) -> str:
    """As the catalogue spells it: DDPM-6 and ERR-06 for ddpm6 and err-6."""
    parts = re.fullmatch(r"([A-Z]+)[-_ ]?0*(\d+)", key.strip().upper())
    if not parts:
        return key.strip().upper()
    family, number = parts.groups()
    return f"{family}-{number:0>2}" if family == "ERR" else f"{family}-{number}"


def scan(package: Path, tests: Path) -> Positions:
    """Where the syntax trees of a package and its tests name each key of the catalogue."""
    found: Positions = {}
    for where, folder, named in (("code", package, sources), ("tests", tests, marks)):
        for path in sorted(folder.rglob("*.py")):
            file = path.relative_to(folder.parent).as_posix()
            for key, line, name in named(ast.parse(path.read_text("utf-8"))):
                places = found.setdefault(key, {"code": [], "tests": []})
                places[where].append(f"{file}:{line} {name}")
    return {key: found[key] for key in _read()["equations"] if key in found}


def sources(tree: ast.Module) -> Iterator[tuple[str, int, str]]:
    """(key or reference, line, qualified name) of what the `Source:` lines of docstrings name."""
    for name, node in _definitions(tree):
        for line in SOURCE.findall(ast.get_docstring(node) or ""):
            for source in line.split(","):
                yield source.strip(" []"), node.lineno, name


def _definitions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield prefix + child.name, child
            yield from _definitions(child, f"{prefix}{child.name}.")
        else:
            yield from _definitions(child, prefix)


def marks(tree: ast.Module) -> Iterator[tuple[str, int, str]]:
    """(key, line, qualified name) of the tests marked with `pytest.mark.equation(key)`.

    The mark may stand on the test, on its class or in a `pytestmark`, in a parameter of
    `parametrize`, or under a name that the file gives it.
    """
    names: dict[str, set[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            keys = _marked([node.value], names)
            names |= {target.id: keys for target in node.targets if isinstance(target, ast.Name)}
    yield from _marked_tests(tree, set(), names)


def _marked_tests(scope, inherited: set[str], names: dict[str, set[str]], prefix: str = ""):
    assigned = [node for node in scope.body if isinstance(node, ast.Assign)]
    own = [node.value for node in assigned if ast.unparse(node.targets[0]) == "pytestmark"]
    inherited = inherited | _marked(own, names)
    for node in scope.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            for key in sorted(inherited | _marked(node.decorator_list, names)):
                yield key, node.lineno, prefix + node.name
        elif isinstance(node, ast.ClassDef):
            keys = inherited | _marked(node.decorator_list, names)
            yield from _marked_tests(node, keys, names, f"{node.name}.")


def _marked(nodes: Iterable[ast.AST], names: dict[str, set[str]]) -> set[str]:
    """Keys of the marks below these nodes."""
    keys = set()
    for node in (below for top in nodes for below in ast.walk(top)):
        match node:
            case ast.Call(func=ast.Attribute(attr="equation"), args=[ast.Constant(value=str(key))]):
                keys.add(key)
            case ast.Name(id=name):
                keys |= names.get(name, set())
    return keys


@cache
def _read() -> dict:
    return tomllib.loads(_text("equations.toml"))


def _text(name: str) -> str:
    return files("scratchgen.testing").joinpath(name).read_text("utf-8")


def write_positions() -> None:
    """Write positions.json of this checkout.

    Raises:
        SystemExit: the package stands in no checkout: there are no tests beside it.
    """
    here = Path(__file__)
    package, tests = here.parents[1], here.parents[2] / "tests"
    if not tests.is_dir():
        raise SystemExit(f"{tests} does not exist; run this in a checkout")
    text = json.dumps(scan(package, tests), indent=1, ensure_ascii=False)
    here.with_name("positions.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    write_positions()
