"""The bound of a diffusion model: its terms L_T, L_{t-1} and L_0, their weights, and three splits.

    -ELBO = L_T + Σ_{t=2..T} L_{t-1} + L_0

The terms are costs in nats; data and the levels of fixed schedules have no cotangents. The splits
take a whole path and a reverse model, which is any callable (x_t, t) -> (mean, logvar), each
(N, ...), of p_θ(x_{t-1} | x_t); their means over paths are the same ELBO, their variances are not.
"""

from scratchgen.core.arrays import example_sum, namespace, per_example
from scratchgen.core.numerics import expm1_minus, normal_log_pdf
from scratchgen.maths.distributions import normal_kl, normal_nll, standard_normal_kl
from scratchgen.maths.forward_process import (
    chain_log_density,
    log_snr,
    posterior,
    q_posterior,
    q_sample,
    shaped,
    signal_and_noise,
    step_log_density,
)


def prior_kl(x0, level):
    """L_T = KL(N(√ᾱ x_0, (1-ᾱ) I) ‖ N(0, I)) = ½ Σ [ᾱ x_0² - ᾱ - log(1-ᾱ)].

    Args:
        x0: (N, ...), data.
        level: (N,), the last level.

    Returns:
        kl: (N,), nats.
        pullback: d_kl -> (d_x0, d_level).

    Source: VDM-6, VDM-9, DDPM-8
    """
    signal, noise = signal_and_noise(level, x0)
    logvar = 2.0 * namespace(noise).log(noise)
    kl, kl_pullback = standard_normal_kl(signal * x0, logvar)

    def pullback(d_kl):
        d_mean, d_logvar = kl_pullback(per_example(d_kl, x0))
        odds = signal * signal / (noise * noise)
        return signal * d_mean, example_sum(0.5 * signal * x0 * d_mean - odds * d_logvar)

    return example_sum(kl), pullback


def transition_kl(x0, x0_hat, logvar, now, before):
    """L_{t-1} = KL(q(x_s | x_t, x_0) ‖ N(c₀ x̂₀ + c x_t, e^logvar)) at given x_0 and x_t.

        ½ Σ [e^r - 1 - r + c₀² (x_0 - x̂₀)² e^(-logvar)],   r = log β̃ - logvar

    x_t cancels from the difference of the means, so it is not formed. At s = 0, β̃ is 0 and there
    is no such term: L_0 is a likelihood.

    Args:
        x0: (N, ...), data.
        x0_hat, logvar: (N, ...), the prediction, and the reverse step's log-variance.
        now, before: (N,), before < 0.

    Returns:
        kl: (N,), nats.
        pullback: d_kl -> (d_x0_hat, d_logvar).

    Source: DDPM-8, DDPM-9, VDM-9
    """
    c0, _, variance = posterior(now, before)
    scale = shaped(c0, x0)
    true_logvar = shaped(namespace(variance).log(variance), x0)
    kl, kl_pullback = normal_kl(scale * x0, true_logvar, scale * x0_hat, logvar)

    def pullback(d_kl):
        _, _, d_mean, d_logvar = kl_pullback(per_example(d_kl, x0))
        return scale * d_mean, d_logvar

    return example_sum(kl), pullback


def squared_error(target, prediction):
    """‖target - prediction‖² per example: with ε and ε̂ the loss L_simple, whose weight is 1.

    Args:
        target, prediction: (N, ...).

    Returns:
        (N,), and its pullback: d -> d_prediction.

    Source: DDPM-12, DDPM-13
    """
    gap = prediction - target
    return example_sum(gap * gap), lambda d: 2.0 * per_example(d, gap) * gap


def epsilon_weight(variance, now, before):
    """λ_t = β²/(2σ² α (1-ᾱ_t)): L_{t-1} = E[λ_t ‖ε - ε̂‖²] + C_t.

    It is the weight of ‖x_0 - x̂₀‖² over SNR_t. With σ² = β̃ it is ½ (e^(γ_t - γ_s) - 1), and
    infinite at s = 0.

    Args:
        variance: (N,), σ² of the reverse step.
        now, before: (N,).

    Returns:
        (N,).

    Source: DDPM-12
    """
    return clean_weight(variance, now, before) / namespace(now).exp(log_snr(now))


def clean_weight(variance, now, before):
    """c₀²/(2σ²) = ½ (SNR_s - SNR_t) β̃/σ²: L_{t-1} = E[this ‖x_0 - x̂₀‖²] + C_t.

    Args:
        variance: (N,), σ² of the reverse step.
        now, before: (N,).

    Returns:
        (N,).

    Source: DDPM-9, DDPM-14
    """
    c0, _, _ = posterior(now, before)
    return c0 * c0 / (2.0 * variance)


def variance_constant(variance, now, before, dims: int):
    """C_t = D/2 [β̃/σ² - 1 - log(β̃/σ²)] ≥ 0: what a variance other than β̃ costs.

    Args:
        variance: (N,), σ² of the reverse step.
        now, before: (N,).
        dims: D.

    Returns:
        (N,), nats; 0 where σ² = β̃.

    Source: DDPM-9
    """
    log = namespace(variance).log
    return 0.5 * dims * expm1_minus(log(posterior(now, before)[2]) - log(variance))


