"""DDPM and VDM with the perfect denoiser of a mixture: every term by quadrature, nothing drawn."""

from functools import cache, partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.core.arrays import to_host
from scratchgen.maths.densities import Mixture
from scratchgen.maths.gamma import LearnedGamma, LinearGamma
from scratchgen.maths.likelihoods import Normal
from scratchgen.maths.parameterisations import Epsilon
from scratchgen.maths.reverse_variance import OptimalVariance, PosteriorVariance, StepVariance
from scratchgen.maths.schedules import Schedule
from scratchgen.models.ddpm import Ddpm
from scratchgen.models.vdm import NormalDecoder, Vdm
from scratchgen.testing.diffusion_worlds import MixtureDiffusion
from scratchgen.testing.strategies import seeds

from support import NUMPY, bound, normals

LAW = Mixture(NUMPY, [0.3, 0.7], [[-1.0], [0.8]], [[[0.1]], [[0.3]]])
WORLD = MixtureDiffusion(LAW)
SCHEDULE = Schedule(np.linspace(0.05, 0.5, 8))
FIRST = float(SCHEDULE.posterior_variance[2])
ENDS = -5.0, 5.0


class Perfect:
    """E[ε | x_t] of the mixture; every row of a batch may have a level of its own."""

    def __init__(self, level_of):
        self.level_of = level_of

    def __call__(self, x_t, time, stream=None):
        levels = self.level_of(to_host(time))
        found = np.empty_like(x_t)
        for level in np.unique(levels):
            rows = levels == level
            found[rows] = WORLD.epsilon(x_t[rows], float(level))
        return found, lambda d: (d, 0.0 * time)


@cache
def pairs(nodes: int = 48):
    """(x_0, ε) and weights: Gauss–Hermite in ε and within every component."""
    at, weight = np.polynomial.hermite_e.hermegauss(nodes)
    weight = weight / weight.sum()
    x = [m + v**0.5 * at for m, v in zip(LAW.means[:, 0], LAW.covariances[:, 0, 0], strict=True)]
    shares = np.concatenate([w * weight for w in LAW.weights])
    x0, eps = np.meshgrid(np.concatenate(x), at, indexing="ij")
    return x0.reshape(-1, 1), eps.reshape(-1, 1), np.outer(shares, weight).ravel()


def ddpm(variance) -> Ddpm:
    net = Perfect(lambda t: SCHEDULE.log_alpha_bar[t.astype(int)])
    return Ddpm(net, SCHEDULE, Epsilon(), variance, Normal())


def by_error() -> OptimalVariance:
    levels = SCHEDULE.log_alpha_bar
    return OptimalVariance(levels, np.append([0.0], WORLD.clean_error(levels[1:])[:, 0]))


@pytest.mark.equation("DDPM-8")
@pytest.mark.equation("DDPM-9")
@pytest.mark.equation("DDPM-17")
@pytest.mark.parametrize(
    "make", [StepVariance, partial(PosteriorVariance, FIRST), by_error], ids=["β", "β̃", "best"]
)
def test_every_term_of_the_bound_is_the_world_s(make):
    variance = make()
    model, (x, eps, weight) = ddpm(variance), pairs()
    levels = SCHEDULE.log_alpha_bar
    sigma2 = np.exp(variance.logvar(None, np.zeros((8, 1)), levels[1:], levels[:-1])[0])
    total = float(weight @ model.prior(x))
    assert total == pytest.approx(float(WORLD.prior_kl(levels[-1])), rel=1e-9)
    for t in range(1, SCHEDULE.steps + 1):
        (simple, term), _ = model.loss(x, np.full(len(x), t), eps)
        if t == 1:
            want = WORLD.reconstruction(sigma2[0], levels[1])
        else:
            want = WORLD.transition_kl(sigma2[t - 1], levels[t], levels[t - 1])
        assert float(weight @ term) == pytest.approx(float(want), rel=1e-6)
        odds = np.exp(levels[t]) / -np.expm1(levels[t])
        error = odds * float(WORLD.clean_error(levels[t])[0])
        assert float(weight @ simple) == pytest.approx(error, rel=1e-6)
        total += float(weight @ term)
    assert total == pytest.approx(WORLD.bound(levels, sigma2), rel=1e-6)
    assert total >= WORLD.entropy(0.0), "no code is shorter than the entropy"


