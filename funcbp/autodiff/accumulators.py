"""What becomes of a primal's cotangent: it is handed out, added into a mutable reference, or dropped."""

from __future__ import annotations

import jax

from .. import jaxpr as jx
from ..cotangents import Cotangent, Zero, float0_zeros, instantiate, is_differentiable, materialize, weak_as
from ..jaxpr import operations as ops
from ..jaxpr.types import Aval, Value

__all__ = ["accumulated", "check_accumulator", "handed_out"]


def handed_out(ct: Cotangent, primal: Aval) -> Value:
    """Return a cotangent as the caller gets it, with the weakness of its primal."""
    if jx.is_reference(primal):
        raise ValueError(
            "The cotangent of a primal that is a mutable reference is added into another one: "
            "pullback.with_refs(accumulator)(ct)."
        )
    if not is_differentiable(primal):
        return float0_zeros(primal)
    return weak_as(instantiate(ct, primal), primal) if ct is Zero else materialize(ct)


def check_accumulator(accumulator: Value, primal: Aval) -> None:
    """Check that the cotangent of a primal of this type can go where it is to go.

    Raises:
        ValueError: the reference has another type, or there is none.
    """
    if not is_accumulator(accumulator):
        if jx.is_reference(primal) and not (isinstance(accumulator, jx.DontWant) or ops.collects(accumulator)):
            raise ValueError(
                "A primal is a mutable reference: its cotangent cannot be returned. Pass a reference to add it into, "
                "or jax.ad.DontWant()."
            )
        return
    got = jax.typeof(accumulator)
    if not jx.takes(primal, getattr(got, "inner_aval", got)):
        raise ValueError(
            f"The cotangent of a primal of type {jx.shown_type(primal)} is added into a reference of that "
            f"type, and this one is {jx.shown_type(getattr(got, 'inner_aval', got))}."
        )


def accumulated(accumulator: Value, ct: Cotangent, primal: Aval) -> Value:
    """Add a cotangent into what is there for it, if anything is, and return what stands in its place."""
    exists = ct is not Zero and is_differentiable(primal)
    if ops.collects(accumulator):
        return ops.add_into(accumulator, materialize(ct) if exists else None)
    if isinstance(accumulator, jx.DontWant):
        return jx.DidntWant()
    if not is_accumulator(accumulator):
        return handed_out(ct, primal)
    if exists:
        jax.ref.addupdate(accumulator, ..., materialize(ct))
    return jx.GradRef()


def is_accumulator(x: object) -> bool:
    """Tell whether this is a reference, to add into."""
    return isinstance(x, jax.Ref)
