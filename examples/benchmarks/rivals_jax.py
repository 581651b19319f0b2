"""JAX's side: whole steps, jitted, with donated buffers.

    python rivals_jax.py WORKLOAD FOLDER THREADS SHARE

THREADS stands in NPROC, before XLA is there, and not here.
"""

import os
import sys
from math import pi

import jax
import jax.numpy as jnp
import numpy as np
from jax import nn, random
from ops_jax import Ops, convolve
from rivals import Given, Mlp, UNet
from worker import serve
from workloads import WORKLOADS, rows_of


class Jax:
    """What JAX's contenders have in common."""

    def __init__(self, given: Given):
        self.given = given
        self.theta = {name: jnp.asarray(a) for name, a in given.theta.items()}
        self.options = {
            "dtype": "float32",
            "threads": int(os.environ["NPROC"]),
            "layout": "NHWC, HWIO",
            "mode": "jit of the whole step",
            "jax": jax.__version__,
        }


class Training(Jax):
    """A training step, with a loss of (parameters, x, ...) that subclasses give.

    All that changes is one state, whose buffers are donated: θ, Adam's m and v, the step, a key.
    """

    def __init__(self, given: Given, share: str):
        super().__init__(given)
        self.x, self.n = jnp.asarray(given.arrays["x"]), given.facts["batch_size"]
        self.build()
        self.state = {
            "theta": self.theta,
            "m": {name: jnp.zeros_like(a) for name, a in self.theta.items()},
            "v": {name: jnp.zeros_like(a) for name, a in self.theta.items()},
            "step": jnp.zeros((), dtype=jnp.int32),
        }
        self.key = random.key(0)
        self.given_batch = _compiled(self.update, self.state, *self.tensors(*given.batches[0]))
        self.drawn_batch = _compiled(self.drawn, self.state, self.key, self.x)
        self.options |= {
            "donated": "state and key",
            "optimiser": "Adam in the jitted step",
            "generator": str(random.key_impl(self.key)),
        }

    def step(self) -> None:
        """Batch, noise, forward, loss, backward, Adam."""
        self.state, self.key = self.drawn_batch(self.state, self.key, self.x)

    def finish(self) -> None:
        """Wait for the last step."""
        jax.block_until_ready(self.state)

    def drawn(self, state, key, x):
        """The next state and key."""
        key, of_rows, *of_noise = random.split(key, 4)
        batch = x[random.randint(of_rows, (self.n,), 0, len(x))]
        return self.update(state, batch, *self.noise(of_noise, batch))[0], key

    def update(self, state, *batch):
        """The next state, and the gradient at this one.

        θ ← θ - rate m̂ / (√v̂ + tiny), m̂ = m/(1-β₁ᵗ), v̂ = v/(1-β₂ᵗ)
        """
        gradient = jax.grad(self.loss)(state["theta"], *batch)
        facts, step = self.given.facts, state["step"] + 1
        beta1, beta2, tiny = facts["beta1"], facts["beta2"], facts["tiny"]
        rate, t = self.rate(state["step"]), step.astype(jnp.float32)
        m = jax.tree.map(lambda m, g: beta1 * m + (1.0 - beta1) * g, state["m"], gradient)
        v = jax.tree.map(lambda v, g: beta2 * v + (1.0 - beta2) * g * g, state["v"], gradient)
        of_m, of_v = rate / (1.0 - beta1**t), 1.0 / jnp.sqrt(1.0 - beta2**t)
        theta = jax.tree.map(
            lambda p, m, v: p - of_m * m / (jnp.sqrt(v) * of_v + tiny), state["theta"], m, v
        )
        return {"theta": theta, "m": m, "v": v, "step": step}, gradient

    def rate(self, step):
        """`Given.rate` of a traced step."""
        steps, peak = self.given.facts["steps"], self.given.facts["peak"]
        warmup = min(100, steps // 10)
        progress = jnp.minimum(1.0, (step - warmup) / (steps - warmup))
        falling = 0.5 * (1.0 + jnp.cos(pi * progress))
        return peak * jnp.where(step < warmup, (step + 1) / max(1, warmup), falling)

    def result(self) -> dict:
        """The gradient of the first step, and θ after some."""
        gradients = []
        for batch in self.given.batches:
            self.state, gradient = self.given_batch(self.state, *self.tensors(*batch))
            gradients.append(gradient)
        found = {f"the gradient of {name}": np.asarray(g) for name, g in gradients[0].items()}
        theta = [np.asarray(self.state["theta"][name]).ravel() for name in self.given.theta]
        return found | {f"θ after {len(gradients)} steps": np.concatenate(theta)}


class VaeTraining(Training):
    """-ELBO with a Bernoulli likelihood, one sample of z."""

    def build(self) -> None:
        """Encoder and decoder."""
        self.encoder, self.decoder = (
            Mlp(Ops, self.theta, part) for part in ("encoder.", "decoder.")
        )

    def noise(self, keys, x):
        """ε (N, K)."""
        return (random.normal(keys[0], (len(x), self.given.facts["latent"])),)

    def tensors(self, x, eps) -> list:
        """A given batch as `loss` takes it."""
        return [jnp.asarray(x), jnp.asarray(eps[0])]

    def loss(self, p, x, eps):
        """The mean over the batch, in nats; x is ∓½."""
        mean, logvar = jnp.split(self.encoder(p, x), 2, axis=1)
        logits = self.decoder(p, mean + jnp.exp(0.5 * logvar) * eps)
        nll = jnp.sum(nn.softplus(logits) - (x + 0.5) * logits)
        kl = 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1.0 - logvar)
        return (nll + kl) / len(x)


