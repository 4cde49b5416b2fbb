"""The statistics of an array that tell how training goes: size, spread, and the shares that are dead or broken."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from ..jaxpr.types import Value
from ..rules.traits import traits_of

__all__ = ["Statistics", "statistics"]

NEAR = 0.01  # of the range: closer to a bound than that is saturated


class Statistics(NamedTuple):
    """Statistics of an array.

    Attributes:
        shape, dtype: of the array.
        norm: the Euclidean norm.
        mean, min, max: over the finite elements; nan if there are none.
        zeros: the share of elements that are zero.
        saturated: the share of a bounded unit's outputs within 1 % of a bound; None for other operations.
        nonfinite: the share of elements that are nan or infinite.
        nan, inf, minus_inf: of these, the share of each.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    norm: float
    mean: float
    min: float
    max: float
    zeros: float
    saturated: float | None
    nonfinite: float
    nan: float
    inf: float
    minus_inf: float

    def __str__(self) -> str:
        text = f"{self.dtype}{list(self.shape)}"
        broken = {"nan": self.nan, "inf": self.inf, "-inf": self.minus_inf}
        if self.shape == ():
            return f"{text} {next((what for what, share in broken.items() if share > 0.5), f'{self.mean:.4g}')}"
        if self.nonfinite < 1:
            text += f" min {self.min:.4g} mean {self.mean:.4g} max {self.max:.4g}"
        shares = {"zero": self.zeros, "saturated": self.saturated, **broken}
        return text + "".join(f", {_percent(share)} {what}" for what, share in shares.items() if share)


def _percent(share: float) -> str:
    """A share that is neither nothing nor all, not written as one of them."""
    return "<1%" if share < 0.005 else ">99%" if 0.995 < share < 1 else f"{share:.0%}"


def statistics(x: Value, primitive: str | None = None) -> Statistics:
    """The statistics of an array, the result of this primitive."""
    x = np.asarray(x)
    if not jax.dtypes.issubdtype(x.dtype, np.number):
        x = x.astype(np.float64)
    complex_ = np.issubdtype(x.dtype, np.complexfloating)
    numbers = np.abs(x) if complex_ else x.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    mean, low, high = (f(finite) if finite.size else np.nan for f in (np.mean, np.min, np.max))
    size = max(1, x.size)
    saturated = None
    bounds = traits_of(primitive).bounds
    if bounds is not None:
        low_bound, high_bound = bounds
        near = NEAR * (high_bound - low_bound)
        saturated = float(((numbers < low_bound + near) | (numbers > high_bound - near)).sum() / size)
    with np.errstate(all="ignore"):
        norm = float(np.sqrt(np.sum(numbers**2)))
    zeros, broken = float((numbers == 0).sum() / size), float(1 - finite.size / size) if x.size else 0.0
    each = (float(np.sum(here) / size) for here in (np.isnan(numbers), numbers == np.inf, numbers == -np.inf))
    return Statistics(x.shape, x.dtype, norm, float(mean), float(low), float(high), zeros, saturated, broken, *each)
