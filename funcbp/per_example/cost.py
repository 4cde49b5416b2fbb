"""What the methods cost: making the products of all examples, or working on their factors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..cotangents import Product
from ..rules.contraction import conv_right
from . import pairs as ps
from .pairs import Pair

__all__ = ["FLOPS_PER_BYTE", "cheapest", "cost_apart", "cost_between"]

FLOPS_PER_BYTE = 8  # operations in the time that a byte takes to memory or back: about 5 to 10 on processors
PATCH_PASSES = 2  # how often the bytes of patches are moved until they are multiplied
DIRECT_SLOWNESS = 2.5  # a mapped convolution to a batched matrix product of as many operations
FULL_CHANNELS = 16  # with fewer input channels, a mapped convolution is slower in proportion


def cheapest(products: Sequence[Product], pairs: Sequence[Pair], n: int, sums: bool) -> str:
    """The method of least cost. Factors and products of a convolution need its patches, the direct one does not."""
    patches = sum(map(_cost_of_patches, products, pairs))
    costs = {
        "factors": _cost_of_factors(pairs, n, sums) + patches,
        "products": _cost_of_products(pairs, n, sums) + patches,
        "direct": _cost_of_products(pairs, n, sums) + _cost_of_direct(products, pairs),
    }
    return min(costs, key=costs.__getitem__)


def _cost_of_patches(product: Product, pair: Pair) -> float:
    """Moving what patches have more than the image: none where they do not overlap."""
    if product.rule is not conv_right:
        return 0
    n, g, p, i, _ = pair.shape
    return FLOPS_PER_BYTE * PATCH_PASSES * _bytes(pair) * max(0, n * g * p * i - product.other.size)


def _cost_of_direct(products: Sequence[Product], pairs: Sequence[Pair]) -> float:
    """What mapped convolutions take longer than matrix products.

    They are no method where processors make all pairs of groups and throw most away: for groups of channels (measured:
    7 to 17 times the time of patches), and in float64 (bytes that grow with the square of the number of examples).
    """
    narrow = lambda p: p.rule is conv_right and p.params["feature_group_count"] == 1 and p.ct.dtype.itemsize <= 4
    if not all(map(narrow, products)):
        return math.inf
    channels = lambda p: p.aval.shape[p.params["dimension_numbers"].rhs_spec[1]]
    slowness = [DIRECT_SLOWNESS * max(1, FULL_CHANNELS / channels(p)) for p in products]
    return sum((s - 1) * _contraction(pair) for s, pair in zip(slowness, pairs, strict=True))


def _bytes(pair: Pair) -> int:
    return max(4, pair.dtype.itemsize)


def _flops(factor: ps.Factor, each: int) -> int:
    """Operations of inner products: none but a reading where one side is a one-hot code."""
    return each if isinstance(factor, ps.OneHot) else 2 * each * ps.width(factor)


def _contraction(pair: Pair) -> int:
    n, g, p, i, o = pair.shape
    one_hot = any(isinstance(f, ps.OneHot) for f in pair[:2])
    return n * g * p * (i + o if one_hot else 2 * i * o)


def _cost_of_products(pairs: Sequence[Pair], n: int, sums: bool) -> float:
    """Making the products, and reading them; and once more for the sum."""
    _, g, _, i, o = pairs[0].shape
    elements = n * g * i * o
    moved = elements * _bytes(pairs[0]) * (3 if sums else 2)
    return sum(map(_contraction, pairs)) + (4 if sums else 2) * elements + FLOPS_PER_BYTE * moved


def _cost_of_factors(pairs: Sequence[Pair], n: int, sums: bool) -> float:
    """Inner products of all positions with all; and for the sum a contraction of its own."""
    cost = float(sum(map(_contraction, pairs)) if sums else 0)
    for j, b in enumerate(pairs):
        for a in pairs[: j + 1]:
            _, g, p, _, _ = a.shape
            both = n * g * p * b.shape[2]
            cost += _flops(a.inputs, both) + _flops(a.deltas, both)
            cost += 0 if both == n * g else FLOPS_PER_BYTE * 4 * both * _bytes(a)
    return cost


def cost_between(ours: Sequence[Pair], theirs: Sequence[Pair]) -> float:
    """Operations for all inner products from the factors."""
    cost = 0.0
    for a in ours:
        for b in theirs:
            n, g, p, _, _ = a.shape
            both = g * n * p * b.shape[0] * b.shape[2]
            cost += _flops(a.inputs, both) + _flops(a.deltas, both) + FLOPS_PER_BYTE * 4 * both * _bytes(a)
    return cost


def cost_apart(ours: Sequence[Pair], theirs: Sequence[Pair]) -> float:
    """Operations for all inner products from the products, once made."""
    (n, g, _, i, o), m = ours[0].shape, theirs[0].shape[0]
    making = sum(map(_contraction, [*ours, *theirs]))
    moving = FLOPS_PER_BYTE * 2 * (n + m) * g * i * o * _bytes(ours[0])
    return making + 2 * n * m * g * i * o + moving
