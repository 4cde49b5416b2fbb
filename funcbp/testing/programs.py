"""What a function's program shows: casts that blind a check in float64, stopped gradients, and whose rule is wrong.

The program is walked equation by equation, going into calls, loops and branches.
"""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import jaxpr as jx
from ..autodiff.observe import Equation, observe
from ..cotangents import float0_zeros, is_differentiable
from ..jaxpr.types import AnyJaxpr, Aval, JaxprEqn, PyTree, Value
from .numerical import Evaluator
from .subject import Subject, first_line

__all__ = [
    "Frozen",
    "blame",
    "casts",
    "draws_implicitly",
    "draws_random_numbers",
    "has_own_rule",
    "has_own_rules",
    "program_of",
    "spoiler",
    "stops_gradients",
    "stops_in_loops",
]

DISAGREEMENT = 1e-6
PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
FIRST_STEPS = 16  # of a loop, in each of which a derivative is looked at


def program_of(subject: Subject) -> jx.Program | None:
    """The program that the function traces to, or None where it cannot be traced."""

    def floats_to_floats(*floats: Value) -> list[Value]:
        outs, _ = subject.outputs_of(subject.chosen(subject.with_floats(floats)))
        return [jnp.asarray(outs[i]) for i in subject.out_float_ids]

    try:
        return jx.trace(floats_to_floats, subject.inputs.types)
    except Exception:  # control flow in Python on values, for instance
        return None


def _line(source: Any) -> str:
    """The user's line, or a library's, or nothing where only funcbp's own is known: `funcbp check` has called it."""
    line = jx.user_line(source)
    return line if jx.nearness(source) is jx.Nearness.USER or not line.startswith(PACKAGE) else ""


def equations(program: jx.Program | AnyJaxpr) -> Iterator[JaxprEqn]:
    """All equations of a program and of those inside it."""
    return (o.eqn for o in jx.equations(program))


def casts(program: jx.Program | AnyJaxpr) -> tuple[list[str], float]:
    """Where a program leaves double precision, as sentences, and the precision it computes in at worst.

    Args:
        program: of a function, whose inputs are float64 where all such places are wanted.
    """
    places: dict[str, None] = {}
    resolution = float(np.finfo(np.float64).eps)
    for eqn in equations(program):
        if eqn.primitive.name not in ("convert_element_type", "reduce_precision"):
            continue
        before, after = jx.aval_of(eqn.invars[0].aval), jx.aval_of(eqn.outvars[0].aval)
        if jx.is_literal(eqn.invars[0]) or not is_differentiable(before):
            continue
        if eqn.primitive.name == "reduce_precision":
            bits, into = eqn.params["mantissa_bits"], f"{eqn.params['mantissa_bits']} bits"
            if bits >= jnp.finfo(before.dtype).nmant:
                continue
            resolution = max(resolution, 2.0**-bits)
        elif not is_differentiable(after):
            into, resolution = str(after.dtype), max(resolution, float(np.finfo(np.float64).eps))
        elif jnp.finfo(after.dtype).bits < jnp.finfo(before.dtype).bits:
            into, resolution = str(after.dtype), max(resolution, float(jnp.finfo(after.dtype).eps))
        else:
            continue
        line = _line(eqn.source_info)
        places[f"{before.dtype} is made {into} at {line}" if line else f"{before.dtype} is made {into}"] = None
    return list(places), resolution


def stops_gradients(program: jx.Program | AnyJaxpr) -> list[str]:
    """The lines that call `stop_gradient`."""
    found = (eqn for eqn in equations(program) if eqn.primitive.name == "stop_gradient")
    return list(dict.fromkeys(_line(eqn.source_info) for eqn in found))


def stops_in_loops(program: jx.Program | AnyJaxpr) -> bool:
    """Whether a gradient is stopped inside a loop or a branch, which `Frozen` does not hold still."""
    stops = (o for o in jx.equations(program) if o.eqn.primitive.name == "stop_gradient")
    return any(around.inside.kind & ~jx.CALLS for o in stops for around in o.around)


def draws_random_numbers(program: jx.Program | AnyJaxpr) -> bool:
    """Whether it draws random numbers: which ones, that depends on the precision they are drawn in."""
    types = (jx.aval_of(v.aval) for eqn in equations(program) for v in eqn.invars)
    return any(jax.dtypes.issubdtype(t.dtype, jax.dtypes.prng_key) for t in types if hasattr(t, "dtype"))


