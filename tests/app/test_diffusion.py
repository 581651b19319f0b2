"""`train ddpm` and `train vdm`: from options to bounds, samples, figures and tables."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from scratchgen.app import diffusion_plots, quality
from scratchgen.app.cli import main
from scratchgen.app.commands import print_evaluation
from scratchgen.app.recipes import ClassifierRecipe, DdpmRecipe, VdmRecipe, recipe_from_json
from scratchgen.app.recipes import ddpm as ddpm_recipe
from scratchgen.app.recipes.base import config_to_json
from scratchgen.app.recipes.classifier import ClassifierConfig
from scratchgen.app.recipes.data import PLANAR, density
from scratchgen.app.recipes.ddpm import DdpmConfig, DdpmSampling
from scratchgen.app.recipes.diffusion_sampling import DiffusionSampling
from scratchgen.app.recipes.vdm import VdmConfig
from scratchgen.core.streams import Stream
from scratchgen.data.files import fingerprint, load_files
from scratchgen.maths.bounds import bits_per_dim
from scratchgen.maths.parameterisations import Epsilon, KWay, Velocity
from scratchgen.metrics.likelihood import ddpm_bounds, vdm_bounds
from scratchgen.training.checkpoint import load

SMALL = {"width": 8, "batch_size": 4, "steps": 4, "dtype": "float64", "seed": 5}
POINTS = {**SMALL, "data": "moons"}
CONFIGS = [
    DdpmConfig(**SMALL, timesteps=9),
    DdpmConfig(**SMALL, timesteps=9, objective="hybrid", variance="learned", predict="epsilon"),
    DdpmConfig(**SMALL, timesteps=9, objective="bound", times="noise", schedule="cosine"),
    DdpmConfig(**POINTS, timesteps=9),
    VdmConfig(**SMALL),
    VdmConfig(**SMALL, gamma="learned", predict="velocity", fourier=True, inject="additive"),
    VdmConfig(**POINTS, gamma="learned"),
    VdmConfig(**SMALL, gamma="learned", timesteps=5, predict="epsilon"),
]
KINDS = {DdpmConfig: DdpmRecipe, VdmConfig: VdmRecipe}
NAMES = ["ddpm", "hybrid", "bound", "points", "vdm", "learned", "vdm points", "vdm in steps"]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=NAMES)


@pytest.fixture(autouse=True)
def _few_pilots(monkeypatch):
    """The optimal variance from fewer examples, which is quicker and no less a variance."""
    monkeypatch.setattr(ddpm_recipe, "PILOT", 64)


def made(config, **changes):
    return KINDS[type(config)](replace(config, **changes))


def flags(config) -> list[str]:
    """The command line of a configuration."""
    found = []
    for name, value in config_to_json(made(config)).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            found += [flag] if value else []
        elif name not in ("model", *config.without_effect) and value not in ("", 0):
            found += [flag, str(value)]
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One trained run folder of every configuration, made when it is asked for."""
    folders = {}

    def folder(config):
        key = NAMES[CONFIGS.index(config)]
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("runs") / key.replace(" ", "-")
            name = made(config).name
            assert main(["train", name, *flags(config), "--quiet", "--out", str(folders[key])]) == 0
        return folders[key]

    return folder


