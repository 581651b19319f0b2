"""The Markovian hierarchical VAE: a chain from the data up, and a chain from the top down.

    p(x, z) = p(z_1) Π_{l≥2} p(z_l | z_{l-1}) p(x | z_L)
    q(z | x) = q(z_L | x) Π_{l<L} q(z_l | z_{l+1})

Its latents are counted from the top here, as everywhere in the package. The sources count from the
data: their z_T is z_1 here, their z_1 is z_L. With L = 1 it is the VAE; with latents of the data's
shape and fixed linear-Gaussian steps up it is a diffusion model (vdm_as_hvae.py).
"""

from collections.abc import Sequence

from scratchgen.core.arrays import example_sum, halves, namespace, per_example
from scratchgen.core.numerics import normal_log_pdf
from scratchgen.maths.distributions import normal_nll, reparameterise, standard_normal_kl
from scratchgen.models.hierarchy import Hierarchy, Shape


class MarkovHvae(Hierarchy):
    """A chain of L latents.

    Args:
        encoders: L nets upwards: x -> [mean, logvar] of z_L, every other z_{l+1} -> those of z_l.
        priors: L - 1 nets downwards: z_{l-1} -> [mean, logvar] of z_l, from l = 2 to L.
        latents: the shape of one example of each z_l, from the top.
        decoder: net z_L -> h.
        likelihood: p(x | h), one of maths/likelihoods.py.

    Raises:
        ValueError: there are not L encoders and L - 1 priors.

    Source: HVAE-1, HVAE-2
    """

    def __init__(
        self,
        encoders: Sequence,
        priors: Sequence,
        latents: Sequence[Shape],
        decoder,
        likelihood,
    ):
        super().__init__(latents, decoder, likelihood)
        if len(encoders) != len(latents) or len(priors) != len(latents) - 1:
            raise ValueError(
                f"{len(latents)} latents need as many encoders and one prior fewer, got "
                f"{len(encoders)} encoders and {len(priors)} priors"
            )
        self.encoders, self.priors = tuple(encoders), tuple(priors)

    def loss(self, x, eps: Sequence, stream=None):
        """-ELBO(x) in its L + 1 terms, at one z per example.

            reconstruction = -log p(x | z_L),   z ~ q(z | x)
            kl_1           = KL(q(z_1 | z_2) ‖ p(z_1)), in closed form
            kl_l           = log q(z_l | z_{l+1}) - log p(z_l | z_{l-1}), l ≥ 2

        Only their sum is a divergence in the mean. A single kl_l below the top need not be positive
        even there, for given both its neighbours z_l no longer follows q(z_l | z_{l+1}).

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

        Source: HVAE-3, ELBO-6
        """
        laws, z, climbs = self._climb(x, eps, stream)
        kl, kl_pullback = standard_normal_kl(*laws[0])
        kls, steps = [example_sum(kl)], []
        for i, prior in enumerate(self.priors, start=1):
            law, law_pullback = self.run(f"priors.{i - 1}", prior, z[i - 1], stream=stream)
            nll, nll_pullback = normal_nll(z[i], *halves(law))
            kls.append(example_sum(nll + normal_log_pdf(eps[i]) - 0.5 * laws[i][1]))
            steps.append((nll_pullback, law_pullback))
        reconstruction, decoder_pullback = self.nll(x, z[-1], stream)

        def pullback(d_reconstruction, *d_kls):
            down = [per_example(d, e) for d, e in zip(d_kls, eps, strict=True)]
            dz = [0.0] * (len(z) - 1) + [decoder_pullback(d_reconstruction)]
            d_laws = [kl_pullback(down[0])]
            for i, (nll_pullback, law_pullback) in enumerate(steps, start=1):
                d_below, d_mean, d_logvar = nll_pullback(down[i])
                dz[i] = dz[i] + d_below
                dz[i - 1] = dz[i - 1] + law_pullback(_joined(d_mean, d_logvar))
                d_laws.append((0.0, -0.5 * down[i]))
            for i, climb_pullback in enumerate(climbs):
                d_below = climb_pullback(dz[i], *d_laws[i])
                if i + 1 < len(z):
                    dz[i + 1] = dz[i + 1] + d_below

        return (reconstruction, *kls), pullback

    def weigh(self, x, eps: Sequence):
        """-log p(x | z_L), and log p(z_l | z_{l-1})/q(z_l | z_{l+1}) of every level, at one z ~ q.

        Args:
            x: (N, ...).
            eps: for each level (N, *its shape) ~ N(0, I).

        Returns:
            nll: (N,), nats.
            log_ratios: L arrays (N,), nats. Their sum less nll is the log of an importance weight.

        Raises:
            ValueError: eps does not fit.

        Source: HVAE-3, ELBO-6
        """
        laws, z, _ = self._climb(x, eps, None)
        log_p = [normal_log_pdf(z[0])]
        for i, prior in enumerate(self.priors, start=1):
            log_p.append(-normal_nll(z[i], *halves(prior(z[i - 1])[0]))[0])
        log_ratios = [
            example_sum(p - normal_log_pdf(e) + 0.5 * logvar)
            for p, e, (_, logvar) in zip(log_p, eps, laws, strict=True)
        ]
        return self.nll(x, z[-1])[0], log_ratios

    def kl_per_dimension(self, x, eps: Sequence):
        """What each dimension adds to the kl_l of `loss`; below the top it may be negative.

        Args:
            x: (N, ...).
            eps: for each level (N, *its shape) ~ N(0, I).

        Returns:
            L arrays (N, *shape of z_l), nats.

        Raises:
            ValueError: eps does not fit.

        Source: HVAE-3, VAE-10
        """
        laws, z, _ = self._climb(x, eps, None)
        found = [standard_normal_kl(*laws[0])[0]]
        for i, prior in enumerate(self.priors, start=1):
            nll, _ = normal_nll(z[i], *halves(prior(z[i - 1])[0]))
            found.append(nll + normal_log_pdf(eps[i]) - 0.5 * laws[i][1])
        return found

    def sample(self, eps: Sequence):
        """E[x | z_L] at z from the prior: eps for each level (N, *its shape) -> (N, ...).

        A temperature below 1 is a smaller eps, and each level may have its own.

        Raises:
            ValueError: eps does not fit.

        Source: HVAE-1
        """
        self.require_noise(eps)
        return self.decode(self._descend(eps[0], eps[1:]))

    def reconstruct(self, x, eps: Sequence, keep: int | None = None):
        """E[x' | z_L] with the first `keep` latents from q(z | x), the others from the prior.

        Args:
            x: (N, ...).
            eps: for each level (N, *its shape); zeros take every latent at its mean.
            keep: 0..L; all unless given. With 0 the result does not depend on x.

        Returns:
            (N, ...).

        Raises:
            ValueError: eps does not fit, or there are not so many latents.

        Source: HVAE-1, HVAE-2
        """
        self.require_noise(eps, x.shape[0])
        keep = self.kept(keep)
        if keep == 0:
            return self.sample(eps)
        _, z, _ = self._climb(x, eps, None)
        return self.decode(self._descend(z[keep - 1], eps[keep:]))

    def _descend(self, z, eps: Sequence):
        """From some z_l down to z_L, with as many steps as there is noise.

        Source: HVAE-1
        """
        for prior, e in zip(self.priors[len(self.priors) - len(eps) :], eps, strict=True):
            mean, logvar = halves(prior(z)[0])
            z, _ = reparameterise(mean, logvar, e)
        return z

    def _climb(self, x, eps: Sequence, stream):
        """Up the encoders: of every level, from the top, (mean, logvar) of q, z and a pullback.

        The pullback: (dz, d_mean, d_logvar) -> the cotangent of what stands below, where the last
        two are those of q's own parameters.

        Source: HVAE-2
        """
        self.require_noise(eps, x.shape[0])
        z, found = x, []
        for i, e in enumerate(reversed(eps)):
            (law, z), pullback = self._step_up(i, z, e, stream)
            found.append((law, z, pullback))
        return zip(*reversed(found), strict=True)

    def _step_up(self, i: int, below, eps, stream):
        """z from q(z | below) by the i-th encoder.

        Source: HVAE-2
        """
        law, encoder_pullback = self.run(f"encoders.{i}", self.encoders[i], below, stream=stream)
        mean, logvar = halves(law)
        z, z_pullback = reparameterise(mean, logvar, eps)

        def pullback(dz, d_mean, d_logvar):
            of_mean, of_logvar = z_pullback(dz)
            return encoder_pullback(_joined(of_mean + d_mean, of_logvar + d_logvar))

        return ((mean, logvar), z), pullback


def _joined(d_mean, d_logvar):
    """The cotangent of both halves of a net's output."""
    return namespace(d_mean).concat([d_mean, d_logvar], axis=-1)
