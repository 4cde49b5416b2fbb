"""Backpropagation over a batch of examples that keeps them apart: one walk, and each parameter's cotangents by example.

`backpropagate` maps the forward pass and the walk over the batch. What comes out for each parameter is an array with
one cotangent per example, or, for the factors of products, the two factors: see `pairs.py`. A `Leaf` answers what is
asked of them (their squared norms, their sum with weights, their inner products) in the cheapest way: from the factors,
or from the products once made, those of a convolution from patches or directly, by a convolution for each example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import jaxpr as jx
from ..autodiff.arguments import check_callable, checked, name_of
from ..autodiff.transformations import Backward
from ..cotangents import Factored, Product, Zero, instantiate
from ..rules.contract import MissingRuleError
from ..rules.contraction import conv_right
from . import pairs as ps
from .pairs import Pair

__all__ = ["FLOPS_PER_BYTE", "Examples", "Leaf", "backpropagate", "batch_size", "inner_products", "jacobian_rows"]

Array = jax.Array
FLOPS_PER_BYTE = 8  # operations in the time that a byte takes to memory or back: about 5 to 10 on processors
PATCH_PASSES = 2  # how often the bytes of patches are moved until they are multiplied
DIRECT_SLOWNESS = 2.5  # a mapped convolution to a batched matrix product of as many operations
FULL_CHANNELS = 16  # with fewer input channels, a mapped convolution is slower in proportion


class Leaf:
    """One parameter's cotangents, example by example: W̄_n for n = 1 ... N.

    Args:
        path: the parameter's path, `dense_0/kernel`.
        aval: its type.
        ct: `Zero`; an array (n, ...); or `Factored`, its factors with a leading axis n.
        n: the number of examples.
        sums: whether the sum over the examples will be asked for too: products once made serve both.

    Attributes:
        way: how squared norms are found: `"zero"`; `"array"`, the cotangents come as arrays; `"factors"`, from the
            factors; `"products"`, which are made, with the reason where there is one; or `"direct"`, where products
            of a convolution are made by a convolution for each example instead of from patches.
    """

    def __init__(self, path: str, aval: Any, ct: Any, n: int, sums: bool = False):
        self.path, self.aval, self.ct, self.n = path, aval, ct, n
        self.pairs: list[Pair] = []
        self._made: Array | None = None  # the products, (n, g, i, o) in the first pair's layout or as arrays
        if ct is Zero:
            self.way = "zero"
        elif not isinstance(ct, Factored):
            self.way = "array"
        else:
            self.pairs, why = _aligned(ct)
            self.way = f"products: {why}" if why else _cheapest(ct.products, self.pairs, n, sums)

    def arrays(self, direct: bool = True) -> Array:
        """W̄_n: shape (n, ...), in the parameter's dtype. Unless `direct`, convolutions go by patches."""
        if self.way == "direct" and not direct:
            made = jax.vmap(self.pairs[0].layout.place)(_summed_pairs(self.pairs))
        else:
            made = jax.vmap(self._place)(self._products())
        return made.astype(self.aval.dtype)

    def squared_norms(self) -> Array:
        """‖W̄_n‖²: shape (n,)."""
        if self.way == "zero":
            return jnp.zeros(self.n, _wide(self.aval.dtype))
        if self.way != "factors":
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
        if len(self.pairs) == 1 and self.way != "direct":
            return self._place(self.pairs[0].squared())
        made = self.arrays() if self.ct is not Zero else jnp.zeros((1, *self.aval.shape), self.aval.dtype)
        return jnp.sum(made.astype(_wide(made.dtype)) ** 2, 0)

    def inner_products(self, other: Leaf) -> Array:
        """⟨W̄_n, V̄_m⟩ with the same parameter's cotangents for other examples: shape (n, m)."""
        if self.ct is Zero or other.ct is Zero:
            return jnp.zeros((self.n, other.n), _wide(self.aval.dtype))
        theirs = [b.aligned(self.pairs[0]) for b in other.pairs] if self.pairs else []
        met = [b for b in theirs if b is not None]
        if not met or len(met) < len(other.pairs) or _cost_between(self.pairs, met) > _cost_apart(self.pairs, met):
            a, b = (x.arrays().reshape(x.n, self.aval.size) for x in (self, other))
            return ps.einsum("ni,mi->nm", a, b)
        total: Any = 0
        for x in self.pairs:
            for y in met:
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
            elif self.pairs and self.way != "direct":
                self._made = _summed_pairs(self.pairs)
            else:
                self._made = _contract(self.ct, self.way == "direct")
        return self._made

    def _place(self, product: Array) -> Array:
        """One of the products, or a sum of them, in the parameter's shape."""
        return self.pairs[0].layout.place(product) if self.pairs and self.way != "direct" else product


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


