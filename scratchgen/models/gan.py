"""Generative adversarial networks: the game, its losses, the gradient penalty, and latent vectors.

x = G(z) with z ~ p(z). A discriminator gives every x one number a(x), and the two play in turn: it
tells data from fakes, then G moves its fakes to where they are taken for data. Where D(x) is meant
to be a probability, a is its logit: -log D = softplus(-a), -log(1 - D) = softplus(a), and no
logarithm of a sigmoid is ever taken. The slopes are sigmoids in which a small one keeps its digits:
it may be the whole gradient, which Adam divides by its own size.

    losses           discriminator: a datum      a fake          generator
    Minimax          softplus(-a)                softplus(a)     -softplus(a) = log(1 - D)
    NonSaturating    softplus(-a)                softplus(a)     softplus(-a) = -log D
    KlDivergence     softplus(-a)                softplus(a)     -a
    LeastSquares     ½ (a - real)²               ½ (a - fake)²   ½ (a - wanted)²
    Wasserstein      -a                          a               -a

All are costs, to be minimised. A Wasserstein critic must be kept from being steep, by `clip` after
each of its steps or by `gradient_penalty` in its loss.
"""

from math import pi

from scratchgen.core.arrays import example_sum, namespace, ones, per_example, require_shape, zeros
from scratchgen.core.module import FlatParameters, Module
from scratchgen.core.numerics import accurate_sigmoid, softplus

TINY = 1e-12  # below which a slope counts as none


class Minimax:
    """The game as first written: both play for V = E[log D(x)] + E[log(1 - D(G(z)))].

    Where a fake is obvious, D ≈ 0, G's cost is nearly flat: ∂_a log(1 - D) = -D.
    """

    def discriminator(self, real, fake):
        """-log D(x) and -log(1 - D(x̃)), whose means add up to -V.

        Args:
            real, fake: (N,) and (M,), logits of data and of fakes.

        Returns:
            terms: (N,) and (M,).
            pullback: (d_real_term, d_fake_term) -> (d_real, d_fake).

        Source: GAN-2, [Goodfellow 2014]
        """
        terms = (softplus(-real), softplus(fake))
        return terms, lambda d_real, d_fake: (
            -d_real * accurate_sigmoid(-real),
            d_fake * accurate_sigmoid(fake),
        )

    def generator(self, fake):
        """log(1 - D(x̃)): fake (M,) -> (M,), pullback: d -> -d D.

        Source: GAN-2, GAN-3, GAN-4
        """
        return -softplus(fake), lambda d: -d * accurate_sigmoid(fake)


class NonSaturating(Minimax):
    """The log D trick: G maximises E[log D], which is steep where its fakes are obvious.

    Source: GAN-5, GAN-6
    """

    def generator(self, fake):
        """-log D(x̃): fake (M,) -> (M,), pullback: d -> -d (1 - D)."""
        return softplus(-fake), lambda d: -d * accurate_sigmoid(-fake)


class KlDivergence(Minimax):
    """G maximises the logit: the sum of the two costs above, ∇KL(p_g ‖ p_data) at the best D.

    Source: GAN-14
    """

    def generator(self, fake):
        """-a(x̃): fake (M,) -> (M,), pullback: d -> -d."""
        return -fake, lambda d: -d


class LeastSquares:
    """Regression to labels; the best a is (real · p_data + fake · p_g)/(p_data + p_g).

    At the labels (-1, 1, 0) and this a, ½ E[a(x)²] + ½ E[a(G(z))²] is half of
    Σ (p_data - p_g)²/(p_data + p_g). The generator's step at a fixed D does not go down that sum: D
    minimises another cost. Practice takes (0, 1, 1), which leave ¼ at p_g = p_data.

    Args:
        fake, real: the labels of fakes and of data, for the discriminator.
        wanted: the label that the generator wants for its fakes.

    Raises:
        ValueError: fakes and data have the same label.

    Source: GAN-10, [Mao 2017]
    """

    def __init__(self, fake: float = 0.0, real: float = 1.0, wanted: float = 1.0):
        if fake == real:
            raise ValueError(f"fakes and data need labels that differ, got {fake} for both")
        self.fake, self.real, self.wanted = fake, real, wanted

    def discriminator(self, real, fake):
        """½ (a(x) - real)² and ½ (a(x̃) - fake)²; shapes as for `Minimax`."""
        off_real, off_fake = real - self.real, fake - self.fake
        terms = (0.5 * off_real * off_real, 0.5 * off_fake * off_fake)
        return terms, lambda d_real, d_fake: (d_real * off_real, d_fake * off_fake)

    def generator(self, fake):
        """½ (a(x̃) - wanted)²: fake (M,) -> (M,), pullback: d -> d (a - wanted)."""
        off = fake - self.wanted
        return 0.5 * off * off, lambda d: d * off


