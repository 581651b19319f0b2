"""The benchmarks' harness, with toy contenders that keep a clock of their own; and the U-Nets."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"
TOY = """
import os, sys, time
sys.path.insert(0, {folder!r})
import numpy as np
from harness import serve

name, cost, value, log = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
clock = 0.0
time.perf_counter = lambda: clock

class Toy:
    def step(self):
        global clock
        clock += cost
        with open(log, "a") as steps:
            steps.write(name)

    def result(self):
        threads = [float(os.environ[f"{{pool}}_NUM_THREADS"]) for pool in ("OMP", "OPENBLAS")]
        return {{"value": np.array([value, 2.0]), "threads": np.array(threads)}}

serve(Toy())
"""
seconds = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=9)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """The benchmarks can be imported."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def toys(tmp_path):
    """Commands of a and b, which cost 0.5 and 0.25 seconds a step; b's value can be chosen."""
    script, log = tmp_path / "toy.py", str(tmp_path / "log")
    script.write_text(TOY.format(folder=str(BENCHMARKS)), "utf-8")

    def commands(value: float) -> dict[str, list[str]]:
        return {
            "a": [str(script), "a", "0.5", "1.0", log],
            "b": [str(script), "b", "0.25", str(value), log],
        }

    return commands


def test_contenders_agree_and_take_turns(toys, tmp_path):
    """Each turn is one untimed step and as many timed ones as fit; the clocks are exact."""
    compared = import_module("harness").compare("toy", toys(1.00001), rounds=3, threads=1)
    # two turns of one step each to warm up and to learn the cost, then 1.5 seconds a turn
    assert (tmp_path / "log").read_text() == "aaaa" + "bbbb" + 3 * ("aaaa" + "bbbbbbb")
    assert compared["largest_difference"] == pytest.approx(0.5e-5)
    times = {"a": 0.5, "b": 0.25}
    for result, (name, cost) in zip(compared["results"], times.items(), strict=True):
        assert result.pop("pools") is not None
        measured = {"median_seconds": cost, "low": cost, "high": cost}
        assert result == {"workload": "toy", "implementation": name, **measured}
    ratio = {"workload": "toy", "implementation": "a", "over": "b"}
    assert compared["ratios"] == [{**ratio, "median": 2.0, "low": 2.0, "high": 2.0}]


def test_the_number_of_threads_is_given_to_every_worker(toys, monkeypatch):
    """Whatever stands in the environment; pools report what they made of it."""
    for pool in ("OMP", "OPENBLAS"):
        monkeypatch.setenv(f"{pool}_NUM_THREADS", "2")
    harness = import_module("harness")
    with harness.Worker(toys(1.0)["a"], threads=1) as worker:
        assert worker.result()["threads"].tolist() == [1.0, 1.0]
        assert all(pool.endswith(" 1") for pool in json.loads(worker.ask("pools")))


def test_a_worker_that_ends_is_named(tmp_path):
    harness = import_module("harness")
    (tmp_path / "ends.py").write_text("", "utf-8")
    with harness.Worker([str(tmp_path / "ends.py")], threads=1) as worker:
        worker.wait()
        with pytest.raises(RuntimeError, match=r"ends\.py ended"):
            worker.seconds(1)


@given(seconds, st.data())
def test_ratios_are_paired_round_by_round(rival, data):
    """A rival that is slow in the rounds in which we are slow leaves no trace in the ratio."""
    paired_ratio = import_module("harness").paired_ratio
    factors = data.draw(st.lists(st.floats(0.1, 10.0), min_size=len(rival), max_size=len(rival)))
    ours = [b * factor for b, factor in zip(rival, factors, strict=True)]
    expected = (median(factors), min(factors), max(factors))
    np.testing.assert_allclose(paired_ratio(ours, rival), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="shorter|longer"):
        paired_ratio([*ours, 1.0], rival)


@given(st.floats(1e-3, 1e3), st.floats(0.0, 1e-3), st.integers(0, 2))
def test_agreement_is_of_each_array_in_its_own_units(scale, error, index):
    """An array a thousandth of the size of another is held as closely as that one."""
    harness = import_module("harness")
    expected = {"large": np.full(3, 1e6), "small": scale * np.array([1.0, -1.0, 0.5])}
    off = expected["small"].copy()
    off[index] += error * scale
    results = {"ours": expected, "theirs": {**expected, "small": off}}
    if error > harness.TOLERANCE * (1.0 + 1e-9):
        with pytest.raises(harness.Disagreement, match="theirs and ours differ in small"):
            harness.require_agreement(results)
    elif error < harness.TOLERANCE * (1.0 - 1e-9):
        difference = harness.require_agreement(results)
        assert difference == pytest.approx(error, rel=1e-6, abs=1e-15)


