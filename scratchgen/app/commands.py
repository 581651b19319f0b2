"""What each command does. Parsing stands in cli.py; names become objects in recipes.py."""

import sys
import time
from pathlib import Path
from statistics import NormalDist

import numpy as np

from scratchgen.app import plots, runs
from scratchgen.app.recipes import LEVELS, VaeConfig, VaeRun, build_vae, config_to_json
from scratchgen.core.arrays import to_host
from scratchgen.maths.bounds import bits_per_dim
from scratchgen.metrics.baselines import baselines
from scratchgen.metrics.likelihood import mean_and_error, vae_bounds
from scratchgen.models.vae import active_units
from scratchgen.training import checkpoint
from scratchgen.training.fit import restore_parameters

IMPORTANCE_SAMPLES = 256


def say(*words) -> None:
    """A line for people; results for programs go to standard output alone."""
    print(*words, file=sys.stderr, flush=True)


def demo(out: Path | None, seed: int = 0) -> None:
    """Train a VAE on the digits, measure it, draw from it: the whole way through, once."""
    folder = runs.new_run(out, "demo")
    began = time.monotonic()
    config = VaeConfig(seed=seed)
    say(f"scratchgen demo: a VAE on 8×8 digits, {config.steps} steps, into {folder}")
    train("vae", config, folder / "vae")
    result = evaluate(folder / "vae", "test")
    print_evaluation(result)
    sample(folder / "vae", 64, seed=seed)
    figures = sorted((folder / "vae" / "figures").glob("*.png"))
    say(f"done in {time.monotonic() - began:.0f} s; look at:")
    for figure in figures:
        print(figure)


def train(
    model: str, config: VaeConfig, out: Path | None, stop_at: int | None = None, quiet: bool = False
) -> Path:
    """Train from scratch into a new run folder, and return it."""
    last = _last_step(config, stop_at)
    run = build_vae(config)
    folder = runs.new_run(out, f"{model}-{config.data}-s{config.seed}")
    runs.write_json(folder / "config.json", config_to_json(model, config))
    runs.write_json(folder / "environment.json", runs.environment(run.born))
    return _train(run, model, folder, last, quiet)


def resume(
    folder: Path,
    stop_at: int | None = None,
    quiet: bool = False,
    model: str | None = None,
    chosen: dict | None = None,
) -> Path:
    """Continue an interrupted run to the end its configuration names.

    Args:
        folder: the run.
        stop_at: as for `train`.
        quiet: print nothing.
        model, chosen: what the user believes the run to be; refused where it is not.
    """
    saved_model, config = runs.read_config(folder)
    saved = config_to_json(saved_model, config)
    for name, value in {"model": model or saved_model, **(chosen or {})}.items():
        if saved[name] != value:
            raise ValueError(
                f"{folder} was started with {name} {saved[name]}, not {value}; "
                "--resume keeps a run's own options, so leave that one out"
            )
    run = build_vae(config)
    run.fit.restore(folder / "checkpoint.npz")
    if run.fit.steps_done >= config.steps:
        raise ValueError(f"{folder} has already taken all its {config.steps} steps")
    last = _last_step(config, stop_at, run.fit.steps_done)
    return _train(run, saved_model, folder, last, quiet)


def _last_step(config: VaeConfig, stop_at: int | None, done: int = 0) -> int:
    last = config.steps if stop_at is None else stop_at
    if not done < last <= config.steps:
        raise ValueError(f"--stop-at must lie between {done + 1} and {config.steps}, got {last}")
    return last


