"""Activation functions, each with its backward pass written under it.

Every function f is elementwise (softmax aside) and comes as three lines: y = f(x); what is kept, the smallest thing
from which the derivative can be had; and x̄ = ȳ f'(x) in terms of it. A residual that is the output costs nothing in a
network, because the next layer keeps its input anyway.

| function | keeps | at the kink |
|---|---|---|
| identity | nothing | |
| logistic, tanh, softplus, softmax | the output | |
| elu | the output | derivative α at 0, as `jax.nn.elu` |
| relu | a boolean mask | derivative 0 at 0, as `jax.nn.relu` |
| leaky_relu | a boolean mask | derivative 1 at 0, as `jax.nn.leaky_relu` |
| swish, mish, gelu, gaussian | the input | |

The pairs are carried by `jax.custom_vjp`, so `jax.grad` uses them too. The price is JAX's: functions carried this way
have no forward mode, so `jax.jvp` of them raises. Both halves are differentiable operations, so derivatives of their
derivatives exist to any order, by reverse mode and by `jax.jvp` of a gradient.

Inputs are real floating-point arrays of any shape; outputs have their shape and dtype.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def identity(x: Any) -> Any:
    """The identity, y = x: the activation of a linear unit. Backward, x̄ = ȳ.

    Args:
        x: any array.

    Returns:
        `x` itself.

    Example:
        >>> from funcbp import ops
        >>> ops.identity(3.0)
        3.0

    Source: B. Widrow, M. Hoff, "Adaptive switching circuits", 1960.
    """
    return x


@jax.custom_vjp
def logistic(x: Any) -> Array:
    """The logistic function, y = 1 / (1 + e^(-x)). Backward, x̄ = ȳ y (1 - y): it keeps its output.

    Args:
        x: net input, any shape, floating point.

    Returns:
        Values between 0 and 1, of the shape and dtype of `x`.

    Example:
        >>> from funcbp import ops
        >>> print(f"{ops.logistic(0.3775):.6f}")
        0.593270

    Source: D. Rumelhart, G. Hinton, R. Williams, "Learning representations by back-propagating errors", 1986.
    """
    return logistic_fwd(x)[0]


def logistic_fwd(x: Array) -> tuple[Array, Array]:
    """y = logistic(x); keeps y."""
    y = lax.logistic(x)
    return y, y


def logistic_bwd(y: Array, ct: Array) -> tuple[Array]:
    """x̄ = ȳ y (1 - y)."""
    return (ct * y * (1 - y),)


logistic.defvjp(logistic_fwd, logistic_bwd)


@jax.custom_vjp
def tanh(x: Any) -> Array:
    """The hyperbolic tangent, y = tanh x. Backward, x̄ = ȳ (1 - y) (1 + y): it keeps its output.

    Args:
        x: net input, any shape, floating point.

    Returns:
        Values between -1 and 1, of the shape and dtype of `x`.

    Example:
        >>> from funcbp import ops
        >>> print(f"{ops.tanh(0.5):.6f}")
        0.462117

    Source: Y. LeCun, L. Bottou, G. Orr, K.-R. Müller, "Efficient BackProp", 1998.
    """
    return tanh_fwd(x)[0]


def tanh_fwd(x: Array) -> tuple[Array, Array]:
    """y = tanh(x); keeps y."""
    y = jnp.tanh(x)
    return y, y


def tanh_bwd(y: Array, ct: Array) -> tuple[Array]:
    """x̄ = ȳ (1 - y) (1 + y), which near y = ±1 is more exact than ȳ (1 - y²)."""
    return (ct * (1 - y) * (1 + y),)


tanh.defvjp(tanh_fwd, tanh_bwd)


@jax.custom_vjp
def relu(x: Any) -> Array:
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

    Source: V. Nair, G. Hinton, "Rectified linear units improve restricted Boltzmann machines", 2010.
    """
    return relu_fwd(x)[0]


def relu_fwd(x: Array) -> tuple[Array, Array]:
    """y = relu(x); keeps the mask x > 0."""
    return jnp.maximum(x, 0), x > 0


def relu_bwd(on: Array, ct: Array) -> tuple[Array]:
    """x̄ = ȳ where the unit was on, 0 elsewhere."""
    return (jnp.where(on, ct, 0),)


