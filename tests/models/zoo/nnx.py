"""The models in Flax NNX, out of its own layers, split into a graph definition and parameters."""

import jax
import jax.numpy as jnp
from flax import nnx

from .problem import (
    CLASSES,
    FEATURES,
    IMAGES,
    PICTURES,
    SERIES,
    TOKENS,
    VECTORS,
    VOCABULARY,
    Model,
    drawn,
)


def model(make, problem):
    """An NNX module, made from its `Rngs`, as a pure function of its parameters: merged, called, and thrown away."""
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    rest = drawn(rest)

    def apply(params, x):
        fresh = jax.tree.map(lambda a: a, rest)  # variables of this call: those of another trace may not be written to
        return nnx.merge(graph, params, fresh)(x)

    return Model(apply, drawn(params), problem)


def mlp():
    def mlp(rngs):
        layers = [nnx.Linear(6, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 5, rngs=rngs), nnx.softplus]
        return nnx.Sequential(*layers, nnx.Linear(5, CLASSES, rngs=rngs))

    return model(mlp, VECTORS)


def lenet():
    class LeNet(nnx.Module):
        def __init__(self, rngs):
            self.conv_0 = nnx.Conv(1, 4, (3, 3), rngs=rngs)
            self.conv_1 = nnx.Conv(4, 6, (3, 3), rngs=rngs)
            self.dense_0 = nnx.Linear(24, 8, rngs=rngs)
            self.dense_1 = nnx.Linear(8, CLASSES, rngs=rngs)

        def __call__(self, x):
            x = nnx.avg_pool(nnx.tanh(self.conv_0(x)), (2, 2), strides=(2, 2))
            x = nnx.max_pool(nnx.tanh(self.conv_1(x)), (2, 2), strides=(2, 2))
            return self.dense_1(nnx.relu(self.dense_0(x.reshape(len(x), -1))))

    return model(LeNet, IMAGES)


def resnet():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.conv_0 = nnx.Conv(3, 5, (3, 3), strides=2, use_bias=False, rngs=rngs)
            self.norm_0 = nnx.BatchNorm(5, rngs=rngs)
            self.conv_1 = nnx.Conv(5, 5, (3, 3), use_bias=False, rngs=rngs)
            self.norm_1 = nnx.BatchNorm(5, rngs=rngs)
            self.shortcut = nnx.Conv(3, 5, (1, 1), strides=2, rngs=rngs)
            self.dense = nnx.Linear(5, CLASSES, rngs=rngs)

        def __call__(self, x):
            y = nnx.relu(self.norm_0(self.conv_0(x)))
            y = nnx.relu(self.norm_1(self.conv_1(y)) + self.shortcut(x))
            return self.dense(y.mean((1, 2)))

    return model(Block, FEATURES)


def lstm():
    class Series(nnx.Module):
        def __init__(self, rngs):
            self.rnn = nnx.RNN(nnx.LSTMCell(4, 6, param_dtype=jnp.result_type(float), rngs=rngs), rngs=rngs)
            self.read_out = nnx.Linear(6, 2, rngs=rngs)

        def __call__(self, x):
            return self.read_out(self.rnn(x))

    return model(Series, SERIES)


def transformer():
    class Language(nnx.Module):
        def __init__(self, rngs):
            self.embedding = nnx.Embed(VOCABULARY, 8, param_dtype=jnp.result_type(float), rngs=rngs)
            self.norm_0 = nnx.LayerNorm(8, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(
                2, 8, decode=False, dropout_rate=0.2, deterministic=False, rngs=rngs
            )
            self.norm_1 = nnx.RMSNorm(8, rngs=rngs)
            self.up = nnx.Linear(8, 16, rngs=rngs)
            self.down = nnx.Linear(16, 8, rngs=rngs)

        def __call__(self, tokens):
            x = self.embedding(tokens)
            x = x + self.attention(self.norm_0(x), mask=nnx.make_causal_mask(tokens))
            x = x + self.down(nnx.gelu(self.up(self.norm_1(x))))
            return self.embedding.attend(x)

    return model(Language, TOKENS)


def autoencoder():
    def code(rngs):
        encoder = [nnx.Conv(2, 3, (3, 3), strides=2, rngs=rngs), nnx.sigmoid]
        decoder = [nnx.ConvTranspose(3, 4, (3, 3), strides=(2, 2), rngs=rngs), jax.nn.mish]
        return nnx.Sequential(*encoder, *decoder, nnx.Conv(4, 2, (3, 3), rngs=rngs))

    return model(code, PICTURES)
