"""Every example runs, is short, and calls tested losses instead of restating them."""

import runpy
import subprocess
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from scratchgen.app import plots
from scratchgen.app.experiments import families
from scratchgen.app.recipes import ClassifierRecipe, GanRecipe, VaeRecipe
from scratchgen.app.recipes.base import Sampled
from scratchgen.app.recipes.gan import GanConfig
from scratchgen.app.recipes.vae import VaeConfig
from scratchgen.core.module import Parameter
from scratchgen.data.digits import load_digits
from scratchgen.models.gan import Gan
from scratchgen.training.fit import batch_indices

EXAMPLES = Path(__file__).parents[1] / "examples"
# make_digits.py needs scikit-learn and rewrites the data set, so it is not run here
SCRIPTS = sorted(p for p in EXAMPLES.glob("*.py") if p.stem != "make_digits")
UNITS = {
    "autoencoder_pca": "squared error",
    "dcgan_digits": "classes present",
    "ddpm_densities": "nats",
    "ddpm_digits": "bits/dim",
    "families_digits": "nats per image",
    "forward_densities": "total variation",
    "from_vae_to_diffusion": "nats",
    "gan_losses": "not in 5",
    "hvae_digits": "bits/dim",
    "latent_arithmetic": "of class c",
    "linear_vae": "nats",
    "vae_digits": "bits/dim",
    "vdm_digits": "bits/dim",
    "wgan_gp_ring": "modes covered",
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_smoke(script, tmp_path):
    command = [sys.executable, str(script), "--smoke"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert UNITS.get(script.stem, "ms a step") in done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_examples_are_short_and_listed(script):
    lines = script.read_text("utf-8").splitlines()
    assert len(lines) <= 100
    assert f"`{script.name}`" in (EXAMPLES / "README.md").read_text("utf-8")


@pytest.mark.equation("VAE-10")
@pytest.mark.equation("VAE-8")
def test_a_direction_not_worth_its_rate_collapses(tmp_path):
    """The whole example: two latents at a small decoder variance, one where τ lies above λ₂."""
    command = [sys.executable, str(EXAMPLES / "linear_vae.py")]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    gaps = [float(line.split("gap")[1]) for line in said.splitlines() if "gap" in line]
    assert len(gaps) == 2
    assert all(abs(gap) < 1e-6 for gap in gaps)
    assert "active latents 2 of 2, |cosine| to their axes [1. 1.]" in said
    assert "active latents 1 of 2, |cosine| to their axes [1.]" in said


@pytest.mark.equation("VDM-1")
def test_one_bound_from_the_vae_to_diffusion(tmp_path):
    """Every term of the ladders and the sums of the chains, in all the digits that are printed."""
    command = [sys.executable, str(EXAMPLES / "from_vae_to_diffusion.py")]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in said.splitlines()]
    found = [row[1:] for row in rows if row and row[0] in ("VAE", "ladder", "chain", "diffusion")]
    vae, ladder, chain, diffusion, long_ladder, long_chain = (list(map(float, r)) for r in found)
    for got, want in ((ladder, vae), (chain, vae), (long_ladder, diffusion)):
        assert got == pytest.approx(want, abs=2e-9)
    assert long_chain[-1] == pytest.approx(diffusion[-1], abs=2e-9)
    assert long_chain[1] != pytest.approx(diffusion[1], rel=0.1)


@pytest.mark.equation("GAN-4")
@pytest.mark.equation("GAN-5")
@pytest.mark.equation("GAN-14")
@pytest.mark.parametrize(
    ("loss", "cost", "in_d", "in_a"),
    [
        ("minimax, log(1 − D)", lambda d: np.log(1 - d), lambda d: -1 / (1 - d), lambda d: -d),
        ("non-saturating, −log D", lambda d: -np.log(d), lambda d: -1 / d, lambda d: d - 1),
        ("KL, −a", lambda d: np.log(1 / d - 1), lambda d: -1 / (d * (1 - d)), lambda d: 0 * d - 1),
    ],
    ids=["minimax", "non-saturating", "KL"],
)
def test_costs_and_slopes_over_what_the_discriminator_says(loss, cost, in_d, in_a):
    """The curves that are drawn, from a fake that is obvious to one that passes for data."""
    example, d = runpy.run_path(str(EXAMPLES / "gan_losses.py")), np.linspace(0.001, 0.999, 999)
    drawn = example["curves"](example["LOSSES"][loss], np.log(d / (1 - d)))
    np.testing.assert_allclose(drawn, [cost(d), in_d(d), in_a(d)], rtol=1e-12, atol=1e-12)


@pytest.mark.equation("GAN-6")
def test_the_gan_of_the_example_is_the_one_of_the_command_line():
    """A few rounds: the same weights, average and running statistics, bit for bit."""
    recipe = GanRecipe(GanConfig(steps=3, seed=5))
    recipe.fit.until(3, quiet=True)
    train = runpy.run_path(str(EXAMPLES / "dcgan_digits.py"))["train"]
    gan, ema = train(recipe.examples(recipe.fitted), 3, recipe.stream)
    np.testing.assert_array_equal(ema.params.theta, recipe.params.theta)
    np.testing.assert_array_equal(ema.average, recipe.ema.average)
    np.testing.assert_array_equal(gan.discriminator_params.theta, recipe.opponent.params.theta)
    assert ema.params.buffers.keys() == recipe.params.buffers.keys() != set()
    for name, buffer in ema.params.buffers.items():
        np.testing.assert_array_equal(buffer.value, recipe.params.buffers[name].value)


@pytest.mark.equation("GAN-12")
def test_the_penalised_game_of_the_example_is_the_one_of_the_command_line():
    """A few rounds on the same batches: the same weights of both sides and average, bit for bit."""
    recipe = GanRecipe(GanConfig(data="ring8", loss="wgan-gp", steps=3, seed=5))
    recipe.fit.until(3, quiet=True)
    x, order = recipe.examples(recipe.fitted), recipe.stream.at("batches")
    batches = (x[batch_indices(order, len(x), 128, batch)] for batch in count())
    train = runpy.run_path(str(EXAMPLES / "wgan_gp_ring.py"))["train"]
    gan, ema = train(lambda noise: next(batches), 3, recipe.stream)
    np.testing.assert_array_equal(ema.average, recipe.ema.average)
    played = dict(gan.named(Parameter))
    want = dict(recipe.gan.named(Parameter))
    assert played.keys() == want.keys() != set()
    for name, parameter in played.items():
        np.testing.assert_array_equal(parameter.read().value, want[name].read().value)


def test_families_are_compared_by_their_averaged_weights_and_shown_by_their_samples(
    monkeypatch, tmp_path, capsys
):
    small = {"width": 8, "batch_size": 4, "ema": 0.5}
    made = {"VAE": VaeRecipe(VaeConfig(**small)), "GAN": GanRecipe(GanConfig(**small))}
    drawn, drawings = {}, []

    def measured(recipe, judge, part):
        np.testing.assert_array_equal(recipe.params.theta, recipe.ema.average)
        assert recipe.fit.steps_done == 3
        drawn[recipe.name] = np.full((20, 8, 8, 1), float(len(drawn)))
        return {"sharpness": 1.5 + len(drawn)}, {"sharpness": 1.5}, Sampled(drawn[recipe.name])

    monkeypatch.setattr(families, "families", lambda seed, data: made)
    monkeypatch.setattr(families, "measure", measured)
    monkeypatch.setattr(plots, "image_rows", lambda *given: drawings.append(given))
    monkeypatch.setattr(sys, "argv", ["", "--smoke", "--out", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "families_digits.py"), run_name="__main__")
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["VAE", "GAN", "real", "data"] in table
    assert ["sharpness", "2.500", "3.500", "1.500"] in table
    ((_, rows, title),) = drawings
    assert list(rows) == ["data", "VAE", "GAN"]
    np.testing.assert_array_equal(rows["data"], load_digits("test").x[:16])
    for name, recipe in made.items():
        np.testing.assert_array_equal(rows[name], drawn[recipe.name][:16])
    assert "minutes" not in title


@pytest.mark.equation("GAN-9")
def test_sums_of_latents_are_sums_of_concepts_where_the_generator_is_linear(
    monkeypatch, tmp_path, capsys
):
    """Images are z itself and a class is one of its coordinates: only a - b + c is bold."""
    monkeypatch.setattr(Gan, "generate", lambda gan, z, stream=None: z.reshape(-1, 8, 8, 1))
    monkeypatch.setattr(ClassifierRecipe, "opinions", lambda judge, x: x.reshape(-1, 64)[:, :10])
    monkeypatch.setattr(sys, "argv", ["", "--smoke", "--out", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "latent_arithmetic.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    few, many = ([list(map(float, row.split()[-3:])) for row in lines[i : i + 3]] for i in (1, 5))
    assert [row.split("  ")[1] for row in lines[5:8]] == ["c", "d - e + c", "a - b + c"]
    np.testing.assert_allclose(many, [[1, 0, 0], [1, 0, 0], [1, 1, 1]], atol=0.01)
    assert few[2][2] > 0.5
    assert max(few[0][2], few[1][2]) < 0.05
