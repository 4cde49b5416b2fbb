"""Lazy products: the cotangent of a factor of a product, W̄ = x' δ, as the product that nobody has contracted yet."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .. import jaxpr as jx
from ..jaxpr.types import Aval
from .zero import Zero, _Zero


class Product(NamedTuple):
    """One product that makes (a part of) a cotangent: `rule(ct, other)`, and what was done with the result.

    Attributes:
        ct: the cotangent of the primal product.
        other: the other factor of the primal product.
        rule: `rule(ct, other, aval, **params)`, the bilinear rule of this operand.
        aval: the type of the operand.
        params: the parameters of the primal product's equation.
        then: linear maps of the result, in order. After a loop, whose factors are stacked along a leading axis, the
            results are `SUMMED` over its steps or `STACKED`.
        source: where the product was written.
    """

    ct: jax.Array
    other: jax.Array
    rule: Callable[..., jax.Array]
    aval: Aval
    params: dict[str, Any]
    then: tuple[Any, ...] = ()
    source: Any = None

    def contract(self) -> jax.Array:
        """Make the array of the product."""
        with jx.restored(self.source):
            return _follow(self, len(self.then), self.ct, self.other)

    def summed(self) -> Product:
        """Sum the product over a leading axis of its factors: one larger contraction, where the rule knows how.

        What follows is linear, so the sum may come first: the axis goes inside those of the loops that follow.
        """
        loops = sum(what in (SUMMED, STACKED) for what in self.then)
        inward = (jnp.moveaxis(a, 0, loops) for a in (self.ct, self.other))
        larger = self._replace(ct=next(inward), other=next(inward)).absorbed(loops)
        return self._replace(then=(*self.then, SUMMED)) if larger is None else larger

    def absorbed(self, loops: int) -> Product | None:
        """Sum over the axis after those of the loops in one product, where the rule has it (see `ABSORB`)."""
        if self.rule not in ABSORB:
            return None
        larger: list[Product | None] = []

        def absorb(ct: jax.Array, other: jax.Array) -> Any:
            larger.append(ABSORB[self.rule](self._replace(ct=ct, other=other)))
            return None if larger[0] is None else (larger[0].ct, larger[0].other)

        for _ in range(loops):
            absorb = jax.vmap(absorb)
        factors = absorb(self.ct, self.other)
        return None if larger[0] is None else larger[0]._replace(ct=factors[0], other=factors[1])


SUMMED, STACKED = "summed", "stacked"
ABSORB: dict[Any, Callable[[Product], Product | None]] = {}
NARROW: dict[Any, Callable[[Product, int, int, int], Product | None]] = {}
TURN: dict[Any, Callable[[Product, Sequence[int], Aval], Product | None]] = {}


def _follow(product: Product, n: int, ct: jax.Array, other: jax.Array) -> jax.Array:
    """Contract these factors, and do the first `n` of what follows."""
    if n == 0:
        return product.rule(ct, other, product.aval, **product.params)
    what = product.then[n - 1]
    if what is STACKED:
        return jax.vmap(lambda c, o: _follow(product, n - 1, c, o))(ct, other)
    if what is SUMMED:
        return jnp.sum(jax.vmap(lambda c, o: _follow(product, n - 1, c, o))(ct, other), 0)
    return what(_follow(product, n - 1, ct, other))


class Moves(enum.IntEnum):
    """How an operation moves numbers and does nothing else to them: the more a grade promises, the larger it is."""

    NOT = 0  # it computes numbers
    COPIES = 1  # a number goes to any number of places: a broadcast, a lookup
    ONCE = 2  # a number goes to one place at most: a slice. Going back is an isometry: it keeps inner products
    ALL = 3  # every number goes to one place: a transposition
    STAYS = 4  # every number stays in its place: a cast, a copy


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear map that follows a product: the rule of a linear operation, with all that it takes but the cotangent.

    `moves`: how the operation moves numbers; the map takes them back.
    """

    bwd: Callable[..., Any]
    res: Any
    perturbed: tuple[bool, ...]
    params: dict[str, Any]
    moves: Moves

    @property
    def isometric(self) -> bool:
        """Whether it keeps inner products."""
        return self.moves >= Moves.ONCE

    def __call__(self, ct: jax.Array) -> jax.Array:
        return self.bwd(self.res, ct, self.perturbed, **self.params)[0]


