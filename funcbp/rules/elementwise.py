"""Elementwise operations: one formula each.

Conventions at kinks and ties are JAX's:

| where | derivative |
|---|---|
| `abs` at 0 | 1 (the rule is `x >= 0`); complex: 0 |
| `sign`, `floor`, `ceil`, `round` | 0 everywhere |
| `max`, `min` at a tie | one half to each |
| `clamp` at a bound | 0 for the operand |
| `sqrt` at 0 | inf; `rsqrt`, `log` at 0 inf |
| `x ** y` at x = 0 | 0 for y; for x, y x^(y-1), and 0 at y = 0 (JAX: nan at y = 0.0) |
| `select_n` | to the case selected |
| `jax.nn.relu` at 0 | 0 (its own `custom_jvp` rule, not that of `max`) |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from ..cotangents import Cotangent, Moves, Zero, is_differentiable, unbroadcast
from ..jaxpr import aval_of, elementwise_primitive, like, primitive, primitives
from ..jaxpr.types import Aval, JaxprEqn, PyTree, Value
from .contract import OUTPUT, TYPES
from .kinds import CastRule, ZeroOnRealsRule
from .registry import (
    def_bilinear,
    def_elementwise,
    def_linear,
    def_named,
    def_nondiff,
    def_rule,
    def_zero,
    enter,
    linear_rule,
    rule,
)
from .traits import ELEMENTWISE, STRUCTURAL, Digits, Singularity, Traits, free, results


def is_complex(x: Value | Aval) -> bool:
    return jax.dtypes.issubdtype(x.dtype, np.complexfloating)


def where(mask: jax.Array, x: ArrayLike, y: ArrayLike) -> jax.Array:
    """`x` where the mask holds and `y` elsewhere; a number stands for an array of it."""
    like = x if hasattr(x, "dtype") else y
    fill = lambda v: v if hasattr(v, "dtype") else lax.full_like(like, v)
    return lax.select(mask, fill(x), fill(y))


def in_float32(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """f of arrays of one dtype, computed in float32 and rounded once where that is float16 or bfloat16."""

    def computed(*xs: jax.Array) -> jax.Array:
        dtype = xs[0].dtype
        if not jax.dtypes.issubdtype(dtype, np.floating) or jnp.finfo(dtype).bits >= 32:
            return f(*xs)
        return lax.convert_element_type(f(*(lax.convert_element_type(x, np.float32) for x in xs)), dtype)

    return computed


def grown(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    """x, repeated along the axes it lacks."""
    return x if jnp.shape(x) == tuple(shape) else jnp.broadcast_to(x, shape)


# --- arithmetic -------------------------------------------------------------------------------------------------------


def add_bwd(types: Sequence[Aval], ct: jax.Array, perturbed: Sequence[bool]) -> list[Cotangent]:
    """z = x + y:  x̄ = z̄, ȳ = z̄, summed back over axes that were broadcast. Keeps nothing."""
    return [unbroadcast(ct, x) if p else Zero for x, p in zip(types, perturbed, strict=True)]


def sub_bwd(types: Sequence[Aval], ct: jax.Array, perturbed: Sequence[bool]) -> list[Cotangent]:
    """z = x - y:  x̄ = z̄, ȳ = -z̄. Keeps nothing."""
    x, y = types
    return [
        unbroadcast(ct, x) if perturbed[0] else Zero,
        lax.neg(unbroadcast(ct, y)) if perturbed[1] else Zero,
    ]


def mul_left(ct: jax.Array, y: jax.Array, x: Aval, *, out_dtype: DTypeLike | None = None) -> jax.Array:
    """z = x y:  x̄ = z̄ y."""
    return unbroadcast(lax.mul(ct, y) if out_dtype is None else (ct * y.astype(ct.dtype)).astype(x.dtype), x)


def mul_right(ct: jax.Array, x: jax.Array, y: Aval, *, out_dtype: DTypeLike | None = None) -> jax.Array:
    """z = x y:  ȳ = z̄ x."""
    return mul_left(ct, x, y, out_dtype=out_dtype)


def div_save(primals: Sequence[jax.Array], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]) -> PyTree:
    x, y = primals
    return jax.typeof(x), y, (x if perturbed[1] else None)


def div_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool]) -> list[Cotangent]:
    """z = x / y:  x̄ = z̄ / y,  ȳ = -(z̄ / y) (x / y): y² is out of the range of float16 where y is above 256.

    Keeps x only where y is perturbed.
    """
    x_type, y, x = res
    quotient = lax.div(ct, y)
    return [
        unbroadcast(quotient, x_type) if perturbed[0] else Zero,
        unbroadcast(lax.mul(lax.neg(quotient), lax.div(x, y)), y) if perturbed[1] else Zero,
    ]


def types_or_both(
    primals: Sequence[jax.Array], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]
) -> PyTree:
    """Two primals where the second is perturbed, and their types alone where it is not."""
    return tuple(primals) if perturbed[1] else TYPES(primals, outs, perturbed, params)


def rem_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool]) -> list[Cotangent]:
    """z = x - y trunc(x/y):  x̄ = z̄,  ȳ = -z̄ trunc(x/y). Keeps x and y only where y is perturbed.

    The integer is (x - z) / y, rounded: x / y can round up to the next one, which trunc(x/y) is not.
    """
    x, y = res
    return [
        unbroadcast(ct, x) if perturbed[0] else Zero,
        unbroadcast(lax.neg(ct) * lax.round(lax.div(lax.sub(x, lax.rem(x, y)), y)), y) if perturbed[1] else Zero,
    ]


def pow_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool]) -> list[Cotangent]:
    """z = x^y:  x̄ = z̄ y x^(y-1), and 0 where y is the integer 0;  ȳ = z̄ z log x, with log x read as 0 where x = 0.

    Keeps y only where x is perturbed, and z only where y is.
    """
    x, y, z = res
    x_bar = y_bar = None
    if perturbed[0]:
        power = lax.convert_element_type(y, z.dtype) if not is_integer(y) else y
        x_bar = unbroadcast(ct * _pow_slope(x, power, z), x)
    if perturbed[1]:
        base = lax.convert_element_type(x, z.dtype)
        log = lax.log(where(lax.eq(base, lax.full_like(base, 0)), 1, base))
        y_bar = like(unbroadcast(lax.convert_element_type(ct * log * z, y.dtype), y), aval_of(y))
    return [x_bar, y_bar]


def is_integer(x: Value | Aval) -> bool:
    return jax.dtypes.issubdtype(jax.typeof(x).dtype, np.integer)


def _pow_slope(x: jax.Array, y: jax.Array, z: jax.Array) -> jax.Array:
    """y x^(y-1), of the output's shape and dtype: 0 where x and y are 0, and for integer exponents, where y is."""
    x, y = grown(x, z.shape), grown(y, z.shape)
    is_zero = lax.eq(y, lax.full_like(y, 0))
    if not is_integer(y):
        x = where(lax.bitwise_and(is_zero, lax.eq(x, lax.full_like(x, 0))), 1, x)
        return in_float32(lambda x, y: lax.mul(y, lax.pow(x, lax.sub(y, lax.full_like(y, 1)))))(x, y)  # 299 of bfloat16
    one = lax.full_like(y, 1)
    safe = lax.select(is_zero, one, y)
    slope = lax.mul(lax.convert_element_type(safe, z.dtype), lax.pow(x, lax.sub(safe, one)))
    return lax.select(is_zero, lax.full_like(slope, 0), slope)


