"""Pictures of a trace: how gradients flow through the layers, how values spread, where units are saturated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...inspection.ledger import Trace
from ...inspection.render.graph import lines_of, nodes_and_edges, positions
from ...inspection.rows import Row
from ...rules.traits import traits_of
from .canvas import legend, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["gradient_flow", "graph", "histograms", "saturation"]

VALUE, COTANGENT = "#0b3d91", "#a3341f"


BOXES = 200  # that a graph of a legible size has at most


def _axes(ax: Axes | None, width: float = 7, height: float = 4.5) -> Axes:
    """The axes given, or those of a new figure, of so many inches."""
    return new_axes(width, height) if ax is None else ax


def _layers(trace: Trace) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(label, value, cotangent) of each parameter, those stacked along a loop's steps one by one."""
    layers = []
    looped = {s for r in trace.rows for s in r.along if s is not None}
    for r in trace.inputs:
        if r.outputs[0] in looped and r.value.ndim > 1:
            pairs = zip(r.value, r.cotangent, strict=True)
            layers += [(f"{r.name}[{i}]", v, c) for i, (v, c) in enumerate(pairs)]
        else:
            layers.append((r.name, r.value, r.cotangent))
    return layers


def gradient_flow(trace: Trace, ax: Axes | None = None) -> Axes:
    """The size of each parameter's gradient: the root mean square, and the largest element, on a logarithmic scale.

    Gradients that shrink or grow layer by layer show as a slope.

    Args:
        trace: what `funcbp.trace` returned.
        ax: matplotlib axes to draw on; by default new ones.

    Returns:
        The axes.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> t = bp.trace(lambda p, x: jnp.sum(jnp.tanh(x @ p["w"])))({"w": jnp.ones((2, 2))}, jnp.ones((1, 2)))
        >>> bp.plot.gradient_flow(t).get_ylabel()
        'gradient'
    """
    layers = _layers(trace)
    sizes = [(name, np.sqrt(np.mean(np.abs(c) ** 2)), np.max(np.abs(c), initial=0)) for name, _, c in layers]
    ax = _axes(ax, width=max(7.0, 0.17 * len(sizes)))
    at = np.arange(len(sizes))
    ax.plot(at, [m for _, _, m in sizes], "o", color=COTANGENT, alpha=0.35, label="largest element")
    ax.plot(at, [s for _, s, _ in sizes], "o-", color=COTANGENT, label="root mean square")
    ax.set(ylabel="gradient", title="Gradient flow")
    ax.set_yscale("symlog", linthresh=max(1e-12, min((s for _, s, _ in sizes if s > 0), default=1e-12)))
    turned = {"rotation": 90, "fontsize": 8} if len(sizes) > 20 else {"rotation": 60, "ha": "right"}
    ax.set_xticks(at, [name for name, _, _ in sizes], **turned)
    ax.grid(axis="y", alpha=0.3)
    legend(ax)
    return ax


RECTIFIERS = {"max", "relu"}  # an operation, and the functions of that name, JAX's and ours


def _units(trace: Trace) -> list[Row]:
    """The rows of activations: named values if there are any; otherwise results of bounded and rectifying units."""
    named = [r for r in trace.rows if r.primitive == "name" and r.value is not None]
    is_unit = lambda r: r.operation in RECTIFIERS or traits_of(r.operation).bounds is not None
    return named or [r for r in trace.rows if is_unit(r) and r.value is not None]


def histograms(trace: Trace, ax: Axes | None = None, of: str = "cotangent", bins: int = 60) -> Axes:
    """How the values or the cotangents of each activation spread: one histogram above the other, first layer on top.

    Args:
        trace: what `funcbp.trace` returned.
        ax: matplotlib axes to draw on; by default new ones.
        of: `"cotangent"` or `"value"`.
        bins: how many.

    Returns:
        The axes.

    Raises:
        ValueError: `of` is neither.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> t = bp.trace(lambda p, x: jnp.sum(jnp.tanh(x @ p["w"])))({"w": jnp.ones((2, 2))}, jnp.ones((1, 2)))
        >>> bp.plot.histograms(t, of="value").get_xlabel()
        'value'
    """
    if of not in ("cotangent", "value"):
        raise ValueError(f'of is "cotangent" or "value", and was {of!r}.')
    ax = _axes(ax)
    rows = _units(trace)
    arrays = [np.asarray(getattr(r, of), np.float64) for r in rows]
    arrays = [a[np.isfinite(a)].ravel() for a in arrays]
    ends = [np.quantile(np.abs(a), 0.999) for a in arrays if a.size]
    edge = max(ends, default=1.0) or 1.0
    edges = np.linspace(-edge, edge, bins + 1)
    for i, a in enumerate(arrays):
        counts, _ = np.histogram(np.clip(a, -edge, edge), edges)
        height = counts / np.maximum(1, np.max(counts))
        base = len(rows) - 1 - i
        color = COTANGENT if of == "cotangent" else VALUE
        ax.stairs(base + 0.9 * height, edges, baseline=base, fill=True, color=color, alpha=0.75)
    labels = [f"{r.index} {r.title}" for r in rows]
    ax.set_yticks(np.arange(len(rows))[::-1], labels)
    ax.set(xlabel=of, title=f"Spread of the {of}s", ylim=(0, max(1, len(rows))))
    return ax


