"""Functions with a derivative of their own: `jax.custom_jvp` and `jax.custom_vjp`, by what their author gave."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from .. import jaxpr as jx
from ..cotangents import Cotangent, Zero, is_differentiable, materialize
from ..jaxpr.types import Primitive, PyTree, Value
from ..rules.contract import INPUTS
from ..rules.inlined import inline_bwd
from ..rules.kinds import LoggingRule, Operation, Recorder, Rule
from ..rules.registry import NAMED
from .references import cell_of, contents, kept_reference, shown, take_up

__all__ = ["CallRecorder", "record_custom_jvp", "record_custom_vjp"]


class CallRecorder(Recorder, Protocol):
    """What is asked of the trace that records these calls. See `recording.py`."""

    @property
    def in_tangent_rule(self) -> bool: ...
    def operation(self, primitive: Any, params: dict[str, Any], tracers: Sequence[Any]) -> Operation: ...
    def above(self) -> AbstractContextManager[Any]: ...
    def mine(self, x: Any) -> bool: ...
    def value(self, x: Any) -> Any: ...
    def read_back(self, x: Any) -> Any: ...
    def new(self, value: Any) -> Any: ...
    def tangent(self, x: Any) -> Any: ...
    def tangent_rule(self) -> AbstractContextManager[None]: ...
    def carried(
        self, name: str, operation: Operation, outs: Sequence[Value], tangents: Sequence[Value]
    ) -> list[Value]: ...
    def look_at(self, operation: Operation, outs: Value) -> None: ...
    def write_entry(
        self, rule: Rule, operation: Operation, outs: Sequence[Value], res: PyTree, several: bool, name: str
    ) -> None: ...


def record_custom_jvp(
    trace: CallRecorder, primitive: Primitive, tracers: Sequence[Value], params: dict[str, Any]
) -> list[Value]:
    """Record the function's own tangent rule, which is linear in the tangents; it is transposed with the rest.

    A tangent carries its primal's index, and what comes out carries the output's. Its value is of no consequence, the
    rule being linear: what a linear entry keeps does not depend on it. So it carries its primal's value too. Inside a
    tangent rule nothing is differentiated any more: a function that is called on a tangent there runs its body.
    """
    fun, jvp = params["subfuns"]
    has_cells = any(cell_of(trace, t) is not None for t in tracers)
    operation = trace.operation(primitive, {}, [contents(trace, t) for t in tracers])
    unchanged = operation._replace(params=params)
    if not operation.is_perturbed and not has_cells:
        return _passed(trace, operation, unchanged)
    if not operation.is_perturbed or trace.in_tangent_rule:
        with trace.above():
            return list(fun.call_wrapped(*tracers))
    values = operation.values
    where = jx.written_where(fun)
    rule = trace.options.rules.get(where)
    if rule is None and not has_cells and all(_is_floating(jx.type_of(v)) for v in values):
        rule = NAMED.get(jx.own_name(fun))
    if has_cells and rule is not None:
        raise jx.UnfollowedReferenceError("into a `jax.custom_jvp` function whose rule was replaced")
    if has_cells:
        cells = [cell_of(trace, t) for t in tracers]
        with trace.above():
            operands = [c or t for c, t in zip(cells, tracers, strict=True)]
            return jx.run_custom_jvp(fun, jvp, operands, [c is not None for c in cells])
    if rule is not None:
        return _by_another_rule(trace, rule, where, operation, unchanged)
    with trace.below():
        tangents = [
            trace.tangent(t) if p else jx.zero_tangent(v, params["symbolic_zeros"])
            for t, v, p in zip(tracers, values, operation.perturbed, strict=True)
        ]
    feedback = operation.feedback or [None] * len(values)
    with trace.tangent_rule(), jx.tangent_of("custom_jvp"):
        outs = jvp.call_wrapped(*map(trace.with_feedback, values, feedback), *tangents)
    n = len(outs) // 2
    return trace.carried(where, operation, outs[:n], outs[n:])


def record_custom_vjp(
    trace: CallRecorder, primitive: Primitive, tracers: Sequence[Value], params: dict[str, Any]
) -> list[Value]:
    """Run the function's own `fwd` now; its own `bwd` is the entry's rule."""
    fun, fwd, bwd = params["subfuns"]
    has_cells = any(cell_of(trace, t) is not None for t in tracers)
    operation = trace.operation(primitive, {}, [contents(trace, t) for t in tracers])
    if not operation.is_perturbed and has_cells:
        with trace.above():
            return list(fun.call_wrapped(*tracers))
    unchanged = operation._replace(params=params)
    if not operation.is_perturbed:
        return _passed(trace, operation, unchanged)
    where = jx.written_where(fun)
    if (rule := trace.options.rules.get(where)) is not None:
        if has_cells:
            raise jx.UnfollowedReferenceError("into a `jax.custom_vjp` function whose rule was replaced")
        return _by_another_rule(trace, rule, where, operation, unchanged)
    values, feedback = operation.values, operation.feedback
    operands = [shown(trace, t) for t in tracers]
    if feedback:
        operands = [
            o if cell_of(trace, o) else trace.with_feedback(o, w) for o, w in zip(operands, feedback, strict=True)
        ]
    with trace.above() if feedback or has_cells else trace.below():
        pairs = zip(operands, operation.perturbed, strict=True)
        res_and_outs = fwd.call_wrapped(*(x for pair in pairs for x in pair))
    _, res_tree, forwarded = params["out_trees"]()
    n = res_tree.num_leaves - sum(i is not None for i in forwarded)
    own, first = iter(res_and_outs[:n]), jx.operands_before(fwd)
    res = [next(own) if i is None else operands[first + i] for i in forwarded]
    for t, o in zip(tracers, operands, strict=True):
        take_up(trace, t, o)
    res = [kept_reference(trace, x) for x in res]
    with trace.below():
        outs = [jx.as_array(trace.value(y)) for y in res_and_outs[n:]]
        res = [jx.as_residual(trace.read_back(x)) for x in res]
    types, in_types = [jx.type_of(o) for o in outs], tuple(map(jx.type_of, values))
    axes = jx.mapped_axes(fwd)

    def custom_vjp_bwd(
        res: PyTree, ct: Sequence[Cotangent], perturbed: Sequence[bool]
    ) -> tuple[list[Cotangent], dict[str, PyTree] | None]:
        """Call the backward rule that the user gave to `jax.custom_vjp`."""
        with jx.among(axes):
            return jx.custom_bwd(
                bwd, res, [None if c is Zero else c for c in ct], types, in_types, params["symbolic_zeros"]
            )

    cotangents = lambda res, ct, perturbed: custom_vjp_bwd(res, ct, perturbed)[0]
    rule = LoggingRule(custom_vjp_bwd, factors=functools.partial(inline_bwd, cotangents, in_types))
    return _write(trace, rule, operation, primitive.name, outs, tuple(res), several=True)


def _is_floating(aval: Any) -> bool:
    return not jx.is_high(aval) and jax.dtypes.issubdtype(aval.dtype, np.floating)


def _passed(trace: CallRecorder, operation: Operation, unchanged: Operation) -> list[Any]:
    """Run a call that no perturbed value enters."""
    outs = trace.run(unchanged)
    trace.look_at(operation, outs)
    return outs


def _by_another_rule(
    trace: CallRecorder, rule: Rule, where: str, operation: Operation, unchanged: Operation
) -> list[Value]:
    """Record a function with a derivative of its own by the rule that an option gives it instead.

    It is run as the call that it is: whoever differentiates the result again meets its derivative, not its body. The
    rule is of the function's own arguments. What the function closes over has no cotangent by it.
    """
    n = jx.constants_before(unchanged.params["subfuns"][1])
    if any(operation.perturbed[:n]):
        raise ValueError(
            f"The function {where} closes over a value that is differentiated, and the rule given for it by rules= "
            "has a cotangent for its arguments alone. Pass the value as an argument, or write "
            "jax.lax.stop_gradient(value)."
        )
    operation = operation.after(n)
    values = operation.values
    outs, kept = trace.run(unchanged), None
    for level in reversed(_levels(operation, unchanged, len(outs))):
        rule = _mapped(rule, level, operation.perturbed)
    if rule.fwd is not None:
        with trace.below():
            out, kept = rule.fwd(*values)
        outs = list(out) if len(outs) > 1 else [out]
    several = len(outs) > 1
    if rule.fwd is None or rule.save is not None:
        of = values, kept if rule.fwd is not None else outs if several else outs[0]
        with trace.below():
            kept = (rule.save or INPUTS)(*of, operation.perturbed, {})
    return _write(trace, rule, operation, where.partition(" at ")[0], outs, kept, several)


def _levels(operation: Operation, unchanged: Operation, n_outs: int) -> list[jx.Level]:
    """By which `vmap`s inside the differentiated function a call was mapped."""
    types = list(map(jx.type_of, operation.values))
    _, forward, *bwd = unchanged.params["subfuns"]
    if bwd:
        args = lambda xs: [x for x in xs for x in (x, True)]
    else:
        symbolic = unchanged.params["symbolic_zeros"]
        args = lambda xs: [*xs, *(jx.zero_tangent(x, symbolic) for x in xs)]
    return jx.levels_of(forward, args, types, n_outs)


def _mapped(rule: Rule, level: jx.Level, perturbed: Sequence[bool]) -> Rule:
    """The same rule for each example of a mapped call: it is of one, and an operand that they share gets their sum."""
    over = functools.partial(jax.vmap, axis_size=level.size)
    one = len(level.outs) == 1
    out_axes = level.outs[0] if one else tuple(level.outs)
    static: list[Any] = []  # what is kept and is no array, types for instance

    def keep(out: Value, res: PyTree) -> tuple[Value, list[Value]]:
        leaves, tree = jax.tree.flatten(res)
        arrays = [isinstance(x, (jax.Array, np.ndarray)) for x in leaves]
        static[:] = [tree, [None if a else x for x, a in zip(leaves, arrays, strict=True)], arrays]
        return out, [x for x, a in zip(leaves, arrays, strict=True) if a]

    def fwd(*values: Value) -> tuple[Value, PyTree]:
        def example(*values: Value) -> tuple[Value, list[Value]]:
            out, res = rule.fwd(*values)  # type: ignore[misc]
            return keep(out, rule.save(values, res, perturbed, {}) if rule.save else res)

        return over(example, in_axes=tuple(level.ins), out_axes=(out_axes, 0))(*values)

    def save(values: Sequence[Value], outs: Value, perturbed: Sequence[bool], params: dict[str, Any]) -> PyTree:
        example = lambda values, outs: keep((), (rule.save or INPUTS)(values, outs, perturbed, params))[1]
        return over(example, in_axes=(tuple(level.ins), out_axes), out_axes=0)(
            tuple(values), outs if one else tuple(outs)
        )

    @functools.wraps(rule.bwd)  # type: ignore[arg-type]
    def bwd(res: PyTree, ct: Any, perturbed: Sequence[bool]) -> list[Cotangent]:
        exist: list[Any] = []

        def example(res: PyTree, ct: Any) -> list[Value]:
            tree, leaves, arrays = static
            kept = iter(res)
            given = jax.tree.unflatten(tree, [next(kept) if a else x for x, a in zip(leaves, arrays, strict=True)])
            cts = list(map(materialize, rule.bwd(given, ct, perturbed)))  # type: ignore[misc]
            exist[:] = [c if c is None or c is Zero else True for c in cts]
            return [c for c, e in zip(cts, exist, strict=True) if e is True]

        cts = iter(over(example, in_axes=(0, out_axes), out_axes=0)(res, ct))
        placed = lambda c, axis: jnp.sum(c, 0) if axis is None else jnp.moveaxis(c, 0, axis)
        return [placed(next(cts), axis) if e is True else e for e, axis in zip(exist, level.ins, strict=True)]

    return Rule(bwd, fwd=None if rule.fwd is None else fwd, save=save if rule.fwd is None else None)


def _write(
    trace: CallRecorder, rule: Rule, operation: Operation, name: str, outs: Sequence[Value], res: PyTree, several: bool
) -> list[Value]:
    wrapped = [trace.new(o) if is_differentiable(o) else o for o in outs]
    trace.write_entry(rule, operation, wrapped, res, several, name)
    return wrapped
