"""What `evaluate` says of the samples of a GAN, for people."""

from math import ceil

ENOUGH = 10  # expected samples of a mode or class, below which one may be missing by chance


def lines(result: dict) -> list[str]:
    """How many samples there are, and which modes or classes they show and which they do not."""
    if "high_quality" in result:
        found = _of_modes(result)
    elif "classifier_accuracy" in result:
        found = _of_classes(result)
    else:
        found = ["there are no modes or classes to count; --samples N adds distances from data"]
    return [f"{result['samples']} samples", *found]


def shown(drawn: float, real: float) -> bool:
    """Whether a class with that share of the data has at least a tenth of it among the samples."""
    return 10.0 * drawn >= real


def _of_modes(result: dict) -> list[str]:
    covered, known, spread = result["covered"], result["modes"], result["spread"]
    good = 100.0 * result["high_quality"]
    found = [
        f"modes covered: {covered} of {known}",
        f"high-quality samples, within 3 standard deviations of a mode: {good:.1f} % "
        "(of data 98.9 %)",
        f"spread of those of a mode, over its own: {spread:.2f} (of data 0.97)",
    ]
    if covered == 0:
        found.append("warning: no mode is covered; the generator has not learned the data")
    elif covered < known:
        found.append(_warning("modes are missing", result["samples"], 1.0 / known))
    return found


def _of_classes(result: dict) -> list[str]:
    drawn, real = result["class_shares_of_samples"], result["class_shares_of_data"]
    found = [f"a classifier, right on {100.0 * result['classifier_accuracy']:.1f} % of data:"]
    for name, shares in (("samples", drawn), ("data", real)):
        confidence, each = result[f"confidence_on_{name}"], " ".join(f"{s:.2f}" for s in shares)
        found.append(f"  {name:8} mean confidence {confidence:.3f}, shares of classes {each}")
    missing = [i for i in range(len(real)) if real[i] > 0.0 and not shown(drawn[i], real[i])]
    if missing:
        what = f"too few samples of classes {', '.join(map(str, missing))}"
        found.append(_warning(what, result["samples"], min(real[i] for i in missing)))
    return found


def _warning(what: str, n: int, rarest: float) -> str:
    """That something is missing among n samples, where the rarest of it has that share of data."""
    need = ceil(ENOUGH / rarest)
    if n < need:
        return f"warning: {what}, which may be chance; --draws {need} or more would tell"
    return f"warning: {what}; the generator leaves them out, or misses them"
