"""The one interpreter: what programs an equation has inside, and how programs are run, or read, equation by equation.

`inside_of` says what an equation has inside and how it runs it, `run` runs a program as a `Visitor` has it, and
`equations` lists those of a program and of the programs inside, without values.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax._src import config, source_info_util
from jax._src.source_info_util import SourceInfo

from .programs import Program, bind_eqn, close, in_avals, is_literal
from .sources import Nearness, nearness, of_library, own_name, scope, user_called_by, user_line
from .types import AnyJaxpr, ClosedJaxpr, Jaxpr, JaxprEqn, Value, Var
from .values import Aval, split_list, weakref_cache, zeros

# --- what an equation has inside --------------------------------------------------------------------------------------


class Kind(enum.Flag):
    """How an operation runs the programs inside it."""

    JIT = enum.auto()  # once, on its operands, compiled
    CALL = enum.auto()  # once, on its operands
    REMAT = enum.auto()  # likewise, and once more on the way back
    CUSTOM = enum.auto()  # likewise, with a derivative of its own
    SCAN = enum.auto()  # once for each step
    WHILE = enum.auto()  # a condition, and a body as long as it holds
    COND = enum.auto()  # one of them
    MAPPED = enum.auto()  # once on each device, on its part
    OTHER = enum.auto()  # as the operation sees fit: a reduction's, a kernel, a solver's


CALLS = Kind.JIT | Kind.CALL | Kind.REMAT | Kind.CUSTOM
CONTROL = Kind.SCAN | Kind.WHILE | Kind.COND


class Inside(NamedTuple):
    """The programs inside an operation: none, and then no kind."""

    kind: Kind
    programs: tuple[AnyJaxpr, ...]

    @classmethod
    def of(cls, params: dict[str, Any], types: Sequence[Aval]) -> Inside:
        """Those of an operation with these parameters, on operands of these types.

        Primitives are told apart by their parameters, so that one of which nobody here has heard is known, too.
        """
        programs = programs_inside(params)
        return cls(_kind(params, types), programs) if programs else NOTHING_INSIDE


NOTHING_INSIDE = Inside(Kind(0), ())


def programs_inside(params: dict[str, Any]) -> tuple[AnyJaxpr, ...]:
    """The programs among these parameters of an operation; of what kind it is, only `Inside.of` asks."""
    if "branches" in params:
        return cond_branches(params)
    if "cond_jaxpr" in params:
        return while_condition(params), while_parts(params)[0]
    found: list[AnyJaxpr] = []
    for p in params.values():
        if type(p) is tuple:
            found += [v for v in p if hasattr(v, "eqns")]
        elif hasattr(p, "eqns"):
            found.append(p)
    return tuple(found)


def _kind(params: dict[str, Any], types: Sequence[Aval]) -> Kind:
    if "branches" in params:
        return Kind.COND
    if "cond_jaxpr" in params:
        return Kind.WHILE
    if "length" in params:
        return Kind.SCAN
    if "in_specs" in params:
        return Kind.MAPPED
    if "in_shardings" in params:
        return Kind.JIT
    if "prevent_cse" in params:
        return Kind.REMAT
    if "bwd" in params or "jvp_jaxpr_fun" in params:
        return Kind.CUSTOM
    reduces = "dimensions" in params or "window_dimensions" in params  # perhaps scalars, with a program of scalars
    if reduces or not any(name in params for name in CALLED):
        return Kind.OTHER
    of_operands, of_inputs = map(_bare, types), map(_bare, in_avals(call_jaxpr(params)))
    return Kind.CALL if list(of_operands) == list(of_inputs) else Kind.OTHER


def _bare(aval: Aval) -> tuple[object, ...]:
    """A type without weakness, and without where its values are."""
    return type(aval), getattr(aval, "shape", None), getattr(aval, "dtype", None)


def inside_of(eqn: JaxprEqn) -> Inside:
    """The programs inside an equation."""
    return Inside.of(eqn.params, [v.aval for v in eqn.invars])


def inner(eqn: JaxprEqn) -> list[JaxprEqn]:
    """The equations of the programs inside an equation."""
    return [e for program in inside_of(eqn).programs for e in program.eqns]


CALLED = ("jaxpr", "call_jaxpr", "call")  # the parameters that calls have their program in


def call_jaxpr(params: dict[str, Any]) -> AnyJaxpr:
    """The program inside a call: `jit`, `closed_call`, `composite`, `custom_vmap_call`."""
    return next(params[name] for name in CALLED if name in params)


def scan_parts(params: dict[str, Any]) -> tuple[ClosedJaxpr, int, int]:
    """The body of a scan, and how many of its inputs are constants and carries."""
    if "num_consts" in params:
        return params["jaxpr"], params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return params["jaxpr"], len(consts), len(carry)


def cond_branches(params: dict[str, Any]) -> tuple[ClosedJaxpr, ...]:
    return tuple(params["branches"])


def while_condition(params: dict[str, Any]) -> ClosedJaxpr:
    return params["cond_jaxpr"]


def while_parts(params: dict[str, Any]) -> tuple[ClosedJaxpr, int, int]:
    """The body of a while loop, and how many constants its condition and its body have."""
    return params["body_jaxpr"], params["cond_nconsts"], params["body_nconsts"]


# --- running ----------------------------------------------------------------------------------------------------------


class Visitor:
    """What is done at the equations of a program that is run, and with its values: as it stands, what JAX does.

    A visitor may hold something else in the place of arrays, run operations in another way, and go into the programs
    inside them.

    Attributes:
        enters: which of those it goes into.
    """

    enters: ClassVar[Kind] = Kind(0)

    def opens(self, eqn: JaxprEqn) -> Inside | None:
        """The programs that are run in an equation's place, or None to run the equation."""
        if not self.enters:
            return None
        inside = inside_of(eqn)
        return inside if inside.kind & self.enters else None

    def equation(self, eqn: JaxprEqn, args: list[Value]) -> Sequence[Value]:
        """Run an equation that is not opened."""
        return bind_eqn(eqn, args)

    def within(self, eqn: JaxprEqn, kind: Kind) -> AbstractContextManager[object]:
        """What surrounds the run of an equation's programs: entered before a call, a loop or a branch, left after."""
        return nullcontext()

    def step(self, i: int) -> AbstractContextManager[object]:
        """What surrounds the step of this number of a loop."""
        return nullcontext()

    def constant(self, x: Value) -> Value:
        """The value that stands for a constant of the program."""
        return x

    def number(self, x: Value) -> Value:
        """The number of a branch, or whether a loop goes on."""
        return x

    def row(self, x: Value, i: int) -> Value:
        """What a loop's step of this number reads of the values it goes over."""
        return x[i]

    def stack(self, rows: Sequence[Value], aval: Aval) -> Value:
        """What a loop makes of its steps' values: one of this type."""
        return jnp.stack(rows) if rows else zeros(aval)


