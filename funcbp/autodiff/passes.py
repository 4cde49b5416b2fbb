"""The two passes of a program that arrives as a jaxpr: the body of a loop, a branch, a compiled call, a region."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax

from .. import jaxpr as jx
from ..cotangents import Cotangent
from ..jaxpr.types import AnyJaxpr, Value
from ..remat.plan import Passes
from ..remat.policies import POLICIES
from ..rules.cost import is_cheap
from ..rules.forms import written_for_here
from ..rules.options import Options
from .backward_pass import BackwardState, backward_pass
from .feedback import refuse_escape
from .recording import record

__all__ = ["passes_of"]


def passes_of(jaxpr: Any, perturbed: Sequence[bool], options: Options) -> Passes:
    """Record a body, once for each set of perturbed inputs, and return its two passes.

    Only the programs inside a body are planned while it is recorded: where there are none, it is the same under all
    policies.
    """
    options = options if _plans_inside(jaxpr) else _by_default(options)
    return _passes_of(jaxpr, tuple(perturbed), options, jx.spmd_axes())


@jx.weakref_cache
def _plans_inside(jaxpr: Any) -> bool:
    """Tell whether there are programs inside that have a plan: a derivative of the user's may have them, too."""
    found = jx.equations(jaxpr, jx.programs_of(jx.Kind.JIT | jx.Kind.CALL))
    return any(o.inside.kind and (o.inside.kind is jx.Kind.CUSTOM or not is_cheap(o.eqn)) for o in found)


@functools.lru_cache
def _by_default(options: Options) -> Options:
    return options.replace(policy=POLICIES["min_cut"])


@functools.partial(jx.weakref_cache, maxsize=4096)
def _passes_of(
    jaxpr: AnyJaxpr, perturbed: tuple[bool, ...], options: Options, spmd_axes: frozenset[Hashable]
) -> Passes:
    def body(*xs: Value) -> tuple[list[Value], None]:
        outs = jx.as_function(jaxpr)(*xs)
        for out in outs:
            refuse_escape(out)
        return outs, None

    def forward(*args: Value) -> tuple[list[Any], Any]:
        tape, outs, saved, _ = record(body, args, perturbed, options)
        # a reference is saved for a rule that writes into it; no program hands one out, and it is an input
        inputs = {id(x): i for i, x in enumerate(args)}
        references = [inputs[id(x)] if jx.is_reference(x) else None for x in saved]
        return [*outs, *(x for x in saved if not jx.is_reference(x))], (tape, references)

    program, (tape, references) = jx.trace_with(forward, jx.in_avals(jaxpr), "forward")
    program = written_for_here(jx.without_references(program))  # the user's own forward rules may make references
    if any(i is not None for i in references):
        made = iter(program.outvars)
        outs = [next(made) for _ in tape.outputs]
        program = program.with_outputs([*outs, *(next(made) if i is None else program.invars[i] for i in references)])

    def back(
        saved: Sequence[Value], ct: Sequence[Cotangent], named: Mapping[str, jax.Array] | None
    ) -> tuple[list[Any], Any]:
        state = BackwardState(options, named)
        return backward_pass(state, tape, saved, ct), state.results

    return Passes(program, back, perturbed, [o is not None for o in tape.outputs], options.factored, tape)
