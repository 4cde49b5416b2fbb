"""A gradient that fits into a budget: the plan that recomputes least among those whose predicted peak is no larger.

What can be done about a program is a ladder, tried from the fastest rung down: its loops keep less and less, as a byte
that is kept weighs more in their cuts; then its straight-line parts become regions, and keep less and less; then its
loops keep a few snapshots. No rung traces the user's function again: plans are made of passes that were recorded once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import jaxpr as jx
from ..cotangents import Zero, is_differentiable
from ..jaxpr import Kind, Program
from ..jaxpr.types import JaxprEqn
from ..remat.cut import turning_points
from ..remat.graph import bytes_of, kept_bytes
from ..remat.machine import machine_here
from ..remat.peak import Flow
from ..remat.plan import Plan, plan_of_call
from ..remat.policies import MinCut
from ..remat.regions import Region, planned, regions_of, run_regions, straight
from ..rules.cost import is_repeatable
from ..rules.options import Options
from .passes import passes_of

__all__ = ["Fit", "fitted"]

FEW, MANY = 8, 32  # up to how many rungs are looked at one by one, and about how many a ladder has
RERUNS = 4  # how often a step is run again at most, where a loop keeps snapshots


class Rung(NamedTuple):
    """What is done about a program.

    Attributes:
        weight: how many times a byte that is kept counts.
        regions: how many straight-line parts are planned as well, the first ones: what these keep waits longest.
        snapshots: how many states a loop keeps; None where it keeps its steps.
    """

    weight: float
    regions: int = 0
    snapshots: int | None = None


class Fit(NamedTuple):
    """A program, and how its gradient fits.

    Attributes:
        program: what was traced.
        regions: its parts, and which of them are planned.
        options: those of the backward pass, with the policy of what is inside the parts.
        peak: the bytes that the gradient is predicted to have in use at most, beside arguments and results.
        waiting: of these, what parts before the one that runs then keep, and would not as regions.
        plans: of the parts that are gone back through.
    """

    program: Program
    regions: Sequence[Region]
    options: Options
    peak: int
    waiting: int
    plans: Sequence[Plan]

    def run(self, *args: Any) -> list[Any]:
        """Run the program, part by part."""
        return run_regions(self.program, self.regions, args)


def fitted(f: Callable[..., Sequence[Any]], types: Sequence[Any], perturbed: Sequence[bool], options: Options) -> Fit:
    """Find how to run a function so that its gradient fits into the budget that is the options' policy.

    Args:
        f: from arrays to a list of arrays.
        types: of its arguments.
        perturbed: which of these are differentiated.

    Raises:
        ValueError: nothing that can be done fits: the message says what the smallest budget is. Or sizes are left open.
    """
    line = jx.user_line(jx.current_source())
    program, where = straight(f, types), line and f" at {line}"
    if any(jx.closed_sizes(eqn) is not eqn for eqn in program.eqns):
        raise ValueError(
            f"{options.policy} is in bytes, and the gradient{where} is exported for sizes that are left open: how many "
            "bytes it needs is not known. Export it for sizes that are numbers, or without a budget: "
            'residuals="min_cut".'
        )
    differentiated = [p and is_differentiable(t) for p, t in zip(perturbed, types, strict=True)]
    search, budget = Search(program, differentiated, options), options.policy
    limit = int(budget.fraction * search.fit(Rung(1.0)).peak) if budget.bytes is None else budget.bytes
    for ladder in search.ladders(limit):
        if (fit := search.first(ladder, limit)) is not None:
            return fit
    smallest = search.smallest()
    if smallest.peak <= limit:
        return smallest
    raise ValueError(
        f"{budget} allows {limit:,} bytes beside arguments and results, and the gradient{where} "
        f"needs {smallest.peak:,} at the least, as predicted: {smallest.peak - limit:,} are missing. "
        f"The smallest budget is Budget(bytes={smallest.peak})."
    )


class Search:
    """The plans of one program.

    Args:
        program: the program.
        perturbed: which of its inputs are differentiated.
        options: those of the backward pass.
    """

    def __init__(self, program: Program, perturbed: Sequence[bool], options: Options):
        self.program, self.perturbed, self.options = program, perturbed, options
        self.machine = machine_here()
        self.regions = regions_of(program)
        self.known: dict[Any, Any] = {}
        self.fits: dict[Rung, Fit] = {}

    def fit(self, rung: Rung) -> Fit:
        """Plan the program like this, and predict its peak."""
        if rung not in self.fits:
            regions, plans, active = self._plans(rung)
            options = self._options(rung)
            self.fits[rung] = _fit(self.program, regions, plans, active, options, self.known)
        return self.fits[rung]

    def _options(self, rung: Rung) -> Options:
        return self.options.replace(policy=MinCut(weight=rung.weight))

    def _plans(self, rung: Rung) -> tuple[list[Region], list[Plan | None], set[Any]]:
        """Plan the parts of the program like this, and collect what a differentiated input reaches.

        The plan of a part that no such value enters is None.
        """
        options = self._options(rung)
        regions = planned(self.regions, options.policy, rung.regions)
        if rung.snapshots is not None:
            own = {"snapshots": rung.snapshots}
            regions = [r._replace(program=jx.with_snapshots(r.program, own, _reruns)) for r in regions]
        active = {v for v, p in zip(self.program.invars, self.perturbed, strict=True) if p}
        plans: list[Plan | None] = []
        for region in regions:
            flags = [v in active for v in region.inputs]
            plan = _plan_of(region, flags, options) if any(flags) else None
            if plan is not None:
                active |= {v for v, d in zip(region.outputs, plan.passes.differentiable, strict=True) if d}
            plans.append(plan)
        return regions, plans, active

    def ladders(self, limit: float) -> Iterator[list[Rung]]:
        """Yield what can be done, each time from the fastest to the smallest; and from the fastest way to the last.

        Regions of which there is no hope, as nothing that they would not keep is there at the peak, come last of all.
        """
        parts = sum(r.planned for r in self.regions)
        all_parts = parts if self.options.outside_loops else 0
        yield [(last := Rung(1.0, all_parts))]
        if points := self._points(last):
            yield [Rung(w, all_parts) for w in points]
            last = Rung(points[-1], all_parts)
        hopeless = self.fit(last).peak - self.fit(last).waiting > limit
        if parts > all_parts and not hopeless:
            yield from self._in_regions(parts)
        steps = max((eqn.params["length"] for eqn in self._loops()), default=0)
        least = next(s for s in range(1, steps + 2) if math.comb(s + RERUNS, s) >= steps)
        if steps > 2 * least:
            yield [Rung(math.inf, 0, s) for s in (*range(steps // 2, least, -max(1, steps // MANY)), least)]
        if parts > all_parts and hopeless:
            yield from self._in_regions(parts)

    def smallest(self) -> Fit:
        """Find the rung with the lowest peak: of a short ladder each is looked at, of a long one the last."""
        for ladder in self.ladders(math.inf):
            for rung in ladder if len(ladder) <= FEW else ladder[-1:]:
                self.fit(rung)
        return min(self.fits.values(), key=lambda fit: fit.peak)

    def _loops(self) -> Iterator[JaxprEqn]:
        return (eqn for r in self.regions for eqn in r.program.eqns if _reruns(eqn))

    def _in_regions(self, parts: int) -> Iterator[list[Rung]]:
        """Yield more and more parts as regions; and all of them, where each keeps less."""
        yield [Rung(1.0, n) for n in (*range(0, parts, max(1, parts // MANY)), parts)]
        if points := self._points(Rung(1.0, parts)):
            yield [Rung(w, parts) for w in points]

    def _points(self, rung: Rung) -> list[float]:
        """List the weights from which on one of the plans is another one."""
        points: set[float] = set()
        for plan in _inside(self.fit(rung).plans):
            if plan.question is None:
                continue
            find = functools.partial(turning_points, *plan.question, self.machine)
            points.update(plan.passes.made(("turning points", *plan.question[3:], self.machine), find))
        return sorted(points)

    def first(self, ladder: list[Rung], limit: float) -> Fit | None:
        """Find the first rung of a ladder that fits; None if the last one does not.

        Of few, each is looked at; of many, where it is to be expected.
        """
        if ladder[-1].snapshots is not None:
            return self._expected(ladder, *self._with_snapshots(ladder), limit)
        if len(ladder) > FEW and ladder[-1].regions > ladder[0].regions:
            return self._expected(ladder, *self._with_regions(ladder), limit)
        if self.fit(ladder[-1]).peak > limit:
            return None
        if len(ladder) <= FEW:
            return next(fit for fit in map(self.fit, ladder) if fit.peak <= limit)
        large, small = self.fit(ladder[0]).peak, self.fit(ladder[-1]).peak  # and evenly smaller between them
        return self._expected(ladder, np.linspace(large - small, 0, len(ladder)).tolist(), small, limit)

    def _expected(self, ladder: list[Rung], above: Sequence[float], least: float, limit: float) -> Fit | None:
        """Find the first rung that fits where it is expected, and look again where what was expected was wrong.

        Args:
            above: how many bytes each rung is expected to need beside `least`, the fewest last. What it is found to
                need corrects what is expected of all.
        """
        low, high, at = -1, len(ladder), -1  # what is known not to fit, and what to fit
        while True:
            missed = at >= 0 and high == len(ladder)
            expected = next((i for i, more in enumerate(above) if least + more <= limit), len(ladder) - 1)
            at = len(ladder) - 1 if missed else max(expected, low + 1)
            if at >= high:
                return self.fit(ladder[high])
            fit = self.fit(ladder[at])
            least = fit.peak - above[at]
            if fit.peak <= limit:
                high = at
            elif at == len(ladder) - 1:
                return None
            else:
                low = at

    def _with_regions(self, ladder: list[Rung]) -> tuple[Sequence[float], float]:
        """Expect of each part that is a region that it keeps so much less until it is gone back through.

        The last one is gone back through first.
        """
        kept = lambda rung: [0 if plan is None else kept_bytes(plan.saved) for plan in self._plans(rung)[1]]
        before, after = kept(ladder[0]), kept(ladder[-1])
        saved = [b - a for b, a, region in zip(before, after, self.regions, strict=True) if region.planned]
        above = [float(sum(saved[rung.regions : -1])) for rung in ladder]
        return above, self.fit(ladder[0]).peak - above[0]

    def _with_snapshots(self, ladder: list[Rung]) -> tuple[Sequence[float], float]:
        """Expect each loop's state for a snapshot, in the place of what the loops stack at most."""
        parts = ((eqn, *jx.scan_parts(eqn.params)[1:]) for eqn in self._loops())
        state = max(sum(bytes_of(eqn.invars[n : n + n_carry]) for eqn, n, n_carry in parts), 1)
        largest = self.fit(Rung(1.0))
        entries = (entry for plan in largest.plans for entry in plan.passes.tape.entries if "length" in entry.params)
        stacked = sum(entry.params["length"] * kept_bytes(p.saved) for entry in entries for p in entry.plans)
        return [float(state * (rung.snapshots or 0)) for rung in ladder], largest.peak - stacked


