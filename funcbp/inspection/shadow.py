"""A program run equation by equation beside its float64 shadow, to see where digits are lost.

Each value is held with what float64 makes of the same program. Of an equation's error three parts are known: what its
operands' errors become in it, what it rounds away itself (its result against float64 on the very operands it got), and
both together. Loops are run step by step, and decisions (branches taken, integers, masks) are those of the program.

Which losses matter is found by going back over what ran: an error is felt as far as it is still there, relative to the
values it went into, on its way to the value or the gradient.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import jaxpr as jx
from ..cotangents import Moves
from ..jaxpr.types import AnyJaxpr, Aval, JaxprEqn, Value
from ..rules.traits import traits_of
from .replay import Located
from .widened import is_float, why_not_wide, widen, widened_equation

__all__ = ["Pair", "Rounding", "beside_shadow", "relative"]

ZERO = 2.0**-40  # of the largest part of a gradient: what is smaller is what float64 has left of a zero


@dataclass(eq=False)
class Rounding:
    """What one equation does to the digits of its result; inside a loop in each step.

    The errors are relative to the size of the shadow's result (root mean square), and at most 1: no digit is left.

    Attributes:
        index: in which order the equations ran first.
        primitive: the equation's primitive.
        operation: the operation of the program; on the way back, the one whose rule the equation is part of.
        backward: whether it is in the backward pass.
        name: the name of a value named by `funcbp.name`; otherwise "".
        scope, line: its name scope, and `file:line (function)` of the user's program.
        library: the line inside a library, or "".
        dtype, shape: of its first floating-point result.
        steps: the numbers of the loop steps around it, for each time that it ran.
        went_in: the largest error among the operands, each time.
        came_in: what the operands' errors became in the result.
        added: what the equation itself rounded away.
        total: both together: the error of the result.
        overflowed, underflowed, flushed: how many numbers became infinite, smaller than the smallest normal one, or
            zero here, which in float64 they do not.
        decided: how many decisions (integers, booleans, whole numbers) float64 would have taken otherwise.
        opaque: why it could not be run in float64, or "": the errors behind it are counted anew.
        felt: how much of its result's error is still there in the value or the gradient.
        bits: how many bits fewer the result has than the operands had.
    """

    index: int
    primitive: str
    operation: str
    backward: bool
    name: str
    scope: str
    line: str
    library: str
    dtype: np.dtype
    shape: tuple[int, ...]
    steps: list[tuple[int, ...]] = field(default_factory=list)
    went_in: list[float] = field(default_factory=list)
    came_in: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    overflowed: int = 0
    underflowed: int = 0
    flushed: int = 0
    decided: int = 0
    opaque: str = ""
    felt: float = 0.0
    bits: float = 0.0
    origins: tuple[frozenset[str], ...] = ()  # the operations that made each operand, where numbers are only moved
    constants: tuple[float, ...] = ()  # operands that are single numbers nobody computed
    of: float = 0.0  # one ulp of 1 in the widest type among the operands

    @property
    def where(self) -> str:
        """The user's line, and the library's."""
        return ", in ".join(filter(None, (self.line, self.library)))

    @property
    def unit(self) -> float:
        """One ulp of 1 in the result's type, by which errors are given in ulps."""
        return float(jnp.finfo(self.dtype).eps)

    def ulps(self, errors: float | Sequence[float]) -> np.ndarray | Any:
        """Express relative errors in ulps of the result's type."""
        return np.asarray(errors) / self.unit

    @property
    def weight(self) -> float:
        """By what losses are ranked: the bits lost, and how much of the error is felt."""
        return self.bits * self.felt

    @property
    def cancels(self) -> bool:
        """Whether what is lost is what its operands' errors grew by, more than its own rounding."""
        grown = np.subtract(self.came_in, self.went_in)
        return float(np.maximum(grown, 0).sum()) > float(np.sum(self.added))