@pytest.mark.parametrize(
    "theirs",
    [{"a": np.array([np.nan, 1.0])}, {"a": np.ones(1)}, {"b": np.ones(2)}, {}],
    ids=["nan", "shape", "name", "nothing"],
)
def test_what_cannot_be_compared_does_not_agree(theirs):
    harness = import_module("harness")
    with pytest.raises(harness.Disagreement):
        harness.require_agreement({"ours": {"a": np.ones(2)}, "theirs": theirs})


@pytest.fixture
def run_script(monkeypatch, toys):
    """unet_step's main, as if PyTorch were there, with toys for contenders."""
    script = import_module("unet_step")
    monkeypatch.setattr(script, "find_spec", lambda name: object())
    monkeypatch.setattr(script, "machine", lambda threads, libraries: {"threads": threads})

    def run(value: float, *options: str) -> None:
        monkeypatch.setattr(script, "_commands", lambda workload: toys(value))
        monkeypatch.setattr(sys, "argv", ["unet_step.py", *options])
        script.main()

    return run


def test_the_script_prints_and_writes_what_it_measured(run_script, tmp_path, capsys):
    path = tmp_path / "measured.json"
    run_script(1.0, "--rounds=1", "--threads=1", "--json", str(path))
    written, said = json.loads(path.read_text("utf-8")), capsys.readouterr().out
    assert written["machine"] == {"threads": 1}
    workloads = ["unet-8x8x1", "unet-32x32x3"]
    results = [(row["workload"], row["implementation"]) for row in written["results"]]
    assert results == [(workload, name) for workload in workloads for name in "ab"]
    assert [(row["workload"], row["over"]) for row in written["ratios"]] == [
        (workload, "b") for workload in workloads
    ]
    lines = [" ".join(line.split()) for line in said.splitlines()]
    for workload in workloads:
        first = lines.index(workload)
        assert lines[first + 2 : first + 5] == [
            "a, ms a step 500.0 500.0 500.0",
            "b, ms a step 250.0 250.0 250.0",
            "ratio to b 2.00 2.00 2.00",
        ]


def test_the_script_fails_where_contenders_disagree(run_script):
    with pytest.raises(SystemExit, match="unet-8x8x1: b and a differ in value") as stopped:
        run_script(1.001, "--rounds=1")
    assert isinstance(stopped.value.code, str)  # printed on standard error, with exit code 1


def test_the_script_asks_for_pytorch_in_one_sentence():
    """A module that is None in sys.modules is one that is not installed."""
    hidden = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
        f"sys.path.insert(0, {str(BENCHMARKS)!r}); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", hidden, str(BENCHMARKS / "unet_step.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 4
    assert done.stderr.strip() == import_module("unet_step").TORCH_HINT
    assert "pip install" in done.stderr


def test_machine_names_the_processor_and_the_versions():
    about = import_module("report").machine(2, ("numpy",))
    assert about["numpy"] == np.__version__
    assert about["cpu"]
    assert about["cores"] >= 1


@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
def test_pytorch_computes_the_same_gradient(memory_format):
    """On a small net with everything the benchmark's nets have: halving, doubling, attention.

    With one channel a group, a bias before a norm would have no gradient but rounding errors.
    """
    pytest.importorskip("torch", reason="PyTorch comes with the [bench] extra only")
    harness, ours, theirs = map(import_module, ("harness", "unet_ours", "unet_torch"))
    small = ours.Workload(size=8, channels=3, width=16, multipliers=(1, 2, 2), batch=3)
    mirror = theirs.TorchUnetStep(small, theirs.FORMATS[memory_format])
    results = {"scratchgen": ours.UnetStep(small).result(), "torch": mirror.result()}
    assert len(results["torch"]) > 50
    harness.require_agreement(results)
    mirror.step()  # which forgets the gradient again
    assert all(leaf.grad is None for leaf in mirror.leaves.values())
