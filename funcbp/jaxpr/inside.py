"""Higher-order primitives made, changed and run; what they have inside is read in `interpreter.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src import ad_util, api_util, checkify, config, core, sharding_impls
from jax._src.interpreters import partial_eval
from jax._src.lax.control_flow import conditionals
from jax.extend.core import primitives

from .barrier import barrier_p
from .interpreter import CALLS, Inside, Kind, Visitor, as_function, inside_of, run, scan_parts
from .marks import feedback_p
from .programs import Program, bind_eqn, close, in_avals, trace
from .types import AnyJaxpr, ClosedJaxpr, JaxprEqn, PyTree, Value, Var, WrappedFun
from .values import (
    Aval,
    Offload,
    Storage,
    as_cotangent,
    device_here,
    float0,
    is_high,
    primitive,
    sharding_of,
    to_space,
    type_of,
    weakref_cache,
    zeros,
)

compute_on_p = primitive("compute_on_p")
fused_p = primitive("fused_p")
xla_metadata_call_p = primitive("xla_metadata_call_p")


def constrained(params: dict[str, Any]) -> ClosedJaxpr:
    """The program inside a `jit`, with the shardings it was given for inputs and outputs as constraints."""
    shardings = (tuple(params["in_shardings"]), tuple(params["out_shardings"]))
    if all(isinstance(s, sharding_impls.UnspecifiedValue) for part in shardings for s in part):
        return params["jaxpr"]
    return _constrained(params["jaxpr"], *shardings)


@weakref_cache
def _constrained(
    jaxpr: AnyJaxpr, ins: tuple[jax.sharding.Sharding, ...], outs: tuple[jax.sharding.Sharding, ...]
) -> ClosedJaxpr:
    def pin(x: Value, s: jax.sharding.Sharding) -> Value:
        return x if isinstance(s, sharding_impls.UnspecifiedValue) else lax.with_sharding_constraint(x, s)

    def f(*args: Value) -> list[Value]:
        pinned = [pin(x, s) for x, s in zip(args, ins, strict=True)]
        return [pin(y, s) for y, s in zip(as_function(jaxpr)(*pinned), outs, strict=True)]

    types = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in in_avals(jaxpr)]
    return jax.make_jaxpr(f)(*types)


def is_inlined(params: dict[str, Any]) -> bool:
    """Whether JAX itself writes a call out where it is made."""
    return params["inline"] is True or getattr(params["inline"], "name", "") == "JAX_EARLY"


def bind_jit(
    program: Program, args: Sequence[Value], params: dict[str, Any], donated: Sequence[bool] | None = None
) -> list[Value]:
    """Run a program as a call like the one of these parameters, without tracing it again."""
    given = (*([False] * len(program.consts)), *(donated or [False] * len(args)))
    args, n = [*program.consts, *args], len(program.outvars)
    new = dict(params, jaxpr=program.closed, donated_invars=given, keep_unused=False)
    new |= dict(in_shardings=(sharding_impls.UNSPECIFIED,) * len(args), in_layouts=(None,) * len(args))
    new |= dict(out_shardings=(sharding_impls.UNSPECIFIED,) * n, out_layouts=(None,) * n)
    try:
        return list(primitives.jit_p.bind(*args, **new))
    except api_util.InternalFloatingPointError as error:  # as `jax.debug_nans` or `debug_infs` asks
        run(program, args[len(program.consts) :], _Checked())
        raise FloatingPointError(
            f"invalid value ({error.ty}) encountered in the compiled {params['name']}, and in none of its operations "
            "where they run one by one."
        ) from None


class _Checked(Visitor):
    """Runs what is compiled operation by operation, so that the one that makes an invalid value says so."""

    enters = CALLS

    def __init__(self) -> None:
        self.debugged = config.debug_nans.value, config.debug_infs.value

    def equation(self, eqn: JaxprEqn, args: list[Value]) -> Sequence[Value]:
        with jax.debug_nans(self.debugged[0]), jax.debug_infs(self.debugged[1]):
            return bind_eqn(eqn, args)


def with_outputs_checked(name: str, run: Callable[[], tuple[Value, PyTree, Sequence[bool]]]) -> tuple[Any, Any, Any]:
    """Run what returns its outputs first: `jax.debug_infs` minds these, and not what is saved beside them.

    A maximum begins from -inf and may save it, which is no fault of a program whose outputs are finite.
    """
    if not config.debug_infs.value:
        return run()
    found = FloatingPointError(f"invalid value (inf) encountered in {name}")
    try:
        outs, *rest = run()
    except FloatingPointError as error:
        found = error
        with jax.debug_infs(False):  # JAX will not look at what it has compiled so, so that we do
            outs, *rest = run()
    if any(map(_has_inf, outs)):
        raise found
    return outs, *rest  # type: ignore[return-value]


def _has_inf(x: Value) -> bool:
    if isinstance(x, core.Tracer) or is_high(type_of(x)) or not jnp.issubdtype(x.dtype, jnp.inexact):
        return False
    return bool(jnp.any(jnp.isinf(x)))


def bind_call(program: Program, args: Sequence[Value]) -> list[Value]:
    """Run a program as a call, as if it were a jitted function, without tracing it again."""
    with jax.disable_jit(False):  # which would leave no call there
        (like,) = jax.make_jaxpr(jax.jit(lambda x: [x]))(0).eqns
    return bind_jit(program, args, dict(like.params, name=program.closed.jaxpr.debug_info.func_name))


def bind_compute_on(
    program: Program, args: Sequence[Value], params: dict[str, Any], outs: Sequence[Any] = ()
) -> list[Value]:
    """Run a program on the unit that this `compute_on` names.

    Its first outputs go to the memories `outs`, and the others stay in that of their type.
    """
    memory = lambda aval: getattr(aval, "memory_space", None)
    here = lambda x, v: x if memory(type_of(x)) == memory(v.aval) else to_space(x, v.aval.memory_space)
    args = [*program.consts, *map(here, args, program.invars)]
    spaces = (*outs, *(memory(v.aval) for v in program.outvars[len(outs) :]))
    return list(compute_on_p.bind(*args, **dict(params, jaxpr=program.closed, out_memory_spaces=spaces)))


def bind_with_metadata(program: Program, args: Sequence[Any], params: dict[str, Any], back: bool = False) -> list[Any]:
    """Run a program as a call that tells the compiler what the user gave for it, or for the way back."""
    new = dict(params, jaxpr=program.closed)
    if back and params.get("ad_metadata", "same") != "same":
        new |= dict(xla_metadata=params["ad_metadata"], ad_metadata="same")
    return list(xla_metadata_call_p.bind(*program.consts, *args, **new))


@weakref_cache
def fused_body(jaxpr: AnyJaxpr) -> AnyJaxpr:
    """The program of a fused kernel with its values in the device's memory: as they are, constants go with none."""
    types = [t.update(memory_space=core.MemorySpace.Device) for t in in_avals(jaxpr)]
    return close(jax.make_jaxpr(as_function(jaxpr))(*types))


