"""What a denoiser's output means: six ways to say the same x̂₀, and the exact ways between them.

With s = √ᾱ, n = √(1-ᾱ) and x_t = s x₀ + n ε, the affine ones are

                target of ŷ      x̂₀                 ε̂
    Epsilon     ε                (x_t - n ŷ)/s      ŷ
    Clean       x₀               ŷ                  (x_t - s ŷ)/n
    Velocity    s ε - n x₀       s x_t - n ŷ        n x_t + s ŷ
    Score       -ε/n             (x_t + n² ŷ)/s     -n ŷ
    Mean        c₀ x₀ + c x_t    (ŷ - c x_t)/c₀     (x_t - s x̂₀)/n

and `KWay` gives one logit for each of K levels of a pixel.
"""

from abc import ABC, abstractmethod

from scratchgen.core.arrays import namespace
from scratchgen.core.numerics import level_centres, level_codes, logsumexp
from scratchgen.maths.distributions import categorical_nll
from scratchgen.maths.forward_process import kernel, posterior, shaped, signal_and_noise


class Parameterisation(ABC):
    """How x̂₀ and ε̂ follow from a net's output ŷ and from x_t.

    Pullbacks have no cotangent of the levels, which are fixed in most models; where they are
    learned, `epsilon_slope` is what is missing.
    """

    @abstractmethod
    def clean(self, output, x_t, now, before):
        """x̂₀ (N, ...) and its pullback: d -> (d_output, d_x_t)."""

    @abstractmethod
    def clean_slope(self, output, x_t, now, before):
        """∂x̂₀/∂now (N, ...) at a given output and x_t, per unit of log ᾱ."""

    def epsilon_slope(self, output, x_t, now, before):
        """∂ε̂/∂now at a given output and x_t: what a learned noise schedule feels of the level.

            ∂ε̂/∂ℓ = -(s/n) (½ x̂₀ - ½ (s/n) ε̂ + ∂x̂₀/∂ℓ),   from ∂s/∂ℓ = ½ s,  ∂n/∂ℓ = -½ s²/n

        Args:
            output: the net's.
            x_t: (N, ...).
            now, before: (N,), levels at t and at s < t.

        Returns:
            (N, ...), per unit of log ᾱ.

        Source: [Kingma 2021]
        """
        signal, noise = signal_and_noise(now, x_t)
        clean, _ = self.clean(output, x_t, now, before)
        epsilon, _ = self.epsilon(output, x_t, now, before)
        slope = self.clean_slope(output, x_t, now, before)
        ratio = signal / noise
        return -ratio * (0.5 * clean - 0.5 * ratio * epsilon + slope)

    def epsilon(self, output, x_t, now, before):
        """ε̂ = (x_t - √ᾱ x̂₀)/√(1-ᾱ), (N, ...), and its pullback: d -> (d_output, d_x_t).

        Args:
            output: the net's (N, ...).
            x_t: (N, ...).
            now, before: (N,), levels at t and at s < t.

        Source: DDPM-14
        """
        signal, noise = signal_and_noise(now, x_t)
        clean, clean_pullback = self.clean(output, x_t, now, before)

        def pullback(d):
            d_output, d_x_t = clean_pullback(-signal / noise * d)
            return d_output, d_x_t + d / noise

        return (x_t - signal * clean) / noise, pullback


class Affine(Parameterisation):
    """x̂₀ = a ŷ + b x_t and ε̂ = a' ŷ + b' x_t, with coefficients that depend on the level only.

    For these the loss is the same in every parameterisation, up to a number:
    ‖ε - ε̂‖² = a'² ‖target - ŷ‖².
    """

    @abstractmethod
    def coefficients(self, now, before):
        """((a, b), (a', b')), each a number or (N,)."""

    @abstractmethod
    def slopes(self, now, before):
        """(∂a/∂now, ∂b/∂now), each (N,), per unit of log ᾱ."""

    @abstractmethod
    def target(self, x0, eps, now, before):
        """What ŷ should be: x0, eps (N, ...) -> (N, ...)."""

    def clean(self, output, x_t, now, before):
        """x̂₀ = a ŷ + b x_t, and its pullback: d -> (d_output, d_x_t)."""
        return _combine(self.coefficients(now, before)[0], output, x_t)

    def clean_slope(self, output, x_t, now, before):
        """∂x̂₀/∂now = ∂a/∂now ŷ + ∂b/∂now x_t, (N, ...).

        Source: [Kingma 2021]
        """
        slope, _ = _combine(self.slopes(now, before), output, x_t)
        return slope

    def epsilon(self, output, x_t, now, before):
        """ε̂ = a' ŷ + b' x_t, and its pullback: d -> (d_output, d_x_t)."""
        return _combine(self.coefficients(now, before)[1], output, x_t)


