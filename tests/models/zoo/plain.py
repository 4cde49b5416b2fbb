"""The models in plain JAX: parameters are nested dicts, layers are functions."""

import itertools

import jax
import jax.numpy as jnp
from jax import lax

from .problem import CLASSES, CODES, FEATURES, IMAGES, SERIES, TOKENS, VECTORS, VOCABULARY, Model, drawn

struct = lambda *shape: jax.ShapeDtypeStruct(shape, float)


def dense_params(n_in, n_out):
    return {"kernel": struct(n_in, n_out), "bias": struct(n_out)}


def conv_params(size, n_in, n_out):
    return {"kernel": struct(size, size, n_in, n_out), "bias": struct(n_out)}


def norm_params(n):
    return {"scale": struct(n), "bias": struct(n)}


def along_last(v, x):
    """A vector, shaped to go along the last axis of `x`."""
    return jnp.expand_dims(v, tuple(range(x.ndim - 1)))


def dense(p, x):
    y = x @ p["kernel"]
    return y + along_last(p["bias"], y)


def conv(p, x, stride=1, padding="SAME"):
    y = lax.conv_general_dilated(x, p["kernel"], (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y + along_last(p["bias"], y)


def mean_pool(x):
    return lax.reduce_window(x, x.dtype.type(0), lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4


def normalise(p, x, axes):
    """Zero mean and unit variance over `axes`, then a scale and a shift for each feature."""
    mean, variance = jnp.mean(x, axes, keepdims=True), jnp.var(x, axes, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + 1e-5) * along_last(p["scale"], x) + along_last(p["bias"], x)


def mlp():
    sizes = [6, 8, 5, CLASSES]
    params = [dense_params(i, o) for i, o in itertools.pairwise(sizes)]

    def apply(params, x):
        for layer in params[:-1]:
            x = jax.nn.relu(dense(layer, x))
        return dense(params[-1], x)

    return Model(apply, drawn(params), VECTORS)


def lenet():
    params = {
        "conv_0": conv_params(3, 1, 4),
        "conv_1": conv_params(3, 4, 6),
        "dense_0": dense_params(24, 8),
        "dense_1": dense_params(8, CLASSES),
    }

    def apply(params, x):
        x = mean_pool(jnp.tanh(conv(params["conv_0"], x)))
        x = mean_pool(jnp.tanh(conv(params["conv_1"], x)))
        x = jnp.tanh(dense(params["dense_0"], x.reshape(len(x), -1)))
        return dense(params["dense_1"], x)

    return Model(apply, drawn(params), IMAGES)


def resnet():
    params = {
        "conv_0": conv_params(3, 3, 5),
        "norm_0": norm_params(5),
        "conv_1": conv_params(3, 5, 5),
        "norm_1": norm_params(5),
        "shortcut": conv_params(1, 3, 5),
        "dense": dense_params(5, CLASSES),
    }

    def apply(params, x):
        y = jax.nn.relu(normalise(params["norm_0"], conv(params["conv_0"], x, stride=2), (0, 1, 2)))
        y = normalise(params["norm_1"], conv(params["conv_1"], y), (0, 1, 2))
        y = jax.nn.relu(y + conv(params["shortcut"], x, stride=2))
        y = y + jax.nn.relu(y)
        return dense(params["dense"], jnp.mean(y, (1, 2)))

    return Model(apply, drawn(params), FEATURES)


def lstm():
    params = {"cell": dense_params(4 + 6, 4 * 6), "read_out": dense_params(6, 2)}

    def apply(params, xs):
        def step(carry, x):
            h, c = carry
            i, f, o, g = jnp.split(dense(params["cell"], jnp.concatenate([x, h], -1)), 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((len(xs), 6), xs.dtype)
        _, hs = lax.scan(step, (zeros, zeros), xs.swapaxes(0, 1))
        return dense(params["read_out"], hs.swapaxes(0, 1))

    return Model(apply, drawn(params), SERIES)


def transformer():
    d, heads = 8, 2

    shapes = {
        "norm_0": norm_params(d),
        "qkv": dense_params(d, 3 * d),
        "out": dense_params(d, d),
        "norm_1": norm_params(d),
        "up": dense_params(d, 2 * d),
        "down": dense_params(2 * d, d),
    }
    blocks = [drawn(shapes, seed) for seed in (1, 2)]
    params = {"embedding": struct(VOCABULARY, d), "blocks": jax.tree.map(lambda *xs: jnp.stack(xs), *blocks)}

    def attention(p, x):
        split = lambda a: a.reshape(*a.shape[:2], heads, d // heads).swapaxes(1, 2)
        q, k, v = map(split, jnp.split(dense(p["qkv"], x), 3, -1))
        scores = q @ k.swapaxes(-1, -2) / (d // heads) ** 0.5
        mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
        weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf))
        return dense(p["out"], (weights @ v).swapaxes(1, 2).reshape(x.shape))

    def block(x, p):
        x = x + attention(p, normalise(p["norm_0"], x, -1))
        h = jax.nn.gelu(dense(p["up"], normalise(p["norm_1"], x, -1)))
        return x + dense(p["down"], h), None

    def apply(params, tokens):
        x, _ = lax.scan(block, params["embedding"][tokens], params["blocks"])
        return x @ params["embedding"].T

    return Model(apply, drawn(params), TOKENS)


def autoencoder():
    params = {
        "encoder": [dense_params(8, 5), dense_params(5, 3)],
        "decoder": [dense_params(3, 5), dense_params(5, 8)],
    }

    def apply(params, x):
        for layer in params["encoder"]:
            x = jax.nn.sigmoid(dense(layer, x))
        hidden, out = params["decoder"]
        return dense(out, jax.nn.softplus(dense(hidden, x)))

    return Model(apply, drawn(params), CODES)
