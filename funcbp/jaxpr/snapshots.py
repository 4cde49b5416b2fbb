"""The primitives behind `funcbp.scan(snapshots=)` and `funcbp.while_loop`: JAX's own loops, and how many snapshots.

`snapshot_scan` and `snapshot_while` have the parameters of `scan` and `while`, and `snapshots` and `max_steps` beside
them: whoever reads the parameters of a loop reads theirs. For JAX they are those loops: run, mapped and moved along a
tangent by JAX's own rules, whose result is made a loop with snapshots again. What goes back through them is registered
from above (`def_loop_transpose`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src import core
from jax._src.ad_util import Zero
from jax._src.interpreters import batching, mlir
from jax._src.interpreters.ad import primitive_jvps, primitive_transposes
from jax._src.interpreters.batching import AxisData
from jax.extend.core import Primitive, primitives

from .interpreter import as_function, while_condition, while_parts
from .programs import Program, in_avals, out_avals, trace, trace_with
from .types import Aval, ClosedJaxpr, JaxprEqn, Value
from .values import instantiated_tangent, split_list

__all__ = [
    "as_plain",
    "bind_reversal",
    "computed_by",
    "def_loop_transpose",
    "def_reversal_transpose",
    "loop_reversal_p",
    "loop_reversal_tangent_p",
    "loop_tangent",
    "loop_tangent_p",
    "poisoned",
    "snapshot_scan_p",
    "snapshot_while_p",
    "unfinished_loop_p",
    "with_snapshots",
]


def _primitive(name: str, several: bool = True) -> Primitive:
    primitive = Primitive(name)
    primitive.multiple_results = several
    return primitive


# --- the loops --------------------------------------------------------------------------------------------------------

snapshot_scan_p, snapshot_while_p = _primitive("snapshot_scan"), _primitive("snapshot_while")
PLAIN = {snapshot_scan_p: primitives.scan_p, snapshot_while_p: primitives.while_p}
WITH_SNAPSHOTS = {plain: primitive for primitive, plain in PLAIN.items()}
OWN = ("snapshots", "max_steps")


def as_plain(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of JAX's loop."""
    return {name: value for name, value in params.items() if name not in OWN}


def with_snapshots(
    program: Program, params: dict[str, Any], which: Callable[[JaxprEqn], bool] = lambda eqn: True
) -> Program:
    """The program, its loops (JAX's, outermost) with these parameters of ours: those `which` says; none of no steps."""
    own = {name: params[name] for name in OWN if name in params}
    change = lambda e: e.replace(primitive=WITH_SNAPSHOTS[e.primitive], params=dict(e.params, **own))
    is_loop = lambda e: e.primitive in WITH_SNAPSHOTS and e.params.get("length") != 0 and which(e)
    eqns = [change(e) if is_loop(e) else e for e in program.eqns]
    return Program(program.jaxpr.replace(eqns=eqns), program.consts)


def _run(primitive: Primitive, *args: Value, **params: Any) -> list[Value]:
    return PLAIN[primitive].bind(*args, **as_plain(params))


def _abstract_eval(primitive: Primitive, *avals: Aval, **params: Any) -> Aval:
    return PLAIN[primitive].abstract_eval(*avals, **as_plain(params))


def _batched(
    primitive: Primitive, axis: AxisData, args: Sequence[Value], dims: Sequence[int | None], **params: Any
) -> tuple[list[Value], Sequence[int | None]]:
    rule = batching.fancy_primitive_batchers[PLAIN[primitive]]
    program, out_dims = trace_with(lambda *xs: rule(axis, xs, dims, **as_plain(params)), [*map(core.typeof, args)])
    program = with_snapshots(program, params)
    if primitive is snapshot_while_p:
        eqns = [_together(e, dims) if e.primitive is snapshot_while_p else e for e in program.eqns]
        program = Program(program.jaxpr.replace(eqns=eqns), program.consts)
    return program(*args), out_dims


def _together(eqn: JaxprEqn, dims: Sequence[int | None]) -> JaxprEqn:
    """A mapped loop with a condition for each lane, as one that goes on until all lanes have ended.

    A lane that has ended keeps its state. So that no derivative is taken where its step is not defined any more (the
    double-where trick), it makes the step of a lane that goes on, of which nothing is kept.
    """
    condition, (body, n_cond, n_body) = while_condition(eqn.params), while_parts(eqn.params)
    if not out_avals(condition)[0].shape:
        return eqn
    const_dims = dims[n_cond : n_cond + n_body]

    def goes_on(*args: Value) -> list[Value]:
        return [jnp.any(as_function(condition)(*args)[0])]

    def step(*args: Value) -> list[Value]:
        of_cond, of_body, state = split_list(args, n_cond, n_body)
        (on,) = as_function(condition)(*of_cond, *state)
        lane = jnp.argmax(on)

        def choose(x: Value, other: Value, axis: int) -> Value:
            return lax.select_n(lax.broadcast_in_dim(on, x.shape, (axis,)), other, x)

        def defined(x: Value, axis: int | None) -> Value:
            if axis is None:
                return x
            other = lax.stop_gradient(lax.dynamic_index_in_dim(x, lane, axis))
            return choose(x, lax.broadcast_in_dim(other, x.shape, range(x.ndim)), axis)

        new = as_function(body)(*map(defined, of_body, const_dims), *(defined(x, 0) for x in state))
        return [choose(n, x, 0) for n, x in zip(new, state, strict=True)]

    types = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in in_avals(condition)[:n_cond]]
    types += [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in in_avals(body)]
    new = dict(
        cond_jaxpr=jax.make_jaxpr(goes_on)(*types[:n_cond], *types[n_cond + n_body :]),
        body_jaxpr=jax.make_jaxpr(step)(*types),
        body_nconsts=n_cond + n_body,
    )
    return eqn.replace(invars=[*eqn.invars[:n_cond], *eqn.invars], params=dict(eqn.params, **new))


