"""Structural operations: they move numbers and compute none; backward, cotangents move to where they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import jax
import numpy as np
from jax import lax

from ..cotangents import Cotangent, Factored, Moves, Zero, instantiate, materialize
from ..jaxpr import cotangent_sharding, permuted_sharding, primitive, primitives, row, zeros
from ..jaxpr.types import Aval, PyTree
from .contract import TYPES
from .kinds import Entry, Rule, State
from .registry import def_linear, def_rule, def_zero, enter, linear_rule
from .traits import STRUCTURAL, Traits, free


def broadcast_back(
    ct: jax.Array,
    x: Aval,
    *,
    shape: Sequence[int],
    broadcast_dimensions: Sequence[int],
    sharding: jax.sharding.NamedSharding | None = None,
) -> jax.Array:
    """z[..b..] = x[..1..]:  x̄ sums z̄ over the axes that x does not have, or has with size 1."""
    new = [i for i in range(len(shape)) if i not in broadcast_dimensions]
    grown = [d for d, n in zip(broadcast_dimensions, x.shape, strict=True) if n != shape[d]]
    rest = [i for i, d in enumerate(broadcast_dimensions) if d not in grown]
    ct = lax.reduce_sum(ct, new + grown, out_sharding=permuted_sharding(x, rest))
    kept = [i for i, d in enumerate(broadcast_dimensions) if d in grown]
    return lax.expand_dims(ct, kept)


def broadcast_in_dim_bwd(
    types: Sequence[Aval], ct: jax.Array, perturbed: Sequence[bool], **params: Any
) -> list[Cotangent]:
    """As `broadcast_back`; any further operands are sizes."""
    return [broadcast_back(ct, types[0], **params), *(None for _ in types[1:])]


def reshape_back(
    ct: jax.Array,
    x: Aval,
    *,
    new_sizes: Sequence[int],
    dimensions: Sequence[int] | None,
    sharding: jax.sharding.NamedSharding | None = None,
) -> jax.Array:
    """z = x in another shape:  x̄ = z̄ in x's shape."""
    if dimensions is None:
        return lax.reshape(ct, x.shape, out_sharding=cotangent_sharding(x))
    moved = lax.reshape(ct, [x.shape[d] for d in dimensions])
    return lax.transpose(moved, np.argsort(dimensions))


def slice_back(
    ct: jax.Array, x: Aval, *, start_indices: Sequence[int], limit_indices: Sequence[int], strides: Sequence[int] | None
) -> jax.Array:
    """z = x[start:limit:stride]:  x̄ is z̄ in its places, zero elsewhere."""
    strides = strides or (1,) * len(x.shape)
    config = []
    for n, start, size, stride in zip(x.shape, start_indices, ct.shape, strides, strict=True):
        covered = start + (1 + stride * (size - 1) if size else 0)
        config.append((start, n - covered, stride - 1))
    return lax.pad(ct, np.zeros((), ct.dtype), config)


def split_bwd(
    types: Sequence[Aval], ct: Sequence[jax.Array | Any], perturbed: Sequence[bool], *, sizes: Sequence[int], axis: int
) -> list[Cotangent]:
    """z₁, z₂, … = the parts of x:  x̄ is their cotangents, joined."""
    (x,) = types
    parts = []
    for c, n in zip(ct, sizes, strict=True):
        shape = (*x.shape[:axis], n, *x.shape[axis + 1 :])
        parts.append(instantiate(c, x.update(shape=shape)) if c is Zero else c)
    return [lax.concatenate(parts, axis)]


def concatenate_bwd(
    types: Sequence[Aval], ct: jax.Array, perturbed: Sequence[bool], *, dimension: int
) -> Sequence[Cotangent]:
    """z = x₁, x₂, … joined:  each gets its part of z̄."""
    out, start = [], 0
    for x, p in zip(types, perturbed, strict=True):
        stop = start + x.shape[dimension]
        whole = stop - start == ct.shape[dimension]
        out.append(Zero if not p else ct if whole else lax.slice_in_dim(ct, start, stop, axis=dimension))
        start = stop
    return out


class ConcatenateRule(Rule):
    """Takes of a product not yet contracted the part that perturbed primals need: of [x h] W no x̄ for a fixed x."""

    def backward(self, state: State, entry: Entry, res: PyTree, ct: list[Cotangent]) -> Sequence[Cotangent]:
        whole, perturbed = ct[0], entry.perturbed
        if type(whole) is not Factored or (perturbed[0] and perturbed[-1]):
            return super().backward(state, entry, res, ct)
        first, last = perturbed.index(True), len(perturbed) - perturbed[::-1].index(True)
        axis = entry.params["dimension"]
        ends = list(accumulate((x.shape[axis] for x in entry.types), initial=0))
        part = materialize(whole.narrowed(axis, ends[first], ends[last]))
        cts = concatenate_bwd(entry.types[first:last], part, perturbed[first:last], dimension=axis)
        return [Zero] * first + [*cts] + [Zero] * (len(perturbed) - last)


