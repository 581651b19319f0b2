"""fast/threads.py: shards on threads give the gradient that one worker gives, up to rounding."""

import threading

import numpy as np
import pytest
from catalogue import CASES
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from scratchgen.core import twins
from scratchgen.core.module import Module, Parameter, StalePullback
from scratchgen.core.parallel import Solo
from scratchgen.core.streams import Stream
from scratchgen.fast import threads
from scratchgen.fast.threads import Ledger, Threads
from scratchgen.layers.activations import silu, tanh
from scratchgen.layers.affine import Embedding, Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.layers.conv import Conv2d
from scratchgen.layers.normalisation import GroupNorm
from scratchgen.testing.strategies import seeds
from scratchgen.training.fit import Fit, NotFinite
from scratchgen.training.optim import Adam, Ema

from support import NUMPY, bound, normals

GROUPS = {count: Threads(count) for count in range(1, 6)}
counts = st.sampled_from(sorted(GROUPS))
parts = st.sampled_from([7, 100, threads.PART])  # sizes of a task, so that small nets have several
PATIENCE = 60.0  # seconds until something that takes milliseconds counts as stuck


@pytest.fixture(autouse=True, scope="module")
def _one_thread_of_blas():
    """Each worker's products take one, as they do in our own commands."""
    with threadpool_limits(1, "blas"):
        yield


class Net(Module):
    """Images and codes -> (N, 1), with every kind of parameter, and one used twice.

    Products of fewer than about twenty rows are noted down for `square`, others computed at once.
    """

    def __init__(self):
        self.conv, self.norm = Conv2d(2, 8), GroupNorm(8, 2, silu)
        self.wide, self.codes = Linear(8 * 9, 40), Embedding(5, 40)
        self.square = self.again = Linear(40, 40)
        self.last = Linear(40, 1)

    def __call__(self, x, code):
        """x (N, 3, 3, 2) and code (N,) -> y (N, 1), pullback: dy -> None."""
        c, conv = self.conv(x)
        g, norm = self.norm(c)
        h, wide = self.wide(g.reshape(len(x), -1))
        e, codes = self.codes(code)
        a, square = self.square(h * e)
        b, again = self.again(a)
        y, last = self.last(b)

        def pullback(dy):
            d = square(again(last(dy)))
            codes(d * h)
            conv(norm(wide(d * e).reshape(g.shape)))

        return y, pullback


def regression(seed: int, n: int):
    """A net's parameters, and the shard that evaluates rows of n examples."""
    net = Net()
    params, x, target = bound(net, seed % 2**32), normals(seed, n, 3, 3, 2), normals(seed + 1, n, 1)
    code = np.floor(5 * Stream(seed, NUMPY).at("code").uniform((n,))).astype(np.int64)

    def shard(rows):
        y, pullback = net(x[rows], code[rows])
        error = y - target[rows]
        pullback(2.0 * error / n)
        return {"square": error[:, 0] ** 2, "row": np.arange(n)[rows]}

    return params, shard


def assert_close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * max(np.abs(want).max(), 1.0))


@given(seeds(), counts, st.integers(1, 70), parts)
def test_the_gradient_is_that_of_one_worker_up_to_rounding(seed, count, n, part):
    params, shard = regression(seed, n)
    want_terms = Solo().run(params, shard, n)
    want = params.grad.copy()
    params.grad[...] = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "PART", part)
        terms = GROUPS[count].run(params, shard, n)
    assert_close(params.grad, want)
    assert list(terms) == ["square", "row"]
    np.testing.assert_array_equal(terms["row"], np.arange(n))
    assert_close(terms["square"], want_terms["square"])


@given(seeds(), counts, st.integers(1, 70))
def test_a_group_gives_the_same_bits_every_time(seed, count, n):
    params, shard = regression(seed, n)
    found = []
    for group in (GROUPS[count], GROUPS[count], Threads(count)):
        params.grad[...] = 0.0
        group.run(params, shard, n)
        found.append(params.grad.tobytes())
    assert found[0] == found[1] == found[2]


@given(seeds(), counts)
def test_shards_are_of_equal_size_and_never_empty(seed, count):
    n, seen = 1 + seed % 12, []
    params, _ = regression(0, 1)

    def shard(rows):
        seen.append((rows.start, rows.stop))
        return {"size": np.ones(rows.stop - rows.start)}

    GROUPS[count].run(params, shard, n)
    lengths = {stop - start for start, stop in seen}
    assert len(seen) == min(count, n)
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1
    edges = sorted(seen)
    assert [start for start, _ in edges] == [0, *(stop for _, stop in edges[:-1])]
    assert edges[-1][1] == n


@given(seeds(), counts, st.integers(1, 40))
def test_a_gradient_that_is_there_is_added_to(seed, count, n):
    params, shard = regression(seed, n)
    GROUPS[count].run(params, shard, n)
    once = params.grad.copy()
    GROUPS[count].run(params, shard, n)
    assert_close(params.grad, 2.0 * once)


