"""The norms of the examples' gradients, and sums of the gradients with weights: clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..autodiff.arguments import parameters_first
from ..autodiff.transformations import Backward, as_backward
from ..jaxpr.types import PyTree
from .examples import backpropagate

__all__ = ["Clipping", "clipped_grad", "norms", "weighted_grad"]

Array = jax.Array
Loss = Callable[[PyTree, PyTree], PyTree]


class Clipping(NamedTuple):
    """What `clipped_grad` and `weighted_grad` found on their way.

    Attributes:
        losses: shape (n,).
        norms: the norm of each example's gradient, before clipping: shape (n,), or a tree of such arrays per leaf.
        scales: what each gradient was multiplied by, in the same form, without the division by the batch size.
        clipped: the fraction of examples (and leaves) whose scale is below 1.
    """

    losses: Array
    norms: PyTree
    scales: PyTree
    clipped: Array


def norms(
    loss: Loss,
    *,
    squared: bool = False,
    per_leaf: bool = False,
    with_grad: bool = False,
    argnums: int = 0,
    has_aux: bool = False,
    backward: Backward | None = None,
) -> Callable[[PyTree, PyTree], PyTree]:
    """Compute the norm of each example's gradient, ‖W̄_n‖.

    Args:
        loss: the loss of one example, `loss(params, example)`, a scalar.
        squared: the squares of the norms.
        per_leaf: a norm for each leaf of the parameters.
        with_grad: also the mean of the gradients, from the same pass.
        argnums: which argument of `loss`, 0 or 1, holds the parameters; what is returned takes them in that order.
        has_aux: whether the function returns a pair (output, auxiliary data); the latter is returned too, last.
        backward: the way of going backward, if not the default one.

    Returns:
        A function of `(params, batch)` that returns an array of shape (n,), or a tree of them like the parameters; or
        the pair of that and the mean gradient.

    Raises:
        TypeError: the loss is not one real number, or a parameter is not real floating point.
        ValueError: the batch has no common leading axis, or the examples interact over a named axis.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> loss = lambda w, example: (example[0] @ w - example[1]) ** 2 / 2
        >>> batch = jnp.array([[3.0, 4.0], [0.0, 1.0]]), jnp.array([0.0, 0.0])
        >>> bp.per_example.norms(loss)(jnp.array([1.0, 0.0]), batch)
        Array([15.,  0.], dtype=float32)

    References:
        I. Goodfellow, "Efficient per-example gradient computations", 2015.
    """
    loss = parameters_first(loss, argnums)

    def of(params: PyTree, batch: PyTree) -> PyTree:
        found = backpropagate(loss, params, batch, backward=as_backward(backward), has_aux=has_aux, sums=with_grad)
        finish = (lambda a: a) if squared else jnp.sqrt
        out = found.map(lambda leaf: finish(leaf.squared_norms())) if per_leaf else finish(found.squared_norms())
        return found.returned(out, found.mean()) if with_grad else found.returned(out)

    return parameters_first(of, argnums)


def weighted_grad(
    loss: Loss,
    weight: Callable[[Array, Array], Array],
    *,
    divide_by: float | None = None,
    argnums: int = 0,
    has_aux: bool = False,
    backward: Backward | None = None,
) -> Callable[..., tuple[PyTree, ...]]:
    """Sum the examples' gradients, each with a weight that may depend on its norm and its loss.

    It is Σ_n c_n W̄_n / N with c = weight(norms, losses): the deltas are scaled by c_n / N, and contracted once.

    Args:
        loss: the loss of one example, `loss(params, example)`, a scalar.
        weight: from the norms and the losses, each of shape (n,), to c, of shape (n,).
        divide_by: N; the size of the batch if left out.
        argnums: which argument of `loss`, 0 or 1, holds the parameters; what is returned takes them in that order.
        has_aux: whether the function returns a pair (output, auxiliary data); the latter is returned too, last.
        backward: the way of going backward, if not the default one.

    Returns:
        A function of `(params, batch)`, or `(params, batch, mask)` with a factor for each example that is 0 for those
        that only fill up the batch, which returns the gradient and a `Clipping`.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> loss = lambda w, example: (example[0] @ w - example[1]) ** 2 / 2
        >>> batch = jnp.array([[3.0, 4.0], [0.0, 1.0]]), jnp.array([0.0, 2.0])
        >>> hard_only = lambda norms, losses: (losses > 3).astype(norms.dtype)
        >>> bp.per_example.weighted_grad(loss, hard_only)(jnp.array([1.0, 0.0]), batch)[0]
        Array([4.5, 6. ], dtype=float32)
    """
    loss = parameters_first(loss, argnums)

    def of(params: PyTree, batch: PyTree, mask: Array | None = None) -> tuple[PyTree, ...]:
        found = backpropagate(loss, params, batch, backward=as_backward(backward), has_aux=has_aux, sums=True)
        n = jnp.sqrt(found.squared_norms())
        scales = weight(n, found.outputs)
        gradient = found.map(lambda leaf: leaf.weighted_sum(_divided(scales, mask, divide_by)))
        return found.returned(gradient, Clipping(found.outputs, n, scales, _fraction([scales], mask)))

    return parameters_first(of, argnums)


def clipped_grad(
    loss: Loss,
    max_norm: PyTree,
    *,
    per_leaf: bool = False,
    divide_by: float | None = None,
    argnums: int = 0,
    has_aux: bool = False,
    backward: Backward | None = None,
) -> Callable[..., tuple[PyTree, ...]]:
    """Average the examples' gradients, each clipped to a norm: Σ_n min(1, C / ‖W̄_n‖) W̄_n / N.

    One forward and one backward pass: the norms come from the factors, the deltas are scaled and contracted once. With
    noise of standard deviation σ C / N added to each element (`optax.add_noise`), it is the gradient of differentially
    private training; see `examples/private_training.py`.

    Args:
        loss: the loss of one example, `loss(params, example)`, a scalar.
        max_norm: C, positive; with `per_leaf`, a number for all leaves or a tree of numbers like the parameters.
        per_leaf: clip each leaf by its own norm.
        divide_by: N; the size of the batch if left out. Under Poisson sampling, the expected size.
        argnums: which argument of `loss`, 0 or 1, holds the parameters; what is returned takes them in that order.
        has_aux: whether the function returns a pair (output, auxiliary data); the latter is returned too, last.
        backward: the way of going backward, if not the default one.

    Returns:
        A function of `(params, batch)`, or `(params, batch, mask)` with a factor for each example that is 0 for those
        that only fill up the batch, which returns the gradient and a `Clipping`.

    Raises:
        ValueError: a bound is not positive.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> loss = lambda w, example: (example[0] @ w - example[1]) ** 2 / 2
        >>> batch = jnp.array([[3.0, 4.0], [0.0, 1.0]]), jnp.array([0.0, 0.0])
        >>> gradient, found = bp.per_example.clipped_grad(loss, 5.0)(jnp.array([1.0, 0.0]), batch)
        >>> print(gradient, found.norms, found.clipped)
        [1.5 2. ] [15.  0.] 0.5

    References:
        M. Abadi and others, "Deep learning with differential privacy", 2016; X. Li and others, "Large language models
        can be strong differentially private learners", 2022, for clipping without making the gradients.
    """
    loss = parameters_first(loss, argnums)
    for bound in jax.tree.leaves(max_norm):
        if not isinstance(bound, jax.core.Tracer) and not np.all(np.asarray(bound) > 0):
            raise ValueError(f"max_norm is positive, and was {bound!r}.")
    clip = lambda norm, bound: jnp.where(norm > bound, bound / norm, jnp.ones_like(norm))
    if not per_leaf:
        of_norm = lambda n, _: clip(n, max_norm)
        whole = weighted_grad(loss, of_norm, divide_by=divide_by, has_aux=has_aux, backward=backward)
        return parameters_first(whole, argnums)

    def of(params: PyTree, batch: PyTree, mask: Array | None = None) -> tuple[PyTree, ...]:
        found = backpropagate(loss, params, batch, backward=as_backward(backward), has_aux=has_aux, sums=True)
        one_for_all = jax.tree_util.all_leaves([max_norm])
        bounds = [max_norm] * len(found.leaves) if one_for_all else found.tree.flatten_up_to(max_norm)
        all_norms = [jnp.sqrt(leaf.squared_norms()) for leaf in found.leaves]
        scales = [clip(n, bound) for n, bound in zip(all_norms, bounds, strict=True)]
        sums = [leaf.weighted_sum(_divided(c, mask, divide_by)) for leaf, c in zip(found.leaves, scales, strict=True)]
        tree = lambda leaves: jax.tree.unflatten(found.tree, leaves)
        clipping = Clipping(found.outputs, tree(all_norms), tree(scales), _fraction(scales, mask))
        return found.returned(tree(sums), clipping)

    return parameters_first(of, argnums)


def _divided(scales: Array, mask: Array | None, divide_by: float | None) -> Array:
    scales = scales if mask is None else scales * jnp.asarray(mask, scales.dtype)
    return scales / (len(scales) if divide_by is None else divide_by)


def _fraction(scales: list[Array], mask: Array | None) -> Array:
    """The mean over leaves and (unmasked) examples of whether a scale is below 1."""
    below = jnp.stack([(c < 1).astype(c.dtype) for c in scales])
    if mask is None:
        return jnp.mean(below)
    mask = jnp.asarray(mask, below.dtype)
    return jnp.sum(below * mask[None]) / (len(scales) * jnp.maximum(jnp.sum(mask), 1))
