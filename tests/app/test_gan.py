"""`train gan`: both sides of the game, from the options to samples, measures and figures."""

import json
from functools import partial
from math import ceil, pi, prod

import numpy as np
import pytest

from scratchgen.app import gan_plots, plots, quality, workers
from scratchgen.app.cli import main
from scratchgen.app.commands import evaluate
from scratchgen.app.recipes import GanRecipe, VaeRecipe, gan, recipe_from_json
from scratchgen.app.recipes.base import config_to_json
from scratchgen.app.recipes.classifier import ClassifierConfig, ClassifierRecipe
from scratchgen.app.recipes.data import PLANAR, density, modes
from scratchgen.app.recipes.gan import LOSSES, PENALISED, ROW, WGAN, GanConfig, GanSampling
from scratchgen.app.recipes.gan_report import lines as report_lines
from scratchgen.app.recipes.gan_report import shown
from scratchgen.app.sampling import sampling_options
from scratchgen.app.workers import Sharing, crew
from scratchgen.core.module import Parameter
from scratchgen.core.streams import Stream
from scratchgen.layers.activations import leaky_relu, relu
from scratchgen.layers.affine import Scale
from scratchgen.layers.combinators import Sequential
from scratchgen.layers.normalisation import BatchNorm
from scratchgen.metrics.coverage import mode_coverage
from scratchgen.models.gan import (
    KlDivergence,
    LeastSquares,
    Minimax,
    NonSaturating,
    Wasserstein,
)
from scratchgen.training.fit import NotFinite
from scratchgen.training.optim import Adam, RmsProp

from support import NUMPY, Halves

SMALL = {"width": 8, "batch_size": 8, "steps": 3, "dtype": "float64"}
POINTS, CONV, MLP = {"data": "ring8"}, {}, {"net": "mlp"}
NORMED = {"data": "shapes", "size": 16}  # so large that both sides have batch norm
GAMES = {"ring8": POINTS, "conv": CONV, "mlp": MLP}
PLAYED = {
    "minimax": Minimax,
    "non-saturating": NonSaturating,
    "kl": KlDivergence,
    "lsgan": LeastSquares,
    "wgan": Wasserstein,
    "wgan-gp": Wasserstein,
}
every_loss = pytest.mark.parametrize("loss", LOSSES)
every_game = pytest.mark.parametrize("game", GAMES.values(), ids=GAMES)
WASSERSTEIN = (WGAN, PENALISED)


def made(**options) -> GanRecipe:
    """A small recipe."""
    return GanRecipe(GanConfig(**SMALL | options))


def some(recipe, count=12):
    return recipe.part("test").take(slice(count))


def copies(params) -> dict:
    return {name: p.read().value.copy() for name, p in params.table.items()}


def gradients(recipe, loss, *shards) -> list:
    """What both sides' gradients grow by while a loss is run on those rows."""
    ours, theirs = (np.zeros_like(p.theta) for p in (recipe.params, recipe.opponent.params))
    with recipe.params.gradient_into(ours), recipe.opponent.params.gradient_into(theirs):
        parts = [loss(rows) for rows in shards]
    return [ours, theirs, parts]


# Options.


@every_loss
@every_game
def test_configurations_survive_json_with_every_default_written_out(loss, game):
    recipe = made(loss=loss, seed=4, **game)
    written = json.loads(json.dumps(config_to_json(recipe)))
    again = recipe_from_json(written)
    assert type(again) is GanRecipe
    assert again.config == recipe.config
    np.testing.assert_array_equal(again.params.theta, recipe.params.theta)
    np.testing.assert_array_equal(again.opponent.params.theta, recipe.opponent.params.theta)
    assert written["net"] == ("conv" if game is CONV else "mlp")
    for name in ("latent", "discriminator_steps", "learning_rate"):
        assert written[name] > 0
    assert (written["penalty"] > 0.0) == (loss == PENALISED)
    assert (written["clip"] > 0.0) == (loss == WGAN)
    assert GanConfig(loss=loss, **game).width > 0


@pytest.mark.parametrize(
    ("side", "what"), [(4, "a DCGAN needs images of at least 8×8 pixels"), (12, "must be square")]
)
def test_a_dcgan_is_for_images_that_halve_to_four_pixels(tmp_path, side, what):
    np.save(tmp_path / "images.npy", np.zeros((40, side, side), np.uint8))
    images = {"data": str(tmp_path / "images.npy")}
    with pytest.raises(ValueError, match=what):
        made(**images)
    assert made(**images, **MLP).shape == (side, side, 1)


def test_options_that_are_given_stay():
    options = {"latent": 3, "discriminator_steps": 2, "learning_rate": 0.5, "width": 8}
    for loss, name in ((WGAN, "clip"), (PENALISED, "penalty")):
        config = GanConfig(loss=loss, **options, **{name: 0.25})
        assert {key: getattr(config, key) for key in options} == options
        assert getattr(config, name) == 0.25


