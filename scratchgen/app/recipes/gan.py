"""`train gan`: generators that play against a discriminator, on points of the plane or images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen.app import gan_plots, plots
from scratchgen.app.recipes import gan_report
from scratchgen.app.recipes.base import Recipe, Sampled, Sampling
from scratchgen.app.recipes.classifier import can_be_judged, judge_for
from scratchgen.app.recipes.config import (
    CONV,
    Config,
    option,
    require_at_least,
    require_not_negative,
    require_positive,
)
from scratchgen.app.recipes.data import PLANAR, modes
from scratchgen.core.arrays import full_like, to_host
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.layers.activations import leaky_relu, relu
from scratchgen.layers.combinators import Sequential
from scratchgen.layers.normalisation import BatchNorm, layer_norm, tracking
from scratchgen.layers.resampling import reshaped
from scratchgen.metrics.coverage import class_opinions, mode_coverage
from scratchgen.models.gan import (
    Gan,
    KlDivergence,
    LeastSquares,
    Minimax,
    NonSaturating,
    Wasserstein,
    clip,
    gradient_penalty,
    interpolate_normal,
)
from scratchgen.nets.convnet import dcgan_discriminator, dcgan_generator
from scratchgen.nets.mlp import mlp
from scratchgen.training.fit import NotFinite, batch_indices
from scratchgen.training.opponent import Opponent
from scratchgen.training.optim import Adam, Optimiser, RmsProp, warmup_cosine
from scratchgen.training.progress import say

AUTO, MLP = "auto", "mlp"
WGAN, PENALISED = "wgan", "wgan-gp"
LOSSES = {
    "minimax": Minimax,
    "non-saturating": NonSaturating,
    "kl": KlDivergence,
    "lsgan": LeastSquares,
    WGAN: Wasserstein,
    PENALISED: Wasserstein,
}
# the best of a few on five by five modes, in two minutes; at so small a weight slopes exceed 1
# (GAN-12), so what the critic says of data less of fakes is no W₁
POINTS_PENALISED = {
    "discriminator_steps": 2,
    "penalty": 0.1,
    "steps": 10000,
    "learning_rate": 2e-3,
}
SHOWN = 2000, 64  # points, or images, after training
ROW = 8  # images of a way from one latent to another
NAMES = {
    "generator": "generator_cost",
    "real": "discriminator_cost_of_data",
    "fake": "discriminator_cost_of_fakes",
    "penalty": "gradient_penalty",
    "gradient_norm": "generator_gradient_norm",
    "opponent_gradient_norm": "discriminator_gradient_norm",
}
WON = 0.05  # a discriminator's cost below which it tells nearly every fake from data


@dataclass(frozen=True)
class GanConfig(Config):
    """The options of a GAN's run.

    Raises:
        ValueError: a value is outside its range, or options do not fit each other.
    """

    loss: str = option(
        "non-saturating",
        "the game: what the discriminator and the generator minimise",
        tuple(LOSSES),
    )
    net: str = option(
        AUTO,
        "conv for images (DCGAN), mlp for rows of numbers; auto takes what fits",
        (AUTO, MLP, CONV),
    )
    latent: int = option(0, "size of z; 0 takes 2 for points, 64 for conv, else 16")
    discriminator_steps: int = option(
        0,
        "steps of the discriminator for each of the generator; 0 takes 5 for wgan and wgan-gp (2 "
        "for wgan-gp on points), else 1",
    )
    penalty: float = option(
        None, "wgan-gp: weight of the gradient penalty (default: 10, or 0.1 for points)"
    )
    clip: float = option(
        None, "wgan: the critic's weights stay between minus and plus this (default: 0.01)"
    )
    width: int = option(
        0, "units per hidden layer, or channels next to the image for conv; 0 takes 128, or 32"
    )
    depth: int = option(3, "hidden layers of each net; not for conv")
    steps: int = option(0, "steps of the generator; 0 takes 10000 for wgan-gp on points, else 4000")
    batch_size: int = option(128, "examples per step")
    learning_rate: float = option(
        0.0,
        "of both optimisers, Adam's falling to 0 along a cosine; 0 takes 2e-3 for wgan-gp on "
        "points, 1e-3 for other points, else 2e-4. wgan has RMSProp, at a constant rate; 0 takes "
        "5e-5",
    )

    @property
    def left_open(self) -> dict[str, Any]:
        """What options stand for that are not given, where that depends on others."""
        conv, planar = self.net == CONV, self.data in PLANAR
        usual = {
            "width": 32 if conv else 128,
            "latent": 64 if conv else 2 if planar else 16,
            "discriminator_steps": 5 if self.loss in (WGAN, PENALISED) else 1,
            "penalty": 10.0 if self.loss == PENALISED else 0.0,
            "clip": 0.01 if self.loss == WGAN else 0.0,
            "steps": 4000,
            "learning_rate": 5e-5 if self.loss == WGAN else 1e-3 if planar else 2e-4,
        }
        return usual | (POINTS_PENALISED if planar and self.loss == PENALISED else {})

    @property
    def without_effect(self) -> dict[str, str]:
        """Options that say nothing here, and what they are for."""
        games = {"clip": WGAN, "penalty": PENALISED}
        return {
            **super().without_effect,
            **{name: f"--loss {loss}" for name, loss in games.items() if loss != self.loss},
        }

    def __post_init__(self):
        if self.net == AUTO:
            object.__setattr__(self, "net", MLP if self.data in PLANAR else CONV)
        super().__post_init__()
        require_at_least(self, 1, "latent", "discriminator_steps")
        require_not_negative(self, "penalty")
        if self.loss == WGAN:
            require_positive(self, "clip")
        if self.data in PLANAR and self.net == CONV:
            raise ValueError(f"{self.data} are points in the plane; leave out --net conv")


@dataclass(frozen=True)
class GanSampling(Sampling):
    """The options of a GAN's sampler."""

    interpolate: bool = option(
        False, f"rows of {ROW} samples on the way from one latent to another (gan)", pictures=True
    )


