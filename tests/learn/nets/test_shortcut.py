"""Networks with shortcut connections: what they compute, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcbp as bp
from funcbp import nets


@pytest.mark.parametrize("bias", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_values_and_gradients(bias):
    x, t = jax.random.normal(jax.random.key(0), (7, 3)), jax.random.normal(jax.random.key(1), (7, 2))
    net = nets.shortcut_mlp([3, 4, 5, 2], jnp.tanh, jnp.sin, bias=bias)
    params = net.init(jax.random.key(2), x)
    shapes = {name: layer["kernel"].shape for name, layer in params.items()}
    assert shapes == {"dense_0": (3, 4), "dense_1": (7, 5), "dense_2": (12, 2)}
    assert all(("bias" in layer) == bias for layer in params.values())

    def plain(params):
        w = [layer["kernel"] for layer in params.values()]
        b = [layer.get("bias", jnp.zeros(1))[None] for layer in params.values()]
        first = jnp.tanh(x @ w[0] + b[0])
        second = jnp.tanh(x @ w[1][:3] + first @ w[1][3:] + b[1])
        y = jnp.sin(x @ w[2][:3] + first @ w[2][3:7] + second @ w[2][7:] + b[2])
        return jnp.sum((t - y) ** 2) / 2

    ours = lambda params: bp.ops.squared_error(net.apply(params, x), t)
    np.testing.assert_allclose(ours(params), plain(params), rtol=1e-13)
    for got, wanted in zip(
        jax.tree.leaves(jax.jit(bp.grad(ours))(params)), jax.tree.leaves(jax.grad(plain)(params)), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-14)


def test_sizes():
    assert nets.count(nets.shortcut_mlp([2, 5, 5, 5, 1]).init(jax.random.key(0), jnp.zeros(2))) == 138
    with pytest.raises(ValueError, match=r"shortcut_mlp needs at least 2 sizes, positive whole numbers, and got \[3\]"):
        nets.shortcut_mlp([3])
    with pytest.raises(ValueError, match=r"takes inputs of shape \(batch..., 2\), and got shape \(3,\)"):
        nets.shortcut_mlp([2, 1]).init(jax.random.key(0), jnp.zeros(3))
