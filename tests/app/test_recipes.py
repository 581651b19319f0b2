"""app/recipes: what a configuration becomes, and that measures and figures show what they say."""

import re
import shutil
from dataclasses import asdict, replace
from math import log

import numpy as np
import pytest

from scratchgen.app import commands, plots, quality
from scratchgen.app.cli import main
from scratchgen.app.recipes import (
    RECIPES,
    AutoencoderRecipe,
    ClassifierRecipe,
    DdpmRecipe,
    VaeRecipe,
    VdmRecipe,
    recipe_from_json,
)
from scratchgen.app.recipes import classifier as judges
from scratchgen.app.recipes.autoencoder import AutoencoderConfig
from scratchgen.app.recipes.base import Sampling, config_to_json
from scratchgen.app.recipes.classifier import ClassifierConfig
from scratchgen.app.recipes.config import flag_of
from scratchgen.app.recipes.ddpm import DdpmConfig
from scratchgen.app.recipes.gan import GanConfig
from scratchgen.app.recipes.vae import VaeConfig
from scratchgen.app.recipes.vdm import VdmConfig
from scratchgen.app.runs import load_run
from scratchgen.core.streams import Stream
from scratchgen.data.digits import load_digits, load_digits_1000
from scratchgen.metrics.baselines import baselines
from scratchgen.metrics.likelihood import mean_and_error, vae_bounds
from scratchgen.training.checkpoint import load

from by_hand import placed, png

SMALL = {"width": 16, "latent": 3, "batch_size": 10, "steps": 30, "dtype": "float64"}


@pytest.fixture
def trained(tmp_path):
    recipe = VaeRecipe(VaeConfig(**SMALL))
    meta = {"config": config_to_json(recipe)}
    recipe.fit.until(30, tmp_path / "c.npz", meta, quiet=True)
    return recipe


@pytest.mark.parametrize("recipe", [VaeRecipe, AutoencoderRecipe])
def test_configurations_survive_json(recipe):
    made = recipe(recipe.config_type(**SMALL, seed=4))
    again = recipe_from_json(config_to_json(made))
    assert type(again) is recipe
    assert again.config == made.config
    np.testing.assert_array_equal(again.params.theta, made.params.theta)


@pytest.mark.parametrize(
    "config",
    [
        AutoencoderConfig(net="linear"),
        AutoencoderConfig(net="sigmoid"),
        VaeConfig(net="conv"),
        ClassifierConfig(),
        DdpmConfig(net="mlp"),
        VdmConfig(data="moons"),
        GanConfig(),
        GanConfig(loss="wgan"),
        GanConfig(loss="wgan-gp", data="ring8"),
    ],
)
def test_what_a_run_folder_holds_was_not_all_chosen(config):
    """Options that say nothing have values there too."""
    held = asdict(config)
    assert type(config)(**held) == config
    assert held["width"] > 0
    assert config.without_effect
    for name in config.without_effect:
        with pytest.raises(ValueError, match=f"^{flag_of(name)} is for .*, so leave it out$"):
            config.refuse_without_effect([name])


def test_a_model_of_images_names_all_that_take_points():
    takers, complaints = [], set()
    for name, recipe in RECIPES.items():
        try:
            recipe.config_type(data="moons")
        except ValueError as error:
            complaints.add(str(error))
        else:
            takers.append(name)
    *some, last = takers
    assert any(f"; train {', '.join(some)} or {last} on them" in each for each in complaints)


def test_a_width_without_effect_is_refused_wherever_it_comes_from():
    linear = AutoencoderConfig(net="linear")
    assert linear.width == 256  # as in every folder so far
    with pytest.raises(ValueError, match="^--width is for deep nets"):
        replace(linear, width=64)


