"""nets/ladder.py: shapes of ladders and chains, and what each net may see."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.layers.activations import tanh
from scratchgen.layers.affine import Linear
from scratchgen.maths.likelihoods import Normal
from scratchgen.models.ladder_hvae import LadderHvae
from scratchgen.models.markov_hvae import MarkovHvae
from scratchgen.nets.ladder import (
    ChainNets,
    Injected,
    Joined,
    LadderNets,
    chain_between,
    conv_ladder,
    mlp_ladder,
)
from scratchgen.nets.mlp import mlp
from scratchgen.testing.strategies import seeds, sizes

from support import NUMPY, bound, normals

latents = st.lists(st.integers(1, 3), min_size=1, max_size=4)


def ladder(nets: LadderNets) -> LadderHvae:
    """The model of those nets, with a normal likelihood."""
    return LadderHvae(*nets, Normal())


def noise(model, n: int) -> list[np.ndarray]:
    """Fixed noise for every level."""
    return [normals(i, n, *shape) for i, shape in enumerate(model.latents)]


@given(seeds(), sizes(), sizes())
def test_two_arrays_side_by_side_are_one(seed, left, right):
    net = Joined(Linear(left + right, 3))
    bound(net, seed)
    a, b = normals(seed, 4, left), normals(seed + 1, 4, right)
    np.testing.assert_array_equal(net(a, b)[0], net.f(np.concatenate([a, b], axis=1))[0])


@given(seeds(), sizes(), sizes())
def test_what_is_injected_is_added_before_the_net(seed, k, width):
    net = Injected(Linear(k, width), tanh)
    bound(net, seed)
    a, b = normals(seed, 4, width), normals(seed + 1, 4, k)
    np.testing.assert_allclose(net(a, b)[0], np.tanh(a + net.g(b)[0]), rtol=1e-12)


@pytest.mark.equation("HVAE-4")
@pytest.mark.equation("HVAE-5")
@given(latents, st.floats(0.0, 0.5))
def test_fully_connected_ladders_fit_their_model(ks, dropout):
    """Every level but the top has a prior of its own, and the decoder gives what was asked for."""
    nets = mlp_ladder(5, ks, 10, width=8, dropout=dropout)
    assert [prior is None for prior, _, _ in nets.levels] == [True] + [False] * (len(ks) - 1)
    assert nets.latents == [(k,) for k in ks]
    model = ladder(nets)
    bound(model)
    terms, pullback = model.loss(normals(9, 6, 5), noise(model, 6), Stream(0, NUMPY))
    pullback(*terms)
    assert [term.shape for term in terms] == [(6,)] * (len(ks) + 1)
    assert model.sample(noise(model, 6)).shape == (6, 5)


@pytest.mark.equation("HVAE-4")
@pytest.mark.equation("HVAE-5")
@pytest.mark.parametrize(
    ("size", "count", "sides"),
    [
        (4, 1, [4]),
        (4, 3, [4, 4, 4]),
        (8, 1, [4]),
        (8, 2, [4, 8]),
        (8, 3, [4, 4, 8]),
        (16, 2, [4, 8]),
        (32, 3, [4, 8, 16]),
        (32, 4, [4, 8, 16, 32]),
    ],
)
@pytest.mark.parametrize("c", [1, 3])
def test_convolutional_ladders_rise_from_4_pixels_and_fit_their_model(size, count, sides, c):
    ks = [2 + i for i in range(count)]
    nets = conv_ladder((size, size, c), ks, 2, width=8, dropout=0.1)
    assert nets.latents == [(side, side, k) for side, k in zip(sides, ks, strict=True)]
    assert nets.start[:2] == (4, 4)
    model = ladder(nets)
    bound(model)
    x = normals(9, 2, size, size, c)
    terms, pullback = model.loss(x, noise(model, 2), Stream(0, NUMPY))
    pullback(*terms)
    assert [term.shape for term in terms] == [(2,)] * (count + 1)
    assert model.reconstruct(x, noise(model, 2)).shape == x.shape


@pytest.mark.equation("HVAE-4")
@pytest.mark.parametrize("make", [mlp_ladder, conv_ladder], ids=lambda make: make.__name__)
def test_every_prior_begins_as_a_standard_normal(make):
    nets = make(5, [2, 3], 4, 8) if make is mlp_ladder else make((8, 8, 1), [2, 3], 2, 8)
    model = ladder(nets)
    params = FlatParameters(model, Stream(0, NUMPY).at("initial"))
    state = normals(0, 3, *nets.start)
    below, _ = nets.levels[0][2](state, normals(1, 3, *nets.latents[0]))
    law, _ = nets.levels[1][0](below)
    assert law.shape == (3, *nets.latents[1][:-1], 2 * nets.latents[1][-1])
    assert not law.any()
    assert params.theta.any()


@pytest.mark.equation("HVAE-1")
@pytest.mark.equation("HVAE-2")
@given(latents, st.lists(st.integers(1, 5), max_size=2))
def test_chains_fit_their_model(ks, hidden):
    encoder, decoder = mlp([5, 2 * ks[-1]], reads_data=True), mlp([ks[-1], 10])
    nets = chain_between(encoder, ks, decoder, hidden)
    assert nets.encoders[0] is encoder
    assert nets.decoder is decoder
    assert nets.latents == [(k,) for k in ks]
    model = MarkovHvae(*nets, Normal())
    bound(model)
    small = [
        0.1 * e for e in noise(model, 6)
    ]  # an untrained log-variance grows from level to level
    terms, pullback = model.loss(0.1 * normals(9, 6, 5), small, Stream(0, NUMPY))
    pullback(*terms)
    assert [term.shape for term in terms] == [(6,)] * (len(ks) + 1)
    assert isinstance(nets, ChainNets)
    assert len(nets.encoders) == len(ks) == len(nets.priors) + 1
