"""Dropout: units are left out at random, and the backward pass draws the same ones again."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from ...jaxpr.types import Value

Array = jax.Array


def dropout(key: Array, x: ArrayLike, rate: float) -> Array:
    """Set each unit to 0 with probability `rate`, and divide the others by what is left of it, 1 - rate.

    Forward, y = m x / (1 - rate) with the mask m drawn from the key; backward, x̄ = m ȳ / (1 - rate). The mask is not
    kept: it is drawn again from the key, which is all that is.

    Args:
        key: a key of `jax.random`; with the same key the same units are left out.
        x: units, any shape, floating point.
        rate: the probability that a unit is left out, a Python number of at least 0 and less than 1. With 0 nothing is:
            so it is at evaluation.

    Returns:
        An array of the shape and dtype of `x`.

    Raises:
        ValueError: the rate is not a probability below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcbp import ops
        >>> print(sorted({float(y) for y in ops.dropout(jax.random.key(0), jnp.ones(100), 0.75)}))
        [0.0, 4.0]

    References:
        N. Srivastava, G. Hinton, A. Krizhevsky, I. Sutskever, R. Salakhutdinov, "Dropout: a simple way to prevent
        neural networks from overfitting", 2014.
    """
    x = jnp.asarray(x)
    if not 0 <= rate < 1:
        raise ValueError(f"dropout needs a rate of at least 0 and less than 1, and got {rate}.")
    return x if rate == 0 else _dropout(key, x, float(rate))


def _left(key: Array, x: Array, rate: float) -> Array:
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


_dropout = jax.custom_jvp(_left, nondiff_argnums=(2,))


@functools.partial(_dropout.defjvp, symbolic_zeros=True)
def dropout_tangent(rate: float, primals: Sequence[Array], tangents: Sequence[Value]) -> tuple[Array, Value]:
    """ẏ = m ẋ / (1 - rate), the mask drawn again."""
    (key, x), (_, dx) = primals, tangents
    again = jax.checkpoint(functools.partial(_left, rate=rate), prevent_cse=False)
    return _left(key, x, rate), dx if isinstance(dx, SymbolicZero) else again(key, dx)
