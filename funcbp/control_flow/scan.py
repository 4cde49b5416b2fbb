"""Scan: a loop of a known number of steps, gone through the other way round on what its plan saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import jax
from jax.tree_util import PyTreeDef

from ..autodiff.passes import passes_of
from ..autodiff.tape import Tape
from ..cotangents import Cotangent, Factored, Zero, instantiate, materialize, weak_as
from ..jaxpr import (
    Program,
    add,
    bind_scan,
    is_high,
    primitives,
    row,
    scan_of_marked,
    scan_parts,
    split_list,
    strong,
    to_strong,
    trace,
    trace_tree,
    trace_with,
    type_of,
    zeros,
)
from ..jaxpr.types import Aval, PyTree, Value
from ..remat import sinking
from ..remat.hoisting import handed_on, hoisted_products, operands_before, products_before, replaced
from ..remat.machine import machine_here
from ..remat.plan import OuterNames, Passes, Plan, with_names
from ..remat.policies import Policy
from ..rules.kinds import State
from ..rules.options import Options
from ..rules.registry import def_control
from ..rules.traits import Traits

__all__ = ["BackwardBody", "backward_body", "perturbed_carry", "reached_steps", "scan_bwd", "scan_fwd"]


def perturbed_carry(
    passes_of: Callable[[Sequence[bool]], Passes], consts: Sequence[bool], carry: Sequence[bool], rest: Sequence[bool]
) -> Passes:
    """Return the passes of a loop's body, once what it perturbs of its carry is counted as perturbed going in."""
    while True:
        passes = passes_of((*consts, *carry, *rest))
        grown = [a or b for a, b in zip(carry, passes.differentiable, strict=False)]
        if grown == list(carry):
            return passes
        carry = grown


class ScanResiduals(NamedTuple):
    """What a loop leaves for its backward pass. As `Residuals`, but what is available is of two kinds.

    Attributes:
        plan: of the body.
        const_types: the types of the loop's constants.
        consts, xs: those of the loop's constants, and of what it goes along, that are read.
        hoisted: what is the same in every step.
        stacks: what each step kept, stacked.
    """

    plan: Plan
    const_types: Sequence[Aval]
    consts: Sequence[Value]
    hoisted: Sequence[Value]
    xs: Sequence[Value]
    stacks: Sequence[Value]


def scan_fwd(
    options: Options, perturbed: Sequence[bool], *primals: Value, **params: Any
) -> tuple[Sequence[Value], PyTree, Sequence[bool]]:
    """Run the loop, stacking what its plan saves at every step; what is loop-invariant is saved once."""
    body, n_consts, n_carry = scan_parts(params)
    consts, init, xs = split_list(primals, n_consts, n_carry)
    passes = perturbed_carry(lambda p: passes_of(body, p, options.inlining), *split_list(perturbed, n_consts, n_carry))
    steps, policy = params["length"], options.policy
    plan = passes.made((policy, steps), lambda: _scan_plan(passes, n_consts, n_carry, policy, steps))
    n_ys = len(passes.outputs) - n_carry
    hoisted = plan.before(*consts)
    constants = [*(hoisted[i] for i in plan.cast), *consts]
    carry, stacked = bind_scan(plan.forward, constants, init, xs, params, params["reverse"])
    ys, stacks = stacked[:n_ys], stacked[n_ys:]
    read_consts = [consts[i] for i in plan.available_inputs if i < n_consts]
    read_xs = [xs[i - n_consts - n_carry] for i in plan.available_inputs if i >= n_consts]
    grown = passes.perturbed[n_consts : n_consts + n_carry]
    res = ScanResiduals(plan, [jax.typeof(c) for c in consts], read_consts, hoisted, read_xs, stacks)
    return [*carry, *ys], res, [*grown, *passes.differentiable[n_carry:]]


