"""Scan: a loop of a known number of steps, gone through the other way round on what its plan kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from ..cotangents import Factored, Zero, instantiate, materialize
from ..jaxpr import Program, bind_scan, primitives, scan_parts, split_list, strong, to_strong, trace, zeros
from ..remat.hoisting import products_ahead
from ..remat.plan import OuterNames, Passes, Plan, with_names
from ..remat.policies import Choose, Deferral, chooser, deferral
from ..rules.registry import def_control

__all__ = ["perturbed_carry", "scan_bwd", "scan_fwd"]


def perturbed_carry(passes_of: Any, consts: Sequence[bool], carry: Sequence[bool], rest: Sequence[bool]) -> Passes:
    """The passes of a loop's body, once what it perturbs of its carry is counted as perturbed going in."""
    while True:
        passes = passes_of((*consts, *carry, *rest))
        grown = [a or b for a, b in zip(carry, passes.differentiable, strict=False)]
        if grown == list(carry):
            return passes
        carry = grown


def scan_fwd(options: Any, perturbed: Sequence[bool], *primals: Any, **params: Any) -> tuple[Any, Any, Any]:
    """Run the loop, stacking what its plan keeps at every step; what never changes is kept once."""
    body, n_consts, n_carry = scan_parts(params)
    consts, init, xs = split_list(primals, n_consts, n_carry)
    passes = perturbed_carry(lambda p: options.passes(body, p), *split_list(perturbed, n_consts, n_carry))
    steps = params["length"]
    how = chooser(options.residuals, steps), deferral(options.residuals)
    plan = passes.made((options.residuals, steps), lambda: _scan_plan(passes, n_consts, n_carry, *how))
    n_ys = len(passes.outputs) - n_carry
    once = plan.before(*consts)
    carry, stacked = bind_scan(plan.forward, consts, init, xs, params, params["reverse"])
    ys, kept = stacked[:n_ys], stacked[n_ys:]
    free_consts = [consts[i] for i in plan.available_inputs if i < n_consts]
    free_xs = [xs[i - n_consts - n_carry] for i in plan.available_inputs if i >= n_consts]
    grown = passes.perturbed[n_consts : n_consts + n_carry]
    res = (plan, [jax.typeof(c) for c in consts], free_consts, once, free_xs, kept)
    return [*carry, *ys], res, [*grown, *passes.differentiable[n_carry:]]


def _scan_plan(passes: Passes, n_consts: int, n_carry: int, choose: Choose, defer: Deferral) -> Plan:
    kinds = [*([0] * n_consts), *([1] * n_carry), *([2] * (len(passes.in_types) - n_consts - n_carry))]
    make = lambda nonzero, outer_names: _scan_backward(passes, n_consts, n_carry, defer, nonzero, outer_names)
    return Plan(passes, make, available_inputs=[k != 1 for k in kinds], loop_invariant=[k == 0 for k in kinds], choose=choose)


