"""The rich look inside: both passes of a program as a ledger, a row per equation with its value and its cotangent."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import jaxpr as jx
from ..autodiff.arguments import check_callable, check_scalar
from ..autodiff.backward_pass import BackwardState, apply_rule, listed
from ..autodiff.pullback import Pullback
from ..autodiff.tape import Entry, Tape
from ..autodiff.transformations import Backward
from ..cotangents import Zero, is_differentiable, materialize
from ..rules.options import Options
from .statistics import Statistics, statistics

__all__ = ["Row", "Trace", "trace"]

NO_DERIVATIVE = "no derivative"


@dataclass(frozen=True)
class Everything:
    """A watch that keeps the outputs of all steps and hands them out with their cotangents."""

    everything: bool = True

    def forward(self, primitive: str, params: dict[str, Any], values: Sequence[Any], outs: Sequence[Any]) -> Any:
        return tuple(map(_kept, outs)), values[0] if primitive == "cond" else None

    def backward(self, step: Entry, noted: Any, ct: Sequence[Any]) -> Any:
        return None if noted is None else (*noted, tuple(ct))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["data"], meta_fields=["impl"])
@dataclass(frozen=True)
class Keys:
    """Random keys as numbers, which loops and branches can stack and fill."""

    data: Any
    impl: Any


def _kept(x: Any) -> Any:
    if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    return Keys(jax.random.key_data(x), jax.random.key_impl(x))


def _shown(x: Any) -> Any:
    return jax.random.wrap_key_data(x.data, impl=x.impl) if isinstance(x, Keys) else np.asarray(x)


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
        line: `file:line (function)` of the user's program.
        number: the line's number, 0 where it is not known.
        values: the outputs, numpy arrays (random keys stay what they are); inside a loop stacked by its steps; zeros in
            a branch not taken; none inside a `while`, whose steps nobody counts.
        cotangents: their cotangents, None where zero; none for an equation without derivative.
        depth: how many programs it is inside of.
        taken: whether it ran: False in a branch not taken.
        steps: for a branch inside a loop: in which of the loop's steps it ran; otherwise None.
        types: the types of the outputs.
        inputs, outputs: which values of its program go in and come out.
        program: which program it is in: the place of the equation around it.
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
    values: tuple[Any, ...] = ()
    cotangents: tuple[Any, ...] = ()
    depth: int = 0
    taken: bool = True
    steps: Any = None
    types: tuple[Any, ...] = ()
    inputs: tuple[int | None, ...] = ()
    outputs: tuple[int | None, ...] = ()
    program: tuple[int, ...] = ()
    locals: tuple[Any, ...] = ()

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
        """Statistics of the value, in a branch inside a loop over the steps that took it; None of random keys."""
        number = self.value is not None and not isinstance(self.value, jax.Array)
        return statistics(self._where_it_ran(self.value), self.primitive) if number else None

    @functools.cached_property
    def of_cotangent(self) -> Statistics | None:
        """Statistics of the cotangent, over the same."""
        return None if self.cotangent is None else statistics(self._where_it_ran(self.cotangent))

    def _where_it_ran(self, x: Any) -> Any:
        return x if self.steps is None or not self.taken else x[self.steps]

    @property
    def shape(self) -> str:
        """The types of the outputs."""
        return ", ".join(f"{v.dtype}{list(v.shape)}" for v in self.types or self.values)

    @property
    def when(self) -> str:
        """For a branch inside a loop: how often it was taken."""
        return "" if self.steps is None else f", taken {np.sum(self.steps)} of {np.size(self.steps)} times"

    @property
    def title(self) -> str:
        return self.name or self.primitive

    @property
    def place(self) -> str:
        """The line, without the folders."""
        return os.path.basename(self.line)

    def __repr__(self) -> str:
        return f"Row({self.index} {self.title} {self.shape}, value {self.of_value}, cotangent {self.of_cotangent})"


class Trace:
    """What `trace` returns: the two passes of one call, row by row.

    It prints as a table, and shows as a page in a notebook.

    Attributes:
        value: what the function returned.
        inputs: a row for each floating-point array among the arguments.
        rows: a row for each equation, in the order they ran; those of a loop once, with stacked values. Calls are
            opened; a function with a derivative of its own is one row.
    """

    def __init__(self, value: Any, inputs: Sequence[Row], rows: Sequence[Row], outputs: Sequence[int | None]):
        self.value, self.inputs, self.rows, self.outputs = value, list(inputs), list(rows), tuple(outputs)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, key: str | int) -> Any:
        """The row of an input by its path, of a named value by its name, or of an equation by its number: 3, or "3.1".

        Of a name that several values bear, a tuple.
        """
        named = [r for r in (*self.inputs, *self.rows) if r.name == key]
        found = named or [r for r in self.rows if r.index == str(key)]
        if not found and isinstance(key, int):
            last = self.rows[-1].index.split(".")[0] if self.rows else "none"
            raise KeyError(f"There is no equation {key}; the last is {last}.")
        if not found:
            names = dict.fromkeys(r.name for r in (*self.inputs, *self.rows) if r.name)
            raise KeyError(f"There is no name or path {key!r}; there are {listed(names)}.")
        return found[0] if len(found) == 1 else tuple(found)

    def at(self, line: int | str) -> list[Row]:
        """The rows of a line of the user's program.

        Args:
            line: its number, or `"file.py:12"`.
        """
        wanted = lambda r: r.number == line if isinstance(line, int) else r.place.startswith(f"{line}:")
        found = [r for r in self.rows if wanted(r) or r.place.split(" ")[0] == line]
        if not found:
            there = dict.fromkeys(r.place.split(" ")[0] for r in self.rows if r.line)
            raise KeyError(f"There is no equation of line {line}; there are {listed(there)}.")
        return found

    def __str__(self) -> str:
        columns = "index  operation  rule  shape  value: norm  mean  zero  sat  bad  cotangent: norm  zero  bad  line"
        table = [columns.split("  ")]
        for r in (*self.inputs, *self.rows):
            v, c = r.of_value, r.of_cotangent
            share = lambda x: "" if not x else f"{x:.0%}"
            title = "  " * r.depth + (r.primitive if not r.name or r.primitive == "input" else f"name {r.name}")
            cells = [r.index, f"{title} {r.name}" if r.primitive == "input" else title, r.kind, r.shape]
            cells += ["", "", "", "", ""] if v is None else [
                f"{v.norm:.4g}", f"{v.mean:.4g}", share(v.zeros), share(v.saturated), share(v.nonfinite)
            ]  # fmt: skip
            cells += ["", "", ""] if c is None else [f"{c.norm:.4g}", share(c.zeros), share(c.nonfinite)]
            table.append([*cells, f"{r.place}{r.when}" if r.taken else "not taken"])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])

    def __repr__(self) -> str:
        return f"Trace of {len(self.rows)} equations; print it, or show it in a notebook"

    def _repr_html_(self) -> str:
        from .render.page import page

        return page(self)

    def to_dot(self) -> str:
        """The graph of the outermost program, for Graphviz."""
        from .render.graph import to_dot

        return to_dot(self)

    def to_mermaid(self) -> str:
        """The graph of the outermost program, for Mermaid."""
        from .render.graph import to_mermaid

        return to_mermaid(self)

    def to_svg(self) -> str:
        """The graph of the outermost program as inline SVG: a box per value, with its value and its gradient."""
        from .render.graph import to_svg

        return to_svg(self)


def trace(loss: Callable[..., Any], backward: Backward | None = None) -> Callable[..., Trace]:
    """Both passes of a call of a scalar function, with every value, its cotangent, its rule and its line.

    All floating-point arguments are differentiated with respect to, and everything is kept: this is for looking, not
    for training. For a few cotangents inside a training loop see `cotangents`.

    Args:
        loss: a function of any arguments with a scalar output.
        backward: the way of going backward, if not the default one.

    Returns:
        A function of the loss's arguments that returns a `Trace`. `t["h1"]` is the row of the value named "h1",
        `t["dense_0/kernel"]` that of a parameter, `t.at(line=12)` are those of a line of the program; `.value` and
        `.cotangent` of a row are arrays, `.of_value` and `.of_cotangent` their statistics.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> loss = lambda w, x: jnp.sum(x * bp.name(jnp.tanh(w * x), "h"))
        >>> t = bp.trace(loss)(jnp.array([1.0, 0.0]), jnp.array([1.0, 2.0]))
        >>> [row.primitive for row in t]
        ['mul', 'tanh', 'name', 'mul', 'reduce_sum']
        >>> t["h"].cotangent.round(3), t["w"].cotangent.round(3)
        (array([1., 2.], dtype=float32), array([0.42, 4.  ], dtype=float32))
    """
    check_callable(loss)
    options = (backward or Backward()).observing(observer=Everything(), inline_calls=True)

    def traced(*args: Any, **kwargs: Any) -> Trace:
        leaves, tree = jax.tree.flatten((args, kwargs))
        if any(isinstance(x, jax.core.Tracer) for x in leaves):
            raise TypeError("trace(loss)(...) shows numbers, and was called inside a jitted or mapped function.")
        arrays = [isinstance(x, (jax.Array, np.ndarray, float, complex)) for x in leaves]
        floats = [i for i, a in enumerate(arrays) if a and is_differentiable(jnp.asarray(leaves[i]))]

        def partial(*chosen: Any) -> Any:
            full = list(leaves)
            for i, x in zip(floats, chosen, strict=True):
                full[i] = x
            args, kwargs = jax.tree.unflatten(tree, full)
            return loss(*args, **kwargs)

        value, pullback = options.vjp(partial, *(leaves[i] for i in floats))
        check_scalar(value, False)
        grads, seen = pullback.observed(jnp.ones_like(value))
        paths, number = _paths(loss, args, kwargs), lambda x: np.asarray(jnp.asarray(x))
        inputs = [
            Row(
                "",
                "input",
                name=paths[i],
                values=(number(leaves[i]),),
                cotangents=(np.asarray(g),),
                outputs=(s,),
            )
            for i, g, s in zip(floats, grads, pullback.tape.inputs, strict=True)
        ]
        rows = list(_rows(options, pullback, pullback.tape, seen))
        return Trace(value, inputs, rows, pullback.tape.outputs)

    return traced


def _paths(loss: Callable[..., Any], args: Any, kwargs: Any) -> list[str]:
    """A path for each leaf: within the first argument its own, elsewhere preceded by the argument's name."""
    try:
        names = list(inspect.signature(loss).parameters)
    except (TypeError, ValueError):
        names = []
    paths = []
    for path, _ in jax.tree_util.tree_leaves_with_path((args, kwargs)):
        which, argument, *inner = path
        own = jax.tree_util.keystr(tuple(inner), simple=True, separator="/")
        if which.idx == 1:
            name = str(argument.key)
        else:
            name = names[argument.idx] if argument.idx < len(names) else f"argument {argument.idx}"
        first = which.idx == 0 and argument.idx == 0
        paths.append(own if first and own else "/".join(filter(None, (name, own))))
    return paths


