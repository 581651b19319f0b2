"""Denoising diffusion: T fixed steps of noise, and one net that learns to take each back.

    q(x_t | x_0) = N(√ᾱ_t x_0, (1-ᾱ_t) I)          p_θ(x_{t-1} | x_t) = N(c₀ x̂₀ + c x_t, σ_t²)

The net sees x_t and t. What its output means, and where σ_t² comes from, are arguments
(maths/parameterisations.py, maths/reverse_variance.py).
"""

from math import inf
from typing import Any

from scratchgen.core.arrays import example_sum, halves, namespace, per_example, require_shape
from scratchgen.core.module import Module
from scratchgen.maths.diffusion_bound import prior_kl, squared_error, transition_kl
from scratchgen.maths.forward_process import q_sample
from scratchgen.maths.parameterisations import KWay, Parameterisation
from scratchgen.maths.reverse_variance import ReverseVariance
from scratchgen.maths.schedules import Schedule
from scratchgen.models.samplers import Prediction, Stop, spaced


class Ddpm(Module):
    """A denoising diffusion model.

    Args:
        net: (x_t (N, ..., C), t (N,) floating) -> output, and its pullback. The output holds what
            the parameterisation reads, then what the variance reads.
        schedule: of T steps.
        parameterisation: one of maths/parameterisations.py.
        variance: one of maths/reverse_variance.py.
        likelihood: p(x_0 | x_1) with h = [mean, logvar], such as Normal or DiscretisedNormal; a
            KWay net gives the probabilities of a pixel's levels itself and needs none.

    Raises:
        ValueError: the likelihood reads something else, or there is none and the net brings none.

    Source: DDPM-7
    """

    def __init__(
        self,
        net,
        schedule: Schedule,
        parameterisation: Parameterisation,
        variance: ReverseVariance,
        likelihood=None,
    ):
        if likelihood is None and not isinstance(parameterisation, KWay):
            raise ValueError("name the likelihood p(x_0 | x_1); only a KWay net brings its own")
        if not (likelihood is None or getattr(likelihood, "reads_logvar", False)):
            raise ValueError(
                "the likelihood p(x_0 | x_1) must read a mean and a log-variance, as Normal and "
                f"DiscretisedNormal do, got {type(likelihood).__name__}"
            )
        self.net, self.schedule = net, schedule
        self.parameterisation: Any = parameterisation
        self.variance, self.likelihood = variance, likelihood

    def loss(self, x, t, eps, stream=None):
        """What training may weigh: Algorithm 1's squared error, and the term of the bound.

            simple = ‖ε - ε̂(x_t, t)‖²
            bound  = KL(q(x_{t-1} | x_t, x_0) ‖ p_θ(x_{t-1} | x_t)) for t ≥ 2, -log p_θ(x_0 | x_1)

        Args:
            x: (N, ..., C), data.
            t: (N,), integers in 1..T; uniform ones make L_T + T · bound an unbiased -ELBO.
            eps: (N, ..., C) ~ N(0, I).
            stream: noise for nets that drop out; None evaluates without.

        Returns:
            terms: (simple, bound), each (N,); the bound in nats.
            pullback: (d_simple, d_bound, d_variance), each (N,) -> None; adds the parameters'
                gradients. The last two are cotangents of the bound: the former reaches the mean
                and the variance, the latter the variance alone, as L_hybrid wants it.

        Raises:
            ValueError: times or noise would broadcast, or a time is no step.

        Source: DDPM-12, DDPM-13, DDPM-15, [Nichol 2021]
        """
        x_t, now, before = self._noised(x, t, eps)
        steps = namespace(x_t).astype(t, x_t.dtype)
        output, net_pullback = self.run("net", self.net, x_t, steps, stream=stream)
        said, _ = self._parts(output, x)
        guess, guess_pullback = self.parameterisation.epsilon(said, x_t, now, before)
        simple, simple_pullback = squared_error(eps, guess)
        bound, bound_pullback = self.bound_term(x, x_t, t, output)

        def pullback(d_simple, d_bound, d_variance):
            d_said, _ = guess_pullback(simple_pullback(d_simple))
            d_of_mean, d_of_variance = bound_pullback(d_bound, d_bound + d_variance)
            parts = [d_said + d_of_mean, *([] if d_of_variance is None else [d_of_variance])]
            net_pullback(namespace(d_said).concat(parts, axis=-1))

        return (simple, bound), pullback

    def look(self, x, t, eps):
        """One look at x_t without a gradient, for whoever measures.

        Args:
            x, eps: (N, ..., C), data and noise.
            t: (N,), integers in 1..T.

        Returns:
            x_t (N, ..., C), the net's output, ‖ε - ε̂‖² (N,) and ‖x_0 - x̂₀‖² (N,).

        Raises:
            ValueError: times or noise would broadcast, or a time is no step.

        Source: DDPM-13, DDPM-14
        """
        x_t, now, before = self._noised(x, t, eps)
        output, _ = self.net(x_t, namespace(x_t).astype(t, x_t.dtype))
        said, _ = self._parts(output, x)
        clean, _ = self.parameterisation.clean(said, x_t, now, before)
        epsilon, _ = self.parameterisation.epsilon(said, x_t, now, before)
        return x_t, output, squared_error(eps, epsilon)[0], squared_error(x, clean)[0]

    def bound_term(self, x, x_t, t, output, variance: ReverseVariance | None = None):
        """The bound's term of step t: L_{t-1}, or for t = 1 the likelihood L_0.

        Args:
            x, x_t: (N, ..., C).
            t: (N,), integers in 1..T.
            output: the net's at x_t and t.
            variance: in the place of the model's own.

        Returns:
            term: (N,), nats.
            pullback: (d, d') -> the cotangents of the output's two parts, d (N,) through the mean
                and d' (N,) through the variance; None where the net says nothing of the variance.

        Source: DDPM-8, DDPM-9
        """
        now, before = self._levels(t)
        said, of_variance = self._parts(output, x)
        chosen = variance or self.variance
        clean, clean_pullback = self.parameterisation.clean(said, x_t, now, before)
        logvar, logvar_pullback = chosen.logvar(of_variance, x_t, now, before)
        xp = namespace(clean)
        inner = before < 0.0
        kl, kl_pullback = transition_kl(x, clean, logvar, now, _some_end(now, before))
        first, first_pullback = self._likelihood(x, x_t, said, clean, logvar, now)

        def pullback(d, d_variance):
            zero = xp.zeros_like(d)
            d_clean, _ = kl_pullback(xp.where(inner, d, zero))
            _, d_logvar = kl_pullback(xp.where(inner, d_variance, zero))
            d_said, d_first, _ = first_pullback(xp.where(inner, zero, d))
            _, _, d_first_logvar = first_pullback(xp.where(inner, zero, d_variance))
            through_clean, _ = clean_pullback(d_clean + d_first)
            return d_said + through_clean, logvar_pullback(d_logvar + d_first_logvar)

        return xp.where(inner, kl, first), pullback

    def prior(self, x):
        """L_T = KL(q(x_T | x_0) ‖ N(0, I)): x (N, ...) -> (N,) nats. Nothing of it is learned.

        Source: DDPM-8, VDM-6
        """
        xp, last = namespace(x), float(self.schedule.log_alpha_bar[-1])
        level = xp.full((x.shape[0],), last, dtype=xp.float64, device=x.device)
        return prior_kl(x, level)[0]

    def denoise(
        self, x_t, now: Stop, before: Stop, variance: ReverseVariance | None = None
    ) -> Prediction:
        """What the net says at x_t (N, ..., C), and the variance of the step to `before`.

        The output is read as the net was trained, at the step from t to t - 1; only the variance
        depends on where the sampler goes.

        Args:
            x_t: (N, ..., C).
            now, before: stops at a step t ≥ 1 and at any s < t.
            variance: in the place of the model's own.

        Returns:
            Prediction.

        Source: DDPM-11, DDPM-14, DDPM-17
        """
        at, to = now.level_beside(x_t), before.level_beside(x_t)
        (said, of_variance), _ = self._ask(x_t, now)
        clean, _ = self.parameterisation.clean(said, x_t, at, self._trained_end(x_t, now))
        epsilon, _ = self.parameterisation.epsilon(said, x_t, at, self._trained_end(x_t, now))
        logvar, _ = (variance or self.variance).logvar(of_variance, x_t, at, to)
        return Prediction(clean, epsilon, logvar)

    def flow(self, x_t, stop: Stop):
        """ε̂ and its pullback d -> dx_t, which models/flow.py asks for; the net must have one.

        Args:
            x_t: (N, ..., C).
            stop: where; its time is a step t ≥ 1.

        Returns:
            ε̂ (N, ..., C), and the pullback. It adds to the parameters' gradients too.

        Source: DDPM-14, [Song 2020]
        """
        xp, level = namespace(x_t), stop.level_beside(x_t)
        (said, of_variance), net_pullback = self._ask(x_t, stop)
        end = self._trained_end(x_t, stop)
        epsilon, epsilon_pullback = self.parameterisation.epsilon(said, x_t, level, end)

        def pullback(d):
            d_said, d_x_t = epsilon_pullback(d)
            d_output = xp.concat([d_said, xp.zeros_like(of_variance)], axis=-1)
            return d_x_t + net_pullback(d_output)[0]

        return epsilon, pullback

    def stops(self, count: int) -> list[Stop]:
        """The places t = T, ..., 0 of a sampler that takes `count` steps, as even as they can be.

        Raises:
            ValueError: the count is not in 1..T.

        Source: DDPM-16
        """
        table = self.schedule.log_alpha_bar
        return [Stop(float(t), float(table[t])) for t in spaced(self.schedule.steps, count)]

    def _noised(self, x, t, eps):
        """x_t, and log ᾱ at t and at t - 1."""
        now, before = self._levels(t)
        require_shape("t", t, x.shape[:1])
        require_shape("eps", eps, x.shape)
        return q_sample(x, eps, now)[0], now, before

    def _levels(self, t):
        """log ᾱ at t and at t - 1."""
        return self.schedule.level(t), self.schedule.level(t - 1)

    def _ask(self, x_t, stop: Stop):
        """The two parts of the net's output at a stop, and the net's pullback."""
        xp = namespace(x_t)
        t = xp.full(x_t.shape[:1], stop.time, dtype=x_t.dtype, device=x_t.device)
        output, pullback = self.net(x_t, t)
        return self._parts(output, x_t), pullback

    def _trained_end(self, x_t, stop: Stop):
        """log ᾱ at t - 1, (1,): where the step ends that the net was trained for at t."""
        t = round(stop.time) - 1
        return Stop(t, float(self.schedule.log_alpha_bar[t])).level_beside(x_t)

    def _parts(self, output, x):
        """What the output says of x̂₀, and what of the variance."""
        of_variance = x.shape[-1] * self.variance.outputs
        end = output.shape[-1] - of_variance
        return output[..., :end], output[..., end:]

    def _likelihood(self, x, x_t, said, clean, logvar, now):
        """-log p(x_0 | x_1): (N,) nats, and d -> (d_said, d_clean, d_logvar).

        Source: DDPM-8
        """
        xp = namespace(clean)
        if self.likelihood is None:
            nll, nll_pullback = self.parameterisation.nll(x, said, x_t, now)

            def pullback(d):
                d_said = nll_pullback(per_example(d, nll))
                return d_said, xp.zeros_like(clean), xp.zeros_like(logvar)

        else:
            h = xp.concat([clean, logvar], axis=-1)
            nll, nll_pullback = self.likelihood.nll(x, h)

            def pullback(d):
                return xp.zeros_like(said), *halves(nll_pullback(per_example(d, nll)))

        return example_sum(nll), pullback


