"""p(x | h): what a network's output h says about the data x, as interchangeable objects.

Each has the same four doors: `width`, how many numbers the network gives per data dimension;
`nll(x, h)`, the cost and its pullback; `mean(h)`; and `sample(h, stream)`. The last axis of h is
`width` times as long as that of x: first all means, then all log-variances or log-scales (only
Categorical keeps the numbers of one dimension together). x is data and has no cotangent. An h of
another shape is refused with a ValueError. Where h is a mean and a log-variance, `reads_logvar`
says so: a diffusion has those to give.
"""

from abc import ABC, abstractmethod
from math import log

from scratchgen.core.arrays import full_like, halves, namespace, require_shape
from scratchgen.core.numerics import level_centres, level_codes, logsumexp, sigmoid
from scratchgen.maths.distributions import (
    bernoulli_nll,
    categorical_nll,
    discretised_logistic_nll,
    discretised_normal_nll,
    normal_nll,
)


class Bernoulli:
    """x ∈ {0, 1} with logits h: the binary cross-entropy.

    Source: VAE-7
    """

    width = 1

    def nll(self, x, h):
        """x, h (N, ..., C) -> nll (N, ..., C) in nats, pullback: d_nll -> dh."""
        _require_width(self, x, h)
        return bernoulli_nll(x, h)

    def mean(self, h):
        """E[x | h] (N, ..., C).

        Source: VAE-1
        """
        return sigmoid(h)

    def sample(self, h, stream):
        """x ~ p(x | h) (N, ..., C).

        Source: VAE-1
        """
        return namespace(h).astype(stream.uniform(h.shape) < sigmoid(h), h.dtype)


class FixedNormal:
    """x ~ N(h, s² I) with a stated variance s²: squared error with its constant.

        -log N(x; h, s²) = (x - h)² / (2 s²) + ½ log(2π s²)

    This is why a sum of squares appears in a VAE's loss. Plain "sum of squares + KL" is the exact
    bound for s² = ½, "half the sum of squares + KL" for s² = 1, and "mean of squares + KL" silently
    chooses s² = D/2, so the variance is an argument here, not a habit.

    Args:
        variance: s² > 0, in squared data units.

    Raises:
        ValueError: the variance is not positive.

    Source: VAE-7
    """

    width = 1

    def __init__(self, variance: float):
        if not variance > 0.0:
            raise ValueError(f"the decoder variance must be positive, got {variance}")
        self.variance = variance

    def nll(self, x, h):
        """x, h (N, ..., C) -> nll (N, ..., C) in nats, pullback: d_nll -> dh."""
        _require_width(self, x, h)
        nll, pullback = normal_nll(x, h, full_like(h, log(self.variance)))
        return nll, lambda d_nll: pullback(d_nll)[1]

    def mean(self, h):
        """E[x | h] (N, ..., C).

        Source: VAE-1
        """
        return h

    def sample(self, h, stream):
        """x ~ p(x | h) (N, ..., C).

        Source: VAE-1
        """
        return h + self.variance**0.5 * stream.normal(h.shape)


class Normal:
    """x ~ N(mean, e^logvar), both from the network: h = [mean, logvar].

    Source: VAE-7
    """

    width, reads_logvar = 2, True

    def nll(self, x, h):
        """x (N, ..., C), h (N, ..., 2C) -> nll (N, ..., C) in nats, pullback: d_nll -> dh."""
        _require_width(self, x, h)
        nll, pullback = normal_nll(x, *halves(h))
        return nll, lambda d_nll: namespace(d_nll).concat(pullback(d_nll)[1:], axis=-1)

    def mean(self, h):
        """E[x | h] (N, ..., C).

        Source: VAE-1
        """
        return halves(h)[0]

    def sample(self, h, stream):
        """x ~ p(x | h) (N, ..., C).

        Source: VAE-1
        """
        mean, logvar = halves(h)
        return mean + namespace(h).exp(0.5 * logvar) * stream.normal(mean.shape)


