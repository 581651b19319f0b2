"""`train hvae`: ladders and chains, from the options to samples, measures and figures."""

import json
from math import log, pi

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from scratchgen.app import plots
from scratchgen.app.cli import main
from scratchgen.app.recipes import HvaeRecipe, VaeRecipe, hvae, recipe_from_json
from scratchgen.app.recipes.base import config_to_json
from scratchgen.app.recipes.hvae import ROW, HvaeConfig, HvaeSampling
from scratchgen.app.sampling import sampling_options
from scratchgen.maths.likelihoods import FixedNormal
from scratchgen.metrics.likelihood import mean_and_error
from scratchgen.models.ladder_hvae import LadderHvae
from scratchgen.models.markov_hvae import MarkovHvae
from scratchgen.training.optim import global_norm

from hierarchies import Affine, Points

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


def of_levels(kind: str) -> dict:
    """Options that weigh every level by a number of its own, where they are allowed."""
    return {"free_bits": 0.1, "balance": True} if kind == "ladder" else {}


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
    options = {"levels": 3, "latents": "3,2,4", "warm_up": 0.5, "max_gradient": 7.0, "seed": 4}
    recipe = made(**options, **net, **of_levels(net["kind"]))
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
        (["--levels", "65"], "--levels must be at most 64"),
        (["--balance", "--warm-up", "0"], "--balance acts while --warm-up lasts; add --warm-up"),
        (["--kind", "markov", "--balance"], "--balance and --free-bits are for --kind ladder"),
        (["--kind", "markov", "--free-bits", "0.1"], "--free-bits are for --kind ladder"),
        (["--kind", "tree"], "invalid choice: 'tree'"),
        (["--depth", "0"], "--depth must be at least 1 for --kind ladder, got 0"),
        (["--net", "conv", "--depth", "2"], "--depth is for fully connected nets"),
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


@pytest.mark.parametrize("kind", ["ladder", "markov"])
def test_depth_adds_hidden_layers_wherever_its_help_says(kind):
    """Of w units each: w² + w more numbers in the encoder of data, the decoder, and a chain's."""
    sizes = [made(kind=kind, width=8, depth=depth).params.theta.size for depth in (1, 2, 3)]
    nets = {"ladder": 2, "markov": 4}[kind]
    assert np.diff(sizes).tolist() == 2 * [nets * (8 * 8 + 8)]


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
    with pytest.raises(ValueError, match="the sampler of vae has no option"):
        sampling_options(VaeRecipe, {option: 1})


@every_net
def test_the_gradient_is_that_of_the_weighted_batch_mean_on_one_shard_or_two(net):
    """In the warm-up, and a ladder's levels balanced by rates of steps that are done."""
    recipe = made(**net, **of_levels(net["kind"]), steps=40, warm_up=0.5)
    recipe.control.observe({"kl_1": 5.0, "kl_2": 1.0})
    weights = recipe.control.weights(13)
    assert len({*weights, 0.0, 1.0}) == (4 if net["kind"] == "ladder" else 3)
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


def test_a_level_below_its_free_bits_is_not_pushed_down():
    recipe = made(free_bits=0.5)
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
    plain, warm = made(kind=kind), made(kind=kind, warm_up=1.0, **of_levels(kind))
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


RUN = {"latents": "3,2", "batch_size": 16, "warm_up": 0.5, "steps": 8, "dtype": "float32"}
RUNS = {
    "ladder-mlp": {"width": 16, "free_bits": 0.05, "balance": True},
    "markov-conv": {"width": 8, "net": "conv", "kind": "markov"},
}


class Refusal:
    """A guard that admits no gradient, and keeps its norm."""

    def __init__(self):
        self.norms = []

    def admits(self, params) -> bool:
        self.norms.append(global_norm(params))
        return False


def seed_and_limit(options: dict) -> tuple[int, float]:
    """A limit by which the first of eight steps is skipped for sure and a later one is not.

    While steps are skipped the parameters stay, so that up to the first that is not every gradient
    is the one seen here.
    """
    for seed in range(9):
        recipe, refusal = HvaeRecipe(HvaeConfig(**options, seed=seed)), Refusal()
        recipe.fit.guard = refusal
        recipe.fit.until(8, quiet=True)
        first, least = refusal.norms[0], min(refusal.norms)
        if first > 1.01 * least:
            return seed, (first + least) / 2.0
    raise AssertionError("the first gradient is the shortest under every seed")


