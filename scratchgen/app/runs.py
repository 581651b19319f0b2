"""Run folders: one folder a run, with everything needed to read, sample, evaluate or resume it.

config.json        the model and every option
environment.json   versions, backend, device, BLAS threads, workers, twins, the data's fingerprint
metrics.csv        the logged loss terms
checkpoint.npz     parameters, averages, optimiser: see training/checkpoint.py
figures/*.png      pictures
samples.npz        samples; those of later calls are in samples_2.npz, samples_3.npz, ...
"""

import json
import platform
from importlib import metadata
from pathlib import Path

from scratchgen.app.recipes import Recipe, recipe_from_json
from scratchgen.app.recipes.data import NAMES
from scratchgen.app.tables import write_table
from scratchgen.core import twins
from scratchgen.core.arrays import Backend, BackendUnavailable, backend
from scratchgen.core.version import __version__
from scratchgen.training import checkpoint

ENVIRONMENT = "environment.json"


class RunError(ValueError):
    """A folder is not a run, or cannot become one."""


def new_run(out: Path | None, label: str) -> Path:
    """The path of a fresh run folder.

    Args:
        out: where the user wants it, or None for runs/NNNN-label in the working directory.
        label: such as "vae-digits-s0".

    Raises:
        RunError: the place is taken.
    """
    if out is None:
        root = Path("runs")
        heads = [path.name.split("-")[0] for path in root.glob("*-*")]
        numbers = [int(head) for head in heads if head.isdigit()]
        number = max(numbers, default=0) + 1
        while True:
            run = root / f"{number:04d}-{label}"
            try:
                run.mkdir(parents=True)  # claims the number, should two runs start at once
                return run
            except FileExistsError:
                number += 1
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} must be a new or an empty folder; choose another or remove it")
    return out


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole."""
    with checkpoint.whole_file(path, "w") as file:
        file.write(text)


def write_json(path: Path, values) -> None:
    """Write a JSON file as a whole."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_metrics(path: Path, recipe: Recipe) -> None:
    """What was logged, as CSV: the step and the recipe's columns, whose names hold their units."""
    rows = recipe.fit.rows
    if rows:
        columns = [recipe.columns(row) for row in rows]
        lines = ([int(r["step"]), *c.values()] for r, c in zip(rows, columns, strict=True))
        write_table(path, ["step", *columns[0]], lines)


def read_recipe(run: Path) -> Recipe:
    """The recipe of a run folder, untrained.

    Raises:
        RunError: the folder has no readable config.json, or the files it was trained on are gone.
    """
    path = run / "config.json"
    if not path.is_file():
        raise RunError(f"{run} is not a run folder: it has no config.json")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        data = saved.get("data") if isinstance(saved, dict) else None
        if isinstance(data, str) and data not in NAMES and not Path(data).exists():
            raise ValueError(
                f"the data, {data}, are no longer there; bring them back, or leave a link to them"
            )
        return recipe_from_json(saved)
    except ValueError as error:
        raise RunError(f"{path} cannot be used: {error}") from error


def load_run(folder: Path) -> Recipe:
    """A trained run with its averaged weights in place.

    Raises:
        RunError, CheckpointError: the folder or its checkpoint cannot be used.
    """
    recipe = read_recipe(folder)
    recipe.use_average(folder / "checkpoint.npz")
    return recipe


def require_same_examples(run: Path, recipe: Recipe) -> None:
    """Refuse to go on with other examples than the run began with.

    Of files, parts are drawn anew where one is added or missing; what was held out may then have
    been trained on.

    Raises:
        RunError: what lies at the data's path has changed.
    """
    began = _recorded(run).get("data", {}).get("sha256")
    now = recipe.data_facts()["sha256"]
    if began not in (None, now):
        raise RunError(
            f"{run} was begun with other examples than {recipe.config.data} now holds "
            f"(SHA-256 {began[:12]}, now {now[:12]}); bring the files back, or train anew"
        )


def recorded_workers(run: Path) -> int:
    """How many shared the batches of a run; 1 where nothing says so.

    Raises:
        RunError: what stands there is no such number.
    """
    number = _recorded(run).get("workers", 1)
    if type(number) is not int or number < 1:
        raise RunError(f"{run / ENVIRONMENT} cannot be used: its workers are {number!r}")
    return number


def record_changes(run: Path, born: Backend, number: int) -> list[str]:
    """Note down what results may depend on from now on; returns what of it has changed.

    Args:
        run: its folder.
        born: where its arrays are.
        number: of those who share the batches.
    """
    known, now = _recorded(run), {**environment(born), "workers": number}
    changed = [name for name in known if name in now and known[name] != now[name]]
    if {**known, **now} != known:
        write_json(run / ENVIRONMENT, {**known, **now})
    return changed


def _recorded(run: Path) -> dict:
    """What environment.json holds, or nothing where it is missing."""
    path = run / ENVIRONMENT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def environment(born: Backend | None = None) -> dict:
    """What a result may depend on besides its configuration."""
    from threadpoolctl import threadpool_info

    packages = {}
    for name in ("numpy", "array-api-compat", "matplotlib", "cupy-cuda13x", "cupy-cuda12x"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    blas = [
        {key: pool.get(key) for key in ("internal_api", "version", "architecture", "num_threads")}
        for pool in threadpool_info()
        if pool.get("user_api") == "blas"
    ]
    return {
        "scratchgen": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": packages,
        "blas": blas,
        "backends": {name: _device(name) for name in ("numpy", "cupy")},
        **({"backend": born.name} if born else {}),
        "active_twins": twins.active(),
    }


READING_PATH = ("core", "layers", "maths", "nets", "models", "training")


def reading_path() -> dict[str, dict[str, int]]:
    """Folder -> file -> lines, in the order to read them in."""
    package = Path(__file__).parents[1]
    found = {}
    for folder in READING_PATH:
        files = [p for p in sorted((package / folder).glob("*.py")) if p.stem != "__init__"]
        found[folder] = {p.name: p.read_text("utf-8").count("\n") for p in files}
    return found


def _device(name: str) -> str:
    try:
        xp = backend(name).xp
    except BackendUnavailable:
        return "not available"
    if name == "numpy":
        return "cpu"
    return xp.cuda.runtime.getDeviceProperties(0)["name"].decode()
