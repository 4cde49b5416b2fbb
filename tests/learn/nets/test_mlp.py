"""Multilayer perceptrons: what they compute, their gradients, and the delta rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcbp as bp
from funcbp import nets, ops


def plain_mlp(params, x, activation, output):
    layers = list(params.values())
    for i, layer in enumerate(layers):
        net = jnp.einsum("bi,ij->bj", x, layer["kernel"]) + layer.get("bias", jnp.zeros(1))[None]
        x = output(net) if i == len(layers) - 1 else activation(net)
    return x


def same_gradients(ours, plain, params, rtol=1e-11):
    for grad in (bp.grad, jax.grad):
        got = jax.jit(grad(ours))(params)
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(jax.grad(plain)(params)), strict=True):
            np.testing.assert_allclose(g, w, rtol=rtol, atol=1e-14)


@pytest.mark.slow(once=["bias"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [[3, 2], [3, 5, 2], [3, 4, 4, 2]], ids=str)
def test_values_and_gradients(sizes, bias):
    x, t = jax.random.normal(jax.random.key(0), (7, 3)), jax.random.normal(jax.random.key(1), (7, 2))
    net = nets.mlp(sizes, ops.tanh, ops.logistic, nets.xavier_normal, bias)
    params = net.init(jax.random.key(2), x)
    assert list(params) == [f"dense_{i}" for i in range(len(sizes) - 1)]
    assert all(("bias" in layer) == bias for layer in params.values())

    def plain(params):
        y = plain_mlp(params, x, jnp.tanh, lambda z: 1 / (1 + jnp.exp(-z)))
        return jnp.sum((t - y) ** 2) / 2

    ours = lambda params: ops.squared_error(net.apply(params, x), t)
    np.testing.assert_allclose(ours(params), plain(params), rtol=1e-13)
    same_gradients(ours, plain, params)


def test_without_hidden_layer_it_is_the_delta_rule():
    x, t = jax.random.normal(jax.random.key(0), (3,)), jnp.array([0.3, -0.1])
    net = nets.mlp([3, 2])
    params = net.init(jax.random.key(1), x)
    error = t - (x @ params["dense_0"]["kernel"] + params["dense_0"]["bias"])
    gradient = bp.grad(lambda p: ops.squared_error(net.apply(p, x), t))(params)
    np.testing.assert_allclose(gradient["dense_0"]["kernel"], -np.outer(x, error), rtol=1e-14)
    np.testing.assert_allclose(gradient["dense_0"]["bias"], -error, rtol=1e-14)


@pytest.mark.slow
def test_hessian_times_a_vector():
    x, labels = jax.random.normal(jax.random.key(0), (7, 3)), jnp.arange(7) % 2
    net = nets.mlp([3, 4, 2], ops.gelu)
    params = net.init(jax.random.key(1), x)
    direction = jax.tree.map(jnp.ones_like, params)

    def plain(params):
        logits = plain_mlp(params, x, jax.nn.gelu, lambda z: z)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))

    ours = lambda p: jnp.mean(ops.softmax_cross_entropy_with_integer_labels(net.apply(p, x), labels))
    expected = jax.jvp(jax.grad(plain), (params,), (direction,))[1]
    for hvp in (bp.hvp(ours, (params,), (direction,)), jax.jvp(jax.grad(ours), (params,), (direction,))[1]):
        for g, w in zip(jax.tree.leaves(hvp), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-14)


@pytest.mark.slow
def test_leading_axes_and_dtypes():
    net = nets.mlp([3, 4, 2])
    params = net.init(jax.random.key(0), jnp.zeros((9, 3), jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    for batch in [(), (5,), (2, 5), (0,)]:
        y = net.apply(params, jnp.zeros((*batch, 3), jnp.bfloat16), key=jax.random.key(1))
        assert (y.shape, y.dtype) == ((*batch, 2), jnp.bfloat16)
    assert net.init(jax.random.key(0), jnp.zeros(3, jnp.int32))["dense_0"]["kernel"].dtype == jnp.float32
    assert net.init(jax.random.key(0), jax.ShapeDtypeStruct((3,), jnp.float64))["dense_0"]["bias"].dtype == jnp.float64


@pytest.mark.slow
def test_many_networks_at_once():
    net = nets.mlp([2, 3, 1])
    params = jax.vmap(lambda key: net.init(key, jnp.zeros(2)))(jax.random.split(jax.random.key(0), 5))
    assert params["dense_0"]["kernel"].shape == (5, 2, 3)
    assert jax.vmap(net.apply, (0, None))(params, jnp.zeros((4, 2))).shape == (5, 4, 1)


def test_autoencoder_is_an_mlp_mirrored():
    net, same = nets.autoencoder([8, 5, 3], ops.tanh), nets.mlp([8, 5, 3, 5, 8], ops.tanh)
    x = jax.random.normal(jax.random.key(0), (4, 8))
    params = net.init(jax.random.key(1), x)
    assert [layer["kernel"].shape for layer in params.values()] == [(8, 5), (5, 3), (3, 5), (5, 8)]
    np.testing.assert_array_equal(net.apply(params, x), same.apply(params, x))


def test_count():
    assert nets.count(nets.mlp([64, 32, 10]).init(jax.random.key(0), jnp.zeros(64))) == 64 * 32 + 32 + 32 * 10 + 10


@pytest.mark.parametrize("sizes", [[3], [], [3, 0], [3, -1, 2], [3, 2.5]], ids=str)
def test_wrong_sizes_are_named(sizes):
    with pytest.raises(ValueError, match="mlp needs at least 2 sizes, positive whole numbers, and got"):
        nets.mlp(sizes)
    with pytest.raises(ValueError, match="autoencoder needs at least 2 sizes"):
        nets.autoencoder(sizes)


def test_wrong_inputs_are_named():
    net = nets.mlp([3, 2])
    with pytest.raises(ValueError, match=r"takes inputs of shape \(batch..., 3\), and got shape \(5, 4\)"):
        net.init(jax.random.key(0), jnp.zeros((5, 4)))
    params = net.init(jax.random.key(0), jnp.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"inputs of shape \(batch..., 3\)"):
        net.apply(params, jnp.zeros((5, 4)))
