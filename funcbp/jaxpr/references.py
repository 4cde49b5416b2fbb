"""Mutable references, discharged: a cell holds a reference's value, and each write gives it a new one.

`run_on_cells` runs one operation with cells in the place of references. Of a program it makes another one
(`discharged`), which takes the values of its references and hands out those that it wrote. That changes the program and
takes no derivative.

A backward rule that a user wrote may write into a reference that is there when the backward pass runs. Such a rule is
handed the reference itself, which goes into a discharged program beside its value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax._src import core
from jax._src.api import DidntWant, DontWant, GradRef
from jax._src.sharding_impls import UNSPECIFIED
from jax._src.state import discharge
from jax._src.state.types import AbstractRef, RefEffect
from jax.extend.core import primitives

from .attached import attached_p
from .inside import bind_cond, bind_remat, bind_scan, bind_while, custom_bwd
from .interpreter import (
    Inside,
    Kind,
    Visitor,
    call_jaxpr,
    programs_inside,
    run,
    scan_parts,
    while_condition,
    while_parts,
)
from .operations import region_of
from .programs import Program, bind_eqn, close, in_avals, out_avals, trace, trace_with
from .sources import current_source, user_line, written_where
from .types import AnyJaxpr, JaxprEqn, Primitive, Value, Var, WrappedFun
from .values import Aval, as_array, like, primitive, split_list, type_of, weakref_cache, zeros

__all__ = [
    "ACCESSES",
    "Cell",
    "DidntWant",
    "DontWant",
    "GradRef",
    "RecordedReference",
    "UnfollowedReferenceError",
    "accesses",
    "enters_custom",
    "is_reference",
    "makes_reference",
    "meets_references",
    "on_values",
    "passes_by",
    "read_reference",
    "run_custom_jvp",
    "run_on_cells",
    "with_closed_over",
    "without_references",
    "write_reference",
]

LOGS = hasattr(jax.custom_vjp, "defvjp_with_logs")
# the operations on a reference itself, and those of them that make one
MAKERS = frozenset(("new_ref", "empty_ref"))
ACCESSES = MAKERS | {"get", "swap", "addupdate", "freeze", "free_ref"}


class UnfollowedReferenceError(NotImplementedError):
    """A mutable reference goes where it cannot be followed."""

    def __init__(self, what: str):
        line = user_line(current_source())
        super().__init__(f"funcbp cannot follow a mutable reference {what}{line and f' ({line})'}.")


def is_reference(x: object) -> bool:
    """Whether this is a mutable reference, or the type of one."""
    return isinstance(x if isinstance(x, core.AbstractValue) else type_of(x), AbstractRef)


class Cell:
    """A discharged reference.

    Attributes:
        aval: the type of the reference.
        reference: the reference itself, where it outlasts the program; None for one that was made in it.
        written: whether it has been written since it was made.
        passed: whether the reference itself was handed to somebody.
    """

    def __init__(self, aval: Aval, value: Value, reference: Value = None):
        self.aval, self._value, self._reference = aval, as_array(value), reference
        self.written = self.passed = False

    @property
    def value(self) -> Value:
        return self._value

    @value.setter
    def value(self, x: Value) -> None:
        x = like(x, self.aval.inner_aval)
        self._value, self.written = lax.stop_gradient(x) if passes_by(self.aval) else x, True

    @property
    def outlasts(self) -> bool:
        return self._reference is not None

    @property
    def reference(self) -> Value:
        self.passed = True
        return self._reference


class RecordedReference(core.Tracer):
    """A mutable reference that exists in one recording alone: a tracer with a cell behind it."""

    __slots__ = ("cell",)

    def __init__(self, trace: Any, cell: Cell):
        super().__init__(trace, cell.aval)
        self.cell = cell

    def full_lower(self) -> Value:
        return self

    def get_referent(self) -> Value:
        return self

    def _short_repr(self) -> str:
        return f"RecordedReference({self.cell.aval})"


# --- what meets a reference -------------------------------------------------------------------------------------------


def makes_reference(primitive: Primitive) -> bool:
    return primitive.name in MAKERS


def accesses(primitive: Primitive) -> bool:
    """Whether this is an operation on a reference itself."""
    return primitive.name in ACCESSES


def meets_references(primitive: Primitive, params: dict[str, Any], operands: Sequence[Value | Var]) -> bool:
    """Whether an operation makes, reads or writes references, itself or in a program inside, or closed over some.

    What a function with a derivative of its own does to references that it makes itself is its own affair, and so is
    what a kernel does to those that its program is handed in the place of its operands, which are values.
    """
    if accesses(primitive) or _closed_over(params):
        return True
    programs = () if _is_custom(primitive) else programs_inside(params)
    if not any(map(_stateful, programs)):
        return False
    types = [x.aval if isinstance(x, core.Var | core.Literal) else type_of(x) for x in operands]
    own = Inside.of(params, types).kind is Kind.OTHER and not any(map(is_reference, types))
    return not own or any(_has_effects(p, core.InternalMutableArrayEffect) for p in programs)


def enters_custom(params: dict[str, Any]) -> bool:
    """Whether a function with a derivative of its own, in a program inside, reads or writes references from outside."""
    return any(map(_enters_custom, core.jaxprs_in_params(params)))


def _is_custom(primitive: Primitive) -> bool:
    return primitive in (primitives.custom_vjp_call_p, primitives.custom_jvp_call_p, attached_p)


def _closed_over(params: dict[str, Any]) -> list[Value]:
    """The references that a program inside closed over."""
    return [c for c in getattr(params.get("jaxpr"), "consts", ()) if is_reference(c)]


def _has_effects(program: AnyJaxpr | JaxprEqn, *kinds: type) -> bool:
    return any(isinstance(e, kinds) for e in program.effects)


@weakref_cache
def _stateful(jaxpr: AnyJaxpr) -> bool:
    if not _has_effects(jaxpr, RefEffect, core.InternalMutableArrayEffect):
        return False
    return any(_enters(eqn) or meets_references(eqn.primitive, eqn.params, eqn.invars) for eqn in jaxpr.eqns)


@weakref_cache
def _enters_custom(jaxpr: AnyJaxpr) -> bool:
    return any(_enters(eqn) or enters_custom(eqn.params) for eqn in jaxpr.eqns)


def _enters(eqn: JaxprEqn) -> bool:
    return _is_custom(eqn.primitive) and _has_effects(eqn, RefEffect)


def passes_by(aval: Aval) -> bool:
    """Whether no derivative goes through what is written into references of this type, as their maker asked."""
    return aval.kind == "no_grad_no_remat"


def read_reference(reference: Value) -> Value:
    return jax.ref.get(reference, ...)


def write_reference(reference: Value, value: Value) -> None:
    jax.ref.set(reference, ..., value)


# --- one operation ----------------------------------------------------------------------------------------------------


def run_on_cells(primitive: Primitive, params: dict[str, Any], args: Sequence[Value]) -> Value:
    """Run an operation with cells in the place of references. A reference that it makes is a cell, too."""
    if accesses(primitive):
        return _access(primitive.name, params, list(args))
    runs = _RUNS.get(primitive) or _by_jax
    if runs is _by_jax and Inside.of(params, _types(args)).kind & Kind.CALL:
        return run(call_jaxpr(params), args, _Discharging())
    return runs(primitive, params, list(args))


def _types(args: Sequence[Value]) -> list[Aval]:
    return [x.aval if type(x) is Cell else type_of(x) for x in args]


def _access(name: str, params: dict[str, Any], args: list[Value]) -> Value:
    if name == "new_ref":
        return Cell(AbstractRef(type_of(args[0]), kind=params["kind"]), args[0])
    if name == "empty_ref":
        return Cell(AbstractRef(params["ty"]), zeros(params["ty"]))
    cell, *rest = args
    match name:
        case "get":
            return discharge._get_discharge(cell.value, rest, **params)
        case "swap":
            was, cell.value = discharge._swap_discharge(cell.value, rest[0], rest[1:], **params)
            return was
        case "addupdate":
            cell.value = discharge._addupdate_discharge(cell.value, rest[0], rest[1:], **params)
            return []
        case "freeze":
            return cell.value
    return []  # free_ref


def _by_jax(primitive: Primitive, params: dict[str, Any], args: list[Value]) -> Value:
    """Run an operation by the rule that JAX discharges it by, if it has one."""
    cells = [x for x in args if type(x) is Cell]
    several = primitive.multiple_results
    bind = lambda *xs: primitive.bind(*xs, **primitive.get_bind_params(params))
    program = trace(lambda *xs: bind(*xs) if several else [bind(*xs)], _types(args))
    try:
        pure = discharge.discharge_state(program.closed)
    except NotImplementedError:
        raise UnfollowedReferenceError(f"into `{primitive}`") from None
    outs = run(pure, [*program.consts, *(x.value if type(x) is Cell else x for x in args)])
    outs, values = split_list(outs, len(outs) - len(cells))
    for cell, value in zip(cells, values, strict=True):
        cell.value = value
    return outs if several else outs[0]


# --- programs ---------------------------------------------------------------------------------------------------------


class Discharged(NamedTuple):
    """A program with the values of references in their place.

    Attributes:
        program: (inputs, those of them that are references and passed on) -> (outputs, values of what is written).
        written: which inputs are references that it writes.
        passed: which inputs are references that it hands, themselves, to somebody.
    """

    program: Program
    written: list[bool]
    passed: list[bool]

    def inputs(self, args: Sequence[Value]) -> list[Value]:
        """What the program takes, of what the operation around it is given."""
        references = [x.reference for x, p in zip(args, self.passed, strict=True) if p]
        return [*(x.value if type(x) is Cell else x for x in args), *references]

    def ran(self, values: Sequence[Value], references: Sequence[Value] = ()) -> tuple[list[Value], list[Value]]:
        """Run the program on values, and on the references beside them that it passes on.

        Returns:
            The outputs, and what the inputs hold by then.
        """
        given = [r for r, p in zip(references, self.passed, strict=False) if p]
        outs = self.program(*values, *given)
        outs, new = split_list(outs, len(outs) - sum(self.written))
        rest = iter(new)
        return outs, [next(rest) if w else x for w, x in zip(self.written, values, strict=True)]

    def write(self, args: Sequence[Value], values: Sequence[Value]) -> None:
        """Give the cells that it wrote their new values."""
        cells = [x for x, w in zip(args, self.written, strict=True) if w]
        for cell, value in zip(cells, values, strict=True):
            cell.value = value


@weakref_cache
def _discharged(jaxpr: AnyJaxpr, outlasting: tuple[bool, ...]) -> Discharged:
    types = in_avals(jaxpr)
    n = len(types)

    def f(*args: Value) -> tuple[list[Value], tuple[list[bool], list[bool]]]:
        references = iter(args[n:])
        inputs = [
            Cell(t, x, next(references) if o else None) if is_reference(t) else x
            for t, x, o in zip(types, args[:n], outlasting, strict=True)
        ]
        outs = run(jaxpr, inputs, _Discharging())
        cells = [x if type(x) is Cell else None for x in inputs]
        written = [c is not None and c.written for c in cells]
        passed = [c is not None and c.passed for c in cells]
        return [*outs, *(c.value for c in cells if c is not None and c.written)], (written, passed)

    values = [t.inner_aval if is_reference(t) else t for t in types]
    outer = [t for t, o in zip(types, outlasting, strict=True) if o]
    program, (written, passed) = trace_with(f, [*values, *outer], where=written_where(jaxpr))
    kept = [True] * n + [p for p, o in zip(passed, outlasting, strict=True) if o]
    return Discharged(program.taking(kept), written, passed)


def without_references(program: Program) -> Program:
    """The same program, where the references that it makes are discharged."""
    if not _has_effects(program.jaxpr, core.InternalMutableArrayEffect):
        return program
    return trace(lambda *args: run(program, args, _Discharging()), [v.aval for v in program.invars])


def discharged(jaxpr: AnyJaxpr, args: Sequence[Value]) -> Discharged:
    """Discharge a program that is run on these arguments, cells among them."""
    return _discharged(jaxpr, tuple(type(x) is Cell and x.outlasts for x in args))


def on_values(
    program: Program, args: Sequence[Value]
) -> tuple[Program, list[Value], Callable[[Sequence[Value]], list[Value]]]:
    """Make of a program that makes, reads or writes references one of values.

    Args:
        program: the program.
        args: what it is run on, references among them.

    Returns:
        The program, what it is run on, its constants included, and what takes its outputs: that writes what has become
        of the references into these, and returns the outputs of the program that was given.
    """
    operands = [*program.consts, *args]
    if not _has_effects(program.jaxpr, RefEffect, core.InternalMutableArrayEffect):
        return program, operands, list
    cells = [Cell(type_of(x), read_reference(x), x) if is_reference(x) else x for x in operands]
    inside = discharged(program.closed, cells)

    def written(outs: Sequence[Value]) -> list[Value]:
        outs, values = split_list(list(outs), len(outs) - sum(inside.written))
        for reference, value in zip(
            (x for x, w in zip(operands, inside.written, strict=True) if w), values, strict=True
        ):
            write_reference(reference, value)
        return outs

    return inside.program, [*inside.program.consts, *inside.inputs(cells)], written


class _Discharging(Visitor):
    """Runs a program on cells."""

    def equation(self, eqn: JaxprEqn, args: list[Value]) -> Sequence[Value]:
        if not meets_references(eqn.primitive, eqn.params, eqn.invars) and not any(type(x) is Cell for x in args):
            return bind_eqn(eqn, args)
        outs = run_on_cells(eqn.primitive, eqn.params, args)
        return outs if eqn.primitive.multiple_results else [outs]


def with_closed_over(
    primitive: Primitive, params: dict[str, Any], args: Sequence[Value]
) -> tuple[dict[str, Any], list[Value]]:
    """The parameters and operands of an operation, a compiled call's with the references that it closed over."""
    closed_over = _closed_over(params)
    if not closed_over or primitive is not primitives.jit_p:
        return params, list(args)
    grown = _grown(params, 0, len(closed_over), 0)
    return dict(grown, jaxpr=_taking_closed_over(params["jaxpr"])), [*args, *closed_over]


