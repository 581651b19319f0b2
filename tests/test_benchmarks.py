"""The benchmarks' harness, with toy contenders that keep a clock of their own; the real ones."""

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

from scratchgen.app.workers import Crew

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"
TOY = """
import os, sys, time
sys.path.insert(0, {folder!r})
import numpy as np
from worker import serve

name, cost, value, log = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
clock = 0.0
time.perf_counter = lambda: clock

class Toy:
    options = {{"kind": "toy"}}

    def step(self):
        global clock
        clock += cost
        with open(log, "a") as steps:
            steps.write(name)

    def finish(self):
        self.held = np.ones(2_000_000)  # 16 MB

    def result(self):
        names = ("OMP_NUM_THREADS", "NPROC", "TOLD", "OPENBLAS_CORETYPE")
        told = [float(os.environ.get(n, 0)) for n in names]
        return {{"value": np.array([value, 2.0]), "told": told}}

serve(Toy())
"""
TOLD = {"TOLD": "3"}
seconds = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=9)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """The benchmarks can be imported."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def toys(tmp_path):
    """Ours, which costs 0.5 seconds a step, and two rivals; the value of one can be chosen."""
    harness, script, log = import_module("harness"), tmp_path / "toy.py", str(tmp_path / "log")
    script.write_text(TOY.format(folder=str(BENCHMARKS)), "utf-8")

    def contenders(value: float = 1.0) -> dict:
        def toy(side, name, cost, value=1.0):
            command = [str(script), name, str(cost), str(value), log]
            return harness.Contender(side, [command], 1, TOLD)

        return {
            "ours": toy(harness.OURS, "a", 0.5),
            "slow": toy("theirs", "b", 1.0, value),
            "quick": toy("theirs", "c", 0.25),
        }

    return contenders


def test_contenders_agree_and_take_turns(toys, tmp_path):
    """Each turn is one untimed step or more and as many timed ones as fit; the clocks are exact."""
    compared = import_module("harness").compare("toy", toys(1.00001), rounds=3, turn=3.0)
    # three turns to warm up and to learn the cost, each of one untimed step and a timed one
    first, a, b, c = "aaaaaabbbbbbcccccc", 7 * "a", 4 * "b", (12 + 1 + 1) * "c"
    assert (tmp_path / "log").read_text() == first + (a + b + c) + (b + c + a) + (c + a + b)
    (agreed,) = compared["agreement"]
    assert agreed["workload"] == "toy"
    assert agreed["largest_difference"] == pytest.approx(0.5e-5)
    times = {"ours": 0.5, "slow": 1.0, "quick": 0.25}
    for result, (name, cost) in zip(compared["results"], times.items(), strict=True):
        assert result["options"]["kind"] == "toy"
        assert result["options"]["environment"] == TOLD
        assert result["implementation"] == name
        assert [result[k] for k in ("median_seconds", "low", "high")] == [cost, cost, cost]
        assert 14e6 < result["peak_bytes"] < 60e6
    ratios = {
        (ratio["implementation"], ratio["over"]): (ratio["median"], ratio["fastest"])
        for ratio in compared["ratios"]
    }
    assert ratios == {("ours", "quick"): (2.0, True), ("ours", "slow"): (0.5, False)}


def test_without_rounds_contenders_only_have_to_agree(toys, tmp_path):
    compared = import_module("harness").compare("toy", toys(), rounds=0, turn=1.0)
    assert compared == {"agreement": [{"workload": "toy", "largest_difference": 0.0}]}
    assert not (tmp_path / "log").exists()


def test_several_processes_work_at_once_and_the_slowest_counts(toys):
    """Their results are one behind the other, and their memory adds up."""
    harness, both = import_module("harness"), toys(3.0)
    pair = both["ours"]._replace(commands=both["ours"].commands + both["slow"].commands)
    with harness.Worker(pair) as worker:
        assert worker.result()["value"].tolist() == [1.0, 2.0, 3.0, 2.0]
        assert worker.seconds(2) == 1.0
        assert 28e6 < worker.peak_bytes() < 120e6
        assert worker.options()["processes"] == 2


def test_threads_and_environment_are_given_to_every_process(toys, monkeypatch):
    """Whatever stands in the environment, which chooses no kernels; pools report what they do."""
    for name in ("OMP_NUM_THREADS", "TOLD", "OPENBLAS_CORETYPE"):
        monkeypatch.setenv(name, "2")
    with import_module("harness").Worker(toys()["ours"]) as worker:
        assert worker.result()["told"].tolist() == [1.0, 1.0, 3.0, 0.0]
        assert all(pool.endswith(" 1") for pool in worker.options()["pools"])


def test_a_process_that_ends_is_named(tmp_path):
    harness = import_module("harness")
    (tmp_path / "ends.py").write_text("", "utf-8")
    contender = harness.Contender("theirs", [[str(tmp_path / "ends.py")]], 1)
    with harness.Worker(contender) as worker:
        worker.processes[0].wait()
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
def script(monkeypatch):
    """The script as a module, as if PyTorch and JAX were there."""
    spec = import_module("importlib.util").spec_from_file_location(
        "benchmarks", BENCHMARKS / "__main__.py"
    )
    module = import_module("importlib.util").module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    monkeypatch.setattr(module, "machine", lambda threads, libraries: {"threads": threads})
    monkeypatch.setattr(module, "prepare", lambda workload, folder: None)
    return module


@pytest.fixture
def run_script(script, monkeypatch, toys):
    """Its main with toys for contenders."""

    def run(value: float, *options: str) -> None:
        monkeypatch.setattr(script, "contenders", lambda workload, folder, threads: toys(value))
        script.main(["--only", "vae-64", "--only", "unet-8", "--seconds", "1", *options])

    return run


def test_the_script_prints_and_writes_what_it_measured(run_script, tmp_path, capsys):
    path = tmp_path / "measured.json"
    run_script(1.0, "--rounds=1", "--threads=1", "--json", str(path))
    written, said = json.loads(path.read_text("utf-8")), capsys.readouterr().out
    assert written["machine"] == {"threads": 1, "rounds": 1, "seconds_a_turn": 1.0}
    workloads = ["vae-64", "unet-8"]
    results = [(row["workload"], row["implementation"]) for row in written["results"]]
    assert results == [(w, name) for w in workloads for name in ("ours", "slow", "quick")]
    assert [row["workload"] for row in written["agreement"]] == workloads
    assert len(written["ratios"]) == 4
    lines = said.splitlines()
    for workload in workloads:
        assert any(line.startswith(f"| {workload} | quick | 250 (250–250) |") for line in lines)
        assert f"| {workload} | 2.00 (2.00–2.00), quick |" in lines


def test_convolutions_are_summed_up_by_their_geometric_mean():
    def ratio(workload: str, median: float, fastest: bool = True) -> dict:
        row = {"workload": workload, "implementation": "ours", "side": "rival", "over": "quick"}
        return row | {"median": median, "low": median, "high": median, "fastest": fastest}

    ratios = [ratio("conv-a", 0.5), ratio("conv-b", 2.0), ratio("conv-b", 9.0, fastest=False)]
    lines = import_module("report").table([], [*ratios, ratio("unet-8", 7.0)]).splitlines()
    assert lines[-1] == "| all conv, geometric mean | 1.00 |"
    assert "geometric" not in import_module("report").table([], [ratio("unet-8", 7.0)])


def test_a_check_times_nothing(run_script, tmp_path, capsys):
    run_script(1.0, "--check")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[1] == "unet-8: contenders differ by at most 0.0e+00"
    assert not (tmp_path / "log").exists()


def test_the_script_fails_where_contenders_disagree(run_script):
    with pytest.raises(SystemExit, match="vae-64: slow and ours differ in value") as stopped:
        run_script(1.001, "--check")
    assert isinstance(stopped.value.code, str)  # printed on standard error, with exit code 1


@pytest.mark.parametrize(
    ("absent", "named"), [(["torch"], "torch"), (["torch", "jax"], "torch and jax")]
)
def test_the_script_asks_for_what_is_missing_in_one_sentence(absent, named):
    """A module that is None in sys.modules is one that is not installed."""
    hidden = (
        "import runpy, sys, types, importlib.machinery as m\n"
        "for name in ('torch', 'jax'):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        "    sys.modules[name].__spec__ = m.ModuleSpec(name, None)\n"
        f"sys.modules |= dict.fromkeys({absent!r})\n"
        f"sys.argv = ['benchmarks']; runpy.run_path({str(BENCHMARKS)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True)
    assert done.returncode == 4
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"this benchmark needs {named}; ")
    assert line.endswith("pip install -e '.[bench]'")


def test_machine_names_the_processor_and_the_versions():
    about = import_module("report").machine(2, ("numpy",))
    assert about["numpy"] == np.__version__
    assert about["cpu"]
    assert about["cores"] >= 1


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_threads_are_shared_among_processes(threads, tmp_path):
    """No contender has more than all, and every chain is somebody's."""
    workloads, rows_of = import_module("workloads"), import_module("workloads").rows_of
    for name in workloads.WORKLOADS:
        for contender in workloads.contenders(name, tmp_path, threads).values():
            assert 1 <= contender.threads * len(contender.commands) <= threads
            rows = [i for c in contender.commands for i in range(16)[rows_of(c[4], 16)]]
            assert rows == list(range(16))


