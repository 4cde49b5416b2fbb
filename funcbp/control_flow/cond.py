"""Branches: `cond` and `switch`. Each keeps its own, in places that the branches share by type."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax
from jax.tree_util import PyTreeDef

from ..autodiff.passes import passes_of
from ..autodiff.tape import Tape
from ..cotangents import Cotangent, Zero, instantiate, materialize, weak_as
from ..jaxpr import (
    Program,
    Visitor,
    bind_cond,
    cond_branches,
    cond_of_marked,
    cond_sum,
    inlined,
    primitive,
    primitives,
    pvary,
    run,
    split_list,
    strong,
    to_strong,
    trace,
    type_of,
    varying,
    weakref_cache,
    zeros,
)
from ..jaxpr.types import AnyJaxpr, Aval, ClosedJaxpr, JaxprEqn, PyTree, Value
from ..remat.plan import Plan, plan_of_call
from ..rules.kinds import State
from ..rules.options import Options
from ..rules.registry import def_control
from ..rules.traits import Traits

__all__ = ["cond_bwd", "cond_fwd"]

pvary_p, psum_invariant_p = primitive("pvary_p"), primitive("psum_invariant_p")


def cond_fwd(
    options: Options, perturbed: Sequence[bool], index: jax.Array, *operands: Value, **params: Any
) -> tuple[Sequence[Value], PyTree, Sequence[bool]]:
    """Run the branch; each saves its own, in places that the branches share by type."""
    bodies = cond_branches(params)
    casts = _casts(index, operands, perturbed[1:], bodies)
    if casts:
        operands = tuple(pvary(x, casts[i]) if i in casts else x for i, x in enumerate(operands))
        types = tuple(type_of(x) if i in casts else None for i, x in enumerate(operands))
        bodies = tuple(_after_casts(body, types) for body in bodies)
    plans = tuple(plan_of_call(passes_of(body, perturbed[1:], options)) for body in bodies)
    slots, places = _shared_places([[v.aval for v in plan.saved] for plan in plans])
    fill = lambda: [_fill_places(plan, slots, place) for plan, place in zip(plans, places, strict=True)]
    branches = plans[0].passes.made(plans, fill)
    outs = bind_cond(index, branches, operands, params)
    n = len(plans[0].passes.outputs)
    read = sorted({i for plan in plans for i in plan.available_inputs})
    differentiable = [any(d) for d in zip(*(plan.passes.differentiable for plan in plans), strict=True)]
    res = (plans, tuple(places), tuple(read), index, [operands[i] for i in read], outs[n:], tuple(casts.items()))
    return outs[:n], res, differentiable


def _casts(
    index: Value, operands: Sequence[Value], perturbed: Sequence[bool], branches: Sequence[AnyJaxpr]
) -> dict[int, tuple[Hashable, ...]]:
    """Find the operands that are cast before the branch: each with the axes of the mesh over which it varies then.

    Where the index differs from device to device, the sum that is a cast's transpose would be in a branch that some
    devices do not enter, and the others would wait for them. What all branches only cast, if they read it, is cast
    before them, and the sum is after them.
    """
    found: dict[int, tuple[Hashable, ...]] = {}
    for i, (x, p) in enumerate(zip(operands, perturbed, strict=True)):
        if p and varying(type_of(index)) - varying(type_of(x)):
            uses = {axes for branch in branches for axes in _cast_to(branch)[i]}
            found.update((i, axes) for axes in uses if axes is not None and len(uses) == 1)
    return found


@weakref_cache
def _cast_to(branch: AnyJaxpr) -> list[set[tuple[Hashable, ...] | None]]:
    """Find over which axes a branch casts each of its operands; None among them if it does anything else with it."""
    program = inlined(Program.of(branch))
    cast = lambda eqn: eqn.params["axes"] if eqn.primitive is pvary_p else None
    uses = lambda v: {cast(eqn) for eqn in program.eqns if any(v is x for x in eqn.invars)}
    return [uses(v) | ({None} if any(v is y for y in program.outvars) else set()) for v in program.invars]


@weakref_cache
def _after_casts(branch: AnyJaxpr, types: tuple[Aval | None, ...]) -> ClosedJaxpr:
    """Make the branch of operands some of which are cast before it, to these types."""
    program = inlined(Program.of(branch))
    f = lambda *xs: run(program, [*program.consts, *xs], _AfterCasts())
    return trace(f, [t or v.aval for t, v in zip(types, program.invars, strict=True)], "branch").closed


class _AfterCasts(Visitor):
    """Leaves out the casts of what is cast already."""

    def equation(self, eqn: JaxprEqn, args: list[Value]) -> Sequence[Value]:
        done = eqn.primitive is pvary_p and varying(type_of(args[0])).issuperset(eqn.params["axes"])
        return args if done else super().equation(eqn, args)


def _shared_places(types: Sequence[Sequence[Aval]]) -> tuple[list[Aval], list[list[int]]]:
    """Find as few slots as hold the values of any one branch; and where each branch's values go."""
    slots: list[Aval] = []
    places = []
    for branch in types:
        taken: set[int] = set()
        place = []
        for t in branch:
            slot = next((i for i, s in enumerate(slots) if s == t and i not in taken), len(slots))
            if slot == len(slots):
                slots.append(t)
            taken.add(slot)
            place.append(slot)
        places.append(place)
    return slots, places


