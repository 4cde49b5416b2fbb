"""A row of the ledger: an equation or an input, with its value and its cotangent."""

from __future__ import annotations

import fnmatch
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from .. import jaxpr as jx
from ..autodiff.backward_pass import listed
from ..jaxpr.types import Aval, Value
from .statistics import Statistics, statistics

__all__ = ["NO_DERIVATIVE", "Row", "chosen", "within"]

NO_DERIVATIVE = "no derivative"


def _is_numbers(x: Any) -> bool:
    return x is not None and not isinstance(x, jax.Array) and x.dtype != object


@dataclass(frozen=True, eq=False)
class Row:
    """One line of the ledger: an equation, or an input.

    Attributes:
        index: the number of the equation, "3"; inside a loop, branch or call behind a dot, "3.1".
        primitive: the equation's primitive; "input" for an input.
        kind: `"hand-written"`, `"replaced"`, `"borrowed"` or `"the function's own"`: where its rule is from; or
            `"no derivative"` for an equation of integers or booleans, or that no floating-point argument enters.
        rule: the rule's name.
        name: the path of an input, or the name of a value named by `funcbp.name`; otherwise "".
        scope: the name scope, without the names of jitted functions.
        line: `file:line (function)` of the user's program: the innermost that is in no library.
        number: the line's number, 0 where it is not known.
        library: the line of the library that this led to, or "" where it is the user's own.
        values: the outputs, numpy arrays (random keys stay what they are); inside a loop stacked by its steps; zeros in
            a branch not taken; none inside a `while`, whose steps nobody counts.
        cotangents: their cotangents, None where zero; none for an equation without derivative.
        depth: how many programs it is inside of.
        taken: whether it ran: False in a branch not taken.
        reached: whether a derivative comes back to it from the function's output, if only as zeros.
        dead: whether it was computed for nothing: it is not reached, and nothing without a derivative reads it either.
        steps: for a branch inside a loop: in which of the loop's steps it ran; otherwise None.
        loops: how many loops' steps its values are stacked by, along their first axes.
        types: the types of the outputs.
        inputs, outputs: which values of its program go in and come out.
        along: which of those that go in a loop goes along.
        program: which program it is in: the place of the equation around it.
        function: of a function with a tangent rule of its own, such as relu: its name and where it is written. It is
            one row, whose primitive is the last of its rule.
        argument: of an input: which of the function's arguments it is in.
        calls: where there is no name scope, the functions of the user's that it was written in, the one that is traced
            first: the name of each, and what tells the place in it from others.
        devices: on how many devices what is inside of it runs. There the parts of the devices over which a value varies
            are one behind the other, along its first axis; what is the same on all devices is there once, and what is
            a number on each has such an axis.
        params: the parameters of an equation of the outermost program, those that are numbers, names and tuples.
        operands: what goes into an equation of small arrays there: None where `inputs` says it, the index of an
            equation without a derivative and which of its outputs, or a constant.
        locals: for an equation of scalars: the local derivatives, the cotangent of each input per cotangent of output.
    """

    index: str
    primitive: str
    kind: str = ""
    rule: str = ""
    name: str = ""
    scope: str = ""
    line: str = ""
    number: int = 0
    library: str = ""
    values: tuple[Value, ...] = ()
    cotangents: tuple[Value, ...] = ()
    depth: int = 0
    taken: bool = True
    reached: bool = True
    dead: bool = False
    steps: np.ndarray | None = None
    loops: int = 0
    types: tuple[Aval, ...] = ()
    inputs: tuple[int | None, ...] = ()
    along: tuple[int | None, ...] = ()
    outputs: tuple[int | None, ...] = ()
    program: tuple[int, ...] = ()
    locals: tuple[Any, ...] = ()
    function: str = ""
    argument: int | None = None
    calls: tuple[tuple[str, str], ...] = ()
    devices: int = 1
    params: Mapping[str, Any] = field(default_factory=dict)
    operands: tuple[Any, ...] = ()

    @property
    def _shown(self) -> int:
        """Which output: the first that a cotangent came back to (before it may be a loop's state that nothing reads),
        or the first that has a derivative (before it may be a loop's counter, or a key), or the first.
        """
        derivable = [i for i, slot in enumerate(self.outputs) if slot is not None]
        reached = [i for i in derivable if self.cotangents and self.cotangents[i] is not None]
        return next(iter(reached or derivable), 0)

    @property
    def value(self) -> Value:
        """The output, of several the first that a cotangent came back to, or that has a derivative."""
        return self.values[self._shown] if self.values else None

    @property
    def cotangent(self) -> Value:
        """The cotangent of that output: zeros where it is zero, None where there is none."""
        if self.kind == NO_DERIVATIVE:
            return None
        ct = self.cotangents[self._shown] if self.cotangents else None
        return np.zeros_like(self.value) if ct is None and self.value is not None else ct

    @functools.cached_property
    def of_value(self) -> Statistics | None:
        """Statistics of the value, in a branch inside a loop over the steps that took it; None of what is no number."""
        return statistics(self._where_it_ran(self.value), self.operation) if _is_numbers(self.value) else None

    @functools.cached_property
    def of_cotangent(self) -> Statistics | None:
        """Statistics of the cotangent, over the same."""
        return statistics(self._where_it_ran(self.cotangent)) if _is_numbers(self.cotangent) else None

    def _where_it_ran(self, x: Value) -> Value:
        return x if self.steps is None or not self.taken else x[self.steps]

    @property
    def shape(self) -> str:
        """The types of the outputs."""
        return ", ".join(map(jx.shown_type, self.types or self.values))

    @property
    def when(self) -> str:
        """For a branch inside a loop: how often it was taken."""
        return "" if self.steps is None else f", taken {np.sum(self.steps)} of {np.size(self.steps)} times"

    @property
    def operation(self) -> str:
        """The function's name, if it is one with a tangent rule of its own; otherwise the primitive."""
        return self.function.split(" at ")[0] or self.primitive

    @property
    def title(self) -> str:
        return self.name or self.operation

    @property
    def place(self) -> str:
        """The line, and that of the library, without the folders."""
        return ", in ".join(map(os.path.basename, filter(None, (self.line, self.library))))

    def __repr__(self) -> str:
        return f"Row({self.index} {self.title} {self.shape}, value {self.of_value}, cotangent {self.of_cotangent})"


