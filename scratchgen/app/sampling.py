"""What `scratchgen sample` does: draw, keep, show."""

import time
from dataclasses import asdict, fields
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen.app import diffusion_plots, plots, runs
from scratchgen.app.recipes import Recipe
from scratchgen.app.recipes.base import Sampled
from scratchgen.app.recipes.config import flag_of
from scratchgen.app.workers import ALONE, Sharing, processes
from scratchgen.training import checkpoint
from scratchgen.training.fit import NotFinite
from scratchgen.training.progress import say


def sample(
    folder: Path,
    n: int,
    seed: int = 0,
    given: dict | None = None,
    sharing: Sharing = ALONE,
) -> Path:
    """Draw n samples, write samples.npz and figures/samples.png, return the latter.

    The files of the next call are samples_2.npz, figures/samples_2.png and so on.

    Args:
        folder: the run.
        n: how many.
        seed: random seed.
        given: options of the run's model, by name.
        sharing: how many processes may draw side by side.

    Raises:
        ValueError: a number is outside its range, the model has no such option or cannot generate.
        NotFinite: the samples are not finite.
    """
    if n < 1:
        raise ValueError(f"-n must be at least 1, got {n}")
    if seed < 0:
        raise ValueError(f"--seed must be at least 0, got {seed}")
    recipe, given = runs.load_run(folder), given or {}
    several, options = processes(recipe, sharing), sampling_options(recipe, given)
    began = time.monotonic()
    drawn = recipe.sample(n, seed, options, several)
    seconds = time.monotonic() - began
    if not np.isfinite(drawn.x).all():
        raise NotFinite("samples are not finite; try a lower temperature, or more steps")
    arrays: dict[str, Any] = {"x": drawn.x, "seed": seed, **asdict(options)}
    if drawn.path:
        arrays["path"] = np.stack(drawn.path)
    suffix = _keep(folder, arrays)
    say(f"drew {n} samples in {seconds:.1f} s, into {folder}/samples{suffix}.npz")
    named = {name.replace("_", " "): value for name, value in {"seed": seed, **given}.items()}
    said = [name if value is True else f"{name} {value}" for name, value in named.items()]
    return _show_samples(recipe, folder, drawn, ", ".join(said), suffix)


def _keep(folder: Path, arrays: dict) -> str:
    """Write samples.npz, or samples_2.npz, ..., whichever is not there; returns "", or "_2", ..."""
    for number in count(1):
        suffix = f"_{number}" if number > 1 else ""
        path = folder / f"samples{suffix}.npz"
        try:
            path.touch(exist_ok=False)  # claims the number, should two calls run at once
            break
        except FileExistsError:
            continue
    try:
        with checkpoint.whole_file(path) as file:
            np.savez_compressed(file, **arrays)
    except BaseException:
        path.unlink()
        raise
    return suffix


def _show_samples(recipe: Recipe, folder: Path, drawn: Sampled, said: str, suffix: str) -> Path:
    """figures/samples.png, and the way to them where it was kept."""
    figures, n = folder / "figures", len(drawn.x)
    path = figures / f"samples{suffix}.png"
    shown, title = drawn.x, f"{recipe.name}, {said}"
    if drawn.x.ndim > 2:
        shown = drawn.x[: plots.MOST_TILES]
        which = f"{n} samples" if len(shown) == n else f"the first {len(shown)} of {n} samples"
        title = f"{which} ({recipe.shows}), {said}"
    plots.samples(path, shown, title, recipe.part("test"), drawn.columns)
    if drawn.path:
        some = [frame[:8] if frame.ndim > 2 else frame[:2000] for frame in drawn.path]
        between = [""] * (len(some) - 2)
        for name, frames, ends, title in (
            ("trajectory", some, ("noise", "sample"), f"from noise to samples, {said}"),
            ("forward", drawn.forward, ("data", "noise"), "training examples become noise"),
        ):
            labels = [ends[0], *between, ends[1]]
            diffusion_plots.strip(figures / f"{name}{suffix}.png", frames, labels, title)
        tiles = [frame[: plots.MOST_TILES] for frame in drawn.path]
        columns = round(len(tiles[0]) ** 0.5)
        diffusion_plots.moving_picture(figures / f"trajectory{suffix}.gif", tiles, columns)
        others = f"trajectory{suffix}.png, trajectory{suffix}.gif and forward{suffix}.png"
        say(f"also wrote {others} to {figures}")
    return path


def sampling_options(recipe: Recipe, given: dict):
    """The sampler's options of a run.

    Raises:
        ValueError: the model has no such option, or a value is outside its range.
    """
    odd = sorted(set(given) - {each.name for each in fields(recipe.sampling_type)})
    if odd:
        raise ValueError(f"the sampler of {recipe.name} has no option {flag_of(odd[0])}")
    return recipe.sampling_type(**given)
