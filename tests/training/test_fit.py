"""training/fit.py: the examples' five lines, resumed bit for bit, stopped at a NaN."""

import os
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.module import Buffer, StalePullback
from scratchgen.core.streams import Stream
from scratchgen.layers.activations import tanh
from scratchgen.layers.affine import Linear, zero_values
from scratchgen.layers.combinators import Sequential
from scratchgen.layers.normalisation import BatchNorm, tracking
from scratchgen.testing.strategies import seeds
from scratchgen.training.checkpoint import CheckpointError, load, save
from scratchgen.training.fit import Fit, NotFinite, batch_indices
from scratchgen.training.kl_control import KlControl, SpikeGuard
from scratchgen.training.optim import Adam, Ema, RmsProp

from support import BACKENDS, NAMES, NUMPY, Halves, bound, host

BATCH = 4


class Net(Sequential):
    """Regression with a running mean, so that a run has everything a checkpoint must hold."""

    def __init__(self):
        super().__init__(Linear(3, 5), tanh, Linear(5, 1))
        self.seen = Buffer((1,), zero_values)


def make(born=NUMPY, every=3, spoil=None):
    net = Net()
    params = bound(net, born=born)
    stream = Stream(0, born)

    def loss(step, rows):
        noise = stream.at("train", step).from_row(rows.start)
        x = noise.at("x").normal((rows.stop - rows.start, 3))
        if spoil is not None and step == spoil:
            x = x * float("inf")
        net.seen.value += x[0, :1]
        y, pullback = net(x)
        pullback(2.0 * y / BATCH)
        return {"square": y[:, 0] ** 2, "zero": 0.0 * y[:, 0]}

    return Fit(net, params, Adam(params, 0.01), loss, BATCH, every, Ema(params, 0.9))


def everything(fit):
    return {
        "theta": host(fit.params.theta),
        "m": host(fit.optimiser.m),
        "v": host(fit.optimiser.v),
        "ema": host(fit.ema.average),
        "seen": host(fit.module.seen.value),
        **{name: np.asarray(values) for name, values in fit.history.items()},
    }


def assert_same_run(a, b):
    first, second = everything(a), everything(b)
    assert set(first) == set(second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert a.steps_done == b.steps_done
    assert a._sums == b._sums


@pytest.mark.parametrize("born", BACKENDS, ids=NAMES)
def test_a_stopped_run_continues_bit_for_bit(born, tmp_path):
    whole, first, second = make(born), make(born), make(born)
    whole.until(40, quiet=True)
    first.until(17, tmp_path / "c.npz", {"note": 1}, quiet=True)
    assert second.restore(tmp_path / "c.npz")["note"] == 1
    second.until(40, quiet=True)
    assert_same_run(whole, second)


def test_logging_and_saving_do_not_change_training(tmp_path, monkeypatch):
    monkeypatch.setattr("scratchgen.training.fit.SAVE_EVERY_SECONDS", 0.0)
    often, rarely = make(every=1), make(every=7)
    often.until(20, tmp_path / "c.npz", quiet=True)
    rarely.until(20, quiet=True)
    np.testing.assert_array_equal(often.params.theta, rarely.params.theta)
    assert np.mean(often.history["square"][:7]) == pytest.approx(rarely.history["square"][0])


def test_the_five_line_loop_gives_the_same_theta():
    fit, plain = make(), make()
    fit.until(10, quiet=True)
    for step in range(10):
        plain.loss(step, slice(0, BATCH))
        plain.optimiser.step()
    np.testing.assert_array_equal(fit.params.theta, plain.params.theta)


def test_the_first_value_that_is_not_finite_stops_it_and_is_named(tmp_path):
    fit, healthy = make(spoil=5), make()
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(NotFinite, match="step 6: the loss term 'square' is nan.*layer layers.0"),
    ):
        fit.until(10, tmp_path / "c.npz", quiet=True)
    healthy.until(5, quiet=True)
    assert fit.steps_done == 5
    np.testing.assert_array_equal(fit.params.theta, healthy.params.theta)
    assert not np.any(fit.params.grad)
    np.testing.assert_array_equal(fit.module.seen.value, healthy.module.seen.value)
    resumed = make()
    resumed.restore(tmp_path / "c.npz")
    assert resumed.steps_done == 5


