"""The kinds of rules, a class each: how an equation of this kind is recorded, and how it is gone back through.

Each has the same two methods:

    record(recorder, operation) -> the outputs        on the way forward
    backward(state, entry, res, ct) -> cotangents     on the way back

so that the recording trace and the backward pass call them and know no kind by name. A new kind is a new class here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from .. import jaxpr as jx
from ..cotangents import Cotangent, Factored, Linear, Moves, is_differentiable, materialize
from ..jaxpr.operations import stands_for
from ..jaxpr.types import Aval, Primitive, PyTree, Value
from .contract import INPUTS, EscapedMarkError, MissingRuleError, Save
from .options import Options

__all__ = [
    "AuthorsRule",
    "BodyRule",
    "CallRule",
    "CastRule",
    "ControlRule",
    "Entry",
    "LinearRule",
    "LoggingRule",
    "MissingRule",
    "NonDifferentiableRule",
    "Operation",
    "PassedRule",
    "Recorder",
    "Rule",
    "State",
    "SurrogateRule",
    "TangentRule",
    "ZeroRule",
]


class Operation(NamedTuple):
    """An equation about to be recorded.

    Attributes:
        primitive, params: what it is.
        operands: what goes in, as it came: recorded values among them.
        values: the numbers.
        indices: which of the tape's values each operand is; None where it is not perturbed.
        feedback: the feedback weight of each operand, None for those that have none; or None if no operand has one.
    """

    primitive: Primitive
    params: dict[str, Any]
    operands: Sequence[Value]
    values: Sequence[Value]
    indices: Sequence[int | None]
    feedback: Sequence[Value | None] | None = None

    @property
    def perturbed(self) -> tuple[bool, ...]:
        """Which operands are perturbed."""
        return tuple(i is not None for i in self.indices)

    @property
    def marks_inside(self) -> bool:
        """Whether weights are marked in the programs inside it."""
        return any(map(jx.has_marks, jx.programs_inside(self.params)))

    @property
    def is_perturbed(self) -> bool:
        return self.indices.count(None) < len(self.indices)

    @property
    def stands_for_another(self) -> bool:
        """Whether another operation is recorded in its place, as that of a name, which a plan may look for."""
        return "_prim" in self.params and stands_for(self.params) is not None

    def after(self, n: int) -> Operation:
        """The same of the operands that come after the first n."""
        feedback = self.feedback and self.feedback[n:]
        return Operation(self.primitive, self.params, self.operands[n:], self.values[n:], self.indices[n:], feedback)


class Entry(Protocol):
    """One equation on the tape, as its rule sees it. See `autodiff/tape.py`."""

    @property
    def perturbed(self) -> tuple[bool, ...]: ...
    @property
    def params(self) -> dict[str, Any]: ...
    @property
    def types(self) -> tuple[Aval, ...]: ...
    @property
    def several(self) -> bool: ...
    @property
    def tapes(self) -> list[Any]:
        """The tapes of the programs inside it: one, or one per branch."""


class Recorder(Protocol):
    """What a rule asks of the trace that records it. See `autodiff/recording.py`."""

    @property
    def options(self) -> Options: ...
    @property
    def staging(self) -> bool:
        """Whether a program is being traced around the recording."""

    @property
    def in_tangent_rule(self) -> bool:
        """Whether what runs is a tangent rule, which is linear in what is perturbed."""

    @property
    def observing(self) -> bool:
        """Whether an observer wants the equations that no derivative goes through, too."""

    def below(self) -> AbstractContextManager[object]:
        """A context in which operations run in the trace around the recording."""

    def run(self, operation: Operation) -> Value:
        """The outputs of the operation, run below."""

    def read_backward(self, operation: Operation) -> Sequence[Value]:
        """What its rule reads of its operands: of a factor under a feedback mark, the feedback weight."""

    def inline(self, f: Callable[..., PyTree], operation: Operation, call: bool) -> Value:
        """Record what this function does to the operands, in the operation's place; `call`: under the call's name."""

    def along(self, tangent: Callable[..., PyTree], operation: Operation) -> Value:
        """Record `tangent(primals, tangents)`, which is linear in the tangents; the outputs."""

    def passed(self, operation: Operation) -> Value:
        """The outputs of an operation that no derivative goes through."""

    def with_feedback(self, value: Value, weight: Value | None) -> Value:
        """A value, recorded or not, with this feedback weight if there is one."""

    def write(
        self,
        rule: Rule,
        operation: Operation,
        outs: Value,
        res: PyTree,
        differentiable: Sequence[bool] | None = None,
        always: bool = False,
    ) -> Value:
        """Put the operation on the tape; the outputs, those that are differentiable as recorded values."""


class State(Protocol):
    """What a rule sees of the backward pass. See `autodiff/backward_pass.py`."""

    @property
    def options(self) -> Options: ...
    @property
    def named(self) -> dict[str, jax.Array] | None:
        """The cotangents of the named values passed so far."""

    @property
    def outer_names(self) -> tuple[tuple[str, Aval], ...] | None:
        """The names and types of what the pass brings to a program inside; None where no edit could read it."""

    @property
    def outer_cotangents(self) -> list[jax.Array]:
        """The cotangents that `outer_names` speaks of."""

    def inside(self, entry: Any) -> State:
        """The state, at an entry that has programs of its own inside."""

    def merge(self, results: Any) -> None:
        """Add what was found inside the entry at hand."""

    def log(self, logs: Mapping[str, PyTree] | None) -> None:
        """Take what a rule logs: a dict by name, or None."""


@dataclass(frozen=True, eq=False)
class Rule:
    """How one operation is differentiated: a pair that can be printed. See `rules/contract.py` for the contract.

    Attributes:
        bwd: `bwd(res, ct, perturbed, **params)`, one cotangent per primal; None where there is none.
        fwd: `fwd(*primals, **params) -> (outs, res)`; left out, the primitive is run and `save` is kept.
        save: what to keep where `fwd` is left out, `INPUTS` if left out too.
        factors: `bwd` with products left to be contracted (`Factored`), for a backward pass that asks for them.
        message: `message(where)`, why there is no derivative.
    """

    bwd: Callable[..., Sequence[Any]] | None = None
    fwd: Callable[..., tuple[Value, ...]] | None = None
    save: Save | None = None
    factors: Callable[..., Sequence[Cotangent]] | None = None
    message: Callable[[str], str] | None = None

    how: ClassVar[str] = "hand-written"  # the word for it in `coverage`
    takes_zeros: ClassVar[bool] = False  # whether the backward pass enters it where all cotangents are zero, to look
    inlines_calls: ClassVar[bool] = False  # whether, as an option, it has compiled calls inlined
    local: ClassVar[bool] = True  # whether `bwd` on scalars is one local derivative per operand

    @property
    def name(self) -> str:
        return getattr(self.bwd, "__name__", type(self).__name__)

    def __repr__(self) -> str:
        shown = {"bwd": self.bwd, "fwd": self.fwd, "save": self.save}
        given = (f"{k}={getattr(v, '__name__', v)}" for k, v in shown.items() if v is not None)
        name = "rule" if type(self) is Rule else type(self).__name__
        return f"{name}({', '.join(given)})"

    def record(self, recorder: Recorder, operation: Operation) -> Value:
        """Run the operation and put it on the tape, if a perturbed value enters it."""
        if not operation.is_perturbed:
            return recorder.passed(operation)
        if self.fwd is None:
            outs = recorder.run(operation)
            kept = recorder.read_backward(operation)
            res = (self.save or INPUTS)(kept, outs, operation.perturbed, operation.params)
        else:
            with recorder.below():
                found = self.fwd(*operation.values, **operation.params)
                if not isinstance(found, tuple) or len(found) != 2:
                    raise TypeError(
                        f"The fwd of the rule {self.name} for `{operation.primitive}` must return a pair (outputs, "
                        f"residuals), and returned a {type(found).__name__}."
                    )
                outs, res = found
                if self.save is not None:
                    res = self.save(operation.values, res, operation.perturbed, operation.params)
        return recorder.write(self, operation, outs, res)

    def reached(self, entry: Entry, outputs: Sequence[bool]) -> Sequence[bool]:
        """Which primals a cotangent of these outputs can come back to."""
        return [True] * len(entry.types)

    def may_return(self, ct: Aval, primal: Aval) -> bool:
        """Whether a cotangent of this type may come back to a primal of this type."""
        return jx.takes(primal, ct) or (ct.shape == primal.shape and not is_differentiable(primal))

    def backward(self, state: State, entry: Entry, res: PyTree, ct: list[Cotangent]) -> Sequence[Cotangent]:
        """The cotangents of the entry's primals."""
        ct = [materialize(c) for c in ct]
        bwd: Any = (state.options.factored and self.factors) or self.bwd
        return bwd(res, ct if entry.several else ct[0], entry.perturbed, **entry.params)


