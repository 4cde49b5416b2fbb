"""A function that carries its backward pass along, into whatever differentiates it.

It is a call of the function's program that has our two passes with it (`jaxpr/attached.py`); what goes from the first
to the second is our pullback. What the function closes over is an operand of that program beside its arguments, so it
is differentiated too. Of a mutable reference that is what it holds, and what the program made of that is written back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from .. import jaxpr as jx
from ..cotangents import Zero, is_differentiable, materialize
from ..jaxpr.types import AnyJaxpr, P, PyTree, T, Value
from .arguments import arrays_apart
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

        found = jx.trace_with(of_arrays, list(map(jax.typeof, arrays)), "attached", jx.defined_where(f))
        program, (out_tree, place_outs, n, place_left) = found
        kept, _ = program.with_outputs(program.outvars[n:]).pruned(keep_inputs=True)
        _refuse_changed(leaves, place_left([None if i is None else arrays[i] for i in jx.passed_on(kept)]), f)
        program = program.with_outputs(program.outvars[:n])
        program, operands, written = jx.on_values(program, arrays)
        passes = _Passes(program.closed, vjp, writes=len(program.outvars) > n)
        outs = jx.attached_p.bind(*operands, jaxpr=program.closed, bwd=passes)
        return jax.tree.unflatten(out_tree, place_outs(written(outs)))

    return carrying


def _divided(leaves: Sequence[PyTree]) -> tuple[list[Value], Callable[[Sequence[PyTree]], list[PyTree]]]:
    """Return those that are arrays or of types that people define, and what puts others in their places."""
    return arrays_apart(leaves, [isinstance(x, jax.Array) or jx.is_high(x) for x in leaves])


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


@dataclass(frozen=True, eq=False)
class _Passes:
    """A program forward and backward, by `vjp`.

    Attributes:
        writes: whether its last outputs are what is written into references. A gradient may be stopped on the way.
    """

    program: AnyJaxpr
    vjp: Callable[..., tuple[PyTree, Pullback]]
    writes: bool

    def forward(self, primals: Sequence[Value], perturbed: Sequence[bool]) -> tuple[list[Value], Pullback]:
        return self.vjp(jx.as_function(self.program), *primals, in_nzs=tuple(perturbed))

    def moving(self, perturbed: Sequence[bool]) -> list[bool]:
        if not self.writes:
            return list(map(is_differentiable, jx.out_avals(self.program)))

        def forward(*xs: Value) -> tuple[list[Value], list[bool]]:
            outs, pullback = self.forward(xs, perturbed)
            return outs, [i is not None for i in pullback.tape.outputs]

        return jx.trace_with(forward, jx.in_avals(self.program), "attached")[1]

    def backward(self, pullback: Pullback, cts: Sequence[Value | None]) -> list[Value | None]:
        back, _ = pullback.flat([Zero if c is None else c for c in cts])
        return [None if c is Zero else materialize(c) for c in back]
