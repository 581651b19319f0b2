"""Published results, remade from nothing: recorded values and the comparison.

results/NAME.json holds what was recorded: every seed's values, and for each value the mean, its
standard error over the seeds, and the tolerance 3 standard errors + 0.005. A seed that was recorded
is compared with its own value, where the arithmetic is the recorded one. Any other is compared with
the mean, and then the tolerance is Student's: what one more run of the same kind exceeds once in a
hundred times, over all the values of the result, + 0.005. So is every seed where the arithmetic
differs: rounding alone turns an adversarial game into another game of the same kind.
"""

import json
import shutil
import subprocess
import time
from importlib.resources import files
from math import isfinite, pi, sqrt
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from scratchgen.app.experiments import EXPERIMENTS, SLOW
from scratchgen.app.runs import environment, write_json, write_text
from scratchgen.training.fit import NotFinite

SEEDS, LEAST_SEEDS = 5, 3
SLACK = 0.005
RESULTS = files("scratchgen.app").joinpath("results")
FALSE_ALARM = 0.01  # for a seed that was not recorded, over all values of a result
BEGIN = "<!-- results: written by `scratchgen reproduce --readme` -->\n"
END = "<!-- end of results -->"


def recorded(name: str) -> dict:
    """What results/NAME.json holds.

    Raises:
        ValueError: no result of that name was recorded.
    """
    known = recorded_names()
    if name not in known:
        raise ValueError(
            f"there is no recorded result {name!r}; the recorded ones are {', '.join(known)}"
        )
    return json.loads(RESULTS.joinpath(f"{name}.json").read_text("utf-8"))


def recorded_names() -> list[str]:
    """The experiments whose result was recorded."""
    return [name for name in EXPERIMENTS if RESULTS.joinpath(f"{name}.json").is_file()]


def summaries() -> dict[str, str]:
    """Every experiment, and what its result is."""
    known = recorded_names()
    return {n: recorded(n)["what"] if n in known else "not recorded yet" for n in EXPERIMENTS}


def reproduce(name: str, seed: int) -> dict:
    """Remake a result for one seed and compare it with what was recorded.

    Returns:
        "name", "seed", "seconds", "holds", and "values": each value's "found", "recorded",
        "tolerance" and "holds".

    Raises:
        ValueError: no result of that name was recorded, or the seed is negative.
        NotFinite: a value is not finite.
    """
    before = recorded(name)
    if seed < 0:
        raise ValueError(f"--seed must be at least 0, got {seed}")
    began = time.monotonic()
    found = EXPERIMENTS[name](seed)
    alike = _arithmetic(before["environment"]) == _arithmetic(environment())
    own = before["seeds"].get(str(seed)) if alike else None
    count, values = len(before["seeds"]), {}
    t = t_quantile(FALSE_ALARM / len(before["values"]), count - 1)
    for value, summary in before["values"].items():
        if not isfinite(found[value]):
            raise NotFinite(f"{name}, seed {seed}: {value} is {found[value]}")
        # one run against the mean of n scatters by s √(1 + 1/n) = (s/√n) √(n + 1)
        spread = 3.0 if own is not None else t * sqrt(count + 1.0)
        expected = summary["mean"] if own is None else own[value]
        tolerance = spread * summary["standard_error"] + SLACK
        values[value] = {
            "found": found[value],
            "recorded": expected,
            "tolerance": tolerance,
            "holds": abs(found[value] - expected) <= tolerance,
        }
    return {
        "name": name,
        "seed": seed,
        "seconds": time.monotonic() - began,
        "holds": all(v["holds"] for v in values.values()),
        "values": values,
    }


def _arithmetic(about: dict) -> tuple:
    """What of an environment decides the last digits."""
    numpy = about["packages"]["numpy"]
    return about["system"], numpy, about["blas"], about["active_twins"]


def t_quantile(alpha: float, freedom: int) -> float:
    """t with P(|T| > t) = alpha for Student's t: T = √ν tan θ, where θ has density ∝ cos^(ν-1)."""
    angle = np.linspace(0.0, 0.5 * pi, 200_001)
    density = np.cos(angle) ** (freedom - 1)
    tail = np.cumsum(density[::-1])[::-1] / density.sum()
    return sqrt(freedom) * float(np.tan(angle[np.argmin(np.abs(tail - alpha))]))


