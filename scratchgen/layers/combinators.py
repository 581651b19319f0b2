"""Layers made of layers. A layer is any callable x -> (y, pullback), object or plain function."""

from scratchgen.core.module import Module, Parameter


class Sequential(Module):
    """Composition: y = f_n(... f_2(f_1(x))).

    Each layer that draws gets its own sub-stream, keyed by its position. A first layer that reads
    data returns no cotangent, and neither does the whole then.

    Args:
        layers: the layers in order of application.

    Raises:
        ValueError: a layer that reads data stands behind one that has parameters, which would
            never see a gradient.
    """

    def __init__(self, *layers):
        self.layers = layers
        self.draws = any(getattr(layer, "draws", False) for layer in layers)
        learned = False
        for i, layer in enumerate(layers):
            if learned and getattr(layer, "reads_data", False):
                raise ValueError(
                    f"layer {i} has reads_data=True but stands behind layers with parameters; "
                    "only the first layer with parameters may read data"
                )
            learned |= isinstance(layer, Module) and any(layer.named(Parameter))

    def __call__(self, x, stream=None):
        """x -> y, pullback: dy -> dx (None where the first layer reads data)."""
        pullbacks = []
        for i, layer in enumerate(self.layers):
            x, pull = self.run(f"layers.{i}", layer, x, stream=stream, key=i)
            pullbacks.append(pull)

        def pullback(dy):
            for pull in reversed(pullbacks):
                if dy is None:
                    break
                dy = pull(dy)
            return dy

        return x, pullback

    def pushforward(self, x, x_dot):
        """(x, ẋ) -> (y, ẏ), pullback: (dy, dẏ) -> (dx, dẋ)."""
        pullbacks = []
        for layer in self.layers:
            (x, x_dot), pull = layer.pushforward(x, x_dot)
            pullbacks.append(pull)

        def pullback(dy, dy_dot):
            for pull in reversed(pullbacks):
                dy, dy_dot = pull(dy, dy_dot)
            return dy, dy_dot

        return (x, x_dot), pullback


class Residual(Module):
    """y = x + f(x)."""

    def __init__(self, f):
        self.f, self.draws = f, getattr(f, "draws", False)

    def __call__(self, x, stream=None):
        """x -> y, pullback: dy -> dy + (∂f/∂x)ᵀ dy."""
        h, pullback = self.run("f", self.f, x, stream=stream)
        return x + h, lambda dy: dy + pullback(dy)

    def pushforward(self, x, x_dot):
        """(x, ẋ) -> (y, ẏ), pullback: (dy, dẏ) -> (dx, dẋ)."""
        (h, h_dot), pull = self.f.pushforward(x, x_dot)

        def pullback(dy, dy_dot):
            d, d_dot = pull(dy, dy_dot)
            return dy + d, dy_dot + d_dot

        return (x + h, x_dot + h_dot), pullback
