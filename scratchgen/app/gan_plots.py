"""Figures of adversarial games."""

from pathlib import Path

from scratchgen.app.canvas import COLOURS, new_figure, save


def course(path: Path, history: dict[str, list[float]]) -> None:
    """The costs of both sides, and below the norm of the discriminator's gradient.

    Args:
        path: the .png to write.
        history: "step" and the logged terms.
    """
    figure, (above, below) = new_figure(7.0, 5.6, panels=1, rows=2)
    names = [name for name in history if name not in ("step", "gradient_norm")]
    for colour, name in zip(COLOURS, names, strict=False):
        above.plot(history["step"], history[name], color=colour, linewidth=1, label=name)
    above.axhline(0.0, color="#999999", linewidth=0.8)
    above.set_ylabel("cost")
    above.legend(frameon=False, fontsize=8)
    below.plot(history["step"], history["gradient_norm"], color=COLOURS[0], linewidth=1)
    if any(norm > 0.0 for norm in history["gradient_norm"]):
        below.set_yscale("log")
    below.set_ylabel("norm of the\ndiscriminator's gradient")
    below.set_xlabel("step of the generator")
    save(figure, path)
