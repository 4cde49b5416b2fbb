"""The Hessians of the losses in the model's output, which `funcbp.curvature` goes by."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ...curvature.output_hessian import OUTPUT_HESSIANS, OutputHessian, identity_basis
from ...jaxpr.types import PyTree
from .losses import softmax_cross_entropy, softmax_cross_entropy_with_integer_labels, squared_error

Array = jax.Array

SQUARED_ERROR = OutputHessian(
    lambda z, y, u: u, identity_basis, lambda key, z, y: jax.random.normal(key, z.shape, z.dtype)
)


def _softmax_hessian(mass: Callable[[Array, PyTree], Array]) -> OutputHessian:
    """H = m (diag p - p p'), with p = softmax(z) and m the sum of the labels: Σ_k (√(m p_k) (e_k - p)) (...)'."""

    def softmax(z: Array) -> Array:
        if z.ndim == 1:
            return jax.nn.softmax(z)
        raise ValueError(
            f"This cross-entropy of an output of shape {list(z.shape)} is not one number, but one for each position: "
            "sum them up, `lambda z, y: jnp.sum(loss(z, y))`, and that loss's Hessian is found from its gradient."
        )

    def product(z: Array, y: PyTree, u: Array) -> Array:
        p = softmax(z)
        return mass(z, y) * p * (u - jnp.vdot(p, u))

    def root(z: Array, y: PyTree) -> Array:
        p = softmax(z)
        return jnp.sqrt(mass(z, y) * p)[:, None] * (jnp.eye(z.size, dtype=z.dtype) - p[None])

    def sample(key: Array, z: Array, y: PyTree) -> Array:
        p = softmax(z)
        drawn = jax.nn.one_hot(jax.random.categorical(key, z), z.size, dtype=z.dtype)
        return jnp.sqrt(mass(z, y)) * (drawn - p)

    return OutputHessian(product, root, sample)


OUTPUT_HESSIANS.update(
    {
        squared_error: SQUARED_ERROR,
        softmax_cross_entropy: _softmax_hessian(lambda z, y: jnp.sum(y).astype(z.dtype)),
        softmax_cross_entropy_with_integer_labels: _softmax_hessian(lambda z, y: jnp.ones((), z.dtype)),
    }
)
