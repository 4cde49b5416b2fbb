"""Mirrors: the value b in the place of w, which deltas go through on their way back.

`feedback(w, b)` gives w a mirror. Wherever w is one factor of a product, the cotangent of the other factor is made with
the mirror: for a layer net = x W that is x̄ = δ B' instead of x̄ = δ W'. The cotangent of w itself is what it is without
the mark: W̄ = x' δ. That is feedback alignment, and, with other choices of b, everything that it has led to.

The mirror follows the value through equations that move numbers, convert, mask or scale them: these are done to the
mirror as well. It ends where the value is used in any other way. Where two values with mirrors meet in a product, both
are weights, and the gradient of each is made with the other's own value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import jaxpr as jx
from ..jaxpr import primitives
from ..rules.registry import BILINEAR

__all__ = ["feedback_weights_of", "passed_inside", "read_backward"]

MOVES = frozenset(
    """broadcast_in_dim concatenate convert_element_type copy copy_p device_put dynamic_slice gather layout_constraint
    name neg optimization_barrier pad reduce_precision reshape reshard rev select_n sharding_constraint slice split
    squeeze stack tile transpose unstack""".split()
)
INSIDE: dict[Any, Callable[[dict[str, Any], Sequence[bool]], dict[str, Any]]] = {
    primitives.scan_p: jx.scan_of_marked,
    primitives.cond_p: jx.cond_of_marked,
    primitives.remat_p: jx.remat_of_marked,
}


def read_backward(primitive: Any, values: Sequence[Any], mirrors: Sequence[Any] | None) -> Sequence[Any]:
    """What an equation's rule reads of its operands: of a factor that has a mirror, the mirror."""
    if mirrors is None or primitive not in BILINEAR or all(m is not None for m in mirrors[:2]):
        return values
    return [v if m is None else m for v, m in zip(values, mirrors, strict=True)]


def feedback_weights_of(
    primitive: Any,
    values: Sequence[Any],
    mirrors: Sequence[Any],
    perturbed: Sequence[bool],
    params: dict[str, Any],
    shapes: Sequence[tuple[int, ...]],
) -> Any:
    """The mirrors of what an equation returns (one, or a list), or None where a mirror does not go through it.

    Joined or selected with a perturbed value that has none, a mirror ends: the result is an activation. So it does
    where a product grows, by the axis of a batch.
    """
    name, here = primitive.name, [m is not None for m in mirrors]
    if any(p and not m for p, m in zip(perturbed, here, strict=True)):
        return None
    scales = (name == "mul" and sum(here) == 1) or (name == "div" and here == [True, False])
    if scales and shapes[0] != values[here.index(True)].shape:
        return None
    if name == "gather" and len(values[1].shape) > 1:  # many rows, as of an embedding: activations
        return None
    if not scales and (name not in MOVES or (name in ("gather", "dynamic_slice") and not here[0])):
        return None
    return primitive.bind(*(v if m is None else m for v, m in zip(values, mirrors, strict=True)), **params)


def passed_inside(
    primitive: Any, params: dict[str, Any], values: Sequence[Any], slots: Sequence[Any], mirrors: Sequence[Any]
) -> tuple[list[Any], list[Any], dict[str, Any]] | None:
    """A loop, branch or region whose operands have mirrors: it takes these too, and bears the marks inside.

    Returns:
        The operands, each mirror behind its own; their numbers in the record; the parameters. None for an operation
        without programs inside. A loop's carry has no mirror: it is another value at every step.
    """
    if primitive not in INSIDE:
        return None
    which = [m is not None for m in mirrors]
    if primitive is primitives.scan_p:
        _, n_consts, n_carry = jx.scan_parts(params)
        which = [w and not n_consts <= i < n_consts + n_carry for i, w in enumerate(which)]
    groups = list(zip(values, slots, mirrors, which, strict=True))
    new_values = [x for v, _, m, w in groups for x in ((v, m) if w else (v,))]
    new_slots = [x for _, s, _, w in groups for x in ((s, None) if w else (s,))]
    return new_values, new_slots, INSIDE[primitive](params, which)
