"""The programs that are measured: plain JAX on seeded random float32 data.

A workload's `program(api)` makes the function to run, with `api` one of `funcbp` and `jax`. Every call makes it out of
new function objects, so that nothing traced before is found in a cache.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name


class Workload(NamedTuple):
    """A program and the arguments it is run with."""

    program: Callable[[Any], Callable[..., Any]]
    args: tuple[Any, ...]


def gradient_of(make_loss: Callable[[], Callable[..., Any]], *args: Any) -> Workload:
    """The workload `value_and_grad(loss)(*args)`."""
    return Workload(lambda api: api.value_and_grad(make_loss()), args)


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)


def dense_layers(rng: np.random.Generator, sizes: Sequence[int]) -> list[dict[str, jax.Array]]:
    """Kernels of unit gain and zero biases."""
    return [
        {"kernel": normal(rng, i, o, scale=i**-0.5), "bias": jnp.zeros(o, jnp.float32)}
        for i, o in itertools.pairwise(sizes)
    ]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1))


def labels(rng: np.random.Generator, n: int, classes: int) -> jax.Array:
    return jnp.asarray(rng.integers(classes, size=n), jnp.int32)


def mlp(sizes: Sequence[int] = (784, 1000, 500, 100, 10), batch: int = 128) -> Workload:
    """W1: a classifier with relu layers."""
    rng = np.random.default_rng(1)

    def make_loss():
        def loss(params, x, y):
            for layer in params[:-1]:
                x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
            return cross_entropy(x @ params[-1]["kernel"] + params[-1]["bias"], y)

        return loss

    x, y = normal(rng, batch, sizes[0]), labels(rng, batch, sizes[-1])
    return gradient_of(make_loss, dense_layers(rng, sizes), x, y)


def convnet(
    size: int = 32, channels: Sequence[int] = (3, 32, 64, 64), dense: Sequence[int] = (256, 64, 10), batch: int = 64
) -> Workload:
    """W2: three convolutions, each with relu and 2x2 max pooling, then three dense layers."""
    rng = np.random.default_rng(2)

    def make_loss():
        def loss(params, x, y):
            for layer in params["conv"]:
                x = lax.conv_general_dilated(
                    x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                x = jax.nn.relu(x + layer["bias"])
                x = lax.reduce_window(x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
            x = x.reshape(len(x), -1)
            for layer in params["dense"][:-1]:
                x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
            return cross_entropy(x @ params["dense"][-1]["kernel"] + params["dense"][-1]["bias"], y)

        return loss

    conv = [
        {"kernel": normal(rng, 3, 3, i, o, scale=(9 * i) ** -0.5), "bias": jnp.zeros(o, jnp.float32)}
        for i, o in itertools.pairwise(channels)
    ]
    flat = (size // 2 ** len(conv)) ** 2 * channels[-1]
    params = {"conv": conv, "dense": dense_layers(rng, (flat, *dense))}
    return gradient_of(make_loss, params, normal(rng, batch, size, size, channels[0]), labels(rng, batch, dense[-1]))


def transformer_loss(
    d: int = 128,
    time: int = 128,
    batch: int = 8,
    heads: int = 4,
    name: Callable[[Any, str], Any] = checkpoint_name,
    wrap: Callable[[Any], Any] = lambda block: block,
    scan: Callable[..., Any] = lax.scan,
    **_: int,
) -> Callable[..., Any]:
    """W4's loss; `name(x, "name")` is called on what one would see or keep, `wrap` is applied to the block."""

    def norm(x, scale):
        centred = x - x.mean(-1, keepdims=True)
        return centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale

    def split(a):
        return a.reshape(batch, time, heads, d // heads).swapaxes(1, 2)

    def block(x, p):
        q, k, v = map(split, jnp.split(name(norm(x, p["norm_0"]) @ p["qkv"], "qkv"), 3, -1))
        scores = q @ k.swapaxes(-1, -2) / (d // heads) ** 0.5
        weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((time, time), bool)), scores, -1e9))
        attended = name((weights @ v).swapaxes(1, 2).reshape(batch, time, d), "attended")
        x = x + attended @ p["out"]
        return name(x + jax.nn.gelu(name(norm(x, p["norm_1"]) @ p["up"], "up")) @ p["down"], "block"), None

    def loss(params, tokens):
        x, _ = scan(wrap(block), params["embedding"][tokens], params["blocks"])
        return cross_entropy(name(x @ params["embedding"].T, "logits"), jnp.roll(tokens, -1, 1))

    return loss


