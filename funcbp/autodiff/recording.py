"""The trace that records: the only user of JAX's trace interface.

`record(f, ...)` runs `f` once, on the values it is called with, under a JAX trace of our own. Each equation that a
perturbed value enters is run as usual, and what its rule wants to keep is written down as a `Entry`. Under plain Python
the values are concrete arrays, so control flow on them works; under `jit` and `vmap` they are tracers, and the record
is made while those trace. Equations that no perturbed value enters leave no trace here at all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax._src import ad_util, core
from jax._src.interpreters.partial_eval import DynamicJaxprTrace

from .. import jaxpr as jx
from ..cotangents import Zero, is_differentiable
from ..rules.inlined import opened
from ..rules.registry import INPUTS, NAMED, MissingRuleError, Rule
from .feedback import feedback_weights_of, passed_inside, read_backward

__all__ = ["Entry", "Equation", "Observer", "Tape", "observe", "record"]


class SavedIndex(NamedTuple):
    """A residual: which of the record's kept arrays it is."""

    at: int


class Entry(NamedTuple):
    """One equation of the record: its rule, what the rule keeps, and which values go in and come out."""

    primitive: str
    rule: Rule
    params: dict[str, Any]
    perturbed: tuple[bool, ...]
    inputs: tuple[int | None, ...]  # which value each primal is; None where it is not perturbed
    outputs: tuple[int | None, ...]
    types: tuple[Any, ...]  # of the primals
    res: tuple[
        Any, ...
    ]  # what the rule keeps, and what the watch notes, flat: arrays are `SavedIndex`, the rest is here
    tree: Any  # the structure of `res`
    several: bool  # outputs come as a list
    source: Any
    number: int = -1  # which of the record's steps this is

    def residuals(self, saved: Sequence[Any]) -> tuple[Any, Any]:
        """What the rule keeps, and what the walker's watch noted."""
        return self.tree.unflatten([saved[r.at] if type(r) is SavedIndex else r for r in self.res])

    def where(self) -> str:
        line = jx.user_line(self.source)
        return f"`{self.primitive}` at {line}" if line else f"`{self.primitive}`"


class Observer(Protocol):
    """What looks at each step, on the way forward and on the way back. It is a value, which jit caches compare.

    What it notes is kept like a residual, and what it makes of a step comes out of the walk: from inside a loop stacked
    over the loop's steps.

    Attributes:
        everything: whether it also looks at equations that no differentiated value enters, or that lead to no output.
    """

    @property
    def everything(self) -> bool: ...

    def forward(self, primitive: str, params: dict[str, Any], values: Sequence[Any], outs: Sequence[Any]) -> Any:
        """A pytree of arrays to be kept of a step that has run on these values, or None."""

    def backward(self, entry: Entry, noted: Any, ct: Sequence[Any]) -> Any:
        """A pytree of arrays to be handed out, of what was noted and the cotangents of the outputs, or None."""


PASSED = Rule(kind="passed")


class Tape(NamedTuple):
    """What was recorded, without its numbers: steps in the order they ran, and the values that go in and come out."""

    entries: tuple[Entry, ...]
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]


class RecordTracer(core.Tracer):
    """A perturbed value: the value itself, and its number in the record.

    A value under a feedback mark also has its mirror, which deltas go through in its stead (see `mirrors.py`); then the
    number is None where the value is not perturbed.
    """

    __slots__ = ("feedback", "index", "value")

    def __init__(self, trace: RecordTrace, value: Any, index: int | None, feedback: Any = None):
        super().__init__(trace, value.aval if isinstance(value, core.Tracer) else core.typeof(value))
        self.value, self.index, self.feedback = value, index, feedback

    def to_concrete_value(self) -> Any:
        return core.to_concrete_value(self.value)

    def full_lower(self) -> Any:
        return self

    def get_referent(self) -> Any:
        return core.get_referent(self.value)

    def _short_repr(self) -> str:
        return f"RecordTracer({self.value})"


