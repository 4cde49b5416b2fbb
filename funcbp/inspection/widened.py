"""A program in float64: the same equations, on wider numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from .. import jaxpr as jx
from ..jaxpr.types import AnyJaxpr, Aval, Value
from ..rules.traits import traits_of

__all__ = ["Widened", "is_float", "narrow", "why_not_wide", "widen", "widened_equation"]


def is_float(x: Value) -> bool:
    """Whether these are numbers that can be wider: floating-point or complex ones."""
    return jax.dtypes.issubdtype(jx.type_of(x).dtype, np.inexact)


def _wide(dtype: DTypeLike) -> DTypeLike:
    return np.dtype(np.complex128 if jax.dtypes.issubdtype(dtype, np.complexfloating) else np.float64)


def widen(x: Value) -> Value:
    """The same numbers in float64; what is no number stays."""
    return _cast(x, _wide(jx.type_of(x).dtype)) if is_float(x) else x


def narrow(x: Value, aval: Aval) -> Value:
    """The numbers as the program would have them: rounded to this type."""
    return _cast(x, aval.dtype) if is_float(x) and hasattr(aval, "dtype") else x


def _cast(x: Value, dtype: DTypeLike) -> Value:
    if not isinstance(x, jax.core.Tracer):
        return jnp.asarray(np.asarray(x).astype(dtype))  # nothing to be compiled
    return x if x.dtype == dtype else lax.convert_element_type(x, dtype)


def why_not_wide(eqn: Any) -> str:
    """Why an equation is not run in float64, beside itself; "" if it can be tried."""
    if "callback" in eqn.params:
        return "it calls back into Python"
    kind = jx.inside_of(eqn).kind
    if eqn.effects and not kind:  # those of a program are inside it
        return "it has effects"
    return "it runs on several devices" if kind is jx.Kind.MAPPED else ""


def widened_equation(eqn: Any, args: Sequence[Any]) -> list[Any]:
    """Run an equation on wide operands, in float64.

    A decision (an integer, a boolean, a rounding to whole numbers) is the one that the program takes on these numbers
    in its own type. Numbers that are no function of numbers (drawn, or made of bits) are those of the program.
    """
    outs = [v.aval for v in eqn.outvars]
    traits = traits_of(eqn.primitive)
    no_number_in = not any(map(is_float, args)) and not traits.linear
    if no_number_in or traits.step or not any(map(_is_float_type, outs)):
        operands = [narrow(x, v.aval) for x, v in zip(args, eqn.invars, strict=True)]
        return list(map(widen, jx.bind_eqn(eqn, operands)))
    if "mantissa_bits" in eqn.params:  # rounds, and does nothing else
        return list(args)
    params = {name: _wide_param(name, value) for name, value in eqn.params.items()}
    wide = jx.bind_eqn(eqn.replace(params=params), args)
    if any(is_float(x) and jx.type_of(x).dtype != _wide(jx.type_of(x).dtype) for x in wide):
        raise TypeError(f"`{eqn.primitive}` gives no float64.")
    return wide


def _is_float_type(aval: Aval) -> bool:
    return hasattr(aval, "dtype") and jax.dtypes.issubdtype(aval.dtype, np.inexact)


def _wide_param(name: str, value: Any) -> Any:
    if hasattr(value, "eqns"):
        return _wide_program(value)
    if isinstance(value, tuple):
        parts = [_wide_param("", v) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, np.dtype):
        return _wide(value) if jax.dtypes.issubdtype(value, np.inexact) else value
    return None if name == "precision" else value  # in what type it is computed


def _wide_program(program: AnyJaxpr) -> AnyJaxpr:
    types = [
        jax.ShapeDtypeStruct(a.shape, _wide(a.dtype) if _is_float_type(a) else a.dtype) for a in jx.in_avals(program)
    ]
    wide = jax.make_jaxpr(lambda *xs: jx.run(program, xs, Widened()))(*types)
    return wide if hasattr(program, "consts") else wide.jaxpr


class Widened(jx.Visitor):
    """Runs a program in float64, loops and branches as they are; it takes its own decisions."""

    enters = jx.CALLS

    def constant(self, x: Value) -> Value:
        return widen(x)

    def equation(self, eqn: Any, args: list[Any]) -> list[Any]:
        if not eqn.outvars:  # it prints, or writes, and has done so on the program's own numbers
            return []
        if why := why_not_wide(eqn):
            where = jx.user_line(eqn.source_info)
            raise TypeError(
                f"`{eqn.primitive}`{f' at {where}' if where else ''} cannot be run in float64: {why}. "
                "precision(f)(...), outside of jit, counts errors anew behind it; or take errors of a part without it."
            )
        return widened_equation(eqn, args)
