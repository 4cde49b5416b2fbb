"""A program run equation by equation, in Python, to see where numbers stop being finite.

Each value that is not finite is held with its *birth*: the equation that made it out of operands that were finite, or,
for a nan, out of operands without one. Loops are run step by step, and programs inside programs are opened, so a birth
has a line, a name scope and the numbers of the loop steps around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .. import jaxpr as jx

__all__ = ["Birth", "Held", "Located", "replay"]


@dataclass
class Birth:
    """Where a number that is not finite came from.

    Attributes:
        order: how many equations had run before; -1 for what was there from the start.
        nan: whether it is a nan (an infinity otherwise).
        primitive: the equation's primitive; None for an argument or a constant.
        source: where the equation was written.
        line: the user's line, that of the loop or call around it where it has none.
        scope: its name scope, within those of the calls around it.
        steps: the numbers of the loop steps around it, outermost first.
        operands, result: numpy arrays.
        cause: the birth of an infinity among the operands, where a nan was made out of one.
        chosen: whether an operand was zero because a `where` had chosen against it on the way back.
    """

    order: int
    nan: bool
    primitive: str | None
    source: Any = None
    line: str = ""
    scope: str = ""
    steps: tuple[int, ...] = ()
    operands: tuple[Any, ...] = ()
    result: Any = None
    cause: Birth | None = None
    chosen: bool = False

    @property
    def root(self) -> Birth:
        """The infinity that this nan was made of, if an equation made it; otherwise this."""
        return self.cause.root if self.cause is not None and self.cause.primitive is not None else self

    @property
    def backward(self) -> bool:
        return "transpose(" in self.scope


@dataclass
class Held:
    """A value, the birth of what is not finite in it, and whether it was cut by a `where` on the way back."""

    value: Any
    birth: Birth | None = None
    chosen: bool = False


def as_numbers(x: Any) -> np.ndarray | None:
    """The numbers of a floating-point or complex array; None for anything else."""
    if not jax.dtypes.issubdtype(getattr(x, "dtype", np.dtype(type(x))), np.inexact):
        return None
    return np.asarray(x)


def birth_of(x: Any) -> Birth | None:
    """The birth of what is not finite among an argument's or a constant's numbers."""
    numbers = as_numbers(x)
    if numbers is None or np.isfinite(numbers).all():
        return None
    return Birth(-1, bool(np.isnan(numbers).any()), None, result=numbers)


def replay(jaxpr: Any, args: Sequence[Any]) -> list[Held]:
    """Run a program on these arguments, and hold its outputs."""
    return jx.run(jaxpr, [Held(x, birth_of(x)) for x in args], _Replay())


class Located(jx.Visitor):
    """Goes through calls, loops and branches, and knows where it is.

    Attributes:
        scope: the name scope of the calls that are being run.
        line: of the call or loop that is being run.
        steps: the numbers of the loop steps around, outermost first.
    """

    enters = jx.CALLS | jx.CONTROL

    def __init__(self) -> None:
        self.scope = self.line = ""
        self.steps: tuple[int, ...] = ()

    def scope_of(self, eqn: Any) -> str:
        """The name scope of an equation, behind those of the calls around it."""
        return "/".join(filter(None, (self.scope, jx.scope(eqn.source_info))))

    def line_of(self, eqn: Any) -> str:
        """The user's line, or that of what is around the equation."""
        return jx.user_line(eqn.source_info) or self.line

    @contextmanager
    def within(self, eqn: Any, kind: jx.Kind) -> Iterator[None]:
        outside = self.scope, self.line
        # what loops and branches have inside knows its scope
        self.scope, self.line = "" if kind & jx.CONTROL else self.scope_of(eqn), self.line_of(eqn)
        yield
        self.scope, self.line = outside

    @contextmanager
    def step(self, i: int) -> Iterator[None]:
        outside, self.steps = self.steps, (*self.steps, i)
        yield
        self.steps = outside


class _Replay(Located):
    """Holds each value with its birth."""

    def __init__(self) -> None:
        super().__init__()
        self.order = 0

    def constant(self, x: Any) -> Held:
        return Held(x, birth_of(x))

    def number(self, x: Held) -> Any:
        return x.value

    def row(self, x: Held, i: int) -> Held:
        return Held(x.value[i], x.birth and birth_of(x.value[i]) and x.birth, x.chosen)

    def stack(self, rows: Sequence[Held], aval: Any) -> Held:
        births = [h.birth for h in rows if h.birth is not None]
        birth = min(births, key=lambda b: (not b.nan, b.order)) if births else None
        return Held(super().stack([h.value for h in rows], aval), birth, any(h.chosen for h in rows))

    def equation(self, eqn: Any, args: list[Held]) -> list[Held]:
        outs = jx.bind_eqn(eqn, [a.value for a in args])
        self.order += 1
        back = eqn.primitive.name == "select_n" and "transpose(" in self.scope_of(eqn)
        return [Held(out, self.birth(eqn, args, out), back or any(a.chosen for a in args)) for out in outs]

    def birth(self, eqn: Any, args: list[Held], out: Any) -> Birth | None:
        numbers = as_numbers(out)
        if numbers is None or np.isfinite(numbers).all():
            return None
        nan = bool(np.isnan(numbers).any())
        infinite = [a.birth for a in args if a.birth is not None]
        if nan:
            from_nan = [b for a, b in ((a, a.birth) for a in args) if b is not None and _has_nan(a.value)]
            if from_nan:
                return min(from_nan, key=lambda b: b.order)
        elif infinite:
            return min(infinite, key=lambda b: b.order)
        cause = min(infinite, key=lambda b: b.root.order) if infinite else None
        chosen = any(a.chosen and as_numbers(a.value) is not None and (np.asarray(a.value) == 0).any() for a in args)
        operands = tuple(np.asarray(a.value) for a in args if as_numbers(a.value) is not None)
        return Birth(
            self.order,
            nan,
            eqn.primitive.name,
            eqn.source_info,
            self.line_of(eqn),
            self.scope_of(eqn),
            self.steps,
            operands,
            numbers,
            cause,
            chosen,
        )


def _has_nan(x: Any) -> bool:
    numbers = as_numbers(x)
    return numbers is not None and bool(np.isnan(numbers).any())
