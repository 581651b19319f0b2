"""The command line: parsing, and the exit codes.

0 good   1 a result outside its tolerance   2 usage or bad input   3 a number was not finite
4 an optional package or device is missing   130 interrupted
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import Field, fields
from io import TextIOWrapper
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

import numpy as np
from threadpoolctl import threadpool_limits

from scratchgen.app import commands, quality, reproduce, sampling
from scratchgen.app.dissect import print_dissection
from scratchgen.app.explain import explain, print_explanation
from scratchgen.app.recipes import RECIPES
from scratchgen.app.recipes.config import flag_of
from scratchgen.app.recipes.data import settled
from scratchgen.app.schedule_report import print_schedule
from scratchgen.app.workers import AUTO, Sharing
from scratchgen.core import twins
from scratchgen.core.arrays import BackendUnavailable
from scratchgen.core.optional import MissingPackage
from scratchgen.core.version import __version__
from scratchgen.training.fit import NotFinite


class Parser(argparse.ArgumentParser):
    """argparse, but a usage error is one sentence, and options are written out."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Say what was wrong and where the options are listed; exit 2."""
        if message.startswith("unrecognized") and ("--no-fast" in message or "--blas" in message):
            message += "; --no-fast and --blas-threads stand before the command"
        self.exit(2, f"scratchgen: {message}; see: {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = Parser(prog="scratchgen", description="Deep generative models from scratch.")
    _add_common(top)
    doors = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help, add_options in (
        ("demo", "train a VAE on real digits, measure it, draw from it", _add_demo),
        ("train", "train a model, or resume a run", _add_training),
        ("sample", "draw samples from a trained run; earlier ones stay", _add_sample),
        ("evaluate", "measure a trained run", _add_evaluation),
        ("info", "versions and devices, or what a run folder holds", _add_info),
        ("reproduce", "remake a published result and compare", _add_reproduce),
        ("explain", "an equation: its source, code, tests and errata", _add_explain),
    ):
        add_options(doors.add_parser(name, help=help))
    return top


def _add_common(top: argparse.ArgumentParser) -> None:
    top.add_argument("--version", action="version", version=f"scratchgen {__version__}")
    top.add_argument(
        "--blas-threads",
        type=int,
        default=1,
        metavar="N",
        help="threads of each matrix product (default: 1, which is safe beside other programs). "
        "`train --workers` shares whole batches among threads; the two kinds would wait for each "
        "other, so only one of these numbers may exceed 1. On a busy machine 2 can be ten times "
        "slower than 1",
    )
    top.add_argument(
        "--no-fast",
        action="store_true",
        help="the readable functions only: without their faster twins, without the threads "
        "that share batches in `train`, and the processes that share samples in `sample`",
    )


def _add_demo(demo: argparse.ArgumentParser) -> None:
    demo.add_argument("--out", type=Path, help="new folder (default: runs/NNNN-demo)")
    demo.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")


def _add_training(train: argparse.ArgumentParser) -> None:
    common = Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--out", type=Path, help="new folder (default: runs/NNNN-MODEL-DATA-sSEED)")
    common.add_argument("--resume", type=Path, metavar="RUN", help="continue this run folder")
    common.add_argument("--stop-at", type=int, metavar="K", help="stop after step K, to be resumed")
    common.add_argument("--quiet", action="store_true", help="print nothing but errors")
    common.add_argument(
        "--workers",
        type=_workers,
        metavar="N|auto",
        help="threads that share each batch (default: auto, which takes every core this process "
        "may use where that pays; a resumed run keeps its own number). Each computes its matrix "
        "products in one thread, so more than 1 needs `scratchgen --blas-threads 1`, the default",
    )
    for action in common._actions:
        train._add_action(action)
    models = train.add_subparsers(dest="model", metavar="MODEL", help=", ".join(RECIPES))
    for name, recipe in RECIPES.items():
        model = models.add_parser(name, parents=[common], argument_default=argparse.SUPPRESS)
        for each in fields(recipe.config_type):
            _add_option(model, each)


def _add_sample(sample: argparse.ArgumentParser) -> None:
    sample.add_argument("run", type=Path, metavar="RUN", help="run folder")
    sample.add_argument("-n", type=int, default=64, help="number of samples (default: 64)")
    sample.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    sample.add_argument(
        "--workers",
        type=_workers,
        default=AUTO,
        metavar="N|auto",
        help="processes among which a diffusion's samples are shared (default: auto, every "
        "core on Linux and 1 elsewhere)",
    )
    _add_sampling(sample)


def _add_evaluation(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("run", type=Path, metavar="RUN", help="run folder")
    evaluate.add_argument(
        "--part",
        default="test",
        choices=("train", "validation", "test"),
        help="part of the data set (default: test)",
    )
    evaluate.add_argument(
        "--draws",
        type=int,
        metavar="K",
        help="of noise per example: codes of a vae, times of a diffusion; or samples of a gan, in "
        "all (default: the model's)",
    )
    evaluate.add_argument(
        "--data", metavar="DATA", help="measure on other data that fit: a name, or a path"
    )
    evaluate.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="also draw N samples and print their distances from real data",
    )
    evaluate.add_argument(
        "--seed", type=int, default=0, help="of that noise, and of all samples (default: 0)"
    )
    evaluate.add_argument(
        "--classifier",
        type=Path,
        metavar="RUN",
        help="of `train classifier`, whose features are compared, and which a gan's classes are "
        "counted by (default: one trained anew)",
    )
    _add_sampling(evaluate, measured=True)
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")


def _add_info(info: argparse.ArgumentParser) -> None:
    info.add_argument("run", type=Path, nargs="?", metavar="RUN", help="run folder")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    info.add_argument("--net", action="store_true", help="the layers of RUN, and what they cost")
    info.add_argument(
        "--schedule",
        nargs="?",
        const="",
        metavar="NAME",
        help="what a noise schedule does: RUN's own, or linear or cosine",
    )
    info.add_argument(
        "--timesteps", type=int, default=1000, help="T of a schedule by name (default: 1000)"
    )
    info.add_argument("--reading", action="store_true", help="the source files to read, in order")


def _add_reproduce(again: argparse.ArgumentParser) -> None:
    again.add_argument("name", nargs="?", metavar="NAME", help="none lists the names")
    again.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    again.add_argument("--json", action="store_true", help="print one JSON object")
    again.add_argument(
        "--record", type=Path, metavar="DIR", help="run all seeds and write DIR/NAME.json instead"
    )
    again.add_argument(
        "--readme", type=Path, metavar="FILE", help="rewrite the table of results in this README"
    )


def _add_explain(about: argparse.ArgumentParser) -> None:
    about.add_argument("key", nargs="?", metavar="KEY", help="such as DDPM-6; none lists all")
    about.add_argument(
        "--search", nargs="+", default=(), metavar="WORD", help="list the keys whose text has all"
    )
    about.add_argument("--json", action="store_true", help="print one JSON object, or a list")


def _workers(text: str) -> int | str:
    if text == AUTO:
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a whole number or {AUTO}, got {text!r}"
        ) from None


