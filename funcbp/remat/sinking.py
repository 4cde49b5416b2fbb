"""Products of weights: when a loop's gradient of a constant is summed after it, all steps' at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..cotangents import ABSORB, Cotangent, Factored, Zero

__all__ = ["HOIST", "NEVER", "SINK", "Deferral"]


@dataclass(frozen=True)
class Deferral:
    """When products with a loop's constant are contracted outside the loop, all steps' at once.

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

    def worth(self, ct: Cotangent) -> bool:
        """Tell whether to wait until after the loop with this cotangent of one of its constants."""
        if type(ct) is not Factored or ct.rest is not Zero or not all(p.rule in ABSORB for p in ct.products):
            return False
        summed = math.prod(ct.shape) * ct.dtype.itemsize
        return self.pays(summed, sum(x.size * x.dtype.itemsize for p in ct.products for x in (p.ct, p.other)))

    def pays(self, constant: int, stacked: int) -> bool:
        """Tell whether it pays for a constant of so many bytes, where each step stacks so many."""
        return constant >= self.at_least and constant >= self.times * stacked


SINK, NEVER = Deferral(), Deferral(math.inf)
HOIST = Deferral()  # for products before the loop, as SINK is for sums after it
