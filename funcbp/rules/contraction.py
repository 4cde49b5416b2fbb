"""Contractions and convolutions: where the arithmetic of a network is.

The cotangent of each operand is a contraction of the output's cotangent with the other operand: for a dense layer
net = x W, these are x̄ = δ W' and W̄ = x' δ, the two products of the textbook.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from ..cotangents import ABSORB, NARROW, TURN, Cotangent, Product
from ..jaxpr import aval_of, cotangent_sharding, dilated, permuted_sharding, primitive, primitives
from ..jaxpr.types import Aval, JaxprEqn, PyTree, Value
from .elementwise import is_complex
from .forms import Convolution, convolve, multiply
from .registry import def_bilinear, def_rule
from .traits import CONTRACTION, Digits


def dot_general_left(
    ct: jax.Array,
    y: jax.Array,
    x: Aval,
    *,
    dimension_numbers: lax.DotDimensionNumbers,
    precision: lax.PrecisionLike,
    preferred_element_type: DTypeLike | None,
    out_sharding: jax.sharding.NamedSharding | None = None,
    swapped: bool = False,
) -> jax.Array:
    """x: b.. i.. c..   y: b.. j.. c..   z: b.. i.. j..     x̄[b,i,c] = Σ_j z̄[b,i,j] y[b,j,c]

    The axes of each operand come in any order; z's are batch, x's own, y's own (`swapped`: batch, y's own, x's own).
    """
    (x_contract, y_contract), (x_batch, y_batch) = dimension_numbers
    x_own = [i for i in range(len(x.shape)) if i not in x_contract and i not in x_batch]
    y_own = [j for j in range(len(y.shape)) if j not in y_contract and j not in y_batch]
    batch = list(range(len(x_batch)))
    first = len(batch) + (0 if swapped else len(x_own))
    z_y_own = list(range(first, first + len(y_own)))
    # the product of z̄ and y has axes b.., i.., c.., that of y and z̄ b.., c.., i..; the contracted ones are in y's order
    c_by_y = [c for _, c in sorted(zip(y_contract, x_contract, strict=True))]
    axes, exchanged = [*x_batch, *x_own, *c_by_y], [*x_batch, *c_by_y, *x_own]
    factors, contracted, batches = (ct, y), (z_y_own, y_own), (batch, list(y_batch))
    if axes != sorted(axes) and exchanged == sorted(exchanged):  # no transposition: on a CPU, three times as fast
        axes, factors, contracted, batches = exchanged, factors[::-1], contracted[::-1], batches[::-1]
        if isinstance(precision, tuple) and len(precision) == 2:
            precision = precision[1], precision[0]  # type: ignore[assignment]
    product = multiply(
        *factors,
        (contracted, batches),
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=permuted_sharding(x, axes),
    )
    if is_complex(product) and not is_complex(x):
        product = lax.real(product)
    x_bar = product if axes == sorted(axes) else lax.transpose(product, np.argsort(axes).tolist())
    return x_bar if x_bar.dtype == x.dtype else lax.convert_element_type(x_bar, x.dtype)


def dot_general_right(
    ct: jax.Array, x: jax.Array, y: Aval, *, dimension_numbers: lax.DotDimensionNumbers, **params: Any
) -> jax.Array:
    """ȳ[b,j,c] = Σ_i z̄[b,i,j] x[b,i,c]: the same with the operands exchanged."""
    (x_contract, y_contract), (x_batch, y_batch) = dimension_numbers
    exchanged = (y_contract, x_contract), (y_batch, x_batch)
    return dot_general_left(ct, x, y, dimension_numbers=exchanged, swapped=True, **params)


def _dot_general_summed(product: Product) -> Product:
    """Σ_t of products of stacked factors: the steps t are one more axis of the other operand's own."""
    (x_contract, y_contract), (x_batch, y_batch) = product.params["dimension_numbers"]
    later = lambda axes: tuple(a + 1 for a in axes)
    if product.rule is dot_general_left:  # z: b.. i.. j.., and t comes to the j's
        dims = ((x_contract, later(y_contract)), (x_batch, later(y_batch)))
        place = len(product.aval.shape) - len(x_contract)
    else:  # z: b.. i.. j.., and t comes to the i's
        dims = ((later(x_contract), y_contract), (later(x_batch), y_batch))
        place = len(x_batch)
    params = dict(product.params, dimension_numbers=dims)
    return product._replace(ct=jnp.moveaxis(product.ct, 0, place), params=params)


