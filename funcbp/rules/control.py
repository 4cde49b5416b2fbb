"""Loops and branches: programs inside programs, that run many times or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from ..cotangents import Zero, instantiate
from ..jaxpr import (
    Program,
    bind_cond,
    bind_scan,
    cond_branches,
    primitives,
    scan_parts,
    strong,
    to_strong,
    trace,
    while_parts,
    zeros,
)
from ..plan import Passes, Plan, plan_of_call
from ..policies import Choose, chooser
from .table import TABLE, Rule, def_control


def _split(items: Sequence[Any], *sizes: int) -> list[list[Any]]:
    """Consecutive parts of these sizes, and the rest."""
    out, start = [], 0
    for n in sizes:
        out.append(list(items[start : start + n]))
        start += n
    return [*out, list(items[start:])]


def perturbed_carry(passes_of: Any, consts: Sequence[bool], carry: Sequence[bool], rest: Sequence[bool]) -> Passes:
    """The passes of a loop's body, once what it perturbs of its carry is counted as perturbed going in."""
    while True:
        passes = passes_of((*consts, *carry, *rest))
        grown = [a or b for a, b in zip(carry, passes.differentiable, strict=False)]
        if grown == list(carry):
            return passes
        carry = grown


# --- scan -------------------------------------------------------------------------------------------------------------


def scan_fwd(walker: Any, perturbed: Sequence[bool], *primals: Any, **params: Any) -> tuple[Any, Any, Any]:
    """Run the loop, stacking what its plan keeps at every step; what never changes is kept once."""
    body, n_consts, n_carry = scan_parts(params)
    consts, init, xs = _split(primals, n_consts, n_carry)
    passes = perturbed_carry(lambda p: walker.passes(body, p), *_split(perturbed, n_consts, n_carry))
    steps = params["length"]
    choose = chooser(walker.residuals, steps)
    plan = passes.made((walker.residuals, steps), lambda: _scan_plan(passes, n_consts, n_carry, choose))
    n_ys = len(passes.outputs) - n_carry
    once = plan.before(*consts)
    carry, stacked = bind_scan(plan.forward, consts, init, xs, params, params["reverse"])
    ys, kept = stacked[:n_ys], stacked[n_ys:]
    free_consts = [consts[i] for i in plan.free if i < n_consts]
    free_xs = [xs[i - n_consts - n_carry] for i in plan.free if i >= n_consts]
    grown = passes.perturbed[n_consts : n_consts + n_carry]
    res = (plan, [jax.typeof(c) for c in consts], free_consts, once, free_xs, kept)
    return [*carry, *ys], res, [*grown, *passes.differentiable[n_carry:]]


def _scan_plan(passes: Passes, n_consts: int, n_carry: int, choose: Choose) -> Plan:
    kinds = [*([0] * n_consts), *([1] * n_carry), *([2] * (len(passes.in_types) - n_consts - n_carry))]
    make = lambda nonzero: _scan_backward(passes, n_consts, n_carry, nonzero)
    return Plan(passes, make, free=[k != 1 for k in kinds], steady=[k == 0 for k in kinds], choose=choose)


