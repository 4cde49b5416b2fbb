"""Momentum as a weighted mean of the gradient's step and the last change."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax
from jax.typing import ArrayLike

from ...jaxpr.types import PyTree
from .base import leafwise, number, zeros


class InertiaState(NamedTuple):
    """What inertia remembers.

    Attributes:
        updates: how each weight moved, w̄(t-1).
    """

    updates: PyTree


def inertia(learning_rate: ArrayLike, momentum: ArrayLike = 0.9) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with inertia: w̄(t) = -(1 - α) η ∂E/∂w + α w̄(t-1).

    With α = 0 a change depends on the gradient alone, with α = 1 on the last change alone. `optax.sgd(η, momentum=α)`
    has the other convention, w̄(t) = -η ∂E/∂w + α w̄(t-1): its steps are these with a rate of η / (1 - α), so there a
    larger α makes steps larger, and here it only makes them smoother.

    Args:
        learning_rate: η.
        momentum: α, from 0 to 1.

    Returns:
        An optax transformation with an `InertiaState`.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import optim
        >>> optimizer = optim.inertia(1.0, momentum=0.5)
        >>> state = optimizer.init(jnp.zeros(1))
        >>> for g in (1.0, 1.0, 0.0):
        ...     update, state = optimizer.update(jnp.array([g]), state)
        ...     print(update[0])
        -0.5
        -0.75
        -0.375

    References:
        D. Plaut, S. Nowlan, G. Hinton, "Experiments on learning by back propagation", 1986, for momentum.
    """

    def init(params: PyTree) -> InertiaState:
        return InertiaState(zeros(params))

    def update(
        gradients: PyTree, state: InertiaState, params: PyTree | None = None, **_: Any
    ) -> tuple[PyTree, InertiaState]:
        def step(g: jax.Array, last: jax.Array) -> tuple[jax.Array, ...]:
            kept = number(momentum, g)
            return (-(1 - kept) * number(learning_rate, g) * g + kept * last,)

        (moved,) = leafwise(1, step, gradients, state.updates)
        return moved, InertiaState(moved)

    return optax.GradientTransformationExtraArgs(init, update)
