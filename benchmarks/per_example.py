"""Per-example quantities: what they cost in plain gradients, ours and by `vmap(jax.grad)`; and those of the peers.

Every ratio is to JAX's gradient of the batch's mean loss, of the same model on the same batch. A peer's is to its own
plain gradient.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import funcbp as bp

from . import measure, peers, workloads
from .measure import ratio
from .memory import contractions
from .report import Cell, Row, Table, Target, spread
from .step import chosen, number


class Case(NamedTuple):
    """A model on a batch: the mean loss of the batch, and the loss of one example."""

    batch_loss: Callable[[Any, Any], Any]
    loss: Callable[[Any, Any], Any]
    params: Any
    batch: Any


class Program(NamedTuple):
    """A compiled function of (params, batch), and what the compiler says about it.

    `flops` are the compiler's, which counts the body of a loop once; `contractions` are those of the contractions,
    counted for each step.
    """

    run: Callable[[], Any]
    flops: float
    contractions: float
    temp_bytes: int
    compile: float


def case_of(build: Callable[..., workloads.Workload]) -> Case:
    """A workload's case. The loss of one example is the workload's own, for a batch of one."""
    itself = SimpleNamespace(value_and_grad=lambda loss: loss)
    whole, one = build(), build(batch=1)
    batch_loss, of_one = whole.program(itself), one.program(itself)
    params, *batch = whole.args
    loss = lambda params, example: of_one(params, *(a[None] for a in example))
    return Case(lambda params, batch: batch_loss(params, *batch), loss, params, tuple(batch))


def least_squares(sizes: Sequence[int] = (64, 256, 256, 256, 1), batch: int = 256) -> Case:
    """W9: the residuals of a regression."""
    rng = np.random.default_rng(9)

    def residual(params: Any, example: Any) -> Any:
        x, y = example
        for layer in params[:-1]:
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
        return (x @ params[-1]["kernel"] + params[-1]["bias"])[0] - y

    data = workloads.normal(rng, batch, sizes[0]), workloads.normal(rng, batch)
    mean = lambda params, batch: jnp.mean(jax.vmap(residual, (None, 0))(params, batch))
    return Case(mean, residual, workloads.dense_layers(rng, sizes), data)


CASES: dict[str, Callable[[], Case]] = {
    "W1 MLP": lambda: case_of(workloads.mlp),
    "W2 convnet": lambda: case_of(workloads.convnet),
    "W3 wide MLP": lambda: case_of(functools.partial(workloads.mlp, (5120, 2560, 1280), batch=32)),
    "W4 transformer, d=128": lambda: case_of(functools.partial(workloads.transformer, d=128)),
    "W4 transformer, d=256": lambda: case_of(functools.partial(workloads.transformer, d=256)),
    "W9 least squares": least_squares,
    "W10 2-2-2 network, batch 8": lambda: case_of(lambda batch=8: workloads.mlp((2, 2, 2), batch=batch)),
    "W0 small convnet, batch 8": lambda: case_of(
        lambda batch=8: workloads.convnet(8, (1, 4, 4, 4), (8, 8, 4), batch=batch)
    ),
}
TARGETS = {
    "norms": {"W1": Target(1.15), "W3": Target(1.15)},
    "clipping": {"W1": Target(1.10), "W3": Target(1.10), "W2": Target(1.9), "W4": Target(1.9)},
    "Gram": {"W9": Target(8, at_least=True)},
}
COLUMNS = (
    *("time", "flops", "contractions", "temp bytes"),
    *("vmap(grad) time", "vmap(grad) flops", "vmap(grad) temp bytes", "times faster than vmap(grad)"),
)
GROWTH = (16, 64, 256, 512)


# --- the quantities, by factors and by the gradients themselves -------------------------------------------------------


def norms(case: Case) -> tuple[Any, Any]:
    """Norms and mean gradient."""

    def theirs(params: Any, batch: Any) -> Any:
        grads = jax.vmap(jax.grad(case.loss), (None, 0))(params, batch)
        return jnp.sqrt(_squares(grads)), jax.tree.map(lambda g: jnp.mean(g, 0), grads)

    return bp.per_example.norms(case.loss, with_grad=True), theirs


def clipping(case: Case, max_norm: float = 1.0) -> tuple[Any, Any]:
    """The mean of the clipped gradients."""

    def theirs(params: Any, batch: Any) -> Any:
        grads = jax.vmap(jax.grad(case.loss), (None, 0))(params, batch)
        c = jnp.minimum(1, max_norm / jnp.sqrt(_squares(grads)))
        return jax.tree.map(lambda g: jnp.tensordot(c, g, 1) / len(c), grads)

    clip = bp.per_example.clipped_grad(case.loss, max_norm)
    return lambda params, batch: clip(params, batch)[0], theirs


def gram(case: Case) -> tuple[Any, Any]:
    """J J'."""

    def theirs(params: Any, batch: Any) -> Any:
        grads = jax.vmap(jax.grad(case.loss), (None, 0))(params, batch)
        rows = jnp.concatenate([g.reshape(len(g), -1) for g in jax.tree.leaves(grads)], 1)
        return rows @ rows.T

    return bp.per_example.gram(case.loss), theirs