@pytest.mark.parametrize("game", [MLP, POINTS])
def test_a_penalty_of_zero_is_none(game):
    """It is not the default, and the critic's gradient is linear in it down to 0."""
    costs = []
    for weight in (0, 1, 2):
        recipe = made(loss=PENALISED, penalty=weight, **game)
        assert recipe_from_json(config_to_json(recipe)).config.penalty == weight
        loss = partial(recipe.opponent_loss, 0, 0)
        costs.append(gradients(recipe, loss, slice(0, 8))[1])
    none, one, two = costs
    assert np.any(one != none)
    np.testing.assert_allclose(two - one, one - none, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--penalty", "1"], "--penalty is for --loss wgan-gp, so leave it out"),
        (["--loss", "wgan", "--penalty", "1"], "--penalty is for --loss wgan-gp, so leave it out"),
        (["--clip", "0.1"], "--clip is for --loss wgan, so leave it out"),
        (["--loss", "wgan-gp", "--clip", "0.1"], "--clip is for --loss wgan, so leave it out"),
        (["--loss", "wgan", "--clip", "-0.1"], "--clip must be positive and finite"),
        (["--loss", "wgan", "--clip", "0"], "--clip must be positive and finite, got 0.0"),
        (["--loss", "wgan-gp", "--penalty", "nan"], "--penalty must be finite and not negative"),
        (["--latent", "-1"], "--latent must be at least 1, got -1"),
        (["--discriminator-steps", "-1"], "--discriminator-steps must be at least 1, got -1"),
        (["--learning-rate", "-1"], "--learning-rate must be positive and finite"),
        (["--data", "ring8", "--net", "conv"], "ring8 are points in the plane; leave out --net"),
        (["--depth", "2"], "--depth is for fully connected nets"),
        (["--depth", "3"], "--depth is for fully connected nets"),
        (["--loss", "hinge"], "invalid choice: 'hinge'"),
        (["--net", "unet"], "invalid choice: 'unet'"),
        (["--batch-size", "2000"], "--batch-size must be at most the 1437 training examples"),
        (["--workers", "2"], "workers cannot share these batches"),
        (["--beta", "1"], "--beta"),
    ],
)
def test_bad_flags_are_one_sentence_and_leave_nothing(tmp_path, capsys, monkeypatch, flags, what):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["train", "gan", *flags])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    (complaint,) = capsys.readouterr().err.strip().splitlines()
    assert what in complaint
    assert list(tmp_path.iterdir()) == []


def test_interpolation_is_an_option_of_gans_only():
    with pytest.raises(ValueError, match="the sampler of vae has no option --interpolate"):
        sampling_options(VaeRecipe, {"interpolate": True})
    with pytest.raises(ValueError, match="--temperature must be finite and not negative"):
        GanSampling(temperature=-1.0)


# The game.


@every_loss
@every_game
def test_both_sides_learn(loss, game):
    recipe = made(loss=loss, discriminator_steps=2, **game)
    ours, theirs = copies(recipe.params), copies(recipe.opponent.params)
    recipe.fit.until(2, quiet=True)
    names = ["step", "generator", "real", "fake", "gradient_norm", "opponent_gradient_norm"]
    assert sorted(recipe.fit.history) == sorted(names + ["penalty"] * (loss == PENALISED))
    for name, p in recipe.params.table.items():
        assert np.any(p.read().value != ours[name]), name
    last = max(theirs, key=lambda name: int(name.split(".")[1]) + name.endswith("bias") / 2)
    for name, p in recipe.opponent.params.table.items():
        # a critic's cost does not change with what is added to all its numbers
        if not (loss in WASSERSTEIN and name == last):
            assert np.any(p.read().value != theirs[name]), name
    assert type(recipe.gan.losses) is PLAYED[loss]
    assert np.isfinite(recipe.sample(3, 0, GanSampling()).x).all()


@pytest.mark.parametrize("game", [{}, NORMED], ids=["digits", "normed"])
def test_single_precision_stays_single(game):
    recipe = made(**game, loss=PENALISED, dtype="float32")
    recipe.fit.until(1, quiet=True)
    for params in (recipe.params, recipe.opponent.params):
        assert params.theta.dtype == np.float32
        assert all(buffer.value.dtype == np.float32 for buffer in params.buffers.values())
    assert recipe.sample(2, 0, GanSampling()).x.dtype == np.float32


@every_loss
@every_game
def test_either_side_leaves_the_other_s_gradient_alone(loss, game):
    recipe, rows = made(loss=loss, **game), slice(0, 8)
    ours, theirs, _ = gradients(recipe, lambda rows: recipe.loss(0, rows), rows)
    assert np.any(ours)
    assert not np.any(theirs)
    ours, theirs, _ = gradients(recipe, lambda rows: recipe.opponent_loss(0, 0, rows), rows)
    assert not np.any(ours)
    assert np.any(theirs)


