"""Products of what a loop goes over with its constants, carried out before the loop: one large product."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax

from .. import jaxpr as jx
from ..rules.options import Options
from . import sinking
from .graph import bytes_of
from .sinking import Deferral

__all__ = ["products_ahead"]


def products_ahead(options: Options, params: dict[str, Any]) -> Callable[..., list[Any]] | None:
    """A scan with x W carried out for all its steps before it, where that pays; None where it pays for no product.

    A product can go ahead where one operand follows from what the loop goes over, the other from its constants, and
    neither from the carry. Its gradient then is one product after the loop, by the rule of the product itself. What
    has a rule of the user's stays, as that may see each step: a clipped cotangent is another one for all steps at once.
    """
    body, n_consts, n_carry = jx.scan_parts(params)
    stays = frozenset(getattr(p, "name", p) for p in options.rules)
    how = n_consts, n_carry, sinking.HOIST if options.policy.sinks else sinking.NEVER, stays
    divided = _divided(body, *how) if params["length"] > 1 else None
    if divided is None:
        return None
    ahead, rest = divided

    def run(*primals: Any) -> list[Any]:
        consts, init, xs = primals[:n_consts], primals[n_consts : n_consts + n_carry], primals[n_consts + n_carry :]
        products = jax.vmap(lambda *xs: ahead(*consts, *xs))(*xs)
        carry, ys = jx.bind_scan(rest, consts, init, [*xs, *products], params, params["reverse"])
        return [*carry, *ys]

    return run


@jx.weakref_cache
def _divided(
    body: Any, n_consts: int, n_carry: int, when: Deferral, stays: frozenset[str]
) -> tuple[jx.Program, jx.Program] | None:
    """(constants, x) -> products, and the body with those as more inputs; None where no product should go ahead."""
    if not any(when.pays(width, 0) for width in _widths(body)):  # nearly always, and without tracing
        return None
    program = jx.inlined(jx.trace(jx.as_function(body), jx.in_avals(body), "body"))
    products = [v for eqn in _found(program, n_consts, n_carry, when, stays) for v in eqn.outvars]
    if program.jaxpr.effects or not products:
        return None
    consts, xs = program.invars[:n_consts], program.invars[n_consts + n_carry :]
    return program.between([*consts, *xs], products), program.between([*program.invars, *products], program.outvars)


def _widths(body: Any) -> Iterator[int]:
    """The bytes of the operands of products, of those in compiled calls too."""
    eqns = (o.eqn for o in jx.equations(body, jx.programs_of(jx.Kind.JIT)))
    return (bytes_of([v]) for eqn in eqns if eqn.primitive.name == "dot_general" for v in eqn.invars)


def _found(program: jx.Program, n_consts: int, n_carry: int, when: Deferral, stays: frozenset[str]) -> list[Any]:
    """The products that should go ahead."""
    steady = {*program.invars[:n_consts], *program.constvars}
    early = set(program.invars[n_consts + n_carry :])
    found = []
    for eqn in program.eqns:
        name, read = eqn.primitive.name, [v for v in eqn.invars if not jx.is_literal(v)]
        movable = jx.is_cheap(eqn) and name not in ("name", "feedback", *stays)
        if movable and all(v in steady for v in read):
            steady.update(eqn.outvars)
        elif movable and all(v in steady or v in early for v in read):
            early.update(eqn.outvars)
        elif name == "dot_general" and name not in stays and len(read) == 2:
            weights, inputs = ([v for v in read if v in these] for these in (steady, early))
            if weights and inputs and when.pays(bytes_of(weights), bytes_of(_made(program, eqn, steady))):
                found.append(eqn)
    return found


def _made(program: jx.Program, product: Any, steady: set[Any]) -> list[Any]:
    """What is made at each step on the way to a product, itself included: a one-hot row, an activation."""
    way = program.between(program.invars, product.outvars).eqns
    return [v for eqn in way for v in eqn.outvars if v not in steady]
