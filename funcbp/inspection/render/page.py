"""The ledger as one page of HTML that needs nothing from elsewhere: no network, no script."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

from ..rows import NO_DERIVATIVE, Row
from ..statistics import Statistics
from .graph import size_of_graph, to_svg

__all__ = ["page"]

LARGEST_GRAPH = 40  # boxes; a larger one is no picture any more
STYLE = """
.bp{font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,monospace;color:#1c2330;background:#fff;
padding:12px;max-width:1500px}
.bp h3{font:600 15px/1.4 system-ui,sans-serif;margin:14px 0 6px}
.bp p{font:13px/1.4 system-ui,sans-serif;color:#4a5366;margin:4px 0 8px}
.bp .row{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);border-top:1px solid #e6e9f0}
.bp .row>div{padding:3px 8px;white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.bp .row>div+div{border-left:3px solid #d9dee8;background:#fdf8f6}
.bp .row:hover>div{background:#fff3c4}
.bp .row.off{opacity:.4}
.bp .head>div{font-weight:600;background:#eef1f6!important}
.bp .i,.bp .w{color:#8a93a6}.bp .i{display:inline-block;min-width:3.2em;margin-right:.6em}
.bp b{color:#0b3d91}.bp .row>div+div b{color:#a3341f}
.bp .n{background:#e3ecfb;border-radius:3px;padding:0 4px}
.bp .s{color:#5a6478}.bp .bad{color:#fff;background:#c0261c;border-radius:3px;padding:0 4px}
.bp details{margin-left:10px;border-left:2px solid #dfe4ee}
.bp summary{cursor:pointer;color:#5a6478;padding:2px 6px;font-style:italic}
.bp .graph{overflow:auto;border:1px solid #e6e9f0;margin-top:6px}
"""


def numbers(s: Statistics | None) -> str:
    """A line of statistics."""
    if s is None:
        return '<span class="s">no numbers</span>'
    if s.shape == () or (s.norm == 0 and not s.nonfinite):
        text = f"{s.mean:.5g}" if s.shape == () else "0"
    else:
        text = f"norm {s.norm:.4g} · mean {s.mean:.3g} · {s.min:.3g} … {s.max:.3g}"
    for share, what in ((s.zeros, "zero"), (s.saturated, "saturated")):
        text += f" · {share:.0%} {what}" if share and s.shape != () else ""
    bad = f' <span class="bad">{s.nonfinite:.0%} not finite</span>' if s.nonfinite else ""
    return f'<span class="s">{text}</span>{bad}'


def line(row: Row) -> str:
    """One row of the ledger: the equation going forward, and its line going backward."""
    name = f' <span class="n">{html.escape(row.name)}</span>' if row.name else ""
    left = f'<span class="i">{row.index}</span><b>{html.escape(row.primitive)}</b>{name} {row.shape}'
    where = html.escape(row.place.split(" ")[0] + row.when)  # the function is in the title
    rule = f"<b>{html.escape(row.rule)}</b> {html.escape(row.kind)}" if row.rule else "<b>gradient</b>"
    if row.kind == NO_DERIVATIVE:
        rule = f'<span class="s">{NO_DERIVATIVE}</span>'
    if not row.taken:
        where, rule = "branch not taken", rule + " not taken"
    return (
        f'<div class="row{"" if row.taken else " off"}" title="{html.escape(row.line)}">'
        f"<div>{left} <span class=w>{where}</span> {numbers(row.of_value)}</div>"
        f"<div>{rule} {numbers(row.of_cotangent) if row.kind != NO_DERIVATIVE else ''}</div></div>"
    )


def folded(rows: Sequence[Row], depth: int = 0) -> Iterator[str]:
    """The rows, those of one name scope and those inside one equation in a part that folds."""
    i = 0
    while i < len(rows):
        row = rows[i]
        if row.depth > depth:
            j = next((k for k in range(i, len(rows)) if rows[k].depth <= depth), len(rows))
            yield f"<details open><summary>inside {html.escape(rows[i - 1].primitive)}</summary>"
            yield from folded(rows[i:j], row.depth)
            yield "</details>"
        else:
            same = lambda k, scope=row.scope: rows[k].depth > depth or rows[k].scope == scope
            j = next((k for k in range(i, len(rows)) if not same(k)), len(rows)) if row.scope else i + 1
            if row.scope and depth == row.depth:
                yield f"<details open><summary>{html.escape(row.scope)}</summary>"
                for k in range(i, j):
                    if rows[k].depth == depth:
                        yield line(rows[k])
                    elif rows[k - 1].depth == depth:
                        end = next((m for m in range(k, j) if rows[m].depth <= depth), j)
                        yield f"<details open><summary>inside {html.escape(rows[k - 1].primitive)}</summary>"
                        yield from folded(rows[k:end], rows[k].depth)
                        yield "</details>"
                yield "</details>"
            else:
                yield line(row)
        i = j


def page(value: Any, inputs: Sequence[Row], rows: Sequence[Row]) -> str:
    """The two passes side by side, and the graph if it is small."""
    head = '<div class="row head"><div>forward, downwards ↓</div><div>backward, upwards ↑</div></div>'
    table = "".join(map(line, inputs)) + "".join(folded(rows))
    graph = ""
    if 0 < size_of_graph(inputs, rows) <= LARGEST_GRAPH:
        graph = f'<h3>Graph</h3><div class="graph">{to_svg(inputs, rows)}</div>'
    return (
        f'<div class="bp"><style>{STYLE}</style><h3>{len(rows)} equations, value {float(value):.6g}</h3>'
        "<p>Left: what ran, with its result. Right: the rule that ran on the way back, with the cotangent of that "
        f"result.</p>{head}{table}{graph}</div>"
    )
