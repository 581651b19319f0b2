"""Bounds on log p(x), as formulas on arrays of nats, and their conversion to bits."""

from math import log

from scratchgen.core.numerics import logsumexp


def elbo(*terms):
    """ELBO = -(reconstruction + KL₁ + ... + KL_L), per example.

    Args:
        terms: (N,) arrays of nats, as a model's loss returns them.

    Returns:
        (N,), nats; at most log p(x) in expectation over the noise of the terms.

    Source: ELBO-5, ELBO-2
    """
    return -sum(terms)


def importance_weighted_bound(log_weights):
    """log (1/S) Σ_s w_s with w_s = p(x, z_s)/q(z_s | x): at least the ELBO, at most log p(x).

    Both hold in expectation; the bound rises to log p(x) as S grows.

    Args:
        log_weights: (S, N), nats.

    Returns:
        (N,), nats.

    Source: ELBO-2, [Burda 2016]
    """
    return logsumexp(log_weights, axis=0) - log(log_weights.shape[0])


def bits_per_dim(nats, dims: int):
    """nats / (D ln 2): a cost per example in nats as bits per data dimension.

    For a likelihood on discrete levels the result is a code length. A density must first be turned
    into one: multiply it by the width of a level, which adds -log₂ width per dimension.

    Args:
        nats: (...), the cost of one example, in nats.
        dims: D, the number of data dimensions of one example.

    Returns:
        (...), bits per dimension.

    Raises:
        ValueError: dims is below 1.

    Source: MET-3
    """
    if dims < 1:
        raise ValueError(f"dims must be at least 1, got {dims}")
    return nats / (dims * log(2.0))
