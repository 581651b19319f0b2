"""Figures of adversarial games."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scratchgen.app.canvas import COLOURS, new_figure, save, wrapped

STYLES = ("-", "--", ":")  # curves may lie on each other
PANELS = {"cost, nats": 5.0, "slope in D": 12.0, "slope in the logit a": 1.0}  # and their reach


def course(path: Path, steps: list[float], curves: dict[str, list[float]]) -> None:
    """The costs of both sides, and below the norms of their gradients.

    Args:
        path: the .png to write.
        steps: where the rows were logged.
        curves: name -> values; those whose names end in "norm" are norms.
    """
    figure, (above, below) = new_figure(7.0, 5.6, panels=1, rows=2)
    norms = [name for name in curves if name.endswith("norm")]
    costs = [name for name in curves if name not in norms]
    for axes, names in ((above, costs), (below, norms)):
        for colour, name in zip(COLOURS, names, strict=False):
            label = name.replace("_", " ")
            axes.plot(steps, curves[name], color=colour, linewidth=1, label=label)
        axes.legend(frameon=False, fontsize=8)
    above.axhline(0.0, color="#999999", linewidth=0.8)
    above.set_ylabel("cost")
    if any(value > 0.0 for name in norms for value in curves[name]):
        below.set_yscale("log")
    below.set_ylabel("norm of the gradient")
    below.set_xlabel("step of the generator")
    save(figure, path)


def over_discriminator(
    path: Path, d: np.ndarray, curves: dict[str, Sequence[np.ndarray]], title: str
) -> None:
    """What a fake costs the generator, and how steeply, over what the discriminator says.

    Args:
        path: the .png to write.
        d: (n,), D(G(z)) in (0, 1).
        curves: loss -> its cost, the slope in D and that in the logit a, each (n,). Some have no
            bound, so the scales end where `PANELS` says.
        title: above the picture.
    """
    figure, axes = new_figure(4.0 * len(PANELS), 4.0, len(PANELS))
    for i, (axis, (label, reach)) in enumerate(zip(axes, PANELS.items(), strict=True)):
        for colour, style, (loss, values) in zip(COLOURS, STYLES, curves.items(), strict=False):
            axis.plot(d, values[i], style, color=colour, linewidth=1.6, label=loss)
        shown = np.clip([values[i] for values in curves.values()], -reach, reach)
        room = 0.05 * (shown.max() - shown.min())
        axis.set_ylim(shown.min() - room, shown.max() + room)
        axis.set_xlim(0.0, 1.0)
        axis.axvspan(0.0, 0.1, color="#eeeeee", zorder=0)
        axis.set_xlabel("D(G(z)); grey: obvious fakes")
        axis.set_ylabel(label)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(wrapped(title, figure), fontsize=10)
    save(figure, path)


def approach(path: Path, games: dict[str, dict[str, np.ndarray]], title: str) -> None:
    """Whether fakes on the line reach the data, and what D takes them for on their way.

    Args:
        path: the .png to write.
        games: column -> loss -> (runs, steps, 3): at each step of the generator the distance of the
            means and the standard deviation of the fakes, both in standard deviations of the data,
            and the mean of D(G(z)).
        title: above the picture.
    """
    labels = ("distance of the means", "standard deviation\nof the fakes", "mean of D(G(z))")
    figure, axes = new_figure(4.6 * len(games), 7.5, len(games), rows=len(labels))
    grid = axes.reshape(len(labels), len(games))
    for row, label in zip(grid, labels, strict=True):
        row[0].set_ylabel(label)
        for axis in row[1:]:
            axis.sharey(row[0])
    grid[-1, 0].set_yscale("log")
    for column, (name, losses) in zip(grid.T, games.items(), strict=True):
        for colour, style, (loss, runs) in zip(COLOURS, STYLES, losses.items(), strict=False):
            for axis, found in zip(column, np.moveaxis(runs, 2, 0), strict=True):
                step, low, high = np.arange(found.shape[1]), found.min(axis=0), found.max(axis=0)
                axis.fill_between(step, low, high, color=colour, alpha=0.2, linewidth=0)
                axis.plot(step, np.median(found, axis=0), style, color=colour, label=loss)
        column[0].set_title(name, fontsize=10)
        column[-1].set_xlabel("step of the generator")
    grid[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(wrapped(f"{title}: median and range of the runs", figure), fontsize=10)
    save(figure, path)
