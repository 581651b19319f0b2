"""The score s_t(x) = ∇ log q(x_t = x): what it is good for, how it is learned, how it generates.

Adding noise turns a law into one whose score is the mean of what was added. So whoever predicts the
noise knows the score, and whoever knows the score of every level can run the process backwards.
Levels are log ᾱ, (N,); a score has the shape of its x, (N, ...).
"""

from scratchgen.core.arrays import example_sum, namespace, per_example
from scratchgen.maths.forward_process import kernel, shaped, signal_and_noise


def tweedie(x, score, variance):
    """E[θ | x] = x + σ² ∇ log p(x) where x ~ N(θ, σ² I), whatever the prior of θ.

    The prior does matter, but only through the marginal p(x) whose score this is.

    Args:
        x: (N, ...).
        score: (N, ...), of the law of x at x.
        variance: σ² (N,).

    Returns:
        (N, ...).

    Source: SCORE-2, ERR-25
    """
    return x + shaped(variance, x) * score


def denoised(x_t, score, level):
    """E[x_0 | x_t] = (x_t + (1-ᾱ) s)/√ᾱ: Tweedie's formula for θ = √ᾱ x_0.

    Args:
        x_t, score: (N, ...).
        level: (N,).

    Returns:
        (N, ...), the prediction of x_0 of least mean squared error.

    Source: SCORE-3
    """
    signal, variance = kernel(level)
    return tweedie(x_t, score, variance) / shaped(signal, x_t)


def eps_from_score(score, level):
    """E[ε | x_t] = -√(1-ᾱ) s.

    Args:
        score: (N, ...).
        level: (N,).

    Returns:
        eps: (N, ...).
        pullback: d_eps -> d_score.

    Source: SCORE-4, SCORE-3
    """
    _, noise = signal_and_noise(level, score)
    return -noise * score, lambda d_eps: -noise * d_eps


def score_from_eps(eps, level):
    """s = -E[ε | x_t]/√(1-ᾱ).

    Args:
        eps: (N, ...), a prediction of the noise in x_t.
        level: (N,), below 0: clean data have no noise to predict.

    Returns:
        score: (N, ...).
        pullback: d_score -> d_eps.

    Source: SCORE-4, SCORE-3
    """
    _, noise = signal_and_noise(level, eps)
    return -eps / noise, lambda d_score: -d_score / noise


def denoising_score_matching(score, eps, level):
    """‖ŝ(x_t) - ∇ log q(x_t | x_0)‖² = ‖ŝ + ε/√(1-ᾱ)‖², a loss whose minimum is the score.

    Its mean is that of ‖ŝ - s_t‖² plus D/(1-ᾱ) - E‖s_t‖², which no ŝ changes.

    Args:
        score: ŝ (N, ...), at x_t = √ᾱ x_0 + √(1-ᾱ) ε.
        eps: (N, ...), the noise in x_t.
        level: (N,), below 0.

    Returns:
        loss: (N,).
        pullback: d_loss (N,) -> d_score.

    Source: SCORE-5
    """
    _, noise = signal_and_noise(level, score)
    gap = score + eps / noise
    return example_sum(gap * gap), lambda d_loss: 2.0 * per_example(d_loss, gap) * gap


def reverse_step(x_t, score, noise, variance, now, before):
    """x_s = (x_t + β s_t)/√α + σ z: the reverse process from t to s < t.

    With the exact score the first part is E[x_s | x_t].

    Args:
        x_t: (N, ...).
        score: (N, ...), at x_t.
        noise: z (N, ...) ~ N(0, I).
        variance: σ² (N,), such as β or the posterior's β̃.
        now, before: (N,), levels at t and at s.

    Returns:
        (N, ...).

    Source: SCORE-6
    """
    root_alpha, beta = kernel(now, before)
    mean = tweedie(x_t, score, beta) / shaped(root_alpha, x_t)
    return mean + shaped(namespace(variance).sqrt(variance), x_t) * noise


def reverse_chain(score, x_last, noise, variances, levels):
    """x_T, ..., x_1, x_0 by `reverse_step`, the last step without noise.

    A Density is the score `lambda x, level: density.noised(float(level[0])).score(x)`, and a
    Schedule has levels `schedule.log_alpha_bar[:, None]` and variances `schedule.beta[:, None]` or
    `schedule.posterior_variance[:, None]`, one row for all examples.

    Args:
        score: (x_t (N, ...), level) -> (N, ...).
        x_last: x_T (N, ...).
        noise: (T, N, ...); the step from t to t - 1 takes noise[t - 1], and noise[0] is not used.
        variances: (T+1, N) or (T+1, 1), σ_t²; rows 0 and 1 are not used.
        levels: (T+1, N) or (T+1, 1), the first row 0.

    Returns:
        path: (T+1, N, ...), in the order of t: path[0] is the sample.

    Source: SCORE-6, SCORE-8
    """
    path = [x_last]
    for t in range(levels.shape[0] - 1, 0, -1):
        now, before = levels[t, ...], levels[t - 1, ...]
        variance = variances[t, ...] if t > 1 else namespace(now).zeros_like(now)
        x_t, z = path[-1], noise[t - 1, ...]
        path.append(reverse_step(x_t, score(x_t, now), z, variance, now, before))
    return namespace(x_last).stack(path[::-1])


def reverse_sde_drift(x, score, beta):
    """-½ β x - β s: dX = (-½ β X - β s) dt + √β dW, run from t = 1 down to 0.

    Undoes the forward process dX = -½ β X dt + √β dW in law.

    Args:
        x, score: (N, ...).
        beta: β(t) (N,), the rate of the noise.

    Returns:
        (N, ...).

    Source: SCORE-7
    """
    return -shaped(beta, x) * (0.5 * x + score)


def probability_flow_drift(x, score, beta):
    """-½ β x - ½ β s: dX/dt of the flow whose law is the forward process's at every t.

    Args:
        x, score: (N, ...).
        beta: β(t) (N,), the rate of the noise.

    Returns:
        (N, ...).

    Source: SCORE-7
    """
    return -0.5 * shaped(beta, x) * (x + score)
