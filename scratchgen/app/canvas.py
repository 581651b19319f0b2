"""What every figure is drawn on: axes, tiles of images, colours, and a file that is whole.

Matplotlib is imported when the first one is drawn.
"""

from pathlib import Path
from textwrap import fill

import numpy as np

from scratchgen.training.checkpoint import whole_file

COLOURS = ("#1f4e79", "#c55a11", "#2e7d32", "#6a1b9a", "#777777")


def new_figure(width: float, height: float, panels: int = 0, rows: int = 1):
    """A figure, and its axes: one, or rows of as many beside each other as there are panels."""
    from matplotlib.figure import Figure  # half a second to import

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    if panels:
        return figure, figure.subplots(rows, panels, squeeze=False).ravel()
    return figure, figure.add_subplot()


def wrapped(title: str, figure) -> str:
    """A title in as many lines as the figure's width asks for."""
    return fill(title, int(12.0 * figure.get_size_inches()[0]))


def tiles(images: np.ndarray, columns: int) -> np.ndarray:
    """(N, H, W, C) -> one picture (·, ·, C), tiles separated by a line of one blank pixel."""
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    laid = np.full((rows * columns, height + 1, width + 1, channels), np.nan)
    laid[:n, :height, :width] = images
    grid = laid.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    return grid.reshape(rows * (height + 1), columns * (width + 1), channels)


def show(axes, picture: np.ndarray) -> None:
    """Grey as ink on white paper; colour as light, on white where there is no tile."""
    shown: np.ndarray
    if picture.shape[2] == 1:
        shown = np.ma.masked_invalid(picture[..., 0])
    else:
        shown = np.nan_to_num(np.clip(0.5 + 0.5 * picture, 0.0, 1.0), nan=1.0)
    axes.imshow(
        shown,
        cmap="gray_r",
        vmin=-1.0,
        vmax=1.0,
        interpolation="nearest",
        extent=(0, picture.shape[1], picture.shape[0], 0),
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def scatter(axes, points: np.ndarray, reach: float, title: str) -> None:
    """Points (N, 2) of the plane, on axes from -reach to reach."""
    size = min(max(2000.0 / len(points), 2.0), 20.0)  # few are seen, and many do not run together
    axes.scatter(*points.T, s=size, color=COLOURS[0], alpha=0.4, linewidths=0)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=7)
    axes.set_title(title, fontsize=8)


def save(figure, path: Path) -> None:
    """Write a figure as a .png, as a whole."""
    with whole_file(path) as file:
        figure.savefig(file, format="png")
