"""Tables of measurements: what is in a cell, how a table is printed, what is written as JSON."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Target(NamedTuple):
    """Where a number must land: at most `bound`, or at least."""

    bound: float
    at_least: bool = False

    def verdict(self, value: float) -> str:
        met = value >= self.bound if self.at_least else value <= self.bound
        return "met" if met else "missed"

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"


class Cell(NamedTuple):
    """A number with its quartiles and its target, as far as it has them; or a remark instead of a number."""

    value: float | None = None
    quartiles: tuple[float, float] | None = None
    target: Target | None = None
    remark: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return self.remark
        text = f"{self.value:,.0f}" if self.value >= 100 else f"{self.value:.2f}"
        if self.quartiles:
            text += " [{:.2f}, {:.2f}]".format(*self.quartiles)
        if self.target:
            text += f" ({self.target}: {self.target.verdict(self.value)})"
        return text

    def as_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"value": self.value} if self.value is not None else {"remark": self.remark}
        if self.quartiles:
            out["quartiles"] = list(self.quartiles)
        if self.target and self.value is not None:
            out |= {"target": str(self.target), "verdict": self.target.verdict(self.value)}
        return out


class Row(NamedTuple):
    """A workload's cells, by column."""

    name: str
    cells: dict[str, Cell]
    refused: bool = False


class Table(NamedTuple):
    """Rows under the same columns."""

    title: str
    columns: tuple[str, ...]
    rows: list[Row]


def spread(ratios: np.ndarray, target: Target | None = None) -> Cell:
    """The median of pairwise ratios with its quartiles."""
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return Cell(float(median), (float(low), float(high)), target)


def markdown(table: Table) -> str:
    """The table in Markdown, with a title."""
    lines = [("workload", *table.columns), ("---",) * (len(table.columns) + 1)]
    for row in table.rows:
        lines.append((row.name, *(str(row.cells.get(c, Cell(remark="-"))) for c in table.columns)))
    return f"### {table.title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_json(table: Table) -> dict[str, Any]:
    """The table as plain data."""
    rows = [{"workload": r.name, **{c: cell.as_json() for c, cell in r.cells.items()}} for r in table.rows]
    return {"title": table.title, "rows": rows}