class Wasserstein:
    """A critic: over all functions a of slope at most 1, the greatest E[a(x)] - E[a(x̃)] is W_1.

    Source: GAN-11, [Arjovsky 2017]
    """

    def discriminator(self, real, fake):
        """-a(x) and a(x̃); shapes as for `Minimax`."""
        return (-real, fake), lambda d_real, d_fake: (-d_real, d_fake)

    def generator(self, fake):
        """-a(x̃): fake (M,) -> (M,), pullback: d -> -d."""
        return -fake, lambda d: -d


class Gan(Module):
    """A generator and a discriminator, each with a vector, and so an optimiser, of its own.

    A discriminator gives (N,), so behind a net of one output an axis is dropped:

        discriminator = Sequential(*mlp([2, 64, 1], leaky_relu).layers, reshaped())

    A round of training, on a batch x and two batches of noise, with share = 1/N per example:

        fake = gan.generate(z)
        _, pullback = gan.discriminator_loss(x, fake)
        pullback(share, share)
        discriminator_optimiser.step()
        _, pullback = gan.generator_loss(fresh_z)
        pullback(share)
        generator_optimiser.step()

    A Wasserstein critic adds, before its step and with u (N,) ~ U(0, 1):

        _, pullback = gradient_penalty(gan.discriminator, discriminator_params, x, fake, u)
        pullback(10.0 * share)

    With batch norm all three take a stream. Run the first two within
    `layers.normalisation.tracking` and the last outside, so that D's running statistics do not
    count fakes twice.

    Args:
        generator: net z -> x.
        discriminator: net x -> (N,).
        discriminator_params: the vector of the discriminator's parameters.
        losses: one of the losses above.

    Raises:
        ValueError: the discriminator has a layer that reads data, and so keeps G's gradient back.
    """

    def __init__(self, generator, discriminator, discriminator_params: FlatParameters, losses):
        _require_input_gradient(discriminator)
        self.generator, self.discriminator = generator, discriminator
        self.discriminator_params, self.losses = discriminator_params, losses

    def generate(self, z, stream=None):
        """x = G(z), without a gradient: z (N, ...) ~ p(z) -> (N, ...).

        Source: GAN-1
        """
        return self.run("generator", self.generator, z, stream=stream)[0]

    def discriminator_loss(self, x, fake, stream=None):
        """The discriminator's cost of data and of fakes, each run as a batch of its own.

        Args:
            x: (N, ...), data.
            fake: (M, ...), as `generate` returns them.
            stream: for a net that takes one in training; None evaluates.

        Returns:
            terms: (N,) for data and (M,) for fakes.
            pullback: (d_real_term (N,), d_fake_term (M,)) -> None; adds the gradient of the
                discriminator's parameters.

        Raises:
            ValueError: the discriminator does not return one number per example.

        Source: GAN-3, GAN-6
        """
        real_score, real_pullback = self._score(x, stream, "real")
        fake_score, fake_pullback = self._score(fake, stream, "fake")
        terms, losses_pullback = self.losses.discriminator(real_score, fake_score)

        def pullback(d_real_term, d_fake_term):
            d_real, d_fake = losses_pullback(d_real_term, d_fake_term)
            real_pullback(d_real)
            fake_pullback(d_fake)

        return terms, pullback

    def generator_loss(self, z, stream=None):
        """The generator's cost, through a discriminator whose gradient stays as it is.

        Args:
            z: (N, ...) ~ p(z).
            stream: as for `discriminator_loss`.

        Returns:
            term: (N,).
            pullback: d (N,) -> None; adds the gradient of the generator's parameters.

        Raises:
            ValueError: the discriminator does not return one number per example.

        Source: GAN-3, GAN-6
        """
        fake, generator_pullback = self.run("generator", self.generator, z, stream=stream)
        score, discriminator_pullback = self._score(fake, stream, "fake")
        term, losses_pullback = self.losses.generator(score)

        def pullback(d):
            with self.discriminator_params.frozen():
                d_fake = discriminator_pullback(losses_pullback(d))
            generator_pullback(d_fake)

        return term, pullback

    def _score(self, x, stream, key: str):
        score, pullback = self.run("discriminator", self.discriminator, x, stream=stream, key=key)
        if score.ndim != 1:
            raise ValueError(
                f"a discriminator returns one number per example, (N,), got {score.shape}; "
                "layers.resampling.reshaped() behind the last layer drops an axis of 1"
            )
        return score, pullback