def _scan_backward(
    passes: Passes, n_consts: int, n_carry: int, nonzero: Sequence[bool]
) -> tuple[Program, tuple[list[bool], list[bool]]]:
    """The body of the loop backward: (*candidates, *sums, *ct of carry, *ct of y) -> sums, ct of carry, ct of x.

    The cotangents of constants are sums over the steps, carried along. All perturbed carries have one, of ys only those
    that are nonzero. Also: which constants and xs get a cotangent.
    """
    perturbed = _split(passes.perturbed, n_consts, n_carry)
    const_types, carry_types, _ = _split([strong(t) for t in passes.in_types], n_consts, n_carry)
    ys_types = [strong(t) for t in passes.out_types[n_carry:]]
    sums = [t for t, p in zip(const_types, perturbed[0], strict=True) if p]
    carries = [t for t, p in zip(carry_types, perturbed[1], strict=True) if p]
    ys = [t for t, z in zip(ys_types, nonzero[n_carry:], strict=True) if z]
    n = len(passes.candidates)
    reached: tuple[list[bool], list[bool]] = ([], [])

    def backward(*args: Any) -> list[Any]:
        kept, summed, ct_carry, ct_ys = _split(args, n, len(sums), len(carries))
        carry_cts, y_cts = iter(ct_carry), iter(ct_ys)
        ct = [next(carry_cts) if p else Zero for p in perturbed[1]]
        ct += [next(y_cts) if z else Zero for z in nonzero[n_carry:]]
        to_consts, to_carry, to_xs = _split(passes.pull_back(kept, ct), n_consts, n_carry)
        reached[0][:] = [c is not Zero for c in to_consts]
        reached[1][:] = [c is not Zero for c in to_xs]
        totals = iter(summed)
        added = [
            total if c is Zero else lax.add(total, c)
            for c, total in ((c, next(totals)) for c, p in zip(to_consts, perturbed[0], strict=True) if p)
        ]
        before = [instantiate(c, t) for c, t, p in zip(to_carry, carry_types, perturbed[1], strict=True) if p]
        return [to_strong(x) for x in (*added, *before, *(c for c in to_xs if c is not Zero))]

    return trace(backward, [*passes.candidate_types, *sums, *carries, *ys], "scan_backward"), reached


def scan_bwd(walker: Any, res: Any, ct: Sequence[Any], perturbed: Sequence[bool], **params: Any) -> list[Any]:
    """Run the loop the other way round, on what was kept."""
    plan, const_types, free_consts, once, free_xs, kept = res
    _, n_consts, n_carry = scan_parts(params)
    passes = plan.passes
    ct_carry, ct_ys = list(ct[:n_carry]), list(ct[n_carry:])
    nonzero = [*passes.differentiable[:n_carry], *(c is not Zero for c in ct_ys)]
    program, (consts_reached, xs_reached) = plan.backward(nonzero)
    grown = _split(passes.perturbed, n_consts, n_carry)
    sums = [zeros(strong(t)) for t, p in zip(const_types, grown[0], strict=True) if p]
    carry_types = passes.in_types[n_consts : n_consts + n_carry]
    init = [to_strong(instantiate(c, t)) for c, t, p in zip(ct_carry, carry_types, grown[1], strict=True) if p]
    stacked = [*free_xs, *kept, *(to_strong(c) for c in ct_ys if c is not Zero)]
    # the program's inputs come as (*free, *once, *kept, *others): bring constants, carries and stacks together
    n_fc, n_fx, n_once, n_kept = len(free_consts), len(free_xs), len(once), len(kept)
    fc, fx, on, ke, su, cy = _split(range(len(program.invars)), n_fc, n_fx, n_once, n_kept, len(sums) + len(init))
    program = passes.made(program, lambda: program.reordered([*fc, *on, *su, *fx, *ke, *cy]))
    outs, to_xs = bind_scan(program, [*free_consts, *once], [*sums, *init], stacked, params, not params["reverse"])
    totals, firsts, rest = iter(outs[: len(sums)]), iter(outs[len(sums) :]), iter(to_xs)
    # a sum is taken for every perturbed constant; those that no cotangent reached stayed zero
    per_const = [next(totals) if p else Zero for p in grown[0]]
    return [
        *(c if r else Zero for c, r in zip(per_const, consts_reached, strict=True)),
        *(next(firsts) if p else Zero for p in grown[1]),
        *(next(rest) if r else Zero for r in xs_reached),
    ]


def_control(primitives.scan_p, scan_fwd, scan_bwd)


# --- cond and switch --------------------------------------------------------------------------------------------------


def cond_fwd(walker: Any, perturbed: Sequence[bool], index: Any, *operands: Any, **params: Any) -> tuple[Any, Any, Any]:
    """Run the branch; each keeps its own, in slots that the branches share by type."""
    plans = tuple(plan_of_call(walker.passes(branch, perturbed[1:])) for branch in cond_branches(params))
    slots, places = _shared_slots([[v.aval for v in plan.kept] for plan in plans])
    fill = lambda: [_fill_slots(plan, slots, place) for plan, place in zip(plans, places, strict=True)]
    branches = plans[0].passes.made(plans, fill)
    outs = bind_cond(index, branches, operands, params)
    n = len(plans[0].passes.outputs)
    read = sorted({i for plan in plans for i in plan.free})
    differentiable = [any(d) for d in zip(*(plan.passes.differentiable for plan in plans), strict=True)]
    res = (plans, tuple(places), tuple(read), index, [operands[i] for i in read], outs[n:])
    return outs[:n], res, differentiable