def pow_save(primals: Sequence[jax.Array], z: jax.Array, perturbed: Sequence[bool], params: dict[str, Any]) -> PyTree:
    x, y = primals
    return x, (y if perturbed[0] else jax.typeof(y)), (z if perturbed[1] else jax.typeof(z))


def polynomial_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool], **params: Any) -> list[Cotangent]:
    """z = Σ aₖ xᵏ:  x̄ = z̄ Σ k aₖ x^(k-1),  āₖ = z̄ xᵏ. Keeps the coefficients only where x is perturbed."""
    x, *coefficients = res
    x_bar: Cotangent = Zero
    if perturbed[0]:
        slopes = [c * k for k, c in enumerate(coefficients[1:], 1)]
        x_bar = unbroadcast(ct * lax.polynomial(x, slopes, **params), x)  # type: ignore[attr-defined]
    bars, power = [], ct
    last = max((k for k, p in enumerate(perturbed[1:]) if p), default=-1)
    for k, (c, p) in enumerate(zip(coefficients, perturbed[1:], strict=True)):
        power = lax.mul(power, x) if 0 < k <= last else power
        bars.append(unbroadcast(power, c) if p else Zero)
    return [x_bar, *bars]


def polynomial_save(
    primals: Sequence[jax.Array], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]
) -> PyTree:
    x, *coefficients = primals
    kept = (c if perturbed[0] and k else jax.typeof(c) for k, c in enumerate(coefficients))
    return (x if perturbed[0] or any(perturbed[2:]) else jax.typeof(x)), *kept


