"""How products and convolutions are written in a program for a CPU.

XLA's CPU compiler has a library for convolutions of operands in one order of axes. It turns others into that order, but
not inside loops and branches. What the library does not take, it goes through number by number, which takes 10 to 100
times as long. Here each convolution is written as one that the library takes, or as contractions.

Of a batch of small matrices it multiplies each by a call of its own, 10 to 50 times as long as the arithmetic. Here
these are sums of outer products, of all matrices at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from ..jaxpr import Program, Visitor, aval_of, device_here, dilated, is_plain, primitives, run, trace
from ..jaxpr.types import Aval, JaxprEqn, Value
from .elementwise import in_float32

__all__ = ["Convolution", "convolve", "multiply", "written_for_here"]

BATCH = 8  # from so many matrices on, a batch of small ones is multiplied at once
ALONE = 64  # products, from which on each of real ones has a call of its own
ROWS = 7  # as many rows and columns they have; of more, XLA's library takes those that are read row by row
ACROSS = 12  # and so many those that are not
COMPLEX = 4  # and so many complex ones
TAPS = 64  # as many taps of a kernel in groups are gone through one by one
POSITIONS = 16  # and as many of the gradient of one


class Convolution(NamedTuple):
    """What `jax.lax.conv_general_dilated` is told beside its operands."""

    dimension_numbers: lax.ConvDimensionNumbers
    window_strides: Sequence[int]
    padding: Sequence[tuple[int, int]]
    lhs_dilation: Sequence[int]
    rhs_dilation: Sequence[int]
    feature_group_count: int
    batch_group_count: int
    precision: lax.PrecisionLike
    preferred_element_type: DTypeLike | None = None
    out_sharding: jax.sharding.NamedSharding | None = None


Form = Callable[[Convolution, jax.Array, jax.Array], jax.Array]


def convolve(how: Convolution, x: jax.Array, w: jax.Array, reverse: bool = False) -> jax.Array:
    """Convolve x with w, on a CPU in the form that takes the least time there.

    Args:
        how: what else is said of the convolution. A dtype of the result that is not that of x, and a way to lay it out
            over devices, are left to XLA.
        x: an array, whose axes `dimension_numbers` names.
        w: the kernel, of the same dtype.
        reverse: whether the kernel is flipped in space.
    """
    form = _form(how, x, w) if _may_be_written(x, w, how.preferred_element_type, how.out_sharding) else None
    if reverse and (space := [i for i in how.dimension_numbers.rhs_spec[2:] if w.shape[i] != 1]):
        w = lax.rev(w, space)
    return lax.conv_general_dilated(x, w, **how._asdict()) if form is None else form(how, x, w)


def _may_be_written(
    x: jax.Array | Aval, w: jax.Array | Aval, dtype: DTypeLike | None, out_sharding: jax.sharding.NamedSharding | None
) -> bool:
    plain = is_plain(x) and is_plain(w) and out_sharding is None
    same = dtype is None or dtype == x.dtype  # not `in (None, ...)`: numpy takes None for float64
    return device_here().platform == "cpu" and plain and same


def _form(how: Convolution, x: jax.Array | Aval, w: jax.Array | Aval) -> Form:
    positions, taps = _positions(how, x, w), math.prod(_taps(how, w))
    if not x.size or not w.size or min(positions, default=1) < 1:
        return _in_order
    if how.batch_group_count > 1:
        return _by_positions if math.prod(positions) <= POSITIONS else _in_order
    if how.feature_group_count > 1:
        return _by_taps if taps <= TAPS else _in_order
    if math.prod(positions) == 1:
        return _by_positions
    if taps == 1:
        return _of_one_tap
    spaced = max(how.lhs_dilation) > 1 and all(n == 1 for n in (*how.window_strides, *how.rhs_dilation))
    return _exchanged if spaced and taps > math.prod(positions) else _in_order


# --- products ---------------------------------------------------------------------------------------------------------


def multiply(
    x: jax.Array,
    y: jax.Array,
    dimension_numbers: lax.DotDimensionNumbers,
    *,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    out_sharding: jax.sharding.NamedSharding | None = None,
) -> jax.Array:
    """Contract x with y as `jax.lax.dot_general`, on a CPU in the form that takes the least time there."""
    if _are_small(x, y, dimension_numbers, precision, preferred_element_type, out_sharding):
        contracted, batch = (tuple(map(tuple, axes)) for axes in dimension_numbers)
        return _of_small(x, y, contracted, batch)
    given: dict[str, Any] = {"preferred_element_type": preferred_element_type, "out_sharding": out_sharding}
    return lax.dot_general(x, y, dimension_numbers, precision=precision, **given)


def _are_small(
    x: jax.Array | Aval,
    y: jax.Array | Aval,
    dimension_numbers: lax.DotDimensionNumbers,
    precision: lax.PrecisionLike,
    dtype: DTypeLike | None,
    out_sharding: jax.sharding.NamedSharding | None,
) -> bool:
    """Tell whether these are many small matrices of which XLA's CPU compiler multiplies each by a call of its own."""
    asked = precision if isinstance(precision, tuple) else (precision,)
    exact = jnp.issubdtype(x.dtype, jnp.inexact) and x.dtype.itemsize >= 4 and x.dtype == y.dtype
    exact = exact and all(p is None or isinstance(p, lax.Precision) for p in asked)
    if not exact or not _may_be_written(x, y, dtype, out_sharding):
        return False
    (contracted, _), (batch, _) = dimension_numbers
    matrices, k = (math.prod(x.shape[i] for i in axes) for axes in (batch, contracted))
    if matrices < BATCH or k < 2:
        return False
    m, n = x.size // (matrices * k), y.size // (matrices * k)
    own = [i for i in range(len(x.shape)) if i not in contracted and i not in batch]
    real = jnp.issubdtype(x.dtype, jnp.floating)
    across = min(contracted) < max(own, default=0)
    most = COMPLEX if not real else ACROSS if across else ROWS
    return min(m, n) > 1 and max(m, k, n) <= most and (not real or m * k * n >= ALONE)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _of_small(x: jax.Array, y: jax.Array, contracted: Any, batch: Any) -> jax.Array:
    """Add up outer products: z[b m n] = Σₖ x[b m k] y[b k n]."""
    own = [
        [i for i in range(a.ndim) if i not in c and i not in b]
        for a, c, b in zip((x, y), contracted, batch, strict=True)
    ]
    sizes = [x.shape[i] for i in batch[0]]
    rows, columns = ([a.shape[i] for i in axes] for a, axes in zip((x, y), own, strict=True))
    x = lax.transpose(x, (*batch[0], *own[0], *contracted[0])).reshape(*sizes, math.prod(rows), -1)
    y = lax.transpose(y, (*batch[1], *contracted[1], *own[1])).reshape(*sizes, -1, math.prod(columns))
    terms = [x[..., k, None] * y[..., k, None, :] for k in range(x.shape[-1])]
    return sum(terms[1:], terms[0]).reshape(*sizes, *rows, *columns)


