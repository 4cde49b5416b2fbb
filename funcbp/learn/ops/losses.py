"""Losses, each with its derivative written under it.

b..: the examples    j: output units    k: classes    y: predictions or labels    t: targets    p: probabilities

A tangent rule Ė = Σ ∂E/∂y ẏ, carried by `jax.custom_jvp`, is linear in ẏ; read backward it is ȳ = Ē ∂E/∂y. So the one
rule serves forward and reverse mode, ours and JAX's, to any order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from .activations import above_largest, logistic, softplus

Array = jax.Array


def squared_error(predictions: ArrayLike, targets: ArrayLike, reduction: str | None = "sum") -> Array:
    """Half the squared error, E = ½ Σ_j (t_j - y_j)². Backward, ȳ = E̅ (y - t), and t̄ = -ȳ.

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

    References:
        D. Rumelhart, G. Hinton, R. Williams, "Learning representations by back-propagating errors", 1986.
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


@jax.custom_jvp
def _half_square(y: Array, t: Array) -> Array:
    error = y - t
    return 0.5 * jnp.sum(error * error, axis=-1)


@_half_square.defjvp
def half_square_tangent(primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
    """Ė = Σ_j (y_j - t_j) (ẏ_j - ṫ_j)."""
    (y, t), (dy, dt) = primals, tangents
    return _half_square(y, t), jnp.sum((y - t) * (dy - dt), axis=-1)


def softmax_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, axis: int = -1, where: ArrayLike | None = None
) -> Array:
    """The cross-entropy of softmax(logits) against probabilities, E = -Σ_k y_k log p_k.

    Backward, logits' cotangent is E̅ (p Σ_k y_k - y), which is E̅ (p - y) for labels that sum to 1; that of the labels is
    -E̅ log p. A class of label 0 contributes 0, whatever its probability.

    Args:
        logits: net inputs, any shape with an axis of classes, floating point.
        labels: y, of the same shape: a probability for each class, such as a one-hot code.
        axis: the axis of classes.
        where: which classes there are, booleans of the shape of `logits`; or which examples count, of that shape
            without `axis`. An example without classes has the loss 0. All if None.

    Returns:
        One number per example: the shape of `logits` without `axis`.

    Raises:
        ValueError: the shapes do not fit together.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import ops
        >>> print(f"{ops.softmax_cross_entropy(jnp.array([1.0, 1.0]), jnp.array([1.0, 0.0])):.6f}")
        0.693147

    References:
        J. Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    _check_same_shape("softmax_cross_entropy", logits, labels)
    labels, exists = labels.astype(logits.dtype), _classes("softmax_cross_entropy", where, logits, axis)
    return _cross_entropy(logits, labels if exists is None else jnp.where(exists, labels, 0), exists, axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _cross_entropy(logits: Array, labels: Array, exists: Array | None, axis: int) -> Array:
    log_p = log_probabilities(logits, exists, axis)
    return -jnp.sum(jnp.where(labels == 0, 0, labels * log_p), axis)


@functools.partial(_cross_entropy.defjvp, symbolic_zeros=True)  # 0 log p is nan where a class is impossible
def cross_entropy_tangent(axis: int, primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
    """Ė = Σ_k (p_k Σ_l y_l - y_k) ẋ_k - log p_k ẏ_k; the first bracket as p_k Σ_{l≠k} y_l - y_k (1 - p_k)."""
    (logits, labels, exists), (dx, dy, _) = primals, tangents
    log_p = log_probabilities(logits, exists, axis)
    change = jnp.zeros_like(logits)
    if not isinstance(dx, SymbolicZero):
        p, less_one = _p_and_less_one(log_p, exists)
        change += (p * (jnp.sum(labels, axis, keepdims=True) - labels) + less_one * labels) * dx
    if not isinstance(dy, SymbolicZero):
        change -= (log_p if exists is None else jnp.where(exists, log_p, 0)) * dy
    return _cross_entropy(logits, labels, exists, axis), jnp.sum(change, axis)


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike, labels: ArrayLike, axis: int = -1, where: ArrayLike | None = None
) -> Array:
    """The cross-entropy of softmax(logits) against the numbers of the right classes, E = -log p_c.

    Backward, logits' cotangent is E̅ (p - 1_c), with 1_c the one-hot code of c. A label that is no class gives nan.

    Args:
        logits: net inputs, any shape with an axis of classes, floating point.
        labels: c, integers from 0 to the number of classes less 1, the shape of `logits` without `axis`.
        axis: the axis of classes.
        where: which classes there are, booleans of the shape of `logits`; or which examples count, of that shape
            without `axis`. An example without classes has the loss 0. All if None.

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

    References:
        J. Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990.
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
    exists = _classes(name, where, logits, axis)
    loss = _class_cross_entropy(logits, labels, exists, axis)
    return loss if exists is None else jnp.where(jnp.any(exists, axis), loss, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _class_cross_entropy(logits: Array, labels: Array, exists: Array | None, axis: int) -> Array:
    log_p = log_probabilities(logits, exists, axis)
    chosen = jnp.sum(jnp.where(_is_class(labels, logits, axis), log_p, 0), axis)
    return jnp.where((labels >= 0) & (labels < logits.shape[axis]), -chosen, jnp.nan)


@_class_cross_entropy.defjvp
def class_cross_entropy_tangent(axis: int, primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
    """Ė = Σ_k (p_k - 1_c) ẋ_k; the class numbers have no derivative."""
    (logits, labels, exists), (dx, *_) = primals, tangents
    p, less_one = _p_and_less_one(log_probabilities(logits, exists, axis), exists)
    slope = jnp.where(_is_class(labels, logits, axis), less_one, p)
    return _class_cross_entropy(logits, labels, exists, axis), jnp.sum(slope * dx, axis)


def _is_class(labels: Array, logits: Array, axis: int) -> Array:
    """The one-hot code, 1_c, as booleans of the shape of `logits`."""
    return lax.broadcasted_iota(jnp.int32, logits.shape, axis) == jnp.expand_dims(labels.astype(jnp.int32), axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def log_probabilities(x: Array, exists: Array | None, axis: int) -> Array:
    """log p_k = x_k - log Σ_l e^(x_l), over the classes that exist; exact where p_k is near 1 too.

    With the largest class m apart, log Σ_l e^(x_l) = x_m + log1p(Σ_{l≠m} e^(x_l - x_m)).
    """
    present = x if exists is None else jnp.where(exists, x, -jnp.inf)
    largest = jnp.max(present, axis, keepdims=True, initial=-jnp.inf)
    if exists is not None:
        largest = jnp.where(jnp.any(exists, axis, keepdims=True), largest, 0)
    top = present == largest
    others = jnp.sum(jnp.where(top, 0, jnp.exp(present - largest)), axis, keepdims=True)
    ties = jnp.maximum(jnp.sum(top, axis, keepdims=True, dtype=x.dtype) - 1, 0)
    return x - largest - jnp.log1p(others + ties)


@log_probabilities.defjvp
def log_probabilities_tangent(axis: int, primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
    """The tangent is ċ - Σ ċ p, with ċ how far ẋ is above the largest class's."""
    (x, exists), (dx, _) = primals, tangents
    log_p = log_probabilities(x, exists, axis)
    p, _ = _p_and_less_one(log_p, exists)
    above = above_largest(x if exists is None else jnp.where(exists, x, -jnp.inf), dx, axis)
    return log_p, above - jnp.sum(above * p, axis, keepdims=True)


def _p_and_less_one(log_p: Array, exists: Array | None) -> tuple[Array, Array]:
    """p, and p - 1 without cancellation; where there is no class, 0 and -1."""
    log_p = log_p if exists is None else jnp.where(exists, log_p, -jnp.inf)
    return jnp.exp(log_p), expm1(log_p)


@jax.custom_jvp
def expm1(x: Array) -> Array:
    """e^x - 1 with the derivative e^x, which JAX has as (e^x - 1) + 1: 0 far to the left."""
    return jnp.expm1(x)


expm1.defjvps(lambda dx, y, x: dx * jnp.exp(x))


def _classes(name: str, where: ArrayLike | None, logits: Array, axis: int) -> Array | None:
    """Which classes exist, in the shape of the logits; None for all."""
    if where is None:
        return None
    where = jnp.asarray(where, bool)
    where = where if where.ndim == logits.ndim else jnp.expand_dims(where, axis)
    if where.ndim != logits.ndim or any(w not in (1, n) for w, n in zip(where.shape, logits.shape, strict=True)):
        raise ValueError(
            f"{name} needs a where of the shape of its logits, {logits.shape}, or of that without the axis of classes, "
            f"and got {where.shape}."
        )
    return jnp.broadcast_to(where, logits.shape)


def logistic_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> Array:
    """The cross-entropy of logistic units, elementwise: E = -y log p - (1 - y) log(1 - p) with p = logistic(x).

    It is computed as E = y softplus(-x) + (1 - y) softplus(x), which loses no digits in the tails. Backward,
    x̄ = E̅ (p - y) and ȳ = -E̅ x. `optax.sigmoid_binary_cross_entropy` computes the same.

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

    References:
        J. Hopfield, "Learning algorithms and probability distributions in feed-forward and feed-back networks", 1987.
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    _check_same_shape("logistic_cross_entropy", logits, labels)
    return _unit_cross_entropy(logits, labels.astype(logits.dtype))


@jax.custom_jvp
def _unit_cross_entropy(x: Array, y: Array) -> Array:
    return y * softplus(-x) + (1 - y) * softplus(x)


_unit_cross_entropy.defjvps(
    lambda dx, e, x, y: ((1 - y) * logistic(x) - y * logistic(-x)) * dx,  # p - y, of which nothing cancels in the tails
    lambda dy, e, x, y: -x * dy,
)


def _check_same_shape(name: str, logits: Array, labels: Array) -> None:
    if logits.shape != labels.shape:
        raise ValueError(f"{name} needs logits and labels of one shape, and got {logits.shape} and {labels.shape}.")


def _axis_from_start(name: str, logits: Array, axis: int) -> int:
    if not -logits.ndim <= axis < logits.ndim:
        raise ValueError(f"{name} needs an axis of classes, and logits of shape {logits.shape} have no axis {axis}.")
    return axis % logits.ndim
