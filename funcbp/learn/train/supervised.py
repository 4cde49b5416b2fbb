"""What a network is to do: what is minimised when it learns from examples, and how the result is judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...jaxpr.types import PyTree
from .. import ops
from ..nets import Net


class Task(NamedTuple):
    """What a network is to do.

    Attributes:
        loss: `loss(params, x, y) -> scalar`, the mean over a batch of examples.
        score: `score(params, x, y) -> scalar`, larger is better.
        score_name: what the score is called.
    """

    loss: Callable[[PyTree, jax.Array, jax.Array], jax.Array]
    score: Callable[[PyTree, jax.Array, jax.Array], jax.Array]
    score_name: str


def classification(net: Net) -> Task:
    """Tell classes apart: softmax and cross-entropy, judged by the fraction told right.

    Args:
        net: a network with one output unit per class.

    Returns:
        A task for inputs (batch, inputs) and numbers of classes (batch,).

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> net, x = bp.nets.mlp([2, 3]), jnp.eye(2)
        >>> task = bp.train.classification(net)
        >>> task.score_name, task.loss(net.init(jax.random.key(0), x), x, jnp.array([0, 2])).shape
        ('accuracy', ())
    """

    def loss(params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(ops.softmax_cross_entropy_with_integer_labels(net.apply(params, x), y))

    def score(params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(jnp.argmax(net.apply(params, x), -1).astype(y.dtype) == y)

    return Task(loss, score, "accuracy")


def regression(net: Net) -> Task:
    """Predict numbers: ½ Σ (t - y)², judged by R² = 1 - Σ (t - y)² / Σ (t - mean t)², the variance that is explained.

    Args:
        net: a network with one output unit per target.

    Returns:
        A task for inputs (batch, inputs) and targets (batch, targets).

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> net, x = bp.nets.mlp([2, 1]), jnp.eye(2)
        >>> params = net.init(jax.random.key(0), x)
        >>> bp.train.regression(net).score(params, x, net.apply(params, x))
        Array(1., dtype=float32)
    """

    def loss(params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        return ops.squared_error(net.apply(params, x), y, "mean")

    def score(params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        unexplained = jnp.sum(jnp.square(y - net.apply(params, x)))
        return 1 - unexplained / jnp.sum(jnp.square(y - jnp.mean(y, 0, keepdims=True)))

    return Task(loss, score, "R²")


def reconstruction(net: Net) -> Task:
    """Give back the input: regression with the input as its own target. The targets of the data are not used.

    Args:
        net: a network with as many output units as inputs.

    Returns:
        A task for inputs (batch, inputs).

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> net, x = bp.nets.autoencoder([4, 2]), jnp.eye(4)
        >>> bp.train.reconstruction(net).loss(net.init(jax.random.key(0), x), x, None).shape
        ()
    """
    like = regression(net)
    return Task(lambda params, x, y: like.loss(params, x, x), lambda params, x, y: like.score(params, x, x), "R²")