@pytest.mark.parametrize("count", GROUPS)
def test_what_the_caller_chose_for_the_gradient_holds_in_every_thread(count):
    params, shard = regression(0, 12)
    want = Solo().run(params, shard, 12)
    gradient = params.grad.copy()
    params.grad[...] = 0.0
    with params.frozen():
        terms = GROUPS[count].run(params, shard, 12)
    assert_close(terms["square"], want["square"])
    assert not np.any(params.grad)
    with params.gradient_into(np.ones_like(params.grad)) as elsewhere:
        GROUPS[count].run(params, shard, 12)
    assert not np.any(params.grad)
    assert_close(elsewhere, 1.0 + gradient)


class Ragged(Module):
    """What a ledger must not confuse: an empty parameter, and one seen as several matrices."""

    def __init__(self):
        draw = lambda stream, shape: stream.normal(shape)
        self.empty, self.full = Parameter((0,), draw), Parameter((6, 20), draw)


@given(st.integers(1, 30), counts, parts)
def test_one_parameter_may_be_read_as_matrices_of_several_shapes(n, count, part):
    """Some of them noted down and some computed, which may differ from shard to shard."""
    module, shapes = Ragged(), [(6, 20), (20, 6), (12, 10), (1, 120)]
    params = bound(module)
    noise = [(normals(n, n, p), normals(n + 1, n, q)) for p, q in shapes]

    def shard(rows):
        module.empty.read().accumulate_product(np.ones((1, 0)), np.ones((1, 0)))
        for a, b in noise:
            module.full.read().accumulate_product(a[rows], b[rows])
        return {}

    Solo().run(params, shard, n)
    want = params.grad.copy()
    params.grad[...] = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "PART", part)
        GROUPS[count].run(params, shard, n)
    assert_close(params.grad, want)


@given(counts, st.integers(0, 40), st.integers(1, 9))
def test_elementwise_is_the_whole_update(count, size, least):
    update = lambda a, b: np.add(a, b * b, out=a)
    a, b = normals(0, size + 1)[1:].copy(), normals(1, size + 1)[1:].copy()
    want = a + b * b
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "LEAST", least)
        GROUPS[count].elementwise(update, a, b)
    np.testing.assert_array_equal(a, want)


def test_long_vectors_are_updated_by_several_threads_and_short_ones_by_the_caller():
    seen = {}
    for size in (threads.LEAST, 3 * threads.LEAST):
        lengths = []
        GROUPS[3].elementwise(lambda v, lengths=lengths: lengths.append(v.size), np.zeros(size))
        seen[size] = lengths
    assert seen == {threads.LEAST: [threads.LEAST], 3 * threads.LEAST: 3 * [threads.LEAST]}


@pytest.mark.parametrize("count", [0, -3])
def test_a_group_has_at_least_one_thread(count):
    with pytest.raises(ValueError, match=f"at least 1, got {count}"):
        Threads(count)


def failing(shard, bad):
    def spoiled(rows):
        terms = shard(rows)
        if rows.start in bad:
            raise KeyError(f"row {rows.start}")
        return terms

    return spoiled


@pytest.mark.parametrize(
    ("bad", "first"), [({0}, 0), ({4}, 4), ({8}, 8), ({4, 8}, 4), ({0, 4, 8}, 0)]
)
def test_the_first_shard_that_fails_is_heard_and_the_group_stays_usable(bad, first):
    params, shard = regression(0, 12)
    Solo().run(params, shard, 12)
    want = params.grad.copy()
    params.grad[...] = 0.0
    with pytest.raises(KeyError, match=f"row {first}"):
        GROUPS[3].run(params, failing(shard, bad), 12)
    assert not np.any(params.grad), "nothing of a batch that failed is added"
    assert params.gradient is params.grad
    GROUPS[3].run(params, shard, 12)
    assert_close(params.grad, want)


def test_an_update_that_fails_in_any_part_is_heard(monkeypatch):
    monkeypatch.setattr(threads, "LEAST", 1)

    def update(v):
        if v[-1] == 5.0:
            raise KeyError("the last part")

    with pytest.raises(KeyError, match="the last part"):
        GROUPS[3].elementwise(update, np.arange(6.0))
    with pytest.raises(IndexError):
        GROUPS[1].elementwise(lambda v: v[9], np.arange(6.0))


def test_a_pullback_is_refused_where_it_is_stale():
    params, shard = regression(0, 6)

    def late(rows):
        reading = params.table["last.weight"].read()
        params.changed()
        reading.accumulate_product(np.ones((1, 1)), np.ones((1, 40)))

    with pytest.raises(StalePullback):
        GROUPS[2].run(params, late, 6)


def test_how_errors_of_arithmetic_are_met_is_the_callers_choice():
    params, _ = regression(0, 6)
    divide = lambda rows: {"ratio": np.ones(6)[rows] / np.zeros(6)[rows]}
    with np.errstate(divide="ignore"):
        assert np.all(GROUPS[3].run(params, divide, 6)["ratio"] == np.inf)
    with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
        GROUPS[3].run(params, divide, 6)