class GanRecipe(Recipe):
    """A configured GAN."""

    name, config_type = "gan", GanConfig
    sampling_type = GanSampling
    config: GanConfig
    model: Sequential
    draws, per_example = 2500, False
    shows = "the generator's output"

    def __init__(self, config: GanConfig):
        super().__init__(config)
        discriminator = self.discriminator()
        params = FlatParameters(discriminator, self.stream.at("discriminator"))
        self.gan = Gan(self.model, discriminator, params, LOSSES[config.loss]())
        limited = (lambda: clip(params, config.clip)) if config.loss == WGAN else None
        self.opponent = Opponent(
            self.gan,
            params,
            self.optimiser(params, config.steps * config.discriminator_steps),
            self.opponent_loss,
            config.batch_size,
            config.discriminator_steps,
            after=limited,
            within=tracking,
        )
        self.fit.opponent = self.opponent

    @property
    def whole(self) -> Gan:
        """Both sides."""
        return self.gan

    @property
    def sides(self) -> dict[str, FlatParameters]:
        """Those of the generator and of the discriminator."""
        return {"generator": self.params, "discriminator": self.opponent.params}

    def build(self) -> Sequential:
        """The generator."""
        config = self.config
        if config.net == CONV:
            return dcgan_generator(self.shape, config.latent, config.width)
        return mlp([config.latent, *[config.width] * config.depth, self.dims], relu)

    def discriminator(self) -> Sequential:
        """The discriminator; under a penalty one that does not mix examples."""
        config = self.config
        if config.net == CONV:
            norm = layer_norm if config.loss == PENALISED else BatchNorm
            return dcgan_discriminator(self.shape, config.width, norm)
        layers = mlp([self.dims, *[config.width] * config.depth, 1], leaky_relu).layers
        return Sequential(*layers, reshaped())

    def optimiser(self, params: FlatParameters, steps: int) -> Optimiser:
        """Adam at β₁ = 0.5, β₂ = 0.9, as WGAN-GP took; RMSProp where weights are clipped."""
        if self.config.loss == WGAN:
            return RmsProp(params, self.config.learning_rate)
        return Adam(params, warmup_cosine(self.config.learning_rate, steps), beta1=0.5, beta2=0.9)

    def loss(self, step: int, rows: slice) -> dict:
        """The generator's cost."""
        noise = self.stream.at("train", step).from_row(rows.start)
        z = noise.at("z").normal((rows.stop - rows.start, self.config.latent))
        term, pullback = self.gan.generator_loss(z, noise)
        pullback(full_like(term, 1.0 / self.config.batch_size))
        return {"generator": term}

    def opponent_loss(self, step: int, j: int, rows: slice) -> dict:
        """The discriminator's cost of data and of fakes, and the penalty of its slope."""
        config, n = self.config, rows.stop - rows.start
        batch = step * config.discriminator_steps + j
        chosen = batch_indices(
            self.stream.at("batches"), len(self.fitted), config.batch_size, batch
        )[rows]
        x = self.born.xp.take(self._x, self.born.indices(chosen), axis=0)
        noise = self.stream.at("opponent", batch).from_row(rows.start)
        fake = self.gan.generate(noise.at("z").normal((n, config.latent)), noise)
        (real_term, fake_term), pullback = self.gan.discriminator_loss(x, fake, noise)
        share = full_like(real_term, 1.0 / config.batch_size)
        pullback(share, share)
        terms = {"real": real_term, "fake": fake_term}
        if config.loss == PENALISED:
            u = noise.at("u").uniform((n,))
            penalty, pullback = gradient_penalty(
                self.gan.discriminator, self.opponent.params, x, fake, u
            )
            pullback(config.penalty * share)
            terms["penalty"] = penalty
        return terms

    def columns(self, row: dict[str, float]) -> dict[str, float]:
        """Every cost, in nats for the first three losses, and the norms of both gradients.

        Of a Wasserstein critic also what it makes of the difference between data and fakes.
        """
        named = {NAMES[name]: value for name, value in row.items() if name in NAMES}
        if self.config.loss in (WGAN, PENALISED):
            named["critic_of_data_less_of_fakes"] = -(row["real"] + row["fake"])
        return named

    def describe(self, row: dict[str, float]) -> str:
        """The costs of both sides, which are small where a critic's weights are clipped."""
        cost = row["real"] + row["fake"]
        return f"discriminator {cost:.3g}, generator {row['generator']:.3g}"

    def remarks(self) -> list[str]:
        """Whether the discriminator has won, and what to do then."""
        history = self.fit.history
        if not history or self.config.loss in (WGAN, PENALISED):
            return []
        cost = history["real"][-1] + history["fake"][-1]
        if cost > WON:
            return []
        flat = "; the minimax cost is flat there" if self.config.loss == "minimax" else ""
        return [
            f"the discriminator tells nearly every fake from data (its cost is {cost:.2g}), so its "
            f"score may say little of how to improve them{flat}; --loss wgan-gp is less prone to it"
        ]

    def training_figures(self, folder: Path) -> None:
        """The costs and gradient norms of both sides, and samples: the costs say little of them."""
        rows = self.fit.rows
        if rows:
            table = [self.columns(row) for row in rows]
            curves = {name: [row[name] for row in table] for name in table[0]}
            steps = [row["step"] for row in rows]
            gan_plots.course(folder / "figures" / "loss.png", steps, curves)
        with self.ema.applied():
            x = self.sample(SHOWN[len(self.shape) > 1], 0, GanSampling()).x
        path, title = folder / "figures" / "generated.png", f"gan after {self.fit.steps_done} steps"
        plots.samples(path, x, title, self.fitted)

    def evaluate(self, part, draws: int, seed: int = 0) -> dict:
        """Of so many samples: which modes, or classes, they show, and how well.

        Points of equal round normals are compared with those, images with what a small classifier
        of the data makes of them, which is fairly sure of any image: so it also sees the data with
        each pixel shuffled between images. Other points, and images without labels, have nothing to
        count.

        Raises:
            NotFinite: the samples are not finite.
        """
        x = self.sample(draws, seed, GanSampling()).x
        if not np.isfinite(x).all():
            raise NotFinite("samples are not finite; train again at a lower --learning-rate")
        found: dict = {"samples": draws, "seed": seed}
        if part.levels is None:
            known = modes(self.config.data)
            return found | (mode_coverage(x, *known)._asdict() if known else {})
        if self.judge is None and can_be_judged(self):
            say("training a small classifier to tell which classes the samples show")
        judge = self.judge or judge_for(self)
        if judge is not None:
            found["classifier_accuracy"] = judge.evaluate(part, 1)["accuracy"]
            order = Stream(seed, self.born).at("shuffled").uniform(part.x.shape)
            mixed = np.take_along_axis(part.x, np.argsort(to_host(order), axis=0), axis=0)
            sets = {"samples": x, "data": part.x, gan_report.MIXED: mixed}
            for name, images in sets.items():
                confidence, shares = class_opinions(judge.opinions(images))
                found[f"confidence_on_{name}"] = confidence
                found[f"class_shares_of_{name}"] = shares.tolist()
        return found

    @staticmethod
    def report(result: dict) -> list[str]:
        """The same in lines; modes and classes that are missing are said."""
        return gan_report.lines(result)

    def evaluation_files(self, folder: Path, name: str, part, result: dict) -> None:
        """Nothing beyond what `sample` draws."""

    def sample(self, n: int, seed: int, options: GanSampling, processes: int = 1) -> Sampled:
        """G(z) at n draws of z, or on the ways between draws."""
        stream, count = Stream(seed, self.born).at("sample"), self.at_once
        whole = -(-n // count) * count  # whole batches: a product's last bit depends on its rows
        if options.interpolate:
            shape = (-(-whole // ROW), self.config.latent)
            first, last = (stream.at(end).normal(shape) for end in ("first", "last"))
            way = self.born.xp.moveaxis(interpolate_normal(first, last, ROW), 0, 1)
            z = self.born.xp.reshape(way, (-1, self.config.latent))[:whole, ...]
        else:
            z = stream.normal((whole, self.config.latent))
        z = options.temperature * z
        starts = range(0, whole, count)
        x = [self.images(self.model(z[start : start + count, ...])[0]) for start in starts]
        return Sampled(np.concatenate(x)[:n], columns=ROW if options.interpolate else None)
