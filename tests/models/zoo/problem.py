"""What the models are tried on: small random data, a loss, and the tuple that every model is handed over as.

Everything is made in JAX's default float, so `jax.enable_x64` alone decides the precision of a model and its data.
All numbers are drawn by NumPy: what JAX and a library's initialisers would compile for it cost more than the tests.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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


def _normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.result_type(float))


def _integers(rng, below, *shape):
    return jnp.asarray(rng.integers(below, size=shape), jnp.result_type(int))


def _classes(*shape):
    def data(seed):
        rng = np.random.default_rng(seed)
        return _normal(rng, *shape), _integers(rng, CLASSES, shape[0])

    return Problem(data, cross_entropy)


def _itself(*shape):
    def data(seed):
        x = _normal(np.random.default_rng(seed), *shape)
        return x, x

    return Problem(data, squared_error)


def _series(seed):
    rng = np.random.default_rng(seed)
    return _normal(rng, 3, TIME, 4), _normal(rng, 3, TIME, 2)


def _tokens(seed):
    x = np.random.default_rng(seed).integers(VOCABULARY, size=(2, TIME))
    return tuple(jnp.asarray(tokens, jnp.result_type(int)) for tokens in (x, np.roll(x, -1, 1)))


VECTORS = _classes(3, 6)
IMAGES = _classes(2, 8, 8, 1)
FEATURES = _classes(2, 6, 6, 3)
SERIES = Problem(_series, squared_error)  # batch, time, features
TOKENS = Problem(_tokens, cross_entropy)  # batch, time: say the next one
CODES = _itself(3, 8)
PICTURES = _itself(2, 6, 6, 2)


def drawn(shapes, seed=0):
    """Arrays of these shapes, floats in JAX's default float; what is no `jax.ShapeDtypeStruct` stays.

    A kernel's values get smaller with the number of its inputs; a bias, a scale or a variance is between a half and 1.
    """
    rng = np.random.default_rng(seed)

    def draw(a):
        if not isinstance(a, jax.ShapeDtypeStruct):
            return a
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jax.random.key(seed)
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return jnp.asarray(np.zeros(a.shape, a.dtype))
        if len(a.shape) < 2:
            x = rng.uniform(0.5, 1, a.shape)
        else:
            x = rng.normal(size=a.shape) * (max(a.shape) / np.prod(a.shape)) ** 0.5
        return jnp.asarray(x, jnp.result_type(float))

    return jax.tree.map(draw, shapes)