def integer_pow_slope(x: jax.Array, *, y: int) -> jax.Array:
    """z = x^n:  x̄ = z̄ n x^(n-1), and n (1/x)^(1-n) where n < 0: a power of x itself is out of range sooner.

    That power has the rounding error of 1/x as many times: in float32 at least.
    """
    if y in (0, 1):
        return lax.full(x.shape, y, x.dtype)
    if y > 0:
        return lax.mul(lax.full_like(x, y), lax.integer_pow(x, y - 1))
    return in_float32(lambda x: lax.mul(lax.full_like(x, y), lax.integer_pow(lax.integer_pow(x, -1), 1 - y)))(x)


def integer_pow_save(
    primals: Sequence[jax.Array], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]
) -> PyTree:
    return TYPES(primals, outs, perturbed, params) if params["y"] in (0, 1) else tuple(primals)


def extremum(op: Callable[..., jax.Array]) -> Callable[..., list[Cotangent]]:
    """The backward rule of `max` or `min`."""

    def extremum_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool]) -> list[Cotangent]:
        """z = max(x, y) or min:  the cotangent goes to the operand that was chosen, half to each at a tie.

        Neither was chosen where z is nan. The cotangent is nan there too, if z was computed with, and is not lost.
        """
        x, y = res
        z = op(x, y)
        x_won, y_won = lax.eq(x, z), lax.eq(y, z)
        half = lax.mul(ct, lax.full_like(ct, 0.5))
        neither = where(lax.eq(z, z), 0, lax.mul(ct, lax.full_like(ct, 0)))
        share = lambda mine, others: where(mine, where(others, half, ct), neither)
        return [
            unbroadcast(share(x_won, y_won), x) if perturbed[0] else Zero,
            unbroadcast(share(y_won, x_won), y) if perturbed[1] else Zero,
        ]

    return extremum_bwd


def select_n_save(
    primals: Sequence[jax.Array], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]
) -> PyTree:
    spike_becomes_number = perturbed[0] and not any(perturbed[1:])
    return (primals[0], primals[1:] if spike_becomes_number else None)


def select_n_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool]) -> list[Cotangent]:
    """z = cases[which]:  each case gets the cotangent where it was selected, and zero elsewhere. Keeps which.

    Between two constants, a `which` that has a cotangent (see the kind "step") gets z̄ (case₁ - case₀).
    """
    which, constants = res
    zeros = lax.full_like(ct, 0)
    n = len(perturbed) - 1
    return [
        None if constants is None else ct * (constants[1] - constants[0]),
        *(
            lax.select_n(which, *(ct if j == i else zeros for j in range(n))) if perturbed[i + 1] else Zero
            for i in range(n)
        ),
    ]


def clamp_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool]) -> list[Cotangent]:
    """z = min(max(x, low), high):  x̄ = z̄ strictly between the bounds;  a bound gets z̄ where it was the result."""
    low, x, high = res
    highs = grown(high, x.shape)
    back = lambda mask, operand: unbroadcast(where(mask, ct, 0), operand)
    low_bar = x_bar = None
    if perturbed[0] or perturbed[1]:
        lows = grown(low, x.shape)
        low_bar = back(lax.bitwise_and(lax.gt(lows, x), lax.lt(lows, highs)), low) if perturbed[0] else None
        x_bar = back(lax.bitwise_and(lax.gt(x, lows), lax.lt(x, highs)), x) if perturbed[1] else None
    return [low_bar, x_bar, back(lax.lt(highs, x), high) if perturbed[2] else None]


