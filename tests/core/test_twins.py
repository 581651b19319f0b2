"""core/twins.py: the faster answer, where it applies."""

import numpy as np
import pytest

from scratchgen.core import twins
from scratchgen.layers.attention import SelfAttention, softmax
from scratchgen.layers.conv import (
    Conv2d,
    ConvTranspose2d,
    add_kernel_gradient,
    convolution,
    gather,
)
from scratchgen.layers.normalisation import (
    AdaptiveGroupNorm,
    GroupNorm,
    group_norm,
    place_sum,
)
from scratchgen.training.optim import adam

from support import bound, normals


@pytest.fixture
def doubled(monkeypatch):
    monkeypatch.setattr(twins, "_twins", {})

    @twins.readable
    def double(x):
        """2x, slowly."""
        return x + x

    twins.register(double, lambda x: (2 * x, "fast"), applies=lambda x: type(x) is np.ndarray)
    return double


def test_a_twin_answers_only_where_it_applies(doubled):
    assert doubled(np.asarray(3))[1] == "fast"
    assert doubled(3) == 6
    assert doubled.__doc__ == "2x, slowly."


def test_twins_can_be_switched_off_and_listed(doubled):
    (name,) = twins.active()
    assert name.endswith("double")
    with twins.disabled():
        assert doubled(np.asarray(3)) == 6
        assert twins.active() == []
    assert doubled(np.asarray(3))[1] == "fast"


def test_the_first_of_several_twins_that_applies_answers(doubled):
    twins.register(doubled, lambda x: (2 * x, "for lists"), applies=lambda x: type(x) is list)
    assert doubled([1]) == ([1, 1], "for lists")
    assert doubled(np.asarray(3)) == (6, "fast")
    twins.register(doubled, lambda x: "never", applies=lambda x: type(x) is list)
    assert doubled([1]) == ([1, 1], "for lists")
    assert len(twins.active()) == 1


def test_only_marked_functions_have_twins_each_once(doubled):
    with pytest.raises(ValueError, match="@readable"):
        twins.register(abs, abs, applies=bool)
    twins.register(doubled, abs, applies=lambda x: False)
    with pytest.raises(ValueError, match="already has the twin abs"):
        twins.register(doubled, abs, applies=bool)


@pytest.mark.parametrize(
    "marked", [adam, add_kernel_gradient, convolution, gather, group_norm, place_sum, softmax]
)
def test_the_costly_functions_of_the_layers_are_marked(marked, monkeypatch):
    monkeypatch.setattr(twins, "_twins", {})
    twins.register(marked, lambda *given, **named: "the twin", applies=lambda *given, **named: True)
    assert marked(1.0) == "the twin"


@pytest.mark.parametrize(
    ("marked", "make", "inputs"),
    [
        (convolution, lambda: Conv2d(2, 3), [(2, 4, 4, 2)]),
        (gather, lambda: Conv2d(2, 3), [(2, 4, 4, 2)]),
        (gather, lambda: ConvTranspose2d(2, 3), [(2, 4, 4, 2)]),
        (group_norm, lambda: GroupNorm(4, 2), [(2, 3, 3, 4)]),
        (group_norm, lambda: AdaptiveGroupNorm(4, 3, 2), [(2, 3, 3, 4), (2, 3)]),
        (softmax, lambda: SelfAttention(4), [(2, 3, 4)]),
    ],
)
def test_layers_go_through_the_marked_functions(marked, make, inputs, monkeypatch):
    monkeypatch.setattr(twins, "_twins", {})
    called = []

    def twin(*given, **named):
        called.append(given)
        return marked.readable(*given, **named)

    twins.register(marked, twin, applies=lambda *given, **named: True)
    layer = make()
    bound(layer)
    layer(*(normals(i, *shape) for i, shape in enumerate(inputs)))
    assert len(called) == 1
