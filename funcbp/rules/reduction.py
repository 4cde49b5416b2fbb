"""Reductions, cumulative reductions and pooling windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..cotangents import Cotangent
from ..jaxpr import aval_of, cotangent_sharding, dilated, is_plain, primitives, reducer, sharding_of, zeros
from ..jaxpr.types import Aval, JaxprEqn, Primitive, PyTree
from .elementwise import where
from .registry import def_body, def_linear, def_nondiff, def_rule
from .traits import DEAR, REDUCTION, Digits, def_traits, free, operand, results


def spread(ct: jax.Array, x: Aval, axes: Sequence[int]) -> jax.Array:
    """The cotangent of a reduction, repeated along the axes that were reduced away."""
    return repeated(ct, x.shape, axes, cotangent_sharding(x))


def repeated(y: jax.Array, shape: Sequence[int], axes: Sequence[int], sharding: Any) -> jax.Array:
    """What a reduction made, repeated along the axes that were reduced away, which lie over the devices like this."""
    kept = tuple(i for i in range(len(shape)) if i not in axes)
    return lax.broadcast_in_dim(y, shape, kept, out_sharding=sharding)


def reduce_sum_back(ct: jax.Array, x: Aval, *, axes: Sequence[int], **_: Any) -> jax.Array:
    """z = Σ x:  x̄ = z̄, everywhere. Keeps nothing."""
    return spread(ct, x, axes)


def reduce_extremum_bwd(
    res: PyTree, ct: jax.Array, perturbed: Sequence[bool], *, axes: Sequence[int], **_: Any
) -> list[Cotangent]:
    """z = max x or min x:  x̄ = z̄ at the extremum, shared equally where several elements attain it; nan if z is."""
    x, z = res
    here = lax.eq(x, repeated(z, x.shape, axes, sharding_of(x)))
    count = lax.reduce_sum(lax.convert_element_type(here, ct.dtype), axes)
    zero = zeros(jax.typeof(ct))
    elsewhere = lax.select(lax.ne(z, z), lax.mul(zero, z), zero)
    return [lax.select(here, spread(lax.div(ct, count), x, axes), spread(elsewhere, x, axes))]


def reduce_prod_bwd(
    res: PyTree, ct: jax.Array, perturbed: Sequence[bool], *, axes: Sequence[int], **_: Any
) -> list[Cotangent]:
    """z = Π x:  x̄ᵢ = z̄ (Π_{j<i} xⱼ) (Π_{j>i} xⱼ), so that zeros among the factors do no harm."""
    (x,) = res
    kept = [i for i in range(x.ndim) if i not in axes]
    order = [*kept, *axes]
    flat = lax.reshape(lax.transpose(x, order), (*(x.shape[i] for i in kept), math.prod(x.shape[i] for i in axes)))
    last, n = flat.ndim - 1, flat.shape[-1]
    if n == 0:
        return [lax.full_like(x, 0)]
    one = np.ones((), x.dtype)
    shift = lambda low, high: lax.pad(flat, one, [(0, 0, 0)] * last + [(low, high, 0)])
    before = lax.cumprod(shift(1, -1), axis=last)
    after = lax.cumprod(shift(-1, 1), axis=last, reverse=True)
    others = lax.transpose(lax.reshape(before * after, [x.shape[i] for i in order]), np.argsort(order))
    return [lax.mul(others, spread(ct, x, axes))]


def cumsum_back(ct: jax.Array, x: Aval, *, axis: int, reverse: bool) -> jax.Array:
    """zᵢ = Σ_{j≤i} xⱼ:  x̄ⱼ = Σ_{i≥j} z̄ᵢ, the cumulative sum the other way round."""
    return lax.cumsum(ct, axis=axis, reverse=not reverse)


def cumulative(
    combine: Callable[[jax.Array, jax.Array], jax.Array],
) -> Callable[[dict[str, Any]], Callable[[jax.Array], jax.Array]]:
    """A cumulative reduction as a tree of `combine`, each of which has its rule."""

    def body(params: dict[str, Any]) -> Callable[[jax.Array], jax.Array]:
        return lambda x: lax.associative_scan(combine, x, axis=params["axis"], reverse=params["reverse"])

    return body


def reduce_body(params: dict[str, Any]) -> Callable[..., list[jax.Array]]:
    """A reduction by any function, as a tree of that function: halves are combined until one is left."""
    combine, axes = reducer(params), params["dimensions"]

    def body(*operands: jax.Array) -> list[jax.Array]:
        xs, inits = operands[: len(operands) // 2], operands[len(operands) // 2 :]
        kept = [i for i in range(xs[0].ndim) if i not in axes]
        n = math.prod(xs[0].shape[i] for i in axes)
        rest = [xs[0].shape[i] for i in kept]
        flat = [lax.reshape(lax.transpose(x, [*axes, *kept]), [n, *rest]) for x in xs]
        many = lambda *ys: jax.vmap(combine)(*(y.reshape(-1) for y in ys))
        while flat[0].shape[0] > 1:
            half = (flat[0].shape[0] + 1) // 2
            lower = [x[:half] for x in flat]
            pads = [(0, 2 * half - flat[0].shape[0], 0), *([(0, 0, 0)] * len(rest))]
            upper = [lax.pad(x[half:], init, pads) for x, init in zip(flat, inits, strict=True)]
            flat = [y.reshape(half, *rest) for y in many(*lower, *upper)]
        if n == 0:
            return [lax.broadcast(init, rest) for init in inits]
        return [x[0] for x in flat]

    return body


def window_padding(
    x: jax.Array | Aval,
    ct: jax.Array | Aval,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    base: Sequence[int],
    spacing: Sequence[int],
) -> list[tuple[int, int]]:
    """The padding with which a window, slid over the output's cotangents, covers the input."""
    n = dilated(x.shape, base)
    k = dilated(window, spacing)
    m = dilated(ct.shape, strides)
    low = [w - lo - 1 for w, (lo, _) in zip(k, padding, strict=True)]
    return [(lo, a + w - 1 - b - lo) for lo, a, w, b in zip(low, n, k, m, strict=True)]


