"""Losses, each with its backward pass written under it.

b..: the examples    j: output units    k: classes    y: predictions or labels    t: targets    p: probabilities

The pairs are carried by `jax.custom_vjp`, so `jax.grad` uses them too. The price is JAX's: functions carried this way
have no forward mode, so `jax.jvp` of them raises. Both halves are differentiable operations, so derivatives of their
derivatives exist to any order, by reverse mode and by `jax.jvp` of a gradient.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .activations import softplus_fwd

Array = jax.Array


def squared_error(predictions: Any, targets: Any, reduction: str | None = "sum") -> Array:
    """Half the squared error, E = ½ Σ_j (t_j - y_j)². Backward, ȳ = E̅ (y - t), and t̄ = -ȳ: it keeps y - t.

    Args:
        predictions: y, shape (batch..., units), floating point.
        targets: t, of the same shape.
        reduction: `"sum"`: the sum over units and examples; `"mean"`: the sum over units, averaged over examples;
            None: one number per example.

    Returns:
        A scalar, or an array of shape (batch...) if `reduction` is None.

    Raises:
        ValueError: the shapes differ, there is no axis of units, or the reduction is not one of the three.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import ops
        >>> print(f"{ops.squared_error(jnp.array([0.75136507, 0.772928465]), jnp.array([0.01, 0.99])):.6f}")
        0.298371

    Source: D. Rumelhart, G. Hinton, R. Williams, "Learning representations by back-propagating errors", 1986.
    """
    y, t = jnp.asarray(predictions), jnp.asarray(targets)
    if y.shape != t.shape:
        raise ValueError(f"squared_error needs predictions and targets of one shape, and got {y.shape} and {t.shape}.")
    if y.ndim == 0:
        raise ValueError("squared_error needs predictions with a last axis of units, and got a scalar.")
    dtype = jnp.result_type(y, t)
    per_example = _half_square(y.astype(dtype), t.astype(dtype))
    if reduction is None:
        return per_example
    if reduction == "sum":
        return jnp.sum(per_example)
    if reduction == "mean":
        return jnp.mean(per_example)
    raise ValueError(f'squared_error needs a reduction of "sum", "mean" or None, and got {reduction!r}.')


@jax.custom_vjp
def _half_square(y: Array, t: Array) -> Array:
    return half_square_fwd(y, t)[0]


def half_square_fwd(y: Array, t: Array) -> tuple[Array, Array]:
    """E = ½ Σ_j (y_j - t_j)²; keeps y - t."""
    error = y - t
    return 0.5 * jnp.sum(error * error, axis=-1), error


def half_square_bwd(error: Array, ct: Array) -> tuple[Array, Array]:
    """ȳ_j = E̅ (y_j - t_j), t̄_j = -ȳ_j."""
    y_bar = jnp.expand_dims(ct, -1) * error
    return y_bar, -y_bar


_half_square.defvjp(half_square_fwd, half_square_bwd)


def softmax_cross_entropy(logits: Any, labels: Any, axis: int = -1) -> Array:
    """The cross-entropy of softmax(logits) against probabilities, E = -Σ_k y_k log p_k.

    Backward, logits' cotangent is E̅ (p Σ_k y_k - y), which is E̅ (p - y) for labels that sum to 1; that of the labels is
    -E̅ log p. It keeps y and log p. A class of label 0 contributes 0, whatever its probability.

    Args:
        logits: net inputs, any shape with an axis of classes, floating point.
        labels: y, of the same shape: a probability for each class, such as a one-hot code.
        axis: the axis of classes.

    Returns:
        One number per example: the shape of `logits` without `axis`.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import ops
        >>> print(f"{ops.softmax_cross_entropy(jnp.array([1.0, 1.0]), jnp.array([1.0, 0.0])):.6f}")
        0.693147

    Source: J. Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    _check_same_shape("softmax_cross_entropy", logits, labels)
    return _cross_entropy(logits, labels.astype(logits.dtype), axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cross_entropy(logits: Array, labels: Array, axis: int) -> Array:
    return cross_entropy_fwd(logits, labels, axis)[0]


def cross_entropy_fwd(logits: Array, labels: Array, axis: int) -> tuple[Array, tuple[Array, Array]]:
    """E = -Σ_k y_k log p_k; keeps log p and y."""
    log_p = jax.nn.log_softmax(logits, axis)
    return -jnp.sum(jnp.where(labels == 0, 0, labels * log_p), axis), (log_p, labels)


def cross_entropy_bwd(axis: int, res: tuple[Array, Array], ct: Array) -> tuple[Array, Array]:
    """logits: E̅ (p Σ_k y_k - y); labels: -E̅ log p."""
    log_p, labels = res
    ct = jnp.expand_dims(ct, axis)
    return ct * (jnp.exp(log_p) * jnp.sum(labels, axis, keepdims=True) - labels), -ct * log_p


_cross_entropy.defvjp(cross_entropy_fwd, cross_entropy_bwd)


def softmax_cross_entropy_with_integer_labels(logits: Any, labels: Any, axis: int = -1) -> Array:
    """The cross-entropy of softmax(logits) against the numbers of the right classes, E = -log p_c.

    Backward, logits' cotangent is E̅ (p - 1_c), with 1_c the one-hot code of c. It keeps p and c. A label that is no
    class gives nan.

    Args:
        logits: net inputs, any shape with an axis of classes, floating point.
        labels: c, integers from 0 to the number of classes less 1, the shape of `logits` without `axis`.
        axis: the axis of classes.

    Returns:
        One number per example, the shape of `labels`.

    Raises:
        ValueError: the shapes do not fit together.
        TypeError: the labels are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import ops
        >>> print(ops.softmax_cross_entropy_with_integer_labels(jnp.array([[1.0, 1.0]]), jnp.array([0])))
        [0.6931472]

    Source: J. Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    name = "softmax_cross_entropy_with_integer_labels"
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"{name} needs integer labels, and got {labels.dtype}; softmax_cross_entropy takes probabilities."
        )
    axis = _axis_from_start(name, logits, axis)
    expected = logits.shape[:axis] + logits.shape[axis + 1 :]
    if labels.shape != expected:
        raise ValueError(
            f"{name} needs labels of shape {expected} for logits of shape {logits.shape}, classes along axis {axis}, "
            f"and got shape {labels.shape}."
        )
    return _class_cross_entropy(logits, labels, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _class_cross_entropy(logits: Array, labels: Array, axis: int) -> Array:
    return class_cross_entropy_fwd(logits, labels, axis)[0]


def class_cross_entropy_fwd(logits: Array, labels: Array, axis: int) -> tuple[Array, tuple[Array, Array]]:
    """E = -log p_c; keeps p and c."""
    log_p = jax.nn.log_softmax(logits, axis)
    chosen = jnp.sum(jnp.where(_is_class(labels, logits, axis), log_p, 0), axis)
    exists = (labels >= 0) & (labels < logits.shape[axis])
    return jnp.where(exists, -chosen, jnp.nan), (jnp.exp(log_p), labels)


def class_cross_entropy_bwd(axis: int, res: tuple[Array, Array], ct: Array) -> tuple[Array, None]:
    """logits: E̅ (p - 1_c); the class numbers have no derivative."""
    p, labels = res
    return jnp.expand_dims(ct, axis) * (p - _is_class(labels, p, axis).astype(p.dtype)), None


_class_cross_entropy.defvjp(class_cross_entropy_fwd, class_cross_entropy_bwd)


def _is_class(labels: Array, logits: Array, axis: int) -> Array:
    """The one-hot code, 1_c, as booleans of the shape of `logits`."""
    return lax.broadcasted_iota(jnp.int32, logits.shape, axis) == jnp.expand_dims(labels.astype(jnp.int32), axis)


def logistic_cross_entropy(logits: Any, labels: Any) -> Array:
    """The cross-entropy of logistic units, elementwise: E = -y log p - (1 - y) log(1 - p) with p = logistic(x).

    It is computed as E = y softplus(-x) + (1 - y) softplus(x), which loses no digits in the tails. Backward,
    x̄ = E̅ (p - y) and ȳ = -E̅ x. It keeps x and y. `optax.sigmoid_binary_cross_entropy` computes the same.

    Args:
        logits: net inputs x, any shape, floating point.
        labels: y, of the same shape: the probability that the unit is on.

    Returns:
        One number per unit, of the shape and dtype of `logits`.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> from funcbp import ops
        >>> print(f"{ops.logistic_cross_entropy(0.0, 1.0):.6f}")
        0.693147

    Source: J. Hopfield, "Learning algorithms and probability distributions in feed-forward and feed-back networks",
    1987.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    _check_same_shape("logistic_cross_entropy", logits, labels)
    return _unit_cross_entropy(logits, labels.astype(logits.dtype))


@jax.custom_vjp
def _unit_cross_entropy(x: Array, y: Array) -> Array:
    return unit_cross_entropy_fwd(x, y)[0]


def unit_cross_entropy_fwd(x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    """E = y softplus(-x) + (1 - y) softplus(x); keeps x and y."""
    return y * softplus_fwd(-x)[0] + (1 - y) * softplus_fwd(x)[0], (x, y)


def unit_cross_entropy_bwd(res: tuple[Array, Array], ct: Array) -> tuple[Array, Array]:
    """x̄ = E̅ (p - y), written (1 - y) p - y (1 - p) so that nothing cancels in the tails; ȳ = -E̅ x."""
    x, y = res
    return ct * ((1 - y) * lax.logistic(x) - y * lax.logistic(-x)), -ct * x


_unit_cross_entropy.defvjp(unit_cross_entropy_fwd, unit_cross_entropy_bwd)


def _check_same_shape(name: str, logits: Array, labels: Array) -> None:
    if logits.shape != labels.shape:
        raise ValueError(f"{name} needs logits and labels of one shape, and got {logits.shape} and {labels.shape}.")


def _axis_from_start(name: str, logits: Array, axis: int) -> int:
    if not -logits.ndim <= axis < logits.ndim:
        raise ValueError(f"{name} needs an axis of classes, and logits of shape {logits.shape} have no axis {axis}.")
    return axis % logits.ndim
