"""Gauss-Newton: the step to where the loss would be least if the model were linear."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ...autodiff.arguments import parameters_first, without_aux
from ...autodiff.transformations import Backward, as_backward
from ...curvature.gauss_newton import ggn
from ...curvature.output_hessian import of_loss
from ...jaxpr.types import PyTree

Array = jax.Array


def conjugate_gradients(product: Callable[[PyTree], PyTree], b: PyTree) -> PyTree:
    """The solution of a symmetric positive system given by its product: JAX's conjugate gradients."""
    return jax.scipy.sparse.linalg.cg(product, b, tol=1e-6, maxiter=100)[0]


def gauss_newton(
    model: Callable[[PyTree, PyTree], Array],
    loss: Callable[[Array, PyTree], Array],
    learning_rate: float = 1.0,
    damping: float = 1e-3,
    *,
    solve: Callable[[Callable[[PyTree], PyTree], PyTree], PyTree] = conjugate_gradients,
    batch: PyTree = None,
    argnums: int = 0,
    has_aux: bool = False,
    backward: Backward | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The Gauss-Newton step, -η (G + λ I)⁻¹ ḡ, with G = Σ_n J_n' H_n J_n / N never made.

    Backpropagation and Gauss-Newton share their parts: ḡ = Σ_n J_n' ē_n / N is a product with J', and each product with
    G one with J and one with J'. Under squared error, with one linear unit, λ = 0 and η = 1, the step is the solution
    of the linear least-squares problem; with G + λ I replaced by I, it is gradient descent.

    Args:
        model: `model(params, x)`, the output for one example, an array.
        loss: `loss(z, y)`, a scalar, convex in z.
        learning_rate: η.
        damping: λ.
        solve: `solve(product, b)`, the solver; JAX's conjugate gradients if left out. Lineax has others.
        batch: the batch (x, y), where it is the same for all updates; otherwise pass `batch=` to `update`.
        argnums: which argument of `model`, 0 or 1, holds the parameters.
        has_aux: whether the model returns a pair (output, auxiliary data); of the latter no use is made.
        backward: the way of going backward, if not the default one.

    Returns:
        An optax transformation. `update(gradients, state, params, batch=(x, y))` makes no use of the gradients, which
        may be None.

    Raises:
        ValueError: `update` without parameters or batch.

    Example:
        >>> import jax.numpy as jnp
        >>> from funcbp import ops, optim
        >>> x, y = jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.array([[1.0], [5.0]])
        >>> optimizer = optim.gauss_newton(lambda w, x: (x @ w)[None], ops.squared_error, damping=0.0, batch=(x, y))
        >>> w = jnp.zeros(2)
        >>> print(jnp.round(optimizer.update(None, optimizer.init(w), w)[0], 3))
        [1. 2.]

    References:
        C. Bishop, "Neural networks for pattern recognition", 1995; J. Martens, "Deep learning via Hessian-free
        optimization", 2010, for the solution by conjugate gradients.
    """
    model = parameters_first(without_aux(model) if has_aux else model, argnums)
    fixed, at = batch, ggn(model, loss, backward=backward)
    slope = of_loss(as_backward(backward)).grad(loss)

    def update(
        gradients: PyTree, state: PyTree, params: PyTree | None = None, *, batch: PyTree | None = None, **_: Any
    ) -> tuple[PyTree, PyTree]:
        data = fixed if batch is None else batch
        if params is None or data is None:
            raise ValueError(
                "gauss_newton runs the model itself: call update(gradients, state, params, batch=(x, y)), or give it "
                "the batch to begin with."
            )
        x, y = data
        g = at(params, x, y)
        z = g.model.outputs
        gradient = g.model.vjp(jax.vmap(slope)(z, y) / len(z))
        damped = lambda v: jax.tree.map(lambda a, b: a + jnp.asarray(damping, b.dtype) * b, g(v), v)
        step = solve(damped, gradient)
        return jax.tree.map(lambda s: -jnp.asarray(learning_rate, s.dtype) * s, step), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
