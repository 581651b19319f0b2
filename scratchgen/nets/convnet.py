"""Convolutional encoders, decoders, classifiers, and the DCGAN pair.

All work on images whose height and width are 4, 8, 16, ... and halve them down to 4×4, or double
them up from there.
"""

from collections.abc import Callable

from scratchgen.layers.activations import leaky_relu, relu, silu, tanh
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Sequential
from scratchgen.layers.conv import Conv2d, ConvTranspose2d
from scratchgen.layers.dropout import Dropout
from scratchgen.layers.normalisation import BatchNorm, GroupNorm
from scratchgen.layers.resampling import reshaped

Shape = tuple[int, int, int]  # (H, W, C)
SMALLEST = 4


def halvings(shape: Shape) -> int:
    """How often height and width halve until they are 4.

    Raises:
        ValueError: they do not.
    """
    height, width, channels = shape
    times = (height // SMALLEST).bit_length() - 1
    if height != width or height != SMALLEST << max(times, 0) or channels < 1:
        raise ValueError(
            f"images must be square, of {SMALLEST} times a power of 2 pixels a side, and have a "
            f"channel; got {height}×{width}×{channels}"
        )
    return times


def conv_trunk(
    shape: Shape, width: int = 32, dropout: float = 0.0, reads_data: bool = False
) -> tuple[Sequential, int]:
    """Strided convolutions from an image down to features: one convolution, then each halving.

    Args:
        shape: (H, W, C) of the images.
        width: channels at the full resolution; they double with each halving, up to 4 widths.
        dropout: the rate behind every activation.
        reads_data: the input is data: no cotangent is computed for it.

    Returns:
        A net x (N, H, W, C) -> (N, features), and the number of features.

    Raises:
        ValueError: the images do not halve to 4×4, or the width is no multiple of 8.
    """
    channels = conv_channels(shape, width)
    layers: list = [Conv2d(shape[2], width, reads_data=reads_data)]
    for c, c_next in zip(channels[:-1], channels[1:], strict=True):
        layers += [*active(c, dropout), Conv2d(c, c_next, kernel=4, stride=2)]
    layers += [*active(channels[-1], dropout), reshaped(-1)]
    return Sequential(*layers), SMALLEST**2 * channels[-1]


def conv_encoder(
    shape: Shape, n_out: int, width: int = 32, dropout: float = 0.0, reads_data: bool = False
) -> Sequential:
    """`conv_trunk`, then a linear layer:  x (N, H, W, C) -> (N, n_out).

    Args:
        shape: (H, W, C) of the images.
        n_out: the size of the code.
        width, dropout, reads_data: as for `conv_trunk`.

    Returns:
        A net.

    Raises:
        ValueError: as for `conv_trunk`.
    """
    trunk, features = conv_trunk(shape, width, dropout, reads_data)
    return Sequential(*trunk.layers, Linear(features, n_out))


def conv_decoder(shape: Shape, n_in: int, width: int = 32, dropout: float = 0.0) -> Sequential:
    """The encoder's mirror image:  z (N, n_in) -> (N, H, W, C), with (H, W, C) = shape.

    A linear layer to 4×4, transposed convolutions that double, and a last convolution.

    Args:
        shape: (H, W, C) of the output, such as the image's with 2 numbers a channel.
        n_in: the size of the code.
        width, dropout: as for `conv_trunk`.

    Returns:
        A net.

    Raises:
        ValueError: as for `conv_trunk`.
    """
    channels = conv_channels(shape, width)[::-1]
    first = (SMALLEST, SMALLEST, channels[0])
    layers: list = [Linear(n_in, SMALLEST**2 * channels[0]), reshaped(*first)]
    for c, c_next in zip(channels[:-1], channels[1:], strict=True):
        layers += [*active(c, dropout), ConvTranspose2d(c, c_next)]
    return Sequential(*layers, *active(width, dropout), Conv2d(width, shape[2]))


def conv_classifier(
    shape: Shape, classes: int, width: int = 16, dropout: float = 0.0
) -> tuple[Sequential, Linear]:
    """A small classifier in two parts: x (N, H, W, C) -> features, and features -> logits.

    Args:
        shape: (H, W, C) of the images.
        classes: their number.
        width, dropout: as for `conv_trunk`.

    Returns:
        The trunk and the head that metrics/classifier.py takes.
    """
    trunk, features = conv_trunk(shape, width, dropout, reads_data=True)
    return trunk, Linear(features, classes)


def dcgan_generator(shape: Shape, n_in: int, width: int = 32) -> Sequential:
    """z (N, n_in) -> images (N, H, W, C) in (-1, 1), all by transposed convolutions.

    Batch norm and ReLU behind all but the last, tanh behind that; no fully connected layer.

    Args:
        shape: (H, W, C), of at least 8×8 pixels.
        n_in: the size of the code.
        width: channels next to the image; they double with each halving.

    Returns:
        A net; it takes a stream in training, as batch norm does.

    Raises:
        ValueError: the images do not halve to 4×4, or are no larger.

    Source: GAN-7, GAN-8
    """
    channels = _dcgan_channels(shape, width)[::-1]
    layers: list = [
        reshaped(1, 1, n_in),
        ConvTranspose2d(n_in, channels[0], kernel=4, stride=1, padding=0, bias=False),
    ]
    for c, c_next in zip(channels[:-1], channels[1:], strict=True):
        layers += [BatchNorm(c), relu, ConvTranspose2d(c, c_next, bias=False)]
    last = ConvTranspose2d(width, shape[2])
    return Sequential(*layers, BatchNorm(width), relu, last, tanh)


def dcgan_discriminator(
    shape: Shape, width: int = 32, norm: Callable | None = BatchNorm
) -> Sequential:
    """Images (N, H, W, C) -> logits (N,), all by strided convolutions with leaky ReLU.

    Args:
        shape: (H, W, C), of at least 8×8 pixels.
        width: channels behind the first convolution; they double with each halving.
        norm: channels -> a layer, behind all convolutions but the first and the last; None for
            none. A critic under a gradient penalty must not mix examples: give it `layer_norm`.

    Returns:
        A net; with batch norm it takes a stream in training.

    Raises:
        ValueError: as for `dcgan_generator`.

    Source: GAN-7, GAN-8
    """
    channels = _dcgan_channels(shape, width)
    layers: list = [Conv2d(shape[2], width, kernel=4, stride=2), leaky_relu]
    for c, c_next in zip(channels[:-1], channels[1:], strict=True):
        layers.append(Conv2d(c, c_next, kernel=4, stride=2, bias=norm is None))
        layers += [leaky_relu] if norm is None else [norm(c_next), leaky_relu]
    return Sequential(*layers, Conv2d(channels[-1], 1, kernel=4, padding=0), reshaped())


def active(channels: int, dropout: float) -> list:
    """Behind a convolution: group norm with SiLU, and dropout where its rate is not 0."""
    norm = GroupNorm(channels, activation=silu)
    return [norm, Dropout(dropout)] if dropout else [norm]


def conv_channels(shape: Shape, width: int) -> list[int]:
    """Channels at each resolution, from the full one down to 4×4: doubling, up to 4 widths."""
    return [width * min(2**i, 4) for i in range(halvings(shape) + 1)]


def _dcgan_channels(shape: Shape, width: int) -> list[int]:
    """Channels at each resolution, from half the full one down to 4×4."""
    times = halvings(shape)
    if times == 0:
        raise ValueError("a DCGAN needs images of at least 8×8 pixels, got 4×4")
    return [width * 2**i for i in range(times)]
