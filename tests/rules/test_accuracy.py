"""Second derivatives in float32, in the tails and near zero, against float64.

Within 4 ulp wherever JAX's are, and where JAX's are known to cancel.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcbp as bp

from ..interpret import interpreted
from .rows import ROWS

POINTS = [1e-12, 1e-6, 1e-3, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0]
FUNCTIONS = {
    "tanh": jnp.tanh,
    "logistic": jax.nn.sigmoid,
    "softplus": jax.nn.softplus,
    "log_sigmoid": jax.nn.log_sigmoid,
    "gelu": jax.nn.gelu,
    "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "erf": jax.scipy.special.erf,
    "asin": lambda x: jnp.arcsin(x / 10),
}


def ulps(got, want):
    """Distance of a float32 from a float64, in units of the last place of the float64 rounded."""
    spacing = np.spacing(np.abs(np.float32(want)))
    return float(abs(np.float64(got) - want) / max(float(spacing), float(np.finfo(np.float32).tiny)))


@pytest.mark.slow(once=["name"])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("sign", [1, -1])
def test_second_derivatives(name, sign):
    f = FUNCTIONS[name]
    second = lambda t, x: t.grad(t.grad(f))(x)
    for point in POINTS:
        x = np.float32(sign * point)
        want = float(second(jax, np.float64(x)))
        ours, theirs = ulps(second(bp, x), want), ulps(second(jax, x), want)
        assert ours <= 4 or theirs > 4, (point, ours, theirs)


def test_tanh_does_not_cancel_near_zero():
    """The second derivative of tanh at a tiny x is -2x, and not 0 (jax#39801 and others)."""
    for x in (1e-12, 1e-30):
        assert ulps(bp.grad(bp.grad(jnp.tanh))(np.float32(x)), -2 * float(np.float32(x))) <= 4


TAILS = {  # the function, which derivative, and that in closed form
    "log_sigmoid (jax#40383)": (jax.nn.log_sigmoid, 2, lambda x: -1 / (2 * np.cosh(x / 2)) ** 2),
    "softplus (jax#40387)": (jax.nn.softplus, 2, lambda x: 1 / (2 * np.cosh(x / 2)) ** 2),
    "logistic (jax#40342)": (jax.nn.sigmoid, 1, lambda x: 1 / (2 * np.cosh(x / 2)) ** 2),
    "logistic, second": (jax.nn.sigmoid, 2, lambda x: -np.tanh(x / 2) / (2 * np.cosh(x / 2)) ** 2),
    "logaddexp": (lambda x: jnp.logaddexp(x, x.dtype.type(0.5)), 2, lambda x: 1 / (2 * np.cosh((x - 0.5) / 2)) ** 2),
}


@pytest.mark.parametrize("name", TAILS)
def test_tails(name):
    """Within 4 ulp far out on both sides, where JAX's give 0 or a few digits, and at 0."""
    f, order, closed = TAILS[name]
    g = f
    for _ in range(order):
        g = bp.grad(g)
    x = np.float32([-80, -40, -20, -12, -6, -2, 0, 2, 6, 12, 20, 40, 80])
    got = jax.vmap(g)(x)
    errors = list(map(ulps, got, closed(x.astype(np.float64))))
    assert max(errors) <= 4, dict(zip(x.tolist(), errors, strict=True))


@pytest.mark.parametrize("sign", [1, -1])
def test_tanh_from_its_input(sign):
    """By the rule that keeps the input, tanh is exact far out too, where 1 - y² is not."""
    exact = bp.Backward(rules={jnp.tanh: bp.rules.tanh_from_input})
    x = sign * np.float32([1e-12, 1e-3, 0.5, 2, 8, 17, 40])
    wide = x.astype(np.float64)
    sech2 = 1 / np.cosh(wide) ** 2
    first = jax.vmap(exact.grad(jnp.tanh))(x)
    second = jax.vmap(exact.grad(exact.grad(jnp.tanh)))(x)
    assert max(map(ulps, first, sech2)) <= 4
    assert max(map(ulps, second, -2 * np.tanh(wide) * sech2)) <= 4
    assert ulps(bp.grad(jnp.tanh)(x[4]), sech2[4]) > 1e5


@pytest.mark.parametrize("x", [1e-12, -1e-6, 1e-3])
def test_logistic_does_not_cancel_near_zero(x):
    """The second derivative of the logistic at a tiny x is -x/8."""
    want = -np.tanh(np.float64(np.float32(x)) / 2) / (2 * np.cosh(np.float64(x) / 2)) ** 2
    assert ulps(bp.grad(bp.grad(jax.nn.sigmoid))(np.float32(x)), want) <= 4


def test_logaddexp_at_infinity():
    """Equal shares at equal infinities, and all to the larger where one is infinite."""
    inf = np.inf
    x, y = np.array([inf, -inf, inf, 1.0, -inf]), np.array([inf, -inf, 1.0, -inf, 1.0])
    got = jax.vmap(bp.grad(jnp.logaddexp, (0, 1)))(x, y)
    np.testing.assert_array_equal(got, [[0.5, 0.5, 1, 1, 0], [0.5, 0.5, 0, 0, 1]])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_erf_far_out(dtype):
    """Where e^(-x²) underflows, erf's first and second derivatives are 0, and not 0 times infinity."""
    x = jnp.array([12.0, -40.0, 1e3, -6e4, jnp.inf], dtype)
    for f in (lambda x: jax.scipy.special.erf(x).sum(), lambda x: jax.lax.erfc(x).sum()):
        first = bp.grad(f)(x)
        second = bp.grad(lambda x, f=f: bp.grad(f)(x).sum())(x)
        assert jnp.all(jnp.abs(first[1:]) == 0) and jnp.all(jnp.isfinite(first))
        assert jnp.all(jnp.abs(second[1:4]) == 0) and jnp.all(jnp.isfinite(second[:4]))


@pytest.mark.parametrize("f", [jax.scipy.special.erf, jax.scipy.special.log_ndtr, jax.scipy.special.i0e])
def test_what_is_no_number_stays_none(f):
    """Also in derivatives, which a bound on x would make 0."""
    for _ in range(3):
        f = bp.grad(f)
        assert np.isnan(interpreted(f, np.float32(np.nan)))


FIRST = {r.primitive: r for r in reversed(ROWS) if r.numeric and all(np.asarray(x).dtype == np.float64 for x in r.args)}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rules_work_in_narrow_types(dtype):
    """Each rule that JAX has in this dtype: the gradient's dtype is kept, and its value is JAX's to a few roundings."""
    tried, wrong = 0, []
    for row in FIRST.values():
        args = [jnp.asarray(x, dtype) for x in row.args]
        total = lambda *xs, f=row.f: sum(
            jnp.sum(y).astype(jnp.float32) for y in jax.tree.leaves(f(*xs)) if jnp.issubdtype(y.dtype, jnp.floating)
        )
        try:
            want = interpreted(jax.grad(total, tuple(range(len(args)))), *args)
        except Exception:  # JAX has no such operation in this dtype, or the row's function makes float64 of it
            continue
        got = interpreted(bp.grad(total, tuple(range(len(args)))), *args)
        tried += 1
        for g, w in zip(got, want, strict=True):
            g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
            scale = np.max(np.abs(w), initial=1.0)
            if not np.allclose(g, w, rtol=0.1, atol=32 * float(jnp.finfo(dtype).eps) * scale):
                wrong.append((row.primitive, row.label, float(np.max(np.abs(g - w)))))
    assert tried > 90 and not wrong, (tried, wrong)


HALF, SHORT, SMALLEST = jnp.float16, jnp.bfloat16, float(jnp.finfo(jnp.bfloat16).tiny)
PADS = jnp.array([1e10, 1.0], jnp.float32)
EDGES = {  # a function, where, and its derivative there; JAX 0.12 has another, or nan, but for asinh and softplus
    "x / y": (lambda y: 300 / y, HALF(300), -1 / 300),
    "x / y, large": (lambda y: jnp.float32(3e-30) / y, jnp.float32(1e-25), -3e20),
    "1 / x": (jnp.reciprocal, HALF(300), -1 / 300**2),
    "padding beside what is large": (lambda p: jax.lax.pad(p * 0 + PADS[:1], p, [(0, 1, 0)]) @ PADS, PADS[1], 1),
    "gammainc": (lambda x: jax.scipy.special.gammainc(1.0, x), jnp.float32(0), 1),
    "gammaincc": (lambda x: jax.scipy.special.gammaincc(1.0, x), jnp.float32(0), -1),
    "gammainc of several": (lambda x: jax.lax.igamma(jnp.float32([1, 1]), x).sum(), jnp.zeros(1, np.float32), 2),
    "betainc at 0": (lambda x: jax.scipy.special.betainc(1.0, 3.0, x), jnp.float32(0), 3),
    "betainc at 1": (lambda x: jax.scipy.special.betainc(2.0, 1.0, x), jnp.float32(1), 2),
    "asinh": (jnp.arcsinh, HALF(300), 1 / np.hypot(300, 1)),
    "asinh, large": (jnp.arcsinh, jnp.float32(1e30), 1e-30),
    "atan": (jnp.arctan, HALF(300), 1 / (300**2 + 1)),
    "atan2, large": (lambda y: jnp.arctan2(y, HALF(300)), HALF(300), 1 / 600),
    "atan2, small": (lambda x: jnp.arctan2(jnp.float32(1e-25), x), jnp.float32(2e-25), -2e24),
    "log2": (jnp.log2, SHORT(SMALLEST), 1 / (SMALLEST * np.log(2))),
    "rem just below an integer": (lambda y: jax.lax.rem(SHORT(0.5), y), SHORT(0.1), -4),
    "power with a large exponent": (lambda x: jax.lax.pow(x, SHORT(300)), SHORT(1.1015625), 300 * 1.1015625**299),
    "power of -1": (lambda x: jax.lax.pow(x, HALF(8188)), HALF(-1), -8188),
    "softplus": (jax.nn.softplus, HALF(-14), np.exp(-14)),
    "logaddexp": (lambda x: jnp.logaddexp(x, SHORT(1e20)), SHORT(1e20), 1 / 2),
    "logaddexp2": (lambda x: jnp.logaddexp2(x, HALF(8188)), HALF(8188), 1 / 2),
    "i0e far out": (jax.scipy.special.i0e, jnp.float32(1e6), -(1 + 3 / 8e6) / (np.sqrt(2e6 * np.pi) * 2e6)),
    "i1e far out": (jax.scipy.special.i1e, jnp.float32(-1e6), -(1 - 9 / 8e6) / (np.sqrt(2e6 * np.pi) * 2e6)),
    "i0e, narrow": (jax.scipy.special.i0e, HALF(90), -0.00023460712),
    "a row read often": (lambda x: x[np.zeros(3000, int)].sum(dtype=np.float32), jnp.zeros(1, jnp.bfloat16), 3000),
}


@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("name", EDGES)
def test_no_digits_are_lost_at_edges(name, run):
    """A square out of range, a sum that stops growing, a difference of sums, 0 times the logarithm of 0."""
    f, x, want = EDGES[name]
    got = run(bp.grad(lambda x: f(x).astype(np.float32)))(x)
    slack = 4 * float(jnp.finfo(x.dtype).eps) * abs(want) + float(jnp.finfo(x.dtype).smallest_subnormal)
    assert abs(float(got.ravel()[0]) - want) <= slack, got


@pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("dtype", [HALF, SHORT])
@pytest.mark.parametrize("n", [-1, -2, -5])
def test_negative_powers_round_once_in_narrow_types(n, dtype, run):
    """1/x rounds, and a power of it has that error as often as its exponent says."""
    x = jnp.linspace(0.6, 3, 100).astype(dtype)
    got = run(bp.grad(lambda x: jnp.sum(lax.integer_pow(x, n).astype(np.float32))))(x)
    want = n * np.asarray(x, np.float64) ** (n - 1)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("a", [1e-3, 1e-2, 0.05])
def test_small_gamma_draws(a):
    """The draw's quantile z^a / Γ(a + 1) stays as it is; JAX has another number where z is too small for float32."""
    draws = lambda a: jax.vmap(lambda key: jax.random.loggamma(key, a))(jax.random.split(jax.random.key(0), 20))
    log_z, slope = draws(np.float32(a)), jax.jit(bp.jacrev(draws))(np.float32(a))
    small, a = np.asarray(log_z) < -20, float(np.float32(a))
    assert small.sum() > 3
    log_quantile = a * np.float64(log_z) - math.lgamma(a + 1)
    moved = lambda h: (log_quantile + math.lgamma(a + h + 1)) / (a + h)
    want = (moved(1e-4 * a) - moved(-1e-4 * a)) / (2e-4 * a)
    np.testing.assert_allclose(slope[small], want[small], rtol=1e-5)


special = jax.scipy.special
FAR = {  # a function, where, and its first derivatives there, by mpmath to 60 digits; JAX 0.12 has others, but of erfcx
    "log_ndtr": (special.log_ndtr, -20, (20.0497530685, -0.997536738385, 0.000242726578936)),
    "log_ndtr, further": (special.log_ndtr, -1000, (1000.001, -0.999999000006, 1.9999760003e-9)),
    "dawsn": (special.dawsn, 20, (-0.00125471705615, 0.000125946393068, -1.89874981233e-5)),
    "erfcx": (special.erfcx, 20, (-0.00140521745346, 0.000139999343711, -2.08960654155e-5)),
    "i0e": (special.i0e, 40, (-0.000796050800793, 3.00458747255e-5, -1.89023312775e-6)),
    "i1e": (special.i1e, 40, (-0.000766004926068, 2.81556415977e-5, -1.72373372835e-6)),
    "digamma": (special.digamma, -10.25, (19.646252424623, 124.01647202149)),
    "digamma, further": (special.digamma, -20.25, (19.691025351009, 124.02278552474)),
    "i0 at 0": (special.i0, 0.0, (0, 1 / 2, 0, 3 / 8)),
    "i0 near 0": (special.i0, 1e-20, (0, 1 / 2, 0, 3 / 8)),
    "i1 at 0": (special.i1, 0.0, (1 / 2, 0, 3 / 8, 0)),
    "i1 near 0": (special.i1, -1e-20, (1 / 2, 0, 3 / 8, 0)),
    "jnp.i0": (jnp.i0, 0.0, (0, 1 / 2, 0, 3 / 8)),
    "x ** 2.0": (lambda x: lax.pow(x, x.dtype.type(2)), 0.0, (0, 2, 0, 0)),
    "x ** 0.0": (lambda x: lax.pow(x, x.dtype.type(0)), 0.0, (0, 0)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FAR)
def test_derivatives_that_cancel(name, dtype):
    """Far out or at 0, several times over: of a function by itself, and mapped."""
    f, x, want = FAR[name]
    for derivative in want:
        f = bp.grad(f)
        slack = max(64 * float(np.finfo(dtype).eps), 1e-10) * (abs(derivative) or 1)
        for run in (f, lambda x, f=f: jax.vmap(f)(x[None])[0]):
            got = float(interpreted(run, np.asarray(x, dtype)))
            assert abs(got - derivative) <= slack, (derivative, got)


def test_the_mixed_derivative_of_a_power_to_the_0():
    """∂²(x^y)/∂x∂y = x^(y-1) (1 + y log x), 1/x at y = 0, though the power to the 0 has slope 0 in x at 0."""
    mixed = bp.grad(bp.grad(lax.pow), 1)
    np.testing.assert_allclose(interpreted(mixed, np.float64(2.0), np.float64(0.0)), 0.5)


def test_log_ndtr_at_infinity():
    got = interpreted(jax.vmap(bp.grad(special.log_ndtr)), np.array([-np.inf, np.inf, -1e30, np.nan]))
    np.testing.assert_allclose(got, [np.inf, 0, 1e30, np.nan], rtol=1e-15)