@dataclass(frozen=True, eq=False, repr=False)
class LinearRule(Rule):
    """Linear in the first operand, and keeps no numbers: a product not yet contracted goes through it as it is.

    Attributes:
        moves: how it moves numbers, if that is all it does.
        order: the parameter by which it puts the axes in another order and does nothing else.
    """

    moves: Moves = Moves.NOT
    order: str = ""

    def backward(self, state: State, entry: Entry, res: PyTree, ct: list[Cotangent]) -> Sequence[Cotangent]:
        if type(ct[0]) is not Factored:
            return super().backward(state, entry, res, ct)
        linear = Linear(self.bwd, res, entry.perturbed, entry.params, self.moves)  # type: ignore[arg-type]
        back = ct[0].through(linear, entry.types[0], entry.params.get(self.order))
        return [back, *(None for _ in entry.types[1:])]


class CastRule(LinearRule):
    """Makes another type of it. A cast to the type that is there, which JAX writes down where values are known, is no
    equation; nor is that of a constant which only makes its type a strong one.
    """

    def record(self, recorder: Recorder, operation: Operation) -> Value:
        x, to = jx.type_of(operation.values[0]), operation.params
        if x.dtype != to["new_dtype"] or to["sharding"] is not None:
            return super().record(recorder, operation)
        if x.weak_type == to["weak_type"]:
            return operation.operands[0]
        return super().record(recorder, operation) if operation.is_perturbed else recorder.run(operation)


