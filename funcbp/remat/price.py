"""What it costs to compute an equation again, in bytes: so much could be kept instead in the same time."""

from __future__ import annotations

from collections.abc import Iterable

from .. import jaxpr as jx
from ..jaxpr import inside_of
from ..jaxpr.types import Atom, JaxprEqn
from ..rules.cost import flops, is_cheap, is_repeatable
from ..rules.traits import traits_of
from .machine import Machine

__all__ = ["NEVER", "price"]

NEVER = None  # the price of what is not computed again
VECTOR = 10.0  # operations per byte moved, outside products: 5 to 20 on all machines of the table


def price(eqn: JaxprEqn, machine: Machine) -> float | None:
    """Return what computing an equation again costs; None if it would not give the same numbers, or has no end.

    A byte that is kept is moved twice, written and read back. So what takes as long as moving n bytes costs n / 2:

        product              max(operations / balance, bytes wider than the cache), and no less than its launch
        other dear equation  max(operations / VECTOR, bytes of operands and results)
        reduction            bytes of an operand wider than the cache, where the machine does not fuse it
        cheap equation       nothing, it runs along with what reads it; in a loop or a branch its result's bytes
        loop, branches       what is inside, each time no less than a launch, and of branches the dearest
        `jax.checkpoint`     what is inside, unless the user gave it a policy: what that has saved is saved
    """
    if not is_repeatable(eqn):
        return NEVER
    moved = _moved(eqn, machine, alone=False)
    return NEVER if moved is None else float(moved) / 2


def _moved(eqn: JaxprEqn, machine: Machine, alone: bool) -> float | None:
    """Return the bytes that could be moved in the time of an equation; `alone` if it is fused with nothing."""
    traits, inside, eqn = traits_of(eqn.primitive), inside_of(eqn), jx.closed_sizes(eqn)
    if traits.flops is None and inside.programs:
        if inside.kind is jx.Kind.WHILE:
            return None  # how often it runs is not known
        policy = eqn.params["policy"] if inside.kind is jx.Kind.REMAT else None
        if policy is not None and not jx.is_planned(policy):
            return None  # what of it is saved is the user's word, not the plan's
        apart = alone or not inside.kind & jx.CALLS
        inner = [[_moved(e, machine, apart) for e in program.eqns] for program in inside.programs]
        if any(m is None for program in inner for m in program):
            return None
        least = machine.idle if inside.kind & jx.CONTROL else 0.0
        return traits.inside(eqn.params, [max(sum(program), least) for program in inner])  # type: ignore[arg-type]
    if is_cheap(eqn):
        own = sum(_bytes(eqn.outvars)) if alone else 0
        return own if machine.fuses or not _reduces(eqn) else max(own, _streamed(eqn, machine))
    if traits.contracts:
        dtype = jx.aval_of(eqn.invars[0].aval).dtype
        return max(flops(eqn) / machine.balance(dtype), _streamed(eqn, machine), machine.idle)
    return traits.passes * max(flops(eqn) / VECTOR, sum(_bytes([*eqn.invars, *eqn.outvars])), machine.idle)


def _bytes(variables: Iterable[Atom]) -> list[int]:
    return [jx.bytes_of_type(v.aval) for v in variables]


def _streamed(eqn: JaxprEqn, machine: Machine) -> int:
    """Count the bytes of those operands and results that go through memory."""
    return sum(b for b in _bytes([*eqn.invars, *eqn.outvars]) if b > machine.cache)


def _reduces(eqn: JaxprEqn) -> bool:
    return sum(_bytes(eqn.outvars)) < max(_bytes(eqn.invars), default=0) and flops(eqn) > 0