class Levels(ABC):
    """A distribution on the K bin centres of [-1, 1]; subclasses say which, by their `nll`.

    Args:
        levels: K, at least 2.

    Raises:
        ValueError: fewer than two levels.
    """

    width = 2

    def __init__(self, levels: int):
        if levels < 2:
            raise ValueError(f"a discretised likelihood needs at least 2 levels, got {levels}")
        self.levels = levels

    @abstractmethod
    def nll(self, x, h):
        """x (N, ..., C) -> nll (N, ..., C) in nats, pullback: d_nll -> dh."""

    def log_probabilities(self, h):
        """h (N, ..., width·C) -> log P of each level, (N, ..., C, K)."""
        xp = namespace(h)
        some = h[..., : h.shape[-1] // self.width]
        return -xp.stack([self.nll(full_like(some, x), h)[0] for x in self.centres], axis=-1)

    @property
    def centres(self) -> list[float]:
        """The K values that x can take."""
        return [level_centres(k, self.levels) for k in range(self.levels)]

    def mean(self, h):
        """E[x | h] (N, ..., C), the exact mean over the K levels.

        Source: VAE-1
        """
        p = namespace(h).exp(self.log_probabilities(h))
        return sum(p[..., k] * x for k, x in enumerate(self.centres))

    def sample(self, h, stream):
        """x ~ p(x | h) (N, ..., C), by inverting the distribution function at a uniform number.

        Source: VAE-1
        """
        xp = namespace(h)
        p = xp.exp(self.log_probabilities(h))
        u = stream.uniform(p.shape[:-1])
        above = u[..., None] >= xp.cumulative_sum(p[..., :-1], axis=-1)
        return level_centres(xp.sum(xp.astype(above, u.dtype), axis=-1), self.levels)


class DiscretisedLogistic(Levels):
    """A logistic distribution cut into K bins: h = [mean, log_scale].

    Source: [Salimans 2017]
    """

    def nll(self, x, h):
        """x (N, ..., C), h (N, ..., 2C) -> nll (N, ..., C) in nats, pullback: d_nll -> dh."""
        _require_width(self, x, h)
        mean, log_scale = halves(h)
        nll, pullback = discretised_logistic_nll(x, mean, log_scale, self.levels)
        return nll, lambda d_nll: namespace(d_nll).concat(pullback(d_nll), axis=-1)


class DiscretisedNormal(Levels):
    """A normal distribution cut into K bins: h = [mean, logvar].

    Source: DDPM-8
    """

    reads_logvar = True

    def nll(self, x, h):
        """x (N, ..., C), h (N, ..., 2C) -> nll (N, ..., C) in nats, pullback: d_nll -> dh."""
        _require_width(self, x, h)
        mean, logvar = halves(h)
        nll, pullback = discretised_normal_nll(x, mean, logvar, self.levels)
        return nll, lambda d_nll: namespace(d_nll).concat(pullback(d_nll), axis=-1)


class BernoulliLevels(Levels):
    """A Bernoulli on two levels, for black and white: P(x = ½) = σ(h), P(x = -½) = σ(-h).

        nll = -log Bernoulli(x + ½; σ(h))

    Args:
        levels: 2, whose centres are ∓½.

    Raises:
        ValueError: another number of levels.

    Source: VAE-7
    """

    width = 1

    def __init__(self, levels: int = 2):
        if levels != 2:
            raise ValueError(f"a Bernoulli likelihood is for data of 2 levels, got {levels}")
        super().__init__(levels)

    def nll(self, x, h):
        """x (N, ..., C), h (N, ..., C) -> nll (N, ..., C) in nats, pullback: d_nll -> dh."""
        _require_width(self, x, h)
        return bernoulli_nll(x + 0.5, h)


class Categorical(Levels):
    """K free probabilities per data dimension: h holds C·K logits, those of one dimension together.

    Source: [Bishop 2006]
    """

    def __init__(self, levels: int):
        super().__init__(levels)
        self.width = levels

    def nll(self, x, h):
        """x (N, ..., C), h (N, ..., C·K) -> nll (N, ..., C) in nats, pullback: d_nll -> dh."""
        _require_width(self, x, h)
        nll, pullback = categorical_nll(level_codes(x, self.levels), self._logits(h))
        return nll, lambda d_nll: namespace(d_nll).reshape(pullback(d_nll), h.shape)

    def log_probabilities(self, h):
        """h (N, ..., C·K) -> log P of each level, (N, ..., C, K)."""
        logits = self._logits(h)
        return logits - logsumexp(logits)[..., None]

    def _logits(self, h):
        shape = (*h.shape[:-1], h.shape[-1] // self.levels, self.levels)
        return namespace(h).reshape(h, shape)


def _require_width(likelihood, x, h) -> None:
    width = likelihood.width * x.shape[-1]
    require_shape(f"h of {type(likelihood).__name__}", h, (*x.shape[:-1], width))
