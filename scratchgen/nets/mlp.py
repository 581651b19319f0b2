"""Fully connected networks."""

from collections.abc import Sequence

from scratchgen.core.arrays import namespace
from scratchgen.core.module import Module
from scratchgen.layers.activations import silu
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.layers.dropout import Dropout
from scratchgen.nets.time import Sinusoidal, time_embedding


def mlp(
    sizes: Sequence[int], activation=silu, dropout: float = 0.0, reads_data: bool = False
) -> Sequential:
    """Linear layers with an activation, and optionally dropout, between them.

    Args:
        sizes: of the input, of each hidden layer, of the output; at least two.
        activation: a layer without parameters.
        dropout: the rate behind every hidden activation.
        reads_data: the input is data: no cotangent is computed for it.

    Returns:
        A net x (N, sizes[0]) -> y (N, sizes[-1]).

    Raises:
        ValueError: fewer than two sizes.
    """
    if len(sizes) < 2:
        raise ValueError(f"an MLP needs the sizes of its input and output, got {list(sizes)}")
    layers: list = []
    for i, (n_in, n_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        if i > 0:
            layers += [activation] + ([Dropout(dropout)] if dropout else [])
        layers.append(Linear(n_in, n_out, reads_data=reads_data and i == 0))
    return Sequential(*layers)


class TimedMlp(Module):
    """An MLP that hears of the time: y = mlp([x, SiLU(e(t))]).

    Args:
        sizes: of x, of each hidden layer, of y; at least two.
        dims: the size of the embedding e.
        time: features of time (nets/time.py); unless given, sinusoidal ones for steps t = 1..T.
        activation, dropout: as for `mlp`.

    Raises:
        ValueError: fewer than two sizes; calling it, times that do not fit x.
    """

    def __init__(
        self, sizes: Sequence[int], dims: int, time=None, activation=silu, dropout: float = 0.0
    ):
        self.draws = dropout > 0.0
        self.time = Sequential(time_embedding(time or Sinusoidal(dims), dims), silu)
        self.body = mlp([sizes[0] + dims, *sizes[1:]], activation, dropout)

    def __call__(self, x, t, stream=None):
        """x (N, D), t (N,) -> y (N, sizes[-1]), pullback: dy -> (dx, dt)."""
        if t.shape != x.shape[:1] or t.dtype != x.dtype:
            raise ValueError(
                f"this net takes one time for each row, {x.shape[:1]} of {x.dtype}; "
                f"got {t.shape} of {t.dtype}"
            )
        e, time_pullback = self.run("time", self.time, t)
        xp = namespace(x[:, :1] + e[:, :1])  # which carries a trace, be it x or e that is traced
        both = xp.concat([x, e], axis=-1)
        y, body_pullback = self.run("body", self.body, both, stream=stream)

        def pullback(dy):
            d_both = body_pullback(dy)
            return d_both[:, : x.shape[1]], time_pullback(d_both[:, x.shape[1] :])

        return y, pullback
