"""Convolutions in the order of axes that XLA's library for CPUs takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import primitives

from .interpreter import CALLS, Inside, Visitor, equations
from .types import JaxprEqn, Value
from .values import device_here, sharding_of

__all__ = ["InOrder", "convolve"]


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
    n = x.ndim - 2
    x, w = lax.transpose(x, _channels_last(x_spec)), lax.transpose(w, (*w_spec[2:], w_spec[1], w_spec[0]))
    in_order = lax.ConvDimensionNumbers(
        (0, n + 1, *range(1, n + 1)), (n + 1, n, *range(n)), (0, n + 1, *range(1, n + 1))
    )
    w = lax.rev(w, range(n)) if reverse else w
    z = lax.conv_general_dilated(x, w, dimension_numbers=in_order, **params)
    return lax.transpose(z, np.argsort(_channels_last(z_spec)).tolist())


def _channels_last(spec: Sequence[int]) -> tuple[int, ...]:
    return spec[0], *spec[2:], spec[1]


class InOrder(Visitor):
    """Runs a program with its convolutions in that order, and goes into the calls that have some."""

    enters = CALLS

    def opens(self, eqn: JaxprEqn) -> Inside | None:
        """The program that is called, if there is a convolution in it."""
        inside = super().opens(eqn)
        return inside if inside and any(_convolves(o.eqn) for p in inside.programs for o in equations(p)) else None

    def equation(self, eqn: JaxprEqn, args: list[Value]) -> Sequence[Value]:
        """Run an equation, a convolution in order."""
        return [convolve(*args, **eqn.params)] if _convolves(eqn) else super().equation(eqn, args)


def _convolves(eqn: JaxprEqn) -> bool:
    return eqn.primitive is primitives.conv_general_dilated_p
