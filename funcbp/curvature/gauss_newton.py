"""Products with the Gauss-Newton matrix."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax

from ..autodiff.arguments import parameters_first
from ..autodiff.transformations import Backward, as_backward
from ..jaxpr.types import PyTree
from .linear_map import Linearised, linearise
from .output_hessian import OutputHessian, output_hessian

__all__ = ["GaussNewton", "ggn", "ggn_vp"]

Array = jax.Array
Model = Callable[[PyTree, PyTree], PyTree]
Loss = Callable[[Array, PyTree], Array]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["model", "targets"], meta_fields=["hessian"])
@dataclasses.dataclass(frozen=True)
class GaussNewton:
    """The Gauss-Newton matrix at a point, as a function `v -> G v`; the model's linearisation is kept. A pytree.

    Attributes:
        model: the model's linearisation, its outputs with a leading axis of examples.
        targets: what the loss compares with.
        hessian: of the loss.
    """

    model: Linearised
    targets: PyTree
    hessian: OutputHessian

    def __call__(self, v: PyTree) -> PyTree:
        """G v, for v a tree like the parameters."""
        z = self.model.outputs
        u = jax.vmap(self.hessian.product)(z, self.targets, self.model.jvp(v))
        return self.model.vjp(u / len(z))


def ggn(
    model: Model, loss: Loss, *, argnums: int = 0, has_aux: bool = False, backward: Backward | None = None
) -> Callable[[PyTree, PyTree, PyTree], PyTree]:
    """Make the Gauss-Newton matrix at a point, with the model linearised once: for solvers, which multiply many times.

    Args:
        model: `model(params, x)`, the output for one example, an array.
        loss: `loss(z, y)`, a scalar, convex in z.
        argnums: which argument of `model`, 0 or 1, holds the parameters; what is returned takes them in that order.
        has_aux: whether the model returns a pair (output, auxiliary data); the latter is returned too, last.
        backward: the way of going backward, if not the default one.

    Returns:
        A function of `(params, x, y)`, x and y with a leading axis of examples, that returns a `GaussNewton`.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> model = lambda w, x: jnp.array([w @ x])
        >>> x, y = jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.zeros((2, 1))
        >>> g = bp.curvature.ggn(model, bp.ops.squared_error)(jnp.zeros(2), x, y)
        >>> solution, _ = jax.scipy.sparse.linalg.cg(g, jnp.array([1.0, 1.0]))
        >>> print(jnp.round(jnp.abs(solution), 4))
        [1. 0.]

    References:
        N. Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", 2002.
    """
    model = parameters_first(model, argnums)
    hessian = output_hessian(loss, as_backward(backward))

    def of(params: PyTree, x: PyTree, y: PyTree) -> PyTree:
        batched = lambda params: jax.vmap(model, (None, 0))(params, x)
        found = linearise(batched, has_aux=has_aux, backward=backward)(params)
        if has_aux:
            return GaussNewton(found[0], y, hessian), found[1]
        return GaussNewton(found, y, hessian)

    return parameters_first(of, argnums)


def ggn_vp(
    model: Model, loss: Loss, *, argnums: int = 0, has_aux: bool = False, backward: Backward | None = None
) -> Callable[[PyTree, PyTree, PyTree, PyTree], PyTree]:
    """Multiply the Gauss-Newton matrix with a vector, G v = Σ_n J_n' H_n J_n v / N.

    Args:
        model: `model(params, x)`, the output for one example, an array.
        loss: `loss(z, y)`, a scalar, convex in z.
        argnums: which argument of `model`, 0 or 1, holds the parameters; what is returned takes them in that order.
        has_aux: whether the model returns a pair (output, auxiliary data); the latter is returned too, last.
        backward: the way of going backward, if not the default one.

    Returns:
        A function of `(params, x, y, v)`, x and y with a leading axis of examples and v a tree like the parameters,
        that returns a tree like the parameters. For many products at one point see `ggn`.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> model = lambda w, x: jnp.array([w @ x])
        >>> x, y = jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.zeros((2, 1))
        >>> bp.curvature.ggn_vp(model, bp.ops.squared_error)(jnp.zeros(2), x, y, jnp.array([1.0, 0.0]))
        Array([1., 1.], dtype=float32)

    References:
        N. Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", 2002.
    """
    model = parameters_first(model, argnums)
    at = ggn(model, loss, has_aux=has_aux, backward=backward)

    def of(params: PyTree, x: PyTree, y: PyTree, v: PyTree) -> PyTree:
        found = at(params, x, y)
        return (found[0](v), found[1]) if has_aux else found(v)

    return parameters_first(of, argnums)
