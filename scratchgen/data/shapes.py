"""Drawn images whose every factor is known: one square, disc, triangle or cross on black.

Each scene is drawn once, at 64×64 pixels, and smaller images are the means of its pixels. So image
i shows the same scene at every size, in grey and in colour.
"""

from functools import cache

import numpy as np

from scratchgen.core.arrays import backend
from scratchgen.core.streams import Stream
from scratchgen.data.images import Images, part_rows

KINDS = ("square", "disc", "triangle", "cross")
SIZES = (8, 16, 32, 64)
LEVELS = 256
FINE = 64  # pixels a side of the drawing that the images are means of
TRAINING, HELD_OUT, TEST = 2000, 200, 500
AT_ONCE = 250  # scenes drawn together; their coordinates are then some 8 MB an array
RANGES = {
    "x": (0.35, 0.65),
    "y": (0.35, 0.65),
    "size": (0.2, 0.35),
    "angle": (0.0, 0.5 * np.pi),
    "value": (0.3, 1.0),
    "hue": (0.0, 1.0),
}


def load_shapes(part: str, size: int, colour: bool = False) -> Images:
    """One part of the shapes: 2,000 for training, the last 200 of them for validation; 500 to test.

    The label is the place of the kind in KINDS. The factors are independent and uniform:

    * kind: 0..3;
    * x, y: the centre, from the left and from the top, where the image is [0, 1]²;
    * size: the radius of the disc, or of the circle that the corners lie on;
    * angle: clockwise, below a quarter turn; a disc shows none;
    * value: the shape's brightness, of 1;
    * hue: from red over green and blue back to red; grey images show none.

    Args:
        part: "train", "fit", "validation" or "test", as for `part_rows`.
        size: pixels a side: 8, 16, 32 or 64.
        colour: three channels, red, green and blue, instead of one.

    Returns:
        Images, with codes (N, size, size, 1 or 3) of 256 levels. The arrays are shared between
        calls, and cannot be written to.

    Raises:
        ValueError: an unknown part or size.
    """
    rows = part_rows(part, TRAINING, HELD_OUT)
    if size not in SIZES:
        raise ValueError(f"shapes have {', '.join(map(str, SIZES))} pixels a side, got {size}")
    return _all_shapes(size, bool(colour)).take(rows)


def draw_factors(n: int, seed: int) -> dict[str, np.ndarray]:
    """The factors of n scenes, name -> (n,) float64; scene i does not depend on n."""
    stream = Stream(seed, backend("numpy", "float64")).at("shapes")
    uniform = {name: stream.at(name).uniform((n,)) for name in ("kind", *RANGES)}
    scaled = {name: low + (high - low) * uniform[name] for name, (low, high) in RANGES.items()}
    return {"kind": np.floor(len(KINDS) * uniform["kind"]), **scaled}


def coverage(factors: dict[str, np.ndarray], pixels: int = FINE) -> np.ndarray:
    """Which share of each pixel lies in the shape:  (N, pixels, pixels), of n scenes.

    Shapes are made of half-planes. One whose edge lies d pixel widths from a pixel's centre covers
    clip(½ - d, 0, 1) of the pixel: exact for level and upright edges, right on average for others.
    The shares of intersecting half-planes are multiplied.
    """
    centre = (np.arange(pixels) + 0.5) / pixels
    x, y, size, angle = (factors[name][:, None, None] for name in ("x", "y", "size", "angle"))
    right, down = centre[None, None, :] - x, centre[None, :, None] - y
    cos, sin = np.cos(angle), np.sin(angle)
    u, v = cos * right + sin * down, cos * down - sin * right  # in the shape's own axes

    def inside(distance):
        return np.clip(0.5 - pixels * distance, 0.0, 1.0)

    def rectangle(chosen, half_u, half_v):
        return inside(abs(u[chosen]) - half_u) * inside(abs(v[chosen]) - half_v)

    def square(chosen):
        half = size[chosen] / np.sqrt(2.0)
        return rectangle(chosen, half, half)

    def disc(chosen):
        return inside(np.hypot(u[chosen], v[chosen]) - size[chosen])

    def triangle(chosen):
        half, low, slanted = 0.5 * size[chosen], 0.5 * v[chosen], 0.75**0.5 * u[chosen]
        sides = inside(slanted - low - half) * inside(-slanted - low - half)
        return inside(2.0 * low - half) * sides

    def cross(chosen):  # arms three times as long as they are wide
        long, short = size[chosen] * np.sqrt(0.9), size[chosen] * np.sqrt(0.1)
        bars = rectangle(chosen, long, short) + rectangle(chosen, short, long)
        return bars - rectangle(chosen, short, short)

    covered = np.empty((len(angle), pixels, pixels))
    for kind, shape in enumerate((square, disc, triangle, cross)):
        chosen = np.flatnonzero(factors["kind"] == kind)
        covered[chosen] = shape(chosen)
    return covered


def paint(factors: dict[str, np.ndarray], size: int, colour: bool) -> np.ndarray:
    """The codes (N, size, size, 1 or 3) uint8 of scenes:  round(255 · value · coverage · tint)."""
    step = FINE // size
    covered = coverage(factors).reshape(-1, size, step, size, step).mean(axis=(2, 4))
    value = factors["value"][:, None]
    tint = _tint(factors["hue"]) if colour else np.ones((len(value), 1))
    light = covered[..., None] * (value * tint)[:, None, None, :]
    return np.rint((LEVELS - 1) * light).astype(np.uint8)


def _tint(hue: np.ndarray) -> np.ndarray:
    """(N,) -> (N, 3): the fully saturated colour of that hue; its largest channel is 1."""
    third = np.arange(3) / 3.0
    away = abs((hue[:, None] - third + 0.5) % 1.0 - 0.5)  # from red, green and blue, on the circle
    return np.clip(2.0 - 6.0 * away, 0.0, 1.0)


@cache
def _all_shapes(size: int, colour: bool) -> Images:
    factors = draw_factors(TRAINING + TEST, seed=0)
    if not colour:
        del factors["hue"]
    codes = []
    for start in range(0, TRAINING + TEST, AT_ONCE):
        some = {name: each[start : start + AT_ONCE] for name, each in factors.items()}
        codes.append(paint(some, size, colour))
    made = Images(np.concatenate(codes), factors["kind"].astype(np.uint8), LEVELS, factors)
    for array in (made.codes, made.labels, *factors.values()):
        array.flags.writeable = False
    return made
