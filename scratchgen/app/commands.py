"""What each command does. Parsing stands in cli.py; names become objects in recipes/."""

import sys
import time
from pathlib import Path

import numpy as np

from scratchgen.app import plots, runs
from scratchgen.app.dissect import dissect
from scratchgen.app.recipes import RECIPES, Recipe
from scratchgen.app.recipes.base import config_to_json
from scratchgen.app.recipes.config import Config
from scratchgen.app.recipes.vae import VaeConfig, VaeRecipe
from scratchgen.training import checkpoint
from scratchgen.training.fit import NotFinite

IMPORTANCE_SAMPLES = 256
LONG = 10**8  # decoded numbers from which an evaluation takes minutes rather than seconds


def say(*words) -> None:
    """A line for people; results for programs go to standard output alone."""
    print(*words, file=sys.stderr, flush=True)


def demo(out: Path | None, seed: int = 0) -> None:
    """Train a VAE on the digits, measure it, draw from it: the whole way through, once."""
    began, config = time.monotonic(), VaeConfig(seed=seed)
    folder = runs.new_run(out, "demo")
    say(f"scratchgen demo: a VAE on 8×8 digits, {config.steps} steps, into {folder}")
    run = train(VaeRecipe(config), folder / "vae")
    print_evaluation(evaluate(run, "test"))
    sample(run, 64, seed=seed)
    say(f"done in {time.monotonic() - began:.0f} s; look at:")
    for figure in sorted((run / "figures").glob("*.png")):
        print(figure)


def train(
    recipe: Recipe, out: Path | None, stop_at: int | None = None, quiet: bool = False
) -> Path:
    """Train from scratch into a new run folder, and return it."""
    config = recipe.config
    last = _last_step(config, stop_at)
    folder = runs.new_run(out, f"{recipe.name}-{config.data}-s{config.seed}")
    runs.write_json(folder / "config.json", config_to_json(recipe))
    runs.write_json(folder / "environment.json", runs.environment(recipe.born))
    return _train(recipe, folder, last, quiet)


def resume(
    folder: Path,
    stop_at: int | None = None,
    quiet: bool = False,
    expected: dict | None = None,
) -> Path:
    """Continue an interrupted run to the end its configuration names.

    Args:
        folder: the run.
        stop_at, quiet: as for `train`.
        expected: options the user believes the run to have; refused where it has others.

    Raises:
        ValueError: the run has other options.
    """
    recipe = runs.read_recipe(folder)
    saved = config_to_json(recipe)
    for name, value in (expected or {}).items():
        if saved.get(name) != value:
            raise ValueError(
                f"{folder} was started with {name} {saved.get(name)}, not {value}; "
                "--resume keeps a run's own options, so leave that one out"
            )
    recipe.resume(folder / "checkpoint.npz")
    if recipe.fit.steps_done == recipe.config.steps:
        _finish(recipe, folder)
        if not quiet:
            say(f"{folder} had already taken all its {recipe.config.steps} steps; figures redrawn")
        return folder
    return _train(recipe, folder, _last_step(recipe.config, stop_at, recipe.fit.steps_done), quiet)


def _last_step(config: Config, stop_at: int | None, done: int = 0) -> int:
    last = config.steps if stop_at is None else stop_at
    if not done < last <= config.steps:
        raise ValueError(f"--stop-at must lie between {done + 1} and {config.steps}, got {last}")
    return last


def _train(recipe: Recipe, folder: Path, last: int, quiet: bool) -> Path:
    fit, config = recipe.fit, recipe.config
    go_on = f"go on with: scratchgen train --resume {folder}"
    if not quiet:
        size = recipe.params.theta.shape[0]
        say(f"training into {folder}: {size:,} parameters, {recipe.born.name} {config.dtype}")
    meta = {"config": config_to_json(recipe)}
    try:
        fit.until(last, folder / "checkpoint.npz", meta, quiet, recipe.describe)
    except KeyboardInterrupt:
        say(f"stopped at step {fit.steps_done}; {go_on}")
        raise
    finally:
        runs.write_metrics(folder / "metrics.csv", recipe)
    _finish(recipe, folder)
    if not quiet:
        say(f"wrote {folder}" + ("" if last == config.steps else f"; {go_on}"))
    return folder


def _finish(recipe: Recipe, folder: Path) -> None:
    """What follows from the checkpoint, written again."""
    runs.write_metrics(folder / "metrics.csv", recipe)
    recipe.training_figures(folder)


