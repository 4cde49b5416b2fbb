"""Calls: programs inside programs, that run once.

A call of a jitted function stays a call in both passes: made a hundred times, it is traced, lowered and planned once.
It is inlined, recorded in its place, where somebody has to look inside: a plan, an observer of every equation, a
feedback mark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jax import lax

from ..autodiff.passes import passes_of
from ..autodiff.tape import Tape
from ..cotangents import Cotangent, Zero, materialize
from ..jaxpr import (
    Program,
    as_function,
    attached_p,
    bind_compute_on,
    bind_fused,
    bind_jit,
    bind_with_metadata,
    call_jaxpr,
    constrained,
    fused_body,
    in_space_of,
    is_staging,
    primitive,
    primitives,
    run_attached,
    type_of,
)
from ..jaxpr.types import PyTree, Value
from ..remat.plan import Passes, Plan, Residuals, plan_of_call
from ..rules.kinds import BodyRule, CallRule, Operation, Recorder, State
from ..rules.options import Options
from ..rules.registry import def_body, def_control, enter
from ..rules.traits import CALL, def_traits

# --- jit --------------------------------------------------------------------------------------------------------------


def call_res(
    plan: Plan, primals: Sequence[Value], outs: Sequence[Value]
) -> tuple[Sequence[Value], PyTree, Sequence[bool]]:
    """Make what the rule of a call returns on the way forward, of what its forward program returned."""
    n = len(plan.passes.outputs)
    res = Residuals(plan, [primals[i] for i in plan.available_inputs], [], outs[n:])
    return outs[:n], res, plan.passes.differentiable


def call_back(
    state: State, res: Residuals, ct: Sequence[Cotangent], run: Callable[[Program, list[Value]], Sequence[Value]]
) -> list[Cotangent]:
    """Run the backward program of a body on what was saved; `run(program, args)` says how."""
    program, tree = res.plan.backward([c is not Zero for c in ct], state.outer_names)
    args = [*res.arrays, *(materialize(c) for c in ct if c is not Zero), *state.outer_cotangents]
    cts, results = tree.unflatten(run(program, args))
    state.merge(results)
    return cts


def call_reached(tapes: Sequence[Tape], outputs: Sequence[bool], **params: Any) -> list[bool]:
    """Tell which primals of a call the cotangents of these outputs come back to."""
    return tapes[0].reached(outputs)


def call_plan(passes: Passes, donated: Sequence[bool] | None = None) -> Plan:
    """Plan the body of a call.

    What a backward program reads is known when it is made, and which of several outputs have a cotangent only on the
    way back: one made before, for all of them, may never run. Where the call is written into a program, all that the
    rules keep is handed out instead, and what nothing reads is dropped with the rest of that program.
    """
    rehearsed = not is_staging() or sum(passes.differentiable) < 2
    return plan_of_call(passes, ("call", donated), donated=donated, rehearsed=rehearsed)


def jit_fwd(
    options: Options, perturbed: Sequence[bool], *primals: Value, **params: Any
) -> tuple[Sequence[Value], PyTree, Sequence[bool]]:
    """Run the compiled forward program, which also returns what the compiled backward program reads."""
    passes, donated = passes_of(constrained(params), perturbed, options), params["donated_invars"]
    plan = call_plan(passes, donated)
    return call_res(plan, primals, bind_jit(plan.forward, primals, params, donated))


def jit_bwd(
    state: State, res: PyTree, ct: Sequence[Cotangent], perturbed: Sequence[bool], **params: Any
) -> list[Cotangent]:
    """Run the compiled backward program on what was saved."""
    return call_back(state, res, ct, lambda program, args: bind_jit(program, args, params))


enter(
    primitives.jit_p,
    CallRule(jit_bwd, jit_fwd, reaches=call_reached, body=lambda params: as_function(constrained(params))),
    CALL,
)


def compute_on_fwd(
    options: Options, perturbed: Sequence[bool], *primals: Value, **params: Any
) -> tuple[Sequence[Value], PyTree, Sequence[bool]]:
    """Run the forward program on the unit that the user named: what it saves stays where that has it."""
    plan = call_plan(passes_of(params["jaxpr"], perturbed, options))
    return call_res(plan, primals, bind_compute_on(plan.forward, primals, params, params["out_memory_spaces"]))


def compute_on_bwd(
    state: State, res: PyTree, ct: Sequence[Cotangent], perturbed: Sequence[bool], **params: Any
) -> list[Cotangent]:
    """Run the backward program on the same unit."""
    return call_back(state, res, ct, lambda program, args: bind_compute_on(program, args, params))


def metadata_fwd(options: Options, perturbed: Sequence[bool], *primals: Any, **params: Any) -> tuple[Any, Any, Any]:
    """Run the forward program with what the user tells the compiler of it (`xla_metadata_call`)."""
    plan = call_plan(passes_of(params["jaxpr"], perturbed, options))
    return call_res(plan, primals, bind_with_metadata(plan.forward, primals, params))


def metadata_bwd(state: State, res: Any, ct: Sequence[Any], perturbed: Sequence[bool], **params: Any) -> list[Any]:
    """Run the backward program with what the user tells the compiler of that."""
    return call_back(state, res, ct, lambda program, args: bind_with_metadata(program, args, params, back=True))


def fused_fwd(
    options: Options, perturbed: Sequence[bool], *primals: Value, **params: Any
) -> tuple[Sequence[Value], PyTree, Sequence[bool]]:
    """Run the kernel as it is, keeping its operands alone."""
    plan = plan_of_call(passes_of(fused_body(params["jaxpr"]), perturbed, options), "fused", choose=lambda *_: [])
    outs, res, differentiable = call_res(plan, primals, bind_fused(plan.forward, primals, params, params["out_spaces"]))
    return outs, (res, [*map(type_of, primals)]), differentiable


def fused_bwd(
    state: State, res: PyTree, ct: Sequence[Cotangent], perturbed: Sequence[bool], **params: Any
) -> list[Cotangent]:
    """Run what is recomputed and the way back as one kernel; cotangents go to the memory that their primals are in."""
    kept, types = res
    back = call_back(state, kept, ct, lambda program, args: bind_fused(program, args, params))
    return [c if c is Zero or c is None else in_space_of(materialize(c), x) for c, x in zip(back, types, strict=True)]


@dataclass(frozen=True, eq=False, repr=False)
class AttachedRule(BodyRule):
    """A function that carries its backward pass along, in which the derivative of some outputs may be stopped."""

    def record(self, recorder: Recorder, operation: Operation) -> Value:
        def body(*operands: Value) -> list[Value]:
            outs = self.body(operation.params)(*operands)  # type: ignore[misc]
            moving = operation.params["bwd"].moving(operation.perturbed)
            return [y if m else lax.stop_gradient(y) for y, m in zip(outs, moving, strict=True)]

        return recorder.inline(body, operation, call=True)


def_control(primitive("compute_on_p"), compute_on_fwd, compute_on_bwd, reaches=call_reached, traits=CALL)
def_control(primitive("fused_p"), fused_fwd, fused_bwd, reaches=call_reached, traits=CALL)
if (xla_metadata_call_p := primitive("xla_metadata_call_p")) is not None:
    def_control(xla_metadata_call_p, metadata_fwd, metadata_bwd, reaches=call_reached, traits=CALL)
for p in (primitives.closed_call_p, *map(primitive, ("composite_p", "custom_vmap_p", "eval_jaxpr_p"))):
    def_body(p, lambda params: as_function(call_jaxpr(params)), traits=CALL)
enter(
    attached_p,
    AttachedRule(body=lambda params: partial(run_attached, **params)),
    CALL.but(cheap=False, repeatable=False),
)
def_traits(CALL, primitive("custom_jvp_call_p"))
def_traits(CALL.but(cheap=False, repeatable=False), primitive("custom_vjp_call_p"))
