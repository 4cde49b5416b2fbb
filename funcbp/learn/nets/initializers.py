"""Initial weights: how wide to draw them, so that signals and deltas neither die out nor blow up from layer to layer.

n_in and n_out are how many inputs a unit has and how many units an input feeds. For a kernel of shape (in, out) they
are its two sizes; for a convolution's kernel of shape (height, width, in, out), both are multiplied by height · width.

Every initialiser is called as `initializer(key, shape, dtype=float32)` and returns an array of that shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Initializer = Callable[..., jax.Array]


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """n_in and n_out of a kernel.

    Args:
        shape: (in, out), or (window..., in, out).

    Returns:
        (n_in, n_out).

    Raises:
        ValueError: the shape has fewer than two axes.

    Example:
        >>> from funcbp import nets
        >>> nets.fans((3, 3, 8, 16))
        (72, 144)
    """
    if len(shape) < 2:
        raise ValueError(f"A kernel has the shape (in, out) or (window..., in, out), and this one {tuple(shape)}.")
    window = math.prod(shape[:-2])
    return window * shape[-2], window * shape[-1]


def _within(key: jax.Array, shape: Sequence[int], dtype: DTypeLike, bound: float) -> jax.Array:
    return jax.random.uniform(key, tuple(shape), dtype, -bound, bound)


def _normal(key: jax.Array, shape: Sequence[int], dtype: DTypeLike, deviation: float) -> jax.Array:
    return deviation * jax.random.normal(key, tuple(shape), dtype)


def _ratio(numerator: float, fan: int) -> float:
    return math.sqrt(numerator / max(fan, 1))


def xavier_uniform(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Glorot's uniform weights, U(-a, a) with a = √(6 / (n_in + n_out)): for logistic and tanh units.

    Args:
        key: a typed key.
        shape: (in, out), or (window..., in, out).
        dtype: a floating type.

    Returns:
        An array of that shape, with variance 2 / (n_in + n_out).

    Example:
        >>> import jax
        >>> from funcbp import nets
        >>> nets.xavier_uniform(jax.random.key(0), (2, 3)).shape
        (2, 3)

    References:
        X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.
    """
    return _within(key, shape, dtype, _ratio(6, sum(fans(shape))))


def xavier_normal(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Glorot's normal weights, of standard deviation √(2 / (n_in + n_out)): for logistic and tanh units.

    Args:
        key: a typed key.
        shape: (in, out), or (window..., in, out).
        dtype: a floating type.

    Returns:
        An array of that shape.

    Example:
        >>> import jax
        >>> from funcbp import nets
        >>> nets.xavier_normal(jax.random.key(0), (2, 3)).shape
        (2, 3)

    References:
        X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.
    """
    return _normal(key, shape, dtype, _ratio(2, sum(fans(shape))))


def he_uniform(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """He's uniform weights, U(-a, a) with a = √(6 / n_in): for rectifiers, which pass on half of their inputs.

    Args:
        key: a typed key.
        shape: (in, out), or (window..., in, out).
        dtype: a floating type.

    Returns:
        An array of that shape, with variance 2 / n_in.

    Example:
        >>> import jax
        >>> from funcbp import nets
        >>> nets.he_uniform(jax.random.key(0), (2, 3)).shape
        (2, 3)

    References:
        K. He, X. Zhang, S. Ren, J. Sun, "Delving deep into rectifiers", 2015.
    """
    return _within(key, shape, dtype, _ratio(6, fans(shape)[0]))


def he_normal(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """He's normal weights, of standard deviation √(2 / n_in): for rectifiers, which pass on half of their inputs.

    Args:
        key: a typed key.
        shape: (in, out), or (window..., in, out).
        dtype: a floating type.

    Returns:
        An array of that shape.

    Example:
        >>> import jax
        >>> from funcbp import nets
        >>> nets.he_normal(jax.random.key(0), (2, 3)).shape
        (2, 3)

    References:
        K. He, X. Zhang, S. Ren, J. Sun, "Delving deep into rectifiers", 2015.
    """
    return _normal(key, shape, dtype, _ratio(2, fans(shape)[0]))


def lecun_uniform(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """LeCun's uniform weights, U(-a, a) with a = √(3 / n_in): net inputs of variance 1 from inputs of variance 1.

    Args:
        key: a typed key.
        shape: (in, out), or (window..., in, out).
        dtype: a floating type.

    Returns:
        An array of that shape, with variance 1 / n_in.

    Example:
        >>> import jax
        >>> from funcbp import nets
        >>> nets.lecun_uniform(jax.random.key(0), (2, 3)).shape
        (2, 3)

    References:
        Y. LeCun, L. Bottou, G. Orr, K.-R. Müller, "Efficient BackProp", 1998.
    """
    return _within(key, shape, dtype, _ratio(3, fans(shape)[0]))


def lecun_normal(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """LeCun's normal weights, of standard deviation √(1 / n_in): net inputs of variance 1 from inputs of variance 1.

    Args:
        key: a typed key.
        shape: (in, out), or (window..., in, out).
        dtype: a floating type.

    Returns:
        An array of that shape.

    Example:
        >>> import jax
        >>> from funcbp import nets
        >>> nets.lecun_normal(jax.random.key(0), (2, 3)).shape
        (2, 3)

    References:
        Y. LeCun, L. Bottou, G. Orr, K.-R. Müller, "Efficient BackProp", 1998.
    """
    return _normal(key, shape, dtype, _ratio(1, fans(shape)[0]))


def uniform(low: float, high: float) -> Initializer:
    """An initialiser that draws from U(low, high), whatever the shape, as the early networks did.

    Args:
        low: the smallest weight.
        high: the bound of the largest, above `low`.

    Returns:
        An initialiser.

    Raises:
        ValueError: `low` is not below `high`.

    Example:
        >>> import jax
        >>> from funcbp import nets
        >>> weights = nets.uniform(-0.3, 0.3)(jax.random.key(0), (100, 100))
        >>> bool(abs(weights).max() <= 0.3)
        True

    References:
        D. Rumelhart, G. Hinton, R. Williams, "Learning representations by back-propagating errors", 1986.
    """
    if not low < high:
        raise ValueError(f"uniform needs low < high, and got low={low} and high={high}.")

    def initializer(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, tuple(shape), dtype, low, high)

    return initializer
