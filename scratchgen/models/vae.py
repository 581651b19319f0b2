"""The variational autoencoder: -ELBO, forward and backward, and what one does with a trained one.

z ~ p(z) = N(0, I),   x ~ p(x | z) = likelihood(decoder(z)),   q(z | x) = N(μ(x), e^(logvar(x)))

-ELBO(x) = E_q[-log p(x | z)] + KL(q(z | x) ‖ p(z))
"""

from scratchgen.core.arrays import example_sum, halves, namespace, per_example
from scratchgen.core.module import Module
from scratchgen.core.numerics import normal_log_pdf
from scratchgen.maths.distributions import reparameterise, standard_normal_kl


class Vae(Module):
    """An encoder x -> [mean, logvar], a decoder z -> h, and a likelihood p(x | h).

    Args:
        encoder: net with output (N, 2K).
        decoder: net from (N, K) to (N, ..., likelihood.width · C).
        likelihood: one of maths/likelihoods.py.
    """

    def __init__(self, encoder, decoder, likelihood):
        self.encoder, self.decoder, self.likelihood = encoder, decoder, likelihood

    def loss(self, x, eps, stream=None):
        """-ELBO(x) in its two terms, with L samples of z per example.

            reconstruction = (1/L) Σ_l -log p(x | z_l),   z_l = mean + e^(logvar/2) ⊙ eps_l
            kl             = KL(N(mean, e^logvar) ‖ N(0, I)),   in closed form

        Args:
            x: (N, ...), data.
            eps: (L, N, K) ~ N(0, I).
            stream: noise for nets that drop out; None evaluates without.

        Returns:
            terms: (reconstruction, kl), each (N,) nats; their sum is -ELBO.
            pullback: (d_reconstruction, d_kl), each (N,) -> None; adds the parameters' gradients.

        Raises:
            ValueError: eps has another shape.

        Source: VAE-6, VAE-8
        """
        posterior, encoder_pullback = self.run("encoder", self.encoder, x, stream=stream)
        mean, logvar = halves(posterior)
        samples = _require_noise(eps, mean)
        z, z_pullback = reparameterise(mean, logvar, eps)
        nll, decoder_pullback = self._nll(x, z, stream)
        kl, kl_pullback = standard_normal_kl(mean, logvar)

        def pullback(d_reconstruction, d_kl):
            xp = namespace(d_kl)
            dz = decoder_pullback(xp.concat([d_reconstruction] * samples) * (1.0 / samples))
            d_mean, d_logvar = z_pullback(xp.reshape(dz, z.shape))
            kl_mean, kl_logvar = kl_pullback(per_example(d_kl, kl))
            encoder_pullback(xp.concat([d_mean + kl_mean, d_logvar + kl_logvar], axis=1))

        reconstruction = namespace(nll).mean(namespace(nll).reshape(nll, (samples, -1)), axis=0)
        return (reconstruction, example_sum(kl)), pullback

    def log_weights(self, x, eps):
        """log [p(x | z) p(z) / q(z | x)] at z = mean + e^(logvar/2) ⊙ eps.

        Args:
            x: (N, ...).
            eps: (S, N, K) ~ N(0, I).

        Returns:
            (S, N), nats. Their mean over S estimates the ELBO, their log-mean-exp a tighter bound.

        Raises:
            ValueError: eps has another shape.

        Source: ELBO-2, ELBO-4, VAE-3
        """
        nll, log_ratio = self.weigh(x, eps)
        return log_ratio - nll

    def weigh(self, x, eps):
        """-log p(x | z) and log p(z)/q(z | x) at z = mean + e^(logvar/2) ⊙ eps.

        Args:
            x: (N, ...).
            eps: (S, N, K) ~ N(0, I).

        Returns:
            nll: (S, N), nats; its mean over S is the ELBO's reconstruction term.
            log_ratio: (S, N), nats; log_ratio - nll is the log of the importance weight.

        Raises:
            ValueError: eps has another shape.

        Source: ELBO-2, ELBO-4, VAE-3
        """
        mean, logvar = self.encode(x)
        _require_noise(eps, mean)
        z, _ = reparameterise(mean, logvar, eps)
        nll, _ = self._nll(x, z, None)
        log_ratio = normal_log_pdf(z) - normal_log_pdf(eps) + 0.5 * logvar
        xp = namespace(z)
        return xp.reshape(nll, z.shape[:2]), xp.sum(log_ratio, axis=-1)

    def encode(self, x):
        """q(z | x): x (N, ...) -> mean (N, K), logvar (N, K).

        Source: VAE-2
        """
        return halves(self.encoder(x)[0])

    def decode(self, z):
        """E[x | z]: z (N, K) -> (N, ...).

        Source: VAE-1
        """
        return self.likelihood.mean(self.decoder(z)[0])

    def reconstruct(self, x):
        """E[x' | z = mean of q(z | x)]: x (N, ...) -> (N, ...).

        Source: VAE-1, VAE-2
        """
        return self.decode(self.encode(x)[0])

    def sample(self, eps, temperature: float = 1.0):
        """E[x | z = temperature · eps]: generation without the encoder.

        Args:
            eps: (N, K) ~ N(0, I).
            temperature: scales the latent only; below 1 draws z closer to 0.

        Returns:
            (N, ...), the decoder's mean. For a draw of x itself pass `decoder(z)` on to
            `likelihood.sample`.

        Source: VAE-9
        """
        return self.decode(temperature * eps)

    def kl_per_dimension(self, x):
        """KL(q(z_k | x) ‖ p(z_k)): x (N, ...) -> (N, K) nats.

        Source: VAE-5, VAE-10
        """
        return standard_normal_kl(*self.encode(x))[0]

    def _nll(self, x, z, stream):
        """-log p(x | z) for z (L, N, K): (L·N,) nats, and its pullback to dz (L·N, K).

        Source: VAE-1
        """
        xp, samples = namespace(z), z.shape[0]
        h, decoder_pullback = self._decode(z, stream)
        repeated = x if samples == 1 else xp.concat([x] * samples)
        nll, nll_pullback = self.likelihood.nll(repeated, h)
        return example_sum(nll), lambda d: decoder_pullback(nll_pullback(per_example(d, nll)))

    def _decode(self, z, stream):
        """The decoder on z (L, N, K), one sample after another; its pullback to dz (L·N, K).

        Where it drops out, each sample has its own stream, so that a row's noise depends on the
        example and the sample, not on how many rows there are.
        """
        xp, n = namespace(z), z.shape[1]
        if stream is None or not getattr(self.decoder, "draws", False):
            return self.run("decoder", self.decoder, xp.reshape(z, (-1, z.shape[2])))
        streams = [stream.at("sample", i) for i in range(z.shape[0])]
        runs = [
            self.run("decoder", self.decoder, z[i, ...], stream=s) for i, s in enumerate(streams)
        ]

        def pullback(dh):
            return xp.concat(
                [pull(dh[i * n : (i + 1) * n, ...]) for i, (_, pull) in enumerate(runs)]
            )

        return xp.concat([h for h, _ in runs]), pullback


def active_units(kl_per_dimension, threshold: float = 0.01) -> int:
    """The number of latent dimensions whose mean KL exceeds the threshold (nats).

    Where it is 0 the posterior has collapsed: q(z | x) = p(z), the rate is 0 and x does not depend
    on z.

    Args:
        kl_per_dimension: (N, K), as `Vae.kl_per_dimension` returns it; finite, for what is no
            number does not count either.
        threshold: nats.

    Source: VAE-10
    """
    xp = namespace(kl_per_dimension)
    active = xp.mean(kl_per_dimension, axis=0) > threshold
    return int(xp.sum(xp.astype(active, xp.int64)))


def _require_noise(eps, mean) -> int:
    """The number of samples L, once the noise is (L, N, K) for a mean (N, K).

    Raises:
        ValueError: it has another shape.
    """
    n, k = mean.shape
    if eps.shape[1:] != (n, k) or eps.shape[0] < 1:
        raise ValueError(f"eps must be (L, {n}, {k}) with L ≥ 1, got {eps.shape}")
    return eps.shape[0]
