"""Loops and branches: programs inside programs, that run many times or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from ..cotangents import Factored, Zero, dense, instantiate
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
from ..plan import Given, Passes, Plan, plan_of_call, with_names
from ..policies import Choose, Deferral, chooser, deferral
from .ahead import products_ahead
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
    how = chooser(walker.residuals, steps), deferral(walker.residuals)
    plan = passes.made((walker.residuals, steps), lambda: _scan_plan(passes, n_consts, n_carry, *how))
    n_ys = len(passes.outputs) - n_carry
    once = plan.before(*consts)
    carry, stacked = bind_scan(plan.forward, consts, init, xs, params, params["reverse"])
    ys, kept = stacked[:n_ys], stacked[n_ys:]
    free_consts = [consts[i] for i in plan.free if i < n_consts]
    free_xs = [xs[i - n_consts - n_carry] for i in plan.free if i >= n_consts]
    grown = passes.perturbed[n_consts : n_consts + n_carry]
    res = (plan, [jax.typeof(c) for c in consts], free_consts, once, free_xs, kept)
    return [*carry, *ys], res, [*grown, *passes.differentiable[n_carry:]]


def _scan_plan(passes: Passes, n_consts: int, n_carry: int, choose: Choose, defer: Deferral) -> Plan:
    kinds = [*([0] * n_consts), *([1] * n_carry), *([2] * (len(passes.in_types) - n_consts - n_carry))]
    make = lambda nonzero, given: _scan_backward(passes, n_consts, n_carry, defer, nonzero, given)
    return Plan(passes, make, free=[k != 1 for k in kinds], steady=[k == 0 for k in kinds], choose=choose)


def _scan_backward(
    passes: Passes, n_consts: int, n_carry: int, defer: Deferral, nonzero: Sequence[bool], given: Given
) -> tuple[Program, tuple[list[bool], Any]]:
    """The body of the loop backward: (*candidates, *ct of carry, *ct of y, *given, *sums) -> sums, ct of carry, stacks.

    The cotangents of constants are sums over the steps, carried along, or products that are left to be carried out
    after the loop: their factors are stacked. All perturbed carries have a cotangent, of ys those that are nonzero.

    Returns:
        The program; which constants have a sum; and the structure of the stacks (products of constants, cotangents of
        xs, what the walk found).
    """
    perturbed = _split(passes.perturbed, n_consts, n_carry)
    carry_types = [strong(t) for t in passes.in_types[n_consts : n_consts + n_carry]]
    carries = [t for t, p in zip(carry_types, perturbed[1], strict=True) if p]
    ys = [strong(t) for t, z in zip(passes.out_types[n_carry:], nonzero[n_carry:], strict=True) if z]
    n = len(passes.candidates)
    trees: list[Any] = []
    summed: list[bool] = []

    def step(*args: Any) -> list[Any]:
        kept, ct_carry, ct_ys, named = _split(args, n, len(carries), len(ys))
        carry_cts, y_cts = iter(ct_carry), iter(ct_ys)
        ct = [next(carry_cts) if p else Zero for p in perturbed[1]]
        ct += [next(y_cts) if z else Zero for z in nonzero[n_carry:]]
        back, found = passes.pull_back(kept, ct, with_names(given, named))
        to_consts, to_carry, to_xs = _split(back, n_consts, n_carry)
        wait = lambda c: (passes.factored and type(c) is Factored) or defer.worth(c)
        later = [c if wait(c) else Zero for c in to_consts]
        now = [dense(c) if c is not Zero and d is Zero else Zero for c, d in zip(to_consts, later, strict=True)]
        summed[:] = [c is not Zero for c in now]
        before = [instantiate(c, t) for c, t, p in zip(to_carry, carry_types, perturbed[1], strict=True) if p]
        stacks, tree = jax.tree.flatten((later, to_xs if passes.factored else [dense(c) for c in to_xs], found))
        trees.append(tree)
        return [to_strong(x) for x in (*(c for c in now if c is not Zero), *before, *stacks)]

    types = [*passes.candidate_types, *carries, *ys, *(t for _, t in given or ())]
    program = trace(step, types, "scan_backward")
    n_sums = sum(summed)

    def add(*args: Any) -> list[Any]:
        terms, rest, sums = _split(args, n_sums, len(program.outvars) - n_sums)
        return [*(lax.add(total, term) for total, term in zip(sums, terms, strict=True)), *rest]

    outs = [v.aval for v in program.outvars]
    adding = trace(add, [*outs, *outs[:n_sums]], "sums")
    return program.then(adding, [*range(len(outs)), *([None] * n_sums)]), (list(summed), trees[0])


def scan_bwd(walk: Any, res: Any, ct: Sequence[Any], perturbed: Sequence[bool], **params: Any) -> list[Any]:
    """Run the loop the other way round, on what was kept."""
    plan, const_types, free_consts, once, free_xs, kept = res
    _, n_consts, n_carry = scan_parts(params)
    passes = plan.passes
    ct_carry, ct_ys = [dense(c) for c in ct[:n_carry]], [dense(c) for c in ct[n_carry:]]
    nonzero = [*passes.differentiable[:n_carry], *(c is not Zero for c in ct_ys)]
    program, (summed, tree) = plan.backward(nonzero, walk.given)
    sums = [zeros(strong(t)) for t, s in zip(const_types, summed, strict=True) if s]
    carries = zip(ct_carry, passes.in_types[n_consts:], passes.perturbed[n_consts:], strict=False)
    init = [to_strong(instantiate(c, t)) for c, t, p in carries if p]
    ys = [to_strong(c) for c in ct_ys if c is not Zero]
    # the program's inputs come as (*free, *once, *kept, *others): bring constants, carries and stacks together
    parts = free_consts, free_xs, once, kept, init, ys, walk.brought
    fc, fx, on, ke, ca, y, na, su = _split(range(len(program.invars)), *map(len, parts))
    program = passes.made(program, lambda: program.reordered([*fc, *on, *na, *su, *ca, *fx, *ke, *y]))
    constants = [*free_consts, *once, *walk.brought]
    outs, stacks = bind_scan(program, constants, [*sums, *init], [*free_xs, *kept, *ys], params, not params["reverse"])
    later, to_xs, found = tree.unflatten(stacks)
    walk.take_in(found)
    totals, firsts = iter(outs[: len(sums)]), iter(outs[len(sums) :])
    return [
        *(next(totals) if s else (c if c is Zero else c.summed()) for s, c in zip(summed, later, strict=True)),
        *(next(firsts) if p else Zero for p in passes.perturbed[n_consts : n_consts + n_carry]),
        *(c.stacked(params["length"]) if type(c) is Factored else c for c in to_xs),
    ]


def_control(primitives.scan_p, scan_fwd, scan_bwd, instead=products_ahead)


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


def cond_bwd(walk: Any, res: Any, ct: Sequence[Any], perturbed: Sequence[bool], **params: Any) -> list[Any]:
    """Go back through the branch that was taken. What only another branch would find is zero."""
    plans, places, read, index, operands, kept = res
    nonzero = [c is not Zero for c in ct]
    # an output that only other branches perturb has no cotangent in this one
    own = [[z and d for z, d in zip(nonzero, plan.passes.differentiable, strict=True)] for plan in plans]
    programs = [plan.backward(z, walk.given) for plan, z in zip(plans, own, strict=True)]
    args = [*operands, *kept, *(to_strong(dense(c)) for c in ct if c is not Zero), *walk.brought]
    arg_types = tuple(jax.typeof(x) for x in args)
    types = [strong(t) for t in plans[0].passes.in_types]
    results = [_in_branch(i, *tree.unflatten([v.aval for v in p.outvars])) for i, (p, tree) in enumerate(programs)]
    # a cotangent, or a thing found, that any branch has: with its type, for the others to fill with zeros
    reached = [any(c is not Zero for c in cs) for cs in zip(*(cts for cts, _ in results), strict=True)]
    found_types: tuple[dict[Any, Any], ...] = ({}, {})
    for _, found in results:
        for all_types, of_branch in zip(found_types, found, strict=True):
            all_types.update({k: v for k, v in of_branch.items() if k not in all_types})
    wanted = [t if r else Zero for t, r in zip(types, reached, strict=True)], found_types
    merged: Any = jax.tree.structure(wanted)

    def branch(i: int, plan: Plan, place: Sequence[int], which: Sequence[bool], program: Program, tree: Any) -> Program:
        def backward(*args: Any) -> list[Any]:
            inputs, slots, cts, named = _split(args, len(read), len(kept), sum(nonzero))
            where = dict(zip(read, inputs, strict=True))
            given = iter(cts)
            own_cts = [c for c, w in ((next(given), w) for z, w in zip(nonzero, which, strict=True) if z) if w]
            outs = program(*(where[i] for i in plan.free), *(slots[i] for i in place), *own_cts, *named)
            back, found = _in_branch(i, *tree.unflatten(outs))
            full = [instantiate(c, t) for c, t, r in zip(back, types, reached, strict=True) if r]
            for all_types, of_branch in zip(found_types, found, strict=True):
                fill = {k: of_branch.get(k, jax.tree.map(zeros, t)) for k, t in all_types.items()}
                full += jax.tree.leaves(fill)
            return [to_strong(x) for x in full]

        return trace(backward, arg_types, "branch_backward")

    of_branches = list(zip(plans, places, own, programs, strict=True))
    make = lambda: [branch(i, plan, place, w, *pr) for i, (plan, place, w, pr) in enumerate(of_branches)]
    branches = plans[0].passes.made((plans, tuple(nonzero), arg_types, walk.given), make)
    cts, found = merged.unflatten(bind_cond(index, branches, args, params))
    walk.take_in(found)
    return [None, *cts]


def _in_branch(i: int, cts: Any, found: Any) -> tuple[Any, Any]:
    """What a branch's walk found, its steps' numbers preceded by the branch's."""
    named, watched = found
    return cts, (named, {(i, *where): seen for where, seen in watched.items()})


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
        "traced, so its steps cannot be kept. Use funcbp.while_loop with max_steps=..., which stores a few snapshots; "
        "jax.lax.scan, or jax.lax.fori_loop with bounds that are Python integers; or define its derivative with "
        "jax.custom_vjp (for a fixed point, by the implicit function theorem). If it is funcbp.while_loop already, "
        "or funcbp.scan with snapshots=..., then this is the second reverse pass through it: take the second "
        "derivative in forward mode, with funcbp.hvp or jax.jacfwd of the gradient."
    )


TABLE[primitives.while_p] = Rule(None, while_fwd, kind="control", message=while_message)