def transformer(
    d: int = 128,
    time: int = 128,
    batch: int = 8,
    blocks: int = 4,
    heads: int = 4,
    vocabulary: int = 512,
    wrap: Callable[[Any], Any] = lambda block: block,
    in_python: bool = False,
    narrow: bool = False,
) -> Workload:
    """W4: a language model, a scan over pre-norm blocks with causal attention, embedding and read-out tied.

    `wrap` is applied to the block: a `jax.checkpoint`. Its names are `qkv`, `attended` and `up`. `in_python`: they are
    in a Python loop, each with parameters of its own. `narrow`: all but parameters and logits is bfloat16.
    """
    rng = np.random.default_rng(4)

    def make_loss():
        scan = _unrolled if in_python else lax.scan
        if not narrow:
            return transformer_loss(d, time, batch, heads, wrap=wrap, scan=scan)
        wide_logits = lambda x, name: x.astype(jnp.float32) if name == "logits" else x
        loss = transformer_loss(d, time, batch, heads, wide_logits, wrap, scan)
        return lambda params, tokens: loss(jax.tree.map(lambda p: p.astype(jnp.bfloat16), params), tokens)

    params = {
        "embedding": normal(rng, vocabulary, d, scale=0.05),
        "blocks": {
            "norm_0": jnp.ones((blocks, d), jnp.float32),
            "qkv": normal(rng, blocks, d, 3 * d, scale=0.05),
            "out": normal(rng, blocks, d, d, scale=0.05),
            "norm_1": jnp.ones((blocks, d), jnp.float32),
            "up": normal(rng, blocks, d, 4 * d, scale=0.05),
            "down": normal(rng, blocks, 4 * d, d, scale=0.05),
        },
    }
    if in_python:
        params["blocks"] = [jax.tree.map(operator.itemgetter(i), params["blocks"]) for i in range(blocks)]
    tokens = jnp.asarray(rng.integers(vocabulary, size=(batch, time)), jnp.int32)
    return gradient_of(make_loss, params, tokens)


def _unrolled(step: Callable[..., Any], carry: Any, xs: Any) -> tuple[Any, None]:
    for x in xs:
        carry, _ = step(carry, x)
    return carry, None


def lstm(
    time: int = 500,
    batch: int = 16,
    units: int = 128,
    wrap: Callable[[Any], Any] = lambda step: step,
    scan: Callable[..., Any] = lax.scan,
    apart: bool = False,
) -> Workload:
    """W6: an LSTM over time; the loss is the mean square of its last output.

    `wrap` is applied to the step: a `jax.checkpoint`. Its name is `net`. `apart`: whether the products of the input and
    of the state with the weights are two.
    """
    rng = np.random.default_rng(6)

    def make_loss():
        def loss(params, xs):
            def step(carry, x):
                h, c = carry
                if apart:
                    net = x @ params["kernel"][:units] + h @ params["kernel"][units:]
                else:
                    net = jnp.concatenate([x, h], -1) @ params["kernel"]
                net = checkpoint_name(net + params["bias"], "net")
                i, f, o, g = jnp.split(net, 4, -1)
                c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
                h = jax.nn.sigmoid(o) * jnp.tanh(c)
                return (h, c), None

            zeros = jnp.zeros((batch, units), xs.dtype)
            (h, _), _ = scan(wrap(step), (zeros, zeros), xs)
            return jnp.mean(h**2)

        return loss

    kernel = normal(rng, 2 * units, 4 * units, scale=0.05)
    params = {"kernel": kernel, "bias": jnp.zeros(4 * units, jnp.float32)}
    return gradient_of(make_loss, params, normal(rng, time, batch, units))


def deep_mlp(layers: int = 300, units: int = 16, batch: int = 4) -> Workload:
    """W11: many small layers in Python."""
    return mlp((units,) * (layers + 1), batch)


