"""Quickprop: a jump to the minimum of a parabola through two slopes, weight by weight."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import ArrayLike

from ...autodiff.transformations import Backward
from ...jaxpr.types import PyTree
from ...rules import OUTPUT, rule
from .. import ops
from .base import leafwise, needed, number, zeros


class QuickpropState(NamedTuple):
    """What quickprop remembers.

    Attributes:
        slopes: P, the slopes -∂E/∂w of the update before, with the decay in them.
        updates: D, how each weight moved.
    """

    slopes: PyTree
    updates: PyTree


def quickprop(
    learning_rate: ArrayLike = 1.0, mu: ArrayLike = 1.75, decay: ArrayLike = 1e-4, split_epsilon: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Fahlman's quickprop, as his own program has it.

    For each weight, with the slope S = -(∂E/∂w + decay · w), its predecessor P and the last step D, the step is

        ε S where that goes on in the direction of D, or where D = 0, plus
        D S / (P - S), to the minimum of the parabola through the two slopes, but
        μ D where that would be further than μ D: where S is beyond P μ / (1 + μ).

    P and S contain the decay. In his program the derivative of the logistic has 0.1 added to it
    (`sigmoid_prime_offset`), and the error is either left out where it is below 0.1 (`ops.dead_zone_error`) or
    stretched (`ops.hyper_error`); those belong to the gradient, not to this rule.

    Args:
        learning_rate: ε, for gradients summed over the examples.
        mu: μ, the largest growth of a step.
        decay: how much of the weight is in the slope.
        split_epsilon: whether to divide ε by the number of inputs of a unit, its bias among them. A unit's weights are
            the arrays that lie beside each other in the tree, `kernel` (in..., units) and `bias` (units,).

    Returns:
        An optax transformation with a `QuickpropState`, like the parameters in shapes and dtypes. With a decay,
        `update` needs the parameters.

    Raises:
        ValueError: `update` was called without the parameters.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from funcbp import optim
        >>> w, optimizer = jnp.array([1.0]), optim.quickprop(0.1, decay=0.0, split_epsilon=False)
        >>> state = optimizer.init(w)
        >>> for _ in range(4):
        ...     update, state = optimizer.update(2 * w, state)
        ...     w = optax.apply_updates(w, update)
        ...     print(f"{w[0]:.2f}")
        0.80
        0.29
        -0.06
        0.00

    References:
        S. Fahlman, "An empirical study of learning speed in back-propagation networks", 1988; the formula and the
        defaults are those of his public-domain program quickprop1.lisp.
    """
    decays = isinstance(decay, jax.core.Tracer) or decay != 0

    def init(params: PyTree) -> QuickpropState:
        return QuickpropState(zeros(params), zeros(params))

    def update(
        gradients: PyTree, state: QuickpropState, params: PyTree | None = None, **_: Any
    ) -> tuple[PyTree, QuickpropState]:
        fans = _inputs_per_unit(gradients) if split_epsilon else jax.tree.map(lambda g: 1, gradients)
        weights = needed(params, "quickprop", "...", "with a decay needs the parameters") if decays else gradients

        def step(g: jax.Array, w: jax.Array, p: jax.Array, d: jax.Array, fan: int) -> tuple[jax.Array, jax.Array]:
            s = -(g + number(decay, g) * w) if decays else -g
            epsilon, grow = number(learning_rate, g) / fan, number(mu, g)
            shrink = grow / (1 + grow)
            downhill = jnp.where(jnp.sign(d) * jnp.sign(s) >= 0, epsilon * s, 0)
            far = jnp.where(d > 0, s > shrink * p, s < shrink * p)
            # P = S happens only where D is 0 or the slopes have underflowed; a line has no minimum to jump to
            flat = p == s
            parabola = jnp.where(flat, 0, d * s / jnp.where(flat, jnp.ones_like(s), p - s))
            moved = downhill + jnp.where(d == 0, 0, jnp.where(far, grow * d, parabola))
            return moved, s

        moved, slopes = leafwise(2, step, gradients, weights, state.slopes, state.updates, fans)
        return moved, QuickpropState(slopes, moved)

    return optax.GradientTransformationExtraArgs(init, update)


def _inputs_per_unit(tree: PyTree) -> PyTree:
    """For each leaf, how many weights a unit of it has, counting all the leaves beside it with as many units."""
    paths = jax.tree.leaves_with_path(tree)
    beside: dict[tuple[object, ...], int] = defaultdict(int)
    keys = [(path[:-1], leaf.shape[-1:]) for path, leaf in paths]
    for key, (_, leaf) in zip(keys, paths, strict=True):
        beside[key] += math.prod(leaf.shape[:-1])
    return jax.tree.unflatten(jax.tree.structure(tree), [beside[key] for key in keys])


def sigmoid_prime_offset(offset: float = 0.1) -> Backward:
    """Fahlman's cure for flat spots: the derivative of the logistic taken to be y (1 - y) + offset.

    A unit that saturates on the wrong side then still learns. It is a rule for the backward pass, no property of the
    network; it applies to `jax.nn.sigmoid`, `jax.lax.logistic` and `funcbp.ops.logistic`.

    Args:
        offset: what is added.

    Returns:
        A `Backward` with these rules.

    Example:
        >>> import jax, funcbp as bp
        >>> print(f"{bp.optim.sigmoid_prime_offset(0.1).grad(jax.nn.sigmoid)(0.0):.2f}")
        0.35

    References:
        S. Fahlman, "An empirical study of learning speed in back-propagation networks", 1988.
    """

    def logistic_offset_bwd(y: jax.Array, ct: jax.Array, perturbed: Sequence[bool], **_: Any) -> tuple[jax.Array]:
        """x̄ = ȳ (y (1 - y) + offset)."""
        return (ct * (y * (1 - y) + offset),)

    offset_rule = rule(logistic_offset_bwd, save=OUTPUT)
    return Backward(rules={lax.logistic_p: offset_rule, ops.logistic: offset_rule})
