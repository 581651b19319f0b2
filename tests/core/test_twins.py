"""core/twins.py: the faster answer, where it applies."""

import numpy as np
import pytest

from scratchgen.core import twins


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


def test_only_marked_functions_have_one_twin(doubled):
    with pytest.raises(ValueError, match="@readable"):
        twins.register(abs, abs, applies=bool)
    with pytest.raises(ValueError, match="already"):
        twins.register(doubled, abs, applies=bool)
