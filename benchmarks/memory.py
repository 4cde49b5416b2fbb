"""What is kept between the passes, in bytes and in time: our policies, JAX's, and checkpoints placed by hand.

Every row is a gradient of the same model, beside `jax.value_and_grad` of it; the rows of one model are points on a
plane, which `--plots` draws. Contractions are counted in the program, loops times their length.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import funcbp as bp
from funcbp import jaxpr as jx
from funcbp.control_flow import schedule as loops
from funcbp.remat import sinking
from funcbp.rules.cost import flops

from . import measure, step, workloads
from .measure import ratio
from .report import Cell, Row, Table, Target, spread

COLUMNS = ("time", "temp bytes", "contractions", "trace", "compile", "predicted", "live states", "sweeps")
STOCK = ("everything_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable", "nothing_saveable")
BUDGETS = (0.9, 0.3)  # of what the default is predicted to have in use


class Model(NamedTuple):
    """A workload that takes `wrap`, which names to keep where the checkpoints are placed by hand, and targets."""

    make: Callable[..., workloads.Workload]
    names: tuple[str, ...]
    targets: Mapping[str, Target]


MODELS = {
    "W4 transformer, d=128": Model(
        workloads.transformer, ("qkv", "attended", "up"), {"time": Target(0.66), "temp bytes": Target(0.27)}
    ),
    "W6 LSTM, T=500": Model(workloads.lstm, ("net",), {"time": Target(0.82), "temp bytes": Target(0.17)}),
}
UNROLLED = functools.partial(workloads.transformer, blocks=12, in_python=True)
DEEP = functools.partial(workloads.transformer, blocks=24)
LONG = functools.partial(workloads.lstm, time=1000)
SNAPSHOTS = 10
TRACES = 5


class Side(NamedTuple):
    """A compiled gradient, and what it costs."""

    run: Callable[[], Any]
    temp_bytes: int
    contractions: float
    trace: float
    compile: float


def side(workload: workloads.Workload, api: Any) -> Side:
    """Trace, of which the fastest time counts, and compile."""
    f, traces = workload.program(api), []
    for _ in range(TRACES):
        jax.clear_caches()
        traced, seconds = measure.seconds(lambda: jax.jit(f).trace(*workload.args))
        traces.append(seconds)
    lowered = traced.lower()
    compiled, compile_ = measure.seconds(lowered.compile)
    temp = compiled.memory_analysis().temp_size_in_bytes
    return Side(lambda: compiled(*workload.args), temp, contractions(traced.jaxpr.jaxpr.eqns), min(traces), compile_)


def contractions(eqns: Collection[Any]) -> float:
    """The floating-point operations of all contractions, those in loops counted for each step."""
    total = 0.0
    for eqn in eqns:
        inside = jx.inner(eqn)
        own = flops(eqn) if eqn.primitive.name in ("dot_general", "conv_general_dilated") else 0.0
        total += own + eqn.params.get("length", 1) * contractions(inside) if inside else own
    return total


def sides_of(model: Model) -> Iterator[tuple[str, workloads.Workload, Any]]:
    """The rows of a model: what it is called, the workload and whose gradient."""
    plain = model.make()
    yield "jax", plain, jax
    wrapped = lambda policy: model.make(wrap=functools.partial(jax.checkpoint, policy=policy, prevent_cse=False))
    for name in STOCK:
        yield f"jax, {name}", wrapped(getattr(jax.checkpoint_policies, name)), jax
    by_hand = jax.checkpoint_policies.save_only_these_names(*model.names)
    yield f"jax, by hand ({', '.join(model.names)})", wrapped(by_hand), jax
    for kept in ("needed", "min_cut_cheap", "min_cut", *(bp.Budget(fraction=f) for f in BUDGETS), "inputs"):
        name = kept if isinstance(kept, str) else f"Budget({kept.fraction:.0%} of min_cut)"
        yield f"funcbp, {name}", plain, bp.Backward(residuals=kept)
    yield "funcbp, by hand", wrapped(by_hand), bp


def in_float64(workload: workloads.Workload, api: Any) -> list[np.ndarray]:
    """The leaves of a gradient in float64."""
    with jax.enable_x64(True):
        wide = lambda x: x.astype(np.float64) if x.dtype == np.float32 else x
        leaves = jax.tree.leaves(jax.jit(workload.program(api))(*jax.tree.map(wide, workload.args)))
        return [np.asarray(x) for x in leaves]


def difference(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest difference of two gradients, relative to each leaf's largest element."""
    pairs = zip(ours, theirs, strict=True)
    return float(np.max([np.max(np.abs(x - y)) / max(np.max(np.abs(y)), 1e-300) for x, y in pairs]))


