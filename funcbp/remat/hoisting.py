"""Hoisting: products of what a loop goes over with its constants, contracted before the loop as one large product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax

from .. import jaxpr as jx
from ..jaxpr.types import AnyJaxpr, JaxprEqn, Value, Var
from ..rules.cost import is_cheap
from ..rules.options import Options
from ..rules.traits import traits_of
from . import sinking
from .graph import bytes_of
from .sinking import Deferral

__all__ = ["hoisted_products", "products_before", "replaced"]


def products_before(options: Options, params: dict[str, Any]) -> Callable[..., list[Value]] | None:
    """Contract x W for all steps of a scan before it, where that pays; None where it pays for no product.

    A product can be hoisted where one operand follows from what the loop goes over, the other from its constants, and
    neither from the carry. Its gradient then is one product after the loop, by the rule of the product itself. What
    has a rule of the user's stays, as that may see each step: a clipped cotangent is another one for all steps at once.
    """
    body, n_consts, n_carry = jx.scan_parts(params)
    steps = params["length"]  # not a number in a program that is exported for any length
    when = sinking.HOIST if options.policy.sinks else sinking.NEVER
    if isinstance(steps, int) and steps <= 1:
        return None
    divided = hoisted_products(body, n_consts, n_carry, when, replaced(options))
    if divided is None:
        return None
    hoisted, rest = divided

    def run(*primals: Value) -> list[Value]:
        consts, init, xs = primals[:n_consts], primals[n_consts : n_consts + n_carry], primals[n_consts + n_carry :]
        products = jax.vmap(lambda *xs: hoisted(*consts, *xs))(*xs)
        carry, ys = jx.bind_scan(rest, consts, init, [*xs, *products], params, params["reverse"])
        return [*carry, *ys]

    return run


def replaced(options: Options) -> frozenset[str]:
    """Name the primitives that have a rule of the user's."""
    return frozenset(getattr(p, "name", p) for p in options.rules)


@jx.weakref_cache
def hoisted_products(
    body: AnyJaxpr, n_consts: int, n_carry: int, when: Deferral, stays: frozenset[str]
) -> tuple[jx.Program, jx.Program] | None:
    """Divide a body: (constants, x) -> products, and the rest, with those as inputs; None if none is hoisted."""
    if not any(when.pays(width, 0) for width in _widths(body)):  # nearly always, and without tracing
        return None
    program = jx.inlined(jx.trace(jx.as_function(body), jx.in_avals(body), "body"))
    products = [v for eqn in _found(program, n_consts, n_carry, when, stays) for v in eqn.outvars]
    if program.jaxpr.effects or not products:
        return None
    consts, xs = program.invars[:n_consts], program.invars[n_consts + n_carry :]
    return program.between([*consts, *xs], products), program.between([*program.invars, *products], program.outvars)


def _widths(body: AnyJaxpr) -> Iterator[int]:
    """Yield the bytes of the operands of products, of those in compiled calls too."""
    eqns = (o.eqn for o in jx.equations(body, jx.programs_of(jx.Kind.JIT)))
    return (bytes_of([v]) for eqn in eqns if eqn.primitive is jx.primitives.dot_general_p for v in eqn.invars)


def _found(program: jx.Program, n_consts: int, n_carry: int, when: Deferral, stays: frozenset[str]) -> list[JaxprEqn]:
    """Find the products that should be hoisted."""
    invariant = {*program.invars[:n_consts], *program.constvars}
    early = set(program.invars[n_consts + n_carry :])
    found = []
    for eqn in program.eqns:
        read = [v for v in eqn.invars if not jx.is_literal(v)]
        replaced = eqn.primitive.name in stays
        movable = is_cheap(eqn) and not replaced and not traits_of(eqn.primitive).mark
        if movable and all(v in invariant for v in read):
            invariant.update(eqn.outvars)
        elif movable and all(v in invariant or v in early for v in read):
            early.update(eqn.outvars)
        elif eqn.primitive is jx.primitives.dot_general_p and not replaced and len(read) == 2:
            weights, inputs = ([v for v in read if v in these] for these in (invariant, early))
            if weights and inputs and when.pays(bytes_of(weights), bytes_of(_made(program, eqn, invariant))):
                found.append(eqn)
    return found


def _made(program: jx.Program, product: JaxprEqn, invariant: set[Var]) -> list[Var]:
    """List what is made at each step on the way to a product, itself included: a one-hot row, an activation."""
    way = program.between(program.invars, product.outvars).eqns
    return [v for eqn in way for v in eqn.outvars if v not in invariant]