def chosen(rows: Sequence[Any], **asked: Any) -> list[Any]:
    """Choose the rows of this `line`, `operation`, `kind` and `scope`, as far as they are asked for.

    Raises:
        KeyError: no row is left; the message lists what there is.
    """
    for what, (words, of, fits) in CHOICES.items():
        wanted = asked.get(what)
        if wanted is None:
            continue
        found = [r for r in rows if fits(r, wanted)]
        if not found:
            name, there = repr(wanted) if isinstance(wanted, str) else wanted, filter(None, map(of, rows))
            raise KeyError(f"There is no {words} {name}; there are {listed(dict.fromkeys(there))}.")
        rows = found
    return list(rows)


def within(name: str, pattern: str) -> bool:
    """Whether a path or a scope, or what it is in, matches a pattern."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}/*")


def _place(row: Any) -> str:
    """Where a row was written: the file and line, without the folders."""
    return os.path.basename((row.line or row.library).split(" ")[0])


def _is_at(row: Any, line: int | str) -> bool:
    if isinstance(line, int):
        return _place(row).split(":")[1:2] == [str(line)]
    return _place(row).startswith(f"{line}:") or _place(row) == line


CHOICES: Mapping[str, Any] = {
    "line": ("equation of line", _place, _is_at),
    "operation": ("operation", lambda r: r.primitive, lambda r, x: r.primitive == x),
    "kind": ("rule of kind", lambda r: r.kind, lambda r, x: r.kind == x),
    "scope": ("scope", lambda r: r.scope, lambda r, x: within(r.scope, x)),
}
