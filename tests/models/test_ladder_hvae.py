"""models/ladder_hvae.py in worlds where everything is known, against the VAE and autograd."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.streams import Stream
from scratchgen.layers.combinators import Sequential
from scratchgen.layers.conv import Conv2d
from scratchgen.maths import likelihoods as lk
from scratchgen.models.ladder_hvae import LadderHvae
from scratchgen.models.vae import Vae
from scratchgen.testing.strategies import seeds
from scratchgen.testing.worlds import LinearNetwork

import hierarchies as h
from hierarchies import LadderWorld
from support import NUMPY, bound, normals, on_every_backend, share_of_the_examples

worlds = st.builds(LadderWorld, seeds(), st.sampled_from(h.DEPTHS), st.booleans())
exact_worlds = st.builds(
    LadderWorld, seeds(), st.sampled_from(h.DEPTHS), st.booleans(), st.just(True)
)


@pytest.mark.equation("ELBO-3")
@pytest.mark.equation("ELBO-6")
@pytest.mark.equation("HVAE-4")
@pytest.mark.equation("HVAE-5")
@pytest.mark.equation("HVAE-6")
@given(worlds)
def test_elbo_plus_gap_is_the_evidence(world):
    h.the_loss_and_the_gap_make_the_evidence(world)


@pytest.mark.equation("ELBO-2")
@pytest.mark.equation("ELBO-4")
@pytest.mark.equation("HVAE-5")
@pytest.mark.equation("HVAE-6")
@given(exact_worlds, seeds())
def test_at_the_exact_posterior_every_weight_is_the_evidence(world, seed):
    """Where x depends on all latents and q on all of x and of what is above."""
    h.every_weight_is_the_evidence(world, seed)


@pytest.mark.equation("HVAE-6")
@given(worlds)
def test_the_first_kls_are_the_divergence_of_the_first_latents(world):
    """kl_1 + ... + kl_k = KL(q(z_1..k | x) ‖ p(z_1..k)), by the chain rule."""
    _, *kls = h.expected(world)
    for k in range(1, len(kls) + 1):
        first = world.nodes_of(range(k))
        want = world.encoded.marginal(first).kl(world.joint.marginal(first))
        h.close(sum(kls[:k]), want)


@pytest.mark.equation("ELBO-2")
@pytest.mark.equation("ELBO-4")
@pytest.mark.equation("ELBO-6")
@pytest.mark.equation("HVAE-4")
@pytest.mark.equation("HVAE-5")
@pytest.mark.equation("HVAE-6")
@given(worlds, seeds())
def test_log_weights_are_the_densities_of_both_networks(world, seed):
    h.weights_are_densities(world, seed)


@pytest.mark.equation("ELBO-6")
@pytest.mark.equation("HVAE-6")
@given(worlds)
def test_log_ratios_average_to_the_kls(world):
    h.ratios_average_to_the_kls(world)


@pytest.mark.equation("ELBO-6")
@pytest.mark.equation("HVAE-6")
@pytest.mark.equation("VAE-10")
@given(worlds, seeds(), st.data())
def test_a_level_whose_posterior_is_replaced_says_nothing(world, seed, data):
    """At every noise, the bound of the model whose posterior net there returns zero residuals."""
    level = data.draw(st.integers(0, len(world.shapes) - 1))
    eps = world.noise(seed)
    x = world.repeated(len(eps[0]))
    nll, log_ratios, kls = world.model.look(x, eps, replaced=level)
    silence(world.model, [level])
    want_nll, want, want_kls = world.model.look(x, eps)
    h.close(nll, want_nll)
    for kl, want_kl in zip(kls, want_kls, strict=True):
        assert kl.shape == want_kl.shape
        h.close(kl, want_kl)
    for i, (got, expected) in enumerate(zip(log_ratios, want, strict=True)):
        h.close(got, expected, np.abs(want_nll).max())
        assert np.any(got) == (i != level)


def silence(model, levels):
    """Posterior nets that return 0, so that each q(z_l | x, z_<l) there is the prior."""
    for level in levels:
        *place, width = model.latents[level]

        def zeros(s, h, shape=(*place, 2 * width)):
            return np.zeros((len(s), *shape)), lambda d: (0.0 * s, 0.0 * h)

        model.levels[level].posterior = zeros


@pytest.mark.equation("VAE-10")
@pytest.mark.equation("HVAE-4")
@pytest.mark.equation("HVAE-6")
@given(worlds, seeds())
def test_collapsed_posteriors_leave_the_prior(world, seed):
    """With zero residuals everywhere no rate is left, and x' is a sample to the last bit."""
    silence(world.model, range(len(world.shapes)))
    eps = world.noise(seed)
    x = world.repeated(len(eps[0]))
    (reconstruction, *kls), _ = world.model.loss(x, eps)
    for kl, rate in zip(kls, world.model.look(x, eps)[2], strict=True):
        assert not np.any(kl)
        assert not np.any(rate)
    sample = world.model.sample(eps)
    np.testing.assert_array_equal(world.model.reconstruct(x, eps), sample)
    logvar = world.p(len(world.shapes), [])[2].reshape(world.data_shape)
    gap = (x - sample) ** 2 * np.exp(-logvar) + logvar + np.log(2.0 * np.pi)
    h.close(reconstruction, 0.5 * gap.reshape(len(x), -1).sum(axis=1))


