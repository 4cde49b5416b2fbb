"""The ledger as one page of HTML that needs nothing from elsewhere: a script draws the lines that are seen."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...jaxpr.types import Value
from ..outline import FACTOR, MARKS, Group, Outline, outline
from ..rows import NO_DERIVATIVE, Row
from ..statistics import Statistics
from .graph import size_of_graph, to_svg
from .table import headline, short_type, summary

__all__ = ["document", "file_beside", "page", "script_with"]

LARGEST_GRAPH = 40  # boxes; a larger one is no picture any more


def page(value: Value, inputs: Sequence[Row], rows: Sequence[Row]) -> str:
    """The page as a part of another one, such as a notebook: the two passes side by side, the graph if it is small.

    Where scripts do not run, the summary by scope is there as text.
    """
    return _fragment(value, inputs, rows, "")


def document(value: Value, inputs: Sequence[Row], rows: Sequence[Row]) -> str:
    """The page as a file."""
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Both passes</title>'
    head += '<meta name="viewport" content="width=device-width,initial-scale=1">'
    return f"{head}<body style='margin:0'>{_fragment(value, inputs, rows, ' whole')}</body></html>"


def _fragment(value: Value, inputs: Sequence[Row], rows: Sequence[Row], whole: str) -> str:
    found = outline(inputs, rows)
    title = headline(value, inputs, rows, found)
    graph = ""
    if 0 < size_of_graph(inputs, rows) <= LARGEST_GRAPH:
        graph = f'<details class="graph" open><summary>Graph</summary><div>{to_svg(inputs, rows)}</div></details>'
    text = html.escape("\n".join([title, "", *summary(found)]))
    data = {"title": title, "marks": list(MARKS), "factor": FACTOR, "lines": _lines(inputs, rows, found)}
    return (
        f'<div class="bp{whole}"><style>{file_beside("page.css")}</style><pre class="plain">{text}</pre>'
        f"{script_with(data, 'page.js')}{graph}</div>"
    )


def file_beside(name: str) -> str:
    """The text of a file in this folder."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def script_with(data: object, name: str) -> str:
    """The data, and the script beside this file that reads them. A number that is not finite is a string."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return f'<script type="application/json">{text}</script><script>{file_beside(name)}</script>'


def _lines(inputs: Sequence[Row], rows: Sequence[Row], whole: Outline) -> list[dict[str, Any]]:
    """The lines of the outline; what is empty or as usual is left out."""
    at = {id(line.item): i for i, line in enumerate(whole.lines)}
    makers, readers = _links(inputs, rows)
    lines = []
    for item, level, end in whole.lines:
        if isinstance(item, Group):
            last = item.last
            line = {"group": item.title, "rows": len(item.rows), "counts": whole.counts(item.rows)}
            line |= {} if last is None else _sizes(last)
        else:
            of_value, of_cotangent = whole.marks[id(item)]
            line = {
                "index": item.index,
                "op": item.operation,
                "name": item.name,
                "type": short_type(item.shape),
                "line": item.line,
                "scope": item.scope,
                "rule": item.rule,
                "kind": _remark(item),
                "when": item.when.removeprefix(", ") if item.taken else "not taken",
                "off": item.dead or not item.taken,
                "of": of_value,
                "back": of_cotangent,
                "from": [at[id(r)] for r in makers.get(id(item), ())],
                "to": [at[id(r)] for r in readers.get(id(item), ())],
                **_sizes(item),
            }
        lines.append({"level": level, "end": end} | {k: v for k, v in line.items() if v})
    return lines


def _remark(row: Row) -> str:
    """What is to be said of its rule, if anything."""
    if not (row.reached or row.dead or row.kind == NO_DERIVATIVE):
        return "stopped"
    return "" if row.kind == "hand-written" else row.kind


def _sizes(row: Row) -> dict[str, Any]:
    """The statistics of a row's value and of its cotangent."""
    value = row.of_value if row.taken else None
    cotangent = row.of_cotangent if row.taken and row.kind != NO_DERIVATIVE else None
    return {"value": _numbers(value, row.value), "cotangent": _numbers(cotangent, row.cotangent)}


def _numbers(s: Statistics | None, x: Value) -> dict[str, Any] | None:
    if s is None:
        return None
    shares = {"zero": s.zeros, "saturated": s.saturated, "not finite": s.nonfinite}
    shares = {what: round(share, 4) for what, share in shares.items() if share}
    if np.shape(x) == () and not np.iscomplexobj(x):
        return {"norm": _number(s.norm), "is": _number(float(x))} | shares
    return {k: _number(getattr(s, k)) for k in ("norm", "mean", "min", "max")} | shares


def _number(x: float) -> float | str:
    return float(f"{x:.5g}") if math.isfinite(x) else str(x)


def _links(inputs: Sequence[Row], rows: Sequence[Row]) -> tuple[dict[int, list[Row]], dict[int, list[Row]]]:
    """Which rows made the operands of a row, and which read what it made: of its own program."""
    made = {(r.program, slot): r for r in (*inputs, *rows) for slot in r.outputs if slot is not None}
    makers: dict[int, list[Row]] = {}
    readers: dict[int, list[Row]] = {}
    for r in rows:
        for maker in dict.fromkeys(made[key] for slot in r.inputs if (key := (r.program, slot)) in made):
            makers.setdefault(id(r), []).append(maker)
            readers.setdefault(id(maker), []).append(r)
    return makers, readers
