"""Products of weights: for how many steps a loop's gradient of a constant waits, to be summed in one product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .. import jaxpr as jx
from ..cotangents import ABSORB, Cotangent, Factored, Zero
from .machine import machine_here

__all__ = ["HOIST", "NEVER", "SINK", "STEPWISE", "Blocks", "Deferral"]


@dataclass(frozen=True)
class Blocks:
    """Of how many steps a loop goes back through before it contracts the products with its constants.

    Step by step, each one reads and writes the whole sum W̄ += x' δ, however few rows its own product has. In blocks
    of K steps the factors x and δ of a block are stacked and W̄ += X' Δ is one product of K times the rows: the sum is
    moved T / K times. That pays where the sum is wider than its factors and too large for a core's cache. K is the
    largest divisor of T for which a block's factors take little beside what there is anyway.

    Args:
        share: what a block's factors may take of the bytes of the loop's states, all steps', and its sums together.
        times: how many times the bytes of the sums they may take.
        at_least: how many bytes a sum must have. It must also take as long to move as a product to launch.
    """

    share: float = 1 / 16
    times: float = 2.0
    at_least: int = 2**18

    def choose(self, steps: int, state: int, cts: Sequence[Cotangent]) -> tuple[list[bool], int]:
        """Tell which cotangents of constants wait, and for how many steps; for one where none does.

        Args:
            steps: of the loop.
            state: the bytes of what it carries.
            cts: a step's cotangents of the loop's constants.
        """
        least = max(self.at_least, machine_here().idle)
        sizes = [_bytes(c) for c in cts]
        waits = [stacked > 0 and summed >= least and 2 * stacked <= self.times * summed for summed, stacked in sizes]
        if not any(waits):
            return waits, 1
        summed, stacked = (sum(s[i] for s, w in zip(sizes, waits, strict=True) if w) for i in (0, 1))
        room = min(self.times * summed, self.share * (steps * state + summed))
        most = min(steps, int(room // stacked))
        block = next((k for k in range(most, 1, -1) if steps % k == 0), 1)
        return [w and block > 1 for w in waits], block


def _bytes(ct: Cotangent) -> tuple[int, int]:
    """Count the bytes of a cotangent and of its factors; none of what is not a sum of products that join into one."""
    if type(ct) is not Factored or ct.rest is not Zero or not all(p.rule in ABSORB for p in ct.products):
        return 0, 0
    factors = [jx.bytes_of_type(jx.type_of(x)) for p in ct.products for x in (p.ct, p.other)]
    return math.prod(ct.shape) * ct.dtype.itemsize, sum(factors)


@dataclass(frozen=True)
class Deferral:
    """When products with a loop's constant are contracted before the loop, all steps' at once.

    A product x W of what the loop goes over reads the whole of W at each step, and before the loop reads it once. That
    is faster when the constant is too large for a core's cache, but the stacks take memory, so they must be small
    beside it.

    Args:
        times: how many times more bytes the constant must have than what one step stacks.
        at_least: how many bytes the constant must have.
    """

    times: float = 32.0
    at_least: int = 2**18

    def pays(self, constant: int, stacked: int) -> bool:
        """Tell whether it pays for a constant of so many bytes, where each step stacks so many."""
        return constant >= self.at_least and constant >= self.times * stacked


SINK, STEPWISE = Blocks(), Blocks(share=0.0)
HOIST, NEVER = Deferral(), Deferral(math.inf)
