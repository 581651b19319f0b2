"""What a run's networks are made of: each layer's output, parameters and share of the memory.

One training step is run and watched. A layer's share is by how much the memory in use has grown
between the end of the layer before and its own: its output and what its pullback keeps, less the
input of the layer before, where no one keeps that. So shares may be negative; they add up to what
the step holds behind its last layer, with the batch in the first.
"""

import tracemalloc
from contextlib import contextmanager
from math import prod

from scratchgen.app.recipes.base import Recipe
from scratchgen.core.arrays import Backend
from scratchgen.core.module import Module, Parameter, observed

SMALL = 4096  # bytes: a part made of parts adds a few Python objects, unless it computes itself


class _Meter:
    """Bytes in use for arrays: on the GPU from CuPy's pool, else from Python's own tracing."""

    def __init__(self, born: Backend):
        self.pool = born.xp.get_default_memory_pool() if born.name == "cupy" else None
        self.most = 0

    @contextmanager
    def running(self):
        """Within, `now` and `most` count."""
        if self.pool is None:
            tracemalloc.start()
        try:
            yield
        finally:
            self.now()
            if self.pool is None:
                tracemalloc.stop()

    def now(self) -> int:
        """Bytes in use; `most` is the most there ever were (on a GPU, whenever this was asked)."""
        in_use, most = self.pool.used_bytes() if self.pool else None, 0
        if in_use is None:
            in_use, most = tracemalloc.get_traced_memory()
        self.most = max(self.most, in_use, most)
        return in_use


class _Rows:
    """The table that grows while a step is observed."""

    def __init__(self, model: Module, meter: _Meter):
        self.names = {id(module): name + "." for name, module in model.named(Module)}
        self.meter, self.last = meter, meter.now()
        self.counted: set[int] = set()
        self.rows: list[dict] = []

    def note(self, module: Module, name: str, layer, y) -> None:
        """The observer: one row for a part, unless it only hands on what its own parts do."""
        grown, parameters = self.meter.now() - self.last, self._fresh_parameters(layer)
        path = self.names.get(id(module), "") + name
        made_of_parts = any(row["name"].startswith(path + ".") for row in self.rows)
        if parameters or abs(grown) > SMALL or not made_of_parts:
            self.rows.append(
                {
                    "name": path,
                    "kind": getattr(layer, "name", type(layer).__name__),
                    "output": list(y.shape),
                    "parameters": parameters,
                    "bytes": grown,
                }
            )
        self.last = self.meter.now()  # what this row takes belongs to no layer

    def add_loose(self, model: Module) -> None:
        """Rows for parameters of no part, such as the start of a ladder."""
        for name, parameter in model.named(Parameter):
            if id(parameter) not in self.counted:
                size, shape = prod(parameter.shape), list(parameter.shape)
                row = {"name": name, "kind": "Parameter", "output": shape, "parameters": size}
                self.rows.append({**row, "bytes": 0})

    def _fresh_parameters(self, layer) -> int:
        owned = [p for _, p in layer.named(Parameter)] if isinstance(layer, Module) else []
        fresh = [p for p in owned if id(p) not in self.counted]
        self.counted.update(map(id, fresh))
        return sum(prod(p.shape) for p in fresh)


def dissect(recipe: Recipe) -> dict:
    """The layers in the order they run, and the totals of a step.

    Returns:
        layers: name, kind, output shape, parameters (where first used) and bytes of each.
        parameters, batch_size, peak_bytes: of the whole step; the peak is the pullbacks' too.
    """
    batch = slice(0, recipe.config.batch_size)
    recipe.loss(0, batch)  # what is made once is not a step's
    meter = _Meter(recipe.born)
    with meter.running():
        start, rows = meter.now(), _Rows(recipe.whole, meter)
        with observed(rows.note):
            recipe.loss(0, batch)
    rows.add_loose(recipe.whole)
    recipe.params.grad[...] = 0.0
    return {
        "layers": rows.rows,
        "parameters": sum(
            {id(p): prod(p.shape) for _, p in recipe.whole.named(Parameter)}.values()
        ),
        "batch_size": recipe.config.batch_size,
        "peak_bytes": meter.most - start,
    }


def print_dissection(found: dict) -> None:
    """The same as a table."""
    names, kinds = (max(len(row[k]) for row in found["layers"]) for k in ("name", "kind"))
    print(f"{'layer':{names}}  {'kind':{kinds}}{'output':>18}{'parameters':>12}{'MiB':>9}")
    for row in found["layers"]:
        shape = "×".join(map(str, row["output"]))
        mib = row["bytes"] / 2**20
        print(
            f"{row['name']:{names}}  {row['kind']:{kinds}}{shape:>18}"
            f"{row['parameters']:>12,}{mib:>9.2f}"
        )
    peak, held = found["peak_bytes"] / 2**20, sum(row["bytes"] for row in found["layers"]) / 2**20
    print(
        f"{found['parameters']:,} parameters; a step of batch {found['batch_size']} takes "
        f"{peak:.1f} MiB at its peak, beside parameters and data: {held:.1f} for these layers, the "
        "rest for the loss and within pullbacks\n"
        "MiB: the growth of memory from the layer before to this one; negative where more is let "
        "go than kept"
    )
