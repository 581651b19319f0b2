"""`train hvae`: hierarchical VAEs over the levels of small images, Markovian or bidirectional."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from scratchgen.app import plots
from scratchgen.app.recipes.base import Sampled, Sampling
from scratchgen.app.recipes.config import (
    CONV,
    numbers,
    option,
    require_at_least,
    require_not_negative,
    whole_numbers,
)
from scratchgen.app.recipes.hvae_report import ACTIVE, LADDER, MARKOV, collapsed, level_table
from scratchgen.app.recipes.likelihood import LikelihoodConfig, LikelihoodRecipe
from scratchgen.core.arrays import full_like
from scratchgen.core.streams import Stream
from scratchgen.data.images import Images
from scratchgen.maths.bounds import bits_per_dim
from scratchgen.metrics.likelihood import hierarchy_bounds, in_batches, mean_and_error
from scratchgen.models.hierarchy import Hierarchy
from scratchgen.models.ladder_hvae import LadderHvae
from scratchgen.models.markov_hvae import MarkovHvae
from scratchgen.models.vae import active_units
from scratchgen.nets.ladder import chain_between, conv_ladder, mlp_ladder
from scratchgen.training.kl_control import KlControl, SpikeGuard

MOST_LEVELS = 64
ROW = 8  # samples of a row, which share what is kept


@dataclass(frozen=True)
class HvaeConfig(LikelihoodConfig):
    """The options of a hierarchical VAE's run.

    Raises:
        ValueError: a value is outside its range, or options do not fit each other.
    """

    kind: str = option(
        LADDER,
        "ladder: each latent depends on all above it, and the encoder goes down beside the "
        "generator; markov: a chain, in which each depends on its neighbour only",
        (LADDER, MARKOV),
    )
    levels: int = option(2, "L, the number of latents z_1 (the top, drawn first) to z_L")
    latents: str = option(
        "",
        "size of each latent from the top, such as 8,16; of a conv ladder the channels of its map, "
        "whose sides rise from 4 pixels (default: 16 each, or 4 channels)",
    )
    warm_up: float = option(
        0.3, "share of the steps, 0 to 1, in which the weight of every KL rises to 1; 0 is none"
    )
    free_bits: float = option(
        0.0, "nats of KL that each level of a ladder may have before training pushes it down"
    )
    balance: bool = option(
        False,
        "while --warm-up lasts, push a level of a ladder down less that has little KL for its size",
    )
    max_gradient: float = option(
        0.0, "skip steps whose gradient is longer (its Euclidean norm); 0 skips none"
    )
    width: int = option(
        0,
        "units per hidden layer, or channels at full resolution for conv; 0 takes 192, or 32",
    )
    depth: int = option(
        2,
        "hidden layers in the encoder of the data, in the decoder, and in every net between two "
        "latents of a chain; not for conv",
    )
    steps: int = option(
        6000, "training steps in all; a step of a conv ladder takes many times as long as of mlp"
    )
    dropout: float = option(
        0.18, "dropout rate in the encoders of data and in the decoder, not between latents"
    )

    def __post_init__(self):
        super().__post_init__()
        require_at_least(self, 1, "levels")
        if self.levels > MOST_LEVELS:
            raise ValueError(f"--levels must be at most {MOST_LEVELS}, got {self.levels}")
        require_not_negative(self, "free_bits", "max_gradient")
        if not 0.0 <= self.warm_up <= 1.0:
            raise ValueError(f"--warm-up must lie in [0, 1], got {self.warm_up}")
        if self.kind == MARKOV and (self.balance or self.free_bits):
            raise ValueError(
                "--balance and --free-bits are for --kind ladder: a chain's single KL terms may be "
                "negative, and weighting them one by one would reward that; leave them out"
            )
        if self.balance and self.warm_up == 0.0:
            raise ValueError("--balance acts while --warm-up lasts; add --warm-up, such as 0.3")
        if self.kind == LADDER and self.depth == 0:
            raise ValueError("--depth must be at least 1 for --kind ladder, got 0")
        if len(self.sizes) != self.levels:
            raise ValueError(
                f"--latents must name one size for each of the {self.levels} --levels, got "
                f"{self.latents!r}"
            )
        object.__setattr__(self, "latents", ",".join(map(str, self.sizes)))

    @property
    def left_open(self) -> dict[str, Any]:
        """What options stand for that are not given, where that depends on others."""
        return {"width": 32 if self.net == CONV else 192}

    @property
    def sizes(self) -> tuple[int, ...]:
        """The size of each latent, or its channels, from the top."""
        standard = 4 if self.kind == LADDER and self.net == CONV else 16
        return whole_numbers(self, "latents") or (standard,) * self.levels


@dataclass(frozen=True)
class HvaeSampling(Sampling):
    """The options of a hierarchical VAE's sampler."""

    level_temperatures: str = option(
        "",
        "one for each level of an hvae from the top, such as 1,0.5, in the place of --temperature",
    )
    keep_levels: int = option(
        0,
        f"how many levels of an hvae, from the top, each {ROW} samples share; the others are drawn "
        "anew for every sample",
        pictures=True,
    )

    def __post_init__(self):
        super().__post_init__()
        require_at_least(self, 0, "keep_levels")
        if self.level_temperatures and self.temperature != 1.0:
            raise ValueError("--level-temperatures stands in the place of --temperature; name one")


