"""The rows of the rule tests: at least one per primitive with a rule, and the special values of those that have any.

A row says which primitive it is about, a function that uses it, and the inputs, all of which are differentiated if they
are floating-point. `numeric=False` marks inputs where finite differences are not a reference (kinks, ties, infinities);
there the row is compared with `jax.vjp` alone. `order` is how often JAX can differentiate it, up to 3. `maps=False`
marks rules it cannot map over a batch of cotangents, `forward=False` those without forward mode, and
`against_jax=False` those it cannot differentiate, or gets wrong. `same` is the same function by other operations, which
JAX can differentiate so often.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import primitives

from funcbp.jaxpr import barrier_p
from funcbp.rules.elementwise import logistic_slope, one_minus_square


@dataclass(frozen=True, eq=False)
class Row:
    primitive: str
    label: str
    f: Callable[..., Any]
    args: tuple[Any, ...]
    numeric: bool = True
    order: int = 3
    against_jax: bool = True
    maps: bool = True
    forward: bool = True
    same: Callable[..., Any] | None = None

    @property
    def name(self) -> str:
        return f"{self.primitive}-{self.label or 'plain'}"


ROWS: list[Row] = []


# what needs a mesh or a named axis has no row: tests/test_mapped.py
MAPPED = """
    shard_map pvary psum_invariant all_gather all_gather_invariant reduce_scatter all_to_all ragged_all_to_all ppermute
    pbroadcast pbroadcast_dynamic unreduced_psum preduced vary_unreduced_cast vary_unreduced_cast_p reduced_vary_cast
    reduced_vary_cast_p all_gather_reduced unreduced_reduce_scatter
