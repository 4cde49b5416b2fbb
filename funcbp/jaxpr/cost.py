"""What an equation costs, and whether it may be computed again."""

from __future__ import annotations

import math
from typing import Any

from .interpreter import cond_branches, inside_of

CHEAP = frozenset(
    [
        "abs",
        "acos",
        "acosh",
        "add",
        "add_any",
        "and",
        "argmax",
        "argmin",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "bitcast_convert_type",
        "broadcast_in_dim",
        "cbrt",
        "ceil",
        "clamp",
        "complex",
        "concatenate",
        "conj",
        "convert_element_type",
        "copy",
        "cos",
        "cosh",
        "div",
        "eq",
        "erf",
        "erf_inv",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "feedback",
        "floor",
        "ge",
        "gt",
        "imag",
        "integer_pow",
        "iota",
        "is_finite",
        "le",
        "log",
        "log1p",
        "log2",
        "logistic",
        "lt",
        "max",
        "min",
        "mul",
        "name",
        "ne",
        "neg",
        "not",
        "one_minus_square",
        "or",
        "pad",
        "polynomial",
        "population_count",
        "pow",
        "real",
        "reduce_and",
        "reduce_max",
        "reduce_min",
        "reduce_or",
        "reduce_precision",
        "reduce_sum",
        "rem",
        "reshape",
        "rev",
        "round",
        "rsqrt",
        "select_n",
        "shift_left",
        "shift_right_arithmetic",
        "shift_right_logical",
        "sign",
        "sin",
        "sinh",
        "slice",
        "split",
        "sqrt",
        "square",
        "squeeze",
        "stack",
        "stop_gradient",
        "sub",
        "tan",
        "tanh",
        "tile",
        "transpose",
        "unstack",
        "xor",
    ]
)


# as good as new when computed again, but not cheap
REPEATABLE = CHEAP | frozenset(
    """
    approx_top_k argsort bessel_i0e bessel_i1e cholesky clz conv_general_dilated cumlogsumexp cummax cummin cumprod
    cumsum digamma dot_general dynamic_slice dynamic_update_slice eigh fft gather householder_product igamma igammac
    lgamma lu lu_pivots_to_permutation mul_add nextafter polygamma qr ragged_dot ragged_dot_general reduce
    reduce_prod reduce_window reduce_window_max reduce_window_min reduce_window_sum reduce_xor
    regularized_incomplete_beta scatter scatter_add scatter-add scatter_max scatter_min scatter_mul
    select_and_gather_add select_and_scatter_add sort svd top_k triangular_solve tridiagonal_solve
    """.split()
)


def inner(eqn: Any) -> list[Any]:
    """The equations of the programs inside an equation."""
    return [e for program in inside_of(eqn).programs for e in program.eqns]


def is_cheap(eqn: Any) -> bool:
    """Whether it costs little to compute this equation again: elementwise, structural, or a plain reduction."""
    if eqn.effects:
        return False
    if eqn.primitive.name in ("jit", "custom_jvp_call"):
        return all(map(is_cheap, inner(eqn)))
    return eqn.primitive.name in CHEAP


def is_repeatable(eqn: Any) -> bool:
    """Whether this equation gives the same numbers when computed again: no draw, collective, callback, custom call."""
    if eqn.effects:
        return False
    if eqn.primitive.name in ("jit", "custom_jvp_call", "closed_call", "scan", "cond", "remat2", "checkpoint"):
        return all(map(is_repeatable, inner(eqn)))
    return eqn.primitive.name in REPEATABLE


def flops(eqn: Any) -> float:
    """About how many floating-point operations an equation takes: a contraction exactly, the rest by its elements."""
    ins, outs = [v.aval for v in eqn.invars], [v.aval for v in eqn.outvars]
    match eqn.primitive.name:
        case "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            return 2.0 * outs[0].size * math.prod(ins[0].shape[i] for i in contracted)
        case "conv_general_dilated":
            channels = ins[1].shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            return 2.0 * outs[0].size * ins[1].size / max(channels, 1)
        case "scan":
            return float(eqn.params["length"]) * sum(map(flops, inner(eqn)))
        case "cond":
            return max(sum(map(flops, branch.eqns)) for branch in cond_branches(eqn.params))
        case _:
            inside = inner(eqn)
            if inside:
                return float(sum(map(flops, inside)))
            return float(max((a.size for a in (*ins, *outs) if hasattr(a, "size")), default=0))
