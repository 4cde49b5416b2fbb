"""What stands in for a rule that is not there: its author's, an error, or JAX's derivative of that one equation."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import jax

from ..cotangents import Cotangent, Zero, float0_zeros, instantiate, is_differentiable
from ..jaxpr import authors_transpose, has_authors_jvp, has_authors_transpose
from ..jaxpr.types import Primitive, PyTree, Value
from .kinds import AuthorsRule, MissingRule, Rule
from .options import Options
from .registry import TABLE, UNSUPPORTED, enter_later


def missing(primitive: Primitive) -> Rule:
    """A rule for an equation without one: an error, raised if the equation turns out to be needed."""

    def message(where: str) -> str:
        if primitive.name in UNSUPPORTED:
            return f"funcbp has no derivative for {where}: {UNSUPPORTED[primitive.name]}"
        return (
            f"funcbp has no rule for {where}. Write one, funcbp.Backward(rules={{primitive: funcbp.rule(bwd)}}), wrap "
            f'the operation in jax.custom_vjp, or borrow JAX\'s derivative for it: funcbp.Backward(on_missing="jax").'
        )

    return MissingRule(message=message)


class BorrowedRuleWarning(UserWarning):
    """JAX's derivative is used for an equation, under `on_missing="jax"`."""


def borrowed(primitive: Primitive) -> Rule:
    """A rule for an equation without one: JAX's reverse mode, for this equation alone."""

    def borrowed_bwd(res: PyTree, ct: jax.Array | Any, perturbed: Sequence[bool], **params: Any) -> list[Cotangent]:
        chosen = [i for i, p in enumerate(perturbed) if p]

        def equation(*xs: Value) -> Value:
            primals = list(res)
            for i, x in zip(chosen, xs, strict=True):
                primals[i] = x
            return primitive.bind(*primals, **params)

        outs, pullback = jax.vjp(equation, *(res[i] for i in chosen))
        if primitive.multiple_results:
            ct = [
                instantiate(c, jax.typeof(o)) if is_differentiable(o) else float0_zeros(o)
                for c, o in zip(ct, outs, strict=True)
            ]
        back = dict(zip(chosen, pullback(ct), strict=True))
        return [back.get(i) for i in range(len(perturbed))]

    message = f"JAX's derivative of `{primitive}` is borrowed: funcbp has no rule for it."
    warnings.warn(message, BorrowedRuleWarning, stacklevel=2)
    return Rule(borrowed_bwd)


@functools.cache
def authors(primitive: Primitive) -> Rule:
    """A rule for a primitive that JAX does not define: what its author registered."""

    def authors_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool], **params: Any) -> list[Cotangent]:
        """Call the transpose rule that the primitive's author registered."""
        values, types = res
        cts = [None if c is Zero else c for c in (ct if primitive.multiple_results else [ct])]
        return authors_transpose(primitive, values, perturbed, cts, types, params)

    return AuthorsRule(authors_bwd, primitive=primitive)


def lookup(options: Options, primitive: Primitive) -> Rule:
    """The rule for a primitive: the option, the table, its author's, or the way these options treat missing ones."""
    rule = options.rules.get(primitive) or TABLE.get(primitive)
    if rule is None:
        enter_later()
        rule = TABLE.get(primitive)
    if rule is None and (has_authors_jvp(primitive) or has_authors_transpose(primitive)):
        rule = authors(primitive)
    if rule is None:
        rule = borrowed(primitive) if options.on_missing == "jax" else missing(primitive)
    return rule
