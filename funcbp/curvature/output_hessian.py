"""The Hessian of a loss in the model's output, which the Gauss-Newton matrix is made with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..autodiff.transformations import Backward
from ..jaxpr.types import PyTree

__all__ = ["OUTPUT_HESSIANS", "OutputHessian", "identity_basis", "of_loss", "output_hessian", "refuse_indefinite"]

Array = jax.Array
Loss = Callable[[Array, PyTree], Array]


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

    product: Callable[[Array, PyTree, Array], Array]
    root: Callable[[Array, PyTree], Array]
    sample: Callable[[Array, Array, PyTree], Array]


def identity_basis(z: Array, y: PyTree) -> Array:
    return jnp.eye(z.size, dtype=z.dtype).reshape(z.size, *z.shape)


OUTPUT_HESSIANS: dict[Callable[..., Any], OutputHessian] = {}  # by loss; `funcbp.ops` enters its own


def refuse_indefinite(quantity: PyTree, hessian: OutputHessian, z: Callable[[], Array], y: PyTree) -> None:
    """Refuse a loss whose Hessian in the output has negative eigenvalues, and so no root; under `jit` it is nan.

    Args:
        quantity: what was made of the root.
        hessian: of the loss.
        z: gives the outputs, one for each example.
        y: the targets.

    Raises:
        ValueError: the quantity is nan because of that.
    """
    leaves = jax.tree.leaves(quantity)
    if any(isinstance(x, jax.core.Tracer) for x in leaves) or not any(bool(jnp.isnan(x).any()) for x in leaves):
        return
    outputs = z()
    broken = jnp.isnan(jax.vmap(hessian.root)(outputs, y)).reshape(len(outputs), -1).any(1)
    found = jnp.flatnonzero(broken & jnp.isfinite(outputs.reshape(len(outputs), -1)).all(1))
    if len(found):
        raise ValueError(
            "The loss is not convex in the model's output: its Hessian there has negative eigenvalues for "
            f"{len(found)} of {len(outputs)} examples, first for example {found[0]}. The Gauss-Newton matrix needs a "
            "convex loss; a part of the loss that is not convex belongs to the model."
        )


def output_hessian(loss: Loss, backward: Backward) -> OutputHessian:
    """The loss's own Hessian, or that of any convex loss: H u is the forward derivative of its gradient."""
    if loss in OUTPUT_HESSIANS:
        return OUTPUT_HESSIANS[loss]

    def product(z: Array, y: PyTree, u: Array) -> Array:
        return jax.jvp(lambda z: of_loss(backward).grad(loss)(z, y), (z,), (u,))[1]

    def root(z: Array, y: PyTree) -> Array:
        rows = jax.vmap(lambda u: product(z, y, u))(identity_basis(z, y)).reshape(z.size, z.size)
        values, vectors = jnp.linalg.eigh(rows)
        rounding = z.size * jnp.finfo(values.dtype).eps ** 0.75 * jnp.max(jnp.abs(values))
        roots = jnp.where(jnp.min(values) < -rounding, jnp.nan, jnp.sqrt(jnp.maximum(values, 0)))
        return (roots[:, None] * vectors.T).reshape(z.size, *z.shape)

    def sample(key: Array, z: Array, y: PyTree) -> Array:
        s = root(z, y)
        return jnp.tensordot(jax.random.normal(key, (z.size,), z.dtype), s, 1)

    return OutputHessian(product, root, sample)