class Epsilon(Affine):
    """The net predicts the noise: ŷ = ε̂.

    Source: DDPM-11, DDPM-14
    """

    def coefficients(self, now, before):
        """x̂₀ = (x_t - n ŷ)/s, ε̂ = ŷ."""
        s, n = _signal_and_noise(now)
        xp = namespace(s)
        return (-n / s, 1.0 / s), (xp.ones_like(s), xp.zeros_like(s))

    def slopes(self, now, before):
        """(½/(s n), -½/s).

        Source: [Kingma 2021]
        """
        s, n = _signal_and_noise(now)
        return 0.5 / (s * n), -0.5 / s

    def target(self, x0, eps, now, before):
        """ε."""
        return eps


class Clean(Affine):
    """The net predicts the data: ŷ = x̂₀.

    Source: DDPM-14
    """

    def coefficients(self, now, before):
        """x̂₀ = ŷ, ε̂ = (x_t - s ŷ)/n."""
        s, n = _signal_and_noise(now)
        xp = namespace(s)
        return (xp.ones_like(s), xp.zeros_like(s)), (-s / n, 1.0 / n)

    def slopes(self, now, before):
        """(0, 0).

        Source: [Kingma 2021]
        """
        zero = namespace(now).zeros_like(now)
        return zero, zero

    def target(self, x0, eps, now, before):
        """x₀."""
        return x0


class Velocity(Affine):
    """The net predicts v = s ε - n x₀: x_t turned by a right angle in the plane of x₀ and ε.

    Source: DDPM-14, [Salimans 2022]
    """

    def coefficients(self, now, before):
        """x̂₀ = s x_t - n ŷ, ε̂ = n x_t + s ŷ."""
        s, n = _signal_and_noise(now)
        return (-n, s), (s, n)

    def slopes(self, now, before):
        """(½ s²/n, ½ s).

        Source: [Kingma 2021]
        """
        s, n = _signal_and_noise(now)
        return 0.5 * s * s / n, 0.5 * s

    def target(self, x0, eps, now, before):
        """s ε - n x₀."""
        signal, noise = signal_and_noise(now, x0)
        return signal * eps - noise * x0


class Score(Affine):
    """The net predicts the score: ŷ = -ε̂/n.

    Source: DDPM-14, SCORE-4
    """

    def coefficients(self, now, before):
        """x̂₀ = (x_t + n² ŷ)/s, ε̂ = -n ŷ."""
        s, n = _signal_and_noise(now)
        return (n * n / s, 1.0 / s), (-n, namespace(n).zeros_like(n))

    def slopes(self, now, before):
        """(-s - ½ n²/s, -½/s).

        Source: [Kingma 2021]
        """
        s, n = _signal_and_noise(now)
        return -s - 0.5 * n * n / s, -0.5 / s

    def target(self, x0, eps, now, before):
        """∇ log q(x_t | x_0) = -ε/n."""
        return -eps / signal_and_noise(now, x0)[1]


class Mean(Affine):
    """The net predicts the mean of the reverse step: ŷ = c₀ x̂₀ + c x_t.

    Source: DDPM-14
    """

    def coefficients(self, now, before):
        """x̂₀ = (ŷ - c x_t)/c₀, ε̂ = (x_t - s x̂₀)/n."""
        (s, n), (c0, c, _) = _signal_and_noise(now), posterior(now, before)
        return (1.0 / c0, -c / c0), (-s / (n * c0), (1.0 + s * c / c0) / n)

    def slopes(self, now, before):
        """(s_s s² n_s²/m², -n_s² s (½/m + s²/m²)), with s_s, n_s at `before` and m = s_s² - s².

        Source: [Kingma 2021]
        """
        (s, _), (s_s, n_s) = _signal_and_noise(now), _signal_and_noise(before)
        square, m = n_s * n_s, s_s * s_s - s * s
        return s_s * s * s * square / (m * m), -square * s * (0.5 / m + s * s / (m * m))

    def target(self, x0, eps, now, before):
        """The mean of q(x_s | x_t, x_0), c₀ x_0 + c x_t."""
        signal, noise = signal_and_noise(now, x0)
        c0, c, _ = posterior(now, before)
        return shaped(c0, x0) * x0 + shaped(c, x0) * (signal * x0 + noise * eps)


