"""What a function's program shows: casts that blind a check in float64, stopped gradients, and whose rule is wrong.

The program is walked equation by equation, going into calls, loops and branches.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import jaxpr as jx
from ..autodiff.observe import Equation, observe
from ..cotangents import float0_zeros, is_differentiable
from .numerical import Evaluator
from .subject import Subject, first_line

__all__ = ["Frozen", "blame", "casts", "draws_implicitly", "program_of", "spoiler", "stops_gradients"]

DISAGREEMENT = 1e-6


def program_of(subject: Subject) -> Any:
    """The program that the function traces to, or None where it cannot be traced."""

    def floats_to_floats(*floats: Any) -> list[Any]:
        outs, _ = subject.outputs_of(subject.chosen(subject.with_floats(floats)))
        return [jnp.asarray(outs[i]) for i in subject.out_float_ids]

    try:
        return jx.trace(floats_to_floats, subject.inputs.types)
    except Exception:  # control flow in Python on values, for instance
        return None


def _line(source: Any) -> str:
    """The user's line, or nothing where no line of theirs is known: `check` was given the operation itself."""
    line = jx.user_line(source)
    return "" if os.path.dirname(__file__) in line else line


def equations(program: Any) -> Iterator[Any]:
    """All equations of a program and of those inside it."""
    return (o.eqn for o in jx.equations(program))


def casts(program: Any) -> tuple[list[str], float]:
    """Where a program leaves double precision, as sentences, and the precision it computes in at worst.

    Args:
        program: of a function, whose inputs are float64 where all such places are wanted.
    """
    places: dict[str, None] = {}
    resolution = float(np.finfo(np.float64).eps)
    for eqn in equations(program):
        if eqn.primitive.name not in ("convert_element_type", "reduce_precision"):
            continue
        before, after = eqn.invars[0].aval, eqn.outvars[0].aval
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


def stops_gradients(program: Any) -> list[str]:
    """The lines that call `stop_gradient`."""
    found = (eqn for eqn in equations(program) if eqn.primitive.name == "stop_gradient")
    return list(dict.fromkeys(_line(eqn.source_info) for eqn in found))


def draws_implicitly(program: Any) -> bool:
    """Whether it draws numbers whose derivative is that of their distribution, not of how they were drawn."""
    return any(eqn.primitive.name == "random_gamma" for eqn in equations(program))


# --- running a program, equation by equation --------------------------------------------------------------------------


class Frozen:
    """A function whose stopped gradients are frozen at a point: their values stay what they are there.

    Its slope is what a derivative that honours `stop_gradient` must give. Those inside loops and branches move on.
    """

    def __init__(self, program: Any, subject: Subject):
        self.program, self.subject = program, subject
        self.stopped: list[Any] = []
        floats = subject.inputs.arrays(jnp.asarray(subject.point))
        jx.run(program, floats, _Remembering(self.stopped))

    def __call__(self, z: Any) -> jax.Array:
        outs = jx.run(self.program, self.subject.inputs.arrays(z), _Recalling(self.stopped))
        return self.subject.outputs.vector(outs)


class _Remembering(jx.Visitor):
    """Runs a program, and writes down the values of its stopped gradients."""

    enters = jx.CALLS

    def __init__(self, stopped: list[Any]):
        self.stopped = stopped

    def equation(self, eqn: Any, args: list[Any]) -> list[Any]:
        outs = jx.bind_eqn(eqn, args)
        if eqn.primitive.name == "stop_gradient":
            self.stopped.append(outs)
        return outs


class _Recalling(jx.Visitor):
    """Runs a program with these values in the place of its stopped gradients."""

    enters = jx.CALLS

    def __init__(self, stopped: list[Any]):
        self.stopped = iter(stopped)

    def equation(self, eqn: Any, args: list[Any]) -> list[Any]:
        return next(self.stopped) if eqn.primitive.name == "stop_gradient" else jx.bind_eqn(eqn, args)


# --- whose rule is wrong ----------------------------------------------------------------------------------------------


