"""Many trials of one small problem, in one compiled program: batch learning from random weights until it is solved."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from ...autodiff.arguments import checked_arrays, without_aux
from ...autodiff.transformations import Backward, as_backward
from ...jaxpr.types import PyTree
from ..nets import Net
from ..train import stopping


class Outcome(NamedTuple):
    """How trials ended, one entry per trial: arrays of shape (trials,).

    Attributes:
        solved: whether the criterion was met.
        epochs: how many weight updates were made, those of attempts that were given up included.
        restarts: how many attempts were given up.
        params: the parameters at the end, with a leading axis of trials.
    """

    solved: jax.Array
    epochs: jax.Array
    restarts: jax.Array
    params: PyTree

    def spread(self) -> str:
        """Mean, standard deviation (n - 1) and range of the epochs of the trials that were solved."""
        epochs = np.asarray(self.epochs)[np.asarray(self.solved)]
        if not len(epochs):
            return "none solved"
        deviation = np.std(epochs, ddof=1) if len(epochs) > 1 else np.nan
        return (
            f"{epochs.mean():.1f} (sd {deviation:.1f}; {epochs.min()} to {epochs.max()}; median {np.median(epochs):g})"
        )

    def tally(self) -> str:
        """How many of the trials were solved."""
        return f"{int(np.sum(self.solved))} of {len(np.asarray(self.solved))}"


def uniform_weights(net: Net, x: ArrayLike, reach: float) -> Callable[[jax.Array], PyTree]:
    """Weights and biases from U(-reach, reach), as the early networks had them.

    Args:
        net: a network.
        x: an example input, or a batch of them.
        reach: of the largest weight.

    Returns:
        A function of a typed key that returns parameters.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcbp import nets, reproduce
        >>> init = reproduce.uniform_weights(nets.mlp([2, 1]), jnp.zeros(2), 0.3)
        >>> init(jax.random.key(0))["dense_0"]["bias"].shape
        (1,)
    """
    like = jax.eval_shape(net.init, jax.random.key(0), x)
    leaves, structure = jax.tree.flatten(like)
    ends = list(itertools.accumulate(leaf.size for leaf in leaves))

    def init(key: jax.Array) -> Any:
        # one draw for all: most of the time a small trial takes is compilation, and a generator is a long program
        drawn = jnp.split(jax.random.uniform(key, (ends[-1],), leaves[0].dtype, -reach, reach), ends[:-1])
        return jax.tree.unflatten(structure, [d.reshape(a.shape) for d, a in zip(drawn, leaves, strict=True)])

    return init


def run_trials(
    error: Callable[[PyTree], tuple[jax.Array, jax.Array]],
    init: Callable[[jax.Array], PyTree],
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    trials: int,
    most: int,
    restart_at: int | None = None,
    has_aux: bool = False,
    backward: Backward | None = None,
) -> Outcome:
    """Learn from random weights until all examples are right, many times at once.

    The examples are judged in the forward pass of an epoch, before its update; a trial "learned in n epochs" when that
    succeeded after n updates.

    Args:
        error: `error(params) -> (E, right)`, the error over all examples, and which of them are right.
        init: `init(key) -> params`.
        optimizer: an optax transformation; it is given `value=E` and, as a function, `value_fn=`.
        seed: of the weights.
        trials: how many.
        most: the number of updates after which a trial is given up.
        restart_at: after so many updates of an attempt, begin again with new weights and go on counting.
        has_aux: whether `error` returns a pair ((E, right), auxiliary data); of the latter no use is made.
        backward: the way of going backward, if not the default one.

    Returns:
        How they ended.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from funcbp import reproduce
        >>> error = lambda w: (jnp.sum(w**2), jnp.abs(w) < 0.4)
        >>> init = lambda key: jax.random.uniform(key, (1,), minval=0.9)
        >>> outcome = reproduce.run_trials(error, init, optax.sgd(0.25), seed=0, trials=5, most=10)
        >>> outcome.tally(), outcome.epochs.tolist()
        ('5 of 5', [2, 2, 2, 2, 2])
    """
    error = without_aux(error) if has_aux else error
    learn = jax.jit(jax.vmap(make_trial(error, init, optimizer, most, restart_at, backward)))
    outcome: Outcome = jax.tree.map(np.asarray, learn(jax.random.split(jax.random.key(seed), trials)))
    return outcome


def make_trial(
    error: Callable[[PyTree], tuple[jax.Array, jax.Array]],
    init: Callable[[jax.Array], PyTree],
    optimizer: optax.GradientTransformation,
    most: int,
    restart_at: int | None = None,
    backward: Backward | None = None,
) -> Callable[[jax.Array], Outcome]:
    """One trial as a function of its key: a while loop that `jit` and `vmap` compile. Arguments as in `run_trials`."""
    gradient = as_backward(backward).value_and_grad(error, has_aux=True)
    optimizer = optax.with_extra_args_support(optimizer)
    goal = stopping.all_correct()
    draw = lambda key: checked_arrays(init(key))
    restart = stopping.Restart(stopping.maximum_epochs(restart_at or most), draw, 0 if restart_at is None else most)

    class Attempt(NamedTuple):
        params: PyTree
        memory: PyTree
        rules: PyTree
        epoch: jax.Array

    def begin(key: jax.Array) -> Attempt:
        params = restart.init(key)
        return Attempt(params, optimizer.init(params), (goal.init(), restart.when.init()), jnp.int32(0))

    def step(carry: Any) -> Any:
        attempt, key, epochs, restarts, _, _ = carry
        (value, right), ct = gradient(attempt.params)
        seen = stopping.EpochMetrics(attempt.epoch, value, correct=jnp.mean(right.astype(value.dtype)))
        reached, solved = goal.update(attempt.rules[0], seen)
        waited, futile = restart.when.update(attempt.rules[1], seen)
        again = futile & ~solved & (restarts < restart.at_most)
        with jax.numpy_dtype_promotion("standard"):  # optax's adam raises under "strict"
            updates, memory = optimizer.update(
                ct, attempt.memory, attempt.params, value=value, value_fn=lambda p: error(p)[0]
            )
        params = optax.apply_updates(attempt.params, updates)
        moved = Attempt(params, memory, (reached, waited), attempt.epoch + 1)
        if restart_at is not None:
            key, new = jax.random.split(key)
            moved = jax.tree.map(lambda a, b: jnp.where(again, a, b), begin(new), moved)
        done = solved | (epochs >= most)
        kept = jax.tree.map(lambda a, b: jnp.where(done, a, b), attempt, moved)
        return kept, key, jnp.where(done | again, epochs, epochs + 1), restarts + again.astype(jnp.int32), solved, done

    def trial(key: jax.Array) -> Outcome:
        key, first = jax.random.split(key)
        start = begin(first), key, jnp.int32(0), jnp.int32(0), jnp.array(False), jnp.array(False)
        attempt, _, epochs, restarts, solved, _ = jax.lax.while_loop(lambda carry: ~carry[-1], step, start)
        return Outcome(solved, epochs, restarts, attempt.params)

    return trial