def reduce_window_sum_back(
    ct: jax.Array,
    x: Aval,
    *,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    base_dilation: Sequence[int],
    window_dilation: Sequence[int],
) -> jax.Array:
    """z = the sums over windows of x:  x̄ sums z̄ over the windows that an element was in."""
    if are_tiles(x, window_dimensions, window_strides, padding, (*base_dilation, *window_dilation)):
        return joined_tiles(tiled(ct, window_dimensions), x)
    pads = window_padding(x, ct, window_dimensions, window_strides, padding, base_dilation, window_dilation)
    config = [(lo, hi, stride - 1) for (lo, hi), stride in zip(pads, window_strides, strict=True)]
    return lax.reduce_window(
        lax.pad(ct, np.zeros((), ct.dtype), config),
        np.zeros((), ct.dtype),
        lax.add,
        window_dimensions=window_dimensions,
        window_strides=base_dilation,
        padding=[(0, 0)] * ct.ndim,
        window_dilation=window_dilation,
    )


def pooling_bwd(better: Primitive) -> Callable[..., list[Cotangent]]:
    """The backward rule of pooling by maximum or minimum; `better` is the comparison that picks the winner."""

    def reduce_window_extremum_bwd(
        res: PyTree,
        ct: jax.Array,
        perturbed: Sequence[bool],
        *,
        window_dimensions: Sequence[int],
        window_strides: Sequence[int],
        padding: Sequence[tuple[int, int]],
        base_dilation: Sequence[int],
        window_dilation: Sequence[int],
    ) -> list[Cotangent]:
        """z = the maxima over windows of x:  each window's z̄ goes to its first winner, and an element sums them."""
        (x,) = res
        size = dict(window_dimensions=window_dimensions, window_strides=window_strides)
        if any(d != 1 for d in (*base_dilation, *window_dilation)):
            raise NotImplementedError("Pooling by maximum or minimum with dilation has no derivative in JAX or funcbp.")
        few = math.prod(window_dimensions) <= UNROLLED and min(map(min, padding)) >= 0
        if few and is_plain(aval_of(x)) and ct.size:
            which = winners(ct, x, better, window_dimensions, window_strides, padding)
            if are_tiles(aval_of(x), window_dimensions, window_strides, padding, ()):
                return [to_tiles(ct, which, aval_of(x), window_dimensions)]
            return [to_places(ct, which, aval_of(x), window_dimensions, window_strides, padding)]
        return [primitives.select_and_scatter_add_p.bind(ct, x, select_prim=better, padding=padding, **size)]

    return reduce_window_extremum_bwd


