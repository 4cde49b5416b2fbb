"""What a network predicted, beside what was true."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ...jaxpr.types import PyTree
from .canvas import NEGATIVE, POSITIVE, SIGNED, TRAINING, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def predictions(true: ArrayLike, predicted: ArrayLike, ax: Axes | None = None) -> Figure | Any:
    """What was predicted against what was true; on the line, both are equal.

    Args:
        true: numbers, any shape.
        predicted: numbers of the same shape.
        ax: axes to draw on.

    Returns:
        The figure.

    Example:
        >>> from funcbp import plot
        >>> plot.predictions([1.0, 2.0], [1.1, 1.9]).axes[0].get_xlabel()
        'true'
    """
    true, predicted = np.ravel(true), np.ravel(predicted)
    ax = new_axes(5, 5) if ax is None else ax
    ends = [min(true.min(), predicted.min()), max(true.max(), predicted.max())] if len(true) else [0, 1]
    ax.plot(ends, ends, color="0.6", linewidth=1, zorder=0)
    ax.scatter(true, predicted, s=14, alpha=0.6, color=TRAINING, edgecolors="none")
    ax.set(xlabel="true", ylabel="predicted", title=f"{len(true)} predictions", aspect="equal")
    return tidy(ax).figure


def confusion(table: ArrayLike, classes: Sequence[str], ax: Axes | None = None) -> Figure | Any:
    """How often each class was predicted for each class: true classes down, predicted ones across.

    Args:
        table: counts, shape (classes, classes).
        classes: the names of the classes.
        ax: axes to draw on.

    Returns:
        The figure.

    Example:
        >>> from funcbp import plot
        >>> plot.confusion([[5, 1], [0, 4]], ("no", "yes")).axes[0].get_title()
        '1 of 10 misclassified'
    """
    table = np.asarray(table)
    side = 2.5 + 0.5 * len(classes)
    ax = new_axes(min(side, 12), min(side, 12)) if ax is None else ax
    ax.imshow(table, cmap="Blues", vmin=0)
    if len(classes) <= 30:
        for (i, j), count in np.ndenumerate(table):
            ink = "white" if count > 0.6 * table.max() else "black" if i != j else "0.3"
            ax.text(j, i, str(count), ha="center", va="center", color=ink, weight="bold" if count and i != j else None)
        ax.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
        ax.set_yticks(range(len(classes)), classes)
    wrong = table.sum() - np.trace(table)
    ax.set(xlabel="predicted", ylabel="true", title=f"{wrong:,} of {table.sum():,} misclassified")
    return ax.figure


def decision_boundaries(
    predict: Callable[[PyTree, np.ndarray], ArrayLike],
    stages: Mapping[str, PyTree],
    x: ArrayLike,
    t: ArrayLike,
    low: float = 0.0,
    high: float = 1.0,
    points: int = 120,
    axes: np.ndarray | Any = None,
) -> Figure | Any:
    """What a network of two inputs and one output says about the plane, at several stages of its training.

    Red is the high class, blue the low one; the black line is where it cannot tell.

    Args:
        predict: `predict(params, x)` for inputs (points, 2), with outputs (points,) or (points, 1).
        stages: the parameters of each stage, by what to write above it.
        x: the examples' inputs, shape (examples, 2).
        t: their targets, shape (examples,) or (examples, 1); those above the middle are drawn red.
        low: the output for the low class.
        high: the output for the high class.
        points: how many along each side of a picture.
        axes: as many axes as there are stages.

    Returns:
        The figure.

    Example:
        >>> from funcbp import data, plot
        >>> x, t = data.xor()
        >>> stages = {"at the beginning": 0.0, "at the end": 1.0}
        >>> figure = plot.decision_boundaries(lambda w, x: w * x[:, 0], stages, x, t)
        >>> [ax.get_title() for ax in figure.axes]
        ['at the beginning', 'at the end']
    """
    x, t, middle = np.asarray(x, float), np.ravel(t), (low + high) / 2
    axes = new_axes(3.0 * len(stages), 3.2, len(stages)) if axes is None else axes
    ends = [(side.min() - 0.15 * np.ptp(side), side.max() + 0.15 * np.ptp(side)) for side in x.T]
    across, up = (np.linspace(*end, points) for end in ends)
    plane = np.stack(np.meshgrid(across, up), -1).reshape(-1, 2).astype(np.float32)
    for ax, (title, params) in zip(np.atleast_1d(axes), stages.items(), strict=True):
        said = np.clip(np.asarray(predict(params, plane), float).reshape(points, points), low, high)
        ax.imshow(said, origin="lower", extent=(*ends[0], *ends[1]), cmap=SIGNED, vmin=low, vmax=high, alpha=0.6)
        if said.min() < middle < said.max():
            ax.contour(across, up, said, [middle], colors="black", linewidths=1)
        for which, colour in ((t > middle, POSITIVE), (t <= middle, NEGATIVE)):
            ax.scatter(*x[which].T, s=18, color=colour, edgecolors="white", linewidths=0.5)
        ax.set(title=title, xticks=[], yticks=[], aspect="auto")
    return np.atleast_1d(axes)[0].figure
