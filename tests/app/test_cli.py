"""The command line end to end: what users type, what they get, and how it fails."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from scratchgen.app import commands
from scratchgen.app.cli import main
from scratchgen.app.quality import sample_quality
from scratchgen.app.recipes import RECIPES
from scratchgen.app.recipes.config import flag_of
from scratchgen.app.recipes.diffusion_sampling import DiffusionSampling
from scratchgen.app.recipes.gan import GanSampling
from scratchgen.app.recipes.hvae import HvaeSampling
from scratchgen.app.recipes.vae import VaeConfig
from scratchgen.app.runs import new_run, read_recipe
from scratchgen.core import twins
from scratchgen.data.digits import load_digits
from scratchgen.training.fit import Fit

SMALL = ["--width", "16", "--latent", "3", "--batch-size", "32", "--seed", "5"]


def shell(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "scratchgen", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small trained run, shared and only read (evaluate and sample add to it)."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    assert main(["train", "vae", "--steps", "60", *SMALL, "--quiet", "--out", str(folder)]) == 0
    return folder


def refused(capsys, *arguments) -> str:
    """The one sentence of a usage error."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    (complaint,) = capsys.readouterr().err.strip().splitlines()
    assert complaint.startswith("scratchgen: ")
    return complaint


def test_a_run_folder_holds_everything(run):
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert names >= {
        "config.json",
        "environment.json",
        "metrics.csv",
        "checkpoint.npz",
        "figures/loss.png",
        "figures/latent_grid.png",
    }
    config = json.loads((run / "config.json").read_text("utf-8"))
    assert config["model"] == "vae"
    assert config["width"] == 16
    environment = json.loads((run / "environment.json").read_text("utf-8"))
    assert environment["packages"]["numpy"] == np.__version__
    assert environment["active_twins"] == twins.active()
    assert environment["workers"] == 1


def test_metrics_are_logged_in_named_units(run):
    header, *rows = (run / "metrics.csv").read_text("utf-8").splitlines()
    assert header == "step,reconstruction_nats,kl_nats,negative_elbo_nats,bits_per_dim"
    assert len(rows) == 60
    step, reconstruction, kl, total, bits = map(float, rows[-1].split(","))
    assert step == 60
    assert total == pytest.approx(reconstruction + kl)
    assert bits == pytest.approx(total / (64 * np.log(2)))
    losses = [float(row.split(",")[3]) for row in rows]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 10.0, "the model learns"


