"""A budget: the most bytes that a gradient may have in use."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from .policies import Policy

__all__ = ["Budget"]


@dataclass(frozen=True, repr=False)
class Budget(Policy):
    """What a whole gradient may have in use at its peak, beside its arguments and results: the fastest plan that fits.

    What counts is what XLA calls temporary bytes, `compiled.memory_analysis().temp_size_in_bytes`: what loops stack,
    what straight-line code keeps, and what either pass has in hand. It is predicted while the gradient is traced,
    within a tenth for nearly all programs in `docs/decisions/a-budget.md`; `funcbp.residuals` reports it as `peak`. The
    function is traced as under `jit`. Tried in this order, until the prediction fits:

    1. `"min_cut"`, whose plan takes the least time.
    2. Loops keep less: a byte weighs more and more in their cuts. Each cut that is the best for some weight is tried.
    3. What is outside loops is cut into regions, as by `Backward(outside_loops=True)`, at first into some, and these
       keep less as well.
    4. Loops keep a few snapshots, as by `funcbp.scan`, and run no step more than five times. Such a gradient cannot be
       differentiated backward again.

    Draws, effects, collectives and custom calls are never repeated. Under `vmap` the bytes are those of one example;
    inside a loop, those of the gradient that is taken at each step.

    Args:
        bytes: the most bytes.
        fraction: the same as a fraction of what `"min_cut"` has in use, as predicted. One of the two is given.

    Raises:
        ValueError: neither or both are given, one that is not positive, or a fraction above 1; and, when a gradient is
            traced, a budget that cannot be met: the message says by how much, and what the smallest is.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> f = lambda x: jax.lax.scan(lambda c, _: (jnp.sin(jnp.exp(c)), None), x, None, 500)[0].sum()
        >>> backward = bp.Backward(residuals=bp.Budget(fraction=0.3))
        >>> bp.residuals(f)(jnp.ones(8)).peak, bp.residuals(f, backward=backward)(jnp.ones(8)).peak
        (16032, 4744)

    References:
        A. Griewank, A. Walther, "Algorithm 799: Revolve", ACM TOMS 26 (2000).
    """

    bytes: int | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        given = [x for x in (self.bytes, self.fraction) if x is not None]
        if len(given) != 1 or not isinstance(given[0], Real) or not given[0] > 0:
            raise ValueError(
                f"A Budget is given as bytes=... or as fraction=..., one of the two and positive, and was "
                f"given bytes={self.bytes!r} and fraction={self.fraction!r}."
            )
        if self.bytes is not None and self.bytes == math.inf:
            raise ValueError('A Budget without a bound is none: residuals="min_cut" takes the least time.')
        if self.fraction is not None and self.fraction > 1:
            raise ValueError(f"A Budget's fraction is of what the default takes, at most 1, and was {self.fraction!r}.")

    def __repr__(self) -> str:
        given = f"bytes={self.bytes}" if self.bytes is not None else f"fraction={self.fraction}"
        return f"Budget({given})"
