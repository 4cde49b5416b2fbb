"""A dense layer: every output unit sees every input, and the backward pass is the other two matrix products.

b..: any leading axes (examples, time)    i: inputs    j: output units

The three sums of its backward pass are what the rules of a product and of a broadcast say, so no rule is written here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike


def dense(x: ArrayLike, kernel: ArrayLike, bias: ArrayLike | None = None) -> jax.Array:
    """The net input of a layer of units: a matrix product and a bias.

    Forward, net[b,j] = Σ_i x[b,i] W[i,j] + β[j]. Backward, with the delta δ[b,j], the cotangent of the net input:

        x̄[b,i] = Σ_j δ[b,j] W[i,j]        W̄[i,j] = Σ_b x[b,i] δ[b,j]        β̄[j] = Σ_b δ[b,j]

    The layer keeps x and W. Products of bfloat16 or float16 numbers are added up in float32, forward and backward.

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

    References:
        D. Rumelhart, G. Hinton, R. Williams, "Learning representations by back-propagating errors", 1986.
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
        return _product(*_common_dtype(x, kernel))
    bias = jnp.asarray(bias)
    if bias.shape != kernel.shape[1:]:
        raise ValueError(
            f"dense needs a bias of shape {kernel.shape[1:]} for a kernel of shape {kernel.shape}, and got shape "
            f"{bias.shape}."
        )
    x, kernel, bias = _common_dtype(x, kernel, bias)
    net = _product(x, kernel)
    wide = accumulator(net.dtype)  # in which the deltas of a bias are added up
    return (net.astype(wide) + lax.broadcast_in_dim(bias.astype(wide), net.shape, (net.ndim - 1,))).astype(net.dtype)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))


def accumulator(dtype: DTypeLike) -> DTypeLike:
    """float32 for the narrow floating types, otherwise the type itself."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.float32 if narrow else dtype


def _common_dtype(*arrays: jax.Array) -> list[jax.Array]:
    dtype = jnp.result_type(*arrays)
    return [a.astype(dtype) for a in arrays]
