"""What each command does. Parsing stands in cli.py; names become objects in recipes/."""

import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen.app import plots, runs
from scratchgen.app.dissect import dissect
from scratchgen.app.quality import (
    can_be_judged,
    judge_for,
    quality_report,
    require_enough,
    require_same_data,
    sample_quality,
)
from scratchgen.app.recipes import RECIPES, Recipe
from scratchgen.app.recipes.base import Sampled, config_to_json
from scratchgen.app.recipes.classifier import ClassifierRecipe
from scratchgen.app.recipes.config import Config
from scratchgen.app.recipes.data import load as load_data
from scratchgen.app.recipes.vae import VaeConfig, VaeRecipe
from scratchgen.app.schedule_report import named_schedule, schedule_of
from scratchgen.training import checkpoint
from scratchgen.training.fit import NotFinite

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
    folder = runs.new_run(out, f"{recipe.name}-{Path(config.data).stem}-s{config.seed}")
    runs.write_json(folder / "config.json", config_to_json(recipe))
    facts = {**runs.environment(recipe.born), "data": recipe.data_facts()}
    runs.write_json(folder / "environment.json", facts)
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
    runs.require_same_examples(folder, recipe)
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


def sample(folder: Path, n: int, seed: int = 0, given: dict | None = None) -> Path:
    """Draw n samples, write samples.npz and figures/samples.png, return the latter.

    Args:
        folder: the run.
        n: how many.
        seed: random seed.
        given: options of the run's model, by name.

    Raises:
        ValueError: a number is outside its range, the model has no such option or cannot generate.
        NotFinite: the samples are not finite.
    """
    if n < 1:
        raise ValueError(f"-n must be at least 1, got {n}")
    if seed < 0:
        raise ValueError(f"--seed must be at least 0, got {seed}")
    recipe, given = load_run(folder), given or {}
    options = _sampling(recipe, given)
    drawn = recipe.sample(n, seed, options)
    if not np.isfinite(drawn.x).all():
        raise NotFinite("samples are not finite; try a lower temperature, or more steps")
    arrays: dict[str, Any] = {"x": drawn.x, "seed": seed, **asdict(options)}
    if drawn.path:
        arrays["path"] = np.stack(drawn.path)
    with checkpoint.whole_file(folder / "samples.npz") as file:
        np.savez_compressed(file, **arrays)
    named = {name.replace("_", " "): value for name, value in given.items() if value is not True}
    said = [f"seed {seed}", *(f"{name} {value}" for name, value in named.items())]
    return _show_samples(recipe, folder, drawn, ", ".join(said))


def _show_samples(recipe: Recipe, folder: Path, drawn: Sampled, said: str) -> Path:
    """figures/samples.png, and the way to them where it was kept."""
    figures, n = folder / "figures", len(drawn.x)
    shown = drawn.x[: plots.MOST_TILES]
    which = f"{n} samples" if len(shown) == n else f"the first {len(shown)} of {n} samples"
    if drawn.x.ndim == 2:
        known = recipe.part("test").x[:n]
        plots.point_cloud(figures / "samples.png", drawn.x, f"{recipe.name}, {said}", known)
    else:
        title = f"{which} ({recipe.shows}), {said}"
        plots.image_grid(figures / "samples.png", shown, title)
    if drawn.path:
        some = [frame[:8] if frame.ndim > 2 else frame[:2000] for frame in drawn.path]
        ends = len(some) - 1
        labels = ["noise", *[""] * (ends - 1), "sample"]
        plots.strip(figures / "trajectory.png", some, labels, f"from noise to samples, {said}")
        tiles = [frame[: plots.MOST_TILES] for frame in drawn.path]
        plots.moving_picture(figures / "trajectory.gif", tiles, round(len(tiles[0]) ** 0.5))
    return figures / "samples.png"


