"""metrics/likelihood.py on diffusions: every term looked at as often as it is said to be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.streams import Stream
from scratchgen.maths.gamma import LinearGamma
from scratchgen.maths.likelihoods import Normal
from scratchgen.maths.parameterisations import Epsilon
from scratchgen.maths.reverse_variance import PosteriorVariance, StepVariance
from scratchgen.maths.schedules import Schedule
from scratchgen.metrics import likelihood
from scratchgen.models.ddpm import Ddpm
from scratchgen.models.vdm import NormalDecoder, Vdm
from scratchgen.nets.mlp import TimedMlp
from scratchgen.nets.time import Sinusoidal

from support import NUMPY, bound, normals

SCHEDULE = Schedule(np.linspace(0.05, 0.5, 7))
VARIANCES = {"beta": StepVariance(), "posterior": PosteriorVariance(0.02)}


def a_ddpm() -> Ddpm:
    net = TimedMlp([3, 6, 3], 4, Sinusoidal(4))
    model = Ddpm(net, SCHEDULE, Epsilon(), VARIANCES["posterior"], Normal())
    bound(model)
    return model


def a_vdm() -> Vdm:
    net = TimedMlp([3, 6, 3], 4, Sinusoidal(4, scale=10.0))
    model = Vdm(net, LinearGamma(-4.0, 5.0), Epsilon(), NormalDecoder())
    bound(model)
    return model


@given(st.integers(1, 40), st.integers(1, 9), st.floats(0.0, 0.999))
def test_times_are_spread_over_parts_and_over_examples(n, draws, shift):
    cut = n // 2
    parts = [
        likelihood.spread_times(n, draws, first, count, shift)
        for first, count in ((0, cut), (cut, n - cut))
    ]
    times = np.concatenate(parts, axis=1)
    assert times.shape == (draws, n)
    assert np.all(np.floor(times * draws) == np.arange(draws)[:, None]), "one in each part"
    every = np.sort(times.ravel())
    np.testing.assert_allclose(np.diff(every), 1.0 / (n * draws), rtol=1e-6)


@pytest.mark.equation("VDM-9")
@given(st.integers(1, 5), st.integers(1, 6))
def test_a_vdm_s_terms_are_the_means_over_its_times(n, draws):
    model, x, stream = a_vdm(), normals(0, n, 3), Stream(5, NUMPY)
    found = likelihood.vdm_bounds(model, x, stream, draws)
    shift = float(stream.at("shift").uniform((1,))[0])
    times = likelihood.spread_times(n, draws, 0, n, shift)
    looks = [
        model.loss(
            x, t, *(stream.from_row(0).at(name, j).normal((n, 3)) for name in ("eps", "eps0"))
        )[0]
        for j, t in enumerate(times)
    ]
    for i, name in enumerate(("prior", "diffusion", "reconstruction")):
        want = np.mean([terms[i] for terms in looks], axis=0)
        np.testing.assert_allclose(found[name], want, rtol=1e-12)
    over_time = [float(terms[1].mean()) for terms in looks]
    np.testing.assert_allclose(found["over_time"], over_time, rtol=1e-12)
    np.testing.assert_allclose(found["time"], (np.arange(draws) + 0.5) / draws, rtol=1e-15)


@pytest.mark.equation("DDPM-8")
@pytest.mark.equation("DDPM-9")
@given(st.integers(1, 5))
def test_with_a_draw_for_every_step_each_term_is_looked_at_once(n):
    """T - 1 draws or more: L_T, L_0 and every L_{t-1} of each example, on known noise."""
    model, x, stream = a_ddpm(), normals(0, n, 3), Stream(5, NUMPY)
    last = SCHEDULE.steps
    for draws in (last - 1, last + 20):
        found = likelihood.ddpm_bounds(model, x, stream, draws, VARIANCES)
        draw = stream.from_row(0)
        np.testing.assert_array_equal(found["count"], [0.0, *[float(n)] * last])
        np.testing.assert_allclose(found["prior"], model.prior(x), rtol=1e-12)
        sums = {name: np.zeros(n) for name in VARIANCES}
        for t in range(1, last + 1):
            noise = draw.at("first") if t == 1 else draw.at("later", t - 2)
            eps, steps = noise.normal((n, 3)), np.full(n, t)
            x_t, output, simple, error = model.look(x, steps, eps)
            assert found["simple"][t] == pytest.approx(float(simple.mean()))
            assert found["error"][t] == pytest.approx(float(error.mean()))
            for name, variance in VARIANCES.items():
                term, _ = model.bound_term(x, x_t, steps, output, variance)
                assert found[f"term/{name}"][t] == pytest.approx(float(term.mean()))
                if t == 1:
                    np.testing.assert_allclose(found[f"reconstruction/{name}"], term, rtol=1e-12)
                else:
                    sums[name] += term
        for name in VARIANCES:
            np.testing.assert_allclose(found[f"transitions/{name}"], sums[name], rtol=1e-10)


@pytest.mark.equation("DDPM-8")
@pytest.mark.equation("DDPM-9")
@given(st.integers(1, 5), st.integers(1, 9))
def test_few_draws_are_weighted_up(draws, n):
    """Steps spread over the examples; the sum over an example's looks, times (T-1)/draws."""
    model, x, stream = a_ddpm(), normals(1, n, 3), Stream(5, NUMPY)
    last = SCHEDULE.steps
    found = likelihood.ddpm_bounds(model, x, stream, draws, VARIANCES)
    shift = float(stream.at("shift").uniform((1,))[0])
    times = likelihood.spread_times(n, draws, 0, n, shift)
    steps = 2 + np.floor(times * (last - 1)).astype(int)
    want = np.bincount(steps.ravel(), minlength=last + 1)
    want[1] = n
    np.testing.assert_array_equal(found["count"], want)
    for name in VARIANCES:
        looked = found[f"term/{name}"][2:] * found["count"][2:]
        total = float(found[f"transitions/{name}"].sum())
        assert total == pytest.approx((last - 1) / draws * float(looked.sum()))


@pytest.mark.equation("DDPM-8")
@pytest.mark.equation("VDM-9")
def test_an_example_is_measured_alike_in_every_batch(monkeypatch):
    x, stream = normals(0, 150, 3), Stream(5, NUMPY)
    measures = [
        lambda: likelihood.vdm_bounds(a_vdm(), x, stream, 3),
        lambda: likelihood.ddpm_bounds(a_ddpm(), x, stream, 3, VARIANCES),
    ]
    for measure in measures:
        monkeypatch.setattr(likelihood, "NUMBERS", 3 * 1000)
        whole = measure()
        monkeypatch.setattr(likelihood, "NUMBERS", 3 * 64)
        pieces = measure()
        for name in whole:
            np.testing.assert_allclose(whole[name], pieces[name], rtol=1e-10, err_msg=name)


def test_two_steps_are_enough():
    model = a_ddpm()
    model.schedule = Schedule([0.1, 0.3])
    found = likelihood.ddpm_bounds(model, normals(0, 3, 3), Stream(5, NUMPY), 10, VARIANCES)
    np.testing.assert_array_equal(found["count"], [0.0, 3.0, 3.0])