def _train(run: VaeRun, model: str, folder: Path, last: int, quiet: bool) -> Path:
    fit, config = run.fit, run.config
    dims = int(np.prod(run.shape))

    def describe(row: dict[str, float]) -> str:
        nats = row["reconstruction"] + row["kl"]
        return f"-ELBO {nats:.2f} nats {bits_per_dim(nats, dims):.3f} bits/dim, KL {row['kl']:.2f}"

    if not quiet:
        size = run.params.theta.shape[0]
        say(f"training into {folder}: {size:,} parameters, {run.born.name} {config.dtype}")
    try:
        meta = {"config": config_to_json(model, config)}
        fit.until(last, folder / "checkpoint.npz", meta, quiet, describe)
    except KeyboardInterrupt:
        say(f"stopped at step {fit.steps_done}; {_how_to_resume(folder)}")
        raise
    finally:
        if fit.history:
            runs.write_metrics(folder / "metrics.csv", fit.history, dims)
    _training_figures(run, folder)
    if not quiet:
        say(f"wrote {folder}" + ("" if last == config.steps else f"; {_how_to_resume(folder)}"))
    return folder


def _how_to_resume(folder: Path) -> str:
    return f"go on with: scratchgen train --resume {folder}"


def _training_figures(run: VaeRun, folder: Path) -> None:
    if run.fit.history:
        fitted, held_out = run.part("fit"), run.part("validation")
        levels = baselines(fitted.codes, held_out.codes, LEVELS)
        lines = {name: levels[name] for name in ("independent pixels", "mixture of 10")}
        figure, dims = folder / "figures" / "loss.png", int(np.prod(run.shape))
        plots.loss_curve(figure, run.fit.history, dims, lines)
    with run.ema.applied():
        _latent_grid(run, folder / "figures" / "latent_grid.png")


def _latent_grid(run: VaeRun, path: Path, n: int = 15) -> None:
    """Decode z = (Φ⁻¹(u_j), Φ⁻¹(u_i)) in the two dimensions with the largest KL; the rest is 0."""
    latent = run.config.latent
    x = run.flat(run.part("train"))
    order = np.argsort(-to_host(run.vae.kl_per_dimension(x)).mean(axis=0))
    u = [(i + 0.5) / n for i in range(n)]
    quantiles = [NormalDist().inv_cdf(p) for p in u]
    z = np.zeros((n * n, latent))
    z[:, order[0]] = np.tile(quantiles, n)
    z[:, order[min(1, latent - 1)]] = np.repeat(quantiles, n)
    images = run.images(run.vae.decode(run.born.asarray(z)))
    names = (f"z{order[0]}", f"z{order[min(1, latent - 1)]}")
    plots.latent_grid(path, images, u, names)


def load_run(folder: Path) -> VaeRun:
    """A trained run with its averaged weights in place.

    Raises:
        RunError, CheckpointError: the folder or its checkpoint cannot be used.
    """
    _, config = runs.read_config(folder)
    path = folder / "checkpoint.npz"
    arrays, meta = checkpoint.load(path)
    run = build_vae(config)
    restore_parameters(run.params, arrays, meta, path)
    run.params.theta = run.born.asarray(arrays["ema/average"])
    return run


def sample(folder: Path, n: int, seed: int = 0, temperature: float = 1.0) -> Path:
    """Draw n latents, decode them, write samples.npz and figures/samples.png, return the latter.

    Sample i depends on the seed and on i only, not on how many are drawn.
    """
    if n < 1:
        raise ValueError(f"-n must be at least 1, got {n}")
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(f"--temperature must be finite and not negative, got {temperature}")
    run = load_run(folder)
    stream = type(run.stream)(seed, run.born).at("sample")
    parts = []
    for start in range(0, n, 64):
        eps = stream.from_row(start).normal((min(64, n - start), run.config.latent))
        parts.append(run.images(run.vae.sample(eps, temperature)))
    images = np.concatenate(parts)
    with checkpoint.whole_file(folder / "samples.npz") as file:
        np.savez_compressed(file, x=images, seed=seed, temperature=temperature)
    figure = folder / "figures" / "samples.png"
    plots.image_grid(figure, images[:400], f"{n} samples, seed {seed}, temperature {temperature:g}")
    return figure


