"""Hierarchical VAEs in worlds where everything is known: linear and Gaussian, by matrices.

A world draws p(z, x) and q(z | x) as networks of single numbers (testing/worlds.py), knows from
them whatever can be known, and builds the model whose nets are those matrices. The laws that hold
of either model stand here too; the tests of each call them.
"""

from functools import partial
from math import prod

import numpy as np
import pytest

from scratchgen.core.module import FlatParameters, Module
from scratchgen.core.streams import Stream
from scratchgen.layers.activations import tanh
from scratchgen.layers.combinators import Sequential
from scratchgen.layers.conv import Conv2d
from scratchgen.maths import likelihoods as lk
from scratchgen.maths.bounds import importance_weighted_bound
from scratchgen.maths.gaussian import Gaussian
from scratchgen.models.ladder_hvae import LadderHvae
from scratchgen.models.markov_hvae import MarkovHvae
from scratchgen.nets.ladder import Joined
from scratchgen.nets.mlp import mlp
from scratchgen.testing import oracle
from scratchgen.testing.worlds import LinearNetwork, factorised

from support import NUMPY, Spy, bound, host, normals, tolerance

DEPTHS = [1, 2, 3, 5]
VECTORS = [(2,), (1,), (3,), (1,), (2,)]
IMAGES = [(1, 2, 1), (2, 1, 2), (1, 1, 1), (1, 1, 2), (2, 1, 1)]
LIKELIHOODS = [lk.Bernoulli(), lk.FixedNormal(0.5), lk.Normal(), lk.DiscretisedLogistic(17)]
LIKELIHOODS += [lk.Categorical(5)]


class Affine:
    """A net by hand: its inputs, flattened and end to end, times a, plus b; then a logvar, if any.

    Args:
        a: (inputs, outputs).
        b: (outputs,).
        shape: of one example of the output.
        logvar: (outputs,), constant, beside the output on the last axis.
    """

    def __init__(self, a, b, shape, logvar=None):
        self.a, self.b, self.shape, self.logvar = a, b, shape, logvar

    def __call__(self, *inputs):
        flat = np.concatenate([x.reshape(len(x), -1) for x in inputs], axis=1)
        y = (flat @ self.a + self.b).reshape(-1, *self.shape)
        if self.logvar is not None:
            logvar = np.broadcast_to(self.logvar.reshape(self.shape), y.shape)
            y = np.concatenate([y, logvar], axis=-1)
        return y, None  # values only


