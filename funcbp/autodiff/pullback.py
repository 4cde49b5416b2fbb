"""The function that `vjp` returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.tree_util import PyTreeDef

from .. import jaxpr as jx
from ..cotangents import Cotangent
from ..jaxpr.types import Aval, PyTree, Value
from ..rules.options import Options
from .accumulators import accumulated, check_accumulator, handed_out
from .arguments import checked_ct
from .backward_pass import BackwardState, backward_pass
from .tape import Tape

__all__ = ["NotNeeded", "NotSaveable", "Program", "Pullback"]


class Program(NamedTuple):
    """What a pullback is beside its numbers: a value, which jit caches compare.

    Attributes:
        options: how to go backward.
        tape: what was recorded.
        in_tree, in_types: the structure and the types of the primals.
        out_tree, out_types: those of the output.
        of_primals: for each saved array, which leaf of the primals it is; None for one that is none of them.
    """

    options: Options
    tape: Tape
    in_tree: PyTreeDef
    in_types: tuple[Aval, ...]
    out_tree: PyTreeDef
    out_types: tuple[Aval, ...]
    of_primals: tuple[int | None, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NotNeeded:
    """What stands in `Pullback.args_res` for a primal that the pullback does not hold."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NotSaveable:
    """What stands in `Pullback.args_res` for a primal that the pullback needs and was not to hold."""