def horner(eqn: JaxprEqn) -> int:
    """A multiplication and an addition for each coefficient but one."""
    return 2 * (len(eqn.invars) - 2) * results(eqn)


def clamp_save(primals: Sequence[jax.Array], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]) -> PyTree:
    low, x, high = primals
    return (low if perturbed[0] or perturbed[1] else jax.typeof(low)), x, high


PAIR, PRODUCT, STEEP = (ELEMENTWISE.but(digits=d) for d in (Digits.PAIR, Digits.PRODUCT, Digits.STEEP))
SCALED, QUOTIENT = ELEMENTWISE.but(linear=(0,), scales=(0,)), ELEMENTWISE.but(singular=Singularity.DIVISION)
ROOT, LOG, POWER, EDGE = (
    ELEMENTWISE.but(singular=s) for s in (Singularity.ROOT, Singularity.LOG, Singularity.POWER, Singularity.EDGE)
)

def_rule(primitives.add_p, add_bwd, save=TYPES, traits=PAIR)
def_rule(primitives.add_jaxvals_p, add_bwd, save=TYPES, traits=PAIR)
def_rule(primitives.sub_p, sub_bwd, save=TYPES, traits=PAIR)
def_bilinear(primitives.mul_p, mul_left, mul_right, factored=False, traits=PRODUCT.but(scales=(0, 1)))
def_rule(primitives.div_p, div_bwd, save=div_save, traits=QUOTIENT.but(linear=(0,), scales=(0,), digits=Digits.PRODUCT))
def_rule(primitives.rem_p, rem_bwd, save=types_or_both, traits=QUOTIENT)
def_rule(primitive("polynomial_p"), polynomial_bwd, save=polynomial_save, traits=ELEMENTWISE.but(flops=horner))
def_rule(primitives.pow_p, pow_bwd, save=pow_save, traits=POWER)
def_rule(primitives.max_p, extremum(lax.max), traits=ELEMENTWISE)
def_rule(primitives.min_p, extremum(lax.min), traits=ELEMENTWISE)
def_rule(primitives.select_n_p, select_n_bwd, save=select_n_save, traits=STRUCTURAL.but(moves=Moves.ONCE))
def_rule(primitives.clamp_p, clamp_bwd, save=clamp_save, traits=ELEMENTWISE)
def_linear(primitives.neg_p, lambda ct, x: lax.neg(ct), traits=SCALED)
def_elementwise(
    primitives.integer_pow_p, integer_pow_slope, save=integer_pow_save, traits=QUOTIENT.but(digits=Digits.PRODUCT)
)


def nextafter_bwd(types: Sequence[Aval], ct: jax.Array, perturbed: Sequence[bool], **_: Any) -> list[Cotangent]:
    """The number beside x: it moves as x does, and y only says on which side. As newer JAX has it."""
    return [unbroadcast(ct, types[0]), None]


def_rule(primitives.nextafter_p, nextafter_bwd, save=TYPES, traits=ELEMENTWISE)
def_elementwise(primitives.square_p, lambda x, **_: lax.mul(lax.full_like(x, 2), x), traits=PRODUCT)


def abs_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool]) -> list[Cotangent]:
    """z = |x|:  x̄ = z̄ where x >= 0 and -z̄ elsewhere; complex, dz = Re(conj(x) dx) / |x|, so x̄ = z̄ conj(x) / |x|.

    Keeps z for complex numbers alone.
    """
    x, *complex_only = res
    if not complex_only:
        return [where(lax.ge(x, lax.full_like(x, 0)), ct, lax.neg(ct))]
    (z,) = complex_only
    size = where(lax.eq(z, lax.full_like(z, 0)), 1, z)
    return [lax.complex(ct / size, lax.full_like(ct, 0)) * lax.conj(x)]


def_rule(
    primitives.abs_p,
    abs_bwd,
    save=lambda primals, z, *_: (*primals, z) if is_complex(primals[0]) else primals,
    traits=ELEMENTWISE,
)

