"""One gradient step: the drop-in `value_and_grad` and `grad` against JAX's, in time, memory, operations and tracing."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

import jax
import numpy as np

from . import measure, workloads
from .measure import ratio
from .report import Cell, Row, Table, Target, spread

T = TypeVar("T")

Build = Callable[[], workloads.Workload]

WORKLOADS: dict[str, Build] = {
    "W1 MLP": workloads.mlp,
    "W2 convnet": workloads.convnet,
    "W4 transformer, d=128": functools.partial(workloads.transformer, d=128),
    "W4 transformer, d=256": functools.partial(workloads.transformer, d=256),
    "W6 LSTM, T=500": functools.partial(workloads.lstm, time=500),
    "W6 LSTM, T=1000": functools.partial(workloads.lstm, time=1000),
    "W10 2-2-2 network, 10,000 updates": workloads.worked_example,
}
PROGRAMS: dict[str, Build] = {
    "W11 MLP, 300 layers": workloads.deep_mlp,
    "W12 LSTM, unrolled over 100 steps": workloads.unrolled_lstm,
    "W13 jitted layer, 4 calls": functools.partial(workloads.jitted_layers, 4),
    "W13 jitted layer, 16 calls": functools.partial(workloads.jitted_layers, 16),
    "W13 jitted layer, 64 calls": workloads.jitted_layers,
    "W14 GPT-2 in Flax, 12 blocks": workloads.gpt_in_flax,
}
WRITTEN_TARGET = Target(1.1)
TARGETS: dict[str, dict[str, Target]] = {
    "W1": {"time": Target(1.02), "trace": Target(0.8), "compile": Target(1.0)},
    "W2": {"time": Target(1.02)},
    "W4": {"time": Target(0.80), "temp bytes": Target(0.50), "trace": Target(0.8), "compile": Target(1.0)},
    "W6": {"time": Target(0.92), "temp bytes": Target(0.60), "trace": Target(0.8), "compile": Target(1.0)},
}
EAGER_TARGET = Target(1.0)
TORCH_TARGET = Target(500, at_least=True)
COLUMNS = ("time", "temp bytes", "flops", "trace", "first trace", "compile")


def number(name: str) -> str:
    """The workload's number, `W1` of `W1 MLP`."""
    return name.split()[0].rstrip(",")


def chosen(rows: Mapping[str, T], only: Collection[str]) -> Iterator[tuple[str, T]]:
    """The rows of these workloads, all of them if there are none; each is announced as its turn comes."""
    for name, row in rows.items():
        if not only or number(name) in only:
            print(f"{name} ...", file=sys.stderr, flush=True)
            yield name, row


def compiled_row(name: str, workload: workloads.Workload, pairs: int) -> tuple[Row, float]:
    """Both sides compiled, and our median seconds."""
    target = TARGETS.get(number(name), {}).get
    (ours, theirs), (a, b) = measure.prepare(workload)
    times = measure.take_turns(lambda: ours(*workload.args), lambda: theirs(*workload.args), pairs)
    cells = {
        "time": spread(times.ratios, target("time")),
        "temp bytes": Cell(ratio(a.temp_bytes, b.temp_bytes), target=target("temp bytes")),
        "flops": Cell(ratio(a.flops, b.flops)),
        "trace": Cell(ratio(a.trace, b.trace), target=target("trace")),
        "first trace": Cell(ratio(a.first_trace, b.first_trace)),
        "compile": Cell(ratio(a.compile, b.compile), target=target("compile")),
    }
    return Row(name, cells | milliseconds(times)), float(np.median(times.ours))


def eager_row(name: str, workload: workloads.Workload, pairs: int) -> Row:
    """Both sides called plainly, operation by operation."""
    ours, theirs = (workload.program(api) for api in measure.APIS)
    times = measure.take_turns(lambda: ours(*workload.args), lambda: theirs(*workload.args), pairs)
    return Row(f"{name}, eager", {"time": spread(times.ratios, EAGER_TARGET)} | milliseconds(times))


def torch_row(name: str, our_seconds: float) -> Row:
    """How many times faster one compiled scan is than a loop in PyTorch."""
    if importlib.util.find_spec("torch") is None:
        cell = Cell(remark="skipped: torch is not installed")
    else:
        cell = Cell(measure.alone(workloads.worked_example_in_torch()) / our_seconds, target=TORCH_TARGET)
    return Row(f"{name}: times faster than a PyTorch loop", {"time": cell})


def milliseconds(times: measure.Times) -> dict[str, Cell]:
    """Absolute times, worth printing where the machine is not shared: on an accelerator."""
    if jax.default_backend() == "cpu":
        return {}
    return {"ms, funcbp": Cell(1e3 * np.median(times.ours)), "ms, jax": Cell(1e3 * np.median(times.theirs))}


def programs(pairs: int, only: Collection[str] = (), builds: Mapping[str, Build] = PROGRAMS) -> Table:
    """Write programs down that are long, and compare how long, and what tracing, lowering and compiling cost.

    Args:
        pairs: how often each is traced and lowered, at most 5 times.
        only: the numbers of the workloads, all of them if empty.
        builds: the workloads, by name.
    """
    rows: list[Row] = []
    for name, build in chosen(builds, only):
        if "Flax" in name and importlib.util.find_spec("flax") is None:
            rows.append(Row(name, {"equations": Cell(remark="skipped: flax is not installed")}))
            continue
        ours, theirs = measure.written(build(), min(pairs, 5))
        cells = {
            c: Cell(ratio(a, b), target=WRITTEN_TARGET) for c, a, b in zip(ours._fields, ours, theirs, strict=True)
        }
        rows.append(Row(name, cells))
    return Table("The program of one gradient step, funcbp : jax", measure.Written._fields, rows)


def run(pairs: int, only: Collection[str] = (), builds: Mapping[str, Build] = WORKLOADS) -> Table:
    """Measure.

    Args:
        pairs: how often the two sides are timed against each other.
        only: the numbers of the workloads to measure, all of them if empty.
        builds: the workloads, by name.
    """
    rows: list[Row] = []
    for name, build in chosen(builds, only):
        workload = build()
        gap = measure.difference(workload)
        if not gap <= measure.AGREEMENT:
            remark = f"not timed: results differ by {gap:.1e} in float64"
            rows.append(Row(name, {"time": Cell(remark=remark)}, refused=True))
            continue
        row, our_seconds = compiled_row(name, workload, pairs)
        rows.append(row)
        if number(name) == "W1":
            rows.append(eager_row(name, workload, pairs))
        if number(name) == "W10":
            rows.append(torch_row(name, our_seconds))
    columns = (*COLUMNS, "ms, funcbp", "ms, jax") if any("ms, jax" in r.cells for r in rows) else COLUMNS
    return Table("One gradient step, funcbp : jax", columns, rows)