class World:
    """p(z, x) and q(z | x), both linear and Gaussian, and one x; subclasses build the model.

    Args:
        seed: of every number.
        depth: L.
        images: whether the latents, the state and x are maps (H, W, C) rather than vectors.
        exact: q(z | x) = p(z | x), which takes latents of one number each; else any q.
    """

    markov: bool

    def __init__(self, seed, depth=2, images=False, exact=False):
        one, data = ((1, 1, 1), (1, 3, 1)) if images else ((1,), (3,))
        self.shapes = depth * [one] if exact else (IMAGES if images else VECTORS)[:depth]
        self.data_shape, self.images = data, images
        sizes = [*map(prod, self.shapes), prod(data)]
        ends = np.cumsum([0, *sizes])
        self.nodes = [list(range(a, b)) for a, b in zip(ends[:-1], ends[1:], strict=True)]
        self.z, self.seen = list(range(ends[-2])), self.nodes[-1]
        levels = np.repeat(np.arange(depth + 1), sizes)
        self.model_of_all = self._network(seed, levels)
        top = self.nodes[0]
        self.model_of_all.offset[top], self.model_of_all.variances[top] = 0.0, 1.0
        climb = range(depth - 1, -1, -1) if self.markov else range(depth)
        drawn = [self.seen, *(self.nodes[level] for level in climb)]  # q begins at x
        self.order = [node for block in drawn for node in block]
        steps = np.repeat(np.arange(depth + 1), [len(block) for block in drawn])
        self.q_of_all = self._network(seed + 3, steps)
        if exact:
            parents = [np.flatnonzero(row) for row in self._arrows(seed, steps)]
            self.q_of_all = factorised(self.joint.marginal(self.order), parents)
        self.x = self.joint.sample(normals(seed + 6, len(self.order)))[self.seen]
        self.build(seed + 7)

    def _network(self, seed, levels) -> LinearNetwork:
        count = len(levels)
        variances = np.exp(0.5 * normals(seed + 2, count))
        return LinearNetwork(self._arrows(seed, levels), normals(seed + 1, count), variances)

    def _arrows(self, seed, levels):
        """From every level to the next; where not Markovian, to all that come after."""
        gap = np.subtract.outer(levels, levels)
        there = gap == 1 if self.markov else gap > 0
        return 0.6 * normals(seed, len(levels), len(levels)) * there

    def build(self, seed):
        """Make self.model from the matrices."""
        raise NotImplementedError

    def p(self, level, given):
        """p(z_level | given): matrix, offset and logvar; level L is x."""
        return self._law(self.model_of_all, self.nodes[level], given)

    def q(self, level, given):
        """q(z_level | given): matrix, offset and logvar."""
        at = self.order.index
        return self._law(self.q_of_all, list(map(at, self.nodes[level])), list(map(at, given)))

    def _law(self, network, rows, columns):
        matrix = network.arrows[np.ix_(rows, columns)].T
        return matrix, network.offset[rows], np.log(network.variances[rows])

    @property
    def joint(self) -> Gaussian:
        """p(z, x)."""
        return self.model_of_all.joint

    @property
    def evidence(self) -> float:
        """log p(x)."""
        return float(self.joint.marginal(self.seen).log_prob(self.x))

    @property
    def posterior(self) -> Gaussian:
        """p(z | x)."""
        return self.joint.conditional(self.seen, self.x)

    @property
    def encoder(self) -> LinearNetwork:
        """q(z | x) at this x, its nodes in the order in which q draws them."""
        q, d = self.q_of_all, len(self.seen)
        offset = q.offset[d:] + q.arrows[d:, :d] @ self.x
        return LinearNetwork(q.arrows[d:, d:], offset, q.variances[d:])

    @property
    def encoded(self) -> Gaussian:
        """q(z | x) at this x, from the top."""
        drawn = self.order[len(self.seen) :]
        return self.encoder.joint.marginal([drawn.index(node) for node in self.z])

    def nodes_of(self, kept):
        """The latents of the levels `kept`."""
        return [node for level in kept for node in self.nodes[level]]

    def points(self):
        """Noise whose mean of any quadratic is its expectation: ±√n e_i of all n numbers."""
        n = len(self.z)
        return self.split(n**0.5 * np.concatenate([np.eye(n), -np.eye(n)]))

    def noise(self, seed, count=7):
        """For each level (count, *its shape)."""
        return self.split(normals(seed, count, len(self.z)))

    def split(self, flat):
        """(n, all latents) -> for each level (n, *its shape)."""
        pairs = zip(self.nodes, self.shapes, strict=False)
        return [flat[:, nodes].reshape(-1, *shape) for nodes, shape in pairs]

    def repeated(self, count):
        """x as a batch."""
        return np.repeat(self.x.reshape(1, *self.data_shape), count, axis=0)

    def drawn(self, eps):
        """z ~ q(z | x) with this noise: (n, all latents), from the top."""
        e = np.concatenate([level.reshape(len(level), -1) for level in eps], axis=1)
        own = self.order[len(self.seen) :]
        given = self.encoder.offset + np.sqrt(self.encoder.variances) * e[:, own]
        z = np.empty_like(e)
        z[:, own] = np.linalg.solve(np.eye(len(own)) - self.encoder.arrows, given.T).T
        return z

    def decoded(self, z, eps, keep):
        """E[x | z] with the levels from `keep` on drawn from p given those above, by hand."""
        z = z.copy()
        for level in range(keep, len(self.shapes)):
            matrix, offset, logvar = self.p(level, self.z)
            e = eps[level].reshape(len(z), -1)
            z[:, self.nodes[level]] = z @ matrix + offset + np.exp(0.5 * logvar) * e
        matrix, offset, _ = self.p(len(self.shapes), self.z)
        return (z @ matrix + offset).reshape(-1, *self.data_shape)