""".split()


def row(primitive: str, f: Any, *args: Any, label: str = "", **options: Any) -> None:
    ROWS.append(Row(primitive, label, f, args, **options))


def draw(*shape: int, seed: int = 0, low: float = -2.0, high: float = 2.0, dtype: Any = np.float64) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    x = rng.uniform(low, high, shape)
    if np.issubdtype(dtype, np.complexfloating):
        x = x + 1j * rng.uniform(low, high, shape)
    return np.asarray(x, dtype)


x23, y23 = draw(2, 3), draw(2, 3, seed=1)
z23, w23 = draw(2, 3, dtype=np.complex128), draw(2, 3, seed=1, dtype=np.complex128)
positive = draw(2, 3, low=0.2, high=3.0)
unit = draw(2, 3, low=-0.9, high=0.9)
special = np.array([0.0, -0.0, 1.0, -1.0, 1e3, -1e3, 1e-30])
nonfinite = np.array([np.inf, -np.inf, np.nan])
empty, scalar = np.zeros((0, 3)), np.float64(0.7)

# --- elementwise, one operand

UNARY = {
    "abs": lax.abs, "neg": lax.neg, "exp": lax.exp, "exp2": lax.exp2, "expm1": lax.expm1, "sin": lax.sin,
    "cos": lax.cos, "tan": lax.tan, "tanh": lax.tanh, "sinh": lax.sinh, "cosh": lax.cosh, "asinh": lax.asinh,
    "atan": lax.atan, "logistic": lax.logistic, "square": lax.square, "erf": lax.erf, "erfc": lax.erfc,
    "integer_pow": lambda x: lax.integer_pow(x, 3), "copy": lax.full_like and jnp.copy,
    "reduce_precision": lambda x: lax.reduce_precision(x, 11, 52),
}  # fmt: skip
POSITIVE = {"log": lax.log, "log1p": lax.log1p, "sqrt": lax.sqrt, "rsqrt": lax.rsqrt, "cbrt": lax.cbrt,
            "lgamma": lax.lgamma, "digamma": lax.digamma}  # fmt: skip
UNIT = {"asin": lax.asin, "acos": lax.acos, "atanh": lax.atanh, "erf_inv": lax.erf_inv}
UNARY |= {"one_minus_square": one_minus_square, "logistic_slope": logistic_slope}
if hasattr(lax, "polynomial"):  # newer JAX
    POSITIVE |= {"log2": lax.log2}
    row("polynomial", lambda x, a, b, c: lax.polynomial(x, [a, b, c]), x23, y23, scalar, y23[:, :1])
for name, f in UNARY.items():
    row(name, f, x23)
    row(name, f, scalar, label="scalar")
    row(name, f, empty, label="size 0")
    row(name, f, special, label="special values", numeric=False, order=1)
    row(name, f, nonfinite, label="not finite", numeric=False, order=1)
for name, f in (("bessel_i0e", lax.bessel_i0e), ("bessel_i1e", lax.bessel_i1e)):  # at 0: test_accuracy.py
    row(name, f, x23)
    row(name, f, scalar, label="scalar")
    row(name, f, empty, label="size 0")
    row(name, f, np.array([0.1, -0.1, 1.0, -1.0, 25.0, -35.0]), label="near and far")
    row(name, f, nonfinite[:2], label="infinite", numeric=False, order=1)
for name, f in POSITIVE.items():
    row(name, f, positive)
    row(name, f, np.array([0.0, 1e-300, 1e300, np.inf, np.nan]), label="special values", numeric=False, order=1)
for name, f in UNIT.items():
    row(name, f, unit)
    row(name, f, np.array([0.0, 1.0, -1.0, 2.0]), label="special values", numeric=False, order=1)
row("digamma", lax.digamma, np.array([-0.4, -9.7, -20.3]), label="left of 0, where JAX's is wrong", against_jax=False)
row("acosh", lax.acosh, 1 + positive)
row("acosh", lax.acosh, z23, label="complex, where JAX's rule has the wrong sign", against_jax=False)
row("integer_pow", lambda x: lax.integer_pow(x, 0), x23, label="to the 0")
row("integer_pow", lambda x: lax.integer_pow(x, -2), positive, label="to the -2")
row("integer_pow", lambda x: lax.integer_pow(x, 1), special, label="to the 1, special", numeric=False)
COMPLEX = [
    "abs",
    "neg",
    "exp",
    "expm1",
    "sin",
    "cos",
    "tan",
    "tanh",
    "sinh",
    "cosh",
    "asinh",
    "logistic",
    "square",
    "integer_pow",
    "log",
    "log1p",
    "sqrt",
    "rsqrt",
]
COMPLEX += ["asin", "acos", "atanh", "atan", "exp2"]
for name in COMPLEX:
    f = {**UNARY, **POSITIVE, **UNIT}[name]
    row(name, f, 0.5 * z23, label="complex")
TURNS = bool(jax.jvp(lax.sign, (1j,), (1 + 0j,))[1])  # JAX's derivative was zero until 0.11
unit = lambda z: z / lax.complex(lax.abs(z), 0 * lax.abs(z))
row("sign", lax.sign, z23, label="complex", against_jax=TURNS, forward=TURNS, same=unit)
row("sign", lax.sign, np.zeros(2, np.complex128), label="complex 0", numeric=False, order=1)
row("abs", lax.abs, np.zeros(2, np.complex128), label="complex 0", numeric=False, order=1)

# --- elementwise, several operands

for name, f in {"add": lax.add, "sub": lax.sub, "mul": lax.mul, "div": lax.div, "max": lax.max, "min": lax.min}.items():
    row(name, f, x23, 1 + positive)
    row(name, f, x23, y23[:, :1] + 5, label="size-1 axis")
    row(name, f, x23[:1] + 7, y23, label="size-1 axis, left")
    row(name, lambda x, f=f: f(x, 0.5), x23, label="literal")
    row(name, lambda x, f=f: f(2.5, x), 1 + positive, label="literal, left")
    row(name, lambda x, f=f: f(x, x), 1 + positive, label="itself")
    row(name, f, special, special[::-1].copy() + 2, label="special values", numeric=False, order=1)
    if name not in ("max", "min"):
        row(name, f, z23, w23 + 3, label="complex")
row("max", lax.max, np.array([1.0, 2.0, np.nan]), np.array([1.0, 2.0, 1.0]), label="ties, nan", numeric=False)
row("min", lax.min, np.array([1.0, 2.0, np.nan]), np.array([1.0, 2.0, 1.0]), label="ties, nan", numeric=False)
row("rem", lax.rem, 3 * x23, positive)
row("rem", lambda x: lax.rem(x, 0.7), 3 * x23, label="literal")
row("pow", lax.pow, positive, y23)
row("pow", lambda x: lax.pow(x, 2.5), positive, label="literal exponent")
row("pow", lambda y: lax.pow(np.array([0.0, 1.0, 2.0]), y), np.array([0.0, 2.0, -1.0]), label="0 base", numeric=False)
row("pow", lax.pow, np.array([0.0, 2.0]), np.array([2.0, 0.0]), label="zeros", numeric=False, order=1)
row("pow", lambda x: lax.pow(x, np.array([0.0, 2.0])), np.zeros(2), label="at 0, where JAX's is nan",
    against_jax=False, forward=False, same=lambda x: x * np.array([0.0, 1.0]) * x + np.array([1.0, 0.0]))  # fmt: skip
row(
    "pow", lambda x: lax.pow(x, np.array([2, 0, -1])), positive[0], label="integer exponents", against_jax=False
)  # JAX's own rule mixes dtypes, which strict promotion refuses
row("pow", lax.pow, z23 + 3, w23, label="complex")
row("atan2", lax.atan2, x23, y23)
row("atan2", lax.atan2, np.array([0.0, 1.0]), np.array([1.0, 0.0]), label="axes")
for name, f in {"rem": lax.rem, "pow": lax.pow, "atan2": lax.atan2, "complex": lax.complex}.items():
    row(name, f, positive[:, :1] + 3, positive, label="size-1 axis")
    row(name, f, positive + 3, positive[:1] + 0.1, label="size-1 axis, right")
row("complex", lax.complex, x23, y23)
row("real", lax.real, z23)
row("imag", lax.imag, z23)
row("conj", lax.conj, z23)
row("conj", lambda x: lax.conj(x), x23, label="of a real number")
row("select_n", lambda x, y: lax.select_n(np.array([[True, False, True]] * 2), x, y), x23, y23)
row("select_n", lambda x, y, z: lax.select_n(np.int32(1), x, y, z), x23, y23, x23 * 2, label="three cases")
row("clamp", lambda x: lax.clamp(-1.0, x, 1.0), x23)
row("clamp", lax.clamp, np.float64(-1), x23, np.float64(1), label="scalar bounds, where JAX raises",
    against_jax=False, forward=False,
    same=lambda low, x, high: jnp.where(x < low, low, jnp.where(x > high, high, x)))  # fmt: skip
row("clamp", lax.clamp, y23 - 1, x23, y23 + 1, label="arrays")
row("clamp", lambda x: lax.clamp(-1.0, x, 1.0), np.array([-1.0, 1.0, 0.0]), label="at the bounds", numeric=False)
row("convert_element_type", lambda x: lax.convert_element_type(x, np.complex128), x23, label="to complex")
row("convert_element_type", lambda x: lax.convert_element_type(x, np.float32), x23, label="to float32", numeric=False)
row("convert_element_type", lambda x: lax.convert_element_type(x.astype(np.float32), np.float64), x23, numeric=False)
for name, f in (("igamma", lax.igamma), ("igammac", lax.igammac)):  # with respect to a, once: so far JAX goes
    row(name, lambda x, f=f: f(positive[::-1], x), positive)
    row(name, f, positive, positive[::-1].copy(), label="both", order=1)
row("polygamma", lambda x: lax.polygamma(jnp.full_like(x, 1.0), x), positive)


def hurwitz(s: float, q: Any, n: int = 15) -> Any:
    """Σ (q + k)^-s over k ≥ 0: n terms, and the rest by Euler and Maclaurin's formula."""
    total, z = sum((q + k) ** -s for k in range(n)), q + n
    total += z ** (1 - s) / (s - 1) + z**-s / 2
    rising = s  # s (s+1) ... (s + 2j - 2)
    for j, over in enumerate((1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160), 1):  # Bernoulli's, over (2j)!
        total += over * rising * z ** (-s - 2 * j + 1)
        rising *= (s + 2 * j - 1) * (s + 2 * j)
    return total


