"""The function that `vjp` returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from ..rules.options import Options
from .accumulators import accumulated, check_accumulator, handed_out
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
        back, observed = self.flat(self._checked(ct), edits)
        out = [handed_out(c, t) for c, t in zip(back, self.program.in_types, strict=True)]
        return jax.tree.unflatten(self.program.in_tree, out), observed

    def with_refs(self, *accumulators: Any) -> Callable[[Any], tuple[Any, ...]]:
        """Return the function of a cotangent that adds the cotangents of the primals into references.

        Args:
            accumulators: a tree like the primals; for each leaf a mutable reference, to add the cotangent to;
                `jax.ad.DontWant()`; or anything else, to have the cotangent returned. A primal that is a reference
                itself needs one of the former two.

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

    def _checked(self, ct: Any) -> list[Any]:
        """Flatten a cotangent of the output, and check that it is one."""
        program = self.program
        leaves, tree = jax.tree.flatten(ct)
        if tree != program.out_tree:
            raise ValueError(
                f"The cotangent must have the structure of the output, {program.out_tree}, and has {tree}."
            )
        return [checked_ct(c, t) for c, t in zip(leaves, program.out_types, strict=True)]

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


def _add_into(pullback: Pullback, accumulators: Sequence[Any], ct: Any) -> tuple[Any, ...]:
    """Go backward, and add the cotangents of the primals into these references."""
    back, _ = pullback.flat(pullback._checked(ct))
    out = [accumulated(a, c, t) for a, c, t in zip(accumulators, back, pullback.program.in_types, strict=True)]
    return jax.tree.unflatten(pullback.program.in_tree, out)


jax.tree_util.register_pytree_node(
    Pullback, lambda p: (p.saved, p.program), lambda program, saved: Pullback(saved, program)
)
