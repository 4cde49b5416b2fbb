"""The zero cotangent, and the types of cotangents."""

from __future__ import annotations

import functools

import jax
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from .. import jaxpr as jx
from ..jaxpr.types import Aval, Value


class _Zero:
    """The zero cotangent, of any type. There is one, `Zero`."""

    def __repr__(self) -> str:
        return "Zero"

    def __bool__(self) -> bool:
        raise TypeError("The truth of a zero cotangent is ambiguous; compare with `ct is Zero`.")


Zero = _Zero()
jax.tree_util.register_pytree_node(_Zero, lambda zero: ((), None), lambda *_: Zero)


def is_differentiable(x: Value | Aval) -> bool:
    """Tell whether values of this type have a cotangent: real and complex floating point, and what its author says."""
    if jx.is_high(x):
        tangent = jx.aval_of(x).to_tangent_aval()
        return jx.is_high(tangent) or is_inexact(tangent.dtype)
    return not isinstance(x, bool) and is_inexact(x.dtype)


@functools.cache
def is_inexact(dtype: DTypeLike) -> bool:
    """Tell whether this is a real or complex floating-point dtype, or one of somebody's own that has tangents."""
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return jx.tangent_dtype(dtype) != jax.dtypes.float0
    return jax.dtypes.issubdtype(dtype, np.inexact)


def float0_zeros(x: Value | Aval) -> np.ndarray | jax.Array:
    """Make what JAX returns as the cotangent of an integer: zeros of the type that has no bits."""
    if all(isinstance(n, int) for n in np.shape(x)):
        return np.zeros(np.shape(x), jax.dtypes.float0)
    return lax.broadcast(np.zeros((), jax.dtypes.float0), np.shape(x))  # sizes that `jax.export` leaves open


def unbroadcast(ct: jax.Array, x: Value | Aval) -> jax.Array:
    """Sum a cotangent back to the operand's shape: over axes the operand does not have, or has with size 1.

    Args:
        ct: an array.
        x: the operand, or its type: of a shape that broadcasts to that of `ct`.

    Returns:
        The cotangent, of the operand's shape and of the dtype of `ct`.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp.rules import unbroadcast
        >>> unbroadcast(jnp.ones((3, 2)), jnp.zeros((1, 2)))
        Array([[3., 3.]], dtype=float32)
    """
    sharding = jx.cotangent_sharding(x)
    if sharding is not None and sharding != jx.sharding_of(ct) and x.shape:  # over an explicit mesh
        axes = [i for i, (n, m) in enumerate(zip(ct.shape, x.shape, strict=True)) if n != m]
        return lax.reshape(lax.reduce_sum(ct, axes) if axes else ct, x.shape, out_sharding=sharding)
    if ct.shape == x.shape:
        return ct
    if not x.shape:
        return lax.reduce_sum(ct, range(ct.ndim))
    axes = [i for i, (n, m) in enumerate(zip(ct.shape, x.shape, strict=True)) if n != m]
    return lax.expand_dims(lax.reduce_sum(ct, axes), axes)
