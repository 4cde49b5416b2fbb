"""How much a layer shrinks a small change of its input, for two ways of drawing the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ...autodiff.transformations import jacrev
from ...jaxpr.types import PyTree
from .. import nets, ops, plot
from .table import SECONDARY, Comparison, Picture, Reproduction

LAYERS = 5


def standard(key: jax.Array, shape: tuple[int, int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """What was usual before: U(-1/√n, 1/√n), with n = n_in."""
    return nets.uniform(-(shape[0] ** -0.5), shape[0] ** -0.5)(key, shape, dtype)


METHODS = {
    "standard, U(±1/√n)": (standard, "about 0.5"),
    "normalized, U(±√(6/(n_in+n_out)))": (nets.xavier_uniform, "about 0.8"),
}
SCALES = {0.1: "-", 1.0: "--"}


def singular_values(initializer: Callable[..., jax.Array], width: int, scale: float, seed: int) -> np.ndarray:
    """The singular values of ∂y_l/∂y_{l-1} for five tanh layers, at a random input from N(0, scale²): (layers, width).

    The Jacobian is that of funcbp: a row for every unit, by one vectorised pass.
    """
    layer = nets.mlp([width, width], output=ops.tanh, initializer=initializer)
    key, drawn = jax.random.split(jax.random.key(seed))
    x = scale * jax.random.normal(drawn, (width,))

    @jax.jit
    def through(params: PyTree, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        jacobian = jacrev(layer.apply, 1)(params, x)
        # the eigenvalues of J'J are half the work of the singular values of J, and as good for their mean
        return layer.apply(params, x), jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(jacobian.T @ jacobian), 0))

    found = []
    for k in jax.random.split(key, LAYERS):
        x, values = through(layer.init(k, x), x)
        found.append(np.asarray(values))
    return np.stack(found)


def run(quick: bool, seed: int) -> Iterator[Comparison | Picture]:
    """The rows and the picture."""
    width = 100 if quick else 1000
    ax = plot.new_axes()
    note = (
        f"{LAYERS} layers of {width} tanh units, at one input; mean (least and largest layer). The paper's inputs are "
        "not known here: the larger they are, the flatter the units, and the smaller the values."
    )
    for name, (initializer, reference) in METHODS.items():
        for scale, dashes in SCALES.items():
            values = singular_values(initializer, width, scale, seed)
            means = values.mean(1)
            ours = f"{means.mean():.3f} ({np.min(means):.3f} to {np.max(means):.3f})"
            yield Comparison(f"{name}, inputs N(0, {scale:g}²)", reference, SECONDARY, ours, f"{LAYERS} layers", note)
            label = f"{name}, inputs {scale:g}: mean {means.mean():.2f}"
            ax.hist(values.ravel(), 40, density=True, histtype="step", linestyle=dashes, label=label)
    ax.set(
        xlabel="singular value of a layer's Jacobian", ylabel="density", title=f"{LAYERS} layers of {width} tanh units"
    )
    ax.legend(frameon=False, fontsize=8, loc="upper right")
    yield Picture("glorot", ax.figure)


REPRODUCTION = Reproduction(
    "glorot",
    "Singular values of layer Jacobians at the beginning, for two initialisers",
    'X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010',
    5,
    run,
)
