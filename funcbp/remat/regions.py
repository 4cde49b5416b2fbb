"""The plan outside loops: a straight-line program is cut into regions, each planned like the body of a loop.

A region saves its inputs, which are results of the one before, and what its plan says; going back, it recomputes the
rest when its cotangents have arrived, behind a barrier. Stretches of equations that repeat, such as ten equal layers
in a Python loop, are found, and each copy is the same region: planned once, all alike.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import jaxpr as jx
from ..jaxpr import Program
from ..jaxpr.types import Aval, JaxprEqn, Primitive, Value, Var
from ..rules.cost import is_cheap
from .cut import Choose
from .policies import Policy

__all__ = ["AutoRegion", "Region", "in_regions", "planned", "regions_of", "run_regions", "straight"]


class AutoRegion(NamedTuple):
    """The policy of a region that was not placed by the user. For JAX it permits everything.

    Attributes:
        policy: what a region keeps.
        regions: how many regions share a budget.
    """

    policy: Policy
    regions: int

    def __call__(self, primitive: Primitive, *avals: Aval, **params: Any) -> bool:
        return True

    @property
    def choose(self) -> Choose:
        """What to save; the inputs are available."""
        return self.policy.for_region(self.regions)


class Region(NamedTuple):
    """A part of a program.

    Attributes:
        program: from `inputs` to `outputs`; copies of a repeated stretch share it.
        inputs, outputs: variables of the program it was cut from.
        planned: whether it is to be a region of its own, or runs as it is.
        policy: by which it is planned; None where it runs as it is.
    """

    program: Program
    inputs: list[Var]
    outputs: list[Var]
    planned: bool
    policy: AutoRegion | None = None


def in_regions(f: Callable[..., Sequence[Value]], policy: Policy) -> Callable[..., list[Any]]:
    """Make the same function from arrays to a list of arrays, run region by region."""

    def run(*args: Any) -> list[Any]:
        program = straight(f, [jax.typeof(x) for x in args])
        return run_regions(program, planned(regions_of(program), policy), args)

    return run


def straight(f: Callable[..., Sequence[Any]], types: Sequence[Any]) -> Program:
    """Trace a function, with its compiled calls written out and without references."""
    whole = jx.without_references(jx.trace(f, types, "straight"))
    return jx.trace(lambda *xs: jx.run(whole, xs, _Opening()), types, "straight")


def planned(regions: Sequence[Region], policy: Policy, most: int | None = None) -> list[Region]:
    """Have the regions that are to be planned planned by this policy; `most` of them, if given, the first ones."""
    chosen = [i for i, r in enumerate(regions) if r.planned][:most]
    auto = AutoRegion(policy, len(chosen))
    return [r._replace(policy=auto) if i in chosen else r for i, r in enumerate(regions)]


def run_regions(program: Program, regions: Sequence[Region], args: Sequence[Any]) -> list[Any]:
    """Run a program region by region."""
    env = dict(zip([*program.constvars, *program.invars], [*program.consts, *args], strict=True))
    for region in regions:
        inputs = [env[v] for v in region.inputs]
        if region.policy is not None:
            outs = jx.bind_remat(region.program, inputs, {"policy": region.policy, "prevent_cse": True}, False)
        else:
            outs = region.program(*inputs)
        env.update(zip(region.outputs, outs, strict=True))
    return [v.val if jx.is_literal(v) else env[v] for v in program.outvars]


class _Opening(jx.Visitor):
    """Goes into the compiled calls of a program, but for those that are cheap."""

    enters = jx.Kind.JIT

    def opens(self, eqn: JaxprEqn) -> jx.Inside | None:
        return None if is_cheap(eqn) else super().opens(eqn)


# --- cutting ----------------------------------------------------------------------------------------------------------


def regions_of(program: Program) -> list[Region]:
    """Cut a program into regions: the copies of repeated stretches, and pieces of about equal size of what is between.

    A cut goes where the fewest bytes cross it, best after a value that is not recomputed. The last piece runs as it is:
    it is gone back through at once, so nothing of it waits.
    """
    eqns = program.eqns
    crossing = _crossing(program)
    stretches = _repeats(program, crossing)
    made = np.array([sum(jx.bytes_of_type(v.aval) for v in eqn.outvars) for eqn in eqns], float)
    heavy = sum(not is_cheap(eqn) for eqn in eqns)
    piece = made.sum() / max(1.0, np.sqrt(heavy))
    last_read = _last_read(program)
    regions: list[Region] = []
    at = 0
    for start, period, copies in [*stretches, (len(eqns), 1, 0)]:
        for a, b in _pieces(at, start, made, crossing, piece):
            inputs, outputs = _ends(program, a, b, last_read)
            planned = b < len(eqns) and any(not is_cheap(e) for e in eqns[a:b])
            regions.append(Region(jx.part(program, a, b, inputs, outputs), inputs, outputs, planned))
        begins = range(start, start + copies * period, period)
        # the copies hand out the same of what they make, what any of them is asked for
        places = sorted({p for a in begins for p in _places(program, a, period, last_read)})
        shared: Program | None = None
        for a in begins:
            inputs, _ = _ends(program, a, a + period, last_read)
            everything = _made(program, a, a + period)
            outputs = [everything[p] for p in places]
            shared = shared or jx.part(program, a, a + period, inputs, outputs)
            regions.append(Region(shared, inputs, outputs, True))
        at = start + copies * period
    return regions


def _made(program: Program, start: int, stop: int) -> list[Any]:
    return [v for eqn in program.eqns[start:stop] for v in eqn.outvars]


def _last_read(program: Program) -> dict[Var, int]:
    """Find the last equation that reads each value; the program's outputs are read at the very end."""
    last = {v: i for i, eqn in enumerate(program.eqns) for v in eqn.invars if not jx.is_literal(v)}
    return last | {v: len(program.eqns) for v in program.outvars if not jx.is_literal(v)}


