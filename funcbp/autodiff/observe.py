"""What ran, with its numbers: the equations themselves, in the place of what their rules keep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax._src import core

from .. import jaxpr as jx
from ..cotangents import is_differentiable
from ..jaxpr.sources import Source
from ..jaxpr.types import Primitive, Value
from ..rules.options import Options
from .recording import RecordingTrace

__all__ = ["Equation", "observe"]


class Equation(NamedTuple):
    """One equation that ran: the operation as a function, the values it ran on, which of them an input had entered, and
    where it was written.
    """

    primitive: str
    params: dict[str, Any]
    apply: Callable[..., list[Value]]
    values: tuple[Value, ...]
    perturbed: tuple[bool, ...]
    source: Source

    @property
    def inside(self) -> jx.Inside:
        """The programs inside it."""
        return jx.Inside.of(self.params, tuple(map(core.typeof, self.values)))


class ObservingTrace(RecordingTrace):
    """Writes down the equations themselves, with the values they run on, in the place of what their rules keep.

    Calls are gone into; a function with a derivative of its own is one equation, and `apply` still carries it. It is a
    trace and no visitor of `jaxpr.run`, as Python control flow on values works under a trace alone; what a call is, it
    has from there.
    """

    def __init__(self, parent: core.Trace):
        super().__init__(parent, Options())
        self.equations: list[Equation] = []
        self.calls: list[Any] = []  # where the calls that we are in were written

    def process_operation(self, primitive: Primitive, params: dict[str, Any], tracers: Sequence[Value]) -> Value:
        values, indices = self.unwrap(tracers)
        if jx.Inside.of(params, tuple(map(core.typeof, values))).kind & ENTERS:
            self.calls.append(jx.current_source())
            with core.set_current_trace(self):
                outs = jx.as_function(jx.call_jaxpr(params))(*tracers)
            self.calls.pop()
            return outs
        outs = jx.bind_in(self.parent_trace, primitive, values, params)
        several = primitive.multiple_results
        if all(index is None for index in indices) or primitive.name == "stop_gradient":
            return outs
        bound = primitive.get_bind_params(params)
        apply = lambda *xs: list(primitive.bind(*xs, **bound)) if several else [primitive.bind(*xs, **bound)]
        wrapped = self.observed(primitive.name, params, apply, values, indices, outs if several else [outs])
        return wrapped if several else wrapped[0]

    def observed(
        self,
        name: str,
        params: dict[str, Any],
        apply: Callable[..., list[Value]],
        values: Sequence[Value],
        indices: Sequence[int | None],
        outs: Sequence[Value],
    ) -> list[Value]:
        written = (jx.current_source(), *reversed(self.calls))  # inside of JAX's own functions, where they were called
        source = max(written, key=jx.nearness)
        perturbed = tuple(index is not None for index in indices)
        self.equations.append(Equation(name, params, apply, tuple(values), perturbed, source))
        return [self.new(y) if is_differentiable(y) else y for y in outs]

    def custom_call(
        self,
        record: Callable[..., list[Value]],
        primitive: Primitive,
        tracers: Sequence[Value],
        params: dict[str, Any],
    ) -> list[Value]:
        """Stage the call, so that it can be repeated with its rule; its outputs come from its body."""
        values, indices = self.unwrap(tracers)
        types = tuple(map(core.typeof, values))

        def staged(*xs: Value) -> list[Value]:
            with core.take_current_trace() as staging:
                return primitive.bind_with_trace(staging, xs, types, params)

        program = jx.trace(staged, types)
        (eqn,) = (e for e in program.eqns if e.primitive is primitive)
        with core.set_current_trace(self.parent_trace):
            outs = jx.as_function(jx.call_jaxpr(eqn.params))(*values)
        if all(index is None for index in indices):
            return outs
        return self.observed(primitive.name, eqn.params, program, values, indices, outs)


ENTERS = jx.Kind.JIT | jx.Kind.CALL | jx.Kind.REMAT


def observe(f: Callable[..., Sequence[Value]], *values: Value) -> list[Equation]:
    """Run `f` on these arrays, and return the equations that a floating-point input entered, in the order they ran.

    Python control flow on values works: the equations are those of the branch that was taken.
    """
    with core.take_current_trace() as parent:
        trace = ObservingTrace(parent)
        with core.set_current_trace(parent):
            primals = [trace.new(v) if is_differentiable(v) else v for v in values]
        with core.set_current_trace(trace):
            f(*primals)
        return trace.equations
