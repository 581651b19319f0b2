"""Prints what `harness.compare` returns, and writes it with the machine it was measured on."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path


def table(compared: dict) -> str:
    """One comparison as lines of text, in milliseconds a step."""
    lines = [f"{'':36}{'median':>9}{'lowest':>9}{'highest':>9}"]
    for result in compared["results"]:
        times = (1e3 * result[key] for key in ("median_seconds", "low", "high"))
        lines.append(f"{result['implementation'] + ', ms a step':36}" + _columns(times, 1))
    for ratio in compared["ratios"]:
        numbers = (ratio[key] for key in ("median", "low", "high"))
        lines.append(f"{'ratio to ' + ratio['over']:36}" + _columns(numbers, 2))
    for result in compared["results"]:
        lines.append(f"thread pools of {result['implementation']}: {'; '.join(result['pools'])}")
    lines.append(f"outputs and gradients differ by at most {compared['largest_difference']:.1e}")
    return "\n".join([compared["results"][0]["workload"], *lines])


def _columns(numbers, digits: int) -> str:
    return "".join(f"{number:9.{digits}f}" for number in numbers)


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


def write_json(path: Path, about: dict, comparisons: list[dict]) -> None:
    """Write the machine, all results and all ratios."""
    lists = {
        key: [row for compared in comparisons for row in compared[key]]
        for key in ("results", "ratios")
    }
    text = json.dumps({"machine": about, **lists}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", "utf-8")
