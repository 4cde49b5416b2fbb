"""Any optimiser of optax in a training: what it is handed, and which parameters it means to be used."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from ...jaxpr.types import PyTree

OF_THE_OPTIMIZER = (
    "This was raised by the optimizer, to which fit hands the gradient, its state and the parameters, and value, grad, "
    "value_fn, grad_fn, obj_fn and batch by name. optax.lookahead goes around other wrappers, and not into them. One "
    "that wants more, such as optax.contrib.dpsgd the gradients of single examples, is for a loop of one's own."
)


class Lookahead(NamedTuple):
    """The state of `optax.lookahead`, whose slow parameters are kept here; those that are trained are the fast ones."""

    slow: PyTree
    memory: PyTree


def as_transformation(optimizer: Any) -> Any:
    """What optax makes a transformation of by a method, as that; anything else as it is."""
    return optimizer.gradient_transformation() if isinstance(optimizer, optax.MultiSteps) else optimizer


def init(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """The optimiser's state before the first update."""
    with _noted():
        with _silent("absl"):  # optax warns of the very thing that is looked for
            memory = optimizer.init(params)
        if not _states(memory, optax.LookaheadState):
            return memory
        return Lookahead(params, optimizer.init(optax.LookaheadParams.init_synced(params)))


def update(
    optimizer: optax.GradientTransformation, grads: PyTree, memory: PyTree, params: PyTree, known: dict[str, Any]
) -> tuple[PyTree, PyTree]:
    """The optimiser's step and its new state, where it may know so much of the update by name."""
    if isinstance(memory, Lookahead):
        both = optax.LookaheadParams(fast=params, slow=memory.slow)
        steps, inner = update(optimizer, grads, memory.memory, both, known)
        with jax.numpy_dtype_promotion("standard"):
            return steps.fast, Lookahead(optax.apply_updates(memory.slow, steps.slow), inner)
    with _noted(), jax.numpy_dtype_promotion("standard"):  # optax's adam raises under "strict"
        steps, new = _call(optax.with_extra_args_support(optimizer).update, grads, memory, params, known)
        before: Any = jax.tree.structure(memory)
        if jax.tree.structure(new) != before:
            raise TypeError(
                "The optimizer's state has another structure after an update than before it, as that of optax.monitor, "
                "which a compiled loop cannot carry: leave that part out."
            )
        for step, w in zip(jax.tree.leaves(steps), jax.tree.leaves(params), strict=True):
            if step.shape != w.shape:
                raise TypeError(f"The optimizer's step has the shape {step.shape}, and the parameter {w.shape}.")
    return steps, new


def _call(
    take: Callable[..., tuple[PyTree, PyTree]], grads: PyTree, memory: PyTree, params: PyTree, known: dict[str, Any]
) -> tuple[PyTree, PyTree]:
    """Call the optimiser's update with as much of what is known by name as it takes.

    By optax's protocol a transformation with extra arguments takes any, and leaves alone what it has no use for. That
    of `contrib.sam` takes `grad_fn` and nothing else. What it takes cannot be read beforehand: `inspect.signature` of a
    chain or of any other wrapper around it says `**extra_args`, and the wrapper hands on whatever it is given. So what
    is refused is left out, by the name that Python itself gives in its refusal. An error in these words that is not
    about what is handed over here comes again without that argument, and is raised then.
    """
    taken = list(known)
    while True:
        try:
            return take(grads, memory, params, **{name: known[name] for name in taken})
        except TypeError as error:
            refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if refused and refused[1] in taken:
                taken.remove(refused[1])
                continue
            if left_out := ", ".join(name for name in known if name not in taken):
                error.add_note(f"A part of the optimizer does not take {left_out}, so this was called without.")
            raise


def judged(params: PyTree, memory: PyTree) -> PyTree:
    """The parameters that the optimiser means to be used, while it learns at others.

    They are the slow ones of `optax.lookahead`, the averages of `contrib.schedule_free`, and those from which
    `contrib.sam` has gone uphill.
    """
    if isinstance(memory, Lookahead):
        return memory.slow
    for state in _states(memory, contrib.ScheduleFreeState, contrib.SAMState):
        if isinstance(state, contrib.ScheduleFreeState):
            params = _with(params, state.z, functools.partial(_mean, state))
        elif state.cache is not None:
            params = _with(params, state.cache, functools.partial(_before, state))
            params = judged(params, state.opt_state)
    return params


def tolerant(memory: PyTree) -> bool:
    """Whether the optimiser leaves out updates that are not finite: then a loss that is not is no divergence."""
    return bool(_states(memory, optax.ApplyIfFiniteState))


def _states(memory: PyTree, *kinds: type) -> list[Any]:
    """The states of these kinds in an optimiser's state, wherever it has them."""
    known = lambda state: isinstance(state, kinds)
    return [state for state in jax.tree.leaves(memory, is_leaf=known) if known(state)]


def _with(params: PyTree, others: PyTree, pick: Callable[[jax.Array, jax.Array], jax.Array]) -> PyTree:
    """The parameters, with `pick` of them and the others where there are others: optax masks those of other rules."""
    masked = lambda leaf: isinstance(leaf, optax.MaskedNode)
    return jax.tree.map(lambda o, p: p if masked(o) else pick(p, o), others, params, is_leaf=masked)


def _mean(state: Any, y: jax.Array, z: jax.Array) -> jax.Array:
    with jax.numpy_dtype_promotion("standard"):
        return contrib.schedule_free_eval_params(state._replace(z=z), y).astype(y.dtype)


def _before(state: Any, params: jax.Array, cache: jax.Array) -> jax.Array:
    return jnp.where(state.steps_since_sync == 0, params, cache)


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextlib.contextmanager
def _noted() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(OF_THE_OPTIMIZER)
        raise
