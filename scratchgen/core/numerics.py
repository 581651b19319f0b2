"""Stable values, without pullbacks: the functions whose textbook forms overflow or cancel.

Everything here is elementwise (or reduces one axis), keeps the dtype it is given, and uses only the
array API, so it runs on any backend and can be traced.
"""

from math import factorial, log, pi, sqrt

from scratchgen.core.arrays import namespace

LOG_2 = log(2.0)
LOG_2PI = log(2.0 * pi)


def sigmoid(x):
    """1 / (1 + e^-x), as ½ tanh(x/2) + ½: one transcendental, no overflow.

    Accurate in absolute terms. Where the digits of a small value count, take `accurate_sigmoid`;
    for a logarithm, -softplus(-x).
    """
    y = namespace(x).tanh(0.5 * x)
    y *= 0.5
    y += 0.5
    return y


def accurate_sigmoid(x):
    """1 / (1 + e^-x), as e^min(x, 0) / (1 + e^-|x|): with all its digits in both tails."""
    xp = namespace(x)
    return xp.exp(xp.minimum(x, 0.0)) / (1.0 + xp.exp(-xp.abs(x)))


def softplus(x):
    """log(1 + e^x) = max(x, 0) + log1p(e^-|x|), without overflow."""
    xp = namespace(x)
    y = xp.log1p(xp.exp(-xp.abs(x)))
    y += xp.maximum(x, 0.0)
    return y


def expm1_minus(r):
    """e^r - 1 - r ≥ 0, to a relative accuracy of about 1e-14 in float64 and 1e-5 in float32.

    `expm1(r) - r` loses all digits as r → 0, where the value is about r²/2; there the Taylor series
    r² (1/2! + r/3! + r²/4! + ...) takes over.
    """
    xp = namespace(r)
    series = 0.0
    for n in range(8, 2, -1):
        series += 1.0 / factorial(n)
        series *= r
    series += 0.5
    series *= r * r
    return xp.where(xp.abs(r) <= 0.03, series, xp.expm1(r) - r)


def log1mexp(d):
    """log(1 - e^-d) for d > 0, to full relative accuracy at both ends."""
    xp = namespace(d)
    far = xp.log1p(-xp.exp(-xp.maximum(d, LOG_2)))  # which has no value at 0
    return xp.where(d < LOG_2, xp.log(-xp.expm1(-d)), far)


def logsumexp(x, axis: int = -1):
    """log Σ e^x along one axis, which is dropped; the largest term is taken out first.

    Terms may be infinite: of nothing but e^-inf it is -inf, with an e^inf it is inf.
    """
    xp = namespace(x)
    top, most = xp.max(x, axis=axis, keepdims=True), xp.finfo(x.dtype).max
    finite = xp.minimum(xp.maximum(top, -most), most)
    total = xp.sum(xp.exp(x - finite), axis=axis, keepdims=True)
    # the largest term alone adds 1, unless all are e^-inf
    return xp.squeeze(top + xp.log(xp.maximum(total, 1.0)), axis=axis)


def log_ndtr(x):
    """log Φ(x), the log of the standard normal distribution function, accurate in both tails.

    Below 0 the probability itself is never formed, so its logarithm keeps its relative accuracy far
    beyond the smallest representable number.
    """
    xp = namespace(x)
    log_tail = _log_tail_ratio(xp.abs(x)) - 0.5 * x * x  # log Φ(-|x|)
    return xp.where(x < 0.0, log_tail, xp.log1p(-xp.exp(log_tail)))


def log_tail_ratio(x):
    """log Φ(-x) + ½x²: the normal tail without its Gaussian factor, a slow function for x ≥ 0."""
    xp = namespace(x)
    slow, half_square = _log_tail_ratio(xp.abs(x)), 0.5 * x * x
    return xp.where(x > 0.0, slow, xp.log1p(-xp.exp(slow - half_square)) + half_square)


def normal_hazard(x):
    """φ(x) / Φ(-x), the inverse Mills ratio: about x for large x, φ(x) for very negative x."""
    return namespace(x).exp(-log_tail_ratio(x) - 0.5 * LOG_2PI)


def normal_log_pdf(x):
    """log φ(x) = -½ (x² + log 2π)."""
    return -0.5 * (x * x + LOG_2PI)


def _log_tail_ratio(x):
    """log Φ(-x) + ½x² for x ≥ 0.

    With z = x/√2 and t = 2/(2+z) in (0, 1], erfc(z) = t e^(-z² + P(t)), where P is smooth on the
    whole interval and is evaluated as a Chebyshev series.
    """
    t = 2.0 / (2.0 + x * sqrt(0.5))
    return namespace(x).log(0.5 * t) + _chebyshev(2.0 * t - 1.0)


def _chebyshev(u):
    """Σ c_n T_n(u) by Clenshaw's recurrence."""
    b1, b2 = 0.0, 0.0
    for c in reversed(_LOG_ERFCX[1:]):
        b1, b2 = 2.0 * u * b1 - b2 + c, b1
    return u * b1 - b2 + _LOG_ERFCX[0]


# Chebyshev coefficients of log(erfc(z) e^z² / t) in u = 2t - 1, t = 2/(2+z), z ≥ 0, projected at
# 200 nodes with 60-digit arithmetic; the first one left out is below 1e-18.
_LOG_ERFCX = (
    -0.6513268598908547,
    0.6419697923564902,
    0.019476473204185836,
    -0.009561514786808632,
    -0.0009465953444820369,
    0.00036683949785276145,
    4.252332480690777e-05,
    -2.0278578112534242e-05,
    -1.6242900046470256e-06,
    1.3036558355805232e-06,
    1.5626441722066142e-08,
    -8.523809591492654e-08,
    6.5290544390988515e-09,
    5.059343495551469e-09,
    -9.91364156493033e-10,
    -2.273651222931836e-10,
    9.646791102015527e-11,
    2.3940380830391146e-12,
    -6.886027526497553e-12,
    8.944879273090725e-13,
    3.130921399342958e-13,
    -1.1270822361367252e-13,
    3.810905255189232e-16,
    7.106097613609237e-15,
    -1.5230282014571043e-15,
    -9.457494571291233e-17,
    1.210237189224279e-16,
    -2.816663087747177e-17,
)


def level_centres(codes, levels: int):
    """Codes 0..K-1 to the centres of K equal bins of [-1, 1]: x = (2k + 1)/K - 1.

    The one place where data are scaled; `level_codes` is the one place where that is undone.
    """
    return (2.0 * codes + 1.0) / levels - 1.0


def level_codes(x, levels: int):
    """The code 0..K-1 (int64) of the bin of [-1, 1] that x falls into; the end bins are open."""
    xp = namespace(x)
    k = xp.floor((x + 1.0) * (0.5 * levels))
    return xp.astype(xp.clip(k, 0.0, levels - 1.0), xp.int64)