def test_a_stopped_run_resumed_in_a_fresh_process_is_the_unbroken_run(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = ["train", "vae", "--steps", 40, *SMALL]
    for arguments in (
        [*options, "--out", whole],
        [*options, "--out", broken, "--stop-at", 17],
        ["train", "vae", "--resume", broken],
    ):
        done = shell(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    with np.load(whole / "checkpoint.npz") as a, np.load(broken / "checkpoint.npz") as b:
        assert set(a.files) == set(b.files)
        for name in a.files:
            assert a[name].tobytes() == b[name].tobytes(), name
    assert (whole / "metrics.csv").read_bytes() == (broken / "metrics.csv").read_bytes()


def test_progress_says_where_and_how_far(tmp_path):
    done = shell("train", "vae", "--steps", 20, *SMALL, "--stop-at", 10, cwd=tmp_path)
    assert "training into runs/0001-vae-digits-s5" in done.stderr
    assert "step 10/10" in done.stderr
    assert "bits/dim" in done.stderr
    assert "go on with: scratchgen train --resume runs/0001-vae-digits-s5" in done.stderr
    again = shell("train", "vae", "--steps", 2, *SMALL, "--quiet", cwd=tmp_path)
    assert again.stderr == ""
    assert (tmp_path / "runs" / "0002-vae-digits-s5").is_dir()


def test_evaluate_prints_numbers_that_add_up(run, capsys):
    assert main(["evaluate", str(run), "--json", "--draws", "16"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == 360
    assert -found["elbo_nats"] == pytest.approx(found["reconstruction_nats"] + found["kl_nats"])
    assert found["bits_per_dim"] == pytest.approx(-found["elbo_nats"] / (64 * np.log(2)))
    assert found["importance_weighted_bits_per_dim"] < found["bits_per_dim"]
    assert found["bits_per_dim"] < found["baselines"]["uniform"]
    assert 0 <= found["active_units"] <= 3
    assert sum(found["kl_per_dimension_nats"]) == pytest.approx(found["kl_nats"], rel=1e-5)
    assert (run / "figures" / "reconstructions_test.png").is_file()
    assert main(["evaluate", str(run), "--draws", "16"]) == 0
    table = capsys.readouterr().out
    assert f"{found['bits_per_dim']:.3f}" in table
    assert "nats/example" in table
    assert "mixture of 10" in table
    assert main(["evaluate", str(run), "--json", "--draws", "16", "--seed", "7"]) == 0
    other = json.loads(capsys.readouterr().out)
    assert (found["seed"], other["seed"]) == (0, 7)
    assert 0.0 < abs(other["bits_per_dim"] - found["bits_per_dim"]) < 0.05


def test_a_collapsed_posterior_is_called_that(tmp_path, capsys):
    folder = tmp_path / "collapsed"
    options = ["--steps", "60", *SMALL, "--beta", "1000", "--ema", "0.5", "--quiet"]
    assert main(["train", "vae", *options, "--out", str(folder)]) == 0
    assert main(["evaluate", str(folder), "--draws", "2"]) == 0
    said = capsys.readouterr()
    assert "active latent dimensions: 0 of 3" in said.out
    assert "the posterior has collapsed" in said.out


def samples(run, capsys, *arguments):
    capsys.readouterr()
    assert main(["sample", str(run), *arguments]) == 0
    said = capsys.readouterr()
    picture = run / "figures" / Path(said.out.strip()).name
    assert picture.is_file()
    written = run / picture.with_suffix(".npz").name
    assert said.err.strip().endswith(f"s, into {written}")
    with np.load(written, allow_pickle=False) as archive:
        return archive["x"]


def test_sample_i_of_four_is_sample_i_of_seventy(run, capsys):
    few = samples(run, capsys, "-n", "4", "--seed", "7")
    many = samples(run, capsys, "-n", "70", "--seed", "7")
    assert many.shape == (70, 8, 8, 1)
    np.testing.assert_array_equal(few, many[:4])
    assert np.abs(many).max() <= 1.0
    other = samples(run, capsys, "-n", "4", "--seed", "8")
    assert np.any(other != few)
    still = samples(run, capsys, "-n", "4", "--temperature", "0")
    np.testing.assert_allclose(still, np.repeat(still[:1], 4, axis=0), rtol=1e-6)


def test_samples_of_earlier_calls_stay(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("samples*"))
    kept = {}
    for number, seed in enumerate("778"):
        drawn = samples(copy, capsys, "-n", "4", "--seed", seed)
        suffix = ("", "_2", "_3")[number]
        new = {copy / f"samples{suffix}.npz", copy / "figures" / f"samples{suffix}.png"}
        assert set(copy.rglob("samples*")) == kept.keys() | new
        assert all(path.read_bytes() == content for path, content in kept.items())
        kept |= {path: path.read_bytes() for path in new}
        with np.load(copy / f"samples{suffix}.npz") as archive:
            np.testing.assert_array_equal(archive["x"], drawn)
            assert archive["seed"] == int(seed)


def test_samples_that_could_not_be_written_leave_no_file(run, tmp_path, capsys, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("samples*"))

    def full(*arguments, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    assert "No space left" in refused(capsys, "sample", copy)
    assert list(copy.rglob("*samples*")) == []


def test_evaluate_takes_the_samplers_options_but_those_for_pictures(run, capsys):
    listed = {}
    for door in ("sample", "evaluate"):
        with pytest.raises(SystemExit):
            main([door, "--help"])
        listed[door] = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    options = {each.name: each for kind in RECIPES.values() for each in fields(kind.sampling_type)}
    pictures = {name for name, each in options.items() if each.metadata["pictures"]}
    assert pictures == {"keep_levels", "interpolate", "shared_noise", "trajectory"}
    for name in options:
        assert flag_of(name) in listed["sample"]
        assert (flag_of(name) in listed["evaluate"]) == (name not in pictures)
    complaint = refused(capsys, "evaluate", run, "--samples", 50, "--keep-levels", 1)
    assert complaint.endswith(
        "unrecognized arguments: --keep-levels 1; see: scratchgen evaluate --help"
    )
    assert refused(capsys, "train", "vae", "--penalty", 1).endswith("scratchgen train vae --help")
    for flags in (["--classifier", run], ["--temperature", 0.5]):
        assert "go with --samples N; add it" in refused(capsys, "evaluate", run, *flags)
    assert "--seed must be at least 0, got -1" in refused(capsys, "evaluate", run, "--seed", -1)


def test_figures_of_other_data_are_one_for_each(run, tmp_path, capsys):
    codes, copy = load_digits("test").codes, tmp_path / "run"
    shutil.copytree(run, copy)
    for folder, rows in (("a", codes[:20]), ("b", codes[20:40])):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / "x.npz", x=rows, levels=17)

    def files(*data):
        assert main(["evaluate", str(copy), "--draws", "1", *map(str, data)]) == 0
        return {path: path.read_bytes() for path in (copy / "figures").glob("*_test*.png")}

    (own,) = before = files()
    assert files("--data", "digits") == before, "these are the run's own"
    assert own.name == "reconstructions_test.png"
    for count, folder in ((2, "a"), (3, "b"), (3, "a")):
        after = files("--data", tmp_path / folder / "x.npz")
        assert len(after) == count
        assert before.items() <= after.items()
        before = after
    part = ["--part", "validation", "--data", "digits"]
    assert "--hold-out" in refused(capsys, "evaluate", copy, *part)


@pytest.mark.parametrize(
    ("line", "door"),
    [
        ("--bogus train gan", "scratchgen"),
        ("--no-fast --bogus=gan train gan --steps 3", "scratchgen"),
        ("train --bogus gan", "scratchgen train"),
        ("train gan --bogus", "scratchgen train gan"),
        ("train gan --bogus train", "scratchgen train gan"),
        ("info --bogus", "scratchgen info"),
    ],
)
def test_help_is_that_of_where_an_unknown_option_stood(capsys, monkeypatch, line, door):
    complaint = refused(capsys, *line.split())
    assert complaint.startswith("scratchgen: unrecognized arguments: --bogus")
    assert complaint.endswith(f"; see: {door} --help")
    monkeypatch.setattr(sys, "argv", ["scratchgen", *line.split()])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err.strip() == complaint


@pytest.mark.parametrize(
    "options",
    [
        HvaeSampling(keep_levels=1),
        GanSampling(interpolate=True),
        DiffusionSampling(shared_noise=True),
        DiffusionSampling(trajectory=True),
    ],
)
def test_samples_for_pictures_are_not_measured(run, options):
    recipe = read_recipe(run)
    with pytest.raises(ValueError, match=r"^--\S+ is for the pictures of `sample`.*leave it out$"):
        sample_quality(recipe, recipe.part("test"), 50, 0, options, None)


def test_info_tells_versions_and_runs(run, capsys):
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["backends"]["numpy"] == "cpu"
    assert main(["info", "--reading", "--json"]) == 0
    path = json.loads(capsys.readouterr().out)
    assert list(path)[:3] == ["core", "layers", "maths"]
    assert path["lines"] == sum(sum(path[k].values()) for k in path if k != "lines")
    assert found["blas"], "the BLAS library and its threads are named"
    assert main(["info", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["steps_done"], found["steps"], found["seed"]) == (60, 60, 5)
    assert found["parameters"] == sum(int(np.prod(s)) for s in found["layout"].values())
    assert main(["info", str(run)]) == 0
    assert "encoder.layers.0.weight: [16, 64]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--batch-size", "-3"], "--batch-size must be at least 1"),
        (["--dropout", "1"], r"--dropout must lie in \[0, 1\)"),
        (["--learning-rate", "nan"], "--learning-rate must be positive and finite"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--seed", "many"], "invalid int value"),
        (["--batch-size", "1438"], "at most the 1437 training examples, got 1438"),
        (
            ["--data", "mnist"],
            "--data must be digits, .*, shapes, .* or a path that exists; got 'mnist'",
        ),
        (["--dtype", "float16"], "invalid choice"),
        (["--stop-at", "0"], "--stop-at must lie between 1 and 3000"),
        (["--stop-at", "3001"], "--stop-at must lie between 1 and 3000"),
    ],
)
def test_bad_flags_are_one_sentence_and_leave_nothing(tmp_path, capsys, flags, what):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        complaint = refused(capsys, "train", "vae", *flags)
    assert re.search(what, complaint), complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["autoencoder", "--net", "linear", "--depth", "2"], "--net linear has no hidden layer"),
        (["autoencoder", "--net", "sigmoid", "--depth", "1"], "--net sigmoid has no hidden layer"),
        (["autoencoder", "--net", "linear", "--dropout", "0.0"], "--dropout is for deep nets"),
        (["autoencoder", "--net", "linear", "--width", "64"], "--width is for deep nets"),
        (["autoencoder", "--net", "sigmoid", "--width", "0"], "--width is for deep nets"),
        (["ddpm", "--data", "moons", "--dropout", "0.5"], "--dropout is for images"),
        (["vdm", "--data", "rings", "--dropout", "0.2"], "--dropout is for images"),
        (["ddpm", "--net", "mlp", "--inject", "additive"], "--inject is for --net unet"),
        (["vae", "--crop", "centre"], "--crop is for pictures in files"),
        (["vdm", "--data", "shapes", "--crop", "none"], "--crop is for pictures in files"),
        (["gan", "--data", "ring8", "--crop", "none"], "--crop is for pictures in files"),
        (["gan", "--dropout", "0"], "unrecognized arguments: --dropout"),
        (["gan", "--loss", "wgan", "--penalty", "0"], "--penalty is for --loss wgan-gp"),
        (["gan", "--clip", "0"], "--clip is for --loss wgan"),
        (["classifier", "--depth", "4"], "--depth is for fully connected nets"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, capsys, monkeypatch, flags, what):
    monkeypatch.chdir(tmp_path)
    assert what in refused(capsys, "train", *flags)
    assert list(tmp_path.iterdir()) == []


def test_a_demo_with_a_bad_seed_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--seed must be at least 0" in refused(capsys, "demo", "--seed", -1)
    assert list(tmp_path.iterdir()) == []


def test_other_refusals(run, tmp_path, capsys):
    assert "name a model" in refused(capsys, "train")
    assert "invalid choice: '10'" in refused(capsys, "train", "--steps", 10)
    assert "--blas-threads" in refused(capsys, "--blas-threads", 0, "info")
    assert "--seed" in refused(capsys, "sample", run, "--seed", -1)
    assert "not a run folder" in refused(capsys, "evaluate", tmp_path)
    assert "new or an empty folder" in refused(capsys, "train", "vae", "--out", run)
    assert "leave out --out" in refused(capsys, "train", "--resume", run, "--out", tmp_path / "x")
    complaint = refused(capsys, "train", "vae", "--resume", run, "--seed", 6)
    assert "was started with seed 5, not 6" in complaint
    assert "-n must be at least 1" in refused(capsys, "sample", run, "-n", 0)
    assert "--temperature" in refused(capsys, "sample", run, "--temperature", "-1")
    assert "--draws" in refused(capsys, "evaluate", run, "--draws", 0)
    assert "--hold-out" in refused(capsys, "evaluate", run, "--part", "validation")


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("config.json", b"{", "cannot be used"),
        ("config.json", b'{"model": "oracle"}', "must name a model"),
        ("config.json", b'{"model": ["vae"]}', "must name a model"),
        ("config.json", b'{"model": "vae", "steps": 3}', "exactly the options"),
        ("checkpoint.npz", b"PK", "damaged"),
        ("checkpoint.npz", None, "no checkpoint"),
    ],
)
def test_damaged_runs_are_one_sentence(run, tmp_path, capsys, name, content, what):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    for command in (["evaluate", copy], ["sample", copy], ["train", "--resume", copy]):
        assert what in refused(capsys, *command)