def _grown(params: dict[str, Any], before: int, after: int, outputs: int) -> dict[str, Any]:
    """The parameters of a compiled call with so many more inputs, before and after the others, and outputs."""
    fill = lambda name, filler: (*(filler,) * before, *params[name], *(filler,) * after)
    return dict(
        params,
        in_shardings=fill("in_shardings", UNSPECIFIED),
        in_layouts=fill("in_layouts", None),
        donated_invars=fill("donated_invars", False),
        out_shardings=(*params["out_shardings"], *(UNSPECIFIED,) * outputs),
        out_layouts=(*params["out_layouts"], *(None,) * outputs),
    )


@weakref_cache
def _taking_closed_over(jaxpr: AnyJaxpr) -> AnyJaxpr:
    """The program with the references that it closed over as its last inputs."""
    references = _closed_over(dict(jaxpr=jaxpr))
    n = len(in_avals(jaxpr))
    f = lambda *args: run(jaxpr, args[:n], _Replacing(dict(zip(map(id, references), args[n:], strict=True))))
    return close(jax.make_jaxpr(f)(*in_avals(jaxpr), *map(type_of, references)))


class _Replacing(Visitor):
    """Runs a program with others in the place of some constants."""

    def __init__(self, others: dict[int, Value]):
        self.others = others

    def constant(self, x: Value) -> Value:
        return self.others.get(id(x), x)


