"""Figures of diffusion: over time and noise level, of densities and scores, and on the way."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scratchgen.app.canvas import COLOURS, new_figure, save, scatter, show, tiles, wrapped
from scratchgen.training.checkpoint import whole_file


def over_time(
    path: Path, t: np.ndarray, curves: dict[str, np.ndarray], x_label: str, unit: str, title: str
) -> None:
    """Curves over time or noise level, on a logarithmic scale.

    Args:
        path: the .png to write.
        t: (n,), where the curves are known.
        curves: label -> (n,) values; what is not positive has no place on the scale.
        x_label: what t is.
        unit: of the values.
        title: above the picture.
    """
    figure, axes = new_figure(7.0, 4.2)
    for i, (label, values) in enumerate(curves.items()):
        shown = np.where(values > 0.0, values, np.nan)
        style = ("-", "--", ":", "-.")[i % 4]  # curves may lie on each other
        axes.plot(t, shown, style, color=COLOURS[i % len(COLOURS)], linewidth=1.4, label=label)
    axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(unit)
    axes.set_title(wrapped(title, figure), fontsize=10)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def strip(path: Path, frames: Sequence[np.ndarray], labels: Sequence[str], title: str) -> None:
    """What samples look like on their way: one column a moment, or one panel for points.

    Args:
        path: the .png to write.
        frames: of images (n, H, W, C), or of points (n, 2), first to last.
        labels: one for each frame.
        title: above the picture.
    """
    if frames[0].ndim == 2:
        figure, axes = new_figure(1.7 * len(frames), 2.3, len(frames))
        reach = 1.1 * max(float(np.quantile(np.abs(frame), 0.999)) for frame in frames)
        for i, (frame, label) in enumerate(zip(frames, labels, strict=True)):
            scatter(axes[i], frame, reach, label)
        figure.suptitle(wrapped(title, figure), fontsize=10)
        save(figure, path)
        return
    rows, columns = len(frames[0]), len(frames)
    images = np.stack(frames, axis=1).reshape(-1, *frames[0].shape[1:])
    figure, axes = new_figure(max(0.6 * columns + 0.4, 5.5), 0.6 * rows + 1.0)
    show(axes, tiles(images, columns))
    width = images.shape[2] + 1
    axes.set_xticks([width * (i + 0.5) for i in range(columns)], labels, fontsize=8)
    axes.tick_params(length=0)
    axes.set_title(wrapped(title, figure), fontsize=10)
    save(figure, path)


def moving_picture(path: Path, frames: Sequence[np.ndarray], columns: int) -> None:
    """An animated GIF: a grid of images, or a cloud of points, at one moment after another.

    Args:
        path: the .gif to write.
        frames: of images (n, H, W, C), or of points (n, 2), first to last.
        columns: of the grid.
    """
    from PIL import Image

    reach = 1.1 * max(float(np.quantile(np.abs(frame), 0.999)) for frame in frames)
    pictures = []
    for frame in frames:
        if frame.ndim == 2:
            shown = _density_of(frame, reach)
        else:
            shown = 0.5 + 0.5 * np.nan_to_num(np.clip(tiles(frame, columns), -1.0, 1.0), nan=-1.0)
            shown = 1.0 - shown if shown.shape[2] == 1 else shown
        light = np.rint(255.0 * shown).astype(np.uint8)
        picture = Image.fromarray(light[..., 0] if light.shape[2] == 1 else light)
        scale = max(1, 320 // max(picture.size))
        pictures.append(
            picture.resize([scale * side for side in picture.size], Image.Resampling.NEAREST)
        )
    with whole_file(path) as file:
        pictures[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=[150] * (len(pictures) - 1) + [1500],
            loop=0,
        )


def heat_maps(
    path: Path,
    t: np.ndarray,
    x: np.ndarray,
    panels: dict[str, np.ndarray],
    labels: Sequence[str],
    title: str,
) -> None:
    """Densities on a line over time, side by side on one scale: each column is the law at one t.

    Args:
        path: the .png to write.
        t: (m,), the moments, evenly spaced.
        x: (n,), rising and evenly spaced, the places.
        panels: label -> (n, m) densities, of x at t.
        labels: of t, of x and of the densities.
        title: above the picture.
    """
    figure, axes = new_figure(4.3 * len(panels) + 0.7, 3.9, len(panels))
    half_t, half_x = 0.5 * (t[1] - t[0]), 0.5 * (x[1] - x[0])
    extent = (t[0] - half_t, t[-1] + half_t, x[0] - half_x, x[-1] + half_x)
    highest = max(float(values.max()) for values in panels.values())
    for axis, (label, values) in zip(axes, panels.items(), strict=True):
        shown = axis.imshow(
            values,
            origin="lower",
            aspect="auto",
            extent=extent,
            interpolation="nearest",
            vmin=0.0,
            vmax=highest,
        )
        axis.set_xlabel(labels[0])
        axis.set_title(label, fontsize=9)
    axes[0].set_ylabel(labels[1])
    figure.colorbar(shown, ax=list(axes), label=labels[2], pad=0.02)
    figure.suptitle(wrapped(title, figure), fontsize=10)
    save(figure, path)


def score_fields(
    path: Path,
    points: np.ndarray,
    fields: dict[str, Sequence[np.ndarray]],
    densities: Sequence[np.ndarray],
    labels: Sequence[str],
    title: str,
) -> None:
    """Fields of arrows over densities: a row for each way to know them, a column for each density.

    An arrow for s has the length √|s|, so that both the flanks and the inside of a density can be
    read; in a column all arrows are drawn to one scale.

    Args:
        path: the .png to write.
        points: (n, n, 2), a square grid; row i holds the points of one height, rising with i.
        fields: label -> one (n, n, 2) for each column; about 20 × 20 of its arrows are drawn.
        densities: one (n, n) for each column.
        labels: one for each column.
        title: above the picture.
    """
    rows, columns, every = len(fields), len(labels), -(-len(points) // 20)
    figure, axes = new_figure(3.5 * columns + 0.3, 3.5 * rows + 0.6, columns, rows)
    chosen = (slice(every // 2, None, every),) * 2
    (left, low), (right, high) = points[0, 0], points[-1, -1]
    apart = every * (right - left) / (len(points) - 1)
    for j, (density, *column) in enumerate(zip(densities, *fields.values(), strict=True)):
        arrows = [_rooted(field[chosen]) for field in column]
        longest = max(float(np.hypot(*arrow.T).max()) for arrow in arrows)
        for axis, arrow in zip(axes[j::columns], arrows, strict=True):
            axis.imshow(
                density,
                origin="lower",
                extent=(left, right, low, high),
                cmap="Oranges",
                vmin=0.0,
                vmax=1.6 * density.max(),
                interpolation="bilinear",
            )
            axis.quiver(
                *points[chosen].T,
                *arrow.T,
                color=COLOURS[0],
                angles="xy",
                scale_units="xy",
                scale=(longest or 1.0) / (1.5 * apart),
                width=0.004,
            )
            axis.tick_params(labelsize=7)
        axes[j].set_title(labels[j], fontsize=9)
    for i, name in enumerate(fields):
        axes[i * columns].set_ylabel(name, fontsize=10)
    figure.suptitle(wrapped(title, figure), fontsize=10)
    save(figure, path)


def _rooted(arrows: np.ndarray) -> np.ndarray:
    """Arrows (..., 2) of length √|s| for s."""
    length = np.linalg.norm(arrows, axis=-1, keepdims=True)
    return arrows / np.sqrt(np.maximum(length, np.finfo(arrows.dtype).tiny))


def panels_over_time(
    path: Path,
    t: np.ndarray,
    panels: dict[str, dict[str, np.ndarray]],
    x_label: str,
    title: str,
) -> None:
    """Quantities over time side by side, each with curves of one unit, on ordinary scales.

    Args:
        path: the .png to write.
        t: (n,), where the curves are known.
        panels: quantity and unit -> label -> (n,) values; a label has one colour in all panels.
        x_label: what t is.
        title: above the picture.
    """
    figure, axes = new_figure(4.4 * len(panels), 3.8, len(panels))
    for axis, (unit, curves) in zip(axes, panels.items(), strict=True):
        for i, (label, values) in enumerate(curves.items()):
            axis.plot(t, values, color=COLOURS[i], linewidth=1.4, label=label)
        axis.set_xlabel(x_label)
        axis.set_ylabel(unit)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(wrapped(title, figure), fontsize=10)
    save(figure, path)


def _density_of(points: np.ndarray, reach: float, side: int = 160) -> np.ndarray:
    """How many points (n, 2) lie in each cell of a square, dark on light: (side, side, 1)."""
    edges = np.linspace(-reach, reach, side + 1)
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], [edges, edges])
    return 1.0 - np.minimum(1.0, counts[::-1, :, None] / 3.0)