def bind_fused(
    program: Program, args: Sequence[Value], params: dict[str, Any], outs: Sequence[Any] = ()
) -> list[Value]:
    """Run a program as one kernel (`jax.experimental.fused`).

    Its first outputs go to the memories `outs`, and the others to that of the device.
    """
    spaces = (*outs, *(core.MemorySpace.Device for _ in program.outvars[len(outs) :]))
    return list(fused_p.bind(*program.consts, *args, **dict(params, jaxpr=program.closed, out_spaces=spaces)))


def is_planned(policy: Any) -> bool:
    """Tell whether our own plan placed a `jax.checkpoint` region, see `remat/regions.py`, and not the user."""
    return hasattr(policy, "choose")


def is_saved(policy: Callable[..., object] | None, eqn: JaxprEqn) -> bool:
    """Whether a `jax.checkpoint` policy keeps the results of this equation."""
    if policy is None:
        return False
    case = policy(eqn.primitive, *(v.aval for v in eqn.invars), **eqn.params)
    return case if isinstance(case, bool) else not isinstance(case, type(partial_eval.Recompute))


def offload_of(policy: Callable[..., object] | None, eqn: JaxprEqn) -> Offload | None:
    """Where a `jax.checkpoint` policy sends the results of this equation while they wait; None if they stay."""
    case = policy and policy(eqn.primitive, *(v.aval for v in eqn.invars), **eqn.params)
    if not isinstance(case, partial_eval.Offloadable):
        return None
    return Offload(*(core.mem_kind_to_space(kind) for kind in (case.dst, case.src)))


