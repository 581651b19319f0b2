"""What each command does. Parsing stands in cli.py; names become objects in recipes/."""

import time
from dataclasses import replace
from pathlib import Path

from scratchgen.app import runs, workers
from scratchgen.app.dissect import dissect
from scratchgen.app.quality import (
    examples_of,
    other_data,
    quality_report,
    require_finite,
    require_same_data,
)
from scratchgen.app.recipes import RECIPES, Recipe
from scratchgen.app.recipes.base import config_to_json
from scratchgen.app.recipes.config import Config
from scratchgen.app.recipes.data import fingerprint
from scratchgen.app.recipes.vae import VaeConfig, VaeRecipe
from scratchgen.app.sampling import sample
from scratchgen.app.schedule_report import named_schedule, schedule_of
from scratchgen.app.workers import ALONE, Crew, Sharing
from scratchgen.training import checkpoint
from scratchgen.training.progress import say

AS_BEFORE = Sharing()
LONG = 10**8  # decoded numbers from which an evaluation takes minutes rather than seconds


def demo(out: Path | None, seed: int = 0, sharing: Sharing = ALONE) -> None:
    """Train a VAE on the digits, measure it, draw from it: the whole way through, once."""
    began, config = time.monotonic(), VaeConfig(seed=seed)
    folder = runs.new_run(out, "demo")
    say(f"scratchgen demo: a VAE on 8×8 digits, {config.steps} steps, into {folder}")
    run = train(VaeRecipe(config), folder / "vae", sharing=replace(sharing, workers=1))
    print_evaluation(evaluate(run, "test"))
    sample(run, 64, seed=seed)
    say(f"done in {time.monotonic() - began:.0f} s; look at:")
    for figure in sorted((run / "figures").glob("*.png")):
        print(figure)


def train(
    recipe: Recipe,
    out: Path | None,
    stop_at: int | None = None,
    quiet: bool = False,
    sharing: Sharing = ALONE,
) -> Path:
    """Train from scratch into a new run folder, and return it."""
    config = recipe.config
    last, crew = _last_step(config, stop_at), workers.crew(recipe, sharing)
    folder = runs.new_run(out, f"{recipe.name}-{Path(config.data).stem}-s{config.seed}")
    runs.write_json(folder / "config.json", config_to_json(recipe))
    facts = {**runs.environment(recipe.born), "workers": crew.number, "data": recipe.data_facts()}
    runs.write_json(folder / runs.ENVIRONMENT, facts)
    return _train(recipe, folder, last, quiet, crew)


