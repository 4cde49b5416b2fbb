"""Operations that are written as classes, `jax.experimental.hijax`, by the methods that their authors gave them.

An operation takes and returns trees. Here they are flat, as everywhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax._src import ad_checkpoint, ad_util, hijax
from jax._src.api import DidntWant, GradRef
from jax._src.interpreters.ad import GradAccum, NullAccum, ValAccum
from jax._src.tree_util import broadcast_prefix

from .interpreter import close
from .types import PyTree, Value
from .values import as_array, as_cotangent, as_residual, is_jax_zero, primitives, type_of

__all__ = [
    "Forward",
    "add_into",
    "collects",
    "expanded",
    "has_backward",
    "has_tangents",
    "has_transpose",
    "is_jaxs",
    "own_backward",
    "own_forward",
    "own_tangents",
    "own_transpose",
    "region_of",
    "stands_for",
]

BASE: Any = getattr(hijax, "HiPrim" if hasattr(hijax, "HiPrim") else "VJPHiPrimitive")


def _gives(operation: Any, method: str) -> bool:
    """Whether an operation's class has a method of its own: none that is left to be written, or that JAX derives."""
    if hasattr(operation, "prim"):  # another one, mapped
        return _gives(operation.prim, method)
    own = getattr(type(operation), method, None)
    return own is not getattr(BASE, method) and own is not vars(hijax).get(getattr(own, "__name__", ""))


def is_jaxs(operation: object) -> bool:
    """Whether a module of JAX has the class of this operation."""
    return type(operation).__module__.startswith("jax.")


# --- in the place of other operations ---------------------------------------------------------------------------------


def region_of(params: dict[str, Any]) -> dict[str, Any] | None:
    """The parameters of the region that an operation is: `jax.checkpoint` under `jax_remat3`."""
    operation = params["_prim"]
    if not isinstance(operation, ad_checkpoint.RematTraced):
        return None
    jaxpr = close(operation.jaxpr).jaxpr
    prevent_cse = getattr(operation, "prevent_cse", True)
    return dict(jaxpr=jaxpr, policy=operation.policy, prevent_cse=prevent_cse, differentiated=False)


def stands_for(params: dict[str, Any]) -> Callable[..., list[Value]] | None:
    """What an operation is among those that are no classes, if there is such a one: a region, or a name."""
    operation = params["_prim"]
    if (region := region_of(params)) is not None:
        return lambda *xs: primitives.remat_p.bind(*xs, **region)
    if type(operation).__name__ in ("CheckpointName", "CheckpointNameFwd"):
        return lambda x: [primitives.name_p.bind(x, name=operation.name)]
    return None


def expanded(operation: Any, *operands: Value) -> list[Value]:
    """Run the program that an operation is written in."""
    return jax.tree.leaves(operation.expand(*operation.in_tree.unflatten(operands)))


# --- its own derivative -----------------------------------------------------------------------------------------------


class Forward(NamedTuple):
    """What an operation's own forward pass, or its linearization, returns.

    Attributes:
        outs: the outputs.
        res: what its backward pass is given: the residuals, and beside them those that have a structure, if it has any.
        moving: which outputs move with the operands, flat.
    """

    outs: list[Value]
    res: list[Value]
    moving: list[bool]

    @classmethod
    def of(cls, operation: Any, outs: Any, res: Any, moving: Any = True, structured: Any = None) -> Forward:
        of_backward = [res] if structured is None else [res, structured]
        moving = broadcast_prefix(moving, operation.out_aval)
        return cls([as_array(y) for y in jax.tree.leaves(outs)], of_backward, moving)


def has_tangents(operation: Any) -> bool:
    """Whether an operation's author gave it tangents."""
    return _gives(operation, "jvp") or _gives(operation, "lin")