def compared(name: str, ours: Side, theirs: Side, pairs: int, targets: Mapping[str, Target] | None = None) -> Row:
    """One side beside the other."""
    target = (targets or {}).get
    times = measure.take_turns(ours.run, theirs.run, pairs)
    cells = {
        "time": spread(times.ratios, target("time")),
        "temp bytes": Cell(ratio(ours.temp_bytes, theirs.temp_bytes), target=target("temp bytes")),
        "contractions": Cell(ratio(ours.contractions, theirs.contractions), target=target("contractions")),
        "trace": Cell(ratio(ours.trace, theirs.trace), target=target("trace")),
        "compile": Cell(ratio(ours.compile, theirs.compile), target=target("compile")),
    }
    return Row(name, cells)


def model_rows(name: str, model: Model, pairs: int) -> Iterator[Row]:
    """All sides of a model, beside JAX's plain gradient."""
    (_, plain, api), *others = sides_of(model)
    theirs, want = side(plain, api), in_float64(plain, api)
    yield Row(f"{name}: jax", {c: Cell(1.0) for c in COLUMNS[:5]})
    for label, workload, options in others:
        try:
            gap = difference(in_float64(workload, options), want)
        except ValueError as error:  # a budget that cannot be met, as its message says
            if "The smallest budget is" not in str(error):
                raise
            yield Row(f"{name}: {label}", {"time": Cell(remark="cannot be met")})
            continue
        if not gap <= measure.AGREEMENT:
            yield Row(f"{name}: {label}", {"time": Cell(remark=f"not timed: differs by {gap:.1e}")}, refused=True)
            continue
        targets = {"funcbp, min_cut": model.targets, "funcbp, min_cut_cheap": {"contractions": Target(1.0)}}.get(
            label, {}
        )
        ours = side(workload, options)
        row = compared(f"{name}: {label}", ours, theirs, pairs, targets)
        if isinstance(options, bp.Backward):
            row.cells["predicted"] = Cell(ratio(predicted(workload, options), ours.temp_bytes))
        yield row


def predicted(workload: workloads.Workload, backward: bp.Backward) -> int:
    """The bytes that a gradient is predicted to have in use at most."""
    loss = workload.program(types.SimpleNamespace(value_and_grad=lambda f: f))
    return bp.residuals(loss, backward=backward)(*workload.args).peak


def budget_rows(pairs: int) -> Iterator[Row]:
    """Budgets for blocks in a Python loop: the predicted bytes beside the compiled program's."""
    workload = UNROLLED()
    theirs = side(workload, jax)
    for backward in (bp.Backward(), *(bp.Backward(residuals=bp.Budget(fraction=f)) for f in (0.6, *BUDGETS))):
        ours = side(workload, backward)
        row = compared(f"W4 transformer, 12 blocks in Python: {backward}", ours, theirs, pairs, {"trace": Target(1.5)})
        row.cells["predicted"] = Cell(ratio(predicted(workload, backward), ours.temp_bytes), target=Target(1.1))
        yield row


def choice_rows(which: str, sizes: Collection[tuple[int, int]], pairs: int) -> Iterator[Row]:
    """Products of the LSTM's weights carried out for many steps at once, beside the same at each; and what is chosen.

    `which` is `"SINK"`, the weights' gradient, summed after a block of steps or all, or `"HOIST"`, the products of the
    inputs before the loop.
    """
    chosen, ahead = getattr(sinking, which), which == "HOIST"
    everything: Any = sinking.Deferral(0.0, 0) if ahead else sinking.Blocks(np.inf, 0)
    nothing: Any = sinking.NEVER if ahead else sinking.STEPWISE
    try:
        for batch, units in sizes:
            time = 100 if batch > 100 or units > 500 else 500
            workload = workloads.lstm(time, batch, units, apart=ahead)
            sides = []
            for when in (everything, nothing, chosen):
                setattr(sinking, which, when)
                sides.append(side(workload, bp))
            out, inside, own = sides
            name = f"W6 LSTM, batch {batch}, {units} units: {'x W before the loop' if ahead else 'W̄ after the loop'}"
            yield compared(f"{name} : in the loop", out, inside, pairs)
            if own.temp_bytes not in (out.temp_bytes, inside.temp_bytes):
                yield compared(f"W6 LSTM, batch {batch}, {units} units: W̄ in blocks : in the loop", own, inside, pairs)
    finally:
        setattr(sinking, which, chosen)


