"""Samplers: many ways from noise to data with one denoiser. The density of its flow: flow.py.

A sampler is a *step* taken again and again along *stops*, the places between noise and data. Steps
and stops are free of each other: any step walks any stops, a hundred or four.

    x_T ~ N(0, I),   x_s = step(denoise, x_t, t, s, z)   for every neighbouring pair t > s of stops

A denoiser is any callable (x_t, now, before) -> Prediction. `now` is the stop of x_t, `before` the
next one on the way to the data. Nothing here draws a random number: the noise is the caller's.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp, expm1, inf, sqrt
from typing import Any

from scratchgen.core.arrays import namespace, require_shape
from scratchgen.maths.forward_process import (
    ddim_step,
    posterior,
    q_posterior,
    shaped,
    signal_and_noise,
)
from scratchgen.maths.score import reverse_sde_drift, score_from_eps


@dataclass(frozen=True)
class Stop:
    """A place between noise and data.

    Attributes:
        time: what the model calls it: t = 0..T for a DDPM, t in [0, 1] for a VDM.
        level: log ᾱ ≤ 0, a host number; 0 is clean data.

    Raises:
        ValueError: the level is positive or not a number.
    """

    time: float
    level: float

    def __post_init__(self):
        if not self.level <= 0.0:
            raise ValueError(f"a stop's level is log ᾱ and at most 0, got {self.level}")
        for name in ("time", "level"):  # a NumPy scalar would turn float32 arrays into float64
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def noise(self) -> float:
        """√(1-ᾱ), the scale of the noise in x_t."""
        return sqrt(-expm1(self.level))

    def level_beside(self, x):
        """The level as maths/ takes it: (1,) float64, of the library and on the device of x."""
        xp = namespace(x)
        return xp.full((1,), self.level, dtype=xp.float64, device=x.device)


CLEAN = Stop(0.0, 0.0)


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says at x_t.

    Attributes:
        clean: x̂₀ (N, ...).
        epsilon: ε̂ (N, ...), with x_t = √ᾱ x̂₀ + √(1-ᾱ) ε̂.
        logvar: the log-variance (N, ...) of its reverse step, None where it has none of its own.
    """

    clean: Any
    epsilon: Any
    logvar: Any = None


Denoiser = Callable[[Any, Stop, Stop], Prediction]
Step = Callable[[Denoiser, Any, Stop, Stop, Any], Any]


