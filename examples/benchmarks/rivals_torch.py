"""PyTorch's side: the same work in torch.nn.functional.

    python rivals_torch.py WORKLOAD FOLDER THREADS SHARE LAYOUT MODE

LAYOUT says how images and kernels lie in memory: channels_last or contiguous. MODE is a key of
MODES; freeze is for sampling only.
"""

import sys
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from ops_torch import Ops
from rivals import Given, Mlp, UNet
from torch import _inductor as inductor
from worker import serve
from workloads import WORKLOADS, rows_of

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
MODES = {
    "eager": "eager",
    "compile": "torch.compile, mode default, of the loss or of the step of sampling",
    "freeze": "torch.compile, mode default, with freezing, of the step of sampling",
}


class Torch:
    """What PyTorch's contenders have in common: tensors, layout, and perhaps the compiler."""

    def __init__(self, given: Given, layout: str, mode: str):
        self.given, self.format = given, LAYOUTS[layout]
        self.compiled = (lambda function: function) if mode == "eager" else torch.compile
        self.options = {
            "dtype": "float32",
            "threads": torch.get_num_threads(),
            "memory_format": layout,
            "mode": MODES[mode],
            "torch": torch.__version__,
        }

    def image(self, a):
        """(N, H, W, C) -> a tensor (N, C, H, W)."""
        return self.laid_out(torch.tensor(a), 0, 3, 1, 2)

    def kernel(self, a):
        """(k, k, n_in, n_out) -> a tensor (n_out, n_in, k, k)."""
        return self.laid_out(torch.tensor(a), 3, 2, 0, 1)

    def laid_out(self, a, *axes: int):
        """The four axes in another order, and in the chosen layout; other arrays as they are."""
        return a.permute(axes).contiguous(memory_format=self.format) if a.ndim == 4 else a

    def leaves(self, needs_grad: bool) -> dict:
        """The parameters by name."""
        theta = {name: self.kernel(a) for name, a in self.given.theta.items()}
        return {name: a.requires_grad_(needs_grad) for name, a in theta.items()}


class Training(Torch):
    """A training step, with a loss of (parameters, x, ...) that subclasses give."""

    def __init__(self, given: Given, share: str, layout: str, mode: str):
        super().__init__(given, layout, mode)
        facts = given.facts
        self.theta, self.steps = self.leaves(True), 0
        self.build()
        self.loss_of = self.compiled(self.loss)
        self.x = self.image(given.arrays["x"])
        self.batch = (facts["batch_size"],)
        self.adam = torch.optim.Adam(
            self.theta.values(),
            lr=facts["peak"],
            betas=(facts["beta1"], facts["beta2"]),
            eps=facts["tiny"],
            fused=True,
        )
        for leaf in self.theta.values():  # which its first step would make, and count
            averages = {name: torch.zeros_like(leaf) for name in ("exp_avg", "exp_avg_sq")}
            self.adam.state[leaf] = {"step": torch.zeros(()), **averages}
        self.options |= {"optimiser": "Adam, fused", "generator": "torch's own"}

    def step(self) -> None:
        """Batch, noise, forward, loss, backward, Adam."""
        x = self.x[torch.randint(len(self.x), self.batch)]
        self.update(self.loss_of(self.theta, x, *self.noise(x)))

    def update(self, loss) -> dict:
        """Backward and Adam; returns the gradient by name."""
        loss.backward()
        gradient = {name: leaf.grad for name, leaf in self.theta.items()}
        self.adam.param_groups[0]["lr"] = self.given.rate(self.steps)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.steps += 1
        return gradient

    def result(self) -> dict:
        """The gradient of the first step, and θ after some, in scratchgen's order of axes."""
        gradients = [
            self.update(self.loss_of(self.theta, *self.tensors(*batch)))
            for batch in self.given.batches
        ]
        found = {f"the gradient of {name}": _ours(g) for name, g in gradients[0].items()}
        flat = torch.cat([_ours(leaf.detach()).reshape(-1) for leaf in self.theta.values()])
        found[f"θ after {len(gradients)} steps"] = flat
        return {name: a.numpy() for name, a in found.items()}


def _ours(a):
    return a.permute(2, 3, 1, 0) if a.ndim == 4 else a


class VaeTraining(Training):
    """-ELBO with a Bernoulli likelihood, one sample of z."""

    def build(self) -> None:
        """Encoder and decoder."""
        self.encoder, self.decoder = (
            Mlp(Ops, self.theta, part) for part in ("encoder.", "decoder.")
        )

    def noise(self, x):
        """ε (N, K)."""
        return (torch.randn(len(x), self.given.facts["latent"]),)

    def tensors(self, x, eps) -> list:
        """A given batch as `loss` takes it."""
        return [torch.tensor(x), torch.tensor(eps[0])]

    def loss(self, p, x, eps):
        """The mean over the batch, in nats; x is ∓½."""
        mean, logvar = self.encoder(p, x).chunk(2, dim=1)
        logits = self.decoder(p, mean + torch.exp(0.5 * logvar) * eps)
        nll = F.binary_cross_entropy_with_logits(logits, x + 0.5, reduction="sum")
        kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).sum()
        return (nll + kl) / len(x)