def _rows(
    options: Backward,
    pullback: Pullback,
    record: Tape,
    seen: dict[Any, Any],
    around: tuple[int, ...] = (),
    ran: Any = True,
    call: tuple[str, int] = ("", 0),
) -> Iterator[Row]:
    """The rows of a program.

    Args:
        walker, pullback, seen: of the walk.
        record: the program.
        around: its place.
        ran: whether it ran: a boolean, or an array with one for each step of the loops around it.
        call: the line of the equation around it, for those inside that have none.
    """
    kinds = options.coverage()
    for step in record.entries:
        place = (*around, step.number)
        inside = step.tapes
        if place not in seen and not inside:
            continue  # part of a tangent rule
        values, index, cts = seen.get(place, ((), None, ()))
        values = tuple(map(_shown, values))
        derivable = any(slot is not None for slot in step.outputs)
        line, number = written = _line(step.source, call)
        yield Row(
            index=".".join(map(str, place)),
            primitive=step.primitive,
            kind=_kind(options, kinds, step) if derivable else NO_DERIVATIVE,
            rule=step.rule.name if derivable else "",
            name=step.params["name"] if step.primitive == "name" else "",
            scope=_scope(step.source),
            line=line,
            number=number,
            values=values,
            cotangents=tuple(None if c is Zero else np.asarray(c) for c in cts) if derivable else (),
            depth=len(around),
            taken=bool(np.any(ran)),
            steps=None if np.ndim(ran) == 0 else ran,
            types=values,
            inputs=step.inputs,
            outputs=step.outputs,
            program=around,
            locals=() if around else _locals(step, pullback),
        )
        if step.primitive == "while":
            for i, part in enumerate(_parts(step.params)):
                yield from _unrun(part, (*place, i), bool(np.any(ran)), written)
        for i, tape in enumerate(inside):
            if step.primitive != "cond":
                yield from _rows(options, pullback, tape, seen, place, ran, written)
            else:
                chosen = np.asarray(index) == i
                before = np.reshape(ran, np.shape(ran) + (1,) * (chosen.ndim - np.ndim(ran)))
                yield from _rows(options, pullback, tape, seen, (*place, i), before & chosen, written)