class Factored:
    """A cotangent as a sum of products that nobody has contracted yet.

    Attributes:
        products: the products.
        rest: an array to be added, or Zero.
        shape, dtype: of the cotangent.
    """

    __slots__ = ("_array", "dtype", "products", "rest", "shape")

    def __init__(self, products: Sequence[Product], rest: jax.Array | Any, shape: Sequence[int], dtype: np.dtype):
        self.products, self.rest, self.shape, self.dtype = tuple(products), rest, tuple(shape), dtype
        self._array: Any = None

    def materialize(self) -> jax.Array:
        """Make the array, once."""
        if self._array is None:
            total = self.rest
            for product in self.products:
                array = product.contract()
                total = array if total is Zero else jx.add(total, array)
            self._array = total
        return self._array

    def plus(self, other: Cotangent) -> Factored:
        """Add another cotangent of the same type."""
        products = (*other.products, *self.products) if type(other) is Factored else self.products
        rest = other.rest if type(other) is Factored else other
        if rest is not Zero and self.rest is not Zero:
            rest = jx.add(self.rest, rest)
        return Factored(products, self.rest if rest is Zero else rest, self.shape, self.dtype)

    def through(
        self, linear: Callable[[jax.Array], jax.Array], aval: Aval, order: Sequence[int] | None = None
    ) -> Factored:
        """Go back through a linear operation with this rule, to an operand of this type.

        Where it does nothing but put the axes in this order, the product becomes one with the operand itself, if its
        rule has it (see `TURN`).
        """
        rest = Zero if self.rest is Zero else linear(self.rest)
        turned = [
            TURN[p.rule](p, order, aval) if order is not None and not p.then and p.rule in TURN else None
            for p in self.products
        ]
        then = [t or p._replace(then=(*p.then, linear)) for p, t in zip(self.products, turned, strict=True)]
        return Factored(then, rest, aval.shape, aval.dtype)

    def narrowed(self, axis: int, start: int, stop: int) -> Cotangent:
        """Take a part of the cotangent along an axis: products of parts of their factors, where the rules have them
        (see `NARROW`), so that nothing else is computed.
        """
        known = [p for p in self.products if not p.then and p.rule in NARROW]
        products = [part for p in known if (part := NARROW[p.rule](p, axis, start, stop)) is not None]
        if len(products) < len(self.products):
            return jax.lax.slice_in_dim(self.materialize(), start, stop, axis=axis)
        rest = Zero if self.rest is Zero else jax.lax.slice_in_dim(self.rest, start, stop, axis=axis)
        shape = (*self.shape[:axis], stop - start, *self.shape[axis + 1 :])
        return Factored(products, rest, shape, self.dtype)

    def summed(self) -> Factored:
        """Sum over the steps after a loop, whose steps' factors are stacked, for what is loop-invariant."""
        rest = Zero if self.rest is Zero else jnp.sum(self.rest, 0)
        return Factored([p.summed() for p in self.products], rest, self.shape, self.dtype)

    def stacked(self, length: int) -> Factored:
        """Stack the steps' cotangents after a loop, for what the loop went along."""
        then = [p._replace(then=(*p.then, STACKED)) for p in self.products]
        return Factored(then, self.rest, (length, *self.shape), self.dtype)


Cotangent: TypeAlias = jax.Array | _Zero | Factored | None


def _flatten(f: Factored) -> Any:
    static = tuple((p.rule, p.aval, p.params, p.then, p.source) for p in f.products)
    return ([(p.ct, p.other) for p in f.products], f.rest), (static, f.shape, f.dtype)


def _unflatten(static: Any, children: Any) -> Factored:
    (products, shape, dtype), (factors, rest) = static, children
    return Factored([Product(*f, *p) for f, p in zip(factors, products, strict=True)], rest, shape, dtype)


jax.tree_util.register_pytree_node(Factored, _flatten, _unflatten)


def materialize(ct: Cotangent) -> jax.Array | Any:
    """Contract the products of a cotangent; `Zero`, `None` and arrays stay as they are."""
    return ct.materialize() if type(ct) is Factored else ct


def weak_as(ct: Cotangent, aval: Aval) -> Cotangent:
    """Return a cotangent that is weakly typed if its primal is, as JAX's is: what a loop carries is strongly typed."""
    return ct if ct is Zero or type(ct) is Factored else jx.like(ct, aval)


def instantiate(ct: Cotangent, aval: Aval) -> jax.Array:
    """Make the cotangent an array: `Zero` becomes zeros of this type, and products are contracted."""
    if ct is not Zero:
        return materialize(ct)
    return jx.zeros(jx.strong(aval))
