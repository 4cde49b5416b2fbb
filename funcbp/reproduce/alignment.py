"""Feedback alignment on a linear task: deltas that come back through random weights are good enough to learn by.

The network is h = W0 x, y = W h, 30-20-10. Going backward, h's cotangent is B e instead of W' e, with B drawn once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import plot
from ..backward import grad
from .table import COMPUTED, SECONDARY, Picture, Reproduction, Row

RATE = 0.005
SAMPLES = (100, 300, 500, 1000, 2000)


@jax.custom_vjp
def through(w: Any, b: Any, h: Any) -> Any:
    """y = W h going forward; going backward, h̄ = B ȳ. A pair of this entry's own, which funcbp's walk honours."""
    return w @ h


def through_bwd(res: tuple[Any, Any], ct: Any) -> tuple[Any, Any, Any]:
    """W̄ = ȳ h', h̄ = B ȳ; B has no cotangent, as nothing is learned about it."""
    b, h = res
    return jnp.outer(ct, h), jnp.zeros_like(b), b @ ct


through.defvjp(lambda w, b, h: (w @ h, (b, h)), through_bwd)


class Seen(NamedTuple):
    """What is measured after each sample: the error of the map, and two angles in degrees."""

    error: Any
    to_backprop: Any
    to_pseudoinverse: Any


def learn(key: jax.Array, aligned: bool, samples: int) -> Seen:
    """One run, online: an update after every sample. With `aligned` false it is backpropagation, B = W'."""
    keys = jax.random.split(key, 5)
    target = jax.random.uniform(keys[0], (10, 30), minval=-1, maxval=1)
    start = [
        jax.random.uniform(k, s, minval=-0.01, maxval=0.01)
        for k, s in zip(keys[1:3], [(20, 30), (10, 20)], strict=True)
    ]
    b = jax.random.uniform(keys[3], (20, 10), minval=-0.5, maxval=0.5)

    def error(params: Any, x: Any) -> Any:
        w0, w = params
        h = w0 @ x
        y = through(w, b, h) if aligned else w @ h
        return 0.5 * jnp.sum((target @ x - y) ** 2)

    def step(params: Any, key: Any) -> tuple[Any, Seen]:
        x = jax.random.normal(key, (30,))
        params = jax.tree.map(lambda p, ct: p - RATE * ct, params, grad(error)(params, x))
        w0, w = params
        e = target @ x - w @ (w0 @ x)
        nse = jnp.sum((target - w @ w0) ** 2) / jnp.sum(target**2)
        if not aligned:
            return params, Seen(nse, 0.0, 0.0)
        come_back, inverse = b @ e, w.T @ jnp.linalg.solve(w @ w.T, e)
        return params, Seen(nse, _angle(come_back, w.T @ e), _angle(come_back, inverse))

    return jax.lax.scan(step, start, jax.random.split(keys[4], samples))[1]


def _angle(a: Any, b: Any) -> Any:
    return jnp.degrees(jnp.arccos(jnp.clip(a @ b / (jnp.linalg.norm(a) * jnp.linalg.norm(b)), -1, 1)))


REFERENCE = {  # after so many samples: error and the two angles by feedback alignment, error by backpropagation
    100: ("0.41", "38.8°", "44.8°", "0.99"),
    300: ("1.5e-2", "29.9°", "18.1°", "0.36"),
    500: ("1.2e-3", "29.4°", "15.8°", "5e-2"),
    1000: ("1.4e-5", "27.2°", "9.8°", "3e-5"),
    2000: ("1.2e-8", "25.4°", "3.7°", "1e-10"),
}


def run(quick: bool, seed: int) -> Iterator[Row | Picture]:
    """The rows and the picture."""
    runs, samples = (4, 500) if quick else (20, 2000)
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(seed), runs)
        aligned, plain = (
            jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda k, a=a: learn(k, a, samples)))(keys))
            for a in (True, False)
        )
    note = "Medians over the runs; angles averaged over the ten samples before. The rate is the reference's."
    smooth = lambda angle, n: np.median(angle[:, max(n - 10, 0) : n].mean(1))
    for n in (n for n in SAMPLES if n <= samples):
        error, to_backprop, to_inverse, plain_error = REFERENCE[n]
        ours = (
            f"{np.median(aligned.error[:, n - 1]):.1e}, {smooth(aligned.to_backprop, n):.1f}°, "
            f"{smooth(aligned.to_pseudoinverse, n):.1f}°; {np.median(plain.error[:, n - 1]):.1e}"
        )
        reference = f"{error}, {to_backprop}, {to_inverse}; {plain_error}"
        yield Row(
            f"error and angles after {n} samples; backprop's error", reference, COMPUTED, ours, f"{runs} runs", note
        )
    below = smooth(aligned.to_backprop, samples)
    yield Row("angle to backprop's deltas at the end", "below 45°", SECONDARY, f"{below:.1f}°", f"{runs} runs")
    closer = np.mean(aligned.to_pseudoinverse[:, -10:].mean(1) < aligned.to_backprop[:, -10:].mean(1))
    yield Row("runs nearer to the pseudoinverse than to backprop", "all", SECONDARY, f"{closer:.0%}", f"{runs} runs")
    yield Picture("alignment", _draw(aligned, plain))


def _draw(aligned: Seen, plain: Seen) -> Any:
    left, right = plot.new_axes(10, 4, 2)
    at = np.arange(1, aligned.error.shape[1] + 1)
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
