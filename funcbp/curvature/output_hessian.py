"""The Hessian of a loss in the model's output, which the Gauss-Newton matrix is made with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..autodiff.transformations import Backward

__all__ = ["OUTPUT_HESSIANS", "OutputHessian", "identity_basis", "of_loss", "output_hessian"]

Array = jax.Array
Loss = Callable[[Array, Any], Array]


def of_loss(backward: Backward) -> Backward:
    """The backward pass of the loss alone: the names and the feedback weights are the model's."""
    return backward.replace(edits={}, feedback=None)


class OutputHessian(NamedTuple):
    """The Hessian H of a loss in the model's output z, for one example, in three forms.

    Attributes:
        product: `(z, y, u) -> H u`, like z.
        root: `(z, y) -> s`, shape `(k, *z.shape)`, with Σ_k s_k s_k' = H.
        sample: `(key, z, y) -> s`, like z, with E[s s'] = H.
    """

    product: Callable[[Array, Any, Array], Array]
    root: Callable[[Array, Any], Array]
    sample: Callable[[Array, Array, Any], Array]


def identity_basis(z: Array, y: Any) -> Array:
    return jnp.eye(z.size, dtype=z.dtype).reshape(z.size, *z.shape)


OUTPUT_HESSIANS: dict[Any, OutputHessian] = {}  # by loss; `funcbp.ops` enters its own


def output_hessian(loss: Loss, backward: Backward) -> OutputHessian:
    """The loss's own Hessian, or that of any convex loss: H u is the forward derivative of its gradient."""
    if loss in OUTPUT_HESSIANS:
        return OUTPUT_HESSIANS[loss]

    def product(z: Array, y: Any, u: Array) -> Array:
        return jax.jvp(lambda z: of_loss(backward).grad(loss)(z, y), (z,), (u,))[1]

    def root(z: Array, y: Any) -> Array:
        rows = jax.vmap(lambda u: product(z, y, u))(identity_basis(z, y)).reshape(z.size, z.size)
        values, vectors = jnp.linalg.eigh(rows)
        return (jnp.sqrt(jnp.maximum(values, 0))[:, None] * vectors.T).reshape(z.size, *z.shape)

    def sample(key: Array, z: Array, y: Any) -> Array:
        s = root(z, y)
        return jnp.tensordot(jax.random.normal(key, (z.size,), z.dtype), s, 1)

    return OutputHessian(product, root, sample)
