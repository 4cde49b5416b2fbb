"""The gradients of programs of many kinds beside JAX's, in time and temporary bytes: which kinds win, and which lose.

A row is a program of `architectures.py`, `value_and_grad` by the default plan. The operands are drawn: numbers with a
deviation of a tenth, integers of two kinds.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcbp as bp

from . import architectures, measure
from .peaks import Build
from .report import Cell, Row, Table, spread

COLUMNS = ("time", "temp bytes", "jax, ms")


def drawn(rng: np.random.Generator, operand: Any) -> Any:
    """Numbers of a type; what is none is as it is."""
    if not isinstance(operand, jax.ShapeDtypeStruct):
        return operand
    if jax.dtypes.issubdtype(operand.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    integer = jnp.issubdtype(operand.dtype, jnp.integer)
    numbers = rng.integers(0, 2, operand.shape) if integer else 0.1 * rng.normal(size=operand.shape)
    return jnp.asarray(numbers, operand.dtype)


def compared(name: str, build: Build, pairs: int, tiny: bool) -> Row:
    """One program, compiled both ways, and run in turns."""
    workload = build((lambda k: max(k // 16, 2)) if tiny else int)
    rng = np.random.default_rng(0)
    args = jax.tree.map(lambda x: drawn(rng, x), workload.args)
    ours, theirs = (jax.jit(workload.program(api)).lower(*args).compile() for api in (bp, jax))
    for a, b in zip(jax.tree.leaves(ours(*args)), jax.tree.leaves(theirs(*args)), strict=True):
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-2 * np.abs(b).max(initial=1e-12), err_msg=name)
    times = measure.take_turns(lambda: ours(*args), lambda: theirs(*args), pairs)
    sizes = (c.memory_analysis().temp_size_in_bytes for c in (ours, theirs))
    cells = spread(times.ratios), Cell(measure.ratio(*sizes)), Cell(1e3 * float(np.median(times.theirs)))
    return Row(name, dict(zip(COLUMNS, cells, strict=True)))


def run(
    pairs: int,
    only: Collection[str] = (),
    programs: Mapping[str, Build] = architectures.ARCHITECTURES,
    *,
    tiny: bool = False,
) -> Table:
    """Measure.

    Args:
        pairs: of runs for each ratio.
        only: parts of the names of the programs, all of them if empty.
        programs: by name.
        tiny: whether each width, batch and length is a sixteenth.
    """
    rows = []
    for name, build in programs.items():
        if not only or any(part in name.upper() for part in only):
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows.append(compared(name, build, pairs, tiny))
    if rows:
        mean = lambda column: Cell(float(np.exp(np.mean([np.log(row.cells[column].value) for row in rows]))))
        rows.append(Row("geometric mean", {column: mean(column) for column in COLUMNS[:2]}))
    return Table("Programs of many kinds, funcbp : jax", COLUMNS, rows)
