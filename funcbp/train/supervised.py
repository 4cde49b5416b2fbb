"""Learning from examples: mini-batches, one jitted sweep over the training set per epoch.

A `Task` says what is minimised and how the result is judged; `epochs` is the loop, a generator: whoever runs it sees
every epoch's parameters and stops whenever they like.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import ops
from ..backward import value_and_grad
from ..nets import Net


class Task(NamedTuple):
    """What a network is to do.

    Attributes:
        loss: `loss(params, x, y) -> scalar`, the mean over a batch of examples.
        score: `score(params, x, y) -> scalar`, larger is better.
        score_name: what the score is called.
    """

    loss: Callable[[Any, jax.Array, jax.Array], jax.Array]
    score: Callable[[Any, jax.Array, jax.Array], jax.Array]
    score_name: str


class Epoch(NamedTuple):
    """What is known after a sweep over the training set.

    Attributes:
        number: how many sweeps there were; 0 is the network before it learned.
        params: the parameters after it.
        loss: the loss of the sweep's batches, before the update each of them made, on average; for epoch 0, the loss on
            the training set.
        validation_loss: the loss on the validation set, after it.
        validation_score: the score on the validation set, after it.
        seconds: since the loop began.
    """

    number: int
    params: Any
    loss: float
    validation_loss: float
    validation_score: float
    seconds: float


def classification(net: Net) -> Task:
    """Tell classes apart: softmax and cross-entropy, judged by the fraction told right.

    Args:
        net: a network with one output unit per class.

    Returns:
        A task for inputs (batch, inputs) and numbers of classes (batch,).
    """

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(ops.softmax_cross_entropy_with_integer_labels(net.apply(params, x), y))

    def score(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(jnp.argmax(net.apply(params, x), -1).astype(y.dtype) == y)

    return Task(loss, score, "accuracy")


def regression(net: Net) -> Task:
    """Predict numbers: ½ Σ (t - y)², judged by R² = 1 - Σ (t - y)² / Σ (t - mean t)², the variance that is explained.

    Args:
        net: a network with one output unit per target.

    Returns:
        A task for inputs (batch, inputs) and targets (batch, targets).
    """

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return ops.squared_error(net.apply(params, x), y, "mean")

    def score(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        unexplained = jnp.sum(jnp.square(y - net.apply(params, x)))
        return 1 - unexplained / jnp.sum(jnp.square(y - jnp.mean(y, 0, keepdims=True)))

    return Task(loss, score, "R²")


def reconstruction(net: Net) -> Task:
    """Give back the input: regression with the input as its own target. The targets of the data are not used.

    Args:
        net: a network with as many output units as inputs.

    Returns:
        A task for inputs (batch, inputs).
    """
    like = regression(net)
    return Task(lambda params, x, y: like.loss(params, x, x), lambda params, x, y: like.score(params, x, x), "R²")


def epochs(
    task: Task,
    params: Any,
    training: tuple[Any, Any],
    validation: tuple[Any, Any],
    optimizer: optax.GradientTransformation,
    *,
    key: jax.Array,
    batch_size: int = 32,
    count: int = 100,
) -> Iterator[Epoch]:
    """Stochastic mini-batch learning: w ← w + step(Ē), once per batch, in a new random order every epoch.

    The data stay on the device. Every epoch is one call of a jitted `lax.scan` over the batches, which reuses the
    memory of the parameters. What remains when the batches are full waits for another epoch's order.

    Args:
        task: what is minimised and how it is judged.
        params: the parameters to begin with; they are left as they are.
        training: (x, y), to learn from.
        validation: (x, y), to watch the learning by.
        optimizer: an optax optimiser.
        key: a typed key, for the order of the examples.
        batch_size: examples per update; at most as many as there are.
        count: how many epochs.

    Yields:
        The network before learning, and then after each epoch. Each keeps parameters of its own.

    Raises:
        ValueError: `batch_size` or `count` is less than 1, or there are no examples.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcbp import nets, train
        >>> x, y = jnp.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]), jnp.array([[0.0], [1], [1], [0]])
        >>> net = nets.mlp([2, 4, 1])
        >>> params = net.init(jax.random.key(1), x)
        >>> loop = train.epochs(
        ...     train.regression(net), params, (x, y), (x, y), optax.adam(0.1), key=jax.random.key(0), count=200
        ... )
        >>> history = list(loop)
        >>> history[-1].loss < 0.01
        True
    """
    x, y = (jnp.asarray(a) for a in training)
    held_out = tuple(jnp.asarray(a) for a in validation)
    if batch_size < 1 or count < 1:
        raise ValueError(f"Learning needs batches and epochs of at least 1, and got {batch_size} and {count}.")
    if not len(x):
        raise ValueError("Learning needs at least one example.")
    sweep = _make_sweep(task, optimizer, min(batch_size, len(x)))
    judge = jax.jit(lambda params, x, y: (task.loss(params, x, y), task.score(params, x, y)))
    start = time.perf_counter()

    def report(number: int, params: Any, loss: Any) -> Epoch:
        params = jax.tree.map(jnp.copy, params)
        validation_loss, validation_score = judge(params, *held_out)
        seconds = time.perf_counter() - start
        return Epoch(number, params, float(loss), float(validation_loss), float(validation_score), seconds)

    params = jax.tree.map(jnp.copy, params)
    state = params, optimizer.init(params)
    yield report(0, params, judge(params, x, y)[0])
    for number in range(1, count + 1):
        state, loss = sweep(state, x, y, jax.random.fold_in(key, number))
        yield report(number, state[0], loss)


def _make_sweep(task: Task, optimizer: optax.GradientTransformation, batch_size: int) -> Callable[..., Any]:
    """One pass over the examples in random order, as one compiled program."""
    gradient = value_and_grad(task.loss)

    def sweep(state: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> Any:
        steps = len(x) // batch_size
        order = jax.random.permutation(key, len(x))[: steps * batch_size]

        def step(state: Any, batch: jax.Array) -> Any:
            params, memory = state
            loss, grads = gradient(params, x[batch], y[batch])
            with jax.numpy_dtype_promotion("standard"):  # optax's adam raises under "strict"
                updates, memory = optimizer.update(grads, memory, params)
            return (optax.apply_updates(params, updates), memory), loss

        state, losses = jax.lax.scan(step, state, order.reshape(steps, batch_size))
        return state, jnp.mean(losses)

    return jax.jit(sweep, donate_argnums=0)