def draws_implicitly(program: jx.Program | AnyJaxpr) -> bool:
    """Whether it draws numbers whose derivative is that of their distribution, not of how they were drawn."""
    return any(eqn.primitive.name == "random_gamma" for eqn in equations(program))


# --- running a program, equation by equation --------------------------------------------------------------------------


class Frozen:
    """A function whose stopped gradients are frozen at a point: their values stay what they are there.

    Its slope is what a derivative that honours `stop_gradient` must give. Those inside loops and branches move on.
    """

    def __init__(self, program: jx.Program, subject: Subject):
        self.program, self.subject = program, subject
        self.stopped: list[Value] = []
        floats = subject.inputs.arrays(jnp.asarray(subject.point))
        jx.run(program, floats, _Remembering(self.stopped))

    def __call__(self, z: jax.Array) -> jax.Array:
        outs = jx.run(self.program, self.subject.inputs.arrays(z), _Recalling(self.stopped))
        return self.subject.outputs.vector(outs)


class _Remembering(jx.Visitor):
    """Runs a program, and writes down the values of its stopped gradients."""

    enters = jx.CALLS

    def __init__(self, stopped: list[Value]):
        self.stopped = stopped

    def equation(self, eqn: JaxprEqn, args: list[Value]) -> list[Value]:
        outs = jx.bind_eqn(eqn, args)
        if eqn.primitive.name == "stop_gradient":
            self.stopped.append(outs)
        return outs


class _Recalling(jx.Visitor):
    """Runs a program with these values in the place of its stopped gradients."""

    enters = jx.CALLS

    def __init__(self, stopped: list[Value]):
        self.stopped = iter(stopped)

    def equation(self, eqn: JaxprEqn, args: list[Value]) -> list[Value]:
        return next(self.stopped) if eqn.primitive.name == "stop_gradient" else jx.bind_eqn(eqn, args)


# --- whose rule is wrong ----------------------------------------------------------------------------------------------


def blame(subject: Subject, vjp: Callable[..., tuple[PyTree, Callable[..., PyTree]]], seed: int = 0) -> str:
    """The equation whose own derivative is wrong: the first that the backward pass meets.

    The function runs once more on its values, so one that branches on them in Python is no different. Each equation
    that ran is differentiated alone, on the values it had, by the derivative under test and by `jax.vjp`; loops and
    branches are gone into, step by step. A function with a rule of its own is compared with what JAX makes of its body.

    Returns:
        A sentence, or one that says that no single equation is at fault, or which of them could not be looked at.
    """
    floats = subject.inputs.arrays(jnp.asarray(subject.point))
    with contextlib.suppress(Exception):
        thirds = jnp.arange(3.0) / 3  # no dtype has fewer digits and the same numbers
        if not np.array_equal(vjp(lambda x: x, thirds)[1](thirds)[0], thirds):
            return "No equation: this vjp is wrong even for the identity."
    search = _Search(vjp, np.random.default_rng(seed))
    try:
        found = search.through(observe(_function(subject), *floats))
    except Exception as error:
        return f"The equation cannot be named: running the function under a trace raises {first_line(error)}."
    if found:
        return found
    if search.untold:
        return f"No equation was found at fault, but of some it cannot be told: {'; '.join(search.untold)}."
    return "Each equation's own derivative is right: the fault is in how they are put together, or in a wrapper."


def spoiler(
    subject: Subject,
    vjp: Callable[..., tuple[PyTree, Callable[..., PyTree]]],
    seed: int = 0,
    counts: Callable[[Equation, float], bool] = lambda equation, error: bool(np.isnan(error)),
) -> str:
    """The equation whose own derivative is not finite where that of what it computes is; "" if there is none.

    It tells a rule that returns nan from a function that has no finite derivative, or none that rules can find. Where
    `has_own_rule` says which errors count, it tells somebody's wrong rule from a gradient that is stopped.
    """
    floats = subject.inputs.arrays(jnp.asarray(subject.point))
    with contextlib.suppress(Exception):
        search = _Search(vjp, np.random.default_rng(seed), counts)
        return search.through(observe(_function(subject), *floats))
    return ""


def has_own_rule(equation: Equation | jx.Occurrence, error: float = 0.0) -> bool:
    """Whether it is a function with a derivative of its own, which JAX honours as well, and none of JAX's own."""
    params = equation.params if isinstance(equation, Equation) else equation.eqn.params
    return equation.inside.kind is jx.Kind.CUSTOM and not jx.own_name(jx.call_jaxpr(params))


def has_own_rules(program: jx.Program | AnyJaxpr) -> bool:
    """Whether there is such a function in a program."""
    return any(has_own_rule(o) for e in jx.equations(program) for o in (e, *e.around))


