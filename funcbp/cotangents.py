"""Cotangents: what travels backward. Their zero, their sum, and their types.

The cotangent x̄ of a value x has x's shape and dtype. Three things are told apart everywhere:

- `Zero`: the cotangent is zero; nothing was computed and nothing need be.
- `None`, from a rule: no derivative exists (an integer or boolean operand).
- an error: nobody has written the derivative.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from . import jaxpr as jx

__all__ = ["Cotangents", "Zero", "float0_zeros", "instantiate", "is_differentiable", "unbroadcast"]


class _Zero:
    """The zero cotangent, of any type. There is one, `Zero`."""

    def __repr__(self) -> str:
        return "Zero"

    def __bool__(self) -> bool:
        raise TypeError("The truth of a zero cotangent is ambiguous; compare with `ct is Zero`.")


Zero = _Zero()


def is_differentiable(x: Any) -> bool:
    """Whether values of this type have a cotangent: real and complex floating point, and nothing else."""
    return is_inexact(x.dtype)


@functools.cache
def is_inexact(dtype: Any) -> bool:
    """Whether this is a real or complex floating-point dtype."""
    return jax.dtypes.issubdtype(dtype, np.inexact)


def instantiate(ct: Any, aval: Any) -> jax.Array:
    """The cotangent as an array: `Zero` becomes zeros of this type."""
    return jx.zeros(jx.strong(aval)) if ct is Zero else ct


def float0_zeros(x: Any) -> np.ndarray:
    """What JAX returns as the cotangent of an integer: zeros of the type that has no bits."""
    return np.zeros(np.shape(x), jax.dtypes.float0)


def unbroadcast(ct: jax.Array, x: Any) -> jax.Array:
    """Sum a cotangent back to the operand's shape: over axes the operand does not have, or has with size 1."""
    if ct.shape == x.shape:
        return ct
    if not x.shape:
        return lax.reduce_sum(ct, range(ct.ndim))
    axes = [i for i, (n, m) in enumerate(zip(ct.shape, x.shape, strict=True)) if n != m]
    return lax.expand_dims(lax.reduce_sum(ct, axes), axes)


class Cotangents:
    """The reverse walk's environment: the cotangent of each value so far. An absent one is zero."""

    def __init__(self) -> None:
        self._of: dict[int, Any] = {}

    def add(self, slots: Sequence[int | None], cts: Sequence[Any]) -> None:
        for slot, ct in zip(slots, cts, strict=True):
            if slot is not None and ct is not None and ct is not Zero:
                self._of[slot] = lax.add(self._of[slot], ct) if slot in self._of else ct

    def take(self, slots: Sequence[int | None]) -> list[Any]:
        """The cotangents of these values, which nothing will ask for again."""
        return [Zero if slot is None else self._of.pop(slot, Zero) for slot in slots]

    def read(self, slots: Sequence[int | None]) -> list[Any]:
        return [Zero if slot is None else self._of.get(slot, Zero) for slot in slots]
