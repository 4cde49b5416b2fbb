"""Loops with snapshots: the sweep forward stores a few states, and the way back reruns the steps between them.

The schedule is in `schedule.py`. A step is gone back through as the body of any loop is, by the caller's options; what
it reads of its forward pass is recomputed from the state before it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import PyTreeDef

from .. import jaxpr as jx
from ..autodiff.backward_pass import BackwardState
from ..autodiff.passes import passes_of
from ..autodiff.tape import Tape
from ..cotangents import Cotangent, Factored, Zero, instantiate, materialize, weak_as
from ..jaxpr import Program, split_list
from ..jaxpr.types import Aval, ClosedJaxpr, Primitive, PyTree, Value
from ..remat.plan import OuterNames, Passes, Plan
from ..remat.policies import POLICIES
from ..rules.contract import MissingRuleError
from ..rules.kinds import MissingRule, State
from ..rules.options import Options
from ..rules.registry import TABLE, def_body, def_control, def_zero
from ..rules.traits import ELEMENTWISE, Traits
from .scan import EACH_STEP, backward_body, perturbed_carry, reached_steps, scan_marked
from .schedule import binomials, first_snapshots, steps_to_next

__all__ = ["Loop", "LoopResiduals", "loop_bwd", "loop_fwd"]


class Loop(NamedTuple):
    """A loop of at most `steps` steps: what both kinds have in common.

    Attributes:
        body: program (*constants, *state, *x) -> (*state, *y).
        condition: program (*its own constants, *state) -> whether to go on; None for a scan.
        n_cond, n_consts, n_state: how many constants the condition and the body have, and how many arrays the state.
        steps, snapshots: how many steps it has at most, and states are stored at any time.
        reverse: whether it goes along the xs from the last to the first.
    """

    body: ClosedJaxpr
    condition: ClosedJaxpr | Any
    n_cond: int
    n_consts: int
    n_state: int
    steps: int
    snapshots: int
    reverse: bool

    @classmethod
    def of(cls, params: dict[str, Any]) -> Loop:
        """Read the loop that an equation with these parameters is."""
        scans = "length" in params
        steps = params["length"] if scans else params["max_steps"]
        how = steps, min(params["snapshots"], steps), scans and params["reverse"]
        if scans:
            body, n_consts, n_state = jx.scan_parts(params)
            return cls(body, None, 0, n_consts, n_state, *how)
        body, n_cond, n_consts = jx.while_parts(params)
        return cls(body, jx.while_condition(params), n_cond, n_consts, len(jx.out_avals(body)), *how)

    def split(self, operands: Sequence[Value]) -> list[list[Value]]:
        """Split operands into the constants of the condition, those of the body, the state, the xs."""
        return split_list(operands, self.n_cond, self.n_consts, self.n_state)

    def numbers(self) -> jax.Array:
        """Number the steps, in the order of the xs."""
        numbers = np.arange(self.steps, dtype=np.int32)
        return jnp.asarray(numbers[::-1] if self.reverse else numbers)

    def advance(self) -> tuple[Program, list[bool]]:
        """Cut out the program of a step's next state alone; and tell which of the body's inputs it has."""
        body = Program.of(self.body)
        keep = [self.n_consts <= i < self.n_consts + self.n_state for i in range(len(body.invars))]
        return body.with_outputs(body.outvars[: self.n_state]).pruned(keep)


class LoopResiduals(NamedTuple):
    """What a loop leaves for its backward pass.

    Attributes:
        plan: of the body, which keeps nothing of a step but what it starts from.
        const_types: the types of the loop's constants.
        consts, xs: those of the loop's constants, and of what it goes along, that are read; None for the others.
        snapshots: the states that were stored, stacked.
        count: how many steps the loop took.
    """

    plan: Plan
    const_types: Sequence[Aval]
    consts: Sequence[Value]
    xs: Sequence[Value]
    snapshots: Sequence[Value]
    count: Value


# --- forward ----------------------------------------------------------------------------------------------------------


def loop_fwd(
    options: Options, perturbed: Sequence[bool], *primals: Value, **params: Any
) -> tuple[Sequence[Value], PyTree, Sequence[bool]]:
    """Run the loop, storing the snapshots that the schedule for the largest number of steps begins with."""
    loop = Loop.of(params)
    of_cond, consts, init, xs = loop.split(primals)
    passes = perturbed_carry(lambda p: passes_of(loop.body, p, options.inlining), *loop.split(perturbed)[1:])
    plan = passes.made("snapshots", lambda: _plan(loop, passes))
    empty = [jx.to_strong(lax.broadcast(x, (loop.snapshots,))) for x in init]
    step = passes.made(("storing", loop[1:]), lambda: _storing(loop, [*map(jx.type_of, empty)]))
    if loop.condition is None:
        carry, ys = jx.bind_scan(
            step, consts, [*init, *empty], [loop.numbers(), *xs], jx.as_plain(params), loop.reverse
        )
        count = jnp.int32(loop.steps)
    else:
        holds = passes.made(("holds", loop[1:]), lambda: _holds(loop, step))
        (count, *carry), ys = jx.bind_while(holds, step, of_cond, consts, [jnp.int32(0), *init, *empty]), []
    _, used = passes.made("advance", loop.advance)
    read = [u or i in plan.available_inputs for i, u in enumerate(used)]
    read_consts, read_xs = read[: loop.n_consts], read[loop.n_consts + loop.n_state :]
    if_read = lambda values, read: [x if r else None for x, r in zip(values, read, strict=True)]
    state, snapshots = split_list(carry, loop.n_state)
    const_types = [jx.type_of(c) for c in consts]
    res = LoopResiduals(plan, const_types, if_read(consts, read_consts), if_read(xs, read_xs), snapshots, count)
    grown = passes.perturbed[loop.n_consts : loop.n_consts + loop.n_state]
    return [*state, *ys], res, [*grown, *passes.differentiable[loop.n_state :]]


def _plan(loop: Loop, passes: Passes) -> Plan:
    """Plan a step: its inputs are available when it is gone back through, and nothing else.

    The factors of products are stacked where they are asked for, unless only the run tells how many steps there are.
    """
    stacks = passes.factored and loop.condition is None
    waits = lambda cts: ([stacks and type(c) is Factored for c in cts], loop.steps)
    make = lambda *which: backward_body(passes, loop.n_consts, loop.n_state, waits, *which)
    return Plan(passes, make, [True] * len(passes.in_types), choose=lambda forward, needed, available: [])


def _storing(loop: Loop, stored_types: Sequence[Aval]) -> Program:
    """Trace a step that also stores the state it starts from, where the schedule says so.

    (*constants, *state, *stored, t, *x) -> (*state, *stored, *y); or, where there is a condition, with t as a part of
    the state: (*constants, t, *state, *stored) -> (t + 1, *state, *stored).
    """
    consts, state, xs = split_list(jx.in_avals(loop.body), loop.n_consts, loop.n_state)
    places = np.array(first_snapshots(loop.steps, loop.snapshots), np.int32)
    number, body = jx.type_of(jnp.int32(0)), Program.of(loop.body)

    def run(t: Value, consts: Value, state: Value, stored: Value, x: Value) -> tuple[list[Value], list[Value]]:
        slot = lax.min((jnp.asarray(places) < t).sum(dtype=np.int32), np.int32(len(places) - 1))
        stored = _store(stored, slot, state, _at(jnp.asarray(places), slot) == t)
        new, ys = split_list(jx.bind_call(body, [*consts, *state, *x]), loop.n_state)
        return [*new, *stored], ys

    def scanned(*args: Value) -> list[Value]:
        consts, state, stored, (t, *x) = split_list(args, loop.n_consts, loop.n_state, loop.n_state)
        carry, ys = run(t, consts, state, stored, x)
        return [*carry, *ys]

    def counted(*args: Value) -> list[Value]:
        consts, (t,), state, stored = split_list(args, loop.n_consts, 1, loop.n_state)
        return [t + 1, *run(t, consts, state, stored, [])[0]]

    if loop.condition is None:
        return jx.trace(scanned, [*consts, *state, *stored_types, number, *xs], "storing")
    return jx.trace(counted, [*consts, number, *state, *stored_types], "storing")


def _holds(loop: Loop, step: Program) -> Program:
    """Trace the loop's condition, as one of (*its constants, t, *state, *stored)."""
    condition = jx.as_function(loop.condition)
    holds = lambda *args: condition(*args[: loop.n_cond], *args[loop.n_cond + 1 :][: loop.n_state])
    types = [*jx.in_avals(loop.condition)[: loop.n_cond], *(v.aval for v in step.invars[loop.n_consts :])]
    return jx.trace(holds, types, "holds")