@pytest.mark.equation("VAE-10")
@pytest.mark.equation("HVAE-6")
@given(worlds, seeds())
def test_the_rate_is_the_sum_over_latent_dimensions(world, seed):
    """Each by hand, as the divergence of one number given those above it; they sum to the kls."""
    eps = world.noise(seed)
    x, z = world.repeated(len(eps[0])), world.drawn(eps)
    rates = world.model.look(x, eps)[2]
    (_, *kls), _ = world.model.loss(x, eps)
    for level, (rate, kl) in enumerate(zip(rates, kls, strict=True)):
        assert rate.shape == (len(x), *world.shapes[level])
        above, prior, logvar = world.p(level, world.z)
        found, mean, logvar_q = world.q(level, [*world.seen, *world.z])
        gap = np.concatenate([x.reshape(len(x), -1), z], axis=1) @ found + mean - z @ above - prior
        r = logvar_q - logvar
        want = 0.5 * (np.exp(r) - 1.0 - r + gap**2 * np.exp(-logvar))
        h.close(rate.reshape(want.shape), want)
        h.close(kl, want.sum(axis=1))


@pytest.mark.equation("HVAE-4")
@given(worlds, st.lists(st.floats(0.1, 2.0), min_size=5, max_size=5))
def test_samples_have_the_law_of_the_model(world, temperatures):
    h.samples_have_the_law_of_the_model(world, temperatures)


@pytest.mark.equation("HVAE-4")
@pytest.mark.equation("HVAE-5")
@given(worlds, seeds(), st.data())
def test_the_first_latents_are_kept(world, seed, data):
    h.the_first_are_kept(world, seed, data.draw(st.integers(0, len(world.shapes))))


@pytest.mark.equation("HVAE-4")
@pytest.mark.equation("HVAE-5")
@given(worlds, seeds())
def test_x_reaches_the_decoder_through_latents_only(world, seed):
    h.nothing_of_x_without_latents(world, seed)


@pytest.mark.equation("HVAE-5")
@pytest.mark.parametrize("depth", h.DEPTHS)
@pytest.mark.parametrize("place", [(), (2, 2)], ids=["vectors", "images"])
def test_no_net_but_the_posteriors_lets_x_through(depth, place):
    """Once they return 0, all the decoder is given by the loss and from all latents is without x.

    The nets are not linear, and both go the way that x takes in training.
    """
    likelihood, given_to = lk.Bernoulli(), []
    model = h.ladder(h.convolved if place else h.dense, depth, likelihood, place)
    bound(model)
    decoder = model.decoder
    model.decoder = lambda s: given_to.append(s) or decoder(s)
    (x, eps), (other, _) = (h.batch(model, likelihood, seed) for seed in (0, 50))
    assert np.any(x != other)
    for alike in (False, True):
        if alike:
            silence(model, range(depth))
        given_to.clear()
        seen = []
        for data in (x, other):
            model.loss(data, eps)
            seen.append(model.reconstruct(data, eps, keep=depth))
        first, _, second, _ = given_to
        assert np.array_equal(first, second) == alike
        assert np.array_equal(*seen) == alike