def _unrun(program: Any, around: tuple[int, ...], taken: bool, call: tuple[str, int], first: int = 0) -> Iterator[Row]:
    """The equations of a program of which no numbers are kept; calls are opened."""
    number = first
    for eqn in jx.opened(program)[1]:
        line, params = _line(eqn.source_info, call), eqn.params
        if eqn.primitive.name in OPENED:
            rows = list(_unrun(jx.call_jaxpr(params), around, taken, line, number))
            number += sum(r.program == around for r in rows)
            yield from rows
            continue
        place = (*around, number)
        number += 1
        yield Row(
            index=".".join(map(str, place)),
            primitive=eqn.primitive.name,
            kind=NO_DERIVATIVE,
            scope=_scope(eqn.source_info),
            line=line[0],
            number=line[1],
            depth=len(around),
            taken=taken,
            types=tuple(v.aval for v in eqn.outvars),
            program=around,
        )
        if eqn.primitive.name == "scan":
            yield from _unrun(jx.scan_parts(params)[0], place, taken, line)
        elif eqn.primitive.name in ("while", "cond"):
            for i, part in enumerate(jx.cond_branches(params) if eqn.primitive.name == "cond" else _parts(params)):
                yield from _unrun(part, (*place, i), taken, line)


def _parts(params: dict[str, Any]) -> tuple[Any, Any]:
    """The condition and the body of a `while`."""
    return jx.while_condition(params), jx.while_parts(params)[0]


