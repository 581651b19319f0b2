"""Adam, RMSProp, weight averages, the gradient's norm and learning rates, on one flat vector."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import contextmanager
from math import cos, inf, pi, sqrt

from scratchgen.core.arrays import namespace
from scratchgen.core.module import FlatParameters
from scratchgen.core.parallel import SOLO, Workers
from scratchgen.core.twins import readable


class Optimiser(ABC):
    """Changes θ in place, from its gradient and from what is remembered of earlier ones.

    Args:
        params: the vector to train and its gradient.
        lr: learning rate, a number or a function of the step count 0, 1, 2, ...
        tiny: keeps the division finite.
        names: of the vectors that are remembered; they begin at zero.

    Raises:
        ValueError: a number is outside its range.
    """

    def __init__(
        self, params: FlatParameters, lr: float | Callable[[int], float], tiny: float, *names: str
    ):
        if not callable(lr) and not 0.0 < lr < inf:
            raise ValueError(f"the learning rate must be positive and finite, got {lr}")
        if not 0.0 < tiny < inf:
            raise ValueError(f"tiny must be positive and finite, got {tiny}")
        self.params, self.tiny, self.steps = params, tiny, 0
        self.lr = lr if callable(lr) else lambda step: lr
        zeros_like = namespace(params.theta).zeros_like
        self.memory = {name: zeros_like(params.theta) for name in names}

    def step(self, workers: Workers = SOLO) -> None:
        """One update from `params.grad`, which is consumed: it is zero afterwards.

        Args:
            workers: who shares the work.
        """
        lr = self.lr(self.steps)
        self.steps += 1
        update = self.update(lr)
        workers.elementwise(update, self.params.theta, self.params.grad, *self.memory.values())
        self.params.changed()

    @abstractmethod
    def update(self, lr: float) -> Callable[..., None]:
        """(θ, g, *memory) -> None: the step that has just been counted, in place, with g ← 0."""

    def state(self) -> dict:
        """What a checkpoint must hold: the vectors that are remembered and the step count."""
        return {**self.memory, "steps": self.steps}

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned."""
        for name, vector in self.memory.items():
            vector[...] = self.params.backend.asarray(state[name])
        self.steps = int(state["steps"])


class Adam(Optimiser):
    """Adam, and AdamW where weight_decay > 0.

        m ← β₁ m + (1-β₁) g          v ← β₂ v + (1-β₂) g²
        θ ← θ (1 - lr λ) - lr m̂ / (√v̂ + tiny),   m̂ = m/(1-β₁ᵗ),  v̂ = v/(1-β₂ᵗ)

    The vectors kept are m/(1-β₁) and v/(1-β₂), and the bias corrections are folded into two
    numbers, which saves passes over memory.

    Args:
        params, lr, tiny: as for `Optimiser`.
        beta1, beta2: decay of the two averages, in [0, 1).
        weight_decay: λ ≥ 0, decoupled from the gradient; applies to every parameter.

    Raises:
        ValueError: a number is outside its range.

    Source: [Kingma 2015], [Loshchilov 2019]
    """

    def __init__(
        self,
        params: FlatParameters,
        lr: float | Callable[[int], float] = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        tiny: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, lr, tiny, "m", "v")
        if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0):
            raise ValueError(f"beta1 and beta2 must lie in [0, 1), got {beta1} and {beta2}")
        if not 0.0 <= weight_decay < inf:
            raise ValueError(f"the weight decay must be finite and ≥ 0, got {weight_decay}")
        self.m, self.v = self.memory.values()
        self.beta1, self.beta2, self.weight_decay = beta1, beta2, weight_decay

    def update(self, lr: float) -> Callable[..., None]:
        """(θ, g, m, v) -> None: decay, then `adam`."""
        root = sqrt((1.0 - self.beta2) / (1.0 - self.beta2**self.steps))
        rate = lr * (1.0 - self.beta1) / (1.0 - self.beta1**self.steps) / root
        decay, tiny = 1.0 - lr * self.weight_decay, self.tiny / root

        def update(theta, g, m, v) -> None:
            if self.weight_decay:
                theta *= decay
            adam(theta, g, m, v, self.beta1, self.beta2, rate, tiny)

        return update


@readable
def adam(theta, g, m, v, beta1: float, beta2: float, rate: float, tiny: float) -> None:
    """m ← β₁ m + g,  v ← β₂ v + g²,  θ ← θ - rate m/(√v + tiny),  g ← 0, all in place.

    Args:
        theta, g, m, v: vectors of one length.
        beta1, beta2, rate, tiny: with the bias corrections and factors that `Adam` folds in.

    Source: [Kingma 2015]
    """
    m *= beta1
    m += g
    g *= g
    v *= beta2
    v += g
    spread = namespace(v).sqrt(v)
    spread += tiny
    g[...] = m  # the gradient is used up; its vector holds the update now
    g /= spread
    g *= rate
    theta -= g
    g[...] = 0.0


