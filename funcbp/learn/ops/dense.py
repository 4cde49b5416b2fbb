"""A dense layer: every output unit sees every input, and the backward pass is the other two matrix products.

b..: any leading axes (examples, time)    i: inputs    j: output units

The pair is carried by `jax.custom_vjp`, so `jax.grad` uses it too. The price is JAX's: functions carried this way have
no forward mode, so `jax.jvp` of them raises. Both halves are differentiable operations, so derivatives of their
derivatives exist to any order, by reverse mode and by `jax.jvp` of a gradient.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ...jaxpr import sharding_of


def dense(x: Any, kernel: Any, bias: Any = None) -> jax.Array:
    """The net input of a layer of units: a matrix product and a bias.

    Forward, net[b,j] = Σ_i x[b,i] W[i,j] + β[j]. Backward, with the delta δ[b,j], the cotangent of the net input:

        x̄[b,i] = Σ_j δ[b,j] W[i,j]        W̄[i,j] = Σ_b x[b,i] δ[b,j]        β̄[j] = Σ_b δ[b,j]

    The layer keeps x and W. Products of bfloat16 or float16 numbers are added up in float32 and rounded once.

    Args:
        x: inputs, shape (batch..., in), floating point; any number of leading axes, none included.
        kernel: weights W, shape (in, out).
        bias: β, shape (out,), or None for a layer without.

    Returns:
        The net input, shape (batch..., out), in the common dtype of the arguments.

    Raises:
        ValueError: the shapes do not fit together.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import ops
        >>> ops.dense(jnp.array([1.0, 2.0]), jnp.array([[0.5], [0.25]]), jnp.array([1.0]))
        Array([2.], dtype=float32)

    Source: D. Rumelhart, G. Hinton, R. Williams, "Learning representations by back-propagating errors", 1986.
    """
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    if kernel.ndim != 2:
        raise ValueError(f"dense needs a kernel of shape (in, out), and got shape {kernel.shape}.")
    if x.ndim == 0 or x.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"dense needs inputs of shape (batch..., {kernel.shape[0]}) for a kernel of shape {kernel.shape}, and got "
            f"shape {x.shape}."
        )
    if bias is None:
        return _linear(*_common_dtype(x, kernel))
    bias = jnp.asarray(bias)
    if bias.shape != kernel.shape[1:]:
        raise ValueError(
            f"dense needs a bias of shape {kernel.shape[1:]} for a kernel of shape {kernel.shape}, and got shape "
            f"{bias.shape}."
        )
    return _affine(*_common_dtype(x, kernel, bias))


@jax.custom_vjp
def _linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return linear_fwd(x, kernel)[0]


def linear_fwd(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """net = x W; keeps x and W."""
    return _product(x, kernel).astype(x.dtype), (x, kernel)


def linear_bwd(res: tuple[jax.Array, jax.Array], delta: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x̄ = δ W', and W̄ = x' δ, added up over the leading axes b.."""
    x, kernel = res
    last, leading = x.ndim - 1, tuple(range(x.ndim - 1))
    x_bar = _contract(delta, kernel, (last,), (1,), sharding_of(x))
    kernel_bar = _contract(x, delta, leading, leading, sharding_of(kernel))
    return x_bar.astype(x.dtype), kernel_bar.astype(kernel.dtype)


_linear.defvjp(linear_fwd, linear_bwd)


@jax.custom_vjp
def _affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return affine_fwd(x, kernel, bias)[0]


def affine_fwd(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """net = x W + β; keeps x and W."""
    net = _product(x, kernel)
    return (net + _like_last_axis(bias.astype(net.dtype), net)).astype(x.dtype), (x, kernel)


def affine_bwd(res: tuple[jax.Array, jax.Array], delta: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As for the product; the bias met every example, so its cotangent is the sum of the deltas over b.."""
    bias_bar = jnp.sum(delta, axis=tuple(range(delta.ndim - 1)), dtype=_accumulator(delta.dtype)).astype(delta.dtype)
    return *linear_bwd(res, delta), bias_bar


_affine.defvjp(affine_fwd, affine_bwd)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _contract(x, kernel, (x.ndim - 1,), (0,))


def _contract(
    a: jax.Array, b: jax.Array, a_axes: tuple[int, ...], b_axes: tuple[int, ...], sharding: Any = None
) -> jax.Array:
    dims = ((a_axes, b_axes), ((), ()))
    dtype = _accumulator(a.dtype)
    return lax.dot_general(a, b, dims, preferred_element_type=dtype, out_sharding=sharding)


def _accumulator(dtype: Any) -> Any:
    """float32 for the narrow floating types, otherwise the type itself."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.float32 if narrow else dtype


def _like_last_axis(bias: jax.Array, net: jax.Array) -> jax.Array:
    return lax.broadcast_in_dim(bias, net.shape, (net.ndim - 1,))


def _common_dtype(*arrays: jax.Array) -> list[jax.Array]:
    dtype = jnp.result_type(*arrays)
    return [a.astype(dtype) for a in arrays]
