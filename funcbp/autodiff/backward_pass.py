"""The reverse walk: through what was recorded, from the last step to the first.

`pull_back` goes through the steps in reverse, hands each one's rule the cotangent of its output, and adds up what comes
out. For a layered network that is the textbook's recursion

    delta_l = (delta_{l+1} W'_{l+1}) * f'(net_l),

and for any other program it is the same sum over the program's graph. A `Walk` is one such way back: it edits the
cotangents of named values, and shows what it meets to whoever watches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from .. import jaxpr as jx
from ..cotangents import Cotangents, Factored, Linear, Zero, dense
from ..remat.plan import records_inside
from .recording import Record, Step

if TYPE_CHECKING:
    from .transformations import Backward

__all__ = ["Walk", "check_names", "listed", "names_in", "pull_back", "step_back"]


def pull_back(walk: Walk, record: Record, kept: Sequence[Any], ct_out: Sequence[Any]) -> list[Any]:
    """Cotangents of the record's inputs, given those of its outputs: the record, last step first."""
    cts = Cotangents()
    cts.add(record.outputs, ct_out)
    for step in reversed(record.steps):
        ct = cts.take(step.outputs)
        if walk.sees_all or any(c is not Zero for c in ct):
            cts.add(step.inputs, step_back(walk, step, kept, ct))
    return cts.read(record.inputs)


def step_back(walk: Walk, step: Step, kept: Sequence[Any], ct: list[Any]) -> Sequence[Any]:
    """One step of the walk: the cotangents of a step's primals, by its rule."""
    rule, (res, noted) = step.rule, step.residuals(kept)
    try:
        with jx.written_at(step.source, rule.name):
            ct = walk.meet(step, noted, ct)
            if walk.sees_all and all(c is Zero for c in ct) and (rule.kind != "control" or rule.bwd is None):
                return [Zero] * len(step.inputs)  # it was only looked at
            if rule.kind == "control":
                out = rule.bwd(walk.inside(step), res, ct, step.perturbed, **step.params)  # type: ignore[misc]
            elif rule.kind == "linear" and type(ct[0]) is Factored:
                linear = Linear(rule.bwd, res, step.perturbed, step.params, rule.isometric)  # type: ignore[arg-type]
                out = [ct[0].through(linear, step.types[0]), *(None for _ in step.inputs[1:])]
            else:
                ct = [dense(c) for c in ct]
                bwd = (walk.walker.factored and rule.factors) or rule.bwd
                out = bwd(res, ct if step.several else ct[0], step.perturbed, **step.params)  # type: ignore[misc]
        if len(out) != len(step.inputs):
            raise TypeError(f"it returned {len(out)} cotangents for {len(step.inputs)} primals")
        for i, (slot, c, x) in enumerate(zip(step.inputs, out, step.types, strict=True)):
            if slot is not None and c is not None and c is not Zero:
                got = c if type(c) is Factored else jx.type_of(c)
                if got.shape != x.shape or (got.dtype != x.dtype and x.dtype != bool):
                    got, wanted = (f"{t.dtype}{list(t.shape)}" for t in (got, x))
                    raise TypeError(f"its cotangent for primal {i} is {got}, and the primal is {wanted}")
    except Exception as error:
        error.add_note(f"This came from the rule {rule.name} for {step.where()}.")
        raise
    return out


class Walk:
    """One walk: the rules it goes by, and what it has met on its way.

    Attributes:
        walker: the rules, as a value.
        named: the cotangents of the named values passed so far, by name; a loop's are stacked over its steps. None in a
            rehearsal, which finds out what the backward pass reads and edits nothing.
        watched: what the walker's watch made of the steps, by the steps' numbers, from the outermost record in.
    """

    def __init__(self, walker: Backward, named: Mapping[str, Any] | None = None):
        self.walker = walker
        self.named = None if named is None else dict(named)
        self.watched: dict[tuple[int, ...], Any] = {}
        self._new: dict[str, Any] = {}
        self._place = -1

    def meet(self, step: Step, noted: Any, ct: list[Any]) -> list[Any]:
        """Note a step's cotangents where they are asked for, and edit them."""
        walker = self.walker
        if walker.edits and step.primitive == "name" and self.named is not None and ct[0] is not Zero:
            name = step.params["name"]
            if name in walker.edits:
                ct = [edited(walker.edits[name], name, dense(ct[0]), self.named, step.types[0])]
            self.named[name] = self._new[name] = ct[0] = dense(ct[0])
        if walker.watch is not None:
            seen = walker.watch.see(step, noted, ct := [dense(c) for c in ct])
            if seen is not None:
                self.watched[step.number,] = seen
        return ct

    @property
    def sees_all(self) -> bool:
        """Whether the watch also sees the steps that no cotangent comes back to."""
        return self.walker.watch is not None and self.walker.watch.everything

    def inside(self, step: Step) -> Walk:
        """The walk, at a step that has programs of its own inside."""
        self._place = step.number
        return self

    @property
    def given(self) -> tuple[tuple[str, Any], ...] | None:
        """The names and types of what the walk brings to a program inside; nothing where no edit could read it."""
        if not self.walker.edits or self.named is None:
            return None
        return tuple((name, jx.type_of(ct)) for name, ct in self.named.items())

    @property
    def brought(self) -> list[Any]:
        """The cotangents `given` speaks of."""
        return [] if self.given is None else list((self.named or {}).values())

    @property
    def found(self) -> tuple[dict[str, Any], dict[tuple[int, ...], Any]]:
        """What this walk adds to that of the program around it."""
        return self._new, self.watched

    def take_in(self, found: tuple[dict[str, Any], dict[tuple[int, ...], Any]]) -> None:
        """Add what was found inside the step at hand."""
        new, watched = found
        if self.named is not None:
            self.named |= new
        self._new |= new
        self.watched |= {(self._place, *where): seen for where, seen in watched.items()}


def edited(
    edit: Callable[[Any, Mapping[str, Any]], Any], name: str, ct: Any, named: Mapping[str, Any], aval: Any
) -> Any:
    """The cotangent that the user's function puts in the place of a named value's."""
    out = jnp.asarray(edit(ct, Passed(named)))
    if out.shape != aval.shape or out.dtype != aval.dtype:
        got, wanted = (f"{t.dtype}{list(t.shape)}" for t in (out, aval))
        also = f" The names passed by then are {listed(named)}." if named else ""
        raise TypeError(f"The edit of {name!r} returned {got}, and the named value is {wanted}.{also}")
    return out


class Passed(dict[str, Any]):
    """The cotangents of the names that the walk has passed."""

    def __missing__(self, name: str) -> Any:
        raise KeyError(f"The walk has not passed the name {name!r}; by then it had passed {listed(self)}.")


def names_in(record: Record) -> dict[str, None]:
    """The names of the values in a record, in the order they were met, those inside its loops and branches included."""
    names: dict[str, None] = {}
    for step in record.steps:
        if step.primitive == "name":
            names[step.params["name"]] = None
        for inside in records_inside(step):
            names |= names_in(inside)
    return names


def check_names(wanted: Collection[str], record: Record, what: str) -> None:
    """Refuse names that no value between the perturbed inputs and the outputs has."""
    there = names_in(record)
    unknown = [name for name in wanted if name not in there]
    if unknown:
        raise ValueError(
            f"{what} the {'name' if len(unknown) == 1 else 'names'} {listed(unknown)}, and the names there are: "
            f"{listed(there)}. A name counts where a differentiated value goes through it on its way to the output."
        )


def listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
