"""Losses of the usual kinds of networks, on shapes alone: what a prediction has to hold for.

Each makes a loss and the shapes of its arguments, the parameters first. `n` is told each width, batch and length, and
returns how large it is to be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .workloads import Workload, cross_entropy, gradient_of

Size = Callable[[int], int]
Loss = tuple[Any, ...]  # the loss, and the shapes of its arguments


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def i32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def layer_norm(x: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, dilation: int = 1) -> jax.Array:
    """A convolution over all axes but the first and the last."""
    numbers = {1: ("NHC", "HIO", "NHC"), 2: ("NHWC", "HWIO", "NHWC")}[x.ndim - 2]
    strides, dilations = (stride,) * (x.ndim - 2), (dilation,) * (x.ndim - 2)
    return lax.conv_general_dilated(x, kernel, strides, "SAME", rhs_dilation=dilations, dimension_numbers=numbers)


def batch_norm(x: jax.Array) -> jax.Array:
    axes = tuple(range(x.ndim - 1))
    return (x - x.mean(axes)) * lax.rsqrt(x.var(axes) + 1e-5)


def group_norm(x: jax.Array, groups: int) -> jax.Array:
    y = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    return ((y - y.mean((1, 3), keepdims=True)) * lax.rsqrt(y.var((1, 3), keepdims=True) + 1e-5)).reshape(x.shape)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool = False) -> jax.Array:
    """Attention of several heads: b t h d."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e9)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)


def heads_of(x: jax.Array, heads: int) -> jax.Array:
    return x.reshape(*x.shape[:2], heads, -1)


def gated_layers(n: Size, units: int, layers: int = 3) -> Loss:
    d, m = n(256), n(units)

    def loss(w, x):
        for a, b, c in w:
            x = x + (jax.nn.silu(x @ a) * (x @ b)) @ c
        return jnp.mean(x**2)

    return loss, [(f32(d, m), f32(d, m), f32(m, d))] * layers, f32(n(512), d)


def gates_alone(n: Size) -> Loss:
    d = n(256)

    def loss(w, x):
        for a, b in w:
            x = jax.nn.sigmoid(x @ a) * (x @ b)
        return jnp.mean(x**2)

    return loss, [(f32(d, d), f32(d, d))] * 3, f32(n(512), d)


def norm_layers(n: Size, activation: Callable[[Any], Any] = jax.nn.gelu) -> Loss:
    d = n(256)

    def loss(w, x):
        for kernel, bias in w:
            x = x + activation(layer_norm(x) @ kernel + bias)
        return jnp.mean(x**2)

    return loss, [(f32(d, d), f32(d))] * 4, f32(n(1024), d)


def residual_layers(n: Size) -> Loss:
    d, batch = n(128), n(512)

    def loss(w, x, y):
        for a, b in w:
            x = x + jax.nn.relu(x @ a) @ b
        return jnp.mean((x - y) ** 2)

    return loss, [(f32(d, 4 * d), f32(4 * d, d))] * 4, f32(batch, d), f32(batch, d)


def dropout_layers(n: Size) -> Loss:
    d = n(256)

    def loss(w, x, key):
        for i, kernel in enumerate(w):
            kept = jax.random.bernoulli(jax.random.fold_in(key, i), 0.9, x.shape[:1] + kernel.shape[1:])
            x = jnp.where(kept, jax.nn.relu(x @ kernel) / 0.9, 0.0)
        return jnp.mean(x**2)

    return loss, [f32(d, d)] * 4, f32(n(512), d), jax.eval_shape(lambda: jax.random.key(0))


def mixing_layers(n: Size) -> Loss:
    t, d = n(64), n(128)

    def loss(w, x):
        for a, b, c, e in w:
            x = x + jnp.swapaxes(jax.nn.gelu(jnp.swapaxes(layer_norm(x), 1, 2) @ a) @ b, 1, 2)
            x = x + jax.nn.gelu(layer_norm(x) @ c) @ e
        return jnp.mean(x**2)

    return loss, [(f32(t, 2 * t), f32(2 * t, t), f32(d, 4 * d), f32(4 * d, d))] * 2, f32(n(16), t, d)


def narrow_layers(n: Size) -> Loss:
    """Parameters in float32, all else in bfloat16."""
    d, classes = n(512), n(1000)

    def loss(w, x, y):
        for kernel in w[:-1]:
            x = jax.nn.relu(x.astype(jnp.bfloat16) @ kernel.astype(jnp.bfloat16))
        return cross_entropy((x @ w[-1].astype(jnp.bfloat16)).astype(jnp.float32), y)

    return loss, [*[f32(d, d)] * 3, f32(d, classes)], f32(n(256), d), i32(n(256))


def attention(n: Size, layers: int, heads: int = 4) -> Loss:
    d = n(128)

    def loss(w, x):
        for q, k, v, out in w:
            x = x + attend(*(heads_of(x @ p, heads) for p in (q, k, v))).reshape(x.shape) @ out
        return jnp.mean(x**2)

    return loss, [(f32(d, d),) * 4] * layers, f32(n(4), n(256), d)


