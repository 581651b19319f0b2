"""nets/convnet.py: shapes from 4 to 64 pixels, and what makes a DCGAN."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.module import FlatParameters, Parameter
from scratchgen.core.streams import Stream
from scratchgen.layers.activations import leaky_relu, relu, silu, tanh
from scratchgen.layers.affine import Linear
from scratchgen.layers.conv import Conv2d, ConvTranspose2d
from scratchgen.layers.dropout import Dropout
from scratchgen.layers.normalisation import BatchNorm, GroupNorm, layer_norm
from scratchgen.nets.convnet import (
    conv_classifier,
    conv_decoder,
    conv_encoder,
    conv_trunk,
    dcgan_discriminator,
    dcgan_generator,
    halvings,
)

from support import NUMPY, bound, normals

every_size = pytest.mark.parametrize("size", [4, 8, 16, 32, 64])
larger = pytest.mark.parametrize("size", [8, 16, 32, 64])
channels = pytest.mark.parametrize("c", [1, 3])


def kinds(net) -> list:
    """The class of each layer, or the layer itself where it is an activation."""
    plain = (Conv2d, ConvTranspose2d, BatchNorm, GroupNorm, Linear, Dropout)
    return [type(layer) if isinstance(layer, plain) else layer for layer in net.layers]


@every_size
@channels
def test_encoders_and_decoders_fit_every_size(size, c):
    encoder = conv_encoder((size, size, c), 6, 8, reads_data=True)
    decoder = conv_decoder((size, size, 2 * c), 3, 8)
    bound(encoder), bound(decoder)
    x, z = normals(0, 2, size, size, c), normals(1, 2, 3)
    code, pullback = encoder(x)
    assert code.shape == (2, 6)
    assert pullback(code) is None
    image, pullback = decoder(z)
    assert image.shape == (2, size, size, 2 * c)
    assert pullback(image).shape == z.shape


@every_size
def test_widths_double_up_to_four_while_the_image_halves(size):
    trunk, features = conv_trunk((size, size, 3), 8)
    widths = [layer.weight.shape[-1] for layer in trunk.layers if isinstance(layer, Conv2d)]
    assert widths == [8, 16, 32, 32, 32][: halvings((size, size, 3)) + 1]
    assert features == 16 * widths[-1]
    bound(trunk)
    assert trunk(normals(0, 1, size, size, 3))[0].shape == (1, features)


def test_the_decoder_mirrors_the_encoder():
    encoder, decoder = conv_encoder((32, 32, 1), 5, 8), conv_decoder((32, 32, 1), 5, 8)
    down = [layer.weight.shape[3] for layer in encoder.layers if isinstance(layer, Conv2d)]
    up = [layer.weight.shape[3] for layer in decoder.layers if isinstance(layer, ConvTranspose2d)]
    assert decoder.layers[0].weight.shape == (16 * down[-1], 5)
    assert [*up, decoder.layers[-1].weight.shape[2]] == down[::-1]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_every_norm_is_followed_by_silu_and_the_dropout_asked_for(dropout):
    nets = (
        conv_encoder((16, 16, 1), 4, 8, dropout),
        conv_decoder((16, 16, 1), 4, 8, dropout),
        conv_classifier((16, 16, 1), 4, 8, dropout)[0],
    )
    for net in nets:
        norms = [i for i, layer in enumerate(net.layers) if isinstance(layer, GroupNorm)]
        assert len(norms) == 3
        for i in norms:
            assert net.layers[i].activation is silu
            behind = net.layers[i + 1]
            assert isinstance(behind, Dropout) == (dropout > 0.0)
            assert dropout == 0.0 or behind.rate == dropout


def test_dropout_stands_behind_every_activation_and_needs_a_stream():
    net = conv_encoder((8, 8, 1), 4, 8, dropout=0.5)
    assert kinds(net)[:4] == [Conv2d, GroupNorm, Dropout, Conv2d]
    assert kinds(conv_decoder((8, 8, 1), 4, 8, dropout=0.5))[2:4] == [GroupNorm, Dropout]
    bound(net)
    x = normals(0, 2, 8, 8, 1)
    first, again = (net(x, stream=Stream(i, NUMPY))[0] for i in (0, 1))
    assert np.abs(first - again).max() > 0.01
    np.testing.assert_array_equal(net(x)[0], net(x)[0])


def test_a_classifier_is_features_and_a_linear_head():
    trunk, head = conv_classifier((8, 8, 1), 10)
    bound(trunk), bound(head)
    features, pullback = trunk(normals(0, 2, 8, 8, 1))
    assert head(features)[0].shape == (2, 10)
    assert pullback(features) is None


@pytest.mark.equation("GAN-7")
@pytest.mark.equation("GAN-8")
class TestDcgan:
    """The source's guidelines, read off the nets that are built."""

    @larger
    @channels
    def test_transposed_convolutions_from_a_code_to_an_image(self, size, c):
        net = dcgan_generator((size, size, c), 5, 4)
        FlatParameters(net, Stream(0, NUMPY))
        image, pullback = net(normals(0, 3, 5), stream=Stream(1, NUMPY))
        assert image.shape == (3, size, size, c)
        assert np.all(np.abs(image) < 1.0)
        assert pullback(image).shape == (3, 5)

    @larger
    @channels
    def test_strided_convolutions_from_an_image_to_a_logit(self, size, c):
        net = dcgan_discriminator((size, size, c), 4)
        FlatParameters(net, Stream(0, NUMPY))
        logits, pullback = net(normals(0, 3, size, size, c), stream=Stream(1, NUMPY))
        assert logits.shape == (3,)
        assert pullback(logits).shape == (3, size, size, c)

    @larger
    def test_what_the_generator_is_made_of(self, size):
        """Batch norm and ReLU behind all but the last, tanh at the end, nothing dense."""
        net = dcgan_generator((size, size, 3), 5, 4)
        times = halvings((size, size, 3))
        assert kinds(net)[1:] == [ConvTranspose2d, BatchNorm, relu] * times + [
            ConvTranspose2d,
            tanh,
        ]
        convolutions = [layer for layer in net.layers if isinstance(layer, ConvTranspose2d)]
        outs = [layer.weight.shape[2] for layer in convolutions]
        assert outs == [4 * 2**i for i in reversed(range(times))] + [3]
        assert all(layer.weight.shape[:2] == (4, 4) for layer in convolutions)
        assert [layer.bias is None for layer in convolutions] == [True] * times + [False]

    @larger
    def test_what_the_discriminator_is_made_of(self, size):
        """Batch norm behind all but the first and the last, leaky ReLU everywhere."""
        net = dcgan_discriminator((size, size, 3), 4)
        times = halvings((size, size, 3))
        middle = [Conv2d, BatchNorm, leaky_relu] * (times - 1)
        assert kinds(net)[:-1] == [Conv2d, leaky_relu, *middle, Conv2d]
        convolutions = [layer for layer in net.layers if isinstance(layer, Conv2d)]
        outs = [layer.weight.shape[3] for layer in convolutions]
        assert outs == [4 * 2**i for i in range(times)] + [1]
        assert all(layer.weight.shape[:2] == (4, 4) for layer in convolutions)
        assert [layer.stride for layer in convolutions] == [(2, 2)] * times + [(1, 1)]
        assert [layer.bias is None for layer in convolutions] == [
            False, *[True] * (times - 1), False
        ]  # fmt: skip

    def test_a_critic_has_another_norm_or_none(self):
        plain = dcgan_discriminator((16, 16, 1), 4, norm=None)
        assert not plain.draws
        assert kinds(plain)[:-1] == [Conv2d, leaky_relu, Conv2d, leaky_relu, Conv2d]
        assert all(p.bias is not None for p in plain.layers if isinstance(p, Conv2d))
        normed = dcgan_discriminator((16, 16, 1), 4, norm=layer_norm)
        assert len(list(normed.named(Parameter))) == 7
        bound(normed)
        x = normals(0, 2, 16, 16, 1)
        assert normed.pushforward(x, x)[0][0].shape == (2,)

    def test_widths_have_defaults(self):
        convolutions = [dcgan_generator((8, 8, 1), 5).layers[1], dcgan_discriminator((8, 8, 1))]
        assert convolutions[0].weight.shape == (4, 4, 32, 5)
        assert convolutions[1].layers[0].weight.shape == (4, 4, 1, 32)

    def test_four_pixels_are_too_few(self):
        for make in (lambda s: dcgan_generator(s, 2), dcgan_discriminator):
            with pytest.raises(ValueError, match="at least 8×8 pixels, got 4×4"):
                make((4, 4, 1))


@given(st.integers(0, 8))
def test_halvings_count_the_way_down_to_four(times):
    side = 4 * 2**times
    assert halvings((side, side, 1)) == times


@pytest.mark.parametrize("shape", [(8, 16, 1), (12, 12, 1), (2, 2, 1), (0, 0, 1), (8, 8, 0)])
def test_other_sizes_are_refused(shape):
    said = f"got {shape[0]}×{shape[1]}×{shape[2]}"
    with pytest.raises(ValueError, match=said):
        halvings(shape)