def unrolled_lstm(time: int = 100, batch: int = 4, units: int = 16) -> Workload:
    """W12: W6 with its loop over time in Python."""
    return lstm(time, batch, units, scan=_unrolled)


def jitted_layers(calls: int = 64, units: int = 8, batch: int = 4) -> Workload:
    """W13: one jitted layer, called many times with other weights."""
    rng = np.random.default_rng(13)

    def make_loss():
        @jax.jit
        def layer(w, x):
            for _ in range(6):
                x = x + jax.nn.gelu((x - x.mean(-1, keepdims=True)) @ w) * 0.1
                x = x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True) + 1e-3)
            return x

        def loss(kernels, x):
            for w in kernels:
                x = layer(w, x)
            return jnp.sum(x)

        return loss

    kernels = [normal(rng, units, units, scale=units**-0.5) for _ in range(calls)]
    return gradient_of(make_loss, kernels, normal(rng, batch, units))


def gpt_in_flax(blocks: int = 12, d: int = 64, heads: int = 4, time: int = 32, vocabulary: int = 128) -> Workload:
    """W14: GPT-2 as one writes it in Flax, its blocks in Python; `GPT-2` is 12 blocks of 768 units."""
    import flax.linen as nn

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(heads, qkv_features=d)(y, y, mask=mask)
            return x + nn.Dense(d)(nn.gelu(nn.Dense(4 * d)(nn.LayerNorm()(x))))

    class GPT(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            embedding = nn.Embed(vocabulary, d)
            x = embedding(tokens) + nn.Embed(time, d)(jnp.arange(time))
            for _ in range(blocks):
                x = Block()(x, nn.make_causal_mask(tokens))
            return embedding.attend(nn.LayerNorm()(x))

    tokens = jnp.asarray(np.random.default_rng(14).integers(vocabulary, size=(2, time)), jnp.int32)
    params = GPT().init(jax.random.key(14), tokens)
    make_loss = lambda: lambda params, tokens: cross_entropy(GPT().apply(params, tokens), jnp.roll(tokens, -1, 1))
    return gradient_of(make_loss, params, tokens)


# Mazur, "A Step by Step Backpropagation Example" (2015): weights of two layers, the biases stay fixed.
WEIGHTS = ([[0.15, 0.25], [0.20, 0.30]], [[0.40, 0.50], [0.45, 0.55]])
BIASES = (0.35, 0.60)
INPUT, TARGET = [0.05, 0.10], [0.01, 0.99]
LEARNING_RATE = 0.5


def worked_example(updates: int = 10_000) -> Workload:
    """W10: the 2-2-2 network of logistic units, `updates` steps of gradient descent in one scan."""

    def program(api):
        def loss(weights, x, target):
            for w, b in zip(weights, BIASES, strict=True):
                x = jax.nn.sigmoid(x @ w + b)
            return 0.5 * jnp.sum((target - x) ** 2)

        def train(weights, x, target):
            def step(weights, _):
                grads = api.grad(loss)(weights, x, target)
                return jax.tree.map(lambda w, g: w - LEARNING_RATE * g, weights, grads), None

            return lax.scan(step, weights, length=updates)[0]

        return train

    weights = tuple(jnp.asarray(w, jnp.float32) for w in WEIGHTS)
    data = (jnp.asarray(v, jnp.float32) for v in (INPUT, TARGET))
    return Workload(program, (weights, *data))


def worked_example_in_torch(updates: int = 10_000) -> Callable[[], Any]:
    """W10 as a loop in PyTorch, the usual way: a function that runs it."""
    import torch

    def run():
        weights = [torch.tensor(w, requires_grad=True) for w in WEIGHTS]
        data, target = torch.tensor(INPUT), torch.tensor(TARGET)
        optimiser = torch.optim.SGD(weights, lr=LEARNING_RATE)
        for _ in range(updates):
            x = data
            for w, b in zip(weights, BIASES, strict=True):
                x = torch.sigmoid(x @ w + b)
            optimiser.zero_grad()
            (0.5 * ((target - x) ** 2).sum()).backward()
            optimiser.step()
        return weights

    return run
