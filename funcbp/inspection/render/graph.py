"""The graph of a program, drawn without help: as text for Graphviz and Mermaid, and as SVG."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import NamedTuple

from ..rows import NO_DERIVATIVE, Row

__all__ = ["to_dot", "to_mermaid", "to_svg"]

WIDTH, HEIGHT, GAP_X, GAP_Y = 190, 58, 84, 30


class Edge(NamedTuple):
    """A value that goes from one row to another, and the local derivative on its way back."""

    source: int
    target: int
    label: str


def nodes_and_edges(inputs: Sequence[Row], rows: Sequence[Row]) -> tuple[list[Row], list[Edge]]:
    """The rows of the outermost program, inputs first, and what goes from one to another."""
    nodes = [*inputs, *(r for r in rows if not r.program)]
    made = {slot: i for i, r in enumerate(nodes) for slot in r.outputs if slot is not None}
    edges = []
    for i, r in enumerate(nodes[len(inputs) :], len(inputs)):
        if r.kind == NO_DERIVATIVE:
            continue
        for j, slot in enumerate(r.inputs):
            if slot in made:
                local = r.locals[j] if j < len(r.locals) else None
                edges.append(Edge(made[slot], i, "" if local is None else f"{local:.4g}"))
    used = {e.source for e in edges} | {e.target for e in edges}
    keep = [i for i, r in enumerate(nodes) if i in used or r.primitive == "input"]
    number = {i: k for k, i in enumerate(keep)}
    return [nodes[i] for i in keep], [Edge(number[a], number[b], label) for a, b, label in edges]


def lines_of(row: Row) -> list[str]:
    """What stands in a box: the title, the value, the gradient."""
    title = row.name if row.primitive == "input" else f"{row.operation} {row.name}".strip()
    if row.value is None:
        return [title, "", ""]
    if row.value.size == 1 and row.of_value is not None:
        grad = "" if row.cotangent is None else f"grad {row.cotangent.item():.4g}"
        return [title, f"value {row.value.item():.4g}", grad]
    shape = "x".join(map(str, row.value.shape))
    value, ct = row.of_value, row.of_cotangent
    norms = [f"|{what}| {s.norm:.4g}" if s is not None else "" for what, s in (("value", value), ("grad", ct))]
    return [f"{title} {shape}", *norms]


def to_dot(inputs: Sequence[Row], rows: Sequence[Row]) -> str:
    """The graph for Graphviz: a record per value, local derivatives on the edges."""
    nodes, edges = nodes_and_edges(inputs, rows)
    escape = lambda s: "".join("\\" + c if c in '\\"{}|<>' else c for c in s)
    boxes = [f'  n{i} [label="{{{"|".join(map(escape, lines_of(r)))}}}"];' for i, r in enumerate(nodes)]
    arrows = [f'  n{a} -> n{b} [label="{label}"];' for a, b, label in edges]
    return "\n".join(["digraph funcbp {", "  rankdir=LR;", "  node [shape=record];", *boxes, *arrows, "}"])


def to_mermaid(inputs: Sequence[Row], rows: Sequence[Row]) -> str:
    """The graph for Mermaid."""
    nodes, edges = nodes_and_edges(inputs, rows)
    escape = lambda s: s.replace('"', "#quot;").replace("|", "&#124;").replace("<", "&lt;").replace(">", "&gt;")
    boxes = [f'  n{i}["{"<br/>".join(escape(s) for s in lines_of(r) if s)}"]' for i, r in enumerate(nodes)]
    arrows = [f"  n{a} -->{f'|{label}|' if label else ''} n{b}" for a, b, label in edges]
    return "\n".join(["flowchart LR", *boxes, *arrows])


def ranks(count: int, edges: Sequence[Edge]) -> list[int]:
    """The column of each node: one more than that of the last node it needs; an input stands before its first use."""
    rank = [0] * count
    for a, b, _ in sorted(edges, key=lambda e: e.target):
        rank[b] = max(rank[b], rank[a] + 1)
    has_inputs = {e.target for e in edges}
    for i in range(count):
        uses = [rank[e.target] for e in edges if e.source == i]
        if i not in has_inputs and uses:
            rank[i] = min(uses) - 1
    return rank


def positions(count: int, edges: Sequence[Edge]) -> list[tuple[int, int]]:
    """Column and row of each node: in each column, by the mean row of what a node needs."""
    rank = ranks(count, edges)
    row: dict[int, float] = {}
    place: dict[int, tuple[int, int]] = {}
    for column in range(max(rank, default=0) + 1):
        here = [i for i in range(count) if rank[i] == column]
        before = lambda i: [row[e.source] for e in edges if e.target == i and e.source in row]
        here.sort(key=lambda i: (sum(before(i)) / len(before(i)) if before(i) else len(row), i))
        for k, i in enumerate(here):
            row[i], place[i] = k, (column, k)
    return [place[i] for i in range(count)]


def to_svg(inputs: Sequence[Row], rows: Sequence[Row]) -> str:
    """The graph as SVG that needs nothing from elsewhere."""
    nodes, edges = nodes_and_edges(inputs, rows)
    places = positions(len(nodes), edges)
    x = lambda i: 12 + places[i][0] * (WIDTH + GAP_X)
    y = lambda i: 12 + places[i][1] * (HEIGHT + GAP_Y)
    wide = max((x(i) for i in range(len(nodes))), default=0) + WIDTH + 12
    high = max((y(i) for i in range(len(nodes))), default=0) + HEIGHT + GAP_Y + 12
    parts = []
    incoming = [[k for k, e in enumerate(edges) if e.target == i] for i in range(len(nodes))]
    for k, (a, b, label) in enumerate(edges):
        port = (incoming[b].index(k) + 1) / (len(incoming[b]) + 1)  # each arrow ends at its own height
        x0, y0, x1, y1 = x(a) + WIDTH, y(a) + HEIGHT / 2, x(b), y(b) + HEIGHT * port
        between = [y(i) for i in range(len(nodes)) if places[a][0] < places[i][0] < places[b][0]]
        if between:  # below the boxes that are in between
            low = max(between) + HEIGHT + 8 + 3 * (k % 5)
            path = f"M{x0} {y0} C{x0 + 40} {y0} {x0 + 20} {low} {x0 + 60} {low} L{x1 - 60} {low} "
            path += f"C{x1 - 20} {low} {x1 - 40} {y1} {x1 - 3} {y1}"
        else:
            bend = (x0 + x1) / 2
            path = f"M{x0} {y0} C{bend} {y0} {bend} {y1} {x1 - 3} {y1}"
        parts.append(f'<path class="edge" d="{path}"/>')
        if label:
            parts.append(f'<text class="local" x="{x1 - 8}" y="{y1 - 4}" text-anchor="end">{html.escape(label)}</text>')
    for i, r in enumerate(nodes):
        title, value, grad = (html.escape(_cut(s)) for s in lines_of(r))
        css = "box input" if r.primitive == "input" else "box"
        parts.append(
            f'<g class="node"><title>{html.escape(r.line)}</title>'
            f'<rect class="{css}" x="{x(i)}" y="{y(i)}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
            f'<text class="head" x="{x(i) + 10}" y="{y(i) + 18}">{title}</text>'
            f'<text x="{x(i) + 10}" y="{y(i) + 34}">{value}</text>'
            f'<text class="grad" x="{x(i) + 10}" y="{y(i) + 50}">{grad}</text></g>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" '
        f'font-family="ui-monospace, monospace" font-size="12">{STYLE}{MARKER}{"".join(parts)}</svg>'
    )


def _cut(text: str, longest: int = 25) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


STYLE = (
    "<style>.box{fill:#fff;fill:light-dark(#fff,#1d222b);stroke:#778}.input{fill:#eef3fb;fill:light-dark(#eef3fb,#22304a)}"
    "text{fill:#223;fill:light-dark(#223,#dfe3ea)}.head{font-weight:bold}.edge{fill:none;stroke:#889;marker-end:url(#tip)}"
    ".grad,.local{fill:#a3341f;fill:light-dark(#a3341f,#ff9b7d)}.local{font-size:11px}"
    ".node:hover .box{stroke:#a3341f;stroke-width:2}</style>"
)
MARKER = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="#889"/></marker></defs>'
)


def size_of_graph(inputs: Sequence[Row], rows: Sequence[Row]) -> int:
    """How many boxes the picture has."""
    return len(nodes_and_edges(inputs, rows)[0])
