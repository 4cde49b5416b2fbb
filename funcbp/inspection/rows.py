"""A row of the ledger: an equation or an input, with its value and its cotangent."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from .. import jaxpr as jx
from .statistics import Statistics, statistics

__all__ = ["NO_DERIVATIVE", "Row"]

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
    values: tuple[Any, ...] = ()
    cotangents: tuple[Any, ...] = ()
    depth: int = 0
    taken: bool = True
    reached: bool = True
    dead: bool = False
    steps: Any = None
    loops: int = 0
    types: tuple[Any, ...] = ()
    inputs: tuple[int | None, ...] = ()
    along: tuple[int | None, ...] = ()
    outputs: tuple[int | None, ...] = ()
    program: tuple[int, ...] = ()
    locals: tuple[Any, ...] = ()
    function: str = ""
    argument: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    operands: tuple[Any, ...] = ()

    @property
    def _shown(self) -> int:
        """Which output: the first that has a derivative (before it may be a loop's counter, or a key), or the first."""
        return next((i for i, slot in enumerate(self.outputs) if slot is not None), 0)

    @property
    def value(self) -> Any:
        """The output, of several the first that has a derivative."""
        return self.values[self._shown] if self.values else None

    @property
    def cotangent(self) -> Any:
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

    def _where_it_ran(self, x: Any) -> Any:
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
