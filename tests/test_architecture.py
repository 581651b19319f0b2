"""The house: imports point down, docstrings say what they must, nothing is too slow to import."""

import ast
import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import scratchgen

PACKAGE = Path(scratchgen.__file__).parent
PATHS = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text("utf-8")) for path in PATHS}
every_file = pytest.mark.parametrize("path", PATHS, ids=lambda p: str(p.relative_to(PACKAGE)))


def floors() -> dict[str, int]:
    """Room -> height, from the contract in setup.cfg that import-linter enforces too."""
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / "setup.cfg", encoding="utf-8")
    lines = setup["importlinter:contract:floors"]["layers"].split("\n")
    stack = [line.split("|") for line in lines if line.strip()]
    return {room.strip(" ()"): -i for i, rooms in enumerate(stack) for room in rooms}


def imported(tree) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@every_file
def test_imports_point_down_and_never_sideways(path):
    height, room = floors(), path.relative_to(PACKAGE).parts[0]
    if room not in height:
        assert room in ("__init__.py", "__main__.py")
        return
    for name in imported(TREES[path]):
        package, _, rest = name.partition(".")
        there = rest.split(".")[0]
        if package == "scratchgen" and there != room:
            assert height[there] < height[room], f"{room} imports {name}"


@every_file
def test_library_code_validates_without_assert(path):
    allowed = path.parent.name == "testing"  # their very business
    asserts = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.Assert)]
    assert allowed or not asserts


def public(tree, prefix=""):
    for node in tree.body:
        if any(ast.unparse(d).endswith(".setter") for d in getattr(node, "decorator_list", ())):
            continue  # its getter says what it is
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{node.name}.")


def raises(node) -> bool:
    """Whether the body itself raises, not counting functions inside."""
    inner = {
        sub
        for child in ast.walk(node)
        if isinstance(child, ast.FunctionDef) and child is not node
        for sub in ast.walk(child)
    }
    return any(
        isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call) and child not in inner
        for child in ast.walk(node)
    )


@every_file
def test_public_names_have_docstrings_with_the_sections_they_need(path):
    assert ast.get_docstring(TREES[path]), "every file says what it is"
    for name, node in public(TREES[path]):
        text = ast.get_docstring(node)
        assert text, f"{name} has no docstring"
        first = text.splitlines()[0]
        assert len(first) <= 100
        sections = [line.strip() for line in text.splitlines()]
        if isinstance(node, ast.FunctionDef) and raises(node) and path.parent.name != "app":
            assert "Raises:" in sections, name
        if "Args:" in sections and "Returns:" in sections:
            assert sections.index("Args:") < sections.index("Returns:")


@pytest.mark.parametrize(
    "path", [p for p in PATHS if p.parent.name in ("maths", "models")], ids=lambda p: p.stem
)
def test_maths_and_models_name_their_sources(path):
    for name, node in public(TREES[path]):
        text = ast.get_docstring(node) or ""
        if isinstance(node, ast.FunctionDef) and "Returns:" in text:
            assert "Source:" in text, f"{name} returns a formula but names no source"


def test_importing_costs_less_than_numpy_does():
    """The lowest CPU time of nine fresh processes each, in turn: other programs only add to it."""

    clock = "import time; t = time.process_time(); import {}; print(time.process_time() - t)"

    def seconds(modules):
        ran = subprocess.run(
            [sys.executable, "-c", clock.format(modules)],
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # starting more is NumPy's cost
            capture_output=True,
            text=True,
            check=True,
        )
        return float(ran.stdout)

    pairs = [(seconds("numpy"), seconds("numpy, scratchgen")) for _ in range(9)]
    alone, both = map(min, zip(*pairs, strict=True))
    assert both - alone < alone


WITHOUT_TWINS = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]  # no editable installation's own
sys.path.insert(0, {place!r})
import numpy as np
import scratchgen
from scratchgen.app import cli
from scratchgen.core import twins
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.core.arrays import backend
from scratchgen.nets.unet import UNet
from scratchgen.training.optim import Adam

assert scratchgen.__file__.startswith({place!r}), scratchgen.__file__
assert "scratchgen.fast" not in sys.modules
assert twins.active() == []
stream = Stream(0, backend("numpy"))
net = UNet(8, n_in=1, n_out=1, width=8, reads_data=True)
params = FlatParameters(net, stream.at("initial"))
adam, before = Adam(params), params.theta.copy()
y, pullback = net(stream.at("x").normal((2, 8, 8, 1)), stream.at("t").uniform((2,)))
pullback(y - 1.0)
adam.step()
assert np.any(params.theta != before)
assert np.all(np.isfinite(params.theta))
"""


def test_nothing_needs_the_twins(tmp_path):
    """A copy of the package is imported and trains, with nothing left of them but a folder."""
    ignored = shutil.ignore_patterns("fast", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "scratchgen", ignore=ignored)
    (tmp_path / "scratchgen" / "fast" / "__pycache__").mkdir(parents=True)
    command = [sys.executable, "-c", WITHOUT_TWINS.format(place=str(tmp_path))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