def _dot_general_narrowed(product: Product, axis: int, start: int, stop: int) -> Product | None:
    """A part of x̄ along an axis of x: of z̄ where the axis is x's own, of y where it is contracted, else of both.

    None for a y whose type says how it is divided over devices: not every part of that can be taken.
    """
    if cotangent_sharding(aval_of(product.other)) is not None:
        return None
    contract, batch = product.params["dimension_numbers"]
    mine = 0 if product.rule is dot_general_left else 1
    x_contract, x_batch, y_contract, y_batch = (of[i] for i in (mine, 1 - mine) for of in (contract, batch))
    x_own = [i for i in range(len(product.aval.shape)) if i not in x_contract and i not in x_batch]
    part = lambda a, along: lax.slice_in_dim(a, start, stop, axis=along)
    ct, other = product.ct, product.other
    if axis in x_contract:
        other = part(other, y_contract[x_contract.index(axis)])
    elif axis in x_batch:
        at = x_batch.index(axis)
        ct, other = part(ct, at), part(other, y_batch[at])
    else:
        first = len(x_batch) if mine == 0 else ct.ndim - len(x_own)
        ct = part(ct, first + x_own.index(axis))
    shape = tuple(stop - start if i == axis else n for i, n in enumerate(product.aval.shape))
    return product._replace(ct=ct, other=other, aval=product.aval.update(shape=shape))


def _dot_general_turned(product: Product, order: Sequence[int], x: Aval) -> Product | None:
    """The product whose operand is x, where this one's is x with its axes in another order, but its own."""
    mine = 0 if product.rule is dot_general_left else 1
    contract, batch = ([*axes] for axes in product.params["dimension_numbers"])
    own = [order[i] for i in range(len(order)) if i not in contract[mine] and i not in batch[mine]]
    if own != sorted(own):
        return None
    contract[mine], batch[mine] = (tuple(order[i] for i in of[mine]) for of in (contract, batch))
    return product._replace(aval=x, params=dict(product.params, dimension_numbers=(tuple(contract), tuple(batch))))


def dot_general_flops(eqn: JaxprEqn) -> int:
    """A multiplication and an addition for each term of each sum."""
    (x_contract, _), _ = eqn.params["dimension_numbers"]
    x, z = aval_of(eqn.invars[0].aval), aval_of(eqn.outvars[0].aval)
    return 2 * math.prod(z.shape) * math.prod(x.shape[c] for c in x_contract)


def_bilinear(
    primitives.dot_general_p,
    dot_general_left,
    dot_general_right,
    traits=CONTRACTION.but(digits=Digits.SUM, flops=dot_general_flops),
)
for _rule in (dot_general_left, dot_general_right):
    ABSORB[_rule], NARROW[_rule], TURN[_rule] = _dot_general_summed, _dot_general_narrowed, _dot_general_turned


# --- convolution ------------------------------------------------------------------------------------------------------


def _split_axis(x: jax.Array, axis: int, groups: int) -> jax.Array:
    return lax.reshape(x, (*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :]))


def _merge_axis(x: jax.Array, source: int, target: int) -> jax.Array:
    """Move axis `source` in front of what is then axis `target`, and merge the two."""
    order = [i for i in range(x.ndim) if i != source]
    order.insert(target, source)
    shape = [n for i, n in enumerate(x.shape) if i != source]
    shape[target] *= x.shape[source]
    return lax.reshape(lax.transpose(x, order), shape)


def _spatial(x: jax.Array | Aval, spec: Sequence[int]) -> list[int]:
    return [x.shape[i] for i in spec[2:]]


