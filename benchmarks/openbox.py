"""Looking inside and going other ways back: what it costs beside a plain gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import funcbp as bp

from . import measure, workloads
from .report import Cell, Row, Table, Target, spread
from .step import chosen

Pair = tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]  # ours, the plain gradient's, the arguments
norm = lambda ct: jnp.sqrt(jnp.sum(ct**2))


def mlp_loss(named: bool) -> Callable[..., Any]:
    """W1's loss, with or without names for the layers' net inputs."""
    mark = bp.name if named else lambda x, _: x

    def loss(params: Any, x: Any, y: Any) -> Any:
        for i, layer in enumerate(params[:-1]):
            x = jax.nn.relu(mark(x @ layer["kernel"] + layer["bias"], f"net{i}"))
        return workloads.cross_entropy(mark(x @ params[-1]["kernel"] + params[-1]["bias"], "out"), y)

    return loss


def norms(loss: Callable[..., Any], plain: Callable[..., Any], args: tuple[Any, ...]) -> Pair:
    """The gradient with the norm of each named cotangent, against JAX's gradient alone."""
    return jax.jit(bp.cotangents(loss, reduce=norm)), jax.jit(jax.value_and_grad(plain)), args


def norms_of_mlp(**sizes: Any) -> Pair:
    """All deltas of W1 as norms."""
    return norms(mlp_loss(True), mlp_loss(False), workloads.mlp(**sizes).args)


def norms_of_transformer(**sizes: Any) -> Pair:
    """All deltas of W4 as norms: in each block four, and the logits."""
    return norms(
        workloads.transformer_loss(name=bp.name, **sizes),
        workloads.transformer_loss(**sizes),
        workloads.transformer(**sizes).args,
    )


def feedback(scheme: str, **sizes: Any) -> Pair:
    """A step of feedback alignment, or with the weights' signs, on W1."""
    args, loss = workloads.mlp(**sizes).args, mlp_loss(False)
    fixed = bp.credit.feedback_weights(jax.random.key(0), args[0])

    def step(params: Any, x: Any, y: Any, weights: Any) -> Any:
        backward = bp.credit.uniform_sign(params) if scheme == "signs" else bp.Backward(feedback=weights)
        return backward.value_and_grad(loss)(params, x, y)

    plain = lambda params, x, y, weights: jax.value_and_grad(loss)(params, x, y)
    return jax.jit(step), jax.jit(plain), (*args, fixed)


def direct(width: int = 1024, hidden: int = 6, inputs: int = 784, outputs: int = 10, batch: int = 128) -> Pair:
    """A step of direct feedback alignment on 784-6x1024-10."""
    sizes = [inputs, *[width] * hidden, outputs]
    args = workloads.mlp(sizes, batch).args
    keys = jax.random.split(jax.random.key(0), hidden)
    weights = {f"h{i}": jax.random.normal(k, (outputs, width)) / outputs**0.5 for i, k in enumerate(keys)}

    def loss(params: Any, x: Any, y: Any) -> Any:
        for i, layer in enumerate(params[:-1]):
            x = bp.name(jnp.tanh(x @ layer["kernel"] + layer["bias"]), f"h{i}")
        return workloads.cross_entropy(bp.name(x @ params[-1]["kernel"] + params[-1]["bias"], "out"), y)

    ours = bp.credit.direct_feedback(weights, error="out").value_and_grad(loss)
    return jax.jit(ours), jax.jit(jax.value_and_grad(loss)), args


def whether(**sizes: Any) -> Pair:
    """The cheap question of `find_nan`, against JAX's gradient alone."""
    args, loss = workloads.mlp(**sizes).args, mlp_loss(False)
    return jax.jit(bp.find_nan(loss).whether), jax.jit(jax.value_and_grad(loss)), args


def checked(loss: Callable[..., Any], args: tuple[Any, ...]) -> Pair:
    """The whole of `bp.check`, which mostly compiles, against one gradient that is compiled already."""
    return (lambda *args: bp.check(loss, *args, argnums=0).ok), jax.jit(jax.value_and_grad(loss)), args


SMALL = dict(d=32, time=16, batch=2, blocks=2, heads=2, vocabulary=64)


def checked_transformer(**sizes: Any) -> Pair:
    """W4 with two small blocks."""
    sizes = SMALL | sizes
    return checked(workloads.transformer_loss(**sizes), workloads.transformer(**sizes).args)


def errors(**sizes: Any) -> Pair:
    """The errors of W4's named values and their cotangents beside a float64 shadow, against JAX's gradient alone."""
    loss = workloads.transformer_loss(name=bp.name, **sizes)
    args = workloads.transformer(**sizes).args
    return jax.jit(bp.precision(loss).errors), jax.jit(jax.value_and_grad(workloads.transformer_loss(**sizes))), args


def look(how: str, **sizes: Any) -> Callable[[], Any]:
    """A look at every equation of a small W4, which runs them one by one in Python, or keeps what they made."""
    loss, args = workloads.transformer_loss(name=bp.name, **sizes), workloads.transformer(**sizes).args
    looks = {"trace": bp.trace(loss), "precision": bp.precision(loss), "diff": bp.diff(loss, loss)}
    return lambda: looks[how](*args)


LOOKS = {f"W4, small: {how}": functools.partial(look, how) for how in ("trace", "precision", "diff")}
ROWS: dict[str, tuple[Callable[[], Pair], Target]] = {
    "W1 all deltas as norms": (norms_of_mlp, Target(1.10)),
    "W4 all deltas as norms": (norms_of_transformer, Target(1.10)),
    "W1 feedback alignment": (lambda: feedback("random"), Target(1.05)),
    "W1 signs of the weights": (lambda: feedback("signs"), Target(1.05)),
    "784-6x1024-10 direct feedback": (direct, Target(0.85)),
    "W1 find_nan: whether": (whether, Target(1.5)),
    "W4 with two blocks, check": (checked_transformer, Target(10_000)),
    "W4 precision: errors": (errors, Target(10)),
}


def run(
    pairs: int,
    only: Collection[str] = (),
    rows: Mapping[str, tuple[Callable[[], Pair], Target]] = ROWS,
    sizes: Mapping[str, int] = SMALL,
) -> Table:
    """Measure.

    Args:
        pairs: how often the two sides are timed against each other.
        only: the numbers of the workloads to measure, all of them if empty.
        rows: by name, what makes the pair and where its time ratio must land.
        sizes: of the model whose equations are looked at one by one.
    """
    found = []
    for name, (build, target) in chosen(rows, only):
        ours, theirs, args = build()
        times = measure.take_turns(lambda o=ours, a=args: o(*a), lambda t=theirs, a=args: t(*a), pairs)
        cells = {"time": spread(times.ratios, target)}
        if hasattr(ours, "lower"):  # it is one program
            costs = [f.lower(*args).compile() for f in (ours, theirs)]
            flops = [c.cost_analysis()["flops"] for c in costs]
            temp = [c.memory_analysis().temp_size_in_bytes for c in costs]
            cells |= {"temp bytes": Cell(measure.ratio(*temp)), "flops": Cell(measure.ratio(*flops))}
        found.append(Row(name, cells))
    for name, make in chosen(LOOKS, only):
        f = make(**sizes)
        f()  # what it compiles
        found.append(Row(name, {"seconds": Cell(measure.alone(f))}))
    return Table("Open the box, funcbp : jax.value_and_grad", ("time", "temp bytes", "flops", "seconds"), found)
