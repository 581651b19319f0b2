"""From the value of --data to examples: the digits, drawn shapes, planar densities, files."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from scratchgen.core.arrays import backend
from scratchgen.core.streams import Stream
from scratchgen.data.digits import load_digits, load_digits_1000
from scratchgen.data.files import fingerprint as of_images
from scratchgen.data.files import load_files
from scratchgen.data.images import Images, part_rows
from scratchgen.data.pixels import CROPS
from scratchgen.data.points import Points
from scratchgen.data.shapes import SIZES, load_shapes
from scratchgen.maths import planar
from scratchgen.maths.densities import Density, Mixture

__all__ = [
    "CROPS",
    "DIGITS",
    "KNOWN",
    "NAMES",
    "PLANAR",
    "SET_APART",
    "density",
    "fingerprint",
    "load",
    "require_known",
    "settled",
]

EXACT = backend("numpy", "float64")
TRAINING, HELD_OUT, TEST = 8000, 800, 4000  # points of a planar set
SMALLEST = 8  # pixels a side of digits, and of shapes unless told


def _three_normals() -> Mixture:
    """Three normals of different weight, size and direction."""
    means = [[-1.0, -0.5], [1.0, 0.0], [0.0, 1.2]]
    covariances = [
        [[0.10, 0.05], [0.05, 0.08]],
        [[0.04, 0.00], [0.00, 0.30]],
        [[0.20, -0.08], [-0.08, 0.06]],
    ]
    return Mixture(EXACT, [0.5, 0.3, 0.2], means, covariances)


PLANAR: dict[str, Callable[[], Density]] = {
    "moons": lambda: planar.moons(EXACT),
    "checker": lambda: planar.Checker(EXACT),
    "gmm": _three_normals,
    "rings": lambda: planar.rings(EXACT),
    "spiral": lambda: planar.spiral(EXACT),
    "ring8": lambda: planar.eight_gaussians(EXACT),
    "grid25": lambda: planar.grid(EXACT),
}
DIGITS: dict[str, Callable[[str], Images]] = {
    "digits": load_digits,
    "digits-1000": load_digits_1000,
}
SET_APART = ("digits-1000",)  # whose training part never holds the validation part
NAMES = (*DIGITS, "shapes", *PLANAR)
KNOWN = ", ".join(NAMES)


def settled(name: str) -> str:
    """The value of --data as a run keeps it: a name, or a path that holds in every folder."""
    return name if name in NAMES else str(Path(name).resolve())


def require_known(name: str, size: int, colour: bool) -> None:
    """Refuse data that are neither built in nor there, and sizes that they do not have.

    Raises:
        ValueError: so it is.
    """
    if name in DIGITS and (size not in (0, SMALLEST) or colour):
        side = size or SMALLEST
        asked = f"{side}×{side} pixels{' in colour' if colour else ''}"
        others = f"for {asked} add --data shapes"
        if side not in SIZES:
            others = f"shapes have {', '.join(map(str, SIZES))} pixels a side, none {side}"
        raise ValueError(f"the digits are 8×8 pixels and grey; {others}")
    if name in PLANAR and (size or colour):
        raise ValueError(f"{name} are points in the plane; leave out --size and --colour")
    if name not in NAMES and not Path(name).exists():
        raise ValueError(f"--data must be {KNOWN}, or a path that exists; got {name!r}")


def load(name: str, part: str, size: int, colour: bool, crop: str) -> Images | Points:
    """One part of a data set: "train", "fit", "validation" or "test".

    Args:
        name: the value of --data.
        part: which.
        size, colour, crop: the values of those options, as far as they concern such data.

    Raises:
        ValueError: the data are not there or do not have that size, or the files cannot be used.
        MissingPackage: reading them takes a package that is not installed.
    """
    require_known(name, size, colour)
    if name in DIGITS:
        return DIGITS[name](part)
    if name == "shapes":
        return load_shapes(part, size or SMALLEST, colour)
    if name in PLANAR:
        return Points(_drawn(name)[part_rows(part, TRAINING, HELD_OUT)])
    return load_files(Path(name), part, size or None, colour, crop)


def fingerprint(data: Images | Points) -> str:
    """SHA-256 of a part's contents, in hexadecimal."""
    if isinstance(data, Images):
        return of_images(data)
    return hashlib.sha256(np.ascontiguousarray(data.x).tobytes()).hexdigest()


@cache
def density(name: str) -> Density:
    """The density of a planar set, float64 on the host."""
    return PLANAR[name]()


def modes(name: str) -> tuple[np.ndarray, float] | None:
    """Where the modes of a planar set lie (K, 2), and their standard deviation.

    None unless it is drawn from normals of equal weight that are round and of one size.
    """
    law = density(name)
    if type(law) is not Mixture:  # the normals of a curve are nodes of an integral
        return None
    variance = law.covariances[0, 0, 0]
    alike = np.all(law.weights == law.weights[0])
    round_ = np.all(law.covariances == variance * np.eye(law.dims))
    return (law.means, float(np.sqrt(variance))) if alike and round_ else None


@cache
def _drawn(name: str) -> np.ndarray:
    """All points of a planar set, the same in every run."""
    points = density(name).sample(TRAINING + TEST, Stream(0, EXACT).at(name))
    points.flags.writeable = False
    return points
