"""The calls of a user's functions that the rows of a trace are in, for a model without name scopes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .rows import Row

__all__ = ["called"]


@dataclass(eq=False)
class Call:
    """A call of a function, while the equations are gone through.

    Attributes:
        name: of the function.
        called_at: the place of the call in what called it.
        first, last: the places in the function of the call's first equation and of its latest.
        around: the call that it is in, or the program.
        rows: how many equations it has.
    """

    name: str
    called_at: str
    first: str
    last: str
    around: Any
    rows: int = 0

    def goes_on(self, name: str, called_at: str, place: str) -> bool:
        """Whether an equation at that place is of this call: where the function begins again, it was called again."""
        again = place and place == self.first != self.last
        return (self.name, self.called_at) == (name, called_at) and not again


def called(rows: Sequence[Row]) -> list[tuple[tuple[str, str], ...]]:
    """Name the calls that each row is in, outermost first, each with what tells it from others of the same name.

    What is traced is none itself, nor is the body of a loop, and calls of one equation are left out. Those of one
    function in another are numbered: block 0, block 1.
    """
    chains = _chains(rows)
    numbers: dict[Any, dict[int, int]] = {}  # of the calls of one function in the same one
    for call in (c for chain in chains for c in chain if c.rows > 1):
        alike = numbers.setdefault((call.around, call.name), {})
        alike.setdefault(id(call), len(alike))

    def title(call: Call) -> tuple[str, str]:
        alike = numbers[call.around, call.name]
        return f"{call.name} {alike[id(call)]}" if len(alike) > 1 else call.name, str(id(call))

    return [tuple(title(c) for c in chain if c.rows > 1) for chain in chains]


def _chains(rows: Sequence[Row]) -> list[list[Call]]:
    """The calls that each row is in."""
    under_way: dict[tuple[int, ...], list[Call]] = {}
    depths: dict[str, int] = {}  # in how many functions each row is
    chains = []
    for r in rows:
        depths[r.index] = len(r.calls)
        around = (".".join(map(str, r.program[:k])) for k in range(len(r.program), 0, -1))
        outside = next((depths[place] for place in around if place in depths), 0)
        called_at = r.calls[outside][1] if outside < len(r.calls) else ""
        calls, inside = under_way.setdefault(r.program, []), r.calls[outside + 1 :]
        kept = 0
        for call, (name, place) in zip(calls, inside, strict=False):
            if not call.goes_on(name, called_at, place):
                break
            kept, call.last, called_at = kept + 1, place, place
        del calls[kept:]
        for name, place in inside[kept:]:
            calls.append(Call(name, called_at, place, place, calls[-1] if calls else r.program))
            called_at = place
        for call in calls:
            call.rows += 1
        chains.append(list(calls))
    return chains
