"""Calls: programs inside programs, that run once.

While a program is being traced, a call is run through the recording in its place. Called with concrete values, `jit` is
kept: both of its passes are compiled, as the user asked for the forward one to be.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..cotangents import Zero, dense, float0_zeros
from ..jaxpr import (
    as_function,
    bind_device_put,
    bind_remat,
    call_jaxpr,
    constrained,
    current_source,
    feedback_p,
    instantiated_tangent,
    is_jax_zero,
    is_saved,
    primitive,
    primitives,
    run_behind_barrier,
    sharding_of,
    user_line,
)
from ..plan import Plan, plan_of_call
from ..policies import permitted
from .table import TABLE, TYPES, MissingRuleError, Rule, def_body, def_control, def_linear, def_rule

# --- jit --------------------------------------------------------------------------------------------------------------


def call_res(plan: Plan, primals: Sequence[Any], outs: Sequence[Any]) -> tuple[Any, Any, Any]:
    n = len(plan.passes.outputs)
    return outs[:n], (plan, [primals[i] for i in plan.free], outs[n:]), plan.passes.differentiable


def call_back(walk: Any, res: Any, ct: Sequence[Any], run: Any) -> list[Any]:
    """Run the backward program of a body on what was kept; `run(program, args)` says how."""
    plan, free, kept = res
    program, tree = plan.backward([c is not Zero for c in ct], walk.given)
    args = [*free, *kept, *(dense(c) for c in ct if c is not Zero), *walk.brought]
    cts, found = tree.unflatten(run(program, args))
    walk.take_in(found)
    return cts


def jit_fwd(walker: Any, perturbed: Sequence[bool], *primals: Any, **params: Any) -> tuple[Any, Any, Any]:
    """Run the compiled forward program, which also returns what the compiled backward program reads."""
    plan = plan_of_call(walker.passes(constrained(params), perturbed))
    return call_res(plan, primals, plan.forward.jitted(*primals))


def jit_bwd(walk: Any, res: Any, ct: Sequence[Any], perturbed: Sequence[bool], **params: Any) -> list[Any]:
    """Run the compiled backward program on what was kept."""
    return call_back(walk, res, ct, lambda program, args: program.jitted(*args))


TABLE[primitives.jit_p] = Rule(jit_bwd, jit_fwd, kind="control", body=lambda params: as_function(constrained(params)))
for p in (primitives.closed_call_p, primitive("composite_p"), primitive("custom_vmap_p")):
    def_body(p, lambda params: as_function(call_jaxpr(params)))


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
    """An operation that JAX writes as a class, `jnp.ldexp` or `lax.custom_root` in newer JAX: by its own `jvp`.

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


# --- jax.checkpoint ---------------------------------------------------------------------------------------------------


def remat_fwd(walker: Any, perturbed: Sequence[bool], *primals: Any, **params: Any) -> tuple[Any, Any, Any]:
    """Run the region, keeping its inputs and, of what the user's policy says, no more than is needed."""
    policy, narrow = params["policy"], walker.residuals not in ("needed", "inputs")
    passes, saved = walker.passes(params["jaxpr"], perturbed), functools.partial(is_saved, policy)
    if policy is not None and not planned(policy):
        passes = passes.made(("saving", policy), functools.partial(passes.saving, saved))
    choose = policy.choose if planned(policy) else permitted(saved, cut=narrow)
    plan = plan_of_call(passes, (policy, narrow), choose)
    return call_res(plan, primals, bind_remat(plan.forward, primals, params, differentiated=False))


def remat_bwd(walk: Any, res: Any, ct: Sequence[Any], perturbed: Sequence[bool], **params: Any) -> list[Any]:
    """Compute again what was not kept, behind a barrier that XLA does not undo, and go back."""
    if planned(params["policy"]):
        return call_back(walk, res, ct, run_behind_barrier)
    return call_back(walk, res, ct, lambda program, args: bind_remat(program, args, params, differentiated=True))


def planned(policy: Any) -> bool:
    """Whether it is our own plan that placed a region, see `straight.py`, and not the user."""
    return hasattr(policy, "choose")


def_control(primitives.remat_p, remat_fwd, remat_bwd)

# --- marks and places -------------------------------------------------------------------------------------------------


def barrier_bwd(types: Any, ct: Sequence[Any], perturbed: Sequence[bool], **_: Any) -> list[Any]:
    """The identity, behind a barrier; so are the cotangents that exist and are asked for."""
    wanted = [p and c is not Zero for c, p in zip(ct, perturbed, strict=True)]
    exist = [c for c, w in zip(ct, wanted, strict=True) if w]
    behind = iter(lax.optimization_barrier(exist) if exist else ())
    return [next(behind) if w else Zero for w in wanted]


def device_put_bwd(types: Any, ct: Sequence[Any], perturbed: Sequence[bool], **params: Any) -> list[Any]:
    """The identity, on another device; cotangents go back to where the primals came from."""
    return [c if c is Zero else bind_device_put(c, params, i) for i, c in enumerate(ct)]


def_linear(primitives.name_p, lambda ct, x, **_: ct, isometric=True)
def_linear(feedback_p, lambda ct, w: ct, isometric=True)  # the recording gives w its mirror instead: see mirrors.py
def_linear(
    primitives.sharding_constraint_p,
    lambda ct, x, **params: primitives.sharding_constraint_p.bind(ct, **params),
    isometric=True,
)
def_linear(primitive("layout_constraint_p"), lambda ct, x, **_: ct, isometric=True)
def_linear(primitive("reshard_p"), lambda ct, x, **_: jax.sharding.reshard(ct, sharding_of(x)), isometric=True)
def_rule(primitive("optimization_barrier_p"), barrier_bwd, save=TYPES)
def_rule(primitives.device_put_p, device_put_bwd, save=TYPES)