# --- operations with programs inside ----------------------------------------------------------------------------------


def _run_jit(primitive: Primitive, params: dict[str, Any], args: list[Value]) -> list[Value]:
    inside = discharged(params["jaxpr"], args)
    program, inputs = inside.program, inside.inputs(args)
    n_written = sum(inside.written)
    new = _grown(params, len(program.consts), len(inputs) - len(args), n_written)
    new |= dict(jaxpr=program.closed, donated_invars=(False,) * len(new["donated_invars"]))
    outs = primitive.bind(*program.consts, *inputs, **new)
    outs, values = split_list(outs, len(outs) - n_written)
    inside.write(args, values)
    return outs


def _run_remat(primitive: Primitive, params: dict[str, Any], args: list[Value]) -> list[Value]:
    inside = discharged(params["jaxpr"], args)
    outs = bind_remat(inside.program, inside.inputs(args), params, params["differentiated"])
    outs, values = split_list(outs, len(outs) - sum(inside.written))
    inside.write(args, values)
    return outs


def _run_scan(primitive: Primitive, params: dict[str, Any], args: list[Value]) -> list[Value]:
    """What the body writes of its constants is carried; of what the loop goes along, it is stacked."""
    body, n_consts, n_carry = scan_parts(params)
    n = len(args)
    if any(type(x) is Cell for x in args[n_consts : n_consts + n_carry]):
        raise UnfollowedReferenceError("that a loop carries")
    inside = _discharged(body, tuple(type(x) is Cell and x.outlasts and i < n_consts for i, x in enumerate(args)))
    inputs = inside.inputs(args)
    carried = [i for i in range(n_consts) if inside.written[i]]
    constant = [i for i in range(n_consts) if not inside.written[i]] + list(range(n, len(inputs)))
    along = range(n_consts + n_carry, n)
    program = inside.program.reordered([*constant, *carried, *range(n_consts, n_consts + n_carry), *along])
    outs = program.outvars
    before, stacked, written = outs[:n_carry], outs[n_carry : len(outs) - sum(inside.written)], None
    written = outs[len(before) + len(stacked) :]
    program = program.with_outputs([*written[: len(carried)], *before, *stacked, *written[len(carried) :]])
    pick = lambda order: [inputs[i] for i in order]
    init = pick([*carried, *range(n_consts, n_consts + n_carry)])
    carry, ys = bind_scan(program, pick(constant), init, pick(along), params, params["reverse"])
    inside.write(args, [*carry[: len(carried)], *ys[len(stacked) :]])
    return [*carry[len(carried) :], *ys[: len(stacked)]]


