"""What the factors of the cotangents give: the diagonal of the Gauss-Newton matrix, and its Kronecker factors."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..autodiff.arguments import parameters_first
from ..autodiff.transformations import Backward, as_backward
from ..jaxpr.types import PyTree
from ..per_example.examples import Examples, backpropagate, batch_size
from ..per_example.leaf import Leaf
from .output_hessian import of_loss, output_hessian, refuse_indefinite

__all__ = ["diag_ggn", "kfac_factors"]

Array = jax.Array
Model = Callable[[PyTree, PyTree], PyTree]
Loss = Callable[[Array, PyTree], Array]


def diag_ggn(
    model: Model,
    loss: Loss,
    *,
    samples: int | None = None,
    argnums: int = 0,
    has_aux: bool = False,
    backward: Backward | None = None,
) -> Callable[..., PyTree]:
    """Compute the diagonal of the Gauss-Newton matrix: Σ_n Σ_k (J_n' s_k)² / N, with Σ_k s_k s_k' = H_n.

    Exact, it goes backward once for each row of the root of H (for k classes, k rows), all in one pass; by Monte Carlo,
    once for each sample.

    Args:
        model: `model(params, x)`, the output for one example, an array.
        loss: `loss(z, y)`, a scalar, convex in z.
        samples: how many draws per example; None: exact.
        argnums: which argument of `model`, 0 or 1, holds the parameters; what is returned takes them in that order.
        has_aux: whether the model returns a pair (output, auxiliary data); the latter is returned too, last.
        backward: the way of going backward, if not the default one.

    Returns:
        A function of `(params, x, y)`, or `(params, x, y, key)` with samples, that returns a tree like the parameters.

    Raises:
        ValueError: samples without a key; or a loss that is not convex in z. Under `jit` the result is nan then.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> model = lambda w, x: jnp.array([w @ x])
        >>> x, y = jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.zeros((2, 1))
        >>> bp.curvature.diag_ggn(model, bp.ops.squared_error)(jnp.zeros(2), x, y)
        Array([1., 2.], dtype=float32)

    References:
        F. Dangel, F. Kunstner, P. Hennig, "BackPACK: packing more into backprop", 2020.
    """
    model = parameters_first(model, argnums)
    kind = "exact" if samples is None else "monte_carlo"
    at = with_seeds(model, loss, kind, samples, has_aux, as_backward(backward))
    hessian = output_hessian(loss, as_backward(backward))

    def of(params: PyTree, x: PyTree, y: PyTree, key: Array | None = None) -> PyTree:
        found = at(params, x, y, key)
        scale = 1 / (batch_size(x) * (samples or 1))
        diagonal = found.map(lambda leaf: (leaf.sum_of_squares() * scale).astype(leaf.aval.dtype))
        refuse_indefinite(diagonal, hessian, lambda: outputs(model, params, x, has_aux), y)
        return found.returned(diagonal)

    return parameters_first(of, argnums)


def kfac_factors(
    model: Model,
    loss: Loss,
    kind: str = "exact",
    *,
    shared: str = "expand",
    samples: int = 1,
    argnums: int = 0,
    has_aux: bool = False,
    backward: Backward | None = None,
) -> Callable[..., PyTree]:
    """Compute the Kronecker factors of each weight's block of the Gauss-Newton matrix, G ≈ A ⊗ S.

    With inputs x_n[p] and deltas δ_n[p] at the positions p = 1 ... P that share the weight,

        expand: A = Σ_n Σ_p x x' / (N P),    S = Σ_n Σ_p δ δ' / N
        reduce: A = Σ_n x̂ x̂' / N, x̂ = Σ_p x / P,    S = Σ_n δ̂ δ̂' / N, δ̂ = Σ_p δ

    For one position the two are the same. Each is exact for a linear network under the loss it is made for.

    Args:
        model: `model(params, x)`, the output for one example, an array.
        loss: `loss(z, y)`, a scalar, convex in z.
        kind: where the deltas come from: `"exact"`: all rows of the root of H; `"monte_carlo"`: draws; `"empirical"`:
            the gradient of the loss itself, for the empirical Fisher matrix.
        shared: `"expand"` or `"reduce"`.
        samples: how many draws per example.
        argnums: which argument of `model`, 0 or 1, holds the parameters; what is returned takes them in that order.
        has_aux: whether the model returns a pair (output, auxiliary data); the latter is returned too, last.
        backward: the way of going backward, if not the default one.

    Returns:
        A function of `(params, x, y)`, or `(params, x, y, key)` for draws, that returns `{path: (A, S)}`: A of shape
        (i, i), S of shape (o, o), with a leading axis for the groups of a stack of layers. Biases have no A; they are
        not in it, nor is a weight whose cotangents are no products that go together (see `per_example.factors`).

    Raises:
        ValueError: an unknown kind or sharing, draws without a key, or a loss that is not convex in z. Under `jit` the
            result is nan then.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> model = lambda params, x: x @ params["kernel"]
        >>> params, x = {"kernel": jnp.zeros((2, 1))}, jnp.array([[1.0, 0.0], [1.0, 2.0]])
        >>> bp.curvature.kfac_factors(model, bp.ops.squared_error)(params, x, jnp.zeros((2, 1)))["kernel"]
        (Array([[1., 1.],
               [1., 2.]], dtype=float32), Array([[1.]], dtype=float32))

    References:
        J. Martens, R. Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", 2015;
        R. Eschenhagen and others, "Kronecker-factored approximate curvature for modern neural network architectures",
        2023.
    """
    model = parameters_first(model, argnums)
    if kind not in ("exact", "monte_carlo", "empirical"):
        raise ValueError(f'kind is "exact", "monte_carlo" or "empirical", and was {kind!r}.')
    if shared not in ("expand", "reduce"):
        raise ValueError(f'shared is "expand" or "reduce", and was {shared!r}.')

    at = with_seeds(model, loss, kind, samples, has_aux, as_backward(backward))
    hessian = output_hessian(loss, as_backward(backward))

    def of(params: PyTree, x: PyTree, y: PyTree, key: Array | None = None) -> PyTree:
        found = at(params, x, y, key)
        draws = samples if kind == "monte_carlo" else 1
        pairs = {leaf.path: _kronecker(leaf, batch_size(x), draws, shared) for leaf in found.leaves if leaf.pairs}
        refuse_indefinite(pairs, hessian, lambda: outputs(model, params, x, has_aux), y)
        return found.returned(pairs)

    return parameters_first(of, argnums)


def outputs(model: Model, params: PyTree, x: PyTree, has_aux: bool) -> Array:
    """The outputs of the model, one for each example."""
    return jax.vmap(lambda x: model(params, x)[0] if has_aux else model(params, x))(x)


def _kronecker(leaf: Leaf, n: int, draws: int, shared: str) -> tuple[Array, Array]:
    x, deltas = leaf.vectors()
    if len(leaf.pairs) == 1:  # an example's inputs are the same for all its rows
        x = x[:: leaf.n // n]
    if shared == "reduce":
        x, deltas = jnp.mean(x, 2, keepdims=True), jnp.sum(deltas, 2, keepdims=True)
    a = jnp.einsum("ngpi,ngpj->gij", x, x) / (x.shape[0] * x.shape[2])
    s = jnp.einsum("ngpo,ngpq->goq", deltas, deltas) / (n * draws)
    return (a[0], s[0]) if len(a) == 1 else (a, s)


def with_seeds(
    model: Model, loss: Loss, kind: str, samples: int | None, has_aux: bool, backward: Backward
) -> Callable[[PyTree, PyTree, PyTree, Array | None], Examples]:
    """Go backward from the rows of the root of H, from draws, or from the gradient of the loss."""
    hessian = output_hessian(loss, backward)

    def of(params: PyTree, x: PyTree, y: PyTree, key: Array | None) -> Examples:
        f = lambda params, example: model(params, example[0])
        back = functools.partial(backpropagate, f, params, backward=backward, has_aux=has_aux)
        if kind == "monte_carlo":
            if key is None:
                raise ValueError("Draws need a key: pass jax.random.key(...) as the last argument.")
            keys = jax.random.split(key, (batch_size(x), samples or 1))
            draw = lambda z, example: jax.vmap(lambda k: hessian.sample(k, z, example[1]))(example[2])
            return back((x, y, keys), seeds=draw)
        exact = lambda z, example: hessian.root(z, example[1])
        empirical = lambda z, example: of_loss(backward).grad(loss)(z, example[1])[None]
        return back((x, y), seeds=exact if kind == "exact" else empirical)

    return of
