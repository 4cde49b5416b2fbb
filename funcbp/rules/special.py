"""Special functions: one formula each, as for the other elementwise operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..cotangents import Cotangent
from ..jaxpr import primitives
from ..jaxpr.types import PyTree
from .contract import OUTPUT
from .elementwise import EDGE, grown, in_float32, where
from .registry import def_elementwise, def_named, def_rule, elementwise_rule
from .traits import DEAR, ELEMENTWISE, Singularity

TWO_OVER_ROOT_PI, ROOT_PI_OVER_TWO = 2 / np.sqrt(np.pi), np.sqrt(np.pi) / 2


def exp_of_minus_square(x: jax.Array) -> jax.Array:
    """e^(-x²) without the rounding of x²: with x = h + l, h short enough that h² is exact, e^(-h²) e^(-l (x + h))."""
    kind = jnp.finfo(x.dtype)
    bound = lax.full_like(x, 1 + np.sqrt(-np.log(float(kind.smallest_subnormal))))  # beyond it the result is 0
    x = lax.select(lax.gt(lax.abs(x), bound), bound, x)  # a nan stays one, in the derivative too
    high = lax.stop_gradient(lax.reduce_precision(x, kind.nexp, kind.nmant // 2))
    return lax.mul(lax.exp(lax.neg(lax.square(high))), lax.exp(lax.neg(lax.mul(x - high, x + high))))


def erf_slope(x: jax.Array, **_: Any) -> jax.Array:
    """z = erf x:  dz/dx = 2/√π e^(-x²)."""
    return lax.mul(lax.full_like(x, TWO_OVER_ROOT_PI), exp_of_minus_square(x))


def erf_inv_slope(z: jax.Array, **_: Any) -> jax.Array:
    """z = erf⁻¹ x:  dz/dx = √π/2 e^(z²)."""
    return lax.mul(lax.full_like(z, ROOT_PI_OVER_TWO), lax.exp(lax.square(z)))


def bessel_series(order: int, terms: int) -> list[Fraction]:
    """√(2πx) e^-x I(x) in powers of 1/x, far out.

    References:
        M. Abramowitz, I. Stegun, Handbook of mathematical functions (1964), 9.7.1.
    """
    factors = [Fraction((2 * k - 1) ** 2 - 4 * order**2, 8 * k) for k in range(1, terms)]
    return [math.prod(factors[:k], start=Fraction(1)) for k in range(terms)]


def quotient(above: Sequence[Fraction], below: Sequence[Fraction]) -> list[Fraction]:
    """The power series of a quotient of two, of which the second begins with 1."""
    terms: list[Fraction] = []
    for k, a in enumerate(above):
        terms.append(a - sum((q * b for q, b in zip(terms, below[k:0:-1], strict=True)), Fraction(0)))
    return terms


I1_SLOPE = [Fraction(2 * k + 1, 2 * math.factorial(k) * math.factorial(k + 1)) for k in range(10)]  # in powers of x²/4
DEFICIT = [Fraction(0), *(-q for q in quotient(bessel_series(1, 24), bessel_series(0, 24))[1:])]


def polynomial(coefficients: Sequence[Fraction], x: jax.Array) -> jax.Array:
    """Σ cₖ xᵏ."""
    total: jax.Array = jnp.zeros_like(x)
    for c in reversed(coefficients):
        total = total * x + lax.full_like(x, float(c))
    return total


def far_out(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Of x its sign, 1 at 0 as in the derivative of |x|; where it is far out, and there |x|, and d = 1 - I₁ / I₀.

    There I₀ - I₁ would cancel, and d is a series in 1/x.
    """
    side = where(lax.ge(x, lax.full_like(x, 0)), lax.full_like(x, 1), -1)
    bound = 10 if jnp.finfo(x.dtype).bits == 32 else 30
    far = lax.gt(lax.abs(x), lax.full_like(x, bound))
    size = where(far, lax.abs(x), bound)
    return side, far, size, polynomial(DEFICIT, lax.reciprocal(size))


def bessel_i0e_slope(x: jax.Array, **_: Any) -> jax.Array:
    """z = e^-|x| I₀(x):  dz/dx = e^-|x| I₁(x) - z sign x, and -z sign(x) (1 - I₁ / I₀) far out."""
    z, (side, far, _size, deficit) = lax.bessel_i0e(x), far_out(x)
    return lax.select(far, -z * side * deficit, lax.bessel_i1e(x) - side * z)


