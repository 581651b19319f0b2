"""The forward process: data becomes noise in fixed Gaussian steps, and all of it is known.

A noise level is ℓ = log ᾱ, one float64 number per example: 0 is clean data, -∞ pure noise. A step
goes from the level `before` (at time s) to the level `now` (at time t > s); DDPM takes s = t - 1,
and any other pair is as good. Levels come from a `Schedule`, or from a learned γ: -softplus(γ).

    ᾱ = e^ℓ      1 - ᾱ = -expm1(ℓ)      α = ᾱ_t/ᾱ_s = e^(now - before)      β = 1 - α

Nothing here is ever formed as 1 - (a number near 1), and s = 0 needs no case of its own. Levels
are not checked here: one above 0, or `now` above `before`, gives NaN or a negative variance.
"""

from scratchgen.core.arrays import example_sum, namespace, per_example
from scratchgen.core.numerics import normal_log_pdf


def kernel(now, before=0.0):
    """q(x_t | x_s) = N(√α x_s, β I) with α = ᾱ_t/ᾱ_s, β = 1 - α.

    Without `before` it is the diffusion kernel q(x_t | x_0) = N(√ᾱ_t x_0, (1-ᾱ_t) I).

    Args:
        now, before: (N,), levels at t and at s < t.

    Returns:
        (√α, β), each (N,).

    Source: DDPM-1, DDPM-3, VDM-2
    """
    xp, gap = namespace(now), now - before
    return xp.exp(0.5 * gap), 0.0 - xp.expm1(gap)  # a plain minus would make β of no step -0


def posterior(now, before):
    """q(x_s | x_t, x_0) = N(c₀ x_0 + c x_t, β̃ I), the forward process run backwards.

        c₀ = √ᾱ_s β/(1-ᾱ_t)      c = √α (1-ᾱ_s)/(1-ᾱ_t)      β̃ = β (1-ᾱ_s)/(1-ᾱ_t)

    At s = 0 it is the point x_0: c₀ = 1, c = β̃ = 0.

    Args:
        now, before: (N,), levels at t and at s < t.

    Returns:
        (c₀, c, β̃), each (N,).

    Source: DDPM-6
    """
    root_alpha, beta = kernel(now, before)
    signal_before, noise_before = kernel(before)
    _, noise_now = kernel(now)
    share = noise_before / noise_now
    return signal_before * beta / noise_now, root_alpha * share, beta * share


def log_snr(level):
    """log SNR = log ᾱ - log(1-ᾱ) = -γ: (N,) -> (N,).

    Source: DDPM-14
    """
    return level - namespace(level).log(-namespace(level).expm1(level))


def signal_and_noise(level, like):
    """√ᾱ and √(1-ᾱ), shaped to multiply `like` (N, ...) and in its dtype.

    Source: DDPM-3
    """
    signal, variance = kernel(level)
    return shaped(signal, like), shaped(namespace(level).sqrt(variance), like)


def shaped(coefficient, like):
    """A float64 coefficient per example (N,), shaped to multiply `like` (N, ...), in its dtype.

    Raises:
        TypeError: `like` does not hold floating numbers, which the coefficient would be cut to.
    """
    if not namespace(coefficient).isdtype(like.dtype, "real floating"):
        raise TypeError(f"data must be floating numbers, got {like.dtype}; scale pixels first")
    return per_example(namespace(coefficient).astype(coefficient, like.dtype), like)


def q_sample(x0, eps, level):
    """x_t = √ᾱ x_0 + √(1-ᾱ) ε, a sample of q(x_t | x_0) in one step.

    Args:
        x0: (N, ...), data.
        eps: (N, ...) ~ N(0, I).
        level: (N,), below 0 where its cotangent is wanted.

    Returns:
        x_t: (N, ...).
        pullback: dx -> (d_x0, d_eps, d_level).

    Source: DDPM-3
    """
    signal, noise = signal_and_noise(level, x0)

    def pullback(dx):
        d_level = 0.5 * signal * (x0 - signal / noise * eps)
        return signal * dx, noise * dx, example_sum(d_level * dx)

    return signal * x0 + noise * eps, pullback


def q_posterior(x0, x_t, now, before):
    """The mean and the variance of q(x_s | x_t, x_0).

    With a prediction in the place of x0, the mean of the reverse step.

    Args:
        x0, x_t: (N, ...).
        now, before: (N,).

    Returns:
        mean (N, ...), variance (N,).

    Source: DDPM-6
    """
    c0, c, variance = posterior(now, before)
    return shaped(c0, x0) * x0 + shaped(c, x_t) * x_t, variance