def evaluate(folder: Path, part: str = "test", samples: int = IMPORTANCE_SAMPLES) -> dict:
    """The bounds of a trained run on one part of its data, with model-free baselines beside them.

    Also draws figures/reconstructions.png from that part.
    """
    if samples < 1:
        raise ValueError(f"--samples must be at least 1, got {samples}")
    run = load_run(folder)
    if part == "validation" and not run.config.hold_out:
        raise ValueError("this run was trained on the validation part; train with --hold-out first")
    data, fitted = run.part(part), run.part("fit" if run.config.hold_out else "train")
    stream = type(run.stream)(0, run.born).at("evaluate")
    found = vae_bounds(run.vae, run.flat(data), stream, run.config.latent, samples)
    shown = run.flat(data)[:16, ...]
    plots.reconstructions(
        folder / "figures" / "reconstructions.png",
        run.images(shown),
        run.images(run.vae.reconstruct(shown)),
        f"{part} digits and their reconstructions (decoder mean at the mean of q(z|x))",
    )
    dims = int(np.prod(run.shape))
    mean, error = mean_and_error(found["reconstruction"] + found["kl"])
    tight = mean_and_error(found["importance_weighted"])
    return {
        "run": str(folder),
        "part": part,
        "examples": len(data),
        "dims": dims,
        "bits_per_dim": bits_per_dim(mean, dims),
        "bits_per_dim_standard_error": bits_per_dim(error, dims),
        "elbo_nats": -mean,
        "reconstruction_nats": float(found["reconstruction"].mean()),
        "kl_nats": float(found["kl"].mean()),
        "importance_samples": samples,
        "importance_weighted_bits_per_dim": bits_per_dim(tight[0], dims),
        "importance_weighted_bits_per_dim_standard_error": bits_per_dim(tight[1], dims),
        "latent_dimensions": run.config.latent,
        "active_units": active_units(found["kl_per_dimension"]),
        "baselines": baselines(fitted.codes, data.codes, LEVELS),
    }


def print_evaluation(result: dict) -> None:
    """The same for people: one table, every unit named."""
    dims = result["dims"]
    rows = [
        ("reconstruction", result["reconstruction_nats"], ""),
        ("KL(q(z|x) ‖ p(z))", result["kl_nats"], ""),
        ("-ELBO", -result["elbo_nats"], f"± {result['bits_per_dim_standard_error']:.3f}"),
    ]
    print(f"{result['examples']} {result['part']} examples, {dims} dimensions of 17 levels")
    print(f"{'':24}{'nats/example':>13}{'bits/dim':>10}")
    for name, nats, note in rows:
        print(f"{name:24}{nats:13.2f}{bits_per_dim(nats, dims):10.3f} {note}".rstrip())
    name = f"importance-weighted, {result['importance_samples']}"
    tight = result["importance_weighted_bits_per_dim"]
    note = f"± {result['importance_weighted_bits_per_dim_standard_error']:.3f}"
    print(f"{name:24}{tight * dims * np.log(2.0):13.2f}{tight:10.3f} {note}")
    print("without a model:")
    for name, bits in sorted(result["baselines"].items(), key=lambda pair: pair[1]):
        print(f"  {name:35}{bits:10.3f}")
    active, latent = result["active_units"], result["latent_dimensions"]
    print(f"active latent dimensions: {active} of {latent} (KL above 0.01 nats)")
    if active == 0:
        say("warning: the posterior has collapsed: q(z|x) = p(z), so x does not depend on z")


def info(folder: Path | None) -> dict:
    """Versions and devices, or what a run folder holds."""
    if folder is None:
        return runs.environment()
    model, config = runs.read_config(folder)
    arrays, meta = checkpoint.load(folder / "checkpoint.npz")
    return {
        "run": str(folder),
        **config_to_json(model, config),
        "steps_done": int(arrays["step"]),
        "parameters": int(arrays["theta"].size),
        "layout": meta["layout"],
    }


def print_info(values: dict, indent: str = "") -> None:
    """Nested names and values, one a line."""
    for name, value in values.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            print_info(value, indent + "  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for item in value:
                print(f"{indent}{name}: " + ", ".join(f"{k} {v}" for k, v in item.items()))
        else:
            print(f"{indent}{name}: {value}")
