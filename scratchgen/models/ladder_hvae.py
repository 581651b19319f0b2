"""The hierarchical VAE with a bidirectional encoder: up over the data, then down beside the
generator.

    p(x, z) = p(z_1) Π_{l≥2} p(z_l | z_<l) p(x | z)
    q(z | x) = q(z_1 | x) Π_{l≥2} q(z_l | x, z_<l)

    h_L, ..., h_1 = features of x, from the data up;   s_0 is learned, or empty
    p(z_l | z_<l) = N(μ_l(s_{l-1}), e^(λ_l(s_{l-1}))),   z_1 ~ N(0, I)
    q(z_l | x, z_<l) = N(μ_l + Δμ_l, e^(λ_l + Δλ_l)),    Δ = posterior_l(s_{l-1}, h_l)
    s_l = merge_l(s_{l-1}, z_l),   x ~ likelihood(decoder(s_L))

The state s_l carries z_1..z_l downwards, for the generator and the encoder alike, and is all that
the decoder sees. So x reaches the decoder through z only.
"""

from collections.abc import Sequence

from scratchgen.core.arrays import example_sum, halves, namespace, ones, per_example, zeros
from scratchgen.core.module import Module, Parameter
from scratchgen.core.numerics import normal_log_pdf
from scratchgen.layers.affine import zero_values
from scratchgen.maths.distributions import reparameterise, residual_normal_kl
from scratchgen.models.hierarchy import Hierarchy, Shape


class Level(Module):
    """z_l given everything above it, and what it does to the state.

    Args:
        prior: net s -> [μ, λ]; None for N(0, I), the top's.
        posterior: net (s, h) -> [Δμ, Δλ]; its pullback gives (ds, dh).
        merge: net (s, z) -> the next s; its pullback gives (ds, dz).

    Source: HVAE-4, HVAE-5, [Vahdat 2020]
    """

    def __init__(self, prior, posterior, merge):
        self.prior, self.posterior, self.merge = prior, posterior, merge

    def __call__(self, s, h, eps, stream=None):
        """z_l ~ q(z_l | x, z_<l), its divergence from the prior, and the next state.

        Args:
            s, h: (N, ...), the state above and the feature of x.
            eps: (N, ...) ~ N(0, I), of the shape of z_l.
            stream: noise for nets that drop out; None evaluates without.

        Returns:
            (s', kl): the next state, and KL(q(z_l | x, z_<l) ‖ p(z_l | z_<l)) (N,) nats.
            pullback: (ds', d_kl) -> (ds, dh).

        Source: HVAE-5, HVAE-6
        """
        mean_p, logvar_p, prior_pullback = self._prior(s, eps, stream)
        residual, posterior_pullback = self.run("posterior", self.posterior, s, h, stream=stream)
        d_mean, d_logvar = halves(residual)
        z, z_pullback = reparameterise(mean_p + d_mean, logvar_p + d_logvar, eps)
        kl, kl_pullback = residual_normal_kl(d_mean, d_logvar, logvar_p)
        below, merge_pullback = self.run("merge", self.merge, s, z, stream=stream)

        def pullback(d_below, d_kl):
            xp = namespace(d_kl)
            ds, dz = merge_pullback(d_below)
            of_mean, of_logvar = z_pullback(dz)
            kl_mean, kl_logvar, kl_prior = kl_pullback(per_example(d_kl, kl))
            d_residual = xp.concat([of_mean + kl_mean, of_logvar + kl_logvar], axis=-1)
            ds_posterior, dh = posterior_pullback(d_residual)
            ds_prior = prior_pullback(xp.concat([of_mean, of_logvar + kl_prior], axis=-1))
            return ds + ds_posterior + ds_prior, dh

        return (below, example_sum(kl)), pullback

    def look(self, s, h, eps):
        """What a call computes, for evaluation: values only.

        Returns:
            the next state; log p(z_l | z_<l)/q(z_l | x, z_<l) (N,) nats at that z_l; and the KL
            of every dimension, of the shape of z_l.

        Source: HVAE-5, HVAE-6
        """
        mean_p, logvar_p, _ = self._prior(s, eps, None)
        d_mean, d_logvar = halves(self.posterior(s, h)[0])
        z, _ = reparameterise(mean_p + d_mean, logvar_p + d_logvar, eps)
        scale = namespace(logvar_p).exp(-0.5 * logvar_p)
        from_prior, _ = reparameterise(d_mean * scale, d_logvar, eps)  # (z - μ) e^(-λ/2)
        log_ratio = normal_log_pdf(from_prior) - normal_log_pdf(eps) + 0.5 * d_logvar
        kl, _ = residual_normal_kl(d_mean, d_logvar, logvar_p)
        return self.merge(s, z)[0], example_sum(log_ratio), kl

    def generate(self, s, eps):
        """The next state at z_l = μ + e^(λ/2) ⊙ eps, which is z_l ~ p(z_l | z_<l).

        Source: HVAE-4
        """
        mean, logvar, _ = self._prior(s, eps, None)
        return self.merge(s, reparameterise(mean, logvar, eps)[0])[0]

    def _prior(self, s, eps, stream):
        """μ and λ of p(z_l | z_<l), and the pullback to s of both together.

        Source: HVAE-4
        """
        if self.prior is None:
            zero = namespace(eps).zeros_like(eps)
            return zero, zero, lambda d: namespace(s).zeros_like(s)
        found, pullback = self.run("prior", self.prior, s, stream=stream)
        return *halves(found), pullback


