"""A diffusion is a hierarchical VAE: the latents have the shape of the data, the encoder is fixed.

    time t      1       1 - 1/T         1/T      0
    latent     z_1  →    z_2   →  ...   z_T  →  z_{T+1}  →  x

Its encoder can be read upwards or downwards, by Bayes' rule:

    q(z at 0 | x) Π q(z_t | z_s)  =  q(z at 1 | x) Π q(z_s | z_t, x),      s = t - 1/T

Upwards it is a `MarkovHvae`, and -ELBO is the ratio of two chains (VDM-7). Downwards it is a
`LadderHvae`, and -ELBO is a sum of divergences in closed form (VDM-9): at every z, `Vdm.loss`. In
the mean all three are the same. The net is the diffusion's own, so any of them trains it.
"""

from scratchgen.core.arrays import halves, namespace, per_example
from scratchgen.core.module import Module
from scratchgen.layers.combinators import Sequential
from scratchgen.maths.forward_process import (
    kernel,
    posterior,
    q_posterior,
    shaped,
    signal_and_noise,
)
from scratchgen.models.ladder_hvae import LadderHvae
from scratchgen.models.markov_hvae import MarkovHvae
from scratchgen.models.samplers import CLEAN, Stop, pairs
from scratchgen.models.vdm import Vdm


def as_markov_hvae(vdm: Vdm, steps: int, like) -> MarkovHvae:
    """T + 1 latents, whose encoder is the forward process: x -> z at 0 -> ... -> z at 1.

    Args:
        vdm: with a γ that is fixed.
        steps: T, at least 1.
        like: (N, ...), data, whose examples have the shape and library of every latent.

    Returns:
        A hierarchy whose only parameters are the net's.

    Raises:
        ValueError: γ is learned, or there is no step.

    Source: VDM-1, VDM-7, HVAE-2
    """
    stops = _fixed_stops(vdm, steps, like)
    return MarkovHvae(
        encoders=[forward_step(*pair) for pair in reversed(pairs([*stops, CLEAN]))],
        priors=[Sequential(Denoise(vdm, pair[0]), reverse_step(*pair)) for pair in pairs(stops)],
        latents=[like.shape[1:]] * len(stops),
        decoder=Sequential(),  # of nothing: the identity
        likelihood=LastStep(vdm.decoder, stops[-1]),
    )


def as_ladder_hvae(vdm: Vdm, steps: int, like) -> LadderHvae:
    """T + 1 latents, whose encoder is q(z at 1 | x), then the forward process's posteriors.

    The state is [z_t, x̂(z_t)] and every feature is x itself.

    Args:
        vdm: with a γ that is fixed.
        steps: T, at least 1.
        like: (N, ...), data, whose examples have the shape and library of every latent.

    Returns:
        A hierarchy whose only parameters are the net's.

    Raises:
        ValueError: γ is learned, or there is no step.

    Source: VDM-1, VDM-9
    """
    stops = _fixed_stops(vdm, steps, like)
    denoise = [Denoise(vdm, now) for now in stops[:-1]]
    merges = [
        IgnoringState(layer) for layer in (*denoise, Sequential())
    ]  # the last one keeps z alone
    levels: list[tuple] = [(None, IgnoringState(forward_step(stops[0], CLEAN)), merges[0])]
    for i, pair in enumerate(pairs(stops), start=1):
        levels.append((reverse_step(*pair), residual(*pair), merges[i]))
    return LadderHvae(
        encoders=[Sequential() for _ in stops],
        levels=levels,
        start=None,
        latents=[like.shape[1:]] * len(stops),
        decoder=Sequential(),
        likelihood=LastStep(vdm.decoder, stops[-1]),
    )


def forward_step(now: Stop, before: Stop):
    """q(z_t | z_s) = N(√α z_s, β I) as a layer: z_s (N, ..., C) -> [√α z_s, log β] (N, ..., 2C).

    Source: VDM-1, VDM-2
    """

    def layer(z):
        root_alpha, beta = kernel(now.level_beside(z), before.level_beside(z))
        signal = shaped(root_alpha, z)
        return _law(signal * z, beta), lambda d: signal * halves(d)[0]

    return layer


