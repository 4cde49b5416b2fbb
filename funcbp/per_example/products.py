"""The factors of the examples' gradients, the inner products between them, and the method for each parameter."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..autodiff.arguments import checked_arrays, parameters_first
from ..autodiff.transformations import Backward, as_backward
from ..jaxpr.types import PyTree
from .examples import backpropagate, inner_products, jacobian_rows

__all__ = ["cosines", "factors", "gram", "methods"]

Array = jax.Array
Loss = Callable[[PyTree, PyTree], PyTree]


def factors(
    loss: Loss, *, argnums: int = 0, has_aux: bool = False, backward: Backward | None = None
) -> Callable[[PyTree, PyTree], PyTree]:
    """Take out the factors of each weight's gradients: `{path: (inputs, deltas)}`.

    For a weight W[i,o], W̄_n = Σ_p inputs[n,p,i] deltas[n,p,o]: p runs over the positions that the example shares the
    weight over (1 in a dense layer of a network that sees one vector per example). A stack of layers, or a convolution
    with groups of channels, has an axis g of groups before p. The inputs of an embedding are the numbers of its rows,
    integers without the axis i. A weight used several times alike has the positions of all uses.

    Args:
        loss: the loss of one example, `loss(params, example)`, a scalar.
        argnums: which argument of `loss`, 0 or 1, holds the parameters; what is returned takes them in that order.
        has_aux: whether the function returns a pair (output, auxiliary data); the latter is returned too, last.
        backward: the way of going backward, if not the default one.

    Returns:
        A function of `(params, batch)` that returns a dict. Parameters whose cotangents are no products (biases), or
        products that do not go together, are not in it.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> loss = lambda p, x: jnp.sum(x @ p["kernel"] + p["bias"])
        >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}
        >>> {k: (x.shape, d.shape) for k, (x, d) in bp.per_example.factors(loss)(params, jnp.ones((5, 2))).items()}
        {'kernel': ((5, 1, 2), (5, 1, 3))}
    """
    loss = parameters_first(loss, argnums)

    def of(params: PyTree, batch: PyTree) -> PyTree:
        found = backpropagate(loss, params, batch, backward=as_backward(backward), has_aux=has_aux)
        return found.returned({leaf.path: leaf.factors() for leaf in found.leaves if leaf.pairs})

    return parameters_first(of, argnums)


def gram(
    f: Loss, *, argnums: int = 0, has_aux: bool = False, backward: Backward | None = None
) -> Callable[[PyTree, PyTree], PyTree]:
    """Compute the Gram matrix of the per-example gradients, J J': all inner products ⟨W̄_n, W̄_m⟩, over all parameters.

    Args:
        f: `f(params, example)`: a scalar, or an array, whose elements then have a row each.
        argnums: which argument of `f`, 0 or 1, holds the parameters; what is returned takes them in that order.
        has_aux: whether the function returns a pair (output, auxiliary data); the latter is returned too, last.
        backward: the way of going backward, if not the default one.

    Returns:
        A function of `(params, batch)` that returns an array of shape (n, n); or, where f returns arrays with k
        elements, (n, k, n, k).

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> bp.per_example.gram(lambda w, x: w @ x)(jnp.zeros(2), jnp.array([[1.0, 0.0], [1.0, 2.0]]))
        Array([[1., 1.],
               [1., 5.]], dtype=float32)
    """
    f = parameters_first(f, argnums)

    def of(params: PyTree, batch: PyTree) -> PyTree:
        rows, k = jacobian_rows(f, params, batch, as_backward(backward), has_aux)
        matrix = inner_products(rows, rows)
        return rows.returned(matrix if k is None else matrix.reshape(len(matrix) // k, k, len(matrix) // k, k))

    return parameters_first(of, argnums)


def cosines(
    loss: Loss, *, argnums: int = 0, has_aux: bool = False, backward: Backward | None = None
) -> Callable[[PyTree, PyTree], PyTree]:
    """Compute the cosines between the gradients of all pairs of examples: shape (n, n); 0 where a gradient is zero.

    Args:
        loss: the loss of one example, `loss(params, example)`, a scalar.
        argnums: which argument of `loss`, 0 or 1, holds the parameters; what is returned takes them in that order.
        has_aux: whether the function returns a pair (output, auxiliary data); the latter is returned too, last.
        backward: the way of going backward, if not the default one.

    Returns:
        A function of `(params, batch)` that returns an array of shape (n, n).

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> bp.per_example.cosines(lambda w, x: w @ x)(jnp.zeros(2), jnp.array([[1.0, 0.0], [3.0, 4.0]]))
        Array([[1. , 0.6],
               [0.6, 1. ]], dtype=float32)
    """
    loss = parameters_first(loss, argnums)

    def of(params: PyTree, batch: PyTree) -> PyTree:
        found = backpropagate(loss, params, batch, backward=as_backward(backward), has_aux=has_aux)
        matrix = inner_products(found, found)
        n = jnp.sqrt(jnp.diagonal(matrix))
        scale = n[:, None] * n[None, :]
        return found.returned(jnp.where(scale > 0, matrix / jnp.where(scale > 0, scale, 1), 0))

    return parameters_first(of, argnums)


def methods(
    loss: Loss, *, sums: bool = True, argnums: int = 0, has_aux: bool = False, backward: Backward | None = None
) -> Callable[[PyTree, PyTree], dict[str, str]]:
    """Say by which method each parameter goes: `{path: method}`, without computing anything.

    `"factors"`: norms come from the factors. `"products"`: the products are made, because that is cheaper, or for the
    reason given after it; those of a convolution from patches, or, `"direct"`, by a convolution for each example.
    `"array"`: the cotangents come as arrays, as those of biases do. `"zero"`: the loss does not depend on it.

    Args:
        loss: the loss of one example, `loss(params, example)`, a scalar.
        sums: whether a sum is asked for too, as in `clipped_grad`; in `norms` alone it is not.
        argnums: which argument of `loss`, 0 or 1, holds the parameters; what is returned takes them in that order.
        has_aux: whether the function returns a pair (output, auxiliary data).
        backward: the way of going backward, if not the default one.

    Returns:
        A function of `(params, batch)`, which may be types (`jax.ShapeDtypeStruct`), that returns a dict.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> loss = lambda p, x: jnp.sum(x @ p["kernel"] + p["bias"])
        >>> bp.per_example.methods(loss)({"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, jnp.ones((5, 2)))
        {'bias': 'array', 'kernel': 'factors'}
    """
    loss = parameters_first(loss, argnums)

    def of(params: PyTree, batch: PyTree) -> dict[str, str]:
        out: dict[str, str] = {}

        def look(params: PyTree, batch: PyTree) -> None:
            found = backpropagate(loss, params, batch, backward=as_backward(backward), has_aux=has_aux, sums=sums)
            out.update((leaf.path, leaf.method) for leaf in found.leaves)

        checked_arrays(params)
        jax.eval_shape(look, params, batch)
        return out

    return parameters_first(of, argnums)
