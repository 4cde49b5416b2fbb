"""SuperSAB: a learning rate for each weight, raised and lowered by factors, with steps taken back."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from ...jaxpr.types import PyTree
from .base import filled, leafwise, number, zeros


class SuperSabState(NamedTuple):
    """What SuperSAB remembers, all like the parameters.

    Attributes:
        learning_rates: η.
        gradients: g(t-1), or 0 after a change of sign.
        updates: how each weight moved, or 0 after a change of sign.
    """

    learning_rates: PyTree
    gradients: PyTree
    updates: PyTree


def super_sab(
    learning_rate: ArrayLike,
    eta_minus: ArrayLike = 0.5,
    eta_plus: ArrayLike = 1.05,
    momentum: ArrayLike = 0.9,
    maximum: ArrayLike = 10.0,
) -> optax.GradientTransformationExtraArgs:
    """Tollenaere's SuperSAB (self-adapting backpropagation).

    With g(t) = ∂E/∂w, every weight's rate η is multiplied by η⁺ where g(t) g(t-1) ≥ 0, and
    w̄(t) = -η g(t) + α w̄(t-1). Elsewhere it is multiplied by η⁻, the last step is taken back, w̄(t) = -w̄(t-1), and what
    is remembered is forgotten: g(t) := 0 and w̄(t) := 0, so that the next step starts afresh.

    Args:
        learning_rate: η, to begin with.
        eta_minus: η⁻.
        eta_plus: η⁺.
        momentum: α.
        maximum: η grows no further than this.

    Returns:
        An optax transformation with a `SuperSabState`.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import optim
        >>> optimizer = optim.super_sab(0.1, eta_plus=2.0, momentum=0.0)
        >>> state = optimizer.init(jnp.zeros(1))
        >>> for g in (1.0, 1.0, -1.0, 1.0):
        ...     update, state = optimizer.update(jnp.array([g]), state)
        ...     print(f"{update[0]:.1f}")
        -0.2
        -0.4
        0.4
        -0.4

    References:
        T. Tollenaere, "SuperSAB: fast adaptive back propagation with good scaling properties", 1990.
    """

    def init(params: PyTree) -> SuperSabState:
        return SuperSabState(filled(params, learning_rate), zeros(params), zeros(params))

    def update(
        gradients: PyTree, state: SuperSabState, params: PyTree | None = None, **_: Any
    ) -> tuple[PyTree, SuperSabState]:
        def step(g: jax.Array, rate: jax.Array, last_g: jax.Array, last: jax.Array) -> tuple[jax.Array, ...]:
            jumped = jnp.sign(g) * jnp.sign(last_g) < 0
            factor = jnp.where(jumped, number(eta_minus, g), number(eta_plus, g))
            rate = jnp.minimum(rate * factor, number(maximum, g))
            moved = jnp.where(jumped, -last, -rate * g + number(momentum, g) * last)
            return moved, rate, jnp.where(jumped, 0, g), jnp.where(jumped, 0, moved)

        moved, *kept = leafwise(4, step, gradients, state.learning_rates, state.gradients, state.updates)
        return moved, SuperSabState(*kept)

    return optax.GradientTransformationExtraArgs(init, update)
