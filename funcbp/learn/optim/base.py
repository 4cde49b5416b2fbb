"""What the learning rules share: going through the leaves, and numbers in a leaf's type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ...jaxpr.types import PyTree


def leafwise(count: int, f: Callable[..., tuple[jax.Array, ...]], tree: PyTree, *rest: PyTree) -> tuple[PyTree, ...]:
    """Map `f`, which returns `count` results, over the leaves of trees of one structure: a tree of each result."""
    structure = jax.tree.structure(tree)
    results = jax.tree.leaves(jax.tree.map(lambda *leaves: tuple(f(*leaves)), tree, *rest))
    return tuple(jax.tree.unflatten(structure, results[i::count]) for i in range(count))


def number(x: ArrayLike, like: jax.Array) -> jax.Array:
    """A hyperparameter, which may be a tracer, in the dtype of a leaf."""
    return jnp.asarray(x).astype(like.dtype)


def scalar(x: ArrayLike) -> jax.Array:
    """A number to keep in a state: float32, or float64 where that is enabled."""
    return jnp.asarray(x).astype(jnp.result_type(float))


def filled(params: PyTree, value: ArrayLike) -> PyTree:
    """The same number in the place of every parameter."""
    return jax.tree.map(lambda p: jnp.broadcast_to(number(value, p), p.shape), params)


def zeros(params: PyTree) -> PyTree:
    """Zeros like the parameters."""
    return jax.tree.map(jnp.zeros_like, params)


def needed(what: Any, name: str, keyword: str, why: str) -> Any:
    """What was passed to `update`, or an error that says how to pass it."""
    if what is None:
        raise ValueError(f"{name} {why}: call update(gradient, state, params, {keyword}).")
    return what
