"""A barrier that values of types which somebody defines go through, too: as the arrays that they are made of."""

from __future__ import annotations

from collections.abc import Sequence

from jax import lax
from jax._src import core
from jax._src.interpreters import batching, mlir
from jax._src.interpreters.ad import primitive_jvps
from jax.extend.core import Primitive

from .types import Aval, Value
from .values import is_high

__all__ = ["barrier_p"]


def _to_low(*values: Value) -> list[Value]:
    """Let the arrays through JAX's barrier, all of them together."""
    types = [core.typeof(x) for x in values]
    low = [t.lower_val(x) for t, x in zip(types, values, strict=True)]
    behind = iter(lax.optimization_barrier([x for xs in low for x in xs]))
    return [t.raise_val(*(next(behind) for _ in xs)) for t, xs in zip(types, low, strict=True)]


def _batched(args: Sequence[Value], dims: Sequence[int | None]) -> tuple[list[Value], Sequence[int | None]]:
    return barrier_p.bind(*args), dims


class _Barrier(Primitive):
    multiple_results = True

    def is_high(self, *avals: Aval, **params: object) -> bool:
        return any(map(is_high, avals))

    def to_lojax(self, *values: Value, **params: object) -> list[Value]:
        return _to_low(*values)


barrier_p = _Barrier("barrier")
barrier_p.def_impl(_to_low)
mlir.register_lowering(barrier_p, mlir.lower_fun(_to_low, multiple_results=True))
barrier_p.def_abstract_eval(lambda *avals: list(avals))
primitive_jvps[barrier_p] = lambda primals, tangents: (barrier_p.bind(*primals), list(tangents))
batching.primitive_batchers[barrier_p] = _batched