def test_a_last_update_that_breaks_the_parameters_is_neither_saved_nor_called_good(tmp_path):
    fit = make()
    fit.until(3, tmp_path / "c.npz", quiet=True)
    good, loss = (tmp_path / "c.npz").read_bytes(), fit.loss

    def poisoned(step, rows):
        terms = loss(step, rows)
        fit.params.grad[0] = np.nan
        return terms

    fit.loss = poisoned
    with pytest.raises(NotFinite, match="after step 4: parameter layers.0.weight"):
        fit.until(4, tmp_path / "c.npz", quiet=True)
    assert (tmp_path / "c.npz").read_bytes() == good


def test_a_broken_state_never_replaces_a_good_one(tmp_path):
    fit = make()
    fit.until(3, tmp_path / "c.npz", quiet=True)
    good = (tmp_path / "c.npz").read_bytes()
    fit.params.theta[0] = np.nan
    with pytest.raises(NotFinite):
        fit.until(10, tmp_path / "c.npz", quiet=True)
    assert (tmp_path / "c.npz").read_bytes() == good


@pytest.mark.parametrize("then", [5, 7, 1, 20])
def test_an_interval_that_a_resumed_run_cuts_otherwise_is_averaged_over_its_own_steps(
    then, tmp_path
):
    """Fourteen steps are logged and three begun; whoever goes on may log more or less often."""
    first, second, each = make(every=7), make(every=then), make(every=1)
    first.until(17, tmp_path / "c.npz", quiet=True)
    second.restore(tmp_path / "c.npz")
    assert second.last_row == first.last_row
    for fit in (second, each):
        fit.until(60, quiet=True)
    ends = [0, *(int(step) for step in second.history["step"])]
    assert ends[:4] == [0, 7, 14, 17 + then - 17 % then]
    assert ends[4:] == list(range(ends[3] + then, 61, then))
    squares = each.history["square"]
    means = [np.mean(squares[a:b]) for a, b in zip(ends, ends[1:], strict=False)]
    np.testing.assert_allclose(second.history["square"], means, rtol=1e-12)


@pytest.mark.parametrize(("every", "batch_size"), [(0, 4), (-3, 4), (50, 0)])
def test_arguments_are_checked(every, batch_size):
    net = Net()
    params = bound(net)
    with pytest.raises(ValueError, match=f"≥ 1, got {batch_size} and {every}"):
        Fit(net, params, Adam(params), lambda step, rows: {}, batch_size, every)


FLOAT32 = BACKENDS[1]


def overflowing(kind=Adam):
    """A run in float32 one of whose gradients is finite and has an infinite square."""
    fit = make(FLOAT32)
    fit.optimiser, loss = kind(fit.params, 0.01), fit.loss

    def huge(step, rows):
        terms = loss(step, rows)
        if step == 4:
            fit.params.grad[fit.params.table["layers.2.weight"].window] = 1e20
        return terms

    fit.loss = huge
    return fit


@pytest.mark.parametrize("kind", [Adam, RmsProp])
def test_an_update_that_breaks_the_optimiser_alone_is_not_called_good(kind, tmp_path):
    """θ, loss and gradient stay finite, but those entries will never move again."""
    fit = overflowing(kind)
    fit.until(4, tmp_path / "c.npz", quiet=True)
    good = (tmp_path / "c.npz").read_bytes()
    message = "after step 20: optimiser's v of layers.2.weight is not finite. Try a smaller"
    with np.errstate(over="ignore"), pytest.raises(NotFinite, match=message):
        fit.until(20, tmp_path / "c.npz", quiet=True)
    assert fit.params.first_nonfinite() is None
    assert np.all(np.isfinite(fit.history["square"]))
    assert (tmp_path / "c.npz").read_bytes() == good


def test_nor_is_it_trained_on_for_longer_than_between_two_saves(tmp_path, monkeypatch):
    """Although nothing that a step computes shows it."""
    monkeypatch.setattr("scratchgen.training.fit.SAVE_EVERY_SECONDS", 0.0)
    for path in (tmp_path / "c.npz", None):
        fit = overflowing()
        message = "after step 5: optimiser's v of layers.2.weight is not finite"
        with np.errstate(over="ignore"), pytest.raises(NotFinite, match=message):
            fit.until(20, path, quiet=True)
    resumed = overflowing()
    resumed.restore(tmp_path / "c.npz")
    assert resumed.steps_done == 4


