"""The neural tangent kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable

from ..autodiff.arguments import parameters_first
from ..autodiff.transformations import Backward, as_backward
from ..jaxpr.types import PyTree
from ..per_example.examples import inner_products, jacobian_rows

__all__ = ["ntk"]


def ntk(
    f: Callable[[PyTree, PyTree], PyTree], *, argnums: int = 0, has_aux: bool = False, backward: Backward | None = None
) -> Callable[..., PyTree]:
    """Compute the empirical neural tangent kernel: J(x) J(x')', the inner products of the outputs' gradients.

    Args:
        f: `f(params, x)`, the output for one example: a scalar, or an array of k elements.
        argnums: which argument of `f`, 0 or 1, holds the parameters; what is returned takes them in that order.
        has_aux: whether `f` returns a pair (output, auxiliary data); that of x is returned too,
            last.
        backward: the way of going backward, if not the default one.

    Returns:
        A function of `(params, x)`, or `(params, x, other)`, each with a leading axis of examples, that returns an
        array of shape (n, m), or (n, k, m, k).

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> bp.curvature.ntk(lambda w, x: w @ x)(jnp.zeros(2), jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 1.0]]))
        Array([[2.]], dtype=float32)

    References:
        A. Jacot, F. Gabriel, C. Hongler, "Neural tangent kernel: convergence and generalization in neural networks",
        2018.
    """
    f = parameters_first(f, argnums)

    def of(params: PyTree, x: PyTree, other: PyTree = None) -> PyTree:
        rows = functools.partial(jacobian_rows, f, params, backward=as_backward(backward), has_aux=has_aux)
        ours, k = rows(x)
        theirs = ours if other is None else rows(other)[0]
        matrix = inner_products(ours, theirs)
        if k is not None:
            matrix = matrix.reshape(matrix.shape[0] // k, k, matrix.shape[1] // k, k)
        return ours.returned(matrix)

    return parameters_first(of, argnums)