class LadderHvae(Hierarchy):
    """L levels below a start s_0, which is what the state knows before any z is drawn.

    Args:
        encoders: L nets: the first x -> h_L, every other the feature below -> the one above.
        levels: (prior, posterior, merge) of each `Level`, from the top; only the top has None for
            a prior.
        start: the shape of one example of s_0, which is learned; None for an empty one, (N, 0).
        latents: the shape of one example of each z_l, from the top.
        decoder: net s_L -> h.
        likelihood: p(x | h), one of maths/likelihoods.py.

    Raises:
        ValueError: the numbers of encoders, levels and latents differ, or not just the top level
            is without a prior net.

    Source: HVAE-4, HVAE-5, [Vahdat 2020]
    """

    def __init__(
        self,
        encoders: Sequence,
        levels: Sequence[tuple],
        start: Shape | None,
        latents: Sequence[Shape],
        decoder,
        likelihood,
    ):
        super().__init__(latents, decoder, likelihood)
        if not len(encoders) == len(levels) == len(latents):
            raise ValueError(
                f"need as many encoders and levels as latents, got {len(encoders)} encoders, "
                f"{len(levels)} levels and {len(latents)} latents"
            )
        for i, (prior, _, _) in enumerate(levels):
            if (prior is None) != (i == 0):
                raise ValueError(
                    "the first level has the prior None, which is N(0, I), and every other a net; "
                    f"level {i} has {prior}"
                )
        self.encoders = tuple(encoders)
        self.levels = tuple(Level(*parts) for parts in levels)
        self.start = None if start is None else Parameter(tuple(start), zero_values)

    def loss(self, x, eps: Sequence, stream=None):
        """-ELBO(x) in its L + 1 terms, at one z per example; see `Hierarchy.loss`.

            reconstruction = -log p(x | z),   z ~ q(z | x)
            kl_l           = KL(q(z_l | x, z_<l) ‖ p(z_l | z_<l)), in closed form given z_<l

        In the mean kl_1 + ... + kl_k is KL(q(z_1..k | x) ‖ p(z_1..k)), the rate of the first k.

        Source: HVAE-6, ELBO-6
        """
        n = self._require_noise(eps, x.shape[0])
        features, features_pullback = self._features(x, stream)
        s, start_pullback = self._start(n, x)
        kls, pullbacks = [], []
        for i, (level, h) in enumerate(zip(self.levels, features, strict=True)):
            own = None if stream is None else stream.at("levels", i)
            (s, kl), pull = level(s, h, eps[i], stream=own)
            kls.append(kl)
            pullbacks.append(pull)
        reconstruction, nll_pullback = self._nll(x, s, stream)

        def pullback(d_reconstruction, *d_kls):
            ds, d_features = nll_pullback(d_reconstruction), []
            for pull, d_kl in zip(reversed(pullbacks), reversed(d_kls), strict=True):
                ds, dh = pull(ds, d_kl)
                d_features.append(dh)
            start_pullback(ds)
            features_pullback(d_features[::-1])

        return (reconstruction, *kls), pullback

    def look(self, x, eps: Sequence, replaced: int | None = None):
        """The terms of `loss` for evaluation, values only; see `Hierarchy.look`.

        Args:
            x: (N, ...).
            eps: for each level (N, *its shape) ~ N(0, I).
            replaced: a level, counted from 0, whose posterior is replaced by its prior: what the
                bound is without what that level says about x. Its log-ratio and KL are 0.

        Raises:
            ValueError: eps does not fit, or there is no such level.

        Source: ELBO-6, HVAE-6, VAE-10
        """
        n = self._require_noise(eps, x.shape[0])
        if replaced is not None and replaced not in range(len(self.levels)):
            raise ValueError(f"there are the levels 0 to {len(self.levels) - 1}, not {replaced}")
        features, _ = self._features(x, None)
        (s, _), log_ratios, kls = self._start(n, x), [], []
        for i, (level, h) in enumerate(zip(self.levels, features, strict=True)):
            if i == replaced:
                s, ratio = level.generate(s, eps[i]), zeros((n,), like=x)
                kl = zeros(eps[i].shape, like=x)
            else:
                s, ratio, kl = level.look(s, h, eps[i])
            log_ratios.append(ratio)
            kls.append(kl)
        return self._nll(x, s)[0], log_ratios, kls

    def sample(self, eps: Sequence):
        """E[x | z] at z from the prior; see `Hierarchy.sample`.

        Source: HVAE-4
        """
        n = self._require_noise(eps)
        s, _ = self._start(n, eps[0])
        for level, e in zip(self.levels, eps, strict=True):
            s = level.generate(s, e)
        return self._decode(s)

    def reconstruct(self, x, eps: Sequence, keep: int | None = None):
        """E[x' | z] with the first `keep` latents from q(z | x); see `Hierarchy.reconstruct`.

        Source: HVAE-5, HVAE-4
        """
        n, keep = self._require_noise(eps, x.shape[0]), self._kept(keep)
        features, _ = self._features(x, None)
        s, _ = self._start(n, x)
        for i, (level, h) in enumerate(zip(self.levels, features, strict=True)):
            s = level.look(s, h, eps[i])[0] if i < keep else level.generate(s, eps[i])
        return self._decode(s)

    def _features(self, x, stream):
        """h_1, ..., h_L, from the top, and their pullback: dh_1, ..., dh_L -> None.

        Source: HVAE-5
        """
        h, found, pullbacks = x, [], []
        for i, encoder in enumerate(self.encoders):
            h, pull = self.run(f"encoders.{i}", encoder, h, stream=stream)
            found.append(h)
            pullbacks.append(pull)

        def pullback(d_features):
            dh = 0.0
            for d, pull in zip(d_features, reversed(pullbacks), strict=True):
                dh = pull(d + dh)

        return found[::-1], pullback

    def _start(self, n: int, like):
        """s_0 for n examples, in the library and dtype of `like`, and its pullback."""
        if self.start is None:
            return zeros((n, 0), like=like), lambda ds: None
        start = self.start.read()

        def pullback(ds):
            start.accumulate_product(ones((n, 1), like=ds), namespace(ds).reshape(ds, (n, -1)))

        xp = namespace(start.value)
        return xp.broadcast_to(start.value[None, ...], (n, *self.start.shape)), pullback
