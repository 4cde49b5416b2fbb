"""Reading and writing parts of arrays. The backward of a read is an adding write, and of an adding write a read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from ..cotangents import ABSORB, Cotangent, Factored, Moves, Product, Zero
from ..jaxpr import aval_of, current_source, device_here, is_plain, primitive, primitives, zero_cotangent
from ..jaxpr.types import Aval, Jaxpr, PyTree, Value
from .contract import TYPES
from .registry import def_rule
from .traits import DEAR, free, operand


def keep_indices(
    primals: Sequence[jax.Array], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]
) -> PyTree:
    """The types of the operands, and the numbers of the indices."""
    return TYPES(primals, outs, perturbed, params), primals[1]


def keep_indices_of_updates(
    primals: Sequence[jax.Array], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]
) -> PyTree:
    """The types of the operands, and the numbers of the indices where the updates are perturbed."""
    return TYPES(primals, outs, perturbed, params), (primals[1] if perturbed[2] else None)


# --- slices with a computed start -------------------------------------------------------------------------------------

# A start below zero counts no more from the end: where it did, the operation was given one that counts from the front.
AS_IT_IS: dict[str, Any] = dict(allow_negative_indices=False)


def dynamic_slice_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool], **_: Any) -> list[Cotangent]:
    """z = x[s : s + n]:  x̄ is z̄ written into zeros at s. Keeps s."""
    x, starts = res
    return [lax.dynamic_update_slice(zero_cotangent(x), ct, starts, **AS_IT_IS), *(None for _ in starts)]


def dynamic_slice_factors(res: PyTree, ct: jax.Array, perturbed: Sequence[bool], **_: Any) -> list[Cotangent]:
    """As `dynamic_slice_bwd`, the write left to be done: it is that of a lookup."""
    x, starts = res
    axes = tuple(range(len(x.shape)))
    numbers = lax.GatherDimensionNumbers(offset_dims=axes, collapsed_slice_dims=(), start_index_map=axes)
    params = dict(dimension_numbers=numbers, mode=lax.GatherScatterMode.CLIP)
    product = Product(ct, jnp.stack(starts), gather_left, aval_of(x), params, (), current_source())
    return [Factored([product], Zero, x.shape, x.dtype), *(None for _ in starts)]


def dynamic_update_slice_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool]) -> list[Cotangent]:
    """z = x with u written at s:  x̄ = z̄ with zeros written at s,  ū = z̄[s : s + n]. Keeps s."""
    (_, u), starts = res
    return [
        lax.dynamic_update_slice(ct, zero_cotangent(u), starts, **AS_IT_IS) if perturbed[0] else Zero,
        lax.dynamic_slice(ct, starts, u.shape, **AS_IT_IS) if perturbed[1] else Zero,
        *(None for _ in starts),
    ]


TOGETHER = 8  # as few numbers of a row side by side are written one by one
ENOUGH = 4096  # and where there are as many in all, it is worth turning them over

READ, WRITTEN = DEAR.but(flops=free, linear=(0,)), DEAR.but(flops=free, writes=True)
COMBINED = DEAR.but(flops=lambda eqn: operand(eqn, 2))  # one operation for each update

def_rule(
    primitives.dynamic_slice_p,
    dynamic_slice_bwd,
    save=lambda p, *_: (jax.typeof(p[0]), tuple(p[1:])),
    factors=dynamic_slice_factors,
    traits=READ.but(moves=Moves.ONCE),
)
def_rule(
    primitives.dynamic_update_slice_p,
    dynamic_update_slice_bwd,
    save=lambda p, *_: ((jax.typeof(p[0]), jax.typeof(p[1])), tuple(p[2:])),
    traits=WRITTEN,
)


# --- gather and scatter -----------------------------------------------------------------------------------------------


def scatter_numbers(d: lax.GatherDimensionNumbers) -> lax.ScatterDimensionNumbers:
    """The scatter that writes where this gather reads."""
    return lax.ScatterDimensionNumbers(
        update_window_dims=d.offset_dims,
        inserted_window_dims=d.collapsed_slice_dims,
        scatter_dims_to_operand_dims=d.start_index_map,
        operand_batching_dims=d.operand_batching_dims,
        scatter_indices_batching_dims=d.start_indices_batching_dims,
    )


def gather_numbers(d: Any) -> lax.GatherDimensionNumbers:
    """The gather that reads where this scatter writes."""
    return lax.GatherDimensionNumbers(
        offset_dims=d.update_window_dims,
        collapsed_slice_dims=d.inserted_window_dims,
        start_index_map=d.scatter_dims_to_operand_dims,
        operand_batching_dims=d.operand_batching_dims,
        start_indices_batching_dims=d.scatter_indices_batching_dims,
    )


def written_back(
    x: jax.Array,
    indices: jax.Array,
    d: lax.ScatterDimensionNumbers,
    updates: jax.Array,
    mode: lax.GatherScatterMode,
    fill: ArrayLike | None = None,
) -> jax.Array:
    """Read from `x` what a scatter with these numbers would write `updates` over."""
    window = iter(d.update_window_dims)
    alone = {*d.inserted_window_dims, *d.operand_batching_dims}
    sizes = [1 if i in alone else updates.shape[next(window)] for i in range(x.ndim)]
    return lax.gather(x, indices, gather_numbers(d), sizes, mode=mode, fill_value=fill)


def gather_bwd(
    res: PyTree,
    ct: jax.Array,
    perturbed: Sequence[bool],
    *,
    dimension_numbers: lax.GatherDimensionNumbers,
    slice_sizes: Sequence[int],
    unique_indices: bool,
    indices_are_sorted: bool,
    mode: lax.GatherScatterMode,
    fill_value: ArrayLike | None,
) -> list[Cotangent]:
    """z = x[indices]:  x̄ adds z̄ up at the indices, so a row read twice gets the sum. Keeps the indices."""
    (x, _), indices = res
    how: dict[str, Any] = dict(indices_are_sorted=indices_are_sorted, unique_indices=unique_indices, mode=mode)
    return [gather_left(ct, indices, x, dimension_numbers=dimension_numbers, **how), None]


def gather_left(
    ct: jax.Array, indices: jax.Array, x: Aval, *, dimension_numbers: lax.GatherDimensionNumbers, **how: Any
) -> jax.Array:
    """x̄ is the product of z̄ with the one-hot code of the indices, computed as an adding write.

    In float32 at least: bfloat16 counts to 256 one by one, and no further. A sum over an axis is so computed, too.
    """
    if (order := _rows_first(ct, x, dimension_numbers)) is not None:
        ct, dimension_numbers = _turned(ct, dimension_numbers, order)
        turned = gather_left(
            ct, indices, x.update(shape=tuple(x.shape[a] for a in order)), dimension_numbers=dimension_numbers, **how
        )
        return lax.transpose(turned, np.argsort(order).tolist())
    numbers = scatter_numbers(dimension_numbers)
    once = how.get("unique_indices") or math.prod(indices.shape[:-1]) <= 1
    if once or not jax.dtypes.issubdtype(x.dtype, np.floating) or x.dtype.itemsize >= 4:
        return lax.scatter_add(zero_cotangent(x), indices, ct, numbers, **how)
    wide = lax.convert_element_type(ct, np.float32)
    total = lax.scatter_add(zero_cotangent(x.update(dtype=np.dtype(np.float32))), indices, wide, numbers, **how)
    return lax.convert_element_type(total, x.dtype)


def _rows_first(ct: jax.Array, x: Aval, d: lax.GatherDimensionNumbers) -> tuple[int, ...] | None:
    """In which order of its axes the rows of x lie together that are looked up; None where they do, or on no CPU.

    XLA's CPU compiler writes what lies apart number by number: `x[:, columns]` took 50 times as long back as forth.
    """
    if device_here().platform != "cpu" or not (is_plain(x) and is_plain(ct)):
        return None
    rows, axes = d.collapsed_slice_dims, range(len(x.shape))
    if not rows or d.operand_batching_dims or not {*d.start_index_map} <= {*rows} or ct.size < ENOUGH:
        return None
    apart = math.prod(x.shape[a] for a in axes if a not in rows and a < max(rows))
    together = math.prod(x.shape[max(rows) + 1 :])
    return (*rows, *(a for a in axes if a not in rows)) if together < TOGETHER <= apart else None


def _turned(
    ct: jax.Array, d: lax.GatherDimensionNumbers, order: Sequence[int]
) -> tuple[jax.Array, lax.GatherDimensionNumbers]:
    """What was looked up in x, and how, for x with its axes in another order: the rows first."""
    lookups = [a for a in range(ct.ndim) if a not in d.offset_dims]
    numbers = d._replace(
        offset_dims=tuple(range(len(lookups), ct.ndim)),
        collapsed_slice_dims=tuple(range(len(d.collapsed_slice_dims))),
        start_index_map=tuple(order.index(a) for a in d.start_index_map),
    )
    return lax.transpose(ct, (*lookups, *d.offset_dims)), numbers


def gather_factors(
    res: PyTree,
    ct: jax.Array,
    perturbed: Sequence[bool],
    *,
    dimension_numbers: lax.GatherDimensionNumbers,
    mode: lax.GatherScatterMode,
    **_: Any,
) -> list[Cotangent]:
    """As `gather_bwd`, the write left to be done."""
    (x, _), indices = res
    params = dict(dimension_numbers=dimension_numbers, mode=mode)
    product = Product(ct, indices, gather_left, aval_of(x), params, (), current_source())
    return [Factored([product], Zero, x.shape, x.dtype), None]


def _gather_summed(product: Product) -> Product:
    """Σ_t of writes: the steps t are one more axis of the indices."""
    d = product.params["dimension_numbers"]
    later = lambda axes: tuple(a + 1 for a in axes)
    numbers = d._replace(
        offset_dims=later(d.offset_dims), start_indices_batching_dims=later(d.start_indices_batching_dims)
    )
    return product._replace(params=dict(product.params, dimension_numbers=numbers))


def scatter_add_bwd(
    res: PyTree,
    ct: jax.Array,
    perturbed: Sequence[bool],
    *,
    dimension_numbers: lax.ScatterDimensionNumbers,
    mode: lax.GatherScatterMode,
    **_: Any,
) -> list[jax.Array | Any]:
    """z = x, with u added at the indices:  x̄ = z̄,  ū = z̄[indices]. Keeps the indices where u is perturbed."""
    (_, _, u), indices = res
    return [ct, None, written_back(ct, indices, dimension_numbers, u, mode, 0) if perturbed[2] else Zero]


def scatter_sub_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool], **params: Any) -> list[Cotangent]:
    """z = x, with u subtracted at the indices:  x̄ = z̄,  ū = -z̄[indices]."""
    x_bar, _, u_bar = scatter_add_bwd(res, ct, perturbed, **params)
    return [x_bar, None, u_bar if u_bar is Zero else lax.neg(u_bar)]


def scatter_mul_save(
    primals: Sequence[jax.Array], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]
) -> PyTree:
    x, indices, u = primals
    return (x if perturbed[2] else jax.typeof(x)), indices, (u if perturbed[0] else jax.typeof(u))


def scatter_mul_bwd(
    res: PyTree,
    ct: jax.Array,
    perturbed: Sequence[bool],
    *,
    dimension_numbers: lax.ScatterDimensionNumbers,
    indices_are_sorted: bool,
    unique_indices: bool,
    mode: lax.GatherScatterMode,
    **_: Any,
) -> list[Cotangent]:
    """z = x, multiplied by u at the indices:  x̄ = z̄, multiplied by u there;  ū = (z̄ x)[indices]."""
    x, indices, u = res
    how: dict[str, Any] = dict(indices_are_sorted=indices_are_sorted, unique_indices=unique_indices, mode=mode)
    x_bar = lax.scatter_mul(ct, indices, u, dimension_numbers, **how) if perturbed[0] else Zero
    if not perturbed[2]:
        return [x_bar, None, Zero]
    if not unique_indices:
        raise NotImplementedError(
            "The derivative of scatter_mul with respect to its updates is implemented, here as in JAX, only with "
            "unique_indices=True: pass it if no index occurs twice."
        )
    return [x_bar, None, written_back(lax.mul(ct, x), indices, dimension_numbers, u, mode, 0)]


def scatter_extremum_bwd(
    res: PyTree,
    ct: jax.Array,
    perturbed: Sequence[bool],
    *,
    dimension_numbers: lax.ScatterDimensionNumbers,
    indices_are_sorted: bool,
    unique_indices: bool,
    mode: lax.GatherScatterMode,
    **_: Any,
) -> list[Cotangent]:
    """z = max(x, u at the indices):  z̄ is shared equally among x and those updates that attain the result."""
    x, indices, u, z = res
    how: dict[str, Any] = dict(indices_are_sorted=indices_are_sorted, unique_indices=unique_indices, mode=mode)
    back = lambda a: written_back(a, indices, dimension_numbers, u, mode, 0)
    one, here = np.ones((), ct.dtype), lambda mask: lax.convert_element_type(mask, ct.dtype)
    u_won = here(lax.eq(u, back(z)))
    x_won = here(lax.eq(x, z))
    contenders = x_won + lax.scatter_add(lax.full_like(x, 0), indices, u_won, dimension_numbers, **how)
    share = ct / lax.max(contenders, one)
    return [
        share * x_won if perturbed[0] else Zero,
        None,
        u_won * back(share) if perturbed[2] else Zero,
    ]


def scatter_fwd(
    x: jax.Array,
    indices: jax.Array,
    u: jax.Array,
    *,
    update_jaxpr: Jaxpr | None,
    update_consts: Sequence[jax.Array],
    dimension_numbers: lax.ScatterDimensionNumbers,
    indices_are_sorted: bool,
    unique_indices: bool,
    mode: lax.GatherScatterMode,
) -> tuple[jax.Array, PyTree]:
    """z = x, with u written at the indices. Where two updates meet, find out which one won, and keep that.

    Each update gets a number; the numbers are scattered as the updates are; whoever reads its own number back has won.
    The output is then put together from the winners, so that value and derivative agree on any device.
    """
    if update_jaxpr is not None:
        raise NotImplementedError("Neither JAX nor funcbp differentiates x.at[...].apply(f).")
    d = dimension_numbers
    how: dict[str, Any] = dict(indices_are_sorted=indices_are_sorted, unique_indices=unique_indices, mode=mode)
    types = jax.typeof(x), jax.typeof(u)
    if unique_indices:
        return lax.scatter(x, indices, u, d, **how), (types, indices, None, None)
    shape = [1 if i in d.update_window_dims else n for i, n in enumerate(u.shape)]
    numbers = lax.reshape(lax.iota(np.uint32, math.prod(shape)), shape) + np.uint32(1)
    numbers = jnp.broadcast_to(numbers, u.shape)
    winners = lax.scatter(lax.full(x.shape, 0, np.uint32), indices, numbers, d, **how)
    won = lax.eq(numbers, written_back(winners, indices, d, u, mode, 0))
    untouched = lax.eq(winners, lax.full_like(winners, 0))
    z = lax.scatter_add(
        jnp.where(untouched, x, lax.full_like(x, 0)), indices, jnp.where(won, u, lax.full_like(u, 0)), d, **how
    )
    return z, (types, indices, untouched, won)


def scatter_save(
    primals: Sequence[jax.Array], res: PyTree, perturbed: Sequence[bool], params: dict[str, Any]
) -> PyTree:
    """What was left untouched for the operand, who won for the updates; the indices for either, if they are unique."""
    types, indices, untouched, won = res
    unique = untouched is None
    return (
        types,
        indices if perturbed[2] or unique else None,
        untouched if perturbed[0] else None,
        won if perturbed[2] else None,
    )


def scatter_bwd(
    res: PyTree,
    ct: jax.Array,
    perturbed: Sequence[bool],
    *,
    dimension_numbers: lax.ScatterDimensionNumbers,
    indices_are_sorted: bool,
    unique_indices: bool,
    mode: lax.GatherScatterMode,
    **_: Any,
) -> list[Cotangent]:
    """x̄ = z̄ where nothing was written;  ū = z̄[indices] for the updates that won."""
    (_, u), indices, untouched, won = res
    how: dict[str, Any] = dict(indices_are_sorted=indices_are_sorted, unique_indices=unique_indices, mode=mode)
    x_bar: Cotangent = Zero
    u_bar: Cotangent = Zero
    if perturbed[0]:
        if untouched is None:
            x_bar = lax.scatter(ct, indices, zero_cotangent(u), dimension_numbers, **how)
        else:
            x_bar = lax.select(untouched, ct, lax.full_like(ct, 0))
    if perturbed[2]:
        u_bar = written_back(ct, indices, dimension_numbers, u, mode, 0)
        u_bar = u_bar if won is None else lax.select(won, u_bar, lax.full_like(u_bar, 0))
    return [x_bar, None, u_bar]


def_rule(
    primitives.gather_p, gather_bwd, save=keep_indices, factors=gather_factors, traits=READ.but(moves=Moves.COPIES)
)
ABSORB[gather_left] = _gather_summed
def_rule(primitives.scatter_add_p, scatter_add_bwd, save=keep_indices_of_updates, traits=COMBINED)
def_rule(primitive("scatter_sub_p"), scatter_sub_bwd, save=keep_indices_of_updates, traits=COMBINED)
def_rule(primitives.scatter_mul_p, scatter_mul_bwd, save=scatter_mul_save, traits=COMBINED.but(scales=(0,)))
def_rule(primitives.scatter_max_p, scatter_extremum_bwd, save=lambda p, z, *_: (*p, z), traits=COMBINED)
def_rule(primitives.scatter_min_p, scatter_extremum_bwd, save=lambda p, z, *_: (*p, z), traits=COMBINED)
def_rule(primitives.scatter_p, scatter_bwd, fwd=scatter_fwd, save=scatter_save, traits=WRITTEN)