def _function(subject: Subject) -> Callable[..., Value]:
    return lambda *floats: subject.outputs_of(subject.chosen(subject.with_floats(floats)))[0]


class _Search:
    """A search for the equation whose own derivative is wrong.

    Attributes:
        vjp: the derivative under test.
        counts: which errors are looked for.
        untold: the equations of which it cannot be told, and loops of which not every step was looked at.
    """

    def __init__(
        self,
        vjp: Callable[..., tuple[PyTree, Callable[..., PyTree]]],
        rng: np.random.Generator,
        counts: Callable[[Equation, float], bool] = lambda equation, error: True,
    ):
        self.vjp, self.rng, self.counts = vjp, rng, counts
        self.untold: dict[str, None] = {}

    def through(self, equations: Sequence[Equation]) -> str:
        """A sentence on the first that the backward pass meets, of those in them before themselves; or ""."""
        for equation in reversed(equations):
            if equation.inside.kind & jx.CONTROL:
                try:
                    steps = _Steps.of(equation)
                except Exception as error:
                    self.untold[f"what is in {_named(equation)} ({first_line(error)})"] = None
                    steps = _Steps()
                if found := self.through(steps.equations):
                    return found
                if steps.left_out:
                    self.untold[f"the steps of {_named(equation)} that were not looked at"] = None
            wrong = _wrong_by(equation, self.vjp, self.rng)
            if wrong is None or (equation.inside.kind & HIDDEN and _has_own_rules(equation.inside.programs)):
                self.untold[_named(equation)] = None
            if wrong and self.counts(equation, wrong):
                how = "is not finite" if np.isnan(wrong) else f"is wrong, by {wrong:.2g} of its largest element"
                return f"{_named(equation)}: its own derivative {how}."
        return ""


HIDDEN = jx.Kind.MAPPED | jx.Kind.OTHER  # are not gone into


def _has_own_rules(programs: Sequence[AnyJaxpr]) -> bool:
    around = (call.inside.kind for p in programs for o in jx.equations(p) for call in o.around)
    return jx.Kind.CUSTOM in around


class _Value(NamedTuple):
    """A value, and whether it depends on what is differentiated."""

    value: Value
    perturbed: bool = False


class _Steps(jx.Visitor):
    """Writes down the equations that run in a loop or branch. What is in another one inside is gone into later.

    Attributes:
        equations: those that a perturbed value enters; of a loop's first steps, and then of every power of two.
        left_out: whether there were more.
    """

    def __init__(self) -> None:
        self.equations: list[Equation] = []
        self.left_out = False
        self._times: collections.Counter[int] = collections.Counter()
        self._entered = False

    @classmethod
    def of(cls, equation: Equation) -> _Steps:
        """Run an equation again, and write down what runs in it."""
        steps = cls()
        program = jx.trace(equation.apply, list(map(jax.typeof, equation.values)))
        pairs = zip(equation.values, equation.perturbed, strict=True)
        with jx.restored(equation.source):
            jx.run(program, [_Value(x, p) for x, p in pairs], steps)
        return steps

    def opens(self, eqn: JaxprEqn) -> jx.Inside | None:
        inside = jx.inside_of(eqn)
        if inside.kind & jx.CONTROL and not self._entered:
            self._entered = True
            return inside
        return inside if inside.kind & (jx.Kind.JIT | jx.Kind.CALL | jx.Kind.REMAT) else None

    def equation(self, eqn: JaxprEqn, args: list[_Value]) -> list[_Value]:
        values, perturbed = tuple(a.value for a in args), tuple(a.perturbed for a in args)
        outs = jx.bind_eqn(eqn, values)
        moves = any(perturbed) and eqn.primitive.name != "stop_gradient"
        if moves:
            self._times[id(eqn)] += 1
            times = self._times[id(eqn)]
            if times <= FIRST_STEPS or times & (times - 1) == 0:
                apply = lambda *xs: list(jx.bind_eqn(eqn, xs))
                source = jx.current_source()
                self.equations.append(Equation(eqn.primitive.name, eqn.params, apply, values, perturbed, source))
            else:
                self.left_out = True
        return [_Value(y, moves and is_differentiable(y)) for y in outs]

    def constant(self, x: Value) -> _Value:
        return _Value(x)

    def number(self, x: _Value) -> Value:
        return x.value

    def row(self, x: _Value, i: int) -> _Value:
        return _Value(x.value[i], x.perturbed)

    def stack(self, rows: Sequence[_Value], aval: Aval) -> _Value:
        return _Value(super().stack([x.value for x in rows], aval), any(x.perturbed for x in rows))


