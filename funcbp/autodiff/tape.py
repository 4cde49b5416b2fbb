"""The tape: what a function did, an entry for each equation that a perturbed value entered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.tree_util import PyTreeDef

from .. import jaxpr as jx
from ..jaxpr.sources import Source
from ..jaxpr.types import Aval, PyTree, Value
from ..remat.plan import Plan
from ..rules.contract import MissingRuleError
from ..rules.kinds import Rule

__all__ = ["Entry", "SavedIndex", "Tape", "TapeWriter"]


class SavedIndex(NamedTuple):
    """A residual: which of the saved arrays it is."""

    at: int


class Entry(NamedTuple):
    """One equation on the tape: its rule, what the rule keeps, and which values go in and come out."""

    primitive: str
    rule: Rule
    params: dict[str, Any]
    perturbed: tuple[bool, ...]
    inputs: tuple[int | None, ...]  # which value each primal is; None where it is not perturbed
    outputs: tuple[int | None, ...]
    types: tuple[Aval, ...]  # of the primals
    res: tuple[
        Any, ...
    ]  # what the rule keeps, and what the observer notes, flat: arrays are `SavedIndex`, the rest is here
    tree: PyTreeDef  # the structure of `res`
    several: bool  # outputs come as a list
    source: Source
    number: int = -1  # which of the tape's entries this is

    def residuals(self, saved: Sequence[Value]) -> tuple[PyTree, PyTree]:
        """Read what the rule saved, and what the observer noted."""
        return self.tree.unflatten([saved[r.at] if type(r) is SavedIndex else r for r in self.res])

    @property
    def inside(self) -> jx.Inside:
        """The programs inside it, and how it runs them."""
        return jx.Inside.of(self.params, self.types)

    @property
    def plans(self) -> list[Plan]:
        """The plans of the programs inside it: one, or one per branch."""
        plans = (p for r in self.res for p in (r if isinstance(r, tuple) else (r,)))
        return [p for p in plans if isinstance(p, Plan)]

    @property
    def tapes(self) -> list[Tape]:
        """The tapes of the programs inside it."""
        return [p.passes.tape for p in self.plans]

    def where(self) -> str:
        line = jx.user_line(self.source)
        return f"`{self.primitive}` at {line}" if line else f"`{self.primitive}`"


class Tape(NamedTuple):
    """What was recorded, without numbers: the entries in the order they ran, and which values go in and come out."""

    entries: tuple[Entry, ...]
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]

    def active(self, outputs: Sequence[bool]) -> set[int]:
        """Tell which values a cotangent of these outputs can come back to."""
        active = {i for i, a in zip(self.outputs, outputs, strict=True) if a and i is not None}
        for entry in reversed(self.entries):
            outs = [o in active for o in entry.outputs]
            if any(outs):
                back = entry.rule.reached(entry, outs)
                active |= {i for i, b in zip(entry.inputs, back, strict=True) if b and i is not None}
        return active

    @property
    def saved_by_several(self) -> set[int]:
        """Which saved arrays are residuals of entries with several outputs.

        Which of these a rule reads may depend on which of the outputs' cotangents are zero.
        """
        several = [e for e in self.entries if sum(o is not None for o in e.outputs) > 1]
        return {r.at for entry in several for r in entry.res if type(r) is SavedIndex}

    def reached(self, outputs: Sequence[bool]) -> list[bool]:
        """Tell which inputs a cotangent of these outputs can come back to."""
        active = self.active(outputs)
        return [i in active for i in self.inputs]


class TapeWriter:
    """A tape being written: its entries so far, and the arrays they save, each once."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.saved: list[Value] = []
        self._indices: dict[int, int] = {}

    def save(self, x: Any) -> Any:
        """Set an array, a value of a type that people define, or a reference, aside for the backward pass, once.

        Anything else stays what it is.
        """
        if not jx.is_value(x):
            return x
        index = self._indices.setdefault(id(x), len(self.saved))
        if index == len(self.saved):
            self.saved.append(x)
        return SavedIndex(index)

    def save_all(self, tree: PyTree) -> tuple[tuple[Any, ...], PyTreeDef]:
        """Set aside the arrays of a pytree, and return its leaves and its structure."""
        leaves, structure = jax.tree.flatten(tree)
        return tuple(map(self.save, leaves)), structure

    def note(self, index: int | None, noted: PyTree) -> None:
        """Set down what an observer noted at the entry that this value came out of, in the place of what it had."""
        for i, entry in enumerate(self.entries):
            if index is not None and index in entry.outputs:
                res, _ = entry.tree.unflatten(entry.res)
                noted = jax.tree.map(self.save, noted)
                leaves, tree = jax.tree.flatten((res, noted), is_leaf=lambda x: type(x) is SavedIndex)
                self.entries[i] = entry._replace(res=tuple(leaves), tree=tree)

    def finish(
        self, inputs: Sequence[int | None], outputs: Sequence[int | None], everything: bool
    ) -> tuple[Tape, list[Value]]:
        """Return the tape of the entries through which an input reaches an output (or of all), and what those save.

        Raises:
            MissingRuleError: an entry between an input and an output has no backward rule.
        """
        reached = {i for i in outputs if i is not None}
        entries: list[Entry] = []
        for entry in reversed(self.entries):
            reaches = any(o in reached for o in entry.outputs)
            if reaches:
                if entry.rule.bwd is None:
                    where = entry.where()
                    raise MissingRuleError(entry.rule.message(where), located=" at " in where)  # type: ignore[misc]
                reached |= {i for i in entry.inputs if i is not None}
            if reaches or everything:
                entries.append(entry)
        new: dict[int, int] = {}
        renumber = lambda r: SavedIndex(new.setdefault(r.at, len(new))) if type(r) is SavedIndex else r
        entries = [e._replace(res=tuple(map(renumber, e.res)), number=i) for i, e in enumerate(reversed(entries))]
        return Tape(tuple(entries), tuple(inputs), tuple(outputs)), [self.saved[i] for i in new]