# --- exponentials, logarithms, roots ----------------------------------------------------------------------------------

# Each line: z = f(x), the primitive; then dz/dx from the output z or from the input x, whichever is kept.
def_elementwise(primitives.exp_p, lambda z, **_: z, save=OUTPUT, traits=STEEP)
def_elementwise(primitives.exp2_p, lambda z, **_: lax.mul(lax.full_like(z, np.log(2)), z), save=OUTPUT, traits=STEEP)
def_elementwise(primitives.expm1_p, lambda x, **_: lax.exp(x))  # z + 1 would cancel where z is near -1
def_elementwise(primitives.sqrt_p, lambda z, **_: lax.div(lax.full_like(z, 0.5), z), save=OUTPUT, traits=ROOT)
def_elementwise(
    primitives.rsqrt_p,
    lambda x, z, **_: lax.div(lax.mul(lax.full_like(z, -0.5), z), x),
    save=lambda p, z, *_: (*p, z),
    traits=ROOT,
)
def_elementwise(primitives.cbrt_p, lambda z, **_: lax.integer_pow(z, -2) / 3, save=OUTPUT, traits=POWER)


def log_bwd(
    res: PyTree, ct: jax.Array, perturbed: Sequence[bool], *, accuracy: lax.AccuracyMode | lax.Tolerance | None = None
) -> list[Cotangent]:
    """z = log x:  x̄ = z̄ / x."""
    return [lax.div(ct, res[0])]


def log2_bwd(
    res: PyTree, ct: jax.Array, perturbed: Sequence[bool], *, accuracy: lax.AccuracyMode | lax.Tolerance | None = None
) -> list[Cotangent]:
    """z = log₂ x:  x̄ = z̄ / (x log 2)."""
    return [lax.div(lax.mul(ct, lax.full_like(ct, 1 / np.log(2))), res[0])]


def log1p_bwd(
    res: PyTree, ct: jax.Array, perturbed: Sequence[bool], *, accuracy: lax.AccuracyMode | lax.Tolerance | None = None
) -> list[Cotangent]:
    """z = log(1 + x):  x̄ = z̄ / (1 + x)."""
    return [lax.div(ct, lax.add(res[0], lax.full_like(res[0], 1)))]


def_rule(primitives.log_p, log_bwd, traits=LOG)
def_rule(primitive("log2_p"), log2_bwd, traits=LOG)
def_rule(primitives.log1p_p, log1p_bwd, traits=LOG)

# --- trigonometric and hyperbolic -------------------------------------------------------------------------------------


def _one_minus_square(x: jax.Array) -> jax.Array:
    """1 - x² as (1 - x)(1 + x), accurate near ±1."""
    one = lax.full_like(x, 1)
    return lax.mul(lax.sub(one, x), lax.add(one, x))


def one_minus_square_slope(x: jax.Array, **_: Any) -> jax.Array:
    """z = 1 - x²:  dz/dx = -2x, where the derivative of that product cancels near 0."""
    return lax.mul(lax.full_like(x, -2), x)


one_minus_square_p = primitive("one_minus_square_p") or elementwise_primitive(  # newer JAX has it
    "one_minus_square", _one_minus_square, one_minus_square_slope
)
one_minus_square = one_minus_square_p.bind
def_elementwise(one_minus_square_p, one_minus_square_slope)


def tanh_slope(y: jax.Array, **_: Any) -> jax.Array:
    """y = tanh x:  dy/dx = (1 - y)(1 + y), accurate in the tails. Keeps y: the derivative needs only the output."""
    return one_minus_square(y)


def tanh_from_input_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool], **_: Any) -> list[Cotangent]:
    """y = tanh x:  x̄ = ȳ sech² x = ȳ 4 σ'(2x), exact in the tails. Keeps x, which `tanh_slope` does without."""
    (x,) = res
    return [lax.mul(ct, lax.mul(lax.full_like(x, 4), logistic_slope(lax.mul(lax.full_like(x, 2), x))))]


