"""Hoisting: what does not follow from a loop's carry, made outside it for all steps at once: products with its
constants, contracted before the loop, what products read of its constants, and what it would stack and has only been
handed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax

from .. import jaxpr as jx
from ..cotangents import Moves
from ..jaxpr.types import AnyJaxpr, Jaxpr, JaxprEqn, Value, Var
from ..rules.cost import flops, is_cheap
from ..rules.options import Options
from ..rules.traits import traits_of
from . import sinking
from .graph import bytes_of
from .machine import Machine
from .sinking import Deferral

__all__ = ["handed_on", "hoisted_products", "operands_before", "products_before", "replaced"]


LARGE = 2**17  # what is smaller, in bytes, is copied for a product in less time than the product is launched in


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
    kinds = [Follows.CONSTANTS] * n_consts + [Follows.CARRY] * n_carry
    kinds += [Follows.XS] * (len(jx.in_avals(body)) - len(kinds))
    if not any(when.pays(width, 0) for width in _widths(body, kinds)[0]):  # nearly always, and without tracing
        return None
    program = jx.inlined(jx.Program.of(body))
    products = [v for eqn in _found(program, n_consts, n_carry, when, stays) for v in eqn.outvars]
    if program.jaxpr.effects or not products:
        return None
    consts, xs = program.invars[:n_consts], program.invars[n_consts + n_carry :]
    return program.between([*consts, *xs], products), program.between([*program.invars, *products], program.outvars)


@jx.weakref_cache
def handed_on(
    body: Jaxpr, n_consts: int, n_carry: int, stays: frozenset[str]
) -> tuple[jx.Program, jx.Program, tuple[bool, ...], tuple[bool, ...]] | None:
    """Divide a body whose stacks hold what it goes along, only moved: a step need not write what has been there before.

    Returns:
        (constants, x) -> those stacks; the rest of the body; which of the stacks they are; which parts of x the rest
        reads. None where there is no such stack.
    """
    program = jx.Program(body)
    if program.jaxpr.effects:
        return None
    _, early = _early(program, n_consts, n_carry, stays, lambda eqn: is_cheap(eqn) and flops(eqn) == 0)
    stacks = program.outvars[n_carry:]
    apart = tuple(not jx.is_literal(v) and v in early for v in stacks)
    if not any(apart):
        return None
    consts, xs = program.invars[:n_consts], program.invars[n_consts + n_carry :]
    made = program.between([*consts, *xs], [v for v, a in zip(stacks, apart, strict=True) if a])
    left = [v for v, a in zip(stacks, apart, strict=True) if not a]
    keep = [True] * (n_consts + n_carry) + [False] * len(xs)
    rest, read = program.with_outputs([*program.outvars[:n_carry], *left]).pruned(keep)
    return made, rest, apart, tuple(read[n_consts + n_carry :])


@jx.weakref_cache
def operands_before(body: Jaxpr, n_consts: int, machine: Machine) -> tuple[jx.Program, jx.Program] | None:
    """Divide a body: constants -> what its products read of them, and the rest, with those as its first inputs.

    That is a part of a constant, which would be copied out of it at every step, as XLA moves no slice out of a loop;
    and a weight with its contracted axis first, where few rows are multiplied with it and the machine copies it into
    that order for every product (`Machine.packs`). None where no product reads such a thing.
    """
    program = jx.Program(body)
    if program.jaxpr.effects:
        return None
    constants = set(program.invars[:n_consts])
    parts: set[Var] = set()
    read: list[Var] = []
    for eqn in program.eqns:
        operands = [v for v in eqn.invars if not jx.is_literal(v)]
        if constants.issuperset(operands):
            moves = traits_of(eqn.primitive).moves >= Moves.ONCE
            if moves and bytes_of(eqn.outvars) <= bytes_of(operands):
                constants.update(eqn.outvars)
                parts.update(eqn.outvars)
        elif eqn.primitive is jx.primitives.dot_general_p:
            if operands[-1] in constants and _packed(eqn, machine):
                program, first = program.turned(eqn, operands[-1], (1, 0), dimension_numbers=(((1,), (0,)), ((), ())))
                read.append(first)
            else:
                read += [v for v in operands if v in parts]
    if not read:
        return None
    read = list(dict.fromkeys(read))
    return program.between(program.invars[:n_consts], read), program.between([*read, *program.invars], program.outvars)


def _packed(product: JaxprEqn, machine: Machine) -> bool:
    """Tell whether a product of two matrices, not of a single row, copies the second one before it multiplies."""
    left, right = (jx.aval_of(v.aval) for v in product.invars)
    last = product.params["dimension_numbers"] == (((1,), (1,)), ((), ()))
    large = bytes_of(product.invars[1:]) >= LARGE and jx.cotangent_sharding(right) is None
    rows = left.shape[0] if last else 0  # not a number in a program that is exported for any size
    return last and large and isinstance(rows, int) and 1 < rows <= machine.packs


class Follows(enum.IntEnum):
    """What a value in a loop's body follows from: constants alone, what the loop goes along as well, its carry."""

    CONSTANTS, XS, CARRY = range(3)