class Run(NamedTuple):
    """An equation, one time that it ran."""

    row: Rounding
    total: float
    gained: float  # the error of the result beyond that of the operands
    makers: tuple[int, ...]
    origins: frozenset[str]
    moves: bool  # whether it only moves or chooses numbers


@dataclass(eq=False)
class Pair:
    """A value, and what float64 makes of it.

    Attributes:
        actual: the program's value.
        shadow: a float64 array; of what is no number, the value itself.
        error: the relative error.
        makers: the runs that it came out of.
        rows: what it was stacked of, by a loop.
    """

    actual: Value
    shadow: Value
    error: float = 0.0
    makers: tuple[int, ...] = ()
    rows: Sequence[Pair] | None = None

    def at(self, i: int) -> Pair:
        """What a loop's step of this number reads of it."""
        if self.rows is not None:
            return self.rows[i]
        actual = _parts(self.actual)[i]
        if not is_float(self.actual):
            return Pair(actual, actual, 0.0, self.makers)
        shadow = np.asarray(self.shadow)[i]
        error = relative(_wide(actual) - shadow, shadow) if self.error else 0.0
        return Pair(actual, shadow, error, self.makers)


def relative(error: np.ndarray, shadow: np.ndarray) -> float:
    """The size of an error relative to the shadow's, at most 1; where the shadow is not finite nothing is asked."""
    finite = np.isfinite(shadow)
    with np.errstate(all="ignore"):
        wrong, size = _rms(error[finite]), _rms(shadow[finite])
        if not wrong:
            return 0.0
        return float(min(1.0, wrong / size)) if size and np.isfinite(wrong) else 1.0


def _rms(x: np.ndarray) -> float:
    """Root mean square, without overflow."""
    largest = float(np.max(np.abs(x), initial=0.0))
    return largest * float(np.sqrt(np.mean(np.abs(x / largest) ** 2))) if largest and np.isfinite(largest) else largest


def beside_shadow(jaxpr: AnyJaxpr, args: Sequence[Value]) -> tuple[list[Rounding], list[Pair]]:
    """Run a program on these arguments beside its shadow, and say what was lost where.

    Returns:
        A row for each equation, and the outputs.
    """
    visitor = Shadowing()
    outs = jx.run(jaxpr, [visitor.constant(x) for x in args], visitor)
    _blame(visitor.runs, outs)
    return list(visitor.rows.values()), outs


