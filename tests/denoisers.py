"""Denoisers that say exactly what the perfect one says, and stops for them."""

from functools import cache
from math import acos, cos, exp, expm1, sqrt

import numpy as np

from scratchgen.maths.densities import Mixture
from scratchgen.maths.schedules import Schedule
from scratchgen.maths.score import denoised, eps_from_score
from scratchgen.models.samplers import Prediction, Stop, generate
from scratchgen.testing.diffusion_worlds import GaussianDiffusion


def stops_of(schedule: Schedule, times) -> list[Stop]:
    """The schedule's stops at those times."""
    return [Stop(t, schedule.log_alpha_bar[t]) for t in times]


def every_stop(schedule: Schedule) -> list[Stop]:
    """All T + 1 of them, from noise to data."""
    return stops_of(schedule, range(schedule.steps, -1, -1))


def arc(count: int) -> list[Stop]:
    """count + 1 stops from √ᾱ = 1/150 to clean data, at equal angles: √ᾱ = cos(angle)."""
    return [Stop(a, 2.0 * np.log(cos(a))) for a in np.linspace(acos(1.0 / 150.0), 0.0, count + 1)]


def even(count: int, most: float = 5.7, least: float = 0.0) -> list[Stop]:
    """count + 1 stops, evenly spaced in w = asinh ς, where √ᾱ = 1/cosh w; 0 is clean data.

    At the default `most` nearly nothing is left of the data: √ᾱ = 1/150.
    """
    return [Stop(w, -2.0 * np.log(np.cosh(w))) for w in np.linspace(most, least, count + 1)]


def perfect(world: GaussianDiffusion, variance=None):
    """E[x_0 | x_t] and E[ε | x_t] of a normal world; `variance` is (now, before) -> σ² (D,)."""

    def denoise(x, now, before):
        level, logvar = np.asarray([now.level]), None
        if variance is not None and before.level < 0.0:
            logvar = np.log(variance(now.level, before.level)) + np.zeros_like(x)
        return Prediction(world.clean(x, level), world.epsilon(x, level), logvar)

    return denoise


def perfect_score(mixture: Mixture):
    """The same of a mixture, by its score alone."""
    noised = cache(mixture.noised)

    def denoise(x, now, before):
        score, level = noised(now.level).score(x), np.asarray([now.level])
        return Prediction(denoised(x, score, level), eps_from_score(score, level)[0])

    return denoise


def flow_of_normal(world: GaussianDiffusion):
    """(x, stop) -> E[ε | x_t] of a normal world, and its pullback."""

    def epsilon(x, stop):
        level = np.asarray([stop.level])
        slope = np.sqrt(-np.expm1(level)) / world.marginal(level)[1]
        return world.epsilon(x, level), lambda d: slope * d

    return epsilon


def flow_of_mixture(mixture: Mixture):
    """(x, stop) -> E[ε | x_t] of a mixture, and its pullback through Cov[x_0 | x_t]."""
    denoise = perfect_score(mixture)

    def epsilon(x, stop):
        signal, noise = exp(0.5 * stop.level), sqrt(-expm1(stop.level))
        covariance = mixture.posterior_covariance(x, stop.level)
        jacobian = (np.eye(mixture.dims) - (signal / noise) ** 2 * covariance) / noise
        return denoise(x, stop, stop).epsilon, lambda d: (d[:, None, :] @ jacobian)[:, 0, :]

    return epsilon


def generated(denoise, step, stops, dims=1, start=1.0, temperature=1.0, sampler=generate):
    """Mean and variance (D,) of what comes out when x_T ~ N(0, start²), without sampling.

    A chain that is affine in x_T and in every z is fed unit inputs, one a row, and a row of zeros:
    the variance is the sum of the squared responses.
    """
    inputs = np.eye(len(stops) + 1, len(stops))[..., None] * np.ones(dims)
    noise = lambda i: inputs[:, i + 1]
    x = sampler(denoise, step, start * inputs[:, 0], stops, noise, temperature)
    return x[-1], ((x[:-1] - x[-1]) ** 2).sum(axis=0)
