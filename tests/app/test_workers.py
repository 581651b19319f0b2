"""app/workers.py: how many share a batch, and why not more; what a run keeps of it."""

import json
import os
import re
import sys
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from scratchgen.app import cli, workers
from scratchgen.app.cli import main
from scratchgen.app.experiments import training
from scratchgen.app.recipes import VaeRecipe
from scratchgen.app.recipes.vae import VaeConfig
from scratchgen.app.runs import RunError, record_changes, recorded_workers
from scratchgen.app.workers import AUTO, SMALL, Crew, Sharing, crew, processes
from scratchgen.core import twins
from scratchgen.core.arrays import backend
from scratchgen.core.parallel import Solo
from scratchgen.core.twins import disabled
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.layers.normalisation import BatchNorm
from scratchgen.training.fit import NotFinite


@pytest.fixture
def four_cores(monkeypatch):
    """Four of them, and threads to run on them."""
    monkeypatch.setattr(workers, "cores", lambda: 4)
    monkeypatch.setattr(workers, "is_there", lambda name: True)


def recipe(
    size=10**6, spatial=True, batch_size=16, width=64, backend="numpy", layers=(), shares=True
):
    """What a choice of workers looks at."""
    return SimpleNamespace(
        config=SimpleNamespace(spatial=spatial, batch_size=batch_size, width=width),
        shape=(32, 32, 1),
        params=SimpleNamespace(theta=np.broadcast_to(np.float32(0), (size,))),
        born=SimpleNamespace(name=backend),
        name="model",
        shares_samples=shares,
        whole=Sequential(Linear(1, 1), *layers),
    )


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("given", "number"),
    [
        ({}, 4),
        ({"size": 10}, 4),
        ({"size": SMALL, "spatial": False}, 4),
        ({"size": SMALL - 1, "spatial": False}, 1),
        ({"batch_size": 15}, 3),
        ({"batch_size": 8}, 2),
        ({"batch_size": 7}, 1),
        ({"batch_size": 1}, 1),
        ({"width": 24}, 3),
        ({"width": 16}, 2),
        ({"width": 8}, 1),
        ({"width": 8, "batch_size": 31}, 1),
        ({"width": 8, "batch_size": 32}, 2),
        ({"width": 8, "spatial": False}, 4),
        ({"backend": "cupy"}, 1),
        ({"layers": [BatchNorm(1)]}, 1),
        ({"layers": [Sequential(BatchNorm(1))]}, 1),
    ],
)
@pytest.mark.parametrize("asked", [None, AUTO])
def test_every_core_works_where_that_pays_and_may_be(given, number, asked):
    assert crew(recipe(**given), Sharing(asked)) == Crew(number, 1)


@pytest.mark.usefixtures("four_cores")
def test_auto_gives_way_to_what_else_was_asked_for():
    assert crew(recipe(), Sharing(AUTO, blas_threads=2)) == Crew(1, 2)
    assert crew(recipe(), Sharing(AUTO, fast=False)) == Crew(1, 1)


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("given", "sharing", "why"),
    [
        ({"backend": "cupy"}, {}, "--backend cupy .*; use --workers 1"),
        ({"layers": [BatchNorm(1)]}, {}, "batch norm .*; use --workers 1"),
        ({}, {"blas_threads": 2}, "2 threads of their own.*; use --blas-threads 1, or --workers 1"),
        ({}, {"fast": False}, "--no-fast .*, or use --workers 1"),
    ],
)
def test_several_are_refused_where_a_batch_must_not_be_shared(given, sharing, why):
    with pytest.raises(ValueError, match=f"^3 workers cannot share these batches: .*{why}"):
        crew(recipe(**given), Sharing(3, **sharing))
    assert crew(recipe(**given), Sharing(1, **sharing)).number == 1


@pytest.mark.usefixtures("four_cores")
def test_numbers_are_taken_at_their_word():
    small = recipe(size=10, spatial=False)
    assert [crew(small, Sharing(n)).number for n in (1, 2, 16)] == [1, 2, 16]
    for n in (-1, 0, 17):
        with pytest.raises(ValueError, match=f"between 1 and the 16 examples of a batch, got {n}"):
            crew(small, Sharing(n))


@pytest.mark.usefixtures("four_cores")
def test_what_auto_chooses_may_also_be_asked_for():
    options = {
        "size": (10, 10**6),
        "spatial": (True, False),
        "batch_size": (1, 2, 8, 100),
        "backend": ("numpy", "cupy"),
        "layers": ((), (BatchNorm(1),)),
    }
    for values in product(*options.values()):
        made = recipe(**dict(zip(options, values, strict=True)))
        for blas, fast in product((1, 2), (True, False)):
            auto = crew(made, Sharing(AUTO, blas, fast))
            assert crew(made, Sharing(auto.number, blas, fast)) == auto


