"""Where two runs part: equations of two traces matched with one another, and the first that differ in each pass."""

from __future__ import annotations

import functools
import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np

from ..autodiff.arguments import check_callable
from ..autodiff.backward_pass import listed
from ..autodiff.transformations import Backward
from ..jaxpr.types import P, PyTree, Value
from .distance import apart, apart_in, cancelled, coarsest_of, cotangents_of, numbers_of, rms, unit_of
from .ledger import Trace, trace
from .matching import Links, aligned, matched_by_name
from .rows import NO_DERIVATIVE, Row
from .statistics import statistics

Arrays = Trace | Mapping[str, Value]  # a side of a comparison that has been run

__all__ = ["Difference", "Match", "diff"]

FLIPPED = 0.05  # the share of integers or booleans that may differ, where numbers lie at a border


class Match(NamedTuple):
    """An equation, an input or a named value that both sides have.

    Attributes:
        a, b: its rows.
        value: the difference of the values, relative to the larger of both (root mean square), in loops of the step
            with the largest; of integers and booleans the share that differs; inf where one side has another shape, or
            numbers that are not finite; None where a side has none.
        cotangent: likewise of the cotangents.
        noise: up to where a difference of values is rounding.
        noise_back: likewise of cotangents.
        step: inside loops, the first steps in which the values differ beyond noise.
        step_back: the last ones in which the cotangents do.
    """

    a: Row
    b: Row
    value: float | None
    cotangent: float | None
    noise: float
    noise_back: float
    step: tuple[int, ...] = ()
    step_back: tuple[int, ...] = ()

    @property
    def values_differ(self) -> bool:
        return self.value is not None and self.value > self.noise

    @property
    def cotangents_differ(self) -> bool:
        return self.cotangent is not None and self.cotangent > self.noise_back


