"""σ² of the reverse step p_θ(x_s | x_t): β, β̃, the best single number, or what a net says.

Each has two doors: `outputs`, how many numbers the net gives for it for each number of the data;
and `logvar`. A step to clean data, s = 0, is known exactly once x_0 is, so β̃ = 0 there; its
variance is that of a likelihood, and a stated one is taken in its place.
"""

from abc import ABC, abstractmethod

from scratchgen.core.arrays import namespace
from scratchgen.maths.diffusion_bound import optimal_variance
from scratchgen.maths.forward_process import kernel, posterior, shaped


class ReverseVariance(ABC):
    """log σ² of a reverse step."""

    outputs = 0

    @abstractmethod
    def logvar(self, output, x_t, now, before):
        """log σ² and its pullback: d -> d_output, None where the net says nothing of it.

        Args:
            output: what the net says of it, (N, ..., C·outputs).
            x_t: (N, ..., C).
            now, before: (N,), levels at t and at s < t.

        Returns:
            (N, ..., C), and the pullback.

        Source: DDPM-17
        """


class StepVariance(ReverseVariance):
    """σ² = β, that of the forward step: exact for data that are standard normal.

    Source: DDPM-17
    """

    def logvar(self, output, x_t, now, before):
        """log β."""
        return _log_like(kernel(now, before)[1], x_t), lambda d: None


class PosteriorVariance(ReverseVariance):
    """σ² = β̃, that of q(x_s | x_t, x_0): exact for data that are one point.

    Args:
        first: σ² of the step to clean data; the usual choice is β̃_2, the first that is not 0.

    Source: DDPM-17, TRAP-8
    """

    def __init__(self, first: float):
        self.first = first

    def variance(self, now, before):
        """β̃, and `first` where s = 0: (N,), (N,) -> (N,).

        Source: DDPM-17, TRAP-8
        """
        xp, variance = namespace(now), posterior(now, before)[2]
        return xp.where(before < 0.0, variance, xp.full_like(variance, self.first))

    def logvar(self, output, x_t, now, before):
        """log β̃."""
        return _log_like(self.variance(now, before), x_t), lambda d: None


class OptimalVariance(ReverseVariance):
    """σ² = β̃ + c₀² E‖x_0 - x̂₀‖²/D, the best single number for a given net.

    The error of the net depends on the level it looks at and not on how far the step goes, so one
    table serves all pairs of steps. Between its levels it answers for the next noisier one.

    Args:
        levels: (T+1,), log ᾱ_0 = 0 > ... > log ᾱ_T, of any array library.
        errors: (T+1,), E(x_0 - x̂₀)² per dimension at these levels; the first is not used.

    Source: DDPM-17
    """

    def __init__(self, levels, errors):
        self.levels, self.errors = levels, errors

    def logvar(self, output, x_t, now, before):
        """log (β̃ + c₀² E(x_0 - x̂₀)²)."""
        xp = namespace(now)
        levels, errors = (xp.asarray(a, device=now.device) for a in (self.levels, self.errors))
        place = xp.clip(xp.searchsorted(-levels, -now), None, errors.size - 1)
        error = xp.take(errors, place)
        return _log_like(optimal_variance(error, now, before, 1), x_t), lambda d: None


class LearnedVariance(PosteriorVariance):
    """log σ² = v log β + (1-v) log β̃ for every number of the data, with v = ½ (output + 1).

    Args:
        first: stands for β̃ in the step to clean data.

    Source: [Nichol 2021], DDPM-17
    """

    outputs = 1

    def logvar(self, output, x_t, now, before):
        """log σ², and its pullback: d -> d_output."""
        low = _log_like(self.variance(now, before), x_t)
        rise = _log_like(kernel(now, before)[1], x_t) - low
        return low + 0.5 * (output + 1.0) * rise, lambda d: 0.5 * rise * d


def _log_like(variance, like):
    """log of a number per example, in the shape of `like`."""
    return namespace(like).broadcast_to(shaped(namespace(variance).log(variance), like), like.shape)
