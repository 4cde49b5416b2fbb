"""Activation functions, each with its derivative written under it.

Every function f is elementwise (softmax aside) and comes as two lines: y = f(x), and its tangent rule ẏ = f'(x) ẋ. That
rule is linear in ẋ, and an elementwise one is its own transpose: read backward it is x̄ = f'(x) ȳ. So the one rule,
carried by `jax.custom_jvp`, serves forward and reverse mode, ours and JAX's, to any order.

f' is had from the input, and exact wherever f' is a normal number of the dtype: from an output that is rounded to 1,
the slope of logistic or tanh cannot be had. What a unit keeps for the backward pass is f'(x), as large as its input;
rectifiers keep one boolean per unit, softmax its output. Conventions at kinks are JAX's:

| function | derivative at the kink |
|---|---|
| relu | 0 at 0, as `jax.nn.relu` |
| leaky_relu | 1 at 0, as `jax.nn.leaky_relu` |
| elu | α at 0, as `jax.nn.elu` |

Inputs are real floating-point arrays of any shape; outputs have their shape and dtype.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ...jaxpr.types import T
from ...rules.elementwise import logistic_slope

Array = jax.Array


def identity(x: T) -> T:
    """The identity, y = x: the activation of a linear unit. Backward, x̄ = ȳ.

    Args:
        x: any array.

    Returns:
        `x` itself.

    Example:
        >>> from funcbp import ops
        >>> ops.identity(3.0)
        3.0

    References:
        B. Widrow, M. Hoff, "Adaptive switching circuits", 1960.
    """
    return x


@jax.custom_jvp
def logistic(x: ArrayLike) -> Array:
    """The logistic function, y = 1 / (1 + e^(-x)). Backward, x̄ = ȳ σ(x) σ(-x).

    Args:
        x: net input, any shape, floating point.

    Returns:
        Values between 0 and 1, of the shape and dtype of `x`.

    Example:
        >>> from funcbp import ops
        >>> print(f"{ops.logistic(0.3775):.6f}")
        0.593270

    References:
        D. Rumelhart, G. Hinton, R. Williams, "Learning representations by back-propagating errors", 1986.
    """
    return lax.logistic(x)


def logistic_tangent(dx: Array, y: Array, x: Array) -> Array:
    """ẏ = ẋ σ(x) σ(-x), which is ẋ y (1 - y) without the difference that vanishes where y is near 1."""
    return dx * logistic_slope(x)


logistic.defjvps(logistic_tangent)


@jax.custom_jvp
def tanh(x: ArrayLike) -> Array:
    """The hyperbolic tangent, y = tanh x. Backward, x̄ = ȳ sech² x.

    Args:
        x: net input, any shape, floating point.

    Returns:
        Values between -1 and 1, of the shape and dtype of `x`.

    Example:
        >>> from funcbp import ops
        >>> print(f"{ops.tanh(0.5):.6f}")
        0.462117

    References:
        Y. LeCun, L. Bottou, G. Orr, K.-R. Müller, "Efficient BackProp", 1998.
    """
    return jnp.tanh(x)


def tanh_tangent(dx: Array, y: Array, x: Array) -> Array:
    """ẏ = ẋ sech² x = ẋ 4 σ(2x) σ(-2x), which is ẋ (1 - y²) without the difference that vanishes where y is near ±1."""
    return dx * (4 * logistic_slope(2 * x))


tanh.defjvps(tanh_tangent)


@jax.custom_jvp
def relu(x: ArrayLike) -> Array:
    """The rectifier, y = max(x, 0). Backward, x̄ = ȳ where x > 0 and 0 elsewhere: it keeps one boolean per unit.

    The derivative at 0 is 0, as in `jax.nn.relu`.

    Args:
        x: net input, any shape, floating point.

    Returns:
        Values of at least 0, of the shape and dtype of `x`.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import ops
        >>> ops.relu(jnp.array([-1.0, 0.0, 2.0]))
        Array([0., 0., 2.], dtype=float32)

    References:
        V. Nair, G. Hinton, "Rectified linear units improve restricted Boltzmann machines", 2010.
    """
    return jnp.maximum(x, 0)


def relu_tangent(dx: Array, y: Array, x: Array) -> Array:
    """ẏ = ẋ where x > 0, 0 elsewhere."""
    return jnp.where(x > 0, dx, 0)


relu.defjvps(relu_tangent)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def leaky_relu(x: Array | Any, negative_slope: float = 0.01) -> Array:
    """The leaky rectifier, y = x for x ≥ 0 and s x for x < 0. Backward, x̄ = ȳ or s ȳ: it keeps one boolean per unit.

    The derivative at 0 is 1, as in `jax.nn.leaky_relu`.

    Args:
        x: net input, any shape, floating point.
        negative_slope: s, a Python number.

    Returns:
        An array of the shape and dtype of `x`.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import ops
        >>> ops.leaky_relu(jnp.array([-1.0, 2.0]), 0.25)
        Array([-0.25,  2.  ], dtype=float32)

    References:
        A. Maas, A. Hannun, A. Ng, "Rectifier nonlinearities improve neural network acoustic models", 2013.
    """
    return jnp.where(x >= 0, x, negative_slope * x)


@leaky_relu.defjvp
def leaky_relu_tangent(
    negative_slope: float, primals: Sequence[Array], tangents: Sequence[Array]
) -> tuple[Array, Array]:
    """ẏ = ẋ where x ≥ 0, s ẋ elsewhere."""
    (x,), (dx,) = primals, tangents
    return leaky_relu(x, negative_slope), jnp.where(x >= 0, dx, negative_slope * dx)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def elu(x: Array | Any, alpha: float = 1.0) -> Array:
    """The exponential linear unit, y = x for x > 0 and α (e^x - 1) otherwise. Backward, x̄ = ȳ or ȳ α e^x.

    The derivative at 0 is α.

    Args:
        x: net input, any shape, floating point.
        alpha: α, a Python number: the output tends to -α.

    Returns:
        Values above -α, of the shape and dtype of `x`.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import ops
        >>> print(ops.elu(jnp.array([-1.0, 2.0])))
        [-0.63212055  2.        ]

    References:
        D.-A. Clevert, T. Unterthiner, S. Hochreiter, "Fast and accurate deep network learning by exponential linear
        units (ELUs)", 2015.
    """
    return jnp.where(x > 0, x, alpha * jnp.expm1(jnp.minimum(x, 0)))


@elu.defjvp
def elu_tangent(alpha: float, primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
    """ẏ = ẋ where x > 0, ẋ α e^x elsewhere, which from the output would be α + y and vanish where y is near -α."""
    (x,), (dx,) = primals, tangents
    return elu(x, alpha), dx * jnp.where(x > 0, 1, alpha * jnp.exp(jnp.where(x > 0, 0, x)))


@jax.custom_jvp
def softplus(x: ArrayLike) -> Array:
    """The smooth rectifier, y = log(1 + e^x). Backward, x̄ = ȳ logistic(x).

    Args:
        x: net input, any shape, floating point.

    Returns:
        Values above 0, of the shape and dtype of `x`.

    Example:
        >>> from funcbp import ops
        >>> print(f"{ops.softplus(0.0):.6f}")
        0.693147

    References:
        C. Dugas, Y. Bengio, F. Bélisle, C. Nadeau, R. Garcia, "Incorporating second-order functional knowledge for
        better option pricing", 2000.
    """
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def softplus_tangent(dx: Array, y: Array, x: Array) -> Array:
    """ẏ = ẋ logistic(x)."""
    return dx * logistic(x)


softplus.defjvps(softplus_tangent)


@jax.custom_jvp
def swish(x: Array | Any) -> Array:
    """Swish, also called SiLU: y = x s with s = logistic(x). Backward, x̄ = ȳ s (1 + x (1 - s)).

    Args:
        x: net input, any shape, floating point.

    Returns:
        An array of the shape and dtype of `x`.

    Example:
        >>> from funcbp import ops
        >>> print(f"{ops.swish(1.0):.6f}")
        0.731059

    References:
        P. Ramachandran, B. Zoph, Q. Le, "Searching for activation functions", 2017.
    """
    return x * lax.logistic(x)


def swish_tangent(dx: Array, y: Array, x: Array) -> Array:
    """ẏ = ẋ s (1 + x (1 - s)), where 1 - s is had without cancellation as logistic(-x)."""
    return dx * (logistic(x) * (1 + x * logistic(-x)))


swish.defjvps(swish_tangent)


@jax.custom_jvp
def mish(x: Array | Any) -> Array:
    """Mish: y = x w with w = tanh(softplus(x)). Backward, x̄ = ȳ (w + x (1 - w²) logistic(x)).

    Args:
        x: net input, any shape, floating point.

    Returns:
        An array of the shape and dtype of `x`.

    Example:
        >>> from funcbp import ops
        >>> print(f"{ops.mish(1.0):.6f}")
        0.865098

    References:
        D. Misra, "Mish: a self regularized non-monotonic activation function", 2019.
    """
    return x * jnp.tanh(softplus(x))


def mish_tangent(dx: Array, y: Array, x: Array) -> Array:
    """ẏ = ẋ (w + x (1 - w²) s), the product rule and the chain rule through tanh and softplus."""
    z = softplus(x)
    return dx * (tanh(z) + x * (4 * logistic_slope(2 * z) * logistic(x)))


mish.defjvps(mish_tangent)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def gelu(x: Array | Any, approximate: bool = True) -> Array:
    """The Gaussian error linear unit, y = x Φ(x), with Φ the normal distribution function.

    Backward, x̄ = ȳ (Φ(x) + x φ(x)) with the normal density φ. With `approximate`, as in `jax.nn.gelu`, Φ(x) is replaced
    by (1 + tanh u) / 2 = logistic(2u) with u = √(2/π) (x + 0.044715 x³), and φ by its derivative.

    Args:
        x: net input, any shape, floating point.
        approximate: whether to use the approximation by tanh.

    Returns:
        An array of the shape and dtype of `x`.

    Example:
        >>> from funcbp import ops
        >>> print(f"{ops.gelu(1.0):.6f} {ops.gelu(1.0, approximate=False):.6f}")
        0.841192 0.841345

    References:
        D. Hendrycks, K. Gimpel, "Gaussian error linear units (GELUs)", 2016.
    """
    return x * _normal_cdf(x, approximate)


@gelu.defjvp
def gelu_tangent(approximate: bool, primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
    """ẏ = ẋ (Φ(x) + x φ(x))."""
    (x,), (dx,) = primals, tangents
    return gelu(x, approximate), dx * (_normal_cdf(x, approximate) + x * _normal_density(x, approximate))


def _normal_cdf(x: Array, approximate: bool) -> Array:
    """Φ(x); the approximation written so that 1 + tanh u does not vanish far to the left."""
    return logistic(_gelu_net_input(_near(x))) if approximate else 0.5 * lax.erfc(-math.sqrt(0.5) * x)


def _normal_density(x: Array, approximate: bool) -> Array:
    x = _near(x)
    if approximate:
        return 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x) * logistic_slope(_gelu_net_input(x))
    return math.sqrt(0.5 / math.pi) * jnp.exp(-0.5 * x * x)


def _gelu_net_input(x: Array) -> Array:
    """2u."""
    return 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)


def _near(x: Array) -> Array:
    """x within ±40: beyond, the density is 0 and Φ is 0 or 1 to the last bit, and the powers of x would overflow."""
    return jnp.clip(x, -40, 40)


@jax.custom_jvp
def gaussian(x: Array | Any) -> Array:
    """The Gaussian function, y = e^(-x²). Backward, x̄ = -2 x y ȳ.

    Args:
        x: net input, any shape, floating point.

    Returns:
        Values between 0 and 1, of the shape and dtype of `x`.

    Example:
        >>> from funcbp import ops
        >>> print(f"{ops.gaussian(1.0):.6f}")
        0.367879

    References:
        D. Broomhead, D. Lowe, "Multivariable functional interpolation and adaptive networks", 1988.
    """
    return jnp.exp(-x * x)


def gaussian_tangent(dx: Array, y: Array, x: Array) -> Array:
    """ẏ = -2 x y ẋ."""
    return dx * (-2 * (x * y))


gaussian.defjvps(gaussian_tangent)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax(x: ArrayLike, axis: int = -1) -> Array:
    """Positive numbers that sum to 1, y_k = e^(x_k) / Σ_l e^(x_l).

    Backward, x̄_k = y_k (ȳ_k - Σ_l ȳ_l y_l): each unit is driven by how much better than average it does.

    Args:
        x: net inputs, any shape with at least one axis, floating point.
        axis: the axis of the units that compete.

    Returns:
        An array of the shape and dtype of `x`, summing to 1 along `axis`.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import ops
        >>> ops.softmax(jnp.array([1.0, 1.0]))
        Array([0.5, 0.5], dtype=float32)

    References:
        J. Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.
    """
    largest = jnp.max(x, axis, keepdims=True, initial=-jnp.inf)
    unnormalized = jnp.exp(x - largest)
    return unnormalized / jnp.sum(unnormalized, axis, keepdims=True)


@softmax.defjvp
def softmax_tangent(axis: int, primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
    """ẏ = y (ċ - Σ ċ y), with ċ how far ẋ is above the largest unit's. It is symmetric: x̄ = y (ȳ - Σ ȳ y)."""
    (x,), (dx,) = primals, tangents
    y, above = softmax(x, axis), above_largest(x, dx, axis)
    return y, y * (above - jnp.sum(above * y, axis, keepdims=True))


def above_largest(x: Array, dx: Array, axis: int) -> Array:
    """ẋ less the largest unit's: softmax does not see the shift, and nothing cancels after it where one y is near 1."""
    top = x == jnp.max(x, axis, keepdims=True, initial=-jnp.inf)
    count = jnp.sum(top, axis, keepdims=True, dtype=dx.dtype)
    return dx - jnp.sum(jnp.where(top, dx, 0), axis, keepdims=True) / count
