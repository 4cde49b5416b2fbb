"""The bold driver and Vogl's rule: one learning rate, faster while the error falls, and back to try again if it rises.

Both are batch rules that look at the error of the point the last step led to. A step that is rejected is taken back and
tried again from where it began, with the gradient remembered from there; as the update from here is that way back and
the new step together, no evaluation of the error is spent on going back.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from ...jaxpr.types import PyTree
from .base import leafwise, needed, number, scalar, zeros


class BoldDriverState(NamedTuple):
    """What the bold driver and Vogl's rule remember.

    Attributes:
        learning_rate: η, a scalar.
        value: the error at the last accepted point, a scalar.
        gradients: the gradient there.
        updates: the step from there.
    """

    learning_rate: jax.Array
    value: jax.Array
    gradients: PyTree
    updates: PyTree


def bold_driver(
    learning_rate: ArrayLike, grow: ArrayLike = 1.1, shrink: ArrayLike = 0.5, momentum: ArrayLike = 0.0
) -> optax.GradientTransformationExtraArgs:
    """Battiti's bold driver: η ← 1.1 η while the error falls; when it rises, the step is rejected and η ← η / 2.

    The step is w̄(t) = -η ∂E/∂w + α w̄(t-1), without the last term after a rejection.

    Args:
        learning_rate: η, to begin with.
        grow: what η is multiplied by after a step that was accepted.
        shrink: what η is multiplied by after a step that was rejected.
        momentum: α.

    Returns:
        An optax transformation with a `BoldDriverState`. `update` takes the error of the present parameters as
        `value=`.

    Raises:
        ValueError: `update` was called without `value=`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from funcbp import optim
        >>> w, optimizer = jnp.array([1.0]), optim.bold_driver(1.2)  # a rate that diverges on w²
        >>> state = optimizer.init(w)
        >>> for _ in range(4):
        ...     update, state = optimizer.update(2 * w, state, w, value=jnp.sum(w**2))
        ...     w = optax.apply_updates(w, update)
        ...     print(f"{w[0]:.3f}")
        -1.400
        -0.200
        0.064
        -0.029

    References:
        R. Battiti, "Accelerated backpropagation learning: two optimization methods", 1989.
    """
    return _driven("bold_driver", learning_rate, grow, shrink, momentum, 0.0)


def vogl(
    learning_rate: ArrayLike = 0.01,
    grow: ArrayLike = 1.05,
    shrink: ArrayLike = 0.7,
    momentum: ArrayLike = 0.9,
    tolerance: ArrayLike = 0.04,
) -> optax.GradientTransformationExtraArgs:
    """Vogl's rule, known as gradient descent with momentum and adaptive learning rate (`traingdx`).

    With E the error before the step and E' after it:

        E' > E (1 + ζ): the step is rejected, η ← 0.7 η, and the next step is without momentum;
        E' < E:         the step is accepted, η ← 1.05 η;
        otherwise:      the step is accepted, η stays.

    The step is w̄(t) = -η ∂E/∂w + α w̄(t-1).

    Args:
        learning_rate: η, to begin with.
        grow: what η is multiplied by when the error fell.
        shrink: what η is multiplied by after a step that was rejected.
        momentum: α.
        tolerance: ζ, by which fraction the error may rise.

    Returns:
        An optax transformation with a `BoldDriverState`. `update` takes the error of the present parameters as
        `value=`.

    Raises:
        ValueError: `update` was called without `value=`.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import optim
        >>> optimizer = optim.vogl(0.1)
        >>> state = optimizer.init(jnp.zeros(1))
        >>> for value in (1.0, 0.9, 0.92, 1.0):
        ...     state = optimizer.update(jnp.ones(1), state, value=value)[1]
        ...     print(f"{state.learning_rate:.4f}")
        0.1000
        0.1050
        0.1050
        0.0735

    References:
        T. Vogl, J. Mangis, A. Rigler, W. Zink, D. Alkon, "Accelerating the convergence of the back-propagation method",
        1988; the defaults are those of MATLAB's traingdx.
    """
    return _driven("vogl", learning_rate, grow, shrink, momentum, tolerance)


def _driven(
    name: str, learning_rate: ArrayLike, grow: ArrayLike, shrink: ArrayLike, momentum: ArrayLike, tolerance: ArrayLike
) -> optax.GradientTransformationExtraArgs:
    def init(params: PyTree) -> BoldDriverState:
        return BoldDriverState(scalar(learning_rate), scalar(jnp.inf), zeros(params), zeros(params))

    def update(
        gradients: PyTree,
        state: BoldDriverState,
        params: PyTree | None = None,
        *,
        value: ArrayLike | None = None,
        **_: Any,
    ) -> tuple[PyTree, BoldDriverState]:
        value = scalar(needed(value, name, "value=loss", "compares the error with the one before"))
        rejected = ~(value <= state.value * (1 + scalar(tolerance)))  # one that is not a number is rejected too
        fell = (value < state.value) & jnp.isfinite(state.value)
        factor = jnp.where(rejected, scalar(shrink), jnp.where(fell, scalar(grow), 1))
        rate = state.learning_rate * factor

        def step(g: jax.Array, kept_g: jax.Array, last: jax.Array) -> tuple[jax.Array, ...]:
            g = jnp.where(rejected, kept_g, g)
            moved = -number(rate, g) * g + jnp.where(rejected, 0, number(momentum, g) * last)
            return moved - jnp.where(rejected, last, 0), g, moved

        moved, kept, last = leafwise(3, step, gradients, state.gradients, state.updates)
        return moved, BoldDriverState(rate, jnp.where(rejected, state.value, value), kept, last)

    return optax.GradientTransformationExtraArgs(init, update)
