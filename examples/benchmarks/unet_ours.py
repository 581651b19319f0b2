"""Our side of the U-Net benchmark."""

import sys
from typing import NamedTuple

from harness import serve

from scratchgen.core.arrays import backend
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.nets.unet import UNet
from scratchgen.training.optim import Adam

GROUPS = 8


class Workload(NamedTuple):
    """A net, named as in scratchgen.nets.unet.UNet, and its batch."""

    size: int
    channels: int
    width: int
    multipliers: tuple[int, ...]
    batch: int


WORKLOADS = {
    "unet-8x8x1": Workload(size=8, channels=1, width=64, multipliers=(1, 2), batch=128),
    "unet-32x32x3": Workload(size=32, channels=3, width=64, multipliers=(1, 2, 2), batch=16),
}


class UnetStep:
    """One training step of a U-Net that learns to tell the noise ε from the image and the time.

    Args:
        workload: the net and its batch.
    """

    def __init__(self, workload: Workload):
        size, channels, width, multipliers, batch = workload
        self.shape, self.steps = (batch, size, size, channels), 0
        self.stream = Stream(0, backend("numpy"))
        self.net = UNet(
            size, channels, channels, width, multipliers, groups=GROUPS, reads_data=True
        )
        self.params = FlatParameters(self.net, self.stream.at("initial"))
        # the last layers start at 0, where most of the gradient vanishes and would prove nothing
        self.params.theta += 0.02 * self.stream.at("nudge").normal(self.params.theta.shape)
        self.params.changed()
        self.adam = Adam(self.params)
        self.x = self.stream.at("x").normal(self.shape)
        self.t = 1000.0 * self.stream.at("t").uniform((batch,))

    def noise(self, step: int):
        """ε of that step."""
        return self.stream.at("eps", step).normal(self.shape)

    def step(self) -> None:
        """Noise, forward, loss, pullback, Adam."""
        self.backward(self.noise(self.steps))
        self.adam.step()
        self.steps += 1

    def backward(self, eps):
        """The gradient of Σ (net(x, t) - ε)² / N into `params.grad`; returns net(x, t)."""
        y, pullback = self.net(self.x, self.t)
        pullback((2.0 / len(y)) * (y - eps))
        return y

    def result(self) -> dict:
        """Output and gradient of the first step, by name."""
        found = {"output": self.backward(self.noise(0))}
        for name, p in self.params.table.items():
            found[name] = self.params.grad[p.window].reshape(p.shape).copy()
        self.params.grad[...] = 0.0
        return found


if __name__ == "__main__":
    serve(UnetStep(WORKLOADS[sys.argv[1]]))
