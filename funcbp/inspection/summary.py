"""What a program consists of and what it costs, before it is run: operations, shapes, parameters, FLOPs, residuals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import jaxpr as jx
from ..autodiff.arguments import check_callable
from ..autodiff.transformations import Backward
from ..cotangents import float0_zeros, is_differentiable

__all__ = ["Operation", "Summary", "flops_of", "summary"]

FREE = frozenset(
    """broadcast_in_dim reshape transpose squeeze slice dynamic_slice dynamic_update_slice concatenate pad rev gather
    convert_element_type bitcast_convert_type copy copy_p device_put name stop_gradient optimization_barrier iota
    sharding_constraint split stack unstack tile select_n random_bits random_seed random_wrap random_unwrap random_split
    random_fold_in threefry2x32 feedback real imag eq ne lt le gt ge and or not xor argmax argmin""".split()
)


def flops_of(eqn: Any) -> int:
    """Floating-point operations of one equation without programs inside: multiplications and additions count one each.

    A contraction costs 2 per term of its sums, a convolution likewise; reductions and scatters 1 per element that goes
    in, elementwise operations 1 per element that comes out; moving, choosing and comparing numbers is free.
    """
    name, ins, outs = eqn.primitive.name, [v.aval for v in eqn.invars], [v.aval for v in eqn.outvars]
    if name == "dot_general":
        (contract, _), _ = eqn.params["dimension_numbers"]
        return 2 * math.prod(outs[0].shape) * math.prod(ins[0].shape[i] for i in contract)
    if name == "conv_general_dilated":
        kernel = eqn.params["dimension_numbers"].rhs_spec
        terms = math.prod(ins[1].shape) // ins[1].shape[kernel[0]]
        return 2 * math.prod(outs[0].shape) * terms
    if name in FREE or not any(is_differentiable(t) for t in outs if hasattr(t, "dtype")):
        return 0
    if name.startswith(("reduce", "cum", "arg", "scatter")):
        size = ins[-1 if name.startswith("scatter") else 0]
        return math.prod(size.shape)
    return sum(math.prod(t.shape) for t in outs)


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
        parameters: how many numbers the first argument has.
        forward, backward: FLOPs of the two passes; of a `cond` the dearest branch counts, of a `while` one round.
        residuals: bytes that the forward pass keeps for the backward one.
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
            place = o.line.rpartition("/")[2]
            table.append((o.name, o.shape, f"{o.times:,}", f"{o.forward:,}", f"{o.backward:,}", place))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
        totals = (
            f"result {self.output}, {self.parameters:,} parameters, FLOPs: {self.forward:,} forward and "
            f"{self.backward:,} backward, residuals: {self.residuals:,} bytes"
        )
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], totals])

    def __repr__(self) -> str:
        return str(self)


def summary(f: Callable[..., Any], *args: Any) -> Summary:
    """The operations of a function and of its backward pass, with shapes, FLOPs and what is kept between the two.

    Nothing is computed: the programs are traced and their equations counted, those of a loop as often as it runs. What
    the backward pass computes again counts as backward.

    Args:
        f: a function of pytrees of arrays; all floating-point arrays of the first argument are differentiated with
            respect to.
        *args: its arguments, or `jax.ShapeDtypeStruct`s in their place.

    Returns:
        A `Summary`.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> layer = lambda w, x: x @ w
        >>> like = jax.ShapeDtypeStruct
        >>> s = bp.summary(layer, like((8, 4), jnp.float32), like((2, 8), jnp.float32))
        >>> s.parameters, s.forward, s.backward, s.residuals
        (32, 128, 128, 64)
    """
    check_callable(f)
    types = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), jax.tree.map(_typed, args))

    def pullback_of(*args: Any) -> Any:
        return Backward().vjp(lambda first: f(first, *args[1:]), args[0])

    def both(*args: Any) -> Any:
        out, pullback = pullback_of(*args)
        ct = jax.tree.map(lambda y: jnp.ones(y.shape, y.dtype) if is_differentiable(y) else float0_zeros(y), out)
        return out, [g for g in jax.tree.leaves(pullback(ct)) if is_differentiable(g)]

    out, pullback = jax.eval_shape(pullback_of, *types)
    rows: dict[Any, list[Any]] = {}
    for program, column in ((jax.make_jaxpr(f)(*types), 3), (jax.make_jaxpr(both)(*types), 4)):
        for o in _operations(program):
            eqn, times, line, scope = o.eqn, o.times, o.line, o.scope
            rule = scope.split("/")[-1].rstrip(")").split("(")[-1]
            name = rule.removesuffix("_bwd") if "transpose(" in scope else eqn.primitive.name
            shape = ", ".join(f"{v.aval.dtype}{list(v.aval.shape)}" for v in eqn.outvars[:1])
            row = rows.setdefault((name, line), [name, shape, 0, 0, 0, line, scope])
            row[2] += times if column == 3 else 0
            row[column] += times * flops_of(eqn)
    for row in rows.values():  # the second program has both passes
        row[4] = max(0, row[4] - row[3])
    kept = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(pullback) if hasattr(x.dtype, "itemsize"))
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(types[0]))
    output = ", ".join(f"{y.dtype}{list(y.shape)}" for y in jax.tree.leaves(out))
    return Summary([Operation(*row) for row in rows.values()], parameters, kept, output)


def _typed(x: Any) -> Any:
    return x if hasattr(x, "shape") and hasattr(x, "dtype") else jnp.asarray(x)


def _counted(inside: jx.Inside) -> Sequence[Any]:
    """The programs inside an equation that count: of a `while` the body, of a `cond` the dearest branch."""
    match inside.kind:
        case jx.Kind.WHILE:
            return inside.programs[1:]
        case jx.Kind.COND:
            return [max(inside.programs, key=lambda p: sum(o.times * flops_of(o.eqn) for o in _operations(p)))]
        case jx.Kind.OTHER:
            return ()
        case _:
            return inside.programs


def _operations(program: Any) -> Iterator[jx.Occurrence]:
    """The equations that count, without those whose programs are counted in their stead."""
    return (o for o in jx.equations(program, _counted) if not o.opened)
