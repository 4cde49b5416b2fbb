"""The ledger as text of a hundred columns: a summary by scope, then a line for each equation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from ...jaxpr.types import Value
from ..outline import Group, Outline, outline
from ..rows import NO_DERIVATIVE, Row
from .columns import WIDTH, shortened

__all__ = ["headline", "short_line", "short_type", "summary", "table"]

SUMMARY = 24  # lines, at most
COLUMNS = (("index", 7), ("operation", 22), ("type", 14), ("value", 9), ("cotangent", 9), ("line", 16))
SHORT = re.compile(r"(b?)(float|int|uint|complex)(\d*)")


def table(value: Value, inputs: Sequence[Row], rows: Sequence[Row]) -> str:
    """The whole of it. A value and a cotangent are shown by their norms, of several outputs that of the first that a
    cotangent came back to; behind the line stands what is to be said of them.
    """
    whole = outline(inputs, rows)
    lines = [headline(value, inputs, rows, whole), "", *summary(whole)]
    lines += ["", " ".join(f"{title:<{width}}" for title, width in COLUMNS).rstrip(), "-" * WIDTH]
    return "\n".join([*lines, *(_line(r, whole) for r in (*inputs, *rows))])


def headline(value: Value, inputs: Sequence[Row], rows: Sequence[Row], whole: Outline) -> str:
    """How many equations there are, what they make, and how many are marked."""
    value = value[0] if isinstance(value, tuple) else value
    found = ", ".join(f"{count} {mark}" for mark, count in whole.counts([*inputs, *rows]).items())
    return f"{len(rows):,} equations, value {float(np.real(value)):.6g}" + (f"; {found}" if found else "")


def summary(whole: Outline) -> Iterator[str]:
    """The groups, opened as far as a few lines go: how many equations, the norms of what comes out, the marks."""
    groups = [line for line in whole.lines if isinstance(line.item, Group)]
    shown = Outline(groups, whole.marks).opened(SUMMARY)
    yield f"{'scope':<42} {'rows':>6}  {'value':<9} {'cotangent':<9} marks"
    for line in shown:
        group = line.item
        assert isinstance(group, Group)
        found = ", ".join(f"{count} {mark}" for mark, count in whole.counts(group.rows).items())
        title = _cut("  " * line.level + group.title, 42)
        yield _cut(f"{title:<42} {len(group.rows):>6}  {_norms(group.last)} {found}".rstrip(), WIDTH)


def _line(r: Row, whole: Outline) -> str:
    width = COLUMNS[1][1]
    title = shortened(r.name, width) if r.primitive == "input" else f"{r.operation} {r.name}".rstrip()
    texts = (r.index, "  " * r.depth + title, short_type(r.shape))
    cells = " ".join(f"{_cut(text, width):<{width}}" for text, (_, width) in zip(texts, COLUMNS, strict=False))
    line = short_line(r.place)
    width = COLUMNS[-1][1]
    line = line if len(line) <= width else "…" + line[1 - width :]
    text = f"{cells} {_norms(r)} {line:<{width}} "
    said = list(_said(r, whole))
    while said and len(text) + len(", ".join(said)) > WIDTH:
        said.pop()  # what matters least is last
    return f"{text}{', '.join(said)}".rstrip()


def _said(r: Row, whole: Outline) -> Iterator[str]:
    """What is to be said of a row, what matters most first."""
    if r.kind not in ("", "hand-written"):
        yield r.kind
    if not r.taken:
        yield "not taken"
        return
    if r.when:
        yield r.when.removeprefix(", ").removesuffix(" times")
    yield from dict.fromkeys(mark for marks in whole.marks[id(r)] for mark in marks if mark != "saturated")
    if not r.reached and not r.dead and r.kind != NO_DERIVATIVE:
        yield "stopped"
    if r.of_value is not None and r.kind != NO_DERIVATIVE and r.of_value.shape != ():
        shares = {"zero": r.of_value.zeros, "saturated": r.of_value.saturated}
        yield from (f"{share:.0%} {what}" for what, share in shares.items() if share)


def short_type(shape: str) -> str:
    """The types as JAX writes them: f32[2,3]."""
    letters = lambda m: f"{m[1]}{m[2][0]}{m[3]}"
    return SHORT.sub(letters, shape.replace(", ", ","))


def short_line(line: str) -> str:
    """A line without its folders, its column and its function."""
    return re.sub(r"(?:\S*/)?([^\s/:]+:\d+)(?::\d+)?(?: \(.*\))?$", r"\1", line)


def _norms(r: Row | None) -> str:
    v, c = (None, None) if r is None else (r.of_value, r.of_cotangent)
    return " ".join(f"{'' if s is None else f'{s.norm:.4g}':<9}" for s in (v, c))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
