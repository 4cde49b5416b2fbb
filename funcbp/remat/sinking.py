"""Products of weights: for how many steps a loop's gradient of a constant waits, to be summed in one product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .. import jaxpr as jx
from ..cotangents import ABSORB, Cotangent, Factored, Zero
from .machine import machine_here

__all__ = ["HOIST", "NEVER", "SINK", "STEPWISE", "Blocks", "Deferral"]


FEW, MANY = 4, 32  # as many times what a step holds must a sum have in bytes, for blocks to pay, and for stacks of all


@dataclass(frozen=True)
class Blocks:
    """Of how many steps a loop goes back through before it contracts the products with its constants.

    Step by step, each one reads and writes the whole sum W̄ += x' δ, however few rows its own product has. In blocks of
    K steps the factors x and δ of a block are stacked, and W̄ += X' Δ is one product of K times the rows: the sum is
    moved once in K steps. That pays where it is wider than its factors and too large for a core's cache.

    K is the largest divisor of the number of steps for which what a block holds takes no more bytes than the sums; that
    may be all of them. It holds its factors, and as many bytes as the δ once more: the products x W, which it may have
    to recompute. Where no divisor of at least four is, as of a prime number, all steps wait if the sums are 32 times as
    wide as what a step holds, and otherwise each is summed at once.

    Args:
        times: how many times the bytes of the sums a block may hold.
        at_least: how many bytes a sum must have. It must also take as long to move as a product to launch.
    """

    times: float = 1.0
    at_least: int = 2**18

    def choose(self, steps: int, cts: Sequence[Cotangent]) -> tuple[list[bool], int]:
        """Tell which of a step's cotangents of constants wait, and for how many steps; for one where none does."""
        least = max(self.at_least, machine_here().idle)
        sizes = [_bytes(c) for c in cts]
        waits = [stacked > 0 and summed >= least and summed * self.times >= FEW * stacked for summed, stacked in sizes]
        summed, stacked = (sum(s[i] for s, w in zip(sizes, waits, strict=True) if w) for i in (0, 1))
        if not summed:
            return waits, 1
        most = int(min(steps, self.times * summed / stacked))
        block = next((k for k in range(most, 0, -1) if steps % k == 0), 1)
        if block < min(FEW, steps):
            block = steps if summed >= MANY * stacked else 1
        return [w and block > 1 for w in waits], block

    def before(self, block: int) -> Deferral:
        """Say which products of what a block goes over are contracted before it: those of which all its steps take no
        more bytes than the constant.
        """
        return Deferral(block, self.at_least)


def _bytes(ct: Cotangent) -> tuple[int, int]:
    """Count the bytes of a cotangent, and of what a step holds of it: its factors x and δ, and x W, as wide as δ; none
    of what is not a sum of products that join into one.
    """
    if type(ct) is not Factored or ct.rest is not Zero or not all(p.rule in ABSORB for p in ct.products):
        return 0, 0
    held = [jx.bytes_of_type(jx.type_of(x)) for p in ct.products for x in (p.other, p.ct, p.ct)]
    return math.prod(map(jx.closed_size, ct.shape)) * ct.dtype.itemsize, sum(held)


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

    times: float = MANY
    at_least: int = 2**18

    def pays(self, constant: int, stacked: int) -> bool:
        """Tell whether it pays for a constant of so many bytes, where each step stacks so many."""
        return constant >= self.at_least and constant >= self.times * stacked


SINK, STEPWISE = Blocks(), Blocks(times=0.0)
HOIST, NEVER = Deferral(), Deferral(math.inf)