row("zeta", lambda q: lax.zeta(jnp.full_like(q, 2.5), q), positive, against_jax=False, forward=False,
    same=lambda q: hurwitz(2.5, q))  # fmt: skip
row("regularized_incomplete_beta", lambda x: lax.betainc(positive, positive[::-1], x), draw(2, 3, low=0.1, high=0.9))
row("stop_gradient", lambda x: x * lax.stop_gradient(x), x23, numeric=False)

# --- structure

row("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (4, 2, 3), (1, 2)), x23)
row("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (2, 5, 3), (0, 2)), x23[:1], label="grown axis")
row("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (2, 3), ()), scalar, label="scalar")
row("reshape", lambda x: lax.reshape(x, (3, 2)), x23)
row("reshape", lambda x: lax.reshape(x, (3, 2), (1, 0)), x23, label="with dimensions")
row("squeeze", lambda x: lax.squeeze(x, (0, 2)), x23.reshape(1, 6, 1))
row("transpose", lambda x: lax.transpose(x, (2, 0, 1)), draw(2, 3, 4))
row("rev", lambda x: lax.rev(x, (0, 1)), x23)
row("slice", lambda x: lax.slice(x, (0, 1), (5, 6), (2, 3)), draw(5, 7))
row("slice", lambda x: lax.slice(x, (2, 0), (2, 3)), x23, label="empty")
row("concatenate", lambda x, y: lax.concatenate([x, y, x], 1), x23, y23)
row("pad", lambda x, p: lax.pad(x, p, [(1, 2, 1), (0, 3, 2)]), x23, scalar)
row("pad", lambda x, p: lax.pad(x, p, [(-1, 2, 0), (1, -2, 1)]), draw(3, 4), scalar, label="negative")
row("pad", lambda x, p: lax.pad(x, p, [(-1, -1, 0), (-1, 3, 2)]), draw(3, 4), scalar, label="negative, spaced")
row("split", lambda x: lax.split(x, (1, 2), 1)[1], x23)
row("split", lambda x: lax.split(x, (1, 2), 1), x23, label="both")
row("tile", lambda x: jnp.tile(x, (2, 3)), x23)
row("stack", lambda x, y: jnp.stack([x, y], 1), x23, y23)
row("unstack", lambda x: [p * i for i, p in enumerate(jnp.unstack(x, axis=1), 1)], x23)

# --- reductions and windows

row("reduce_sum", lambda x: jnp.sum(x, 1), x23)
row("reduce_sum", lambda x: jnp.sum(x), empty, label="size 0")
for name, f in {"reduce_max": jnp.max, "reduce_min": jnp.min}.items():
    row(name, lambda x, f=f: f(x, 0), x23)
    row(name, lambda x, f=f: f(x), np.array([[1.0, 1.0], [1.0, 0.0]]), label="ties", numeric=False)
row("reduce_prod", lambda x: jnp.prod(x, (0, 2)), draw(2, 3, 2))
row("reduce_prod", lambda x: jnp.prod(x, 1), np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 1.0]]), label="zeros")
row("reduce_prod", lambda x: jnp.prod(x), z23, label="complex")
row("reduce_prod", lambda x: jnp.prod(x, 0), empty, label="size 0")
for reverse in (False, True):
    row("cumsum", lambda x, r=reverse: lax.cumsum(x, 1, r), x23, label=f"reverse={reverse}")
    row("cumprod", lambda x, r=reverse: lax.cumprod(x, 1, r), x23, label=f"reverse={reverse}")
    row("cummax", lambda x, r=reverse: lax.cummax(x, 1, r), x23, label=f"reverse={reverse}")
    row("cummin", lambda x, r=reverse: lax.cummin(x, 1, r), x23, label=f"reverse={reverse}")
    row("cumlogsumexp", lambda x, r=reverse: lax.cumlogsumexp(x, 1, r), x23, label=f"reverse={reverse}")
