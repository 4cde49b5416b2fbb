"""What passes from the forward to the backward program of a body: of a loop, a branch, a compiled call, a region.

A body that arrives as a jaxpr is recorded once, abstractly, which gives its two passes as programs:

    forward:  inputs -> outputs, candidates        (all that the rules would like to keep)
    backward: candidates, cotangents -> cotangents

A `Plan` decides which values of the forward program are saved. What is available (inputs that do not have to be stored)
is not, values that are the same in every step of a loop are saved once, and what no equation of the backward program
reads is not saved at all. Whatever is needed and not saved is recomputed from what is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax

from .. import jaxpr as jx
from ..cotangents import Cotangent, Zero, materialize
from ..jaxpr import Program
from ..jaxpr.types import Aval, JaxprEqn, Value, Var
from ..rules.cost import is_repeatable
from .cut import Choose
from .graph import read_for

__all__ = ["OuterNames", "Passes", "Plan", "Residuals", "plan_of_call", "with_names"]

Made = TypeVar("Made")
Offloads = Callable[[JaxprEqn], Any]  # where the results of an equation wait, or None where they stay


class Passes:
    """The two passes of one body.

    Attributes:
        forward: program from inputs to outputs followed by candidates.
        backward_pass: (candidates, cotangents of the outputs, those of names passed before or None) -> (cotangents of
            the inputs, what the backward pass found), `Zero` allowed on both sides.
        perturbed: which inputs are perturbed.
        differentiable: which outputs a perturbed input reaches.
        factored: whether the inputs' cotangents are handed out as products not yet contracted.
        tape: the entries of the forward pass.
        recompute: the forward program as it is recomputed: its further inputs are `stacks`.
        stacks: what is saved in the loops of a region by the user's policy, values of the forward program.
    """

    def __init__(
        self,
        forward: Program,
        backward_pass: Callable[[Sequence[Value], Sequence[Cotangent], Any], tuple[list[Cotangent], Any]],
        perturbed: Sequence[bool],
        differentiable: Sequence[bool],
        factored: bool,
        record: Any,
    ):
        self.forward, self.backward_pass, self.factored, self.tape = forward, backward_pass, factored, record
        self.perturbed, self.differentiable = tuple(perturbed), tuple(differentiable)
        n = len(self.differentiable)
        self.outputs, self.candidates = forward.outvars[:n], forward.outvars[n:]
        self.in_types = [v.aval for v in forward.invars]
        self.out_types = [v.aval for v in self.outputs]
        self.candidate_types = [v.aval for v in self.candidates]
        self.recompute: Program = forward
        self.stacks: list[Var] = []
        self._made: dict[Any, Any] = {}

    def saving(self, saved: Callable[[JaxprEqn], bool], offload: Offloads) -> Passes:
        """Return the same passes, where the loops of the forward program stack what is to be saved in them."""
        forward, recompute, stacks = jx.loops_apart(self.forward, saved, offload)
        other = Passes(forward, self.backward_pass, self.perturbed, self.differentiable, self.factored, self.tape)
        other.recompute, other.stacks = recompute, stacks
        return other

    def made(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what was made of this body under this key, or make it. A program made anew would be compiled anew.

        What a `shard_map` inside is divided over depends on the `vmap`s around (`spmd_axes`).
        """
        key = key, jx.spmd_axes()
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


OuterNames = tuple[tuple[str, Aval], ...] | None


def backward_of(passes: Passes, nonzero: Sequence[bool], outer_names: OuterNames) -> tuple[Program, Any]:
    """Trace the backward program of a body for outputs with these nonzero cotangents.

    Its inputs are (*candidates, *nonzero cotangents, *named cotangents from outside); its outputs are the leaves of
    (cotangents of the inputs, what the backward pass found), whose structure is the second thing returned.
    """
    n, n_cts = len(passes.candidates), sum(nonzero)

    def backward(*args: Value) -> Any:
        cts = iter(args[n : n + n_cts])
        named = with_names(outer_names, args[n + n_cts :])
        back, results = passes.backward_pass(args[:n], [next(cts) if z else Zero for z in nonzero], named)
        return (back if passes.factored else [materialize(c) for c in back]), results

    ct_types = [jx.cotangent_type(t) for t, z in zip(passes.out_types, nonzero, strict=True) if z]
    types = [*passes.candidate_types, *ct_types, *(t for _, t in outer_names or ())]
    return jx.trace_tree(backward, types, "backward")


