"""The primitive behind `Backward.attach`: a call that has its two passes with it.

It becomes a `jax.custom_vjp` function only where it is differentiated. What is mapped by `vmap` before are the program
and its two passes, here: JAX would map the backward rule so that the cotangent of an output which all examples share
counts once for each of them (or is refused), and that the names of mapped axes are not known in it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax._src import checkify, config, core, hijax
from jax._src.ad_util import Zero
from jax._src.interpreters import batching
from jax._src.interpreters.ad import primitive_jvps
from jax._src.interpreters.batching import AxisData
from jax.extend.core import Primitive
from jax.tree_util import PyTreeDef

from .interpreter import as_function
from .programs import Program, among, in_avals, out_avals, trace_with
from .snapshots import computed_by
from .types import ClosedJaxpr, PyTree, Value
from .values import Aval, is_high, shown_type

__all__ = ["TwoPasses", "attached_p", "run_attached"]


class TwoPasses(Protocol):
    """A program forward and backward."""

    def forward(self, primals: Sequence[Value], perturbed: Sequence[bool]) -> tuple[list[Value], PyTree]:
        """Return the outputs and what the backward pass needs."""

    def moving(self, perturbed: Sequence[bool]) -> list[bool]:
        """Return which outputs may have a derivative, if these inputs are perturbed."""

    def backward(self, res: PyTree, cts: Sequence[Value | None]) -> list[Value | None]:
        """Return the cotangents of the inputs from those of the outputs; None are those that are zero."""


attached_p = Primitive("attached")  # (*operands, jaxpr, bwd: its TwoPasses) -> outputs
attached_p.multiple_results = True


def _run(*args: Value, jaxpr: ClosedJaxpr, bwd: TwoPasses) -> list[Value]:
    return as_function(jaxpr)(*args)


def run_attached(*primals: Value, jaxpr: ClosedJaxpr, bwd: TwoPasses) -> list[Value]:
    """Run the program as a `jax.custom_vjp` function of these two passes."""

    def backward(res: PyTree, cts: Sequence[Value]) -> tuple[Value | None, ...]:
        is_zero = lambda c: (
            isinstance(c, jax.custom_derivatives.SymbolicZero) or getattr(c, "dtype", None) == jax.dtypes.float0
        )
        return tuple(bwd.backward(res, [None if is_zero(c) else c for c in cts]))

    with _of_types([*map(core.typeof, primals), *out_avals(jaxpr)]):
        function = jax.custom_vjp(as_function(jaxpr))
        function.defvjp(
            lambda *xs: bwd.forward([x.value for x in xs], [x.perturbed for x in xs]), backward, symbolic_zeros=True
        )
        return list(function(*primals))


def _of_types(types: Sequence[Aval]) -> AbstractContextManager[object]:
    """Turn the flag `jax_custom_vjp3` on where values of types that people define go in or out, and off elsewhere.

    Without it JAX takes each cotangent for an array. What it makes of these functions has no tangents in JAX 0.10.
    """
    needed = any(map(is_high, types))
    return nullcontext() if config.custom_vjp3.value == needed else config.custom_vjp3(needed)


def _jvp(primals: Sequence[Value], tangents: Sequence[Value], **params: Any) -> tuple[list[Value], list[Value]]:
    moving = [i for i, t in enumerate(tangents) if type(t) is not Zero]
    types = [*map(core.typeof, primals), *out_avals(params["jaxpr"])]
    if not hasattr(hijax, "HiPrim") and (high := [t for t in types if is_high(t)]):
        raise NotImplementedError(
            f"JAX {jax.__version__} cannot differentiate what is attached and takes, closes over or returns a value of "
            f"the type {shown_type(high[0])}. Take funcbp.grad, or attach a function of the arrays in it."
        )

    def of_moving(*xs: Value) -> list[Value]:
        full = list(primals)
        for i, x in zip(moving, xs, strict=True):
            full[i] = x
        return run_attached(*full, **params)

    outs, moved = jax.jvp(of_moving, [primals[i] for i in moving], [tangents[i] for i in moving])
    moves = params["bwd"].moving([i in moving for i in range(len(primals))])
    found = zip(outs, moved, moves, strict=True)
    return outs, [t if m else Zero(core.typeof(o).to_tangent_aval()) for o, t, m in found]


# --- mapped -----------------------------------------------------------------------------------------------------------

Dims = tuple[Any, ...]  # along which axis of each value the examples are, or None


@functools.partial(jax.tree_util.register_dataclass, data_fields=["leaves"], meta_fields=["tree", "dims"])
@dataclass
class _Residuals:
    """What one example's backward pass needs, of all examples."""

    leaves: list[Value]
    tree: PyTreeDef
    dims: Dims