def load_run(folder: Path) -> Recipe:
    """A trained run with its averaged weights in place.

    Raises:
        RunError, CheckpointError: the folder or its checkpoint cannot be used.
    """
    recipe = runs.read_recipe(folder)
    recipe.use_average(folder / "checkpoint.npz")
    return recipe


def sample(folder: Path, n: int, seed: int = 0, temperature: float = 1.0) -> Path:
    """Draw n images, write samples.npz and figures/samples.png, return the latter.

    Raises:
        ValueError: a number is outside its range, or the model cannot generate.
        NotFinite: the images are not finite.
    """
    if n < 1:
        raise ValueError(f"-n must be at least 1, got {n}")
    if seed < 0:
        raise ValueError(f"--seed must be at least 0, got {seed}")
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(f"--temperature must be finite and not negative, got {temperature}")
    images = load_run(folder).sample(n, seed, temperature)
    if not np.isfinite(images).all():
        raise NotFinite(f"temperature {temperature:g} gives images that are not finite")
    with checkpoint.whole_file(folder / "samples.npz") as file:
        np.savez_compressed(file, x=images, seed=seed, temperature=temperature)
    figure = folder / "figures" / "samples.png"
    shown = images[: plots.MOST_TILES]
    which = f"{n} samples" if len(shown) == n else f"the first {len(shown)} of {n} samples"
    plots.image_grid(
        figure, shown, f"{which} (decoder means), seed {seed}, temperature {temperature:g}"
    )
    return figure


def evaluate(folder: Path, part: str = "test", samples: int = IMPORTANCE_SAMPLES) -> dict:
    """Measures of a trained run on one part of its data, and figures/reconstructions_PART.png.

    Raises:
        ValueError: a number is outside its range, or the run was trained on that part.
        NotFinite: a measure is not finite.
    """
    if samples < 1:
        raise ValueError(f"--samples must be at least 1, got {samples}")
    recipe = load_run(folder)
    if part == "validation" and not recipe.config.hold_out:
        raise ValueError("this run was trained on the validation part; train with --hold-out first")
    data = recipe.part(part)
    if len(data) * recipe.dims * samples > LONG:
        say(f"{len(data)} examples × {samples} latent samples take long; --samples 8 takes fewer")
    measures = recipe.evaluate(data, samples)
    odd = [name for name, value in measures.items() if not np.all(np.isfinite(_numbers(value)))]
    if odd:
        raise NotFinite(f"{folder} did not go well; not finite: {', '.join(odd)}")
    try:
        recipe.reconstruction_figure(folder, part)
    except OSError as error:
        say(f"note: the figure of reconstructions was not written: {error}")
    about = {"run": str(folder), "model": recipe.name, "part": part, "examples": len(data)}
    about |= {"dims": recipe.dims, "levels": data.levels}
    return {**about, **measures}


def _numbers(value) -> list[float]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else [value]


def print_evaluation(result: dict) -> None:
    """The same for people."""
    about = f"{result['examples']} {result['part']} examples, {result['dims']} dimensions"
    print(f"{about} of {result['levels']} levels")
    for line in RECIPES[result["model"]].report(result):
        print(line)


def info(folder: Path | None, reading: bool = False, net: bool = False) -> dict:
    """Versions and devices; what a run folder holds, or its nets are made of; what to read.

    Raises:
        ValueError: nets are asked for, but no run is named.
    """
    if net:
        if folder is None:
            raise ValueError("--net needs a run folder: scratchgen info --net RUN")
        return dissect(runs.read_recipe(folder))
    if reading:
        path = runs.reading_path()
        return {**path, "lines": sum(sum(files.values()) for files in path.values())}
    if folder is None:
        return runs.environment()
    config = config_to_json(runs.read_recipe(folder))
    arrays, meta = checkpoint.load(folder / "checkpoint.npz")
    return {
        "run": str(folder),
        **config,
        "steps_done": int(arrays["step"]),
        "parameters": int(arrays["theta"].size),
        "layout": meta["layout"],
    }


def print_info(values: dict, indent: str = "") -> None:
    """Nested names and values, one a line."""
    for name, value in values.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            print_info(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                print(f"{indent}{name}: " + ", ".join(f"{k} {v}" for k, v in item.items()))
        else:
            print(f"{indent}{name}: {value}")
