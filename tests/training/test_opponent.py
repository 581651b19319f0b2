"""training/opponent.py: two nets and two optimisers in one run, which resumes bit for bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.module import StalePullback
from scratchgen.core.streams import Stream
from scratchgen.layers.activations import tanh
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.layers.normalisation import BatchNorm, tracking
from scratchgen.testing.strategies import seeds
from scratchgen.training.checkpoint import CheckpointError
from scratchgen.training.fit import Fit, NotFinite
from scratchgen.training.kl_control import SpikeGuard
from scratchgen.training.opponent import Opponent
from scratchgen.training.optim import Adam, Ema, RmsProp

from support import BACKENDS, NUMPY, Halves, bound, host, on_every_backend

BATCH, LIMIT = 6, 1.0


def net(n_in, n_out, normed, width=5):
    norm = [BatchNorm(width)] if normed else []
    return Sequential(Linear(n_in, width), *norm, tanh, Linear(width, n_out))


class Game:
    """A generator of three numbers from two, and a discriminator that learns from least squares.

    Args:
        born: the backend.
        count: steps of the discriminator for each of the generator's.
        normed: whether both have batch norm.
        within: the context of both sides' batches.
        spoil: (step, j) of a batch of the discriminator's, or (step,) of the generator's, that
            `fault` changes.
        fault: x -> x.
        more: for Fit.
    """

    def __init__(
        self, born=NUMPY, count=2, normed=True, within=tracking, spoil=None, fault=None, **more
    ):
        self.stream, self.spoil, self.fault, self.calls = Stream(0, born), spoil, fault, []
        self.g, self.d = net(2, 3, normed), net(3, 1, normed)
        self.g_params, self.d_params = bound(self.g, 1, born), bound(self.d, 2, born)
        self.opponent = Opponent(
            self.d,
            self.d_params,
            RmsProp(self.d_params, 0.01),
            self.d_loss,
            BATCH,
            count,
            self.after,
            within,
        )
        self.fit = Fit(
            self.g,
            self.g_params,
            Adam(self.g_params, 0.01),
            self.g_loss,
            BATCH,
            3,
            Ema(self.g_params, 0.9),
            within=within,
            opponent=self.opponent,
            **more,
        )

    def after(self):
        self.calls.append("after")
        theta = self.d_params.theta
        theta[...] = self.stream.backend.xp.clip(theta, -LIMIT, LIMIT)
        self.d_params.changed()

    def noise(self, name, rows, width, *key):
        stream = self.stream.at(name, *key).from_row(rows.start)
        drawn = stream.normal((rows.stop - rows.start, width))
        return self.fault(drawn) if self.fault and key == self.spoil else drawn

    def d_loss(self, step, j, rows):
        """½ (a(x) - 1)² + ½ a(G(z))²."""
        self.calls.append((step, j))
        fake, _ = self.g(self.noise("z", rows, 2, step, j), stream=self.stream)
        real_score, real_pullback = self.d(self.noise("x", rows, 3, step, j), stream=self.stream)
        fake_score, fake_pullback = self.d(fake, stream=self.stream)
        real_pullback((real_score - 1.0) / BATCH)
        fake_pullback(fake_score / BATCH)
        return {"real": 0.5 * (real_score[:, 0] - 1.0) ** 2, "fake": 0.5 * fake_score[:, 0] ** 2}

    def g_loss(self, step, rows):
        """½ (a(G(z)) - 1)²."""
        self.calls.append((step,))
        fake, g_pullback = self.g(self.noise("z", rows, 2, step), stream=self.stream)
        score, d_pullback = self.d(fake, stream=self.stream)
        with self.d_params.frozen():
            d_fake = d_pullback((score - 1.0) / BATCH)
        g_pullback(d_fake)
        return {"fooled": 0.5 * (score[:, 0] - 1.0) ** 2}

    def everything(self):
        """What must be the same in two runs that are the same."""
        kept = {f"opponent/{name}": value for name, value in self.opponent.state().items()}
        kept |= {f"adam/{name}": value for name, value in self.fit.optimiser.state().items()}
        kept |= {name: buffer.value for name, buffer in self.g_params.buffers.items()}
        kept |= {"theta": self.g_params.theta, "ema": self.fit.ema.average}
        kept |= {f"history/{name}": values for name, values in self.fit.history.items()}
        kept |= {f"pending/{name}": value for name, value in self.fit._sums.items()}
        kept |= {"steps": self.fit.steps_done}
        return {k: host(v) if hasattr(v, "shape") else np.array(v) for k, v in kept.items()}

    def copies(self):
        return {name: 1 * value for name, value in self.everything().items()}


def assert_same(got, want):
    assert set(got) == set(want)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def assert_no_gradient(game):
    assert not np.any(game.g_params.grad)
    assert not np.any(game.d_params.grad)


@on_every_backend
def test_a_stopped_game_continues_bit_for_bit(born, tmp_path):
    whole, first, second = Game(born), Game(born), Game(born)
    whole.fit.until(40, quiet=True)
    first.fit.until(17, tmp_path / "c.npz", quiet=True)
    second.fit.restore(tmp_path / "c.npz")
    assert_same(second.everything(), first.everything())
    second.fit.until(40, quiet=True)
    assert_same(second.everything(), whole.everything())
    assert whole.opponent.optimiser.steps == 80
    assert whole.fit.optimiser.steps == 40


def test_all_that_the_opponent_keeps_is_of_consequence():
    """So the test above would notice if a resumed run forgot it."""
    game = Game()
    before = game.copies()
    game.fit.until(17, quiet=True)
    after = game.everything()
    names = [name for name in before if name.startswith("opponent/")]
    assert {"opponent/theta", "opponent/optimiser/v", "opponent/optimiser/steps"} < set(names)
    assert len([name for name in names if name.startswith("opponent/buffers/")]) == 2
    for name in names:
        assert np.all(before[name] != after[name]), name


@given(st.integers(1, 3))
def test_it_is_the_loop_written_out(count):
    """k steps of the opponent, each on a batch of its own and followed by what comes after."""
    game, plain = Game(count=count), Game(count=count)
    game.fit.until(6, quiet=True)
    norms = {"gradient_norm": [], "opponent_gradient_norm": []}
    logged = {"real": [], "fake": [], "fooled": [], **norms}
    whole = slice(0, BATCH)
    for step in range(6):
        for j in range(count):
            with tracking():
                terms = plain.d_loss(step, j, whole)
            norm = np.linalg.norm(plain.d_params.grad)
            plain.opponent.optimiser.step()
            plain.after()
            for name, term in terms.items():
                logged[name].append(np.mean(term))
        logged["opponent_gradient_norm"].append(norm)
        with tracking():
            terms = plain.g_loss(step, whole)
        logged["gradient_norm"].append(np.linalg.norm(plain.g_params.grad))
        plain.fit.optimiser.step()
        plain.fit.ema.step()
        logged["fooled"].append(np.mean(terms["fooled"]))
    assert game.calls == plain.calls
    assert game.calls[: 2 * count + 1] == [
        *(call for j in range(count) for call in ((0, j), "after")),
        (0,),
    ]
    np.testing.assert_array_equal(game.g_params.theta, plain.g_params.theta)
    np.testing.assert_array_equal(game.d_params.theta, plain.d_params.theta)
    np.testing.assert_array_equal(game.opponent.optimiser.v, plain.opponent.optimiser.v)
    ours, theirs = ["step", "fooled", "gradient_norm"], ["real", "fake", "opponent_gradient_norm"]
    assert list(game.fit.history) == ours + theirs
    for name, values in logged.items():
        intervals = np.reshape(values, (2, -1)).mean(axis=1)
        np.testing.assert_allclose(game.fit.history[name], intervals, rtol=1e-12, err_msg=name)


def test_the_batches_of_a_step_differ():
    game, seen = Game(count=3), []
    game.fault = lambda x: seen.append(x) or x
    for j in range(3):
        game.spoil = (0, j)
        game.d_loss(0, j, slice(0, BATCH))
    real = seen[1::2]
    assert np.all(real[0] != real[1])
    assert np.all(real[1] != real[2])


INFINITE = float("inf")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ((5, 0), "step 6, the opponent's 1 of 2: the loss term 'real' is nan; .* layers.0"),
        ((5, 1), "step 6, the opponent's 2 of 2: the loss term 'real' is nan; .* layers.0"),
        ((5,), "step 6: the loss term 'fooled' is nan; .* layer layers.0"),
    ],
)
def test_a_term_that_is_not_finite_is_named_and_both_sides_are_as_before(spoil, message, tmp_path):
    game, healthy, resumed = Game(spoil=spoil, fault=lambda x: x * INFINITE), Game(), Game()
    with np.errstate(invalid="ignore"), pytest.raises(NotFinite, match=message):
        game.fit.until(10, tmp_path / "c.npz", quiet=True)
    healthy.fit.until(5, quiet=True)
    assert_same(game.everything(), healthy.everything())
    assert_no_gradient(game)
    resumed.fit.restore(tmp_path / "c.npz")
    for each in (resumed, healthy):
        each.fit.until(12, quiet=True)
    assert_same(resumed.everything(), healthy.everything())


@pytest.mark.parametrize("spoil", [(4, 0), (4, 1), (4,)])
def test_a_game_can_go_on_where_a_batch_failed(spoil):
    def fail(x):
        raise KeyError("this batch")

    game, healthy = Game(spoil=spoil, fault=fail), Game()
    with pytest.raises(KeyError, match="this batch"):
        game.fit.until(10, quiet=True)
    assert game.fit.steps_done == 4
    assert_no_gradient(game)
    game.spoil = None
    for each in (game, healthy):
        each.fit.until(10, quiet=True)
    assert_same(game.everything(), healthy.everything())


@pytest.mark.parametrize("value", [float("nan"), INFINITE])
def test_a_gradient_of_the_opponent_that_is_not_finite_stops_the_run(value):
    """Although all terms are finite."""
    game, healthy = Game(), Game()
    loss = game.opponent.loss

    def poisoned(step, j, rows):
        terms = loss(step, j, rows)
        if (step, j) == (5, 1):
            game.d_params.grad[3] = value
        return terms

    game.opponent.loss = poisoned
    message = f"step 6: the opponent's term 'opponent_gradient_norm' is {value}"
    with np.errstate(invalid="ignore"), pytest.raises(NotFinite, match=message):
        game.fit.until(10, quiet=True)
    healthy.fit.until(5, quiet=True)
    assert_same(game.everything(), healthy.everything())
    assert_no_gradient(game)


def test_an_opponent_that_is_broken_is_named_and_never_saved(tmp_path):
    game = Game()
    game.fit.until(3, tmp_path / "c.npz", quiet=True)
    good = (tmp_path / "c.npz").read_bytes()
    after = game.opponent.after

    def poisoned():
        after()
        game.d_params.theta[0] = np.nan
        game.d_params.changed()

    game.opponent.after = poisoned
    game.opponent.count = 1
    game.fit.loss = lambda step, rows: {"fooled": np.zeros(BATCH)}
    with pytest.raises(NotFinite, match="after step 4: the opponent's parameter layers.0.weight"):
        game.fit.until(4, tmp_path / "c.npz", quiet=True)
    with pytest.raises(NotFinite, match="parameter layers.0.weight is not finite, so an earlier"):
        game.fit.until(5, tmp_path / "c.npz", quiet=True)
    assert (tmp_path / "c.npz").read_bytes() == good
    game.d_params.theta[0] = 0.0
    game.d.layers[1].mean.value[2] = np.inf
    assert game.fit.broken() == "the opponent's buffer layers.1.mean"
    game.g_params.theta[0] = np.nan
    assert game.fit.broken() == "parameter layers.0.weight"


@pytest.mark.parametrize("kind", [Adam, RmsProp])
def test_so_is_an_opponent_whose_optimiser_alone_is_broken(kind, tmp_path):
    """By a gradient whose square is infinite in float32, and that leaves all else finite."""
    game = Game(BACKENDS[1])
    game.opponent.optimiser, loss = kind(game.d_params, 0.01), game.opponent.loss
    game.fit.until(3, tmp_path / "c.npz", quiet=True)
    good = (tmp_path / "c.npz").read_bytes()

    def huge(step, j, rows):
        terms = loss(step, j, rows)
        if (step, j) == (3, 1):
            game.d_params.grad[game.d_params.table["layers.0.bias"].window] = 1e20
        return terms

    game.opponent.loss = huge
    message = "after step 9: the opponent's optimiser's v of layers.0.bias is not finite"
    with np.errstate(over="ignore"), pytest.raises(NotFinite, match=message):
        game.fit.until(9, tmp_path / "c.npz", quiet=True)
    assert game.d_params.first_nonfinite() is None
    assert (tmp_path / "c.npz").read_bytes() == good


def test_two_workers_give_the_gradient_of_one():
    """Without batch norm, which mixes examples."""
    alone, halves = Game(normed=False), Game(normed=False, workers=Halves())
    for game in (alone, halves):
        game.fit.until(20, quiet=True)
    assert halves.calls.count((0, 0)) == 2
    got, want = halves.everything(), alone.everything()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_one_side_alone_shares_its_rows_too():
    """`advance` by itself, as a loop that is written out would call it."""
    ends = []
    for workers in ([], [Halves()]):
        game = Game(normed=False, count=3)
        means = game.opponent.advance(7, *workers)
        assert game.calls[-2:] == [(7, 2), "after"]
        ends.append({"theta": game.d_params.theta, **{k: np.array(v) for k, v in means.items()}})
    for name, value in ends[0].items():
        np.testing.assert_allclose(ends[1][name], value, rtol=1e-10, atol=1e-14, err_msg=name)


@on_every_backend
def test_what_is_restored_lands_where_the_net_is(born):
    """Even from host numbers of another precision; and earlier pullbacks are void."""
    told, game = Game(born), Game(born)
    told.fit.until(3, quiet=True)
    state = told.opponent.state()
    x = game.stream.normal((BATCH, 3))
    y, pullback = game.d(x)
    game.d_params.grad[...] = 1.0
    game.opponent.restore({k: host(v) if hasattr(v, "shape") else v for k, v in state.items()})
    assert_same(
        {k: v for k, v in game.everything().items() if k.startswith("opponent/")},
        {k: v for k, v in told.everything().items() if k.startswith("opponent/")},
    )
    for name, value in game.opponent.state().items():
        assert type(value) is type(state[name])
        if name != "optimiser/steps":
            assert value.dtype == game.d_params.grad.dtype
            assert value.device == game.d_params.grad.device
    assert not np.any(host(game.d_params.grad))
    with pytest.raises(StalePullback):
        pullback(y)


def test_another_opponent_is_refused(tmp_path):
    def without(game):
        game.fit.opponent = None

    def by_adam(game):
        game.opponent.optimiser = Adam(game.d_params)

    def wider(game):
        game.d = net(3, 1, True, width=6)
        game.d_params = game.opponent.params = bound(game.d)
        game.opponent.optimiser = RmsProp(game.d_params)

    Game().fit.save(tmp_path / "c.npz", {})
    for change in (without, by_adam, wider):
        game = Game()
        change(game)
        with pytest.raises(CheckpointError, match="another opponent setting"):
            game.fit.restore(tmp_path / "c.npz")
    alone = Game()
    alone.fit.opponent = None
    alone.fit.save(tmp_path / "alone.npz", {})
    with pytest.raises(CheckpointError, match="another opponent setting"):
        Game().fit.restore(tmp_path / "alone.npz")


def test_a_step_that_the_guard_refuses_is_a_lesson_for_the_opponent_only():
    game, other = Game(guard=SpikeGuard(1e-9)), Game()
    first = game.copies()
    for each in (game, other):
        each.fit.advance()
    now = game.everything()
    np.testing.assert_array_equal(now["theta"], first["theta"])
    np.testing.assert_array_equal(now["opponent/theta"], other.everything()["opponent/theta"])
    assert np.any(now["opponent/theta"] != first["opponent/theta"])
    assert game.fit.guard.skipped == 1


class Witness:
    """A control that remembers what it saw."""

    def __init__(self):
        self.seen = []

    def observe(self, means):
        self.seen.append(dict(means))

    def state(self):
        return {}

    def restore(self, state):
        pass


def test_the_control_sees_the_terms_of_both_sides():
    game = Game(control=Witness())
    game.fit.until(3, quiet=True)
    for name in ("fooled", "gradient_norm", "real", "fake", "opponent_gradient_norm"):
        seen = [means[name] for means in game.fit.control.seen]
        assert game.fit.history[name] == [pytest.approx(np.mean(seen), rel=1e-12)]


def test_two_terms_of_one_name_are_refused():
    game = Game()
    game.fit.loss = lambda step, rows: {"real": game.g_loss(step, rows)["fooled"]}
    before = game.copies()
    with pytest.raises(ValueError, match="share a name, got .'real'. and .'real', 'fake'"):
        game.fit.advance()
    assert_same(game.everything(), before)
    assert_no_gradient(game)


@given(seeds(), st.integers(1, 4))
def test_one_step_is_the_rule_unless_told(seed, count):
    """And nothing comes after, and no context is needed."""
    layer, calls = Linear(2, 1), []
    params = bound(layer, seed)

    def loss(step, j, rows):
        calls.append((step, j, rows))
        y, pullback = layer(np.ones((rows.stop, 2)))
        pullback(y)
        return {"square": 0.5 * y[:, 0] ** 2}

    means = Opponent(layer, params, RmsProp(params), loss, count).advance(3)
    assert calls == [(3, 0, slice(0, count))]
    assert set(means) == {"square", "opponent_gradient_norm"}


@pytest.mark.parametrize(("batch_size", "count"), [(0, 1), (4, 0), (-1, 1), (4, -1)])
def test_arguments_are_checked(batch_size, count):
    layer = Linear(1, 1)
    params = bound(layer)
    with pytest.raises(ValueError, match="got"):
        Opponent(layer, params, Adam(params), lambda step, j, rows: {}, batch_size, count)
