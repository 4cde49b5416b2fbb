"""How learning went, over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from .canvas import COLOURS, TRAINING, VALIDATION, legend, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def learning_curves(
    records: Sequence[Mapping[str, float]], score: str = "accuracy", axes: Sequence[Axes] | None = None
) -> Figure | Any:
    """The loss, and the score on the validation set, over the epochs.

    Args:
        records: one dict per epoch with the keys `epoch`, `loss`, `validation_loss` and `validation_<score>`.
        score: what the score is called.
        axes: two axes to draw on, for the loss and for the score.

    Returns:
        The figure.

    Raises:
        TypeError, ValueError: the records are something else, or lack one of the keys.

    Example:
        >>> from funcbp import plot
        >>> record = {"epoch": 1, "loss": 0.5, "validation_loss": 0.6, "validation_accuracy": 0.9}
        >>> len(plot.learning_curves([record]).axes)
        2
    """
    needed = ("epoch", "loss", "validation_loss", f"validation_{score}")
    if not isinstance(records, Sequence) or not all(isinstance(r, Mapping) for r in records) or not records:
        raise TypeError(
            "records is a sequence of dicts, one for each epoch. Columns, as in the history of what funcbp.fit "
            "returns, are drawn by curves: curves({'training': fit.history['loss']})."
        )
    if lacking := [key for key in needed if key not in records[0]]:
        raise ValueError(f"Each record has {', '.join(needed)}, and here there is no {', '.join(lacking)}.")
    losses, scores = new_axes(10, 4, 2) if axes is None else axes
    epochs = [r["epoch"] for r in records]
    marker = "o" if len(records) < 3 else None
    losses.plot(epochs, [r["loss"] for r in records], color=TRAINING, label="training", marker=marker)
    losses.plot(epochs, [r["validation_loss"] for r in records], color=VALIDATION, label="validation", marker=marker)
    if all(value > 0 for r in records for value in (r["loss"], r["validation_loss"])):
        losses.set_yscale("log")
    losses.set(xlabel="epoch", ylabel="loss", title="Loss")
    legend(losses)
    values = np.array([r[f"validation_{score}"] for r in records], float)
    scores.plot(epochs, values, color=VALIDATION, marker=marker)
    last = f"{100 * values[-1]:.1f} %" if score == "accuracy" else f"{values[-1]:.3f}"
    name = {"r2": "R²"}.get(score, score)
    scores.set(xlabel="epoch", ylabel=name, title=f"Validation {name}: {last} at the end")
    later = values[1:] if len(values) > 2 else values
    span = max(later.max() - later.min(), 0.02)
    scores.set_ylim(max(later.min() - 0.08 * span, -1.0), later.max() + 0.08 * span)
    for ax in (losses, scores):
        tidy(ax)
    return losses.figure


def curves(
    runs: Mapping[str, ArrayLike],
    xlabel: str = "epoch",
    ylabel: str = "loss",
    title: str = "",
    log: bool = True,
    ax: Axes | None = None,
    at: ArrayLike | None = None,
) -> Figure | Any:
    """Learning curves side by side: of several runs, such as one per seed, the median and the band of 80 % of them.

    Args:
        runs: by name, numbers of shape (epochs,) or (runs, epochs). Where a run has stopped they are nan, and its curve
            stays at its last number as long as others go on.
        xlabel: what is counted; it begins at 0, unless `at` says otherwise.
        ylabel: what is drawn.
        title: what to write above.
        log: whether the vertical axis is logarithmic; it is not if a number is not positive.
        ax: axes to draw on.
        at: what was counted when each number was taken, shape (epochs,).

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from funcbp import plot
        >>> figure = plot.curves({"batch": np.ones((5, 10)), "online": np.ones(10)})
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['batch: 5 runs', 'online']
    """
    ax = new_axes() if ax is None else ax
    positive = True
    for i, (name, values) in enumerate(runs.items()):
        values = np.atleast_2d(np.asarray(values, float))
        counted = np.arange(values.shape[1]) if at is None else np.asarray(at)[: values.shape[1]]
        there = np.any(np.isfinite(values), axis=0)
        counted, values = counted[there], _held(values[:, there])
        positive = positive and bool(np.nanmin(values, initial=np.inf) > 0)
        low, middle, high = np.nanpercentile(values, [10, 50, 90], axis=0)
        colour, label = COLOURS[i % len(COLOURS)], name if len(values) == 1 else f"{name}: {len(values)} runs"
        ax.plot(counted, middle, color=colour, label=label)
        if len(values) > 1:
            ax.fill_between(counted, low, high, color=colour, alpha=0.2, linewidth=0)
    if log and positive:
        ax.set_yscale("log")
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    legend(ax)
    return tidy(ax).figure


def _held(values: np.ndarray) -> np.ndarray:
    """The last finite number of each row in place of those that are not."""
    last = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(values.shape[1])[None], 0), axis=1)
    return np.take_along_axis(values, last, axis=1)
