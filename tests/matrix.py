"""The table of layers against backends that pytest prints at its end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

DIRECTIONS = ("forward", "pullback", "pushforward")
NONE_NEEDED = "-"  # nothing differentiates twice through it: no critic is built of it
COLUMNS = {
    "numpy-float64": "numpy f64",
    "numpy-float32": "numpy f32",
    "array_api_strict-float64": "strict f64",
    "array_api_strict-float32": "strict f32",
    "cupy-float64": "cupy f64",
    "cupy-float32": "cupy f32",
}

# layer -> backend -> direction -> "ok", "FAILED" or NONE_NEEDED
cells: dict[str, dict[str, dict[str, str]]] = {}


@contextmanager
def cell(layer: str, backend: str, direction: str) -> Iterator[Callable[[str], None]]:
    """Within, a direction is tried: it has failed unless the end is reached.

    Yields:
        A function that replaces "ok" by another word.
    """
    directions, words = cells.setdefault(layer, {}).setdefault(backend, {}), ["ok"]
    directions[direction] = "FAILED"
    yield words.append
    directions[direction] = words[-1]


def table() -> list[str]:
    """One row a layer; a cell holds forward, pullback and pushforward."""
    if not cells:
        return []
    width = max(map(len, cells))
    ran = {name for backends in cells.values() for name in backends}
    rows = [f"{'layer or net':<{width}}" + "".join(f"{head:>13}" for head in COLUMNS.values())]
    for layer, backends in cells.items():
        found = (
            " ".join(backends[name].values()) if name in backends else _absent(name, ran)
            for name in COLUMNS
        )
        rows.append(f"{layer:<{width}}" + "".join(f"{text:>13}" for text in found))
    legend = (
        f"{', '.join(DIRECTIONS)}; {NONE_NEEDED}: no pushforward, as no critic here is made of it"
    )
    return [*rows, f"a cell: {legend}"]


def _absent(name: str, ran: set[str]) -> str:
    return "no GPU here" if name.startswith("cupy") and name not in ran else "not run"