class HvaeRecipe(LikelihoodRecipe):
    """A configured hierarchical VAE."""

    name, config_type = "hvae", HvaeConfig
    sampling_type = HvaeSampling
    config: HvaeConfig
    model: Hierarchy
    draws = 128

    def __init__(self, config: HvaeConfig):
        super().__init__(config)
        sizes = [prod(shape) for shape in self.model.latents]
        length = round(config.warm_up * config.steps)
        names = [f"kl_{i}" for i in range(1, config.levels + 1)]
        self.terms = ("reconstruction", *names)
        self.control = KlControl(names, sizes, length, config.free_bits, config.balance)
        self.guard = SpikeGuard(config.max_gradient) if config.max_gradient else None
        self.fit.control, self.fit.guard = self.control, self.guard

    def build(self) -> Hierarchy:
        """The nets of a ladder or of a chain, and a likelihood."""
        config, likelihood = self.config, self.likelihood()
        per_pixel, options = likelihood.width, (config.width, config.dropout)
        if config.kind == MARKOV:
            lowest = config.sizes[-1]
            encoder, decoder = self.nets(2 * lowest, lowest, per_pixel)
            hidden = [config.width] * config.depth
            chain = chain_between(encoder, config.sizes, decoder, hidden)
            return MarkovHvae(*chain, likelihood)
        if config.net == CONV:
            nets = conv_ladder(self.shape, config.sizes, per_pixel, *options)
        else:
            n_out = self.dims * per_pixel
            nets = mlp_ladder(self.dims, config.sizes, n_out, *options, config.depth)
        return LadderHvae(*nets, likelihood)

    def loss(self, step: int, rows: slice) -> dict:
        """One sample of z per example; the KLs weighted in the gradient only."""
        x, noise = self.batch(step, rows)
        terms, pullback = self.model.loss(x, self._eps(noise, x.shape[0]), noise)
        share = full_like(terms[0], 1.0 / self.config.batch_size)
        pullback(share, *(weight * share for weight in self.control.weights(step)))
        return dict(zip(self.terms, terms, strict=True))

    def remarks(self) -> list[str]:
        """How many steps were skipped, and what to do where those are most of them."""
        if self.guard is None or self.guard.skipped == 0:
            return []
        skipped, done, limit = self.guard.skipped, self.fit.steps_done, self.guard.limit
        said = f"skipped {skipped} of {done} steps, whose gradient was longer than {limit:g}"
        if 2 * skipped > done:
            said += "; that is most of them, so train again with a larger --max-gradient"
        return [said]

    def evaluate(self, part: Images, draws: int, seed: int = 0) -> dict:
        """The bounds with their standard errors, a table of the levels, and baselines."""
        x, stream = self.examples(part), Stream(seed, self.born).at("evaluate")
        found = hierarchy_bounds(self.model, x, stream, draws)
        so_far, errors = found["kl"].cumsum(axis=1), self._errors(part)
        active = self._active_units(x, found)
        levels = []
        for i, shape in enumerate(self.model.latents):
            rate, rate_error = mean_and_error(found["kl"][:, i])
            level = {
                "level": i + 1,
                "shape": list(shape),
                "latent_dimensions": prod(shape),
                "active_units": active[i],
                "rate_nats": rate,
                "rate_nats_standard_error": rate_error,
                "cumulative_rate_nats": float(so_far[:, i].mean()),
                "squared_error_per_dim": errors[i + 1],
            }
            if "removal" in found:
                lost, lost_error = mean_and_error(found["removal"][:, i])
                level["removal_bits_per_dim"] = bits_per_dim(lost, self.dims)
                level["removal_bits_per_dim_standard_error"] = bits_per_dim(lost_error, self.dims)
            levels.append(level)
        return {
            **self.measures({**found, "kl": so_far[:, -1]}, draws),
            "kind": self.config.kind,
            "hierarchy": levels,
            "squared_error_per_dim_without_latents": errors[0],
            "baselines": self.baselines(part),
        }

    def _active_units(self, x, found: dict) -> list[int]:
        """How many dimensions of each latent say something about x.

        A ladder's by their KL. A chain's KLs below the top may cancel each other, so there it is
        the dimensions whose posterior mean varies over the data.
        """
        model = self.model
        if not isinstance(model, MarkovHvae):
            return [active_units(kl.reshape(len(kl), -1)) for kl in found["kl_per_dimension"]]

        def means(x):
            return self.born.xp.concat(model.encode(x, self._zeros(x.shape[0])), axis=1)

        varies = in_batches(means, x, self.at_once).var(axis=0, dtype=np.float64) > ACTIVE
        ends = np.cumsum([prod(shape) for shape in model.latents])[:-1]
        return [int(part.sum()) for part in np.split(varies, ends)]

    @classmethod
    def report(cls, result: dict) -> list[str]:
        """Two tables, every unit named: the bounds, and what each level does."""
        rates = {
            f"KL of level {level['level']}": level["rate_nats"] for level in result["hierarchy"]
        }
        bounds = cls.bounds_table(result, rates)
        return [*bounds, "", *level_table(result), *cls.warnings(result), *collapsed(result)]

    def evaluation_files(self, folder: Path, name: str, part: Images, result: dict) -> None:
        """figures/reconstructions_PART.png: sixteen images and what the first k latents say."""
        some = part.take(slice(16))
        rows = {"data": some.x}
        for k in range(self.config.levels, -1, -1):
            label = "no latent" if k == 0 else "z1" if k == 1 else f"z1 to z{k}"
            rows[label] = self.images(self._reconstructions(some, k))
        title = f"{name} examples, and what their first latents decode to"
        plots.image_rows(folder / "figures" / f"reconstructions_{name}.png", rows, title)

    def reconstruct(self, x):
        """The decoder's mean, with every latent at the mean of its posterior."""
        return self.model.reconstruct(x, self._zeros(x.shape[0]))

    def sample(self, n: int, seed: int, options: HvaeSampling, processes: int = 1) -> Sampled:
        """The decoder's mean at n draws of z; each row of eight may share its first latents.

        Raises:
            ValueError: there are not so many levels.
        """
        levels, keep = self.config.levels, options.keep_levels
        temperatures = numbers(options, "level_temperatures") or (options.temperature,) * levels
        if len(temperatures) != levels:
            raise ValueError(
                f"--level-temperatures must name {levels} numbers, one for each level of this run, "
                f"got {options.level_temperatures!r}"
            )
        if keep > levels:
            raise ValueError(f"--keep-levels must be at most {levels}, the levels, got {keep}")
        x = self._decode_prior(n, Stream(seed, self.born).at("sample"), temperatures, range(keep))
        return Sampled(x, columns=ROW if keep else None)

    def training_figures(self, folder: Path) -> None:
        """The loss curve, and a picture for each level: in a row its noise alone is drawn anew."""
        super().training_figures(folder)
        stream, count = Stream(0, self.born).at("figures"), self.config.levels
        with self.ema.applied():
            for i in range(count):
                others = [level for level in range(count) if level != i]
                drawn = self._decode_prior(ROW * ROW, stream, (1.0,) * count, others)
                title = f"what z{i + 1} controls: along a row its noise alone is drawn anew"
                plots.image_grid(folder / "figures" / f"level_{i + 1}.png", drawn, title, ROW)

    def _decode_prior(
        self, n: int, stream: Stream, temperatures: Sequence[float], shared: Collection[int]
    ) -> np.ndarray:
        """n decoder means; a row of eight has one noise in the levels of `shared`."""
        count = self.at_once
        whole = -(-n // count) * count  # whole batches: a product's last bit depends on its rows
        rows, eps = self.born.indices(np.arange(whole) // ROW), []
        for i, shape in enumerate(self.model.latents):
            noise = temperatures[i] * stream.at("level", i).normal((whole, *shape))
            eps.append(self.born.xp.take(noise, rows, axis=0) if i in shared else noise)
        starts = range(0, whole, count)
        some = ([e[start : start + count, ...] for e in eps] for start in starts)
        return np.concatenate([self.images(self.model.sample(each)) for each in some])[:n]

    def _errors(self, part: Images) -> list[float]:
        """Squared error per pixel from the first 0, 1, ..., L latents, the others at their mean."""
        levels = range(self.config.levels + 1)
        gaps = [self.images(self._reconstructions(part, k)) - part.x for k in levels]
        return [float(np.mean(gap.astype(np.float64) ** 2)) for gap in gaps]

    def _reconstructions(self, part: Images, keep: int) -> np.ndarray:
        return in_batches(
            lambda x: self.model.reconstruct(x, self._zeros(x.shape[0]), keep),
            self.examples(part),
            self.at_once,
        )

    def _zeros(self, n: int) -> list:
        return [self.born.zeros((n, *shape)) for shape in self.model.latents]

    def _eps(self, noise: Stream, n: int) -> list:
        return [
            noise.at("eps", i).normal((n, *shape)) for i, shape in enumerate(self.model.latents)
        ]