def _fill_places(plan: Plan, slots: Sequence[Aval], place: Sequence[int]) -> Program:
    n = len(plan.passes.outputs)

    def forward(*operands: Value) -> list[Value]:
        outs = plan.forward(*operands)
        kept = dict(zip(place, outs[n:], strict=True))
        return [*outs[:n], *(kept[i] if i in kept else zeros(t) for i, t in enumerate(slots))]

    return trace(forward, plan.passes.in_types, "branch")


def cond_bwd(
    state: State, res: PyTree, ct: Sequence[Cotangent], perturbed: Sequence[bool], **params: Any
) -> list[Cotangent]:
    """Go back through the branch that was taken. What only another branch would find is zero."""
    plans, places, read, index, operands, kept, casts = res
    nonzero = [c is not Zero for c in ct]
    # an output that only other branches perturb has no cotangent in this one
    own = [[z and d for z, d in zip(nonzero, plan.passes.differentiable, strict=True)] for plan in plans]
    programs = [plan.backward(z, state.outer_names) for plan, z in zip(plans, own, strict=True)]
    args = [*operands, *kept, *(to_strong(materialize(c)) for c in ct if c is not Zero), *state.outer_cotangents]
    arg_types = tuple(jax.typeof(x) for x in args)
    in_types = plans[0].passes.in_types
    results = [_in_branch(i, *tree.unflatten([v.aval for v in p.outvars])) for i, (p, tree) in enumerate(programs)]
    # a cotangent, or a thing found, that any branch has: with its type, for the others to fill with zeros
    reached = [any(c is not Zero for c in cs) for cs in zip(*(cts for cts, _ in results), strict=True)]
    found_types: tuple[dict[Any, Any], ...] = ({}, {}, {})
    for _, found in results:
        for all_types, of_branch in zip(found_types, found, strict=True):
            all_types.update({k: v for k, v in of_branch.items() if k not in all_types})
    wanted = [strong(t) if r else Zero for t, r in zip(in_types, reached, strict=True)], found_types
    merged: Any = jax.tree.structure(wanted)

    def branch(
        i: int, plan: Plan, place: Sequence[int], which: Sequence[bool], program: Program, tree: PyTreeDef
    ) -> Program:
        def backward(*args: Value) -> list[Value]:
            inputs, slots, cts, named = split_list(args, len(read), len(kept), sum(nonzero))
            where = dict(zip(read, inputs, strict=True))
            given = iter(cts)
            own_cts = [c for c, w in ((next(given), w) for z, w in zip(nonzero, which, strict=True) if z) if w]
            outs = program(*(where[i] for i in plan.available_inputs), *(slots[i] for i in place), *own_cts, *named)
            back, found = _in_branch(i, *tree.unflatten(outs))
            full = [instantiate(c, t) for c, t, r in zip(back, in_types, reached, strict=True) if r]
            for all_types, of_branch in zip(found_types, found, strict=True):
                fill = {k: of_branch.get(k, jax.tree.map(zeros, t)) for k, t in all_types.items()}
                full += jax.tree.leaves(fill)
            return [to_strong(x) for x in full]

        return trace(backward, arg_types, "branch_backward")

    of_branches = list(zip(plans, places, own, programs, strict=True))
    make = lambda: [branch(i, plan, place, w, *pr) for i, (plan, place, w, pr) in enumerate(of_branches)]
    branches = plans[0].passes.made((plans, tuple(nonzero), arg_types, state.outer_names), make)
    cts, (named, observed, logs) = merged.unflatten(bind_cond(index, branches, args, params))
    slots = lambda name: [logs.get((name, i)) for i in range(len(plans))]
    state.merge((named, observed, {name: cond_sum(index, slots(name)) for name, _ in logs}))
    back = list(map(weak_as, cts, plans[0].passes.in_types))
    for i, axes in casts:
        back[i] = back[i] if back[i] is Zero else psum_invariant_p.bind(materialize(back[i]), axes=axes)
    return [None, *back]


def _in_branch(i: int, cts: Any, found: Any) -> tuple[Any, Any]:
    """Put the branch's number before those of its entries in what its backward pass found, and beside what it logs."""
    named, watched, logs = found
    return cts, (
        named,
        {(i, *where): seen for where, seen in watched.items()},
        {(name, i): log for name, log in logs.items()},
    )


def cond_reached(tapes: Sequence[Tape], outputs: Sequence[bool], **params: Any) -> list[bool]:
    """Tell which primals the cotangents of these outputs come back to, in any branch; never the index."""
    return [False, *(any(r) for r in zip(*(tape.reached(outputs) for tape in tapes), strict=True))]


def cond_marked(params: dict[str, Any], which: Sequence[bool]) -> tuple[Sequence[bool], dict[str, Any]]:
    """Hand the branches the feedback weights of their operands."""
    return which, cond_of_marked(params, which)


DEAREST = Traits(repeatable=True, inside=lambda params, costs: max(costs))
def_control(primitives.cond_p, cond_fwd, cond_bwd, mark_inside=cond_marked, reaches=cond_reached, traits=DEAREST)