class Pullback:
    """The function `vjp` returns: from a cotangent of the output to the cotangents of the primals.

    It is a pytree of the arrays that the forward pass saved, so it can be returned from one jitted function and called
    in another. What it offers beside being called is what JAX's offers.

    Attributes:
        args_res: the primals that are among what was saved, a list with as many trees as there are primals; in the
            place of the others, `NotNeeded()`. It can be assigned, to put back what was not `saveable_args`.
        opaque_residuals: what else was saved.
        structured_residuals: none; JAX has here what operations written as classes save under names of their own.
        with_logs: the same function, which returns the pair of the cotangents and what backward rules made by
            `jax.custom_vjp.defvjp_with_logs` log, a dict.
        out_nzs: which outputs have a derivative, by their tree.
    """

    def __init__(
        self, args_res: list[Value], opaque_residuals: Sequence[Value], program: Program, want_logs: bool = False
    ):
        self.args_res, self.opaque_residuals = args_res, list(opaque_residuals)
        self.program, self.want_logs = program, want_logs

    @classmethod
    def of(
        cls, saved: Sequence[Value], primals: Sequence[Value], saveable: Sequence[bool], program: Program
    ) -> Pullback:
        """Make it of what was saved, and of the leaves of the primals, to know them among that."""
        leaf = {id(x): i for i, x in enumerate(primals)}
        of_primals = tuple(leaf.get(id(x)) for x in saved)
        held = [
            NotNeeded() if i not in of_primals else x if keep else NotSaveable()
            for i, (x, keep) in enumerate(zip(primals, saveable, strict=True))
        ]
        rest = [x for x, i in zip(saved, of_primals, strict=True) if i is None]
        return cls(list(mirrored(program.in_tree, held)), rest, program._replace(of_primals=of_primals))

    @property
    def saved(self) -> list[Value]:
        """What the forward pass saved, in the order of the tape's indices."""
        primals, rest = jax.tree.leaves(self.args_res, is_leaf=_is_absent), iter(self.opaque_residuals)
        saved = [next(rest) if i is None else jx.as_array(primals[i]) for i in self.program.of_primals]
        if any(map(_is_absent, saved)):
            raise ValueError(
                "The pullback lacks primals that were not saveable_args. Put them back, with a list of the trees of "
                f"all primals: pullback.args_res = [...]. It has {self.args_res}."
            )
        return saved

    @property
    def structured_residuals(self) -> list[Value]:
        return []

    @property
    def in_tree(self) -> PyTreeDef:
        return self.program.in_tree

    @property
    def out_tree(self) -> PyTreeDef:
        return self.program.out_tree

    @property
    def out_nzs(self) -> Any:
        return mirrored(self.out_tree, [i is not None for i in self.tape.outputs])

    @property
    def with_logs(self) -> Pullback:
        return self.replace(want_logs=True)

    def replace(self, **changes: Any) -> Pullback:
        """Return the same but for these: `args_res`, `opaque_residuals`, `want_logs`."""
        now = dict(
            args_res=self.args_res,
            opaque_residuals=self.opaque_residuals,
            program=self.program,
            want_logs=self.want_logs,
        )
        return type(self)(**{**now, **changes})

    def __call__(self, ct: PyTree, *more: PyTree) -> PyTree:
        """Return the cotangents of the primals, as a tuple.

        Args:
            ct: a pytree like the function's output, with its shapes and dtypes (float0 for integer outputs).
        """
        if more:
            raise TypeError(
                f"A pullback takes one cotangent, structured like the output, and was called with {1 + len(more)} "
                "arguments. Of a function that returns a tuple, pass the cotangents as a tuple."
            )
        back, state = self._back(ct)
        return (back, state.logs) if self.want_logs else back

    def observed(self, ct: PyTree, edits: bool = True) -> tuple[tuple[PyTree, ...], dict[tuple[int, ...], PyTree]]:
        """Return the cotangents of the primals, and what the options' observer made of the entries, by their numbers.

        Args:
            ct: as above.
            edits: whether the options' edits are made; without them, the same tape gives the true cotangents.
        """
        back, state = self._back(ct, edits)
        return back, state.observed

    def with_refs(self, *accumulators: PyTree) -> Callable[[PyTree], tuple[PyTree, ...]]:
        """Return the function of a cotangent that adds the cotangents of the primals into references.

        Args:
            accumulators: a tree like the primals; for each leaf a mutable reference, to add the cotangent to, or a
                `jax.experimental.hijax.GradAccum`; `jax.ad.DontWant()`; or anything else, to have the cotangent
                returned. A primal that is a reference itself needs one of the former three.

        Returns:
            A function that returns a tuple like the pullback, with `jax.ad.GradRef()` in the place of what is in a
            reference, and `jax.ad.DidntWant()` in the place of what nobody wants.

        Example:
            >>> import jax, jax.numpy as jnp, funcbp as bp
            >>> total = jax.new_ref(jnp.zeros(2))
            >>> for x in (jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])):
            ...     y, pullback = bp.vjp(lambda x: jnp.sum(x**2), x)
            ...     _ = pullback.with_refs(total)(jnp.ones_like(y))
            >>> total[...]
            Array([ 8., 12.], dtype=float32)
        """
        leaves, tree = jax.tree.flatten(accumulators)
        if tree != self.program.in_tree:
            raise ValueError(f"with_refs takes a tree like the primals, {self.program.in_tree}, and was given {tree}.")
        for accumulator, primal in zip(leaves, self.program.in_types, strict=True):
            check_accumulator(accumulator, primal)
        return jax.tree_util.Partial(_add_into, self, leaves)

    def _back(
        self, ct: PyTree, edits: bool = True, accumulators: Sequence[PyTree] | None = None
    ) -> tuple[tuple[PyTree, ...], BackwardState]:
        program = self.program
        leaves, tree = jax.tree.flatten(ct)
        if tree != program.out_tree:
            raise ValueError(
                f"The cotangent must have the structure of the output, {program.out_tree}, and has {tree}."
            )
        cts = [checked_ct(c, t) for c, t in zip(leaves, program.out_types, strict=True)]
        back, state = self._pass(cts, edits)
        if accumulators is None:
            out = [handed_out(c, t) for c, t in zip(back, program.in_types, strict=True)]
        else:
            out = [accumulated(a, c, t) for a, c, t in zip(accumulators, back, program.in_types, strict=True)]
        return jax.tree.unflatten(program.in_tree, out), state

    def flat(
        self, cts: Sequence[Cotangent], edits: bool = True
    ) -> tuple[list[Cotangent], dict[tuple[int, ...], PyTree]]:
        """Do the same for flat lists, with cotangents as the pass leaves them: arrays, `Zero`, or `Factored`."""
        back, state = self._pass(cts, edits)
        return back, state.observed

    def _pass(self, cts: Sequence[Cotangent], edits: bool) -> tuple[list[Cotangent], BackwardState]:
        state = BackwardState(self.program.options, {} if edits else None)
        return backward_pass(state, self.program.tape, self.saved, cts), state

    @property
    def tape(self) -> Tape:
        """What was recorded, without its numbers."""
        return self.program.tape

    def __repr__(self) -> str:
        arrays = jax.tree.leaves((self.args_res, self.opaque_residuals))
        saved = sum(jx.bytes_of_type(jx.type_of(x)) for x in arrays)
        types = lambda ts: ", ".join(map(jx.shown_type, ts))
        return (
            f"Pullback({types(self.program.out_types)} -> {types(self.program.in_types)}; "
            f"{len(self.tape.entries)} entries, {saved:,} bytes saved)"
        )


def mirrored(tree: PyTree, leaves: Sequence[Value]) -> PyTree:
    """Build a tree like this one of leaves that its nodes may not take: what is no list or dict is a tuple."""
    rest = iter(leaves)

    def build(tree: PyTree) -> PyTree:
        if tree.node_data() is None:
            return next(rest)
        kind, keys = tree.node_data()
        children = [build(child) for child in tree.children()]
        if kind is dict:
            return dict(zip(keys, children, strict=True))
        return None if kind is type(None) else children if kind is list else tuple(children)

    return build(tree)


def _is_absent(x: object) -> bool:
    return isinstance(x, (NotNeeded, NotSaveable))


def _add_into(pullback: Pullback, accumulators: Sequence[PyTree], ct: PyTree) -> PyTree:
    """Go backward, and add the cotangents of the primals into these references."""
    back, state = pullback._back(ct, accumulators=accumulators)
    return (back, state.logs) if pullback.want_logs else back


jax.tree_util.register_pytree_node(
    Pullback,
    lambda p: ((p.args_res, p.opaque_residuals), (p.program, p.want_logs)),
    lambda static, arrays: Pullback(*arrays, *static),
)