def test_a_broken_state_is_no_first_checkpoint(tmp_path):
    fit = make()
    fit.params.theta[0] = np.nan
    with pytest.raises(NotFinite, match="after step 0: parameter layers.0.weight is not finite"):
        fit.until(10, tmp_path / "c.npz", quiet=True)
    assert not (tmp_path / "c.npz").exists()


def test_what_was_learned_so_far_is_saved_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr("scratchgen.training.fit.SAVE_EVERY_SECONDS", 0.0)
    fit, again = make(), make()
    loss = fit.loss

    def killed(step, rows):
        if step == 6:
            raise RuntimeError("killed")
        return loss(step, rows)

    fit.loss = killed
    with pytest.raises(RuntimeError, match="killed"):
        fit.until(10, tmp_path / "c.npz", quiet=True)
    again.restore(tmp_path / "c.npz")
    assert again.steps_done == 6


def test_restoring_voids_earlier_pullbacks(tmp_path):
    fit = make()
    fit.save(tmp_path / "c.npz", {})
    y, pullback = fit.module(np.ones((2, 3)))
    fit.restore(tmp_path / "c.npz")
    with pytest.raises(StalePullback):
        pullback(y)


def test_a_signal_during_the_last_step_does_not_undo_it(tmp_path):
    fit = make()
    loss = fit.loss

    def interrupted(step, rows):
        if step == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(step, rows)

    fit.loss = interrupted
    fit.until(10, tmp_path / "c.npz", quiet=True)
    assert fit.steps_done == 10


def test_a_broken_parameter_is_named():
    fit = make()
    fit.params.theta[fit.params.table["layers.2.bias"].window] = np.nan
    with pytest.raises(NotFinite, match=r"parameter layers.2.bias is not finite"):
        fit.advance()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_step_and_saves(tmp_path, number):
    fit, loss = make(), None
    loss = fit.loss

    def interrupted(step, rows):
        if step == 6:
            os.kill(os.getpid(), number)
        return loss(step, rows)

    fit.loss = interrupted
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        fit.until(20, tmp_path / "c.npz", quiet=True)
    assert signal.getsignal(number) is before
    resumed, whole = make(), make()
    resumed.restore(tmp_path / "c.npz")
    assert resumed.steps_done == 7
    resumed.until(20, quiet=True)
    whole.until(20, quiet=True)
    assert_same_run(whole, resumed)


def test_another_model_is_refused(tmp_path):
    make().save(tmp_path / "c.npz", {})
    net = Linear(2, 2)
    params = bound(net)
    other = Fit(net, params, Adam(params), lambda step, rows: {}, BATCH, ema=Ema(params))
    with pytest.raises(CheckpointError, match="another model"):
        other.restore(tmp_path / "c.npz")
    arrays, meta = load(tmp_path / "c.npz")
    arrays.pop("theta")
    save(tmp_path / "less.npz", arrays, {"layout": meta["layout"]})
    with pytest.raises(CheckpointError, match="lacks the arrays theta and step"):
        make().restore(tmp_path / "less.npz")
    renamed = make()
    renamed.params.buffers = {"other": renamed.module.seen}
    with pytest.raises(CheckpointError, match="lacks parameters or buffers"):
        renamed.restore(tmp_path / "c.npz")
    without_average = make()
    without_average.ema = None
    with pytest.raises(CheckpointError, match="another ema setting"):
        without_average.restore(tmp_path / "c.npz")
    other_optimiser = make()
    other_optimiser.optimiser = RmsProp(other_optimiser.params)
    with pytest.raises(CheckpointError, match="another optimiser setting"):
        other_optimiser.restore(tmp_path / "c.npz")


def test_progress_is_one_line_per_interval_where_there_is_no_terminal(capsys):
    make().until(20, describe=lambda row: f"square {row['square']:.3f}")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("step 20/20")
    assert "square" in lines[-1]


def test_a_slow_run_is_not_silent(capsys, monkeypatch):
    monkeypatch.setattr("scratchgen.training.progress.SILENT_SECONDS", 0.0)
    make().until(20, describe=lambda row: f"square {row['square']:.3f}")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == [f"{step}/20" for step in range(1, 21)]