def test_twins_that_are_off_are_off_in_every_thread():
    params, shard = regression(0, 12)
    with twins.disabled():
        Solo().run(params, shard, 12)
        want = params.grad.copy()
        params.grad[...] = 0.0
        active = GROUPS[3].run(params, lambda rows: {"n": np.full(4, len(twins.active()))}, 12)
        GROUPS[3].run(params, shard, 12)
    np.testing.assert_array_equal(active["n"], 0)
    assert_close(params.grad, want)


def in_time(work):
    """work() in a thread that is given up when it takes far too long."""
    done = []
    worker = threading.Thread(target=lambda: done.append(work()), daemon=True)
    worker.start()
    worker.join(PATIENCE)
    assert done, "stuck"


def test_nothing_waits_for_ever():
    """Batches that work and batches that fail, by turns, in two groups at once."""
    params, shard = regression(0, 5)

    def turns(group):
        for turn in range(60):
            try:
                with params.frozen():
                    group.run(params, failing(shard, {turn % 3}), 5)
            except KeyError:
                pass
            group.elementwise(lambda v: None, np.zeros(2 * threads.LEAST))
        return True

    others = [threading.Thread(target=turns, args=[Threads(n)], daemon=True) for n in (2, 5)]
    for other in others:
        other.start()
    in_time(lambda: turns(GROUPS[3]))
    for other in others:
        other.join(PATIENCE)
        assert not other.is_alive(), "stuck"


# training with a group


def fit_with(workers, spoil=None, bad_row=0, fail=()):
    """A regression as `Fit` trains it.

    Args:
        workers: evaluate its batches of 12.
        spoil: a step in which one row holds an infinite number.
        bad_row: that row.
        fail: steps in which the shard of that row raises.
    """
    net, stream = Sequential(Linear(3, 4), tanh, Linear(4, 1)), Stream(0, NUMPY)
    params = bound(net)

    def loss(step, rows):
        x = stream.at("train", step).from_row(rows.start).normal((rows.stop - rows.start, 3))
        if rows.start <= bad_row < rows.stop:
            if step == spoil:
                x[bad_row - rows.start] = np.inf
            if step in fail:
                raise KeyError("this shard")
        y, pullback = net(x)
        pullback(2.0 * y / 12)
        return {"fine": np.zeros(len(y)), "square": y[:, 0] ** 2}

    return Fit(net, params, Adam(params, 0.01), loss, 12, 3, Ema(params, 0.9), workers)


@pytest.mark.parametrize("count", GROUPS)
def test_training_with_a_group_is_training_alone_up_to_rounding(count):
    alone, shared = fit_with(Solo()), fit_with(GROUPS[count])
    for fit in (alone, shared):
        fit.until(20, quiet=True)
    assert_close(shared.params.theta, alone.params.theta)
    assert_close(shared.ema.average, alone.ema.average)
    assert_close(np.array(shared.history["square"]), np.array(alone.history["square"]))


@pytest.mark.parametrize("bad_row", [0, 5, 11])
def test_a_number_that_is_not_finite_in_one_shard_is_named(bad_row):
    fit, healthy = fit_with(GROUPS[3], spoil=4, bad_row=bad_row), fit_with(GROUPS[3])
    named = "step 5: the loss term 'square' is nan; .* first in the output of layer layers.0"
    with np.errstate(invalid="ignore"), pytest.raises(NotFinite, match=named):
        fit.until(9, quiet=True)
    healthy.until(4, quiet=True)
    assert fit.steps_done == 4
    assert not np.any(fit.params.grad)
    np.testing.assert_array_equal(fit.params.theta, healthy.params.theta)


@pytest.mark.parametrize("bad_row", [0, 5, 11])
def test_training_can_go_on_where_a_shard_failed(bad_row):
    failures = {4}
    fit, healthy = fit_with(GROUPS[3], bad_row=bad_row, fail=failures), fit_with(GROUPS[3])
    with pytest.raises(KeyError, match="this shard"):
        fit.until(9, quiet=True)
    assert fit.steps_done == 4
    assert not np.any(fit.params.grad)
    failures.clear()
    for each in (fit, healthy):
        each.until(9, quiet=True)
    np.testing.assert_array_equal(fit.params.theta, healthy.params.theta)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_layer_changes_what_it_gave_to_be_multiplied_later(case, monkeypatch):
    """Nor does whoever comes before it in the pullback, such as a twin that works in place."""
    layer, owner = case.build(), Module()
    owner.layer = layer
    params, inputs = bound(owner), case.inputs(1)
    seen, note = [], Ledger.add_product

    def remember(ledger, window, a, b):
        seen.append((a, b, np.array(a), np.array(b)))
        note(ledger, window, a, b)

    monkeypatch.setattr(Ledger, "add_product", remember)
    with params.gradient_into(Ledger()):
        y, pullback = case.call(layer, NUMPY)(*inputs)
        pullback(normals(3, *y.shape))
    for a, b, first_a, first_b in seen:
        np.testing.assert_array_equal(a, first_a)
        np.testing.assert_array_equal(b, first_b)
