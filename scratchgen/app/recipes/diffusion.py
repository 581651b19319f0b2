"""What `train ddpm` and `train vdm` have in common: the denoiser's net, and how to sample."""

from abc import abstractmethod
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen.app import plots
from scratchgen.app.recipes.base import Recipe, Sampled
from scratchgen.app.recipes.config import Config, option, require_below_one, whole_numbers
from scratchgen.app.recipes.data import PLANAR, density
from scratchgen.app.recipes.diffusion_sampling import DiffusionSampling, in_pieces, step_noise
from scratchgen.core.streams import Stream
from scratchgen.layers.normalisation import AdaptiveGroupNorm, AdditiveGroupNorm
from scratchgen.maths.bounds import bits_per_dim
from scratchgen.maths.forward_process import q_chain
from scratchgen.maths.parameterisations import (
    Clean,
    Epsilon,
    KWay,
    Mean,
    Parameterisation,
    Score,
    Velocity,
)
from scratchgen.metrics.baselines import baselines
from scratchgen.models.samplers import Denoiser, Stop, trajectory
from scratchgen.nets.mlp import TimedMlp
from scratchgen.nets.time import Sinusoidal
from scratchgen.nets.unet import UNet
from scratchgen.training.progress import say

UNET, MLP, AUTO, KWAY = "unet", "mlp", "auto", "kway"
AFFINE: dict[str, type[Parameterisation]] = {
    "epsilon": Epsilon,
    "clean": Clean,
    "velocity": Velocity,
    "score": Score,
    "mean": Mean,
}
INJECT = {"adaptive": AdaptiveGroupNorm, "additive": AdditiveGroupNorm}
FEW_LEVELS = 32  # up to which a net can well give every level of a pixel a logit
ATTEND_UP_TO = 16  # pixels a side
FRAMES = 12  # of a trajectory, behind the first
CHAINS = 8  # images drawn together, always so many: a product's last bit may depend on its rows
SHOWN, CLOUD = 8, 2000  # images, or points, on their way into noise
CURVE = "-ELBO on training batches, with dropout"
FILE_COMPRESSORS = ("zlib", "lzma", "uniform")


@dataclass(frozen=True)
class DiffusionConfig(Config):
    """The options of a diffusion run.

    Raises:
        ValueError: a value is outside its range, or the net does not fit the data.
    """

    net: str = option(
        AUTO, "unet for images, mlp for rows of numbers; auto takes what fits", (AUTO, UNET, MLP)
    )
    predict: str = option(
        AUTO,
        "what the net says: kway gives each level of a pixel a logit; auto takes it where there "
        f"are at most {FEW_LEVELS} levels, else epsilon",
        (AUTO, KWAY, *AFFINE),
    )
    width: int = option(0, "channels, or units of a hidden layer; 0 takes 32 for unet, 128 for mlp")
    depth: int = option(0, "blocks per resolution, or hidden layers; 0 takes 1 for unet, 3 for mlp")
    multipliers: str = option(
        "", "widths of the U-Net's resolutions in units of --width; auto: 1,1 up to 1,2,2"
    )
    inject: str = option(
        "adaptive", "how the U-Net hears of the time: a scale and shift, or a sum", tuple(INJECT)
    )
    fourier: bool = option(False, "sines and cosines of the pixels as further inputs (unet)")
    steps: int = option(4000, "training steps in all")
    batch_size: int = option(64, "examples per step")
    dropout: float = option(0.2, "dropout rate in every block; not for points")
    learning_rate: float = option(2e-3, "Adam's peak rate, after warm-up and before cosine decay")

    @property
    def left_open(self) -> dict[str, Any]:
        """What options stand for that are not given, where that depends on others."""
        return {"width": 32, "depth": 1} if self.net == UNET else {"width": 128, "depth": 3}

    @property
    def without_effect(self) -> dict[str, str]:
        """Options that say nothing here, and what they are for."""
        images = ("dropout",) if self.data in PLANAR else ()
        unet = ("multipliers", "inject", "fourier") if self.net == MLP else ()
        mine = dict.fromkeys(images, "images") | dict.fromkeys(unet, "--net unet")
        return super().without_effect | mine

    def __post_init__(self):
        planar = self.data in PLANAR
        if self.net == AUTO:
            object.__setattr__(self, "net", MLP if planar else UNET)
        super().__post_init__()
        require_below_one(self, "dropout")
        misfits = {"--net unet": self.net == UNET, "--predict kway": self.predict == KWAY}
        for flag, chosen in misfits.items():
            if planar and chosen:
                raise ValueError(
                    f"{self.data} are points in the plane, without pixels or levels; leave out "
                    f"{flag}"
                )
        if self.net == UNET and self.width % 8:
            raise ValueError(f"--width must be a multiple of 8 for --net unet, got {self.width}")
        self.channels_at(8)

    def channels_at(self, side: int) -> tuple[int, ...]:
        """The channels at each resolution of a U-Net for that many pixels a side, in widths.

        Raises:
            ValueError: --multipliers cannot be read.
        """
        if not self.multipliers:
            return (1, 1) if side <= 8 else (1, 2) if side <= 16 else (1, 2, 2)
        return whole_numbers(self, "multipliers")

    @property
    def spatial(self) -> bool:
        """Whether the net sees images as images."""
        return self.net == UNET


