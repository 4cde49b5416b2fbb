"""What the models are tried on: small random data, a loss, and the tuple that every model is handed over as.

Everything is made in JAX's default float, so `jax.enable_x64` alone decides the precision of a model and its data.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

CLASSES, VOCABULARY, TIME = 4, 7, 5


class Problem(NamedTuple):
    """Batches and the loss that goes with them."""

    data: Callable[[int], tuple[jax.Array, jax.Array]]  # a seed -> inputs and targets
    loss: Callable[[jax.Array, jax.Array], jax.Array]  # outputs and targets -> a scalar


class Model(NamedTuple):
    """A network as a pure function, its parameters, and its problem."""

    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    problem: Problem

    def loss(self, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        """The scalar that is differentiated."""
        return self.problem.loss(self.apply(params, x), y)


def cross_entropy(logits, labels):
    """Mean of -log softmax(logits) at the labels, over all leading axes."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_p, labels[..., None], -1))


def squared_error(outputs, targets):
    """Half the sum of squared differences, over the batch."""
    return 0.5 * jnp.sum((targets - outputs) ** 2) / len(targets)


def _classes(*shape):
    def data(seed):
        x, y = jax.random.split(jax.random.key(seed))
        return jax.random.normal(x, shape), jax.random.randint(y, shape[:1], 0, CLASSES)

    return Problem(data, cross_entropy)


def _itself(*shape):
    def data(seed):
        x = jax.random.normal(jax.random.key(seed), shape)
        return x, x

    return Problem(data, squared_error)


def _series(seed):
    x, y = jax.random.split(jax.random.key(seed))
    return jax.random.normal(x, (3, TIME, 4)), jax.random.normal(y, (3, TIME, 2))


def _tokens(seed):
    x = jax.random.randint(jax.random.key(seed), (2, TIME), 0, VOCABULARY)
    return x, jnp.roll(x, -1, 1)


VECTORS = _classes(3, 6)
IMAGES = _classes(2, 8, 8, 1)
FEATURES = _classes(2, 6, 6, 3)
SERIES = Problem(_series, squared_error)  # batch, time, features
TOKENS = Problem(_tokens, cross_entropy)  # batch, time: say the next one
CODES = _itself(3, 8)
PICTURES = _itself(2, 6, 6, 2)


def default_float(tree):
    """The floating leaves of a tree in JAX's default float: some initialisers know float32 only."""
    to = jnp.result_type(float)
    return jax.tree.map(lambda a: a.astype(to) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)