def _run_while(primitive: Primitive, params: dict[str, Any], args: list[Value]) -> list[Value]:
    """What the body writes is carried, and the condition reads it there."""
    (body, n_cond, n_body), condition = while_parts(params), while_condition(params)
    of_cond, of_body, carry = split_list(args, n_cond, n_body)
    goes_on, step = discharged(condition, [*of_cond, *carry]), discharged(body, [*of_body, *carry])
    if any(goes_on.written):
        raise UnfollowedReferenceError("that the condition of a loop writes")
    of_goes_on, of_step = goes_on.inputs([*of_cond, *carry]), step.inputs([*of_body, *carry])
    written = [x for x, w in zip(of_body, step.written, strict=False) if w]
    m, n = len(written), len(carry)
    place = {id(cell): i for i, cell in enumerate(written)}

    def changed(inside: Discharged, outer: list[Value], inputs: list[Value]) -> tuple[Program, list[Value]]:
        """The program on (its constants, what is written, carry); and those constants."""
        k = len(outer)
        where = [place.get(id(x)) for x in outer] + [m + i for i in range(n)] + [None] * (len(inputs) - k - n)
        constants = [i for i, w in enumerate(where) if w is None]

        def f(*xs: Value) -> list[Value]:
            held, moving = dict(zip(constants, xs, strict=False)), xs[len(constants) :]
            outs = inside.program(*(held[i] if w is None else moving[w] for i, w in enumerate(where)))
            return [*outs[n:], *outs[:n]] if inside is step else outs

        types = [type_of(inputs[i]) for i in constants] + [type_of(x.value) for x in written] + _types(carry)
        return trace(f, types), [inputs[i] for i in constants]

    (goes_on_, held), (step_, kept) = changed(goes_on, of_cond, of_goes_on), changed(step, of_body, of_step)
    outs = bind_while(goes_on_, step_, held, kept, [*(x.value for x in written), *carry])
    for cell, value in zip(written, outs, strict=False):
        cell.value = value
    return outs[m:]


