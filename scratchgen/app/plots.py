"""Figures of training, of images, and of points of the plane."""

from math import inf, sqrt
from operator import itemgetter
from pathlib import Path

import numpy as np

from scratchgen.app.canvas import COLOURS, new_figure, save, scatter, show, tiles, wrapped

MOST_TILES = 400
LINE = 0.06  # of the axes' height, for a label beside them
STYLES = ("-", "--", ":", "-.")  # of curves, once the colours are used up


def loss_curves(
    path: Path,
    steps: list[float],
    curves: dict[str, np.ndarray],
    unit: str,
    lines: dict[str, float],
) -> None:
    """Curves over the training steps, with labelled levels to compare with.

    Args:
        path: the .png to write.
        steps: where the rows were logged.
        curves: label -> values; the first is the one that matters.
        unit: of all values.
        lines: label -> value, drawn as horizontal lines with their labels to the right.
    """
    figure, axes = new_figure(8.4 if lines else 7.0, 4.2)
    for i, (label, values) in enumerate(curves.items()):
        colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
        axes.plot(steps, values, style, color=colour, linewidth=1 if i else 2, label=label)
    main = next(iter(curves.values()))
    top = 1.25 * max([*lines.values(), float(np.quantile(main, 0.9))])  # early steps may be above
    height = -inf
    for label, level in sorted(lines.items(), key=itemgetter(1)):
        height = max(level, height + LINE * top)  # raised where the label below would be touched
        axes.axhline(level, color="#999999", linewidth=0.8, linestyle="--")
        axes.annotate(
            f"{label}: {level:#.3g}",
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="#555555",
        )
    axes.set_xlabel("training step")
    axes.set_ylabel(unit)
    axes.set_ylim(0.0, top)
    axes.set_xlim(0, steps[-1])
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4)
    save(figure, path)


def image_grid(path: Path, images: np.ndarray, title: str, columns: int | None = None) -> None:
    """Images (N, H, W, C) in [-1, 1], grey or colour, row by row."""
    columns = columns or round(sqrt(len(images)))
    rows = -(-len(images) // columns)
    figure, axes = new_figure(max(0.55 * columns + 0.4, 5.5), 0.55 * rows + 0.7)
    show(axes, tiles(images, columns))
    axes.set_title(wrapped(title, figure), fontsize=10)
    save(figure, path)


def point_cloud(
    path: Path,
    points: np.ndarray,
    title: str,
    reference: np.ndarray | None = None,
    columns: int | None = None,
) -> None:
    """Points (N, 2) of the plane, beside as many of the data where there are some.

    Args:
        path: the .png to write.
        points: (N, 2).
        title: above the picture.
        reference: points of the data.
        columns: so many points after one another are a way, and joined.
    """
    clouds = [("samples", points), *([] if reference is None else [("data", reference)])]
    figure, axes = new_figure(4.2 * len(clouds), 4.6, len(clouds))
    reach = 1.1 * float(max(np.abs(cloud).max() for _, cloud in clouds))
    for i, (name, cloud) in enumerate(clouds):
        scatter(axes[i], cloud, reach, f"{name}, N = {len(cloud)}")
    if columns:
        for start in range(0, len(points), columns):
            axes[0].plot(*points[start : start + columns].T, color=COLOURS[0], linewidth=0.8)
    figure.suptitle(wrapped(title, figure), fontsize=10)
    save(figure, path)


def samples(
    path: Path,
    x: np.ndarray,
    title: str,
    data,
    columns: int | None = None,
) -> None:
    """Samples of either kind: images (N, H, W, C) as a grid, points (N, 2) beside those of data.

    Args:
        path: the .png to write.
        x: the samples.
        title: above the picture.
        data: Points, of which as many as there are samples stand beside them, or Images.
        columns: of a grid, or points of a way, where rows have a meaning.
    """
    if x.ndim == 2:
        point_cloud(path, x, title, data.x[: len(x)], columns)
    else:
        image_grid(path, x, title, columns)


def image_rows(path: Path, rows: dict[str, np.ndarray], title: str) -> None:
    """Rows of images one below the other: label -> (N, H, W, C) in [-1, 1], all of one shape."""
    first = next(iter(rows.values()))
    figure, axes = new_figure(0.55 * len(first) + 1.6, 0.55 * len(rows) + 0.6)
    show(axes, tiles(np.concatenate(list(rows.values())), len(first)))
    height = first.shape[1] + 1
    axes.set_yticks([height * (i + 0.5) for i in range(len(rows))], list(rows), fontsize=9)
    axes.tick_params(length=0)
    axes.set_title(wrapped(title, figure), fontsize=10)
    save(figure, path)


def latent_grid(
    path: Path, images: np.ndarray, u: list[float], names: list[str], title: str
) -> None:
    """Decoded images over a grid of two latent dimensions, or along one.

    Args:
        path: the .png to write.
        images: (n·n, H, W, C), row i, column j at z = (Φ⁻¹(u_j), Φ⁻¹(u_i)); or (n, H, W, C).
        u: the n probabilities, the same for both axes.
        names: of the horizontal and, if there is one, of the vertical latent dimension.
        title: above the picture.
    """
    n, rows = len(u), len(images) // len(u)
    figure, axes = new_figure(max(0.55 * n + 1.2, 5.5), 0.55 * rows + 1.2)
    show(axes, tiles(images, n))
    size = images.shape[1] + 1
    ticks = [size * (i + 0.5) for i in range(n)]
    labels = [f"{v:.2f}" if i % 2 == 0 else "" for i, v in enumerate(u)]
    axes.set_xticks(ticks, labels, fontsize=8)
    axes.tick_params(length=0)
    axes.set_xlabel(f"quantile of {names[0]} under N(0, 1)")
    if rows > 1:
        axes.set_yticks(ticks, labels, fontsize=8)
        axes.set_ylabel(f"quantile of {names[1]} under N(0, 1)")
    axes.set_title(wrapped(title, figure), fontsize=10)
    save(figure, path)