class DdpmTraining(Training):
    """Algorithm 1: ‖ε - ε̂(x_t, t)‖²."""

    def build(self) -> None:
        """The net and the schedule."""
        self.net = UNet(Ops, self.theta, self.given.facts["groups"])
        self.signal, self.spread = map(torch.tensor, self.given.noise_level())

    def noise(self, x):
        """t (N,) in 1..T, ε like x."""
        return torch.randint(1, len(self.signal), (len(x),)), torch.randn_like(x)

    def tensors(self, x, t, eps) -> list:
        """A given batch as `loss` takes it."""
        return [self.image(x), torch.tensor(t), self.image(eps)]

    def loss(self, p, x, t, eps):
        """The mean over the batch."""
        signal, spread = (table[t][:, None, None, None] for table in (self.signal, self.spread))
        guess = self.net(p, signal * x + spread * eps, t.to(x.dtype))
        return F.mse_loss(guess, eps, reduction="sum") / len(x)


class Frozen(torch.nn.Module):
    """A net with its parameters inside, where the compiler may take them for constants."""

    def __init__(self, net, theta: dict):
        super().__init__()
        inductor.config.freezing = True
        self.net, self.places = net, {name: name.replace(".", "/") for name in theta}
        for name, place in self.places.items():
            self.register_parameter(place, torch.nn.Parameter(theta[name], requires_grad=False))

    def forward(self, x, t):
        """Images and times -> images."""
        return self.net({name: getattr(self, place) for name, place in self.places.items()}, x, t)


class Reverse(Torch):
    """A step of ancestral sampling, in inference mode."""

    def __init__(self, given: Given, share: str, layout: str, mode: str):
        super().__init__(given, layout, mode)
        self.theta, start = self.leaves(False), given.arrays["start"]
        net = UNet(Ops, self.theta, given.facts["groups"])
        self.net = Frozen(net, self.theta) if mode == "freeze" else partial(net, self.theta)
        table = given.reverse_step()
        self.table = torch.tensor(np.stack(list(table.values()), axis=1))
        self.rows, self.last = rows_of(share, len(start)), len(self.table) - 1
        self.before = self.compiled(self.reverse)
        self.x, self.t = self.image(start[self.rows]), self.last
        self.options |= {"autograd": "inference mode", "generator": "torch's own"}

    @torch.inference_mode()
    def step(self) -> None:
        """One step of a chain; behind its end the next one starts."""
        if self.t == 0:
            self.x, self.t = torch.randn_like(self.x), self.last
        self.x, _ = self.take(self.x, self.t, torch.randn_like(self.x))
        self.t -= 1

    def take(self, x, t: int, z):
        """x_{t-1} and ε̂."""
        return self.before(x, torch.full((len(x),), float(t)), self.table[t], z)

    def reverse(self, x, t, c, z):
        """x_t, its times (N,), the coefficients and noise -> x_{t-1} and ε̂."""
        epsilon = self.net(x, t)
        clean, kept, fresh, signal, noise = c
        return clean * ((x - noise * epsilon) / signal) + kept * x + fresh * z, epsilon

    @torch.inference_mode()
    def result(self) -> dict:
        """ε̂ and x in some steps, from a given start with given noise."""
        x, t = self.image(self.given.arrays["start"][self.rows]), self.given.facts["first"]
        found = {}
        for i, z in enumerate(self.given.arrays["noise"][:, self.rows]):
            x, epsilon = self.take(x, t - i, self.image(z))
            found |= {f"ε̂ of step {i}": epsilon, f"x after step {i}": x}
        return {name: x.permute(0, 2, 3, 1).numpy() for name, x in found.items()}


class Convolution(Torch):
    """y, dx and dw of a 3×3 convolution."""

    def __init__(self, given: Given, share: str, layout: str, mode: str):
        super().__init__(given, layout, mode)
        self.x, self.dy = (self.image(given.arrays[name]) for name in ("x", "dy"))
        self.weight = self.kernel(given.arrays["weight"])
        self.inputs = [a.requires_grad_() for a in (self.x, self.weight)]
        self.conv = self.compiled(lambda x, weight: F.conv2d(x, weight, padding=1))

    def step(self):
        """Forward and backward."""
        y = self.conv(*self.inputs)
        return y, *torch.autograd.grad(y, self.inputs, self.dy)

    def result(self) -> dict:
        """y, dx and dw in scratchgen's order of axes."""
        y, dx, dw = (a.detach() for a in self.step())
        images = {"y": y.permute(0, 2, 3, 1), "dx": dx.permute(0, 2, 3, 1)}
        return {name: a.numpy() for name, a in {**images, "dw": _ours(dw)}.items()}


KINDS = {
    ("training", "vae"): VaeTraining,
    ("training", "ddpm"): DdpmTraining,
    ("reverse", "ddpm"): Reverse,
    ("convolution", ""): Convolution,
}

if __name__ == "__main__":
    name, folder, threads, share, layout, mode = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    work = WORKLOADS[name]
    serve(KINDS[work.kind, work.model](Given(folder), share, layout, mode))
