"""A program traced on numbers: where Python asks for a value it gets it, and the program is that of the way it took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax._src import core

from .mapped import bind_in

__all__ = ["trace_on"]

ASKED = (jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError)


def trace_on(f: Callable[..., Any], args: Sequence[Any]) -> Any:
    """Trace a function of arrays, as `jax.make_jaxpr` does; one that branches in Python on values as it does on these.

    Raises:
        NotImplementedError: it does so beside a `shard_map`.
    """
    try:
        return jax.make_jaxpr(f)(*args)
    except ASKED:
        if any(isinstance(x, core.Tracer) for x in args):  # there are no values
            raise
        return jax.make_jaxpr(lambda *xs: _followed(f, args, xs))(*args)


class FollowedValue(core.Tracer):
    """A number, and what stands for it in the program."""

    __slots__ = ("number", "staged")

    def __init__(self, trace: FollowingTrace, number: Any, staged: Any):
        super().__init__(trace, core.typeof(staged))
        self.number, self.staged = number, staged

    def to_concrete_value(self) -> Any:
        return core.to_concrete_value(self.number) if isinstance(self.number, core.Tracer) else self.number

    def full_lower(self) -> Any:
        return self

    def _short_repr(self) -> str:
        return f"FollowedValue({self.number})"


class FollowingTrace(core.Trace):
    """Runs each equation twice: on numbers, and in the program that is being traced."""

    def __init__(self, staging: core.Trace):
        super().__init__()
        self.requires_low = False
        self.staging = staging

    def stage_value(self, value: Any) -> Any:
        return value

    def process_primitive(self, primitive: Any, tracers: Any, params: dict[str, Any], /) -> Any:
        parts = [(t.number, t.staged) if isinstance(t, FollowedValue) else (t, t) for t in tracers]
        numbers, staged = [n for n, _ in parts], [s for _, s in parts]
        with core.eval_context():
            found = bind_in(core.eval_trace, primitive, numbers, params)
        outs = bind_in(self.staging, primitive, staged, params)
        if primitive.multiple_results:
            return [FollowedValue(self, n, s) for n, s in zip(found, outs, strict=True)]
        return FollowedValue(self, found, outs)

    def process_custom_jvp_call(self, primitive: Any, fun: Any, jvp: Any, tracers: Any, /, **_: Any) -> Any:
        return self._body(fun, tracers)  # what is differentiated was so above

    def process_custom_vjp_call(self, primitive: Any, fun: Any, fwd: Any, bwd: Any, tracers: Any, /, **_: Any) -> Any:
        return self._body(fun, tracers)

    def _body(self, fun: Any, tracers: Any) -> Any:
        with core.set_current_trace(self):
            return fun.call_wrapped(*tracers)

    def process_shard_map(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(
            "The function branches in Python on values and has a shard_map in it, which is not followed together. "
            "Use jnp.where or jax.lax.cond in the place of the Python if."
        )


def _followed(f: Callable[..., Any], numbers: Sequence[Any], staged: Sequence[Any]) -> Any:
    with core.take_current_trace() as staging:
        trace = FollowingTrace(staging)
        with core.set_current_trace(trace):
            outs = f(*(FollowedValue(trace, n, s) for n, s in zip(numbers, staged, strict=True)))
        unboxed = jax.tree.map(lambda x: x.staged if isinstance(x, FollowedValue) else x, outs)
        trace.invalidate()
        return unboxed