class Difference:
    """What `diff` returns: where two runs part, going forward and going back. It is true if they do.

    Attributes:
        matches: the equations, inputs and named values that both sides have, in the order of the first side; a `Match`
            each.
        value: the first of them whose values differ beyond noise, or None.
        cotangent: the first, going back, whose cotangents do, or None.
        only_a, only_b: the rows that one side has alone.
    """

    def __init__(self, a: Trace, b: Trace, ulps: float, by_name: bool = False):
        rows = [[*side.inputs, *side.rows, *_output(side)] for side in (a, b)]
        self._named_only = by_name
        self._links = [Links(side) for side in rows]
        coarsest = [coarsest_of(side) for side in rows]
        rows = [[r for r in side if r.name or not by_name] for side in rows]
        if by_name and not {r.name for r in rows[0]} & {r.name for r in rows[1]}:
            there = [listed(dict.fromkeys(r.name for r in side)) for side in rows]
            raise ValueError(f"No name is on both sides: on the first there are {there[0]}, on the second {there[1]}.")
        gradients = [numbers_of(r.cotangent) for side in (a, b) for r in side.inputs]
        largest = max((float(rms(g)) for g in gradients if g is not None), default=0.0)
        pairs = matched_by_name(rows[0], rows[1]) if by_name else aligned(rows[0], rows[1], ulps, self._links)
        whole = max((unit for side in coarsest for unit in side.values()), default=0.0)
        self.matches: list[Match] = []
        for i, (x, y) in enumerate(pairs):
            until = max(coarsest[0][id(x)], coarsest[1][id(y)])
            counts = i, 2 * len(pairs) - i  # a cotangent comes from all values and the way back to it
            self.matches.append(self._match(counts, x, y, ulps, (until, whole), largest))
        self._by_row = {id(row): m for m in self.matches for row in (m.a, m.b)}
        known = {id(r) for pair in pairs for r in pair}
        self.only_a, self.only_b = ([r for r in side if id(r) not in known] for side in rows)
        everything = {id(m): True for m in self.matches}
        carried = [everything if by_name else self._carried(back) for back in (False, True)]
        self.value = self._first([m for m in self.matches if m.values_differ and carried[0][id(m)]], back=False)
        found = [m for m in reversed(self.matches) if m.cotangents_differ and carried[1][id(m)]]
        self.cotangent = self._first(found, back=True)

    def _match(
        self, before: Sequence[int], a: Row, b: Row, ulps: float, units: Sequence[float], largest: float
    ) -> Match:
        """Compare two rows; `before` and `units` are of the value and of the cotangent: equations, and one ulp."""
        loops = a.loops if a.loops == b.loops else 0
        grown, grown_back = (ulps * (1 + math.sqrt(n) / 8) for n in before)  # rounding adds up
        lost = max(cancelled(row, links.operands(row)) for row, links in zip((a, b), self._links, strict=True))
        noise = grown * lost * units[0] if unit_of(*a.values, *b.values) else FLIPPED
        noise_back = grown_back * units[1]
        value, step = _largest(apart_in(a.values, b.values, loops), noise, 0)
        cotangent, step_back = _largest(apart_in(cotangents_of(a), cotangents_of(b), loops), noise_back, -1)
        gradient = numbers_of(a.cotangent) if a.primitive == "input" else None
        if gradient is not None and cotangent is not None and float(rms(gradient)) < noise_back * largest:
            cotangent = cotangent * float(rms(gradient)) / largest  # zero but for rounding
        return Match(a, b, value, cotangent, noise, noise_back, step, step_back)

    def _carried(self, back: bool) -> dict[int, bool]:
        """Whether each difference is still there in what comes after; otherwise it is what rounding left of a zero."""
        carried: dict[int, bool] = {}
        for m in self.matches if back else reversed(self.matches):
            after, waiting = [], self._next(0, m.a, not back)
            while waiting:  # through what has no counterpart
                row = waiting.pop()
                n = self._by_row.get(id(row))
                after += [] if n is None else [n]
                waiting += self._next(0, row, not back) if n is None else []
            differ = lambda n: (n.cotangents_differ if back else n.values_differ) and carried.get(id(n), True)
            carried[id(m)] = not after or any(map(differ, after))
        return carried

    def _first(self, found: Sequence[Match], back: bool) -> Match | None:
        """The first of these; inside a loop that of the first step that differs, going back of the last."""
        if not found:
            return None
        outermost = lambda m: m.a.index.split(".")[0]
        at = [m for m in found if outermost(m) == outermost(found[0])] if found[0].a.index else found[:1]
        inside = [m for m in at if m.a.depth]
        if back and len(inside) < len(at):
            return next(m for m in at if not m.a.depth)
        if not inside:
            return at[0]
        return max(inside, key=lambda m: m.step_back) if back else min(inside, key=lambda m: m.step)

    def __bool__(self) -> bool:
        return self.value is not None or self.cotangent is not None

    def operands(self, match: Match) -> list[Row]:
        """The rows of the first side that go into an equation, as far as a differentiated value is in them."""
        return self._links[0].operands(match.a)

    def _next(self, side: int, row: Row, back: bool) -> list[Row]:
        """What goes in: the operands, or going back the equations that a value is an operand of."""
        return self._links[side].consumers(row) if back else self._links[side].operands(row)

    def growth(self) -> list[tuple[str, float]]:
        """How the difference of the values goes on from where it begins: (title, relative difference) of what is named,
        and of the outermost program's equations where nothing is.
        """
        if self.value is None:
            return []
        later = [m for m in self.matches[self.matches.index(self.value) :] if m.value is not None]
        shown = [m for m in later[1:] if m.a.name] or [m for m in later[1:] if not m.a.depth]
        return [(m.a.title, m.value) for m in (later[0], *shown) if m.value is not None]

    def __str__(self) -> str:
        lines = []
        if self.value is not None:
            lines += self._told(self.value, back=False)
            grown = self.growth()
            few = grown[:: max(1, len(grown) // 5)]
            few = few if few[-1] == grown[-1] else [*few, grown[-1]]
            lines.append("  From there it goes on: " + ", ".join(f"{title} {size:.2g}" for title, size in few) + ".")
        if self.cotangent is not None:
            lines += self._told(self.cotangent, back=True)
        if not self:
            values = [m.value for m in self.matches if m.value is not None]
            lines.append(f"No value and no cotangent differs beyond noise; the most is {max(values, default=0.0):.2g}.")
        lines.append(f"{len(self.matches)} equations, inputs and named values are on both sides.")
        for side, rows in (("first", self.only_a), ("second", self.only_b)):
            if rows:
                lines.append(f"{len(rows)} {'is' if len(rows) == 1 else 'are'} on the {side} side alone:")
                lines += [f"  {r.title} at {r.place}" if r.place else f"  {r.title}" for r in rows[:3]]
                lines += ["  ..."] if len(rows) > 3 else []
        return "\n".join(lines)

    def _told(self, m: Match, back: bool) -> list[str]:
        """Where the values, or going back the cotangents, part: how far, what both sides have there, what enters it."""
        sides = [cotangents_of(r) if back else r.values for r in (m.a, m.b)]
        sizes = [-1.0 if d is None else float(np.max(d, initial=0.0)) for d in map(apart, *sides)]
        lines = self._parting(m, back)
        for side, arrays in zip(("first", "second"), sides, strict=True):
            lines.append(f"  {side}: {statistics(arrays[int(np.argmax(sizes))])}")
        return lines if self._named_only else [*lines, *self._entering(m, back)]

    def _parting(self, m: Match, back: bool) -> list[str]:
        """The sentence of where they part, and by how much."""
        what = f"value {m.a.name!r}" if m.a.name and m.a.primitive == "name" else f"`{m.a.primitive}`"
        what = f"argument {m.a.name!r}" if m.a.primitive == "input" else what
        places, libraries = (
            list(dict.fromkeys(filter(None, of))) for of in ((m.a.line, m.b.line), (m.a.library, m.b.library))
        )
        where = f" at {' and '.join(places)}" if places else ""
        size, noise, step = (m.cotangent, m.noise_back, m.step_back) if back else (m.value, m.noise, m.step)
        when = f" in loop step {', '.join(map(str, step))}" if step else ""
        text = f"{size:.2g} of its size, and up to {noise:.2g} is rounding" if size != math.inf else "of another kind"
        name = "Going back, the cotangents part at the" if back else "The values part at the"
        return [f"{name} {what}{where}{when}: the difference is {text}.", *(f"  in {lib}" for lib in libraries)]

    def _entering(self, m: Match, back: bool) -> list[str]:
        """How far what enters there differs: operands, or the cotangents that come back; and what follows from it."""
        pairs = enumerate((m.a, m.b))
        around = [r for k, of in pairs for r in self._next(k, of, back) if not k or id(r) not in self._by_row]
        lines = []
        for row in around:
            other = self._by_row.get(id(row))
            of = None if other is None else other.cotangent if back else other.value
            said = "has no counterpart" if of is None else f"differs by {of:.2g}"
            at = f"{row.title} at {row.place}" if row.place else row.title
            lines.append(f"  {'the cotangent of' if back else 'operand'} {at} {said}")
        differ = [self._by_row.get(id(r)) for r in around]
        if back and around and not any(o is None or o.cotangents_differ or o.values_differ for o in differ):
            lines.append(
                "  What comes back agrees, and so do the values: a rule is another, of "
                f"{listed(r.title for r in around)}, or a gradient is stopped on one side."
            )
        if back and any(o is not None and o.values_differ for o in differ):
            lines.append("  The values there differ, too.")
        if not back and around and not any(o is None or o.values_differ for o in differ):
            lines.append("  What goes in agrees: the operation, or a constant in it, differs.")
        return lines

    def __repr__(self) -> str:
        return f"Difference({str(self).splitlines()[0]!r})"

    def _repr_html_(self) -> str:
        return f"<pre style='overflow:auto'>{html.escape(str(self))}</pre>"


def _output(side: Trace) -> list[Row]:
    """A row for what the function returned."""
    if not side.outputs:
        return []
    value = np.asarray(side.value[0] if isinstance(side.value, tuple) else side.value)
    return [Row("", "output", values=(value,), cotangents=(np.ones_like(value),), inputs=side.outputs)]


def _largest(found: np.ndarray | None, noise: float, which: int) -> tuple[float | None, tuple[int, ...]]:
    """The largest difference of all steps, and the first or last step that has one beyond noise."""
    if found is None:
        return None, ()
    beyond = np.argwhere(found > noise)
    return float(np.max(found, initial=0.0)), tuple(map(int, beyond[which])) if len(beyond) else ()


def _as_trace(arrays: Mapping[str, Value] | Any) -> Trace:
    """Named arrays as a trace: each a value, or a pair of a value and its gradient, of which one may be None."""
    rows: list[Row] = []
    for name, given in arrays.items():
        value, cotangent = given if isinstance(given, tuple) else (given, None)
        value, cotangent = (None if x is None else np.asarray(x) for x in (value, cotangent))
        rows.append(
            Row(
                str(len(rows)),
                "name",
                kind="" if cotangent is not None else NO_DERIVATIVE,
                name=name,
                values=() if value is None else (value,),
                cotangents=() if cotangent is None else (cotangent,),
            )
        )
    return Trace(None, [], rows, ())


@overload
def diff(f: Arrays, other: Arrays, *, ulps: float = 8.0) -> Difference: ...


@overload
def diff(
    f: Callable[P, PyTree],
    other: Callable[..., PyTree] | tuple[PyTree, ...],
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
    *,
    ulps: float = 8.0,
    backward: Backward | None = None,
) -> Callable[P, Difference]: ...


def diff(
    f: Arrays | Callable[..., PyTree],
    other: Arrays | Callable[..., PyTree] | tuple[PyTree, ...],
    argnums: int | Sequence[int] | None = None,
    has_aux: bool = False,
    *,
    ulps: float = 8.0,
    backward: Backward | None = None,
) -> Difference | Callable[..., Difference]:
    """Find where two runs part: the first value, and going back the first cotangent, that differ beyond rounding.

    Equations are matched by name, by scope, operation and shape, and by their order, as far as both sides have them;
    what one side has alone is passed over. Two values agree if their difference (root mean square) is no more than some
    ulps of the coarser type, a few more for each equation before, of cotangents for those of both passes, and for a sum
    more by as much as its terms are larger than it is; what is found must be carried on to the next equation.

    Args:
        f: a function with a scalar output; or a `Trace`, or a dict of named arrays.
        other: another function, of the same arguments; or a tuple, the other arguments of `f`; or, if `f` is a `Trace`
            or a dict, a `Trace` or a dict. A dict has arrays by name, from anywhere: values, or pairs (value, gradient)
            one of which may be None. Its names are those of `funcbp.name` and of inputs, `dense_0/kernel`.
        argnums, has_aux, backward: as in `funcbp.trace`, for both sides.
        ulps: how many ulps of the coarser type are noise.

    Returns:
        A `Difference`; or, of functions, a function of their arguments that returns one. It is false where the two
        agree, and prints what differs, with operands and lines.

    Raises:
        TypeError: the two sides are of kinds that cannot be compared.
        ValueError: there are named arrays on a side, and none of their names is on the other.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> exact = lambda w, x: jnp.sum(bp.name(jax.nn.gelu(x @ w, approximate=False), "h") ** 2)
        >>> tanh = lambda w, x: jnp.sum(bp.name(jax.nn.gelu(x @ w, approximate=True), "h") ** 2)
        >>> w, x = jnp.eye(2), jnp.array([[1.0, 2.0]])
        >>> found = bp.diff(exact, tanh)(w, x)
        >>> bool(found), found.value.a.name, bool(bp.diff(exact, exact)(w, x))
        (True, 'h', False)
        >>> bp.diff(exact, (2 * w, x))(w, x).value.a.name
        'w'
    """
    sides = (f, other)
    if all(isinstance(s, Trace | Mapping) for s in sides):
        a, b = (s if isinstance(s, Trace) else _as_trace(s) for s in sides)
        return Difference(a, b, ulps, by_name=any(isinstance(s, Mapping) for s in sides))
    if not callable(f) or not (callable(other) or isinstance(other, tuple)):
        raise TypeError(
            "diff compares two functions, a function with itself on other arguments (a tuple), or two sides that are "
            f"traces or dicts of named arrays; it was given {type(f).__name__} and {type(other).__name__}."
        )
    check_callable(f, argnums, has_aux)
    traced = functools.partial(trace, argnums=argnums, has_aux=has_aux, backward=backward)

    @functools.wraps(f)
    def compared(*args: PyTree, **kwargs: PyTree) -> Difference:
        first = traced(f)(*args, **kwargs)
        second = traced(other)(*args, **kwargs) if callable(other) else traced(f)(*other, **kwargs)
        return Difference(first, second, ulps)

    return compared