def flags_of(options: dict) -> list[str]:
    """The same on the command line."""
    pairs = [("--" + name.replace("_", "-"), value) for name, value in options.items()]
    return [text for flag, v in pairs for text in ([flag] if v is True else [flag, str(v)])]


@pytest.fixture(scope="module", params=RUNS)
def runs(request, tmp_path_factory):
    """A run that skips some of its steps, unbroken, and the same one stopped and resumed."""
    options = RUN | RUNS[request.param]
    seed, limit = seed_and_limit(options)
    train = ["train", "hvae", *flags_of(options | {"seed": seed, "max_gradient": limit}), "--quiet"]
    root = tmp_path_factory.mktemp("hvae")
    whole, broken = root / "whole", root / "broken"
    assert main([*train, "--out", str(whole)]) == 0
    assert main([*train, "--out", str(broken), "--stop-at", "3"]) == 0
    with np.load(broken / "checkpoint.npz") as stopped:
        assert stopped["guard/skipped"] > 0
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
    assert listed == found["parameters"]
    config = json.loads((run / "config.json").read_text("utf-8"))
    if config["kind"] == "ladder":  # s_0 is no layer's
        assert rows["start"]["output"] == [config["width"]]
    assert main(["info", "--net", str(run)]) == 0
    assert "decoder.layers.0" in capsys.readouterr().out


def trained_with(limit, tmp_path, capsys) -> str:
    flags = ["--width", "8", "--latents", "3,2", "--batch-size", "16", "--steps", "8"]
    out = str(tmp_path / "run")
    assert main(["train", "hvae", *flags, "--max-gradient", limit, "--out", out]) == 0
    return capsys.readouterr().err


def test_skipped_steps_are_counted_and_too_many_called_that(tmp_path, capsys):
    said = trained_with("1e-3", tmp_path, capsys)
    assert "note: skipped 8 of 8 steps, whose gradient was longer than 0.001; that is most" in said
    assert "a larger --max-gradient" in said
    recipe, fresh = made(), made(max_gradient=1.0)
    assert recipe.remarks() == fresh.remarks() == []
    fresh.guard.skipped, fresh.fit.steps_done = 3, 6
    assert fresh.remarks() == ["skipped 3 of 6 steps, whose gradient was longer than 1"]


def test_where_no_step_is_skipped_nothing_is_said_of_it(tmp_path, capsys):
    assert "note: skipped" not in trained_with("1e9", tmp_path, capsys)


@every_net
def test_evaluation_tells_of_every_level(net):
    recipe = made(**net)
    recipe.fit.until(4, quiet=True)
    result = recipe.evaluate(some(recipe), draws=3)
    json.dumps(result, allow_nan=False)
    levels = result["hierarchy"]
    assert [level["level"] for level in levels] == [1, 2]
    assert tuple(tuple(level["shape"]) for level in levels) == recipe.model.latents
    for level in levels:
        assert level["latent_dimensions"] == np.prod(level["shape"])
        assert 0 <= level["active_units"] <= level["latent_dimensions"]
        assert ("removal_bits_per_dim" in level) == (net["kind"] == "ladder")
    assert result["kl_nats"] == pytest.approx(sum(level["rate_nats"] for level in levels))
    lines = recipe.report({**result, "dims": 64})
    head = next(i for i, line in enumerate(lines) if line.startswith("level"))
    table = lines[head : head + 4]
    assert ("removal" in table[0]) == (net["kind"] == "ladder")
    assert len(table[0]) == len(table[2]) == len(table[3])
    assert table[0][: len(table[1])].endswith("squared error")
    assert max(map(len, lines)) <= 80
    assert table[1].split() == ["none", f"{result['squared_error_per_dim_without_latents']:.4f}"]
    for level, line in zip(levels, table[2:], strict=True):
        assert f"{level['squared_error_per_dim']:.4f}" in line
        assert f"{level['rate_nats']:.2f} ± {level['rate_nats_standard_error']:.2f}" in line
    assert f"KL of level 2{'':11}{levels[1]['rate_nats']:13.2f}" in "\n".join(lines)


