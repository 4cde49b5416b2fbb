"""The dense layer against the plain product, by shape and dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcbp as bp
from funcbp import ops

transforms = pytest.mark.parametrize(
    "vjp", [bp.vjp, pytest.param(jax.vjp, marks=pytest.mark.slow)], ids=["funcbp", "jax"]
)


def plain(x, kernel, bias=None):
    net = jnp.einsum("...i,ij->...j", x, kernel)
    return net if bias is None else net + jnp.broadcast_to(bias, net.shape)


def arguments(batch, n_in, n_out, dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(*batch, n_in), (n_in, n_out), (n_out,), (*batch, n_out)]
    return [jax.random.normal(k, s, jnp.float64).astype(dtype) for k, s in zip(keys, shapes, strict=True)]


@pytest.mark.slow(once=["with_bias"])
@transforms
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        ((), (3, 4)),
        ((1,), (3, 4)),
        ((2, 3, 5), (3, 4)),
        ((2, 0), (3, 4)),
        ((7,), (1, 1)),
        ((7,), (0, 2)),
        ((7,), (2, 0)),
    ],
    ids=str,
)
def test_equals_the_plain_product(vjp, with_bias, batch, sizes):
    *primals, delta = arguments(batch, *sizes)
    primals = primals[: 2 + with_bias]

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def both_passes(vjp, layer, primals, delta):
        net, pullback = vjp(layer, *primals)
        return net, *pullback(delta)

    got_and_wanted = both_passes(vjp, ops.dense, primals, delta), both_passes(jax.vjp, plain, primals, delta)
    for got, want in zip(*got_and_wanted, strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-14)


def test_equals_finite_differences():
    *primals, delta = arguments((5,), 3, 4)
    directions = arguments((5,), 3, 4)[:3]

    def along(h):
        return jnp.sum(delta * ops.dense(*(p + h * d for p, d in zip(primals, directions, strict=True))))

    _, pullback = bp.vjp(ops.dense, *primals)
    slope = sum(float(jnp.sum(g * d)) for g, d in zip(pullback(delta), directions, strict=True))
    assert slope == pytest.approx(float((along(1e-4) - along(-1e-4)) / 2e-4), rel=1e-9)


@pytest.mark.parametrize("grad", [bp.grad, pytest.param(jax.grad, marks=pytest.mark.slow)], ids=["funcbp", "jax"])
def test_second_order(grad):
    x, kernel, bias, _ = arguments((5,), 3, 4)

    def twice(layer, grad):
        def loss(kernel):
            return jnp.sum(jnp.sin(layer(x, kernel, bias)))

        return grad(lambda kernel: jnp.sum(jnp.cos(grad(loss)(kernel))))(kernel)

    np.testing.assert_allclose(twice(ops.dense, grad), twice(plain, jax.grad), rtol=1e-11)


@pytest.mark.slow(once=["dtype"])
@transforms
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__)
def test_narrow_numbers_are_added_up_in_float32(vjp, dtype):
    n = 4096
    x, kernel, bias = jnp.ones((n, 3), dtype), jnp.ones((3, 2), dtype), jnp.ones(2, dtype)
    net, pullback = vjp(ops.dense, x, kernel, bias)
    x_bar, kernel_bar, bias_bar = pullback(jnp.ones_like(net))
    assert {a.dtype for a in (net, x_bar, kernel_bar, bias_bar)} == {jnp.dtype(dtype)}
    # added up one by one in bfloat16, ones stop at 256
    np.testing.assert_array_equal(np.asarray(kernel_bar, np.float64), np.full((3, 2), n))
    np.testing.assert_array_equal(np.asarray(bias_bar, np.float64), np.full(2, n))
    np.testing.assert_array_equal(np.asarray(ops.dense(jnp.ones(n, dtype), jnp.ones((n, 1), dtype)), np.float64), [n])


def test_keeps_the_input_and_the_kernel_alone():
    x, kernel, bias, _ = arguments((5,), 3, 4)
    _, pullback = bp.vjp(ops.dense, x, kernel, bias)
    assert sorted(a.shape for a in jax.tree.leaves(pullback)) == [(3, 4), (5, 3)]


def test_under_jit_and_vmap():
    x, kernel, bias, delta = arguments((5,), 3, 4)
    _, pullback = bp.vjp(ops.dense, x, kernel, bias)
    expected = pullback(delta)
    for got, want in zip(jax.jit(lambda *a: bp.vjp(ops.dense, *a)[1](delta))(x, kernel, bias), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-13)
    per_example = jax.vmap(lambda x, delta: bp.vjp(ops.dense, x, kernel, bias)[1](delta))(x, delta)
    np.testing.assert_allclose(per_example[0], expected[0], rtol=1e-13)
    np.testing.assert_allclose(jnp.sum(per_example[1], 0), expected[1], rtol=1e-13)


@pytest.mark.parametrize(
    ("x", "kernel", "bias", "message"),
    [
        ((5, 3), (4, 2), None, r"inputs of shape \(batch..., 4\) .* got shape \(5, 3\)"),
        ((), (4, 2), None, r"inputs of shape \(batch..., 4\)"),
        ((5, 3), (3,), None, r"kernel of shape \(in, out\), and got shape \(3,\)"),
        ((5, 3), (3, 2), (3,), r"bias of shape \(2,\) .* got shape \(3,\)"),
        ((5, 3), (3, 2), (1, 2), r"bias of shape \(2,\)"),
    ],
)
def test_wrong_shapes_are_named(x, kernel, bias, message):
    with pytest.raises(ValueError, match=message):
        ops.dense(jnp.ones(x), jnp.ones(kernel), None if bias is None else jnp.ones(bias))
