"""metrics/likelihood.py on hierarchies: in worlds where every bound is known, and in any batch."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.streams import Stream
from scratchgen.layers.combinators import Sequential
from scratchgen.maths.likelihoods import Bernoulli
from scratchgen.metrics import likelihood
from scratchgen.metrics.likelihood import CHUNK, hierarchy_bounds, mean_and_error, vae_bounds
from scratchgen.models.ladder_hvae import LadderHvae
from scratchgen.models.vae import Vae
from scratchgen.testing import oracle
from scratchgen.testing.strategies import seeds

import hierarchies as h
from hierarchies import LadderWorld, MarkovWorld
from support import (
    NUMPY,
    bound,
    normals,
    on_every_backend,
    share_of_the_examples,
    tolerance,
)

KINDS = [LadderWorld, MarkovWorld]
MODELS = {"ladder": h.ladder, "markov": h.chain}
every_kind = pytest.mark.parametrize("kind", KINDS, ids=["ladder", "markov"])
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def measured(model, x, stream, samples):
    """`hierarchy_bounds` with one name for each array: of a level, with its number."""
    found = dict(hierarchy_bounds(model, x, stream, samples))
    levels = {"kl": found.pop("kl").T, "per_dimension": found.pop("kl_per_dimension")}
    levels["removal"] = found.pop("removal", np.empty((x.shape[0], 0))).T
    for what, arrays in levels.items():
        found |= {f"{what}/{i}": values for i, values in enumerate(arrays, start=1)}
    return found


def expected(world):
    """The bounds of a world's one x, in the mean over all noise: name -> number."""
    eps = world.points()
    found = measured(world.model, world.repeated(1), h.Points(eps), len(eps[0]))
    return {name: values[0] for name, values in found.items()}


def elbo_of(found):
    """What is found for each example, of which the sum is -ELBO; with the sign turned."""
    kls = [values for name, values in found.items() if name.startswith("kl/")]
    return -(found["reconstruction"] + sum(kls))


@pytest.mark.equation("HVAE-3")
@pytest.mark.equation("HVAE-6")
@pytest.mark.equation("ELBO-3")
@every_kind
@given(st.data())
@share_of_the_examples(2)
def test_elbo_plus_gap_is_the_evidence(kind, data):
    """And the bound of many weights is no looser, for any samples whatever."""
    world = kind(data.draw(seeds()), data.draw(st.sampled_from(h.DEPTHS)), data.draw(st.booleans()))
    found = expected(world)
    gap = world.encoded.kl(world.posterior)
    h.close(elbo_of(found) + gap, world.evidence, size=gap + abs(world.evidence))
    assert -found["importance_weighted"] >= elbo_of(found) - 1e-9 * (1.0 + abs(elbo_of(found)))


@pytest.mark.equation("HVAE-3")
@pytest.mark.equation("HVAE-6")
@every_kind
@given(st.data())
@share_of_the_examples(5)
def test_levels_and_dimensions_are_those_of_the_loss(kind, data):
    world = kind(data.draw(seeds()), data.draw(st.sampled_from(h.DEPTHS)), data.draw(st.booleans()))
    found, (reconstruction, *kls) = expected(world), h.expected(world)
    h.close(found["reconstruction"], reconstruction)
    for i, (kl, shape) in enumerate(zip(kls, world.shapes, strict=True), start=1):
        h.close(found[f"kl/{i}"], kl, size=np.abs(found[f"per_dimension/{i}"]).sum())
        assert found[f"per_dimension/{i}"].shape == shape
        h.close(found[f"per_dimension/{i}"].sum(), found[f"kl/{i}"])


@pytest.mark.equation("ELBO-2")
@every_kind
@given(st.data())
@share_of_the_examples(5)
def test_at_the_exact_posterior_every_bound_is_the_evidence(kind, data):
    world = kind(data.draw(seeds()), data.draw(st.sampled_from(h.DEPTHS)), exact=True)
    x, stream = world.repeated(3), Stream(data.draw(seeds()), NUMPY)
    found = measured(world.model, x, stream, data.draw(st.integers(1, 4)))
    h.close(-found["importance_weighted"], world.evidence, size=abs(elbo_of(found)).max())