def _at(stack: Value, slot: Value) -> Value:
    return lax.dynamic_index_in_dim(stack, slot, 0, False)


def _read(stored: Value, slot: Value) -> Value:
    return [_at(s, slot) for s in stored]


def _store(stored: Value, slot: Value, state: Value, really: Value) -> Value:
    new = state
    if really is not True:
        new = [lax.select(really, jx.to_strong(a), b) for a, b in zip(state, _read(stored, slot), strict=True)]
    return [lax.dynamic_update_index_in_dim(s, jx.to_strong(x), slot, 0) for s, x in zip(stored, new, strict=True)]


# --- backward ---------------------------------------------------------------------------------------------------------


def loop_bwd(
    state: State, res: LoopResiduals, ct: Sequence[Cotangent], perturbed: Sequence[bool], **params: Any
) -> list[Cotangent]:
    """Reverse the steps one by one, the last first, each from its state.

    What is found inside comes out stacked by the steps' numbers; of a loop with a condition, `max_steps` of them, with
    zeros for those that it did not take.
    """
    loop, passes = Loop.of(params), res.plan.passes
    ct_state, ct_ys = split_list([materialize(c) for c in ct], loop.n_state)
    reached = reached_steps(passes.tape, [c is not Zero for c in (*ct_state, *ct_ys)], loop.n_consts, loop.n_state)
    active = reached[loop.n_consts : loop.n_consts + loop.n_state]
    nonzero = (*active, *(c is not Zero for c in ct_ys))
    carried = zip(ct_state, passes.in_types[loop.n_consts :], active, strict=False)
    last = [jx.to_strong(instantiate(c, t)) for c, t, a in carried if a]
    ys = [jx.to_strong(c) for c in ct_ys if c is not Zero]
    args, tree = jax.tree.flatten((res.consts, res.xs, res.snapshots, res.count, last, ys, state.outer_cotangents))
    types = tuple(map(jx.type_of, args))
    reversal = lambda: _reversal(loop, res, nonzero, state.outer_names, tree, types)
    program = passes.made(("reversal", loop[1:], nonzero, state.outer_names, types), reversal)
    outs = jx.bind_reversal(program, args)
    _, body = res.plan.backward(nonzero, state.outer_names)
    sums, firsts, stacks = split_list(outs, sum(body.summed), len(last))
    later, to_xs, results = body.tree.unflatten(stacks)
    state.merge(results)
    totals, starts = iter(sums), iter(firsts)
    cts = [
        *(next(totals) if s else (c if c is Zero else c.summed()) for s, c in zip(body.summed, later, strict=True)),
        *(next(starts) if a else Zero for a in active),
        *(c.stacked(loop.steps) if type(c) is Factored else c for c in to_xs),
    ]
    return [*([None] * loop.n_cond), *map(weak_as, cts, passes.in_types)]


