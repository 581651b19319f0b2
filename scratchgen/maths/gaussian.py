"""The normal distribution with a full covariance: what linear-Gaussian worlds are made of.

Every marginal, conditional and affine image of a joint normal is normal again, so a model that is
linear and Gaussian throughout has its evidence, its posterior and every divergence in closed form.
Values only: these are the truths that models are compared with, not parts of a model.
"""

from collections.abc import Sequence
from math import nan

from scratchgen.core.arrays import full_like, namespace, require_shape, rows, with_dims
from scratchgen.core.numerics import LOG_2PI


class Gaussian:
    """N(mean, covariance) on R^D.

    Args:
        mean: (D,).
        covariance: (D, D), symmetric and positive definite.

    Raises:
        ValueError: the shapes do not fit, the mean is not finite, or the covariance is not
            symmetric and positive definite.

    Source: [Bishop 2006]
    """

    def __init__(self, mean, covariance):
        if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
            raise ValueError(
                f"need mean (D,) and covariance (D, D), got {mean.shape} and {covariance.shape}"
            )
        require_finite_mean(mean)
        xp = namespace(mean)
        self.mean, self.covariance = xp.asarray(mean, copy=True), xp.asarray(covariance, copy=True)
        self.factor = cholesky(covariance)  # covariance = L Lᵀ

    @property
    def dims(self) -> int:
        """D."""
        return self.mean.size

    @property
    def log_det(self) -> float:
        """log det covariance."""
        xp = namespace(self.factor)
        return 2.0 * float(xp.sum(xp.log(xp.linalg.diagonal(self.factor))))

    def log_prob(self, x):
        """log N(x; m, S) = -½ [(x - m)ᵀ S⁻¹ (x - m) + log det S + D log 2π].

        Args:
            x: (..., D).

        Returns:
            (...), nats.

        Raises:
            ValueError: x is not (..., D).

        Source: VAE-7
        """
        xp, gap = namespace(x), with_dims(x, self.dims) - self.mean
        square = xp.sum(gap * self._solved(gap), axis=-1)
        return -0.5 * (square + self.log_det + self.dims * LOG_2PI)

    def score(self, x):
        """∇ log N(x; m, S) = -S⁻¹ (x - m): x (..., D) -> (..., D).

        Raises:
            ValueError: x is not (..., D).

        Source: SCORE-1
        """
        return -self._solved(with_dims(x, self.dims) - self.mean)

    def kl(self, other: "Gaussian") -> float:
        """KL(self ‖ other) = ½ [tr(S₁⁻¹ S₀) + (m₁-m₀)ᵀ S₁⁻¹ (m₁-m₀) - D + log(det S₁/det S₀)].

        Returns:
            nats, ≥ 0.

        Source: VAE-5
        """
        xp = namespace(self.mean)
        gap = other.mean - self.mean
        trace = float(xp.linalg.trace(xp.linalg.solve(other.covariance, self.covariance)))
        square = float(xp.sum(gap * other._solved(gap)))
        return 0.5 * (trace + square - self.dims + other.log_det - self.log_det)

    def entropy(self) -> float:
        """-E log N(x; m, S) = ½ [D (1 + log 2π) + log det S], nats.

        Source: [Bishop 2006]
        """
        return 0.5 * (self.dims * (1.0 + LOG_2PI) + self.log_det)

    def marginal(self, kept: Sequence[int]) -> "Gaussian":
        """The law of the coordinates `kept`, in that order.

        Raises:
            ValueError: `kept` is empty, repeats a coordinate or names one that is not there.
        """
        self._check(kept)
        return Gaussian(self._take(self.mean, kept), self._block(kept, kept))

    def conditional(self, known: Sequence[int], value) -> "Gaussian":
        """The law of the other coordinates, in order, given that those in `known` are `value`.

            N(m_a + S_ab S_bb⁻¹ (v - m_b),  S_aa - S_ab S_bb⁻¹ S_ba)

        Given nothing it is the law itself.

        Args:
            known: the indices b.
            value: (len(known),), v.

        Raises:
            ValueError: `known` repeats a coordinate, names one that is not there or leaves none, or
                the value has not its shape.

        Source: ELBO-1, [Bishop 2006]
        """
        if len(known) == 0:
            return self
        self._check(known)
        require_shape("value", value, (len(known),))
        rest = [i for i in range(self.dims) if i not in set(known)]
        if not rest:
            raise ValueError(f"a conditional needs a coordinate that is not known, got {known}")
        xp = namespace(self.mean)
        gain = xp.linalg.solve(self._block(known, known), self._block(known, rest)).T
        mean = self._take(self.mean, rest) + gain @ (value - self._take(self.mean, known))
        covariance = self._block(rest, rest) - gain @ self._block(known, rest)
        return Gaussian(mean, 0.5 * (covariance + covariance.T))

    def affine(self, matrix, offset, noise) -> "Gaussian":
        """The law of matrix @ x + offset + e with e ~ N(0, noise): (E, D), (E,), (E, E).

        Raises:
            ValueError: offset or noise has another shape; a variance v is v times the unit matrix.
        """
        e, shapes = matrix.shape[0], [getattr(a, "shape", ()) for a in (offset, noise)]
        if shapes != [(e,), (e, e)]:
            raise ValueError(
                f"a matrix {matrix.shape} needs offset ({e},) and noise ({e}, {e}), got shapes "
                f"{shapes[0]} and {shapes[1]}"
            )
        return Gaussian(matrix @ self.mean + offset, matrix @ self.covariance @ matrix.T + noise)

    def sample(self, eps):
        """m + L eps: eps (..., D) ~ N(0, I) -> (..., D)."""
        return self.mean + eps @ self.factor.T

    def _check(self, chosen: Sequence[int]) -> None:
        if not 0 < len(set(chosen) & set(range(self.dims))) == len(chosen):
            raise ValueError(
                f"need at least one coordinate, each once and in 0..{self.dims - 1}, got {chosen}"
            )

    def _solved(self, x):
        """S⁻¹ x for x (..., D)."""
        xp = namespace(x)
        return xp.reshape(xp.linalg.solve(self.covariance, rows(x).T).T, x.shape)

    def _block(self, down, across):
        return self._take(self._take(self.covariance, down), across, axis=1)

    def _take(self, a, indices, axis=0):
        xp = namespace(a)
        return xp.take(a, xp.asarray(list(indices), device=a.device), axis=axis)


