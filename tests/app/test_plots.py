"""app/plots.py and app/canvas.py: what is in the files."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from scratchgen.app import canvas, plots
from scratchgen.data.points import Points


def pixels(path):
    with Image.open(path) as image:
        colours, counts = np.unique(
            np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0, return_counts=True
        )
    return {tuple(colour): n for colour, n in zip(colours.tolist(), counts.tolist(), strict=True)}


def tiles(*colours):
    """One 4×4 image of each colour."""
    return np.ones((len(colours), 4, 4, 1)) * np.asarray(colours, dtype=float)[:, None, None, :]


def test_colours_are_shown_as_they_are(tmp_path):
    shades = tiles((1, -1, -1), (-1, 1, -1), (-1, -1, 1), (-1, -1, -1))
    plots.image_grid(tmp_path / "grid.png", shades, "title", columns=2)
    found = pixels(tmp_path / "grid.png")
    red, green, blue = (found[c] for c in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    assert red == pytest.approx(green, rel=0.05)
    assert red == pytest.approx(blue, rel=0.05)
    assert max(found, key=found.get) == (255, 255, 255), "around and between tiles is paper"


def test_grey_is_ink_on_paper(tmp_path):
    plots.image_grid(tmp_path / "grid.png", tiles([1], [0], [-1], [-1]), "title", columns=2)
    found = pixels(tmp_path / "grid.png")
    black = sum(n for colour, n in found.items() if max(colour) < 10)
    middle = sum(n for colour, n in found.items() if 120 < colour[0] == colour[2] < 136)
    assert middle == pytest.approx(black, rel=0.2)


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_are_laid_row_by_row(channels):
    images = np.arange(5.0)[:, None, None, None] * np.ones((5, 2, 3, channels))
    picture = canvas.tiles(images, columns=3)
    assert picture.shape == (6, 12, channels)
    for i in range(5):
        top, left = 3 * (i // 3), 4 * (i % 3)
        np.testing.assert_array_equal(picture[top : top + 2, left : left + 3], images[i])
    assert np.isnan(picture[2]).all()
    assert np.isnan(picture[3:, 8:]).all(), "there is no sixth tile"


@pytest.mark.parametrize("count", [1, 4, 11])
@pytest.mark.parametrize(
    "lines",
    [
        {},
        {"independent pixels, held out": 2.41, "mixture of 10, held out": 2.24},
        {"independent pixels, held out": 2.307, "mixture of 10, held out": 2.308},
        {"a": 0.0, "b": 0.0, "c": 1.0, "d": 1.01, "e": 1.02, "f": 1.0},
    ],
)
def test_no_text_beside_a_curve_lies_on_another_or_leaves_the_picture(
    tmp_path, monkeypatch, lines, count
):
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    names = ["-ELBO on training batches", "reconstruction", *(f"KL, level {i}" for i in range(9))]
    curves = dict.fromkeys(names[:count], np.linspace(8.0, 2.2, 50))
    plots.loss_curves(tmp_path / "loss.png", list(range(1, 51)), curves, "bits", lines)
    (figure,) = drawn
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in (*axes.texts, *axes.get_legend().get_texts())]
    assert len(boxes) == len(lines) + count
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    inside = figure.bbox.padded(0.5)
    assert all(inside.containsx(b.x1) and inside.containsy(b.y1) for b in boxes)
    assert not any(axes.bbox.overlaps(box) for box in boxes), "nor on a curve"
    for text in axes.texts:
        label, level = text.get_text().split(": ")
        assert float(level) == pytest.approx(lines[label], rel=5e-3)
        assert text.xy[1] >= lines[label], "raised, or beside its line"


def test_few_points_are_seen_and_many_do_not_run_together(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        plots,
        "save",
        lambda figure, path: sizes.append(figure.axes[0].collections[0].get_sizes().item()),
    )
    for n in (1, 32, 500, 4000):
        plots.point_cloud(tmp_path / "cloud.png", np.ones((n, 2)), "title")
    assert sizes == [20.0, 20.0, 4.0, 2.0]


def test_ways_between_points_are_drawn(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    x, data = np.arange(20.0).reshape(10, 2), Points(np.ones((30, 2)))
    plots.samples(tmp_path / "ways.png", x, "title", data, columns=4)
    plots.samples(tmp_path / "cloud.png", x, "title", data)
    ways, cloud = ([line.get_xydata() for line in each.axes[0].lines] for each in figures)
    for found, want in zip(ways, (x[:4], x[4:8], x[8:]), strict=True):
        np.testing.assert_array_equal(found, want)
    assert cloud == []
    for figure in figures:
        for axes, points in zip(figure.axes, (x, data.x[:10]), strict=True):
            np.testing.assert_array_equal(axes.collections[0].get_offsets(), points)