@pytest.mark.parametrize(("hold_out", "part"), [(False, "train"), (True, "fit")])
def test_a_held_out_part_is_never_trained_on(hold_out, part):
    recipe = VaeRecipe(VaeConfig(**SMALL, hold_out=hold_out))
    want = load_digits(part).x.reshape(-1, 64)
    seen = [recipe.batch(step, slice(0, 10))[0] for step in range(len(want) // 10)]
    assert len(np.unique(np.concatenate(seen), axis=0)) == len(seen) * 10
    rows = {row.tobytes() for row in want}
    assert all(row.tobytes() in rows for row in np.concatenate(seen))


def test_the_split_in_the_order_of_the_file_is_always_held_out():
    recipe = VaeRecipe(VaeConfig(**SMALL, data="digits-1000"))
    assert recipe.config == VaeConfig(**SMALL, data="digits-1000", hold_out=True)
    assert recipe_from_json(config_to_json(recipe)).config == recipe.config
    for part in ("fit", "validation", "test"):
        np.testing.assert_array_equal(recipe.part(part).codes, load_digits_1000(part).codes)
    assert len(recipe.fitted) == 1000
    judge = ClassifierRecipe(ClassifierConfig(data="digits-1000"))
    assert quality.require_same_data(judge, recipe) is judge
    with pytest.raises(ValueError, match="digits are 8×8 pixels and grey"):
        VaeConfig(data="digits-1000", size=16)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("vae", SMALL),
        ("hvae", {"latents": "4,2", "width": 8, "steps": 2}),
        ("ddpm", {"data": "moons", "width": 16, "timesteps": 8, "steps": 2}),
        ("vdm", {"data": "moons", "width": 16, "steps": 2}),
        ("gan", {"data": "ring8", "width": 16, "steps": 2}),
    ],
)
def test_what_is_measured_by_drawing_depends_on_the_seed_alone(model, options):
    recipe = RECIPES[model](RECIPES[model].config_type(**options))
    part = recipe.fitted.take(slice(40))
    first, again, other = (recipe.evaluate(part, 6, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_judge_of_a_run_learns_from_the_run_s_own_data(monkeypatch, tmp_path):
    placed(tmp_path, {f"{i % 2}/{i}.png": png(np.full((8, 8, 3), i, np.uint8)) for i in range(40)})
    data = str(tmp_path)
    shared = {"data": data, "size": 8, "colour": True, "crop": "none", "hold_out": True}
    monkeypatch.setattr(judges, "_trained", lambda config: config)
    run = VaeRecipe(VaeConfig(**SMALL, **shared, seed=4))
    assert judges.judge_for(run) == ClassifierConfig(**shared, batch_size=len(run.fitted))
    assert tuple(shared) == judges.MEASURED


@pytest.fixture
def of_pictures(tmp_path, capsys):
    """A run on 40 pictures in two classes, and their folder."""
    folder, out = tmp_path / "pictures", tmp_path / "run"
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (40, 16, 16), dtype=np.uint8)
    placed(folder, {f"{i % 2}/{i}.png": png(one) for i, one in enumerate(codes)})
    flags = ["--data", str(folder), "--size", "16", "--batch-size", "9", "--steps", "2", "--quiet"]
    assert main(["train", "gan", *flags, "--width", "8", "--out", str(out)]) == 0
    return out, folder


def test_a_run_on_files_is_not_measured_on_what_it_may_have_seen(of_pictures, capsys):
    run, folder = of_pictures
    copy = shutil.copytree(folder, folder.parent / "copy")
    commands = [["evaluate", run, "--draws", 20], ["evaluate", run, "--data", copy, "--draws", 20]]
    commands.append(["evaluate", run, "--samples", 20])
    next(copy.glob("*/*.png")).unlink()
    assert main([str(word) for word in commands[1]]) == 0
    assert re.search("was trained on 3 of these 3 examples", capsys.readouterr().err)
    next(folder.glob("*/*.png")).unlink()
    for command in commands:
        assert main([str(word) for word in command]) == 2
        assert "was begun with other examples" in capsys.readouterr().err
    shutil.rmtree(folder)
    for command in [*commands, ["info", run], ["sample", run], ["train", "--resume", run]]:
        assert main([str(word) for word in command]) == 2
        assert f"the data, {folder}, are no longer there" in capsys.readouterr().err


def test_the_judge_of_few_examples_takes_them_all_at_once(of_pictures, monkeypatch):
    monkeypatch.setattr(judges, "_trained", lambda config: config)
    recipe = load_run(of_pictures[0])
    assert judges.judge_for(recipe).batch_size == len(recipe.fitted) == 36


def test_a_named_judge_counts_the_classes_too(of_pictures, tmp_path, monkeypatch):
    run, folder = of_pictures
    flags = ["--data", str(folder), "--size", "16", "--batch-size", "9", "--steps", "2", "--quiet"]
    assert main(["train", "classifier", *flags, "--out", str(tmp_path / "judge")]) == 0
    monkeypatch.setattr(judges, "_trained", None)  # so that none can be trained
    result = commands.evaluate(run, draws=20, classifier=tmp_path / "judge")
    judge = load_run(tmp_path / "judge")
    assert result["classifier_accuracy"] == judge.evaluate(judge.part("test"), 1)["accuracy"]


def test_a_run_on_pictures_that_were_cropped_is_measured_on_others_too(tmp_path):
    placed(tmp_path, {f"{i}.png": png(np.full((8, 8), i, np.uint8)) for i in range(40)})
    recipe = VaeRecipe(VaeConfig(**SMALL, data=str(tmp_path), size=8, crop="none"))
    assert quality.examples_of(recipe, "test", "shapes").shape == (8, 8, 1)


@pytest.mark.parametrize(
    ("trained", "other"), [("digits", "digits-1000"), ("digits-1000", "digits")]
)
def test_the_splits_of_the_digits_share_images_and_do_not_measure_each_other(trained, other):
    recipe = VaeRecipe(VaeConfig(**SMALL, data=trained))
    known = {image.tobytes() for image in recipe.fitted.codes}
    theirs = VaeRecipe(VaeConfig(**SMALL, data=other)).part("test")
    assert sum(image.tobytes() in known for image in theirs.codes) > len(theirs) // 2
    with pytest.raises(ValueError, match=f"{other} and {trained} split the same images"):
        quality.examples_of(recipe, "test", other)
    assert len(quality.examples_of(recipe, "test", trained)) == len(recipe.part("test"))


@pytest.mark.parametrize(
    "recipe",
    [VaeRecipe(VaeConfig(**SMALL, beta=2.0)), AutoencoderRecipe(AutoencoderConfig(**SMALL))],
    ids=["vae", "autoencoder"],
)
def test_the_gradient_is_that_of_the_batch_mean_on_one_shard_or_two(recipe):
    gradients = []
    for shards in ([slice(0, 10)], [slice(0, 4), slice(4, 10)]):
        with recipe.params.gradient_into(np.zeros_like(recipe.params.theta)) as gradient:
            for rows in shards:
                recipe.loss(3, rows)
        gradients.append(gradient)
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-10, atol=1e-13)
    x, noise = recipe.batch(3, slice(0, 10))
    weights = [0.1] if recipe.name == "autoencoder" else [0.1, 0.2]
    eps = noise.at("eps").normal((10, 3))[None]
    arguments = (x, noise) if recipe.name == "autoencoder" else (x, eps, noise)
    with recipe.params.gradient_into(np.zeros_like(recipe.params.theta)) as want:
        recipe.model.loss(*arguments)[1](*(np.full(10, w) for w in weights))
    np.testing.assert_allclose(gradients[0], want, rtol=1e-10, atol=1e-13)


