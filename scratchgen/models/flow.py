"""The density of a denoiser: that of the noise, carried to the data by the probability flow."""

from collections.abc import Callable, Sequence
from math import log1p, prod

from scratchgen.core.arrays import example_sum, namespace
from scratchgen.core.numerics import normal_log_pdf
from scratchgen.models.samplers import Stop, along, pairs


def flow_log_density(epsilon: Callable, x, stops: Sequence[Stop], divergence: Callable):
    """log p(x) of the flow that starts from N(0, I), by Heun's rule from the data to the noise.

        log p(x) = log N(x_T; 0, I) + ½ D (ℓ_T - ℓ) + ∫ div ε̂ dw,   w = asinh ς,  √ᾱ dς = dw

    The integral is the change of volume of u = x/√ᾱ along du/dς = ε̂, and the term before it that
    from x to u; ℓ is the level of x. The error is of order 2 in the size of the steps. Where the
    last stop is clean data, ε̂ is taken to be 0 there, its limit for data with a smooth density.

    Args:
        epsilon: (x_t, stop) -> ε̂ (N, ...) and its pullback: d -> dx_t. A network's pullback adds to
            its parameters' gradients too; set them to zero afterwards.
        x: (N, ...), at the last stop.
        stops: from noise to data, as for sampling.
        divergence: `exact_divergence`, or `hutchinson(probe)`.

    Returns:
        log p(x): (N,), nats.
        x_T: (N, ...), the noise that the flow makes into x.

    Raises:
        ValueError: the levels of the stops do not rise strictly, or there is no stop.

    Source: [Song 2020]
    """

    def slopes(x, stop):
        if stop.level == 0.0:
            return namespace(x).zeros_like(x), 0.0
        eps, pullback = epsilon(x, stop)
        return eps, divergence(pullback, x)

    swelling = 0.0
    for there, here in reversed(pairs(stops)):
        first, spread = slopes(x, here)
        second, spread_there = slopes(along(x, first, here, there), there)
        x = along(x, 0.5 * (first + second), here, there)
        stretch = _arc(there) - _arc(here)
        swelling = swelling + 0.5 * stretch * (spread + spread_there)
    rescaled = 0.5 * prod(x.shape[1:]) * (stops[0].level - stops[-1].level)
    return example_sum(normal_log_pdf(x)) + rescaled + swelling, x


def hutchinson(probe) -> Callable:
    """Hutchinson's estimate vᵀ J v of a divergence tr J, unbiased where E v vᵀ = I.

    Args:
        probe: v (N, ...), such as signs ±1 or N(0, I), the same along the whole flow.

    Returns:
        (pullback, x) -> (N,).

    Source: [Song 2020]
    """
    return lambda pullback, x: example_sum(probe * pullback(probe))


def exact_divergence(pullback: Callable, x):
    """tr J = Σ_j e_jᵀ J e_j, with one pullback for each of the D dimensions.

    Args:
        pullback: d (N, ...) -> Jᵀ d (N, ...).
        x: (N, ...), where J was taken.

    Returns:
        (N,).

    Source: [Song 2020]
    """
    xp, dims = namespace(x), prod(x.shape[1:])
    units = xp.reshape(xp.eye(dims, dtype=x.dtype, device=x.device), (dims, *x.shape[1:]))
    probes = (xp.broadcast_to(units[j, ...], x.shape) for j in range(dims))
    return sum(hutchinson(probe)(pullback, x) for probe in probes)


def _arc(stop: Stop) -> float:
    """w = asinh ς = log(1 + √(1-ᾱ)) - ½ log ᾱ, also where ς is beyond the largest number."""
    return log1p(stop.noise) - 0.5 * stop.level
