"""How far two values are apart, and how much of that rounding may have made."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..jaxpr.types import Value
from ..rules.traits import Digits, traits_of
from .rows import NO_DERIVATIVE, Row

__all__ = ["apart", "apart_in", "cancelled", "coarsest_of", "cotangents_of", "numbers_of", "rms", "unit_of"]


def numbers_of(x: Value) -> np.ndarray | None:
    """An array as float64 or complex128; None of random keys."""
    if x is None or (hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended)):
        return None
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def rms(x: np.ndarray, axes: tuple[int, ...] | None = None) -> Any:
    with np.errstate(all="ignore"):
        return np.sqrt(np.mean(np.abs(x) ** 2, axis=axes)) if x.size else np.zeros(())


def apart(x: Value, y: Value, loops: int = 0) -> np.ndarray | None:
    """The relative difference, one for each step of the loops; None where a side has no numbers."""
    floats = [jax.dtypes.issubdtype(v.dtype, np.inexact) for v in (x, y) if v is not None]
    x, y = numbers_of(x), numbers_of(y)
    if x is None or y is None:
        return None
    if x.shape != y.shape:
        return np.full((1,) * loops, np.inf)
    finite = np.isfinite(x) & np.isfinite(y)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    axes = tuple(range(loops, x.ndim))
    if not any(floats):
        return np.mean(x != y, axis=axes) if x.size else np.zeros(x.shape[:loops])
    x, y = np.where(finite, x, 0), np.where(finite, y, 0)
    wrong, size = rms(x - y, axes), np.maximum(rms(x, axes), rms(y, axes))
    relative = np.where(wrong == 0, 0.0, wrong / np.where(size > 0, size, 1.0))
    return np.where(np.all(finite | same, axis=axes), relative, np.inf)


def apart_in(a: Sequence[Value], b: Sequence[Value], loops: int) -> np.ndarray | None:
    """The largest of the relative differences of several outputs, one for each step; None where there are none."""
    found = [d for d in map(functools.partial(apart, loops=loops), a, b) if d is not None]
    return functools.reduce(np.maximum, found) if found and len(a) == len(b) else None


def cotangents_of(row: Row) -> list[Value]:
    """The cotangents of the outputs, zeros where they are zero; none where there is no derivative."""
    if row.kind == NO_DERIVATIVE:
        return []
    return [np.zeros_like(v) if c is None else c for v, c in itertools.zip_longest(row.values, row.cotangents)]


def coarsest_of(rows: Sequence[Row]) -> dict[int, float]:
    """One ulp of 1 in the coarsest type until each row, by the row."""
    coarsest = itertools.accumulate((unit_of(*r.values) for r in rows), max)
    return {id(r): unit for r, unit in zip(rows, coarsest, strict=True)}


def unit_of(*arrays: Value) -> float:
    """One ulp of 1 in the coarsest of these types."""
    floats = [x.dtype for x in map(_typed, arrays) if jax.dtypes.issubdtype(x.dtype, np.inexact)]
    return max((float(jnp.finfo(t).eps) for t in floats), default=0.0)


def _typed(x: Value) -> Value:
    return np.zeros((), bool) if x is None else x if hasattr(x, "dtype") else np.asarray(x)


def cancelled(row: Row, operands: Sequence[Row]) -> float:
    """How much larger the terms of a sum are than what they add up to."""
    out, known = numbers_of(row.value), [x for x in (numbers_of(o.value) for o in operands) if x is not None and x.size]
    how = traits_of(row.primitive).digits
    if how not in (Digits.PAIR, Digits.SUM) or not known or out is None or not np.any(out):
        return 1.0
    sizes = [float(rms(x)) for x in known]
    terms = math.prod(x.size for x in known) / out.size
    size = max(sizes) if how is Digits.PAIR else math.prod(sizes) * max(1.0, terms ** (0.5 / len(known)))
    return max(1.0, size / float(rms(out))) if np.isfinite(size) else 1.0