relu.defvjp(relu_fwd, relu_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def leaky_relu(x: Any, negative_slope: float = 0.01) -> Array:
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

    Source: A. Maas, A. Hannun, A. Ng, "Rectifier nonlinearities improve neural network acoustic models", 2013.
    """
    return leaky_relu_fwd(x, negative_slope)[0]


def leaky_relu_fwd(x: Array, negative_slope: float) -> tuple[Array, Array]:
    """y = leaky_relu(x); keeps the mask x ≥ 0."""
    on = x >= 0
    return jnp.where(on, x, negative_slope * x), on


def leaky_relu_bwd(negative_slope: float, on: Array, ct: Array) -> tuple[Array]:
    """x̄ = ȳ where x ≥ 0, s ȳ elsewhere."""
    return (jnp.where(on, ct, negative_slope * ct),)


leaky_relu.defvjp(leaky_relu_fwd, leaky_relu_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def elu(x: Any, alpha: float = 1.0) -> Array:
    """The exponential linear unit, y = x for x > 0 and α (e^x - 1) otherwise. It keeps its output.

    Backward, x̄ = ȳ where y > 0 and ȳ (y + α) elsewhere, because there α e^x = y + α. The derivative at 0 is α.

    Args:
        x: net input, any shape, floating point.
        alpha: α, a Python number of at least 0: the output tends to -α.

    Returns:
        Values above -α, of the shape and dtype of `x`.

    Raises:
        ValueError: `alpha` is negative; then the output does not tell on which side of 0 its input was.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import ops
        >>> print(ops.elu(jnp.array([-1.0, 2.0])))
        [-0.63212055  2.        ]

    Source: D.-A. Clevert, T. Unterthiner, S. Hochreiter, "Fast and accurate deep network learning by exponential linear
    units (ELUs)", 2015.
    """
    return elu_fwd(x, alpha)[0]


def elu_fwd(x: Array, alpha: float) -> tuple[Array, Array]:
    """y = elu(x); keeps y."""
    if alpha < 0:
        raise ValueError(f"elu needs an alpha of at least 0, and got {alpha}.")
    y = jnp.where(x > 0, x, alpha * jnp.expm1(jnp.minimum(x, 0)))
    return y, y


def elu_bwd(alpha: float, y: Array, ct: Array) -> tuple[Array]:
    """x̄ = ȳ where y > 0, ȳ (y + α) elsewhere."""
    return (jnp.where(y > 0, ct, ct * (y + alpha)),)


elu.defvjp(elu_fwd, elu_bwd)


@jax.custom_vjp
def softplus(x: Any) -> Array:
    """The smooth rectifier, y = log(1 + e^x). Backward, x̄ = ȳ logistic(x) = ȳ (1 - e^(-y)): it keeps its output.

    Args:
        x: net input, any shape, floating point.

    Returns:
        Values above 0, of the shape and dtype of `x`.

    Example:
        >>> from funcbp import ops
        >>> print(f"{ops.softplus(0.0):.6f}")
        0.693147

    Source: C. Dugas, Y. Bengio, F. Bélisle, C. Nadeau, R. Garcia, "Incorporating second-order functional knowledge for
    better option pricing", 2000.
    """
    return softplus_fwd(x)[0]


def softplus_fwd(x: Array) -> tuple[Array, Array]:
    """y = softplus(x); keeps y."""
    y = jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))
    return y, y


def softplus_bwd(y: Array, ct: Array) -> tuple[Array]:
    """x̄ = ȳ (1 - e^(-y)), the logistic of x in terms of y = log(1 + e^x)."""
    return (ct * -jnp.expm1(-y),)


softplus.defvjp(softplus_fwd, softplus_bwd)


@jax.custom_vjp
def swish(x: Any) -> Array:
    """Swish, also called SiLU: y = x s with s = logistic(x). Backward, x̄ = ȳ s (1 + x (1 - s)): it keeps its input.

    Args:
        x: net input, any shape, floating point.

    Returns:
        An array of the shape and dtype of `x`.

    Example:
        >>> from funcbp import ops
        >>> print(f"{ops.swish(1.0):.6f}")
        0.731059

    Source: P. Ramachandran, B. Zoph, Q. Le, "Searching for activation functions", 2017.
    """
    return swish_fwd(x)[0]


def swish_fwd(x: Array) -> tuple[Array, Array]:
    """y = swish(x); keeps x."""
    return x * lax.logistic(x), x


def swish_bwd(x: Array, ct: Array) -> tuple[Array]:
    """x̄ = ȳ s (1 + x (1 - s)), where 1 - s is had without cancellation as logistic(-x)."""
    return (ct * lax.logistic(x) * (1 + x * lax.logistic(-x)),)


swish.defvjp(swish_fwd, swish_bwd)


@jax.custom_vjp
def mish(x: Any) -> Array:
    """Mish: y = x w with w = tanh(softplus(x)). Backward, x̄ = ȳ (w + x (1 - w²) logistic(x)): it keeps its input.

    Args:
        x: net input, any shape, floating point.

    Returns:
        An array of the shape and dtype of `x`.

    Example:
        >>> from funcbp import ops
        >>> print(f"{ops.mish(1.0):.6f}")
        0.865098

    Source: D. Misra, "Mish: a self regularized non-monotonic activation function", 2019.
    """
    return mish_fwd(x)[0]


def mish_fwd(x: Array) -> tuple[Array, Array]:
    """y = mish(x); keeps x."""
    return x * jnp.tanh(softplus_fwd(x)[0]), x


def mish_bwd(x: Array, ct: Array) -> tuple[Array]:
    """x̄ = ȳ (w + x (1 - w²) s), the product rule and the chain rule through tanh and softplus."""
    w = jnp.tanh(softplus_fwd(x)[0])
    return (ct * (w + x * ((1 - w) * (1 + w) * lax.logistic(x))),)


mish.defvjp(mish_fwd, mish_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu(x: Any, approximate: bool = True) -> Array:
    """The Gaussian error linear unit, y = x Φ(x), with Φ the normal distribution function. It keeps its input.

    Backward, x̄ = ȳ (Φ(x) + x φ(x)) with the normal density φ. With `approximate`, as in `jax.nn.gelu`, Φ(x) is replaced
    by (1 + tanh u) / 2 with u = √(2/π) (x + 0.044715 x³), and φ by its derivative.

    Args:
        x: net input, any shape, floating point.
        approximate: whether to use the approximation by tanh.

    Returns:
        An array of the shape and dtype of `x`.

    Example:
        >>> from funcbp import ops
        >>> print(f"{ops.gelu(1.0):.6f} {ops.gelu(1.0, approximate=False):.6f}")
        0.841192 0.841345

    Source: D. Hendrycks, K. Gimpel, "Gaussian error linear units (GELUs)", 2016.
    """
    return gelu_fwd(x, approximate)[0]


def gelu_fwd(x: Array, approximate: bool) -> tuple[Array, Array]:
    """y = gelu(x); keeps x."""
    return x * _normal_cdf(x, approximate), x


def gelu_bwd(approximate: bool, x: Array, ct: Array) -> tuple[Array]:
    """x̄ = ȳ (Φ(x) + x φ(x))."""
    return (ct * (_normal_cdf(x, approximate) + x * _normal_density(x, approximate)),)


gelu.defvjp(gelu_fwd, gelu_bwd)


def _normal_cdf(x: Array, approximate: bool) -> Array:
    if approximate:
        return 0.5 * (1 + jnp.tanh(_gelu_net_input(_near(x))))
    return 0.5 * lax.erfc(-math.sqrt(0.5) * x)


def _normal_density(x: Array, approximate: bool) -> Array:
    x = _near(x)
    if approximate:
        t = jnp.tanh(_gelu_net_input(x))
        return 0.5 * math.sqrt(2 / math.pi) * (1 - t) * (1 + t) * (1 + 3 * 0.044715 * x * x)
    return math.sqrt(0.5 / math.pi) * jnp.exp(-0.5 * x * x)


def _gelu_net_input(x: Array) -> Array:
    return math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)


def _near(x: Array) -> Array:
    """x within ±40: beyond, the density is 0 and tanh is ±1 to the last bit, and the powers of x would overflow."""
    return jnp.clip(x, -40, 40)


@jax.custom_vjp
def gaussian(x: Any) -> Array:
    """The Gaussian function, y = e^(-x²). Backward, x̄ = -2 x y ȳ: it keeps its input, whose sign the output forgets.

    Args:
        x: net input, any shape, floating point.

    Returns:
        Values between 0 and 1, of the shape and dtype of `x`.

    Example:
        >>> from funcbp import ops
        >>> print(f"{ops.gaussian(1.0):.6f}")
        0.367879

    Source: D. Broomhead, D. Lowe, "Multivariable functional interpolation and adaptive networks", 1988.
    """
    return gaussian_fwd(x)[0]


def gaussian_fwd(x: Array) -> tuple[Array, Array]:
    """y = gaussian(x); keeps x."""
    return jnp.exp(-x * x), x


def gaussian_bwd(x: Array, ct: Array) -> tuple[Array]:
    """x̄ = -2 x y ȳ."""
    return (ct * (-2 * (x * jnp.exp(-x * x))),)


gaussian.defvjp(gaussian_fwd, gaussian_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def softmax(x: Any, axis: int = -1) -> Array:
    """Positive numbers that sum to 1, y_k = e^(x_k) / Σ_l e^(x_l). It keeps its output.

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

    Source: J. Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.
    """
    return softmax_fwd(x, axis)[0]


def softmax_fwd(x: Array, axis: int) -> tuple[Array, Array]:
    """y = softmax(x); keeps y."""
    largest = lax.stop_gradient(jnp.max(x, axis, keepdims=True, initial=-jnp.inf))
    unnormalized = jnp.exp(x - largest)
    y = unnormalized / jnp.sum(unnormalized, axis, keepdims=True)
    return y, y


def softmax_bwd(axis: int, y: Array, ct: Array) -> tuple[Array]:
    """x̄ = y (ȳ - Σ ȳ y)."""
    return (y * (ct - jnp.sum(ct * y, axis, keepdims=True)),)


softmax.defvjp(softmax_fwd, softmax_bwd)
