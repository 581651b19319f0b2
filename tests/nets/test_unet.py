"""nets/unet.py: the block, the whole net against one written the plain way, and its options."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from scratchgen.core.module import FlatParameters, observed
from scratchgen.core.streams import Stream
from scratchgen.layers.attention import SelfAttention
from scratchgen.layers.conv import Conv2d
from scratchgen.layers.dropout import Dropout
from scratchgen.layers.normalisation import AdaptiveGroupNorm
from scratchgen.nets.time import RandomFourier
from scratchgen.nets.unet import ResBlock, UNet
from scratchgen.testing import oracle
from scratchgen.testing.strategies import seeds

from support import NUMPY, bound, normals


def silu(x):
    return x / (1.0 + np.exp(-x))


class Plain:
    """The U-Net written down once more, forward only, from the parameters' names."""

    def __init__(self, params: FlatParameters, groups: int, heads: int = 1):
        self.groups, self.heads = groups, heads
        self.p = {
            name: params.theta[parameter.window].reshape(parameter.shape)
            for name, parameter in params.table.items()
        }

    def has(self, name: str) -> bool:
        return any(known.startswith(name) for known in self.p)

    def dense(self, name, x):
        return np.einsum("...i,oi->...o", x, self.p[name + ".weight"]) + self.p[name + ".bias"]

    def conv(self, name, x, stride=1):
        w = self.p[name + ".weight"]
        p = w.shape[0] // 2
        windows = sliding_window_view(
            np.pad(x, ((0, 0), (p, p), (p, p), (0, 0))), w.shape[:2], (1, 2)
        )
        seen = windows[:, ::stride, ::stride]
        return np.einsum("nijcuv,uvck->nijk", seen, w) + self.p[name + ".bias"]

    def norm(self, name, x):
        n, h, w, c = x.shape
        v = x.reshape(n, h * w, self.groups, c // self.groups)
        axes = (1, 3)
        v = (v - v.mean(axes, keepdims=True)) / np.sqrt(v.var(axes, keepdims=True) + 1e-5)
        return v.reshape(x.shape) * self.p[name + ".gain"] + self.p[name + ".bias"]

    def block(self, name, x, e):
        h = self.conv(f"{name}.first.layers.1", silu(self.norm(f"{name}.first.layers.0", x)))
        h = h + self.dense(f"{name}.inject.shift", e)[:, None, None, :]
        h = self.conv(f"{name}.last.layers.1", silu(self.norm(f"{name}.inject.norm", h)))
        return (self.conv(f"{name}.skip", x) if self.has(f"{name}.skip") else x) + h

    def attend(self, name, x):
        n, h, w, c = x.shape
        qkv = self.dense(f"{name}.layers.1.qkv", self.norm(f"{name}.layers.0", x))
        q, k, v = qkv.reshape(n, h * w, 3, self.heads, c // self.heads).transpose(2, 0, 3, 1, 4)
        scores = np.exp(np.einsum("nhid,nhjd->nhij", q, k) / np.sqrt(c // self.heads))
        y = np.einsum("nhij,nhjd->nihd", scores / scores.sum(-1, keepdims=True), v)
        return x + self.dense(f"{name}.layers.1.out", y.reshape(x.shape))

    def stage(self, name, x, e):
        if self.has(f"{name}.before"):
            x = self.conv(f"{name}.before.layers.0", x, stride=2)
        x = self.block(f"{name}.block", x, e)
        if self.has(f"{name}.after.layers.0.f"):
            x = self.attend(f"{name}.after.layers.0.f", x)
        for doubled in ("1", "2"):  # behind the doubling, and the attention where there is one
            if self.has(f"{name}.after.layers.{doubled}.weight"):
                x = self.conv(f"{name}.after.layers.{doubled}", x.repeat(2, 1).repeat(2, 2))
        return x

    def __call__(self, x, features, stages):
        """Of what the first convolution reads, and features of time."""
        e = silu(self.dense("time.layers.0.layers.1", features))
        e = silu(self.dense("time.layers.0.layers.3", e))
        h, kept = self.conv("first", x), []
        for i in range(stages):
            h = self.stage(f"down.{i}", h, e)
            kept.append(h)
        for i in (0, 1):
            h = self.stage(f"middle.{i}", h, e)
        for i in range(stages):
            h = self.stage(f"up.{i}", np.concatenate([h, kept.pop()], axis=-1), e)
        return self.conv("last.layers.1", silu(self.norm("last.layers.0", h)))


def outputs(net: UNet, *inputs) -> dict[str, tuple[int, ...]]:
    """Name -> output shape of every part that stands directly in the net."""
    found = {}

    def note(module, name, layer, y):
        if module is net:
            found[name] = y.shape

    with observed(note):
        net(*inputs)
    return found


@pytest.mark.equation("NET-6")
class TestResBlock:
    """skip(x) + Conv_0(Drop(SiLU(GN(inject(Conv(SiLU(GN(x))), e)))))."""

    @given(seeds(), st.sampled_from([(4, 4), (4, 8), (8, 4)]))
    def test_forward_and_gradients(self, seed, widths):
        block = ResBlock(*widths, 5, groups=2)
        params = bound(block, seed)
        x, e = normals(seed, 2, 3, 3, widths[0]), normals(seed + 1, 2, 5)
        plain = Plain(params, 2)
        plain.p = {f"b.{name}": value for name, value in plain.p.items()}
        np.testing.assert_allclose(block(x, e)[0], plain.block("b", x, e), rtol=1e-10, atol=1e-11)
        oracle.check_gradient(params, block, x, e)
        with params.frozen():
            oracle.check_pullback(block, x, e)

    @given(seeds())
    def test_it_starts_as_its_skip(self, seed):
        x, e = normals(seed, 2, 3, 3, 8), normals(seed + 1, 2, 5)
        same, other = ResBlock(8, 8, 5), ResBlock(8, 16, 5)
        for block in (same, other):
            FlatParameters(block, Stream(seed, NUMPY))
        np.testing.assert_array_equal(same(x, e)[0], x)
        np.testing.assert_array_equal(other(x, e)[0], other.skip(x)[0])
        assert other.skip.weight.shape == (1, 1, 8, 16)

    def test_dropout_stands_before_the_last_convolution_only(self):
        x, e = normals(0, 2, 3, 3, 4), normals(1, 2, 5)
        for rate, draws in ((0.0, False), (0.5, True)):
            block = ResBlock(4, 4, 5, groups=2, dropout=rate)
            bound(block)
            assert block.draws == draws
            kept, other = (block(x, e, stream=Stream(i, NUMPY))[0] for i in (0, 1))
            assert np.any(kept != other) == draws
            np.testing.assert_array_equal(block(x, e)[0], block(x, e)[0])
        h, _ = block.inject(block.first(x)[0], e)
        mask, _ = block.last.layers[0](np.ones_like(h), stream=Stream(0, NUMPY).at("last", 0))
        want = x + block.last.layers[1](h * mask)[0]
        np.testing.assert_allclose(kept, want, rtol=1e-12)

    def test_injection_is_chosen_by_its_layer(self):
        block = ResBlock(4, 4, 5, groups=2, inject=AdaptiveGroupNorm)
        assert isinstance(block.inject, AdaptiveGroupNorm)
        assert block.inject.groups == 2


@st.composite
def options(draw):
    """Of a U-Net on 8 pixels: levels, stages, and which resolutions attend."""
    multipliers = draw(st.sampled_from([(1,), (1, 2), (2, 1), (1, 1, 2)]))
    sides = [8 >> level for level in range(len(multipliers))]
    return {
        "multipliers": multipliers,
        "blocks": draw(st.integers(1, 2)),
        "attention": draw(st.lists(st.sampled_from(sides), unique=True)),
        "attend_middle": draw(st.booleans()),
        "heads": draw(st.sampled_from([1, 2])),
    }


@pytest.mark.equation("NET-5")
class TestUNet:
    """Down and up, with everything kept on the way down handed across."""

    @settings(max_examples=12)
    @given(seeds(), options())
    def test_forward_is_the_plain_one(self, seed, chosen):
        net = UNet(8, 2, 3, width=4, groups=2, **chosen)
        params = bound(net, seed)
        x, t = normals(seed, 2, 8, 8, 2), 100.0 * normals(seed + 1, 2)
        angle = t[:, None] * np.asarray([1.0, 1e-4])  # the two frequencies of four features
        features = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
        stages = len(chosen["multipliers"]) * chosen["blocks"]
        want = Plain(params, 2, chosen["heads"])(x, features, stages)
        np.testing.assert_allclose(net(x, t)[0], want, rtol=1e-9, atol=1e-10)

    @settings(max_examples=4)
    @given(seeds(), options())
    def test_gradients_are_autograds(self, seed, chosen):
        net = UNet(8, 2, 1, width=4, groups=2, fourier=(0, 2), condition=1, **chosen)
        params = bound(net, seed)
        x, t, told = normals(seed, 2, 8, 8, 2), normals(seed + 1, 2), normals(seed + 2, 2, 8, 8, 1)
        oracle.check_gradient(params, net, x, t, told)
        with params.frozen():
            oracle.check_pullback(net, x, t, told)

    def test_every_parameter_and_every_input_matters(self):
        net = UNet(8, 1, 1, width=4, groups=2, attention=(8,), condition=1, fourier=(0,))
        params = bound(net)
        y, pullback = net(normals(0, 2, 8, 8, 1), normals(1, 2), normals(2, 2, 8, 8, 1))
        assert all(np.abs(d).max() > 1e-6 for d in pullback(y))
        for name, parameter in params.table.items():
            assert np.abs(params.grad[parameter.window]).max() > 1e-8, name

    def test_it_starts_at_zero(self):
        """So a loss on ε starts at the number of dimensions, on average."""
        net = UNet(16, 3, 6, width=8, multipliers=(1, 2))
        FlatParameters(net, Stream(0, NUMPY))
        y, _ = net(normals(0, 2, 16, 16, 3), normals(1, 2))
        assert y.shape == (2, 16, 16, 6)
        assert not np.any(y)

    def test_widths_and_resolutions_of_the_levels(self):
        net = UNet(16, 3, 3, width=8, multipliers=(1, 2, 3), blocks=2)
        bound(net)
        found = outputs(net, normals(0, 1, 16, 16, 3), normals(1, 1))
        sides = {name: (shape[1], shape[-1]) for name, shape in found.items() if len(shape) == 4}
        assert sides == {
            "first": (16, 8),
            **{"down.0": (16, 8), "down.1": (16, 8), "down.2": (8, 16), "down.3": (8, 16)},
            **{"down.4": (4, 24), "down.5": (4, 24), "middle.0": (4, 24), "middle.1": (4, 24)},
            **{"up.0": (4, 24), "up.1": (8, 24), "up.2": (8, 16), "up.3": (16, 16)},
            **{"up.4": (16, 8), "up.5": (16, 8), "last": (16, 3)},
        }

    def test_every_stage_injects_as_asked(self):
        net = UNet(8, 1, 1, width=4, groups=2, inject=AdaptiveGroupNorm)
        stages = [*net.down, *net.middle, *net.up]
        assert {type(stage.block.inject) for stage in stages} == {AdaptiveGroupNorm}

    def test_the_embedding_s_size_follows_from_the_full_resolution(self):
        net = UNet(8, 1, 1, width=8, multipliers=(2, 3))
        assert net.down[0].block.inject.shift.weight.shape == (16, 32)

    def test_the_middle_need_not_attend(self):
        net = UNet(8, 1, 1, width=8, attend_middle=False)
        assert not list(net.named(SelfAttention))

    def test_what_is_not_said_has_a_default(self):
        net = UNet(8, 1, 1)
        assert net.first.weight.shape == (3, 3, 1, 64)
        assert len(net.down) == len(net.up) == 2
        assert net.down[1].block.last.layers[1].weight.shape == (3, 3, 128, 128)
        assert net.down[0].block.inject.shift.weight.shape == (64, 256)
        assert net.down[0].block.inject.norm.groups == 8
        attending = [m for _, m in net.named(SelfAttention)]
        assert [layer.heads for layer in attending] == [1]
        assert not net.draws
        assert not net.first.reads_data

    def test_attention_stands_where_it_is_asked_for_and_in_the_middle(self):
        net = UNet(16, 1, 1, width=8, multipliers=(1, 1, 1), attention=(8,), heads=2)
        places = [name.split(".after")[0] for name, _ in net.named(SelfAttention)]
        assert sorted(places) == ["down.1", "middle.0", "up.1"]
        assert all(layer.heads == 2 for _, layer in net.named(SelfAttention))

    @given(seeds(), st.lists(st.integers(-1, 3), max_size=3))
    def test_fourier_features_of_the_input(self, seed, exponents):
        net = UNet(4, 2, 1, width=4, multipliers=(1,), groups=2, fourier=exponents)
        x = normals(seed, 2, 4, 4, 2)
        waves = [w(2.0**n * np.pi * x) for n in exponents for w in (np.sin, np.cos)]
        read, _ = net._inputs(x, None)
        np.testing.assert_allclose(read, np.concatenate([x, *waves], axis=-1), rtol=1e-13)
        assert net.first.weight.shape[2] == 2 * (1 + 2 * len(exponents))

    def test_a_net_that_reads_data_gives_the_time_s_cotangent_only(self):
        whole, net = (
            UNet(4, 1, 1, 4, (1,), groups=2, fourier=(1,), condition=1, reads_data=reads)
            for reads in (False, True)
        )
        first, second = bound(whole), bound(net)
        inputs = normals(0, 2, 4, 4, 1), normals(1, 2), normals(2, 2, 4, 4, 1)
        y, pullback = net(*inputs)
        dx, dt, d_told = pullback(y)
        assert dx is d_told is None
        np.testing.assert_array_equal(dt, whole(*inputs)[1](y)[1])
        np.testing.assert_array_equal(first.grad, second.grad)

    def test_dropout_draws_afresh_in_each_stage(self):
        net = UNet(4, 1, 1, width=4, multipliers=(1,), groups=2, dropout=0.5)
        bound(net)
        x, t = normals(0, 2, 4, 4, 1), normals(1, 2)
        dropped = []

        def note(module, name, layer, y):
            if isinstance(layer, Dropout):
                dropped.append(y == 0.0)

        with observed(note):
            first = net(x, t, stream=Stream(0, NUMPY))[0]
        assert net.draws
        assert len(dropped) == 4  # in down, middle, middle, up: all of one shape
        assert min(mask.mean() for mask in dropped) > 0.3
        assert len({mask.tobytes() for mask in dropped}) == 4
        assert np.any(first != net(x, t, stream=Stream(1, NUMPY))[0])
        np.testing.assert_array_equal(first, net(x, t, stream=Stream(0, NUMPY))[0])
        np.testing.assert_array_equal(net(x, t)[0], net(x, t)[0])

    def test_features_of_time_may_be_chosen(self):
        net = UNet(4, 1, 1, width=4, multipliers=(1,), groups=2, time=RandomFourier(6))
        bound(net)
        assert net.time.layers[0].layers[1].weight.shape == (16, 6)

    def test_halving_is_by_strided_convolutions(self):
        net = UNet(8, 1, 1, width=4, multipliers=(1, 1, 1), groups=2)
        halving = [stage.before.layers for stage in net.down]
        assert [len(layers) for layers in halving] == [0, 1, 1]
        assert all(isinstance(c, Conv2d) and c.stride == (2, 2) for (c,) in halving[1:])

    @pytest.mark.parametrize(
        ("size", "levels", "said"),
        [
            (10, 3, "multiple of 4, got 10; the nearest that fits is 8"),
            (7, 2, "multiple of 2, got 7; the nearest that fits is 8"),
            (1, 3, "multiple of 4, got 1; the nearest that fits is 4"),
            (0, 1, "multiple of 1, got 0; the nearest that fits is 1"),
        ],
    )
    def test_sizes_that_do_not_halve_are_refused(self, size, levels, said):
        with pytest.raises(ValueError, match=said):
            UNet(size, 1, 1, width=4, multipliers=(1,) * levels, groups=2)

    def test_the_smallest_size_is_one_pixel_at_the_last_level(self):
        for size, multipliers in ((4, (1, 1, 1)), (1, (1,))):
            net = UNet(size, 1, 1, width=4, multipliers=multipliers, groups=2)
            bound(net)
            shape = (1, size, size, 1)
            assert net(np.zeros(shape), np.zeros(1))[0].shape == shape

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"multipliers": ()}, "at least one level, got none"),
            ({"blocks": 0}, "at least 1 block, got 0"),
            ({"attention": (8, 7)}, "among 8, 4, got 7"),
            ({"width": 20}, "a multiple of the groups, got 20 and 8"),
            ({"width": 2, "groups": 2}, "at least 4 and a multiple of the groups, got 2 and 2"),
            ({"groups": 0}, "got 8 and 0"),
            ({"condition": -1}, "at least 0, got -1"),
        ],
    )
    def test_numbers_that_make_no_net_are_refused(self, options, said):
        with pytest.raises(ValueError, match=said):
            UNet(8, 1, 1, **{"width": 8, **options})

    @pytest.mark.parametrize(
        ("x", "t", "told", "said"),
        [
            ((2, 8, 8, 3), (2,), (2, 8, 8, 2), r"images \(8, 8, 1\), got \(8, 8, 3\)"),
            ((2, 4, 4, 1), (2,), (2, 4, 4, 2), r"images \(8, 8, 1\), got \(4, 4, 1\)"),
            ((2, 8, 8, 1), (1,), (2, 8, 8, 2), r"\(2,\) of float64; got \(1,\) of float64"),
            ((2, 8, 8, 1), (2, 1), (2, 8, 8, 2), r"got \(2, 1\) of float64"),
            ((2, 8, 8, 1), (2,), (2, 4, 4, 2), r"condition of shape \(2, 8, 8, 2\), got \(2, 4,"),
            ((2, 8, 8, 1), (2,), (2, 8, 8, 1), r"got \(2, 8, 8, 1\)"),
        ],
    )
    def test_other_inputs_are_refused(self, x, t, told, said):
        net = UNet(8, 1, 1, width=4, groups=2, condition=2)
        bound(net)
        with pytest.raises(ValueError, match=said):
            net(np.zeros(x), np.zeros(t), np.zeros(told))

    def test_a_condition_must_be_given_where_there_is_one_and_nowhere_else(self):
        x, t, told = np.zeros((2, 8, 8, 1)), np.zeros(2), np.zeros((2, 8, 8, 2))
        with_one, without = (UNet(8, 1, 1, width=4, groups=2, condition=c) for c in (2, 0))
        bound(with_one), bound(without)
        with pytest.raises(ValueError, match=r"shape \(2, 8, 8, 2\), got None"):
            with_one(x, t)
        with pytest.raises(ValueError, match=r"takes no condition, got \(2, 8, 8, 2\)"):
            without(x, t, told)

    def test_times_are_floating_numbers_of_the_images_dtype(self):
        """Whole numbers would turn a float32 net into a float64 one in silence."""
        net = UNet(8, 1, 1, width=4, groups=2)
        bound(net)
        with pytest.raises(ValueError, match="got .* of int64"):
            net(np.zeros((2, 8, 8, 1)), np.asarray([1, 2]))


@given(seeds())
def test_without_its_weights_the_condition_is_not_heard(seed):
    """Input channels [x_t, x̂]: with the weights of x̂ at 0 the output does not depend on it."""
    net = UNet(4, 2, 2, width=4, multipliers=(1,), groups=2, condition=2)
    params = bound(net, seed)
    x, t = normals(seed, 2, 4, 4, 2), normals(seed + 1, 2)
    told, other = normals(seed + 2, 2, 4, 4, 2), normals(seed + 3, 2, 4, 4, 2)
    assert np.abs(net(x, t, told)[0] - net(x, t, other)[0]).max() > 1e-6
    weight = params.theta[net.first.weight.window].reshape(net.first.weight.shape)
    weight[:, :, 2:, :] = 0.0
    params.changed()
    np.testing.assert_array_equal(net(x, t, told)[0], net(x, t, other)[0])
