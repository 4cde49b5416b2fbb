"""Mutable references under the recording: a cell in the place of each, whose value is recorded as any other.

A reference that is made while a function is recorded exists in no trace but ours: it is a `RecordedReference`, and what
is read from it and written to it are operations on the cell's value (`jaxpr/references.py`). A reference that was there
before is read and written as JAX does, at once, and no derivative goes through it; a program that meets it is given its
value, and what the program wrote is written back.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from .. import jaxpr as jx
from ..jaxpr.types import Primitive, Value
from ..rules.kinds import Operation

__all__ = [
    "ReferenceRecorder",
    "cell_of",
    "contents",
    "give_back",
    "kept_reference",
    "lend",
    "meets_cells",
    "record_on_cells",
    "refuse_returned",
    "refuse_twice",
    "shown",
    "take_up",
]


class ReferenceRecorder(Protocol):
    """What is asked of the trace that records these operations. See `recording.py`."""

    @property
    def observing(self) -> bool: ...
    def operation(self, primitive: Primitive, params: dict[str, Any], tracers: Sequence[Value]) -> Operation: ...
    def above(self) -> AbstractContextManager[object]: ...
    def below(self) -> AbstractContextManager[object]: ...
    def run(self, operation: Operation) -> Value: ...
    def value(self, x: Value) -> Value: ...
    def index(self, x: Value) -> int | None: ...
    def new(self, value: Value) -> Value: ...


def cell_of(trace: Any, x: Value) -> jx.Cell | None:
    """The cell behind a reference of this recording; None behind anything else."""
    return x.cell if type(x) is jx.RecordedReference and x._trace is trace else None


def meets_cells(trace: Any, primitive: Primitive, params: dict[str, Any], tracers: Sequence[Value]) -> bool:
    """Tell whether an operation has to do with references: it makes, reads or writes some, or is handed one of ours."""
    return jx.meets_references(primitive, params, tracers) or any(cell_of(trace, t) is not None for t in tracers)


def record_on_cells(
    trace: ReferenceRecorder, primitive: Primitive, params: dict[str, Any], tracers: Sequence[Value]
) -> Value:
    """Run an operation that has to do with references: on the values of its cells, which is then recorded."""
    cells = [cell_of(trace, t) for t in tracers]
    if all(c is None for c in cells) and not jx.makes_reference(primitive):
        operation = trace.operation(primitive, params, tracers)
        if jx.accesses(primitive):
            _check_write(tracers[0], operation.is_perturbed)
            return trace.run(operation)
        if not operation.is_perturbed and not trace.observing:
            return trace.run(operation)
    params, tracers = jx.with_closed_over(primitive, params, tracers)
    lent = {id(t): lend(trace, t) for t in tracers if cell_of(trace, t) is None and jx.is_reference(t)}
    boxes = [lent.get(id(t), t) for t in tracers]
    with trace.above():
        if primitive is jx.primitives.jit_p and jx.enters_custom(params):
            outs = jx.as_function(jx.constrained(params))(*boxes)
        else:
            outs = jx.run_on_cells(primitive, params, [cell_of(trace, t) or t for t in boxes])
    for box in lent.values():
        give_back(trace, box.cell)
    boxed = lambda y: jx.RecordedReference(trace, y) if type(y) is jx.Cell else y
    return list(map(boxed, outs)) if primitive.multiple_results else boxed(outs)


def lend(trace: Any, reference: Value, perturbed: bool = False) -> jx.RecordedReference:
    """Box a reference that was there before, with what it holds; perturbed, if that is differentiated."""
    with trace.below():
        value = jx.read_reference(reference)
    value = trace.new(value) if perturbed else value
    return jx.RecordedReference(trace, jx.Cell(jx.type_of(reference), value, reference))


def give_back(trace: ReferenceRecorder, cell: jx.Cell, differentiated: bool = False) -> None:
    """Write what a cell has got into the reference that was lent."""
    if cell.written:
        _check_write(cell.reference, trace.index(cell.value) is not None and not differentiated)
        with trace.below():
            jx.write_reference(cell.reference, trace.value(cell.value))


def _check_write(reference: Value, perturbed: bool) -> None:
    if perturbed and not jx.passes_by(jx.type_of(reference)):
        line = jx.user_line(jx.current_source())
        raise ValueError(
            "A differentiated value is written into a mutable reference that was not made in the differentiated "
            f"function{line and f' ({line})'}: no derivative could go through it. Make the reference inside the "
            "function, or write jax.lax.stop_gradient(value)."
        )


def contents(trace: Any, x: Value) -> Value:
    """What is in a reference of ours; anything else is what it is."""
    cell = cell_of(trace, x)
    return x if cell is None else cell.value


def shown(trace: Any, x: Value) -> Value:
    """Show a reference of ours to a rule that somebody wrote: what it holds is a plain value there."""
    cell = cell_of(trace, x)
    if cell is None:
        return trace.value(x)
    return jx.RecordedReference(trace, jx.Cell(cell.aval, trace.value(cell.value), cell.reference))


def take_up(trace: Any, x: Value, shown: Value) -> None:
    """Take up what a rule that somebody wrote has written into a reference of ours that it was shown.

    That moves as what the reference held: its author says nothing else, and JAX takes it so.
    """
    cell = cell_of(trace, x)
    if cell is not None and shown.cell.written:
        cell.value = trace.with_index(shown.cell.value, trace.index(cell.value))


def kept_reference(trace: Any, x: Value) -> Value:
    """What a backward rule that somebody wrote is given for what its forward rule kept."""
    cell = cell_of(trace, x)
    if cell is None:
        return x
    if not cell.outlasts:
        what = "that is made inside the differentiated function into the backward rule of a `jax.custom_vjp` function"
        raise jx.UnfollowedReferenceError(what)
    return cell.reference


def refuse_twice(values: Sequence[Value]) -> None:
    """Check that no reference is among the primals twice.

    Raises:
        ValueError: one is.
    """
    references = [id(v) for v in values if jx.is_reference(v)]
    if len(set(references)) < len(references):
        raise ValueError(
            "A mutable reference is passed twice: what is written to one would not be read from the other."
        )


def refuse_returned(trace: Any, outs: Sequence[Value]) -> None:
    """Check that a function does not return a reference.

    Raises:
        ValueError: it does.
    """
    if any(cell_of(trace, y) is not None for y in outs):
        raise ValueError(
            "The differentiated function returned a mutable reference that was made in it, which nobody outside could "
            "read. Return its value: ref[...]."
        )
