"""One parameter's cotangents, example by example, and what can be asked of them.

What comes out of the backward pass for each parameter is an array with one cotangent per example, or, for the factors
of products, the two factors: see `pairs.py`. A `Leaf` answers what is asked of them (their squared norms, their sum
with weights, their inner products) by the cheapest method: from the factors, or from the products once made, those of a
convolution from patches or directly, by a convolution for each example.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..cotangents import Factored, Zero, instantiate
from ..jaxpr.types import Aval
from . import pairs as ps
from .cost import cheapest, cost_apart, cost_between
from .pairs import Pair

__all__ = ["Leaf"]

Array = jax.Array


class Leaf:
    """One parameter's cotangents, example by example: W̄_n for n = 1 ... N.

    Args:
        path: the parameter's path, `dense_0/kernel`.
        aval: its type.
        ct: `Zero`; an array (n, ...); or `Factored`, its factors with a leading axis n.
        n: the number of examples.
        sums: whether the sum over the examples will be asked for too: products once made serve both.

    Attributes:
        method: how squared norms are found: `"zero"`; `"array"`, the cotangents come as arrays; `"factors"`, from the
            factors; `"products"`, which are made, with the reason where there is one; or `"direct"`, where products
            of a convolution are made by a convolution for each example instead of from patches.
    """

    def __init__(self, path: str, aval: Aval, ct: Factored | jax.Array | Any, n: int, sums: bool = False):
        self.path, self.aval, self.ct, self.n = path, aval, ct, n
        self.pairs: list[Pair] = []
        self._made: Array | None = None  # the products, (n, g, i, o) in the first pair's layout or as arrays
        if ct is Zero:
            self.method = "zero"
        elif not isinstance(ct, Factored):
            self.method = "array"
        else:
            self.pairs, why = _aligned(ct)
            self.method = f"products: {why}" if why else cheapest(ct.products, self.pairs, n, sums)

    def arrays(self, direct: bool = True) -> Array:
        """W̄_n: shape (n, ...), in the parameter's dtype. Unless `direct`, convolutions go by patches."""
        if self.method == "direct" and not direct:
            made = jax.vmap(self.pairs[0].layout.place)(_summed_pairs(self.pairs))
        else:
            made = jax.vmap(self._place)(self._products())
        return made.astype(self.aval.dtype)

    def squared_norms(self) -> Array:
        """‖W̄_n‖²: shape (n,)."""
        if self.method == "zero":
            return jnp.zeros(self.n, _wide(self.aval.dtype))
        if self.method != "factors":
            made = self._products()
            made = made.astype(_wide(made.dtype))
            return jnp.sum(made * made, range(1, made.ndim))
        total: Any = 0
        for j, b in enumerate(self.pairs):
            for i, a in enumerate(self.pairs[: j + 1]):
                inner = _times(ps.within(a.inputs, b.inputs), ps.within(a.deltas, b.deltas))
                inner = jnp.sum(inner, (1, 2, 3))
                total = total + (inner if i == j else 2 * inner)
        return total

    def weighted_sum(self, weights: Array) -> Array:
        """Σ_n c_n W̄_n, the shape and dtype of the parameter: the deltas are scaled, and contracted once."""
        if self.ct is Zero:
            return instantiate(Zero, self.aval)
        if not isinstance(self.ct, Factored) or self._made is not None:
            made = self._products()
            return self._place(jnp.tensordot(weights.astype(made.dtype), made, 1)).astype(self.aval.dtype)
        scale = lambda a: a * weights.astype(a.dtype).reshape(-1, *[1] * (a.ndim - 1))
        products = [p._replace(ct=scale(p.ct)) for p in self.ct.products]
        rest = self.ct.rest if self.ct.rest is Zero else scale(self.ct.rest)
        return Factored(products, rest, self.ct.shape, self.ct.dtype).summed().materialize()

    def sum_of_squares(self) -> Array:
        """Σ_n W̄_n², element by element, the shape of the parameter: one contraction where it can be."""
        if len(self.pairs) == 1 and self.method != "direct":
            return self._place(self.pairs[0].squared())
        made = self.arrays() if self.ct is not Zero else jnp.zeros((1, *self.aval.shape), self.aval.dtype)
        return jnp.sum(made.astype(_wide(made.dtype)) ** 2, 0)

    def inner_products(self, other: Leaf) -> Array:
        """⟨W̄_n, V̄_m⟩ with the same parameter's cotangents for other examples: shape (n, m)."""
        if self.ct is Zero or other.ct is Zero:
            return jnp.zeros((self.n, other.n), _wide(self.aval.dtype))
        theirs = [b.aligned(self.pairs[0]) for b in other.pairs] if self.pairs else []
        aligned = [b for b in theirs if b is not None]
        whole = 0 < len(aligned) == len(other.pairs)
        if not whole or cost_between(self.pairs, aligned) > cost_apart(self.pairs, aligned):
            a, b = (x.arrays().reshape(x.n, self.aval.size) for x in (self, other))
            return ps.einsum("ni,mi->nm", a, b)
        total: Any = 0
        for x in self.pairs:
            for y in aligned:
                inner = _times(ps.between(x.inputs, y.inputs), ps.between(x.deltas, y.deltas))
                total = total + jnp.sum(inner, (0, 2, 4))
        return total

    def factors(self) -> tuple[Array, Array]:
        """Inputs and deltas of all pairs, their positions one after another: (n, g, p, i) and (n, g, p, o).

        The axis of groups is there if there are several. Inputs that are one-hot codes are the places of their ones.
        """
        alike = len({isinstance(pair.inputs, ps.OneHot) for pair in self.pairs}) == 1
        x, deltas = self.vectors()
        if alike and isinstance(self.pairs[0].inputs, ps.OneHot):
            x = jnp.concatenate([pair.inputs.places for pair in self.pairs], 2)
        return (x[:, 0], deltas[:, 0]) if x.shape[1] == 1 else (x, deltas)

    def vectors(self) -> tuple[Array, Array]:
        """As `factors`, always as vectors and with the axis of groups."""
        x, deltas = zip(*((ps.array(a, pair.dtype) for a in pair[:2]) for pair in self.pairs), strict=True)
        return jnp.concatenate(x, 2), jnp.concatenate(deltas, 2)

    def _products(self) -> Array:
        if self._made is None:
            if self.ct is Zero:
                self._made = jnp.zeros((self.n, *self.aval.shape), self.aval.dtype)
            elif not isinstance(self.ct, Factored):
                self._made = self.ct
            elif self.pairs and self.method != "direct":
                self._made = _summed_pairs(self.pairs)
            else:
                self._made = _contract(self.ct, self.method == "direct")
        return self._made

    def _place(self, product: Array) -> Array:
        """One of the products, or a sum of them, in the parameter's shape."""
        return self.pairs[0].layout.place(product) if self.pairs and self.method != "direct" else product


