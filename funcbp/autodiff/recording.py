"""The trace that records.

`record(f, ...)` runs `f` once, on the values it is called with, under a JAX trace of our own. Each equation that a
perturbed value enters is run as usual, and what its rule wants to keep is written on a tape. Under plain Python the
values are concrete arrays, so control flow on them works; under `jit` and `vmap` they are tracers, and the tape is
written while those trace. Equations that no perturbed value enters leave no trace here at all.

This file boxes values and answers JAX. How an equation is recorded is its rule's business (`rules/kinds.py`), what an
entry is and which are left is the tape's (`tape.py`), functions with a derivative of their own are in
`custom_rules.py`, and feedback marks in `feedback.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import jax
from jax._src import core

from .. import jaxpr as jx
from ..cotangents import is_differentiable
from ..jaxpr.types import Primitive, PyTree, T, Value, WrappedFun
from ..rules.fallback import lookup
from ..rules.kinds import Operation, PassedRule, Rule
from ..rules.options import Options
from ..rules.spikes import has_spike, record_spikes
from .custom_rules import record_custom_jvp, record_custom_vjp
from .feedback import Lost, feedback_through, read_backward, refuse_lost
from .references import (
    cell_of,
    contents,
    give_back,
    lend,
    meets_cells,
    record_on_cells,
    refuse_returned,
    refuse_twice,
)
from .tape import Entry, Tape, TapeWriter

__all__ = ["RecordedValue", "RecordingTrace", "record"]


class RecordedValue(core.Tracer):
    """A perturbed value: the value itself, and its index on the tape.

    A value under a feedback mark also has its feedback weight, which deltas go through in its stead (`feedback.py`);
    then the index is None where the value is not perturbed.
    """

    __slots__ = ("feedback", "index", "value")

    def __init__(self, trace: RecordingTrace, value: Value, index: int | None, feedback: Value | None = None):
        super().__init__(trace, value.aval if isinstance(value, core.Tracer) else core.typeof(value))
        self.value, self.index, self.feedback = value, index, feedback

    def to_concrete_value(self) -> Value:
        return core.to_concrete_value(self.value)

    def full_lower(self) -> Value:
        return self

    def get_referent(self) -> Value:
        return core.get_referent(self.value)

    def _contents(self) -> list[tuple[str, Value]]:
        contents = [("value", self.value)]
        return contents if self.index is None else [*contents, ("index", jx.perturbed_mark())]

    def _short_repr(self) -> str:
        return f"RecordedValue({self.value})"


class RecordingTrace(core.Trace):
    """Runs each equation in the trace around it, and has those that a perturbed value enters put on the tape."""

    def __init__(self, parent: core.Trace, options: Options):
        super().__init__()
        self.requires_low = False
        self.parent_trace, self.options = parent, options
        self.staging = jx.is_staging(parent)
        self.spmd_axes = jx.spmd_axes()
        self.tape = TapeWriter()
        self.callers: list[Any] = []  # the tracebacks of the calls that are gone into
        self.marked = False  # whether any value has a feedback weight
        self._count = 0
        self._in_tangents = 0  # inside how many tangent rules, whose values are of no consequence

    def close(self) -> None:
        """Let go of what was recorded and of the trace around: JAX may hold on to this one for as long as a program."""
        self.invalidate()
        self.tape = TapeWriter()
        self.parent_trace = None  # type: ignore[assignment]

    # boxing

    def new(self, value: Value) -> RecordedValue:
        """Box a perturbed value that nothing has been recorded of yet."""
        self._count += 1
        return RecordedValue(self, value, self._count - 1)

    def mine(self, x: Value) -> bool:
        return type(x) is RecordedValue and x._trace is self

    def value(self, x: Value) -> Value:
        return x.value if self.mine(x) else x

    def index(self, x: Value) -> int | None:
        """Which of the tape's values this is; of a reference, what it holds."""
        x = contents(self, x)
        return x.index if self.mine(x) else None

    def unwrap(self, tracers: Sequence[Value]) -> tuple[list[Value], list[int | None]]:
        """Return the values, and which of the tape's values each is."""
        pairs = [(t.value, t.index) if self.mine(t) else (t, None) for t in tracers]
        return [value for value, _ in pairs], [index for _, index in pairs]

    def feedback(self, tracers: Sequence[Value]) -> list[Value | None] | None:
        """Return the feedback weights of these values, None for each that has none or whose is lost; or None if all of
        them were never marked.
        """
        marks = [t.feedback if self.mine(t) else None for t in tracers] if self.marked else []
        return [None if type(m) is Lost else m for m in marks] if any(m is not None for m in marks) else None

    def lost(self, tracers: Sequence[Value]) -> list[Lost | None]:
        """Return where the feedback weights of these values were lost, None for each of which none was."""
        marks = [t.feedback if self.mine(t) else None for t in tracers] if self.marked else []
        return [m if type(m) is Lost else None for m in marks]

    def read_back(self, x: Value) -> Value:
        """Return what a rule reads of a value on the way back: its feedback weight if it has one."""
        weight = x.feedback if self.mine(x) else None
        return self.value(x) if weight is None or type(weight) is Lost else weight

    def with_feedback(self, value: Value, weight: Value | None) -> Value:
        """Give a value, recorded or not, this feedback weight if there is one."""
        return value if weight is None else RecordedValue(self, self.value(value), self.index(value), weight)

    def with_index(self, value: Value, index: int | None) -> Value:
        """Box a value as this one of the tape's; leave it as it is, if it is none."""
        return value if index is None else RecordedValue(self, self.value(value), index)

    def operation(self, primitive: Primitive, params: dict[str, Any], tracers: Sequence[Value]) -> Operation:
        values, indices = self.unwrap(tracers)
        return Operation(primitive, params, tracers, values, indices, self.feedback(tracers))

    # what rules ask for (`rules.kinds.Recorder`)

    @property
    def observing(self) -> bool:
        observer = self.options.observer
        return observer is not None and observer.everything and not self._in_tangents

    def below(self) -> AbstractContextManager[object]:
        return core.set_current_trace(self.parent_trace)

    def above(self) -> AbstractContextManager[object]:
        """Enter a context in which what runs is recorded."""
        return core.set_current_trace(self)

    def run(self, operation: Operation) -> Value:
        return jx.bind_in(self.parent_trace, operation.primitive, operation.values, operation.params)

    def read_backward(self, operation: Operation) -> Sequence[Value]:
        return read_backward(operation)

    def inline(self, f: Callable[..., PyTree], operation: Operation, call: bool) -> Value:
        if not call:
            with self.above():
                return f(*operation.operands)
        self.callers.append(jx.current_traceback())
        try:
            with self.above(), jx.inside_call(operation.params):
                return f(*operation.operands)
        finally:
            self.callers.pop()

    def along(self, tangent: Callable[..., Any], operation: Operation) -> Any:
        tangents = [
            self.tangent(t) if p else None for t, p in zip(operation.operands, operation.perturbed, strict=True)
        ]
        with self.tangent_rule(), jx.tangent_of(operation.primitive.name):
            outs, slopes = tangent(operation.values, tangents, **operation.params)
        several, name = operation.primitive.multiple_results, operation.primitive.name
        if several:
            return self.carried(name, operation, outs, slopes)
        return self.carried(name, operation, [outs], [slopes])[0]

    def passed(self, operation: Operation) -> Value:
        outs = self.run(operation)
        self.look_at(operation, outs)
        return feedback_through(self, operation, outs, self.lost(operation.operands))

    def look_at(self, operation: Operation, outs: Value) -> None:
        """Put an operation that no derivative goes through on the tape, where an observer asks for it."""
        if self.observing:
            self._write(PassedRule(), operation, outs, ())

    def write(
        self,
        rule: Rule,
        operation: Operation,
        outs: Value,
        res: PyTree,
        differentiable: Sequence[bool] | None = None,
        always: bool = False,
    ) -> Value:
        several = operation.primitive.multiple_results
        listed = list(outs) if several else [outs]
        if differentiable is None:
            differentiable = [is_differentiable(o) for o in listed]
        wrapped = [self.new(o) if d else o for o, d in zip(listed, differentiable, strict=True)]
        outs = wrapped if several else wrapped[0]
        if always or any(differentiable):
            self._write(rule, operation, outs, res)
        return feedback_through(self, operation, outs, self.lost(operation.operands))

    def _write(self, rule: Rule, operation: Operation, outs: Value, res: PyTree) -> None:
        several = operation.primitive.multiple_results
        outs = list(outs) if several else [outs]
        self.write_entry(rule, operation, outs, res, several, operation.primitive.name)

    def write_entry(
        self, rule: Rule, operation: Operation, outs: Sequence[Value], res: PyTree, several: bool, name: str
    ) -> None:
        """Put an entry on the tape, with what the observer notes of it."""
        noted = None
        observer = None if self._in_tangents else self.options.observer
        if observer is not None:
            with self.below():
                noted = observer.forward(name, operation.params, operation.values, list(map(self.value, outs)))
        saved, tree = self.tape.save_all((res, noted))
        what = name, rule, operation.params, operation.perturbed, tuple(operation.indices)
        outputs, types = tuple(map(self.index, outs)), tuple(map(core.typeof, operation.values))
        self.tape.entries.append(Entry(*what, outputs, types, saved, tree, several, jx.current_source(self.callers)))

    # tangent rules

    def tangent(self, x: Any) -> RecordedValue:
        """Return the tangent of a perturbed value, which carries its index; its own value is of no consequence."""
        value = jx.tangent_value(x.value)
        return x if value is x.value else RecordedValue(self, value, x.index)

    @contextmanager
    def tangent_rule(self) -> Iterator[None]:
        """Enter a context in which what runs is recorded, on values that are of no consequence."""
        self._in_tangents += 1
        try:
            with self.above():
                yield
        finally:
            self._in_tangents -= 1

    @property
    def in_tangent_rule(self) -> bool:
        return self._in_tangents > 0

    def carried(self, name: str, operation: Operation, outs: Sequence[Value], tangents: Sequence[Value]) -> list[Value]:
        """Box the outputs of an operation that has a tangent rule, each with the index of its tangent."""
        observer = self.options.observer
        if observer is not None and not self._in_tangents:
            for y, t in zip(outs, tangents, strict=True):
                made_by = next((e for e in self.tape.entries if self.index(t) in e.outputs), None)
                if self.index(t) not in (None, *operation.indices) and made_by is not None:
                    params = {"function": name, "indices": tuple(operation.indices)}
                    noted = observer.forward(made_by.primitive, params, operation.values, [self.value(y)])
                    self.tape.note(self.index(t), noted)
        return [
            self.value(y) if self.index(t) is None else RecordedValue(self, self.value(y), t.index)
            for y, t in zip(outs, tangents, strict=True)
        ]

    # JAX calls these

    def stage_value(self, x: Value) -> Value:
        stage = getattr(self.parent_trace, "stage_value", lambda v: v)
        return RecordedValue(self, stage(x.value), x.index, x.feedback) if self.mine(x) else stage(x)

    def cur_qdd(self, x: Any) -> Any:
        """Refuse an object that holds a value (`hijax.Box`), which newer JAX has given up."""
        raise TypeError(f"funcbp does not follow what is written into {x!r}. Use a mutable reference: jax.new_ref.")

    def process_primitive(self, primitive: Any, tracers: Sequence[Any], params: dict[str, Any], /) -> Any:
        if primitive is jx.feedback_p:
            self.marked = True
            return self.with_feedback(tracers[0], self.value(tracers[1]))
        if meets_cells(self, primitive, params, tracers):
            return record_on_cells(self, primitive, params, tracers)
        return self.process_operation(primitive, params, tracers)

    def process_operation(self, primitive: Primitive, params: dict[str, Any], tracers: Sequence[Value]) -> Value:
        """Record an operation that has nothing to do with references."""
        operation = self.operation(primitive, params, tracers)
        refuse_lost(operation, self.lost(tracers))
        enters = operation.is_perturbed or operation.feedback is not None or operation.stands_for_another
        if enters or self.observing or operation.marks_inside:
            if self.options.inlines_calls and has_spike(operation):
                return record_spikes(self, operation)
            with jx.outside_vmaps(self.spmd_axes), jx.width_of(operation.values):
                return lookup(self.options, primitive).record(self, operation)
        return self.run(operation)

    def process_custom_jvp_call(
        self, primitive: Primitive, fun: WrappedFun, jvp: WrappedFun, tracers: Sequence[Value], /, **params: Any
    ) -> list[Value]:
        return self.custom_call(record_custom_jvp, primitive, tracers, dict(subfuns=(fun, jvp), **params))

    def process_custom_vjp_call(
        self,
        primitive: Primitive,
        fun: WrappedFun,
        fwd: WrappedFun,
        bwd: WrappedFun,
        tracers: Sequence[Value],
        /,
        **params: Any,
    ) -> list[Value]:
        return self.custom_call(record_custom_vjp, primitive, tracers, dict(subfuns=(fun, fwd, bwd), **params))

    def custom_call(
        self,
        record: Callable[..., list[Value]],
        primitive: Primitive,
        tracers: Sequence[Value],
        params: dict[str, Any],
    ) -> list[Value]:
        """Record a function with a derivative of its own, where the axes have their names that it was mapped over."""
        with jx.among(jx.mapped_axes(params["subfuns"][1])):
            return record(self, primitive, tracers, params)

    def process_call(
        self, primitive: Primitive, f: WrappedFun, tracers: Sequence[Value], params: dict[str, Any], /
    ) -> Value:
        with self.above():
            return f.call_wrapped(*tracers)

    def process_shard_map(self, primitive: Primitive, f: WrappedFun, tracers: Sequence[Value], **params: Any) -> Value:
        params, operands, passed_on = jx.staged_map(primitive, f, tracers, params)
        return passed_on(self.process_primitive(primitive, operands, params))


