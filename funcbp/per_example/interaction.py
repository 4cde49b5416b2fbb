"""Whether the examples of a batch have losses of their own."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..autodiff.arguments import parameters_first, without_aux
from ..jaxpr.types import PyTree
from .examples import batch_size

__all__ = ["of_batch"]

Loss = Callable[[PyTree, PyTree], PyTree]


def of_batch(
    batch_loss: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    batch: PyTree,
    *,
    tolerance: float = 1e-3,
    argnums: int = 0,
    has_aux: bool = False,
) -> Loss:
    """The loss of one example, from a loss that is written for a batch, once it is sure that examples do not interact.

    The batch's loss must be the mean or the sum of the losses of its examples alone. Under batch normalisation in
    training mode it is not, and then an example has no gradient of its own.

    Args:
        batch_loss: `batch_loss(params, batch)`, a scalar.
        params: parameters to try it with.
        batch: a batch of at least two examples to try it with; values, not tracers.
        tolerance: how far the two may differ, relative to the loss.
        argnums: which argument of `batch_loss`, 0 or 1, holds the parameters; the function returned has that order.
        has_aux: whether `batch_loss` returns a pair (loss, auxiliary data); what is returned does so too.

    Returns:
        `loss(params, example)`, which calls `batch_loss` with a batch of one.

    Raises:
        ValueError: the examples interact, or the batch has one example.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> mean_square = lambda w, x: jnp.mean((x @ w) ** 2)
        >>> params, batch = jnp.array([1.0, 2.0]), jnp.array([[1.0, 0.0], [3.0, 4.0]])
        >>> bp.per_example.norms(bp.per_example.of_batch(mean_square, params, batch))(params, batch)
        Array([  2., 110.], dtype=float32)
        >>> normalised = lambda w, x: jnp.mean(((x - x.mean(0)) @ w) ** 2)
        >>> bp.per_example.of_batch(normalised, params, batch)
        Traceback (most recent call last):
        ...
        ValueError: The examples interact: the loss of the batch is 25, and those of its examples alone have mean 0 ...
    """
    batch_loss = parameters_first(batch_loss, argnums)
    n = batch_size(batch)
    if n < 2:
        raise ValueError("Whether examples interact shows in a batch of at least two, and this one has one.")

    def loss(params: PyTree, example: PyTree) -> PyTree:
        return batch_loss(params, jax.tree.map(lambda a: jnp.asarray(a)[None], example))

    value_of = without_aux if has_aux else lambda f: f
    together = value_of(batch_loss)(params, batch)
    apart = jax.vmap(value_of(loss), (None, 0))(params, batch)
    if jnp.shape(together) != ():
        raise ValueError(f"The loss of a batch must be one number, and has shape {list(jnp.shape(together))}.")
    scale = max(abs(float(together)), float(jnp.max(jnp.abs(apart))))
    mean, total = float(jnp.mean(apart)), float(jnp.sum(apart))
    if min(abs(float(together) - mean), abs(float(together) - total) / n) > tolerance * scale:
        raise ValueError(
            f"The examples interact: the loss of the batch is {float(together):.4g}, and those of its examples alone "
            f"have mean {mean:.4g} and sum {total:.4g}. So it is under batch normalisation in training mode, where an "
            "example's output depends on the others; then there is no gradient of one example. Use the running "
            "averages, or a normalisation within the example (layer or group normalisation)."
        )
    return parameters_first(loss, argnums)