@pytest.mark.parametrize("change", [{"width": 17}, {"likelihood": "normal"}, {"seed": 6}])
def test_an_edited_configuration_is_not_believed(run, tmp_path, capsys, change):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, **change}), "utf-8")
    (name,) = change
    for command in (
        ["evaluate", copy],
        ["sample", copy],
        ["train", "--resume", copy],
        ["info", copy],
    ):
        complaint = refused(capsys, *command)
        assert name in complaint or "another model" in complaint


def test_a_run_killed_before_its_first_save_can_be_resumed(tmp_path, monkeypatch):
    def killed(self):
        raise RuntimeError("killed")

    out = tmp_path / "killed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fit, "advance", killed)
        with pytest.raises(RuntimeError, match="killed"):
            main(["train", "vae", "--steps", "2", *SMALL, "--quiet", "--out", str(out)])
    assert main(["train", "--resume", str(out), "--quiet"]) == 0


def test_results_that_are_not_finite_are_refused(tmp_path, capsys):
    out = tmp_path / "hot"
    flags = [*SMALL, "--learning-rate", "1e30", "--steps", "9", "--quiet", "--out", str(out)]
    main(["train", "vae", *flags])
    capsys.readouterr()
    for command in (["evaluate", str(out)], ["sample", str(out)]):
        assert main(command) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert "finite" in line