def _scan_plan(passes: Passes, n_consts: int, n_carry: int, policy: Policy, steps: int) -> Plan:
    kinds = [*([0] * n_consts), *([1] * n_carry), *([2] * (len(passes.in_types) - n_consts - n_carry))]
    blocks = sinking.SINK if policy.sinks else sinking.STEPWISE
    types = [*passes.in_types, *passes.out_types, *passes.candidate_types]

    def waits(cts: Sequence[Cotangent]) -> tuple[list[bool], int]:
        if passes.factored:
            return [type(c) is Factored for c in cts], steps
        divides = isinstance(steps, int) and not any(map(is_high, types))
        return blocks.choose(steps, cts) if divides else ([False] * len(cts), 1)

    trace_back = lambda *which: backward_body(passes, n_consts, n_carry, waits, *which)
    make = lambda *which: passes.made(("backward", blocks, steps, *which), lambda: trace_back(*which))
    available, invariant = [k != 1 for k in kinds], [k == 0 for k in kinds]
    return Plan(passes, make, available, invariant, policy.for_body(steps), policy.packs, steps=steps)


class BackwardBody(NamedTuple):
    """What is known of a loop's backward body beside the program.

    Attributes:
        summed: which constants have a sum carried along from step to step.
        waits: which constants have products that are contracted after a block of steps.
        tree: the structure of the stacks: products of constants, cotangents of xs, what the backward pass found.
        block: how many steps that is.
    """

    summed: Sequence[bool]
    waits: Sequence[bool]
    tree: PyTreeDef
    block: int


def backward_body(
    passes: Passes,
    n_consts: int,
    n_carry: int,
    waits: Callable[[Sequence[Cotangent]], tuple[list[bool], int]],
    nonzero: Sequence[bool],
    outer_names: OuterNames,
) -> tuple[Program, BackwardBody]:
    """Trace the backward body: (*candidates, *ct of carry, *ct of y, *names, *sums) -> sums, ct of carry, stacks.

    The cotangents of constants are sums over the steps, carried along, or, where it `waits`, products that are left to
    be contracted after a block of steps: their factors are stacked. Carries and ys have a cotangent where it is
    nonzero.
    """
    active = nonzero[:n_carry]
    carry_types = passes.in_types[n_consts : n_consts + n_carry]
    carries = [strong(t) for t, a in zip(carry_types, active, strict=True) if a]
    ys = [strong(t) for t, z in zip(passes.out_types[n_carry:], nonzero[n_carry:], strict=True) if z]
    n = len(passes.candidates)

    def step(*args: Value) -> tuple[list[Value], BackwardBody]:
        saved, ct_carry, ct_ys, named = split_list(args, n, len(carries), len(ys))
        carry_cts, y_cts = iter(ct_carry), iter(ct_ys)
        ct = [next(carry_cts) if a else Zero for a in active]
        ct += [next(y_cts) if z else Zero for z in nonzero[n_carry:]]
        back, results = passes.backward_pass(saved, ct, with_names(outer_names, named))
        to_consts, to_carry, to_xs = split_list(back, n_consts, n_carry)
        waiting, block = waits(to_consts)
        later = [c if w else Zero for c, w in zip(to_consts, waiting, strict=True)]
        now = [materialize(c) if c is not Zero and d is Zero else Zero for c, d in zip(to_consts, later, strict=True)]
        before = [instantiate(c, t) for c, t, a in zip(to_carry, carry_types, active, strict=True) if a]
        along = to_xs if passes.factored else [materialize(c) for c in to_xs]
        stacks, tree = jax.tree.flatten((later, along, results))
        outs = [to_strong(x) for x in (*(c for c in now if c is not Zero), *before, *stacks)]
        return outs, BackwardBody([c is not Zero for c in now], waiting, tree, block)

    types = [*passes.candidate_types, *carries, *ys, *(t for _, t in outer_names or ())]
    program, known = trace_with(step, types, "scan_backward")
    n_sums = sum(known.summed)

    def summed(*args: Any) -> list[Any]:
        terms, rest, sums = split_list(args, n_sums, len(program.outvars) - n_sums)
        return [*(add(total, term) for total, term in zip(sums, terms, strict=True)), *rest]

    outs = [v.aval for v in program.outvars]
    adding = trace(summed, [*outs, *outs[:n_sums]], "sums")
    return program.then(adding, [*range(len(outs)), *([None] * n_sums)]), known


