"""Primitives that JAX does not define, and the rules that their authors registered with it: tangent and transpose.

JAX's own primitives have entries in the same tables. Those are JAX's derivation, and are not handed out here.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

from jax._src import ad_util, core
from jax._src.interpreters.ad import UndefinedPrimal, primitive_jvps, primitive_transposes

from .types import Primitive, Value
from .values import Aval

__all__ = ["authors_jvp", "authors_primitives", "authors_transpose", "has_authors_jvp", "has_authors_transpose"]


@functools.cache
def _is_jaxs(primitive: Primitive) -> bool:
    """Whether a module of JAX has this primitive."""
    modules = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] in ("jax", "jaxlib")]
    return any(value is primitive for m in modules for value in list(vars(m).values()))


def has_authors_jvp(primitive: Primitive) -> bool:
    return primitive in primitive_jvps and not _is_jaxs(primitive)


def has_authors_transpose(primitive: Primitive) -> bool:
    return primitive in primitive_transposes and not _is_jaxs(primitive)


def authors_primitives() -> list[Primitive]:
    """The primitives of others that have a tangent rule."""
    return [p for p in primitive_jvps if has_authors_jvp(p)]


def authors_jvp(
    primitive: Primitive, primals: Sequence[Value], tangents: Sequence[Value], params: dict[str, Any]
) -> tuple[Value, Value]:
    """The outputs and their tangents, None where zero, by the author's rule."""
    moving = tuple(
        ad_util.Zero(core.typeof(x).to_tangent_aval()) if t is None else t
        for x, t in zip(primals, tangents, strict=True)
    )
    outs, moved = primitive_jvps[primitive](tuple(primals), moving, **params)  # tuples, as from JAX
    known = lambda t: None if type(t) is ad_util.Zero else t
    return outs, [known(t) for t in moved] if primitive.multiple_results else known(moved)


def authors_transpose(
    primitive: Primitive,
    operands: Sequence[Value],
    linear: Sequence[bool],
    cts: Sequence[Value],
    out_types: Sequence[Aval],
    params: dict[str, Any],
) -> list[Value]:
    """The cotangents of the operands, None where there is none, by the author's rule.

    Args:
        operands: values, and of those that it is `linear` in, types.
        cts: those of the outputs, None where zero.
    """
    given = [UndefinedPrimal(x) if m else x for x, m in zip(operands, linear, strict=True)]
    full = [ad_util.Zero(t.to_tangent_aval()) if c is None else c for c, t in zip(cts, out_types, strict=True)]
    back = primitive_transposes[primitive](full if primitive.multiple_results else full[0], *given, **params)
    return [None if c is None or type(c) is ad_util.Zero else c for c in back]