def test_too_little_memory_is_one_sentence(run, capsys, monkeypatch):
    def full(*arguments):
        raise MemoryError("Unable to allocate 5 TiB")

    monkeypatch.setattr(commands, "evaluate", full)
    assert "not enough memory" in refused(capsys, "evaluate", run)


def test_resuming_a_finished_run_redraws_its_figures(run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "figures" / "loss.png").unlink()
    (copy / "metrics.csv").unlink()
    assert main(["train", "--resume", str(copy)]) == 0
    assert "already taken all its 60 steps" in capsys.readouterr().err
    assert (copy / "figures" / "loss.png").is_file()
    assert (copy / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()


def test_run_numbers_go_on_after_9999(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("9999-a", "10000-b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert new_run(None, "x").name == "10001-x"


def test_cupy_without_a_gpu_is_exit_code_four(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "vae", "--backend", "cupy"]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install cupy-cuda13x" in line
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_is_exit_code_three(tmp_path, capsys):
    """A learning rate that no one should use; the sentence names step, term and place."""
    out = tmp_path / "hot"
    with np.errstate(all="ignore"):
        code = main(
            ["train", "vae", *SMALL, "--learning-rate", "1e30", "--quiet", "--out", str(out)]
        )
    assert code == 3
    assert "the loss term" in capsys.readouterr().err.splitlines()[-1]


def test_float64_runs_stay_float64(tmp_path):
    out = tmp_path / "double"
    flags = ["--dtype", "float64", "--likelihood", "normal", "--steps", "3", "--depth", "0"]
    assert main(["train", "vae", *flags, *SMALL, "--quiet", "--out", str(out)]) == 0
    with np.load(out / "checkpoint.npz") as archive:
        for name in ("theta", "ema/average", "optimiser/m"):
            assert archive[name].dtype == np.float64


def test_a_held_out_part_can_be_measured(tmp_path, capsys):
    out = tmp_path / "held"
    flags = ["--hold-out", "--likelihood", "categorical", "--steps", "5", *SMALL, "--quiet"]
    assert main(["train", "vae", *flags, "--out", str(out)]) == 0
    assert main(["evaluate", str(out), "--part", "validation", "--draws", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 137


def test_black_and_white_images_have_a_bernoulli_likelihood(tmp_path, capsys):
    data, out = tmp_path / "two.npz", tmp_path / "bits"
    codes = np.random.default_rng(0).integers(2, size=(100, 8, 8), dtype=np.uint8)
    np.savez(data, x=codes, levels=2)
    flags = ["--data", str(data), "--likelihood", "bernoulli", "--steps", "5", *SMALL, "--quiet"]
    assert main(["train", "vae", *flags, "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(out), "--draws", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["levels"] == 2
    assert np.abs(samples(out, capsys, "-n", "4")).max() <= 0.5  # means of two levels at ∓½
    complaint = refused(capsys, "train", "vae", "--likelihood", "bernoulli")
    assert "--likelihood bernoulli is for data of two levels, and these have 17" in complaint


def test_the_demo_goes_the_whole_way(tmp_path, monkeypatch, capsys):
    """With fewer steps than a user gets; the full demo is run by the project's gate."""
    short = partial(VaeConfig, steps=50, width=16)
    monkeypatch.setattr(commands, "VaeConfig", short)
    assert main(["demo", "--out", str(tmp_path / "d")]) == 0
    said = capsys.readouterr()
    figures = [line for line in said.out.splitlines() if line.endswith(".png")]
    assert len(figures) == 4
    assert all((tmp_path / "d" / "vae" / "figures" / f.rsplit("/")[-1]).is_file() for f in figures)
    assert "bits/dim" in said.out


@pytest.mark.parametrize(
    "net", [["linear"], ["sigmoid"], ["deep", "--width", "16"]], ids=lambda net: net[0]
)
def test_autoencoders_train_and_are_measured_beside_principal_components(tmp_path, capsys, net):
    out = tmp_path / "run"
    flags = ["--net", *net, "--steps", "300", "--latent", "4", "--quiet"]
    flags += ["--learning-rate", "0.03", "--ema", "0.9"]
    assert main(["train", "autoencoder", *flags, "--out", str(out)]) == 0
    assert main(["evaluate", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["squared_error_per_dim"] < found["baselines"]["mean image"]
    assert found["baselines"]["4 principal components"] < found["baselines"]["mean image"]
    header = (out / "metrics.csv").read_text("utf-8").splitlines()[0]
    assert header == "step,squared_error_per_example,squared_error_per_dim"
    assert main(["evaluate", str(out)]) == 0
    assert "pixels in [-1, 1]" in capsys.readouterr().out
    assert (out / "figures" / "reconstructions_test.png").is_file()
    assert "nothing to sample from" in refused(capsys, "sample", out)
    for flags in (["--draws", 2], ["--seed", 1]):
        assert "nothing is drawn to measure" in refused(capsys, "evaluate", out, *flags)


def test_a_diverged_run_that_stayed_finite_is_called_that(tmp_path, capsys):
    out = tmp_path / "far"
    flags = ["--net", "linear", "--learning-rate", "1e3", "--steps", "20", "--quiet"]
    assert main(["train", "autoencoder", *flags, "--out", str(out)]) == 0
    assert main(["evaluate", str(out)]) == 0
    assert "worse than the mean image" in capsys.readouterr().out


def test_one_latent_dimension_has_a_grid_of_one_row(tmp_path):
    out = tmp_path / "one"
    flags = ["--steps", "3", "--width", "8", "--latent", "1", "--quiet", "--out", str(out)]
    assert main(["train", "vae", *flags]) == 0
    assert (out / "figures" / "latent_grid.png").is_file()


def test_a_resumed_run_can_be_stopped_again(tmp_path):
    out = tmp_path / "twice"
    options = ["--steps", "9", *SMALL, "--quiet", "--out", str(out), "--stop-at", "3"]
    assert main(["train", "vae", *options]) == 0
    assert main(["train", "--resume", str(out), "--stop-at", "6", "--quiet"]) == 0
    with np.load(out / "checkpoint.npz") as archive:
        assert archive["step"] == 6
