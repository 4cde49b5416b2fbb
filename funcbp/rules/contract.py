"""The contract of a rule.

A rule is a pair you can print:

    fwd(*primals, **params) -> (outs, res)
    bwd(res, ct, perturbed, **params) -> one cotangent per primal

`fwd` runs the primitive and keeps the residuals `res`: any pytree; arrays in it are kept for the backward pass, the
rest (types, numbers, names) is written into the program. Left out, it is "bind, and keep `save`", where `save` is
`INPUTS`, `OUTPUT`, `TYPES`, `NOTHING`, or a function `save(primals, outs, perturbed, params)` that chooses among them.
Where both are given, `save(primals, res, perturbed, params)` says what of `res` is needed for these perturbed primals.

`bwd` gets the residuals, the cotangent of the output (a list of cotangents, `Zero` where zero, for a primitive with
several outputs) and which primals are perturbed, and returns a cotangent per primal: an array of the primal's shape and
dtype, `Zero`, or `None` where no derivative exists. What it returns for an unperturbed primal is dropped, so it need
not be computed.

Cotangents follow JAX's convention for complex numbers: `bwd` is the transpose of the derivative, without conjugation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..jaxpr.types import PyTree, Value

__all__ = ["INPUTS", "NOTHING", "OUTPUT", "TYPES", "EscapedMarkError", "MissingRuleError", "Save"]


class MissingRuleError(NotImplementedError, ValueError):
    """An equation must be differentiated and nobody has written its rule.

    For JAX that is a `NotImplementedError` of most primitives, and a `ValueError` of `while` and of callbacks: what
    catches either catches this.
    """

    def __init__(self, message: str, located: bool = True):
        super().__init__(message)
        self.located = located


class EscapedMarkError(ValueError):
    """A value with a feedback weight comes out of a program inside an operation, where nobody follows it.

    Attributes:
        where: the operation and its line, "" as long as it is not known.
    """

    def __init__(self, where: str = ""):
        super().__init__(
            f"A value with a feedback weight comes out of {where or 'a program'} and cannot be followed out of there. "
            "Mark what comes out: feedback(f(w), f(b)) in the place of f(feedback(w, b))."
        )
        self.where = where


Save = Callable[[Sequence[Value], Value, Sequence[bool], dict[str, Any]], PyTree]


def INPUTS(primals: Sequence[Value], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]) -> PyTree:
    """Keep the primals."""
    return tuple(primals)


def OUTPUT(primals: Sequence[Value], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]) -> PyTree:
    """Keep the output."""
    return outs


def TYPES(primals: Sequence[Value], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]) -> PyTree:
    """Keep the primals' shapes and dtypes, and no numbers."""
    return tuple(jax.typeof(x) for x in primals)


def NOTHING(primals: Sequence[Value], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]) -> PyTree:
    """Keep nothing."""
    return ()