def _some_end(now, before):
    """`before`, and where that is clean data some end of the step that has a divergence."""
    return namespace(now).where(before < 0.0, before, 0.5 * now)


def draw_steps(u, shares):
    """Steps t with probability p_t, from uniform numbers; 1/p_t makes Σ_t f(t) = E[f(t)/p_t].

    Args:
        u: (N,), in [0, 1); where they are spread evenly, so are the steps.
        shares: (T,) float64 on the host, p_t of t = 1..T, positive, up to a factor.

    Returns:
        t: (N,), int64 in 1..T.
        weight: (N,), 1/p_t.

    Raises:
        ValueError: a share is not positive and finite.

    Source: DDPM-15, [Nichol 2021]
    """
    xp, total = namespace(u), float(shares.sum())
    if not (shares.min() > 0.0 and total < inf):
        raise ValueError(
            f"shares must be positive and finite, got a least one of {shares.min()} and a sum of "
            f"{total}"
        )
    ends = xp.asarray(shares.cumsum() / total, dtype=xp.float64, device=u.device)
    t = 1 + xp.clip(
        xp.searchsorted(ends, xp.astype(u, xp.float64), side="right"), 0, len(shares) - 1
    )
    weights = xp.asarray(total / shares, dtype=u.dtype, device=u.device)
    return xp.astype(t, xp.int64), xp.take(weights, t - 1)


def noise_shares(schedule: Schedule):
    """The part of the rise of γ = -log SNR in each step: (T,) on the host; t = 1 as much as t = 2.

    Steps drawn in these shares are spread evenly over noise levels, as in variational diffusion.
    There the terms of the bound, times 1/p_t, vary least: with σ² = β̃ they are then nearly
    ½ (γ_T - γ_1) ‖ε - ε̂‖².

    Args:
        schedule: of T ≥ 2 steps.

    Returns:
        (T,), whose sum is not 1.

    Raises:
        ValueError: there is one step only.

    Source: DDPM-12, [Kingma 2021]
    """
    if schedule.steps < 2:
        raise ValueError(f"shares by noise need at least 2 steps, got {schedule.steps}")
    rise = schedule.gamma[1:].copy()
    rise[1:] -= schedule.gamma[1:-1]
    rise[0] = rise[1]
    return rise
