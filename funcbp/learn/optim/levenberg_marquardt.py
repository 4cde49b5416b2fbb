"""Levenberg-Marquardt: least squares by Gauss-Newton steps, damped as far as it takes for the error to fall."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike

from ...autodiff.arguments import checked_arrays, parameters_first, without_aux
from ...autodiff.transformations import Backward, as_backward
from ...jaxpr.types import PyTree
from ...per_example.examples import Examples, inner_products, jacobian_rows

Array = jax.Array


class LevenbergMarquardtState(NamedTuple):
    """What Levenberg-Marquardt remembers.

    Attributes:
        mu: the damping μ for the next step, a scalar.
        value: the error V after the last step, a scalar.
        tries: how many dampings the last step tried, an integer.
    """

    mu: Array
    value: Array
    tries: Array


def levenberg_marquardt(
    residuals: Callable[[PyTree, PyTree], Array],
    mu: float = 0.01,
    factor: float = 10.0,
    *,
    method: str = "auto",
    max_tries: int = 15,
    batch: PyTree = None,
    argnums: int = 0,
    has_aux: bool = False,
    backward: Backward | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Levenberg-Marquardt for V = Σ e²: the step is -(J'J + μ I)⁻¹ J'e.

    If V would grow, μ is multiplied by the factor and the step computed again from the same J; once V falls, the step
    is taken and μ divided by it. Where the shortest step of an update leaves V as it is, more of μ says nothing, and it
    begins anew: so new data find it ready. For small μ this is Gauss-Newton's step, for large μ a short one of gradient
    descent: J'e is the gradient that backpropagation computes, and J comes from the same pass, once for each output.

    With fewer residuals than parameters the same step is J'(J J' + μ I)⁻¹ e. Then J is not made: J J' is the Gram
    matrix of its rows, which follows from the factors (`per_example.gram`), and J' times a vector is one weighted
    gradient.

    Args:
        residuals: `residuals(params, example)`, the errors e of one example, t - y or y - t: a scalar or an array.
        mu: μ, to begin with.
        factor: what μ is multiplied or divided by.
        method: `"primal"`: solve for the parameters; `"dual"`: solve for the residuals; `"auto"`: the smaller one.
        max_tries: how many dampings to try in an update; if none lets V fall, the parameters stay.
        batch: the batch, where it is the same for all updates; otherwise pass `batch=` to `update`.
        argnums: which argument of `residuals`, 0 or 1, holds the parameters.
        has_aux: whether `residuals` returns a pair (output, auxiliary data); of the latter no use is made.
        backward: the way of going backward, if not the default one.

    Returns:
        An optax transformation with a `LevenbergMarquardtState`. `update(gradients, state, params, batch=...)` makes no
        use of the gradients, which may be None.

    Raises:
        ValueError: an unknown method, or `update` without parameters or batch.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from funcbp import optim
        >>> line = lambda w, example: w["slope"] * example[0] + w["offset"] - example[1]
        >>> batch = jnp.array([0.0, 1.0, 2.0]), jnp.array([1.0, 3.0, 5.0])
        >>> optimizer = optim.levenberg_marquardt(line, mu=1e-4)
        >>> w = {"slope": jnp.array(0.0), "offset": jnp.array(0.0)}
        >>> state = optimizer.init(w)
        >>> for _ in range(3):
        ...     update, state = optimizer.update(None, state, w, batch=batch)
        ...     w = optax.apply_updates(w, update)
        >>> print(f"{w['slope']:.4f} {w['offset']:.4f}")
        2.0000 1.0000

    References:
        M. Hagan, M. Menhaj, "Training feedforward networks with the Marquardt algorithm", 1994.
    """
    if method not in ("auto", "primal", "dual"):
        raise ValueError(f'method is "auto", "primal" or "dual", and was {method!r}.')
    fixed, backward = batch, as_backward(backward)
    residuals = parameters_first(without_aux(residuals) if has_aux else residuals, argnums)

    def init(params: PyTree) -> LevenbergMarquardtState:
        checked_arrays(params)
        real = _wide(jnp.result_type(*map(jnp.asarray, jax.tree.leaves(params))))
        return LevenbergMarquardtState(jnp.asarray(mu, real), jnp.asarray(jnp.inf, real), jnp.zeros((), jnp.int32))

    def update(
        gradients: PyTree,
        state: LevenbergMarquardtState,
        params: PyTree | None = None,
        *,
        batch: PyTree | None = None,
        **_: Any,
    ) -> tuple[PyTree, LevenbergMarquardtState]:
        data = fixed if batch is None else batch
        if params is None or data is None:
            raise ValueError(
                "levenberg_marquardt computes the residuals itself: call update(gradients, state, params, batch=...), "
                "or give it the batch to begin with."
            )
        rows = jacobian_rows(residuals, params, data, backward)[0]
        e = rows.outputs.reshape(-1)
        count = sum(leaf.aval.size for leaf in rows.leaves)
        primal = method == "primal" or (method == "auto" and count <= e.size)
        step_of = _primal(rows, e, params) if primal else _dual(rows, e)

        squares = lambda e: jnp.sum(jnp.square(e.astype(_wide(e.dtype)))).astype(state.mu.dtype)
        moved = lambda step: jax.vmap(residuals, (None, 0))(optax.apply_updates(params, step), data)
        before = squares(e)
        found = _search(step_of, lambda step: squares(moved(step)), before, params, state.mu, factor, max_tries)
        fell = found.value < before
        step = jax.tree.map(lambda s: jnp.where(fell, s, jnp.zeros_like(s)), found.step)
        shortest = (found.value == before) | ~jnp.isfinite(found.mu)
        damping = jnp.where(shortest & ~fell, jnp.asarray(mu, found.mu.dtype), found.mu)
        damping = jnp.where(fell, jnp.maximum(damping / factor, jnp.finfo(damping.dtype).tiny), damping)
        return step, LevenbergMarquardtState(damping, jnp.where(fell, found.value, before), found.tries)

    return optax.GradientTransformationExtraArgs(init, update)


