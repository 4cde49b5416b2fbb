"""The planner where memory is short: language models in bfloat16, beside `jax.checkpoint` and beside PyTorch.

`python -m benchmarks accelerator` is one run of at most eight minutes on one GPU, in absolute times, too. With `--tiny`
the same models are toys, and go through on any machine.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import funcbp as bp

from . import measure, memory, peers, workloads
from .measure import ratio
from .report import Cell, Row, Table, Target, spread
from .step import chosen

COLUMNS = ("ms", "time", "temp MB", "temp bytes")
STOCK = {"dots with no batch dims": "dots_with_no_batch_dims_saveable", "nothing saved": "nothing_saveable"}
OPTIONS = {
    "min_cut": bp.Backward(),
    "min_cut, balance 600": bp.Backward(balance=600),
    "min_cut_cheap": bp.Backward(residuals="min_cut_cheap"),
    "inputs": bp.Backward(residuals="inputs"),
}
REGIONS = {"outside_loops": bp.Backward(outside_loops=True)}
TORCH_BUDGETS = (1.0, 0.5, 0.3)  # of activation memory; 1 is the partitioner's own minimum cut


class Program(NamedTuple):
    """A workload that takes `wrap`, the ways to go back through it, targets, and what makes the same for PyTorch."""

    make: Callable[..., workloads.Workload]
    options: Mapping[str, bp.Backward]
    targets: Mapping[str, Target]
    peer: Callable[[float], tuple[Callable[[], Any], Callable[[], int]]] | None = None


def programs(tiny: bool = False) -> dict[str, Program]:
    """The programs of the published table, as they are or of toy size."""
    small = dict(blocks=2, d=16, heads=2, time=8, batch=2, vocabulary=32)
    long = small if tiny else dict(blocks=12, d=768, heads=12, time=1024, batch=8, vocabulary=50304)
    longer = small | dict(time=16, batch=1) if tiny else long | dict(blocks=6, time=4096, batch=2)
    recurrent = dict(time=5, batch=2, units=4) if tiny else dict(time=1000, batch=64, units=512)
    gpt = functools.partial(workloads.transformer, narrow=True)
    goals = {} if tiny else {"time": Target(0.66), "temp bytes": Target(0.15)}
    in_python = {} if tiny else {"time": Target(1.05), "temp bytes": Target(0.40)}
    found = {
        "G1 GPT 12 x 768, T=1024, scan": Program(
            functools.partial(gpt, **long), OPTIONS, goals, functools.partial(peers.gpt, **long)
        ),
        "G2 GPT 6 x 768, T=4096, scan": Program(functools.partial(gpt, **longer), OPTIONS, goals),
        "G3 GPT 12 x 768, T=1024, in Python": Program(
            functools.partial(gpt, in_python=True, **long), OPTIONS | REGIONS, in_python
        ),
        "G4 LSTM of 512 units, T=1000": Program(functools.partial(workloads.lstm, **recurrent), OPTIONS, {}),
    }
    return {f"{name.split()[0]} toy": program for name, program in found.items()} if tiny else found


def sides_of(program: Program) -> Iterator[tuple[str, workloads.Workload, Any]]:
    """The rows beside JAX's plain gradient: what each is called, the workload and whose gradient."""
    for label, name in STOCK.items():
        policy = getattr(jax.checkpoint_policies, name)
        wrap = functools.partial(jax.checkpoint, policy=policy, prevent_cse=False)
        yield f"jax.checkpoint, {label}", program.make(wrap=wrap), jax
    for label, backward in program.options.items():
        yield f"funcbp, {label}", program.make(), backward


def rows_of(name: str, program: Program, pairs: int) -> Iterator[Row]:
    """All sides of a program, in milliseconds and megabytes, and beside JAX's plain gradient."""
    theirs = memory.side(program.make(), jax)
    jax.block_until_ready(theirs.run())
    plain = measure.alone(theirs.run)
    yield Row(f"{name}: jax", {"ms": Cell(1e3 * plain), "temp MB": Cell(theirs.temp_bytes / 2**20)})
    for label, workload, api in sides_of(program):
        ours = memory.side(workload, api)
        times = measure.take_turns(ours.run, theirs.run, pairs)
        target = program.targets.get if label == "funcbp, min_cut" else lambda _: None
        cells = {
            "ms": Cell(1e3 * float(np.median(times.ours))),
            "time": spread(times.ratios, target("time")),
            "temp MB": Cell(ours.temp_bytes / 2**20),
            "temp bytes": Cell(ratio(ours.temp_bytes, theirs.temp_bytes), target=target("temp bytes")),
        }
        yield Row(f"{name}: {label}", cells)
    if program.peer:
        yield from torch_rows(name, program.peer)


def torch_rows(name: str, peer: Callable[[float], tuple[Callable[[], Any], Callable[[], int]]]) -> Iterator[Row]:
    """The same model by `torch.compile`, with its budgets for activation memory."""
    for budget in TORCH_BUDGETS:
        label = f"{name}: torch.compile, activation_memory_budget {budget}"
        if remark := peers.absent("torch"):
            yield Row(label, {"ms": Cell(remark=remark)})
            continue
        run, peak = peer(budget)
        run()
        cells = {"ms": Cell(1e3 * measure.alone(run))}
        yield Row(label, cells | {"temp MB": Cell(peak() / 2**20) if peak() else Cell(remark="not known on a CPU")})


def run(pairs: int, only: Collection[str] = (), tiny: bool = False) -> Table:
    """Measure, on the device that JAX has by default.

    Args:
        pairs: how often two sides are timed against each other.
        only: the numbers of the programs, all of them if empty.
        tiny: whether the models are toys.
    """
    if jax.default_backend() == "cpu" and not tiny:
        print("there is no accelerator here: with --tiny the same runs on toys", file=sys.stderr)
        return Table(TITLE, COLUMNS, [Row("all", {"ms": Cell(remark="skipped: no accelerator, and not --tiny")})])
    rows: list[Row] = []
    for name, program in chosen(programs(tiny), only):
        rows += rows_of(name, program, pairs)
    return Table(TITLE, COLUMNS, rows)


TITLE = "Gradients on an accelerator, beside jax.value_and_grad"
