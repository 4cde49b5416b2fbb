"""A language model: what it is to do, what it learns from, and what is looked at while it learns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import P, lax
from jax.sharding import Mesh, NamedSharding

from ... import credit
from ...autodiff.transformations import Backward
from ...inspection import cotangents
from ...jaxpr.types import PyTree, Value
from ...per_example import noise_scale
from .. import data, ops
from ..nets import Net
from .layout import batch_spec, path_of

Loss = Callable[[PyTree, jax.Array], jax.Array]
CREDIT = ("feedback-alignment", "direct-feedback-alignment")


def language(net: Net) -> Loss:
    """The loss of a language model: how surprised it is by each next token, in nats, on average.

    Args:
        net: a network from tokens (batch, t) to logits (batch, t, vocabulary).

    Returns:
        `loss(params, windows) -> scalar`, for tokens of shape (batch, t + 1).
    """

    def loss(params: PyTree, windows: jax.Array) -> jax.Array:
        logits = net.apply(params, windows[:, :-1])
        return jnp.mean(ops.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]))

    return loss


def bits_per_byte(nats: Value, windows: np.ndarray, tokens: data.Tokens) -> Value:
    """The loss on these windows as bits for each byte of the text, which does not depend on how it is cut."""
    told = np.asarray(windows)[:, 1:]
    return nats * told.size / (math.log(2) * int(tokens.lengths[told].sum()))


def adamw(
    rate: float, updates: int, warm_up: int, decay: float, clip: float, accumulate: int = 1
) -> optax.GradientTransformation:
    """AdamW as language models are trained: a linear warm-up, then half a cosine to 0; gradients are clipped.

    Args:
        rate: the largest learning rate.
        updates: how many there will be.
        warm_up: how many of them until the largest rate.
        decay: of the kernels, not of the scales; times the rate.
        clip: the largest norm of a gradient.
        accumulate: how many batches make an update.
    """
    schedule = optax.warmup_cosine_decay_schedule(rate / max(warm_up, 1), rate, warm_up, max(updates, warm_up + 1))
    kernels = lambda params: jax.tree.map_with_path(lambda path, _: path_of(path).endswith("kernel"), params)
    step = optax.adamw(schedule, b2=0.99, weight_decay=decay, mask=kernels)
    chain = optax.chain(optax.clip_by_global_norm(clip), step)
    return optax.MultiSteps(chain, accumulate) if accumulate > 1 else chain


# --- what it learns from ----------------------------------------------------------------------------------------------


def batches(tokens: np.ndarray, context: int, size: int, seed: int, mesh: Mesh | None = None) -> Iterator[np.ndarray]:
    """Windows of a text, drawn anywhere in it, without an end: the same for the same seed.

    Args:
        tokens: shape (tokens,).
        context: how many tokens are read; a window has one more.
        size: windows in a batch.
        seed: of the draw.
        mesh: the devices of several processes: each of these gets its rows of the batch.
    """
    windows, rows = _windows(tokens, context, 1), slice(None)
    if mesh is not None and jax.process_count() > 1:
        places = NamedSharding(mesh, batch_spec(mesh)).addressable_devices_indices_map((size,))
        mine = [place[0].indices(size) for place in places.values() if place]
        rows = slice(min(start for start, _, _ in mine), max(stop for _, stop, _ in mine))
    for number in itertools.count():
        starts = np.random.default_rng([seed, number]).integers(0, len(windows), size)
        yield windows[starts[rows]]


def held_out(tokens: np.ndarray, context: int, count: int) -> np.ndarray:
    """At most so many windows without overlap, evenly over a text."""
    windows = _windows(tokens, context, context + 1)
    return windows[np.linspace(0, len(windows) - 1, min(count, len(windows))).round().astype(int)]


def _windows(tokens: np.ndarray, context: int, stride: int) -> np.ndarray:
    if len(tokens) <= context:
        raise data.DataError(
            f"A window has {context} tokens and one more to tell, and a part of the text has {len(tokens)}: give more "
            "text, or a shorter context."
        )
    return np.lib.stride_tricks.sliding_window_view(tokens, context + 1)[::stride]


# --- what is looked at while it learns --------------------------------------------------------------------------------


def sampler(net: Net, prompt: np.ndarray, length: int, context: int, seed: int, temperature: float = 0.8) -> Loss:
    """What the network writes after a prompt, as a score of `fit`: `sample(params, _)`, int32, shape (length,).

    Tokens are drawn from softmax(logits / temperature); at 0 each is the likeliest.
    """
    reads = min(context, len(prompt) + length)
    begun = jnp.asarray(np.concatenate([prompt[-context:], np.zeros(length)]), jnp.int32)
    first = len(begun) - length

    def sample(params: PyTree, _: object) -> jax.Array:
        def write(i: int, text: jax.Array) -> jax.Array:
            start = jnp.maximum(i - reads, 0)
            logits = net.apply(params, lax.dynamic_slice(text, (start,), (reads,)))[i - 1 - start]
            token = jnp.argmax(logits)
            if temperature:
                key = jax.random.fold_in(jax.random.key(seed), i)
                token = jax.random.categorical(key, logits / jnp.asarray(temperature, logits.dtype))
            return text.at[i].set(token.astype(text.dtype))

        return lax.fori_loop(first, len(begun), write, begun)[first:]

    return sample


def noise(loss: Loss, size: int) -> Loss:
    """The gradient noise scale in windows, as a score of `fit`, by so many held-out ones."""
    measured = noise_scale(lambda params, window: loss(params, window[None]))
    return lambda params, windows: measured(params, windows[:size]).scale


def cotangent_norms(loss: Loss, size: int, backward: Backward | None = None) -> Loss:
    """The norms of the cotangents of what leaves the embedding and each block, as a score of `fit`."""
    measured = cotangents(loss, names=("embedding", "block"), reduce=jnp.linalg.norm, backward=backward)

    def norms(params: PyTree, windows: jax.Array) -> jax.Array:
        _, _, found = measured(params, windows[:size])
        return jnp.concatenate([found["embedding"][None], found["block"]])

    return norms


# --- other ways to go backward, and many devices ----------------------------------------------------------------------


def other_backward(scheme: str, key: jax.Array, params: PyTree) -> Backward:
    """A scheme of `credit` for a transformer, whose embedding learns only where it makes the logits.

    Feedback alignment: every kernel has fixed random feedback weights, the embedding too. Direct feedback alignment:
    what the norms hand out, to attention, MLP and logits, hears of the logits' cotangent through one fixed random
    matrix. From there it goes back through the norm to the attention or MLP before it, in which cotangents are true,
    and no further: not along the stream. Through the norm it must: what adds to the stream along a fixed direction
    makes it longer without an end, and the norm makes a network deaf whose stream is long. Where the embedding reads
    the tokens, it would be pushed about at random, and its other use spoilt: nothing is told there.
    """
    quiet = dict.fromkeys(("embedding", "attention_skip", "mlp_skip"), lambda ct, _: jnp.zeros_like(ct))
    embedding = params["embedding"]["kernel"]
    if scheme == "feedback-alignment":
        drawn = credit.feedback_weights(key, params)
        only_kernels = lambda path, w: w if path[-1].key == "kernel" else None
        feedback = jax.tree.map_with_path(only_kernels, drawn, is_leaf=lambda w: w is None)
        return Backward(feedback=feedback, edits={"embedding": quiet["embedding"]})
    told = jax.random.normal(key, embedding.shape, embedding.dtype) / math.sqrt(embedding.shape[1])
    heard = dict.fromkeys(("attention_input", "mlp_input", "norm"), told)
    return Backward(edits=quiet) | credit.direct_feedback(heard, error="logits")


def transformer_layout(path: str, shape: tuple[int, ...], axes: Mapping[str, int]) -> P:
    """Divide the units between two kernels over `tensor`, and the longest other axis over `fsdp`.

    Args:
        path: of the parameter.
        shape: of the parameter.
        axes: the sizes of the mesh's axes by name.
    """
    places: list[str | None] = [None] * len(shape)
    layer, leaf = path.split("/")[-2:]
    if "tensor" in axes and leaf == "kernel":
        place = len(shape) - (2 if layer in ("out", "down", "embedding") else 1)
        if shape[place] % axes["tensor"] == 0:
            places[place] = "tensor"
    if "fsdp" in axes:
        free = [i for i, n in enumerate(shape) if places[i] is None and n % axes["fsdp"] == 0]
        if free:
            places[max(free, key=lambda i: shape[i])] = "fsdp"
    return P(*places)
