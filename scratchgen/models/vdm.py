"""Variational diffusion: a bound that sees the noise schedule through its two ends only.

    x  →  z₀  →  ...  →  z₁        z_t = √ᾱ_t x + √(1-ᾱ_t) ε,   ᾱ_t = σ(-γ(t)),   0 ≤ t ≤ 1

A Markovian hierarchical VAE with three restrictions: every latent has the shape of the data, every
step of the encoder is a fixed linear-Gaussian one, and the last latent is close to noise. So there
is no encoder to train but γ(t), the schedule itself. The first latent z₀ keeps a trace of noise and
is read by a decoder without parameters.
"""

from math import log, pi

from scratchgen.core.arrays import example_sum, namespace, require_shape, to_host, zeros
from scratchgen.core.module import Module, Parameter
from scratchgen.core.numerics import logsumexp
from scratchgen.maths.diffusion_bound import prior_kl, squared_error
from scratchgen.maths.forward_process import log_snr, q_sample, shaped
from scratchgen.maths.gamma import level_from_gamma
from scratchgen.maths.parameterisations import KWay, Mean, Parameterisation
from scratchgen.maths.schedules import at_least_one_step
from scratchgen.models.samplers import Prediction, Stop

MOST_STEPS = 10_000  # of the discrete bound in float32