class LadderWorld(World):
    """A network in which all depends on all above it; the state holds z_1..z_l, each in its place.

    It starts at numbers that are not zero, and every feature of x is a rotation of the one below.
    """

    markov = False

    def build(self, seed):
        size, d = len(self.z), len(self.seen)
        state = (size, 1, 1) if self.images else (size,)
        start, turns, turned = normals(seed, size), [], np.eye(d)
        encoders, levels = [], []
        for i in range(len(self.shapes)):
            turn = np.linalg.qr(normals(seed + 1 + i, d, d))[0]
            encoders.append(Affine(turn, np.zeros(d), self.data_shape))
            turned = turned @ turn
            turns.insert(0, turned)
        for level, (shape, turn) in enumerate(zip(self.shapes, turns, strict=True)):
            prior, mean, logvar = self.p(level, self.z)
            found, mean_q, logvar_q = self.q(level, self.z)
            of_x = self.q(level, self.seen)[0]
            net = Affine(prior, mean - start @ prior, shape, logvar)
            posterior = Affine(
                np.concatenate([found - prior, turn.T @ of_x]),
                mean_q - mean - start @ (found - prior),
                shape,
                logvar_q - logvar,
            )
            into = np.concatenate([np.eye(size), np.eye(size)[self.nodes[level]]])
            merge = Affine(into, np.zeros(size), state)
            levels.append((net if level else None, posterior, merge))
        w, b, logvar = self.p(len(self.shapes), self.z)
        decoder = Affine(w, b - start @ w, self.data_shape, logvar)
        self.model = LadderHvae(encoders, levels, state, self.shapes, decoder, lk.Normal())
        FlatParameters(self.model, Stream(seed, NUMPY)).theta = start


class MarkovWorld(World):
    """A chain in either direction."""

    markov = True

    def build(self, seed):
        depth, encoders, priors = len(self.shapes), [], []
        for level in range(depth):
            encoders.insert(0, self._net(self.q(level, self.nodes[level + 1]), self.shapes[level]))
            if level:
                priors.append(self._net(self.p(level, self.nodes[level - 1]), self.shapes[level]))
        decoder = self._net(self.p(depth, self.nodes[depth - 1]), self.data_shape)
        self.model = MarkovHvae(encoders, priors, self.shapes, decoder, lk.Normal())

    def _net(self, law, shape):
        matrix, offset, logvar = law
        return Affine(matrix, offset, shape, logvar)


class Points:
    """A stream whose samples are given, the same for every example.

    Of `World.points` their mean of any quadratic is its expectation.

    Args:
        eps: for each level (samples, *its shape).
    """

    def __init__(self, eps, sample=None, level=None):
        self.eps, self.sample, self.level = eps, sample, level

    def from_row(self, first):
        return self

    def at(self, sample, level):
        return Points(self.eps, sample, level)

    def normal(self, shape):
        return np.broadcast_to(self.eps[self.level][self.sample], shape)


def close(got, want, size=0.0, rel=1e-10):
    """Equal to `rel` of what was summed."""
    size = max(float(np.max(np.abs(want))), float(size), 1.0)
    np.testing.assert_allclose(got, want, rtol=0.0, atol=rel * size)


def expected(world):
    """The mean of the loss's terms over all noise."""
    eps = world.points()
    terms, _ = world.model.loss(world.repeated(len(eps[0])), eps)
    return [float(term.mean()) for term in terms]


def the_loss_and_the_gap_make_the_evidence(world):
    """-E[loss] + KL(q ‖ p(z | x)) = log p(x), whatever q is."""
    loss, gap = sum(expected(world)), world.encoded.kl(world.posterior)
    close(gap - loss, world.evidence, size=gap + abs(loss))


def every_weight_is_the_evidence(world, seed):
    """At the exact posterior the log-weights have no variance, and the loss's mean is -log p(x)."""
    eps = world.noise(seed)
    x = world.repeated(len(eps[0]))
    nll, _, _ = world.model.look(x, eps)
    size = np.abs(nll).max()
    close(world.model.log_weights(x, eps), world.evidence, size)
    close(sum(expected(world)), -world.evidence, size)


