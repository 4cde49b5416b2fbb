"""The models in Flax Linen, out of its own layers."""

import flax.linen as nn
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


def model(module, problem, **apply_options):
    """A Linen module as a pure function of its parameters; other collections stay as they were drawn."""
    x, _ = problem.data(0)
    variables = drawn(jax.eval_shape(module.init, jax.random.key(0), x))
    params = variables.pop("params")

    def apply(params, x):
        out = module.apply({"params": params, **variables}, x, **apply_options)
        return out[0] if "mutable" in apply_options else out

    return Model(apply, params, problem)


def mlp():
    return model(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(5), nn.elu, nn.Dense(CLASSES)]), VECTORS)


def lenet():
    class LeNet(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), strides=(2, 2))
            x = nn.avg_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), strides=(2, 2))
            x = nn.relu(nn.Dense(8)(x.reshape(len(x), -1)))
            return nn.Dense(CLASSES)(x)

    return model(LeNet(), IMAGES)


def resnet():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.BatchNorm(use_running_average=False)(nn.Conv(5, (3, 3), strides=2, use_bias=False)(x))
            y = nn.BatchNorm(use_running_average=False)(nn.Conv(5, (3, 3), use_bias=False)(nn.relu(y)))
            y = nn.relu(y + nn.Conv(5, (1, 1), strides=2)(x))
            return nn.Dense(CLASSES)(y.mean((1, 2)))

    return model(Block(), FEATURES, mutable=["batch_stats"])


def lstm():
    class Series(nn.Module):
        @nn.compact
        def __call__(self, x):
            cell = nn.OptimizedLSTMCell(6, param_dtype=jnp.result_type(float))
            return nn.Dense(2)(nn.RNN(cell)(x))

    return model(Series(), SERIES)


def transformer():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            h = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=2)(h, mask=mask)
            h = nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
            return x + nn.Dropout(0.3, deterministic=not self.has_rng("dropout"))(h)

    class Language(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            embedding = nn.Embed(VOCABULARY, 8)
            x = nn.remat(Block)()(embedding(tokens), nn.make_causal_mask(tokens))
            return embedding.attend(x)

    return model(Language(), TOKENS, rngs={"dropout": jax.random.key(1)})


def autoencoder():
    encoder = [nn.Conv(3, (3, 3), strides=2), nn.swish]
    decoder = [nn.ConvTranspose(4, (3, 3), strides=(2, 2)), nn.tanh, nn.Conv(2, (3, 3))]
    return model(nn.Sequential(encoder + decoder), PICTURES)