class ZeroRule(Rule):
    """Differentiable, with derivative zero almost everywhere: nothing is recorded."""

    how: ClassVar[str] = "zero"

    def record(self, recorder: Recorder, operation: Operation) -> Value:
        return recorder.passed(operation)


class ZeroOnRealsRule(ZeroRule):
    """Derivative zero almost everywhere on the real line; in the complex plane it is not, and the rule is as others."""

    def record(self, recorder: Recorder, operation: Operation) -> Value:
        in_plane = any(jnp.iscomplexobj(x) for x in operation.values)
        return Rule.record(self, recorder, operation) if in_plane else super().record(recorder, operation)


class NonDifferentiableRule(ZeroRule):
    """No output has a derivative: integers, booleans, keys."""

    how: ClassVar[str] = "non-differentiable"


class PassedRule(ZeroRule):
    """No derivative goes through it, and it was written down to be looked at."""

    local: ClassVar[bool] = False


class MissingRule(Rule):
    """Nobody has written it: an error, raised if the equation turns out to be between an input and the output."""

    def record(self, recorder: Recorder, operation: Operation) -> Value:
        if not operation.is_perturbed:
            return recorder.passed(operation)
        return recorder.write(self, operation, recorder.run(operation), ())


class TangentRule(Rule):
    """Written along a direction: `fwd(primals, tangents, **params) -> (outs, tangents of the outs)`.

    It is linear in the tangents (None for an unperturbed primal), and is transposed by the backward pass.
    """

    def record(self, recorder: Recorder, operation: Operation) -> Value:
        if not operation.is_perturbed:
            return recorder.passed(operation)
        return recorder.along(self.fwd, operation)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False, repr=False)
