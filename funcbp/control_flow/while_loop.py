"""`while`: a loop of unknown length, which has a forward rule and a message in the place of a backward one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..autodiff.passes import passes_of
from ..jaxpr import primitives, split_list, while_parts
from ..jaxpr.types import PyTree, Value
from ..rules.options import Options
from ..rules.registry import def_control
from .scan import perturbed_carry

__all__ = ["while_fwd"]


def while_fwd(
    options: Options, perturbed: Sequence[bool], *primals: Value, **params: Any
) -> tuple[Sequence[Value], PyTree, Sequence[bool]]:
    """Run the loop. How often it runs is not known beforehand, so there is nothing to keep its steps in."""
    body, n_cond, n_body = while_parts(params)
    _, consts, carry = split_list(perturbed, n_cond, n_body)
    passes = perturbed_carry(lambda p: passes_of(body, p, options), consts, carry, [])
    return primitives.while_p.bind(*primals, **params), (), passes.perturbed[n_body:]


def while_message(where: str) -> str:
    return (
        "Reverse-mode differentiation does not work for lax.while_loop, nor for lax.fori_loop with traced bounds. The "
        f"number of steps of {where} is not known when it is traced, so they cannot be kept. Use funcbp.while_loop "
        "with max_steps=..., which stores a few snapshots; jax.lax.scan, or jax.lax.fori_loop with bounds that are "
        "Python integers; or define its derivative with jax.custom_vjp (for a fixed point, by the implicit function "
        "theorem)."
    )


def_control(primitives.while_p, while_fwd, None, message=while_message)
