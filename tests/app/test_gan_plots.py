"""app/gan_plots.py: what is in the figures that the command line does not draw."""

import numpy as np
import pytest

from scratchgen.app import gan_plots


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved."""
    drawn, save = [], gan_plots.save
    monkeypatch.setattr(gan_plots, "save", lambda *given: drawn.append(given[0]) or save(*given))
    return drawn


def lines(axis) -> dict:
    return {line.get_label(): line for line in axis.lines}


def test_costs_and_slopes_have_a_panel_each_that_ends_where_it_must(tmp_path, figures):
    d = np.asarray([0.001, 0.5, 0.9])
    curves = {
        "first": [np.asarray([9.0, 0.5, -1.0]), np.asarray([-1e3, -2.0, -1.0]), -d],
        "second": [np.asarray([0.0, -0.5, -2.0]), np.asarray([-1.0, -2.0, -9.0]), d - 1.0],
    }
    gan_plots.over_discriminator(tmp_path / "costs.png", d, curves, "title")
    assert (tmp_path / "costs.png").stat().st_size > 0
    axes = figures[0].axes
    assert [axis.get_ylabel() for axis in axes] == list(gan_plots.PANELS)
    for i, axis in enumerate(axes):
        assert set(lines(axis)) == set(curves)
        for loss, line in lines(axis).items():
            np.testing.assert_array_equal(line.get_xydata().T, [d, curves[loss][i]])
            assert line.get_color() == lines(axes[0])[loss].get_color()
    assert len({(line.get_color(), line.get_linestyle()) for line in axes[0].lines}) == 2
    bounds = [axis.get_ylim() for axis in axes]
    np.testing.assert_allclose(bounds[0], (-2.35, 5.35))
    np.testing.assert_allclose(bounds[1], (-12.55, -0.45))
    np.testing.assert_allclose(bounds[2], (-1.0489, 0.0489))


def test_games_stand_side_by_side_with_the_median_and_the_range_of_their_runs(tmp_path, figures):
    runs = np.asarray([1.0, 2.0, 6.0])[:, None, None] * np.asarray([[8.0, 1.0, 1e-3]] * 4)
    games = {"slow": {"a": runs, "b": 0.5 * runs}, "fast": {"a": 0.1 * runs, "b": 0.01 * runs}}
    gan_plots.approach(tmp_path / "stall.png", games, "title")
    assert (tmp_path / "stall.png").stat().st_size > 0
    grid = np.asarray(figures[0].axes).reshape(3, 2)
    assert [axis.get_title() for axis in grid[0]] == list(games)
    assert [axis.get_yscale() for axis in grid.flat] == 4 * ["linear"] + 2 * ["log"]
    for row, first in zip(grid, (8.0, 1.0, 1e-3), strict=True):
        assert row[0].get_ylim() == row[1].get_ylim()  # so that the games can be compared
        for axis, losses in zip(row, games.values(), strict=True):
            for band, (loss, found) in zip(axis.collections, losses.items(), strict=True):
                scale = found[0, 0, 0] / 8.0 * first
                step, median = lines(axis)[loss].get_xydata().T
                np.testing.assert_array_equal(step, np.arange(4))
                np.testing.assert_allclose(median, 2.0 * scale)
                heights = band.get_paths()[0].vertices[:, 1]
                np.testing.assert_allclose([min(heights), max(heights)], [scale, 6.0 * scale])