def weights_are_densities(world, seed):
    """log p(x, z) - log q(z | x) at the very z, by the densities of both networks."""
    eps = world.noise(seed)
    x, z = world.repeated(len(eps[0])), world.drawn(eps)
    nll, log_ratios, _ = world.model.look(x, eps)
    p = world.model_of_all.log_prob(np.concatenate([z, np.tile(world.x, (len(z), 1))], axis=1))
    q = world.encoder.log_prob(z[:, world.order[len(world.seen) :]])
    size = np.abs(p).max() + np.abs(q).max()
    close(sum(log_ratios) - nll, p - q, size)
    close(world.model.log_weights(x, eps), p - q, size)
    w, b, logvar = world.p(len(world.shapes), world.z)
    noise = Gaussian(np.zeros(len(b)), np.diag(np.exp(logvar)))
    close(nll, -noise.log_prob(world.x - z @ w - b), size)


def ratios_average_to_the_kls(world):
    """Each level's log-ratio against its kl in the mean over all noise."""
    eps = world.points()
    nll, log_ratios, _ = world.model.look(world.repeated(len(eps[0])), eps)
    reconstruction, *kls = expected(world)
    close(nll.mean(), reconstruction)
    close([-ratio.mean() for ratio in log_ratios], kls)


def samples_have_the_law_of_the_model(world, temperatures):
    """Mean and covariance of E[x | z] over z from the prior whose noise is scaled by level."""
    temperatures = temperatures[: len(world.shapes)]
    scaled = [t * e for t, e in zip(temperatures, world.points(), strict=True)]
    means = world.model.sample(scaled).reshape(len(scaled[0]), -1)
    p, sizes = world.model_of_all, [len(nodes) for nodes in world.nodes]
    scales = np.repeat([*temperatures, 1.0], sizes)
    seen = LinearNetwork(p.arrows, p.offset, scales**2 * p.variances).joint.marginal(world.seen)
    gap, variances = means - seen.mean, p.variances[world.seen]
    close(means.mean(axis=0), seen.mean, np.abs(means).max())
    got = gap.T @ gap / len(gap) + np.diag(variances)
    close(got, seen.covariance, np.abs(gap).max() ** 2)


def the_first_are_kept(world, seed, keep):
    """x' by hand: the first z's as q draws them, the others from p given those."""
    eps = world.noise(seed)
    want = world.decoded(world.drawn(eps), eps, keep)
    got = world.model.reconstruct(world.repeated(len(want)), eps, keep)
    assert got.shape == want.shape
    close(got, want, np.abs(world.drawn(eps)).max())


def nothing_of_x_without_latents(world, seed):
    """With none kept, x changes no bit of x', which is a sample; unless told, all are kept."""
    eps = world.noise(seed)
    x, other = world.repeated(len(eps[0])), 1.0 + world.repeated(len(eps[0]))
    none = world.model.reconstruct(x, eps, 0)
    np.testing.assert_array_equal(none, world.model.reconstruct(other, eps, 0))
    np.testing.assert_array_equal(none, world.model.sample(eps))
    everything = world.model.reconstruct(x, eps)
    np.testing.assert_array_equal(everything, world.model.reconstruct(x, eps, len(world.shapes)))


def more_samples_tighten_the_bound(kind, seed, n=4000):
    """With the exact posterior moved and widened, the bound rises with K towards log p(x)."""
    world = kind(seed, depth=2, exact=True)
    world.q_of_all.offset[:] += 0.4
    world.q_of_all.variances[:] *= 1.5
    world.build(seed)

    def means(samples):
        flat = Stream(seed, NUMPY).at(samples).normal((1, samples * n, len(world.z)))[0]
        weights = world.model.log_weights(world.repeated(len(flat)), world.split(flat))
        bounds = importance_weighted_bound(weights.reshape(samples, n))
        return bounds.mean(), bounds.std() / n**0.5

    found = [means(samples) for samples in (1, 8, 64)]
    for (lower, e1), (higher, e2) in zip(found, found[1:], strict=False):
        assert higher - lower > 6.2 * (e1**2 + e2**2) ** 0.5
    assert found[-1][0] < world.evidence + 6.2 * found[-1][1]
    assert world.evidence - found[-1][0] < 0.1 * (world.evidence - found[0][0])


