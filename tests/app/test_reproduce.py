"""app/reproduce.py: recording, comparing, and what is recorded now."""

import json
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

import pytest
import scipy.stats
from threadpoolctl import threadpool_limits

from scratchgen.app import reproduce
from scratchgen.app.cli import main
from scratchgen.training.fit import NotFinite

README = Path(__file__).parents[2] / "README.md"
NAMES = list(reproduce.EXPERIMENTS)


@pytest.fixture
def invented(monkeypatch, tmp_path):
    """An experiment whose value is its seed, recorded for five seeds."""

    def experiment(seed):
        """Its seed."""
        return {"v": float(seed)}

    monkeypatch.setattr(reproduce, "EXPERIMENTS", {"invented": experiment})
    monkeypatch.setattr(reproduce, "_commit", lambda: "0123abc")
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    with threadpool_limits(1, "blas"):  # as the command does: a record says how many there were
        yield reproduce.record("invented", tmp_path)


def test_a_record_holds_mean_error_tolerance_and_where_it_came_from(invented, tmp_path):
    assert json.loads((tmp_path / "invented.json").read_text("utf-8")) == invented
    summary = invented["values"]["v"]
    assert summary["mean"] == 2.0
    assert summary["standard_error"] == pytest.approx(sqrt(2.5 / 5.0))
    assert summary["tolerance"] == pytest.approx(3.0 * sqrt(0.5) + 0.005)
    assert invented["seeds"]["3"] == {"v": 3.0}
    assert invented["commit"] == "0123abc"
    assert invented["command"] == "scratchgen reproduce invented"
    assert invented["environment"]["packages"]["numpy"]


def test_a_recorded_seed_is_compared_with_itself_and_another_with_the_mean(invented):
    own, other = reproduce.reproduce("invented", 4), reproduce.reproduce("invented", 6)
    assert own["values"]["v"]["recorded"] == 4.0
    assert other["values"]["v"]["recorded"] == 2.0
    ratio = (other["values"]["v"]["tolerance"] - 0.005) / (own["values"]["v"]["tolerance"] - 0.005)
    assert ratio == pytest.approx(scipy.stats.t.isf(0.005, 4) / 3.0 * sqrt(6.0), rel=1e-3)
    assert own["holds"]
    assert other["holds"]


@pytest.mark.parametrize("name", ["system", "blas", "active_twins", "packages"])
def test_where_the_arithmetic_is_another_a_recorded_seed_is_one_more(name, invented, monkeypatch):
    here = reproduce.environment()
    elsewhere = here | {name: {"numpy": "1.0"} if name == "packages" else "another"}
    monkeypatch.setattr(reproduce, "environment", lambda: elsewhere)
    found, one_more = reproduce.reproduce("invented", 4), reproduce.reproduce("invented", 6)
    assert found["values"]["v"]["recorded"] == 2.0
    assert found["values"]["v"]["tolerance"] == one_more["values"]["v"]["tolerance"]
    monkeypatch.setattr(reproduce, "environment", lambda: here | {"python": "another"})
    assert reproduce.reproduce("invented", 4)["values"]["v"]["recorded"] == 4.0


