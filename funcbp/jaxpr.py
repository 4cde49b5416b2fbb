"""The one door to JAX's unstable side.

Everything that reads `jax._src`, `jax.extend`, or the parameters of a higher-order primitive lives here, so that the
two JAX worlds funcbp supports (0.10.2 and the newest) differ in this file and in `record.py` only. It probes for the
shape of things, never for a version string.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax._src import (
    ad_util,
    core,
    linear_util,
    sharding_impls,
    source_info_util,
    util,
)
from jax._src.interpreters import batching, mlir, partial_eval
from jax._src.interpreters.ad import primitive_jvps
from jax._src.lax import lax as lax_internal
from jax.extend.core import Primitive, primitives

Aval = Any
weakref_cache = util.weakref_lru_cache
float0 = jax.dtypes.float0
_PLACES = """
    lax.lax lax.slicing lax.special lax.linalg lax.fft lax.ann lax.windowed_reductions lax.eval_jaxpr
    lax.control_flow.conditionals lax.control_flow.solves pjit dispatch custom_batching custom_derivatives random.core
    random.prng interpreters.partial_eval
""".split()


def primitive(name: str) -> Any:
    """The primitive of this name (`tanh_p`), or None where this JAX has no such primitive."""
    if hasattr(primitives, name):
        return getattr(primitives, name)
    modules = (f"jax._src.{place}" for place in _PLACES)
    found = (importlib.import_module(m) for m in modules if importlib.util.find_spec(m))
    return next((getattr(m, name) for m in found if hasattr(m, name)), None)


type_of = core.typeof


def public_names() -> list[str]:
    """The names of JAX's public primitives."""
    return [getattr(primitives, name).name for name in dir(primitives) if name.endswith("_p")]


def zeros(aval: Aval) -> jax.Array:
    """An array of zeros of this type: shape, dtype, sharding."""
    return ad_util.zeros_like_aval(aval)


def strong(aval: Aval) -> Aval:
    """The same type without weakness: what a cotangent of a value of this type has."""
    return aval.update(weak_type=False) if getattr(aval, "weak_type", False) else aval


def row(aval: Aval) -> Aval:
    """The type of what is at one index of the first axis."""
    return core.mapped_aval(aval.shape[0], 0, aval)


def to_strong(x: Any) -> Any:
    """The same numbers, not weakly typed."""
    return lax.convert_element_type(x, x.dtype) if core.typeof(x).weak_type else x


def like(x: Any, aval: Aval) -> Any:
    """The same numbers, weakly typed if a value of this type is."""
    weak = aval.weak_type
    return x if core.typeof(x).weak_type == weak else lax_internal._convert_element_type(x, x.dtype, weak_type=weak)


def packs(aval: Aval) -> bool:
    """Whether values of this type are kept as bits: booleans whose last axis is a whole number of bytes."""
    return aval.dtype == bool and bool(aval.shape) and aval.shape[-1] % 8 == 0 and sharding_of(aval) is None