class Vdm(Module):
    """A variational diffusion model.

    Args:
        net: (z_t (N, ...), time (N,)) -> output, and its pullback -> (dz, d_time); dz is None only
            where γ has nothing to learn. Time is (γ(t) - γ(0))/(γ(1) - γ(0)), so the net hears of
            the noise and not of the schedule.
        gamma: one of maths/gamma.py.
        parameterisation: one of maths/parameterisations.py but Mean, which needs a step's end.
        decoder: p(x | z₀), one of the two below.

    Raises:
        ValueError: the net is to predict the mean of a reverse step.

    Source: VDM-1, [Kingma 2021]
    """

    def __init__(self, net, gamma, parameterisation: Parameterisation, decoder):
        if isinstance(parameterisation, Mean):
            raise ValueError("in continuous time a step has no mean; let the net predict the noise")
        self.net, self.gamma = net, gamma
        self.parameterisation, self.decoder = parameterisation, decoder
        self.learned = any(gamma.named(Parameter))

    def loss(self, x, t, eps, eps0, steps: int | None = None, stream=None):
        """-ELBO(x) in its three terms, the second at one time for each example.

            prior           KL(q(z₁ | x) ‖ N(0, I))
            diffusion       ½ γ'(t) ‖ε - ε̂‖²                      t ~ U(0, 1)
                            ½ T (e^(γ(t) - γ(s)) - 1) ‖ε - ε̂‖²    t ~ U{1/T, ..., 1}, s = t - 1/T
            reconstruction  -log p(x | z₀)

        Args:
            x: (N, ...), data.
            t: (N,), times; `low_discrepancy` draws them well.
            eps, eps0: (N, ...) ~ N(0, I), the noise of z_t and of z₀.
            steps: T, or None for continuous time; in float32 at most MOST_STEPS, up to which
                γ(t) - γ(t - 1/T) keeps some four digits.
            stream: noise for nets that drop out; None evaluates without.

        Returns:
            terms: (prior, diffusion, reconstruction), each (N,) nats. The mean over t of their sum
                is -ELBO.
            pullback: (d_prior, d_diffusion, d_reconstruction), each (N,) -> None; adds the
                parameters' gradients. In continuous time the bound is blind to the interior of γ,
                whose parameters get the gradient of Σ diffusion² instead: the least variance.

        Raises:
            ValueError: times or noise would broadcast, T is not a whole number from 1 on, or too
                large for float32.

        Source: VDM-9, [Kingma 2021]
        """
        require_shape("t", t, x.shape[:1])
        require_shape("eps", eps, x.shape)
        require_shape("eps0", eps0, x.shape)
        if steps is not None:
            _require_steps(steps, t)
        (now, first, last, time, weight), schedule_pullback = self._schedule(t, steps)
        z_t, z_pullback = q_sample(x, eps, now)
        output, net_pullback = self.run("net", self.net, z_t, time, stream=stream)
        guess, guess_pullback = self.parameterisation.epsilon(output, z_t, now, None)
        error, error_pullback = squared_error(eps, guess)
        prior, prior_pullback = prior_kl(x, last)
        reconstruction, decoder_pullback = self.decoder.nll(x, eps0, first)
        diffusion = weight * error

        def pullback(d_prior, d_diffusion, d_reconstruction):
            d_guess = error_pullback(weight * d_diffusion)
            d_output, d_z = guess_pullback(d_guess)
            d_z_net, d_time = net_pullback(d_output)
            if not self.learned:
                return
            _, _, d_now = z_pullback(d_z + d_z_net)
            slopes = self.parameterisation.epsilon_slope(output, z_t, now, None)
            schedule_pullback(
                d_now + example_sum(slopes * d_guess),
                decoder_pullback(d_reconstruction),
                prior_pullback(d_prior)[1],
                d_time,
                error * d_diffusion,
                2.0 * diffusion,
            )

        return (prior, diffusion, reconstruction), pullback

    def _schedule(self, t, steps: int | None):
        """What γ says at times t (N,): all that the loss hears of it.

        Returns:
            (now, first, last, time, weight), each (N,): the levels at t, 0 and 1, the net's time,
                and the weight of ‖ε - ε̂‖².
            pullback: their cotangents, and in continuous time the factor of what reaches the
                interior of γ -> None; adds the gradients of γ's parameters.

        Source: VDM-9, [Kingma 2021]
        """
        (n,), xp = t.shape, namespace(t)
        zero = zeros((1,), like=t)
        asked = [t, zero, zero + 1.0, *([] if steps is None else [t - 1.0 / steps])]
        (gamma, slope), gamma_pullback = self.gamma(xp.concat(asked))
        level, level_pullback = level_from_gamma(gamma)
        span = gamma[n + 1] - gamma[n]
        time = (gamma[:n] - gamma[n]) / span
        if steps is None:
            weight = 0.5 * slope[:n]
        else:
            weight = 0.5 * steps * namespace(gamma).expm1(gamma[:n] - gamma[n + 2 :])
        first, last = (namespace(level).repeat(level[i : i + 1], n) for i in (n, n + 1))

        def pullback(d_now, d_first, d_last, d_time, d_weight, interior):
            d_time = d_time / span
            d_gamma = [
                d_time,
                -xp.sum((1.0 - time) * d_time, keepdims=True),
                -xp.sum(time * d_time, keepdims=True),
            ]
            d_levels = [d_now, xp.sum(d_first, keepdims=True), xp.sum(d_last, keepdims=True)]
            if steps is None:
                d_slope = xp.concat([0.5 * d_weight, zero, zero])
                interior = xp.concat([interior, zero, zero])
            else:
                d_gap = 0.5 * steps * xp.exp(gamma[:n] - gamma[n + 2 :]) * d_weight
                d_gamma = [d_gamma[0] + d_gap, *d_gamma[1:], -d_gap]
                d_levels, d_slope, interior = [*d_levels, 0.0 * d_now], 0.0 * gamma, 1.0
            through_levels = level_pullback(xp.concat(d_levels))
            gamma_pullback(xp.concat(d_gamma) + through_levels, d_slope, interior)

        return (level[:n], first, last, time, weight), pullback

    def denoise(self, z_t, now: Stop, before: Stop) -> Prediction:
        """What the net says at z_t (N, ...); the reverse step has the variance of q(z_s | z_t, x).

        Source: VDM-10, DDPM-14
        """
        xp, level = namespace(z_t), now.level_beside(z_t)
        time = xp.full(z_t.shape[:1], now.time, dtype=z_t.dtype, device=z_t.device)
        output, _ = self.net(z_t, time)
        clean, _ = self.parameterisation.clean(output, z_t, level, None)
        epsilon, _ = self.parameterisation.epsilon(output, z_t, level, None)
        return Prediction(clean, epsilon)

    def stops(self, count: int, like) -> list[Stop]:
        """count + 1 places from z₁ to z₀ at equal distances in t, as the samplers take them.

        Args:
            count: the number of steps, at least 1.
            like: an array of the run's library and dtype.

        Returns:
            Stops, whose time is what the net is told.

        Raises:
            ValueError: there is no step.

        Source: VDM-10
        """
        if count < 1:
            raise ValueError(f"there must be at least 1 step, got {count}")
        t = namespace(like).asarray(
            [1.0 - i / count for i in range(count + 1)], dtype=like.dtype, device=like.device
        )
        (gamma, _), _ = self.gamma(t)
        times = to_host((gamma - gamma[-1]) / (gamma[0] - gamma[-1]))
        levels = to_host(level_from_gamma(gamma)[0])
        return [Stop(float(a), float(b)) for a, b in zip(times, levels, strict=True)]


