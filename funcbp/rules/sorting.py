"""Sorting and selection: a permutation going forward, its inverse going backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from ..cotangents import Cotangent, Zero
from ..jaxpr import primitives, sharding_of, zero_cotangent
from ..jaxpr.types import Aval, PyTree
from .registry import def_rule
from .traits import DEAR, free


def put_along(ct: jax.Array, places: jax.Array, axis: int, x: Aval) -> jax.Array:
    """Zeros of x's type, with `ct` added at these places along an axis."""
    others = tuple(i for i in range(len(x.shape)) if i != axis)
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=(),
        inserted_window_dims=(axis,),
        scatter_dims_to_operand_dims=(axis,),
        operand_batching_dims=others,
        scatter_indices_batching_dims=others,
    )
    places = lax.expand_dims(places, (places.ndim,))
    return lax.scatter_add(
        zero_cotangent(x), places, ct, numbers, unique_indices=True, mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS
    )


def sort_fwd(*operands: jax.Array, dimension: int, is_stable: bool, num_keys: int) -> tuple[list[jax.Array], PyTree]:
    """Sort a counter along with the operands: it comes out as the permutation."""
    x = operands[0]
    counter = lax.broadcasted_iota("int32", x.shape, dimension, out_sharding=sharding_of(x))
    *outs, places = lax.sort((*operands, counter), dimension=dimension, is_stable=is_stable, num_keys=num_keys)
    return outs, (places, tuple(jax.typeof(x) for x in operands))


def sort_bwd(
    res: PyTree, ct: Sequence[jax.Array | Any], perturbed: Sequence[bool], *, dimension: int, **_: Any
) -> list[Cotangent]:
    """z = x in sorted order:  x̄ is z̄, each element back in its place. Keeps the permutation."""
    places, types = res
    return [
        put_along(c, places, dimension, x) if p and c is not Zero else Zero
        for c, p, x in zip(ct, perturbed, types, strict=True)
    ]


def top_k_bwd(
    res: PyTree, ct: Sequence[jax.Array | Any], perturbed: Sequence[bool], *, k: int, axis: int | None = None, **_: Any
) -> list[Cotangent]:
    """z, i = the k largest of x and their places:  x̄ is z̄ at those places, zero elsewhere. Keeps the places."""
    x, places = res
    return [put_along(ct[0], places, x.ndim - 1 if axis is None else axis, x)]


def keep_places(
    primals: Sequence[jax.Array], outs: Sequence[jax.Array], perturbed: Sequence[bool], params: dict[str, Any]
) -> PyTree:
    return jax.typeof(primals[0]), outs[1]


SORTED = DEAR.but(flops=free, passes=16, sorts=True)  # about log₂ of how many there are
def_rule(primitives.sort_p, sort_bwd, fwd=sort_fwd, traits=SORTED)
def_rule(primitives.top_k_p, top_k_bwd, save=keep_places, traits=SORTED)


def approx_top_k_bwd(
    res: PyTree, ct: Sequence[jax.Array | Any], perturbed: Sequence[bool], *, reduction_dimension: int, **_: Any
) -> list[Cotangent]:
    """As `top_k_bwd`."""
    x, places = res
    return [put_along(ct[0], places, reduction_dimension % x.ndim, x)]


def_rule(primitives.approx_top_k_p, approx_top_k_bwd, save=keep_places, traits=SORTED)