def conv_left(ct: jax.Array, w: jax.Array, x: Aval, **params: Any) -> jax.Array:
    """z = x ⋆ w:  x̄ is z̄ convolved with w, flipped in space and with input and output channels exchanged.

    Strides of the forward pass space z̄ out (lhs_dilation), and the forward pass's lhs_dilation becomes the stride.
    """
    how = Convolution(**params)
    x_spec, w_spec, z_spec = how.dimension_numbers
    k = dilated(_spatial(w, w_spec), how.rhs_dilation)
    n = dilated(_spatial(x, x_spec), how.lhs_dilation)
    m = dilated(_spatial(ct, z_spec), how.window_strides)
    low = [a - lo - 1 for a, (lo, _) in zip(k, how.padding, strict=True)]
    groups = max(how.feature_group_count, how.batch_group_count)
    if groups > 1:
        w = _merge_axis(_split_axis(w, w_spec[0], groups), w_spec[0], w_spec[1])
    back = how._replace(
        dimension_numbers=lax.ConvDimensionNumbers(z_spec, (w_spec[1], w_spec[0], *w_spec[2:]), x_spec),
        window_strides=how.lhs_dilation,
        padding=[(lo, b + a - 1 - c - lo) for lo, a, b, c in zip(low, k, n, m, strict=True)],
        lhs_dilation=how.window_strides,
        feature_group_count=groups,
        batch_group_count=1,
        out_sharding=cotangent_sharding(x),
    )
    x_bar = convolve(back, ct, w if w.dtype == ct.dtype else lax.convert_element_type(w, ct.dtype), reverse=True)
    if how.batch_group_count > 1:
        x_bar = _merge_axis(_split_axis(x_bar, x_spec[1], how.batch_group_count), x_spec[1], x_spec[0])
    return x_bar if x_bar.dtype == x.dtype else lax.convert_element_type(x_bar, x.dtype)


def conv_right(ct: jax.Array, x: jax.Array, w: Aval, **params: Any) -> jax.Array:
    """z = x ⋆ w:  w̄ is x convolved with z̄, with the batch as the channels that are summed over."""
    how = Convolution(**params)
    x_spec, w_spec, z_spec = how.dimension_numbers
    exchange = lambda spec: (spec[1], spec[0], *spec[2:])
    k = dilated(_spatial(w, w_spec), how.rhs_dilation)
    n = dilated(_spatial(x, x_spec), how.lhs_dilation)
    m = dilated(_spatial(ct, z_spec), how.window_strides)
    back = how._replace(
        dimension_numbers=lax.ConvDimensionNumbers(exchange(x_spec), exchange(z_spec), exchange(w_spec)),
        window_strides=how.rhs_dilation,
        padding=[(lo, c - b + a - lo - 1) for (lo, _), a, b, c in zip(how.padding, k, n, m, strict=True)],
        rhs_dilation=how.window_strides,
        feature_group_count=how.batch_group_count,
        batch_group_count=how.feature_group_count,
        out_sharding=cotangent_sharding(w),
    )
    w_bar = convolve(back, x if x.dtype == ct.dtype else lax.convert_element_type(x, ct.dtype), ct)
    return w_bar if w_bar.dtype == w.dtype else lax.convert_element_type(w_bar, w.dtype)


def _conv_right_summed(product: Product) -> Product | None:
    """Σ_t of products of stacked factors: the steps t are more examples."""
    if product.params["batch_group_count"] > 1:
        return None
    x_spec, _, z_spec = product.params["dimension_numbers"]
    merge = lambda a, axis: _merge_axis(a, 0, axis)
    return product._replace(ct=merge(product.ct, z_spec[0]), other=merge(product.other, x_spec[0]))