class DiffusionRecipe(Recipe):
    """A configured diffusion."""

    config: DiffusionConfig
    sampling_type = DiffusionSampling
    shares_samples = True
    shows = "means of the last step"

    @abstractmethod
    def stops(self, count: int) -> list[Stop]:
        """The places a sampler passes; 0 takes the model's own number."""

    @abstractmethod
    def denoiser(self, options: Any) -> Denoiser:
        """The net as samplers ask it."""

    def decode(self, x):
        """What is shown for the last x of a sampler, at the last stop."""
        return x

    @property
    def parameterisation(self) -> Parameterisation:
        """What the net's output means.

        Raises:
            ValueError: the data have too many levels for a logit each, or none.
        """
        predict, levels = self.config.predict, self.fitted.levels
        if predict == AUTO:
            predict = KWAY if levels is not None and levels <= FEW_LEVELS else "epsilon"
        return KWay(levels) if predict == KWAY else AFFINE[predict]()

    def baselines(self, part, fitted=None) -> dict[str, float]:
        """Bits per dimension without a model; for points, those of their own density.

        Args:
            part: what is coded.
            fitted: what is known beforehand; what the model was trained on, unless given.
        """
        fitted = self.fitted if fitted is None else fitted
        if fitted.levels is not None:
            return baselines(fitted.codes, part.codes, fitted.levels)
        nats = -float(np.mean(density(self.config.data).log_prob(part.x)))
        return {"the density itself": bits_per_dim(nats, self.dims)}

    def training_figures(self, folder: Path) -> None:
        """The loss curve, with model-free levels beside it."""
        history = self.fit.history
        if not history:
            return
        rows = [dict(zip(history, row, strict=True)) for row in zip(*history.values(), strict=True)]
        bits = np.asarray([self.columns(row)["bits_per_dim"] for row in rows])
        lines = self.baselines(self.part("validation"), self.part("fit"))  # may be trained on both
        kept = {f"{k}, held out": v for k, v in lines.items() if k not in FILE_COMPRESSORS}
        path = folder / "figures" / "loss.png"
        plots.loss_curves(path, history["step"], {CURVE: bits}, "bits per dimension", kept)

    def net(self, of_variance: int = 0, scale: float = 1.0, reads_data: bool = True):
        """The denoiser.

        Args:
            of_variance: how many numbers it gives for the variance of each number of the data.
            scale: by which it multiplies times.
            reads_data: whether no cotangent of x_t is wanted.

        Raises:
            ValueError: images for a U-Net are not square, or do not halve.
        """
        config, way = self.config, self.parameterisation
        each = (way.levels if isinstance(way, KWay) else 1) + of_variance
        if config.net == MLP:
            sizes = [self.dims, *[config.width] * config.depth, self.dims * each]
            time = Sinusoidal(32, scale=scale)
            return TimedMlp(sizes, 32, time, dropout=config.dropout if self.fitted.levels else 0.0)
        side, width, channels = self.shape
        if side != width:
            raise ValueError(
                f"a U-Net takes square images, got {side}×{width} pixels; give --size, which crops "
                "files to squares, or take --net mlp"
            )
        multipliers = config.channels_at(side)
        sides = [side >> i for i in range(len(multipliers))]
        return UNet(
            side,
            channels,
            channels * each,
            width=config.width,
            multipliers=multipliers,
            blocks=config.depth,
            attention=[s for s in sides[1:] if 8 <= s <= ATTEND_UP_TO],
            dropout=config.dropout,
            inject=INJECT[config.inject],
            time=Sinusoidal(config.width, scale=scale),
            fourier=self._exponents() if config.fourier else (),
            reads_data=reads_data,
        )

    def _exponents(self) -> tuple[int, int]:
        """n with 2ⁿ π times the width of a pixel's level about π, and the one below."""
        n = ceil(log2(self.fitted.levels / 2.0))
        return n - 1, n

    def sample(self, n: int, seed: int, options: DiffusionSampling, processes: int = 1) -> Sampled:
        """n samples; the noise of sample i depends on the seed and on i only."""
        stops, denoise = self.stops(options.steps), self.denoiser(options)
        kept = _moments(len(stops)) if options.trajectory else [len(stops) - 1]
        count = CHAINS if self.config.spatial else self.at_once
        shape = (count, *self.examples(self.fitted.take(slice(0, 1))).shape[1:])

        def draw(piece: int) -> np.ndarray:  # (moments, chains, ...)
            stream = Stream(seed, self.born).at("sample").from_row(piece * count)
            noise = step_noise(stream, shape, options.shared_noise)
            x = options.temperature * stream.at("start").normal(shape)
            walk = trajectory(denoise, options.step, x, stops, noise, options.step_temperature)
            with self.params.frozen():
                moments = [x for i, x in enumerate(walk) if i in kept]
                moments[-1] = self.decode(moments[-1])  # the last stop is always kept
            return np.stack([self.images(x) for x in moments])

        pieces, several = ceil(n / count), (len(kept), count, *self.shape)
        processes = min(processes, pieces)
        shared = f", shared by {processes} processes" if processes > 1 else ""
        say(f"drawing {n} samples in {len(stops) - 1} steps{shared}")
        drawn = in_pieces(draw, pieces, several, self.config.dtype, processes)
        path = tuple(drawn.swapaxes(0, 1).reshape(len(kept), -1, *self.shape)[:, :n])
        if not options.trajectory:
            return Sampled(path[-1])
        return Sampled(path[-1], path, self._forward([stops[at] for at in reversed(kept)], seed))

    def _forward(self, stops: list[Stop], seed: int) -> tuple[np.ndarray, ...]:
        """Training examples on their way into noise, at these stops from data on."""
        x = self.examples(self.fitted.take(slice(SHOWN if self.fitted.levels else CLOUD)))
        noise = Stream(seed, self.born).at("forward").normal((x.shape[0], len(stops), *x.shape[1:]))
        xp = self.born.xp
        levels = [0.0, *(stop.level for stop in stops)]
        rows = xp.asarray(levels, dtype=xp.float64, device=self.born.device)[:, None]
        steps = xp.moveaxis(noise, 1, 0)
        chain = q_chain(x, steps, rows)
        return tuple(self.images(chain[i + 1, ...]) for i in range(len(stops)))


def _moments(count: int) -> list[int]:
    """Which of that many stops a trajectory keeps: the first, the last, and some between."""
    return sorted({0} | {round((count - 1) * (i + 1) / FRAMES) for i in range(FRAMES)})


def without_a_model(result: dict) -> list[str]:
    """The yardsticks of a report, in bits per dimension, and a warning where they say one."""
    lines = ["without a model, bits/dim:"]
    known = result["baselines"]
    lines += [
        f"  {name:33}{bits:10.4f}" for name, bits in sorted(known.items(), key=lambda p: p[1])
    ]
    if result["bits_per_dim"] > known.get("uniform", float("inf")):
        lines.append("warning: worse than a uniform code; this run did not go well")
    return lines
