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
def test_a_shape_is_the_one_that_was_asked_for_or_refused(born):
    arrays.require_shape("eps", born.zeros((2, 3)), (2, 3))
    with pytest.raises(ValueError, match=escape("eps must have shape (2, 3), got (1, 3)")):
        arrays.require_shape("eps", born.zeros((1, 3)), (2, 3))


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