def own_tangents(
    operation: Any, primals: Sequence[Value], tangents: Sequence[Value]
) -> tuple[list[Value], list[Value]]:
    """Run an operation along a direction: its outputs and their tangents. None is a tangent of zero."""
    unflatten = operation.in_tree.unflatten
    zero = lambda x: ad_util.Zero(type_of(x).to_tangent_aval())
    moving = unflatten([zero(x) if t is None else t for x, t in zip(primals, tangents, strict=True)])
    if _gives(operation, "jvp"):
        outs, moved = operation.jvp(unflatten(primals), moving)
        outs = jax.tree.leaves(outs)
    else:
        which = unflatten([t is not None for t in tangents])
        outs, res, _ = Forward.of(operation, *operation.lin(which, *unflatten(primals)))
        moved = operation.linearized(*res, *moving)
    return outs, [None if is_jax_zero(t) else t for t in operation.out_tree.flatten_up_to(moved)]


def has_backward(operation: Any) -> bool:
    """Whether an operation's author gave it a backward pass."""
    return _gives(operation, "vjp_fwd")


def own_forward(operation: Any, operands: Sequence[Value], perturbed: Sequence[bool]) -> Forward:
    """Run an operation's own forward pass."""
    unflatten = operation.in_tree.unflatten
    outs, res, moving = Forward.of(operation, *operation.vjp_fwd(unflatten(perturbed), *unflatten(operands)))
    return Forward(outs, jax.tree.map(as_residual, res), moving)


def own_backward(
    operation: Any, res: Sequence[Value], ct: Sequence[Value], perturbed: Sequence[bool]
) -> tuple[list[Value], dict[str, PyTree] | None]:
    """Run an operation's own backward pass: its cotangents, and what it logs. None is a cotangent of zero."""
    into = _accumulators(operation, perturbed)
    logs = operation.vjp_bwd(*res, _cotangents(operation, ct), *operation.in_tree.unflatten(into))
    return _found(into), logs


def own_transpose(
    operation: Any, operands: Sequence[Value], linear: Sequence[bool], ct: Sequence[Value]
) -> list[Value]:
    """Run an operation's own transpose rule, with respect to the operands that it is linear in."""
    into = _accumulators(operation, linear)
    given = [a if m else x for a, x, m in zip(into, operands, linear, strict=True)]
    operation.transpose(_cotangents(operation, ct), *operation.in_tree.unflatten(given))
    return _found(into)


def has_transpose(operation: Any) -> bool:
    """Whether an operation's author gave it a transpose rule."""
    return _gives(operation, "transpose") and not is_jaxs(operation)


def _accumulators(operation: Any, perturbed: Sequence[bool]) -> list[Value]:
    """What a backward rule adds its cotangents to."""
    kinds = [ValAccum if p else NullAccum for p in perturbed]
    return [kind(t.to_ct_aval()) for kind, t in zip(kinds, operation.in_avals_flat, strict=True)]


def collects(x: object) -> bool:
    """Whether this is what a backward rule adds its cotangents to."""
    return isinstance(x, GradAccum)


def add_into(accumulator: Any, ct: Value | None) -> Value:
    """Add a cotangent, if there is one, and return what JAX has in its place."""
    if ct is not None:
        accumulator.accum(ct)
    if isinstance(accumulator, ValAccum):
        return ad_util.instantiate(accumulator.freeze())
    return DidntWant() if isinstance(accumulator, NullAccum) else GradRef()


def _found(accumulators: Sequence[Value]) -> list[Value]:
    found = ((a.freeze(), a.aval) if isinstance(a, ValAccum) else (None, None) for a in accumulators)
    return [as_cotangent(c, t) for c, t in found]


def _cotangents(operation: Any, ct: Sequence[Value]) -> Any:
    zero = lambda t: ad_util.Zero(t.to_ct_aval())
    flat = [zero(t) if c is None else c for c, t in zip(ct, operation.out_avals_flat, strict=True)]
    return operation.out_tree.unflatten(flat)
