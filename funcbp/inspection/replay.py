"""A program run equation by equation, in Python, to see where numbers stop being finite.

Each number that is not finite is held with its *birth*: the equation that made it out of operands that were finite, or,
for a nan, out of operands without one. Where an equation only moves numbers, their births move with them: of a `where`,
what was not chosen leaves no trace. Loops are run step by step, and programs inside programs are opened, so a birth has
a line, a name scope and the numbers of the loop steps around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .. import jaxpr as jx
from ..jaxpr.types import AnyJaxpr, Aval, JaxprEqn, Value
from ..rules.traits import traits_of

__all__ = ["Birth", "Located", "first_birth", "replay"]


@dataclass(eq=False)
class Birth:
    """Where a number that is not finite came from.

    Attributes:
        order: how many equations had run before; -1 for what was there from the start.
        nan: whether it is a nan (an infinity otherwise).
        primitive: the equation's primitive; None for an argument or a constant.
        constant: whether it is a constant of the program.
        source: where the equation was written.
        line: the user's line, that of the loop or call around it where it has none.
        library: the line of the library that this led to, or "".
        scope: its name scope, within those of the calls around it.
        steps: the numbers of the loop steps around it, outermost first.
        operands, result: numpy arrays.
        at: which elements of the result are meant.
        cause: the birth of an infinity among the operands, where a nan was made out of one.
        chosen: whether an operand was zero because a `where` had chosen against it on the way back.
    """

    order: int
    nan: bool
    primitive: str | None = None
    constant: bool = False
    source: Any = None
    line: str = ""
    library: str = ""
    scope: str = ""
    steps: tuple[int, ...] = ()
    operands: tuple[Any, ...] = ()
    result: Any = None
    at: Any = None
    cause: Birth | None = None
    chosen: bool = False

    @property
    def root(self) -> Birth:
        """The infinity that this nan was made of, if an equation made it; otherwise this."""
        return self.cause.root if self.cause is not None and self.cause.primitive is not None else self

    def operand(self, i: int) -> np.ndarray:
        """The numbers of an operand that the elements meant were made of, or all where that cannot be told."""
        x = np.asarray(self.operands[i])
        try:
            return np.broadcast_to(x, self.result.shape)[self.at]
        except ValueError:
            return x


def first_birth(births: Iterable[Birth]) -> Birth | None:
    """The birth that is to blame: the first; an infinity that is written into the program only if there is no other."""
    return min(births, key=lambda b: (b.constant and not b.nan, b.root.order), default=None)


@dataclass
class Held:
    """A value, the births of what is not finite in it, and whether it was cut by a `where` on the way back.

    Attributes:
        births: for each element 0, or the number of its birth; None where all are finite.
    """

    value: Value
    births: np.ndarray | None = None
    chosen: bool = False


def as_numbers(x: Value) -> np.ndarray | None:
    """The numbers of a floating-point or complex array; None for anything else."""
    if not jax.dtypes.issubdtype(getattr(x, "dtype", np.dtype(type(x))), np.inexact):
        return None
    return np.asarray(x)


def replay(jaxpr: AnyJaxpr, args: Sequence[Value]) -> list[list[Birth]]:
    """Run a program on these arguments, and return the births of what is not finite in each output."""
    visitor = _Replay()
    outs = jx.run(jaxpr, [visitor.held(x, constant=False) for x in args], visitor)
    return [visitor.births_of(out) for out in outs]


class Located(jx.Visitor):
    """Goes through calls, loops and branches, and knows where it is.

    Attributes:
        scope: the name scope of the calls that are being run.
        line, library: the user's line of the call or loop that is being run, and the library's.
        steps: the numbers of the loop steps around, outermost first.
    """

    enters = jx.CALLS | jx.CONTROL

    def __init__(self) -> None:
        self.scope = self.line = self.library = ""
        self.steps: tuple[int, ...] = ()

    def scope_of(self, eqn: JaxprEqn) -> str:
        """The name scope of an equation, behind those of the calls around it."""
        return "/".join(filter(None, (self.scope, jx.scope(eqn.source_info))))

    def lines_of(self, eqn: JaxprEqn) -> tuple[str, str]:
        """The user's line, or that of what is around the equation, and that of the library."""
        source = eqn.source_info
        if self.line and jx.nearness(source) < jx.Nearness.USER:
            return self.line, jx.library_line(source) or self.library
        line, library = jx.user_line(source), jx.library_line(source)
        return line, "" if library == line else library

    @contextmanager
    def within(self, eqn: JaxprEqn, kind: jx.Kind) -> Iterator[None]:
        outside = self.scope, self.line, self.library
        # what loops and branches have inside knows its scope
        self.scope, (self.line, self.library) = "" if kind & jx.CONTROL else self.scope_of(eqn), self.lines_of(eqn)
        yield
        self.scope, self.line, self.library = outside

    @contextmanager
    def step(self, i: int) -> Iterator[None]:
        outside, self.steps = self.steps, (*self.steps, i)
        yield
        self.steps = outside


