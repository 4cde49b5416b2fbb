"""The backward pass: through the tape, from the last entry to the first.

`backward_pass` goes through the entries in reverse, hands each one's rule the cotangent of its output, and adds up what
comes out. For a layered network that is the textbook's recursion

    delta_l = (delta_{l+1} W'_{l+1}) * f'(net_l),

and for any other program it is the same sum over the program's graph. A `BackwardState` is what one such pass has
found: it edits the cotangents of named values, and shows the entries to an observer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .. import jaxpr as jx
from ..cotangents import Cotangent, Cotangents, Factored, Zero, materialize
from ..jaxpr.types import Aval, PyTree, Value
from ..remat.plan import OuterNames
from ..rules.kinds import Rule
from ..rules.options import Edit, Options
from .arguments import is_array
from .tape import Entry, Tape

__all__ = ["BackwardState", "apply_rule", "backward_pass", "check_names", "listed", "names_in"]


def backward_pass(
    state: BackwardState, tape: Tape, saved: Sequence[Value], ct_out: Sequence[Cotangent]
) -> list[Cotangent]:
    """Go from the cotangents of the tape's outputs to those of its inputs: through the tape, last entry first."""
    cts = Cotangents()
    cts.add(tape.outputs, ct_out)
    for entry in reversed(tape.entries):
        ct = cts.take(entry.outputs)
        if state.sees_all or any(c is not Zero for c in ct):
            cts.add(entry.inputs, apply_rule(state, entry, saved, ct))
    return cts.read(tape.inputs)


def apply_rule(state: BackwardState, entry: Entry, saved: Sequence[Value], ct: list[Cotangent]) -> Sequence[Cotangent]:
    """Return the cotangents of an entry's primals, by its rule."""
    rule, (res, noted) = entry.rule, entry.residuals(saved)
    try:
        with jx.written_at(entry.source, rule.name), jx.width_of([*entry.types, *ct]):
            ct = state.observe_and_edit(entry, noted, ct)
            if all(c is Zero for c in ct) and not rule.takes_zeros:
                return [Zero] * len(entry.inputs)  # it was only looked at
            out = rule.backward(state, entry, res, ct)
        if not isinstance(out, Sequence):
            wanted = f"it returns a tuple with a cotangent for each of its {len(entry.inputs)} primals"
            raise TypeError(f"The rule {rule.name} returned a {type(out).__name__}: {wanted}.")
        if len(out) != len(entry.inputs):
            raise TypeError(f"The rule {rule.name} returned {len(out)} cotangents for {len(entry.inputs)} primals.")
        return [
            _checked(rule, i, c, x) if index is not None else c
            for i, (index, c, x) in enumerate(zip(entry.inputs, out, entry.types, strict=True))
        ]
    except Exception as error:
        error.add_note(f"This came from the rule {rule.name} for {entry.where()}.")
        if isinstance(error, TypeError) and "keyword argument" in str(error):
            error.add_note(f"It is called as bwd(res, ct, perturbed, **params), with params {listed(entry.params)}.")
        raise


def _checked(rule: Rule, i: int, ct: Any, x: Any) -> Any:
    """Check that a rule's cotangent has the type of its primal, x; what is the same on all devices may stand for it."""
    if ct is None or ct is Zero:
        return ct
    got = ct if type(ct) is Factored else jx.type_of(ct)
    if got == x and jx.cotangent_type(x) is x:  # nearly always
        return ct
    if not rule.may_return(got, x):
        raise TypeError(
            f"The rule {rule.name} is wrong: its cotangent for primal {i} is {jx.shown_type(got)}, and the primal is "
            f"{jx.shown_type(x)}."
        )
    if type(ct) is Factored or jx.is_high(got):
        return ct
    if more := jx.varying(got) - jx.varying(x):
        raise TypeError(
            f"The rule {rule.name} is wrong: its cotangent for primal {i} is another one on each device along "
            f"{listed(sorted(map(str, more)))}, where the primal is the same. What the devices say of it is to be "
            "summed: jax.lax.psum."
        )
    return jx.in_mesh_of(jx.pvary(ct, tuple(jx.varying(x) - jx.varying(got))), x)


Results = tuple[dict[str, jax.Array], dict[tuple[int, ...], PyTree], dict[str, PyTree]]