def bind_scan(
    body: Program,
    consts: Sequence[Value],
    init: Sequence[Value],
    xs: Sequence[Value],
    params: dict[str, Any],
    reverse: bool,
) -> tuple[list[Value], list[Value]]:
    """Run `body(consts, carry, x) -> carry, y` as `jax.lax.scan` would, without tracing it again."""
    consts = [*body.consts, *consts]
    n_carry = len(init)
    new = _scan_params(body, len(consts), n_carry, len(xs), dict(params, reverse=reverse))
    outs = primitives.scan_p.bind(*consts, *init, *xs, **new)
    return list(outs[:n_carry]), list(outs[n_carry:])


def bind_while(
    condition: Program,
    body: Program,
    of_condition: Sequence[Value],
    of_body: Sequence[Value],
    init: Sequence[Value],
) -> list[Value]:
    """Run `condition(*of_condition, *carry)` and `body(*of_body, *carry)` as `jax.lax.while_loop` would."""
    of_condition, of_body = [*condition.consts, *of_condition], [*body.consts, *of_body]
    params: dict[str, Any] = dict(cond_jaxpr=condition.closed, body_jaxpr=body.closed)
    params |= dict(cond_nconsts=len(of_condition), body_nconsts=len(of_body))
    return list(primitives.while_p.bind(*of_condition, *of_body, *init, **params))