def print_reproduction(result: dict) -> None:
    """The same for people."""
    print(f"{result['name']}, seed {result['seed']}, {result['seconds']:.0f} s")
    print(f"{'':50}{'found':>10}{'recorded':>10}{'tolerance':>10}")
    for value, v in result["values"].items():
        verdict = "" if v["holds"] else "  outside its tolerance"
        numbers = f"{v['found']:10.4f}{v['recorded']:10.4f}{v['tolerance']:10.4f}"
        print(f"{value:50}{numbers}{verdict}")


def record(name: str, folder: Path, seeds: int | None = None) -> dict:
    """Run an experiment for seeds 0, 1, ... and write folder/NAME.json.

    Raises:
        ValueError: an unknown experiment, fewer than three seeds, or uncommitted changes.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment must be one of {', '.join(EXPERIMENTS)}, got {name!r}")
    seeds = LEAST_SEEDS if seeds is None and name in SLOW else SEEDS if seeds is None else seeds
    if seeds < LEAST_SEEDS:
        raise ValueError(f"a standard error needs at least {LEAST_SEEDS} seeds, got {seeds}")
    commit, began = _commit(), time.monotonic()
    runs = {str(seed): EXPERIMENTS[name](seed) for seed in range(seeds)}
    for seed, run in runs.items():
        if not all(isfinite(found) for found in run.values()):
            raise NotFinite(f"{name}, seed {seed}: not every value is finite: {run}")
    values = {}
    for value in runs["0"]:
        each = [run[value] for run in runs.values()]
        error = stdev(each) / sqrt(seeds)
        values[value] = {
            "mean": mean(each),
            "standard_error": error,
            "tolerance": 3.0 * error + SLACK,
        }
    made = {
        "name": name,
        "what": (EXPERIMENTS[name].__doc__ or name).splitlines()[0],
        "command": f"scratchgen reproduce {name}",
        "values": values,
        "seeds": runs,
        "seconds_per_seed": (time.monotonic() - began) / seeds,
        "commit": commit,
        "environment": environment(),
    }
    write_json(folder / f"{name}.json", made)
    return made


def tables() -> str:
    """The recorded values as Markdown, for the README: one table, and one for each crossed result.

    A result whose values are all named "measure, column, row", or all "measure, column", is shown
    with rows and columns.
    """
    plain = ["| result | value | mean ± s.e. | seeds | command |", "|---|---|---|---|---|"]
    crossed = []
    for name in recorded_names():
        result = recorded(name)
        seeds, command, values = len(result["seeds"]), result["command"], result["values"]
        if all(", " in value for value in values):
            crossed += ["", f"`{command}`, {seeds} seeds:", *_crossed(values)]
            continue
        for value, summary in values.items():
            cells = (name, value.replace("_", " "), _cell(summary), str(seeds), f"`{command}`")
            plain.append(f"| {' | '.join(cells)} |")
    return "\n".join([*plain, *crossed]) + "\n"


def _crossed(values: dict) -> list[str]:
    cells = {}
    for value, summary in values.items():
        first, second, *row = value.split(", ", 2)
        cells[(first, second, *row) if row else ("", second, first)] = _cell(summary)
    lines: list[str] = []
    for measure in dict.fromkeys(place[0] for place in cells):
        mine = [place for place in cells if place[0] == measure]
        columns = list(dict.fromkeys(column for _, column, _ in mine))
        lines += ["", f"| {measure} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for row in dict.fromkeys(row for _, _, row in mine):
            found = (cells.get((measure, column, row), "–") for column in columns)
            lines.append(f"| {row} | {' | '.join(found)} |")
    return lines


def _cell(summary: dict) -> str:
    if abs(summary["mean"]) < 1e-9 and summary["standard_error"] < 1e-9:
        return "0, up to rounding"
    if summary["standard_error"] < 1e-9:
        return f"{summary['mean']:.9g}"
    return f"{summary['mean']:.4g} ± {summary['standard_error']:.2g}"


def write_readme(path: Path) -> None:
    """Replace the table of results in a README between its two marks.

    Raises:
        ValueError: the file has no such marks.
    """
    text = path.read_text("utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path} must hold the marks {BEGIN.strip()!r} and {END!r}")
    head, rest = text.split(BEGIN, 1)
    write_text(path, head + BEGIN + tables() + END + rest.split(END, 1)[1])


def _commit() -> str:
    """The commit of the checkout this runs from, or "unknown" where it is none.

    Raises:
        ValueError: the checkout has changes that no commit holds.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return "unknown"

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if shutil.which("git") is None:
        return "unknown"
    if git("status", "--porcelain", "--untracked-files=no", "--", "*.py"):
        raise ValueError("commit the changes first: a record names the commit it was made from")
    return git("rev-parse", "HEAD")
