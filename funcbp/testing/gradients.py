"""Is a gradient right? Leaf by leaf, against two witnesses: JAX's reverse mode, and differences of the function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import jaxpr as jx
from ..autodiff import transformations as backward

AGAINST_JAX = 1e-10
AGAINST_DIFFERENCES = 1e-6
SMALL = 1e-3  # a leaf whose gradient is smaller than this part of the whole one is measured against that part
STEPS = 1e-2 * 4.0 ** -np.arange(6)


class LeafCheck(NamedTuple):
    """How the gradient of one leaf compares.

    Attributes:
        path: where the leaf is, such as `dense_0/kernel`.
        shape: its shape.
        against_jax: the largest difference to JAX's gradient, relative to the leaf's largest element.
        against_differences: the relative difference to the slope along one direction, by finite differences.
        ok: whether both are as small as float64 lets them be.
    """

    path: str
    shape: tuple[int, ...]
    against_jax: float
    against_differences: float
    ok: bool


def compare_gradients(
    loss: Callable[..., Any],
    params: Any,
    *args: Any,
    seed: int = 0,
    value_and_grad: Callable[..., Any] = backward.value_and_grad,
) -> list[LeafCheck]:
    """Compare a gradient with JAX's and with finite differences, in float64, one line per leaf.

    JAX's gradient is `jax.grad` of the loss with the functions carried by `jax.custom_vjp` opened up (`without_rules`):
    otherwise the hand-written pairs of `funcbp.ops` would be their own witness.

    Every leaf w has a direction v of its own, half along its gradient and half random, so that neither an error of size
    nor one of direction escapes. The slope along it is had from central differences (L(w + hv) - L(w - hv)) / 2h for
    six steps h, extrapolated to h = 0 (Richardson), at the step where two extrapolations agree best: a rectifier's kink
    within reach spoils the large steps, rounding the small ones.

    Args:
        loss: `loss(params, *args) -> scalar`; it must compute in the dtype of what it is given.
        params: a pytree of floating-point arrays.
        *args: further arguments; floating-point arrays are made float64.
        seed: of the random directions.
        value_and_grad: what to check; funcbp's by default.

    Returns:
        One `LeafCheck` per leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp.testing.gradients import compare_gradients
        >>> checks = compare_gradients(lambda p: jnp.sum(jnp.tanh(p["w"])), {"w": jnp.array([0.5, 1.0])})
        >>> checks[0].path, checks[0].ok
        ('w', True)

    Source: C. Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", 1982.
    """
    with jax.enable_x64(True):
        params, args = jax.tree.map(_widen, params), jax.tree.map(_widen, args)
        grads = jax.jit(value_and_grad(loss))(params, *args)[1]
        witness = jax.jit(jax.grad(without_rules(loss)))(params, *args)
        leaves, tree = jax.tree.flatten(params)
        offsets = jnp.asarray(np.concatenate([STEPS, -STEPS]))

        @jax.jit
        def along(direction: Any) -> jax.Array:
            moved = lambda t: jax.tree.map(lambda p, d: p + t * d, params, direction)
            return jax.vmap(lambda t: loss(moved(t), *args))(offsets)

        grads = [np.asarray(g) for g in jax.tree.leaves(grads)]
        witness = [np.asarray(g) for g in jax.tree.leaves(witness)]
        floor = SMALL * np.sqrt(sum(np.sum(np.square(w)) for w in witness))
        rng = np.random.default_rng(seed)
        checks = []
        for i, (path, leaf) in enumerate(jax.tree.leaves_with_path(params)):
            v = _unit(_unit(grads[i]) + _unit(rng.standard_normal(leaf.shape)))
            direction = [jnp.asarray(v) if j == i else jnp.zeros_like(p) for j, p in enumerate(leaves)]
            values = np.asarray(along(jax.tree.unflatten(tree, direction)))
            slope = extrapolate((values[: len(STEPS)] - values[len(STEPS) :]) / (2 * STEPS), 4.0)
            to_jax = _relative(grads[i], witness[i], floor)
            to_differences = _relative(np.sum(grads[i] * v), slope, floor)
            ok = to_jax <= AGAINST_JAX and to_differences <= AGAINST_DIFFERENCES
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            checks.append(LeafCheck(name, leaf.shape, to_jax, to_differences, ok))
    return checks


def without_rules(f: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, without the derivatives that `jax.custom_vjp` attaches to parts of it.

    Args:
        f: a function of pytrees of arrays that returns one array.

    Returns:
        A function of the same arguments, whose derivative JAX works out from the forward pass alone.

    Example:
        >>> import jax
        >>> from funcbp import ops
        >>> from funcbp.testing.gradients import without_rules
        >>> float(jax.grad(without_rules(ops.tanh))(0.0))
        1.0
    """

    def opened(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        program = jx.trace(lambda *xs: [f(*jax.tree.unflatten(tree, xs))], [jax.typeof(x) for x in leaves])
        return jx.run(program, leaves, _WithoutRules())[0]

    return opened


class _WithoutRules(jx.Visitor):
    """Goes into compiled calls, and into functions that have backward rules of their own."""

    enters = jx.Kind.JIT | jx.Kind.CUSTOM

    def opens(self, eqn: Any) -> jx.Inside | None:
        inside = super().opens(eqn)
        return None if "jvp_jaxpr_fun" in eqn.params else inside


def extrapolate(estimates: np.ndarray, ratio: float) -> float:
    """The limit at step 0 of central differences, whose error has the powers h², h⁴, ... of the step.

    From T[i,0], the estimate with step h / ratio^i, Neville's T[i,k] = T[i,k-1] + (T[i,k-1] - T[i-1,k-1]) /
    (ratio^(2k) - 1) removes a power each. The entry that moved least is returned.

    Args:
        estimates: one per step, each step `ratio` times smaller than the one before.
        ratio: of the steps, above 1.

    Example:
        >>> import numpy as np
        >>> from funcbp.testing.gradients import extrapolate
        >>> steps = 0.1 / 2.0 ** np.arange(4)
        >>> float(abs(extrapolate((np.exp(steps) - np.exp(-steps)) / (2 * steps), 2.0) - 1) < 1e-12)
        1.0

    Source: C. Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", 1982.
    """
    best, least = estimates[-1], np.inf
    row = [estimates[0]]
    for estimate in estimates[1:]:
        new = [estimate]
        for k, before in enumerate(row, start=1):
            new.append(new[-1] + (new[-1] - before) / (ratio ** (2 * k) - 1))
            moved = max(abs(new[k] - new[k - 1]), abs(new[k] - before))
            if moved < least:
                best, least = new[k], moved
        row = new
    return float(best)


def _widen(x: Any) -> Any:
    x = jnp.asarray(x)
    return x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _unit(v: np.ndarray) -> np.ndarray:
    length = np.sqrt(np.sum(np.square(v)))
    return v / length if length > 0 else v


def _relative(got: Any, wanted: Any, floor: float) -> float:
    """The largest difference, relative to the largest element that is wanted."""
    if not np.size(wanted):
        return 0.0
    difference = float(np.max(np.abs(got - wanted)))
    return difference / max(float(np.max(np.abs(wanted))), floor) if difference != 0 else 0.0