def resume(
    folder: Path,
    stop_at: int | None = None,
    quiet: bool = False,
    expected: dict | None = None,
    sharing: Sharing = AS_BEFORE,
) -> Path:
    """Continue an interrupted run to the end its configuration names.

    Args:
        folder: the run.
        stop_at, quiet: as for `train`.
        expected: options the user believes the run to have; refused where it has others.
        sharing: how the work is shared; as before where the number of workers is left open, since
            the order of summation, and so the last digits, depends on it.

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
    last = _last_step(recipe.config, stop_at, recipe.fit.steps_done)
    crew = _crew_of(folder, recipe, sharing)
    changed = runs.record_changes(folder, recipe.born, crew.number)
    if changed and not quiet:
        others = ", ".join(changed)
        say(f"note: {folder} was trained with other {others}; last digits may depend on that")
    return _train(recipe, folder, last, quiet, crew)


def _crew_of(folder: Path, recipe: Recipe, sharing: Sharing) -> Crew:
    """Who trains on: as many as before, unless a number was asked for."""
    if sharing.workers is not None:
        return workers.crew(recipe, sharing)
    number = runs.recorded_workers(folder)
    try:
        return workers.crew(recipe, replace(sharing, workers=number))
    except ValueError as error:
        raise ValueError(f"{folder} was trained by {number} workers, but {error}") from error


def _last_step(config: Config, stop_at: int | None, done: int = 0) -> int:
    last = config.steps if stop_at is None else stop_at
    if not done < last <= config.steps:
        raise ValueError(f"--stop-at must lie between {done + 1} and {config.steps}, got {last}")
    return last


def _train(recipe: Recipe, folder: Path, last: int, quiet: bool, crew: Crew) -> Path:
    fit, config = recipe.fit, recipe.config
    fit.workers = crew.group()
    go_on = f"go on with: scratchgen train --resume {folder}"
    if not quiet:
        sizes = [
            f"{params.theta.shape[0]:,} parameters" + (f" of the {name}" if name else "")
            for name, params in recipe.sides.items()
        ]
        born = f"{recipe.born.name} {config.dtype}"
        say(f"training into {folder}: {' and '.join(sizes)}, {born}, {crew}")
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
        for remark in recipe.remarks():
            say(f"note: {remark}")
        say(f"wrote {folder}" + ("" if last == config.steps else f"; {go_on}"))
    return folder


def _finish(recipe: Recipe, folder: Path) -> None:
    """What follows from the checkpoint, written again."""
    runs.write_metrics(folder / "metrics.csv", recipe)
    recipe.training_figures(folder)


def evaluate(
    folder: Path,
    part: str = "test",
    draws: int | None = None,
    data: str | None = None,
    seed: int = 0,
    classifier: Path | None = None,
) -> dict:
    """Measures of a trained run on one part of its data, with their figures and tables.

    Args:
        folder: the run.
        part: of the data.
        draws: of noise for each example, or samples of a gan; the model's own number unless given.
        data: another data set of the same shape and levels, a name or a path; the run's own is as
            if left out.
        seed: of that noise, or of those samples.
        classifier: a run of `train classifier`, to ask where samples are judged.

    Raises:
        ValueError: a number is outside its range or would have no effect, the run was trained on
            that part, or the other data or the classifier do not fit it.
        NotFinite: a measure is not finite.
    """
    if draws is not None and draws < 1:
        raise ValueError(f"--draws must be at least 1, got {draws}")
    if seed < 0:
        raise ValueError(f"--seed must be at least 0, got {seed}")
    recipe = runs.load_run(folder)
    runs.require_same_examples(folder, recipe)
    if recipe.draws == 0 and (draws is not None or seed):
        raise ValueError(f"nothing is drawn to measure a {recipe.name}; leave out --draws, --seed")
    data = other_data(recipe, data)
    if classifier is not None:
        recipe.judge = require_same_data(runs.load_run(classifier), recipe)
    draws = recipe.draws if draws is None else draws
    examples = examples_of(recipe, part, data)
    if len(examples) < 2:
        raise ValueError(f"a standard error takes at least 2 examples, {part} has {len(examples)}")
    if recipe.per_example and len(examples) * recipe.dims * draws > LONG:
        say(f"{len(examples)} examples × {draws} draws of noise take long; --draws 8 takes fewer")
    with recipe.params.frozen():
        measures = recipe.evaluate(examples, draws, seed)
    require_finite(folder, measures)
    try:
        name = part
        if data is not None:  # two files may have one name, and what was written before stays
            name += f"_{Path(data).stem}_{fingerprint(examples)[:8]}"
        recipe.evaluation_files(folder, name, examples, measures)
    except OSError as error:
        say(f"note: the figures and tables were not all written: {error}")
    about = {"run": str(folder), "model": recipe.name, "part": part, "examples": len(examples)}
    about |= {"dims": recipe.dims, "levels": examples.levels}
    about |= {"seed": seed} if recipe.draws else {}
    return {**about, **({"data": data} if data else {}), **measures}


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
    return schedule_of(runs.load_run(folder))


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
    recipe = runs.read_recipe(folder)
    trained = folder / "checkpoint.npz"
    arrays, meta = checkpoint.load(trained)
    recipe.check_configuration(meta, trained)
    sizes = {name: params.theta.shape[0] for name, params in recipe.sides.items()}
    layout = {
        f"{name}.{parameter}" if name else parameter: shape
        for name, params in recipe.sides.items()
        for parameter, shape in params.layout().items()
    }
    return {
        "run": str(folder),
        **config_to_json(recipe),
        "steps_done": int(arrays["step"]),
        "parameters": sum(sizes.values()),
        **({"parameters_of": sizes} if len(sizes) > 1 else {}),
        "layout": layout,
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
