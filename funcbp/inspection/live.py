"""How many bytes are in use along the two passes, by the program's own order: a staircase up and one down.

What is counted is what a program makes, from where it is made to where it is last read; arguments are not. A loop's
stacks fill step by step and empty step by step. Compilers fuse and reorder, so the peak that
`compiled.memory_analysis()` reports differs; what is kept between the passes does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .. import jaxpr as jx
from ..jaxpr import Program
from ..jaxpr.types import Atom
from ..remat.graph import bytes_of
from ..remat.plan import Plan

__all__ = ["Live", "live_bytes"]

MOST = 100  # points that are drawn of one loop


class Live(NamedTuple):
    """Bytes in use after each equation.

    Attributes:
        forward, backward: one number per equation, and several per loop.
    """

    forward: np.ndarray
    backward: np.ndarray

    @property
    def peak(self) -> int:
        """The most bytes in use at any time."""
        return int(max([0, *self.forward, *self.backward]))

    @property
    def between(self) -> int:
        """The bytes in use between the passes."""
        return int(self.forward[-1]) if len(self.forward) else 0


def live_bytes(plan: Plan) -> Live:
    """The bytes in use along the passes of a plan whose inputs are available."""
    passes = plan.passes
    forward = _walk(plan.forward, [], plan.forward.outvars)
    program, _ = plan.backward(passes.differentiable, None)
    # the backward program's inputs come as (*available, *hoisted, *saved, *others)
    first = len(plan.available_inputs) + len(plan.hoisted)
    backward = _walk(program, program.invars[first : first + len(plan.saved)], program.outvars)
    return Live(np.array(forward), np.array(backward))


def _walk(program: Program, given: Sequence[Atom], kept: Sequence[Atom]) -> list[float]:
    """The bytes in use after each equation, of what is made here and what is given; `kept` stays to the end."""
    eqns = program.eqns
    last = {v: i for i, eqn in enumerate(eqns) for v in eqn.invars if not jx.is_literal(v)}
    last |= dict.fromkeys((v for v in kept if not jx.is_literal(v)), len(eqns))
    live = dict.fromkeys(v for v in given if v in last)
    total = float(bytes_of(list(live)))
    out = [total]
    for i, eqn in enumerate(eqns):
        made = [v for v in eqn.outvars if last.get(v, -1) > i]
        read = dict.fromkeys(v for v in eqn.invars if not jx.is_literal(v))
        spent = [v for v in read if v in live and last[v] == i]
        grows, falls = bytes_of(made), bytes_of(spent)
        steps = int(eqn.params["length"]) if jx.inside_of(eqn).kind is jx.Kind.SCAN else 1
        if steps > 1:
            _, n_consts, n_carry = jx.scan_parts(eqn.params)
            stacked = bytes_of([v for v in eqn.outvars[n_carry:] if v in made])
            along = bytes_of([v for v in eqn.invars[n_consts + n_carry :] if v in spent])
            parts = np.linspace(0, 1, min(steps, MOST) + 1)[1:]
            start = total + grows - stacked
            out += [start + part * (stacked - along) for part in parts]
        else:
            out.append(total + grows)
        total += grows - falls
        for v in made:
            live[v] = None
        for v in spent:
            del live[v]
        out.append(total)
    return out