row("cumprod", lambda x: lax.cumprod(x, 0), np.array([2.0, 0.0, 3.0, 0.0]), label="zeros")
row("cummax", lambda x: lax.cummax(x, 0), np.array([1.0, 1.0, 2.0]), label="ties", numeric=False)

image = np.random.default_rng(0).permutation(np.linspace(-2, 2, 84)).reshape(1, 6, 7, 2)  # no near ties
WINDOW = dict(window_dimensions=(1, 3, 2, 1), window_strides=(1, 2, 1, 1))
for padding in ("VALID", "SAME", [(0, 0), (1, 2), (0, 1), (0, 0)]):
    for name, init, op in (("reduce_window_max", -np.inf, lax.max), ("reduce_window_min", np.inf, lax.min)):
        row(name, lambda x, i=init, o=op, p=padding: lax.reduce_window(x, i, o, padding=p, **WINDOW), image,
            label=str(padding))  # fmt: skip
    row("reduce_window_sum", lambda x, p=padding: lax.reduce_window(x, 0.0, lax.add, padding=p, **WINDOW), image,
        label=str(padding))  # fmt: skip
row("reduce_window_max", lambda x: lax.reduce_window(x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    np.ones((1, 4, 4, 1)), label="ties", numeric=False)  # fmt: skip
row("reduce_window_sum", lambda x: lax.reduce_window(x, 0.0, lax.add, padding="SAME", base_dilation=(1, 2, 1, 1),
    window_dilation=(1, 1, 2, 1), **WINDOW), image, label="dilated")  # fmt: skip
pooled_gradient = jax.grad(lambda x: jnp.sum(lax.reduce_window(x, -np.inf, lax.max, padding="VALID", **WINDOW) ** 2))
row("select_and_scatter_add", pooled_gradient, image, label="gradient of pooling")


def chosen_squares(x: Any) -> Any:
    """The sum of the squares of those elements of x that are the largest in the windows of `image`."""
    windows = lambda a: jnp.stack([a[:, i : i + 3 : 2, j : j + 6] for i in range(3) for j in range(2)])
    return jnp.sum(jnp.take_along_axis(windows(x), jnp.argmax(windows(image), 0)[None], 0) ** 2)


row("select_and_gather_add", lambda x: jax.jvp(pooled_gradient, (image,), (x,))[1], image, numeric=False,
    same=lambda x: jax.jvp(jax.grad(chosen_squares), (image,), (x,))[1])  # fmt: skip

# --- contractions and convolutions

DOTS = {
    "matrix, matrix": (((1,), (0,)), ((), ()), (2, 3), (3, 4)),
    "vector, vector": (((0,), (0,)), ((), ()), (3,), (3,)),
    "outer": (((), ()), ((), ()), (2,), (3,)),
    "two contracted, crossed": (((2, 0), (0, 2)), ((), ()), (2, 3, 4), (4, 5, 2)),
    "batch": (((2,), (1,)), ((0,), (0,)), (5, 2, 3), (5, 3, 4)),
    "batch in odd places": (((0,), (3,)), ((3, 1), (0, 2)), (2, 3, 4, 5), (5, 6, 3, 2)),
    "batch alone": (((), ()), ((0,), (1,)), (3, 2), (4, 3)),
    "everything contracted": (((0, 1), (1, 0)), ((), ()), (2, 3), (3, 2)),
}
for label, (contract, batch, a, b) in DOTS.items():
    row("dot_general", lambda x, y, d=(contract, batch): lax.dot_general(x, y, d), draw(*a), draw(*b, seed=3),
        label=label)  # fmt: skip
row("dot_general", lambda x, y: lax.dot_general(x, y, (((1,), (0,)), ((), ()))), z23, w23.T, label="complex")
row("dot_general", lambda x, y: lax.dot_general(x.astype(np.float32), y.astype(np.float32), (((1,), (0,)), ((), ())),
    preferred_element_type=np.float64), x23, y23.T, label="preferred_element_type", numeric=False)  # fmt: skip
row("dot_general", lambda x: jnp.einsum("ij,kj,ik->", x, x, jnp.ones((2, 2))), x23, label="tied operands")

CONVS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 3, 6, 5), (4, 3, 3, 2), dict(window_strides=(1, 1), padding="VALID")),
    "strides and padding": ((2, 3, 7, 6), (4, 3, 3, 2), dict(window_strides=(2, 3), padding=[(1, 2), (0, 1)])),
    "uneven strides": ((1, 1, 8, 9), (1, 1, 3, 2), dict(window_strides=(3, 4), padding="VALID")),
    "window dilation": (
        (2, 3, 8, 7), (4, 3, 3, 2), dict(window_strides=(1, 2), padding="SAME", rhs_dilation=(2, 3))),
    "input dilation": (
        (2, 3, 4, 5), (4, 3, 3, 2), dict(window_strides=(1, 1), padding=[(1, 1), (2, 0)], lhs_dilation=(2, 3))),
    "negative padding": ((1, 2, 7, 7), (2, 2, 2, 2), dict(window_strides=(1, 1), padding=[(-1, 0), (1, -2)])),
    "feature groups": (
        (2, 4, 5, 5), (6, 2, 3, 2), dict(window_strides=(2, 1), padding="SAME", feature_group_count=2)),
    "depthwise": ((2, 3, 5, 5), (6, 1, 2, 2), dict(window_strides=(1, 1), padding="SAME", feature_group_count=3)),
    "batch groups": (
        (4, 3, 5, 5), (6, 3, 2, 2), dict(window_strides=(1, 2), padding="VALID", batch_group_count=2)),
    "NHWC, HWIO": (
        (2, 6, 5, 3), (3, 2, 3, 4),
        dict(window_strides=(1, 2), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))),
    "HWNC, OHWI, CNHW": (
        (6, 5, 2, 3), (4, 3, 2, 3),
        dict(window_strides=(2, 1), padding="SAME", dimension_numbers=("HWNC", "OHWI", "CNHW"))),
    "one axis": ((2, 3, 6), (4, 3, 3), dict(window_strides=(2,), padding="SAME")),
    "no axis": ((2, 3), (4, 3), dict(window_strides=(), padding=())),
}  # fmt: skip
for label, (a, b, options) in CONVS.items():
    row("conv_general_dilated", lambda x, w, o=options: lax.conv_general_dilated(x, w, **o), draw(*a), draw(*b, seed=5),
        label=label)  # fmt: skip

