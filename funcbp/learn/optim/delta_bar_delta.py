"""Delta-bar-delta: a learning rate for each weight, raised by adding and lowered by multiplying."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from ...jaxpr.types import PyTree
from .base import filled, leafwise, number, zeros


class DeltaBarDeltaState(NamedTuple):
    """What delta-bar-delta remembers, all like the parameters.

    Attributes:
        learning_rates: ε.
        averages: δ̄, the exponential average of the gradients.
        updates: how each weight moved.
    """

    learning_rates: PyTree
    averages: PyTree
    updates: PyTree


def delta_bar_delta(
    learning_rate: ArrayLike,
    kappa: ArrayLike = 0.01,
    phi: ArrayLike = 0.2,
    theta: ArrayLike = 0.7,
    momentum: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Jacobs's delta-bar-delta; with momentum, his hybrid rule.

    With δ(t) = ∂E/∂w and the average δ̄(t) = (1 - θ) δ(t) + θ δ̄(t-1), every weight's rate changes by

        κ where δ̄(t-1) δ(t) > 0,      -φ ε where it is < 0,      0 otherwise,

    and then w̄(t) = -ε δ(t) + α w̄(t-1).

    Args:
        learning_rate: ε, to begin with.
        kappa: κ, what is added; typically 0.01 to 0.1.
        phi: φ, the fraction taken off; typically 0.1 to 0.5.
        theta: θ, the memory of the average.
        momentum: α.

    Returns:
        An optax transformation with a `DeltaBarDeltaState`.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import optim
        >>> optimizer = optim.delta_bar_delta(0.1, kappa=0.05)
        >>> state = optimizer.init(jnp.zeros(1))
        >>> for g in (1.0, 1.0, -1.0):
        ...     state = optimizer.update(jnp.array([g]), state)[1]
        ...     print(f"{state.learning_rates[0]:.2f}")
        0.10
        0.15
        0.12

    References:
        R. Jacobs, "Increased rates of convergence through learning rate adaptation", 1988.
    """

    def init(params: PyTree) -> DeltaBarDeltaState:
        return DeltaBarDeltaState(filled(params, learning_rate), zeros(params), zeros(params))

    def update(
        gradients: PyTree, state: DeltaBarDeltaState, params: PyTree | None = None, **_: Any
    ) -> tuple[PyTree, DeltaBarDeltaState]:
        def step(g: jax.Array, rate: jax.Array, average: jax.Array, last: jax.Array) -> tuple[jax.Array, ...]:
            agreement, memory = jnp.sign(average) * jnp.sign(g), number(theta, g)
            slower = rate - number(phi, g) * rate
            rate = jnp.where(agreement > 0, rate + number(kappa, g), jnp.where(agreement < 0, slower, rate))
            moved = -rate * g + number(momentum, g) * last
            return moved, rate, (1 - memory) * g + memory * average

        moved, rates, averages = leafwise(3, step, gradients, state.learning_rates, state.averages, state.updates)
        return moved, DeltaBarDeltaState(rates, averages, moved)

    return optax.GradientTransformationExtraArgs(init, update)
