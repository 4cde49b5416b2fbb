"""The models in Equinox, out of its own layers, partitioned into parameters and the rest.

Equinox layers take one example, channels first; a batch is a `jax.vmap`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from .problem import (
    CLASSES,
    CODES,
    FEATURES,
    IMAGES,
    SERIES,
    TOKENS,
    VECTORS,
    VOCABULARY,
    Model,
    drawn,
)


def model(make, problem, call=None):
    """An Equinox module, made from a key, as a pure function of its parameters.

    It is applied to each example; where `call` is given, `make` makes a state too, and `call` is handed the two.
    """
    made = drawn(eqx.filter_eval_shape(make, jax.random.key(0)))
    module, *state = made if call else (made,)
    params, static = eqx.partition(module, eqx.is_inexact_array)
    call = call or (lambda module, x: jax.vmap(module)(x))
    return Model(lambda params, x: call(eqx.combine(params, static), x, *state), params, problem)


def channels_first(x):
    return x.transpose(2, 0, 1)


def mlp():
    return model(lambda key: eqx.nn.MLP(6, CLASSES, 8, 2, key=key), VECTORS)


def lenet():
    def lenet(key):
        keys = jax.random.split(key, 4)
        layers = [
            eqx.nn.Lambda(channels_first),
            eqx.nn.Conv2d(1, 4, 3, padding=1, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(4, 6, 3, padding=1, key=keys[1]),
            eqx.nn.Lambda(eqx.nn.PReLU()),
            eqx.nn.AvgPool2d(2, 2),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(24, 8, key=keys[2]),
            eqx.nn.Lambda(jax.nn.tanh),
            eqx.nn.Linear(8, CLASSES, key=keys[3]),
        ]
        return eqx.nn.Sequential(layers)

    return model(lenet, IMAGES)


def resnet():
    class Block(eqx.Module):
        conv_0: eqx.nn.Conv2d
        norm_0: eqx.nn.BatchNorm
        conv_1: eqx.nn.Conv2d
        norm_1: eqx.nn.GroupNorm
        shortcut: eqx.nn.Conv2d
        dense: eqx.nn.Linear

        def __init__(self, key):
            keys = jax.random.split(key, 4)
            self.conv_0 = eqx.nn.Conv2d(3, 4, 3, stride=2, padding=1, key=keys[0])
            self.norm_0 = eqx.nn.BatchNorm(4, axis_name="batch", mode="batch", dtype=jnp.result_type(float))
            self.conv_1 = eqx.nn.Conv2d(4, 4, 3, padding=1, key=keys[1])
            self.norm_1 = eqx.nn.GroupNorm(2, 4)
            self.shortcut = eqx.nn.Conv2d(3, 4, 1, stride=2, key=keys[2])
            self.dense = eqx.nn.Linear(4, CLASSES, key=keys[3])

        def __call__(self, x, state):
            x = channels_first(x)
            y, state = self.norm_0(self.conv_0(x), state)
            y = self.norm_1(self.conv_1(jax.nn.relu(y)))
            y = jax.nn.relu(y + self.shortcut(x))
            return self.dense(jnp.mean(y, (1, 2))), state

    def call(block, x, state):
        out, _ = jax.vmap(block, in_axes=(0, None), out_axes=(0, None), axis_name="batch")(x, state)
        return out

    return model(eqx.nn.make_with_state(Block), FEATURES, call)


def lstm():
    class Series(eqx.Module):
        cell: eqx.nn.LSTMCell
        read_out: eqx.nn.Linear

        def __call__(self, xs):
            zeros = jnp.zeros(6, xs.dtype)

            def step(carry, x):
                carry = self.cell(x, carry)
                return carry, carry[0]

            _, hs = lax.scan(step, (zeros, zeros), xs)
            return jax.vmap(self.read_out)(hs)

    return model(lambda key: Series(eqx.nn.LSTMCell(4, 6, key=key), eqx.nn.Linear(6, 2, key=key)), SERIES)


def transformer():
    class Language(eqx.Module):
        embedding: eqx.nn.Embedding
        norm_0: eqx.nn.LayerNorm
        attention: eqx.nn.MultiheadAttention
        norm_1: eqx.nn.RMSNorm
        feed_forward: eqx.nn.MLP
        dropout: eqx.nn.Dropout

        def __init__(self, key):
            keys = jax.random.split(key, 3)
            self.embedding = eqx.nn.Embedding(VOCABULARY, 8, key=keys[0])
            self.norm_0 = eqx.nn.LayerNorm(8)
            self.attention = eqx.nn.MultiheadAttention(2, 8, use_key_bias=True, key=keys[1])
            self.norm_1 = eqx.nn.RMSNorm(8)
            self.feed_forward = eqx.nn.MLP(8, 8, 16, 1, activation=jax.nn.gelu, key=keys[2])
            self.dropout = eqx.nn.Dropout(0.3)

        @eqx.filter_checkpoint
        def block(self, x):
            h = jax.vmap(self.norm_0)(x)
            x = x + self.attention(h, h, h, mask=jnp.tril(jnp.ones((len(x), len(x)), bool)))
            h = jax.vmap(self.feed_forward)(jax.vmap(self.norm_1)(x))
            return x + self.dropout(h, key=jax.random.key(5))

        def __call__(self, tokens):
            x = self.block(jax.vmap(self.embedding)(tokens))
            return x @ self.embedding.weight.T

    return model(Language, TOKENS)


def autoencoder():
    def code(key):
        encoder = eqx.nn.MLP(8, 3, 5, 1, activation=jax.nn.silu, key=key)
        return eqx.nn.Sequential([encoder, eqx.nn.MLP(3, 8, 5, 1, activation=jax.nn.leaky_relu, key=key)])

    return model(code, CODES)