class Stack(NamedTuple):
    """The snapshots that are stored, a stack: the last one is taken off when its step has been reversed.

    Attributes:
        places: the steps before which they were taken.
        taken: how many there are.
        states: their arrays, each with an axis of places.
    """

    places: Value
    taken: Value
    states: Sequence[Value]

    def top(self) -> tuple[Value, list[Value]]:
        """Read the last snapshot: its step, and the state before that."""
        return _at(self.places, self.taken - 1), _read(self.states, self.taken - 1)

    def push(self, place: Value, state: Sequence[Value]) -> Stack:
        """Store another one."""
        places = lax.dynamic_update_index_in_dim(self.places, place, self.taken, 0)
        return Stack(places, self.taken + 1, _store(self.states, self.taken, state, True))


class Sweep(NamedTuple):
    """Runs steps again, from a snapshot on.

    Attributes:
        loop: the loop.
        advance: the program of a step's next state.
        used: which of the body's inputs that has.
        consts, xs: of the loop, what is read; None for the others.
        table: how many steps so many snapshots and reruns reverse.
    """

    loop: Loop
    advance: Program
    used: Sequence[bool]
    consts: Sequence[Value]
    xs: Sequence[Value]
    table: Value

    def to(self, stop: Value, state: Sequence[Value], start: Value) -> list[Value]:
        """Run from a state to that before the step `stop`."""

        def one(t: Value, state: list[Value]) -> list[Value]:
            i = self.loop.steps - 1 - t if self.loop.reverse else t
            x = [None if x is None else lax.dynamic_index_in_dim(x, i, 0, False) for x in self.xs]
            inputs = zip([*self.consts, *state, *x], self.used, strict=True)
            return [jx.to_strong(x) for x in jx.bind_call(self.advance, [x for x, u in inputs if u])]

        return list(lax.fori_loop(start, stop, one, list(state)))

    def store(self, stack: Stack, t: Value) -> Stack:
        """Store snapshots between the last one and step t, while there is room."""
        room = self.loop.snapshots

        def another(stack: Stack) -> Stack:
            at, state = stack.top()
            stop = at + steps_to_next(self.table, t + 1 - at, room - stack.taken + 1)
            return stack.push(stop, self.to(stop, state, at))

        return lax.while_loop(lambda s: (_at(s.places, s.taken - 1) < t) & (s.taken < room), another, stack)


