"""Fahlman's two errors: one that leaves small ones alone, and one that makes large ones larger.

Each has its derivative written under it, as the losses of `losses`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Array = jax.Array


def dead_zone_error(predictions: ArrayLike, targets: ArrayLike, width: float = 0.1) -> Array:
    """Half the squared error without a dead zone, E = ½ Σ max((t - y)² - width², 0): ȳ = y - t, or 0 within `width`.

    Args:
        predictions: y, any shape, floating point.
        targets: t, of the same shape.
        width: how far from the target nothing is wrong.

    Returns:
        A scalar, the sum over units and examples.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> print(bp.grad(bp.ops.dead_zone_error)(jnp.array([0.95, 0.5]), jnp.array([1.0, 1.0])))
        [ 0.  -0.5]

    References:
        S. Fahlman, "An empirical study of learning speed in back-propagation networks", 1988.
    """
    y, t = _same_shape("dead_zone_error", predictions, targets)
    return _dead_zone(y, t, jnp.asarray(width).astype(y.dtype))


@jax.custom_jvp
def _dead_zone(y: Array, t: Array, width: Array) -> Array:
    error = _outside(y - t, width)
    return 0.5 * jnp.sum(jnp.where(error == 0, 0, error * error - width * width))


@_dead_zone.defjvp
def dead_zone_tangent(primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
    """Ė = Σ (y - t) (ẏ - ṫ) - width · (width's tangent), over the errors outside the dead zone."""
    (y, t, width), (dy, dt, dwidth) = primals, tangents
    error = _outside(y - t, width)
    count = jnp.sum(jnp.where(error == 0, 0, jnp.ones_like(error)))
    return _dead_zone(y, t, width), jnp.sum(error * (dy - dt)) - width * count * dwidth


def _outside(error: Array, width: Array) -> Array:
    """The error where it counts, and 0 elsewhere."""
    return jnp.where(jnp.abs(error) >= width, error, 0)


LARGEST = 17.0  # what his program takes for an error of ±1, where the logarithm is infinite


def hyper_error(predictions: ArrayLike, targets: ArrayLike) -> Array:
    """The error whose derivative is 2 artanh of the plain one, E = Σ (1 + d) ln(1 + d) + (1 - d) ln(1 - d), d = y - t.

    Backward, ȳ = E̅ ln((1 + d) / (1 - d)), and no more than 17 E̅: a unit that is utterly wrong is corrected hard.

    Args:
        predictions: y, any shape, floating point, less than 1 away from the targets.
        targets: t, of the same shape.

    Returns:
        A scalar, the sum over units and examples.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> print(bp.grad(bp.ops.hyper_error)(jnp.array([0.9, 0.0]), jnp.array([1.0, 1.0])).round(3))
        [ -0.201 -17.   ]

    References:
        S. Fahlman, "An empirical study of learning speed in back-propagation networks", 1988; the bound is that of his
        program quickprop1.lisp.
    """
    return _hyper(*_same_shape("hyper_error", predictions, targets))


@jax.custom_jvp
def _hyper(y: Array, t: Array) -> Array:
    d = y - t
    return jnp.sum(_x_log_x(1 + d) + _x_log_x(1 - d))


@_hyper.defjvp
def hyper_tangent(primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
    """Ė = Σ ln((1 + d) / (1 - d)) (ẏ - ṫ), the logarithm ±17 from |d| = 0.9999999 on."""
    (y, t), (dy, dt) = primals, tangents
    d = y - t
    far = jnp.abs(d) > 0.9999999
    inner = jnp.where(far, 0, d)
    slope = jnp.where(far, LARGEST * jnp.sign(d), jnp.log1p(inner) - jnp.log1p(-inner))
    return _hyper(y, t), jnp.sum(slope * (dy - dt))


def _x_log_x(x: Array) -> Array:
    return jnp.where(x <= 0, 0, x * jnp.log(jnp.where(x <= 0, 1, x)))


def _same_shape(name: str, predictions: ArrayLike, targets: ArrayLike) -> tuple[Array, Array]:
    y, t = jnp.asarray(predictions), jnp.asarray(targets)
    if y.shape != t.shape:
        raise ValueError(f"{name} needs predictions and targets of one shape, and got {y.shape} and {t.shape}.")
    dtype = jnp.result_type(y, t)
    return y.astype(dtype), t.astype(dtype)
