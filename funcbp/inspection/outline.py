"""The rows of a trace nested as the model is: inputs by their paths, equations by scopes and the loops they are in;
where there are no scopes, by the functions that were called.

What both the table and the page begin with stands here, and so do the marks: which values and cotangents are large,
vanishing, saturated or not finite, and which equations are dead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from .called import called
from .rows import NO_DERIVATIVE, Row

__all__ = ["FACTOR", "MARKS", "Group", "Line", "Outline", "outline"]

FACTOR = 1000.0  # so many times the median norm of its pass is large, and a value so many times below it vanishes
MOSTLY = 0.5  # the share of a bounded unit's outputs near a bound from which the value counts as saturated
MARKS = ("not finite", "vanishing", "large", "saturated", "dead")  # what matters most first


@dataclass
class Group:
    """Rows that belong together, and groups of such, in the order they ran.

    Attributes:
        title: the last part of the scope or path, or what the rows are inside of.
        lines: the rows and groups in it.
        rows: all rows in it, those of its groups too.
        last: the row whose sizes stand for the group's: of what a derivative goes through, the last that is no deeper
            than any other; None where there is none.
    """

    title: str
    lines: list[Group | Row] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    @property
    def last(self) -> Row | None:
        alive = [r for r in self.rows if r.taken and r.of_value is not None and r.kind != NO_DERIVATIVE and r.reached]
        return max(reversed(alive), key=lambda r: -r.depth, default=None)


class Line(NamedTuple):
    """A line of the outline: a row or a group, how deep it is, and the number of the line after what is in it."""

    item: Group | Row
    level: int
    end: int


class Outline(NamedTuple):
    """Everything in one list, each group before what is in it.

    Attributes:
        lines: all of them.
        marks: of each row, by identity, what is to be said of its value and of its cotangent.
    """

    lines: list[Line]
    marks: dict[int, tuple[list[str], list[str]]]

    def opened(self, most: int) -> Iterator[Line]:
        """The lines that are seen if as many levels of groups are open as leave at most so many of them, or one."""
        levels = [line.level for line in self.lines]
        deepest = max((n for n in set(levels) if sum(level <= n for level in levels) <= most), default=0)
        return (line for line in self.lines if line.level <= deepest)

    def counts(self, rows: Sequence[Row]) -> dict[str, int]:
        """How many of these rows bear each mark."""
        found = Counter(mark for r in rows for mark in {*self.marks[id(r)][0], *self.marks[id(r)][1]})
        return {mark: found[mark] for mark in MARKS if found[mark]}


def outline(inputs: Sequence[Row], rows: Sequence[Row]) -> Outline:
    """Nest the rows, and mark them."""
    top = Group("")
    _nest(top, inputs, [(("inputs", ""), *((part, "") for part in r.name.split("/")[:-1])) for r in inputs])
    _nest(top, rows, _paths(rows))
    return Outline(_flat(top, 0, 0), _marks([*inputs, *rows]))


Path = tuple[tuple[str, str], ...]  # titles, each with what tells it from another of the same title


def _paths(rows: Sequence[Row]) -> list[Path]:
    """The groups that each row is in: the loops and branches around it, and between those the scopes or calls."""
    calls: Sequence[Path] = [()] * len(rows) if any(r.scope for r in rows) else called(rows)
    found: dict[str, tuple[Row, Path]] = {}
    paths = []
    for r, functions in zip(rows, calls, strict=True):
        around: Path = ()
        known: list[str] = []
        for k in range(len(r.program), 0, -1):  # the equation around it: a branch has its own number behind that
            place = ".".join(map(str, r.program[:k]))
            if place in found:
                parent, path = found[place]
                branch = r.program[k:]
                title = f"inside {parent.primitive}" + (f", program {branch[0]}" if branch else "")
                title += f", on {parent.devices} devices" if parent.devices > 1 else ""
                around, known = (*path, (title, ".".join(map(str, r.program)))), parent.scope.split("/")
                break
        parts = [part for part in r.scope.split("/") if part]
        shared = len(list(takewhile(lambda ab: ab[0] == ab[1], zip(parts, known, strict=False))))
        path = (*around, *((part, "") for part in parts[shared:]), *functions)
        found[r.index] = (r, path)
        paths.append(path)
    return paths


def _nest(top: Group, rows: Sequence[Row], paths: Sequence[Path]) -> None:
    """Add rows to a group, each in the groups of its path; what follows each other in the same groups shares them."""
    open_groups: list[Group] = [top]
    before: Path = ()
    for r, path in zip(rows, paths, strict=True):
        shared = len(list(takewhile(lambda ab: ab[0] == ab[1], zip(path, before, strict=False))))
        del open_groups[1 + shared :]
        for title, _ in path[shared:]:
            group = Group(title)
            open_groups[-1].lines.append(group)
            open_groups.append(group)
        open_groups[-1].lines.append(r)
        for group in open_groups:
            group.rows.append(r)
        before = path


def _flat(group: Group, level: int, start: int) -> list[Line]:
    lines: list[Line] = []
    for item in group.lines:
        inside = _flat(item, level + 1, start + len(lines) + 1) if isinstance(item, Group) else []
        lines += [Line(item, level, start + len(lines) + 1 + len(inside)), *inside]
    return lines


def _marks(rows: Sequence[Row]) -> dict[int, tuple[list[str], list[str]]]:
    """What is to be said of each row's value and cotangent."""
    shown = [r for r in rows if r.taken and r.kind != NO_DERIVATIVE and r.reached]
    typical_value = _median([r.of_value.norm for r in shown if r.of_value is not None])
    typical_cotangent = _median([r.of_cotangent.norm for r in shown if r.of_cotangent is not None])
    marks: dict[int, tuple[list[str], list[str]]] = {}
    for r in rows:
        value: list[str] = []
        cotangent: list[str] = []
        marks[id(r)] = (value, cotangent)
        v, c = (r.of_value, r.of_cotangent) if r.taken else (None, None)
        if r.dead:
            cotangent.append("dead")
        if r.dead or r.kind == NO_DERIVATIVE:  # an infinity that masks, say: where it does harm, there is another row
            continue
        if v is not None:
            if v.nonfinite:
                value.append("not finite")
            elif v.norm > FACTOR * typical_value:
                value.append("large")
            if v.saturated is not None and v.saturated > MOSTLY:
                value.append("saturated")
        if c is not None and r.reached:
            if c.nonfinite:
                cotangent.append("not finite")
            elif c.norm > FACTOR * typical_cotangent:
                cotangent.append("large")
            elif c.norm * FACTOR < typical_cotangent and np.prod(c.shape):
                cotangent.append("vanishing")
    return marks


def _median(norms: Sequence[float]) -> float:
    known = [n for n in norms if np.isfinite(n) and n > 0]
    return float(np.median(known)) if known else np.inf