# --- what it costs ----------------------------------------------------------------------------------------------------


def _cheapest(products: Sequence[Product], pairs: Sequence[Pair], n: int, sums: bool) -> str:
    """The way of least cost. Factors and products of a convolution need its patches, the direct way does not."""
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

    They are no way where processors make all pairs of groups and throw most away: for groups of channels (measured: 7
    to 17 times the time of patches), and in float64 (bytes that grow with the square of the number of examples).
    """
    narrow = lambda p: p.rule is conv_right and p.params["feature_group_count"] == 1 and p.ct.dtype.itemsize <= 4
    if not all(map(narrow, products)):
        return math.inf
    channels = lambda p: p.aval.shape[p.params["dimension_numbers"].rhs_spec[1]]
    slowness = [DIRECT_SLOWNESS * max(1, FULL_CHANNELS / channels(p)) for p in products]
    return sum((s - 1) * _contraction(pair) for s, pair in zip(slowness, pairs, strict=True))


def _bytes(pair: Pair) -> int:
    return max(4, pair.dtype.itemsize)


def _flops(factor: Any, each: int) -> int:
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


def _cost_between(ours: Sequence[Pair], theirs: Sequence[Pair]) -> float:
    cost = 0.0
    for a in ours:
        for b in theirs:
            n, g, p, _, _ = a.shape
            both = g * n * p * b.shape[0] * b.shape[2]
            cost += _flops(a.inputs, both) + _flops(a.deltas, both) + FLOPS_PER_BYTE * 4 * both * _bytes(a)
    return cost


def _cost_apart(ours: Sequence[Pair], theirs: Sequence[Pair]) -> float:
    (n, g, _, i, o), m = ours[0].shape, theirs[0].shape[0]
    making = sum(map(_contraction, [*ours, *theirs]))
    moving = FLOPS_PER_BYTE * 2 * (n + m) * g * i * o * _bytes(ours[0])
    return making + 2 * n * m * g * i * o + moving


def _times(a: Array, b: Array) -> Array:
    """The product of inner products; those of one-hot codes are booleans."""
    if a.dtype == bool:
        return jnp.where(a, b, jnp.zeros((), b.dtype))
    return _times(b, a) if b.dtype == bool else a * b


def _wide(dtype: Any) -> Any:
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


# --- the walk ---------------------------------------------------------------------------------------------------------


class Examples(NamedTuple):
    """What one forward and one backward pass over a batch found.

    Attributes:
        outputs: of the function, with a leading axis of examples.
        leaves: the parameters' cotangents, in the order of the tree's leaves. With several seeds per example, their
            "examples" are the pairs of example and seed, in that order.
        tree: the structure of the parameters.
    """

    outputs: Any
    leaves: list[Leaf]
    tree: Any

    def map(self, f: Callable[[Leaf], Any]) -> Any:
        """A tree like the parameters of what `f` makes of each leaf."""
        return jax.tree.unflatten(self.tree, [f(leaf) for leaf in self.leaves])

    def squared_norms(self) -> Array:
        """‖W̄_n‖² over all leaves: shape (n,)."""
        squares = [leaf.squared_norms() for leaf in self.leaves]
        if not squares:
            return jnp.zeros(jax.tree.leaves(self.outputs)[0].shape[:1])
        dtype = squares[0].dtype if len({q.dtype for q in squares}) == 1 else jnp.float32
        return sum((q.astype(dtype) for q in squares[1:]), squares[0].astype(dtype))

    def mean(self) -> Any:
        """Σ_n W̄_n / N, a tree like the parameters."""
        n = jax.tree.leaves(self.outputs)[0].shape[0]
        return self.map(lambda leaf: leaf.weighted_sum(jnp.full(n, 1 / n, jnp.finfo(leaf.aval.dtype).dtype)))


def path_name(path: Sequence[Any]) -> str:
    """A leaf's path as it is written everywhere: `dense_0/kernel`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def batch_size(batch: Any) -> int:
    """The number of examples: the length of the leading axis of all leaves."""
    shapes = {path_name(path): np.shape(x) for path, x in jax.tree.leaves_with_path(batch)}
    sizes = {shape[0] if shape else None for shape in shapes.values()}
    if len(sizes) != 1 or None in sizes:
        listed = ", ".join(f"{path or 'the batch'} {list(shape)}" for path, shape in shapes.items())
        raise ValueError(f"All leaves of a batch must have one leading axis, of examples; here are {listed or 'none'}.")
    return sizes.pop()  # type: ignore[return-value]