def _scan_params(body: Program, n_consts: int, n_carry: int, n_xs: int, params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a scan with another body."""
    new = dict(params, jaxpr=body.closed)
    if "num_consts" in params:
        return new | {"num_consts": n_consts, "num_carry": n_carry}
    from jax._src import flattree as ft  # type: ignore[attr-defined]

    n_ys = len(body.outvars) - n_carry
    new["ft_in"] = ft.pack((ft.nones(n_consts), ft.nones(n_carry), ft.nones(n_xs)))
    new["ft_out"] = ft.pack((ft.nones(n_carry), ft.nones(n_ys).filter_with_mask([True] * n_ys)))
    return new


def loops_apart(
    program: Program, saved: Callable[[JaxprEqn], object], offload: Callable[[JaxprEqn], Offload | None]
) -> tuple[Program, Program, list[Var]]:
    """A program whose loops stack what is to be saved in them; the same, given those stacks; and the stacks.

    Both have the variables of the program. The second one's further inputs are the stacks, and its loops make nothing
    again that is in them. `offload` says where the results of an equation wait.
    """
    pairs = [_loop_apart(eqn, saved, offload) for eqn in program.eqns]
    stacks = [v for _, _, more in pairs for v in more]
    first, again = (list(eqns) for eqns in zip(*(pair[:2] for pair in pairs), strict=True)) if pairs else ([], [])
    jaxpr = program.jaxpr
    given = jaxpr.replace(invars=[*jaxpr.invars, *stacks], eqns=again)
    return Program(jaxpr.replace(eqns=first), program.consts), Program(given, program.consts), stacks


def _loop_apart(
    eqn: JaxprEqn, saved: Callable[[JaxprEqn], object], offload: Callable[[JaxprEqn], Offload | None]
) -> tuple[JaxprEqn, JaxprEqn, list[Var]]:
    """An equation, and the same given what was saved in it: two loops, if it is a loop in which something is."""
    if (
        eqn.primitive is not primitives.scan_p
        or saved(eqn)
        or eqn.effects
        or getattr(eqn.params["jaxpr"], "consts", ())
    ):
        return eqn, eqn, []
    closed, n_consts, n_carry = scan_parts(eqn.params)
    first, again, values = loops_apart(Program(closed.jaxpr), saved, offload)
    made = {v: offload(e) for e in first.eqns if saved(e) for v in e.outvars if not isinstance(v, core.DropVar)}
    values = list(dict.fromkeys([*values, *made]))
    if not values:
        return eqn, eqn, []
    n_xs, invars = len(eqn.invars) - n_consts - n_carry, first.invars
    outs, inputs = first.outvars, [*invars, *values]
    storage = {v: how for v, how in made.items() if how is not None}
    first = stored(first.with_outputs([*outs, *values]), len(outs), storage)
    again = fetched(storage, inputs, again.between(inputs, outs))
    kept: Iterable[Aval] = (v.aval for v in first.outvars[len(outs) :])
    stacks = [core.Var(t.update(shape=(eqn.params["length"], *t.shape))) for t in kept]
    how = lambda body, more: _scan_params(body, n_consts, n_carry, n_xs + more, eqn.params)
    return (
        eqn.replace(outvars=[*eqn.outvars, *stacks], params=how(first, 0)),
        eqn.replace(invars=[*eqn.invars, *stacks], params=how(again, len(stacks))),
        stacks,
    )


def stored(program: Program, start: int, storage: Mapping[Any, Storage]) -> Program:
    """The program, with its outputs from here on as they are stored; `storage` says which are not left as they are."""
    if not storage:
        return program
    outvars = [*([None] * start), *program.outvars[start:]]
    change = lambda *xs: [storage[v].store(x) if v in storage else x for v, x in zip(outvars, xs, strict=True)]
    return program.then(trace(change, [v.aval for v in program.outvars], "store"), range(len(outvars)))


def fetched(storage: Mapping[Var, Storage], inputs: Sequence[Var], program: Program) -> Program:
    """The program of these inputs, some of which come as they are stored."""
    if not storage:
        return program
    change = lambda *xs: [storage[v].fetch(x) if v in storage else x for v, x in zip(inputs, xs, strict=True)]
    types = [storage[v].stored(v.aval) if v in storage else v.aval for v in inputs]
    return trace(change, types, "fetch").then(program, range(len(inputs)))


@weakref_cache
def marked_body(jaxpr: AnyJaxpr, which: tuple[bool, ...]) -> ClosedJaxpr:
    """The program with one more input after each of `which`, the feedback weight that the input is marked with."""

    def marked(*args: Value) -> list[Value]:
        rest = iter(args)
        inputs = [(next(rest), next(rest) if w else None) for w in which]
        return as_function(jaxpr)(*(x if m is None else feedback_p.bind(x, m) for x, m in inputs))

    inputs = zip(in_avals(jaxpr), which, strict=True)
    types = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type, sharding=sharding_of(a), manual_axis_type=a.mat)
        for a, w in inputs
        for _ in range(2 if w else 1)
    ]
    return jax.make_jaxpr(marked)(*types)


def scan_of_marked(params: dict[str, Any], which: Sequence[bool]) -> dict[str, Any]:
    """The parameters of a scan with one more operand after each of `which`, its feedback weight."""
    body, n_consts, n_carry = scan_parts(params)
    new = dict(params, jaxpr=marked_body(body, tuple(which)))
    more = sum(which[:n_consts])
    if "num_consts" in params:
        return new | {"num_consts": n_consts + more}
    from jax._src import flattree as ft  # type: ignore[attr-defined]

    n_xs = len(which) - n_consts - n_carry + sum(which[n_consts + n_carry :])
    return new | {"ft_in": ft.pack((ft.nones(n_consts + more), ft.nones(n_carry), ft.nones(n_xs)))}


def while_of_marked(params: dict[str, Any], which: Sequence[bool]) -> dict[str, Any]:
    """The parameters of a while loop with a feedback weight as one more operand for each of `which`, its constants."""
    which = tuple(which[params["cond_nconsts"] :])
    body = marked_body(params["body_jaxpr"], which)
    return dict(params, body_jaxpr=body, body_nconsts=params["body_nconsts"] + sum(which))


def cond_of_marked(params: dict[str, Any], which: Sequence[bool]) -> dict[str, Any]:
    """The parameters of a cond with one more operand after each of `which`, its feedback weight."""
    branches = tuple(marked_body(branch, tuple(which[1:])) for branch in params["branches"])
    return dict(params, branches=branches)


def remat_of_marked(params: dict[str, Any], which: Sequence[bool]) -> dict[str, Any]:
    """The parameters of a `jax.checkpoint` region with one more operand after each of `which`, its feedback weight."""
    waits = params["prevent_cse"]
    if isinstance(waits, tuple):
        waits = tuple(x for w, marked in zip(waits, which, strict=True) for x in [w] * (2 if marked else 1))
    return dict(params, jaxpr=marked_body(params["jaxpr"], tuple(which)), prevent_cse=waits)


def bind_cond(
    index: Value, branches: Sequence[Program], operands: Sequence[Value], params: dict[str, Any]
) -> list[Value]:
    """Run one of these programs, by index, as `jax.lax.switch` would."""
    captured = [c for b in branches for c in b.consts]
    jaxprs, seen = [], 0
    for b in branches:
        first, seen = seen, seen + len(b.consts)
        if captured:  # every branch takes all branches' constants and reads its own
            own = slice(first, seen)
            take = lambda *xs, b=b, own=own: core.eval_jaxpr(b.jaxpr, (), *xs[own], *xs[len(captured) :])
            b = trace(take, [core.typeof(x) for x in (*captured, *operands)])
        jaxprs.append(b.closed)
    return list(primitives.cond_p.bind(index, *captured, *operands, **dict(params, branches=tuple(jaxprs))))


def cond_sum(index: Value, branches: list[Value]) -> Value:
    """What JAX has for what differs by branch: one slot for each, of which that of the branch taken counts."""
    kind = getattr(conditionals, "CondSum", lambda *parts: parts)  # newer JAX
    return kind(index, branches)


def solve_parts(params: dict[str, Any]) -> tuple[Any, tuple[int, ...]]:
    """The programs of a `custom_linear_solve`, and how many constants each of the four has."""
    return params["jaxprs"], tuple(params["const_lengths"])


def transposed_solve(params: dict[str, Any], constants: Sequence[Value], ct: Sequence[Value]) -> list[Value]:
    """Solve the transposed system, with the user's transposed solve."""
    jaxprs, lengths = params["jaxprs"], params["const_lengths"]
    if jaxprs.transpose_solve is None:
        raise TypeError(
            "transpose_solve required: custom_linear_solve needs it, or symmetric=True, to be differentiated."
        )
    parts, start = [], 0
    for n in lengths:
        parts.append(constants[start : start + n])
        start += n
    order = type(lengths)(*parts).transpose()
    new = dict(params, jaxprs=jaxprs.transpose(), const_lengths=lengths.transpose())
    return list(primitives.linear_solve_p.bind(*(c for part in order for c in part), *ct, **new))[: len(ct)]


def reducer(params: dict[str, Any]) -> Callable[..., list[Value]]:
    """The scalar program that a generic reduction combines elements with."""
    return as_function(params["jaxpr"])


def bind_device_put(ct: Value, params: dict[str, Any], i: int) -> Value:
    """Send a cotangent back to where its primal came from."""
    back = dict(params, devices=[params["srcs"][i]], srcs=[params["devices"][i]])
    back["copy_semantics"] = [type(params["copy_semantics"][i]).ALWAYS_COPY]
    return primitives.device_put_p.bind(ct, **{k: tuple(v) for k, v in back.items()})[0]


def bind_remat(program: Program, args: Sequence[Any], params: dict[str, Any], differentiated: bool) -> list[Any]:
    """Run a program inside `jax.checkpoint`'s primitive, so that XLA does not undo the recomputation.

    That primitive neither takes nor returns values of types that somebody defines. A program with some runs by itself,
    behind a barrier where it is run again. If `prevent_cse` says which operands wait at the barrier, it is of the first
    ones; the others wait, and constants do not.
    """
    waits = params["prevent_cse"]
    if isinstance(waits, tuple):
        waits = (*[False] * len(program.consts), *waits[: len(args)], *[True] * (len(args) - len(waits)))
    if _meets_high(program):
        return program(*(barrier_p.bind(*args) if differentiated and waits else args))
    new = dict(params, jaxpr=program.jaxpr, differentiated=differentiated, prevent_cse=waits)
    return list(primitives.remat_p.bind(*program.consts, *args, **new))


def _meets_high(program: Program) -> bool:
    return any(is_high(v.aval) for v in (*program.invars, *program.outvars))


def run_behind_barrier(program: Program, args: Sequence[Any]) -> list[Any]:
    """Run a program of which XLA finds nothing already computed, when all of its arguments are there.

    XLA drops the barrier of `jax.checkpoint` on CPUs, and then finds that what is computed again was computed before.
    There the program is put into a branch that is always taken, which XLA cannot know: it looks at the arguments.
    """
    if _meets_high(program):
        return program(*barrier_p.bind(*args))
    floats = [x for x in args if jax.dtypes.issubdtype(x.dtype, np.floating) and x.size]
    if device_here().platform != "cpu" or not floats:
        return bind_remat(program, args, {"policy": None, "prevent_cse": True}, differentiated=True)
    first, last = (x[(0,) * x.ndim].astype(np.float32) for x in (floats[0], floats[-1]))
    always = (first + last <= jnp.inf) | jnp.isnan(first + last)
    otherwise = lambda *_: [zeros(v.aval) for v in program.outvars]
    return list(lax.cond(always, program, otherwise, *args))


def custom_bwd(
    bwd: WrappedFun,
    res: Sequence[Value],
    cts: Sequence[Value],
    out_types: Sequence[Aval],
    in_types: Sequence[Aval],
    symbolic_zeros: bool,
) -> tuple[list[Value], dict[str, PyTree] | None]:
    """Call a `custom_vjp` function's own backward rule: its cotangents, and its logs. Those that are None are zero."""
    zero = ad_util.SymbolicZero if symbolic_zeros else zeros
    full = [zero(t.to_tangent_aval()) if c is None else c for c, t in zip(cts, out_types, strict=True)]
    out = bwd.call_wrapped(*res, *full)
    out, logs = out if hasattr(jax.custom_vjp, "defvjp_with_logs") else (out, None)
    out = [as_cotangent(c, t) for c, t in zip(out, in_types, strict=True)]
    return [None if c is None or c.dtype == float0 else c for c in out], logs


def checks_bwd() -> bool:
    """Whether the types of what a person's backward rule returns are checked: `jax_disable_bwd_checks` is off."""
    flag = getattr(config, "disable_bwd_checks", None)
    return flag is None or not flag.value


def operands_before(fwd: Any) -> int:
    """How many operands `checkify` has put before those of a `custom_vjp` function: its errors.

    The residuals that are arguments are counted without them.
    """
    by_checkify = getattr(fwd.f, "__module__", None) == checkify.__name__
    return inspect.getclosurevars(fwd.f).nonlocals.get("num_errs", 0) if by_checkify else 0


def inlined(program: Program) -> Program:
    """The same with the compiled calls inside written out; itself where there are none."""
    if not any(inside_of(eqn).kind is Kind.JIT for eqn in program.eqns):
        return program
    types = [v.aval for v in program.invars]
    return trace(lambda *args: run(program, args, _Inlining()), types, "inlined")


class _Inlining(Visitor):
    """Goes into compiled calls, with the shardings they were given."""

    enters = Kind.JIT

    def opens(self, eqn: JaxprEqn) -> Inside | None:
        inside = super().opens(eqn)
        return inside and inside._replace(programs=(constrained(eqn.params),))