def _shared_slots(types: Sequence[Sequence[Any]]) -> tuple[list[Any], list[list[int]]]:
    """As few slots as hold the values of any one branch; and where each branch's values go."""
    slots: list[Any] = []
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


def _fill_slots(plan: Plan, slots: Sequence[Any], place: Sequence[int]) -> Program:
    n = len(plan.passes.outputs)

    def forward(*operands: Any) -> list[Any]:
        outs = plan.forward(*operands)
        kept = dict(zip(place, outs[n:], strict=True))
        return [*outs[:n], *(kept[i] if i in kept else zeros(t) for i, t in enumerate(slots))]

    return trace(forward, plan.passes.in_types, "branch")


def cond_bwd(walker: Any, res: Any, ct: Sequence[Any], perturbed: Sequence[bool], **params: Any) -> list[Any]:
    """Go back through the branch that was taken."""
    plans, places, read, index, operands, kept = res
    nonzero = [c is not Zero for c in ct]
    # an output that only other branches perturb has no cotangent in this one
    programs = [
        plan.backward([z and d for z, d in zip(nonzero, plan.passes.differentiable, strict=True)]) for plan in plans
    ]
    reached = [any(r) for r in zip(*(r for _, r in programs), strict=True)]
    types = [strong(t) for t in plans[0].passes.in_types]
    n_read, n_kept = len(read), len(kept)

    def branch(plan: Plan, place: Sequence[int], program: Program, own: Sequence[bool]) -> Program:
        def backward(*args: Any) -> list[Any]:
            inputs, slots, cts = _split(args, n_read, n_kept)
            where = dict(zip(read, inputs, strict=True))
            given = iter(cts)
            pairs = [(next(given), d) for z, d in zip(nonzero, plan.passes.differentiable, strict=True) if z]
            outs = iter(
                program(*(where[i] for i in plan.free), *(slots[i] for i in place), *(c for c, d in pairs if d))
            )
            back = [next(outs) if o else Zero for o in own]
            return [to_strong(instantiate(c, t)) for c, t, r in zip(back, types, reached, strict=True) if r]

        return trace(backward, arg_types, "branch_backward")

    args = [*operands, *kept, *(to_strong(c) for c in ct if c is not Zero)]
    arg_types = tuple(jax.typeof(x) for x in args)
    make = lambda: [branch(pl, place, *pr) for pl, place, pr in zip(plans, places, programs, strict=True)]
    branches = plans[0].passes.made((plans, tuple(nonzero), arg_types), make)
    outs = iter(bind_cond(index, branches, args, params))
    return [None, *(next(outs) if r else Zero for r in reached)]


def_control(primitives.cond_p, cond_fwd, cond_bwd)


# --- while ------------------------------------------------------------------------------------------------------------


def while_fwd(walker: Any, perturbed: Sequence[bool], *primals: Any, **params: Any) -> tuple[Any, Any, Any]:
    """Run the loop. How often it runs is not known beforehand, so there is nothing to keep its steps in."""
    body, n_cond, n_body = while_parts(params)
    _, consts, carry = _split(perturbed, n_cond, n_body)
    passes = perturbed_carry(lambda p: walker.passes(body, p), consts, carry, [])
    return primitives.while_p.bind(*primals, **params), (), passes.perturbed[n_body:]


def while_message(where: str) -> str:
    return (
        f"Reverse-mode differentiation does not work through {where}: the number of its steps is not known when it is "
        "traced, so its steps cannot be kept. Use jax.lax.scan, or jax.lax.fori_loop with bounds that are Python "
        "integers; for a loop that stops early, scan over the largest number of steps and leave the rest unchanged "
        "with jnp.where; or define its derivative with jax.custom_vjp (for a fixed point, by the implicit function "
        "theorem)."
    )


TABLE[primitives.while_p] = Rule(None, while_fwd, kind="control", message=while_message)