class AuthorsRule(Rule):
    """A primitive that JAX does not define, by the tangent and the transpose rule that its author registered with JAX.

    The tangent rule is recorded as any other; where it calls a primitive of its author's on a tangent, that is linear,
    and goes back by its transpose rule.
    """

    primitive: Any = None

    how: ClassVar[str] = "its author's"
    local: ClassVar[bool] = False

    def record(self, recorder: Recorder, operation: Operation) -> Value:
        if not operation.is_perturbed:
            return recorder.passed(operation)
        if not recorder.in_tangent_rule and jx.has_authors_jvp(self.primitive):
            tangent = lambda primals, tangents, **params: jx.authors_jvp(self.primitive, primals, tangents, params)
            return recorder.along(tangent, operation)
        outs = recorder.run(operation)
        if not recorder.in_tangent_rule or not jx.has_authors_transpose(self.primitive):
            lacks = "transpose" if recorder.in_tangent_rule else "tangent"
            return recorder.write(MissingRule(message=functools.partial(_unregistered, lacks)), operation, outs, ())
        values = [jx.type_of(x) if p else x for x, p in zip(operation.values, operation.perturbed, strict=True)]
        types = [jx.type_of(y) for y in (outs if self.primitive.multiple_results else [outs])]
        return recorder.write(self, operation, outs, (values, types))


def _unregistered(lacks: str, where: str) -> str:
    where_to = "jax.interpreters.ad.primitive_" + {"tangent": "jvps", "transpose": "transposes"}[lacks]
    return f"funcbp has no derivative for {where}: its author registered no {lacks} rule ({where_to})."


class SurrogateRule(Rule):
    """The output is a boolean, and has a cotangent all the same: a number, where the boolean becomes one."""

    inlines_calls: ClassVar[bool] = True  # a boolean's cotangent does not go through programs inside programs

    def record(self, recorder: Recorder, operation: Operation) -> Value:
        if not operation.is_perturbed:
            return recorder.passed(operation)
        outs = recorder.run(operation)
        res = (self.save or INPUTS)(operation.values, outs, operation.perturbed, operation.params)
        return recorder.write(self, operation, outs, res, differentiable=[True])


class LoggingRule(Rule):
    """A function's own backward rule: `bwd` returns its cotangents and what it logs, a dict or None.

    A cotangent may be of a dtype of somebody's own, which says what a sum is: the next such rule takes it from there.
    """

    def may_return(self, ct: Aval, primal: Aval) -> bool:
        if super().may_return(ct, primal) or not jx.checks_bwd():
            return True
        return ct.shape == primal.shape and jax.dtypes.issubdtype(ct.dtype, jax.dtypes.extended)

    def backward(self, state: State, entry: Entry, res: PyTree, ct: list[Cotangent]) -> Sequence[Cotangent]:
        if state.options.factored:
            return super().backward(state, entry, res, ct)
        cts, logs = self.bwd(res, list(map(materialize, ct)), entry.perturbed)  # type: ignore[misc]
        state.log(logs)
        return cts


@dataclass(frozen=True, eq=False, repr=False)
class BodyRule(Rule):
    """Differentiated as the program `body(params)`, which is recorded in the operation's place."""

    body: Callable[[dict[str, Any]], Callable[..., PyTree]] | None = None

    def record(self, recorder: Recorder, operation: Operation) -> Value:
        return recorder.inline(self.body(operation.params), operation, call=True)  # type: ignore[misc]