@pytest.fixture
def linux(monkeypatch):
    """A system on which a process can be copied."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "fork", lambda: 0, raising=False)


@pytest.mark.usefixtures("four_cores", "linux")
@pytest.mark.parametrize(
    ("given", "number"),
    [
        ({}, 4),
        ({"size": 10, "spatial": False, "batch_size": 1}, 4),
        ({"layers": [BatchNorm(1)]}, 4),
        ({"backend": "cupy"}, 1),
        ({"shares": False}, 1),
    ],
)
@pytest.mark.parametrize("asked", [None, AUTO])
def test_samples_are_shared_whatever_a_batch_is(given, number, asked):
    assert processes(recipe(**given), Sharing(asked)) == number
    assert processes(recipe(**given), Sharing(number)) == number


@pytest.mark.usefixtures("four_cores", "linux")
@pytest.mark.parametrize(
    ("given", "sharing", "why"),
    [
        ({"backend": "cupy"}, {}, "--backend cupy .*; use --workers 1"),
        ({"shares": False}, {}, "of a model are drawn in one process; use --workers 1"),
        ({}, {"blas_threads": 2}, "2 threads of their own.*; use --blas-threads 1, or --workers 1"),
        ({}, {"fast": False}, "--no-fast .*, or use --workers 1"),
    ],
)
def test_several_are_refused_where_samples_cannot_be_shared(given, sharing, why):
    assert processes(recipe(**given), Sharing(AUTO, **sharing)) == 1
    assert processes(recipe(**given), Sharing(1, **sharing)) == 1
    with pytest.raises(ValueError, match=f"^3 workers cannot share these samples: .*{why}"):
        processes(recipe(**given), Sharing(3, **sharing))


@pytest.mark.usefixtures("four_cores", "linux")
def test_a_process_is_copied_unasked_on_linux_only(monkeypatch):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        processes(recipe(), Sharing(0))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert processes(recipe(), Sharing(AUTO)) == 1
    assert processes(recipe(), Sharing(3)) == 3
    monkeypatch.delattr(os, "fork")
    with pytest.raises(ValueError, match="cannot copy a process; use --workers 1"):
        processes(recipe(), Sharing(3))


@pytest.mark.parametrize("share", [crew, processes])
def test_without_the_folder_there_is_one(share, monkeypatch):
    monkeypatch.setitem(sys.modules, "scratchgen.fast", None)
    monkeypatch.setattr(workers, "cores", lambda: 4)
    assert share(recipe(), Sharing(AUTO)) in (1, Crew(1, 1))
    with pytest.raises(ValueError, match="scratchgen/fast, which is not there; use --workers 1"):
        share(recipe(), Sharing(2))


def test_samples_of_a_vae_are_not_shared_silently(tmp_path, capsys):
    out, small = tmp_path / "run", ["--width", "8", "--steps", "1", "--batch-size", "8"]
    assert main(["train", "vae", *small, "--quiet", "--out", str(out)]) == 0
    assert main(["sample", str(out), "-n", "2", "--workers", "2"]) == 2
    assert "2 workers cannot share these samples" in capsys.readouterr().err
    assert main(["sample", str(out), "-n", "2", "--workers", "auto"]) == 0


def test_cores_are_those_of_this_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 3, 5}, raising=False)
    assert workers.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert workers.cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert workers.cores() == 1


def test_one_works_alone_and_says_so():
    assert isinstance(Crew(1, 2).group(), Solo)
    assert str(Crew(1, 2)) == "1 thread, BLAS with 2"
    assert str(Crew(3, 1)) == "3 threads, BLAS with 1 each"


def test_a_run_remembers_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr(twins, "_twins", {abs: []})  # whether scratchgen/fast is there or not
    path, born = tmp_path / "environment.json", backend("numpy")
    assert recorded_workers(tmp_path) == 1
    path.write_text('{"numpy": "2"}', "utf-8")
    assert recorded_workers(tmp_path) == 1
    assert record_changes(tmp_path, born, 3) == []  # nothing was known of it
    assert recorded_workers(tmp_path) == 3
    with disabled():
        assert record_changes(tmp_path, born, 2) == ["active_twins", "workers"]
    kept = json.loads(path.read_text("utf-8"))
    assert (kept["numpy"], kept["workers"], kept["active_twins"]) == ("2", 2, [])
    with disabled():
        assert record_changes(tmp_path, born, 2) == []
    for bad in ("0", '"many"', "2.0", "true", "null"):
        path.write_text(f'{{"workers": {bad}}}', "utf-8")
        with pytest.raises(RunError, match="its workers are"):
            recorded_workers(tmp_path)


@pytest.mark.parametrize("bad", ["0", "-2", "33", "many", "1.5", ""])
def test_a_bad_number_is_one_sentence_and_leaves_nothing(bad, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["train", "vae", "--batch-size", "32", f"--workers={bad}"])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--workers" in line
    assert line.startswith("scratchgen: ")
    assert not any(tmp_path.iterdir())


def test_a_run_says_and_notes_who_works(tmp_path, capsys):
    small = ["--width", "8", "--depth", "1", "--steps", "2", "--batch-size", "8"]
    out = tmp_path / "run"
    assert main(["train", "vae", *small, "--stop-at", "1", "--out", str(out)]) == 0
    assert "numpy float32, 1 thread, BLAS with 1" in capsys.readouterr().err.splitlines()[0]
    assert recorded_workers(out) == 1
    assert main(["--blas-threads", "2", "train", "--resume", str(out)]) == 0
    note, said = capsys.readouterr().err.splitlines()[:2]
    assert note == f"note: {out} was trained with other blas; last digits may depend on that"
    assert "numpy float32, 1 thread, BLAS with 2" in said


COMMANDS = (
    ["demo"],
    ["train", "vae"],
    ["sample", "RUN"],
    ["evaluate", "RUN"],
    ["info"],
    ["reproduce", "vae-digits"],
    ["explain", "VAE-1"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_no_fast_leaves_the_twins_out_of_every_command(command, monkeypatch):
    seen = []
    monkeypatch.setattr(twins, "_twins", {})
    twins.register(twins.readable(abs), len, applies=bool)
    monkeypatch.setattr(cli, "_run", lambda given: seen.append(len(twins.active())))
    for flags in (["--no-fast"], []):
        main([*flags, *command])
    assert seen == [0, 1]


def test_a_run_notes_which_twins_it_had(tmp_path, capsys):
    small = ["--width", "8", "--depth", "1", "--steps", "1", "--batch-size", "8", "--quiet"]
    for flags, want in ((["--no-fast"], []), ([], twins.active())):
        out = tmp_path / f"run{len(flags)}"
        assert main([*flags, "train", "vae", *small, "--out", str(out)]) == 0
        environment = json.loads((out / "environment.json").read_text("utf-8"))
        assert environment["active_twins"] == want
        assert main([*flags, "info", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["active_twins"] == want


@pytest.fixture
def side_by_side(monkeypatch):
    """Train "a" and "b" in invented processes, which end with those codes; None cannot start.

    Returns what was done, in order, and the commands.
    """
    done, commands = [], []

    def run(*codes):
        ends = iter(zip("ab", codes, strict=True))

        class Started:
            def __init__(self, command):
                self.name, self.code = next(ends)
                if self.code is None:
                    raise PermissionError(f"{self.name} cannot start")
                self.folder = command[command.index("--resume") + 1]
                commands.append(cli.parser().parse_args([str(word) for word in command[3:]]))

            def wait(self):
                assert self.folder.is_dir()
                done.append(f"wait {self.name}")
                if isinstance(self.code, type):
                    self.code, code = 143, self.code
                    raise code
                return self.code

            def terminate(self):
                done.append(f"terminate {self.name}")

        monkeypatch.setattr(training.subprocess, "Popen", Started)
        small = VaeConfig(width=8, depth=0, steps=1, batch_size=2)
        training.train_side_by_side({"a": VaeRecipe(small), "b": VaeRecipe(small)})

    return run, done, commands


@pytest.mark.parametrize("readable_only", [True, False])
def test_nets_trained_side_by_side_have_one_worker_each(side_by_side, readable_only, monkeypatch):
    run, _, commands = side_by_side
    monkeypatch.setattr(training.twins, "active", lambda: [] if readable_only else ["one"])
    with pytest.raises(NotFinite):
        run(3, 3)
    assert [given.workers for given in commands] == [1, 1]
    assert [given.no_fast for given in commands] == 2 * [readable_only]


@pytest.mark.parametrize(
    ("codes", "kind", "who"),
    [
        ((0, 3), NotFinite, "b (exit code 3)"),
        ((3, 3), NotFinite, "a (exit code 3), b (exit code 3)"),
        ((2, 0), ChildProcessError, "a (exit code 2)"),
        ((3, -9), ChildProcessError, "a (exit code 3), b (exit code -9)"),
    ],
)
def test_it_is_said_which_of_them_failed_and_how(
    side_by_side, monkeypatch, capsys, codes, kind, who
):
    run, done, _ = side_by_side
    with pytest.raises(kind, match=f"^training did not end well: {re.escape(who)}$"):
        run(*codes)
    assert done == ["wait a", "wait b"]
    monkeypatch.setattr(cli, "_run", lambda given: run(*codes))
    assert cli.main(["info"]) == (3 if kind is NotFinite else 2)
    assert capsys.readouterr().err == f"scratchgen: training did not end well: {who}\n"


@pytest.mark.parametrize(
    ("codes", "error", "ends"),
    [
        ((0, None), PermissionError, ["terminate a", "wait a"]),
        (
            (KeyboardInterrupt, 0),
            KeyboardInterrupt,
            ["wait a", "terminate a", "terminate b", "wait a", "wait b"],
        ),
    ],
)
def test_none_of_them_outlives_the_others(side_by_side, codes, error, ends):
    run, done, _ = side_by_side
    with pytest.raises(error):
        run(*codes)
    assert done == ends