# --- indexing

table = draw(5, 3)
rows_, columns = np.array([4, 0, 0, 2]), np.array([0, 1, 1, 2])
row("gather", lambda x: x[rows_], table)
row("gather", lambda x: x[rows_, columns], table, label="pairs")
row("gather", lambda x: x.at[np.array([7, -9])].get(mode="fill", fill_value=1.0), table, label="out of bounds, fill")
row("gather", lambda x: x.at[np.array([7, 1])].get(mode="clip"), table, label="out of bounds, clip")
row("gather", lambda x: jnp.take_along_axis(x, np.array([[0], [2], [1], [0], [1]]), 1), table, label="along an axis")
updates = draw(4, 3, seed=2)
row("scatter", lambda x, u: x.at[rows_[[0, 1, 3]]].set(u, unique_indices=True), table, updates[:3], label="unique")
row("scatter", lambda x, u: x.at[rows_].set(u), table, updates, label="an index twice", numeric=False)
row("scatter", lambda x, u: x.at[rows_, columns].set(u), table, updates[:, 0], label="pairs", numeric=False)
row("scatter", lambda x, u: x.at[np.array([9, 1])].set(u), table, updates[:2], label="out of bounds")
row("scatter-add", lambda x, u: x.at[rows_].add(u), table, updates)
row("scatter-add", lambda x, u: x.at[np.array([9, 1])].add(u), table, updates[:2], label="out of bounds")
row("scatter-sub", lambda x, u: x.at[rows_].subtract(u), table, updates)
row("scatter-mul", lambda x, u: x.at[rows_[[0, 1, 3]]].mul(u, unique_indices=True), table, updates[:3])
row("scatter-mul", lambda x: x.at[rows_].mul(updates), table, label="an index twice, operand")
row("scatter-max", lambda x, u: x.at[rows_].max(u), table, updates)
row("scatter-min", lambda x, u: x.at[rows_].min(u), table, updates)
row("scatter-max", lambda x, u: x.at[rows_].max(u), np.zeros((5, 3)), np.zeros((4, 3)), label="ties", numeric=False)
row("dynamic_slice", lambda x: lax.dynamic_slice(x, (1, 0), (2, 2)), table)
row("dynamic_slice", lambda x: lax.dynamic_slice(x, (9, -9), (2, 2)), table, label="out of bounds")
row("dynamic_update_slice", lambda x, u: lax.dynamic_update_slice(x, u, (1, 0)), table, updates[:2, :2])
for label, how in {  # -6 counts from the end of 5 rows, and is clamped; -1 is, where nothing counts from the end
    "before the first": {"start_indices": (-6, 0)},
    "below zero": {"start_indices": (jnp.int32(-1), jnp.int32(0)), "allow_negative_indices": False},
}.items():
    row("dynamic_slice", functools.partial(lax.dynamic_slice, slice_sizes=(2, 2), **how), table, label=label)
    row("dynamic_update_slice", functools.partial(lax.dynamic_update_slice, **how), table, updates[:2, :2], label=label)
row("dynamic_update_slice", lambda x, u: lax.dynamic_update_slice(x, u, (9, 0)), table, updates[:2], label="clamped")

# --- sorting

row("sort", lambda x: lax.sort(x, dimension=0), table)
row("sort", lambda x, y: lax.sort((x, y), dimension=1, num_keys=1), table, table[::-1].copy(), label="two operands")
row("sort", lambda x: lax.sort((x, np.arange(15).reshape(5, 3)), num_keys=1), table, label="with integers")
row("sort", lambda x: jnp.sort(x, stable=True), np.array([1.0, 1.0, 0.0]), label="ties", numeric=False)
row("top_k", lambda x: lax.top_k(x, 2)[0], table)

# --- calls and control flow

