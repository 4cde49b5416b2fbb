"""What is made of the products of the way back: in which order they are written, and how the weight lies in a loop."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import funcbp as bp

from . import measure
from .report import Row, Table, spread
from .workloads import normal

NAME = "W16"
LAYERS = ((5, 16, 256, 512), (8, 128, 128, 512), (8, 128, 512, 128), (8, 128, 256, 1024), (4, 256, 512, 2048))
LOOPS = ((1, 128, 512), (2, 128, 512), (16, 128, 512), (48, 128, 512), (128, 128, 512), (1024, 128, 512))
STEPS = 50


def compared(name: str, ours: Callable[..., Any], theirs: Callable[..., Any], args: list[Any], pairs: int) -> Row:
    """The time of one compiled function beside that of another, which returns the same."""
    first, second = (jax.jit(f).lower(*args).compile() for f in (ours, theirs))
    np.testing.assert_allclose(first(*args), second(*args), rtol=1e-3, atol=1e-3)
    times = measure.take_turns(lambda: first(*args), lambda: second(*args), pairs)
    return Row(name, {"time": spread(times.ratios)})


def weight(pairs: int, sequences: int, steps: int, units: int, out: int) -> Row:
    """The gradient of a dense layer's weight, on rows along two axes, beside JAX's."""
    rng = np.random.default_rng(16)
    loss = lambda w, x, ct: jnp.sum(x @ w * ct)
    args = [normal(rng, units, out), normal(rng, sequences, steps, units), normal(rng, sequences, steps, out)]
    name = f"{NAME} W̄ of {sequences} x {steps} rows, {units} to {out}, funcbp : jax"
    return compared(name, bp.grad(loss), jax.grad(loss), args, pairs)


def turned(pairs: int, rows: int, units: int, out: int) -> Row:
    """The products δ W' of a loop with W' made before it, beside those that read W as it lies."""
    rng = np.random.default_rng(16)
    over = lambda w, cts, axis: lax.map(lambda ct: lax.dot_general(ct, w, (((1,), (axis,)), ((), ()))), cts)
    name = f"{NAME} {STEPS} products δ W', {rows} rows, {units} x {out}: W turned before : as it is"
    args = [normal(rng, units, out), normal(rng, STEPS, rows, out)]
    return compared(name, lambda w, cts: over(w.T, cts, 0), lambda w, cts: over(w, cts, 1), args, pairs)


def run(pairs: int, only: Collection[str] = ()) -> Table:
    """Measure.

    Args:
        pairs: of runs for each ratio.
        only: the numbers of the workloads to measure, all of them if empty.
    """
    chosen = not only or NAME in only
    rows = [*(weight(pairs, *size) for size in LAYERS), *(turned(pairs, *size) for size in LOOPS)] if chosen else []
    return Table("Products of the way back", ("time",), rows)
