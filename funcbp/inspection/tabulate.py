"""The rows of both passes: what an observer of everything saw, equation by equation."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import jaxpr as jx
from ..autodiff.backward_pass import BackwardState, apply_rule
from ..autodiff.pullback import Pullback
from ..autodiff.tape import Entry, Tape
from ..autodiff.transformations import Backward
from ..cotangents import Cotangent, Zero, is_differentiable, materialize
from ..jaxpr.types import AnyJaxpr, Atom, PyTree, Value
from ..rules.options import Options
from .rows import NO_DERIVATIVE, Row

__all__ = ["Everything", "rows_of"]

SMALL = 256  # elements: up to that operands are kept


@dataclass(frozen=True)
class Everything:
    """An observer that keeps the outputs of all entries and hands them out with their cotangents.

    Of entries outside loops also the operands, if they are small.
    """

    everything: bool = True

    def forward(self, primitive: str, params: dict[str, Any], values: Sequence[Value], outs: Sequence[Value]) -> PyTree:
        chooses = jx.Inside.of(params, tuple(map(jx.type_of, values))).kind is jx.Kind.COND
        large = any(isinstance(x, jax.core.Tracer) or np.size(x) > SMALL for x in (*values, *outs))
        operands = () if large else tuple(map(_kept, values))
        function = Function(params["function"], params["indices"]) if "function" in params else None
        return tuple(map(_kept, outs)), values[0] if chooses else None, operands, function

    def backward(self, entry: Entry, noted: PyTree, ct: Sequence[Cotangent]) -> PyTree:
        return None if noted is None else (*noted, tuple(ct))


@jax.tree_util.register_static
@dataclass(frozen=True)
class Function:
    """Where a function with a tangent rule of its own is written, and which values it was called on."""

    where: str
    inputs: tuple[int | None, ...]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["data"], meta_fields=["impl"])
@dataclass(frozen=True)
class Keys:
    """Random keys as numbers, which loops and branches can stack and fill."""

    data: jax.Array
    impl: Any


def _kept(x: Value) -> Value:
    if not hasattr(x, "dtype") or not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    return Keys(jax.random.key_data(x), jax.random.key_impl(x))


def _shown(x: Value) -> Value:
    return jax.random.wrap_key_data(x.data, impl=x.impl) if isinstance(x, Keys) else np.asarray(x)


class Written(NamedTuple):
    """Where an equation was written, as a row says it."""

    line: str
    number: int
    library: str


NOWHERE = Written("", 0, "")


class Around(NamedTuple):
    """What is around a program: nothing around the outermost.

    Attributes:
        place: of the equation that it is inside of, with that of a branch.
        ran: whether it ran: a boolean, or an array with one for each step of the loops around it.
        call: the line of the equation around it, for those inside that have none.
        loops: how many loops are around it.
        functions: the user's that the equation around it was written in.
    """

    place: tuple[int, ...] = ()
    ran: Any = True
    call: Written = NOWHERE
    loops: int = 0
    functions: jx.Calls = ()


OUTERMOST = Around()


def rows_of(
    backward: Backward,
    pullback: Pullback,
    tape: Tape,
    seen: dict[Any, Any],
    around: Around = OUTERMOST,
    wanted: Sequence[bool] | None = None,
) -> Iterator[Row]:
    """The rows of a program, after each equation those of the programs inside it.

    Args:
        backward, pullback, seen: of the backward pass; what `Everything` saw in it.
        tape: the program's.
        around: what is around it.
        wanted: which of its outputs cotangents come from; all, if None.
    """
    active = tape.active([True] * len(tape.outputs) if wanted is None else wanted)
    used = _used(tape, active)
    made: dict[int, tuple[str, int]] = {}  # by which equation each array of the outermost program was made
    kinds = backward.coverage()
    outermost = not around.place
    for entry in tape.entries:
        place = (*around.place, entry.number)
        inside, tapes = entry.inside, entry.tapes
        if place not in seen and not tapes:
            continue  # part of a tangent rule
        values, index, operands, function, cts = seen.get(place, ((), None, (), None, ()))
        inputs = entry.inputs if function is None else function.inputs
        known = _arithmetic(entry, inputs, operands, made) if outermost else {}
        made |= {id(v): (str(entry.number), i) for i, v in enumerate(values)}
        values = tuple(map(_shown, values))
        derivable = any(slot is not None for slot in entry.outputs)
        written, scope = _line(entry.source, around.call), _scope(jx.scope(entry.source))
        calls = () if scope else jx.calls(entry.source, around.functions)
        yield Row(
            index=".".join(map(str, place)),
            primitive=entry.primitive,
            kind=_kind(backward, kinds, entry) if derivable else NO_DERIVATIVE,
            rule=entry.rule.name if derivable else "",
            name=entry.params["name"] if entry.primitive == "name" else "",
            scope=scope,
            calls=calls,
            **written._asdict(),
            values=values,
            cotangents=tuple(None if c is Zero else np.asarray(c) for c in cts) if derivable else (),
            depth=len(around.place),
            taken=bool(np.any(around.ran)),
            reached=not active.isdisjoint(entry.outputs),
            dead=derivable and used.isdisjoint(entry.outputs),
            steps=None if np.ndim(around.ran) == 0 else around.ran,
            loops=around.loops,
            types=values,
            inputs=inputs,
            function="" if function is None else function.where,
            along=_along(entry),
            outputs=entry.outputs,
            program=around.place,
            devices=jx.devices_of(entry.params) if inside.kind is jx.Kind.MAPPED else 1,
            locals=_locals(entry, pullback) if outermost else (),
            **known,
        )
        if inside.kind is jx.Kind.WHILE and not tapes:
            for i, part in enumerate(inside.programs):
                yield from _unrun(part, (*place, i), bool(np.any(around.ran)), written)
        loops = around.loops + (inside.kind is jx.Kind.SCAN)
        for i, inner in enumerate(tapes):
            within = Around(place, around.ran, written, loops, calls)
            if inside.kind is jx.Kind.COND:
                within = within._replace(place=(*place, i), ran=_ran_branch(around.ran, index, i))
            asked = _wanted(entry, inner, [slot in active for slot in entry.outputs])
            yield from rows_of(backward, pullback, inner, seen, within, asked)


def _ran_branch(ran: Any, index: Value, branch: int) -> Any:
    """Whether a branch ran, where what it is in ran and the index chose it, at each step of the loops around."""
    chosen = np.asarray(index) == branch
    return np.reshape(ran, np.shape(ran) + (1,) * (chosen.ndim - np.ndim(ran))) & chosen


def _arithmetic(
    entry: Entry, inputs: Sequence[int | None], operands: Sequence[Atom], made: dict[int, tuple[str, int]]
) -> dict[str, Any]:
    """What it takes to compute an equation of small arrays again: its parameters, and where its operands are from."""
    if not operands:
        return {}
    sources = zip(operands, inputs, strict=True)
    return {
        "params": {k: known for k, v in entry.params.items() if (known := _plain(v)) is not None},
        "operands": tuple(made.get(id(x), _shown(x)) if slot is None else None for x, slot in sources),
    }


def _plain(x: Any) -> Any:
    """A parameter made of numbers, names and tuples of them; None for any other."""
    if isinstance(x, np.dtype):
        return str(x)
    if isinstance(x, tuple):
        parts = tuple(map(_plain, x))
        return None if any(p is None for p in parts) else parts
    return x if isinstance(x, bool | int | float | str) else None


def _used(tape: Tape, active: set[int]) -> set[int]:
    """The values that a cotangent comes back to, and those that go into what has no derivative: it may have its use."""
    used = set(active)
    for entry in reversed(tape.entries):
        outputs = {o for o in entry.outputs if o is not None}
        if not outputs or not used.isdisjoint(outputs):
            used |= {i for i in entry.inputs if i is not None}
    return used


def _wanted(entry: Entry, inner: Tape, outputs: list[bool]) -> list[bool]:
    """Which outputs of a program inside cotangents come from: of a loop's carries also those that later steps need."""
    if len(outputs) != len(inner.outputs):
        return [any(outputs)] * len(inner.outputs)
    if entry.inside.kind is jx.Kind.SCAN:
        _, n_consts, n_carry = jx.scan_parts(entry.params)
        for _ in range(n_carry):  # each time one more at least, or none
            before = inner.reached(outputs)[n_consts : n_consts + n_carry]
            outputs = [a or b for a, b in zip(outputs, before, strict=False)] + outputs[n_carry:]
    return outputs