class BackwardState:
    """The options of one backward pass, and what it has found so far.

    Attributes:
        options: how to go backward.
        named: the cotangents of the named values passed so far, by name; a loop's are stacked over its steps. None in a
            rehearsal, which finds out what the backward pass reads and edits nothing.
        observed: what the observer made of the entries, by their numbers, from the outermost tape in.
        logs: what custom backward rules have logged, by name; a loop's are stacked over its steps.
    """

    def __init__(self, options: Options, named: Mapping[str, jax.Array] | None = None):
        self.options = options
        self.named = None if named is None else dict(named)
        self.observed: dict[tuple[int, ...], PyTree] = {}
        self.logs: dict[str, PyTree] = {}
        self._new: dict[str, jax.Array] = {}
        self._at = -1

    def observe_and_edit(self, entry: Entry, noted: PyTree, ct: list[Cotangent]) -> list[Cotangent]:
        """Note an entry's cotangents where they are asked for, and edit them."""
        edits, observer = self.options.edits, self.options.observer
        if edits and entry.primitive == "name" and self.named is not None and ct[0] is not Zero:
            name = entry.params["name"]
            if name in edits:
                ct = [edited(edits[name], name, materialize(ct[0]), self.named, entry.types[0])]
            self.named[name] = self._new[name] = ct[0] = materialize(ct[0])
        if observer is not None:
            seen = observer.backward(entry, noted, ct := [materialize(c) for c in ct])
            if seen is not None:
                self.observed[entry.number,] = seen
        return ct

    @property
    def sees_all(self) -> bool:
        """Whether the observer also sees the entries that no cotangent comes back to."""
        return self.options.observer is not None and self.options.observer.everything

    def inside(self, entry: Entry) -> BackwardState:
        """Move the state to an entry that has programs of its own inside."""
        self._at = entry.number
        return self

    @property
    def outer_names(self) -> OuterNames:
        """The names and types of the cotangents that a program inside is given; None where no edit could read them."""
        if not self.options.edits or self.named is None:
            return None
        return tuple((name, jx.type_of(ct)) for name, ct in self.named.items())

    @property
    def outer_cotangents(self) -> list[jax.Array]:
        """The cotangents that `outer_names` speaks of."""
        return [] if self.outer_names is None else list((self.named or {}).values())

    def log(self, logs: Mapping[str, PyTree] | None) -> None:
        """Take what a rule logs.

        Raises:
            ValueError: something was logged by one of these names before.
        """
        twice = self.logs.keys() & (logs or {}).keys()
        if twice:
            raise ValueError(f"Two backward rules log by the same name: {listed(twice)}. Names of logs are unique.")
        self.logs |= logs or {}

    @property
    def results(self) -> Results:
        """What this pass hands to that of the program around it: named cotangents, what was observed, and logs."""
        return self._new, self.observed, self.logs

    def merge(self, results: Results) -> None:
        """Add what was found inside the entry at hand."""
        new, observed, logs = results
        self.log(logs)
        if self.named is not None:
            self.named |= new
        self._new |= new
        self.observed |= {(self._at, *where): seen for where, seen in observed.items()}


def edited(edit: Edit, name: str, ct: jax.Array, named: Mapping[str, jax.Array], aval: Aval) -> jax.Array:
    """Replace the cotangent of a named value by what the user's function makes of it."""
    found: Any = edit(ct, Passed(named))
    out = jnp.asarray(found) if is_array(found) else found
    if not is_array(out) or out.shape != aval.shape or out.dtype != aval.dtype:
        wanted = jx.shown_type(aval)
        got = jx.shown_type(jax.typeof(out)) if is_array(out) else repr(out)
        also = f" The names passed by then are {listed(named)}." if named else ""
        raise TypeError(f"The edit of {name!r} returned {got}, and the named value is {wanted}.{also}")
    return out


class Passed(dict[str, Any]):
    """The cotangents of the names that the backward pass has passed."""

    def __missing__(self, name: str) -> jax.Array:
        raise KeyError(f"The backward pass has not passed the name {name!r}; by then it had passed {listed(self)}.")


def names_in(record: Tape) -> dict[str, None]:
    """List the names of the values on a tape in order, those inside its loops and branches included."""
    names: dict[str, None] = {}
    for entry in record.entries:
        if entry.primitive == "name":
            names[entry.params["name"]] = None
        for inside in entry.tapes:
            names |= names_in(inside)
    return names


def check_names(wanted: Collection[str], record: Tape, what: str) -> None:
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