def test_more_steps_come_closer_to_the_entropy():
    """With the best variance of each step, from above, as the true reverse steps turn normal."""
    gaps = []
    for steps in (4, 16, 64):
        schedule = Schedule.cosine(steps)
        levels = schedule.log_alpha_bar
        error = np.append([0.0], WORLD.clean_error(levels[1:])[:, 0])
        variance = OptimalVariance(levels, error)
        sigma2 = np.exp(variance.logvar(None, np.zeros((steps, 1)), levels[1:], levels[:-1])[0])
        gaps.append(WORLD.bound(levels, sigma2) - WORLD.entropy(0.0))
    assert gaps[0] > 2.0 * gaps[1] > 4.0 * gaps[2] > 0.0


@cache
def times():
    """Gauss–Legendre on 12 equal parts of [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(6)
    return ((np.arange(12)[:, None] + 0.5 * (x + 1.0)) / 12).ravel(), np.tile(w / 24, 12)


def continuous(gamma) -> float:
    """½ ∫ γ' E‖ε - ε̂‖² dt by quadrature in t, x_0 and ε."""

    def level_of(time):
        value = ENDS[0] + (ENDS[1] - ENDS[0]) * time
        return np.round(-np.logaddexp(0.0, value), 13)  # rows of one time have one level

    model = Vdm(Perfect(level_of), gamma, Epsilon(), NormalDecoder())
    (x, eps, weight), total = pairs(), 0.0
    for t, share in zip(*times(), strict=True):
        (_, diffusion, _), _ = model.loss(x, np.full(len(x), t), eps, eps)
        total += share * float(weight @ diffusion)
    return total


@pytest.mark.equation("VDM-9")
def test_the_continuous_loss_is_information_whatever_the_schedule_s_shape():
    """I(x; z₀) - I(x; z₁), for a straight γ and for one with an interior of its own."""
    ends = [float(-np.logaddexp(0.0, end)) for end in ENDS]
    want = WORLD.information(ends[0]) - WORLD.information(ends[1])
    assert continuous(LinearGamma(*ENDS)) == pytest.approx(want, rel=1e-6)
    gamma = LearnedGamma(*ENDS, units=4)
    params = bound(gamma)
    params.theta[2:] = params.theta[2:] + 0.5 * normals(1, len(params.theta) - 2)
    params.theta[:2] = ENDS[0], np.log(ENDS[1] - ENDS[0])
    params.changed()
    assert continuous(gamma) == pytest.approx(want, rel=1e-5)


@pytest.mark.equation("DDPM-12")
@given(st.integers(2, SCHEDULE.steps), seeds())
def test_a_net_that_is_off_pays_the_weighted_square_of_what_it_is_off_by(t, seed):
    """E[L_{t-1}] rises by λ_t E‖E[ε | x_t] - ε̂‖² over that of the perfect net."""
    model, (x, eps, weight) = ddpm(StepVariance()), pairs()
    perfect, shift = model.net, 0.3 * normals(seed, 1)[0]
    steps = np.full(len(x), t)
    best = float(weight @ model.loss(x, steps, eps)[0][1])
    model.net = lambda z, time, stream=None: (perfect(z, time)[0] + shift, None)
    worse = float(weight @ model.loss(x, steps, eps)[0][1])
    levels = SCHEDULE.log_alpha_bar
    beta = -np.expm1(levels[t] - levels[t - 1])
    size = beta / (2.0 * (1.0 - beta) * -np.expm1(levels[t]))  # λ_t with σ² = β
    assert worse - best == pytest.approx(size * shift**2, rel=1e-4, abs=1e-9)