def bessel_i1e_slope(x: jax.Array, **_: Any) -> jax.Array:
    """z = e^-|x| I₁(x):  dz/dx = e^-|x| I₁'(x) - z sign x, where I₁' = I₀ - I₁ / x, and near 0 a series.

    Far out, with d = 1 - I₁ / I₀:  dz/dx = z sign(x) (d / (1 - d) - 1/|x|).
    """
    z, (side, far, size, deficit) = lax.bessel_i1e(x), far_out(x)
    near = lax.lt(lax.abs(x), lax.full_like(x, 1))
    at_0 = lax.exp(-lax.abs(x)) * polynomial(I1_SLOPE, lax.square(where(near, x, 0)) / 4)
    slope = lax.select(near, at_0, lax.bessel_i0e(x) - z / where(near, 1, x)) - side * z
    return lax.select(far, z * side * (deficit / (1 - deficit) - lax.reciprocal(size)), slope)


def trigamma(x: jax.Array, **_: Any) -> jax.Array:
    """z = ψ(x):  dz/dx = ψ'(x), left of 0 as π² / sin² πx - ψ'(1 - x), the sum that JAX makes being that for x > 0."""
    left = lax.lt(x, lax.full_like(x, 0))
    right = lax.polygamma(lax.full_like(x, 1), where(left, lax.sub(lax.full_like(x, 1), x), x))
    turn = where(left, lax.sub(x, lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN)), 0.5)
    pole = lax.square(lax.full_like(x, np.pi) / lax.sin(lax.mul(lax.full_like(x, np.pi), turn)))
    return where(left, lax.sub(pole, right), right)


def times_log(m: jax.Array, log: Callable[[jax.Array], jax.Array], x: jax.Array, zero: float) -> jax.Array:
    """m log(x), and 0 where m is 0 and so is `log`'s argument, which x = `zero` makes it: 0⁰ is 1."""
    both = lax.bitwise_and(lax.eq(m, lax.full_like(m, 0)), lax.eq(x, lax.full_like(x, zero)))
    return m * log(where(both, 1 - zero, grown(x, both.shape)))


def igamma_slope(a: jax.Array, x: jax.Array, **_: Any) -> jax.Array:
    """z = P(a, x):  dz/dx = e^-x x^(a-1) / Γ(a)."""
    power = times_log(a - lax.full_like(a, 1), lax.log, x, 0)
    return lax.exp(lax.neg(x) + power - lax.lgamma(a))


def betainc_slope(a: jax.Array, b: jax.Array, x: jax.Array, **_: Any) -> jax.Array:
    """z = I_x(a, b):  dz/dx = x^(a-1) (1-x)^(b-1) / B(a, b)."""
    one = lax.full_like(x, 1)
    log_beta = lax.lgamma(a) + lax.lgamma(b) - lax.lgamma(a + b)
    left, right = times_log(a - one, lax.log, x, 0), times_log(b - one, lambda x: lax.log1p(lax.neg(x)), x, 1)
    return lax.exp(right + left - log_beta)


ODD_FACTORIALS = [Fraction(math.prod(range(1, 2 * k, 2))) for k in range(21)]  # (2k-1)!!


