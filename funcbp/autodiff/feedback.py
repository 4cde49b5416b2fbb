"""Feedback weights: the value b in the place of w, which deltas go through on their way back.

`feedback(w, b)` gives w a feedback weight. Wherever w is one factor of a product, the cotangent of the other factor is
made with the feedback weight: for a layer net = x W that is x̄ = δ B' instead of x̄ = δ W'. The cotangent of w itself is
what it is without the mark: W̄ = x' δ. That is feedback alignment, and, with other choices of b, everything that it has
led to.

The feedback weight follows the value through equations that move numbers, convert, mask or scale them: these are done
to it as well. It ends where the value is used in any other way. Where two values with feedback weights meet in a
product, both are weights, and the gradient of each is made with the other's own value. Into loops, branches and regions
it goes as one more operand (`rules.kinds.ControlRule`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import jaxpr as jx
from ..rules.kinds import Operation, Recorder
from ..rules.traits import traits_of

__all__ = ["feedback_through", "read_backward"]


def read_backward(operation: Operation) -> Sequence[Any]:
    """Return what an operation's rule reads of its operands: of a factor that has a feedback weight, that weight."""
    values, weights = operation.values, operation.feedback
    bilinear = traits_of(operation.primitive).linear == (0, 1)
    if weights is None or not bilinear or all(w is not None for w in weights[:2]):
        return values
    return [v if w is None else w for v, w in zip(values, weights, strict=True)]


def feedback_through(trace: Recorder, operation: Operation, outs: Any) -> Any:
    """Give the outputs of an operation feedback weights where it only moved or scaled what has one."""
    if operation.feedback is None:
        return outs
    several = operation.primitive.multiple_results
    shapes = [jx.type_of(o).shape for o in (outs if several else [outs])]
    with trace.below():
        weights = _weights_of(operation, operation.feedback, shapes)
    if weights is None:
        return outs
    if not several:
        return trace.with_feedback(outs, weights)
    return [trace.with_feedback(o, w) for o, w in zip(outs, weights, strict=True)]


def _weights_of(operation: Operation, weights: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> Any:
    """Compute the feedback weights of an operation's outputs (one, or a list); None where none goes through it.

    Joined or selected with a perturbed value that has none, a feedback weight ends: the result is an activation. So it
    does where a product grows, by the axis of a batch.
    """
    primitive, values = operation.primitive, operation.values
    traits, here = traits_of(primitive), [w is not None for w in weights]
    if any(p and not h for p, h in zip(operation.perturbed, here, strict=True)):
        return None
    scales = sum(here) == 1 and here.index(True) in traits.scales
    if scales and shapes[0] != values[here.index(True)].shape:
        return None
    if primitive is jx.primitives.gather_p and len(values[1].shape) > 1:  # many rows, as of an embedding: activations
        return None
    moves = traits.moves and any(here[i] for i in traits.linear or range(len(here)))
    if not (scales or moves):
        return None
    return primitive.bind(*(v if w is None else w for v, w in zip(values, weights, strict=True)), **operation.params)
