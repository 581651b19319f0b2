"""`train hvae`: ladders and chains, from the options to samples, measures and figures."""

import json
from math import log

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from scratchgen.app import plots
from scratchgen.app.cli import main
from scratchgen.app.recipes import HvaeRecipe, VaeRecipe, hvae, recipe_from_json
from scratchgen.app.recipes.base import config_to_json
from scratchgen.app.recipes.hvae import ROW, HvaeConfig, HvaeSampling
from scratchgen.app.sampling import sampling_options
from scratchgen.core.streams import Stream
from scratchgen.metrics.likelihood import hierarchy_bounds, mean_and_error

SMALL = {"width": 16, "latents": "3,2", "batch_size": 10, "steps": 4, "dtype": "float64"}
SMALL["warm_up"] = 0.0
KINDS = ("ladder", "markov")
NETS = {(kind, net): {"kind": kind, "net": net} for kind in KINDS for net in ("mlp", "conv")}
COLOUR = {"data": "shapes", "size": 16, "colour": True, "net": "conv", "width": 8, "steps": 2}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_net = pytest.mark.parametrize("net", NETS.values(), ids=map("-".join, NETS))


def made(**options) -> HvaeRecipe:
    """A small recipe, whose baselines are taken from few images."""
    recipe = HvaeRecipe(HvaeConfig(**SMALL | options))
    recipe.fitted = recipe.fitted.take(slice(40))
    return recipe


def some(recipe, count=12):
    return recipe.part("test").take(slice(count))


def silence(recipe, net: str):
    """Make every number that a net of the model gives 0."""
    layers = {name.rpartition(".")[0] for name in recipe.params.table if name.startswith(net)}
    last = max(layers, key=lambda name: int(name.rpartition(".")[2]))
    for name in ("weight", "bias"):
        recipe.params.table[f"{last}.{name}"].read().value[...] = 0.0
    recipe.params.changed()


def watched(recipe, monkeypatch) -> list:
    """The noise of every call of the model's sampler, one array for each level."""
    seen, sample = [], recipe.model.sample
    monkeypatch.setattr(recipe.model, "sample", lambda eps: seen.append(eps) or sample(eps))
    return seen


def together(seen, n) -> list:
    """The noise of the first n samples, whatever batches they came in."""
    return [np.concatenate(level)[:n] for level in zip(*seen, strict=True)]


def distinct(rows) -> int:
    return len(np.unique(rows.reshape(len(rows), -1), axis=0))


@every_net
def test_configurations_survive_json(net):
    options = {"levels": 3, "latents": "3,2,4", "warm_up": 0.5, "free_bits": 0.1, "balance": True}
    recipe = made(**options, **net, max_gradient=7.0, seed=4)
    again = recipe_from_json(json.loads(json.dumps(config_to_json(recipe))))
    assert type(again) is HvaeRecipe
    assert again.config == recipe.config
    np.testing.assert_array_equal(again.params.theta, recipe.params.theta)


