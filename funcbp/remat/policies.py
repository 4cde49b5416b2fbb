"""Which values are kept between the passes, and which are computed again: the policies.

A policy is a function `choose(forward, needed, there)` from the forward program of a body, the values its backward pass
reads and the values that are there anyway to the values that are kept. Two of them solve a problem on the same graph:

    value v    wide as its bytes; available if kept or made again
    maker e    an equation, or an input of the body; made again at a cost, if all that it reads is available

`minimum_cut` finds the fewest bytes when only what is cheap may be made again; `Budget` the least work that fits into a
number of bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from .. import jaxpr as jx
from ..cotangents import ABSORB, Factored, Zero
from ..jaxpr import Program

__all__ = ["RESIDUALS", "Budget", "Choose", "bytes_of", "chooser", "minimum_cut", "permitted", "read_for"]

Choose = Callable[[Program, list[Any], set[Any]], list[Any]]
NEVER = None  # the cost of what is not made again


def bytes_of(variables: Sequence[Any]) -> int:
    """How many bytes these values have together."""
    return sum(v.aval.size * v.aval.dtype.itemsize for v in variables)


def kept_bytes(variables: Sequence[Any]) -> int:
    """How many bytes these values have together when they are kept, where masks are kept as bits."""
    return sum(v.aval.size // 8 if jx.packs(v.aval) else bytes_of([v]) for v in variables)


def read_for(program: Program, targets: Sequence[Any], given: set[Any]) -> set[Any]:
    """All values that are read when the targets are computed from the given values and the inputs."""
    read = {v for v in targets if not jx.is_literal(v)}
    for eqn in reversed(program.eqns):
        if any(v in read and v not in given for v in eqn.outvars):
            read |= {v for v in eqn.invars if not jx.is_literal(v)}
    return read


# --- the simple ones --------------------------------------------------------------------------------------------------


def save_all(forward: Program, needed: list[Any], available: set[Any]) -> list[Any]:
    """Keep everything the backward pass reads; compute nothing again."""
    return needed


def recompute_all(forward: Program, needed: list[Any], available: set[Any]) -> list[Any]:
    """Keep the inputs of each step; compute everything again."""
    return [v for v in forward.invars if v in read_for(forward, needed, set()) and v not in available]


# --- the graph --------------------------------------------------------------------------------------------------------


class Graph(NamedTuple):
    """What is needed, what it is made of, and how wide it is. Values that are alike share a place.

    Attributes:
        values: for each place, the variables in it.
        widths: their bytes.
        maker: for each place, which maker makes it.
        makers: for each maker, its equations; none for an input of the body.
        reads: for each maker, the places it reads.
        needed: the places that must be available.
    """

    values: list[list[Any]]
    widths: np.ndarray
    maker: list[int]
    makers: list[list[Any]]
    reads: list[list[int]]
    needed: list[int]


def graph_of(forward: Program, needed: list[Any], available: set[Any], alike: Mapping[Any, Any] | None = None) -> Graph:
    """The graph between the inputs of a program and what is needed of it, without the values that are there anyway."""
    alike = alike or {}
    read = read_for(forward, needed, available) - available - set(forward.constvars)
    place: dict[Any, int] = {}
    maker_of: dict[Any, int] = {}
    values: list[list[Any]] = []
    maker: list[int] = []
    makers: list[list[Any]] = []
    reads: list[dict[int, None]] = []

    def put(made: Sequence[Any], eqn: Any) -> None:
        first = alike.get(made[0], made[0])
        e = maker_of.setdefault(first, len(makers))
        if e == len(makers):
            makers.append([])
            reads.append({})
        if eqn is not None:
            makers[e].append(eqn)
            inputs = (alike.get(v, v) for v in eqn.invars if not jx.is_literal(v) and v in read)
            reads[e].update((place[v], None) for v in inputs)
        for v in (v for v in made if v in read):
            i = place.setdefault(alike.get(v, v), len(values))
            if i == len(values):
                values.append([])
                maker.append(e)
            values[i].append(v)

    for v in forward.invars:
        if v in read:
            put([v], None)
    for eqn in forward.eqns:
        if any(v in read for v in eqn.outvars):
            put(eqn.outvars, eqn)
    widths = np.array([max(1, kept_bytes(variables)) for variables in values], float)
    targets = dict.fromkeys(place[alike.get(v, v)] for v in needed)
    return Graph(values, widths, maker, makers, [list(r) for r in reads], list(targets))


def narrowest(graph: Graph, costs: Sequence[float | None]) -> list[Any]:
    """The values to keep for which bytes plus costs of what is made again are least.

    Flow comes from every maker's cost, without bound where it is not made again, and goes through the values it makes,
    as wide as they have bytes, into what reads them and what is needed. The narrowest cut is the answer. Of several,
    the one nearest to what is needed: it leaves the least to make again.
    """
    n, m = len(graph.values), len(graph.makers)
    if not n:
        return []
    source, sink, unbounded = n + m, n + m + 1, 2**30
    finite = sum(graph.widths[np.isfinite(graph.widths)]) + sum(c for c in costs if c is not NEVER)
    unit = max(1, finite // unbounded + 1)
    size = lambda width: int(min(-(-width // unit), unbounded)) if np.isfinite(width) else unbounded
    edges = [(n + e, i, size(graph.widths[i])) for i, e in enumerate(graph.maker)]
    edges += [(i, n + e, unbounded) for e, places in enumerate(graph.reads) for i in places]
    edges += [(source, n + e, unbounded if c is NEVER else size(c)) for e, c in enumerate(costs) if c != 0]
    edges += [(i, sink, unbounded) for i in graph.needed]
    rows, columns, widths = zip(*edges, strict=True)
    flow_graph = csr_array((np.array(widths, np.int32), (rows, columns)), shape=(sink + 1, sink + 1))
    left = flow_graph - maximum_flow(flow_graph, source, sink).flow
    upstream = breadth_first_order((left > 0).astype(np.int8).T.tocsr(), sink, return_predecessors=False)
    near_sink = set(upstream.tolist())
    cut = (i for i, e in enumerate(graph.maker) if i in near_sink and n + e not in near_sink)
    return [v for i in cut for v in graph.values[i]]


def minimum_cut(
    forward: Program, needed: list[Any], available: set[Any], alike: Mapping[Any, Any] | None = None
) -> list[Any]:
    """Keep the fewest bytes from which all that is needed can be computed again cheaply.

    A step's inputs, and the results of contractions, loops, sorts and draws, are not made again: see `jaxpr.is_cheap`.
    """
    graph = graph_of(forward, needed, available, alike)
    return narrowest(graph, [0 if eqns and all(map(jx.is_cheap, eqns)) else NEVER for eqns in graph.makers])


# --- what the user's own policy permits -------------------------------------------------------------------------------


def permitted(saved: Callable[[Any], bool], cut: bool = True) -> Choose:
    """Of the results that a `jax.checkpoint` policy approves of, those that are needed.

    Args:
        saved: whether the policy approves of an equation's results.
        cut: whether approved results that can be had again cheaply are kept only where that is narrower. Contractions
            of which the policy approves, and names where it does not approve of the named value itself, are never made
            again; what it does not approve of is never kept.
    """

    def every(forward: Program, needed: list[Any], available: set[Any]) -> list[Any]:
        approved = {v for eqn in forward.eqns if saved(eqn) for v in eqn.outvars}
        read = read_for(forward, needed, approved)
        return [v for eqn in forward.eqns for v in eqn.outvars if v in approved and v in read]

    def narrow(forward: Program, needed: list[Any], available: set[Any]) -> list[Any]:
        graph = graph_of(forward, needed, available)
        approved = [any(map(saved, eqns)) for eqns in graph.makers]
        also = {v for eqn in forward.eqns if saved(eqn) for v in eqn.outvars}
        again = lambda eqn: jx.is_cheap(eqn) and (eqn.primitive.name != "name" or eqn.invars[0] in also)
        costs = [
            NEVER if a and not all(map(again, eqns)) else 0 for a, eqns in zip(approved, graph.makers, strict=True)
        ]
        widths = np.where([approved[e] for e in graph.maker], graph.widths, np.inf)
        return narrowest(graph._replace(widths=widths), costs)

    return narrow if cut else every


# --- a budget ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """What a loop may keep for its backward pass, at most: the plan with the least work to do again that fits.

    What is counted is what one loop stacks over all its steps, in bytes; a loop inside another one is counted with what
    it hands to the outer loop, and by itself. What is there anyway (the loop's own inputs, what is the same at every
    step) is not counted. Work is counted in floating-point operations; contractions, inner loops and sorts may be done
    again, random draws, collectives, callbacks and custom calls are not. The plan is exact: a small integer program.

    Args:
        bytes: the most bytes a loop may stack.
        fraction: the same as a fraction of what the policy `"needed"` stacks. One of the two is given.

    Raises:
        ValueError: neither or both are given, or one that is not positive; and, when a loop is differentiated, a budget
            that cannot be met: the message says by how much, and what the smallest is.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> f = lambda x: jax.lax.scan(lambda c, _: (jnp.sin(jnp.exp(c)), None), x, None, 50)[0].sum()
        >>> backward = bp.Backward(residuals=bp.Budget(bytes=50 * 8 * 4))
        >>> bool(jnp.all(backward.grad(f)(jnp.ones(8)) == bp.grad(f)(jnp.ones(8))))
        True
    """

    bytes: int | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        given = [x for x in (self.bytes, self.fraction) if x is not None]
        if len(given) != 1 or not given[0] > 0:
            raise ValueError(
                f"A Budget is given as bytes=... or as fraction=..., one of the two and positive, and was {self!r}."
            )

    def chooser(self, steps: int = 1) -> Choose:
        """The policy for a body that runs so many times."""

        def choose(
            forward: Program, needed: list[Any], available: set[Any], alike: Mapping[Any, Any] | None = None
        ) -> list[Any]:
            graph = graph_of(forward, needed, available, alike)
            if not graph.values:
                return []
            limit = self.bytes / steps if self.bytes is not None else self.fraction * bytes_of(needed)  # type: ignore[operator]
            again = [bool(eqns) and all(map(jx.is_repeatable, eqns)) for eqns in graph.makers]
            smallest = kept_bytes(narrowest(graph, [0 if a else NEVER for a in again]))
            if smallest > limit:
                where = jx.user_line(jx.current_source())
                raise ValueError(
                    f"{self} allows {_size(limit * steps)} to be kept{f' at {where}' if where else ''}, and the "
                    f"backward pass cannot do with less than {_size(smallest * steps)} "
                    f"({steps:,} × {_size(smallest)}): {_size((smallest - limit) * steps)} are missing. "
                    f"The smallest budget is Budget(bytes={smallest * steps})."
                )
            costs = [
                float(sum(map(jx.flops, eqns))) if a else NEVER for a, eqns in zip(again, graph.makers, strict=True)
            ]
            chosen = cheapest(graph, costs, limit)
            read = read_for(forward, needed, {*chosen, *available})
            return [v for v in chosen if v in read]

        return choose


def cheapest(graph: Graph, costs: Sequence[float | None], limit: float) -> list[Any]:
    """The values to keep, of no more bytes than `limit`, for which what is made again costs least.

    The integer program, with available(v), again(e), kept(v) in {0, 1}:

        min Σ cost(e) again(e)   with   Σ bytes(v) kept(v) ≤ limit,
        kept(v) ≥ available(v) - again(maker of v),   again(e) ≤ available(v) for all v that e reads.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    n, m = len(graph.values), len(graph.makers)
    kept, available, again = np.arange(n), n + np.arange(n), 2 * n + np.arange(m)
    reads = np.array([(e, i) for e, places in enumerate(graph.reads) for i in places], int).reshape(-1, 2)
    ones = lambda rows, columns, size, sign: coo_array((np.full(len(rows), sign), (rows, columns)), (size, 2 * n + m))
    makes = ones(kept, kept, n, 1.0) - ones(kept, available, n, 1.0) + ones(kept, again[graph.maker], n, 1.0)
    edge = np.arange(len(reads))
    needs = ones(edge, available[reads[:, 1]], len(reads), 1.0) - ones(edge, again[reads[:, 0]], len(reads), 1.0)
    total = sum(c for c in costs if c is not NEVER) or 1.0
    work = np.array([0.0 if c is NEVER else c / total for c in costs])
    lower, upper = np.zeros(2 * n + m), np.ones(2 * n + m)
    lower[available[graph.needed]] = 1
    upper[again] = [c is not NEVER for c in costs]
    share = np.concatenate([graph.widths, np.zeros(n + m)]) / limit
    constraints = [LinearConstraint(share[None], -np.inf, 1 + 1e-9), *(LinearConstraint(a, 0) for a in (makes, needs))]
    # of plans that cost the same, the one with fewer bytes; all in numbers that the solver does not take for nothing
    objective = 1e4 * np.concatenate([1e-6 * graph.widths / graph.widths.sum(), np.zeros(n), work])
    how = dict(bounds=Bounds(lower, upper), integrality=np.ones(2 * n + m), options={"mip_rel_gap": 0.0})
    solution = milp(objective, constraints=constraints, **how)
    if solution.x is None:
        raise RuntimeError(f"The integer program for a budget was not solved: {solution.message}")
    return [v for i in kept if solution.x[i] > 0.5 for v in graph.values[i]]