def with_names(outer_names: OuterNames, values: Sequence[jax.Array]) -> dict[str, jax.Array] | None:
    """Return the named cotangents, by name; None in a rehearsal."""
    return None if outer_names is None else {name: v for (name, _), v in zip(outer_names, values, strict=True)}


class Residuals(NamedTuple):
    """What one run of a body leaves for its backward pass, in the order its backward program takes it.

    Attributes:
        plan: what is kept, and the backward program.
        available: the inputs that need not be saved and are read.
        hoisted: what is the same in every step of a loop.
        saved: what is kept.
    """

    plan: Plan
    available: Sequence[Value]
    hoisted: Sequence[Value]
    saved: Sequence[Value]

    @property
    def arrays(self) -> list[Value]:
        return [*self.available, *self.hoisted, *self.saved]


class Plan:
    """What the backward pass of one body reads.

    Args:
        passes: the body.
        make: from which output cotangents are nonzero and which named ones are given to (backward program, anything),
            the program's inputs being (*candidates, *others).
        available_inputs: which inputs the backward program can read without their being saved.
        loop_invariant: which inputs are the same in every step of a loop; what follows from them alone is kept once.
        choose: which values to keep: (forward, needed, available) -> variables of the forward program, `available`
            being the values that need not be kept; all that is needed, if left out.
        packs: whether masks are kept as bits where it chooses.
        offload: where the results of an equation of the forward program wait, if not where they are.
        rehearsed: whether the backward program for all differentiable outputs is made, to see what it reads; without
            it, all candidates count as read.
        steps: how often the body runs.

    Attributes:
        needed: variables that the backward pass reads.
        available_inputs: indices of the inputs that the backward pass reads, or computes others of them from.
        question: what was asked of `choose`, and how often the body runs; None without it.
        hoisted: variables kept once, which follow from the loop-invariant inputs.
        saved: variables kept at every step.
        storage: how those of them are kept that are not kept as they are: as bits, eight booleans in a byte (not where
            all that is needed is kept), or in another memory.
        cast: which of the hoisted values are casts of a loop's constants: the forward program is given them as well.
        forward: program from (*cast, *inputs) to outputs, followed by `saved`.
        before: program from the loop-invariant inputs to `hoisted`.
    """

    def __init__(
        self,
        passes: Passes,
        make: Callable[[Sequence[bool], OuterNames], tuple[Program, Any]],
        available_inputs: Sequence[bool],
        loop_invariant: Sequence[bool] | None = None,
        choose: Choose | None = None,
        packs: bool = True,
        offload: Offloads | None = None,
        rehearsed: bool = True,
        steps: int = 1,
    ):
        self.passes, self._make = passes, make
        full = make(passes.differentiable, None) if rehearsed else None
        forward, invars = passes.forward, passes.forward.invars
        available = {v for v, f in zip(invars, available_inputs, strict=True) if f}
        invariant_values: set[Var] = set()
        if loop_invariant is not None:
            invariant_values = _following(forward, {v for v, s in zip(invars, loop_invariant, strict=True) if s})
        self.needed = needed = self._needed(full and full[0])
        self.hoisted = [v for v in needed if v in invariant_values and v not in available]
        wanted = [v for v in needed if v not in invariant_values and v not in available]
        self._recompute = passes.recompute
        if passes.stacks:
            self._recompute, _ = passes.recompute.with_outputs(needed).pruned(keep_inputs=True)
        question = self._recompute, wanted, {*available, *invariant_values, *passes.stacks}
        self.saved = wanted if choose is None else list(choose(*question))
        self.question = None if choose is None else (*question, steps)
        read = read_for(self._recompute, needed, {*self.hoisted, *self.saved})
        self.saved += [v for v in passes.stacks if v in read]
        read -= {*self.hoisted, *self.saved}
        self.available_inputs = [i for i, v in enumerate(invars) if v in read]
        if lacking := [i for i in self.available_inputs if not available_inputs[i]]:
            raise ValueError(
                "A residual policy saved too little: what the backward pass reads cannot be recomputed without "
                f"{', '.join(f'input {i}, {jx.shown_type(invars[i].aval)},' for i in lacking)} of the body, which is "
                "not available. `choose` must return it, or what else is read; funcbp.remat.read_for says what is left."
            )
        self.storage: dict[Var, jx.Storage] = {
            v: jx.Bits for v in self.saved if choose is not None and packs and jx.packs(v.aval)
        }
        if offload is not None:
            elsewhere = {v: offload(eqn) for eqn in forward.eqns for v in eqn.outvars}
            self.storage |= {v: elsewhere[v] for v in self.saved if elsewhere.get(v) is not None}
        cast = {v for eqn in forward.eqns if eqn.primitive is jx.primitives.convert_element_type_p for v in eqn.outvars}
        self.cast = [i for i, v in enumerate(self.hoisted) if v in cast]
        handing_out = forward.given([self.hoisted[i] for i in self.cast]).with_outputs([*passes.outputs, *self.saved])
        self.forward, _ = jx.stored(handing_out, len(passes.outputs), self.storage).pruned(keep_inputs=True)
        still = [v for v, s in zip(invars, loop_invariant or [False] * len(invars), strict=True) if s]
        self.before = forward.between(still, self.hoisted)
        self._backward: dict[Any, tuple[Program, Any]] = {}
        if full is not None:
            self._backward[passes.differentiable, None, jx.spmd_axes()] = self._join(full[0]), full[1]

    def backward(self, nonzero: Sequence[bool], outer_names: OuterNames) -> tuple[Program, Any]:
        """Return the backward program, on what was saved, for these nonzero cotangents; and what `make` said.

        Its inputs are (*available, *hoisted, *saved, *others).
        """
        key = (tuple(nonzero), outer_names, jx.spmd_axes())
        if key not in self._backward:
            program, info = self._make(tuple(nonzero), outer_names)
            self._backward[key] = (self._join(program), info)
        return self._backward[key]

    def _needed(self, backward: Program | None) -> list[Var]:
        """List the candidates that a backward program reads, or one for other zeros may read, without constants.

        Where none is made yet, any of them may be read.
        """
        used = [True] * len(self.passes.candidates) if backward is None else backward.pruned()[1]
        read = {i for i, u in enumerate(used) if u} | self.passes.tape.saved_by_several
        constants = set(self.passes.forward.constvars)
        needed = (v for i, v in enumerate(self.passes.candidates) if i in read and not jx.is_literal(v))
        return [v for v in dict.fromkeys(needed) if v not in constants]

    def _join(self, backward: Program) -> Program:
        """Join two programs: recompute what was not saved, then go backward."""
        candidates, invars = self.passes.candidates, self.passes.forward.invars
        n_others = len(backward.invars) - len(candidates)
        backward, used = backward.pruned([False] * len(candidates) + [True] * n_others)
        needed = [v for v, u in zip(candidates, used, strict=False) if u]
        outer_names = [*(invars[i] for i in self.available_inputs), *self.hoisted, *self.saved]
        recompute = self._recompute.between(outer_names, needed)
        recompute = jx.fetched(self.storage, outer_names, recompute)
        return recompute.then(backward, [*range(len(needed)), *(None for _ in range(n_others))])


def plan_of_call(
    passes: Passes,
    key: Hashable = "call",
    choose: Choose | None = None,
    offload: Offloads | None = None,
    donated: Sequence[bool] | None = None,
    rehearsed: bool = True,
) -> Plan:
    """Plan a body that runs once: its inputs are available when the backward pass comes, but for donated ones."""
    available_inputs = [not d for d in donated or [False] * len(passes.in_types)]
    return passes.made(
        (key, rehearsed),
        lambda: Plan(
            passes,
            lambda *which: passes.made(("backward", *which), lambda: backward_of(passes, *which)),
            available_inputs,
            choose=choose,
            offload=offload,
            rehearsed=rehearsed,
        ),
    )


def _following(program: Program, known: set[Var]) -> set[Var]:
    """Collect all values of a program that follow from the known ones and the constants alone, made again or not."""
    known = {*known, *program.constvars}
    for eqn in program.eqns:
        if is_repeatable(eqn) and all(jx.is_literal(v) or v in known for v in eqn.invars):
            known.update(eqn.outvars)
    return known
