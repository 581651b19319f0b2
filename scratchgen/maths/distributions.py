"""Log-densities, KL divergences and reparameterisation: value and pullback, elementwise, in nats.

Written as costs (negative log-likelihoods), because every loss is a sum of costs and the sum of a
model's terms is -ELBO. Second arguments of normals are log-variances; scales are log-scales.
Discretised densities live on K equal bins of [-1, 1] with centres x = (2k+1)/K - 1 and give all
mass beyond the ends to the end bins, so the K probabilities sum to one.
"""

from scratchgen.core.arrays import namespace
from scratchgen.core.numerics import (
    LOG_2PI,
    expm1_minus,
    log1mexp,
    log_diff_exp,
    log_ndtr,
    logsumexp,
    normal_log_pdf,
    sigmoid,
    softplus,
)


def reparameterise(mean, logvar, eps):
    """z = mean + e^(logvar/2) ⊙ eps, so that z ~ N(mean, e^logvar) when eps ~ N(0, 1).

    Args:
        mean, logvar: (N, K).
        eps: (..., N, K), any number of leading axes.

    Returns:
        z: (..., N, K).
        pullback: dz -> (d_mean, d_logvar), each (N, K): summed over the leading axes of eps.

    Source: VAE-2, VAE-4
    """
    xp = namespace(mean)
    noise = xp.exp(0.5 * logvar) * eps

    def pullback(dz):
        leading = tuple(range(dz.ndim - mean.ndim))
        d_logvar = 0.5 * dz * noise
        if not leading:
            return dz, d_logvar
        return xp.sum(dz, axis=leading), xp.sum(d_logvar, axis=leading)

    return mean + noise, pullback


def normal_nll(x, mean, logvar):
    """-log N(x; mean, e^logvar) = ½ [(x - mean)² e^(-logvar) + logvar + log 2π], elementwise.

    Args:
        x, mean, logvar: (...), same shape; logvar in log squared units of x.

    Returns:
        nll: (...), nats.
        pullback: d_nll -> (dx, d_mean, d_logvar).

    Source: VAE-3, VAE-7
    """
    xp = namespace(mean)
    precision, gap = xp.exp(-logvar), x - mean
    weighted = gap * precision

    def pullback(d_nll):
        dx = d_nll * weighted
        return dx, -dx, 0.5 * d_nll * (1.0 - gap * weighted)

    return 0.5 * (gap * weighted + logvar + LOG_2PI), pullback


def normal_kl(mean_q, logvar_q, mean_p, logvar_p):
    """KL(N(mean_q, e^logvar_q) ‖ N(mean_p, e^logvar_p)), elementwise.

        ½ [e^r - 1 - r + (mean_q - mean_p)² e^(-logvar_p)],   r = logvar_q - logvar_p

    Both summands are non-negative and accurate when q ≈ p, where the textbook form cancels.

    Args:
        mean_q, logvar_q, mean_p, logvar_p: (...), same shape; logvar in log squared data units.

    Returns:
        kl: (...), nats, ≥ 0.
        pullback: d_kl -> (d_mean_q, d_logvar_q, d_mean_p, d_logvar_p).

    Source: VAE-5
    """
    xp = namespace(mean_q)
    gap, precision, r = mean_q - mean_p, xp.exp(-logvar_p), logvar_q - logvar_p

    def pullback(d_kl):
        d_mean = d_kl * gap * precision
        d_r = 0.5 * d_kl * xp.expm1(r)
        return d_mean, d_r, -d_mean, -d_r - 0.5 * d_mean * gap

    return 0.5 * (expm1_minus(r) + gap * gap * precision), pullback


def standard_normal_kl(mean, logvar):
    """KL(N(mean, e^logvar) ‖ N(0, 1)) = ½ [mean² + e^logvar - 1 - logvar], elementwise.

    Args:
        mean, logvar: (...), same shape.

    Returns:
        kl: (...), nats, ≥ 0.
        pullback: d_kl -> (d_mean, d_logvar).

    Source: VAE-5, VAE-3
    """
    xp = namespace(mean)

    def pullback(d_kl):
        return d_kl * mean, 0.5 * d_kl * xp.expm1(logvar)

    return 0.5 * (expm1_minus(logvar) + mean * mean), pullback


def bernoulli_nll(x, logits):
    """-log Bernoulli(x; sigmoid(logits)) = softplus(logits) - x·logits, elementwise.

    Args:
        x: (...), in {0, 1}; values between are the cross-entropy to that probability.
        logits: (...).

    Returns:
        nll: (...), nats.
        pullback: d_nll -> d_logits; x is data and has no cotangent.

    Source: VAE-7
    """
    nll = softplus(logits)
    nll -= x * logits

    def pullback(d_nll):
        d_logits = sigmoid(logits)
        d_logits -= x
        return d_logits * d_nll

    return nll, pullback


