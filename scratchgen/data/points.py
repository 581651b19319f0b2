"""A part of a data set of points, as draws from a known density give it."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Points:
    """N points of R^D, in the units of the density they were drawn from.

    Attributes:
        x: (N, D) float64.
    """

    x: np.ndarray
    labels = None
    levels = None  # their coordinates are not quantised

    @property
    def shape(self) -> tuple[int, ...]:
        """(D,), of one example."""
        return self.x.shape[1:]

    def take(self, rows) -> "Points":
        """The points of a slice or of an array of indices."""
        return Points(self.x[rows])

    def __len__(self) -> int:
        return len(self.x)