@pytest.mark.equation("ELBO-2")
@every_kind
def test_more_samples_come_nearer_to_the_evidence(kind):
    """An encoder moved and widened; each mean to 6.2 of its standard errors."""
    world = kind(3, depth=2, exact=True)
    world.q_of_all.offset[:] += 0.8
    world.q_of_all.variances[:] *= 1.5
    world.build(3)
    found = {
        samples: mean_and_error(
            -measured(world.model, world.repeated(2000), Stream(samples, NUMPY), samples)[
                "importance_weighted"
            ]
        )
        for samples in (1, 8, 40)
    }
    loosest, middle, tight = found.values()
    for (lower, e1), (higher, e2) in ((loosest, middle), (middle, tight)):
        assert higher - lower > 6.2 * (e1**2 + e2**2) ** 0.5
    assert tight[0] < world.evidence + 6.2 * tight[1]
    assert world.evidence - tight[0] < 0.15 * (world.evidence - loosest[0])


@pytest.mark.equation("HVAE-6")
@given(seeds(), st.sampled_from(h.DEPTHS), st.booleans(), st.data())
@share_of_the_examples(2)
def test_a_level_from_its_prior_costs_what_that_encoder_costs(seed, depth, images, data):
    """An encoder with p(z_l | z_<l) in that level, whose gap to the evidence is known."""
    world, other = LadderWorld(seed, depth, images), LadderWorld(seed, depth, images)
    level = data.draw(st.integers(0, depth - 1))
    p, q, at = other.model_of_all, other.q_of_all, other.order.index
    for node in other.nodes[level]:
        row = at(node)
        q.arrows[row] = 0.0
        q.arrows[row, [at(z) for z in other.z]] = p.arrows[node, other.z]
        q.offset[row], q.variances[row] = p.offset[node], p.variances[node]
    gap = other.encoded.kl(other.posterior)
    found = expected(world)
    without = found[f"removal/{level + 1}"] - elbo_of(found)
    h.close(gap - without, world.evidence, size=gap + abs(without) + abs(elbo_of(found)))


class Nothing:
    """A posterior that is always the prior."""

    def __init__(self, latent):
        self.latent = latent

    def __call__(self, s, h):
        """(s, h) -> no residual of the mean, and none of the log-variance."""
        return np.zeros((len(s), *self.latent[:-1], 2 * self.latent[-1])), None


@pytest.mark.equation("HVAE-6")
@given(seeds(), st.sampled_from(h.DEPTHS), st.booleans(), st.data())
@share_of_the_examples(2)
def test_a_level_is_replaced_by_a_posterior_without_a_residual(seed, depth, images, data):
    """The bound of such a model in the mean; replacing its own costs no example a single bit."""
    world, level = LadderWorld(seed, depth, images), data.draw(st.integers(0, depth - 1))
    name, found = f"removal/{level + 1}", expected(world)
    world.model.levels[level].posterior = Nothing(world.shapes[level])
    want = expected(world)
    size = abs(want["reconstruction"]) + abs(found["reconstruction"])
    h.close(found[name] - elbo_of(found), -elbo_of(want), size)
    some = measured(world.model, world.repeated(5), Stream(seed, NUMPY), 3)
    assert np.all(some[f"kl/{level + 1}"] == 0.0)
    assert np.all(some[name] == 0.0)


def test_only_a_ladder_replaces_levels():
    """In a chain p(z_l | z_{l-1}) would need a z_{l-1} that is itself drawn from z_l."""
    x, stream = (normals(0, 2, 3) > 0.0) * 1.0, Stream(5, NUMPY)
    names = {}
    for kind, build in MODELS.items():
        model = build(h.dense, 2, Bernoulli())
        bound(model)
        names[kind] = set(measured(model, x, stream, 1))
    terms = {"reconstruction", "importance_weighted"}
    terms |= {f"{what}/{i}" for what in ("kl", "per_dimension") for i in (1, 2)}
    assert names == {"ladder": terms | {"removal/1", "removal/2"}, "markov": terms}


class FirstLevel:
    """A stream that asks its own for the noise of the only level."""

    def __init__(self, stream):
        self.stream = stream

    def from_row(self, first):
        return FirstLevel(self.stream.from_row(first))

    def at(self, sample):
        return self.stream.at(sample, 0)


