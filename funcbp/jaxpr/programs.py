"""Programs as values: traced, pruned, cut in two, and joined."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax._src import core, linear_util
from jax._src.core import Effect
from jax._src.effects import JaxprInputEffect
from jax._src.interpreters import partial_eval
from jax.extend.core import primitives
from jax.tree_util import PyTreeDef

from .types import AnyJaxpr, Atom, ClosedJaxpr, Jaxpr, JaxprEqn, Literal, PyTree, T, Value, Var, WrappedFun
from .values import Aval, aval_of

if TYPE_CHECKING:
    from typing_extensions import TypeIs


class Program:
    """A traced function: inputs, equations, outputs, and the constants it closed over.

    A program is a value: it can be pruned, cut in two and joined with another one without tracing anything again.
    """

    def __init__(self, jaxpr: Jaxpr, consts: Sequence[Value] = ()):
        self.jaxpr, self.consts = jaxpr, tuple(consts)

    @classmethod
    def of(cls, jaxpr: AnyJaxpr) -> Program:
        """The program that a jaxpr is, closed or without constants."""
        closed = close(jaxpr)
        return cls(partial_eval.convert_constvars_jaxpr(closed.jaxpr), closed.consts)

    def __call__(self, *args: Value) -> list[Value]:
        return core.eval_jaxpr(self.jaxpr, (), *self.consts, *args)

    @property
    def invars(self) -> list[Var]:
        return list(self.jaxpr.invars[len(self.consts) :])

    @property
    def constvars(self) -> list[Var]:
        return list(self.jaxpr.invars[: len(self.consts)])

    @property
    def outvars(self) -> list[Atom]:
        return list(self.jaxpr.outvars)

    @property
    def eqns(self) -> list[JaxprEqn]:
        return list(self.jaxpr.eqns)

    def with_outputs(self, outvars: Sequence[Atom]) -> Program:
        """The same inputs and equations with other outputs (any values of the program)."""
        return Program(_replace(self.jaxpr, self.jaxpr.invars, outvars, self.jaxpr.eqns), self.consts)

    def between(self, sources: Sequence[Var], targets: Sequence[Atom]) -> Program:
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

    def given(self, variables: Sequence[Any]) -> Program:
        """The same program, which is given some of its values, as its first inputs, and does not make them."""
        made = set(variables)
        eqns = [e for e in self.jaxpr.eqns if not e.outvars or not made.issuperset(e.outvars)]
        invars = [*self.constvars, *variables, *self.invars]
        return Program(_replace(self.jaxpr, invars, self.jaxpr.outvars, eqns), self.consts)

    def turned(self, reader: JaxprEqn, read: Var, order: Sequence[int], **params: Any) -> tuple[Program, Var]:
        """The same program, where one equation reads a value with its axes in this order, and so has these parameters.

        Returns:
            The program, and the variable that the equation now reads.
        """
        lies = aval_of(read.aval)
        new = core.Var(lies.update(shape=tuple(lies.shape[i] for i in order)))
        how = {"permutation": tuple(order)}
        turn = reader.replace(primitive=primitives.transpose_p, invars=[read], outvars=[new], params=how)
        reads = reader.replace(invars=[new if v is read else v for v in reader.invars], params=reader.params | params)
        eqns = [e for eqn in self.jaxpr.eqns for e in ([turn, reads] if eqn is reader else [eqn])]
        return Program(_replace(self.jaxpr, self.jaxpr.invars, self.jaxpr.outvars, eqns), self.consts), new

    def then(self, other: Program, wiring: Sequence[int | None]) -> Program:
        """First this program, then `other`: input i of `other` is output `wiring[i]` of this one, or a new input."""
        substitute = {}
        fresh = []
        for var, source in zip(other.invars, wiring, strict=True):
            if source is None:
                fresh.append(var)
            else:
                substitute[var] = self.outvars[source]
        look: Callable[[Atom], Atom] = lambda v: v if is_literal(v) else substitute.get(v, v)
        rewired = lambda e: e.replace(invars=[*map(look, e.invars)], effects={_effect_on(e, look) for e in e.effects})
        reads = lambda e: any(not is_literal(v) and v in substitute for v in e.invars)
        eqns = [rewired(e) if reads(e) else e for e in other.jaxpr.eqns]
        jaxpr = _replace(
            self.jaxpr,
            [*self.constvars, *other.constvars, *self.invars, *fresh],
            [look(v) for v in other.outvars],
            [*self.jaxpr.eqns, *eqns],
            is_high=self.jaxpr.is_high or other.jaxpr.is_high,
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

    def taking(self, kept: Sequence[bool]) -> Program:
        """The same program without the inputs that are not kept, of which nothing reads."""
        invars = [v for v, k in zip(self.invars, kept, strict=True) if k]
        jaxpr = self.jaxpr
        return Program(_replace(jaxpr, [*self.constvars, *invars], jaxpr.outvars, jaxpr.eqns), self.consts)

    @functools.cached_property
    def closed(self) -> ClosedJaxpr:
        """A closed jaxpr whose first inputs are the constants. One object, so that it is compiled once."""
        return partial_eval.close_jaxpr(self.jaxpr)


def _replace(
    jaxpr: Jaxpr, invars: Sequence[Var], outvars: Sequence[Atom], eqns: Sequence[JaxprEqn], **changes: Any
) -> Jaxpr:
    effects = partial_eval.make_jaxpr_effects([], invars, outvars, eqns)
    return jaxpr.replace(invars=list(invars), outvars=list(outvars), eqns=list(eqns), effects=effects, **changes)


def _effect_on(effect: Effect, variable: Callable[[Atom], Atom]) -> Effect:
    """The same effect, on what this variable stands for: a reference is written in a program joined to another."""
    return effect.replace(variable(effect.input)) if isinstance(effect, JaxprInputEffect) else effect


def part(program: Program, start: int, stop: int, inputs: Sequence[Var], outputs: Sequence[Atom]) -> Program:
    """Equations `start` to `stop` of a program, as a program without constants."""
    return Program(_replace(program.jaxpr, inputs, outputs, program.jaxpr.eqns[start:stop]))


def signature(program: Program, i: int) -> Hashable:
    """What equations of a program share that do the same to values of the same types, derivatives included."""
    eqn = program.jaxpr.eqns[i]
    params = eqn.params
    if eqn.primitive.name == "custom_jvp_call":  # its derivative, written out
        inputs = [v for v in eqn.invars if not is_literal(v)]
        alone = part(program, i, i + 1, inputs, eqn.outvars)
        types = [jax.ShapeDtypeStruct(t.shape, t.dtype) for t in in_avals(alone.jaxpr)]
        inexact = all(jax.dtypes.issubdtype(t.dtype, np.inexact) for t in types)
        forward = jax.make_jaxpr(lambda xs, ts: jax.jvp(alone.__call__, xs, ts))
        kind: Hashable = str(forward(tuple(types), tuple(types))) if inexact else id(eqn)
    elif eqn.primitive.name == "custom_vjp_call":
        kind = str(params["call_jaxpr"]), id(params["bwd"].f), params["symbolic_zeros"]
    else:
        kind = str(sorted(params.items(), key=lambda item: item[0]))
    return eqn.primitive.name, kind, tuple(v.aval for v in (*eqn.invars, *eqn.outvars))


def trace(f: Callable[..., Sequence[Value]], avals: Sequence[Aval], name: str = "funcbp", where: str = "") -> Program:
    """Trace `f`, a function from arrays to a flat list of arrays, on inputs of these types.

    `where` is `name at file:line` of a function of the user's that the program stands for, if it does for one.
    """
    debug = core.DebugInfo(name, where or f"{name} at funcbp", None, None)
    jaxpr, _, consts = partial_eval.trace_to_jaxpr_dynamic(linear_util.wrap_init(f, debug_info=debug), list(avals))
    return Program(partial_eval.convert_constvars_jaxpr(jaxpr), consts)


def trace_with(
    f: Callable[..., tuple[Sequence[Value], T]], avals: Sequence[Aval], name: str = "funcbp", where: str = ""
) -> tuple[Program, T]:
    """Trace `f`, a function to (flat list of arrays, anything that is no array), and return both.

    What `f` finds out while it is traced, structures for instance, leaves it here and by no other way.
    """
    left: list[T] = []

    def arrays(*args: Value) -> Sequence[Value]:
        outs, anything = f(*args)
        left.append(anything)
        return outs

    return trace(arrays, avals, name, where), left[0]


def trace_tree(f: Callable[..., PyTree], avals: Sequence[Aval], name: str = "funcbp") -> tuple[Program, PyTreeDef]:
    """Trace `f`, a function to a pytree of arrays: the program of the leaves, and their structure."""
    return trace_with(lambda *args: jax.tree.flatten(f(*args)), avals, name)


MAPPING = ("batch_subtrace", "batch_custom_jvp_subtrace")  # what JAX calls the transformations by which `vmap` maps


class Level(NamedTuple):
    """A `vmap` around a call: how many examples, and along which axis of each operand and each output they lie."""

    size: int
    ins: Sequence[int | None]
    outs: Sequence[int | None]


def levels_of(
    rule: WrappedFun, args: Callable[[Sequence[Value]], Sequence[Value]], avals: Sequence[Aval], n_outs: int
) -> list[Level]:
    """By which `vmap`s a `custom_jvp` or `custom_vjp` function was mapped, the outermost first.

    JAX maps the function's rule as it maps the function; and where the function stands in a compiled one, that rule is
    in what makes the program of the rule.

    Args:
        rule: the function's own, of tangents or going forward.
        args: what it takes, from the operands.
        avals: the operands' types, without the constants before them.
        n_outs: how many outputs the function has; they are the last of the forward rule's, and the only ones of which
            the tangent rule says where the examples lie.
    """
    mapping: list[Any] = []
    lifted: list[int] = []  # of each of these, how many constants stand before the operands further out
    for whole in _rules_inside(rule):
        before = sum(map(_constants_before, _rules_inside(whole)))
        mine = [t for t in whole.transforms if t[0].__name__ in MAPPING]
        mapping, lifted = [*mapping, *mine], [*lifted, *[before] * len(mine)]
    if not mapping:
        return []
    new = linear_util.wrap_init(whole.f, debug_info=whole.debug_info)
    for (transformation, more), store in reversed(list(zip(whole.transforms, whole.stores, strict=True))):
        if transformation.__name__ not in MAPPING:
            new = new.wrap(transformation, more, None if store is None else type(store)())
    # those of a forward rule go by pairs, of an operand and of whether it is perturbed
    pairs = [1 if len(more[-1]) == len(avals) + n else 2 for (_, more), n in zip(mapping, lifted, strict=True)]
    dims = [list(more[-1])[k * n :] for (_, more), n, k in zip(mapping, lifted, pairs, strict=True)]
    stores = [linear_util.Store() for _ in mapping]
    for (transformation, more), own, store in zip(reversed(mapping), reversed(dims), reversed(stores), strict=True):
        new = new.wrap(transformation, (*more[:-1], tuple(own)), store)
    trace(lambda *xs: [y for y in new.call_wrapped(*args(xs)) if hasattr(y, "dtype")], avals, "mapped")
    levels = [
        Level(more[-2].size, own[::k], list(store.val)[-n_outs:])
        for (_, more), own, k, store in zip(mapping, dims, pairs, stores, strict=True)
    ]
    # JAX hands a call to the `vmap` around it even where no operand is mapped: one call, whose cotangent counts once
    return [level for level in levels if any(d is not None for d in (*level.ins, *level.outs))]


def mapped_axes(rule: WrappedFun) -> list[tuple[Hashable, int]]:
    """The names and sizes of the axes by which `vmap`s mapped a `custom_jvp` or `custom_vjp` function. See `levels_of`.

    JAX traces the function's rules when they are asked for; by then the `vmap` that names the axes may be over.
    """
    transforms = [t for whole in _rules_inside(rule) for t in whole.transforms]
    axes: list[Any] = [more[-2] for transformation, more in transforms if transformation.__name__ in MAPPING]
    return [(axis.name, axis.size) for axis in axes if axis.name is not core.no_axis_name]


def among(axes: Sequence[tuple[Hashable, int]]) -> AbstractContextManager[None]:
    """Enter the context in which axes have these names."""
    return core.extend_axis_env_nd(axes) if axes else nullcontext()


def constants_before(rule: WrappedFun) -> int:
    """How many operands of a `custom_jvp` or `custom_vjp` call stand before those of the function itself.

    What it closes over are operands of the call where that is an equation of a program.
    """
    return sum(map(_constants_before, _rules_inside(rule)))


def _constants_before(rule: WrappedFun) -> int:
    """The same of those that were lifted when this rule went into a program."""
    held = _held(rule.f)
    return held.get("num_consts", 0) if {"jvp_jaxpr_fun", "fwd_jaxpr_thunk"} & held.keys() else 0


def _rules_inside(rule: Any) -> Iterator[WrappedFun]:
    """The rule, and the ones inside the functions by which JAX takes it out of compiled programs, outermost first."""
    while rule is not None:
        if isinstance(rule, WrappedFun):
            yield rule
            rule = rule.f
        held = _held(rule)
        rule = next((held[k] for k in ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "fn", "jvp", "fwd") if k in held), None)


def _held(f: Any) -> dict[str, Any]:
    """What a function of JAX's own closes over."""
    if not getattr(f, "__module__", "").startswith("jax._src") or not getattr(f, "__closure__", None):
        return {}
    return dict(zip(f.__code__.co_freevars, (c.cell_contents for c in f.__closure__), strict=True))


def is_literal(v: Atom | None) -> TypeIs[Literal]:
    return isinstance(v, core.Literal)


def in_avals(jaxpr: AnyJaxpr) -> list[Aval]:
    return list(jaxpr.in_avals)


def out_avals(jaxpr: AnyJaxpr) -> list[Aval]:
    return list(jaxpr.out_avals)


def close(jaxpr: Any) -> ClosedJaxpr:
    """The same with its constants, of which an open jaxpr has none."""
    return jaxpr if hasattr(jaxpr, "consts") else ClosedJaxpr(jaxpr, ())


def bind_eqn(eqn: JaxprEqn, values: Sequence[Value]) -> list[Value]:
    """Run one equation on values."""
    out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]