def _add_sampling(door: argparse.ArgumentParser, measured: bool = False) -> None:
    """The options of every model's sampler; which of them a run has is found when it is known."""
    known: dict[str, Field] = {}
    for recipe in RECIPES.values():
        known |= {each.name: each for each in fields(recipe.sampling_type)}
    for each in known.values():
        if not (measured and each.metadata["pictures"]):
            _add_option(door, each)


def _sampling_given(given: argparse.Namespace) -> dict:
    """The options of a sampler that were given."""
    known = {each.name for recipe in RECIPES.values() for each in fields(recipe.sampling_type)}
    return {name: value for name, value in vars(given).items() if name in known}


def _add_option(door: argparse.ArgumentParser, each: Field) -> None:
    """A dataclass field as a flag, which is absent from the result where it is not given."""
    flag, text = flag_of(each.name), each.metadata["help"]
    if each.type is bool:
        door.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)
        return
    if each.default not in (0, "", None):  # which stand for a choice that the help explains
        text += f" (default: {each.default})"
    choices = each.metadata["choices"]
    door.add_argument(flag, type=each.type, choices=choices, default=argparse.SUPPRESS, help=text)


def _train(given: argparse.Namespace) -> None:
    values = vars(given)
    stop_at, quiet = values.get("stop_at"), values.get("quiet", False)
    model, out, resumed = values["model"], values.get("out"), values.get("resume")
    if model is None and resumed is None:
        raise ValueError(f"name a model to train ({', '.join(RECIPES)}), or use --resume RUN")
    names = {option.name for option in fields(RECIPES[model].config_type)} if model else set()
    chosen = {name: value for name, value in values.items() if name in names}
    if "data" in chosen and resumed is not None:
        chosen["data"] = settled(chosen["data"])
    if resumed is not None:
        if out is not None:
            raise ValueError("--resume continues in the run's own folder; leave out --out")
        expected = {"model": model, **chosen} if model else None
        commands.resume(resumed, stop_at, quiet, expected, _sharing(given))
        return
    recipe = RECIPES[model]
    config = recipe.config_type(**chosen)
    config.refuse_without_effect(chosen)  # even where the value is the default
    commands.train(recipe(config), out, stop_at, quiet, _sharing(given))


