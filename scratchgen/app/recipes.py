"""From a configuration to nets, model, data and loss: the only place where names become objects."""

from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any

from scratchgen.core.arrays import Backend, backend, to_host
from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.data.digits import LEVELS, Digits, load_digits
from scratchgen.maths.likelihoods import Categorical, DiscretisedLogistic, DiscretisedNormal
from scratchgen.models.vae import Vae
from scratchgen.nets.mlp import mlp
from scratchgen.training.fit import Fit, batch_indices
from scratchgen.training.optim import Adam, Ema, warmup_cosine

DATA = {"digits": load_digits}
LIKELIHOODS = {
    "logistic": DiscretisedLogistic,
    "normal": DiscretisedNormal,
    "categorical": Categorical,
}


def _option(default, help: str, choices=None):
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class VaeConfig:
    """Everything that decides a VAE run: the contents of config.json, the flags of `train vae`.

    Raises:
        ValueError: a value is outside its range.
    """

    data: str = _option("digits", "data set", tuple(DATA))
    steps: int = _option(3000, "training steps in all")
    batch_size: int = _option(128, "examples per step")
    seed: int = _option(0, "random seed of initial weights, batches and noise")
    backend: str = _option("numpy", "array library", ("numpy", "cupy"))
    dtype: str = _option("float32", "floating type", ("float32", "float64"))
    likelihood: str = _option("logistic", "p(x | z) on the grey levels", tuple(LIKELIHOODS))
    latent: int = _option(16, "size of z")
    width: int = _option(256, "units per hidden layer")
    depth: int = _option(2, "hidden layers in the encoder and in the decoder")
    dropout: float = _option(0.15, "dropout rate behind every hidden layer")
    beta: float = _option(1.0, "weight of the KL in training; what is reported is always -ELBO")
    learning_rate: float = _option(4e-3, "Adam's peak rate, after warm-up and before cosine decay")
    ema: float = _option(0.999, "decay of the weight average that is evaluated")
    hold_out: bool = _option(False, "leave the last 137 training examples out, to choose on")

    def __post_init__(self):
        for option in fields(self):
            value, choices = getattr(self, option.name), option.metadata["choices"]
            if not _is_a(value, option.type):
                raise ValueError(f"{option.name} must be a {_type_name(option)}, got {value!r}")
            if choices and value not in choices:
                known = ", ".join(choices)
                raise ValueError(f"{option.name} must be one of {known}, got {value!r}")
        for name in ("steps", "batch_size", "latent", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "depth"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("dropout", "ema"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        for name in ("beta", "learning_rate"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")


CONFIGS: dict[str, type[VaeConfig]] = {"vae": VaeConfig}


def _type_name(option: Field) -> str:
    return getattr(option.type, "__name__", str(option.type))


def _is_a(value, kind) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def config_to_json(model: str, config: VaeConfig) -> dict:
    """The configuration as `config.json` holds it."""
    return {"model": model, **asdict(config)}


def config_from_json(values: Any) -> tuple[str, VaeConfig]:
    """What `config_to_json` made, checked again.

    Raises:
        ValueError: a name is unknown or missing, or a value is outside its range.
    """
    if not isinstance(values, dict) or values.get("model") not in CONFIGS:
        raise ValueError(f"config.json must name a model ({', '.join(CONFIGS)})")
    kind = CONFIGS[values["model"]]
    names = {option.name for option in fields(kind)} | {"model"}
    if set(values) != names:
        odd = ", ".join(sorted(set(values) ^ names))
        raise ValueError(f"config.json must have exactly the options of this version; see: {odd}")
    return values["model"], kind(**{k: v for k, v in values.items() if k != "model"})


@dataclass(frozen=True)
class VaeRun:
    """A configured VAE: the model, its parameters and everything a run needs.

    Attributes:
        config: what it was built from.
        born: the backend of all arrays.
        vae, params, ema: model, parameters, their average.
        fit: the training run.
        stream: the root of the run's random numbers.
        shape: of one example, (8, 8, 1) for the digits.
    """

    config: VaeConfig
    born: Backend
    vae: Vae
    params: FlatParameters
    ema: Ema
    fit: Fit
    stream: Stream
    shape: tuple[int, ...]

    def part(self, name: str) -> Digits:
        """One part of the run's data set."""
        return DATA[self.config.data](name)

    def flat(self, data: Digits):
        """The examples as the model reads them, (N, D), on the run's backend."""
        return self.born.asarray(data.x.reshape(len(data), -1))

    def images(self, x):
        """(N, D) from the model as host images (N, H, W, C)."""
        return to_host(x).reshape(-1, *self.shape)


def build_vae(config: VaeConfig) -> VaeRun:
    """Nets, model, optimiser, data and loss of a configuration; nothing is trained yet.

    Raises:
        BackendUnavailable: the backend cannot be used here.
    """
    born = backend(config.backend, config.dtype)
    stream = Stream(config.seed, born)
    data = DATA[config.data]("fit" if config.hold_out else "train")
    shape = data.codes.shape[1:]
    dims = data.codes[0].size
    likelihood = LIKELIHOODS[config.likelihood](LEVELS)
    hidden = [config.width] * config.depth
    vae = Vae(
        mlp([dims, *hidden, 2 * config.latent], dropout=config.dropout, reads_data=True),
        mlp([config.latent, *hidden, dims * likelihood.width], dropout=config.dropout),
        likelihood,
    )
    params = FlatParameters(vae, stream.at("initial"))
    rate = warmup_cosine(config.learning_rate, config.steps, warmup=min(100, config.steps // 10))
    optimiser, ema = Adam(params, rate), Ema(params, config.ema)
    x_all = born.asarray(data.x.reshape(len(data), -1))

    def loss(step: int, rows: slice) -> dict:
        chosen = batch_indices(stream.at("batches"), len(data), config.batch_size, step)[rows]
        x = born.xp.take(x_all, born.indices(chosen), axis=0)
        noise = stream.at("train", step).from_row(rows.start)
        eps = noise.at("eps").normal((len(chosen), config.latent))[None, ...]
        (reconstruction, kl), pullback = vae.loss(x, eps, noise)
        share = 0.0 * kl + 1.0 / config.batch_size
        pullback(share, config.beta * share)
        return {"reconstruction": reconstruction, "kl": kl}

    every = max(1, config.steps // 100)
    fit = Fit(vae, params, optimiser, loss, config.batch_size, every=every, ema=ema)
    return VaeRun(config, born, vae, params, ema, fit, stream, shape)