class _Replay(Located):
    """Holds each value with its births."""

    def __init__(self) -> None:
        super().__init__()
        self.order = 0
        self.births: list[Birth] = []
        self._there: dict[tuple[bool, bool], int] = {}  # the births of what was there from the start

    def held(self, x: Value, constant: bool) -> Held:
        """Hold an argument or a constant of the program."""
        numbers = as_numbers(x)
        if numbers is None or np.isfinite(numbers).all():
            return Held(x)
        births = np.zeros(numbers.shape, np.int64)
        for nan, here in ((True, np.isnan(numbers)), (False, np.isinf(numbers))):
            if here.any():
                if (nan, constant) not in self._there:
                    self._there[nan, constant] = self.enter(Birth(-1, nan, constant=constant, result=numbers))
                births[here] = self._there[nan, constant]
        return Held(x, births)

    def enter(self, birth: Birth) -> int:
        """Write a birth down, and return its number."""
        self.births.append(birth)
        return len(self.births)

    def births_of(self, *held: Held) -> list[Birth]:
        """The births of what is not finite in these."""
        numbers = {int(n) for h in held if h.births is not None for n in np.unique(h.births) if n}
        return [self.births[n - 1] for n in sorted(numbers)]

    def constant(self, x: Value) -> Held:
        return self.held(x, constant=True)

    def number(self, x: Held) -> Value:
        return x.value

    def row(self, x: Held, i: int) -> Held:
        return Held(x.value[i], None if x.births is None or not x.births[i].any() else x.births[i], x.chosen)

    def stack(self, rows: Sequence[Held], aval: Aval) -> Held:
        births = None
        if any(h.births is not None for h in rows):
            births = np.stack([np.zeros(np.shape(h.value), np.int64) if h.births is None else h.births for h in rows])
        return Held(super().stack([h.value for h in rows], aval), births, any(h.chosen for h in rows))

    def equation(self, eqn: JaxprEqn, args: list[Held]) -> list[Held]:
        outs = jx.bind_eqn(eqn, [a.value for a in args])
        self.order += 1
        back = eqn.primitive.name == "select_n" and "transpose(" in self.scope_of(eqn)
        chosen = back or any(a.chosen for a in args)
        return [Held(out, self.born(eqn, args, out, i), chosen) for i, out in enumerate(outs)]

    def born(self, eqn: JaxprEqn, args: list[Held], out: Value, which: int) -> np.ndarray | None:
        """The births of what is not finite in an output: those of operands, and new ones."""
        numbers = as_numbers(out)
        if numbers is None or np.isfinite(numbers).all():
            return None
        bad, nan = ~np.isfinite(numbers), np.isnan(numbers)
        births = np.zeros(numbers.shape, np.int64)
        of_infinity = np.zeros(numbers.shape, bool)  # nans that are made of infinities
        if any(a.births is not None for a in args):
            moved = self.moved(eqn, args, which)
            if moved is not None:
                births = moved
            elif _elementwise(eqn, args, numbers.shape):
                births, of_infinity = self.passed_on(args, nan, bad, numbers.shape)
            else:  # which numbers it combines is not known
                of_nan = [b for b in self.births_of(*args) if b.nan]
                infinite = [b for b in self.births_of(*args) if not b.nan]
                births[nan] = self.number_of(first_birth(of_nan))
                births[bad & ~nan] = self.number_of(first_birth(infinite))
                of_infinity = nan & (births == 0) & bool(infinite)
        births = np.where(bad, births, 0)
        new = bad & (births == 0)
        for here, cause in ((new & of_infinity, self.cause_of(args)), (new & ~of_infinity, None)):
            if here.any():
                births[here] = self.enter(self.birth(eqn, args, numbers, here, cause))
        return births

    def moved(self, eqn: JaxprEqn, args: list[Held], which: int) -> np.ndarray | None:
        """The births of the operands, moved as an equation moves numbers; None if it does anything else to them."""
        traits = traits_of(eqn.primitive)
        moves = traits.linear or range(len(args))
        if not traits.moves or not all(args[i].births is None or i in moves for i in range(len(args))):
            return None
        operands: list[Any] = [a.value for a in args]
        for i in moves:
            if as_numbers(operands[i]) is not None:
                numbers: Any = np.zeros(np.shape(operands[i]), np.int64) if args[i].births is None else args[i].births
                operands[i] = jax.numpy.asarray(numbers, operands[i].dtype)
                if not np.array_equal(
                    np.real(np.asarray(operands[i])).astype(np.int64), numbers
                ):  # too many for this type
                    return None
        out = np.real(np.asarray(jx.bind_eqn(eqn, operands)[which]))
        return np.where(np.isfinite(out), out, 0).astype(np.int64)

    def passed_on(
        self, args: list[Held], nan: np.ndarray, bad: np.ndarray, shape: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The births that an elementwise equation passes on, number by number, and where it makes nan of infinities."""
        births, infinite = np.zeros(shape, np.int64), np.zeros(shape, bool)
        written = self._there.get((False, True), 0)  # an infinity in the program counts where there is no other
        for a in args:
            if a.births is None:
                continue
            of, is_nan = (np.broadcast_to(x, shape) for x in (a.births, np.isnan(np.asarray(a.value))))
            births = np.where(((births == 0) | (births == written)) & (of > 0) & (is_nan | ~nan), of, births)
            infinite |= (of > 0) & ~is_nan
        return births, nan & (births == 0) & infinite

    def number_of(self, birth: Birth | None) -> int:
        return 0 if birth is None else self.births.index(birth) + 1

    def cause_of(self, args: list[Held]) -> Birth | None:
        """The infinity that a nan is made of."""
        return first_birth(b for b in self.births_of(*args) if not b.nan)

    def birth(self, eqn: JaxprEqn, args: list[Held], numbers: np.ndarray, at: np.ndarray, cause: Birth | None) -> Birth:
        operands = [
            (a, jx.aval_of(v.aval).dtype)
            for a, v in zip(args, eqn.invars, strict=True)
            if as_numbers(a.value) is not None
        ]
        line, library = self.lines_of(eqn)
        return Birth(
            self.order,
            bool(np.isnan(numbers[at]).any()),
            eqn.primitive.name,
            source=eqn.source_info,
            line=line,
            library=library,
            scope=self.scope_of(eqn),
            steps=self.steps,
            operands=tuple(np.asarray(a.value, dtype) for a, dtype in operands),
            result=numbers,
            at=at,
            cause=cause,
            chosen=any(a.chosen and (np.asarray(a.value) == 0).any() for a, _ in operands),
        )


def _elementwise(eqn: JaxprEqn, args: Sequence[Held], shape: tuple[int, ...]) -> bool:
    """Whether each number of the result is made of the numbers at its place."""
    traits = traits_of(eqn.primitive)
    fits = lambda s: s == () or (len(s) == len(shape) and all(a in (1, b) for a, b in zip(s, shape, strict=True)))
    return traits.cheap and traits.flops is None and all(fits(np.shape(a.value)) for a in args)