row("jit", lambda x: jax.jit(lambda y: jnp.sin(y) * y)(x), x23)
row("jit", lambda x: jax.jit(lambda y, z: (y, z, y))(x, 2 * x), x23, label="returns its arguments")
row("custom_jvp_call", jax.nn.relu, x23)
row("custom_jvp_call", jax.nn.relu, np.array([0.0, -1.0, 2.0]), label="relu at 0", numeric=False)
row("custom_jvp_call", jax.nn.silu, x23, label="silu")


@jax.custom_vjp
def cubed(x: Any) -> Any:
    return x**3


cubed.defvjp(lambda x: (x**3, x), lambda x, ct: (3 * x**2 * ct,))
row("custom_vjp_call", cubed, x23, forward=False)
row("remat2", jax.checkpoint(lambda x: jnp.sin(jnp.sin(x) @ x.T)), x23)
row(
    "remat2",
    jax.checkpoint(lambda x: jnp.sin(jnp.sin(x @ x.T) @ x), policy=jax.checkpoint_policies.dots_saveable),
    x23,
    label="dots saveable",
)
row(
    "remat2",
    jax.checkpoint(
        lambda x: jnp.sin(checkpoint_name(jnp.sin(x), "a") @ x.T),
        policy=jax.checkpoint_policies.save_only_these_names("a"),
    ),
    x23,
    label="by name",
)
row("name", lambda x: checkpoint_name(x, "h1") ** 2, x23)
row("cond", lambda x, y: lax.cond(True, lambda a, b: a * b, lambda a, b: jnp.sin(a), x, y), x23, y23)
row("cond", lambda x, y: lax.cond(False, lambda a, b: a * b, lambda a, b: jnp.sin(a), x, y), x23, y23, label="false")
row("cond", lambda x: lax.switch(np.int32(1), [jnp.sin, lambda a: a**3, lambda a: jnp.ones_like(a)], x), x23,
    label="switch")  # fmt: skip
row(
    "cond",
    lambda x: lax.cond(x[0, 0] > 0, lambda a: (a, jnp.zeros_like(a)), lambda a: (jnp.zeros_like(a), a * a), x),
    x23,
    label="different outputs perturbed",
)


def many_kinds(w: Any, init: Any, xs: Any, *, reverse: bool, unroll: int) -> Any:
    """A scan with constants, float and integer carries, stacked inputs of both kinds, and stacked outputs."""

    def body(carry: Any, x: Any) -> Any:
        a, i, b = carry
        u, n = x
        a = jnp.tanh(a @ w) * u + b
        return (a, i + 1, b * jnp.sum(jnp.cos(w))), (a * (i + n).astype(a.dtype), n - i, u)

    (a, i, b), (p, _, r) = lax.scan(body, (init, 0, jnp.ones(3)), (xs, jnp.arange(4)), reverse=reverse, unroll=unroll)
    return jnp.sum(a * b) * i, p, r


for reverse, unroll in ((False, 1), (True, 1), (False, 2)):
    row("scan", lambda w, a, xs, r=reverse, u=unroll: many_kinds(w, a, xs, reverse=r, unroll=u), draw(3, 3), draw(3),
        draw(4, 3), label=f"reverse={reverse}, unroll={unroll}")  # fmt: skip
row("scan", lambda x: lax.scan(lambda c, _: (c * x, c), x, None, length=3), x23, label="length only")
row("scan", lambda x: lax.scan(lambda c, _: (c * x, c), x, None, length=0), x23, label="length 0")
row("scan", lambda x, xs: lax.scan(lambda c, u: (c * jnp.exp(x) * u, None), x, xs)[0], x23[0], np.zeros((0, 3)),
    label="length 0, something kept once")  # fmt: skip
row("scan", lambda x: lax.fori_loop(0, 4, lambda i, c: jnp.sin(c) * x, x), x23, label="fori_loop")
row("scan", lambda x: lax.scan(lambda c, u: (c * u, None), x[0], x)[0], x23, label="no outputs")
row("scan", lambda x: lax.scan(lambda c, u: (c, jnp.sin(u) * c), x[0], x)[1], x23, label="carry unchanged")
row("scan", lambda x: lax.map(jnp.sin, x), x23, label="no carry")
row(
    "scan",
    lambda x: lax.scan(lambda c, u: (lax.scan(lambda d, v: (jnp.sin(d * v), d), c, x)[0] * u, c), x[0], x),
    x23,
    label="nested",
)
row(
    "scan",
    lambda x: lax.scan(lambda c, u: (lax.cond(u[0] > 0, jnp.sin, lambda a: a * u, c), None), x[0], x)[0],
    x23,
    label="cond inside",
)
row("scan", lambda x: lax.scan(jax.checkpoint(lambda c, u: (jnp.sin(c) * u, c)), x[0], x), x23, label="remat inside")
row(primitives.closed_call_p.name, lambda x: closed_call(jnp.sin, x), x23)
row("composite", jax.lax.composite(jnp.sin, "my.sin"), x23, against_jax=False, forward=False, same=jnp.sin)
row("add_any", jax.grad(lambda x: jnp.sum(jnp.sin(x) * x)), x23, label="in a gradient")


@jax.custom_batching.custom_vmap
def batched_sine(x: Any) -> Any:
    return jnp.sin(x)


