"""How two programs are compared: results first, then what tracing and compiling cost, then time in pairs.

Ours and JAX's run in one process and take turns, and which of the two goes first alternates, so that whatever else the
machine does falls on both. A ratio is ours divided by JAX's; below 1 we are better.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import numpy as np

import funcbp as bp

from .workloads import Workload

AGREEMENT = 1e-10  # in float64, relative to each leaf's largest element
SAMPLE_SECONDS = 0.02  # a short program is called several times for one sample
TRACES, COMPILES = 20, 4  # how often each side is traced and compiled; the best counts
APIS = (bp, jax)


class Cost(NamedTuple):
    """What one side costs before it runs, and what the compiler says about it."""

    first_trace: float  # seconds, with nothing cached
    trace: float  # seconds, the best of the later ones
    lower: float
    compile: float
    temp_bytes: int
    flops: float


class Written(NamedTuple):
    """A gradient step as it is written down before it is compiled, which no noise touches, and what that costs."""

    equations: int  # of the jaxpr
    inside: int  # those of the programs inside it included, each program once
    stablehlo: int  # bytes
    trace: float  # seconds of the process
    lower: float
    compile: float


class Times(NamedTuple):
    """Seconds per call of ours and of JAX's, pair by pair."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> np.ndarray:
        return np.array(self.ours) / np.array(self.theirs)


def difference(workload: Workload) -> float:
    """The largest difference between our results and JAX's in float64, relative to each leaf's largest element."""
    with jax.enable_x64(True):
        wide = lambda a: a.astype(np.float64) if a.dtype == np.float32 else a
        args = jax.tree.map(wide, workload.args)
        results = [jax.tree.leaves(jax.jit(workload.program(api))(*args)) for api in APIS]
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(*results, strict=True)]
    return float(np.max([np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-300) for a, b in pairs]))


def seconds(f: Callable[[], Any]) -> tuple[Any, float]:
    """What `f` returns, once it is there, and the seconds until then."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        out = jax.block_until_ready(f())
        return out, time.perf_counter() - start
    finally:
        if enabled:
            gc.enable()


def prepare(workload: Workload) -> tuple[list[Any], list[Cost]]:
    """The compiled programs of ours and JAX's, and what they cost."""
    spent: list[dict[str, list[float]]] = [{"first": [], "trace": [], "lower": [], "compile": []} for _ in APIS]

    def trace(side: int, what: str) -> Any:
        f = workload.program(APIS[side])
        traced, s = seconds(lambda: jax.jit(f).trace(*workload.args))
        spent[side][what].append(s)
        return traced

    compiled: list[Any] = [None, None]
    for turn in range(2):
        for side in turns(turn):
            jax.clear_caches()
            trace(side, "first")
    for turn in range(TRACES):
        for side in turns(turn):
            traced = trace(side, "trace")
            if turn < COMPILES:
                lowered, s = seconds(traced.lower)
                spent[side]["lower"].append(s)
                compiled[side], s = seconds(lowered.compile)
                spent[side]["compile"].append(s)
    costs = []
    for program, best in zip(compiled, spent, strict=True):
        temp = program.memory_analysis().temp_size_in_bytes
        least = {what: min(times) for what, times in best.items()}
        flops = program.cost_analysis()["flops"]
        costs.append(Cost(least["first"], least["trace"], least["lower"], least["compile"], temp, flops))
    return compiled, costs


def written(workload: Workload, repeats: int) -> list[Written]:
    """Write the programs of ours and of JAX's down `repeats` times each with nothing cached; the best time counts.

    They are compiled at most COMPILES times: compiling one program again takes up to a half more, or less.
    """
    spent: list[list[tuple[float, ...]]] = [[], []]
    sizes: list[Any] = [None, None]
    for turn in range(repeats):
        for side in turns(turn):
            jax.clear_caches()
            gc.collect()
            at = [time.process_time()]
            traced = jax.jit(workload.program(APIS[side])).trace(*workload.args)
            at.append(time.process_time())
            lowered = traced.lower()
            at.append(time.process_time())
            if turn < COMPILES:
                lowered.compile()
            at.append(time.process_time())
            spent[side].append((at[1] - at[0], at[2] - at[1], at[3] - at[2] if turn < COMPILES else np.inf))
            sizes[side] = len(traced.jaxpr.eqns), equations_inside(traced.jaxpr), len(lowered.as_text())
    return [Written(*size, *map(min, zip(*times, strict=True))) for size, times in zip(sizes, spent, strict=True)]


def equations_inside(jaxpr: Any) -> int:
    """Count the equations of a program and of those inside it, each program once, as it is lowered."""
    found, todo = {}, [jaxpr]
    while todo:
        program = todo.pop()
        program = getattr(program, "jaxpr", program)
        if id(program) not in found:
            found[id(program)] = program
            todo += [inside for eqn in program.eqns for inside in jex.jaxprs_in_params(eqn.params)]
    return sum(len(program.eqns) for program in found.values())


def take_turns(ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int) -> Times:
    """The times of two functions, called alternately after one call each to warm up."""
    sides = (ours, theirs)
    for f in sides:
        jax.block_until_ready(f())
    calls = max(1, round(SAMPLE_SECONDS / max(seconds(f)[1] for f in sides)))

    def sample(side: int) -> float:
        return seconds(lambda: [sides[side]() for _ in range(calls)])[1] / calls

    times = Times([], [])
    for turn in range(pairs):
        for side in turns(turn):
            times[side].append(sample(side))
    return times


def turns(turn: int) -> tuple[int, int]:
    """Which side goes first, and which second."""
    return (0, 1) if turn % 2 == 0 else (1, 0)


def alone(f: Callable[[], Any], repeats: int = 3) -> float:
    """The median time of a function that is too far away to be worth pairing."""
    return float(np.median([seconds(f)[1] for _ in itertools.repeat(None, repeats)]))


def ratio(a: float, b: float) -> float:
    """`a / b`, where nothing against nothing is 1."""
    return 1.0 if a == b else a / b if b else float("inf")
