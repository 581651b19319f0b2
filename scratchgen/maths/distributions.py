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
    level_codes,
    log1mexp,
    log_ndtr,
    log_tail_ratio,
    logsumexp,
    normal_hazard,
    normal_log_pdf,
    sigmoid,
    softplus,
)

# below this width in standard deviations, times 1 + c, a bin's mass is a series, to 1e-12
NARROW = 0.05


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

    Source: VAE-7
    """
    inverse = namespace(mean).exp(-0.5 * logvar)
    scaled = (x - mean) * inverse

    def pullback(d_nll):
        dx = d_nll * scaled * inverse
        return dx, -dx, 0.5 * d_nll * (1.0 - scaled * scaled)

    return 0.5 * (scaled * scaled + logvar + LOG_2PI), pullback


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
    kl, residual_pullback = residual_normal_kl(mean_q - mean_p, logvar_q - logvar_p, logvar_p)

    def pullback(d_kl):
        d_mean, d_r, d_logvar_p = residual_pullback(d_kl)
        return d_mean, d_r, -d_mean, d_logvar_p - d_r

    return kl, pullback


def residual_normal_kl(d_mean, d_logvar, logvar):
    """KL(N(m + Δ, e^(λ+r)) ‖ N(m, e^λ)) = ½ [e^r - 1 - r + Δ² e^(-λ)], elementwise; m cancels.

    Args:
        d_mean, d_logvar: (...), Δ and r, by how much q departs from p.
        logvar: (...), λ, that of p.

    Returns:
        kl: (...), nats, ≥ 0.
        pullback: d_kl -> (d_d_mean, d_d_logvar, d_logvar).

    Source: VAE-5, [Vahdat 2020]
    """
    xp = namespace(d_mean)
    inverse = xp.exp(-0.5 * logvar)
    scaled = d_mean * inverse

    def pullback(d_kl):
        return (
            d_kl * scaled * inverse,
            0.5 * d_kl * xp.expm1(d_logvar),
            -0.5 * d_kl * scaled * scaled,
        )

    return 0.5 * (expm1_minus(d_logvar) + scaled * scaled), pullback


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
    """-log Bernoulli(x; sigmoid(l)) = max(l, 0) - x·l + log1p(e^-|l|), elementwise.

    Summed in that order, because for a confident and right answer the first two cancel exactly.

    Args:
        x: (...), in {0, 1}; values between are the cross-entropy to that probability.
        logits: (...).

    Returns:
        nll: (...), nats.
        pullback: d_nll -> d_logits; x is data and has no cotangent.

    Source: VAE-7
    """
    xp = namespace(logits)
    nll = xp.maximum(logits, 0.0)
    nll -= x * logits
    nll += xp.log1p(xp.exp(-xp.abs(logits)))

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
    low, high = _end_bins(x, levels)
    inside = (1.0 - low) * (1.0 - high)
    inverse, half = xp.exp(-log_scale), 1.0 / levels
    gap = x - mean
    a, b, width = (gap + half) * inverse, (gap - half) * inverse, 2.0 * half * inverse
    upper, lower = 1.0 - high, 1.0 - low  # whether the bin has an upper and a lower edge
    above, below = softplus(-a), softplus(b)
    nll = upper * above
    nll += lower * below
    nll -= inside * log1mexp(width)

    def pullback(d_nll):
        da = -upper * xp.exp(-above - a) * d_nll  # σ(-a), with its digits in the tail
        db = lower * xp.exp(b - below) * d_nll  # σ(b)
        d_width = inside * xp.exp(-width) / xp.expm1(-width) * d_nll
        return -(da + db) * inverse, -(da * a + db * b + d_width * width)

    return nll, pullback


def discretised_normal_nll(x, mean, logvar, levels: int):
    """-log P(bin of x) under a normal distribution, elementwise.

    In units of the standard deviation let c ≥ 0 be the distance from the mean to the bin's centre
    and w its width; u, v = c ∓ w/2 are its edges. With the tail Φ(-u) of the nearer edge,

        P = Φ(-u) - Φ(-v) = Φ(-u) (1 - e^-δ),   δ = log Φ(-u) - log Φ(-v)

    δ is cw plus a difference of slowly varying functions, and φ/Φ is the hazard, so no large
    numbers are subtracted however far the tail. Where the bin is narrow δ itself cancels, and

        P = φ(c) w (1 + w²(c² - 1)/24 + w⁴(c⁴ - 6c² + 3)/1920 + ...)

    The end bins keep all mass beyond their inner edge.

    Args:
        x: (...), bin centres in [-1, 1].
        mean, logvar: (...).
        levels: K, the number of bins.

    Returns:
        nll: (...), nats.
        pullback: d_nll -> (d_mean, d_logvar); x is data and has no cotangent.

    Source: DDPM-8
    """
    xp = namespace(mean)
    low, high = _end_bins(x, levels)
    end, inverse = low + high, xp.exp(-0.5 * logvar)
    gap = (x - mean) * inverse
    c, w = xp.abs(gap), (2.0 / levels) * inverse
    edge = 0.5 * w + (low - high) * gap  # how far the mean lies inside an end bin's inner edge

    narrow = w + c * w < NARROW
    wn = xp.where(narrow, w, NARROW)  # the series is for these alone
    cn = xp.where(narrow, c, wn)
    s2, s4 = (cn * cn - 1.0) / 24.0, (cn**4 - 6.0 * cn * cn + 3.0) / 1920.0
    series = 1.0 + wn**2 * s2 + wn**4 * s4
    log_narrow = normal_log_pdf(cn) + xp.log(wn * series)

    u, v = c - 0.5 * w, c + 0.5 * w
    delta = xp.where(narrow, wn, c * w + log_tail_ratio(u) - log_tail_ratio(v))
    log_far = log_ndtr(-u) + log1mexp(delta)

    log_p = xp.where(end > 0.0, log_ndtr(edge), xp.where(narrow, log_narrow, log_far))

    def pullback(d_nll):
        inside = -xp.expm1(-delta)
        near, far = normal_hazard(u) / inside, normal_hazard(v) * xp.exp(-delta) / inside
        series_c = wn**2 * cn / 12.0 + wn**4 * (cn**3 - 3.0 * cn) / 480.0
        w_series_w = 2.0 * wn**2 * s2 + 4.0 * wn**4 * s4
        dc = xp.where(narrow, series_c / series - cn, far - near)
        w_dw = xp.where(narrow, w_series_w / series + 1.0, 0.5 * w * (near + far))
        hazard = normal_hazard(-edge)
        d_gap = (1.0 - end) * xp.sign(gap) * dc + (low - high) * hazard
        d_scale = (1.0 - end) * (c * dc + w_dw) + end * hazard * edge
        return d_nll * d_gap * inverse, 0.5 * d_nll * d_scale

    return -log_p, pullback


def categorical_nll(codes, logits):
    """-log softmax(logits)[code], elementwise over the leading axes.

    Args:
        codes: (...), int64 in 0..K-1.
        logits: (..., K); -inf for a class that cannot be.

    Returns:
        nll: (...), nats.
        pullback: d_nll (...) -> d_logits (..., K).

    Source: [Bishop 2006]
    """
    xp = namespace(logits)
    total = logsumexp(logits)
    levels = xp.arange(logits.shape[-1], device=codes.device)
    chosen = codes[..., None] == levels  # one-hot: a gather that traces

    def pullback(d_nll):
        d_logits = xp.exp(logits - total[..., None])
        d_logits -= xp.astype(chosen, d_logits.dtype)
        d_logits *= d_nll[..., None]
        return d_logits

    return total - xp.sum(xp.where(chosen, logits, 0.0), axis=-1), pullback


def _end_bins(x, levels: int):
    """1 where x lies in the lowest bin, and 1 where in the highest, as floating arrays."""
    xp, codes = namespace(x), level_codes(x, levels)
    return xp.astype(codes == 0, x.dtype), xp.astype(codes == levels - 1, x.dtype)