def test_every_level_has_the_latent_that_the_options_name():
    assert HvaeConfig().sizes == (16, 16)
    assert HvaeConfig(levels=3, net="conv").sizes == (4, 4, 4)
    assert HvaeConfig(kind="markov", net="conv").sizes == (16, 16)
    assert HvaeConfig(levels=3, latents="8, 4,2").sizes == (8, 4, 2)
    shapes = {kind: made(**net).model.latents for kind, net in NETS.items()}
    assert shapes.pop(("ladder", "conv")) == ((4, 4, 3), (8, 8, 2))
    assert set(shapes.values()) == {((3,), (2,))}
    assert made().control.sizes == (3, 2)
    assert made(net="conv").control.sizes == (4 * 4 * 3, 8 * 8 * 2)


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--levels", "3", "--latents", "8,4"], "each of the 3 --levels, got '8,4'"),
        (["--latents", "8"], "--latents must name one size for each of the 2 --levels, got '8'"),
        (["--latents", "8,x"], "--latents must be whole numbers of at least 1 with commas"),
        (["--latents", "8,0"], "--latents must be whole numbers of at least 1"),
        (["--latents", "8,"], "--latents must be whole numbers of at least 1"),
        (["--latents", "8,²"], "--latents must be whole numbers of at least 1"),
        (["--latents", "8,-2"], "--latents must be whole numbers of at least 1"),
        (["--levels", "0"], "--levels must be at least 1, got 0"),
        (["--warm-up", "1.5"], "--warm-up must lie in [0, 1], got 1.5"),
        (["--warm-up", "-0.1"], "--warm-up must lie in [0, 1], got -0.1"),
        (["--warm-up", "nan"], "--warm-up must lie in [0, 1], got nan"),
        (["--free-bits", "-1"], "--free-bits must be finite and not negative"),
        (["--max-gradient", "-1"], "--max-gradient must be finite and not negative"),
        (["--max-gradient", "inf"], "--max-gradient must be finite and not negative"),
        (["--balance", "--warm-up", "0"], "--balance acts while --warm-up lasts; add --warm-up"),
        (["--kind", "tree"], "invalid choice: 'tree'"),
        (["--depth", "3"], "--depth is for --kind markov; that of a ladder is fixed"),
        (["--kind", "markov", "--net", "conv", "--depth", "3"], "--depth is for fully connected"),
        (["--net", "conv", "--width", "12"], "--width must be a multiple of 8 for --net conv"),
        (["--data", "moons"], "moons are points in the plane, and this model is for images"),
        (["--likelihood", "bernoulli"], "bernoulli is for data of two levels, and these have 17"),
        (["--beta", "2"], "--beta"),
    ],
)
def test_bad_flags_are_one_sentence_and_leave_nothing(tmp_path, capsys, monkeypatch, flags, what):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["train", "hvae", *flags])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    (complaint,) = capsys.readouterr().err.strip().splitlines()
    assert what in complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"keep_levels": -1}, "--keep-levels must be at least 0, got -1"),
        ({"keep_levels": 3}, "--keep-levels must be at most 2, the levels, got 3"),
        ({"level_temperatures": "1,1,1"}, "must name 2 numbers, one for each level"),
        ({"level_temperatures": "0.5"}, "must name 2 numbers, one for each level"),
        ({"level_temperatures": "1,-1"}, "--level-temperatures must be numbers ≥ 0 with commas"),
        ({"level_temperatures": "1,nan"}, "--level-temperatures must be numbers ≥ 0"),
        ({"level_temperatures": "1,"}, "--level-temperatures must be numbers ≥ 0"),
        ({"temperature": -1.0}, "--temperature must be finite and not negative"),
    ],
)
def test_bad_options_of_the_sampler_are_one_sentence(options, what):
    recipe = made()
    with pytest.raises(ValueError, match="^[^\n]*$") as refusal:
        recipe.sample(4, 0, sampling_options(recipe, options))
    assert what in str(refusal.value)


@pytest.mark.parametrize("option", ["keep_levels", "level_temperatures"])
def test_levels_are_options_of_hierarchies_only(option):
    with pytest.raises(ValueError, match="is not an option of a vae"):
        sampling_options(VaeRecipe, {option: 1})


@every_net
def test_the_gradient_is_that_of_the_weighted_batch_mean_on_one_shard_or_two(net):
    """Half warmed up and balanced, by rates of steps that are done."""
    recipe = made(**net, steps=40, warm_up=0.5, balance=True, free_bits=0.1)
    recipe.control.observe({"kl_1": 5.0, "kl_2": 1.0})
    weights = recipe.control.weights(13)
    assert len({*weights, 0.0, 1.0}) == 4
    gradients = []
    for shards in ([slice(0, 10)], [slice(0, 4), slice(4, 10)]):
        with recipe.params.gradient_into(np.zeros_like(recipe.params.theta)) as gradient:
            parts = [recipe.loss(13, rows) for rows in shards]
        gradients.append(gradient)
    x, noise = recipe.batch(13, slice(0, 10))
    eps = [noise.at("eps", i).normal((10, *shape)) for i, shape in enumerate(recipe.model.latents)]
    terms, pullback = recipe.model.loss(x, eps, noise)
    with recipe.params.gradient_into(np.zeros_like(recipe.params.theta)) as want:
        pullback(*(np.full(10, 0.1 * w) for w in (1.0, *weights)))
    for gradient in gradients:
        np.testing.assert_allclose(gradient, want, rtol=1e-9, atol=1e-12)
    for name, term in zip(("reconstruction", "kl_1", "kl_2"), terms, strict=True):
        got = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(got, term, rtol=1e-10, err_msg=f"{name} is not weighted")