def closed_call(f: Any, x: Any) -> Any:
    call = primitives.closed_call_p
    return call.bind(x, **call.get_bind_params(dict(call_jaxpr=jax.make_jaxpr(f)(x))))


batched_sine.def_vmap(lambda size, batched, x: (jnp.sin(x), batched[0]))
row("custom_vmap_call", batched_sine, x23, label="which JAX refuses", against_jax=False, same=jnp.sin)


# --- linear algebra

square = draw(3, 3, seed=2) + 3 * np.eye(3)
hermitian = draw(2, 3, 3, seed=4, dtype=np.complex128)
spd = lambda x: x @ jnp.swapaxes(jnp.conj(x), -1, -2) + jnp.broadcast_to(jnp.eye(3, dtype=x.dtype), x.shape)
row("cholesky", lambda x: jnp.linalg.cholesky(spd(x)), draw(3, 3))
row(
    "cholesky",
    lambda a: lax.linalg.cholesky(a, symmetrize_input=False),
    np.asarray(spd(hermitian)) + np.triu(hermitian, 1),
    label="lower triangle alone",
    against_jax=False,
)
row("cholesky", lambda x: jnp.linalg.cholesky(spd(x)), hermitian, label="batch, complex")
row("eigh", lambda x: jnp.linalg.eigh(x + x.T)[0], square)
row("eigh", lambda x: (lambda w, v: v @ (w[:, None] ** 2 * v.T))(*jnp.linalg.eigh(x + x.T)), square, label="vectors")
row("eigh", lambda x: jnp.linalg.eigvalsh(spd(x)), hermitian, label="batch, complex")
for triangle in "lower", "upper":
    row(
        "eigh",
        lambda a, lower=triangle == "lower": (lambda v, w: (jnp.abs(v) ** 2, w))(
            *lax.linalg.eigh(a, lower=lower, symmetrize_input=False)
        ),
        hermitian,
        label=f"{triangle} triangle alone",
        against_jax=False,
    )
row("eig", lambda x: jnp.real(jnp.linalg.eigvals(x) ** 2), square, label="values", order=1)
row("lu", lambda x: jax.scipy.linalg.lu(x)[1:], square)
row("lu", lambda x: lax.linalg.lu(x)[0], draw(2, 4, 3), label="batch, tall")
row("lu", lambda x: lax.linalg.lu(x)[0], draw(3, 5), label="wide")
row("custom_linear_solve", lambda x: jnp.linalg.slogdet(x)[1], hermitian, label="slogdet, complex")
row("custom_linear_solve", lambda x, b: jnp.linalg.solve(x, b), square, draw(3, 2), label="solve")
row("custom_linear_solve", jnp.linalg.inv, hermitian, label="inverse")
row("nextafter", lambda x: lax.nextafter(x, x + 1.0) ** 2, x23, against_jax=False, order=1)
if hasattr(lax, "one_minus_square"):  # newer JAX writes these as classes
    row("call_hi_primitive", lambda x: jnp.ldexp(x, np.full(x.shape, 2)) * x, x23)
    row("call_hi_primitive", lambda x: jnp.frexp(x)[0] * x, x23, label="frexp")
    row("call_hi_primitive", lambda a: lax.custom_root(
        lambda y: y**3 + y - a, jnp.ones_like(a),
        lambda f, y: lax.fori_loop(0, 40, lambda i, y: y - f(y) / (3 * y**2 + 1), y),
        lambda g, y: y / g(jnp.ones_like(y))), draw(3, low=0.5), label="custom_root")  # fmt: skip
row("qr", lambda x: jnp.linalg.qr(x), draw(4, 3))
row("qr", lambda x: jnp.linalg.qr(x), draw(2, 4, 3, dtype=np.complex128), label="batch, complex")
row("qr", lambda x: jnp.linalg.qr(x), draw(3, 3), label="square")
row("qr", lambda x: jnp.linalg.qr(x, mode="complete"), draw(2, 5, 3), label="full")
row("qr", lambda x: jnp.linalg.qr(x, mode="complete"), draw(5, 3, dtype=np.complex128), label="full, complex")
row("qr", lambda x: jax.scipy.linalg.qr(x, pivoting=True, mode="economic"), draw(4, 3) * [1.0, 4.0, 16.0],
    label="pivoted")  # fmt: skip
# JAX differentiates the columns beyond the square part in the order that they had before the pivoting
row("qr", lambda x: jax.scipy.linalg.qr(x, pivoting=True, mode="economic"), draw(3, 5), label="wide, pivoted",
    against_jax=False)  # fmt: skip
row("qr", lambda x: jax.scipy.linalg.qr(x, pivoting=True)[:2], draw(2, 4, dtype=np.complex128),
    label="wide, pivoted, complex", against_jax=False)  # fmt: skip
row("qr", lambda x: jnp.linalg.qr(x), draw(2, 3, 5), label="wide")
row("svd", lambda x: jnp.linalg.svd(x, compute_uv=False), draw(4, 3))
row("svd", lambda x: (lambda u, s, v: u @ (s[:, None] ** 3 * v))(*jnp.linalg.svd(x, full_matrices=False)), draw(4, 3),
    label="tall")  # fmt: skip
row("svd", lambda x: (lambda u, s, v: u @ (s[:, None] ** 3 * v))(*jnp.linalg.svd(x, full_matrices=False)), draw(3, 4),
    label="wide")  # fmt: skip