def scan_bwd(
    state: State, res: ScanResiduals, ct: Sequence[Cotangent], perturbed: Sequence[bool], **params: Any
) -> list[Cotangent]:
    """Run the loop the other way round, on what was saved."""
    passes = res.plan.passes
    _, n_consts, n_carry = scan_parts(params)
    ct_carry, ct_ys = [materialize(c) for c in ct[:n_carry]], [materialize(c) for c in ct[n_carry:]]
    reached = scan_reached([passes.tape], [c is not Zero for c in (*ct_carry, *ct_ys)], **params)
    active = reached[n_consts : n_consts + n_carry]
    nonzero = [*active, *(c is not Zero for c in ct_ys)]
    program, body = res.plan.backward(nonzero, state.outer_names)
    sums = [zeros(strong(t)) for t, s in zip(res.const_types, body.summed, strict=True) if s]
    carries = zip(ct_carry, passes.in_types[n_consts:], active, strict=False)
    init = [to_strong(instantiate(c, t)) for c, t, a in carries if a]
    ys = [to_strong(c) for c in ct_ys if c is not Zero]
    inputs = {  # in the order the backward program takes them
        "consts": res.consts,
        "xs": res.xs,
        "hoisted": res.hoisted,
        "stacks": res.stacks,
        "ct carry": init,
        "ct ys": ys,
        "names": state.outer_cotangents,
        "sums": sums,
    }
    # a scan takes its constants, its carry and what it goes along, in this order
    constants, carry, along = ("consts", "hoisted", "names"), ("sums", "ct carry"), ("xs", "stacks", "ct ys")
    pick = lambda names: [x for name in names for x in inputs[name]]
    program = passes.made(program, lambda: program.reordered(_order(inputs, (*constants, *carry, *along))))
    given = [*program.consts, *pick(constants)]
    divided = operands_before(program.jaxpr, len(given), machine_here())
    if divided is not None:
        before, program = divided
        given = [*before(*given), *given]
    operands = given, pick(carry), pick(along)
    if body.block not in (1, params["length"]):
        outs, later, to_xs, results = _run_blocks(state, res, program, body, operands, params)
    else:
        outs, later, to_xs, results = _run_steps(state, program, body, operands, params)
    state.merge(results)
    totals, firsts = iter(outs[: len(sums)]), iter(outs[len(sums) :])
    cts = [
        *(next(totals) if s else c for s, c in zip(body.summed, later, strict=True)),
        *(next(firsts) if a else Zero for a in active),
        *(c.stacked(params["length"]) if type(c) is Factored else c for c in to_xs),
    ]
    return list(map(weak_as, cts, passes.in_types))


Operands = tuple[Sequence[Value], Sequence[Value], Sequence[Value]]  # of a scan: constants, carry, what it goes along


def _run_steps(
    state: State, program: Program, body: BackwardBody, operands: Operands, params: dict[str, Any]
) -> tuple[list[Value], list[Cotangent], list[Cotangent], Any]:
    """Run the backward body at each step; stacks of what it goes along are what it was given, and not written again.

    Returns:
        What it carries, the cotangents of constants that waited, those of xs, and what the backward pass found.
    """
    constants, carry, along = operands
    divided = handed_on(program.jaxpr, len(constants), len(carry), replaced(state.options))
    if divided is None:
        outs, stacks = bind_scan(Program(program.jaxpr), constants, carry, along, params, not params["reverse"])
    else:
        handed, rest, apart, read = divided
        given = iter(jax.vmap(lambda *xs: handed(*constants, *xs))(*along))
        along = [x for x, r in zip(along, read, strict=True) if r]
        outs, written = bind_scan(rest, constants, carry, along, params, not params["reverse"])
        step = iter(written)
        stacks = [next(given) if a else next(step) for a in apart]
    later, to_xs, results = body.tree.unflatten(stacks)
    return outs, [c if c is Zero else c.summed() for c in later], to_xs, results