@every_kind
def test_a_level_below_its_free_bits_is_not_pushed_down(kind):
    recipe = made(kind=kind, free_bits=0.5)
    assert recipe.control.weights(0) == [1.0, 1.0]
    recipe.control.observe({"kl_1": 0.4, "kl_2": 0.6})
    assert recipe.control.weights(1) == [0.0, 1.0]


def test_the_kl_warms_up_over_its_share_of_the_steps():
    recipe = made(warm_up=0.25, steps=40)
    rises = [recipe.control.weights(step)[0] for step in (0, 5, 10, 39)]
    assert rises == [1e-4, 0.5, 1.0, 1.0]
    assert made(steps=40).control.weights(0) == [1.0, 1.0]


@every_kind
def test_what_is_logged_is_the_bound_however_it_is_trained(kind):
    """The first step of two runs is at the same weights; then they part."""
    plain, warm = made(kind=kind), made(kind=kind, warm_up=1.0, free_bits=9.0, balance=True)
    for recipe in (plain, warm):
        recipe.fit.until(2, quiet=True)
    for name in ("reconstruction", "kl_1", "kl_2"):
        first, second = np.subtract(plain.fit.history[name], warm.fit.history[name])
        assert first == 0.0
        assert second != 0.0
    row = {"step": 2, "reconstruction": 90.0, "kl_1": 4.0, "kl_2": 1.5}
    assert warm.columns(row) == {
        "reconstruction_nats": 90.0,
        "kl_1_nats": 4.0,
        "kl_2_nats": 1.5,
        "negative_elbo_nats": 95.5,
        "bits_per_dim": pytest.approx(95.5 / (64.0 * log(2.0))),
    }
    assert "KL 4.00 + 1.50" in warm.describe(row)


FLAGS = ["--latents", "3,2", "--batch-size", "16", "--free-bits", "0.05", "--warm-up", "0.5"]
FLAGS += ["--balance", "--steps", "8", "--quiet"]
RUNS = {  # each with a limit within the range of its gradients
    "ladder-mlp": ["--width", "16", "--max-gradient", "80"],
    "markov-conv": ["--width", "8", "--net", "conv", "--kind", "markov", "--max-gradient", "124"],
}


@pytest.fixture(scope="module", params=RUNS)
def runs(request, tmp_path_factory):
    """A run that skips some of its steps, unbroken, and the same one stopped and resumed."""
    flags = RUNS[request.param]
    root = tmp_path_factory.mktemp("hvae")
    whole, broken = root / "whole", root / "broken"
    assert main(["train", "hvae", *FLAGS, *flags, "--out", str(whole)]) == 0
    assert main(["train", "hvae", *FLAGS, *flags, "--out", str(broken), "--stop-at", "3"]) == 0
    assert main(["train", "--resume", str(broken), "--quiet"]) == 0
    return whole, broken


def test_a_stopped_run_resumed_is_the_unbroken_run(runs):
    whole, broken = runs
    with np.load(whole / "checkpoint.npz") as a, np.load(broken / "checkpoint.npz") as b:
        assert set(a.files) == set(b.files)
        assert a["control/observed"] == 8
        assert a["control/rate/kl_1"] != 0.0
        assert 0 < a["guard/skipped"] < 8
        for name in a.files:
            assert a[name].tobytes() == b[name].tobytes(), name
    assert (whole / "metrics.csv").read_bytes() == (broken / "metrics.csv").read_bytes()
    header = (whole / "metrics.csv").read_text("utf-8").splitlines()[0]
    terms = "reconstruction_nats,kl_1_nats,kl_2_nats,negative_elbo_nats,bits_per_dim"
    assert header == f"step,{terms}"


