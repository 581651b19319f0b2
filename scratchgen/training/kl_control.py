"""What the KL terms of a hierarchy of latents weigh while it learns, and which gradients to refuse.

A hierarchical VAE's loss gives (reconstruction, kl_1, ..., kl_L), the top level first. Trained as
they stand, levels collapse to their priors before the decoder has learned to use them. Against that
the cotangent of each level's KL is multiplied by a number. The terms themselves stay as they are,
so their sum remains the negative ELBO.
"""

from collections.abc import Sequence
from math import isfinite

from scratchgen.core.module import FlatParameters
from scratchgen.training.optim import global_norm

LEAST_RATE = 0.01  # nats: keeps the factor of a level without KL above 0


def warm_up(step: int, length: int, floor: float = 1e-4) -> float:
    """β = clip(step/length, floor, 1).

    Args:
        step: 0, 1, 2, ...
        length: of the rise, in steps; 0 means that β is 1 from the start.
        floor: the first β.

    Returns:
        β, in [floor, 1].

    Source: [Sønderby 2016], [Vahdat 2020]
    """
    return min(1.0, max(floor, step / length)) if length else 1.0


def balance(rates: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """g_l ∝ k_l / α_l of mean 1, where k_l = |rate_l| + 0.01 and α_l = size_l / min size.

    A level that holds little for its size is penalised less, so that it learns to hold more. NVAE's
    paper multiplies by the size where its code divides; the author calls the former a misprint.

    Args:
        rates: (L,) batch means of the KL terms, nats.
        sizes: (L,) numbers of latent dimensions.

    Returns:
        (L,) factors; no gradient flows through them.

    Source: [Vahdat 2020]
    """
    pairs = zip(rates, sizes, strict=True)
    shares = [(abs(rate) + LEAST_RATE) / size for rate, size in pairs]
    mean = sum(shares) / len(shares)  # by which the smallest size cancels
    return [share / mean for share in shares]


def free_bits(rates: Sequence[float], least: float) -> list[float]:
    """∂/∂rate_l of Σ_l max(least, rate_l): 1 where rate_l > least, else 0.

    Args:
        rates: (L,) batch means of the KL terms, nats.
        least: λ, nats that a level may hold without paying.

    Returns:
        (L,) factors, 0 or 1.

    Source: [Kingma 2016]
    """
    return [1.0 if rate > least else 0.0 for rate in rates]


class KlControl:
    """The factor of each level's KL cotangent: β · g_l · [rate_l > least].

    The rates it decides on are moving averages of the batch means of past steps,

        rate_l ← d rate_l + (1-d) mean_l,   d = min(decay, n/(n+1)) at observation n = 0, 1, ...

    and not the present batch's means: threads may share a batch, where each runs the pullback of
    its shard before the others' terms are known, and all must use the same factors. Before the
    first observation every level weighs β.

    Balancing and free bits are for ladders, each of whose terms is a divergence in the mean. A
    chain's terms below the top may be negative: weighted one by one, their sum has no lower bound.

    Args:
        names: (L,) the KL terms, the top level first, such as ("kl_1", "kl_2").
        sizes: (L,) numbers of latent dimensions.
        length: steps of warm-up; 0 means none.
        least: free bits per level, nats; 0 means none.
        balanced: whether levels are balanced, which is done while β < 1 only.
        decay: of the moving averages, in [0, 1).

    Raises:
        ValueError: names and sizes do not belong together, or a number is outside its range.

    Source: [Vahdat 2020], [Kingma 2016]
    """

    def __init__(
        self,
        names: Sequence[str],
        sizes: Sequence[int],
        length: int = 0,
        least: float = 0.0,
        balanced: bool = False,
        decay: float = 0.9,
    ):
        if not 0 < len(set(names)) == len(names) == len(sizes) or min(sizes) <= 0:
            raise ValueError(f"need different names, each with a size > 0, got {names} and {sizes}")
        if not (length >= 0 and 0.0 <= least < float("inf")):
            raise ValueError(f"need length ≥ 0 and a finite least ≥ 0, got {length} and {least}")
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"the decay must lie in [0, 1), got {decay}")
        self.sizes, self.length, self.least = tuple(sizes), length, least
        self.balanced, self.decay = balanced, decay
        self.rates, self.observed = dict.fromkeys(names, 0.0), 0

    def weights(self, step: int) -> list[float]:
        """(L,) the factors of a step 0, 1, 2, ...; the same for all who share its batch."""
        beta, rates = warm_up(step, self.length), list(self.rates.values())
        factors = [beta] * len(rates)
        if self.observed and self.balanced and beta < 1.0:
            factors = [beta * share for share in balance(rates, self.sizes)]
        if self.observed and self.least > 0.0:
            free = free_bits(rates, self.least)
            factors = [factor * bit for factor, bit in zip(factors, free, strict=True)]
        return factors

    def observe(self, means: dict[str, float]) -> None:
        """Take in the batch means of a step that is done; terms that are no KL are passed over."""
        decay = min(self.decay, self.observed / (self.observed + 1.0))
        self.observed += 1
        for name, rate in self.rates.items():
            self.rates[name] = decay * rate + (1.0 - decay) * means[name]

    def state(self) -> dict:
        """What a checkpoint must hold: the averages and how many steps are in them."""
        rates = {f"rate/{name}": rate for name, rate in self.rates.items()}
        return {"observed": self.observed, **rates}

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned."""
        self.observed = int(state["observed"])
        self.rates = {name: float(state[f"rate/{name}"]) for name in self.rates}


class SpikeGuard:
    """Refuses gradients that are not finite or longer than a limit; such steps are skipped.

    Args:
        limit: the largest Euclidean norm of a gradient to learn from; inf is allowed.

    Raises:
        ValueError: the limit is not positive.

    Source: [Child 2021]
    """

    def __init__(self, limit: float):
        if not limit > 0.0:
            raise ValueError(f"the norm limit must be positive, got {limit}")
        self.limit, self.skipped = limit, 0

    def admits(self, params: FlatParameters) -> bool:
        """Whether to learn from `params.grad`; a refusal is counted in `skipped`."""
        norm = global_norm(params)
        admitted = isfinite(norm) and norm <= self.limit
        self.skipped += not admitted
        return admitted

    def state(self) -> dict:
        """What a checkpoint must hold: the number of refusals."""
        return {"skipped": self.skipped}

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned."""
        self.skipped = int(state["skipped"])
