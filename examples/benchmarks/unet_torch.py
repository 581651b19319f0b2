"""PyTorch's side of the U-Net benchmark: the same net, layer by layer, in torch.nn.functional."""

import sys
from math import log

import torch
import torch.nn.functional as F
from harness import serve
from unet_ours import GROUPS, WORKLOADS, UnetStep, Workload

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


class TorchUNet:
    """scratchgen.nets.unet.UNet on NCHW tensors, with its parameters under the same names.

    What a net is made of is read off the names: a stage has a skip where "skip.weight" exists.

    Args:
        leaves: name -> tensor; convolutions as (n_out, n_in, k, k).
        width: features of time.
    """

    def __init__(self, leaves: dict, width: int):
        self.leaves, self.width = leaves, width

    def __call__(self, x, t):
        """x (N, C, H, W), t (N,) -> y (N, C', H, W)."""
        e, h, kept = self.time(t), self.conv("first", x), []
        for name in self.stages("down"):
            h = self.stage(name, h, e)
            kept.append(h)
        for name in self.stages("middle"):
            h = self.stage(name, h, e)
        for name in self.stages("up"):
            h = self.stage(name, torch.cat([h, kept.pop()], dim=1), e)
        return self.conv("last.layers.1", F.silu(self.norm("last.layers.0", h)))

    def stages(self, part: str) -> list[str]:
        """The names of the stages of one part, in order."""
        count = len({name.split(".")[1] for name in self.leaves if name.startswith(f"{part}.")})
        return [f"{part}.{i}" for i in range(count)]

    def time(self, t):
        """The embedding of t."""
        half = self.width // 2
        omega = torch.exp((-log(1e4) / (half - 1)) * torch.arange(half))
        angle = t[:, None] * omega
        h = self.linear("time.layers.0.layers.1", torch.cat([angle.sin(), angle.cos()], dim=1))
        return F.silu(self.linear("time.layers.0.layers.3", F.silu(h)))

    def stage(self, name: str, x, e):
        """Halving, ResNet block, attention, doubling: those that this stage has."""
        if f"{name}.before.layers.0.weight" in self.leaves:
            x = self.conv(f"{name}.before.layers.0", x, stride=2)
        x = self.block(f"{name}.block", x, e)
        if f"{name}.after.layers.0.f.layers.0.gain" in self.leaves:
            x = self.attention(f"{name}.after.layers.0.f.layers", x)
        if f"{name}.after.layers.1.weight" in self.leaves:
            x = self.conv(f"{name}.after.layers.1", F.interpolate(x, scale_factor=2))
        return x

    def block(self, name: str, x, e):
        """The ResNet block, with the embedding added before its second norm."""
        h = self.conv(f"{name}.first.layers.1", F.silu(self.norm(f"{name}.first.layers.0", x)))
        h = h + self.linear(f"{name}.inject.shift", e)[:, :, None, None]
        h = self.conv(f"{name}.last.layers.1", F.silu(self.norm(f"{name}.inject.norm", h)))
        return h + (self.conv(f"{name}.skip", x) if f"{name}.skip.weight" in self.leaves else x)

    def attention(self, name: str, x):
        """x + attention(norm(x)) with one head."""
        n, c, height, width = x.shape
        tokens = self.norm(f"{name}.0", x).permute(0, 2, 3, 1).reshape(n, 1, -1, c)
        q, k, v = self.linear(f"{name}.1.qkv", tokens).chunk(3, dim=-1)
        y = self.linear(f"{name}.1.out", F.scaled_dot_product_attention(q, k, v))
        return x + y.reshape(n, height, width, c).permute(0, 3, 1, 2)

    def conv(self, name: str, x, stride: int = 1):
        """A convolution that keeps the size, up to its stride."""
        weight = self.leaves[f"{name}.weight"]
        bias = self.leaves[f"{name}.bias"]
        return F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2)

    def linear(self, name: str, x):
        """An affine map of the last axis."""
        return F.linear(x, self.leaves[f"{name}.weight"], self.leaves[f"{name}.bias"])

    def norm(self, name: str, x):
        """A group norm."""
        return F.group_norm(x, GROUPS, self.leaves[f"{name}.gain"], self.leaves[f"{name}.bias"])


class TorchUnetStep:
    """The step of `UnetStep`, from the same parameters, images and times.

    Args:
        workload: the net and its batch.
        memory_format: in which images and kernels lie in memory.
    """

    def __init__(self, workload: Workload, memory_format):
        ours, self.format = UnetStep(workload), memory_format
        theta, table = ours.params.theta, ours.params.table
        self.leaves = {
            name: self.tensor(theta[p.window].reshape(p.shape), kernel=True).requires_grad_()
            for name, p in table.items()
        }
        self.net = TorchUNet(self.leaves, workload.width)
        self.x, self.t = self.tensor(ours.x), torch.tensor(ours.t)
        self.first_eps = self.tensor(ours.noise(0))
        self.adam = torch.optim.Adam(self.leaves.values(), lr=1e-3, fused=True)

    def tensor(self, a, kernel: bool = False):
        """A copy in PyTorch's order of axes: (N, H, W, C) or, of a kernel, (k, k, n_in, n_out)."""
        a = torch.tensor(a)
        if a.ndim == 4:
            a = a.permute((3, 2, 0, 1) if kernel else (0, 3, 1, 2))
            a = a.contiguous(memory_format=self.format)
        return a

    def step(self) -> None:
        """Noise, forward, loss, backward, Adam."""
        self.backward(torch.randn_like(self.x))
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    def backward(self, eps):
        """The gradient of Σ (net(x, t) - ε)² / N into the leaves; returns net(x, t)."""
        y = self.net(self.x, self.t)
        (F.mse_loss(y, eps, reduction="sum") / len(y)).backward()
        return y

    def result(self) -> dict:
        """Output and gradient of the first step, as arrays in scratchgen's order of axes."""
        y = self.backward(self.first_eps)
        found = {"output": y.detach().permute(0, 2, 3, 1).numpy()}
        for name, leaf in self.leaves.items():
            grad = leaf.grad.permute(2, 3, 1, 0) if leaf.ndim == 4 else leaf.grad
            found[name] = grad.numpy()
        self.adam.zero_grad(set_to_none=True)
        return found


if __name__ == "__main__":
    serve(TorchUnetStep(WORKLOADS[sys.argv[1]], FORMATS[sys.argv[2]]))