def backpropagate(
    f: Callable[[Any, Any], Any],
    params: Any,
    batch: Any,
    *,
    backward: Backward,
    sums: bool = False,
    seeds: Callable[[Array, Any], Array] | None = None,
) -> Examples:
    """Go forward and backward over a batch, keeping the examples apart.

    Args:
        f: `f(params, example)`, a scalar, or an array where there are `seeds`.
        params: a pytree of floating-point arrays.
        batch: a pytree of arrays with a leading axis of examples.
        backward: the rules.
        sums: whether sums over the examples will be asked for.
        seeds: `seeds(output, example)`, the cotangents of the output to go back with, stacked along a leading axis;
            left out, it is the scalar 1.
    """
    check_callable(f)
    with_paths, tree = jax.tree.flatten_with_path(params)
    for path, x in with_paths:
        _check_parameter(path_name(path), x)
    values = [jnp.asarray(x) for _, x in with_paths]
    n = batch_size(batch)
    options = backward.observing(factored=True)

    def one(values: Any, example: Any) -> Any:
        y, pullback = options.vjp(lambda v: f(jax.tree.unflatten(tree, v), example), values)
        if seeds is not None:
            return y, jax.vmap(lambda ct: pullback.flat([ct])[0])(seeds(y, example))
        _check_loss(f, y)
        return y, pullback.flat([jnp.ones_like(y)])[0]

    try:
        outputs, cts = jax.vmap(one, (None, 0))(values, batch)
    except (NameError, MissingRuleError) as error:
        reason, *_ = str(error).split(" over devices")  # said of the sum where it depends on the parameters
        if "unbound axis name" not in reason and "no derivative for `psum`" not in reason:
            raise
        raise ValueError(
            f"{name_of(f)} takes an average over a named axis of examples ({reason}), as batch normalisation in "
            "training mode does: then an example's loss depends on the other examples, and there is no gradient of its "
            "own. Use the running averages, or a normalisation within the example (layer or group normalisation)."
        ) from error
    if seeds is not None:
        cts = jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), cts)
        n = n * math.prod(jax.tree.leaves(jax.eval_shape(jax.vmap(seeds), outputs, batch))[0].shape[1:2])
    leaves = [
        Leaf(path_name(path), jax.typeof(v), ct, n, sums)
        for (path, _), v, ct in zip(with_paths, values, cts, strict=True)
    ]
    return Examples(outputs, leaves, tree)


def jacobian_rows(
    f: Callable[[Any, Any], Any], params: Any, batch: Any, backward: Backward
) -> tuple[Examples, int | None]:
    """The gradients of all outputs of all examples, and how many outputs there are: None for a scalar."""
    example = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), jax.tree.map(jnp.asarray, batch))
    out = jax.eval_shape(f, params, example)
    if not hasattr(out, "shape"):
        raise TypeError(f"The function must return an array, and returned {out!r}.")
    if out.shape == ():
        return backpropagate(f, params, batch, backward=backward), None
    basis = lambda y, _: jnp.eye(y.size, dtype=y.dtype).reshape(y.size, *y.shape)
    return backpropagate(f, params, batch, backward=backward, seeds=basis), out.size


def inner_products(a: Examples, b: Examples) -> Array:
    """The inner products of two sets of gradients, over all parameters."""
    terms = [x.inner_products(y) for x, y in zip(a.leaves, b.leaves, strict=True)]
    if not terms:
        return jnp.zeros([jax.tree.leaves(x.outputs)[0].size for x in (a, b)])
    dtype = jnp.float32 if len({t.dtype for t in terms}) > 1 else terms[0].dtype
    return sum((t.astype(dtype) for t in terms[1:]), terms[0].astype(dtype))


def _check_parameter(path: str, x: Any) -> None:
    dtype = jx.type_of(checked(x)).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"Parameters must be real floating-point arrays, and {path or 'this one'} is {dtype}. What is not trained "
            "(counters, keys, tables of integers) is no parameter: let the loss close over it."
        )


def _check_loss(f: Any, y: Any) -> None:
    shape = getattr(y, "shape", None)
    if shape is None:
        raise TypeError(f"{name_of(f)} must return one number, the loss of an example, and returned {y!r}.")
    if shape != ():
        raise TypeError(
            f"{name_of(f)} must return one number, the loss of one example (it is called without the batch's leading "
            f"axis), and returned shape {list(shape)}. If it is written for a batch, wrap it in per_example.of_batch."
        )
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise TypeError(f"{name_of(f)} must return a real floating-point number, and returned {y.dtype}.")
