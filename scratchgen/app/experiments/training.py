"""How an experiment trains: to the end, with the averaged weights in place."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from scratchgen.app.recipes.base import Recipe, config_to_json
from scratchgen.app.runs import write_json
from scratchgen.core import twins
from scratchgen.training.fit import NotFinite


def trained(recipe: Recipe) -> Recipe:
    """The recipe after all its steps, with its averaged weights in place."""
    recipe.fit.until(recipe.config.steps, quiet=True)
    recipe.params.theta = recipe.ema.average
    return recipe


def train_side_by_side(recipes: dict[str, Recipe]) -> None:
    """Train each recipe in a process of its own, all at once, as `train --resume` would.

    Each process is one worker, as there are several of them; and like this one, it takes the faster
    twins or leaves them.

    Raises:
        NotFinite: a process did not end well.
    """
    route = () if twins.active() else ("--no-fast",)
    with TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in recipes}
        started = []
        for name, recipe in recipes.items():
            config = config_to_json(recipe)
            write_json(folders[name] / "config.json", config)
            recipe.fit.save(folders[name] / "checkpoint.npz", {"config": config})
            train = ("train", "--resume", folders[name], "--workers", "1", "--quiet")
            command = (sys.executable, "-m", "scratchgen", *route, *train)
            started.append(subprocess.Popen(command))
        try:
            codes = [process.wait() for process in started]
        except BaseException:
            for process in started:
                process.terminate()
            raise
        if any(codes):
            raise NotFinite(f"training ended with the exit codes {codes}")
        for name, recipe in recipes.items():
            recipe.use_average(folders[name] / "checkpoint.npz")