def _run_cond(primitive: Primitive, params: dict[str, Any], args: list[Value]) -> list[Value]:
    """What any branch writes comes out of all of them."""
    index, *operands = args
    branches = [discharged(b, operands) for b in params["branches"]]
    written = [any(ws) for ws in zip(*(b.written for b in branches), strict=True)]
    passed = [any(ps) for ps in zip(*(b.passed for b in branches), strict=True)]
    union = Discharged(branches[0].program, written, passed)
    inputs, n = union.inputs(operands), len(operands)
    references = [i for i, p in enumerate(passed) if p]

    def of_all(branch: Discharged) -> Program:
        def f(*xs: Value) -> list[Value]:
            own = [xs[n + k] for k, i in enumerate(references) if branch.passed[i]]
            outs = branch.program(*xs[:n], *own)
            outs, values = split_list(outs, len(outs) - sum(branch.written))
            new = iter(values)
            return [*outs, *(next(new) if b else xs[i] for i, b in enumerate(branch.written) if written[i])]

        return trace(f, [type_of(x) for x in inputs])

    outs = bind_cond(index, [of_all(b) for b in branches], inputs, params)
    outs, values = split_list(outs, len(outs) - sum(written))
    union.write(operands, values)
    return outs


def _run_custom_jvp(primitive: Primitive, params: dict[str, Any], args: list[Value]) -> list[Value]:
    fun, jvp = primitive.get_bind_params(params)["subfuns"]
    return run_custom_jvp(fun, jvp, args, discharged(params["call_jaxpr"], args).written)


