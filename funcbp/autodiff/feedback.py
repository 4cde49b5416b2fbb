"""Feedback weights: the value b in the place of w, which deltas go through on their way back.

`feedback(w, b)` gives w a feedback weight. Wherever w is one factor of a product, the cotangent of the other factor is
made with the feedback weight: for a layer net = x W that is x̄ = δ B' instead of x̄ = δ W'. The cotangent of w itself is
what it is without the mark: W̄ = x' δ. That is feedback alignment, and, with other choices of b, everything that it has
led to.

The feedback weight follows the value through equations that move numbers, convert, mask or scale them: these are done
to it as well. It ends where the value is used in any other way. What is looked up by many indices may be activations,
as of an embedding, or the weight in another order: of a mark that is `Lost` like this nothing is guessed, and a product
in which it would count is refused. Where two values with feedback weights meet in a
product, both are weights, and the gradient of each is made with the other's own value. Into loops, branches and regions
it goes as one more operand (`rules.kinds.ControlRule`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .. import jaxpr as jx
from ..cotangents import Moves, is_differentiable
from ..jaxpr.types import Value
from ..rules.contract import EscapedMarkError
from ..rules.kinds import Operation, Recorder
from ..rules.traits import traits_of

__all__ = ["Lost", "feedback_through", "read_backward", "refuse_escape", "refuse_lost"]


class Lost(NamedTuple):
    """What a value has in the place of a feedback weight that could not be followed. `where`: by which operation."""

    where: str


def read_backward(operation: Operation) -> Sequence[Value]:
    """Return what an operation's rule reads of its operands: of a factor that has a feedback weight, that weight."""
    values, weights = operation.values, operation.feedback
    bilinear = traits_of(operation.primitive).linear == (0, 1)
    if weights is None or not bilinear or all(w is not None for w in weights[:2]):
        return values
    return [v if w is None else w for v, w in zip(values, weights, strict=True)]


def refuse_lost(operation: Operation, lost: Sequence[Lost | None]) -> None:
    """Refuse a product of a perturbed value and one whose feedback weight was lost: its cotangent would be a guess."""
    if operation.feedback is None or traits_of(operation.primitive).linear != (0, 1):
        return
    weights = operation.feedback
    for i, j in ((0, 1), (1, 0)):
        where = lost[i]
        if where is not None and lost[j] is None and operation.perturbed[j] and weights[j] is None:
            raise ValueError(
                f"The feedback weight of an operand of `{operation.primitive}` at "
                f"{jx.user_line(jx.current_source())} was lost in {where.where}: what comes out there may be a weight "
                "or activations. Mark it after that, feedback(f(w), f(b)), or leave w unmarked (None in its place)."
            )


def refuse_escape(out: object) -> None:
    """Refuse a marked value that comes out of a branch, loop or region: outside it has no feedback weight any more."""
    weight = getattr(out, "feedback", None)
    if weight is not None and type(weight) is not Lost:
        raise EscapedMarkError


def feedback_through(trace: Recorder, operation: Operation, outs: Value, lost: Sequence[Lost | None]) -> Value:
    """Give the outputs of an operation feedback weights where it only moved or scaled what has one."""
    if operation.feedback is None:
        return outs
    if all(w is None for w in operation.feedback):
        follows = any(lost) and _follows(operation, [x is not None for x in lost], outs)
        return trace.with_feedback(outs, next(filter(None, lost))) if follows else outs
    if _loses(operation):
        here = Lost(f"`{operation.primitive}` at {jx.user_line(jx.current_source())}")
        if operation.primitive.multiple_results:
            return [trace.with_feedback(o, here) if is_differentiable(jx.type_of(o)) else o for o in outs]
        return trace.with_feedback(outs, here)
    several = operation.primitive.multiple_results
    shapes = [jx.type_of(o).shape for o in (outs if several else [outs])]
    with trace.below():
        weights = _weights_of(operation, operation.feedback, shapes)
    if weights is None:
        return outs
    if not several:
        return trace.with_feedback(outs, weights)
    return [trace.with_feedback(o, w) for o, w in zip(outs, weights, strict=True)]


def _follows(operation: Operation, here: Sequence[bool], outs: Value) -> bool:
    """Whether a mark on these operands would go through a plain operation of one output."""
    return not operation.primitive.multiple_results and _passes(operation, here, [jx.type_of(outs).shape])


def _passes(operation: Operation, here: Sequence[bool], shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether an operation only moves or scales these operands."""
    traits = traits_of(operation.primitive)
    if any(p and not h for p, h in zip(operation.perturbed, here, strict=True)):
        return False
    if sum(here) == 1 and here.index(True) in traits.scales:
        return shapes[0] == operation.values[here.index(True)].shape
    return traits.writes or bool(traits.moves and any(here[i] for i in traits.linear or range(len(here))))


def _loses(operation: Operation) -> bool:
    """Whether it looks up what has a feedback weight by many indices, sorts it, writes perturbed values over some of
    it, or is a loop or branch that nobody goes into.
    """
    assert operation.feedback is not None
    traits, marked = traits_of(operation.primitive), operation.feedback[0] is not None
    if jx.Inside.of(operation.params, tuple(map(jx.type_of, operation.values))).programs:
        return not traits.writes and not traits.scales
    if traits.sorts:
        return True
    if not marked:
        return False
    unmarked = (p and w is None for p, w in zip(operation.perturbed, operation.feedback, strict=True))
    looked_up = traits.moves is Moves.COPIES and len(operation.values) > 1 and len(operation.values[1].shape) > 1
    return looked_up or (traits.writes and any(unmarked))


def _weights_of(operation: Operation, weights: Sequence[Value | None], shapes: Sequence[tuple[int, ...]]) -> Value:
    """Compute the feedback weights of an operation's outputs (one, or a list); None where none goes through it.

    Joined or selected with a perturbed value that has none, a feedback weight ends: the result is an activation. So it
    does where a product grows, by the axis of a batch.
    """
    primitive, values = operation.primitive, operation.values
    if not _passes(operation, [w is not None for w in weights], shapes):
        return None
    return primitive.bind(*(v if w is None else w for v, w in zip(values, weights, strict=True)), **operation.params)
