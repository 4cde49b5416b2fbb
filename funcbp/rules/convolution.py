"""Convolutions: the rules of their two operands."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax import lax
from jax.typing import DTypeLike

from ..cotangents import ABSORB, Product
from ..jaxpr import aval_of, cotangent_sharding, dilated, primitives
from ..jaxpr.types import Aval, JaxprEqn
from .convolving import convolve
from .registry import def_bilinear
from .traits import CONTRACTION, Digits


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


def conv_left(
    ct: jax.Array,
    w: jax.Array,
    x: Aval,
    *,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: lax.ConvDimensionNumbers,
    feature_group_count: int,
    batch_group_count: int,
    precision: lax.PrecisionLike,
    preferred_element_type: DTypeLike | None,
    out_sharding: jax.sharding.NamedSharding | None = None,
) -> jax.Array:
    """z = x ⋆ w:  x̄ is z̄ convolved with w, flipped in space and with input and output channels exchanged.

    Strides of the forward pass space z̄ out (lhs_dilation), and the forward pass's lhs_dilation becomes the stride.
    """
    x_spec, w_spec, z_spec = dimension_numbers
    k = dilated(_spatial(w, w_spec), rhs_dilation)
    n = dilated(_spatial(x, x_spec), lhs_dilation)
    m = dilated(_spatial(ct, z_spec), window_strides)
    low = [a - lo - 1 for a, (lo, _) in zip(k, padding, strict=True)]
    pads = [(lo, b + a - 1 - c - lo) for lo, a, b, c in zip(low, k, n, m, strict=True)]
    groups = max(feature_group_count, batch_group_count)
    if groups > 1:
        w = _merge_axis(_split_axis(w, w_spec[0], groups), w_spec[0], w_spec[1])
    exchanged = lax.ConvDimensionNumbers(z_spec, (w_spec[1], w_spec[0], *w_spec[2:]), x_spec)
    x_bar = convolve(
        ct,
        w if w.dtype == ct.dtype else lax.convert_element_type(w, ct.dtype),
        window_strides=lhs_dilation,
        padding=pads,
        lhs_dilation=window_strides,
        rhs_dilation=rhs_dilation,
        dimension_numbers=exchanged,
        reverse=True,
        feature_group_count=groups,
        batch_group_count=1,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=cotangent_sharding(x),
    )
    if batch_group_count > 1:
        x_bar = _merge_axis(_split_axis(x_bar, x_spec[1], batch_group_count), x_spec[1], x_spec[0])
    return x_bar if x_bar.dtype == x.dtype else lax.convert_element_type(x_bar, x.dtype)


def conv_right(
    ct: jax.Array,
    x: jax.Array,
    w: Aval,
    *,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: lax.ConvDimensionNumbers,
    feature_group_count: int,
    batch_group_count: int,
    precision: lax.PrecisionLike,
    preferred_element_type: DTypeLike | None,
    out_sharding: jax.sharding.NamedSharding | None = None,
) -> jax.Array:
    """z = x ⋆ w:  w̄ is x convolved with z̄, with the batch as the channels that are summed over."""
    x_spec, w_spec, z_spec = dimension_numbers
    exchange = lambda spec: (spec[1], spec[0], *spec[2:])
    k = dilated(_spatial(w, w_spec), rhs_dilation)
    n = dilated(_spatial(x, x_spec), lhs_dilation)
    m = dilated(_spatial(ct, z_spec), window_strides)
    pads = [(lo, c - b + a - lo - 1) for (lo, _), a, b, c in zip(padding, k, n, m, strict=True)]
    w_bar = convolve(
        x if x.dtype == ct.dtype else lax.convert_element_type(x, ct.dtype),
        ct,
        window_strides=rhs_dilation,
        padding=pads,
        lhs_dilation=lhs_dilation,
        rhs_dilation=window_strides,
        dimension_numbers=lax.ConvDimensionNumbers(exchange(x_spec), exchange(z_spec), exchange(w_spec)),
        feature_group_count=batch_group_count,
        batch_group_count=feature_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=cotangent_sharding(w),
    )
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