def run_custom_jvp(fun: WrappedFun, jvp: WrappedFun, args: Sequence[Value], may_write: Sequence[bool]) -> list[Value]:
    """Run a `jax.custom_jvp` function on cells: it becomes one of values, which returns those it may write.

    The tangent of a reference is one that holds the tangent of what that holds.
    """
    types, n = _types(args), len(args)
    written = [i for i in range(n) if may_write[i]]
    moving = lambda t: AbstractRef(t.inner_aval.to_tangent_aval()) if is_reference(t) else t.to_tangent_aval()

    def ran(f: WrappedFun, types: Sequence[Aval], xs: Sequence[Value]) -> tuple[list[Value], list[Value]]:
        """The outputs of a function of references, and what these hold by then."""
        program = trace(f.call_wrapped, types, "custom_jvp")
        k = len(program.consts)
        inside = discharged(program.closed, [*program.consts, *args, *types[n:]])
        if any(inside.passed):
            raise UnfollowedReferenceError("through a `jax.custom_jvp` function into the backward rule of another one")
        if any(w and i % n not in written for i, w in enumerate(inside.written[k:])):
            raise UnfollowedReferenceError("that only the tangent rule of a `jax.custom_jvp` function writes")
        outs, now = inside.ran([*program.consts, *xs])
        return outs, now[k:]

    @jax.custom_jvp
    def on_values(*xs: Value) -> list[Value]:
        outs, now = ran(fun, types, xs)
        return [*outs, *(now[i] for i in written)]

    @on_values.defjvp
    def along(primals: Sequence[Value], tangents: Sequence[Value]) -> tuple[list[Value], list[Value]]:
        outs, now = ran(jvp, [*types, *map(moving, types)], [*primals, *tangents])
        m = len(outs) // 2
        return [*outs[:m], *(now[i] for i in written)], [*outs[m:], *(now[n + i] for i in written)]

    outs = on_values(*(x.value if type(x) is Cell else x for x in args))
    outs, values = split_list(outs, len(outs) - len(written))
    for i, value in zip(written, values, strict=True):
        args[i].value = value
    return outs


def _run_custom_vjp(primitive: Primitive, params: dict[str, Any], args: list[Value]) -> list[Value]:
    """A function that only hands references on is given them; one that reads or writes some becomes one of values."""
    if _has_effects(params["call_jaxpr"], RefEffect):
        return _run_custom_vjp_on_values(primitive, params, args)
    references = [x.reference if type(x) is Cell else x for x in args]
    if any(x is None for x in references):
        raise UnfollowedReferenceError(
            "that was made inside the differentiated function into a `jax.custom_vjp` function"
        )
    return list(primitive.bind(*references, **primitive.get_bind_params(params)))


