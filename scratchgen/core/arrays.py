"""Where arrays are born, and how a function finds the library an array belongs to.

There is no global switch. An array carries its library, and `namespace(x)` asks it. To choose a
library is to choose the `Backend` that makes the parameters, the noise and the data; everything
computed from them follows.
"""

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

CUPY_HINT = (
    "the cupy backend needs an NVIDIA GPU and the cupy package; "
    "install the package with: pip install cupy-cuda13x"
)

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of <malloc.h>
_NAMESPACES: dict[type, Any] = {np.ndarray: np, np.float64: np, np.float32: np}


class BackendUnavailable(ImportError):
    """The array library that was asked for cannot be used on this machine."""


def namespace(x) -> Any:
    """The array-API namespace of x, remembered by type.

    Ask the array you are about to operate on, not one further back: under a tracer only that one
    carries the trace.

    Args:
        x: an array of any library that follows the Python array API standard.

    Returns:
        A module such as numpy, whose functions take and return arrays of x's library.

    Raises:
        TypeError: x is not an array.
    """
    try:
        return _NAMESPACES[type(x)]
    except KeyError:
        from array_api_compat import array_namespace

        return _NAMESPACES.setdefault(type(x), array_namespace(x))


def ones(shape, like):
    """An array of ones of the given shape, with the dtype and on the device of `like`."""
    return namespace(like).ones(shape, dtype=like.dtype, device=like.device)


def zeros(shape, like):
    """An array of zeros of the given shape, with the dtype and on the device of `like`."""
    return namespace(like).zeros(shape, dtype=like.dtype, device=like.device)


def full_like(x, value: float):
    """An array like x, filled with one value."""
    return namespace(x).full_like(x, value)


def rows(x):
    """(..., c) -> (n, c): every leading axis folded into one."""
    return x if x.ndim == 2 else namespace(x).reshape(x, (-1, x.shape[-1]))


def example_sum(x):
    """(N, ...) -> (N,): the sum over everything that belongs to one example."""
    return namespace(x).sum(x, axis=tuple(range(1, x.ndim)))


def per_example(v, like):
    """(N,) -> (N, 1, ..., 1): one number an example, shaped to multiply `like` (N, ...)."""
    return namespace(v).reshape(v, (-1,) + (1,) * (like.ndim - 1))


def described(x) -> str:
    """What x is, in a message: dtype and shape, or its type where it is no array."""
    return f"{x.dtype} {x.shape}" if hasattr(x, "shape") else type(x).__name__


def require_shape(name: str, array, shape: tuple[int, ...]) -> None:
    """Refuse an array that would broadcast where it must match.

    Raises:
        ValueError: its shape is another.
    """
    if tuple(array.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(array.shape)}")


def with_dims(x, dims: int):
    """x, where it is (..., dims).

    Raises:
        ValueError: it is not.
    """
    if x.shape[-1:] != (dims,):
        raise ValueError(f"x must be (..., {dims}), got {x.shape}")
    return x


def require_codes(name: str, codes, count: int) -> None:
    """Refuse what are no integers in 0..count-1.

    Raises:
        ValueError: they are of another type, or one of them is out of that range.
    """
    xp, wanted = namespace(codes), f"{name} must be integers in 0..{count - 1}"
    if not xp.isdtype(codes.dtype, "integral"):
        raise ValueError(f"{wanted}, got {codes.dtype}")
    least, most = (int(end(codes)) for end in (xp.min, xp.max)) if 0 not in codes.shape else (0, 0)
    if least < 0 or most >= count:
        raise ValueError(f"{wanted}, got {least} to {most}")


def halves(h):
    """The two halves of the last axis: (..., 2c) -> (..., c), (..., c).

    Raises:
        ValueError: the axis has odd length, so that halves would broadcast or not fit.
    """
    c, odd = divmod(h.shape[-1], 2)
    if odd:
        raise ValueError(f"an axis to be halved must have even length, got {h.shape}")
    return h[..., :c], h[..., c:]


def to_host(x) -> np.ndarray:
    """A NumPy copy or view of x, whatever library and device it lives on."""
    if hasattr(x, "get"):  # cupy refuses implicit transfers and offers this one
        return x.get()
    return np.asarray(x) if isinstance(x, np.ndarray | np.generic) else np.from_dlpack(x)


@dataclass(frozen=True)
class Backend:
    """A library, a floating dtype and a device: the place where arrays are born.

    Args:
        xp: an array-API namespace (numpy, cupy through array_api_compat, array_api_strict).
        dtype: "float32" or "float64", the dtype of every parameter, noise and data array.
        device: the library's own device object; None for its default.
    """

    xp: Any
    dtype: str = "float32"
    device: Any = None

    def asarray(self, a):
        """Host numbers as a floating array of this backend."""
        return self.xp.asarray(a, dtype=getattr(self.xp, self.dtype), device=self.device)

    def indices(self, a):
        """Host integers as an int64 array of this backend."""
        return self.xp.asarray(a, dtype=self.xp.int64, device=self.device)

    def zeros(self, shape):
        """Zeros of this backend."""
        return self.xp.zeros(shape, dtype=getattr(self.xp, self.dtype), device=self.device)

    @property
    def name(self) -> str:
        """The library's short name, such as "numpy" or "cupy"."""
        return self.xp.__name__.removeprefix("array_api_compat.").partition(".")[0]


def backend(name: str = "numpy", dtype: str = "float32") -> Backend:
    """The backend of that name.

    Args:
        name: "numpy" or "cupy".
        dtype: "float32" or "float64".

    Returns:
        A Backend on the library's default device.

    Raises:
        ValueError: an unknown name or dtype.
        BackendUnavailable: cupy is not installed, or finds no GPU.
    """
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype must be float32 or float64, got {dtype!r}")
    if name == "numpy":
        return Backend(np, dtype)
    if name == "cupy":
        return Backend(_usable_cupy(), dtype)
    raise ValueError(f"backend must be numpy or cupy, got {name!r}")


def keep_freed_memory() -> None:
    """Let the C library's allocator keep what a training step frees, instead of giving it back.

    A step allocates and frees the same arrays over and over. glibc returns freed memory to the
    kernel above a threshold that adapts to the largest block ever freed; until then every step
    pays for fresh pages, which is felt where steps are short. Freeing one large block that was
    never touched moves the threshold and costs microseconds. With other allocators it does nothing.
    """
    np.empty(31 << 20, dtype=np.uint8)  # glibc's largest adaptive block is 32 MiB


def share_one_heap() -> None:
    """Let all threads of the process share one heap, and glibc's allocator keep what they free.

    Otherwise each thread has heaps of its own, which go back to the system whenever they are empty,
    and every step asks for fresh pages. Other systems' allocators have no such setting.
    """
    with suppress(AttributeError, TypeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for setting, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(setting, value)


def _usable_cupy():
    try:
        cupy = import_module("cupy")  # importing succeeds without a GPU, so that is asked too
        usable = cupy.cuda.is_available()
    except ImportError:
        usable = False
    if not usable:
        raise BackendUnavailable(CUPY_HINT)
    return import_module("array_api_compat.cupy")