@dataclass(frozen=True, eq=False, repr=False)
class ControlRule(Rule):
    """It differentiates the programs inside an operation, by the options that it is given.

    `fwd(options, perturbed, *primals, **params)` also returns which outputs are differentiable, and `bwd` gets the
    state of the backward pass first: `bwd(state, res, ct, perturbed, **params)`.

    Attributes:
        instead: `instead(options, params)`, a function to be recorded in the operation's place where that pays, or None
            where it does not.
        mark_inside: `mark_inside(params, which) -> (which, params)`, the parameters of the same operation with one more
            operand after each of `which`, its feedback weight; and of which it has that.
        reaches: `reaches(tapes, outputs, **params)`, which primals a cotangent of these outputs can come back to, by
            the tapes of the programs inside; left out, all of them.
    """

    instead: Callable[[Options, dict[str, Any]], Callable[..., PyTree] | None] | None = None
    mark_inside: Callable[[dict[str, Any], Sequence[bool]], tuple[Sequence[bool], dict[str, Any]]] | None = None
    reaches: Callable[..., Sequence[bool]] | None = None

    local: ClassVar[bool] = False

    @property
    def takes_zeros(self) -> bool:  # type: ignore[override]
        return self.bwd is not None

    def record(self, recorder: Recorder, operation: Operation) -> Value:
        plain = operation.is_perturbed and operation.feedback is None and not recorder.observing
        if self.instead is not None and plain:
            program = self.instead(recorder.options, operation.params)
            if program is not None:
                return recorder.inline(program, operation, call=False)
        enters = recorder.observing and self.bwd is not None
        if not (operation.is_perturbed or enters or (self.bwd is not None and operation.marks_inside)):
            return recorder.passed(operation)  # no mark may be lost in it
        if operation.feedback is not None and any(w is not None for w in operation.feedback) and self.mark_inside:
            operation = _marked_inside(operation, self.mark_inside)
        # a boolean's cotangent does not go through programs inside programs
        floats = [is_differentiable(jx.type_of(x)) for x in operation.values]
        indices = [i if f else None for i, f in zip(operation.indices, floats, strict=True)]
        operation = operation._replace(indices=indices)
        try:
            with recorder.below():
                outs, res, differentiable = self._run(recorder, operation)
        except MissingRuleError as error:  # inside: it counts where what comes out is needed
            message = str(error)
            return MissingRule(message=lambda where: message).record(recorder, operation)
        return recorder.write(self, operation, outs, res, differentiable, always=enters)

    def _run(self, recorder: Recorder, operation: Operation) -> tuple[Value, PyTree, Sequence[bool]]:
        try:
            return jx.with_outputs_checked(
                operation.primitive.name,
                lambda: self.fwd(recorder.options, operation.perturbed, *operation.values, **operation.params),  # type: ignore[misc]
            )
        except MissingRuleError as error:
            line = jx.user_line(jx.current_source())
            if error.located or not line:
                raise
            raise MissingRuleError(f"{error} It is inside the `{operation.primitive}` at {line}.") from None
        except EscapedMarkError as error:
            line = jx.user_line(jx.current_source())
            if error.where or not line:
                raise
            raise EscapedMarkError(f"the `{operation.primitive}` at {line}") from None

    def reached(self, entry: Entry, outputs: Sequence[bool]) -> Sequence[bool]:
        if self.reaches is None:
            return super().reached(entry, outputs)
        return self.reaches(entry.tapes, outputs, **entry.params)

    def backward(self, state: State, entry: Entry, res: PyTree, ct: list[Cotangent]) -> Sequence[Cotangent]:
        return self.bwd(state.inside(entry), res, ct, entry.perturbed, **entry.params)  # type: ignore[misc]


def _marked_inside(
    operation: Operation, mark_inside: Callable[[dict[str, Any], Sequence[bool]], tuple[Sequence[bool], dict[str, Any]]]
) -> Operation:
    """A loop, branch or region whose operands have feedback weights: it takes these too, and bears the marks inside."""
    assert operation.feedback is not None
    which, params = mark_inside(operation.params, [w is not None for w in operation.feedback])
    groups = list(zip(operation.values, operation.indices, operation.feedback, which, strict=True))
    values = [x for v, _, f, w in groups for x in ((v, f) if w else (v,))]
    indices = [x for _, i, _, w in groups for x in ((i, None) if w else (i,))]
    return operation._replace(params=params, values=values, indices=indices, feedback=None)


@dataclass(frozen=True, eq=False, repr=False)
class CallRule(ControlRule):
    """A compiled call: it stays one in both passes, unless somebody has to look inside; then it is inlined."""

    body: Callable[[dict[str, Any]], Callable[..., PyTree]] | None = None

    def record(self, recorder: Recorder, operation: Operation) -> Value:
        written_out = recorder.staging and jx.is_inlined(operation.params)
        looked_into = recorder.options.inlines_calls or operation.feedback is not None
        enters = operation.is_perturbed or operation.feedback is not None or recorder.observing
        if enters and (written_out or looked_into):
            return recorder.inline(self.body(operation.params), operation, call=True)  # type: ignore[misc]
        return super().record(recorder, operation)