@pytest.mark.equation("HVAE-6")
@pytest.mark.equation("VAE-6")
@given(seeds(), st.integers(1, 40))
@share_of_the_examples(5)
def test_with_one_level_they_are_the_bounds_of_the_vae(seed, samples):
    """Number for number, with the same nets and the same noise."""
    features, head, decoder = h.dense(3, 5), h.dense(5, 4), h.dense(2, 3)
    level = None, h.Second(head), h.Second()
    model = LadderHvae([features], [level], None, [(2,)], decoder, Bernoulli())
    vae = Vae(Sequential(features, head), decoder, Bernoulli())
    bound(model, seed)  # and so the VAE
    x, stream = (normals(seed, 6, 3) > 0.0) * 1.0, Stream(seed, NUMPY)
    found = measured(model, x, stream, samples)
    want = vae_bounds(vae, x, FirstLevel(stream), latent=2, samples=samples)
    names = {"kl": "kl/1", "kl_per_dimension": "per_dimension/1"}
    for name, values in want.items():
        h.close(found[names.get(name, name)], values, rel=1e-12)


def bounds(build, x, batch, monkeypatch, samples=8):
    monkeypatch.setattr(likelihood, "NUMBERS", 3 * batch)
    model = build(partial(h.dense, dropout=0.3), 2, Bernoulli())
    bound(model)
    return measured(model, x, Stream(5, NUMPY), samples)


@pytest.mark.equation("HVAE-3")
@pytest.mark.equation("HVAE-6")
@every_model
def test_an_example_is_measured_alike_in_every_batch(build, monkeypatch):
    x = (normals(0, 150, 3) > 0.0) * 1.0
    whole, pieces = (bounds(build, x, size, monkeypatch) for size in (1000, 7))
    some = bounds(build, x[:70], 64, monkeypatch)
    for name in whole:
        np.testing.assert_allclose(pieces[name], whole[name], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(some[name], whole[name][:70], rtol=1e-10, atol=1e-12)


@pytest.mark.equation("HVAE-3")
@pytest.mark.equation("HVAE-6")
@every_model
@pytest.mark.parametrize("place", [(), (2, 3)], ids=["vectors", "maps"])
def test_samples_in_chunks_are_the_samples_together(build, place, monkeypatch):
    """Seven samples, at most three at a time, against the loss and the weights of each."""
    net = h.convolved if place else h.dense
    model, stream = build(net, 2, Bernoulli(), place), Stream(5, NUMPY)
    bound(model)
    x = (normals(0, 20, *place, 3) > 0.0) * 1.0
    monkeypatch.setattr(likelihood, "CHUNK", 3)
    found = measured(model, x, stream, 7)
    terms, weights = [], []
    for s in range(7):
        eps = [stream.at(s, i).normal((20, *shape)) for i, shape in enumerate(model.latents)]
        terms.append(model.loss(x, eps)[0])
        weights.append(model.log_weights(x, eps))
    reconstruction, *kls = np.mean(terms, axis=0)
    h.close(found["reconstruction"], reconstruction, rel=1e-12)
    for i, kl in enumerate(kls, start=1):
        h.close(found[f"kl/{i}"], kl, rel=1e-12)
    h.close(found["importance_weighted"], -np.log(np.exp(weights).mean(axis=0)))


@every_model
def test_large_images_are_measured_a_few_at_a_time(build, monkeypatch):
    model, rows = build(h.dense, 2, Bernoulli()), []
    bound(model)
    look = model.look
    monkeypatch.setattr(
        model, "look", lambda x, *given: rows.append(len(x)) or look(x, *given), raising=False
    )
    monkeypatch.setattr(likelihood, "NUMBERS", 6)
    measured(model, (normals(0, 5, 3) > 0.0) * 1.0, Stream(5, NUMPY), 40)
    assert max(rows) == 2 * CHUNK


@on_every_backend
@every_model
def test_backends_agree(build, born):
    found = []
    for made in (born, NUMPY):
        model = build(h.dense, 2, Bernoulli())
        bound(model, born=made)
        x = made.asarray((normals(0, 5, 3) > 0.0) * 1.0)
        found.append(measured(model, x, Stream(5, made), 3))
    got, want = found
    assert set(got) == set(want)
    for name, values in want.items():
        oracle.assert_close(got[name], values, 50 * tolerance(born), name)
