"""The models in plain JAX: parameters are nested dicts, layers are functions."""

import jax
import jax.numpy as jnp
from jax import lax

from .problem import CLASSES, CODES, FEATURES, IMAGES, SERIES, TOKENS, VECTORS, VOCABULARY, Model


def dense_params(key, n_in, n_out):
    kernel, bias = jax.random.split(key)
    return {"kernel": jax.random.normal(kernel, (n_in, n_out)) / n_in**0.5, "bias": jax.random.normal(bias, (n_out,))}


def conv_params(key, size, n_in, n_out):
    kernel, bias = jax.random.split(key)
    scale = (size * size * n_in) ** -0.5
    return {
        "kernel": scale * jax.random.normal(kernel, (size, size, n_in, n_out)),
        "bias": 0.1 * jax.random.normal(bias, (n_out,)),
    }


def norm_params(key, n):
    scale, bias = jax.random.split(key)
    return {"scale": 1 + 0.1 * jax.random.normal(scale, (n,)), "bias": 0.1 * jax.random.normal(bias, (n,))}


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
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = [6, 8, 5, CLASSES]
    params = [dense_params(k, i, o) for k, i, o in zip(keys, sizes[:-1], sizes[1:], strict=True)]

    def apply(params, x):
        for layer in params[:-1]:
            x = jax.nn.relu(dense(layer, x))
        return dense(params[-1], x)

    return Model(apply, params, VECTORS)


def lenet():
    keys = jax.random.split(jax.random.key(1), 4)
    params = {
        "conv_0": conv_params(keys[0], 3, 1, 4),
        "conv_1": conv_params(keys[1], 3, 4, 6),
        "dense_0": dense_params(keys[2], 24, 8),
        "dense_1": dense_params(keys[3], 8, CLASSES),
    }

    def apply(params, x):
        x = mean_pool(jnp.tanh(conv(params["conv_0"], x)))
        x = mean_pool(jnp.tanh(conv(params["conv_1"], x)))
        x = jnp.tanh(dense(params["dense_0"], x.reshape(len(x), -1)))
        return dense(params["dense_1"], x)

    return Model(apply, params, IMAGES)


def resnet():
    keys = jax.random.split(jax.random.key(2), 6)
    params = {
        "conv_0": conv_params(keys[0], 3, 3, 5),
        "norm_0": norm_params(keys[1], 5),
        "conv_1": conv_params(keys[2], 3, 5, 5),
        "norm_1": norm_params(keys[3], 5),
        "shortcut": conv_params(keys[4], 1, 3, 5),
        "dense": dense_params(keys[5], 5, CLASSES),
    }

    def apply(params, x):
        y = jax.nn.relu(normalise(params["norm_0"], conv(params["conv_0"], x, stride=2), (0, 1, 2)))
        y = normalise(params["norm_1"], conv(params["conv_1"], y), (0, 1, 2))
        y = jax.nn.relu(y + conv(params["shortcut"], x, stride=2))
        y = y + jax.nn.relu(y)
        return dense(params["dense"], jnp.mean(y, (1, 2)))

    return Model(apply, params, FEATURES)


def lstm():
    cell, read_out = jax.random.split(jax.random.key(3))
    params = {"cell": dense_params(cell, 4 + 6, 4 * 6), "read_out": dense_params(read_out, 6, 2)}

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

    return Model(apply, params, SERIES)


def transformer():
    d, heads = 8, 2

    def block_params(key):
        keys = jax.random.split(key, 6)
        return {
            "norm_0": norm_params(keys[0], d),
            "qkv": dense_params(keys[1], d, 3 * d),
            "out": dense_params(keys[2], d, d),
            "norm_1": norm_params(keys[3], d),
            "up": dense_params(keys[4], d, 2 * d),
            "down": dense_params(keys[5], 2 * d, d),
        }

    blocks, table = jax.random.split(jax.random.key(4))
    params = {
        "embedding": jax.random.normal(table, (VOCABULARY, d)),
        "blocks": jax.vmap(block_params)(jax.random.split(blocks, 2)),
    }

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

    return Model(apply, params, TOKENS)


def autoencoder():
    keys = jax.random.split(jax.random.key(5), 4)
    params = {
        "encoder": [dense_params(keys[0], 8, 5), dense_params(keys[1], 5, 3)],
        "decoder": [dense_params(keys[2], 3, 5), dense_params(keys[3], 5, 8)],
    }

    def apply(params, x):
        for layer in params["encoder"]:
            x = jax.nn.sigmoid(dense(layer, x))
        hidden, out = params["decoder"]
        return dense(out, jax.nn.softplus(dense(hidden, x)))

    return Model(apply, params, CODES)