def packed(aval: Aval) -> Aval:
    """The type of such values as bits."""
    return aval.update(shape=(*aval.shape[:-1], aval.shape[-1] // 8), dtype=np.dtype(np.uint8), weak_type=False)


def pack(x: Any) -> Any:
    """Booleans as bytes, eight neighbours along the last axis in one."""
    eights = x.reshape(*x.shape[:-1], x.shape[-1] // 8, 8).astype(np.uint8)
    return lax.shift_left(eights, lax.broadcasted_iota(np.uint8, eights.shape, x.ndim)).sum(-1, dtype=np.uint8)


def unpack(x: Any) -> Any:
    """The booleans that were packed."""
    eights = lax.broadcast_in_dim(x, (*x.shape, 8), range(x.ndim))
    shifted = lax.shift_right_logical(eights, lax.broadcasted_iota(np.uint8, eights.shape, x.ndim))
    return (shifted & np.uint8(1)).astype(bool).reshape(*x.shape[:-1], 8 * x.shape[-1])


def sharding_of(x: Any) -> Any:
    """The sharding that a value of this type has over an explicit mesh, or None where no mesh is set."""
    sharding = getattr(aval_of(x), "sharding", None)
    return None if sharding is None or sharding.mesh.empty else sharding


def permuted_sharding(x: Any, axes: Sequence[int]) -> Any:
    """The sharding of x with its axes in another order, or None where no mesh is set."""
    sharding = sharding_of(x)
    if sharding is None:
        return None
    return sharding.update(spec=jax.P(*(sharding.spec[i] for i in axes)))


def aval_of(x: Any) -> Aval:
    return x if isinstance(x, core.AbstractValue) else core.typeof(x)


def dilated(shape: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Sizes after `dilation - 1` holes are put between neighbours."""
    return [0 if n == 0 else 1 + d * (n - 1) for n, d in zip(shape, dilation, strict=True)]


_CORE = """
    jaxpr.py record.py backward.py plan.py policies.py loops.py straight.py mirrors.py cotangents.py credit.py
    examples.py pairs.py rules ops inspection testing
"""
for _core in _CORE.split():
    source_info_util.register_exclusion(os.path.join(os.path.dirname(__file__), _core))


def current_source() -> Any:
    """Where in the user's program the equation at hand was written."""
    return source_info_util.current()


def written_at(source: Any, rule: str) -> Any:
    """A context in which equations bear the line and the name scope of this place, transposed, and the rule's name."""
    stack = source.name_stack.transform("transpose").extend(rule)
    return source_info_util.user_context(source.traceback, name_stack=stack)


def restored(source: Any) -> Any:
    """A context in which equations bear this line and name scope."""
    return source_info_util.user_context(source.traceback, name_stack=source.name_stack)


def user_line(source: Any) -> str:
    """`file:line (function)` of the user's line, as JAX's own messages write it."""
    return source_info_util.summarize(source)


def own_name(fun: Any) -> str:
    """The name of the function behind a `custom_jvp` call if it is one of JAX's own, or nothing."""
    name, _, place = (fun.debug_info.func_src_info or "").partition(" at ")
    return name if place.startswith(os.path.dirname(jax.__file__)) else ""


def scope(source: Any) -> str:
    """The name scope of an equation."""
    return str(source.name_stack)


def user_place(source: Any) -> tuple[str, int]:
    """The file and the line of the user's program, or ("", 0)."""
    found = re.match(r"(.*?):(\d+)", user_line(source))
    return (found[1], int(found[2])) if found else ("", 0)


def called_through(source: Any) -> set[str]:
    """The names of the functions, JAX's own included, that an equation was written in."""
    frames = {frame.function_name for frame in source.traceback.frames} if source.traceback else set()
    return frames | set(re.findall(r"\w+", scope(source)))


# --- the feedback mark ------------------------------------------------------------------------------------------------


feedback_p = Primitive("feedback")  # for JAX the identity of its first operand; for our recording, see `mirrors.py`
feedback_p.def_impl(lambda w, b: w)
feedback_p.def_abstract_eval(lambda w, b: w)
mlir.register_lowering(feedback_p, lambda ctx, w, b: [w])
primitive_jvps[feedback_p] = lambda primals, tangents: (feedback_p.bind(*primals), tangents[0])


def _feedback_batched(args: Sequence[Any], dims: Sequence[int | None]) -> tuple[Any, int]:
    (size,) = {x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None}
    front = [batching.bdim_at_front(x, d, size) for x, d in zip(args, dims, strict=True)]
    return feedback_p.bind(*front), 0


batching.primitive_batchers[feedback_p] = _feedback_batched


# --- programs ---------------------------------------------------------------------------------------------------------


class Program:
    """A traced function: inputs, equations, outputs, and the constants it closed over.

    A program is a value: it can be pruned, cut in two and joined with another one without tracing anything again.
    """

    def __init__(self, jaxpr: Any, consts: Sequence[Any] = ()):
        self.jaxpr, self.consts = jaxpr, tuple(consts)

    @functools.cached_property
    def jitted(self) -> Callable[..., list[Any]]:
        return jax.jit(self.__call__)

    def __call__(self, *args: Any) -> list[Any]:
        return core.eval_jaxpr(self.jaxpr, (), *self.consts, *args)

    @property
    def invars(self) -> list[Any]:
        return list(self.jaxpr.invars[len(self.consts) :])

    @property
    def constvars(self) -> list[Any]:
        return list(self.jaxpr.invars[: len(self.consts)])

    @property
    def outvars(self) -> list[Any]:
        return list(self.jaxpr.outvars)

    @property
    def eqns(self) -> list[Any]:
        return list(self.jaxpr.eqns)

    def with_outputs(self, outvars: Sequence[Any]) -> Program:
        """The same inputs and equations with other outputs (any values of the program)."""
        return Program(_replace(self.jaxpr, self.jaxpr.invars, outvars, self.jaxpr.eqns), self.consts)

    def between(self, sources: Sequence[Any], targets: Sequence[Any]) -> Program:
        """The part of the program that computes `targets` from `sources`, and nothing else.

        Args:
            sources: variables of this program; they become the inputs, in this order.
            targets: variables of this program (or literals); they become the outputs.
        """
        given = set(sources)
        eqns = []
        wanted = {v for v in targets if not is_literal(v)} - given
        for eqn in reversed(self.jaxpr.eqns):
            if any(v in wanted for v in eqn.outvars):
                eqns.append(eqn)
                wanted |= {v for v in eqn.invars if not is_literal(v)} - given
        missing = [v for v in self.invars if v in wanted]
        assert not missing, f"the targets also need the inputs {missing}"
        new = _replace(self.jaxpr, [*self.constvars, *sources], targets, eqns[::-1])
        return Program(new, self.consts)

    def then(self, other: Program, wiring: Sequence[int | None]) -> Program:
        """First this program, then `other`: input i of `other` is output `wiring[i]` of this one, or a new input."""
        substitute = {}
        fresh = []
        for var, source in zip(other.invars, wiring, strict=True):
            if source is None:
                fresh.append(var)
            else:
                substitute[var] = self.outvars[source]
        look = lambda v: v if is_literal(v) else substitute.get(v, v)
        eqns = [e.replace(invars=[look(v) for v in e.invars]) for e in other.jaxpr.eqns]
        jaxpr = _replace(
            self.jaxpr,
            [*self.constvars, *other.constvars, *self.invars, *fresh],
            [look(v) for v in other.outvars],
            [*self.jaxpr.eqns, *eqns],
        )
        return Program(jaxpr, (*self.consts, *other.consts))

    def pruned(self, keep_inputs: bool | Sequence[bool] = False) -> tuple[Program, list[bool]]:
        """Without the equations and inputs that no output needs; and which inputs are left."""
        n = len(self.consts)
        keep = [keep_inputs] * len(self.invars) if isinstance(keep_inputs, bool) else list(keep_inputs)
        jaxpr, used = partial_eval.dce_jaxpr(self.jaxpr, [True] * len(self.jaxpr.outvars), [False] * n + keep)
        consts = [c for c, u in zip(self.consts, used[:n], strict=True) if u]
        return Program(jaxpr, consts), list(used[n:])

    def reordered(self, order: Sequence[int]) -> Program:
        """The same program, its inputs in another order: input i is what was input `order[i]`."""
        invars = self.invars
        jaxpr = self.jaxpr
        new = [*self.constvars, *(invars[i] for i in order)]
        return Program(_replace(jaxpr, new, jaxpr.outvars, jaxpr.eqns), self.consts)

    def inlined(self) -> Program:
        """The same with the compiled calls inside written out."""
        return trace(lambda *args: _inline(self.jaxpr, (*self.consts, *args)), [v.aval for v in self.invars], "inlined")

    @functools.cached_property
    def closed(self) -> Any:
        """A closed jaxpr whose first inputs are the constants. One object, so that it is compiled once."""
        return partial_eval.close_jaxpr(self.jaxpr)


def _replace(jaxpr: Any, invars: Sequence[Any], outvars: Sequence[Any], eqns: Sequence[Any]) -> Any:
    effects = core.join_effects(*(e.effects for e in eqns)) if jaxpr.effects else jaxpr.effects
    return jaxpr.replace(invars=list(invars), outvars=list(outvars), eqns=list(eqns), effects=effects)


def run_opened(program: Program, args: Sequence[Any]) -> list[Any]:
    """Run a program, and the compiled calls in it equation by equation, but for those that are cheap."""

    def run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        read = lambda v: v.val if is_literal(v) else env[v]
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "jit" and not is_cheap(eqn):
                inside = eqn.params["jaxpr"]
                outs = run(inside.jaxpr, inside.consts, [read(v) for v in eqn.invars])
            else:
                inputs = list(dict.fromkeys(v for v in eqn.invars if not is_literal(v)))
                outs = core.eval_jaxpr(_replace(jaxpr, inputs, eqn.outvars, [eqn]), (), *(env[v] for v in inputs))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    return run(program.jaxpr, (), [*program.consts, *args])


def part(program: Program, start: int, stop: int, inputs: Sequence[Any], outputs: Sequence[Any]) -> Program:
    """Equations `start` to `stop` of a program, as a program without constants."""
    return Program(_replace(program.jaxpr, inputs, outputs, program.jaxpr.eqns[start:stop]))


def signature(program: Program, i: int) -> Any:
    """What equations of a program share that do the same to values of the same types, derivatives included."""
    eqn = program.jaxpr.eqns[i]
    params = eqn.params
    if eqn.primitive.name == "custom_jvp_call":  # its derivative, written out
        inputs = [v for v in eqn.invars if not is_literal(v)]
        alone = part(program, i, i + 1, inputs, eqn.outvars)
        types = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in inputs]
        inexact = all(jax.dtypes.issubdtype(t.dtype, np.inexact) for t in types)
        forward = jax.make_jaxpr(lambda xs, ts: jax.jvp(alone.__call__, xs, ts))
        kind: Any = str(forward(tuple(types), tuple(types))) if inexact else id(eqn)
    elif eqn.primitive.name == "custom_vjp_call":
        kind = str(params["call_jaxpr"]), id(params["bwd"].f), params["symbolic_zeros"]
    else:
        kind = str(sorted(params.items(), key=lambda item: item[0]))
    return eqn.primitive.name, kind, tuple(str(v.aval) for v in (*eqn.invars, *eqn.outvars))


def trace(f: Callable[..., Sequence[Any]], avals: Sequence[Aval], name: str = "funcbp") -> Program:
    """Trace `f`, a function from arrays to a flat list of arrays, on inputs of these types."""
    debug = core.DebugInfo(name, f"{name} at funcbp", None, None)
    jaxpr, _, consts = partial_eval.trace_to_jaxpr_dynamic(linear_util.wrap_init(f, debug_info=debug), list(avals))
    return Program(partial_eval.convert_constvars_jaxpr(jaxpr), consts)


def _inline(jaxpr: Any, args: Sequence[Any]) -> list[Any]:
    """Run a jaxpr that has no constants apart, and the bodies of the `jit` equations in it in their places."""
    env = dict(zip(jaxpr.invars, args, strict=True))
    read = lambda v: v.val if is_literal(v) else env[v]
    for eqn in jaxpr.eqns:
        ins = list(map(read, eqn.invars))
        if eqn.primitive is primitives.jit_p:
            body = trace(as_function(constrained(eqn.params)), [v.aval for v in eqn.invars])
            outs = _inline(body.jaxpr, (*body.consts, *ins))
        else:
            outs = eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(eqn.params))
        env.update(zip(eqn.outvars, outs if eqn.primitive.multiple_results else [outs], strict=True))
    return list(map(read, jaxpr.outvars))


def is_literal(v: Any) -> bool:
    return isinstance(v, core.Literal)


def as_function(jaxpr: Any) -> Callable[..., list[Any]]:
    """The function a (closed or open) jaxpr stands for."""
    closed = _close(jaxpr)
    return lambda *args: _run(closed, args)


def _run(closed: Any, args: Sequence[Any]) -> list[Any]:
    """Run a program, each equation at the user's line it was written at.

    Programs that JAX's own functions are made of have no such line; they are at the line of the call.
    """
    call = source_info_util.current().traceback
    env: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    env.update(zip(closed.jaxpr.invars, args, strict=True))
    read = lambda v: v.val if is_literal(v) else env[v]
    knows_lines, around = _knows_lines(closed), source_info_util.current_name_stack()
    with jax.debug_nans(False):
        for eqn in closed.jaxpr.eqns:
            source = eqn.source_info
            traceback = source.traceback if knows_lines else call
            with source_info_util.user_context(traceback, name_stack=around + source.name_stack), eqn.ctx.manager:
                outs = eqn.primitive.bind(*map(read, eqn.invars), **eqn.primitive.get_bind_params(eqn.params))
            env.update(zip(eqn.outvars, outs if eqn.primitive.multiple_results else [outs], strict=True))
    return [read(v) for v in closed.jaxpr.outvars]


@weakref_cache
def _knows_lines(closed: Any) -> bool:
    return any(source_info_util.user_frame(eqn.source_info.traceback) is not None for eqn in closed.jaxpr.eqns)


def inside_call(params: dict[str, Any]) -> Any:
    """A context in which equations bear the name of the called function in their name scope, as in JAX's programs."""
    return source_info_util.extend_name_stack(f"jit({params['name']})" if params.get("name") else "call")


def path_name(path: Any) -> str:
    """The path of a leaf, written `dense_0/kernel`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def in_avals(jaxpr: Any) -> list[Aval]:
    return list(_close(jaxpr).in_avals)


def out_avals(jaxpr: Any) -> list[Aval]:
    return list(_close(jaxpr).out_avals)


def _close(jaxpr: Any) -> Any:
    return jaxpr if hasattr(jaxpr, "consts") else core.ClosedJaxpr(jaxpr, ())


def opened(jaxpr: Any) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """The inputs, equations and outputs of a program, to be run one by one, and (variable, value) of its constants."""
    closed = _close(jaxpr)
    inner = closed.jaxpr
    return (
        list(inner.invars),
        list(inner.eqns),
        list(inner.outvars),
        list(zip(inner.constvars, closed.consts, strict=True)),
    )


def bind_eqn(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """Run one equation on values."""
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


# --- higher-order primitives: the only readers of their parameters ----------------------------------------------------


def call_jaxpr(params: dict[str, Any]) -> Any:
    """The program inside a call: `jit`, `closed_call`, `composite`, `custom_vmap_call`."""
    return next(params[name] for name in ("jaxpr", "call_jaxpr", "call") if name in params)


def constrained(params: dict[str, Any]) -> Any:
    """The program inside a `jit`, with the shardings it was given for inputs and outputs as constraints."""
    shardings = (tuple(params["in_shardings"]), tuple(params["out_shardings"]))
    if all(isinstance(s, sharding_impls.UnspecifiedValue) for part in shardings for s in part):
        return params["jaxpr"]
    return _constrained(params["jaxpr"], *shardings)


@weakref_cache
def _constrained(jaxpr: Any, ins: tuple[Any, ...], outs: tuple[Any, ...]) -> Any:
    def pin(x: Any, s: Any) -> Any:
        return x if isinstance(s, sharding_impls.UnspecifiedValue) else lax.with_sharding_constraint(x, s)

    def f(*args: Any) -> list[Any]:
        pinned = [pin(x, s) for x, s in zip(args, ins, strict=True)]
        return [pin(y, s) for y, s in zip(as_function(jaxpr)(*pinned), outs, strict=True)]

    types = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in in_avals(jaxpr)]
    return jax.make_jaxpr(f)(*types)


def is_saved(policy: Any, eqn: Any) -> bool:
    """Whether a `jax.checkpoint` policy keeps the results of this equation."""
    if policy is None:
        return False
    case = policy(eqn.primitive, *(v.aval for v in eqn.invars), **eqn.params)
    return case if isinstance(case, bool) else not isinstance(case, type(partial_eval.Recompute))


CHEAP = frozenset(
    [
        "abs",
        "acos",
        "acosh",
        "add",
        "add_any",
        "and",
        "argmax",
        "argmin",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "bitcast_convert_type",
        "broadcast_in_dim",
        "cbrt",
        "ceil",
        "clamp",
        "complex",
        "concatenate",
        "conj",
        "convert_element_type",
        "copy",
        "cos",
        "cosh",
        "div",
        "eq",
        "erf",
        "erf_inv",
        "erfc",
        "exp",
        "exp2",
        "expm1",
        "feedback",
        "floor",
        "ge",
        "gt",
        "imag",
        "integer_pow",
        "iota",
        "is_finite",
        "le",
        "log",
        "log1p",
        "log2",
        "logistic",
        "lt",
        "max",
        "min",
        "mul",
        "name",
        "ne",
        "neg",
        "not",
        "one_minus_square",
        "or",
        "pad",
        "polynomial",
        "population_count",
        "pow",
        "real",
        "reduce_and",
        "reduce_max",
        "reduce_min",
        "reduce_or",
        "reduce_precision",
        "reduce_sum",
        "rem",
        "reshape",
        "rev",
        "round",
        "rsqrt",
        "select_n",
        "shift_left",
        "shift_right_arithmetic",
        "shift_right_logical",
        "sign",
        "sin",
        "sinh",
        "slice",
        "split",
        "sqrt",
        "square",
        "squeeze",
        "stack",
        "stop_gradient",
        "sub",
        "tan",
        "tanh",
        "tile",
        "transpose",
        "unstack",
        "xor",
    ]
)


# as good as new when computed again, but not cheap
REPEATABLE = CHEAP | frozenset(
    """
    approx_top_k argsort bessel_i0e bessel_i1e cholesky clz conv_general_dilated cumlogsumexp cummax cummin cumprod
    cumsum digamma dot_general dynamic_slice dynamic_update_slice eigh fft gather householder_product igamma igammac
    lgamma lu lu_pivots_to_permutation mul_add nextafter polygamma qr ragged_dot ragged_dot_general reduce
    reduce_prod reduce_window reduce_window_max reduce_window_min reduce_window_sum reduce_xor
    regularized_incomplete_beta scatter scatter_add scatter-add scatter_max scatter_min scatter_mul
    select_and_gather_add select_and_scatter_add sort svd top_k triangular_solve tridiagonal_solve
    """.split()
)


def inner(eqn: Any) -> list[Any]:
    """The equations of the programs inside an equation."""
    return [e for jaxpr in core.jaxprs_in_params(eqn.params) for e in jaxpr.eqns]


def is_cheap(eqn: Any) -> bool:
    """Whether it costs little to compute this equation again: elementwise, structural, or a plain reduction."""
    if eqn.effects:
        return False
    if eqn.primitive.name in ("jit", "custom_jvp_call"):
        return all(map(is_cheap, inner(eqn)))
    return eqn.primitive.name in CHEAP


def is_repeatable(eqn: Any) -> bool:
    """Whether this equation gives the same numbers when computed again: no draw, collective, callback, custom call."""
    if eqn.effects:
        return False
    if eqn.primitive.name in ("jit", "custom_jvp_call", "closed_call", "scan", "cond", "remat2", "checkpoint"):
        return all(map(is_repeatable, inner(eqn)))
    return eqn.primitive.name in REPEATABLE


def flops(eqn: Any) -> float:
    """About how many floating-point operations an equation takes: a contraction exactly, the rest by its elements."""
    ins, outs = [v.aval for v in eqn.invars], [v.aval for v in eqn.outvars]
    match eqn.primitive.name:
        case "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            return 2.0 * outs[0].size * math.prod(ins[0].shape[i] for i in contracted)
        case "conv_general_dilated":
            channels = ins[1].shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            return 2.0 * outs[0].size * ins[1].size / max(channels, 1)
        case "scan":
            return float(eqn.params["length"]) * sum(map(flops, inner(eqn)))
        case "cond":
            return max(sum(map(flops, branch.eqns)) for branch in cond_branches(eqn.params))
        case _:
            inside = inner(eqn)
            if inside:
                return float(sum(map(flops, inside)))
            return float(max((a.size for a in (*ins, *outs) if hasattr(a, "size")), default=0))


def scan_parts(params: dict[str, Any]) -> tuple[Any, int, int]:
    """The body of a scan, and how many of its inputs are constants and carries."""
    if "num_consts" in params:
        return params["jaxpr"], params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return params["jaxpr"], len(consts), len(carry)


def stacked_types(params: dict[str, Any]) -> list[Aval]:
    """The types of what a scan stacks."""
    body, _, n_carry = scan_parts(params)
    return [t.update(shape=(params["length"], *t.shape)) for t in out_avals(body)[n_carry:]]


def bind_scan(
    body: Program,
    consts: Sequence[Any],
    init: Sequence[Any],
    xs: Sequence[Any],
    params: dict[str, Any],
    reverse: bool,
) -> tuple[list[Any], list[Any]]:
    """Run `body(consts, carry, x) -> carry, y` as `jax.lax.scan` would, without tracing it again."""
    consts = [*body.consts, *consts]
    n_consts, n_carry = len(consts), len(init)
    new = dict(params, jaxpr=body.closed, reverse=reverse)
    if "num_consts" in params:
        new |= {"num_consts": n_consts, "num_carry": n_carry}
    else:
        from jax._src import flattree as ft  # type: ignore[attr-defined]

        n_ys = len(body.outvars) - n_carry
        new["ft_in"] = ft.pack((ft.nones(n_consts), ft.nones(n_carry), ft.nones(len(xs))))
        new["ft_out"] = ft.pack((ft.nones(n_carry), ft.nones(n_ys).filter_with_mask([True] * n_ys)))
    outs = primitives.scan_p.bind(*consts, *init, *xs, **new)
    return list(outs[:n_carry]), list(outs[n_carry:])


@weakref_cache
def _marked(jaxpr: Any, which: tuple[bool, ...]) -> Any:
    """The program with one more input after each of `which`, the mirror that the input is marked with."""

    def marked(*args: Any) -> list[Any]:
        rest = iter(args)
        inputs = [(next(rest), next(rest) if w else None) for w in which]
        return as_function(jaxpr)(*(x if m is None else feedback_p.bind(x, m) for x, m in inputs))

    inputs = zip(in_avals(jaxpr), which, strict=True)
    types = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type, sharding=sharding_of(a))
        for a, w in inputs
        for _ in range(2 if w else 1)
    ]
    return jax.make_jaxpr(marked)(*types)


def scan_of_marked(params: dict[str, Any], which: Sequence[bool]) -> dict[str, Any]:
    """The parameters of a scan with one more operand after each of `which`, its mirror."""
    body, n_consts, n_carry = scan_parts(params)
    new = dict(params, jaxpr=_marked(body, tuple(which)))
    more = sum(which[:n_consts])
    if "num_consts" in params:
        return new | {"num_consts": n_consts + more}
    from jax._src import flattree as ft  # type: ignore[attr-defined]

    n_xs = len(which) - n_consts - n_carry + sum(which[n_consts + n_carry :])
    return new | {"ft_in": ft.pack((ft.nones(n_consts + more), ft.nones(n_carry), ft.nones(n_xs)))}


def cond_of_marked(params: dict[str, Any], which: Sequence[bool]) -> dict[str, Any]:
    """The parameters of a cond with one more operand after each of `which`, its mirror."""
    branches = tuple(_marked(branch, tuple(which[1:])) for branch in params["branches"])
    return dict(params, branches=branches)


def remat_of_marked(params: dict[str, Any], which: Sequence[bool]) -> dict[str, Any]:
    """The parameters of a `jax.checkpoint` region with one more operand after each of `which`, its mirror."""
    return dict(params, jaxpr=_marked(params["jaxpr"], tuple(which)))


def cond_branches(params: dict[str, Any]) -> tuple[Any, ...]:
    return params["branches"]


def bind_cond(index: Any, branches: Sequence[Program], operands: Sequence[Any], params: dict[str, Any]) -> list[Any]:
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


def while_condition(params: dict[str, Any]) -> Any:
    return params["cond_jaxpr"]


def while_parts(params: dict[str, Any]) -> tuple[Any, int, int]:
    """The body of a while loop, and how many constants its condition and its body have."""
    return params["body_jaxpr"], params["cond_nconsts"], params["body_nconsts"]


def solve_parts(params: dict[str, Any]) -> tuple[Any, tuple[int, ...]]:
    """The programs of a `custom_linear_solve`, and how many constants each of the four has."""
    return params["jaxprs"], tuple(params["const_lengths"])


def transposed_solve(params: dict[str, Any], constants: Sequence[Any], ct: Sequence[Any]) -> list[Any]:
    """Solve the transposed system, with the user's transposed solve."""
    jaxprs, lengths = params["jaxprs"], params["const_lengths"]
    if jaxprs.transpose_solve is None:
        raise TypeError(
            "custom_linear_solve needs its argument transpose_solve (or symmetric=True) to be differentiated."
        )
    parts, start = [], 0
    for n in lengths:
        parts.append(constants[start : start + n])
        start += n
    order = type(lengths)(*parts).transpose()
    new = dict(params, jaxprs=jaxprs.transpose(), const_lengths=lengths.transpose())
    return list(primitives.linear_solve_p.bind(*(c for part in order for c in part), *ct, **new))[: len(ct)]


def reducer(params: dict[str, Any]) -> Any:
    """The scalar program that a generic reduction combines elements with."""
    return as_function(params["jaxpr"])


def bind_device_put(ct: Any, params: dict[str, Any], i: int) -> Any:
    """Send a cotangent back to where its primal came from."""
    back = dict(params, devices=[params["srcs"][i]], srcs=[params["devices"][i]])
    back["copy_semantics"] = [type(params["copy_semantics"][i]).ALWAYS_COPY]
    return primitives.device_put_p.bind(ct, **{k: tuple(v) for k, v in back.items()})[0]


def bind_remat(program: Program, args: Sequence[Any], params: dict[str, Any], differentiated: bool) -> list[Any]:
    """Run a program inside `jax.checkpoint`'s primitive, so that XLA does not undo the recomputation."""
    new = dict(params, jaxpr=program.jaxpr, differentiated=differentiated)
    return list(primitives.remat_p.bind(*program.consts, *args, **new))


def run_behind_barrier(program: Program, args: Sequence[Any]) -> list[Any]:
    """Run a program of which XLA finds nothing already computed, when all of its arguments are there.

    XLA drops the barrier of `jax.checkpoint` on CPUs, and then finds that what is computed again was computed before.
    There the program is put into a branch that is always taken, which XLA cannot know: it looks at the arguments.
    """
    floats = [x for x in args if jax.dtypes.issubdtype(x.dtype, np.floating) and x.size]
    if jax.default_backend() != "cpu" or not floats:
        return bind_remat(program, args, {"policy": None, "prevent_cse": True}, differentiated=True)
    first, last = (x[(0,) * x.ndim].astype(np.float32) for x in (floats[0], floats[-1]))
    always = (first + last <= jnp.inf) | jnp.isnan(first + last)
    otherwise = lambda *_: [zeros(v.aval) for v in program.outvars]
    return list(lax.cond(always, program, otherwise, *args))


def custom_bwd(
    bwd: Any, res: Sequence[Any], cts: Sequence[Any], types: Sequence[Aval], symbolic_zeros: bool
) -> list[Any]:
    """Call a `custom_vjp` function's own backward rule. Cotangents that are None are zero, in and out."""
    zero = ad_util.SymbolicZero if symbolic_zeros else zeros
    full = [zero(t.to_tangent_aval()) if c is None else c for c, t in zip(cts, types, strict=True)]
    out = bwd.call_wrapped(*res, *full)
    if isinstance(out, tuple) and len(out) == 2 and isinstance(out[0], list):
        out = out[0]  # newer JAX: the cotangents and the logs
    return [None if isinstance(c, (ad_util.Zero, ad_util.SymbolicZero)) or c.dtype == float0 else c for c in out]
