"""Which inputs of a program come out of it as they went in."""

from __future__ import annotations

from collections.abc import Sequence

from .interpreter import CALLS, Kind, Visitor, inside_of, run, scan_parts
from .programs import Program
from .types import JaxprEqn, Value

__all__ = ["passed_on"]


def passed_on(program: Program) -> list[int | None]:
    """Find for each output the number of the input that it is, also through calls, loops and branches, or None."""
    return run(program, range(len(program.invars)), _Passing())


class _Passing(Visitor):
    """In the place of a value, the number of the input that it is, or None."""

    enters = CALLS

    def constant(self, x: Value) -> None:
        return None

    def equation(self, eqn: JaxprEqn, args: list[int | None]) -> Sequence[int | None]:
        inside = inside_of(eqn)
        if inside.kind is Kind.COND:
            ways = [run(program, args[1:], self) for program in inside.programs]
            return [outs[0] if len(set(outs)) == 1 else None for outs in zip(*ways, strict=True)]
        if inside.kind is not Kind.SCAN:
            return [None] * len(eqn.outvars)
        body, n_consts, n_carry = scan_parts(eqn.params)
        first = n_consts + n_carry  # of what the loop goes along, of which each step reads a row
        came = run(body, range(len(args)), self)
        stays = [i == n_consts + k if k < n_carry else i is not None and i >= first for k, i in enumerate(came)]
        return [args[i] if stay else None for i, stay in zip(came, stays, strict=True)]
