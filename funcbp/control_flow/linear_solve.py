"""`custom_linear_solve`: by the user's transposed solve; the matrix is a program, and is differentiated as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from ..autodiff.passes import passes_of
from ..cotangents import Cotangent, Zero, instantiate
from ..jaxpr import primitives, solve_parts, transposed_solve
from ..jaxpr.types import PyTree, Value
from ..rules.kinds import State
from ..rules.options import Options
from ..rules.registry import def_control
from ..rules.traits import UNKNOWN, Singularity

__all__ = ["linear_solve_bwd", "linear_solve_fwd"]


def linear_solve_fwd(
    options: Options, perturbed: Sequence[bool], *primals: Value, **params: Any
) -> tuple[Sequence[Value], PyTree, Sequence[bool]]:
    """Solve as the user said, and keep the solution where the matrix is perturbed."""
    outs = primitives.linear_solve_p.bind(*primals, **params)
    lengths = solve_parts(params)[1]
    n = len(primals) - sum(lengths)
    solution = outs[:n] if any(perturbed[: lengths[0]]) else [jax.typeof(y) for y in outs[:n]]
    return outs, (list(primals[: len(primals) - n]), solution), [*([True] * n), *([False] * (len(outs) - n))]


def linear_solve_bwd(
    state: State, res: PyTree, ct: Sequence[Cotangent], perturbed: Sequence[bool], **params: Any
) -> list[Cotangent]:
    """A x = b:  b̄ = A⁻ᵀ x̄ by the user's transposed solve;  what A is made of gets the cotangent of A x for -b̄."""
    constants, x = res
    jaxprs, lengths = solve_parts(params)
    b_bar = transposed_solve(params, constants, [instantiate(c, y) for c, y in zip(ct, x, strict=False)])
    of_matrix = constants[: lengths[0]]
    to_matrix: list[Cotangent] = [Zero] * lengths[0]
    if any(perturbed[: lengths[0]]):
        passes = passes_of(jaxprs.matvec, (*perturbed[: lengths[0]], *(False for _ in x)), state.options)
        keep = lambda: passes.forward.with_outputs(passes.candidates).pruned(keep_inputs=True)[0]
        candidates = passes.made("candidates", keep)(*of_matrix, *x)
        minus = [lax.neg(b) if d else Zero for b, d in zip(b_bar, passes.differentiable, strict=True)]
        to_matrix = passes.backward_pass(candidates, minus, state.named)[0][: lengths[0]]
    return [*to_matrix, *(Zero for _ in constants[lengths[0] :]), *b_bar]


def_control(
    primitives.linear_solve_p, linear_solve_fwd, linear_solve_bwd, traits=UNKNOWN.but(singular=Singularity.MATRIX)
)
