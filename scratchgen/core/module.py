"""Parameters in one flat vector, and the trees of layers that own them.

A module says which shapes it needs; `FlatParameters` then lays all of them end to end in one vector
θ, with the gradient dL/dθ in another. An optimiser sees two vectors and no layers. A layer sees
neither: in its forward pass it takes a *reading* of its parameter, and its pullback adds to the
gradient through that reading.

    reading = parameter.read()
    reading.value                       # the parameter at this θ, in its own shape
    reading.accumulate_product(a, b)    # gradient += aᵀ b

θ is updated in place, so a pullback belongs to the θ it was taken at; a reading knows the version
of θ it was taken at and refuses to serve any other.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

from scratchgen.core.arrays import keep_freed_memory, namespace
from scratchgen.core.streams import Stream


class StalePullback(RuntimeError):
    """A pullback ran after θ had changed; take it again at the new θ."""


_STALE = "θ has changed since this forward pass; run it again and use the new pullback"


class Parameter:
    """A named window on a flat vector: a shape, an initialiser and, once bound, a slice.

    Args:
        shape: the parameter's shape.
        init: (stream, shape) -> array, its first value.
    """

    def __init__(self, shape: tuple[int, ...], init: Callable[[Stream, tuple[int, ...]], Any]):
        self.shape, self.init = shape, init
        self.owner: FlatParameters | None = None
        self.window = slice(0, 0)

    def read(self) -> "Reading":
        """The parameter at the present θ.

        Raises:
            RuntimeError: no FlatParameters holds it yet.
        """
        if self.owner is None:
            raise RuntimeError(
                "this layer's parameters are not bound to a vector yet; "
                "call FlatParameters(module, stream) first"
            )
        return Reading(self.owner, self.window, self.shape)


class Reading:
    """One parameter at one version of θ: what a forward pass saw and its pullback may use."""

    __slots__ = ("_owner", "_value", "_version", "_window")

    def __init__(self, owner: "FlatParameters", window: slice, shape: tuple[int, ...]):
        theta = owner.theta
        self._owner, self._window, self._version = owner, window, owner.version
        self._value = namespace(theta).reshape(theta[window], shape)

    @property
    def value(self):
        """The parameter, in its own shape.

        Raises:
            StalePullback: θ has changed since.
        """
        if self._owner.version != self._version:
            raise StalePullback(_STALE)
        return self._value

    def derived(self, name, compute: Callable[[Any], Any]):
        """compute(value), remembered under that name until θ changes.

        Raises:
            StalePullback: it has changed since.
        """
        value = self.value
        key = (self._window.start, value.shape, name)  # parameters without numbers share a start
        version, known = self._owner.derived.get(key, (None, None))
        if version != self._version:
            known = compute(value)
            self._owner.derived[key] = (self._version, known)
        return known

    @property
    def trained(self) -> bool:
        """Whether what is added to the gradient now goes anywhere; see `FlatParameters.frozen`."""
        return self._owner.gradient is not None

    def accumulate_product(self, a, b) -> None:
        """Add aᵀ b to the parameter's gradient: the only way a gradient is ever added.

        Every parameter is the matrix of an affine map, so its gradient is such a product. A bias is
        the weight of a constant input: there a is a column of ones. Both must stay as they are
        until the batch's gradient is complete: workers may multiply them later.

        Args:
            a: (n, p).
            b: (n, q), where p·q is the parameter's size and aᵀ b is laid out as the parameter is.

        Raises:
            StalePullback: θ has changed since.
        """
        if self._owner.version != self._version:
            raise StalePullback(_STALE)
        gradient = self._owner.gradient
        if hasattr(gradient, "add_product"):
            gradient.add_product(self._window, a, b)
        elif gradient is not None:
            gradient[self._window] += namespace(b).reshape(a.T @ b, (-1,))


class Buffer:
    """State that is saved and resumed but never trained, such as running statistics.

    It is changed once a step by the one who trains, never by a forward pass.

    Args:
        shape: the buffer's shape.
        init: (stream, shape) -> array, its first value.
    """

    def __init__(self, shape: tuple[int, ...], init: Callable[[Stream, tuple[int, ...]], Any]):
        self.shape, self.init = shape, init
        self.value: Any = None


class Module:
    """A tree of parameters and buffers. Calling a layer returns (y, pullback)."""

    draws = False  # True for a layer whose forward pass takes a stream of random numbers

    def named(self, kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Every instance of `kind` in the tree with its dotted path, in the order of assignment."""
        for name, child in vars(self).items():
            yield from _leaves(child, prefix + name, kind)

    def run(self, name: str, layer, *inputs, stream: Stream | None = None, key=None):
        """layer(*inputs) as the part of this module that stands under that name in its tree.

        Args:
            name: the part's path in this module, such as "layers.3".
            layer: the part, any callable x -> (y, pullback).
            inputs: what it takes.
            stream: this module's stream; a part that draws gets the sub-stream of its key.
            key: names the sub-stream; the part's name where not given.

        Returns:
            What the layer returns; whoever observes sees its output.
        """
        if stream is None or not getattr(layer, "draws", False):
            y, pullback = layer(*inputs)
        else:
            y, pullback = layer(*inputs, stream=stream.at(name if key is None else key))
        observe(self, name, layer, y)
        return y, pullback