class RecordTrace(core.Trace):
    """Runs each equation in the trace around it, and writes down those that a perturbed value enters."""

    def __init__(self, parent: core.Trace, options: Any):
        super().__init__()
        self.requires_low = False
        self.parent_trace, self.options = parent, options
        self.staging = isinstance(parent, DynamicJaxprTrace)
        self.entries: list[Entry] = []
        self.saved: list[Any] = []
        self.marked = False  # whether any value has a mirror
        self._indices: dict[int, int] = {}
        self._count = 0
        self._in_tangents = 0  # inside how many tangent rules, whose values are of no consequence
        self.sees_all = options is not None and options.observer is not None and options.observer.everything

    # values

    def new(self, value: Any) -> RecordTracer:
        self._count += 1
        return RecordTracer(self, value, self._count - 1)

    def mine(self, x: Any) -> bool:
        return isinstance(x, RecordTracer) and x._trace is self

    def value(self, x: Any) -> Any:
        return x.value if self.mine(x) else x

    def index(self, x: Any) -> int | None:
        return x.index if self.mine(x) else None

    def unwrap(self, tracers: Sequence[Any]) -> tuple[list[Any], list[int | None]]:
        """The values, and which of the record's values each is."""
        mine = [type(t) is RecordTracer and t._trace is self for t in tracers]
        values = [t.value if m else t for t, m in zip(tracers, mine, strict=True)]
        return values, [t.index if m else None for t, m in zip(tracers, mine, strict=True)]

    def feedbacks(self, tracers: Sequence[Any]) -> list[Any] | None:
        """The mirrors of these values, None for each that has none; or None if none of them has."""
        feedbacks = [t.feedback if self.mine(t) else None for t in tracers] if self.marked else []
        return feedbacks if any(m is not None for m in feedbacks) else None

    def with_feedback(self, value: Any, feedback: Any) -> Any:
        """A value, recorded or not, with this mirror if there is one."""
        return value if feedback is None else RecordTracer(self, self.value(value), self.index(value), feedback)

    def mark(self, w: Any, b: Any) -> RecordTracer:
        """The value w, through whose mirror b deltas go."""
        self.marked = True
        return RecordTracer(self, self.value(w), self.index(w), self.value(b))

    def stage_value(self, x: Any) -> Any:
        stage = getattr(self.parent_trace, "stage_value", lambda v: v)
        return RecordTracer(self, stage(x.value), x.index, x.feedback) if self.mine(x) else stage(x)

    def keep(self, x: Any) -> Any:
        """Set an array aside for the backward pass, once."""
        if not isinstance(x, (jax.Array, np.ndarray, np.generic)):
            return x
        index = self._indices.setdefault(id(x), len(self.saved))
        if index == len(self.saved):
            self.saved.append(x)
        return SavedIndex(index)

    def write(
        self, name: str, rule: Rule, params: Any, indices: Any, values: Any, outs: Any, res: Any, several: bool
    ) -> None:
        observer = None if self._in_tangents else self.options.observer
        noted = None
        if observer is not None:
            with core.set_current_trace(self.parent_trace):
                noted = observer.forward(name, params, values, list(map(self.value, outs)))
        leaves, tree = jax.tree.flatten((res, noted))
        perturbed = tuple(index is not None for index in indices)
        outputs = tuple(map(self.index, outs))
        saved = tuple(map(self.keep, leaves))
        source, types = jx.current_source(), tuple(map(core.typeof, values))
        self.entries.append(
            Entry(name, rule, params, perturbed, tuple(indices), outputs, types, saved, tree, several, source)
        )

    @property
    def observing(self) -> bool:
        """Whether the equation at hand is written down though no derivative goes through it."""
        return self.sees_all and not self._in_tangents

    def passed(self, primitive: Any, params: dict[str, Any], values: Any, outs: Any) -> Any:
        """The outputs of an equation that no derivative goes through, written down where a watch asks for it."""
        if self.observing:
            several = primitive.multiple_results
            listed = list(outs) if several else [outs]
            self.write(primitive.name, PASSED, params, [None] * len(values), values, listed, (), several)
        return outs

    # JAX calls these

    def process_primitive(self, primitive: Any, tracers: Sequence[Any], params: dict[str, Any], /) -> Any:
        if primitive is jx.feedback_p:
            return self.mark(*tracers)
        values, indices = self.unwrap(tracers)
        perturbed = [index is not None for index in indices]
        feedbacks = self.feedbacks(tracers)
        rule = self.options.lookup(primitive) if any(perturbed) or feedbacks or self.observing else None
        if (
            rule is not None
            and (program := self.in_its_place(rule, any(perturbed), bool(feedbacks), params)) is not None
        ):
            with core.set_current_trace(self), jx.inside_call(params) if rule.instead is None else nullcontext():
                return program(*tracers)
        if feedbacks and (inside := passed_inside(primitive, params, values, indices, feedbacks)):
            values, indices, params = inside
            perturbed, feedbacks = [index is not None for index in indices], None
        avals, several = tuple(map(core.typeof, values)), primitive.multiple_results
        goes = any(perturbed) and rule is not None and rule.kind not in ("zero", "nondiff")
        enters = self.observing and rule is not None and rule.kind == "control" and rule.bwd is not None
        if rule is None or not (goes or enters):
            outs = primitive.bind_with_trace(self.parent_trace, values, avals, params)
            self.passed(primitive, params, values, outs)
            return self.feedback_through(outs, primitive, values, feedbacks, perturbed, params) if feedbacks else outs
        differentiable = None
        if rule.kind == "tangent":
            tangents = [t if p else None for t, p in zip(tracers, perturbed, strict=True)]
            self._in_tangents += 1
            with core.set_current_trace(self):
                outs, slopes = rule.fwd(values, tangents, **params)  # type: ignore[misc]
            self._in_tangents -= 1
            return self.carried(outs, slopes) if several else self.carried([outs], [slopes])[0]
        if rule.kind == "control":  # a boolean's cotangent does not go through programs inside programs
            indices = [index if is_differentiable(t) else None for index, t in zip(indices, avals, strict=True)]
            perturbed = [index is not None for index in indices]
        if rule.fwd is None:
            outs = primitive.bind_with_trace(self.parent_trace, values, avals, params)
            res = (rule.save or INPUTS)(read_backward(primitive, values, feedbacks), outs, perturbed, params)
        else:
            with core.set_current_trace(self.parent_trace):
                if rule.kind == "control":
                    outs, res, differentiable = self.run_control(primitive, rule, perturbed, values, params)
                else:
                    outs, res = rule.fwd(*values, **params)
                    res = res if rule.save is None else rule.save(values, res, perturbed, params)
        outs = list(outs) if several else [outs]
        if rule.kind == "step":
            differentiable = [True]
        if differentiable is None:
            differentiable = [is_differentiable(o) for o in outs]
        wrapped = [self.new(o) if d else o for o, d in zip(outs, differentiable, strict=True)]
        if any(differentiable) or enters:
            self.write(primitive.name, rule, params, indices, values, wrapped, res, several)
        out = wrapped if several else wrapped[0]
        return self.feedback_through(out, primitive, values, feedbacks, perturbed, params) if feedbacks else out

    def in_its_place(
        self, rule: Rule, perturbed: bool, feedbacks: bool, params: dict[str, Any]
    ) -> Callable[..., Any] | None:
        """The function to be recorded in an equation's place, if there is one."""
        if rule.body is not None and (self.staging or rule.bwd is None or feedbacks or self.options.opens_calls):
            return rule.body(params)
        if rule.instead is not None and perturbed and not feedbacks and not self.observing:
            return rule.instead(self.options, params)
        return None

    def feedback_through(
        self, outs: Any, primitive: Any, values: Any, feedbacks: Any, perturbed: Any, params: dict[str, Any]
    ) -> Any:
        """What an equation returned, with mirrors where the equation only moved or scaled what has one."""
        several = primitive.multiple_results
        shapes = [jx.type_of(o).shape for o in (outs if several else [outs])]
        with core.set_current_trace(self.parent_trace):
            found = feedback_weights_of(primitive, values, feedbacks, perturbed, params, shapes)
        if found is None:
            return outs
        if not several:
            return self.with_feedback(outs, found)
        return [self.with_feedback(o, m) for o, m in zip(outs, found, strict=True)]

    def run_control(self, primitive: Any, rule: Rule, perturbed: Any, values: Any, params: Any) -> Any:
        try:
            return rule.fwd(self.options, perturbed, *values, **params)  # type: ignore[misc]
        except MissingRuleError as error:
            line = jx.user_line(jx.current_source())
            if error.located or not line:
                raise
            raise MissingRuleError(f"{error} It is inside the `{primitive}` at {line}.") from None

    def process_custom_jvp_call(
        self, primitive: Any, fun: Any, jvp: Any, tracers: Any, /, *, symbolic_zeros: bool
    ) -> Any:
        """The function's own tangent rule is linear in the tangents: record it on them, and it is transposed with the
        rest.

        A tangent carries its primal's number, and what comes out carries the output's. Its value is of no consequence,
        the rule being linear: what a linear step keeps does not depend on it. So it carries its primal's value too.
        """
        values, indices = self.unwrap(tracers)
        if all(index is None for index in indices):
            avals = tuple(core.typeof(v) for v in values)
            subfuns = dict(subfuns=(fun, jvp), symbolic_zeros=symbolic_zeros)
            outs = primitive.bind_with_trace(self.parent_trace, tuple(values), avals, subfuns)
            return self.passed(primitive, {}, values, outs)
        if (rule := self.options.rules.get(jx.written_where(fun))) is not None:
            return self.by_another_rule(rule, fun, values, indices)
        named = NAMED.get(jx.own_name(fun))
        if named is not None and all(np.issubdtype(core.typeof(v).dtype, np.floating) for v in values):
            with core.set_current_trace(self.parent_trace):
                outs = fun.call_wrapped(*values)
            with core.set_current_trace(self):
                return self.carried(outs, [named(values, [t if self.mine(t) else None for t in tracers])])
        zero = ad_util.SymbolicZero if symbolic_zeros else jx.zeros
        with core.set_current_trace(self.parent_trace):
            tangents = [
                zero(core.typeof(v).to_tangent_aval()) if index is None else t
                for t, v, index in zip(tracers, values, indices, strict=True)
            ]
        feedbacks = self.feedbacks(tracers) or [None] * len(values)
        self._in_tangents += 1
        with core.set_current_trace(self):
            outs = jvp.call_wrapped(*map(self.with_feedback, values, feedbacks), *tangents)
        self._in_tangents -= 1
        n = len(outs) // 2
        return self.carried(outs[:n], outs[n:])

    def carried(self, outs: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
        """The outputs of a tangent rule, each carrying the number of its tangent."""
        if self.options.observer is not None and not self._in_tangents:
            for y, t in zip(outs, tangents, strict=True):
                self._note_output(self.index(t), self.value(y))
        return [
            self.value(y) if self.index(t) is None else RecordTracer(self, self.value(y), t.index)
            for y, t in zip(outs, tangents, strict=True)
        ]

    def _note_output(self, index: int | None, value: Any) -> None:
        """Have the watch note the output of a tangent rule, at the step that its tangent came out of."""
        for i, entry in enumerate(self.entries):
            if index is not None and index in entry.outputs:
                res, _ = entry.tree.unflatten(entry.res)
                noted = self.options.observer.forward(entry.primitive, entry.params, (), [value])
                noted = jax.tree.map(self.keep, noted)
                leaves, tree = jax.tree.flatten((res, noted), is_leaf=lambda x: type(x) is SavedIndex)
                self.entries[i] = entry._replace(res=tuple(leaves), tree=tree)

    def by_another_rule(self, rule: Rule, fun: Any, values: Sequence[Any], indices: Sequence[int | None]) -> list[Any]:
        """A function with a derivative of its own, by the rule that an option gives it instead."""
        perturbed = [index is not None for index in indices]
        with core.set_current_trace(self.parent_trace):
            outs, saved = fun.call_wrapped(*values), None
            if rule.fwd is not None:
                out, saved = rule.fwd(*values)
                outs = list(out) if len(outs) > 1 else [out]
        several = len(outs) > 1
        if rule.fwd is None or rule.save is not None:
            of = values, saved if rule.fwd is not None else outs if several else outs[0]
            saved = (rule.save or INPUTS)(*of, perturbed, {})
        wrapped = [self.new(o) if is_differentiable(o) else o for o in outs]
        name = jx.written_where(fun).partition(" at ")[0]
        self.write(name, rule, {}, indices, values, wrapped, saved, several)
        return wrapped

    def process_custom_vjp_call(
        self, primitive: Any, fun: Any, fwd: Any, bwd: Any, tracers: Any, /, *, out_trees: Any, symbolic_zeros: bool
    ) -> Any:
        """The function's own `fwd` runs now, and its own `bwd` is the step's rule."""
        values, indices = self.unwrap(tracers)
        perturbed = [index is not None for index in indices]
        if not any(perturbed):
            avals = tuple(core.typeof(v) for v in values)
            subfuns = dict(subfuns=(fun, fwd, bwd), out_trees=out_trees, symbolic_zeros=symbolic_zeros)
            outs = primitive.bind_with_trace(self.parent_trace, tuple(values), avals, subfuns)
            return self.passed(primitive, {}, values, outs)
        if (rule := self.options.rules.get(jx.written_where(fun))) is not None:
            return self.by_another_rule(rule, fun, values, indices)
        feedbacks = self.feedbacks(tracers)
        operands = list(map(self.with_feedback, values, feedbacks)) if feedbacks else values
        with core.set_current_trace(self if feedbacks else self.parent_trace):
            res_and_outs = fwd.call_wrapped(*(x for pair in zip(operands, perturbed, strict=True) for x in pair))
        _, res_tree, forwarded = out_trees()
        n = res_tree.num_leaves - sum(i is not None for i in forwarded)
        own, outs = iter(res_and_outs[:n]), list(map(self.value, res_and_outs[n:]))
        res = [next(own) if i is None else operands[i] for i in forwarded]
        res = [x.feedback if self.mine(x) else x for x in res]  # here only a value with a mirror is ours
        types = [core.typeof(o) for o in outs]
        wrapped = [self.new(o) if is_differentiable(o) else o for o in outs]

        def custom_vjp_bwd(res: Any, ct: Any, perturbed: Sequence[bool]) -> list[Any]:
            """The backward rule the user gave to `jax.custom_vjp`."""
            return jx.custom_bwd(bwd, res, [None if c is Zero else c for c in ct], types, symbolic_zeros)

        in_types = tuple(core.typeof(v) for v in values)
        rule = Rule(custom_vjp_bwd, factors=functools.partial(opened, custom_vjp_bwd, in_types))
        self.write(primitive.name, rule, {}, indices, values, wrapped, tuple(res), several=True)
        return wrapped

    def process_call(self, primitive: Any, f: Any, tracers: Any, params: Any, /) -> Any:
        with core.set_current_trace(self):
            return f.call_wrapped(*tracers)

    def process_shard_map(self, primitive: Any, f: Any, tracers: Any, **params: Any) -> Any:
        if any(map(self.mine, tracers)):
            raise MissingRuleError(
                f"funcbp cannot differentiate through `shard_map` yet ({jx.user_line(jx.current_source())}). "
                "Differentiate inside the mapped function, or use jax.grad for this program."
            )
        return self.parent_trace.process_shard_map(  # type: ignore[attr-defined]
            primitive, f, [self.value(t) for t in tracers], **params
        )


def record(
    f: Callable[..., Sequence[Any]], values: Sequence[Any], perturbed: Sequence[bool], options: Any
) -> tuple[Tape, list[Any], list[Any], Any]:
    """Run `f`, a function from arrays to (list of arrays, anything), recording what happens to the perturbed inputs.

    Returns:
        The record, the outputs, the kept arrays, and the second thing `f` returned, with values for recorded tracers.

    Raises:
        MissingRuleError: an equation between a perturbed input and an output has no rule.
    """
    with core.take_current_trace() as parent:
        trace = RecordTrace(parent, options)
        with core.set_current_trace(parent):
            primals = [
                trace.new(v) if p and is_differentiable(v) else v for v, p in zip(values, perturbed, strict=True)
            ]
        with core.set_current_trace(trace):
            outs, rest = f(*primals)
        out_slots = tuple(trace.index(o) if trace.mine(o) and is_differentiable(o) else None for o in outs)
        entries, saved = _reaching(trace, out_slots)
        rest = jax.tree.map(trace.value, rest)
        return Tape(entries, tuple(map(trace.index, primals)), out_slots), [trace.value(o) for o in outs], saved, rest


def _reaching(trace: RecordTrace, outputs: Sequence[int | None]) -> tuple[tuple[Entry, ...], list[Any]]:
    """The steps through which an input can reach an output (or all, for a watch that looks at all), and the arrays that
    those keep.
    """
    reached = {s for s in outputs if s is not None}
    steps = []
    for entry in reversed(trace.entries):
        reaches = any(o in reached for o in entry.outputs)
        if reaches:
            if entry.rule.bwd is None:
                where = entry.where()
                raise MissingRuleError(entry.rule.message(where), located=" at " in where)
            reached |= {i for i in entry.inputs if i is not None}
        if reaches or trace.sees_all:
            steps.append(entry)
    saved: dict[int, int] = {}
    renumber = lambda r: SavedIndex(saved.setdefault(r.at, len(saved))) if type(r) is SavedIndex else r
    steps = [s._replace(res=tuple(map(renumber, s.res)), number=i) for i, s in enumerate(reversed(steps))]
    return tuple(steps), [trace.saved[i] for i in saved]


# --- what ran, with its numbers ---------------------------------------------------------------------------------------


class Equation(NamedTuple):
    """One equation that ran: the operation as a function, the values it ran on, which of them an input had entered, and
    where it was written.
    """

    primitive: str
    params: dict[str, Any]
    apply: Callable[..., list[Any]]
    values: tuple[Any, ...]
    perturbed: tuple[bool, ...]
    source: Any


class ObservingTrace(RecordTrace):
    """Writes down the equations themselves, with the values they run on, in the place of what their rules keep.

    Calls are gone into; a function with a derivative of its own is one equation, and `apply` still carries it.
    """

    def __init__(self, parent: core.Trace):
        super().__init__(parent, None)
        self.equations: list[Equation] = []
        self.calls: list[Any] = []  # where the calls that we are in were written

    def process_primitive(self, primitive: Any, tracers: Sequence[Any], params: dict[str, Any], /) -> Any:
        values, indices = self.unwrap(tracers)
        if primitive.name in CALLS:
            self.calls.append(jx.current_source())
            with core.set_current_trace(self):
                outs = jx.as_function(jx.call_jaxpr(params))(*tracers)
            self.calls.pop()
            return outs
        outs = primitive.bind_with_trace(self.parent_trace, values, tuple(map(core.typeof, values)), params)
        several = primitive.multiple_results
        if all(index is None for index in indices) or primitive.name == "stop_gradient":
            return outs
        apply = lambda *xs: primitive.bind(*xs, **params) if several else [primitive.bind(*xs, **params)]
        wrapped = self.observed(primitive.name, params, apply, values, indices, outs if several else [outs])
        return wrapped if several else wrapped[0]

    def observed(self, name: str, params: Any, apply: Any, values: Any, indices: Any, outs: Any) -> list[Any]:
        written = (jx.current_source(), *reversed(self.calls))  # inside of JAX's own functions, where they were called
        source = next(filter(jx.user_line, written), written[0])
        perturbed = tuple(index is not None for index in indices)
        self.equations.append(Equation(name, params, apply, tuple(values), perturbed, source))
        return [self.new(y) if is_differentiable(y) else y for y in outs]

    def custom_call(self, primitive: Any, tracers: Any, subfuns: dict[str, Any]) -> list[Any]:
        """Staged, so that it can be called again with its rule; its outputs come from its body."""
        values, indices = self.unwrap(tracers)
        types = tuple(map(core.typeof, values))

        def staged(*xs: Any) -> list[Any]:
            with core.take_current_trace() as staging:
                return primitive.bind_with_trace(staging, xs, types, subfuns)

        program = jx.trace(staged, types)
        (eqn,) = (e for e in program.eqns if e.primitive is primitive)
        with core.set_current_trace(self.parent_trace):
            outs = jx.as_function(jx.call_jaxpr(eqn.params))(*values)
        if all(index is None for index in indices):
            return outs
        return self.observed(primitive.name, eqn.params, program, values, indices, outs)

    def process_custom_jvp_call(
        self, primitive: Any, fun: Any, jvp: Any, tracers: Any, /, *, symbolic_zeros: bool
    ) -> Any:
        return self.custom_call(primitive, tracers, dict(subfuns=(fun, jvp), symbolic_zeros=symbolic_zeros))

    def process_custom_vjp_call(
        self, primitive: Any, fun: Any, fwd: Any, bwd: Any, tracers: Any, /, *, out_trees: Any, symbolic_zeros: bool
    ) -> Any:
        subfuns = dict(subfuns=(fun, fwd, bwd), out_trees=out_trees, symbolic_zeros=symbolic_zeros)
        return self.custom_call(primitive, tracers, subfuns)


CALLS = ("jit", "closed_call", "remat2", "composite", "custom_vmap_call")


def observe(f: Callable[..., Any], *values: Any) -> list[Equation]:
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