PLAIN = Visitor()


def run(program: AnyJaxpr | Program, args: Sequence[Value], visitor: Visitor = PLAIN) -> list[Value]:
    """Run a program equation by equation, each at the user's line it was written at.

    What JAX's own functions are made of has no such line; it is at the line of the call.

    Args:
        program: a `Program`, or a jaxpr, closed or open.
        args: its inputs.
        visitor: what is done at each equation.
    """
    jaxpr, invars, constants = _opened(program)
    outside = source_info_util.current()
    call, around, callers = outside.traceback, source_info_util.current_name_stack(), nearness(outside)
    values = {v: visitor.constant(x) for v, x in constants} | dict(zip(invars, args, strict=True))
    read = lambda v: visitor.constant(v.val) if is_literal(v) else values[v]
    with jax.debug_nans(False) if config.debug_nans.value else nullcontext():
        for eqn, own in zip(jaxpr.eqns, _nearness(jaxpr), strict=True):
            source = eqn.source_info
            traceback = source.traceback if own >= callers else call
            with source_info_util.user_context(traceback, name_stack=around + source.name_stack), eqn.ctx.manager:
                outs = _visit(visitor, eqn, [read(v) for v in eqn.invars])
            values.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def as_function(jaxpr: AnyJaxpr | Program) -> Callable[..., list[Value]]:
    """The function a (closed or open) jaxpr stands for."""
    return lambda *args: run(jaxpr, args)


def _opened(program: AnyJaxpr | Program) -> tuple[Jaxpr, list[Var], list[tuple[Var, Value]]]:
    """The open jaxpr, its inputs, and (variable, value) of its constants."""
    if isinstance(program, Program):
        return program.jaxpr, program.invars, list(zip(program.constvars, program.consts, strict=True))
    closed = close(program)
    return closed.jaxpr, closed.jaxpr.invars, list(zip(closed.jaxpr.constvars, closed.consts, strict=True))


@weakref_cache
def _nearness(jaxpr: AnyJaxpr) -> list[Nearness]:
    """Whose lines the equations have: the programs of JAX's own functions and of those that a library has compiled are
    kept, with the lines of the first call, and there only what a function of the user's was called for counts, as in
    `jax.lax.map`.
    """
    sources = [eqn.source_info for eqn in jaxpr.eqns]
    if own_name(jaxpr) or of_library(jaxpr):
        return [Nearness.USER if user_called_by(jaxpr, s.traceback) else Nearness.NONE for s in sources]
    return list(map(nearness, sources))