def refused(capsys, *arguments) -> str:
    """The one sentence of a refusal."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@every_config
def test_configurations_survive_json(config):
    recipe = made(config)
    again = recipe_from_json(config_to_json(recipe))
    assert again.config == recipe.config
    np.testing.assert_array_equal(again.params.theta, recipe.params.theta)


@every_config
def test_the_gradient_is_that_of_the_batch_on_one_shard_or_two(config):
    recipe = made(config)
    nudge = Stream(2, recipe.born).normal(recipe.params.theta.shape)
    recipe.params.theta = recipe.params.theta + 0.1 * nudge
    gradients = []
    for shards in ([slice(0, 4)], [slice(0, 1), slice(1, 4)]):
        with recipe.params.gradient_into(np.zeros_like(recipe.params.theta)) as gradient:
            for rows in shards:
                recipe.loss(3, rows)
        gradients.append(gradient)
    assert np.any(gradients[0])
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-8, atol=1e-10)


@every_config
def test_a_resumed_run_is_the_unbroken_one(config, run, tmp_path):
    out = tmp_path / "cut"
    name = made(config).name
    assert (
        main(["train", name, *flags(config), "--stop-at", "2", "--quiet", "--out", str(out)]) == 0
    )
    assert main(["train", "--resume", str(out), "--quiet"]) == 0
    whole, cut = (load(folder / "checkpoint.npz")[0] for folder in (run(config), out))
    assert set(whole) == set(cut)
    for key in whole:
        np.testing.assert_array_equal(whole[key], cut[key], err_msg=key)


def test_what_the_net_says_follows_from_the_levels():
    assert isinstance(made(CONFIGS[0]).parameterisation, KWay)
    assert isinstance(made(CONFIGS[3]).parameterisation, Epsilon)
    assert isinstance(made(CONFIGS[5]).parameterisation, Velocity)
    many = DdpmConfig(**{**SMALL, "data": "shapes"}, timesteps=9)
    assert isinstance(made(many).parameterisation, Epsilon), "256 levels are too many for logits"
    net = made(CONFIGS[5]).model.net
    assert net.frequencies == [2.0**3 * np.pi, 2.0**4 * np.pi], "half a wave to each of 17 levels"


@every_config
def test_losses_are_logged_in_named_units(config, run):
    with open(run(config) / "metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    recipe = made(config)
    for row in rows:
        nats = float(row["negative_elbo_nats"])
        assert float(row["bits_per_dim"]) == pytest.approx(bits_per_dim(nats, recipe.dims))


@pytest.mark.parametrize("config", CONFIGS[:4], ids=NAMES[:4])
def test_a_ddpm_is_measured_term_by_term_with_every_variance(config, run, capsys):
    folder = run(config)
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--draws", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    recipe = made(config)
    recipe.use_average(folder / "checkpoint.npz")
    stream = Stream(0, recipe.born).at("evaluate")
    choices = recipe.variances()
    part = recipe.part("test")
    terms = ddpm_bounds(recipe.model, recipe.examples(part), stream, 2, choices)
    learned = ["learned"] if config.variance == "learned" else []
    assert list(found["by_variance"]) == [*learned, "beta", "posterior", "optimal"]
    for name, row in found["by_variance"].items():
        three = [row[f"{term}_nats"] for term in ("prior", "transitions", "reconstruction")]
        assert row["negative_elbo_nats"] == pytest.approx(sum(three))
        mean = (
            terms["prior"] + terms[f"transitions/{name}"] + terms[f"reconstruction/{name}"]
        ).mean()
        assert row["negative_elbo_nats"] == pytest.approx(float(mean))
    assert found["by_variance"]["posterior"]["variance_constants_nats"] == pytest.approx(0.0)
    assert found["by_variance"]["beta"]["variance_constants_nats"] > 0.0
    own = found["by_variance"][config.variance]
    assert found["bits_per_dim"] == own["bits_per_dim"]
    with open(folder / "terms_test.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["t"]) for row in rows] == list(range(1, 10))
    seen = np.asarray([int(row["count"]) for row in rows])
    assert seen[0] == len(part)
    assert seen[1:].sum() == 2 * len(part)
    for name in found["by_variance"]:
        column = [row[f"term_{name}_nats"] for row in rows]
        assert [cell != "" for cell in column] == (seen > 0).tolist(), "empty where none looked"
        values = [float(cell) if cell else None for cell in column]
        assert values == found["course"][f"term_{name}_nats"]
        assert values[0] == pytest.approx(found["by_variance"][name]["reconstruction_nats"])
    assert (folder / "figures" / "terms_test.png").is_file()
    print_evaluation(found)
    said = capsys.readouterr().out
    assert f"{found['bits_per_dim']:.4f} ± " in said
    assert "Σ C_t" in said


def test_the_best_of_the_fixed_variances_is_the_optimal_one(run):
    """On the examples its errors were taken from, but for the noise of either look at them."""
    recipe = made(CONFIGS[0])
    recipe.use_average(run(CONFIGS[0]) / "checkpoint.npz")
    rows = recipe.evaluate(recipe.fitted.take(slice(ddpm_recipe.PILOT)), 8)["by_variance"]
    terms = {name: row["transitions_nats"] for name, row in rows.items()}
    assert terms["optimal"] <= 1.01 * min(terms["beta"], terms["posterior"])


@pytest.mark.parametrize("config", CONFIGS[4:], ids=NAMES[4:])
def test_a_vdm_is_measured_in_its_three_terms(config, run, capsys):
    folder = run(config)
    capsys.readouterr()
    assert main(["evaluate", str(folder), "--draws", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    recipe = made(config)
    recipe.use_average(folder / "checkpoint.npz")
    x = recipe.examples(recipe.part("test"))
    steps = config.timesteps or None
    terms = vdm_bounds(recipe.model, x, Stream(0, recipe.born).at("evaluate"), 3, steps)
    for name in ("prior", "diffusion", "reconstruction"):
        assert found[f"{name}_nats"] == pytest.approx(float(terms[name].mean()))
    total = sum(found[f"{name}_nats"] for name in ("prior", "diffusion", "reconstruction"))
    assert -found["elbo_nats"] == pytest.approx(total)
    assert found["bits_per_dim"] == pytest.approx(bits_per_dim(total, recipe.dims))
    t = np.asarray(found["course"]["t"])
    (gamma, slope), _ = recipe.model.gamma(t)
    np.testing.assert_allclose(found["course"]["gamma"], gamma)
    weight = slope / 2.0
    if steps:
        (before, _), _ = recipe.model.gamma(t - 1.0 / steps)
        weight = 0.5 * steps * np.expm1(gamma - before)
        np.testing.assert_allclose(t, [0.2, 0.6, 1.0])
    area = np.asarray(found["course"]["squared_error"]) * weight
    assert float(area.mean()) == pytest.approx(found["diffusion_nats"])
    print_evaluation(found)
    assert f"{found['bits_per_dim']:10.4f} ± " in capsys.readouterr().out


def test_points_are_measured_beside_their_own_density(run, capsys):
    assert main(["evaluate", str(run(CONFIGS[3])), "--draws", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    x = made(CONFIGS[3]).part("test").x
    nats = -float(density("moons").log_prob(x).mean())
    assert found["baselines"] == {"the density itself": pytest.approx(bits_per_dim(nats, 2))}
    assert found["levels"] is None


def drawn(folder, *options) -> dict:
    for earlier in folder.rglob("samples*"):
        earlier.unlink()
    assert main(["sample", str(folder), *options]) == 0
    with np.load(folder / "samples.npz", allow_pickle=False) as archive:
        return dict(archive)


SAMPLERS = [
    ("ancestral",),
    ("ddim", "--steps", "3"),
    ("ddim", "--eta", "0.5"),
    ("ode", "--steps", "4"),
    ("sde", "--steps", "5", "--clip"),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=" ".join)
@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[3], CONFIGS[5]], ids=lambda c: c.data)
def test_sample_i_of_few_is_sample_i_of_many(config, sampler, run):
    options = ("--sampler", *sampler)
    if isinstance(config, VdmConfig) and "--steps" not in sampler:
        options += ("--steps", "6")
    few = drawn(run(config), "-n", "3", "--seed", "7", *options)["x"]
    many = drawn(run(config), "-n", "70", "--seed", "7", *options)["x"]
    other = drawn(run(config), "-n", "3", "--seed", "8", *options)["x"]
    assert few.shape == (3, *made(config).shape)
    np.testing.assert_array_equal(few, many[:3])
    assert np.any(few != other)


def test_the_options_of_a_sampler_do_what_they_say(run):
    folder = run(CONFIGS[3])
    still = drawn(folder, "-n", "4", "--temperature", "0", "--step-temperature", "0")["x"]
    np.testing.assert_allclose(still, np.repeat(still[:1], 4, axis=0))
    cold = drawn(folder, "-n", "4", "--temperature", "0", "--shared-noise")["x"]
    np.testing.assert_allclose(cold, np.repeat(cold[:1], 4, axis=0))
    assert np.any(cold != still)
    ways = {v: drawn(folder, "-n", "4", "--variance", v)["x"] for v in ("beta", "optimal")}
    own = drawn(folder, "-n", "4")["x"]
    np.testing.assert_array_equal(own, drawn(folder, "-n", "4", "--variance", "posterior")["x"])
    assert np.any(ways["beta"] != own)
    assert np.any(ways["optimal"] != own)
    shared = drawn(folder, "-n", "4", "--shared-noise", "--seed", "3")
    assert bool(shared["shared_noise"])
    assert np.any(shared["x"][0] != shared["x"][1]), "the start is each sample's own"


@pytest.mark.parametrize("config", CONFIGS[:3], ids=NAMES[:3])
def test_every_run_can_be_sampled_with_every_variance(config, run):
    """Of any net, also one that has learned its own; and none of them stays behind."""
    recipe = made(config)
    recipe.use_average(run(config) / "checkpoint.npz")
    before = recipe.sample(2, 3, DdpmSampling()).x
    found = {v: recipe.sample(2, 3, DdpmSampling(variance=v)).x for v in recipe.variances()}
    np.testing.assert_array_equal(found[config.variance], before)
    assert np.any(found["beta"] != found["optimal"])
    np.testing.assert_array_equal(recipe.sample(2, 3, DdpmSampling()).x, before)


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[3]], ids=["images", "points"])
def test_a_trajectory_is_kept_from_noise_to_samples(config, run, monkeypatch):
    folder, shown, strip = run(config), [], diffusion_plots.strip

    def look(path, frames, labels, title):
        shown.append((path.name, title))
        strip(path, frames, labels, title)

    monkeypatch.setattr(diffusion_plots, "strip", look)
    found = drawn(folder, "-n", "5", "--seed", "2", "--trajectory")
    assert found["path"].shape == (10, 5, *made(config).shape), "all ten stops of nine steps"
    np.testing.assert_array_equal(found["path"][-1], found["x"])
    noise = Stream(2, made(config).born).at("sample", "start").normal((5, made(config).dims))
    np.testing.assert_allclose(found["path"][0].reshape(5, -1), noise)
    titles = [title for name, title in shown if name == "trajectory.png"]
    assert titles == ["from noise to samples, seed 2, trajectory"]
    for name in ("samples.png", "trajectory.png", "forward.png", "trajectory.gif"):
        assert (folder / "figures" / name).is_file()
    with Image.open(folder / "figures" / "trajectory.gif") as picture:
        assert picture.n_frames > 1


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[4], CONFIGS[6]], ids=["ddpm", "vdm", "2d"])
def test_the_forward_way_goes_from_training_examples_to_noise(config):
    """Its last moment has the variance of the last level, its first that of the first."""
    recipe = made(config)
    drawn = recipe.sample(2, 3, recipe.sampling_type(steps=9, trajectory=True, sampler="ddim"))
    assert len(drawn.forward) == len(drawn.path)
    stops = recipe.stops(9)
    x = recipe.fitted.x[: len(drawn.forward[0])]
    for frame, stop in ((drawn.forward[0], stops[-1]), (drawn.forward[-1], stops[0])):
        gap = frame - np.exp(0.5 * stop.level) * x
        assert float(gap.var()) == pytest.approx(-np.expm1(stop.level), rel=0.15, abs=1e-12)


def test_vdm_samples_of_images_are_the_decoder_s_means(run):
    x = drawn(run(CONFIGS[4]), "-n", "2", "--steps", "3")["x"]
    assert np.abs(x).max() <= 1.0


def test_samples_are_judged_beside_real_data(run, tmp_path, capsys):
    judge = tmp_path / "judge"
    options = ["--width", "8", "--steps", "20", "--quiet"]
    assert main(["train", "classifier", *options, "--out", str(judge)]) == 0
    arguments = ["evaluate", str(run(CONFIGS[0])), "--draws", "1", "--samples", "40"]
    arguments += ["--sampler", "ddim", "--steps", "2", "--classifier", str(judge)]
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["quality"]
    names = [f"{m} on {f}" for f in ("pixels", "classifier features") for m in (
        "kernel distance", "Fréchet distance", "sliced Wasserstein distance", "precision", "recall",
        "density", "coverage")]  # fmt: skip
    assert list(found["measures"]) == names
    row = found["measures"]["Fréchet distance on classifier features"]
    assert (row["n_real"], row["n_reference"], row["n_generated"]) == (360, 40, 40)
    assert row["value"] > row["floor"], "an untrained model is far off"
    assert set(found["class_score"]) == {"data", "samples"}
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert f"weights {found['classifier']['weights']}" in said
    assert "kernel distance on classifier features" in said


def test_a_class_that_training_never_saw_is_refused():
    recipe = ClassifierRecipe(ClassifierConfig(width=8, batch_size=4, steps=1))
    part = recipe.part("test")
    part.labels[0] = 12
    with pytest.raises(ValueError, match="label 12 occurs"):
        recipe.evaluate(part, 1)


def test_points_are_judged_by_their_coordinates(run, capsys):
    arguments = ["evaluate", str(run(CONFIGS[3])), "--draws", "1", "--samples", "50", "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)["quality"]
    assert all(name.endswith("coordinates") for name in found["measures"])
    assert "classifier" not in found


def test_a_judge_of_other_data_is_refused(run):
    recipe = made(CONFIGS[0])
    other = ClassifierRecipe(ClassifierConfig(data="shapes", batch_size=4, steps=1))
    with pytest.raises(ValueError, match="trained with data shapes, the run with digits"):
        quality.require_same_data(other, recipe)
    with pytest.raises(ValueError, match="got a ddpm"):
        quality.require_same_data(recipe, recipe)
    assert not quality.can_be_judged(made(CONFIGS[3]))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["ddpm", "--data", "moons", "--net", "unet"], "moons are points in the plane"),
        (["ddpm", "--data", "moons", "--predict", "kway"], "moons are points in the plane"),
        (["ddpm", "--data", "moons", "--size", "16"], "leave out --size and --colour"),
        (["ddpm", "--timesteps", "1"], "--timesteps must be at least 2"),
        (["ddpm", "--variance", "learned"], "--objective simple teaches no variance"),
        (["ddpm", "--objective", "hybrid"], "hybrid is for --variance learned"),
        (["ddpm", "--width", "12"], "--width must be a multiple of 8 for --net unet"),
        (["ddpm", "--multipliers", "1,x"], "--multipliers must be whole numbers"),
        (["ddpm", "--net", "mlp", "--fourier"], "--fourier is for --net unet"),
        (["ddpm", "--data", "moons", "--multipliers", "1"], "--multipliers is for --net unet"),
        (["vdm", "--gamma-first", "6"], "need -20 ≤ --gamma-first < --gamma-last ≤ 20"),
        (["vdm", "--timesteps", "20000"], "--timesteps must be at most 10000 in float32"),
        (["vdm", "--timesteps", "-1"], "--timesteps must be at least 0"),
        (["vdm", "--predict", "mean"], "in continuous time a step has no mean"),
        (["vae", "--data", "moons"], "this model is for images; train gan, ddpm or vdm on them"),
        (["classifier", "--data", "moons"], "a classifier is for images"),
        (["ddpm", "--data", "shapes", "--predict", "kway", "--size", "9"], "shapes have 8, 16"),
    ],
)
def test_bad_options_are_one_sentence(options, what, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert what in refused(capsys, "train", *options)
    assert list(tmp_path.iterdir()) == []


def test_options_that_do_not_fit_a_run_are_refused(run, capsys):
    folder, points = run(CONFIGS[0]), run(CONFIGS[6])
    assert "--eta is for --sampler ddim" in refused(capsys, "sample", folder, "--eta", "0.5")
    assert "1 to 9, got 10" in refused(capsys, "sample", folder, "--steps", 10)
    complaint = refused(capsys, "sample", folder, "--variance", "learned")
    assert "has learned no variance" in complaint
    assert "the sampler of vdm has no option" in refused(
        capsys, "sample", points, "--variance", "beta"
    )
    assert "--step-temperature" in refused(capsys, "sample", folder, "--step-temperature", "-1")
    assert "go with --samples N" in refused(capsys, "evaluate", folder, "--sampler", "ddim")
    complaint = refused(capsys, "evaluate", folder, "--draws", 1, "--samples", 10)
    assert "--samples must lie between 20 and the 1437" in complaint
    assert "moons does not fit the run" in refused(capsys, "evaluate", folder, "--data", "moons")
    temper = ["--step-temperature", "2"]
    for noisy in (["--sampler", "ode", "--shared-noise"], ["--sampler", "ddim", *temper]):
        assert "adds no noise" in refused(capsys, "sample", folder, *noisy)
    complaint = refused(capsys, "sample", folder, "--sampler", "sde", "--variance", "beta")
    assert "--variance is for --sampler ancestral" in complaint
    arguments = ("evaluate", folder, "--part", "train", "--samples", 40)
    assert "compared with held-out examples" in refused(capsys, *arguments)


def test_other_data_of_the_same_kind_can_be_measured(run, tmp_path, capsys):
    folder, path = run(CONFIGS[0]), tmp_path / "mine.npz"
    codes = made(CONFIGS[0]).part("test").codes[:20]
    np.savez(path, x=codes, levels=np.asarray(17))
    kept = {each: each.read_bytes() for each in folder.rglob("terms_*")}
    assert main(["evaluate", str(folder), "--draws", "1", "--data", str(path), "--json"]) == 0
    name = f"terms_test_mine_{fingerprint(load_files(path, 'test'))[:8]}"
    new = {folder / f"{name}.csv", folder / "figures" / f"{name}.png"}
    assert set(folder.rglob("terms_*")) == kept.keys() | new
    assert all(each.read_bytes() == content for each, content in kept.items())
    found = json.loads(capsys.readouterr().out)
    assert (found["data"], found["examples"]) == (str(path), 2)
    np.savez(path, x=codes)
    assert "17 levels" in refused(capsys, "evaluate", folder, "--data", path)


def test_a_run_is_not_resumed_on_other_examples(tmp_path, capsys):
    path, out = tmp_path / "mine.npz", tmp_path / "run"
    codes = made(CONFIGS[0]).part("test").codes[:60]
    np.savez(path, x=codes, levels=np.asarray(17))
    options = ["--data", str(path), "--width", "8", "--batch-size", "4", "--steps", "2"]
    assert main(["train", "vdm", *options, "--stop-at", "1", "--quiet", "--out", str(out)]) == 0
    facts = json.loads((out / "environment.json").read_text("utf-8"))["data"]
    assert (facts["examples"], facts["shape"], facts["levels"]) == (54, [8, 8, 1], 17)
    np.savez(path, x=codes[::-1], levels=np.asarray(17))
    assert "begun with other examples" in refused(capsys, "train", "--resume", out)
    np.savez(path, x=codes, levels=np.asarray(17))
    assert main(["train", "--resume", str(out), "--quiet"]) == 0


@pytest.mark.parametrize("name", PLANAR)
def test_every_planar_set_has_its_parts(name):
    recipe = made(DdpmConfig(**{**POINTS, "data": name}, timesteps=3))
    assert recipe.shape == (2,)
    assert [len(recipe.part(part)) for part in ("train", "fit", "validation", "test")] == [
        8000,
        7200,
        800,
        4000,
    ]
    assert not np.any(np.isin(recipe.part("test").x[:, 0], recipe.part("train").x[:, 0]))
    np.testing.assert_array_equal(recipe.part("train").x[7200:], recipe.part("validation").x)


def test_schedules_are_reported(run, capsys):
    assert main(["info", "--schedule", "--timesteps", "1000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    weights = {row["t"]: row["lambda"] for row in found["rows"]}
    known = {1: 0.50005, 2: 0.27269, 10: 0.07372, 100: 0.01008, 500: 0.00550, 1000: 0.01020}
    assert weights == {t: pytest.approx(weight, abs=5e-6) for t, weight in known.items()}
    assert found["prior_kl_nats_per_dim"] == pytest.approx(2.018e-5, rel=1e-4)
    assert main(["info", "--schedule", "cosine", "--timesteps", "2"]) == 0
    assert "warning: x_T keeps alpha_bar" in capsys.readouterr().out
    for config in (CONFIGS[2], CONFIGS[5]):
        assert main(["info", str(run(config)), "--schedule", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        x = made(config).part("train").x
        assert found["second_moment_of_data"] == pytest.approx(float((x * x).mean()))
        assert main(["info", str(run(config)), "--schedule"]) == 0
        assert found["schedule"] in capsys.readouterr().out
    assert found["steps"] == "continuous"
    assert main(["info", str(run(CONFIGS[7])), "--schedule", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 5
    gammas = [row["gamma"] for row in found["rows"]]
    assert gammas == sorted(gammas)
    assert "linear or cosine" in refused(capsys, "info", "--schedule", "cubic")
    assert "not both" in refused(capsys, "info", run(CONFIGS[0]), "--schedule", "linear")


def test_default_samplers_are_those_of_the_papers():
    assert DdpmSampling().sampler == "ancestral"
    assert DiffusionSampling(sampler="ddim").eta == 0.0
    assert len(made(CONFIGS[0]).stops(0)) == 10
    assert len(made(CONFIGS[4]).stops(0)) == 251
