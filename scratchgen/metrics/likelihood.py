"""Likelihood bounds over a whole data set, with their standard errors."""

from collections.abc import Callable, Iterator
from math import prod

import numpy as np

from scratchgen.core.arrays import example_sum, namespace, to_host
from scratchgen.core.streams import Stream
from scratchgen.maths.bounds import importance_weighted_bound

BATCH = 64  # examples at once, of small images
NUMBERS = 64 * BATCH  # in the examples that are looked at together, where one has no more
CHUNK = 32  # latent samples at once


def at_once(shape: tuple[int, ...]) -> int:
    """How many examples of a shape to evaluate together, so that memory stays bounded."""
    return max(1, min(BATCH, NUMBERS // prod(shape)))


def in_batches(f: Callable, x, count: int) -> np.ndarray:
    """f(x) on the host, `count` rows at a time: x (N, ...) -> (N, ...)."""
    starts = range(0, x.shape[0], count)
    return np.concatenate([to_host(f(x[start : start + count, ...])) for start in starts])


def vae_bounds(vae, x, stream: Stream, latent: int, samples: int) -> dict[str, np.ndarray]:
    """Every example's loss terms and importance-weighted bound under a VAE.

    The noise of an example depends on the stream and the example's index only, never on how the
    set is cut into batches.

    Args:
        vae: a models.vae.Vae.
        x: (N, ...), data on the model's backend.
        stream: draws eps.
        latent: K, the size of z.
        samples: S, the number of z per example, for every term.

    Returns:
        Host arrays: "reconstruction" (N,) and "kl" (N,), nats, whose sum is -ELBO;
        "importance_weighted" (N,), -log of the mean of S importance weights, nats;
        "kl_per_dimension" (N, K), nats.

    Source: VAE-6, ELBO-2, [Burda 2016]
    """
    parts: dict[str, list[np.ndarray]] = {}
    for start, some in _batches(x):
        draw, xp = stream.from_row(start), namespace(x)
        reconstruction, log_weights = 0.0, []
        for first in range(0, samples, CHUNK):
            chunk = range(first, min(first + CHUNK, samples))
            eps = xp.stack([draw.at(s).normal((some.shape[0], latent)) for s in chunk])
            nll, log_ratio = vae.weigh(some, eps)
            reconstruction = reconstruction + xp.sum(nll, axis=0) / samples
            log_weights.append(log_ratio - nll)
        kl = vae.kl_per_dimension(some)
        found = {
            "reconstruction": reconstruction,
            "kl": example_sum(kl),
            "importance_weighted": -importance_weighted_bound(xp.concat(log_weights)),
            "kl_per_dimension": kl,
        }
        for name, values in found.items():
            parts.setdefault(name, []).append(to_host(values).astype(np.float64))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _batches(x) -> Iterator:
    """(index of the first, examples) of as many at once as `at_once` says."""
    count = at_once(x.shape[1:])
    for start in range(0, x.shape[0], count):
        yield start, x[start : start + count, ...]


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of (N,) numbers and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