class _Trial(NamedTuple):
    """A step: by which μ, V after it, and which one it is, from 1."""

    mu: Array
    value: Array
    step: PyTree
    tries: Array


def _search(
    step_of: Callable[[Array], PyTree],
    error: Callable[[PyTree], Array],
    before: Array,
    params: PyTree,
    mu: Array,
    factor: float,
    max_tries: int,
) -> _Trial:
    """The first step after which V is smaller than before, μ growing by the factor; or the last one."""

    def grown(trial: _Trial) -> Array:
        return ~(trial.value < before) & (trial.tries < max_tries)

    def try_more(trial: _Trial) -> _Trial:
        damping, tries = trial.mu, trial.tries
        damping = jnp.where(tries > 0, damping * factor, damping)
        step = step_of(damping)
        return _Trial(damping, error(step), step, tries + 1)

    none_yet = _Trial(mu, jnp.full_like(before, jnp.inf), jax.tree.map(jnp.zeros_like, params), jnp.int32(0))
    return jax.lax.while_loop(grown, try_more, none_yet)


def _primal(rows: Examples, e: Array, params: PyTree) -> Callable[[Array], PyTree]:
    """μ -> -(J'J + μ I)⁻¹ J'e, with J made, in the residuals' type where the parameters are narrower."""
    flat, unravel = ravel_pytree(params)
    jacobian = jnp.concatenate([leaf.arrays().reshape(e.size, -1).astype(e.dtype) for leaf in rows.leaves], 1)
    matrix, gradient = jacobian.T @ jacobian, jacobian.T @ e
    return lambda mu: unravel(-_solve(matrix, mu, gradient).astype(flat.dtype))


def _dual(rows: Examples, e: Array) -> Callable[[Array], PyTree]:
    """μ -> -J'(J J' + μ I)⁻¹ e, without J."""
    matrix = inner_products(rows, rows)

    def step(mu: Array) -> PyTree:
        u = _solve(matrix, mu, e)
        return rows.map(lambda leaf: leaf.weighted_sum(-u))

    return step


def _solve(matrix: Array, mu: Array, b: Array) -> Array:
    """(matrix + μ I)⁻¹ b, in float32 where numbers are narrower: there is no narrower factorisation."""
    dtype = _wide(matrix.dtype)
    damped = matrix.astype(dtype) + mu.astype(dtype) * jnp.eye(len(matrix), dtype=dtype)
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(damped), b.astype(dtype)).astype(b.dtype)


def _wide(dtype: DTypeLike) -> DTypeLike:
    """What sums and solutions are computed in: float32 where numbers are narrower."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype
