"""Calls: programs inside programs, that run once.

A call of a jitted function stays a call in both passes: made a hundred times, it is traced, lowered and planned once.
It is inlined, recorded in its place, where somebody has to look inside: a plan, an observer of every equation, a
feedback mark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..autodiff.passes import passes_of
from ..cotangents import Zero, float0_zeros, materialize
from ..jaxpr import (
    Program,
    as_function,
    bind_jit,
    call_jaxpr,
    constrained,
    current_source,
    instantiated_tangent,
    is_jax_zero,
    primitive,
    primitives,
    user_line,
)
from ..remat.plan import Plan, Residuals, plan_of_call
from ..rules.contract import MissingRuleError
from ..rules.kinds import CallRule, State
from ..rules.options import Options
from ..rules.registry import def_body, enter
from ..rules.traits import CALL, def_traits

# --- jit --------------------------------------------------------------------------------------------------------------


def call_res(plan: Plan, primals: Sequence[Any], outs: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Make what the rule of a call returns on the way forward, of what its forward program returned."""
    n = len(plan.passes.outputs)
    res = Residuals(plan, [primals[i] for i in plan.available_inputs], [], outs[n:])
    return outs[:n], res, plan.passes.differentiable


def call_back(state: State, res: Residuals, ct: Sequence[Any], run: Callable[[Program, list[Any]], Any]) -> list[Any]:
    """Run the backward program of a body on what was saved; `run(program, args)` says how."""
    program, tree = res.plan.backward([c is not Zero for c in ct], state.outer_names)
    args = [*res.arrays, *(materialize(c) for c in ct if c is not Zero), *state.outer_cotangents]
    cts, results = tree.unflatten(run(program, args))
    state.merge(results)
    return cts


def call_reached(tapes: Sequence[Any], outputs: Sequence[bool], **params: Any) -> list[bool]:
    """Tell which primals of a call the cotangents of these outputs come back to."""
    return tapes[0].reached(outputs)


def jit_fwd(options: Options, perturbed: Sequence[bool], *primals: Any, **params: Any) -> tuple[Any, Any, Any]:
    """Run the compiled forward program, which also returns what the compiled backward program reads."""
    passes, donated = passes_of(constrained(params), perturbed, options), params["donated_invars"]
    plan = plan_of_call(passes, ("call", donated), donated=donated)
    return call_res(plan, primals, bind_jit(plan.forward, primals, params, donated))


def jit_bwd(state: State, res: Any, ct: Sequence[Any], perturbed: Sequence[bool], **params: Any) -> list[Any]:
    """Run the compiled backward program on what was saved."""
    return call_back(state, res, ct, lambda program, args: bind_jit(program, args, params))


enter(
    primitives.jit_p,
    CallRule(jit_bwd, jit_fwd, reaches=call_reached, body=lambda params: as_function(constrained(params))),
    CALL,
)
for p in (primitives.closed_call_p, primitive("composite_p"), primitive("custom_vmap_p")):
    def_body(p, lambda params: as_function(call_jaxpr(params)), traits=CALL)
def_traits(CALL, primitive("custom_jvp_call_p"))
def_traits(CALL.but(cheap=False, repeatable=False), primitive("custom_vjp_call_p"))


def ldexp_jvp(operation: Any, primals: Any, tangents: Any) -> Any:
    """z = x 2ⁿ:  ż = ẋ 2ⁿ. (JAX's is the operation itself, once more, to be transposed by a method of its class.)"""
    (x, n), (dx, _) = primals, tangents
    return operation(x, n), dx * jnp.ldexp(jnp.ones_like(x), n)


def frexp_jvp(operation: Any, primals: Any, tangents: Any) -> Any:
    """x = m 2ⁿ:  ṁ = ẋ 2⁻ⁿ."""
    (x,), (dx,) = primals, tangents
    m, n = operation(x)
    return (m, n), (dx * jnp.ldexp(jnp.ones_like(x), -n), float0_zeros(jax.typeof(n)))


SCALED = {"Ldexp": ldexp_jvp, "Frexp": frexp_jvp}


def with_its_jvp(params: dict[str, Any]) -> Any:
    """Run an operation that JAX writes as a class (in newer JAX `jnp.ldexp`, `lax.custom_root`) with its own `jvp`.

    It becomes a `jax.custom_jvp` function of the same value and derivative. A class without a `jvp` is refused.
    """
    operation = params["_prim"]
    jvp = SCALED.get(type(operation).__name__, lambda operation, *moving: operation.jvp(*moving))
    if type(operation).jvp.__qualname__.split(".")[0] in ("HiPrim", "VJPHiPrimitive", "HiPrimitive"):
        what = f"`{type(operation).__name__}` at {user_line(current_source())}"
        raise MissingRuleError(f"funcbp has no derivative for {what}: its class has no `jvp`. Write one.")
    unflatten = operation.in_tree.unflatten

    @jax.custom_jvp
    def run(*primals: Any) -> list[Any]:
        return jax.tree.leaves(operation.expand(*unflatten(primals)))

    @run.defjvp
    def run_jvp(primals: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
        outs, moved = jvp(operation, unflatten(primals), unflatten(tangents))
        return jax.tree.leaves(outs), [instantiated_tangent(t) for t in jax.tree.leaves(moved, is_leaf=is_jax_zero)]

    return run


if primitive("CustomRoot") is not None:  # where JAX itself writes its operations so
    def_body(primitive("call_hi_primitive_p"), with_its_jvp)