def pad_bwd(
    types: Sequence[Aval], ct: jax.Array, perturbed: Sequence[bool], *, padding_config: Sequence[tuple[int, int, int]]
) -> list[Cotangent]:
    """z = x with padding p around and between:  x̄ is z̄ where x went;  p̄ is the sum of the rest.

    That is summed by itself: the difference of two sums would cancel, and be nan where x̄ is infinite.
    """
    x, _ = types
    x_bar: Cotangent = Zero
    p_bar: Cotangent = Zero
    if perturbed[0]:
        back = [(-low, -high, 0) for low, high, _ in padding_config]
        inner = lax.pad(ct, np.zeros((), ct.dtype), back)
        x_bar = lax.slice(inner, [0] * ct.ndim, inner.shape, [interior + 1 for *_, interior in padding_config])
    if perturbed[1]:
        no_padding = zeros(x.update(dtype=np.dtype(bool), weak_type=False))
        is_padding = lax.pad(no_padding, np.array(True), padding_config)
        p_bar = lax.reduce_sum(lax.select(is_padding, ct, lax.full_like(ct, 0)), range(ct.ndim))
    return [x_bar, p_bar]


def squeeze_back(ct: jax.Array, x: Aval, *, dimensions: Sequence[int]) -> jax.Array:
    """z = x without axes of size 1:  x̄ = z̄ with them."""
    return lax.reshape(ct, x.shape, out_sharding=cotangent_sharding(x))


def transpose_back(ct: jax.Array, x: Aval, *, permutation: Sequence[int]) -> jax.Array:
    """z = x with its axes in another order:  x̄ = z̄ with them in x's."""
    return lax.transpose(ct, tuple(np.argsort(permutation).tolist()))


def tile_back(ct: jax.Array, x: Aval, *, reps: Sequence[int], **_: Any) -> jax.Array:
    """z = x repeated along its axes:  x̄ is the sum over the repetitions."""
    shape = [k for n, r in zip(x.shape, reps, strict=True) for k in (r, n)]
    sharding = cotangent_sharding(x)
    if sharding is not None:  # each axis of x in its place, behind one of its repetitions that is not divided
        apart = (s for own in sharding.spec.partitions for s in (None, own))
        sharding = sharding.update(spec=sharding.spec.update(partitions=tuple(apart)))
    return lax.reduce_sum(lax.reshape(ct, shape, out_sharding=sharding), range(0, 2 * len(x.shape), 2))


def stack_bwd(
    types: Sequence[Aval], ct: jax.Array, perturbed: Sequence[bool], *, axis: int, **_: Any
) -> list[Cotangent]:
    """z = x₁, x₂, … along a new axis:  each gets its slice of z̄."""
    return [lax.index_in_dim(ct, i, axis, keepdims=False) if p else Zero for i, p in enumerate(perturbed)]


def unstack_bwd(
    types: Sequence[Aval], ct: Sequence[Cotangent], perturbed: Sequence[bool], *, axis: int, **_: Any
) -> list[Cotangent]:
    """z₁, z₂, … = the slices of x:  x̄ is their cotangents, stacked."""
    (x,) = types
    return [lax.concatenate([lax.expand_dims(instantiate(c, row(x, axis)), (axis,)) for c in ct], axis)]


JOINED, PADDED = STRUCTURAL.but(moves=Moves.ALL), STRUCTURAL.but(moves=Moves.ONCE)

def_rule(
    primitives.broadcast_in_dim_p,
    broadcast_in_dim_bwd,
    save=TYPES,
    traits=STRUCTURAL.but(linear=(0,), moves=Moves.COPIES),
)
def_linear(primitives.reshape_p, reshape_back, Moves.ALL)
def_linear(primitives.squeeze_p, squeeze_back, Moves.ALL)
enter(
    primitives.transpose_p,
    replace(linear_rule(transpose_back, Moves.ALL, "transpose"), order="permutation"),
    family=STRUCTURAL.but(linear=(0,), moves=Moves.ALL),
)
def_linear(primitives.rev_p, lambda ct, x, *, dimensions: lax.rev(ct, dimensions), Moves.ALL)
def_linear(primitives.slice_p, slice_back, Moves.ONCE)
def_rule(primitive("split_p"), split_bwd, save=TYPES, traits=JOINED.but(linear=(0,)))
enter(primitives.concatenate_p, ConcatenateRule(concatenate_bwd, save=TYPES), JOINED)
def_rule(primitives.pad_p, pad_bwd, save=TYPES, traits=PADDED)
def_linear(primitive("tile_p"), tile_back, Moves.COPIES)
def_rule(primitive("stack_p"), stack_bwd, save=TYPES, traits=JOINED)
def_rule(primitive("unstack_p"), unstack_bwd, save=TYPES, traits=JOINED.but(linear=(0,)))
def_zero(primitive("empty_p"), primitive("empty2_p"), traits=Traits(flops=free))