def _visit(visitor: Visitor, eqn: JaxprEqn, args: list[Value]) -> Sequence[Value]:
    inside = visitor.opens(eqn)
    if inside is None:
        return visitor.equation(eqn, args)
    with visitor.within(eqn, inside.kind):
        match inside.kind:
            case Kind.COND:
                return run(inside.programs[int(visitor.number(args[0]))], args[1:], visitor)
            case Kind.SCAN:
                return _run_scan(visitor, eqn, args)
            case Kind.WHILE:
                return _run_while(visitor, eqn, args)
            case _:
                return run(inside.programs[0], args, visitor)


def _run_scan(visitor: Visitor, eqn: JaxprEqn, args: list[Value]) -> list[Value]:
    body, n_consts, n_carry = scan_parts(eqn.params)
    consts, carry, xs = split_list(args, n_consts, n_carry)
    order, ys = range(eqn.params["length"]), {}
    for i in reversed(order) if eqn.params["reverse"] else order:
        with visitor.step(i):
            outs = run(body, [*consts, *carry, *(visitor.row(x, i) for x in xs)], visitor)
        carry, ys[i] = outs[:n_carry], outs[n_carry:]
    stacked = enumerate(v.aval for v in eqn.outvars[n_carry:])
    return [*carry, *(visitor.stack([ys[i][k] for i in order], aval) for k, aval in stacked)]


def _run_while(visitor: Visitor, eqn: JaxprEqn, args: list[Value]) -> list[Value]:
    body, n_cond, n_body = while_parts(eqn.params)
    of_cond, of_body, carry = split_list(args, n_cond, n_body)
    for i in itertools.count():
        with visitor.step(i):
            (goes_on,) = run(while_condition(eqn.params), [*of_cond, *carry], visitor)
            if not visitor.number(goes_on):
                break
            carry = run(body, [*of_body, *carry], visitor)
    return carry


# --- reading ----------------------------------------------------------------------------------------------------------


class Occurrence(NamedTuple):
    """An equation of a program, or of one inside it.

    Attributes:
        eqn: the equation.
        inside: the programs inside it.
        opened: whether their equations come next.
        around: the equations that it is inside of, outermost first.
        path: its number in its program, behind that of the loop, branch or other equation around it (and which of its
            programs it is in, where that has several). The equations of a call count as those of the program around.
    """

    eqn: JaxprEqn
    inside: Inside
    opened: bool
    around: tuple[Occurrence, ...]
    path: tuple[int, ...]

    @property
    def times(self) -> int:
        """How often it runs, by the lengths of the scans around it."""
        return math.prod(o.eqn.params["length"] for o in self.around if o.inside.kind is Kind.SCAN)

    @property
    def source(self) -> SourceInfo:
        """Where it was written: what JAX's own functions are made of, where they were called."""
        written = [o.eqn.source_info for o in (self, *reversed(self.around))]
        return max(written, key=nearness)

    @property
    def line(self) -> str:
        """The user's line, or "" where none is known."""
        return user_line(self.source)

    @property
    def scope(self) -> str:
        """Its name scope, behind those of the calls around it; what loops and branches have inside knows its scope."""
        scopes: list[str] = []
        for o in self.around:
            scopes = [] if o.inside.kind & CONTROL else [*scopes, scope(o.eqn.source_info)]
        return "/".join(filter(None, (*scopes, scope(self.eqn.source_info))))


def programs_of(kinds: Kind) -> Callable[[Inside], Sequence[AnyJaxpr]]:
    """The programs inside an equation where it is of one of these kinds: what `equations` then goes into."""
    return lambda inside: inside.programs if inside.kind & kinds else ()


def equations(
    program: AnyJaxpr | Program, into: Callable[[Inside], Sequence[AnyJaxpr]] = lambda inside: inside.programs
) -> Iterator[Occurrence]:
    """The equations of a program in the order they are written, and those of the programs inside.

    A call that is gone into is none: its equations stand in its place.

    Args:
        program: a `Program`, or a jaxpr, closed or open.
        into: which of the programs inside an equation are gone into; all of them, if left out.

    Yields:
        An `Occurrence` each.
    """
    yield from _equations(program, into, (), (), itertools.count())


def _equations(
    program: AnyJaxpr | Program,
    into: Callable[[Inside], Sequence[AnyJaxpr]],
    around: tuple[Occurrence, ...],
    place: tuple[int, ...],
    numbers: Iterator[int],
) -> Iterator[Occurrence]:
    for eqn in program.eqns:
        inside = inside_of(eqn)
        programs = into(inside) if inside.programs else ()
        called = bool(programs) and bool(inside.kind & CALLS)
        o = Occurrence(eqn, inside, bool(programs), around, place if called else (*place, next(numbers)))
        if called:
            yield from _equations(programs[0], into, (*around, o), place, numbers)
            continue
        yield o
        for i, p in enumerate(programs):
            path = (*o.path, i) if len(inside.programs) > 1 else o.path
            yield from _equations(p, into, (*around, o), path, itertools.count())
