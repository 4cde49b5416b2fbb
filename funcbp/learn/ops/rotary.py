"""Rotary positions: queries and keys are turned by their places, so that their products know how far apart they are.

Turning is linear and keeps lengths, and its transpose turns back; both passes are what the rules of products and sums
say, so no rule is written here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .dense import accumulator


def rotary(
    x: ArrayLike, positions: ArrayLike | None = None, *, base: float = 10_000.0, interleaved: bool = False
) -> jax.Array:
    """Turn each pair of a head's units by an angle that grows with the position.

    Forward, with θ_i = base^(-2i/D) for the pair i = 0 .. D/2 - 1, its units a and b, and the position t,

        a' = a cos(t θ_i) - b sin(t θ_i)        b' = a sin(t θ_i) + b cos(t θ_i)

    Backward the cotangents are turned back: ā = ā' cos + b̄' sin and b̄ = b̄' cos - ā' sin. A query at t and a key at s
    so have a product that depends on t - s only. Angles are computed in float32, for float64 units in float64.

    Args:
        x: queries or keys, shape (batch..., T, N, D) with D even, floating point.
        positions: t, numbers of shape (T,) or (batch..., T); 0 to T - 1 if None.
        base: how slowly the slowest pair turns, a Python number.
        interleaved: whether a pair are neighbours, units 2i and 2i + 1, as in the paper; else units i and i + D/2.

    Returns:
        An array of the shape and dtype of `x`.

    Raises:
        ValueError: the shapes do not fit together, or D is odd.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import ops
        >>> print(ops.rotary(jnp.ones((2, 1, 2)))[:, 0])
        [[ 1.          1.        ]
         [-0.30116868  1.3817732 ]]

    References:
        J. Su, Y. Lu, S. Pan, A. Murtadha, B. Wen, Y. Liu, "RoFormer: enhanced transformer with rotary position
        embedding", 2021.
    """
    x = jnp.asarray(x)
    if x.ndim < 3 or x.shape[-1] % 2:
        raise ValueError(f"rotary needs an x of shape (batch..., T, N, D) with D even, and got shape {x.shape}.")
    wide, pairs = accumulator(x.dtype), x.shape[-1] // 2
    positions = jnp.arange(x.shape[-3]) if positions is None else jnp.asarray(positions)
    if positions.shape not in (x.shape[-3:-2], x.shape[:-2]):
        raise ValueError(
            f"rotary needs positions of shape {x.shape[-3:-2]} or {x.shape[:-2]} for an x of shape {x.shape}, and got "
            f"shape {positions.shape}."
        )
    slowness = base ** (-jnp.arange(pairs, dtype=wide) / pairs)
    angles = positions.astype(wide)[..., None, None] * slowness.reshape((1,) * (positions.ndim + 1) + (pairs,))
    angles = angles.reshape((1,) * (x.ndim - angles.ndim) + angles.shape)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    axis = -1 if interleaved else -2
    cut = x.astype(wide).reshape(*x.shape[:-1], *((pairs, 2) if interleaved else (2, pairs)))
    a, b = jnp.take(cut, 0, axis), jnp.take(cut, 1, axis)
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], axis).reshape(x.shape).astype(x.dtype)
