"""How far another backward pass is from backpropagation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..autodiff.arguments import check_callable, check_scalar, indices_of, split_arguments
from ..autodiff.transformations import Backward
from ..jaxpr.types import PyTree

__all__ = ["Alignment", "alignment"]


class Alignment(NamedTuple):
    """How an array's update direction lies to the gradient.

    Attributes:
        angle: between the two, in degrees, 0 to 180; nan where either is zero.
        ratio: the norm of the one over that of the gradient.
    """

    angle: PyTree
    ratio: PyTree


def alignment(
    f: Callable[..., PyTree], argnums: int | Sequence[int] = 0, has_aux: bool = False, *, backward: Backward
) -> Callable[..., PyTree]:
    """Measure how far another backward pass is from backpropagation, array by array.

    Both passes go over what one forward pass recorded: with feedback weights B they are one pass, vectorised over
    {B, W}; the edits are made in one of them and not in the other. Replaced rules keep something else for themselves:
    only then the function runs twice.

    Args:
        f: a function with a scalar output.
        argnums: which arguments to differentiate with respect to, as in `jax.grad`.
        has_aux: whether `f` returns a pair (output, auxiliary data).
        backward: the other backward pass, such as `feedback_alignment(key, params)`.

    Returns:
        A function of the arguments of `f` that returns a pytree like the gradient, with an `Alignment` for each array.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> params = {"w0": jnp.array([[1.0]]), "w1": jnp.array([[1.0]])}
        >>> loss = lambda p, x: jnp.sum(jnp.tanh(x @ p["w0"]) @ p["w1"])
        >>> backward = bp.Backward(feedback={"w0": None, "w1": jnp.array([[-2.0]])})
        >>> found = bp.credit.alignment(loss, backward=backward)(params, jnp.ones((1, 1)))
        >>> found["w0"].angle, found["w0"].ratio, found["w1"].angle
        (Array(180., dtype=float32), Array(2., dtype=float32), Array(0., dtype=float32))
    """
    check_callable(f, argnums, has_aux)
    rules = backward.options.rules

    def measured(*args: PyTree, **kwargs: PyTree) -> PyTree:
        partial, chosen = split_arguments(f, argnums, args, kwargs)

        def passes(backward: Backward) -> tuple[PyTree, PyTree]:
            """The cotangents with the edits, and without them."""
            value, pullback, *_ = backward.vjp(partial, *chosen, has_aux=has_aux)
            check_scalar(value, False)
            seed = jnp.ones_like(value)
            edited = pullback(seed)
            return edited, pullback.observed(seed, edits=False)[0] if backward.options.edits else edited

        if rules:
            other, true = passes(backward)[0], passes(backward.replace(rules={}, edits={}, feedback=None))[0]
        elif backward.feedback is None:
            other, true = passes(backward)
        else:
            pair = lambda b, w: None if b is None else jnp.stack([b.astype(w.dtype), w])
            pairs = jax.tree.map(pair, backward.feedback, chosen[0], is_leaf=lambda x: x is None)
            edited, plain = jax.vmap(lambda weights: passes(backward.replace(feedback=weights)))(pairs)
            other, true = jax.tree.map(lambda g: g[0], edited), jax.tree.map(lambda g: g[1], plain)
        found = jax.tree.map(_compare, other, true)
        return found[0] if isinstance(indices_of(argnums), int) else found

    return measured


def _compare(other: jax.Array, true: jax.Array) -> Alignment:
    a, b = other.ravel(), true.ravel()
    size_a, size_b = jnp.sqrt(jnp.sum(a * a)), jnp.sqrt(jnp.sum(b * b))
    # of unit vectors u and v, 2 atan2(|u - v|, |u + v|): exact near 0 and 180 degrees, where the arc cosine is not
    u, v = a / size_a, b / size_b
    half = jnp.arctan2(jnp.sqrt(jnp.sum((u - v) ** 2)), jnp.sqrt(jnp.sum((u + v) ** 2)))
    return Alignment(jnp.degrees(2 * half), size_a / size_b)
