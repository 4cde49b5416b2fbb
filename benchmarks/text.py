"""A language model, beside what a user would write instead: the same transformer in Flax NNX, optax, and `jax.grad`.

Both begin with the same parameters and learn from the same windows of Python's own sources by the same AdamW, the step
compiled as a whole. A row between them is our model under JAX's backward pass.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcbp as bp
from funcbp.learn.train import language

from . import measure
from .learning import COMPARED, installed, skipped
from .report import Cell, Row, Table, spread

SIZES = {"vocabulary": 256, "width": 128, "layers": 4, "heads": 4, "key_heads": 2}
CONTEXT, BATCH, UPDATES, CHARACTERS = 256, 8, 50, 1_000_000
AGREEMENT = 1e-2  # of the losses, relative: after so many updates rounding has grown
TIME, BYTES, LOSS = "time per update, ms", "temp bytes, MB", "loss after the updates"
COLUMNS = (TIME, BYTES, LOSS, COMPARED)
PEER = "Flax NNX + optax, jax.grad"


def step_of(value_and_grad: Callable[..., Any], optimizer: Any) -> Callable[..., Any]:
    """An update as one function of parameters, the optimiser's state, and windows."""

    def step(params: Any, memory: Any, windows: Any) -> Any:
        loss, grads = value_and_grad(params, windows)
        updates, memory = optimizer.update(grads, memory, params)
        return optax.apply_updates(params, updates), memory, loss

    return step


def in_flax(params: Any) -> tuple[Callable[..., Any], Any]:
    """The same network as a module of NNX, written as its tutorials write one: its loss, and its state."""
    from flax import nnx

    width, heads, groups = SIZES["width"], SIZES["heads"], SIZES["key_heads"]
    size, hidden = width // heads, params["blocks"]["up"]["kernel"].shape[-1]
    linear = functools.partial(nnx.Linear, use_bias=False)

    def rotated(x: Any) -> Any:
        half = x.shape[-1] // 2
        angle = jnp.arange(x.shape[1])[:, None] * 10_000.0 ** (-jnp.arange(half) / half)
        cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
        a, b = x[..., :half], x[..., half:]
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    class Block(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.attention_norm, self.mlp_norm = nnx.RMSNorm(width, rngs=rngs), nnx.RMSNorm(width, rngs=rngs)
            self.query, self.out = linear(width, width, rngs=rngs), linear(width, width, rngs=rngs)
            self.key = linear(width, groups * size, rngs=rngs)
            self.value = linear(width, groups * size, rngs=rngs)
            self.gate, self.up = linear(width, hidden, rngs=rngs), linear(width, hidden, rngs=rngs)
            self.down = linear(hidden, width, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            y = self.attention_norm(x)
            q, k, v = (f(y).reshape(*y.shape[:2], -1, size) for f in (self.query, self.key, self.value))
            y = jax.nn.dot_product_attention(rotated(q), rotated(k), v, is_causal=True)
            x = x + self.out(y.reshape(x.shape))
            y = self.mlp_norm(x)
            return x + self.down(nnx.swish(self.gate(y)) * self.up(y))

    class Transformer(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.embedding = nnx.Embed(SIZES["vocabulary"], width, rngs=rngs)
            self.blocks = nnx.List([Block(rngs) for _ in range(SIZES["layers"])])
            self.norm = nnx.RMSNorm(width, rngs=rngs)

        def __call__(self, tokens: Any) -> Any:
            x = self.embedding(tokens) * math.sqrt(width)
            for block in self.blocks:
                x = block(x)
            return self.embedding.attend(self.norm(x))

    net = Transformer(nnx.Rngs(0))
    net.embedding.embedding = nnx.Param(params["embedding"]["kernel"])
    net.norm.scale = nnx.Param(params["norm"]["scale"])
    for name, layer in params["blocks"].items():
        ((leaf, stacked),) = layer.items()
        for block, array in zip(net.blocks, stacked, strict=True):
            setattr(getattr(block, name), leaf, nnx.Param(array))
    definition, state = nnx.split(net)

    def loss(state: Any, windows: Any) -> Any:
        logits = nnx.merge(definition, state)(windows[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    return loss, state


def learn(pairs: int) -> Iterator[Row]:
    """Ours first; the others beside it."""
    net = bp.nets.transformer(**SIZES)
    text = bp.data.read_corpus(limit=CHARACTERS)
    stream = language.batches(text.train, CONTEXT, BATCH, seed=0)
    windows = [jnp.asarray(next(stream)) for _ in range(UPDATES)]
    params = jax.jit(net.init)(jax.random.key(0), windows[0][:, :-1])
    loss = language.language(net)
    sides: dict[str, tuple[Any, Any]] = {
        "funcbp": (bp.value_and_grad(loss), params),
        "funcbp's model, jax.grad": (jax.value_and_grad(loss), params),
    }
    if installed("flax"):
        flax_loss, state = in_flax(params)
        sides[PEER] = jax.value_and_grad(flax_loss), state
    optimizer = language.adamw(0.003, UPDATES, UPDATES // 10, decay=0.0, clip=1.0)  # decay: the masks go by name
    compiled, run, losses = {}, {}, {}
    for name, (gradient, begin) in sides.items():
        memory = optimizer.init(begin)
        compiled[name] = jax.jit(step_of(gradient, optimizer)).lower(begin, memory, windows[0]).compile()
        run[name] = functools.partial(compiled[name], begin, memory, windows[0])
        for batch in windows:
            begin, memory, last = compiled[name](begin, memory, batch)
        losses[name] = float(last)
    title = f"{SIZES['layers']} blocks of {SIZES['width']}, {BATCH} windows of {CONTEXT}, {UPDATES} updates"
    for name in sides:
        size = compiled[name].memory_analysis().temp_size_in_bytes / 1e6
        cells = {BYTES: Cell(size), LOSS: Cell(losses[name])}
        if name == "funcbp":
            cells[TIME] = Cell(1e3 * measure.alone(run[name]))
        else:
            times = measure.take_turns(run["funcbp"], run[name], pairs)
            cells |= {TIME: Cell(1e3 * np.median(times.theirs)), COMPARED: spread(times.ratios)}
        apart = abs(losses[name] / losses["funcbp"] - 1)
        yield Row(f"{title}: {name}", cells, refused=not apart <= AGREEMENT)
    if PEER not in sides:
        yield skipped(f"{title}: {PEER}", "flax")


def run(pairs: int, only: Collection[str] = ()) -> Table:
    """Measure.

    Args:
        pairs: how often two sides are timed against each other.
        only: TEXT, or nothing, to measure.
    """
    rows = []
    if not only or "TEXT" in only:
        print("TEXT ...", file=sys.stderr, flush=True)
        rows = list(learn(pairs))
    return Table("A language model: our time over theirs", COLUMNS, rows)