@dataclass(frozen=True, eq=False)
class _Mapped:
    """The two passes of a program, mapped over examples.

    Attributes:
        of_one: those of one example.
        program: the program of one example.
        axis: the axis of the examples.
        dims: along which axis of each input they are.
        out_dims: and of each output.
    """

    of_one: TwoPasses
    program: ClosedJaxpr
    axis: AxisData
    dims: Dims
    out_dims: Dims

    def forward(self, primals: Sequence[Value], perturbed: Sequence[bool]) -> tuple[list[Value], PyTree]:
        def of_one(*xs: Value) -> tuple[list[Value], PyTreeDef]:
            outs, res = self.of_one.forward(xs, perturbed)
            leaves, tree = jax.tree.flatten(res)
            return [*outs, *leaves], tree

        with self._among():
            program, tree = trace_with(of_one, in_avals(self.program), "attached")
        found, found_dims = self._mapped(program, primals, self.dims)
        n = len(self.out_dims)
        outs = [self._moved(y, d, to) for y, d, to in zip(found, found_dims, self.out_dims, strict=False)]
        return outs, _Residuals(found[n:], tree, found_dims[n:])

    def moving(self, perturbed: Sequence[bool]) -> list[bool]:
        with self._among():
            return self.of_one.moving(perturbed)

    def backward(self, res: _Residuals, cts: Sequence[Value | None]) -> list[Value | None]:
        """Give what all examples share of the cotangents to the first one, and add up those of shared inputs."""
        there = [(c, d) for c, d in zip(cts, self.out_dims, strict=True) if c is not None]
        arrays = [self._of_first(c) if d is None else c for c, d in there]
        n = len(res.leaves)

        def of_one(*xs: Value) -> tuple[list[Value], list[bool]]:
            given = iter(xs[n:])
            leaves = jax.tree.unflatten(res.tree, xs[:n])
            back = self.of_one.backward(leaves, [None if c is None else next(given) for c in cts])
            return [c for c in back if c is not None], [c is not None for c in back]

        values, dims = [*res.leaves, *arrays], (*res.dims, *(0 if d is None else d for _, d in there))
        types = [core.mapped_aval(self.axis.size, d, core.typeof(x)) for x, d in zip(values, dims, strict=True)]
        with self._among():
            program, exists = trace_with(of_one, types, "attached")
        found = zip(*self._mapped(program, values, dims), strict=True)
        to_inputs = lambda d: self._summed(*next(found)) if d is None else self._moved(*next(found), d)
        return [to_inputs(d) if e else None for e, d in zip(exists, self.dims, strict=True)]

    def _among(self) -> AbstractContextManager[None]:
        """Enter the context in which the name of the axis is known."""
        return among([(self.axis.name, self.axis.size)])

    def _mapped(self, program: Program, values: Sequence[Value], dims: Sequence[Any]) -> tuple[list[Value], Dims]:
        of_consts = (None,) * len(program.consts)
        mapped, out_dims = batching.batch_jaxpr2(program.closed, self.axis, (*of_consts, *dims))
        return as_function(mapped)(*program.consts, *values), tuple(out_dims)

    def _moved(self, x: Value, dim: Any, to: Any) -> Value:
        if to is None:
            return x if dim is None else jax.lax.index_in_dim(x, 0, dim, keepdims=False)
        return batching.matchaxis(self.axis, dim, to, x)

    def _of_first(self, ct: Value) -> Value:
        return jnp.concatenate([ct[None], jnp.zeros((self.axis.size - 1, *ct.shape), ct.dtype)])

    def _summed(self, ct: Value, dim: Any) -> Value:
        return ct * self.axis.size if dim is None else jnp.sum(ct, dim)


def _batched(
    axis: AxisData, args: Sequence[Value], dims: Sequence[Any], *, jaxpr: ClosedJaxpr, bwd: TwoPasses
) -> tuple[list[Value], Dims]:
    mapped, out_dims = batching.batch_jaxpr2(jaxpr, axis, tuple(dims))
    passes = _Mapped(bwd, jaxpr, axis, tuple(dims), tuple(out_dims))
    return attached_p.bind(*args, jaxpr=mapped, bwd=passes), passes.out_dims


# --- checked ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Checked:
    """The two passes of a program whose checks `checkify` has made inputs and outputs, before its own.

    Attributes:
        unchecked: those without the checks.
        program: the program with them.
        ins: how many more inputs it has.
        outs: and outputs.
    """

    unchecked: TwoPasses
    program: ClosedJaxpr
    ins: int
    outs: int

    def forward(self, primals: Sequence[Value], perturbed: Sequence[bool]) -> tuple[list[Value], PyTree]:
        forward = checkify.checkify(lambda *xs: self.unchecked.forward(xs, perturbed[self.ins :]))
        _, (outs, res) = forward(*primals[self.ins :])  # the checks in it are those that the program makes
        return [*as_function(self.program)(*primals)[: self.outs], *outs], res

    def moving(self, perturbed: Sequence[bool]) -> list[bool]:
        return [False] * self.outs + self.unchecked.moving(perturbed[self.ins :])

    def backward(self, res: PyTree, cts: Sequence[Value | None]) -> list[Value | None]:
        return [None] * self.ins + self.unchecked.backward(res, cts[self.outs :])


def _checkified(*given: Any, jaxpr: ClosedJaxpr, bwd: TwoPasses) -> tuple[PyTree, Sequence[Value]]:
    """Check the program (JAX 0.12 gives a context before the error), which keeps its own derivative."""
    i = next(i for i, x in enumerate(given) if isinstance(x, checkify.Error))
    error, enabled_errors, *args = given[i:]
    errors, tree = jax.tree.flatten(error)
    operands = [*errors, *args]
    types = map(core.typeof, operands)
    out_tree: Any
    program, out_tree, _ = checkify.jaxpr_to_checkify_jaxpr(*given[:i], jaxpr, enabled_errors, tree, *types)
    passes = _Checked(bwd, program, len(errors), out_tree.num_leaves - len(out_avals(jaxpr)))
    return jax.tree.unflatten(out_tree, attached_p.bind(*operands, jaxpr=program, bwd=passes))


checkify.error_checks[attached_p] = _checkified
computed_by(attached_p, _run)
attached_p.def_effectful_abstract_eval(lambda *avals, jaxpr, bwd: (out_avals(jaxpr), jaxpr.effects))
batching.fancy_primitive_batchers[attached_p] = _batched
primitive_jvps[attached_p] = _jvp