# --- in the order of XLA's library ------------------------------------------------------------------------------------


def _in_order(how: Convolution, x: jax.Array, w: jax.Array) -> jax.Array:
    """Convolve with the batch first and the channels last: z[b s o] = x[b s i] ⋆ w[s i o]."""
    new = how._replace(dimension_numbers=_ordered(x.ndim))
    return _put_back(how, lax.conv_general_dilated(_examples(how, x), _kernel(how, w), **new._asdict()))


def _ordered(ndim: int) -> lax.ConvDimensionNumbers:
    space = range(ndim - 2)
    batched = (0, ndim - 1, *(i + 1 for i in space))
    return lax.ConvDimensionNumbers(batched, (ndim - 1, ndim - 2, *space), batched)


def _exchanged(how: Convolution, x: jax.Array, w: jax.Array) -> jax.Array:
    """Convolve w with x, which has holes, in the place of x with w, which is larger than what comes of it: flipped.

    z[u] = Σₐ x[a] w[a d + low - u], where the holes d of x are those of the new kernel.
    """
    x_spec, w_spec, z_spec = how.dimension_numbers
    positions = _positions(how, x, w)
    low = [u - 1 - lo for u, (lo, _) in zip(positions, how.padding, strict=True)]
    reached = [u - 1 + n for u, n in zip(positions, dilated(_sizes(x, x_spec), how.lhs_dilation), strict=True)]
    new = how._replace(
        dimension_numbers=lax.ConvDimensionNumbers(w_spec, x_spec, (z_spec[1], z_spec[0], *z_spec[2:])),
        padding=[(lo, n - lo - m) for lo, n, m in zip(low, reached, _taps(how, w), strict=True)],
        lhs_dilation=how.rhs_dilation,
        rhs_dilation=how.lhs_dilation,
    )
    return lax.rev(_in_order(new, w, x), z_spec[2:])


