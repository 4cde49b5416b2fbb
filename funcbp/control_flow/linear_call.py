"""`jax.custom_derivatives.linear_call`: a linear function, by the transpose that its author gave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..cotangents import Cotangent, Zero, instantiate
from ..jaxpr import current_source, out_avals, primitive, user_line
from ..jaxpr.types import AnyJaxpr, PyTree, Value
from ..rules.contract import MissingRuleError
from ..rules.registry import def_rule

__all__ = ["linear_call_bwd"]

linear_call_p = primitive("linear_call_p")


def linear_call_save(
    primals: Sequence[Value], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]
) -> PyTree:
    """Keep what the function is given beside its linear arguments, which are not differentiated."""
    n = params["num_callee_consts"] + params["num_res"]
    if any(perturbed[:n]):
        raise MissingRuleError(
            f"linear_call at {user_line(current_source())} is differentiated with respect to residual_args, or to what "
            "its function closes over, and its transpose says nothing of these. JAX refuses it too; pass what is "
            "differentiated as linear_args."
        )
    return tuple(primals[:n])


def linear_call_bwd(
    res: Sequence[jax.Array],
    ct: Sequence[Cotangent],
    perturbed: Sequence[bool],
    callee: AnyJaxpr,
    transpose_thunk: Callable[[], tuple[AnyJaxpr, Sequence[Value]]],
    num_callee_consts: int,
    num_res: int,
) -> list[Cotangent]:
    """Call the author's transpose, which is a linear call whose transpose is the function."""
    transpose, constants = transpose_thunk()
    own, given = res[:num_callee_consts], res[num_callee_consts:]
    cts = [instantiate(c, t) if c is Zero else c for c, t in zip(ct, out_avals(callee), strict=True)]
    back = linear_call_p.bind(
        *constants,
        *given,
        *cts,
        callee=transpose,
        transpose_thunk=lambda: (callee, own),
        num_callee_consts=len(constants),
        num_res=num_res,
    )
    return [*(None for _ in res), *back]


def_rule(linear_call_p, linear_call_bwd, save=linear_call_save)