def _along(entry: Entry) -> tuple[int | None, ...]:
    """Which values a loop goes along."""
    if entry.inside.kind is not jx.Kind.SCAN:
        return ()
    _, n_consts, n_carry = jx.scan_parts(entry.params)
    return entry.inputs[n_consts + n_carry :]


def _unrun(program: AnyJaxpr, around: tuple[int, ...], taken: bool, call: Written) -> Iterator[Row]:
    """The equations of a program of which no numbers are kept; calls are opened."""
    for o in jx.equations(program, jx.programs_of(OPENED)):
        place = (*around, *o.path)
        yield Row(
            index=".".join(map(str, place)),
            primitive=o.eqn.primitive.name,
            kind=NO_DERIVATIVE,
            scope=_scope(o.scope),
            **_line(o.source, call)._asdict(),
            depth=len(place) - 1,
            taken=taken,
            types=tuple(v.aval for v in o.eqn.outvars),
            program=place[:-1],
        )


OPENED = jx.Kind.JIT | jx.Kind.CALL | jx.Kind.REMAT | jx.CONTROL


def _line(source: Any, call: Written) -> Written:
    """The user's line, its number and the library's line, or the call's where there is none."""
    if call.line and jx.nearness(source) < jx.Nearness.USER:
        return call._replace(library=jx.library_line(source) or call.library)
    line, library = jx.user_line(source), jx.library_line(source)
    return Written(line, jx.user_place(source)[1], "" if library == line else library)


NOT_NAMED = re.compile(r"(\w+\()*((jit|jvp)\(.*|\)+)")  # a jitted function, also mapped, or a map alone


def _scope(scope: str) -> str:
    return "/".join(part for part in scope.split("/") if not NOT_NAMED.fullmatch(part))


def _kind(backward: Backward, kinds: dict[str, str], entry: Entry) -> str:
    """Where a step's rule is from."""
    if any(entry.rule is rule for rule in backward.options.rules.values()):
        return "replaced"
    return kinds.get(entry.primitive, "hand-written")


def _locals(entry: Entry, pullback: Pullback) -> tuple[Any, ...]:
    """The local derivatives of an equation of scalars with one output."""
    if entry.several or not entry.rule.local or any(math.prod(t.shape) != 1 for t in entry.types):
        return ()
    _, noted = entry.residuals(pullback.saved)
    if noted is None or noted[0][0].size != 1 or not is_differentiable(noted[0][0]):
        return ()
    ct = jnp.ones_like(noted[0][0])
    back = apply_rule(BackwardState(Options(), None), entry, pullback.saved, [ct])
    there = [s is not None and c is not None and c is not Zero for s, c in zip(entry.inputs, back, strict=True)]
    return tuple(jnp.sum(materialize(c)).item() if t else None for t, c in zip(there, back, strict=True))