# --- as contractions --------------------------------------------------------------------------------------------------


def _of_one_tap(how: Convolution, x: jax.Array, w: jax.Array) -> jax.Array:
    """Contract the channels, z[b s o] = Σᵢ x[b s i] w[i o], at the places of x or at those of z: at the fewer."""
    positions, start = _positions(how, x, w), [0] * len(how.padding)
    x, kernel = _examples(how, x), _kernel(how, w)
    contracted = lambda x: _times(x, lax.reshape(kernel, kernel.shape[-2:]), 1, how.precision)
    placed = lambda x: _cut(_padded(how, x), start, positions, how.window_strides)
    fewer = math.prod(positions) < math.prod(x.shape[1:-1])
    return _put_back(how, contracted(placed(x)) if fewer else placed(contracted(x)))


def _by_taps(how: Convolution, x: jax.Array, w: jax.Array) -> jax.Array:
    """Add up, over the taps t of a kernel in groups g: z[b s g o] = Σₜ Σᵢ x[b s+t g i] w[t i g o]."""
    positions = _positions(how, x, w)

    def added(x: jax.Array, w: jax.Array) -> jax.Array:
        kernels = w.reshape(-1, *w.shape[-2:])
        parts = (_cut(x, at, positions, how.window_strides) for at in _places(how.rhs_dilation, w.shape[:-2]))
        terms = [_times(p, k, how.feature_group_count, how.precision) for p, k in zip(parts, kernels, strict=True)]
        return sum(terms[1:], terms[0])

    return _put_back(how, in_float32(added)(_padded(how, _examples(how, x)), _kernel(how, w)))


def _by_positions(how: Convolution, x: jax.Array, w: jax.Array) -> jax.Array:
    """Contract, at each of few positions u, all that lies under a kernel: z[u b g o] = Σₛ Σᵢ x[i s+u g b] w[i s g o].

    That is the gradient of a kernel, whose taps are the positions.
    """
    x_spec, w_spec, z_spec = how.dimension_numbers
    positions = _positions(how, x, w)
    x = lax.transpose(x, (x_spec[1], *x_spec[2:], x_spec[0]))
    w = lax.transpose(w, (w_spec[1], *w_spec[2:], w_spec[0]))

    def contracted(x: jax.Array, w: jax.Array) -> jax.Array:
        places = _places(how.window_strides, positions)
        parts = [_cut(x, at, w.shape[1:-1], how.rhs_dilation) for at in places]
        sums = [_summed(part, w, how.batch_group_count, how.precision) for part in parts]
        return sums[0] if len(sums) == 1 else jnp.stack(sums)

    z = in_float32(contracted)(_padded(how, x), w)
    z = lax.reshape(z, (*positions, *z.shape[-2:]))
    return lax.transpose(z, np.argsort((*z_spec[2:], z_spec[0], z_spec[1])).tolist())


def _times(x: jax.Array, w: jax.Array, groups: int, precision: lax.PrecisionLike) -> jax.Array:
    """x[... g i] w[i g o], with g and i, and g and o, along one axis."""
    if groups == 1:
        return lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())), precision=precision)
    apart, kernel = _split(x, groups), _split(w, groups)
    if w.shape[0] == 1:
        z = lax.broadcast_in_dim(apart, (*x.shape[:-1], *kernel.shape[1:]), range(apart.ndim))
        z = lax.mul(z, lax.broadcast_in_dim(kernel[0], z.shape, (z.ndim - 2, z.ndim - 1)))
    else:
        z = jnp.einsum("...gi,igo->...go", apart, kernel, precision=precision)
    return lax.reshape(z, (*x.shape[:-1], w.shape[1]))


def _summed(x: jax.Array, w: jax.Array, groups: int, precision: lax.PrecisionLike) -> jax.Array:
    """Σ x[... g b] w[... g o] = z[b g o], with g and b, and g and o, along one axis."""
    axes = tuple(range(x.ndim - 1))
    if groups == 1:
        return lax.dot_general(x, w, ((axes, axes), ((), ())), precision=precision)
    if x.shape[-1] == w.shape[-1] == groups:
        return lax.reduce_sum(lax.mul(x, w), axes)[None]
    z = jnp.einsum("...gb,...go->bgo", _split(x, groups), _split(w, groups), precision=precision)
    return lax.reshape(z, (z.shape[0], w.shape[-1]))


