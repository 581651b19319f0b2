"""The command line: parsing, and the exit codes.

0 good   1 a result outside its tolerance   2 usage or bad input   3 training was not finite
4 an optional package or device is missing
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from scratchgen.app import commands
from scratchgen.app.recipes import CONFIGS
from scratchgen.core.arrays import BackendUnavailable
from scratchgen.core.version import __version__
from scratchgen.training.fit import NonFiniteLoss


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(
        prog="scratchgen", description="Deep generative models from scratch."
    )
    top.add_argument("--version", action="version", version=f"scratchgen {__version__}")
    doors = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = doors.add_parser("demo", help="train a VAE on real digits, measure it, draw from it")
    demo.add_argument("--out", type=Path, help="new folder (default: runs/NNNN-demo)")
    demo.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")

    train = doors.add_parser("train", help="train a model, or resume a run")
    _add_training(train)

    sample = doors.add_parser("sample", help="draw samples from a trained run")
    sample.add_argument("run", type=Path, metavar="RUN", help="run folder")
    sample.add_argument("-n", type=int, default=64, help="number of samples (default: 64)")
    sample.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    sample.add_argument(
        "--temperature", type=float, default=1.0, help="scale of the latent noise (default: 1)"
    )

    evaluate = doors.add_parser("evaluate", help="measure a trained run in nats and bits")
    evaluate.add_argument("run", type=Path, metavar="RUN", help="run folder")
    evaluate.add_argument(
        "--part",
        default="test",
        choices=("train", "validation", "test"),
        help="part of the data set (default: test)",
    )
    evaluate.add_argument(
        "--samples",
        type=int,
        default=commands.IMPORTANCE_SAMPLES,
        help=f"latent samples per example (default: {commands.IMPORTANCE_SAMPLES})",
    )
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")

    info = doors.add_parser("info", help="versions and devices, or what a run folder holds")
    info.add_argument("run", type=Path, nargs="?", metavar="RUN", help="run folder")
    info.add_argument("--json", action="store_true", help="print one JSON object")
    return top


def _add_training(train: argparse.ArgumentParser) -> None:
    train.add_argument("model", nargs="?", choices=tuple(CONFIGS), help="not with --resume")
    train.add_argument("--out", type=Path, help="new folder (default: runs/NNNN-MODEL-DATA-sSEED)")
    train.add_argument("--resume", type=Path, metavar="RUN", help="continue this run folder")
    train.add_argument("--stop-at", type=int, metavar="K", help="stop after step K, to be resumed")
    train.add_argument("--quiet", action="store_true", help="print nothing but errors")
    for option in fields(CONFIGS["vae"]):
        text, choices = option.metadata["help"], option.metadata["choices"]
        flag = "--" + option.name.replace("_", "-")
        if option.type is bool:
            train.add_argument(flag, action="store_const", const=True, help=text)
        else:
            train.add_argument(
                flag, type=option.type, choices=choices, help=f"{text} (default: {option.default})"
            )


def _train(given: argparse.Namespace) -> None:
    names = [option.name for option in fields(CONFIGS["vae"])]
    chosen = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    if given.resume is None:
        if given.model is None:
            raise ValueError(f"name a model to train ({', '.join(CONFIGS)}), or use --resume RUN")
        config = CONFIGS[given.model](**chosen)
        commands.train(given.model, config, given.out, given.stop_at, given.quiet)
        return
    clashing = [f"--{n.replace('_', '-')}" for n in chosen]
    clashing += [given.model] if given.model else []
    clashing += ["--out"] if given.out else []
    if clashing:
        raise ValueError(
            f"--resume continues a run with its own options; leave out {', '.join(clashing)}"
        )
    commands.resume(given.resume, given.stop_at, given.quiet)


def _run(given: argparse.Namespace) -> None:
    if given.command == "demo":
        commands.demo(given.out, given.seed)
    elif given.command == "train":
        _train(given)
    elif given.command == "sample":
        print(commands.sample(given.run, given.n, given.seed, given.temperature))
    elif given.command == "evaluate":
        result = commands.evaluate(given.run, given.part, given.samples)
        if given.json:
            print(json.dumps(result, indent=2))
        else:
            commands.print_evaluation(result)
    elif given.command == "info":
        values = commands.info(given.run)
        if given.json:
            print(json.dumps(values, indent=2))
        else:
            commands.print_info(values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    given = parser().parse_args(arguments)
    try:
        _run(given)
    except BackendUnavailable as error:
        return _complain(error, 4)
    except NonFiniteLoss as error:
        return _complain(error, 3)
    except (ValueError, OSError) as error:
        return _complain(error, 2)
    except KeyboardInterrupt:
        return 130
    return 0


def entry() -> None:
    """The console script."""
    sys.exit(main())


def _complain(error: Exception, code: int) -> int:
    print(f"scratchgen: {error}", file=sys.stderr)
    return code