class KWay(Parameterisation):
    """The net gives each pixel K logits, a prior over its levels x_k; x̂₀ is the posterior mean.

        p_k ∝ e^(logit_k) N(x_t; s x_k, n²),   x̂₀ = Σ_k p_k x_k

    So x_t itself decides among the levels where there is little noise, and the net where there is
    much. There must be some: at level 0 nothing is left to decide.

    Args:
        levels: K ≥ 2.

    Raises:
        ValueError: K is below 2.

    Source: DDPM-14, ELBO-1
    """

    def __init__(self, levels: int):
        if levels < 2:
            raise ValueError(f"a pixel needs at least 2 levels, got {levels}")
        self.levels = levels

    def centres(self, like):
        """The levels x_k (K,), the centres of K bins of [-1, 1], in the dtype of `like`."""
        codes = namespace(like).arange(self.levels, dtype=like.dtype, device=like.device)
        return level_centres(codes, self.levels)

    def log_probabilities(self, logits, x_t, now):
        """log p_k: logits (N, ..., C·K), x_t (N, ..., C), now (N,) -> (N, ..., C, K).

        Source: DDPM-14, ELBO-1
        """
        xp = namespace(logits)
        signal, noise = signal_and_noise(now, x_t)
        gap = (x_t / noise)[..., None] - (signal / noise)[..., None] * self.centres(x_t)
        joint = xp.reshape(logits, gap.shape) - 0.5 * gap * gap
        return joint - logsumexp(joint)[..., None]

    def nll(self, x, logits, x_t, now):
        """-log p_k at the level k of x: what the net says of x_0 once it has seen x_t.

        Args:
            x, x_t: (N, ..., C); x on the centres of K bins of [-1, 1].
            logits: (N, ..., C·K).
            now: (N,).

        Returns:
            nll: (N, ..., C), nats.
            pullback: d_nll -> d_logits.

        Source: DDPM-8, DDPM-14
        """
        log_p = self.log_probabilities(logits, x_t, now)
        nll, nll_pullback = categorical_nll(level_codes(x, self.levels), log_p)
        return nll, lambda d_nll: namespace(d_nll).reshape(nll_pullback(d_nll), logits.shape)

    def clean(self, output, x_t, now, before):
        """x̂₀ = Σ_k p_k x_k, and its pullback: d -> (d_output, d_x_t).

        Args:
            output: logits (N, ..., C·K), those of one pixel together.
            x_t: (N, ..., C).
            now, before: (N,).

        Source: DDPM-14
        """
        xp = namespace(output)
        p, centres = xp.exp(self.log_probabilities(output, x_t, now)), self.centres(x_t)
        clean = xp.sum(p * centres, axis=-1)
        signal, noise = signal_and_noise(now, x_t)

        def pullback(d):
            moved = p * (centres - clean[..., None])
            variance = xp.sum(moved * centres, axis=-1)
            d_logits = xp.reshape(moved * d[..., None], output.shape)
            return d_logits, signal / (noise * noise) * variance * d

        return clean, pullback

    def clean_slope(self, output, x_t, now, before):
        """(s/n²) (½ + SNR) x_t Var x_k - ½ (SNR/n²) Cov(x_k, x_k²), both under p_k.

        Source: [Kingma 2021]
        """
        xp, (signal, noise) = namespace(output), signal_and_noise(now, x_t)
        p, centres = xp.exp(self.log_probabilities(output, x_t, now)), self.centres(x_t)
        moved = p * (centres - xp.sum(p * centres, axis=-1)[..., None])
        variance, skew = xp.sum(moved * centres, axis=-1), xp.sum(moved * centres**2, axis=-1)
        square = noise * noise
        snr = signal * signal / square
        return signal / square * (0.5 + snr) * x_t * variance - 0.5 * snr / square * skew


def reverse_mean(x_t, eps, now, before):
    """μ = (x_t - β/√(1-ᾱ_t) ε)/√α: the mean of the reverse step through ε.

    With the true ε it is the posterior's mean, with a prediction ε̂ the model's.

    Args:
        x_t, eps: (N, ...).
        now, before: (N,).

    Returns:
        (N, ...).

    Source: DDPM-10, DDPM-11
    """
    root_alpha, beta = kernel(now, before)
    _, noise = _signal_and_noise(now)
    return (x_t - shaped(beta / noise, x_t) * eps) / shaped(root_alpha, x_t)


def _signal_and_noise(level):
    signal, variance = kernel(level)
    return signal, namespace(variance).sqrt(variance)


def _combine(coefficients, output, x_t):
    a, b = (shaped(coefficient, x_t) for coefficient in coefficients)
    return a * output + b * x_t, lambda d: (a * d, b * d)
