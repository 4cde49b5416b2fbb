"""Which values are saved between the passes, and which are recomputed: the policies.

A policy is told the forward program of a body, the values that its backward pass reads, and those that are available;
it says which to save. Whatever is read and not saved is recomputed. A function of these three is a policy; so is a
subclass of `Policy`, which may also say how it stands to what is decided beside it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ..jaxpr import Program
from ..jaxpr.types import Var
from .cut import Choose, cheapest_cut, minimum_cut, permitted
from .graph import read_for
from .machine import machine_here

__all__ = ["POLICIES", "MinCut", "MinCutCheap", "Policy", "RecomputeAll", "SaveAll", "policy_of"]


class Policy:
    """What a loop, region or branch keeps for its backward pass. A value, which jit caches compare: hashable.

    Attributes:
        packs: whether masks are kept as bits, eight in a byte.
        sinks: whether factors of a weight's gradient may be stacked, for one product after the loop (or before it).
        narrows: whether, of what a `jax.checkpoint` policy of the user's approves of, only the narrowest is kept.
    """

    packs: bool = True
    sinks: bool = False
    narrows: bool = True

    def choose(self, forward: Program, needed: list[Var], available: set[Var], steps: int = 1) -> list[Var]:
        """Choose the variables of `forward` to save.

        Args:
            forward: the forward program of a body.
            needed: variables of it that the backward pass reads.
            available: variables that need not be saved: the backward pass can read them.
            steps: how often the body runs.
        """
        raise NotImplementedError(f"{type(self).__name__} is a policy without `choose`.")

    def for_body(self, steps: int = 1) -> Choose:
        """Return the choice for a body that runs so many times."""
        return lambda forward, needed, available: self.choose(forward, needed, available, steps)

    def for_region(self, regions: int) -> Choose:
        """Return the choice for one of so many regions outside loops, whose inputs are available."""
        return self.for_body(regions)


@dataclass(frozen=True)
class MinCut(Policy):
    """What takes the least time to keep and to recompute, and then the fewest bytes, by what the machine is like.

    Attributes:
        balance: operations in float32 that the machine does while it moves a byte; the table's, if left out.
        weight: how many times a byte that is kept counts: the more, the less is kept, by a `Budget`.
    """

    balance: float | None = None
    weight: float = 1.0

    sinks = True

    def choose(self, forward: Program, needed: list[Var], available: set[Var], steps: int = 1) -> list[Var]:
        return cheapest_cut(forward, needed, available, steps, machine_here(self.balance), self.weight)

    def for_region(self, regions: int) -> Choose:
        return self.for_body()  # what regions keep does not stay in the cache until it is read


@dataclass(frozen=True)
class MinCutCheap(Policy):
    """The fewest bytes from which the rest can be recomputed cheaply: no contraction is repeated."""

    sinks = True

    def choose(self, forward: Program, needed: list[Var], available: set[Var], steps: int = 1) -> list[Var]:
        return minimum_cut(forward, needed, available)

    def for_region(self, regions: int) -> Choose:
        return permitted(lambda eqn: True)


@dataclass(frozen=True)
class SaveAll(Policy):
    """Everything the backward pass reads; nothing is recomputed."""

    packs, sinks, narrows = False, True, False

    def choose(self, forward: Program, needed: list[Var], available: set[Var], steps: int = 1) -> list[Var]:
        return needed


@dataclass(frozen=True)
class RecomputeAll(Policy):
    """The inputs of each step; everything is recomputed."""

    narrows = False

    def choose(self, forward: Program, needed: list[Var], available: set[Var], steps: int = 1) -> list[Var]:
        return [v for v in forward.invars if v in read_for(forward, needed, set()) and v not in available]


@dataclass(frozen=True, repr=False)
class FunctionPolicy(Policy):
    """A policy that somebody wrote as a function `(forward, needed, available) -> variables to keep`."""

    function: Callable[[Program, list[Var], set[Var]], list[Var]]

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", None) or repr(self.function)

    def choose(self, forward: Program, needed: list[Var], available: set[Var], steps: int = 1) -> list[Var]:
        return list(self.function(forward, needed, available))


def _is_told_of_equations(function: Callable[..., Any]) -> bool:
    """Whether this is a policy of `jax.checkpoint`, which takes all parameters of an equation by keyword."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # one that is not written in Python
        return False
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


POLICIES: dict[str, Policy] = {
    "min_cut": MinCut(),
    "min_cut_cheap": MinCutCheap(),
    "needed": SaveAll(),
    "inputs": RecomputeAll(),
}


def policy_of(
    residuals: str | Policy | Callable[[Program, list[Var], set[Var]], list[Var]], balance: float | None = None
) -> Policy:
    """Find the policy that `Backward(residuals=..., balance=...)` asks for: by name, a `Policy`, or a function.

    Raises:
        ValueError: it is none of these, or has no use for a balance, or that is not positive.
    """
    if balance is not None:
        if residuals != "min_cut":
            raise ValueError(f'balance= is for residuals="min_cut", which weighs by it, and residuals={residuals!r}.')
        if not isinstance(balance, Real) or not 0 < balance < math.inf:
            raise ValueError(f"balance= is operations per byte, positive and finite, and was {balance!r}.")
        return MinCut(float(balance))
    if isinstance(residuals, Policy):
        return residuals
    if isinstance(residuals, str) and residuals in POLICIES:
        return POLICIES[residuals]
    of_jax = callable(residuals) and _is_told_of_equations(residuals)
    if callable(residuals) and not of_jax:
        return FunctionPolicy(residuals)
    raise ValueError(
        f"residuals is one of {', '.join(map(repr, POLICIES))}, a Budget, a subclass of funcbp.remat.Policy, or a "
        f"function (forward, needed, available) -> variables to keep, and was {residuals!r}."
        + " Policies of JAX's go into jax.checkpoint(policy=), and are honoured there."
        * of_jax
    )
