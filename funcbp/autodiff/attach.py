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
        arrays = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array)]

        def of_arrays(*xs: PyTree) -> PyTree:
            full = list(leaves)
            for i, x in zip(arrays, xs, strict=True):
                full[i] = x
            args, kwargs = jax.tree.unflatten(tree, full)
            out = f(*args, **kwargs)
            _refuse_changed(full, jax.tree.leaves((args, kwargs)), f)
            return out

        operands = [leaves[i] for i in arrays]
        program, out_tree = jx.trace_tree(of_arrays, list(map(jax.typeof, operands)), "attached")
        return jax.tree.unflatten(out_tree, _carrier(program.closed, vjp)(*program.consts, *operands))

    return carrying


def _refuse_changed(before: Sequence[Value], after: Sequence[Value], f: Callable[..., Any]) -> None:
    """Raise where a function has written into its arguments, which are copies here: what it wrote would be lost.

    What it only takes out of them, as `batch.pop("labels")`, is not lost.
    """
    known = {id(x) for x in before}
    if any(id(x) not in known for x in after):
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
