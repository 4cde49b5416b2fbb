"""What is made of the products of the way back: in which order they are written, and how the weight lies in a loop."""

from __future__ import annotations

import functools
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
SMALL = 256
IMAGES = (8, 32, 32, 32)
KERNELS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "3 x 3": ((3, 3, 32, 32), {}),
    "1 x 1": ((1, 1, 32, 32), {}),
    "3 x 3, transposed by 2": ((3, 3, 32, 16), {"lhs_dilation": (2, 2), "padding": ((1, 2), (1, 2))}),
    "3 x 3, each channel by itself": ((3, 3, 1, 32), {"feature_group_count": 32}),
    "3 x 3, 4 groups": ((3, 3, 8, 32), {"feature_group_count": 4}),
}


def compared(name: str, ours: Callable[..., Any], theirs: Callable[..., Any], args: list[Any], pairs: int) -> Row:
    """The time of one compiled function beside that of another, which returns the same."""
    first, second = (jax.jit(f).lower(*args).compile() for f in (ours, theirs))
    for a, b in zip(jax.tree.leaves(first(*args)), jax.tree.leaves(second(*args)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())
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


def scanned(w: jax.Array, x: jax.Array) -> jax.Array:
    """Layers of 3 x 3 convolutions, one after the other in a scan."""
    return jnp.sum(lax.scan(lambda h, v: (jax.nn.relu(convolved(h, v)) + h, None), x, w)[0] ** 2)


def conv_lstm(w: jax.Array, xs: jax.Array) -> jax.Array:
    """A recurrent network whose state is an image, gated."""

    def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
        value, gate = jnp.split(convolved(jnp.concatenate([x, h], -1), w), 2, -1)
        return jnp.tanh(value) * jax.nn.sigmoid(gate) + 0.5 * h, None

    return jnp.sum(lax.scan(step, jnp.zeros_like(xs[0]), xs)[0] ** 2)


def convolved(x: jax.Array, w: jax.Array, **how: Any) -> jax.Array:
    """Convolve images with their channels last, of the same size before and after if nothing else is said."""
    given = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    return lax.conv_general_dilated(x, w, **(given | how))


def in_loops(pairs: int) -> list[Row]:
    """The gradients of convolutions in loops, beside JAX's."""
    rng = np.random.default_rng(16)
    layers = [0.1 * normal(rng, 6, 3, 3, 16, 16), normal(rng, 8, 32, 32, 16)]
    network = [0.1 * normal(rng, 3, 3, 32, 32), normal(rng, 10, 8, 16, 16, 16)]
    kinds = {
        "6 convolutions of 3 x 3 in a scan": (scanned, layers),
        "10 steps of a convolutional recurrent network": (conv_lstm, network),
    }
    gradients = lambda loss: (api.grad(loss, (0, 1)) for api in (bp, jax))
    return [
        compared(f"{NAME} {name}, funcbp : jax", *gradients(loss), args, pairs) for name, (loss, args) in kinds.items()
    ]


def batches(pairs: int) -> list[Row]:
    """The gradients of products of many small matrices, beside JAX's: one by one, and in a loop."""
    rng = np.random.default_rng(16)
    matrices = lambda n, dtype: 0.5 / n * normal(rng, SMALL, n, n).astype(dtype)
    once = lambda x, w: jnp.sum(jnp.abs(jnp.sin(x @ w)) ** 2)
    looped = lambda x, w: jnp.sum(jnp.abs(lax.scan(lambda x, _: (x @ w + x / 2, None), x, None, STEPS)[0]) ** 2)
    rows = []
    for n, dtype in (
        (3, np.float32),
        (4, np.float32),
        (6, np.float32),
        (8, np.float32),
        (12, np.float32),
        (4, np.complex64),
    ):
        for how, loss in (("once", once), (f"in {STEPS} steps of a scan", looped)):
            kind = f"{n} x {n}" + (", complex" if dtype is np.complex64 else "")
            ways = (api.grad(loss, (0, 1)) for api in (bp, jax))
            name = f"{NAME} {SMALL} products of {kind}, {how}, funcbp : jax"
            rows.append(compared(name, *ways, [matrices(n, dtype), matrices(n, dtype)], pairs))
    return rows


def back(pairs: int) -> list[Row]:
    """The way back alone, of one convolution and of a look-up, beside JAX's."""
    rng = np.random.default_rng(16)
    rows = []
    for name, (kernel, how) in KERNELS.items():
        f = functools.partial(convolved, **how)
        args = [normal(rng, *IMAGES), normal(rng, *kernel)]
        ways = (lambda ct, *args, api=api, f=f: api.vjp(f, *args)[1](ct) for api in (bp, jax))
        title = f"{NAME} the way back of a convolution of {name}, funcbp : jax"
        rows.append(compared(title, *ways, [normal(rng, *f(*args).shape), *args], pairs))
    columns = jnp.asarray(rng.permutation(1024)[:500])
    ways = (lambda ct, x, api=api: api.vjp(lambda x: x[:, columns], x)[1](ct) for api in (bp, jax))
    args = [normal(rng, 256, 500), normal(rng, 256, 1024)]
    return [*rows, compared(f"{NAME} the way back of 500 columns of 256 x 1024, funcbp : jax", *ways, args, pairs)]


def run(pairs: int, only: Collection[str] = ()) -> Table:
    """Measure.

    Args:
        pairs: of runs for each ratio.
        only: the numbers of the workloads to measure, all of them if empty.
    """
    chosen = not only or NAME in only
    rows: list[Row] = []
    if chosen:
        products = [*(weight(pairs, *size) for size in LAYERS), *(turned(pairs, *size) for size in LOOPS)]
        rows = [*products, *back(pairs), *in_loops(pairs), *batches(pairs)]
    return Table("Products of the way back", ("time",), rows)
