"""Writes what all contenders start from.

    python prepare.py WORKLOAD FOLDER

Rivals do not trust what our code says of itself: they get arrays, which are the parameters to start
from and the batches, times and noise that three of our steps have really used.
"""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from ours import IMAGES, MIDDLE, STEPS, build, convolution
from workloads import GIVEN, WORKLOADS

from scratchgen.layers.normalisation import GroupNorm

COUNT = 2000  # black and white images; about as many as there are digits


@contextmanager
def recorded(model):
    """Within, the list of what each call of the model's loss is given."""
    loss, calls = model.loss, []

    def record(*arguments):
        calls.append(arguments[:-1])  # the last is a stream, for nets that drop out
        return loss(*arguments)

    model.loss = record
    try:
        yield calls
    finally:
        del model.loss


def prepare(name: str, folder: Path) -> None:
    """Write what all contenders start from."""
    work = WORKLOADS[name]
    if work.kind == "convolution":
        _, params, x, dy = convolution(work)
        weight = params.theta.reshape(3, 3, x.shape[-1], x.shape[-1])
        np.savez(folder / GIVEN, x=x, dy=dy, weight=weight)
        return
    if work.side:
        size = (COUNT, work.side, work.side)
        codes = np.random.default_rng(0).integers(2, size=size, dtype=np.uint8)
        np.savez(folder / IMAGES, x=codes, levels=2)
    recipe = build(work, folder)
    given = {
        f"θ/{name}": recipe.params.theta[p.window].reshape(p.shape).copy()
        for name, p in recipe.params.table.items()
    }
    facts = {**work.options}
    if work.model == "ddpm":
        facts["groups"] = next(norm.groups for _, norm in recipe.model.named(GroupNorm))
        given["log_alpha_bar"] = recipe.model.schedule.log_alpha_bar
    if work.kind == "reverse":
        shape = (work.options["batch_size"], *recipe.shape)
        stream = recipe.stream.at("given")
        given["start"] = stream.at("start").normal(shape)
        given["noise"] = np.stack([stream.at("z", i).normal(shape) for i in range(STEPS)])
        facts["first"] = int(recipe.stops(0)[MIDDLE].time)
    else:
        adam, config = recipe.fit.optimiser, recipe.config
        facts |= {key: getattr(adam, key) for key in ("beta1", "beta2", "tiny")}
        facts |= {"steps": config.steps, "peak": config.learning_rate}
        facts["rates"] = [adam.lr(step) for step in range(STEPS)]
        given["x"] = recipe.examples(recipe.fitted)
        with recorded(recipe.model) as calls:
            for _ in range(STEPS):
                recipe.fit.advance()
        for i, arguments in enumerate(calls):
            given |= {f"step {i}/{j}": array for j, array in enumerate(arguments)}
    np.savez(folder / GIVEN, facts=json.dumps(facts), **given)


if __name__ == "__main__":
    prepare(sys.argv[1], Path(sys.argv[2]))
