"""How much noise at which step: fixed schedules as tables. A γ(t) in continuous time: gamma.py.

Tables are float64 on the host and indexed by t = 0..T, so that formulas are typed with the index
they are printed with; slot 0 is clean data, ᾱ₀ = 1. What the maths takes is a *level* = log ᾱ, one
number per example. Everything is derived from it without a difference of nearly equal numbers:
1 - ᾱ = -expm1(level), γ = -log SNR = log(1 - ᾱ) - log ᾱ, and level = -softplus(γ).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from numbers import Integral

import numpy as np

from scratchgen.core.arrays import described, namespace
from scratchgen.core.numerics import expm1_minus, log1mexp

LARGEST_BETA = 0.999
SIGNAL_LIMIT = 1e-4


class SignalLeft(UserWarning):
    """The last latent still shows the data, so the standard normal is the wrong place to start."""


@dataclass(frozen=True)
class TerminalReport:
    """What a schedule leaves of the data at t = T.

    Attributes:
        alpha_bar: ᾱ_T.
        snr: ᾱ_T / (1 - ᾱ_T).
        prior_kl: L_T = KL(q(x_T | x₀) ‖ N(0, 1)), nats per dimension, averaged over the data.
    """

    alpha_bar: float
    snr: float
    prior_kl: float


class Schedule:
    """A noise schedule q(x_t | x_{t-1}) = N(√(1 - β_t) x_{t-1}, β_t I), t = 1..T.

    Args:
        betas: (T,), each strictly between 0 and 1.

    Attributes:
        beta: (T+1,), β_t; slot 0 is 0.
        log_alpha_bar: (T+1,), log ᾱ_t = Σ_{s≤t} log1p(-β_s).

    Raises:
        ValueError: betas is not one-dimensional, is empty, or has an entry that is not in (0, 1).

    Source: [Ho 2020]
    """

    def __init__(self, betas):
        betas = np.asarray(betas, dtype=np.float64)
        if betas.ndim != 1 or betas.size == 0:
            raise ValueError(f"betas must be one row of at least one number, got {betas.shape}")
        bad = np.flatnonzero(~((betas > 0.0) & (betas < 1.0)))
        if bad.size:
            raise ValueError(
                f"every beta must lie strictly between 0 and 1, got betas[{bad[0]}] = "
                f"{betas[bad[0]]}"
            )
        self.beta = np.concatenate([[0.0], betas])
        self.log_alpha_bar = np.cumsum(np.log1p(-self.beta))

    @classmethod
    def linear(
        cls, steps: int, first: float = 1e-4, last: float = 0.02, reference: int = 1000
    ) -> "Schedule":
        """β from `first` to `last` in equal increments, times reference/T, at most 0.999.

        The two ends belong to a schedule of `reference` steps; scaling keeps the noise of the whole
        chain, and from T = 3 on it leaves too little signal for `report` to warn. T = 1 and T = 2
        leave too much. The cut at 0.999 is felt up to T = 20. `reference=steps` takes the ends as
        they are.

        Args:
            steps: T, at least 1.
            first, last: β_1 and β_T of the reference schedule.
            reference: its number of steps.

        Returns:
            Schedule.

        Source: [Ho 2020]
        """
        betas = np.linspace(first, last, at_least_one_step(steps)) * (reference / steps)
        return cls(np.minimum(betas, LARGEST_BETA))

    @classmethod
    def cosine(cls, steps: int, offset: float = 0.008) -> "Schedule":
        """ᾱ(u) = cos²(½π (u + offset)/(1 + offset)), normalised at u = t/T = 0; β at most 0.999.

        Args:
            steps: T, at least 1.
            offset: keeps β_1 from vanishing.

        Returns:
            Schedule.

        Source: [Nichol 2021]
        """
        half_pi = 0.5 * np.pi
        return cls.from_alpha_bar(
            lambda u: np.cos(half_pi * (u + offset) / (1.0 + offset)) ** 2, steps
        )

    @classmethod
    def from_alpha_bar(cls, function: Callable, steps: int) -> "Schedule":
        """β_t = 1 - ᾱ(t/T)/ᾱ((t-1)/T), at most 0.999, for any falling function ᾱ.

        Args:
            function: u (T+1,) in [0, 1] -> ᾱ (T+1,), a host array; only ratios matter.
            steps: T, at least 1.

        Returns:
            Schedule.

        Raises:
            ValueError: the function does not return (T+1,), or ᾱ does not fall strictly, or falls
                below 0.

        Source: [Nichol 2021]
        """
        u = np.linspace(0.0, 1.0, at_least_one_step(steps) + 1)
        alpha_bar = np.asarray(function(u), dtype=np.float64)
        if alpha_bar.shape != u.shape:
            raise ValueError(
                f"the function must return one alpha_bar for each u {u.shape}, got shape "
                f"{alpha_bar.shape}"
            )
        good = (np.diff(alpha_bar) < 0.0) & (alpha_bar[1:] >= 0.0)
        if not np.all(good):
            t = 1 + int(np.argmin(good))
            raise ValueError(
                "alpha_bar must fall strictly and stay at least 0, got "
                f"{alpha_bar[t]} at u = {u[t]} after {alpha_bar[t - 1]}"
            )
        return cls(np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], LARGEST_BETA))

    @property
    def steps(self) -> int:
        """T."""
        return len(self.beta) - 1

    @property
    def alpha(self) -> np.ndarray:
        """(T+1,), α_t = 1 - β_t; slot 0 is 1."""
        return 1.0 - self.beta

    @property
    def alpha_bar(self) -> np.ndarray:
        """(T+1,), ᾱ_t = α_1 ⋯ α_t, the share of x_t's variance that is signal."""
        return np.exp(self.log_alpha_bar)

    @property
    def one_minus_alpha_bar(self) -> np.ndarray:
        """(T+1,), 1 - ᾱ_t with all its digits, also where it is small."""
        return -np.expm1(self.log_alpha_bar)

    @property
    def posterior_variance(self) -> np.ndarray:
        """(T+1,), β̃_t = β_t (1 - ᾱ_{t-1})/(1 - ᾱ_t); β̃_1 = 0, and slot 0 is 0."""
        noise = self.one_minus_alpha_bar
        return np.concatenate([[0.0], self.beta[1:] * noise[:-1] / noise[1:]])

    @property
    def gamma(self) -> np.ndarray:
        """(T+1,), γ_t = -log SNR_t, rising; slot 0 is -inf."""
        level = self.log_alpha_bar[1:]
        return np.concatenate([[-np.inf], log1mexp(-level) - level])

    @property
    def snr(self) -> np.ndarray:
        """(T+1,), SNR_t = ᾱ_t/(1 - ᾱ_t), falling; slot 0 is inf."""
        return np.exp(-self.gamma)

    def level(self, t):
        """log ᾱ_t (N,) for every example, float64 on the device of t.

        Only host arrays are checked: asking a GPU whether an index is in range would make every
        step wait for it, so there a wrong t wraps around as CuPy's indexing does.

        Args:
            t: (N,), integers in 0..T, of any array library.

        Raises:
            ValueError: t is not an integer array (N,), or it is a host array and holds an index
                outside 0..T.
        """
        if not (_one_row(t) and namespace(t).isdtype(t.dtype, "integral")):
            raise ValueError(f"t must be an integer array (N,), got {described(t)}")
        if isinstance(t, np.ndarray):
            outside = t[(t < 0) | (t > self.steps)]
            if outside.size:
                raise ValueError(f"t must lie in 0..{self.steps}, got {outside[0]}")
        xp = namespace(t)
        return xp.take(xp.asarray(self.log_alpha_bar, device=t.device), t)

    def report(self, second_moment: float = 1.0) -> TerminalReport:
        """What is left of the data at t = T; warns where that is too much.

            L_T = ½ (ᾱ_T E x₀² - ᾱ_T - log(1 - ᾱ_T)) = ½ (ᾱ_T E x₀² + e^r - 1 - r),
            r = log(1 - ᾱ_T)

        Args:
            second_moment: E x₀² per dimension of the data.

        Returns:
            TerminalReport.

        Raises:
            ValueError: the second moment is negative or not finite.

        Warns:
            SignalLeft: L_T is 1e-4 nats per dimension or more.

        Source: VDM-6, VDM-1, DDPM-5
        """
        if not 0.0 <= second_moment < inf:
            raise ValueError(f"a second moment is finite and at least 0, got {second_moment}")
        alpha_bar, log_noise = self.alpha_bar[-1], log1mexp(-self.log_alpha_bar[-1])
        prior_kl = 0.5 * (alpha_bar * second_moment + expm1_minus(log_noise))
        report = TerminalReport(float(alpha_bar), float(self.snr[-1]), float(prior_kl))
        if report.prior_kl >= SIGNAL_LIMIT:
            warnings.warn(
                f"x_T keeps alpha_bar = {report.alpha_bar:.2g} of the data, "
                f"{report.prior_kl:.2g} nats per dimension from the standard normal (limit "
                f"{SIGNAL_LIMIT:g}): sampling would start from what training never saw. Take "
                "more steps or larger betas",
                SignalLeft,
                stacklevel=2,
            )
        return report


def at_least_one_step(steps: int) -> int:
    """The number of steps.

    Raises:
        ValueError: it is not a whole number from 1 on.
    """
    if not (isinstance(steps, Integral) and steps >= 1):
        raise ValueError(f"steps must be a whole number and at least 1, got {steps}")
    return steps


def _one_row(t) -> bool:
    return getattr(t, "ndim", None) == 1