class RmsProp(Optimiser):
    """RMSProp: gradients over their root mean square, without momentum.

        v ← ρ v + (1-ρ) g²          θ ← θ - lr g / (√v + tiny)

    v begins at 0 and nothing corrects for that: the first step is up to lr/√(1-ρ) long in an entry.
    The vector kept is v/(1-ρ), as in `Adam`.

    Args:
        params, lr, tiny: as for `Optimiser`.
        rho: ρ, the decay of the average, in [0, 1); its authors used 0.9.

    Raises:
        ValueError: a number is outside its range.

    Source: [Tieleman 2012]
    """

    def __init__(
        self,
        params: FlatParameters,
        lr: float | Callable[[int], float] = 1e-3,
        rho: float = 0.99,
        tiny: float = 1e-8,
    ):
        super().__init__(params, lr, tiny, "v")
        if not 0.0 <= rho < 1.0:
            raise ValueError(f"rho must lie in [0, 1), got {rho}")
        self.v, self.rho = self.memory["v"], rho

    def update(self, lr: float) -> Callable[..., None]:
        """(θ, g, v) -> None: v ← ρ v + g²,  θ ← θ - rate g/(√v + tiny),  g ← 0."""
        root = sqrt(1.0 - self.rho)
        rate, tiny = lr / root, self.tiny / root

        def update(theta, g, v) -> None:
            v *= self.rho
            v += g * g
            spread = namespace(v).sqrt(v)
            spread += tiny
            g /= spread  # the gradient's vector holds the update now
            g *= rate
            theta -= g
            g[...] = 0.0

        return update


class Ema:
    """An exponential average of θ, to evaluate with: a ← d a + (1-d) θ.

    Buffers are not averaged: batch norm keeps its statistics of the present θ.

    d = min(decay, (1+n)/(10+n)) at update n, so that a young average is not held back by the
    random initial weights.

    Args:
        params: the vector to average.
        decay: in [0, 1).

    Raises:
        ValueError: the decay is outside [0, 1).
    """

    def __init__(self, params: FlatParameters, decay: float = 0.999):
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"the decay must lie in [0, 1), got {decay}")
        self.params, self.decay, self.steps = params, decay, 0
        self.average = 1.0 * params.theta

    def step(self, workers: Workers = SOLO) -> None:
        """Average in the present θ; `workers` share the work."""
        decay = min(self.decay, (1.0 + self.steps) / (10.0 + self.steps))
        self.steps += 1

        def update(average, theta) -> None:
            average *= decay
            average += (1.0 - decay) * theta

        workers.elementwise(update, self.average, self.params.theta)

    @contextmanager
    def applied(self):
        """Within, the module computes with the average instead of θ."""
        theta = self.params.theta
        self.params.theta = self.average
        try:
            yield
        finally:
            self.params.theta = theta

    def state(self) -> dict:
        """What a checkpoint must hold: the average and the step count."""
        return {"average": self.average, "steps": self.steps}

    def restore(self, state: dict) -> None:
        """Continue from what `state` returned."""
        self.average[...], self.steps = state["average"], int(state["steps"])


def global_norm(params: FlatParameters) -> float:
    """The Euclidean norm of the gradient, without overflow; not finite if an entry is not."""
    g, xp = params.grad, namespace(params.grad)
    if not g.size:
        return 0.0
    norm = float(xp.max(xp.abs(g)))
    if 0.0 < norm < inf:  # else that is the norm
        scaled = g / norm  # whose squares cannot overflow
        norm *= sqrt(float(xp.sum(scaled * scaled)))
    return norm


def warmup_cosine(peak: float, steps: int, warmup: int = 0, floor: float = 0.0):
    """A learning rate that rises linearly for `warmup` steps, then falls along half a cosine.

    Args:
        peak: the rate at the end of the warm-up, > 0.
        steps: the length of the whole run, at which the rate reaches `floor`.
        warmup: 0 ≤ warmup < steps.
        floor: the last rate, 0 ≤ floor ≤ peak.

    Returns:
        step 0, 1, ... -> rate.

    Raises:
        ValueError: the warm-up is not shorter than the run, or a rate is outside its range.
    """
    if not (0.0 <= floor <= peak and 0.0 < peak < inf):
        raise ValueError(f"need 0 ≤ floor ≤ peak and 0 < peak < inf, got {floor} and {peak}")
    if not 0 <= warmup < steps:
        raise ValueError(f"need 0 ≤ warmup < steps, got warmup {warmup} and steps {steps}")

    def rate(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / warmup
        progress = min(1.0, (step - warmup) / (steps - warmup))
        return floor + (peak - floor) * 0.5 * (1.0 + cos(pi * progress))

    return rate
