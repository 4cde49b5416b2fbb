"""A network as circles and lines, as the textbooks draw it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ...jaxpr.types import PyTree
from .canvas import NEGATIVE, POSITIVE, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_UNITS = 24
MOST_LABELS = 9, 4  # of a kernel and of a bias
RADIUS = 0.3


def network(
    params: Mapping[str, PyTree] | Sequence[PyTree],
    values: Sequence[ArrayLike] | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Figure | Any:
    """A layered network drawn: inputs left, outputs right, on each edge its weight.

    Red edges are positive and blue ones negative, the wider the larger. A grey unit that is always 1 stands below each
    layer whose next one has biases. Numbers are written if they are few.

    Args:
        params: the layers in their order, as a dict or a sequence; a layer is a dict with a `kernel` of shape (in, out)
            and perhaps a `bias` of shape (out,), or a kernel alone.
        values: an array per layer, shape (units,), inputs first, to write into the units, such as their outputs or
            their deltas.
        title: what to write above.
        ax: axes to draw on.

    Returns:
        The figure.

    Raises:
        ValueError: the layers do not fit each other, or have more than 24 units.

    Example:
        >>> import numpy as np
        >>> from funcbp import plot
        >>> hidden = {"kernel": np.array([[0.15, 0.25], [0.20, 0.30]]), "bias": np.array([0.35, 0.35])}
        >>> figure = plot.network([hidden, np.array([[0.40], [0.45]])])
        >>> [t.get_text() for t in figure.axes[0].texts if t.get_text().startswith("0.1")]
        ['0.15']
    """
    layers = [_layer(p) for p in (params.values() if isinstance(params, Mapping) else params)]
    sizes = [layers[0][0].shape[0], *(kernel.shape[1] for kernel, _ in layers)]
    _check(layers, sizes, values)
    tallest = max(sizes)
    ax = new_axes(2.6 * len(sizes), max(0.95 * (tallest + 1), 2.5)) if ax is None else ax
    gap = 1.1 * max(2.0, tallest / 3)  # from layer to layer; units are 1 apart
    places = [[(i * gap, (n - 1) / 2 - j) for j in range(n)] for i, n in enumerate(sizes)]
    lowest = -(tallest - 1) / 2
    largest = max([float(np.abs(a).max()) for layer in layers for a in layer if a is not None and a.size], default=1.0)
    for i, (kernel, bias) in enumerate(layers):
        labelled = kernel.size <= MOST_LABELS[0]
        for (j, k), w in np.ndenumerate(kernel):
            _edge(ax, places[i][j], places[i + 1][k], w, largest, labelled, 0.27 + 0.12 * (k % 2))
        if bias is not None:
            one = (i * gap, lowest - 1)
            labelled = labelled and len(bias) <= MOST_LABELS[1]
            for k, b in enumerate(bias):
                _edge(ax, one, places[i + 1][k], b, largest, labelled, 0.27 + 0.12 * (k % 2))
            _unit(ax, one, "1", "0.85", 0.7 * RADIUS)
    for i, layer in enumerate(places):
        letter, many = "i" if i == 0 else "o" if i == len(layers) else "h", len(sizes) > 3 and 0 < i < len(layers)
        for j, place in enumerate(layer):
            name = f"{letter}{i}.{j + 1}" if many else f"{letter}{j + 1}"
            _unit(ax, place, name if values is None else f"{name}\n{_number(np.ravel(values[i])[j])}", "white", RADIUS)
    ax.set(aspect="equal", title=title, xlim=(-0.5, gap * (len(sizes) - 1) + 0.5))
    ax.set_ylim(lowest - (1.35 if any(bias is not None for _, bias in layers) else 0.5), -lowest + 0.5)
    ax.set_axis_off()
    return ax.figure


def _layer(layer: PyTree) -> tuple[np.ndarray, np.ndarray | None]:
    """The kernel and the bias."""
    if not isinstance(layer, Mapping):
        return np.asarray(layer, float), None
    bias = layer.get("bias")
    return np.asarray(layer["kernel"], float), None if bias is None else np.asarray(bias, float)


def _check(
    layers: Sequence[tuple[np.ndarray, np.ndarray | None]], sizes: Sequence[int], values: Sequence[ArrayLike] | None
) -> None:
    for (kernel, _), n in zip(layers, sizes, strict=False):
        if kernel.ndim != 2 or kernel.shape[0] != n:
            raise ValueError(
                f"A kernel of shape (units of the layer before, units) is drawn, and one is {kernel.shape}."
            )
    if max(sizes) > MOST_UNITS:
        raise ValueError(
            f"A layer of {max(sizes)} units is too large to be drawn with its edges, {MOST_UNITS} are the most; "
            "plot.weights shows it as an image."
        )
    if values is not None and [np.size(v) for v in values] != list(sizes):
        raise ValueError(f"There are layers of {list(sizes)} units, and values for {[np.size(v) for v in values]}.")


def _unit(ax: Axes, place: tuple[float, float], text: str, colour: str, radius: float) -> None:
    around = np.linspace(0, 2 * math.pi, 60)
    x, y = place
    ax.fill(x + radius * np.cos(around), y + radius * np.sin(around), facecolor=colour, edgecolor="black", zorder=3)
    ax.text(x, y, text, ha="center", va="center", fontsize=9, zorder=4)


def _edge(
    ax: Axes,
    a: tuple[float, float],
    b: tuple[float, float],
    weight: float,
    largest: float,
    labelled: bool,
    at: float,
) -> None:
    """A line, and at a part of the way the weight, written along it."""
    size = abs(weight) / largest if largest else 0.0
    colour = POSITIVE if weight >= 0 else NEGATIVE
    ax.plot(*zip(a, b, strict=True), color=colour, linewidth=0.4 + 2.6 * size, alpha=0.3 + 0.6 * size, zorder=1)
    if labelled:
        (x0, y0), (x1, y1) = a, b
        ax.text(
            x0 + at * (x1 - x0),
            y0 + at * (y1 - y0),
            _number(weight),
            rotation=math.degrees(math.atan2(y1 - y0, x1 - x0)),
            transform_rotates_text=True,
            rotation_mode="anchor",
            ha="center",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            zorder=2,
        )


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