def evaluate(
    folder: Path, part: str = "test", draws: int | None = None, data: str | None = None
) -> dict:
    """Measures of a trained run on one part of its data, with their figures and tables.

    Args:
        folder: the run.
        part: of the data.
        draws: of noise for each example; the model's own number unless given.
        data: another data set of the same shape and levels, a name or a path.

    Raises:
        ValueError: a number is outside its range, the run was trained on that part, or the other
            data do not fit it.
        NotFinite: a measure is not finite.
    """
    if draws is not None and draws < 1:
        raise ValueError(f"--draws must be at least 1, got {draws}")
    recipe = load_run(folder)
    draws = recipe.draws if draws is None else draws
    examples = _examples(recipe, part, data)
    if len(examples) * recipe.dims * draws > LONG:
        say(f"{len(examples)} examples × {draws} draws of noise take long; --draws 8 takes fewer")
    measures = recipe.evaluate(examples, draws)
    _require_finite(folder, measures)
    try:
        recipe.evaluation_files(folder, part, examples, measures)
    except OSError as error:
        say(f"note: the figures and tables were not all written: {error}")
    about = {"run": str(folder), "model": recipe.name, "part": part, "examples": len(examples)}
    about |= {"dims": recipe.dims, "levels": examples.levels}
    return {**about, **({"data": data} if data else {}), **measures}


def quality(
    folder: Path,
    part: str,
    n: int,
    seed: int = 0,
    given: dict | None = None,
    classifier: Path | None = None,
) -> dict:
    """How good n samples of a run are, beside real data.

    Args:
        folder: the run.
        part: the held-out part to compare with.
        n, seed, given: as for `sample`.
        classifier: a run of `train classifier` whose features to compare; one is trained unless
            given.

    Raises:
        ValueError: a number is outside its range, or the classifier does not fit the run.
        NotFinite: a measure is not finite.
    """
    recipe = load_run(folder)
    examples, options = _examples(recipe, part, None), _sampling(recipe, given or {})
    require_enough(recipe, examples, n)
    if classifier is not None:
        judge: ClassifierRecipe | None = require_same_data(load_run(classifier), recipe)
    else:
        if can_be_judged(recipe):
            say("training a small classifier to judge the samples; or name one: --classifier RUN")
        judge = judge_for(recipe)
    found = sample_quality(recipe, examples, n, seed, options, judge)
    _require_finite(folder, found)
    return found


def _examples(recipe: Recipe, part: str, data: str | None):
    """One part of a run's data, or of other data that fit it."""
    if data is not None:
        examples = load_data(replace(recipe.config, data=data), part)
        theirs, ours = (examples.shape, examples.levels), (recipe.shape, recipe.fitted.levels)
        if theirs != ours:
            raise ValueError(
                f"the run takes examples of shape {ours[0]} with {ours[1]} levels; {data} has "
                f"{theirs[0]} with {theirs[1]}"
            )
        return examples
    if part == "validation" and not recipe.config.hold_out:
        raise ValueError("this run was trained on the validation part; train with --hold-out first")
    return recipe.part(part)


def _sampling(recipe: Recipe, given: dict):
    """The sampler's options of a run.

    Raises:
        ValueError: the model has no such option, or a value is outside its range.
    """
    odd = sorted(set(given) - {each.name for each in fields(recipe.sampling_type)})
    if odd:
        raise ValueError(f"--{odd[0].replace('_', '-')} is not an option of a {recipe.name}")
    return recipe.sampling_type(**given)


def _require_finite(folder: Path, measures: dict) -> None:
    odd = [name for name, value in measures.items() if not np.all(np.isfinite(_numbers(value)))]
    if odd:
        raise NotFinite(f"{folder} did not go well; not finite: {', '.join(odd)}")


def _numbers(value) -> list[float]:
    """Every number in nested lists and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for each in value for number in _numbers(each)]
    return [] if isinstance(value, str) else [value]


def print_evaluation(result: dict) -> None:
    """The same for people."""
    about = f"{result['examples']} {result['part']} examples, {result['dims']} dimensions"
    print(about + (f" of {result['levels']} levels" if result["levels"] else ""))
    for line in RECIPES[result["model"]].report(result):
        print(line)
    if "quality" in result:
        print()
        for line in quality_report(result["quality"]):
            print(line)


def schedule(folder: Path | None, name: str, steps: int) -> dict:
    """What a noise schedule does to the data: of a run, or of a name.

    Args:
        folder: a diffusion's run, with its learned schedule; None for a schedule by name.
        name: "linear" or "cosine"; "" where a run is named.
        steps: T of a schedule by name.

    Raises:
        ValueError: both are named, or the run is no diffusion.
    """
    if folder is None:
        return named_schedule(name or "linear", steps)
    if name:
        raise ValueError("a run has its own schedule; name the run or the schedule, not both")
    return schedule_of(load_run(folder))


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