class Shadowing(Located):
    """Holds each value beside its shadow, and writes down what happens to its digits."""

    def __init__(self) -> None:
        super().__init__()
        self.around: tuple[int, ...] = ()
        self.rows: dict[tuple[int, ...], Rounding] = {}
        self.runs: list[Run] = []

    @contextmanager
    def within(self, eqn: JaxprEqn, kind: jx.Kind) -> Iterator[None]:
        outside, self.around = self.around, (*self.around, id(eqn))
        with super().within(eqn, kind):
            yield
        self.around = outside

    def constant(self, x: Value) -> Pair:
        with jax.enable_x64(True):
            return Pair(x, widen(x))

    def number(self, x: Pair) -> Value:
        return x.actual

    def row(self, x: Pair, i: int) -> Pair:
        return x.at(i)

    def stack(self, rows: Sequence[Pair], aval: Aval) -> Pair:
        actual = super().stack([jnp.asarray(p.actual) for p in rows], aval)
        if not rows or not is_float(actual):
            return self.constant(actual)
        shadow = np.stack([np.asarray(p.shadow) for p in rows])
        makers = tuple({m: None for p in rows for m in p.makers})
        return Pair(actual, shadow, relative(_wide(actual) - shadow, shadow), makers, list(rows))

    def equation(self, eqn: JaxprEqn, args: list[Pair]) -> list[Pair]:
        actual = jx.bind_eqn(eqn, [a.actual for a in args])
        if not eqn.outvars:  # it prints, or writes
            return []
        if not any(is_float(x) for x in (*actual, *(a.actual for a in args))):
            return [Pair(x, x) for x in actual]
        row = self.row_of(eqn, actual, args)
        with jax.enable_x64(True):
            exact, shadow = self.wide_results(eqn, args, actual, row)
            follows = [is_float(x) and not traits_of(eqn.primitive).step for x in actual]
            for x, s, f in zip(actual, shadow, follows, strict=True):
                row.decided += 0 if f else _differing(x, s)
            shadow = [s if f else widen(x) for x, s, f in zip(actual, shadow, follows, strict=True)]
            numbers = [tuple(map(_wide, xs)) for f, *xs in zip(follows, actual, exact, shadow, strict=True) if f]
        number, wrong = self.write(row, numbers, args)
        totals = iter(wrong)
        return [
            Pair(x, s, next(totals) if f else 0.0, (number,)) for x, s, f in zip(actual, shadow, follows, strict=True)
        ]

    def row_of(self, eqn: JaxprEqn, actual: Sequence[Value], args: Sequence[Pair]) -> Rounding:
        """The row of an equation, a new one where it runs for the first time."""
        place = (*self.around, id(eqn))
        if place not in self.rows:
            scope, name = self.scope_of(eqn), eqn.primitive.name
            line, library = self.lines_of(eqn)
            backward, rule = "transpose(" in scope, re.search(r"(\w+)_bwd\)*$", scope)
            made_by = [self.runs[m].row for a in args for m in a.makers[-1:]]
            if not line and made_by:  # the sum of two cotangents
                line, library = made_by[-1].line, made_by[-1].library
                backward = any(r.backward for r in made_by)
            into = [jx.type_of(a.actual) for a in args if is_float(a.actual)]
            shown = next((jx.type_of(x) for x in actual if is_float(x)), None) or into[0]
            self.rows[place] = Rounding(
                index=len(self.rows),
                primitive=name,
                operation=rule[1] if backward and rule else name,
                backward=backward,
                name=eqn.params["name"] if name == "name" else "",
                scope=scope,
                line=line,
                library=library,
                dtype=shown.dtype,
                shape=shown.shape,
                of=min(float(jnp.finfo(t.dtype).eps) for t in into or [shown]),
                origins=tuple(frozenset().union(*(self.runs[m].origins for m in a.makers)) for a in args),
                constants=tuple(
                    np.asarray(a.actual).item() for a in args if not a.makers and np.size(a.actual) == 1 and _is_real(a)
                ),
            )
        return self.rows[place]

    def wide_results(self, eqn: JaxprEqn, args: Sequence[Pair], actual: Sequence[Value], row: Rounding) -> Any:
        """What float64 makes of the program's operands, and of the shadow's."""
        opaque = why_not_wide(eqn)
        if not opaque:
            try:
                exact = widened_equation(eqn, [widen(a.actual) for a in args])
                if not any(a.error for a in args):
                    return exact, exact
                return exact, widened_equation(eqn, [a.shadow for a in args])
            except Exception as error:  # a kernel, which takes its own types and no others
                opaque = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        row.opaque = opaque
        wide = list(map(widen, actual))
        return wide, wide

    def write(self, row: Rounding, numbers: Sequence[tuple[np.ndarray, ...]], args: Sequence[Pair]) -> Any:
        """Write down one run of an equation, and return its number and the errors of its results."""
        went_in = max([a.error for a in args if is_float(a.actual)], default=0.0)
        with np.errstate(all="ignore"):
            errors = [(relative(e - s, s), relative(x - e, s), relative(x - s, s)) for x, e, s in numbers]
        came_in, added, total = (max(column) for column in zip(*errors, strict=True)) if errors else (0.0, 0.0, 0.0)
        smallest = float(jnp.finfo(row.dtype).tiny)
        for x, exact, _ in numbers:
            below = (exact != 0) & (np.abs(exact) < smallest)
            row.overflowed += int(np.sum(np.isfinite(exact) & ~np.isfinite(x)))
            row.underflowed += int(np.sum(below))
            row.flushed += int(np.sum(below & (x == 0)))
        row.steps.append(self.steps)
        for column, value in zip(
            (row.went_in, row.came_in, row.added, row.total), (went_in, came_in, added, total), strict=True
        ):
            column.append(value)
        makers = tuple({m: None for a in args for m in a.makers})
        traits = traits_of(row.primitive)
        moves = traits.mark or (traits.moves is not Moves.NOT and not any(added for _, added, _ in errors))
        origins = frozenset().union(*(self.runs[m].origins for m in makers)) if moves and makers else {row.primitive}
        self.runs.append(Run(row, total, total - went_in, makers, frozenset(origins), moves))
        return len(self.runs) - 1, [t for *_, t in errors]