def test_a_run_goes_the_whole_way(runs, capsys):
    run, _ = runs
    assert main(["evaluate", str(run), "--draws", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["examples"], found["dims"], found["levels"]) == (360, 64, 17)
    assert found["importance_weighted_bits_per_dim"] < found["bits_per_dim"]
    rates = [level["rate_nats"] for level in found["hierarchy"]]
    assert sum(rates) == pytest.approx(found["kl_nats"])
    assert -found["elbo_nats"] == pytest.approx(found["reconstruction_nats"] + found["kl_nats"])
    assert main(["evaluate", str(run), "--draws", "2"]) == 0
    said = capsys.readouterr().out
    assert all(f"{rate:.2f} ± " in said for rate in rates)
    assert max(map(len, said.splitlines())) <= 80
    assert main(["sample", str(run), "-n", "20", "--keep-levels", "1", "--seed", "3"]) == 0
    with np.load(run / "samples.npz", allow_pickle=False) as archive:
        assert archive["x"].shape == (20, 8, 8, 1)
        assert archive["keep_levels"] == 1
    names = {path.name for path in (run / "figures").iterdir()}
    wanted = {"loss.png", "level_1.png", "level_2.png", "samples.png", "reconstructions_test.png"}
    assert names == wanted


def test_its_layers_can_be_listed(runs, capsys):
    run, _ = runs
    assert main(["info", "--net", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in found["layers"]}
    assert found["batch_size"] == 16
    assert any(name.startswith("encoders.1.") for name in rows)
    listed = sum(row["parameters"] for row in found["layers"])
    with np.load(run / "checkpoint.npz") as archive:
        assert found["parameters"] == archive["theta"].size
    config = json.loads((run / "config.json").read_text("utf-8"))
    start = config["width"] if config["kind"] == "ladder" else 0  # s_0, which is no layer's
    assert listed == found["parameters"] - start
    assert main(["info", "--net", str(run)]) == 0
    assert "decoder.layers.0" in capsys.readouterr().out


def trained_with(limit, tmp_path, capsys) -> str:
    flags = ["--width", "8", "--latents", "3,2", "--batch-size", "16", "--steps", "8"]
    out = str(tmp_path / "run")
    assert main(["train", "hvae", *flags, "--max-gradient", limit, "--out", out]) == 0
    return capsys.readouterr().err


def test_skipped_steps_are_counted_and_too_many_called_that(tmp_path, capsys):
    said = trained_with("1e-3", tmp_path, capsys)
    assert "note: 8 of 8 steps were skipped, their gradient longer than 0.001; that is most" in said
    assert "a larger --max-gradient" in said
    recipe, fresh = made(), made(max_gradient=1.0)
    assert recipe.remarks() == fresh.remarks() == []
    fresh.guard.skipped, fresh.fit.steps_done = 3, 6
    assert fresh.remarks() == ["3 of 6 steps were skipped, their gradient longer than 1"]


def test_where_no_step_is_skipped_nothing_is_said_of_it(tmp_path, capsys):
    assert "steps were skipped" not in trained_with("1e9", tmp_path, capsys)


@every_net
def test_evaluation_reports_what_the_bounds_are(net):
    recipe = made(**net)
    recipe.fit.until(4, quiet=True)
    part = some(recipe)
    result = recipe.evaluate(part, draws=3)
    json.dumps(result, allow_nan=False)
    x = recipe.examples(part)
    found = hierarchy_bounds(recipe.model, x, Stream(0, recipe.born).at("evaluate"), 3)
    bound = found["reconstruction"] + found["kl/1"] + found["kl/2"]
    assert result["elbo_nats"] == pytest.approx(-bound.mean())
    assert result["reconstruction_nats"] == pytest.approx(found["reconstruction"].mean())
    tight, error = mean_and_error(found["importance_weighted"])
    per_dim = 64.0 * log(2.0)
    assert result["importance_weighted_bits_per_dim"] == pytest.approx(tight / per_dim)
    assert result["importance_weighted_bits_per_dim_standard_error"] == pytest.approx(
        error / per_dim
    )
    so_far = 0.0
    for i, level in enumerate(result["hierarchy"], start=1):
        rate, error = mean_and_error(found[f"kl/{i}"])
        so_far += rate
        assert level["level"] == i
        assert tuple(level["shape"]) == recipe.model.latents[i - 1]
        assert level["latent_dimensions"] == np.prod(level["shape"])
        assert level["rate_nats"] == pytest.approx(rate)
        assert level["rate_nats_standard_error"] == pytest.approx(error)
        assert level["cumulative_rate_nats"] == pytest.approx(so_far)
        each = np.abs(found[f"per_dimension/{i}"].mean(axis=0))
        assert level["active_units"] == np.sum(each > 0.01)
        assert ("removal_bits_per_dim" in level) == (net["kind"] == "ladder")
        if "removal_bits_per_dim" in level:
            mean, error = mean_and_error(found[f"replaced/{i}"] - bound)
            assert level["removal_bits_per_dim"] == pytest.approx(mean / per_dim)
            assert level["removal_bits_per_dim_standard_error"] == pytest.approx(error / per_dim)
    assert result["kl_nats"] == pytest.approx(so_far)
    errors = [result["squared_error_per_dim_without_latents"]]
    errors += [level["squared_error_per_dim"] for level in result["hierarchy"]]
    zeros = [np.zeros((12, *shape)) for shape in recipe.model.latents]
    for k, error in enumerate(errors):
        back = recipe.model.reconstruct(x, zeros, k)
        assert error == pytest.approx(float(np.mean((back - x) ** 2)))
    table = "\n".join(recipe.report({**result, "dims": 64}))
    assert ("removal" in table) == (net["kind"] == "ladder")
    assert f"KL of level 2{'':11}{result['hierarchy'][1]['rate_nats']:13.2f}" in table
    assert f"{errors[0]:.4f}" in table


@pytest.mark.parametrize(
    ("kind", "net", "dead"),
    [("ladder", "levels.0.posterior", 1), ("ladder", "levels.1.posterior", 2)]
    + [("markov", "encoders.1", 1)],
)
def test_a_level_that_says_nothing_is_called_collapsed_and_no_other(kind, net, dead):
    """Its posterior is its prior, so nothing is lost by the prior in its place."""
    recipe = made(kind=kind)
    recipe.params.theta = 2.0 * recipe.params.theta  # so that the untrained others say something
    silence(recipe, net)
    result = recipe.evaluate(some(recipe), draws=2)
    level = result["hierarchy"][dead - 1]
    assert (level["active_units"], level["rate_nats"]) == (0, 0.0)
    if kind == "ladder":
        assert abs(level["removal_bits_per_dim"]) < 1e-12 * result["bits_per_dim"]
    said = [line for line in recipe.report({**result, "dims": 64}) if "collapsed" in line]
    assert len(said) == 1
    assert f"warning: level {dead} has collapsed" in said[0]
    assert "--free-bits" in said[0]


def test_before_training_every_level_of_a_convolutional_ladder_has_collapsed():
    recipe = made(net="conv")
    lines = recipe.report({**recipe.evaluate(some(recipe), draws=1), "dims": 64})
    assert sum("collapsed" in line for line in lines) == 2


def test_dimensions_of_a_chain_may_cost_less_than_nothing_and_be_active(monkeypatch):
    def canned(model, x, stream, draws):
        found = hierarchy_bounds(model, x, stream, draws)
        found["per_dimension/2"] = np.zeros((len(x), 2)) + np.asarray([-0.5, 0.001])
        return found

    recipe = made(kind="markov")
    monkeypatch.setattr(hvae, "hierarchy_bounds", canned)
    assert recipe.evaluate(some(recipe), draws=1)["hierarchy"][1]["active_units"] == 1


def test_a_table_of_a_bad_run_says_so():
    recipe = made(kind="markov")
    result = {**recipe.evaluate(some(recipe), draws=1), "dims": 64}
    result["bits_per_dim"] = result["baselines"]["uniform"] + 0.1
    assert "warning: worse than a uniform code" in "\n".join(recipe.report(result))


@every_net
def test_sample_i_of_four_is_sample_i_of_many(net):
    recipe = made(**net)
    for options in (HvaeSampling(), HvaeSampling(keep_levels=1)):
        few, many = (recipe.sample(n, 7, options).x for n in (4, 70))
        assert many.shape == (70, 8, 8, 1)
        assert np.abs(many).max() <= 1.0
        np.testing.assert_array_equal(few, many[:4])
    other = recipe.sample(4, 8, HvaeSampling()).x
    assert np.all(other != few)


@every_net
@pytest.mark.parametrize("keep", [0, 1, 2])
def test_a_row_shares_the_levels_that_are_kept_and_no_others(net, keep, monkeypatch):
    recipe = made(**net)
    seen = watched(recipe, monkeypatch)
    drawn = recipe.sample(3 * ROW, 7, HvaeSampling(keep_levels=keep))
    for level, eps in enumerate(together(seen, 3 * ROW)):
        rows = eps.reshape(3, ROW, -1)
        assert distinct(eps) == (3 if level < keep else 3 * ROW)
        assert np.all(rows[0, 0] != rows[1, 0])
        if level < keep:
            assert np.all(rows == rows[:, :1])
    assert np.intersect1d(*together(seen, 3 * ROW)).size == 0, "every level has its own noise"
    images = drawn.x.reshape(3, ROW, -1)
    spread = np.abs(images - images[:, :1]).max()
    assert spread > 1e-3 if keep < 2 else spread < 1e-12
    assert np.abs(images[0, 0] - images[1, 0]).max() > 1e-3
    assert drawn.columns == (ROW if keep else None)


@every_kind
def test_rows_are_rows_where_batches_are_smaller(kind, monkeypatch):
    """Five large images at a time, eight of which share what is kept."""
    recipe = made(**COLOUR, kind=kind, dtype="float32")
    assert recipe.at_once == 5
    seen = watched(recipe, monkeypatch)
    drawn = recipe.sample(20, 7, HvaeSampling(keep_levels=1)).x
    assert drawn.shape == (20, 16, 16, 3)
    assert drawn.dtype == np.float32
    first, second = together(seen, 20)
    np.testing.assert_array_equal(first, first[np.arange(20) // ROW * ROW])
    assert (distinct(first), distinct(second)) == (3, 20)
    np.testing.assert_array_equal(recipe.sample(3, 7, HvaeSampling(keep_levels=1)).x, drawn[:3])


@every_net
def test_temperatures_scale_the_noise_of_their_level(net, monkeypatch):
    recipe = made(**net)

    def noise(**options):
        with pytest.MonkeyPatch.context() as patch:
            seen = watched(recipe, patch)
            x = recipe.sample(10, 7, HvaeSampling(**options)).x
        return x, together(seen, 10)

    plain, (top, low) = noise()
    for text, scales in (("0.5,1", (0.5, 1.0)), ("1, 0.25", (1.0, 0.25)), ("0,0", (0.0, 0.0))):
        _, (scaled_top, scaled_low) = noise(level_temperatures=text, temperature=3.0)
        np.testing.assert_array_equal(scaled_top, scales[0] * top)
        np.testing.assert_array_equal(scaled_low, scales[1] * low)
    still, _ = noise(level_temperatures="0,0")
    np.testing.assert_allclose(still, np.repeat(still[:1], 10, axis=0), rtol=1e-12)
    all_alike, _ = noise(temperature=0.5)
    np.testing.assert_array_equal(all_alike, noise(level_temperatures="0.5,0.5")[0])
    assert np.any(all_alike != plain)


@every_net
@pytest.mark.parametrize("data", [{}, COLOUR], ids=["digits", "colour"])
def test_training_moves_every_level(net, data):
    recipe = made(**{"width": 8} | data | net | {"dtype": "float32", "steps": 2})
    before = {name: p.read().value.copy() for name, p in recipe.params.table.items()}
    recipe.fit.until(2, quiet=True)
    assert recipe.params.theta.dtype == np.float32
    for name, p in recipe.params.table.items():
        assert np.any(p.read().value != before[name]), name
    part = some(recipe, 4)
    recipe.at_once = 2
    result = recipe.evaluate(part, draws=1)
    assert result["importance_weighted_bits_per_dim"] > 0.0
    shape = (16, 16, 3) if data else (8, 8, 1)
    assert recipe.sample(3, 0, HvaeSampling()).x.shape == (3, *shape)


def titled(monkeypatch) -> list:
    """What every figure has above it; a title that leaves the figure fails."""
    found, save = [], plots.save

    def look(figure, path):
        save(figure, path)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        for axes in figure.axes:
            if axes.get_title():
                box = axes.title.get_window_extent(canvas.get_renderer())
                assert box.x0 >= 0.0, axes.get_title()
                assert box.x1 <= figure.bbox.width, axes.get_title()
                assert box.y1 <= figure.bbox.height, axes.get_title()
        found.append((path.name, figure))

    monkeypatch.setattr(plots, "save", look)
    return found


@pytest.mark.parametrize(("levels", "count"), [(1, 2), (2, 16), (6, 16)])
def test_figures_show_every_level_and_titles_fit(tmp_path, monkeypatch, levels, count):
    recipe = made(levels=levels, latents="", steps=2, width=8)
    recipe.fit.until(2, quiet=True)
    found = titled(monkeypatch)
    recipe.training_figures(tmp_path)
    recipe.evaluation_files(tmp_path, "validation", some(recipe, count), {})
    figures = dict(found)
    wanted = {f"level_{i}.png" for i in range(1, levels + 1)}
    assert set(figures) == wanted | {"loss.png", "reconstructions_validation.png"}
    (axes,) = figures["loss.png"].axes
    curves = [line for line in axes.lines if not line.get_label().startswith("_")]
    looks = {(line.get_color(), line.get_linestyle()) for line in curves}
    assert len(looks) == len(curves) == levels + 2
    labels = [line.get_label() for line in curves]
    assert labels[:3] == ["-ELBO on training batches", "reconstruction", "KL, level 1"]
    total = np.sum([line.get_ydata() for line in curves[1:]], axis=0)
    np.testing.assert_allclose(curves[0].get_ydata(), total)
    (axes,) = figures["reconstructions_validation.png"].axes
    rows = [tick.get_text() for tick in axes.get_yticklabels()]
    assert rows[0] == "data"
    assert rows[-2:] == ["z1", "no latent"]
    assert len(rows) == levels + 2


def test_rows_of_reconstructions_are_of_the_first_latents(tmp_path, monkeypatch):
    recipe, shown = made(), {}
    monkeypatch.setattr(plots, "image_rows", lambda path, rows, title: shown.update(rows))
    part = some(recipe, 20)
    recipe.evaluation_files(tmp_path, "test", part, {})
    x = recipe.examples(part)[:16]
    zeros = [np.zeros((16, *shape)) for shape in recipe.model.latents]
    np.testing.assert_array_equal(shown["data"], part.x[:16])
    for label, keep in (("z1 to z2", 2), ("z1", 1), ("no latent", 0)):
        want = recipe.images(recipe.model.reconstruct(x, zeros, keep))
        np.testing.assert_allclose(shown[label], want, rtol=1e-12)
    np.testing.assert_array_equal(recipe.reconstruct(x), recipe.model.reconstruct(x, zeros))


@every_kind
def test_along_a_row_of_its_picture_a_level_alone_is_drawn_anew(kind, tmp_path, monkeypatch):
    recipe = made(kind=kind)
    seen, columns = watched(recipe, monkeypatch), []
    monkeypatch.setattr(plots, "image_grid", lambda *given: columns.append(given[3]))
    recipe.training_figures(tmp_path)
    assert columns == [ROW, ROW]
    for i, noise in enumerate(seen):
        assert [distinct(eps) for eps in noise] == [ROW * ROW if i == j else ROW for j in (0, 1)]


def test_rows_of_samples_are_rows_of_the_picture(runs, monkeypatch):
    run, _ = runs
    columns = []
    monkeypatch.setattr(plots, "image_grid", lambda *given: columns.append(given[3]))
    for flags in (["--keep-levels", "1"], []):
        assert main(["sample", str(run), "-n", "20", *flags]) == 0
    assert columns == [ROW, None]
