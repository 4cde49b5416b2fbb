"""The convolutional network against loops over windows, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcbp as bp
from funcbp import nets, ops


def plain_convolution(x, kernel, bias):
    """Cross-correlation with zeros around the border, window by window."""
    size = kernel.shape[0]
    low = (size - 1) // 2
    padded = jnp.pad(x, ((0, 0), (low, size - 1 - low), (low, size - 1 - low), (0, 0)))
    height, width = x.shape[1:3]
    windows = [[padded[:, u : u + height, v : v + width] for v in range(size)] for u in range(size)]
    net = sum(jnp.einsum("byxi,ij->byxj", windows[u][v], kernel[u, v]) for u in range(size) for v in range(size))
    return net + bias[None, None, None]


def plain_pool(x):
    quarters = [x[:, u : 2 * (x.shape[1] // 2) : 2, v : 2 * (x.shape[2] // 2) : 2] for u in (0, 1) for v in (0, 1)]
    return jnp.max(jnp.stack(quarters), 0)


def plain_convnet(params, x):
    for i in range(2):
        x = plain_pool(jnp.tanh(plain_convolution(x, **params[f"conv_{i}"])))
    x = x.reshape(x.shape[0], -1)
    x = jnp.tanh(jnp.einsum("bi,ij->bj", x, params["dense_0"]["kernel"]) + params["dense_0"]["bias"][None])
    return jnp.einsum("bi,ij->bj", x, params["dense_1"]["kernel"]) + params["dense_1"]["bias"][None]


@pytest.fixture
def setting():
    x = jax.random.normal(jax.random.key(0), (3, 7, 6, 2))
    net = nets.convnet((7, 6, 2), 4, channels=(3, 5), hidden=(6,), activation=ops.tanh)
    params = jax.tree.map(lambda p: p + 0.05, net.init(jax.random.key(1), x))
    return net, params, x


def test_parameters(setting):
    _, params, _ = setting
    shapes = {"/".join(k.key for k in path): leaf.shape for path, leaf in jax.tree.leaves_with_path(params)}
    assert shapes == {
        "conv_0/kernel": (3, 3, 2, 3),
        "conv_0/bias": (3,),
        "conv_1/kernel": (3, 3, 3, 5),
        "conv_1/bias": (5,),
        "dense_0/kernel": (1 * 1 * 5, 6),
        "dense_0/bias": (6,),
        "dense_1/kernel": (6, 4),
        "dense_1/bias": (4,),
    }


def test_value_by_loops(setting):
    net, params, x = setting
    np.testing.assert_allclose(net.apply(params, x), plain_convnet(params, x), rtol=1e-12)


def test_images_flat_or_not_and_any_leading_axes(setting):
    net, params, x = setting
    y = net.apply(params, x)
    np.testing.assert_array_equal(net.apply(params, x.reshape(3, -1)), y)
    np.testing.assert_allclose(net.apply(params, x[0]), y[0], rtol=1e-13)
    np.testing.assert_array_equal(net.apply(params, x[None]), y[None])
    assert net.apply(params, x[:0]).shape == (0, 4)


@pytest.mark.parametrize("grad", [bp.grad, pytest.param(jax.grad, marks=pytest.mark.slow)], ids=["funcbp", "jax"])
def test_gradients(setting, grad):
    net, params, x = setting
    weights = jax.random.normal(jax.random.key(2), (3, 4))
    got = jax.jit(grad(lambda p, x: jnp.sum(weights * net.apply(p, x)), (0, 1)))(params, x)
    want = jax.grad(lambda p, x: jnp.sum(weights * plain_convnet(p, x)), (0, 1))(params, x)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-14)


@pytest.mark.slow
def test_bfloat16():
    net = nets.convnet((4, 4, 1), 2, channels=(2,), hidden=())
    x = jnp.ones((3, 4, 4, 1), jnp.bfloat16)
    params = net.init(jax.random.key(0), x)
    assert net.apply(params, x).dtype == jnp.bfloat16
    gradient = bp.grad(lambda p: jnp.sum(net.apply(p, x)))(params)
    assert {g.dtype for g in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((8, 8), 10), "convnet's image needs at least 3 sizes"),
        (((8, 8, 1, 1), 10), r"image shape \(height, width, channels\), and got"),
        (((3, 8, 1), 10), "halves the image 2 times; 3 x 8 is too small"),
        (((8, 8, 1), 0), "convnet needs at least 2 sizes, positive whole numbers"),
        (((8, 8, 1), 2, ()), "convnet's stages needs at least 1 sizes"),
    ],
)
def test_wrong_sizes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        nets.convnet(*arguments)


def test_wrong_inputs_are_named(setting):
    net, params, _ = setting
    message = r"images of shape \(batch..., 7, 6, 2\) or \(batch..., 84\), and got shape \(5, 7\)"
    with pytest.raises(ValueError, match=message):
        net.init(jax.random.key(0), jnp.zeros((5, 7)))
    with pytest.raises(ValueError, match=message):
        net.apply(params, jnp.zeros((5, 7)))