def _reruns(eqn: JaxprEqn) -> bool:
    """Tell whether an equation is a loop whose steps can be run again: none with a draw, an effect, a collective."""
    return jx.inside_of(eqn).kind is Kind.SCAN and is_repeatable(eqn)


def _inside(plans: Sequence[Plan]) -> Iterator[Plan]:
    """Yield plans, and those of the programs inside."""
    for plan in plans:
        yield plan
        yield from _inside([p for entry in plan.passes.tape.entries for p in entry.plans])


def _fit(
    program: Program,
    regions: Sequence[Region],
    plans: Sequence[Plan | None],
    active: set[Any],
    options: Options,
    known: dict[Any, Any],
) -> Fit:
    """Predict the peak of the gradient of a program, part by part forward and back.

    Args:
        plans: of its parts.
        active: what a differentiated input reaches.
        known: what is known of programs, from one prediction to the next.
    """
    flow = Flow(known)
    env: dict[Any, int | None] = {v: flow.new() for v in (*program.constvars, *program.invars)}
    read = lambda v: None if jx.is_literal(v) else env[v]
    passed: list[tuple[Region, Plan, list[int | None]]] = []
    begins: list[tuple[int, int]] = []  # after how many operations which part begins, on either way
    for region, plan in zip(regions, plans, strict=True):
        begins.append((len(flow.ops), len(passed)))
        inputs = [env[v] for v in region.inputs]
        if plan is None:
            outs = flow.call(region.program, inputs)
        else:
            made = flow.call(plan.forward, inputs)
            outs, saved = made[: len(region.outputs)], made[len(region.outputs) :]
            passed.append((region, plan, saved))
        env.update(zip(region.outputs, outs, strict=True))
    cts: dict[Any, int | None] = {v: flow.new() for v in program.outvars if not jx.is_literal(v) and v in active}
    for i, (region, plan, saved) in reversed([*enumerate(passed)]):
        begins.append((len(flow.ops), i))
        nonzero = [v in cts and d for v, d in zip(region.outputs, plan.passes.differentiable, strict=True)]
        if not any(nonzero):
            continue
        backward, tree = plan.backward(nonzero, None)
        given = [env[region.inputs[i]] for i in plan.available_inputs]
        args = [*given, *saved, *(cts[v] for v, n in zip(region.outputs, nonzero, strict=True) if n)]
        outs = flow.call(backward, args) if region.policy is None else flow.apart(backward, args)
        back, _ = jax.tree.unflatten(tree, [o or flow.new() for o in outs])
        for v, ct in zip(region.inputs, back, strict=True):
            if ct is not None and ct is not Zero and v in active:
                before = cts.get(v)
                cts[v] = ct if before is None else flow.add(before, ct, bytes_of([v]))
    results = [*map(read, program.outvars), *(cts.get(v) for v in program.invars)]
    peak, at = flow.highest(results)
    part = next((i for start, i in reversed(begins) if start <= at), 0)
    waiting = sum(kept_bytes(plan.saved) for region, plan, _ in passed[:part] if region.planned)
    return Fit(program, regions, options, peak, waiting, [plan for _, plan, _ in passed])


def _plan_of(region: Region, perturbed: Sequence[bool], options: Options) -> Plan:
    passes = passes_of(region.program.jaxpr, perturbed, options.inlining)
    return plan_of_call(passes) if region.policy is None else plan_of_call(passes, region.policy, region.policy.choose)