def _sample(given: argparse.Namespace) -> Path:
    options = _sampling_given(given)
    return sampling.sample(given.run, given.n, given.seed, options, _sharing(given))


def _sharing(given: argparse.Namespace) -> Sharing:
    return Sharing(getattr(given, "workers", None), given.blas_threads, not given.no_fast)


def _reproduce(given: argparse.Namespace) -> int:
    if given.readme is not None:
        reproduce.write_readme(given.readme)
    elif given.name is None:
        if given.record is not None or given.seed != 0:
            raise ValueError(f"name a result: {', '.join(reproduce.EXPERIMENTS)}")
        _print(given.json, reproduce.summaries(), commands.print_info)
    elif given.record is not None:
        reproduce.record(given.name, given.record)
    else:
        result = reproduce.reproduce(given.name, given.seed)
        _print(given.json, result, reproduce.print_reproduction)
        return 0 if result["holds"] else 1
    return 0


def _evaluate(given: argparse.Namespace) -> None:
    options = _sampling_given(given)
    if given.samples is None and (options or given.classifier):
        raise ValueError("--classifier and the sampler's options go with --samples N; add it")
    found = {}
    if given.samples is not None:
        n, seed = given.samples, given.seed
        found["quality"] = quality.quality(
            given.run, given.part, n, seed, options, given.classifier, given.data
        )
    result = commands.evaluate(
        given.run, given.part, given.draws, given.data, given.seed, given.classifier
    )
    result |= found
    _print(given.json, result, commands.print_evaluation)


def _run(given: argparse.Namespace) -> int:
    if given.command == "demo":
        commands.demo(given.out, given.seed, _sharing(given))
    elif given.command == "train":
        _train(given)
    elif given.command == "sample":
        print(_sample(given))
    elif given.command == "evaluate":
        _evaluate(given)
    elif given.command == "info" and given.schedule is not None:
        report = commands.schedule(given.run, given.schedule, given.timesteps)
        _print(given.json, report, print_schedule)
    elif given.command == "info":
        found = commands.info(given.run, given.reading, given.net)
        _print(given.json, found, print_dissection if given.net else commands.print_info)
    elif given.command == "explain":
        _print(given.json, explain(given.key, given.search), print_explanation)
    elif given.command == "reproduce":
        return _reproduce(given)
    return 0


def _print(as_json: bool, result: dict | list, for_people) -> None:
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        for_people(result)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    top, words = parser(), sys.argv[1:] if arguments is None else arguments
    given, odd = top.parse_known_args(words)
    if odd:
        before = [*takewhile(lambda word: word != odd[0], words)]
        doors = (given.command, vars(given).get("model"))
        top.prog = " ".join(["scratchgen", *(door for door in doors if door in before)])
        top.error(f"unrecognized arguments: {' '.join(odd)}")
    try:
        if given.blas_threads < 1:
            raise ValueError(f"--blas-threads must be at least 1, got {given.blas_threads}")
        route = twins.disabled() if given.no_fast else nullcontext()
        # overflow is looked for in results, where it can be named, not in every operation
        with threadpool_limits(given.blas_threads, "blas"), np.errstate(all="ignore"), route:
            return _run(given)
    except (BackendUnavailable, MissingPackage) as error:
        return _complain(error, 4)
    except NotFinite as error:
        return _complain(error, 3)
    except MemoryError as error:
        return _complain(f"there is not enough memory for this: {error}", 2)
    except BrokenPipeError:
        # the reader, such as `head`, has seen enough; what Python would still flush goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}" if error.filename else error, 2)
    except ValueError as error:
        return _complain(error, 2)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def entry() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ‖ still gets the numbers
    sys.exit(main())


def _complain(error: Exception | str, code: int) -> int:
    print(f"scratchgen: {error}", file=sys.stderr)
    return code
