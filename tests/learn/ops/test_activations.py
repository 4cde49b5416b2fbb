"""Every activation against its plain formula, finite differences, JAX's own function, and at special values."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

import funcbp as bp
from funcbp import ops


class Row(NamedTuple):
    ours: Any
    plain: Any  # the formula as a textbook writes it
    jax: Any  # JAX's own function, for conventions at special values
    slope_low: float  # the derivative far to the left
    slope_high: float  # the derivative far to the right


def plain_gelu(x):
    return x * 0.5 * (1 + jax.scipy.special.erf(x / math.sqrt(2)))


def plain_gelu_tanh(x):
    return x / (1 + jnp.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))  # (1 + tanh u) / 2 cancels at -6


ROWS = {
    "identity": Row(ops.identity, lambda x: 1.0 * x, lambda x: x, 1, 1),
    "logistic": Row(ops.logistic, lambda x: 1 / (1 + jnp.exp(-x)), jax.nn.sigmoid, 0, 0),
    "tanh": Row(ops.tanh, lambda x: (jnp.exp(x) - jnp.exp(-x)) / (jnp.exp(x) + jnp.exp(-x)), jnp.tanh, 0, 0),
    "relu": Row(ops.relu, lambda x: jnp.where(x > 0, x, 0.0), jax.nn.relu, 0, 1),
    "leaky_relu": Row(
        functools.partial(ops.leaky_relu, negative_slope=0.2),
        lambda x: jnp.where(x > 0, x, 0.2 * x),
        functools.partial(jax.nn.leaky_relu, negative_slope=0.2),
        0.2,
        1,
    ),
    "elu": Row(
        functools.partial(ops.elu, alpha=1.5),
        lambda x: jnp.where(x > 0, x, 1.5 * (jnp.exp(x) - 1)),
        functools.partial(jax.nn.elu, alpha=1.5),
        0,
        1,
    ),
    "softplus": Row(ops.softplus, lambda x: jnp.log(1 + jnp.exp(x)), jax.nn.softplus, 0, 1),
    "swish": Row(ops.swish, lambda x: x / (1 + jnp.exp(-x)), jax.nn.swish, 0, 1),
    "mish": Row(ops.mish, lambda x: x * jnp.tanh(jnp.log(1 + jnp.exp(x))), jax.nn.mish, 0, 1),
    "gelu": Row(ops.gelu, plain_gelu_tanh, jax.nn.gelu, 0, 1),
    "gelu_exact": Row(
        functools.partial(ops.gelu, approximate=False),
        plain_gelu,
        functools.partial(jax.nn.gelu, approximate=False),
        0,
        1,
    ),
    "gaussian": Row(ops.gaussian, lambda x: jnp.exp(-(x**2)), lambda x: jnp.exp(-jnp.square(x)), 0, 0),
}
rows = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
POINTS = np.array([-6.0, -3.1, -1.0, -0.3, -1e-3, 1e-3, 0.2, 0.9, 1.7, 4.0, 6.0])


def derivative(f, order=1, grad=jax.grad):
    """The elementwise derivative of an elementwise function."""
    for _ in range(order):
        f = (lambda g: lambda x: grad(lambda z: jnp.sum(g(z)))(x))(f)
    return f


def finite_difference(f, x, h=1e-3):
    """The five-point central difference."""
    return (f(x - 2 * h) - 8 * f(x - h) + 8 * f(x + h) - f(x + 2 * h)) / (12 * h)


@rows
def test_value_is_the_formula(row):
    x = jnp.asarray(POINTS)
    np.testing.assert_allclose(row.ours(x), row.plain(x), rtol=1e-13, atol=1e-16)


@pytest.mark.slow(once=["row", "order"])
@rows
@pytest.mark.parametrize("grad", [bp.grad, jax.grad], ids=["funcbp", "jax"])
@pytest.mark.parametrize("order", [1, 2])
def test_derivatives_equal_those_of_the_formula(row, grad, order):
    x = jnp.asarray(POINTS)
    got = jax.jit(derivative(row.ours, order, grad))(x)
    np.testing.assert_allclose(got, jax.jit(derivative(row.plain, order))(x), rtol=1e-11, atol=1e-13)


@pytest.mark.slow
@rows
def test_derivative_equals_finite_difference(row):
    x = jnp.asarray(POINTS[np.abs(POINTS) > 0.01])
    ours = jax.jit(row.ours)
    np.testing.assert_allclose(derivative(ours)(x), finite_difference(ours, x), rtol=1e-9, atol=1e-11)


@pytest.mark.slow
@rows
@pytest.mark.parametrize("value", [0.0, -0.0], ids=["0", "-0"])
def test_at_zero_as_in_jax(row, value):
    x = jnp.array(value)
    assert row.ours(x) == row.jax(x)
    assert bp.grad(row.ours)(x) == pytest.approx(float(jax.grad(row.jax)(x)), abs=1e-15)


@pytest.mark.slow(once=["dtype"])
@rows
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_far_out_everything_is_finite(row, dtype):
    sizes = np.array([1e2, 1e4, 1e20, 1e30, 3e38])
    x = jnp.concatenate([-sizes, sizes]).astype(dtype)
    assert np.all(np.isfinite(np.asarray(row.ours(x), np.float64)))
    slopes = np.asarray(jax.jit(derivative(row.ours, 1, bp.grad))(x), np.float64)
    np.testing.assert_allclose(slopes, np.repeat([row.slope_low, row.slope_high], 5), rtol=5e-3, atol=1e-6)
    curvature = np.asarray(jax.jit(derivative(row.ours, 2, bp.grad))(x[np.abs(x) < 1e38]), np.float64)
    np.testing.assert_allclose(curvature, 0, atol=1e-6)


@rows
def test_nan_stays_nan(row):
    assert np.isnan(row.ours(jnp.array(np.nan)))


@pytest.mark.slow(once=["dtype"])
@rows
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64], ids=lambda d: d.__name__)
def test_narrow_dtypes_are_kept(row, dtype):
    x = jnp.linspace(-2.0, 3.0, 6).astype(dtype)
    y, pullback = bp.vjp(row.ours, x)
    (x_bar,) = pullback(jnp.ones_like(y))
    assert y.dtype == x_bar.dtype == x.dtype
    wide = x.astype(jnp.float64)
    tolerance = {"rtol": 8 * float(jnp.finfo(dtype).eps), "atol": 8 * float(jnp.finfo(dtype).eps)}
    np.testing.assert_allclose(np.asarray(y, np.float64), row.jax(wide), **tolerance)
    np.testing.assert_allclose(np.asarray(x_bar, np.float64), derivative(row.jax)(wide), **tolerance)


@pytest.mark.slow(once=["row"])
@rows
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3)], ids=str)
def test_shapes_are_kept(row, shape):
    y, pullback = bp.vjp(row.ours, jnp.ones(shape))
    assert y.shape == pullback(y)[0].shape == shape


@pytest.mark.slow
@rows
def test_under_jit_and_vmap(row):
    x = jnp.asarray(POINTS)
    expected = derivative(row.ours)(x)
    np.testing.assert_allclose(jax.jit(derivative(row.ours, grad=bp.grad))(x), expected, rtol=1e-14, atol=1e-16)
    np.testing.assert_allclose(jax.vmap(bp.grad(row.ours))(x), expected, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("name", ["relu", "leaky_relu"])
def test_rectifiers_keep_one_boolean_per_unit(name):
    _, pullback = bp.vjp(ROWS[name].ours, jnp.ones(5))
    (kept,) = (a for a in jax.tree.leaves(pullback) if a.ndim)  # the slope itself is a number
    assert (kept.shape, kept.dtype) == ((5,), jnp.bool_)


@pytest.mark.slow(once=[])
@pytest.mark.parametrize("name", ["logistic", "tanh", "elu", "softplus", "swish", "mish", "gelu", "gaussian"])
def test_these_keep_one_array_as_large_as_their_input(name):
    _, pullback = bp.vjp(ROWS[name].ours, jnp.ones(5))
    (kept,) = jax.tree.leaves(pullback)
    assert (kept.shape, kept.dtype) == ((5,), jnp.float64)


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.5, 1.0, 3.0])
def test_elu_with_any_alpha(alpha):
    x = jnp.asarray(POINTS)
    expected = derivative(functools.partial(jax.nn.elu, alpha=alpha))(x)
    np.testing.assert_allclose(derivative(lambda z: ops.elu(z, alpha), grad=bp.grad)(x), expected, rtol=1e-12)


@pytest.mark.slow(once=["axis"])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("grad", [bp.grad, jax.grad], ids=["funcbp", "jax"])
def test_softmax_against_the_formula(axis, grad):
    x = jax.random.normal(jax.random.key(0), (2, 3, 4))
    weights = jax.random.normal(jax.random.key(1), x.shape)

    def plain(x):
        return jnp.exp(x) / jnp.sum(jnp.exp(x), axis, keepdims=True)

    np.testing.assert_allclose(ops.softmax(x, axis), plain(x), rtol=1e-13)
    ours, expected = (lambda x: jnp.sum(weights * ops.softmax(x, axis))), lambda x: jnp.sum(weights * plain(x))
    np.testing.assert_allclose(jax.jit(grad(ours))(x), jax.jit(jax.grad(expected))(x), rtol=1e-11, atol=1e-15)
    twice = jax.jit(grad(lambda x: jnp.sum(jnp.sin(grad(ours)(x)))))(x)
    twice_expected = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(jax.grad(expected)(x)))))(x)
    np.testing.assert_allclose(twice, twice_expected, rtol=1e-10, atol=1e-14)


@pytest.mark.slow
def test_softmax_at_special_values():
    far = jnp.array([3e38, -3e38, 0.0], jnp.float32)
    y, pullback = bp.vjp(ops.softmax, far)
    np.testing.assert_array_equal(y, [1, 0, 0])
    np.testing.assert_array_equal(pullback(jnp.ones_like(y))[0], [0, 0, 0])
    masked = jnp.array([0.0, -jnp.inf, 0.0])
    np.testing.assert_array_equal(ops.softmax(masked), [0.5, 0, 0.5])
    assert np.all(np.isfinite(bp.grad(lambda x: ops.softmax(x)[0])(masked)))
    assert np.all(np.isnan(ops.softmax(jnp.array([0.0, jnp.nan]))))
    for shape in [(0,), (0, 3), (3, 0)]:
        assert ops.softmax(jnp.zeros(shape)).shape == shape
    assert ops.softmax(jnp.zeros((2, 3), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.slow
@rows
@pytest.mark.parametrize("grad", [bp.grad, jax.grad], ids=["funcbp", "jax"])
def test_forward_mode_works_over_the_gradient(row, grad):
    x = jnp.asarray(POINTS)
    _, second = jax.jvp(derivative(row.ours, grad=grad), (x,), (jnp.ones_like(x),))
    np.testing.assert_allclose(second, jax.jit(derivative(row.plain, 2))(x), rtol=1e-11, atol=1e-13)


@pytest.mark.slow(once=[])
@rows
def test_forward_mode(row):
    """By jvp, by a Jacobian, and under a Hessian, forward over reverse and forward over forward."""
    x = jnp.asarray(POINTS)
    first, second = (jax.jit(derivative(row.plain, order))(x) for order in (1, 2))
    _, tangent = jax.jvp(row.ours, (x,), (jnp.ones_like(x),))
    np.testing.assert_allclose(tangent, first, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(jnp.diag(jax.jacfwd(row.ours)(x)), first, rtol=1e-11, atol=1e-13)
    total = lambda x: jnp.sum(row.ours(x))
    for hessian in (jax.hessian, lambda f: jax.jacfwd(jax.jacfwd(f)), lambda f: jax.jacfwd(bp.grad(f))):
        np.testing.assert_allclose(hessian(total)(x), jnp.diag(second), rtol=1e-11, atol=1e-13)


# --- exact in the tails -----------------------------------------------------------------------------------------------

FAR = np.float32([-80, -40, -20, -17, -12, -8, -4, -2, 0, 1e-6, 2, 4, 8, 12, 17, 20, 40, 80])


def logistic_slope(x):
    return np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))) ** 2


def gelu_parts(x):
    """σ, σ' and σ'' at z = 2u, and z' and z''."""
    a = 2 * math.sqrt(2 / math.pi)
    z, dz, ddz = a * (x + 0.044715 * x**3), a * (1 + 3 * 0.044715 * x**2), a * 6 * 0.044715 * x
    slope = logistic_slope(z)
    return (
        np.where(z > 0, 1, np.exp(np.minimum(z, 0))) / (1 + np.exp(-np.abs(z))),
        slope,
        -slope * np.tanh(z / 2),
        dz,
        ddz,
    )


def gelu_first(x):
    s, ds, _, dz, _ = gelu_parts(x)
    return s + x * ds * dz


def gelu_second(x):
    _, ds, dds, dz, ddz = gelu_parts(x)
    return 2 * ds * dz + x * (dds * dz**2 + ds * ddz)


def softplus_of(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def mish_first(x):
    z = softplus_of(x)
    return np.tanh(z) + x * 4 * logistic_slope(2 * z) * sigma(x)


def mish_second(x):
    z = softplus_of(x)
    return 4 * logistic_slope(2 * z) * sigma(x) * (2 + x * (sigma(-x) - 2 * np.tanh(z) * sigma(x)))


def normal_density(x):
    return np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


exact_gelu = functools.partial(ops.gelu, approximate=False)


def sigma(x):
    return np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))


CLOSED = {  # a function, the order, the derivative in closed form without cancellation, and how many ulps are allowed
    "logistic, first": (ops.logistic, 1, logistic_slope, 4),
    "logistic, second": (ops.logistic, 2, lambda x: -np.tanh(x / 2) * logistic_slope(x), 6),
    "tanh, first": (ops.tanh, 1, lambda x: 4 * logistic_slope(2 * x), 4),
    "tanh, second": (ops.tanh, 2, lambda x: -8 * np.tanh(x) * logistic_slope(2 * x), 6),
    "softplus, first": (ops.softplus, 1, sigma, 4),
    "softplus, second": (ops.softplus, 2, logistic_slope, 4),
    "elu, first": (ops.elu, 1, lambda x: np.exp(np.minimum(x, 0)), 4),
    "elu, second": (ops.elu, 2, lambda x: np.where(x > 0, 0, np.exp(np.minimum(x, 0))), 4),
    "swish, first": (ops.swish, 1, lambda x: sigma(x) * (1 + x * sigma(-x)), 8),
    "swish, second": (ops.swish, 2, lambda x: logistic_slope(x) * (2 - x * np.tanh(x / 2)), 8),
    "mish, first": (ops.mish, 1, mish_first, 8),
    "mish, second": (ops.mish, 2, mish_second, 16),  # as much as rounding z makes of e^-2z
    "gelu, first": (ops.gelu, 1, gelu_first, 100),  # as much as rounding u, some hundreds, makes of e^u
    "gelu, second": (ops.gelu, 2, gelu_second, 100),
    "gelu exact, first": (exact_gelu, 1, lambda x: ndtr(x) + x * normal_density(x), 4),
    "gelu exact, second": (exact_gelu, 2, lambda x: (2 - x**2) * normal_density(x), 4),
    "gaussian, first": (ops.gaussian, 1, lambda x: -2 * x * np.exp(-(x**2)), 4),
    "gaussian, second": (ops.gaussian, 2, lambda x: (4 * x**2 - 2) * np.exp(-(x**2)), 4),
}


@pytest.mark.parametrize("grad", [bp.grad, jax.grad], ids=["funcbp", "jax"])
@pytest.mark.parametrize("name", CLOSED)
def test_exact_in_the_tails(name, grad):
    """In float32, wherever the derivative is a normal number; from the output, those of logistic are 0 from 17 on."""
    f, order, closed, allowed = CLOSED[name]
    for _ in range(order):
        f = grad(f)
    with np.errstate(under="ignore"):
        want = closed(FAR.astype(np.float64))
    got = np.asarray(jax.vmap(f)(FAR), np.float64)
    normal = np.abs(want) > np.finfo(np.float32).tiny
    ulps = np.abs(got - want)[normal] / np.spacing(np.abs(want[normal]).astype(np.float32))
    assert np.max(ulps) <= allowed, dict(zip(FAR[normal].tolist(), ulps.tolist(), strict=True))
    assert np.all(np.abs(got[~normal]) <= np.finfo(np.float32).tiny)
