"""Special functions: one formula each, as for the other elementwise operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from .registry import def_elementwise, def_rule
from .traits import DEAR, ELEMENTWISE, Singularity

TWO_OVER_ROOT_PI, ROOT_PI_OVER_TWO = 2 / np.sqrt(np.pi), np.sqrt(np.pi) / 2


def exp_of_minus_square(x: jax.Array) -> jax.Array:
    """e^(-x²) without the rounding of x²: with x = h + l, h short enough that h² is exact, e^(-h²) e^(-l (x + h))."""
    kind = jnp.finfo(x.dtype)
    bound = lax.full_like(x, 1 + np.sqrt(-np.log(float(kind.smallest_subnormal))))  # beyond it the result is 0
    x = lax.clamp(lax.neg(bound), x, bound)
    high = lax.stop_gradient(lax.reduce_precision(x, kind.nexp, kind.nmant // 2))
    return lax.mul(lax.exp(lax.neg(lax.square(high))), lax.exp(lax.neg(lax.mul(x - high, x + high))))


def erf_slope(x: jax.Array, **_: Any) -> jax.Array:
    """z = erf x:  dz/dx = 2/√π e^(-x²)."""
    return lax.mul(lax.full_like(x, TWO_OVER_ROOT_PI), exp_of_minus_square(x))


def erf_inv_slope(z: jax.Array, **_: Any) -> jax.Array:
    """z = erf⁻¹ x:  dz/dx = √π/2 e^(z²)."""
    return lax.mul(lax.full_like(z, ROOT_PI_OVER_TWO), lax.exp(lax.square(z)))


def bessel_deficit(x: jax.Array) -> jax.Array:
    """1 - I₁(x) / I₀(x) far out, x > 0: a series in 1/x, where the difference of the two cancels.

    References:
        M. Abramowitz, I. Stegun, Handbook of mathematical functions (1964), 9.7.1.
    """
    coefficients = (1073 / 1024, 13 / 32, 25 / 128, 1 / 8, 1 / 8, 1 / 2, 0)
    t, total = lax.reciprocal(x), lax.full_like(x, 0)
    for c in coefficients:
        total = total * t + lax.full_like(x, c)
    return total


def far_out(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where six terms of the series are enough, and |x| with 1 elsewhere."""
    size = lax.abs(x)
    far = lax.gt(size, lax.full_like(x, 30 if jnp.finfo(x.dtype).bits == 32 else 1000))
    return far, where(far, size, 1)


def bessel_i0e_slope(x: jax.Array, **_: Any) -> jax.Array:
    """z = e^-|x| I₀(x):  dz/dx = e^-|x| I₁(x) - z sign x, and -z sign(x) (1 - I₁ / I₀) far out."""
    z, (far, size) = lax.bessel_i0e(x), far_out(x)
    return lax.select(far, lax.neg(z) * lax.sign(x) * bessel_deficit(size), lax.bessel_i1e(x) - lax.sign(x) * z)


def bessel_i1e_slope(x: jax.Array, **_: Any) -> jax.Array:
    """z = e^-|x| I₁(x):  dz/dx = e^-|x| I₀(x) - z (sign x + 1/x), and 1/2 near 0.

    Far out, with d = 1 - I₁ / I₀:  dz/dx = z sign(x) (d / (1 - d) - 1/|x|).
    """
    z, (far, size) = lax.bessel_i1e(x), far_out(x)
    deficit = bessel_deficit(size)
    out = z * lax.sign(x) * (deficit / (1 - deficit) - lax.reciprocal(size))
    tiny = lax.le(lax.abs(x), lax.full_like(x, jnp.finfo(x.dtype).eps))
    slope = lax.bessel_i0e(x) - z * (lax.sign(x) + lax.reciprocal(where(tiny, 1, x)))
    return lax.select(far, out, where(tiny, 0.5, slope))


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


def _no_derivative(what: str) -> Callable[..., Any]:
    def raise_(*_: Any, **params: Any) -> Any:
        raise NotImplementedError(f"The derivative of {what} has no closed form that JAX or funcbp implements.")

    return raise_


def_elementwise(primitives.erf_p, erf_slope, traits=ELEMENTWISE.but(bounds=(-1.0, 1.0)))
def_elementwise(primitives.erfc_p, lambda x, **_: lax.neg(erf_slope(x)))
def_elementwise(primitives.erf_inv_p, erf_inv_slope, save=OUTPUT, traits=EDGE)
POLES = DEAR.but(singular=Singularity.EDGE)
def_elementwise(primitives.lgamma_p, lambda x, **_: lax.digamma(x), traits=POLES)
def_elementwise(primitives.digamma_p, lambda x, **_: lax.polygamma(lax.full_like(x, 1), x), traits=POLES)
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
