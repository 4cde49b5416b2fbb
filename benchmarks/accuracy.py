"""How exact each elementwise rule is: first and second derivatives in each dtype, ours and JAX's, against float64.

The unit is the last place of a result in the dtype. A number is the worst over the points of a row; points where the
float64 derivative is not finite, or is below the dtype's smallest normal number or above its largest, are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import funcbp as bp

from .report import Cell, Row, Table

DTYPES = ("float32", "bfloat16", "float16")
ANY = np.concatenate([s * np.logspace(-6, 1, 29) for s in (-1, 1)])
POSITIVE, UNIT = np.logspace(-3, 2, 40), np.concatenate([s * np.logspace(-6, -0.01, 20) for s in (-1, 1)])
FUNCTIONS: dict[str, tuple[Callable[[Any], Any], np.ndarray]] = {
    **{
        f.__name__: (f, ANY)
        for f in (lax.tanh, lax.logistic, lax.sin, lax.cos, lax.sinh, lax.cosh, lax.asinh, lax.atan)
    },
    **{f.__name__: (f, ANY) for f in (lax.exp, lax.exp2, lax.expm1, lax.erf, lax.erfc, lax.bessel_i0e, lax.bessel_i1e)},
    **{f.__name__: (f, POSITIVE) for f in (lax.log, lax.log1p, lax.sqrt, lax.rsqrt, lax.cbrt, lax.lgamma, lax.digamma)},
    **{f.__name__: (f, UNIT) for f in (lax.asin, lax.acos, lax.atanh, lax.erf_inv)},
    "acosh": (lax.acosh, 1 + POSITIVE),
    "tan": (lax.tan, UNIT),
    "x ** 3": (lambda x: lax.integer_pow(x, 3), ANY),
    "x ** 2.5": (lambda x: lax.pow(x, jnp.full_like(x, 2.5)), POSITIVE),
    "1 / x": (lambda x: lax.div(jnp.full_like(x, 1), x), POSITIVE),
    "softplus": (jax.nn.softplus, ANY),
    "log_sigmoid": (jax.nn.log_sigmoid, ANY),
    "gelu": (jax.nn.gelu, ANY),
    "gelu, exact": (lambda x: jax.nn.gelu(x, approximate=False), ANY),
    "silu": (jax.nn.silu, ANY),
    **{
        f"ops.{name}": (getattr(bp.ops, name), ANY)
        for name in ("logistic", "tanh", "elu", "softplus", "swish", "mish", "gelu", "gaussian")
    },
    "ops.gelu, exact": (lambda x: bp.ops.gelu(x, approximate=False), ANY),
    "ops.softmax": (lambda x: bp.ops.softmax(lax.pad(x[None], x * 0, [(0, 1, 0)]))[0], ANY),
    "ops.softmax_cross_entropy": (
        lambda x: bp.ops.softmax_cross_entropy(lax.pad(x[None], x * 0, [(0, 1, 0)]), jnp.array([1, 0])),
        ANY,
    ),
    "ops.logistic_cross_entropy": (lambda x: bp.ops.logistic_cross_entropy(x, jnp.ones_like(x)), ANY),
}


def derivatives(api: Any, f: Callable[[Any], Any], order: int, points: np.ndarray) -> np.ndarray:
    """The derivative of this order at each point, in the points' dtype, by this reverse mode."""
    g = f
    for _ in range(order):
        g = api.grad(lambda x, g=g: g(x))
    return np.asarray(jax.vmap(g)(jnp.asarray(points)), np.float64)


def worst_ulps(got: np.ndarray, want: np.ndarray, dtype: Any = np.float32) -> float:
    """The largest distance, in units of the last place of a number of this dtype as large as what is wanted."""
    limits = jnp.finfo(dtype)
    usable = np.isfinite(want) & (np.abs(want) > float(limits.tiny)) & (np.abs(want) < float(limits.max))
    unit = 2.0 ** np.floor(np.log2(np.abs(want[usable]))) * float(limits.eps)
    return float(np.max(np.abs(got[usable] - want[usable]) / unit, initial=0.0))


def run(pairs: int, only: Collection[str] = ()) -> Table:
    """Compare. `pairs` and `only` are the other tables' and have no meaning here."""
    rows = []
    for dtype in DTYPES:
        for name, (f, points) in FUNCTIONS.items():
            print(f"{name}, {dtype} ...", file=sys.stderr, flush=True)
            cells = {}
            narrow = np.asarray(points, dtype)
            for order, label in ((1, "first"), (2, "second")):
                with jax.enable_x64(True):
                    want = derivatives(jax, f, order, narrow.astype(np.float64))
                ours, theirs = (worst_ulps(derivatives(api, f, order, narrow), want, dtype) for api in (bp, jax))
                verdict = "same" if ours == theirs else "better" if ours < theirs else "worse"
                cells |= {
                    f"{label}: funcbp": Cell(ours),
                    f"{label}: jax": Cell(theirs),
                    f"{label}: ours is": Cell(remark=verdict),
                }
            rows.append(Row(f"{name}, {dtype}", cells))
    return Table("Worst error of derivatives, in ulps of the dtype, against float64", tuple(rows[0].cells), rows)