def _widths(body: AnyJaxpr, inputs: Sequence[Follows]) -> tuple[list[int], list[Follows]]:
    """List the bytes of the operands of products that do not follow from the carry, of those in compiled calls too; and
    what the outputs follow from.
    """
    jaxpr = jx.close(body).jaxpr
    widths: list[int] = []
    kinds = dict(zip(jaxpr.invars, inputs, strict=True))
    of = lambda v: Follows.CONSTANTS if jx.is_literal(v) else kinds.get(v, Follows.CONSTANTS)
    for eqn in jaxpr.eqns:
        read = [of(v) for v in eqn.invars]
        made = [max(read, default=Follows.CONSTANTS)] * len(eqn.outvars)
        if (inside := jx.inside_of(eqn)).kind is jx.Kind.JIT:
            found, made = _widths(inside.programs[0], read)
            widths += found
        elif eqn.primitive is jx.primitives.dot_general_p and sorted(read) == [Follows.CONSTANTS, Follows.XS]:
            widths += [bytes_of([v]) for v in eqn.invars]
        kinds.update(zip(eqn.outvars, made, strict=True))
    return widths, [of(v) for v in jaxpr.outvars]


def _found(program: jx.Program, n_consts: int, n_carry: int, when: Deferral, stays: frozenset[str]) -> list[JaxprEqn]:
    """Find the products that should be hoisted."""
    invariant, early = _early(program, n_consts, n_carry, stays)
    found = []
    for eqn in program.eqns:
        read = [v for v in eqn.invars if not jx.is_literal(v)]
        if eqn.primitive is jx.primitives.dot_general_p and eqn.primitive.name not in stays and len(read) == 2:
            weights, inputs = ([v for v in read if v in these] for these in (invariant, early))
            if weights and inputs and when.pays(bytes_of(weights), bytes_of(_made(program, eqn, invariant))):
                found.append(eqn)
    return found


def _early(
    program: jx.Program,
    n_consts: int,
    n_carry: int,
    stays: frozenset[str],
    movable: Callable[[JaxprEqn], bool] = is_cheap,
) -> tuple[set[Var], set[Var]]:
    """Collect what follows from a body's constants alone, and what from them and from what it goes along, by equations
    that may be moved out of it.
    """
    invariant = {*program.invars[:n_consts], *program.constvars}
    early = set(program.invars[n_consts + n_carry :])
    for eqn in program.eqns:
        read = {v for v in eqn.invars if not jx.is_literal(v)}
        from_constants = read <= invariant
        if not from_constants and not all(v in invariant or v in early for v in read):
            continue
        if eqn.primitive.name not in stays and not traits_of(eqn.primitive).mark and movable(eqn):
            (invariant if from_constants else early).update(eqn.outvars)
    return invariant, early


def _made(program: jx.Program, product: JaxprEqn, invariant: set[Var]) -> list[Var]:
    """List what is made at each step on the way to a product, itself included: a one-hot row, an activation."""
    way = program.between(program.invars, product.outvars).eqns
    return [v for eqn in way for v in eqn.outvars if v not in invariant]