SMALL = {
    "vae": {"width": 12, "depth": 2, "latent": 3, "batch_size": 8},
    "ddpm": {"data": "shapes", "size": 16, "colour": True, "width": 16, "batch_size": 3},
}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Prepares a small workload with everything that the benchmark's have; gives its parts.

    Halving, doubling, attention. With one channel a group, a bias before a norm would have no
    gradient but rounding errors.
    """
    workloads, ours = import_module("workloads"), import_module("ours")

    def make(kind: str, model: str):
        options = {"shape": (2, 8, 8, 16)}
        if model:
            same = workloads.BERNOULLI if model == "vae" else workloads.EPSILON
            options = {**same, **SMALL[model]}
        if model == "ddpm":
            options["multipliers"] = "1,2,2"
        work = workloads.Workload(kind, model, options, side=8 if model == "vae" else 0)
        monkeypatch.setitem(workloads.WORKLOADS, "small", work)
        import_module("prepare").prepare("small", tmp_path)
        return ours.KINDS[kind](work, tmp_path, 1, "0/1"), import_module("rivals").Given(tmp_path)

    return make


kinds = pytest.mark.parametrize(
    ("kind", "model"),
    [("training", "vae"), ("training", "ddpm"), ("reverse", "ddpm"), ("convolution", "")],
)


@kinds
def test_ours_goes_on_where_the_agreement_ends(small, kind, model):
    """A result is finite and the same again, where nothing was trained; steps go on behind it."""
    ours, given = small(kind, model)
    result = ours.result()
    assert all(np.all(np.isfinite(array)) for array in result.values())
    ours.step()
    if kind == "training":
        assert ours.fit.steps_done == 4
        assert len(given.batches) == 3
        np.testing.assert_allclose([given.rate(i) for i in range(3)], given.facts["rates"])
        assert min(given.facts["rates"]) > 0.3 * given.facts["peak"]
    else:
        for name, array in ours.result().items():
            np.testing.assert_array_equal(array, result[name])


def test_ours_trains_with_the_workers_of_train(small, monkeypatch, tmp_path):
    """A small net with one, however many threads there are; a large one with no more than these."""
    ours, _ = small("training", "vae")
    kind, work = type(ours), import_module("workloads").WORKLOADS["small"]
    options = kind(work, tmp_path, 2, "0/1").options
    assert (options["workers"], options["blas_threads"]) == (1, 1)
    monkeypatch.setattr(import_module("ours"), "crew", lambda recipe, sharing: Crew(3, 1))
    assert kind(work, tmp_path, 1, "0/1").options["workers"] == 1


def test_chains_in_two_processes_are_those_of_one(small):
    ours, _ = small("reverse", "ddpm")
    whole = ours.result()
    kind, work = type(ours), import_module("workloads").WORKLOADS["small"]
    parts = [kind(work, ours.given.parent, 1, share).result() for share in ("0/2", "1/2")]
    for name, array in whole.items():
        np.testing.assert_allclose(
            np.concatenate([part[name] for part in parts]), array, rtol=1e-4, atol=1e-5
        )


@kinds
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_pytorch_computes_the_same(small, kind, model, layout):
    pytest.importorskip("torch", reason="PyTorch comes with the [bench] extra only")
    ours, given = small(kind, model)
    rival = import_module("rivals_torch").KINDS[kind, model](given, "0/1", layout, "eager")
    import_module("harness").require_agreement({"ours": ours.result(), "torch": rival.result()})
    rival.step()
    if kind == "training":  # and forgets the gradient again, but not Adam's steps
        assert all(leaf.grad is None for leaf in rival.theta.values())
        assert {int(state["step"]) for state in rival.adam.state.values()} == {4}


def test_pytorch_computes_the_same_with_frozen_parameters(small):
    """As its compiler sees them, which is not run here: attributes of a module."""
    torch = pytest.importorskip("torch", reason="PyTorch comes with the [bench] extra only")
    ours, given = small("reverse", "ddpm")
    rivals = import_module("rivals_torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function: function)
        patch.setattr(rivals.inductor.config, "freezing", False)
        rival = rivals.Reverse(given, "0/1", "channels_last", "freeze")
        assert rivals.inductor.config.freezing
    assert len(list(rival.net.parameters())) == len(given.theta)
    import_module("harness").require_agreement({"ours": ours.result(), "torch": rival.result()})


@kinds
def test_jax_computes_the_same(small, kind, model, monkeypatch):
    monkeypatch.setattr(np.random, "rand", np.random.RandomState(0).rand)  # jax asks when imported
    pytest.importorskip("jax", reason="JAX comes with the [bench] extra only")
    monkeypatch.setenv("NPROC", "1")
    ours, given = small(kind, model)
    rival = import_module("rivals_jax").KINDS[kind, model](given, "0/1")
    import_module("harness").require_agreement({"ours": ours.result(), "jax": rival.result()})
    rival.step()
    rival.finish()
