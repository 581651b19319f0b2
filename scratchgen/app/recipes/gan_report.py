"""What `evaluate` says of the samples of a GAN, for people."""

from math import ceil

ENOUGH = 10  # expected samples of a mode or class, below which one may be missing by chance
POOR = 0.5  # a share of samples near modes, or a spread, that is far from the data's
MIXED = "data_with_shuffled_pixels"
LISTED = 12  # classes that are still named one by one
LEFT_OUT = "the generator leaves them out, or misses them"


def lines(result: dict) -> list[str]:
    """How many samples there are, and which modes or classes they show and which they do not."""
    if "high_quality" in result:
        found = _of_modes(result)
    elif "classifier_accuracy" in result:
        found = _of_classes(result)
    else:
        found = ["there are no modes or classes to count; --samples N adds distances from data"]
    return [f"{result['samples']} samples of seed {result['seed']}", *found]


def shown(drawn: float, real: float) -> bool:
    """Whether a class with that share of the data has at least a tenth of it among the samples."""
    return 10.0 * drawn >= real


def _of_modes(result: dict) -> list[str]:
    covered, known, spread = result["covered"], result["modes"], result["relative_spread"]
    good = 100.0 * result["high_quality"]
    found = [
        f"modes covered: {covered} of {known}",
        f"high-quality samples, within 3 standard deviations of a mode: {good:.1f} % "
        "(of data 98.9 %)",
        f"spread of those of a mode, over its own: {spread:.2f} (of data 0.97)",
    ]
    if covered == 0:
        why = "the generator has not learned the data"
        found.append(_warning("no mode is covered", result["samples"], 1.0 / known, why))
    elif covered < known:
        found.append(_warning("modes are missing", result["samples"], 1.0 / known))
    if covered and result["high_quality"] < POOR:
        found.append("warning: many samples lie between modes; train for more --steps")
    if covered and spread < POOR:
        found.append("warning: the samples of a mode are too much alike; the data's are not")
    return found


def _of_classes(result: dict) -> list[str]:
    drawn, real = result["class_shares_of_samples"], result["class_shares_of_data"]
    found = [f"a classifier, right on {100.0 * result['classifier_accuracy']:.1f} % of data:"]
    for name in ("samples", "data", MIXED):
        shares = _written(result[f"class_shares_of_{name}"])
        confidence = result[f"confidence_on_{name}"]
        found.append(f"  {name.replace('_', ' '):26}mean confidence {confidence:.3f}, {shares}")
    if result["confidence_on_samples"] <= result[f"confidence_on_{MIXED}"]:
        found.append("warning: it is no surer of the samples than of images of unrelated pixels")
    missing = [i for i in range(len(real)) if real[i] > 0.0 and not shown(drawn[i], real[i])]
    if missing:
        more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        what = f"too few samples of classes {', '.join(map(str, missing[:LISTED]))}{more}"
        found.append(_warning(what, result["samples"], min(real[i] for i in missing)))
    return found


def _written(shares: list[float]) -> str:
    """The shares of all classes, or of many the least and the greatest."""
    if len(shares) > LISTED:
        return f"{len(shares)} classes with shares from {min(shares):.3f} to {max(shares):.3f}"
    return f"shares of classes {' '.join(f'{share:.2f}' for share in shares)}"


def _warning(what: str, n: int, rarest: float, why: str = LEFT_OUT) -> str:
    """That something is missing among n samples, where the rarest of it has that share of data."""
    need = ceil(ENOUGH / rarest)
    if n < need:
        return f"warning: {what}, which may be chance; --draws {need} or more would tell"
    return f"warning: {what}; {why}"
