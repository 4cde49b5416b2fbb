"""A function that carries its backward pass along, into whatever differentiates it.

It is a `jax.custom_vjp` of the function's program, whose forward rule is our forward pass and whose residual is our
pullback. What the function closes over is an operand of that program beside its arguments, so it is differentiated too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from .. import jaxpr as jx
from ..cotangents import Zero, is_differentiable, materialize
from ..jaxpr.types import AnyJaxpr, P, PyTree, T, Value
from .pullback import Pullback

__all__ = ["attached"]


def attached(f: Callable[P, T], vjp: Callable[..., tuple[PyTree, Pullback]]) -> Callable[P, T]:
    """Return `f`, whose derivative is by `vjp`: see `Backward.attach`."""

    @functools.wraps(f)
    def carrying(*args: PyTree, **kwargs: PyTree) -> PyTree:
        leaves, tree = jax.tree.flatten((args, kwargs))
        arrays, place = _divided(leaves)

        def of_arrays(*xs: PyTree) -> tuple[list[Value], Any]:
            args, kwargs = jax.tree.unflatten(tree, place(xs))
            outs, out_tree = jax.tree.flatten(f(*args, **kwargs))
            own, place_outs = _divided(outs)
            left, place_left = _divided(jax.tree.leaves((args, kwargs)))
            return [*own, *left], (out_tree, place_outs, len(own), place_left)

        found = jx.trace_with(of_arrays, list(map(jax.typeof, arrays)), "attached")
        program, (out_tree, place_outs, n, place_left) = found
        kept, _ = program.with_outputs(program.outvars[n:]).pruned(keep_inputs=True)
        _refuse_changed(leaves, place_left([None if i is None else arrays[i] for i in jx.passed_on(kept)]), f)
        program = program.with_outputs(program.outvars[:n])
        outs = _carrier(program.closed, vjp)(*program.consts, *arrays)
        return jax.tree.unflatten(out_tree, place_outs(outs))

    return carrying


def _divided(leaves: Sequence[PyTree]) -> tuple[list[Value], Callable[[Sequence[PyTree]], list[PyTree]]]:
    """Return those that are arrays, and what puts others in their places."""
    places = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array)]

    def put(others: Sequence[PyTree]) -> list[PyTree]:
        full = list(leaves)
        for i, x in zip(places, others, strict=True):
            full[i] = x
        return full

    return [leaves[i] for i in places], put


def _refuse_changed(before: Sequence[Value], after: Sequence[Value], f: Callable[..., Any]) -> None:
    """Raise where a function has written into its arguments, which are copies here: what it wrote would be lost.

    What it only takes out of them, as `batch.pop("labels")`, is not lost, nor what a function that it calls puts back
    as it was, as `flax.nnx.remat` does: what is after is then some of what was before, in the same order.
    """
    still = iter(before)
    if not all(any(x is y for y in still) for x in after):
        name = getattr(f, "__name__", "The function")
        raise ValueError(
            f"{name} changes an argument in place, as batch normalisation changes its statistics and dropout its "
            "counter. What is attached runs on copies, so the change would be lost. Pass the state as an argument and "
            "return it beside the value (in Flax: nnx.split before, nnx.merge inside, nnx.state after, has_aux=True)."
        )


def _carrier(program: AnyJaxpr, vjp: Callable[..., tuple[PyTree, Pullback]]) -> Callable[..., list[Value]]:
    """Return a program as a function whose derivative is by `vjp`."""
    run = jx.as_function(program)
    carrier = jax.custom_vjp(run)

    def forward(*primals: PyTree) -> tuple[list[Value], Pullback]:
        return vjp(run, *(p.value for p in primals), in_nzs=tuple(p.perturbed for p in primals))

    def backward(pullback: Pullback, cts: Sequence[Value]) -> tuple[Value, ...]:
        is_zero = lambda c: isinstance(c, jax.custom_derivatives.SymbolicZero) or not is_differentiable(jax.typeof(c))
        back, _ = pullback.flat([Zero if is_zero(c) else c for c in cts])
        return tuple(None if c is Zero else materialize(c) for c in back)

    carrier.defvjp(forward, backward, symbolic_zeros=True)
    return carrier
