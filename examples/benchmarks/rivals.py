"""What PyTorch's side and JAX's share: what they are given, and nets read off parameters' names.

A net is made of what its parameters' names say: a stage has a skip where "skip.weight" exists. So
one reading serves both libraries; they bring the operations.
"""

import json
from math import cos, pi
from pathlib import Path
from typing import NamedTuple

import numpy as np
from workloads import GIVEN


class Given:
    """The arrays and facts that prepare.py has written.

    Attributes:
        facts: numbers by name.
        theta: the parameters by name; kernels are (k, k, n_in, n_out), matrices (n_out, n_in).
        batches: for each step in which contenders must agree, what its loss is given.
    """

    def __init__(self, folder: str):
        with np.load(Path(folder, GIVEN)) as archive:
            arrays = dict(archive)
        self.facts = json.loads(str(arrays.pop("facts", "{}")))
        self.theta = {k.removeprefix("θ/"): v for k, v in arrays.items() if k.startswith("θ/")}
        steps: dict[str, list] = {}
        for name, array in arrays.items():
            if name.startswith("step "):
                steps.setdefault(name.split("/")[0], []).append(array)
        self.batches, self.arrays = list(steps.values()), arrays

    def rate(self, step: int) -> float:
        """The learning rate: a linear rise for the first tenth of the steps, then half a cosine."""
        steps, peak = self.facts["steps"], self.facts["peak"]
        warmup = min(100, steps // 10)
        if step < warmup:
            return peak * (step + 1) / warmup
        return peak * 0.5 * (1.0 + cos(pi * min(1.0, (step - warmup) / (steps - warmup))))

    def noise_level(self) -> tuple[np.ndarray, np.ndarray]:
        """√ᾱ_t and √(1-ᾱ_t), each (T + 1,) float32."""
        level = self.arrays["log_alpha_bar"]
        return np.exp(0.5 * level).astype("f4"), np.sqrt(-np.expm1(level)).astype("f4")

    def reverse_step(self) -> dict[str, np.ndarray]:
        """x_{t-1} = c₀ x̂₀ + c x_t + σ z, x̂₀ = (x_t - √(1-ᾱ_t) ε̂)/√ᾱ_t: each (T + 1,) float32."""
        level = self.arrays["log_alpha_bar"]
        now, before = level, np.concatenate([[0.0], level[:-1]])
        beta, noise_before, noise = -np.expm1(now - before), -np.expm1(before), -np.expm1(now)
        with np.errstate(invalid="ignore", divide="ignore"):  # there is no step from t = 0
            table = {
                "clean": np.exp(0.5 * before) * beta / noise,
                "kept": np.exp(0.5 * (now - before)) * noise_before / noise,
                "fresh": np.sqrt(beta * noise_before / noise),
                "signal": np.exp(0.5 * now),
                "noise": np.sqrt(noise),
            }
        return {name: column.astype("f4") for name, column in table.items()}


class Mlp:
    """Linear layers with SiLU between them.

    Args:
        ops: the library's operations, on rows (N, D).
        names: of all parameters.
        prefix: of this net's.
    """

    def __init__(self, ops, names, prefix: str):
        mine = [n.removesuffix(".weight") for n in names if n.startswith(prefix)]
        self.ops, self.layers = ops, [n for n in mine if not n.endswith(".bias")]

    def __call__(self, p: dict, x):
        """Parameters by name, x (N, D) -> y (N, D')."""
        for i, name in enumerate(self.layers):
            x = self.ops.linear(
                self.ops.silu(x) if i else x, p[f"{name}.weight"], p[f"{name}.bias"]
            )
        return x


class Stage(NamedTuple):
    """The names of a stage's parts; None for those that it lacks."""

    halve: str | None
    block: str
    skip: str | None
    attention: str | None
    double: str | None


class UNet:
    """scratchgen.nets.unet.UNet, with an embedding that is added before a block's second norm.

    Args:
        ops: the library's operations, on images in its own order of axes.
        names: of all parameters; this net's begin with "net.".
        groups: of the norms.
    """

    def __init__(self, ops, names, groups: int):
        self.ops, self.groups = ops, groups
        self.down, self.middle, self.up = (
            [_stage(names, f"net.{part}.{i}") for i in range(_count(names, part))]
            for part in ("down", "middle", "up")
        )

    def __call__(self, p: dict, x, t):
        """Parameters by name, images x, times t (N,) -> images."""
        ops, e, h, kept = self.ops, self.time(p, t), self.conv(p, "net.first", x), []
        for stage in self.down:
            h = self.stage(p, stage, h, e)
            kept.append(h)
        for stage in self.middle:
            h = self.stage(p, stage, h, e)
        for stage in self.up:
            h = self.stage(p, stage, ops.join(h, kept.pop()), e)
        return self.conv(p, "net.last.layers.1", ops.silu(self.norm(p, "net.last.layers.0", h)))

    def time(self, p, t):
        """SiLU of the embedding of t."""
        first, second = (f"net.time.layers.0.layers.{i}" for i in (1, 3))
        h = self.ops.waves(t, p[f"{first}.weight"].shape[1])
        return self.ops.silu(self.linear(p, second, self.ops.silu(self.linear(p, first, h))))

    def stage(self, p, names: Stage, x, e):
        """Halving, ResNet block, attention, doubling: those that this stage has."""
        ops = self.ops
        if names.halve:
            x = self.conv(p, names.halve, x, stride=2)
        x = self.block(p, names, x, e)
        if names.attention:
            tokens = ops.tokens(self.norm(p, f"{names.attention}.0", x))
            h = ops.attend(self.linear(p, f"{names.attention}.1.qkv", tokens))
            x = x + ops.image(self.linear(p, f"{names.attention}.1.out", h), x)
        return self.conv(p, names.double, ops.double(x)) if names.double else x

    def block(self, p, names: Stage, x, e):
        """The ResNet block."""
        ops, name = self.ops, names.block
        h = ops.silu(self.norm(p, f"{name}.first.layers.0", x))
        h = self.conv(p, f"{name}.first.layers.1", h)
        h = h + ops.per_place(self.linear(p, f"{name}.inject.shift", e))
        h = ops.silu(self.norm(p, f"{name}.inject.norm", h))
        h = self.conv(p, f"{name}.last.layers.1", h)
        return h + (self.conv(p, names.skip, x) if names.skip else x)

    def conv(self, p, name: str, x, stride: int = 1):
        """A convolution that keeps the size, up to its stride."""
        return self.ops.conv(x, p[f"{name}.weight"], p[f"{name}.bias"], stride)

    def linear(self, p, name: str, x):
        """An affine map of the last axis."""
        return self.ops.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def norm(self, p, name: str, x):
        """A group norm."""
        return self.ops.norm(x, self.groups, p[f"{name}.gain"], p[f"{name}.bias"])


def _count(names, part: str) -> int:
    return len({name.split(".")[2] for name in names if name.startswith(f"net.{part}.")})


def _stage(names, name: str) -> Stage:
    def there(part: str, parameter: str = "weight") -> str | None:
        return f"{name}.{part}" if f"{name}.{part}.{parameter}" in names else None

    attends = there("after.layers.0.f.layers.0", "gain")
    return Stage(
        halve=there("before.layers.0"),
        block=f"{name}.block",
        skip=there("block.skip"),
        attention=attends and attends.removesuffix(".0"),
        double=there("after.layers.1") or there("after.layers.2"),
    )
