"""A budget: the least recomputation that fits into a number of bytes, by an integer program on the same graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import jaxpr as jx
from ..jaxpr import Program
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

    def limit(self, default: int) -> int:
        """Return the bytes that are allowed, where the default plan has so many in use."""
        return int(self.fraction * default) if self.bytes is None else int(self.bytes)  # type: ignore[operator]
