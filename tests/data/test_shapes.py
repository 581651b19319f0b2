"""data/shapes.py: what is drawn is what the factors say."""

from colorsys import hsv_to_rgb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchgen.data import shapes
from scratchgen.data.shapes import FINE, KINDS, RANGES, SIZES, coverage, draw_factors, load_shapes
from scratchgen.testing.strategies import seeds

PIXEL = 1.0 / FINE
CENTRES = (np.arange(FINE) + 0.5) * PIXEL
AREAS = {"square": 2.0, "disc": np.pi, "triangle": 0.75 * 3.0**0.5, "cross": 2.0}  # at radius 1
SYMMETRIES = {"square": 4, "disc": 7, "triangle": 3, "cross": 4}
NAMES = ("train", "fit", "validation", "test")


def scenes(seed, n=24, **fixed):
    """n scenes, n/4 of each kind; some factors may be fixed."""
    factors = draw_factors(n, seed)
    factors["kind"] = np.arange(n) % len(KINDS) * 1.0
    return factors | {name: np.full(n, value) for name, value in fixed.items()}


def pooled(images, size):
    step = images.shape[1] // size
    return images.reshape(len(images), size, step, size, step, -1).mean(axis=(2, 4))


@given(seeds())
def test_the_area_is_that_of_the_kind_and_size_at_every_place_and_angle(seed):
    factors = scenes(seed)
    found = coverage(factors).sum(axis=(1, 2)) * PIXEL**2
    unit = np.asarray(list(AREAS.values()))[factors["kind"].astype(int)]
    np.testing.assert_allclose(found, unit * factors["size"] ** 2, rtol=1e-2)


@given(seeds())
def test_the_centre_of_mass_is_the_place(seed):
    factors = scenes(seed)
    covered = coverage(factors)
    mass = covered.sum(axis=(1, 2))
    across, down = (covered.sum(axis=axis) @ CENTRES / mass for axis in (1, 2))
    np.testing.assert_allclose(across, factors["x"], atol=0.1 * PIXEL)
    np.testing.assert_allclose(down, factors["y"], atol=0.1 * PIXEL)


@given(seeds())
def test_shapes_fill_their_circle_as_far_as_its_rim(seed):
    factors = scenes(seed)
    x, y, size = (factors[name][:, None, None] for name in ("x", "y", "size"))
    distance = np.hypot(CENTRES[None, None, :] - x, CENTRES[None, :, None] - y)
    covered = coverage(factors)
    assert np.all(covered[distance > size + PIXEL] == 0.0)
    reach = np.where(covered > 0.0, distance, 0.0).max(axis=(1, 2))
    assert np.all(reach > factors["size"] - PIXEL)


@given(seeds())
def test_a_symmetric_turn_changes_nothing(seed):
    factors = scenes(seed)
    turns = 2.0 * np.pi / np.asarray(list(SYMMETRIES.values()))[factors["kind"].astype(int)]
    turned = factors | {"angle": factors["angle"] + turns}
    np.testing.assert_allclose(coverage(turned), coverage(factors), atol=1e-11)


@given(seeds())
def test_a_quarter_turn_more_is_the_picture_turned_clockwise(seed):
    factors = scenes(seed, x=0.5, y=0.5)
    turned = factors | {"angle": factors["angle"] + 0.5 * np.pi}
    want = np.rot90(coverage(factors), k=-1, axes=(1, 2))
    np.testing.assert_allclose(coverage(turned), want, atol=1e-11)


@given(st.integers(-6, 6), st.floats(0.0, 1.0))
def test_an_upright_square_covers_exactly_its_share_of_every_pixel(shift, share):
    """Half a side is 16 pixels; the square is moved by whole pixels and a part of one."""
    place = 0.5 + (shift + share) * PIXEL
    covered = coverage(scenes(0, 4, x=place, y=0.5, size=0.25 * 2.0**0.5, angle=0.0, kind=0.0))
    want = np.zeros((FINE, FINE))
    want[16:48, 16 + shift : 48 + shift] += 1.0 - share
    want[16:48, 17 + shift : 49 + shift] += share
    np.testing.assert_allclose(covered, np.broadcast_to(want, covered.shape), atol=1e-11)


