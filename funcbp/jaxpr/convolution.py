"""Convolutions in the order of axes that XLA's library for CPUs takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import primitives

from .interpreter import Visitor, run
from .programs import Program, trace
from .types import JaxprEqn, Value
from .values import device_here, sharding_of

__all__ = ["convolve", "in_order"]


def convolve(
    x: jax.Array,
    w: jax.Array,
    *,
    dimension_numbers: lax.ConvDimensionNumbers,
    reverse: bool = False,
    out_sharding: Any = None,
    **params: Any,
) -> jax.Array:
    """Convolve x with w, on a CPU with the batch first and the channels last: x[b s i] ⋆ w[s i o] = z[b s o].

    XLA turns other orders into this one, but only in what is not inside a loop, a branch or a region. There it
    convolves them number by number, which took 10 to 40 times as long.

    Args:
        x: an array, whose axes `dimension_numbers` names.
        w: the kernel.
        dimension_numbers: which axis of x, w and z is what.
        reverse: whether the kernel is flipped in space.
        out_sharding: how z is laid out over devices. Where there is such a thing, nothing is turned.
        **params: the others of `jax.lax.conv_general_dilated`.
    """
    x_spec, w_spec, z_spec = dimension_numbers
    if device_here().platform != "cpu" or out_sharding is not None or sharding_of(x) is not None:
        w = lax.rev(w, w_spec[2:]) if reverse else w
        given = {"dimension_numbers": dimension_numbers, "out_sharding": out_sharding}
        return lax.conv_general_dilated(x, w, **given, **params)
    x, w = lax.transpose(x, _channels_last(x_spec)), lax.transpose(w, (*w_spec[2:], w_spec[1], w_spec[0]))
    w = lax.rev(w, range(x.ndim - 2)) if reverse else w
    z = lax.conv_general_dilated(x, w, dimension_numbers=_numbers(x.ndim), **params)
    return lax.transpose(z, np.argsort(_channels_last(z_spec)).tolist())


def in_order(program: Program) -> Program:
    """The same program, with its convolutions in that order."""
    if device_here().platform != "cpu" or not any(map(_turns, program.eqns)):
        return program
    return trace(lambda *args: run(program, args, _InOrder()), [v.aval for v in program.invars], "forward")


class _InOrder(Visitor):
    def equation(self, eqn: JaxprEqn, args: list[Value]) -> Sequence[Value]:
        return [convolve(*args, **eqn.params)] if _turns(eqn) else super().equation(eqn, args)


def _turns(eqn: JaxprEqn) -> bool:
    if eqn.primitive is not primitives.conv_general_dilated_p:
        return False
    numbers = eqn.params["dimension_numbers"]
    return numbers != _numbers(len(numbers.lhs_spec))


def _numbers(ndim: int) -> lax.ConvDimensionNumbers:
    """The batch first and the channels last; of the kernel, space first, then the channels in and out."""
    space = range(ndim - 2)
    batched = (0, ndim - 1, *(i + 1 for i in space))
    return lax.ConvDimensionNumbers(batched, (ndim - 1, ndim - 2, *space), batched)


def _channels_last(spec: Sequence[int]) -> tuple[int, ...]:
    return spec[0], *spec[2:], spec[1]