def reverse_step(now: Stop, before: Stop):
    """p(z_s | z_t) = q(z_s | z_t, x̂) = N(c₀ x̂ + c z_t, β̃ I) as a layer: [z_t, x̂] -> [mean, log β̃].

    Source: VDM-7, VDM-9
    """

    def layer(state):
        z, clean = halves(state)
        levels = now.level_beside(z), before.level_beside(z)
        c0, c, _ = (shaped(coefficient, z) for coefficient in posterior(*levels))

        def pullback(d):
            d_mean, _ = halves(d)
            return namespace(d).concat([c * d_mean, c0 * d_mean], axis=-1)

        return _law(*q_posterior(clean, z, *levels)), pullback

    return layer


def residual(now: Stop, before: Stop):
    """How far q(z_s | z_t, x) is from p(z_s | z_t), as a layer: ([z_t, x̂], x) -> [c₀ (x - x̂), 0].

    Source: VDM-9
    """

    def layer(state, x):
        _, clean = halves(state)
        c0 = shaped(posterior(now.level_beside(x), before.level_beside(x))[0], x)
        gap = c0 * (x - clean)
        xp = namespace(gap)

        def pullback(d):
            dx = c0 * halves(d)[0]
            return xp.concat([xp.zeros_like(dx), -dx], axis=-1), dx

        return xp.concat([gap, xp.zeros_like(gap)], axis=-1), pullback

    return layer


class Denoise(Module):
    """z_t -> [z_t, x̂(z_t)]: the diffusion's net, at one time.

    Source: VDM-1
    """

    def __init__(self, vdm: Vdm, now: Stop):
        self.net, self.parameterisation, self.now = vdm.net, vdm.parameterisation, now
        self.draws = getattr(vdm.net, "draws", False)

    def __call__(self, z, stream=None):
        """z_t (N, ..., C) -> (N, ..., 2C), and its pullback.

        Of a net that gives no cotangent of z_t none is passed on; with a fixed encoder no gradient
        needs it.
        """
        level = self.now.level_beside(z)
        time = namespace(z).full(z.shape[:1], self.now.time, dtype=z.dtype, device=z.device)
        output, net_pullback = self.run("net", self.net, z, time, stream=stream)
        clean, clean_pullback = self.parameterisation.clean(output, z, level, None)

        def pullback(d):
            dz, d_clean = halves(d)
            d_output, direct = clean_pullback(d_clean)
            through_net, _ = net_pullback(d_output)
            return dz + direct + (0.0 if through_net is None else through_net)

        return namespace(clean).concat([z, clean], axis=-1), pullback


class IgnoringState(Module):
    """(s, h) -> layer(h), for a level that asks the state above for nothing."""

    def __init__(self, layer):
        self.layer, self.draws = layer, getattr(layer, "draws", False)

    def __call__(self, s, h, stream=None):
        """s, h (N, ...) -> y, pullback: dy -> (0, dh)."""
        y, pullback = self.run("layer", self.layer, h, stream=stream)
        return y, lambda d: (namespace(s).zeros_like(s), pullback(d))


class LastStep:
    """p(x | z) of a `Vdm`'s decoder, as a hierarchy takes its likelihood: h is z at time 0.

    Source: VDM-9
    """

    def __init__(self, decoder, now: Stop):
        self.decoder, self.now = decoder, now

    def nll(self, x, h):
        """x, h (N, ..., C) -> nll (N, 1, ...) in nats, pullback: d_nll -> dh.

        Either decoder is N(z; √ᾱ x, 1-ᾱ) divided by its sum or integral over x. So
        ∂nll/∂z = √ᾱ/(1-ᾱ) (E[x | z] - x).
        """
        level = self.now.level_beside(h)
        signal, noise = signal_and_noise(level, h)
        nll, _ = self.decoder.nll(x, (h - signal * x) / noise, level)
        return per_example(nll, x), lambda d: d * signal / noise**2 * (self.mean(h) - x)

    def mean(self, h):
        """E[x | z] (N, ..., C)."""
        return self.decoder.mean(h, self.now.level_beside(h))


def _law(mean, variance):
    """[mean, log variance] on the last axis, for a variance (1,)."""
    xp = namespace(mean)
    logvar = shaped(namespace(variance).log(variance), mean)
    return xp.concat([mean, xp.zeros_like(mean) + logvar], axis=-1)


def _fixed_stops(vdm: Vdm, steps: int, like) -> list[Stop]:
    """The T + 1 places of the latents, from the top.

    Raises:
        ValueError: they would move in training.
    """
    if vdm.learned:
        raise ValueError(
            "the encoder of a diffusion read as a hierarchy must be fixed, but its γ has "
            "parameters to learn; take a LinearGamma between the same ends"
        )
    return vdm.stops(steps, like)