@given(seeds(), st.integers(1, 20), st.integers(1, 50))
def test_every_example_is_visited_once_an_epoch(seed, n, batch_size):
    stream = Stream(seed, NUMPY)
    steps = -(-3 * n // batch_size)
    visited = np.concatenate([batch_indices(stream, n, batch_size, s) for s in range(steps)])
    assert len(visited) == steps * batch_size
    for epoch in range(3):
        assert sorted(visited[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_batches_differ_between_epochs():
    first, second = (batch_indices(Stream(0, NUMPY), 50, 50, s) for s in range(2))
    assert np.any(first != second)


def test_steps_are_evaluated_within_what_is_asked_for(tmp_path):
    """Batch norm's running statistics move once a step, and a resumed run has the same."""

    def normed():
        net = Sequential(Linear(3, 5), BatchNorm(5), tanh, Linear(5, 1))
        params, stream = bound(net), Stream(0, NUMPY)

        def loss(step, rows):
            y, pullback = net(stream.at(step).normal((BATCH, 3)), stream=stream)
            pullback(y / BATCH)
            return {"square": y[:, 0] ** 2}

        return Fit(net, params, Adam(params, 0.01), loss, BATCH, within=tracking)

    whole, first, second = normed(), normed(), normed()
    whole.until(6, quiet=True)
    first.until(3, tmp_path / "a.npz", quiet=True)
    second.restore(tmp_path / "a.npz")
    second.until(6, quiet=True)
    norms = [fit.module.layers[1] for fit in (whole, first, second)]
    assert np.all(norms[0].mean.value != norms[1].mean.value)
    np.testing.assert_array_equal(norms[0].mean.value, norms[2].mean.value)
    np.testing.assert_array_equal(norms[0].variance.value, norms[2].variance.value)


def test_before_the_first_logged_row_the_steps_so_far_are_described():
    fit, told = make(every=100), []
    fit.until(2, quiet=True)
    row = fit.last_row
    again = make(every=1)
    again.until(2, quiet=True)
    assert row["step"] == 2
    assert row["square"] == pytest.approx(np.mean(again.history["square"]), rel=1e-12)
    fit.until(3, quiet=True, describe=lambda row: told.append(row) or "")
    assert [row["step"] for row in told] == [3]


class Levels(Sequential):
    """Two numbers from three, whose squares stand for the rates of two levels."""

    def __init__(self):
        super().__init__(Linear(3, 5), tanh, Linear(5, 2))
        self.seen = Buffer((1,), zero_values)


BROKEN = {4: 1e6, 9: float("nan"), 20: 1e6, 31: float("inf")}  # what gradients are multiplied by


def controlled(born=NUMPY, broken=BROKEN, workers=None):
    """A run whose weights depend on earlier terms, and some of whose gradients are refused."""
    net = Levels()
    params = bound(net, born=born)
    stream = Stream(0, born)
    control = KlControl(("kl_1", "kl_2"), (4, 16), length=30, least=0.05, balanced=True)

    def loss(step, rows):
        noise = stream.at("train", step).from_row(rows.start)
        y, pullback = net(noise.at("x").normal((rows.stop - rows.start, 3)))
        weights = born.asarray(np.asarray(control.weights(step)))
        pullback(weights * y / BATCH)
        if rows.start == 0 and step in broken:
            params.grad[...] = params.grad * broken[step]
        return {"kl_1": 0.5 * y[:, 0] ** 2, "kl_2": 0.5 * y[:, 1] ** 2}

    optimiser, ema = Adam(params, 0.01), Ema(params, 0.9)
    more = {"workers": workers, "control": control, "guard": SpikeGuard(100.0)}
    return Fit(net, params, optimiser, loss, BATCH, 3, ema, **more)


@pytest.mark.parametrize("born", BACKENDS, ids=NAMES)
def test_a_stopped_run_decides_and_refuses_as_the_whole_one(born, tmp_path):
    whole, first, second = controlled(born), controlled(born), controlled(born)
    with np.errstate(invalid="ignore"):
        whole.until(40, quiet=True)
        first.until(17, tmp_path / "c.npz", quiet=True)
        second.restore(tmp_path / "c.npz")
        second.until(40, quiet=True)
    assert_same_run(whole, second)
    assert whole.control.state() == second.control.state()
    assert whole.control.observed == 40
    assert whole.guard.skipped == second.guard.skipped == len(BROKEN)
    assert whole.optimiser.steps == second.optimiser.steps == 40 - len(BROKEN)


def test_what_was_observed_is_of_consequence(tmp_path):
    """So the test above would notice if a resumed run forgot it."""
    whole, forgetful = controlled(broken={}), controlled(broken={})
    whole.until(17, tmp_path / "c.npz", quiet=True)
    forgetful.restore(tmp_path / "c.npz")
    forgetful.control.restore({"observed": 0, "rate/kl_1": 0.0, "rate/kl_2": 0.0})
    assert len(set(whole.control.weights(17))) == 2
    for fit in (whole, forgetful):
        fit.until(18, quiet=True)
    assert np.any(whole.params.theta != forgetful.params.theta)


@pytest.mark.parametrize("factor", [1e6, float("nan"), float("inf")])
def test_a_refused_step_is_done_and_logged_but_teaches_nothing(factor):
    fit, calm = controlled(broken={5: factor}), controlled(broken={})
    for run in (fit, calm):
        run.until(5, quiet=True)
    before, control = everything(fit), dict(fit.control.state())
    with np.errstate(invalid="ignore"):
        fit.advance()
    calm.advance()
    after = everything(fit)
    for name in ("theta", "m", "v", "ema"):
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert fit.optimiser.steps == fit.ema.steps == 5
    assert not np.any(fit.params.grad)
    assert fit.steps_done == 6
    assert fit.history == calm.history
    assert fit.control.state() == calm.control.state() != control
    assert (fit.guard.skipped, calm.guard.skipped) == (1, 0)
    fit.until(9, quiet=True)
    assert fit.optimiser.steps == 8


def test_a_guard_that_refuses_nothing_and_a_control_not_asked_change_nothing():
    plain, watched = make(), make()
    watched.guard = SpikeGuard(1e9)
    watched.control = KlControl(("square",), (1,))
    for fit in (plain, watched):
        fit.until(10, quiet=True)
    assert_same_run(plain, watched)
    assert watched.guard.skipped == 0


def test_a_loss_that_is_not_finite_is_neither_observed_nor_counted():
    fit = make(spoil=5)
    fit.guard, fit.control = SpikeGuard(1e9), KlControl(("square",), (1,))
    with np.errstate(invalid="ignore"), pytest.raises(NotFinite, match="step 6"):
        fit.until(10, quiet=True)
    assert fit.guard.skipped == 0
    assert fit.control.observed == 5


def test_halves_of_a_batch_are_weighed_alike():
    """Which they would not be, were a shard's own rates decisive."""
    whole, halves = controlled(broken={}), controlled(broken={}, workers=Halves())
    for fit in (whole, halves):
        fit.until(40, quiet=True)
    np.testing.assert_allclose(halves.params.theta, whole.params.theta, rtol=1e-9, atol=1e-12)


def test_a_run_with_another_control_or_guard_is_refused(tmp_path):
    fit = controlled(broken={})
    fit.until(3, tmp_path / "both.npz", quiet=True)
    for setting, other in [
        ("control", None),
        ("control", KlControl(("kl_1", "kl_3"), (4, 16))),
        ("guard", None),
    ]:
        changed = controlled()
        setattr(changed, setting, other)
        with pytest.raises(CheckpointError, match=f"another {setting} setting"):
            changed.restore(tmp_path / "both.npz")
    for setting in ("control", "guard"):
        fewer = controlled(broken={})
        setattr(fewer, setting, None)
        fewer.save(tmp_path / "fewer.npz", {})
        with pytest.raises(CheckpointError, match=f"another {setting} setting"):
            controlled().restore(tmp_path / "fewer.npz")


def test_a_run_with_neither_keeps_nothing_of_them(tmp_path):
    """So it reads the files of runs from before there were any, and they read its files."""
    fit, again = make(), make()
    fit.until(3, tmp_path / "c.npz", quiet=True)
    groups = {name.partition("/")[0] for name in load(tmp_path / "c.npz")[0]}
    assert groups == {"theta", "step", "optimiser", "ema", "buffers", "history"}
    again.restore(tmp_path / "c.npz")
    assert_same_run(fit, again)
