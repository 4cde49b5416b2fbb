"""The primitive behind `funcbp.feedback`: for JAX the identity of its first operand."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax._src.interpreters import batching, mlir
from jax._src.interpreters.ad import primitive_jvps
from jax.extend.core import Primitive

from .interpreter import equations
from .types import AnyJaxpr
from .values import weakref_cache

feedback_p = Primitive(
    "feedback"
)  # for JAX the identity of its first operand; for our recording, see `autodiff/feedback.py`


feedback_p.def_impl(lambda w, b: w)


feedback_p.def_abstract_eval(lambda w, b: w)


mlir.register_lowering(feedback_p, lambda ctx, w, b: [w])


primitive_jvps[feedback_p] = lambda primals, tangents: (feedback_p.bind(*primals), tangents[0])


def _feedback_batched(args: Sequence[jax.Array], dims: Sequence[int | None]) -> tuple[jax.Array, int]:
    (size,) = {x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None}
    front = [batching.bdim_at_front(x, d, size) for x, d in zip(args, dims, strict=True)]
    return feedback_p.bind(*front), 0


batching.primitive_batchers[feedback_p] = _feedback_batched


@weakref_cache
def has_marks(jaxpr: AnyJaxpr) -> bool:
    """Whether weights are marked in a program, or in one inside it."""
    return any(o.eqn.primitive is feedback_p for o in equations(jaxpr))
