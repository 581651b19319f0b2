"""Every layer and net once: what it is made of, what it reads, and which laws it has.

tests/layers/test_matrix.py holds each to all laws, on every backend, in every direction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from scratchgen.core.arrays import Backend
from scratchgen.core.streams import Stream
from scratchgen.layers import activations
from scratchgen.layers.affine import Embedding, Linear, LinearMap, Scale
from scratchgen.layers.attention import SelfAttention, attention, softmax
from scratchgen.layers.combinators import Residual, Sequential
from scratchgen.layers.conv import Conv2d, ConvTranspose2d
from scratchgen.layers.dropout import Dropout
from scratchgen.layers.normalisation import (
    AdaptiveGroupNorm,
    AdditiveGroupNorm,
    BatchNorm,
    GroupNorm,
    Standardise,
    batch_standardise,
    group_standardise,
    layer_norm,
    layer_standardise,
)
from scratchgen.layers.resampling import nearest, reshaped, strided
from scratchgen.nets.convnet import (
    conv_decoder,
    conv_encoder,
    conv_trunk,
    dcgan_discriminator,
    dcgan_generator,
)
from scratchgen.nets.ladder import Injected, Joined, conv_ladder, mlp_ladder
from scratchgen.nets.mlp import TimedMlp, mlp
from scratchgen.nets.time import RandomFourier, Raw, Sinusoidal, time_embedding
from scratchgen.nets.unet import ResBlock, Stage, UNet

from support import normals


@dataclass(frozen=True)
class Case:
    """One layer or net.

    Attributes:
        name: what the matrix prints.
        build: () -> the layer.
        shapes: of its inputs, the batch first.
        stream: whether it is called with a stream, that is in training.
        analytic: whether it extends to complex numbers, so that the complex step applies.
        tangent: whether it has a pushforward.
        mixes: whether examples of a batch see each other.
        reads: seed -> its inputs, where they are not standard normal.
    """

    name: str
    build: Callable
    shapes: tuple[tuple[int, ...], ...]
    stream: bool = False
    analytic: bool = True
    tangent: bool = False
    mixes: bool = False
    reads: Callable | None = None

    @property
    def discrete(self) -> bool:
        """Whether its input is whole numbers, which have no cotangent."""
        return self.inputs()[0].dtype.kind == "i"

    def inputs(self, seed: int = 0) -> list[np.ndarray]:
        """Host arrays for its inputs."""
        if self.reads is not None:
            return [self.reads(seed)]
        return [normals(seed + i, *shape) for i, shape in enumerate(self.shapes)]

    def call(self, layer, born: Backend) -> Callable:
        """The layer as a function of its array inputs alone."""
        if not self.stream:
            return layer
        return lambda *inputs: layer(*inputs, stream=Stream(3, born).at("case"))


def away_from_0(seed: int) -> np.ndarray:
    """Numbers where no rectifier has its kink."""
    x = normals(seed, 3, 4)
    return x + np.where(x > 0.0, 0.01, -0.01)


def codes(seed: int) -> np.ndarray:
    """Integers 0..4."""
    return np.floor(np.abs(normals(seed, 6)) * 100.0).astype(np.int64) % 5


def unet(**options) -> UNet:
    """A small U-Net with everything in it."""
    return UNet(8, 2, 3, width=8, groups=4, **options)


IMAGE, SMALL = (3, 4, 6, 8), (2, 8, 8, 2)
RECTIFIERS = {"relu", "leaky_relu"}

LAYERS = [
    *(
        Case(
            name,
            lambda f=f: f,
            ((3, 4),),
            tangent=True,
            analytic=name not in (RECTIFIERS | {"softplus"}),
            reads=away_from_0 if name in RECTIFIERS else None,
        )
        for name, f in vars(activations).items()
        if isinstance(f, activations.Activation)
    ),
    Case("identity", lambda: activations.identity, ((3, 4),), tangent=True),
    Case("Linear", lambda: Linear(4, 3), ((3, 2, 4),), tangent=True),
    Case("Scale", lambda: Scale(8), (IMAGE,), tangent=True),
    Case("Embedding", lambda: Embedding(5, 3), (), analytic=False, reads=codes),
    Case("Conv2d 3×3", lambda: Conv2d(8, 5), (IMAGE,), tangent=True),
    Case("Conv2d 1×1", lambda: Conv2d(8, 5, kernel=1, bias=False), (IMAGE,), tangent=True),
    Case("Conv2d 4×4, stride 2", lambda: Conv2d(8, 5, kernel=4, stride=2), (IMAGE,), tangent=True),
    Case(
        "Conv2d 2×3, stride 3×2",
        lambda: Conv2d(8, 5, (2, 3), (3, 2), (0, 4)),
        (IMAGE,),
        tangent=True,
    ),
    Case("ConvTranspose2d", lambda: ConvTranspose2d(8, 5), (IMAGE,), tangent=True),
    Case(
        "ConvTranspose2d 3×2, stride 2×3",
        lambda: ConvTranspose2d(8, 5, (3, 2), (2, 3), (1, 0), extra=(1, 2), bias=False),
        (IMAGE,),
        tangent=True,
    ),
    Case("reshaped", lambda: reshaped(4, -1, 2), (IMAGE,), tangent=True),
    Case("nearest", lambda: nearest(3), (IMAGE,), tangent=True),
    Case("strided", lambda: strided(3), (IMAGE,), tangent=True),
    Case(
        "LinearMap",
        lambda: LinearMap("double", lambda x: (2.0 * x, lambda dy: 2.0 * dy)),
        (IMAGE,),
        tangent=True,
    ),
    Case("group_standardise", lambda: group_standardise(4), (IMAGE,), tangent=True),
    Case("layer_standardise", lambda: layer_standardise, (IMAGE,), tangent=True),
    Case("batch_standardise", lambda: batch_standardise, (IMAGE,), mixes=True, tangent=True),
    Case("Standardise", lambda: Standardise((1, 2)), (IMAGE,), tangent=True),
    Case("GroupNorm", lambda: GroupNorm(8, 4), (IMAGE,)),
    Case("GroupNorm, SiLU", lambda: GroupNorm(8, 2, activations.silu), (IMAGE,)),
    Case("AdaptiveGroupNorm", lambda: AdaptiveGroupNorm(8, 5, 4), (IMAGE, (3, 5))),
    Case("AdditiveGroupNorm", lambda: AdditiveGroupNorm(8, 5, 4), (IMAGE, (3, 5))),
    Case("layer_norm", lambda: layer_norm(8), (IMAGE,), tangent=True),
    Case("BatchNorm, training", lambda: BatchNorm(8), (IMAGE,), stream=True, mixes=True),
    Case("BatchNorm, evaluation", lambda: BatchNorm(8), (IMAGE,)),
    Case("softmax", lambda: softmax, ((3, 5),)),
    Case("attention", lambda: attention, ((3, 2, 5, 4), (3, 2, 5, 4), (3, 2, 5, 4))),
    Case("SelfAttention", lambda: SelfAttention(8), ((3, 2, 3, 8),)),
    Case("SelfAttention, 4 heads", lambda: SelfAttention(8, heads=4), ((3, 5, 8),)),
    Case("Dropout", lambda: Dropout(0.3), (IMAGE,), stream=True),
    Case(
        "Sequential",
        lambda: Sequential(Linear(4, 6), activations.tanh, Linear(6, 3)),
        ((3, 4),),
        tangent=True,
    ),
    Case(
        "Residual",
        lambda: Residual(Sequential(activations.tanh, Linear(4, 4))),
        ((3, 4),),
        tangent=True,
    ),
]

NETS = [
    Case("mlp", lambda: mlp([4, 6, 3]), ((3, 4),), tangent=True),
    Case("TimedMlp", lambda: TimedMlp([3, 6, 2], 4), ((5, 3), (5,))),
    Case(
        "TimedMlp, dropout",
        lambda: TimedMlp([3, 6, 6, 2], 4, RandomFourier(6), dropout=0.3),
        ((5, 3), (5,)),
        stream=True,
    ),
    Case("Raw", Raw, ((5,),)),
    Case("Sinusoidal", partial(Sinusoidal, 8), ((5,),)),
    Case("RandomFourier", partial(RandomFourier, 8), ((5,),)),
    Case("time_embedding", lambda: time_embedding(Sinusoidal(6), 7), ((5,),)),
    Case("conv_trunk", lambda: conv_trunk((8, 8, 2), 8)[0], (SMALL,)),
    Case("conv_encoder", lambda: conv_encoder((8, 8, 2), 3, 8, reads_data=False), (SMALL,)),
    Case("conv_decoder", lambda: conv_decoder((8, 8, 3), 4, 8), ((2, 4),)),
    Case(
        "conv_decoder, dropout", lambda: conv_decoder((8, 8, 3), 4, 8, 0.3), ((2, 4),), stream=True
    ),
    Case(
        "dcgan_generator",
        lambda: dcgan_generator((16, 16, 3), 4, 4),
        ((3, 4),),
        stream=True,
        mixes=True,
        analytic=False,
    ),
    Case(
        "dcgan_discriminator",
        lambda: dcgan_discriminator((16, 16, 2), 4),
        ((3, 16, 16, 2),),
        stream=True,
        mixes=True,
        analytic=False,
    ),
    Case(
        "dcgan_discriminator, layer_norm",
        lambda: dcgan_discriminator((16, 16, 2), 4, layer_norm),
        ((3, 16, 16, 2),),
        tangent=True,
        analytic=False,
    ),
    Case("Joined", lambda: Joined(mlp([7, 5, 2])), ((3, 4), (3, 3))),
    Case("Injected", lambda: Injected(Linear(3, 4), mlp([4, 5, 2])), ((3, 4), (3, 3))),
    Case(
        "mlp_ladder, posterior", lambda: mlp_ladder(6, [2, 3], 5, 4).levels[1][1], ((3, 4), (3, 4))
    ),
    Case(
        "conv_ladder, encoder",
        lambda: conv_ladder((8, 8, 2), [2, 3], 2, 8, 0.2).encoders[1],
        ((2, 8, 8, 8),),
        stream=True,
    ),
    Case(
        "conv_ladder, merge",
        lambda: conv_ladder((8, 8, 2), [2, 3], 2, 8).levels[0][2],
        ((2, 4, 4, 16), (2, 4, 4, 2)),
    ),
    Case("ResBlock", lambda: ResBlock(4, 8, 5, 4), ((2, 4, 4, 4), (2, 5))),
    Case(
        "Stage",
        lambda: Stage((nearest(2),), ResBlock(4, 4, 5, 2), (strided(2),)),
        ((2, 2, 2, 4), (2, 5)),
    ),
    Case("UNet", unet, (SMALL, (2,))),
    Case(
        "UNet with everything",
        lambda: unet(
            multipliers=(1, 2, 2),
            blocks=2,
            attention=(4,),
            heads=2,
            dropout=0.2,
            inject=AdaptiveGroupNorm,
            time=RandomFourier(6),
            fourier=(0, 1),
            condition=1,
        ),
        (SMALL, (2,), (2, 8, 8, 1)),
        stream=True,
    ),
]

CASES = LAYERS + NETS
