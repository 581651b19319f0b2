"""What hierarchical VAEs share: several latents between noise and data, counted from the top.

    z_1  →  z_2  →  ...  →  z_L  →  x

z_1 is drawn first and far from the data, z_L is the last before it.
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
        decoder: net to h.
        likelihood: p(x | h), one of maths/likelihoods.py.

    Raises:
        ValueError: there is no latent.
    """

    def __init__(self, latents: Sequence[Shape], decoder, likelihood):
        if not latents:
            raise ValueError("a hierarchy needs at least one latent; name the shape of each")
        self.latents = tuple(tuple(shape) for shape in latents)
        self.decoder, self.likelihood = decoder, likelihood

    @abstractmethod
    def loss(self, x, eps: Sequence, stream=None):
        """-ELBO(x) in its L + 1 terms, at one z per example.

        Args:
            x: (N, ...), data.
            eps: for each level (N, *its shape) ~ N(0, I).
            stream: noise for nets that drop out; None evaluates without.

        Returns:
            terms: (reconstruction, kl_1, ..., kl_L), each (N,) nats; the mean of their sum is
                -ELBO.
            pullback: (d_reconstruction, d_kl_1, ..., d_kl_L), each (N,) -> None; adds the
                parameters' gradients.

        Raises:
            ValueError: eps does not fit.

        Source: ELBO-6
        """

    @abstractmethod
    def look(self, x, eps: Sequence):
        """The terms of `loss` for evaluation: values only, at one z ~ q(z | x).

        Args:
            x: (N, ...).
            eps: for each level (N, *its shape) ~ N(0, I).

        Returns:
            nll: (N,), -log p(x | z), nats.
            log_ratios: L arrays (N,), log p(z_l | ...)/q(z_l | ...), nats. Their sum less nll is
                the log of an importance weight.
            kls: L arrays (N, *shape of z_l), what each dimension adds to kl_1, ..., kl_L, nats.

        Raises:
            ValueError: eps does not fit.

        Source: ELBO-6
        """

    @abstractmethod
    def sample(self, eps: Sequence):
        """E[x | z] at z from the prior: eps for each level (N, *its shape) -> (N, ...).

        A temperature below 1 is a smaller eps, and each level may have its own.

        Raises:
            ValueError: eps does not fit.
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
        nll, log_ratios, _ = self.look(x, eps)
        return sum(log_ratios) - nll

    def _decode(self, state):
        """E[x | h] of what stands before the decoder.

        Source: HVAE-4
        """
        return self.likelihood.mean(self.decoder(state)[0])

    def _nll(self, x, state, stream=None):
        """-log p(x | state): (N,) nats, and its pullback: d (N,) -> d_state.

        Source: HVAE-3, HVAE-6
        """
        h, decoder_pullback = self.run("decoder", self.decoder, state, stream=stream)
        nll, nll_pullback = self.likelihood.nll(x, h)
        return example_sum(nll), lambda d: decoder_pullback(nll_pullback(per_example(d, nll)))

    def _require_noise(self, eps: Sequence, n: int | None = None) -> int:
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

    def _kept(self, keep: int | None) -> int:
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
