"""Figures. Matplotlib is imported when the first one is drawn."""

from collections.abc import Sequence
from math import sqrt
from pathlib import Path

import numpy as np

from scratchgen.training.checkpoint import whole_file

MOST_TILES = 400
COLOURS = ("#1f4e79", "#c55a11", "#2e7d32", "#6a1b9a", "#777777")


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
        lines: label -> value, drawn as horizontal lines.
    """
    figure, axes = _figure(7.0, 4.2)
    for i, (label, values) in enumerate(curves.items()):
        axes.plot(steps, values, color=COLOURS[i], linewidth=1 if i else 2, label=label)
    main = next(iter(curves.values()))
    for label, level in _joined(lines).items():
        below = level < main[-1]  # on the side away from where the curve ends
        axes.axhline(level, color="#999999", linewidth=0.8, linestyle="--")
        axes.annotate(
            label,
            (1.0, level),
            xycoords=("axes fraction", "data"),
            xytext=(-4, -3 if below else 2),
            textcoords="offset points",
            ha="right",
            va="top" if below else "bottom",
            fontsize=8,
            color="#555555",
        )
    axes.set_xlabel("training step")
    axes.set_ylabel(unit)
    axes.set_ylim(0.0, 1.25 * max([*lines.values(), float(np.median(main))]))
    axes.set_xlim(0, steps[-1])
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 0.2))
    _save(figure, path)


def _joined(lines: dict[str, float]) -> dict[str, float]:
    """The lines with their levels in their labels; one line where two levels read the same."""
    at: dict[str, list[str]] = {}
    for label, level in lines.items():
        at.setdefault(f"{level:.3g}", []).append(label)
    return {f"{', '.join(labels)}: {text}": lines[labels[0]] for text, labels in at.items()}


def image_grid(path: Path, images: np.ndarray, title: str, columns: int | None = None) -> None:
    """Images (N, H, W, C) in [-1, 1], grey or colour, row by row."""
    columns = columns or round(sqrt(len(images)))
    rows = -(-len(images) // columns)
    figure, axes = _figure(max(0.55 * columns + 0.4, 5.5), 0.55 * rows + 0.7)
    _show(axes, _tiles(images, columns))
    axes.set_title(title, fontsize=10)
    _save(figure, path)


def reconstructions(path: Path, x: np.ndarray, x_hat: np.ndarray, title: str) -> None:
    """Images above, their reconstructions below; both (N, H, W, C) in [-1, 1]."""
    figure, axes = _figure(0.55 * len(x) + 1.6, 1.7)
    _show(axes, _tiles(np.concatenate([x, x_hat]), len(x)))
    height = x.shape[1] + 1
    axes.set_yticks([height * 0.5, height * 1.5], ["data", "reconstruction"], fontsize=9)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=10)
    _save(figure, path)


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
    figure, axes = _figure(max(0.55 * n + 1.2, 5.5), 0.55 * rows + 1.2)
    _show(axes, _tiles(images, n))
    size = images.shape[1] + 1
    ticks = [size * (i + 0.5) for i in range(n)]
    labels = [f"{v:.2f}" if i % 2 == 0 else "" for i, v in enumerate(u)]
    axes.set_xticks(ticks, labels, fontsize=8)
    axes.tick_params(length=0)
    axes.set_xlabel(f"quantile of {names[0]} under N(0, 1)")
    if rows > 1:
        axes.set_yticks(ticks, labels, fontsize=8)
        axes.set_ylabel(f"quantile of {names[1]} under N(0, 1)")
    axes.set_title(title, fontsize=10)
    _save(figure, path)


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
    figure, axes = _figure(7.0, 4.2)
    for i, (label, values) in enumerate(curves.items()):
        shown = np.where(values > 0.0, values, np.nan)
        axes.plot(t, shown, color=COLOURS[i % len(COLOURS)], linewidth=1.2, label=label)
    axes.set_yscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(unit)
    axes.set_title(title, fontsize=10)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)
    _save(figure, path)


def point_cloud(
    path: Path, points: np.ndarray, title: str, reference: np.ndarray | None = None
) -> None:
    """Points (N, 2) of the plane, beside as many of the data where there are some."""
    clouds = [("samples", points), *([] if reference is None else [("data", reference)])]
    figure, axes = _figure(4.2 * len(clouds), 4.6, len(clouds))
    reach = 1.1 * float(max(np.abs(cloud).max() for _, cloud in clouds))
    for i, (name, cloud) in enumerate(clouds):
        _scatter(axes[i], cloud, reach, f"{name}, N = {len(cloud)}")
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def strip(path: Path, frames: Sequence[np.ndarray], labels: Sequence[str], title: str) -> None:
    """What samples look like on their way: one column a moment, or one panel for points.

    Args:
        path: the .png to write.
        frames: of images (n, H, W, C), or of points (n, 2), first to last.
        labels: one for each frame.
        title: above the picture.
    """
    if frames[0].ndim == 2:
        figure, axes = _figure(1.7 * len(frames), 2.3, len(frames))
        reach = 1.1 * max(float(np.quantile(np.abs(frame), 0.999)) for frame in frames)
        for i, (frame, label) in enumerate(zip(frames, labels, strict=True)):
            _scatter(axes[i], frame, reach, label)
        figure.suptitle(title, fontsize=10)
        _save(figure, path)
        return
    rows, columns = len(frames[0]), len(frames)
    images = np.stack(frames, axis=1).reshape(-1, *frames[0].shape[1:])
    figure, axes = _figure(max(0.6 * columns + 0.4, 5.5), 0.6 * rows + 1.0)
    _show(axes, _tiles(images, columns))
    width = images.shape[2] + 1
    axes.set_xticks([width * (i + 0.5) for i in range(columns)], labels, fontsize=8)
    axes.tick_params(length=0)
    axes.set_title(title, fontsize=10)
    _save(figure, path)


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
            shown = 0.5 + 0.5 * np.nan_to_num(np.clip(_tiles(frame, columns), -1.0, 1.0), nan=-1.0)
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
    figure, axes = _figure(4.3 * len(panels) + 0.7, 3.9, len(panels))
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
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


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
    figure, axes = _figure(3.5 * columns + 0.3, 3.5 * rows + 0.6, columns, rows)
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
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


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
    figure, axes = _figure(4.4 * len(panels), 3.8, len(panels))
    for axis, (unit, curves) in zip(axes, panels.items(), strict=True):
        for i, (label, values) in enumerate(curves.items()):
            axis.plot(t, values, color=COLOURS[i], linewidth=1.4, label=label)
        axis.set_xlabel(x_label)
        axis.set_ylabel(unit)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def _density_of(points: np.ndarray, reach: float, side: int = 160) -> np.ndarray:
    """How many points (n, 2) lie in each cell of a square, dark on light: (side, side, 1)."""
    edges = np.linspace(-reach, reach, side + 1)
    counts, _, _ = np.histogram2d(points[:, 1], points[:, 0], [edges, edges])
    return 1.0 - np.minimum(1.0, counts[::-1, :, None] / 3.0)


def _scatter(axes, points: np.ndarray, reach: float, title: str) -> None:
    axes.scatter(points[:, 0], points[:, 1], s=2.0, color=COLOURS[0], alpha=0.4, linewidths=0)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=7)
    axes.set_title(title, fontsize=8)


def _figure(width: float, height: float, panels: int = 0, rows: int = 1):
    """A figure, and its axes: one, or rows of as many beside each other as there are panels."""
    from matplotlib.figure import Figure  # half a second to import

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    if panels:
        return figure, figure.subplots(rows, panels, squeeze=False).ravel()
    return figure, figure.add_subplot()


def _tiles(images: np.ndarray, columns: int) -> np.ndarray:
    """(N, H, W, C) -> one picture (·, ·, C), tiles separated by a line of one blank pixel."""
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    tiles = np.full((rows * columns, height + 1, width + 1, channels), np.nan)
    tiles[:n, :height, :width] = images
    grid = tiles.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    return grid.reshape(rows * (height + 1), columns * (width + 1), channels)


def _show(axes, picture: np.ndarray) -> None:
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


def _save(figure, path: Path) -> None:
    with whole_file(path) as file:
        figure.savefig(file, format="png")
