"""Convolutional runs: every size, grey and colour, from the options to samples and figures."""

import json

import numpy as np
import pytest

from scratchgen.app.cli import main
from scratchgen.app.recipes import AutoencoderRecipe, VaeRecipe
from scratchgen.app.recipes.autoencoder import AutoencoderConfig
from scratchgen.app.recipes.base import Sampling
from scratchgen.app.recipes.vae import VaeConfig
from scratchgen.data.shapes import SIZES, load_shapes
from scratchgen.layers.dropout import Dropout

TINY = {"data": "shapes", "net": "conv", "width": 8, "latent": 3, "batch_size": 4, "steps": 2}
MODELS = {"vae": (VaeRecipe, VaeConfig), "autoencoder": (AutoencoderRecipe, AutoencoderConfig)}


def trained(model, **options):
    """A recipe after two steps; baselines are then taken from few images, and all go in pairs."""
    recipe, config = MODELS[model]
    made = recipe(config(**TINY, **options))
    before = made.params.theta.copy()
    made.fit.until(2, quiet=True)
    assert np.any(made.params.theta != before)
    made.fitted, made.at_once = made.fitted.take(slice(30)), 2
    return made


@pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])
@pytest.mark.parametrize("size", SIZES)
def test_vaes_train_and_are_measured_and_sampled(size, colour):
    recipe = trained("vae", size=size, colour=colour)
    assert recipe.shape == (size, size, 3 if colour else 1)
    part = recipe.part("test").take(slice(6))
    np.testing.assert_array_equal(part.codes, load_shapes("test", size, colour).codes[:6])
    found = recipe.evaluate(part, draws=2)
    assert found["importance_weighted_bits_per_dim"] < found["bits_per_dim"]
    (reconstruction, kl), _ = recipe.model.loss(recipe.examples(part), np.zeros((1, 6, 3)))
    assert found["kl_nats"] == pytest.approx(float(kl.mean()), rel=1e-4)
    at_the_mean = float(reconstruction.mean())  # two steps leave z of little weight
    assert found["reconstruction_nats"] == pytest.approx(at_the_mean, rel=0.2)
    few, more = recipe.sample(1, 7, Sampling(1.0)).x, recipe.sample(3, 7, Sampling(1.0)).x
    assert more.shape == (3, *recipe.shape)
    assert np.abs(more).max() <= 1.0
    np.testing.assert_array_equal(few, more[:1])
    assert np.any(more[0] != more[1])


@pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])
@pytest.mark.parametrize("size", SIZES)
def test_autoencoders_train_and_are_measured(size, colour):
    recipe = trained("autoencoder", size=size, colour=colour)
    part = recipe.part("test").take(slice(6))
    x = recipe.examples(part)
    assert x.shape == (6, *recipe.shape)
    found = recipe.evaluate(part, draws=1)["squared_error_per_dim"]
    assert found == pytest.approx(float(((recipe.reconstruct(x) - x) ** 2).mean()), rel=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_dropout_and_the_data_s_missing_cotangent_reach_the_nets(model):
    recipe, config = MODELS[model]
    made = recipe(config(**TINY, size=16, dropout=0.25)).model
    for net in (made.encoder, made.decoder):
        rates = [layer.rate for layer in net.layers if isinstance(layer, Dropout)]
        assert rates == [0.25] * 3
    assert made.encoder.layers[0].reads_data
    code, pullback = made.encoder(np.zeros((1, 16, 16, 1), dtype=np.float32))
    assert pullback(code) is None


@pytest.mark.parametrize("data", ["digits", "shapes"])
def test_convolutional_nets_see_the_images_that_fully_connected_ones_see(data):
    conv = VaeRecipe(VaeConfig(**TINY | {"data": data}))
    flat = VaeRecipe(VaeConfig(**TINY | {"data": data, "net": "mlp"}))
    rows = slice(0, 4)
    seen, want = (recipe.batch(1, rows)[0] for recipe in (conv, flat))
    assert want.shape == (4, 64)
    np.testing.assert_array_equal(conv.images(seen), flat.images(want))
    np.testing.assert_array_equal(flat.images(want), seen)


def test_principal_components_of_fewer_images_than_pixels():
    recipe = AutoencoderRecipe(AutoencoderConfig(**TINY, size=8))
    recipe.fitted = recipe.fitted.take(slice(20))
    x = recipe.fitted.x.reshape(20, 64)
    mean = x.mean(axis=0)
    _, _, axes = np.linalg.svd(x - mean, full_matrices=False)
    part = recipe.part("test").take(slice(30))
    gap = part.x.reshape(30, 64) - mean
    found = recipe.evaluate(part, draws=1)["baselines"]
    rest = gap - gap @ axes[:3].T @ axes[:3]
    assert found["3 principal components"] == pytest.approx(np.mean(rest**2))
    assert found["mean image"] == pytest.approx(np.mean(gap**2))


@pytest.mark.parametrize("model", MODELS)
def test_the_width_that_is_not_given_depends_on_the_net(model):
    _, config = MODELS[model]
    assert config().width == 256
    assert config(net="conv").width == 32
    assert config(net="conv", width=8).width == 8


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A convolutional run on colour images, unbroken, and the same one stopped and resumed."""
    flags = ["--data", "shapes", "--size", "16", "--colour", "--net", "conv", "--width", "8"]
    flags += ["--latent", "1", "--batch-size", "4", "--steps", "4", "--quiet", "--dropout", "0.3"]
    root = tmp_path_factory.mktemp("conv")
    whole, broken = root / "whole", root / "broken"
    assert main(["train", "vae", *flags, "--out", str(whole)]) == 0
    assert main(["train", "vae", *flags, "--out", str(broken), "--stop-at", "3"]) == 0
    assert main(["train", "vae", "--resume", str(broken), "--net", "conv", "--quiet"]) == 0
    return whole, broken


def test_a_stopped_convolutional_run_resumed_is_the_unbroken_run(runs):
    whole, broken = runs
    with np.load(whole / "checkpoint.npz") as a, np.load(broken / "checkpoint.npz") as b:
        assert set(a.files) == set(b.files)
        for name in a.files:
            assert a[name].tobytes() == b[name].tobytes(), name
    assert (whole / "metrics.csv").read_bytes() == (broken / "metrics.csv").read_bytes()


def test_a_colour_run_goes_the_whole_way(runs, capsys):
    run, _ = runs
    config = json.loads((run / "config.json").read_text("utf-8"))
    assert (config["size"], config["colour"], config["net"]) == (16, True, "conv")
    assert main(["evaluate", str(run), "--draws", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["examples"], found["dims"], found["levels"]) == (500, 768, 256)
    assert found["baselines"]["uniform"] == 8.0
    assert main(["sample", str(run), "-n", "3"]) == 0
    with np.load(run / "samples.npz", allow_pickle=False) as archive:
        assert archive["x"].shape == (3, 16, 16, 3)
    names = {p.name for p in (run / "figures").iterdir()}
    wanted = {"loss.png", "latent_grid.png", "samples.png", "reconstructions_test.png"}
    assert names >= wanted


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--size", "16"], "digits are 8×8 pixels and grey; for 16×16 pixels add --data shapes"),
        (["--size", "7"], "8×8 pixels and grey; shapes have 8, 16, 32, 64 pixels a side, none 7"),
        (["--colour"], "for 8×8 pixels in colour add --data shapes"),
        (["--data", "shapes", "--size", "9"], "shapes have 8, 16, 32, 64 pixels a side, got 9"),
        (["--net", "conv", "--depth", "3"], "--depth is for fully connected nets"),
        (["--net", "conv", "--depth", "2"], "--depth is for fully connected nets"),
        (["--net", "conv", "--width", "12"], "--width must be a multiple of 8 for --net conv"),
        (["--width", "-1"], "--width must be at least 1, or 0 for the default, got -1"),
        (["--data", "shapes", "--batch-size", "2001"], "at most the 2000 training examples"),
    ],
)
@pytest.mark.parametrize("model", MODELS)
def test_bad_flags_are_one_sentence_and_leave_nothing(
    tmp_path, capsys, monkeypatch, model, flags, what
):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["train", model, *flags])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    (complaint,) = capsys.readouterr().err.strip().splitlines()
    assert what in complaint
    assert list(tmp_path.iterdir()) == []