def discretised_logistic_nll(x, mean, log_scale, levels: int):
    """-log P(bin of x) under a logistic distribution, elementwise.

        P = σ(a) - σ(b) = σ(a) σ(-b) (1 - e^(b-a)),   a, b = (x ± 1/K - mean) e^(-log_scale)

    The product form has no difference of nearly equal numbers, so neither a far tail nor a wide
    scale loses digits. The lowest bin keeps σ(a) only, the highest σ(-b).

    Args:
        x: (...), bin centres in [-1, 1].
        mean, log_scale: (...).
        levels: K, the number of bins.

    Returns:
        nll: (...), nats.
        pullback: d_nll -> (d_mean, d_log_scale); x is data and has no cotangent.

    Source: [Salimans 2017]
    """
    xp = namespace(mean)
    low, high = _end_bins(x, mean, levels)
    inside = (1.0 - low) * (1.0 - high)
    inverse, half = xp.exp(-log_scale), 1.0 / levels
    gap = x - mean
    a, b, width = (gap + half) * inverse, (gap - half) * inverse, 2.0 * half * inverse
    upper, lower = 1.0 - high, 1.0 - low  # whether the bin has an upper and a lower edge
    nll = upper * softplus(-a)
    nll += lower * softplus(b)
    nll -= inside * log1mexp(width)

    def pullback(d_nll):
        da = -upper * sigmoid(-a) * d_nll
        db = lower * sigmoid(b) * d_nll
        d_width = inside * xp.exp(-width) / xp.expm1(-width) * d_nll
        return -(da + db) * inverse, -(da * a + db * b + d_width * width)

    return nll, pullback


def discretised_normal_nll(x, mean, logvar, levels: int):
    """-log P(bin of x) under a normal distribution, elementwise.

        P = Φ(a) - Φ(b),   a, b = (x ± 1/K - mean) e^(-logvar/2)

    computed as a difference of logarithms on the side of the nearer tail.

    Args:
        x: (...), bin centres in [-1, 1].
        mean, logvar: (...).
        levels: K, the number of bins.

    Returns:
        nll: (...), nats.
        pullback: d_nll -> (d_mean, d_logvar); x is data and has no cotangent.

    Source: DDPM-8, VAE-7
    """
    xp = namespace(mean)
    low, high = _end_bins(x, mean, levels)
    inverse, half = xp.exp(-0.5 * logvar), 1.0 / levels
    gap = x - mean
    a, b = (gap + half) * inverse, (gap - half) * inverse
    flip = gap > 0.0
    near, far = xp.where(flip, -b, a), xp.where(flip, -a, b)  # Φ(near) - Φ(far), both in one tail
    log_p = log_diff_exp(log_ndtr(near), log_ndtr(far))
    log_p = xp.where(low > 0.0, log_ndtr(a), xp.where(high > 0.0, log_ndtr(-b), log_p))

    def pullback(d_nll):
        da = -(1.0 - high) * xp.exp(normal_log_pdf(a) - log_p) * d_nll
        db = (1.0 - low) * xp.exp(normal_log_pdf(b) - log_p) * d_nll
        return -(da + db) * inverse, -0.5 * (da * a + db * b)

    return -log_p, pullback


def categorical_nll(codes, logits):
    """-log softmax(logits)[code], elementwise over the leading axes.

    Args:
        codes: (...), int64 in 0..K-1.
        logits: (..., K).

    Returns:
        nll: (...), nats.
        pullback: d_nll (...) -> d_logits (..., K).

    Source: VAE-7
    """
    xp = namespace(logits)
    total = logsumexp(logits, axis=-1)
    levels = xp.arange(logits.shape[-1], dtype=codes.dtype, device=codes.device)
    chosen = xp.astype(codes[..., None] == levels, total.dtype)  # one-hot: a gather that traces

    def pullback(d_nll):
        return (xp.exp(logits - total[..., None]) - chosen) * d_nll[..., None]

    return total - xp.sum(chosen * logits, axis=-1), pullback


def _end_bins(x, like, levels: int):
    """1 where x lies in the lowest bin, 1 where in the highest, as arrays of `like`'s dtype."""
    xp, edge = namespace(x), 1.0 - 2.0 / levels
    return xp.astype(x < -edge, x.dtype), xp.astype(x > edge, x.dtype)