def _squares(grads: Any) -> Any:
    return sum(jnp.sum(g.reshape(len(g), -1) ** 2, 1) for g in jax.tree.leaves(grads))


QUANTITIES = {"norms": norms, "clipping": clipping, "Gram": gram}


# --- measuring --------------------------------------------------------------------------------------------------------


def compiled(f: Callable[..., Any], *args: Any) -> Program:
    """The function, compiled for these arguments."""
    traced = jax.jit(f).trace(*args)
    program, seconds = measure.seconds(traced.lower().compile)
    memory, flops = program.memory_analysis().temp_size_in_bytes, program.cost_analysis()["flops"]
    return Program(lambda: program(*args), flops, contractions(traced.jaxpr.jaxpr.eqns), memory, seconds)


def plain_gradient(case: Case) -> Program:
    return compiled(jax.value_and_grad(case.batch_loss), case.params, case.batch)


def gap(ours: Any, theirs: Any, case: Case, examples: int = 3) -> float:
    """The largest difference in float64 on the first examples, relative to each leaf's largest element."""
    with jax.enable_x64(True):
        wide = lambda a: jnp.asarray(a, np.float64) if a.dtype == np.float32 else a
        params, batch = jax.tree.map(wide, (case.params, jax.tree.map(lambda a: a[:examples], case.batch)))
        results = [jax.tree.leaves(jax.jit(f)(params, batch)) for f in (ours, theirs)]
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(*results, strict=True)]
    return float(np.max([np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-300) for a, b in pairs]))


def quantity_row(name: str, what: str, case: Case, plain: Program, pairs: int) -> Row:
    """A quantity of one case."""
    label = f"{name}: {what}"
    ours, theirs = QUANTITIES[what](case)
    difference = gap(ours, theirs, case)
    if not difference <= measure.AGREEMENT:
        remark = f"not timed: results differ by {difference:.1e} in float64"
        return Row(label, {"time": Cell(remark=remark)}, refused=True)
    a, b = (compiled(f, case.params, case.batch) for f in (ours, theirs))
    times = measure.take_turns(a.run, plain.run, pairs)
    slow = measure.alone(b.run)
    target = TARGETS[what].get(number(name))
    cells = {
        "time": spread(times.ratios, None if what == "Gram" else target),
        "flops": Cell(ratio(a.flops, plain.flops)),
        "contractions": Cell(ratio(a.contractions, plain.contractions)),
        "temp bytes": Cell(ratio(a.temp_bytes, plain.temp_bytes)),
        "vmap(grad) time": Cell(slow / float(np.median(times.theirs))),
        "vmap(grad) flops": Cell(ratio(b.flops, plain.flops)),
        "vmap(grad) temp bytes": Cell(ratio(b.temp_bytes, plain.temp_bytes)),
        "times faster than vmap(grad)": Cell(
            slow / float(np.median(times.ours)), target=target if what == "Gram" else None
        ),
    }
    return Row(label, cells)


def growth_rows(build: Callable[..., workloads.Workload], sizes: Sequence[int], pairs: int) -> list[Row]:
    """Clipping as the batch grows: against the plain gradient of each size, and compiling against the first size."""
    rows, first = [], None
    for n in sizes:
        case = case_of(lambda batch=n: build(batch=batch))
        ours, plain = compiled(clipping(case)[0], case.params, case.batch), plain_gradient(case)
        first = first or ours.compile
        times = measure.take_turns(ours.run, plain.run, pairs)
        cells = {
            "time": spread(times.ratios),
            "flops": Cell(ratio(ours.flops, plain.flops)),
            "temp bytes": Cell(ratio(ours.temp_bytes, plain.temp_bytes)),
            "compile, to the first": Cell(ours.compile / first),
        }
        rows.append(Row(f"W1 MLP: clipping, batch {n}", cells))
    return rows


def run(
    pairs: int,
    only: Collection[str] = (),
    cases: Mapping[str, Callable[[], Case]] = CASES,
    growth: Sequence[int] = GROWTH,
    networks: Mapping[str, peers.Network] = peers.NETWORKS,
) -> Table:
    """Measure.

    Args:
        pairs: how often two programs are timed against each other.
        only: the numbers of the workloads to measure, all of them if empty.
        cases: the workloads, by name.
        growth: the sizes of batches over which compile time and the rest are followed.
        networks: those that the peers run, by name.
    """
    rows: list[Row] = []
    for name, make in chosen(cases, only):
        case = make()
        plain = plain_gradient(case)
        for what in ["Gram"] if number(name) == "W9" else ["norms", "clipping"]:
            rows.append(quantity_row(name, what, case, plain, pairs))
    if not only or "W1" in only:
        print("growing batches ...", file=sys.stderr, flush=True)
        sizes = (784, 1000, 500, 100, 10) if growth == GROWTH else (6, 5, 3)
        rows += growth_rows(functools.partial(workloads.mlp, sizes), growth, pairs)
    for name, network in networks.items():
        if not only or number(name) in only:
            rows += peers.peer_rows(name, network)
    columns = (*COLUMNS, "compile, to the first")
    return Table("Per-example quantities, in plain gradients", columns, rows)
