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
from ..rules.registry import BILINEAR

__all__ = ["feedback_through", "read_backward"]

MOVES = frozenset(
    """broadcast_in_dim concatenate convert_element_type copy copy_p device_put dynamic_slice gather layout_constraint
    name neg optimization_barrier pad reduce_precision reshape reshard rev select_n sharding_constraint slice split
    squeeze stack tile transpose unstack""".split()
)


def read_backward(operation: Operation) -> Sequence[Any]:
    """Return what an operation's rule reads of its operands: of a factor that has a feedback weight, that weight."""
    values, weights = operation.values, operation.feedback
    if weights is None or operation.primitive not in BILINEAR or all(w is not None for w in weights[:2]):
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
    name, here = primitive.name, [w is not None for w in weights]
    if any(p and not h for p, h in zip(operation.perturbed, here, strict=True)):
        return None
    scales = (name == "mul" and sum(here) == 1) or (name == "div" and here == [True, False])
    if scales and shapes[0] != values[here.index(True)].shape:
        return None
    if name == "gather" and len(values[1].shape) > 1:  # many rows, as of an embedding: activations
        return None
    if not scales and (name not in MOVES or (name in ("gather", "dynamic_slice") and not here[0])):
        return None
    return primitive.bind(*(v if w is None else w for v, w in zip(values, weights, strict=True)), **operation.params)