I, J = 27, 28  # two pixels from the middle of an image
VARIANCE = 0.5  # of p(x | z)
POINTS = 2**0.5 * np.asarray([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
FOUR = [POINTS[:, :1], POINTS[:, 1:]]  # draws of two numbers: means of quadratics are exact


def reads(count, **slopes) -> np.ndarray:
    """(count, 1): the weights of one number that is read from `count`, all 0 but those named."""
    found = np.zeros((count, 1))
    for name, slope in slopes.items():
        found[int(name[1:])] = slope
    return found


def law(matrix, variance) -> Affine:
    """A net that gives a mean, and beside it the logarithm of a constant."""
    return Affine(matrix, np.zeros(1), (1,), np.log([variance]))


def linear_ladder(a, b, c, first, below, second) -> LadderHvae:
    """p: z_2 ~ N(b z_1, below).  q: z_1 ~ N(a x_I, first), z_2 ~ N(b z_1 + c x_J, second below)."""
    same, row = Affine(np.eye(64), np.zeros(64), (64,)), np.zeros((2, 64))
    row[0, I] = row[1, J] = 1.0
    top = law(reads(64, **{f"p{I}": a}), first)
    low = law(reads(65, **{f"p{J + 1}": c}), second)  # behind the state z_1
    merges = [Affine(np.eye(n), np.zeros(n), (n,)) for n in (1, 2)]
    levels = [(None, top, merges[0]), (law(b * np.eye(1), below), low, merges[1])]
    decoder = Affine(row, np.zeros(64), (64,))
    return LadderHvae(2 * [same], levels, None, [(1,), (1,)], decoder, FixedNormal(VARIANCE))


def linear_chain(c, g, d, above, up, below) -> MarkovHvae:
    """q: z_2 ~ N(c x_J, above), z_1 ~ N(g z_2, up).  p: z_2 ~ N(d z_1, below), x_J ~ N(z_2, .)."""
    encoders = [law(reads(64, **{f"p{J}": c}), above), law(g * np.eye(1), up)]
    decoder = Affine(reads(64, **{f"p{J}": 1.0}).T, np.zeros(64), (64,))
    priors = [law(d * np.eye(1), below)]
    return MarkovHvae(encoders, priors, [(1,), (1,)], decoder, FixedNormal(VARIANCE))


def measured(model, monkeypatch, exact=True):
    """x (N, 64), and what `evaluate` says of that model, by four draws whose means are exact."""
    kind = "ladder" if isinstance(model, LadderHvae) else "markov"
    recipe = made(kind=kind, latents="1,1")
    recipe.model, part = model, some(recipe, 40)
    if exact:
        stream = type("Given", (), {"at": lambda self, what: Points(FOUR)})()
        monkeypatch.setattr(hvae, "Stream", lambda seed, born: stream)
    result = {**recipe.evaluate(part, draws=4), "dims": 64}
    return recipe.examples(part), result, recipe.report(result)


def agree(result, reconstruction, kls, errors):
    """The report of what is known: (N,) nats of each term, and (N,) squared errors of an image."""
    assert result["reconstruction_nats"] == pytest.approx(reconstruction.mean())
    total, error = mean_and_error(reconstruction + sum(kls))
    assert result["elbo_nats"] == pytest.approx(-total)
    assert result["kl_nats"] == pytest.approx(sum(kls).mean(), abs=1e-9)
    assert result["bits_per_dim"] == pytest.approx(total / (64.0 * log(2.0)))
    assert result["bits_per_dim_standard_error"] == pytest.approx(error / (64.0 * log(2.0)))
    none, *errors = (float(np.mean(each)) / 64.0 for each in errors)
    assert result["squared_error_per_dim_without_latents"] == pytest.approx(none)
    so_far = 0.0
    for level, kl, squared in zip(result["hierarchy"], kls, errors, strict=True):
        rate, error = mean_and_error(kl)
        so_far += rate
        assert level["rate_nats"] == pytest.approx(rate)
        assert level["rate_nats_standard_error"] == pytest.approx(error, abs=1e-12)
        assert level["cumulative_rate_nats"] == pytest.approx(so_far, abs=1e-12)
        assert level["squared_error_per_dim"] == pytest.approx(squared)


def nats(squares):
    """-log p(x | z) of FixedNormal, given (N,) expected squared distances."""
    return 32.0 * log(2.0 * pi * VARIANCE) + squares / (2.0 * VARIANCE)


def test_evaluation_of_a_ladder_that_is_known(monkeypatch):
    a, b, c, first, below, second = 0.7, 0.4, 0.5, 0.6, 0.8, 0.9
    x, result, _ = measured(linear_ladder(a, b, c, first, below, second), monkeypatch)
    u, v = x[:, I], x[:, J]
    rest = np.sum(x**2, axis=1) - u**2 - v**2
    kls = [
        0.5 * (first - 1.0 - log(first) + (a * u) ** 2),
        0.5 * (second - 1.0 - log(second) + (c * v) ** 2 / below),
    ]
    top, low = (u - a * u) ** 2 + first, (v - b * a * u - c * v) ** 2 + b**2 * first
    reconstruction = nats(rest + top + low + below * second)
    errors = [
        rest + u**2 + v**2,
        rest + (u - a * u) ** 2 + (v - b * a * u) ** 2,
        rest + (u - a * u) ** 2 + (v - b * a * u - c * v) ** 2,
    ]
    agree(result, reconstruction, kls, errors)
    without = [
        nats(rest + u**2 + 1.0 + (v - c * v) ** 2 + b**2 + below * second),
        nats(rest + top + (v - b * a * u) ** 2 + b**2 * first + below),
    ]
    for level, other, kl in zip(result["hierarchy"], without, kls, strict=True):
        lost, error = mean_and_error((other - kl - reconstruction) / (64.0 * log(2.0)))
        assert level["removal_bits_per_dim"] == pytest.approx(lost)
        assert level["removal_bits_per_dim_standard_error"] == pytest.approx(error)
        assert level["active_units"] == 1


def test_evaluation_of_a_chain_that_is_known(monkeypatch):
    c, g, d, above, up, below = 0.9, 0.6, 0.7, 0.5, 0.4, 0.8
    x, result, _ = measured(linear_chain(c, g, d, above, up, below), monkeypatch)
    v, rest = x[:, J], np.sum(x**2, axis=1) - x[:, J] ** 2
    square = (c * v) ** 2 + above  # E z_2²
    gap = (1.0 - d * g) ** 2 * square + d**2 * up  # E (z_2 - d z_1)²
    kls = [
        0.5 * (g**2 * square + up - 1.0 - log(up)),
        0.5 * (log(below / above) - 1.0 + gap / below),
    ]
    reconstruction = nats(rest + (v - c * v) ** 2 + above)
    seen = [rest + (v - k * v) ** 2 for k in (0.0, d * g * c, c)]
    agree(result, reconstruction, kls, seen)
    assert [level["active_units"] for level in result["hierarchy"]] == [1, 1]
    assert "removal_bits_per_dim" not in result["hierarchy"][0]


def collapsed(lines) -> str:
    """The warnings of a report about levels that say nothing, as one line."""
    start = next((i for i, line in enumerate(lines) if "collapsed" in line), len(lines))
    return " ".join(line.strip() for line in lines[start:])


def warned(lines) -> list[int]:
    """The levels that a report calls collapsed."""
    return [int(text.split()[0]) for text in collapsed(lines).split("warning: level ")[1:]]


def test_a_chain_that_is_its_own_prior_has_collapsed_whatever_its_terms_are(monkeypatch):
    """q(z_2 | x) = N(0, 1) = p(z_2) and q(z_1 | z_2) = p(z_1 | z_2): the terms are ±½ log 0.36.

    At any noise they cancel in the weights, so there every bound is that of the decoder alone.
    """
    model = linear_chain(0.0, 0.8, 0.8, 1.0, 0.36, 0.36)
    model.decoder = Affine(np.zeros((1, 64)), np.zeros(64), (64,))
    for exact in (False, True):
        x, result, lines = measured(model, monkeypatch, exact)
        bits = nats(np.sum(x**2, axis=1)).mean() / (64.0 * log(2.0))
        assert result["importance_weighted_bits_per_dim"] == pytest.approx(bits)
        assert [level["active_units"] for level in result["hierarchy"]] == [0, 0]
        assert warned(lines) == [1, 2]
        assert collapsed(lines).count("--warm-up") == 2
        assert "--free-bits" not in collapsed(lines), "which a chain does not have"
    rates = [level["rate_nats"] for level in result["hierarchy"]]
    assert rates == pytest.approx([-0.5 * log(0.36), 0.5 * log(0.36)])
    assert rates == pytest.approx([0.511, -0.511], abs=1e-3)


def test_numbers_of_a_chain_are_active_where_their_posterior_mean_varies(monkeypatch):
    """A variance of 0.0101 below and of 0.0099 above it, whatever the terms are."""
    recipe = made(kind="markov")
    spread = recipe.examples(some(recipe, 40))[:, J].std()
    c, g = 0.0101**0.5 / spread, (0.0099 / 0.0101) ** 0.5
    for slopes, active, dead in (((c, g), [0, 1], [1]), ((c, 1.0), [1, 1], [])):
        model = linear_chain(*slopes, 0.7, 0.5, 0.1, 0.8)
        _, result, lines = measured(model, monkeypatch)
        assert [level["active_units"] for level in result["hierarchy"]] == active
        assert warned(lines) == dead


@pytest.mark.parametrize("dead", [1, 2])
def test_a_level_of_a_ladder_that_says_nothing_is_called_collapsed_and_no_other(dead):
    """Its posterior is its prior, so nothing is lost by the prior in its place."""
    recipe = made(dtype="float32")
    recipe.params.theta = 2.0 * recipe.params.theta  # so that the untrained other says something
    silence(recipe, f"levels.{dead - 1}.posterior")
    result = recipe.evaluate(some(recipe), draws=2)
    level, other = result["hierarchy"][dead - 1], result["hierarchy"][2 - dead]
    for name in ("active_units", "rate_nats", "removal_bits_per_dim"):
        assert level[name] == 0
        assert other[name] != 0
    assert level["rate_nats_standard_error"] == 0.0
    assert level["removal_bits_per_dim_standard_error"] == 0.0
    lines = recipe.report({**result, "dims": 64})
    assert warned(lines) == [dead]
    assert "--free-bits" in collapsed(lines)
    (row,) = [line for line in lines if line.startswith(f"    {dead} ")]
    assert row.endswith("  0.000 ± 0.000")


def test_numbers_of_a_ladder_are_active_above_a_hundredth_of_a_nat():
    """Two constant residuals of the mean, whose KLs are 0.0101 and 0.0099."""
    recipe = made(latents="2,1")
    moved = np.asarray([0.0202**0.5, 0.0198**0.5, 0.0, 0.0])
    recipe.model.levels[0].posterior = lambda s, h: (np.tile(moved, (len(s), 1)), None)
    silence(recipe, "levels.1.posterior")
    result = recipe.evaluate(some(recipe), draws=1)
    first, second = result["hierarchy"]
    assert first["rate_nats"] == pytest.approx(0.02)
    assert (first["active_units"], second["active_units"]) == (1, 0)
    assert warned(recipe.report({**result, "dims": 64})) == [2]


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
        _, (scaled_top, scaled_low) = noise(level_temperatures=text)
        np.testing.assert_array_equal(scaled_top, scales[0] * top)
        np.testing.assert_array_equal(scaled_low, scales[1] * low)
    still, _ = noise(level_temperatures="0,0")
    np.testing.assert_allclose(still, np.repeat(still[:1], 10, axis=0), rtol=1e-12)
    all_alike, _ = noise(temperature=0.5)
    np.testing.assert_array_equal(all_alike, noise(level_temperatures="0.5,0.5")[0])
    assert np.any(all_alike != plain)
    with pytest.raises(ValueError, match="--level-temperatures stands in the place of"):
        HvaeSampling(level_temperatures="1,1", temperature=0.5)


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
