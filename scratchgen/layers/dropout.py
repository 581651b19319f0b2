"""Dropout: multiplicative noise that is on in training and off in evaluation."""

from scratchgen.core.arrays import namespace
from scratchgen.core.module import Module


class Dropout(Module):
    """y = x ⊙ m / (1 - rate), with m ~ Bernoulli(1 - rate), so that E[y] = x.

    Args:
        rate: the probability in [0, 1) that an entry is dropped.

    Raises:
        ValueError: the rate is outside [0, 1).

    Source: [Srivastava 2014]
    """

    draws = True

    def __init__(self, rate: float):
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"a dropout rate must lie in [0, 1), got {rate}")
        self.rate = rate

    def __call__(self, x, stream=None):
        """x (N, ...) -> y (N, ...), pullback: dy -> dx; without a stream y is x."""
        if stream is None or self.rate == 0.0:
            return x, lambda dy: dy
        keep = stream.uniform(x.shape) >= self.rate
        mask = namespace(x).astype(keep, x.dtype) / (1.0 - self.rate)
        return x * mask, lambda dy: dy * mask