def beyond(t: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where t > 0 is far out, t there, and its 1/(2t²).

    There √π t e^(t²) erfc t = Σ (2k-1)!! (-1/(2t²))ᵏ, and 2t times Dawson's integral is the same sum without the sign.

    References:
        M. Abramowitz, I. Stegun, Handbook of mathematical functions (1964), 7.1.23.
    """
    bound = 5 if jnp.finfo(t.dtype).bits == 32 else 8
    far = lax.gt(t, lax.full_like(t, bound))
    size = where(far, t, bound)
    return far, size, lax.square(lax.reciprocal(size)) / 2


@in_float32
def log_ndtr_slope(x: jax.Array) -> jax.Array:
    """z = log Φ(x):  dz/dx = φ(x) / Φ(x) = √(2/π) e^(-t²) / erfc t, t = -x / √2; d²z/dx² tends to -1.

    JAX's is e^(log φ - log Φ), two numbers as large as x² / 2.
    """
    t = x * -np.sqrt(0.5).astype(x.dtype)
    far, size, u = beyond(t)
    near = where(far, 0, t)
    ratio = np.sqrt(2 / np.pi).astype(x.dtype) * exp_of_minus_square(near) / lax.erfc(near)
    return lax.select(far, np.sqrt(2).astype(x.dtype) * size / polynomial(ODD_FACTORIALS, -u), ratio)


@in_float32
def dawsn_slope(x: jax.Array) -> jax.Array:
    """z = Dawson's integral of x:  dz/dx = 1 - 2x z, which cancels far out."""
    from jax.scipy.special import dawsn  # whoever calls it has it; `import funcbp` does without

    far, _, u = beyond(lax.abs(x))
    return lax.select(far, -u * polynomial(ODD_FACTORIALS[1:], u), 1 - 2 * x * dawsn(x))


@in_float32
def erfcx_slope(x: jax.Array) -> jax.Array:
    """z = e^(x²) erfc x:  dz/dx = 2x z - 2/√π, which cancels far out."""
    from jax.scipy.special import erfcx

    far, _, u = beyond(x)
    root = np.asarray(TWO_OVER_ROOT_PI, x.dtype)
    near = 2 * x * erfcx(x) - root
    return lax.select(far, -root * u * polynomial(ODD_FACTORIALS[1:], -u), near)


@in_float32
def i0_slope(x: jax.Array) -> jax.Array:
    """z = I₀(x):  dz/dx = I₁(x)."""
    return lax.exp(lax.abs(x)) * lax.bessel_i1e(x)


def _no_derivative(what: str) -> Callable[..., Any]:
    def raise_(*_: Any, **params: Any) -> Any:
        raise NotImplementedError(f"The derivative of {what} has no closed form that JAX or funcbp implements.")

    return raise_


def_elementwise(primitives.erf_p, erf_slope, traits=ELEMENTWISE.but(bounds=(-1.0, 1.0)))
def_elementwise(primitives.erfc_p, lambda x, **_: lax.neg(erf_slope(x)))
def_elementwise(primitives.erf_inv_p, erf_inv_slope, save=OUTPUT, traits=EDGE)
POLES = DEAR.but(singular=Singularity.EDGE)
def_elementwise(primitives.lgamma_p, lambda x, **_: lax.digamma(x), traits=POLES)
def_elementwise(primitives.digamma_p, trigamma, traits=POLES)
def_elementwise(
    primitives.polygamma_p,
    _no_derivative("polygamma with respect to its order"),
    lambda m, x, **_: lax.polygamma(lax.add(m, lax.full_like(m, 1)), x),
    traits=POLES,
)
def_elementwise(
    primitives.zeta_p,
    _no_derivative("zeta with respect to its exponent"),
    lambda s, q, **_: lax.neg(s) * lax.zeta(s + lax.full_like(s, 1), q),
    traits=POLES,
)
def_elementwise(primitives.igamma_p, lambda a, x, **_: lax.igamma_grad_a(a, x), igamma_slope, traits=DEAR)
def_elementwise(
    primitives.igammac_p,
    lambda a, x, **_: lax.neg(lax.igamma_grad_a(a, x)),
    lambda a, x, **_: lax.neg(igamma_slope(a, x)),
    traits=DEAR,
)
for name, slope in (("log_ndtr", log_ndtr_slope), ("_dawsn", dawsn_slope), ("_erfcx", erfcx_slope), ("_i0", i0_slope)):
    def_named(name, elementwise_rule(slope, name=name))
def_elementwise(primitives.bessel_i0e_p, lambda x, **_: in_float32(bessel_i0e_slope)(x), traits=DEAR)
def_elementwise(primitives.bessel_i1e_p, lambda x, **_: in_float32(bessel_i1e_slope)(x), traits=DEAR)
def_elementwise(
    primitives.regularized_incomplete_beta_p,
    _no_derivative("the incomplete beta function with respect to a"),
    _no_derivative("the incomplete beta function with respect to b"),
    betainc_slope,
    traits=DEAR,
)


def random_gamma_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool], *, log_space: bool) -> list[Cotangent]:
    """z drawn from Gamma(a, 1) by a key:  ā = z̄ dz/da at the draw's fixed quantile; of log z, divided by z.

    A small z has the quantile z^a / Γ(a + 1), up to a factor that is 1 to the last digit: d(log z)/da is
    (ψ(a + 1) - log z) / a, also where z itself is too small a number.
    """
    a, z = res
    if not log_space:
        return [None, ct * lax.random_gamma_grad(a, z)]
    small = lax.lt(z, lax.full_like(z, np.log(float(jnp.finfo(z.dtype).eps))))
    sample = where(small, 1, lax.exp(z))
    slope = lax.random_gamma_grad(a, sample) / sample
    return [None, ct * lax.select(small, (lax.digamma(a + 1) - z) / a, slope)]


def_rule(primitives.random_gamma_p, random_gamma_bwd, save=lambda primals, z, *_: (primals[1], z))
