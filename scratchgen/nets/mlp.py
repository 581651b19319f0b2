"""Fully connected networks."""

from collections.abc import Sequence

from scratchgen.layers.activations import silu
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.layers.dropout import Dropout


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
