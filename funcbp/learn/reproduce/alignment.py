"""Feedback alignment on a linear task: deltas that come back through random weights are good enough to learn by.

The network is h = W0 x, y = W h, 30-20-10. Going backward, h's cotangent is B e instead of W' e, with B drawn once.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...autodiff.marks import feedback
from ...autodiff.transformations import grad
from ...jaxpr.types import PyTree, Value
from .. import plot
from .table import COMPUTED, SECONDARY, Comparison, Picture, Reproduction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATE = 0.005
BLOCK, PROBES = 10, 16
SAMPLES = (100, 300, 500, 1000, 2000)


class MapTask(NamedTuple):
    """One run's map to be learned, its network's weights and feedback, and its inputs in blocks."""

    target: np.ndarray | jax.Array
    feedback: np.ndarray | jax.Array
    w0: np.ndarray | jax.Array
    w: np.ndarray | jax.Array
    inputs: np.ndarray | jax.Array


def draw(runs: int, samples: int, seed: int) -> MapTask:
    """The tasks of so many runs, on a leading axis."""
    rng = np.random.default_rng(seed)
    within = lambda reach, *shape: rng.uniform(-reach, reach, (runs, *shape))
    matrices = within(1, 10, 30), within(0.5, 20, 10), within(0.01, 20, 30), within(0.01, 10, 20)
    return MapTask(*matrices, rng.standard_normal((runs, samples // BLOCK, BLOCK, 30)))


def learn(task: MapTask, aligned: bool) -> tuple[jax.Array, jax.Array]:
    """One run, online: an update after every sample. With `aligned` false it is backpropagation, B = W'.

    Returns:
        W0 and W after every block of samples, on a leading axis.
    """

    def error(weights: PyTree, x: jax.Array) -> jax.Array:
        w0, w = weights
        if aligned:
            w = feedback(w, task.feedback.T)
        return 0.5 * jnp.sum((task.target @ x - w @ (w0 @ x)) ** 2)

    def update(weights: PyTree, x: jax.Array) -> tuple[PyTree, None]:
        return jax.tree.map(lambda w, ct: w - RATE * ct, weights, grad(error)(weights, x)), None

    def block(weights: PyTree, xs: Value) -> tuple[PyTree, PyTree]:
        weights, _ = jax.lax.scan(update, weights, xs)
        return weights, weights

    return jax.lax.scan(block, (task.w0, task.w), task.inputs)[1]


class Measured(NamedTuple):
    """What is measured, shape (runs, blocks): the error of the map, and two angles in degrees."""

    error: np.ndarray
    to_backprop: np.ndarray
    to_pseudoinverse: np.ndarray


def measure(task: MapTask, weights: PyTree, seed: int) -> Measured:
    """|T - W W0|² / |T|²; and the angles of B e to W' e and to W⁺ e, on average over some inputs."""
    w0, w = (np.asarray(a) for a in weights)
    off = task.target[:, None] - w @ w0
    e = off @ np.random.default_rng(seed).standard_normal((30, PROBES))
    come_back, transposed = task.feedback[:, None] @ e, np.swapaxes(w, -1, -2)
    return Measured(
        np.sum(off**2, (-2, -1)) / np.sum(task.target**2, (-2, -1))[:, None],
        _angle(come_back, transposed @ e),
        _angle(come_back, transposed @ np.linalg.solve(w @ transposed, e)),
    )


def _angle(a: np.ndarray | jax.Array, b: np.ndarray | jax.Array) -> np.ndarray:
    cosine = np.sum(a * b, -2) / (np.linalg.norm(a, axis=-2) * np.linalg.norm(b, axis=-2))
    return np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean(-1)


REFERENCE = {  # after so many samples: error and the two angles by feedback alignment, error by backpropagation
    100: ("0.41", "38.8°", "44.8°", "0.99"),
    300: ("1.5e-2", "29.9°", "18.1°", "0.36"),
    500: ("1.2e-3", "29.4°", "15.8°", "5e-2"),
    1000: ("1.4e-5", "27.2°", "9.8°", "3e-5"),
    2000: ("1.2e-8", "25.4°", "3.7°", "1e-10"),
}


def run(quick: bool, seed: int) -> Iterator[Comparison | Picture]:
    """The rows and the picture."""
    runs, samples = (4, 500) if quick else (20, 2000)
    tasks = draw(runs, samples, seed)
    with jax.enable_x64(True):
        walks = [jax.jit(jax.vmap(partial(learn, aligned=a)))(tasks) for a in (True, False)]
    aligned, plain = (measure(tasks, weights, seed) for weights in walks)
    note = f"Medians over the runs, of angles averaged over {PROBES} inputs. The learning rate is the reference's."
    middle = lambda values, n: np.median(values[:, n // BLOCK - 1])
    for n in (n for n in SAMPLES if n <= samples):
        error, to_backprop, to_inverse, plain_error = REFERENCE[n]
        ours = (
            f"{middle(aligned.error, n):.1e}, {middle(aligned.to_backprop, n):.1f}°, "
            f"{middle(aligned.to_pseudoinverse, n):.1f}°; {middle(plain.error, n):.1e}"
        )
        reference = f"{error}, {to_backprop}, {to_inverse}; {plain_error}"
        yield Comparison(
            f"{n} samples: error, angles; backprop's error", reference, COMPUTED, ours, f"{runs} runs", note
        )
    ours = f"{middle(aligned.to_backprop, samples):.1f}°"
    yield Comparison("angle to backprop's deltas at the end", "below 45°", SECONDARY, ours, f"{runs} runs")
    closer = np.sum(aligned.to_pseudoinverse[:, -1] < aligned.to_backprop[:, -1])
    yield Comparison(
        "nearer to the pseudoinverse's than to backprop's", "yes", SECONDARY, f"{closer} of {runs}", f"{runs} runs"
    )
    yield Picture("alignment", _draw(aligned, plain))


def _draw(aligned: Measured, plain: Measured) -> Figure:
    left, right = plot.new_axes(10, 4, 2)
    at = BLOCK * np.arange(1, aligned.error.shape[1] + 1)
    for ax, curves in (
        (left, {"feedback alignment": aligned.error, "backpropagation": plain.error}),
        (right, {"to backprop's W' e": aligned.to_backprop, "to the pseudoinverse's W⁺ e": aligned.to_pseudoinverse}),
    ):
        for name, values in curves.items():
            low, middle, high = np.quantile(values, [0.1, 0.5, 0.9], axis=0)
            ax.plot(at, middle, label=name)
            ax.fill_between(at, low, high, alpha=0.2)
        ax.set_xlabel("samples")
        ax.legend(frameon=False)
    left.set(yscale="log", ylabel="|T - W W0|² / |T|²", title="Error: median, 10 % and 90 % of the runs")
    right.set(ylabel="degrees", title="Angle of B e")
    right.axhline(45, color="0.6", linestyle=":")
    return left.figure


REPRODUCTION = Reproduction(
    "alignment",
    "Feedback alignment on the linear task 30-20-10",
    'T. Lillicrap, D. Cownden, D. Tweed, C. Akerman, "Random synaptic feedback weights support error backpropagation '
    'for deep learning", 2016',
    8,
    run,
)
