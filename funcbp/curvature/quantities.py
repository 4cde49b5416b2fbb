"""Curvature: products with the Hessian and the Gauss-Newton matrix, its diagonal and Kronecker factors, and the NTK.

A model and a loss are functions of one example: z = model(params, x), a loss E = loss(z, y), a scalar. The objective is
the mean of E over a batch, x and y with a leading axis of examples. With J the Jacobian of z and H the Hessian of the
loss in z, the generalised Gauss-Newton matrix is

    G = Σ_n J_n' H_n J_n / N.

It is the Hessian with the model taken as linear; where the residuals vanish, or the model is linear, it is the Hessian.

The loss supplies H: `OUTPUT_HESSIANS` has squared error and cross-entropy, and takes others; for a loss that is not in
it, H is had by the forward derivative of its gradient. Solvers are not here: a product with G is a function, which
`jax.scipy.sparse.linalg.cg` takes, or `lineax.FunctionLinearOperator`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..autodiff.pullback import Pullback
from ..autodiff.transformations import Backward
from ..per_example.examples import Examples, Leaf, backpropagate, batch_size, inner_products, jacobian_rows

__all__ = [
    "OUTPUT_HESSIANS",
    "GaussNewton",
    "Linearised",
    "OutputHessian",
    "diag_ggn",
    "ggn",
    "ggn_vp",
    "hvp",
    "kfac_factors",
    "linearise",
    "ntk",
]

Array = jax.Array
Model = Callable[[Any, Any], Array]
Loss = Callable[[Array, Any], Array]
_DEFAULT = Backward()


# --- the Hessian of a loss in the model's output ----------------------------------------------------------------------


class OutputHessian(NamedTuple):
    """The Hessian H of a loss in the model's output z, for one example, in three forms.

    Attributes:
        product: `(z, y, u) -> H u`, like z.
        root: `(z, y) -> s`, shape (k, *z.shape), with Σ_k s_k s_k' = H.
        sample: `(key, z, y) -> s`, like z, with E[s s'] = H.
    """

    product: Callable[[Array, Any, Array], Array]
    root: Callable[[Array, Any], Array]
    sample: Callable[[Array, Array, Any], Array]


def identity_basis(z: Array, y: Any) -> Array:
    return jnp.eye(z.size, dtype=z.dtype).reshape(z.size, *z.shape)


OUTPUT_HESSIANS: dict[Any, OutputHessian] = {}  # by loss; `funcbp.ops` enters its own


def output_hessian(loss: Loss, backward: Backward = _DEFAULT) -> OutputHessian:
    """The loss's own Hessian, or that of any convex loss: H u is the forward derivative of its gradient."""
    if loss in OUTPUT_HESSIANS:
        return OUTPUT_HESSIANS[loss]

    def product(z: Array, y: Any, u: Array) -> Array:
        return jax.jvp(lambda z: backward.grad(loss)(z, y), (z,), (u,))[1]

    def root(z: Array, y: Any) -> Array:
        rows = jax.vmap(lambda u: product(z, y, u))(identity_basis(z, y)).reshape(z.size, z.size)
        values, vectors = jnp.linalg.eigh(rows)
        return (jnp.sqrt(jnp.maximum(values, 0))[:, None] * vectors.T).reshape(z.size, *z.shape)

    def sample(key: Array, z: Array, y: Any) -> Array:
        s = root(z, y)
        return jnp.tensordot(jax.random.normal(key, (z.size,), z.dtype), s, 1)

    return OutputHessian(product, root, sample)


# --- products ---------------------------------------------------------------------------------------------------------


def hvp(f: Callable[..., Array], *, backward: Backward = _DEFAULT) -> Callable[..., Any]:
    """The Hessian of a scalar function times a vector, H v: the forward derivative of our gradient.

    Args:
        f: `f(params, *args)`, a scalar, such as the mean loss of a batch.
        backward: the rules to go backward by.

    Returns:
        A function of `(params, *args, v)`, v a tree like the parameters, that returns H v, a tree like them.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> bp.curvature.hvp(lambda w, a: a * jnp.sum(w**3))(jnp.array([1.0, 2.0]), 2.0, jnp.array([1.0, 0.0]))
        Array([12.,  0.], dtype=float32)

    Source: B. Pearlmutter, "Fast exact multiplication by the Hessian", 1994.
    """

    def of(params: Any, *args: Any) -> Any:
        *rest, v = args
        return backward.hvp(lambda params: f(params, *rest), (params,), (v,))

    return of


class Linearised(NamedTuple):
    """A function near a point, as a linear map in both directions. A pytree: it crosses `jit`.

    `jvp(v)` is J v: our backward pass is linear in the cotangent, so going backward through it goes forward. The
    forward pass is not run again for either.

    Attributes:
        outputs: the value at the point.
        forward, backward: pullbacks, of the backward pass and of the function.
    """

    outputs: Any
    forward: Pullback
    backward: Pullback

    def jvp(self, v: Any) -> Any:
        """J v: from a tree like the parameters to one like the outputs."""
        return self.forward(v)[0]

    def vjp(self, u: Any) -> Any:
        """J' u: from a tree like the outputs to one like the parameters."""
        return self.backward(u)[0]


def linearise(f: Callable[..., Any], *, backward: Backward = _DEFAULT) -> Callable[..., Linearised]:
    """A function near a point, as a linear map in both directions, to be used many times.

    It needs no forward mode, so it also goes through functions that have none, such as `jax.custom_vjp` pairs.

    Args:
        f: `f(params, *args)`, any pytree of arrays.
        backward: the rules to go backward by.

    Returns:
        A function of `(params, *args)` that returns a `Linearised`, with respect to the parameters.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> square = bp.curvature.linearise(lambda w: w**2)(jnp.array([1.0, 3.0]))
        >>> square.jvp(jnp.array([1.0, 1.0]))
        Array([2., 6.], dtype=float32)
    """

    def of(params: Any, *args: Any) -> Linearised:
        outputs, pullback = backward.vjp(lambda params: f(params, *args), params)
        _, forward = backward.vjp(lambda u: pullback(u)[0], jax.tree.map(jnp.zeros_like, outputs))
        return Linearised(outputs, forward, pullback)

    return of


@functools.partial(jax.tree_util.register_dataclass, data_fields=["model", "targets"], meta_fields=["hessian"])
@dataclasses.dataclass(frozen=True)
class GaussNewton:
    """The Gauss-Newton matrix at a point, as a function `v -> G v`; the model's linearisation is kept. A pytree.

    Attributes:
        model: the model's linearisation, its outputs with a leading axis of examples.
        targets: what the loss compares with.
        hessian: of the loss.
    """

    model: Linearised
    targets: Any
    hessian: OutputHessian

    def __call__(self, v: Any) -> Any:
        """G v, for v a tree like the parameters."""
        z = self.model.outputs
        u = jax.vmap(self.hessian.product)(z, self.targets, self.model.jvp(v))
        return self.model.vjp(u / len(z))


def ggn(model: Model, loss: Loss, *, backward: Backward = _DEFAULT) -> Callable[[Any, Any, Any], GaussNewton]:
    """The Gauss-Newton matrix at a point, with the model linearised once: for solvers, which multiply many times.

    Args:
        model: `model(params, x)`, the output for one example, an array.
        loss: `loss(z, y)`, a scalar, convex in z.
        backward: the rules to go backward by.

    Returns:
        A function of `(params, x, y)`, x and y with a leading axis of examples, that returns a `GaussNewton`.

    Example:
        >>> import jax, jax.numpy as jnp, funcbp as bp
        >>> model = lambda w, x: jnp.array([w @ x])
        >>> x, y = jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.zeros((2, 1))
        >>> g = bp.curvature.ggn(model, bp.ops.squared_error)(jnp.zeros(2), x, y)
        >>> solution, _ = jax.scipy.sparse.linalg.cg(g, jnp.array([1.0, 1.0]))
        >>> print(jnp.round(jnp.abs(solution), 4))
        [1. 0.]

    Source: N. Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", 2002.
    """

    def of(params: Any, x: Any, y: Any) -> GaussNewton:
        batched = lambda params: jax.vmap(model, (None, 0))(params, x)
        return GaussNewton(linearise(batched, backward=backward)(params), y, output_hessian(loss, backward))

    return of


def ggn_vp(model: Model, loss: Loss, *, backward: Backward = _DEFAULT) -> Callable[[Any, Any, Any, Any], Any]:
    """The Gauss-Newton matrix times a vector, G v = Σ_n J_n' H_n J_n v / N.

    Args:
        model: `model(params, x)`, the output for one example, an array.
        loss: `loss(z, y)`, a scalar, convex in z.
        backward: the rules to go backward by.

    Returns:
        A function of `(params, x, y, v)`, x and y with a leading axis of examples and v a tree like the parameters,
        that returns a tree like the parameters. For many products at one point see `ggn`.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> model = lambda w, x: jnp.array([w @ x])
        >>> x, y = jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.zeros((2, 1))
        >>> bp.curvature.ggn_vp(model, bp.ops.squared_error)(jnp.zeros(2), x, y, jnp.array([1.0, 0.0]))
        Array([1., 1.], dtype=float32)

    Source: N. Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", 2002.
    """
    at = ggn(model, loss, backward=backward)
    return lambda params, x, y, v: at(params, x, y)(v)


# --- from the factors -------------------------------------------------------------------------------------------------


def diag_ggn(
    model: Model, loss: Loss, *, samples: int | None = None, backward: Backward = _DEFAULT
) -> Callable[..., Any]:
    """The diagonal of the Gauss-Newton matrix: Σ_n Σ_k (J_n' s_k)² / N, with Σ_k s_k s_k' = H_n.

    Exact, it goes backward once for each row of the root of H (for k classes, k rows), all in one walk; by Monte Carlo,
    once for each sample.

    Args:
        model: `model(params, x)`, the output for one example, an array.
        loss: `loss(z, y)`, a scalar, convex in z.
        samples: how many draws per example; None: exact.
        backward: the rules to go backward by.

    Returns:
        A function of `(params, x, y)`, or `(params, x, y, key)` with samples, that returns a tree like the parameters.

    Raises:
        ValueError: samples without a key.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> model = lambda w, x: jnp.array([w @ x])
        >>> x, y = jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.zeros((2, 1))
        >>> bp.curvature.diag_ggn(model, bp.ops.squared_error)(jnp.zeros(2), x, y)
        Array([1., 2.], dtype=float32)

    Source: F. Dangel, F. Kunstner, P. Hennig, "BackPACK: packing more into backprop", 2020.
    """

    def of(params: Any, x: Any, y: Any, key: Array | None = None) -> Any:
        found = _with_seeds(model, loss, "exact" if samples is None else "monte_carlo", samples, backward)(
            params, x, y, key
        )
        scale = 1 / (batch_size(x) * (samples or 1))
        return found.map(lambda leaf: (leaf.sum_of_squares() * scale).astype(leaf.aval.dtype))

    return of


def kfac_factors(
    model: Model,
    loss: Loss,
    kind: str = "exact",
    *,
    shared: str = "expand",
    samples: int = 1,
    backward: Backward = _DEFAULT,
) -> Callable[..., dict[str, tuple[Array, Array]]]:
    """The Kronecker factors of each weight's block of the Gauss-Newton matrix, G ≈ A ⊗ S.

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
        backward: the rules to go backward by.

    Returns:
        A function of `(params, x, y)`, or `(params, x, y, key)` for draws, that returns `{path: (A, S)}`: A of shape
        (i, i), S of shape (o, o), with a leading axis for the groups of a stack of layers. Biases have no A; they are
        not in it, nor is a weight whose cotangents are no products that go together (see `per_example.factors`).

    Raises:
        ValueError: an unknown kind or way of sharing, or draws without a key.

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> model = lambda params, x: x @ params["kernel"]
        >>> params, x = {"kernel": jnp.zeros((2, 1))}, jnp.array([[1.0, 0.0], [1.0, 2.0]])
        >>> bp.curvature.kfac_factors(model, bp.ops.squared_error)(params, x, jnp.zeros((2, 1)))["kernel"]
        (Array([[1., 1.],
               [1., 2.]], dtype=float32), Array([[1.]], dtype=float32))

    Source: J. Martens, R. Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", 2015;
    R. Eschenhagen and others, "Kronecker-factored approximate curvature for modern neural network architectures", 2023.
    """
    if kind not in ("exact", "monte_carlo", "empirical"):
        raise ValueError(f'kind is "exact", "monte_carlo" or "empirical", and was {kind!r}.')
    if shared not in ("expand", "reduce"):
        raise ValueError(f'shared is "expand" or "reduce", and was {shared!r}.')

    def of(params: Any, x: Any, y: Any, key: Array | None = None) -> dict[str, tuple[Array, Array]]:
        found = _with_seeds(model, loss, kind, samples, backward)(params, x, y, key)
        draws = samples if kind == "monte_carlo" else 1
        return {leaf.path: _kronecker(leaf, batch_size(x), draws, shared) for leaf in found.leaves if leaf.pairs}

    return of


def _kronecker(leaf: Leaf, n: int, draws: int, shared: str) -> tuple[Array, Array]:
    x, deltas = leaf.vectors()
    if len(leaf.pairs) == 1:  # an example's inputs are the same for all its rows
        x = x[:: leaf.n // n]
    if shared == "reduce":
        x, deltas = jnp.mean(x, 2, keepdims=True), jnp.sum(deltas, 2, keepdims=True)
    a = jnp.einsum("ngpi,ngpj->gij", x, x) / (x.shape[0] * x.shape[2])
    s = jnp.einsum("ngpo,ngpq->goq", deltas, deltas) / (n * draws)
    return (a[0], s[0]) if len(a) == 1 else (a, s)


def _with_seeds(
    model: Model, loss: Loss, kind: str, samples: int | None, backward: Backward
) -> Callable[[Any, Any, Any, Array | None], Examples]:
    """The walk from the rows of the root of H, from draws, or from the gradient of the loss."""
    hessian = output_hessian(loss, backward)

    def of(params: Any, x: Any, y: Any, key: Array | None) -> Examples:
        f = lambda params, example: model(params, example[0])
        if kind == "monte_carlo":
            if key is None:
                raise ValueError("Draws need a key: pass jax.random.key(...) as the last argument.")
            keys = jax.random.split(key, (batch_size(x), samples or 1))
            draw = lambda z, example: jax.vmap(lambda k: hessian.sample(k, z, example[1]))(example[2])
            return backpropagate(f, params, (x, y, keys), backward=backward, seeds=draw)
        exact = lambda z, example: hessian.root(z, example[1])
        empirical = lambda z, example: backward.grad(loss)(z, example[1])[None]
        seeds = exact if kind == "exact" else empirical
        return backpropagate(f, params, (x, y), backward=backward, seeds=seeds)

    return of


def ntk(f: Callable[[Any, Any], Array], *, backward: Backward = _DEFAULT) -> Callable[..., Array]:
    """The empirical neural tangent kernel: J(x) J(x')', the inner products of the outputs' gradients.

    Args:
        f: `f(params, x)`, the output for one example: a scalar, or an array of k elements.
        backward: the rules to go backward by.

    Returns:
        A function of `(params, x)`, or `(params, x, other)`, each with a leading axis of examples, that returns an
        array of shape (n, m), or (n, k, m, k).

    Example:
        >>> import jax.numpy as jnp, funcbp as bp
        >>> bp.curvature.ntk(lambda w, x: w @ x)(jnp.zeros(2), jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 1.0]]))
        Array([[2.]], dtype=float32)

    Source: A. Jacot, F. Gabriel, C. Hongler, "Neural tangent kernel: convergence and generalization in neural
    networks", 2018.
    """

    def of(params: Any, x: Any, other: Any = None) -> Array:
        ours, k = jacobian_rows(f, params, x, backward)
        theirs = ours if other is None else jacobian_rows(f, params, other, backward)[0]
        matrix = inner_products(ours, theirs)
        return matrix if k is None else matrix.reshape(matrix.shape[0] // k, k, matrix.shape[1] // k, k)

    return of