class Beside(Module):
    """A net for the mean, and beside it a constant log-variance for each channel."""

    def __init__(self, net, logvar):
        self.net, self.logvar = net, logvar

    def __call__(self, *inputs):
        mean, _ = self.net(*inputs)
        return np.concatenate([mean, 0.0 * mean + self.logvar], axis=-1), None  # values only


class Second(Module):
    """(a, b) -> net(b): a net of two inputs that does not look at the first."""

    def __init__(self, net=None):
        self.net = net or (lambda b: (b, lambda dy: dy))

    def __call__(self, a, b):
        """(a, b) -> net(b), pullback: dy -> (0, db)."""
        y, pull = self.net(b)
        return y, lambda dy: (0.0 * a, pull(dy))


def dense(n_in, n_out, dropout=0.0):
    """A small net on vectors."""
    return mlp([n_in, 4, n_out], tanh, dropout)


def convolved(n_in, n_out):
    """A small net on maps."""
    return Sequential(Conv2d(n_in, 3), tanh, Conv2d(3, n_out))


def spied(spies):
    """A maker of nets that record their noise; it keeps them in `spies`."""

    def net(n_in, n_out):
        spies.append(Spy(n_out))
        return spies[-1]

    return net


CHANNELS = [2, 1, 3, 1, 2]


def ladder(net, depth, likelihood, place=()):
    """A ladder whose nets are all made by net(n_in, n_out).

    Args:
        place: (H, W) of the maps; () for vectors.
    """
    levels = [
        (net(4, 2 * k) if i else None, Joined(net(4 + 5, 2 * k)), Joined(net(4 + k, 4)))
        for i, k in enumerate(CHANNELS[:depth])
    ]
    encoders = [net(5 if i else 3, 5) for i in range(depth)]
    latents = [(*place, k) for k in CHANNELS[:depth]]
    decoder = net(4, 3 * likelihood.width)
    return LadderHvae(encoders, levels, (*place, 4), latents, decoder, likelihood)


def chain(net, depth, likelihood, place=()):
    """A chain whose nets are all made by net(n_in, n_out); `place` as for `ladder`."""
    widths = CHANNELS[:depth]
    up, down = [3, *widths[::-1]], [*widths, 3]
    encoders = [net(a, 2 * b) for a, b in zip(up, up[1:], strict=False)]
    priors = [net(a, 2 * b) for a, b in zip(widths, widths[1:], strict=False)]
    latents = [(*place, k) for k in widths]
    decoder = net(down[depth - 1], 3 * likelihood.width)
    return MarkovHvae(encoders, priors, latents, decoder, likelihood)