def _run_blocks(
    state: State, res: ScanResiduals, program: Program, body: BackwardBody, operands: Operands, params: dict[str, Any]
) -> tuple[list[Value], list[Cotangent], list[Cotangent], Any]:
    """Run the backward body in blocks of steps, a loop in a loop, and add up what has waited in each block.

    What is recomputed by a product of what was saved with a constant is contracted before a block's steps, all at once.
    """
    constants, carry, along = operands
    n = params["length"] // body.block
    of_block = dict(params, length=body.block, unroll=min(params["unroll"], body.block))
    along = [x.reshape(n, body.block, *x.shape[1:]) for x in along]
    totals = [zeros(strong(t)) for t, w in zip(res.const_types, body.waits, strict=True) if w]
    when, stays = sinking.SINK.before(body.block), replaced(state.options)
    divided = hoisted_products(program.jaxpr, len(constants), len(carry), when, stays)
    hoisted, each = divided or (None, Program(program.jaxpr))

    def block(*args: Value) -> Any:
        constants_, totals_, carry_, along_ = split_list(args, len(constants), len(totals), len(carry))
        if hoisted is not None:
            along_ = [*along_, *jax.vmap(lambda *xs: hoisted(*constants_, *xs))(*along_)]
        outs, later, to_xs, results = _run_steps(state, each, body, (constants_, carry_, along_), of_block)
        terms = [to_strong(materialize(c)) for c in later if c is not Zero]
        return [add(a, b) for a, b in zip(totals_, terms, strict=True)], outs, to_xs, results

    types = [*map(type_of, (*constants, *totals, *carry)), *(row(type_of(x)) for x in along)]
    how = program, stays, params["reverse"], of_block["unroll"]  # one body may be gone over in several ways
    blocks, tree = res.plan.passes.made(how, lambda: trace_tree(block, types, "blocks"))
    whole = dict(params, length=n, unroll=1)
    outs, stacks = bind_scan(blocks, constants, [*totals, *carry], along, whole, not params["reverse"])
    steps = [x.reshape(params["length"], *x.shape[2:]) for x in stacks]
    sums, outs, to_xs, results = tree.unflatten([*outs, *steps])
    contracted = iter(sums)
    return outs, [next(contracted) if w else Zero for w in body.waits], to_xs, results


def _order(inputs: Mapping[str, Sequence[Value]], names: Sequence[str]) -> list[int]:
    """Find where the inputs of these names stand among all of them."""
    starts = dict(zip(inputs, accumulate(map(len, inputs.values()), initial=0), strict=False))
    return [starts[name] + i for name in names for i in range(len(inputs[name]))]


def reached_steps(tape: Tape, outputs: Sequence[bool], n_consts: int, n_carry: int) -> list[bool]:
    """Find which inputs of a loop's body cotangents of the loop's outputs come back to, in any of its steps.

    A carry that no output depends on is not among them.
    """
    carry, ys = list(outputs[:n_carry]), outputs[n_carry:]
    while True:
        consts, before, xs = split_list(tape.reached([*carry, *ys]), n_consts, n_carry)
        grown = [a or b for a, b in zip(carry, before, strict=True)]
        if grown == carry:
            return [*consts, *carry, *xs]
        carry = grown


def scan_reached(tapes: Sequence[Tape], outputs: Sequence[bool], **params: Any) -> list[bool]:
    """Tell which primals cotangents of these outputs come back to."""
    return reached_steps(tapes[0], outputs, *scan_parts(params)[1:])


def scan_marked(params: dict[str, Any], which: Sequence[bool]) -> tuple[Sequence[bool], dict[str, Any]]:
    """Hand the body the feedback weights of its operands. A carry has none: it is another value at every step."""
    _, n_consts, n_carry = scan_parts(params)
    which = [w and not n_consts <= i < n_consts + n_carry for i, w in enumerate(which)]
    return which, scan_of_marked(params, which)


EACH_STEP = Traits(repeatable=True, inside=lambda params, costs: params["length"] * sum(costs))
def_control(
    primitives.scan_p,
    scan_fwd,
    scan_bwd,
    instead=products_before,
    mark_inside=scan_marked,
    reaches=scan_reached,
    traits=EACH_STEP,
)