def _reversal(
    loop: Loop,
    res: LoopResiduals,
    nonzero: Sequence[bool],
    outer_names: OuterNames,
    tree: PyTreeDef,
    types: Sequence[Aval],
) -> Program:
    """Trace the whole way back, a program: -> (*sums for constants, *ct of the first state, *stacks)."""
    passes = res.plan.passes
    step, body = res.plan.backward(nonzero, outer_names)
    advance, used = passes.made("advance", loop.advance)
    first = first_snapshots(loop.steps, loop.snapshots)
    n_sums = sum(body.summed)
    zero_sums = [jx.strong(t) for t, s in zip(res.const_types, body.summed, strict=True) if s]

    def reversal(*args: Value) -> list[Value]:
        consts, xs, snapshots, count, last, ct_ys, named = tree.unflatten(args)
        sweep = Sweep(loop, advance, used, consts, xs, jnp.asarray(binomials(loop.snapshots, loop.steps)))

        def back(carry: Value, t: Value, x: Value, ct_y: Value) -> tuple[Any, Any]:
            stack, sums, ct_state = carry
            stack = sweep.store(stack, t)
            start, state = stack.top()
            inputs = [*consts, *sweep.to(t, state, start), *x]
            available = [inputs[i] for i in res.plan.available_inputs]
            outs = jx.bind_call(step, [*available, *ct_state, *ct_y, *named, *sums])
            sums, ct_state, found = split_list(outs, n_sums, len(ct_state))
            taken = stack.taken - lax.convert_element_type(start == t, np.int32)
            return (stack._replace(taken=taken), sums, ct_state), found

        places = np.zeros(loop.snapshots, np.int32)
        places[: len(first)] = first
        taken = (jnp.asarray(first, np.int32) < count).sum(dtype=np.int32)
        carry = Stack(jnp.asarray(places), taken, snapshots), [jx.zeros(t) for t in zero_sums], last
        if loop.condition is None:
            along = loop.numbers(), xs, ct_ys
            (_, sums, ct_state), stacks = lax.scan(
                lambda carry, at: back(carry, *at), carry, along, loop.steps, reverse=not loop.reverse
            )
        else:
            found: list[Aval] = [v.aval for v in step.outvars[n_sums + len(last) :]]
            rows = [jx.zeros(t.update(shape=(loop.steps, *t.shape))) for t in found]

            def one(i: Value, both: Value) -> Value:
                carry, rows = both
                carry, found = back(carry, t := count - 1 - i, [], [])
                return carry, [lax.dynamic_update_index_in_dim(r, x, t, 0) for r, x in zip(rows, found, strict=True)]

            (_, sums, ct_state), stacks = lax.fori_loop(jnp.int32(0), count, one, (carry, rows))
        return [*sums, *ct_state, *stacks]

    return jx.trace(reversal, types, "reversal")