def _logistic_slope(x: jax.Array) -> jax.Array:
    """y = σ(x) = 1 / (1 + e^-x):  dy/dx = y (1 - y) = σ(x) σ(-x) = e^-|x| / (1 + e^-|x|)².

    Keeps x: from y near 1, 1 - y cannot be had.
    """
    if is_complex(x):
        return lax.mul(lax.logistic(x), lax.logistic(lax.neg(x)))
    small = lax.exp(lax.neg(lax.abs(x)))
    return lax.div(small, lax.square(lax.add(lax.full_like(x, 1), small)))


def logistic_curvature(x: jax.Array, **_: Any) -> jax.Array:
    """z = σ'(x):  dz/dx = -σ'(x) tanh(x/2), in which nothing cancels near 0."""
    return lax.mul(lax.neg(logistic_slope(x)), lax.tanh(lax.mul(lax.full_like(x, 0.5), x)))


logistic_slope_p = elementwise_primitive("logistic_slope", _logistic_slope, logistic_curvature)
logistic_slope = logistic_slope_p.bind
def_elementwise(logistic_slope_p, logistic_curvature)


def is_positive(primals: Sequence[jax.Array], out: jax.Array, perturbed: Sequence[bool], params: Any) -> jax.Array:
    """Keep where z = max(x, 0) is positive, which is where x is, but in the place of x, z is mostly kept anyhow."""
    return lax.gt(out, np.zeros((), out.dtype))


def relu_bwd(positive: jax.Array, ct: jax.Array, perturbed: Sequence[bool]) -> list[Cotangent]:
    """z = max(x, 0):  x̄ = z̄ where x > 0, and 0 elsewhere, at 0 too."""
    return [where(positive, ct, 0)]


def shares(res: Sequence[jax.Array], ct: jax.Array, perturbed: Sequence[bool], rate: float) -> list[Cotangent]:
    """x̄ = σ(rate (x - y)) z̄, ȳ = σ(rate (y - x)) z̄, in equal shares at equal infinities."""
    x, y = res
    infinite = lax.bitwise_and(lax.eq(x, y), lax.bitwise_not(lax.is_finite(x)))
    difference = where(infinite, 0, lax.sub(x, y))
    share = in_float32(lambda d: lax.logistic(d if rate == 1 else lax.mul(d, lax.full_like(d, rate))))
    return [
        lax.mul(ct, share(difference)) if perturbed[0] else Zero,
        lax.mul(ct, share(lax.neg(difference))) if perturbed[1] else Zero,
    ]


def logaddexp_bwd(res: Sequence[jax.Array], ct: jax.Array, perturbed: Sequence[bool]) -> list[Cotangent]:
    """z = log(e^x + e^y):  x̄ = σ(x - y) z̄, ȳ = σ(y - x) z̄.

    The same numbers as JAX's e^(x - z), whose own derivative cancels in the tail: softplus, log_sigmoid.
    """
    return shares(res, ct, perturbed, 1)


def logaddexp2_bwd(res: Sequence[jax.Array], ct: jax.Array, perturbed: Sequence[bool]) -> list[Cotangent]:
    """z = log₂(2^x + 2^y):  x̄ = σ((x - y) log 2) z̄, ȳ = σ((y - x) log 2) z̄."""
    return shares(res, ct, perturbed, np.log(2))


def_elementwise(primitives.tanh_p, tanh_slope, save=OUTPUT, traits=ELEMENTWISE.but(bounds=(-1.0, 1.0)))
tanh_from_input = rule(tanh_from_input_bwd)  # for `Backward(rules={jnp.tanh: tanh_from_input})`
def_elementwise(primitives.logistic_p, lambda x, **_: logistic_slope(x), traits=ELEMENTWISE.but(bounds=(0.0, 1.0)))
def_named("relu", rule(relu_bwd, save=is_positive))
def_named("logaddexp", rule(logaddexp_bwd))
def_named("logaddexp2", rule(logaddexp2_bwd))
def_elementwise(primitives.sin_p, lambda x, **_: lax.cos(x), traits=STEEP)
def_elementwise(primitives.cos_p, lambda x, **_: lax.neg(lax.sin(x)), traits=STEEP)
def_elementwise(primitives.tan_p, lambda z, **_: lax.add(lax.full_like(z, 1), lax.square(z)), save=OUTPUT, traits=STEEP)
def_elementwise(primitives.asin_p, lambda x, **_: lax.rsqrt(one_minus_square(x)), traits=EDGE)
def_elementwise(primitives.acos_p, lambda x, **_: lax.neg(lax.rsqrt(one_minus_square(x))), traits=EDGE)
def_elementwise(primitives.sinh_p, lambda x, **_: lax.cosh(x))
def_elementwise(primitives.cosh_p, lambda x, **_: lax.sinh(x))
def_elementwise(primitives.asinh_p, lambda x, **_: asinh_slope(x))
def_elementwise(primitives.acosh_p, lambda x, **_: acosh_slope(x), traits=EDGE)