class ConvWorld(LadderWorld):
    """Two levels of real convolutions without curvature, whose matrices are read off outputs."""

    def __init__(self, seed):
        one = (2, 2, 1)
        self.shapes, self.data_shape = [one, one], one
        self.nodes = [list(range(i, i + 4)) for i in (0, 4, 8)]
        self.z, self.seen = list(range(8)), self.nodes[2]
        self.order = [*self.seen, *self.z]
        up, down = [Conv2d(1, 2), Conv2d(2, 2)], Conv2d(2, 1)
        prior, residuals = Conv2d(2, 1), [h.Joined(Conv2d(4, 1)) for _ in range(2)]
        merges = [h.Joined(Conv2d(3, 2)) for _ in range(2)]
        levels = [
            (None, h.Beside(residuals[0], 0.3), merges[0]),
            (h.Beside(prior, -0.4), h.Beside(residuals[1], -0.2), merges[1]),
        ]
        self.model = LadderHvae(up, levels, (2, 2, 2), [one, one], down, lk.FixedNormal(0.5))
        bound(self.model, seed)
        first = self.model.start.read().value[None]

        def after(z1):
            return merges[0](np.repeat(first, len(z1), axis=0), z1)[0]

        def mean_q1(x):
            above = up[1](up[0](x)[0])[0]
            return residuals[0](np.repeat(first, len(x), axis=0), above)[0]

        def mean_q2(x, z1):
            return prior(after(z1))[0] + residuals[1](after(z1), up[0](x)[0])[0]

        nothing = np.zeros((4, 12)), np.zeros(4)
        p2 = self.read(lambda z1: prior(after(z1))[0], 1)
        seen = self.read(lambda z1, z2: down(merges[1](after(z1), z2)[0])[0], 2)
        q1, q2 = self.read(mean_q1, 1), self.read(mean_q2, 2)
        self.model_of_all = self.network([nothing, p2, seen], [1.0, np.exp(-0.4), 0.5])
        self.q_of_all = self.network([nothing, q1, q2], np.exp([0.0, 0.3, -0.4 - 0.2]))
        self.x = normals(seed, 4)

    def read(self, f, inputs):
        """The matrix of f among twelve nodes, and its offset."""
        n = 4 * inputs
        at = np.concatenate([np.zeros((1, n)), np.eye(n)]).reshape(n + 1, inputs, 2, 2, 1)
        y = f(*(at[:, i] for i in range(inputs))).reshape(n + 1, 4)
        return np.pad((y[1:] - y[0]).T, ((0, 0), (0, 12 - n))), y[0]

    def network(self, laws, variances):
        """Its nodes in the order of the laws, four each."""
        arrows, offsets = zip(*laws, strict=True)
        return LinearNetwork(
            np.concatenate(arrows), np.concatenate(offsets), np.repeat(variances, 4)
        )


@pytest.mark.equation("HVAE-4")
@pytest.mark.equation("HVAE-5")
@pytest.mark.equation("HVAE-6")
@pytest.mark.parametrize("seed", range(3))
def test_real_convolutions_without_curvature_obey_the_same_laws(seed):
    world = ConvWorld(seed)
    h.the_loss_and_the_gap_make_the_evidence(world)
    h.weights_are_densities(world, seed)
    h.ratios_average_to_the_kls(world)
    h.samples_have_the_law_of_the_model(world, [0.5, 0.8])
    h.the_first_are_kept(world, seed, 1)


@pytest.mark.equation("ELBO-2")
def test_more_importance_samples_tighten_the_bound_towards_the_evidence():
    h.more_samples_tighten_the_bound(LadderWorld, 12)


