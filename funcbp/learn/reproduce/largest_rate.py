"""A linear unit diverges when its learning rate is above 2 / λmax, and not before."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ...autodiff.transformations import grad, hvp
from .. import plot
from .table import AGREES, COMPUTED, Comparison, Picture, Reproduction

MEAN, VARIANCE = np.array([0.4, 0.8]), 0.036


def examples() -> tuple[np.ndarray, np.ndarray]:
    """Eight points whose second moments are those of two round Gaussian classes at ±(0.4, 0.8), and ±1 for targets."""
    around = np.sqrt(2 * VARIANCE) * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    return np.concatenate([MEAN + around, -MEAN - around]), np.repeat([1.0, -1.0], 4)


def error(w: jax.Array) -> jax.Array:
    """E = ½ mean (t - w·x)²."""
    x, t = examples()
    return 0.5 * jnp.mean((t - x @ w) ** 2)


START = (1.0, 0.0)  # away from the minimum along both eigenvectors


def walks(rates: jax.Array, updates: int) -> jax.Array:
    """w after so many steps of gradient descent, for many rates at once: shape (rates, 2)."""

    def walk(rate: jax.Array) -> jax.Array:
        step = lambda w, _: (w - rate * grad(error)(w), None)
        return jax.lax.scan(step, jnp.array(START), length=updates)[0]

    return jax.jit(jax.vmap(walk))(rates)


def run(quick: bool, seed: int) -> Iterator[Comparison | Picture]:
    """The rows and the picture; nothing is drawn, so `seed` is not used."""
    updates = 2000
    with jax.enable_x64(True):
        hessian = np.stack([hvp(error, (jnp.zeros(2),), (jnp.asarray(v),)) for v in np.eye(2)])
        small, large = np.linalg.eigvalsh(hessian)
        note = "From the classes' own numbers: |μ|² + σ² = 0.836 and σ² = 0.036."
        yield Comparison("λmax of the Hessian", "0.84", AGREES, f"{large:.4f}", note=note)
        yield Comparison("λmin of the Hessian", "0.036", AGREES, f"{small:.4f}", note=note)
        minimum = np.linalg.solve(hessian, -np.asarray(grad(error)(jnp.zeros(2))))
        away = lambda w: np.max(np.abs(np.asarray(w) - minimum), axis=-1)
        bound = 2 / large
        # each step multiplies the distance along the steepest mode by 1 - η λmax, which is -1 at the bound
        rates = np.linspace(2.2, 2.6, 401)
        distance = away(walks(jnp.asarray(rates), updates))
        diverged = rates[~(distance <= away(START))]
        ours = f"{diverged[0]:.3f} diverges, {diverged[0] - 0.001:.3f} does not (2/λmax = {bound:.4f})"
        note = "2 / 0.84 = 2.38 and 2 / 0.836 = 2.392: the reference divides by the rounded λmax."
        yield Comparison("largest stable rate", "2.38", AGREES, ours, f"401 rates, {updates} updates", note)
        below, above = away(walks(jnp.asarray([bound * 0.999, bound * 1.001]), updates))
        ours = f"{below:.1e} and {above:.1e}"
        yield Comparison("distance from the minimum 0.1 % below and above 2/λmax", "0 and ∞", COMPUTED, ours, "2")
        pairs = away(walks(jnp.asarray([1.0]), 200)), away(walks(jnp.asarray([1.0]), 201))
        ratio = float(pairs[1][0] / pairs[0][0])
        yield Comparison(
            "factor per update at rate 1", f"{1 - small:.6f}", COMPUTED, f"{ratio:.6f}", note="1 - η λmin."
        )
        ax = plot.new_axes()
        shown = np.linspace(0.05, 2.6, 256)
        ax.semilogy(shown, np.maximum(away(walks(jnp.asarray(shown), 100)), 1e-16), label="after 100 updates")
    ax.axvline(bound, color="0.4", linestyle="--", label=f"2/λmax = {bound:.3f}")
    ax.axvline(1 / large, color="0.7", linestyle=":", label=f"1/λmax = {1 / large:.3f}")
    ax.set(xlabel="learning rate", ylabel="distance from the minimum", title="A linear unit of two weights")
    ax.legend(frameon=False)
    yield Picture("largest-rate", ax.figure)


REPRODUCTION = Reproduction(
    "largest-rate",
    "The largest stable learning rate of a linear unit, 2/λmax",
    'Y. LeCun, L. Bottou, G. Orr, K.-R. Müller, "Efficient BackProp", 1998',
    6,
    run,
)
