"""Curvature: what it costs in plain gradients, ours and by JAX's own transformations; and that of the peers.

On W1, the mean cross-entropy of an MLP. Every ratio is to JAX's gradient of the batch's mean loss; a peer's is to its
own plain gradient.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcbp as bp

from . import measure, peers, workloads
from .measure import ratio
from .per_example import Case, Program, compiled, gap, plain_gradient
from .report import Cell, Row, Table, spread
from .step import number

COLUMNS = ("time", "flops", "temp bytes", "jax time", "jax flops", "jax temp bytes")
SIZES: tuple[int, ...] = (784, 1000, 500, 100, 10)


def model(params: Any, x: Any) -> Any:
    """A classifier with relu layers, for one example."""
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def cross_entropy(z: Any, y: Any) -> Any:
    return -jax.nn.log_softmax(z)[y]


bp.curvature.OUTPUT_HESSIANS[cross_entropy] = bp.curvature.OUTPUT_HESSIANS[
    bp.ops.softmax_cross_entropy_with_integer_labels
]


def network(sizes: Sequence[int] = SIZES, batch: int = 128) -> Case:
    """W1, with a direction to multiply with in the batch."""
    rng = np.random.default_rng(1)
    params = workloads.dense_layers(rng, sizes)
    data = workloads.normal(rng, batch, sizes[0]), workloads.labels(rng, batch, sizes[-1])
    loss = lambda params, example: cross_entropy(model(params, example[0]), example[1])
    mean = lambda params, batch: jnp.mean(jax.vmap(loss, (None, 0))(params, batch))
    return Case(mean, loss, params, data)


# --- the quantities ---------------------------------------------------------------------------------------------------


def direction(params: Any) -> Any:
    return jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)


def ggn_product(case: Case) -> tuple[Any, Any]:
    ours = lambda params, batch: bp.curvature.ggn_vp(model, cross_entropy)(params, *batch, direction(params))

    def theirs(params: Any, batch: Any) -> Any:
        x, y = batch
        f = lambda params: jax.vmap(model, (None, 0))(params, x)
        z, u = jax.jvp(f, (params,), (direction(params),))
        h = jax.vmap(lambda z, y, u: jax.jvp(lambda z: jax.grad(cross_entropy)(z, y), (z,), (u,))[1])(z, y, u)
        return jax.vjp(f, params)[1](h / len(x))[0]

    return ours, theirs


def hessian_product(case: Case) -> tuple[Any, Any]:
    ours = lambda params, batch: bp.hvp(lambda p: case.batch_loss(p, batch), (params,), (direction(params),))
    theirs = lambda params, batch: jax.jvp(
        lambda params: jax.grad(case.batch_loss)(params, batch), (params,), (direction(params),)
    )[1]
    return ours, theirs


def diagonal(case: Case) -> tuple[Any, Any]:
    ours = lambda params, batch: bp.curvature.diag_ggn(model, cross_entropy)(params, *batch)

    def theirs(params: Any, batch: Any) -> Any:
        x, y = batch

        def one(x: Any, y: Any) -> Any:
            z, pullback = jax.vjp(lambda params: model(params, x), params)
            p = jax.nn.softmax(z)
            roots = jnp.sqrt(p)[:, None] * (jnp.eye(len(z), dtype=z.dtype) - p)
            return jax.tree.map(lambda g: jnp.sum(g**2, 0), jax.vmap(lambda s: pullback(s)[0])(roots))

        return jax.tree.map(lambda g: jnp.mean(g, 0), jax.lax.map(lambda example: one(*example), (x, y)))

    return ours, theirs


def kronecker(case: Case) -> tuple[Any, None]:
    return lambda params, batch: bp.curvature.kfac_factors(model, cross_entropy)(params, *batch), None


def drawn_kronecker(case: Case) -> tuple[Any, None]:
    factors = bp.curvature.kfac_factors(model, cross_entropy, "monte_carlo")
    return lambda params, batch: factors(params, *batch, jax.random.key(0)), None


def drawn_diagonal(case: Case) -> tuple[Any, None]:
    diag = bp.curvature.diag_ggn(model, cross_entropy, samples=1)
    return lambda params, batch: diag(params, *batch, jax.random.key(0)), None


QUANTITIES: dict[str, Callable[[Case], tuple[Any, Any]]] = {
    "Hessian times a vector": hessian_product,
    "Gauss-Newton times a vector": ggn_product,
    "diagonal of Gauss-Newton": diagonal,
    "diagonal by draws": drawn_diagonal,
    "Kronecker factors": kronecker,
    "Kronecker factors by draws": drawn_kronecker,
}


def quantity_row(name: str, what: str, case: Case, plain: Program, pairs: int) -> Row:
    """A quantity; where JAX has a way to it, the two are compared first."""
    label = f"{name}: {what}"
    ours, theirs = QUANTITIES[what](case)
    if theirs is not None:
        difference = gap(ours, theirs, case)
        if not difference <= measure.AGREEMENT:
            remark = f"not timed: results differ by {difference:.1e} in float64"
            return Row(label, {"time": Cell(remark=remark)}, refused=True)
    a = compiled(ours, case.params, case.batch)
    times = measure.take_turns(a.run, plain.run, pairs)
    cells = {
        "time": spread(times.ratios),
        "flops": Cell(ratio(a.flops, plain.flops)),
        "temp bytes": Cell(ratio(a.temp_bytes, plain.temp_bytes)),
    }
    if theirs is not None:
        b = compiled(theirs, case.params, case.batch)
        cells |= {
            "jax time": Cell(measure.alone(b.run) / float(np.median(times.theirs))),
            "jax flops": Cell(ratio(b.flops, plain.flops)),
            "jax temp bytes": Cell(ratio(b.temp_bytes, plain.temp_bytes)),
        }
    return Row(label, cells)


def run(pairs: int, only: Collection[str] = (), sizes: Sequence[int] = SIZES, batch: int = 128) -> Table:
    """Measure.

    Args:
        pairs: how often two programs are timed against each other.
        only: the numbers of the workloads to measure, all of them if empty; this table has W1.
        sizes, batch: the network's layers, and how many examples it is given.
    """
    rows: list[Row] = []
    name = "W1 MLP"
    if not only or number(name) in only:
        case = network(sizes, batch)
        plain = plain_gradient(case)
        for what in QUANTITIES:
            print(f"{name}: {what} ...", file=sys.stderr, flush=True)
            rows.append(quantity_row(name, what, case, plain, pairs))
        rows += peers.peer_rows(name, lambda: peers.mlp(sizes, batch), peers.CURVATURE)
    return Table("Curvature, in plain gradients", COLUMNS, rows)