@pytest.mark.equation("NET-2")
def test_the_default_linear_autoencoder_comes_within_one_percent_of_principal_components():
    recipe = AutoencoderRecipe(AutoencoderConfig(net="linear", latent=8))
    recipe.fit.until(recipe.config.steps, quiet=True)
    with recipe.ema.applied():
        found = recipe.evaluate(recipe.fitted, draws=1)
    best = found["baselines"]["8 principal components"]
    assert best <= found["squared_error_per_dim"] <= 1.01 * best


def test_held_out_examples_are_compared_in_a_random_order(monkeypatch):
    """They may come sorted by class, and the errors leave out every tenth."""
    recipe, seen = VaeRecipe(VaeConfig(**SMALL)), []
    part = recipe.part("test")
    part = part.take(np.argsort(part.labels, kind="stable"))
    monkeypatch.setattr(quality, "compare", lambda real, *_: seen.append(real) or {})
    quality.sample_quality(recipe, part, 20, 0, Sampling(), None)
    (real,) = seen
    given = part.x.reshape(len(part), -1)
    assert np.mean(np.all(real == given, axis=1)) < 0.05
    assert sorted(map(bytes, real)) == sorted(map(bytes, given))


def test_the_rate_warms_up_and_falls():
    recipe = VaeRecipe(VaeConfig(steps=2000, learning_rate=0.01, width=8))
    rate = recipe.fit.optimiser.lr
    assert [rate(0), rate(99), rate(1050)] == pytest.approx([1e-4, 1e-2, 5e-3])
    assert rate(2000) == pytest.approx(0.0, abs=1e-12)


def test_what_is_evaluated_is_the_average(trained, tmp_path):
    arrays, _ = load(tmp_path / "c.npz")
    assert np.any(arrays["ema/average"] != arrays["theta"])
    fresh = VaeRecipe(VaeConfig(**SMALL))
    fresh.use_average(tmp_path / "c.npz")
    np.testing.assert_array_equal(fresh.params.theta, arrays["ema/average"])


def test_evaluation_reports_what_the_bounds_are(trained):
    part = load_digits("test")
    result = trained.evaluate(part, draws=4)
    stream = Stream(0, trained.born).at("evaluate")
    found = vae_bounds(trained.model, trained.examples(part), stream, latent=3, samples=4)
    per_dim = 64.0 * log(2.0)
    mean, error = mean_and_error(found["importance_weighted"])
    assert result["importance_weighted_bits_per_dim"] == pytest.approx(mean / per_dim)
    assert result["importance_weighted_bits_per_dim_standard_error"] == pytest.approx(
        error / per_dim
    )
    total = found["reconstruction"] + found["kl"]
    assert result["elbo_nats"] == pytest.approx(-total.mean())
    assert result["bits_per_dim_standard_error"] == pytest.approx(
        mean_and_error(total)[1] / per_dim
    )
    assert result["baselines"] == baselines(load_digits("train").codes, part.codes, 17)


