"""Fused operations beside their naive forms: the same loss, written out with all its intermediates and left to XLA.

Every row is a gradient by funcbp or by JAX of a loss with a fused operation, beside `jax.value_and_grad` of the naive
form. Contractions are counted in the program without what nothing reads of, loops times their length.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import funcbp as bp
from funcbp import jaxpr as jx
from funcbp import ops

from . import measure, memory, workloads
from .report import Cell, Row, Table, Target
from .workloads import normal

COLUMNS = ("time", "temp bytes", "contractions", "trace", "compile")


class Case(NamedTuple):
    """A workload in both forms, `make(fused, *size)`, the sizes it is measured in, and where the last must land.

    Results are compared in float64 at the first size.
    """

    make: Callable[..., workloads.Workload]
    sizes: Sequence[Any]
    targets: Mapping[str, Target]


def output_layer(fused: bool, size: tuple[int, int], inputs: int = 512) -> workloads.Workload:
    """W5: the cross-entropy of a layer of logits; `size` is how many rows and classes there are."""
    rows, classes = size
    rng = np.random.default_rng(5)

    def make_loss():
        def loss(weights, x, y):
            if fused:
                return jnp.mean(ops.cross_entropy_of_logits(x, weights, y))
            return workloads.cross_entropy(x @ weights, y)

        return lambda both, y: loss(*both, y)

    both = normal(rng, inputs, classes, scale=inputs**-0.5), normal(rng, rows, inputs)
    return workloads.gradient_of(make_loss, both, workloads.labels(rng, rows, classes))


def attention(fused: bool, length: int, heads: int = 8, units: int = 64) -> workloads.Workload:
    """W8: causal attention of one sequence."""
    rng = np.random.default_rng(8)

    def naive(q, k, v):
        z = jnp.einsum("btnd,bsnd->bnts", q, k) * units**-0.5
        sees = lax.broadcasted_iota(np.int32, z.shape[2:], 0) >= lax.broadcasted_iota(np.int32, z.shape[2:], 1)
        return jnp.einsum("bnts,bsnd->btnd", jax.nn.softmax(jnp.where(sees, z, -jnp.inf)), v)

    def make_loss():
        attend = functools.partial(ops.attention, is_causal=True) if fused else naive
        return lambda qkv, weights: jnp.vdot(weights, attend(*qkv))

    q, k, v, weights = (normal(rng, 1, length, heads, units) for _ in range(4))
    return workloads.gradient_of(make_loss, (q, k, v), weights)


CASES = {
    "W5 output layer": Case(
        output_layer, [(256, 4096), (2048, 32_768)], {"time": Target(1.0), "temp bytes": Target(0.04)}
    ),
    "W8 attention": Case(attention, [1024, 2048, 4096], {"time": Target(1.0), "temp bytes": Target(0.08)}),
}


def side(workload: workloads.Workload, api: Any) -> memory.Side:
    """Trace and compile, and count what is left of the contractions when dead code is gone."""
    closed = jax.make_jaxpr(workload.program(api))(*workload.args)
    program, _ = jx.Program(closed.jaxpr, closed.consts).pruned()
    return memory.side(workload, api)._replace(contractions=memory.contractions(program.eqns))


def rows_of(name: str, case: Case, pairs: int) -> Iterator[Row]:
    """Each size, by funcbp and by JAX."""
    first = case.sizes[0]
    want = memory.in_float64(case.make(False, first), jax)
    gaps = {api: memory.difference(memory.in_float64(case.make(True, first), api), want) for api in measure.APIS}
    for size in case.sizes:
        naive = side(case.make(False, size), jax)
        for api, gap in gaps.items():
            label = f"{name}, {size if isinstance(size, int) else ' x '.join(map(str, size))}: {api.__name__}"
            if not gap <= measure.AGREEMENT:
                yield Row(label, {"time": Cell(remark=f"not timed: differs by {gap:.1e}")}, refused=True)
                continue
            targets = case.targets if size == case.sizes[-1] and api is bp else {}
            yield memory.compared(label, side(case.make(True, size), api), naive, pairs, targets)


def run(pairs: int, only: Collection[str] = (), cases: Mapping[str, Case] = CASES) -> Table:
    """Measure.

    Args:
        pairs: how often two sides are timed against each other.
        only: the numbers of the workloads to measure, all of them if empty.
        cases: the workloads, by name.
    """
    rows: list[Row] = []
    for name, case in cases.items():
        if not only or name.split()[0] in only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows += rows_of(name, case, pairs)
    return Table("Fused operations, beside jax.value_and_grad of their naive forms", COLUMNS, rows)
