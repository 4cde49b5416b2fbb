"""The peak that a plan is predicted to have, beside what XLA's buffer assignment counts: no time, no noise.

A row is the gradient of a program, `value_and_grad`, by two plans: the default, and the default outside loops as well.
Predicted is `bp.residuals(...).peak`, compiled `memory_analysis().temp_size_in_bytes`, both in millions of bytes.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection, Mapping

import jax

import funcbp as bp

from . import architectures, memory, workloads
from .architectures import Size
from .measure import ratio
from .report import Cell, Row, Table

Build = Callable[[Size], workloads.Workload]

PLANS = {"default": bp.Backward(), "outside_loops": bp.Backward(outside_loops=True)}
NUMBERS = ("predicted", "compiled", "ratio")
COLUMNS = tuple(f"{plan}: {what}" for plan in PLANS for what in NUMBERS)
WITHIN = 0.1  # of what was compiled


def as_usual(make: Callable[..., workloads.Workload], **sizes: int) -> Build:
    """A workload of the other tables, as a function of the sizes."""
    return lambda n: make(**{name: n(size) for name, size in sizes.items()})


USUAL: dict[str, Build] = {
    "W1 MLP": as_usual(workloads.mlp, batch=128),
    "W2 convnet": as_usual(workloads.convnet, batch=64),
    "W4 transformer, d=128": as_usual(workloads.transformer, d=128, time=128),
    "W4 transformer, d=256": as_usual(workloads.transformer, d=256, time=128),
    "W4 in a Python loop": as_usual(functools.partial(workloads.transformer, in_python=True), d=128, time=128),
    "W6 LSTM, T=500": as_usual(workloads.lstm, time=500, units=128),
}
PROGRAMS = USUAL | architectures.ARCHITECTURES


def peaks_of(workload: workloads.Workload, backward: bp.Backward) -> tuple[int, int]:
    """The bytes predicted, and those of the compiled program."""
    compiled = jax.jit(workload.program(backward)).lower(*workload.args).compile()
    return memory.predicted(workload, backward), compiled.memory_analysis().temp_size_in_bytes


def run(
    pairs: int, only: Collection[str] = (), programs: Mapping[str, Build] = PROGRAMS, *, tiny: bool = False
) -> Table:
    """Predict, compile and compare.

    Args:
        pairs: not used, as nothing is timed.
        only: parts of the names of the programs, all of them if empty.
        programs: by name.
        tiny: whether each width, batch and length is a sixteenth.
    """
    rows = []
    size = (lambda k: max(k // 16, 2)) if tiny else int
    for name, build in programs.items():
        if only and not any(part in name.upper() for part in only):
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        workload, cells = build(size), {}
        for plan, backward in PLANS.items():
            predicted, compiled = peaks_of(workload, backward)
            numbers = predicted / 1e6, compiled / 1e6, ratio(predicted, compiled)
            cells |= {f"{plan}: {what}": Cell(x) for what, x in zip(NUMBERS, numbers, strict=True)}
        rows.append(Row(name, cells))
    if rows:
        rows.append(Row(f"within {WITHIN:.0%}", {f"{plan}: ratio": count(rows, plan) for plan in PLANS}))
    return Table("Predicted temporary bytes : compiled", COLUMNS, rows)


def count(rows: Collection[Row], plan: str) -> Cell:
    """Of how many programs the prediction is good."""
    found = [abs((row.cells[f"{plan}: ratio"].value or 0.0) - 1) <= WITHIN for row in rows]
    return Cell(remark=f"{sum(found)} of {len(found)}")