# --- along a tangent --------------------------------------------------------------------------------------------------


class Loop:
    """One loop: its primitive and its parameters. As a parameter it is compared by identity."""

    def __init__(self, primitive: Primitive, params: dict[str, Any]):
        self.primitive, self.params = primitive, params


class Tangent(NamedTuple):
    """The parameters of `loop_tangent`.

    Attributes:
        loop: the loop.
        moving: which of its operands have a tangent.
    """

    loop: Loop
    moving: tuple[bool, ...]


loop_tangent_p = _primitive("loop_tangent")  # (*operands, *tangents) -> tangents of the outputs that have one


def loop_tangent(*args: Value, of: Tangent) -> list[Value]:
    """The tangents of a loop's outputs: those of a loop with snapshots that carries state and tangent together."""
    loop, moving = of
    n = len(moving)

    def both(*args: Value) -> list[Value]:
        given = lambda moved: (next(moved) if m else x for x, m in zip(args, moving, strict=False))
        f = lambda *moved: _run(loop.primitive, *given(iter(moved)), **loop.params)
        primals = [x for x, m in zip(args, moving, strict=False) if m]
        _, tangents = jax.jvp(f, primals, list(args[n:]))
        return [t for t in tangents if t.dtype != jax.dtypes.float0]

    return with_snapshots(trace(both, [*map(core.typeof, args)], "tangent"), loop.params)(*args)


def _has_tangent(aval: Aval) -> bool:
    return jax.dtypes.issubdtype(aval.dtype, np.inexact)


def _loop_jvp(
    primitive: Primitive, primals: Sequence[Value], tangents: Sequence[Value], **params: Any
) -> tuple[list[Value], list[Value]]:
    """The outputs, and their tangents by an operation of their own, which is linear and can be transposed."""
    outs = primitive.bind(*primals, **params)
    moving = tuple(type(t) is not Zero for t in tangents)
    given = [t for t, m in zip(tangents, moving, strict=True) if m]
    moved = iter(loop_tangent_p.bind(*primals, *given, of=Tangent(Loop(primitive, params), moving)))
    return outs, [next(moved) if _has_tangent(core.typeof(o)) else Zero(core.typeof(o).to_tangent_aval()) for o in outs]


def _tangent_abstract_eval(*avals: Aval, of: Tangent) -> Aval:
    outs, effects = _abstract_eval(of.loop.primitive, *avals[: len(of.moving)], **of.loop.params)
    return [o.to_tangent_aval() for o in outs if _has_tangent(o)], effects


def _tangent_jvp(
    primals: Sequence[Value], tangents: Sequence[Value], *, of: Tangent
) -> tuple[list[Value], list[Value]]:
    return jax.jvp(functools.partial(loop_tangent, of=of), list(primals), list(map(instantiated_tangent, tangents)))


def _tangent_batched(
    axis: AxisData, args: Sequence[Value], dims: Sequence[int | None], *, of: Tangent
) -> tuple[list[Value], Sequence[int | None]]:
    mapped = jax.vmap(functools.partial(loop_tangent, of=of), dims, axis_name=axis.name, axis_size=axis.size)
    outs = mapped(*args)
    return outs, [0] * len(outs)


def def_loop_transpose(transpose: Callable[..., Sequence[Value]]) -> None:
    """Go back through loops, where JAX's reverse mode asks for it, by this function.

    `transpose(primitive, params, moving, operands, cts)` returns a cotangent for each operand (an array or anything
    else), given those of the outputs, None where zero.
    """

    def rule(cts: Sequence[Value], *args: Value, of: Tangent) -> list[Value]:
        loop, moving = of
        types, _ = _abstract_eval(loop.primitive, *(core.typeof(x) for x in args[: len(moving)]), **loop.params)
        given = iter(cts)
        full = [next(given) if _has_tangent(t) else None for t in types]
        full = [None if type(c) is Zero else c for c in full]
        back = transpose(loop.primitive, loop.params, moving, args[: len(moving)], full)
        arrays = [c if isinstance(c, jax.Array) else None for c, m in zip(back, moving, strict=True) if m]
        return [None] * len(moving) + arrays

    primitive_transposes[loop_tangent_p] = rule