def snapshots_row(pairs: int) -> Row:
    """The long loop with a few snapshots: live states and forward sweeps, counted in the schedule that runs."""
    workload = LONG(scan=functools.partial(bp.scan, snapshots=SNAPSHOTS))
    plain = LONG()
    gap = difference(in_float64(workload, bp), in_float64(plain, jax))
    row = compared(f"W6 LSTM, T=1000: {SNAPSHOTS} snapshots", side(workload, bp), side(plain, jax), pairs)
    if not gap <= measure.AGREEMENT:
        return Row(row.name, {"time": Cell(remark=f"differs by {gap:.1e}")}, refused=True)
    live, sweeps = counted(len(plain.args[1]), SNAPSHOTS)
    cells = {"live states": Cell(live, target=Target(12)), "sweeps": Cell(sweeps, target=Target(4))}
    del row.cells["contractions"]  # how often a while loop runs is not in the program
    return row._replace(cells=row.cells | cells)


def counted(steps: int, snapshots: int) -> tuple[int, float]:
    """The most states alive at any time, the one at hand and its cotangent included; and the sweeps forward in all."""
    stored = live = advanced = 0
    for action in loops.schedule(steps, snapshots):
        stored += (action.kind == "store") - (action.kind == "drop")
        advanced += action.stop - action.start if action.kind == "advance" else 0
        live = max(live, stored + 2)
    return live, advanced / steps


def run(pairs: int, only: Collection[str] = (), models: Mapping[str, Model] = MODELS) -> Table:
    """Measure.

    Args:
        pairs: how often the two sides are timed against each other.
        only: the numbers of the workloads to measure, all of them if empty.
        models: the models whose policies are compared, by name.
    """
    rows: list[Row] = []
    wanted = lambda number: not only or number in only
    for name, model in models.items():
        if wanted(name.split()[0]):
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows += model_rows(name, model, pairs)
    if wanted("W4"):
        rows += budget_rows(pairs)
        rows.append(step.compiled_row("W4 transformer, 24 layers: funcbp, min_cut", DEEP(), pairs)[0])
    if wanted("W6"):
        rows += choice_rows("SINK", [(1, 128), (16, 128), (128, 128)], pairs)
        rows += choice_rows("HOIST", [(1, 128), (16, 128), (128, 128), (1, 512)], pairs)
        rows.append(snapshots_row(pairs))
    return Table("What is kept between the passes, beside jax.value_and_grad", COLUMNS, rows)


def draw(table: Table) -> Any:
    """The rows of each model as points: bytes across, time up, both beside JAX's plain gradient."""
    points: dict[str, list[tuple[str, float, float]]] = {}
    for row in table.rows:
        name, _, label = row.name.partition(": ")
        time, temp = row.cells.get("time"), row.cells.get("temp bytes")
        if label.startswith(("jax", "funcbp,")) and time and temp and time.value is not None and temp.value is not None:
            points.setdefault(name, []).append((label, temp.value, time.value))
    points = {name: found for name, found in points.items() if len(found) > 2}
    axes = np.atleast_1d(bp.plot.new_axes(8.0 * max(len(points), 1), 4.5, max(len(points), 1)))
    for ax, (name, found) in zip(axes, points.items(), strict=False):
        for i, (label, temp, time) in enumerate(sorted(found, key=lambda p: p[1]), 1):
            color = "#d95f02" if "funcbp" in label else "#1f77b4"
            ax.scatter(temp, time, color=color, s=30, label=f"{i}  {label}")
            place = {
                "xytext": (4 if i % 2 else -4, 4),
                "textcoords": "offset points",
                "ha": "left" if i % 2 else "right",
            }
            ax.annotate(str(i), (temp, time), fontsize=8, color=color, **place)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7, frameon=False, handletextpad=0.2)
        ax.axhline(1, color="0.8", zorder=0)
        ax.axvline(1, color="0.8", zorder=0)
        ax.set(xlabel="temporary bytes : jax", ylabel="time : jax", title=name)
        ax.set_xlim(0, 1.25 * max(p[1] for p in found))
        ax.spines[["top", "right"]].set_visible(False)
    return axes[0].figure