def saturation(trace: Trace, ax: Axes | None = None) -> Axes:
    """The share of each unit layer's outputs that are saturated or zero: where little or nothing can be learned.

    Args:
        trace: what `funcbp.trace` returned.
        ax: matplotlib axes to draw on; by default new ones.

    Returns:
        The axes.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> t = bp.trace(lambda p, x: jnp.sum(jnp.tanh(x @ p["w"])))({"w": jnp.ones((2, 2))}, jnp.ones((1, 2)))
        >>> bp.plot.saturation(t).get_xlabel()
        'share of outputs'
    """
    ax = _axes(ax)
    rows = [
        r for r in trace.rows if r.of_value is not None and (r.of_value.saturated is not None or r in _units(trace))
    ]
    bounded = [r.of_value.saturated or 0.0 for r in rows]  # type: ignore[union-attr]
    zero = [r.of_value.zeros for r in rows]  # type: ignore[union-attr]
    at = np.arange(len(rows))[::-1]
    for shares, up, colour, label in (
        (bounded, 0.2, COTANGENT, "saturated (within 1 % of a bound)"),
        (zero, -0.2, VALUE, "zero"),
    ):
        bars = ax.barh(at + up, shares, 0.38, color=colour, label=label)
        ax.bar_label(bars, [f"{100 * share:.0f} %" for share in shares], padding=3, fontsize=8)  # where there is no bar
    ax.set_yticks(at, [f"{r.index} {r.title}" for r in rows])
    ax.set(xlim=(0, 1.15), xticks=np.linspace(0, 1, 6), xlabel="share of outputs", title="Saturation")
    legend(ax, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize=8)
    return ax


def graph(trace: Trace, ax: Axes | None = None) -> Axes:
    """The graph of the outermost program: a box per value with its value and its gradient, derivatives on the arrows.

    Args:
        trace: what `funcbp.trace` returned.
        ax: matplotlib axes to draw on; by default new ones.

    Returns:
        The axes.

    Raises:
        ValueError: there are more than 200 values, of which nothing could be read.

    Example:
        >>> import funcbp as bp
        >>> bp.plot.graph(bp.trace(lambda a, b: a * b)(2.0, 3.0)).get_title()
        '3 values'
    """
    nodes, edges = nodes_and_edges(trace.inputs, trace.rows)
    if len(nodes) > BOXES:
        raise ValueError(
            f"A graph of {len(nodes):,} values could not be read: it has {BOXES} at most. Cut the trace, t[:50] or "
            "t.at(scope=...), or look at the page, t.to_html()."
        )
    places = positions(len(nodes), edges)
    letters = max((len(line) for row in nodes for line in lines_of(row)), default=0)
    across, down = (max((p[i] for p in places), default=0) + 1 for i in (0, 1))
    ax = _axes(ax, width=max(7.0, across * (0.075 * letters + 0.4)), height=max(4.5, 0.8 * down))
    incoming = [[k for k, e in enumerate(edges) if e.target == i] for i in range(len(nodes))]
    for k, (a, b, label) in enumerate(edges):
        port = 0.3 - 0.6 * (incoming[b].index(k) + 1) / (len(incoming[b]) + 1)
        start, end = (places[a][0] + 0.36, -places[a][1]), (places[b][0] - 0.36, -places[b][1] + port)
        far = places[b][0] - places[a][0] > 1
        style = f"arc3,rad={0.25 if far else 0.0}"
        arrow = dict(arrowstyle="->", color="#889", connectionstyle=style, shrinkA=0, shrinkB=0)
        ax.annotate("", end, start, arrowprops=arrow)
        if label:
            ax.text(end[0] - 0.03, end[1] + 0.02, label, color=COTANGENT, fontsize=8, ha="right", va="bottom")
    for (x, y), row in zip(places, nodes, strict=True):
        face = "#eef3fb" if row.primitive == "input" else "white"
        box = dict(boxstyle="round,pad=0.4", facecolor=face, edgecolor="#556")
        ax.text(x, -y, "\n".join(lines_of(row)), ha="center", va="center", fontsize=8, bbox=box)
    ax.set(xlim=(-0.6, max((x for x, _ in places), default=0) + 0.6))
    ax.set(ylim=(-max((y for _, y in places), default=0) - 0.7, 0.7))
    ax.set_title(f"{len(nodes)} values")
    ax.axis("off")
    return ax
