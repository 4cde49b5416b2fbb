"""Products of what a loop goes over with its constants, carried out before the loop: one large product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from .. import jaxpr as jx
from ..policies import Deferral, beforehand

__all__ = ["products_ahead"]


def products_ahead(walker: Any, params: dict[str, Any]) -> Callable[..., list[Any]] | None:
    """A scan with x W carried out for all its steps before it, where that pays; None where it pays for no product.

    A product can go ahead where one operand follows from what the loop goes over, the other from its constants, and
    neither from the carry. Its gradient then is one product after the loop, by the rule of the product itself.
    """
    body, n_consts, n_carry = jx.scan_parts(params)
    divided = _divided(body, n_consts, n_carry, beforehand(walker.residuals)) if params["length"] > 1 else None
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
def _divided(body: Any, n_consts: int, n_carry: int, when: Deferral) -> tuple[jx.Program, jx.Program] | None:
    """(constants, x) -> products, and the body with those as more inputs; None where no product should go ahead."""
    wide = (v.aval for e in jx.opened(body)[1] if e.primitive.name == "dot_general" for v in e.invars)
    if not any(when.pays(t.size * t.dtype.itemsize, 0) for t in wide):  # nearly always, and seen without tracing
        return None
    program = jx.trace(jx.as_function(body), jx.in_avals(body), "body")
    products = [v for eqn in _found(program, n_consts, n_carry, when) for v in eqn.outvars]
    if program.jaxpr.effects or not products:
        return None
    consts, xs = program.invars[:n_consts], program.invars[n_consts + n_carry :]
    return program.between([*consts, *xs], products), program.between([*program.invars, *products], program.outvars)


def _found(program: jx.Program, n_consts: int, n_carry: int, when: Deferral) -> list[Any]:
    """The products that should go ahead."""
    size = lambda v: v.aval.size * v.aval.dtype.itemsize
    steady = {*program.invars[:n_consts], *program.constvars}
    early = set(program.invars[n_consts + n_carry :])
    found = []
    for eqn in program.eqns:
        read = [v for v in eqn.invars if not jx.is_literal(v)]
        movable = jx.is_cheap(eqn) and eqn.primitive.name not in ("name", "feedback")
        if movable and all(v in steady for v in read):
            steady.update(eqn.outvars)
        elif movable and all(v in steady or v in early for v in read):
            early.update(eqn.outvars)
        elif eqn.primitive.name == "dot_general" and len(read) == 2:
            weights, inputs = ([v for v in read if v in these] for these in (steady, early))
            if weights and inputs and when.pays(size(weights[0]), size(eqn.outvars[0])):
                found.append(eqn)
    return found