def optimal_variance(error, now, before, dims: int):
    """σ² = β̃ + c₀² E‖x_0 - x̂₀‖²/D: the one variance per step that minimises E[L_{t-1}].

    Args:
        error: (N,), E‖x_0 - x̂₀‖² summed over the D dimensions.
        now, before: (N,).
        dims: D.

    Returns:
        (N,).

    Source: DDPM-17
    """
    c0, _, variance = posterior(now, before)
    return variance + c0 * c0 * error / dims


def joint_log_density(path, reverse):
    """log p_θ(x_0, ..., x_T) = log N(x_T; 0, I) + Σ_{t=1..T} log p_θ(x_{t-1} | x_t).

    Args:
        path: (T+1, N, ...).
        reverse: (x_t, t) -> (mean, logvar) of p_θ(x_{t-1} | x_t), each (N, ...).

    Returns:
        (N,), nats.

    Source: VDM-4, DDPM-7
    """
    steps = range(1, path.shape[0])
    return base_log_density(path[-1, ...]) + sum(
        reverse_log_density(path[t - 1, ...], path[t, ...], t, reverse) for t in steps
    )


def base_log_density(x):
    """log N(x; 0, I): (N, ...) -> (N,) nats.

    Source: VDM-4, VDM-6
    """
    return example_sum(normal_log_pdf(x))


def reverse_log_density(x_before, x_t, t: int, reverse):
    """log p_θ(x_{t-1} | x_t): (N, ...), (N, ...) -> (N,) nats.

    Source: DDPM-7
    """
    return -example_sum(normal_nll(x_before, *reverse(x_t, t))[0])


def path_bound(path, reverse, levels):
    """log p_θ(x_0, ..., x_T) - log q(x_1, ..., x_T | x_0) on a path drawn from q.

    Args:
        path: (T+1, N, ...), as `q_chain` draws it.
        reverse: as for `joint_log_density`.
        levels: (T+1, N).

    Returns:
        (N,), nats; its mean over paths is the ELBO.

    Source: VDM-7, ELBO-6
    """
    return joint_log_density(path, reverse) - chain_log_density(path, levels)


def consistency_split(path, reverse, levels):
    """-ELBO as (reconstruction, prior matching, consistency), on a path drawn from q.

        -log p_θ(x_0 | x_1)      log q(x_T | x_{T-1})/p(x_T)
        Σ_{t=1..T-1} log q(x_t | x_{t-1})/p_θ(x_t | x_{t+1})

    The last is a log-ratio under q(x_{t-1}, x_t, x_{t+1} | x_0) and no KL divergence: given both
    neighbours, x_t does not follow q(x_t | x_{t-1}).

    Args:
        path, reverse, levels: as for `path_bound`.

    Returns:
        three (N,), nats.

    Source: VDM-8
    """
    last, base = path.shape[0] - 1, base_log_density(path[-1, ...])
    forward = [
        step_log_density(path[t, ...], path[t - 1, ...], levels[t, ...], levels[t - 1, ...])
        for t in range(1, last + 1)
    ]
    back = [
        reverse_log_density(path[t, ...], path[t + 1, ...], t + 1, reverse) for t in range(last)
    ]
    ratios = (forward[t - 1] - back[t] for t in range(1, last))
    return -back[0], forward[-1] - base, sum(ratios, namespace(base).zeros_like(base))


def posterior_split(x0, noise, reverse, levels):
    """-ELBO as [L_T, L_{T-1}, ..., L_1, L_0], each term with an x_t of its own.

        KL(q(x_T | x_0) ‖ p(x_T))      KL(q(x_{t-1} | x_t, x_0) ‖ p_θ(x_{t-1} | x_t))
        -log p_θ(x_0 | x_1)

    Every KL is in closed form, so a single random term of the sum has a far smaller variance than
    one of the other splits.

    Args:
        x0: (N, ...).
        noise: (T, N, ...) ~ N(0, I); row t - 1 makes x_t.
        reverse, levels: as for `path_bound`.

    Returns:
        T+1 arrays (N,), nats.

    Source: VDM-9, DDPM-8
    """
    last = levels.shape[0] - 1
    terms = [prior_kl(x0, levels[last, ...])[0]]
    for t in range(last, 1, -1):
        now, before = levels[t, ...], levels[t - 1, ...]
        x_t, _ = q_sample(x0, noise[t - 1, ...], now)
        mean, variance = q_posterior(x0, x_t, now, before)
        logvar = shaped(namespace(variance).log(variance), x0)
        terms.append(example_sum(normal_kl(mean, logvar, *reverse(x_t, t))[0]))
    x_1, _ = q_sample(x0, noise[0, ...], levels[1, ...])
    return [*terms, -reverse_log_density(x0, x_1, 1, reverse)]