class DdpmTraining(Training):
    """Algorithm 1: ‖ε - ε̂(x_t, t)‖²."""

    def build(self) -> None:
        """The net and the schedule."""
        self.net = UNet(Ops, self.theta, self.given.facts["groups"])
        self.signal, self.spread = map(jnp.asarray, self.given.noise_level())

    def noise(self, keys, x):
        """t (N,) in 1..T, ε like x."""
        t = random.randint(keys[0], (len(x),), 1, len(self.signal))
        return t, random.normal(keys[1], x.shape)

    def tensors(self, x, t, eps) -> list:
        """A given batch as `loss` takes it."""
        return [jnp.asarray(x), jnp.asarray(t, dtype=jnp.int32), jnp.asarray(eps)]

    def loss(self, p, x, t, eps):
        """The mean over the batch."""
        signal, spread = (table[t][:, None, None, None] for table in (self.signal, self.spread))
        guess = self.net(p, signal * x + spread * eps, t.astype(x.dtype))
        return jnp.sum((guess - eps) ** 2) / len(x)


class Reverse(Jax):
    """A step of ancestral sampling; x and the key are donated."""

    def __init__(self, given: Given, share: str):
        super().__init__(given)
        self.net = UNet(Ops, self.theta, given.facts["groups"])
        self.table = {name: jnp.asarray(a) for name, a in given.reverse_step().items()}
        self.rows = rows_of(share, len(given.arrays["start"]))
        self.x, self.key = jnp.asarray(given.arrays["start"][self.rows]), random.key(0)
        self.last = len(self.table["clean"]) - 1
        self.t = jnp.asarray(self.last)
        self.given_noise = jax.jit(self.reverse)
        self.drawn_noise = _compiled(self.drawn, (self.x, self.t, self.key), self.theta)
        self.options |= {"donated": "x, t and key", "generator": str(random.key_impl(self.key))}

    def step(self) -> None:
        """One step of a chain; behind its end the next one starts."""
        self.x, self.t, self.key = self.drawn_noise((self.x, self.t, self.key), self.theta)

    def finish(self) -> None:
        """Wait for the last step."""
        jax.block_until_ready(self.x)

    def drawn(self, state, theta):
        """x_{t-1}, t - 1 and the next key; after t = 1 comes t = T with an x of its own."""
        x, t, key = state
        key, of_noise = random.split(key)
        z = random.normal(of_noise, x.shape)
        ends = t == 0
        t = jnp.where(ends, self.last, t)
        x, _ = self.reverse(theta, jnp.where(ends, z, x), t, z)
        return x, t - 1, key

    def reverse(self, theta, x, t, z):
        """x_t, t and noise -> x_{t-1} and ε̂."""
        c = {name: column[t] for name, column in self.table.items()}
        epsilon = self.net(theta, x, jnp.full((len(x),), t, dtype=x.dtype))
        clean = (x - c["noise"] * epsilon) / c["signal"]
        return c["clean"] * clean + c["kept"] * x + c["fresh"] * z, epsilon

    def result(self) -> dict:
        """ε̂ and x in some steps, from a given start with given noise."""
        x, t = jnp.asarray(self.given.arrays["start"][self.rows]), self.given.facts["first"]
        found = {}
        for i, z in enumerate(self.given.arrays["noise"][:, self.rows]):
            x, epsilon = self.given_noise(self.theta, x, jnp.asarray(t - i), jnp.asarray(z))
            found |= {f"ε̂ of step {i}": epsilon, f"x after step {i}": x}
        return {name: np.asarray(x) for name, x in found.items()}


class Convolution(Jax):
    """y, dx and dw of a 3×3 convolution."""

    def __init__(self, given: Given, share: str):
        super().__init__(given)
        self.arrays = [jnp.asarray(given.arrays[name]) for name in ("x", "weight", "dy")]
        self.both = jax.jit(self.forward_and_backward)
        self.last = self.both(*self.arrays)
        self.options |= {"donated": "nothing: there is no state"}

    def forward_and_backward(self, x, weight, dy):
        """(y, dx, dw); what is not returned would not be computed."""
        y, pullback = jax.vjp(convolve, x, weight)
        return y, *pullback(dy)

    def step(self) -> None:
        """Forward and backward."""
        self.last = self.both(*self.arrays)

    def finish(self) -> None:
        """Wait for the last step."""
        jax.block_until_ready(self.last)

    def result(self) -> dict:
        """y, dx and dw."""
        return {name: np.asarray(a) for name, a in zip(("y", "dx", "dw"), self.last, strict=True)}


def _compiled(step, state, *inputs):
    """The step, compiled ahead of its first call; the state's buffers are donated."""
    return jax.jit(step, donate_argnums=0).lower(state, *inputs).compile()


KINDS = {
    ("training", "vae"): VaeTraining,
    ("training", "ddpm"): DdpmTraining,
    ("reverse", "ddpm"): Reverse,
    ("convolution", ""): Convolution,
}

if __name__ == "__main__":
    name, folder, _, share = sys.argv[1:]
    work = WORKLOADS[name]
    serve(KINDS[work.kind, work.model](Given(folder), share))
