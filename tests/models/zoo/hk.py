"""The models in Haiku, out of its own modules, transformed into pure functions."""

import haiku as hk
import jax
import jax.numpy as jnp

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


def model(f, problem):
    """A Haiku function as a pure function of its parameters; the state stays as it was drawn."""
    x, _ = problem.data(0)
    transformed = hk.transform_with_state(f)
    params, state = drawn(jax.eval_shape(transformed.init, jax.random.key(0), x))
    return Model(lambda params, x: transformed.apply(params, state, jax.random.key(1), x)[0], params, problem)


def mlp():
    return model(lambda x: hk.nets.MLP([8, 5, CLASSES])(x), VECTORS)


def lenet():
    def lenet(x):
        x = hk.AvgPool((2, 2, 1), (2, 2, 1), "VALID")(jax.nn.relu(hk.Conv2D(4, 3)(x)))
        x = hk.MaxPool((2, 2, 1), (2, 2, 1), "VALID")(jax.nn.relu(hk.Conv2D(6, 3)(x)))
        return hk.Linear(CLASSES)(jnp.tanh(hk.Linear(8)(hk.Flatten()(x))))

    return model(lenet, IMAGES)


def resnet():
    def block(x):
        y = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(5, 3, stride=2, with_bias=False)(x), is_training=True)
        y = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(5, 3, with_bias=False)(jax.nn.relu(y)), is_training=True)
        y = jax.nn.relu(y + hk.Conv2D(5, 1, stride=2)(x))
        return hk.Linear(CLASSES)(jnp.mean(y, (1, 2)))

    return model(block, FEATURES)


def lstm():
    def series(x):
        core = hk.LSTM(6)
        hs, _ = hk.dynamic_unroll(core, x, core.initial_state(len(x)), time_major=False)
        return hk.Linear(2)(hs)

    return model(series, SERIES)


def transformer():
    def language(tokens):
        embedding = hk.Embed(VOCABULARY, 8)
        x = embedding(tokens)
        norm = lambda x: hk.LayerNorm(-1, True, True)(x)
        mask = jnp.tril(jnp.ones((1, 1, x.shape[1], x.shape[1]), bool))
        h = norm(x)
        x = x + hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling(1.0))(h, h, h, mask)
        h = hk.Linear(8)(jax.nn.gelu(hk.Linear(16)(norm(x))))
        x = x + hk.dropout(hk.next_rng_key(), 0.3, h)
        return x @ embedding.embeddings.T

    return model(language, TOKENS)


def autoencoder():
    def code(x):
        x = jax.nn.softplus(hk.Conv2D(3, 3, stride=2)(x))
        return hk.Conv2D(2, 3)(jnp.tanh(hk.Conv2DTranspose(4, 3, stride=2)(x)))

    return model(code, PICTURES)
