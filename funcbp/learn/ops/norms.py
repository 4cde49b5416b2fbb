"""Normalisations, each by one forward formula and the tangent rule written under it.

Of the numbers that a unit is normalised over, μ is the mean and r = 1 / √(variance + ε); for `rms_norm` μ is 0 and the
variance is the mean square. With x̂ = r (x - μ),

    y = γ x̂ + β        ẏ = γ r (ẋ - mean ẋ - x̂ mean(x̂ ẋ)) + γ̇ x̂ + β̇

and the rule is its own transpose in ẋ. Read backward, with g = ȳ γ, it is

    x̄ = r (g - mean g - x̂ mean(x̂ g))        γ̄ = Σ ȳ x̂        β̄ = Σ ȳ

x, μ and r are kept, and x̂ is computed again. So the one rule, carried by `jax.custom_jvp`, serves forward and reverse
mode, ours and JAX's, to any order. Narrow floating types are computed with in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from ...jaxpr.types import Value
from .dense import accumulator

Array = jax.Array


def layer_norm(
    x: ArrayLike, scale: ArrayLike | None = None, bias: ArrayLike | None = None, *, epsilon: float = 1e-6
) -> Array:
    """Give each example's units mean 0 and variance 1, y = γ (x - μ) / √(σ² + ε) + β, over the last axis.

    Backward, with g = ȳ γ and x̂ the normalised units, x̄ = (g - mean g - x̂ mean(x̂ g)) / √(σ² + ε).

    Args:
        x: units, shape (batch..., units), floating point.
        scale: γ, shape (units,), or None for 1.
        bias: β, shape (units,), or None for 0.
        epsilon: ε, a Python number.

    Returns:
        An array of the shape and dtype of `x`.

    Raises:
        ValueError: the shapes do not fit together.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import ops
        >>> print(jnp.round(ops.layer_norm(jnp.array([1.0, 2.0, 3.0])), 3))
        [-1.225  0.     1.225]

    References:
        J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer normalization", 2016.
    """
    x = _units("layer_norm", x)
    return _over_last("layer_norm", x, scale, bias, epsilon, centered=True)


def rms_norm(x: ArrayLike, scale: ArrayLike | None = None, *, epsilon: float = 1e-6) -> Array:
    """Give each example's units mean square 1, y = γ x / √(mean x² + ε), over the last axis.

    Backward, with g = ȳ γ and x̂ the normalised units, x̄ = (g - x̂ mean(x̂ g)) / √(mean x² + ε).

    Args:
        x: units, shape (batch..., units), floating point.
        scale: γ, shape (units,), or None for 1.
        epsilon: ε, a Python number.

    Returns:
        An array of the shape and dtype of `x`.

    Raises:
        ValueError: the shapes do not fit together.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import ops
        >>> print(ops.rms_norm(jnp.array([3.0, 3.0])))
        [0.99999994 0.99999994]

    References:
        B. Zhang, R. Sennrich, "Root mean square layer normalization", 2019.
    """
    x = _units("rms_norm", x)
    return _over_last("rms_norm", x, scale, None, epsilon, centered=False)


def group_norm(
    x: ArrayLike, groups: int, scale: ArrayLike | None = None, bias: ArrayLike | None = None, *, epsilon: float = 1e-6
) -> Array:
    """Give each group of an example's channels mean 0 and variance 1, over the group's channels and all places.

    Backward as `layer_norm`, with the means over a group's channels and places.

    Args:
        x: shape (batch, place..., channels), floating point.
        groups: into how many groups of neighbours the channels are cut.
        scale: γ, shape (channels,), or None for 1.
        bias: β, shape (channels,), or None for 0.
        epsilon: ε, a Python number.

    Returns:
        An array of the shape and dtype of `x`.

    Raises:
        ValueError: the shapes do not fit together, or the channels are no multiple of the groups.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import ops
        >>> print(ops.group_norm(jnp.array([[1.0, 3.0, 10.0, 30.0]]), 2, epsilon=0.0))
        [[-1.  1. -1.  1.]]

    References:
        Y. Wu, K. He, "Group normalization", 2018.
    """
    x = _units("group_norm", x)
    if x.ndim < 2:
        raise ValueError(f"group_norm needs an x of shape (batch, place..., channels), and got shape {x.shape}.")
    channels = x.shape[-1]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"group_norm needs channels that are a multiple of its groups, and got {channels} and {groups}."
        )
    cut = (groups, channels // groups)
    grouped = x.reshape(*x.shape[:-1], *cut)
    scale, bias = (_parameter("group_norm", name, p, x) for name, p in (("scale", scale), ("bias", bias)))
    broad = lambda p: None if p is None else p.reshape((1,) * (x.ndim - 1) + cut)
    axes = (*range(1, x.ndim - 1), x.ndim)
    return _normalized(grouped, broad(scale), broad(bias), axes, epsilon, True)[0].reshape(x.shape)


def _over_last(
    name: str, x: Array, scale: ArrayLike | None, bias: ArrayLike | None, epsilon: float, centered: bool
) -> Array:
    scale, bias = _parameter(name, "scale", scale, x), _parameter(name, "bias", bias, x)
    broad = lambda p: None if p is None else p.reshape((1,) * (x.ndim - 1) + p.shape)
    return _normalized(x, broad(scale), broad(bias), (x.ndim - 1,), epsilon, centered)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _normalized(
    x: Array, scale: Array | None, bias: Array | None, axes: tuple[int, ...], epsilon: float, centered: bool
) -> tuple[Array, Array | None, Array]:
    """y, μ and r; μ is None where it is 0."""
    wide = x.astype(accumulator(x.dtype))
    mean = jnp.mean(wide, axes, keepdims=True) if centered else None
    from_mean = wide if mean is None else wide - mean
    r = jax.lax.rsqrt(jnp.mean(from_mean * from_mean, axes, keepdims=True) + epsilon)
    y = from_mean * r
    y = y if scale is None else y * scale.astype(y.dtype)
    y = y if bias is None else y + bias.astype(y.dtype)
    return y.astype(x.dtype), mean, r


@functools.partial(_normalized.defjvp, symbolic_zeros=True)
def normalized_tangent(
    axes: tuple[int, ...],
    epsilon: float,
    centered: bool,
    primals: Sequence[Value],
    tangents: Sequence[Value],
) -> Value:
    """ẏ as above, μ̇ = mean ẋ and ṙ = -r² mean(x̂ ẋ), with x̂ computed again."""
    x, scale, bias = primals
    y, mean, r = _normalized(x, scale, bias, axes, epsilon, centered)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def tangent(
        x: Array, scale: Array | None, mean: Array | None, r: Array, dx: Value, dscale: Value, dbias: Value
    ) -> Value:
        wide = x.astype(r.dtype)
        normal = (wide if mean is None else wide - mean) * r
        dy, dmean, dr = jnp.zeros_like(normal), None if mean is None else jnp.zeros_like(mean), jnp.zeros_like(r)
        if dx is not None:
            dx = dx.astype(r.dtype)
            dmean = jnp.mean(dx, axes, keepdims=True) if centered else None
            along = jnp.mean(normal * dx, axes, keepdims=True)
            dy = r * ((dx if dmean is None else dx - dmean) - normal * along)
            dy, dr = dy if scale is None else dy * scale.astype(r.dtype), -r * r * along
        dy = dy if dscale is None else dy + dscale.astype(r.dtype) * normal
        dy = dy if dbias is None else dy + dbias.astype(r.dtype)
        return dy.astype(x.dtype), dmean, dr

    given = (None if d is None or isinstance(d, SymbolicZero) else d for d in tangents)
    return (y, mean, r), tangent(x, scale, mean, r, *given)


def _units(name: str, x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    if x.ndim == 0:
        raise ValueError(f"{name} needs an x with a last axis of units, and got a scalar.")
    return x


def _parameter(name: str, which: str, parameter: ArrayLike | None, x: Array) -> Array | None:
    if parameter is None:
        return None
    parameter = jnp.asarray(parameter)
    if parameter.shape != x.shape[-1:]:
        raise ValueError(
            f"{name} needs a {which} of shape {x.shape[-1:]} for an x of shape {x.shape}, and got {parameter.shape}."
        )
    return parameter
