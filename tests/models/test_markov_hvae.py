"""models/markov_hvae.py in worlds where everything is known, against the VAE and autograd."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.module import FlatParameters
from scratchgen.core.streams import Stream
from scratchgen.layers.affine import Linear
from scratchgen.maths import likelihoods as lk
from scratchgen.models.markov_hvae import MarkovHvae
from scratchgen.models.vae import Vae
from scratchgen.testing.strategies import seeds

import hierarchies as h
from hierarchies import MarkovWorld
from support import NUMPY, bound, on_every_backend, share_of_the_examples

worlds = st.builds(MarkovWorld, seeds(), st.sampled_from(h.DEPTHS), st.booleans())
exact_worlds = st.builds(
    MarkovWorld, seeds(), st.sampled_from(h.DEPTHS), st.booleans(), st.just(True)
)


@pytest.mark.equation("ELBO-3")
@pytest.mark.equation("ELBO-6")
@pytest.mark.equation("HVAE-1")
@pytest.mark.equation("HVAE-2")
@pytest.mark.equation("HVAE-3")
@given(worlds)
def test_elbo_plus_gap_is_the_evidence(world):
    h.the_loss_and_the_gap_make_the_evidence(world)


@pytest.mark.equation("ELBO-2")
@pytest.mark.equation("ELBO-4")
@pytest.mark.equation("HVAE-2")
@pytest.mark.equation("HVAE-3")
@given(exact_worlds, seeds())
def test_at_the_exact_posterior_every_weight_is_the_evidence(world, seed):
    """The posterior of a chain is a chain, and then the loss too is log p(x) at every noise.

    But for its top term, which is a divergence in closed form; the others are log-ratios.
    """
    h.every_weight_is_the_evidence(world, seed)
    eps = world.noise(seed)
    x = world.repeated(len(eps[0]))
    (reconstruction, top, *others), _ = world.model.loss(x, eps)
    _, (ratio, *_), _ = world.model.look(x, eps)
    total = reconstruction - ratio + sum(others)
    h.close(total, -world.evidence, np.abs(reconstruction).max() + np.abs(top).max())


def cross_entropy(law, world, level):
    """E[-log p(z_level | z_level-1)] of a normal law of all latents."""
    own, above = world.nodes[level], world.nodes[level - 1] if level else []
    matrix, offset, logvar = world.p(level, above)
    of_both = np.concatenate([np.eye(len(own)), -matrix.T], axis=1)
    nodes = [*own, *above]
    residual = law.marginal(nodes).affine(of_both, -offset, 0.0 * np.eye(len(offset)))
    squares = residual.mean**2 + np.diag(residual.covariance)
    return 0.5 * np.sum(squares * np.exp(-logvar) + logvar + np.log(2.0 * np.pi))


def entropy(world, level):
    """E[-log q(z_level | z_level+1)]."""
    return 0.5 * np.sum(1.0 + np.log(2.0 * np.pi) + world.q(level, [])[2])


@pytest.mark.equation("HVAE-1")
@pytest.mark.equation("HVAE-2")
@pytest.mark.equation("HVAE-3")
@pytest.mark.equation("ELBO-6")
@given(worlds)
def test_each_kl_is_cross_entropy_less_entropy_and_their_sum_the_divergence(world):
    _, *kls = h.expected(world)
    want = [cross_entropy(world.encoded, world, i) - entropy(world, i) for i in range(len(kls))]
    h.close(kls, want)
    h.close(sum(kls), world.encoded.kl(world.joint.marginal(world.z)), np.abs(kls).max())


@pytest.mark.equation("HVAE-2")
@pytest.mark.equation("HVAE-3")
@given(worlds, st.data())
def test_partial_sums_from_the_top_are_divergences_given_what_is_below(world, data):
    """kl_1 + ... + kl_k = E KL(q(z_1..k | z_{k+1}) ‖ p(z_1..k)), which is no less than the rate."""
    _, *kls = h.expected(world)
    k = data.draw(st.integers(1, len(kls)))
    kept, below = world.nodes_of(range(k)), world.nodes[k] if k < len(kls) else []
    prior, law = world.joint.marginal(kept), world.encoded.marginal([*kept, *below])
    rate = world.encoded.marginal(kept).kl(prior)
    given = law.conditional(range(len(kept), law.dims), law.mean[len(kept) :])
    # the mean of a KL over z_{k+1}: the covariance stays, and the mean moves with it
    moves = law.marginal(range(len(kept))).covariance - given.covariance
    extra = 0.5 * np.trace(np.linalg.solve(prior.covariance, moves))
    h.close(sum(kls[:k]), given.kl(prior) + extra, np.abs(kls).max())
    assert sum(kls[:k]) >= rate - 1e-9 * (1.0 + rate)


@pytest.mark.equation("VAE-10")
@pytest.mark.equation("HVAE-3")
@given(worlds, seeds())
def test_the_kls_are_sums_over_latent_dimensions(world, seed):
    """Each by hand, from the densities of one number given its neighbours."""
    eps = world.noise(seed)
    x, z = world.repeated(len(eps[0])), world.drawn(eps)
    (_, *kls), _ = world.model.loss(x, eps)
    rates = world.model.look(x, eps)[2]
    seen = np.concatenate([x.reshape(len(x), -1), z], axis=1)
    for level, (rate, kl) in enumerate(zip(rates, kls, strict=True)):
        assert rate.shape == (len(x), *world.shapes[level])
        own = z[:, world.nodes[level]]
        above, prior, logvar = world.p(level, world.z)
        found, mean, logvar_q = world.q(level, [*world.seen, *world.z])
        mean_p, mean_q = z @ above + prior, seen @ found + mean
        nll = 0.5 * ((own - mean_p) ** 2 * np.exp(-logvar) + logvar)
        want = nll - 0.5 * ((own - mean_q) ** 2 * np.exp(-logvar_q) + logvar_q)
        if level == 0:
            want = 0.5 * (mean_q**2 + np.exp(logvar_q) - 1.0 - logvar_q)
        h.close(rate.reshape(want.shape), want, np.abs(nll).max())
        h.close(kl, want.sum(axis=1), np.abs(nll).max())


@pytest.mark.equation("HVAE-3")
@pytest.mark.equation("TRAP-1")
def test_a_lower_term_alone_is_no_divergence():
    """q(z_2 | x) = N(0, 1), q(z_1 | z_2) = N(z_2, 0.05), p(z_2 | z_1) = N(z_1, 0.1).

    kl_2 = ½ [log 0.1 + 0.05/0.1 - 1] = -1.401 < 0, and kl_1 = ½ [1 - log 0.05 + 0.05 - 1] = 1.523:
    p(z_2 | z_1) is narrow, but around a z_1 that depends on this very z_2.
    """
    one = np.eye(1)

    def law(slope, variance):
        return h.Affine(slope * one, np.zeros(1), (1,), np.log([variance]))

    encoders, priors = [law(0.0, 1.0), law(1.0, 0.05)], [law(1.0, 0.1)]
    model = MarkovHvae(
        encoders, priors, [(1,), (1,)], h.Affine(one, 0.0, (1,)), lk.FixedNormal(1.0)
    )
    points = 2**0.5 * np.asarray([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    (_, top, below), _ = model.loss(np.zeros((4, 1)), [points[:, :1], points[:, 1:]])
    assert top.mean() == pytest.approx(0.5 * (0.05 - np.log(0.05)), rel=1e-12)
    assert below.mean() == pytest.approx(0.5 * (np.log(0.1) + 0.5 - 1.0), rel=1e-12)
    assert below.mean() < -1.4


@pytest.mark.equation("ELBO-2")
@pytest.mark.equation("ELBO-4")
@pytest.mark.equation("ELBO-6")
@pytest.mark.equation("HVAE-1")
@pytest.mark.equation("HVAE-2")
@pytest.mark.equation("HVAE-3")
@given(worlds, seeds())
def test_log_weights_are_the_densities_of_both_networks(world, seed):
    h.weights_are_densities(world, seed)


@pytest.mark.equation("ELBO-6")
@pytest.mark.equation("HVAE-3")
@given(worlds, seeds())
def test_log_ratios_average_to_the_kls(world, seed):
    """Below the top they are the kls at every noise."""
    h.ratios_average_to_the_kls(world)
    eps = world.noise(seed)
    x = world.repeated(len(eps[0]))
    (_, _, *kls), _ = world.model.loss(x, eps)
    _, (_, *log_ratios), _ = world.model.look(x, eps)
    for kl, ratio in zip(kls, log_ratios, strict=True):
        h.close(-ratio, kl)


@pytest.mark.equation("HVAE-1")
@given(worlds, st.lists(st.floats(0.1, 2.0), min_size=5, max_size=5))
def test_samples_have_the_law_of_the_model(world, temperatures):
    h.samples_have_the_law_of_the_model(world, temperatures)


@pytest.mark.equation("HVAE-1")
@pytest.mark.equation("HVAE-2")
@given(worlds, seeds(), st.data())
def test_the_first_latents_are_kept(world, seed, data):
    """Counted from the top, so from the last one the encoder draws."""
    h.the_first_are_kept(world, seed, data.draw(st.integers(0, len(world.shapes))))


@pytest.mark.equation("HVAE-1")
@pytest.mark.equation("HVAE-2")
@given(worlds, seeds())
def test_x_reaches_the_decoder_through_latents_only(world, seed):
    h.nothing_of_x_without_latents(world, seed)


class LinearWorld(MarkovWorld):
    """The same chain of real linear layers."""

    def _net(self, law, shape):
        matrix, offset, logvar = law
        layer = Linear(*matrix.shape)
        FlatParameters(layer, Stream(0, NUMPY)).theta = np.concatenate([matrix.T.ravel(), offset])
        return h.Beside(layer, logvar)


@pytest.mark.equation("HVAE-1")
@pytest.mark.equation("HVAE-2")
@pytest.mark.equation("HVAE-3")
@pytest.mark.parametrize("seed", range(3))
def test_real_linear_layers_obey_the_same_laws(seed):
    world = LinearWorld(seed, depth=3)
    h.the_loss_and_the_gap_make_the_evidence(world)
    h.weights_are_densities(world, seed)
    h.samples_have_the_law_of_the_model(world, [0.5, 0.8, 1.0])
    h.the_first_are_kept(world, seed, 2)


@pytest.mark.equation("ELBO-2")
def test_more_importance_samples_tighten_the_bound_towards_the_evidence():
    h.more_samples_tighten_the_bound(MarkovWorld, 12)


@pytest.mark.equation("ELBO-6")
@pytest.mark.equation("HVAE-1")
@pytest.mark.equation("HVAE-2")
@pytest.mark.equation("HVAE-3")
@pytest.mark.parametrize("likelihood", h.LIKELIHOODS, ids=lambda p: type(p).__name__)
@given(seeds())
@share_of_the_examples(10)
def test_with_one_latent_it_is_the_vae(likelihood, seed):
    """Terms, gradient, weights, samples and reconstruction of the VAE with the same nets."""
    encoder, decoder = h.dense(3, 4), h.dense(2, 3 * likelihood.width)
    model, vae = (
        MarkovHvae([encoder], [], [(2,)], decoder, likelihood),
        Vae(encoder, decoder, likelihood),
    )
    h.is_the_vae(model, vae, bound(vae, seed), seed)


@pytest.mark.equation("ELBO-6")
@pytest.mark.equation("HVAE-1")
@pytest.mark.equation("HVAE-2")
@pytest.mark.equation("HVAE-3")
@pytest.mark.parametrize("depth", h.DEPTHS)
@given(seeds())
@share_of_the_examples(10)
def test_gradients_of_every_net(depth, seed):
    likelihood = lk.DiscretisedLogistic(17)
    h.gradients_are_right(h.chain(h.dense, depth, likelihood), likelihood, seed)


@pytest.mark.equation("ELBO-6")
@pytest.mark.equation("HVAE-2")
@pytest.mark.equation("HVAE-3")
@pytest.mark.parametrize("depth", h.DEPTHS)
def test_gradients_on_images(depth):
    model = h.chain(h.convolved, depth, lk.Normal(), place=(2, 2))
    h.gradients_are_right(model, lk.Normal(), 5)


def test_gradients_through_dropout_use_the_masks_of_the_forward_pass():
    model = h.chain(partial(h.dense, dropout=0.5), 2, lk.Bernoulli())
    h.gradients_are_right(model, lk.Bernoulli(), 6, Stream(3, NUMPY))


def test_every_net_that_draws_has_noise_of_its_own():
    spies = []
    h.every_spy_has_its_own_noise(h.chain(h.spied(spies), 3, lk.Bernoulli()), spies)


def test_shards_drop_out_as_the_whole_does():
    h.shards_drop_out_alike(h.chain(partial(h.dense, dropout=0.5), 3, lk.Bernoulli()))


def test_noise_and_kept_latents_must_fit():
    h.noise_must_fit(h.chain(h.dense, 3, lk.Bernoulli()), lk.Bernoulli())


def test_what_a_chain_is_built_of_must_fit():
    def built(encoders, priors, latents):
        return MarkovHvae(encoders * [None], priors * [None], latents, None, lk.Bernoulli())

    with pytest.raises(ValueError, match="needs at least one latent"):
        built(0, 0, [])
    with pytest.raises(ValueError, match="2 latents need .* got 1 encoders and 1 priors"):
        built(1, 1, [(1,), (1,)])
    with pytest.raises(ValueError, match="1 latents need .* got 1 encoders and 1 priors"):
        built(1, 1, [(1,)])


@on_every_backend
def test_every_backend_agrees(born):
    h.backends_agree(lambda net: h.chain(net, 2, lk.DiscretisedLogistic(17)), born)
