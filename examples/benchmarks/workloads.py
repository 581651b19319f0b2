"""What is timed, and who takes part."""

import platform
from math import gcd
from pathlib import Path
from typing import NamedTuple

from harness import KERNELS, OURS, Contender

HERE = Path(__file__).parent
TORCH, JAX = "PyTorch", "JAX"
GIVEN = "given.npz"  # what all contenders start from
SCHEDULE = {"steps": 30, "dropout": 0.0}  # 3 steps of warm-up: no rate is tiny
EPSILON = {"predict": "epsilon", "objective": "simple", "inject": "additive", **SCHEDULE}
BERNOULLI = {"likelihood": "bernoulli", "batch_size": 128, **SCHEDULE}
UNET_8 = {"data": "digits", "width": 64, "multipliers": "1,2", **EPSILON}
UNET_32 = {
    **{"data": "shapes", "size": 32, "colour": True, "width": 64, "multipliers": "1,2,2"},
    **EPSILON,
}
CHAINS = 16


class Workload(NamedTuple):
    """What is done, and to what.

    Args:
        kind: training (a step of it), reverse (a step of sampling) or convolution.
        model: whose recipe it is; none for a convolution.
        options: of the recipe, as `scratchgen train` takes them; the shape (N, H, W, C) of one.
        side: pixels a side of the black and white images that are drawn for it; 0 for none.
    """

    kind: str
    model: str
    options: dict
    side: int = 0


def _convolution(*shape: int) -> Workload:
    return Workload("convolution", "", {"shape": shape})


CONVOLUTIONS = (
    (32, 8, 8, 64),
    (128, 8, 8, 64),
    (128, 8, 8, 128),
    (64, 16, 16, 64),
    (32, 32, 32, 32),
    (32, 32, 32, 64),
    (32, 32, 32, 128),
)
WORKLOADS = {
    "vae-64": Workload("training", "vae", {"width": 256, "depth": 1, "latent": 16, **BERNOULLI}, 8),
    "vae-784": Workload(
        "training", "vae", {"width": 500, "depth": 2, "latent": 20, **BERNOULLI}, 28
    ),
    **{f"conv-{'x'.join(map(str, shape))}": _convolution(*shape) for shape in CONVOLUTIONS},
    "unet-8": Workload("training", "ddpm", {"batch_size": 128, **UNET_8}),
    "unet-32": Workload("training", "ddpm", {"batch_size": 16, **UNET_32}),
    "reverse-8": Workload("reverse", "ddpm", {"batch_size": CHAINS, **UNET_8}),
    "reverse-32": Workload("reverse", "ddpm", {"batch_size": CHAINS, **UNET_32}),
}


def contenders(name: str, folder: Path, threads: int) -> dict[str, Contender]:
    """Who does this workload.

    Args:
        name: of the workload.
        folder: what prepare.py wrote.
        threads: of each contender, in all its processes.
    """
    work, found = WORKLOADS[name], {}
    several = gcd(threads, CHAINS) if work.kind == "reverse" else 1  # chains know of no other

    def enter(called: str, side: str, script: str, *options: str, processes=(1,), **environment):
        for count in processes:
            each = threads // count
            command = [str(HERE / script), name, str(folder), str(each)]
            commands = [[*command, f"{i}/{count}", *options] for i in range(count)]
            full = called if count == processes[0] else f"{called}, {count} processes"
            found[full] = Contender(side, commands, each, environment)

    enter(OURS, OURS, "ours.py", processes=(several,))
    if platform.machine() in ("x86_64", "AMD64"):
        kernels = {KERNELS: "Haswell"}
        enter(f"{OURS}, Haswell kernels", OURS, "ours.py", processes=(several,), **kernels)
    either = (1, several) if several > 1 else (1,)  # a rival may do as ours does
    images = work.model != "vae"
    for layout in ("channels_last", "contiguous") if images else ("contiguous",):
        called = f"{TORCH} {layout}" if images else TORCH
        enter(called, TORCH, "rivals_torch.py", layout, "eager", processes=either)
    layout = "channels_last" if images else "contiguous"
    enter("torch.compile", TORCH, "rivals_torch.py", layout, "compile", processes=either)
    if work.kind == "reverse":
        frozen = "torch.compile, frozen"
        enter(frozen, TORCH, "rivals_torch.py", layout, "freeze", processes=either)
    enter(JAX, JAX, "rivals_jax.py", processes=either, JAX_PLATFORMS="cpu")
    return found


def rows_of(share: str, count: int) -> slice:
    """The rows of part i of n, which is written i/n."""
    i, n = map(int, share.split("/"))
    return slice(i * count // n, (i + 1) * count // n)