OPENED = ("jit", "closed_call", "remat2", "checkpoint")


def _line(source: Any, call: tuple[str, int]) -> tuple[str, int]:
    """The user's line and its number, or the call's where there is none."""
    line = jx.user_line(source)
    return (line, jx.user_place(source)[1]) if line else call


def _scope(source: Any) -> str:
    return "/".join(part for part in jx.scope(source).split("/") if not part.startswith("jit("))


def _kind(options: Backward, kinds: dict[str, str], step: Entry) -> str:
    """Where a step's rule is from."""
    if any(step.rule is rule for rule in options.options.rules.values()):
        return "replaced"
    return kinds.get(step.primitive, "hand-written")


def _locals(step: Entry, pullback: Pullback) -> tuple[Any, ...]:
    """The local derivatives of an equation of scalars with one output."""
    if step.several or not step.rule.local or any(math.prod(t.shape) != 1 for t in step.types):
        return ()
    _, noted = step.residuals(pullback.saved)
    if noted is None or noted[0][0].size != 1 or not is_differentiable(noted[0][0]):
        return ()
    ct = jnp.ones_like(noted[0][0])
    back = apply_rule(BackwardState(Options(), None), step, pullback.saved, [ct])
    there = [s is not None and c is not None and c is not Zero for s, c in zip(step.inputs, back, strict=True)]
    return tuple(jnp.sum(materialize(c)).item() if t else None for t, c in zip(there, back, strict=True))
