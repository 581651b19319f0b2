"""What a run's networks are made of: each layer's output, parameters and share of the memory.

One training step is run and watched. The memory of a layer is what is still allocated when its
forward pass ends and was not when it began: its output and whatever its pullback keeps, less what
it made superfluous. The first layer's share holds the batch as well. The shares add up to what the
step holds before its pullbacks run.
"""

import tracemalloc
from math import prod

from scratchgen.app.recipes.base import Recipe
from scratchgen.core.module import Module, Parameter, observed

SMALL = 4096  # bytes


class _Meter:
    """Bytes allocated for arrays now, and at most so far, on a backend's device."""

    def __init__(self, name: str, xp):
        self.pool = xp.get_default_memory_pool() if name == "cupy" else None
        self.most = 0
        if self.pool is None:
            tracemalloc.start()

    def now(self) -> int:
        held, most = (self.pool.used_bytes(), 0) if self.pool else tracemalloc.get_traced_memory()
        self.most = max(self.most, held, most)
        return held

    def stop(self) -> None:
        if self.pool is None:
            tracemalloc.stop()


def dissect(recipe: Recipe) -> dict:
    """The layers in the order they run, and the totals of a step.

    Returns:
        layers: name, kind, output shape, parameters (where first used) and bytes of each.
        parameters, batch_size, peak_bytes: of the whole step; the peak is the pullbacks' too.
    """
    recipe.loss(0, slice(0, recipe.config.batch_size))  # what is made once is not a step's
    names = {id(module): name + "." for name, module in recipe.model.named(Module)}
    rows: list[dict] = []
    counted: set[int] = set()
    meter = _Meter(recipe.born.name, recipe.born.xp)
    start = last = meter.now()

    def note(module: Module, name: str, layer, y) -> None:
        nonlocal last
        grown, last = meter.now() - last, meter.now()
        owned = layer.named(Parameter) if isinstance(layer, Module) else ()
        fresh = [p for _, p in owned if id(p) not in counted]
        counted.update(map(id, fresh))
        parameters = sum(prod(p.shape) for p in fresh)
        # a part made of parts adds nothing but a few Python objects, unless it computes itself
        if layer is not None and (parameters or abs(grown) > SMALL):
            rows.append(
                {
                    "name": names.get(id(module), "") + name,
                    "kind": getattr(layer, "__name__", type(layer).__name__),
                    "output": list(y.shape),
                    "parameters": parameters,
                    "bytes": grown,
                }
            )
        last = meter.now()  # what was noted here belongs to no layer

    with observed(note):
        recipe.loss(0, slice(0, recipe.config.batch_size))
    meter.now()
    meter.stop()
    recipe.params.grad[...] = 0.0
    return {
        "layers": rows,
        "parameters": recipe.params.theta.shape[0],
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
    peak = found["peak_bytes"] / 2**20
    print(
        f"{found['parameters']:,} parameters; a step of batch {found['batch_size']} takes "
        f"{peak:.1f} MiB at its peak, beside parameters and data\n"
        "MiB: what is allocated behind a layer and was not before it, kept for its pullback; "
        "negative where it frees more than it keeps"
    )
