"""Silva and Almeida's rule: a learning rate for each weight, by the signs of successive gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from ...jaxpr.types import PyTree
from .base import filled, leafwise, needed, number, scalar, zeros


class SilvaAlmeidaState(NamedTuple):
    """What Silva and Almeida's rule remembers.

    Attributes:
        learning_rates: η, like the parameters.
        value: the error at the last accepted point, a scalar.
        gradients: the gradient there.
        averages: z, the gradient with momentum, there.
        updates: the step from there.
        failures: how many steps were rejected in succession.
    """

    learning_rates: PyTree
    value: jax.Array
    gradients: PyTree
    averages: PyTree
    updates: PyTree
    failures: jax.Array


def silva_almeida(
    learning_rate: ArrayLike, up: ArrayLike = 1.2, down: ArrayLike = 0.8, momentum: ArrayLike = 0.0, patience: int = 5
) -> optax.GradientTransformationExtraArgs:
    """Silva and Almeida's adaptive rates, with the step rejected when the error rises.

    With g(t) = ∂E/∂w, each weight's rate η is multiplied by u where g(t) g(t-1) > 0 and by d where it is < 0, and
    w̄(t) = -η z(t) with z(t) = g(t) + α z(t-1). When the error has risen, the step is rejected and tried again from
    where it began, with the gradient of that point and the rates as adapted; after five rejections in succession all
    rates are halved. g(t-1) is the gradient where the step began. The point that a rejected step led to has its say in
    the rates only where the sign changed: there the rate falls, and elsewhere it stays. If it rose, by 1.2 five times
    before it is halved once, a step that is too long in such a direction would become longer and longer.

    Args:
        learning_rate: η, to begin with.
        up: u, 1.1 to 1.3.
        down: d, 0.7 to 0.9.
        momentum: α.
        patience: how many rejections in succession halve the rates.

    Returns:
        An optax transformation with a `SilvaAlmeidaState`. `update` takes the error of the present parameters as
        `value=`.

    Raises:
        ValueError: `update` was called without `value=`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from funcbp import optim
        >>> w, optimizer = jnp.array([1.0]), optim.silva_almeida(0.3)
        >>> state = optimizer.init(w)
        >>> for _ in range(3):
        ...     update, state = optimizer.update(2 * w, state, w, value=jnp.sum(w**2))
        ...     w = optax.apply_updates(w, update)
        ...     print(f"{w[0]:.3f}")
        0.400
        0.112
        0.015

    References:
        F. Silva, L. Almeida, "Speeding up backpropagation", 1990.
    """

    def init(params: PyTree) -> SilvaAlmeidaState:
        nothing = zeros(params)
        return SilvaAlmeidaState(
            filled(params, learning_rate), scalar(jnp.inf), nothing, nothing, nothing, jnp.zeros((), jnp.int32)
        )

    def update(
        gradients: PyTree,
        state: SilvaAlmeidaState,
        params: PyTree | None = None,
        *,
        value: ArrayLike | None = None,
        **_: Any,
    ) -> tuple[PyTree, SilvaAlmeidaState]:
        value = scalar(needed(value, "silva_almeida", "value=loss", "compares the error with the one before"))
        rejected = ~(value <= state.value)  # one that is not a number is rejected too
        failures = jnp.where(rejected, state.failures + 1, 0)
        halve = failures >= patience

        def step(
            g: jax.Array, rate: jax.Array, kept_g: jax.Array, z: jax.Array, last: jax.Array
        ) -> tuple[jax.Array, ...]:
            s = jnp.sign(g) * jnp.sign(kept_g)
            rate = rate * jnp.where((s > 0) & ~rejected, number(up, g), jnp.where(s < 0, number(down, g), 1))
            rate = jnp.where(halve, 0.5 * rate, rate)
            kept_g = jnp.where(rejected, kept_g, g)
            z = kept_g + jnp.where(rejected, 0, number(momentum, g) * z)
            moved = -rate * z
            return moved - jnp.where(rejected, last, 0), rate, kept_g, z, moved

        trees = state.learning_rates, state.gradients, state.averages, state.updates
        moved, rates, kept, averages, last = leafwise(5, step, gradients, *trees)
        value = jnp.where(rejected, state.value, value)
        return moved, SilvaAlmeidaState(rates, value, kept, averages, last, jnp.where(halve, 0, failures))

    return optax.GradientTransformationExtraArgs(init, update)
