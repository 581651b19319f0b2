"""What hierarchical VAEs share: several latents between noise and data, counted from the top.

    z_1  →  z_2  →  ...  →  z_L  →  x

z_1 is drawn first and far from the data, z_L is the last before it. So the first k of them are
what a coder would send first.
"""

from abc import abstractmethod
from collections.abc import Sequence

from scratchgen.core.arrays import example_sum, per_example
from scratchgen.core.module import Module

Shape = tuple[int, ...]


class Hierarchy(Module):
    """A VAE with L latents.

    Args:
        latents: the shape of one example of each z_l, from the top.
        decoder: net from what `LadderHvae` or `MarkovHvae` says to h.
        likelihood: p(x | h), one of maths/likelihoods.py.

    Raises:
        ValueError: there is no latent.
    """

    replaces = False  # whether `weigh` takes a level whose posterior is replaced by its prior

    def __init__(self, latents: Sequence[Shape], decoder, likelihood):
        if not latents:
            raise ValueError("a hierarchy needs at least one latent; name the shape of each")
        self.latents = tuple(tuple(shape) for shape in latents)
        self.decoder, self.likelihood = decoder, likelihood

    @abstractmethod
    def loss(self, x, eps: Sequence, stream=None):
        """-ELBO(x) as (reconstruction, kl_1, ..., kl_L), each (N,) nats, and its pullback."""

    @abstractmethod
    def weigh(self, x, eps: Sequence):
        """-log p(x | z), and log p(z_l | z_<l)/q(z_l | ...) of every level, at one z ~ q(z | x).

        Args:
            x: (N, ...).
            eps: for each level (N, *its shape) ~ N(0, I).

        Returns:
            nll: (N,), nats.
            log_ratios: L arrays (N,), nats. Their sum less nll is the log of an importance weight.

        Source: ELBO-6
        """

    @abstractmethod
    def kl_per_dimension(self, x, eps: Sequence):
        """What each dimension adds to kl_1, ..., kl_L at one z ~ q(z | x).

        Args:
            x: (N, ...).
            eps: for each level (N, *its shape) ~ N(0, I).

        Returns:
            L arrays (N, *shape of z_l), nats.

        Source: ELBO-6, VAE-10
        """

    @abstractmethod
    def sample(self, eps: Sequence):
        """E[x | z] at z from the prior: eps for each level (N, *its shape) -> (N, ...).

        A temperature below 1 is a smaller eps, and each level may have its own.
        """

    @abstractmethod
    def reconstruct(self, x, eps: Sequence, keep: int | None = None):
        """E[x' | z] with the first `keep` latents from q(z | x), the others from the prior.

        Args:
            x: (N, ...).
            eps: for each level (N, *its shape); zeros take every latent at its mean.
            keep: 0..L; all unless given. With 0 the result does not depend on x.

        Returns:
            (N, ...).

        Raises:
            ValueError: eps does not fit, or there are not so many latents.

        Source: HVAE-4
        """

    def log_weights(self, x, eps: Sequence):
        """log [p(x, z)/q(z | x)] at one z ~ q(z | x) for each row.

        Their mean estimates the ELBO, the log-mean-exp of several a tighter bound.

        Args:
            x: (N, ...).
            eps: for each level (N, *its shape) ~ N(0, I).

        Returns:
            (N,), nats.

        Source: ELBO-2, ELBO-4, ELBO-6
        """
        nll, log_ratios = self.weigh(x, eps)
        return sum(log_ratios) - nll

    def decode(self, state):
        """E[x | h] of what stands before the decoder.

        Source: HVAE-4
        """
        return self.likelihood.mean(self.decoder(state)[0])

    def nll(self, x, state, stream=None):
        """-log p(x | state): (N,) nats, and its pullback: d (N,) -> d_state.

        Source: HVAE-3, HVAE-6
        """
        h, decoder_pullback = self.run("decoder", self.decoder, state, stream=stream)
        nll, nll_pullback = self.likelihood.nll(x, h)
        return example_sum(nll), lambda d: decoder_pullback(nll_pullback(per_example(d, nll)))

    def require_noise(self, eps: Sequence, n: int | None = None) -> int:
        """The number of examples, once the noise is one array for each level.

        Args:
            eps: for each level (N, *its shape).
            n: N; unless given, that of the first level.

        Raises:
            ValueError: there are more or fewer, or one has another shape.
        """
        if n is None:
            n = eps[0].shape[0] if len(eps) else 0
        want = [(n, *shape) for shape in self.latents]
        got = [tuple(e.shape) for e in eps]
        if got != want:
            raise ValueError(f"eps must have one array for each level, of shapes {want}; got {got}")
        return n

    def kept(self, keep: int | None) -> int:
        """How many latents a `keep` of `reconstruct` stands for.

        Raises:
            ValueError: there are not so many.
        """
        count = len(self.latents)
        if keep is None:
            return count
        if not 0 <= keep <= count:
            raise ValueError(f"of {count} latents 0 to {count} can be kept, not {keep}")
        return keep