def gradient_penalty(critic, params: FlatParameters, x, fake, u):
    """(‖∇a(x̂)‖ - 1)² at x̂ = u x + (1 - u) x̃, with the norm over all axes of an example.

    Along a direction v that is held fixed, ⟨v, ∇a(x̂)⟩ is a's tangent at x̂. So the pullback of the
    tangent along v = 2 (‖∇a‖ - 1) ∇a/‖∇a‖ is the penalty's. Where ∇a = 0 the norm has no
    derivative, and v = 0 is taken.

    Args:
        critic: net with a `pushforward`, which treats each example by itself.
        params: the vector of its parameters.
        x, fake: (N, ...), data and as many fakes.
        u: (N,) ~ U(0, 1).

    Returns:
        penalty: (N,).
        pullback: d (N,) -> None; adds the gradient of the critic's parameters.

    Raises:
        ValueError: the critic has batch norm or dropout, or a layer that reads data; or fake or u
            has another shape.

    Source: GAN-12, [Gulrajani 2017]
    """
    _require_input_gradient(critic)
    if getattr(critic, "draws", False):
        raise ValueError(
            "a gradient penalty is for a critic without batch norm, which mixes examples, and "
            "without dropout; build it with layer norm, or with no norm"
        )
    require_shape("fake", fake, x.shape)
    require_shape("u", u, x.shape[:1])
    u = per_example(u, x)
    between = u * x + (1.0 - u) * fake
    score, critic_pullback = critic(between)
    with params.frozen():
        slope = critic_pullback(ones(score.shape, like=score))
    norm = namespace(slope).sqrt(example_sum(slope * slope))
    v = slope * per_example(2.0 * (norm - 1.0) / namespace(norm).maximum(norm, TINY), slope)
    _, tangent_pullback = critic.pushforward(between, v)

    def pullback(d):
        tangent_pullback(zeros(score.shape, like=score), d)

    return (norm - 1.0) ** 2, pullback


def clip(params: FlatParameters, limit: float) -> None:
    """θ ← min(max(θ, -limit), limit), in place, so that a Wasserstein critic cannot be steep.

    Raises:
        ValueError: the limit is not positive.

    Source: GAN-11, [Arjovsky 2017]
    """
    if not limit > 0.0:
        raise ValueError(f"weights are clipped to ±limit, so it must be positive; got {limit}")
    params.theta[...] = namespace(params.theta).clip(params.theta, -limit, limit)
    params.changed()


def interpolate(z0, z1, steps: int):
    """(1 - w) z0 + w z1, for w from 0 to 1 in equal steps: (N, ...) twice -> (steps, N, ...).

    Raises:
        ValueError: z0 and z1 differ in shape, or there are fewer than 2 steps.

    Source: DVAE-13
    """
    require_shape("z1", z1, z0.shape)
    w = _fractions(steps, z0)
    return (1.0 - w) * z0 + w * z1


def interpolate_normal(z0, z1, steps: int):
    """cos(½πw) z0 + sin(½πw) z1, w and shapes as for `interpolate`.

    Of two independent z ~ N(0, I), each z on this arc is one. On the straight line they are too
    short: N(0, ½ I) halfway.

    Raises:
        ValueError: z0 and z1 differ in shape, or there are fewer than 2 steps.

    Source: DVAE-13
    """
    require_shape("z1", z1, z0.shape)
    angle = 0.5 * pi * _fractions(steps, z0)
    return namespace(angle).cos(angle) * z0 + namespace(angle).sin(angle) * z1


def arithmetic(plus, minus, and_plus):
    """mean z(a) - mean z(b) + mean z(c), such as smiling woman - woman + man: (n, ...) -> (...).

    Source: GAN-9
    """
    a, b, c = (namespace(z).mean(z, axis=0) for z in (plus, minus, and_plus))
    return a - b + c


def _fractions(steps: int, like):
    """0 to 1 in equal steps, each shaped to multiply `like` (N, ...)."""
    if steps < 2:
        raise ValueError(f"a way from z0 to z1 has at least 2 steps, its ends; got {steps}")
    w = namespace(like).linspace(0.0, 1.0, steps, dtype=like.dtype, device=like.device)
    return per_example(w, like[None, ...])


def _require_input_gradient(net) -> None:
    layers = [net, *(layer for _, layer in net.named(Module))] if isinstance(net, Module) else []
    if any(getattr(layer, "reads_data", False) for layer in layers):
        raise ValueError("a discriminator must not be built with reads_data: its input has a slope")