def _run_custom_vjp_on_values(primitive: Primitive, params: dict[str, Any], args: list[Value]) -> list[Value]:
    """Its rules are discharged too, and return what they write, which moves as what was there before.

    What its backward rule gets of its forward rule may be a reference that outlasts the program: these are handed on.
    """
    bound = primitive.get_bind_params(params)
    (_, fwd, bwd), types, n = bound["subfuns"], _types(args), len(args)
    body = discharged(params["call_jaxpr"], args)
    perturbed = [i >= params["num_consts"] for i in range(n)]
    passed = [type(x) is Cell and x.outlasts for x in args]
    place = {i: n + k for k, i in enumerate(i for i in range(n) if passed[i])}
    references = lambda xs: [xs[place[i]] if i in place else None for i in range(n)]
    written = lambda now: [x for x, w in zip(now, body.written, strict=True) if w]

    def on_values(*xs: Value) -> list[Value]:
        outs, now = body.ran(xs[:n], references(xs))
        return [*outs, *written(now)]

    def forward(*xs: Value) -> tuple[list[Value], list[Value]]:
        on_references = lambda *xs: fwd.call_wrapped(*(x for pair in zip(xs, perturbed, strict=True) for x in pair))
        program = trace(on_references, types, "fwd")
        k = len(program.consts)
        inside = discharged(program.closed, [*program.consts, *args])
        if any(w and not b for w, b in zip(inside.written[k:], body.written, strict=True)):
            raise UnfollowedReferenceError("that only the forward rule of a `jax.custom_vjp` function writes")
        outs, now = inside.ran([*program.consts, *xs[:n]], [*program.consts, *references(xs)])
        _, res_tree, forwarded = bound["out_trees"]()
        if any(i is not None and is_reference(types[i]) and i not in place for i in forwarded):
            raise UnfollowedReferenceError(
                "that is made inside the differentiated function into the backward rule of a `jax.custom_vjp` function"
            )
        own, outs = split_list(outs, res_tree.num_leaves - sum(i is not None for i in forwarded))
        rest = iter(own)
        return [*outs, *written(now[k:])], [next(rest) if i is None else xs[place.get(i, i)] for i in forwarded]

    def backward(res: Sequence[Value], cts: Sequence[Value]) -> tuple[Value, ...]:
        out_types, in_types = out_avals(params["call_jaxpr"]), [t.inner_aval if is_reference(t) else t for t in types]
        own, logs = custom_bwd(bwd, res, cts[: len(out_types)], out_types, in_types, bound["symbolic_zeros"])
        back = (*own, *(None for _ in place))
        return (back, logs) if LOGS else back

    function: Any = jax.custom_vjp(on_values)
    (function.defvjp_with_logs if LOGS else function.defvjp)(forward, backward)
    both = Discharged(body.program, body.written, passed)
    outs = function(*both.inputs(args))
    outs, values = split_list(outs, len(outs) - sum(body.written))
    for cell, value in zip(written(args), values, strict=True):
        cell.value = moved_as(value, cell.value)
    return outs


@jax.custom_jvp
def moved_as(value: Value, other: Value) -> Value:
    """A value that moves as another one does: what is written into a reference by a rule that is somebody's own."""
    return value


moved_as.defjvp(lambda primals, tangents: (primals[0], tangents[1]))


def _run_operation(primitive: Primitive, params: dict[str, Any], args: list[Value]) -> list[Value]:
    if (region := region_of(params)) is None:
        raise UnfollowedReferenceError(f"into `{type(params['_prim']).__name__}`")
    return _run_remat(primitives.remat_p, region, args)


_RUNS: dict[Primitive | Any, Callable[..., list[Value]]] = {
    primitives.jit_p: _run_jit,
    primitives.remat_p: _run_remat,
    primitives.scan_p: _run_scan,
    primitives.while_p: _run_while,
    primitives.cond_p: _run_cond,
    primitives.custom_jvp_call_p: _run_custom_jvp,
    primitives.custom_vjp_call_p: _run_custom_vjp,
    primitive("call_hi_primitive_p"): _run_operation,
}