def _aligned(ct: Factored) -> tuple[list[Pair], str]:
    """The pairs of a sum of products, their factors named alike; or none, and why."""
    if ct.rest is not Zero:
        return [], "a part of the cotangent is no product"
    pairs = [ps.pair_of(p) for p in ct.products]
    if not all(pairs):
        return [], "what follows the product does more than move numbers, or the product is of an uncommon form"
    aligned = [p.aligned(pairs[0]) for p in pairs if p is not None]  # type: ignore[arg-type]
    if not all(aligned):
        return [], "it is used in several ways, and their factors do not meet"
    return aligned, ""  # type: ignore[return-value]


def _summed_pairs(pairs: Sequence[Pair]) -> Array:
    products = [pair.products() for pair in pairs]
    return sum(products[1:], products[0])


def _contract(ct: Factored, direct: bool) -> Array:
    """The arrays, each product mapped over the examples if `direct`, else by its pair where it has one."""
    total = ct.rest
    for p in ct.products:
        pair = None if direct else ps.pair_of(p)
        if pair is None:
            array = jax.vmap(lambda p: p.materialize())(Factored([p], Zero, ct.shape, ct.dtype))
        else:
            array = jax.vmap(pair.layout.place)(pair.products()).astype(ct.dtype)
        total = array if total is Zero else total + array
    return total


def _times(a: Array, b: Array) -> Array:
    """The product of inner products; those of one-hot codes are booleans."""
    if a.dtype == bool:
        return jnp.where(a, b, jnp.zeros((), b.dtype))
    return _times(b, a) if b.dtype == bool else a * b


def _wide(dtype: DTypeLike) -> DTypeLike:
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
