"""training/optim.py: Adam and RMSProp against the textbook in exact arithmetic; averages, rates."""

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.module import FlatParameters, StalePullback
from scratchgen.core.streams import Stream
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.testing.strategies import seeds
from scratchgen.training.optim import Adam, Ema, RmsProp, global_norm, warmup_cosine

from support import BACKENDS, NUMPY, bound, host, normals, on_every_backend, tolerance


def textbook(theta, gradients, lr, beta1, beta2, tiny, decay):
    """Algorithm 1 of Kingma & Ba with decoupled decay, one number at a time."""
    m = v = Decimal(0)
    theta, lr, beta1, beta2 = Decimal(theta), Decimal(lr), Decimal(beta1), Decimal(beta2)
    for t, g in enumerate(map(Decimal, gradients), start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        theta -= lr * Decimal(decay) * theta
        theta -= lr * m_hat / (v_hat.sqrt() + Decimal(tiny))
    return float(theta)


def lecture(theta, gradients, lr, rho, tiny):
    """Lecture 6.5 of Tieleman & Hinton, one number at a time."""
    v, theta, rho = Decimal(0), Decimal(theta), Decimal(rho)
    for g in map(Decimal, gradients):
        v = rho * v + (1 - rho) * g * g
        theta -= Decimal(lr) * g / (v.sqrt() + Decimal(tiny))
    return float(theta)


FLOAT32 = BACKENDS[1]
rates = st.floats(0.0, 0.999)


@given(seeds(), rates, rates, st.floats(1e-8, 1e-2), st.floats(1e-4, 0.1), st.floats(0.0, 0.5))
def test_adam_is_the_textbook(seed, beta1, beta2, tiny, lr, decay):
    params = bound(Linear(2, 1), seed)
    first, gradients = 1.0 * params.theta, normals(seed, 4, 3)
    adam = Adam(params, lr, beta1, beta2, tiny, decay)
    for g in gradients:
        params.grad += g
        adam.step()
        assert not np.any(params.grad)
    want = [textbook(first[i], gradients[:, i], lr, beta1, beta2, tiny, decay) for i in range(3)]
    np.testing.assert_allclose(params.theta, want, rtol=1e-10, atol=1e-12)


@given(seeds(), st.floats(-9.0, 0.0))
def test_adam_is_by_default_that_of_its_authors(seed, log_scale):
    """Down to gradients as small as the number that keeps the division finite."""
    params = bound(Linear(2, 1), seed)
    first, gradients = 1.0 * params.theta, 10.0**log_scale * normals(seed, 4, 3)
    adam = Adam(params)
    for g in gradients:
        params.grad += g
        adam.step()
    want = [textbook(first[i], gradients[:, i], 1e-3, 0.9, 0.999, 1e-8, 0.0) for i in range(3)]
    np.testing.assert_allclose(params.theta - first, want - first, rtol=1e-9)


@given(seeds(), rates, st.floats(1e-8, 1e-2), st.floats(1e-4, 0.1))
def test_rmsprop_is_the_lecture(seed, rho, tiny, lr):
    params = bound(Linear(2, 1), seed)
    theta, first, gradients = params.theta, 1.0 * params.theta, normals(seed, 4, 3)
    rmsprop = RmsProp(params, lr, rho, tiny)
    for g in gradients:
        params.grad += g
        rmsprop.step()
        assert not np.any(params.grad)
    want = [lecture(first[i], gradients[:, i], lr, rho, tiny) for i in range(3)]
    np.testing.assert_allclose(params.theta, want, rtol=1e-10, atol=1e-12)
    assert params.theta is theta


@given(seeds(), st.floats(-9.0, 0.0))
def test_rmsprop_is_by_default_that_of_pytorch_at_the_rate_of_adam(seed, log_scale):
    """Down to gradients as small as the number that keeps the division finite."""
    params = bound(Linear(2, 1), seed)
    first, gradients = 1.0 * params.theta, 10.0**log_scale * normals(seed, 4, 3)
    rmsprop = RmsProp(params)
    for g in gradients:
        params.grad += g
        rmsprop.step()
    want = [lecture(first[i], gradients[:, i], 1e-3, 0.99, 1e-8) for i in range(3)]
    np.testing.assert_allclose(params.theta - first, want - first, rtol=1e-9)


@given(seeds(), rates, st.floats(1e-5, 0.1))
def test_the_first_step_of_rmsprop_is_equally_long_in_every_entry(seed, rho, lr):
    """lr/√(1-ρ), against the gradient."""
    params = bound(Linear(2, 1), seed)
    first, g = 1.0 * params.theta, normals(seed, 3)
    params.grad += g
    RmsProp(params, lr, rho, tiny=1e-30).step()
    want = -lr / (1.0 - rho) ** 0.5 * np.sign(g)
    np.testing.assert_allclose(params.theta - first, want, rtol=1e-9)


@pytest.mark.parametrize("kind", [Adam, RmsProp])
@given(seed=seeds(), scale=st.floats(0.01, 100.0))
def test_neither_sees_the_scale_of_the_loss(kind, seed, scale):
    ends = []
    for factor in (1.0, scale):
        params = bound(Linear(2, 1), seed)
        optimiser = kind(params, tiny=1e-30)
        for g in normals(seed, 3, 3):
            params.grad += factor * g
            optimiser.step()
        ends.append(params.theta)
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-9)


