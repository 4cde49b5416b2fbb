"""The schedule of Revolve: before which steps of a loop a snapshot of the state is stored, to reverse it step by step.

Reversing l steps from a stored state, with s places for states (that one included), costs least when the next snapshot
is put m steps on, the steps after it are reversed with s - 1 places, and then those before it with s again (Griewank
and Walther, "Algorithm 799: Revolve", 2000). With β(s, r) = C(s + r, s), l ≤ β(s, r) steps can be reversed running none
of them forward more than r times, and no schedule does better. What to do next follows from the snapshots there are and
the step to be reversed, so the schedule needs no list: it is a stack of positions inside the compiled loop, and the
number of steps may be known only when it runs.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from jax import lax

__all__ = ["Action", "binomials", "first_snapshots", "schedule", "steps_to_next"]


@functools.cache
def binomials(snapshots: int, steps: int) -> np.ndarray:
    """Tabulate β(s, r) = C(s + r, s) for s ≤ snapshots, until two suffice; no more than `steps` + 1 is told apart."""
    rows = max(2, math.isqrt(2 * steps) + 2)
    return np.array(
        [[min(math.comb(s + r, s), steps + 1) for r in range(rows)] for s in range(snapshots + 1)], np.int32
    )


def steps_to_next(table: Any, steps: Any, places: Any) -> Any:
    """Find how many steps on the next snapshot goes, to reverse `steps` ≥ 2 of them with `places` ≥ 2 for states.

    Args:
        table: the binomials, in NumPy or JAX, where the result then is.
    """
    known = isinstance(table, np.ndarray)
    at = (lambda x, i: x[i]) if known else (lambda x, i: lax.dynamic_index_in_dim(x, i, 0, keepdims=False))
    row = at(table, places)
    r = (row < steps).sum(dtype=np.int32)  # the fewest runs that suffice: β(places, r-1) < steps ≤ β(places, r)
    before, after = at(row, r - 1), steps - at(at(table, places - 1), r - 1)
    return (np.minimum if known else lax.min)(before, after)


class Action(NamedTuple):
    """One thing a schedule does.

    Attributes:
        kind: `"advance"`: run the steps from `start` to `stop`; `"store"`: keep the state before step `start`;
            `"drop"`: forget it; `"reverse"`: go back through step `start`.
        start, stop: numbers of steps.
    """

    kind: str
    start: int
    stop: int


def schedule(steps: int, snapshots: int) -> list[Action]:
    """List what is done to reverse a loop, the first sweep forward included.

    Args:
        steps: of the loop.
        snapshots: how many states are stored at any time, the first one included.

    Returns:
        The actions, in order. The compiled loops do these, and nothing else.

    Example:
        >>> from funcbp.control_flow.schedule import schedule
        >>> actions = schedule(1000, 10)
        >>> sum(a.stop - a.start for a in actions if a.kind == "advance") / 1000
        3.64
    """
    table = binomials(snapshots, steps)
    stack = first_snapshots(steps, snapshots)
    ends = [*stack[1:], steps]
    actions = [a for p, q in zip(stack, ends, strict=True) for a in (Action("store", p, p), Action("advance", p, q))]
    for t in reversed(range(steps)):
        while stack[-1] < t and len(stack) < snapshots:
            stop = stack[-1] + int(steps_to_next(table, t + 1 - stack[-1], snapshots - len(stack) + 1))
            actions += [Action("advance", stack[-1], stop), Action("store", stop, stop)]
            stack.append(stop)
        if stack[-1] < t:
            actions.append(Action("advance", stack[-1], t))
        actions.append(Action("reverse", t, t + 1))
        if stack[-1] == t:
            actions.append(Action("drop", stack.pop(), t))
    return actions


def first_snapshots(steps: int, snapshots: int) -> list[int]:
    """Find before which steps the first sweep stores the state."""
    table, stack = binomials(snapshots, steps), [0]
    while len(stack) < snapshots and steps - stack[-1] > 1:
        stack.append(stack[-1] + int(steps_to_next(table, steps - stack[-1], snapshots - len(stack) + 1)))
    return stack