# --- the rules --------------------------------------------------------------------------------------------------------


def loop_reached(tapes: Sequence[Tape], outputs: Sequence[bool], **params: Any) -> list[bool]:
    """Tell which primals cotangents of these outputs come back to; never the constants of a condition."""
    loop = Loop.of(params)
    return [*([False] * loop.n_cond), *reached_steps(tapes[0], outputs, loop.n_consts, loop.n_state)]


def while_marked(params: dict[str, Any], which: Sequence[bool]) -> tuple[Sequence[bool], dict[str, Any]]:
    """Hand the body the feedback weights of its constants. A state has none: it is another value at every step."""
    _, n_cond, n_body = jx.while_parts(params)
    which = [w and n_cond <= i < n_cond + n_body for i, w in enumerate(which)]
    return which, jx.while_of_marked(params, which)


def transposed(
    primitive: Primitive,
    params: dict[str, Any],
    moving: Sequence[bool],
    operands: Sequence[Value],
    cts: Sequence[Value],
) -> Sequence[Value]:
    """Go back through a loop where JAX's reverse mode asks for it: by the rules of the table."""
    options = Options(policy=POLICIES["min_cut"])
    _, res, _ = loop_fwd(options, moving, *operands, **params)
    ct = [Zero if c is None else c for c in cts]
    return [materialize(c) for c in loop_bwd(BackwardState(options, {}), res, ct, moving, **params)]


def reversal_message(where: str) -> str:
    return (
        f"Reverse-mode differentiation does not go through {where} a second time: this is the way back through a loop "
        "of funcbp.while_loop, or of funcbp.scan with snapshots=..., and how often it reruns which step is decided "
        "when it runs. Take the second derivative in forward mode, with funcbp.hvp or jax.jacfwd of the gradient."
    )


AT_MOST = Traits(repeatable=True, inside=lambda params, costs: params["max_steps"] * sum(costs))


def refuse_reversal() -> NoReturn:
    line = jx.user_line(jx.current_source())
    raise MissingRuleError(reversal_message(f"`{jx.loop_reversal_p}` at {line}" if line else f"`{jx.loop_reversal_p}`"))


def_control(jx.snapshot_scan_p, loop_fwd, loop_bwd, mark_inside=scan_marked, reaches=loop_reached, traits=EACH_STEP)
def_control(jx.snapshot_while_p, loop_fwd, loop_bwd, mark_inside=while_marked, reaches=loop_reached, traits=AT_MOST)
jx.def_loop_transpose(transposed)
def_body(jx.loop_tangent_p, lambda params: functools.partial(jx.loop_tangent, **params))
def_zero(jx.unfinished_loop_p, traits=ELEMENTWISE)
jx.def_reversal_transpose(refuse_reversal)
TABLE.update(dict.fromkeys((jx.loop_reversal_p, jx.loop_reversal_tangent_p), MissingRule(message=reversal_message)))