UNROLLED = 16  # as many places of a window are compared one by one


def are_tiles(
    x: Aval,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> bool:
    """Tell whether windows lie side by side on x: each element is in one at most, and what they say of it is no sum."""
    dilated = any(d != 1 for d in dilation)
    return is_plain(x) and tuple(window) == tuple(strides) and not any(map(any, padding)) and not dilated


def tiled(ct: jax.Array, window: Sequence[int]) -> jax.Array:
    """A value for each window at all its places, which are an axis of their own behind each axis."""
    shape = [n for pair in zip(ct.shape, window, strict=True) for n in pair]
    return lax.broadcast_in_dim(ct, shape, range(0, len(shape), 2))


def joined_tiles(tiles: jax.Array, x: Aval) -> jax.Array:
    """The array that windows side by side make, with zeros for what of x is in none of them."""
    sizes = [n * w for n, w in zip(tiles.shape[::2], tiles.shape[1::2], strict=True)]
    rest = [(0, n - size, 0) for n, size in zip(x.shape, sizes, strict=True)]
    joined = lax.reshape(tiles, sizes)
    return lax.pad(joined, np.zeros((), tiles.dtype), rest) if any(map(any, rest)) else joined


def winners(
    ct: jax.Array,
    x: jax.Array,
    better: Primitive,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """The number of the place where each window has its winner: what was found so far stays as long as it is better.

    The same place as that of `select_and_scatter_add`, of which the way back would be a scatter, which is slow.
    """
    worst = np.array(-np.inf if better is primitives.ge_p else np.inf, x.dtype)
    padded = lax.pad(x, worst, [(lo, hi, 0) for lo, hi in padding]) if any(map(any, padding)) else x
    which, best = lax.full_like(ct, 0, np.int32), None
    for place, start in enumerate(np.ndindex(*window)):
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, ct.shape, strides, strict=True)]
        here = lax.slice(padded, start, stop, strides)
        if best is not None:
            stays = better.bind(best, here)
            which = lax.select(stays, which, lax.full_like(which, place))
            here = lax.select(stays, best, here)
        best = here
    return which


def to_tiles(ct: jax.Array, which: jax.Array, x: Aval, window: Sequence[int]) -> jax.Array:
    """z̄ at the winner of each window, for windows side by side."""
    places = lax.reshape(np.arange(math.prod(window), dtype=np.int32), [n for w in window for n in (1, w)])
    mine = tiled(which, window)
    won = lax.eq(mine, lax.broadcast_in_dim(places, mine.shape, range(mine.ndim)))
    return joined_tiles(where(won, tiled(ct, window), 0), x)


