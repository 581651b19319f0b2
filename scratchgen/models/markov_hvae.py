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

        Only the sum of the kl_l is a divergence in the mean. A single one need not be positive: in
        it z_l is drawn given both its neighbours.

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
        climbed = self._climb(x, eps, stream)
        z = [step[2] for step in climbed]
        kl, kl_pullback = standard_normal_kl(*climbed[0][:2])
        kls, steps = [example_sum(kl)], []
        for i, prior in enumerate(self.priors, start=1):
            law, law_pullback = self.run(f"priors.{i - 1}", prior, z[i - 1], stream=stream)
            nll, nll_pullback = normal_nll(z[i], *halves(law))
            kls.append(example_sum(nll + normal_log_pdf(eps[i]) - 0.5 * climbed[i][1]))
            steps.append((nll_pullback, law_pullback))
        reconstruction, decoder_pullback = self.nll(x, z[-1], stream)

        def pullback(d_reconstruction, *d_kls):
            xp = namespace(d_reconstruction)
            down = [per_example(d, e) for d, e in zip(d_kls, eps, strict=True)]
            dz = [0.0] * (len(z) - 1) + [decoder_pullback(d_reconstruction)]
            for i, (nll_pullback, law_pullback) in enumerate(steps, start=1):
                d_below, d_mean, d_logvar = nll_pullback(down[i])
                dz[i] = dz[i] + d_below
                dz[i - 1] = dz[i - 1] + law_pullback(xp.concat([d_mean, d_logvar], axis=-1))
            for i, (_, _, _, z_pullback, encoder_pullback) in enumerate(climbed):
                d_mean, d_logvar = z_pullback(dz[i])
                if i == 0:
                    of_mean, of_logvar = kl_pullback(down[0])
                    d_mean, d_logvar = d_mean + of_mean, d_logvar + of_logvar
                else:
                    d_logvar = d_logvar - 0.5 * down[i]
                d_below = encoder_pullback(xp.concat([d_mean, d_logvar], axis=-1))
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

        Source: HVAE-3, ELBO-6
        """
        climbed = self._climb(x, eps, None)
        z = [step[2] for step in climbed]
        log_p = [normal_log_pdf(z[0])]
        for i, prior in enumerate(self.priors, start=1):
            log_p.append(-normal_nll(z[i], *halves(prior(z[i - 1])[0]))[0])
        log_ratios = [
            example_sum(p - normal_log_pdf(e) + 0.5 * step[1])
            for p, e, step in zip(log_p, eps, climbed, strict=True)
        ]
        return self.nll(x, z[-1])[0], log_ratios

    def sample(self, eps: Sequence):
        """E[x | z_L] at z from the prior: eps for each level (N, *its shape) -> (N, ...).

        A temperature below 1 is a smaller eps, and each level may have its own.

        Source: HVAE-1
        """
        self.require_noise(eps, eps[0].shape[0])
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
        keep = self.kept(keep)
        if keep == 0:
            self.require_noise(eps, x.shape[0])
            return self.sample(eps)
        z = self._climb(x, eps, None)[keep - 1][2]
        return self.decode(self._descend(z, eps[keep:]))

    def _descend(self, z, eps: Sequence):
        """From some z_l down to z_L, with as many steps as there is noise.

        Source: HVAE-1
        """
        for prior, e in zip(self.priors[len(self.priors) - len(eps) :], eps, strict=True):
            z, _ = reparameterise(*halves(prior(z)[0]), e)
        return z

    def _climb(self, x, eps: Sequence, stream):
        """For every level from the top: mean, logvar and z of its q, and the pullbacks of both.

        Source: HVAE-2
        """
        self.require_noise(eps, x.shape[0])
        z, found = x, []
        for i, encoder in enumerate(self.encoders):
            law, encoder_pullback = self.run(f"encoders.{i}", encoder, z, stream=stream, key=i)
            mean, logvar = halves(law)
            z, z_pullback = reparameterise(mean, logvar, eps[len(eps) - 1 - i])
            found.append((mean, logvar, z, z_pullback, encoder_pullback))
        return found[::-1]
