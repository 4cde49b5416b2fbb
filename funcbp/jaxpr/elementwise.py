"""Elementwise operations of one operand that JAX lacks, as primitives: one equation each."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import lax
from jax._src.interpreters import mlir
from jax._src.interpreters.ad import primitive_jvps
from jax._src.lax import lax as lax_internal

from .types import Primitive

KINDS = lax_internal._float | lax_internal._complex


def elementwise_primitive(
    name: str, program: Callable[[jax.Array], jax.Array], slope: Callable[[jax.Array], jax.Array]
) -> Primitive:
    """The primitive that this program computes, with this derivative."""
    primitive = lax_internal.standard_unop(KINDS, name)
    mlir.register_lowering(primitive, mlir.lower_fun(program, multiple_results=False))
    primitive_jvps[primitive] = lambda primals, tangents: (
        primitive.bind(*primals),
        lax.mul(slope(*primals), *tangents),
    )
    return primitive