def blame(subject: Subject, vjp: Callable[..., Any], seed: int = 0) -> str:
    """The equation whose own derivative is wrong: the first that the backward pass meets.

    The function runs once more on its values, so one that branches on them in Python is no different. Each equation
    that ran is differentiated alone, on the values it had, by the derivative under test and by `jax.vjp`. A function
    with a rule of its own is compared with what JAX makes of its body.

    Returns:
        A sentence, or one that says that no single equation is at fault.
    """
    floats = subject.inputs.arrays(jnp.asarray(subject.point))
    with contextlib.suppress(Exception):
        thirds = jnp.arange(3.0) / 3  # no dtype has fewer digits and the same numbers
        if not np.array_equal(vjp(lambda x: x, thirds)[1](thirds)[0], thirds):
            return "No equation: this vjp is wrong even for the identity."
    try:
        found = _search(_function(subject), floats, vjp, np.random.default_rng(seed))
    except Exception as error:
        return f"The equation cannot be named: running the function under a trace raises {first_line(error)}."
    if found:
        return found
    return "Each equation's own derivative is right: the fault is in how they are put together, or in a wrapper."


def spoiler(subject: Subject, vjp: Callable[..., Any], seed: int = 0) -> str:
    """The equation whose own derivative is not finite where that of what it computes is; "" if there is none.

    It tells a rule that returns nan from a function that has no finite derivative, or none that rules can find.
    """
    floats = subject.inputs.arrays(jnp.asarray(subject.point))
    with contextlib.suppress(Exception):
        return _search(_function(subject), floats, vjp, np.random.default_rng(seed), counts=np.isnan)
    return ""


def _function(subject: Subject) -> Callable[..., Any]:
    return lambda *floats: subject.outputs_of(subject.chosen(subject.with_floats(floats)))[0]


def _search(
    f: Callable[..., Any],
    args: Sequence[Any],
    vjp: Callable[..., Any],
    rng: Any,
    depth: int = 0,
    counts: Callable[[float], Any] = lambda error: True,
) -> str:
    for equation in reversed(observe(f, *args)):
        error = _wrong_by(equation, vjp, rng)
        if error is None or not counts(error):
            continue
        if depth < 4 and equation.inside.kind & jx.CONTROL:
            for inner in equation.inside.programs:
                deeper = _inner_search(inner, equation, vjp, rng, depth)
                if deeper:
                    return deeper
        return _sentence(equation, error)
    return ""


def _inner_search(inner: Any, equation: Equation, vjp: Callable[..., Any], rng: Any, depth: int) -> str:
    """The same inside a loop, on the values of its first step."""
    types = jx.in_avals(inner)
    last = equation.values[len(equation.values) - len(types) :]
    firsts = [x if np.shape(x) == t.shape else x[0] for x, t in zip(last, types, strict=False)]
    if len(firsts) != len(types) or any(np.shape(x) != t.shape for x, t in zip(firsts, types, strict=True)):
        return ""
    return _search(jx.as_function(inner), firsts, vjp, rng, depth + 1)


def _wrong_by(equation: Equation, vjp: Callable[..., Any], rng: Any) -> float | None:
    """How wrong the derivative of an equation is, as a part of its largest element, or None if it is right.

    It is nan where the derivative is not finite and should be.
    """
    own, apply, inputs = equation.inside.kind is jx.Kind.CUSTOM, equation.apply, equation.values
    pairs = enumerate(zip(inputs, equation.perturbed, strict=True))
    ids = [i for i, (x, p) in pairs if p and is_differentiable(jax.typeof(x)) and np.size(x)]
    body = jx.as_function(jx.call_jaxpr(equation.params)) if own else apply
    if not ids or not any(map(is_differentiable, apply(*inputs))):
        return None

    def of(f: Callable[..., Any]) -> Callable[..., Any]:
        def moved(*xs: Any) -> list[Any]:
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
    return worst or None


def _wrong_by_differences(f: Callable[..., Any], primals: list[Any], vjp: Callable[..., Any], rng: Any) -> float | None:
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
    return float(np.max(off[clear] / size[clear])) if clear.any() else None


def _random(y: Any, rng: Any) -> Any:
    if not is_differentiable(y):
        return float0_zeros(y)
    draw = rng.standard_normal(y.shape)
    if jax.dtypes.issubdtype(y.dtype, np.complexfloating):
        draw = draw + 1j * rng.standard_normal(y.shape)
    return jnp.asarray(draw, y.dtype)


def _sentence(equation: Equation, error: float) -> str:
    name, line = equation.primitive, _line(equation.source)
    what = f"`{name}`"
    if equation.inside.kind is jx.Kind.CUSTOM:
        info = getattr(jx.call_jaxpr(equation.params).debug_info, "func_src_info", "") or "a function"
        what = f"the {name.removesuffix('_call')} rule of {info}"
    where = f", used at {line}" if line else ""
    how = "is not finite" if np.isnan(error) else f"is wrong, by {error:.2g} of its largest element"
    return f"{what}{where}: its own derivative {how}."
