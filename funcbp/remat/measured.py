"""The balance of this machine, measured: its rate of products over its rate of keeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["Measured", "measure_balance"]


class Measured(NamedTuple):
    """What was measured.

    Attributes:
        products: operations of products a second.
        kept: bytes moved a second by keeping: a byte kept is two, written and read.
        balance: the one over the other, for `Backward(balance=)`.
    """

    products: float
    kept: float

    @property
    def balance(self) -> float:
        return self.products / self.kept


def measure_balance(size: int = 1024, steps: int = 64, repeats: int = 5) -> Measured:
    """Measure products of square float32 matrices, and a loop that keeps its steps for another one to read.

    What keeping takes is the time of the two loops beside the time of the same two where nothing passes between them.

    Args:
        size: of the matrices; one step keeps as many bytes as one has.
        steps: how many of them are kept.
        repeats: how often everything runs; the shortest times count.
    """
    x = jnp.full((size, size), 0.5, jnp.float32)
    operations = lambda x: lax.scan(lambda x, _: (x @ x * (1 / size), None), x, None, 8)[0]

    def passes(kept: bool) -> Callable[[jax.Array], jax.Array]:
        def run(x: jax.Array) -> jax.Array:
            y, stack = lax.scan(lambda c, _: (c * 1.01, c if kept else None), x, None, steps)
            return lax.scan(lambda d, c: (d * (c if kept else 1.01) + 1, None), y, stack, steps, reverse=True)[0]

        return run

    products = 8 * 2 * size**3 / _shortest(operations, x, repeats)
    longer = _shortest(passes(True), x, repeats) - _shortest(passes(False), x, repeats)
    return Measured(products, 2 * steps * x.nbytes / max(longer, 1e-9))


def _shortest(f: Callable[[jax.Array], jax.Array], x: jax.Array, repeats: int) -> float:
    run, times = jax.jit(f), []
    for _ in range(repeats + 1):  # the first one compiles
        start = time.perf_counter()
        jax.block_until_ready(run(x))
        times.append(time.perf_counter() - start)
    return min(times[1:])
