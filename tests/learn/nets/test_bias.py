"""A bias is a weight from a unit that is always on: the seeds' on-neuron, and the bias parameter, learn alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcbp as bp
from funcbp import nets, ops


def with_on_neuron(y):
    return jnp.concatenate([y, jnp.ones((*y.shape[:-1], 1), y.dtype)], axis=-1)


def as_weights(params):
    """Kernels with one more input, whose weights are the biases."""
    return [jnp.concatenate([layer["kernel"], layer["bias"][None]]) for layer in params.values()]


def apply_on_neuron(weights, x):
    for w in weights:
        x = ops.logistic(ops.dense(with_on_neuron(x), w))
    return x


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("grad", [bp.grad, jax.grad], ids=["funcbp", "jax"])
def test_bias_is_a_weight_from_a_constant_one(grad):
    x, t = jax.random.normal(jax.random.key(0), (6, 3)), jax.random.uniform(jax.random.key(1), (6, 2))
    net = nets.mlp([3, 4, 2], output=ops.logistic)
    params = net.init(jax.random.key(2), x)
    params = jax.tree.map(lambda p: p + 0.1, params)
    weights = as_weights(params)

    def with_biases(params):
        return ops.squared_error(net.apply(params, x), t)

    def with_on_neurons(weights):
        return ops.squared_error(apply_on_neuron(weights, x), t)

    for _ in range(20):
        gradient, expected = grad(with_biases)(params), grad(with_on_neurons)(weights)
        for g, w in zip(as_weights(gradient), expected, strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-15)
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient)
        weights = [w - 0.5 * g for w, g in zip(weights, expected, strict=True)]
    for p, w in zip(as_weights(params), weights, strict=True):
        np.testing.assert_allclose(p, w, rtol=1e-12)