def _leaves(node, path: str, kind: type) -> Iterator[tuple[str, Any]]:
    if isinstance(node, kind):
        yield path, node
    if isinstance(node, Module):
        yield from node.named(kind, path + ".")
    elif isinstance(node, list | tuple | dict):
        children = node.items() if isinstance(node, dict) else enumerate(node)
        for key, child in children:
            yield from _leaves(child, f"{path}.{key}", kind)


class FlatParameters:
    """Every parameter of one module in one vector θ, and dL/dθ in another.

    A parameter that appears twice in the tree is stored once, so tied layers share one window and
    one gradient. Its first value depends on the stream, its name and its shape only.

    Args:
        module: the tree; from here on its parameters and buffers belong to this vector.
        stream: draws the first values; its backend is where θ is born.

    Raises:
        ValueError: a parameter already belongs to another vector.
    """

    def __init__(self, module: Module, stream: Stream):
        self.backend, self.version = stream.backend, 0
        self.table: dict[str, Parameter] = {}
        self.buffers: dict[str, Buffer] = dict(module.named(Buffer))
        self.derived: dict[tuple, tuple[int, Any]] = {}
        end = 0
        for name, parameter in module.named(Parameter):
            if parameter not in self.table.values():
                if parameter.owner is not None:
                    raise ValueError(
                        f"parameter {name} already belongs to another vector; "
                        "build the module anew to train it from the start"
                    )
                self.table[name] = parameter
                parameter.owner, start = self, end
                end += prod(parameter.shape)
                parameter.window = slice(start, end)
        self._theta, self.grad = self.backend.zeros((end,)), self.backend.zeros((end,))
        self._chosen = threading.local()
        keep_freed_memory()
        for name, parameter in self.table.items():
            first = parameter.init(stream.at(name), parameter.shape)
            self._theta[parameter.window] = namespace(first).reshape(first, (-1,))
        for name, buffer in self.buffers.items():
            buffer.value = buffer.init(stream.at(name), buffer.shape)

    @property
    def theta(self):
        """θ, a vector. Whoever changes it in place calls `changed` afterwards.

        It may be replaced too, by a vector as long; another raises ValueError.
        """
        return self._theta

    @theta.setter
    def theta(self, theta) -> None:
        if theta.shape != self._theta.shape:
            raise ValueError(f"θ must keep the shape {self._theta.shape}, got {theta.shape}")
        self._theta = theta
        self.changed()

    def changed(self) -> None:
        """Declare that θ has new values: every pullback taken before is void."""
        self.version += 1

    @property
    def gradient(self):
        """Where this thread's pullbacks add to: see `gradient_into`; `grad` unless told."""
        chosen = getattr(self._chosen, "stack", ())
        return chosen[-1] if chosen else self.grad

    @contextmanager
    def gradient_into(self, target):
        """Within, this thread's pullbacks add to another target than `grad`.

        Args:
            target: a vector like θ; None, for nowhere; or who has a method add_product(window, a,
                b), and so may see to aᵀ b, which belongs into that window, later.
        """
        if not hasattr(self._chosen, "stack"):
            self._chosen.stack = []
        self._chosen.stack.append(target)
        try:
            yield target
        finally:
            self._chosen.stack.pop()

    def frozen(self):
        """Within, this thread's pullbacks pass through to their inputs and leave `grad` alone."""
        return self.gradient_into(None)

    def layout(self) -> dict[str, list[int]]:
        """Name -> shape, in the order of the vector: what a checkpoint must match."""
        return {name: list(parameter.shape) for name, parameter in self.table.items()}

    def copy_from(self, other: "FlatParameters", prefix: str, other_prefix: str) -> None:
        """Overwrite the parameters named prefix... with those named other_prefix... of another.

        Raises:
            ValueError: no name begins with the prefix, or the other has no such name or shape.
        """
        names = [name for name in self.table if name.startswith(prefix)]
        if not names:
            raise ValueError(f"no parameter's name begins with {prefix!r}")
        for name in names:
            source = other.table.get(other_prefix + name.removeprefix(prefix))
            if source is None or source.shape != self.table[name].shape:
                raise ValueError(f"there is nothing of the same name and shape to copy {name} from")
            self._theta[self.table[name].window] = other.theta[source.window]
        self.changed()

    def first_nonfinite(self, vector=None) -> str | None:
        """The name of the first parameter that holds a value that is not finite, or None.

        Args:
            vector: as long as θ, to look at in its place.
        """
        vector = self.theta if vector is None else vector
        xp = namespace(vector)
        for name, parameter in self.table.items():
            if not bool(xp.all(xp.isfinite(vector[parameter.window]))):
                return name
        return None


Observer = Callable[[Module, str, Any, Any], None]
_observers: list[Observer] = []


@contextmanager
def observed(observer: Observer):
    """Within, every module calls observer(module, name, layer, y) after each of its parts.

    So one can find the layer whose output is not finite, list what a net is made of, or gather
    statistics, without the layers knowing.
    """
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def observe(module: Module, name: str, layer, y) -> None:
    """Report y, the output of the part of that name, to whoever observes."""
    for observer in _observers:
        observer(module, name, layer, y)
