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
        """-ELBO(x) in its L + 1 terms, at one z per example; see `Hierarchy.loss`.

            reconstruction = -log p(x | z_L),   z ~ q(z | x)
            kl_1           = KL(q(z_1 | z_2) ‖ p(z_1)), in closed form
            kl_l           = log q(z_l | z_{l+1}) - log p(z_l | z_{l-1}), l ≥ 2

        With z_{L+1} = x, kl_1 + ... + kl_k is in the mean the divergence of q(z_1..k | z_{k+1})
        from p(z_1..k), which is no less than the rate of the first k. A single kl_l below the top
        may be negative, for given both its neighbours z_l no longer follows q(z_l | z_{l+1}).

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
        reconstruction, decoder_pullback = self._nll(x, z[-1], stream)

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

    def look(self, x, eps: Sequence):
        """The terms of `loss` for evaluation, values only; see `Hierarchy.look`.

        Source: HVAE-3, ELBO-6, VAE-10
        """
        laws, z, _ = self._climb(x, eps, None)
        kls = [standard_normal_kl(*laws[0])[0]]
        for i, prior in enumerate(self.priors, start=1):
            nll, _ = normal_nll(z[i], *halves(prior(z[i - 1])[0]))
            kls.append(nll + normal_log_pdf(eps[i]) - 0.5 * laws[i][1])
        top = normal_log_pdf(z[0]) - normal_log_pdf(eps[0]) + 0.5 * laws[0][1]
        log_ratios = [example_sum(top), *(-example_sum(kl) for kl in kls[1:])]
        return self._nll(x, z[-1])[0], log_ratios, kls

    def encode(self, x, eps: Sequence):
        """z_1, ..., z_L ~ q(z | x), from the top.

        Args:
            x: (N, ...).
            eps: for each level (N, *its shape) ~ N(0, I); zeros take every latent at its mean.

        Returns:
            L arrays (N, *shape of z_l).

        Raises:
            ValueError: eps does not fit.

        Source: HVAE-2
        """
        _, z, _ = self._climb(x, eps, None)
        return list(z)

    def sample(self, eps: Sequence):
        """E[x | z_L] at z from the prior; see `Hierarchy.sample`.

        Source: HVAE-1
        """
        self._require_noise(eps)
        return self._decode(self._descend(eps[0], eps[1:]))

    def reconstruct(self, x, eps: Sequence, keep: int | None = None):
        """E[x' | z_L] with the first `keep` latents from q(z | x); see `Hierarchy.reconstruct`.

        Source: HVAE-1, HVAE-2
        """
        self._require_noise(eps, x.shape[0])
        keep = self._kept(keep)
        if keep == 0:
            return self.sample(eps)
        return self._decode(self._descend(self.encode(x, eps)[keep - 1], eps[keep:]))

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
        self._require_noise(eps, x.shape[0])
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
