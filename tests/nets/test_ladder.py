"""nets/ladder.py: what ladders and chains are made of, and what each net may see."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.module import FlatParameters, Module
from scratchgen.core.streams import Stream
from scratchgen.layers.activations import identity, silu, tanh
from scratchgen.layers.affine import Linear
from scratchgen.layers.combinators import Residual, Sequential
from scratchgen.layers.conv import Conv2d, ConvTranspose2d
from scratchgen.layers.dropout import Dropout
from scratchgen.layers.normalisation import GroupNorm
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


def parts(net) -> list:
    """What a net is made of, layer by layer: sizes of the affine ones, rates of dropout."""
    if isinstance(net, Sequential):
        return [part for layer in net.layers for part in parts(layer)]
    if isinstance(net, Residual):
        return [("residual", *parts(net.f))]
    if isinstance(net, Joined):
        return parts(net.f)
    if isinstance(net, Linear):
        return [net.weight.shape[::-1]]
    if isinstance(net, Dropout):
        return [net.rate]
    if isinstance(net, GroupNorm):
        return [("norm", net.activation)]
    return [net]


def all_of(kind: type, *nets) -> list:
    """Every layer of a kind, however deep."""
    return [found for net in nets for _, found in Module.named(Sequential(net), kind)]


@pytest.mark.equation("HVAE-4")
@pytest.mark.equation("HVAE-5")
def test_what_a_fully_connected_ladder_is_made_of():
    """Of three levels, with dropout in the encoders and the decoder and nowhere else."""
    nets = mlp_ladder(5, [2, 3, 4], 10, width=8, dropout=0.3)
    first, *others = nets.encoders
    assert parts(first) == [(5, 8), silu, 0.3, (8, 8)]
    assert [parts(net) for net in others] == 2 * [[("residual", silu, 0.3, (8, 8))]]
    assert parts(nets.decoder) == [silu, 0.3, (8, 8), silu, 0.3, (8, 10)]
    assert first.layers[0].reads_data
    priors, posteriors, merges = zip(*nets.levels, strict=True)
    assert priors[0] is None
    assert [parts(net) for net in priors[1:]] == [[silu, (8, 6)], [silu, (8, 8)]]
    assert all(isinstance(net, Joined) for net in posteriors)
    assert [parts(net) for net in posteriors] == [[silu, (16, 2 * k)] for k in (2, 3, 4)]
    assert [parts(net.g) for net in merges] == [[(k, 8)] for k in (2, 3, 4)]
    assert [net.f for net in merges] == 3 * [identity]
    flat, deep = (mlp_ladder(5, [2, 3], 10, width=8, depth=depth) for depth in (1, 3))
    assert parts(flat.encoders[0]) == [(5, 8)]
    assert parts(flat.decoder) == [silu, (8, 10)]
    assert parts(deep.encoders[0]) == [(5, 8), silu, (8, 8), silu, (8, 8)]
    assert parts(deep.decoder) == [silu, (8, 8), silu, (8, 8), silu, (8, 10)]
    with pytest.raises(ValueError, match="depth must be at least 1 hidden layer, got 0"):
        mlp_ladder(5, [2, 3], 10, depth=0)
    plain = mlp_ladder(5, [2, 3, 4], 10, width=8)
    assert not all_of(Dropout, *plain.encoders, plain.decoder)


@given(seeds(), latents)
def test_the_merge_of_a_fully_connected_ladder_adds_to_the_state(seed, ks):
    """s + g(z), with g linear: nothing that z says is squeezed, and s passes as it is."""
    nets = mlp_ladder(5, ks, 10, width=8, dropout=0.3)
    bound(ladder(nets), seed)
    s = normals(seed, 4, 8)
    for k, (_, _, merge) in zip(ks, nets.levels, strict=True):
        z = normals(seed + 1, 4, k)
        np.testing.assert_array_equal(merge(s, z)[0], s + merge.g(z)[0])
        halfway = merge(s, 0.5 * z)[0]
        np.testing.assert_allclose(halfway, 0.5 * (merge(s, z)[0] + merge(s, 0.0 * z)[0]))


def test_features_above_the_first_start_from_those_below():
    """Where sizes agree, an encoder whose numbers are all 0 hands on what stands below it."""
    dense, conv = mlp_ladder(5, 3 * [1], 10, 8), conv_ladder((4, 4, 1), 3 * [1], 2, 8)
    for nets, h in ((dense, normals(0, 2, 8)), (conv, normals(0, 2, 4, 4, 8))):
        assert len(nets.encoders) == 3
        for net in nets.encoders[1:]:
            params = bound(net)
            assert np.any(net(h)[0] != h)
            params.theta = 0.0 * params.theta
            np.testing.assert_array_equal(net(h)[0], h)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [4, 8, 16])
def test_what_a_convolutional_ladder_is_made_of(size, count):
    """Halvings in the encoders, doublings in the merges, dropout in encoders and decoder only."""
    ks = [1 + i for i in range(count)]
    nets = conv_ladder((size, size, 3), ks, 2, width=8, dropout=0.3)
    priors, posteriors, merges = zip(*nets.levels, strict=True)
    between = [*priors[1:], *posteriors, *merges]
    assert not all_of(Dropout, *between)
    for net in (*nets.encoders, nets.decoder):
        drops, norms = all_of(Dropout, net), all_of(GroupNorm, net)
        assert len(drops) == len(norms) > 0
        assert all(layer.rate == 0.3 for layer in drops)
    assert all(isinstance(net.layers[-1], Residual) for net in nets.encoders)
    for net in (*nets.encoders, nets.decoder, *priors[1:], *posteriors):
        assert not all_of(ConvTranspose2d, net)
    sides = [side for side, _, _ in nets.latents]
    for net, above, below in zip(merges, sides, [*sides[1:], size], strict=True):
        doublings = all_of(ConvTranspose2d, net)
        assert all(layer.stride == (2, 2) for layer in doublings)
        assert above * 2 ** len(doublings) == below
    for net, above, below in zip(nets.encoders[::-1], sides, [*sides[1:], size], strict=True):
        halvings = [layer for layer in all_of(Conv2d, net) if layer.stride == (2, 2)]
        assert above * 2 ** len(halvings) == below
        assert all(layer.weight.shape[:2] == (4, 4) for layer in halvings)
    for net in (*between, nets.decoder):
        assert all(layer.stride == (1, 1) for layer in all_of(Conv2d, net))


def test_channels_of_a_convolutional_ladder():
    """Those of the resolution, which double with each halving, in every net of a level."""
    nets = conv_ladder((16, 16, 3), [1, 2, 3], 2, width=8)
    channels = [32, 16, 8]
    assert nets.start == (4, 4, 32)
    assert nets.latents == [(4, 4, 1), (8, 8, 2), (16, 16, 3)]
    for i, (c, k) in enumerate(zip(channels, (1, 2, 3), strict=True)):
        prior, posterior, merge = nets.levels[i]
        if prior is not None:
            (last,) = all_of(Conv2d, prior)
            assert last.weight.shape == (3, 3, c, 2 * k)
        (last,) = all_of(Conv2d, posterior)
        assert last.weight.shape == (3, 3, 2 * c, 2 * k)
        assert isinstance(merge.g, Conv2d)
        assert merge.g.weight.shape == (1, 1, k, c)
        block = merge.f.layers[0]
        assert isinstance(block, Residual)
        (own,) = all_of(Conv2d, block)
        assert own.weight.shape == (3, 3, c, c)
    assert all_of(Conv2d, nets.decoder)[-1].weight.shape == (3, 3, 8, 2 * 3)
    first = nets.encoders[0].layers[0]
    assert first.weight.shape == (3, 3, 3, 8)
    assert first.reads_data


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


def affine_sizes(net) -> list[int]:
    """The sizes of a chain of linear layers, with an activation between each two."""
    found = parts(net)
    assert found[1::2] == [silu] * (len(found) // 2)
    assert all(a[1] == b[0] for a, b in zip(found[::2], found[2::2], strict=False))
    return [found[0][0], *(n_out for _, n_out in found[::2])]


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
    steps = list(zip(ks, ks[1:], strict=False))
    for net, (high, low) in zip(nets.priors, steps, strict=True):
        assert affine_sizes(net) == [high, *hidden, 2 * low]
    for net, (high, low) in zip(nets.encoders[1:], steps[::-1], strict=True):
        assert affine_sizes(net) == [low, *hidden, 2 * high]
    assert not all_of(Dropout, *nets.priors, *nets.encoders[1:])
    assert isinstance(nets, ChainNets)
    assert len(nets.encoders) == len(ks) == len(nets.priors) + 1