def require_finite_mean(mean) -> None:
    """Refuse a mean, or means, with a number that is infinite or none.

    Raises:
        ValueError: there is one.
    """
    xp = namespace(mean)
    if not bool(xp.all(xp.isfinite(mean))):
        raise ValueError(f"every number of a mean must be finite, got {mean}")


def symmetric(s):
    """Whether matrices are symmetric but for rounding: (..., D, D) -> (...).

    That is, to 1e-5 of their own largest entry.
    """
    xp = namespace(s)
    asymmetry = xp.max(xp.abs(s - xp.matrix_transpose(s)), axis=(-2, -1))
    return asymmetry <= 1e-5 * xp.max(xp.abs(s), axis=(-2, -1))


def cholesky(s):
    """The lower factors L of covariances s = L Lᵀ: (..., D, D) -> (..., D, D).

    Raises:
        ValueError: one of them is not symmetric, or not positive definite.
    """
    xp = namespace(s)
    try:
        factor = xp.linalg.cholesky(s)
    except ValueError:  # NumPy's LinAlgError is one; CuPy gives NaN
        factor = full_like(s, nan)
    if not (bool(xp.all(symmetric(s))) and bool(xp.all(xp.isfinite(factor)))):
        raise ValueError(f"covariances must be symmetric and positive definite, got {s}")
    return factor