def batch(model, likelihood, seed, count=3):
    """Data that fit the likelihood, and noise for each level."""
    place = model.latents[0][:-1]
    x = (normals(seed, count, *place, 3) > 0.0) * 1.0
    if isinstance(likelihood, lk.Levels):
        x = lk.level_centres(x + likelihood.levels // 2 - 1.0, likelihood.levels)
    return x, [normals(seed + 1 + i, count, *shape) for i, shape in enumerate(model.latents)]


def is_the_vae(model, vae, params, seed):
    """Number for number, where the model has one latent of two numbers and the VAE's nets."""
    x, (eps,) = batch(model, model.likelihood, seed)

    def terms_and_gradient(it, noise):
        terms, pullback = it.loss(x, noise)
        with params.gradient_into(np.zeros_like(params.theta)) as gradient:
            pullback(*(normals(seed + 5 + i, len(x)) for i in range(2)))
        return [*terms, gradient]

    nll, (log_ratio,), _ = model.look(x, [eps])
    want_nll, want_ratio = vae.weigh(x, eps[None])
    pairs = [
        *zip(terms_and_gradient(model, [eps]), terms_and_gradient(vae, eps[None]), strict=True),
        (nll, want_nll[0]),
        (log_ratio, want_ratio[0]),
        (model.log_weights(x, [eps]), vae.log_weights(x, eps[None])[0]),
        (model.sample([eps]), vae.sample(eps)),
        (model.sample([0.7 * eps]), vae.sample(eps, 0.7)),
        (model.reconstruct(x, [0.0 * eps]), vae.reconstruct(x)),
    ]
    for got, want in pairs:
        oracle.assert_close(got, want, 1e-14, "value")


def gradients_are_right(model, likelihood, seed, stream=None):
    """Of every parameter, for cotangents that differ from term to term and example to example."""
    params = bound(model, seed)
    x, eps = batch(model, likelihood, seed)

    def loss(x, *eps):
        return model.loss(x, eps, stream)

    oracle.check_gradient(params, loss, x, *eps)
    oracle.check_accumulation(params, loss, x, *eps)
    if stream is not None:
        assert np.any(loss(x, *eps)[0][0] != model.loss(x, eps)[0][0])


def every_spy_has_its_own_noise(model, spies):
    """Each net that draws is given a stream that no other has, at the row of the batch."""
    x, eps = batch(model, lk.Bernoulli(), 0)
    FlatParameters(model, Stream(0, NUMPY))
    model.loss(x, eps, Stream(0, NUMPY).from_row(64))
    paths, rows = [path for spy in spies for path in spy.paths], [spy.rows for spy in spies]
    assert len(set(paths)) == len(paths) == len(spies)
    assert rows == [[64]] * len(spies)


def shards_drop_out_alike(model):
    """The loss of two parts of a batch, with the rows of its stream, is that of the whole."""
    bound(model)
    (x, eps), stream = batch(model, lk.Bernoulli(), 0, count=100), Stream(3, NUMPY)
    whole, _ = model.loss(x, eps, stream)
    shards = [
        model.loss(x[s], [e[s] for e in eps], stream.from_row(s.start))[0]
        for s in (slice(0, 70), slice(70, 100))
    ]
    for got, *parts in zip(whole, *shards, strict=True):
        np.testing.assert_allclose(got, np.concatenate(parts), rtol=1e-11)


def noise_must_fit(model, likelihood):
    """What takes noise refuses another number of arrays and other shapes; keep names latents."""
    bound(model)
    x, eps = batch(model, likelihood, 0)
    doors = [lambda e: model.loss(x, e), lambda e: model.look(x, e), model.sample]
    doors += [lambda e: model.log_weights(x, e), lambda e: model.reconstruct(x, e, 0)]
    for door in doors:
        for wrong in ([], eps[:-1], [*eps, eps[-1]], [*eps[:-1], eps[-1][:, :1]]):
            with pytest.raises(
                ValueError, match=r"one array for each level, of shapes \[\([03], 2\)"
            ):
                door(wrong)
    with pytest.raises(ValueError, match="one array for each level"):
        model.reconstruct(x[:1], eps, 0)
    for keep in (-1, len(eps) + 1):
        with pytest.raises(ValueError, match=f"of {len(eps)} latents 0 to {len(eps)} can be kept"):
            model.reconstruct(x, eps, keep)


def backends_agree(build, born):
    """Loss, gradient and everything else that a model gives, here and on NumPy."""
    found = []
    for made in (born, NUMPY):
        model = build(partial(dense, dropout=0.3))
        params, stream = bound(model, born=made), Stream(1, made)
        x, eps = batch(model, model.likelihood, 0)
        x, eps = made.asarray(x), [made.asarray(e) for e in eps]
        terms, pullback = model.loss(x, eps, stream)
        pullback(*terms)
        nll, log_ratios, kls = model.look(x, eps)
        found.append([*terms, params.grad, nll, *log_ratios, model.log_weights(x, eps)])
        found[-1] += [model.sample(eps), *(model.reconstruct(x, eps, k) for k in range(3))]
        found[-1] += kls
        if isinstance(model, LadderHvae):
            found[-1] += model.look(x, eps, replaced=1)[1]
    for got, want in zip(*found, strict=True):
        oracle.assert_close(host(got), want, 50 * tolerance(born), "value")
        assert got.dtype == born.zeros((1,)).dtype
