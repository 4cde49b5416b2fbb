"""A backward rule that somebody else wrote, inlined: the products at its end are left to be contracted.

A layer whose pair is carried by `jax.custom_vjp` computes W̄ = x' δ inside its own `bwd`. The rule is traced, and where
an output is a contraction of something that follows from the cotangent with something that does not, perhaps moved to
other places, its two factors are computed and the contraction is handed on as a `Product`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax

from ..cotangents import ABSORB, Cotangent, Factored, Moves, Product, Zero
from ..jaxpr import Program, aval_of, current_source, inlined, is_literal, is_number, primitives, trace
from ..jaxpr.types import Atom, Aval, JaxprEqn, Primitive, Var
from .traits import traits_of


class Moved(NamedTuple):
    """An equation that moves numbers to other places, or rounds them."""

    primitive: Primitive
    params: dict[str, Any]

    @property
    def isometric(self) -> bool:
        """Whether it keeps inner products."""
        return self.moves >= Moves.ALL

    @property
    def moves(self) -> Moves:
        return traits_of(self.primitive).moves

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.primitive.bind(x, **self.params)


def contracted(ct: jax.Array, other: jax.Array, aval: Aval, *, ct_first: bool, **params: Any) -> jax.Array:
    """The contraction that somebody wrote, of what follows from the cotangent and what does not."""
    return lax.dot_general_p.bind(*((ct, other) if ct_first else (other, ct)), **params)


def _contracted_summed(product: Product) -> Product:
    """Σ_t of contractions of stacked factors: the steps t are one more contracted axis."""
    contract, batch = product.params["dimension_numbers"]
    later = lambda axes: tuple(a + 1 for a in axes)
    dims = tuple((0, *later(axes)) for axes in contract), tuple(map(later, batch))
    return product._replace(params=dict(product.params, dimension_numbers=dims))


ABSORB[contracted] = _contracted_summed


def inline_bwd(
    bwd: Callable[..., Sequence[Cotangent]],
    types: Sequence[Aval],
    res: Sequence[jax.Array],
    ct: Sequence[Cotangent],
    perturbed: Sequence[bool],
) -> list[Any]:
    """What `bwd(res, ct, perturbed)` returns, with the contractions at its end as `Factored`."""
    nonzero = [c is not Zero for c in ct]
    arrays = [x for x in res if not is_number(x)]
    args = [*arrays, *(c for c in ct if c is not Zero)]
    exists: list[bool] = []

    def flat(*xs: jax.Array) -> list[Cotangent]:
        given, kept = iter(xs[len(arrays) :]), iter(xs)
        outs = bwd(
            [x if is_number(x) else next(kept) for x in res], [next(given) if z else Zero for z in nonzero], perturbed
        )
        exists[:] = [c is not None and c is not Zero and p for c, p in zip(outs, perturbed, strict=True)]
        return [c for c, e in zip(outs, exists, strict=True) if e]

    program = inlined(trace(flat, [jax.typeof(a) for a in args], "bwd"))
    from_ct = _following(program, program.invars[len(arrays) :])
    ends = [_end(program, v, from_ct) for v in program.outvars]
    wanted = [v for v, end in zip(program.outvars, ends, strict=True) for v in (end[0].invars if end else [v])]
    values = iter(program.with_outputs(wanted).pruned(keep_inputs=True)[0](*args))
    found = (next(values) if end is None else _product(end, next(values), next(values), from_ct) for end in ends)
    outs = [next(found) if e else None for e in exists]
    of_type = zip(outs, types, strict=True)
    return [Factored([o], Zero, t.shape, t.dtype) if type(o) is Product else o for o, t in of_type]


def _end(program: Program, v: Atom, from_ct: set[Var]) -> tuple[JaxprEqn, list[Moved]] | None:
    """The contraction that this output comes from, and what moves its result; None where it does not."""
    made = {out: eqn for eqn in program.eqns for out in eqn.outvars}
    then: list[Moved] = []
    while not is_literal(v) and v in made:
        eqn = made[v]
        if eqn.primitive is primitives.dot_general_p:
            one_sided = sum(x in from_ct for x in eqn.invars if not is_literal(x)) == 1
            return (eqn, then[::-1]) if one_sided and aval_of(v.aval).size else None
        several = eqn.primitive.multiple_results or len(eqn.invars) > 1
        if several or traits_of(eqn.primitive).moves < Moves.ALL:
            return None
        then.append(Moved(eqn.primitive, eqn.params))
        v = eqn.invars[0]
    return None


def _product(end: tuple[JaxprEqn, list[Moved]], left: jax.Array, right: jax.Array, from_ct: set[Var]) -> Product:
    eqn, then = end
    ct_first = not is_literal(eqn.invars[0]) and eqn.invars[0] in from_ct
    ct, other = (left, right) if ct_first else (right, left)
    params = dict(eqn.params, ct_first=ct_first)
    return Product(ct, other, contracted, aval_of(eqn.outvars[0].aval), params, tuple(then), current_source())


def _following(program: Program, sources: Sequence[Var]) -> set[Var]:
    """All values that follow from these."""
    known = set(sources)
    for eqn in program.eqns:
        if any(not is_literal(v) and v in known for v in eqn.invars):
            known.update(eqn.outvars)
    return known
