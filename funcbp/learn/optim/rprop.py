"""Resilient backpropagation: steps of a size that only the signs of successive gradients decide.

Each weight has a step size Δ. With g(t) = ∂E/∂w and s = g(t) g(t-1), as long as the sign stays the step grows, when it
changes a minimum was jumped over and the step shrinks:

    s > 0: Δ ← min(η⁺ Δ, Δmax)        s < 0: Δ ← max(η⁻ Δ, Δmin)        s = 0: Δ stays

and the weight moves by w̄ = -sign(g(t)) Δ. The four rules differ in what they do at a change of sign:

| rule | at a change of sign | and then |
|---|---|---|
| `rprop_plus` | takes the last step back | g(t) := 0, so that Δ is not adapted twice |
| `rprop_minus` | moves on, by the smaller step | nothing |
| `irprop_plus` | takes the last step back if the error rose, else stays | g(t) := 0 |
| `irprop_minus` | stays | g(t) := 0 |

`irprop_minus` is what PyTorch calls `Rprop`. `optax.rprop` computes the same steps and hands each out one update late
(optax 0.2.8; google-deepmind/optax#1725).

References:
    M. Riedmiller, H. Braun, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm", 1993;
    C. Igel, M. Hüsken, "Improving the Rprop learning algorithm", 2000.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from ...jaxpr.types import PyTree
from .base import filled, leafwise, needed, number, scalar, zeros


class RpropState(NamedTuple):
    """What the RPROP rules remember.

    Attributes:
        step_sizes: Δ, like the parameters.
        gradients: g(t-1), or 0 after a change of sign.
        updates: how each weight moved, for the rules that take it back; otherwise None.
        value: E(t-1) for `irprop_plus`; otherwise None.
    """

    step_sizes: PyTree
    gradients: PyTree
    updates: PyTree
    value: ArrayLike | Any


def _rprop(
    name: str,
    move: Callable[..., ArrayLike] | None,
    freeze: bool,
    by_value: bool,
    learning_rate: ArrayLike,
    eta_minus: ArrayLike,
    eta_plus: ArrayLike,
    min_step_size: ArrayLike,
    max_step_size: ArrayLike,
) -> optax.GradientTransformationExtraArgs:
    """The family: `move(last update, worse)` is the update at a change of sign; None means to move on."""

    def init(params: PyTree) -> RpropState:
        updates = zeros(params) if name.endswith("plus") else None
        return RpropState(filled(params, learning_rate), zeros(params), updates, scalar(jnp.inf) if by_value else None)

    def update(
        gradients: PyTree, state: RpropState, params: PyTree | None = None, *, value: ArrayLike | None = None, **_: Any
    ) -> tuple[PyTree, RpropState]:
        worse = None
        if by_value:
            value = scalar(needed(value, name, "value=loss", "compares the error with the one before"))
            worse = ~(value <= state.value)  # an error that is not a number is worse than any

        def step(
            g: jax.Array, last_g: jax.Array, size: jax.Array, last: jax.Array | None = None
        ) -> tuple[jax.Array, ...]:
            s = jnp.sign(g) * jnp.sign(last_g)  # not the sign of the product, which is 0 where the product underflows
            factor = jnp.where(s > 0, number(eta_plus, g), number(eta_minus, g))
            adapted = jnp.clip(size * factor, number(min_step_size, g), number(max_step_size, g))
            size = jnp.where(s == 0, size, adapted)
            moved = -jnp.sign(g) * size
            if move is not None:
                moved = jnp.where(s < 0, move(last, worse), moved)
            return moved, size, jnp.where(s < 0, jnp.zeros_like(g), g) if freeze else g

        trees = (state.gradients, state.step_sizes, *([] if state.updates is None else [state.updates]))
        updates, sizes, kept = leafwise(3, step, gradients, *trees)
        return updates, RpropState(sizes, kept, None if state.updates is None else updates, value if by_value else None)

    return optax.GradientTransformationExtraArgs(init, update)


def rprop_plus(
    learning_rate: ArrayLike = 0.1,
    eta_minus: ArrayLike = 0.5,
    eta_plus: ArrayLike = 1.2,
    min_step_size: ArrayLike = 1e-6,
    max_step_size: ArrayLike = 50.0,
) -> optax.GradientTransformationExtraArgs:
    """RPROP as first published: at a change of sign the last step is taken back, w̄(t) = -w̄(t-1).

    Args:
        learning_rate: Δ₀, the first step of every weight.
        eta_minus: η⁻, by which a step shrinks.
        eta_plus: η⁺, by which a step grows.
        min_step_size: Δmin.
        max_step_size: Δmax.

    Returns:
        An optax transformation with a `RpropState`, like the parameters in shapes and dtypes.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from funcbp import optim
        >>> w, optimizer = jnp.array([1.0]), optim.rprop_plus(0.7)
        >>> state = optimizer.init(w)
        >>> for _ in range(3):
        ...     update, state = optimizer.update(2 * w, state)
        ...     w = optax.apply_updates(w, update)
        ...     print(f"{w[0]:.2f}")
        0.30
        -0.54
        0.30

    References:
        M. Riedmiller, H. Braun, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm",
        1993.
    """
    back = lambda last, worse: -last
    sizes = learning_rate, eta_minus, eta_plus, min_step_size, max_step_size
    return _rprop("rprop_plus", back, True, False, *sizes)


def rprop_minus(
    learning_rate: ArrayLike = 0.1,
    eta_minus: ArrayLike = 0.5,
    eta_plus: ArrayLike = 1.2,
    min_step_size: ArrayLike = 1e-6,
    max_step_size: ArrayLike = 50.0,
) -> optax.GradientTransformationExtraArgs:
    """RPROP without taking steps back: always w̄ = -sign(g) Δ.

    Args:
        learning_rate: Δ₀, the first step of every weight.
        eta_minus: η⁻, by which a step shrinks.
        eta_plus: η⁺, by which a step grows.
        min_step_size: Δmin.
        max_step_size: Δmax.

    Returns:
        An optax transformation with a `RpropState`, like the parameters in shapes and dtypes.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import optim
        >>> optimizer = optim.rprop_minus(0.1)
        >>> update, state = optimizer.update(jnp.array([3.0, -0.01]), optimizer.init(jnp.zeros(2)))
        >>> print(update)
        [-0.1  0.1]

    References:
        M. Riedmiller, "Advanced supervised learning in multi-layer perceptrons: from backpropagation to adaptive
        learning algorithms", 1994.
    """
    sizes = learning_rate, eta_minus, eta_plus, min_step_size, max_step_size
    return _rprop("rprop_minus", None, False, False, *sizes)


def irprop_plus(
    learning_rate: ArrayLike = 0.1,
    eta_minus: ArrayLike = 0.5,
    eta_plus: ArrayLike = 1.2,
    min_step_size: ArrayLike = 1e-6,
    max_step_size: ArrayLike = 50.0,
) -> optax.GradientTransformationExtraArgs:
    """Improved RPROP: at a change of sign the last step is taken back only if the error rose, E(t) > E(t-1).

    Args:
        learning_rate: Δ₀, the first step of every weight.
        eta_minus: η⁻, by which a step shrinks.
        eta_plus: η⁺, by which a step grows.
        min_step_size: Δmin.
        max_step_size: Δmax.

    Returns:
        An optax transformation with a `RpropState`. `update` takes the error of the present parameters as `value=`.

    Raises:
        ValueError: `update` was called without `value=`.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import optim
        >>> optimizer = optim.irprop_plus(0.1)
        >>> update, state = optimizer.update(jnp.array([3.0]), optimizer.init(jnp.zeros(1)), value=1.0)
        >>> print(optimizer.update(jnp.array([-3.0]), state, value=2.0)[0])
        [0.1]

    References:
        C. Igel, M. Hüsken, "Improving the Rprop learning algorithm", 2000.
    """
    back_if_worse = lambda last, worse: jnp.where(worse, -last, jnp.zeros_like(last))
    sizes = learning_rate, eta_minus, eta_plus, min_step_size, max_step_size
    return _rprop("irprop_plus", back_if_worse, True, True, *sizes)


def irprop_minus(
    learning_rate: ArrayLike = 0.1,
    eta_minus: ArrayLike = 0.5,
    eta_plus: ArrayLike = 1.2,
    min_step_size: ArrayLike = 1e-6,
    max_step_size: ArrayLike = 50.0,
) -> optax.GradientTransformationExtraArgs:
    """Improved RPROP without taking steps back: at a change of sign the weight stays where it is for one update.

    Args:
        learning_rate: Δ₀, the first step of every weight.
        eta_minus: η⁻, by which a step shrinks.
        eta_plus: η⁺, by which a step grows.
        min_step_size: Δmin.
        max_step_size: Δmax.

    Returns:
        An optax transformation with a `RpropState`, like the parameters in shapes and dtypes.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import optim
        >>> optimizer = optim.irprop_minus(0.1)
        >>> state = optimizer.init(jnp.zeros(1))
        >>> for g in (1.0, 1.0, -1.0, 1.0):
        ...     update, state = optimizer.update(jnp.array([g]), state)
        ...     print(f"{update[0] + 0:.2f}")
        -0.10
        -0.12
        0.00
        -0.06

    References:
        C. Igel, M. Hüsken, "Improving the Rprop learning algorithm", 2000.
    """
    stay: Callable[..., ArrayLike] = lambda last, worse: 0
    sizes = learning_rate, eta_minus, eta_plus, min_step_size, max_step_size
    return _rprop("irprop_minus", stay, True, False, *sizes)
