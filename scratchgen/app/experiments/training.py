"""How an experiment trains: to the end, with the averaged weights in place."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from scratchgen.app.recipes.base import Recipe, config_to_json
from scratchgen.app.runs import write_json
from scratchgen.core import twins
from scratchgen.training.fit import NotFinite

NOT_FINITE = 3  # exit code of a `train` that met such a number


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
        NotFinite: those that did not end well met a number that is not finite.
        ChildProcessError: one did not end well for another reason.
    """
    route = () if twins.active() else ("--no-fast",)
    with TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in recipes}
        started: dict[str, subprocess.Popen] = {}
        try:
            for name, recipe in recipes.items():
                config = config_to_json(recipe)
                write_json(folders[name] / "config.json", config)
                recipe.fit.save(folders[name] / "checkpoint.npz", {"config": config})
                train = ("train", "--resume", folders[name], "--workers", "1", "--quiet")
                command = (sys.executable, "-m", "scratchgen", *route, *train)
                started[name] = subprocess.Popen(command)
            codes = {name: process.wait() for name, process in started.items()}
        except BaseException:
            for process in started.values():
                process.terminate()
            for process in started.values():
                process.wait()  # until then they may write into the folder
            raise
        failed = {name: code for name, code in codes.items() if code}
        if failed:
            kind = NotFinite if set(failed.values()) == {NOT_FINITE} else ChildProcessError
            said = ", ".join(f"{name} (exit code {code})" for name, code in failed.items())
            raise kind(f"training did not end well: {said}")
        for name, recipe in recipes.items():
            recipe.use_average(folders[name] / "checkpoint.npz")
