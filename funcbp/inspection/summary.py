"""What a program consists of and what it costs, before it is run: operations, shapes, parameters, FLOPs, residuals."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import jaxpr as jx
from ..autodiff.arguments import (
    as_value,
    check_callable,
    divided,
    holding_static,
    is_array,
    split_arguments,
    which_differentiated,
)
from ..autodiff.transformations import Backward, as_backward
from ..cotangents import float0_zeros, is_differentiable
from ..jaxpr.types import AnyJaxpr, Aval, PyTree, Value
from ..rules.cost import flops
from .render.columns import WIDTH, columns, shortened
from .render.table import short_line, short_type

__all__ = ["Operation", "Summary", "summary"]


class Operation(NamedTuple):
    """One operation of the program, or one that its backward pass does in several.

    Attributes:
        name: the primitive.
        shape: the type of its (first) result.
        times: how often it runs, counting the steps of loops.
        forward, backward: FLOPs, all times together.
        line: `file:line (function)` of the user's program.
        scope: the name scope.
    """

    name: str
    shape: str
    times: int
    forward: int
    backward: int
    line: str
    scope: str


class Summary:
    """What `summary` returns. It prints as a table.

    Attributes:
        operations: a row for each operation and line, in the order they run.
        parameters: how many floating-point numbers there are in what is differentiated.
        forward, backward: FLOPs of the two passes; of a `cond` the dearest branch counts, of a `while` one round.
        residuals: bytes that the backward pass is given: what is kept between the two, and the arguments that it reads.
            `funcbp.residuals` says of each which it is.
        output: the type of the result.
    """

    def __init__(self, operations: Sequence[Operation], parameters: int, residuals: int, output: str):
        self.operations, self.parameters = list(operations), parameters
        self.residuals, self.output = residuals, output
        self.forward = sum(o.forward for o in operations)
        self.backward = sum(o.backward for o in operations)

    def __str__(self) -> str:
        table = [("operation", "result", "times", "FLOPs forward", "backward", "line")]
        for o in self.operations:
            table.append(
                (o.name, short_type(o.shape), f"{o.times:,}", f"{o.forward:,}", f"{o.backward:,}", short_line(o.line))
            )
        lines = columns(table, names=(0, 1, 5), right=range(2, 5))
        kept = f", {self.parameters:,} parameters, residuals with arguments: {self.residuals:,} bytes"
        totals = [
            f"result {shortened(self.output, WIDTH - len('result ' + kept))}{kept}",
            f"FLOPs: {self.forward:,} forward and {self.backward:,} backward",
        ]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *totals])

    def __repr__(self) -> str:
        return str(self)


def summary(
    f: Callable[..., PyTree],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    backward: Backward | None = None,
) -> Callable[..., Summary]:
    """Count the operations of a function and of its backward pass, with shapes, FLOPs and what is kept between the two.

    Nothing is computed: the programs are traced and their equations counted, those of a loop as often as it runs. What
    the backward pass computes again counts as backward.

    Args:
        f: a function of pytrees of arrays to a pytree of arrays.
        argnums: which arguments are differentiated with respect to, as in `grad`: all their floating-point arrays.
        has_aux: whether `f` returns a pair (output, auxiliary data).
        backward: the way of going backward, if not the default one.

    Returns:
        A function with the arguments of `f`, or `jax.ShapeDtypeStruct`s in their place, that returns a `Summary`.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> layer = lambda w, x: x @ w
        >>> like = jax.ShapeDtypeStruct
        >>> s = bp.summary(layer)(like((8, 4), jnp.float32), like((2, 8), jnp.float32))
        >>> s.parameters, s.forward, s.backward, s.residuals
        (32, 128, 128, 64)
    """
    check_callable(f, argnums, has_aux)
    backward = as_backward(backward)

    @functools.wraps(f)
    def count(*args: PyTree, **kwargs: PyTree) -> Summary:
        whole = functools.wraps(f)(lambda args, kwargs: f(*args, **kwargs))
        differentiated = which_differentiated(f, argnums, args)
        of_arrays, arrays = holding_static(whole, (args, kwargs), _is_typed, differentiated)
        types = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), jax.tree.map(_typed, arrays))

        def pullback_of(args: PyTree, kwargs: PyTree) -> PyTree:
            whole = functools.wraps(f)(lambda *args: of_arrays(args, kwargs))
            partial, chosen = split_arguments(whole, argnums, args, {})
            return backward.vjp(partial, *chosen, has_aux=has_aux)[:2]

        def forward(args: PyTree, kwargs: PyTree) -> PyTree:
            out = of_arrays(args, kwargs)
            return divided(f, out)[0] if has_aux else out

        def both(args: PyTree, kwargs: PyTree) -> PyTree:
            out, pullback = pullback_of(args, kwargs)
            out = jax.tree.map(as_value, out)  # a number of Python is one
            ct = jax.tree.map(lambda y: jnp.ones(y.shape, y.dtype) if is_differentiable(y) else float0_zeros(y), out)
            return out, [g for g in jax.tree.leaves(pullback(ct)) if is_differentiable(g)]

        out, pullback = jax.eval_shape(pullback_of, *types)
        kept = sum(
            math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(pullback) if hasattr(x.dtype, "itemsize")
        )
        chosen = jax.tree.leaves(split_arguments(f, argnums, types[0], {})[1])
        parameters = sum(math.prod(x.shape) for x in chosen if is_differentiable(x))
        output = ", ".join(f"{y.dtype}{list(y.shape)}" for y in jax.tree.leaves(out))
        return Summary(_rows_of(forward, both, types), parameters, kept, output)

    return count


def _rows_of(forward: Callable[..., PyTree], both: Callable[..., PyTree], types: PyTree) -> list[Operation]:
    """The operations of the forward pass, and of the program that has both passes."""
    rows: dict[Any, list[Any]] = {}
    for program, column in ((jax.make_jaxpr(forward)(*types), 3), (jax.make_jaxpr(both)(*types), 4)):
        for o in _operations(program):
            eqn, times, line, scope = o.eqn, o.times, o.line, o.scope
            rule = scope.split("/")[-1].rstrip(")").split("(")[-1]
            name = rule.removesuffix("_bwd") if "transpose(" in scope else eqn.primitive.name
            kinds: list[Aval] = [v.aval for v in eqn.outvars[:1]]
            shape = ", ".join(f"{t.dtype}{list(t.shape)}" for t in kinds)
            row = rows.setdefault((name, line), [name, shape, 0, 0, 0, line, scope])
            row[2] += times if column == 3 else 0
            row[column] += times * flops(eqn)
    for row in rows.values():  # the second program has both passes
        row[4] = max(0, row[4] - row[3])
    return [Operation(*row) for row in rows.values()]


def _is_typed(x: Value) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct) or is_array(x)


def _typed(x: Value) -> Value:
    return x if hasattr(x, "shape") and hasattr(x, "dtype") else jnp.asarray(x)


def _counted(inside: jx.Inside) -> Sequence[AnyJaxpr]:
    """The programs inside an equation that count: of a `while` the body, of a `cond` the dearest branch."""
    match inside.kind:
        case jx.Kind.WHILE:
            return inside.programs[1:]
        case jx.Kind.COND:
            return [max(inside.programs, key=lambda p: sum(o.times * flops(o.eqn) for o in _operations(p)))]
        case jx.Kind.OTHER:
            return ()
        case _:
            return inside.programs


def _operations(program: AnyJaxpr) -> Iterator[jx.Occurrence]:
    """The equations that count, without those whose programs are counted in their stead."""
    return (o for o in jx.equations(program, _counted) if not o.opened)
