"""A function near a point, as a linear map in both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..autodiff.arguments import split_arguments
from ..autodiff.pullback import Pullback
from ..autodiff.transformations import Backward, as_backward
from ..jaxpr.types import PyTree

__all__ = ["Linearised", "linearise"]


class Linearised(NamedTuple):
    """A function near a point, as a linear map in both directions. A pytree: it crosses `jit`.

    `jvp(v)` is J v: our backward pass is linear in the cotangent, so going backward through it goes forward. The
    forward pass is not run again for either.

    Attributes:
        outputs: the value at the point.
        forward, backward: pullbacks, of the backward pass and of the function.
    """

    outputs: PyTree
    forward: Pullback
    backward: Pullback

    def jvp(self, v: PyTree) -> PyTree:
        """J v: from a tree like the parameters to one like the outputs."""
        return self.forward(v)[0]

    def vjp(self, u: PyTree) -> PyTree:
        """J' u: from a tree like the outputs to one like the parameters."""
        return self.backward(u)[0]


def linearise(
    f: Callable[..., PyTree],
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    backward: Backward | None = None,
) -> Callable[..., PyTree]:
    """Linearise a function near a point: a linear map in both directions, to be used many times.

    It needs no forward mode, so it also goes through functions that have none, such as `jax.custom_vjp` pairs.

    Args:
        f: a function of any arguments to a pytree of arrays.
        argnums: which arguments it is linearised in, as in `grad`; of a sequence, what goes in and out is a tuple.
        has_aux: whether `f` returns a pair (output, auxiliary data); the latter is returned too, last.
        backward: the way of going backward, if not the default one.

    Returns:
        A function with the arguments of `f` that returns a `Linearised`.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> square = bp.curvature.linearise(lambda w: w**2)(jnp.array([1.0, 3.0]))
        >>> square.jvp(jnp.array([1.0, 1.0]))
        Array([2., 6.], dtype=float32)
    """

    backward = as_backward(backward)
    unmarked = backward.replace(feedback=None)
    transpose = unmarked.replace(rules={}, edits={})  # the pullback is linear, and goes forward as it is

    def of(*args: PyTree, **kwargs: PyTree) -> PyTree:
        partial, chosen = split_arguments(f, argnums, args, kwargs)
        one = isinstance(argnums, int)

        def of_chosen(given: PyTree) -> PyTree:
            first, *others = (given,) if one else given
            return partial(backward.marked(first), *others)

        outputs, pullback, *aux = unmarked.vjp(of_chosen, chosen[0] if one else chosen, has_aux=has_aux)
        _, forward = transpose.vjp(lambda u: pullback(u)[0], jax.tree.map(jnp.zeros_like, outputs))
        found = Linearised(outputs, forward, pullback)
        return (found, *aux) if has_aux else found

    return of