OVER = (
    "If the function stores no value away: a jax.custom_jvp or jax.custom_vjp function in a jit or loop that closes "
    "over a value of it or takes one as a nondiff argument (as jax.scipy.special.expn does in JAX 0.10), has a rule "
    "that can be called no more once the jit or loop is traced, by JAX neither. Make the value an argument of its own."
)


@contextmanager
def _explaining() -> Iterator[None]:
    """Say of a value that belongs to a trace which is over where it may have come from."""
    try:
        yield
    except jax.errors.UnexpectedTracerError as error:
        if OVER not in getattr(error, "__notes__", ()):
            error.add_note(OVER)
        raise


def record(
    f: Callable[..., tuple[Sequence[Value], T]], values: Sequence[Value], perturbed: Sequence[bool], options: Options
) -> tuple[Tape, list[Value], list[Value], T]:
    """Run `f`, a function from arrays to (list of arrays, anything), recording what happens to the perturbed inputs.

    Returns:
        The tape, the outputs, the saved arrays, and the second thing `f` returned, with values for recorded ones.

    Raises:
        MissingRuleError: an equation between a perturbed input and an output has no rule.
    """
    refuse_twice(values)
    with core.take_current_trace() as parent, closing(RecordingTrace(parent, options)) as trace:
        with trace.below():
            box = lambda v: lend(trace, v, perturbed=True) if jx.is_reference(v) else trace.new(v)
            primals = [box(v) if p and is_differentiable(v) else v for v, p in zip(values, perturbed, strict=True)]
        firsts = list(map(trace.index, primals))
        with trace.above(), _explaining():
            outs, rest = f(*primals)
            leaves, tree = jax.tree.flatten(rest)  # a node's own code, which may compute
        refuse_returned(trace, [*outs, *leaves])
        for cell in filter(None, (cell_of(trace, x) for x in primals)):
            give_back(trace, cell, differentiated=True)
        indices = [trace.index(o) if trace.mine(o) and is_differentiable(o) else None for o in outs]
        tape, saved = trace.tape.finish(firsts, indices, trace.observing)
        with trace.below():
            rest = jax.tree.unflatten(tree, map(trace.value, leaves))
        return tape, [trace.value(o) for o in outs], saved, rest
