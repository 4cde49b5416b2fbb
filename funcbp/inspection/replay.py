"""A program run equation by equation, in Python, to see where numbers stop being finite.

Each value that is not finite is held with its *birth*: the equation that made it out of operands that were finite, or,
for a nan, out of operands without one. Loops are run step by step, and programs inside programs are opened, so a birth
has a line, a name scope and the numbers of the loop steps around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .. import jaxpr as jx

__all__ = ["Birth", "Held", "replay"]


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
    return _Replay().run(jaxpr, [Held(x, birth_of(x)) for x in args], ())


class _Replay:
    def __init__(self) -> None:
        self.order = 0
        self.scope = ""  # of the calls that are being run
        self.lines = [""]  # of what is being run

    def run(self, jaxpr: Any, args: Sequence[Held], steps: tuple[int, ...]) -> list[Held]:
        invars, eqns, outvars, constants = jx.opened(jaxpr)
        held: dict[Any, Held] = {v: Held(x, birth_of(x)) for v, x in constants}
        held.update(zip(invars, args, strict=True))
        read = lambda v: Held(v.val, birth_of(v.val)) if jx.is_literal(v) else held[v]
        for eqn in eqns:
            outs = self.step(eqn, [read(v) for v in eqn.invars], steps)
            held.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in outvars]

    def within(self, eqn: Any) -> str:
        """The name scope of an equation, behind those of the calls around it."""
        return "/".join(filter(None, (self.scope, jx.scope(eqn.source_info))))

    def step(self, eqn: Any, args: list[Held], steps: tuple[int, ...]) -> list[Held]:
        self.lines.append(jx.user_line(eqn.source_info) or self.lines[-1])
        outs = self._step(eqn, args, steps)
        self.lines.pop()
        return outs

    def _step(self, eqn: Any, args: list[Held], steps: tuple[int, ...]) -> list[Held]:
        name, params = eqn.primitive.name, eqn.params
        if name in ("scan", "while", "cond"):  # what these have inside knows its scope
            around, self.scope = self.scope, ""
            if name == "cond":
                outs = self.run(jx.cond_branches(params)[int(args[0].value)], args[1:], steps)
            else:
                outs = (self.scan if name == "scan" else self.while_loop)(params, args, steps)
            self.scope = around
            return outs
        if any(part in params for part in ("jaxpr", "call_jaxpr", "call")) and not name.startswith(("reduce", "shard")):
            around, self.scope = self.scope, self.within(eqn)
            outs = self.run(jx.call_jaxpr(params), args, steps)
            self.scope = around
            return outs
        outs = jx.bind_eqn(eqn, [a.value for a in args])
        self.order += 1
        chosen = any(a.chosen for a in args) or (name == "select_n" and "transpose(" in self.within(eqn))
        return [Held(out, self.birth(eqn, args, out, steps), chosen) for out in outs]

    def birth(self, eqn: Any, args: list[Held], out: Any, steps: tuple[int, ...]) -> Birth | None:
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
            self.lines[-1],
            self.within(eqn),
            steps,
            operands,
            numbers,
            cause,
            chosen,
        )

    def scan(self, params: dict[str, Any], args: list[Held], steps: tuple[int, ...]) -> list[Held]:
        body, n_consts, n_carry = jx.scan_parts(params)
        consts, carry, xs = args[:n_consts], args[n_consts : n_consts + n_carry], args[n_consts + n_carry :]
        rows: dict[int, list[Held]] = {}
        order = range(params["length"])
        for i in reversed(order) if params["reverse"] else order:
            row = [Held(x.value[i], x.birth and birth_of(x.value[i]) and x.birth, x.chosen) for x in xs]
            outs = self.run(body, [*consts, *carry, *row], (*steps, i))
            carry, rows[i] = outs[:n_carry], outs[n_carry:]
        if not rows:
            return [*carry, *(Held(jx.zeros(t)) for t in jx.stacked_types(params))]
        stacks = []
        for column in zip(*(rows[i] for i in order), strict=True):
            births = [h.birth for h in column if h.birth is not None]
            birth = min(births, key=lambda b: (not b.nan, b.order)) if births else None
            stacks.append(Held(jax.numpy.stack([h.value for h in column]), birth, any(h.chosen for h in column)))
        return [*carry, *stacks]

    def while_loop(self, params: dict[str, Any], args: list[Held], steps: tuple[int, ...]) -> list[Held]:
        body, n_cond, n_body = jx.while_parts(params)
        cond_consts, consts, carry = args[:n_cond], args[n_cond : n_cond + n_body], args[n_cond + n_body :]
        i = 0
        while self.run(jx.while_condition(params), [*cond_consts, *carry], (*steps, i))[0].value:
            carry = self.run(body, [*consts, *carry], (*steps, i))
            i += 1
        return carry


def _has_nan(x: Any) -> bool:
    numbers = as_numbers(x)
    return numbers is not None and bool(np.isnan(numbers).any())