def conv_flops(eqn: JaxprEqn) -> int:
    """A multiplication and an addition for each tap of the kernel and each output."""
    w, z = aval_of(eqn.invars[1].aval), aval_of(eqn.outvars[0].aval)
    channels = w.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(z.shape) * (math.prod(w.shape) // max(channels, 1))


def_bilinear(
    primitives.conv_general_dilated_p,
    conv_left,
    conv_right,
    traits=CONTRACTION.but(digits=Digits.SUM, flops=conv_flops),
)
ABSORB[conv_right] = _conv_right_summed


# --- ragged contraction -----------------------------------------------------------------------------------------------


def ragged_dot_general_bwd(
    res: PyTree,
    ct: jax.Array,
    perturbed: Sequence[bool],
    *,
    ragged_dot_dimension_numbers: lax.RaggedDotDimensionNumbers,
    precision: lax.PrecisionLike,
    preferred_element_type: DTypeLike | None,
    group_offset: jax.Array | None,
    **_: Any,
) -> list[Cotangent]:
    """x: b.. i(ragged).. c..   y: g b.. j.. c..   z: b.. i.. j..: rows of x meet the matrix of their group; or

    x: b.. i.. c(ragged)..   y: b.. j.. c..   z: g b.. i.. j..: the rows of a group are contracted.

    In the first, x̄ meets the same matrices the other way round, and ȳ is of the second kind. In the second, both are of
    the first.
    """
    x, y, group_sizes = res
    numbers = ragged_dot_dimension_numbers
    (x_contract, y_contract), (x_batch, y_batch) = numbers.dot_dimension_numbers
    (ragged,) = numbers.lhs_ragged_dimensions
    group = numbers.rhs_group_dimensions
    x_own = [i for i in range(x.ndim) if i not in x_contract and i not in x_batch]
    y_own = [j for j in range(y.ndim) if j not in y_contract and j not in y_batch and j not in group]
    if ragged in x_batch or group_offset is not None:
        raise NotImplementedError(
            "ragged_dot_general is differentiated, here as in JAX, only where the ragged axis is not a batch axis."
        )
    contracted = ragged in x_contract
    first = 1 if contracted else 0  # in z the groups come before all else
    batch = [first + k for k in range(len(x_batch))]
    z_x_own = [first + len(batch) + k for k in range(len(x_own))]
    z_y_own = [first + len(batch) + len(x_own) + k for k in range(len(y_own))]
    x_axes, y_axes = ([c[k] for k in np.argsort(o)] for c, o in ((x_contract, y_contract), (y_contract, x_contract)))

    def product(
        a: jax.Array,
        b: jax.Array,
        contract: tuple[Sequence[int], Sequence[int]],
        batch: tuple[Sequence[int], Sequence[int]],
        ragged: int,
        group: Sequence[int],
        axes: Sequence[int],
        like: Aval,
    ) -> jax.Array:
        """The contraction of a and b; its axes are these of `like`."""
        dims = lax.RaggedDotDimensionNumbers((contract, batch), [ragged], group)
        how: dict[str, Any] = dict(precision=precision, preferred_element_type=preferred_element_type)
        out = lax.ragged_dot_general(a, b, group_sizes, dims, **how)
        return lax.convert_element_type(lax.transpose(out, np.argsort(axes).tolist()), like.dtype)

    x_bar = y_bar = None
    if perturbed[0] and contracted:
        row = y_contract[x_contract.index(ragged)]
        axes = [*x_batch, *x_axes, *x_own]
        x_bar = product(y, ct, (y_own, z_y_own), (list(y_batch), batch), row, [0], axes, x)
    elif perturbed[0]:
        row = len(batch) + x_own.index(ragged)
        x_bar = product(ct, y, (z_y_own, y_own), (batch, list(y_batch)), row, group, [*x_batch, *x_own, *x_axes], x)
    if perturbed[1]:
        axes = [*y_batch, *y_axes, *y_own] if contracted else [*group, *y_batch, *y_axes, *y_own]
        groups = [0] if contracted else []
        y_bar = product(x, ct, (x_own, z_x_own), (list(x_batch), batch), ragged, groups, axes, y)
    return [x_bar, y_bar, None]


def ragged_dot_general_save(
    primals: Sequence[jax.Array], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]
) -> PyTree:
    x, y, group_sizes = primals
    return (x if perturbed[1] else aval_of(x)), (y if perturbed[0] else aval_of(y)), group_sizes


def ragged_dot_general_flops(eqn: JaxprEqn) -> int:
    """A multiplication and an addition for each row of x, each number of y's that it meets, and no other."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (_, y_contract), (_, y_batch) = numbers.dot_dimension_numbers
    x, y = (aval_of(v.aval) for v in eqn.invars[:2])
    met = {*y_contract, *y_batch, *numbers.rhs_group_dimensions}
    return 2 * math.prod(x.shape) * math.prod(n for j, n in enumerate(y.shape) if j not in met)


def_rule(
    primitive("ragged_dot_general_p"),
    ragged_dot_general_bwd,
    save=ragged_dot_general_save,
    traits=CONTRACTION.but(linear=(0, 1), flops=ragged_dot_general_flops),
)