row("custom_jvp_call", jnp.linalg.pinv, draw(4, 3), label="pinv")
row("svd", lambda x: jnp.linalg.norm(x, "nuc"), draw(4, 3), label="nuclear norm")
for left in (True, False):
    for transpose in (True, False):
        for lower in (True, False):
            row(
                "triangular_solve",
                lambda a, b, o=dict(left_side=left, transpose_a=transpose, lower=lower): lax.linalg.triangular_solve(
                    a, b if o["left_side"] else b.T, **o
                ),
                square,
                draw(3, 2),
                label=f"left={left} transpose={transpose} lower={lower}",
            )
UNIT_CONJUGATE = dict(left_side=True, unit_diagonal=True, transpose_a=True, conjugate_a=True)
row("triangular_solve", lambda a, b: lax.linalg.triangular_solve(a, b, **UNIT_CONJUGATE), hermitian,
    draw(2, 3, 2, dtype=np.complex128), label="complex, unit")  # fmt: skip
row("tridiagonal_solve", lax.linalg.tridiagonal_solve, np.array([0.0, 1.0, 0.5]), np.array([4.0, 5.0, 3.0]),
    np.array([1.0, -1.0, 0.0]), draw(3, 2))  # fmt: skip
row("custom_linear_solve", lambda a, b: lax.custom_linear_solve(lambda x: spd(a) @ x, b, lambda mv, y: jnp.linalg.solve(
    spd(a), y), symmetric=True), square, draw(3))  # fmt: skip
row("custom_linear_solve", lambda a, b: jax.scipy.sparse.linalg.cg(lambda x: spd(a) @ x, b, tol=1e-14)[0], square / 3,
    draw(3), label="cg", numeric=False, order=1)  # fmt: skip
for n in (8, 7):
    x_n, spectrum = draw(2, n), draw(2, n // 2 + 1, dtype=np.complex128)
    row("fft", lambda x: jnp.fft.fft(x), draw(2, n, dtype=np.complex128), label=f"fft {n}")
    row("fft", lambda x: jnp.fft.ifft(x), draw(2, n, dtype=np.complex128), label=f"ifft {n}")
    row("fft", lambda x: jnp.fft.rfft(x), x_n, label=f"rfft {n}")
    row("fft", lambda x, n=n: jnp.fft.irfft(x, n), spectrum, label=f"irfft {n}")
row("fft", lambda x: jnp.fft.rfft2(x), draw(4, 6), label="rfft2")
row("fft", lambda x: jnp.fft.irfftn(x), draw(3, 4, 5, dtype=np.complex128), label="irfftn")

# --- the rest

row("reduce", lambda x: lax.reduce(x, np.float64(1), lambda a, b: a * b + a * 0, (0,)), x23, label="product")
row("reduce", lambda x: lax.reduce(x, np.float64(0), lambda a, b: a + jnp.sin(b) * 0 + b, (0, 1)), draw(3, 5))
row(
    "approx_top_k",
    lambda x: lax.approx_max_k(x, 2)[0] @ lax.approx_max_k(x, 2, reduction_dimension=0)[0],
    table,
)
row("random_gamma", lambda a: jax.random.gamma(jax.random.key(0), a), positive, numeric=False, order=1)
row("random_gamma", lambda a: jax.random.loggamma(jax.random.key(0), a), positive, numeric=False, order=1, label="log")
row("sharding_constraint", lambda x: lax.with_sharding_constraint(x * 2, jax.sharding.SingleDeviceSharding(
    jax.devices()[0])), x23)  # fmt: skip
row(
    "layout_constraint",
    lambda x: with_layout_constraint(jnp.asarray(x) * 2, Layout((1, 0))),
    x23,
    against_jax=False,
    same=lambda x: x * 2,
)
row("psum", lambda x: jax.vmap(lambda y: y - jax.lax.pmean(y * y, "i"), axis_name="i")(x), x23, label="of a vmap")
row("optimization_barrier", lambda x, y: lax.optimization_barrier((x, y))[0], x23, y23)
row("barrier", lambda x, y: barrier_p.bind(x, y * y), x23, y23)  # for arrays the same
row("device_put", lambda x: jax.device_put(x * 2, jax.devices()[0]), x23)
row(
    "ragged_dot_general",
    lambda x, y: lax.ragged_dot(x, y, np.array([1, 0, 3], np.int32)),
    draw(4, 3),
    draw(3, 3, 2),
    maps=False,  # JAX maps it over axis 0 alone
    same=lambda x, y: jnp.concatenate([x[:1] @ y[0], x[1:] @ y[2]]),
)


def by_groups(x: Any, y: Any) -> Any:
    """The rows of each group contracted."""
    numbers = lax.RaggedDotDimensionNumbers((([0], [1]), ([], [])), [0], [])
    return lax.ragged_dot_general(x, y, np.array([1, 0, 3], np.int32), numbers)


row("ragged_dot_general", by_groups, draw(4, 3), draw(2, 4), label="of the rows of a group", maps=False,
    against_jax=False,
    same=lambda x, y: jnp.stack([x[:1].T @ y[:, :1].T, jnp.zeros((3, 2)), x[1:].T @ y[:, 1:].T]))  # fmt: skip