def test_a_triangle_points_up():
    (covered,) = coverage({name: each[2:3] for name, each in scenes(0, 4, angle=0.0).items()})
    widths = covered.sum(axis=1)
    widths = widths[widths > 0.0]
    assert np.all(np.diff(widths[1:-1]) > 0.0), "every row is wider than the one above"


@given(seeds(), st.sampled_from(SIZES), st.booleans())
def test_every_size_shows_the_same_scene(seed, size, colour):
    """Means of rounded codes and rounded means differ by half a level each."""
    factors = scenes(seed, 4)
    small, large = (shapes.paint(factors, s, colour) for s in (size, FINE))
    assert small.shape == (4, size, size, 3 if colour else 1)
    assert np.abs(pooled(large, size) - small).max() <= 1.0


@given(seeds(), st.sampled_from(SIZES))
def test_the_largest_channel_is_the_grey_image(seed, size):
    factors = scenes(seed, 4)
    grey, colour = (shapes.paint(factors, size, c) for c in (False, True))
    np.testing.assert_array_equal(colour.max(axis=-1), grey[..., 0])


@given(seeds())
def test_the_inside_has_the_colour_of_hue_and_value(seed):
    factors = scenes(seed, 8)
    codes = shapes.paint(factors, FINE, colour=True)
    rows, columns = ((factors[name] * FINE).astype(int) for name in ("y", "x"))
    found = codes[np.arange(8), rows, columns]
    hsv = zip(factors["hue"], np.ones(8), factors["value"], strict=True)
    np.testing.assert_allclose(
        found, [[255 * c for c in hsv_to_rgb(*each)] for each in hsv], atol=0.501
    )


@given(seeds(), st.integers(1, 70))
def test_a_scene_depends_on_the_seed_and_its_index(seed, n):
    few, many = draw_factors(n, seed), draw_factors(80, seed)
    for name in many:
        np.testing.assert_array_equal(few[name], many[name][:n])


def test_factors_cover_their_ranges_independently():
    factors = load_shapes("train", 8, colour=True).factors
    assert list(factors) == ["kind", *RANGES]
    for name, (low, high) in RANGES.items():
        scaled = (factors[name] - low) / (high - low)
        assert 0.0 <= scaled.min() < 0.01 < 0.99 < scaled.max() < 1.0
        deciles = np.histogram(scaled, bins=10, range=(0.0, 1.0))[0]
        assert np.abs(deciles - 200).max() < 5.0 * 180**0.5
    assert np.abs(np.bincount(factors["kind"].astype(int)) - 500).max() < 5.0 * 375**0.5
    correlations = np.corrcoef(list(factors.values())) - np.eye(len(factors))
    assert np.abs(correlations).max() < 5.0 / 2000**0.5


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_a_part_is_its_factors_painted(size, colour):
    part = load_shapes("validation", size, colour)
    assert part.codes.dtype == np.uint8
    assert part.levels == 256
    assert ("hue" in part.factors) == colour
    np.testing.assert_array_equal(part.labels, part.factors["kind"])
    again = shapes.paint({name: each[-5:] for name, each in part.factors.items()}, size, colour)
    np.testing.assert_array_equal(part.codes[-5:], again)
    for array in (part.codes, part.labels, *part.factors.values()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_parts_are_the_fixed_split_and_share_no_scene():
    train, fit, validation, test = (load_shapes(part, 16) for part in NAMES)
    assert [len(p) for p in (train, fit, validation, test)] == [2000, 1800, 200, 500]
    np.testing.assert_array_equal(train.codes, np.concatenate([fit.codes, validation.codes]))
    everything = np.concatenate([train.codes, test.codes]).reshape(2500, -1)
    assert len(np.unique(everything, axis=0)) == 2500
    for size in SIZES:
        other = load_shapes("test", size, colour=True)
        for name, values in test.factors.items():
            np.testing.assert_array_equal(other.factors[name], values)


def test_unknown_parts_and_sizes_are_refused():
    with pytest.raises(ValueError, match="one of train, fit, validation, test, got 'all'"):
        load_shapes("all", 8)
    with pytest.raises(ValueError, match="8, 16, 32, 64 pixels a side, got 9"):
        load_shapes("train", 9)