@in_float32
def asinh_slope(x: jax.Array) -> jax.Array:
    """z = asinh x:  dz/dx = 1 / √(1 + x²) = 1 / (m √((x / m)² + 1 / m²)), for any m > 0: for m = max(|x|, 1)."""
    one = lax.full_like(x, 1)
    if is_complex(x):
        return lax.rsqrt(lax.add(lax.square(x), one))
    m = lax.stop_gradient(lax.clamp(one, lax.abs(x), lax.full_like(x, float(jnp.finfo(x.dtype).max) / 4)))
    r = lax.reciprocal(m)
    return lax.mul(r, lax.rsqrt(lax.add(lax.square(lax.div(x, m)), lax.square(r))))


def atan_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool], **_: Any) -> list[Cotangent]:
    """z = atan x:  x̄ = z̄ / (1 + x²)."""
    return [in_float32(lambda ct, x: lax.div(ct, lax.add(lax.full_like(x, 1), lax.square(x))))(ct, res[0])]


def atanh_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool], **_: Any) -> list[Cotangent]:
    """z = atanh x:  x̄ = z̄ / (1 - x²)."""
    return [lax.div(ct, one_minus_square(res[0]))]


def_rule(primitives.atan_p, atan_bwd, traits=ELEMENTWISE)
def_rule(primitives.atanh_p, atanh_bwd, traits=EDGE)


def acosh_slope(x: jax.Array, **_: Any) -> jax.Array:
    """z = acosh x:  dz/dx = 1 / (√(x - 1) √(x + 1))."""
    one = lax.full_like(x, 1)
    return lax.mul(lax.rsqrt(lax.sub(x, one)), lax.rsqrt(lax.add(x, one)))


def atan2_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool]) -> list[Cotangent]:
    """z = atan2(x, y):  x̄ = z̄ y / (x² + y²),  ȳ = -z̄ x / (x² + y²)."""
    x, y = (grown(a, ct.shape) for a in res)
    return [
        unbroadcast(ct * _per_square(y, x, y), res[0]) if perturbed[0] else Zero,
        unbroadcast(ct * _per_square(lax.neg(x), x, y), res[1]) if perturbed[1] else Zero,
    ]