@every_loss
@pytest.mark.parametrize("game", [POINTS, MLP], ids=["ring8", "mlp"])
def test_the_gradient_on_two_shards_is_that_on_one(loss, game):
    recipe = made(loss=loss, discriminator_steps=3, **game)
    for cost in (lambda rows: recipe.loss(5, rows), lambda rows: recipe.opponent_loss(5, 1, rows)):
        *whole, (terms,) = gradients(recipe, cost, slice(0, 8))
        *halves, parts = gradients(recipe, cost, slice(0, 3), slice(3, 8))
        for name, term in terms.items():
            got = np.concatenate([part[name] for part in parts])
            np.testing.assert_allclose(got, term, rtol=1e-10, atol=1e-12, err_msg=name)
        for got, want in zip(halves, whole, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@every_loss
@pytest.mark.parametrize("side", [0, 1], ids=["generator", "discriminator"])
@pytest.mark.parametrize("weight", [0.1, 10.0])
def test_either_side_descends_the_batch_mean_of_its_own_cost(loss, side, weight):
    """Along its gradient the mean of its terms, the penalty weighted, rises by its length."""
    options = {"penalty": weight} if loss == PENALISED else {}
    recipe, rows = made(loss=loss, **options, **POINTS), slice(0, 8)
    params = (recipe.params, recipe.opponent.params)[side]

    def terms(rows):
        return recipe.opponent_loss(0, 0, rows) if side else recipe.loss(0, rows)

    def cost(theta):
        params.theta = theta
        found = terms(rows)
        return np.mean(sum(v * (weight if k == "penalty" else 1.0) for k, v in found.items()))

    theta = params.theta.copy()
    gradient = gradients(recipe, terms, rows)[side]
    along = gradient / np.linalg.norm(gradient)
    slope = (cost(theta + 1e-6 * along) - cost(theta - 1e-6 * along)) / 2e-6
    assert slope == pytest.approx(np.linalg.norm(gradient), rel=1e-4)


@pytest.mark.equation("GAN-11")
@pytest.mark.equation("GAN-12")
def test_published_settings_are_the_defaults():
    clipped, penalised = (GanConfig(loss=loss) for loss in ("wgan", "wgan-gp"))
    assert (clipped.clip, clipped.learning_rate, clipped.discriminator_steps) == (0.01, 5e-5, 5)
    assert (penalised.penalty, penalised.discriminator_steps) == (10.0, 5)
    points = GanConfig(data="grid25", loss=PENALISED)
    assert (points.penalty, points.discriminator_steps, points.steps) == (0.1, 2, 10000)
    rates = [GanConfig().learning_rate, penalised.learning_rate, points.learning_rate]
    assert rates == [2e-4, 2e-4, 2e-3]
    assert GanConfig(data="ring8").learning_rate == 1e-3
    recipe = made(**POINTS)
    sides = (recipe.model.layers[1::2], recipe.gan.discriminator.layers[1:-1:2])
    assert [set(layers) for layers in sides] == [{relu}, {leaky_relu}]
    assert GanConfig().discriminator_steps == 1
    adam = made(loss=PENALISED, **POINTS).fit.optimiser
    assert (adam.beta1, adam.beta2) == (0.5, 0.9)


@every_loss
def test_workers_that_share_the_batches_change_nothing(loss):
    alone, shared = (made(loss=loss, **POINTS) for _ in range(2))
    shared.fit.workers = Halves()
    for recipe in (alone, shared):
        recipe.fit.until(3, quiet=True)
    for name in ("params", "opponent.params"):
        ours, theirs = (eval(f"r.{name}.theta", {"r": r}) for r in (alone, shared))
        np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loss", ["non-saturating", PENALISED])
@pytest.mark.parametrize("count", [1, 3])
def test_the_discriminator_steps_so_often_on_fresh_data_and_fresh_noise(count, loss, monkeypatch):
    recipe = made(loss=loss, discriminator_steps=count, **MLP)
    order, data, noise, u = [], [], [], []
    opponent_loss, loss_of = recipe.gan.discriminator_loss, recipe.gan.generator_loss
    generate, penalty = recipe.gan.generate, gan.gradient_penalty

    def discriminator_loss(x, fake, stream):
        order.append("discriminator")
        data.append(x)
        return opponent_loss(x, fake, stream)

    def generator_loss(z, stream):
        order.append("generator")
        noise.append(z)
        return loss_of(z, stream)

    def generated(z, stream):
        noise.append(z)
        return generate(z, stream)

    def penalised(*given):
        u.append(given[-1])
        return penalty(*given)

    monkeypatch.setattr(recipe.gan, "discriminator_loss", discriminator_loss)
    monkeypatch.setattr(recipe.gan, "generator_loss", generator_loss)
    monkeypatch.setattr(recipe.gan, "generate", generated)
    monkeypatch.setattr(gan, "gradient_penalty", penalised)
    recipe.fit.until(3, quiet=True)
    assert order == 3 * [*count * ["discriminator"], "generator"]
    assert recipe.opponent.optimiser.steps == 3 * count
    assert recipe.fit.optimiser.steps == 3
    for drawn in (noise, *([u] if u else [])):
        assert all(len(each) == 8 for each in drawn)
        assert len(np.unique(np.concatenate(drawn))) == np.concatenate(drawn).size
    assert len(noise) == 3 * (count + 1)
    assert len(u) == (3 * count if loss == PENALISED else 0)
    assert all(np.all((each >= 0.0) & (each <= 1.0)) for each in u)
    assert len(np.unique(np.concatenate(data), axis=0)) == 3 * count * 8


@pytest.mark.parametrize("hold_out", [False, True])
def test_every_training_example_is_seen_before_one_is_again(hold_out, monkeypatch):
    recipe = made(discriminator_steps=3, batch_size=100, hold_out=hold_out, **MLP)
    seen, loss = [], recipe.gan.discriminator_loss
    monkeypatch.setattr(
        recipe.gan, "discriminator_loss", lambda x, *rest: seen.append(x) or loss(x, *rest)
    )
    batches = len(recipe.fitted) // 100
    for batch in range(batches):
        recipe.opponent_loss(batch // 3, batch % 3, slice(0, 100))
    assert len(np.unique(np.concatenate(seen), axis=0)) == batches * 100
    known = {row.tobytes() for row in recipe.fitted.x.reshape(-1, 64)}
    assert all(row.tobytes() in known for row in np.concatenate(seen))


@pytest.mark.parametrize("loss", ["non-saturating", PENALISED])
def test_both_rates_fall_together_however_many_steps_the_discriminator_takes(loss):
    recipe = made(loss=loss, discriminator_steps=3, steps=40, learning_rate=0.25, **POINTS)
    ours, theirs = recipe.fit.optimiser, recipe.opponent.optimiser
    assert type(ours) is type(theirs) is Adam
    for step in range(41):
        assert theirs.lr(3 * step) == pytest.approx(ours.lr(step), abs=1e-15)
    assert ours.lr(0) == 0.25
    assert ours.lr(40) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("game", [POINTS, NORMED], ids=["ring8", "normed"])
def test_the_weights_of_a_clipped_critic_never_leave_their_range(game, monkeypatch):
    recipe = made(loss=WGAN, clip=0.02, discriminator_steps=3, learning_rate=1e-3, **game)
    largest, loss = [], recipe.opponent.loss

    def watched(*given):
        largest.append(np.abs(recipe.opponent.params.theta).max())
        return loss(*given)

    monkeypatch.setattr(recipe.opponent, "loss", watched)
    recipe.fit.until(2, quiet=True)
    largest.append(np.abs(recipe.opponent.params.theta).max())
    assert largest[0] > 0.02
    assert largest[1:] == 6 * [0.02]
    assert np.abs(recipe.params.theta).max() > 0.02  # the generator's stay as they are
    assert type(recipe.fit.optimiser) is type(recipe.opponent.optimiser) is RmsProp


def test_a_critic_under_a_penalty_normalises_each_example_by_itself():
    for loss in LOSSES:
        recipe = made(loss=loss, **NORMED)
        critic, x = recipe.gan.discriminator, recipe.batch(0, slice(0, 4))[0]
        assert any(critic.named(BatchNorm)) == (loss != PENALISED)
        if loss == PENALISED:
            assert any(critic.named(Scale)), "of layer norm"
            alone = np.concatenate([critic(x[i : i + 1])[0] for i in range(4)])
            np.testing.assert_allclose(critic(x)[0], alone, rtol=1e-12)


def test_batch_norm_in_either_net_keeps_a_batch_whole(monkeypatch):
    monkeypatch.setattr(workers, "is_there", lambda name: True)
    plain = made(**MLP)
    assert crew(plain, Sharing(2)).number == 2
    for side in ("generator", "discriminator"):
        recipe = made(**MLP)
        net = getattr(recipe.gan, side)
        setattr(recipe.gan, side, Sequential(*net.layers[:1], BatchNorm(8), *net.layers[1:]))
        with pytest.raises(ValueError, match="batch norm takes its averages over all of a batch"):
            crew(recipe, Sharing(2))
        assert crew(recipe, Sharing("auto")).number == 1


def test_running_statistics_move_with_the_discriminator_s_batches_only():
    recipe = made(**NORMED)
    norms = [norm for _, norm in recipe.gan.named(BatchNorm)]
    sides = [any(net.named(BatchNorm)) for net in (recipe.gan.generator, recipe.gan.discriminator)]
    assert sides == [True, True]
    before = [norm.mean.value for norm in norms]
    recipe.loss(0, slice(0, 8))
    assert all(norm.mean.value is mean for norm, mean in zip(norms, before, strict=True))
    recipe.opponent.advance(0)
    assert all(np.all(n.mean.value != mean) for n, mean in zip(norms, before, strict=True))


# A run.

FLAGS = ["--width", "8", "--batch-size", "16", "--steps", "6", "--discriminator-steps", "2"]
RUNS = {
    "wgan-normed": ["--loss", "wgan", "--data", "shapes", "--size", "16"],
    "wgan-gp-ring8": ["--loss", "wgan-gp", "--data", "ring8"],
}


@pytest.fixture(scope="module", params=RUNS)
def runs(request, tmp_path_factory):
    """A run that went through, and the same one stopped and resumed."""
    train = ["train", "gan", *FLAGS, *RUNS[request.param], "--quiet"]
    root = tmp_path_factory.mktemp("gan")
    whole, broken = root / "whole", root / "broken"
    assert main([*train, "--out", str(whole)]) == 0
    assert main([*train, "--out", str(broken), "--stop-at", "2"]) == 0
    assert main(["train", "--resume", str(broken), "--quiet"]) == 0
    return whole, broken


def test_a_stopped_run_resumed_is_the_unbroken_run(runs):
    whole, broken = runs
    with np.load(whole / "checkpoint.npz") as a, np.load(broken / "checkpoint.npz") as b:
        assert set(a.files) == set(b.files)
        for name in a.files:
            assert a[name].tobytes() == b[name].tobytes(), name
        opponent = {name.split("/")[1] for name in a.files if name.startswith("opponent/")}
        assert a["opponent/optimiser/steps"] == 12
        assert a["optimiser/steps"] == a["step"] == 6
    clipped = json.loads((whole / "config.json").read_text("utf-8"))["loss"] == WGAN
    assert opponent == {"theta", "optimiser", *(["buffers"] if clipped else [])}
    assert (whole / "metrics.csv").read_bytes() == (broken / "metrics.csv").read_bytes()
    header = (whole / "metrics.csv").read_text("utf-8").splitlines()[0].split(",")
    terms = {"step", "generator_cost", "discriminator_gradient_norm", "generator_gradient_norm"}
    terms |= {"discriminator_cost_of_data", "discriminator_cost_of_fakes"}
    terms |= {"critic_of_data_less_of_fakes"}
    assert set(header) == terms | (set() if clipped else {"gradient_penalty"})


def quick_judge(recipe):
    """A classifier that has hardly learned."""
    shared = {name: getattr(recipe.config, name) for name in quality.MEASURED}
    judge = ClassifierRecipe(ClassifierConfig(**shared, steps=2, width=8))
    judge.fit.until(2, quiet=True)
    return judge


def test_a_run_goes_the_whole_way(runs, capsys, monkeypatch):
    run, _ = runs
    points = json.loads((run / "config.json").read_text("utf-8"))["data"] == "ring8"
    for module in () if points else (gan, quality):
        monkeypatch.setattr(module, "judge_for", quick_judge)
    drawn = {"loss.png", "generated.png"}
    assert {path.name for path in (run / "figures").iterdir()} == drawn
    assert main(["sample", str(run), "-n", "20", "--interpolate", "--seed", "3"]) == 0
    with np.load(run / "samples.npz", allow_pickle=False) as archive:
        assert archive["x"].shape == ((20, 2) if points else (20, 16, 16, 1))
        assert archive["interpolate"]
    assert {path.name for path in (run / "figures").iterdir()} == {*drawn, "samples.png"}
    capsys.readouterr()
    flags = ["--draws", "300"]
    assert main(["evaluate", str(run), *flags, "--samples", "40", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["quality"]["samples"]) == (300, 40)
    assert ("covered" in found) == points
    assert ("class_shares_of_samples" in found) != points
    assert main(["evaluate", str(run), *flags]) == 0
    said = capsys.readouterr().out
    assert "300 samples" in said
    assert max(map(len, said.splitlines())) <= 100


def test_its_layers_can_be_listed_on_both_sides(runs, capsys):
    run, _ = runs
    assert main(["info", "--net", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    recipe = recipe_from_json(json.loads((run / "config.json").read_text("utf-8")))
    sides = {
        side: sum(prod(p.shape) for _, p in getattr(recipe.gan, side).named(Parameter))
        for side in ("generator", "discriminator")
    }
    listed = dict.fromkeys(sides, 0)
    for row in found["layers"]:
        listed[row["name"].split(".")[0]] += row["parameters"]
    assert listed == sides
    assert found["parameters"] == sum(sides.values())
    assert main(["info", "--net", str(run)]) == 0
    said = capsys.readouterr().out
    assert "generator.layers.0" in said
    assert "discriminator.layers.0" in said
    assert main(["info", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters_of"] == sides
    assert found["parameters"] == sum(sides.values())
    assert found["parameters"] == sum(prod(shape) for shape in found["layout"].values())
    assert {name.split(".")[0] for name in found["layout"]} == set(sides)


def test_training_says_how_large_both_sides_are(tmp_path, capsys):
    flags = ["--data", "ring8", "--width", "4", "--depth", "1", "--latent", "3", "--steps", "1"]
    assert main(["train", "gan", *flags, "--out", str(tmp_path / "run")]) == 0
    generator, discriminator = (3 + 1) * 4 + (4 + 1) * 2, (2 + 1) * 4 + (4 + 1)
    said = f": {generator} parameters of the generator and {discriminator} parameters of the "
    assert said + "discriminator, numpy float32, " in capsys.readouterr().err


def test_many_samples_do_not_take_long_however_many_examples_there_are(runs, capsys):
    run, _ = runs
    if json.loads((run / "config.json").read_text("utf-8"))["data"] == "ring8":
        assert evaluate(run, "train", 20_000)["samples"] == 20_000
        assert "take long" not in capsys.readouterr().err


# Samples.


@pytest.mark.parametrize("options", [{}, {"interpolate": True}, {"temperature": 0.5}])
@pytest.mark.parametrize("game", [POINTS, CONV, NORMED], ids=["ring8", "conv", "normed"])
def test_sample_i_of_four_is_sample_i_of_many(game, options):
    recipe = made(**game, dtype="float32")
    few, many = (recipe.sample(n, 7, GanSampling(**options)).x for n in (4, 70))
    assert many.shape == (70, *recipe.shape)
    np.testing.assert_array_equal(few, many[:4])
    assert len(np.unique(many.reshape(70, -1), axis=0)) == 70
    assert np.all(recipe.sample(4, 8, GanSampling(**options)).x != few)


@every_game
def test_at_temperature_zero_there_is_one_sample(game):
    recipe = made(**game)
    still = recipe.sample(10, 7, GanSampling(temperature=0.0)).x
    np.testing.assert_array_equal(still, np.repeat(still[:1], 10, axis=0))
    ways = recipe.sample(10, 8, GanSampling(temperature=0.0, interpolate=True)).x
    np.testing.assert_array_equal(ways, still)


def latents(n, **options):
    """z itself: (n, 2), as a generator that changes nothing gives it."""
    recipe = made(latent=2, **POINTS)
    recipe.model = lambda z: (z, None)
    return recipe.sample(n, 7, GanSampling(**options))


def test_temperature_scales_the_latent():
    plain = latents(10).x
    np.testing.assert_allclose(latents(10, temperature=0.25).x, 0.25 * plain)
    ways = latents(10, interpolate=True).x
    warm = latents(10, interpolate=True, temperature=0.25).x
    np.testing.assert_allclose(warm, 0.25 * ways)


def test_a_row_leads_from_one_draw_to_another_along_an_arc():
    drawn = latents(5 * ROW, interpolate=True)
    assert drawn.columns == ROW
    assert latents(5).columns is None
    rows = drawn.x.reshape(5, ROW, 2)
    stream = Stream(7, made(**POINTS).born).at("sample")
    for place, name in ((0, "first"), (-1, "last")):
        np.testing.assert_allclose(rows[:, place], stream.at(name).normal((5, 2)), atol=1e-15)
    angle = 0.5 * pi * np.arange(ROW)[:, None] / (ROW - 1)
    arc = np.cos(angle) * rows[:, :1] + np.sin(angle) * rows[:, -1:]
    np.testing.assert_allclose(rows, arc, atol=1e-14)


@every_game
def test_neighbours_in_a_row_are_close(game):
    rows = made(**game).sample(5 * ROW, 7, GanSampling(interpolate=True)).x.reshape(5, ROW, -1)
    steps = np.linalg.norm(np.diff(rows, axis=1), axis=-1)
    strangers = np.linalg.norm(rows[:, None] - rows[None], axis=-1)[~np.eye(5, dtype=bool)]
    assert np.all(steps > 0.0)
    assert steps.mean() < 0.3 * strangers.mean()


# Measures.


def of_constants(recipe, values) -> None:
    """Let the recipe's generator give these examples in turn."""
    values = np.asarray(values).reshape(len(values), -1)
    recipe.model = lambda z: (values[np.arange(len(z)) % len(values)], None)


def warned(lines) -> str:
    return " ".join(line for line in lines if "warning" in line)


@pytest.mark.parametrize(("data", "count"), [("ring8", 8), ("grid25", 25)])
def test_modes_that_samples_show_are_counted(data, count):
    recipe, law = made(data=data), density(data)
    far = np.full((1, 2), 100.0)
    for points, covered, good in (
        (law.means, count, 1.0),
        (law.means[3:4], 1, 1.0),
        (law.means[:-1], count - 1, 1.0),
        (np.concatenate([law.means, np.repeat(far, count, axis=0)]), count, 0.5),
        (far, 0, 0.0),
    ):
        of_constants(recipe, points)
        result = recipe.evaluate(some(recipe), draws=1000)
        json.dumps(result, allow_nan=False)
        assert (result["samples"], result["covered"], result["modes"]) == (1000, covered, count)
        assert result["high_quality"] == pytest.approx(good, abs=0.03)
        assert result["relative_spread"] == pytest.approx(0.0, abs=1e-5)
        lines = recipe.report(result)
        assert f"modes covered: {covered} of {count}" in lines
        assert ("leaves them out" in warned(lines)) == (0 < covered < count)
        assert ("no mode is covered" in warned(lines)) == (covered == 0)


def test_the_samples_that_are_measured_are_those_of_the_sampler():
    recipe = made(**POINTS)
    x = recipe.sample(200, 3, GanSampling()).x
    means, spread = x[:8], 0.2 * float(x.std())  # an untrained generator is near no mode of data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan, "modes", lambda name: (means, spread))
        found = recipe.evaluate(some(recipe), 200, 3)
    assert found == {"samples": 200, "seed": 3} | mode_coverage(x, means, spread)._asdict()
    assert found["relative_spread"] > 0.0


def test_samples_of_low_quality_and_modes_that_are_points_are_warned_of():
    recipe, law = made(**POINTS), density("ring8")
    middle = 0.0 * law.means
    wide = law.sample(2048, Stream(0, NUMPY).at("x"))
    for points, low, alike in (
        (wide, False, False),
        (law.means, False, True),
        (np.concatenate([wide[:1000], np.repeat(middle, 150, axis=0)]), True, False),
        (middle, False, False),  # no mode at all is another warning
    ):
        of_constants(recipe, points)
        said = warned(recipe.report(recipe.evaluate(some(recipe), draws=2048)))
        assert ("lie between modes" in said) == low
        assert ("too much alike" in said) == alike


def test_warnings_begin_at_half_of_what_the_data_have():
    result = {"samples": 1000, "seed": 0, "covered": 8, "modes": 8}
    for good, spread in ((0.501, 0.501), (0.499, 0.501), (0.501, 0.499)):
        said = warned(report_lines(result | {"high_quality": good, "relative_spread": spread}))
        assert ("lie between modes" in said) == (good < 0.5)
        assert ("too much alike" in said) == (spread < 0.5)


@pytest.mark.parametrize("game", [POINTS, MLP], ids=["ring8", "mlp"])
def test_samples_that_are_not_finite_are_not_measured(game):
    recipe = made(**game)
    of_constants(recipe, np.full((1, recipe.dims), np.nan))
    with pytest.raises(NotFinite, match="samples are not finite"):
        recipe.evaluate(some(recipe), draws=10)


def test_the_data_themselves_cover_their_modes():
    recipe = made(**POINTS)
    of_constants(recipe, recipe.part("test").x[:2048])
    result = recipe.evaluate(some(recipe), draws=2048)
    assert result["covered"] == 8
    assert result["high_quality"] == pytest.approx(0.989, abs=0.015)
    assert result["relative_spread"] == pytest.approx(0.974, abs=0.03)
    assert not warned(recipe.report(result))
    assert f"{100 * result['high_quality']:.1f} % (of data 98.9 %)" in "\n".join(
        recipe.report(result)
    )


def test_modes_are_those_of_equal_round_normals_and_of_nothing_else():
    assert {name for name in PLANAR if modes(name)} == {"ring8", "grid25"}
    for name in ("ring8", "grid25"):
        means, spread = modes(name)
        law = density(name)
        np.testing.assert_array_equal(means, law.means)
        np.testing.assert_allclose(law.covariances[-1], spread**2 * np.eye(2), rtol=1e-12)


def test_what_too_few_samples_cannot_tell_may_be_chance():
    recipe = made(**POINTS)
    for draws, sure in ((79, False), (80, True)):
        of_constants(recipe, density("ring8").means[:1])
        said = warned(recipe.report(recipe.evaluate(some(recipe), draws)))
        assert ("leaves them out" in said) == sure
        assert ("may be chance; --draws 80 or more" in said) != sure
        of_constants(recipe, np.full((1, 2), 100.0))
        said = warned(recipe.report(recipe.evaluate(some(recipe), draws)))
        assert ("covered; the generator has not learned" in said) == sure
        assert ("no mode is covered, which may be chance; --draws 80 or more" in said) != sure


def test_the_modes_of_other_points_are_not_asked_for():
    recipe = made(**POINTS)
    with pytest.raises(ValueError, match="modes of its own data, ring8; leave out --data"):
        quality.examples_of(recipe, "test", "grid25")
    assert len(quality.examples_of(recipe, "test", "ring8")) == len(recipe.part("test"))


@pytest.mark.parametrize("data", ["moons", "gmm", "checker"])
def test_other_points_have_no_modes_to_count(data):
    recipe = made(data=data)
    result = recipe.evaluate(some(recipe), draws=30)
    assert result == {"samples": 30, "seed": 0}
    lines = recipe.report(result)
    assert "30 samples of seed 0" in lines
    assert "no modes or classes to count; --samples N" in "\n".join(lines)


def test_images_without_labels_have_no_classes_to_count(tmp_path, capsys):
    codes = np.floor(256.0 * Stream(0, made().born).at("codes").uniform((40, 8, 8)))
    np.save(tmp_path / "images.npy", codes.astype(np.uint8))
    recipe = made(data=str(tmp_path / "images.npy"))
    assert recipe.evaluate(recipe.part("test"), 30, 5) == {"samples": 30, "seed": 5}
    assert "classifier" not in capsys.readouterr().err


class Judge:
    """Knows the label of every image of a part, and of an image of one grey its number.

    Sure to 0.9 of the one kind, to 0.7 of the other, to 0.4 of a zero where it knows nothing; the
    rest goes to all other classes alike.
    """

    def __init__(self, part):
        pairs = zip(part.x, part.labels, strict=True)
        self.known = {image.tobytes(): label for image, label in pairs}

    def evaluate(self, part, draws):
        """As a classifier's, on the part that it was asked about."""
        self.asked = part
        return {"accuracy": 0.875}

    def opinions(self, images):
        """log p(label | x)."""
        p = np.empty((len(images), 10))
        for row, image in zip(p, images, strict=True):
            label, sure = self.known.get(image.tobytes()), 0.9
            if label is None:
                grey = np.ptp(image) == 0.0
                label, sure = (
                    round(10.0 * float(image.flat[0])) if grey else 0,
                    0.7 if grey else 0.4,
                )
            row[:] = (1.0 - sure) / 9.0
            row[label] = sure
        return np.log(p)


def greys(*numbers) -> np.ndarray:
    """One image of one grey for each number."""
    return np.ones((1, 64)) * np.asarray(numbers)[:, None] / 10.0


@pytest.fixture
def judged(monkeypatch):
    """A recipe on the digits, and a part that its judge knows."""
    recipe = made(**MLP)
    part = some(recipe, 100)
    judge = Judge(part)
    monkeypatch.setattr(gan, "judge_for", lambda recipe: judge)
    return recipe, part, judge


def test_classes_that_samples_show_are_counted(judged, capsys):
    recipe, part, judge = judged
    of_constants(recipe, greys(*range(10)))
    result = recipe.evaluate(part, draws=640)
    assert judge.asked is part
    assert "training a small classifier" in capsys.readouterr().err
    json.dumps(result, allow_nan=False)
    assert result["classifier_accuracy"] == 0.875
    assert result["confidence_on_samples"] == pytest.approx(0.7)
    assert result["confidence_on_data"] == pytest.approx(0.9)
    np.testing.assert_allclose(result["class_shares_of_samples"], 0.1, atol=0.02)
    want = np.bincount(part.labels, minlength=10) / 100.0
    np.testing.assert_allclose(result["class_shares_of_data"], want)
    lines = recipe.report(result)
    assert "a classifier, right on 87.5 % of data:" in lines
    assert result["confidence_on_data_with_shuffled_pixels"] == pytest.approx(0.4)
    assert any("samples" in line and "0.700" in line for line in lines)
    assert any("data" in line and "0.900" in line for line in lines)
    assert not warned(lines)


def test_pixels_are_shuffled_between_images_by_the_seed(judged, monkeypatch):
    recipe, part, judge = judged
    seen, opinions = [], judge.opinions
    monkeypatch.setattr(judge, "opinions", lambda images: seen.append(images) or opinions(images))
    for seed in (0, 0, 1):
        recipe.evaluate(part, 20, seed)
    first, again, other = seen[2::3]
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    for mixed in (first, other):
        assert not np.array_equal(mixed, part.x)
        np.testing.assert_array_equal(np.sort(mixed, axis=0), np.sort(part.x, axis=0))


def test_classes_that_are_missing_are_named(judged):
    recipe, part, _ = judged
    of_constants(recipe, greys(0, 1, 2, 4, 5, 6, 8, 9))
    result = recipe.evaluate(part, draws=320)
    said = warned(recipe.report(result))
    assert "too few samples of classes 3, 7; the generator leaves them out" in said
    without = part.take(np.flatnonzero(part.labels != 3))  # nor do the data have it
    said = warned(recipe.report(recipe.evaluate(without, draws=320)))
    assert "of classes 7;" in said
    of_constants(recipe, greys(5))
    result = recipe.evaluate(part, draws=50)
    shares = result["class_shares_of_data"]
    need = ceil(10 / min(share for i, share in enumerate(shares) if i != 5))
    assert need > 50
    few = warned(recipe.report(result))
    assert f"0, 1, 2, 3, 4, 6, 7, 8, 9, which may be chance; --draws {need} or more" in few


def test_a_class_is_shown_by_a_tenth_of_its_share():
    assert shown(0.01, 0.1)
    assert not shown(0.0099, 0.1)
    assert shown(0.0, 0.0)


def test_of_many_classes_a_few_are_named():
    result = {"samples": 10**6, "seed": 0, "classifier_accuracy": 0.5}
    real, drawn = np.full(100, 0.01), np.full(100, 0.01)
    drawn[20:50] = 0.0
    mixed = "data_with_shuffled_pixels"
    for name, shares in (("samples", drawn), ("data", real), (mixed, real)):
        result |= {f"class_shares_of_{name}": shares.tolist(), f"confidence_on_{name}": 0.5}
    said = report_lines(result)
    assert "no surer of the samples than" in warned(said)
    assert "no surer" not in warned(report_lines(result | {f"confidence_on_{mixed}": 0.49}))
    assert "100 classes with shares from 0.000 to 0.010" in "\n".join(said)
    named = ", ".join(map(str, range(20, 32)))
    assert f"too few samples of classes {named} and 18 more;" in warned(said)
    assert max(map(len, said)) < 150


# What is said and drawn.


@pytest.mark.parametrize(
    ("loss", "real", "fake", "won"),
    [
        ("non-saturating", [0.7, 0.01], [0.7, 0.02], True),
        ("non-saturating", [0.01, 0.5], [0.01, 0.02], False),
        ("non-saturating", [0.025], [0.024], True),
        ("non-saturating", [0.025], [0.026], False),
        ("lsgan", [0.001], [0.001], True),
        (WGAN, [-3.0], [-4.0], False),
        (PENALISED, [-3.0], [-4.0], False),
    ],
)
def test_a_discriminator_that_has_won_is_said(loss, real, fake, won):
    recipe = made(loss=loss, **POINTS)
    assert recipe.remarks() == []
    recipe.fit.history = {"step": [1.0] * len(real), "real": real, "fake": fake}
    remarks = recipe.remarks()
    assert len(remarks) == won
    if won:
        assert "tells nearly every fake from data" in remarks[0]
        assert "flat" not in remarks[0]
        assert f"{real[-1] + fake[-1]:.2g}" in remarks[0]


def test_progress_names_both_sides():
    row = {"step": 4, "generator": 0.5, "gradient_norm": 3.0, "real": 0.25, "fake": 0.5}
    row["opponent_gradient_norm"] = 2.0
    named = {
        "generator_cost": 0.5,
        "generator_gradient_norm": 3.0,
        "discriminator_cost_of_data": 0.25,
        "discriminator_cost_of_fakes": 0.5,
        "discriminator_gradient_norm": 2.0,
    }
    recipe = made(**POINTS)
    assert recipe.describe(row) == "discriminator 0.75, generator 0.5"
    small = row | {"generator": 0.00012345, "real": -0.001, "fake": 0.00094321}
    assert recipe.describe(small) == "discriminator -5.68e-05, generator 0.000123"
    assert recipe.columns(row) == named
    critic = {"gradient_penalty": 0.1, "critic_of_data_less_of_fakes": -0.75}
    assert made(loss=PENALISED, **POINTS).columns(row | {"penalty": 0.1}) == named | critic


@every_loss
def test_the_course_shows_every_term_and_no_panel_is_empty(loss, tmp_path, monkeypatch):
    recipe, figures, save = made(loss=loss, **POINTS), [], gan_plots.save
    recipe.training_figures(tmp_path)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["generated.png"]
    recipe.fit.until(3, quiet=True)
    monkeypatch.setattr(gan_plots, "save", lambda *given: figures.append(given[0]) or save(*given))
    recipe.training_figures(tmp_path)
    assert (tmp_path / "figures" / "loss.png").is_file()
    shown, history = {}, recipe.fit.history
    for axes in figures[0].axes:
        named = {line.get_label(): line for line in axes.lines if line.get_label()[0] != "_"}
        assert len({line.get_color() for line in named.values()}) == len(named) > 1
        shown |= named
    rows = [recipe.columns(row) for row in recipe.fit.rows]
    assert set(shown) == {name.replace("_", " ") for name in rows[0]}
    for name in rows[0]:
        want = [history["step"], [row[name] for row in rows]]
        np.testing.assert_array_equal(shown[name.replace("_", " ")].get_xydata().T, want)


@every_game
def test_what_is_drawn_after_training_is_of_the_averaged_weights(game, tmp_path, monkeypatch):
    recipe, drawn = made(ema=0.5, **game), []
    recipe.fit.until(2, quiet=True)
    theta = recipe.params.theta.copy()
    monkeypatch.setattr(plots, "samples", lambda path, x, *rest: drawn.append((path.name, x)))
    recipe.training_figures(tmp_path)
    np.testing.assert_array_equal(recipe.params.theta, theta)
    recipe.params.theta = recipe.ema.average
    ((name, x),) = drawn
    assert name == "generated.png"
    np.testing.assert_array_equal(x, recipe.sample(len(x), 0, GanSampling()).x)


def test_a_gradient_that_has_vanished_can_be_drawn(tmp_path):
    gan_plots.course(tmp_path / "loss.png", [1, 2], {"cost": [9.0, 9.0], "its_norm": [0.0, 0.0]})
    assert (tmp_path / "loss.png").stat().st_size > 0