def _size(n: float) -> str:
    return f"{n:,.0f} bytes"


# --- products of weights ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deferral:
    """When products with a loop's constant are carried out outside the loop, all steps' at once.

    In the loop each step's gradient reads and writes the whole sum W̄ += x' δ, however small its own product is: for a
    batch of one, two operations per number moved. After the loop, each step has stored x and δ, and the sum is written
    once. A product x W of what the loop goes over likewise reads the whole of W at each step, and before the loop reads
    it once. That is faster when the constant is too large for a core's cache, but the stacks take memory, so they must
    be small beside it.

    Args:
        times: how many times more bytes the constant must have than what one step stacks.
        at_least: how many bytes the constant must have.
    """

    times: float = 32.0
    at_least: int = 2**18

    def worth(self, ct: Any) -> bool:
        """Whether to wait until after the loop with this cotangent of one of its constants."""
        if type(ct) is not Factored or ct.rest is not Zero or not all(p.rule in ABSORB for p in ct.products):
            return False
        summed = math.prod(ct.shape) * ct.dtype.itemsize
        return self.pays(summed, sum(x.size * x.dtype.itemsize for p in ct.products for x in (p.ct, p.other)))

    def pays(self, constant: int, stacked: int) -> bool:
        """Whether it pays for a constant of so many bytes, where each step stacks so many."""
        return constant >= self.at_least and constant >= self.times * stacked


WAIT, NOW = Deferral(), Deferral(math.inf)
AHEAD = Deferral()  # for products before the loop, as WAIT is for sums after it


def deferral(residuals: str | Budget, ahead: bool = False) -> Deferral:
    """When to wait with sums, or to go ahead with products: under a policy that limits what is stacked, not at all."""
    return (AHEAD if ahead else WAIT) if residuals in ("min_cut", "needed") else NOW


# --- by name ----------------------------------------------------------------------------------------------------------

RESIDUALS: dict[Hashable, Choose] = {"min_cut": minimum_cut, "needed": save_all, "inputs": recompute_all}


def chooser(residuals: str | Budget, steps: int = 1) -> Choose:
    """The policy `Backward(residuals=...)` asks for, for a body that runs so many times."""
    return residuals.chooser(steps) if isinstance(residuals, Budget) else RESIDUALS[residuals]


def check_residuals(residuals: Any) -> None:
    """Whether it names a policy."""
    if not isinstance(residuals, Budget) and residuals not in RESIDUALS:
        raise ValueError(f"residuals is one of {', '.join(map(repr, RESIDUALS))}, or a Budget, and was {residuals!r}.")
