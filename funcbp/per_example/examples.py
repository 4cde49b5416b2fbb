"""Backpropagation over a batch of examples that keeps them apart: one backward pass, mapped over the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import KeyPath, PyTreeDef

from .. import jaxpr as jx
from ..autodiff.arguments import check_callable, checked, checked_arrays, name_of
from ..autodiff.transformations import Backward
from ..jaxpr.types import PyTree, Value
from .leaf import Leaf

__all__ = ["Examples", "backpropagate", "batch_size", "inner_products", "jacobian_rows"]

Array = jax.Array


class Examples(NamedTuple):
    """What one forward and one backward pass over a batch found.

    Attributes:
        outputs: of the function, with a leading axis of examples.
        leaves: the parameters' cotangents, in the order of the tree's leaves. With several seeds per example, their
            "examples" are the pairs of example and seed, in that order.
        tree: the structure of the parameters.
        aux: the auxiliary data of all examples, if there are any.
    """

    outputs: PyTree
    leaves: list[Leaf]
    tree: PyTreeDef
    aux: tuple[PyTree, ...] = ()

    def returned(self, *values: PyTree) -> PyTree:
        """What a function returns: these values, and after them the auxiliary data."""
        values = (*values, *self.aux)
        return values[0] if len(values) == 1 else values

    def map(self, f: Callable[[Leaf], PyTree]) -> PyTree:
        """A tree like the parameters of what `f` makes of each leaf."""
        return jax.tree.unflatten(self.tree, [f(leaf) for leaf in self.leaves])

    def squared_norms(self) -> Array:
        """‖W̄_n‖² over all leaves: shape (n,)."""
        squares = [leaf.squared_norms() for leaf in self.leaves]
        if not squares:
            return jnp.zeros(jax.tree.leaves(self.outputs)[0].shape[:1])
        dtype = squares[0].dtype if len({q.dtype for q in squares}) == 1 else jnp.float32
        return sum((q.astype(dtype) for q in squares[1:]), squares[0].astype(dtype))

    def mean(self) -> PyTree:
        """Σ_n W̄_n / N, a tree like the parameters."""
        n = jax.tree.leaves(self.outputs)[0].shape[0]
        return self.map(lambda leaf: leaf.weighted_sum(jnp.full(n, 1 / n, jnp.finfo(leaf.aval.dtype).dtype)))


def path_name(path: KeyPath) -> str:
    """A leaf's path as it is written everywhere: `dense_0/kernel`."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def batch_size(batch: PyTree) -> int:
    """The number of examples: the length of the leading axis of all leaves."""
    shapes = {path_name(path): np.shape(x) for path, x in jax.tree.leaves_with_path(batch)}
    sizes = {shape[0] if shape else None for shape in shapes.values()}
    if len(sizes) != 1 or None in sizes:
        listed = ", ".join(f"{path or 'the batch'} {list(shape)}" for path, shape in shapes.items())
        raise ValueError(f"All leaves of a batch must have one leading axis, of examples; here are {listed or 'none'}.")
    return sizes.pop()  # type: ignore[return-value]


def backpropagate(
    f: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    batch: PyTree,
    *,
    backward: Backward,
    has_aux: bool = False,
    sums: bool = False,
    seeds: Callable[[Array, PyTree], Array] | None = None,
) -> Examples:
    """Go forward and backward over a batch, keeping the examples apart.

    Args:
        f: `f(params, example)`, a scalar, or an array where there are `seeds`.
        params: a pytree of floating-point arrays.
        batch: a pytree of arrays with a leading axis of examples.
        backward: the way of going backward.
        has_aux: whether `f` returns a pair (output, auxiliary data).
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
    factoring = backward.observing(factored=True)

    def one(values: PyTree, example: PyTree) -> PyTree:
        params = jax.tree.unflatten(tree, values)
        y, pullback, *aux = factoring.vjp(lambda params: f(params, example), params, has_aux=has_aux)
        if seeds is not None:
            return y, jax.vmap(lambda ct: pullback.flat([ct])[0])(seeds(y, example)), aux
        _check_loss(f, y)
        return y, pullback.flat([jnp.ones_like(y)])[0], aux

    try:
        outputs, cts, aux = jax.vmap(one, (None, 0))(values, batch)
    except NameError as error:
        if "unbound axis name" not in str(error):
            raise
        raise ValueError(
            f"{name_of(f)} takes an average over a named axis of examples ({error}), as batch normalisation in "
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
    return Examples(outputs, leaves, tree, tuple(aux))


def jacobian_rows(
    f: Callable[[PyTree, PyTree], PyTree], params: PyTree, batch: PyTree, backward: Backward, has_aux: bool = False
) -> tuple[Examples, int | None]:
    """The gradients of all outputs of all examples, and how many outputs there are: None for a scalar."""
    checked_arrays(params)
    example = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), jax.tree.map(jnp.asarray, batch))
    out = jax.eval_shape(f, params, example)
    out = out[0] if has_aux else out
    if not hasattr(out, "shape"):
        raise TypeError(f"The function must return an array, and returned {out!r}.")
    if out.shape == ():
        return backpropagate(f, params, batch, backward=backward, has_aux=has_aux), None
    basis = lambda y, _: jnp.eye(y.size, dtype=y.dtype).reshape(y.size, *y.shape)
    return backpropagate(f, params, batch, backward=backward, has_aux=has_aux, seeds=basis), out.size


def inner_products(a: Examples, b: Examples) -> Array:
    """The inner products of two sets of gradients, over all parameters."""
    terms = [x.inner_products(y) for x, y in zip(a.leaves, b.leaves, strict=True)]
    if not terms:
        return jnp.zeros([jax.tree.leaves(x.outputs)[0].size for x in (a, b)])
    dtype = jnp.float32 if len({t.dtype for t in terms}) > 1 else terms[0].dtype
    return sum((t.astype(dtype) for t in terms[1:]), terms[0].astype(dtype))


def _check_parameter(path: str, x: Value) -> None:
    dtype = jx.type_of(checked(x)).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"Parameters must be real floating-point arrays, and {path or 'this one'} is {dtype}. What is not trained "
            "(counters, keys, tables of integers) is no parameter: let the loss close over it."
        )


def _check_loss(f: Callable[..., PyTree], y: Value) -> None:
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