def _wrong_by(
    equation: Equation, vjp: Callable[..., tuple[PyTree, Callable[..., PyTree]]], rng: np.random.Generator
) -> float | None:
    """How wrong the derivative of an equation is, as a part of its largest element; None if that cannot be told.

    It is nan where the derivative is not finite and should be.
    """
    own, apply, inputs = equation.inside.kind is jx.Kind.CUSTOM, equation.apply, equation.values
    pairs = enumerate(zip(inputs, equation.perturbed, strict=True))
    ids = [i for i, (x, p) in pairs if p and is_differentiable(jax.typeof(x)) and np.size(x)]
    body = jx.as_function(jx.call_jaxpr(equation.params)) if own else apply
    if not ids or not any(map(is_differentiable, apply(*inputs))):
        return 0.0

    def of(f: Callable[..., Sequence[Value]]) -> Callable[..., Sequence[Value]]:
        def moved(*xs: Value) -> list[Value]:
            full = list(inputs)
            for i, x in zip(ids, xs, strict=True):
                full[i] = x
            return list(f(*full))

        return moved

    primals = [jnp.asarray(inputs[i]) for i in ids]
    try:
        outs, wanted_pullback = jax.vjp(of(body), *primals)
        cts = [_random(y, rng) for y in outs]
        wanted = wanted_pullback(cts)
    except Exception:  # JAX has no derivative: differences are the witness of what has a rule of its own
        return _wrong_by_differences(of(apply), primals, vjp, rng) if own else None
    try:
        got = vjp(of(apply), *primals)[1](cts)
    except Exception:  # it is made for the whole function only
        return None
    worst = 0.0
    for g, w in zip(got, wanted, strict=True):
        g, w = np.asarray(g), np.asarray(w)
        if not np.all(np.isfinite(w)):
            continue
        if g.shape != w.shape:
            return np.inf
        if not np.all(np.isfinite(g)):
            return np.nan
        size = np.max(np.abs(w), initial=0.0)
        coarse = DISAGREEMENT if w.dtype.itemsize >= 8 else 1e-2
        off = np.max(np.abs(g - w), initial=0.0)
        if off > coarse * size:
            worst = max(worst, float(off / size) if size else np.inf)
    return worst


def _wrong_by_differences(
    f: Callable[..., Sequence[Value]],
    primals: list[Value],
    vjp: Callable[..., tuple[PyTree, Callable[..., PyTree]]],
    rng: np.random.Generator,
) -> float | None:
    subject = Subject(f, primals, {}, range(len(primals)), False)
    ct = rng.standard_normal((1, subject.outputs.size))
    directions = np.zeros((len(primals), subject.inputs.size))
    for i, where in enumerate(subject.inputs.slices):
        directions[i, where] = rng.integers(4, 9, where.stop - where.start) / 8
    try:
        got, _ = subject.rows(vjp, ct)
        evaluator = Evaluator(subject.in_coordinates, subject.point, float(jnp.finfo(subject.inputs.dtype).eps))
        project = lambda values, bound: values @ (np.abs(ct) if bound else ct).T
        found = evaluator.slopes(directions, np.ones(len(primals)), project)
    except Exception:  # it is made for the whole function only
        return None
    terms = got * directions
    size = np.maximum(np.abs(terms).sum(1), np.abs(found.central[:, 0]))
    off = np.abs(terms.sum(1) - found.central[:, 0])
    clear = off > np.maximum(20 * found.error[:, 0], DISAGREEMENT * size)
    return float(np.max(off[clear] / size[clear])) if clear.any() else 0.0


def _random(y: Value, rng: np.random.Generator) -> Value:
    if not is_differentiable(y):
        return float0_zeros(y)
    draw = rng.standard_normal(y.shape)
    if jax.dtypes.issubdtype(y.dtype, np.complexfloating):
        draw = draw + 1j * rng.standard_normal(y.shape)
    return jnp.asarray(draw, y.dtype)


def _named(equation: Equation) -> str:
    """What an equation is called in a sentence, and where it was written."""
    name, line = equation.primitive, _line(equation.source)
    what = f"`{name}`"
    if equation.inside.kind is jx.Kind.CUSTOM:
        info = getattr(jx.call_jaxpr(equation.params).debug_info, "func_src_info", "") or "a function"
        what = f"the {name.removesuffix('_call')} rule of {info}"
    return f"{what}, used at {line}" if line else what
