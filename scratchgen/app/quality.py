"""How good samples are: distances to real data beside their floors, `evaluate RUN --samples N`."""

from dataclasses import fields
from pathlib import Path

import numpy as np

from scratchgen.app import runs
from scratchgen.app.recipes.base import Recipe
from scratchgen.app.recipes.classifier import MEASURED, ClassifierRecipe, can_be_judged, judge_for
from scratchgen.app.recipes.config import flag_of
from scratchgen.app.recipes.data import DIGITS, PLANAR, load, settled
from scratchgen.app.sampling import sampling_options
from scratchgen.core.arrays import backend
from scratchgen.core.streams import Stream
from scratchgen.metrics.coverage import class_score
from scratchgen.metrics.samples import LEAST, compare
from scratchgen.training.fit import NotFinite
from scratchgen.training.progress import say


def require_same_data(judge: Recipe, recipe: Recipe) -> ClassifierRecipe:
    """The judge, if it is a classifier of the run's data.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(judge, ClassifierRecipe):
        raise ValueError(f"--classifier must name a run of `train classifier`, got a {judge.name}")
    for name in MEASURED:
        theirs, ours = getattr(judge.config, name), getattr(recipe.config, name)
        if theirs != ours:
            raise ValueError(
                f"the classifier was trained with {name} {theirs}, the run with {ours}; train one "
                "on the same data"
            )
    return judge


def require_enough(recipe: Recipe, part, n: int) -> None:
    """Refuse numbers of samples or of held-out examples that cannot be compared.

    Raises:
        ValueError: there are too few, or more samples than training examples.
    """
    if not LEAST <= n <= len(recipe.fitted):
        raise ValueError(
            f"--samples must lie between {LEAST} and the {len(recipe.fitted)} training examples "
            f"that make the floor, got {n}"
        )
    if len(part) < LEAST:
        raise ValueError(f"at least {LEAST} held-out examples are needed, got {len(part)}")


def sample_quality(
    recipe: Recipe, part, n: int, seed: int, options, judge: ClassifierRecipe | None
) -> dict:
    """Every distance of n samples from held-out data, beside that of as much training data.

    Args:
        recipe: a trained run.
        part: held-out examples, Images or Points.
        n: how many samples; as many training examples make the floor.
        seed: of the samples, and as for `quality_of`.
        options: of the run's sampler.
        judge: whose features are compared; None compares pixels or coordinates alone.

    Returns:
        What `quality_of` does.

    Raises:
        ValueError: too few samples or examples, or samples that are not independent.
    """
    require_enough(recipe, part, n)
    for each in fields(options):
        if each.metadata["pictures"] and getattr(options, each.name) != each.default:
            raise ValueError(
                f"{flag_of(each.name)} is for the pictures of `sample`, and measures are for "
                "independent samples; leave it out"
            )
    return quality_of(recipe.sample(n, seed, options).x, recipe, part, seed, judge)


def quality_of(
    drawn: np.ndarray, recipe: Recipe, part, seed: int, judge: ClassifierRecipe | None
) -> dict:
    """Every distance of samples that are drawn already, beside that of as much training data.

    Args:
        drawn: (n, ...), host array.
        recipe: whose training examples make the floor.
        part: held-out examples, Images or Points.
        seed: of the order of the examples, and of the directions of the sliced Wasserstein
            distance.
        judge: whose features are compared; None compares pixels or coordinates alone.

    Returns:
        "samples", "measures": name -> what `compare` gives, and with a judge "classifier" and
        "class_score".
    """
    n = len(drawn)
    stream = Stream(seed, backend("numpy", "float64")).at("quality")
    order = stream.at("order").permutation(len(recipe.fitted))[:n]
    known = recipe.fitted.take(order)
    part = part.take(stream.at("held out").permutation(len(part)))  # files may be sorted by class
    sets = (part.x, known.x, np.asarray(drawn, dtype=np.float64))
    real, reference, generated = (x.reshape(len(x), -1) for x in sets)
    where = "coordinates" if part.levels is None else "pixels"
    measures = compare(real, reference, generated, stream, where)
    found: dict = {"samples": n, "seed": seed}
    if judge is not None:
        real, reference, generated = (judge.features(x) for x in sets)
        measures |= compare(real, reference, generated, stream, "classifier features")
        facts = judge.evaluate(part, 1)
        found["classifier"] = {
            "seed": judge.config.seed,
            "weights": facts["weights"],
            "accuracy": facts["accuracy"],
        }
        scores, count = {}, min(n, len(part))
        splits = max(1, min(10, count // LEAST))
        for name, x in (("data", sets[0]), ("samples", sets[2])):
            mean, deviation = class_score(judge.opinions(x[:count]), splits)
            scores[name] = {"mean": mean, "deviation": deviation, "splits": splits, "n": count}
        found["class_score"] = scores
    return {**found, "measures": measures}


def quality_report(found: dict) -> list[str]:
    """The same as lines for people."""
    first = next(iter(found["measures"].values()))
    lines = [
        f"{found['samples']} samples of seed {found['seed']} against {first['n_real']} held-out "
        f"examples; floor: {first['n_reference']} training examples against the same",
        f"{'':52}{'samples':>22}{'real data':>22}",
    ]
    for name, row in sorted(found["measures"].items(), key=lambda item: item[0].split(" on ")[1]):
        cells = (
            f"{row[value]:.4f} ± {row[error]:.4f}"
            for value, error in (("value", "error"), ("floor", "floor_error"))
        )
        lines.append(f"{name:52}" + "".join(f"{cell:>22}" for cell in cells))
    if "class_score" in found:
        scores = found["class_score"]
        shown = (
            f"{scores[of]['mean']:.2f} ± {scores[of]['deviation']:.2f}"
            for of in ("samples", "data")
        )
        score = scores["samples"]
        name = f"class score, N = {score['n']}, mean ± s.d. of {score['splits']} splits"
        lines.append(f"{name:52}" + "".join(f"{cell:>22}" for cell in shown))
        facts = found["classifier"]
        lines.append(
            f"classifier: seed {facts['seed']}, weights {facts['weights']}, held-out accuracy "
            f"{facts['accuracy']:.4f}"
        )
    return lines


def quality(
    folder: Path,
    part: str,
    n: int,
    seed: int = 0,
    given: dict | None = None,
    classifier: Path | None = None,
    data: str | None = None,
) -> dict:
    """How good n samples of a run are, beside real data.

    Args:
        folder: the run.
        part: the held-out part to compare with.
        n, seed, given: as for `sample`.
        classifier: a run of `train classifier` whose features to compare; one is trained unless
            given.
        data: another data set to compare with, as for `evaluate`.

    Raises:
        ValueError: a number is outside its range, the classifier does not fit the run, or the part
            is what the run was trained on.
        NotFinite: a measure is not finite.
    """
    if part == "train":
        raise ValueError("samples are compared with held-out examples; take another --part")
    recipe = runs.load_run(folder)
    runs.require_same_examples(folder, recipe)
    examples, options = examples_of(recipe, part, data), sampling_options(recipe, given or {})
    require_enough(recipe, examples, n)
    if classifier is not None:
        judge: ClassifierRecipe | None = require_same_data(runs.load_run(classifier), recipe)
    else:
        if can_be_judged(recipe):
            say("training a small classifier to judge the samples; or name one: --classifier RUN")
        judge = judge_for(recipe)
    found = sample_quality(recipe, examples, n, seed, options, judge)
    require_finite(folder, found)
    return found


def examples_of(recipe: Recipe, part: str, data: str | None):
    """One part of a run's data, or of other data that fit it.

    Raises:
        ValueError: they do not, the run was trained on some of them, or it is a GAN on points,
            whose modes are those of its own data.
    """
    data = other_data(recipe, data)
    if data is not None:
        if (data in PLANAR) != (recipe.config.data in PLANAR):
            raise ValueError(f"{data} does not fit the run, whose examples are {recipe.shape}")
        if data in PLANAR and not recipe.per_example:
            raise ValueError(
                f"what is measured of a {recipe.name} on points are the modes of its own data, "
                f"{recipe.config.data}; leave out --data"
            )
        if data in DIGITS and recipe.config.data in DIGITS:
            raise ValueError(
                f"{data} and {recipe.config.data} split the same images, so the run was trained on "
                "some of these; leave out --data"
            )
        config = recipe.config
        examples = load(data, part, config.size, config.colour, config.crop)
        theirs, ours = (examples.shape, examples.levels), (recipe.shape, recipe.fitted.levels)
        if theirs != ours:
            raise ValueError(
                f"the run takes examples of shape {ours[0]} with {ours[1]} levels; {data} has "
                f"{theirs[0]} with {theirs[1]}"
            )
        if examples.levels is not None:
            _note_shared(recipe.fitted.codes, examples.codes)
        return examples
    if part == "validation" and not recipe.config.hold_out:
        raise ValueError("this run was trained on the validation part; train with --hold-out first")
    return recipe.part(part)


def _note_shared(known: np.ndarray, measured: np.ndarray) -> None:
    """Say how many images the run knows already, of codes (N, ...)."""
    rows = {row.tobytes() for row in known}
    shared = sum(row.tobytes() in rows for row in measured)
    if shared:
        say(f"note: the run was trained on {shared} of these {len(measured)} examples")


def other_data(recipe: Recipe, data: str | None) -> str | None:
    """The name or path of data, or None where they are the run's own."""
    return data if data is not None and settled(data) != recipe.config.data else None


def require_finite(folder: Path, measures: dict) -> None:
    """Refuse measures that hold a number which is not finite.

    Raises:
        NotFinite: one does.
    """
    odd = [name for name, value in measures.items() if not np.all(np.isfinite(_numbers(value)))]
    if odd:
        raise NotFinite(f"{folder} did not go well; not finite: {', '.join(odd)}")


def _numbers(value) -> list[float]:
    """Every number in nested lists and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for each in value for number in _numbers(each)]
    return [value] if isinstance(value, int | float) else []