@in_float32
def _per_square(t: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """t / (x² + y²), for a t no larger than x or y, of squares that stay in range: of x / m and y / m.

    It does not depend on m, which is a constant for derivatives. Neither (c / m)² of a constant c nor t (1 / m) is made
    a square by XLA, as c² (1 / m)² and t / m / m would be.
    """
    bound = lambda v: lax.full_like(x, float(v))
    kind = jnp.finfo(x.dtype)
    m = lax.clamp(bound(kind.tiny), lax.max(lax.abs(x), lax.abs(y)), bound(kind.max / 4))
    m = lax.stop_gradient(m)
    r, squares = lax.reciprocal(m), lax.add(lax.square(lax.div(x, m)), lax.square(lax.div(y, m)))
    return lax.mul(lax.div(lax.mul(t, r), squares), r)


def_rule(primitives.atan2_p, atan2_bwd, traits=QUOTIENT)

# --- complex numbers --------------------------------------------------------------------------------------------------

# JAX's convention: a cotangent is the transpose of the derivative, not its conjugate transpose.
def_linear(primitives.real_p, lambda ct, x: lax.complex(ct, lax.full_like(ct, 0)), traits=STRUCTURAL)
def_linear(primitives.imag_p, lambda ct, x: lax.complex(lax.full_like(ct, 0), lax.neg(ct)), traits=STRUCTURAL)
def_linear(
    primitives.conj_p,
    lambda ct, x, *, input_dtype: lax.conj(ct) if is_complex(x) else lax.real(ct),
    traits=STRUCTURAL,
)


def complex_bwd(types: Sequence[Aval], ct: jax.Array, perturbed: Sequence[bool]) -> list[Cotangent]:
    """z = x + iy:  x̄ = Re z̄,  ȳ = -Im z̄."""
    x, y = types
    return [
        unbroadcast(lax.real(ct), x) if perturbed[0] else Zero,
        unbroadcast(lax.neg(lax.imag(ct)), y) if perturbed[1] else Zero,
    ]


def_rule(primitives.complex_p, complex_bwd, save=TYPES, traits=STRUCTURAL)

# --- types ------------------------------------------------------------------------------------------------------------


def convert_back(ct: jax.Array, x: Aval, weak_type: bool = False, **params: Any) -> jax.Array:
    """z = x in another dtype:  x̄ = z̄ in x's dtype; from complex to real, the real part; to a boolean, a number."""
    if not is_differentiable(x):
        return lax.convert_element_type(ct, jax.dtypes.canonicalize_dtype(float))
    if is_complex(ct) and not is_complex(x):
        ct = lax.real(ct)
    ct = lax.convert_element_type(ct, x.dtype) if ct.dtype != x.dtype else ct
    return ct if weak_type == x.weak_type else like(ct, x)  # a weakly typed number that became a strongly typed one


cast = linear_rule(convert_back, name="convert_element_type")
enter(
    primitives.convert_element_type_p,
    CastRule(cast.bwd, save=cast.save, moves=Moves.STAYS),
    STRUCTURAL.but(digits=Digits.CAST, linear=(0,), moves=Moves.STAYS),
)
for p in map(primitive, ("to_edtype_p", "from_edtype_p")):  # a dtype whose author says what its tangents and sums are
    def_linear(p, lambda ct, x, **_: lax.convert_element_type(ct, x.dtype), Moves.STAYS, traits=STRUCTURAL)
def_linear(
    primitives.reduce_precision_p,
    lambda ct, x, **params: lax.reduce_precision(ct, **params),
    traits=SCALED.but(digits=Digits.CAST),
)
def_linear(primitive("copy_p"), lambda ct, x: ct, Moves.STAYS)

# --- derivative zero almost everywhere, and no derivative -------------------------------------------------------------

STEP = ELEMENTWISE.but(step=True)


def sign_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool]) -> list[Cotangent]:
    """z = x / |x|, complex:  dz = i z Im(conj(z) dx) / |x|, so x̄ = i Im(z̄ z) conj(z) / |x|; 0 at 0."""
    x, z = res
    size = lax.abs(x)
    turned = lax.imag(ct * z) / where(lax.eq(size, lax.full_like(size, 0)), 1, size)
    return [lax.complex(lax.full_like(turned, 0), turned) * lax.conj(z)]


enter(primitives.sign_p, ZeroOnRealsRule(sign_bwd, save=lambda primals, z, *_: (*primals, z)), STEP)
def_zero(primitives.floor_p, primitives.ceil_p, primitives.round_p, traits=STEP)
def_zero(primitives.stop_gradient_p, traits=STRUCTURAL)
def_zero(primitives.rng_uniform_p, traits=Traits(flops=free))
PREDICATES = """
    eq ne lt le gt ge eq_to lt_to le_to is_finite and or xor not shift_left shift_right_logical shift_right_arithmetic
    population_count clz mulhi
"""
def_nondiff(*(primitive(f"{name}_p") for name in PREDICATES.split()), traits=ELEMENTWISE)
def_nondiff(primitives.iota_p, primitives.bitcast_convert_type_p, traits=STRUCTURAL)
DRAWN_OR_TOLD = """
    axis_index platform_index threefry2x32 rng_bit_generator random_bits random_seed random_split random_fold_in
    random_wrap random_unwrap random_clone after_all create_token
"""
def_nondiff(*(primitive(f"{name}_p") for name in DRAWN_OR_TOLD.split()), traits=Traits(flops=free))