def test_a_value_outside_its_tolerance_is_exit_code_one(invented, monkeypatch, capsys):
    assert main(["reproduce", "invented", "--seed", "1"]) == 0
    monkeypatch.setitem(reproduce.EXPERIMENTS, "invented", lambda seed: {"v": seed + 3.0})
    capsys.readouterr()
    assert main(["reproduce", "invented", "--seed", "1", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["values"]["v"]["holds"] is False
    assert main(["reproduce", "invented", "--seed", "1"]) == 1
    assert "outside its tolerance" in capsys.readouterr().out
    monkeypatch.setitem(reproduce.EXPERIMENTS, "invented", lambda seed: {"v": float("nan")})
    assert main(["reproduce", "invented"]) == 3


def test_refusals(capsys):
    assert main(["reproduce", "nothing"]) == 2
    assert "vae-digits" in capsys.readouterr().err
    assert main(["reproduce", "linear-vae", "--seed", "-1"]) == 2
    assert main(["reproduce", "--seed", "3"]) == 2
    assert "name a result" in capsys.readouterr().err.splitlines()[-1]
    assert main(["reproduce", "--readme", "nowhere.md"]) == 2
    assert "nowhere.md: No such file" in capsys.readouterr().err
    with pytest.raises(ValueError, match="at least 3 seeds"):
        reproduce.record("linear-vae", Path("nowhere"), seeds=2)


def test_the_names_are_listed(capsys):
    assert main(["reproduce"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == NAMES


def test_an_experiment_that_is_not_recorded_stands_in_nobodys_way(
    invented, monkeypatch, tmp_path, capsys
):
    shown = reproduce.tables()
    monkeypatch.setitem(reproduce.EXPERIMENTS, "new", lambda seed: {"v": 0.0})
    assert main(["reproduce"]) == 0
    assert capsys.readouterr().out == "invented: Its seed.\nnew: not recorded yet\n"
    assert reproduce.tables() == shown
    assert main(["reproduce", "new"]) == 2
    assert capsys.readouterr().err == (
        "scratchgen: there is no recorded result 'new'; the recorded ones are invented\n"
    )
    reproduce.record("new", tmp_path)
    assert main(["reproduce", "new"]) == 0
    assert "| new | v |" in reproduce.tables()


@pytest.mark.parametrize("name", reproduce.recorded_names())
def test_recorded_files_are_consistent(name):
    found = reproduce.recorded(name)
    assert len(found["seeds"]) >= reproduce.LEAST_SEEDS
    for value, summary in found["values"].items():
        each = [seed[value] for seed in found["seeds"].values()]
        error = stdev(each) / sqrt(len(each))
        assert summary["mean"] == pytest.approx(mean(each))
        assert summary["standard_error"] == pytest.approx(error)
        assert summary["tolerance"] == pytest.approx(3.0 * error + 0.005)
    assert found["commit"] != "unknown"


def test_there_is_a_file_for_every_experiment_and_no_other():
    assert {p.name for p in reproduce.RESULTS.iterdir()} == {f"{name}.json" for name in NAMES}


def test_the_readme_shows_what_is_recorded(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text(README.read_text("utf-8"), "utf-8")
    assert main(["reproduce", "--readme", str(copy)]) == 0
    assert copy.read_text("utf-8") == README.read_text("utf-8"), "run: reproduce --readme README.md"
    (tmp_path / "other.md").write_text("no marks", "utf-8")
    assert main(["reproduce", "--readme", str(tmp_path / "other.md")]) == 2


def test_values_with_commas_in_their_names_are_crossed(monkeypatch, tmp_path):
    def summary(mean):
        return {"mean": mean, "standard_error": 0.5}

    results = {
        "two": {"bits, VAE": summary(1.0), "bits, data": summary(2.0), "recall, VAE": summary(3.0)},
        "three": {"gain, VAE, all": summary(4.0), "cost, VAE, all": summary(5.0)},
        "plain": {"a, b": summary(6.0), "c": summary(7.0)},
    }
    monkeypatch.setattr(reproduce, "EXPERIMENTS", results)
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    for name, values in results.items():
        held = {"seeds": {"0": {}}, "command": name, "values": values}
        (tmp_path / f"{name}.json").write_text(json.dumps(held), "utf-8")
    assert reproduce.tables().splitlines() == [
        "| result | value | mean ± s.e. | seeds | command |",
        "|---|---|---|---|---|",
        "| plain | a, b | 6 ± 0.5 | 1 | `plain` |",
        "| plain | c | 7 ± 0.5 | 1 | `plain` |",
        "",
        "`two`, 1 seeds:",
        "",
        "|  | VAE | data |",
        "|---|---|---|",
        "| bits | 1 ± 0.5 | 2 ± 0.5 |",
        "| recall | 3 ± 0.5 | – |",
        "",
        "`three`, 1 seeds:",
        "",
        "| gain | VAE |",
        "|---|---|",
        "| all | 4 ± 0.5 |",
        "",
        "| cost | VAE |",
        "|---|---|",
        "| all | 5 ± 0.5 |",
    ]


@pytest.mark.equation("VAE-8")
def test_the_linear_vae_reaches_the_exact_likelihood_and_the_leading_axes():
    result = reproduce.reproduce("linear-vae", seed=0)
    assert result["holds"]
    assert abs(result["values"]["gap_to_log_likelihood_nats"]["found"]) < 1e-3
    assert result["values"]["smallest_cosine_to_leading_eigenvectors"]["found"] > 0.999


def test_the_recorded_digits_reach_the_promised_bits():
    assert reproduce.recorded("vae-digits")["values"]["bits_per_dim"]["mean"] <= 2.0


@pytest.mark.parametrize("freedom", [1, 2, 4, 9])
@pytest.mark.parametrize("alpha", [0.05, 0.01 / 18])
def test_students_quantile(freedom, alpha):
    want = scipy.stats.t.isf(0.5 * alpha, freedom)
    assert reproduce.t_quantile(alpha, freedom) == pytest.approx(want, rel=2e-2)


def test_a_record_needs_finite_values_and_a_clean_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(reproduce, "_commit", lambda: "0123abc")
    monkeypatch.setattr(reproduce, "EXPERIMENTS", {"odd": lambda seed: {"v": float("nan")}})
    with pytest.raises(NotFinite, match="odd, seed 0"):
        reproduce.record("odd", tmp_path)
    assert list(tmp_path.iterdir()) == []
