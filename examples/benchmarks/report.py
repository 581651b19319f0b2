"""Prints what `harness.compare` returns, and writes it with the machine it was measured on."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from statistics import geometric_mean

MIB = 2**20


def table(results: list[dict], ratios: list[dict]) -> str:
    """Markdown: one table of times and memory, and one of ratios."""
    lines = [
        "| workload | contender | ms a step (lowest–highest) | memory of a step, MiB |",
        "|---|---|---|---|",
    ]
    for row in results:
        times = _span(*(1e3 * row[key] for key in ("median_seconds", "low", "high")))
        memory = f"{row['peak_bytes'] / MIB:.0f}"
        lines.append(f"| {row['workload']} | {row['implementation']} | {times} | {memory} |")
    sides = list(dict.fromkeys(ratio["side"] for ratio in ratios))
    ours = list(dict.fromkeys(ratio["implementation"] for ratio in ratios))
    heads = [f"{name} / {side}" for name in ours for side in sides]
    lines += ["", f"| workload | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    best = [ratio for ratio in ratios if ratio["fastest"]]
    for workload in dict.fromkeys(ratio["workload"] for ratio in ratios):
        found = {(r["implementation"], r["side"]): r for r in best if r["workload"] == workload}
        cells = [_ratio(found.get((name, side))) for name in ours for side in sides]
        lines.append(f"| {workload} | {' | '.join(cells)} |")
    convolutions = [ratio for ratio in best if ratio["workload"].startswith("conv-")]
    if convolutions:
        cells = [_mean(convolutions, name, side) for name in ours for side in sides]
        lines.append(f"| all conv, geometric mean | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(ratios: list[dict], name: str, side: str) -> str:
    chosen = [r["median"] for r in ratios if (r["implementation"], r["side"]) == (name, side)]
    return f"{geometric_mean(chosen):.2f}" if chosen else "–"


def agreement(rows: list[dict]) -> str:
    """One line for each workload."""
    return "\n".join(
        f"{row['workload']}: contenders differ by at most {row['largest_difference']:.1e}"
        for row in rows
    )


def _ratio(ratio: dict | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f}), {ratio['over']}"


def _span(median: float, low: float, high: float) -> str:
    """Three digits of each."""
    digits = 3 if high < 1.0 else 2 if high < 10.0 else 1 if high < 100.0 else 0
    return f"{median:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def machine(threads: int, libraries: tuple[str, ...]) -> dict:
    """What the times depend on.

    Args:
        threads: of each contender.
        libraries: distributions whose versions count.
    """
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "threads": threads,
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def write_json(path: Path, about: dict, found: dict[str, list[dict]]) -> None:
    """Write the machine, and all results, ratios and agreements."""
    text = json.dumps({"machine": about, **found}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", "utf-8")