class LevelDecoder:
    """p(x_k | z₀) ∝ N(z₀; √ᾱ₀ x_k, 1-ᾱ₀) over the K levels of a pixel.

    Args:
        levels: K ≥ 2.

    Raises:
        ValueError: K is below 2.

    Source: VDM-9, [Kingma 2021]
    """

    def __init__(self, levels: int):
        self.kway = KWay(levels)  # whose logits are all 0

    def nll(self, x, eps, level):
        """-log p(x | z₀) at z₀ = √ᾱ₀ x + √(1-ᾱ₀) ε.

            log Σ_k e^(-½ (ρ (x_k - x) - ε)²) + ½ ε²,   ρ² = ᾱ₀/(1-ᾱ₀)

        Args:
            x: (N, ...), on the centres of K bins of [-1, 1].
            eps: (N, ...) ~ N(0, I).
            level: (N,), log ᾱ₀.

        Returns:
            nll: (N,), nats.
            pullback: d_nll -> d_level (N,).

        Source: VDM-9, [Kingma 2021]
        """
        ratio = shaped(namespace(level).exp(0.5 * log_snr(level)), x)
        apart = self.kway.centres(x) - x[..., None]
        gap = ratio[..., None] * apart - eps[..., None]
        xp = namespace(gap)
        total = logsumexp(-0.5 * gap * gap)

        def pullback(d_nll):
            p = xp.exp(-0.5 * gap * gap - total[..., None])
            growth = _ratio_slope(ratio, level, x)[..., None]
            return -d_nll * example_sum(p * gap * apart * growth)

        return example_sum(total + 0.5 * eps * eps), pullback

    def mean(self, z0, level):
        """E[x | z₀]: z₀ (N, ...), level (N,) -> (N, ...).

        Source: VDM-9
        """
        logits = zeros((*z0.shape, self.kway.levels), like=z0)
        return self.kway.clean(logits, z0, level, None)[0]


class NormalDecoder:
    """p(x | z₀) = N(x; z₀/√ᾱ₀, (1-ᾱ₀)/ᾱ₀), for data without levels.

    Source: VDM-9
    """

    def nll(self, x, eps, level):
        """-log p(x | z₀) at z₀ = √ᾱ₀ x + √(1-ᾱ₀) ε: ½ ε² + ½ log 2π - log ρ, ρ² = ᾱ₀/(1-ᾱ₀).

        Args:
            x, eps: (N, ...), data and noise ~ N(0, I).
            level: (N,), log ᾱ₀.

        Returns:
            nll: (N,), nats.
            pullback: d_nll -> d_level (N,).

        Source: VDM-9
        """
        ratio = shaped(namespace(level).exp(0.5 * log_snr(level)), x)
        xp = namespace(ratio)
        nll = 0.5 * eps * eps + 0.5 * log(2.0 * pi) - xp.log(ratio)

        def pullback(d_nll):
            growth = xp.broadcast_to(_ratio_slope(ratio, level, x) / ratio, x.shape)
            return -d_nll * example_sum(growth)

        return example_sum(nll), pullback

    def mean(self, z0, level):
        """E[x | z₀] = z₀/√ᾱ₀: z₀ (N, ...), level (N,) -> (N, ...).

        Source: VDM-9
        """
        return z0 / shaped(namespace(level).exp(0.5 * level), z0)


def low_discrepancy(u, n: int, rows: slice | None = None):
    """t_i = (u + i/n) mod 1: each uniform, and together spread evenly over [0, 1].

    Args:
        u: (1,), one uniform number in [0, 1) for the whole batch.
        n: the number of examples in the batch.
        rows: which of them; all unless given.

    Returns:
        (n,), or as many as there are rows.

    Source: [Kingma 2021]
    """
    xp, chosen = namespace(u), rows or slice(0, n)
    i = xp.arange(chosen.start, chosen.stop, dtype=u.dtype, device=u.device)
    return (u + i / n) % 1.0


def on_grid(t, steps: int):
    """⌈T t⌉/T, where a time just at a grid point goes to the next: t (N,) in [0, 1) -> (N,).

    Uniform times become the uniform steps 1/T, ..., 1 of the discrete bound.

    Source: [Kingma 2021]
    """
    xp = namespace(t)
    return (xp.clip(xp.floor(steps * t), 0.0, steps - 1.0) + 1.0) / steps


def _require_steps(steps: int, t) -> None:
    """Refuse a number of steps that a bound at times t cannot have."""
    if at_least_one_step(steps) > MOST_STEPS and t.dtype == namespace(t).float32:
        raise ValueError(
            f"steps must be at most {MOST_STEPS} in float32, where γ(t) - γ(t - 1/T) loses its "
            f"digits, got {steps}; take float64 or continuous time"
        )


def _ratio_slope(ratio, level, like):
    """∂ρ/∂(log ᾱ) = ½ ρ/(1-ᾱ), since ρ² = ᾱ/(1-ᾱ)."""
    return 0.5 * ratio / shaped(-namespace(level).expm1(level), like)
