"""The graph on which a plan is a cut: values, what makes each, and how many bytes each has.

value v    wide as its bytes; available if saved or recomputed
maker e    an equation, or an input of the body; repeated at a cost, if all that it reads is available
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from .. import jaxpr as jx
from ..jaxpr import Program
from ..jaxpr.types import Atom, JaxprEqn, Var

__all__ = ["Graph", "bytes_of", "graph_of", "kept_bytes", "read_for"]


def bytes_of(variables: Iterable[Atom]) -> int:
    """Count the bytes of these values together.

    Args:
        variables: of a jaxpr, each with its type as `aval`.

    Returns:
        How many bytes, an integer.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from funcbp import remat
        >>> closed = jax.make_jaxpr(lambda x, w: jnp.tanh(x) @ w)(jnp.ones((2, 3)), jnp.ones((3, 4)))
        >>> remat.bytes_of(closed.jaxpr.invars)
        72
    """
    return sum(jx.bytes_of_type(v.aval) for v in variables)


def kept_bytes(variables: Iterable[Atom]) -> int:
    """Count the bytes of these values together when they are saved, where masks are saved as bits."""
    return sum(bytes_of([v]) // (8 if jx.packs(v.aval) else 1) for v in variables)


def read_for(program: Program, targets: Sequence[Atom], given: set[Var]) -> set[Var]:
    """Collect all values that are read when the targets are computed from the given values and the inputs.

    Args:
        program: the forward program that a policy gets.
        targets: variables of it.
        given: variables that need not be computed.

    Returns:
        The targets, and the variables that the equations read which make them from what is given.
    """
    read = {v for v in targets if not jx.is_literal(v)}
    for eqn in reversed(program.eqns):
        if any(v in read and v not in given for v in eqn.outvars):
            read |= {v for v in eqn.invars if not jx.is_literal(v)}
    return read


class Graph(NamedTuple):
    """What is needed, what it is made of, and how wide it is.

    Attributes:
        values: for each place, the variables in it.
        widths: their bytes.
        maker: for each place, which maker makes it.
        makers: for each maker, its equations; none for an input of the body.
        reads: for each maker, the places it reads.
        needed: the places that must be available.
    """

    values: list[list[Var]]
    widths: np.ndarray
    maker: list[int]
    makers: list[list[JaxprEqn]]
    reads: list[list[int]]
    needed: list[int]


def graph_of(forward: Program, needed: list[Var], available: set[Var]) -> Graph:
    """Build the graph between the inputs of a program and what is needed of it, without what is available."""
    read = read_for(forward, needed, available) - available - set(forward.constvars)
    place: dict[Var, int] = {}
    maker_of: dict[Var, int] = {}
    values: list[list[Var]] = []
    maker: list[int] = []
    makers: list[list[JaxprEqn]] = []
    reads: list[dict[int, None]] = []

    def put(made: Sequence[Var], eqn: JaxprEqn | None) -> None:
        first = made[0]
        e = maker_of.setdefault(first, len(makers))
        if e == len(makers):
            makers.append([])
            reads.append({})
        if eqn is not None:
            makers[e].append(eqn)
            inputs = (v for v in eqn.invars if not jx.is_literal(v) and v in read)
            reads[e].update((place[v], None) for v in inputs)
        for v in (v for v in made if v in read):
            i = place.setdefault(v, len(values))
            if i == len(values):
                values.append([])
                maker.append(e)
            values[i].append(v)

    for v in forward.invars:
        if v in read:
            put([v], None)
    for eqn in forward.eqns:
        if any(v in read for v in eqn.outvars):
            put(eqn.outvars, eqn)
    widths = np.array([max(1, kept_bytes(variables)) for variables in values], float)
    targets = dict.fromkeys(place[v] for v in needed)
    return Graph(values, widths, maker, makers, [list(r) for r in reads], list(targets))
