"""The minimum cut: the least time for what is kept and what is recomputed; or the fewest bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .. import jaxpr as jx
from ..jaxpr import Program, primitives
from ..jaxpr.types import JaxprEqn, Var
from ..rules.cost import is_cheap
from .graph import Graph, graph_of, read_for
from .machine import Machine
from .price import NEVER, price

__all__ = ["NEVER", "Choose", "cheapest_cut", "minimum_cut", "narrowest", "permitted", "speed_up", "turning_points"]

Choose = Callable[[Program, list[Var], set[Var]], list[Var]]


def narrowest(graph: Graph, costs: Sequence[float | None]) -> list[Var]:
    """Choose the values to save for which bytes plus costs of what is recomputed are least.

    Flow comes from every maker's cost, without bound where it is not recomputed, and goes through the values it makes,
    as wide as they have bytes, into what reads them and what is needed. The narrowest cut is the answer. Of several,
    the one nearest to what is needed: it leaves the least to recompute.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    n, m = len(graph.values), len(graph.makers)
    if not n:
        return []
    source, sink, unbounded = n + m, n + m + 1, 2**30
    finite = sum(graph.widths[np.isfinite(graph.widths)]) + sum(c for c in costs if c is not NEVER)
    unit, scale = max(1, finite // unbounded + 1), max(1, unbounded // (4 * int(finite + 1)))  # in whole numbers
    size = lambda width: int(min(-(-width * scale // unit), unbounded)) if np.isfinite(width) else unbounded
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


def minimum_cut(forward: Program, needed: list[Var], available: set[Var]) -> list[Var]:
    """Choose the fewest bytes from which all that is needed can be recomputed cheaply.

    A step's inputs, and the results of contractions, loops, sorts and draws, are not recomputed: see `rules.cost`.
    """
    graph = graph_of(forward, needed, available)
    return narrowest(graph, [0 if eqns and all(map(is_cheap, eqns)) else NEVER for eqns in graph.makers])


def cheapest_cut(
    forward: Program,
    needed: list[Var],
    available: set[Var],
    steps: int,
    machine: Machine,
    weight: float = 1.0,
) -> list[Var]:
    """Choose what to keep so that keeping it and recomputing the rest takes this machine the least time.

    Args:
        steps: how often the program runs: what all steps keep is moved the faster if the cache holds it.
        weight: how many times a byte that is kept counts.
    """
    graph, prices, _ = _priced(forward, tuple(needed), frozenset(available), steps, machine)
    return narrowest(graph, _weighed(prices, weight))


def turning_points(
    forward: Program, needed: list[Var], available: set[Var], steps: int, machine: Machine
) -> list[float]:
    """List the weights above 1 from which on the cheapest cut is another one, in order.

    Of a cut that keeps b bytes and recomputes for c the weighed price is b + c / weight: a line. The cheapest cuts are
    the lower hull of these lines; between two of them there is another one if the cut where they meet lies below both.
    """
    graph, prices, _ = _priced(forward, tuple(needed), frozenset(available), steps, machine)
    found: list[float] = []

    def line(weight: float) -> tuple[float, float]:
        chosen = narrowest(graph, _weighed(prices, weight))
        return _line(graph, prices, chosen)

    def between(first: tuple[float, float], last: tuple[float, float]) -> None:
        saved, dearer = first[0] - last[0], last[1] - first[1]
        if saved <= 0 or dearer <= 0:
            return
        meet = max(1.0, dearer / saved) * (1 + 1e-3)  # beyond it, as at it both cost the same
        middle = line(meet)
        if last[0] < middle[0] < first[0]:
            between(first, middle)
            between(middle, last)
        else:
            found.append(meet)

    if graph.values:
        between(line(1.0), line(np.inf))
    return sorted(found)


def _line(graph: Graph, prices: Sequence[float | None], chosen: Sequence[Var]) -> tuple[float, float]:
    """Count the bytes that a cut keeps, and the price of what it recomputes."""
    kept = set(chosen)
    held = [bool(kept.intersection(variables)) for variables in graph.values]
    again: set[int] = set()
    todo = [i for i in graph.needed if not held[i]]
    while todo:
        e = graph.maker[todo.pop()]
        if e not in again:
            again.add(e)
            todo += [i for i in graph.reads[e] if not held[i]]
    return float(graph.widths[held].sum()), float(sum(prices[e] or 0.0 for e in again))


def speed_up(forward: Program, needed: list[Var], available: set[Var], steps: int, machine: Machine) -> float:
    """Return how many times faster than through memory what is kept is moved: where the cache holds that of all steps.

    So many times what is computed again costs, in bytes that are kept.
    """
    return _priced(forward, tuple(needed), frozenset(available), steps, machine)[2]


@jx.weakref_cache
def _priced(
    forward: Program, needed: tuple[Var, ...], available: frozenset[Var], steps: int, machine: Machine
) -> tuple[Graph, list[float | None], float]:
    """Build the graph, and list what computing each of its makers again costs: once for all weights."""
    graph = graph_of(forward, list(needed), set(available))
    prices = [_together(eqns, machine) for eqns in graph.makers]
    if machine.near > 1 and isinstance(steps, int) and steps > 1:
        near = _weighed(prices, 1 / machine.near)
        if steps * _line(graph, near, narrowest(graph, near))[0] <= machine.cache:
            return graph, near, machine.near
    return graph, prices, 1.0


def _weighed(prices: Sequence[float | None], weight: float) -> list[float | None]:
    return [p if p is NEVER else p / weight for p in prices]


def _together(eqns: Sequence[JaxprEqn], machine: Machine) -> float | None:
    """Return the price of computing these equations again; an input of the body cannot be."""
    prices = [price(eqn, machine) for eqn in eqns]
    return NEVER if not prices or NEVER in prices else sum(prices)  # type: ignore[arg-type]


def permitted(
    saved: Callable[[JaxprEqn], bool], cut: bool = True, offloaded: Callable[[JaxprEqn], bool] = lambda eqn: False
) -> Choose:
    """Make a choice of those results that a `jax.checkpoint` policy approves of and that are needed.

    Args:
        saved: whether the policy approves of an equation's results.
        cut: whether approved results that can be recomputed cheaply are saved only where that is narrower. Contractions
            of which the policy approves, and names where it does not approve of the named value itself, are never
            recomputed; what it does not approve of is never saved.
        offloaded: whether the policy has the results wait in another memory; these are never recomputed either.
    """

    def every(forward: Program, needed: list[Var], available: set[Var]) -> list[Var]:
        approved = {v for eqn in forward.eqns if saved(eqn) for v in eqn.outvars}
        read = read_for(forward, needed, approved)
        return [v for eqn in forward.eqns for v in eqn.outvars if v in approved and v in read]

    def narrow(forward: Program, needed: list[Var], available: set[Var]) -> list[Var]:
        graph = graph_of(forward, needed, available)
        approved = [any(map(saved, eqns)) for eqns in graph.makers]
        also = {v for eqn in forward.eqns if saved(eqn) for v in eqn.outvars}
        only_name = lambda eqn: eqn.primitive is primitives.name_p and eqn.invars[0] not in also
        recomputable = lambda eqn: is_cheap(eqn) and not only_name(eqn) and not offloaded(eqn)
        costs = [
            NEVER if a and not all(map(recomputable, eqns)) else 0
            for a, eqns in zip(approved, graph.makers, strict=True)
        ]
        widths = np.where([approved[e] for e in graph.maker], graph.widths, np.inf)
        return narrowest(graph._replace(widths=widths), costs)

    return narrow if cut else every
