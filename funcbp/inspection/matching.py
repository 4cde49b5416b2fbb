"""The rows of two traces matched with one another: an alignment, by what they are called, do and make."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

from .distance import apart, numbers_of, rms, unit_of
from .rows import Row

__all__ = ["Links", "aligned", "matched_by_name"]


class Links:
    """Which rows of a trace make what others take."""

    def __init__(self, rows: Sequence[Row]):
        self.makers = {(r.program, slot): r for r in rows for slot in r.outputs if slot is not None}
        self.takers: dict[int, list[Row]] = {}
        for r in rows:
            for maker in self.operands(r):
                self.takers.setdefault(id(maker), []).append(r)

    def operands(self, row: Row) -> list[Row]:
        found = (self.makers.get((row.program, slot)) for slot in row.inputs if slot is not None)
        return [r for r in found if r is not None]

    def consumers(self, row: Row) -> list[Row]:
        return list(self.takers.get(id(row), ()))


def aligned(a: Sequence[Row], b: Sequence[Row], ulps: float, links: Sequence[Links]) -> list[tuple[Row, Row]]:
    """Match the rows of two traces: in order, by name, then by operation and value, by scope, operation and shape, and
    by operation and shape; at last those that have the same value in another order.
    """
    keys: Sequence[Callable[[Row], Hashable]] = (
        lambda r: (r.name, np.shape(r.value)) if r.name else None,
        lambda r: None if r.name else (r.primitive, np.shape(r.value), _about(r)),
        lambda r: (r.primitive, np.shape(r.value), r.scope, r.depth),
        lambda r: (r.primitive, np.shape(r.value)),
    )
    pairs = list(_in_order(range(len(a)), range(len(b)), a, b, keys))
    same = lambda x, y: _agree(a[x], b[y], ulps)
    differing = [(i, j) for i, j in pairs if not a[i].name and not same(i, j)]
    wrong = set(differing)
    pairs = [p for p in pairs if p not in wrong]
    left, right = ({p[k] for p in pairs} for k in (0, 1))
    there: dict[Hashable, list[int]] = {}
    for j in range(len(b)):
        if j not in right and not b[j].name:
            there.setdefault(keys[1](b[j]), []).append(j)
    for i in range(len(a)):
        same_size = [] if i in left or a[i].name or _about(a[i]) is None else there.get(keys[1](a[i]), [])
        j = next((j for j in same_size if same(i, j)), -1)
        if j >= 0:
            same_size.remove(j)
            pairs.append((i, j))
    left, right = ({p[k] for p in pairs} for k in (0, 1))
    partners = {id(a[i]): id(b[j]) for i, j in (*pairs, *differing)}
    known = {*partners, *partners.values()}
    shared = lambda ours, theirs: any(partners.get(id(x)) == id(y) for x in ours for y in theirs)

    def alike(i: int, j: int) -> bool:
        """Whether two equations whose values differ are one, as one of their operands is; or as what takes them is,
        where all operands are others; or both their neighbours.
        """
        before, others = (side.operands(row) for side, row in zip(links, (a[i], b[j]), strict=True))
        if before and others:
            if a[i].primitive == "output" or shared(before, others):
                return True
            replaced = known.isdisjoint(map(id, (*before, *others)))
            return replaced and shared(links[0].consumers(a[i]), links[1].consumers(b[j]))
        if not (0 < i < len(a) - 1 and 0 < j < len(b) - 1):
            return False
        return all(partners.get(id(a[i + d])) == id(b[j + d]) for d in (-1, 1))

    pairs += [(i, j) for i, j in differing if i not in left and j not in right and alike(i, j)]
    return [(a[i], b[j]) for i, j in sorted(pairs)]


def _about(row: Row) -> Hashable:
    """The size and the mean of a value to five digits; None where many values might have them, such as constants."""
    x = numbers_of(row.value)
    if x is None or x.size == 1:
        return None
    size = float(rms(x))
    return f"{size:.4e} {np.mean(x):.4e}" if size not in (0, 1) and np.isfinite(size) else None


def matched_by_name(a: Sequence[Row], b: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Match what bears the same name, the first with the first, in the order of the first side."""
    there: dict[str, list[Row]] = {}
    for r in b:
        there.setdefault(r.name, []).append(r)
    return [(r, there[r.name].pop(0)) for r in a if there.get(r.name)]


def _in_order(
    left: Sequence[int],
    right: Sequence[int],
    a: Sequence[Row],
    b: Sequence[Row],
    keys: Sequence[Callable[[Row], Hashable]],
) -> Iterator[tuple[int, int]]:
    """Match what has the same key, in order, and what is between by the next key."""
    if not keys or not left or not right:
        return
    key, *rest = keys
    ours, theirs = ([key(rows[i]) for i in of] for rows, of in ((a, left), (b, right)))
    i = j = 0
    for k, m in (*_common(ours, theirs), (len(left), len(right))):
        yield from _in_order(left[i:k], right[j:m], a, b, rest)
        if k < len(left):
            yield left[k], right[m]
        i, j = k + 1, m + 1


def _common(a: Sequence[Hashable], b: Sequence[Hashable]) -> list[tuple[int, int]]:
    """A longest common subsequence of two sequences of keys, None being like nothing: the places in both.

    A row of the table of lengths is one integer, whose bit is 0 where the length grows (H. Hyyrö, "Bit-parallel
    LCS-length computation revisited", 2004).
    """
    where: dict[Hashable, int] = {}
    for j, key in enumerate(b):
        if key is not None:
            where[key] = where.get(key, 0) | 1 << j
    row = every = (1 << len(b)) - 1
    table = []
    for key in a:
        same = row & where.get(key, 0)
        row = ((row + same) | (row - same)) & every
        table.append(row)
    grows = lambda i, j: not table[i] >> j & 1
    found, i, j = [], len(a), len(b)
    while i and j:
        if not grows(i - 1, j - 1):
            j -= 1
            continue
        i -= 1
        if not i or not grows(i - 1, j - 1):
            j -= 1
            found.append((i, j))
    return found[::-1]


def _agree(a: Row, b: Row, ulps: float) -> bool:
    found = apart(a.value, b.value)
    return found is None or float(found) <= max(ulps * unit_of(a.value, b.value), 0.0)