def _split(x: jax.Array, groups: int) -> jax.Array:
    return lax.reshape(x, (*x.shape[:-1], groups, x.shape[-1] // groups))


# --- axes and places --------------------------------------------------------------------------------------------------


def _examples(how: Convolution, x: jax.Array) -> jax.Array:
    """What is convolved, as x[b s i]."""
    return lax.transpose(x, _channels_last(how.dimension_numbers.lhs_spec))


def _kernel(how: Convolution, w: jax.Array) -> jax.Array:
    """The kernel, as w[s i o]."""
    out, into, *space = how.dimension_numbers.rhs_spec
    return lax.transpose(w, (*space, into, out))


def _put_back(how: Convolution, z: jax.Array) -> jax.Array:
    """The result z[b s o] with its axes where they are asked for."""
    return lax.transpose(z, np.argsort(_channels_last(how.dimension_numbers.out_spec)).tolist())


def _channels_last(spec: Sequence[int]) -> tuple[int, ...]:
    return spec[0], *spec[2:], spec[1]


def _sizes(x: jax.Array | Aval, spec: Sequence[int]) -> list[int]:
    return [x.shape[i] for i in spec[2:]]


def _taps(how: Convolution, w: jax.Array | Aval) -> list[int]:
    return _sizes(w, how.dimension_numbers.rhs_spec)


def _positions(how: Convolution, x: jax.Array | Aval, w: jax.Array | Aval) -> list[int]:
    """Count the places that a kernel is laid on, along each axis."""
    n = dilated(_sizes(x, how.dimension_numbers.lhs_spec), how.lhs_dilation)
    k = dilated(_taps(how, w), how.rhs_dilation)
    room = [a + lo + hi - b for a, (lo, hi), b in zip(n, how.padding, k, strict=True)]
    return [r // stride + 1 for r, stride in zip(room, how.window_strides, strict=True)]


def _padded(how: Convolution, x: jax.Array) -> jax.Array:
    """x[. s .] with its margins and holes."""
    margins = [(lo, hi, d - 1) for (lo, hi), d in zip(how.padding, how.lhs_dilation, strict=True)]
    if not any(map(any, margins)):
        return x
    return lax.pad(x, np.zeros((), x.dtype), [(0, 0, 0), *margins, (0, 0, 0)])


def _places(steps: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    return [[i * step for i, step in zip(at, steps, strict=True)] for at in np.ndindex(*sizes)]


def _cut(x: jax.Array, start: Sequence[int], sizes: Sequence[int], steps: Sequence[int]) -> jax.Array:
    """As many numbers of x[. s .] as `sizes`, from a place on, so many steps from each other."""
    if tuple(sizes) == x.shape[1:-1]:
        return x
    limit = [a + (n - 1) * step + 1 for a, n, step in zip(start, sizes, steps, strict=True)]
    return lax.slice(x, (0, *start, 0), (x.shape[0], *limit, x.shape[-1]), (1, *steps, 1))


# --- programs ---------------------------------------------------------------------------------------------------------


def written_for_here(program: Program) -> Program:
    """The same program, with its products and convolutions written so."""
    if not any(map(_changes, program.eqns)):
        return program
    return trace(lambda *args: run(program, args, _Rewriting()), [v.aval for v in program.invars], "forward")


class _Rewriting(Visitor):
    def equation(self, eqn: JaxprEqn, args: list[Value]) -> Sequence[Value]:
        if not _changes(eqn):
            return super().equation(eqn, args)
        if eqn.primitive is primitives.dot_general_p:
            return [multiply(*args, **eqn.params)]
        return [convolve(Convolution(**eqn.params), *args)]


def _changes(eqn: JaxprEqn) -> bool:
    """Tell whether an equation is a product or a convolution that is written in another form than it has."""
    if eqn.primitive not in (primitives.dot_general_p, primitives.conv_general_dilated_p):
        return False
    x, w = (aval_of(v.aval) for v in eqn.invars)
    params = dict(eqn.params)
    if eqn.primitive is primitives.dot_general_p:
        return _are_small(x, w, dtype=params.pop("preferred_element_type"), **params)
    how = Convolution(**params)
    if not _may_be_written(x, w, how.preferred_element_type, how.out_sharding):
        return False
    return _form(how, x, w) is not _in_order or how.dimension_numbers != _ordered(len(x.shape))