def _scan_backward(
    passes: Passes, n_consts: int, n_carry: int, defer: Deferral, nonzero: Sequence[bool], outer_names: OuterNames
) -> tuple[Program, tuple[list[bool], Any]]:
    """The body of the loop backward: (*candidates, *ct of carry, *ct of y, *given, *sums) -> sums, ct of carry, stacks.

    The cotangents of constants are sums over the steps, carried along, or products that are left to be carried out
    after the loop: their factors are stacked. All perturbed carries have a cotangent, of ys those that are nonzero.

    Returns:
        The program; which constants have a sum; and the structure of the stacks (products of constants, cotangents of
        xs, what the walk found).
    """
    perturbed = split_list(passes.perturbed, n_consts, n_carry)
    carry_types = [strong(t) for t in passes.in_types[n_consts : n_consts + n_carry]]
    carries = [t for t, p in zip(carry_types, perturbed[1], strict=True) if p]
    ys = [strong(t) for t, z in zip(passes.out_types[n_carry:], nonzero[n_carry:], strict=True) if z]
    n = len(passes.candidates)
    trees: list[Any] = []
    summed: list[bool] = []

    def step(*args: Any) -> list[Any]:
        kept, ct_carry, ct_ys, named = split_list(args, n, len(carries), len(ys))
        carry_cts, y_cts = iter(ct_carry), iter(ct_ys)
        ct = [next(carry_cts) if p else Zero for p in perturbed[1]]
        ct += [next(y_cts) if z else Zero for z in nonzero[n_carry:]]
        back, results = passes.backward_pass(kept, ct, with_names(outer_names, named))
        to_consts, to_carry, to_xs = split_list(back, n_consts, n_carry)
        wait = lambda c: (passes.factored and type(c) is Factored) or defer.worth(c)
        later = [c if wait(c) else Zero for c in to_consts]
        now = [materialize(c) if c is not Zero and d is Zero else Zero for c, d in zip(to_consts, later, strict=True)]
        summed[:] = [c is not Zero for c in now]
        before = [instantiate(c, t) for c, t, p in zip(to_carry, carry_types, perturbed[1], strict=True) if p]
        stacks, tree = jax.tree.flatten((later, to_xs if passes.factored else [materialize(c) for c in to_xs], results))
        trees.append(tree)
        return [to_strong(x) for x in (*(c for c in now if c is not Zero), *before, *stacks)]

    types = [*passes.candidate_types, *carries, *ys, *(t for _, t in outer_names or ())]
    program = trace(step, types, "scan_backward")
    n_sums = sum(summed)

    def add(*args: Any) -> list[Any]:
        terms, rest, sums = split_list(args, n_sums, len(program.outvars) - n_sums)
        return [*(lax.add(total, term) for total, term in zip(sums, terms, strict=True)), *rest]

    outs = [v.aval for v in program.outvars]
    adding = trace(add, [*outs, *outs[:n_sums]], "sums")
    return program.then(adding, [*range(len(outs)), *([None] * n_sums)]), (list(summed), trees[0])


def scan_bwd(state: Any, res: Any, ct: Sequence[Any], perturbed: Sequence[bool], **params: Any) -> list[Any]:
    """Run the loop the other way round, on what was kept."""
    plan, const_types, free_consts, once, free_xs, kept = res
    _, n_consts, n_carry = scan_parts(params)
    passes = plan.passes
    ct_carry, ct_ys = [materialize(c) for c in ct[:n_carry]], [materialize(c) for c in ct[n_carry:]]
    nonzero = [*passes.differentiable[:n_carry], *(c is not Zero for c in ct_ys)]
    program, (summed, tree) = plan.backward(nonzero, state.outer_names)
    sums = [zeros(strong(t)) for t, s in zip(const_types, summed, strict=True) if s]
    carries = zip(ct_carry, passes.in_types[n_consts:], passes.perturbed[n_consts:], strict=False)
    init = [to_strong(instantiate(c, t)) for c, t, p in carries if p]
    ys = [to_strong(c) for c in ct_ys if c is not Zero]
    # the program's inputs come as (*free, *once, *kept, *others): bring constants, carries and stacks together
    parts = free_consts, free_xs, once, kept, init, ys, state.outer_cotangents
    fc, fx, on, ke, ca, y, na, su = split_list(range(len(program.invars)), *map(len, parts))
    program = passes.made(program, lambda: program.reordered([*fc, *on, *na, *su, *ca, *fx, *ke, *y]))
    constants = [*free_consts, *once, *state.outer_cotangents]
    outs, stacks = bind_scan(program, constants, [*sums, *init], [*free_xs, *kept, *ys], params, not params["reverse"])
    later, to_xs, results = tree.unflatten(stacks)
    state.merge(results)
    totals, firsts = iter(outs[: len(sums)]), iter(outs[len(sums) :])
    return [
        *(next(totals) if s else (c if c is Zero else c.summed()) for s, c in zip(summed, later, strict=True)),
        *(next(firsts) if p else Zero for p in passes.perturbed[n_consts : n_consts + n_carry]),
        *(c.stacked(params["length"]) if type(c) is Factored else c for c in to_xs),
    ]


def_control(primitives.scan_p, scan_fwd, scan_bwd, instead=products_ahead)