@pytest.mark.parametrize("kind", [Adam, RmsProp])
@given(seed=seeds())
def test_the_rate_may_depend_on_the_step(kind, seed):
    """Counted from 0; a rate of 0 leaves θ where it is, and the memory goes on."""
    params, asked = bound(Linear(2, 1), seed), []
    optimiser = kind(params, lambda step: asked.append(step) or (0.0, 0.1, 0.0)[step])
    ends = [1.0 * params.theta]
    for g in normals(seed, 3, 3):
        params.grad += g
        optimiser.step()
        ends.append(1.0 * params.theta)
    moved = [bool(np.all(a != b)) for a, b in zip(ends, ends[1:], strict=False)]
    assert asked == [0, 1, 2]
    assert moved == [False, True, False]
    assert np.all(ends[0] == ends[1])
    assert np.all(ends[2] == ends[3])


@on_every_backend
@pytest.mark.parametrize("kind", [Adam, RmsProp])
def test_what_is_restored_continues_bit_for_bit(kind, born):
    """Two steps, then two more: by the same optimiser, and by another that was told its state."""
    gradients, ends = [born.asarray(g) for g in normals(2, 4, 8)], []
    for changes in (False, True):
        params = bound(Linear(3, 2), born=born)
        optimiser = kind(params, warmup_cosine(0.1, 5, 2))
        for i, g in enumerate(gradients):
            if changes and i == 2:
                told, optimiser = optimiser, kind(params, warmup_cosine(0.1, 5, 2))
                optimiser.restore(told.state())
            params.grad[...] = g
            optimiser.step()
        kept = {name: value for name, value in optimiser.state().items() if name != "steps"}
        ends.append({"theta": params.theta, **kept})
        assert optimiser.steps == 4
    for name, value in ends[0].items():
        np.testing.assert_array_equal(host(value), host(ends[1][name]), err_msg=name)


@given(seeds(), rates)
def test_a_checkpoint_holds_the_average_of_rmsprop_under_its_name(seed, rho):
    """v/(1-ρ), as it stands after two steps."""
    params = bound(Linear(2, 1), seed)
    rmsprop, (first, second) = RmsProp(params, rho=rho), normals(seed, 2, 3)
    for g in (first, second):
        params.grad += g
        rmsprop.step()
    state = rmsprop.state()
    assert set(state) == {"v", "steps"}
    np.testing.assert_allclose(state["v"], rho * first**2 + second**2, rtol=1e-12)
    assert state["steps"] == 2