def spaced(last: int, count: int) -> list[int]:
    """count + 1 different times from `last` down to 0, as evenly spaced as whole numbers can be.

    To take fewer steps is to take fewer stops: every pair of levels has its own β' = 1 - ᾱ_t/ᾱ_s,
    and ᾱ at the stops is what it was.

    Raises:
        ValueError: the count is not one of 1..last.

    Source: DVAE-17
    """
    if not 1 <= count <= last:
        raise ValueError(f"of {last} steps one can take 1 to {last}, got {count}")
    return [(2 * last * i + count) // (2 * count) for i in range(count, -1, -1)]  # the nearest ones


def trajectory(
    denoise: Denoiser,
    step: Step,
    x,
    stops: Sequence[Stop],
    noise: Callable | None = None,
    temperature: float = 1.0,
) -> Iterator[Any]:
    """x at the first stop and after every step, one after the other.

    Temperature τ has two places. A: the caller starts from τ ε in the place of ε, and after a long
    chain of stochastic steps nothing is left of that. B: every step's noise is scaled too, which is
    `temperature` here.

    Args:
        denoise: (x_t, now, before) -> Prediction.
        step: one of this file's, or one like them.
        x: (N, ...), at the first stop: N(0, I), or that times τ.
        stops: from noise to data.
        noise: i -> z (N, ...) ~ N(0, I) of the i-th step, i = 0, 1, ...; it may draw for steps that
            make no use of it, and None is for those.
        temperature: τ, by which every z is multiplied.

    Returns:
        An iterator over x (N, ...), as many as there are stops.

    Raises:
        ValueError: the levels of the stops do not rise strictly, there is no stop, τ is negative or
            not finite, or (once the step is asked for) its noise has not the shape of x.

    Source: VDM-4, VDM-10, DDPM-16, DVAE-12
    """
    steps, scale = pairs(stops), float(temperature)
    if not 0.0 <= scale < inf:
        raise ValueError(f"temperature must be finite and at least 0, got {temperature}")

    def walk(x):
        yield x
        for i, (now, before) in enumerate(steps):
            z = noise(i) if noise else namespace(x).zeros_like(x)
            require_shape("the noise of a step", z, x.shape)
            x = step(denoise, x, now, before, scale * z)
            yield x

    return walk(x)


def generate(
    denoise: Denoiser,
    step: Step,
    x,
    stops: Sequence[Stop],
    noise: Callable | None = None,
    temperature: float = 1.0,
):
    """The last x of a `trajectory`, whose arguments it takes: (N, ...).

    Source: VDM-10
    """
    return deque(trajectory(denoise, step, x, stops, noise, temperature), maxlen=1).pop()


def ancestral(denoise: Denoiser, x, now: Stop, before: Stop, z):
    """x_s = c₀ x̂₀ + c x_t + σ z: a sample of the model's own reverse step p(x_s | x_t).

    σ² is the denoiser's variance, and β̃ of the pair where it has none. The last step to clean data
    adds no noise: it returns x̂₀.

    Args:
        denoise: (x_t, now, before) -> Prediction.
        x: x_t (N, ...).
        now, before: the stops at t and at s < t.
        z: (N, ...) ~ N(0, I).

    Returns:
        x_s: (N, ...).

    Source: DDPM-16, DDPM-11, VDM-10
    """
    told = denoise(x, now, before)
    mean, variance = q_posterior(told.clean, x, now.level_beside(x), before.level_beside(x))
    if before.level == 0.0:
        return mean
    if told.logvar is None:
        return mean + shaped(namespace(variance).sqrt(variance), x) * z
    return mean + namespace(told.logvar).exp(0.5 * told.logvar) * z


def ddim(eta: float = 0.0) -> Step:
    """The step x_s = √ᾱ_s x̂₀ + √(1-ᾱ_s-σ²) ε̂ + σ z with σ² = η² β̃.

    η = 0 is deterministic, and then it is `flow_euler`; η = 1 is `ancestral` with σ² = β̃.

    Args:
        eta: η in [0, 1].

    Returns:
        A step; its arguments are those of `ancestral`.

    Raises:
        ValueError: η is outside.

    Source: [Song 2021]
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie in [0, 1], from no noise to that of the DDPM, got {eta}")

    def step(denoise, x, now, before, z):
        told, level = denoise(x, now, before), before.level_beside(x)
        _, _, variance = posterior(now.level_beside(x), level)
        return ddim_step(told.clean, told.epsilon, z, eta * eta * variance, level)

    return step


def flow_euler(denoise: Denoiser, x, now: Stop, before: Stop, z):
    """An Euler step of the probability-flow ODE du/dς = ε̂, of order 1.

        u = x/√ᾱ,   ς = √(1/ᾱ - 1)

    Args:
        denoise, x, now, before: as for `ancestral`.
        z: not used.

    Returns:
        x_s: (N, ...).

    Source: SCORE-7, SCORE-8, [Karras 2022]
    """
    return along(x, denoise(x, now, before).epsilon, now, before)


def flow_heun(denoise: Denoiser, x, now: Stop, before: Stop, z):
    """A step of Heun's rule for du/dς = ε̂, of order 2: two predictions, at both ends of the step.

    The last step to clean data is Euler's, for ε̂ is not defined where there is no noise.

    Args:
        denoise, x, now, before: as for `ancestral`. The second prediction is asked for at `before`
            on the way to clean data.
        z: not used.

    Returns:
        x_s: (N, ...).

    Source: SCORE-7, SCORE-8, [Karras 2022]
    """
    slope = denoise(x, now, before).epsilon
    there = along(x, slope, now, before)
    if before.level == 0.0:
        return there
    return along(x, 0.5 * (slope + denoise(there, before, CLEAN).epsilon), now, before)


def reverse_sde(denoise: Denoiser, x, now: Stop, before: Stop, z):
    """An Euler-Maruyama step of the reverse diffusion, with ∫β dt = log ᾱ_s - log ᾱ_t.

        x_s = x_t + ∫β dt (½ x_t + s_t(x_t)) + √(∫β dt) z

    The last step to clean data adds no noise.

    Args:
        denoise, x, now, before, z: as for `ancestral`.

    Returns:
        x_s: (N, ...).

    Source: SCORE-7, SCORE-8, [Song 2020]
    """
    score, _ = score_from_eps(denoise(x, now, before).epsilon, now.level_beside(x))
    lost = before.level_beside(x) - now.level_beside(x)
    mean = x - reverse_sde_drift(x, score, lost)  # a minus, because time runs backwards
    if before.level == 0.0:
        return mean
    return mean + shaped(namespace(lost).sqrt(lost), x) * z


def clipped(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """A denoiser with x̂₀ clipped to where data can be, and ε̂ = (x_t - √ᾱ x̂₀)/√(1-ᾱ) after it.

    Without the second, steps through x̂₀ and steps through ε̂ would go to different places.

    Args:
        denoise: (x_t, now, before) -> Prediction.
        low, high: the least and the largest value of clean data.

    Returns:
        A denoiser; the log-variance is left as it is.

    Source: DDPM-11
    """

    def denoise_clipped(x, now, before):
        told = denoise(x, now, before)
        clean = namespace(x).clip(told.clean, low, high)
        signal, noise = signal_and_noise(now.level_beside(x), x)
        return replace(told, clean=clean, epsilon=(x - signal * clean) / noise)

    return denoise_clipped


def shared(noise: Callable, count: int) -> Callable:
    """The noise of which every example gets the same: the first row of `noise`, count times.

    With the start shared too, samples differ by what their denoiser is told and by nothing else.

    Args:
        noise: i -> (1 or more, ...).
        count: N.

    Returns:
        i -> (N, ...).

    Source: DVAE-15
    """

    def rows(i):
        z = noise(i)
        return namespace(z).broadcast_to(z[:1, ...], (count, *z.shape[1:]))

    return rows


def along(x, slope, start: Stop, end: Stop):
    """x at `end`, where u = x/√ᾱ has gone from `start` along a straight line in ς.

    Args:
        x: (N, ...), at `start`.
        slope: du/dς (N, ...).
        start, end: the stops.

    Returns:
        (N, ...), √ᾱ_end (x/√ᾱ_start + (ς_end - ς_start) slope).

    Raises:
        OverflowError: log ᾱ rises by more than 1419, so that √(ᾱ_end/ᾱ_start) is no number.

    Source: SCORE-7, [Karras 2022]
    """
    growth = exp(0.5 * (end.level - start.level))
    # √ᾱ ς = √(1-ᾱ), for ς itself is beyond the largest number where log ᾱ < -709
    return growth * x + (end.noise - growth * start.noise) * slope


def pairs(stops: Sequence[Stop]) -> list[tuple[Stop, Stop]]:
    """Neighbouring stops (t, s), from noise to data.

    Raises:
        ValueError: the levels of the stops do not rise strictly, or there is no stop.
    """
    found = list(pairwise(stops))
    if len(stops) == 0 or not all(now.level < before.level for now, before in found):
        levels = [stop.level for stop in stops]
        raise ValueError(f"stops go from noise to data, so their levels must rise, got {levels}")
    return found