def one_key_attention(n: Size, heads: int = 4) -> Loss:
    """All heads share keys and values."""
    d = n(128)

    def loss(w, x):
        q, k, v, out = w
        q, k, v = heads_of(x @ q, heads), x @ k, x @ v
        scores = jnp.einsum("bqhd,bkd->bhqk", q, k) / k.shape[-1] ** 0.5
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
        y = jnp.einsum("bhqk,bkd->bqhd", jax.nn.softmax(scores), v).reshape(x.shape) @ out
        return jnp.mean((x + y) ** 2)

    return loss, (f32(d, d), f32(d, d // heads), f32(d, d // heads), f32(d, d)), f32(n(8), n(128), d)


def linear_attention(n: Size, heads: int = 4) -> Loss:
    d = n(128)

    def loss(w, x):
        q, k, v, out = w
        q, k, v = (heads_of(x @ p, heads) for p in (q, k, v))
        q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
        sums = jnp.einsum("bthd,bthe->bhde", k, v)
        y = jnp.einsum("bthd,bhde->bthe", q, sums) / jnp.einsum("bthd,bhd->bth", q, k.sum(1))[..., None]
        return jnp.mean((x + y.reshape(x.shape) @ out) ** 2)

    return loss, (f32(d, d),) * 4, f32(n(8), n(256), d)


def cross_attention(n: Size, heads: int = 4) -> Loss:
    d = n(128)

    def loss(w, x, memory):
        q, k, v, out, up, down = w
        x = x + attend(heads_of(x @ q, heads), *(heads_of(memory @ p, heads) for p in (k, v))).reshape(x.shape) @ out
        return jnp.mean((x + jax.nn.gelu(layer_norm(x) @ up) @ down) ** 2)

    return loss, (*[f32(d, d)] * 4, f32(d, 4 * d), f32(4 * d, d)), f32(n(8), n(64), d), f32(n(8), n(256), d)


def vision_transformer(n: Size, heads: int = 4, patch: int = 4) -> Loss:
    d, size = n(128), n(64)

    def loss(w, images, y):
        x = conv(images, w["patches"], patch)
        x = x.reshape(len(x), -1, d) + w["positions"]
        for p in w["blocks"]:
            q, k, v = jnp.split(layer_norm(x) @ p["qkv"], 3, -1)
            x = x + attend(*(heads_of(a, heads) for a in (q, k, v))).reshape(x.shape) @ p["out"]
            x = x + jax.nn.gelu(layer_norm(x) @ p["up"]) @ p["down"]
        return cross_entropy(x.mean(1) @ w["head"], y)

    block = {"qkv": f32(d, 3 * d), "out": f32(d, d), "up": f32(d, 4 * d), "down": f32(4 * d, d)}
    params = {"patches": f32(patch, patch, 3, d), "positions": f32((size // patch) ** 2, d), "blocks": [block] * 2}
    return loss, params | {"head": f32(d, 10)}, f32(n(8), size, size, 3), i32(n(8))


def language_model(n: Size, words: int = 1000) -> Loss:
    d, words = n(64), n(words)

    def loss(w, tokens):
        x = w["embedding"][tokens]
        x = x + jax.nn.gelu(layer_norm(x) @ w["up"]) @ w["down"]
        return cross_entropy(layer_norm(x) @ w["embedding"].T, jnp.roll(tokens, -1, 1))

    return loss, {"embedding": f32(words, d), "up": f32(d, 4 * d), "down": f32(4 * d, d)}, i32(n(8), n(128))


def contrastive(n: Size) -> Loss:
    """Two encoders, each example of the one against all of the other."""
    d, batch = n(256), n(512)

    def encoded(w, x):
        x = jax.nn.relu(x @ w[0]) @ w[1]
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def loss(w, x, y):
        scores = encoded(w[0], x) @ encoded(w[1], y).T * jnp.exp(w[2])
        at = jnp.arange(len(scores))
        return cross_entropy(scores, at) + cross_entropy(scores.T, at)

    encoder = f32(d, d), f32(d, d)
    return loss, (encoder, encoder, f32()), f32(batch, d), f32(batch, d)


def experts(n: Size, count: int = 4) -> Loss:
    d = n(128)

    def loss(w, x):
        gate, a, b = w
        y = jnp.einsum("etf,efd->etd", jax.nn.gelu(jnp.einsum("td,edf->etf", x, a)), b)
        return jnp.mean(jnp.einsum("te,etd->td", jax.nn.softmax(x @ gate), y) ** 2)

    return loss, (f32(d, count), f32(count, d, 2 * d), f32(count, 2 * d, d)), f32(n(512), d)


def routed_experts(n: Size, count: int = 4) -> Loss:
    """Each token goes to one expert, with room for as many as its share."""
    d, tokens = n(128), n(512)
    room = tokens // count

    def loss(w, x):
        gate, a, b = w
        weights = jax.nn.softmax(x @ gate)
        expert = jnp.argmax(weights, -1)
        one_hot = jax.nn.one_hot(expert, count)
        place = jnp.sum((jnp.cumsum(one_hot, 0) - 1) * one_hot, -1).astype(jnp.int32)
        sent = one_hot[..., None] * jax.nn.one_hot(place, room)[:, None]
        y = jnp.einsum("etf,efd->etd", jax.nn.relu(jnp.einsum("nd,net->etd", x, sent) @ a), b)
        return jnp.mean((x + jnp.einsum("etd,net,ne->nd", y, sent, weights)) ** 2)

    return loss, (f32(d, count), f32(count, d, 2 * d), f32(count, 2 * d, d)), f32(tokens, d)


def convolutions(n: Size, norm: Callable[[Any], Any] = batch_norm) -> Loss:
    c = 4 * n(8)

    def loss(w, x):
        for kernel in w:
            x = jax.nn.relu(norm(conv(x, kernel)))
        return jnp.mean(x**2)

    return loss, [f32(3, 3, 3, c), f32(3, 3, c, c), f32(3, 3, c, c)], f32(n(16), n(32), n(32), 3)


def residual_convolutions(n: Size) -> Loss:
    c = n(32)

    def loss(w, x):
        x = conv(x, w["first"])
        for a, b in w["blocks"]:
            x = x + conv(jax.nn.relu(conv(jax.nn.relu(x), a)), b)
        return jnp.mean(x.mean((1, 2)) ** 2)

    params = {"first": f32(3, 3, 3, c), "blocks": [(f32(3, 3, c, c), f32(3, 3, c, c))] * 2}
    return loss, params, f32(n(16), n(32), n(32), 3)


def wave_net(n: Size, layers: int = 5) -> Loss:
    """Dilated convolutions over time, gated, their outputs summed."""
    c = n(32)

    def loss(w, x):
        skipped = 0.0
        for i, (a, b, out) in enumerate(w):
            gated = jnp.tanh(conv(x, a, dilation=2**i)) * jax.nn.sigmoid(conv(x, b, dilation=2**i))
            y = gated @ out
            x, skipped = x + y, skipped + y
        return jnp.mean(jax.nn.relu(skipped) ** 2)

    return loss, [(f32(2, c, c), f32(2, c, c), f32(c, c))] * layers, f32(n(8), n(1024), c)


def u_net(n: Size, method: str) -> Loss:
    c, size = n(16), n(64)

    def loss(w, x):
        skip = jax.nn.silu(conv(x, w[0]))
        x = lax.reduce_window(skip, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = jax.nn.silu(conv(x, w[1]))
        x = jax.image.resize(x, (*skip.shape[:3], x.shape[3]), method)
        return jnp.mean(conv(jnp.concatenate([x, skip], -1), w[2]) ** 2)

    return loss, (f32(3, 3, 4, c), f32(3, 3, c, 2 * c), f32(3, 3, 3 * c, 4)), f32(n(8), size, size, 4)


def diffusion(n: Size, groups: int = 4, heads: int = 2) -> Loss:
    """A step of denoising: a U-net that is told the time, with group norms, attention at the bottom."""
    c, size = 4 * n(8), n(32)

    def block(p, x, time):
        y = conv(jax.nn.silu(group_norm(x, groups)), p["in"])
        y = y + (time @ p["time"])[:, None, None]
        return (x @ p["skip"] if "skip" in p else x) + conv(jax.nn.silu(group_norm(y, groups)), p["out"])

    def loss(w, images, noise, t):
        angles = t[:, None] * jnp.exp(-jnp.arange(c // 2) / c)
        time = jax.nn.silu(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1) @ w["time"])
        high = block(w["down"], conv(images * jnp.cos(t)[:, None, None, None] + noise, w["first"]), time)
        x = block(w["middle"], conv(high, w["narrower"], 2), time)
        y = x.reshape(len(x), -1, 2 * c)
        q, k, v = jnp.split(layer_norm(y) @ w["qkv"], 3, -1)
        x = x + attend(*(heads_of(a, heads) for a in (q, k, v))).reshape(x.shape)
        x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
        x = block(w["up"], jnp.concatenate([x, high], -1), time)
        return jnp.mean((conv(x, w["last"]) - noise) ** 2)

    kernel = lambda i, o: f32(3, 3, i, o)
    one = lambda i, o: {"in": kernel(i, o), "time": f32(c, o), "out": kernel(o, o)}
    params = {"time": f32(c, c), "first": kernel(3, c), "down": one(c, c), "narrower": kernel(c, 2 * c)}
    params |= {"middle": one(2 * c, 2 * c), "qkv": f32(2 * c, 6 * c), "last": kernel(c, 3)}
    params["up"] = one(3 * c, c) | {"skip": f32(3 * c, c)}
    images = f32(n(8), size, size, 3)
    return loss, params, images, images, f32(n(8))


def recurrent(n: Size, layers: int = 3) -> Loss:
    d, time, batch = n(64), n(100), n(32)

    def loss(w, xs):
        for a, b in w:
            step = lambda h, x, a=a, b=b: (jnp.tanh(x @ a + h @ b),) * 2
            _, xs = lax.scan(step, jnp.zeros(xs.shape[1:]), xs)
        return jnp.mean(xs**2)

    return loss, [(f32(d, d), f32(d, d))] * layers, f32(time, batch, d)


def gru(n: Size) -> Loss:
    d, time, batch = n(64), n(200), n(32)

    def loss(w, xs):
        def step(h, x):
            z, r = jnp.split(jax.nn.sigmoid(jnp.concatenate([x, h], -1) @ w["gates"]), 2, -1)
            new = jnp.tanh(jnp.concatenate([x, r * h], -1) @ w["new"])
            h = (1 - z) * h + z * new
            return h, h

        return jnp.mean(lax.scan(step, jnp.zeros((batch, d)), xs)[1] ** 2)

    return loss, {"gates": f32(2 * d, 2 * d), "new": f32(2 * d, d)}, f32(time, batch, d)


def both_ways(n: Size) -> Loss:
    """An LSTM each way over words, and a read-out at each word."""
    d, time, batch, words = n(64), n(64), n(16), n(512)

    def one_way(w, xs, reverse):
        def step(state, x):
            h, c = state
            i, f, o, g = jnp.split(jnp.concatenate([x, h], -1) @ w, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        return lax.scan(step, (jnp.zeros((batch, d)),) * 2, xs, reverse=reverse)[1]

    def loss(w, tokens, tags):
        xs = w["embedding"][tokens]
        hs = jnp.concatenate([one_way(w["there"], xs, False), one_way(w["back"], xs, True)], -1)
        return cross_entropy(hs @ w["tags"], tags)

    params = {"embedding": f32(words, d), "there": f32(2 * d, 4 * d), "back": f32(2 * d, 4 * d), "tags": f32(2 * d, 32)}
    return loss, params, i32(time, batch), i32(time, batch)


def state_space(n: Size) -> Loss:
    """A linear recurrence by `lax.associative_scan`, its decay made of the input."""
    d, time, batch = n(64), n(256), n(8)

    def loss(w, x):
        decay = jax.nn.sigmoid(x @ w["decay"])
        pairs = decay, (1 - decay) * (x @ w["in"])
        _, h = lax.associative_scan(lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), pairs, axis=1)
        return jnp.mean(((h * jax.nn.silu(x @ w["gate"])) @ w["out"]) ** 2)

    return loss, dict.fromkeys(("decay", "in", "gate", "out"), f32(d, d)), f32(batch, time, d)


def selective_scan(n: Size, states: int = 8) -> Loss:
    """The same by `lax.scan`, with several states for each unit."""
    d, time, batch = n(64), n(256), n(8)

    def loss(w, xs):
        def step(h, x):
            pace = jax.nn.softplus(x @ w["pace"])
            h = jnp.exp(-pace[..., None] * w["rates"]) * h + (pace * x)[..., None] * (x @ w["in"])[:, None]
            return h, jnp.einsum("bds,bs->bd", h, x @ w["out"])

        return jnp.mean(lax.scan(step, jnp.zeros((batch, d, states)), xs)[1] ** 2)

    params = {"pace": f32(d, d), "rates": f32(d, states), "in": f32(d, states), "out": f32(d, states)}
    return loss, params, f32(time, batch, d)


def runge_kutta(n: Size) -> Loss:
    d, batch = n(64), n(64)

    def loss(w, x):
        field = lambda x: jnp.tanh(x @ w[0]) @ w[1]

        def step(x, _):
            a = field(x)
            b = field(x + 0.05 * a)
            c = field(x + 0.05 * b)
            return x + 0.1 / 6 * (a + 2 * b + 2 * c + field(x + 0.1 * c)), None

        return jnp.mean(lax.scan(step, x, None, 100)[0] ** 2)

    return loss, (f32(d, 2 * d), f32(2 * d, d)), f32(batch, d)


def fixed_point(n: Size) -> Loss:
    d = n(128)

    def loss(w, x):
        step = lambda _, z: jnp.tanh(z @ w[0] + x @ w[1])
        return jnp.mean(lax.fori_loop(0, 30, step, jnp.zeros(x.shape)) ** 2)

    return loss, (f32(d, d), f32(d, d)), f32(n(128), d)


def nested_loops(n: Size) -> Loss:
    d = n(128)

    def loss(w, x):
        inner = lambda x, _: (jnp.tanh(x @ w), None)
        outer = lambda x, _: (lax.scan(inner, x, None, 20)[0], None)
        return jnp.mean(lax.scan(outer, x, None, 20)[0] ** 2)

    return loss, f32(d, d), f32(d, d)


def branches(n: Size) -> Loss:
    d = n(128)

    def loss(w, x):
        def step(x, i):
            return lax.cond(i % 2 == 0, lambda x: jnp.tanh(x @ w[0]), lambda x: jax.nn.relu(x @ w[1]), x), None

        return jnp.mean(lax.scan(step, x, jnp.arange(50))[0] ** 2)

    return loss, (f32(d, d), f32(d, d)), f32(d, d)


def flow(n: Size, layers: int = 4) -> Loss:
    """Affine couplings."""
    d, m, batch = n(64), n(256), n(512)

    def loss(w, x):
        volume = 0.0
        for a, b in w:
            left, right = jnp.split(x, 2, -1)
            scale, shift = jnp.split(jax.nn.relu(left @ a) @ b, 2, -1)
            scale = jnp.tanh(scale)
            x = jnp.concatenate([right * jnp.exp(scale) + shift, left], -1)
            volume = volume + scale.sum(-1)
        return jnp.mean(0.5 * jnp.sum(x**2, -1) - volume)

    return loss, [(f32(d // 2, m), f32(m, d))] * layers, f32(batch, d)


def autoencoder(n: Size) -> Loss:
    """Variational, with logits of black and white."""
    d, m, z, batch = n(784), n(256), n(32), n(256)

    def loss(w, x, noise):
        mean, spread = jnp.split(jax.nn.relu(x @ w[0]) @ w[1], 2, -1)
        logits = jax.nn.relu((mean + jnp.exp(spread) * noise) @ w[2]) @ w[3]
        likelihood = jnp.sum(jax.nn.softplus(logits) - x * logits, -1)
        return jnp.mean(likelihood + 0.5 * jnp.sum(mean**2 + jnp.exp(2 * spread) - 1 - 2 * spread, -1))

    return loss, (f32(d, m), f32(m, 2 * z), f32(z, m), f32(m, d)), f32(batch, d), f32(batch, z)


def adversarial(n: Size) -> Loss:
    """A generator's loss: the critic's parameters get no gradient."""
    z, d, m, batch = n(64), n(784), n(256), n(256)

    def loss(w, critic, noise):
        x = jnp.tanh(jax.nn.relu(batch_norm(noise @ w[0])) @ w[1])
        return jnp.mean(jax.nn.softplus(-(jax.nn.leaky_relu(x @ critic[0]) @ critic[1])))

    return loss, (f32(z, m), f32(m, d)), (f32(d, m), f32(m, 1)), f32(batch, z)


def messages(n: Size, layers: int = 3) -> Loss:
    """A graph network: messages along edges, summed at the nodes."""
    d, nodes, edges = n(32), n(1000), n(8000)

    def loss(w, x, senders, receivers):
        for a, b in w:
            sent = jax.nn.relu(jnp.concatenate([x[senders], x[receivers]], -1) @ a)
            x = x + jax.ops.segment_sum(sent, receivers, nodes) @ b
        return jnp.mean(x**2)

    return loss, [(f32(2 * d, d), f32(d, d))] * layers, f32(nodes, d), i32(edges), i32(edges)


def graph_attention(n: Size) -> Loss:
    """Messages along edges, weighed by a softmax over those that arrive at a node."""
    d, nodes, edges = n(32), n(1000), n(8000)

    def loss(w, x, senders, receivers):
        y = x @ w["in"]
        scores = jax.nn.leaky_relu((y @ w["from"])[senders] + (y @ w["to"])[receivers])
        scores = jnp.exp(scores - jax.ops.segment_max(scores, receivers, nodes)[receivers])
        weights = scores / jax.ops.segment_sum(scores, receivers, nodes)[receivers]
        return jnp.mean(jax.ops.segment_sum(weights[:, None] * y[senders], receivers, nodes) ** 2)

    params = {"in": f32(d, d), "from": f32(d), "to": f32(d)}
    return loss, params, f32(nodes, d), i32(edges), i32(edges)


def kalman_filter(n: Size) -> Loss:
    """The likelihood of observations under a linear Gaussian model of state and noise."""
    d, m, time = n(32), n(16), n(100)

    def loss(w, ys):
        def step(state, y):
            mean, cov = state
            mean, cov = w["move"] @ mean, w["move"] @ cov @ w["move"].T + w["noise"] @ w["noise"].T
            gap = y - w["see"] @ mean
            spread = w["see"] @ cov @ w["see"].T + jnp.eye(m)
            root = jnp.linalg.cholesky(spread)
            gain = jax.scipy.linalg.cho_solve((root, True), w["see"] @ cov).T
            scaled = jax.scipy.linalg.solve_triangular(root, gap, lower=True)
            cost = 0.5 * jnp.sum(scaled**2) + jnp.sum(jnp.log(jnp.diagonal(root)))
            return (mean + gain @ gap, cov - gain @ w["see"] @ cov), cost

        return jnp.mean(lax.scan(step, (jnp.zeros(d), jnp.eye(d)), ys)[1])

    return loss, {"move": f32(d, d), "noise": f32(d, d), "see": f32(m, d)}, f32(time, m)


def gaussian_process(n: Size) -> Loss:
    points, d = n(256), n(8)

    def loss(w, x, y):
        x = x / jnp.exp(w["lengths"])
        squares = jnp.sum((x[:, None] - x[None]) ** 2, -1)
        kernel = jnp.exp(w["height"] - 0.5 * squares) + jnp.exp(w["noise"]) * jnp.eye(points)
        root = jnp.linalg.cholesky(kernel)
        scaled = jax.scipy.linalg.solve_triangular(root, y, lower=True)
        return 0.5 * jnp.sum(scaled**2) + jnp.sum(jnp.log(jnp.diagonal(root)))

    return loss, {"lengths": f32(d), "height": f32(), "noise": f32()}, f32(points, d), f32(points)


def physics_informed(n: Size) -> Loss:
    """A residual with a second derivative along the input, by forward mode."""
    d, points = n(64), n(1024)

    def loss(w, x):
        def net(x):
            for kernel in w[:-1]:
                x = jnp.tanh(x @ kernel)
            return x @ w[-1]

        along = lambda f: lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]
        return jnp.mean((along(along(net))(x) + net(x)) ** 2)

    return loss, [f32(1, d), f32(d, d), f32(d, d), f32(d, 1)], f32(points, 1)


def radiance(n: Size) -> Loss:
    """Colours along rays: positions as waves, layers, densities composed from front to back."""
    d, rays, samples = n(128), n(64), n(32)

    def loss(w, x, colours):
        waves = x[..., None] * 2.0 ** jnp.arange(6)
        h = jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], -1).reshape(rays, samples, -1)
        for kernel in w[:-1]:
            h = jax.nn.relu(h @ kernel)
        h = h @ w[-1]
        opaque = 1 - jnp.exp(-jax.nn.softplus(h[..., 3]))
        clear = jnp.cumprod(1 - opaque + 1e-6, 1)
        seen = jnp.sum((opaque * clear)[..., None] * jax.nn.sigmoid(h[..., :3]), 1)
        return jnp.mean((seen - colours) ** 2)

    return loss, [f32(36, d), f32(d, d), f32(d, d), f32(d, 4)], f32(rays, samples, 3), f32(rays, 3)


def transport(n: Size) -> Loss:
    """Sinkhorn's iteration between two sets of points."""
    points, d = n(256), n(16)

    def loss(w, x, y):
        costs = jnp.sum(((x @ w)[:, None] - y[None]) ** 2, -1)

        def step(g, _):
            f = -jax.nn.logsumexp(g[None] - costs, 1)
            return -jax.nn.logsumexp(f[:, None] - costs, 0), f

        g, fs = lax.scan(step, jnp.zeros(points), None, 20)
        return jnp.sum(jnp.exp(fs[-1][:, None] + g[None] - costs) * costs)

    return loss, f32(d, d), f32(points, d), f32(points, d)


def recommendation(n: Size, fields: int = 8) -> Loss:
    """Embeddings of several fields, their products with each other, layers, a click."""
    words, d, batch = n(1000), n(32), n(256)

    def loss(w, ids, y):
        x = jax.vmap(lambda table, i: table[i], (0, 1), 1)(w["tables"], ids)
        pairs = jnp.einsum("bid,bjd->bij", x, x)[:, *jnp.triu_indices(fields, 1)]
        h = jax.nn.relu(jnp.concatenate([x.reshape(batch, -1), pairs], -1) @ w["up"])
        logits = (h @ w["out"])[:, 0]
        return jnp.mean(jax.nn.softplus(logits) - y * logits)

    inputs = fields * d + fields * (fields - 1) // 2
    params = {"tables": f32(fields, words, d), "up": f32(inputs, n(256)), "out": f32(n(256), 1)}
    return loss, params, i32(batch, fields), f32(batch)


def ensemble(n: Size, members: int = 4) -> Loss:
    """Networks with parameters of their own on the same data, by `vmap`."""
    d, batch = n(128), n(256)

    def loss(w, x, y):
        def one(w):
            return cross_entropy(jax.nn.relu(jax.nn.relu(x @ w[0]) @ w[1]) @ w[2], y)

        return jnp.mean(jax.vmap(one)(w))

    kernels = f32(members, d, d), f32(members, d, d), f32(members, d, 10)
    return loss, kernels, f32(batch, d), i32(batch)


def convolved_scan(n: Size, layers: int = 2, states: int = 8) -> Loss:
    """Blocks as in Mamba: a causal convolution over time, a selective recurrence of two factors, a gate."""
    d, batch, time = n(64), n(4), n(128)

    def mixed(p, x):
        def step(h, inputs):
            u, pace, into, out = inputs
            h = jnp.exp(-pace[..., None] * p["rates"]) * h + (pace * u)[..., None] * into[:, None]
            return h, jnp.einsum("bds,bs->bd", h, out)

        u, gate = jnp.split(layer_norm(x) @ p["in"], 2, -1)
        u = jnp.pad(u, ((0, 0), (3, 0), (0, 0)))
        u = jax.nn.silu(sum(u[:, i : i + time] * p["taps"][i] for i in range(4)))
        into, out = jnp.split(u @ p["factors"], 2, -1)
        inputs = u, jax.nn.softplus(u @ p["pace"]), into, out
        _, y = lax.scan(step, jnp.zeros((batch, 2 * d, states)), jax.tree.map(lambda a: a.swapaxes(0, 1), inputs))
        return x + (y.swapaxes(0, 1) * jax.nn.silu(gate)) @ p["out"]

    def loss(w, x):
        for p in w:
            x = mixed(p, x)
        return jnp.mean(x**2)

    block = {"in": f32(d, 4 * d), "taps": f32(4, 2 * d), "factors": f32(2 * d, 2 * states), "pace": f32(2 * d, 2 * d)}
    return loss, [block | {"rates": f32(2 * d, states), "out": f32(2 * d, d)}] * layers, f32(batch, time, d)


def weighed_keys(n: Size, layers: int = 2) -> Loss:
    """Blocks as in RWKV: a decaying average of values, weighed by keys, and a squared relu between channels."""
    d, batch, time, words = n(64), n(8), n(128), n(512)
    shifted = lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]

    def loss(w, tokens):
        x = w["embedding"][tokens]
        for p in w["blocks"]:
            y = layer_norm(x)
            mixed = y * p["mix"] + shifted(y) * (1 - p["mix"])
            k, v, r = mixed @ p["k"], mixed @ p["v"], jax.nn.sigmoid(mixed @ p["r"])

            def step(state, inputs, p=p):
                (top, low), (k, v) = state, inputs
                e = jnp.exp(p["bonus"] + k)
                out = (top + e * v) / (low + e + 1e-6)
                decay = jnp.exp(-jnp.exp(p["decay"]))
                return (decay * top + jnp.exp(k) * v, decay * low + jnp.exp(k)), out

            start = (jnp.zeros((batch, d)),) * 2
            _, y = lax.scan(step, start, (k.swapaxes(0, 1), v.swapaxes(0, 1)))
            x = x + (r * y.swapaxes(0, 1)) @ p["o"]
            x = x + jax.nn.relu(layer_norm(x) @ p["up"]) ** 2 @ p["down"]
        return cross_entropy(layer_norm(x) @ w["head"], jnp.roll(tokens, -1, 1))

    block = dict.fromkeys("kvro", f32(d, d)) | dict.fromkeys(("mix", "bonus", "decay"), f32(d))
    params = {"embedding": f32(words, d), "blocks": [block | {"up": f32(d, 4 * d), "down": f32(4 * d, d)}] * layers}
    return loss, params | {"head": f32(d, words)}, i32(batch, time)


def cached_decoder(n: Size, heads: int = 4) -> Loss:
    """Tokens decoded one by one, each attends to a cache of keys and values that is written step by step."""
    d, batch, time, words = n(64), n(8), n(64), n(256)
    heads = min(heads, d)
    size = d // heads

    def loss(w, tokens):
        def step(cache, inputs):
            at, token = inputs
            x = w["embedding"][token]
            q, k, v = (a.reshape(batch, heads, size) for a in jnp.split(x @ w["qkv"], 3, -1))
            keys, values = (
                lax.dynamic_update_slice_in_dim(c, a[:, None], at, 1) for c, a in zip(cache, (k, v), strict=True)
            )
            scores = jnp.einsum("bhd,bthd->bht", q, keys) / size**0.5
            weights = jax.nn.softmax(jnp.where(jnp.arange(time) <= at, scores, -1e9))
            x = x + jnp.einsum("bht,bthd->bhd", weights, values).reshape(batch, d) @ w["out"]
            return (keys, values), x @ w["head"]

        cache = (jnp.zeros((batch, time, heads, size)),) * 2
        _, logits = lax.scan(step, cache, (jnp.arange(time), tokens))
        return cross_entropy(logits, jnp.roll(tokens, -1, 0))

    params = {"embedding": f32(words, d), "qkv": f32(d, 3 * d), "out": f32(d, d), "head": f32(d, words)}
    return loss, params, i32(time, batch)


def dropped_mixers(n: Size, layers: int = 2) -> Loss:
    """A mixer of patches and channels with dropout, from images to classes."""
    d, size, batch = n(64), n(32), n(16)
    patch = min(4, size)
    t = (size // patch) ** 2

    def loss(w, images, y, key):
        x = conv(images, w["patches"], patch).reshape(batch, t, d)
        for i, (a, b, c, e) in enumerate(w["blocks"]):
            x = x + jnp.einsum("bsd,st->btd", jax.nn.gelu(jnp.einsum("btd,ts->bsd", layer_norm(x), a)), b)
            h = jax.nn.gelu(layer_norm(x) @ c)
            kept = jax.random.bernoulli(jax.random.fold_in(key, i), 0.9, h.shape)
            x = x + jnp.where(kept, h / 0.9, 0.0) @ e
        return cross_entropy(x.mean(1) @ w["head"], y)

    blocks = [(f32(t, 2 * t), f32(2 * t, t), f32(d, 4 * d), f32(4 * d, d))] * layers
    params = {"patches": f32(patch, patch, 3, d), "blocks": blocks, "head": f32(d, 10)}
    return loss, params, f32(batch, size, size, 3), i32(batch), jax.eval_shape(lambda: jax.random.key(0))


def u_net_in_time(n: Size) -> Loss:
    """A U-net over time: strided convolutions down, repeated steps up, what was there before beside them."""
    c, batch, time = n(16), n(8), n(1024)

    def loss(w, x, y):
        skips = []
        for kernel in w["down"]:
            x = jax.nn.relu(conv(x, kernel))
            skips.append(x)
            x = x.reshape(batch, x.shape[1] // 2, 2, -1).max(2)
        x = jax.nn.relu(conv(x, w["middle"]))
        for kernel, skip in zip(w["up"], reversed(skips), strict=True):
            x = jax.nn.relu(conv(jnp.concatenate([jnp.repeat(x, 2, 1), skip], -1), kernel))
        return jnp.mean((conv(x, w["out"]) - y) ** 2)

    down = [f32(5, 2, c), f32(5, c, 2 * c)]
    up = [f32(5, 6 * c, 2 * c), f32(5, 3 * c, c)]
    return (
        loss,
        {"down": down, "middle": f32(5, 2 * c, 4 * c), "up": up, "out": f32(5, c, 2)},
        f32(batch, time, 2),
        f32(batch, time, 2),
    )


def critic(n: Size) -> Loss:
    """A critic's loss against a generator, with a penalty on the norm of its gradient with respect to the images."""
    z, d, m, batch = n(64), n(784), n(256), n(128)

    def loss(w, generator, x, noise):
        judged = lambda x: jax.nn.leaky_relu(jax.nn.leaky_relu(x @ w[0]) @ w[1]) @ w[2]
        made = jnp.tanh(jax.nn.relu(noise @ generator[0]) @ generator[1])
        slope = jax.grad(lambda x: jnp.sum(judged(x)))(0.5 * (x + made))
        penalty = jnp.mean((jnp.sqrt(jnp.sum(slope**2, -1) + 1e-6) - 1) ** 2)
        return jnp.mean(judged(made)) - jnp.mean(judged(x)) + 10 * penalty

    return loss, (f32(d, m), f32(m, m), f32(m, 1)), (f32(z, m), f32(m, d)), f32(batch, d), f32(batch, z)


def meta_learning(n: Size, tasks: int = 4, steps: int = 3) -> Loss:
    """MAML: the loss after a few steps of descent on each task."""
    m, shots = n(64), n(64)

    def loss(w, xs, ys):
        def of_task(x, y):
            fits = lambda w: jnp.mean((jnp.tanh(jnp.tanh(x @ w[0] + w[1]) @ w[2] + w[3]) @ w[4] - y) ** 2)
            adapted = w
            for _ in range(steps):
                adapted = jax.tree.map(lambda p, g: p - 0.1 * g, adapted, jax.grad(fits)(adapted))
            return fits(adapted)

        return jnp.mean(jax.vmap(of_task)(xs, ys))

    return loss, (f32(4, m), f32(m), f32(m, m), f32(m), f32(m, 1)), f32(tasks, shots, 4), f32(tasks, shots, 1)


def deep_sets(n: Size) -> Loss:
    """Each element by itself, a sum and a maximum over those of a set that are there, then the set."""
    d, sets, size = n(128), n(32), n(64)

    def loss(w, x, there, y):
        h = jax.nn.relu(jax.nn.relu(x @ w["each"][0]) @ w["each"][1])
        h = jnp.where(there[..., None] > 0, h, 0.0)
        pooled = jnp.concatenate([h.sum(1), h.max(1)], -1)
        return cross_entropy(jax.nn.relu(pooled @ w["all"][0]) @ w["all"][1], y)

    params = {"each": [f32(3, d), f32(d, d)], "all": [f32(2 * d, d), f32(d, 10)]}
    return loss, params, f32(sets, size, 3), f32(sets, size), i32(sets)


def translation(n: Size) -> Loss:
    """An LSTM that reads, one that writes and looks at what was read."""
    d, batch, words = n(64), n(16), n(512)

    def lstm(w, state, x):
        h, c = state
        i, f, o, g = jnp.split(jnp.concatenate([x, h], -1) @ w, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def loss(w, source, target):
        def read(state, x):
            state = lstm(w["read"], state, x)
            return state, state[0]

        def write(state, x):
            state = lstm(w["write"], state, x)
            weights = jax.nn.softmax(jnp.einsum("bd,tbd->bt", state[0], hs))
            seen = jnp.einsum("bt,tbd->bd", weights, hs)
            return state, jnp.tanh(jnp.concatenate([state[0], seen], -1) @ w["mix"])

        state, hs = lax.scan(read, (jnp.zeros((batch, d)),) * 2, w["source"][source])
        _, ys = lax.scan(write, state, w["target"][target])
        return cross_entropy(ys @ w["head"], jnp.roll(target, -1, 0))

    params = dict.fromkeys(("read", "write"), f32(2 * d, 4 * d)) | dict.fromkeys(("source", "target"), f32(words, d))
    return loss, params | {"mix": f32(2 * d, d), "head": f32(d, words)}, i32(n(50), batch), i32(n(40), batch)


def low_rank_tuning(n: Size, layers: int = 2, heads: int = 4, rank: int = 4) -> Loss:
    """Fine-tuning by products of low rank beside frozen kernels (LoRA)."""
    d, batch, time, words = n(128), n(4), n(128), n(512)

    def loss(w, frozen, tokens):
        x = frozen["embedding"][tokens]
        for p, q in zip(w, frozen["blocks"], strict=True):
            adapted = lambda x, name, p=p, q=q: x @ q[name] + (x @ p[name][0]) @ p[name][1]
            y = layer_norm(x)
            x = x + attend(*(heads_of(adapted(y, k), heads) for k in "qkv"), causal=True).reshape(x.shape) @ q["o"]
            x = x + jax.nn.gelu(layer_norm(x) @ q["up"]) @ q["down"]
        return cross_entropy(layer_norm(x) @ frozen["embedding"].T, jnp.roll(tokens, -1, 1))

    block = dict.fromkeys("qkvo", f32(d, d)) | {"up": f32(d, 4 * d), "down": f32(4 * d, d)}
    params = [dict.fromkeys("qkv", (f32(d, rank), f32(rank, d)))] * layers
    return loss, params, {"embedding": f32(words, d), "blocks": [block] * layers}, i32(batch, time)


def residual_network(n: Size) -> Loss:
    """Residual blocks with batch norm, of two widths, the second with a stride."""
    c, size, batch = n(16), n(32), n(16)

    def loss(w, images, y):
        x = jax.nn.relu(batch_norm(conv(images, w["first"])))
        for p, stride in zip(w["blocks"], (1, 2), strict=True):
            h = jax.nn.relu(batch_norm(conv(x, p["a"], stride)))
            short = batch_norm(conv(x, p["short"], stride)) if "short" in p else x
            x = jax.nn.relu(batch_norm(conv(h, p["b"])) + short)
        return cross_entropy(x.mean((1, 2)) @ w["head"], y)

    narrow = {"a": f32(3, 3, c, c), "b": f32(3, 3, c, c)}
    wide = {"a": f32(3, 3, c, 2 * c), "b": f32(3, 3, 2 * c, 2 * c), "short": f32(1, 1, c, 2 * c)}
    params = {"first": f32(3, 3, 3, c), "blocks": [narrow, wide], "head": f32(2 * c, 10)}
    return loss, params, f32(batch, size, size, 3), i32(batch)


def of(make: Callable[..., Loss], *args: Any) -> Callable[[Size], Workload]:
    """The workload of a loss, as a function of the sizes."""

    def build(n: Size) -> Workload:
        loss, *shapes = make(n, *args)
        return gradient_of(lambda: loss, *shapes)

    return build


# written after the model, for which no rule was made
UNSEEN: dict[str, Callable[[Size], Workload]] = {
    "Mamba, 2 blocks": of(convolved_scan),
    "RWKV, 2 blocks": of(weighed_keys),
    "decoder with a cache": of(cached_decoder),
    "mixer with dropout, images": of(dropped_mixers),
    "U-net over time": of(u_net_in_time),
    "critic with a penalty": of(critic),
    "MAML, 3 steps": of(meta_learning),
    "deep sets, 32 x 64": of(deep_sets),
    "LSTM, sequence to sequence": of(translation),
    "LoRA, 2 blocks": of(low_rank_tuning),
    "residual network with batch norm": of(residual_network),
}
ARCHITECTURES: dict[str, Callable[[Size], Workload]] = {
    "3 gated layers, 512 x 256, 512 units inside": of(gated_layers, 512),
    "3 gated layers, 512 x 256": of(gates_alone),
    "4 layers with norm and gelu, 1024 x 256": of(norm_layers),
    "4 layers with norm and relu, 1024 x 256": of(norm_layers, jax.nn.relu),
    "4 residual layers, 512 x 128": of(residual_layers),
    "4 layers with dropout, 512 x 256": of(dropout_layers),
    "2 mixing layers, 16 x 64 x 128": of(mixing_layers),
    "4 layers in bfloat16, 1000 classes": of(narrow_layers),
    "attention, 4 heads, 256 tokens": of(attention, 1),
    "attention, two layers": of(attention, 2),
    "causal attention with one key, 8 x 128 tokens": of(one_key_attention),
    "linear attention, 8 x 256 tokens": of(linear_attention),
    "attention to others, 64 to 256 tokens": of(cross_attention),
    "vision transformer, 2 blocks": of(vision_transformer),
    "language model, 1000 words": of(language_model),
    "two encoders, contrastive, 512": of(contrastive),
    "4 experts, 512 x 128": of(experts),
    "4 experts, each token to one": of(routed_experts),
    "3 convolutions with batch norm, 16 x 32 x 32": of(convolutions),
    "3 convolutions with group norm, 16 x 32 x 32": of(convolutions, lambda x: group_norm(x, 4)),
    "2 residual blocks of convolutions": of(residual_convolutions),
    "5 dilated convolutions, 1024 steps": of(wave_net),
    "U-net with pooling and a resize, nearest": of(u_net, "nearest"),
    "U-net with pooling and a resize, bilinear": of(u_net, "bilinear"),
    "diffusion, U-net with attention": of(diffusion),
    "3 recurrent layers, 100 x 32 x 64": of(recurrent),
    "GRU, 200 steps": of(gru),
    "LSTM both ways, tags of words": of(both_ways),
    "state space, associative scan": of(state_space),
    "state space, selective, scan": of(selective_scan),
    "Runge-Kutta, 100 steps": of(runge_kutta),
    "30 steps to a fixed point": of(fixed_point),
    "20 steps of 20 steps of 128 x 128": of(nested_loops),
    "`lax.cond` in 50 steps of 128 x 128": of(branches),
    "normalising flow, 4 couplings": of(flow),
    "variational autoencoder, 256 x 784": of(autoencoder),
    "generator against a critic": of(adversarial),
    "3 layers of messages, 8000 edges": of(messages),
    "graph attention, 8000 edges": of(graph_attention),
    "Kalman filter, 100 steps": of(kalman_filter),
    "Gaussian process, 256 points": of(gaussian_process),
    "physics informed, second derivative": of(physics_informed),
    "radiance field, 64 rays": of(radiance),
    "Sinkhorn, 256 points, 20 steps": of(transport),
    "recommendation, 8 embeddings": of(recommendation),
    "4 networks by vmap": of(ensemble),
} | UNSEEN