@pytest.mark.equation("ELBO-6")
@pytest.mark.equation("HVAE-4")
@pytest.mark.equation("HVAE-5")
@pytest.mark.equation("HVAE-6")
@pytest.mark.parametrize("likelihood", h.LIKELIHOODS, ids=lambda p: type(p).__name__)
@given(seeds())
@share_of_the_examples(10)
def test_with_one_level_it_is_the_vae(likelihood, seed):
    """Terms, gradient, weights, samples and reconstruction of the VAE with the same nets."""
    features, head, decoder = h.dense(3, 5), h.dense(5, 4), h.dense(2, 3 * likelihood.width)
    level = None, h.Second(head), h.Second()
    model = LadderHvae([features], [level], (1,), [(2,)], decoder, likelihood)
    vae = Vae(Sequential(features, head), decoder, likelihood)
    params = bound(model, seed)  # and so of the VAE
    h.is_the_vae(model, vae, params, seed)


@pytest.mark.equation("ELBO-6")
@pytest.mark.equation("HVAE-4")
@pytest.mark.equation("HVAE-5")
@pytest.mark.equation("HVAE-6")
@pytest.mark.parametrize("depth", h.DEPTHS)
@given(seeds())
@share_of_the_examples(10)
def test_gradients_of_every_net_and_of_the_start(depth, seed):
    likelihood = lk.DiscretisedLogistic(17)
    model = h.ladder(h.dense, depth, likelihood)
    h.gradients_are_right(model, likelihood, seed)


@pytest.mark.equation("ELBO-6")
@pytest.mark.equation("HVAE-4")
@pytest.mark.equation("HVAE-5")
@pytest.mark.equation("HVAE-6")
@pytest.mark.parametrize("depth", h.DEPTHS)
def test_gradients_on_images(depth):
    model = h.ladder(h.convolved, depth, lk.Normal(), place=(2, 2))
    h.gradients_are_right(model, lk.Normal(), 5)


@pytest.mark.equation("ELBO-6")
@pytest.mark.equation("HVAE-4")
@pytest.mark.equation("HVAE-5")
@pytest.mark.equation("HVAE-6")
def test_gradients_through_dropout_use_the_masks_of_the_forward_pass():
    model = h.ladder(partial(h.dense, dropout=0.5), 2, lk.Bernoulli())
    h.gradients_are_right(model, lk.Bernoulli(), 6, Stream(3, NUMPY))


def test_every_net_that_draws_has_noise_of_its_own():
    spies = []
    model = h.ladder(h.spied(spies), 3, lk.Bernoulli())
    h.every_spy_has_its_own_noise(model, spies)


def test_shards_drop_out_as_the_whole_does():
    h.shards_drop_out_alike(h.ladder(partial(h.dense, dropout=0.5), 3, lk.Bernoulli()))


def test_noise_and_kept_levels_must_fit():
    model = h.ladder(h.dense, 3, lk.Bernoulli())
    h.noise_must_fit(model, lk.Bernoulli())
    x, eps = h.batch(model, lk.Bernoulli(), 0)
    with pytest.raises(ValueError, match="eps must have one array for each level"):
        model.look(x, eps[:-1])
    for level in (-1, 3):
        with pytest.raises(ValueError, match=f"there are the levels 0 to 2, not {level}"):
            model.look(x, eps, replaced=level)


def test_what_a_ladder_is_built_of_must_fit():
    top, below = (None, None, None), (h.dense(1, 2), None, None)

    def built(encoders, levels, latents):
        return LadderHvae(encoders, levels, (1,), latents, None, lk.Bernoulli())

    with pytest.raises(ValueError, match="needs at least one latent"):
        built([], [], [])
    with pytest.raises(ValueError, match="got 1 encoders, 2 levels and 2 latents"):
        built([None], [top, below], [(1,), (1,)])
    with pytest.raises(ValueError, match="got 2 encoders, 1 levels and 2 latents"):
        built([None, None], [top], [(1,), (1,)])
    with pytest.raises(ValueError, match="the first level has the prior None.* level 1 has None"):
        built([None, None], [top, top], [(1,), (1,)])
    with pytest.raises(ValueError, match="level 0 has <"):
        built([None], [below], [(1,)])


@on_every_backend
def test_every_backend_agrees(born):
    h.backends_agree(lambda net: h.ladder(net, 2, lk.DiscretisedLogistic(17)), born)
