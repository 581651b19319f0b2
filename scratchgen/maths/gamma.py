"""γ(t) = -log SNR(t) on [0, 1]: how much noise at which moment, where time is continuous.

Both kinds are layers t -> (γ, γ'), because the diffusion loss in continuous time needs the slope.
"""

from math import inf, log

from scratchgen.core.arrays import described, full_like, namespace, ones
from scratchgen.core.module import Module, Parameter
from scratchgen.core.numerics import sigmoid, softplus


def level_from_gamma(gamma):
    """level = log ᾱ = -softplus(γ), with 1 - ᾱ = σ(γ) = -expm1(level), in float64.

    Args:
        gamma: (N,), γ = -log SNR, of any floating dtype.

    Returns:
        level: (N,), float64.
        pullback: d_level -> d_gamma (N,), of γ's dtype.

    Source: [Kingma 2021]
    """
    xp = namespace(gamma)
    level = -softplus(xp.zeros_like(gamma, dtype=xp.float64) + gamma)

    def pullback(d_level):
        # which keeps all digits of -σ(γ), also far in its lower tail
        return xp.astype(xp.expm1(level) * d_level, gamma.dtype)

    return level, pullback


class LinearGamma(Module):
    """γ(t) = γ(0) + (γ(1) - γ(0)) t: a schedule with nothing to learn.

    Args:
        first, last: γ(0) and γ(1).

    Raises:
        ValueError: γ would not rise, or not by a finite number.

    Source: [Kingma 2021]
    """

    def __init__(self, first: float = -13.3, last: float = 5.0):
        self.first, self.rise = first, _positive_rise(first, last)

    def __call__(self, t):
        """γ and its derivative at every t.

        Args:
            t: (N,), in [0, 1], which is not checked.

        Returns:
            (γ, γ'): each (N,).
            pullback: (dγ, dγ', interior) -> dt (N,).

        Raises:
            ValueError: t is not an array (N,).

        Source: [Kingma 2021]
        """
        _require_row(t)

        def pullback(d_gamma, d_gamma_dot, interior=None):
            return self.rise * d_gamma

        return (self.first + self.rise * t, full_like(t, self.rise)), pullback


class LearnedGamma(Module):
    """γ_η(t) = -log SNR(t) on [0, 1], rising and smooth for every η, with free end points.

        g(t) = t + Σ_j w_j σ(k_j (t - c_j)),   w_j = e^(a_j),  k_j = e^(b_j)
        γ(t) = γ(0) + e^s (g(t) - g(0))/(g(1) - g(0)),   so  γ(1) = γ(0) + e^s

    Exponentials where the paper takes absolute values keep the weights positive without a kink. At
    first the interior is nearly linear and the units are spread evenly.

    Args:
        first, last: γ(0) and γ(1) at the start of training.
        units: n.

    Raises:
        ValueError: γ would not rise, not by a finite number, or there is no unit.

    Source: [Kingma 2021]
    """

    def __init__(self, first: float = -13.3, last: float = 5.0, units: int = 32):
        if units < 1:
            raise ValueError(f"gamma must have at least one unit, got {units}")
        self.start = Parameter((1,), _filled(first))
        self.log_rise = Parameter((1,), _filled(log(_positive_rise(first, last))))
        self.log_weight = Parameter((units,), _filled(log(0.1 / units)))
        self.log_slope = Parameter((units,), _filled(log(10.0)))
        self.centre = Parameter((units,), _spread)

    def __call__(self, t):
        """γ and its derivative at every t.

        Args:
            t: (N,), in [0, 1], which is not checked.

        Returns:
            (γ, γ'): each (N,).
            pullback: (dγ, dγ', interior) -> dt (N,). The last, a number or (N,), multiplies what
                reaches the parameters a, b, c of the interior, and nothing else. With 2 L_i, where
                dγ and dγ' are the cotangents of losses L_i, they get the gradient of Σ L_i²: that
                is how the shape is trained for the least variance, the ends for the least loss.

        Raises:
            ValueError: t is not an array (N,).

        Source: [Kingma 2021]
        """
        _require_row(t)
        start, log_rise = self.start.read(), self.log_rise.read()
        log_weight, log_slope = self.log_weight.read(), self.log_slope.read()
        centre = self.centre.read()
        zero = namespace(start.value).zeros_like(start.value)
        u = namespace(t).concat([t, zero, zero + 1.0])  # the two ends ride along
        gap = u[:, None] - centre.value

        xp = namespace(gap)  # which carries the trace, be it t or a parameter that is traced
        weight, slope = xp.exp(log_weight.value), xp.exp(log_slope.value)
        unit = sigmoid(slope * gap)
        bump = unit * (1.0 - unit)
        g = u + xp.sum(weight * unit, axis=1)
        g_dot = 1.0 + xp.sum(weight * slope * bump, axis=1)
        span = g[-1:] - g[-2:-1]
        rise = xp.exp(log_rise.value)
        climb = rise * ((g[:-2] - g[-2:-1]) / span)  # exactly the whole rise at t = 1
        scale = rise / span
        gamma_dot = scale * g_dot[:-2]

        def interior_rows(d_gamma, d_gamma_dot):
            """The cotangents of σ's argument and of log w, log k, for t and both ends."""
            d_span = -xp.sum(d_gamma * climb + d_gamma_dot * gamma_dot) / span
            at_zero = -d_span - scale * xp.sum(d_gamma)
            dg = xp.concat([scale * d_gamma, at_zero, d_span])
            dg_dot = xp.concat([scale * d_gamma_dot, zero, zero])
            d_unit, d_bump = weight * dg[:, None], weight * slope * dg_dot[:, None]
            dz = bump * (d_unit + d_bump * (1.0 - 2.0 * unit))
            return dg, dz, d_unit * unit + d_bump * bump, dz * slope * gap + d_bump * bump

        def pullback(d_gamma, d_gamma_dot, interior=1.0):
            dg, dz, _, _ = interior_rows(d_gamma, d_gamma_dot)
            _, shape_dz, d_weight, d_slope = interior_rows(
                interior * d_gamma, interior * d_gamma_dot
            )
            for parameter, rows in (
                (start, d_gamma[:, None]),
                (log_rise, (d_gamma * climb + d_gamma_dot * gamma_dot)[:, None]),
                (log_weight, d_weight),
                (log_slope, d_slope),
                (centre, -slope * shape_dz),
            ):
                parameter.accumulate_product(a=ones((rows.shape[0], 1), like=rows), b=rows)
            return (dg + xp.sum(slope * dz, axis=1))[:-2]

        return (start.value + climb, gamma_dot), pullback


def _positive_rise(first: float, last: float) -> float:
    if not 0.0 < last - first < inf:
        raise ValueError(f"gamma must rise, got {first} to {last}; take finite ends, first < last")
    return last - first


def _require_row(t) -> None:
    if getattr(t, "ndim", None) != 1:
        raise ValueError(f"t must be an array (N,), got {described(t)}")


def _filled(value: float):
    """The initialiser that sets every entry to one value."""
    return lambda stream, shape: stream.backend.zeros(shape) + value


def _spread(stream, shape):
    """The midpoints of n equal parts of [0, 1]."""
    (n,) = shape
    return stream.backend.asarray([(i + 0.5) / n for i in range(n)])
