"""The function that `vjp` returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from .. import jaxpr as jx
from ..cotangents import float0_zeros, instantiate, is_differentiable
from ..rules.options import Options
from .arguments import checked_ct
from .backward_pass import BackwardState, backward_pass
from .tape import Tape

__all__ = ["Program", "Pullback"]


class Program(NamedTuple):
    """What a pullback is beside its numbers: a value, which jit caches compare.

    Attributes:
        options: how to go backward.
        tape: what was recorded.
        in_tree, in_types: the structure and the types of the primals.
        out_tree, out_types: those of the output.
    """

    options: Options
    tape: Tape
    in_tree: Any
    in_types: tuple[Any, ...]
    out_tree: Any
    out_types: tuple[Any, ...]


class Pullback:
    """The function `vjp` returns: from a cotangent of the output to the cotangents of the primals.

    It is a pytree of the arrays that the forward pass saved, so it can be returned from one jitted function and called
    in another.
    """

    def __init__(self, saved: Sequence[Any], program: Program):
        self.saved, self.program = tuple(saved), program

    def __call__(self, ct: Any) -> tuple[Any, ...]:
        """Return the cotangents of the primals, as a tuple.

        Args:
            ct: a pytree like the function's output, with its shapes and dtypes (float0 for integer outputs).
        """
        return self.observed(ct)[0]

    def observed(self, ct: Any, edits: bool = True) -> tuple[tuple[Any, ...], dict[tuple[int, ...], Any]]:
        """Return the cotangents of the primals, and what the options' observer made of the entries, by their numbers.

        Args:
            ct: as above.
            edits: whether the options' edits are made; without them, the same tape gives the true cotangents.
        """
        program = self.program
        leaves, tree = jax.tree.flatten(ct)
        if tree != program.out_tree:
            raise ValueError(
                f"The cotangent must have the structure of the output, {program.out_tree}, and has {tree}."
            )
        cts = [checked_ct(c, t) for c, t in zip(leaves, program.out_types, strict=True)]
        back, observed = self.flat(cts, edits)
        out = [
            jx.like(instantiate(c, t), t) if is_differentiable(t) else float0_zeros(t)
            for c, t in zip(back, program.in_types, strict=True)
        ]
        return jax.tree.unflatten(program.in_tree, out), observed

    def flat(self, cts: Sequence[Any], edits: bool = True) -> tuple[list[Any], dict[tuple[int, ...], Any]]:
        """Do the same for flat lists, with cotangents as the pass leaves them: arrays, `Zero`, or `Factored`."""
        state = BackwardState(self.program.options, {} if edits else None)
        return backward_pass(state, self.program.tape, self.saved, cts), state.observed

    @property
    def tape(self) -> Tape:
        """What was recorded, without its numbers."""
        return self.program.tape

    def __repr__(self) -> str:
        saved = sum(x.size * x.dtype.itemsize for x in self.saved)
        types = lambda ts: ", ".join(f"{t.dtype}{list(t.shape)}" for t in ts)
        return (
            f"Pullback({types(self.program.out_types)} -> {types(self.program.in_types)}; "
            f"{len(self.tape.entries)} entries, {saved:,} bytes saved)"
        )


jax.tree_util.register_pytree_node(
    Pullback, lambda p: (p.saved, p.program), lambda program, saved: Pullback(saved, program)
)
