"""Where pictures are drawn, and in which colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...jaxpr import extras

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIGNED = "RdBu_r"
INK = "gray_r"
POSITIVE, NEGATIVE = "#b2182b", "#2166ac"
TRAINING, VALIDATION = "#1f77b4", "#d95f02"
COLOURS = (TRAINING, VALIDATION, "#1b9e77", "#7570b3", "#a6761d", "#e7298a", "#666666")


def new_axes(width: float = 6.0, height: float = 4.0, columns: int = 1, projection: str | None = None) -> Any:
    """The axes of a new figure, side by side.

    Args:
        width: of the figure, in inches.
        height: of the figure, in inches.
        columns: how many axes.
        projection: of matplotlib, `"3d"` for surfaces.

    Returns:
        The axes, or an array of them if there are several columns.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> from funcbp import plot
        >>> left, right = plot.new_axes(8, 3, columns=2)
        >>> left.figure is right.figure
        True
    """
    drawing = extras.load("matplotlib.figure", "Pictures are drawn by")
    figure = drawing.Figure(figsize=(width, height), layout="constrained")
    return figure.subplots(1, columns, subplot_kw={"projection": projection})


MOST_INSIDE = 4  # lines of a legend, for which there is room among the curves


def legend(ax: Axes, **options: Any) -> None:
    """Say which line is which: among the curves where there is room, and beside them where the lines are many."""
    if len(ax.get_legend_handles_labels()[0]) > MOST_INSIDE:
        options = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), **options}
    ax.legend(frameon=False, **options)


def tidy(ax: Axes) -> Axes:
    """A light grid, and no frame above and on the right."""
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