# --- what the loops are surrounded with -------------------------------------------------------------------------------

unfinished_loop_p = _primitive("unfinished_loop", several=False)  # whether a loop was cut short -> nan, or 1


def poisoned(x: Value, unfinished: Value) -> Value:
    """The same numbers, and derivatives, if a loop has ended; nan if it was cut short."""
    factor = lax.convert_element_type(unfinished_loop_p.bind(unfinished), x.dtype)
    return lax.mul(x, lax.broadcast_in_dim(factor, x.shape, ()))


def _factor(unfinished: Value) -> Value:
    return lax.select(unfinished, *(lax.full(unfinished.shape, c, np.float32) for c in (np.nan, 1)))


# --- the way back -----------------------------------------------------------------------------------------------------

loop_reversal_p = _primitive("loop_reversal")  # a call: for JAX its program, for ours what cannot be gone back through
loop_reversal_tangent_p = _primitive("loop_reversal_tangent", several=False)  # the same tangent, going forward only


def bind_reversal(program: Program, args: Sequence[Value]) -> list[Value]:
    """Run the way back through a loop, in one piece."""
    return list(loop_reversal_p.bind(*program.consts, *args, jaxpr=program.closed))


def _call(*args: Value, jaxpr: ClosedJaxpr) -> list[Value]:
    return as_function(jaxpr)(*args)


def _call_batched(
    axis: AxisData, args: Sequence[Value], dims: Sequence[int | None], *, jaxpr: ClosedJaxpr
) -> tuple[list[Value], Sequence[int | None]]:
    mapped = jax.vmap(as_function(jaxpr), dims, axis_name=axis.name, axis_size=axis.size)
    outs = bind_reversal(trace(mapped, [*map(core.typeof, args)], "reversal"), args)
    return outs, [0] * len(outs)


def _call_jvp(
    primals: Sequence[Value], tangents: Sequence[Value], *, jaxpr: ClosedJaxpr
) -> tuple[list[Value], list[Value]]:
    outs, moved = jax.jvp(as_function(jaxpr), list(primals), list(map(instantiated_tangent, tangents)))
    return outs, [t if t.dtype == jax.dtypes.float0 else loop_reversal_tangent_p.bind(t) for t in moved]


def def_reversal_transpose(refuse: Callable[[], Any]) -> None:
    """Refuse in this way, where JAX's reverse mode would go through the way back a second time."""
    primitive_transposes[loop_reversal_tangent_p] = lambda ct, tangent: refuse()


# --- what JAX asks of a primitive -------------------------------------------------------------------------------------


def computed_by(primitive: Any, program: Callable[..., Sequence[Value]]) -> None:
    """Say what computes a primitive: when it is run, when it is lowered, and when classes in its programs are."""
    primitive.def_impl(program)
    primitive.to_lojax = program
    mlir.register_lowering(primitive, mlir.lower_fun(program))


for _p in PLAIN:
    computed_by(_p, functools.partial(_run, _p))
    _p.def_effectful_abstract_eval(functools.partial(_abstract_eval, _p))
    batching.fancy_primitive_batchers[_p] = functools.partial(_batched, _p)
    primitive_jvps[_p] = functools.partial(_loop_jvp, _p)

computed_by(loop_tangent_p, loop_tangent)
loop_tangent_p.def_effectful_abstract_eval(_tangent_abstract_eval)
batching.fancy_primitive_batchers[loop_tangent_p] = _tangent_batched
primitive_jvps[loop_tangent_p] = _tangent_jvp


unfinished_loop_p.def_impl(_factor)
unfinished_loop_p.def_abstract_eval(lambda unfinished: unfinished.update(dtype=np.dtype(np.float32)))
mlir.register_lowering(unfinished_loop_p, mlir.lower_fun(_factor, multiple_results=False))
batching.primitive_batchers[unfinished_loop_p] = lambda args, dims: (unfinished_loop_p.bind(*args), dims[0])

computed_by(loop_reversal_p, _call)
loop_reversal_p.def_effectful_abstract_eval(lambda *avals, jaxpr: (out_avals(jaxpr), jaxpr.effects))
batching.fancy_primitive_batchers[loop_reversal_p] = _call_batched
primitive_jvps[loop_reversal_p] = _call_jvp

loop_reversal_tangent_p.def_impl(lambda t: t)
loop_reversal_tangent_p.def_abstract_eval(lambda t: t)
mlir.register_lowering(loop_reversal_tangent_p, lambda ctx, t: [t])
batching.defvectorized(loop_reversal_tangent_p)
primitive_jvps[loop_reversal_tangent_p] = lambda primals, tangents: tuple(
    x if type(x) is Zero else loop_reversal_tangent_p.bind(x) for (x,) in (primals, tangents)
)
