"""Likelihood bounds over a whole data set, with their standard errors."""

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np

from scratchgen.core.arrays import example_sum, namespace, to_host
from scratchgen.core.streams import Stream
from scratchgen.maths.bounds import importance_weighted_bound
from scratchgen.models.ladder_hvae import LadderHvae
from scratchgen.models.vdm import on_grid

NUMBERS = 64 * 64  # in the examples that are looked at together, where one has no more
CHUNK = 32  # latent samples at once


def at_once(shape: tuple[int, ...]) -> int:
    """How many examples of a shape to evaluate together, so that memory stays bounded."""
    return max(1, NUMBERS // prod(shape))


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


def hierarchy_bounds(hvae, x, stream: Stream, samples: int) -> dict[str, Any]:
    """Every example's loss terms and importance-weighted bound under a hierarchical VAE.

    The noise of an example depends on the stream and the example's index only, never on how the
    set is cut into batches.

    Args:
        hvae: a models.hierarchy.Hierarchy.
        x: (N, ...), data on the model's backend.
        stream: draws eps.
        samples: S, the number of z per example, for every term.

    Returns:
        Host arrays: "reconstruction" (N,) and "kl" (N, L), nats, which together sum to -ELBO;
        "importance_weighted" (N,), -log of the mean of S importance weights, nats;
        "kl_per_dimension", a list of (N, *shape of z_l), nats, whose sums are "kl"; of a ladder
        also "removal" (N, L), what -ELBO rises by, at the same noise, with the prior in the place
        of that level's posterior, nats.

    Source: HVAE-6, [Burda 2016]
    """
    count, parts = len(hvae.latents), []
    for start, some in _batches(x):
        n, draw, xp = some.shape[0], stream.from_row(start), namespace(x)
        log_weights, chunks = [], []
        for first in range(0, samples, CHUNK):
            chunk = range(first, min(first + CHUNK, samples))
            repeated = xp.concat([some] * len(chunk))
            eps = [
                xp.concat([draw.at(s, level).normal((n, *shape)) for s in chunk])
                for level, shape in enumerate(hvae.latents)
            ]
            nll, log_ratios, kls = hvae.look(repeated, eps)
            log_weights.append(xp.reshape(sum(log_ratios) - nll, (len(chunk), n)))
            terms = [nll, *kls]
            for level in range(count) if isinstance(hvae, LadderHvae) else ():
                without, _, rest = hvae.look(repeated, eps, level)
                # term by term, so that what a level without information costs is 0 to the last bit
                rises = (example_sum(b - a) for a, b in zip(kls, rest, strict=True))
                terms.append(without - nll + sum(rises))
            chunks.append([_sum_over_draws(term, n) for term in terms])
        means = [sum(values) / samples for values in zip(*chunks, strict=True)]
        means.append(-importance_weighted_bound(xp.concat(log_weights)))
        parts.append([to_host(mean).astype(np.float64) for mean in means])
    nll, *rest, tight = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    kls, removal = rest[:count], rest[count:]
    return {
        "reconstruction": nll,
        "kl": np.stack([kl.reshape(len(kl), -1).sum(axis=1) for kl in kls], axis=1),
        "importance_weighted": tight,
        "kl_per_dimension": kls,
        **({"removal": np.stack(removal, axis=1)} if removal else {}),
    }


def _sum_over_draws(values, n: int):
    """(S·n, ...), one draw of all n examples after another -> (n, ...)."""
    xp = namespace(values)
    return xp.sum(xp.reshape(values, (-1, n, *values.shape[1:])), axis=0)


def spread_times(n: int, draws: int, first: int, count: int, shift: float) -> np.ndarray:
    """Times in [0, 1) for examples first..first+count-1 of n: one in each of `draws` equal parts.

    Every example visits every part once, and in each part the n examples are spread evenly. So the
    sum over an example's times and a curve over time are both as sure as so many draws can be.

    Args:
        n: the number of examples in all.
        draws: of each example.
        first, count: which examples.
        shift: a uniform number in [0, 1), which makes each time uniform in its part.

    Returns:
        (draws, count).

    Source: [Kingma 2021]
    """
    i = np.arange(first, first + count)
    place = (shift + i / n) % 1.0
    return (np.arange(draws)[:, None] + place) / draws


def vdm_bounds(
    vdm, x, stream: Stream, draws: int, steps: int | None = None
) -> dict[str, np.ndarray]:
    """Every example's terms of -ELBO under a VDM, and their course over time.

    Args:
        vdm: a models.vdm.Vdm.
        x: (N, ...), data on the model's backend.
        stream: draws the noise; that of an example depends on its index only.
        draws: times per example, and of the noise in every term.
        steps: T of the discrete bound, or None for continuous time.

    Returns:
        Host arrays: "prior", "diffusion", "reconstruction", each (N,), nats, whose sum is -ELBO;
        "time" and "over_time", each (draws,): the mean diffusion term in each part of [0, 1], nats.
        The time is the middle of the part, with T steps the one at or behind it.

    Source: VDM-9, [Kingma 2021]
    """
    parts: dict[str, list[np.ndarray]] = {"prior": [], "diffusion": [], "reconstruction": []}
    over_time, shift = np.zeros(draws), _shift(stream)
    for start, some in _batches(x):
        count, draw, found = some.shape[0], stream.from_row(start), []
        times = spread_times(x.shape[0], draws, start, count, shift)
        for j, row in enumerate(times):
            t = stream.backend.asarray(row)
            if steps is not None:
                t = on_grid(t, steps)
            eps, eps0 = (draw.at(name, j).normal(some.shape) for name in ("eps", "eps0"))
            looked, _ = vdm.loss(some, t, eps, eps0, steps)
            found.append([to_host(term).astype(np.float64) for term in looked])
        terms = np.asarray(found)
        for values, term in zip(parts.values(), terms.mean(axis=0), strict=True):
            values.append(term)
        over_time += terms[:, 1].sum(axis=1) / x.shape[0]
    time = (np.arange(draws) + 0.5) / draws
    time = time if steps is None else to_host(on_grid(time, steps))
    whole = {name: np.concatenate(values) for name, values in parts.items()}
    return {**whole, "time": time, "over_time": over_time}


def ddpm_bounds(ddpm, x, stream: Stream, draws: int, variances: dict) -> dict:
    """Every example's bound under a DDPM with each of several reverse variances, term by term.

    L_T and L_0 are evaluated for every example, the terms between at `draws` of their T-1 steps,
    one in each of as many equal parts; with draws ≥ T-1, at all of them.

    Args:
        ddpm: a models.ddpm.Ddpm.
        x: (N, ...), data on the model's backend.
        stream: draws the noise; that of an example depends on its index only.
        draws: steps per example.
        variances: name -> one of maths/reverse_variance.py; the net's outputs are shared.

    Returns:
        "prior" (N,), nats; for each name "reconstruction/NAME" and "transitions/NAME" (N,), nats,
        so that prior + reconstruction + transitions is -ELBO; and the course over t, arrays (T+1,)
        whose entry 0 is not used: "count", how many examples were looked at, "simple", the mean of
        ‖ε - ε̂‖², "error", that of ‖x_0 - x̂₀‖², and "term/NAME", that of L_{t-1}, nats.

    Source: DDPM-8, DDPM-9
    """
    last, n = ddpm.schedule.steps, x.shape[0]
    draws, shift = min(draws, last - 1), _shift(stream)
    course = {name: np.zeros(last + 1) for name in ("count", "simple", "error")}
    course |= {f"term/{name}": np.zeros(last + 1) for name in variances}
    parts: dict[str, list[np.ndarray]] = {}

    def look(some, steps: np.ndarray, draw: Stream) -> dict[str, np.ndarray]:
        """The terms at those steps, on the host; notes their course."""
        eps, t = draw.normal(some.shape), stream.backend.indices(steps)
        x_t, output, simple, error = ddpm.look(some, t, eps)
        found = {"simple": simple, "error": error}
        for name, variance in variances.items():
            found[f"term/{name}"] = ddpm.bound_term(some, x_t, t, output, variance)[0]
        hosted = {name: to_host(v).astype(np.float64) for name, v in found.items()}
        np.add.at(course["count"], steps, 1.0)
        for name, values in hosted.items():
            np.add.at(course[name], steps, values)
        return hosted

    for start, some in _batches(x):
        count, draw = some.shape[0], stream.from_row(start)
        found = {"prior": to_host(ddpm.prior(some)).astype(np.float64)}
        first = look(some, np.ones(count, dtype=np.int64), draw.at("first"))
        times = spread_times(n, draws, start, count, shift)
        steps = 2 + np.floor(times * (last - 1)).astype(np.int64)
        looks = [look(some, row, draw.at("later", j)) for j, row in enumerate(steps)]
        for name in variances:
            found[f"reconstruction/{name}"] = first[f"term/{name}"]
            between = sum((one[f"term/{name}"] for one in looks), np.zeros(count))
            found[f"transitions/{name}"] = between * ((last - 1) / max(draws, 1))
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    seen = np.maximum(course["count"], 1.0)
    means = {k: v / seen if k != "count" else v for k, v in course.items()}
    return {name: np.concatenate(values) for name, values in parts.items()} | means


def _shift(stream: Stream) -> float:
    return float(to_host(stream.at("shift").uniform((1,)))[0])


def _batches(x) -> Iterator:
    """(index of the first, examples) of as many at once as `at_once` says."""
    n, count = x.shape[0], at_once(x.shape[1:])
    for start in range(0, n, count):
        yield start, x[start : min(start + count, n), ...]


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of (N,) numbers and its standard error.

    Raises:
        ValueError: there is one number only, or they are no vector.
    """
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(
            f"a standard error needs numbers (N,) with N ≥ 2, got shape {values.shape}; evaluate "
            "more examples"
        )
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
