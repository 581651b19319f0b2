"""Every example of a batch has a level and a shape of its own: no function mixes them up.

f(batch) is f(example by example), and images are worked on as flat rows are: values and pullbacks,
with another level in every row.
"""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.maths import diffusion_bound as b
from scratchgen.maths import forward_process as f
from scratchgen.maths import parameterisations as p
from scratchgen.maths import score as s
from scratchgen.testing.oracle import _as_tuple
from scratchgen.testing.strategies import seeds, shapes

from support import normals

LEVELS = 2  # K of the K-way head; two logits a number


def reverse(x, t):
    """A reverse model that treats every number alike."""
    return 0.9 * np.tanh(x) + 0.1 * t, -0.3 - 0.1 * np.cos(x)


def hinted(way):
    return lambda x, hint, level, _: getattr(f.Shifted(hint), way)(x, level)


def along(path_function):
    """A function of whole paths, on (N, T+1, ...) and with two more levels behind the two."""

    def on_examples(x, y, now, before):
        levels = np.stack([0.0 * before, before, now])
        path = np.stack([x, y, x - 2.0 * y])
        return path_function(path, levels)

    return on_examples


def with_k_logits(way):
    """The K-way head, its logits made of the one array: K for each of its numbers."""

    def on_examples(x, y, now, before):
        logits = np.repeat(x, LEVELS, axis=-1) * np.tile([1.0, -0.5], x.shape[-1])
        return getattr(p.KWay(LEVELS), way)(logits, y, now, before)

    return on_examples


CASES = {
    "q_sample": lambda x, y, now, _: f.q_sample(x, y, now),
    "q_posterior": f.q_posterior,
    "ddim_step": lambda x, y, now, before: f.ddim_step(
        x, y, x * y, -0.5 * np.expm1(before), before
    ),
    "step_log_density": f.step_log_density,
    "plain": hinted("plain"),
    "shifted": hinted("shifted"),
    "q_chain": along(lambda path, levels: tuple(f.q_chain(path[0], path[1:], levels))),
    "chain_log_density": along(f.chain_log_density),
    "reverse_mean": p.reverse_mean,
    "prior_kl": lambda x, _, now, __: b.prior_kl(x, now),
    "transition_kl": lambda x, y, *at: b.transition_kl(x, y, np.sin(x), *at),
    "squared_error": lambda x, y, *_: b.squared_error(x, y),
    "base_log_density": lambda x, *_: b.base_log_density(x),
    "path_bound": along(lambda path, levels: b.path_bound(path, reverse, levels)),
    "consistency_split": along(lambda path, levels: b.consistency_split(path, reverse, levels)),
    "posterior_split": along(
        lambda path, levels: tuple(b.posterior_split(path[0], path[1:], reverse, levels))
    ),
    "tweedie": lambda x, y, now, _: s.tweedie(x, y, -now),
    "denoised": lambda x, y, now, _: s.denoised(x, y, now),
    "eps_from_score": lambda x, _, now, __: s.eps_from_score(x, now),
    "score_from_eps": lambda x, _, now, __: s.score_from_eps(x, now),
    "denoising_score_matching": lambda x, y, now, _: s.denoising_score_matching(x, y, now),
    "reverse_step": lambda x, y, now, before: s.reverse_step(x, y, x + y, -now, now, before),
    "reverse_sde_drift": lambda x, y, now, _: s.reverse_sde_drift(x, y, -now),
    "probability_flow_drift": lambda x, y, now, _: s.probability_flow_drift(x, y, -now),
    "reverse_chain": along(
        lambda path, levels: tuple(
            s.reverse_chain(
                lambda x, level: f.shaped(level, x) * x, path[0], path[1:], -levels, levels
            )
        )
    ),
}
for kind in (p.Epsilon(), p.Clean(), p.Velocity(), p.Score(), p.Mean()):
    CASES[f"{type(kind).__name__}.clean"] = kind.clean
    CASES[f"{type(kind).__name__}.epsilon"] = kind.epsilon
    CASES[f"{type(kind).__name__}.target"] = kind.target
for way in ("clean", "epsilon"):
    CASES[f"KWay.{way}"] = with_k_logits(way)

NUMBERS = {
    "kernel": lambda variance, now, before: f.kernel(now, before),
    "posterior": lambda variance, now, before: f.posterior(now, before),
    "log_snr": lambda variance, now, before: f.log_snr(now),
    "marginal_variance": lambda variance, now, before: f.marginal_variance(now, variance),
    "epsilon_weight": b.epsilon_weight,
    "clean_weight": b.clean_weight,
    "variance_constant": partial(b.variance_constant, dims=3),
    "optimal_variance": partial(b.optimal_variance, dims=3),
}

rows = st.lists(
    st.tuples(st.floats(-6.0, -1e-3), st.floats(1e-3, 2.0)), min_size=2, max_size=4, unique=True
)


def results(function, arrays, levels):
    """All values, and all cotangents of a cotangent that each entry derives from its own value."""
    found = function(*arrays, *levels)
    if isinstance(found, tuple) and callable(found[1]):
        value, pullback = found
        return value, *_as_tuple(pullback(np.cos(3.0 * value)))
    return _as_tuple(found)


@pytest.mark.parametrize("name", CASES)
@given(seeds(), rows, shapes(3, 3))
def test_every_example_has_its_own_level_and_any_shape(name, seed, pairs, shape):
    function, n = CASES[name], len(pairs)
    before = np.asarray([level for level, _ in pairs])
    now = before - np.asarray([step for _, step in pairs])
    x, y = normals(seed, 2, n, *shape)
    whole = results(function, (x, y), (now, before))
    flat = results(function, (x.reshape(n, -1), y.reshape(n, -1)), (now, before))
    for together, row in zip(whole, flat, strict=True):
        np.testing.assert_allclose(together.reshape(n, -1), row.reshape(n, -1), rtol=1e-9)
    for i in range(n):
        one = slice(i, i + 1)
        alone = results(function, (x[one], y[one]), (now[one], before[one]))
        for together, single in zip(whole, alone, strict=True):
            np.testing.assert_allclose(together[one], single, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NUMBERS)
@given(rows)
def test_every_coefficient_belongs_to_its_own_level(name, pairs):
    before = np.asarray([level for level, _ in pairs])
    now = before - np.asarray([step for _, step in pairs])
    at = (-0.1 * now, now, before)
    whole = results(NUMBERS[name], (), at)
    for i in range(len(pairs)):
        alone = results(NUMBERS[name], (), [v[i : i + 1] for v in at])
        for together, single in zip(whole, alone, strict=True):
            np.testing.assert_allclose(together[i : i + 1], single, rtol=1e-12)