def to_places(
    ct: jax.Array,
    which: jax.Array,
    x: Aval,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """The sum of z̄ over the windows that an element won: what was won at each place of a window, where that lies."""
    total: jax.Array | None = None
    for place, start in enumerate(np.ndindex(*window)):
        won = where(lax.eq(which, lax.full_like(which, place)), ct, 0)
        config = []
        for a, n, size, stride, (low, _) in zip(start, x.shape, ct.shape, strides, padding, strict=True):
            config.append((a - low, n - (a - low) - (1 + stride * (size - 1)), stride - 1))
        part = lax.pad(won, np.zeros((), ct.dtype), config)
        total = part if total is None else lax.add(total, part)
    assert total is not None  # a window has a place
    return total


def select_and_scatter_add_bwd(
    res: PyTree,
    ct: jax.Array,
    perturbed: Sequence[bool],
    *,
    select_prim: Primitive,
    padding: Sequence[tuple[int, int]],
    **size: Any,
) -> list[Cotangent]:
    """z = x's sums over the windows that an element of y won:  x̄ = z̄ at the winner of each window. y gets nothing."""
    (y,) = res
    ones = (1,) * y.ndim
    dilation = dict(base_dilation=ones, window_dilation=ones)
    gather = primitives.select_and_gather_add_p.bind(
        ct, y, select_prim=select_prim, padding=padding, **size, **dilation
    )
    return [gather, None]


def select_and_gather_add_bwd(
    res: PyTree,
    ct: jax.Array,
    perturbed: Sequence[bool],
    *,
    select_prim: Primitive,
    padding: Sequence[tuple[int, int]],
    base_dilation: Sequence[int],
    window_dilation: Sequence[int],
    **size: Any,
) -> list[Cotangent]:
    """z = x at the winner of each window of y:  x̄ sums z̄ over the windows that an element won. y gets nothing."""
    (y,) = res
    if any(d != 1 for d in (*base_dilation, *window_dilation)):
        raise NotImplementedError("Pooling by maximum or minimum with dilation has no derivative in JAX or funcbp.")
    return [primitives.select_and_scatter_add_p.bind(ct, y, select_prim=select_prim, padding=padding, **size), None]


def keep_second(primals: Sequence[jax.Array], *_: Any) -> PyTree:
    return (primals[1],)


def windowed(eqn: JaxprEqn) -> int:
    """One operation for each number of each window."""
    return results(eqn) * math.prod(eqn.params["window_dimensions"])


CUMULATIVE, WINDOWED = DEAR.but(flops=operand), DEAR.but(flops=windowed)

def_linear(primitives.reduce_sum_p, reduce_sum_back, traits=REDUCTION.but(digits=Digits.SUM))
def_rule(primitives.reduce_max_p, reduce_extremum_bwd, save=lambda primals, z, *_: (primals[0], z), traits=REDUCTION)
def_rule(primitives.reduce_min_p, reduce_extremum_bwd, save=lambda primals, z, *_: (primals[0], z), traits=REDUCTION)
def_rule(primitives.reduce_prod_p, reduce_prod_bwd, traits=CUMULATIVE)
def_linear(primitives.cumsum_p, cumsum_back, traits=CUMULATIVE.but(digits=Digits.SUM))
def_body(primitives.reduce_p, reduce_body, traits=CUMULATIVE)
def_body(primitives.cumprod_p, cumulative(lax.mul), traits=CUMULATIVE)
def_body(primitives.cummax_p, cumulative(lax.max), traits=CUMULATIVE)
def_body(primitives.cummin_p, cumulative(lax.min), traits=CUMULATIVE)
def_body(primitives.cumlogsumexp_p, cumulative(jnp.logaddexp), traits=CUMULATIVE)
def_linear(primitives.reduce_window_sum_p, reduce_window_sum_back, traits=WINDOWED.but(digits=Digits.SUM))
def_rule(primitives.reduce_window_max_p, pooling_bwd(primitives.ge_p), traits=WINDOWED)
def_rule(primitives.reduce_window_min_p, pooling_bwd(primitives.le_p), traits=WINDOWED)
def_rule(primitives.select_and_scatter_add_p, select_and_scatter_add_bwd, save=keep_second, traits=CUMULATIVE)
def_rule(primitives.select_and_gather_add_p, select_and_gather_add_bwd, save=keep_second, traits=DEAR.but(flops=free))
def_traits(WINDOWED, primitives.reduce_window_p)
def_nondiff(
    *(primitives.argmax_p, primitives.argmin_p, primitives.reduce_and_p, primitives.reduce_or_p),
    primitives.reduce_xor_p,
    traits=REDUCTION,
)