def test_autoencoders_are_built_drawn_and_measured_as_they_say(tmp_path, monkeypatch):
    small = {**SMALL, "latent": 4}
    squashed = {name: value for name, value in small.items() if name != "width"}
    recipe = AutoencoderRecipe(AutoencoderConfig(**squashed, net="sigmoid"))
    x, noise = recipe.batch(0, slice(0, 10))
    codes = recipe.model.encode(x)
    assert codes.min() > 0.0
    assert codes.max() < 1.0
    deep = AutoencoderRecipe(AutoencoderConfig(**small, dropout=0.5))
    for net, size in ((deep.model.encoder, 64), (deep.model.decoder, 4)):
        inputs = np.ones((10, size))
        assert np.any(net(inputs, stream=noise)[0] != net(inputs)[0])
    plain = deep.model.loss(x)[0][0]
    assert np.any(deep.loss(0, slice(0, 10))["squared_error"] != plain), "training draws its masks"

    row = {"squared_error": 6.4}
    assert recipe.columns(row) == {
        "squared_error_per_example": 6.4,
        "squared_error_per_dim": pytest.approx(0.1),
    }
    part = load_digits("validation")
    found = recipe.evaluate(part, draws=1)["baselines"]
    train = load_digits("train").x.reshape(-1, 64)
    mean = train.mean(axis=0)
    _, _, axes = np.linalg.svd(train - mean, full_matrices=False)
    gap = part.x.reshape(-1, 64) - mean
    rest = gap - gap @ axes[:4].T @ axes[:4]
    assert found["4 principal components"] == pytest.approx(np.mean(rest**2))
    assert found["mean image"] == pytest.approx(np.mean(gap**2))

    drawn = {}
    monkeypatch.setattr(plots, "loss_curves", lambda *a: drawn.update(curves=a))
    recipe.fit.until(30, quiet=True)
    recipe.training_figures(tmp_path)
    _, _, curves, unit, _ = drawn["curves"]
    per_pixel = np.asarray(recipe.fit.history["squared_error"]) / 64.0
    np.testing.assert_allclose(curves["training batches"], per_pixel)
    assert "per pixel" in unit


@pytest.mark.parametrize(
    ("recipe", "more"), [(VdmRecipe, {}), (DdpmRecipe, {"objective": "bound"})]
)
def test_what_a_figure_calls_held_out_is_unknown_to_its_code(recipe, more, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "loss_curves", lambda *a: drawn.update(curves=a))
    made = recipe(recipe.config_type(net="mlp", width=16, steps=1, timesteps=5, **more))
    made.fit.until(1, quiet=True)
    made.training_figures(tmp_path)
    held = baselines(load_digits("fit").codes, load_digits("validation").codes, 17)
    assert drawn["curves"][-1]["mixture of 10, held out"] == held["mixture of 10"]


def test_figures_show_what_their_labels_say(trained, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "loss_curves", lambda *a: drawn.update(curves=a))
    monkeypatch.setattr(plots, "latent_grid", lambda *a: drawn.update(grid=a))
    trained.training_figures(tmp_path)
    _, steps, curves, unit, lines = drawn["curves"]
    history = trained.fit.history
    assert unit == "bits per dimension"
    assert steps == history["step"]
    total = np.add(history["reconstruction"], history["kl"]) / (64.0 * log(2.0))
    np.testing.assert_allclose(curves["-ELBO on training batches"], total)
    held = baselines(load_digits("fit").codes, load_digits("validation").codes, 17)
    assert lines["mixture of 10, held out"] == held["mixture of 10"]

    _, images, u, names, _ = drawn["grid"]
    with trained.ema.applied():
        rates = trained.model.kl_per_dimension(trained.examples(trained.fitted)).mean(axis=0)
        across, down = np.argsort(-rates)[:2]
        assert names == [f"z{across}", f"z{down}"]
        z = np.zeros((1, 3))
        z[0, across], z[0, down] = 1.5, -1.0  # column at Φ(1.5), row at Φ(-1)
        want = trained.images(trained.model.decode(z))[0]
    columns, rows = (
        np.argmin(np.abs(np.subtract(u, 0.9332))),
        np.argmin(np.abs(np.subtract(u, 0.1587))),
    )
    nearest = np.argmin(((images - want) ** 2).sum(axis=(1, 2, 3)))
    assert abs(nearest % len(u) - columns) <= 1
    assert abs(nearest // len(u) - rows) <= 1
