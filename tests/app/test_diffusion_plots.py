"""app/diffusion_plots.py: what is in the files."""

import numpy as np
import pytest
from PIL import Image

from scratchgen.app import diffusion_plots


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def where(image, colour, within=8):
    """The mean height (0 below, 1 above) and the mean place from left to right of a colour."""
    down, right = np.nonzero(np.abs(image - np.asarray(colour)).max(axis=2) <= within)
    assert len(down) > 0, f"nothing is drawn in {colour}"
    return 1.0 - down.mean() / image.shape[0], right.mean() / image.shape[1]


BLUE, BROWN = (31, 78, 121), (197, 90, 17)  # the first colours of curves
TEAL, YELLOW = (33, 145, 140), (253, 231, 37)  # the middle and the end of a heat map's scale


def test_heat_maps_share_one_scale_and_rise_upwards(tmp_path):
    t, x = np.arange(5.0), np.linspace(-1.0, 1.0, 10)
    high, half = np.zeros((10, 5)), np.zeros((10, 5))
    high[:3, :2] = 2.0  # small x, early
    half[-3:, -2:] = 1.0  # large x, late
    panels = {"first": high, "second": half}
    diffusion_plots.heat_maps(tmp_path / "heat.png", t, x, panels, ("t", "x", "density"), "title")
    image = picture(tmp_path / "heat.png")[:, : int(0.85 * 9.3 * 120)]  # without the bar of colours
    height, place = where(image, YELLOW)
    assert height < 0.4
    assert place < 0.3
    height, place = where(image, TEAL)
    assert height > 0.6
    assert place > 0.7


def field_picture(path, fields, density):
    line = np.linspace(-2.0, 2.0, 40)
    points = np.stack(np.meshgrid(line, line), axis=-1)
    diffusion_plots.score_fields(
        path, points, {k: [v, v] for k, v in fields.items()}, [density] * 2, "ab", ""
    )
    return picture(path)


def test_arrows_lie_where_their_points_are(tmp_path):
    still = np.zeros((40, 40, 2))
    moved = still.copy()
    moved[:15, 25:] = (3.0, 3.0)  # low and to the right in the plane
    image = field_picture(tmp_path / "a.png", {"exact": still, "learned": moved}, np.ones((40, 40)))
    half = image[image.shape[0] // 2 :, : image.shape[1] // 2]  # second row, first column
    height, place = where(half, BLUE)
    assert height < 0.4
    assert place > 0.6
    image = field_picture(tmp_path / "b.png", {"exact": moved, "learned": still}, np.ones((40, 40)))
    height, _ = where(image, BLUE)
    assert height > 0.5, "the first row is above"


def test_the_density_lies_where_its_points_are(tmp_path):
    density = np.zeros((40, 40))
    density[30:, :10] = 1.0  # high and to the left in the plane
    image = field_picture(tmp_path / "a.png", {"exact": np.zeros((40, 40, 2))}, density)
    half = image[:, : image.shape[1] // 2]
    down, right = np.nonzero(half[..., 0] - half[..., 2] > 150)  # orange
    assert len(down) > 0
    assert down.mean() / half.shape[0] < 0.4
    assert right.mean() / half.shape[1] < 0.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrows_keep_their_direction_and_the_root_of_their_length(dtype):
    arrows = np.asarray([[[3.0, -4.0], [0.0, 0.0]], [[0.0, 1e-10], [-1e10, 0.0]]], dtype=dtype)
    found = diffusion_plots._rooted(arrows)
    assert found.dtype == dtype
    exact = [[[0.6 * 5**0.5, -0.8 * 5**0.5], [0.0, 0.0]], [[0.0, 1e-5], [-1e5, 0.0]]]
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_a_label_has_one_colour_in_every_panel(tmp_path):
    t = np.linspace(0.0, 1.0, 5)
    panels = {
        "γ": {"fixed": 0.0 * t, "learned": 1.0 + 0.0 * t},
        "nats": {"fixed": 5.0 + 0.0 * t, "learned": 1.0 + 0.0 * t},
    }
    diffusion_plots.panels_over_time(tmp_path / "panels.png", t, panels, "t", "title")
    image = picture(tmp_path / "panels.png")
    middle = image.shape[1] // 2
    fixed, learned = (
        [where(h, c)[0] for h in (image[:, :middle], image[:, middle:])] for c in (BLUE, BROWN)
    )
    assert fixed[0] < learned[0]
    assert fixed[1] > learned[1]