def _parts(x: Value) -> Value:
    """An array that is cheap to index: NumPy's, but for random keys."""
    return x if jax.dtypes.issubdtype(jx.type_of(x).dtype, jax.dtypes.extended) else np.asarray(x)


def _is_real(pair: Pair) -> bool:
    return jax.dtypes.issubdtype(jx.type_of(pair.actual).dtype, np.floating)


def _wide(x: Value) -> np.ndarray:
    x = np.asarray(x)
    return x if np.iscomplexobj(x) else x.astype(np.float64)


def _differing(x: Value, other: Value) -> int:
    if jax.dtypes.issubdtype(jx.type_of(x).dtype, jax.dtypes.extended):
        return 0
    a, b = _wide(x), _wide(other)
    return int(np.sum((a != b) & ~(np.isnan(a) & np.isnan(b))))


def _blame(runs: Sequence[Run], outs: Sequence[Pair]) -> None:
    """Say of each row how much was lost in it of what is felt in the end, in the value or the gradient."""
    felt = [0.0] * len(runs)
    numbers = [out for out in outs if is_float(out.actual)]
    largest = max([_rms(_wide(out.shadow)) for out in numbers[1:]], default=0.0)
    for i, out in enumerate(numbers):
        error = out.error
        if i and _rms(_wide(out.shadow)) < ZERO * largest:  # a gradient that is zero but for rounding
            error = min(1.0, _rms(_wide(out.actual) - _wide(out.shadow)) / largest)
        for m in out.makers:
            felt[m] = max(felt[m], error)
    for i in reversed(range(len(runs))):
        for m in runs[i].makers:
            felt[m] = max(felt[m], min(runs[i].total, felt[i]))
    gained: dict[int, float] = {}
    for i, run in enumerate(runs):
        at = _culprit(runs, i)
        gained[at.index] = gained.get(at.index, 0.0) + run.gained
        at.felt = max(at.felt, min(run.total, felt[i]))
    for row in {id(run.row): run.row for run in runs}.values():
        before, after = min(row.went_in), max(row.total)
        more = gained.get(row.index, 0.0) if row.flushed else min(gained.get(row.index, 0.0), after - before)
        row.bits = float(np.log2(1 + max(0.0, more) / max(before, row.of / 2)))


def _culprit(runs: Sequence[Run], i: int) -> Rounding:
    """The row that a run's loss is of. Where numbers are only chosen, what is wrong with them was so before: the row is
    that in which they were flushed to zero or overflowed, or that they were made in.
    """
    run = runs[i]
    if not run.moves or run.gained <= 0:
        return run.row
    seen, waiting, made_in = {i}, list(run.makers), run.row
    while waiting:
        m = waiting.pop(0)
        if m in seen:
            continue
        seen.add(m)
        row = runs[m].row
        if row.flushed or row.overflowed:
            return row
        made_in = row if made_in is run.row and not runs[m].moves else made_in
        waiting += runs[m].makers
    return made_in
