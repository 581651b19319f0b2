"""Small latents by quadrature: evidence, posterior means and reconstruction of any such model.

Host numbers, float64, nats.
"""

from collections.abc import Callable
from functools import cached_property
from math import log, pi

import numpy as np

TOLERANCE = 1e-7  # two resolutions of an integral may differ by this share of its absolute values
RADIUS = 64.0  # of the box of latents
MOST_NODES = 1 << 23


class LatentQuadrature:
    """Any model with a standard normal latent of one or two dimensions, by quadrature.

    The box |z_i| ≤ 64 is halved wherever log p(z, x) still varies much, so a posterior may be
    narrow and have several modes, if log p(x | z) is finite and smooth there and the mass lies
    within |z_i| ≤ 60. A ridge of two dimensions, hundreds of times as long as wide, takes too many
    boxes. Every result is formed twice, from different nodes.

    Args:
        log_likelihood: z (M, K) -> log p(x | z) (M,), for one x.
        dims: K, 1 or 2.
        nodes: per axis of a box, at the coarser resolution.

    Raises:
        ValueError: dims is neither 1 nor 2; and from the results: the mass is elsewhere, the boxes
            do not settle, or the two resolutions differ by more than TOLERANCE, in nats or as a
            share of what is averaged.
    """

    def __init__(self, log_likelihood: Callable, dims: int = 1, nodes: int = 8):
        if dims not in (1, 2):
            raise ValueError(f"dims must be 1 or 2, got {dims}; take fewer latents, or simulate")
        self.log_likelihood, self.dims, self.nodes = log_likelihood, dims, nodes

    @property
    def log_evidence(self) -> float:
        """log p(x) = log E_{z ~ N(0, I)} p(x | z).

        Source: ELBO-1
        """
        rough, fine = (_log_sum(log_mass) for _, log_mass in self._rules)
        agree("log p(x) at two resolutions", rough, fine)
        return float(fine)

    def posterior_mean(self, f: Callable):
        """E[f(z) | x]: f takes (M, K) and returns (M, ...).

        Source: ELBO-1
        """
        found = []
        for z, log_mass in self._rules:
            shares, values = np.exp(log_mass - _log_sum(log_mass)), f(z)
            found.append([np.tensordot(shares, v, axes=1) for v in (values, np.abs(values))])
        (rough, _), (fine, size) = found
        agree("E[f(z) | x] at two resolutions", rough, fine, size)
        return fine

    def reconstruction(self, mean, logvar) -> float:
        """E_q[-log p(x | z)] under q = N(mean, e^logvar), each (K,), by Gauss–Hermite.

        Source: ELBO-5
        """
        found = []
        for nodes in (96, 128):
            at, weights = _tensor(*np.polynomial.hermite_e.hermegauss(nodes), self.dims)
            values = self.log_likelihood(np.exp(0.5 * logvar) * at + mean)
            shares = weights / weights.sum()
            found.append((-shares @ values, shares @ np.abs(values)))
        (rough, _), (fine, size) = found
        agree("E_q[-log p(x | z)] at two resolutions", rough, fine, size)
        return float(fine)

    @cached_property
    def _rules(self):
        """Nodes z (M, K) and the log of their shares of p(x) (M,), at two resolutions."""
        rules = [self._settled(self.nodes, 2), self._settled(self.nodes + 2, 3)]
        for z, log_mass in rules:
            outside = np.abs(z).max(axis=1) > 60.0
            beyond = np.exp(log_mass[outside] - _log_sum(log_mass)).sum()
            if beyond > TOLERANCE:
                raise ValueError(
                    f"the posterior must lie within |z_i| ≤ 60, but {beyond:.2g} of it is beyond; "
                    "take an x that the decoder reaches from there"
                )
        return rules

    def _settled(self, nodes: int, panels: int):
        """Halve the boxes of [-64, 64]^K until their masses stand still.

        A box is left out when it cannot matter even if log p(z, x) rises in it, above its largest
        value at a node, by as much as it varies among the nodes. It is done when halving it changes
        nothing and the log-density varies little in it.
        """
        at, weights = _tensor(*np.polynomial.legendre.leggauss(nodes), self.dims)
        half = RADIUS / panels
        edges = (2.0 * np.arange(panels) + 1.0) * half - RADIUS
        centres, _ = _tensor(edges, edges, self.dims)
        corners, _ = _tensor(np.asarray([-1.0, 1.0]), np.ones(2), self.dims)

        def masses(centres, half):
            z = centres[:, None, :] + half * at
            heights = self._log_joint(z.reshape(-1, self.dims)).reshape(z.shape[:2])
            return z, heights, heights + np.log(weights) + self.dims * log(half)

        _, _, coarse = masses(centres, half)
        kept_z: list[np.ndarray] = []
        kept_mass: list[np.ndarray] = []
        spent = 0
        while len(centres):
            half *= 0.5
            centres = (centres[:, None, :] + half * corners).reshape(-1, self.dims)
            z, heights, fine = masses(centres, half)
            spent += heights.size
            if spent > MOST_NODES:
                raise ValueError(
                    f"the boxes must settle within {MOST_NODES} nodes, but {len(centres)} of width "
                    f"{2.0 * half:.2g} have not; take a smoother or wider log p(x | z)"
                )
            family = (len(coarse), -1)
            total = _log_sum(np.concatenate([*kept_mass, fine.ravel()]))
            before = np.exp(np.minimum(coarse - total, 99.0)).sum(axis=1)
            after = np.exp(fine - total).reshape(family).sum(axis=1)
            top = heights.reshape(family).max(axis=1)
            varies = top - heights.reshape(family).min(axis=1)
            ceiling = top + varies + self.dims * log(4.0 * half) - total
            done = (np.abs(after - before) <= 1e-10 + 1e-7 * after) & (varies <= 100.0)
            kept, split = (np.repeat(a, len(corners)) for a in (done, ~done & (ceiling > -30.0)))
            kept_z.append(z[kept].reshape(-1, self.dims))
            kept_mass.append(fine[kept].ravel())
            centres, coarse = centres[split], fine[split]
        return np.concatenate(kept_z), np.concatenate(kept_mass)

    def _log_joint(self, z):
        square = (z * z).sum(axis=1) + self.dims * log(2.0 * pi)
        values = self.log_likelihood(z) - 0.5 * square
        if not np.all(np.isfinite(values)):
            raise ValueError("log p(x | z) must be finite on |z_i| ≤ 64, but is not; clip it there")
        return values


def _tensor(x, w, dims: int):
    """A rule on the line -> the product rule: x, w (M,) -> (Mᴷ, K), (Mᴷ,)."""
    axes, weights = (np.meshgrid(*[a] * dims, indexing="ij") for a in (x, w))
    return np.stack([a.ravel() for a in axes], axis=-1), np.prod(weights, axis=0).ravel()


def _log_sum(a) -> float:
    return a.max() + np.log(np.exp(a - a.max()).sum())


def agree(what: str, one, other, size=1.0):
    """Raise unless two numbers that should be equal differ by at most TOLERANCE·size.

    Raises:
        ValueError: they differ by more.
    """
    if not np.all(np.abs(other - one) <= TOLERANCE * size):
        raise ValueError(
            f"{what} must agree within {TOLERANCE:g} of the size, got {one} and {other}; take a "
            "smoother integrand, or one whose scales lie closer together"
        )