def _places(program: Program, start: int, length: int, last_read: dict[Var, int]) -> list[int]:
    """List which of the values made in a stretch are read after it."""
    stop = start + length
    return [p for p, v in enumerate(_made(program, start, stop)) if last_read.get(v, -1) >= stop]


def _ends(program: Program, start: int, stop: int, last_read: dict[Var, int]) -> tuple[list[Var], list[Var]]:
    """List what a stretch reads from outside, in the order of first reading, and what is read of it after."""
    made = _made(program, start, stop)
    inside = set(made)
    read = [v for eqn in program.eqns[start:stop] for v in eqn.invars if not jx.is_literal(v) and v not in inside]
    return list(dict.fromkeys(read)), [v for v in made if last_read.get(v, -1) >= stop]


def _crossing(program: Program) -> np.ndarray:
    """Count the bytes made before and read after each place between equations; a little more where it is better not
    to cut, after what can be recomputed.
    """
    n, last_read = len(program.eqns), _last_read(program)
    step = np.zeros(n + 2)
    for i, eqn in enumerate(program.eqns):
        for v in eqn.outvars:
            stop = last_read.get(v, i)
            if stop > i:
                width = jx.bytes_of_type(v.aval) * (1.01 if is_cheap(eqn) else 1.0)
                step[i + 1] += width
                step[stop + 1] -= width
    return np.cumsum(step)[: n + 1]


def _pieces(start: int, stop: int, made: np.ndarray, crossing: np.ndarray, piece: float) -> list[tuple[int, int]]:
    """Cut a stretch into pieces that make about `piece` bytes each."""
    out, at = [], start
    while at < stop:
        sizes = np.cumsum(made[at:stop])
        if sizes[-1] <= 1.5 * piece:
            break
        low, high = np.searchsorted(sizes, [0.5 * piece, 1.5 * piece])
        places = np.arange(at + low + 1, min(at + high + 1, stop - 1) + 1)
        if not len(places):
            break
        cut = int(places[np.argmin(crossing[places])])
        out.append((at, cut))
        at = cut
    return [*out, (at, stop)] if at < stop else out


# --- repeats ----------------------------------------------------------------------------------------------------------


def _repeats(program: Program, crossing: np.ndarray) -> list[tuple[int, int, int]]:
    """Find stretches that repeat, as (start, period, copies), none overlapping another, in order."""
    eqns = program.eqns
    numbers: dict[Hashable, int] = {}
    kinds = np.array([numbers.setdefault(jx.signature(program, i), len(numbers)) for i in range(len(eqns))], int)
    heavy = np.array([not is_cheap(e) for e in eqns], bool)
    found: list[tuple[int, int, int]] = []
    free = np.ones(len(eqns), bool)
    candidates: list[tuple[int, int, int]] = []
    for period in range(1, len(eqns) // 2 + 1):
        same = np.concatenate([[False], kinds[:-period] == kinds[period:], [False]])
        starts, stops = np.flatnonzero(~same[:-1] & same[1:]), np.flatnonzero(same[:-1] & ~same[1:])
        for a, b in zip(starts.tolist(), stops.tolist(), strict=True):
            if b - a >= period and heavy[a : a + period].any():
                candidates.append((-(b - a + period), period, a))
    for length, period, start in sorted(candidates):
        first, copies = _copies(program, start, start - length, period, crossing)
        taken = slice(first, first + copies * period)
        if copies > 1 and free[taken].all():
            free[taken] = False
            found.append((first, period, copies))
    return sorted(found)


def _copies(program: Program, start: int, stop: int, period: int, crossing: np.ndarray) -> tuple[int, int]:
    """Find where in a stretch of the same equations the copies begin, so that fewest bytes cross; and how many."""
    offsets = range(start, min(start + period, stop - 2 * period + 1))
    for a in sorted(offsets, key=lambda a: (crossing[a + period], a)):
        first, copies = _wiring(program, a, period), 1
        while a + (copies + 1) * period <= stop and _wiring(program, a + copies * period, period) == first:
            copies += 1
        if copies > 1:
            return a, copies
    return start, 1


def _wiring(program: Program, start: int, period: int) -> list[Any]:
    """List what each equation of a stretch reads: which input, by order of first reading, or what it made where."""
    where: dict[Any, Any] = {}
    inputs = 0
    out = []
    for i, eqn in enumerate(program.eqns[start : start + period]):
        for v in eqn.invars:
            if jx.is_literal(v):
                out.append(("literal", str(v.val)))
                continue
            if v not in where:
                where[v] = ("input", inputs, v.aval)
                inputs += 1
            out.append(where[v])
        where.update({v: ("made", i, j) for j, v in enumerate(eqn.outvars)})
    return out
