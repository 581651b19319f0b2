"""core/arrays.py: finding and making arrays."""

import subprocess
import sys
from re import escape

import numpy as np
import pytest

from scratchgen.core import arrays
from scratchgen.core.arrays import BackendUnavailable, backend, namespace

from support import host, on_every_backend


@on_every_backend
def test_arrays_carry_their_library_dtype_and_device(born):
    x = born.asarray([[1.0, 2.0]])
    assert namespace(x).__name__ == born.xp.__name__
    for made in (arrays.ones((3, 1), like=x), arrays.full_like(x, 0.5), born.zeros((2, 2))):
        assert made.dtype == x.dtype
        assert made.device == x.device


@on_every_backend
def test_host_round_trip_keeps_values(born):
    values = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(host(born.asarray(values)), values)
    np.testing.assert_array_equal(host(born.indices([0, 5])), [0, 5])


@on_every_backend
def test_example_sum_and_per_example_are_adjoint(born):
    x, v = born.asarray(np.arange(12.0).reshape(2, 3, 2)), born.asarray([1.0, -2.0])
    left = host(arrays.example_sum(x)) @ host(v)
    right = np.sum(host(x * arrays.per_example(v, like=x)))
    assert left == right


@on_every_backend
def test_a_shape_that_would_broadcast_is_refused(born):
    x = born.zeros((2, 3))
    arrays.require_shape("x", x, (2, 3))
    for shape in ((1, 3), (2, 1), (3,), (1, 2, 3), ()):
        with pytest.raises(ValueError, match=escape(f"x must have shape {shape}, got (2, 3)")):
            arrays.require_shape("x", x, shape)


@on_every_backend
def test_points_have_so_many_dimensions(born):
    x = born.zeros((2, 3))
    assert arrays.with_dims(x, 3) is x
    for dims in (1, 2, 6):
        with pytest.raises(ValueError, match=escape(f"x must be (..., {dims}), got (2, 3)")):
            arrays.with_dims(x, dims)


@on_every_backend
def test_codes_are_integers_below_their_number(born):
    arrays.require_codes("labels", born.indices([[0, 2], [1, 2]]), 3)
    for wrong in ([0, 3], [-1, 0]):
        says = rf"labels must be integers in 0\.\.2, got {wrong[0]} to {wrong[1]}"
        with pytest.raises(ValueError, match=says):
            arrays.require_codes("labels", born.indices(wrong), 3)
    arrays.require_codes("labels", born.indices([]), 3)
    for numbers in ([0.0, 1.0], []):
        with pytest.raises(ValueError, match=r"0\.\.2, got .*float"):
            arrays.require_codes("labels", born.asarray(numbers), 3)
    with pytest.raises(ValueError, match=r"0\.\.2, got .*bool"):
        arrays.require_codes("labels", born.zeros((2,)) == 0.0, 3)
    xp = born.xp
    arrays.require_codes("codes", xp.astype(born.indices([255]), xp.uint8), 1000)


@on_every_backend
def test_halves_are_equal(born):
    low, high = arrays.halves(born.asarray([[0.0, 1.0, 2.0, 3.0]]))
    np.testing.assert_array_equal([host(low), host(high)], [[[0.0, 1.0]], [[2.0, 3.0]]])
    with pytest.raises(ValueError, match=escape("even length, got (2, 3)")):
        arrays.halves(born.zeros((2, 3)))


def test_namespace_refuses_what_is_no_array():
    with pytest.raises(TypeError):
        namespace([1.0])


@pytest.mark.parametrize(("name", "dtype"), [("torch", "float32"), ("numpy", "float16")])
def test_unknown_backend_or_dtype_is_refused(name, dtype):
    with pytest.raises(ValueError, match=r"must be"):
        backend(name, dtype)


def test_cupy_without_a_gpu_is_one_sentence_with_the_pip_line(monkeypatch):
    class Stub:
        class cuda:
            is_available = staticmethod(lambda: False)

    for stub in (Stub, None):  # installed without a GPU, and not installed
        monkeypatch.setitem(sys.modules, "cupy", stub)
        with pytest.raises(BackendUnavailable, match=r"pip install cupy-cuda13x"):
            backend("cupy")


def test_import_is_light():
    forbidden = ["array_api_compat.numpy", "numpy.random", "matplotlib"]
    forbidden += ["hypothesis", "cupy", "mpi4py"]
    code = f"import sys, scratchgen.app.cli; print([m for m in {forbidden} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
