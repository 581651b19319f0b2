"""Every layer and net of tests/catalogue.py: all laws, every backend, every direction."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from catalogue import CASES, Case
from hypothesis import given, settings
from matrix import DIRECTIONS, NONE_NEEDED, cell

import scratchgen
from scratchgen.core.module import Module
from scratchgen.core.streams import Stream
from scratchgen.layers.combinators import Residual, Sequential
from scratchgen.testing import oracle
from scratchgen.testing.oracle import assert_close
from scratchgen.testing.strategies import seeds

from support import NUMPY, bound, host, normals, on_every_backend, tolerance

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
a_few = settings(max_examples=3)  # what varies is drawn in the layers' own files

# they are how layers are made, or what layers are made of, and not layers
HELPERS = {
    "activate", "Activation", "active", "add_kernel_gradient", "Affine", "chain_between",
    "ChainNets", "conv_channels", "conv_classifier", "convolution", "correlate",
    "correlate_adjoint", "dilate", "fan_in_normal", "gather", "group_norm", "halvings",
    "LadderNets", "lecun_normal", "one_values", "pad", "patches", "patches_in_blocks", "place_sum",
    "require_channels", "tracking", "transposed_convolution", "turned", "zero_values",
}  # fmt: skip


def made(case: Case, seed: int = 1, born=NUMPY):
    """(params, layer, f, inputs): parameters and buffers away from their special first values."""
    layer = case.build()
    owner = Module()
    owner.layer = layer  # a layer without parameters may be a plain function
    params = bound(owner, seed, born)
    for name, buffer in params.buffers.items():
        nudge = Stream(seed, born).at("nudge", name).uniform(buffer.shape)
        buffer.value = buffer.value + 0.1 * nudge
    inputs = [
        born.indices(x) if x.dtype.kind == "i" else born.asarray(x) for x in case.inputs(seed)
    ]
    return params, layer, case.call(layer, born), inputs


def cotangents(pulled) -> tuple:
    """Those of the inputs that have one."""
    return tuple(d for d in (pulled if isinstance(pulled, tuple) else (pulled,)) if d is not None)


def test_every_layer_and_net_has_a_case():
    named = {case.name.split(",")[0].split()[0] for case in CASES}
    root = Path(scratchgen.__file__).parent
    for path in [*(root / "layers").glob("[a-z]*.py"), *(root / "nets").glob("[a-z]*.py")]:
        module = import_module(f"scratchgen.{path.parent.name}.{path.stem}")
        for name, found in vars(module).items():
            public = callable(found) and not name.startswith("_")
            if public and getattr(found, "__module__", None) == module.__name__:
                assert name in HELPERS or name in named, f"{path.stem}.{name} has no case"


@every_case
@a_few
@given(seed=seeds())
def test_gradients_are_autograds(case, seed):
    params, _, f, inputs = made(case, seed)
    if params.table:
        oracle.check_gradient(params, f, *inputs)
    if not case.discrete:
        with params.frozen():
            oracle.check_pullback(f, *inputs)


@every_case
@a_few
@given(seed=seeds())
def test_pullbacks_are_linear_and_accumulate(case, seed):
    params, _, f, inputs = made(case, seed)
    oracle.check_accumulation(params, f, *inputs)
    if not case.discrete:
        with params.frozen():
            oracle.check_pullback_is_linear(f, *inputs)


@pytest.mark.parametrize("case", [c for c in CASES if c.tangent], ids=lambda case: case.name)
@a_few
@given(seed=seeds())
def test_pushforwards_are_directional_derivatives(case, seed):
    params, layer, _, (x,) = made(case, seed)
    x_dot = normals(seed + 9, *x.shape)
    with params.frozen():
        oracle.check_pushforward(layer, x, x_dot)
    if params.table:
        oracle.check_gradient(params, layer.pushforward, x, x_dot)


@pytest.mark.parametrize("case", [c for c in CASES if c.analytic], ids=lambda case: case.name)
@a_few
@given(seed=seeds())
def test_adjoint_identity_by_the_complex_step(case, seed):
    """⟨dy, J v⟩ = ⟨Jᵀ dy, v⟩ with J v = Im f(x + ihv)/h, which no rounding spoils."""
    params, _, f, inputs = made(case, seed)
    directions = [normals(seed + 5 + i, *x.shape) for i, x in enumerate(inputs)]
    moved, _ = f(*(x + 1e-30j * v for x, v in zip(inputs, directions, strict=True)))
    y, pullback = f(*inputs)
    dy = normals(seed + 20, *y.shape)
    with params.frozen():
        pulled = cotangents(pullback(dy))
    left = dy * (moved.imag / 1e-30)
    right = [np.sum(d * v) for d, v in zip(pulled, directions, strict=True)]
    assert abs(np.sum(left) - sum(right)) <= 1e-11 * np.sum(np.abs(left))


@every_case
def test_examples_of_a_batch_do_not_see_each_other_unless_they_must(case):
    """The first example alone gives what it gave in the batch, forward and backward."""
    params, _, f, inputs = made(case)
    y, pullback = f(*inputs)
    first, first_pullback = f(*(x[:1] for x in inputs))
    dy = normals(8, *y.shape)
    with params.frozen():
        whole, alone = cotangents(pullback(dy)), cotangents(first_pullback(dy[:1]))
    pairs = [(first, y[:1]), *((a, w[:1]) for a, w in zip(alone, whole, strict=True))]
    gaps = [np.max(np.abs(a - w)) / np.max(np.abs(w)) for a, w in pairs]
    assert (max(gaps) > 1e-3) if case.mixes else (max(gaps) < 1e-12)


def results(case: Case, born, direction: str) -> list:
    """What one direction computes on a backend, from the same numbers on each."""
    params, layer, f, inputs = made(case, born=born)
    if direction == "forward":
        return [f(*inputs)[0]]
    if direction == "pullback":
        y, pullback = f(*inputs)
        return [*cotangents(pullback(born.asarray(normals(8, *y.shape)))), params.grad]
    (x,) = inputs
    (y, y_dot), pullback = layer.pushforward(x, born.asarray(normals(9, *x.shape)))
    dy, dy_dot = (born.asarray(normals(seed, *y.shape)) for seed in (10, 11))
    return [y, y_dot, *pullback(dy, dy_dot), params.grad]


@every_case
@on_every_backend
def test_every_backend_computes_the_same(case, born):
    """Forward, pullback and pushforward, in the backend's own dtype and on its own device."""
    for direction in DIRECTIONS:
        with cell(case.name, f"{born.name}-{born.dtype}", direction) as note:
            if direction == "pushforward" and not case.tangent:
                note(NONE_NEEDED)
                continue
            wanted = results(case, NUMPY, direction)
            for got, want in zip(results(case, born, direction), wanted, strict=True):
                assert got.dtype == born.zeros((1,)).dtype
                assert_close(host(got), want, 30.0 * tolerance(born), direction)


def test_the_catalogue_names_every_pushforward_there_is():
    """Sequential and Residual have one where their parts do; all others have it or have it not."""
    for case in CASES:
        layer = case.build()
        if not isinstance(layer, Sequential | Residual):
            assert case.tangent == hasattr(layer, "pushforward"), case.name


def test_no_input_is_changed():
    for case in CASES:
        _, _, f, inputs = made(case)
        for x in inputs:
            x.flags.writeable = False
        y, pullback = f(*inputs)
        y.flags.writeable = False
        dy = normals(8, *y.shape)
        dy.flags.writeable = False
        pullback(dy)


@every_case
def test_an_empty_batch_passes(case):
    _, layer, _, inputs = made(case)
    if case.mixes:
        return  # a mean over nothing
    y, pullback = layer(*(x[:0] for x in inputs))
    assert y.shape[0] == 0
    for d, x in zip(cotangents(pullback(y)), inputs, strict=False):
        assert d.shape == (0, *x.shape[1:])
