"""Operations that are written as classes (`jax.experimental.hijax`): by the methods that their authors gave them.

JAX has some itself: `jax.checkpoint` under `jax_remat3` and its names, which are what they are without that flag;
`jax.custom_vjp` under `jax_custom_vjp3`, whose methods are its author's rules; in newer JAX `jnp.ldexp` and others.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..cotangents import Cotangent, Zero, is_differentiable
from ..jaxpr import operations as ops
from ..jaxpr import primitive, type_of
from ..jaxpr.types import PyTree, Value
from ..rules.inlined import inline_bwd
from ..rules.kinds import LoggingRule, MissingRule, Operation, Recorder, Rule
from ..rules.registry import enter
from ..rules.traits import CALL

__all__ = ["OperationRule"]


def ldexp_jvp(operation: Any, primals: Sequence[jax.Array], tangents: Sequence[jax.Array]) -> Any:
    """z = x 2ⁿ:  ż = ẋ 2ⁿ. (JAX's is the operation itself, once more, to be transposed by a method of its class.)"""
    (x, n), (dx, _) = primals, tangents
    return [operation(x, n)], [dx * jnp.ldexp(jnp.ones_like(x), n)]


def frexp_jvp(operation: Any, primals: Sequence[jax.Array], tangents: Sequence[jax.Array]) -> Any:
    """x = m 2ⁿ:  ṁ = ẋ 2⁻ⁿ."""
    (x,), (dx,) = primals, tangents
    m, n = operation(x)
    return [m, n], [dx * jnp.ldexp(jnp.ones_like(x), -n), None]


SCALED = {"Ldexp": ldexp_jvp, "Frexp": frexp_jvp}


@dataclass(frozen=True, eq=False, repr=False)
class OperationRule(Rule):
    """An operation's own backward pass, or, if it has none, its own tangents.

    Within a tangent rule an operation is linear, and goes back by its own transpose rule, or as the program that it is
    written in.
    """

    how: ClassVar[str] = "its author's"
    local: ClassVar[bool] = False

    def record(self, recorder: Recorder, operation: Operation) -> Value:
        written = operation.params["_prim"]
        if (same := ops.stands_for(operation.params)) is not None:
            return recorder.inline(same, operation, call=False)
        if not operation.is_perturbed:
            return recorder.passed(operation)
        if recorder.in_tangent_rule:
            if ops.has_transpose(written):
                return _by_its_transpose(recorder, operation)
            return recorder.inline(functools.partial(ops.expanded, written), operation, call=True)
        if ops.has_backward(written):
            return _by_its_backward(recorder, operation)
        if (jvp := SCALED.get(type(written).__name__)) is not None and ops.is_jaxs(written):
            return recorder.along(lambda *moving, _prim: jvp(_prim, *moving), operation)
        if ops.has_tangents(written):
            return recorder.along(lambda *moving, _prim: ops.own_tangents(_prim, *moving), operation)
        message = functools.partial(_underivable, type(written).__name__)
        return recorder.write(MissingRule(message=message), operation, recorder.run(operation), ())


def _underivable(name: str, where: str) -> str:
    return f"funcbp has no derivative for `{name}`, {where}: its class has neither a `vjp_fwd` nor a `jvp`. Write one."


def _by_its_backward(recorder: Recorder, operation: Operation) -> Value:
    """Run the operation's own forward pass now; its own backward pass is the entry's rule."""
    written, values = operation.params["_prim"], operation.values
    with recorder.below():
        outs, res, moving = ops.own_forward(written, values, operation.perturbed)
    read = {id(v): w for v, w in zip(values, operation.feedback or (), strict=False) if w is not None}

    def operation_bwd(
        res: PyTree, ct: Sequence[Cotangent], perturbed: Sequence[bool]
    ) -> tuple[list[Cotangent], dict[str, PyTree] | None]:
        """Call the backward pass that the operation's author wrote."""
        return ops.own_backward(written, res, [None if c is Zero else c for c in ct], perturbed)

    cotangents = lambda res, ct, perturbed: operation_bwd(res, ct, perturbed)[0]
    rule = LoggingRule(operation_bwd, factors=functools.partial(inline_bwd, cotangents, [*map(type_of, values)]))
    differentiable = [m and is_differentiable(o) for m, o in zip(moving, outs, strict=True)]
    res = jax.tree.map(lambda x: read.get(id(x), x), res)
    return recorder.write(rule, operation, outs, res, differentiable)


def _by_its_transpose(recorder: Recorder, operation: Operation) -> Value:
    """Run the operation on tangents; its own transpose rule is the entry's."""
    written, linear = operation.params["_prim"], operation.perturbed

    def operation_transpose(res: PyTree, ct: Sequence[Cotangent], perturbed: Sequence[bool], **_: Any) -> list[Value]:
        """Call the transpose rule that the operation's author wrote."""
        return ops.own_transpose(written, res, linear, [None if c is Zero else c for c in ct])

    kept = [type_of(x) if m else x for x, m in zip(operation.values, linear, strict=True)]
    return recorder.write(Rule(operation_transpose), operation, recorder.run(operation), kept)


enter(primitive("call_hi_primitive_p"), OperationRule(), CALL.but(cheap=False, repeatable=False))