def ddim_step(x0, eps, noise, variance, before):
    """x_s = √ᾱ_s x_0 + √(1-ᾱ_s-σ²) ε + σ z, where x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε.

    Any σ² from 0 to 1-ᾱ_s = kernel(before)[1] leaves q(x_s | x_0) as it is, and a larger one gives
    NaN. σ² = β̃ gives the posterior of the forward process, σ² = 0 a deterministic step. With
    predictions in the place of x0 and eps it is the sampler.

    Args:
        x0, eps, noise: (N, ...).
        variance: σ² (N,).
        before: (N,), the level at s.

    Returns:
        (N, ...).

    Source: [Song 2021]
    """
    xp = namespace(before)
    signal, spread = kernel(before)
    moved = shaped(xp.sqrt(spread - variance), eps) * eps + shaped(xp.sqrt(variance), noise) * noise
    return shaped(signal, x0) * x0 + moved


def q_chain(x0, noise, levels):
    """x_0, x_1, ..., x_T, one step after another: every latent has the shape of the data.

    Args:
        x0: (N, ...).
        noise: (T, N, ...) ~ N(0, I).
        levels: (T+1, N), the first row 0.

    Returns:
        path: (T+1, N, ...).

    Source: DDPM-2, VDM-1, VDM-3
    """
    path = [x0]
    for t in range(1, levels.shape[0]):
        root_alpha, beta = kernel(levels[t, ...], levels[t - 1, ...])
        scale = namespace(beta).sqrt(beta)
        path.append(shaped(root_alpha, x0) * path[-1] + shaped(scale, x0) * noise[t - 1, ...])
    return namespace(x0).stack(path)


def step_log_density(x_t, x_s, now, before):
    """log q(x_t | x_s): (N, ...), (N, ...), (N,), (N,) -> (N,) nats.

    Source: DDPM-1, VDM-2
    """
    root_alpha, beta = kernel(now, before)
    scale = shaped(namespace(beta).sqrt(beta), x_t)
    gap = (x_t - shaped(root_alpha, x_s) * x_s) / scale
    return example_sum(normal_log_pdf(gap) - namespace(scale).log(scale))


def chain_log_density(path, levels):
    """log q(x_1, ..., x_T | x_0) = Σ_t log q(x_t | x_{t-1}).

    Args:
        path: (T+1, N, ...).
        levels: (T+1, N).

    Returns:
        (N,), nats.

    Source: DDPM-2, VDM-3
    """
    steps = range(1, levels.shape[0])
    return sum(
        step_log_density(path[t, ...], path[t - 1, ...], levels[t, ...], levels[t - 1, ...])
        for t in steps
    )


def marginal_variance(level, data_variance):
    """Var x_t = ᾱ s² + 1-ᾱ for data of variance s²: 1 stays 1.

    Args:
        level: (N,).
        data_variance: a number, or (N,).

    Returns:
        (N,).

    Source: VDM-5
    """
    xp = namespace(level)
    return xp.exp(level) * data_variance - xp.expm1(level)


class Shifted:
    """The forward process around a condition x̂: DiffuseVAE's second formulation.

        u_0 = x_0,   u_t = x_t - x̂ for t ≥ 1,   and u is the plain process

    So the condition appears at full strength from t = 1 on and not at all at t = 0. Every formula
    of the plain process holds between `plain` and `shifted`; there is no second diffusion. The step
    q(x_t | x_{t-1}, x̂), the marginal, the posterior and the reverse mean are

        shifted(f(plain(x, level)), level of the result)

    with f the plain process's own, and the base N(x̂, I) is `shifted` of N(0, I).

    Args:
        condition: x̂ (N, ...), the first model's reconstruction.

    Source: DVAE-6, DVAE-7, DVAE-8, DVAE-9, DVAE-10
    """

    def __init__(self, condition):
        self.condition = condition

    def plain(self, x, level):
        """x_t -> u_t: (N, ...), level (N,) -> (N, ...).

        Source: DVAE-6, DVAE-7, DVAE-9, DVAE-10
        """
        return x - self._shift(level)

    def shifted(self, u, level):
        """u_t -> x_t: (N, ...), level (N,) -> (N, ...)."""
        return u + self._shift(level)

    def _shift(self, level):
        """x̂ where the process has begun, 0 at level 0.

        Source: DVAE-9, DVAE-10
        """
        return shaped(namespace(level).astype(level < 0.0, level.dtype), self.condition) * (
            self.condition
        )
