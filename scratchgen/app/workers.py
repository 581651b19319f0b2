"""Who shares the work of a run: from the word or number of `--workers` to those who work."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from scratchgen.app.recipes import Recipe
from scratchgen.core.optional import is_there
from scratchgen.core.parallel import Solo, Workers
from scratchgen.layers.normalisation import BatchNorm

AUTO = "auto"
NO_FORK = "this system cannot copy a process; use --workers 1"
BATCH_NORM = "batch norm takes its averages over all of a batch; use --workers 1"
SMALL = 300_000  # parameters of a fully connected net, whose step is over before it is handed out
SHARE = 4  # examples of a batch; fewer are not worth a thread
NUMBERS = 2**17  # of a layer's output at full resolution; nor are fewer of those


@dataclass(frozen=True)
class Sharing:
    """What the command line says about how the work is shared.

    Attributes:
        workers: their number, or AUTO; None where it is left open.
        blas_threads: of every matrix product.
        fast: whether scratchgen/fast may be used.
    """

    workers: int | str | None = None
    blas_threads: int = 1
    fast: bool = True


ALONE = Sharing(workers=1)


@dataclass(frozen=True)
class Crew:
    """Those who share the batches of a run: so many, each with so many threads of BLAS."""

    number: int
    blas_threads: int

    def __str__(self):
        if self.number == 1:
            return f"1 thread, BLAS with {self.blas_threads}"
        return f"{self.number} threads, BLAS with {self.blas_threads} each"

    def group(self) -> Workers:
        """Them, ready to work."""
        if self.number == 1:
            return Solo()
        from scratchgen.fast.threads import Threads

        return Threads(self.number)


def crew(recipe: Recipe, sharing: Sharing) -> Crew:
    """Who shares the batches of a run; AUTO, or nothing said, takes every core where that pays.

    Raises:
        ValueError: several are asked for where a batch must not be shared, or fewer than 1.
    """
    asked, most = sharing.workers, recipe.config.batch_size
    reasons = [*obstacles(recipe, sharing)]
    if any(recipe.whole.named(BatchNorm)):
        reasons.append(BATCH_NORM)
    if not isinstance(asked, int):
        number = 1 if reasons else max(1, min(cores(), _worth(recipe)))
        return Crew(number, sharing.blas_threads)
    if not 1 <= asked <= most:
        raise ValueError(
            f"--workers must lie between 1 and the {most} examples of a batch, got {asked}"
        )
    for reason in reasons if asked > 1 else ():
        raise ValueError(f"{asked} workers cannot share these batches: {reason}")
    return Crew(asked, sharing.blas_threads)


def _worth(recipe: Recipe) -> int:
    """How many threads a batch keeps busy longer than handing it out takes."""
    config = recipe.config
    if config.spatial:
        numbers = config.batch_size * config.width * prod(recipe.shape[:2])
        return min(config.batch_size // SHARE, numbers // NUMBERS)
    return 0 if recipe.params.theta.shape[0] < SMALL else config.batch_size // SHARE


def processes(recipe: Recipe, sharing: Sharing) -> int:
    """How many processes draw samples side by side; AUTO, or nothing said, takes every core.

    AUTO does so on Linux only: other systems' libraries, such as Apple's, forbid that a process
    which has used them is copied.

    Raises:
        ValueError: several are asked for where that cannot be, or fewer than 1.
    """
    reasons = [*obstacles(recipe, sharing)]
    if not recipe.shares_samples:
        reasons.append(f"those of a {recipe.name} are drawn in one process; use --workers 1")
    if not hasattr(os, "fork"):
        reasons.append(NO_FORK)
    if not isinstance(sharing.workers, int):
        return 1 if reasons or sys.platform != "linux" else cores()
    if sharing.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {sharing.workers}")
    for reason in reasons if sharing.workers > 1 else ():
        raise ValueError(f"{sharing.workers} workers cannot share these samples: {reason}")
    return sharing.workers


def obstacles(recipe: Recipe, sharing: Sharing) -> Iterator[str]:
    """Why work of any kind must not be shared, each with what to do about it."""
    if recipe.born.name != "numpy":
        yield f"--backend {recipe.born.name} computes elsewhere; use --workers 1"
    if not is_there("scratchgen.fast"):
        yield "that takes scratchgen/fast, which is not there; use --workers 1"
    if not sharing.fast:
        yield "that is among what --no-fast leaves out; leave out --no-fast, or use --workers 1"
    if sharing.blas_threads > 1:
        yield (
            f"each one's matrix products would use {sharing.blas_threads} threads of their own, "
            "which get in the way; use --blas-threads 1, or --workers 1"
        )


def cores() -> int:
    """How many of the machine's cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
