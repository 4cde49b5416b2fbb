"""A budget: the least recomputation that fits into a number of bytes, by an integer program on the same graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import jaxpr as jx
from ..jaxpr import Program
from ..jaxpr.types import Var
from ..rules.cost import is_repeatable, work
from .cut import NEVER, narrowest
from .graph import Graph, bytes_of, graph_of, kept_bytes, read_for
from .policies import Policy

__all__ = ["Budget", "cheapest"]


@dataclass(frozen=True, repr=False)
class Budget(Policy):
    """What a loop may save for its backward pass, at most: the plan with the least recomputation that fits.

    What is counted is what one loop stacks over all its steps, in bytes; a loop inside another one is counted with what
    it hands to the outer loop, and by itself. What is available (the loop's own inputs, what is the same at every step)
    is not counted. Work is counted in floating-point operations; contractions, inner loops and sorts may be repeated,
    random draws, collectives, callbacks and custom calls are not. The plan is exact: a small integer program.

    Args:
        bytes: the most bytes a loop may stack.
        fraction: the same as a fraction of what the policy `"needed"` stacks. One of the two is given.

    Raises:
        ValueError: neither or both are given, one that is not positive, or a fraction above 1; and, when a loop is
            differentiated, a budget that cannot be met: the message says by how much, and what the smallest is.

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
                f"A Budget is given as bytes=... or as fraction=..., one of the two and positive, and was "
                f"given bytes={self.bytes!r} and fraction={self.fraction!r}."
            )
        if self.bytes is not None and self.bytes == math.inf:
            raise ValueError('A Budget without a bound is none: residuals="needed" keeps all that is read.')
        if self.fraction is not None and self.fraction > 1:
            raise ValueError(f"A Budget's fraction is of all that is needed, at most 1, and was {self.fraction!r}.")

    def __repr__(self) -> str:
        given = f"bytes={self.bytes}" if self.bytes is not None else f"fraction={self.fraction}"
        return f"Budget({given})"

    def choose(self, forward: Program, needed: list[Var], available: set[Var], steps: int = 1) -> list[Var]:
        """Choose the least recomputation that fits, of a body that runs so many times."""
        graph = graph_of(forward, needed, available)
        if not graph.values:
            return []
        limit = self.bytes / steps if self.bytes is not None else self.fraction * bytes_of(needed)  # type: ignore[operator]
        repeatable = [bool(eqns) and all(map(is_repeatable, eqns)) for eqns in graph.makers]
        smallest = kept_bytes(narrowest(graph, [0 if a else NEVER for a in repeatable]))
        if smallest > limit:
            where = jx.user_line(jx.current_source())
            raise ValueError(
                f"{self} allows {_size(limit * steps)} to be kept{f' at {where}' if where else ''}, and the "
                f"backward pass cannot do with less than {_size(smallest * steps)} "
                f"({steps:,} × {_size(smallest)}): {_size((smallest - limit) * steps)} are missing. "
                f"The smallest budget is Budget(bytes={smallest * steps})."
            )
        costs = [float(sum(map(work, eqns))) if a else NEVER for a, eqns in zip(repeatable, graph.makers, strict=True)]
        chosen = cheapest(graph, costs, limit)
        read = read_for(forward, needed, {*chosen, *available})
        return [v for v in chosen if v in read]


def cheapest(graph: Graph, costs: Sequence[float | None], limit: float) -> list[Var]:
    """Choose the values to save, of no more bytes than `limit`, for which what is recomputed costs least.

    The integer program, with available(v), repeated(e), kept(v) in {0, 1}:

        min Σ cost(e) repeated(e)   with   Σ bytes(v) kept(v) ≤ limit,
        kept(v) ≥ available(v) - repeated(maker of v),   repeated(e) ≤ available(v) for all v that e reads.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    n, m = len(graph.values), len(graph.makers)
    kept, available, repeated = np.arange(n), n + np.arange(n), 2 * n + np.arange(m)
    reads = np.array([(e, i) for e, places in enumerate(graph.reads) for i in places], int).reshape(-1, 2)
    ones = lambda rows, columns, size, sign: coo_array((np.full(len(rows), sign), (rows, columns)), (size, 2 * n + m))
    makes = ones(kept, kept, n, 1.0) - ones(kept, available, n, 1.0) + ones(kept, repeated[graph.maker], n, 1.0)
    edge = np.arange(len(reads))
    needs = ones(edge, available[reads[:, 1]], len(reads), 1.0) - ones(edge, repeated[reads[:, 0]], len(reads), 1.0)
    total = sum(c for c in costs if c is not NEVER) or 1.0
    work = np.array([0.0 if c is NEVER else c / total for c in costs])
    lower, upper = np.zeros(2 * n + m), np.ones(2 * n + m)
    lower[available[graph.needed]] = 1
    upper[repeated] = [c is not NEVER for c in costs]
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