@given(seeds(), rates, rates)
def test_a_checkpoint_holds_each_average_under_its_name(seed, beta1, beta2):
    """m/(1-β₁) and v/(1-β₂), as they stand after two steps."""
    params = bound(Linear(2, 1), seed)
    adam, (first, second) = Adam(params, 1e-3, beta1, beta2), normals(seed, 2, 3)
    for g in (first, second):
        params.grad += g
        adam.step()
    state = adam.state()
    np.testing.assert_allclose(state["m"], beta1 * first + second, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(state["v"], beta2 * first**2 + second**2, rtol=1e-12)
    assert state["steps"] == 2


class Cutting:
    """Workers that update any parts of the vectors, one after the other."""

    def __init__(self, cuts):
        self.cuts, self.calls = sorted(cuts), 0

    def run(self, params, shard, batch_size):
        raise NotImplementedError

    def elementwise(self, update, *vectors):
        self.calls += 1
        edges = [0, *self.cuts, vectors[0].size]
        for first, last in zip(edges[::-1][1:], edges[::-1], strict=False):
            update(*(v[first:last] for v in vectors))


@given(seeds(), st.lists(st.integers(0, 30), max_size=5), st.floats(0.0, 0.5), st.floats(0.0, 0.99))
def test_the_parts_are_the_whole(seed, cuts, weight_decay, decay):
    """Both optimisers and the average, whoever shares the work, even where a part is empty."""
    cutting, ends = Cutting(cuts), []
    for workers in ([], [cutting]):
        params = bound(Linear(5, 5), seed)
        adam, ema = Adam(params, 0.1, weight_decay=weight_decay), Ema(params, decay)
        rmsprop = RmsProp(params, 0.1)
        version = params.version
        for g in normals(seed + 1, 3, 30):
            for each in (adam, rmsprop):
                params.grad += g
                each.step(*workers)
                assert not np.any(params.grad)
            ema.step(*workers)
        assert params.version == version + 6
        kept = [*adam.state().values(), *rmsprop.state().values(), *ema.state().values()]
        ends.append((params.theta, *kept))
    assert cutting.calls == 9
    for whole, parts in zip(*ends, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("kind", [Adam, RmsProp])
def test_a_step_voids_earlier_pullbacks(kind):
    layer = Linear(2, 1)
    params = bound(layer)
    y, pullback = layer(normals(0, 3, 2))
    kind(params).step()
    with pytest.raises(StalePullback):
        pullback(y)


@on_every_backend
def test_every_backend_takes_the_same_steps(born):
    ends = []
    for made in (born, NUMPY):
        params = bound(Linear(3, 2), born=made)
        adam, ema = Adam(params, warmup_cosine(0.1, 5, 2), weight_decay=0.1), Ema(params, 0.9)
        rmsprop = RmsProp(params, 0.01)
        for g in normals(1, 5, 8):
            for each in (adam, rmsprop):
                params.grad[...] = made.asarray(g)
                each.step()
            ema.step()
        ends.append((host(params.theta), host(ema.average)))
    for got, want in zip(*ends, strict=True):
        np.testing.assert_allclose(got, want, rtol=10 * tolerance(born), atol=tolerance(born))


@given(st.floats(0.0, 0.9999), st.integers(1, 30))
def test_the_average_is_the_weighted_mean_of_its_history(decay, steps):
    params = FlatParameters(Linear(1, 1), Stream(0, NUMPY))
    ema, want = Ema(params, decay), params.theta[0]
    for n in range(steps):
        params.theta[0] = n**0.5
        ema.step()
        d = min(decay, (1.0 + n) / (10.0 + n))
        want = d * want + (1.0 - d) * n**0.5
    assert ema.average[0] == pytest.approx(want, rel=1e-12)


def test_the_average_is_applied_and_taken_back():
    layer = Linear(1, 1)
    params = bound(layer)
    ema, theta = Ema(params), params.theta
    ema.average[...] = 7.0
    with ema.applied():
        assert layer(np.ones((1, 1)))[0] == 14.0
    assert params.theta is theta


@on_every_backend
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_norm_neither_overflows_nor_underflows(born, scale):
    params, g = bound(Linear(3, 2), born=born), normals(3, 8)
    params.grad[...] = scale * born.asarray(g)
    want = pytest.approx(scale * np.linalg.norm(g), rel=tolerance(born), abs=0.0)
    assert global_norm(params) == want
    np.testing.assert_allclose(host(params.grad), scale * g, rtol=tolerance(born))


@on_every_backend
def test_the_norm_of_no_gradient_is_0(born):
    params = FlatParameters(Sequential(), Stream(0, born))
    assert params.grad.shape == (0,)
    assert global_norm(params) == 0.0


def test_the_norm_of_what_is_not_finite_is_not_finite():
    params = bound(Linear(3, 2))
    assert global_norm(params) == 0.0
    params.grad[3] = np.nan
    assert np.isnan(global_norm(params))
    params.grad[3] = -np.inf
    assert global_norm(params) == np.inf


def test_huge_gradients_neither_overflow_nor_linger():
    params = bound(Linear(3, 2), born=FLOAT32)
    params.grad[...] = np.float32(1e30)
    params.grad[0] = np.float32(1e-30)
    assert global_norm(params) == pytest.approx(1e30 * 7**0.5, rel=1e-5)
    for optimiser in (Adam(params), RmsProp(params)):
        params.grad[...] = np.float32(1e20)
        with np.errstate(over="ignore"):
            optimiser.step()
        assert not np.any(params.grad)
        assert np.all(np.isfinite(params.theta))
    assert global_norm(params) == 0.0


def test_the_schedule_rises_then_falls():
    rate = warmup_cosine(3.0, steps=100, warmup=10, floor=0.5)
    assert [rate(0), rate(9), rate(10)] == pytest.approx([0.3, 3.0, 3.0])
    assert rate(55) == pytest.approx(1.75)
    assert rate(100) == rate(1000) == pytest.approx(0.5)
    assert all(rate(s) >= rate(s + 1) for s in range(10, 110))


def test_the_schedule_may_be_flat():
    rate = warmup_cosine(0.3, steps=10, floor=0.3)
    assert [rate(step) for step in range(11)] == pytest.approx([0.3] * 11)


def test_the_schedule_begins_at_its_peak_and_ends_at_zero_unless_told_otherwise():
    rate = warmup_cosine(3.0, steps=100)
    assert (rate(0), rate(50), rate(100)) == pytest.approx((3.0, 1.5, 0.0))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p: Adam(p, lr=-1.0),
        lambda p: Adam(p, lr=0.0),
        lambda p: Adam(p, lr=float("nan")),
        lambda p: Adam(p, lr=float("inf")),
        lambda p: Adam(p, beta1=1.0),
        lambda p: Adam(p, beta1=-0.1),
        lambda p: Adam(p, beta2=1.0),
        lambda p: Adam(p, beta2=-0.1),
        lambda p: Adam(p, tiny=0.0),
        lambda p: Adam(p, tiny=float("inf")),
        lambda p: Adam(p, weight_decay=-1.0),
        lambda p: Adam(p, weight_decay=float("nan")),
        lambda p: Adam(p, weight_decay=float("inf")),
        lambda p: RmsProp(p, lr=0.0),
        lambda p: RmsProp(p, lr=float("inf")),
        lambda p: RmsProp(p, rho=1.0),
        lambda p: RmsProp(p, rho=-0.1),
        lambda p: RmsProp(p, tiny=0.0),
        lambda p: Ema(p, 1.0),
        lambda p: warmup_cosine(1.0, steps=5, warmup=5),
        lambda p: warmup_cosine(1.0, steps=5, warmup=-1),
        lambda p: warmup_cosine(0.0, steps=5),
        lambda p: warmup_cosine(-1.0, steps=5),
        lambda p: warmup_cosine(float("nan"), steps=5),
        lambda p: warmup_cosine(float("inf"), steps=5),
        lambda p: warmup_cosine(1.0, steps=5, floor=-0.1),
        lambda p: warmup_cosine(1.0, steps=5, floor=1.1),
        lambda p: warmup_cosine(1.0, steps=5, floor=float("nan")),
    ],
)
def test_arguments_are_checked(wrong):
    with pytest.raises(ValueError, match="got"):
        wrong(bound(Linear(1, 1)))
