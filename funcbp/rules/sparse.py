"""`jax.experimental.sparse`: each operation is differentiated as the dense program that it is computed by.

JAX does not import it by itself, and nor does anybody here: these rules are entered when a primitive without one is met
(`registry.enter_later`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..cotangents import Cotangent
from ..jaxpr.sparse import dense_programs, spsolve_p
from ..jaxpr.types import PyTree, Value
from .registry import def_body, def_rule
from .traits import DEAR


def with_params(program: Callable[..., Sequence[Value]], params: dict[str, Any]) -> Callable[..., Sequence[Value]]:
    """The program, as a function of the operands alone."""
    return functools.partial(program, **params)


for p, program in dense_programs().items():
    def_body(p, functools.partial(with_params, program), traits=DEAR)


def spsolve_save(
    primals: Sequence[jax.Array], x: jax.Array, perturbed: Sequence[bool], params: dict[str, Any]
) -> PyTree:
    data, indices, indptr, _ = primals
    return data, indices, indptr, (x if perturbed[0] else None)


def spsolve_bwd(res: PyTree, ct: jax.Array, perturbed: Sequence[bool], **params: Any) -> list[Cotangent]:
    """A x = b:  b̄ = A⁻ᵀ x̄,  Ā = -b̄ x' where A has entries. Keeps x only where A is perturbed."""
    data, indices, indptr, x = res
    n = len(indptr) - 1
    row = jnp.repeat(jnp.arange(n, dtype=indices.dtype), jnp.diff(indptr), total_repeat_length=len(data))
    order = jnp.argsort(indices, stable=True)
    counts = jnp.bincount(indices, length=n)
    indptr_of_transpose = jnp.concatenate([indptr[:1], jnp.cumsum(counts).astype(indptr.dtype)])
    b_bar = spsolve_p.bind(data[order], row[order], indptr_of_transpose, ct, **params)
    return [-b_bar[row] * x[indices] if perturbed[0] else None, None, None, b_bar]


def_rule(spsolve_p, spsolve_bwd, save=spsolve_save, traits=DEAR)
