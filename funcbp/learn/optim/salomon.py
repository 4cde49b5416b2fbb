"""Salomon's dynamic self-adaptation: try a larger and a smaller learning rate, and keep the better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from ...jaxpr.types import PyTree
from .base import needed, number, scalar


class SalomonState(NamedTuple):
    """What dynamic self-adaptation remembers.

    Attributes:
        learning_rate: η, a scalar.
    """

    learning_rate: jax.Array


def salomon(
    learning_rate: ArrayLike, zeta: ArrayLike = 1.8, normalize: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Salomon's rule: of w - η ζ g and w - (η / ζ) g, the point with the smaller error, and its rate.

    Each update evaluates the error twice.

    Args:
        learning_rate: η, to begin with.
        zeta: ζ, above 1.
        normalize: whether to take g / |g| for g, so that the rate is the length of the step.

    Returns:
        An optax transformation with a `SalomonState`. `update` takes the parameters, and the error as a function of
        them as `value_fn=`.

    Raises:
        ValueError: `update` was called without the parameters or without `value_fn=`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from funcbp import optim
        >>> error = lambda w: jnp.sum(w**2)
        >>> w, optimizer = jnp.array([1.0]), optim.salomon(0.01, zeta=2.0)
        >>> state = optimizer.init(w)
        >>> for _ in range(6):
        ...     update, state = optimizer.update(2 * w, state, w, value_fn=error)
        ...     w = optax.apply_updates(w, update)
        >>> print(f"{w[0]:.3f} {state.learning_rate:.2f}")
        -0.051 0.64

    References:
        R. Salomon, "Improved convergence rate of back-propagation with dynamic adaption of the learning rate", 1990.
    """

    def init(params: PyTree) -> SalomonState:
        return SalomonState(scalar(learning_rate))

    def update(
        gradients: PyTree,
        state: SalomonState,
        params: PyTree | None = None,
        *,
        value_fn: Callable[[PyTree], jax.Array] | None = None,
        **_: Any,
    ) -> tuple[PyTree, SalomonState]:
        error = needed(value_fn, "salomon", "value_fn=loss_function", "tries two learning rates")
        params = needed(params, "salomon", "value_fn=loss_function", "starts from the parameters")
        length = optax.tree.norm(gradients) if normalize else jnp.ones(())
        # where the gradient is 0 there is no direction to give a length
        unit = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0)

        def along(rate: jax.Array) -> PyTree:
            return jax.tree.map(lambda g: -number(rate, g) * (number(unit, g) * g), gradients)

        larger, smaller = state.learning_rate * scalar(zeta), state.learning_rate / scalar(zeta)
        # an error that is not a number is never the smaller one
        better = scalar(error(optax.apply_updates(params, along(larger)))) < scalar(
            error(optax.apply_updates(params, along(smaller)))
        )
        rate = jnp.where(better, larger, smaller)
        return along(rate), SalomonState(rate)

    return optax.GradientTransformationExtraArgs(init, update)
