"""The mutants that are let live: still there, few, and no different from the original."""

import tomllib

import numpy as np
import pytest

from mutation.__main__ import ALLOWED, PACKAGE, name
from mutation.operators import mutants
from mutation.swap import executed, module_of

ENTRIES = tomllib.loads(ALLOWED.read_text("utf-8"))["mutant"]
INPUTS = 10_000


def uniform(low, high, key=0):
    return np.random.Generator(np.random.Philox(key=key)).uniform(low, high, INPUTS)


def log1mexp(f):
    return f(np.concatenate([uniform(0.6, 1.2), 10.0 ** uniform(-9.0, 2.0), [np.log(2.0)]]))


def expm1_minus(f):
    return f(np.concatenate([uniform(-0.04, 0.04), uniform(-40.0, 40.0)]))


def discretised_normal_nll(f):
    """Bins around the width at which the form changes, seen from near and far, and others."""
    c, share = uniform(0.0, 12.0), np.append(uniform(0.9, 1.1, key=1)[:-1], 1.0)
    c[::100] = 0.0
    width = np.where(np.arange(INPUTS) % 4 > 0, 0.05 * share, 3.0 * share) / (1.0 + c)
    sigma = 2.0 / 17.0 / width
    nll, pullback = f(np.zeros(INPUTS), -c * sigma, 2.0 * np.log(sigma), 17)
    d_mean, d_logvar = pullback(np.ones(INPUTS))
    return np.concatenate([nll, 1.0 - d_mean * sigma, 1.0 - d_logvar])  # both are 1 or more


# what a constant's mutants are seen through
CALLED = {"LOG_2 = log(2.0)": log1mexp, "NARROW = 0.05": discretised_normal_nll}


def test_they_are_few_and_all_different():
    assert len(ENTRIES) <= 20
    assert len({(e["file"], e["function"], e["before"], e["after"]) for e in ENTRIES}) == len(
        ENTRIES
    )
    assert all(entry["proof"] for entry in ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e['function']}: {e['after']}")
def test_a_mutant_that_is_let_live_is_no_different(entry):
    wanted = (entry["file"], entry["function"], entry["before"], entry["after"])
    (mutant,) = (m for m in mutants(PACKAGE / entry["file"]) if name(m) == wanted)
    evaluate = CALLED.get(entry["before"]) or globals()[entry["function"]]
    original = getattr(module_of(mutant.path), evaluate.__name__)
    want, got = evaluate(original), evaluate(executed(mutant)[evaluate.__name__])
    assert len(want) >= INPUTS
    np.testing.assert_allclose(got, want, rtol=entry["agree"], atol=0.0)
